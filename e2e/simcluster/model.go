package simcluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// kind of a workload: what made its pods.
type kind uint8

const (
	deployment kind = iota
	statefulSet
	daemonSet
	cronJob
	barePod
	staticPod
)

// containerTemplate is what all instances of one container of a workload have in common.
type containerTemplate struct {
	name, image    string
	cpuReq, cpuLim int64 // millicores, 0 = none
	memReq, memLim int64 // bytes, 0 = none
	cpu            float64
	mem            float64 // typical nanocores and bytes
	sidecar        bool    // native sidecar: an init container that goes on
}

// workload is a Deployment (with its one ReplicaSet), StatefulSet, DaemonSet, CronJob, or what stands for pods without an
// owner. All but replicas, which Cluster.mu guards, is immutable.
type workload struct {
	kind       kind
	id         uint64
	ns, name   string
	hash       string // pod-template-hash
	created    int64
	replicas   int
	containers []containerTemplate
	init       bool // a finished init container comes first
	hostNet    bool
	claim      bool // has a volume of a PVC per pod
	scratch    bool // has an emptyDir
	qos        corev1.PodQOSClass
	labels     map[string]string
	spec       *corev1.PodSpec // shared by all pods, node name aside
	token      string          // name of the volume with the service account's token
	serial     uint64          // of the pods and jobs made later
}

// jobRun is one Job of a CronJob.
type jobRun struct {
	w       *workload
	id      uint64
	name    string
	created int64
}

// run is one life of one container as its cgroup sees it.
type run struct {
	id    uint64
	t     *containerTemplate
	start int64 // Unix ns
	end   int64 // 0 = lives
}

// cpu is the CPU time in ns used up to the moment at.
func (r *run) cpu(at int64) uint64 {
	if r.end != 0 && at > r.end {
		at = r.end
	}
	return integral(r.id, r.t.cpu, at-r.start)
}

// containerState is a container of a pod as it is now. Immutable.
type containerState struct {
	run
	restarts   int32
	lastStart  int64
	lastEnd    int64
	lastReason string // why the life before ended, "" = there was none
	lastCode   int32
}

// podState is a pod as it is now. Immutable: a change makes another one.
type podState struct {
	w          *workload
	job        *jobRun // of a CronJob's pod
	node       *Node
	id         uint64
	name, uid  string
	ip         netip.Addr
	created    int64
	started    int64
	finished   int64 // pod Succeeded at that time; 0 = Running
	containers []containerState
	gone       []run  // lives that ended of late, for the pod's counter
	goneCPU    uint64 // ns of the lives before those
}

// nodeState is what runs on a node. Immutable.
type nodeState struct {
	pods    []*podState
	gone    []run  // lives of pods that left, newest last
	goneCPU uint64 // ns of those that left before
	ready   bool
}

// Node is one simulated node and its kubelet.
type Node struct {
	index    int
	name     string
	uid      string
	id       uint64
	addr     netip.Addr // what the API publishes
	port     atomic.Int32
	cores    int
	memory   int64 // bytes
	disk     int64
	created  int64
	zone     string
	recorded *recording
	state    atomic.Pointer[nodeState]
	fault    atomic.Pointer[fault]
	scrapes  atomic.Uint64
	late     atomic.Int64 // longest gap seen between two scrapes, ns
	lastSeen atomic.Int64
	asked    askedTimes
	conns    connSet
	old      atomic.Bool  // its kubelet is of before Kubernetes 1.18
	began    atomic.Int64 // when its kubelet's process started, ns
	cert     nodeCert
}

// Name is the node's name in the API.
func (n *Node) Name() string { return n.name }

// Addr is the node's InternalIP.
func (n *Node) Addr() netip.Addr { return n.addr }

// Port is where the node's kubelet speaks TLS, as in status.daemonEndpoints; 0 before Run listens.
func (n *Node) Port() int { return int(n.port.Load()) }

// Scrapes counts the requests for measurements that were answered, faults included.
func (n *Node) Scrapes() uint64 { return n.scrapes.Load() }

// askedKept is how many of a node's requests for measurements are remembered by their times.
const askedKept = 512

// askedTimes are the times of the newest requests, Unix ns, oldest first.
type askedTimes struct {
	mu sync.Mutex
	at []int64
}

func (a *askedTimes) add(now int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.at) == askedKept {
		a.at = slices.Delete(a.at, 0, 1)
	}
	a.at = append(a.at, now)
}

// Asked is when requests for measurements came, faults included, oldest first: the newest 512 of them.
func (n *Node) Asked() (all []time.Time) {
	n.asked.mu.Lock()
	defer n.asked.mu.Unlock()
	for _, at := range n.asked.at {
		all = append(all, time.Unix(0, at))
	}
	return all
}

const (
	mi = 1 << 20
	gi = 1 << 30
)

var (
	namespaceNames = []string{"shop", "payments", "search", "media", "billing", "identity", "logistics", "analytics", "chat", "maps"}
	appNames       = []string{"cart", "catalogue", "frontend", "api", "worker", "ingest", "mailer", "gateway", "scheduler", "reports", "thumbs", "auth", "ledger", "stock", "router", "feed"}
	storeNames     = []string{"postgres", "redis", "kafka", "etcd", "minio"}
	cronNames      = []string{"backup", "cleanup", "digest", "reindex"}
	containerNames = []string{"app", "proxy", "metrics", "logs", "cache"}
)

// world makes workloads in the order in which the seed gives them.
type world struct {
	cfg   *Config
	epoch int64
	n     uint64
}

func (wd *world) namespace(i int) string {
	if i < len(namespaceNames) {
		return namespaceNames[i]
	}
	return fmt.Sprintf("%s-%d", namespaceNames[i%len(namespaceNames)], i/len(namespaceNames))
}

// past is a moment in the two days before the epoch.
func (wd *world) past(h uint64) int64 {
	return wd.epoch - int64(h%uint64(48*time.Hour/time.Second))*int64(time.Second) - int64(h>>32%1000)*int64(time.Millisecond)
}

// workload makes the next workload. Its name carries a number, so that no two in a namespace are alike.
func (wd *world) workload(k kind, ns, name string) *workload {
	id := mix(wd.cfg.Seed, 1, wd.n)
	w := &workload{kind: k, id: id, ns: ns, name: name, created: wd.past(splitmix(id ^ 1)), hash: suffix(splitmix(id^2), 10)}
	wd.n++
	class := id % 10
	switch {
	case class < 2:
		w.qos = corev1.PodQOSGuaranteed
	case class < 9:
		w.qos = corev1.PodQOSBurstable
	default:
		w.qos = corev1.PodQOSBestEffort
	}
	w.init = id>>8%5 == 0
	w.scratch = id>>12%3 == 0
	w.claim = k == statefulSet
	sidecar := id>>16%6 == 0 && k == deployment
	for c := range wd.cfg.ContainersPerPod {
		h := mix(id, 3, uint64(c))
		t := containerTemplate{name: containerNames[c%len(containerNames)], image: fmt.Sprintf("registry.example/%s:v%d", name, 1+id%9)}
		if c >= len(containerNames) {
			t.name += "-" + strconv.Itoa(c/len(containerNames))
		}
		t.cpuReq = []int64{10, 20, 50, 100, 100, 200, 250, 500}[h%8]
		t.memReq = []int64{16, 32, 64, 64, 128, 128, 256, 512}[h>>8%8] * mi
		if c > 0 { // what stands beside the app is smaller
			t.cpuReq, t.memReq = max(t.cpuReq/4, 5), max(t.memReq/4, 16*mi)
			t.image = "registry.example/" + t.name + ":v2"
		}
		t.cpu = float64(t.cpuReq) * 1e6 * (0.1 + 0.9*unit(splitmix(h^5)))
		t.mem = float64(t.memReq) * (0.45 + 0.4*unit(splitmix(h^6)))
		t.cpuLim, t.memLim = t.cpuReq*2, t.memReq*2
		switch w.qos {
		case corev1.PodQOSGuaranteed:
			t.cpuLim, t.memLim = t.cpuReq, t.memReq
		case corev1.PodQOSBestEffort:
			t.cpuReq, t.memReq, t.cpuLim, t.memLim = 0, 0, 0, 0
		default:
			if h>>20%3 == 0 {
				t.cpuLim = 0
			}
		}
		t.sidecar = sidecar && c > 0 && c == wd.cfg.ContainersPerPod-1
		w.containers = append(w.containers, t)
	}
	w.token = "kube-api-access-" + suffix(splitmix(id^12), 5)
	w.labels = map[string]string{"app.kubernetes.io/name": name, "app": name}
	switch k {
	case deployment:
		w.labels["pod-template-hash"] = w.hash
	case daemonSet, statefulSet:
		w.labels["controller-revision-hash"] = w.hash
	}
	return w
}

// podName is the name of pod n of the workload, on node.
func (w *workload) podName(n uint64, node string, job *jobRun) string {
	h := mix(w.id, 4, n)
	switch w.kind {
	case deployment:
		return w.name + "-" + w.hash + "-" + suffix(h, 5)
	case statefulSet:
		return w.name + "-" + strconv.FormatUint(n, 10)
	case cronJob:
		return job.name + "-" + suffix(h, 5)
	case staticPod:
		return w.name + "-" + node
	case barePod:
		return w.name
	}
	return w.name + "-" + suffix(h, 5)
}

// pod makes pod n of a workload on a node.
func (w *workload) pod(n, life uint64, node *Node, job *jobRun, created int64) *podState {
	id := mix(w.id, 5, n, life)
	p := &podState{w: w, job: job, node: node, id: id, uid: uidOf(id), created: created, started: created + int64(time.Second)}
	p.name = w.podName(n, node.name, job)
	if w.hostNet {
		p.ip = node.addr
	} else {
		h := splitmix(id ^ 7)
		p.ip = netip.AddrFrom4([4]byte{10, byte(128 + node.index>>8&127), byte(node.index), byte(2 + h%250)})
	}
	p.containers = make([]containerState, len(w.containers))
	for i := range w.containers {
		p.containers[i] = containerState{run: run{id: mix(id, 8, uint64(i)), t: &w.containers[i],
			start: p.started + int64(i)*int64(300*time.Millisecond)}}
	}
	return p
}

// newJob is the CronJob's run at a moment; its name carries the minute, as the controller's do.
func (w *workload) newJob(created int64) *jobRun {
	w.serial++
	return &jobRun{w: w, id: mix(w.id, 9, w.serial), name: fmt.Sprintf("%s-%d", w.name, created/int64(time.Minute)+int64(w.serial)), created: created}
}

// grow makes the workloads and pods of the start and hands each pod to place. Nodes must be complete.
func (wd *world) grow(nodes []*Node, addWorkload func(*workload), addJob func(*jobRun), place func(*podState)) {
	var hosts []*Node
	for _, n := range nodes {
		if n.recorded == nil {
			hosts = append(hosts, n)
		}
	}
	per := wd.cfg.PodsPerNode
	if len(hosts) == 0 || per == 0 {
		return
	}
	fixed := min(2, per-1)
	for i := range max(fixed, 0) {
		w := wd.workload(daemonSet, "kube-system", []string{"node-agent", "kube-proxy"}[i])
		w.hostNet, w.init, w.replicas = i == 1, false, len(hosts)
		w.spec = w.podSpec()
		addWorkload(w)
		for j, n := range hosts {
			place(w.pod(uint64(j), 0, n, nil, wd.past(mix(w.id, 6, uint64(j)))))
		}
	}
	// The first host is the control plane: one static pod, if there is room.
	free := make([]*Node, 0, len(hosts)*(per-fixed))
	for j, n := range hosts {
		room := per - max(fixed, 0)
		if j == 0 && room > 1 {
			w := wd.workload(staticPod, "kube-system", "kube-apiserver")
			w.hostNet, w.init, w.claim, w.replicas = true, false, false, 1
			w.spec = w.podSpec()
			place(w.pod(0, 0, n, nil, wd.past(mix(w.id, 6))))
			room--
		}
		for range room {
			free = append(free, n)
		}
	}
	// Workloads take slots in an order that strides over the nodes, so that replicas are spread.
	slots := uint64(len(free))
	stride := strideOf(slots, mix(wd.cfg.Seed, 2))
	next := mix(wd.cfg.Seed, 3) % max(slots, 1)
	left := len(free)
	for i := 0; left > 0; i++ {
		h := mix(wd.cfg.Seed, 4, uint64(i))
		ns := wd.namespace(int(h>>40) % wd.cfg.Namespaces)
		num := "-" + strconv.Itoa(i)
		var w *workload
		replicas := min(between(h>>8, 2, 20), left)
		switch i % 6 { // so that even a small cluster has some of each
		case 0, 2, 3:
			w = wd.workload(deployment, ns, appNames[h>>4%uint64(len(appNames))]+num)
		case 4:
			w = wd.workload(statefulSet, ns, storeNames[h>>4%uint64(len(storeNames))]+num)
			replicas = min(between(h>>8, 1, 5), left)
		case 1:
			w = wd.workload(cronJob, ns, cronNames[h>>4%uint64(len(cronNames))]+num)
			w.init = false
			replicas = 1
		default:
			if h%2 == 0 {
				w = wd.workload(barePod, ns, "debug"+num)
				replicas = 1
			} else {
				w = wd.workload(deployment, ns, "batch"+num)
			}
		}
		w.replicas = replicas
		w.spec = w.podSpec()
		addWorkload(w)
		var job *jobRun
		if w.kind == cronJob {
			job = w.newJob(wd.past(splitmix(h ^ 11)))
			addJob(job)
		}
		for r := range replicas {
			created := w.created + int64(between(mix(w.id, 6, uint64(r)), 1, 50))*int64(100*time.Millisecond)
			if job != nil {
				created = job.created
			}
			place(w.pod(uint64(r), 0, free[next], job, created))
			next = (next + stride) % slots
		}
		w.serial = max(w.serial, uint64(replicas))
		left -= replicas
	}
}

// strideOf gives a step without a common divisor with n, about 0.6 n.
func strideOf(n, h uint64) uint64 {
	if n < 3 {
		return 1
	}
	s := n*3/5 + h%max(n/8, 1)
	for {
		a, b := s, n
		for b != 0 {
			a, b = b, a%b
		}
		if a == 1 {
			return s % n
		}
		s++
	}
}

// newNode makes node i, without a state.
func (wd *world) newNode(i int) *Node {
	id := mix(wd.cfg.Seed, 10, uint64(i))
	size := []int{4, 8, 8, 16}[id%4]
	n := &Node{index: i, name: "node-" + strconv.Itoa(i), id: id, uid: uidOf(id), cores: size, memory: int64(size)*4*gi - int64(id>>8%64)*mi,
		disk: 270553174016, created: wd.epoch - 72*int64(time.Hour) + int64(i%1000)*int64(time.Second), zone: string(rune('a' + id>>16%3))}
	n.state.Store(&nodeState{ready: true})
	return n
}
