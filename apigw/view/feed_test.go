package view

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }

// eventually waits for a fact.
func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// running starts a view on the bus and returns it; it ends with the test.
func running(t *testing.T, conn *bus.Conn, cfg Config) *View {
	t.Helper()
	cfg.Window = DefaultWindow
	v, err := New(cfg, Deps{Bus: conn, Log: bustest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	return v
}

// publish brings a rollup to the stream.
func publish(t *testing.T, conn *bus.Conn, r *proto.Rollup) {
	t.Helper()
	data, err := proto.NewEncoder().Rollup(r)
	if err != nil {
		t.Fatal(err)
	}
	subject := bus.NodeRollupSubject(r.Cluster, r.Name)
	switch r.Scope {
	case proto.ScopeNamespace:
		subject = bus.NamespaceRollupSubject(r.Cluster, r.Name)
	case proto.ScopeTotals:
		subject = bus.TotalsSubject(r.Cluster)
	}
	put(t, conn, subject, data)
}

func put(t *testing.T, conn *bus.Conn, subject string, data []byte) {
	t.Helper()
	if _, err := conn.Publisher(bus.PublisherConfig{}).Publish(t.Context(), bus.Message{Subject: subject, Data: data}); err != nil {
		t.Fatal(err)
	}
}

// liveNode is a rollup of a node with one pod at a tick.
func liveNode(name string, tick proto.Tick) *proto.Rollup {
	s := &stage{now: tick.Time()}
	return full(s, name, "ns", "pod-of-"+name, s.now)
}

func TestViewFillsFromLastRollupsThenThePastThenLive(t *testing.T) {
	server := bustest.Start(t)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	newest := proto.TickAt(time.Now(), resolution)
	const ticks = 12
	for i := range ticks {
		for n := range 3 {
			publish(t, conn, liveNode(fmt.Sprint("n", n), newest.Add(i-ticks+1, resolution)))
		}
		publish(t, conn, &proto.Rollup{Scope: proto.ScopeTotals, Cluster: "c", Tick: newest.Add(i-ticks+1, resolution), Resolution: resolution})
	}
	put(t, conn, bus.NodeRollupSubject("c", "broken"), []byte("no rollup"))

	v := running(t, conn, Config{Own: "c"})
	c, _ := v.Cluster("c")
	eventually(t, "the view is ready", func() bool { return v.Ready() == nil })
	if _, ok := c.Pod("ns", "pod-of-n1"); !ok {
		t.Error("a ready view does not serve the pod of a node that has reported")
	}
	eventually(t, "the window is filled", c.Filled)
	e := window.Entity{Kind: proto.KindPod, Namespace: "ns", Pod: "pod-of-n2"}
	e.Kind, e.Name = proto.KindContainer, "a"
	if got := c.Series(nil, e, "memory/working_set", time.Time{}, endless); len(got) != ticks {
		t.Errorf("%d points are there, want %d", len(got), ticks)
	}
	publish(t, conn, liveNode("n2", newest.Add(1, resolution)))
	eventually(t, "a new rollup is served", func() bool {
		return len(c.Series(nil, e, "memory/working_set", time.Time{}, endless)) == ticks+1
	})
	eventually(t, "what cannot be decoded is in DEAD", func() bool {
		for l, err := range conn.Letters(t.Context(), "apigw.c") {
			if err == nil && string(l.Data) == "no rollup" {
				return true
			}
		}
		return false
	})
}

var endless = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

func TestEmptyClusterIsReady(t *testing.T) {
	server := bustest.Start(t)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	v := running(t, conn, Config{Own: "c"})
	c, _ := v.Cluster("c")
	eventually(t, "the view of an empty cluster is ready", func() bool { return v.Ready() == nil && c.Filled() })
	for range c.Nodes() {
		t.Error("an empty cluster has a node")
	}
}

func TestViewWaitsForAStreamAndOutlivesTheBus(t *testing.T) {
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	tick := proto.TickAt(time.Now(), resolution)
	publish(t, conn, liveNode("n1", tick))
	v := running(t, conn, Config{Clusters: []string{"c"}})
	c, _ := v.Cluster("c")
	eventually(t, "the node is served", func() bool { _, ok := c.Node("n1"); return ok })
	server.Stop()
	if _, ok := c.Node("n1"); !ok {
		t.Error("the view forgets what it has when the bus goes")
	}
	server.Restart()
	eventually(t, "the bus is back", conn.Healthy)
	publish(t, conn, liveNode("n1", tick.Add(1, resolution)))
	eventually(t, "the view goes on", func() bool { return c.Newest() == tick.Add(1, resolution) })
}

func TestRegisteredClustersComeAndGo(t *testing.T) {
	server := bustest.Start(t)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	bustest.Provision(t, conn, "d")
	v := running(t, conn, Config{Own: "c"})
	if err := conn.Register(t.Context(), "d", bus.ClusterInfo{UID: "u", Resolution: resolution}); err != nil {
		t.Fatal(err)
	}
	publish(t, conn, func() *proto.Rollup {
		r := liveNode("n1", proto.TickAt(time.Now(), resolution))
		r.Cluster = "d"
		return r
	}())
	eventually(t, "the registered cluster is served", func() bool {
		d, ok := v.Cluster("d")
		if !ok {
			return false
		}
		_, ok = d.Node("n1")
		return ok
	})
	if err := conn.Unregister(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed cluster is gone", func() bool { _, ok := v.Cluster("d"); return !ok })
}

// What comes between the look at the stream and the last rollups is newer than where the past was thought to end: a view
// that begins at such a moment has all of the past nevertheless.
func TestViewHasAllOfThePastWhereverItBegins(t *testing.T) {
	server := bustest.Start(t)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	const past, meanwhile = 5, 45
	first := proto.TickAt(time.Now(), resolution).Add(-past-meanwhile, resolution)
	tick := func(i int) { publish(t, conn, liveNode("n1", first.Add(i, resolution))) }
	for i := range past {
		tick(i)
	}
	var views []*View
	for i := range meanwhile {
		if i%3 == 0 {
			views = append(views, running(t, server.Conn(t), Config{Own: "c"}))
		}
		tick(past + i)
	}
	e := window.Entity{Kind: proto.KindContainer, Namespace: "ns", Pod: "pod-of-n1", Name: "a"}
	for i, v := range views {
		c, _ := v.Cluster("c")
		eventually(t, "the window is filled", c.Filled)
		got := 0
		eventually(t, fmt.Sprintf("view %d has the newest tick", i), func() bool {
			s := c.Series(nil, e, "memory/working_set", time.Time{}, endless)
			got = len(s)
			return got > 0 && c.Newest() == first.Add(past+meanwhile-1, resolution)
		})
		if got != past+meanwhile {
			t.Errorf("view %d has %d points, want %d", i, got, past+meanwhile)
		}
	}
}
