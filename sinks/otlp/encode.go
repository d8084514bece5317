package otlp

import (
	"cmp"
	"math"
	"slices"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// scope is who made the metrics and logs, as OpenTelemetry wants to be told.
const scope = "heapstream"

// encoder writes rollups as blocks of an ExportMetricsServiceRequest: a ResourceMetrics for each entity. Memory grows to
// that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	labels  bool // Kubernetes labels are attributes, too
	rates   bool // rates go out where counters say the same, too
	out     *blocks
	cluster []byte // attribute k8s.cluster.name
	scope   []byte // the field scope of ScopeMetrics

	plan    []*series // by index of the naming
	renamed map[renaming]*series
	extras  map[extraName]*series
	points  []point
	devices []byte // attributes of the present entity's devices, as fields of a data point
	merged  []proto.Label
}

// point is a sample on its way.
type point struct {
	of       *series
	value    float64
	at       int64 // Unix nanoseconds
	from, to int   // of its device's attributes in devices
}

func newEncoder(view sink.View, cluster, version string, out *blocks) *encoder {
	e := &encoder{view: view, out: out, renamed: map[renaming]*series{}, extras: map[extraName]*series{}}
	e.cluster = appendAttribute(nil, 1, proto.OTelCluster, cluster)
	b, at := open(nil, 1)
	e.scope = shut(appendText(appendText(b, 1, scope), 2, version), at)
	e.plan = conventions()
	e.view.Skip = func(m *proto.Metric) bool { return proto.OTel.Without(m.ID) != "" }
	return e
}

// encode appends the blocks of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	for entity := range e.view.Entities(r) {
		e.points, e.devices = e.points[:0], e.devices[:0]
		var device *proto.Device
		from := 0
		for s := range entity.Samples {
			of := e.series(entity.Kind, s)
			if of == nil {
				continue
			}
			value, ok := s.Value.Float64(), true
			if s.Metric != nil {
				value, ok = of.Value(&r.Table, entity.Row, s.Value, e.rates)
			}
			if !ok {
				continue
			}
			if s.Device != device {
				device, from = s.Device, len(e.devices)
				if device != nil {
					e.devices = e.appendDevice(e.devices, device)
				}
			}
			p := point{of: of, value: value, at: measuredAt(r, entity, s)}
			if device != nil {
				p.from, p.to = from, len(e.devices)
			}
			e.points = append(e.points, p)
		}
		if len(e.points) > 0 {
			slices.SortStableFunc(e.points, func(a, b point) int { return cmp.Compare(a.of.order, b.of.order) })
			e.block(r, entity, i)
		}
	}
}

// measuredAt is the time of a sample, in Unix nanoseconds: when it was measured, or the tick where it is a sum over
// pods or told by the API server.
func measuredAt(r *proto.Rollup, entity *sink.Entity, s *proto.Sample) int64 {
	at, ok := int64(0), false
	switch {
	case s.Metric == nil, entity.Kind == proto.KindCluster, entity.Kind == proto.KindNamespace, entity.Kind == proto.KindWorkload:
	case s.Metric.Formula == proto.FormulaUptime:
		return r.Scraped
	case s.Device != nil:
		at, ok = r.DeviceValues.Get(s.Row, proto.GroupDevice.Time())
	case s.Metric.Group != proto.GroupNone:
		at, ok = r.Values.Get(entity.Row, s.Metric.Group.Time())
	}
	if !ok || at <= 0 {
		return int64(r.Tick) * 1e6
	}
	return at
}

// block appends the block of an entity that has the present points.
func (e *encoder) block(r *proto.Rollup, entity *sink.Entity, message int) {
	start, _ := r.Values.Get(entity.Row, proto.FieldStart)
	one := block{from: len(e.out.text), message: message, samples: len(e.points), rollup: r, row: entity.Row}
	b, whole := open(e.out.text, 1)
	b, resource := open(b, 1)
	b = append(b, e.cluster...)
	b = e.appendResource(b, r, entity.Row)
	b = shut(b, resource)
	b, scoped := open(b, 2)
	b = append(b, e.scope...)
	for i := 0; i < len(e.points); {
		of := e.points[i].of
		var metric, data int
		b, metric = open(b, 2)
		b = append(b, of.header...)
		b, data = open(b, of.shape)
		for ; i < len(e.points) && e.points[i].of.order == of.order && e.points[i].of.Name == of.Name; i++ {
			b = e.appendPoint(b, &e.points[i], start)
		}
		b = append(b, of.trailer...)
		b = shut(shut(b, data), metric)
	}
	e.out.text = shut(shut(b, scoped), whole)
	one.to = len(e.out.text)
	e.out.all = append(e.out.all, one)
}

// appendPoint appends a NumberDataPoint.
func (e *encoder) appendPoint(b []byte, p *point, start int64) []byte {
	b, at := open(b, 1)
	if p.of.Started && start > 0 && start <= p.at {
		b = appendFixed(b, 2, uint64(start))
	}
	b = appendFixed(b, 3, uint64(p.at)) //nolint:gosec // a time after 1970
	if p.of.Float {
		b = appendFixed(b, 4, math.Float64bits(p.value))
	} else {
		b = appendFixed(b, 6, uint64(int64(p.value))) //nolint:gosec // two's complement is meant
	}
	b = append(b, p.of.attributes...)
	b = append(b, e.devices[p.from:p.to]...)
	return shut(b, at)
}

// appendDevice appends the attributes of a device as fields of a data point.
func (e *encoder) appendDevice(b []byte, d *proto.Device) []byte {
	e.merged = proto.OTel.AppendDeviceLabels(e.merged[:0], d)
	for _, l := range e.merged {
		b = appendAttribute(b, pointAttributes, l.Key, l.Value)
	}
	return b
}
