package exposition

import (
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

var update = flag.Bool("update", false, "renew golden files")

var begin = time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)

const resolution = 15 * time.Second

// stage is a cluster of one node with a clock of its own.
type stage struct {
	api *API
	c   *view.Cluster
	now time.Time
	seq uint64
}

func newStage(tb testing.TB, store map[string]string) *stage {
	tb.Helper()
	s := &stage{now: begin}
	v, err := view.New(view.Config{Window: view.DefaultWindow}, view.Deps{Now: func() time.Time { return s.now }})
	if err != nil {
		tb.Fatal(err)
	}
	if s.c, err = v.Add("prod"); err != nil {
		tb.Fatal(err)
	}
	labels := proto.DefaultLabelFormat()
	labels.Store = store
	s.api = New(labels)
	s.api.ready = func(*view.Cluster) bool { return true }
	return s
}

func (s *stage) apply(r *proto.Rollup) {
	s.seq++
	r.Cluster, r.Resolution, r.Tick = "prod", resolution, proto.TickAt(s.now, resolution)
	s.c.Apply(r, view.Origin{Seq: s.seq, Time: s.now, Live: true})
}

// node is a rollup of a node with one pod; its CPU was sampled age ago.
func (s *stage) node(name string, age time.Duration) *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: name}
	r.Scraped = s.now.UnixNano()
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: name, Labels: []proto.Label{{Key: "zone", Value: "a"}}})
	r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet"})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "shop", Name: "web-" + name, UID: "u", Phase: proto.PhaseRunning,
		Owner: proto.Owner{Kind: "Deployment", Name: "web"}, Labels: []proto.Label{{Key: "team", Value: "blue \"one\"\\\n\xff"}}})
	app := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: "app", Parent: int32(pod), Flags: proto.FlagRunning})
	for row := range r.Entities {
		v := &r.Values
		v.Set(row, proto.FieldStart, begin.Add(-time.Hour).UnixNano())
		v.Set(row, proto.GroupCPU.Time(), s.now.Add(-age).UnixNano())
		v.Set(row, proto.CPUUsage.Field(), int64(row+1)*1_500_000_000)
		v.Set(row, proto.CPUUsage.Delta(), 1e9)
		v.Set(row, proto.GroupCPU.Span(), int64(10*time.Second))
		v.Set(row, proto.GroupMemory.Time(), s.now.Add(-age-2*time.Second).UnixNano())
		v.Set(row, proto.MemoryWorkingSet.Field(), int64(row+1)<<20)
	}
	for _, row := range []int{pod, app} {
		r.Values.Set(row, proto.CPURequest.Field(), 250)
		r.Values.Set(row, proto.CPULimit.Field(), 0)
	}
	r.Values.Clear(pod, proto.CPUUsage.Field()) // a sum of its containers has no counter
	r.Values.Clear(pod, proto.CPUUsage.Delta())
	r.Values.Set(pod, proto.CPUUsageRate.Field(), 333)
	r.Values.Set(pod, proto.CPUUsageNanocores.Field(), 333_444_555)
	volume := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:data", Claim: "claim"})
	r.DeviceValues.Set(volume, proto.FilesystemUsage.Field(), 4096)
	r.DeviceValues.Set(volume, proto.GroupDevice.Time(), s.now.Add(-time.Minute).UnixNano())
	old := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:old"})
	r.DeviceValues.Set(old, proto.FilesystemUsage.Field(), 1)
	r.DeviceValues.Set(old, proto.GroupDevice.Time(), s.now.Add(-time.Hour).UnixNano())
	root := r.AddDevice(proto.Device{Entity: int32(app), Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(root, proto.FilesystemUsage.Field(), 8192)
	r.DeviceValues.Set(root, proto.GroupDevice.Time(), s.now.Add(-time.Second).UnixNano())
	return r
}

func (s *stage) sums() {
	ns := &proto.Rollup{Scope: proto.ScopeNamespace, Name: "shop"}
	ns.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "shop"})
	ns.AddEntity(proto.Entity{Kind: proto.KindWorkload, Parent: -1, Name: "web", Namespace: "shop", Owner: proto.Owner{Kind: "Deployment", Name: "web"}})
	for row := range ns.Entities {
		ns.Values.Set(row, proto.CPUUsageRate.Field(), 333)
		ns.Values.Set(row, proto.MemoryUsage.Field(), 1000)
	}
	s.apply(ns)
	totals := &proto.Rollup{Scope: proto.ScopeTotals}
	totals.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
	totals.Values.Set(0, proto.CPUUsageRate.Field(), 444)
	s.apply(totals)
}

func (s *stage) ask(query string, header ...string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, "/metrics/cluster"+query, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.api.Serve(&answer.Request{W: w, R: r}, s.c)
	return w.Result()
}

func (s *stage) body(t *testing.T, query string, header ...string) string {
	t.Helper()
	resp := s.ask(query, header...)
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v %s %s", query, err, resp.Status, b)
	}
	return string(b)
}

const openMetrics = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not (renew with -update):\n%s", path, got)
	}
}

func TestBothFormats(t *testing.T) {
	s := newStage(t, map[string]string{"team": "team.name", "zone": "node"})
	s.apply(s.node("n1", 3*time.Second))
	s.sums()
	golden(t, "testdata/cluster.txt", s.body(t, "?extended=true"))
	golden(t, "testdata/cluster.openmetrics", s.body(t, "", "Accept", openMetrics))
	for accept, want := range map[string]string{"": typeText, openMetrics: typeOpenMetrics, "text/plain": typeText, "application/openmetrics-text;q=0, */*": typeText} {
		if resp := s.ask("", "Accept", accept); resp.Header.Get("Content-Type") != want {
			t.Errorf("%q is answered with %q", accept, resp.Header.Get("Content-Type"))
		}
	}
	resp := s.ask("", "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(z); err != nil || string(b) != s.body(t, "") {
		t.Errorf("compressed it is something else: %v", err)
	}
}

func TestWhatIsAnsweredCanBeNarrowed(t *testing.T) {
	s := newStage(t, nil)
	for _, n := range []string{"n1", "n2"} {
		s.apply(s.node(n, 3*time.Second))
	}
	s.sums()
	all := lines(s.body(t, ""))
	check := func(query string, keeps func(line string) bool) {
		t.Helper()
		var want []string
		for _, l := range all {
			if keeps(l) {
				want = append(want, l)
			}
		}
		got := lines(s.body(t, query))
		if strings.Join(got, "\n") != strings.Join(want, "\n") || len(want) == 0 || len(want) == len(all) {
			t.Errorf("%s: %d of %d, want %d:\n%s", query, len(got), len(all), len(want), strings.Join(got, "\n"))
		}
	}
	has := func(words ...string) func(string) bool {
		return func(line string) bool {
			for _, w := range words {
				if strings.Contains(line, w) {
					return true
				}
			}
			return false
		}
	}
	check("?level=pod", has("kubernetes_pod_"))
	check("?level=node&level=cluster", has("kubernetes_node_", "kubernetes_cluster_"))
	check("?level=node,cluster", has("kubernetes_node_", "kubernetes_cluster_"))
	check("?metric=cpu/*", has("_cpu_"))
	check("?metric=kubernetes_pod_volume_*", has("_volume_"))
	check("?metric=cpu/usage,memory/working_set", has("_cpu_usage_seconds_total", "_memory_working_set_"))
	check("?namespace=sh?p", has(`namespace="shop"`))
	check("?node=n1", has(`node="n1"`))
	check("?node=n*&level=system_container", has("kubernetes_system_container_"))
	if n := len(lines(s.body(t, "?namespace=none"))); n > 0 {
		t.Errorf("%d series of a namespace that is not there", n)
	}
	// what goes beyond Heapster, and rates
	if strings.Contains(strings.Join(all, "\n"), "kubernetes_workload_") || !strings.Contains(s.body(t, "?extended=true"), "kubernetes_workload_cpu_usage_cores") {
		t.Error("workloads are not those of extended=true")
	}
	if strings.Contains(strings.Join(all, "\n"), "kubernetes_node_cpu_usage_cores") || !strings.Contains(s.body(t, "?rates=true"), "kubernetes_node_cpu_usage_cores") {
		t.Error("rates of counters are not those of rates=true")
	}
	if !strings.Contains(strings.Join(all, "\n"), `kubernetes_pod_cpu_usage_cores{cluster="prod",namespace="shop",node="n1",pod="web-n1",workload="web",workload_kind="Deployment"} 0.333444555 `) {
		t.Errorf("the rate of a sum is missing:\n%s", strings.Join(all, "\n"))
	}
}

func lines(body string) (all []string) {
	for l := range strings.Lines(body) {
		if !strings.HasPrefix(l, "#") {
			all = append(all, strings.TrimSuffix(l, "\n"))
		}
	}
	return all
}

func TestWrongQuestionsAreRefusedWithTheReason(t *testing.T) {
	s := newStage(t, nil)
	s.apply(s.node("n1", 3*time.Second))
	check := func(query string, status int, want string) {
		t.Helper()
		resp := s.ask(query)
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != status || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s %q, want %d with %q", query, resp.Status, b, status, want)
		}
	}
	check("?levle=pod", 400, `did you mean "level"?`)
	check("?level=pods", 400, `did you mean "pod"?`)
	check("?x=1", 400, "known are level, metric")
	check("?metric=cpu/usages", 400, "heapstream metrics")
	check("?extended=maybe", 400, "want true or false")
	check("?limit=0", 400, "want a positive number")
	check("?namespace="+strings.Repeat("a,", 300), 400, "more than 256 values")
	check("?limit=5", 413, "at most 5 are given: ask for less")
	s.api.ready = func(*view.Cluster) bool { return false }
	check("", 503, `the last rollups of cluster "prod" have not been read yet`)
}

func TestWhatDoesNotAdvanceIsHonest(t *testing.T) {
	s := newStage(t, nil)
	s.apply(s.node("n1", 3*time.Second))
	first := s.body(t, "?metric=cpu/usage")
	if want := fmt.Sprintf(" 1.5 %d\n", begin.Add(-3*time.Second).UnixMilli()); !strings.Contains(first, want) {
		t.Errorf("the sample does not bear its own time, %s:\n%s", want, first)
	}
	// between two ticks the same samples come again
	s.now = s.now.Add(10 * time.Second)
	if again := s.body(t, "?metric=cpu/usage"); again != first {
		t.Errorf("it has changed by itself:\n%s", again)
	}
	// a sample that stands in at the next tick has the time at which it was measured
	s.now = begin.Add(resolution)
	r := s.node("n1", 3*time.Second+resolution)
	for row := range r.Entities {
		r.Values.Set(row, proto.GroupCPU.Stale(), 1)
	}
	s.apply(r)
	if again := s.body(t, "?metric=cpu/usage"); again != first {
		t.Errorf("a sample that stands in is another:\n%s", again)
	}
	// a node that is silent is absent with all that is on it
	s.now = s.now.Add(47 * time.Second)
	if got := lines(s.body(t, "")); len(got) > 0 {
		t.Errorf("a silent node is still there: %q", got)
	}
}

// TestATimeHasOneValue has samples stand still and advance by chance while all values change at every tick, also those
// that only divide: requests, limits and what is allocatable.
func TestATimeHasOneValue(t *testing.T) {
	const ticks, groups = 60, proto.GroupDevice
	s, rnd := newStage(t, nil), rand.New(rand.NewPCG(1, 2))
	type key struct {
		row   int
		group proto.Group
	}
	sampled, values, stood := map[key]int64{}, map[string]string{}, 0
	for tick := range ticks {
		s.now = begin.Add(time.Duration(tick) * resolution)
		r := s.node("n1", 0)
		r.Values.Set(0, proto.CPUNodeAllocatable.Field(), 1000+rnd.Int64N(1000))
		for row := range r.Entities {
			for _, m := range []proto.MetricID{proto.CPULimit, proto.CPURequest, proto.MemoryLimit, proto.MemoryRequest} {
				r.Values.Set(row, m.Field(), 100+rnd.Int64N(1000))
			}
		}
		stamp := func(c *proto.Columns, row int, g proto.Group, at time.Duration) {
			k, now := key{row, g}, s.now.Add(-at).UnixNano()
			if g == groups {
				k.row += 1000
			}
			if before, ok := sampled[k]; ok && rnd.IntN(2) == 0 {
				now = before
				c.Set(row, g.Stale(), 1)
				stood++
			}
			sampled[k] = now
			c.Set(row, g.Time(), now)
		}
		change := func(c *proto.Columns, rows int) {
			for _, m := range proto.Metrics() {
				for row := range rows {
					if old, ok := c.Get(row, m.ID.Field()); ok && m.Group != proto.GroupNone {
						c.Set(row, m.ID.Field(), old+rnd.Int64N(1e9))
					}
				}
			}
		}
		change(&r.Values, len(r.Entities))
		change(&r.DeviceValues, len(r.Devices))
		for row := range r.Entities {
			stamp(&r.Values, row, proto.GroupCPU, 3*time.Second)
			stamp(&r.Values, row, proto.GroupMemory, 5*time.Second)
		}
		for row := range r.Devices {
			stamp(&r.DeviceValues, row, groups, time.Second)
		}
		s.apply(r)
		s.sums()
		for _, line := range lines(s.body(t, "?extended=true&rates=true")) {
			series, rest, _ := strings.Cut(line, "} ")
			value, at, _ := strings.Cut(rest, " ")
			if other, ok := values[series+"} "+at]; ok && other != value {
				t.Errorf("%s} is %s and then, at tick %d, %s at %s", series, other, tick, value, at)
			}
			values[series+"} "+at] = value
		}
	}
	if stood < ticks || len(values) < 10*ticks {
		t.Errorf("only %d samples stood still, and there are %d", stood, len(values))
	}
}

func TestPromtoolAcceptsIt(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIP: no promtool on this machine: apt-get install prometheus")
	}
	s := newStage(t, nil)
	s.apply(s.node("n1", 3*time.Second))
	s.sums()
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(s.body(t, "?extended=true&rates=true"))
	if said, err := cmd.CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("promtool: %v\n%s", err, said)
	}
}

// crowd is a view of so many nodes of 30 pods of 2 containers with two file systems each.
func crowd(tb testing.TB, nodes int) *stage {
	s := newStage(tb, nil)
	for n := range nodes {
		r := &proto.Rollup{Scope: proto.ScopeNode, Name: fmt.Sprintf("node-%04d", n)}
		r.Scraped = s.now.UnixNano()
		r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: r.Name})
		for p := range 30 {
			pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprintf("team-%02d", p%7), Name: fmt.Sprintf("web-7d8f9c-%04d-%02d", n, p), Phase: proto.PhaseRunning, Owner: proto.Owner{Kind: "Deployment", Name: "web"}})
			for c := range 2 {
				r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", c), Parent: int32(pod), Flags: proto.FlagRunning})
			}
		}
		for row := range r.Entities {
			v := &r.Values
			v.Set(row, proto.FieldStart, begin.Add(-time.Hour).UnixNano())
			for _, g := range []proto.Group{proto.GroupCPU, proto.GroupMemory} {
				v.Set(row, g.Time(), s.now.Add(-time.Second).UnixNano())
				v.Set(row, g.Span(), 10e9)
			}
			for _, m := range []proto.MetricID{proto.CPUUsage, proto.MemoryPageFaults, proto.MemoryMajorFaults} {
				v.Set(row, m.Field(), int64(row+1)*1_234_567_891)
				v.Set(row, m.Delta(), 1e9)
			}
			for _, m := range []proto.MetricID{proto.MemoryUsage, proto.MemoryRSS, proto.MemoryWorkingSet, proto.CPURequest, proto.MemoryRequest, proto.CPULimit, proto.MemoryLimit, proto.RestartCount} {
				v.Set(row, m.Field(), int64(row+1)<<12)
			}
			for _, name := range []string{"/", "logs"} {
				d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: name})
				for _, m := range []proto.MetricID{proto.FilesystemUsage, proto.FilesystemLimit, proto.FilesystemAvailable, proto.FilesystemInodes, proto.FilesystemInodesFree} {
					r.DeviceValues.Set(d, m.Field(), int64(row+1)<<20)
				}
			}
		}
		s.apply(r)
	}
	return s
}

type counter struct {
	http.ResponseWriter
	n int64
}

func (c *counter) Write(b []byte) (int, error) { c.n += int64(len(b)); return len(b), nil }

func BenchmarkScrape(b *testing.B) {
	s := crowd(b, 1000)
	s.api.max = 10_000_000
	for _, query := range []string{"", "?level=pod", "?metric=cpu/usage", "?node=node-0001"} {
		for _, accept := range []string{"text/plain", openMetrics} {
			b.Run(fmt.Sprintf("nodes=1000/pods=30/query=%s/open=%v", query, accept == openMetrics), func(b *testing.B) {
				b.ReportAllocs()
				size := int64(0)
				series := len(lines(func() string {
					resp := s.ask(query)
					body, _ := io.ReadAll(resp.Body)
					return string(body)
				}()))
				for b.Loop() {
					r := httptest.NewRequest(http.MethodGet, "/metrics/cluster"+query, nil)
					r.Header.Set("Accept", accept)
					w := &counter{ResponseWriter: httptest.NewRecorder()}
					s.api.Serve(&answer.Request{W: w, R: r}, s.c)
					size = w.n
				}
				b.ReportMetric(float64(series), "series")
				b.ReportMetric(float64(size)/float64(max(series, 1)), "B/series")
				b.ReportMetric(float64(series)*float64(b.N)/b.Elapsed().Seconds(), "series/s")
			})
		}
	}
}
