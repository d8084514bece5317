package proto

import (
	"testing"
	"time"
)

func TestTickGridIsAlignedAsHeapsters(t *testing.T) {
	check := func(at string, resolution time.Duration, want string) {
		t.Helper()
		when, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := TickAt(when, resolution).String(); got != want {
			t.Errorf("TickAt(%s, %s) = %s, want %s", at, resolution, got, want)
		}
	}
	check("2026-11-20T20:26:59.999Z", time.Minute, "2026-11-20T20:26:00Z")
	check("2026-11-20T20:26:00Z", time.Minute, "2026-11-20T20:26:00Z") // an instant on the grid is its own tick
	check("2026-11-20T20:26:14Z", 5*time.Second, "2026-11-20T20:26:10Z")
	check("0001-01-01T00:00:15Z", 7*time.Second, "0001-01-01T00:00:14Z") // counted from Go's zero time, not from 1970
}

func TestTickTimesFollowTheResolution(t *testing.T) {
	for _, c := range []struct{ resolution, spread, deadline, grace, standIn time.Duration }{
		{5 * time.Second, 1250 * time.Millisecond, 2500 * time.Millisecond, 4750 * time.Millisecond, 45 * time.Second},
		{15 * time.Second, 3750 * time.Millisecond, 7500 * time.Millisecond, 12250 * time.Millisecond, 45 * time.Second},
		{60 * time.Second, 4 * time.Second, 10 * time.Second, 15 * time.Second, 120 * time.Second},
	} {
		if got := [...]time.Duration{Spread(c.resolution), Deadline(c.resolution), Grace(c.resolution), StandInFor(c.resolution)}; got != [...]time.Duration{c.spread, c.deadline, c.grace, c.standIn} {
			t.Errorf("%s: spread, deadline, grace, stand-in are %v", c.resolution, got)
		}
	}
	if got := Tick(60_000).Add(-2, 15*time.Second); got != 30_000 {
		t.Errorf("two ticks before 60 s is %d ms", got)
	}
}
