package window

import (
	"math"
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// Of the newest tick of a node, and of no older one, it is remembered when each group of each row was sampled.
const (
	stampGroups = int(proto.GroupDevice) // of entities, from GroupNone; a device has one time
	unstamped   = int32(math.MinInt32)
)

// stamp remembers the sample times of r, which was just appended. The caller holds the lock.
func (t *track) stamp(r *proto.Rollup) {
	if t.scope != proto.ScopeNode {
		return
	}
	for s, g := range t.grids {
		width := stampWidth(section(s)) //nolint:gosec // below sections
		if g == nil || width == 0 {
			continue
		}
		if n := len(g.names) * width; cap(g.stamps) < n {
			g.stamps = make([]int32, n)
		} else {
			g.stamps = g.stamps[:n]
		}
		for i := range g.stamps {
			g.stamps[i] = unstamped
		}
	}
	since := func(at int64) int32 {
		ms := at/1e6 - int64(r.Tick)
		if ms <= math.MinInt32 || ms > math.MaxInt32 {
			return unstamped
		}
		return int32(ms)
	}
	for group := proto.GroupCPU; int(group) < stampGroups; group++ {
		c := r.Values.Column(group.Time())
		if c == nil {
			continue
		}
		for row, at := range t.rows {
			if at.sec != secNone && c.Present.Has(row) {
				t.grids[at.sec].stamps[int(at.slot)*stampGroups+int(group)] = since(c.Values[row])
			}
		}
	}
	if c := r.DeviceValues.Column(proto.GroupDevice.Time()); c != nil {
		for row, at := range t.devices {
			if at.sec != secNone && c.Present.Has(row) {
				t.grids[at.sec].stamps[at.slot] = since(c.Values[row])
			}
		}
	}
}

// stampWidth is how many times a row of a section has.
func stampWidth(s section) int {
	switch s {
	case secNode, secSystem, secPod, secContainer:
		return stampGroups
	case secFilesystem, secInterface, secDisk, secAccelerator:
		return 1
	}
	return 0
}

// Wanted is a metric that a [Sweep] reads.
type Wanted struct {
	Metric *proto.Metric
	Unless proto.Field // rows that have this field are passed over; 0: none are
}

// Sweep reads tracks row by row. It is for one goroutine, and best used for many tracks.
type Sweep struct {
	wanted [sections][]columned
}

// columned is what is wanted of a section, with where its columns are in the grid at hand; -1: nowhere.
type columned struct {
	Wanted
	plan   *plan
	cols   [8]int
	unless int
}

// NewSweep prepares to read those metrics that want gives for the kinds of entities.
func NewSweep(want func(k proto.Kind) []Wanted) *Sweep {
	s := &Sweep{}
	seen := map[proto.MetricID]bool{} // of devices, which are asked for once
	for _, k := range []proto.Kind{proto.KindNode, proto.KindSystemContainer, proto.KindPod, proto.KindContainer, proto.KindNamespace, proto.KindWorkload, proto.KindCluster} {
		for _, one := range want(k) {
			sec := sectionOf(0, k)
			if one.Metric.Device != 0 {
				if seen[one.Metric.ID] {
					continue
				}
				seen[one.Metric.ID] = true
				sec = deviceSection(one.Metric.Device)
			}
			s.wanted[sec] = append(s.wanted[sec], columned{Wanted: one, plan: planOf(one.Metric)})
		}
	}
	return s
}

// Visitor is told what a sweep reads, entity by entity: first the entity, then its samples, those of devices last. It
// is called with the track locked, and must not ask the window anything.
type Visitor interface {
	// Entity begins an entity; row is its row in the table of the rollup. false passes over it.
	Entity(row int, e Entity) bool
	// Sample is one of it. at is when it was measured, Unix ms: its tick where it has no time of its own. At one time a
	// sample has one value: of what changed while its time stood still it is the first. d is nil but for a labelled
	// metric; its Entity means nothing.
	Sample(m *proto.Metric, d *proto.Device, v proto.Value, at int64, r Row)
}

// Row is the row that a sample is of: the entity's, also for one of a device.
type Row struct {
	t      *track
	sec    section
	slot   int
	newest int64
}

// Newest is when anything of the node was measured last, by its own clock, Unix ms; the tick where nothing has a time.
func (r Row) Newest() int64 { return r.newest }

// Get is a field of the row.
func (r Row) Get(f proto.Field) (int64, bool) {
	g := r.t.grids[r.sec]
	c := g.column(f)
	if c < 0 || !g.has(c, r.slot) {
		return 0, false
	}
	return g.values[c*g.stride+r.slot], true
}

// Value is a metric of the row, as a sweep tells it.
func (r Row) Value(id proto.MetricID) (proto.Value, bool) {
	reading, ok := r.t.reading(r.sec, r.slot, proto.MetricByID(id), true)
	return reading.Value, ok
}

// Sweep tells v all that the newest tick of a node, of a namespace with its workloads, or of the cluster has. It does
// nothing and returns false where the newest tick is another than tick; 0 is any.
func (w *Window) Sweep(s *Sweep, scope proto.Scope, name string, tick proto.Tick, v Visitor) bool {
	w.mu.RLock()
	t := w.tracks[trackName{scope, name}]
	w.mu.RUnlock()
	if t == nil {
		return false
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.records) == 0 || tick != 0 && t.newest() != tick {
		return false
	}
	tick = t.newest()
	for sec, g := range t.grids {
		if g != nil {
			resolve(s.wanted[sec], g)
		}
	}
	scraped, newest := t.records[len(t.records)-1].scraped, t.lastStamp(tick)
	device := 0
	for row, at := range t.rows {
		if at.sec == secNone {
			continue
		}
		entity := t.entity(at)
		told := v.Entity(row, entity)
		of := Row{t, at.sec, int(at.slot), newest}
		g := t.grids[at.sec]
		if told {
			for i := range s.wanted[at.sec] {
				one := &s.wanted[at.sec][i]
				if value, ok := one.read(g, of.slot, scraped); ok {
					v.Sample(one.Metric, nil, value, g.stampOf(tick, of.slot*stampGroups+int(one.Metric.Group), one.Metric.Group), of)
				}
			}
		}
		for ; device < len(t.devices); device++ { // in the order of the entities
			d := t.devices[device]
			if d.sec == secNone {
				continue
			}
			g := t.grids[d.sec]
			if g.owners[d.slot] != at.owner() {
				break
			}
			if !told || len(s.wanted[d.sec]) == 0 {
				continue
			}
			first, kept := true, proto.Device{}
			for i := range s.wanted[d.sec] {
				one := &s.wanted[d.sec][i]
				if !one.Metric.Levels.Has(entity.Kind) {
					continue
				}
				if value, ok := one.read(g, int(d.slot), scraped); ok {
					if first {
						first, kept = false, g.device(int(d.slot), one.Metric.Device)
					}
					v.Sample(one.Metric, &kept, value, g.stampOf(tick, int(d.slot), proto.GroupDevice), of)
				}
			}
		}
	}
	return true
}

// entity is what a row is of.
func (t *track) entity(at ref) Entity {
	g := t.grids[at.sec]
	name, second := g.names[at.slot], g.secondOf(int(at.slot))
	switch at.sec {
	case secNode:
		return Entity{Kind: proto.KindNode, Node: name}
	case secSystem:
		return Entity{Kind: proto.KindSystemContainer, Node: t.name, Name: name}
	case secPod:
		return Entity{Kind: proto.KindPod, Namespace: second, Pod: name}
	case secContainer:
		pods, pod := t.grids[secPod], int(g.owners[at.slot]&(1<<24-1))
		return Entity{Kind: proto.KindContainer, Namespace: pods.secondOf(pod), Pod: pods.names[pod], Name: name}
	case secNamespace:
		return Entity{Kind: proto.KindNamespace, Namespace: name}
	case secWorkload:
		return Entity{Kind: proto.KindWorkload, Namespace: t.name, OwnerKind: second, Name: name}
	}
	return Entity{Kind: proto.KindCluster}
}

// lastStamp is the newest time of an entity of the track, Unix ms.
func (t *track) lastStamp(tick proto.Tick) int64 {
	last := unstamped
	for _, at := range t.rows {
		if at.sec == secNone {
			continue
		}
		if g, i := t.grids[at.sec], int(at.slot)*stampGroups; i+stampGroups <= len(g.stamps) {
			last = max(last, slices.Max(g.stamps[i:i+stampGroups]))
		}
	}
	if last == unstamped {
		return int64(tick)
	}
	return int64(tick) + int64(last)
}

// stampOf is the time at an index of stamps, Unix ms; the tick where there is none.
func (g *grid) stampOf(tick proto.Tick, i int, group proto.Group) int64 {
	if group == proto.GroupNone || i >= len(g.stamps) || g.stamps[i] == unstamped {
		return int64(tick)
	}
	return int64(tick) + int64(g.stamps[i])
}

// resolve finds the columns of what is wanted.
func resolve(wanted []columned, g *grid) {
	for i := range wanted {
		one := &wanted[i]
		for f, field := range one.plan.fields {
			one.cols[f] = g.column(field)
		}
		one.unless = -1
		if one.Unless != 0 {
			one.unless = g.column(one.Unless)
		}
	}
}

func (c *columned) read(g *grid, slot int, scraped int64) (v proto.Value, ok bool) {
	if c.unless >= 0 && g.has(c.unless, slot) {
		return v, false
	}
	var room [8]cell
	cells := room[:len(c.plan.fields)]
	any := false
	for i := range cells {
		if col := c.cols[i]; col >= 0 && g.has(col, slot) {
			cells[i], any = cell{col, g.values[col*g.stride+slot], true}, true
		}
	}
	if !any {
		return v, false
	}
	g.atSample(c.Metric, slot, cells)
	v, _, ok = c.plan.value(cells, scraped)
	return v, ok
}
