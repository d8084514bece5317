// Package worker feeds one configured sink with the rollups, or with the Kubernetes events, of its clusters.
//
// A [Worker] first takes the sink's lease, so that there is one of it however many processes are
// configured alike. Then it reads ROLLUPS, or EVENTS, of each cluster by a durable consumer, in order: a batch is
// written, then acknowledged. What Write returns decides:
//
//   - nil: the batch is acknowledged;
//   - a passing error: the batch stays in hand, held on the bus, and is written again after a delay that
//     grows from [Retry], with jitter, or after what the destination asked for; for as long as it takes.
//     Nothing is handed back to the bus meanwhile, which would reorder;
//   - a permanent one, or a panic: which message is meant is found by halves; it goes to DEAD with the
//     reason;
//   - a partial one: the messages with refused parts are copied to DEAD, the parts in headers
//     (Hs-Refused), and the batch is acknowledged.
//
// Clusters do not wait for each other, nor sinks; nor does what is new wait for letters that an operator
// has driven again, which come from DEAD. With the option concurrency, a batch is parted among several
// sinks of one target, what is of one node or namespace always to the same.
//
// Errors of a destination are logged and put to DEAD without the target's secrets.
//
// State is on the bus: the position of a sink is the acknowledgement floor of its consumer. After a
// crash the successor gets what was not acknowledged again, first and in order; so a message can be
// written twice, never not at all, as long as the stream holds it. What left the stream unread is counted
// as lost and logged.
//
// Not here: formats and protocols (a package for each sink), the list of sinks (package sinks).
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Config says what to feed.
type Config struct {
	Name     string      // of the sink: its lease, its consumers and its letters in DEAD
	Kind     sink.Kind   //
	Target   sink.Target //
	Events   bool        // feed it with events by Kind.NewEvents, instead of rollups by Kind.New
	Clusters []string    // whose; every registered cluster where empty
	Owner    string      // of the lease, as operators see it: this process

	SinkDeps sink.Deps // handed to the sink, with Cluster filled

	Retry Retry         // DefaultRetry where zero
	Batch int           // most messages in one Write; DefaultBatch where 0
	Grace time.Duration // how long a Write may go on after a wished stop; DefaultGrace where 0
	Check time.Duration // between two looks at the lag; DefaultCheck where 0
}

// Defaults of Config.
const (
	DefaultBatch = 32
	DefaultGrace = 5 * time.Second
	DefaultCheck = 10 * time.Second

	// maxBatchBytes bounds the encoded messages of one Write; a larger one goes alone. Decoded they take
	// about ten times as much.
	maxBatchBytes = 1 << 20
	// maxBytesAtOnce bounds the same where several sinks of one target write parts of a batch.
	maxBytesAtOnce = 8 << 20
)

// Deps is what a worker gets from the program.
type Deps struct {
	Bus       *bus.Conn
	Log       *slog.Logger
	Telemetry *Telemetry
	Wrote     func(title string, took time.Duration) // told of every write where not nil, by several goroutines
}

// Worker feeds one sink.
type Worker struct {
	cfg   Config
	since sink.Since
	deps  Deps
	log   *slog.Logger
	build func(sink.Target, sink.Deps) (sink.Sink, error)
}

// New checks the target by building the sink once, and opens nothing.
func New(cfg Config, deps Deps) (*Worker, error) {
	if err := bus.CheckName("sink", cfg.Name); err != nil {
		return nil, err
	}
	if cfg.Retry == (Retry{}) {
		cfg.Retry = DefaultRetry()
	}
	if cfg.Batch <= 0 {
		cfg.Batch = DefaultBatch
	}
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.Check <= 0 {
		cfg.Check = DefaultCheck
	}
	w := &Worker{cfg: cfg, deps: deps, log: deps.Log.With("sink", cfg.Name), build: cfg.Kind.New}
	if cfg.Events {
		w.build = cfg.Kind.NewEvents
	}
	if w.build == nil {
		return nil, fmt.Errorf("sink %q takes no %ss", cfg.Kind.Key, w.noun())
	}
	quiet := w.sinkDeps("")
	s, err := w.build(cfg.Target, quiet)
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, fmt.Errorf("sink %q: %w", cfg.Name, err)
	}
	if w.since, err = cfg.Target.Since(); err != nil {
		return nil, err
	}
	return w, nil
}

// noun is what the sink is fed with.
func (w *Worker) noun() string {
	if w.cfg.Events {
		return "event"
	}
	return "rollup"
}

func (w *Worker) sinkDeps(cluster string) sink.Deps {
	d := w.cfg.SinkDeps
	d.Cluster = cluster
	d.Log = w.log
	if cluster != "" {
		d.Log = w.log.With("cluster", cluster)
	}
	if d.Timeout <= 0 {
		d.Timeout = 20 * time.Second
	}
	return d
}

// Run waits for the sink's lease, feeds the sink until ctx ends or the lease is lost, and starts again
// in the latter case. It returns nil when ctx ends, else what makes going on impossible: the bus user
// lacks a permission, or the connection was closed.
func (w *Worker) Run(ctx context.Context) error {
	for n := 0; ctx.Err() == nil; n++ {
		lease, err := w.deps.Bus.Hold(ctx, bus.SinkLease(w.cfg.Name), w.cfg.Owner)
		if ctx.Err() != nil {
			if lease != nil {
				w.release(lease)
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, bus.ErrNotPermitted) || errors.Is(err, bus.ErrClosed) {
				return fmt.Errorf("feed sink %q: %w", w.cfg.Name, err)
			}
			w.log.Warn("lease of sink cannot be taken, trying again", "err", err)
			if w.cfg.Retry.Wait(ctx, n, 0) != nil {
				return nil
			}
			continue
		}
		w.log.Info("feeding sink", "target", w.cfg.Target.String())
		held, cancel := lease.Context(ctx)
		err = w.feedAll(held)
		cancel()
		w.release(lease)
		if err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrLeaseLost) {
			return fmt.Errorf("feed sink %q: %w", w.cfg.Name, err)
		}
		if ctx.Err() == nil {
			w.log.Warn("lease of sink is lost, waiting to take it again")
		}
	}
	return nil
}

func (w *Worker) release(l *bus.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := l.Release(ctx); err != nil {
		w.log.Debug("lease runs out by itself", "err", err)
	}
}

// feedAll feeds the sink from every cluster until ctx ends.
func (w *Worker) feedAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var feeds sync.WaitGroup
	defer feeds.Wait()
	start := func(cluster string) (stop context.CancelFunc) {
		one, stop := context.WithCancel(ctx)
		feeds.Go(func() {
			defer stop()
			if err := w.feed(one, cluster); err != nil && one.Err() == nil {
				cancel(fmt.Errorf("cluster %q: %w", cluster, err))
			}
		})
		return stop
	}
	feeds.Go(func() {
		if err := w.feedAgain(ctx); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("letters that are driven again: %w", err))
		}
	})
	if len(w.cfg.Clusters) > 0 {
		for _, c := range w.cfg.Clusters {
			start(c)
		}
		<-ctx.Done()
		return cause(ctx)
	}
	running := map[string]context.CancelFunc{}
	defer func() {
		for stop := range maps.Values(running) {
			stop()
		}
	}()
	for n := 0; ctx.Err() == nil; n++ {
		for change, err := range w.deps.Bus.WatchClusters(ctx) {
			switch stop, fed := running[change.Cluster]; {
			case err != nil:
				if ctx.Err() == nil {
					w.log.Warn("clusters cannot be watched, trying again", "err", err)
				}
			case change.Cluster == "":
			case change.Gone && fed:
				stop()
				delete(running, change.Cluster)
			case !change.Gone && !fed:
				running[change.Cluster] = start(change.Cluster)
			}
		}
		_ = w.cfg.Retry.Wait(ctx, n, 0) // its error is that ctx ended
	}
	return cause(ctx)
}

// cause is why ctx ended; nil where somebody wished it.
func cause(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
