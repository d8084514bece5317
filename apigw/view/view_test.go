package view

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

const resolution = 15 * time.Second

var begin = time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)

// stage is a cluster with a clock of its own, and the rollups that come to it.
type stage struct {
	t   *testing.T
	now time.Time
	c   *Cluster
	seq uint64
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{t: t, now: begin}
	v, err := New(Config{Window: DefaultWindow}, Deps{Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	if s.c, err = v.Add("c"); err != nil {
		t.Fatal(err)
	}
	return s
}

// apply brings a rollup in at the present moment.
func (s *stage) apply(r *proto.Rollup) {
	s.seq++
	s.c.Apply(r, Origin{Seq: s.seq, Time: s.now, Live: true})
}

// node begins a rollup of a node at the present moment.
func (s *stage) node(name string) *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: name, Tick: proto.TickAt(s.now, resolution), Resolution: resolution}
	r.Scraped = s.now.UnixNano()
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: name, UID: "uid-" + name, Hostname: name + ".example.com", Parent: -1})
	return r
}

func pod(r *proto.Rollup, namespace, name string) int {
	return r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: namespace, Name: name, UID: "uid-" + name, Parent: 0, Phase: proto.PhaseRunning,
		Labels: []proto.Label{{Key: "app", Value: name}}})
}

func container(r *proto.Rollup, pod int, name string, flags proto.Flags) int {
	return r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: name, Parent: int32(pod), Flags: flags})
}

// used gives a row a sample that is age old, with a pair of samples where span > 0.
func used(s *stage, r *proto.Rollup, row int, age time.Duration, delta int64, span time.Duration, memory int64) {
	v := &r.Values
	v.Set(row, proto.GroupCPU.Time(), s.now.Add(-age).UnixNano())
	v.Set(row, proto.CPUUsage.Field(), 7e9)
	v.Set(row, proto.MemoryWorkingSet.Field(), memory)
	v.Set(row, proto.FieldStart, s.now.Add(-time.Hour).UnixNano())
	if span > 0 {
		v.Set(row, proto.CPUUsage.Delta(), delta)
		v.Set(row, proto.GroupCPU.Span(), int64(span))
	}
}

func names(c *Cluster, namespace string) (all []string) {
	for p := range c.Pods(namespace) {
		all = append(all, p.Namespace+"/"+p.Name)
	}
	return all
}

func TestPodIsServedByTheRulesOfTheMetricsAPI(t *testing.T) {
	tests := []struct {
		name  string
		build func(s *stage, r *proto.Rollup, pod int)
		want  string // "" for a pod that is left out
	}{
		{"two containers: time and span of the older sample", func(s *stage, r *proto.Rollup, pod int) {
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
			used(s, r, container(r, pod, "b", proto.FlagRunning), 9*time.Second, 3e9, 12*time.Second, 200)
		}, "20:25:51 12s a=100000000,100 b=250000000,200"},
		{"a running container without a pair hides the pod", func(s *stage, r *proto.Rollup, pod int) {
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
			used(s, r, container(r, pod, "b", proto.FlagRunning), 3*time.Second, 0, 0, 200)
		}, ""},
		{"a running container without memory hides the pod", func(s *stage, r *proto.Rollup, pod int) {
			row := container(r, pod, "a", proto.FlagRunning)
			used(s, r, row, 3*time.Second, 1e9, 10*time.Second, 100)
			r.Values.Clear(row, proto.MemoryWorkingSet.Field())
		}, ""},
		{"a running container without any sample hides the pod", func(s *stage, r *proto.Rollup, pod int) {
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
			container(r, pod, "stub", proto.FlagRunning|proto.FlagStub)
		}, ""},
		{"a finished init container does not", func(s *stage, r *proto.Rollup, pod int) {
			container(r, pod, "init", proto.FlagInit|proto.FlagTerminated)
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
		}, "20:25:57 10s a=100000000,100"},
		{"a native sidecar counts", func(s *stage, r *proto.Rollup, pod int) {
			used(s, r, container(r, pod, "side", proto.FlagInit|proto.FlagSidecar|proto.FlagRunning), 3*time.Second, 5e8, 10*time.Second, 50)
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
		}, "20:25:57 10s side=50000000,50 a=100000000,100"},
		{"from 10 s to one resolution after its start one sample is enough", func(s *stage, r *proto.Rollup, pod int) {
			row := container(r, pod, "a", proto.FlagRunning)
			used(s, r, row, 2*time.Second, 0, 0, 100)
			r.Values.Set(row, proto.FieldStart, s.now.Add(-16*time.Second).UnixNano())
		}, "20:25:58 14s a=500000000,100"},
		{"before 10 s it is not", func(s *stage, r *proto.Rollup, pod int) {
			row := container(r, pod, "a", proto.FlagRunning)
			used(s, r, row, 2*time.Second, 0, 0, 100)
			r.Values.Set(row, proto.FieldStart, s.now.Add(-11*time.Second).UnixNano())
		}, ""},
		{"after one resolution it is not", func(s *stage, r *proto.Rollup, pod int) {
			row := container(r, pod, "a", proto.FlagRunning)
			used(s, r, row, 2*time.Second, 0, 0, 100)
			r.Values.Set(row, proto.FieldStart, s.now.Add(-18*time.Second).UnixNano())
		}, ""},
		{"a pod that is not Running is left out", func(s *stage, r *proto.Rollup, pod int) {
			r.Entities[pod].Phase = proto.PhaseSucceeded
			used(s, r, container(r, pod, "a", proto.FlagRunning), 3*time.Second, 1e9, 10*time.Second, 100)
		}, ""},
		{"a pod without running containers is left out", func(s *stage, r *proto.Rollup, pod int) {
			used(s, r, container(r, pod, "a", proto.FlagTerminated), 3*time.Second, 1e9, 10*time.Second, 100)
		}, ""},
		{"swap is told where the kubelet tells it", func(s *stage, r *proto.Rollup, pod int) {
			row := container(r, pod, "a", proto.FlagRunning)
			used(s, r, row, 3*time.Second, 1e9, 10*time.Second, 100)
			r.Values.Set(row, proto.SwapUsage.Field(), 42)
		}, "20:25:57 10s a=100000000,100+42"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			r := s.node("n1")
			tt.build(s, r, pod(r, "ns", "p"))
			s.apply(r)
			got := ""
			if p, ok := s.c.Pod("ns", "p"); ok {
				got = p.Time.Format("15:04:05") + " " + p.Window.String()
				for _, c := range p.Containers {
					got += fmt.Sprintf(" %s=%d,%d", c.Name, c.CPU, c.Memory)
					if c.HasSwap {
						got += fmt.Sprintf("+%d", c.Swap)
					}
				}
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// full is a rollup of a node with one pod, whose sample was taken at a time.
func full(s *stage, node, namespace, name string, sample time.Time) *proto.Rollup {
	r := s.node(node)
	used(s, r, 0, s.now.Sub(sample), 20e9, 10*time.Second, 1<<30)
	used(s, r, container(r, pod(r, namespace, name), "a", proto.FlagRunning), s.now.Sub(sample), 1e9, 10*time.Second, 100)
	return r
}

func TestWhatDoesNotAdvanceVanishesInTime(t *testing.T) {
	s := newStage(t)
	s.apply(full(s, "n1", "ns", "p", begin))
	served := func(what string, want bool) {
		t.Helper()
		_, pod := s.c.Pod("ns", "p")
		_, node := s.c.Node("n1")
		if pod != want || node != want {
			t.Errorf("%s: pod served %v, node served %v, want %v", what, pod, node, want)
		}
	}
	served("at once", true)
	s.now = begin.Add(30 * time.Second)
	s.apply(full(s, "n1", "ns", "p", begin)) // the rollup comes, the sample is the old one
	served("standing in", true)
	s.now = begin.Add(46 * time.Second)
	served("45 s after the sample was first seen", true)
	s.now = begin.Add(46*time.Second + 1)
	served("later", false)
	s.apply(full(s, "n1", "ns", "p", s.now))
	served("advanced again", true)
	if got := s.c.PodNames("ns"); !slices.Equal(got, []string{"p"}) {
		t.Errorf("pods: %q", got)
	}
	s.now = s.now.Add(47 * time.Second)
	s.c.sweep()
	if got := s.c.PodNames("ns"); len(got) > 0 {
		t.Errorf("pods of a silent node: %q", got)
	}
	if len(*s.c.nodes.Load()) > 0 || len(*s.c.pods.Load()) > 0 {
		t.Error("a silent node is still held")
	}
}

func TestWhenASampleWasFirstSeenIsRememberedOfThePodWhereverItStands(t *testing.T) {
	s := newStage(t)
	roll := func(uid string, pods ...string) {
		r := s.node("n1")
		for _, name := range pods {
			row := pod(r, "ns", name)
			if name == "new" {
				r.Entities[row].UID = uid
			}
			used(s, r, container(r, row, "a", proto.FlagRunning), s.now.Sub(begin), 1e9, 10*time.Second, 100) // always the same sample
		}
		s.apply(r)
	}
	roll("1", "p", "q", "new")
	s.now = begin.Add(30 * time.Second)
	roll("2", "new", "r", "q", "p")
	s.now = begin.Add(46*time.Second + 1)
	if got, want := names(s.c, ""), []string{"ns/new", "ns/r"}; !slices.Equal(got, want) {
		t.Errorf("served %q, want %q: the others have not advanced for too long", got, want)
	}
}

func TestListsAreSortedAndFollowPodsAsTheyComeAndGo(t *testing.T) {
	s := newStage(t)
	s.apply(full(s, "n2", "b", "p2", s.now))
	s.apply(full(s, "n1", "b", "p1", s.now))
	s.apply(full(s, "n3", "a", "p3", s.now))
	check := func(namespace string, want ...string) {
		t.Helper()
		if got := names(s.c, namespace); !slices.Equal(got, want) {
			t.Errorf("pods of %q: %q, want %q", namespace, got, want)
		}
	}
	check("", "a/p3", "b/p1", "b/p2")
	check("b", "b/p1", "b/p2")
	check("none")
	s.now = s.now.Add(resolution)
	s.apply(full(s, "n1", "b", "p0", s.now))
	check("", "a/p3", "b/p0", "b/p2")
	var nodes []string
	for n := range s.c.Nodes() {
		nodes = append(nodes, n.Name)
	}
	if want := []string{"n1", "n2", "n3"}; !slices.Equal(nodes, want) {
		t.Errorf("nodes %q, want %q", nodes, want)
	}
}

func TestLateAndDoubledRollupsChangeNothing(t *testing.T) {
	s := newStage(t)
	old := full(s, "n1", "ns", "old", s.now)
	s.now = s.now.Add(resolution)
	s.apply(full(s, "n1", "ns", "new", s.now))
	s.apply(old)
	s.apply(full(s, "n1", "ns", "doubled", s.now))
	if got, want := names(s.c, ""), []string{"ns/new"}; !slices.Equal(got, want) {
		t.Errorf("pods %q, want %q", got, want)
	}
}

func TestOfTwoNodesTheYoungerPodWins(t *testing.T) {
	for _, order := range [][]string{{"old", "new"}, {"new", "old"}} {
		s := newStage(t)
		for _, node := range order {
			r := full(s, node, "ns", "web-0", s.now)
			r.Entities[1].UID = node
			if node == "new" {
				r.Values.Set(1, proto.FieldBirth, s.now.UnixNano())
			} else {
				r.Values.Set(1, proto.FieldBirth, s.now.Add(-time.Hour).UnixNano())
			}
			s.apply(r)
		}
		if p, ok := s.c.Pod("ns", "web-0"); !ok || p.Node != "new" || p.UID != "new" {
			t.Errorf("order %v: served %+v", order, p)
		}
	}
}

func TestSeriesLeavesOutStandIns(t *testing.T) {
	s := newStage(t)
	for i := range 4 {
		r := full(s, "n1", "ns", "p", s.now)
		if i == 2 {
			r.Values.Set(2, proto.GroupMemory.Stale(), 1)
		}
		s.apply(r)
		s.now = s.now.Add(resolution)
	}
	e := window.Entity{Kind: proto.KindContainer, Namespace: "ns", Pod: "p", Name: "a"}
	var at []string
	for _, p := range s.c.Series(nil, e, "memory/working_set", time.Time{}, s.now) {
		at = append(at, p.Tick.Time().Format("15:04:05"))
	}
	if want := []string{"20:26:00", "20:26:15", "20:26:45"}; !slices.Equal(at, want) {
		t.Errorf("points at %q, want %q", at, want)
	}
	// a node goes by its host name, too
	if got := s.c.Series(nil, window.Entity{Kind: proto.KindNode, Node: "n1.example.com"}, "memory/working_set", time.Time{}, s.now); len(got) != 4 {
		t.Errorf("%d points by host name, want 4", len(got))
	}
	// evicted on read: nothing came for longer than the window
	s.now = s.now.Add(DefaultWindow)
	if got := s.c.Series(nil, e, "memory/working_set", time.Time{}, s.now); len(got) != 0 {
		t.Errorf("%d points are older than the window", len(got))
	}
}

func TestClockFollowsTheStream(t *testing.T) {
	local := begin
	c := clock{now: func() time.Time { return local }}
	at := func(what string, want time.Time) {
		t.Helper()
		if got := time.Unix(0, c.nowNano()).UTC(); !got.Equal(want) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	c.observe(begin.Add(time.Hour), true) // the local clock is an hour behind
	at("at once", begin.Add(time.Hour))
	local = local.Add(10 * time.Second)
	at("it goes on without messages", begin.Add(time.Hour+10*time.Second))
	c.observe(begin, false) // an old message
	at("the past does not turn it back", begin.Add(time.Hour+10*time.Second))
	for range 3 { // the stream's clock stepped back by an hour
		local = local.Add(61 * time.Second)
		c.observe(local, true)
	}
	at("it follows a clock that stepped back", local)
}

// TestReadersMeetTheWriter is for the race detector: everything is read while pods come and go.
func TestReadersMeetTheWriter(t *testing.T) {
	v, err := New(Config{Window: MinWindow}, Deps{Now: func() time.Time { return begin }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for p := range c.Pods("") {
					if got, ok := c.Pod(p.Namespace, p.Name); ok && got.Name != p.Name {
						t.Errorf("asked for pod %q, got %q", p.Name, got.Name)
					}
				}
				for range c.Nodes() {
				}
				e := window.Entity{Kind: proto.KindContainer, Namespace: "ns", Pod: fmt.Sprint("p", n%8), Name: "a"}
				for i, points := 1, c.Series(nil, e, "memory/working_set", time.Time{}, endless); i < len(points); i++ {
					if points[i].Tick <= points[i-1].Tick {
						t.Errorf("points are out of order: %v", points)
					}
				}
				c.MetricNames(e)
				c.Keys()
				c.Export(func(*proto.Metric) bool { return true }, func(*Exported) bool { return true })
			}
		})
	}
	s := &stage{t: t, now: begin, c: c}
	for i := range 300 {
		s.apply(full(s, fmt.Sprint("n", i%3), "ns", fmt.Sprint("p", i*7%11), s.now))
		if i%3 == 2 {
			s.now = s.now.Add(5 * time.Second)
			c.sweep()
		}
	}
	close(stop)
	wg.Wait()
}

// TestEveryFieldTellsEntitiesApart alters each field in turn: one that sameEntity does not look at would stay as it was
// in the present for as long as nothing else changes.
func TestEveryFieldTellsEntitiesApart(t *testing.T) {
	typ := reflect.TypeFor[proto.Entity]()
	for i := range typ.NumField() {
		a := proto.Entity{Labels: []proto.Label{{Key: "a", Value: "b"}}}
		b := a
		if !sameEntity(&a, &b) {
			t.Fatal("an entity is not the same as itself")
		}
		switch f := reflect.ValueOf(&b).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int32:
			f.SetInt(7)
		case reflect.Uint8, reflect.Uint32:
			f.SetUint(1)
		case reflect.Struct:
			f.Field(0).SetString("x")
		case reflect.Slice:
			b.Labels = []proto.Label{{Key: "a", Value: "c"}}
		default:
			t.Fatalf("field %s is a %s: say how to alter it", typ.Field(i).Name, f.Kind())
		}
		if sameEntity(&a, &b) {
			t.Errorf("entities that differ in %s are the same", typ.Field(i).Name)
		}
	}
}

// New pods get their places among those that are there, as sorting all of them would have it.
func TestNewPodsGetTheirPlaces(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // no secret
	for range 200 {
		draw := func(most int) (slots []*podSlot) {
			for range random.IntN(most) {
				slots = append(slots, &podSlot{name: fmt.Sprint("pod-", random.IntN(40))})
			}
			return slots
		}
		byName := func(a, b *podSlot) int { return strings.Compare(a.name, b.name) }
		pods, added := draw(30), draw(10)
		slices.SortFunc(pods, byName)
		pods = slices.CompactFunc(pods, func(a, b *podSlot) bool { return a.name == b.name })
		was := slices.Clone(pods)
		want := append(slices.Clone(pods), added...)
		slices.SortStableFunc(want, byName)
		want = slices.CompactFunc(want, func(a, b *podSlot) bool { return a.name == b.name })
		if got := withPods(pods, added); !slices.Equal(got, want) {
			t.Fatalf("%d pods and %d new ones are %d, want %d", len(pods), len(added), len(got), len(want))
		}
		if !slices.Equal(pods, was) {
			t.Fatal("the list that readers have was changed")
		}
	}
}
