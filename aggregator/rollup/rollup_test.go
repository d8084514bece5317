package rollup

import (
	"math"
	"testing"

	"github.com/heapstream/heapstream/proto"
)

// Every metric that is summed over pods has a place in a Sum.
func TestSumsHaveRoom(t *testing.T) {
	if len(summed) > maxSummed {
		t.Errorf("%d metrics are summed, a Sum has room for %d", len(summed), maxSummed)
	}
}

// container adds a container with a CPU pair and gives it a value outside the catalogue.
func container(b *proto.Batch, pod int, name string, delta, span int64, custom proto.Value) {
	row := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: name})
	b.Values.Set(row, proto.GroupCPU.Time(), 1)
	b.Values.Set(row, proto.GroupCPU.Span(), span)
	b.Values.Set(row, proto.CPUUsage.Field(), 1<<40)
	b.Values.Set(row, proto.CPUUsage.Delta(), delta)
	b.Values.Set(row, proto.RestartCount.Field(), 1)
	b.Extras = append(b.Extras, proto.Extra{Entity: int32(row), Name: "custom/queue", Value: custom})
}

func batch() (b *proto.Batch, pod int) {
	b = &proto.Batch{Cluster: "c", Node: "n", Tick: 1}
	b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	return b, b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "p", UID: "u"})
}

// The sum of millicores is a sum of truncated integers, as Heapster's; nanocores are exact.
func TestSumsOfRatesAreHeapsters(t *testing.T) {
	b, pod := batch()
	container(b, pod, "a", 1_999_999, 1e9, proto.Int(1)) // 1.999999 millicores
	container(b, pod, "b", 2_999_999, 1e9, proto.Int(2))
	var r proto.Rollup
	m := New()
	share := m.Node(b, 7, &r)
	check := func(row int, id proto.MetricID, want string) {
		t.Helper()
		if v, ok := r.Value(row, id); !ok || v.String() != want {
			t.Errorf("row %d: %s is %s %v, want %s", row, proto.MetricByID(id).Name, v, ok, want)
		}
	}
	check(pod, proto.CPUUsageRate, "3")
	check(pod, proto.CPUUsageNanocores, "4999998")
	check(pod, proto.RestartCount, "2")
	if _, ok := r.Value(pod, proto.CPUUsage); ok {
		t.Error("a pod has the sum of its containers' counters")
	}
	check(0, proto.CPURequest, "0")
	check(0, proto.ContainerCount, "2")
	if r.Seq != 7 || r.Scope != proto.ScopeNode || len(r.Entities) != 6 {
		t.Errorf("rollup %+v", r.Entities)
	}
	sums := m.Tick([]*Share{share, share})
	m.Totals(sums, &r)
	check(0, proto.CPUUsageRate, "6")
	check(0, proto.CPUUsageNanocores, "9999996")
	check(0, proto.PodCount, "2")
}

// Values outside the catalogue are summed from containers to the pod, in the order that messages want;
// an integer and a float have no sum, and the pod's own value stays.
func TestExtrasAreSummed(t *testing.T) {
	value := func(own bool, x, y proto.Value) string {
		b, pod := batch()
		if own {
			b.Extras = append(b.Extras, proto.Extra{Entity: int32(pod), Name: "custom/queue", Value: proto.Int(99)})
		}
		container(b, pod, "a", 0, 1, x)
		container(b, pod, "b", 0, 1, y)
		var r proto.Rollup
		New().Node(b, 1, &r)
		if _, err := proto.NewEncoder().Rollup(&r); err != nil {
			t.Fatal(err)
		}
		data, _ := proto.NewEncoder().Rollup(&r)
		var back proto.Rollup
		if err := proto.NewDecoder().Rollup(data, &back); err != nil {
			t.Fatalf("rollup cannot be read: %v", err)
		}
		for s := range back.Samples(pod) {
			if s.Name == "custom/queue" {
				return s.Value.String()
			}
		}
		return "none"
	}
	for _, c := range []struct {
		own  bool
		x, y proto.Value
		want string
	}{
		{false, proto.Int(3), proto.Int(4), "7"},
		{false, proto.Float(1.5), proto.Float(2), "3.5"},
		{false, proto.Int(3), proto.Float(4), "none"},
		{true, proto.Int(3), proto.Int(4), "99"},
		{false, proto.Int(math.MaxInt64), proto.Int(4), "9223372036854775807"},
	} {
		if got := value(c.own, c.x, c.y); got != c.want {
			t.Errorf("sum of %s and %s is %s, want %s", c.x, c.y, got, c.want)
		}
	}
}

// Containers need not stand beside their pod.
func TestContainersApartFromTheirPodCount(t *testing.T) {
	b, first := batch()
	second := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "q", UID: "v"})
	container(b, first, "a", 1e6, 1e9, proto.Int(1))
	container(b, second, "a", 4e6, 1e9, proto.Int(1))
	container(b, first, "b", 2e6, 1e9, proto.Int(1))
	var r proto.Rollup
	New().Node(b, 1, &r)
	for row, want := range map[int]int64{first: 3, second: 4} {
		if v, _ := r.Value(row, proto.CPUUsageRate); v.Int64() != want {
			t.Errorf("pod %d uses %s millicores, want %d", row, v, want)
		}
	}
}

// A static pod and a bare one are their own workloads; a controller that nobody knows the owner of is one.
func TestWorkloadsOfPods(t *testing.T) {
	m := New()
	m.SetInventory(proto.InventoryOwners, []*proto.Inventory{{Owners: []proto.InventoryOwner{
		{Namespace: "ns", Object: proto.Owner{Kind: "ReplicaSet", Name: "web-1"}, Owner: proto.Owner{Kind: "Deployment", Name: "web"}}}}})
	for _, c := range []struct {
		namespace   string
		owner, want proto.Owner
	}{
		{"ns", proto.Owner{Kind: "ReplicaSet", Name: "web-1"}, proto.Owner{Kind: "Deployment", Name: "web"}},
		{"other", proto.Owner{Kind: "ReplicaSet", Name: "web-1"}, proto.Owner{Kind: "ReplicaSet", Name: "web-1"}},
		{"ns", proto.Owner{Kind: "DaemonSet", Name: "d"}, proto.Owner{Kind: "DaemonSet", Name: "d"}},
		{"ns", proto.Owner{Kind: "Node", Name: "n"}, proto.Owner{Kind: "Pod", Name: "p"}},
		{"ns", proto.Owner{}, proto.Owner{Kind: "Pod", Name: "p"}},
	} {
		if got := m.workload(&proto.Entity{Kind: proto.KindPod, Namespace: c.namespace, Name: "p", Owner: c.owner}); got != c.want {
			t.Errorf("%v in %s belongs to %v, want %v", c.owner, c.namespace, got, c.want)
		}
	}
}
