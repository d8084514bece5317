package customapi

import (
	"cmp"
	"iter"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Source is one cluster, as *view.Cluster has it.
type Source interface {
	// Objects yields what there is of a kind in a namespace, sorted; Object is one of them.
	Objects(kind proto.Kind, namespace string) iter.Seq[view.Object]
	Object(e window.Entity) (view.Object, bool)
	// Latest appends what an entity has of a metric at its newest tick, a reading for each device of a labelled one;
	// Recent the points of one series in the last ticks.
	Latest(dst []window.Reading, e window.Entity, m *proto.Metric) []window.Reading
	Recent(dst []window.Point, e window.Entity, m *proto.Metric, device *proto.Device, span time.Duration) []window.Point
	// Resolution is the distance between ticks, 0 before the first; Span how much of the past is remembered.
	Resolution() time.Duration
	Span() time.Duration
}

// measured is a value with what is said of it.
type measured struct {
	value  resource.Quantity
	at     time.Time
	span   *int64 // seconds that the value is of; nil for one of a moment
	labels []proto.Label
}

// reader answers one request; it is not for use by several goroutines.
type reader struct {
	source   Source
	q        query
	readings []window.Reading
	points   []window.Point
}

// of returns what the query makes of an entity: a value for each of its devices that want accepts, or one without
// labels. It stays valid until the next call.
func (r *reader) of(e window.Entity, want func([]proto.Label) bool) (all []measured) {
	r.readings = r.source.Latest(r.readings[:0], e, r.q.metric)
	for i := range r.readings {
		latest := &r.readings[i]
		m := measured{at: latest.Tick.Time()}
		var device *proto.Device
		if r.q.metric.Device != 0 {
			device = &latest.Device
			m.labels = deviceLabels(device)
		}
		if !want(m.labels) {
			continue
		}
		values := []window.Point{latest.Point}
		span := latest.Span
		if r.q.do != newest {
			span = r.q.span
			r.points = r.source.Recent(r.points[:0], e, r.q.metric, device, span)
			values = r.points
		}
		var ok bool
		if m.value, ok = reduce(values, r.q.do, r.q.percent); !ok {
			continue
		}
		if span > 0 {
			seconds := int64(math.Round(span.Seconds()))
			m.span = &seconds
		}
		all = append(all, m)
	}
	return all
}

// deviceLabels are a device's own, sorted, with values that can be selected by.
func deviceLabels(d *proto.Device) []proto.Label {
	all := d.AppendLabels(nil)
	for i := range all {
		all[i].Value = selectable(all[i].Value)
	}
	return all
}

// selectable makes a value one that a label may have: what may not be in it becomes a dash, what may not stand at an end
// is left out, and / alone is called root.
func selectable(value string) string {
	if value == "/" {
		return "root"
	}
	inner := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
	}
	value = strings.Map(func(r rune) rune {
		if inner(r) || r == '_' || r == '.' {
			return r
		}
		return '-'
	}, value)
	outer := func(r rune) bool { return !inner(r) }
	value = strings.TrimFunc(value, outer)
	return strings.TrimRightFunc(value[:min(len(value), validation.LabelValueMaxLength)], outer)
}

// reduce makes one quantity of points, which it puts into another order.
func reduce(points []window.Point, do function, percent int) (q resource.Quantity, ok bool) {
	if len(points) == 0 {
		return q, false
	}
	compare := func(a, b window.Point) int {
		if !a.Value.IsFloat() && !b.Value.IsFloat() {
			return cmp.Compare(a.Value.Int64(), b.Value.Int64())
		}
		return cmp.Compare(a.Value.Float64(), b.Value.Float64())
	}
	switch do {
	case newest:
		return quantity(points[len(points)-1].Value)
	case largest:
		return quantity(slices.MaxFunc(points, compare).Value)
	case smallest:
		return quantity(slices.MinFunc(points, compare).Value)
	case percentile:
		slices.SortFunc(points, compare)
		return quantity(points[rank(len(points), percent)].Value)
	}
	return average(points)
}

// rank is the index of the percentile among n sorted values: the nearest rank as InfluxDB counts it.
func rank(n, percent int) int {
	return min(max((2*n*percent+100)/200-1, 0), n-1)
}

// average is exact for integers, to a thousandth.
func average(points []window.Point) (resource.Quantity, bool) {
	if slices.ContainsFunc(points, func(p window.Point) bool { return p.Value.IsFloat() }) {
		sum := 0.0
		for _, p := range points {
			sum += p.Value.Float64()
		}
		return quantity(proto.Float(sum / float64(len(points))))
	}
	const small = 1 << 40 // as many of them as a window can hold add up to what fits
	var sum int64
	var large big.Int
	for _, p := range points {
		if v := p.Value.Int64(); -small < v && v < small {
			sum += v
		} else {
			large.Add(&large, big.NewInt(v))
		}
	}
	large.Add(&large, big.NewInt(sum))
	return milli(new(big.Rat).SetFrac(&large, big.NewInt(int64(len(points)))))
}

// quantity returns a value as Kubernetes writes numbers; false for what is no number.
func quantity(v proto.Value) (resource.Quantity, bool) {
	if !v.IsFloat() {
		return *resource.NewQuantity(v.Int64(), resource.DecimalSI), true
	}
	r := new(big.Rat)
	if r.SetFloat64(v.Float64()) == nil {
		return resource.Quantity{}, false
	}
	return milli(r)
}

// milli rounds to a thousandth, halves away from zero; beyond what a quantity holds in thousandths, to the unit.
func milli(r *big.Rat) (resource.Quantity, bool) {
	round := func(scale int64) *big.Int {
		num := new(big.Int).Mul(r.Num(), big.NewInt(2*scale))
		num.Add(num, new(big.Int).Mul(r.Denom(), big.NewInt(int64(r.Sign()))))
		return num.Quo(num, new(big.Int).Mul(r.Denom(), big.NewInt(2)))
	}
	if m := round(1000); m.IsInt64() {
		return *resource.NewMilliQuantity(m.Int64(), resource.DecimalSI), true
	}
	if u := round(1); u.IsInt64() {
		return *resource.NewQuantity(u.Int64(), resource.DecimalSI), true
	}
	return resource.Quantity{}, false
}
