package sink

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// CommonEvents are the options that every sink of events has: those of [Common] that mean something for
// events. Of `filter` that is the dimension namespace, the one that an event is in.
type CommonEvents struct {
	Basics

	filter *filter
}

// CommonEvents reads the options that every sink of events has.
func (o *Options) CommonEvents(d Deps) CommonEvents {
	c := CommonEvents{Basics: o.basics(d), filter: o.filter()}
	if f := c.filter; f != nil && (!f.metric.empty() || !f.kind.empty() || len(f.labels) > 0) {
		o.Complain("`filter` flag: events are filtered by namespace alone, such as filter=-namespace:kube-*")
	}
	return c
}

// Passes reports whether an event is to be written.
func (c *CommonEvents) Passes(e *proto.Event) bool {
	return c.filter == nil || c.filter.namespace.passes(e.Namespace)
}

// EventJSON is an event as Kubernetes encodes core/v1: the same fields in the same order, without kind and
// apiVersion, as a watch delivers it.
type EventJSON struct {
	Metadata           EventMetadata   `json:"metadata"`
	InvolvedObject     EventReference  `json:"involvedObject"`
	Reason             string          `json:"reason,omitempty"`
	Message            string          `json:"message,omitempty"`
	Source             EventSource     `json:"source"`
	FirstTimestamp     *string         `json:"firstTimestamp"`
	LastTimestamp      *string         `json:"lastTimestamp"`
	Count              int32           `json:"count,omitempty"`
	Type               string          `json:"type,omitempty"`
	EventTime          *string         `json:"eventTime"`
	Series             *eventSeries    `json:"series,omitempty"`
	Action             string          `json:"action,omitempty"`
	Related            *EventReference `json:"related,omitempty"`
	ReportingComponent string          `json:"reportingComponent"`
	ReportingInstance  string          `json:"reportingInstance"`
}

// EventMetadata is the metadata of an event, as far as it travels.
type EventMetadata struct {
	Name              string            `json:"name,omitempty"`
	Namespace         string            `json:"namespace,omitempty"`
	UID               string            `json:"uid,omitempty"`
	ResourceVersion   uint64            `json:"resourceVersion,omitempty,string"`
	CreationTimestamp *string           `json:"creationTimestamp"`
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
}

// EventReference names the object that an event is about.
type EventReference struct {
	Kind            string `json:"kind,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	APIVersion      string `json:"apiVersion,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	FieldPath       string `json:"fieldPath,omitempty"`
}

// EventSource is who told of an event.
type EventSource struct {
	Component string `json:"component,omitempty"`
	Host      string `json:"host,omitempty"`
}

type eventSeries struct {
	Count            int32   `json:"count,omitempty"`
	LastObservedTime *string `json:"lastObservedTime"`
}

// NewEventJSON is e in that form.
func NewEventJSON(e *proto.Event) *EventJSON {
	j := &EventJSON{
		Metadata: EventMetadata{
			Name: e.Name, Namespace: e.Namespace, UID: e.UID, ResourceVersion: e.Version, CreationTimestamp: seconds(e.Created),
			Labels: labelMap(e.Labels), Annotations: labelMap(e.Annotations),
		},
		InvolvedObject: EventReference(e.Involved), Reason: e.Reason, Message: e.Message, Source: EventSource{e.Component, e.Host},
		FirstTimestamp: seconds(e.First), LastTimestamp: seconds(e.Last), Count: e.Count, Type: e.Type, EventTime: micros(e.EventTime),
		Action: e.Action, ReportingComponent: e.ReportingComponent, ReportingInstance: e.ReportingInstance,
	}
	if e.Series != (proto.EventSeries{}) {
		j.Series = &eventSeries{e.Series.Count, micros(e.Series.LastObserved)}
	}
	if e.Related != (proto.ObjectReference{}) {
		related := EventReference(e.Related)
		j.Related = &related
	}
	return j
}

// Indented is the JSON as eventer stored it in a string: each level one space further in.
func (j *EventJSON) Indented() []byte {
	b, _ := json.MarshalIndent(j, "", " ") // texts, numbers and maps of texts can always be written
	return b
}

func seconds(ns int64) *string { return formatted(ns, time.RFC3339) }

func micros(ns int64) *string { return formatted(ns, "2006-01-02T15:04:05.000000Z07:00") }

// formatted is nil, which becomes null, where there is no time.
func formatted(ns int64, layout string) *string {
	if ns == 0 {
		return nil
	}
	s := time.Unix(0, ns).UTC().Format(layout)
	return &s
}

func labelMap(labels []proto.Label) map[string]string {
	m := make(map[string]string, len(labels))
	for _, l := range slices.Backward(labels) { // of a key given twice the first counts
		m[l.Key] = l.Value
	}
	return m
}
