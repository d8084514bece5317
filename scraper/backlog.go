package scraper

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// backlog brings encoded batches to the bus: of each node one at a time and in the order of ticks.
// While the bus is away it keeps them up to a bound in bytes, and beyond it gives up the oldest.
type backlog struct {
	publish func(ctx context.Context, i *item) error
	settled func(i *item, err error) // told of every item once; err is errOverflow for those given up
	log     *slog.Logger
	max     int64

	mu      sync.Mutex
	wg      sync.WaitGroup
	queues  map[string][]*item // what waits, by node; a key means that the node has a sender
	ages    []*item            // all items from the oldest on; settled ones are skipped
	bytes   int64
	losing  bool   // the bound has been reached and not left
	refused string // why the bus refuses; "" while it does not
}

// item is a batch on its way.
type item struct {
	node string
	tick proto.Tick
	data []byte

	cancel context.CancelCauseFunc // set while it is being published
	done   bool                    // settled, or given up
}

var errOverflow = errors.New("the backlog is full: older batches make room for newer ones")

func newBacklog(limit int64, log *slog.Logger, publish func(context.Context, *item) error, settled func(*item, error)) *backlog {
	return &backlog{publish: publish, settled: settled, log: log, max: limit, queues: map[string][]*item{}}
}

// add takes the batch; data is the backlog's from now on. It does not block on the bus.
func (b *backlog) add(ctx context.Context, i *item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q, sending := b.queues[i.node]
	b.queues[i.node] = append(q, i)
	b.ages = append(b.ages, i)
	b.bytes += int64(len(i.data))
	for b.bytes > b.max && b.shed() {
	}
	if !sending {
		b.wg.Go(func() { b.send(ctx, i.node) })
	}
}

// shed gives up the oldest batch; false: there is none but the newest.
func (b *backlog) shed() bool {
	for len(b.ages) > 1 {
		i := b.ages[0]
		b.ages[0] = nil
		b.ages = b.ages[1:]
		if i.done {
			continue
		}
		if !b.losing {
			b.losing = true
			b.log.Warn("backlog is full, oldest batches are dropped", "bytes", b.bytes)
		}
		i.done = true
		b.bytes -= int64(len(i.data))
		if i.cancel != nil {
			i.cancel(errOverflow) // its sender settles it
		} else {
			i.data = nil
			b.settled(i, errOverflow)
		}
		return true
	}
	return false
}

// send publishes the batches of one node until there are none.
func (b *backlog) send(ctx context.Context, node string) {
	for {
		i, one, cancel := b.next(ctx, node)
		if i == nil {
			return
		}
		err := b.publish(one, i)
		if err != nil && errors.Is(context.Cause(one), errOverflow) {
			err = errOverflow
		}
		cancel(nil)
		b.end(i, err)
		if ctx.Err() != nil {
			b.drop(ctx, node)
			return
		}
	}
}

// next is the node's oldest batch with a context to publish it in; nil where there is none, and
// then the node has no sender any more.
func (b *backlog) next(ctx context.Context, node string) (*item, context.Context, context.CancelCauseFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[node]
	for len(q) > 0 && q[0].done {
		q = q[1:]
	}
	if len(q) == 0 {
		delete(b.queues, node)
		return nil, nil, nil
	}
	i := q[0]
	q[0] = nil
	b.queues[node] = q[1:]
	one, cancel := context.WithCancelCause(ctx)
	i.cancel = cancel
	return i, one, cancel
}

// release takes an item off the account. The caller holds mu.
func (b *backlog) release(i *item) {
	if !i.done {
		i.done = true
		b.bytes -= int64(len(i.data))
	}
	i.data = nil
}

func (b *backlog) end(i *item, err error) {
	b.mu.Lock()
	b.release(i)
	for len(b.ages) > 0 && b.ages[0].done {
		b.ages[0] = nil
		b.ages = b.ages[1:]
	}
	var recovered, told bool
	switch {
	case err == nil:
		recovered = b.refused != ""
		b.refused = ""
		if b.losing && b.bytes < b.max/2 {
			b.losing = false
			b.log.Info("backlog has room again", "bytes", b.bytes)
		}
	case !errors.Is(err, errOverflow) && !errors.Is(err, context.Canceled):
		text := refusal(err)
		told = b.refused != text
		b.refused = text
	}
	b.mu.Unlock()
	if told {
		b.log.Error("bus refuses batches, they are lost", "node", i.node, "tick", i.tick, "err", err)
	}
	if recovered {
		b.log.Info("bus takes batches again", "node", i.node)
	}
	b.settled(i, err)
}

// refusal is the kind of a refusal: its text names the node.
func refusal(err error) string {
	for _, kind := range []error{bus.ErrTooLarge, bus.ErrNotPermitted, bus.ErrStreamMissing, bus.ErrRefused, bus.ErrClosed} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return err.Error()
}

// drop settles what is left of a node when we stop.
func (b *backlog) drop(ctx context.Context, node string) {
	b.mu.Lock()
	left := b.queues[node]
	delete(b.queues, node)
	var settle []*item
	for _, i := range left {
		if !i.done {
			b.release(i)
			settle = append(settle, i)
		}
	}
	b.mu.Unlock()
	for _, i := range settle {
		b.settled(i, ctx.Err())
	}
}

// size is what waits at the moment.
func (b *backlog) size() (bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// wait blocks until all senders have ended.
func (b *backlog) wait() { b.wg.Wait() }
