package window

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// Entity names what is asked for. Fields that its kind does not need are ignored.
type Entity struct {
	Kind      proto.Kind
	Node      string // of a node or system container
	Namespace string // of a namespace, workload, pod or container
	Pod       string // of a pod or container
	Name      string // of a container, system container or workload
	OwnerKind string // of a workload
}

// Point is one value of a series.
type Point struct {
	Tick     proto.Tick
	Value    proto.Value
	StandsIn bool // an older sample stands in for one that did not advance
}

// Series appends the points of one un-labelled metric of one entity from tick to tick (both included),
// oldest first, to dst. Entities that were on two nodes within the window have the points of both; of two
// points of one tick the one that came to the window last counts. An unknown entity has no points.
func (w *Window) Series(dst []Point, e Entity, metric string, from, to proto.Tick) []Point {
	m := proto.MetricByName(metric)
	if m != nil && m.Device != 0 {
		return dst
	}
	return w.merge(dst, e, func(dst []Point, t *track, at ref) []Point {
		if m != nil {
			return t.series(dst, at.sec, int(at.slot), planOf(m), from, to)
		}
		g := t.grids[secExtra]
		if g == nil {
			return dst
		}
		for slot, name := range g.names {
			if name == metric && g.owners[slot] == at.owner() {
				dst = t.series(dst, secExtra, slot, extraPlan(g.secondOf(slot)), from, to)
			}
		}
		return dst
	})
}

// LabelledSeries appends the points of a labelled metric of that device of the entity whose labels (see
// proto.Device) match, as Series does. Labels beyond Heapster's need not be named.
func (w *Window) LabelledSeries(dst []Point, e Entity, metric string, labels []proto.Label, from, to proto.Tick) []Point {
	m := proto.MetricByName(metric)
	if m == nil || m.Device == 0 {
		return dst
	}
	sec := deviceSection(m.Device)
	return w.merge(dst, e, func(dst []Point, t *track, at ref) []Point {
		g := t.grids[sec]
		if g == nil {
			return dst
		}
		for slot, owner := range g.owners {
			if owner == at.owner() {
				if d := g.device(slot, m.Device); matches(&d, labels) {
					dst = t.series(dst, sec, slot, planOf(m), from, to)
				}
			}
		}
		return dst
	})
}

// Names returns the names of the un-labelled metrics that an entity has a value of at any tick younger
// than from, sorted.
func (w *Window) Names(e Entity, from proto.Tick) []string {
	var names []string
	for _, p := range w.places(e) {
		p.track.mu.RLock()
		if at, ok := p.track.find(e, p.slot); ok {
			names = p.track.names(names, at, from)
		}
		p.track.mu.RUnlock()
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// places returns the tracks that may know an entity, with the slot of the pod where there is one.
func (w *Window) places(e Entity) []place {
	w.mu.RLock()
	defer w.mu.RUnlock()
	one := func(scope proto.Scope, name string) []place {
		if t := w.tracks[trackName{scope, name}]; t != nil {
			return []place{{t, 0}}
		}
		return nil
	}
	switch e.Kind {
	case proto.KindCluster:
		return one(proto.ScopeTotals, "")
	case proto.KindNamespace, proto.KindWorkload:
		return one(proto.ScopeNamespace, e.Namespace)
	case proto.KindNode, proto.KindSystemContainer:
		return one(proto.ScopeNode, e.Node)
	case proto.KindPod, proto.KindContainer:
		return w.pods[podName{e.Namespace, e.Pod}]
	}
	return nil
}

// find returns the row of an entity in a track that is locked. pod is the slot of its pod; it is looked
// at again, since it may have become another's.
func (t *track) find(e Entity, pod int) (ref, bool) {
	sec, name, second, owner := secNone, e.Name, "", noOwner
	switch e.Kind {
	case proto.KindCluster:
		sec, name = secCluster, ""
	case proto.KindNamespace:
		sec, name = secNamespace, e.Namespace
	case proto.KindWorkload:
		sec, second = secWorkload, e.OwnerKind
	case proto.KindNode:
		sec, name = secNode, e.Node
	case proto.KindSystemContainer:
		sec = secSystem
	case proto.KindPod, proto.KindContainer:
		g := t.grids[secPod]
		if g == nil || pod >= len(g.names) || g.names[pod] != e.Pod || g.owners[pod] != noOwner || g.secondOf(pod) != e.Namespace {
			return ref{}, false
		}
		at := ref{secPod, int32(pod)} //nolint:gosec // slots are capped by the codec
		if e.Kind == proto.KindPod {
			return at, true
		}
		sec, owner = secContainer, at.owner()
	default:
		return ref{}, false
	}
	g := t.grids[sec]
	if g == nil {
		return ref{}, false
	}
	for slot, n := range g.names {
		if n == name && g.owners[slot] == owner && g.secondOf(slot) == second {
			return ref{sec, int32(slot)}, true //nolint:gosec // same
		}
	}
	return ref{}, false
}

func (w *Window) merge(dst []Point, e Entity, read func([]Point, *track, ref) []Point) []Point {
	from := len(dst)
	for _, p := range w.places(e) {
		p.track.mu.RLock()
		if at, ok := p.track.find(e, p.slot); ok {
			dst = read(dst, p.track, at)
		}
		p.track.mu.RUnlock()
	}
	for i := from + 1; i < len(dst); i++ {
		if dst[i].Tick <= dst[i-1].Tick {
			return dst[:from+len(oneATick(dst[from:]))]
		}
	}
	return dst
}

// oneATick sorts points by tick and keeps the last of each tick, in place.
func oneATick(points []Point) []Point {
	slices.SortStableFunc(points, func(a, b Point) int { return cmp.Compare(a.Tick, b.Tick) })
	kept := points[:0]
	for i, p := range points {
		if i+1 == len(points) || points[i+1].Tick != p.Tick {
			kept = append(kept, p)
		}
	}
	return kept
}

// plan says which columns a metric is computed from.
type plan struct {
	metric *proto.Metric
	fields []proto.Field
	of     *plan // of a ratio
	extra  string
}

const (
	extraField = proto.Field(1) // the one column of the grid of extras

	extraInt     = "gi"
	extraFloat   = "gf"
	extraCounter = "ci"
	extraFCount  = "cf"
)

func extraType(x *proto.Extra) string {
	switch {
	case x.Counter && x.Value.IsFloat():
		return extraFCount
	case x.Counter:
		return extraCounter
	case x.Value.IsFloat():
		return extraFloat
	}
	return extraInt
}

func extraBits(v proto.Value) int64 {
	if v.IsFloat() {
		return int64(math.Float64bits(v.Float64())) //nolint:gosec // bits are meant
	}
	return v.Int64()
}

func extraPlan(kind string) *plan { return &plan{fields: []proto.Field{extraField}, extra: kind} }

var plans = func() map[proto.MetricID]*plan {
	all := make(map[proto.MetricID]*plan)
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		all[m.ID] = makePlan(m)
	}
	return all
}()

func planOf(m *proto.Metric) *plan { return plans[m.ID] }

// makePlan lists the columns; the first is the metric's own. The last is the flag of its group where it
// has one.
func makePlan(m *proto.Metric) *plan {
	p := &plan{metric: m}
	switch m.Formula {
	case proto.FormulaUptime:
		p.fields = append(p.fields, proto.FieldStart)
	case proto.FormulaRatio:
		p.of = makePlan(proto.MetricByID(m.Of))
		p.fields = append(append(p.fields, m.By.Field()), p.of.fields...)
		return p
	case proto.FormulaNone:
		p.fields = append(p.fields, m.ID.Field())
	default:
		p.fields = append(p.fields, m.ID.Field(), m.Of.Delta(), m.Group.Span())
	}
	if m.Group != proto.GroupNone {
		p.fields = append(p.fields, m.Group.Stale())
	}
	return p
}

type cell struct {
	col int // -1: no such column
	v   int64
	ok  bool
}

// value computes the metric from the cells of its fields, as proto.Table.Value does.
func (p *plan) value(cells []cell, scraped int64) (v proto.Value, standsIn, ok bool) {
	if p.extra != "" {
		switch p.extra {
		case extraFloat, extraFCount:
			return proto.Float(math.Float64frombits(uint64(cells[0].v))), false, cells[0].ok //nolint:gosec // bits are meant
		}
		return proto.Int(cells[0].v), false, cells[0].ok
	}
	m := p.metric
	if m.Formula != proto.FormulaRatio && m.Group != proto.GroupNone {
		standsIn = cells[len(cells)-1].ok
	}
	switch m.Formula {
	case proto.FormulaUptime:
		if !cells[0].ok || scraped < cells[0].v {
			return v, false, false
		}
		return proto.Int((scraped - cells[0].v) / 1e6), standsIn, true
	case proto.FormulaRatio:
		of, stale, ok := p.of.value(cells[1:], scraped)
		if !ok || !cells[0].ok || cells[0].v <= 0 {
			return v, false, false
		}
		return proto.Float(of.Float64() / float64(cells[0].v)), stale && m.Group != proto.GroupNone, true
	}
	if cells[0].ok {
		return m.Unscale(cells[0].v), standsIn, true
	}
	if m.Formula == proto.FormulaNone {
		return v, false, false
	}
	delta, span := cells[1], cells[2]
	if !delta.ok || !span.ok || span.v <= 0 || delta.v < 0 {
		return v, false, false
	}
	return m.Rate(delta.v, span.v), standsIn, true
}

// series appends one row's points, oldest first.
func (t *track) series(dst []Point, sec section, slot int, p *plan, from, to proto.Tick) []Point {
	g := t.grids[sec]
	var buf [8]cell
	cells := append(buf[:0], make([]cell, len(p.fields))...)
	for i, f := range p.fields {
		cells[i].col = g.column(f)
		if c := cells[i].col; c >= 0 {
			cells[i].v, cells[i].ok = g.values[c*g.stride+slot], g.has(c, slot)
		}
	}
	first := len(dst)
	for i := len(t.records) - 1; i >= 0; i-- {
		r := &t.records[i]
		if r.tick < from {
			break
		}
		if i < len(t.records)-1 {
			stepBack(r.changes, sec, slot, cells)
		}
		if r.tick > to {
			continue
		}
		if v, standsIn, ok := p.value(cells, r.scraped); ok {
			dst = append(dst, Point{r.tick, v, standsIn})
		}
	}
	slices.Reverse(dst[first:])
	return dst
}

// sectionBytes is the length of a section's place in the list before the bodies.
const sectionBytes = 5

// body is the changes of one section at one tick.
type body struct {
	slots   int
	columns []byte // bitmap of those that changed
	entries []byte
	size    int // of an entry
	values  []byte
}

// bodyOf finds a section in the changes of a tick; false where nothing changed in it.
func bodyOf(changes []byte, sec section) (body, bool) {
	n := int(changes[0])
	from := 1 + n*sectionBytes
	for i := 1; i < 1+n*sectionBytes; i += sectionBytes {
		end := int(binary.LittleEndian.Uint32(changes[i+1:]))
		if section(changes[i]) != sec {
			from = end
			continue
		}
		if from == end {
			break
		}
		b := changes[from:end]
		d := body{slots: int(binary.LittleEndian.Uint32(b)), size: 3 + 2*int(b[5])}
		columns := (int(b[4]) + 7) / 8
		d.columns, b = b[6:6+columns], b[6+columns:]
		changed := 0
		for _, c := range d.columns {
			changed += bits.OnesCount8(c)
		}
		d.entries, d.values = b[:changed*d.size], b[changed*d.size:]
		return d, true
	}
	return body{}, false
}

// entry returns the code and the changes of the i-th column that changed.
func (d *body) entry(i int) (code byte, b []byte) {
	e := d.entries[i*d.size:]
	if d.size == 3 {
		return e[0], d.values[binary.LittleEndian.Uint16(e[1:]):]
	}
	return e[0], d.values[binary.LittleEndian.Uint32(e[1:]):]
}

// stepBack turns the cells of a row into those of the tick before.
func stepBack(changes []byte, sec section, slot int, cells []cell) {
	d, ok := bodyOf(changes, sec)
	if !ok {
		return
	}
	bitmap := (d.slots + 7) / 8
	for i := range cells {
		c := &cells[i]
		if c.col < 0 || c.col>>3 >= len(d.columns) || d.columns[c.col>>3]&(1<<(c.col&7)) == 0 {
			continue
		}
		code, b := d.entry(rank(d.columns, c.col))
		if code&codePresent != 0 {
			c.ok = slot < d.slots && b[slot>>3]&(1<<(slot&7)) != 0
			b = b[bitmap:]
		}
		width := int(code & codeWidth)
		if width == 0 || slot >= d.slots || b[slot>>3]&(1<<(slot&7)) == 0 {
			continue
		}
		at := bitmap + rank(b, slot)*width
		var u uint64
		for k := width - 1; k >= 0; k-- {
			u = u<<8 | uint64(b[at+k])
		}
		c.v += unzigzag(u) * units[code&codeUnit>>4]
	}
}

// rank counts the bits before a slot.
func rank(bitmap []byte, slot int) (n int) {
	full := slot >> 3
	for full >= 8 {
		n += bits.OnesCount64(binary.LittleEndian.Uint64(bitmap))
		bitmap, full, slot = bitmap[8:], full-8, slot-64
	}
	for _, b := range bitmap[:full] {
		n += bits.OnesCount8(b)
	}
	return n + bits.OnesCount8(bitmap[full]&(1<<(slot&7)-1))
}

func (g *grid) device(slot int, kind proto.DeviceKind) proto.Device {
	d := proto.Device{Kind: kind, Name: g.names[slot]}
	if kind == proto.DeviceAccelerator {
		s := g.secondOf(slot)
		for i := range len(s) {
			if s[i] == 0 {
				d.Make, d.Model = s[:i], s[i+1:]
				break
			}
		}
		return d
	}
	d.Claim = g.secondOf(slot)
	return d
}

// matches reports whether labels are exactly the device's, with or without those that Heapster had not.
func matches(d *proto.Device, labels []proto.Label) bool {
	same := func(own []proto.Label) bool {
		if len(own) != len(labels) {
			return false
		}
		for _, l := range own {
			if !slices.Contains(labels, l) {
				return false
			}
		}
		return true
	}
	if same(d.AppendLabels(nil)) {
		return true
	}
	bare := *d
	bare.Claim = ""
	return d.Claim != "" && same(bare.AppendLabels(nil))
}

// names appends the names of the un-labelled metrics of a row that had a value at any tick after from.
func (t *track) names(dst []string, at ref, from proto.Tick) []string {
	g, slot := t.grids[at.sec], int(at.slot)
	if len(t.records) == 0 || t.newest() < from {
		return dst
	}
	seen := t.seen(at.sec, slot, from)
	had := func(f proto.Field) bool {
		c := g.column(f)
		return c >= 0 && seen[c>>6]&(1<<(c&63)) != 0
	}
	var has func(m *proto.Metric) bool
	has = func(m *proto.Metric) bool {
		switch m.Formula {
		case proto.FormulaUptime:
			return had(proto.FieldStart)
		case proto.FormulaRatio:
			return had(m.By.Field()) && has(proto.MetricByID(m.Of))
		case proto.FormulaNone:
			return had(m.ID.Field())
		}
		return had(m.ID.Field()) || had(m.Of.Delta()) && had(m.Group.Span())
	}
	kind := kindOf(at.sec)
	for i := range proto.Metrics() {
		if m := &proto.Metrics()[i]; m.Device == 0 && m.Levels.Has(kind) && has(m) {
			dst = append(dst, m.Name)
		}
	}
	if x := t.grids[secExtra]; x != nil {
		for slot, owner := range x.owners {
			if owner == at.owner() && t.seen(secExtra, slot, from)[0] != 0 {
				dst = append(dst, x.names[slot])
			}
		}
	}
	return dst
}

// seen returns which columns a row had a value in at any tick from that one on.
func (t *track) seen(sec section, slot int, from proto.Tick) (seen [4]uint64) {
	g := t.grids[sec]
	for c := range g.fields {
		if g.has(c, slot) {
			seen[c>>6] |= 1 << (c & 63)
		}
	}
	for i := len(t.records) - 2; i >= 0 && t.records[i].tick >= from; i-- {
		d, ok := bodyOf(t.records[i].changes, sec)
		if !ok || slot >= d.slots {
			continue
		}
		n := 0
		for c := range 8 * len(d.columns) {
			if d.columns[c>>3]&(1<<(c&7)) == 0 {
				continue
			}
			if code, b := d.entry(n); code&codePresent != 0 && b[slot>>3]&(1<<(slot&7)) != 0 {
				seen[c>>6] |= 1 << (c & 63)
			}
			n++
		}
	}
	return seen
}

func kindOf(sec section) proto.Kind {
	switch sec {
	case secNode:
		return proto.KindNode
	case secSystem:
		return proto.KindSystemContainer
	case secPod:
		return proto.KindPod
	case secContainer:
		return proto.KindContainer
	case secNamespace:
		return proto.KindNamespace
	case secWorkload:
		return proto.KindWorkload
	case secCluster:
		return proto.KindCluster
	}
	return 0
}
