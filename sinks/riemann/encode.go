package riemann

import (
	"cmp"
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Fields of Riemann's messages, from its published riemann.proto.
const (
	msgOK     protowire.Number = 2 // bool
	msgError  protowire.Number = 3 // string
	msgEvents protowire.Number = 6 // repeated Event

	eventTime       protowire.Number = 1  // int64, Unix seconds
	eventState      protowire.Number = 2  // string
	eventService    protowire.Number = 3  // string
	eventHost       protowire.Number = 4  // string
	eventText       protowire.Number = 5  // string: description
	eventTags       protowire.Number = 7  // repeated string
	eventTTL        protowire.Number = 8  // float, seconds
	eventAttributes protowire.Number = 9  // repeated Attribute
	eventInteger    protowire.Number = 13 // metric_sint64
	eventDouble     protowire.Number = 14 // metric_d

	attributeKey   protowire.Number = 1 // string
	attributeValue protowire.Number = 2 // string
)

// encoder writes rollups as events of Riemann, each as it stands in a Msg: with its tag and length. Memory grows to
// that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster []proto.Label // attribute cluster_name, where the operator gave one: Heapster had none here
	host    string        // of entities without one: this process's
	state   string
	tags    []string
	ttl     float32

	text     []byte
	ends     []int // of each event
	messages []int // index in the batch, of each event
	rest     []byte
	event    []byte
	device   []proto.Label
	merged   []proto.Label
}

func (e *encoder) reset() {
	e.text, e.ends, e.messages = e.text[:0], e.ends[:0], e.messages[:0]
}

// events are the events [from, to): a Msg of them.
func (e *encoder) events(from, to int) []byte {
	begin := 0
	if from > 0 {
		begin = e.ends[from-1]
	}
	return e.text[begin:e.ends[to-1]]
}

// encode appends the events of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	at := uint64(r.Tick.Time().Unix()) //nolint:gosec // two's complement is what int64 is on the wire
	for entity := range e.view.Entities(r) {
		host := e.host
		for _, l := range entity.Labels {
			if l.Key == proto.LabelHostname && l.Value != "" {
				host = l.Value
			}
		}
		e.setRest(host, entity.Labels, nil)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.setRest(host, entity.Labels, e.device)
			}
			b := protowire.AppendTag(e.event[:0], eventTime, protowire.VarintType)
			b = protowire.AppendVarint(b, at)
			if e.state != "" {
				b = appendString(b, eventState, e.state)
			}
			b = appendString(b, eventService, s.Name)
			b = append(b, e.rest...)
			if s.Value.IsFloat() {
				b = protowire.AppendTag(b, eventDouble, protowire.Fixed64Type)
				b = protowire.AppendFixed64(b, math.Float64bits(s.Value.Float64()))
			} else {
				b = protowire.AppendTag(b, eventInteger, protowire.VarintType)
				b = protowire.AppendVarint(b, protowire.EncodeZigZag(s.Value.Int64()))
			}
			e.add(b, i)
		}
	}
}

// add appends an event of message i. Its bytes lie in e.event, or in what has grown out of it.
func (e *encoder) add(b []byte, i int) {
	e.event = b
	e.text = protowire.AppendTag(e.text, msgEvents, protowire.BytesType)
	e.text = protowire.AppendBytes(e.text, b)
	e.ends = append(e.ends, len(e.text))
	e.messages = append(e.messages, i)
}

// kubernetesEvent appends the event that stands for one of Kubernetes, which is message i of its batch.
func (e *encoder) kubernetesEvent(ev *proto.Event, i int) {
	at := ev.Time()
	state := "warning"
	if ev.Type == "Normal" {
		state = "ok"
	}
	o := &ev.Involved
	b := protowire.AppendTag(e.event[:0], eventTime, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(max(0, at.Unix()))) //nolint:gosec // not negative
	b = appendString(b, eventState, state)
	b = appendString(b, eventService, o.Kind+"."+ev.Reason)
	b = appendString(b, eventHost, cmp.Or(ev.Host, e.host))
	b = appendString(b, eventText, ev.Message)
	e.device = append(e.device[:0], // sorted by key
		proto.Label{Key: "api-version", Value: o.APIVersion}, proto.Label{Key: "component", Value: ev.Component}, proto.Label{Key: "field-path", Value: o.FieldPath},
		proto.Label{Key: "first-timestamp", Value: unix(ev.FirstTime())}, proto.Label{Key: "last-timestamp", Value: unix(at)},
		proto.Label{Key: "name", Value: o.Name}, proto.Label{Key: "namespace", Value: o.Namespace}, proto.Label{Key: "resource-version", Value: o.ResourceVersion},
		proto.Label{Key: "uid", Value: o.UID})
	b = e.appendRest(b, e.device, nil)
	b = protowire.AppendTag(b, eventInteger, protowire.VarintType)
	b = protowire.AppendVarint(b, protowire.EncodeZigZag(int64(ev.Times())))
	e.add(b, i)
}

// unix is a time in Unix seconds, "" where there is none.
func unix(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strconv.FormatInt(t.Unix(), 10)
}

// setRest encodes what all events of an entity, or of one of its devices, have in common.
func (e *encoder) setRest(host string, labels, device []proto.Label) {
	e.rest = e.appendRest(appendString(e.rest[:0], eventHost, host), labels, device)
}

// appendRest appends tags, time to live and attributes.
func (e *encoder) appendRest(b []byte, labels, device []proto.Label) []byte {
	for _, t := range e.tags {
		b = appendString(b, eventTags, t)
	}
	b = protowire.AppendTag(b, eventTTL, protowire.Fixed32Type)
	b = protowire.AppendFixed32(b, math.Float32bits(e.ttl))
	e.merged = sink.MergeLabels(e.merged[:0], e.cluster, device, labels)
	for _, l := range e.merged {
		size := protowire.SizeTag(attributeKey) + protowire.SizeBytes(len(l.Key)) + protowire.SizeTag(attributeValue) + protowire.SizeBytes(len(l.Value))
		b = protowire.AppendTag(b, eventAttributes, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size)) //nolint:gosec // not negative
		b = appendString(b, attributeKey, l.Key)
		b = appendString(b, attributeValue, l.Value)
	}
	return b
}

func appendString(dst []byte, field protowire.Number, s string) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendString(dst, s)
}
