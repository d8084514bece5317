package aggregator

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

const testCluster = "test"

var day = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

func testTelemetry(t testing.TB) *telemetry {
	t.Helper()
	tel, err := newTelemetry(prometheus.NewRegistry(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

// samples is a SAMPLES stream as a test writes it.
type samples struct {
	enc  *proto.Encoder
	list []bus.Delivery
}

func newSamples() *samples { return &samples{enc: proto.NewEncoder()} }

func (s *samples) append(t testing.TB, at time.Time, subject string, data []byte, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	s.list = append(s.list, bus.Delivery{Stream: bus.SamplesStream(testCluster), Subject: subject, Seq: uint64(len(s.list) + 1), Time: at, Data: data})
}

func (s *samples) batch(t testing.TB, at time.Time, b *proto.Batch) {
	t.Helper()
	data, err := s.enc.Batch(b)
	s.append(t, at, bus.SamplesSubject(testCluster, b.Node), data, err)
}

func (s *samples) inventory(t testing.TB, at time.Time, v *proto.Inventory) {
	t.Helper()
	v.Cluster = testCluster
	data, err := s.enc.Inventory(v)
	part := map[proto.InventorySubject]string{proto.InventoryNodes: bus.InventoryNodes, proto.InventoryNamespaces: bus.InventoryNamespaces, proto.InventoryOwners: bus.InventoryOwners}[v.Subject]
	s.append(t, at, bus.InventorySubject(testCluster, part), data, err)
}

func (s *samples) clock(t testing.TB, at time.Time) {
	t.Helper()
	data, err := s.enc.Clock(testCluster)
	s.append(t, at, bus.ClockSubject(testCluster), data, err)
}

// pastOf is what cluster.resume would read from these outputs.
func pastOf(t testing.TB, outputs []output) past {
	t.Helper()
	p := past{nodes: map[string]out{}, namespaces: map[string]out{}}
	dec, r := proto.NewDecoder(), &proto.Rollup{}
	for _, o := range outputs {
		if err := dec.RollupHeader(o.data, r); err != nil {
			t.Fatal(err)
		}
		switch r.Scope {
		case proto.ScopeNode:
			p.nodes[r.Name] = out{r.Seq, r.Tick}
		case proto.ScopeNamespace:
			p.namespaces[r.Name] = out{r.Seq, r.Tick}
		case proto.ScopeTotals:
			p.tick, p.resolution, p.seq = r.Tick, int64(r.Resolution), r.Seq
			p.resume, p.inventory, p.stream, p.jumpEnd = r.Totals.ResumeSeq, r.Totals.InventorySeq, r.Totals.StreamTime, r.Totals.JumpEnd
		}
	}
	return p
}

// play steps an owner through the messages, and replaces it by a new one after these numbers of outputs
// and after these sequences; the new one begins with what is out. before is out already.
func play(t testing.TB, list []bus.Delivery, afterOutputs, afterSeqs map[int]bool, before ...output) []output {
	t.Helper()
	outputs := before
	tel := testTelemetry(t)
	crash := fmt.Errorf("crash")
	for from := 0; ; {
		m := newMachine(testCluster, tel, slog.New(slog.DiscardHandler))
		p := pastOf(t, outputs)
		m.resume(p)
		at := 0
		if p.tick != 0 {
			for _, d := range list {
				if d.Seq >= max(p.inventory, 1) && d.Seq < p.resume && strings.HasPrefix(d.Subject, "hs.inventory.") {
					if err := m.inventory(d); err != nil {
						t.Fatal(err)
					}
				}
			}
			at = int(p.resume) - 1
		}
		crashed := false
		for ; at < len(list); at++ {
			err := m.step(list[at], func(o output) error {
				outputs = append(outputs, o)
				if afterOutputs[len(outputs)] {
					delete(afterOutputs, len(outputs))
					return crash
				}
				return nil
			})
			if err == crash || at >= from && afterSeqs[at+1] {
				from, crashed = max(from, at+1), true
				delete(afterSeqs, at+1)
				break
			}
			if unfit := (unusable{}); err != nil && !asUnusable(err, &unfit) {
				t.Fatal(err)
			}
		}
		if !crashed {
			return outputs
		}
	}
}

func asUnusable(err error, to *unusable) bool {
	u, ok := err.(unusable)
	if ok {
		*to = u
	}
	return ok
}

func every(n int) map[int]bool {
	all := map[int]bool{}
	for i := range n {
		all[i+1] = true
	}
	return all
}

// sameOutputs fails unless both lists hold the same messages once. What different lanes hold may be in
// any order; here one list is one order.
func sameOutputs(t testing.TB, what string, want, got []output) {
	t.Helper()
	index := map[string][]byte{}
	for _, o := range want {
		if index[o.id] != nil {
			t.Fatalf("%s: %s is out twice in the reference", what, o.id)
		}
		index[o.id] = o.data
	}
	seen := map[string]bool{}
	for _, o := range got {
		switch {
		case seen[o.id]:
			t.Fatalf("%s: %s is out twice", what, o.id)
		case index[o.id] == nil:
			t.Fatalf("%s: %s is out and was not in one go", what, o.id)
		case !bytes.Equal(index[o.id], o.data):
			t.Fatalf("%s: %s has other bytes:\n%s\nin one go:\n%s", what, o.id, dump(t, o.data), dump(t, index[o.id]))
		}
		seen[o.id] = true
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d rollups, in one go %d", what, len(got), len(want))
	}
}

func dump(t testing.TB, data []byte) string {
	t.Helper()
	var r proto.Rollup
	if err := proto.NewDecoder().Rollup(data, &r); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "scope %d name %q tick %s seq %d totals %+v\n", r.Scope, r.Name, r.Tick, r.Seq, r.Totals)
	for row := range r.Entities {
		b.Write(proto.AppendKey(nil, &r.Table, row))
		for _, c := range r.Values.All() {
			if v, ok := r.Values.Get(row, c.Field); ok {
				fmt.Fprintf(&b, " %d=%d", c.Field, v)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// scenario is a file of testdata: messages of SAMPLES and what must follow from them.
//
//	resolution 60s                                  of what comes after; grace goes with it
//	at 10:00:00 nodes n1 n2                         an inventory of nodes is appended at this time
//	at 10:00:00 namespaces shop=<uid>
//	at 10:00:00 owners shop ReplicaSet/a=Deployment/b
//	at 10:00:01 batch n1 10:00                      a batch of node n1 for tick 10:00; its rows follow
//	  node @10:00:00 cpu=4s memory=1000
//	  pod shop/cart uid=u1 owner=ReplicaSet/a
//	  container app @09:59:55 start=08:00:00 cpu=2s memory=500 request=100
//	at 10:00:13 clock                               a clock mark
//	at 10:00:20 garbage n1                          a message nobody can read
//	expect n1 10:00 shop/cart/app cpu/usage_rate 50 in the rollup of the node; none: absent; stale: "50 stale"
//	expect namespace shop 10:00 memory/usage 500    in the namespace's rollup; with a workload: shop/Deployment/b
//	expect namespace shop/Deployment/b 10:00 absent  the namespace's rollup has no such workload
//	expect cluster 10:00 pod_count 1
//	expect totals 10:00 reported=1 missing=n2       every field that is named
//	expect no totals 10:01, expect no rollup n1 10:00
//
// A device of a row: interface eth0 @10:00:00 rx=5000 tx=1, volume data @09:59:00 used=77.
type scenario struct {
	t          *testing.T
	samples    *samples
	resolution time.Duration
	batch      *proto.Batch
	batchAt    time.Time
	pod, row   int
	revision   uint64
	expects    []string
}

func clockTime(t *testing.T, s string) time.Time {
	t.Helper()
	for _, layout := range []string{"15:04:05.999", "15:04"} {
		if at, err := time.Parse(layout, s); err == nil {
			return day.Add(time.Duration(at.Hour())*time.Hour + time.Duration(at.Minute())*time.Minute + time.Duration(at.Second())*time.Second + time.Duration(at.Nanosecond()))
		}
	}
	t.Fatalf("time %q", s)
	return time.Time{}
}

func (s *scenario) flush() {
	if s.batch != nil {
		s.samples.batch(s.t, s.batchAt, s.batch)
		s.batch = nil
	}
}

func (s *scenario) line(line string) {
	s.t.Helper()
	words := strings.Fields(line)
	switch {
	case words[0] == "resolution":
		s.flush()
		d, err := time.ParseDuration(words[1])
		if err != nil {
			s.t.Fatal(err)
		}
		s.resolution = d
	case words[0] == "at":
		s.flush()
		s.message(clockTime(s.t, words[1]), words[2:])
	case words[0] == "expect":
		s.expects = append(s.expects, line)
	default:
		s.entity(words)
	}
}

func (s *scenario) message(at time.Time, words []string) {
	s.t.Helper()
	v := &proto.Inventory{Parts: 1, Resolution: s.resolution, Grace: proto.Grace(s.resolution)}
	switch words[0] {
	case "batch":
		s.batchAt, s.row = at, -1
		s.batch = &proto.Batch{Cluster: testCluster, Node: words[1], Tick: proto.Tick(clockTime(s.t, words[2]).UnixMilli()), Resolution: s.resolution, Source: "kubernetes.summary_api"}
		s.batch.Scraped = at.UnixNano()
		s.batch.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: words[1], Hostname: words[1]})
		return
	case "clock":
		s.samples.clock(s.t, at)
		return
	case "garbage":
		s.samples.append(s.t, at, bus.SamplesSubject(testCluster, words[1]), []byte("garbage"), nil)
		return
	case "nodes":
		v.Subject = proto.InventoryNodes
		for _, n := range words[1:] {
			v.Nodes = append(v.Nodes, proto.InventoryNode{Name: n})
		}
	case "namespaces":
		v.Subject = proto.InventoryNamespaces
		for _, w := range words[1:] {
			name, uid, _ := strings.Cut(w, "=")
			v.Namespaces = append(v.Namespaces, proto.InventoryNamespace{Name: name, UID: uid})
		}
	case "owners":
		v.Subject = proto.InventoryOwners
		for _, w := range words[2:] {
			object, owner, _ := strings.Cut(w, "=")
			v.Owners = append(v.Owners, proto.InventoryOwner{Namespace: words[1], Object: ownerOf(object), Owner: ownerOf(owner)})
		}
	default:
		s.t.Fatalf("message %q", words)
	}
	s.revision++
	v.Revision = s.revision
	s.samples.inventory(s.t, at, v)
}

func ownerOf(s string) proto.Owner {
	kind, name, _ := strings.Cut(s, "/")
	return proto.Owner{Kind: kind, Name: name}
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	if d, err := time.ParseDuration(s); err == nil && !strings.HasSuffix(s, "m") || strings.HasSuffix(s, "ms") {
		return int64(d)
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatalf("number %q", s)
	}
	return v
}

func (s *scenario) entity(words []string) {
	s.t.Helper()
	if s.batch == nil {
		s.t.Fatalf("row %q outside of a batch", words)
	}
	b := s.batch
	values, device := &b.Values, false
	rest := words[2:]
	switch words[0] {
	case "node":
		s.row, rest = 0, words[1:]
	case "pod":
		ns, name, _ := strings.Cut(words[1], "/")
		s.pod = b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: ns, Name: name, Phase: proto.PhaseRunning})
		s.row = s.pod
	case "container":
		s.row = b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(s.pod), Name: words[1], Flags: proto.FlagRunning})
	case "interface", "volume":
		kind := proto.DeviceInterface
		if words[0] == "volume" {
			kind = proto.DeviceFilesystem
		}
		d := b.AddDevice(proto.Device{Entity: int32(s.row), Kind: kind, Name: words[1]})
		values, device = &b.DeviceValues, true
		defer func(row int) { s.row = row }(s.row)
		s.row = d
	default:
		s.t.Fatalf("row %q", words)
	}
	at := int64(0)
	for _, w := range rest {
		if strings.HasPrefix(w, "@") {
			at = clockTime(s.t, w[1:]).UnixNano()
			if device {
				values.Set(s.row, proto.GroupDevice.Time(), at)
			}
			continue
		}
		key, value, _ := strings.Cut(w, "=")
		group := func(g proto.Group, id proto.MetricID) {
			values.Set(s.row, g.Time(), at)
			values.Set(s.row, id.Field(), number(s.t, value))
		}
		switch key {
		case "uid":
			b.Entities[s.row].UID = value
		case "owner":
			b.Entities[s.row].Owner = ownerOf(value)
		case "start":
			values.Set(s.row, proto.FieldStart, clockTime(s.t, value).UnixNano())
		case "cpu":
			group(proto.GroupCPU, proto.CPUUsage)
		case "memory":
			group(proto.GroupMemory, proto.MemoryUsage)
		case "working_set":
			group(proto.GroupMemory, proto.MemoryWorkingSet)
		case "faults":
			group(proto.GroupMemory, proto.MemoryPageFaults)
		case "majors":
			group(proto.GroupMemory, proto.MemoryMajorFaults)
		case "rx":
			if device {
				values.Set(s.row, proto.InterfaceRx.Field(), number(s.t, value))
			} else {
				group(proto.GroupNetwork, proto.NetworkRx)
			}
		case "tx":
			values.Set(s.row, proto.InterfaceTx.Field(), number(s.t, value))
		case "used":
			values.Set(s.row, proto.FilesystemUsage.Field(), number(s.t, value))
		case "request":
			values.Set(s.row, proto.CPURequest.Field(), number(s.t, value))
		case "limit":
			values.Set(s.row, proto.CPULimit.Field(), number(s.t, value))
		case "memory_request":
			values.Set(s.row, proto.MemoryRequest.Field(), number(s.t, value))
		case "memory_limit":
			values.Set(s.row, proto.MemoryLimit.Field(), number(s.t, value))
		case "memory_allocatable":
			values.Set(s.row, proto.MemoryNodeAlloc.Field(), number(s.t, value))
		case "birth":
			values.Set(s.row, proto.FieldBirth, clockTime(s.t, value).UnixNano())
		case "label":
			key, value, _ := strings.Cut(value, "=")
			b.Entities[s.row].Labels = append(b.Entities[s.row].Labels, proto.Label{Key: key, Value: value})
		case "succeeded":
			b.Entities[s.row].Phase = proto.PhaseSucceeded
		case "failed":
			b.Entities[s.row].Phase = proto.PhaseFailed
		case "unknown":
			b.Entities[s.row].Phase, b.Entities[s.row].Flags = proto.PhaseUnknown, b.Entities[s.row].Flags|proto.FlagNotInAPI
		case "ended":
			b.Entities[s.row].Flags = b.Entities[s.row].Flags&^proto.FlagRunning | proto.FlagTerminated
		case "allocatable":
			values.Set(s.row, proto.CPUNodeAllocatable.Field(), number(s.t, value))
		case "init":
			b.Entities[s.row].Flags |= proto.FlagInit
		case "stub":
			b.Entities[s.row].Flags = b.Entities[s.row].Flags&^proto.FlagRunning | proto.FlagStub
		default:
			s.t.Fatalf("value %q", w)
		}
	}
}

// check compares one expectation with the outputs.
func (s *scenario) check(line string, outputs []output) {
	s.t.Helper()
	words := strings.Fields(line)[1:]
	find := func(scope proto.Scope, name, tick string) *proto.Rollup {
		for _, o := range outputs {
			r := &proto.Rollup{}
			if err := proto.NewDecoder().Rollup(o.data, r); err != nil {
				s.t.Fatal(err)
			}
			if r.Scope == scope && r.Name == name && r.Tick == proto.Tick(clockTime(s.t, tick).UnixMilli()) {
				return r
			}
		}
		return nil
	}
	must := func(scope proto.Scope, name, tick string) *proto.Rollup {
		s.t.Helper()
		r := find(scope, name, tick)
		if r == nil {
			s.t.Fatalf("%s: there is no such rollup", line)
		}
		return r
	}
	switch {
	case words[0] == "no" && words[1] == "totals":
		if find(proto.ScopeTotals, "", words[2]) != nil {
			s.t.Errorf("%s: there are totals", line)
		}
	case words[0] == "no" && words[1] == "rollup":
		if find(proto.ScopeNode, words[2], words[3]) != nil {
			s.t.Errorf("%s: there is a rollup", line)
		}
	case words[0] == "totals":
		t := must(proto.ScopeTotals, "", words[1]).Totals
		have := map[string]string{"expected": fmt.Sprint(t.Expected), "reported": fmt.Sprint(t.Reported), "standin": fmt.Sprint(t.StandIn),
			"standins": fmt.Sprint(t.StandIns), "contested": fmt.Sprint(t.Contested),
			"pods_without_rate": fmt.Sprint(t.PodsWithoutRate), "containers_without_rate": fmt.Sprint(t.ContainersWithoutRate), "missing": strings.Join(t.Missing, ","), "gap": fmt.Sprint(t.Gap)}
		for _, w := range words[2:] {
			key, want, _ := strings.Cut(w, "=")
			if got, ok := have[key]; !ok || got != want {
				s.t.Errorf("%s: %s is %q", line, key, got)
			}
		}
	case words[0] == "namespace":
		name, workload, _ := strings.Cut(words[1], "/")
		r := must(proto.ScopeNamespace, name, words[2])
		s.value(line, r, "namespace:"+name+map[bool]string{true: "/workload:" + workload}[workload != ""], words[3:])
	case words[0] == "cluster":
		s.value(line, must(proto.ScopeTotals, "", words[1]), "cluster", words[2:])
	default:
		r := must(proto.ScopeNode, words[0], words[1])
		parts := strings.Split(words[2], "/")
		key := "node:" + words[0]
		if words[2] != "node" {
			key = "namespace:" + parts[0]
			if len(parts) > 1 {
				key += "/pod:" + parts[1]
			}
			if len(parts) > 2 {
				key += "/container:" + parts[2]
			}
		}
		s.value(line, r, key, words[3:])
	}
}

// value compares one metric of one row: name, value or none or exists, and perhaps "stale".
func (s *scenario) value(line string, r *proto.Rollup, key string, words []string) {
	s.t.Helper()
	for row := range r.Entities {
		if string(proto.AppendKey(nil, &r.Table, row)) != key {
			continue
		}
		if words[0] == "absent" {
			s.t.Errorf("%s: there is a row %s", line, key)
			return
		}
		got, stale := "none", false
		for sample := range r.Samples(row) {
			name := sample.Name
			if sample.Device != nil {
				name += "{" + sample.Device.Name + "}"
			}
			if name == words[0] {
				got, stale = sample.Value.String(), sample.StandsIn
			}
		}
		if words[0] == "uid" {
			got = r.Entities[row].UID
		}
		if got != words[1] {
			s.t.Errorf("%s: it is %s", line, got)
		}
		if want := len(words) > 2 && words[2] == "stale"; got != "none" && stale != want {
			s.t.Errorf("%s: stale is %v", line, stale)
		}
		return
	}
	if words[0] != "absent" && words[1] != "none" {
		s.t.Errorf("%s: there is no row %s", line, key)
	}
}

func readScenario(t *testing.T, file string) *scenario {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &scenario{t: t, samples: newSamples(), resolution: time.Minute}
	for in := bufio.NewScanner(f); in.Scan(); {
		line, _, _ := strings.Cut(in.Text(), "#")
		if strings.TrimSpace(line) != "" {
			s.line(strings.TrimSpace(line))
		}
	}
	s.flush()
	return s
}

// Every scenario file holds in one go, and gives the same bytes once where an owner dies after every
// message, and after every single publish.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.scenario")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".scenario"), func(t *testing.T) {
			s := readScenario(t, file)
			want := play(t, s.samples.list, nil, nil)
			for _, line := range s.expects {
				s.check(line, want)
			}
			sameOutputs(t, "one owner died after every message", want, play(t, s.samples.list, nil, every(len(s.samples.list))))
			sameOutputs(t, "one owner died after every publish", want, play(t, s.samples.list, every(len(want)), nil))
			for seq := range s.samples.list {
				sameOutputs(t, fmt.Sprintf("an owner died after message %d", seq+1), want, play(t, s.samples.list, nil, map[int]bool{seq + 1: true}))
			}
		})
	}
}

// Ids tell rollups apart.
func TestEveryRollupHasItsOwnID(t *testing.T) {
	s := readScenario(t, "testdata/workloads.scenario")
	var ids []string
	for _, o := range play(t, s.samples.list, nil, nil) {
		ids = append(ids, o.id)
	}
	n := len(ids)
	slices.Sort(ids)
	if len(slices.Compact(ids)) != n {
		t.Fatalf("ids are not unique: %q", ids)
	}
}
