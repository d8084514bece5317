// Package aggregator turns SAMPLES into ROLLUPS: for every cluster it owns it reads the batches of the
// nodes, gives them rates, sums and workloads, and writes one rollup per batch, and for every closed
// tick one per namespace and the totals.
//
// The output is a pure function of SAMPLES in the order of their sequences, between equal versions of
// this program: no wall clock, no order of maps, no flag has a part in it. It acknowledges nothing and
// keeps no state of its own. After a crash the next owner takes the lanes, which refuses the last one
// for good, and only then reads what is out: the last totals, and the last rollup of every node and
// namespace. It reads SAMPLES again from the position in the totals, which lies 2 x rate.Memory back,
// rebuilds rates and shares up to the message that closed the last tick, and goes on from there;
// what is out already it does not publish again. So every rollup is out once, with the same bytes
// whoever made it.
//
// A message that cannot be used goes to DEAD and holds up nobody. One cluster's trouble is its own: each
// has its own reader, state and lanes.
//
// Rooms: ownership (which clusters), rate, ticks, rollup. machine.go puts the last three together
// without the bus, cluster.go with it; marker.go moves stream time while nodes are silent.
//
// Not here: measuring (scraper), label formats and anything that a reader may choose (apigw, sinks).
package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/aggregator/ownership"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

// Deps is what the program hands in.
type Deps struct {
	Bus      *bus.Conn
	Log      *slog.Logger
	Registry prometheus.Registerer
	Health   *daemon.Health   // may be nil
	Now      func() time.Time // time.Now where nil: ages in telemetry and identities of clock marks
}

// Aggregator owns clusters and works for them.
type Aggregator struct {
	cfg   Config
	deps  Deps
	tel   *telemetry
	owner *ownership.Ownership
}

// New checks the configuration and registers telemetry and the check "aggregator"; it opens nothing.
func New(cfg Config, deps Deps) (*Aggregator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	tel, err := newTelemetry(deps.Registry, deps.Now)
	if err != nil {
		return nil, err
	}
	a := &Aggregator{cfg: cfg, deps: deps, tel: tel}
	if a.owner, err = ownership.New(deps.Bus, ownership.Config{ID: cfg.ID, Clusters: cfg.Clusters}, deps.Log, a.work); err != nil {
		return nil, err
	}
	if deps.Health != nil {
		deps.Health.Ready("aggregator", a.Ready)
	}
	return a, nil
}

// Run owns its share of the clusters and turns their SAMPLES into ROLLUPS until ctx ends, then hands them
// over and returns nil. While the bus is away it waits; it fails where the bus refuses for good.
func (a *Aggregator) Run(ctx context.Context) error {
	if err := a.owner.Run(ctx); err != nil {
		return fmt.Errorf("own clusters: %w", err)
	}
	return nil
}

// work is one cluster, while it is ours.
func (a *Aggregator) work(ctx context.Context, name string, lanes *bus.Ownership) error {
	defer a.tel.owns(name)()
	log := a.deps.Log.With("cluster", name)
	c := &cluster{name: name, bus: a.deps.Bus, lanes: lanes, log: log, tel: a.tel, now: a.deps.Now,
		machine: newMachine(name, a.tel, log), letters: make(chan bus.DeadLetter, lettersQueue)}
	err := c.run(ctx)
	if errors.Is(err, bus.ErrFenced) || errors.Is(lanes.Err(), bus.ErrFenced) {
		a.tel.fenced.WithLabelValues(name).Inc()
	}
	return err
}

// Ready is nil when every cluster of our share is ours and has had a tick closed by us, or we stand by
// for all; else it says what is missing. It does not block.
func (a *Aggregator) Ready() error {
	if err := a.deps.Bus.Status(); err != nil {
		return err
	}
	states, known := a.owner.States()
	if !known {
		return errors.New("members, clusters and leases have not been read yet")
	}
	var missing []string
	for name, s := range states {
		switch {
		case s == ownership.Contends:
			missing = append(missing, fmt.Sprintf("cluster %q is not ours yet", name))
		case s == ownership.Owns && !a.tel.hasClosed(name):
			missing = append(missing, fmt.Sprintf("no tick of cluster %q has been closed yet", name))
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}
