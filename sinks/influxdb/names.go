package influxdb

import (
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// namer writes rollups as line protocol under the names of one of the catalogue's worlds: a measurement for each
// name, whose field value is an integer where OpenTelemetry has one and else a float. Tags are those that tell
// series of that world apart; their order is the entity's, the device's, the metric's own.
type namer struct {
	world   proto.World
	view    sink.View
	cluster []byte // the first tag

	entity, tags []byte
	merged       []proto.Label
	extras       map[extraName]*proto.Naming
}

type extraName struct {
	name    string
	kind    proto.Kind
	counter bool
}

// maxExtras bounds how many names outside of the catalogue are remembered: applications make them up.
const maxExtras = 10000

func newNamer(w proto.World, common sink.Common) *namer {
	n := &namer{world: w, view: common.View, extras: map[extraName]*proto.Naming{}}
	n.view.Skip = func(m *proto.Metric) bool { return w.Without(m.ID) != "" }
	key := proto.PrometheusCluster
	if w == proto.OTel {
		key = proto.OTelCluster
	}
	if common.ClusterName != "" {
		n.cluster = appendTag(nil, key, common.ClusterName)
	}
	return n
}

func appendTag(dst []byte, key, value string) []byte {
	return appendKey(append(appendKey(append(dst, ','), key), '='), value)
}

func appendTags(dst []byte, labels []proto.Label) []byte {
	for _, l := range labels {
		if l.Value != "" && l.Key != "" {
			dst = appendTag(dst, l.Key, l.Value)
		}
	}
	return dst
}

// encode appends the lines of one rollup, which is message i of its batch.
func (n *namer) encode(l *lines, m *sink.Message, i int) {
	r := m.Rollup
	for entity := range n.view.Entities(r) {
		n.merged = n.world.AppendEntityLabels(n.merged[:0], &r.Table, entity.Row)
		n.entity = appendTags(append(n.entity[:0], n.cluster...), n.merged)
		n.tags = append(n.tags[:0], n.entity...)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				n.tags = append(n.tags[:0], n.entity...)
				if device != nil {
					n.merged = n.world.AppendDeviceLabels(n.merged[:0], device)
					n.tags = appendTags(n.tags, n.merged)
				}
			}
			naming := n.naming(entity.Kind, s)
			if naming == nil {
				continue
			}
			value, name, ok := s.Value.Float64(), naming.Name, true
			if s.Metric != nil {
				if value, ok = naming.Value(&r.Table, entity.Row, s.Value, false); !ok {
					continue
				}
				if s.Name != s.Metric.Name {
					name = s.Name // as the operator renamed it
				}
			}
			l.start, l.from = append(l.start, len(l.text)), append(l.from, i)
			b := append(appendMeasurement(l.text, name), n.tags...)
			b = appendTags(b, naming.Attributes)
			b = append(b, " value="...)
			if naming.Float {
				b = proto.Float(value).Append(b)
			} else {
				b = append(proto.Int(int64(value)).Append(b), 'i')
			}
			b = proto.Int(int64(r.Tick)).Append(append(b, ' '))
			l.text = append(b, "000000\n"...) // milliseconds to nanoseconds
		}
	}
}

// naming is what a sample is called; nil where it does not go out.
func (n *namer) naming(k proto.Kind, s *proto.Sample) *proto.Naming {
	switch {
	case s.Metric != nil && s.Device != nil:
		return n.world.DeviceNaming(s.Metric.ID, k, s.Device)
	case s.Metric != nil:
		return n.world.Naming(s.Metric.ID, k)
	}
	key := extraName{s.Name, k, s.Counter}
	naming, ok := n.extras[key]
	if !ok {
		if len(n.extras) >= maxExtras {
			clear(n.extras)
		}
		key.name = strings.Clone(s.Name)
		naming = n.world.ExtraNaming(key.name, k, s.Counter)
		n.extras[key] = naming
	}
	return naming
}
