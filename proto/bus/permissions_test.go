package bus_test

import (
	"context"
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

// roles is a server with one user per role and cluster, and one who may all.
func roles(t testing.TB, users ...string) *bustest.Configured {
	var conf strings.Builder
	conf.WriteString("authorization { users = [\n  {user: all, password: p}\n")
	for _, user := range users {
		role, cluster, _ := strings.Cut(user, "/")
		publish, subscribe := bus.Permissions(bus.Role(role), cluster)
		fmt.Fprintf(&conf, "  {user: %q, password: p, permissions: {publish: [%s], subscribe: [%s]}}\n", user, list(publish), list(subscribe))
	}
	conf.WriteString("] }\n")
	return bustest.Configure(t, conf.String())
}

func list(subjects []string) string { return `"` + strings.Join(subjects, `", "`) + `"` }

// as is a connection of the user, with the inbox of its role.
func as(t testing.TB, s *bustest.Configured, user string) *bus.Conn {
	t.Helper()
	cfg := bus.Config{User: user, Password: "p"}
	if role, cluster, ok := strings.Cut(user, "/"); ok {
		cfg.InboxPrefix = bus.InboxPrefix(bus.Role(role), cluster)
	}
	c := s.Conn(t, cfg, bustest.Logger(t))
	must(t, c.WaitUp(deadline(t)))
	return bus.Quick(c)
}

// What each role really does works with what it is permitted, and nothing is
// permitted that it does not use.
func TestRolesArePermittedWhatTheyDo(t *testing.T) {
	t.Parallel()
	for _, cluster := range []string{"prod.eu", ""} {
		name := cluster
		if name == "" {
			name = "all clusters"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rolesDo(t, cluster)
		})
	}
}

func rolesDo(t *testing.T, user string) {
	const cluster = "prod.eu"
	var users []string
	for _, r := range bus.Roles() {
		users = append(users, string(r)+"/"+user)
	}
	s := roles(t, users...)

	// everything that is published, by whom it may be: a role at a time
	var mu sync.Mutex
	var heard []string
	ear := bus.Raw(as(t, s, "all"))
	_, err := ear.Subscribe(">", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, m.Subject)
	})
	must(t, err)
	must(t, ear.Flush())

	ctx := deadline(t)
	do := func(role bus.Role, f func(c *bus.Conn)) {
		t.Helper()
		mu.Lock()
		heard = nil
		mu.Unlock()
		c := as(t, s, string(role)+"/"+user)
		f(c)
		_, err := c.RTT() // whatever was sent has arrived
		must(t, err)
		c.Close()
		must(t, ear.Publish("heard.all", nil)) // comes after what was sent before it
		for all := false; !all; time.Sleep(time.Millisecond) {
			must(t, ctx.Err())
			mu.Lock()
			all = slices.Contains(heard, "heard.all")
			mu.Unlock()
		}
		if subjects := c.Denied(); len(subjects) > 0 {
			t.Errorf("%s was denied %q", role, subjects)
		}
		mu.Lock()
		defer mu.Unlock()
		publish, _ := bus.Permissions(role, user)
		for _, p := range publish {
			if strings.HasPrefix(p, "$JS.ACK.*.*.") {
				continue // what this server does not speak
			}
			if !slices.ContainsFunc(heard, func(s string) bool { return matches(p, s) }) {
				t.Errorf("%s is permitted %q and did not use it", role, p)
			}
		}
	}

	// asked ends when a reader of the stream, which has nothing to read, has asked
	// what it may have missed.
	asked := func(stream string) (context.Context, func()) {
		asking, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer stop()
			for asking.Err() == nil {
				mu.Lock()
				yes := slices.ContainsFunc(heard, func(s string) bool { return strings.HasPrefix(s, "$JS.API.CONSUMER.INFO."+stream+".replay-") })
				mu.Unlock()
				if yes {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		return asking, func() { stop(); wg.Wait() }
	}
	replay := func(c *bus.Conn, stream string, filters ...string) {
		t.Helper()
		reading, stop := asked(stream)
		defer stop()
		n := 0
		for _, err := range c.Replay(reading, bus.ReplayConfig{Stream: stream, Subjects: filters}) {
			must(t, err)
			n++
		}
		if n == 0 && reading.Err() == nil {
			t.Fatalf("replay of %q ended", stream)
		}
	}
	// hold takes a lease that another holds first: it waits, as all do.
	other := as(t, s, "all")
	hold := func(c *bus.Conn, key string) {
		t.Helper()
		first, err := other.Hold(ctx, key, "first")
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			l, err := c.Hold(ctx, key, "second")
			if err == nil {
				err = l.Release(ctx)
			}
			if err != nil {
				t.Error(err)
			}
		})
		waiting, stop := asked("KV_" + bus.LeasesBucket)
		defer stop()
		<-waiting.Done()
		must(t, first.Release(ctx))
		wg.Wait()
	}
	watch := func(c *bus.Conn) {
		t.Helper()
		watching, stop := asked("KV_" + bus.ClustersBucket)
		defer stop()
		known := 0
		for change, err := range c.WatchClusters(watching) {
			must(t, err)
			if change.Cluster == cluster {
				known++
			}
		}
		if known != 1 {
			t.Fatalf("saw the cluster %d times, want once", known)
		}
	}
	publish := func(c *bus.Conn, id string, subjects ...string) {
		t.Helper()
		p := c.Publisher(bus.PublisherConfig{})
		for _, s := range subjects {
			_, err := p.Publish(ctx, bus.Message{Subject: s, ID: id + s, Data: []byte("data")})
			must(t, err)
		}
	}
	last := func(c *bus.Conn, stream, filter string) {
		t.Helper()
		_, all, err := c.LastPerSubject(ctx, stream, filter)
		must(t, err)
		for _, err := range all {
			must(t, err)
		}
	}

	do(bus.RoleAdmin, func(c *bus.Conn) {
		top := bus.Topology{Cluster: cluster}
		_, err := c.Apply(ctx, top)
		must(t, err)
		must(t, c.Check(ctx, top))
		top.RollupsAge = 2 * time.Hour
		_, err = c.Apply(ctx, top)
		must(t, err)
		must(t, c.RemoveCluster(ctx, cluster))
		_, err = c.Apply(ctx, top)
		must(t, err)
		_, err = c.Clusters(ctx)
		must(t, err)
		_, err = c.Leases(ctx, "")
		must(t, err)
		cfg := bus.DurableConfig{Stream: bus.RollupsStream(cluster), Name: bus.SinkDurable("x"), Subjects: bus.RollupFilters(cluster)}
		d, err := c.Durable(ctx, cfg)
		must(t, err)
		d.Close()
		seized, err := c.Seize(ctx, bus.SinkLease("x"), "admin")
		must(t, err)
		must(t, seized.Release(ctx))
		shared, err := c.Hold(ctx, bus.TopologyLease, "admin") // as to make a hub's register follow an edge
		must(t, err)
		must(t, shared.Release(ctx))
		_, err = c.SinkDurables(ctx, cfg.Stream)
		must(t, err)
		must(t, c.PauseDurable(ctx, cfg.Stream, cfg.Name, time.Now()))
		must(t, c.RewindDurable(ctx, cfg.Stream, cfg.Name, 1))
		must(t, c.RemoveDurable(ctx, cfg.Stream, cfg.Name))
		from := []string{bus.SamplesSubject(cluster, "n"), bus.InventorySubject(cluster, bus.InventoryNodes), bus.ClockSubject(cluster),
			bus.TotalsSubject(cluster), bus.EventsSubject(cluster, "ns")}
		for i, subject := range from { // letters from all streams, given again
			must(t, c.Dead(ctx, bus.DeadLetter{Reader: "aggregator.x", Stream: "S", Seq: uint64(i + 1), Subject: subject, Data: []byte("x")}))
		}
		must(t, c.Dead(ctx, bus.DeadLetter{Reader: "sink.x", Stream: "S", Seq: 9, Subject: bus.TotalsSubject(cluster), Data: []byte("x")}))
		for l, err := range c.Letters(ctx, "") {
			must(t, err)
			_, err := c.Redrive(ctx, l)
			must(t, err)
		}
		replay(c, bus.DeadStream, "hs.dead.>")
	})
	do(bus.RoleScraper, func(c *bus.Conn) { publish(c, "s", bus.SamplesSubject(cluster, "node-1.example")) })
	do(bus.RoleInventory, func(c *bus.Conn) {
		must(t, c.Register(ctx, cluster, bus.ClusterInfo{UID: "u", Resolution: time.Minute}))
		hold(c, bus.InventoryLease(cluster))
		hold(c, bus.EventsLease(cluster))
		publish(c, "i", bus.InventorySubject(cluster, bus.InventoryOwners), bus.EventsSubject(cluster, ""))
		st, err := c.StreamState(ctx, bus.EventsStream(cluster))
		must(t, err)
		_, _, err = c.Get(ctx, bus.EventsStream(cluster), st.LastSeq)
		must(t, err)
		_, err = c.Append(ctx, bus.Message{Subject: bus.EventsSubject(cluster, "ns"), Stream: bus.EventsStream(cluster), ID: "u/2", Data: []byte("x")}, st.LastSeq)
		must(t, err)
		replay(c, bus.EventsStream(cluster))
	})
	do(bus.RoleAggregator, func(c *bus.Conn) {
		watch(c)
		hold(c, bus.AggregatorLease(cluster))
		beating, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Heartbeat(beating, bus.MemberLease("me"), "me"); err != nil {
				t.Error(err)
			}
		})
		for l, err := range c.WatchLeases(ctx, bus.MemberLeases) {
			must(t, err)
			if l.Owner == "me" {
				break
			}
		}
		stop()
		wg.Wait()
		own, err := c.TakeLanes(ctx, cluster, "me")
		must(t, err)
		must(t, own.Publish(ctx, 1, bus.Message{Subject: bus.NodeRollupSubject(cluster, "n"), ID: "1", Data: []byte("x")}))
		must(t, own.Publish(ctx, 1, bus.Message{Subject: bus.NamespaceRollupSubject(cluster, "kube-system"), ID: "1ns", Data: []byte("x")}))
		must(t, own.Publish(ctx, 0, bus.Message{Subject: bus.TotalsSubject(cluster), ID: "2"}))
		must(t, own.Flush(ctx))
		own.Close()
		last(c, bus.RollupsStream(cluster), bus.NodeRollupFilter(cluster))
		last(c, bus.SamplesStream(cluster), bus.InventoryFilter(cluster))
		_, _, err = c.NextOn(ctx, bus.SamplesStream(cluster), bus.InventoryFilter(cluster), 1)
		must(t, err)
		_, _, err = c.LastOn(ctx, bus.RollupsStream(cluster), bus.TotalsSubject(cluster))
		must(t, err)
		publish(c, "a", bus.ClockSubject(cluster))
		replay(c, bus.SamplesStream(cluster))
		replay(c, bus.RollupsStream(cluster), bus.RollupFilters(cluster)...)
		must(t, c.Dead(ctx, bus.DeadLetter{Reader: "aggregator." + cluster, Stream: "S", Seq: 9}))
	})
	do(bus.RoleGateway, func(c *bus.Conn) {
		watch(c)
		last(c, bus.RollupsStream(cluster), bus.NodeRollupFilter(cluster))
		replay(c, bus.RollupsStream(cluster), bus.RollupFilters(cluster)...)
		last(c, bus.EventsStream(cluster), bus.EventsFilter(cluster))
		replay(c, bus.EventsStream(cluster))
		for _, stream := range []string{bus.RollupsStream(cluster), bus.EventsStream(cluster)} {
			_, _, err := c.Get(ctx, stream, 1)
			must(t, err)
		}
		must(t, c.Dead(ctx, bus.DeadLetter{Reader: "apigw." + cluster, Stream: "S", Seq: 9}))
	})
	for i := range 4 {
		publish(other, fmt.Sprint("more", i), bus.NodeRollupSubject(cluster, "n"), bus.EventsSubject(cluster, "ns"))
	}
	for seq := range uint64(2) {
		must(t, other.Dead(ctx, bus.DeadLetter{Reader: bus.SinkLease("influx"), Stream: "S", Subject: "s", Seq: seq}))
	}
	for l, err := range other.Letters(ctx, bus.SinkLease("influx")) {
		must(t, err)
		_, err := other.Redrive(ctx, l)
		must(t, err)
	}
	do(bus.RoleSinks, func(c *bus.Conn) {
		watch(c)
		hold(c, bus.SinkLease("influx"))
		read := func(cfg bus.DurableConfig) {
			t.Helper()
			cfg.Reader = bus.SinkLease("influx")
			d, err := c.Durable(ctx, cfg)
			must(t, err)
			defer d.Close()
			m, err := d.Next(ctx)
			must(t, err)
			must(t, m.Hold())
			_, err = d.Lag(ctx) // with a message in hand, whose age is asked for
			must(t, err)
			must(t, m.Ack())
			m, err = d.Next(ctx)
			must(t, err)
			must(t, m.Dead(ctx, "of no use"))
			soon, stop := context.WithTimeout(ctx, 50*time.Millisecond)
			defer stop()
			for err == nil { // to the end
				_, err = d.Next(soon)
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		read(bus.DurableConfig{Stream: bus.RollupsStream(cluster), Name: bus.SinkDurable("influx"), Subjects: bus.RollupFilters(cluster)})
		read(bus.DurableConfig{Stream: bus.EventsStream(cluster), Name: bus.SinkDurable("influx"), FromTime: time.Now().Add(-time.Hour)})
		read(bus.DurableConfig{Stream: bus.RollupsStream(cluster), Name: bus.SinkDurable("one"), Subjects: []string{bus.NodeRollupFilter(cluster)}})
		read(bus.DurableConfig{Stream: bus.EventsStream(cluster), Name: bus.SinkDurable("one"), Subjects: []string{bus.EventsFilter(cluster)}})
		read(bus.DurableConfig{Stream: bus.DeadStream, Name: bus.SinkDurable("influx"), Subjects: []string{bus.AgainSubject(bus.SinkLease("influx"))}})
	})
}

// matches reports whether a subject matches a pattern.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i := range p {
		switch {
		case i >= len(s):
			return false
		case p[i] == ">":
			return true
		case p[i] != "*" && p[i] != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}

// A node's scraper may do its one thing: everything else is refused at once, and
// does not wait for a timeout.
func TestWhatIsNotPermittedIsRefusedQuickly(t *testing.T) {
	t.Parallel()
	s := roles(t, "scraper/prod", "sinks/prod")
	all := as(t, s, "all")
	bustest.Provision(t, all, "prod")
	fill(t, all, func(i int) string { return bus.TotalsSubject("prod") }, 0, 3, 10)
	log := &lines{}
	cfg := bus.Config{User: "scraper/prod", Password: "p", InboxPrefix: bus.InboxPrefix(bus.RoleScraper, "prod")}
	c := s.Conn(t, cfg, log.logger())
	must(t, c.WaitUp(deadline(t)))
	p := c.Publisher(bus.PublisherConfig{})
	_, err := p.Publish(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", "n"), ID: "1"})
	must(t, err)

	replay := func(c *bus.Conn, stream string) error {
		for _, err := range c.Replay(deadline(t), bus.ReplayConfig{Stream: stream}) {
			return err
		}
		return nil
	}
	for what, do := range map[string]func() error{
		"publish to another cluster": func() error {
			_, err := p.Publish(deadline(t), bus.Message{Subject: bus.SamplesSubject("dev", "n"), ID: "1"})
			return err
		},
		"publish rollups": func() error {
			_, err := p.Publish(deadline(t), bus.Message{Subject: bus.TotalsSubject("prod"), ID: "1"})
			return err
		},
		"begin": func() error {
			f, _ := p.Begin(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), ID: "1"})
			_, err := f.Wait(deadline(t))
			return err
		},
		"take lanes":   func() error { _, err := c.TakeLanes(deadline(t), "prod", "me"); return err },
		"replay":       func() error { return replay(c, bus.SamplesStream("prod")) },
		"stream state": func() error { _, err := c.StreamState(deadline(t), bus.RollupsStream("prod")); return err },
		"last": func() error {
			_, _, err := c.LastOn(deadline(t), bus.RollupsStream("prod"), bus.TotalsSubject("prod"))
			return err
		},
		"last of all": func() error { _, _, err := c.LastPerSubject(deadline(t), bus.RollupsStream("prod"), ">"); return err },
		"hold":        func() error { _, err := c.Hold(deadline(t), bus.SinkLease("x"), "me"); return err },
		"beat":        func() error { return c.Heartbeat(deadline(t), bus.MemberLease("x"), "me") },
		"register":    func() error { return c.Register(deadline(t), "prod", bus.ClusterInfo{UID: "u"}) },
		"unregister":  func() error { return c.Unregister(deadline(t), "prod") },
		"watch": func() error {
			for _, err := range c.WatchClusters(deadline(t)) {
				return err
			}
			return nil
		},
		"durable": func() error {
			_, err := c.Durable(deadline(t), bus.DurableConfig{Stream: bus.RollupsStream("prod"), Name: "x"})
			return err
		},
		"dead":          func() error { return c.Dead(deadline(t), bus.DeadLetter{Reader: "x", Stream: "S", Seq: 1}) },
		"apply":         func() error { _, err := c.Apply(deadline(t), bus.Topology{}); return err },
		"remove":        func() error { return c.RemoveCluster(deadline(t), "prod") },
		"remove reader": func() error { return c.RemoveDurable(deadline(t), bus.RollupsStream("prod"), "x") },
	} {
		refusedSoon(t, what, do)
	}
	for i := range 50 { // one line for the like of it
		_, _ = p.Publish(deadline(t), bus.Message{Subject: bus.SamplesSubject("dev", fmt.Sprint("n", i)), ID: "1"})
	}
	if n := log.count("hs.samples.dev"); n != 1 {
		t.Errorf("%d lines about hs.samples.dev, want 1:\n%s", n, log)
	}
	if got := state(t, all, bus.SamplesStream("prod")).Messages; got != 1 {
		t.Errorf("the stream holds %d messages, want 1", got)
	}

	// sinks of all clusters read, and do not write
	sinks := as(t, s, "sinks/prod")
	if _, err := sinks.Publisher(bus.PublisherConfig{}).Publish(deadline(t), bus.Message{Subject: bus.TotalsSubject("prod"), ID: "x"}); !errors.Is(err, bus.ErrNotPermitted) {
		t.Error(err)
	}
	if err := replay(sinks, bus.SamplesStream("prod")); !errors.Is(err, bus.ErrNotPermitted) {
		t.Error(err)
	}
}

// refusedSoon checks that something is refused without having waited for an answer that never comes. What waits, waits
// each time; a machine that is busy does not.
func refusedSoon(t *testing.T, what string, do func() error) {
	t.Helper()
	var took time.Duration
	for range 5 {
		began := time.Now()
		if err := do(); !errors.Is(err, bus.ErrNotPermitted) {
			t.Errorf("%s: %v, want %v", what, err, bus.ErrNotPermitted)
			return
		}
		if took = time.Since(began); took < bus.PublishTimeout {
			return
		}
	}
	t.Errorf("%s was refused after %s", what, took)
}

// A user that may read but not pull, acknowledge or hear replies is told so, and
// does not wait for what never comes.
func TestHalfAPermissionIsRefusedAsWell(t *testing.T) {
	t.Parallel()
	publish, subscribe := bus.Permissions(bus.RoleSinks, "prod")
	without := func(part string) string {
		return list(slices.DeleteFunc(slices.Clone(publish), func(s string) bool { return strings.Contains(s, part) }))
	}
	s := bustest.Configure(t, fmt.Sprintf(`authorization { users = [
		{user: all, password: p}
		{user: nopull, password: p, permissions: {publish: [%s], subscribe: [%s]}}
		{user: noack, password: p, permissions: {publish: [%s], subscribe: [%s]}}
		{user: noinbox, password: p, permissions: {publish: [%s], subscribe: ["elsewhere"]}}
	] }`, without("MSG.NEXT"), list(subscribe), without("$JS.ACK"), list(subscribe), list(publish)))
	all := as(t, s, "all")
	bustest.Provision(t, all, "prod")
	fill(t, all, func(i int) string { return bus.TotalsSubject("prod") }, 0, 3, 10)
	conn := func(user string) *bus.Conn {
		c := s.Conn(t, bus.Config{User: user, Password: "p", InboxPrefix: bus.InboxPrefix(bus.RoleSinks, "prod")}, bustest.Logger(t))
		must(t, c.WaitUp(deadline(t)))
		return c
	}
	soon := func(what string, do func() error) { t.Helper(); refusedSoon(t, what, do) }
	nopull, noack, noinbox := conn("nopull"), conn("noack"), conn("noinbox")
	soon("replay", func() error {
		for _, err := range nopull.Replay(deadline(t), bus.ReplayConfig{Stream: bus.RollupsStream("prod")}) {
			return err
		}
		return nil
	})
	cfg := bus.DurableConfig{Stream: bus.RollupsStream("prod"), Name: bus.SinkDurable("x")}
	soon("durable without pull", func() error {
		_, err := open(t, nopull, cfg).Next(deadline(t))
		return err
	})
	soon("durable without ack", func() error {
		d := open(t, noack, cfg)
		for {
			m, err := d.Next(deadline(t))
			if err != nil {
				return err
			}
			must(t, m.Ack())
		}
	})
	soon("request without inbox", func() error { _, err := noinbox.StreamState(deadline(t), bus.RollupsStream("prod")); return err })
	soon("publish without inbox", func() error { return noinbox.Dead(deadline(t), bus.DeadLetter{Reader: "sink.x", Stream: "S", Seq: 1}) })
}
