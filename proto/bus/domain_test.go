package bus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// edge is a hub and a leaf node with a JetStream domain of its own each, whose
// link carries nothing of hs.>.
func edge(t *testing.T) (hub, leaf *bustest.Configured) {
	t.Helper()
	link := bustest.FreeAddr(t)
	hub = bustest.Configure(t, fmt.Sprintf("server_name: hub\njetstream { domain: hub }\nleafnodes { listen: %q, no_advertise: true }\n", link))
	leaf = bustest.Configure(t, fmt.Sprintf(`server_name: leaf
		jetstream { domain: c1 }
		leafnodes { reconnect: 1, remotes: [ { url: "nats://%s", deny_imports: ["hs.>"], deny_exports: ["hs.>"] } ] }`, link))
	for until := deadline(t); hub.Leafs() == 0; time.Sleep(time.Millisecond) {
		if until.Err() != nil {
			t.Fatal("the leaf node does not connect")
		}
	}
	return hub, leaf
}

func connected(t *testing.T, s *bustest.Configured, cfg bus.Config) *bus.Conn {
	t.Helper()
	c := s.Conn(t, cfg, bustest.Logger(t))
	must(t, c.WaitUp(deadline(t)))
	return bus.Quick(c)
}

func TestHubMirrorsWithTheSameSequences(t *testing.T) {
	t.Parallel()
	hub, leaf := edge(t)
	atHub, atLeaf := connected(t, hub, bus.Config{}), connected(t, leaf, bus.Config{})
	bustest.Provision(t, atLeaf, "prod")
	totals := func(int) string { return bus.TotalsSubject("prod") }
	fill(t, atLeaf, totals, 0, 100, 50) // before there is a mirror

	top := bus.Topology{Cluster: "prod", FromDomain: "c1"}
	changes, err := atHub.Apply(deadline(t), top)
	must(t, err)
	if len(changes) != 5 { // DEAD, two buckets, two mirrors; SAMPLES stay at the edge
		t.Fatalf("changes %v, want 5 creations", changes)
	}
	must(t, atHub.Check(deadline(t), top))
	if changes, err = atHub.Apply(deadline(t), top); err != nil || len(changes) > 0 {
		t.Fatalf("applied twice: %v %v", changes, err)
	}
	if err := atHub.Check(deadline(t), bus.Topology{Cluster: "prod"}); !errors.Is(err, bus.ErrTopology) {
		t.Fatalf("a mirror was taken for the stream: %v", err)
	}
	if _, err := atHub.StreamState(deadline(t), bus.SamplesStream("prod")); !errors.Is(err, bus.ErrStreamMissing) {
		t.Fatal(err)
	}

	own, err := atLeaf.TakeLanes(deadline(t), "prod", "me")
	must(t, err)
	defer own.Close()
	for i := range 200 { // and after
		must(t, own.Publish(deadline(t), i%bus.Lanes, bus.Message{Subject: bus.NodeRollupSubject("prod", fmt.Sprint("n", i%7)), ID: fmt.Sprint("r", i), Data: []byte("x")}))
	}
	must(t, own.Flush(deadline(t)))
	_, err = atLeaf.Publisher(bus.PublisherConfig{}).Publish(deadline(t), bus.Message{Subject: bus.EventsSubject("prod", "ns"), ID: "e"})
	must(t, err)
	must(t, same(t, atLeaf, atHub, bus.RollupsStream("prod"), 100+bus.Lanes+200))
	must(t, same(t, atLeaf, atHub, bus.EventsStream("prod"), 1))

	// what is published at the hub does not reach the edge, and nobody takes it here
	before := state(t, atLeaf, bus.RollupsStream("prod")).LastSeq
	must(t, bus.Raw(atHub).Publish(bus.TotalsSubject("prod"), []byte("from the hub")))
	must(t, bus.Raw(atHub).Flush())
	fill(t, atLeaf, totals, 100, 1, 50)
	if after := state(t, atLeaf, bus.RollupsStream("prod")).LastSeq; after != before+1 {
		t.Fatalf("the edge stored %d messages, want 1", after-before)
	}
	must(t, same(t, atLeaf, atHub, bus.RollupsStream("prod"), int(before)+1))
}

// same compares the first n messages of a stream at both ends.
func same(t *testing.T, leaf, hub *bus.Conn, stream string, n int) error {
	t.Helper()
	type message struct {
		seq         uint64
		subject, id string
		data        string
	}
	read := func(c *bus.Conn) (all []message, err error) {
		for d, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: stream}) {
			if err != nil {
				return all, err
			}
			all = append(all, message{d.Seq, d.Subject, d.ID(), string(d.Data)})
			if len(all) == n {
				return all, nil
			}
		}
		return all, fmt.Errorf("stream %q ended after %d of %d", stream, len(all), n)
	}
	want, err := read(leaf)
	if err != nil {
		return err
	}
	got, err := read(hub)
	if err != nil {
		return err
	}
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("stream %q: at the hub %+v, at the edge %+v", stream, got[i], want[i])
		}
	}
	return nil
}

// A process at the hub reads, and administers, the edge's streams through its domain.
func TestDomainIsSpokenToFromTheHub(t *testing.T) {
	t.Parallel()
	hub, leaf := edge(t)
	atLeaf, far := connected(t, leaf, bus.Config{}), connected(t, hub, bus.Config{Domain: "c1"})
	top := bus.Topology{Cluster: "prod"}
	if changes, err := far.Apply(deadline(t), top); err != nil || len(changes) != 6 {
		t.Fatal(changes, err)
	}
	must(t, atLeaf.Check(deadline(t), top))
	fill(t, atLeaf, func(i int) string { return bus.NodeRollupSubject("prod", fmt.Sprint("n", i%3)) }, 0, 9, 10)
	must(t, same(t, atLeaf, far, bus.RollupsStream("prod"), 9))

	upto, last, err := far.LastPerSubject(deadline(t), bus.RollupsStream("prod"), bus.NodeRollupFilter("prod"))
	must(t, err)
	n := 0
	for d, err := range last {
		must(t, err)
		if n++; d.Seq != uint64(6+n) {
			t.Fatalf("last message %d is %d, want %d", n, d.Seq, 6+n)
		}
	}
	if n != 3 || upto != 9 {
		t.Fatalf("%d last messages up to %d, want 3 up to 9", n, upto)
	}

	d := open(t, far, bus.DurableConfig{Stream: bus.RollupsStream("prod"), Name: bus.SinkDurable("x")})
	for want := uint64(1); want <= 9; want++ {
		m := next(t, d)
		if m.Seq != want {
			t.Fatalf("got %d, want %d", m.Seq, want)
		}
		must(t, m.Ack())
	}
	for until := deadline(t); ; time.Sleep(time.Millisecond) { // acknowledgements cross the link
		lag, err := d.Lag(until)
		must(t, err)
		if lag.Position == 9 {
			break
		}
	}

	// buckets are written through the domain as well
	must(t, far.Register(deadline(t), "prod", bus.ClusterInfo{UID: "u", Resolution: time.Minute}))
	known, err := atLeaf.Clusters(deadline(t))
	if err != nil || len(known) != 1 || known[0].UID != "u" {
		t.Fatal(known, err)
	}
	l, err := far.Hold(deadline(t), bus.SinkLease("x"), "far")
	must(t, err)
	if _, err := atLeaf.TryHold(deadline(t), bus.SinkLease("x"), "near"); !errors.Is(err, bus.ErrHeld) {
		t.Fatal(err)
	}
	must(t, l.Release(deadline(t)))
	must(t, far.RemoveCluster(deadline(t), "prod"))
	if _, err := atLeaf.StreamState(deadline(t), bus.RollupsStream("prod")); !errors.Is(err, bus.ErrStreamMissing) {
		t.Fatal(err)
	}
}
