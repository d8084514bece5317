package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// publishEvents publishes states of events of three namespaces by turns; it returns their ids.
func (f *fixture) publishEvents(cluster string, from, to int) (ids []string) {
	f.t.Helper()
	pub, enc := f.conn.Publisher(bus.PublisherConfig{}), proto.NewEncoder()
	for n := from; n < to; n++ {
		e := &proto.Event{Cluster: cluster, UID: fmt.Sprintf("uid-%d", n%5), Version: uint64(n), Namespace: fmt.Sprintf("ns-%d", n%3), Message: "m"}
		data, err := enc.Event(e)
		if err != nil {
			f.t.Fatal(err)
		}
		if _, err := pub.Publish(f.t.Context(), bus.Message{Subject: bus.EventsSubject(cluster, e.Namespace), ID: e.ID(), Data: data}); err != nil {
			f.t.Fatal(err)
		}
		ids = append(ids, EventMessageID(e))
	}
	return ids
}

func (f *fixture) nonsense(subject string) {
	f.t.Helper()
	if _, err := f.conn.Publisher(bus.PublisherConfig{}).Publish(f.t.Context(), bus.Message{Subject: subject, Data: []byte("nonsense")}); err != nil {
		f.t.Fatal(err)
	}
}

func (m *memory) eventKind() sink.Kind {
	return sink.Kind{Key: "memory", NewEvents: func(sink.Target, sink.Deps) (sink.Sink, error) { return m, nil }}
}

// TestEventsAreWrittenInOrderAndOnce: by a worker that fails now and then and finds messages that are no events, and
// by its successor after an orderly stop. Rollups of the cluster are not its.
func TestEventsAreWrittenInOrderAndOnce(t *testing.T) {
	f := newFixture(t, "c")
	f.publish("c", 1, 5)
	want := f.publishEvents("c", 1, 20)
	f.nonsense(bus.EventsSubject("c", "ns-1"))
	want = append(want, f.publishEvents("c", 20, 40)...)
	n := 0
	f.sink.fail = func([]string) error {
		if n++; n%3 == 0 {
			return errors.New("not now")
		}
		return nil
	}
	stop := f.runConfig(Config{Kind: f.sink.eventKind(), Events: true}, "memory", "c")
	f.until("all are written", func() bool { return len(f.sink.ids()) >= len(want) })
	f.until("what is no event is in DEAD", func() bool { return count(f.tel.dead) == 1 && count(f.tel.undecodable) == 1 })
	f.until("all are acknowledged", func() bool { return count(f.tel.written) == float64(len(want)) })
	stop()
	want = append(want, f.publishEvents("c", 40, 60)...)
	f.runConfig(Config{Kind: f.sink.eventKind(), Events: true}, "memory", "c")
	f.until("the rest is written", func() bool { return len(f.sink.ids()) >= len(want) })
	if got := f.sink.ids(); !slices.Equal(got, want) {
		t.Fatalf("written %v, want %v", got, want)
	}
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil || !strings.HasPrefix(l.Reason, "decode event: ") {
			t.Fatalf("letter %+v, %v", l, err)
		}
	}
	if said := f.log.String(); !strings.Contains(said, "sink does not take events") || !strings.Contains(said, "event cannot be decoded") {
		t.Fatalf("logged\n%s", said)
	}
}

// TestRefusedEventsAreDrivenAgain: what is refused for good is in DEAD, and comes back to this sink alone when an
// operator wishes so.
func TestRefusedEventsAreDrivenAgain(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publishEvents("c", 1, 10)
	refused := want[4]
	refusing := true // under f.sink.mu
	f.sink.fail = func(ids []string) error {
		if refusing && slices.Contains(ids, refused) {
			return sink.Permanent(errors.New("never"))
		}
		return nil
	}
	f.runConfig(Config{Kind: f.sink.eventKind(), Events: true}, "memory", "c")
	f.until("the others are written", func() bool { return len(f.sink.ids()) == len(want)-1 })
	f.until("the letter is there", func() bool { return count(f.tel.dead) == 1 })
	f.sink.mu.Lock()
	refusing = false
	f.sink.mu.Unlock()
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.conn.Redrive(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	f.until("it is written, too", func() bool { ids := f.sink.ids(); return ids[len(ids)-1] == refused })
}

// TestARefusedEventIsCountedAsOneNotWritten: where a destination refuses some events of a batch.
func TestARefusedEventIsCountedAsOneNotWritten(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publishEvents("c", 1, 10)
	f.sink.fail = func(ids []string) error {
		if i := slices.Index(ids, want[4]); i >= 0 {
			return &sink.Partial{Refused: []sink.Refused{{Message: i, Samples: 1, Reason: "too long"}}}
		}
		return nil
	}
	f.runConfig(Config{Kind: f.sink.eventKind(), Events: true}, "memory", "c")
	f.until("the letter is there", func() bool { return count(f.tel.dead) == 1 })
	f.until("the others are written", func() bool { return count(f.tel.written) == float64(len(want)-1) })
	if refused, samples := count(f.tel.refusedMessages), count(f.tel.refusedSamples); refused != 1 || samples != 0 {
		t.Fatalf("%v messages and %v samples are counted as refused, want 1 and 0", refused, samples)
	}
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil || l.Reason != "too long" {
			t.Fatalf("letter %+v, %v", l, err)
		}
	}
}

func TestASinkWithoutEventsIsRefused(t *testing.T) {
	f := newFixture(t)
	if _, err := New(Config{Name: "m.1", Kind: f.sink.kind(), Events: true}, Deps{Bus: f.conn, Log: slog.New(slog.DiscardHandler), Telemetry: f.tel}); err == nil || !strings.Contains(err.Error(), "takes no events") {
		t.Fatalf("got %v", err)
	}
	if _, err := New(Config{Name: "m.1", Kind: f.sink.eventKind()}, Deps{Bus: f.conn, Log: slog.New(slog.DiscardHandler), Telemetry: f.tel}); err == nil || !strings.Contains(err.Error(), "takes no rollups") {
		t.Fatalf("got %v", err)
	}
}
