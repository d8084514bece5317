package bus_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

func event(id string) bus.Message {
	return bus.Message{Subject: bus.EventsSubject("prod", "default"), Stream: bus.EventsStream("prod"), ID: id, Data: []byte(id)}
}

func TestAppendStoresOnlyBehindWhatItsWriterKnows(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	check := func(id string, after, seq uint64, duplicate bool) {
		t.Helper()
		ack, err := c.Append(deadline(t), event(id), after)
		must(t, err)
		if ack.Seq != seq || ack.Duplicate != duplicate {
			t.Fatalf("%+v, want sequence %d, duplicate %t", ack, seq, duplicate)
		}
	}
	refused := func(id string, after uint64, want error) {
		t.Helper()
		if _, err := c.Append(deadline(t), event(id), after); !errors.Is(err, want) {
			t.Fatalf("%v, want %v", err, want)
		}
	}
	check("a/1", 0, 1, false)
	check("a/2", 1, 2, false)
	// the acknowledgement of the second was lost: it is found again
	check("a/2", 1, 2, false)
	// an id that the stream remembers
	check("a/1", 2, 1, true)
	// two writers that both know two messages: the first wins
	check("b/1", 2, 3, false)
	refused("c/1", 2, bus.ErrOvertaken)
	// nothing of it is kept once the stream is emptied
	if got := state(t, c, bus.EventsStream("prod")); got.Messages != 3 {
		t.Fatalf("%d messages, want 3", got.Messages)
	}
	must(t, bus.Purge(deadline(t), c, bus.EventsStream("prod")))
	refused("c/1", 2, bus.ErrOvertaken)
	check("c/1", 3, 4, false)
	refused("d/1", 9, bus.ErrStreamRenewed)
	if _, err := c.Append(deadline(t), bus.Message{Subject: "hs.events.prod.x", Data: []byte("x")}, 4); err == nil {
		t.Error("a message without id is stored")
	}
}

// No message is lost or stored twice while the server that leads the stream dies, and comes back.
func TestAppendSurvivesItsLeader(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", bustest.Replicas(3))
	const n = 300
	killed := -1
	for i := range uint64(n) {
		switch i {
		case 100:
			killed = leaderOf(t, c, bus.EventsStream("prod"))
			s.Kill(killed)
		case 200:
			s.Start(killed)
		}
		ack, err := c.Append(deadline(t), event(fmt.Sprint(i)), i)
		must(t, err)
		if ack.Seq != i+1 || ack.Duplicate {
			t.Fatalf("message %d is stored as %+v", i, ack)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	s := bustest.Start(b)
	c := s.Conn(b)
	bustest.Provision(b, c, "prod")
	m := event("")
	m.Data = make([]byte, 500)
	after := uint64(0)
	for b.Loop() {
		m.ID = fmt.Sprint(after)
		if _, err := c.Append(b.Context(), m, after); err != nil {
			b.Fatal(err)
		}
		after++
	}
	b.ReportMetric(float64(after)/b.Elapsed().Seconds(), "events/s")
}
