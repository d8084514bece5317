package kafka

import (
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// record is one Kafka message before it is sent; its parts lie in the encoder's memory.
type record struct {
	message    int // index in the batch
	key, value span
	id         string // of the rollup; the header `id` adds the number within it
	number     int    // of the sample within its rollup; -1: the whole of it
}

// span is a piece of the encoder's text.
type span struct{ from, to int }

// encoder makes records of rollups. Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	events  *sink.CommonEvents // of a sink of events; nil for one of rollups
	cluster string             // label cluster_name, where the operator gave one: Heapster had none here
	whole   bool               // format=msgpack: the rollup as it travelled

	text    []byte
	records []record
	tags    []byte // of the present entity, or of its present device: the JSON of MetricsTags
	at      []byte // of the present rollup: the JSON of its time
	device  []proto.Label
	merged  []proto.Label
}

func (e *encoder) reset() { e.text, e.records = e.text[:0], e.records[:0] }

func (e *encoder) bytes(s span) []byte { return e.text[s.from:s.to] }

// encode appends the records of one rollup, which is message i of its batch. The key keeps what is of
// one node, or one namespace, in one partition and so in order.
func (e *encoder) encode(m *sink.Message, i int) {
	if m.Event != nil {
		e.encodeEvent(m, i)
		return
	}
	r := m.Rollup
	key := span{from: len(e.text)}
	e.text = append(e.text, r.Cluster...)
	if r.Name != "" {
		e.text = append(append(e.text, '/'), r.Name...)
	}
	key.to = len(e.text)
	if e.whole {
		value := span{from: len(e.text)}
		e.text = append(e.text, m.Data...)
		value.to = len(e.text)
		e.records = append(e.records, record{message: i, key: key, value: value, id: m.ID, number: -1})
		return
	}
	e.at = r.Tick.Time().AppendFormat(append(e.at[:0], '"'), time.RFC3339Nano)
	e.at = append(e.at, '"')
	number := 0
	for entity := range e.view.Entities(r) {
		var device *proto.Device
		e.tags = e.appendTags(e.tags[:0], entity.Labels, nil)
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.tags = e.appendTags(e.tags[:0], entity.Labels, e.device)
			}
			value := span{from: len(e.text)}
			e.text = e.appendSample(e.text, s)
			value.to = len(e.text)
			e.records = append(e.records, record{message: i, key: key, value: value, id: m.ID, number: number})
			number++
		}
	}
}

// encodeEvent appends the record of one event. The key keeps what is of one namespace in one partition, so the
// states of an event stay in order.
func (e *encoder) encodeEvent(m *sink.Message, i int) {
	ev := m.Event
	if !e.events.Passes(ev) {
		return
	}
	key := span{from: len(e.text)}
	e.text = append(append(append(e.text, ev.Cluster...), '/'), ev.Namespace...)
	key.to = len(e.text)
	if e.whole {
		e.text = append(e.text, m.Data...)
	} else {
		e.text = e.appendEvent(e.text, ev)
	}
	e.records = append(e.records, record{message: i, key: key, value: span{key.to, len(e.text)}, id: m.ID, number: -1})
}

// appendEvent appends an event in eventer's form and order of fields. The time is that of Event.Time.
func (e *encoder) appendEvent(dst []byte, ev *proto.Event) []byte {
	var room [5]proto.Label
	tags := room[:0]
	if e.cluster != "" {
		tags = append(tags, proto.Label{Key: proto.LabelClusterName, Value: e.cluster})
	}
	tags = append(tags, proto.Label{Key: "eventID", Value: ev.UID}, proto.Label{Key: proto.LabelHostname, Value: ev.Host})
	if ev.Involved.Kind == "Pod" {
		tags = append(tags, proto.Label{Key: proto.LabelPodID, Value: ev.Involved.UID}, proto.Label{Key: proto.LabelPodName, Value: ev.Involved.Name})
	}
	dst = append(dst, `{"EventValue":`...)
	dst = sink.AppendJSONString(dst, string(sink.NewEventJSON(ev).Indented()))
	dst = append(dst, `,"EventTimestamp":"`...)
	dst = ev.Time().AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","EventTags":`...)
	dst = sink.AppendJSONLabels(dst, tags)
	return append(dst, '}')
}

// appendSample appends a sample in Heapster's form and order of fields.
func (e *encoder) appendSample(dst []byte, s *proto.Sample) []byte {
	dst = append(dst, `{"MetricsName":`...)
	dst = sink.AppendJSONString(dst, s.Name)
	dst = append(dst, `,"MetricsValue":{"value":`...)
	dst = sink.AppendJSONNumber(dst, s.Value)
	dst = append(dst, `},"MetricsTimestamp":`...)
	dst = append(dst, e.at...)
	dst = append(dst, `,"MetricsTags":`...)
	dst = append(dst, e.tags...)
	return append(dst, '}')
}

// appendTags appends labels as a JSON object with sorted keys: the entity's, the device's over them, and
// cluster_name over all.
func (e *encoder) appendTags(dst []byte, labels, device []proto.Label) []byte {
	e.merged = e.merged[:0]
	if e.cluster != "" {
		e.merged = append(e.merged, proto.Label{Key: proto.LabelClusterName, Value: e.cluster})
	}
	for _, l := range device {
		e.merged = sink.InsertLabel(e.merged, l)
	}
	for _, l := range labels {
		e.merged = sink.InsertLabel(e.merged, l)
	}
	return sink.AppendJSONLabels(dst, e.merged)
}
