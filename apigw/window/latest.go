package window

import (
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Reading is what an entity, or one of its devices, has of a metric at the newest tick of its track.
type Reading struct {
	Point
	Device proto.Device  // of a labelled metric; its Entity means nothing
	Span   time.Duration // between the two samples that a rate is of, or the ratio of one; 0 for everything else, sums too
}

// NewestTick returns the newest tick of the track that an entity is in; false for an unknown one.
func (w *Window) NewestTick(e Entity) (newest proto.Tick, ok bool) {
	for _, p := range w.places(e) {
		p.track.mu.RLock()
		if _, in := p.track.find(e, p.slot); in && (!ok || p.track.newest() > newest) {
			newest, ok = p.track.newest(), true
		}
		p.track.mu.RUnlock()
	}
	return newest, ok
}

// Latest appends the readings of a metric that an entity has at its newest tick: one, or for a labelled metric one
// for each device; none where the entity or the metric is not in that tick. Values that stand in for a sample that
// did not advance are among them.
func (w *Window) Latest(dst []Reading, e Entity, m *proto.Metric) []Reading {
	newest, ok := w.NewestTick(e)
	if !ok {
		return dst
	}
	for _, p := range w.places(e) {
		p.track.mu.RLock()
		if at, ok := p.track.find(e, p.slot); ok && p.track.newest() == newest {
			dst = p.track.latest(dst, at, m)
		}
		p.track.mu.RUnlock()
	}
	return dst
}

func (t *track) latest(dst []Reading, at ref, m *proto.Metric) []Reading {
	if m.Device == 0 {
		if r, ok := t.reading(at.sec, int(at.slot), m, false); ok {
			dst = append(dst, r)
		}
		return dst
	}
	sec := deviceSection(m.Device)
	g := t.grids[sec]
	if g == nil {
		return dst
	}
	for slot, owner := range g.owners {
		if owner != at.owner() {
			continue
		}
		if r, ok := t.reading(sec, slot, m, false); ok {
			r.Device = g.device(slot, m.Device)
			dst = append(dst, r)
		}
	}
	return dst
}

// reading computes a metric of one row at the newest tick, or, where it is asked for, when its sample was new.
func (t *track) reading(sec section, slot int, m *proto.Metric, atSample bool) (r Reading, ok bool) {
	g, p := t.grids[sec], planOf(m)
	last := &t.records[len(t.records)-1]
	at := func(f proto.Field) cell {
		c := g.column(f)
		if c < 0 {
			return cell{col: -1}
		}
		return cell{c, g.values[c*g.stride+slot], g.has(c, slot)}
	}
	var buf [8]cell
	cells := buf[:0]
	for _, f := range p.fields {
		cells = append(cells, at(f))
	}
	if atSample {
		g.atSample(m, slot, cells)
	}
	if r.Value, r.StandsIn, ok = p.value(cells, last.scraped); !ok {
		return r, false
	}
	r.Tick = last.tick
	of := proto.MetricByID(m.Of)
	if m.Formula == proto.FormulaRatio && of != nil {
		of = proto.MetricByID(of.Of)
	}
	if of != nil && of.Shape == proto.Counter {
		if span := at(m.Group.Span()); span.ok {
			r.Span = time.Duration(span.v)
		}
	}
	return r, true
}

// Workloads returns the workloads of a namespace that its newest tick has, in the order of their slots.
func (w *Window) Workloads(namespace string) []Entity {
	w.mu.RLock()
	t := w.tracks[trackName{proto.ScopeNamespace, namespace}]
	w.mu.RUnlock()
	if t == nil {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	g := t.grids[secWorkload]
	if g == nil {
		return nil
	}
	all := make([]Entity, 0, len(g.names))
	for slot, name := range g.names {
		if _, gone := g.gone[slot]; gone || g.owners[slot] == nobody {
			continue
		}
		all = append(all, Entity{Kind: proto.KindWorkload, Namespace: namespace, Name: name, OwnerKind: g.secondOf(slot)})
	}
	return all
}
