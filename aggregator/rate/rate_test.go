package rate

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// A slot has a place for every counter of the catalogue.
func TestSlotsHoldEveryCounter(t *testing.T) {
	if thePlan.count > entityCounters {
		t.Errorf("the catalogue has %d counters of entities, a slot %d", thePlan.count, entityCounters)
	}
	for kind, list := range thePlan.device {
		if len(list) > deviceCounters {
			t.Errorf("devices of kind %d have %d counters, a slot %d", kind, len(list), deviceCounters)
		}
	}
	for _, m := range proto.Metrics() {
		if m.Device == 0 && m.Group >= groups {
			t.Errorf("%s is of group %d, a slot has %d", m.Name, m.Group, groups)
		}
	}
}

// stepper shows one container's CPU counter to a State, one batch a call, 15 s apart.
type stepper struct {
	s   *State
	b   proto.Batch
	now int64
}

func (s *stepper) step(at, start time.Duration, cpu int64) (delta, span int64, ok bool) {
	s.now += 15000
	s.b.Reset()
	s.b.Node, s.b.Resolution = "n", 15*time.Second
	s.b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	s.b.Values.Set(0, proto.GroupCPU.Time(), int64(at))
	s.b.Values.Set(0, proto.FieldStart, int64(start))
	s.b.Values.Set(0, proto.CPUUsage.Field(), cpu)
	s.s.Step(&s.b, s.now)
	delta, ok = s.b.Values.Get(0, proto.CPUUsage.Delta())
	span, _ = s.b.Values.Get(0, proto.GroupCPU.Span())
	return delta, span, ok
}

func TestRateSkipsWhatIsNoPair(t *testing.T) {
	const first, start = 1000 * time.Second, 10 * time.Second
	for _, c := range []struct {
		name      string
		at, start time.Duration
		cpu       int64
		later     int64 // ms more between the batches
		want      string
	}{
		{"advanced", first + 15*time.Second, start, 3e9, 0, "2000000000 15s"},
		{"counter the same", first + 15*time.Second, start, 1e9, 0, "0 15s"},
		{"counter fell", first + 15*time.Second, start, 1e9 - 1, 0, "none"},
		{"counter wrapped", first + 15*time.Second, start, math.MinInt64, 0, "none"},
		{"started anew", first + 15*time.Second, start + 1, 3e9, 0, "none"},
		{"unchanged, never a pair", first, start, 1e9, 0, "none"},
		{"time went back", first - 1, start, 3e9, 0, "none"},
		{"longest span", first + 90*time.Second, start, 3e9, 0, "2000000000 1m30s"},
		{"span too long", first + 90*time.Second + 1, start, 3e9, 0, "none"},
		{"last seen just in time", first + 60*time.Second, start, 3e9, 75000, "2000000000 1m0s"},
		{"last seen too long ago", first + 60*time.Second, start, 3e9, 75001, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := stepper{s: New()}
			if _, _, ok := s.step(first, start, 1e9); ok {
				t.Fatal("the first sample has a rate")
			}
			s.now += c.later
			got := "none"
			if delta, span, ok := s.step(c.at, c.start, c.cpu); ok {
				got = fmt.Sprint(delta, " ", time.Duration(span))
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// After a fresh sample an unchanged one has nothing to stand in with.
func TestRateOfBeforeAResetDoesNotStandIn(t *testing.T) {
	s := stepper{s: New()}
	s.step(100e9, 1, 10)
	if _, _, ok := s.step(115e9, 1, 20); !ok {
		t.Fatal("no pair")
	}
	s.step(130e9, 1, 5)
	if _, _, ok := s.step(130e9, 1, 5); ok {
		t.Error("a rate from before the counter fell stands in")
	}
}

// The order of rows, which for a kubelet is random, does not matter; nor do rows that come and go.
func TestRateKnowsRowsByWhatTheyAre(t *testing.T) {
	s := New()
	batch := func(n int, pods ...int) *proto.Batch {
		b := &proto.Batch{Node: "n", Resolution: 15 * time.Second}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
		for _, p := range pods {
			pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: fmt.Sprint("p", p), UID: fmt.Sprint(p)})
			for c := range 2 {
				row := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: fmt.Sprint("c", c)})
				b.Values.Set(row, proto.GroupCPU.Time(), int64(n)*1e9)
				b.Values.Set(row, proto.CPUUsage.Field(), int64(n*(100*p+c)))
			}
		}
		return b
	}
	s.Step(batch(1, 1, 2, 3, 4), 0)
	s.Step(batch(2, 4, 2, 1), 1000)
	b := batch(3, 2, 5, 1, 4, 3)
	s.Step(b, 2000)
	for row := range b.Entities {
		e := &b.Entities[row]
		if e.Kind != proto.KindContainer {
			continue
		}
		pod := b.Entities[e.Parent].Name
		var p, c int
		fmt.Sscanf(pod, "p%d", &p)
		fmt.Sscanf(e.Name, "c%d", &c)
		delta, ok := b.Values.Get(row, proto.CPUUsage.Delta())
		want, wantOK := int64(100*p+c), p != 5
		if p == 3 { // was not in the batch between
			want *= 2
		}
		if ok != wantOK || ok && delta != want {
			t.Errorf("%s/%s: growth %d %v, want %d %v", pod, e.Name, delta, ok, want, wantOK)
		}
	}
}

// A row that a batch has twice has no rate from the other one.
func TestRateOfARowThatIsThereTwice(t *testing.T) {
	s := New()
	for n := range int64(3) {
		b := &proto.Batch{Node: "n", Resolution: 15 * time.Second}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
		pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "p", UID: "1"})
		for i := range int64(2) {
			row := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "c"})
			b.Values.Set(row, proto.GroupCPU.Time(), n*15e9+i)
			b.Values.Set(row, proto.CPUUsage.Field(), n*10+i*1000)
		}
		s.Step(b, n*15000)
		if _, ok := b.Values.Get(3, proto.CPUUsage.Delta()); ok {
			t.Error("the second row has a rate")
		}
		if d, ok := b.Values.Get(2, proto.CPUUsage.Delta()); n > 0 && (!ok || d != 10) {
			t.Errorf("the first row has growth %d %v", d, ok)
		}
	}
}

// State that nothing needs any more is given back, and a slot is not taken for what it was before.
func TestStateIsForgotten(t *testing.T) {
	s := New()
	for n := range int64(200) {
		b := &proto.Batch{Node: "n", Resolution: 15 * time.Second}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
		b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: fmt.Sprint("p", n), UID: "1"})
		b.Values.Set(1, proto.GroupNetwork.Time(), n*15e9)
		b.Values.Set(1, proto.NetworkRx.Field(), n*10)
		s.Step(b, n*15000)
		if _, ok := b.Values.Get(1, proto.NetworkRx.Delta()); ok {
			t.Fatalf("pod p%d, which is new, has a rate", n)
		}
	}
	if got := len(s.nodes["n"].entities.list); got > 20 {
		t.Errorf("%d slots are held for a node and one pod at a time", got)
	}
	s.Forget(200*15000+90_001, 15*time.Second)
	if s.Nodes() != 0 {
		t.Error("a silent node is remembered")
	}
}

// What was not seen for Memory is forgotten also while its slot is not swept yet: after a crash it would not
// be known either.
func TestForgettingDoesNotDependOnSweeping(t *testing.T) {
	s := New()
	step := func(now, start, cpu int64, pod bool) (rate bool) {
		b := &proto.Batch{Node: "n", Resolution: 15 * time.Second}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
		if pod {
			row := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "p", UID: "1"})
			if start != 0 {
				b.Values.Set(row, proto.FieldStart, start)
			}
			b.Values.Set(row, proto.GroupCPU.Time(), now*1e6)
			b.Values.Set(row, proto.CPUUsage.Field(), cpu)
			defer func() { _, rate = b.Values.Get(row, proto.CPUUsage.Delta()) }()
		}
		s.Step(b, now)
		return false
	}
	step(1_000_000, 0, 0, false)
	step(1_080_000, 1, 10, true)
	step(1_095_000, 0, 0, false) // sweeps, and the pod may stay
	if step(1_175_000, 0, 20, true) {
		t.Error("a rate crosses 95 s")
	}
	if !step(1_180_000, 2, 30, true) {
		t.Error("the start from before is still known")
	}
}
