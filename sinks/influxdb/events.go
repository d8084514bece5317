package influxdb

import (
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// eventEncoder writes events as line protocol, a line each: the measurement log/events with the event's JSON
// as the field value, or, withfields, the measurement events with its message and more tags.
//
// The time is that of Event.Time: lastTimestamp, and where there is none (events.k8s.io) what comes nearest.
// Two states with one time and equal tags overwrite each other, as eventer's did: the newer one stays.
type eventEncoder struct {
	common     sink.CommonEvents
	withFields bool
	tags       []proto.Label
}

// encode appends the line of one event, which is message i of its batch.
func (e *eventEncoder) encode(l *lines, ev *proto.Event, i int) {
	if !e.common.Passes(ev) {
		return
	}
	measurement, field, value := "log/events", "value", ""
	tags := append(e.tags[:0], proto.Label{Key: proto.LabelClusterName, Value: e.common.ClusterName}, proto.Label{Key: "uid", Value: ev.UID},
		proto.Label{Key: proto.LabelHostname, Value: ev.Host})
	pod := ev.Involved.Kind == "Pod"
	if pod {
		tags = append(tags, proto.Label{Key: proto.LabelPodID, Value: ev.Involved.UID})
	}
	if e.withFields {
		measurement, field, value = "events", "message", ev.Message
		tags = append(tags, proto.Label{Key: "object_name", Value: ev.Involved.Name}, proto.Label{Key: "type", Value: ev.Type},
			proto.Label{Key: "kind", Value: ev.Involved.Kind}, proto.Label{Key: "component", Value: ev.Component},
			proto.Label{Key: "reason", Value: ev.Reason}, proto.Label{Key: proto.LabelNamespaceName, Value: ev.Namespace})
	} else {
		value = string(sink.NewEventJSON(ev).Indented())
		if pod {
			tags = append(tags, proto.Label{Key: proto.LabelPodName, Value: ev.Involved.Name})
		}
	}
	slices.SortFunc(tags, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) })
	e.tags = tags

	l.start, l.from = append(l.start, len(l.text)), append(l.from, i)
	b := appendMeasurement(l.text, measurement)
	for _, t := range tags {
		if t.Value != "" { // has no place in line protocol
			b = append(appendKey(append(b, ','), t.Key), '=')
			b = appendKey(b, t.Value)
		}
	}
	b = append(appendKey(append(b, ' '), field), '=', '"')
	b = appendQuoted(b, value)
	b = append(b, '"', ' ')
	// An event without any time is at the beginning of 1970, since year 1 cannot be said.
	b = proto.Int(max(0, ev.Time().UnixNano())).Append(b)
	l.text = append(b, '\n')
}

// appendQuoted escapes a string field: quotes and backslashes. A newline stands for itself.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, s[i])
	}
	return dst
}
