package node

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func load[T any](t testing.TB, name string) *T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	v := new(T)
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// recorded is the batch of the real kubelet's answer, and what its API server said then.
func recorded(t testing.TB) (*proto.Batch, *Node, map[string]*Pod) {
	t.Helper()
	answer, err := os.ReadFile(filepath.Join("..", "kubelet", "testdata", "summary-0.json"))
	if err != nil {
		t.Fatal(err)
	}
	b := &proto.Batch{Cluster: "c", Node: "node-0"}
	var d kubelet.Decoder
	if err := d.Summary(answer, b); err != nil {
		t.Fatal(err)
	}
	list := load[corev1.PodList](t, "pods.json")
	pods := map[string]*Pod{}
	for i := range list.Items {
		p := FromPod(&list.Items[i])
		pods[p.Namespace+"/"+p.Name] = p
	}
	return b, FromNode(load[corev1.Node](t, "node.json"), ""), pods
}

func lookup(pods map[string]*Pod) Lookup {
	return func(namespace, name string) *Pod { return pods[namespace+"/"+name] }
}

var told = []proto.MetricID{proto.CPURequest, proto.CPULimit, proto.MemoryRequest, proto.MemoryLimit, proto.EphemeralRequest, proto.EphemeralLimit, proto.RestartCount,
	proto.CPUNodeCapacity, proto.CPUNodeAllocatable, proto.MemoryNodeCapacity, proto.MemoryNodeAlloc, proto.EphemeralNodeCap, proto.EphemeralNodeAlloc}

// dump prints what enrichment writes.
func dump(b *proto.Batch) string {
	var out strings.Builder
	for i := range b.Entities {
		e := &b.Entities[i]
		fmt.Fprintf(&out, "%d %s %q parent %d flags %#x phase %d uid %q image %q hostname %q host id %q owner %s/%s labels %v\n",
			i, e.Kind, e.Name, e.Parent, uint32(e.Flags), e.Phase, e.UID, e.Image, e.Hostname, e.HostID, e.Owner.Kind, e.Owner.Name, e.Labels)
		for _, id := range told {
			if v, ok := b.Values.Get(i, id.Field()); ok {
				fmt.Fprintf(&out, "    %s %d\n", proto.MetricByID(id).Name, v)
			}
		}
		if v, ok := b.Values.Get(i, proto.FieldBirth); ok {
			fmt.Fprintf(&out, "    started %s\n", time.Unix(0, v).UTC().Format(time.RFC3339))
		}
	}
	for _, x := range b.Extras {
		fmt.Fprintf(&out, "extra of %d: %s %s\n", x.Entity, x.Name, x.Value)
	}
	return out.String()
}

func TestEnrichRealNode(t *testing.T) {
	b, n, pods := recorded(t)
	Enrich(b, n, lookup(pods))
	golden := filepath.Join("testdata", "enriched.golden")
	got := dump(b)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// table is a batch of one node with one pod and these containers.
func table(uid string, containers ...string) *proto.Batch {
	b := &proto.Batch{Node: "n"}
	b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	b.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "p", Namespace: "ns", UID: uid})
	for _, c := range containers {
		b.Values.Set(b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: 1, Name: c}), proto.CPUUsage.Field(), 1)
	}
	return b
}

func quantities(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func aPod() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u", Labels: map[string]string{"b": "2", "a": "1"}}}
	p.Spec.InitContainers = []corev1.Container{
		{Name: "setup", Resources: corev1.ResourceRequirements{Requests: quantities("cpu", "5")}},
		{Name: "proxy", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: quantities("cpu", "100m")}},
	}
	p.Spec.Containers = []corev1.Container{
		{Name: "main", Image: "repo/main:1", Resources: corev1.ResourceRequirements{Requests: quantities("cpu", "100500u", "memory", "1Gi", "nvidia.com/gpu", "2", "hugepages-2Mi", "1500m"), Limits: quantities("memory", "1500m")}},
		{Name: "idle"},
	}
	p.Status.Phase = corev1.PodRunning
	p.Status.ContainerStatuses = []corev1.ContainerStatus{
		{Name: "main", RestartCount: 3, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
		{Name: "idle", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
	}
	return p
}

func TestEnrichContainers(t *testing.T) {
	p := FromPod(aPod())
	b := table("u", "main", "setup", "stranger")
	b.Extras = []proto.Extra{{Entity: 2, Name: "custom/qps", Value: proto.Float(1)}, {Entity: 4, Name: "custom/qps", Value: proto.Float(1)}}
	Enrich(b, nil, lookup(map[string]*Pod{"ns/p": p}))
	get := func(row int, id proto.MetricID) int64 {
		v, ok := b.Values.Get(row, id.Field())
		if !ok {
			return -1
		}
		return v
	}
	check := func(what string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("millicores are rounded up", get(2, proto.CPURequest), int64(101))
	check("bytes", get(2, proto.MemoryRequest), int64(1<<30))
	check("bytes are rounded up", get(2, proto.MemoryLimit), int64(2))
	check("missing limits are zero", get(2, proto.CPULimit), int64(0))
	check("restarts", get(2, proto.RestartCount), int64(3))
	check("image", b.Entities[2].Image, "repo/main:1")
	check("main runs", b.Entities[2].Flags, proto.FlagRunning)
	check("an init container has no request", get(3, proto.CPURequest), int64(-1))
	check("an init container is flagged", b.Entities[3].Flags&proto.FlagInit, proto.FlagInit)
	check("a container that the spec does not have is left alone", get(4, proto.CPURequest), int64(-1))
	check("rows", len(b.Entities), 7) // stubs of proxy and idle
	check("a sidecar without samples", b.Entities[5].Name, "proxy")
	check("is a stub", b.Entities[5].Flags, proto.FlagStub|proto.FlagSidecar)
	check("and its request counts", get(5, proto.CPURequest), int64(100))
	check("an ended container", b.Entities[6].Flags, proto.FlagStub|proto.FlagTerminated)
	check("has its pod", b.Entities[6].Parent, int32(1))
	check("labels are sorted", fmt.Sprint(b.Entities[1].Labels), "[{a 1} {b 2}]")
	var extras []string
	for _, x := range b.Extras {
		extras = append(extras, fmt.Sprint(x.Entity, x.Name, x.Value))
	}
	check("extras", strings.Join(extras, " "), "2custom/qps1 2hugepages-2Mi/request2 2nvidia.com/gpu/request2 4custom/qps1")
}

func TestEnrichKnowsWhoIsWho(t *testing.T) {
	static := aPod()
	static.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x", "kubernetes.io/config.hash": "hash"}
	bare, told := aPod(), aPod()
	bare.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	told.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	for _, c := range []struct {
		what, uid string
		pod       *corev1.Pod
		flags     proto.Flags
		want      string
	}{
		{"the pod itself", "u", aPod(), 0, "u"},
		{"a static pod under its hash", "hash", static, proto.FlagMirror, "u"},
		{"a static pod under the hash in its mirror alone", "x", bare, proto.FlagMirror, "u"},
		{"a static pod of another manifest", "old", static, proto.FlagNotInAPI, "old"},
		{"a static pod as its kubelet tells it", "anything", told, proto.FlagMirror, "u"},
		{"a pod of which the kubelet does not know the UID", "", aPod(), 0, "u"},
		{"a successor of the same name", "predecessor", aPod(), proto.FlagNotInAPI, "predecessor"},
		{"unknown to the API server", "u", nil, proto.FlagNotInAPI, "u"},
	} {
		pods := map[string]*Pod{}
		if c.pod != nil {
			pods["ns/p"] = FromPod(c.pod)
		}
		b := table(c.uid, "main")
		Enrich(b, nil, lookup(pods))
		if e := b.Entities[1]; e.Flags != c.flags || e.UID != c.want {
			t.Errorf("%s: flags %#x, uid %s; want %#x, %s", c.what, e.Flags, e.UID, c.flags, c.want)
		}
		if _, enriched := b.Values.Get(2, proto.CPURequest.Field()); enriched != (c.flags&proto.FlagNotInAPI == 0) {
			t.Errorf("%s: enriched %t", c.what, enriched)
		}
	}
	// while the pods are not known nothing is said of them
	b := table("u", "main")
	Enrich(b, nil, nil)
	if b.Entities[1].Flags != 0 {
		t.Errorf("flags %#x though no pods are known", b.Entities[1].Flags)
	}
}

// Whatever pods the API server tells of, the batch can be encoded: what is too much is left out and counted.
func TestEnrichKeepsWithinTheCodec(t *testing.T) {
	const pods = 300
	p := aPod()
	p.Labels = map[string]string{strings.Repeat("k", 9000): strings.Repeat("v", 100_000)}
	p.Spec.Containers = nil
	for i := range 200 {
		c := corev1.Container{Name: fmt.Sprintf("c%d", i), Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}
		for j := range 2 {
			c.Resources.Requests[corev1.ResourceName(fmt.Sprintf("example.com/r%d", j))] = resource.MustParse("1")
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	for j := range 2 * proto.MaxExtras {
		p.Spec.Containers[7].Resources.Requests[corev1.ResourceName(fmt.Sprintf("example.com/x%d", j))] = resource.MustParse("1")
	}
	known := FromPod(p)
	b := &proto.Batch{Cluster: "c", Node: "n", Tick: 1}
	b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	for i := range pods {
		row := b.AddEntity(proto.Entity{Kind: proto.KindPod, Name: fmt.Sprint(i), Namespace: "ns", UID: "u"})
		b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: "c7"})
	}
	Enrich(b, nil, func(string, string) *Pod { return known })
	if want := 1 + 2*pods + maxStubs; len(b.Entities) != want || len(b.Extras) != maxExtended {
		t.Errorf("%d rows and %d extras, want %d and %d", len(b.Entities), len(b.Extras), want, maxExtended)
	}
	if b.Dropped < pods*199-maxStubs {
		t.Errorf("%d are counted as left out", b.Dropped)
	}
	perRow := map[int32]int{}
	for _, x := range b.Extras {
		if perRow[x.Entity]++; perRow[x.Entity] > proto.MaxExtras {
			t.Fatalf("row %d has more than %d extras", x.Entity, proto.MaxExtras)
		}
	}
	if data, err := proto.NewEncoder().Batch(b); err != nil {
		t.Error(err)
	} else if err := proto.NewDecoder().Batch(data, &proto.Batch{}); err != nil {
		t.Error(err)
	}
}

func TestFromNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{"cloud/id": "i-123"}}}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.2"},
		{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00::7"}, {Type: corev1.NodeInternalIP, Address: "nonsense"},
		{Type: corev1.NodeHostName, Address: "first"}, {Type: corev1.NodeHostName, Address: ""}, {Type: corev1.NodeHostName, Address: "last"},
	}
	n.Spec.Unschedulable = true
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	n.Status.Capacity, n.Status.Allocatable = quantities("cpu", "1500m", "memory", "4Gi", "ephemeral-storage", "1Gi"), quantities("cpu", "1", "memory", "3Gi")
	k := FromNode(n, "cloud/id")
	if k.Address != "fd00::7" || k.Hostname != "last" || k.HostID != "i-123" || k.Flags != proto.FlagUnschedulable|proto.FlagNotReady {
		t.Errorf("%+v", k)
	}
	if k.CPUCapacity != 1500 || k.CPUAllocatable != 1000 || k.MemoryAllocatable != 3<<30 || k.Ephemeral {
		t.Errorf("%+v", k)
	}
	// What is not given is 0 and not ready, and is what the batch says.
	b := table("u")
	Enrich(b, FromNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, ""), nil)
	for _, id := range []proto.MetricID{proto.CPUNodeCapacity, proto.CPUNodeAllocatable, proto.MemoryNodeCapacity, proto.MemoryNodeAlloc} {
		if v, ok := b.Values.Get(0, id.Field()); !ok || v != 0 {
			t.Errorf("a node that gives nothing has %s %d, %t", proto.MetricByID(id).Name, v, ok)
		}
	}
	if _, ok := b.Values.Get(0, proto.EphemeralNodeAlloc.Field()); ok || b.Entities[0].Flags != proto.FlagNotReady {
		t.Errorf("a node that gives nothing has ephemeral storage %t, flags %#x", ok, b.Entities[0].Flags)
	}
	n.Status.Addresses = n.Status.Addresses[:2]
	if k := FromNode(n, ""); k.Address != "203.0.113.1" || k.Hostname != "n" || k.HostID != "" {
		t.Errorf("%+v", k)
	}
}

func startClient(t testing.TB, api *kubetest.Server) *kube.Client {
	t.Helper()
	c, err := kube.NewClient(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func until(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func podOn(node, name, owner string) *corev1.Pod {
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: owner, Controller: &yes}}}}
	p.Spec.NodeName = node
	p.Status.Phase = corev1.PodRunning
	return p
}

func TestAllFollowsTheCluster(t *testing.T) {
	api := kubetest.Start(t)
	api.Put("/api/v1/nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	api.Put("/api/v1/pods", podOn("n1", "a", "web-1"), podOn("n1", "b", "web-1"))
	a := NewAll(startClient(t, api), slog.New(slog.DiscardHandler), "")
	if a.Pods("n1") != nil {
		t.Error("pods are known before they were read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := a.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	owners := func() (out []string) {
		a.Owners(func(ns string, o proto.Owner) { out = append(out, ns+"/"+o.Kind+"/"+o.Name) })
		slices.Sort(out)
		return out
	}
	if a.Node("n1") == nil || a.Pods("n1")("ns", "a") == nil || a.Pods("n2")("ns", "a") != nil {
		t.Error("the first state is not there")
	}
	if got := owners(); !slices.Equal(got, []string{"ns/ReplicaSet/web-1"}) {
		t.Errorf("owners %v", got)
	}
	revision := a.OwnersRevision()
	api.Delete("/api/v1/pods", "ns", "a")
	until(t, "pod a is gone", func() bool { return a.Pods("n1")("ns", "a") == nil })
	if a.OwnersRevision() != revision {
		t.Error("the owners changed though one pod of web-1 is left")
	}
	done := podOn("n1", "b", "web-1")
	done.Status.Phase = corev1.PodSucceeded
	api.Put("/api/v1/pods", done)
	until(t, "no live pod has an owner", func() bool { return len(owners()) == 0 })
	if a.Pods("n1")("ns", "b") == nil {
		t.Error("an ended pod is forgotten though the API server has it")
	}
	// a node leaves and comes back as another machine
	nodes := a.NodesRevision()
	api.Delete("/api/v1/nodes", "", "n1")
	until(t, "node n1 is gone", func() bool { return a.Node("n1") == nil })
	larger := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "again"}}
	larger.Status.Capacity = quantities("cpu", "64")
	api.Put("/api/v1/nodes", larger)
	until(t, "node n1 is back", func() bool { return a.Node("n1") != nil })
	if n := a.Node("n1"); n.CPUCapacity != 64000 || n.UID != "again" || a.NodesRevision() < nodes+2 {
		t.Errorf("the node that came back is %+v, revision %d after %d", n, a.NodesRevision(), nodes)
	}
	// the pod comes back under its name on another node
	api.Put("/api/v1/pods", podOn("n2", "b", "web-2"))
	until(t, "pod b is on n2", func() bool { return a.Pods("n2")("ns", "b") != nil })
	if a.Pods("n1")("ns", "b") != nil {
		t.Error("pod b is on both nodes")
	}
}

func TestOwnReadsOnlyItsNode(t *testing.T) {
	api := kubetest.Start(t)
	api.Put("/api/v1/nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}})
	api.Put("/api/v1/pods", podOn("n1", "a", "x"), podOn("n2", "b", "x"))
	o := NewOwn(startClient(t, api), slog.New(slog.DiscardHandler), OwnConfig{Name: "n1", Refresh: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { o.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := o.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	pods := o.Pods("n1")
	if o.Node("n1").UID != "u1" || pods("ns", "a") == nil || pods("ns", "b") != nil || o.Node("n2") != nil || o.Pods("n2") != nil {
		t.Error("not its own node and pods alone")
	}
}

func TestOwnTakesPodsOfTheKubelet(t *testing.T) {
	list, err := os.ReadFile(filepath.Join("testdata", "pods.json"))
	if err != nil {
		t.Fatal(err)
	}
	o := NewOwn(nil, slog.New(slog.DiscardHandler), OwnConfig{Name: "node-0", PodsEvery: time.Hour, Source: func(context.Context) ([]byte, error) { return list, nil }})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { o.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := o.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	b, _, pods := recorded(t)
	Enrich(b, o.Node("node-0"), o.Pods("node-0"))
	other, _, _ := recorded(t)
	Enrich(other, nil, lookup(pods))
	if dump(b) != dump(other) {
		t.Error("enrichment differs from that of the API server's pods")
	}
}

func TestRefusedWatchIsToldOnceWithTheWayOut(t *testing.T) {
	api := kubetest.Start(t)
	api.Refuse("/api/v1/pods", 403)
	var lines lineCounter
	a := NewAll(startClient(t, api), slog.New(&lines), "")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { a.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	until(t, "asked four times", func() bool { return api.Asked("/api/v1/pods") >= 4 })
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "grant our ServiceAccount the verbs list, watch on pods") {
		t.Errorf("%v", err)
	}
	if n := lines.count("cannot be read"); n != 1 {
		t.Errorf("told %d times: %v", n, lines.lines)
	}
	api.Refuse("/api/v1/pods", 0)
	until(t, "readable again", func() bool { return a.Err() == nil && a.Pods("n") != nil })
	until(t, "it is said", func() bool { return lines.count("can be read again") > 0 })
	if n := lines.count("can be read again"); n != 1 {
		t.Errorf("the recovery is told %d times: %v", n, lines.lines)
	}
}

type lineCounter struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineCounter) Enabled(context.Context, slog.Level) bool { return true }
func (l *lineCounter) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lineCounter) WithGroup(string) slog.Handler            { return l }
func (l *lineCounter) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *lineCounter) count(words string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, words) {
			n++
		}
	}
	return n
}
