package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// What TestOnRealCluster is told. None begins with HEAPSTREAM_, which the programs read as flags.
const (
	// realKubeconfig names the kubeconfig of an administrator of a cluster that has no Metrics API. Without it
	// the test is skipped.
	realKubeconfig = "E2E_REALCLUSTER_KUBECONFIG"
	// realAddress is where that cluster's API server reaches this machine, no loopback address. Without it the
	// address from which this machine reaches the API server is taken, or its first one that is not loopback.
	realAddress = "E2E_REALCLUSTER_ADDRESS"
	// realImage is an image with busybox on its PATH that the nodes can get; docker.io/library/busybox where
	// not given.
	realImage = "E2E_REALCLUSTER_IMAGE"
)

const (
	realNamespace  = "heapstream-e2e" // what the test makes and removes
	realResolution = 10 * time.Second
	realLimit      = 300 // millicores a container of testdata/realcluster.yaml may use
	// realAppears is within what new numbers must be served: kubelets measure every 10 to 20 s, and a rate
	// takes two measurements.
	realAppears = 90 * time.Second
)

// TestOnRealCluster runs heapstream against a real API server and real kubelets, with deploy/kubernetes as it is:
// the rights of base/standalone/rbac.yaml and the token of its ServiceAccount, registered by outside/apiservice.yaml. Then kubectl
// top must answer through that API server; what it serves must agree with the cgroups of the containers, where
// the node is this machine; and a restart, an OOM kill, scaling and SIGKILL of heapstream itself must neither
// show in what was left alone nor make a wrong number anywhere. Last, each right is taken away in turn, and the
// log must name it.
func TestOnRealCluster(t *testing.T) {
	c := openRealCluster(t)
	c.deploy(t)
	program := c.heapstream(t, "outside", c.token(t, "kube-system", "heapstream"), c.port)
	started := time.Now()
	program.start()
	t.Cleanup(program.cleanUp)

	for _, version := range []string{"v1", "v1beta1"} {
		c.kubectl(t, "wait", "--for=condition=Available", "--timeout=60s", "apiservice/"+version+".metrics.k8s.io")
	}
	t.Logf("both APIServices are available after %s", time.Since(started).Round(100*time.Millisecond))
	f := c.follow(t)
	f.until(t, realAppears, "all running pods are served", func() string { return f.lacks(c.running(t)) })
	t.Logf("all containers are served after %s", time.Since(started).Round(100*time.Millisecond))

	t.Run("kubectl top", c.checkTop)
	t.Run("lists of autoscalers", c.checkAutoscalersLists)
	t.Run("cgroups", func(t *testing.T) { c.checkCgroups(t, f) })
	t.Run("restart", func(t *testing.T) {
		f.checkRestart(t, "restarts", func() { c.exec(t, "restarts", "kill", "1") }, "")
	})
	t.Run("oom kill", func(t *testing.T) {
		f.checkRestart(t, "greedy", func() { c.exec(t, "greedy", "touch", "/tmp/eat") }, "OOMKilled")
	})
	t.Run("model API", func(t *testing.T) { c.checkModel(t, program) })
	t.Run("scale", func(t *testing.T) {
		for _, n := range []int{1, 3} {
			c.kubectl(t, "-n", realNamespace, "scale", "deployment/web", "--replicas="+strconv.Itoa(n))
			at := time.Now()
			f.until(t, realAppears, fmt.Sprintf("%d pods of web are served", n), func() string {
				if got := f.pods("web-"); got != n {
					return fmt.Sprintf("%d are", got)
				}
				return ""
			})
			t.Logf("%d pods of web are served %s after scaling", n, time.Since(at).Round(100*time.Millisecond))
		}
	})
	t.Run("killed", func(t *testing.T) {
		running := c.running(t)
		f.pause()
		_ = program.end(syscall.SIGKILL)
		f.pause() // what was served meanwhile was served by the killed one
		program.start()
		at := time.Now()
		f.until(t, realAppears, "heapstream serves again", func() string { return f.lacks(running) })
		t.Logf("all containers are served again %s after SIGKILL", time.Since(at).Round(100*time.Millisecond))
		f.resume()
		f.until(t, realAppears, "new measurements are served", func() string {
			if p := f.newest("calm", "app"); p.at.Before(at) {
				return "the newest is of " + p.at.String()
			}
			return ""
		})
		t.Logf("new measurements %s after SIGKILL", time.Since(at).Round(100*time.Millisecond))
	})
	f.stop()
	f.checkCalm(t)
	f.checkNumbers(t)
	if err := program.end(syscall.SIGTERM); err != nil {
		t.Errorf("heapstream ended badly though it was told to: %v", err)
	}
	t.Run("rights", c.checkRights)
}

// realCluster is the cluster of realKubeconfig.
type realCluster struct {
	kubeconfig, address string
	port                int
	rest                *rest.Config
	http                *http.Client
	dir                 string // of the serving certificate: tls.crt, tls.key
}

func openRealCluster(t *testing.T) *realCluster {
	t.Helper()
	c := &realCluster{kubeconfig: os.Getenv(realKubeconfig), address: os.Getenv(realAddress), dir: t.TempDir()}
	if c.kubeconfig == "" {
		t.Skipf("needs a Kubernetes cluster: set %s to an administrator's kubeconfig, and if need be %s and %s", realKubeconfig, realAddress, realImage)
	}
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skipf("needs kubectl: %v", err)
	}
	var err error
	if c.rest, err = clientcmd.BuildConfigFromFlags("", c.kubeconfig); err != nil {
		t.Fatal(err)
	}
	if c.http, err = rest.HTTPClientFor(c.rest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { utilnet.CloseIdleConnectionsFor(c.http.Transport) })
	if c.address == "" {
		c.address = localAddress(t, c.rest.Host)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("", "0"))
	if err != nil {
		t.Fatal(err)
	}
	c.port = l.Addr().(*net.TCPAddr).Port
	l.Close() // heapstream takes it, twice: the registration names it
	return c
}

// localAddress is the address of this machine towards the API server.
func localAddress(t *testing.T, host string) string {
	t.Helper()
	u, err := url.Parse(host)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("udp4", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443"))); err == nil { // sends nothing
		ip := conn.LocalAddr().(*net.UDPAddr).IP
		conn.Close()
		if !ip.IsLoopback() {
			return ip.String()
		}
	}
	for ip := range ownAddresses(t) {
		if a := net.ParseIP(ip); a.To4() != nil && a.IsGlobalUnicast() {
			return ip
		}
	}
	t.Fatalf("this machine has no address that the API server could reach: set %s", realAddress)
	return ""
}

// ownAddresses are those of this machine.
func ownAddresses(t *testing.T) map[string]bool {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			own[n.IP.String()] = true
		}
	}
	return own
}

func (c *realCluster) try(in string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // also when the test has ended
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--kubeconfig", c.kubeconfig}, args...)...) //nolint:gosec // as told
	cmd.Stdin = strings.NewReader(in)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, complaint.Bytes())
	}
	return out.String(), nil
}

func (c *realCluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies a manifest and removes what is in it when the test ends.
func (c *realCluster) apply(t *testing.T, manifest string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := c.try(manifest, "delete", "-f", "-", "--ignore-not-found"); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.try(manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// exec runs a busybox command in a container named app.
func (c *realCluster) exec(t *testing.T, pod string, command ...string) {
	t.Helper()
	c.kubectl(t, append([]string{"-n", realNamespace, "exec", pod, "-c", "app", "--", "busybox"}, command...)...)
}

// get decodes an answer of the API server.
func (c *realCluster) get(path string, v any) error {
	resp, err := c.http.Get(c.rest.Host + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, body)
	}
	return json.Unmarshal(body, v)
}

// deploy applies the manifests of deploy/kubernetes and the workload, once it is sure that nobody else serves
// metrics here.
func (c *realCluster) deploy(t *testing.T) {
	t.Helper()
	if there := c.kubectl(t, "get", "apiservice", "v1.metrics.k8s.io", "v1beta1.metrics.k8s.io", "--ignore-not-found", "-o", "name"); there != "" {
		t.Fatalf("the cluster has a Metrics API, which this test would replace: %s", there)
	}
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	certificate := servingCertificate(t, c.dir)
	c.apply(t, read("../deploy/kubernetes/base/standalone/rbac.yaml"))
	c.apply(t, read("../deploy/kubernetes/base/registration/readers.yaml"))
	c.apply(t, strings.NewReplacer("NAMESPACE", realNamespace, "IMAGE", cmp.Or(os.Getenv(realImage), "docker.io/library/busybox:stable")).
		Replace(read("testdata/realcluster.yaml")))
	c.kubectl(t, "-n", realNamespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
	// The registration last, since what came last is removed first: no namespace can be deleted while an API is
	// registered that nobody serves.
	c.apply(t, strings.NewReplacer("ADDRESS", c.address, "PORT", strconv.Itoa(c.port), "CABUNDLE", base64.StdEncoding.EncodeToString(certificate)).
		Replace(read("../deploy/kubernetes/outside/apiservice.yaml")))
}

// servingCertificate writes tls.crt and tls.key for heapstream's Service into dir and returns the former: it
// vouches for itself.
func servingCertificate(t *testing.T, dir string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const name = "heapstream.kube-system.svc"
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"tls.crt": certificate, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate
}

func (c *realCluster) token(t *testing.T, namespace, account string) string {
	t.Helper()
	return strings.TrimSpace(c.kubectl(t, "-n", namespace, "create", "token", account, "--duration=1h"))
}

// heapstream is the program with nothing but a token and the cluster's CA, which it verifies.
func (c *realCluster) heapstream(t *testing.T, name, token string, port int) *child {
	t.Helper()
	if err := rest.LoadTLSFiles(c.rest); err != nil {
		t.Fatal(err)
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["c"] = &clientcmdapi.Cluster{Server: c.rest.Host, CertificateAuthorityData: c.rest.CAData}
	cfg.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: token}
	cfg.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	cfg.CurrentContext = "c"
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, kubeconfig); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return &child{t: t, log: log, args: []string{
		"--source=kubernetes.summary_api:", "--kubeconfig=" + kubeconfig, "--metric_resolution=" + realResolution.String(), "--cluster=" + name,
		"--listen_ip=127.0.0.1", "--heapster-port=0", "--data-dir=" + filepath.Join(dir, "data"),
		"--api-server", "--secure-port=" + strconv.Itoa(port), "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--tls-cert-file=" + filepath.Join(c.dir, "tls.crt"), "--tls-private-key-file=" + filepath.Join(c.dir, "tls.key"),
	}}
}

// running are the pods that run, with all their containers.
func (c *realCluster) running(t *testing.T) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := c.get("/api/v1/pods", &list); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
	})
}

// checkTop asks the stock client, and both versions of the API.
func (c *realCluster) checkTop(t *testing.T) {
	nodes := strings.Fields(c.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	top := c.kubectl(t, "top", "nodes", "--no-headers")
	for _, n := range nodes {
		if !slices.ContainsFunc(strings.Split(top, "\n"), func(l string) bool { return strings.HasPrefix(l, n+" ") && !strings.Contains(l, "unknown") }) {
			t.Errorf("kubectl top nodes says nothing of node %s:\n%s", n, top)
		}
	}
	rows := map[string]bool{}
	for line := range strings.Lines(c.kubectl(t, "top", "pods", "-A", "--containers", "--no-headers")) {
		if w := strings.Fields(line); len(w) == 5 {
			rows[w[0]+"/"+w[1]+"/"+w[2]] = true
		}
	}
	for _, p := range c.running(t) {
		for _, k := range p.Spec.Containers {
			if name := p.Namespace + "/" + p.Name + "/" + k.Name; !rows[name] {
				t.Errorf("kubectl top pods --containers has no row of %s", name)
			}
		}
	}
	for _, kind := range []string{"nodes", "pods"} {
		var names [2][]string
		for i, version := range []string{"v1", "v1beta1"} {
			var list metricsList
			if err := c.get("/apis/metrics.k8s.io/"+version+"/"+kind, &list); err != nil {
				t.Fatal(err)
			}
			for _, item := range list.Items {
				names[i] = append(names[i], item.Metadata.Namespace+"/"+item.Metadata.Name)
			}
		}
		if len(names[0]) == 0 || !slices.Equal(names[0], names[1]) {
			t.Errorf("v1 lists the %s %q, v1beta1 %q", kind, names[0], names[1])
		}
	}
}

// metricsList is a list of metrics.k8s.io of either version and kind.
type metricsList struct {
	Items []struct {
		Metadata   metav1.ObjectMeta
		Timestamp  time.Time
		Window     metav1.Duration
		Containers []struct {
			Name  string
			Usage map[string]resource.Quantity
		}
	}
}

// measured is what was served of one container at one time.
type measured struct {
	at     time.Time // cut to seconds, of the container of its pod that was measured first
	span   time.Duration
	cpu    float64 // millicores
	memory int64   // bytes
}

// containerKey is namespace, pod, container.
type containerKey [3]string

// follower asks for the metrics of all pods again and again.
type follower struct {
	c      *realCluster
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	now    map[containerKey]measured   // by the last answer
	all    map[containerKey][]measured // each once, in order
	err    error                       // of the last question
	paused bool                        // nothing need be right
	gaps   []string                    // what was not right
	asked  int
}

func (c *realCluster) follow(t *testing.T) *follower {
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{c: c, cancel: cancel, done: make(chan struct{}), all: map[containerKey][]measured{}}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			f.ask()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	t.Cleanup(f.stop)
	return f
}

func (f *follower) stop() { f.cancel(); <-f.done }

func (f *follower) ask() {
	var list metricsList
	err := f.c.get("/apis/metrics.k8s.io/v1/pods", &list)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	f.err = err
	if err != nil {
		if !f.paused && len(f.all) > 0 {
			f.gaps = append(f.gaps, err.Error())
		}
		return
	}
	f.now = map[containerKey]measured{}
	for _, p := range list.Items {
		for _, k := range p.Containers {
			cpu, memory := k.Usage["cpu"], k.Usage["memory"]
			m := measured{at: p.Timestamp, span: p.Window.Duration, cpu: cpu.AsApproximateFloat64() * 1000, memory: memory.Value()}
			key := containerKey{p.Metadata.Namespace, p.Metadata.Name, k.Name}
			f.now[key] = m
			if all := f.all[key]; len(all) == 0 || all[len(all)-1] != m {
				f.all[key] = append(all, m)
			}
		}
	}
	calm := containerKey{realNamespace, "calm", "app"}
	if _, ok := f.now[calm]; !ok && len(f.all[calm]) > 0 && !f.paused {
		f.gaps = append(f.gaps, "pod calm was not served at "+time.Now().Format(time.TimeOnly))
	}
}

// pause forgets what was served last, and until resume nothing need be right.
func (f *follower) pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused, f.now, f.err = true, nil, errors.New("not asked yet")
}

func (f *follower) resume() { f.mu.Lock(); f.paused = false; f.mu.Unlock() }

// newest is what was served last of a container of the workload.
func (f *follower) newest(pod, container string) measured {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now[containerKey{realNamespace, pod, container}]
}

// history is a copy of all that was served of each container.
func (f *follower) history() map[containerKey][]measured {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[containerKey][]measured{}
	for k, m := range f.all {
		all[k] = slices.Clone(m)
	}
	return all
}

// pods counts the pods of the workload whose names begin so.
func (f *follower) pods(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.now {
		if k[0] == realNamespace && strings.HasPrefix(k[1], prefix) {
			n++
		}
	}
	return n
}

// lacks says which of the pods' containers are not served; "" if all are.
func (f *follower) lacks(pods []corev1.Pod) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range pods {
		for _, k := range p.Spec.Containers {
			if _, ok := f.now[containerKey{p.Namespace, p.Name, k.Name}]; !ok {
				return fmt.Sprintf("%s/%s/%s is not served (%v)", p.Namespace, p.Name, k.Name, f.err)
			}
		}
	}
	return ""
}

// until waits for a fact, of which lacks says what is wrong with it yet.
func (f *follower) until(t *testing.T, within time.Duration, what string, lacks func() string) {
	t.Helper()
	eventually(t, within, func() bool { return lacks() == "" }, func() string { return what + ": " + lacks() })
}

// checkCalm: pod calm was there in every answer, and every question had one.
func (f *follower) checkCalm(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, gap := range f.gaps {
		t.Error(gap)
	}
	t.Logf("asked %d times for all pods", f.asked)
}

// checkNumbers: no container of the workload ever used less than nothing or more than it may, and a measurement
// is not older than the one before.
func (f *follower) checkNumbers(t *testing.T) {
	t.Helper()
	n := 0
	for key, all := range f.history() {
		for i, m := range all {
			n++
			if m.cpu < 0 || m.memory < 0 || m.span <= 0 || (key[0] == realNamespace && (m.cpu > 1.3*realLimit || m.memory > 64<<20)) {
				t.Errorf("%v used %.1f m over %s and %d bytes at %s", key, m.cpu, m.span, m.memory, m.at)
			}
			if i > 0 && m.at.Before(all[i-1].at) {
				t.Errorf("%v was measured at %s, and then at %s", key, all[i-1].at, m.at)
			}
		}
	}
	t.Logf("%d measurements", n)
}

// checkRestart disturbs a pod of one container and wants no number that spans its restart, then numbers of its new
// life. Reason is why the old one must have ended, if not "".
func (f *follower) checkRestart(t *testing.T, pod string, disturb func(), reason string) {
	var p corev1.Pod
	state := func() (restarts int32, was *corev1.ContainerStateTerminated, started time.Time) {
		if err := f.c.get("/api/v1/namespaces/"+realNamespace+"/pods/"+pod, &p); err != nil {
			t.Fatal(err)
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Running != nil {
				return s.RestartCount, s.LastTerminationState.Terminated, s.State.Running.StartedAt.Time
			}
		}
		return 0, nil, time.Time{}
	}
	disturb()
	f.until(t, time.Minute, "container restarts", func() string {
		if n, _, started := state(); n == 0 || started.IsZero() {
			return "it has not"
		}
		return ""
	})
	_, was, started := state()
	if was == nil || (reason != "" && was.Reason != reason) {
		t.Errorf("the container ended with %+v, want reason %q", was, reason)
	}
	f.until(t, realAppears, "its new life is served", func() string {
		if m := f.newest(pod, "app"); m.at.Add(time.Second).Before(started.Add(time.Second)) || m.at.Add(-m.span).Before(started.Add(-2*time.Second)) {
			return fmt.Sprintf("started at %s, measured last at %s over %s", started, m.at, m.span)
		}
		return ""
	})
	t.Logf("%s started anew at %s and is served again %s later", pod, started.Format(time.TimeOnly), time.Since(started).Round(100*time.Millisecond))
	for _, m := range f.history()[containerKey{realNamespace, pod, "app"}] {
		// Times are cut to seconds, spans rounded to them.
		if from := m.at.Add(-m.span); m.at.After(started.Add(2*time.Second)) && from.Before(started.Add(-2*time.Second)) {
			t.Errorf("a rate of %.1f m from %s to %s spans the restart at %s", m.cpu, from, m.at, started)
		}
	}
}

// checkModel reads the Heapster surface: a series that moves, and the restart that was made.
func (c *realCluster) checkModel(t *testing.T, program *child) {
	pod := "/api/v1/model/namespaces/" + realNamespace + "/pods/"
	eventually(t, realAppears, func() bool { return len(program.model(pod+"calm/containers/app/metrics/cpu/usage_rate").values()) >= 3 },
		func() string { return fmt.Sprint(program.model(pod + "calm/containers/app/metrics/cpu/usage_rate")) })
	restarts := pod + "restarts/containers/app/metrics/restart_count"
	eventually(t, realAppears, func() bool { v := program.model(restarts).Metrics; return len(v) > 0 && v[len(v)-1].Value == 1 },
		func() string { return fmt.Sprint(program.model(restarts)) })
}

// reading is what a container's cgroup said at one moment.
type reading struct {
	at     time.Time
	cpu    float64 // milliseconds
	memory int64   // working set in bytes
}

// checkCgroups reads the cgroups of the containers on this machine while heapstream serves at least four new
// measurements of each, and compares. Of a pod with several containers, only one has been measured at the time that
// is served, so only pods of one container can be held to it exactly.
func (c *realCluster) checkCgroups(t *testing.T, f *follower) {
	own, dirs := ownAddresses(t), map[containerKey]cgroup{}
	for _, p := range c.running(t) {
		if !own[p.Status.HostIP] || len(p.Spec.Containers) != 1 || len(p.Status.ContainerStatuses) != 1 || len(p.Status.InitContainerStatuses) > 0 {
			continue
		}
		_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
		if g, ok := findCgroup(id); ok {
			dirs[containerKey{p.Namespace, p.Name, p.Spec.Containers[0].Name}] = g
		}
	}
	if len(dirs) == 0 {
		t.Skip("no node of the cluster is this machine, or its cgroups cannot be read: nothing to compare with")
	}
	read := map[containerKey][]reading{}
	since, deadline := time.Now(), time.Now().Add(3*time.Minute)
	const points = 4
	enough := func() bool {
		all := f.history()
		for key := range dirs {
			if len(within(all[key], since, time.Now().Add(-2*time.Second))) < points {
				return false
			}
		}
		return true
	}
	for !enough() {
		if time.Now().After(deadline) {
			t.Fatalf("not %d new measurements of each container within 3 minutes", points)
		}
		for key, g := range dirs {
			if r, err := g.read(); err == nil {
				read[key] = append(read[key], r)
			}
		}
		time.Sleep(200 * time.Millisecond) // a sample rate
	}
	all := f.history()
	var worst float64
	var exact, compared int
	for key := range dirs {
		var ours, theirs float64
		for _, m := range within(all[key], since, time.Now().Add(-2*time.Second)) {
			low, high, mean := usedBetween(read[key], m)
			if m.cpu < low-1 || m.cpu > high+1 {
				t.Errorf("%v: %.2f m are served for the %s before %s; its cgroup says %.2f to %.2f", key, m.cpu, m.span, m.at, low, high)
			}
			ours, theirs = ours+m.cpu, theirs+mean
			near := memoryNear(read[key], m)
			compared++
			if near == 0 {
				exact++
			}
			if near > 256<<10 && float64(near) > 0.02*float64(m.memory) {
				t.Errorf("%v: %d bytes are served for %s; its cgroup was %d away from it", key, m.memory, m.at, near)
			}
		}
		off := math.Abs(ours-theirs) / max(theirs, float64(points))
		worst = max(worst, off)
		if off > 0.05 {
			t.Errorf("%v: %.2f m are served in the sum of %d measurements; its cgroup says %.2f", key, ours, points, theirs)
		}
	}
	t.Logf("%d containers, %d measurements: cpu differs from the cgroup by at most %.2f %% in a container's sum; memory is the same to the byte in %d", len(dirs), compared, 100*worst, exact)
}

// within are the measurements that lie between two times with all their span.
func within(all []measured, from, to time.Time) (in []measured) {
	for _, m := range all {
		if m.at.Add(-m.span-time.Second).After(from) && m.at.Add(time.Second).Before(to) {
			in = append(in, m)
		}
	}
	return in
}

// usedBetween bounds a measurement in millicores by what the cgroup said around it, times being cut to seconds and
// spans rounded, and says what it would be with both exact.
func usedBetween(read []reading, m measured) (low, high, mean float64) {
	at := func(t time.Time) float64 {
		i, _ := slices.BinarySearchFunc(read, t, func(r reading, t time.Time) int { return r.at.Compare(t) })
		i = min(max(i, 1), len(read)-1)
		a, b := read[i-1], read[i]
		return a.cpu + (b.cpu-a.cpu)*min(max(float64(t.Sub(a.at))/float64(b.at.Sub(a.at)), 0), 1)
	}
	const half = 500 * time.Millisecond
	start, span := m.at.Add(-m.span), m.span.Seconds()
	low = (at(m.at) - at(start.Add(3*half))) / (span + 0.5)
	high = (at(m.at.Add(2*half)) - at(start.Add(-half))) / (span - 0.5)
	mean = (at(m.at.Add(half)) - at(start.Add(half))) / span
	return low, high, mean
}

// memoryNear is how far the measurement is from the nearest that the cgroup said around its time.
func memoryNear(read []reading, m measured) int64 {
	near := int64(math.MaxInt64)
	for _, r := range read {
		if r.at.After(m.at.Add(-time.Second)) && r.at.Before(m.at.Add(2*time.Second)) {
			d := r.memory - m.memory
			near = min(near, max(d, -d))
		}
	}
	return near
}

// cgroup is where a container's usage can be read: in version 2 one directory, in version 1 two.
type cgroup struct{ cpu, memory string }

const cgroupRoot = "/sys/fs/cgroup"

func findCgroup(id string) (g cgroup, ok bool) {
	find := func(root string) (found string) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.Contains(d.Name(), id) {
				found = path
				return filepath.SkipAll
			}
			return nil
		})
		return found
	}
	if id == "" {
		return g, false
	}
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		g.cpu = find(cgroupRoot)
		return g, g.cpu != ""
	}
	for _, name := range []string{"cpuacct", "cpu,cpuacct"} {
		if g.cpu = find(filepath.Join(cgroupRoot, name)); g.cpu != "" {
			break
		}
	}
	g.memory = find(filepath.Join(cgroupRoot, "memory"))
	return g, g.cpu != "" && g.memory != ""
}

func (g cgroup) read() (r reading, err error) {
	one := func(dir, file, field string) (v int64) {
		data, e := os.ReadFile(filepath.Join(dir, file))
		if e != nil {
			err = e
			return 0
		}
		for line := range strings.Lines(string(data)) {
			w := strings.Fields(line)
			if field == "" || (len(w) == 2 && w[0] == field) {
				v, err = strconv.ParseInt(w[len(w)-1], 10, 64)
				return v
			}
		}
		err = fmt.Errorf("%s/%s has no %q", dir, file, field)
		return 0
	}
	var used, idle int64
	if g.memory == "" {
		r.cpu = float64(one(g.cpu, "cpu.stat", "usage_usec")) / 1e3
		used, idle = one(g.cpu, "memory.current", ""), one(g.cpu, "memory.stat", "inactive_file")
	} else {
		r.cpu = float64(one(g.cpu, "cpuacct.usage", "")) / 1e6
		used, idle = one(g.memory, "memory.usage_in_bytes", ""), one(g.memory, "memory.stat", "total_inactive_file")
	}
	r.at, r.memory = time.Now(), max(0, used-idle)
	return r, err
}

// checkRights takes each rule of the ClusterRole away from an account of its own, and each binding, and wants the log
// to name what is missing.
func (c *realCluster) checkRights(t *testing.T) {
	var role rbacv1.ClusterRole
	if err := c.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/heapstream", &role); err != nil {
		t.Fatal(err)
	}
	type variant struct {
		name  string
		rules []rbacv1.PolicyRule
		says  []string
	}
	var variants []variant
	for i, rule := range role.Rules {
		for _, name := range rule.Resources {
			rest := slices.Clone(role.Rules)
			rest[i].Resources = slices.DeleteFunc(slices.Clone(rule.Resources), func(r string) bool { return r == name })
			if len(rest[i].Resources) == 0 {
				rest = slices.Delete(rest, i, i+1)
			}
			variants = append(variants, variant{strings.ReplaceAll(name, "/", "-"), rest, []string{"grant our ServiceAccount", name}})
		}
	}
	variants = append(variants, variant{"configmap", role.Rules, []string{"extension-apiserver-authentication-reader"}})
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			account := "without-" + v.name
			meta := func(name, namespace string) metav1.ObjectMeta {
				return metav1.ObjectMeta{Name: name, Namespace: namespace}
			}
			rbac := func(kind string) metav1.TypeMeta {
				return metav1.TypeMeta{Kind: kind, APIVersion: "rbac.authorization.k8s.io/v1"}
			}
			subjects := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: realNamespace}}
			ref := func(kind, name string) rbacv1.RoleRef {
				return rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: kind, Name: name}
			}
			all := "heapstream-e2e-" + account
			objects := []any{
				&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{Kind: "ServiceAccount", APIVersion: "v1"}, ObjectMeta: meta(account, realNamespace)},
				&rbacv1.ClusterRole{TypeMeta: rbac("ClusterRole"), ObjectMeta: meta(all, ""), Rules: v.rules},
				&rbacv1.ClusterRoleBinding{TypeMeta: rbac("ClusterRoleBinding"), ObjectMeta: meta(all, ""), Subjects: subjects, RoleRef: ref("ClusterRole", all)},
				&rbacv1.ClusterRoleBinding{TypeMeta: rbac("ClusterRoleBinding"), ObjectMeta: meta(all+":auth", ""), Subjects: subjects, RoleRef: ref("ClusterRole", "system:auth-delegator")},
			}
			if v.name != "configmap" {
				objects = append(objects, &rbacv1.RoleBinding{TypeMeta: rbac("RoleBinding"), ObjectMeta: meta(all, "kube-system"), Subjects: subjects, RoleRef: ref("Role", "extension-apiserver-authentication-reader")})
			}
			manifest, err := json.Marshal(map[string]any{"kind": "List", "apiVersion": "v1", "items": objects})
			if err != nil {
				t.Fatal(err)
			}
			c.apply(t, string(manifest))
			program := c.heapstream(t, account, c.token(t, realNamespace, account), c.port)
			if v.name == "nodes-metrics" { // a right of another source than the others
				program.args[0] = "--source=kubernetes:"
			}
			program.start()
			t.Cleanup(program.cleanUp)
			said := func() string {
				data, err := os.ReadFile(program.log.Name())
				if err != nil {
					t.Fatal(err)
				}
				return string(data)
			}
			complaints := func() map[string]int {
				lines := map[string]int{}
				for line := range strings.Lines(said()) {
					if !slices.ContainsFunc(v.says, func(s string) bool { return !strings.Contains(line, s) }) {
						_, line, _ = strings.Cut(line, " ") // the time
						lines[line]++
					}
				}
				return lines
			}
			eventually(t, patience, func() bool { return len(complaints()) > 0 }, func() string { return fmt.Sprintf("the log does not name %q:\n%s", v.says, said()) })
			for line, n := range complaints() {
				if n > 1 {
					t.Errorf("said %d times: %s", n, line)
				}
			}
			t.Log(slices.Collect(maps.Keys(complaints())))
		})
	}
}
