package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// deadline is for one thing that a test waits for, or for all that it reads.
func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func state(t testing.TB, c *bus.Conn, stream string) bus.State {
	t.Helper()
	s, err := c.StreamState(deadline(t), stream)
	must(t, err)
	return s
}

func TestPublishStoresAnIDOnceAcrossRestart(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	p := c.Publisher(bus.PublisherConfig{})
	m := bus.Message{Subject: bus.SamplesSubject("prod", "n1"), ID: "prod/n1/7", Data: []byte("batch")}
	first, err := p.Publish(deadline(t), m)
	must(t, err)
	again, err := p.Publish(deadline(t), m)
	must(t, err)
	if !again.Duplicate || again.Seq != first.Seq {
		t.Fatalf("second publish: %+v, want a duplicate of %d", again, first.Seq)
	}
	s.Restart()
	again, err = p.Publish(deadline(t), m)
	must(t, err)
	if !again.Duplicate || again.Seq != first.Seq {
		t.Fatalf("publish after restart: %+v, want a duplicate of %d", again, first.Seq)
	}
	if got := state(t, c, bus.SamplesStream("prod")); got.Messages != 1 {
		t.Fatalf("stream holds %d messages, want 1", got.Messages)
	}
}

func TestPublishWaitsForBusAndLosesNothing(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	p := c.Publisher(bus.PublisherConfig{})
	s.Stop()
	var futures []*bus.Future
	for i := range 50 {
		f, err := p.Begin(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", fmt.Sprint("n", i)), ID: fmt.Sprint("id", i), Data: make([]byte, 100)})
		must(t, err)
		futures = append(futures, f)
	}
	s.Up()
	for _, f := range futures {
		_, err := f.Wait(deadline(t))
		must(t, err)
	}
	if got := state(t, c, bus.SamplesStream("prod")); got.Messages != 50 {
		t.Fatalf("stream holds %d messages, want 50", got.Messages)
	}
}

func TestPublishWaitsForItsStream(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	p := c.Publisher(bus.PublisherConfig{})
	f, err := p.Begin(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), ID: "1"})
	must(t, err)
	for p.Retries() == 0 {
		time.Sleep(time.Millisecond)
	}
	bustest.Provision(t, c, "prod")
	_, err = f.Wait(deadline(t))
	must(t, err)
}

func TestPublishSaysWhatCannotSucceed(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	p := c.Publisher(bus.PublisherConfig{})

	// larger than any message may be
	_, err := p.Publish(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), Data: make([]byte, bus.MaxPayload+1)})
	if !errors.Is(err, bus.ErrTooLarge) {
		t.Fatalf("too large: %v", err)
	}
	// as large as any, but the headers count
	_, err = p.Publish(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), ID: "x", Data: make([]byte, bus.MaxPayload)})
	if !errors.Is(err, bus.ErrTooLarge) {
		t.Fatalf("too large by its headers: %v", err)
	}
	// a subject of another stream
	_, err = p.Publish(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), Stream: bus.RollupsStream("prod")})
	if !errors.Is(err, bus.ErrRefused) {
		t.Fatalf("other stream: %v", err)
	}
	// nobody takes it, and patience ends
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = p.Publish(ctx, bus.Message{Subject: "nobody.takes.this"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("no stream: %v", err)
	}
}

// Alone: it fills the server's queue of 128 MiB.
func TestPublishSurvivesPressureOfManyPublishers(t *testing.T) {
	s := bustest.Start(t)
	c := s.Conn(t)
	bustest.Provision(t, c, "prod")
	const publishers, each = 8, 100
	data := make([]byte, 200<<10)
	var futures []*bus.Future
	for n := range publishers {
		p := c.Publisher(bus.PublisherConfig{MaxPending: 4000, MaxPendingBytes: 1 << 30})
		for i := range each {
			f, err := p.Begin(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", fmt.Sprint(n)), ID: fmt.Sprint(n, "/", i), Data: data})
			must(t, err)
			futures = append(futures, f)
		}
	}
	for _, f := range futures {
		_, err := f.Wait(deadline(t))
		must(t, err)
	}
	if got := state(t, c, bus.SamplesStream("prod")); got.Messages != publishers*each {
		t.Fatalf("stream holds %d messages, want %d", got.Messages, publishers*each)
	}
}

// A write may fail before the client knows that the connection ended; what ended
// it does not last.
func TestBrokenWriteIsTriedAgain(t *testing.T) {
	broken, other := net.Pipe()
	must(t, other.Close())
	_, pipe := broken.Write([]byte("x"))
	must(t, broken.Close())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	must(t, errors.Join(l.Close(), c.Close()))
	_, closed := c.Write([]byte("x"))
	_, refused := net.Dial("tcp", l.Addr().String())
	for _, err := range []error{pipe, closed, refused} {
		if err == nil || !bus.Passing(err) {
			t.Errorf("%v is taken to last", err)
		}
	}
	if bus.Passing(bus.ErrNotPermitted) {
		t.Error("a refusal is taken to pass")
	}
}

// A process that starts before its bus has what it publishes stored once that is there: none of it is refused.
func TestPublisherMayStartBeforeTheBus(t *testing.T) {
	t.Parallel()
	s := bustest.Configure(t, "")
	bustest.Provision(t, connected(t, s, bus.Config{}), "prod")
	s.Stop()
	c := bus.Quick(s.Conn(t, bus.Config{}, bustest.Logger(t)))
	done := make(chan error, 1)
	went := make(chan struct{})
	go func() {
		p := c.Publisher(bus.PublisherConfig{})
		f, err := p.Begin(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", "n"), ID: "1"})
		close(went)
		if err == nil {
			_, err = f.Wait(deadline(t))
		}
		done <- err
	}()
	<-went
	s.Up("")
	must(t, <-done)
	if got := state(t, c, bus.SamplesStream("prod")).Messages; got != 1 {
		t.Errorf("%d messages are stored, want 1", got)
	}
}
