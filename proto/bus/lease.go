package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nuid"
)

// leaseValue is the record of a lease; the token tells two holders of one name
// apart, and a holder its own write from another's.
type leaseValue struct {
	Owner string `json:"owner"`
	Token string `json:"token"`
}

// Lease is the right to be the only one, for as long as it is renewed. It says
// who should act; it is no fence: a frozen holder learns late that it was lost.
// What must not be done twice is fenced by Lanes or harmless by identity.
type Lease struct {
	c     *Conn
	key   string
	value []byte
	token string
	ttl   time.Duration

	seq   uint64    // of our record; of the renewing goroutine until it has ended
	until time.Time // our record is there at least until then, by our clock; likewise

	ctx  context.Context // ends with the lease
	lose context.CancelCauseFunc
	stop context.CancelFunc // ends the renewing
	done chan struct{}      // closed when the renewing has ended
}

// Hold blocks until the lease is taken or ctx ends. A holder that stops in order
// is followed at once, one that was killed after LeaseTTL. The caller releases
// it, also after it was lost.
func (c *Conn) Hold(ctx context.Context, key, owner string) (*Lease, error) {
	for {
		l, held, err := c.take(ctx, key, owner)
		if err != nil {
			return nil, fmt.Errorf("take lease %q: %w", key, err)
		}
		if l != nil {
			return l, nil
		}
		if err := c.awaitChange(ctx, key, held.seq); err != nil {
			return nil, fmt.Errorf("wait for lease %q: %w", key, err)
		}
	}
}

// TryHold takes the lease if it is free, else ErrHeld with the holder's name.
func (c *Conn) TryHold(ctx context.Context, key, owner string) (*Lease, error) {
	l, held, err := c.take(ctx, key, owner)
	if err != nil {
		return nil, fmt.Errorf("take lease %q: %w", key, err)
	}
	if l == nil {
		var v leaseValue
		_ = json.Unmarshal(held.value, &v) // a record of another kind has no owner to name
		return nil, fmt.Errorf("take lease %q: %w: %q", key, ErrHeld, v.Owner)
	}
	return l, nil
}

// Lead takes the lease, calls lead while it is held, and gives it back. Where another has it, Lead tells standby once,
// with an error that names the holder, and waits. The context of lead ends with the lease; Lead returns lead's error
// after it has returned, or why the lease could not be taken.
func (c *Conn) Lead(ctx context.Context, key, owner string, standby func(error), lead func(held context.Context) error) error {
	l, err := c.TryHold(ctx, key, owner)
	if errors.Is(err, ErrHeld) {
		standby(err)
		l, err = c.Hold(ctx, key, owner)
	}
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := l.Release(stop); err != nil {
			c.log.Warn("lease runs out by itself", "lease", key, "err", err)
		}
	}()
	held, cancel := l.Context(ctx)
	defer cancel()
	return lead(held)
}

// Seize takes the lease from whoever holds it, for an operator who needs the
// holder out of the way. It returns when the former holder has given up, at the
// latest LeaseTTL after it renewed last; one that waits for the lease takes it
// again when it is released.
func (c *Conn) Seize(ctx context.Context, key, owner string) (*Lease, error) {
	fail := func(err error) (*Lease, error) { return nil, fmt.Errorf("seize lease %q: %w", key, err) }
	v := leaseValue{Owner: owner, Token: nuid.Next()}
	value, err := json.Marshal(v)
	if err != nil {
		return fail(err)
	}
	held := false
	for n := 0; ; n++ {
		now, err := c.read(ctx, LeasesBucket, key)
		if err != nil {
			return fail(err)
		}
		held = held || !now.gone && tokenOf(now.value) != v.Token
		began := time.Now()
		seq, err := c.write(ctx, LeasesBucket, key, value, now.seq)
		if err == nil {
			l := c.newLease(key, value, v.Token, seq, began)
			if !held {
				return l, nil
			}
			given := time.NewTimer(LeaseTTL)
			defer given.Stop()
			select {
			case <-given.C:
				return l, nil
			case <-l.Lost():
				return fail(l.Err())
			case <-ctx.Done():
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				_ = l.Release(last) // else it runs out by itself
				return fail(ctx.Err())
			}
		}
		if ctx.Err() != nil {
			return fail(ended(ctx, nil, err))
		}
		if !outdated(err) && !passing(err) {
			return fail(lasting(err))
		}
		if err := c.pause(ctx, n); err != nil {
			return fail(err)
		}
	}
}

// take is the lease, or the record of who holds it.
func (c *Conn) take(ctx context.Context, key, owner string) (*Lease, record, error) {
	v := leaseValue{Owner: owner, Token: nuid.Next()}
	value, err := json.Marshal(v)
	if err != nil {
		return nil, record{}, err
	}
	for n := 0; ; n++ {
		now, err := c.read(ctx, LeasesBucket, key)
		if err != nil {
			return nil, record{}, err
		}
		seq := now.seq
		if !now.gone {
			if tokenOf(now.value) != v.Token {
				return nil, now, nil
			}
			// An attempt whose acknowledgement was lost: renew it to know its time.
		}
		began := time.Now()
		seq, err = c.write(ctx, LeasesBucket, key, value, seq)
		if err == nil {
			return c.newLease(key, value, v.Token, seq, began), record{}, nil
		}
		if ctx.Err() != nil {
			return nil, record{}, ended(ctx, nil, err)
		}
		if !outdated(err) && !passing(err) {
			return nil, record{}, lasting(err)
		}
		if err := c.pause(ctx, n); err != nil {
			return nil, record{}, err
		}
	}
}

func tokenOf(value []byte) string {
	var v leaseValue
	if json.Unmarshal(value, &v) != nil {
		return ""
	}
	return v.Token
}

// awaitChange blocks until the key is gone, or has not been renewed for so long
// that looking is better than waiting.
func (c *Conn) awaitChange(ctx context.Context, key string, seq uint64) error {
	const patience = LeaseTTL + LeaseTTL/2
	look, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.AfterFunc(patience, cancel)
	defer timer.Stop()
	for d, err := range c.Replay(look, ReplayConfig{Stream: bucketStream(LeasesBucket), Subjects: []string{bucketSubject(LeasesBucket, key)}, FromSeq: seq + 1}) {
		if errors.Is(err, ErrStreamRenewed) {
			return nil
		}
		if err != nil {
			return err
		}
		if recordOf(LeasesBucket, d).gone {
			return nil
		}
		timer.Reset(patience)
	}
	return ctx.Err()
}

func (c *Conn) newLease(key string, value []byte, token string, seq uint64, began time.Time) *Lease {
	l := &Lease{c: c, key: key, value: value, token: token, ttl: LeaseTTL, seq: seq, until: began.Add(LeaseTTL), done: make(chan struct{})}
	l.ctx, l.lose = context.WithCancelCause(context.Background())
	renewing, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() {
		defer close(l.done)
		if err := l.renew(renewing); err != nil {
			l.c.log.Warn("lease is lost", "lease", l.key, "err", err)
			l.lose(fmt.Errorf("lease %q: %w: %w", l.key, ErrLeaseLost, err))
		}
	}()
	return l
}

// Key is the lease's key.
func (l *Lease) Key() string { return l.key }

// Lost is closed when the lease is lost or released.
func (l *Lease) Lost() <-chan struct{} { return l.ctx.Done() }

// Err is nil while the lease is held, else wraps ErrLeaseLost, or ErrClosed after
// Release.
func (l *Lease) Err() error {
	if l.ctx.Err() == nil {
		return nil
	}
	return context.Cause(l.ctx)
}

// Context is a child of parent that ends with the lease; its cause is Err. The
// caller calls cancel.
func (l *Lease) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

// renew renews the record until ctx ends (nil) or it cannot in time.
func (l *Lease) renew(ctx context.Context) error {
	tick := time.NewTicker(l.ttl / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := l.renewOnce(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// renewOnce tries to renew until the record's time has run out.
func (l *Lease) renewOnce(ctx context.Context) error {
	ctx, cancel := context.WithDeadline(ctx, l.until)
	defer cancel()
	var last error
	for n := 0; ; n++ {
		began := time.Now()
		seq, err := l.c.write(ctx, LeasesBucket, l.key, l.value, l.seq)
		if err == nil {
			l.seq, l.until = seq, began.Add(l.ttl)
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		if outdated(err) {
			now, err := l.c.read(ctx, LeasesBucket, l.key)
			switch {
			case err != nil:
				last = err
			case now.gone:
				return errors.New("its time ran out on the bus")
			case tokenOf(now.value) != l.token:
				return errors.New("another has taken it")
			default:
				l.seq = now.seq // ours, and the acknowledgement was lost
			}
		} else if !passing(err) && ctx.Err() == nil {
			return lasting(err)
		}
		if err := l.c.pause(ctx, n); err != nil {
			if last == nil {
				last = err
			}
			return fmt.Errorf("not renewed in time: %w", last)
		}
	}
}

// Release ends the lease: renewing stops, Lost closes, and the key is deleted if
// it is still ours, so that another may take it at once. It waits for the bus at
// most until ctx ends; what is not deleted runs out by itself. It may be called
// twice.
func (l *Lease) Release(ctx context.Context) error {
	l.stop()
	<-l.done
	if l.ctx.Err() != nil {
		return nil
	}
	l.lose(fmt.Errorf("lease %q: %w", l.key, ErrClosed))
	for n := 0; ; n++ {
		err := l.c.erase(ctx, LeasesBucket, l.key, l.seq)
		if err == nil || time.Now().After(l.until) {
			return nil // deleted, or run out by itself
		}
		if outdated(err) {
			now, readErr := l.c.read(ctx, LeasesBucket, l.key)
			if readErr == nil {
				if now.gone || tokenOf(now.value) != l.token {
					return nil
				}
				l.seq = now.seq
			}
		} else if !passing(err) {
			return fmt.Errorf("release lease %q: %w", l.key, lasting(err))
		}
		if pauseErr := l.c.pause(ctx, n); pauseErr != nil {
			return fmt.Errorf("release lease %q: %w (last: %w)", l.key, pauseErr, err)
		}
	}
}

// Heartbeat keeps a key of hs-leases alive until ctx ends, then deletes it: for
// those who want to be seen and not to be alone. It returns nil when ctx ends, or
// what makes beating impossible.
func (c *Conn) Heartbeat(ctx context.Context, key, owner string) error {
	value, err := json.Marshal(leaseValue{Owner: owner, Token: nuid.Next()})
	if err != nil {
		return err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if c.up.Load() {
			_ = c.erase(last, LeasesBucket, key, anySeq) // else it runs out
		}
	}()
	tick := time.NewTicker(LeaseTTL / 3)
	defer tick.Stop()
	for {
		_, err := c.write(ctx, LeasesBucket, key, value, anySeq)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !passing(err):
			return fmt.Errorf("beat key %q: %w", key, lasting(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// LeaseState is one key of hs-leases.
type LeaseState struct {
	Key   string // empty: all there was when the watch began has been shown
	Owner string // as given to Hold or Heartbeat; empty where gone
	Gone  bool   // released, or its time ran out
	Seq   uint64
	Time  time.Time // of the last renewal, or of the end
}

func leaseState(r record) LeaseState {
	s := LeaseState{Key: r.key, Gone: r.gone, Seq: r.seq, Time: r.at}
	if !r.gone {
		var v leaseValue
		_ = json.Unmarshal(r.value, &v) // a record of another kind has no owner to name
		s.Owner = v.Owner
	}
	return s
}

// Leases are the keys of hs-leases under a prefix ("" for all, else with its
// dot: "member."), sorted.
func (c *Conn) Leases(ctx context.Context, prefix string) ([]LeaseState, error) {
	records, err := c.list(ctx, LeasesBucket, prefix)
	if err != nil {
		return nil, fmt.Errorf("list leases %q: %w", prefix, err)
	}
	out := make([]LeaseState, len(records))
	for i, r := range records {
		out[i] = leaseState(r)
	}
	return out, nil
}

// WatchLeases shows the keys under a prefix as they are, then one LeaseState
// without a key, then every renewal and every end, until ctx ends (no error) or
// with one error.
func (c *Conn) WatchLeases(ctx context.Context, prefix string) iter.Seq2[LeaseState, error] {
	return func(yield func(LeaseState, error) bool) {
		for r, err := range c.watch(ctx, LeasesBucket, prefix) {
			if err != nil {
				yield(LeaseState{}, fmt.Errorf("watch leases %q: %w", prefix, err))
				return
			}
			if !yield(leaseState(r), nil) {
				return
			}
		}
	}
}
