package scraper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

const eventsPath = "/api/v1/events"

// happen makes events of these names.
func (r *rig) happen(names ...string) {
	for _, name := range names {
		r.api.Put(eventsPath, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: types.UID(name)}, Count: 1, LastTimestamp: metav1.Now()})
	}
}

// onEvents are the UIDs on EVENTS of c1, in order.
func (r *rig) onEvents(t testing.TB) (all []string) {
	t.Helper()
	state, err := r.conn.StreamState(t.Context(), bus.EventsStream("c1"))
	if err != nil {
		t.Fatal(err)
	}
	dec := proto.NewDecoder()
	for seq := uint64(1); seq <= state.LastSeq; seq++ {
		d, ok, err := r.conn.Get(t.Context(), bus.EventsStream("c1"), seq)
		var e proto.Event
		if err == nil && ok {
			err = dec.Event(d.Data, &e)
		}
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		all = append(all, e.UID)
	}
	return all
}

// running is a scraper on a bus connection of its own, as a process of its own would be.
type running struct {
	*Scraper
	registry *prometheus.Registry
	logs     *records
	stop     func() error
}

func (r *rig) run(t testing.TB, change func(*Config)) *running {
	t.Helper()
	cfg := r.cfg
	change(&cfg)
	one := &running{registry: prometheus.NewRegistry(), logs: &records{}}
	s, err := New(cfg, Deps{Bus: r.bus.Conn(t), Log: slog.New(one.logs), Registry: one.registry})
	if err != nil {
		t.Fatal(err)
	}
	one.Scraper = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	one.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := one.stop(); err != nil {
			t.Error(err)
		}
	})
	return one
}

// leads reports whether the scraper says that it publishes events.
func (o *running) leads(t testing.TB) bool {
	t.Helper()
	families, err := o.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "heapstream_scraper_events_leading" {
			return f.GetMetric()[0].GetGauge().GetValue() == 1
		}
	}
	t.Fatal("it says nothing about events")
	return false
}

func TestWhichRolesPublishEvents(t *testing.T) {
	t.Parallel()
	check := func(role Role, wished, publishes bool) {
		t.Run(fmt.Sprintf("%s/events=%t", role, wished), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.api.Put("/api/v1/nodes", nodeObject("n1", 1))
			r.happen("a", "b")
			s := r.run(t, func(c *Config) {
				if c.Role, c.Events = role, wished; role == RoleNode {
					c.NodeName = "n1"
				}
			})
			if publishes {
				until(t, "both events are out", func() bool { return len(r.onEvents(t)) == 2 })
				return
			}
			if s.events != nil {
				t.Error("it would publish events")
			}
			switch role { // what comes when all is under way
			case RoleNode:
				until(t, "the node is read", func() bool {
					return r.api.Asked("/api/v1/nodes/n1") > 0 || len(s.logs.with("kubelet cannot be read")) > 0
				})
			default:
				until(t, "the inventory is out", func() bool { return s.inventory.Ready() == nil })
			}
			if n := r.api.Asked(eventsPath); n > 0 || len(r.onEvents(t)) > 0 {
				t.Errorf("events were asked for %d times, and %q are out", n, r.onEvents(t))
			}
		})
	}
	check(RoleInventory, true, true)
	check(RoleInventory, false, false)
	check(RoleCentral, true, true)
	check(RoleCentral, false, false)
	check(RoleEvents, true, true)
	check(RoleEvents, false, true) // it has nothing else to do
	check(RoleNode, true, false)
}

// Two scrapers of the inventory and one of events on one cluster: one of them publishes, whoever it is, and when it
// stops another goes on where it was.
func TestOneOfSeveralPublishesEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.happen("before")
	var all []*running
	for i, role := range []Role{RoleInventory, RoleInventory, RoleEvents} {
		all = append(all, r.run(t, func(c *Config) { c.Role, c.Identity = role, fmt.Sprint("scraper-", i) }))
	}
	want := []string{"before"}
	for turn := range len(all) {
		name := fmt.Sprint("turn-", turn)
		r.happen(name)
		want = append(want, name)
		until(t, name+" is out", func() bool { return len(r.onEvents(t)) >= len(want) })
		if got := r.onEvents(t); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("%q are out, want %q", got, want)
		}
		var leaders []int
		for i, s := range all {
			if s.leads(t) {
				leaders = append(leaders, i)
			}
		}
		if len(leaders) != 1 {
			t.Fatalf("%d of %d say that they publish", len(leaders), len(all))
		}
		until(t, "the others stand by", func() bool {
			for i, s := range all {
				if i != leaders[0] && len(s.logs.with("another publishes events, standing by", "scraper-")) == 0 {
					return false
				}
			}
			return true
		})
		for _, s := range all {
			until(t, "all is well in everyone's words", func() bool { return s.events.Err() == nil })
		}
		if err := all[leaders[0]].stop(); err != nil {
			t.Fatal(err)
		}
		all = append(all[:leaders[0]], all[leaders[0]+1:]...)
	}
}

// Under the name of another cluster nothing is published, not even events.
func TestEventsWaitUntilTheNameIsKnownToBeOurs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.conn.Register(t.Context(), "c1", bus.ClusterInfo{UID: "another", Resolution: time.Minute}); err != nil {
		t.Fatal(err)
	}
	r.happen("a")
	r.cfg.Role = RoleInventory
	if err := r.scraper(t).Run(t.Context()); !errors.Is(err, bus.ErrOtherCluster) {
		t.Fatalf("Run ends with %v", err)
	}
	if n := r.api.Asked(eventsPath); n > 0 || len(r.onEvents(t)) > 0 {
		t.Errorf("events were asked for %d times, and %q are out", n, r.onEvents(t))
	}
}
