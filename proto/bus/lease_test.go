package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

func TestLeaseIsTakenAtOnceFromOneThatStops(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	a, b := s.Conn(t), s.Conn(t)
	bustest.Provision(t, a, "")
	key := bus.AggregatorLease("prod")
	first, err := a.Hold(deadline(t), key, "first")
	must(t, err)
	if _, err := b.TryHold(deadline(t), key, "second"); !errors.Is(err, bus.ErrHeld) {
		t.Fatalf("second holder: %v", err)
	}
	ctx, cancel := first.Context(t.Context())
	defer cancel()
	var released time.Time
	var wg sync.WaitGroup
	wg.Go(func() {
		second, err := b.Hold(deadline(t), key, "second")
		if err != nil {
			t.Error(err)
			return
		}
		took := time.Since(released)
		t.Logf("takeover of a released lease took %s", took)
		if took > bus.LeaseTTL {
			t.Errorf("takeover took %s, as long as if the lease had run out", took)
		}
		if err := second.Release(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	for waiting := false; !waiting; { // the second one watches the key
		waiting = state(t, a, "KV_"+bus.LeasesBucket).Messages > 0 && consumers(t, a) > 0
	}
	released = time.Now()
	must(t, first.Release(deadline(t)))
	must(t, first.Release(deadline(t))) // twice is fine
	wg.Wait()
	<-ctx.Done()
	if !errors.Is(first.Err(), bus.ErrClosed) || !errors.Is(context.Cause(ctx), bus.ErrClosed) {
		t.Fatal(first.Err(), context.Cause(ctx))
	}
	left, err := a.Leases(deadline(t), "")
	must(t, err)
	if len(left) != 0 {
		t.Fatalf("leases are left: %+v", left)
	}
}

func consumers(t testing.TB, c *bus.Conn) int {
	n, err := c.CountConsumers(deadline(t), "KV_"+bus.LeasesBucket)
	must(t, err)
	return n
}

// Both ways of losing a lease run at once, since both take its time.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	a, b := s.Conn(t), s.Conn(t)
	bustest.Provision(t, a, "")
	var wg sync.WaitGroup
	wg.Go(func() { // the holder is killed
		taken := time.Now()
		killed, err := a.Hold(deadline(t), "sink.killed", "first")
		if err != nil {
			t.Error(err)
			return
		}
		killed.Freeze()
		heir, err := b.Hold(deadline(t), "sink.killed", "second")
		if err != nil {
			t.Error(err)
			return
		}
		lasted := time.Since(taken)
		t.Logf("a killed holder's lease lasted %s", lasted)
		if lasted < bus.LeaseTTL-100*time.Millisecond { // by the server's timer
			t.Errorf("a killed holder's lease lasted %s, want %s or more", lasted, bus.LeaseTTL)
		}
		// the killed one wakes up and does not take it back
		if err := killed.Release(deadline(t)); err != nil {
			t.Error(err)
		}
		if _, err := a.TryHold(deadline(t), "sink.killed", "third"); !errors.Is(err, bus.ErrHeld) {
			t.Errorf("third holder: %v", err)
		}
		if err := heir.Release(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { // somebody overwrites the record
		robbed, err := a.Hold(deadline(t), "sink.robbed", "first")
		if err != nil {
			t.Error(err)
			return
		}
		if err := b.Write(deadline(t), bus.LeasesBucket, "sink.robbed", []byte(`{"owner":"robber","token":"x"}`)); err != nil {
			t.Error(err)
		}
		select {
		case <-robbed.Lost():
			if !errors.Is(robbed.Err(), bus.ErrLeaseLost) {
				t.Error(robbed.Err())
			}
		case <-deadline(t).Done():
			t.Error("a robbed lease is still held")
		}
		if err := robbed.Release(deadline(t)); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { // one that renews is held for longer than its time
		var lost error
		for range 5 { // a machine that stands still for longer than a lease loses it rightly, but not each time
			kept, err := a.Hold(deadline(t), "sink.kept", "first")
			if err != nil {
				t.Error(err)
				return
			}
			lost = nil
			select {
			case <-kept.Lost():
				lost = kept.Err()
			case <-time.After(bus.LeaseTTL + time.Second):
			}
			if err := kept.Release(deadline(t)); err != nil {
				t.Error(err)
			}
			if lost == nil {
				return
			}
		}
		t.Error(lost)
	})
	wg.Wait()
}

func TestLeaseHasOneHolderAtATime(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	bustest.Provision(t, s.Conn(t), "")
	var mu sync.Mutex
	holding, rounds := "", 0
	var wg sync.WaitGroup
	for n := range 4 {
		c := bus.Quick(s.Conn(t))
		wg.Go(func() {
			me := fmt.Sprint("holder-", n)
			for range 5 {
				l, err := c.Hold(deadline(t), "sink.x", me)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if holding != "" {
					t.Errorf("%s holds beside %s", me, holding)
				}
				holding = me
				mu.Unlock()
				if got, err := c.Leases(deadline(t), "sink."); err != nil || len(got) != 1 || got[0].Owner != me {
					t.Errorf("leases %+v %v, want %s", got, err, me)
				}
				mu.Lock()
				holding = ""
				rounds++
				mu.Unlock()
				if err := l.Release(deadline(t)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if rounds != 20 {
		t.Fatalf("%d rounds, want 20", rounds)
	}
}

func TestHeartbeatIsSeenToComeAndGo(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	a, b := bus.Quick(s.Conn(t)), bus.Quick(s.Conn(t))
	bustest.Provision(t, a, "")
	beating, stop := context.WithCancel(deadline(t))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Heartbeat(beating, bus.MemberLease("me.1"), "me"); err != nil {
			t.Error(err)
		}
	})
	came := false
	for l, err := range b.WatchLeases(deadline(t), bus.MemberLeases) {
		must(t, err)
		switch {
		case l.Key == "":
		case l.Key != bus.MemberLease("me.1"):
			t.Fatalf("key %q", l.Key)
		case !l.Gone && l.Owner == "me":
			came = true
			stop()
		case l.Gone && came:
			wg.Wait()
			return
		}
	}
	t.Fatal("watch ended")
}

func TestClusterNameBelongsToOneUID(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "")
	created := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	info := bus.ClusterInfo{UID: "u1", Resolution: time.Minute, Created: created}
	must(t, c.Register(deadline(t), "prod.eu", info))
	must(t, c.Register(deadline(t), "prod.eu", info))
	info.Resolution, info.Created = 15*time.Second, created.Add(time.Hour)
	must(t, c.Register(deadline(t), "prod.eu", info))
	if err := c.Register(deadline(t), "prod.eu", bus.ClusterInfo{UID: "u2"}); !errors.Is(err, bus.ErrOtherCluster) {
		t.Fatal(err)
	}
	must(t, c.Register(deadline(t), "dev", bus.ClusterInfo{UID: "u3", Resolution: time.Minute, Created: created}))
	got, err := c.Clusters(deadline(t))
	must(t, err)
	want := bus.ClusterInfo{Cluster: "prod.eu", UID: "u1", Resolution: 15 * time.Second, Created: created}
	if len(got) != 2 || got[0].Cluster != "dev" || got[1] != want {
		t.Fatalf("clusters %+v", got)
	}
	step := 0
	for change, err := range c.WatchClusters(deadline(t)) {
		must(t, err)
		switch step {
		case 0, 1:
			if change.ClusterInfo != got[step] {
				t.Fatalf("step %d: %+v", step, change)
			}
		case 2:
			if change.Cluster != "" {
				t.Fatalf("step %d: %+v", step, change)
			}
			must(t, c.Unregister(deadline(t), "dev"))
		case 3:
			if change.Cluster != "dev" || !change.Gone {
				t.Fatalf("step %d: %+v", step, change)
			}
			must(t, c.Register(deadline(t), "dev", bus.ClusterInfo{UID: "u4"})) // the name is free again
		case 4:
			if change.UID != "u4" || change.Gone {
				t.Fatalf("step %d: %+v", step, change)
			}
			return
		}
		step++
	}
	t.Fatal("watch ended")
}

// One leads, the other is told who does and follows when that one has returned, whose error is Lead's.
func TestLeadersFollowEachOther(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	a, b := s.Conn(t), s.Conn(t)
	bustest.Provision(t, a, "")
	const key = "inventory.prod"
	done := errors.New("done")
	leading, enough := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		err := a.Lead(t.Context(), key, "first", func(err error) { t.Errorf("the first stands by: %v", err) }, func(held context.Context) error {
			close(leading)
			select {
			case <-enough:
			case <-held.Done():
				t.Error("the lease is gone")
			}
			return done
		})
		if !errors.Is(err, done) {
			t.Error(err)
		}
	})
	<-leading
	stoodBy := 0
	err := b.Lead(t.Context(), key, "second", func(err error) {
		if stoodBy++; !errors.Is(err, bus.ErrHeld) || !strings.Contains(err.Error(), `"first"`) {
			t.Errorf("stands by: %v", err)
		}
		close(enough)
	}, func(held context.Context) error { return held.Err() })
	if err != nil || stoodBy != 1 {
		t.Errorf("the second ends with %v, and stood by %d times", err, stoodBy)
	}
	first.Wait()
	left, err := a.Leases(deadline(t), "")
	must(t, err)
	if len(left) != 0 {
		t.Errorf("leases are left: %+v", left)
	}
}
