package aggregator

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
)

// patience is how long a test waits for a fact.
const patience = 2 * time.Minute

// feed publishes to SAMPLES what nodes would: an inventory and batches of ticks that lie in the past, as
// a backlog does, so that ticks close without the test having to wait for them. So that they do not all
// close at once by time, the grace is two minutes and the first tick is closed already: by an owner of
// earlier times, which is the feed itself.
type feed struct {
	t      testing.TB
	conn   *bus.Conn
	pub    *bus.Publisher
	enc    *proto.Encoder
	r      *rand.Rand
	nodes  int
	tick   proto.Tick
	ids    int
	cpu    int64
	held   []*proto.Batch // to be published with the next round
	before []output
}

const feedResolution = time.Minute

func newFeed(t testing.TB, conn *bus.Conn, nodes int) *feed {
	f := &feed{t: t, conn: conn, pub: conn.Publisher(bus.PublisherConfig{}), enc: proto.NewEncoder(), r: rand.New(rand.NewPCG(1, 2)), nodes: nodes,
		tick: proto.TickAt(time.Now().Add(-58*time.Minute), feedResolution)}
	f.inventory(2 * time.Minute)
	f.round(0)
	m := newMachine(testCluster, testTelemetry(t), slog.New(slog.DiscardHandler))
	var last bus.Delivery
	for last = range f.read(bus.SamplesStream(testCluster)) {
		if err := m.step(last, func(o output) error { f.before = append(f.before, o); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	stream := last.Time.UnixMilli()
	r := &proto.Rollup{Scope: proto.ScopeTotals, Cluster: testCluster, Tick: f.tick, Resolution: feedResolution, Seq: last.Seq,
		Totals: proto.Totals{ResumeSeq: 1, StreamTime: stream, JumpEnd: stream}}
	data, err := f.enc.Rollup(r)
	if err != nil {
		t.Fatal(err)
	}
	f.before = append(f.before, output{scope: r.Scope, subject: bus.TotalsSubject(testCluster), id: m.id("totals", "", r.Tick), data: data})
	for _, o := range f.before {
		if _, err := f.pub.Publish(t.Context(), bus.Message{Subject: o.subject, ID: o.id, Data: o.data}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *feed) inventory(grace time.Duration) {
	inv := &proto.Inventory{Cluster: testCluster, Subject: proto.InventoryNodes, Revision: uint64(f.ids + 1), Parts: 1, Resolution: feedResolution, Grace: grace}
	for n := range f.nodes {
		inv.Nodes = append(inv.Nodes, proto.InventoryNode{Name: fmt.Sprint("n", n)})
	}
	data, err := f.enc.Inventory(inv)
	f.publish(bus.InventorySubject(testCluster, bus.InventoryNodes), data, err)
}

// read yields what a stream holds now.
func (f *feed) read(stream string, subjects ...string) iter.Seq[bus.Delivery] {
	return func(yield func(bus.Delivery) bool) {
		state, err := f.conn.StreamState(f.t.Context(), stream)
		if err != nil {
			f.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(f.t.Context(), patience)
		defer cancel()
		for d, err := range f.conn.Replay(ctx, bus.ReplayConfig{Stream: stream, Subjects: subjects}) {
			if err != nil {
				f.t.Fatal(err)
			}
			if d.Seq > state.LastSeq || !yield(d) || d.Pending == 0 {
				return
			}
		}
		if ctx.Err() != nil {
			f.t.Fatalf("stream %s cannot be read", stream)
		}
	}
}

func (f *feed) publish(subject string, data []byte, err error) {
	f.t.Helper()
	if err == nil {
		f.ids++
		_, err = f.pub.Publish(f.t.Context(), bus.Message{Subject: subject, ID: fmt.Sprint(f.ids), Data: data})
	}
	if err != nil {
		f.t.Error(err)
	}
}

// rounds publishes the next ticks' batches, one of them now and then with the next round or twice.
func (f *feed) rounds(n int) {
	f.t.Helper()
	for range n {
		f.tick = f.tick.Add(1, feedResolution)
		f.round(5)
	}
}

func (f *feed) round(oneIn int) {
	f.t.Helper()
	f.cpu += 1e9
	batches := f.held
	f.held = nil
	for n := range f.nodes {
		b := &proto.Batch{Cluster: testCluster, Node: fmt.Sprint("n", n), Tick: f.tick, Resolution: feedResolution, Source: "test"}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: b.Node})
		pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprint("ns", n%2), Name: fmt.Sprint("p", n), UID: "u"})
		c := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "app"})
		b.Values.Set(c, proto.GroupCPU.Time(), int64(f.tick)*1e6)
		b.Values.Set(c, proto.CPUUsage.Field(), f.cpu)
		switch {
		case oneIn == 0 || f.r.IntN(oneIn) > 0:
			batches = append(batches, b)
		case n%2 == 0:
			f.held = append(f.held, b)
		default:
			batches = append(batches, b, b)
		}
	}
	for _, b := range batches {
		data, err := f.enc.Batch(b)
		f.publish(bus.SamplesSubject(testCluster, b.Node), data, err)
	}
}

// owner is one owner of the cluster, running.
type owner struct {
	stop  context.CancelFunc
	lanes *bus.Ownership
	done  chan error

	frozen atomic.Bool   // publishes wait
	thaw   chan struct{} // until this closes
	held   chan struct{} // closed when the first one waits
	once   sync.Once
}

// own takes the cluster on its own connection, whoever has it.
func own(t testing.TB, conn *bus.Conn, name string) *owner {
	t.Helper()
	lanes, err := conn.TakeLanes(t.Context(), testCluster, name)
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{lanes: lanes, done: make(chan error, 1), thaw: make(chan struct{}), held: make(chan struct{})}
	tel := testTelemetry(t)
	c := &cluster{name: testCluster, bus: conn, lanes: lanes, log: bustest.Logger(t), tel: tel, machine: newMachine(testCluster, tel, slog.New(slog.DiscardHandler)),
		letters: make(chan bus.DeadLetter, lettersQueue), now: func() time.Time {
			if o.frozen.Load() {
				o.once.Do(func() { close(o.held) })
				<-o.thaw
			}
			return time.Now()
		}}
	ctx, cancel := context.WithCancel(context.Background())
	o.stop = cancel
	go func() { o.done <- c.run(ctx) }()
	t.Cleanup(func() { o.kill() })
	return o
}

// kill ends the owner where it stands; what is in its lanes may be stored or not.
func (o *owner) kill() {
	o.stop()
	o.lanes.Close()
	select {
	case err := <-o.done:
		o.done <- err
	case <-time.After(patience):
		panic("owner does not end")
	}
}

// equal waits until the tick before the last is closed, calls stop, and fails unless ROLLUPS holds what
// follows from SAMPLES, every rollup once: all up to that tick, and of what came after it nothing else.
func (f *feed) equal(t *testing.T, stop func()) {
	t.Helper()
	head := &proto.Rollup{}
	header := func(data []byte) {
		if err := proto.NewDecoder().RollupHeader(data, head); err != nil {
			t.Fatal(err)
		}
	}
	tick := f.tick.Add(-1, feedResolution)
	eventually(t, fmt.Sprintf("totals of tick %s", tick), func() bool {
		d, ok, err := f.conn.LastOn(t.Context(), bus.RollupsStream(testCluster), bus.TotalsSubject(testCluster))
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		header(d.Data)
		return head.Tick >= tick
	})
	stop()
	var list []bus.Delivery
	for d := range f.read(bus.SamplesStream(testCluster)) {
		list = append(list, d)
	}
	got := map[string]output{}
	for d := range f.read(bus.RollupsStream(testCluster), bus.RollupFilters(testCluster)...) {
		if _, twice := got[d.ID()]; twice {
			t.Errorf("%s is out twice", d.ID())
		}
		got[d.ID()] = output{id: d.ID(), data: d.Data}
	}
	var want, have []output
	due := true
	for _, o := range play(t, list, nil, nil, f.before...) {
		g, ok := got[o.id]
		delete(got, o.id)
		if ok {
			have = append(have, g)
		} else if due {
			t.Errorf("%s is not out", o.id)
		}
		if ok || due {
			want = append(want, o)
		}
		header(o.data)
		due = due && (head.Scope != proto.ScopeTotals || head.Tick < tick)
	}
	for id := range got {
		t.Errorf("%s is out and does not follow from SAMPLES", id)
	}
	sameOutputs(t, "on the bus", want, have)
}

// busPurity feeds ticks while owners are killed, replaced and frozen.
//
// A replicated stream looks at ids before epochs: there an owner that was replaced is acknowledged, as
// duplicates, what its successor has written already, and refused only at the first thing that is not out,
// or when it renews its epochs. So whether it ends at once is asked on one server alone.
func busPurity(t *testing.T, conn func() *bus.Conn, rounds, servers int) {
	f := newFeed(t, conn(), 5)
	o := own(t, conn(), "first")
	refused := func(o *owner, what string) {
		t.Helper()
		if servers > 1 {
			t.Cleanup(o.kill) // it competes on
			return
		}
		deadline := time.After(patience)
		more := time.NewTicker(time.Second)
		defer more.Stop()
		for {
			select {
			case err := <-o.done:
				if !errors.Is(err, bus.ErrFenced) {
					t.Fatalf("owner that %s ended with %v, want it fenced", what, err)
				}
				o.done <- err
				return
			case <-more.C: // what it had to write may have been out already
				f.rounds(1)
			case <-deadline:
				t.Fatalf("owner that %s was not refused", what)
			}
		}
	}
	for i := range rounds {
		f.rounds(1)
		switch i % 6 {
		case 1: // killed, a standby follows
			o.kill()
			o = own(t, conn(), fmt.Sprint("after-", i))
		case 3: // replaced while it lives
			next := own(t, conn(), fmt.Sprint("beside-", i))
			f.rounds(1)
			refused(o, "was replaced")
			o = next
		case 5: // frozen with a rollup in its hands; wakes up when another has gone on
			o.frozen.Store(true)
			f.rounds(1)
			select {
			case <-o.held:
			case <-time.After(patience):
				t.Fatal("owner has nothing to publish")
			}
			next := own(t, conn(), fmt.Sprint("instead-", i))
			f.rounds(1)
			o.frozen.Store(false)
			close(o.thaw)
			refused(o, "woke up")
			o = next
		}
	}
	f.equal(t, o.kill)
}

func TestOwnersThatDieOrFreezeWriteTheSameOnce(t *testing.T) {
	s := bustest.Start(t)
	bustest.Provision(t, s.Conn(t), testCluster)
	busPurity(t, func() *bus.Conn { return s.Conn(t) }, 24, 1)
}

func TestOwnersThatDieOrFreezeWriteTheSameOnceOnThreeServers(t *testing.T) {
	s := bustest.Cluster(t, 3)
	bustest.Provision(t, s.Conn(t), testCluster, bustest.Replicas(3))
	busPurity(t, func() *bus.Conn { return s.Conn(t) }, 18, 3)
}

// start runs an Aggregator until the returned function stops it in order.
func start(t *testing.T, conn *bus.Conn, id string) (health *daemon.Health, stop func()) {
	t.Helper()
	health = daemon.NewHealth()
	a, err := New(Config{ID: id}, Deps{Bus: conn, Log: bustest.Logger(t), Registry: prometheus.NewRegistry(), Health: health})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("aggregator %s: %v", id, err)
			}
		case <-time.After(patience):
			t.Errorf("aggregator %s does not stop", id)
		}
	})
	t.Cleanup(stop)
	return health, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// Two aggregators: one owns the cluster, the other stands by and goes on where it stopped. What nobody
// can read lies in DEAD.
func TestStandbyGoesOnWhereTheOwnerStopped(t *testing.T) {
	s := bustest.Start(t)
	conn := s.Conn(t)
	bustest.Provision(t, conn, testCluster)
	if err := conn.Register(t.Context(), testCluster, bus.ClusterInfo{UID: "uid", Resolution: feedResolution}); err != nil {
		t.Fatal(err)
	}
	f := newFeed(t, conn, 5)
	stops := map[string]func(){}
	for _, id := range []string{"one", "two"} {
		health, stop := start(t, s.Conn(t), id)
		stops[id] = stop
		f.rounds(1)
		polls := 0
		eventually(t, id+" is ready", func() bool { // an owner is when it has closed a tick, which takes a new one
			if polls++; polls%20 == 0 && polls <= 400 {
				f.rounds(1)
			}
			return health.Check() == nil
		})
	}
	holder := func() string {
		leases, err := conn.Leases(t.Context(), "aggregator.")
		if err != nil {
			t.Fatal(err)
		}
		if len(leases) == 0 {
			return ""
		}
		return leases[0].Owner
	}
	var first string
	eventually(t, "somebody owns the cluster", func() bool { first = holder(); return first != "" })
	f.publish(bus.SamplesSubject(testCluster, "n1"), []byte("garbage"), nil)
	f.rounds(1)
	eventually(t, "the letter is in DEAD", func() bool {
		for l, err := range conn.Letters(t.Context(), "aggregator."+testCluster) {
			if err != nil {
				t.Fatal(err)
			}
			return l.Subject == bus.SamplesSubject(testCluster, "n1")
		}
		return false
	})
	stops[first]()
	if h := holder(); h == first { // else it would have to run out
		t.Error("who was stopped has not given the cluster back")
	}
	eventually(t, "the other owns the cluster", func() bool { h := holder(); return h != "" && h != first })
	f.rounds(5)
	f.equal(t, func() {
		for _, stop := range stops {
			stop()
		}
	})
}

// What nobody can read, last on the subjects of a node, a namespace and the totals, keeps nobody from taking the cluster.
func TestUnreadableRollupsStopNobody(t *testing.T) {
	s := bustest.Start(t)
	conn := s.Conn(t)
	bustest.Provision(t, conn, testCluster)
	f := newFeed(t, conn, 2)
	f.inventory(200 * time.Millisecond) // nobody knows any more that a tick was closed
	f.rounds(3)
	subjects := []string{bus.NodeRollupSubject(testCluster, "n1"), bus.NamespaceRollupSubject(testCluster, "ns0"), bus.TotalsSubject(testCluster)}
	for _, subject := range subjects {
		f.publish(subject, []byte("of a later version"), nil)
	}
	own(t, s.Conn(t), "owner")
	f.rounds(1)
	eventually(t, "a tick is closed", func() bool {
		d, _, err := conn.LastOn(t.Context(), bus.RollupsStream(testCluster), bus.TotalsSubject(testCluster))
		if err != nil {
			t.Fatal(err)
		}
		r := &proto.Rollup{}
		return proto.NewDecoder().RollupHeader(d.Data, r) == nil && r.Tick >= f.tick.Add(-1, feedResolution)
	})
	eventually(t, "all are in DEAD", func() bool {
		found := map[string]bool{}
		for l, err := range conn.Letters(t.Context(), "aggregator."+testCluster) {
			if err != nil {
				t.Fatal(err)
			}
			found[l.Subject] = true
		}
		return !slices.ContainsFunc(subjects, func(s string) bool { return !found[s] })
	})
}

// A tick that waits for a silent node closes by the owner's clock marks, in real time.
func TestMarksCloseTheTickOfASilentNode(t *testing.T) {
	s := bustest.Start(t)
	conn := s.Conn(t)
	bustest.Provision(t, conn, testCluster)
	f := newFeed(t, conn, 2)
	f.inventory(200 * time.Millisecond)
	f.nodes = 1 // the other is silent from now on
	f.tick = f.tick.Add(1, feedResolution)
	f.round(0)
	o := own(t, s.Conn(t), "owner")
	eventually(t, "the tick is closed", func() bool {
		d, _, err := conn.LastOn(t.Context(), bus.RollupsStream(testCluster), bus.TotalsSubject(testCluster))
		r := &proto.Rollup{}
		if err != nil || proto.NewDecoder().RollupHeader(d.Data, r) != nil {
			t.Fatal(err)
		}
		return r.Tick == f.tick && r.Totals.Reported == 1 && len(r.Totals.Missing) == 1
	})
	f.equal(t, o.kill)
}
