package scraper

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// recorded is the answer of a real kubelet, under the name of another node.
func recorded(t testing.TB, node string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("kubelet", "testdata", "summary-0.json"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(data, []byte(`"nodeName": "node-0"`), strconv.AppendQuote([]byte(`"nodeName": `), node))
}

// recordedMetrics is what the same kubelet told at a path of metrics; no node is named there.
func recordedMetrics(t testing.TB, path string) []byte {
	t.Helper()
	name := map[string]string{"/metrics/cadvisor": "cadvisor-0.prom.gz", "/metrics/resource": "resource-0.prom"}[path]
	data, err := os.ReadFile(filepath.Join("kubelet", "testdata", name))
	if err == nil && strings.HasSuffix(name, ".gz") {
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(data)); err == nil {
			data, err = io.ReadAll(z)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// fakeKubelet answers for one node, in the way that mode says.
type fakeKubelet struct {
	*httptest.Server
	node string

	mu    sync.Mutex
	mode  string
	asked int
}

func startKubelet(t testing.TB, node, mode string) *fakeKubelet {
	t.Helper()
	k := &fakeKubelet{node: node, mode: mode}
	answers := map[string][]byte{"/stats/summary": recorded(t, node), "/metrics/cadvisor": recordedMetrics(t, "/metrics/cadvisor"), "/metrics/resource": recordedMetrics(t, "/metrics/resource")}
	k.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		mode := k.mode
		k.asked++
		k.mu.Unlock()
		whole, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.Header.Get("Authorization") != "Bearer a-token" && mode == "ok" {
			mode = "401"
		}
		switch mode {
		case "401":
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
		case "403":
			http.Error(w, "Forbidden (user=system:serviceaccount:demo:none, verb=get, resource=nodes, subresource(s)=[stats])", http.StatusForbidden)
		case "404":
			http.NotFound(w, r)
		case "500":
			http.Error(w, "runtime is down", http.StatusInternalServerError)
		case "hang":
			<-r.Context().Done()
		case "garbage":
			_, _ = io.WriteString(w, "<html>not here</html>")
		case "half":
			w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
			_, _ = w.Write(whole[:len(whole)/2])
		case "cut":
			_, _ = w.Write(whole[:len(whole)/2]) // a complete answer that is half of the JSON
		case "other":
			_, _ = w.Write(recorded(t, "somebody-else"))
		case "gzip":
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(whole)
			_ = z.Close()
		default:
			_, _ = w.Write(whole)
		}
	}))
	k.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	k.StartTLS()
	t.Cleanup(func() {
		k.CloseClientConnections()
		k.Close()
	})
	return k
}

func (k *fakeKubelet) is(mode string) {
	k.mu.Lock()
	k.mode = mode
	k.mu.Unlock()
}

func (k *fakeKubelet) port() int32 {
	u, _ := url.Parse(k.URL)
	p, _ := strconv.Atoi(u.Port())
	return int32(p) //nolint:gosec // a port
}

func nodeObject(name string, port int32) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-of-" + name)}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = port
	return n
}

// records is a log handler that keeps lines.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	r.mu.Lock()
	r.lines = append(r.lines, line)
	r.mu.Unlock()
	return nil
}

func (r *records) with(words ...string) (found []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		all := true
		for _, w := range words {
			all = all && strings.Contains(l, w)
		}
		if all {
			found = append(found, l)
		}
	}
	return found
}

type rig struct {
	api      *kubetest.Server
	bus      *bustest.Server
	conn     *bus.Conn
	logs     *records
	registry *prometheus.Registry
	health   *daemon.Health
	cfg      Config
}

// newRig has an API server with kube-system, a bus with the streams of cluster c1, and a
// configuration of the central role that trusts the test servers' certificate.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{api: kubetest.Start(t), logs: &records{}, registry: prometheus.NewRegistry(), health: daemon.NewHealth()}
	r.api.Put("/api/v1/namespaces", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "cluster-uid"}})
	r.bus = bustest.Start(t)
	r.conn = r.bus.Conn(t)
	bustest.Provision(t, r.conn, "c1")
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	some := httptest.NewTLSServer(http.NotFoundHandler())
	defer some.Close()
	token := filepath.Join(dir, "token")
	if err := errors.Join(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: some.Certificate().Raw}), 0o600),
		os.WriteFile(token, []byte("a-token\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	r.cfg = DefaultConfig()
	r.cfg.Cluster = "c1"
	r.cfg.Source = "kubernetes.summary_api:" + r.api.URL + "?inClusterConfig=false"
	r.cfg.Resolution = 5 * time.Second
	r.cfg.Kubelet.CAFile, r.cfg.Kubelet.TokenFile = ca, token
	return r
}

func (r *rig) scraper(t testing.TB) *Scraper {
	t.Helper()
	s, err := New(r.cfg, Deps{Bus: r.conn, Log: slog.New(r.logs), Registry: r.registry, Health: r.health})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// batches reads what is on SAMPLES of c1 until n batches have come.
func (r *rig) batches(t testing.TB, n int) []*proto.Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bustest.Timeout)
	defer cancel()
	dec := proto.NewDecoder()
	var got []*proto.Batch
	if n == 0 {
		return nil
	}
	for d, err := range r.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream("c1"), Subjects: []string{bus.SamplesFilter("c1")}}) {
		if err != nil {
			t.Fatalf("after %d of %d batches: %v", len(got), n, err)
		}
		b := &proto.Batch{}
		if err := dec.Batch(d.Data, b); err != nil {
			t.Fatal(err)
		}
		if want := bus.SamplesSubject(b.Cluster, b.Node); d.Subject != want {
			t.Errorf("batch of node %q on %q, want %q", b.Node, d.Subject, want)
		}
		if got = append(got, b); len(got) == n {
			return got
		}
	}
	t.Fatalf("%d of %d batches came", len(got), n)
	return nil
}

// until waits for a fact.
func until(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(bustest.Timeout); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestOneNodesFailureCostsOnlyThatNode(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.Resolution = 20 * time.Second // kubelets that are well have ten seconds to answer
	failures := []struct{ mode, reason, words string }{
		{"refuse", "unreachable", "connection refused"},
		{"hang", "timeout", "deadline"},
		{"401", "unauthorized", "does not know who we are"},
		{"403", "forbidden", "get nodes/stats"},
		{"404", "not_found", "no such path"},
		{"500", "server_error", "runtime is down"},
		{"garbage", "bad_answer", "not a JSON object"},
		{"half", "half_answer", "broke off"},
		{"cut", "half_answer", "decode"},
		{"other", "other_node", "somebody-else"},
		{"plain", "tls", "does not speak TLS"},
		{"address", "bad_address", "no usable address"},
	}
	kubelets := map[string]*fakeKubelet{}
	for _, f := range failures {
		name := f.mode + ".example.com"
		k := startKubelet(t, name, f.mode)
		kubelets[name] = k
		n := nodeObject(name, k.port())
		switch f.mode {
		case "refuse":
			_, port, err := net.SplitHostPort(bustest.FreeAddr(t))
			if err != nil {
				t.Fatal(err)
			}
			closed, err := strconv.ParseInt(port, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(closed)
		case "plain":
			p := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(p.Close)
			n.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(p.Listener.Addr().(*net.TCPAddr).Port)
		case "address":
			n.Status.Addresses = nil
		}
		r.api.Put("/api/v1/nodes", n)
	}
	for _, mode := range []string{"ok", "gzip"} {
		name := mode + ".example.com"
		kubelets[name] = startKubelet(t, name, mode)
		r.api.Put("/api/v1/nodes", nodeObject(name, kubelets[name].port()))
	}
	s := r.scraper(t)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.all.Run(ctx) })
	if err := s.all.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	targets := s.targets()
	if len(targets) != len(kubelets) {
		t.Fatalf("%d nodes, want %d", len(targets), len(kubelets))
	}
	tick := proto.TickAt(time.Now(), s.cfg.Resolution)
	round := func() {
		var wg sync.WaitGroup
		for _, target := range targets {
			wg.Go(func() { s.once(ctx, ctx, target, tick) })
		}
		wg.Wait()
		tick = tick.Add(1, s.cfg.Resolution)
	}
	round()
	round()
	for _, f := range failures {
		name := f.mode + ".example.com"
		lines := r.logs.with("kubelet cannot be read", "node="+name, "reason="+f.reason, f.words)
		if len(lines) != 1 || len(r.logs.with("kubelet cannot be read", "node="+name)) != 1 {
			t.Errorf("%s: two failures are told as %q, want one line with %q and %q", f.mode, r.logs.with("node="+name), f.reason, f.words)
		}
	}
	for _, b := range r.batches(t, 4) {
		if !strings.HasPrefix(b.Node, "ok.") && !strings.HasPrefix(b.Node, "gzip.") {
			t.Errorf("batch of node %q", b.Node)
		}
	}
	if got := testutil.ToFloat64(s.telemetry.scrapes.WithLabelValues("ok")); got != 4 {
		t.Errorf("%v good scrapes, want 4", got)
	}
	if got := testutil.ToFloat64(s.telemetry.scrapes.WithLabelValues("half_answer")); got != 4 {
		t.Errorf("%v half answers, want 4", got)
	}
	if s.telemetry.failed.Load() != int64(len(failures)) {
		t.Errorf("%d nodes failing, want %d", s.telemetry.failed.Load(), len(failures))
	}
	// another reason is a change of state; being well again is one too
	kubelets["500.example.com"].is("403")
	kubelets["hang.example.com"].is("ok")
	round()
	if n := len(r.logs.with("kubelet cannot be read", "node=500.example.com", "reason=forbidden")); n != 1 {
		t.Errorf("the new reason is told %d times", n)
	}
	if n := len(r.logs.with("kubelet can be read again", "node=hang.example.com")); n != 1 {
		t.Errorf("the recovery is told %d times", n)
	}
	cancel()
	running.Wait()
	s.backlog.wait()
	s.kubelets.Close()
}

func TestCentralRoleFillsSamples(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := startKubelet(t, "node-0", "ok")
	n := nodeObject("node-0", k.port())
	r.api.Put("/api/v1/nodes", n)
	// the pods of the recorded cluster
	data, err := os.ReadFile(filepath.Join("node", "testdata", "pods.json"))
	if err != nil {
		t.Fatal(err)
	}
	var pods corev1.PodList
	if err := json.Unmarshal(data, &pods); err != nil {
		t.Fatal(err)
	}
	for i := range pods.Items {
		r.api.Put("/api/v1/pods", &pods.Items[i])
	}
	s := r.scraper(t)
	if err := r.health.Check(); err == nil || !strings.Contains(err.Error(), "no batch has been published yet") {
		t.Errorf("ready before anything: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done, began := make(chan error, 1), time.Now()
	go func() { done <- s.Run(ctx) }()
	b := r.batches(t, 1)[0]
	if b.Cluster != "c1" || b.Node != "node-0" || b.Resolution != 5*time.Second || b.Source != "kubernetes.summary_api" || b.Tick != proto.TickAt(b.Tick.Time(), b.Resolution) {
		t.Errorf("batch %+v", b)
	}
	if at := time.Unix(0, b.Scraped); at.Before(began) || at.After(time.Now()) {
		t.Errorf("scraped at %s, it began at %s", at, began)
	}
	if b.Entities[0].UID != "uid-of-node-0" {
		t.Errorf("the node is not enriched: %+v", b.Entities[0])
	}
	labelled := 0
	for _, e := range b.Entities {
		if e.Kind == proto.KindPod && e.Phase == proto.PhaseRunning && e.Owner.Kind != "" && len(e.Labels) > 0 {
			labelled++
		}
	}
	if labelled == 0 {
		t.Error("no pod is enriched")
	}
	until(t, "ready", func() bool { return r.health.Check() == nil })
	clusters, err := r.conn.Clusters(t.Context())
	if err != nil || len(clusters) != 1 || clusters[0].UID != "cluster-uid" || clusters[0].Resolution != 5*time.Second {
		t.Errorf("registered %+v, %v", clusters, err)
	}

	// without the bus nothing is lost, and /readyz says why
	r.bus.Stop()
	k.mu.Lock()
	asked := k.asked
	k.mu.Unlock()
	until(t, "scraped without a bus", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.asked > asked && s.backlog.size() > 0
	})
	if err := s.bus.Status(); err == nil {
		t.Error("the bus is said to be up")
	}
	r.bus.Up()
	got := r.batches(t, 2)
	if got[1].Tick <= got[0].Tick {
		t.Errorf("ticks %s, %s", got[0].Tick, got[1].Tick)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("orderly stop: %v", err)
	}
}

func TestOtherClustersNameEndsRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.conn.Register(t.Context(), "c1", bus.ClusterInfo{UID: "another", Resolution: time.Minute}); err != nil {
		t.Fatal(err)
	}
	err := r.scraper(t).Run(t.Context())
	if !errors.Is(err, bus.ErrOtherCluster) {
		t.Fatalf("%v, want ErrOtherCluster", err)
	}
	for _, words := range []string{"c1", "another", "cluster-uid"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%v does not name %s", err, words)
		}
	}
}

func TestNodeRoleScrapesItsOwnKubelet(t *testing.T) {
	t.Parallel()
	for _, source := range kubelet.Sources() {
		t.Run(string(source), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			k := startKubelet(t, "node-0", "ok")
			r.api.Put("/api/v1/nodes", nodeObject("node-0", k.port()), nodeObject("node-1", 1))
			r.cfg.Role, r.cfg.NodeName = RoleNode, "node-0"
			r.cfg.Source = strings.Replace(r.cfg.Source, string(kubelet.SummarySource), string(source), 1)
			s := r.scraper(t)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			for _, b := range r.batches(t, 2) {
				if b.Node != "node-0" || b.Entities[0].UID != "uid-of-node-0" || b.Source != string(source) {
					t.Errorf("batch of node %q from %s, %+v", b.Node, b.Source, b.Entities[0])
				}
				if told := b.Entities[0].Flags&proto.FlagSchedulable != 0; told != (source == kubelet.CAdvisorSource) {
					t.Errorf("whether it can be scheduled to is told: %t", told)
				}
				containers := 0
				for i := range b.Entities {
					if _, ok := b.Values.Get(i, proto.CPUUsage.Field()); ok && b.Entities[i].Kind == proto.KindContainer {
						containers++
					}
				}
				if containers != 8 {
					t.Errorf("%d containers of 8 are measured", containers)
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			for _, path := range []string{"/api/v1/namespaces", "/apis/apps/v1/replicasets", "/apis/batch/v1/jobs"} {
				if n := r.api.Asked(path); n != 0 {
					t.Errorf("the node role asked for %s %d times", path, n)
				}
			}
			if clusters, err := r.conn.Clusters(t.Context()); err != nil || len(clusters) != 0 {
				t.Errorf("the node role registered %+v (%v)", clusters, err)
			}
			said := len(r.logs.with("/metrics/cadvisor", "node=node-0"))
			if want := map[bool]int{true: 1, false: 0}[source == kubelet.CAdvisorSource]; said != want {
				t.Errorf("the fallback is told %d times, want %d: %q", said, want, r.logs.with("/metrics/cadvisor"))
			}
		})
	}
}

func TestOffsetsSpreadNodes(t *testing.T) {
	const nodes, slots = 5000, 10
	spread := proto.Spread(15 * time.Second)
	var hits [slots]int
	for i := range nodes {
		o := Offset(fmt.Sprintf("node-%04d", i), 15*time.Second)
		if o < 0 || o >= spread {
			t.Fatalf("offset %s of spread %s", o, spread)
		}
		hits[int(o*slots/spread)]++
	}
	for i, n := range hits {
		if n < nodes/slots*8/10 || n > nodes/slots*12/10 {
			t.Errorf("tenth %d of the spread has %d of %d nodes", i, n, nodes)
		}
	}
}
