// Package gcl writes Kubernetes events to Google Cloud Logging, as entries of the log kubernetes.io/events.
//
//	gcl[:?cluster_name=…]
//
// Project and credentials are found as package gcp says; `credentials` and `endpoint` choose others. An address, which
// Heapster did not read, is not read here either.
//
// Entries are eventer's: jsonPayload is the event as Kubernetes encodes it, the resource is global, and the severity of
// normal events is NOTICE. Other than there, that of all others is WARNING, events of events.k8s.io have the time that
// Event.Time gives, `cluster_name` is a label, and a request is bounded.
//
// Guarantee: exactly once, by id: insertId is the event's UID and version, and Cloud Logging keeps one entry of those
// with the same time and insertId. Eventer's was the UID alone, so that a later state of the same second was lost.
// Entries that are refused for good are told apart by the answer.
//
// Not here: authentication (gcp), when to try again (worker), what an event looks like (sink.EventJSON).
package gcl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink gcl.
var Kind = sink.Kind{Key: "gcl", Title: "GCL Sink", Guarantee: sink.OnceByID, Identity: []string{"credentials"}, NewEvents: NewEvents}

// Bounds of a request; Cloud Logging takes 10 MB. One entry has a request of its own however large it is.
const (
	maxEntries = 1000
	maxBytes   = 4 << 20
)

// cloud is Cloud Logging as seen by the worker of one cluster.
type cloud struct {
	common   sink.CommonEvents
	enc      encoder
	api      *gcp.Client
	progress sink.Progress
	body     []byte
}

// NewEvents reads the options; see the package for what they do.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	s := &cloud{common: o.CommonEvents(d)}
	if t.URL.Scheme != "" || t.URL.Host != "" {
		o.Warn("the address of a GCL sink is not read: give `endpoint`")
	}
	s.enc.cluster = s.common.ClusterLabel()
	s.api = gcp.NewClient(o, d.Version, gcp.API{
		Name: "Cloud Logging", Host: "logging.googleapis.com", Scope: "https://www.googleapis.com/auth/logging.write", Role: "roles/logging.logWriter",
	})
	return o.Made(s, d.Log)
}

// Close drops idle connections.
func (s *cloud) Close() error {
	s.api.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *cloud) Write(ctx context.Context, batch []sink.Message) error {
	project, err := s.api.Project(ctx)
	if err != nil {
		return err
	}
	s.enc.reset(project)
	for i := range batch {
		if s.common.Passes(batch[i].Event) {
			s.enc.encode(batch[i].Event, i)
		}
	}
	s.progress.Begin(batch, len(s.enc.entries))
	var open []int
	size := 0
	for i := range s.enc.entries {
		if s.progress.Settled(i) {
			continue
		}
		n := len(s.enc.entry(i))
		if len(open) == maxEntries || len(open) > 0 && size+n > maxBytes {
			if err := s.send(ctx, open); err != nil {
				return s.progress.End(err)
			}
			open, size = open[:0], 0
		}
		open, size = append(open, i), size+n
	}
	if len(open) > 0 {
		return s.progress.End(s.send(ctx, open))
	}
	return s.progress.End(nil)
}

// send writes some entries and settles those that Cloud Logging took or refused. Its error is why others are not.
func (s *cloud) send(ctx context.Context, open []int) error {
	s.body = append(s.body[:0], `{"partialSuccess":true,"entries":[`...)
	for n, i := range open {
		if n > 0 {
			s.body = append(s.body, ',')
		}
		s.body = append(s.body, s.enc.entry(i)...)
	}
	s.body = append(s.body, "]}"...)
	a, err := s.api.Do(ctx, http.MethodPost, "/v2/entries:write", s.body)
	if err != nil {
		return err
	}
	if a.OK() {
		if !json.Valid(bytes.TrimSpace(a.Body)) {
			return s.api.Nonsense("write to", a)
		}
		for _, i := range open {
			s.progress.Settle(i)
		}
		return nil
	}
	refused, ok := refusals(a.Body, len(open))
	switch {
	case !ok && (a.Code == http.StatusBadRequest && gcp.ErrorOf(a.Body) != "" || a.Code == http.StatusRequestEntityTooLarge):
		return sink.Permanent(s.api.Failure("write to", a))
	case !ok:
		return s.api.Failure("write to", a)
	}
	var failed error
	for n, i := range open {
		switch said, is := refused[n]; {
		case !is:
			s.progress.Settle(i)
		case said.forGood():
			s.progress.Refuse(i, sink.Refused{
				Message: s.enc.entries[i].message, Samples: 1, Part: string(s.enc.entry(i)),
				Reason: "refused by Cloud Logging: " + sink.Excerpt([]byte(said.Message)),
			})
		default:
			failed = fmt.Errorf("%w: it does not take all entries: %s (code %d)", s.api.Failure("write to", a), sink.Excerpt([]byte(said.Message)), said.Code)
		}
	}
	return failed
}

// status is a google.rpc.Status.
type status struct {
	Code    int    `json:"code"` // of google.rpc.Code
	Message string `json:"message"`
}

// forGood reports whether the entry itself is wrong: INVALID_ARGUMENT, FAILED_PRECONDITION or OUT_OF_RANGE. Anything
// else, such as a missing permission, may change.
func (s status) forGood() bool { return s.Code == 3 || s.Code == 9 || s.Code == 11 }

// refusals reads which of the n entries of a request an error's details, of type WriteLogEntriesPartialErrors, refuse:
// all others are written. ok is false where they do not say.
func refusals(answer []byte, n int) (all map[int]status, ok bool) {
	var said struct {
		Error struct {
			Details []struct {
				Type   string            `json:"@type"`
				Errors map[string]status `json:"logEntryErrors"`
			} `json:"details"`
		} `json:"error"`
	}
	if json.Unmarshal(answer, &said) != nil {
		return nil, false
	}
	all = map[int]status{}
	for _, d := range said.Error.Details {
		if d.Type != "type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors" {
			continue
		}
		for key, s := range d.Errors {
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= n {
				return nil, false
			}
			all[i] = s
		}
	}
	return all, len(all) > 0
}

// encoder writes events as entries. Memory grows to that of the largest batch and is reused.
type encoder struct {
	cluster []proto.Label // label cluster_name, where the operator gave one: eventer had none here
	log     string        // name of the log

	text    []byte
	entries []entry
}

type entry struct {
	from, to int
	message  int // index in the batch
}

func (e *encoder) reset(project string) {
	e.log, e.text, e.entries = "projects/"+project+"/logs/kubernetes.io%2Fevents", e.text[:0], e.entries[:0]
}

func (e *encoder) entry(i int) []byte { return e.text[e.entries[i].from:e.entries[i].to] }

// encode appends the LogEntry of one event, which is message i of its batch. An event without any time has that of its
// arrival.
func (e *encoder) encode(ev *proto.Event, i int) {
	from := len(e.text)
	b := sink.AppendJSONString(append(e.text, `{"logName":`...), e.log)
	if at := ev.Time(); !at.IsZero() {
		b = append(b, `,"timestamp":"`...)
		b = append(at.AppendFormat(b, time.RFC3339Nano), '"')
	}
	severity := "WARNING"
	if ev.Type == "Normal" {
		severity = "NOTICE"
	}
	b = append(append(append(b, `,"severity":"`...), severity...), `","resource":{"type":"global"},"insertId":`...)
	b = sink.AppendJSONString(b, ev.ID())
	if len(e.cluster) > 0 {
		b = sink.AppendJSONLabels(append(b, `,"labels":`...), e.cluster)
	}
	payload, _ := json.Marshal(sink.NewEventJSON(ev)) // texts, numbers and maps of texts can always be written
	b = append(append(b, `,"jsonPayload":`...), payload...)
	e.text = append(b, '}')
	e.entries = append(e.entries, entry{from, len(e.text), i})
}
