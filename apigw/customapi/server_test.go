package customapi

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/heapstream/heapstream/apigw/auth/authtest"
	"github.com/heapstream/heapstream/apigw/resourceapi"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is what nothing here takes on the slowest machine.
const deadline = 2 * time.Minute

const resolution = 15 * time.Second

// begin is the first tick of the shop.
var begin = time.Date(2026, 2, 3, 4, 0, 0, 0, time.UTC)

// newShop is a cluster with ticks of two nodes: in namespace shop the Deployment cart of two pods and the bare pod till,
// and in kube-system the DaemonSet agent. At tick i (from 1) a container of cart uses 100+10i millicores.
func newShop(t testing.TB, ticks int) *view.Cluster {
	t.Helper()
	now := begin
	v, err := view.New(view.Config{Window: view.DefaultWindow}, view.Deps{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		t.Fatal(err)
	}
	seq := uint64(0)
	apply := func(r *proto.Rollup) {
		seq++
		r.Cluster, r.Tick, r.Resolution, r.Scraped = "c", proto.Tick(now.UnixMilli()), resolution, now.UnixNano()
		c.Apply(r, view.Origin{Seq: seq, Time: now, Live: true})
	}
	uses := func(r *proto.Rollup, row int, millicores, memory int64) {
		r.Values.Set(row, proto.GroupCPU.Time(), now.UnixNano())
		r.Values.Set(row, proto.GroupCPU.Span(), int64(10*time.Second))
		r.Values.Set(row, proto.CPUUsage.Field(), 7e9)
		r.Values.Set(row, proto.CPUUsage.Delta(), millicores*1e7)
		r.Values.Set(row, proto.MemoryWorkingSet.Field(), memory)
	}
	pod := func(r *proto.Rollup, namespace, name string, owner proto.Owner, app string, millicores int64) int {
		row := r.AddEntity(proto.Entity{
			Kind: proto.KindPod, Namespace: namespace, Name: name, UID: name, Phase: proto.PhaseRunning, Owner: owner,
			Labels: []proto.Label{{Key: "app", Value: app}},
		})
		uses(r, row, millicores, 64<<20)
		return row
	}
	container := func(r *proto.Rollup, pod int, name string, millicores int64) {
		uses(r, r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: name, Parent: int32(pod), Flags: proto.FlagRunning}), millicores, 32<<20)
	}
	for i := int64(1); i <= int64(ticks); i++ {
		for n := range int64(2) {
			r := &proto.Rollup{Scope: proto.ScopeNode, Name: fmt.Sprint("n", n)}
			r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: r.Name, UID: r.Name, Parent: -1, Labels: []proto.Label{{Key: "zone", Value: fmt.Sprint("z", n)}}})
			uses(r, 0, 1000+i, 1<<30)
			r.Values.Set(0, proto.CPUNodeAllocatable.Field(), 4000)
			cart := pod(r, "shop", fmt.Sprint("cart-", n), proto.Owner{Kind: "Deployment", Name: "cart"}, "cart", 100+10*i+n)
			container(r, cart, "app", 100+10*i)
			container(r, cart, "proxy", n)
			if n == 0 {
				pod(r, "shop", "till", proto.Owner{Kind: "Pod", Name: "till"}, "till", 7)
			}
			pod(r, "kube-system", fmt.Sprint("agent-", n), proto.Owner{Kind: "DaemonSet", Name: "agent"}, "agent", 3)
			for k, disk := range []string{"/", "Volume:data"} {
				if n == 1 && k == 1 {
					break // cart-1 has one file system, cart-0 has two
				}
				d := r.AddDevice(proto.Device{Entity: int32(cart), Kind: proto.DeviceFilesystem, Name: disk})
				r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 1000*i+int64(k))
			}
			apply(r)
		}
		for _, ns := range []string{"shop", "kube-system"} {
			r := &proto.Rollup{Scope: proto.ScopeNamespace, Name: ns}
			r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Name: ns, Parent: -1})
			r.Values.Set(0, proto.CPUUsageRate.Field(), 500+i)
			owner := proto.Owner{Kind: "Deployment", Name: "cart"}
			if ns == "kube-system" {
				owner = proto.Owner{Kind: "DaemonSet", Name: "agent"}
			}
			w := r.AddEntity(proto.Entity{Kind: proto.KindWorkload, Namespace: ns, Name: owner.Name, Owner: owner, Parent: -1})
			r.Values.Set(w, proto.CPUUsageRate.Field(), 200+20*i)
			r.Values.Set(w, proto.PodCount.Field(), 2)
			apply(r)
		}
		r := &proto.Rollup{Scope: proto.ScopeTotals}
		r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
		r.Values.Set(0, proto.CPUUsageRate.Field(), 2000+i)
		apply(r)
		now = now.Add(resolution)
	}
	now = now.Add(-resolution)
	return c
}

// served is both groups in the real server.
type served struct {
	t   testing.TB
	url string
	api *authtest.APIServer
}

func start(t testing.TB, clusters map[string]*view.Cluster) *served {
	t.Helper()
	api := authtest.Start(t)
	api.Users = map[string]authenticationv1.UserInfo{"alice": {Username: "alice"}, "bob": {Username: "bob"}}
	api.Allow = func(s authorizationv1.SubjectAccessReviewSpec) bool {
		return s.User == "alice" || s.ResourceAttributes != nil && s.ResourceAttributes.Namespace == "shop"
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	groups, err := New(func(name string) (Source, bool) { c, ok := clusters[name]; return c, ok })
	if err != nil {
		t.Fatal(err)
	}
	cfg := resourceapi.DefaultConfig()
	cfg.Auth.AuthenticationKubeconfig, cfg.Auth.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
	s, err := resourceapi.New(cfg, resourceapi.Deps{
		Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil }, Listener: listener, Groups: []resourceapi.Group{groups},
		Cluster: func(name string) (resourceapi.Source, bool) { c, ok := clusters[name]; return c, ok },
	})
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
	return &served{t: t, url: "https://" + listener.Addr().String(), api: api}
}

// get asks as somebody and returns the status and the body.
func (v *served) get(path, token string, header ...string) (int, string) {
	v.t.Helper()
	r, err := http.NewRequestWithContext(v.t.Context(), http.MethodGet, v.url+path, nil)
	if err != nil {
		v.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // made at start, for this test
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(r)
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// items is an answer of either group in one line: what it is of, its value and span; or the status with its message.
func (v *served) items(path string) string {
	v.t.Helper()
	code, body := v.get(path, "alice")
	var answer struct {
		Kind, Reason, Message string
		Items                 []struct {
			DescribedObject struct{ Kind, Namespace, Name, APIVersion string }
			Metric          struct {
				Name     string
				Selector *struct{ MatchLabels map[string]string }
			}
			MetricName            string
			MetricLabels          map[string]string
			Timestamp             time.Time
			WindowSeconds, Window *int64
			Value                 string
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		v.t.Fatalf("%s: %d %v in %q", path, code, err, body)
	}
	if code != http.StatusOK {
		return fmt.Sprintf("%d %s: %s", code, answer.Reason, answer.Message)
	}
	var lines []string
	for _, i := range answer.Items {
		of := i.DescribedObject
		line := of.Kind + " " + strings.TrimPrefix(of.Namespace+"/"+of.Name, "/")
		if i.Metric.Selector != nil {
			line += fmt.Sprint(i.Metric.Selector.MatchLabels)
		}
		if i.MetricName != "" {
			line = strings.TrimPrefix(fmt.Sprint(i.MetricLabels), "map")
		}
		line += "=" + i.Value
		for _, w := range []*int64{i.WindowSeconds, i.Window} {
			if w != nil {
				line += fmt.Sprintf("/%ds", *w)
			}
		}
		lines = append(lines, line)
		if i.Timestamp.IsZero() || !i.Timestamp.Equal(i.Timestamp.Truncate(resolution)) {
			v.t.Errorf("%s: time %s is no tick", path, i.Timestamp)
		}
	}
	return strings.Join(lines, " ")
}

func q(selector string) string { return url.QueryEscape(selector) }

func TestCustomMetrics(t *testing.T) {
	c := newShop(t, 20)
	v := start(t, map[string]*view.Cluster{"": c, "far": c})
	const pods, nodes = "/namespaces/shop/pods/", "/nodes/"
	for _, tt := range []struct{ name, path, want string }{
		{"now, of one pod", pods + "cart-0/cpu_usage_rate", "Pod shop/cart-0=300/10s"},
		{"now, of selected pods", pods + "*/cpu_usage_rate?labelSelector=" + q("app=cart"), "Pod shop/cart-0=300/10s Pod shop/cart-1=301/10s"},
		{"of all pods", pods + "*/memory_working_set", "Pod shop/cart-0=67108864 Pod shop/cart-1=67108864 Pod shop/till=67108864"},
		{"of none", pods + "*/memory_working_set?labelSelector=" + q("app=x"), ""},
		{"mean: ticks 19 and 20", pods + "cart-0/cpu_usage_rate_avg_30s", "Pod shop/cart-0=295/30s"},
		{"mean to a thousandth: ticks 18 to 20 of a node", nodes + "n0/cpu_node_utilization_avg_45s", "Node n0=255m/45s"},
		{"largest of all 20", pods + "cart-0/cpu_usage_rate_max_5m", "Pod shop/cart-0=300/300s"},
		{"smallest of all 20", pods + "cart-0/cpu_usage_rate_min_5m", "Pod shop/cart-0=110/300s"},
		{"the 19th of 20", pods + "cart-0/cpu_usage_rate_p95_5m", "Pod shop/cart-0=290/300s"},
		{"the tenth of 20", pods + "cart-0/cpu_usage_rate_p50_300s", "Pod shop/cart-0=200/300s"},
		{"a span of one tick", pods + "cart-0/cpu_usage_rate_p1_15s", "Pod shop/cart-0=300/15s"},
		{"a share in thousandths", nodes + "n1/cpu_node_utilization", "Node n1=255m/10s"},
		{"nodes by label", nodes + "*/cpu_usage_rate?labelSelector=" + q("zone in (z1,z2)"), "Node n1=1020/10s"},
		{"a namespace", "/namespaces/shop/metrics/cpu_usage_rate", "Namespace shop=520"},
		{"a Deployment", "/namespaces/shop/deployments.apps/cart/cpu_usage_rate_avg_30s", "Deployment shop/cart=590/30s"},
		{"how many pods it has", "/namespaces/shop/deployments.apps/cart/pod_count", "Deployment shop/cart=2"},
		{"all Deployments", "/namespaces/shop/deployments.apps/*/cpu_usage_rate", "Deployment shop/cart=600"},
		{"no DaemonSet there", "/namespaces/shop/daemonsets.apps/*/cpu_usage_rate", ""},
		{"a DaemonSet", "/namespaces/kube-system/daemonsets.apps/agent/cpu_usage_rate", "DaemonSet kube-system/agent=600"},
		{"one device", pods + "cart-0/filesystem_usage?metricLabelSelector=" + q("resource_id=Volume-data"), "Pod shop/cart-0map[resource_id:Volume-data]=20001"},
		{"a device of those that have it", pods + "*/filesystem_usage_max_1m?metricLabelSelector=" + q("resource_id=root"), "Pod shop/cart-0map[resource_id:root]=20k/60s Pod shop/cart-1map[resource_id:root]=20k/60s"},
		{"the only device", pods + "cart-1/filesystem_usage", "Pod shop/cart-1map[resource_id:root]=20k"},

		{"several devices", pods + "cart-0/filesystem_usage", `400 BadRequest: metric "filesystem_usage": Pod "cart-0" has 2 of it: choose one by metricLabelSelector, of map[resource_id:root], map[resource_id:Volume-data]`},
		{"unknown metric", pods + "cart-0/cpu_usage_rat", `404 NotFound: metric "cpu_usage_rat" is not known; the nearest name is "cpu_usage_rate"`},
		{"unknown metric with a span", pods + "*/memory_workingset_avg_5m", `404 NotFound: metric "memory_workingset_avg_5m" is not known; the nearest name is "memory_working_set_avg_5m"`},
		{"nothing like it", pods + "*/http_requests_per_second", `404 NotFound: metric "http_requests_per_second" is not known`},
		{"span below the resolution", pods + "cart-0/cpu_usage_rate_avg_14s", `400 BadRequest: metric "cpu_usage_rate_avg_14s": a span of 14s is shorter than the resolution, 15s, and would hold no sample`},
		{"span beyond the window", pods + "cart-0/cpu_usage_rate_avg_1h", `400 BadRequest: metric "cpu_usage_rate_avg_1h": a span of 1h0m0s is longer than what is remembered, 15m0s (--window of the gateway)`},
		{"absurd span", pods + "cart-0/cpu_usage_rate_avg_99999999999999999999h", `400 BadRequest: metric "cpu_usage_rate_avg_99999999999999999999h": "99999999999999999999h" is no span: want a whole number of s, m or h, such as 90s or 5m`},
		{"no function", pods + "cart-0/cpu_usage_rate_sum_5m", `400 BadRequest: metric "cpu_usage_rate_sum_5m": "sum" is no function: want avg, max, min, or p1 to p99`},
		{"no percentile", pods + "cart-0/cpu_usage_rate_p100_5m", `400 BadRequest: metric "cpu_usage_rate_p100_5m": "p100" is no function: want avg, max, min, or p1 to p99`},
		{"function of a counter", pods + "cart-0/cpu_usage_avg_5m", `400 BadRequest: metric "cpu_usage_avg_5m": cpu_usage counts up for ever: ask for cpu_usage_rate_avg_5m`},
		{"selector where there are no labels", pods + "*/cpu_usage_rate?metricLabelSelector=" + q("a=b"), `400 BadRequest: metric "cpu_usage_rate": there is nothing to select by: it has no labels (metricLabelSelector=a=b)`},
		{"not of a Deployment", "/namespaces/shop/deployments.apps/cart/network_rx_rate", `404 NotFound: there is no metric "network_rx_rate" of deployments.apps: it is measured of node, pod`},
		{"labels of a Deployment", "/namespaces/shop/deployments.apps/*/cpu_usage_rate?labelSelector=" + q("a=b"), `400 BadRequest: metric "cpu_usage_rate": the labels of deployments.apps are not known here: ask for one by its name, or for the pods by their labels`},
		{"no such pod", pods + "basket/cpu_usage_rate", `404 NotFound: pods "shop/basket" is not measured`},
		{"no such namespace", "/namespaces/nowhere/metrics/cpu_usage_rate", `404 NotFound: namespaces "nowhere" is not measured`},
		{"nothing of that kind in a namespace", "/namespaces/nowhere/pods/*/cpu_usage_rate", ""},
		{"metric it does not have", pods + "till/network_rx_rate", `404 NotFound: pods "shop/till" has no metric "network_rx_rate"`},
	} {
		for _, version := range []string{"v1beta2", "v1beta1"} {
			want := tt.want
			path := "/apis/custom.metrics.k8s.io/" + version + tt.path
			if version == "v1beta1" { // the older version has another shape, which the clientset reads; see the next test
				if strings.HasPrefix(want, "4") && v.items(path) != want {
					t.Errorf("%s in %s:\n got %s\nwant %s", tt.name, version, v.items(path), want)
				}
				continue
			}
			if got := v.items(path); got != want {
				t.Errorf("%s:\n got %s\nwant %s", tt.name, got, want)
			}
			if got := v.items("/clusters/far" + path); got != want {
				t.Errorf("%s in another cluster:\n got %s\nwant %s", tt.name, got, want)
			}
		}
	}
	for _, path := range []string{"/services/a/cpu_usage_rate", "/namespaces/shop/nodes/n0/cpu_usage_rate", "/pods/cart-0/cpu_usage_rate"} {
		if got := v.items("/apis/custom.metrics.k8s.io/v1beta2" + path); !strings.HasPrefix(got, "404 ") {
			t.Errorf("%s: %s", path, got)
		}
	}
	if got := v.items("/apis/custom.metrics.k8s.io/v1beta2" + pods + "*/cpu_usage_rate?labelSelector=" + q("a===b")); !strings.HasPrefix(got, "400 BadRequest") {
		t.Errorf("bad selector: %s", got)
	}
	if got := v.items("/apis/custom.metrics.k8s.io/v1beta2" + pods + "*/cpu_usage_rate?metricLabelSelector=" + q("a===b")); !strings.HasPrefix(got, "400 BadRequest: metricLabelSelector=a===b: ") {
		t.Errorf("bad metric selector: %s", got)
	}
	if code, body := v.get("/apis/custom.metrics.k8s.io/v1beta2/namespaces/kube-system/pods/*/cpu_usage_rate", "bob"); code != http.StatusForbidden ||
		!strings.Contains(body, `cannot get resource \"pods/cpu_usage_rate\" in API group \"custom.metrics.k8s.io\" in the namespace \"kube-system\"`) {
		t.Errorf("who may not: %d %s", code, body)
	}
	if code, _ := v.get("/apis/custom.metrics.k8s.io/v1beta2/namespaces/shop/pods/*/cpu_usage_rate", "bob"); code != http.StatusOK {
		t.Errorf("who may: %d", code)
	}
}

func TestExternalMetrics(t *testing.T) {
	v := start(t, map[string]*view.Cluster{"": newShop(t, 20)})
	for _, tt := range []struct{ name, metric, selector, want string }{
		{"the namespace", "cpu_usage_rate", "", "[namespace:shop type:namespace]=520"},
		{"the cluster", "cpu_usage_rate_avg_30s", "type=cluster", "[type:cluster]=2019500m/30s"},
		{"workloads", "cpu_usage_rate", "workload_kind=Deployment", "[namespace:shop type:workload workload:cart workload_kind:Deployment]=600"},
		{"nodes", "cpu_usage_rate", "node!=n1", "[node:n0 type:node]=1020/10s"},
		{"all nodes", "cpu_node_utilization", "type=node", "[node:n0 type:node]=255m/10s [node:n1 type:node]=255m/10s"},
		{"the pods of a workload", "cpu_usage_rate_max_5m", "type=pod,workload=cart", "[namespace:shop node:n0 pod:cart-0 type:pod workload:cart workload_kind:Deployment]=300/300s [namespace:shop node:n1 pod:cart-1 type:pod workload:cart workload_kind:Deployment]=301/300s"},
		{"a container", "cpu_usage_rate", "pod=cart-1,container in (app)", "[container:app namespace:shop node:n1 pod:cart-1 type:container workload:cart workload_kind:Deployment]=300/10s"},
		{"devices", "filesystem_usage", "pod=cart-0", "[namespace:shop node:n0 pod:cart-0 resource_id:root type:pod workload:cart workload_kind:Deployment]=20k [namespace:shop node:n0 pod:cart-0 resource_id:Volume-data type:pod workload:cart workload_kind:Deployment]=20001"},
		{"a device", "filesystem_usage", "type=pod,resource_id=Volume-data", "[namespace:shop node:n0 pod:cart-0 resource_id:Volume-data type:pod workload:cart workload_kind:Deployment]=20001"},
		{"pods of elsewhere", "cpu_usage_rate", "pod=agent-0", ""},
		{"a namespace of elsewhere", "cpu_usage_rate", "namespace=kube-system", ""},

		{"unknown label", "cpu_usage_rate", "pood=x", `400 BadRequest: metric "cpu_usage_rate": no series has a label "pood": there are type, namespace, workload, workload_kind, node, pod, container`},
		{"unknown type", "cpu_usage_rate", "type=disk", `400 BadRequest: metric "cpu_usage_rate": no series has type=disk: want cluster, namespace, workload, node, pod or container`},
		{"unknown metric", "cpu_usage_rate_", "", `404 NotFound: metric "cpu_usage_rate_" is not known; the nearest name is "cpu_usage_rate"`},
		{"not of a namespace", "network_rx_rate", "", `404 NotFound: there is no metric "network_rx_rate" of a namespace: it is measured of node, pod`},
		{"bad span", "cpu_usage_rate_avg_2h", "", `400 BadRequest: metric "cpu_usage_rate_avg_2h": a span of 2h0m0s is longer than what is remembered, 15m0s (--window of the gateway)`},
	} {
		if got := v.items("/apis/external.metrics.k8s.io/v1beta1/namespaces/shop/" + tt.metric + "?labelSelector=" + q(tt.selector)); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
	if code, _ := v.get("/apis/external.metrics.k8s.io/v1beta1/namespaces/kube-system/cpu_usage_rate", "bob"); code != http.StatusForbidden {
		t.Errorf("who may not: %d", code)
	}
}
