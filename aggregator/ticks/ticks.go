// Package ticks says which nodes spoke at a tick, when the tick is closed, and who was missing.
//
// Everything here follows from the messages of SAMPLES in their order and from nothing else: no wall
// clock, no order of maps. The rules:
//
//   - A batch belongs to the tick it names. It is refused where that lies more than one resolution
//     ahead of stream time or more than MaxLate behind it, and where it is not newer than the node's
//     last. A batch of a closed tick is taken and does not open the tick again; what it says of its
//     node stands in at the next one.
//   - The first tick ever is that of the first batch. Ticks close in order, at the first message where
//     (a) the inventory of nodes is in force and every node it expects that spoke at the tick before
//     has spoken at this one, at least one of them; or (b) stream time is the grace after the tick, or
//     the grace after the end of the last jump if that is later, so that a backlog finds its ticks open.
//   - A tick that nobody spoke at, and whose time to close by (b) fell into a jump, was slept through
//     by everybody: it is passed over. Any other tick closes, also an empty one.
//   - A node that is silent at a tick stands in with its last share while that is younger than
//     proto.StandInFor in counted time, unless the inventory in force does not expect it any more.
//   - Resolution and grace are those of the inventory of nodes in force, else the resolution of the
//     newest batch. When the resolution changes, closing goes on at the next instant of the new grid;
//     a batch whose tick is not on it gets its node's rollup, and stands in at the next tick.
//
// After a crash the messages of the last 2 x rate.Memory are read again, whose first one Close names;
// Restore then sets what those cannot tell.
//
// Not here: what a share is (rollup), rates (rate), reading and writing (the root).
package ticks

import (
	"slices"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// MaxLate is how far behind stream time a batch may be: longer than any backlog a scraper keeps, and
// as long as it is remembered which batch of a node was its last.
const MaxLate = time.Hour

// DefaultResolution holds until an inventory or a batch names one.
const DefaultResolution = time.Minute

// Verdict says what becomes of a batch.
type Verdict uint8

// The verdicts. Only the first two get a rollup of their node.
const (
	Taken    Verdict = iota // of an open tick
	Late                    // of a closed tick, or off the grid
	Ahead                   // refused: more than one resolution ahead of stream time
	TooOld                  // refused: more than MaxLate behind stream time
	NotNewer                // refused: not newer than the node's last
)

// String is the verdict as telemetry names it.
func (v Verdict) String() string {
	return [...]string{"taken", "late", "ahead", "too-old", "not-newer"}[v]
}

// Ticks is the state of one cluster; S is what a node contributes to a tick. It is not safe for
// concurrent use.
type Ticks[S any] struct {
	Clock     Clock
	Inventory Inventory

	resolution time.Duration
	grace      time.Duration
	memory     func(resolution time.Duration) time.Duration

	closed   proto.Tick
	floor    proto.Tick // while rebuilding: the tick that Restore will name
	nodes    map[string]*node[S]
	expected int

	// For rule (a), of the nodes expected: how many spoke at the closed tick, and how many of those
	// have not spoken at the next.
	before, waiting int
}

type node[S any] struct {
	last     proto.Tick // newest tick taken; 0: none
	expected bool
	shares   []share[S] // at most one of a closed tick, then those of open ticks, by tick
}

type share[S any] struct {
	tick proto.Tick
	seen int64 // counted time
	of   S
}

// New returns the state before the first message. memory is rate.Memory.
func New[S any](memory func(resolution time.Duration) time.Duration) *Ticks[S] {
	return &Ticks[S]{nodes: map[string]*node[S]{}, memory: memory, resolution: DefaultResolution, grace: proto.Grace(DefaultResolution)}
}

// Resolution is the resolution in force.
func (t *Ticks[S]) Resolution() time.Duration { return t.resolution }

// Grace is the grace in force.
func (t *Ticks[S]) Grace() time.Duration { return t.grace }

// Closed is the last tick closed or passed over; 0 before the first batch.
func (t *Ticks[S]) Closed() proto.Tick { return t.closed }

// Next is the tick to close next; 0 before the first batch.
func (t *Ticks[S]) Next() proto.Tick {
	if t.closed == 0 {
		return 0
	}
	return proto.TickAt(t.closed.Time().Add(t.resolution), t.resolution)
}

// Deadline is the stream time at which Next closes by rule (b), Unix ms.
func (t *Ticks[S]) Deadline() int64 {
	return max(int64(t.Next()), t.Clock.jumpEnd) + t.grace.Milliseconds()
}

// Advance takes the append time of the next message; it comes before everything else about it.
func (t *Ticks[S]) Advance(seq uint64, at time.Time) {
	t.Clock.advance(seq, at.UnixMilli(), t.resolution, t.grace, t.memory(t.resolution).Milliseconds()/8, t.Inventory.Since())
}

// AddInventory takes one part of the inventory and reports whether the one in force changed.
func (t *Ticks[S]) AddInventory(seq uint64, at time.Time, part *proto.Inventory) bool {
	if !t.Inventory.Add(seq, at.UnixMilli(), part) {
		return false
	}
	if part.Subject != proto.InventoryNodes {
		return true
	}
	for _, n := range t.nodes {
		n.expected = false
	}
	t.expected = 0
	for _, p := range t.Inventory.Parts(proto.InventoryNodes) {
		t.setGrid(p.Resolution, p.Grace)
		for i := range p.Nodes {
			n := t.node(p.Nodes[i].Name)
			if !n.expected {
				n.expected = true
				t.expected++
			}
		}
	}
	t.count()
	return true
}

// setGrid sets resolution and grace where they make sense.
func (t *Ticks[S]) setGrid(resolution, grace time.Duration) {
	if resolution < proto.MinResolution {
		return
	}
	if grace <= 0 {
		grace = proto.Grace(resolution)
	}
	t.resolution, t.grace = resolution, min(grace, 2*resolution)
}

func (t *Ticks[S]) node(name string) *node[S] {
	n := t.nodes[name]
	if n == nil {
		n = &node[S]{}
		t.nodes[name] = n
	}
	return n
}

// SetLast says which tick is the newest that the node has a rollup of: known from ROLLUPS, for batches
// that are not read again.
func (t *Ticks[S]) SetLast(name string, tick proto.Tick) { t.node(name).last = tick }

// Judge says what becomes of a batch, after Advance. Where it is Taken or Late, Report follows.
func (t *Ticks[S]) Judge(name string, tick proto.Tick, resolution time.Duration) Verdict {
	n := t.nodes[name]
	switch {
	case int64(tick) > t.Clock.stream+resolution.Milliseconds():
		return Ahead
	case int64(tick) < t.Clock.stream-MaxLate.Milliseconds():
		return TooOld
	case n != nil && n.last != 0 && tick <= n.last:
		return NotNewer
	case t.closed != 0 && tick <= t.closed, t.gridKnown() && proto.TickAt(tick.Time(), t.resolution) != tick:
		return Late
	}
	return Taken
}

func (t *Ticks[S]) gridKnown() bool { return t.Inventory.Parts(proto.InventoryNodes) != nil }

// Report takes a node's share of a tick. rebuilding says that ticks are not closed at the moment.
func (t *Ticks[S]) Report(name string, tick proto.Tick, resolution time.Duration, of S, rebuilding bool) {
	if !t.gridKnown() && resolution != t.resolution {
		t.setGrid(resolution, 0)
	}
	if t.closed == 0 && !rebuilding {
		t.closed = tick.Add(-1, t.resolution)
	}
	n := t.node(name)
	t.uncount(n)
	n.last = tick
	n.shares = append(n.shares, share[S]{tick, t.Clock.counted, of})
	t.drop(n)
	t.recount(n)
}

// drop drops the shares of closed ticks but the newest.
func (t *Ticks[S]) drop(n *node[S]) {
	from := 0
	for i := range n.shares {
		if n.shares[i].tick <= max(t.closed, t.floor) {
			from = i
		}
	}
	if from > 0 {
		n.shares = slices.Delete(n.shares, 0, from)
	}
}

func (n *node[S]) at(tick proto.Tick) *share[S] {
	for i := range n.shares {
		if n.shares[i].tick == tick {
			return &n.shares[i]
		}
	}
	return nil
}

// parts a node plays in rule (a).
func (t *Ticks[S]) uncount(n *node[S]) {
	if n.expected && n.at(t.closed) != nil {
		t.before--
		if n.at(t.Next()) == nil {
			t.waiting--
		}
	}
}

func (t *Ticks[S]) recount(n *node[S]) {
	if n.expected && n.at(t.closed) != nil {
		t.before++
		if n.at(t.Next()) == nil {
			t.waiting++
		}
	}
}

func (t *Ticks[S]) count() {
	t.before, t.waiting = 0, 0
	for _, n := range t.nodes {
		t.recount(n)
	}
}

// Restore ends a rebuilding: the tick is the last one closed, at stream time and with the last jump as
// its totals say. It is called after the message that closed it, or where that was lost, before the
// first after it.
func (t *Ticks[S]) Restore(tick proto.Tick, stream, jumpEnd int64) {
	t.Clock.restore(stream, jumpEnd, t.resolution)
	t.setClosed(tick)
}

// Resume starts a rebuilding, with tick and resolution of the last totals.
func (t *Ticks[S]) Resume(tick proto.Tick, resolution time.Duration) {
	t.floor = tick
	t.setGrid(resolution, 0)
}

func (t *Ticks[S]) setClosed(tick proto.Tick) {
	t.closed = tick
	for _, n := range t.nodes {
		t.drop(n)
	}
	t.count()
}

// Closing is one closed tick.
type Closing[S any] struct {
	Tick       proto.Tick
	Resolution time.Duration
	Expected   int
	Reported   []S      // shares of the nodes that spoke, by node name
	StandIn    []S      // last shares of silent nodes that stand in, by node name
	Missing    []string // nodes expected and silent, sorted
	Resume     Mark     // where to read on from, to know what is known now
	Stream     int64
	JumpEnd    int64
}

// Close closes the next tick if the messages so far allow it. It is called after every message until it
// returns false. The shares belong to Ticks and stay as they are.
func (t *Ticks[S]) Close() (Closing[S], bool) {
	for t.closed != 0 {
		next := t.Next()
		byAll := t.gridKnown() && t.before > 0 && t.waiting == 0
		if !byAll && t.Clock.stream < t.Deadline() {
			break
		}
		if !byAll && int64(next)+t.grace.Milliseconds() <= t.Clock.jumpEnd && !t.spoke(next) {
			t.setClosed(next)
			continue
		}
		t.setClosed(next)
		return t.closing(next), true
	}
	return Closing[S]{}, false
}

func (t *Ticks[S]) spoke(tick proto.Tick) bool {
	for _, n := range t.nodes {
		if n.at(tick) != nil {
			return true
		}
	}
	return false
}

func (t *Ticks[S]) closing(tick proto.Tick) Closing[S] {
	c := Closing[S]{Tick: tick, Resolution: t.resolution, Expected: t.expected, Stream: t.Clock.stream, JumpEnd: t.Clock.jumpEnd,
		Resume: t.Clock.resume(2 * t.memory(t.resolution).Milliseconds())}
	standIn := proto.StandInFor(t.resolution).Milliseconds()
	names := make([]string, 0, len(t.nodes))
	for name := range t.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n := t.nodes[name]
		var last *share[S]
		if len(n.shares) > 0 && n.shares[0].tick <= tick {
			last = &n.shares[0]
		}
		if last != nil && last.tick == tick {
			c.Reported = append(c.Reported, last.of)
			continue
		}
		if n.expected {
			c.Missing = append(c.Missing, name)
		}
		if last == nil {
			t.forget(name, n)
			continue
		}
		young := t.Clock.counted-last.seen < standIn
		if young && (n.expected || !t.gridKnown()) {
			c.StandIn = append(c.StandIn, last.of)
		}
		if !young {
			n.shares = slices.Delete(n.shares, 0, 1)
		}
	}
	return c
}

// forget drops a node that nothing is known of any more.
func (t *Ticks[S]) forget(name string, n *node[S]) {
	if !n.expected && len(n.shares) == 0 && int64(n.last) < t.Clock.stream-MaxLate.Milliseconds() {
		delete(t.nodes, name)
	}
}
