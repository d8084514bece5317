// Package honeycomb writes rollups to Honeycomb, an event for each entity, and Kubernetes events, an event for each
// state.
//
//	honeycomb[:?dataset=heapster&writekey=…]
//
// The key is the option `writekey`, or HONEYCOMB_WRITEKEY of the environment. Events are Heapster's: labels and metrics as
// fields, without the counters that have a rate, and without metrics of devices. A request has at most `batchsize` (100)
// events.
//
// Guarantee: at least once: Honeycomb gives events no identity. Requests that were answered are not sent again while this
// process lives; events that Honeycomb refuses for good are told apart by its answer.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package honeycomb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink honeycomb.
var Kind = sink.Kind{Key: "honeycomb", Title: "Honeycomb Sink", Guarantee: sink.AtLeastOnce, Identity: []string{"apihost", "dataset"}, New: New, NewEvents: NewEvents}

// api is one dataset as seen by the worker of one cluster.
type api struct {
	encode   func(m *sink.Message, i int)
	enc      encoder
	client   *post.Client
	address  string
	header   http.Header
	batch    int // events a request
	progress sink.Progress
	body     []byte
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := read(o, d)
	s.enc.view = common.View
	s.enc.view.Skip = hasRate
	s.enc.cluster = common.ClusterLabel()
	s.encode = func(m *sink.Message, i int) { s.enc.encode(m.Rollup, i) }
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events, which are those of New.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s := read(o, d)
	s.enc.cluster = common.ClusterLabel()
	s.encode = func(m *sink.Message, i int) {
		if common.Passes(m.Event) {
			s.enc.kubernetesEvent(m.Event, i)
		}
	}
	return o.Made(s, d.Log)
}

// read reads where to write to, and by which key.
func read(o *sink.Options, d sink.Deps) *api {
	s := &api{batch: o.BatchSize(100, 1e4)}
	key := o.Secret("writekey", os.Getenv("HONEYCOMB_WRITEKEY"))
	if key == "" {
		o.Complain("Failed to find honeycomb API write key: give `writekey`, or set HONEYCOMB_WRITEKEY")
	}
	u, err := url.Parse(o.String("apihost", "https://api.honeycomb.io/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		o.Complain("`apihost` flag is no address such as https://api.honeycomb.io/")
		u = &url.URL{}
	}
	s.address = u.JoinPath("1", "batch", url.PathEscape(o.String("dataset", "heapster"))).String()
	s.header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"heapstream/" + d.Version}, "X-Honeycomb-Team": {key}}
	s.client = post.New("Honeycomb at "+u.Host, o.HTTP())
	return s
}

// hasRate reports whether a metric is one of the counters that Heapster left out here.
func hasRate(m *proto.Metric) bool {
	switch m.ID {
	case proto.CPUUsage, proto.MemoryPageFaults, proto.MemoryMajorFaults, proto.NetworkRx, proto.NetworkRxErrors, proto.NetworkTx, proto.NetworkTxErrors:
		return true
	}
	return false
}

// Close drops idle connections.
func (s *api) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *api) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.encode(&batch[i], i)
	}
	s.progress.Begin(batch, len(s.enc.events))
	var open []int
	for i := range s.enc.events {
		if !s.progress.Settled(i) {
			open = append(open, i)
		}
	}
	for chunk := range slices.Chunk(open, s.batch) {
		if err := s.send(ctx, chunk); err != nil {
			return s.progress.End(err)
		}
	}
	return s.progress.End(nil)
}

// send writes some events and settles those that Honeycomb took or refused. Its error is why others are not.
func (s *api) send(ctx context.Context, open []int) error {
	s.body = append(s.body[:0], '[')
	for n, i := range open {
		if n > 0 {
			s.body = append(s.body, ',')
		}
		s.body = append(s.body, s.enc.event(i)...)
	}
	s.body = append(s.body, "]\n"...)
	a, err := s.client.Do(ctx, http.MethodPost, s.address, s.header, s.body)
	if err != nil {
		return err
	}
	var said []struct {
		Status int    `json:"status"`
		Error  string `json:"error"`
	}
	switch {
	case a.Code == http.StatusBadRequest && json.Valid(bytes.TrimSpace(a.Body)), a.Code == http.StatusRequestEntityTooLarge:
		return sink.Permanent(s.client.Failure("write to", a, "", ""))
	case !a.OK():
		return s.client.Failure("write to", a, "", "`writekey`")
	case json.Unmarshal(a.Body, &said) != nil || len(said) != len(open):
		return s.client.Nonsense("write to", a)
	}
	var failed error
	for n, i := range open {
		e := &s.enc.events[i]
		switch status := said[n].Status; {
		case status >= 200 && status <= 299:
			s.progress.Settle(i)
		case status == http.StatusTooManyRequests || status >= 500:
			failed = fmt.Errorf("write to %s: it does not take all events: %s (status %d)", s.client.Who(), said[n].Error, status)
		default:
			s.progress.Refuse(i, sink.Refused{Message: e.message, Samples: e.samples, Part: string(s.enc.event(i)), Reason: "refused by Honeycomb: " + sink.Excerpt([]byte(said[n].Error))})
		}
	}
	return failed
}

// encoder writes rollups as events. Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster []proto.Label // field cluster_name, where the operator gave one: Heapster had none here

	text   []byte
	events []event
	merged []proto.Label
	fields []field
}

type event struct {
	from, to int
	message  int // index in the batch
	samples  int
}

// field is a label, or a metric.
type field struct {
	key     string
	label   string
	value   proto.Value
	isLabel bool
}

func (e *encoder) reset() { e.text, e.events = e.text[:0], e.events[:0] }

func (e *encoder) event(i int) []byte { return e.text[e.events[i].from:e.events[i].to] }

// encode appends the events of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	for entity := range e.view.Entities(r) {
		e.fields = e.fields[:0]
		samples := 0
		for s := range entity.Samples {
			if s.Device == nil {
				e.fields = append(e.fields, field{key: s.Name, value: s.Value})
				samples++
			}
		}
		if samples == 0 {
			continue
		}
		e.merged = sink.MergeLabels(e.merged[:0], e.cluster, entity.Labels)
		for _, l := range e.merged {
			e.fields = append(e.fields, field{key: l.Key, label: l.Value, isLabel: true})
		}
		slices.SortFunc(e.fields, func(a, b field) int { return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.label, b.label)) })
		from := len(e.text)
		b := append(e.text, `{"Data":{`...)
		for n, f := range e.fields {
			if n > 0 {
				b = append(b, ',')
			}
			b = append(sink.AppendJSONString(b, f.key), ':')
			if f.isLabel {
				b = sink.AppendJSONString(b, f.label)
			} else {
				b = sink.AppendJSONNumber(b, f.value)
			}
		}
		b = append(b, `},"Timestamp":"`...)
		b = r.Tick.Time().UTC().AppendFormat(b, time.RFC3339Nano)
		e.text = append(b, `"}`...)
		e.events = append(e.events, event{from, len(e.text), i, samples})
	}
}

// kubernetesEvent appends the event that stands for one of Kubernetes, with eventer's fields in its order, which is
// message i of its batch. The time is that of Event.Time.
func (e *encoder) kubernetesEvent(ev *proto.Event, i int) {
	from, o := len(e.text), &ev.Involved
	b := append(e.text, `{"Data":{`...)
	for _, l := range e.cluster {
		b = append(sink.AppendJSONString(b, l.Key), ':')
		b = append(sink.AppendJSONString(b, l.Value), ',')
	}
	text := func(key, value string) {
		b = append(append(append(b, '"'), key...), `":`...)
		b = append(sink.AppendJSONString(b, value), ',')
	}
	text("namespace", o.Namespace)
	text("kind", o.Kind)
	text("name", o.Name)
	text("subobject", o.FieldPath)
	text("source.component", ev.Component)
	text("source.host", ev.Host)
	b = strconv.AppendInt(append(b, `"count":`...), int64(ev.Times()), 10)
	b = append(b, ',')
	text("type", ev.Type)
	text("reason", ev.Reason)
	text("message", ev.Message)
	b = append(b[:len(b)-1], `},"Timestamp":"`...)
	b = ev.Time().AppendFormat(b, time.RFC3339Nano)
	e.text = append(b, `"}`...)
	e.events = append(e.events, event{from, len(e.text), i, 1})
}
