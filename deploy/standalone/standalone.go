// Package standalone is everything in one process: an embedded JetStream server and the scraper, the aggregator, the
// gateway and the sinks on it, under Heapster's command line; or, as [Eventer], the scraper of events and the sinks of
// events alone, under eventer's. It composes the services through the same New and Run as their own programs do, and
// adds nothing to them.
//
// What it knows lies in --data-dir: a process that was killed goes on at the tick where it stopped, with the window,
// the rates and the sinks' positions it had; an eventer with the event behind the last one.
//
// Not here: what the services do (scraper, aggregator, apigw, sinks), a bus of several servers (deploy/nats).
package standalone

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/aggregator"
	"github.com/heapstream/heapstream/apigw"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
)

// Deps is what the program hands in.
type Deps struct {
	Log      *slog.Logger
	Registry *prometheus.Registry
	Health   *daemon.Health
	Out      io.Writer // where the log sink writes; nil: to Log

	// Listener and SecureListener, if not nil, are served instead of the configured addresses; Run closes them.
	Listener, SecureListener net.Listener
}

// Standalone is the whole pipeline.
type Standalone struct {
	*local
	cfg  Config
	deps Deps
}

// New checks the configuration; it opens nothing.
func New(cfg Config, deps Deps) (*Standalone, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil || deps.Registry == nil || deps.Health == nil {
		return nil, errors.New("standalone: Deps needs Log, Registry and Health")
	}
	for _, w := range cfg.glog.warnings() {
		deps.Log.Warn(w)
	}
	l, err := newLocal(cfg.Bus, cfg.topology(), deps.Log)
	if err != nil {
		return nil, err
	}
	return &Standalone{local: l, cfg: cfg, deps: deps}, nil
}

// Run works until ctx ends or a service fails, and returns after everything has ended and the store is closed: nil
// on a wished stop, otherwise the first cause.
func (s *Standalone) Run(ctx context.Context) error {
	runtime.GOMAXPROCS(procs(s.cfg.MaxProcs))
	defer s.server.Shutdown()
	if err := s.start(ctx); err != nil {
		return err
	}
	example := s.topology
	example.Nodes, example.Resolution = 100, s.cfg.Scraper.Resolution
	s.log.Info("rollups are kept", "for", example.RollupsAge, "store", s.cfg.Bus.StoreDir, "bytes_at_100_nodes", example.Estimate().String())

	// One connection a service: what is slow delays only itself.
	var conns [4]*bus.Conn
	for i, name := range []string{"apigw", "sinks", "aggregator", "scraper"} {
		conn, err := s.connect(ctx, name)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns[i] = conn
	}
	d := s.deps
	gateway, err := apigw.New(s.cfg.Gateway, apigw.Deps{Bus: conns[0], Log: d.Log, Registry: d.Registry, Health: d.Health,
		Listener: d.Listener, SecureListener: d.SecureListener})
	if err != nil {
		return err
	}
	feeders, err := sinks.New(s.cfg.Sinks, sinks.Deps{Bus: conns[1], Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Out})
	if err != nil {
		return err
	}
	owner := aggregator.DefaultConfig()
	owner.Clusters = []string{s.cfg.Cluster}
	sums, err := aggregator.New(owner, aggregator.Deps{Bus: conns[2], Log: d.Log, Registry: d.Registry, Health: d.Health})
	if err != nil {
		return err
	}
	source, err := scraper.New(s.cfg.Scraper, scraper.Deps{Bus: conns[3], Log: d.Log, Registry: d.Registry, Health: d.Health})
	if err != nil {
		return err
	}

	parts := daemon.Group{Log: d.Log} // readers before writers; stopped the other way round
	parts.Add("apigw", gateway.Run)
	parts.Add("sinks", feeders.Run)
	parts.Add("aggregator", sums.Run)
	parts.Add("scraper", source.Run)
	return parts.Run(ctx)
}
