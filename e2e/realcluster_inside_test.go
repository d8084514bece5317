package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// realImages is prefix and tag of images of this tree that all nodes of the cluster have, as in heapstream:dev for
// heapstream/scraper:dev and the others. Without it TestInsideRealCluster is skipped.
const realImages = "E2E_REALCLUSTER_IMAGES"

// TestInsideRealCluster applies the shapes full and standalone, the former also as the Helm chart renders it, to a real cluster, through an
// overlay that adds what that cluster lacks and nothing else: names, where it has no DNS, and volumes, where it has no StorageClass. All pods
// must become ready without a restart, the APIs available, and kubectl top and an HPA be served from inside; nothing may be refused for want
// of a right, and nothing in the cluster be left behind. Standalone moves over from what is there, and nobody who asks may notice.
func TestInsideRealCluster(t *testing.T) {
	c := openRealCluster(t)
	prefix, tag, ok := strings.Cut(os.Getenv(realImages), ":")
	if !ok {
		t.Skipf("SKIP: set %s to prefix:tag of images that the nodes have (make images), with %s", realImages, realKubeconfig)
	}
	if there := c.kubectl(t, "get", "apiservice", "v1.metrics.k8s.io", "v1beta1.metrics.k8s.io", "--ignore-not-found", "-o", "name"); there != "" {
		t.Fatalf("the cluster has a Metrics API, which this test would replace: %s", there)
	}
	images := regexp.MustCompile(`heapstream/([a-z]+):dev`)
	for _, shape := range []string{"full", "chart", "standalone"} {
		t.Run(shape, func(t *testing.T) {
			overlay := map[string]string{"full": "full", "chart": "full", "standalone": "standalone"}[shape]
			dir := filepath.Join(t.TempDir(), "kubernetes")
			if err := os.CopyFS(dir, os.DirFS(kubernetesDir)); err != nil {
				t.Fatal(err)
			}
			credentials := map[string][]string{"full": {"full", "default"}, "standalone": {"standalone"}}[overlay]
			secrets := madeCredentials(t, filepath.Join(dir, "overlays", overlay), credentials...)
			var manifest string
			if shape == "chart" {
				manifest = c.chart(t, overlay, secrets)
			} else {
				manifest = c.kubectl(t, "kustomize", filepath.Join(dir, "overlays", overlay))
			}
			// The same images of another name, in the pods of either.
			manifest = images.ReplaceAllString(manifest, prefix+"/$1:"+tag)
			manifest = c.withWhatLacks(t, manifest)
			asked := &asker{c: c}
			if shape == "standalone" {
				c.moveOver(t, manifest, prefix+"/heapstream:"+tag, asked)
			} else {
				c.install(t, manifest)
			}

			if overlay == "full" {
				c.kubectl(t, "-n", "kube-system", "wait", "--for=condition=Complete", "--timeout=110s", "job", "-l", "app.kubernetes.io/name=heapstream-provision")
			}
			c.checkPodsReady(t)
			for line := range strings.Lines(c.kubectl(t, "get", "apiservice", "-o", "name")) {
				if name := strings.TrimSpace(line); strings.HasSuffix(name, ".metrics.k8s.io") {
					c.kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", name)
				}
			}
			f := c.follow(t)
			f.until(t, realAppears, "all running pods are served", func() string { return f.lacks(c.running(t)) })
			f.stop()
			c.checkTop(t)
			c.checkHeapsterService(t)
			asked.check(t)
			if shape == "full" {
				c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+realNamespace+"}\n")
				c.applyHPAs(t, "resource")
				pod := c.podOf(t, "resource")
				eventually(t, realScales, func() bool { _, ok := c.used(pod); return ok }, func() string { return "no sample of " + pod })
				c.exec(t, pod, "touch", "/tmp/load")
				eventually(t, realScales, func() bool { return c.replicas(t, "resource") > 1 }, func() string { return "not scaled up: " + c.events("resource") })
			}
			c.checkObjects(t)
			c.checkTelemetry(t)
			c.checkPodsReady(t)
			c.checkLogs(t)
		})
	}
}

// chart is what helm would apply of the chart: its rendering, and the Secrets of the guide beside it.
func (c *realCluster) chart(t *testing.T, shape, secrets string) string {
	t.Helper()
	authority, err := os.ReadFile(filepath.Join(secrets, "serving", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	values, err := json.Marshal(map[string]any{"shape": shape, "caBundle": string(authority)})
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := renderChart(t, "kube-system", string(values))
	if err != nil {
		t.Fatal(err)
	}
	secret := func(name string, files ...string) {
		args := []string{"-n", "kube-system", "create", "secret", "generic", name, "--dry-run=client", "-o", "yaml"}
		for _, f := range files {
			args = append(args, "--from-file="+strings.ReplaceAll(f, "@", secrets+"/"))
		}
		rendered += "\n---\n" + c.kubectl(t, args...)
	}
	secret("heapstream-serving", "@serving")
	secret("heapstream-bus-tls", "@bus/tls.crt", "@bus/tls.key", "@bus/ca.crt")
	secret("heapstream-bus-users", "@bus/users.conf")
	var passwords []string
	for _, role := range []string{"scraper", "inventory", "aggregator", "apigw", "sinks", "admin"} {
		passwords = append(passwords, role+"=@bus/password-"+role)
	}
	secret("heapstream-bus-passwords", passwords...)
	return rendered
}

// withWhatLacks is the manifest with names and volumes, where the cluster gives none.
func (c *realCluster) withWhatLacks(t *testing.T, manifest string) string {
	t.Helper()
	if !strings.Contains(manifest, "kind: StatefulSet") {
		return manifest
	}
	const peers = 3
	dir := t.TempDir()
	kustomization, more := "resources: [shape.yaml, lacks.yaml]\n", ""
	if dns := c.kubectl(t, "-n", "kube-system", "get", "service", "kube-dns", "--ignore-not-found", "-o", "name"); dns == "" {
		// Addresses of the low end, which the API server keeps for those that are asked for.
		base := net.ParseIP(strings.TrimSpace(c.kubectl(t, "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}"))).To4()
		if base == nil {
			t.Fatal("the Service kubernetes has no IPv4 address")
		}
		address := func(i int) string { return fmt.Sprintf("%d.%d.%d.%d", base[0], base[1], base[2], 5+i) }
		aliases := "      - {ip: " + address(0) + ", hostnames: [heapstream-nats.kube-system.svc]}\n"
		for i := range peers {
			aliases += fmt.Sprintf("      - {ip: %s, hostnames: [heapstream-nats-%d.heapstream-nats-peers.kube-system.svc]}\n", address(1+i), i)
			more += fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: heapstream-nats-peer-%d, namespace: kube-system}\nspec:\n  clusterIP: %s\n  publishNotReadyAddresses: true\n"+
				"  selector: {statefulset.kubernetes.io/pod-name: heapstream-nats-%d}\n  ports: [{port: 6222, targetPort: 6222}]\n", i, address(1+i), i)
		}
		kustomization += "patches:\n- target: {kind: (StatefulSet|Deployment|DaemonSet|Job)}\n  patch: |-\n    - op: add\n      path: /spec/template/spec/hostAliases\n      value:\n" + aliases +
			"- target: {kind: Service, name: heapstream-nats}\n  patch: |-\n    - {op: add, path: /spec/clusterIP, value: " + address(0) + "}\n"
	}
	var classes storagev1.StorageClassList
	if err := c.get("/apis/storage.k8s.io/v1/storageclasses", &classes); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(classes.Items, func(s storagev1.StorageClass) bool {
		return s.Annotations["storageclass.kubernetes.io/is-default-class"] == "true"
	}) {
		for i := range peers { // of this machine, which the nodes must be
			path := filepath.Join(dir, fmt.Sprint("volume-", i))
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, 65532, 65532); err != nil {
				t.Skipf("SKIP: no default StorageClass, and no volume of this machine either: %v", err)
			}
			more += fmt.Sprintf("---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {name: heapstream-e2e-%d}\nspec:\n  capacity: {storage: 16Gi}\n  accessModes: [ReadWriteOnce]\n  hostPath: {path: %q, type: Directory}\n", i, path)
		}
		for parent := dir; parent != "/" && strings.HasPrefix(parent, os.TempDir()+"/"); parent = filepath.Dir(parent) {
			if err := os.Chmod(parent, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, data := range map[string]string{"kustomization.yaml": kustomization, "shape.yaml": manifest, "lacks.yaml": more} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c.kubectl(t, "kustomize", dir)
}

// install applies a shape and takes it away with the test: the registration first, since no namespace can be deleted while an API is
// registered that nobody serves, and the claims last.
// Args go to apply, for a part of it.
func (c *realCluster) install(t *testing.T, manifest string, args ...string) {
	t.Helper()
	apis := regexp.MustCompile(`(?m)^  name: (v[a-z0-9]+\.(?:[a-z]+\.)?metrics\.k8s\.io)$`)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := c.try("", "-n", "kube-system", "get", "pods,jobs,pvc,events", "-o", "wide")
			t.Log(out, err)
		}
		var names []string
		for _, m := range apis.FindAllStringSubmatch(manifest, -1) {
			names = append(names, "apiservice/"+m[1])
		}
		for _, undo := range []struct {
			in   string
			args []string
		}{
			{"", append([]string{"delete", "--ignore-not-found"}, names...)},
			{"", []string{"-n", "kube-system", "delete", "statefulset,deployment,daemonset,job", "-l", "app.kubernetes.io/part-of=heapstream", "--cascade=foreground", "--timeout=100s"}},
			{"", []string{"-n", "kube-system", "delete", "pvc", "-l", "app.kubernetes.io/name=heapstream-nats", "--timeout=60s"}},
			{manifest, []string{"delete", "-f", "-", "--ignore-not-found", "--timeout=100s"}},
		} {
			if _, err := c.try(undo.in, undo.args...); err != nil {
				t.Error(err)
			}
		}
	})
	if _, err := c.try(manifest, append([]string{"apply", "-f", "-"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

// moveOver installs a shape as the guide moves over from Heapster and metrics-server: beside what is there, and in its place once it has
// measured. In both their places is an older heapstream, made by create, as Helm does and not by apply, and registered as metrics-server's
// manifest does. From when it answers until the test asks asked, nobody may find a question without an answer.
func (c *realCluster) moveOver(t *testing.T, manifest, image string, asked *asker) {
	t.Helper()
	rights, err := os.ReadFile(filepath.Join(kubernetesDir, "base", "standalone", "rbac.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("testdata/realcluster-before.yaml")
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`name: heapstream\b`).ReplaceAllString(string(rights), "name: heapstream-e2e-before") + "\n---\n" + strings.ReplaceAll(string(before), "IMAGE", image)
	t.Cleanup(func() {
		if _, err := c.try(old, "delete", "-f", "-", "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.try(old, "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	eventually(t, realAppears, func() bool { return asked.once() == "" }, asked.once)
	asked.start(t)

	const registration = "app.kubernetes.io/component"
	c.install(t, manifest, "-l", registration+"!=registration")
	c.kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/heapstream", "--timeout=110s")
	ours := c.ours(t)
	if len(ours) != 1 {
		t.Fatalf("%d pods of heapstream, want 1", len(ours))
	}
	nodes := strings.Fields(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	var measured metricsList
	eventually(t, realAppears, func() bool {
		err = c.get("/api/v1/namespaces/kube-system/pods/http:"+ours[0].Name+":8082/proxy/apis/metrics/v1alpha1/nodes", &measured)
		return err == nil && len(measured.Items) == len(nodes)
	}, func() string {
		return fmt.Sprintf("%d of %d nodes have a rate: %v", len(measured.Items), len(nodes), err)
	})
	c.kubectl(t, "-n", "kube-system", "patch", "service", "heapster", "--type=json",
		"-p", `[{"op": "replace", "path": "/spec/selector", "value": {"app.kubernetes.io/name": "heapstream"}}]`)
	if _, err := c.try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", "apiservice/v1beta1.metrics.k8s.io")
	if at := c.kubectl(t, "get", "apiservice", "v1beta1.metrics.k8s.io", "-o", "jsonpath={.spec.service.name}"); at != "heapstream" {
		t.Errorf("the Metrics API is still of the Service %s", at)
	}
	if selector := c.kubectl(t, "-n", "kube-system", "get", "service", "heapster", "-o", "jsonpath={.spec.selector}"); selector != `{"app.kubernetes.io/name":"heapstream"}` {
		t.Errorf("the Service heapster selects %s", selector)
	}
	c.kubectl(t, "-n", "kube-system", "delete", "deployment/heapster", "--cascade=foreground", "--timeout=100s")
}

// asker asks what dashboards and autoscalers ask, again and again.
type asker struct {
	c    *realCluster
	stop func() (asked int, gaps []string)
}

// once asks each question, and says which has no answer; "" if all have one.
func (a *asker) once() string {
	var names []string
	var nodes, pods metricsList
	for path, into := range map[string]any{
		"/api/v1/namespaces/kube-system/services/http:heapster:/proxy/api/v1/model/nodes/": &names,

		"/apis/metrics.k8s.io/v1beta1/nodes": &nodes,
		"/apis/metrics.k8s.io/v1beta1/pods":  &pods,
	} {
		if err := a.c.get(path, into); err != nil {
			return err.Error()
		}
	}
	if len(names) == 0 || len(nodes.Items) == 0 || len(pods.Items) == 0 {
		return fmt.Sprintf("%d nodes in the model, %d nodes and %d pods with metrics", len(names), len(nodes.Items), len(pods.Items))
	}
	return ""
}

func (a *asker) start(t *testing.T) {
	done, ended := make(chan struct{}), make(chan struct{})
	var asked int
	var gaps []string
	go func() {
		defer close(ended)
		for rate := time.NewTicker(200 * time.Millisecond); ; asked++ {
			if lacks := a.once(); lacks != "" {
				gaps = append(gaps, time.Now().Format(time.TimeOnly)+" "+lacks)
			}
			select {
			case <-done:
				rate.Stop()
				return
			case <-rate.C:
			}
		}
	}()
	a.stop = sync.OnceValues(func() (int, []string) { close(done); <-ended; return asked, gaps })
	t.Cleanup(func() { a.stop() })
}

// check wants an answer to every question that was asked, if any was.
func (a *asker) check(t *testing.T) {
	t.Helper()
	if a.stop == nil {
		return
	}
	asked, gaps := a.stop()
	if len(gaps) > 0 {
		t.Errorf("%d of %d rounds of questions have one without an answer, from %s\nto %s", len(gaps), asked, gaps[0], gaps[len(gaps)-1])
	}
	t.Logf("moved over in %d rounds of questions", asked)
}

// ours are heapstream's own pods in the cluster.
func (c *realCluster) ours(t *testing.T) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := c.get("/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fpart-of%3Dheapstream", &list); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// checkPodsReady waits until every workload has the pods that it wants and all of them are ready; none may have been restarted on its way.
func (c *realCluster) checkPodsReady(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(c.kubectl(t, "-n", "kube-system", "get", "statefulset,deployment,daemonset", "-l", "app.kubernetes.io/part-of=heapstream", "-o", "name")) {
		c.kubectl(t, "-n", "kube-system", "rollout", "status", strings.TrimSpace(line), "--timeout=110s")
	}
	pods := c.ours(t)
	for _, p := range pods {
		for _, s := range p.Status.ContainerStatuses {
			if p.Labels["app.kubernetes.io/name"] == "heapstream-provision" {
				continue // it is tried again until there is a bus
			}
			if !s.Ready || s.RestartCount > 0 {
				t.Errorf("%s/%s: ready %t, %d restarts, last %+v", p.Name, s.Name, s.Ready, s.RestartCount, s.LastTerminationState.Terminated)
			}
		}
	}
	if len(pods) == 0 {
		t.Error("there are no pods of heapstream")
	}
}

// checkHeapsterService asks what dashboards ask of Heapster, through the API server.
func (c *realCluster) checkHeapsterService(t *testing.T) {
	t.Helper()
	var namespaces []string
	path := "/api/v1/namespaces/kube-system/services/http:heapster:/proxy/api/v1/model/namespaces/"
	eventually(t, realAppears, func() bool {
		return c.get(path, &namespaces) == nil && slices.Contains(namespaces, "kube-system")
	}, func() string { return fmt.Sprintf("%s answers %v", path, namespaces) })
}

// checkObjects looks at what the cluster makes of policies and budgets: every one selects pods that are there, and lets one of them go.
func (c *realCluster) checkObjects(t *testing.T) {
	t.Helper()
	ours := c.ours(t)
	selects := func(labels map[string]string) (n int) {
		for _, p := range ours {
			if !slices.ContainsFunc(slices.Collect(maps.Keys(labels)), func(k string) bool { return p.Labels[k] != labels[k] }) {
				n++
			}
		}
		return n
	}
	var policies networkingv1.NetworkPolicyList
	if err := c.get("/apis/networking.k8s.io/v1/namespaces/kube-system/networkpolicies", &policies); err != nil {
		t.Fatal(err)
	}
	for _, p := range policies.Items {
		if strings.HasPrefix(p.Name, "heapstream") && selects(p.Spec.PodSelector.MatchLabels) == 0 {
			t.Errorf("NetworkPolicy %s selects no pod", p.Name)
		}
	}
	var budgets policyv1.PodDisruptionBudgetList
	eventually(t, realAppears, func() bool {
		if err := c.get("/apis/policy/v1/namespaces/kube-system/poddisruptionbudgets", &budgets); err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(budgets.Items, func(b policyv1.PodDisruptionBudget) bool {
			return strings.HasPrefix(b.Name, "heapstream") && b.Status.DisruptionsAllowed < 1
		})
	}, func() string { return fmt.Sprintf("a PodDisruptionBudget lets no pod go: %+v", budgets.Items) })
	for _, p := range ours {
		if p.Spec.Priority == nil || *p.Spec.Priority <= 0 {
			t.Errorf("%s has no priority over what has none", p.Name)
		}
	}
}

// checkTelemetry: each port that is declared for it serves /metrics.
func (c *realCluster) checkTelemetry(t *testing.T) {
	t.Helper()
	served := 0
	for _, p := range c.ours(t) {
		for _, port := range p.Spec.Containers[0].Ports {
			if port.Name != "telemetry" {
				continue
			}
			path := fmt.Sprintf("/api/v1/namespaces/kube-system/pods/%s:%d/proxy/metrics", p.Name, port.ContainerPort)
			resp, err := c.http.Get(c.rest.Host + path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), "process_cpu_seconds_total") {
				t.Errorf("%s: %s, %v: %.200s", path, resp.Status, err, text)
			}
			served++
		}
	}
	if served == 0 {
		t.Error("no pod has a port named telemetry")
	}
}

// checkLogs: nothing is refused for want of a right, in the cluster or on the bus, and nobody must act.
func (c *realCluster) checkLogs(t *testing.T) {
	t.Helper()
	wrong := regexp.MustCompile(`(?i)level=ERROR|\b403\b|forbidden|lacks a permission|permissions violation|grant our ServiceAccount`)
	for _, p := range c.ours(t) {
		if p.Labels["app.kubernetes.io/name"] == "heapstream-provision" {
			continue
		}
		resp, err := c.http.Get(c.rest.Host + "/api/v1/namespaces/kube-system/pods/" + p.Name + "/log")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("log of %s: %s, %v", p.Name, resp.Status, err)
		}
		for line := range strings.Lines(string(text)) {
			if wrong.MatchString(line) {
				t.Errorf("%s says %s", p.Name, line)
			}
		}
	}
}
