package ownership

import (
	"context"
	"encoding/json"
	"errors"
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

// Who contends for what another holds and may keep is a standby, as ready as any; it takes over when that is gone.
func TestStandsByWhileAnotherHoldsItsShare(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	bustest.Provision(t, s.Conn(t), "c")
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	defer cancel()
	other, err := s.Conn(t).Hold(ctx, bus.AggregatorLease("c"), "other") // which is no member any more, or took it as an orphan
	if err != nil {
		t.Fatal(err)
	}
	o, err := New(s.Conn(t), Config{ID: "me", Clusters: []string{"c"}}, bustest.Logger(t), func(ctx context.Context, _ string, _ *bus.Ownership) error {
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := o.Run(running); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer stop()
	until := func(what string, holds func(states map[string]State, contends bool) bool) {
		t.Helper()
		for {
			states, known := o.States()
			o.mu.Lock()
			contends, changed := o.state["c"] == Contends, o.changed
			o.mu.Unlock()
			if known && holds(states, contends) {
				return
			}
			select {
			case <-changed:
			case <-time.After(10 * time.Millisecond): // a state that is set wakes nobody
			case <-ctx.Done():
				t.Fatalf("%s: states are %v, contends %t", what, states, contends)
			}
		}
	}
	until("stands by", func(states map[string]State, contends bool) bool { return contends && states["c"] == StandsBy })
	if err := other.Release(ctx); err != nil {
		t.Fatal(err)
	}
	until("owns", func(states map[string]State, _ bool) bool { return states["c"] == Owns })
}

// A member that is started before the streams are made waits for them.
func TestOwnsWhatIsProvisionedLater(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	owns := make(chan struct{})
	o, err := New(s.Conn(t), Config{ID: "me"}, bustest.Logger(t), func(ctx context.Context, _ string, _ *bus.Ownership) error {
		close(owns)
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	defer cancel()
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- o.Run(running) }()
	provisioner := s.Conn(t)
	if _, err := provisioner.StreamState(ctx, "KV_"+bus.ClustersBucket); !errors.Is(err, bus.ErrStreamMissing) {
		t.Fatalf("streams are there: %v", err)
	}
	bustest.Provision(t, provisioner, "c")
	if err := provisioner.Register(ctx, "c", bus.ClusterInfo{UID: "u", Resolution: time.Minute}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-owns:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
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
