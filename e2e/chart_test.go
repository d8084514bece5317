package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

const chartDir = root + "/deploy/helm/heapstream"

// generated are the names that kustomize gives to what it generates: with a hash of the content behind.
var generated = regexp.MustCompile(`(heapstream-(?:cluster|sinks|nats|bus-[a-z]+))-[a-z0-9]{10}\b`)

// chartShape is an overlay as the chart has it: without secrets, which are never part of a chart, without hashes in names,
// since values change what they are of, and without a caBundle.
func chartShape(t *testing.T, overlay string) []byte {
	t.Helper()
	var kept []string
	for _, document := range strings.Split(string(buildOverlay(t, overlay)), "\n---\n") {
		if !strings.Contains("\n"+document, "\nkind: Secret\n") {
			kept = append(kept, strings.TrimSuffix(document, "\n"))
		}
	}
	out := generated.ReplaceAllString(strings.Join(kept, "\n---\n")+"\n", "$1")
	return []byte(regexp.MustCompile(`(?m)^  caBundle: .*\n(?:    .*\n)*`).ReplaceAllString(out, ""))
}

// renderChart renders the chart with values as they are in a file for helm, in a namespace.
func renderChart(t *testing.T, namespace, values string) (string, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	given := map[string]any{}
	if err := json.Unmarshal([]byte(values), &given); err != nil {
		t.Fatal(err)
	}
	all, err := chartutil.ToRenderValues(chart, given, common.ReleaseOptions{Name: "heapstream", Namespace: namespace, IsInstall: true}, nil)
	if err != nil {
		return "", err
	}
	files, err := engine.Render(chart, all)
	return files["heapstream/templates/shape.yaml"], err
}

// Every shape of the chart holds what its overlay does, and stands the same checks; secrets come from elsewhere.
func TestChartRendersEveryShape(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape, func(t *testing.T) {
			file, want := filepath.Join(chartDir, "shapes", shape+".yaml"), chartShape(t, shape)
			if *update {
				if err := os.WriteFile(file, want, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is not its overlay: write it anew, cd e2e && go test -run TestChartRendersEveryShape -update . (%v)", file, err)
			}
			clusters := map[bool]string{true: `["edge-1", "edge-2"]`, false: "[]"}[shape == "hub"]
			cluster := map[bool]string{true: "edge-1", false: "default"}[shape == "edge"]
			out, err := renderChart(t, "kube-system", `{"shape": "`+shape+`", "caBundle": "pem", "cluster": "`+cluster+`", "clusters": `+clusters+`}`)
			if err != nil {
				t.Fatal(err)
			}
			overlay := decodeManifests(t, buildOverlay(t, shape))
			chart := decodeManifests(t, []byte(out))
			for name, keys := range overlay.data { // made by credentials, beside the chart
				if strings.HasPrefix(name, "Secret/") {
					chart.data[generated.ReplaceAllString(name, "$1")] = keys
				}
			}
			chart.check()
			chart.checkRoles(shape)
			names := func(m *manifests) (all []string) {
				for key := range m.all {
					if !strings.HasPrefix(key, "Secret/") {
						all = append(all, regexp.MustCompile(`^(Job/.*)-[0-9a-f]{8}$`).ReplaceAllString(generated.ReplaceAllString(key, "$1"), "$1"))
					}
				}
				slices.Sort(all)
				return all
			}
			if c, o := names(chart), names(overlay); !slices.Equal(c, o) {
				t.Errorf("the chart makes\n%s\nthe overlay\n%s", strings.Join(c, "\n"), strings.Join(o, "\n"))
			}
		})
	}
}

// Values reach what they are about.
func TestChartValues(t *testing.T) {
	out, err := renderChart(t, "kube-system", `{"shape": "full", "cluster": "prod", "resolution": "30s", "caBundle": "pem", "register": ["resource"],
		"image": {"repository": "registry.example.com/hs", "tag": "v1"}, "bus": {"enabled": false, "url": "tls://nats.example.com:4222", "replicas": 1},
		"sinks": ["influxdb:http://influxdb:8086", "log"],
		"components": {"apigw": {"replicas": 3, "args": ["--window=30m"], "resources": {"limits": {"memory": "2Gi"}}}, "node": {"nodeSelector": {"kubernetes.io/os": "linux"}}}}`)
	if err != nil {
		t.Fatal(err)
	}
	m := decodeManifests(t, []byte(out))
	if len(m.apis) != 2 || m.all["StatefulSet/kube-system/heapstream-nats"] {
		t.Errorf("%d APIs registered, want 2; there is a bus: %t", len(m.apis), m.all["StatefulSet/kube-system/heapstream-nats"])
	}
	for register, want := range map[string]bool{`["resource"]`: false, "null": false, `["heapster"]`: true} { // the latter two without a caBundle
		out, err := renderChart(t, "kube-system", `{"shape": "full", "caBundle": "`+map[bool]string{true: "pem"}[register == `["resource"]`]+`", "register": `+register+`}`)
		if err != nil {
			t.Fatal(err)
		}
		m := decodeManifests(t, []byte(out))
		if m.all["Service/kube-system/heapster"] != want || !m.all["Service/kube-system/heapstream"] {
			t.Errorf("register %s takes Heapster's place: %t, want %t; the Service heapstream is there: %t", register, !want, want, m.all["Service/kube-system/heapstream"])
		}
	}
	for _, part := range []string{"name: prod", "bus-url: tls://nats.example.com:4222", "influxdb:http://influxdb:8086\n    log"} {
		if !strings.Contains(out, part) {
			t.Errorf("%q is not rendered", part)
		}
	}
	of := map[string]corev1.PodSpec{}
	for _, w := range m.pods {
		of[w.name] = w.pod.Spec
		if image := w.pod.Spec.Containers[0].Image; !regexp.MustCompile(`^registry\.example\.com/hs/[a-z]+:v1$`).MatchString(image) {
			t.Errorf("image %s", image)
		}
		if w.name == "heapstream-apigw" && w.replicas != 3 {
			t.Errorf("%d gateways, want 3", w.replicas)
		}
		if w.kind == "Job" && !slices.Contains(w.pod.Spec.Containers[0].Args, "--replicas=1") {
			t.Errorf("streams are made with %v", w.pod.Spec.Containers[0].Args)
		}
	}
	apigw, node := of["heapstream-apigw"].Containers[0], of["heapstream-node"]
	if !slices.Contains(apigw.Args, "--window=30m") || apigw.Resources.Limits.Memory().String() != "2Gi" || apigw.Resources.Requests.Memory().String() != "768Mi" {
		t.Errorf("the gateway has %v, %v", apigw.Args, apigw.Resources)
	}
	if node.NodeSelector["kubernetes.io/os"] != "linux" || !slices.Contains(node.Containers[0].Args, "--metric-resolution=30s") {
		t.Errorf("the scraper of a node has %v, %v", node.NodeSelector, node.Containers[0].Args)
	}

	// A hub mirrors each of its clusters, however many.
	out, err = renderChart(t, "kube-system", `{"shape": "hub", "clusters": ["a", "b", "c"]}`)
	if err != nil {
		t.Fatal(err)
	}
	var mirrored []string
	hub := decodeManifests(t, []byte(out))
	hub.checkStore()
	for _, w := range hub.pods {
		if args := w.pod.Spec.Containers[0].Args; w.kind == "Job" {
			mirrored = append(mirrored, strings.Join(args[len(args)-2:], " "))
		}
	}
	slices.Sort(mirrored)
	if got, want := strings.Join(mirrored, "; "), "--cluster=a --from-domain=a; --cluster=b --from-domain=b; --cluster=c --from-domain=c"; got != want {
		t.Errorf("the hub mirrors %s, want %s", got, want)
	}
	if !strings.Contains(out, "clusters: a,b,c\n") {
		t.Error("gateways and sinks of the hub are not told of its clusters")
	}
}

// The values for the official NATS chart are about the same names, limits and figures as our own bus.
func TestOfficialChartIsTheSameBus(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "deploy", "nats", "official-chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(kubernetesDir, "base", "nats", "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		NameOverride, FullnameOverride string
		Config                         struct {
			Cluster struct {
				Replicas int32
				TLS      struct{ SecretName string }
			}
			Jetstream struct {
				MemoryStore struct{ MaxSize string }
				FileStore   struct {
					PVC     struct{ Size string }
					MaxSize string
				}
				Merge map[string]string
			}
			Nats  struct{ TLS struct{ SecretName string } }
			Merge map[string]string
		}
		Container struct {
			Env   map[string]string
			Merge struct{ Resources corev1.ResourceRequirements }
		}
		ExtraResources []networkingv1.NetworkPolicy
		PodTemplate    struct {
			Merge struct{ Spec corev1.PodSpec }
			Patch []struct {
				Op, Path string
				Value    corev1.Volume
			}
		}
	}
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	m := decodeManifests(t, buildOverlay(t, "full"))
	i := slices.IndexFunc(m.pods, func(w workload) bool { return w.name == "heapstream-nats" })
	ours, c := m.pods[i], values.Config
	container := ours.pod.Spec.Containers[0]
	check := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s is %q, and %q in our own", what, got, want)
		}
	}
	check("the label", values.NameOverride, ours.pod.Labels["app.kubernetes.io/name"])
	check("the Service", values.FullnameOverride, ours.name)
	check("servers", strconv.Itoa(int(c.Cluster.Replicas)), strconv.Itoa(int(ours.replicas)))
	check("routes' Secret", c.Cluster.TLS.SecretName, "heapstream-bus-tls")
	check("clients' Secret", c.Nats.TLS.SecretName, "heapstream-bus-tls")
	check("users' Secret", values.PodTemplate.Patch[0].Value.Secret.SecretName, "heapstream-bus-users")
	check("the claim", c.Jetstream.FileStore.PVC.Size, ours.claims[0].Spec.Resources.Requests.Storage().String())
	check("priority", values.PodTemplate.Merge.Spec.PriorityClassName, ours.pod.Spec.PriorityClassName)
	for name, quantity := range container.Resources.Requests {
		got := values.Container.Merge.Resources.Requests[name]
		check("requests of "+string(name), got.String(), quantity.String())
	}
	check("the limit of memory", values.Container.Merge.Resources.Limits.Memory().String(), container.Resources.Limits.Memory().String())
	j := slices.IndexFunc(m.policies, func(p *networkingv1.NetworkPolicy) bool { return p.Name == "heapstream-nats" })
	if got := values.ExtraResources; len(got) != 1 || got[0].Name != "heapstream-nats" || !reflect.DeepEqual(got[0].Spec, m.policies[j].Spec) {
		t.Errorf("the policies are %+v, and in our own %+v", got, m.policies[j].Spec)
	}
	for _, e := range container.Env {
		if e.Name == "GOMEMLIMIT" {
			check(e.Name, values.Container.Env[e.Name], e.Value)
		}
	}
	check("the store", c.Jetstream.FileStore.MaxSize, m.store)
	for _, line := range []string{"max_memory_store: " + c.Jetstream.MemoryStore.MaxSize, "sync_interval: " + c.Jetstream.Merge["sync_interval"],
		"max_payload: " + strings.Trim(c.Merge["max_payload"], "<> "), "write_deadline: \"" + c.Merge["write_deadline"] + "\""} {
		if !strings.Contains(string(conf), line) {
			t.Errorf("nats.conf has no line %q", line)
		}
	}
}

// What cannot be meant is refused, and the refusal names the value.
func TestChartRefusesBadValues(t *testing.T) {
	for values, want := range map[string][]string{
		`{"shape": "central", "caBundle": "pem"}`:                       {"shape", "standalone"},
		`{"caBundle": "pem", "cluster": "a.b"}`:                         {"cluster", "a.b"},
		`{"caBundle": "pem", "resolution": "2s"}`:                       {"resolution", "2s"},
		`{"caBundle": "pem", "resolutoin": "15s"}`:                      {"resolutoin"},
		`{"caBundle": "pem", "bus": {"url": "tls://u:p@nats:4222"}}`:    {"bus/url", "u:p@nats"},
		`{"caBundle": "pem", "bus": {"replicas": 2}}`:                   {"bus/replicas"},
		`{"caBundle": "pem", "components": {"apigw": {"replicas": 1}}}`: {"apigw/replicas", "2"},
		`{"caBundle": "pem", "components": {"node": {"replicas": 2}}}`:  {"components/node", "replicas"},
		`{"caBundle": "pem", "components": {"gateway": {}}}`:            {"components", "gateway"},
		`{"shape": "hub", "caBundle": "pem"}`:                           {"clusters"},
		`{"shape": "full", "caBundle": "pem", "clusters": ["a"]}`:       {"clusters"},
		`{"shape": "full"}`:                                                      {"caBundle is empty", "--set-file caBundle="},
		`{"caBundle": "pem", "register": ["metrics"]}`:                           {"register/0"},
		`{"caBundle": "pem", "components": {"apigw": {"args": ["window=30m"]}}}`: {"apigw/args/0", "window=30m"},
	} {
		if _, err := renderChart(t, "kube-system", values); err == nil {
			t.Errorf("%s is accepted", values)
		} else {
			for _, part := range want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %v\ndoes not speak of %q", values, err, part)
				}
			}
		}
	}
	if _, err := renderChart(t, "monitoring", `{"caBundle": "pem"}`); err == nil || !strings.Contains(err.Error(), `not in "monitoring": helm install --namespace kube-system`) {
		t.Errorf("another namespace: %v", err)
	}
}
