package nats

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// overhead is what a message has beside body and id: the header's frame, and the head of a body in parts.
const overhead = 512

// encoder makes messages of rollups and events. Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster string
	subject template
	whole   bool // format=msgpack
	most    int  // bytes of a body

	text    []byte
	parts   []part
	out     []byte // of body
	devices []byte // of the present entity
	device  []proto.Label
	ends    []entity
}

// part is one message.
type part struct {
	subject, id string
	message     int // index in the batch
	samples     int
	from, to    int // in text; equal where it is the batch's message as it is
	head        string
}

// entity is the end of one in text, and how many samples it has.
type entity struct{ to, samples int }

func (e *encoder) reset(most int) {
	e.text, e.parts, e.most = e.text[:0], e.parts[:0], most
}

// way is how a message that is too large can be made smaller.
func (e *encoder) way() string {
	if e.whole {
		return ", or give format=json, which comes in parts"
	}
	return ", or leave metrics or labels out by `filter`"
}

// body is part i; it is valid until the next call.
func (e *encoder) body(i int, batch []sink.Message) []byte {
	p := &e.parts[i]
	if p.from == p.to {
		return batch[p.message].Data
	}
	e.out = append(append(e.out[:0], p.head...), e.text[p.from:p.to]...)
	if p.head != "" {
		e.out = append(e.out, "]}"...)
	}
	return e.out
}

// rollup appends the messages of one, which is message i of its batch.
func (e *encoder) rollup(m *sink.Message, i int) {
	r := m.Rollup
	kind := scopes[r.Scope]
	node, namespace := "", ""
	switch r.Scope {
	case proto.ScopeNode:
		node = r.Name
	case proto.ScopeNamespace:
		namespace = r.Name
	}
	subject := e.subject.of(e.cluster, kind, r.Name, node, namespace)
	if e.whole {
		e.parts = append(e.parts, part{subject: subject, id: m.ID, message: i, samples: 1})
		return
	}
	from := len(e.text)
	e.ends = e.ends[:0]
	for one := range e.view.Entities(r) {
		e.entity(one)
	}
	if len(e.ends) == 0 {
		return
	}
	head := `{"cluster":` + jsonString(e.cluster) + `,"kind":"` + kind + `","name":` + jsonString(r.Name) + `,"tick":"` + r.Tick.Time().UTC().Format(time.RFC3339Nano) +
		`","resolution":` + strconv.FormatFloat(r.Resolution.Seconds(), 'f', -1, 64)
	first := len(e.parts)
	for at, begin := 0, from; at < len(e.ends); {
		p := part{subject: subject, message: i, from: begin, to: e.ends[at].to, samples: e.ends[at].samples}
		for at++; at < len(e.ends) && e.ends[at].to-begin+len(head)+len(m.ID)+overhead <= e.most; at++ {
			p.to = e.ends[at].to
			p.samples += e.ends[at].samples
		}
		begin = p.to
		p.to-- // the comma
		e.parts = append(e.parts, p)
	}
	n := len(e.parts) - first
	for k := range e.parts[first:] {
		p := &e.parts[first+k]
		p.id, p.head = m.ID, head+fmt.Sprintf(`,"part":%d,"parts":%d,"entities":[`, k+1, n)
		if n > 1 {
			p.id += "/" + strconv.Itoa(k+1)
		}
	}
}

// entity appends one, with a comma behind it, if it has samples.
func (e *encoder) entity(one *sink.Entity) {
	begin, samples := len(e.text), 0
	b := append(sink.AppendJSONLabels(append(e.text, `{"labels":`...), one.Labels), `,"metrics":{`...)
	bare := len(b)
	e.devices = e.devices[:0]
	var device *proto.Device
	for s := range one.Samples {
		samples++
		if s.Device == nil {
			b = appendMetric(b, s, len(b) == bare)
			continue
		}
		if isFirst := s.Device != device; isFirst {
			if device = s.Device; len(e.devices) > 0 {
				e.devices = append(e.devices, "}},"...)
			}
			e.device = e.view.AppendDeviceLabels(e.device[:0], device)
			e.devices = append(sink.AppendJSONLabels(append(e.devices, `{"labels":`...), e.device), `,"metrics":{`...)
			e.devices = appendMetric(e.devices, s, true)
			continue
		}
		e.devices = appendMetric(e.devices, s, false)
	}
	if samples == 0 {
		e.text = e.text[:begin]
		return
	}
	b = append(b, '}')
	if len(e.devices) > 0 {
		b = append(append(append(b, `,"devices":[`...), e.devices...), "}}]"...)
	}
	e.text = append(b, "},"...)
	e.ends = append(e.ends, entity{len(e.text), samples})
}

func appendMetric(dst []byte, s *proto.Sample, isFirst bool) []byte {
	if !isFirst {
		dst = append(dst, ',')
	}
	return sink.AppendJSONNumber(append(sink.AppendJSONString(dst, s.Name), ':'), s.Value)
}

// event appends the message of one, which is message i of its batch.
func (e *encoder) event(m *sink.Message, i int) {
	p := part{subject: e.subject.of(e.cluster, "event", m.Event.Namespace, "", m.Event.Namespace), id: m.ID, message: i, samples: 1}
	if !e.whole {
		p.from = len(e.text)
		b, err := json.Marshal(sink.NewEventJSON(m.Event))
		if err != nil {
			panic(fmt.Sprintf("texts and numbers cannot be written as JSON: %v", err)) // they always can
		}
		e.text = append(append(e.text, `{"cluster":`...), jsonString(e.cluster)...)
		e.text = append(append(append(e.text, `,"event":`...), b...), '}')
		p.to = len(e.text)
	}
	e.parts = append(e.parts, p)
}

func jsonString(s string) string { return string(sink.AppendJSONString(nil, s)) }

// template is a subject with tokens to be filled in.
type template []string

// tokens that stand for something.
var tokens = []string{"{cluster}", "{kind}", "{name}", "{node}", "{namespace}"}

// maxSubject bounds a template.
const maxSubject = 256

// parse reads a template.
func parse(s string) (template, error) {
	t := template(strings.Split(s, "."))
	switch {
	case len(s) > maxSubject:
		return nil, fmt.Errorf("%d bytes are too many: at most %d", len(s), maxSubject)
	case t[0] == "hs" || strings.HasPrefix(s, "$") || strings.HasPrefix(s, "_"):
		return nil, fmt.Errorf("%q is a subject of the bus: begin with another word than %q", s, t[0])
	}
	for _, token := range t {
		switch {
		case token == "":
			return nil, fmt.Errorf("%q has an empty token", s)
		case strings.ContainsAny(token, "{}") && !slices.Contains(tokens, token):
			return nil, fmt.Errorf("%q: %q is none of %s, each between dots", s, token, strings.Join(tokens, ", "))
		case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r == '*' || r == '>' || r == 0x7f }):
			return nil, fmt.Errorf("%q: %q has a space or a wildcard", s, token)
		}
	}
	return t, nil
}

// of fills it in.
func (t template) of(cluster, kind, name, node, namespace string) string {
	filled := make([]string, len(t))
	for i, token := range t {
		value := ""
		switch token {
		case "{cluster}":
			value = cluster
		case "{kind}":
			value = kind
		case "{name}":
			value = name
		case "{node}":
			value = node
		case "{namespace}":
			value = namespace
		default:
			filled[i] = token
			continue
		}
		if filled[i] = "-"; value != "" {
			filled[i] = bus.EncodeToken(value)
		}
	}
	return strings.Join(filled, ".")
}
