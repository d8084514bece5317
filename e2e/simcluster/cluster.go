package simcluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Cluster is a simulated cluster. Its methods may be called from any goroutine.
type Cluster struct {
	cfg   Config
	log   *slog.Logger
	now   func() time.Time
	wd    *world
	pki   *pki
	users []User
	ready chan struct{}

	// Set by Run before ready is closed.
	httpAddr, httpsAddr net.Addr
	kubeletPort         int
	readOnlyPort        int
	shared              netip.Addr // valid when all nodes share one address
	kubelets            *kubelets

	front front // of the API server

	mu        sync.RWMutex // guards what follows
	rv        uint64
	stores    map[string]*store // by plural name
	nodes     []*Node           // in order of index
	byName    map[string]*Node
	byAddr    map[netip.Addr]*Node
	nextNode  int
	workloads []*workload // those that churn can touch
	rng       *mrand.Rand
	lives     uint64    // pods made after the start
	newest    *podState // the last of them
	eventSeq  uint64
	eventLog  []string // names of the events kept, oldest first
	gateway   *url.URL
	model     *url.URL
	pages     []pageSnapshot // of lists that go on
	running   bool
}

// New checks the configuration and grows the cluster; it opens nothing.
func New(cfg Config, deps Deps) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure simulated cluster: %w", err)
	}
	c := &Cluster{cfg: cfg, log: deps.Log, now: deps.Now, ready: make(chan struct{}), byName: map[string]*Node{}, byAddr: map[netip.Addr]*Node{},
		rng: mrand.New(mrand.NewPCG(cfg.Seed, 0x5eed))}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	now := c.now()
	if cfg.Epoch.IsZero() {
		c.cfg.Epoch = now.UTC().Truncate(24 * time.Hour).Add(-24 * time.Hour)
	}
	c.users = slices.Clone(cfg.Users)
	if len(c.users) == 0 {
		c.users = DefaultUsers(NewToken(), NewToken(), NewToken())
	}
	for _, set := range []struct {
		name string
		url  string
		to   **url.URL
	}{{"gateway", cfg.GatewayURL, &c.gateway}, {"model", cfg.ModelURL, &c.model}} {
		u, err := parseTarget(set.url)
		if err != nil {
			return nil, fmt.Errorf("configure simulated cluster: %s: %w", set.name, err)
		}
		*set.to = u
	}
	var err error
	if c.pki, err = newPKI(now); err != nil {
		return nil, fmt.Errorf("make certificates of simulated cluster: %w", err)
	}
	c.wd = &world{cfg: &c.cfg, epoch: c.cfg.Epoch.UnixNano()}
	if err := c.grow(now); err != nil {
		return nil, fmt.Errorf("grow simulated cluster: %w", err)
	}
	return c, nil
}

// NewToken makes a bearer token of 128 random bits.
func NewToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// parseTarget reads the URL of a server behind the API server; "" is none.
func parseTarget(s string) (*url.URL, error) {
	if s == "" {
		return nil, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL of an http or https server", s)
	}
	return u, nil
}

// grow makes everything that is there at the start.
func (c *Cluster) grow(now time.Time) error {
	c.stores = map[string]*store{}
	for _, r := range resources {
		if r.storeOf == "" {
			c.stores[r.plural] = newStore(c.cfg.History)
		}
	}
	// Above every version of an earlier run, as long as that made fewer than a thousand changes a second.
	c.rv = uint64(now.Unix()) * 1000
	load := func(plural string, st state) {
		c.rv++
		c.stores[plural].load(c.rv, st)
	}
	names := []string{"default", "kube-system", "kube-public", "kube-node-lease"}
	for i := range c.cfg.Namespaces {
		names = append(names, c.wd.namespace(i))
	}
	if c.cfg.Recorded {
		names = append(names, "demo")
	}
	for _, name := range names {
		load("namespaces", fixed{c.namespaceObject(name)})
	}
	for _, m := range c.pki.configMaps(c.cfg.Epoch) {
		load("configmaps", fixed{m})
	}
	for i := range c.cfg.Nodes {
		n := c.addNode(i)
		n.old.Store(i >= c.cfg.Nodes-c.cfg.OldKubelets)
		if i == 0 && c.cfg.Recorded {
			var err error
			if n.recorded, err = newRecording(now, n); err != nil {
				return fmt.Errorf("read recorded answers: %w", err)
			}
		}
	}
	pods := map[*Node][]*podState{}
	c.wd.grow(c.nodes, func(w *workload) {
		switch w.kind {
		case deployment:
			load("deployments", &workloadEntry{w, int32(w.replicas)})
			load("replicasets", &replicaSetEntry{w, int32(w.replicas)})
		case statefulSet:
			load("statefulsets", &workloadEntry{w, int32(w.replicas)})
		case daemonSet:
			load("daemonsets", &workloadEntry{w, int32(w.replicas)})
		case cronJob:
			load("cronjobs", &workloadEntry{w, 0})
		}
		c.workloads = append(c.workloads, w)
	}, func(j *jobRun) {
		load("jobs", &jobEntry{j: j})
	}, func(p *podState) {
		load("pods", p)
		pods[p.node] = append(pods[p.node], p)
	})
	for _, n := range c.nodes {
		n.state.Store(&nodeState{pods: pods[n], ready: true})
		if n.recorded != nil {
			n.recorded.load(load)
		} else {
			load("nodes", &nodeEntry{n: n, ready: true, since: n.created})
		}
	}
	for _, s := range c.stores {
		s.settle(c.rv)
	}
	return nil
}

func (c *Cluster) namespaceObject(name string) *corev1.Namespace {
	h := mix(c.cfg.Seed, 50)
	for i := range len(name) {
		h = mix(h, uint64(name[i]))
	}
	return &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uidOf(h)), CreationTimestamp: metav1.NewTime(c.cfg.Epoch.Add(-72 * time.Hour)),
			Labels: map[string]string{"kubernetes.io/metadata.name": name}},
		Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{"kubernetes"}}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
	}
}

// addNode makes node i and its address. The caller holds mu, or is New.
func (c *Cluster) addNode(i int) *Node {
	n := c.wd.newNode(i)
	switch {
	case c.shared.IsValid():
		n.addr = c.shared
	case c.cfg.SharedAddress.IsValid():
		n.addr = c.cfg.SharedAddress
	default:
		n.addr = addrAfter(c.cfg.FirstAddress, i)
	}
	n.began.Store(n.created)
	c.nodes = append(c.nodes, n)
	c.byName[n.name] = n
	c.byAddr[n.addr] = n
	c.nextNode = i + 1
	return n
}

// addrAfter is the i-th address after first, leaving out those that end in 0 or 255.
func addrAfter(first netip.Addr, i int) netip.Addr {
	b := first.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	low := v&255 - 1 + uint32(i)
	v = v&^255 + low/254<<8 + low%254 + 1
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// Run serves the cluster until ctx ends or a listener fails, and returns after everything it started has ended.
// It can run once.
func (c *Cluster) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return errors.New("run simulated cluster: it has run before")
	}
	c.running = true
	c.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	spawn := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	api := newAPIServer(c)
	listeners, err := c.listenAPI()
	if err != nil {
		return err
	}
	k, err := newKubelets(c)
	if err != nil {
		for _, l := range listeners {
			l.Close()
		}
		return err
	}
	spawn(func() error { return api.serve(ctx, listeners) })
	spawn(func() error { return k.serve(ctx) })
	spawn(func() error { return c.live(ctx) })
	c.log.Info("simulated cluster is up", "nodes", len(c.nodes), "api", c.APIServer(), "kubelets", c.kubeletPort)
	close(c.ready)
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("run simulated cluster: %w", err)
	}
	return nil
}

func (c *Cluster) listenAPI() (ls []net.Listener, err error) {
	for i, addr := range []string{c.cfg.ListenHTTP, c.cfg.ListenHTTPS} {
		if addr == "" {
			ls = append(ls, nil)
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			for _, l := range ls {
				if l != nil {
					l.Close()
				}
			}
			return nil, fmt.Errorf("listen for the simulated API server: %w", err)
		}
		if i == 0 {
			c.httpAddr = l.Addr()
		} else {
			c.httpsAddr = l.Addr()
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// Ready is closed when Run serves; the accessors of addresses and ports may be called from then on.
func (c *Cluster) Ready() <-chan struct{} { return c.ready }

// APIServer is the URL of the plain API server, or of the https one if there is no other.
func (c *Cluster) APIServer() string {
	if c.httpAddr != nil {
		return "http://" + dialable(c.httpAddr)
	}
	return c.SecureAPIServer()
}

// SecureAPIServer is the URL of the https API server, "" if there is none.
func (c *Cluster) SecureAPIServer() string {
	if c.httpsAddr == nil {
		return ""
	}
	return "https://" + dialable(c.httpsAddr)
}

// dialable replaces "all addresses" by one that can be dialled.
func dialable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// CA is the PEM of the authority that signed the certificates of the API server and of every kubelet.
func (c *Cluster) CA() []byte { return slices.Clone(c.pki.caPEM) }

// FrontProxyCA is the PEM of the authority behind the client certificate that the API server shows to gateways.
func (c *Cluster) FrontProxyCA() []byte { return slices.Clone(c.pki.proxyCAPEM) }

// Token is the first user's bearer token: the administrator's by default.
func (c *Cluster) Token() string { return c.users[0].Token }

// TokenOf is the token of the user of that name, "" if there is none.
func (c *Cluster) TokenOf(user string) string {
	for _, u := range c.users {
		if u.Name == user {
			return u.Token
		}
	}
	return ""
}

// KubeletPort is the TLS port of all kubelets with own addresses, 0 with a shared address.
func (c *Cluster) KubeletPort() int { return c.kubeletPort }

// KubeletReadOnlyPort is the plain port of all kubelets with own addresses, 0 with a shared address.
func (c *Cluster) KubeletReadOnlyPort() int { return c.readOnlyPort }

// Shared tells whether all nodes share one address and have own ports.
func (c *Cluster) Shared() bool { return c.shared.IsValid() }

// Nodes are the nodes there are now, in order of their numbers. The slice is the caller's.
func (c *Cluster) Nodes() []*Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Clone(c.nodes)
}

// NodeURL is where a node's kubelet answers: over TLS, or plain.
func (c *Cluster) NodeURL(name string, tls bool) (string, error) {
	n, err := c.node(name)
	if err != nil {
		return "", err
	}
	port, scheme := c.readOnlyPort, "http"
	if tls {
		port, scheme = c.kubeletPort, "https"
	}
	if c.shared.IsValid() {
		port = n.Port()
	}
	return scheme + "://" + net.JoinHostPort(n.addr.String(), strconv.Itoa(port)), nil
}

func (c *Cluster) node(name string) (*Node, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if n := c.byName[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("no node %q in the simulated cluster", name)
}

// PodName is a pod of the cluster.
type PodName struct{ Namespace, Name, Node string }

// Pods are the pods of a node ("" = of all nodes) in order of namespace and name; finished ones are left out.
func (c *Cluster) Pods(node string) []PodName {
	c.mu.Lock()
	all := c.stores["pods"].snapshot()
	c.mu.Unlock()
	var out []PodName
	for _, r := range all {
		host, _ := r.st.field("spec.nodeName")
		if phase, _ := r.st.field("status.phase"); phase != string(corev1.PodRunning) || node != "" && host != node {
			continue
		}
		ns, name := r.st.key()
		out = append(out, PodName{ns, name, host})
	}
	return out
}

// SetGateway changes where metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io are answered; "" is nowhere.
func (c *Cluster) SetGateway(target string) error {
	u, err := parseTarget(target)
	if err != nil {
		return fmt.Errorf("set gateway: %w", err)
	}
	c.mu.Lock()
	c.gateway = u
	c.mu.Unlock()
	return nil
}

// SetModel changes where Heapster's service is answered; "" is nowhere.
func (c *Cluster) SetModel(target string) error {
	u, err := parseTarget(target)
	if err != nil {
		return fmt.Errorf("set model: %w", err)
	}
	c.mu.Lock()
	c.model = u
	c.mu.Unlock()
	return nil
}

// put changes an object and tells the watches. The caller holds mu.
func (c *Cluster) put(plural string, st state) {
	c.rv++
	c.stores[plural].put(c.rv, st)
}

// del removes an object and tells the watches. The caller holds mu.
func (c *Cluster) del(plural, ns, name string) {
	c.rv++
	c.stores[plural].del(c.rv, ns, name)
}

// Forget makes every resource version of now and before too old for watches: open ones end with 410 Gone, as do those that
// come with an old version. Compaction of etcd does that to a real cluster.
func (c *Cluster) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rv++
	for _, s := range c.stores {
		s.forget(c.rv)
	}
	c.pages = nil
}

// ResourceVersion is the newest one.
func (c *Cluster) ResourceVersion() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return strconv.FormatUint(c.rv, 10)
}

func comparePods(a, b *podState) int {
	return cmp.Or(strings.Compare(a.w.ns, b.w.ns), strings.Compare(a.name, b.name))
}
