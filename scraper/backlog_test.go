package scraper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// way is a bus as the backlog sees it: down, or up with a delay.
type way struct {
	mu        sync.Mutex
	up        bool
	published []string
	flying    map[string]int
	most      int
	settled   map[string]error
}

func (w *way) publish(ctx context.Context, i *item) error {
	w.mu.Lock()
	w.flying[i.node]++
	w.most = max(w.most, w.flying[i.node])
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.flying[i.node]--
		w.mu.Unlock()
	}()
	for {
		w.mu.Lock()
		if w.up {
			w.published = append(w.published, fmt.Sprint(i.node, i.tick))
			w.mu.Unlock()
			return nil
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (w *way) settle(i *item, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := fmt.Sprint(i.node, int64(i.tick))
	if _, twice := w.settled[key]; twice {
		panic(key + " is settled twice")
	}
	w.settled[key] = err
}

func newWay() *way { return &way{flying: map[string]int{}, settled: map[string]error{}} }

func batchOf(node string, tick, size int) *item {
	return &item{node: node, tick: proto.Tick(tick), data: make([]byte, size)}
}

func (w *way) outcome(err error) (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, e := range w.settled {
		if errors.Is(e, err) || e == nil && err == nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func TestBacklogKeepsNewestAndSendsOldestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		b := newBacklog(6*100, slog.New(slog.DiscardHandler), w.publish, w.settle)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for tick := range 5 { // ten batches of 100 bytes, room for six
			for _, node := range []string{"a", "b"} {
				b.add(ctx, batchOf(node, tick, 100))
			}
			synctest.Wait()
		}
		if got := b.size(); got != 600 {
			t.Errorf("%d bytes wait, want 600", got)
		}
		if got, want := w.outcome(errOverflow), []string{"a0", "a1", "b0", "b1"}; !slices.Equal(got, want) {
			t.Errorf("dropped %v, want %v", got, want)
		}
		w.mu.Lock()
		w.up = true
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got, want := w.outcome(nil), []string{"a2", "a3", "a4", "b2", "b3", "b4"}; !slices.Equal(got, want) {
			t.Errorf("published %v, want %v", got, want)
		}
		for _, node := range []string{"a", "b"} {
			var order []string
			for _, p := range w.published {
				if p[:1] == node {
					order = append(order, p)
				}
			}
			if !slices.IsSorted(order) {
				t.Errorf("node %s: order %v", node, order)
			}
		}
		if w.most != 1 {
			t.Errorf("%d of one node in flight at once", w.most)
		}
		if b.size() != 0 || len(b.queues) != 0 {
			t.Errorf("%d bytes, %d queues remain", b.size(), len(b.queues))
		}
		b.wait()
	})
}

func TestBacklogKeepsNewestEvenWhenLargerThanBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		b := newBacklog(100, slog.New(slog.DiscardHandler), w.publish, w.settle)
		ctx, cancel := context.WithCancel(t.Context())
		b.add(ctx, batchOf("a", 1, 500))
		synctest.Wait()
		if len(w.outcome(errOverflow)) != 0 {
			t.Error("the only batch was dropped")
		}
		b.add(ctx, batchOf("a", 2, 500))
		synctest.Wait()
		if got := w.outcome(errOverflow); !slices.Equal(got, []string{"a1"}) {
			t.Errorf("dropped %v, want a1", got)
		}
		cancel()
		b.wait()
		if got := w.outcome(context.Canceled); !slices.Equal(got, []string{"a2"}) {
			t.Errorf("given up at the end: %v, want a2", got)
		}
	})
}

func TestBacklogSettlesEverythingWhenStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay()
		b := newBacklog(1<<20, slog.New(slog.DiscardHandler), w.publish, w.settle)
		ctx, cancel := context.WithCancel(t.Context())
		for tick := range 3 {
			b.add(ctx, batchOf("a", tick, 10))
		}
		synctest.Wait()
		cancel()
		b.wait()
		if len(w.settled) != 3 || b.size() != 0 {
			t.Errorf("settled %v, %d bytes", w.settled, b.size())
		}
	})
}
