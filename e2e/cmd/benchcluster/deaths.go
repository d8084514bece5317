package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// process finds one by its name.
func (b *bench) process(name string) (*fleet.Process, error) {
	for _, p := range b.fleet.Processes() {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no process %s was started", name)
}

// coldStart kills the gateway and starts it again, and measures how long after that it lists every node and every pod to
// autoscalers.
func (b *bench) coldStart(ctx context.Context) error {
	nodes, _, err := b.list(ctx, "nodes")
	if err != nil {
		return err
	}
	pods, _, err := b.list(ctx, "pods")
	if err != nil {
		return err
	}
	p, err := b.process("apigw")
	if err != nil {
		return err
	}
	if err := p.Kill(); err != nil {
		return err
	}
	began := time.Now()
	if err := p.Start(); err != nil {
		return err
	}
	var after, spent [3]time.Duration // first answer, nodes, pods
	for i, path := range []string{"nodes", "nodes", "pods"} {
		want := 1
		if i > 0 {
			want = []int{0, len(nodes.Items), len(pods.Items)}[i]
		}
		got := 0
		if err := fleet.Until(ctx, fmt.Sprintf("the gateway lists %d %s", want, path), func() bool {
			l, _, err := b.list(ctx, path)
			got = len(l.Items)
			return err == nil && got >= want
		}); err != nil {
			return fmt.Errorf("%w (it lists %d)", err, got)
		}
		after[i] = time.Since(began)
		u, err := p.Usage()
		if err != nil {
			return err
		}
		spent[i] = u.CPU
	}
	b.say("cold start of a gateway", "first nodes after %.2f s (%.2f s of CPU), all %d after %.2f s, all %d pods after %.2f s (%.2f s of CPU)",
		after[0].Seconds(), spent[0].Seconds(), len(nodes.Items), after[1].Seconds(), len(pods.Items), after[2].Seconds(), spent[2].Seconds())
	return nil
}

// owner is the aggregator that owns the cluster.
func (b *bench) owner(ctx context.Context) (*fleet.Process, error) {
	leases, err := b.conn.Leases(ctx, "aggregator.")
	if err != nil || len(leases) != 1 {
		return nil, fmt.Errorf("ask who owns the cluster: %d leases (%v)", len(leases), err)
	}
	return b.process(leases[0].Owner)
}

// failOver kills the aggregator that owns the cluster in the middle of a tick's batches, with another one standing by,
// and measures when the totals of that tick come, and whether a tick or a node's rollup is missing or there twice.
func (b *bench) failOver(ctx context.Context) error {
	if _, err := b.fleet.Start("standby", "aggregator", "", b.args["standby"]...); err != nil {
		return err
	}
	if err := fleet.Until(ctx, "there are two aggregators", func() bool {
		members, err := b.conn.Leases(ctx, bus.MemberLeases)
		return err == nil && len(members) == 2
	}); err != nil {
		return err
	}
	const follow = 4 // ticks
	ctx, cancel := context.WithTimeout(ctx, fleet.Patience)
	defer cancel()
	type tick struct {
		nodes  map[string]int
		totals []time.Time
		whole  proto.Totals
	}
	ticks := map[proto.Tick]*tick{}
	var killed time.Time
	var during, first proto.Tick
	var last time.Time // the owner's last message
	var next time.Time // its successor's first
	dec := proto.NewDecoder()
	for d, err := range b.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.RollupsStream(cluster), Subjects: bus.RollupFilters(cluster), New: true}) {
		if err != nil {
			return err
		}
		var r proto.Rollup
		if err := dec.Rollup(d.Data, &r); err != nil {
			return err
		}
		t := ticks[r.Tick]
		if t == nil {
			t = &tick{nodes: map[string]int{}}
			ticks[r.Tick] = t
		}
		if killed.IsZero() {
			last = d.Time
		} else if next.IsZero() && d.Time.After(killed) {
			next = d.Time
		}
		switch r.Scope {
		case proto.ScopeNode:
			t.nodes[r.Name]++
			if first != 0 && during == 0 && r.Tick > first && len(t.nodes) >= b.nodes/2 {
				owner, err := b.owner(ctx)
				if err != nil {
					return err
				}
				during, killed = r.Tick, time.Now()
				if err := owner.Kill(); err != nil {
					return err
				}
			}
		case proto.ScopeTotals:
			t.totals, t.whole = append(t.totals, d.Time), r.Totals
			if first == 0 {
				first = r.Tick
			}
		}
		if during != 0 && r.Scope == proto.ScopeTotals && r.Tick >= during.Add(follow, b.resolution) {
			break
		}
	}
	if during == 0 {
		return errors.New("the aggregator was never seen in the middle of a tick")
	}
	missing, doubled, ragged := 0, 0, 0
	for at := during; at <= during.Add(follow-1, b.resolution); at = at.Add(1, b.resolution) {
		t := ticks[at]
		if t == nil || len(t.totals) == 0 {
			missing++
			continue
		}
		if len(t.totals) > 1 {
			doubled++
		}
		for _, n := range t.nodes {
			if n > 1 {
				doubled++
			}
		}
		if len(t.nodes) < b.nodes {
			ragged++
		}
	}
	if t := ticks[during]; t == nil || len(t.totals) == 0 {
		b.say("an aggregator that is killed", "totals of that tick never came")
		return nil
	}
	var usual []time.Duration
	for at, t := range ticks {
		if at > during && len(t.totals) > 0 && t.whole.Reported == t.whole.Expected {
			usual = append(usual, t.totals[0].Sub(at.Time()))
		}
	}
	p50, _, _ := quantiles(usual)
	b.say("an aggregator that is killed", "silence of %.1f s; totals of that tick %.1f s after the kill and %.1f s after the tick (usually %.1f s, of %d whole ones); of %d ticks %d missing, %d messages twice, %d without some node",
		next.Sub(last).Seconds(), ticks[during].totals[0].Sub(killed).Seconds(), ticks[during].totals[0].Sub(during.Time()).Seconds(), p50.Seconds(), len(usual), follow, missing, doubled, ragged)
	return nil
}
