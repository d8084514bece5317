package proto

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func at(s string) int64 {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UnixNano()
}

func testEvent() *Event {
	return &Event{
		Cluster: "prod", UID: "0e4d1a3c-9b1f-4f0f-8f6f-1d2c3b4a5968", Version: 812_345, Position: EventPosition{Upto: 812_340, Begun: 77},
		Namespace: "default", Name: "web-1.1505b6e0f2a3d4c5", Created: at("2018-01-02T02:24:05Z"),
		Labels: []Label{{"a", "b"}}, Annotations: []Label{{"note", "ünïcode"}},
		Involved: ObjectReference{Kind: "Pod", Namespace: "default", Name: "web-1", UID: "pod-uid", APIVersion: "v1", ResourceVersion: "123", FieldPath: "spec.containers{web}"},
		Related:  ObjectReference{Kind: "Node", Name: "n1"},
		Reason:   "Killing", Message: "Killing container\n\"web\"", Type: "Normal", Action: "Kill", Component: "kubelet", Host: "n1",
		First: at("2018-01-02T02:20:00Z"), Last: at("2018-01-02T02:24:05Z"), Count: 3, EventTime: at("2018-01-02T02:20:00.123456Z"),
		Series:             EventSeries{Count: 7, LastObserved: at("2018-01-02T02:25:01.5Z")},
		ReportingComponent: "kubelet", ReportingInstance: "kubelet-n1", Shortened: true,
	}
}

func TestEventSurvivesTheWire(t *testing.T) {
	enc, dec := NewEncoder(), NewDecoder()
	for _, want := range []*Event{testEvent(), {UID: "u", Version: 1<<64 - 1}} {
		data, err := enc.Event(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Event
		if err := dec.Event(data, &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, &got); d != "" {
			t.Error(d)
		}
		times, err := dec.EventHeader(data, &got)
		if err != nil || times != want.Times() {
			t.Errorf("%d times, %v", times, err)
		}
		if d := cmp.Diff(&Event{Cluster: want.Cluster, UID: want.UID, Version: want.Version, Position: want.Position}, &got); d != "" {
			t.Error(d)
		}
	}
}

// As the golden messages of the other nouns: never renewed.
func TestGoldenEventOfSchema1Decodes(t *testing.T) {
	const path = "testdata/schema1-event.golden"
	if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
		data, err := NewEncoder().Event(testEvent())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	if err := NewDecoder().Event(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(testEvent(), &got); d != "" {
		t.Error(d)
	}
}

func TestReadersSkipWhatNewerEventsAdd(t *testing.T) {
	e := NewEncoder()
	data, err := e.message(typeEvent, func() {
		e.array(7)
		e.str("c")
		e.str("u")
		for range 4 {
			e.uint(5)
		}
		e.str("from the future")
	}, func() error {
		e.array(6)
		e.array(26)
		for range 26 {
			e.str("x")
		}
		e.array(8)
		for range 8 {
			e.int(3)
		}
		e.array(0)
		e.array(0)
		_ = e.mp.EncodeBool(false)
		return e.mp.EncodeNil()
	})
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	if err := NewDecoder().Event(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.UID != "u" || got.Related.FieldPath != "x" || got.Series.LastObserved != 3 {
		t.Errorf("%+v", got)
	}
}

// An event of either shape has a time, a first time and a number of repetitions.
func TestEventTimesFallBack(t *testing.T) {
	check := func(e Event, last, first string, times int32) {
		t.Helper()
		text := func(at time.Time) string {
			if at.IsZero() {
				return ""
			}
			return at.Format(time.RFC3339Nano)
		}
		if text(e.Time()) != last || text(e.FirstTime()) != first || e.Times() != times {
			t.Errorf("last %s, first %s, %d times; want %s, %s, %d", text(e.Time()), text(e.FirstTime()), e.Times(), last, first, times)
		}
	}
	const t1, t2, t3 = "2018-01-02T02:20:00Z", "2018-01-02T02:24:05Z", "2018-01-02T02:25:01.5Z"
	// as core/v1 has always been
	check(Event{First: at(t1), Last: at(t2), Count: 4, Created: at(t3)}, t2, t1, 4)
	// events.k8s.io alone: no deprecated field is set
	check(Event{EventTime: at(t1), Created: at(t2)}, t1, t1, 1)
	// a series of such
	check(Event{EventTime: at(t1), Series: EventSeries{Count: 9, LastObserved: at(t3)}}, t3, t1, 9)
	// both shapes filled
	check(Event{First: at(t1), Last: at(t2), Count: 2, EventTime: at(t1), Series: EventSeries{Count: 3, LastObserved: at(t3)}}, t3, t1, 3)
	// nothing but its creation
	check(Event{Created: at(t2)}, t2, t2, 1)
	check(Event{}, "", "", 1)
}

func TestBoundedEventsFit(t *testing.T) {
	long := strings.Repeat("ü", 20<<10)
	e := testEvent()
	e.Shortened = false
	e.Bound()
	if e.Shortened || cmp.Diff(testEvent().Annotations, e.Annotations) != "" {
		t.Error("an honest event is shortened")
	}
	e.Message, e.Reason = long, "x"+long
	e.Annotations = []Label{{"big", long + long}}
	e.Bound()
	if !e.Shortened || len(e.Message) != 32<<10 || len(e.Reason) != 1<<10-1 || e.Annotations != nil || len(e.Labels) != 1 {
		t.Errorf("message of %d bytes, reason of %d, %d annotations, %d labels", len(e.Message), len(e.Reason), len(e.Annotations), len(e.Labels))
	}
	e.Labels = make([]Label, maxEventLabels+1)
	e.Bound()
	if e.Labels != nil {
		t.Error("too many labels are kept")
	}
	e.texts(func(s *string) { *s = long + long })
	e.Bound()
	data, err := NewEncoder().Event(e)
	if err != nil {
		t.Fatal(err)
	}
	var got Event
	if err := NewDecoder().Event(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(e, &got); d != "" {
		t.Error(d)
	}
}

// Whatever comes is read or refused, and what is read is written and read again alike.
func FuzzEvent(f *testing.F) {
	golden, err := os.ReadFile("testdata/schema1-event.golden")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add([]byte{})
	enc, dec := NewEncoder(), NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		var e, again Event
		if err := dec.Event(data, &e); err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSchema) {
				t.Fatal(err)
			}
			return
		}
		e.Bound()
		out, err := enc.Event(&e)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Event(out, &again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, again); d != "" {
			t.Fatal(d)
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	enc, dec := NewEncoder(), NewDecoder()
	e := testEvent()
	data, err := enc.Event(e)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := enc.Event(e); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(data)), "bytes/event")
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		var got Event
		for b.Loop() {
			if err := dec.Event(data, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}
