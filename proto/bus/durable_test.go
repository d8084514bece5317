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
	cfg.AckWait = 300 * time.Millisecond
	d := open(t, c, cfg)
	head := next(t, d)
	busy := time.NewTimer(4 * cfg.AckWait) // a slow write: the passing of time is what is tested
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
	ack, err := c.Redrive(deadline(t), l)
	must(t, err)
	if ack.Seq != 4 {
		t.Fatalf("re-driven as %d, want 4", ack.Seq)
	}
	for l, err := range c.Letters(deadline(t), "") {
		t.Fatalf("a letter is left: %+v %v", l, err)
	}
	must(t, c.RemoveLetter(deadline(t), l))
	must(t, next(t, d).Ack()) // 3
	if again := next(t, d); again.Seq != 4 || !slices.Equal(again.Data, m.Data) {
		t.Fatalf("got %d after the re-drive", again.Seq)
	}
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
	must(t, d.Pause(deadline(t), began.Add(400*time.Millisecond)))
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
