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

// orderly is a stream of what nodes say, the same for every seed, published in another interleaving for each:
// delayed as far as the grace allows, some of it twice, marks between. Pods share names across nodes, stand
// still, restart; nodes are silent for a tick or two. What time decides by design is kept away from: an age of
// 45 s, and whether a node that was silent at the tick before, for which none waits, is in time for this one.
func orderly(t testing.TB, seed uint64, nodes, ticks int) *samples {
	const resolution = 15 * time.Second
	start := day.Add(10 * time.Hour)
	said, order := rand.New(rand.NewPCG(5, 5)), rand.New(rand.NewPCG(seed, 8))
	type event struct {
		at    time.Time
		batch *proto.Batch // nil: a clock mark
	}
	var events []event
	for n := range nodes {
		name, silent := fmt.Sprint("n", n), 0
		sampled, still, cpu, began := start.Add(-10*time.Second), 0, int64(1e9), start.Add(-time.Hour)
		delivered := start // of the node's last batch: its scraper keeps their order
		for k := range ticks {
			tick := start.Add(time.Duration(k) * resolution)
			if silent < 2 && k > 1 && said.IntN(12) == 0 {
				silent++
				continue
			}
			if still < 2 && silent == 0 && said.IntN(4) == 0 {
				still++
			} else {
				still, sampled = 0, tick.Add(-time.Duration(said.IntN(8000))*time.Millisecond)
				cpu += said.Int64N(1e10)
			}
			returns := silent > 0
			silent = 0
			if said.IntN(20) == 0 {
				began, cpu = tick.Add(-time.Second), said.Int64N(1e9)
			}
			b := &proto.Batch{Cluster: testCluster, Node: name, Tick: proto.TickAt(tick, resolution), Resolution: resolution, Source: "test"}
			b.Scraped = tick.UnixNano()
			set := func(row int) {
				b.Values.Set(row, proto.FieldStart, began.UnixNano())
				b.Values.Set(row, proto.GroupCPU.Time(), sampled.UnixNano())
				b.Values.Set(row, proto.GroupMemory.Time(), sampled.UnixNano())
				b.Values.Set(row, proto.CPUUsage.Field(), cpu)
				b.Values.Set(row, proto.MemoryWorkingSet.Field(), cpu/100)
			}
			set(b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: name}))
			for p := range 3 {
				pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Parent: 0, Namespace: fmt.Sprint("ns", p%2), Name: fmt.Sprint("p", p, "-", n%(2+p)), UID: fmt.Sprint(p, n),
					Phase: proto.PhaseRunning, Owner: proto.Owner{Kind: "StatefulSet", Name: fmt.Sprint("s", p%2)}})
				b.Values.Set(pod, proto.FieldBirth, start.Add(-time.Duration(said.IntN(2))*time.Hour).UnixNano())
				set(b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "app", Flags: proto.FlagRunning}))
			}
			at := tick.Add(time.Duration(1000+order.IntN(3000)) * time.Millisecond)
			switch {
			case returns: // nobody waits for it
				at = tick.Add(time.Duration(order.IntN(1000)) * time.Millisecond)
			case order.IntN(15) == 0:
				at = tick.Add(time.Duration(1000+order.IntN(10000)) * time.Millisecond)
			}
			if at.Before(delivered) {
				at = delivered
			}
			delivered = at.Add(time.Millisecond)
			events = append(events, event{at, b})
			for order.IntN(6) == 0 { // the acknowledgement was lost
				events = append(events, event{at.Add(time.Duration(order.IntN(20000)) * time.Millisecond), b})
			}
		}
	}
	for at := start; at.Before(start.Add(time.Duration(ticks) * resolution)); at = at.Add(time.Second) {
		events = append(events, event{at, nil})
	}
	end := start.Add(time.Duration(ticks) * resolution) // the last tick is closed, and none after it
	events = slices.DeleteFunc(events, func(e event) bool { return !e.at.Before(end) })
	order.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	s := newSamples()
	v := &proto.Inventory{Subject: proto.InventoryNodes, Revision: 1, Parts: 1, Resolution: resolution, Grace: proto.Grace(resolution)}
	for n := range nodes {
		v.Nodes = append(v.Nodes, proto.InventoryNode{Name: fmt.Sprint("n", n)})
	}
	s.inventory(t, start, v)
	for _, e := range events {
		if e.batch == nil {
			s.clock(t, e.at)
		} else {
			s.batch(t, e.at, e.batch)
		}
	}
	return s
}

// said is what rollups say, by id, apart from the sequences and times of the messages they were made from.
func said(t testing.TB, outputs []output) map[string]string {
	t.Helper()
	dec, enc, r := proto.NewDecoder(), proto.NewEncoder(), &proto.Rollup{}
	all := map[string]string{}
	for _, o := range outputs {
		if err := dec.Rollup(o.data, r); err != nil {
			t.Fatal(err)
		}
		r.Seq = 0
		r.Totals.ResumeSeq, r.Totals.InventorySeq, r.Totals.StreamTime, r.Totals.JumpEnd = 0, 0, 0, 0
		data, err := enc.Rollup(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[o.id]; twice {
			t.Fatalf("%s is out twice", o.id)
		}
		all[o.id] = string(data)
	}
	return all
}

// Which node speaks first at a tick, how late, how often, and where owners die changes nothing in what
// rollups say.
func TestOrderDoesNotMatter(t *testing.T) {
	const nodes, ticks = 5, 24
	want := said(t, play(t, orderly(t, 0, nodes, ticks).list, nil, nil))
	if len(want) < nodes*ticks/2+ticks {
		t.Fatalf("only %d rollups", len(want))
	}
	contested, standIns := false, false
	for id, data := range want {
		var r proto.Rollup
		if err := proto.NewDecoder().Rollup([]byte(data), &r); err != nil {
			t.Fatal(id, err)
		}
		contested, standIns = contested || r.Totals.Contested > 0, standIns || r.Totals.StandIn > 0 && r.Totals.StandIns > 0
	}
	if !contested || !standIns {
		t.Fatalf("pods contested: %v, nodes standing in: %v: the test says little", contested, standIns)
	}
	for seed := range uint64(25) {
		s := orderly(t, seed+1, nodes, ticks)
		r := rand.New(rand.NewPCG(seed, 10))
		died := map[int]bool{}
		for range 5 {
			died[1+r.IntN(len(s.list))] = true
		}
		got := said(t, play(t, s.list, map[int]bool{1 + r.IntN(len(want)): true}, died))
		for id := range want {
			if got[id] != want[id] {
				t.Fatalf("seed %d: %s says\n%s\nelsewhere\n%s", seed, id, dumpAny(t, got[id]), dumpAny(t, want[id]))
			}
		}
		if len(got) != len(want) {
			t.Fatalf("seed %d: %d rollups, elsewhere %d", seed, len(got), len(want))
		}
	}
}

func dumpAny(t testing.TB, data string) string {
	if data == "" {
		return "nothing"
	}
	return dump(t, []byte(data))
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
