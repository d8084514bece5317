package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// fenced runs the facts about ownership on any bus.
func fenced(t *testing.T, conn func(testing.TB) *bus.Conn) {
	stream := bus.RollupsStream("prod")
	first := conn(t)
	own, err := first.TakeLanes(deadline(t), "prod", "first")
	must(t, err)
	defer own.Close()

	const messages = 3200
	subject := func(i int) (int, string) {
		node := fmt.Sprintf("node-%d.example", i%200)
		return bus.LaneOf(node), bus.NodeRollupSubject("prod", node)
	}
	began := time.Now()
	for i := range messages {
		lane, s := subject(i)
		must(t, own.Publish(deadline(t), lane, bus.Message{Subject: s, ID: fmt.Sprint("tick/", i), Data: make([]byte, 2000)}))
	}
	must(t, own.Flush(deadline(t)))
	t.Logf("%d messages over %d lanes took %s", messages, bus.Lanes, time.Since(began).Round(time.Millisecond))
	if got := state(t, first, stream).Messages; got != messages+bus.Lanes {
		t.Fatalf("stream holds %d messages, want %d", got, messages+bus.Lanes)
	}

	// renewing the epoch of every lane leaves it ours
	for n := range bus.Lanes {
		must(t, own.RenewEpoch(n))
		must(t, own.Publish(deadline(t), n, bus.Message{Subject: bus.TotalsSubject("prod"), ID: fmt.Sprint("renewed/", n)}))
		must(t, own.Flush(deadline(t))) // one lane after the other: the test moves epochs itself
	}

	// a successor takes over; the old owner wakes up with a finished message in hand
	second := conn(t)
	heir, err := second.TakeLanes(deadline(t), "prod", "second")
	must(t, err)
	defer heir.Close()
	before := state(t, second, stream).LastSeq
	for n := range bus.Lanes {
		lane, s := subject(n)
		_ = own.Publish(deadline(t), lane, bus.Message{Subject: s, ID: fmt.Sprint("late/", n)}) // may say already that it is fenced
	}
	if err := own.Flush(deadline(t)); !errors.Is(err, bus.ErrFenced) {
		t.Fatalf("flush of the old owner: %v, want %v", err, bus.ErrFenced)
	}
	select {
	case <-own.Done():
	case <-deadline(t).Done():
		t.Fatal("old owner's lanes still work")
	}
	own.Close()
	if got := state(t, second, stream).LastSeq; got != before {
		t.Fatalf("old owner stored %d messages after the takeover", got-before)
	}
	// the same id by the new owner is the message that is out
	lane, s := subject(7)
	must(t, heir.Publish(deadline(t), lane, bus.Message{Subject: s, ID: "tick/7"}))
	must(t, heir.Flush(deadline(t)))
	if _, doubled := heir.Stored(); doubled != 1 {
		t.Fatalf("%d doubled, want 1", doubled)
	}
	if err := own.Publish(deadline(t), 0, bus.Message{Subject: s, ID: "x"}); !errors.Is(err, bus.ErrFenced) {
		t.Fatal(err)
	}
	// what no lane takes
	if err := heir.Publish(deadline(t), bus.Lanes, bus.Message{Subject: s, ID: "x"}); err == nil {
		t.Fatal("a lane too many was taken")
	}
	if err := heir.Publish(deadline(t), 0, bus.Message{Subject: s}); err == nil {
		t.Fatal("a message without id was taken")
	}
}

func TestLanesFenceOnOneServer(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	bustest.Provision(t, s.Conn(t), "prod")
	conn := func(t testing.TB) *bus.Conn { return s.Conn(t) }
	fenced(t, conn)
	fencedBeforeItsNextNewMessage(t, conn, true)
}

func TestLanesFenceOnThreeServers(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	bustest.Provision(t, s.Conn(t), "prod", bustest.Replicas(3))
	conn := func(t testing.TB) *bus.Conn { return s.Conn(t) }
	fenced(t, conn)
	fencedBeforeItsNextNewMessage(t, conn, false)
}

// orderly checks that every lane's subject holds 0 to n-1, each once and in order.
func orderly(t *testing.T, c *bus.Conn, n int) {
	t.Helper()
	upto := state(t, c, bus.RollupsStream("prod")).LastSeq
	next := map[string]int{}
	for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: bus.RollupsStream("prod")}) {
		must(t, err)
		a, err := bus.ParseSubject(d.Subject)
		must(t, err)
		if a.Kind == bus.NodeRollup {
			if want := fmt.Sprint(a.Name, "/", next[a.Name]); d.ID() != want {
				t.Fatalf("message %d is %s, want %s", d.Seq, d.ID(), want)
			}
			next[a.Name]++
		}
		if d.Seq >= upto { // not d.Pending == 0: a server that has just come back delivers while it catches up
			break
		}
	}
	for node, got := range next {
		if got != n {
			t.Fatalf("node %s has %d messages, want %d", node, got, n)
		}
	}
	if len(next) != bus.Lanes {
		t.Fatalf("%d nodes, want %d", len(next), bus.Lanes)
	}
}

// writeWhile writes to every lane, in rounds that are flushed, until trouble has
// ended, and returns the number of messages in each lane. trouble is called once
// writing is under way and waits between its blows for wait.
func writeWhile(t *testing.T, own *bus.Ownership, trouble func(wait func())) int {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		trouble(func() {
			for before, _ := own.Stored(); own.Err() == nil; time.Sleep(time.Millisecond) {
				if now, _ := own.Stored(); now > before+100 {
					return
				}
			}
		})
	}()
	defer func() { <-ended }()
	for i := 0; ; i++ {
		for lane := range bus.Lanes {
			node := fmt.Sprintf("n%d", lane)
			must(t, own.Publish(deadline(t), lane, bus.Message{Subject: bus.NodeRollupSubject("prod", node), ID: fmt.Sprint(node, "/", i), Data: make([]byte, 500)}))
		}
		select {
		case <-ended:
			must(t, own.Flush(deadline(t)))
			return i + 1
		default:
		}
	}
}

func TestLanesStoreOnceInOrderAcrossRestarts(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	own, err := c.TakeLanes(deadline(t), "prod", "me")
	must(t, err)
	defer own.Close()
	n := writeWhile(t, own, func(wait func()) {
		for range 3 {
			wait()
			s.Restart()
		}
	})
	orderly(t, c, n)
}

func TestLanesStoreOnceInOrderWhileTheLeaderDies(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", bustest.Replicas(3))
	own, err := c.TakeLanes(deadline(t), "prod", "me")
	must(t, err)
	defer own.Close()
	leader, err := c.LeaderOf(deadline(t), bus.RollupsStream("prod"))
	must(t, err)
	i := slices.Index([]string{"bustest-0", "bustest-1", "bustest-2"}, leader)
	n := writeWhile(t, own, func(wait func()) {
		wait()
		s.Kill(i)
		wait() // two of three go on
		s.Start(i)
	})
	orderly(t, c, n)
}

// A replicated stream acknowledges what it has as a duplicate before it looks at
// the epoch, one server alone the other way round. Either way an owner that repeats
// itself, and one that writes nothing, knows soon.
func fencedBeforeItsNextNewMessage(t *testing.T, conn func(testing.TB) *bus.Conn, refusesAtOnce bool) {
	first := conn(t)
	own, err := first.TakeLanes(deadline(t), "prod", "first")
	must(t, err)
	defer own.Close()
	message := bus.Message{Subject: bus.NodeRollupSubject("prod", "n"), ID: "tick/1", Data: []byte("same bytes")}
	must(t, own.Publish(deadline(t), 3, message))
	must(t, own.Flush(deadline(t)))
	idle, err := first.TakeLanes(deadline(t), "prod", "idle") // fences the first, which does not know it yet
	must(t, err)
	defer idle.Close()

	// an attempt of the first for a message that is stored already
	before := state(t, first, bus.RollupsStream("prod")).LastSeq
	must(t, own.Publish(deadline(t), 3, message))
	err = own.Flush(deadline(t))
	if refusesAtOnce && !errors.Is(err, bus.ErrFenced) { // else it may have looked at its epoch by itself
		t.Fatalf("flush of the fenced owner: %v, want %v", err, bus.ErrFenced)
	}
	// it repeats itself until it is told
	for until := deadline(t); !errors.Is(err, bus.ErrFenced); {
		if err != nil {
			t.Fatal(err)
		}
		if until.Err() != nil {
			t.Fatal("still told of duplicates after the takeover")
		}
		if err = own.Publish(deadline(t), 3, message); err == nil {
			err = own.Flush(deadline(t))
		}
	}
	if after := state(t, first, bus.RollupsStream("prod")).LastSeq; after != before {
		t.Fatalf("the fenced owner stored %d messages", after-before)
	}

	// one that writes nothing at all is told as well
	heir, err := conn(t).TakeLanes(deadline(t), "prod", "heir")
	must(t, err)
	defer heir.Close()
	select {
	case <-idle.Done():
		if !errors.Is(idle.Err(), bus.ErrFenced) {
			t.Fatal(idle.Err())
		}
	case <-deadline(t).Done():
		t.Fatal("an idle owner does not know of its successor")
	}
	if heir.Err() != nil {
		t.Fatal(heir.Err())
	}
}
