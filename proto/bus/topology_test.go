package bus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

func TestTokens(t *testing.T) {
	for name, token := range map[string]string{
		"node-1": "node-1", "ip-10-0-0-1.ec2.internal": "ip-10-0-0-1_ec2_internal", "": "=",
		"a_b": "a=5fb", "a*>b c": "a=2a=3eb=20c", "ü": "=c3=bc", "=": "=3d",
	} {
		if got := bus.EncodeToken(name); got != token {
			t.Errorf("token of %q is %q, want %q", name, got, token)
		}
		if got, err := bus.DecodeToken(token); err != nil || got != name {
			t.Errorf("name of %q is %q (%v), want %q", token, got, err, name)
		}
	}
	for _, token := range []string{"", "a.b", "=2", "=zz", "=61", "=2e", "=5F", "a b", "*", ">", strings.Repeat("a", 1000), strings.Repeat("a", 300)} {
		if name, err := bus.DecodeToken(token); err == nil {
			t.Errorf("token %q was taken for %q", token, name)
		}
	}
}

func FuzzTokenIsInverse(f *testing.F) {
	for _, s := range []string{"", "node-1", "a.b_c=d", "ü*> ", "=", strings.Repeat("x", 254)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		token := bus.EncodeToken(s)
		if token == "" || strings.ContainsAny(token, ".*> \t\r\n/\\") || len(token) > 3*len(s)+1 {
			t.Fatalf("token %q of %q is not safe", token, s)
		}
		got, err := bus.DecodeToken(token)
		if (err != nil) != (len(s) > bus.MaxName) || err == nil && got != s {
			t.Fatalf("%q became %q, then %q (%v)", s, token, got, err)
		}
		// what is taken for a token is the token of its name
		if name, err := bus.DecodeToken(s); err == nil && bus.EncodeToken(name) != s {
			t.Fatalf("token %q was taken for %q, whose token is %q", s, name, bus.EncodeToken(name))
		}
	})
}

func FuzzParseSubject(f *testing.F) {
	for _, s := range subjects() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := bus.ParseSubject(s); err == nil && build(a) != s {
			t.Fatalf("%q was read as %+v, which is %q", s, a, build(a))
		}
	})
}

func subjects() []string {
	return []string{bus.SamplesSubject("prod.eu", "n.1"), bus.InventorySubject("prod", bus.InventoryNodes), bus.ClockSubject("prod"),
		bus.NodeRollupSubject("prod", "n.1"), bus.NamespaceRollupSubject("prod", "kube-system"), bus.TotalsSubject("prod"),
		bus.EpochSubject("prod", 15), bus.EventsSubject("prod", ""), bus.DeadSubject("sink.influx"), bus.AgainSubject("sink.influx")}
}

func build(a bus.Address) string {
	switch a.Kind {
	case bus.Samples:
		return bus.SamplesSubject(a.Cluster, a.Name)
	case bus.Inventory:
		return bus.InventorySubject(a.Cluster, a.Name)
	case bus.Clock:
		return bus.ClockSubject(a.Cluster)
	case bus.NodeRollup:
		return bus.NodeRollupSubject(a.Cluster, a.Name)
	case bus.NamespaceRollup:
		return bus.NamespaceRollupSubject(a.Cluster, a.Name)
	case bus.Totals:
		return bus.TotalsSubject(a.Cluster)
	case bus.Epoch:
		return bus.EpochSubject(a.Cluster, a.Lane)
	case bus.Events:
		return bus.EventsSubject(a.Cluster, a.Name)
	case bus.Dead:
		return bus.DeadSubject(a.Name)
	case bus.Again:
		return bus.AgainSubject(a.Name)
	}
	return ""
}

func TestSubjectsAreReadBack(t *testing.T) {
	for _, s := range subjects() {
		a, err := bus.ParseSubject(s)
		if err != nil || build(a) != s {
			t.Errorf("%q was read as %+v (%v)", s, a, err)
		}
	}
	for _, s := range []string{"", "hs", "hs.samples.prod", "hs.rollups.prod.epoch.16", "hs.rollups.prod.epoch.01", "hs.rollups.prod.totals.x",
		"hs.samples.prod.a.b", "hs.other.prod.a", "hs.clock.prod.x", "x.samples.prod.a", "hs.rollups.prod.node"} {
		if a, err := bus.ParseSubject(s); err == nil {
			t.Errorf("%q was read as %+v", s, a)
		}
	}
}

// The hash is part of what owners of different versions agree on.
func TestLaneOfNeverChanges(t *testing.T) {
	for node, lane := range map[string]int{"": 5, "a": 12} {
		if got := bus.LaneOf(node); got != lane {
			t.Errorf("lane of %q is %d, want %d", node, got, lane)
		}
	}
}

func TestTopologyIsAppliedCheckedAndAltered(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bus.Quick(s.Conn(t))
	top := bus.Topology{Cluster: "prod"}
	if err := c.Check(deadline(t), top); !errors.Is(err, bus.ErrTopology) || !strings.Contains(err.Error(), "ROLLUPS_prod does not exist") {
		t.Fatal(err)
	}
	changes, err := c.Apply(deadline(t), top)
	must(t, err)
	if len(changes) != 6 {
		t.Fatalf("changes %v, want 6 creations", changes)
	}
	changes, err = c.Apply(deadline(t), top)
	must(t, err)
	if len(changes) != 0 {
		t.Fatalf("second time: %v", changes)
	}
	must(t, c.Check(deadline(t), top))
	top.RollupsAge = 2 * time.Hour
	if err := c.Check(deadline(t), top); !errors.Is(err, bus.ErrTopology) || !strings.Contains(err.Error(), "ROLLUPS_prod max_age: 1h0m0s, want 2h0m0s") {
		t.Fatal(err)
	}
	changes, err = c.Apply(deadline(t), top)
	must(t, err)
	if len(changes) != 1 || changes[0].String() != "ROLLUPS_prod: max_age: 1h0m0s, want 2h0m0s" {
		t.Fatalf("changes %v", changes)
	}
	must(t, c.Check(deadline(t), bus.Topology{Cluster: "prod"})) // an operator's choice is fine
	must(t, c.RemoveCluster(deadline(t), "prod"))
	must(t, c.RemoveCluster(deadline(t), "prod"))
}

func TestApplyEndsWhereTheStoreIsTooSmall(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, func(c *embedded.Config) { c.MaxStore = 2 << 30 })
	c := bus.Quick(s.Conn(t))
	_, err := c.Apply(deadline(t), bus.Topology{Cluster: "prod"})
	if !errors.Is(err, bus.ErrRefused) || !strings.Contains(err.Error(), "max_file_store") || !strings.Contains(err.Error(), "SAMPLES_prod") {
		t.Fatal(err)
	}
	_, err = c.Apply(deadline(t), bus.Topology{Cluster: "prod", SamplesBytes: 512 << 20, RollupsBytes: 512 << 20})
	must(t, err)
}

func TestApplyEndsWhereNoServerOfThreeHasRoom(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3, func(c *embedded.Config) { c.MaxStore = 2 << 30 })
	c := bus.Quick(s.Conn(t))
	_, err := c.Apply(deadline(t), bus.Topology{Cluster: "prod", Replicas: 3})
	if !errors.Is(err, bus.ErrRefused) || !strings.Contains(err.Error(), "max_file_store") || !strings.Contains(err.Error(), "SAMPLES_prod") {
		t.Fatal(err)
	}
}

func TestTopologyRefusesTooLittle(t *testing.T) {
	// 5,000 nodes at 15 s are 28 GiB an hour: 1 GiB holds two minutes
	err := (bus.Topology{Cluster: "prod", Nodes: 5000, Resolution: 15 * time.Second, RollupsBytes: 1 << 30}).Validate()
	if err == nil || !strings.Contains(err.Error(), "ROLLUPS of cluster \"prod\" would hold 2m") {
		t.Fatal(err)
	}
	must(t, bus.Topology{Cluster: "prod", Nodes: 100, Resolution: 15 * time.Second}.Validate())
	err = (bus.Topology{Cluster: strings.Repeat("x", 64), Replicas: 9, RollupsAge: time.Minute, DeadBytes: 1}).Validate()
	for _, part := range []string{"64 bytes", "9 replicas", "ROLLUPS kept for 1m0s", "DEAD of 1 bytes"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: lacks %q", err, part)
		}
	}
}

func TestConfigJoinsAllComplaints(t *testing.T) {
	c := bus.DefaultConfig()
	must(t, c.Validate())
	c.URLs = []string{"nats://u:secret@h:4222", "http://h"}
	c.CredsFile, c.User, c.CertFile, c.Domain = "/nonexistent", "u", "/nonexistent", "a.b"
	err := c.Validate()
	for _, part := range []string{"carries a password", `scheme "http"`, "choose one of", "belong together", "--bus-creds", "--bus-domain"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: lacks %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the complaint tells a secret: %v", err)
	}
}
