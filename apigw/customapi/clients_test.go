package customapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	customclient "k8s.io/metrics/pkg/client/custom_metrics"
	externalclient "k8s.io/metrics/pkg/client/external_metrics"

	"github.com/heapstream/heapstream/apigw/view"
)

// TestClientsetsOfTheHPA asks as the HPA controller does, in both versions and both encodings.
func TestClientsetsOfTheHPA(t *testing.T) {
	v := start(t, map[string]*view.Cluster{"": newShop(t, 20)})
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{{Version: "v1"}, {Group: "apps", Version: "v1"}})
	for kind, gv := range map[string]schema.GroupVersion{"Pod": {Version: "v1"}, "Deployment": {Group: "apps", Version: "v1"}} {
		mapper.Add(gv.WithKind(kind), meta.RESTScopeNamespace)
	}
	for _, kind := range []string{"Node", "Namespace"} {
		mapper.Add(schema.GroupVersionKind{Version: "v1", Kind: kind}, meta.RESTScopeRoot)
	}
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		cfg := &rest.Config{
			Host: v.url, BearerToken: "alice", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
			ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
		}
		disco, err := discovery.NewDiscoveryClientForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		getter := customclient.NewAvailableAPIsGetter(disco)
		if gv, err := getter.PreferredVersion(); err != nil || gv.String() != "custom.metrics.k8s.io/v1beta2" {
			t.Errorf("the HPA would ask %s: %v", gv, err)
		}
		clients := map[string]customclient.CustomMetricsClient{"as the HPA": customclient.NewForConfig(cfg, mapper, getter)}
		for _, version := range []string{"v1beta1", "v1beta2"} {
			client, err := customclient.NewForVersionForConfig(cfg, mapper, schema.GroupVersion{Group: "custom.metrics.k8s.io", Version: version})
			if err != nil {
				t.Fatal(err)
			}
			clients[version] = client
		}
		for name, client := range clients {
			name += " " + contentType
			shop := client.NamespacedMetrics("shop")
			one, err := shop.GetForObject(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "cart", "cpu_usage_rate_avg_30s", labels.Everything())
			if err != nil || one.Value.String() != "590" || one.DescribedObject.Name != "cart" || *one.WindowSeconds != 30 {
				t.Errorf("%s: Deployment: %v %+v", name, err, one)
			}
			pods, err := shop.GetForObjects(schema.GroupKind{Kind: "Pod"}, labels.SelectorFromSet(labels.Set{"app": "cart"}), "cpu_usage_rate", labels.Everything())
			if err != nil || len(pods.Items) != 2 || pods.Items[1].Value.Value() != 301 || pods.Items[1].DescribedObject.Name != "cart-1" {
				t.Errorf("%s: pods: %v %+v", name, err, pods)
			}
			device, err := shop.GetForObject(schema.GroupKind{Kind: "Pod"}, "cart-0", "filesystem_usage", labels.SelectorFromSet(labels.Set{"resource_id": "root"}))
			if err != nil || device.Value.Value() != 20000 || device.Metric.Selector.MatchLabels["resource_id"] != "root" {
				t.Errorf("%s: device: %v %+v", name, err, device)
			}
			node, err := client.RootScopedMetrics().GetForObject(schema.GroupKind{Kind: "Node"}, "n0", "cpu_node_utilization", labels.Everything())
			if err != nil || node.Value.String() != "255m" {
				t.Errorf("%s: node: %v %+v", name, err, node)
			}
			ns, err := client.RootScopedMetrics().GetForObject(schema.GroupKind{Kind: "Namespace"}, "shop", "cpu_usage_rate", labels.Everything())
			if err != nil || ns.Value.Value() != 520 {
				t.Errorf("%s: namespace: %v %+v", name, err, ns)
			}
			if _, err := shop.GetForObject(schema.GroupKind{Kind: "Pod"}, "cart-0", "no_such", labels.Everything()); !apierrors.IsNotFound(err) {
				t.Errorf("%s: unknown metric: %v", name, err)
			}
		}
		external, err := externalclient.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		list, err := external.NamespacedMetrics("shop").List("cpu_usage_rate_max_5m", labels.SelectorFromSet(labels.Set{"type": "pod", "workload": "cart"}))
		if err != nil || len(list.Items) != 2 || list.Items[1].Value.Value() != 301 || list.Items[1].MetricLabels["pod"] != "cart-1" {
			t.Errorf("%s: external: %v %+v", contentType, err, list)
		}
	}
}

func TestDiscoveryKnowsTheGroups(t *testing.T) {
	v := start(t, map[string]*view.Cluster{"": newShop(t, 1)})
	code, body := v.get("/apis", "alice")
	for _, want := range []string{`"custom.metrics.k8s.io/v1beta2"`, `"custom.metrics.k8s.io/v1beta1"`, `"external.metrics.k8s.io/v1beta1"`, `"metrics.k8s.io/v1"`} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("/apis: %d, no %s in %s", code, want, body)
		}
	}
	for path, wants := range map[string][]string{
		"/apis/custom.metrics.k8s.io":           {`"preferredVersion":{"groupVersion":"custom.metrics.k8s.io/v1beta2"`},
		"/apis/custom.metrics.k8s.io/v1beta1":   {`"pods/cpu_usage_rate"`, `"deployments.apps/memory_working_set"`, `"namespaces/cpu_usage_rate"`, `"nodes/cpu_node_utilization"`},
		"/apis/custom.metrics.k8s.io/v1beta2":   {`"cronjobs.batch/cpu_usage_rate"`, `"kind":"MetricValueList"`},
		"/apis/external.metrics.k8s.io/v1beta1": {`"cpu_usage_rate"`, `"kind":"ExternalMetricValueList"`},
	} {
		code, body := v.get(path, "alice")
		for _, want := range wants {
			if code != http.StatusOK || !strings.Contains(body, want) {
				t.Errorf("%s: %d, no %s in %.300s", path, code, want, body)
			}
		}
		if len(body) > 200<<10 {
			t.Errorf("%s has %d bytes", path, len(body))
		}
	}
	_, body = v.get("/apis", "alice", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	var groups apidiscovery.APIGroupDiscoveryList
	if err := json.Unmarshal([]byte(body), &groups); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, g := range groups.Items {
		for _, version := range g.Versions {
			for _, r := range version.Resources {
				if r.Resource == "pods" || r.Resource == "cpu_usage_rate" {
					found = append(found, g.Name+"/"+version.Version+"/"+r.Resource)
				}
			}
		}
	}
	if want := []string{"custom.metrics.k8s.io/v1beta2/pods", "custom.metrics.k8s.io/v1beta1/pods", "external.metrics.k8s.io/v1beta1/cpu_usage_rate", "metrics.k8s.io/v1/pods", "metrics.k8s.io/v1beta1/pods"}; !sameSet(found, want) {
		t.Errorf("aggregated discovery has %q, want %q", found, want)
	}
	for path, want := range map[string]string{
		"/openapi/v2": "io.k8s.metrics.pkg.apis.custom_metrics.v1beta2.MetricValueList",
		"/openapi/v3/apis/custom.metrics.k8s.io/v1beta2":   "io.k8s.metrics.pkg.apis.custom_metrics.v1beta2.MetricValueList",
		"/openapi/v3/apis/external.metrics.k8s.io/v1beta1": "io.k8s.metrics.pkg.apis.external_metrics.v1beta1.ExternalMetricValueList",
	} {
		if code, body := v.get(path, "alice"); code != http.StatusOK || !json.Valid([]byte(body)) || !strings.Contains(body, want) {
			t.Errorf("%s: %d, no %s in %.200s", path, code, want, body)
		}
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}
