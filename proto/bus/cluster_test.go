package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// leaderOf is the index of the server that leads a stream.
func leaderOf(t *testing.T, c *bus.Conn, stream string) int {
	t.Helper()
	for until := deadline(t); ; time.Sleep(time.Millisecond) {
		name, err := c.LeaderOf(until, stream)
		if i := slices.Index([]string{"bustest-0", "bustest-1", "bustest-2"}, name); err == nil && i >= 0 {
			return i
		}
		if until.Err() != nil {
			t.Fatalf("stream %q has no leader: %q %v", stream, name, err)
		}
	}
}

// A sink loses no message and sees none out of order while the server that leads
// its stream and consumer dies, and another worker goes on where the first stood,
// as far as the servers have heard of it.
func TestDurableKeepsOrderWhileTheLeaderDies(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	c, w := bus.Quick(s.Conn(t)), bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", bustest.Replicas(3))
	const n = 600
	p := w.Publisher(bus.PublisherConfig{MaxPending: 1})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // all the time
		for i := range n {
			if _, err := p.Publish(deadline(t), bus.Message{Subject: node(i), ID: fmt.Sprint(i), Data: make([]byte, 200)}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	d := open(t, c, sinkConfig)
	killed, replaced, opened := -1, false, false
	for last := uint64(0); last < n; {
		batch, err := d.NextBatch(deadline(t), 20)
		must(t, err)
		if opened {
			// What was acknowledged while nobody led the consumer comes again: the first worker would
			// acknowledge it once more, the second cannot know. Nothing is left out.
			opened, last = false, min(last, batch[0].Seq-1)
		}
		for _, m := range batch {
			if m.Seq != last+1 || m.ID() != fmt.Sprint(last) {
				t.Fatalf("got %d (%s) after %d", m.Seq, m.ID(), last)
			}
			last = m.Seq
		}
		if last > 150 && killed < 0 {
			killed = leaderOf(t, w, sinkConfig.Stream)
			s.Kill(killed) // with a batch in hand
		}
		must(t, bus.AckAll(batch))
		if last > 350 && !replaced {
			replaced = true
			d.Kill()
			d, opened = open(t, c, sinkConfig), true // another worker
		}
	}
	for until := deadline(t); ; time.Sleep(5 * time.Millisecond) {
		lag, err := d.Lag(until)
		must(t, err)
		if lag.Pending == 0 && lag.Position == n {
			break
		}
	}
}

// A replay goes on when the server that has its consumer dies, not the one it is connected to, and also where it finds out
// because it asks that consumer what it may have missed: for the servers it is there, and nobody ever answers for it.
func TestReplayOutlivesTheServerOfItsConsumer(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	kill := s.Apart(2)
	c, w := bus.Asking(s.ConnTo(t, 0)), bus.Quick(s.ConnTo(t, 0))
	bustest.Provision(t, w, "prod", bustest.Replicas(3))
	fill(t, w, node, 0, 1, 10)
	stream := bus.SamplesStream("prod")
	ctx := deadline(t)
	// The servers choose at random which of them has it.
	for killed := false; !killed; {
		must(t, ctx.Err())
		seen := uint64(0)
		for d, err := range c.Replay(ctx, bus.ReplayConfig{Stream: stream}) {
			must(t, err)
			if d.Seq != seen+1 {
				t.Fatalf("got %d after %d", d.Seq, seen)
			}
			if seen = d.Seq; seen == 3 {
				break
			}
			if seen > 1 {
				continue
			}
			leaders, err := w.LeadersOfConsumers(ctx, stream)
			must(t, err)
			if !slices.Equal(leaders, []string{"bustest-2"}) {
				break // on another, or the one before is not gone yet
			}
			kill()
			killed = true
			fill(t, w, node, 1, 2, 10)
		}
		if killed && seen != 3 {
			t.Fatalf("saw up to %d, want 3", seen)
		}
	}
}

// A lease outlives the server that leads its bucket, has one holder all the time,
// and comes free when its holder dies.
func TestLeaseOutlivesTheLeader(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	a, b := bus.Quick(s.Conn(t)), bus.Quick(s.Conn(t))
	bustest.Provision(t, a, "", bustest.Replicas(3))
	key := bus.AggregatorLease("prod")
	first, err := a.Hold(deadline(t), key, "first")
	must(t, err)
	killed, dead := time.Now(), leaderOf(t, b, "KV_"+bus.LeasesBucket)
	s.Kill(dead)
	for until := deadline(t); leaderOf(t, b, "KV_"+bus.LeasesBucket) == dead; time.Sleep(time.Millisecond) {
		must(t, until.Err())
	}
	if took := time.Since(killed); took > bus.LeaseTTL/3 {
		t.Skipf("SKIP: on this machine the servers had no leader for up to %s, in which no lease can be renewed", took)
	}
	if _, err := b.TryHold(deadline(t), key, "second"); !errors.Is(err, bus.ErrHeld) {
		t.Fatalf("beside the holder: %v", err)
	}
	renewed := 0 // by the two that are left
	for l, err := range b.WatchLeases(deadline(t), "aggregator.") {
		must(t, err)
		if l.Gone {
			t.Fatalf("the lease ended: %+v", l)
		}
		if renewed++; renewed == 4 { // as it was, the end of what was, and two renewals
			break
		}
	}
	must(t, first.Err())
	if _, err := b.TryHold(deadline(t), key, "second"); !errors.Is(err, bus.ErrHeld) {
		t.Fatalf("beside the holder, later: %v", err)
	}
	first.Freeze()
	second, err := b.Hold(deadline(t), key, "second")
	must(t, err)
	must(t, second.Release(deadline(t)))
}

// What an operator does to durables holds on three servers, and when the one that leads them dies.
func TestOperatorsMoveAndPauseReplicatedDurables(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", bustest.Replicas(3))
	fill(t, c, node, 0, 10, 10)
	cfg := sinkConfig
	cfg.New = true
	open(t, c, cfg).Close()
	must(t, c.RewindDurable(deadline(t), cfg.Stream, cfg.Name, 1))
	must(t, c.PauseDurable(deadline(t), cfg.Stream, cfg.Name, time.Now().Add(time.Hour)))
	s.Kill(leaderOf(t, c, cfg.Stream))
	d := open(t, c, cfg)
	for until := deadline(t); ; time.Sleep(5 * time.Millisecond) { // who leads now may not have caught up
		lag, err := d.Lag(until)
		if err == nil && !lag.Paused.IsZero() && lag.Pending == 10 && lag.Position == 0 {
			break
		}
		if until.Err() != nil {
			t.Fatalf("after the leader's death: %+v %v", lag, err)
		}
	}
	must(t, c.PauseDurable(deadline(t), cfg.Stream, cfg.Name, time.Now()))
	for want := uint64(1); want <= 10; want++ {
		m := next(t, d)
		if m.Seq != want {
			t.Fatalf("got %d, want %d", m.Seq, want)
		}
		must(t, m.Ack())
	}
}
