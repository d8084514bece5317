package resourceapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/rest"
	"k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/heapstream/heapstream/apigw/auth/authtest"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("gopkg.in/natefinch/lumberjack%2ev2.(*Logger).millRun")) // of audit logs: it has no end
}

// deadline is what nothing here takes on the slowest machine.
const deadline = 2 * time.Minute

var requestTime = time.Date(2026, 2, 3, 4, 6, 0, 0, time.UTC)

// shop is a small cluster: two nodes, three pods.
func shop() *fake {
	at := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	return &fake{
		seq: 42,
		nodes: []*view.NodeMetrics{
			{
				Name: "n1", Labels: []proto.Label{{Key: "kubernetes.io/os", Value: "linux"}, {Key: "zone", Value: "a"}},
				Time: at, Window: 15 * time.Second, Seq: 41,
				Usage: view.Usage{CPU: 1_234_567_890, Memory: 5 << 30, Swap: 3 << 20, HasSwap: true},
			},
			{
				Name: "n2", Labels: []proto.Label{{Key: "kubernetes.io/os", Value: "linux"}, {Key: "zone", Value: "b"}},
				Time: at.Add(time.Second), Window: 15250 * time.Millisecond, Seq: 42,
				Usage: view.Usage{CPU: 250_000_000, Memory: 1_000_000_001},
			},
		},
		pods: []*view.PodMetrics{
			{
				Namespace: "kube-system", Name: "dns", Labels: []proto.Label{{Key: "app", Value: "dns"}},
				Time: at, Window: 12 * time.Second, Seq: 41,
				Containers: []view.ContainerMetrics{{Name: "dns", Usage: view.Usage{CPU: 0, Memory: 12 << 20}}},
			},
			{
				Namespace: "shop", Name: "cart", Labels: []proto.Label{{Key: "app", Value: "cart"}, {Key: "tier", Value: "web"}},
				Time: at, Window: 15 * time.Second, Seq: 42,
				Containers: []view.ContainerMetrics{
					{Name: "app", Usage: view.Usage{CPU: 10_000_001, Memory: 64 << 20, Swap: 4096, HasSwap: true}},
					{Name: "proxy", Usage: view.Usage{CPU: 2_000_000, Memory: 16 << 20, HasSwap: true}},
				},
			},
			{
				Namespace: "shop", Name: "till", Labels: []proto.Label{{Key: "app", Value: "till"}, {Key: "tier", Value: "back"}},
				Time: at, Window: 15 * time.Second, Seq: 42,
				Containers: []view.ContainerMetrics{{Name: "app", Usage: view.Usage{CPU: 3_000_000_000, Memory: 2 << 30}}},
			},
		},
	}
}

// served is a running server and the API server it asks.
type served struct {
	t   testing.TB
	url string
	api *authtest.APIServer
}

// start serves clusters[""] and the others until the test ends, and returns when the server is ready unless the
// view is not. alter may be nil.
func start(t testing.TB, clusters map[string]Source, alter func(*Config, *Deps, *authtest.APIServer)) *served {
	t.Helper()
	api := authtest.Start(t)
	api.Users = map[string]authenticationv1.UserInfo{
		"alice": {Username: "alice", UID: "1", Groups: []string{"devs"}},
		"root":  {Username: "root", Groups: []string{"system:masters"}},
	}
	api.Allow = func(s authorizationv1.SubjectAccessReviewSpec) bool { return s.User == "alice" }
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Auth.AuthenticationKubeconfig, cfg.Auth.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
	deps := Deps{
		Log:      slog.New(slog.DiscardHandler),
		Cluster:  func(name string) (Source, bool) { s, ok := clusters[name]; return s, ok },
		Ready:    func() error { return nil },
		Listener: listener,
		Now:      func() time.Time { return requestTime },
	}
	if alter != nil {
		alter(&cfg, &deps, api)
	}
	s, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(deadline):
			t.Error("Run did not end with its context")
		}
	})
	v := &served{t: t, url: "https://" + listener.Addr().String(), api: api}
	v.eventually("front proxy's CA", func() bool {
		_, body := v.get("/readyz?verbose", "alice")
		return strings.Contains(body, "[+]front-proxy-ca ok")
	})
	return v
}

func (v *served) eventually(what string, fact func() bool) {
	v.t.Helper()
	for end := time.Now().Add(deadline); !fact(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			v.t.Fatalf("%s: not within %s", what, deadline)
		}
	}
}

// do sends a request as a client with this certificate, if any, and does not care whose the server's is.
func (v *served) do(r *http.Request, cert *tls.Certificate) (*http.Response, string) {
	v.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: cfg}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return &http.Response{Header: http.Header{}}, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return resp, string(body)
}

func (v *served) request(path, token string, header ...string) *http.Request {
	v.t.Helper()
	r, err := http.NewRequest(http.MethodGet, v.url+path, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func (v *served) get(path, token string, header ...string) (int, string) {
	v.t.Helper()
	resp, body := v.do(v.request(path, token, header...), nil)
	return resp.StatusCode, body
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\ngot\n%s\nwant\n%s", name, got, want)
	}
}

func indented(t *testing.T, body string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(body), "", "  "); err != nil {
		t.Fatalf("%v in %q", err, body)
	}
	return b.String()
}

func TestAnswersAreThoseOfTheMetricsAPI(t *testing.T) {
	v := start(t, map[string]Source{"": shop(), "empty": &fake{}}, nil)
	const (
		table    = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
		partials = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
		groups   = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
	)
	v1, beta := "/apis/metrics.k8s.io/v1", "/apis/metrics.k8s.io/v1beta1"
	for name, tt := range map[string]struct {
		path, accept string
		code         int
	}{
		"nodes.v1":           {v1 + "/nodes", "", 200},
		"nodes.v1beta1":      {beta + "/nodes", "application/json", 200},
		"node.v1":            {v1 + "/nodes/n1", "", 200},
		"nodes.selected":     {v1 + "/nodes?labelSelector=zone+in+(b,c)", "", 200},
		"nodes.named":        {v1 + "/nodes?fieldSelector=metadata.name%3Dn2", "", 200},
		"nodes.table":        {beta + "/nodes", table, 200},
		"nodes.yaml":         {v1 + "/nodes", "application/yaml", 200},
		"nodes.none":         {v1 + "/nodes?labelSelector=zone%3Dx", "", 200},
		"node.absent":        {v1 + "/nodes/n3", "", 404},
		"pods.v1":            {v1 + "/pods", "", 200},
		"pods.limited":       {v1 + "/pods?limit=1", "", 200},
		"pods.namespace":     {beta + "/namespaces/shop/pods", "", 200},
		"pods.selected":      {v1 + "/pods?labelSelector=tier%3Dweb,!canary", "", 200},
		"pods.named":         {v1 + "/pods?fieldSelector=metadata.namespace%3Dshop,metadata.name%3Dtill", "", 200},
		"pods.not-named":     {v1 + "/pods?fieldSelector=metadata.name!%3Dtill", "", 200},
		"pods.table":         {beta + "/pods", table, 200},
		"pods.table-objects": {beta + "/namespaces/shop/pods?includeObject=Object", table, 200},
		"pods.partial":       {v1 + "/pods", partials, 200},
		"pods.nowhere":       {v1 + "/namespaces/nowhere/pods", "", 200},
		"pods.empty-table":   {v1 + "/namespaces/nowhere/pods", table, 200},
		"pod.v1beta1":        {beta + "/namespaces/shop/pods/cart", "", 200},
		"pod.table":          {v1 + "/namespaces/shop/pods/cart", table, 200},
		"pod.absent":         {v1 + "/namespaces/shop/pods/dns", "", 404},
		"bad-selector":       {v1 + "/pods?labelSelector=a%3D%3D%3Db", "", 400},
		"bad-field":          {v1 + "/pods?fieldSelector=spec.nodeName%3Dn1", "", 400},
		"groups":             {"/apis", "", 200},
		"groups.aggregated":  {"/apis", groups, 200},
		"group":              {"/apis/metrics.k8s.io", "", 200},
		"resources.v1":       {v1, "", 200},
		"resources.v1beta1":  {beta, "", 200},
	} {
		code, body := v.get(tt.path, "alice", "Accept", tt.accept)
		if code != tt.code {
			t.Errorf("%s: %d, want %d: %s", name, code, tt.code, body)
			continue
		}
		if strings.HasPrefix(body, "{") {
			body = indented(t, strings.ReplaceAll(body, strings.TrimPrefix(v.url, "https://"), "ADDRESS"))
		}
		golden(t, name, body)
	}
	// what a client may ask about lists and we have no use for
	_, all := v.get(v1+"/pods", "alice")
	for _, query := range []string{"limit=1", "limit=1&continue=x", "resourceVersion=0", "pretty=false"} {
		if code, body := v.get(v1+"/pods?"+query, "alice"); code != 200 || body != all {
			t.Errorf("%s: %d, want the whole list:\n%s", query, code, body)
		}
	}
}

func TestOpenAPIDescribesBothVersions(t *testing.T) {
	v := start(t, map[string]Source{"": shop()}, nil)
	for path, wants := range map[string][]string{
		"/openapi/v2":                        {"/apis/metrics.k8s.io/v1/namespaces/{namespace}/pods", "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetricsList"},
		"/openapi/v3":                        {"apis/metrics.k8s.io/v1", "apis/metrics.k8s.io/v1beta1"},
		"/openapi/v3/apis/metrics.k8s.io/v1": {"io.k8s.metrics.pkg.apis.metrics.v1.PodMetrics", "/apis/metrics.k8s.io/v1/nodes/{name}"},
	} {
		code, body := v.get(path, "alice")
		if code != 200 || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d, %.80s", path, code, body)
		}
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("%s has no %s", path, want)
			}
		}
	}
}

func TestStockClientsReadBothVersionsInJSONAndProtobuf(t *testing.T) {
	v := start(t, map[string]Source{"": shop()}, nil)
	var lists []runtime.Object // of pods; all must be equal in content
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		client, err := versioned.NewForConfig(&rest.Config{
			Host: v.url, BearerToken: "alice", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
			ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
		})
		if err != nil {
			t.Fatal(err)
		}
		v1, err := client.MetricsV1().PodMetricses("shop").List(t.Context(), metav1.ListOptions{LabelSelector: "app"})
		if err != nil {
			t.Fatal(err)
		}
		beta, err := client.MetricsV1beta1().PodMetricses("shop").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(v1.Items) != 2 || v1.Items[0].Name != "cart" || v1.Items[0].Containers[0].Usage.Cpu().String() != "10000001n" ||
			v1.ResourceVersion != "42" || !v1.Items[0].Timestamp.Equal(&metav1.Time{Time: shop().pods[1].Time}) {
			t.Errorf("%s: pods %+v", contentType, v1)
		}
		a, _ := json.Marshal(v1.Items)
		b, _ := json.Marshal(beta.Items)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: v1 and v1beta1 differ:\n%s\n%s", contentType, a, b)
		}
		v1.TypeMeta = metav1.TypeMeta{}
		lists = append(lists, v1)

		node, err := client.MetricsV1().NodeMetricses().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if swap := node.Usage["swap"]; node.Usage.Memory().Value() != 5<<30 || swap.Value() != 3<<20 || node.Window.Duration != 15*time.Second {
			t.Errorf("%s: node %+v", contentType, node)
		}
		if _, err := client.MetricsV1beta1().NodeMetricses().Get(t.Context(), "n3", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s: absent node: %v", contentType, err)
		}
	}
	if !apiequality.Semantic.DeepEqual(lists[0], lists[1]) {
		t.Errorf("JSON and protobuf differ:\n%+v\n%+v", lists[0], lists[1])
	}
}

// The front proxy's CA is learnt only while the server already runs. Who comes through the API server before that, as
// an HPA does while heapstream restarts, has to wait, and must not be taken for nobody.
func TestFrontProxyIsKnownFromTheFirstRequest(t *testing.T) {
	for range 5 {
		api := authtest.Start(t)
		api.Allow = func(s authorizationv1.SubjectAccessReviewSpec) bool { return s.User == "carol" }
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := DefaultConfig()
		cfg.Auth.AuthenticationKubeconfig, cfg.Auth.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
		s, err := New(cfg, Deps{
			Log: slog.New(slog.DiscardHandler), Cluster: func(string) (Source, bool) { return shop(), true }, Ready: func() error { return nil }, Listener: listener,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		v := &served{t: t, url: "https://" + listener.Addr().String(), api: api}
		proxy := api.FrontProxy.Client(t, "front-proxy-client")
		resp, body := v.do(v.request("/apis/metrics.k8s.io/v1/nodes", "", "X-Remote-User", "carol"), &proxy)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("the first answer is %d %s, want 200", resp.StatusCode, body)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// A cluster that names no front proxy has no CA to wait for: everybody else is let in all the same.
func TestGateOpensWithoutAFrontProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		g := newGate(refusing{}, healthz.NamedCheck("front-proxy-ca", func(*http.Request) error { asked++; return errors.New("not known") }))
		start := time.Now()
		if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		if took := time.Since(start); took != trustWait || asked < 2 {
			t.Errorf("opened after %s and %d questions, want %s", took, asked, trustWait)
		}
		if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) || time.Since(start) != trustWait {
			t.Errorf("Accept waited again, or: %v", err)
		}

		g = newGate(refusing{}, g.known)
		start = time.Now()
		time.AfterFunc(time.Second, func() { _ = g.Close() })
		if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) || time.Since(start) > 2*time.Second {
			t.Errorf("a closed gate kept waiting for %s: %v", time.Since(start), err)
		}
	})
}

// refusing is a closed listener.
type refusing struct{}

func (refusing) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (refusing) Close() error              { return nil }
func (refusing) Addr() net.Addr            { return &net.TCPAddr{} }

func TestWhoMayAsk(t *testing.T) {
	v := start(t, map[string]Source{"": shop()}, func(_ *Config, _ *Deps, api *authtest.APIServer) {
		api.Users["bob"] = authenticationv1.UserInfo{Username: "bob"}
		api.Allow = func(s authorizationv1.SubjectAccessReviewSpec) bool {
			return (s.User == "alice" || s.User == "carol") && s.ResourceAttributes != nil
		}
	})
	const path = "/apis/metrics.k8s.io/v1/namespaces/shop/pods"
	proxy := v.api.FrontProxy.Client(t, "front-proxy-client")
	imposter := v.api.FrontProxy.Client(t, "somebody")
	carol := v.api.Clients.Client(t, "carol", "devs")
	introduce := []string{"X-Remote-User", "carol", "X-Remote-Group", "devs"}
	check := func(name string, r *http.Request, cert *tls.Certificate, code int, message string) {
		t.Helper()
		resp, body := v.do(r, cert)
		if resp.StatusCode != code || !strings.Contains(body, message) {
			t.Errorf("%s: %d %s, want %d with %q", name, resp.StatusCode, body, code, message)
		}
	}
	check("token", v.request(path, "alice"), nil, 200, "PodMetricsList")
	check("token of somebody else", v.request(path, "bob"), nil, 403, `User \"bob\" cannot list resource \"pods\" in API group \"metrics.k8s.io\" in the namespace \"shop\"`)
	check("unknown token", v.request(path, "mallory"), nil, 401, "Unauthorized")
	check("nobody", v.request(path, ""), nil, 403, "system:anonymous")
	check("system:masters needs no review", v.request("/metrics", "root"), nil, 200, "apiserver_request_total")
	check("client certificate", v.request(path, ""), &carol, 200, "PodMetricsList")
	check("introduced by the front proxy", v.request(path, "", introduce...), &proxy, 200, "PodMetricsList")
	check("introduced by another name", v.request(path, "", introduce...), &imposter, 401, "Unauthorized")
	check("introduced by nobody", v.request(path, "", introduce...), nil, 403, "system:anonymous")
	check("introduced by a client", v.request("/metrics", "", "X-Remote-User", "root"), &carol, 403, `User \"carol\"`)
	check("health is open", v.request("/readyz", ""), nil, 200, "ok")
	check("what no rule allows", v.request("/debug/pprof/", "alice"), nil, 403, "forbidden")

	var seen bool
	for _, review := range v.api.Reviews() {
		a := review.ResourceAttributes
		seen = seen || a != nil && review.User == "carol" && len(review.Groups) > 0 && *a == authorizationv1.ResourceAttributes{
			Namespace: "shop", Verb: "list", Group: "metrics.k8s.io", Version: "v1", Resource: "pods",
		}
	}
	if !seen {
		t.Errorf("no review of carol listing the pods of shop among %+v", v.api.Reviews())
	}
	// answers are remembered
	tokens, reviews := v.api.TokenReviews(), len(v.api.Reviews())
	for range 5 {
		check("token again", v.request(path, "alice"), nil, 200, "PodMetricsList")
	}
	if v.api.TokenReviews() != tokens || len(v.api.Reviews()) != reviews {
		t.Error("an answer that was remembered was asked for again")
	}
}

func TestWithoutLookupTheFlagsSayWhomToTrust(t *testing.T) {
	clients, proxies := authtest.NewCA(t, "own-clients"), authtest.NewCA(t, "own-proxies")
	v := start(t, map[string]Source{"": shop()}, func(cfg *Config, _ *Deps, api *authtest.APIServer) {
		cfg.Auth.SkipLookup = true
		cfg.Auth.ClientCAFile = clients.File(t)
		cfg.Auth.RequestHeader.CAFile = proxies.File(t)
		cfg.Auth.RequestHeader.UsernameHeaders = []string{"X-Own-User"}
		api.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "configmaps") {
				t.Errorf("looked up %s", r.URL)
			}
			return false
		}
	})
	alice, proxy, stranger := clients.Client(t, "alice"), proxies.Client(t, "p"), v.api.Clients.Client(t, "alice")
	const path = "/apis/metrics.k8s.io/v1/nodes"
	for name, tt := range map[string]struct {
		r    *http.Request
		cert *tls.Certificate
		code int
	}{
		"client":           {v.request(path, ""), &alice, 200},
		"proxy":            {v.request(path, "", "X-Own-User", "alice"), &proxy, 200},
		"cluster's client": {v.request(path, ""), &stranger, 401},
	} {
		if resp, body := v.do(tt.r, tt.cert); resp.StatusCode != tt.code {
			t.Errorf("%s: %d, want %d: %s", name, resp.StatusCode, tt.code, body)
		}
	}
}

func TestServesMetricsOnceTheViewHasBeenReady(t *testing.T) {
	var behind atomic.Bool
	behind.Store(true)
	v := start(t, map[string]Source{"": shop()}, func(_ *Config, deps *Deps, _ *authtest.APIServer) {
		deps.Ready = func() error {
			if behind.Load() {
				return errors.New("no rollup read yet")
			}
			return nil
		}
	})
	const path = "/apis/metrics.k8s.io/v1beta1/nodes"
	check := func(path string, code int, text string) {
		t.Helper()
		if got, body := v.get(path, "alice"); got != code || !strings.Contains(body, text) {
			t.Errorf("%s: %d %s, want %d with %q", path, got, body, code, text)
		}
	}
	check("/readyz", 500, "[-]view failed")
	check("/livez", 200, "ok")
	check("/healthz", 200, "ok")
	check(path, 503, "no rollup read yet")
	check(path+"/n1", 503, "no rollup read yet")
	behind.Store(false)
	check(path, 200, "NodeMetricsList")
	check("/readyz", 200, "ok")
	behind.Store(true) // the bus went away: what we have is still good
	check(path, 200, "NodeMetricsList")
	check("/readyz", 500, "[-]view failed")
}

func TestOtherClustersAreServedBelowTheirName(t *testing.T) {
	other := &fake{seq: 7, nodes: []*view.NodeMetrics{{Name: "far", Seq: 7}}}
	v := start(t, map[string]Source{"": shop(), "other": other}, func(_ *Config, _ *Deps, api *authtest.APIServer) {
		api.Users["bob"] = authenticationv1.UserInfo{Username: "bob"}
		api.Allow = func(s authorizationv1.SubjectAccessReviewSpec) bool {
			return s.User == "alice" || s.User == "bob" && s.ResourceAttributes != nil
		}
	})
	check := func(token, path string, code int, texts ...string) {
		t.Helper()
		got, body := v.get(path, token)
		for _, text := range texts {
			if got != code || !strings.Contains(body, text) {
				t.Errorf("%s as %s: %d %s, want %d with %q", path, token, got, body, code, text)
			}
		}
	}
	check("alice", "/clusters/other/apis/metrics.k8s.io/v1/nodes", 200, `"resourceVersion":"7"`, `"name":"far"`)
	check("alice", "/clusters/other/apis/metrics.k8s.io/v1beta1/nodes/far", 200, `"name":"far"`)
	check("alice", "/clusters/other/apis/metrics.k8s.io/v1/nodes?labelSelector=a", 200, `"items":[]`)
	check("alice", "/clusters/other/apis/metrics.k8s.io/v1/namespaces/shop/pods", 200, `"items":[]`)
	check("alice", "/clusters/other/apis/metrics.k8s.io", 200, `"preferredVersion"`)
	check("alice", "/clusters/nowhere/apis/metrics.k8s.io/v1/nodes", 404, `clusters \"nowhere\" not found`)
	check("alice", "/clusters//apis/metrics.k8s.io/v1/nodes", 404, `"reason":"NotFound"`)
	// the server's own paths do not come into reach by another name
	for _, path := range []string{"/metrics", "/debug/pprof/", "/readyz", "/clusters/other/apis", "/apis/../metrics", ""} {
		check("alice", "/clusters/other"+path, 404, "")
	}
	// who may read the pods of this cluster may not read those of another
	check("bob", "/apis/metrics.k8s.io/v1/nodes", 200, "n1")
	check("bob", "/clusters/other/apis/metrics.k8s.io/v1/nodes", 403, `cannot get path \"/clusters/other/apis/metrics.k8s.io/v1/nodes\"`)
}

// stuck is a view whose nodes wait.
type stuck struct {
	fake
	entered, leave chan struct{}
}

func (s *stuck) Nodes() iter.Seq[*view.NodeMetrics] {
	s.entered <- struct{}{}
	<-s.leave
	return s.fake.Nodes()
}

func TestRefusesMoreThanItCanServeAtOnce(t *testing.T) {
	source := &stuck{entered: make(chan struct{}), leave: make(chan struct{})}
	v := start(t, map[string]Source{"": source}, nil)
	const path = "/apis/metrics.k8s.io/v1/nodes"
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	answers := make(chan error, maxInFlight)
	for range maxInFlight {
		go func() {
			resp, err := transport.RoundTrip(v.request(path, "alice"))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err == nil && resp.StatusCode != 200 {
					err = fmt.Errorf("status %d", resp.StatusCode)
				}
			}
			answers <- err
		}()
		select {
		case <-source.entered:
		case <-time.After(deadline):
			t.Fatal("a request did not come through")
		}
	}
	resp, body := v.do(v.request(path, "alice"), nil)
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d %v %s, want 429 with Retry-After", resp.StatusCode, resp.Header, body)
	}
	if code, _ := v.get("/livez", ""); code != http.StatusTooManyRequests && code != http.StatusOK {
		t.Errorf("/livez under load: %d", code)
	}
	close(source.leave)
	for range maxInFlight {
		if err := <-answers; err != nil {
			t.Errorf("a request in time: %v", err)
		}
	}
}

func TestServingCertificateIsReadAgainWhenItChanges(t *testing.T) {
	ca, dir := authtest.NewCA(t, "serving"), t.TempDir()
	first := ca.Server(t, "gateway")
	certFile, keyFile := authtest.Files(t, dir, "tls", first)
	sniCert, sniKey := authtest.Files(t, dir, "sni", ca.Server(t, "other.example"))
	v := start(t, map[string]Source{"": shop()}, func(cfg *Config, _ *Deps, _ *authtest.APIServer) {
		cfg.CertFile, cfg.KeyFile = certFile, keyFile
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		cfg.Flags(fs)
		if err := fs.Parse([]string{"--tls-sni-cert-key=" + sniCert + "," + sniKey}); err != nil {
			t.Fatal(err)
		}
	})
	shown := func(name string) string {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(v.url, "https://"), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		leaf := conn.ConnectionState().PeerCertificates[0]
		return leaf.Subject.CommonName + " " + leaf.SerialNumber.String()
	}
	if got, want := shown("gateway"), "gateway "+first.Leaf.SerialNumber.String(); got != want {
		t.Fatalf("serves %s, want %s", got, want)
	}
	if got := shown("other.example"); !strings.HasPrefix(got, "other.example ") {
		t.Errorf("serves %s to who asks for other.example", got)
	}
	second := ca.Server(t, "gateway")
	authtest.Files(t, dir, "tls", second)
	v.eventually("new certificate", func() bool { return shown("gateway") == "gateway "+second.Leaf.SerialNumber.String() })
}

func TestSelfSignedCertificateIsKeptInItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cfg := DefaultConfig()
	cfg.CertDir = dir
	var certs []string
	for range 2 {
		info, err := cfg.serving(listener)
		if err != nil {
			t.Fatal(err)
		}
		defer release(info)
		cert, _ := info.Cert.CurrentCertKeyContent()
		certs = append(certs, string(cert))
	}
	if certs[0] != certs[1] {
		t.Error("another certificate after a restart")
	}
	if err := os.Remove(filepath.Join(dir, "apiserver.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.serving(listener); err == nil || !strings.Contains(err.Error(), "apiserver.key") {
		t.Errorf("half a pair: %v", err)
	}
	cfg.CertDir = filepath.Join(dir, "apiserver.crt") // a file
	if _, err := cfg.serving(listener); err == nil {
		t.Error("a directory that cannot be: no error")
	}
}

func kubectl(t *testing.T, v *served, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	home := t.TempDir()
	cmd := exec.CommandContext(ctx, path, append([]string{
		"--kubeconfig=/dev/null", "--cache-dir=" + home, "--server=" + v.url, "--token=alice", "--insecure-skip-tls-verify",
	}, args...)...)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, complaints.String())
	}
	return out.String()
}

func TestKubectlReadsUs(t *testing.T) {
	v := start(t, map[string]Source{"": shop()}, nil)
	golden(t, "kubectl.podmetrics", kubectl(t, v, "get", "podmetrics", "-A"))
	golden(t, "kubectl.podmetrics-wide", kubectl(t, v, "get", "podmetrics", "-n", "shop", "-o", "wide"))
	golden(t, "kubectl.podmetrics-yaml", kubectl(t, v, "get", "podmetrics", "-n", "shop", "cart", "-o", "yaml"))
	golden(t, "kubectl.nodemetrics", kubectl(t, v, "get", "nodemetrics"))
	golden(t, "kubectl.top-pods", kubectl(t, v, "top", "pods", "-A", "--containers"))
	golden(t, "kubectl.top-selected", kubectl(t, v, "top", "pods", "-n", "shop", "-l", "tier=web"))
	if raw := kubectl(t, v, "get", "--raw", "/apis/metrics.k8s.io/v1/nodes/n1"); !strings.Contains(raw, `"cpu":"1234567890n"`) {
		t.Errorf("get --raw: %s", raw)
	}
}

func TestAuditSaysWhoAskedForWhat(t *testing.T) {
	dir := t.TempDir()
	policy, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	rules := "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: Metadata, resources: [{group: metrics.k8s.io, resources: [pods]}]}\n- {level: None}\n"
	if err := os.WriteFile(policy, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	v := start(t, map[string]Source{"": shop()}, func(cfg *Config, _ *Deps, _ *authtest.APIServer) {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		cfg.Flags(fs)
		if err := fs.Parse([]string{"--audit-policy-file=" + policy, "--audit-log-path=" + log}); err != nil {
			t.Fatal(err)
		}
	})
	for path, want := range map[string]int{"/apis/metrics.k8s.io/v1/nodes": 200, "/apis/metrics.k8s.io/v1/namespaces/shop/pods": 200} {
		if code, body := v.get(path, "alice"); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	v.eventually("the request is in the log", func() bool {
		data, _ := os.ReadFile(log)
		return strings.Contains(string(data), `"username":"alice"`) && strings.Contains(string(data), `"objectRef":{"resource":"pods","namespace":"shop","apiGroup":"metrics.k8s.io","apiVersion":"v1"}`)
	})
	data, err := os.ReadFile(log)
	if err != nil || strings.Contains(string(data), `"resource":"nodes"`) {
		t.Errorf("what the policy leaves out is in the log: %v %s", err, data)
	}
	cfg := DefaultConfig()
	cfg.Audit.LogOptions.Path = log
	if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "--audit-policy-file") {
		t.Errorf("a log without a policy: %v", err)
	}
	cfg.Audit.PolicyFile = filepath.Join(dir, "missing")
	cfg.Auth.AuthenticationKubeconfig, cfg.Auth.AuthorizationKubeconfig = v.api.Kubeconfig, v.api.Kubeconfig
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(cfg, Deps{
		Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil }, Listener: listener,
		Cluster: func(string) (Source, bool) { return nil, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "--audit-policy-file") {
		t.Errorf("a policy that is not there: %v", err)
	}
}

func TestFlagsAreHeapstersAndThoseOfAuditing(t *testing.T) {
	cfg := DefaultConfig()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	cfg.Flags(fs)
	fs.SortFlags = true
	var b strings.Builder
	fs.VisitAll(func(f *pflag.Flag) { fmt.Fprintf(&b, "--%s=%s\n", f.Name, f.DefValue) })
	golden(t, "flags", b.String())
	if err := cfg.Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if err := fs.Parse([]string{"--secure-port=65536", "--tls-cert-file=a", "--profiling=false", "--contention-profiling", "--enable-swagger-ui"}); err != nil {
		t.Fatal(err)
	}
	cfg.BindAddress = nil
	err := cfg.Validate()
	for _, want := range []string{"--secure-port=65536", "--bind-address", "--tls-private-key-file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

func TestRunSaysWhyItCannotServe(t *testing.T) {
	api := authtest.Start(t)
	api.Refuse = func(w http.ResponseWriter, _ *http.Request) bool {
		authtest.Fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, "no")
		return true
	}
	cfg := DefaultConfig()
	cfg.BindAddress = net.IPv4(127, 0, 0, 1)
	cfg.CertDir = t.TempDir()
	cfg.Auth.AuthenticationKubeconfig, cfg.Auth.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
	run := func(listener net.Listener) error {
		s, err := New(cfg, Deps{
			Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil },
			Cluster: func(string) (Source, bool) { return nil, false }, Listener: listener,
		})
		if err != nil {
			t.Fatal(err)
		}
		return s.Run(t.Context())
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Port = taken.Addr().(*net.TCPAddr).Port
	if err := run(nil); err == nil || !strings.Contains(err.Error(), "--secure-port") {
		t.Errorf("port in use: %v", err)
	}
	if err := run(taken); err == nil || !strings.Contains(err.Error(), "extension-apiserver-authentication-reader") {
		t.Errorf("no right to look up: %v", err)
	}
	if _, err := New(Config{Port: -1}, Deps{}); err == nil || !strings.Contains(err.Error(), "--secure-port") {
		t.Errorf("bad config: %v", err)
	}
}

func TestPortZeroServesNothing(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Port = 0
	s, err := New(cfg, Deps{
		Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil },
		Cluster: func(string) (Source, bool) { return nil, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestClientsThatHangUpAreNoErrors(t *testing.T) {
	var b strings.Builder
	log := slog.New(quieter{slog.NewTextHandler(&b, nil)})
	log.Error("Unhandled Error", "err", "apiserver was unable to write a application/json response: http2: stream closed")
	log.Error("Timeout or abort while handling", "URI", "/apis/custom.metrics.k8s.io/v1beta1")
	log.Info("controller started")
	if b.Len() > 0 {
		t.Errorf("told: %s", b.String())
	}
	log.Error("Unhandled Error", "err", "something else")
	log.Warn("warning")
	if got := strings.Count(b.String(), "\n"); got != 2 {
		t.Errorf("%d lines: %s", got, b.String())
	}
}

// The libraries bring flags and loggers of their own; none may turn up in the process.
func TestLibrariesLeaveTheProcessAlone(t *testing.T) {
	flag.VisitAll(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") && f.Name != "update" {
			t.Errorf("--%s got into the process's flags", f.Name)
		}
	})
	pflag.VisitAll(func(f *pflag.Flag) { t.Errorf("--%s got into the process's flags", f.Name) })
	if _, ok := slog.Default().Handler().(quieter); ok {
		t.Error("klog's handler became slog's default")
	}
}
