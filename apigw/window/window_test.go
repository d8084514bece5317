package window

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// madeUp is a node whose pods come, go and restart, as a rollup a tick.
type madeUp struct {
	rnd         *rand.Rand
	name        string
	pods        []int // serial numbers of the pods that are there
	first, next int
	age         map[string]*counters
}

type counters struct {
	cpu, faults, rx, start int64
	sample                 int64
	delta, span            int64
}

const testResolution = 15 * time.Second

func (n *madeUp) rollup(tick proto.Tick, resolution time.Duration) *proto.Rollup {
	rnd := n.rnd
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: n.name, Tick: tick, Resolution: resolution}
	r.Scraped = tick.Time().UnixNano() + rnd.Int64N(1e9)
	if len(n.pods) > 0 && rnd.IntN(3) == 0 {
		n.pods = slices.Delete(n.pods, 0, 1)
	}
	for rnd.IntN(2) == 0 || len(n.pods) == 0 {
		n.pods = append(n.pods, n.next)
		n.next++
	}
	if rnd.IntN(8) == 0 {
		n.pods[rnd.IntN(len(n.pods))] = n.first + rnd.IntN(n.next-n.first) // an old one comes back, or a name appears twice
	}
	if rnd.IntN(4) == 0 {
		rnd.Shuffle(len(n.pods), func(i, j int) { n.pods[i], n.pods[j] = n.pods[j], n.pods[i] })
	}
	set := func(row int, key string) {
		c := n.age[key]
		if c == nil || rnd.IntN(20) == 0 {
			c = &counters{start: tick.Time().UnixNano(), sample: tick.Time().UnixNano()}
			n.age[key] = c
		} else if rnd.IntN(4) > 0 {
			d, s := rnd.Int64N(1e11), max(1, tick.Time().UnixNano()-c.sample-rnd.Int64N(2)*1e9)
			c.cpu, c.faults, c.rx = c.cpu+d, c.faults+rnd.Int64N(100), c.rx+rnd.Int64()>>rnd.IntN(60)
			c.delta, c.span, c.sample = d, s, c.sample+s
		} else {
			r.Values.Set(row, proto.GroupCPU.Stale(), 1)
		}
		v := &r.Values
		v.Set(row, proto.FieldStart, c.start)
		v.Set(row, proto.CPUUsage.Field(), c.cpu)
		v.Set(row, proto.GroupCPU.Time(), c.sample)
		if c.span > 0 {
			v.Set(row, proto.CPUUsage.Delta(), c.delta)
			v.Set(row, proto.GroupCPU.Span(), c.span)
		}
		v.Set(row, proto.MemoryWorkingSet.Field(), rnd.Int64N(1e6)*4096)
		v.Set(row, proto.MemoryLimit.Field(), 1<<30)
		if rnd.IntN(3) > 0 {
			v.Set(row, proto.MemoryPageFaultsRate.Field(), rnd.Int64N(1e6))
		}
		if rnd.IntN(5) == 0 {
			v.Set(row, proto.MemoryUsage.Field(), rnd.Int64()-rnd.Int64())
		}
		v.Set(row, proto.Field(250), 1) // of a version to come
	}
	node := r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: n.name, Parent: -1})
	set(node, "")
	r.Values.Set(node, proto.CPUNodeAllocatable.Field(), 4000*rnd.Int64N(2))
	r.Values.Set(node, proto.MemoryNodeAlloc.Field(), 1<<33)
	for i := range rnd.IntN(3) {
		set(r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: fmt.Sprint("sys-", i), Parent: 0}), fmt.Sprint("sys", i))
	}
	device := func(row int, d proto.Device, field proto.Field) {
		d.Entity = int32(row)
		i := r.AddDevice(d)
		r.DeviceValues.Set(i, field, rnd.Int64N(1e9))
		r.DeviceValues.Set(i, proto.GroupDevice.Time(), r.Scraped)
		if rnd.IntN(3) == 0 {
			r.DeviceValues.Set(i, proto.GroupDevice.Stale(), 1)
		}
	}
	seen := map[int]bool{}
	for _, serial := range n.pods {
		if seen[serial] {
			continue
		}
		seen[serial] = true
		pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: fmt.Sprint("pod-", serial), Namespace: fmt.Sprint("ns-", serial%3), Parent: 0})
		set(pod, fmt.Sprint(serial))
		device(pod, proto.Device{Kind: proto.DeviceFilesystem, Name: "Volume:data", Claim: "claim"}, proto.FilesystemUsage.Field())
		device(pod, proto.Device{Kind: proto.DeviceInterface, Name: "eth0"}, proto.InterfaceRx.Field())
		for c := range rnd.IntN(3) {
			row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", c), Parent: int32(pod)})
			set(row, fmt.Sprint(serial, "/", c))
			device(row, proto.Device{Kind: proto.DeviceFilesystem, Name: "/"}, proto.FilesystemUsage.Field())
			if rnd.IntN(2) == 0 {
				device(row, proto.Device{Kind: proto.DeviceAccelerator, Name: "a", Make: "m", Model: "o"}, proto.AcceleratorDuty.Field())
			}
			x := proto.Extra{Entity: int32(row), Name: "custom/x", Value: proto.Float(rnd.Float64())}
			if rnd.IntN(3) == 0 {
				x.Value, x.Counter = proto.Int(-rnd.Int64()), true
			}
			r.Extras = append(r.Extras, x)
		}
	}
	return r
}

// entityOf names a row as readers do.
func entityOf(r *proto.Rollup, row int) Entity {
	e := &r.Entities[row]
	switch e.Kind {
	case proto.KindContainer:
		pod := &r.Entities[e.Parent]
		return Entity{Kind: e.Kind, Namespace: pod.Namespace, Pod: pod.Name, Name: e.Name}
	case proto.KindPod:
		return Entity{Kind: e.Kind, Namespace: e.Namespace, Pod: e.Name}
	case proto.KindSystemContainer:
		return Entity{Kind: e.Kind, Node: r.Name, Name: e.Name}
	case proto.KindWorkload:
		return Entity{Kind: e.Kind, Namespace: e.Namespace, Name: e.Name, OwnerKind: e.Owner.Kind}
	case proto.KindNamespace:
		return Entity{Kind: e.Kind, Namespace: e.Name}
	case proto.KindCluster:
		return Entity{Kind: e.Kind}
	}
	return Entity{Kind: e.Kind, Node: e.Name}
}

type seriesName struct {
	e      Entity
	metric string
	device string
}

// reference is what the window should answer: every sample of every rollup younger than the window.
func reference(rollups []*proto.Rollup, oldest proto.Tick) map[seriesName][]Point {
	all := map[seriesName][]Point{}
	for _, r := range rollups {
		if r.Tick <= oldest {
			continue
		}
		for row := range r.Entities {
			if r.Scope == proto.ScopeNode && (r.Entities[row].Kind == proto.KindNamespace || r.Entities[row].Kind == proto.KindWorkload) {
				continue
			}
			for s := range r.Samples(row) {
				n := seriesName{e: entityOf(r, row), metric: s.Name}
				if s.Device != nil {
					n.device = fmt.Sprint(s.Device.AppendLabels(nil))
				}
				all[n] = append(all[n], Point{r.Tick, s.Value, s.StandsIn})
			}
		}
	}
	return all
}

// check compares every series of the reference with the window's, and that the window names no metric
// that the reference does not have.
func check(t *testing.T, w *Window, rollups []*proto.Rollup, oldest proto.Tick) {
	t.Helper()
	want := reference(rollups, oldest)
	names := map[Entity][]string{}
	labels := map[string][]proto.Label{}
	for _, r := range rollups {
		for i := range r.Devices {
			l := r.Devices[i].AppendLabels(nil)
			labels[fmt.Sprint(l)] = l
		}
	}
	for n, points := range want {
		var got []Point
		if n.device == "" {
			got = w.Series(nil, n.e, n.metric, oldest+1, 1<<62)
			names[n.e] = append(names[n.e], n.metric)
		} else {
			got = w.LabelledSeries(nil, n.e, n.metric, labels[n.device], oldest+1, 1<<62)
		}
		if !slices.Equal(got, points) {
			t.Fatalf("%+v\n got %v\nwant %v", n, got, points)
		}
	}
	for e, list := range names {
		slices.Sort(list)
		got := w.Names(e, oldest+1)
		for _, n := range list {
			if !slices.Contains(got, n) {
				t.Fatalf("names of %+v: %v lack %q", e, got, n)
			}
		}
		for _, n := range got {
			if !slices.Contains(list, n) && len(w.Series(nil, e, n, oldest+1, 1<<62)) > 0 {
				t.Fatalf("%+v has a series %q that the reference lacks", e, n)
			}
		}
	}
}

func TestWindowEqualsNaiveModel(t *testing.T) {
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		span := 5 * time.Minute
		w := New(span)
		nodes := []*madeUp{{rnd: rnd, name: "n1", age: map[string]*counters{}}, {rnd: rnd, name: "n2", age: map[string]*counters{}, first: 1000, next: 1000}}
		var rollups []*proto.Rollup
		tick, resolution := proto.TickAt(time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC), testResolution), testResolution
		for step := range 60 {
			if step%25 == 24 {
				resolution = []time.Duration{5 * time.Second, 10 * time.Second, time.Minute}[rnd.IntN(3)]
			}
			tick = tick.Add(1+max(0, rnd.IntN(12)-9), resolution)
			for _, n := range nodes {
				if rnd.IntN(15) == 0 {
					continue // silent at this tick
				}
				r := n.rollup(tick, resolution)
				rollups = append(rollups, r)
				if !w.Append(r) {
					t.Fatal("a new tick was left out")
				}
				if rnd.IntN(5) == 0 && w.Append(r) {
					t.Fatal("a tick was taken in twice")
				}
			}
			w.Trim(tick.Time())
			oldest := tick - proto.Tick(span.Milliseconds())
			rollups = slices.DeleteFunc(rollups, func(r *proto.Rollup) bool { return r.Tick <= oldest })
			if step%6 == 5 {
				check(t, w, rollups, oldest)
			}
		}
		w.Trim(tick.Time().Add(span))
		if len(w.tracks) != 0 || len(w.pods) != 0 {
			t.Fatalf("%d tracks and %d pods are left of a window that has passed", len(w.tracks), len(w.pods))
		}
	}
}

func TestPastFillsInBehindTheNewestTick(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	n := &madeUp{rnd: rnd, name: "n1", age: map[string]*counters{}}
	first := proto.TickAt(time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC), testResolution)
	var rollups []*proto.Rollup
	for i := range 20 {
		rollups = append(rollups, n.rollup(first.Add(i, testResolution), testResolution))
	}
	w := New(15 * time.Minute)
	w.Seed()
	w.Append(rollups[14])
	check(t, w, rollups[14:15], first-1)
	for _, r := range rollups[:14] {
		w.Append(r)
		check(t, w, rollups[14:15], first-1) // the newest is served all the while
	}
	for i, r := range rollups[14:] {
		w.Append(r)
		check(t, w, rollups[:15+i], first-1)
	}
	w.Settle()
	if w.Append(rollups[3]) {
		t.Error("an old tick was taken in after the past was settled")
	}
	check(t, w, rollups, first-1)
}

func TestColumnsFitAByte(t *testing.T) {
	n := 0
	for _, k := range knownFields {
		if k {
			n++
		}
	}
	if n > 255 {
		t.Errorf("%d columns are known; a directory entry holds 255", n)
	}
}
