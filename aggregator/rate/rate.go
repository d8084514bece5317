// Package rate turns counters into growth over a span, from which every rate is computed.
//
// For each group of values of each entity (and for each of its devices) it remembers the last sample
// it was shown: time, start and counters, and the growth and span of the last valid pair. The entity
// is known by what it is: a pod by namespace, name and UID, a container by its pod and name, a device
// by its entity, kind and name. A new batch then gives, group by group:
//
//   - the sample's time advanced, the start is the same and no counter fell: growth (Field Delta) of
//     every counter that both samples have, and the span between them;
//   - the time is the same: the sample did not advance. Its values, and growth and span of the last
//     valid pair, travel on and are marked stale, until the sample has been there for
//     proto.StandInFor of the batch's resolution; then the group is left out of the row, which is not
//     zero. File systems and accelerators are not left out: kubelets measure volumes once a minute or
//     less often, and these values are in no sum;
//   - a counter of the group fell or leapt, the start changed, the time went back, or the pair would span
//     more than Memory: the sample is taken as the first of its kind, with its values and without any rate,
//     also not of the group's other counters;
//   - the group is not in the answer: nothing, and the remembered sample stays for Memory.
//
// No rate is ever negative, wrapped, infinite or absurd: growth is at least 0, spans are positive, and no
// counter grows by more than 10^15 a second (a million cores, a petabyte).
//
// What kubelets do wrong, each with a scenario in aggregator/testdata:
//
//   - a counter is reset: it fell, so one tick has no rate; also where the sample's time stands still;
//     fallen-counter
//   - a container restarts: its start is another one, so all its groups and devices begin anew, also where
//     the counter is larger already; restarted-container
//   - the start is missing: it is taken to be the one before, as the counters that did not fall say; what is
//     known again later is compared with the last one known; missing-start
//   - the start jumps, there and back, although nothing restarted: a tick without a rate at each jump, and
//     never a wrong one; jumping-start
//   - a value is beyond 2^63-1: the scraper leaves it out; one that another writer wrapped is below 0 and is
//     left out here, a counter (its group has no rate until there are two samples of it again) as well as a
//     gauge; one that is very large without having wrapped leapt; huge-values
//   - a timestamp stands still: stale, then left out, as above; unadvanced. What its counters gain meanwhile
//     is part of the growth once it advances
//   - a timestamp goes back: the first of its kind. So a clock that was set back costs one rate and blocks
//     none after it; clock-back
//   - a timestamp lies in the future: rates are differences, so a clock that is ahead does no harm; its jump
//     ahead and its jump back cost a rate each; clock-ahead
//   - the same answer comes at two ticks: nothing advanced, all of it stands in; same-answer
//   - an answer is an hour old: no rate from it nor to it, its values stand until the next one; hour-old. A
//     batch that comes an hour late is refused (ticks)
//
// Sums go without the rates that are missing here: a tick's totals count the pods and containers concerned.
//
// Time here is the caller's clock of the stream (ticks.Clock), never the wall's. No pair crosses more
// than Memory of it since the earlier sample was last seen, so the state at any point follows from the
// batches of the last 2 x Memory before it: after a crash those are read again.
//
// Not here: when a tick is complete (ticks), sums over pods and nodes (rollup), the formulas (proto),
// the past (apigw/window).
package rate

import (
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Memory is how long a sample is remembered after it was last seen: max(4 x resolution, 90 s), long
// enough to pair with the next one after a few missed scrapes.
func Memory(resolution time.Duration) time.Duration { return max(4*resolution, 90*time.Second) }

// mostPerNanosecond is by how much a counter can grow: what grows by more did not count.
const mostPerNanosecond = 1_000_000

const (
	groups         = 8 // proto.GroupCPU to GroupProcess, by number
	entityCounters = 16
	deviceCounters = 4
)

// plan says which columns belong to a group; it is made once from the catalogue.
type plan struct {
	counters [groups][]counter
	fields   [groups][]proto.Field // every value of the group
	device   [8][]counter          // by kind of device
	count    int                   // of counters of entities
}

// counter is a column that grows, and its place in a slot.
type counter struct {
	value, delta proto.Field
	at           int
}

var thePlan = makePlan()

func makePlan() (p plan) {
	for _, m := range proto.Metrics() {
		if m.Formula != proto.FormulaNone || m.Group == proto.GroupNone {
			continue
		}
		if m.Device != 0 {
			if m.Shape == proto.Counter {
				list := &p.device[m.Device]
				*list = append(*list, counter{m.ID.Field(), m.ID.Delta(), len(*list)})
			}
			continue
		}
		p.fields[m.Group] = append(p.fields[m.Group], m.ID.Field())
		if m.Shape == proto.Counter {
			p.counters[m.Group] = append(p.counters[m.Group], counter{m.ID.Field(), m.ID.Delta(), p.count})
			p.count++
		}
	}
	return p
}

// State is what is remembered of the nodes of one cluster. It is not safe for concurrent use.
type State struct {
	nodes map[string]*node

	rows, devices []int32        // slots of the batch at hand, by row; -1: none
	restarted     []bool         // by row
	cols          []proto.Column // of the group at hand
}

// New returns a State that remembers nothing.
func New() *State { return &State{nodes: map[string]*node{}} }

// node is what is remembered of one node.
type node struct {
	seen     int64 // clock at its last batch, ms
	swept    int64 // clock when slots were last looked through
	entities slots[entityKey, entity]
	devices  slots[deviceKey, device]
}

type entityKey struct {
	kind                 proto.Kind
	parent               int32 // slot of the pod of a container; else -1
	namespace, name, uid string
}

type deviceKey struct {
	entity int32 // slot
	kind   proto.DeviceKind
	name   string
}

// pair is the state of one group: the last sample, and the pair it made with the one before.
type pair struct {
	time  int64 // of the sample, Unix ns
	span  int64 // of the last valid pair, ns; 0: none
	first int64 // clock when the sample was first seen, ms
	last  int64 // clock when it was last seen, ms
	known bool
}

type entity struct {
	start    int64
	hasStart bool
	has      uint16 // which counters the last sample had
	grown    uint16 // which counters have growth
	groups   [groups]pair
	value    [entityCounters]int64
	delta    [entityCounters]int64
}

type device struct {
	pair
	has, grown uint16
	value      [deviceCounters]int64
	delta      [deviceCounters]int64
}

// Forget drops the nodes that have sent nothing for Memory at this resolution. It changes no output,
// only what is held.
func (s *State) Forget(now int64, resolution time.Duration) {
	for name, n := range s.nodes {
		if now-n.seen > Memory(resolution).Milliseconds() {
			delete(s.nodes, name)
		}
	}
}

// Reset forgets everything, so that no rate crosses what was lost.
func (s *State) Reset() { clear(s.nodes) }

// Nodes is how many nodes are remembered.
func (s *State) Nodes() int { return len(s.nodes) }

// Step adds growth, spans and stale marks to a batch's table, leaves out what did not advance for too
// long, and remembers the batch's samples. now is the clock at the batch's message in ms. Batches of
// one node come in the order of their ticks.
func (s *State) Step(b *proto.Batch, now int64) {
	n := s.nodes[b.Node]
	if n == nil {
		n = &node{}
		s.nodes[b.Node] = n
	}
	n.seen = now
	memory := Memory(b.Resolution)
	t := &terms{now: now, memory: memory.Milliseconds(), longest: memory.Nanoseconds(), standIn: proto.StandInFor(b.Resolution).Milliseconds()}
	if now-n.swept > t.memory {
		n.swept = now
		n.entities.sweep(now - t.memory)
		n.devices.sweep(now - t.memory)
	}
	clean(&b.Values)
	clean(&b.DeviceValues)
	s.find(n, &b.Table, t)
	for g := proto.GroupCPU; g < groups; g++ {
		s.group(n, &b.Table, g, t)
	}
	s.device(n, &b.Table, t)
}

// terms are the limits that hold for one batch.
type terms struct {
	now     int64 // ms
	memory  int64 // ms
	longest int64 // the longest span of a pair, ns
	standIn int64 // ms
}

// find gives every row its slot.
func (s *State) find(n *node, t *proto.Table, at *terms) {
	s.rows, s.restarted = s.rows[:0], s.restarted[:0]
	starts := t.Values.Column(proto.FieldStart)
	n.entities.begin(len(t.Entities))
	for i := range t.Entities {
		e := &t.Entities[i]
		key := entityKey{kind: e.Kind, parent: -1, name: e.Name}
		switch e.Kind {
		case proto.KindPod:
			key.namespace, key.uid = e.Namespace, e.UID
		case proto.KindContainer:
			key.parent = s.rows[e.Parent]
			if key.parent < 0 { // of a pod that the answer has twice
				s.rows, s.restarted = append(s.rows, -1), append(s.restarted, false)
				continue
			}
		}
		slot := n.entities.find(key, at.now, at.now-at.memory)
		again := false
		if slot >= 0 && starts != nil && starts.Present.Has(i) {
			state, start := &n.entities.state[slot], starts.Values[i]
			again = state.hasStart && state.start != start
			if again {
				*state = entity{}
			}
			state.start, state.hasStart = start, true
		}
		s.rows, s.restarted = append(s.rows, slot), append(s.restarted, again)
	}
	s.devices = s.devices[:0]
	n.devices.begin(len(t.Devices))
	for i := range t.Devices {
		d := &t.Devices[i]
		of := s.rows[d.Entity]
		if of < 0 {
			s.devices = append(s.devices, -1)
			continue
		}
		slot := n.devices.find(deviceKey{of, d.Kind, d.Name}, at.now, at.now-at.memory)
		if slot >= 0 && s.restarted[d.Entity] {
			n.devices.state[slot] = device{}
		}
		s.devices = append(s.devices, slot)
	}
}

// verdict is what a sample is to the one remembered.
type verdict uint8

const (
	fresh     verdict = iota // the first of its kind
	advanced                 // makes a pair with the one remembered
	unchanged                // the one remembered
	expired                  // the one remembered, for too long
)

func (p *pair) judge(at int64, t *terms) verdict {
	switch {
	case !p.known || t.now-p.last > t.memory || at < p.time || at-p.time > t.longest:
		return fresh
	case at > p.time:
		return advanced
	case t.now-p.first >= t.standIn:
		return expired
	}
	return unchanged
}

// take remembers a sample that is not the one remembered.
func (p *pair) take(at, span int64, t *terms) {
	*p = pair{time: at, span: span, first: t.now, last: t.now, known: true}
}

// tally is the state of the counters of one group or device, by their place.
type tally struct {
	has, grown   *uint16
	value, delta []int64
}

// fits reports whether a counter can have grown like this: it did not fall, and not by more than
// mostPerNanosecond.
func fits(v verdict, growth, span int64) bool {
	return growth >= 0 && (v != advanced || growth/mostPerNanosecond <= span)
}

// sample is one sample of a group of an entity, or of a device.
type sample struct {
	values   *proto.Columns
	row      int
	group    proto.Group
	at       int64
	counters []counter
	cols     []proto.Column // of the counters
	lasting  bool           // never expires
}

// step judges a sample, writes into its row what follows from the one remembered, and remembers it. Of an
// expired one the caller clears the values.
func (s *sample) step(p *pair, c tally, t *terms) verdict {
	v := p.judge(s.at, t)
	if v == expired && s.lasting {
		v = unchanged
	}
	if v == advanced || v == unchanged {
		for i, k := range s.counters {
			if *c.has&(1<<k.at) != 0 && s.cols[i].Present.Has(s.row) && !fits(v, s.cols[i].Values[s.row]-c.value[k.at], s.at-p.time) {
				v = fresh
			}
		}
	}
	rated := len(s.counters) > 0
	switch v {
	case fresh:
		p.take(s.at, 0, t)
	case advanced:
		p.take(s.at, s.at-p.time, t)
	case unchanged:
		p.last = t.now
		s.values.Set(s.row, s.group.Stale(), 1)
		for _, k := range s.counters {
			if *c.grown&(1<<k.at) != 0 {
				s.values.Set(s.row, k.delta, c.delta[k.at])
			}
		}
	case expired:
		p.last = t.now
		return v
	}
	if p.span > 0 && rated {
		s.values.Set(s.row, s.group.Span(), p.span)
	}
	if v == unchanged {
		return v
	}
	for i, k := range s.counters {
		bit := uint16(1) << k.at
		had, before := *c.has&bit != 0, c.value[k.at]
		*c.has &^= bit
		*c.grown &^= bit
		if !s.cols[i].Present.Has(s.row) {
			continue
		}
		now := s.cols[i].Values[s.row]
		if v == advanced && had {
			*c.grown |= bit
			c.delta[k.at] = now - before
			s.values.Set(s.row, k.delta, now-before)
		}
		*c.has |= bit
		c.value[k.at] = now
	}
	return v
}

// group steps one group of all entities.
func (s *State) group(n *node, table *proto.Table, g proto.Group, t *terms) {
	values := &table.Values
	times := values.Column(g.Time())
	if times == nil {
		return
	}
	// Columns by value: Set may move the list they are in, never what they hold.
	at, present := times.Values, times.Present
	s.cols = columns(s.cols[:0], values, thePlan.counters[g])
	sample := sample{values: values, group: g, counters: thePlan.counters[g], cols: s.cols}
	for row := range at {
		if !present.Has(row) || s.rows[row] < 0 {
			continue
		}
		e := &n.entities.state[s.rows[row]]
		sample.row, sample.at = row, at[row]
		if sample.step(&e.groups[g], tally{&e.has, &e.grown, e.value[:], e.delta[:]}, t) == expired {
			values.Clear(row, g.Time())
			for _, f := range thePlan.fields[g] {
				values.Clear(row, f)
			}
		}
	}
}

// device steps all devices.
func (s *State) device(n *node, table *proto.Table, t *terms) {
	values := &table.DeviceValues
	times := values.Column(proto.GroupDevice.Time())
	if times == nil {
		return
	}
	at, present := times.Values, times.Present
	s.cols = s.cols[:0]
	var cols [len(thePlan.device)][]proto.Column
	for kind := range cols {
		from := len(s.cols)
		s.cols = columns(s.cols, values, thePlan.device[kind])
		cols[kind] = s.cols[from:]
	}
	sample := sample{values: values, group: proto.GroupDevice}
	for row := range at {
		if !present.Has(row) || s.devices[row] < 0 {
			continue
		}
		d := &n.devices.state[s.devices[row]]
		sample.row, sample.at, sample.counters, sample.cols = row, at[row], nil, nil
		if k := table.Devices[row].Kind; int(k) < len(cols) {
			sample.counters, sample.cols = thePlan.device[k], cols[k]
		}
		sample.lasting = len(sample.counters) == 0
		if sample.step(&d.pair, tally{&d.has, &d.grown, d.value[:], d.delta[:]}, t) == expired {
			for _, col := range values.All() {
				values.Clear(row, col.Field)
			}
		}
	}
}

// columns appends the columns of these counters; one that is not there has no row present.
func columns(dst []proto.Column, values *proto.Columns, counters []counter) []proto.Column {
	for _, c := range counters {
		col := proto.Column{}
		if have := values.Column(c.value); have != nil {
			col = *have
		}
		dst = append(dst, col)
	}
	return dst
}

// clean clears what no source can have measured: numbers below 0, which a writer makes of those beyond
// 2^63, and growth, spans and marks, which are ours to write.
func clean(values *proto.Columns) {
	for _, col := range values.All() {
		signs := int64(0)
		for _, v := range col.Values {
			signs |= v
		}
		if signs >= 0 && col.Field.Sampled() {
			continue
		}
		for row, v := range col.Values {
			if v < 0 || !col.Field.Sampled() {
				values.Clear(row, col.Field)
			}
		}
	}
}
