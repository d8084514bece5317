package worker

import (
	"context"
	"math/rand/v2"
	"time"
)

// Retry is how long to wait between attempts: First, doubled each time up to Most; of that between half
// and all, by chance, so that many workers do not come back at once. There is no last attempt.
type Retry struct {
	First, Most time.Duration
}

// DefaultRetry waits from 250 ms to 30 s.
func DefaultRetry() Retry { return Retry{First: 250 * time.Millisecond, Most: 30 * time.Second} }

// Delay is the wait before attempt n+1, n counting from 0; at least least.
func (r Retry) Delay(n int, least time.Duration) time.Duration {
	d := r.Most
	if n < 30 {
		d = min(d, r.First<<n)
	}
	if d <= 0 {
		d = r.Most
	}
	d = d/2 + rand.N(d/2+1)
	return max(d, least)
}

// Wait waits for Delay, or until ctx ends: then it returns its error.
func (r Retry) Wait(ctx context.Context, n int, least time.Duration) error {
	t := time.NewTimer(r.Delay(n, least))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
