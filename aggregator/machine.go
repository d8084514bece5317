package aggregator

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	"github.com/heapstream/heapstream/aggregator/rate"
	"github.com/heapstream/heapstream/aggregator/rollup"
	"github.com/heapstream/heapstream/aggregator/ticks"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// machine is one cluster's SAMPLES -> ROLLUPS, without the bus: what it emits follows from the messages
// it is stepped through, in their order, and from what it was told is out already.
type machine struct {
	cluster string
	tel     *telemetry
	log     *slog.Logger

	dec   *proto.Decoder
	enc   *proto.Encoder
	batch proto.Batch
	roll  proto.Rollup

	rates *rate.State
	maker *rollup.Maker
	ticks *ticks.Ticks[*rollup.Share]

	past  past
	until uint64 // while not 0: sequence up to which state is only rebuilt
	gap   bool   // to be stated in the next totals

	refused map[string]ticks.Verdict // why the last batch of a node was refused, for the log; absent: it was not
	silent  bool                     // nodes were missing at the last closed tick
	rivals  bool                     // two nodes had one pod at the last closed tick
	capped  map[string]bool          // nodes and namespaces of whose last rollup something was left out
}

// past is what is out on ROLLUPS.
type past struct {
	tick       proto.Tick // of the last totals; 0: there are none, and the rest up to stream is not set
	resolution int64      // ns
	seq        uint64     // of the message of SAMPLES that closed it
	resume     uint64     // where to read on from
	inventory  uint64
	stream     int64
	jumpEnd    int64

	nodes      map[string]out
	namespaces map[string]out
}

// out is the last rollup of one node or namespace.
type out struct {
	seq  uint64
	tick proto.Tick
}

// output is one message for ROLLUPS. Totals go out when everything emitted before has been stored.
type output struct {
	scope   proto.Scope
	lane    int
	subject string
	id      string
	data    []byte
}

// unusable says why a message goes to DEAD.
type unusable struct{ err error }

func (u unusable) Error() string { return u.err.Error() }
func (u unusable) Unwrap() error { return u.err }

func newMachine(cluster string, tel *telemetry, log *slog.Logger) *machine {
	return &machine{cluster: cluster, tel: tel, log: log, refused: map[string]ticks.Verdict{}, capped: map[string]bool{}, dec: proto.NewDecoder(), enc: proto.NewEncoder(), rates: rate.New(), maker: rollup.New(),
		ticks: ticks.New[*rollup.Share](rate.Memory)}
}

// resume tells a new machine what is out; it is then stepped from p.resume on, after inventory for what
// lies between p.inventory and there.
func (m *machine) resume(p past) {
	m.past, m.until = p, p.seq
	if p.tick != 0 {
		m.ticks.Resume(p.tick, asDuration(p.resolution))
	}
	for name, o := range p.nodes {
		if o.seq < p.resume { // its batch is not read again
			m.ticks.SetLast(name, o.tick)
		}
	}
}

// renewed tells a new machine what is out where that was made from another stream SAMPLES, whose
// sequences say nothing about this one: nothing is rebuilt, and only newer batches get rollups.
func (m *machine) renewed(p past) {
	m.gap = true
	for name, o := range p.nodes {
		m.ticks.SetLast(name, o.tick)
	}
	m.past = past{namespaces: p.namespaces}
	m.ticks.Resume(p.tick, asDuration(p.resolution))
	m.ticks.Restore(p.tick, p.stream, p.jumpEnd)
}

// inventory takes a message of the inventory from before the first step.
func (m *machine) inventory(d bus.Delivery) error {
	part := new(proto.Inventory)
	if err := m.dec.Inventory(d.Data, part); err != nil {
		return unusable{err}
	}
	if part.Cluster != m.cluster {
		return unusable{fmt.Errorf("inventory of cluster %q", part.Cluster)}
	}
	if m.ticks.AddInventory(d.Seq, d.Time, part) {
		m.maker.SetInventory(part.Subject, m.ticks.Inventory.Parts(part.Subject))
	}
	return nil
}

// step takes the next message. Its errors are those of emit, or unusable, after which it can go on.
func (m *machine) step(d bus.Delivery, emit func(output) error) error {
	if m.until != 0 && d.Seq > m.until { // the message that closed the last tick is gone
		m.restore()
	}
	if d.Gap > 0 {
		m.gap = true
		m.rates.Reset()
		m.tel.gaps.WithLabelValues(m.cluster).Inc()
	}
	m.ticks.Advance(d.Seq, d.Time)
	err := m.take(d, emit)
	if err != nil && !errors.As(err, new(unusable)) {
		return err
	}
	switch {
	case m.until == 0:
	case d.Seq < m.until:
		return err
	default:
		m.restore()
	}
	for {
		closing, ok := m.ticks.Close()
		if !ok {
			return err
		}
		if lost := m.close(d.Seq, &closing, emit); errors.As(lost, new(unusable)) {
			err = lost
		} else if lost != nil {
			return lost
		}
	}
}

func (m *machine) restore() {
	m.until = 0
	m.ticks.Restore(m.past.tick, m.past.stream, m.past.jumpEnd)
}

func (m *machine) take(d bus.Delivery, emit func(output) error) error {
	a, err := bus.ParseSubject(d.Subject)
	if err != nil {
		return unusable{err}
	}
	switch a.Kind {
	case bus.Samples:
		return m.node(a.Name, d, emit)
	case bus.Inventory:
		return m.inventory(d)
	case bus.Clock:
		if _, err := m.dec.Clock(d.Data); err != nil {
			return unusable{err}
		}
		return nil
	}
	return unusable{fmt.Errorf("%s on SAMPLES", a.Kind)}
}

// node takes one batch and emits its node's rollup.
func (m *machine) node(name string, d bus.Delivery, emit func(output) error) error {
	b := &m.batch
	if err := m.dec.Batch(d.Data, b); err != nil {
		return unusable{err}
	}
	switch {
	case b.Cluster != m.cluster || b.Node != name:
		return unusable{fmt.Errorf("batch of node %q of cluster %q on the subject of node %q of cluster %q", b.Node, b.Cluster, name, m.cluster)}
	case b.Resolution < proto.MinResolution:
		return unusable{fmt.Errorf("batch of node %q has resolution %s: the least is %s", b.Node, b.Resolution, proto.MinResolution)}
	case b.Tick <= 0 || proto.TickAt(b.Tick.Time(), b.Resolution) != b.Tick:
		return unusable{fmt.Errorf("batch of node %q: tick %s is not on the grid of %s", b.Node, b.Tick, b.Resolution)}
	case len(b.Entities) == 0 || b.Entities[0].Kind != proto.KindNode:
		return unusable{fmt.Errorf("batch of node %q has no row of the node", b.Node)}
	}
	verdict := m.ticks.Judge(b.Node, b.Tick, b.Resolution)
	if m.until == 0 {
		m.tel.batch(m.cluster, verdict)
		m.tell(verdict)
	}
	if verdict > ticks.Late {
		return nil
	}
	node, tick, resolution := b.Node, b.Tick, b.Resolution
	m.rates.Step(b, m.ticks.Clock.Counted())
	share := m.maker.Node(b, d.Seq, &m.roll)
	m.ticks.Report(node, tick, resolution, share, m.until != 0)
	if d.Seq <= m.past.nodes[node].seq {
		if m.until == 0 {
			m.tel.skipped.WithLabelValues(m.cluster).Inc()
		}
		return nil
	}
	return m.emit(output{scope: proto.ScopeNode, lane: bus.LaneOf(node), subject: bus.NodeRollupSubject(m.cluster, node), id: m.id("node", node, tick)}, emit)
}

// tell logs that a node's batches begin to be refused, or are taken again. One that came twice is no news.
func (m *machine) tell(v ticks.Verdict) {
	was, refused := m.refused[m.batch.Node]
	switch {
	case v == ticks.NotNewer:
	case v > ticks.Late && (!refused || was != v):
		m.refused[m.batch.Node] = v
		m.log.Warn("batches are refused", "node", m.batch.Node, "tick", m.batch.Tick, "reason", v)
	case v <= ticks.Late && refused:
		delete(m.refused, m.batch.Node)
		m.log.Info("batches are taken again", "node", m.batch.Node, "tick", m.batch.Tick)
	}
}

// close emits the namespaces and totals of a closed tick.
func (m *machine) close(seq uint64, c *ticks.Closing[*rollup.Share], emit func(output) error) error {
	sums := m.maker.Tick(c.Reported, c.StandIn)
	head := func() {
		m.roll.Cluster, m.roll.Tick, m.roll.Resolution, m.roll.Seq = m.cluster, c.Tick, c.Resolution, seq
	}
	var lost error // of what cannot be encoded; the rest goes out
	for i := range sums.Namespaces() {
		name := sums.Name(i)
		if c.Tick <= m.past.namespaces[name].tick {
			m.tel.skipped.WithLabelValues(m.cluster).Inc()
			continue
		}
		m.maker.Namespace(sums, i, &m.roll)
		head()
		err := m.emit(output{scope: proto.ScopeNamespace, subject: bus.NamespaceRollupSubject(m.cluster, name), id: m.id("ns", name, c.Tick)}, emit)
		if errors.As(err, new(unusable)) {
			lost = err
		} else if err != nil {
			return err
		}
	}
	m.maker.Totals(sums, &m.roll)
	head()
	t := &m.roll.Totals
	t.Expected, t.Reported, t.StandIn = uint32(c.Expected), uint32(len(c.Reported)), uint32(len(c.StandIn)) //nolint:gosec // bounded by an inventory
	for _, s := range c.Reported {
		t.StandIns += s.Stale
	}
	for _, s := range c.StandIn {
		t.StandIns += s.Entities
	}
	t.Contested = uint32(len(sums.Contested)) //nolint:gosec // bounded by what fits into messages
	t.PodsWithoutRate, t.ContainersWithoutRate = sums.PodsWithoutRate, sums.ContainersWithoutRate
	t.Missing = append(t.Missing[:0], c.Missing[:min(len(c.Missing), proto.MaxMissing)]...)
	t.Gap, m.gap = m.gap, false
	t.ResumeSeq, t.InventorySeq, t.StreamTime, t.JumpEnd = c.Resume.Seq, c.Resume.Inventory, c.Stream, c.JumpEnd
	m.tel.took(m.cluster, c.Tick, t)
	if silent := len(c.Missing) > 0; silent != m.silent {
		m.silent = silent
		if silent {
			m.log.Warn("nodes are silent", "tick", c.Tick, "missing", len(c.Missing), "node", c.Missing[0])
		} else {
			m.log.Info("all nodes report", "tick", c.Tick)
		}
	}
	if rivals := t.Contested > 0; rivals != m.rivals {
		m.rivals = rivals
		if rivals {
			p := &sums.Contested[0]
			m.log.Warn("two nodes have one pod: the newer is counted", "tick", c.Tick, "pods", t.Contested,
				"namespace", p.Namespace, "pod", p.Pod, "uid", p.UID, "node", p.Node, "counted", p.Counted)
		} else {
			m.log.Info("no two nodes have one pod", "tick", c.Tick)
		}
	}
	m.rates.Forget(m.ticks.Clock.Counted(), c.Resolution)
	if err := m.emit(output{scope: proto.ScopeTotals, subject: bus.TotalsSubject(m.cluster), id: m.id("totals", "", c.Tick)}, emit); err != nil {
		return err
	}
	return lost
}

// emit encodes m.roll and hands it out.
func (m *machine) emit(o output, emit func(output) error) error {
	before := m.roll.Dropped
	data, err := m.enc.Rollup(&m.roll)
	if err != nil {
		return unusable{err}
	}
	m.leftOut(int(m.roll.Dropped - before))
	o.data = data
	return emit(o)
}

// leftOut counts what did not fit into a rollup, and logs when that begins and ends.
func (m *machine) leftOut(n int) {
	r := &m.roll
	of := r.Name
	switch r.Scope {
	case proto.ScopeNode:
		of = "node " + of
	case proto.ScopeNamespace:
		of = "namespace " + of
	}
	if was := m.capped[of]; n == 0 && was {
		delete(m.capped, of)
		m.log.Info("rollups are whole again", "of", of, "tick", r.Tick)
	} else if n > 0 && !was {
		m.capped[of] = true
		m.log.Warn("values are left out of rollups, which would be too large", "of", of, "tick", r.Tick, "values", n)
	}
	if n > 0 {
		m.tel.leftOut.WithLabelValues(m.cluster).Add(float64(n))
	}
}

// id is the identity of a rollup, the same whoever makes it.
func (m *machine) id(scope, name string, tick proto.Tick) string {
	return m.cluster + "/" + scope + "/" + name + "/" + strconv.FormatInt(int64(tick), 10)
}
