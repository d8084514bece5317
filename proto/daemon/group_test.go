package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// diary is what happened, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// part works until it is told to stop, which takes it a second, and returns err.
func (d *diary) part(name string, err error) func(context.Context) error {
	return func(ctx context.Context) error {
		d.note("start " + name)
		<-ctx.Done()
		d.note("stop " + name)
		time.Sleep(time.Second) // of synctest's clock
		d.note("end " + name)
		return err
	}
}

func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(d.lines, want) {
		t.Errorf("happened: %s\nwant:     %s", strings.Join(d.lines, ", "), strings.Join(want, ", "))
	}
}

func TestGroupStopsInReverseOrderEachWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var g Group
		ready := func(context.Context) error { time.Sleep(time.Second); return nil }
		g.Add("bus", d.part("bus", nil), Until(ready))
		g.Add("sinks", d.part("sinks", context.Canceled), Until(ready))
		g.Add("scraper", d.part("scraper", nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("a wished stop returns %v", err)
		}
		d.expect(t, "start bus", "start sinks", "start scraper",
			"stop scraper", "end scraper", "stop sinks", "end sinks", "stop bus", "end bus")
	})
}

func TestGroupReturnsFirstCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var g Group
		boom, later := errors.New("boom"), errors.New("later")
		g.Add("bus", d.part("bus", later))
		g.Add("aggregator", func(context.Context) error { time.Sleep(time.Second); return boom })
		g.Add("sinks", d.part("sinks", later))
		if err := g.Run(t.Context()); !errors.Is(err, boom) || err.Error() != "aggregator: boom" {
			t.Errorf("got %v", err)
		}
		if last := d.lines[len(d.lines)-1]; last != "end bus" {
			t.Errorf("returned before all had ended: %v", d.lines)
		}
	})
}

func TestGroupReturnsErrorOfStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		var g Group
		lost := errors.New("backlog lost")
		g.Add("scraper", d.part("scraper", lost))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Run(ctx); !errors.Is(err, lost) {
			t.Errorf("got %v", err)
		}
	})
}

func TestGroupTakesEarlyEndForFailureUnlessItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nothing := func(context.Context) error { return nil }
		var g Group
		g.Add("quick", nothing)
		if err := g.Run(t.Context()); err == nil || err.Error() != "quick ended although nobody asked it to stop" {
			t.Errorf("got %v", err)
		}

		var d diary
		g = Group{}
		g.Add("provision", nothing, MayEnd())
		g.Add("bus", d.part("bus", nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := g.Run(ctx); err != nil || time.Since(begin) < time.Minute {
			t.Errorf("got %v after %s", err, time.Since(begin))
		}

		g = Group{}
		g.Add("provision", nothing, MayEnd())
		if err := g.Run(t.Context()); err != nil {
			t.Errorf("all have ended as they may: %v", err)
		}
		if err := new(Group).Run(t.Context()); err != nil {
			t.Errorf("an empty group: %v", err)
		}
	})
}

func TestGroupStartsNothingAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		boom := errors.New("boom")
		forever := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

		// a part that does not get ready
		var g Group
		g.Add("bus", d.part("bus", nil), Until(func(context.Context) error { return boom }))
		g.Add("sinks", d.part("sinks", nil))
		if err := g.Run(t.Context()); !errors.Is(err, boom) || err.Error() != "wait until bus is ready: boom" {
			t.Errorf("got %v", err)
		}
		// one that fails while another is waited for
		g = Group{}
		g.Add("telemetry", func(context.Context) error { time.Sleep(time.Second); return boom })
		g.Add("view", forever, Until(forever))
		g.Add("sinks", d.part("sinks", nil))
		if err := g.Run(t.Context()); !errors.Is(err, boom) || err.Error() != "telemetry: boom" {
			t.Errorf("got %v", err)
		}
		// a stop while waiting is a wished stop
		g = Group{}
		g.Add("view", forever, Until(forever))
		g.Add("sinks", d.part("sinks", nil))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("got %v", err)
		}
		if slices.Contains(d.lines, "start sinks") {
			t.Errorf("started after a failure: %v", d.lines)
		}
	})
}
