package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// laneQueue is how many messages may wait in one lane: enough that a lane is
// busy while the others are filled.
const laneQueue = 64

// Ownership is the right to write a cluster's ROLLUPS, as 16 lanes. Each lane
// has exactly one publish in flight, and every publish demands that the lane's
// epoch record still be ours. Whoever takes the lanes overwrites all epochs, so
// that from then on no new message of an earlier owner is stored, however late it
// wakes up.
//
// What an earlier owner is told depends on the server. One server alone looks at
// the epoch first and refuses whatever comes. Replicated ones look at the message
// id first: a message whose id is stored already is acknowledged as a duplicate,
// whoever sends it, which is harmless (the same id means the same bytes) but tells
// the earlier owner nothing. So a lane that has stored nothing new for EpochCheck
// reads its epoch record when it is next due or sees a duplicate, and an owner
// that is idle reads one after the other: it knows of its successor after about
// EpochCheck, though it has nothing to write.
//
// Messages of one lane are stored in the order of Publish; between lanes there is
// no order but Flush. A message whose acknowledgement was lost is published again
// under its id, as often as it takes, and stored once.
type Ownership struct {
	c       *Conn
	cluster string
	stream  string
	owner   string
	token   string // in the ids of our epochs

	lanes [Lanes]lane
	taken time.Time
	bytes *semaphore.Weighted
	stall stall

	ctx    context.Context // of the lanes' goroutines; its cause is why they ended
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	pending int             // enqueued and not acknowledged
	flushed []chan struct{} // closed when pending falls to 0

	stored  atomic.Uint64
	doubled atomic.Uint64
}

// lane is one ordered way; its fields are its goroutine's.
type lane struct {
	n      int
	queue  chan laneItem
	epoch  uint64    // sequence of our epoch record
	renews int       // of the epoch, for its ids
	proven time.Time // when the epoch was last known to be ours
}

type laneItem struct {
	m     Message
	bytes int64
}

// TakeLanes takes the right to write a cluster's ROLLUPS from whoever has it: it
// overwrites all epochs and returns when the stream has stored them. Only after
// it may the new owner read what is out. Whoever calls it holds the cluster's
// lease. The caller closes the result.
func (c *Conn) TakeLanes(ctx context.Context, cluster, owner string) (*Ownership, error) {
	o := &Ownership{c: c, cluster: cluster, stream: RollupsStream(cluster), owner: owner, token: nuid.Next(),
		bytes: semaphore.NewWeighted(MaxPendingBytes), stall: stall{log: c.log}}
	g, taking := errgroup.WithContext(ctx)
	for n := range o.lanes {
		l := &o.lanes[n]
		l.n, l.queue = n, make(chan laneItem, laneQueue)
		g.Go(func() error {
			ack, err := c.Publisher(PublisherConfig{}).Publish(taking, Message{Subject: EpochSubject(cluster, n), ID: o.epochID(l),
				Data: []byte(owner), Stream: o.stream})
			l.epoch, l.proven = ack.Seq, time.Now()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("take lanes of cluster %q: %w", cluster, err)
	}
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	o.taken = time.Now()
	for n := range o.lanes {
		o.wg.Go(func() { o.run(&o.lanes[n]) })
	}
	return o, nil
}

func (o *Ownership) epochID(l *lane) string {
	return "epoch/" + o.token + "/" + strconv.Itoa(l.n) + "/" + strconv.Itoa(l.renews)
}

// Publish puts a message into a lane and returns; it blocks while the lane is
// full or too many bytes are under way. m.ID must be set, and m.Data stay
// untouched until Flush has returned. Its errors: ErrTooLarge; that of ctx; or
// why the lanes have ended, ErrFenced above all.
func (o *Ownership) Publish(ctx context.Context, n int, m Message) error {
	if n < 0 || n >= Lanes {
		return fmt.Errorf("publish to %q: there is no lane %d", m.Subject, n)
	}
	if m.ID == "" {
		return fmt.Errorf("publish to %q: a fenced message needs an id", m.Subject)
	}
	if len(m.Data) > MaxPayload {
		return fmt.Errorf("publish %d bytes to %q: %w (at most %d)", len(m.Data), m.Subject, ErrTooLarge, MaxPayload)
	}
	m.Stream = o.stream
	it := laneItem{m: m, bytes: min(int64(len(m.Data)), MaxPendingBytes)}
	if !o.bytes.TryAcquire(it.bytes) {
		waiting, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(o.ctx, cancel)
		err := o.bytes.Acquire(waiting, it.bytes)
		stop()
		cancel()
		if err != nil {
			return o.whyNot(ctx, m.Subject)
		}
	}
	if o.ctx.Err() != nil {
		o.bytes.Release(it.bytes)
		return o.whyNot(ctx, m.Subject)
	}
	o.mu.Lock()
	o.pending++
	o.mu.Unlock()
	select {
	case o.lanes[n].queue <- it:
		return nil
	case <-ctx.Done():
	case <-o.ctx.Done():
	}
	o.settled(it)
	return o.whyNot(ctx, m.Subject)
}

func (o *Ownership) whyNot(ctx context.Context, subject string) error {
	if o.ctx.Err() != nil {
		return fmt.Errorf("publish to %q: %w", subject, context.Cause(o.ctx))
	}
	return fmt.Errorf("publish to %q: wait for its lane: %w", subject, ctx.Err())
}

// settled says that an item is under way no more.
func (o *Ownership) settled(it laneItem) {
	o.bytes.Release(it.bytes)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending--
	if o.pending == 0 {
		for _, ch := range o.flushed {
			close(ch)
		}
		o.flushed = nil
	}
}

// Flush blocks until the stream has acknowledged everything that was put into the
// lanes. Its errors are those of Publish; after one, what was under way may or
// may not be stored.
func (o *Ownership) Flush(ctx context.Context) error {
	o.mu.Lock()
	ch := make(chan struct{})
	if o.pending == 0 {
		close(ch)
	} else {
		o.flushed = append(o.flushed, ch)
	}
	o.mu.Unlock()
	select {
	case <-ch:
		if o.ctx.Err() != nil {
			return fmt.Errorf("flush lanes of cluster %q: %w", o.cluster, context.Cause(o.ctx))
		}
		return nil
	case <-o.ctx.Done():
		return fmt.Errorf("flush lanes of cluster %q: %w", o.cluster, context.Cause(o.ctx))
	case <-ctx.Done():
		return fmt.Errorf("flush lanes of cluster %q: %w", o.cluster, ctx.Err())
	}
}

// Done is closed when the lanes have ended; Err says why.
func (o *Ownership) Done() <-chan struct{} { return o.ctx.Done() }

// Err is nil while the lanes work, else why they ended: ErrFenced, ErrClosed, or
// what made publishing impossible.
func (o *Ownership) Err() error {
	if o.ctx.Err() == nil {
		return nil
	}
	return context.Cause(o.ctx)
}

// Stored counts acknowledged messages; Doubled those of them that an earlier
// attempt, or owner, had stored.
func (o *Ownership) Stored() (stored, doubled uint64) { return o.stored.Load(), o.doubled.Load() }

// Close ends the lanes and waits for their goroutines; what was not flushed may
// or may not be stored. It may be called twice.
func (o *Ownership) Close() {
	o.cancel(fmt.Errorf("lanes of cluster %q: %w", o.cluster, ErrClosed))
	o.wg.Wait()
}

// run publishes a lane's messages one after the other and renews its epoch.
func (o *Ownership) run(l *lane) {
	defer func() { // what is left in the queue was under way
		for {
			select {
			case it := <-l.queue:
				o.settled(it)
			default:
				return
			}
		}
	}()
	renew := time.NewTimer(o.untilRenewal())
	defer renew.Stop()
	// The lanes take turns: one looks at its epoch every EpochCheck.
	check := time.NewTimer(EpochCheck * time.Duration(l.n+1))
	defer check.Stop()
	for {
		var err error
		select {
		case <-o.ctx.Done():
			return
		case it := <-l.queue:
			err = o.send(l, it.m)
			if err == nil {
				o.stored.Add(1)
			}
			o.settled(it)
		case <-renew.C:
			err = o.renew(l)
			renew.Reset(o.untilRenewal())
		case <-check.C:
			if time.Since(l.proven) >= EpochCheck {
				err = o.check(l)
			}
			check.Reset(EpochCheck * Lanes)
		}
		if err != nil {
			if o.ctx.Err() == nil {
				o.cancel(err)
			}
			return
		}
	}
}

// untilRenewal is when the epochs are due. All lanes renew theirs at once, so that the records lie beside each
// other: the server reads a lane's at every publish, and with it the block of 8 MB that it is in, where that
// is in its memory no more. Spread over the stream, up to 16 blocks would be read at every tick, and kept.
func (o *Ownership) untilRenewal() time.Duration {
	return EpochRenewal - time.Since(o.taken)%EpochRenewal
}

// send publishes until the stream has the message, or the lane is not ours.
func (o *Ownership) send(l *lane, m Message) error {
	msg := m.build()
	expect(msg, EpochSubject(o.cluster, l.n), l.epoch)
	began := time.Now()
	for n := 0; ; n++ {
		ack, err := o.c.publishOnce(o.ctx, msg)
		if err == nil {
			o.stall.over()
			if !ack.Duplicate {
				l.proven = time.Now()
				return nil
			}
			o.doubled.Add(1)
			if time.Since(l.proven) >= EpochCheck {
				return o.check(l)
			}
			return nil
		}
		again, err := o.judge(m.Subject, err)
		if !again {
			return err
		}
		if err := o.c.pause(o.ctx, n); err != nil {
			return err
		}
		if time.Since(began) > RollupsDedupe/2 {
			// Its id may be forgotten before the answer comes: look whether it is
			// out. The lane is the only writer of its subjects, one at a time.
			last, ok, err := o.c.LastOn(o.ctx, o.stream, m.Subject)
			if err != nil {
				return err
			}
			if ok && last.ID() == m.ID {
				o.doubled.Add(1)
				return nil
			}
		}
	}
}

// judge says whether to try again after err, or what it means.
func (o *Ownership) judge(subject string, err error) (again bool, _ error) {
	switch {
	case o.ctx.Err() != nil:
		return false, context.Cause(o.ctx)
	case apiCode(err) == codeWrongLastSeq:
		return false, fmt.Errorf("publish to %q for %q: %w", subject, o.owner, ErrFenced)
	case !passing(err):
		return false, fmt.Errorf("publish to %q: %w", subject, lasting(err))
	}
	// 10164 among them: on a replicated stream our own attempt is still in flight.
	o.stall.begun(subject, err)
	return true, nil
}

// check reads a lane's epoch record: it is ErrFenced where somebody wrote it after
// us. One that has left the stream says nothing; the next message is refused then.
func (o *Ownership) check(l *lane) error {
	subject := EpochSubject(o.cluster, l.n)
	last, ok, err := o.c.LastOn(o.ctx, o.stream, subject)
	switch {
	case o.ctx.Err() != nil:
		return context.Cause(o.ctx)
	case err != nil:
		return err
	case ok && last.Seq > l.epoch:
		return fmt.Errorf("check %q of %q: %w", subject, o.owner, ErrFenced)
	}
	l.proven = time.Now()
	return nil
}

// renew writes a lane's epoch again, on the condition that it is ours.
func (o *Ownership) renew(l *lane) error {
	l.renews++
	subject := EpochSubject(o.cluster, l.n)
	m := Message{Subject: subject, ID: o.epochID(l), Data: []byte(o.owner), Stream: o.stream}
	msg := m.build()
	expect(msg, subject, l.epoch)
	for n := 0; ; n++ {
		ack, err := o.c.publishOnce(o.ctx, msg)
		if err == nil {
			l.epoch, l.proven = ack.Seq, time.Now()
			o.stall.over()
			return nil
		}
		again, judged := o.judge(subject, err)
		if errors.Is(judged, ErrFenced) {
			// The expectation is checked before the id: ours, where an attempt was
			// stored and its acknowledgement lost.
			last, ok, err := o.c.LastOn(o.ctx, o.stream, subject)
			if err != nil {
				return err
			}
			if ok && last.ID() == m.ID {
				l.epoch, l.proven = last.Seq, time.Now()
				return nil
			}
		}
		if !again {
			return judged
		}
		if err := o.c.pause(o.ctx, n); err != nil {
			return err
		}
	}
}
