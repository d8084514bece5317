package bus_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

var sinkConfig = bus.DurableConfig{Stream: bus.SamplesStream("prod"), Name: bus.SinkDurable("influx"), Reader: "sink.influx"}

func open(t testing.TB, c *bus.Conn, cfg bus.DurableConfig) *bus.Durable {
	t.Helper()
	d, err := c.Durable(deadline(t), cfg)
	must(t, err)
	t.Cleanup(d.Close)
	return d
}

func next(t testing.TB, d *bus.Durable) bus.Delivery {
	t.Helper()
	got, err := d.Next(deadline(t))
	must(t, err)
	return got
}

func TestDurableSuccessorBeginsWhereTheDeadOneStood(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 40, 10)
	first := open(t, c, sinkConfig)
	for want := uint64(1); want <= 20; want++ {
		d := next(t, first)
		if d.Seq != want {
			t.Fatalf("got %d, want %d", d.Seq, want)
		}
		if want <= 5 {
			must(t, d.Ack())
		}
	}
	must(t, bus.Raw(c).Flush())
	first.Kill() // 6 to 20 in hand
	second := open(t, c, sinkConfig)
	for want := uint64(6); want <= 40; want++ {
		d := next(t, second)
		if d.Seq != want {
			t.Fatalf("successor got %d, want %d", d.Seq, want)
		}
		must(t, d.Ack())
	}
	lag, err := second.Lag(deadline(t))
	must(t, err)
	if lag.Pending != 0 || lag.Lost != 0 {
		t.Fatalf("lag %+v, want none", lag)
	}
}

func TestDurableKeepsOrderAcrossRestarts(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c, w := bus.Quick(s.Conn(t)), bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	const n = 1500
	fill(t, w, node, 0, n, 200)
	d := open(t, c, sinkConfig)
	last := uint64(0)
	for last < n {
		batch, err := d.NextBatch(deadline(t), 50)
		must(t, err)
		for _, m := range batch {
			if m.Seq != last+1 {
				t.Fatalf("got %d after %d", m.Seq, last)
			}
			last = m.Seq
		}
		if last > 500 && last < 600 || last > 1000 && last < 1060 {
			s.Restart() // with a batch in hand, and more on the way
		}
		must(t, bus.AckAll(batch))
	}
	lag, err := d.Lag(deadline(t))
	must(t, err)
	if lag.Pending != 0 {
		t.Fatalf("lag %+v, want none pending", lag)
	}
}

func TestDurableHoldsWhatIsInHandOrOnItsWay(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	cfg := sinkConfig
	cfg.AckWait = 6 * time.Second // of which its renewal may be late by a third
	d := open(t, c, cfg)
	head := next(t, d)
	busy := time.NewTimer(cfg.AckWait * 3 / 2) // a slow write: the passing of time is what is tested
	<-busy.C
	must(t, head.Hold())
	must(t, head.Ack())
	for want := uint64(2); want <= 10; want++ {
		m := next(t, d)
		if m.Seq != want || m.Redelivered {
			t.Fatalf("got %d (redelivered: %v), want %d for the first time", m.Seq, m.Redelivered, want)
		}
		must(t, m.Ack())
	}
	if err := head.Ack(); !errors.Is(err, bus.ErrNotHeld) {
		t.Fatalf("second ack: %v", err)
	}
}

func TestDurableDeadLetters(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 3, 10)
	d := open(t, c, sinkConfig)
	m := next(t, d)
	must(t, m.Dead(deadline(t), "température: refused\nfor good"))
	// the same message once more is stored once
	must(t, c.Dead(deadline(t), m.Letter("sink.influx", "again")))
	must(t, next(t, d).Ack())
	var letters []bus.DeadLetter
	for l, err := range c.Letters(deadline(t), "sink.influx") {
		must(t, err)
		letters = append(letters, l)
	}
	if len(letters) != 1 {
		t.Fatalf("%d letters, want 1", len(letters))
	}
	l := letters[0]
	if l.Reason != "température: refused\nfor good" || l.Seq != m.Seq || l.Stream != m.Stream || l.Subject != m.Subject ||
		!l.Time.Equal(m.Time) || !slices.Equal(l.Data, m.Data) || l.Reader != "sink.influx" {
		t.Fatalf("letter %+v of %+v", l, m)
	}
	for range c.Letters(deadline(t), "aggregator.prod") {
		t.Fatal("a letter of another reader")
	}
	_, err := c.Redrive(deadline(t), l)
	must(t, err)
	for l, err := range c.Letters(deadline(t), "") {
		t.Fatalf("a letter is left: %+v %v", l, err)
	}
	must(t, c.RemoveLetter(deadline(t), l))
	must(t, next(t, d).Ack()) // 3; the re-driven one does not come to those who read the stream
	if st, err := c.StreamState(deadline(t), m.Stream); err != nil || st.LastSeq != 3 {
		t.Fatalf("stream ends at %d (%v), want 3", st.LastSeq, err)
	}

	// It comes to the sink it is a letter of, with where it came from, and may be refused once more.
	again := open(t, c, bus.DurableConfig{Stream: bus.DeadStream, Name: bus.SinkDurable("influx"), Subjects: []string{bus.AgainSubject("sink.influx")}})
	r := next(t, again)
	got := r.Letter("sink.influx", "refused again")
	if !slices.Equal(r.Data, m.Data) || got.Seq != m.Seq || got.Stream != m.Stream || got.Subject != m.Subject || !got.Time.Equal(m.Time) {
		t.Fatalf("re-driven %+v of %+v", got, m)
	}
	must(t, c.Dead(deadline(t), got))
	must(t, r.Ack())
	for l, err := range c.Letters(deadline(t), "sink.influx") {
		if must(t, err); l.Reason != "refused again" || l.Seq != m.Seq {
			t.Fatalf("letter %+v", l)
		}
	}
	if n, err := c.LetterCounts(deadline(t)); err != nil || len(n) != 1 || n["sink.influx"] != 1 {
		t.Fatalf("counts %v, %v", n, err)
	}

	// Any other reader's goes to the subject it came from.
	got.Reader = "aggregator.prod"
	must(t, c.Dead(deadline(t), got))
	for l, err := range c.Letters(deadline(t), "aggregator.prod") {
		must(t, err)
		_, err = c.Redrive(deadline(t), l)
		must(t, err)
	}
	if m := next(t, d); m.Seq != 4 || !slices.Equal(m.Data, r.Data) {
		t.Fatalf("got %d after the re-drive", m.Seq)
	}
}

func TestOperatorsMoveAndPauseDurables(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	cfg := sinkConfig
	cfg.New = true
	first := open(t, c, cfg)
	first.Close()
	state := func() bus.DurableState {
		t.Helper()
		all, err := c.SinkDurables(deadline(t), sinkConfig.Stream)
		must(t, err)
		if len(all) != 1 || all[0].Sink != "influx" || all[0].Name != sinkConfig.Name {
			t.Fatalf("durables %+v", all)
		}
		return all[0]
	}
	if st := state(); st.Lag.Pending != 0 || st.Lag.Position != 10 || !st.Lag.Paused.IsZero() {
		t.Fatalf("new: %+v", st)
	}
	// To the beginning, though it is to begin with what is new: a worker that opens it does not take it for a new one.
	must(t, c.RewindDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name, 1))
	if st := state(); st.Lag.Pending != 10 || st.Lag.Oldest <= 0 {
		t.Fatalf("rewound: %+v", st)
	}
	until := time.Now().Add(time.Hour)
	must(t, c.PauseDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name, until))
	d := open(t, c, cfg)
	if st := state(); !st.Lag.Paused.Equal(until.UTC()) || st.Lag.Pending != 10 {
		t.Fatalf("paused and opened: %+v, want until %s", st, until)
	}
	must(t, c.PauseDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name, time.Now()))
	if m := next(t, d); m.Seq != 1 {
		t.Fatalf("got %d, want 1", m.Seq)
	}
	at, ok, err := c.Get(deadline(t), sinkConfig.Stream, 7)
	if must(t, err); !ok {
		t.Fatal("message 7 is gone")
	}
	if seq, err := c.SeqAt(deadline(t), sinkConfig.Stream, at.Time); err != nil || seq > 7 || seq == 0 {
		t.Fatalf("time of 7 is at %d, %v", seq, err)
	}
}

func TestSeizeEndsTheHolder(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	key := bus.SinkLease("influx")
	held, err := c.Hold(deadline(t), key, "worker")
	must(t, err)
	l, err := c.Seize(deadline(t), key, "operator")
	must(t, err)
	select {
	case <-held.Lost():
	case <-deadline(t).Done():
	}
	if err := held.Err(); !errors.Is(err, bus.ErrLeaseLost) {
		t.Fatalf("the holder has %v, want ErrLeaseLost", err)
	}
	if _, err := c.TryHold(deadline(t), key, "worker"); !errors.Is(err, bus.ErrHeld) {
		t.Fatalf("taken beside the operator: %v", err)
	}
	must(t, l.Release(deadline(t)))
	again, err := c.Hold(deadline(t), key, "worker")
	must(t, err)
	must(t, again.Release(deadline(t)))
}

func TestDurableRewindsAndPauses(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	d := open(t, c, sinkConfig)
	for range 8 {
		must(t, next(t, d).Ack())
	}
	inHand := next(t, d)
	must(t, d.Rewind(deadline(t), 3))
	if err := inHand.Ack(); !errors.Is(err, bus.ErrNotHeld) {
		t.Fatalf("ack of a void delivery: %v", err)
	}
	for want := uint64(3); want <= 10; want++ {
		m := next(t, d)
		if m.Seq != want {
			t.Fatalf("got %d, want %d", m.Seq, want)
		}
		must(t, m.Ack())
	}
	began := time.Now()
	must(t, c.PauseDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name, began.Add(400*time.Millisecond)))
	fill(t, c, node, 10, 1, 10)
	must(t, next(t, d).Ack())
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Fatalf("delivered after %s of a pause of 400ms", took)
	}
}

func TestDurableStartsWhereAsked(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	seventh, _, err := c.Get(deadline(t), bus.SamplesStream("prod"), 7)
	must(t, err)
	check := func(name string, want uint64, change func(*bus.DurableConfig)) {
		t.Helper()
		cfg := sinkConfig
		cfg.Name = name
		change(&cfg)
		d := open(t, c, cfg)
		fill(t, c, node, int(state(t, c, cfg.Stream).LastSeq), 1, 10)
		if got := next(t, d); got.Seq != want {
			t.Fatalf("%s: begins at %d, want %d", name, got.Seq, want)
		}
	}
	check("all", 1, func(*bus.DurableConfig) {})
	check("seq", 4, func(c *bus.DurableConfig) { c.FromSeq = 4 })
	check("time", 7, func(c *bus.DurableConfig) { c.FromTime = seventh.Time })
	check("new", 14, func(c *bus.DurableConfig) { c.New = true })
	// it exists, and nothing was acknowledged: where it was, not where it is asked to begin
	check("seq", 4, func(c *bus.DurableConfig) { c.FromSeq = 9 })
}

func TestDurableTellsWhatItLost(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod", func(t *bus.Topology) { t.SamplesBytes = 16 << 20 })
	fill(t, c, node, 0, 2, 10)
	d := open(t, c, sinkConfig)
	must(t, next(t, d).Ack())
	must(t, next(t, d).Ack())
	d.Close()
	if _, err := d.Next(deadline(t)); !errors.Is(err, bus.ErrClosed) {
		t.Fatal(err)
	}
	fill(t, c, node, 2, 60, 400<<10)
	d = open(t, c, sinkConfig)
	lag, err := d.Lag(deadline(t))
	must(t, err)
	first := state(t, c, bus.SamplesStream("prod")).FirstSeq
	if lag.Lost != first-3 || lag.Position != 2 || lag.Pending == 0 || lag.Oldest <= 0 {
		t.Fatalf("lag %+v, want %d lost", lag, first-3)
	}
}

func TestDurableIsMadeAgain(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	d := open(t, c, sinkConfig)
	for range 4 {
		must(t, next(t, d).Ack())
	}
	must(t, c.RemoveDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name))
	must(t, c.RemoveDurable(deadline(t), sinkConfig.Stream, sinkConfig.Name)) // fine
	seen := map[uint64]bool{}
	for want := uint64(5); want <= 10; want++ {
		m := next(t, d)
		if m.Seq != want || seen[m.Seq] {
			t.Fatalf("got %d, want %d", m.Seq, want)
		}
		must(t, m.Ack())
	}
	fill(t, c, node, 10, 1, 10)
	if m := next(t, d); m.Seq != 11 {
		t.Fatalf("got %d, want %s", m.Seq, fmt.Sprint(11))
	}
}

// A server that has no time to answer for a consumer, but delivers, is listened to.
func TestDurableListensWhereNobodyAnswersForIt(t *testing.T) {
	t.Parallel()
	s := bustest.Configure(t, "")
	cfg := bus.DefaultConfig()
	cfg.URLs = nil
	c, other := bus.Curious(s.Conn(t, cfg, bustest.Logger(t))), s.Conn(t, cfg, bustest.Logger(t))
	must(t, c.WaitUp(deadline(t)))
	must(t, other.WaitUp(deadline(t)))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 1, 10)
	d := open(t, c, sinkConfig)
	must(t, next(t, d).Ack())
	asked, err := bus.Raw(other).SubscribeSync("unanswered")
	must(t, err)
	must(t, bus.Raw(other).Flush())
	s.Divert("$JS.API.CONSUMER.INFO."+sinkConfig.Stream+"."+sinkConfig.Name, "unanswered")

	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	defer cancel()
	read := make(chan error, 1)
	go func() {
		for want := uint64(2); want <= 4; want++ {
			m, err := d.Next(ctx)
			if err == nil && (m.Seq != want || m.Redelivered) {
				err = fmt.Errorf("got %d, again: %v; want %d for the first time", m.Seq, m.Redelivered, want)
			}
			if err == nil {
				err = m.Ack()
			}
			if err != nil {
				read <- err
				return
			}
		}
		read <- nil
	}()
	_, err = asked.NextMsgWithContext(ctx)
	must(t, err)
	fill(t, c, node, 1, 3, 10)
	must(t, <-read)
}

// A stream that was deleted and made anew is read from its beginning, also where it has come further meanwhile than the
// worker was in the old one.
func TestDurableBeginsAnewWithItsStream(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	d := open(t, c, sinkConfig)
	for range 4 {
		must(t, next(t, d).Ack())
	}
	must(t, c.RemoveCluster(deadline(t), "prod"))
	bustest.Provision(t, c, "prod")
	fill(t, c, node, 0, 10, 10)
	created := state(t, c, sinkConfig.Stream).Created
	for want := uint64(1); want <= 10; want++ {
		m := next(t, d)
		for m.Time.Before(created) { // was on its way when the old one was deleted
			must(t, m.Ack())
			m = next(t, d)
		}
		if m.Seq != want {
			t.Fatalf("got %d, want %d", m.Seq, want)
		}
		must(t, m.Ack())
	}
}
