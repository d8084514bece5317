package view

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// How often what is old is looked for, how long to wait before a stream that is not there is looked for
// again, and how long a message that cannot be decoded may hold up the reading on its way to DEAD.
const (
	sweepEvery  = 5 * time.Second
	retryStream = 5 * time.Second
	deadTimeout = 5 * time.Second
)

// Run keeps the view filled from the bus until ctx ends: the clusters of the configuration, or every
// cluster that is registered, as they come and go. It returns nil when ctx ended, and an error where the
// bus refuses for good.
func (v *View) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)

	wg.Go(func() { v.sweep(ctx) })
	feeds := map[string]context.CancelFunc{}
	start := func(name string) {
		if feeds[name] != nil {
			return
		}
		feedCtx, stop := context.WithCancel(ctx)
		feeds[name] = stop
		wg.Go(func() {
			if err := v.feed(feedCtx, name); err != nil && feedCtx.Err() == nil {
				cancel(fmt.Errorf("fill the view of cluster %q: %w", name, err))
			}
		})
	}
	for _, name := range v.Clusters() {
		start(name)
	}
	if len(v.cfg.Clusters) == 0 {
		if err := v.watch(ctx, start, func(name string) {
			if feeds[name] != nil && name != v.cfg.Own {
				feeds[name]()
				delete(feeds, name)
				v.remove(name)
				v.deps.Log.Info("cluster is gone from the view", "cluster", name)
			}
		}); err != nil {
			cancel(err)
		}
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// watch follows the registered clusters until ctx ends or the bus refuses for good. A bucket that is not
// there yet is waited for.
func (v *View) watch(ctx context.Context, came, gone func(name string)) error {
	for missing := false; ctx.Err() == nil; wait(ctx, retryStream) {
		for change, err := range v.deps.Bus.WatchClusters(ctx) {
			switch name := change.Cluster; {
			case errors.Is(err, bus.ErrStreamMissing) || errors.Is(err, bus.ErrStreamRenewed):
				if !missing {
					v.deps.Log.Warn("clusters cannot be listed yet", "err", err)
				}
				missing = true
			case err != nil:
				return err
			case name == "":
			case change.Gone:
				gone(name)
			default:
				if _, err := v.Add(name); err == nil {
					came(name)
				}
			}
		}
	}
	return nil
}

func (v *View) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			for _, name := range v.Clusters() {
				if c, ok := v.Cluster(name); ok {
					c.sweep()
				}
			}
		}
	}
}

// feed fills one cluster until ctx ends or the bus refuses for good.
func (v *View) feed(ctx context.Context, name string) error {
	missing := false
	for ctx.Err() == nil {
		c, err := v.Add(name)
		if err != nil {
			return err
		}
		err = v.fill(ctx, c)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, bus.ErrStreamMissing):
			if !missing {
				v.deps.Log.Warn("cluster has no stream yet", "cluster", name, "stream", bus.RollupsStream(name), "err", err)
			}
			missing = true
			wait(ctx, retryStream)
		case errors.Is(err, bus.ErrStreamRenewed):
			v.deps.Log.Warn("stream was made anew: the view begins anew", "cluster", name, "err", err)
			v.remove(name)
		default:
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// fill reads the last rollup of everything, then the window from its beginning, then on for ever. It only
// returns with an error.
func (v *View) fill(ctx context.Context, c *Cluster) error {
	began := v.deps.Now()
	stream := bus.RollupsStream(c.name)
	state, err := v.deps.Bus.StreamState(ctx, stream)
	if err != nil {
		return err
	}
	c.clock.observe(state.Now, true)
	oldest := state.Now.Add(-c.past.Span() - proto.StandInFor(c.past.Span()/15))
	f := feeder{v: v, c: c, dec: proto.NewDecoder()}

	c.seed()
	seeded := uint64(0) // the newest message among them: the past ends there, and not where the stream stood before
	for _, filter := range []string{bus.NodeRollupFilter(c.name), bus.NamespaceRollupFilter(c.name), bus.TotalsSubject(c.name)} {
		_, last, err := v.deps.Bus.LastPerSubject(ctx, stream, filter)
		if err != nil {
			return err
		}
		for d, err := range last {
			if err != nil {
				return err
			}
			if d.Time.After(oldest) {
				f.take(ctx, d, false)
				seeded = max(seeded, d.Seq)
			}
		}
	}
	c.ready.Store(true)
	nodes := len(*c.nodes.Load())
	v.deps.Log.Info("view is ready", "cluster", c.name, "nodes", nodes, "tick", c.Newest(), "took", v.deps.Now().Sub(began))

	filled := func() {
		c.settle()
		c.filled.Store(true)
		v.deps.Log.Info("window is filled", "cluster", c.name, "took", v.deps.Now().Sub(began))
	}
	if seeded == 0 {
		filled()
	}
	for d, err := range v.deps.Bus.Replay(ctx, bus.ReplayConfig{Stream: stream, Subjects: bus.RollupFilters(c.name), FromTime: oldest}) {
		if err != nil {
			return err
		}
		if c.filled.Load() && d.Gap > 0 {
			c.tele.lost.Add(float64(d.Gap))
			v.deps.Log.Warn("messages left the stream before they were read", "cluster", c.name, "seq", d.Seq, "lost", d.Gap)
		}
		f.take(ctx, d, c.filled.Load() && d.Pending == 0)
		if !c.filled.Load() && d.Seq >= seeded {
			filled()
		}
	}
	return ctx.Err()
}

// feeder decodes what is read of one cluster.
type feeder struct {
	v    *View
	c    *Cluster
	dec  *proto.Decoder
	r    proto.Rollup
	dead bool // the last letter to DEAD could not be delivered
}

// take applies one message. What cannot be decoded goes to DEAD and holds nothing up for long.
func (f *feeder) take(ctx context.Context, d bus.Delivery, live bool) {
	t := f.c.tele
	t.bytes.Add(float64(len(d.Data)))
	err := f.dec.Rollup(d.Data, &f.r)
	if err == nil && f.r.Cluster != f.c.name {
		err = fmt.Errorf("rollup of cluster %q in the stream of cluster %q", f.r.Cluster, f.c.name)
	}
	if err != nil {
		t.undecodable.Inc()
		f.refuse(ctx, d, err)
		return
	}
	f.c.Apply(&f.r, Origin{Seq: d.Seq, Time: d.Time, Live: live})
	t.scopes[min(int(f.r.Scope), len(t.scopes)-1)].Inc()
	if live && f.r.Scope == proto.ScopeNode {
		t.delay.Observe(f.v.deps.Now().Sub(time.Unix(0, f.r.Scraped)).Seconds())
	}
}

func (f *feeder) refuse(ctx context.Context, d bus.Delivery, reason error) {
	ctx, cancel := context.WithTimeout(ctx, deadTimeout)
	defer cancel()
	err := f.v.deps.Bus.Dead(ctx, d.Letter("apigw."+f.c.name, reason.Error()))
	if err == nil {
		f.v.deps.Log.Warn("message is skipped and kept in DEAD", "cluster", f.c.name, "subject", d.Subject, "seq", d.Seq, "err", reason)
	} else if !f.dead {
		f.v.deps.Log.Error("message is skipped and could not be kept in DEAD", "cluster", f.c.name, "subject", d.Subject, "seq", d.Seq,
			"reason", reason, "err", err)
	}
	f.dead = err != nil
}

// seed and settle tell the window what is the present and what the past.
func (c *Cluster) seed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past.Seed()
}

func (c *Cluster) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past.Settle()
}

// Missing returns the nodes that were silent at the newest closed tick, sorted, as totals name them.
func (c *Cluster) Missing() []string {
	if t := c.totals.Load(); t != nil {
		return slices.Clone(t.Missing)
	}
	return nil
}
