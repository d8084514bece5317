package window

import "github.com/heapstream/heapstream/proto"

// Sample is one value of an entity at its newest tick.
type Sample struct {
	Metric *proto.Metric
	Device proto.Device // of a labelled metric; its Entity means nothing
	Value  proto.Value
}

// Newest appends what an entity has at the newest tick of its track of those metrics that want accepts, in
// the order of the catalogue, devices last, and returns when the entity's counters began (Unix ns, 0 where
// nobody tells). It appends nothing where the entity is not in that tick or the tick is another than tick.
func (w *Window) Newest(dst []Sample, e Entity, tick proto.Tick, want func(*proto.Metric) bool) (samples []Sample, start int64) {
	for _, p := range w.places(e) {
		p.track.mu.RLock()
		if at, ok := p.track.find(e, p.slot); ok && p.track.newest() == tick {
			if c := p.track.grids[at.sec].column(proto.FieldStart); c >= 0 && p.track.grids[at.sec].has(c, int(at.slot)) {
				g := p.track.grids[at.sec]
				start = g.values[c*g.stride+int(at.slot)]
			}
			dst = p.track.newestOf(dst, at, want)
		}
		p.track.mu.RUnlock()
	}
	return dst, start
}

func (t *track) newestOf(dst []Sample, at ref, want func(*proto.Metric) bool) []Sample {
	all := proto.Metrics()
	kind, scraped := kindOf(at.sec), t.records[len(t.records)-1].scraped
	add := func(m *proto.Metric, sec section, slot int, d proto.Device) {
		p := planOf(m)
		g := t.grids[sec]
		var buf [8]cell
		cells := append(buf[:0], make([]cell, len(p.fields))...)
		for i, f := range p.fields {
			if c := g.column(f); c >= 0 {
				cells[i] = cell{c, g.values[c*g.stride+slot], g.has(c, slot)}
			}
		}
		if v, _, ok := p.value(cells, scraped); ok {
			dst = append(dst, Sample{m, d, v})
		}
	}
	for i := range all {
		if m := &all[i]; m.Device == 0 && m.Levels.Has(kind) && want(m) {
			add(m, at.sec, int(at.slot), proto.Device{})
		}
	}
	for i := range all {
		m := &all[i]
		if m.Device == 0 || !want(m) {
			continue
		}
		sec := deviceSection(m.Device)
		g := t.grids[sec]
		if g == nil {
			continue
		}
		for slot, owner := range g.owners {
			if owner == at.owner() {
				add(m, sec, slot, g.device(slot, m.Device))
			}
		}
	}
	return dst
}
