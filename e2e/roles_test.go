package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heapstream/heapstream/aggregator"
	"github.com/heapstream/heapstream/aggregator/rate"
	"github.com/heapstream/heapstream/aggregator/rollup"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/node"
)

// What each role of the scraper may do, and nothing else: a node's scraper reads nodes and its pods, and what the
// kubelets tell; who owns the owners of pods is the inventory's alone. (RBAC cannot limit a user to the pods of one
// node: who minds takes them from the kubelet, --pods-from=kubelet.)
var rolesOfScrapers = []simcluster.User{
	{Token: "admin", Name: simcluster.AdminName, UID: "u1", Groups: []string{"system:masters", "system:authenticated"}},
	{Token: "node", Name: "system:serviceaccount:kube-system:heapstream-node", UID: "u2", Groups: []string{"system:authenticated"}, Rules: []simcluster.Rule{
		{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"nodes", "nodes/stats"}},
		{Verbs: []string{"list", "watch"}, APIGroups: []string{""}, Resources: []string{"pods"}},
	}},
	{Token: "inventory", Name: "system:serviceaccount:kube-system:heapstream-inventory", UID: "u3", Groups: []string{"system:authenticated"}, Rules: []simcluster.Rule{
		{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{""}, Resources: []string{"namespaces"}},
		{Verbs: []string{"list", "watch"}, APIGroups: []string{""}, Resources: []string{"nodes", "pods"}},
		{Verbs: []string{"list", "watch"}, APIGroups: []string{"apps"}, Resources: []string{"replicasets"}},
		{Verbs: []string{"list", "watch"}, APIGroups: []string{"batch"}, Resources: []string{"jobs"}},
		{Verbs: []string{"list", "watch"}, APIGroups: []string{""}, Resources: []string{"events"}},
	}},
}

// listed reads a list from the API server.
func listed(t *testing.T, c *simcluster.Cluster, path string, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.APIServer()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
}

// controllers are the controllers of a list's objects, by kind/namespace/name.
func controllers(t *testing.T, c *simcluster.Cluster, path, kind string, into map[string]metav1.OwnerReference) {
	t.Helper()
	var list metav1.PartialObjectMetadataList
	listed(t, c, path, &list)
	for i := range list.Items {
		if o := metav1.GetControllerOfNoCopy(&list.Items[i]); o != nil {
			into[kind+"/"+list.Items[i].Namespace+"/"+list.Items[i].Name] = *o
		}
	}
}

// enriched is what the API server says of a pod, as far as it is in rollups.
type enriched struct {
	owner                       proto.Owner
	uid                         string
	cpu, memory, limit, restart int64
	hostNetwork                 bool
}

// enrichedOf is that of a pod as the API server has it: sums of its containers and native sidecars.
func enrichedOf(p *corev1.Pod, owners map[string]metav1.OwnerReference) enriched {
	e := enriched{owner: proto.Owner{Kind: "Pod", Name: p.Name}, uid: string(p.UID), hostNetwork: p.Spec.HostNetwork}
	if c := metav1.GetControllerOfNoCopy(p); c != nil && c.Kind != "Node" {
		e.owner = proto.Owner{Kind: c.Kind, Name: c.Name}
		if above, ok := owners[c.Kind+"/"+p.Namespace+"/"+c.Name]; ok {
			e.owner = proto.Owner{Kind: above.Kind, Name: above.Name}
		}
	}
	lasting := map[string]bool{}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if slices.ContainsFunc(p.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.Name }) && c.RestartPolicy == nil {
			continue
		}
		lasting[c.Name] = true
		e.cpu += c.Resources.Requests.Cpu().MilliValue()
		e.memory += c.Resources.Requests.Memory().Value()
		e.limit += c.Resources.Limits.Memory().Value()
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if lasting[s.Name] {
			e.restart += int64(s.RestartCount)
		}
	}
	return e
}

// TestRolesTogetherKnowEveryPod runs a scraper for each node with a node's rights, one for the inventory with its
// own, and an aggregator, on a cluster with workloads of every kind, a static pod, host networks, init containers, native
// sidecars and a node that is not ready, and compares every pod of ROLLUPS, and the workloads, with what the API
// server has.
func TestRolesTogetherKnowEveryPod(t *testing.T) {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode, cfg.Users = 3, 16, rolesOfScrapers
	cluster := simtest.Start(t, cfg, simcluster.Deps{})

	if err := cluster.SetNodeReady(cluster.Nodes()[1].Name(), false); err != nil {
		t.Fatal(err)
	}

	// What the API server says.
	owners := map[string]metav1.OwnerReference{}
	controllers(t, cluster, "/apis/apps/v1/replicasets", "ReplicaSet", owners)
	controllers(t, cluster, "/apis/batch/v1/jobs", "Job", owners)
	var pods corev1.PodList
	listed(t, cluster, "/api/v1/pods", &pods)
	want, byWorkload, kinds, special := map[string]enriched{}, map[string]int64{}, map[string]int{}, map[string]int{}
	for i := range pods.Items {
		p := &pods.Items[i]
		e := enrichedOf(p, owners)
		want[p.Namespace+"/"+p.Name] = e
		byWorkload[p.Namespace+"/"+e.owner.Kind+"/"+e.owner.Name]++
		kinds[e.owner.Kind]++
		if p.Annotations[corev1.MirrorPodAnnotationKey] != "" {
			special["static"]++
		}
		if p.Spec.HostNetwork {
			special["host network"]++
		}
		for _, c := range p.Spec.InitContainers {
			if c.RestartPolicy != nil {
				special["sidecar"]++
			} else {
				special["init"]++
			}
		}
	}
	if len(special) != 4 {
		t.Fatalf("the simulated cluster has of special pods %v", special)
	}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, []string{"CronJob", "DaemonSet", "Deployment", "Pod", "StatefulSet"}) {
		t.Fatalf("the simulated cluster has workloads of the kinds %v", got)
	}

	server := bustest.Start(t)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "sim")
	ctx, cancel := context.WithCancel(context.Background())
	running := make(chan error)
	parts := 0
	run := func(part interface{ Run(context.Context) error }, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		parts++
		go func() { running <- part.Run(ctx) }()
	}
	defer func() { // before the connections go
		cancel()
		for range parts {
			if err := <-running; err != nil {
				t.Error(err)
			}
		}
	}()
	log := &logbook{}
	start := func(role scraper.Role, name, user string) {
		t.Helper()
		c := scraper.DefaultConfig()
		c.Role, c.NodeName, c.Cluster, c.Resolution = role, name, "sim", 5*time.Second
		c.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
		if err := cluster.WriteKubeconfig(c.Kubeconfig, user); err != nil {
			t.Fatal(err)
		}
		s, err := scraper.New(c, scraper.Deps{Bus: server.Conn(t), Log: log.logger(), Registry: prometheus.NewRegistry()})
		run(s, err)
	}
	for _, n := range cluster.Nodes() {
		start(scraper.RoleNode, n.Name(), rolesOfScrapers[1].Name)
	}
	start(scraper.RoleInventory, "", rolesOfScrapers[2].Name)
	sums := aggregator.DefaultConfig()
	sums.Clusters = []string{"sim"}
	a, err := aggregator.New(sums, aggregator.Deps{Bus: server.Conn(t), Log: log.logger(), Registry: prometheus.NewRegistry()})
	run(a, err)

	follow, stop := context.WithTimeout(ctx, 2*patience) // for two facts
	defer stop()
	dec := proto.NewDecoder()

	// The inventory names the owner of every owner.
	inventory := bus.ReplayConfig{Stream: bus.SamplesStream("sim"), Subjects: []string{bus.InventoryFilter("sim")}}
	told := map[string]metav1.OwnerReference{}
	for d, err := range conn.Replay(follow, inventory) {
		var v proto.Inventory
		if err == nil {
			err = dec.Inventory(d.Data, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		if v.Subject != proto.InventoryOwners {
			continue
		}
		for _, o := range v.Owners {
			told[o.Object.Kind+"/"+o.Namespace+"/"+o.Object.Name] = metav1.OwnerReference{Kind: o.Owner.Kind, Name: o.Owner.Name}
		}
		if len(told) == len(owners) {
			break
		}
	}
	for key, o := range owners {
		if told[key].Kind != o.Kind || told[key].Name != o.Name {
			t.Errorf("the inventory says that %s belongs to %+v, want %s %s", key, told[key], o.Kind, o.Name)
		}
	}

	// The rollups carry them.
	wrong := map[string]string{}
	for p := range want {
		wrong[p] = "not there"
	}
	counts := maps.Clone(byWorkload)
	for d, err := range conn.Replay(follow, bus.ReplayConfig{Stream: bus.RollupsStream("sim"), Subjects: bus.RollupFilters("sim")}) {
		var r proto.Rollup
		if err == nil {
			err = dec.Rollup(d.Data, &r)
		}
		if err != nil {
			t.Fatal(err)
		}
		for row := range r.Entities {
			e := &r.Entities[row]
			switch {
			case e.Kind == proto.KindPod:
				key := e.Namespace + "/" + e.Name
				got := enriched{owner: e.Owner, uid: e.UID, hostNetwork: e.Flags&proto.FlagHostNetwork != 0}
				for id, to := range map[proto.MetricID]*int64{proto.CPURequest: &got.cpu, proto.MemoryRequest: &got.memory, proto.MemoryLimit: &got.limit, proto.RestartCount: &got.restart} {
					v, _ := r.Value(row, id)
					*to = v.Int64()
				}
				if w, ok := want[key]; !ok {
					t.Errorf("the API server has no pod %s", key)
				} else if got == w {
					delete(wrong, key)
				} else if wrong[key] != "" {
					wrong[key] = fmt.Sprintf("%+v, want %+v", got, w)
				}
			case r.Scope == proto.ScopeNamespace && e.Kind == proto.KindWorkload:
				key := e.Namespace + "/" + e.Owner.Kind + "/" + e.Owner.Name
				if v, _ := r.Value(row, proto.PodCount); v.Int64() == byWorkload[key] {
					delete(counts, key)
				}
			}
		}
		if len(wrong) == 0 && len(counts) == 0 {
			break
		}
	}
	if len(wrong) != 0 || len(counts) != 0 {
		t.Errorf("pods that are not as the API server has them: %v\nworkloads without all of their pods: %v", wrong, counts)
	}

	// Nobody asked for more than he may.
	log.mu.Lock()
	defer log.mu.Unlock()
	for _, l := range log.lines {
		if l.Level == "ERROR" || strings.Contains(l.Err, "forbidden") || strings.Contains(l.Err, "grant our ServiceAccount") {
			t.Errorf("%s %s: %s", l.Level, l.Msg, l.Err)
		}
	}
}

// TestWhatPodsAskForReachesTheSums takes pods whose request is not the sum of their containers, as the API server gives
// them, through enrichment, codec and sums.
func TestWhatPodsAskForReachesTheSums(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	of := func(requests, limits corev1.ResourceList) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: requests, Limits: limits}
	}
	always := corev1.ContainerRestartPolicyAlways
	overhead := corev1.PodSpec{Overhead: list("250m", "120"), Containers: []corev1.Container{{Name: "a", Resources: of(list("100m", "1000"), nil)}, {Name: "b", Resources: of(list("100m", "1000"), list("1", "5000"))}}}
	level := of(list("2", "9000"), list("3", "9999"))
	whole := corev1.PodSpec{Resources: &level, Containers: []corev1.Container{{Name: "a", Resources: of(list("100m", "1000"), nil)}, {Name: "b"}}}
	sidecars := corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: of(list("10m", "10"), nil)}}, InitContainers: []corev1.Container{
		{Name: "b", RestartPolicy: &always, Resources: of(list("20m", "20"), nil)}, {Name: "setup", Resources: of(list("30", "30G"), nil)}}}
	pods := map[string]*node.Pod{}
	b := &proto.Batch{Cluster: "c", Node: "n", Tick: 1, Resolution: time.Minute}
	b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	for name, spec := range map[string]corev1.PodSpec{"overhead": overhead, "whole": whole, "sidecars": sidecars} {
		pods[name] = node.FromPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "u"}, Spec: spec, Status: corev1.PodStatus{Phase: corev1.PodRunning}})
		row := b.AddEntity(proto.Entity{Kind: proto.KindPod, Parent: 0, Namespace: "ns", Name: name, UID: "u"})
		b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: "a"}) // b is a stub
	}
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	object.Status.Allocatable = list("4", "100000")
	node.Enrich(b, node.FromNode(object, ""), func(_, name string) *node.Pod { return pods[name] })
	data, err := proto.NewEncoder().Batch(b)
	if err != nil {
		t.Fatal(err)
	}
	sent, r := &proto.Batch{}, &proto.Rollup{}
	if err := proto.NewDecoder().Batch(data, sent); err != nil {
		t.Fatal(err)
	}
	rate.New().Step(sent, 1)
	rollup.New().Node(sent, 1, r)
	want := map[string][4]int64{ // requests and limits of cpu and memory
		"pod overhead": {450, 1250, 2120, 5120}, "pod whole": {2000, 3000, 9000, 9999}, "pod sidecars": {30, 0, 30, 0},
		"node n": {2480, 4250, 11150, 15119}, "ns ns": {2480, 4250, 11150, 15119},
	}
	for row := range r.Entities {
		key := r.Entities[row].Kind.String() + " " + r.Entities[row].Name
		w, ok := want[key]
		if !ok {
			continue
		}
		delete(want, key)
		for i, id := range []proto.MetricID{proto.CPURequest, proto.CPULimit, proto.MemoryRequest, proto.MemoryLimit} {
			if v, ok := r.Value(row, id); !ok || v.Int64() != w[i] {
				t.Errorf("%s: %s is %s, want %d", key, proto.MetricByID(id).Name, v, w[i])
			}
		}
		if v, _ := r.Value(row, proto.CPUNodeReservation); r.Entities[row].Kind == proto.KindNode && v.String() != "0.62" {
			t.Errorf("the node's reservation is %s, want 0.62", v)
		}
	}
	for key := range want {
		t.Errorf("%s is not there", key)
	}
}
