package proto

import "time"

// Tick is an instant on the common grid, in Unix milliseconds. All batches of one tick carry the
// same value; it is the timestamp of everything derived from them. The zero Tick means "none".
type Tick int64

// MinResolution is the shortest distance between two ticks.
const MinResolution = 5 * time.Second

// TickAt returns the last tick at or before t. The grid is aligned as Heapster's: multiples of the
// resolution since Go's zero time, so that 60 s falls on whole minutes.
func TickAt(t time.Time, resolution time.Duration) Tick {
	return Tick(t.Truncate(resolution).UnixMilli())
}

// Time returns the tick as a UTC time.
func (t Tick) Time() time.Time { return time.UnixMilli(int64(t)).UTC() }

// Add returns the tick n resolutions later (earlier for negative n).
func (t Tick) Add(n int, resolution time.Duration) Tick {
	return t + Tick(int64(n)*resolution.Milliseconds())
}

// String formats the tick as RFC 3339 in UTC, for logs and errors.
func (t Tick) String() string { return t.Time().Format(time.RFC3339) }

// Spread is how far scrapes of one tick are spread over time: min(resolution/4, 4 s).
func Spread(resolution time.Duration) time.Duration { return min(resolution/4, 4*time.Second) }

// Deadline is how long one scrape may take: min(resolution/2, 10 s).
func Deadline(resolution time.Duration) time.Duration { return min(resolution/2, 10*time.Second) }

// Grace is how long after its instant a tick waits for silent nodes:
// spread + deadline + min(resolution/5, 1 s).
func Grace(resolution time.Duration) time.Duration {
	return Spread(resolution) + Deadline(resolution) + min(resolution/5, time.Second)
}

// StandInFor is how long a sample that does not advance stands in for a new one:
// max(2 x resolution, 45 s). Kubelets renew their samples every 10 to 20 s, so at short
// resolutions an unchanged sample is the daily case and not a failure.
func StandInFor(resolution time.Duration) time.Duration { return max(2*resolution, 45*time.Second) }
