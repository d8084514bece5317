package rollup

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

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
	return b, b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "p", UID: "u", Phase: proto.PhaseRunning})
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
	b, pod = batch()
	b.Entities[pod].Name, b.Entities[pod].UID = "q", "v"
	container(b, pod, "a", 1_999_999, 1e9, proto.Int(1))
	container(b, pod, "b", 2_999_999, 1e9, proto.Int(2))
	other := m.Node(b, 8, &r)
	sums := m.Tick([]*Share{share}, []*Share{other})
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

// What a pod belongs to, by what the inventory knows, what names say, and what the API server has told.
func TestWorkloadsOfPods(t *testing.T) {
	m := New()
	m.SetInventory(proto.InventoryOwners, []*proto.Inventory{{Owners: []proto.InventoryOwner{
		{Namespace: "ns", Object: proto.Owner{Kind: "ReplicaSet", Name: "web-1"}, Owner: proto.Owner{Kind: "Deployment", Name: "web"}},
		{Namespace: "ns", Object: proto.Owner{Kind: "ReplicaSet", Name: "roll-5d"}, Owner: proto.Owner{Kind: "Rollout", Name: "roll"}},
		{Namespace: "ns", Object: proto.Owner{Kind: "Job", Name: "sync-now"}, Owner: proto.Owner{Kind: "CronJob", Name: "sync"}}}}})
	at := proto.Tick(time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC).UnixMilli())
	minute := int64(at) / 60_000
	pod := proto.Entity{Kind: proto.KindPod, Namespace: "ns", Name: "p", Phase: proto.PhaseRunning,
		Labels: []proto.Label{{Key: "app", Value: "x"}, {Key: "pod-template-hash", Value: "5d"}, {Key: "tier", Value: "y"}}}
	owned := func(kind, name string) proto.Entity {
		p := pod
		p.Owner = proto.Owner{Kind: kind, Name: name}
		return p
	}
	elsewhere, unlabelled, ended := owned("ReplicaSet", "web-1"), owned("ReplicaSet", "api-5d"), pod
	elsewhere.Namespace, unlabelled.Labels, ended.Phase = "other", nil, proto.PhaseFailed
	untold, missing := pod, pod
	untold.Phase, missing.Flags = proto.PhaseUnknown, proto.FlagNotInAPI
	for _, c := range []struct {
		name string
		pod  proto.Entity
		want proto.Owner
	}{
		{"the inventory knows", owned("ReplicaSet", "web-1"), proto.Owner{Kind: "Deployment", Name: "web"}},
		{"the inventory knows better than names", owned("ReplicaSet", "roll-5d"), proto.Owner{Kind: "Rollout", Name: "roll"}},
		{"a job made by hand of a cron job", owned("Job", "sync-now"), proto.Owner{Kind: "CronJob", Name: "sync"}},
		{"of the same name in another namespace", elsewhere, proto.Owner{Kind: "ReplicaSet", Name: "web-1"}},
		{"called after the pods' hash", owned("ReplicaSet", "api-5d"), proto.Owner{Kind: "Deployment", Name: "api"}},
		{"nothing before the hash", owned("ReplicaSet", "-5d"), proto.Owner{Kind: "ReplicaSet", Name: "-5d"}},
		{"bare, and looks like it", unlabelled, proto.Owner{Kind: "ReplicaSet", Name: "api-5d"}},
		{"scheduled this minute", owned("Job", fmt.Sprint("nightly-", minute)), proto.Owner{Kind: "CronJob", Name: "nightly"}},
		{"scheduled long ago", owned("Job", fmt.Sprint("nightly-", minute-600_000)), proto.Owner{Kind: "Job", Name: fmt.Sprint("nightly-", minute-600_000)}},
		{"called after a day", owned("Job", "backup-20261120"), proto.Owner{Kind: "Job", Name: "backup-20261120"}},
		{"called after a number", owned("Job", "backup-1"), proto.Owner{Kind: "Job", Name: "backup-1"}},
		{"a hash that is a minute", owned("ReplicaSet", fmt.Sprint("x-", minute)), proto.Owner{Kind: "ReplicaSet", Name: fmt.Sprint("x-", minute)}},
		{"daemon set", owned("DaemonSet", "d"), proto.Owner{Kind: "DaemonSet", Name: "d"}},
		{"stateful set", owned("StatefulSet", "s"), proto.Owner{Kind: "StatefulSet", Name: "s"}},
		{"replication controller", owned("ReplicationController", "rc"), proto.Owner{Kind: "ReplicationController", Name: "rc"}},
		{"a kind of somebody else's", owned("SparkApplication", "pi"), proto.Owner{Kind: "SparkApplication", Name: "pi"}},
		{"static", owned("Node", "n"), proto.Owner{Kind: "Pod", Name: "p"}},
		{"bare", pod, proto.Owner{Kind: "Pod", Name: "p"}},
		{"bare and ended", ended, proto.Owner{Kind: "Pod", Name: "p"}},
		{"nobody has told of it", untold, proto.Owner{}},
		{"the API server does not know it", missing, proto.Owner{}},
	} {
		if got := m.workload(&c.pod, at); got != c.want {
			t.Errorf("%s: belongs to %v, want %v", c.name, got, c.want)
		}
	}
}

// Percentiles are by nearest rank: values of pods, the least that so many percent do not exceed.
func TestPercentilesAreNearestRank(t *testing.T) {
	upTo := func(n int) (list []int64) {
		for i := range n {
			list = append(list, int64(i+1))
		}
		return list
	}
	for _, c := range []struct{ pods, p50, p95 int64 }{{1, 1, 1}, {2, 1, 2}, {3, 2, 3}, {10, 5, 10}, {19, 10, 19}, {20, 10, 19}, {21, 11, 20}, {100, 50, 95}, {1000, 500, 950}} {
		list := upTo(int(c.pods))
		if p50, p95 := percentile(list, 50), percentile(list, 95); p50 != c.p50 || p95 != c.p95 {
			t.Errorf("1 to %d: p50 %d, p95 %d; want %d, %d", c.pods, p50, p95, c.p50, c.p95)
		}
	}
}

// claimant is a share with one pod.
func claimant(node, name, uid string, start int64) *Share {
	s := &Share{Node: node, pods: []pod{{namespace: "ns", name: name, uid: uid, start: start, workload: proto.Owner{Kind: "StatefulSet", Name: "s"},
		sum: Sum{Pods: 1, Containers: 1}}}}
	s.pods[0].hash = s.pods[0].hashes()
	s.add(func(string) string { return "" })
	return s
}

// Of the pods that share a name or UID one counts, whatever the order in which their nodes spoke.
func TestContestedPodsCountOnce(t *testing.T) {
	for _, c := range []struct {
		name     string
		reported []*Share
		standIn  []*Share
		want     string // the nodes whose pods are left out
	}{
		{"none", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "b", "2", 5)}, nil, ""},
		{"newer name", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "a", "2", 6)}, nil, "n1 for n2"},
		{"older name", []*Share{claimant("n1", "a", "1", 6), claimant("n2", "a", "2", 5)}, nil, "n2 for n1"},
		{"greater UID", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "a", "2", 5)}, nil, "n1 for n2"},
		{"start unknown", []*Share{claimant("n1", "a", "9", 0), claimant("n2", "a", "2", 5)}, nil, "n1 for n2"},
		{"same UID", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "b", "1", 6)}, nil, "n1 for n2"},
		{"alike", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "a", "1", 5)}, nil, "n2 for n1"},
		{"alike, one stands in", []*Share{claimant("n2", "a", "1", 5)}, []*Share{claimant("n1", "a", "1", 5)}, "n1 for n2"},
		{"newer, stands in", []*Share{claimant("n2", "a", "1", 5)}, []*Share{claimant("n1", "a", "1", 6)}, "n2 for n1"},
		{"without UIDs", []*Share{claimant("n1", "a", "", 5), claimant("n2", "b", "", 5)}, nil, ""},
		{"three", []*Share{claimant("n1", "a", "1", 5), claimant("n2", "a", "2", 7), claimant("n3", "a", "3", 6)}, nil, "n3 for n2, n1 for n2"},
		{"the one in between loses and holds nothing", []*Share{claimant("n1", "a", "1", 7), claimant("n2", "a", "2", 6), claimant("n3", "c", "2", 5)}, nil, "n2 for n1"},
	} {
		tick := New().Tick(c.reported, c.standIn)
		var got []string
		for _, l := range tick.Contested {
			got = append(got, l.Node+" for "+l.Counted)
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: left out %q, want %q", c.name, s, c.want)
		}
		if all := len(c.reported) + len(c.standIn); int(tick.cluster.Pods) != all-len(got) {
			t.Errorf("%s: %d pods count, of %d %d are left out", c.name, tick.cluster.Pods, all, len(got))
		}
	}
}
