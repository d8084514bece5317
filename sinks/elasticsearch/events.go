package elasticsearch

import (
	"crypto/sha256"
	"encoding/json"
	"maps"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// eventsName is the type of events' documents and the end of their alias, eventsTime their time's field.
const eventsName, eventsTime = "events", "LastOccurrenceTimestamp"

// eventDocument is an event with eventer's order of fields. The times are those of Event.Time and FirstTime, and the
// count is that of Event.Times, which events of events.k8s.io have, too.
type eventDocument struct {
	Count                    int32
	Metadata                 sink.EventMetadata
	InvolvedObject           sink.EventReference
	Source                   sink.EventSource
	FirstOccurrenceTimestamp time.Time
	LastOccurrenceTimestamp  time.Time
	Message, Reason, Type    string
	EventTags                map[string]string
}

// event appends the document of one event, which is message i of its batch. Its id is made of the event's UID and
// version: the same state takes its own place, and another state has one of its own.
func (e *encoder) event(ev *proto.Event, i int) {
	j := sink.NewEventJSON(ev)
	at := ev.Time()
	tags := map[string]string{"eventID": ev.UID, proto.LabelHostname: ev.Host}
	for _, l := range e.cluster {
		tags[l.Key] = l.Value
	}
	if ev.Involved.Kind == "Pod" {
		tags[proto.LabelPodID], tags[proto.LabelPodName] = ev.Involved.UID, ev.Involved.Name
	}
	source, _ := json.Marshal(eventDocument{ // texts, numbers and times of an int64 can always be written
		Count: ev.Times(), Metadata: j.Metadata, InvolvedObject: j.InvolvedObject, Source: j.Source,
		FirstOccurrenceTimestamp: ev.FirstTime(), LastOccurrenceTimestamp: at, Message: ev.Message, Reason: ev.Reason, Type: ev.Type, EventTags: tags,
	})
	key := append(append([]byte(ev.Cluster), 0), eventsName...)
	key = append(append(append(key, 0), ev.UID...), 0)
	key = strconv.AppendUint(key, ev.Version, 10)
	sum := sha256.Sum256(key)
	d := doc{from: len(e.docs.text), message: i, samples: 1, index: e.indexOf(proto.Tick(max(0, at.UnixMilli())))}
	b := e.appendAction(e.docs.text, [15]byte(sum[:]), d.index, eventsName)
	e.docs.text = append(append(b, source...), '\n')
	d.to = len(e.docs.text)
	e.docs.all = append(e.docs.all, d)
}

// eventProperties is the mapping of events' fields: eventer's choice of which texts are analysed.
func eventProperties(whole, analysed, date object) object {
	of := func(sorts ...object) object {
		all := object{}
		for _, sort := range sorts {
			maps.Copy(all, sort)
		}
		return object{"properties": all}
	}
	are := func(is object, names ...string) object {
		all := object{}
		for _, name := range names {
			all[name] = is
		}
		return all
	}
	return object{
		"Count": object{"type": "long"}, "FirstOccurrenceTimestamp": date, eventsTime: date, "Message": analysed, "Reason": whole, "Type": whole,
		"EventTags":      of(are(whole, "eventID", proto.LabelClusterName, proto.LabelPodID), are(analysed, proto.LabelHostname, proto.LabelPodName)),
		"InvolvedObject": of(are(whole, "apiVersion", "kind", "resourceVersion", "uid"), are(analysed, "fieldPath", "name", "namespace")),
		"Metadata":       of(are(whole, "resourceVersion", "selfLink", "uid"), are(analysed, "name", "namespace"), are(date, "creationTimestamp")),
		"Source":         of(are(whole, "component"), are(analysed, "host")),
	}
}
