package ownership

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }

// crew runs members and knows who works for which cluster.
type crew struct {
	t  *testing.T
	s  *bustest.Server
	mu sync.Mutex

	working map[string]map[string]bool // cluster -> members
	both    bool                       // two worked for one cluster at once
}

func (c *crew) join(id string, clusters ...string) (leave func()) {
	c.t.Helper()
	o, err := New(c.s.Conn(c.t), Config{ID: id, Clusters: clusters}, bustest.Logger(c.t), func(ctx context.Context, cluster string, lanes *bus.Ownership) error {
		c.mu.Lock()
		if c.working[cluster] == nil {
			c.working[cluster] = map[string]bool{}
		}
		c.working[cluster][id] = true
		c.both = c.both || len(c.working[cluster]) > 1
		c.mu.Unlock()
		<-ctx.Done()
		c.mu.Lock()
		delete(c.working[cluster], id)
		c.mu.Unlock()
		return ctx.Err()
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	leave = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.t.Errorf("member %s: %v", id, err)
			}
		case <-time.After(bustest.Timeout):
			c.t.Errorf("member %s does not leave", id)
		}
	})
	c.t.Cleanup(leave)
	return leave
}

// owners waits until every cluster is worked for by the member that the rendezvous of these names.
func (c *crew) owners(clusters []string, members ...member) {
	c.t.Helper()
	o := &Ownership{members: map[string]member{}}
	for _, m := range members {
		o.members[m.ID] = m
	}
	var last string
	for until := time.Now().Add(bustest.Timeout); ; time.Sleep(5 * time.Millisecond) {
		last = ""
		c.mu.Lock()
		for _, cluster := range clusters {
			if want := o.named(cluster); !c.working[cluster][want] || len(c.working[cluster]) != 1 {
				last = fmt.Sprintf("cluster %s is worked for by %v, want %s", cluster, c.working[cluster], want)
			}
		}
		c.mu.Unlock()
		if last == "" {
			return
		}
		if time.Now().After(until) {
			c.t.Fatal(last)
		}
	}
}

// Clusters are shared out among the live members that may take them, move when members come and go, and
// are never two members' at once when all of them behave.
func TestClustersFollowTheirMembers(t *testing.T) {
	s := bustest.Start(t)
	conn := s.Conn(t)
	var clusters []string
	for i := range 6 {
		name := fmt.Sprint("cluster-", i)
		bustest.Provision(t, conn, name)
		if err := conn.Register(t.Context(), name, bus.ClusterInfo{UID: name, Resolution: time.Minute}); err != nil {
			t.Fatal(err)
		}
		clusters = append(clusters, name)
	}
	c := &crew{t: t, s: s, working: map[string]map[string]bool{}}
	leaveA := c.join("a")
	c.owners(clusters, member{ID: "a"})
	c.join("b")
	c.owners(clusters, member{ID: "a"}, member{ID: "b"})
	leaveC := c.join("c", "cluster-0", "cluster-1")
	c.owners(clusters, member{ID: "a"}, member{ID: "b"}, member{"c", []string{"cluster-0", "cluster-1"}})
	leaveA()
	c.owners(clusters, member{ID: "b"}, member{"c", []string{"cluster-0", "cluster-1"}})
	leaveC()
	c.owners(clusters, member{ID: "b"})
	if err := conn.Unregister(t.Context(), "cluster-3"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(bustest.Timeout); ; time.Sleep(5 * time.Millisecond) {
		c.mu.Lock()
		n := len(c.working["cluster-3"])
		c.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(until) {
			t.Fatal("a cluster that was removed is worked for")
		}
	}
	if c.both {
		t.Error("two members worked for one cluster at once")
	}
}

// The rendezvous moves only what it must, and spreads.
func TestRendezvousMovesLittle(t *testing.T) {
	o := &Ownership{members: map[string]member{"a": {ID: "a"}, "b": {ID: "b"}, "c": {ID: "c"}}}
	before := map[string]string{}
	count := map[string]int{}
	for i := range 300 {
		cluster := fmt.Sprint("cluster-", i)
		before[cluster] = o.named(cluster)
		count[before[cluster]]++
	}
	for id, n := range count {
		if n < 60 || n > 140 {
			t.Errorf("member %s has %d of 300 clusters", id, n)
		}
	}
	delete(o.members, "b")
	for cluster, was := range before {
		if now := o.named(cluster); was != "b" && now != was {
			t.Fatalf("cluster %s moved from %s to %s although b left", cluster, was, now)
		}
	}
}

// A cluster whose named member does not take it is taken as an orphan after OrphanAfter, not before, and
// not while its lease is held.
func TestOrphansAreTaken(t *testing.T) {
	o, err := New(nil, Config{ID: "b"}, bustest.Logger(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	o.settled = [3]bool{true, true, true}
	o.members = map[string]member{"x": {ID: "a"}, "y": {ID: "b"}}
	cluster := ""
	for i := 0; cluster == ""; i++ {
		if name := fmt.Sprint("cluster-", i); o.named(name) == "a" {
			cluster = name
		}
	}
	check := func(what string, want role) {
		t.Helper()
		if got, _, _ := o.role(cluster); got != want {
			t.Errorf("%s: role %d, want %d", what, got, want)
		}
	}
	check("held", none)
	o.free[cluster] = time.Now()
	check("just free", none)
	if _, left, _ := o.role(cluster); left <= 0 || left > OrphanAfter {
		t.Errorf("asks again in %s", left)
	}
	o.free[cluster] = time.Now().Add(-OrphanAfter)
	check("free for long", orphan)
	o.members["x"] = member{"a", []string{"another"}}
	check("the other may not", share)
}

// What a heartbeat says survives its way; nonsense is no member.
func TestMemberSurvivesTheWay(t *testing.T) {
	data, err := json.Marshal(member{"a", []string{"c"}})
	if err != nil {
		t.Fatal(err)
	}
	var m member
	if err := json.Unmarshal(data, &m); err != nil || m.ID != "a" || !m.may("c") || m.may("d") {
		t.Errorf("got %+v, %v", m, err)
	}
}
