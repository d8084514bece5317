package kubelet

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

var update = flag.Bool("update", false, "rewrite golden files")

func decode(t *testing.T, node, answer string) *proto.Batch {
	t.Helper()
	var d Decoder
	b := &proto.Batch{Node: node}
	if err := d.Summary([]byte(answer), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	return mustFixture(name)
}

// dump prints a table for people: one line a row, one a value.
func dump(t *proto.Table) string {
	var out strings.Builder
	value := func(c *proto.Columns, row int, indent string) {
		cols := slices.Clone(c.All())
		slices.SortFunc(cols, func(a, b proto.Column) int { return int(a.Field) - int(b.Field) })
		for _, col := range cols {
			v, ok := c.Get(row, col.Field)
			if !ok {
				continue
			}
			name, text := fmt.Sprint("field ", col.Field), fmt.Sprint(v)
			m := proto.MetricByID(proto.MetricID(col.Field))
			switch {
			case m != nil:
				name, text = m.Name, m.Unscale(v).String()
			case col.Field == proto.FieldStart:
				name, text = "start", time.Unix(0, v).UTC().Format(time.RFC3339)
			default:
				for g := range proto.Group(16) {
					if col.Field == g.Time() {
						name, text = fmt.Sprint("time of group ", g), time.Unix(0, v).UTC().Format(time.RFC3339)
					}
				}
			}
			fmt.Fprintf(&out, "%s%s %s\n", indent, name, text)
		}
	}
	for i := range t.Entities {
		e := &t.Entities[i]
		fmt.Fprintf(&out, "%d %s %q parent %d", i, e.Kind, e.Name, e.Parent)
		if e.Namespace != "" {
			fmt.Fprintf(&out, " namespace %q uid %q", e.Namespace, e.UID)
		}
		fmt.Fprintf(&out, " flags %#x\n", uint32(e.Flags))
		value(&t.Values, i, "    ")
		from, to := t.DevicesOf(i)
		for d := from; d < to; d++ {
			fmt.Fprintf(&out, "    device %q kind %d claim %q\n", t.Devices[d].Name, t.Devices[d].Kind, t.Devices[d].Claim)
			value(&t.DeviceValues, d, "        ")
		}
		for _, x := range t.Extras {
			if int(x.Entity) == i {
				fmt.Fprintf(&out, "    extra %q %s counter %t\n", x.Name, x.Value, x.Counter)
			}
		}
	}
	return out.String()
}

func TestSummaryOfRealKubelet(t *testing.T) {
	var d Decoder
	b := &proto.Batch{}
	for _, round := range []string{"0", "3"} {
		b.Node = "node-0"
		if err := d.Summary(fixture(t, "summary-"+round+".json"), b); err != nil {
			t.Fatal(err)
		}
		if b.Dropped != 0 {
			t.Errorf("round %s: %d values left out of a sound answer", round, b.Dropped)
		}
		golden := filepath.Join("testdata", "summary-"+round+".golden")
		got := dump(&b.Table)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("round %s differs from %s; run with -update and look at the difference", round, golden)
		}
	}
}

const allFields = `{"pods":[
 {"podRef":{"name":"p","namespace":"ns","uid":"u"},"startTime":"2026-11-20T10:00:00Z",
  "containers":[{"name":"c","startTime":"2026-11-20T10:00:01Z",
    "cpu":{"time":"2026-11-20T11:00:00Z","usageNanoCores":77,"usageCoreNanoSeconds":100,"psi":{"some":{"total":5,"avg10":1.25,"avg60":0,"avg300":99.99},"full":{"total":6,"avg10":0.5}}},
    "memory":{"time":"2026-11-20T11:00:01Z","availableBytes":1,"usageBytes":2,"workingSetBytes":3,"rssBytes":4,"pageFaults":5,"majorPageFaults":6,"psi":{"full":{"total":9}}},
    "io":{"time":"2026-11-20T11:00:02Z","psi":{"some":{"total":11}}},
    "swap":{"time":"2026-11-20T11:00:03Z","swapUsageBytes":12,"swapAvailableBytes":13},
    "rootfs":{"time":"2026-11-20T11:00:04Z","usedBytes":20,"inodesUsed":3},
    "logs":{"time":"2026-11-20T11:00:05Z","usedBytes":22},
    "accelerators":[{"make":"nvidia","model":"a100","id":"GPU-1","memoryTotal":100,"memoryUsed":50,"dutyCycle":7}],
    "userDefinedMetrics":[{"name":"qps","type":"gauge","units":"x","labels":{"a":"b"},"time":"2026-11-20T11:00:00Z","value":1.5},
      {"name":"hits","type":"cumulative","value":7},{"name":"qps","type":"gauge","value":2.5},{"name":"odd","type":"histogram","value":1}]}],
  "cpu":{"time":"2026-11-20T11:00:00Z","usageCoreNanoSeconds":150},
  "network":{"time":"2026-11-20T11:00:06Z","name":"eth0","rxBytes":1,"rxErrors":2,"txBytes":3,"txErrors":4,"interfaces":[{"name":"eth0","rxBytes":1,"rxErrors":2,"txBytes":3,"txErrors":4},{"name":"eth1","rxBytes":9}]},
  "volume":[{"name":"data","pvcRef":{"name":"claim","namespace":"ns"},"time":"2026-11-20T11:00:07Z","usedBytes":1,"capacityBytes":2,"availableBytes":3,"inodes":4,"inodesFree":5,"inodesUsed":6}],
  "ephemeral-storage":{"time":"2026-11-20T11:00:08Z","usedBytes":42,"inodesUsed":4},
  "process_stats":{"process_count":3},"swap":{"time":"2026-11-20T11:00:00Z","swapUsageBytes":1}}],
 "node":{"nodeName":"n","startTime":"2026-11-01T00:00:00Z",
  "systemContainers":[{"name":"runtime","cpu":{"usageCoreNanoSeconds":1}},{"name":"misc"},{"name":"kubelet"}],
  "fs":{"time":"2026-11-20T11:00:00Z","usedBytes":5},
  "runtime":{"imageFs":{"usedBytes":6},"containerFs":{"usedBytes":7}},
  "rlimit":{"time":"2026-11-20T11:00:00Z","maxpid":100,"curproc":10},"newThing":{"deep":[1,{"x":null}]}}}`

func TestSummaryMapsEveryField(t *testing.T) {
	b := decode(t, "n", allFields)
	golden := filepath.Join("testdata", "every-field.golden")
	got := dump(&b.Table)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if b.Dropped != 1 { // the metric of unknown type
		t.Errorf("dropped %d, want 1", b.Dropped)
	}
}

// pod wraps the fields of one container into an answer.
func pod(fields string) string {
	return `{"node":{"nodeName":"n"},"pods":[{"podRef":{"name":"p","namespace":"ns"},"containers":[{"name":"c",` + fields + `}]}]}`
}

func TestSummaryLeavesOutSingleValues(t *testing.T) {
	for _, c := range []struct{ value, why string }{
		{"-1", "negative"}, {"9223372036854775808", "beyond 2^63-1"}, {"18446744073709551615", "beyond 2^63-1"},
		{`"12"`, "text"}, {"1.5", "a fraction"}, {"true", "a boolean"}, {"[1]", "an array"}, {`{"a":1}`, "an object"}, {"1e3", "an exponent"},
	} {
		b := decode(t, "n", pod(`"memory":{"usageBytes":`+c.value+`,"rssBytes":7}`))
		if v, ok := b.Values.Get(2, proto.MemoryUsage.Field()); ok {
			t.Errorf("%s (%s): kept as %d", c.value, c.why, v)
		}
		if v, _ := b.Values.Get(2, proto.MemoryRSS.Field()); v != 7 {
			t.Errorf("%s: the value beside it is %d, want 7", c.value, v)
		}
		if b.Dropped != 1 {
			t.Errorf("%s: dropped %d, want 1", c.value, b.Dropped)
		}
	}
	// the largest that fits
	b := decode(t, "n", pod(`"memory":{"usageBytes":9223372036854775807}`))
	if v, _ := b.Values.Get(2, proto.MemoryUsage.Field()); v != 1<<63-1 || b.Dropped != 0 {
		t.Errorf("largest value: %d, dropped %d", v, b.Dropped)
	}
	// null is absent, and nothing to count
	b = decode(t, "n", pod(`"memory":{"usageBytes":null},"cpu":null,"rootfs":null`))
	if b.Dropped != 0 || len(b.Devices) != 0 {
		t.Errorf("null: dropped %d, %d devices", b.Dropped, len(b.Devices))
	}
	// the times of what a kubelet has not measured yet
	for _, at := range []string{`"1970-01-01T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, `null`} {
		b := decode(t, "n", pod(`"cpu":{"time":`+at+`,"usageCoreNanoSeconds":5}`))
		if v, ok := b.Values.Get(2, proto.GroupCPU.Time()); ok || b.Dropped != 0 {
			t.Errorf("time %s: %d (%t), dropped %d; want absent and nothing to count", at, v, ok, b.Dropped)
		}
	}
	// times that are none, or before 1970
	for _, at := range []string{`"yesterday"`, `"1066-10-14T09:00:00Z"`, `12`, `"9999-12-31T23:59:59Z"`} {
		b := decode(t, "n", pod(`"cpu":{"time":`+at+`,"usageCoreNanoSeconds":5}`))
		if v, ok := b.Values.Get(2, proto.GroupCPU.Time()); ok || b.Dropped != 1 {
			t.Errorf("time %s: kept as %d, dropped %d", at, v, b.Dropped)
		}
	}
	b = decode(t, "n", pod(`"cpu":{"time":"0001-01-01T00:00:00Z"}`))
	if _, ok := b.Values.Get(2, proto.GroupCPU.Time()); ok || b.Dropped != 0 {
		t.Error("the zero time is not absent")
	}
}

func TestSummaryNeedsBothPartsOfEphemeralStorage(t *testing.T) {
	check := func(fields string, want int64, has bool) {
		t.Helper()
		b := decode(t, "n", pod(fields))
		if v, ok := b.Values.Get(2, proto.EphemeralUsage.Field()); v != want || ok != has {
			t.Errorf("%s: %d %t, want %d %t", fields, v, ok, want, has)
		}
	}
	check(`"rootfs":{"usedBytes":3},"logs":{"usedBytes":4}`, 7, true)
	check(`"rootfs":{"usedBytes":3},"logs":{}`, 0, false)
	check(`"rootfs":{"usedBytes":3}`, 0, false)
	check(`"rootfs":{"usedBytes":9223372036854775807},"logs":{"usedBytes":1}`, 0, false)
}

func TestSummaryKeepsNewerOfTwo(t *testing.T) {
	c := func(start, usage string) string {
		return `{"name":"c","startTime":"2026-11-20T1` + start + `:00:00Z","cpu":{"usageCoreNanoSeconds":` + usage + `},"rootfs":{"usedBytes":` + usage + `},"userDefinedMetrics":[{"name":"m","type":"gauge","value":` + usage + `}]}`
	}
	p := func(start, containers string) string {
		return `{"podRef":{"name":"p","namespace":"ns"},"startTime":"2026-11-20T0` + start + `:00:00Z","containers":[` + containers + `]}`
	}
	check := func(what, pods string, want int64) {
		t.Helper()
		b := decode(t, "n", `{"node":{"nodeName":"n","fs":{"usedBytes":1}},"pods":[`+pods+`,{"podRef":{"name":"q","namespace":"ns"},"containers":[{"name":"c","cpu":{"usageCoreNanoSeconds":99}}]}]}`)
		if len(b.Entities) != 5 || len(b.Devices) != 2 || len(b.Extras) != 1 {
			t.Fatalf("%s: %d entities, %d devices, %d extras:\n%s", what, len(b.Entities), len(b.Devices), len(b.Extras), dump(&b.Table))
		}
		if v, _ := b.Values.Get(2, proto.CPUUsage.Field()); v != want || b.Entities[2].Parent != 1 {
			t.Errorf("%s: usage %d, want %d", what, v, want)
		}
		if v, _ := b.DeviceValues.Get(1, proto.FilesystemUsage.Field()); v != want || b.Devices[1].Entity != 2 {
			t.Errorf("%s: device %d of row %d, want %d of row 2", what, v, b.Devices[1].Entity, want)
		}
		if b.Extras[0].Entity != 2 || b.Extras[0].Value.Int64() != want {
			t.Errorf("%s: extra %v", what, b.Extras[0])
		}
		if v, _ := b.Values.Get(4, proto.CPUUsage.Field()); v != 99 || b.Entities[4].Parent != 3 {
			t.Errorf("%s: the other pod has usage %d, parent %d", what, v, b.Entities[4].Parent)
		}
		if b.Dropped != 1 {
			t.Errorf("%s: dropped %d", what, b.Dropped)
		}
	}
	check("second container is newer", p("1", c("0", "1")+","+c("1", "2")), 2)
	check("first container is newer", p("1", c("1", "1")+","+c("0", "2")), 1)
	check("containers of one age", p("1", c("1", "1")+","+c("1", "2")), 2)
	check("second pod is newer", p("1", c("1", "1"))+","+p("2", c("0", "2")), 2)
	check("first pod is newer", p("2", c("1", "1"))+","+p("1", c("2", "2")), 1)
}

func TestSummaryDistrustsZerosOfNewPod(t *testing.T) {
	b := decode(t, "n", `{"node":{"nodeName":"n"},"pods":[{"podRef":{"name":"p","namespace":"ns"},"containers":[{"name":"c","cpu":{"usageCoreNanoSeconds":5}}],
		"cpu":{"time":"2026-11-20T11:00:00Z","usageCoreNanoSeconds":0},"memory":{"time":"2026-11-20T11:00:00Z","usageBytes":0,"workingSetBytes":0}}]}`)
	if b.Entities[1].Flags&proto.FlagCgroup != 0 {
		t.Error("zeros of a pod's cgroup count as measured")
	}
	for _, f := range []proto.Field{proto.CPUUsage.Field(), proto.GroupCPU.Time(), proto.MemoryUsage.Field(), proto.MemoryWorkingSet.Field(), proto.GroupMemory.Time()} {
		if _, ok := b.Values.Get(1, f); ok {
			t.Errorf("field %d is kept", f)
		}
	}
}

func TestSummaryRefusesWhatIsNoAnswer(t *testing.T) {
	whole := string(fixture(t, "summary-0.json"))
	check := func(what, answer string, reason Reason, words ...string) {
		t.Helper()
		var d Decoder
		err := d.Summary([]byte(answer), &proto.Batch{Node: "node-0"})
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason {
			t.Errorf("%s: %v, want reason %s", what, err, reason)
			return
		}
		for _, w := range append(words, `"node-0"`, "kubernetes.summary_api") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not name %q", what, err, w)
			}
		}
	}
	check("nothing", "", HalfAnswer)
	check("half", whole[:len(whole)/2], HalfAnswer, "pods[")
	check("one byte short", strings.TrimSpace(whole)[:len(strings.TrimSpace(whole))-1], HalfAnswer)
	check("html", "<html>", BadAnswer)
	check("an array", "[]", BadAnswer)
	check("no node", `{"pods":[]}`, BadAnswer, "nodeName")
	check("node is text", `{"node":"node-0"}`, BadAnswer, "nodeName")
	check("broken inside", `{"node":{"nodeName":"node-0"},"pods":[{"containers":[{"memory":{"usageBytes":1x}}]}]}`, BadAnswer, "pods[0].containers[0].memory")
	check("something behind", `{"node":{"nodeName":"node-0"}}{}`, BadAnswer)
	check("another node", strings.ReplaceAll(whole, `"node-0"`, `"node-1"`), OtherNode, `"node-1"`)
	check("too deep", `{"node":{"nodeName":"node-0","x":`+strings.Repeat("[", 1<<20), BadAnswer)
}

func TestSummaryBoundsRows(t *testing.T) {
	var doc bytes.Buffer
	doc.WriteString(`{"node":{"nodeName":"n"},"pods":[`)
	for i := range maxRows + 10 {
		if i > 0 {
			doc.WriteByte(',')
		}
		fmt.Fprintf(&doc, `{"podRef":{"name":"p%d","namespace":"ns"}}`, i)
	}
	doc.WriteString(`]}`)
	b := decode(t, "n", doc.String())
	if len(b.Entities) != maxRows || b.Dropped != 11 {
		t.Errorf("%d rows, dropped %d", len(b.Entities), b.Dropped)
	}
	b.Cluster = "c"
	if _, err := proto.NewEncoder().Batch(b); err != nil {
		t.Errorf("the largest batch does not encode: %v", err)
	}
}

func FuzzSummary(f *testing.F) {
	f.Add(fixture(f, "summary-0.json"))
	f.Add([]byte(allFields))
	f.Add([]byte(pod(`"memory":{"usageBytes":-1}`)))
	var d Decoder
	enc, dec := proto.NewEncoder(), proto.NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		b, again := &proto.Batch{Cluster: "c"}, &proto.Batch{}
		if d.Summary(data, b) != nil {
			return
		}
		var fresh Decoder
		other := &proto.Batch{Cluster: "c"}
		if err := fresh.Summary(data, other); err != nil || dump(&b.Table) != dump(&other.Table) {
			t.Fatalf("a used decoder differs from a fresh one (%v)", err)
		}
		msg, err := enc.Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Batch(msg, again); err != nil {
			t.Fatal(err)
		}
		if got, want := dump(&again.Table), dump(&b.Table); got != want {
			t.Fatalf("after the codec\n%s\nbefore\n%s", got, want)
		}
	})
}

// mustFixture reads a file of testdata, packed or not.
func mustFixture(name string) []byte {
	path := filepath.Join("testdata", name)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if data, err = os.ReadFile(path + ".gz"); err == nil {
			var z *gzip.Reader
			if z, err = gzip.NewReader(bytes.NewReader(data)); err == nil {
				data, err = io.ReadAll(z)
			}
		}
	}
	if err != nil {
		panic(err)
	}
	return data
}

// Kubelets walk Go maps: what they tell has another order at every tick, and batches have one.
func TestAnyOrderMakesOneBatch(t *testing.T) {
	for name, answer := range map[string][]byte{"recorded": fixture(t, "summary-0.json"), "every field": []byte(allFields)} {
		t.Run(name, func(t *testing.T) {
			var d Decoder
			b := &proto.Batch{}
			if err := d.Summary(answer, b); err != nil {
				t.Fatal(err)
			}
			want := dump(&b.Table)
			random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // no secret
			for range 20 {
				var v any
				if err := json.Unmarshal(answer, &v); err != nil {
					t.Fatal(err)
				}
				shuffle(random, v)
				mixed, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Summary(mixed, b); err != nil {
					t.Fatal(err)
				}
				if got := dump(&b.Table); got != want {
					t.Fatalf("from\n%s\ncomes\n%s\nwant\n%s", mixed, got, want)
				}
			}
		})
	}
}

// shuffle changes the order of pods, containers and volumes in an answer.
func shuffle(random *rand.Rand, v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			if list, ok := child.([]any); ok && slices.Contains([]string{"pods", "containers", "volume", "interfaces", "systemContainers"}, key) {
				random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			}
			shuffle(random, child)
		}
	case []any:
		for _, child := range v {
			shuffle(random, child)
		}
	}
}
