package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	"k8s.io/metrics/pkg/client/clientset/versioned"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
)

// patience is for facts that need a few ticks, on a machine that is busy with other things.
const patience = 2 * time.Minute

// TestKubernetesClients asks by the clientsets of Kubernetes and by kubectl, through the API server of a simulated
// cluster that knows who asks and hands the request on as the aggregation layer does.
func TestKubernetesClients(t *testing.T) {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 2, 8
	p := &plumbing{cluster: simtest.Start(t, cfg, simcluster.Deps{}), log: &logbook{}}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := p.cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.pipeline = launch(t, standalone.Deps{Log: p.log.logger(), SecureListener: secure},
		"--source=kubernetes.summary_api:", "--kubeconfig="+kubeconfig, "--metric_resolution=5s", "--cluster=sim",
		"--api-server", "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	if err := p.cluster.SetGateway("https://" + secure.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Run("clientsets", p.clientsets)
	t.Run("kubectl", p.kubectlReads)
}

func (p *plumbing) config(user string) *rest.Config {
	token := p.cluster.Token()
	if user != "" {
		token = p.cluster.TokenOf(user)
	}
	return &rest.Config{Host: p.cluster.SecureAPIServer(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: p.cluster.CA()}, QPS: -1}
}

// clientsets are those of k8s.io/metrics: what kubectl, the HPA, the VPA and schedulers ask by.
func (p *plumbing) clientsets(t *testing.T) {
	type clients struct {
		resource *versioned.Clientset
		custom   custom_metrics.CustomMetricsClient
		external external_metrics.ExternalMetricsClient
		core     *kubernetes.Clientset
	}
	as := func(user string) (c clients) {
		t.Helper()
		cfg := p.config(user)
		var err error
		if c.resource, err = versioned.NewForConfig(cfg); err != nil {
			t.Fatal(err)
		}
		if c.core, err = kubernetes.NewForConfig(cfg); err != nil {
			t.Fatal(err)
		}
		admin, err := kubernetes.NewForConfig(p.config(""))
		if err != nil {
			t.Fatal(err)
		}
		groups, err := restmapper.GetAPIGroupResources(admin.Discovery())
		if err != nil {
			t.Fatal(err)
		}
		c.custom = custom_metrics.NewForConfig(cfg, restmapper.NewDiscoveryRESTMapper(groups), custom_metrics.NewAvailableAPIsGetter(admin.Discovery()))
		if c.external, err = external_metrics.NewForConfig(cfg); err != nil {
			t.Fatal(err)
		}
		return c
	}
	var last string
	say := func() string { return last }
	is := func(holds bool, format string, args ...any) bool {
		last = fmt.Sprintf(format, args...)
		return holds
	}
	c := as("")
	eventually(t, patience, func() bool {
		nodes, err := c.resource.MetricsV1().NodeMetricses().List(t.Context(), metav1.ListOptions{})
		return is(err == nil && len(nodes.Items) == 2 && nodes.Items[0].Usage.Cpu().Sign() > 0, "nodes: %v %+v", err, nodes)
	}, say)
	eventually(t, patience, func() bool {
		pods, err := c.resource.MetricsV1beta1().PodMetricses("").List(t.Context(), metav1.ListOptions{})
		got := map[string]bool{}
		if err == nil {
			for _, p := range pods.Items {
				for _, c := range p.Containers {
					got[p.Namespace+" "+p.Name+" "+c.Name] = true
				}
			}
		}
		want := p.runningContainers(t)
		return is(err == nil && len(got) == len(want), "pods: %v %d containers of %d", err, len(got), len(want))
	}, say)

	deployments, err := c.core.AppsV1().Deployments("").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(deployments.Items) == 0 {
		t.Fatalf("deployments: %v %+v", err, deployments)
	}
	web := deployments.Items[slices.IndexFunc(deployments.Items, func(d appsv1.Deployment) bool { return d.Status.Replicas > 0 || *d.Spec.Replicas > 0 })]
	selector, err := metav1.LabelSelectorAsSelector(web.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	of := c.custom.NamespacedMetrics(web.Namespace)
	eventually(t, patience, func() bool {
		pods, err := of.GetForObjects(schema.GroupKind{Kind: "Pod"}, selector, "cpu_usage_rate_avg_10s", labels.Everything())
		return is(err == nil && len(pods.Items) == int(*web.Spec.Replicas) && pods.Items[0].DescribedObject.Kind == "Pod", "pods of %s: %v %+v", web.Name, err, pods)
	}, say)
	eventually(t, patience, func() bool {
		one, err := of.GetForObject(schema.GroupKind{Group: "apps", Kind: "Deployment"}, web.Name, "memory_working_set", labels.Everything())
		return is(err == nil && one.Value.Sign() > 0 && one.DescribedObject.Name == web.Name, "%s: %v %+v", web.Name, err, one)
	}, say)
	node := p.cluster.Nodes()[0].Name()
	eventually(t, patience, func() bool {
		one, err := c.custom.RootScopedMetrics().GetForObject(schema.GroupKind{Kind: "Node"}, node, "cpu_node_utilization_p95_10s", labels.Everything())
		return is(err == nil && one.Value.Sign() > 0, "node: %v %+v", err, one)
	}, say)
	eventually(t, patience, func() bool {
		one, err := c.custom.RootScopedMetrics().GetForObject(schema.GroupKind{Kind: "Namespace"}, web.Namespace, "cpu_usage_rate", labels.Everything())
		return is(err == nil && one.Value.Sign() > 0, "namespace: %v %+v", err, one)
	}, say)
	if _, err := of.GetForObject(schema.GroupKind{Kind: "Pod"}, "none", "cpu_usage_rate", labels.Everything()); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that is not there: %v", err)
	}
	if _, err := of.GetForObjects(schema.GroupKind{Kind: "Pod"}, selector, "cpu_usage_rate_avg_1s", labels.Everything()); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "resolution") {
		t.Errorf("a span that cannot be: %v", err)
	}
	eventually(t, patience, func() bool {
		list, err := c.external.NamespacedMetrics(web.Namespace).List("cpu_usage_rate", labels.SelectorFromSet(labels.Set{"type": "pod", "workload": web.Name}))
		return is(err == nil && len(list.Items) == int(*web.Spec.Replicas), "external: %v %+v", err, list)
	}, say)

	// who may not
	nobody := as(simcluster.NobodyName)
	if _, err := nobody.resource.MetricsV1().NodeMetricses().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("resource metrics as nobody: %v", err)
	}
	if _, err := nobody.custom.NamespacedMetrics(web.Namespace).GetForObjects(schema.GroupKind{Kind: "Pod"}, selector, "cpu_usage_rate", labels.Everything()); !apierrors.IsForbidden(err) {
		t.Errorf("custom metrics as nobody: %v", err)
	}
	if _, err := nobody.external.NamespacedMetrics(web.Namespace).List("cpu_usage_rate", labels.Everything()); !apierrors.IsForbidden(err) {
		t.Errorf("external metrics as nobody: %v", err)
	}
	if w, err := nobody.resource.MetricsV1().PodMetricses("").Watch(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a watch as nobody: %v", err)
		w.Stop()
	}

	// a watch from a list's version
	pods, err := c.resource.MetricsV1().PodMetricses(web.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector.String(), Limit: 500})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("pods to watch: %v", err)
	}
	w, err := c.resource.MetricsV1().PodMetricses(web.Namespace).Watch(t.Context(), metav1.ListOptions{LabelSelector: selector.String(), ResourceVersion: pods.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	before := pods.Items[0]
	end := time.After(patience)
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				t.Fatalf("the watch ended: %+v", e.Object)
			}
			after, ok := e.Object.(*metricsv1.PodMetrics)
			if !ok || !selector.Matches(labels.Set(after.Labels)) {
				t.Fatalf("event %s %+v", e.Type, e.Object)
			}
			if after.Name == before.Name && after.Timestamp.After(before.Timestamp.Time) && e.Type == watch.Modified {
				return
			}
		case <-end:
			t.Fatal("no new sample of a pod is told")
		}
	}
}

// kubectlReads asks by the kubectl of this machine; what its version does not know is left out.
func (p *plumbing) kubectlReads(t *testing.T) {
	binary, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("SKIP: no kubectl on this machine: apt-get install kubernetes-client, or kubectl")
	}
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "config")
	if err := p.cluster.WriteKubeconfig(kubeconfig, simcluster.AdminName); err != nil {
		t.Fatal(err)
	}
	command := func(ctx context.Context, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, binary, append([]string{"--cache-dir=" + filepath.Join(dir, "cache")}, args...)...) //nolint:gosec // found above
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
		return cmd
	}
	run := func(args ...string) (string, error) {
		var stderr bytes.Buffer
		cmd := command(t.Context(), args...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("kubectl %q: %w: %s", args, err, stderr.String())
		}
		return string(out), nil
	}
	help, err := run("top", "pods", "--help")
	if err != nil {
		t.Fatal(err)
	}
	containers := p.runningContainers(t)
	namespace, pod := strings.Fields(containers[0])[0], strings.Fields(containers[0])[1]
	for _, tt := range []struct {
		args []string
		want []string // each must be in what is printed
	}{
		{[]string{"top", "nodes"}, []string{"CPU(cores)", p.cluster.Nodes()[1].Name()}},
		{[]string{"top", "nodes", "--sort-by=memory", "--no-headers"}, []string{p.cluster.Nodes()[0].Name()}},
		{[]string{"top", "nodes", "--show-swap"}, []string{"SWAP(bytes)"}},
		{[]string{"top", "pods", "-A"}, []string{"NAMESPACE", pod}},
		{[]string{"top", "pods", "-n", namespace, "--containers"}, []string{strings.Fields(containers[0])[2]}},
		{[]string{"top", "pods", "-n", namespace, "--sum"}, []string{"________"}},
		{[]string{"top", "pods", "-n", namespace, "--sort-by=cpu"}, []string{pod}},
		{[]string{"top", "pods", "-n", namespace, "--show-swap"}, []string{"SWAP(bytes)"}},
		{[]string{"top", "pods", "-A", "-l", "pod-template-hash"}, []string{"NAMESPACE"}},
		{[]string{"top", "pod", "-n", namespace, pod}, []string{pod}},
		{[]string{"get", "--raw", "/apis/metrics.k8s.io/v1/nodes"}, []string{`"kind":"NodeMetricsList"`}},
		{[]string{"get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2/namespaces/" + namespace + "/pods/*/memory_working_set_max_10s"}, []string{`"kind":"MetricValueList"`, pod}},
		{[]string{"get", "--raw", "/apis/external.metrics.k8s.io/v1beta1/namespaces/" + namespace + "/cpu_usage_rate?labelSelector=type%3Dnode"}, []string{p.cluster.Nodes()[0].Name()}},
		{[]string{"get", "podmetrics", "-n", namespace, "-o", "yaml"}, []string{"kind: PodMetrics", "name: " + pod}},
		{[]string{"get", "podmetrics", "-n", namespace, "-o", "wide"}, []string{"SWAP", pod}},
		{[]string{"get", "nodemetrics"}, []string{"WINDOW", p.cluster.Nodes()[0].Name()}},
	} {
		name := strings.Join(tt.args, " ")
		if slices.Contains(tt.args, "--show-swap") && !strings.Contains(help, "--show-swap") {
			t.Logf("SKIP: this kubectl has no %s", name)
			continue
		}
		var out string
		var err error
		eventually(t, patience, func() bool {
			out, err = run(tt.args...)
			return err == nil && !slices.ContainsFunc(tt.want, func(want string) bool { return !strings.Contains(out, want) })
		}, func() string { return fmt.Sprintf("kubectl %s: %v %.1000s, want %q in it", name, err, out, tt.want) })
	}

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := command(ctx, "get", "podmetrics", "-n", namespace, "-w")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	seen := map[string]int{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 4 {
			t.Fatalf("kubectl prints %q", lines.Text())
		}
		if seen[f[0]]++; seen[f[0]] == 3 { // listed, and told of twice
			return
		}
	}
	t.Errorf("kubectl get -w ended, and printed only %v: %s", seen, complaints.String())
}
