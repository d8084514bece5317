package proto

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// typeEvent is this noun's type on the wire, beside those in encoding.go.
const typeEvent = 5

// Event is one state of one Kubernetes event, as the API server told it: one message on EVENTS. core/v1
// and events.k8s.io/v1 are two shapes of one object; the fields here are named after core/v1, and what
// events.k8s.io/v1 calls deprecatedFirstTimestamp, deprecatedLastTimestamp, deprecatedCount,
// deprecatedSource, note, regarding and reportingController is First, Last, Count, Source, Message,
// Involved and ReportingComponent.
//
// Times are Unix nanoseconds, 0 where the event has none.
type Event struct {
	Cluster string

	// UID and Version are the identity of a state: every change of an object has a version of its own,
	// higher than all that the API server gave before.
	UID     string
	Version uint64 // metadata.resourceVersion

	Position EventPosition

	Namespace, Name     string
	Created             int64
	Labels, Annotations []Label

	Involved, Related     ObjectReference
	Reason, Message, Type string
	Action                string
	Component, Host       string // source
	First, Last           int64
	Count                 int32
	EventTime             int64
	Series                EventSeries
	ReportingComponent    string
	ReportingInstance     string
	Shortened             bool // Bound left something out
}

// EventPosition is how far the writer of EVENTS was when it wrote a message: what its successor resumes
// from.
type EventPosition struct {
	// Upto is a version: with this message, every event is out in its newest state up to there.
	Upto uint64
	// Begun is 0 where events are written as they happen. Else this message is of a list, which comes in
	// the order of names: then it is the sequence of EVENTS at which that list began to be written.
	Begun uint64
}

// ObjectReference names an object of Kubernetes.
type ObjectReference struct {
	Kind, Namespace, Name, UID, APIVersion, ResourceVersion, FieldPath string
}

// EventSeries says how often an event came again; zero for one that has no series.
type EventSeries struct {
	Count        int32
	LastObserved int64
}

// ID is the identity of the state, the same whenever and by whomever it is told: UID and version.
func (e *Event) ID() string { return fmt.Sprintf("%s/%d", e.UID, e.Version) }

// Time is when the event was seen last: lastTimestamp or the series' lastObservedTime, whichever is
// later, else eventTime, firstTimestamp or creation. The zero time where the event has none of them.
func (e *Event) Time() time.Time {
	return firstOf(max(e.Last, e.Series.LastObserved), e.EventTime, e.First, e.Created)
}

// FirstTime is when the event was seen first: firstTimestamp, else eventTime, creation or lastTimestamp.
func (e *Event) FirstTime() time.Time { return firstOf(e.First, e.EventTime, e.Created, e.Last) }

func firstOf(times ...int64) time.Time {
	for _, ns := range times {
		if ns != 0 {
			return time.Unix(0, ns).UTC()
		}
	}
	return time.Time{}
}

// Times is how often the event was seen: count or that of the series, whichever is higher, at least 1.
func (e *Event) Times() int32 { return max(e.Count, e.Series.Count, 1) }

// Bounds of an event. The API server takes objects of up to 1.5 MB; honest events have a few hundred
// bytes, and messages of at most 1 KiB.
const (
	MaxEventBytes   = 64 << 10 // of all texts of an event together
	maxEventMessage = 32 << 10
	maxEventText    = 1 << 10 // of any other text
	maxEventLabels  = 1 << 9  // labels, and annotations
)

// Bound makes the event fit: texts beyond their bound are cut, and where all of them together exceed
// MaxEventBytes annotations are left out, then labels. It sets Shortened where anything was lost.
func (e *Event) Bound() {
	cut := func(s *string, most int) {
		if len(*s) > most {
			end := most
			for end > 0 && !utf8.RuneStart((*s)[end]) {
				end--
			}
			*s = strings.Clone((*s)[:end])
			e.Shortened = true
		}
	}
	total := 0
	e.texts(func(s *string) {
		if s == &e.Message {
			cut(s, maxEventMessage)
		} else {
			cut(s, maxEventText)
		}
		total += len(*s)
	})
	size := func(labels []Label) (n int) {
		for _, l := range labels {
			n += len(l.Key) + len(l.Value)
		}
		return n
	}
	labels, annotations := size(e.Labels), size(e.Annotations)
	if len(e.Annotations) > maxEventLabels || total+labels+annotations > MaxEventBytes {
		e.Shortened, e.Annotations, annotations = true, nil, 0
	}
	if len(e.Labels) > maxEventLabels || total+labels > MaxEventBytes {
		e.Shortened, e.Labels = true, nil
	}
}

// texts calls f with every text of the event but labels, annotations, Cluster and UID.
func (e *Event) texts(f func(*string)) {
	for _, s := range []*string{&e.Namespace, &e.Name, &e.Reason, &e.Message, &e.Type, &e.Action, &e.Component, &e.Host,
		&e.ReportingComponent, &e.ReportingInstance} {
		f(s)
	}
	for _, o := range []*ObjectReference{&e.Involved, &e.Related} {
		for _, s := range []*string{&o.Kind, &o.Namespace, &o.Name, &o.UID, &o.APIVersion, &o.ResourceVersion, &o.FieldPath} {
			f(s)
		}
	}
}

// Event encodes e, which must be within the bounds that Bound keeps. Equal events give equal bytes.
//
//	header = [cluster, uid, version, upto, begun, times]
//	body   = [texts, numbers, labels, annotations, shortened]
//
// texts are the strings in the order of Event.texts; labels are keys and values in turn.
func (e *Encoder) Event(ev *Event) ([]byte, error) {
	data, err := e.message(typeEvent, func() {
		e.array(6)
		e.str(ev.Cluster)
		e.str(ev.UID)
		e.uint(ev.Version)
		e.uint(ev.Position.Upto)
		e.uint(ev.Position.Begun)
		e.int(int64(ev.Times()))
	}, func() error {
		e.array(5)
		n := 0
		ev.texts(func(*string) { n++ })
		e.array(n)
		ev.texts(func(s *string) { _ = e.mp.EncodeString(*s) })
		numbers := [...]int64{ev.Created, ev.First, ev.Last, int64(ev.Count), ev.EventTime, int64(ev.Series.Count), ev.Series.LastObserved}
		e.array(len(numbers))
		for _, v := range numbers {
			e.int(v)
		}
		for _, labels := range [][]Label{ev.Labels, ev.Annotations} {
			e.array(2 * len(labels))
			for _, l := range labels {
				_ = e.mp.EncodeString(l.Key)
				_ = e.mp.EncodeString(l.Value)
			}
		}
		return e.mp.EncodeBool(ev.Shortened)
	})
	if err != nil {
		return nil, fmt.Errorf("encode event %s: %w", ev.ID(), err)
	}
	return data, nil
}

// Event decodes into ev.
func (d *Decoder) Event(data []byte, ev *Event) error {
	*ev = Event{}
	return d.decode(data, typeEvent, "event", func(n int) { d.eventHeader(n, ev, nil) }, func() {
		n := d.arrayLen(maxColumns)
		d.atLeast(n, 4)
		total := 0
		text := func() string {
			b := d.bin()
			if total += len(b); total > MaxEventBytes {
				d.fail("texts of more than %d bytes", MaxEventBytes)
			}
			return string(b)
		}
		texts := d.arrayLen(maxColumns)
		ev.texts(func(s *string) {
			if texts > 0 {
				*s = text()
				texts--
			}
		})
		d.skip(texts)
		numbers := d.arrayLen(maxColumns)
		number := func(to *int64) {
			if numbers > 0 {
				*to = d.int()
				numbers--
			}
		}
		number(&ev.Created)
		number(&ev.First)
		number(&ev.Last)
		ev.Count = d.count(number)
		number(&ev.EventTime)
		ev.Series.Count = d.count(number)
		number(&ev.Series.LastObserved)
		d.skip(numbers)
		for _, to := range []*[]Label{&ev.Labels, &ev.Annotations} {
			m := d.arrayLen(2 * maxEventLabels)
			for range m / 2 {
				*to = append(*to, Label{text(), text()})
			}
			d.skip(m % 2)
		}
		if n > 4 {
			shortened, err := d.mp.DecodeBool()
			d.check(err)
			ev.Shortened = shortened
			d.skip(n - 5)
		}
	})
}

// EventHeader decodes identity and position alone, without decompressing; times is Event.Times.
func (d *Decoder) EventHeader(data []byte, ev *Event) (times int32, err error) {
	*ev = Event{}
	err = d.decode(data, typeEvent, "event", func(n int) { d.eventHeader(n, ev, &times) }, nil)
	return times, err
}

func (d *Decoder) eventHeader(n int, ev *Event, times *int32) {
	d.atLeast(n, 6)
	ev.Cluster = d.name()
	uid := d.bin() // not interned: each is seen a few times and never again
	if len(uid) > maxEventText {
		d.fail("UID of %d bytes", len(uid))
	}
	ev.UID = string(uid)
	ev.Version = d.uint(1<<64 - 1)
	ev.Position = EventPosition{Upto: d.uint(1<<64 - 1), Begun: d.uint(1<<64 - 1)}
	t := d.count(func(to *int64) { *to = d.int() })
	if times != nil {
		*times = t
	}
	d.skip(n - 6)
}

// count reads a number of repetitions.
func (d *Decoder) count(read func(*int64)) int32 {
	var v int64
	read(&v)
	if v < 0 || v > 1<<31-1 {
		d.fail("count %d", v)
	}
	return int32(v) //nolint:gosec // checked
}
