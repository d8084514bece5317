package e2e

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

const (
	// realSteps asks TestLoadStepOnRealCluster for so many steps of load, and for their times.
	realSteps = "E2E_REALCLUSTER_STEPS"
	// realOther, if set, says that something else than heapstream serves the Metrics API there, which is to be timed.
	realOther = "E2E_REALCLUSTER_OTHER"
	// realScales is within what an HPA must have acted: it looks every 15 s at most, scales down after the 15 s of its
	// object, and samples are up to 20 s old.
	realScales = 4 * time.Minute
)

// hpas are the ways in which an HPA of realcluster-hpa.yaml can be told of load.
var hpas = []string{"resource", "container", "custom", "external"}

// TestHPAOnRealCluster scales four Deployments by HPAs of four kinds, each after a step of load in its pod and back
// after its end, through the real aggregator.
func TestHPAOnRealCluster(t *testing.T) {
	c := openRealCluster(t)
	c.deploy(t)
	program := c.heapstream(t, "hpa", c.token(t, "kube-system", "heapstream"), c.port)
	program.start()
	t.Cleanup(program.cleanUp)
	for _, name := range []string{"v1.metrics.k8s.io", "v1beta1.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io", "v1beta1.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"} {
		c.kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", "apiservice/"+name)
	}
	c.applyHPAs(t, hpas...)
	for _, name := range hpas {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pod := c.podOf(t, name)
			eventually(t, realScales, func() bool { _, ok := c.used(pod); return ok }, func() string { return "no sample of " + pod })
			if n := c.replicas(t, name); n != 1 {
				t.Errorf("%d replicas before there is load", n)
			}
			at := time.Now()
			c.exec(t, pod, "touch", "/tmp/load")
			eventually(t, realScales, func() bool { return c.replicas(t, name) > 1 }, func() string { return "not scaled up: " + c.events(name) })
			t.Logf("%s: scaled up %s after the step", name, time.Since(at).Round(100*time.Millisecond))
			at = time.Now()
			c.exec(t, pod, "rm", "/tmp/load")
			eventually(t, realScales, func() bool { return c.replicas(t, name) == 1 }, func() string { return "not scaled down: " + c.events(name) })
			t.Logf("%s: scaled down %s after its end", name, time.Since(at).Round(100*time.Millisecond))
		})
	}
}

// TestLoadStepOnRealCluster times a step of load: until a sample of it is served, how old that was, and until an HPA on a
// resource has acted. It asserts nothing about time; what serves the Metrics API may be heapstream or another.
func TestLoadStepOnRealCluster(t *testing.T) {
	steps, _ := strconv.Atoi(os.Getenv(realSteps))
	if steps < 1 {
		t.Skipf("SKIP: set %s to a number of steps, with %s", realSteps, realKubeconfig)
	}
	c := openRealCluster(t)
	var program *child
	if os.Getenv(realOther) == "" {
		c.deploy(t)
		program = c.heapstream(t, "steps", c.token(t, "kube-system", "heapstream"), c.port)
		program.start()
		t.Cleanup(program.cleanUp)
		c.kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", "apiservice/v1beta1.metrics.k8s.io")
	} else {
		c.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+realNamespace+"}\n")
	}
	c.applyHPAs(t, "resource")
	pod := c.podOf(t, "resource")
	var served, age, scaled []time.Duration
	for range steps {
		eventually(t, realScales, func() bool { m, ok := c.used(pod); return ok && m.millicores < 60 && c.replicas(t, "resource") == 1 },
			func() string { return "it does not calm down: " + c.events("resource") })
		at := time.Now()
		c.exec(t, pod, "touch", "/tmp/load")
		var m sampled
		eventually(t, realScales, func() bool { m, _ = c.used(pod); return m.millicores > 100 }, func() string { return "no sample of the load is served" })
		now := time.Now()
		served, age = append(served, now.Sub(at)), append(age, now.Sub(m.at))
		eventually(t, realScales, func() bool { return c.replicas(t, "resource") > 1 }, func() string { return "not scaled up: " + c.events("resource") })
		scaled = append(scaled, time.Since(at))
		c.exec(t, pod, "rm", "/tmp/load")
	}
	for _, row := range []struct {
		what string
		all  []time.Duration
	}{{"step to sample served", served}, {"age of that sample when it was first served", age}, {"step to replicas changed", scaled}} {
		slices.Sort(row.all)
		n := len(row.all)
		t.Logf("%-45s min %6.1f  median %6.1f  max %6.1f s, of %d", row.what, row.all[0].Seconds(), row.all[n/2].Seconds(), row.all[n-1].Seconds(), n)
	}
	if program != nil {
		c.logDelay(t, program)
	}
}

// applyHPAs applies the Deployments and HPAs of these names.
func (c *realCluster) applyHPAs(t *testing.T, names ...string) {
	t.Helper()
	data, err := os.ReadFile("testdata/realcluster-hpa.yaml")
	if err != nil {
		t.Fatal(err)
	}
	head, metrics, _ := strings.Cut(string(data), "\n# ---- metrics\n")
	for _, name := range names {
		_, metric, ok := strings.Cut(metrics, "# "+name+"\n")
		if !ok {
			t.Fatalf("testdata/realcluster-hpa.yaml has no metric %s", name)
		}
		metric, _, _ = strings.Cut(metric, "\n#")
		c.apply(t, strings.NewReplacer("NAMESPACE", realNamespace, "IMAGE", cmp.Or(os.Getenv(realImage), "docker.io/library/busybox:stable"),
			"NAME", "hpa-"+name).Replace(strings.Replace(head, "METRIC", strings.TrimSpace(metric), 1)))
	}
	for _, name := range names {
		c.kubectl(t, "-n", realNamespace, "rollout", "status", "deployment/hpa-"+name, "--timeout=90s")
	}
}

func (c *realCluster) podOf(t *testing.T, name string) string {
	t.Helper()
	return c.kubectl(t, "-n", realNamespace, "get", "pods", "-l", "app=hpa-"+name, "-o", "jsonpath={.items[0].metadata.name}")
}

func (c *realCluster) replicas(t *testing.T, name string) int {
	t.Helper()
	var d appsv1.Deployment
	if err := c.get("/apis/apps/v1/namespaces/"+realNamespace+"/deployments/hpa-"+name, &d); err != nil || d.Spec.Replicas == nil {
		t.Fatalf("deployment %s: %v", name, err)
	}
	return int(*d.Spec.Replicas)
}

// sampled is what the Metrics API serves of a pod's container "app".
type sampled struct {
	millicores int64
	at         time.Time
}

func (c *realCluster) used(pod string) (m sampled, ok bool) {
	var p metricsv1beta1.PodMetrics
	if err := c.get("/apis/metrics.k8s.io/v1beta1/namespaces/"+realNamespace+"/pods/"+pod, &p); err != nil {
		return m, false
	}
	for _, container := range p.Containers {
		if container.Name == "app" {
			return sampled{container.Usage.Cpu().MilliValue(), p.Timestamp.Time}, true
		}
	}
	return m, false
}

// events is what an HPA says of itself.
func (c *realCluster) events(name string) string {
	out, err := c.try("", "-n", realNamespace, "describe", "hpa", "hpa-"+name)
	if err != nil {
		return err.Error()
	}
	return out
}

// logDelay logs what heapstream itself says of the time from a kubelet's answer to its being served.
func (c *realCluster) logDelay(t *testing.T, program *child) {
	t.Helper()
	said, err := os.ReadFile(program.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	at := servingAt.FindAllSubmatch(said, -1)
	if len(at) == 0 {
		t.Fatal("heapstream does not say where it serves")
	}
	resp, err := http.Get("http://" + string(at[len(at)-1][1]) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "heapstream_apigw_delay_seconds") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// checkAutoscalersLists asks as a VPA's recommender and a scheduler do: everything, again and again.
func (c *realCluster) checkAutoscalersLists(t *testing.T) {
	var pods metricsv1.PodMetricsList
	if err := c.get("/apis/metrics.k8s.io/v1/pods", &pods); err != nil || len(pods.Items) == 0 || pods.ResourceVersion == "" {
		t.Errorf("all pods: %v, %d", err, len(pods.Items))
	}
	for _, p := range pods.Items {
		if p.Window.Duration <= 0 || p.Timestamp.IsZero() || len(p.Containers) == 0 {
			text, _ := json.Marshal(p) //nolint:errchkjson // for people
			t.Errorf("pod %s", text)
		}
	}
	var selected metricsv1.PodMetricsList
	if err := c.get("/apis/metrics.k8s.io/v1/namespaces/"+realNamespace+"/pods?labelSelector=app%3Dweb", &selected); err != nil || len(selected.Items) != 3 {
		t.Errorf("pods of web: %v, %d", err, len(selected.Items))
	}
}
