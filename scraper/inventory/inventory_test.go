package inventory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }

func owned(namespace, name, kind, owner string) metav1.ObjectMeta {
	yes := true
	m := metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name)}
	if owner != "" {
		m.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &yes}}
	}
	return m
}

func cluster(t testing.TB) *kubetest.Server {
	t.Helper()
	api := kubetest.Start(t)
	api.Put("/api/v1/namespaces",
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "cluster-uid"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "u-shop", Labels: map[string]string{"team": "b", "a": "1"}}})
	notReady := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", UID: "u2"}}
	notReady.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse}}
	api.Put("/api/v1/nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1"}}, notReady)
	api.Put("/apis/apps/v1/replicasets", meta(owned("shop", "web-1", "Deployment", "web")), meta(owned("shop", "old-1", "Deployment", "old")), meta(owned("shop", "bare", "", "")))
	api.Put("/apis/batch/v1/jobs", meta(owned("shop", "nightly-1", "CronJob", "nightly")))
	ended := pod("done", "ReplicaSet", "old-1")
	ended.Status.Phase = corev1.PodSucceeded
	api.Put("/api/v1/pods", pod("w1", "ReplicaSet", "web-1"), pod("w2", "ReplicaSet", "web-1"), pod("j", "Job", "nightly-1"), pod("d", "DaemonSet", "agent"), pod("b", "ReplicaSet", "bare"), ended)
	return api
}

func meta(m metav1.ObjectMeta) runtime.Object { return &metav1.PartialObjectMetadata{ObjectMeta: m} }

func pod(name, kind, owner string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: owned("shop", name, kind, owner)}
	p.Status.Phase = corev1.PodRunning
	return p
}

type publisher struct {
	*Inventory
	stop func()
	done chan error
}

func start(t testing.TB, api *kubetest.Server, conn *bus.Conn, owner string) *publisher {
	t.Helper()
	c, err := kube.NewClient(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	mirrors := OwnMirrors(c, log)
	v := New(Config{Cluster: "c1", Owner: owner, Resolution: 5 * time.Second},
		Deps{Bus: conn, Publisher: conn.Publisher(bus.PublisherConfig{}), Client: c, Cluster: mirrors, Log: log})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { mirrors.Run(ctx) })
	p := &publisher{Inventory: v, done: make(chan error, 1)}
	go func() {
		err := v.Run(ctx)
		wg.Wait()
		p.done <- err
	}()
	var once sync.Once
	p.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-p.done; err != nil {
				t.Errorf("inventory of %s: %v", owner, err)
			}
		})
	}
	t.Cleanup(p.stop)
	return p
}

// follow reads inventories until it has n of them.
func follow(t testing.TB, conn *bus.Conn, n int) (got []proto.Inventory) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	defer cancel()
	dec := proto.NewDecoder()
	for d, err := range conn.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream("c1"), Subjects: []string{bus.InventoryFilter("c1")}}) {
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(got), n, err)
		}
		var v proto.Inventory
		if err := dec.Inventory(d.Data, &v); err != nil {
			t.Fatal(err)
		}
		if got = append(got, v); len(got) == n {
			return got
		}
	}
	t.Fatalf("%d of %d inventories came", len(got), n)
	return nil
}

func setup(t *testing.T) (*kubetest.Server, *bustest.Server, *bus.Conn) {
	t.Helper()
	b := bustest.Start(t)
	conn := b.Conn(t)
	bustest.Provision(t, conn, "c1")
	return cluster(t), b, conn
}

func TestInventoryIsPublishedWhole(t *testing.T) {
	api, _, conn := setup(t)
	p := start(t, api, conn, "me")
	bySubject := map[proto.InventorySubject]proto.Inventory{}
	for _, v := range follow(t, conn, 3) {
		bySubject[v.Subject] = v
		if v.Cluster != "c1" || v.Parts != 1 || v.Part != 0 || v.Resolution != 5*time.Second || v.Grace != proto.Grace(5*time.Second) || v.Revision == 0 {
			t.Errorf("%+v", v)
		}
	}
	if got := fmt.Sprint(bySubject[proto.InventoryNodes].Nodes); got != "[{n1 u1} {n2 u2}]" { // not ready, expected all the same
		t.Errorf("nodes %s", got)
	}
	if got := fmt.Sprint(bySubject[proto.InventoryNamespaces].Namespaces); got != "[{kube-system cluster-uid []} {shop u-shop [{a 1} {team b}]}]" {
		t.Errorf("namespaces %s", got)
	}
	if got := fmt.Sprint(bySubject[proto.InventoryOwners].Owners); got != "[{shop {Job nightly-1} {CronJob nightly}} {shop {ReplicaSet web-1} {Deployment web}}]" {
		t.Errorf("owners %s", got)
	}
	for end := time.Now().Add(bustest.Timeout); p.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(p.Ready())
		}
	}
	info, err := conn.Clusters(t.Context())
	if err != nil || len(info) != 1 || info[0].UID != "cluster-uid" {
		t.Errorf("registered %+v, %v", info, err)
	}
	// only what changed goes out again, under a higher revision
	api.Put("/api/v1/nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3", UID: "u3"}})
	all := follow(t, conn, 4)
	if last := all[3]; last.Subject != proto.InventoryNodes || len(last.Nodes) != 3 || last.Revision <= bySubject[proto.InventoryNodes].Revision {
		t.Errorf("after the change %+v", last)
	}
}

func TestOnlyOnePublishesAndTheOtherTakesOver(t *testing.T) {
	api, b, conn := setup(t)
	first := start(t, api, conn, "first")
	before := follow(t, conn, 3)
	second := start(t, api, b.Conn(t), "second")
	for end := time.Now().Add(bustest.Timeout); second.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(second.Ready()) // standing by is ready
		}
	}
	first.stop()
	after := follow(t, conn, 6)[3:]
	for _, v := range after {
		i := slices.IndexFunc(before, func(o proto.Inventory) bool { return o.Subject == v.Subject })
		if i < 0 || v.Revision <= before[i].Revision {
			t.Errorf("the successor's revision %d is not above %d", v.Revision, before[i].Revision)
		}
	}
	leases, err := conn.Leases(t.Context(), "")
	if err != nil || !slices.ContainsFunc(leases, func(l bus.LeaseState) bool { return l.Key == bus.InventoryLease("c1") && l.Owner == "second" }) {
		t.Errorf("leases %+v, %v", leases, err)
	}
}

func TestInventoryGoesOnWithoutPermissionForOwners(t *testing.T) {
	api, _, conn := setup(t)
	api.Refuse("/apis/apps/v1/replicasets", 403)
	start(t, api, conn, "me")
	for _, v := range follow(t, conn, 3) {
		if v.Subject == proto.InventoryOwners {
			if got := fmt.Sprint(v.Owners); got != "[{shop {Job nightly-1} {CronJob nightly}}]" {
				t.Errorf("owners %s", got)
			}
		}
	}
}

func TestReadySaysWhatIsMissing(t *testing.T) {
	api, _, conn := setup(t)
	api.Refuse("/api/v1/namespaces", 403)
	p := start(t, api, conn, "me")
	for end := time.Now().Add(bustest.Timeout); ; time.Sleep(time.Millisecond) {
		err := p.Ready()
		if err != nil && strings.Contains(err.Error(), "grant our ServiceAccount the verbs get on namespaces") {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// through sends rows as parts through the codec and returns how many parts and rows come out.
func through(t testing.TB, parts []proto.Inventory) (rows int) {
	t.Helper()
	for i := range parts {
		p := &parts[i]
		p.Cluster, p.Part, p.Parts = "c", uint32(i), uint32(len(parts))
		data, err := proto.NewEncoder().Inventory(p)
		if err != nil {
			t.Fatal(err)
		}
		var back proto.Inventory
		if err := proto.NewDecoder().Inventory(data, &back); err != nil {
			t.Fatal(err)
		}
		rows += len(back.Namespaces) + len(back.Owners)
	}
	return rows
}

func TestLargeInventoryTravelsInParts(t *testing.T) {
	rows := make([]int, 2*proto.MaxPartRows+1)
	small := func(*int) int { return 1 }
	parts := split(rows, small, func(p *proto.Inventory, r []int) { p.Part = uint32(len(r)) })
	if len(parts) != 3 || parts[2].Part != 1 {
		t.Errorf("%d parts, the last with %d rows", len(parts), parts[len(parts)-1].Part)
	}
	if parts := split([]int{}, small, func(*proto.Inventory, []int) {}); len(parts) != 1 {
		t.Errorf("nothing travels in %d parts, want one empty one", len(parts))
	}
	if parts := split(rows[:3], func(*int) int { return 2 * maxPartBytes }, func(*proto.Inventory, []int) {}); len(parts) != 3 {
		t.Errorf("three large rows travel in %d parts, want 3", len(parts))
	}
	// more than any API server has, of what does not compress
	noise := rand.New(rand.NewPCG(1, 2))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(noise.Uint32())
		}
		return string(b)
	}
	var spaces []proto.InventoryNamespace
	for i := range 40 {
		m := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Labels: map[string]string{}}}
		for j := range 5000 {
			m.Labels[fmt.Sprint(j)] = word(i * 10)
		}
		spaces = append(spaces, namespaceOf(m))
	}
	if n := through(t, splitSpaces(spaces)); n != len(spaces) {
		t.Errorf("%d of %d namespaces arrive", n, len(spaces))
	}
}

// body answers every request with the same bytes.
type body []byte

func (b body) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b))}, nil
}

// FuzzMetadata gives the client an API server that answers anything where metadata was asked for.
func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"web-1","namespace":"shop","uid":"u","labels":{"b":"2","a":"1"},` +
		`"ownerReferences":[{"kind":"Deployment","name":"web","controller":true},{"kind":"X","name":"x"}]}}`))
	f.Add([]byte(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"","ownerReferences":[{"controller":true}]}}`))
	f.Add([]byte(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"n"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := kube.NewClient(&rest.Config{Host: "http://api.example.com", Transport: body(data)})
		if err != nil {
			t.Fatal(err)
		}
		var m metav1.PartialObjectMetadata
		if c.GetMetadata(t.Context(), "namespaces", "n", &m) != nil {
			return
		}
		ns := namespaceOf(&m)
		if !slices.IsSortedFunc(ns.Labels, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) }) {
			t.Fatalf("labels are not sorted: %v", ns.Labels)
		}
		if n := through(t, splitSpaces([]proto.InventoryNamespace{ns})); n != 1 {
			t.Fatalf("%d namespaces arrive", n)
		}
		o := proto.InventoryOwner{Namespace: m.Namespace, Object: proto.Owner{Kind: "ReplicaSet", Name: m.Name}, Owner: Controller(m.OwnerReferences)}
		if n := through(t, []proto.Inventory{{Owners: []proto.InventoryOwner{o}}}); n != 1 {
			t.Fatalf("%d owners arrive", n)
		}
	})
}
