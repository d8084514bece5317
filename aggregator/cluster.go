package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// cluster is the work of an owner for one cluster.
type cluster struct {
	name    string
	bus     *bus.Conn
	lanes   *bus.Ownership
	log     *slog.Logger
	tel     *telemetry
	now     func() time.Time
	machine *machine
	letters chan bus.DeadLetter
}

// lettersQueue is how many unusable messages may wait for DEAD; more are counted and dropped, so that
// they hold up nobody.
const lettersQueue = 64

// run reads what is out, rebuilds, and goes on until ctx ends.
func (c *cluster) run(ctx context.Context) error {
	began := c.now()
	from, gap, err := c.resume(ctx)
	if err != nil {
		return fmt.Errorf("resume cluster %q: %w", c.name, err)
	}
	if gap {
		c.log.Warn("messages were lost since the last totals: no rate crosses the gap", "stream", bus.SamplesStream(c.name), "tick", c.machine.past.tick)
	}
	state, err := c.bus.StreamState(ctx, bus.SamplesStream(c.name))
	if err != nil {
		return fmt.Errorf("resume cluster %q: %w", c.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	marker := newMarker(c)
	helpers.Go(func() { marker.run(ctx) })
	helpers.Go(func() { c.bury(ctx) })

	caughtUp := state.Empty() || from > state.LastSeq
	if caughtUp {
		c.caughtUp(began)
	}
	for d, err := range c.bus.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream(c.name), FromSeq: from}) {
		if err != nil {
			return fmt.Errorf("read samples of cluster %q: %w", c.name, err)
		}
		err := c.machine.step(d, func(o output) error { return c.publish(ctx, o) })
		switch unfit := (unusable{}); {
		case errors.As(err, &unfit):
			c.dead(d, unfit)
		case err != nil:
			return err
		}
		if !caughtUp && d.Seq >= state.LastSeq {
			caughtUp = true
			c.caughtUp(began)
		}
		if caughtUp && d.Pending == 0 {
			marker.expect(c.machine)
		}
	}
	return nil
}

func (c *cluster) caughtUp(began time.Time) {
	took := c.now().Sub(began)
	c.tel.replay.WithLabelValues(c.name).Observe(took.Seconds())
	c.log.Info("caught up", "stream", bus.SamplesStream(c.name), "took", took.Round(time.Millisecond))
}

// resume reads what is out and prepares the machine; it returns the sequence to read SAMPLES from, 0 for
// the oldest, and whether some of what is needed is lost. What is out and cannot be read, such as what a
// later version wrote, counts as not out: it is written again, under the same id.
func (c *cluster) resume(ctx context.Context) (from uint64, gap bool, err error) {
	var p past
	stream := bus.RollupsStream(c.name)
	dec, head := proto.NewDecoder(), &proto.Rollup{}
	last, ok, err := c.bus.LastOn(ctx, stream, bus.TotalsSubject(c.name))
	if err != nil {
		return 0, false, err
	}
	if ok {
		if err := dec.RollupHeader(last.Data, head); err != nil {
			c.dead(last, fmt.Errorf("last totals cannot be read, all samples are read again: %w", err))
		} else {
			t := &head.Totals
			p.tick, p.resolution, p.seq = head.Tick, int64(head.Resolution), head.Seq
			p.resume, p.inventory, p.stream, p.jumpEnd = t.ResumeSeq, t.InventorySeq, t.StreamTime, t.JumpEnd
		}
	}
	if p.nodes, err = c.last(ctx, dec, bus.NodeRollupFilter(c.name)); err != nil {
		return 0, false, err
	}
	if p.namespaces, err = c.last(ctx, dec, bus.NamespaceRollupFilter(c.name)); err != nil {
		return 0, false, err
	}
	if p.tick == 0 {
		c.machine.resume(p)
		return 0, false, nil
	}
	same, err := c.sameStream(ctx, p)
	if err != nil {
		return 0, false, err
	}
	if !same {
		c.log.Warn("stream was made anew since the last totals", "stream", bus.SamplesStream(c.name), "tick", p.tick)
		c.machine.renewed(p)
		return 0, true, nil
	}
	c.machine.resume(p)
	samples := bus.SamplesStream(c.name)
	for at := p.inventory; at != 0 && at < p.resume; {
		d, ok, err := c.bus.NextOn(ctx, samples, bus.InventoryFilter(c.name), at)
		if err != nil {
			return 0, false, err
		}
		if !ok || d.Seq >= p.resume {
			break
		}
		if err := c.machine.inventory(d); err != nil {
			c.log.Warn("inventory message is passed over", "seq", d.Seq, "err", err)
		}
		at = d.Seq + 1
	}
	state, err := c.bus.StreamState(ctx, samples)
	if err != nil {
		return 0, false, err
	}
	return p.resume, p.resume < state.FirstSeq, nil
}

// last reads the last rollup of every node, or namespace.
func (c *cluster) last(ctx context.Context, dec *proto.Decoder, filter string) (map[string]out, error) {
	list := map[string]out{}
	_, all, err := c.bus.LastPerSubject(ctx, bus.RollupsStream(c.name), filter)
	if err != nil {
		return nil, err
	}
	head := &proto.Rollup{}
	for d, err := range all {
		if err != nil {
			return nil, err
		}
		if err := dec.RollupHeader(d.Data, head); err != nil {
			c.dead(d, fmt.Errorf("last rollup cannot be read: %w", err))
			continue
		}
		list[head.Name] = out{head.Seq, head.Tick}
	}
	return list, nil
}

// sameStream reports whether SAMPLES is the stream that the last totals were made from: it has their
// closing message, appended when they say, or has had it.
func (c *cluster) sameStream(ctx context.Context, p past) (bool, error) {
	state, err := c.bus.StreamState(ctx, bus.SamplesStream(c.name))
	if err != nil {
		return false, err
	}
	if p.seq > state.LastSeq {
		return false, nil
	}
	if p.seq < state.FirstSeq {
		return state.First.UnixMilli() >= p.stream-p.resolution/1e6 || state.Empty(), nil
	}
	d, ok, err := c.bus.Get(ctx, bus.SamplesStream(c.name), p.seq)
	if err != nil || !ok {
		return true, err
	}
	at := d.Time.UnixMilli()
	return at <= p.stream && at >= p.stream-p.resolution/1e6, nil
}

// publish puts a rollup into its lane; totals follow when all lanes have acknowledged what was before.
func (c *cluster) publish(ctx context.Context, o output) error {
	began := c.now()
	scope := "node"
	switch o.scope {
	case proto.ScopeNamespace:
		scope = "namespace"
	case proto.ScopeTotals:
		scope = "totals"
		if err := c.lanes.Flush(ctx); err != nil {
			return err
		}
	}
	err := c.lanes.Publish(ctx, o.lane, bus.Message{Subject: o.subject, ID: o.id, Data: o.data})
	c.tel.publish.WithLabelValues(scope).Observe(c.now().Sub(began).Seconds())
	return err
}

// dead hands an unusable message over to DEAD. While state is rebuilt it was there before.
func (c *cluster) dead(d bus.Delivery, why error) {
	if c.machine.until != 0 {
		return
	}
	c.tel.dead.WithLabelValues(c.name).Inc()
	select {
	case c.letters <- d.Letter("aggregator."+c.name, why.Error()):
	default:
		c.tel.unsaved.Inc()
	}
	c.log.Warn("message cannot be used", "stream", d.Stream, "subject", d.Subject, "seq", d.Seq, "err", why)
}

// bury stores unusable messages in DEAD.
func (c *cluster) bury(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case l := <-c.letters:
			if err := c.bus.Dead(ctx, l); err != nil {
				c.tel.unsaved.Inc()
				if ctx.Err() == nil {
					c.log.Warn("message is lost to DEAD", "seq", l.Seq, "err", err)
				}
			}
		}
	}
}

// asDuration reads nanoseconds.
func asDuration(ns int64) time.Duration { return time.Duration(ns) }
