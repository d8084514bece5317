// Package apigw is the gateway: from ROLLUPS to readers.
//
// It fills a view of one or several clusters and serves it: on port 8082 the HTTP surface of Heapster, and with
// --api-server the resource, custom and external metrics APIs of Kubernetes. Any number of gateways may run side by
// side; they share nothing. It keeps nothing on disk: after a crash, or as a new replica, it is ready as soon as the
// last rollup of every node has been read, and the past fills in behind. While the bus is away it goes on serving what
// it has, which ages and in the end is served no longer.
//
// Not here: what is remembered and what is served now (window, view), the dialects (modelapi, resourceapi, customapi),
// who may ask (auth), rates and sums (the aggregator).
package apigw

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/apigw/auth"
	"github.com/heapstream/heapstream/apigw/customapi"
	"github.com/heapstream/heapstream/apigw/exposition"
	"github.com/heapstream/heapstream/apigw/historyapi"
	"github.com/heapstream/heapstream/apigw/labels"
	"github.com/heapstream/heapstream/apigw/modelapi"
	"github.com/heapstream/heapstream/apigw/resourceapi"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

// Deps is what the program hands in.
type Deps struct {
	Bus      *bus.Conn
	Log      *slog.Logger
	Registry *prometheus.Registry // shown at /metrics of the Heapster surface, too
	Health   *daemon.Health       // nil: nobody asks
	Now      func() time.Time     // nil means time.Now

	// Listener and SecureListener, if not nil, are served instead of the configured addresses; Run closes them.
	Listener, SecureListener net.Listener
}

// Gateway serves the view.
type Gateway struct {
	cfg      Config
	deps     Deps
	view     *view.View
	handler  http.Handler
	guard    *auth.Guard
	influx   *historyapi.Influx  // nil where it is not the historical source
	resource *resourceapi.Server // nil without --api-server

	listening chan struct{} // closed when addr is set
	addr      net.Addr
}

// New checks cfg, reads the CA of clients, and returns a gateway that does nothing yet.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Bus == nil || deps.Log == nil || deps.Registry == nil {
		return nil, errors.New("gateway: Deps needs Bus, Log and Registry")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	g := &Gateway{cfg: cfg, deps: deps, listening: make(chan struct{})}
	var err error
	span := cfg.Window
	if cfg.NoPast {
		span = 0
	}
	g.view, err = view.New(view.Config{Window: span, Clusters: cfg.Clusters, Own: cfg.Cluster},
		view.Deps{Bus: deps.Bus, Log: deps.Log, Registry: deps.Registry, Now: deps.Now})
	if err != nil {
		return nil, err
	}
	if g.guard, err = cfg.ClientCert.Load(); err != nil {
		return nil, err
	}
	history, err := g.history()
	if err != nil {
		return nil, err
	}
	model, err := modelapi.New(modelapi.Config{Cluster: cfg.Cluster, DisableExport: cfg.NoExport, NoPast: cfg.NoPast}, modelapi.Deps{
		History: history, Cluster: exposition.New(cfg.Labels.Format()), Now: deps.Now,
		View: g.view, Log: deps.Log, Labels: labels.NewCache(cfg.Labels.Format()), Registry: deps.Registry,
	})
	if err != nil {
		return nil, err
	}
	g.handler = routes(model, deps.Registry, g.guard)
	if cfg.APIServer {
		groups, err := customapi.New(g.measured)
		if err != nil {
			return nil, err
		}
		g.resource, err = resourceapi.New(cfg.Resource, resourceapi.Deps{
			Log: deps.Log, Cluster: g.source, Ready: g.view.Ready, Listener: deps.SecureListener, Now: deps.Now,
			Groups: []resourceapi.Group{groups},
		})
		if err != nil {
			return nil, err
		}
	}
	if deps.Health != nil {
		deps.Health.Ready("view", g.view.Ready)
	}
	return g, nil
}

// history is the historical API over the source that was chosen, nil for none.
func (g *Gateway) history() (modelapi.History, error) {
	switch g.cfg.History {
	case "":
		return nil, nil
	case HistoryWindow:
		return historyapi.New(historyapi.NewWindow(g.view), g.deps.Log, g.deps.Now), nil
	}
	cfg, err := historyapi.ParseInflux(g.cfg.History, g.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	g.influx = historyapi.NewInflux(cfg)
	return historyapi.New(g.influx, g.deps.Log, g.deps.Now), nil
}

// View returns what the gateway serves from.
func (g *Gateway) View() *view.View { return g.view }

// Addr returns the address of the Heapster surface. It blocks until Run listens or ctx ends.
func (g *Gateway) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case <-g.listening:
		return g.addr, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SecureAddr returns the address of the aggregated API server, once it listens; it blocks as Addr does.
func (g *Gateway) SecureAddr(ctx context.Context) (net.Addr, error) {
	if g.resource == nil {
		return nil, errors.New("there is no aggregated API server: see --api-server")
	}
	return g.resource.Addr(ctx)
}

// cluster is the view of a cluster, "" being the gateway's own.
func (g *Gateway) cluster(name string) (*view.Cluster, bool) {
	if name == "" {
		name = g.cfg.Cluster
	}
	return g.view.Cluster(name)
}

// source and measured are the view as the two packages of the aggregated API server ask for it.
func (g *Gateway) source(name string) (resourceapi.Source, bool) { return g.cluster(name) }
func (g *Gateway) measured(name string) (customapi.Source, bool) { return g.cluster(name) }

// Run fills the view and serves it until ctx ends, and then lets the requests in flight finish. It returns nil on a
// wished stop, otherwise the first cause.
func (g *Gateway) Run(ctx context.Context) error {
	listener := g.deps.Listener
	if listener == nil {
		var err error
		if listener, err = new(net.ListenConfig).Listen(ctx, "tcp", g.cfg.address()); err != nil {
			return fmt.Errorf("serve the Heapster API: %w (--heapster-port chooses another port)", err)
		}
	}
	server, err := g.server(listener)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	g.addr = listener.Addr()
	close(g.listening)

	if g.influx != nil {
		defer g.influx.Close()
	}
	parts := daemon.Group{Log: g.deps.Log}
	parts.Add("view", g.view.Run)
	parts.Add("heapster api", server.serve)
	if g.resource != nil {
		parts.Add("resource metrics api", g.resource.Run)
	}
	return parts.Run(ctx)
}
