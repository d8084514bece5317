package hawkular

import (
	"regexp"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as data points of Hawkular-Metrics, by tenant and sort. Memory grows to that of the largest
// batch and is reused.
type encoder struct {
	view          sink.View
	tenant        string
	labelToTenant string
	labelNodeID   string
	tagPrefix     string
	drop          []filter

	points []point
	device []proto.Label
	merged []proto.Label
}

// point is a data point, and what its definition is tagged with.
type point struct {
	tenant  string
	counter bool
	id      string
	json    []byte // {"id":…,"data":[…]}
	tags    []byte // JSON; nil for a metric that Heapster had no description of
	shared  bool   // the id does not say whose it is, so several entities write it in turn, each with its tags
}

// filter leaves out samples by their name, or by a label.
type filter struct {
	label string // "" for the name
	value *regexp.Regexp
}

func (f *filter) matches(labels, device []proto.Label, name string) bool {
	if f.label == "" {
		return f.value.MatchString(name)
	}
	for _, list := range [][]proto.Label{labels, device} {
		for _, l := range list {
			if l.Key == f.label && f.value.MatchString(l.Value) {
				return true
			}
		}
	}
	return false
}

// encode appends the points of one rollup.
func (e *encoder) encode(r *proto.Rollup) {
	at := proto.Int(int64(r.Tick))
	for entity := range e.view.Entities(r) {
		label := func(key string) string {
			for _, l := range entity.Labels {
				if l.Key == key {
					return l.Value
				}
			}
			return ""
		}
		tenant := e.tenant
		if v := label(e.labelToTenant); e.labelToTenant != "" && v != "" {
			tenant = v
		}
		before := e.before(entity, label)
	samples:
		for s := range entity.Samples {
			e.device = e.view.AppendDeviceLabels(e.device[:0], s.Device)
			for i := range e.drop {
				if e.drop[i].matches(entity.Labels, e.device, s.Name) {
					continue samples
				}
			}
			id := before + s.Name
			if s.Device != nil {
				id += "/" + s.Device.Name
			}
			b := sink.AppendJSONString([]byte(`{"id":`), id)
			b = at.Append(append(b, `,"data":[{"timestamp":`...))
			b = sink.AppendJSONNumber(append(b, `,"value":`...), proto.Float(s.Value.Float64()))
			p := point{tenant: tenant, counter: s.Counter, id: id, json: append(b, "}]}"...)}
			if s.Metric != nil && !s.Metric.Ours && s.Metric.ID != proto.RestartCount {
				p.tags = e.tags(entity, s, label(proto.LabelContainerName))
				p.shared = entity.Kind == proto.KindSystemContainer // they have no pod_id
			}
			e.points = append(e.points, p)
		}
	}
}

// before is the beginning of the ids of an entity's metrics.
func (e *encoder) before(entity *sink.Entity, label func(string) string) string {
	switch entity.Kind {
	case proto.KindNode:
		node := label(proto.LabelNodename)
		if v := label(e.labelNodeID); e.labelNodeID != "" && v != "" {
			node = v
		}
		return "machine/" + node + "/"
	case proto.KindSystemContainer:
		return "sys_container/" + label(proto.LabelContainerName) + "/" + label(proto.LabelPodID) + "/"
	case proto.KindNamespace:
		return "ns/" + label(proto.LabelNamespaceName) + "/"
	case proto.KindPod:
		return "pod/" + label(proto.LabelPodID) + "/"
	case proto.KindContainer:
		return label(proto.LabelContainerName) + "/" + label(proto.LabelPodID) + "/"
	case proto.KindWorkload: // not Heapster's
		return "workload/" + label(proto.LabelNamespaceName) + "/" + label(proto.LabelWorkloadKind) + "/" + label(proto.LabelWorkloadName) + "/"
	}
	return "cluster/"
}

// tags are what a definition is found by.
func (e *encoder) tags(entity *sink.Entity, s *proto.Sample, container string) []byte {
	own := []proto.Label{{Key: "descriptor_name", Value: s.Name}, {Key: "group_id", Value: container + "/" + s.Name}}
	if units := string(s.Metric.Unit); units != "" {
		own = append(own, proto.Label{Key: "units", Value: units})
	}
	e.merged = sink.MergeLabels(e.merged[:0], own, e.device, entity.Labels)
	for _, l := range entity.Labels {
		if l.Key != proto.LabelLabels {
			continue
		}
		for pair := range strings.SplitSeq(l.Value, e.view.Labels.Separator) {
			if k, v, ok := strings.Cut(pair, ":"); ok {
				e.merged = append(e.merged, proto.Label{Key: e.tagPrefix + k, Value: v})
			}
		}
	}
	return sink.AppendJSONLabels(nil, e.merged)
}
