package simcluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

var testTime = time.Date(2026, 11, 20, 12, 0, 0, 123456789, time.UTC)

// grown is a cluster at a fixed time that nobody serves.
func grown(t testing.TB, change func(*Config)) (*Cluster, *time.Time) {
	t.Helper()
	now := testTime
	cfg := DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 4, 30
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg, Deps{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return c, &now
}

func decoded(t testing.TB, b []byte) *stats.Summary {
	t.Helper()
	s := &stats.Summary{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		t.Fatalf("decode summary: %v\n%s", err, b)
	}
	return s
}

// TestSummaryIsLaidOutAsTheKubeletsIs decodes what the renderer wrote and encodes it again as the kubelet does: the bytes
// must be the same, so order, indentation, floats and times are.
func TestSummaryIsLaidOutAsTheKubeletsIs(t *testing.T) {
	c, now := grown(t, nil)
	for _, short := range []bool{false, true} {
		for _, n := range c.Nodes() {
			got := n.appendSummary(nil, *now, short)
			want, err := json.MarshalIndent(decoded(t, got), "", " ")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s, short %t: bytes differ: %s", n.Name(), short, firstDifference(got, want))
			}
		}
	}
}

func firstDifference(a, b []byte) string {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	cut := func(s []byte) []byte { return s[max(0, i-80):min(len(s), i+80)] }
	return fmt.Sprintf("at byte %d\n--- got\n%s\n--- want\n%s", i, cut(a), cut(b))
}

// keys are the paths of all keys in a JSON document; the elements of an array share a path.
func keys(t testing.TB, b []byte) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				seen[path+"."+k] = true
				walk(path+"."+k, e)
			}
		case []any:
			for _, e := range v {
				walk(path+"[]", e)
			}
		}
	}
	walk("", v)
	var out []string
	for k := range seen {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func TestEveryKeyOfARealSummaryIsInASimulatedOne(t *testing.T) {
	c, now := grown(t, nil)
	for file, short := range map[string]bool{"0/stats-summary.json": false, "0/stats-summary-only-cpu-and-memory.json": true} {
		b, err := readRecorded(file)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]bool{}
		for _, n := range c.Nodes() {
			for _, k := range keys(t, n.appendSummary(nil, *now, short)) {
				have[k] = true
			}
		}
		real := map[string]bool{}
		for _, k := range keys(t, b) {
			real[k] = true
			if !have[k] {
				t.Errorf("%s has %s, no simulated node has", file, k)
			}
		}
		for k := range have {
			if !real[k] && !strings.Contains(k, "pvcRef") { // no pod of the recorded node has a claim
				t.Errorf("simulated nodes have %s, %s has not", k, file)
			}
		}
	}
}

func TestSameSeedGivesSameBytes(t *testing.T) {
	render := func(seed uint64) []byte {
		c, now := grown(t, func(c *Config) { c.Seed = seed })
		var b []byte
		for _, n := range c.Nodes() {
			b = n.appendSummary(b, *now, false)
		}
		for _, p := range c.Pods("") {
			b = append(b, p.Namespace+p.Name+p.Node...)
		}
		return b
	}
	if a, b := render(7), render(7); !bytes.Equal(a, b) {
		t.Errorf("two clusters of one seed differ: %s", firstDifference(a, b))
	}
	if bytes.Equal(render(7), render(8)) {
		t.Error("clusters of two seeds are the same")
	}
}

func TestChurnIsTheSameFromTheSameSeed(t *testing.T) {
	after := func() []PodName {
		c, now := grown(t, nil)
		for range 20 {
			*now = now.Add(time.Second)
			if err := c.Churn(5); err != nil {
				t.Fatal(err)
			}
		}
		return c.Pods("")
	}
	a, b := after(), after()
	if !slices.Equal(a, b) {
		t.Error("pods after the same churn differ")
	}
	c, _ := grown(t, nil)
	if slices.Equal(a, c.Pods("")) {
		t.Error("churn changed no pod")
	}
}

func TestSamplesAreTenToTwentySecondsApart(t *testing.T) {
	for id := range uint64(50) {
		id = splitmix(id)
		now := testTime.UnixNano()
		last, before := sampleAt(id, now)
		for range 500 {
			if gap := last - before; gap < 10e9 || gap > 20e9 {
				t.Fatalf("id %x: samples %s apart", id, time.Duration(gap))
			}
			if last > now || now-last > 20e9 {
				t.Fatalf("id %x: newest sample is %s old", id, time.Duration(now-last))
			}
			now += 1e9
			l, b := sampleAt(id, now)
			if l != last && b != last {
				t.Fatalf("id %x: a sample was skipped", id)
			}
			last, before = l, b
		}
	}
}

// counterWatch checks every counter of successive summaries of one node.
type counterWatch struct {
	last  map[string]uint64
	at    map[string]int64
	start map[string]time.Time
	falls []string
	moved int
	same  int
}

func (w *counterWatch) see(s *stats.Summary) {
	if w.last == nil {
		w.last, w.at, w.start = map[string]uint64{}, map[string]int64{}, map[string]time.Time{}
	}
	starts := map[string]time.Time{"|node": s.Node.StartTime.Time}
	for _, c := range s.Node.SystemContainers {
		starts["|sys/"+c.Name] = c.StartTime.Time
	}
	for _, p := range s.Pods {
		starts[p.PodRef.UID+"|pod"] = p.StartTime.Time
		for _, c := range p.Containers {
			starts[p.PodRef.UID+"|c/"+c.Name] = c.StartTime.Time
		}
	}
	eachCounter(s, func(key, uid string, t metav1.Time, v *uint64) {
		for k, st := range starts {
			if key == k || strings.HasPrefix(key, k+"/") {
				if !w.start[key].IsZero() && !st.Equal(w.start[key]) {
					delete(w.last, key)
				}
				w.start[key] = st
			}
		}
		old, ok := w.last[key]
		at := t.UnixNano()
		switch {
		case !ok:
		case *v < old:
			w.falls = append(w.falls, fmt.Sprintf("%s fell from %d to %d", key, old, *v))
		case at < w.at[key]:
			w.falls = append(w.falls, fmt.Sprintf("%s: sample time went back", key))
		case at > w.at[key] && *v > old:
			w.moved++
		case at == w.at[key]:
			w.same++
		}
		w.last[key], w.at[key] = *v, at
	})
}

func TestCountersNeverFallThroughChurn(t *testing.T) {
	c, now := grown(t, func(c *Config) { c.Nodes, c.PodsPerNode = 3, 6 })
	watches := map[string]*counterWatch{}
	for range 100 {
		*now = now.Add(7 * time.Second)
		if err := c.Churn(2); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes() {
			w := watches[n.Name()]
			if w == nil {
				w = &counterWatch{}
				watches[n.Name()] = w
			}
			w.see(decoded(t, n.appendSummary(nil, *now, false)))
		}
	}
	for name, w := range watches {
		if len(w.falls) > 0 {
			t.Errorf("%s: %d falls, the first: %s", name, len(w.falls), w.falls[0])
		}
		if w.moved == 0 || w.same == 0 {
			t.Errorf("%s: %d counters moved, %d samples came twice; want both", name, w.moved, w.same)
		}
	}
}

func TestRestartBeginsAnewAndThePodGoesOn(t *testing.T) {
	c, now := grown(t, nil)
	p := c.Pods("node-2")[5]
	find := func() (stats.PodStats, stats.ContainerStats) {
		n, err := c.node("node-2")
		if err != nil {
			t.Fatal(err)
		}
		for _, ps := range decoded(t, n.appendSummary(nil, *now, false)).Pods {
			if ps.PodRef.Name == p.Name && ps.PodRef.Namespace == p.Namespace {
				for _, cs := range ps.Containers {
					if cs.Name == "app" {
						return ps, cs
					}
				}
			}
		}
		t.Fatalf("pod %v with container app is not in the summary", p)
		panic("unreachable")
	}
	podBefore, before := find()
	if err := c.RestartContainer(p.Namespace, p.Name, "app", "OOMKilled"); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(45 * time.Second)
	podAfter, after := find()
	if !after.StartTime.After(before.StartTime.Time) {
		t.Errorf("start time %s, was %s: want a later one", after.StartTime, before.StartTime)
	}
	if *after.CPU.UsageCoreNanoSeconds >= *before.CPU.UsageCoreNanoSeconds {
		t.Errorf("counter of the restarted container is %d, was %d: want less", *after.CPU.UsageCoreNanoSeconds, *before.CPU.UsageCoreNanoSeconds)
	}
	if *podAfter.CPU.UsageCoreNanoSeconds <= *podBefore.CPU.UsageCoreNanoSeconds {
		t.Errorf("counter of the pod is %d, was %d: want more", *podAfter.CPU.UsageCoreNanoSeconds, *podBefore.CPU.UsageCoreNanoSeconds)
	}
}

func TestNewPodReportsZerosOfItsOwnFirst(t *testing.T) {
	c, now := grown(t, nil)
	p := c.Pods("node-1")[10]
	q, err := c.ReplacePod(p.Namespace, p.Name)
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.node(q.Node)
	if err != nil {
		t.Fatal(err)
	}
	zero := false
	for range 40 {
		*now = now.Add(500 * time.Millisecond)
		for _, ps := range decoded(t, n.appendSummary(nil, *now, false)).Pods {
			if ps.PodRef.Name == q.Name && ps.PodRef.Namespace == q.Namespace && len(ps.Containers) > 0 && *ps.CPU.UsageCoreNanoSeconds == 0 && *ps.Containers[0].CPU.UsageCoreNanoSeconds > 0 {
				zero = true
			}
		}
	}
	if !zero {
		t.Error("the pod never had a cpu of 0 while its container had some")
	}
}

func TestRecordedAnswersAreThoseOfTheKubelet(t *testing.T) {
	now := recordedAt
	n := &Node{name: "node-0"}
	r, err := newRecording(now, n)
	if err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		for _, short := range []bool{false, true} {
			file := fmt.Sprintf("%d/stats-summary.json", round)
			if short {
				file = fmt.Sprintf("%d/stats-summary-only-cpu-and-memory.json", round)
			}
			want, err := readRecorded(file)
			if err != nil {
				t.Fatal(err)
			}
			got := r.appendSummary(nil, now.Add(time.Duration(round)*roundLength), short)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: replayed bytes differ %s", file, firstDifference(got, want))
			}
		}
	}
}

func TestRecordedCountersGoOnFromLoopToLoop(t *testing.T) {
	r, err := newRecording(testTime, &Node{name: "node-0"})
	if err != nil {
		t.Fatal(err)
	}
	w := &counterWatch{}
	uids := map[string]bool{}
	for step := range int64(4 * rounds) {
		s, err := r.moved(step, false)
		if err != nil {
			t.Fatal(err)
		}
		w.see(s)
		age := r.base.Add(time.Duration(step) * roundLength).Sub(s.Node.CPU.Time.Time)
		if age < -time.Second || age > 25*time.Second {
			t.Errorf("step %d: node sample is %s old", step, age)
		}
		for _, p := range s.Pods {
			uids[p.PodRef.UID] = true
		}
		for _, p := range s.Pods {
			for _, c := range p.Containers {
				if c.StartTime.After(c.CPU.Time.Time) {
					t.Errorf("step %d: %s/%s starts after its sample", step, p.PodRef.Name, c.Name)
				}
			}
		}
	}
	if len(w.falls) > 0 {
		t.Errorf("%d counters fell, the first: %s", len(w.falls), w.falls[0])
	}
	if want := 5 + 2*4; len(uids) != want {
		t.Errorf("%d pods over four loops, want %d: those that stay and two new ones a loop", len(uids), want)
	}
}

func TestPrometheusAnswersAgreeWithTheSummary(t *testing.T) {
	c, now := grown(t, func(c *Config) { c.Recorded = true })
	for _, n := range c.Nodes()[:2] {
		s := decoded(t, n.appendSummary(nil, *now, false))
		res := string(n.appendResourceMetrics(nil, *now))
		cad := string(n.appendCadvisorMetrics(nil, *now))
		for _, p := range s.Pods {
			for _, ct := range p.Containers {
				line := fmt.Sprintf("container_memory_working_set_bytes{container=%q,namespace=%q,pod=%q} ", ct.Name, p.PodRef.Namespace, p.PodRef.Name)
				i := strings.Index(res, line)
				if i < 0 {
					t.Fatalf("%s: no line %s in\n%s", n.Name(), line, res)
				}
				var v float64
				if _, err := fmt.Sscan(res[i+len(line):], &v); err != nil || v != float64(*ct.Memory.WorkingSetBytes) {
					t.Errorf("%s%g (%v), the summary says %d", line, v, err, *ct.Memory.WorkingSetBytes)
				}
			}
		}
		if !strings.Contains(cad, `container_cpu_usage_seconds_total{container="",cpu="total",id="/",`) || !strings.Contains(cad, "container_network_receive_bytes_total{") {
			t.Errorf("%s: cadvisor metrics lack the node's cpu or network:\n%.2000s", n.Name(), cad)
		}
	}
}

func TestLoadsAreWithinTheirLimits(t *testing.T) {
	c, now := grown(t, func(c *Config) { c.Nodes, c.PodsPerNode = 3, 6 })
	var low, high, sum float64
	count := 0
	for range 100 {
		*now = now.Add(20 * time.Second)
		for _, n := range c.Nodes() {
			s := decoded(t, n.appendSummary(nil, *now, false))
			if *s.Node.Memory.WorkingSetBytes+*s.Node.Memory.AvailableBytes != uint64(n.memory) {
				t.Fatalf("%s: working set and available do not add up to the memory", n.Name())
			}
			for _, p := range s.Pods {
				for _, ct := range p.Containers {
					if *ct.Memory.WorkingSetBytes%4096 != 0 || *ct.Memory.RSSBytes > *ct.Memory.WorkingSetBytes || *ct.Memory.UsageBytes < *ct.Memory.WorkingSetBytes {
						t.Fatalf("%s/%s: memory %+v", p.PodRef.Name, ct.Name, ct.Memory)
					}
				}
			}
			v := float64(*s.Node.CPU.UsageNanoCores)
			if count == 0 || v < low {
				low = v
			}
			high = max(high, v)
			sum += v
			count++
		}
	}
	if low <= 0 || high > 16e9 || high == low {
		t.Errorf("node cpu between %g and %g nanocores, mean %g: want it to move, within the node", low, high, sum/float64(count))
	}
}

func BenchmarkSummary(b *testing.B) {
	for _, shape := range []struct{ pods, containers int }{{30, 2}, {110, 2}} {
		b.Run(fmt.Sprintf("pods=%d/containers=%d", shape.pods, shape.containers), func(b *testing.B) {
			c, now := grown(b, func(c *Config) { c.Nodes, c.PodsPerNode, c.ContainersPerPod = 2, shape.pods, shape.containers })
			n := c.Nodes()[1]
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				*now = now.Add(15 * time.Second)
				buf = n.appendSummary(buf[:0], *now, false)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }
