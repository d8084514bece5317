package sink

import (
	"iter"
	"math"
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// View is what a sink sees of rollups: entities with their labels and samples.
//
// It leaves out what is not to be written: shares of namespaces and workloads that travel in the rollup
// of a node (their sums come in rollups of their own); samples that stand in for one that did not
// advance, unless they are part of a sum over pods; values that are not numbers; unless All is set,
// whatever Heapster did not have: further metrics, devices and labels, and workloads; and what the
// operator's filters leave out. Metrics bear the names that the operator gave them. Take it from
// [Options.Common].
type View struct {
	Labels proto.LabelFormat
	All    bool
	// Skip, if set, leaves out metrics of the catalogue. It is asked once per metric.
	Skip func(*proto.Metric) bool

	filter  *filter
	renames []rename

	metrics [kinds][]metric       // of entities, by kind
	devices [deviceKinds][]metric // of devices, by kind
	none    [kinds]bool           // kinds that are not written
	plain   bool                  // samples without a device are written
	labels  []proto.Label         // of the present entity
	extras  map[string]extra
	ready   bool
}

// metric is one of the catalogue and the name it is written under.
type metric struct {
	*proto.Metric
	as string
}

const (
	kinds       = int(proto.KindWorkload) + 1
	deviceKinds = int(proto.DeviceAccelerator) + 1
)

// prepare chooses the metrics, once.
func (v *View) prepare() {
	all := proto.Metrics()
	for i := range all {
		m := metric{&all[i], renamed(v.renames, all[i].Name)}
		if v.Skip != nil && v.Skip(m.Metric) || v.filter != nil && !v.filter.metric.passes(m.Name) {
			continue
		}
		if m.Device != 0 {
			if m.Ours && !v.All {
				continue
			}
			v.devices[m.Device] = append(v.devices[m.Device], m)
			continue
		}
		for k := proto.KindCluster; int(k) < kinds; k++ {
			if m.Levels.Has(k) && (v.All || !m.OursAt(k)) {
				v.metrics[k] = append(v.metrics[k], m)
			}
		}
	}
	for k := proto.KindCluster; int(k) < kinds; k++ {
		v.none[k] = v.filter != nil && !v.filter.kind.passes(k.String())
	}
	v.plain = v.filter.device(nil)
	v.ready = true
}

// Entity is one entity of a rollup: what Heapster called a metric set.
type Entity struct {
	Rollup *proto.Rollup
	Row    int
	Kind   proto.Kind
	Labels []proto.Label // Heapster's, sorted by key; empty values included; valid until the next Entity

	v *View
}

// Entities yields the entities of a rollup that a sink writes, in the order of rows. An entity may turn
// out to have no samples. Not for concurrent use of one View.
func (v *View) Entities(r *proto.Rollup) iter.Seq[*Entity] {
	if !v.ready {
		v.prepare()
	}
	return func(yield func(*Entity) bool) {
		e := Entity{Rollup: r, v: v}
		for row := range r.Entities {
			e.Kind = r.Entities[row].Kind
			switch {
			case e.Kind < proto.KindCluster || int(e.Kind) >= kinds:
				continue // of a newer version
			case r.Scope == proto.ScopeNode && (e.Kind == proto.KindNamespace || e.Kind == proto.KindWorkload):
				continue // this node's share of it
			case e.Kind == proto.KindWorkload && !v.All, v.none[e.Kind]:
				continue
			}
			v.labels = v.Labels.AppendEntityLabels(v.labels[:0], &r.Table, row)
			if !v.filter.entity(r, row, v.labels) {
				continue
			}
			e.Row, e.Labels = row, v.labels
			if !yield(&e) {
				return
			}
		}
	}
}

// sums reports whether the entity is a sum over pods, in which stand-ins have their place.
func (e *Entity) sums() bool {
	return e.Kind == proto.KindCluster || e.Kind == proto.KindNamespace || e.Kind == proto.KindWorkload
}

// Samples yields the entity's samples: metrics of the catalogue in its order, then those of each of its
// devices together, then values outside the catalogue.
func (e *Entity) Samples(yield func(*proto.Sample) bool) {
	t, v, row := &e.Rollup.Table, e.v, e.Row
	var s proto.Sample
	standsIn := [16]bool{}
	if !e.sums() {
		for g := proto.GroupCPU; g <= proto.GroupProcess; g++ {
			standsIn[g] = t.StandsIn(row, g)
		}
	}
	for _, m := range v.metrics[e.Kind] {
		if standsIn[m.Group&15] || !v.plain {
			continue
		}
		value, ok := t.Value(row, m.ID)
		if !ok || !finite(value) {
			continue
		}
		s = proto.Sample{Metric: m.Metric, Name: m.as, Value: value, Counter: m.Shape == proto.Counter}
		if !yield(&s) {
			return
		}
	}
	from, to := t.DevicesOf(row)
	for d := from; d < to; d++ {
		dev := &t.Devices[d]
		if int(dev.Kind) >= deviceKinds || t.DeviceStandsIn(d) {
			continue
		}
		if !v.All && dev.Ours() || !v.filter.device(dev) {
			continue
		}
		for _, m := range v.devices[dev.Kind] {
			value, ok := t.DeviceValue(d, m.ID)
			if !ok || !finite(value) {
				continue
			}
			s = proto.Sample{Metric: m.Metric, Name: m.as, Value: value, Counter: m.Shape == proto.Counter, Device: dev, Row: d}
			if !yield(&s) {
				return
			}
		}
	}
	for i := firstExtra(t.Extras, row); v.plain && i < len(t.Extras) && int(t.Extras[i].Entity) == row; i++ {
		x := &t.Extras[i]
		if !finite(x.Value) {
			continue
		}
		as := v.extra(x.Name)
		if as.skip {
			continue
		}
		s = proto.Sample{Name: as.name, Value: x.Value, Counter: x.Counter}
		if !yield(&s) {
			return
		}
	}
}

// AppendDeviceLabels appends the labels of a sample's device to dst, sorted by key; nothing where it has none.
func (v *View) AppendDeviceLabels(dst []proto.Label, d *proto.Device) []proto.Label {
	if d == nil {
		return dst
	}
	from := len(dst)
	dst = d.AppendLabels(dst)
	if !v.All {
		kept := slices.DeleteFunc(dst[from:], func(l proto.Label) bool { return l.Key == proto.LabelClaim })
		dst = dst[:from+len(kept)]
	}
	return dst
}

func finite(v proto.Value) bool {
	if !v.IsFloat() {
		return true
	}
	f := v.Float64()
	return !math.IsNaN(f) && !math.IsInf(f, 0)
}

func firstExtra(extras []proto.Extra, row int) int {
	i, _ := slices.BinarySearchFunc(extras, row, func(x proto.Extra, row int) int { return int(x.Entity) - row })
	return i
}
