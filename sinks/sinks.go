// Package sinks feeds databases and queues with rollups and with Kubernetes events: ROLLUPS and EVENTS in, the
// world out.
//
// For every configured sink there is one worker, independent of the others: a destination that is slow,
// down or gone delays nobody else and gets what it missed when it is back.
//
// Its state, how far each sink is, is kept on the bus; see package worker for what happens after a
// crash.
//
// Not here: what is written (sink.View), how it is retried (worker), each destination (a package of its
// own), the recent past (apigw).
package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/worker"
)

// Deps is what the program hands in.
type Deps struct {
	Bus      *bus.Conn
	Log      *slog.Logger
	Registry prometheus.Registerer // of this service alone, or shared with services of other names
	Health   *daemon.Health        // nil for none
	Out      io.Writer             // where the log sink writes; nil: to Log

	// Wrote, where not nil, is told how long every write took, well or not, with the title of the sink's kind, by
	// several goroutines: for telemetry under the names of another program.
	Wrote func(title string, took time.Duration)
}

// Sinks runs the configured sinks.
type Sinks struct {
	workers []*worker.Worker
	bus     *bus.Conn
}

// New checks the configuration, every option of every sink included, and builds the workers. It opens
// nothing; destinations may be down.
func New(cfg Config, deps Deps) (*Sinks, error) {
	configured, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	if err := cfg.Labels.Validate(); err != nil {
		return nil, err
	}
	version, _ := daemon.Version()
	s := &Sinks{bus: deps.Bus}
	if deps.Health != nil {
		deps.Health.Ready("sinks", s.ready)
	}
	telemetry := worker.NewTelemetry(deps.Registry)
	var errs []error
	for _, c := range configured {
		if c.build() == nil {
			deps.Log.Info("sink needs no configuration: the gateway is it", "sink", c.target.Key)
			continue
		}
		w, err := worker.New(worker.Config{
			Name: c.name(), Kind: c.kind, Target: c.target, Events: c.events, Clusters: cfg.Clusters, Owner: owner(),
			SinkDeps: sink.Deps{Labels: cfg.Labels.Format(), Timeout: cfg.Timeout, Version: version, Out: deps.Out},
		}, worker.Deps{Bus: deps.Bus, Log: deps.Log, Telemetry: telemetry, Wrote: deps.Wrote})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.workers = append(s.workers, w)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// owner names this process among those that wait for a lease.
func owner() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "/" + strconv.Itoa(os.Getpid())
}

// ready: nothing is missing that this process could wait for; whether destinations answer is telemetry.
func (s *Sinks) ready() error { return s.bus.Status() }

// Run feeds all sinks until ctx ends, then returns nil after each has finished or given up what it was
// writing. It returns early where one cannot go on: the bus refuses it, or was closed. Without a sink it
// waits for ctx.
func (s *Sinks) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, w := range s.workers {
		wg.Go(func() {
			if err := w.Run(ctx); err != nil {
				cancel(fmt.Errorf("run sinks: %w", err))
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
