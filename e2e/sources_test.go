package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heapstream/heapstream/aggregator/rate"
	"github.com/heapstream/heapstream/aggregator/rollup"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/kubelet"
	"github.com/heapstream/heapstream/scraper/node"
)

// captured is when each round of testdata/kubelet was taken of a real kubelet (v1.34.4, two processors): a
// busy pod, a container that is killed for its memory after round 2, a pod that comes after round 2 and one
// that goes after round 3.
var captured = [5]time.Time{
	time.Date(2026, 11, 20, 20, 34, 23, 15e6, time.UTC),
	time.Date(2026, 11, 20, 20, 34, 37, 193e6, time.UTC),
	time.Date(2026, 11, 20, 20, 34, 52, 465e6, time.UTC),
	time.Date(2026, 11, 20, 20, 35, 7, 275e6, time.UTC),
	time.Date(2026, 11, 20, 20, 35, 22, 325e6, time.UTC),
}

const capturedCores = 2

// recordings are what the kubelet told, by source, and how exactly each tells the time of a sample.
var recordings = []struct {
	source kubelet.Source
	form   kubelet.Form
	file   string
	unit   time.Duration // times are cut off to this
	rounds []int
}{
	{kubelet.SummarySource, kubelet.FormSummary, "stats-summary.json", time.Second, []int{0, 1, 2, 3, 4}},
	{kubelet.CAdvisorSource, kubelet.FormCAdvisor, "metrics-cadvisor.prom", time.Millisecond, []int{0, 1, 3}},
	{kubelet.ResourceSource, kubelet.FormResource, "metrics-resource.prom", time.Millisecond, []int{0, 1, 2, 3, 4}},
}

// replayed are the node's rollups, by round, of one source: its answers as the scraper decodes and enriches
// them, through the wire format and the aggregator's rates and sums.
func replayed(t *testing.T, source int, rounds []int) map[int]*proto.Rollup {
	t.Helper()
	const resolution = 15 * time.Second
	r := recordings[source]
	var object corev1.Node
	if err := json.Unmarshal(gunzip(t, "kubelet/node.json.gz"), &object); err != nil {
		t.Fatal(err)
	}
	known := node.FromNode(&object, "")
	var d kubelet.Decoder
	enc, dec := proto.NewEncoder(), proto.NewDecoder()
	rates, maker := rate.New(), rollup.New()
	all := map[int]*proto.Rollup{}
	for _, round := range rounds {
		var list corev1.PodList
		if err := json.Unmarshal(gunzip(t, fmt.Sprintf("kubelet/%d-pods.json.gz", round)), &list); err != nil {
			t.Fatal(err)
		}
		pods := map[string]*node.Pod{}
		for i := range list.Items {
			pods[list.Items[i].Namespace+"/"+list.Items[i].Name] = node.FromPod(&list.Items[i])
		}
		b := &proto.Batch{Cluster: "c", Node: known.Name, Tick: proto.TickAt(captured[round], resolution), Resolution: resolution, Source: string(r.source)}
		if err := d.Decode(r.form, gunzip(t, fmt.Sprintf("kubelet/%d-%s.gz", round, r.file)), b, kubelet.Machine{ID: known.MachineID, UUID: known.SystemUUID}); err != nil {
			t.Fatal(err)
		}
		b.Scraped = captured[round].UnixNano()
		node.Enrich(b, known, func(namespace, name string) *node.Pod { return pods[namespace+"/"+name] })
		if b.Dropped != 0 {
			t.Errorf("%s, round %d: %d values of a sound answer are left out", r.source, round, b.Dropped)
		}
		data, err := enc.Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		sent, made := &proto.Batch{}, &proto.Rollup{}
		if err := dec.Batch(data, sent); err != nil {
			t.Fatal(err)
		}
		rates.Step(sent, captured[round].UnixMilli())
		maker.Node(sent, uint64(round)+1, made)
		all[round] = made
	}
	return all
}

// story prints rollups for people: a line an entity.
func story(rollups map[int]*proto.Rollup, rounds []int) string {
	var out strings.Builder
	for _, round := range rounds {
		r := rollups[round]
		fmt.Fprintf(&out, "round %d, %s\n", round, captured[round].Format(time.TimeOnly))
		var lines []string
		for row := range r.Entities {
			e := &r.Entities[row]
			name := e.Name
			switch e.Kind {
			case proto.KindPod:
				name = e.Namespace + "/" + e.Name
			case proto.KindContainer:
				pod := &r.Entities[e.Parent]
				name = pod.Namespace + "/" + pod.Name + "/" + e.Name
			case proto.KindWorkload:
				name = e.Namespace + "/" + e.Owner.Kind + "/" + e.Name
			}
			line := fmt.Sprintf("  %-13s %-42s", e.Kind, name)
			for _, m := range []struct {
				id   proto.MetricID
				name string
			}{{proto.CPUUsageRate, "cpu/usage_rate"}, {proto.CPURequest, "cpu/request"}, {proto.MemoryWorkingSet, "memory/working_set"}, {proto.MemoryUsage, "memory/usage"},
				{proto.MemoryCache, "memory/cache"}, {proto.NetworkRxRate, "network/rx_rate"}, {proto.RestartCount, "restart_count"}, {proto.PodCount, "pod_count"}} {
				v, ok := r.Value(row, m.id)
				if !ok {
					continue
				}
				if v.IsFloat() {
					v = proto.Float(math.Round(v.Float64()*10) / 10)
				}
				line += fmt.Sprintf("  %s %s", m.name, v)
				if m.id != proto.CPUUsageRate {
					continue
				}
				if span, ok := r.Values.Get(row, proto.GroupCPU.Span()); ok {
					line += fmt.Sprintf(" over %s", time.Duration(span).Round(time.Millisecond))
				}
				if r.StandsIn(row, proto.GroupCPU) {
					line += " (stands in)"
				}
			}
			lines = append(lines, line)
		}
		out.WriteString(strings.Join(lines, "\n") + "\n")
	}
	return out.String()
}

func TestRealKubeletThroughEverySource(t *testing.T) {
	for i, r := range recordings {
		got := story(replayed(t, i, r.rounds), r.rounds)
		golden := filepath.Join("testdata", "kubelet", string(r.source)+".golden")
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
			t.Errorf("%s differs from %s; run with -update and look at the difference. Got\n%s", r.source, golden, got)
		}
	}
}

// pair is what a rollup says of one entity's cpu: two samples of a counter, and the memory beside the second.
type pair struct {
	from, to       int64 // when, Unix ns, as told: the truth lies between that and a unit later
	before, after  int64 // ns of cpu
	memory         int64
	millis         int64
	rate, measured bool // there is a rate; there is a sample
}

// pairs of one rollup, by entity.
func pairs(r *proto.Rollup) map[string]pair {
	all := map[string]pair{}
	for row := range r.Entities {
		if k := r.Entities[row].Kind; k != proto.KindPod && k != proto.KindContainer && k != proto.KindNode {
			continue
		}
		var p pair
		p.after, p.measured = r.Values.Get(row, proto.CPUUsage.Field())
		if !p.measured { // a pod without cgroup: its containers are compared
			continue
		}
		p.to, _ = r.Values.Get(row, proto.GroupCPU.Time())
		p.memory, _ = r.Values.Get(row, proto.MemoryWorkingSet.Field())
		var delta, span int64
		if delta, p.rate = r.Values.Get(row, proto.CPUUsage.Delta()); p.rate {
			span, _ = r.Values.Get(row, proto.GroupCPU.Span())
			v, _ := r.Value(row, proto.CPUUsageRate)
			p.from, p.before, p.millis = p.to-span, p.after-delta, v.Int64()
		}
		all[string(proto.AppendKey(nil, &r.Table, row))] = p
	}
	return all
}

// TestSourcesAgreeWithinTheirTimes compares what the three sources say of each pod and container.
//
// All three tell samples of the same counters, each its own newest one, with times cut off to a unit. So of two
// sources a and b:
//
//   - a sample that both tell, which shows in equal counters, has times that differ by less than the larger
//     unit, and the same memory;
//   - two samples apart by d, give or take the units, differ by no more than all processors can do in that
//     time: |after_a - after_b| <= cores x (d + units), and the later one is not the smaller one;
//   - growth is the difference of two samples, so it differs by no more than its ends do: that is e;
//   - a rate is growth over span, so |rate_a - rate_b| <= e / span + rate x units / span, where the second
//     term is what cutting off does to the span; and a millicore each, as rates are truncated.
func TestSourcesAgreeWithinTheirTimes(t *testing.T) {
	for _, c := range []struct {
		a, b   int
		rounds []int // that both have
	}{{0, 1, []int{0, 1, 3}}, {1, 2, []int{0, 1, 3}}, {0, 2, []int{0, 1, 2, 3, 4}}} {
		a, b := recordings[c.a], recordings[c.b]
		left, right := replayed(t, c.a, c.rounds), replayed(t, c.b, c.rounds)
		units := float64(a.unit + b.unit)
		compared, same, exact := 0, 0, 0
		widest := 0.0
		for _, round := range c.rounds {
			p, q := pairs(left[round]), pairs(right[round])
			if len(p) != len(q) {
				t.Errorf("round %d: %s tells of %d entities, %s of %d", round, a.source, len(p), b.source, len(q))
			}
			for key, x := range p {
				y, ok := q[key]
				if !ok {
					t.Errorf("round %d: %s is in %s and not in %s", round, key, a.source, b.source)
					continue
				}
				// ends checks two samples and returns by how much they may differ for their times.
				ends := func(atX, atY, countX, countY int64) float64 {
					apart := math.Abs(float64(atX - atY))
					if countX == countY {
						same++
						if apart >= units {
							t.Errorf("round %d: %s: one sample (%d ns) is of %s in %s and of %s in %s", round, key, countX, time.Unix(0, atX), a.source, time.Unix(0, atY), b.source)
						}
						return 0
					}
					most := capturedCores * (apart + units)
					if math.Abs(float64(countX-countY)) > most || float64(atX-atY) >= units && countX < countY || float64(atY-atX) >= units && countY < countX {
						t.Errorf("round %d: %s: %d ns at %s in %s, %d ns at %s in %s", round, key, countX, time.Unix(0, atX), a.source, countY, time.Unix(0, atY), b.source)
					}
					return most
				}
				e := ends(x.to, y.to, x.after, y.after)
				if x.after == y.after && x.memory != y.memory {
					t.Errorf("round %d: %s: memory %d in %s and %d in %s, of one sample", round, key, x.memory, a.source, y.memory, b.source)
				}
				if !x.rate || !y.rate {
					if x.rate != y.rate && e == 0 {
						t.Errorf("round %d: %s has a rate in one of %s and %s alone", round, key, a.source, b.source)
					}
					continue
				}
				e += ends(x.from, y.from, x.before, y.before)
				span := float64(min(x.to-x.from, y.to-y.from))
				bound := 1000*e/span + float64(max(x.millis, y.millis)+1)*units/span + 1
				if diff := math.Abs(float64(x.millis - y.millis)); diff > bound {
					t.Errorf("round %d: %s: %d millicores in %s, %d in %s; their times explain %.1f", round, key, x.millis, a.source, y.millis, b.source, bound)
				}
				compared++
				if e == 0 {
					exact++
					widest = max(widest, bound)
				}
			}
		}
		t.Logf("%s and %s: %d rates compared, %d of them of the same samples, for which the bound is at most %.1f millicores; %d samples told by both", a.source, b.source, compared, exact, widest, same)
		if exact < compared/2 || compared < 10 {
			t.Errorf("%s and %s: %d rates compared, %d of the same samples: too few to mean anything", a.source, b.source, compared, exact)
		}
	}
}

// TestEverySourceSurvivesFailingKubelets is TestPipeline's test of failures for the sources that it does not use.
func TestEverySourceSurvivesFailingKubelets(t *testing.T) {
	for _, source := range []kubelet.Source{kubelet.CAdvisorSource, kubelet.ResourceSource} {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			modes := slices.DeleteFunc(slices.Clone(simcluster.FailureModes), func(m simcluster.FailureMode) bool {
				// /metrics/resource does not say whose it is.
				return m == simcluster.FailNone || m == simcluster.FailWrongNode && source == kubelet.ResourceSource
			})
			startPlumbing(t, len(modes)+3, source, nil).failures(t, modes)
		})
	}
}

// TestKubeletsAreReadAsTheyAre has kubelets of today and one of old. The latter alone tells of free space on file
// systems, in its answer to POST /stats/container/.
func TestKubeletsAreReadAsTheyAre(t *testing.T) {
	t.Parallel()
	p := startPlumbing(t, 3, kubelet.CAdvisorSource, func(c *simcluster.Config) { c.OldKubelets = 1 })
	old := p.cluster.Nodes()[2].Name()
	// dumped waits for a rollup of the old node, after a tick, that is made of cAdvisor's dump or is not.
	dumped := func(after proto.Tick, want bool) proto.Tick {
		t.Helper()
		dec := proto.NewDecoder()
		for d, err := range p.conn(t).Replay(t.Context(), bus.ReplayConfig{Stream: bus.RollupsStream("sim"), Subjects: bus.RollupFilters("sim")}) {
			if err != nil {
				t.Fatal(err)
			}
			var r proto.Rollup
			if err := dec.Rollup(d.Data, &r); err != nil {
				t.Fatal(err)
			}
			if r.Scope != proto.ScopeNode || r.Tick <= after {
				continue
			}
			free, disk, labelled := false, false, r.Entities[0].Flags&proto.FlagSchedulable != 0
			from, to := r.DevicesOf(0)
			for i := from; i < to; i++ {
				_, has := r.DeviceValue(i, proto.FilesystemAvailable)
				free = free || has
				_, has = r.DeviceValue(i, proto.DiskRead)
				disk = disk || has
			}
			if r.Source != string(kubelet.CAdvisorSource) || !labelled || r.Name != "node-0" && !disk { // the recorded one has no disk
				t.Fatalf("rollup of node %q: source %q, schedulable %t, disk %t", r.Name, r.Source, labelled, disk)
			}
			if r.Name != old {
				if free {
					t.Fatalf("kubelet of node %q is one of today and was read as an old one", r.Name)
				}
				continue
			}
			if free == want {
				return r.Tick
			}
		}
		t.Fatalf("no rollup of node %q", old)
		return 0
	}
	tick := dumped(0, true)
	for _, isOld := range []bool{false, true, false} {
		if err := p.cluster.SetOldKubelet(old, isOld); err != nil {
			t.Fatal(err)
		}
		tick = dumped(tick, isOld)
	}
	p.log.mu.Lock()
	defer p.log.mu.Unlock()
	said := 0
	for _, l := range p.log.lines {
		if l.Level == "INFO" && strings.Contains(l.Msg, "/metrics/cadvisor") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("it is said %d times that kubelets are read through /metrics/cadvisor, want once", said)
	}
}
