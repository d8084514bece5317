package aggregator

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// randomSamples is a SAMPLES stream in which everything goes wrong that may: batches late, twice, out of
// order between nodes, far too late; nodes silent, restarted, gone and back; samples that do not advance,
// clocks set back, pods that come and go and move; inventories that change, in parts; the bus away for
// minutes; append times that fall. Equal seeds give equal streams.
func randomSamples(t testing.TB, seed uint64, nodes, minutes int) *samples {
	r := rand.New(rand.NewPCG(seed, 7))
	const resolution = 15 * time.Second
	start := day.Add(10 * time.Hour)
	type event struct {
		at time.Time
		do func(at time.Time)
	}
	var events []event
	s := newSamples()
	add := func(at time.Time, do func(at time.Time)) { events = append(events, event{at, do}) }
	revision := uint64(0)
	for m := 0; m < minutes; m += 1 + r.IntN(3) {
		add(start.Add(time.Duration(m)*time.Minute+time.Duration(r.IntN(60))*time.Second), func(at time.Time) {
			revision++
			v := &proto.Inventory{Subject: proto.InventoryNodes, Revision: revision, Parts: 2, Resolution: resolution, Grace: proto.Grace(resolution)}
			for n := range nodes {
				if r.IntN(10) > 0 {
					v.Nodes = append(v.Nodes, proto.InventoryNode{Name: fmt.Sprint("n", n)})
				}
			}
			s.inventory(t, at, v)
			v.Part, v.Nodes = 1, nil
			if r.IntN(5) > 0 {
				s.inventory(t, at, v)
			}
			v = &proto.Inventory{Subject: proto.InventoryOwners, Revision: revision, Parts: 1, Resolution: resolution}
			v.Owners = append(v.Owners, proto.InventoryOwner{Namespace: "ns0", Object: proto.Owner{Kind: "ReplicaSet", Name: "r1"},
				Owner: proto.Owner{Kind: "Deployment", Name: fmt.Sprint("d", r.IntN(2))}})
			s.inventory(t, at, v)
		})
	}
	for c := range minutes * 10 {
		if r.IntN(10) > 0 {
			add(start.Add(time.Duration(c)*6*time.Second), func(at time.Time) { s.clock(t, at) })
		}
	}
	awayFrom := time.Duration(minutes/3) * time.Minute
	awayTo := awayFrom + time.Duration(r.IntN(240))*time.Second
	for n := range nodes {
		name := fmt.Sprint("n", n)
		started := start.Add(-time.Hour)
		cpu, sampled := int64(0), start.Add(-time.Minute)
		silentUntil := time.Time{}
		for tick := start; tick.Before(start.Add(time.Duration(minutes) * time.Minute)); tick = tick.Add(resolution) {
			if tick.Before(silentUntil) {
				continue
			}
			if r.IntN(25) == 0 {
				silentUntil = tick.Add(time.Duration(r.IntN(150)) * time.Second)
			}
			if r.IntN(4) > 0 {
				step := time.Duration(10+r.IntN(10)) * time.Second
				if r.IntN(30) == 0 {
					step = -step
				}
				sampled = sampled.Add(step)
				cpu += r.Int64N(1e10)
			}
			if r.IntN(40) == 0 {
				started, cpu = tick, r.Int64N(1e9)
			}
			if r.IntN(40) == 0 {
				cpu /= 2
			}
			b := &proto.Batch{Cluster: testCluster, Node: name, Tick: proto.TickAt(tick, resolution), Resolution: resolution, Source: "test"}
			b.Scraped = tick.UnixNano()
			set := func(row int) {
				b.Values.Set(row, proto.FieldStart, started.UnixNano())
				b.Values.Set(row, proto.GroupCPU.Time(), sampled.UnixNano())
				b.Values.Set(row, proto.GroupMemory.Time(), sampled.UnixNano())
				b.Values.Set(row, proto.CPUUsage.Field(), cpu)
				b.Values.Set(row, proto.MemoryUsage.Field(), r.Int64N(1e9))
				b.Values.Set(row, proto.MemoryPageFaults.Field(), cpu/1000)
			}
			set(b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: name}))
			eth := b.AddDevice(proto.Device{Entity: 0, Kind: proto.DeviceInterface, Name: "eth0"})
			b.DeviceValues.Set(eth, proto.GroupDevice.Time(), sampled.UnixNano())
			b.DeviceValues.Set(eth, proto.InterfaceRx.Field(), cpu/7)
			for p := range 4 {
				if r.IntN(5) == 0 {
					continue
				}
				pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprint("ns", p%2), Name: fmt.Sprint("p", p, "-", n), UID: fmt.Sprint(p, n, r.IntN(20) == 0),
					Owner: proto.Owner{Kind: "ReplicaSet", Name: fmt.Sprint("r", p%3)}})
				c := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "app"})
				set(c)
				b.Values.Set(c, proto.CPURequest.Field(), 100)
			}
			at := tick.Add(time.Duration(r.IntN(4000)) * time.Millisecond)
			switch r.IntN(30) {
			case 0:
				at = at.Add(time.Duration(r.IntN(60)) * time.Second) // late
			case 1:
				at = at.Add(-25 * time.Second) // ahead
			}
			if off := at.Sub(start); off >= awayFrom && off < awayTo {
				at = start.Add(awayTo + time.Duration(r.IntN(2000))*time.Millisecond + off/1000)
			}
			copies := 1
			if r.IntN(20) == 0 {
				copies = 2
			}
			for i := range copies {
				add(at.Add(time.Duration(i)*time.Duration(r.IntN(30000))*time.Millisecond), func(at time.Time) { s.batch(t, at, b) })
			}
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	for _, e := range events {
		if off := e.at.Sub(start); off >= awayFrom && off < awayTo {
			continue
		}
		at := e.at
		if r.IntN(50) == 0 {
			at = at.Add(-time.Duration(r.IntN(3000)) * time.Millisecond) // the stream's leader changed
		}
		e.do(at)
	}
	return s
}

// Whatever the messages are: the same ones give the same bytes once, wherever owners die.
func TestOutputIsAFunctionOfSamples(t *testing.T) {
	for seed := range uint64(3) {
		s := randomSamples(t, seed, 4, 16)
		want := play(t, s.list, nil, nil)
		totals := 0
		for _, o := range want {
			if o.scope == proto.ScopeTotals {
				totals++
			}
		}
		if totals < 40 {
			t.Fatalf("seed %d: only %d ticks were closed", seed, totals)
		}
		sameOutputs(t, fmt.Sprint("seed ", seed, ", again"), want, play(t, s.list, nil, nil))
		r := rand.New(rand.NewPCG(seed, 9))
		for range 4 {
			publishes, messages := map[int]bool{}, map[int]bool{}
			for range 12 {
				publishes[1+r.IntN(len(want))] = true
				messages[1+r.IntN(len(s.list))] = true
			}
			what := fmt.Sprintf("seed %d, owners died after publishes %v and messages %v", seed, publishes, messages)
			sameOutputs(t, what, want, play(t, s.list, publishes, messages))
		}
	}
}

// No rate is negative or absurd, whatever counters and clocks do.
func TestRatesAreNeverNegative(t *testing.T) {
	s := randomSamples(t, 99, 4, 16)
	dec, r := proto.NewDecoder(), &proto.Rollup{}
	rates := 0
	for _, o := range play(t, s.list, nil, nil) {
		if err := dec.Rollup(o.data, r); err != nil {
			t.Fatal(err)
		}
		for row := range r.Entities {
			v, ok := r.Value(row, proto.CPUUsageRate)
			if !ok {
				continue
			}
			rates++
			if v.Int64() < 0 || v.Int64() > 1e5 {
				t.Fatalf("rollup %q, row %d: cpu/usage_rate %s", o.id, row, v)
			}
		}
	}
	if rates < 100 {
		t.Fatalf("only %d rates", rates)
	}
}
