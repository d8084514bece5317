package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// edge is a hub and a leaf node with a JetStream domain of its own each, whose
// link carries nothing of hs.>. The edge is the user c1 of the hub, who may what
// this says besides what LinkPermissions says.
func edge(t *testing.T, besides ...string) (hub, leaf *bustest.Configured) {
	t.Helper()
	link := bustest.FreeAddr(t)
	publish, subscribe := bus.LinkPermissions("c1")
	hub = bustest.Configure(t, fmt.Sprintf(`server_name: hub
		jetstream { domain: hub }
		leafnodes { listen: %q, no_advertise: true }
		no_auth_user: all
		authorization { users: [
			{ user: all, password: p }
			{ user: c1, password: c1, allowed_connection_types: [LEAFNODE], permissions: { publish: [%s], subscribe: [%s] } }
		] }`, link, list(append(publish, besides...)), list(append(subscribe, besides...))))
	leaf = bustest.Configure(t, fmt.Sprintf(`server_name: leaf
		jetstream { domain: c1 }
		leafnodes { reconnect: 1, remotes: [ { url: "nats://c1:c1@%s", deny_imports: ["hs.>"], deny_exports: ["hs.>"] } ] }`, link))
	t.Cleanup(hub.Stop) // before the edge: a mirror that looks for it would outlive the server
	linked(t, hub)
	return hub, leaf
}

func linked(t *testing.T, hub *bustest.Configured) {
	t.Helper()
	for until := deadline(t); hub.Leafs() == 0; time.Sleep(time.Millisecond) {
		if until.Err() != nil {
			t.Fatal("the leaf node does not connect")
		}
	}
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
	hub, leaf := edge(t, ">") // more than an edge of another's should be able to do
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

// What an edge registers is known at its hub, with every change, and a cluster that is removed at the hub stays away.
func TestHubKnowsWhatItsEdgesRegister(t *testing.T) {
	t.Parallel()
	hub, leaf := edge(t)
	atHub, atLeaf := connected(t, hub, bus.Config{}), connected(t, leaf, bus.Config{})
	bustest.Provision(t, atLeaf, "prod")
	bustest.Provision(t, atLeaf, "other") // of the same edge, and nothing of the hub's
	must(t, atLeaf.Register(deadline(t), "prod", bus.ClusterInfo{UID: "u", Resolution: time.Minute}))
	must(t, atLeaf.Register(deadline(t), "other", bus.ClusterInfo{UID: "o", Resolution: time.Minute}))

	bustest.Provision(t, atHub, "near") // what the hub's own bucket holds stays
	must(t, atHub.Register(deadline(t), "near", bus.ClusterInfo{UID: "n", Resolution: time.Minute}))
	var all sync.WaitGroup
	for i := range 4 { // as several Jobs do, at once: each keeps the others'
		all.Go(func() {
			cluster := "prod"
			if i > 0 {
				cluster = fmt.Sprint("later", i)
			}
			if _, err := connected(t, hub, bus.Config{}).Apply(deadline(t), bus.Topology{Cluster: cluster, FromDomain: "c1"}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, cluster := range []string{"prod", "later1", "later2", "later3"} {
		must(t, atHub.Check(deadline(t), bus.Topology{Cluster: cluster, FromDomain: "c1"}))
	}
	// Applied with other figures, and for a cluster without a hub, it is not undone.
	_, err := atHub.Apply(deadline(t), bus.Topology{Cluster: "near", RollupsAge: 2 * time.Hour})
	must(t, err)
	must(t, atHub.Check(deadline(t), bus.Topology{Cluster: "prod", FromDomain: "c1"}))

	known := func(want ...bus.ClusterInfo) {
		t.Helper()
		var got []bus.ClusterInfo
		for until := deadline(t); !slices.Equal(got, want); time.Sleep(5 * time.Millisecond) {
			var err error
			if got, err = atHub.Clusters(until); err != nil {
				t.Fatalf("the hub knows %v, want %v: %v", got, want, err)
			}
		}
	}
	near, prod := bus.ClusterInfo{Cluster: "near", UID: "n", Resolution: time.Minute}, bus.ClusterInfo{Cluster: "prod", UID: "u", Resolution: time.Minute}
	known(near, prod)
	prod.Resolution = 15 * time.Second
	must(t, atLeaf.Register(deadline(t), "prod", bus.ClusterInfo{UID: "u", Resolution: 15 * time.Second}))
	known(near, prod)
	must(t, atLeaf.Unregister(deadline(t), "prod"))
	known(near)
	must(t, atLeaf.Register(deadline(t), "prod", bus.ClusterInfo{UID: "v", Resolution: time.Minute}))
	known(near, bus.ClusterInfo{Cluster: "prod", UID: "v", Resolution: time.Minute})

	must(t, atHub.RemoveCluster(deadline(t), "prod"))
	known(near)
	must(t, atLeaf.Register(deadline(t), "prod", bus.ClusterInfo{UID: "v", Resolution: time.Second}))
	must(t, atLeaf.Register(deadline(t), "later1", bus.ClusterInfo{UID: "w", Resolution: time.Second}))
	known(bus.ClusterInfo{Cluster: "later1", UID: "w", Resolution: time.Second}, near) // and prod is not, though it came before
}

// Who has an edge's password reaches nothing at the hub but the mirrors of that edge: not by leaving out what the
// edge's own configuration denies, and not as a client.
func TestLinkIsOfNoOtherUse(t *testing.T) {
	t.Parallel()
	link := bustest.FreeAddr(t)
	publish, subscribe := bus.LinkPermissions("c1")
	hub := bustest.Configure(t, fmt.Sprintf(`server_name: hub
		jetstream { domain: hub }
		leafnodes { listen: %q, no_advertise: true }
		authorization { users: [
			{ user: all, password: p }
			{ user: c1, password: c1, allowed_connection_types: [LEAFNODE], permissions: { publish: [%s], subscribe: [%s] } }
		] }`, link, list(publish), list(subscribe)))
	atHub := as(t, hub, "all")
	bustest.Provision(t, atHub, "prod")
	fill(t, atHub, func(int) string { return bus.TotalsSubject("prod") }, 0, 3, 10)

	// One that denies itself nothing, and says that it is of the hub's own domain.
	taken := bustest.Configure(t, fmt.Sprintf(`server_name: taken
		jetstream { domain: hub }
		leafnodes { reconnect: 1, remotes: [ { url: "nats://c1:c1@%s" } ] }`, link))
	linked(t, hub)
	there := bus.Raw(connected(t, taken, bus.Config{}))
	heard, err := there.SubscribeSync(">") // all that the hub says
	must(t, err)
	must(t, there.Flush())
	for _, subject := range []string{bus.SamplesSubject("prod", "n"), bus.TotalsSubject("prod"), bus.EventsSubject("prod", "ns"), bus.DeadSubject("x"),
		"$KV.hs-clusters.prod", "$KV.hs-leases.aggregator.prod", "$JS.API.STREAM.DELETE.ROLLUPS_prod", "$JS.hub.API.STREAM.DELETE.ROLLUPS_prod", "$JS.hub.API.$KV.hs-clusters.prod", "mirror.c2.M.x"} {
		must(t, there.Publish(subject, []byte("{}")))
	}
	// The one thing that it may comes after all of it on the same link.
	last, err := bus.Raw(atHub).SubscribeSync("mirror.c1.>")
	must(t, err)
	must(t, bus.Raw(atHub).Flush())
	for until := deadline(t); ; {
		must(t, until.Err())
		must(t, there.Publish("mirror.c1.M.x", nil))
		if _, err := last.NextMsg(20 * time.Millisecond); err == nil {
			break
		}
	}
	for stream, want := range map[string]uint64{bus.SamplesStream("prod"): 0, bus.RollupsStream("prod"): 3, bus.EventsStream("prod"): 0, bus.DeadStream: 0} {
		if got := state(t, atHub, stream).LastSeq; got != want {
			t.Errorf("%s has %d messages, want %d", stream, got, want)
		}
	}
	if known, err := atHub.Clusters(deadline(t)); err != nil || len(known) > 0 {
		t.Errorf("the hub knows %v: %v", known, err)
	}
	fill(t, atHub, func(int) string { return bus.TotalsSubject("prod") }, 3, 1, 10)
	must(t, bus.Raw(atHub).Publish("$JS.c1.API.told", nil)) // what it may hear, after what it may not
	for {
		m, err := heard.NextMsg(bustest.Timeout)
		must(t, err)
		if m.Subject == "$JS.c1.API.told" {
			break
		}
		if strings.HasPrefix(m.Subject, "hs.") && string(m.Data) != "{}" { // the latter is its own
			t.Errorf("it hears %s", m.Subject)
		}
	}
	nc, err := nats.Connect("nats://"+hub.Addr(), nats.UserInfo("c1", "c1"))
	if err == nil {
		nc.Close()
		t.Error("the user of a link is let in as a client")
	}
}
