package bus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// fill publishes n messages on subjects of one node each of size bytes.
func fill(t testing.TB, c *bus.Conn, subject func(i int) string, from, n, size int) {
	t.Helper()
	p := c.Publisher(bus.PublisherConfig{})
	for i := from; i < from+n; i++ {
		_, err := p.Publish(deadline(t), bus.Message{Subject: subject(i), ID: fmt.Sprint("m", i), Data: append(make([]byte, size), fmt.Sprint(i)...)})
		must(t, err)
	}
}

func node(i int) string { return bus.SamplesSubject("prod", fmt.Sprintf("node-%d.example", i%7)) }

func TestReplayGoesOnLive(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 20, 10)
	seen := uint64(0)
	for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod"), FromSeq: 6}) {
		must(t, err)
		if seen == 0 {
			seen = 5
		}
		if d.Seq != seen+1 {
			t.Fatalf("got %d after %d", d.Seq, seen)
		}
		if seen = d.Seq; seen == 20 {
			if d.Pending != 0 {
				t.Fatalf("pending %d at the end, want 0", d.Pending)
			}
			fill(t, c, node, 20, 5, 10) // live from here on
		}
		if seen == 25 {
			break
		}
	}
	if seen != 25 {
		t.Fatalf("saw up to %d, want 25", seen)
	}
}

// Who is told to stop stops, however much there is to read.
func TestReplayDoesNotReadABacklogToItsEnd(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 400, 10)
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	seen := 0
	for d, err := range c.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
		must(t, err)
		if seen++; d.Seq == 10 {
			cancel()
		}
	}
	if seen != 10 {
		t.Errorf("%d messages were read, want 10: told to stop at the tenth", seen)
	}
}

func TestReplayFromTime(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	sixth, ok, err := c.Get(deadline(t), bus.SamplesStream("prod"), 6)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod"), FromTime: sixth.Time}) {
		must(t, err)
		if d.Seq != 6 || !d.Time.Equal(sixth.Time) {
			t.Fatalf("first is %d of %s, want 6 of %s", d.Seq, d.Time, sixth.Time)
		}
		break
	}
}

func TestReplayIsExactAcrossRestarts(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	w, r := bus.Quick(s.Conn(t)), bus.Quick(s.Conn(t))
	bustest.Provision(t, w, "prod")
	const n = 6000
	var wg sync.WaitGroup
	wg.Go(func() {
		p := w.Publisher(bus.PublisherConfig{})
		for i := range n {
			if _, err := p.Publish(deadline(t), bus.Message{Subject: node(i), ID: fmt.Sprint(i), Data: make([]byte, 500)}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	last, restarts := uint64(0), make(chan struct{}, 1)
	wg.Go(func() {
		for range restarts {
			s.Restart()
		}
	})
	for d, err := range r.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
		must(t, err)
		if d.Seq != last+1 || d.ID() != fmt.Sprint(last) {
			t.Fatalf("got %d (%s) after %d", d.Seq, d.ID(), last)
		}
		if last = d.Seq; last == n {
			break
		}
		if last%2000 == 1000 {
			restarts <- struct{}{}
		}
	}
	close(restarts)
	wg.Wait()
	if last != n {
		t.Fatalf("saw %d, want %d", last, n)
	}
}

func TestReplayTellsWhatLeftTheStream(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", func(t *bus.Topology) { t.SamplesBytes = 16 << 20 })
	fill(t, c, node, 0, 60, 400<<10) // 24 MB into 16
	first := state(t, c, bus.SamplesStream("prod")).FirstSeq
	if first < 5 {
		t.Fatalf("first sequence is %d: nothing left the stream", first)
	}
	for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod"), FromSeq: 3}) {
		must(t, err)
		if d.Seq != first || d.Gap != first-3 {
			t.Fatalf("first delivery is %d after a gap of %d, want %d and %d", d.Seq, d.Gap, first, first-3)
		}
		break
	}
}

func TestReplayEndsWithReason(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 3, 10)
	end := func(ctx context.Context, cfg bus.ReplayConfig) error {
		for _, err := range c.Replay(ctx, cfg) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	// no such stream
	if err := end(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("other")}); !errors.Is(err, bus.ErrStreamMissing) {
		t.Fatal(err)
	}
	// a position the stream never had: it was made anew
	if err := end(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod"), FromSeq: 9}); !errors.Is(err, bus.ErrStreamRenewed) {
		t.Fatal(err)
	}
	// a wished stop, at the end of an empty read
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := end(ctx, bus.ReplayConfig{Stream: bus.SamplesStream("prod"), FromSeq: 4}); err != nil {
		t.Fatal(err)
	}
	// the stream is deleted while it is read
	first := true
	for _, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
		if first {
			first = false
			must(t, c.RemoveCluster(deadline(t), "prod"))
			continue
		}
		if err != nil {
			if !errors.Is(err, bus.ErrStreamMissing) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("replay of a deleted stream ended without a reason")
}

// proxy is a link to a server that can drop what the server sends, as a link
// that is about to break does.
type proxy struct {
	l     net.Listener
	to    string
	deaf  atomic.Bool // what the server says is dropped
	wg    sync.WaitGroup
	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	p := &proxy{l: l, to: to}
	p.wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, a, b)
			p.mu.Unlock()
			p.wg.Go(func() { io.Copy(b, a); b.Close() })
			p.wg.Go(func() {
				buf := make([]byte, 64<<10)
				for {
					n, err := b.Read(buf)
					if err != nil {
						break
					}
					if p.deaf.Load() {
						continue
					}
					if _, err := a.Write(buf[:n]); err != nil {
						break
					}
				}
				a.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); p.cut(); p.wg.Wait() })
	return p
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func TestReplayRecoversTailLostOnBlip(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, bustest.Listen)
	w := bus.Quick(s.Conn(t))
	bustest.Provision(t, w, "prod")
	link := newProxy(t, s.URL()[len("nats://"):])
	cfg := bus.DefaultConfig()
	cfg.URLs, cfg.ReconnectWait = []string{"nats://" + link.l.Addr().String()}, 5*time.Millisecond
	r, err := bus.Connect(t.Context(), cfg, bustest.Logger(t))
	must(t, err)
	t.Cleanup(r.Close)
	bus.Quick(r)
	must(t, r.WaitUp(deadline(t)))
	fill(t, w, node, 0, 10, 10)
	last := uint64(0)
	for d, err := range r.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
		must(t, err)
		if d.Seq != last+1 {
			t.Fatalf("got %d after %d", d.Seq, last)
		}
		last = d.Seq
		switch last {
		case 10:
			// the tail is delivered into nowhere, and nothing comes after it
			link.deaf.Store(true)
			fill(t, w, node, 10, 5, 10)
			link.cut()
			link.deaf.Store(false)
		case 15:
			return
		}
	}
	t.Fatalf("replay ended at %d", last)
}

func TestReplayNoticesDeletedConsumer(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 5, 10)
	last := uint64(0)
	for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
		must(t, err)
		if d.Seq != last+1 {
			t.Fatalf("got %d after %d", d.Seq, last)
		}
		if last = d.Seq; last == 5 {
			must(t, c.DropConsumers(deadline(t), bus.SamplesStream("prod")))
			fill(t, c, node, 5, 5, 10)
		}
		if last == 10 {
			return
		}
	}
	t.Fatalf("replay ended at %d", last)
}

func TestLastPerSubjectIsComplete(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := s.Conn(t)
	bustest.Provision(t, c, "prod")
	const nodes = 2000
	p := c.Publisher(bus.PublisherConfig{})
	for tick := range 2 {
		for i := range nodes {
			_, err := p.Begin(deadline(t), bus.Message{Subject: bus.NodeRollupSubject("prod", fmt.Sprintf("node-%d.example", i)),
				ID: fmt.Sprint(tick, "/", i), Data: make([]byte, 20<<10)})
			must(t, err)
		}
		p.Wait()
	}
	fill(t, c, func(int) string { return bus.TotalsSubject("prod") }, 0, 3, 10)
	upto, last, err := c.LastPerSubject(deadline(t), bus.RollupsStream("prod"), bus.NodeRollupFilter("prod"))
	must(t, err)
	if upto != 2*nodes+3 {
		t.Fatalf("complete up to %d, want %d", upto, 2*nodes+3)
	}
	seen := map[string]bool{}
	for d, err := range last {
		must(t, err)
		if d.Seq <= nodes || seen[d.Subject] {
			t.Fatalf("message %d of %q is not its last, or came twice", d.Seq, d.Subject)
		}
		seen[d.Subject] = true
	}
	if len(seen) != nodes {
		t.Fatalf("saw %d nodes, want %d", len(seen), nodes)
	}
	// one subject, and none
	d, ok, err := c.LastOn(deadline(t), bus.RollupsStream("prod"), bus.TotalsSubject("prod"))
	if err != nil || !ok || d.Seq != upto || d.ID() != "m2" {
		t.Fatal(d.Seq, ok, err)
	}
	if _, ok, err = c.LastOn(deadline(t), bus.RollupsStream("prod"), bus.EpochSubject("prod", 0)); ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, ok, err = c.Get(deadline(t), bus.RollupsStream("prod"), upto+1); ok || err != nil {
		t.Fatal(ok, err)
	}
	// no subject matches
	_, last, err = c.LastPerSubject(deadline(t), bus.RollupsStream("prod"), bus.NamespaceRollupFilter("prod"))
	must(t, err)
	for d, err := range last {
		t.Fatal(d, err)
	}
}

func TestStreamStateOfEmptyStream(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	got := state(t, c, bus.RollupsStream("prod"))
	if !got.Empty() || got.LastSeq != 0 || got.FirstSeq != 1 {
		t.Fatalf("%+v", got)
	}
	if _, err := c.StreamState(deadline(t), "NONE"); !errors.Is(err, bus.ErrStreamMissing) {
		t.Fatal(err)
	}
}
