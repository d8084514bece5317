package influxdb

import (
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// namer writes rollups as line protocol under the names of one of the catalogue's worlds: a measurement for each
// name, whose field value is an integer where OpenTelemetry has one and else a float. Tags are those that tell
// series of that world apart; their order is the entity's, the device's, the metric's own.
type namer struct {
	world   proto.World
	names   *sink.Names
	view    sink.View
	cluster []byte // the first tag

	entity, tags []byte
	merged       []proto.Label
}

func newNamer(w proto.World, common sink.Common) *namer {
	n := &namer{world: w, names: sink.NewNames(w), view: common.View}
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
			named, ok := n.names.Of(entity, s)
			if !ok {
				continue
			}
			l.start, l.from = append(l.start, len(l.text)), append(l.from, i)
			b := append(appendMeasurement(l.text, named.Name), n.tags...)
			b = appendTags(b, named.Naming.Attributes)
			b = append(b, " value="...)
			if named.Naming.Float {
				b = proto.Float(named.Value).Append(b)
			} else {
				b = append(proto.Int(int64(named.Value)).Append(b), 'i')
			}
			b = proto.Int(int64(r.Tick)).Append(append(b, ' '))
			l.text = append(b, "000000\n"...) // milliseconds to nanoseconds
		}
	}
}
