package simcluster

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"regexp"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The answers of a real kubelet (v1.34.4), five rounds about 15 s apart, and what its API server said.
//
//go:embed testdata/recorded
var recordedFiles embed.FS

const (
	rounds       = 5
	roundLength  = 16 * time.Second // so that a loop is longer than the 77 s from the oldest sample of round 0 to the newest of round 4
	loopLength   = rounds * roundLength
	recordedAddr = "192.0.2.2" // the node's address then
)

// recordedAt is when round 0 was taken.
var recordedAt = time.Date(2026, 11, 20, 20, 34, 23, 0, time.UTC)

// recording replays the recorded node in loops of 80 s. What lived through all rounds goes on from loop to loop: its start
// time stays, its counters grow on at their mean rate. What restarted within the loop restarts in each. A pod that was not
// there in every round is in each loop a new one, with a name and UID of its own.
type recording struct {
	node   *Node
	base   time.Time // when round 0 of loop 0 begins
	rounds [rounds]*stats.Summary
	short  [rounds]*stats.Summary // of only_cpu_and_memory
	series map[string]*counterSeries
	steady map[string]bool // pods by UID: in all rounds
	born   map[string]int  // first round of a pod, by UID
	raw    map[string][]byte

	mu     sync.Mutex
	cached [2]struct { // whole and short
		step int64
		body []byte
	}
	told int64 // the step that the API has been told of; guarded by Cluster.mu
	pods []fixed
}

// counterSeries is one counter over the rounds; seen says in which it is there.
type counterSeries struct {
	v    [rounds]uint64
	t    [rounds]int64
	seen [rounds]bool
}

func readRecorded(path string) ([]byte, error) {
	b, err := recordedFiles.ReadFile("testdata/recorded/" + path + ".gz")
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	if b, err = io.ReadAll(z); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", path, err)
	}
	return b, nil
}

func readSummary(path string) (*stats.Summary, error) {
	b, err := readRecorded(path)
	if err != nil {
		return nil, err
	}
	s := &stats.Summary{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	return s, nil
}

func newRecording(base time.Time, n *Node) (*recording, error) {
	r := &recording{node: n, base: base.Truncate(time.Second), series: map[string]*counterSeries{}, steady: map[string]bool{}, born: map[string]int{}, raw: map[string][]byte{}}
	count := map[string]int{}
	for i := range rounds {
		var err error
		if r.rounds[i], err = readSummary(fmt.Sprintf("%d/stats-summary.json", i)); err != nil {
			return nil, err
		}
		if r.short[i], err = readSummary(fmt.Sprintf("%d/stats-summary-only-cpu-and-memory.json", i)); err != nil {
			return nil, err
		}
		eachCounter(r.rounds[i], func(key, _ string, t metav1.Time, v *uint64) {
			s := r.series[key]
			if s == nil {
				s = &counterSeries{}
				r.series[key] = s
			}
			s.v[i], s.t[i], s.seen[i] = *v, t.UnixNano(), true
		})
		for _, p := range r.rounds[i].Pods {
			if count[p.PodRef.UID]++; count[p.PodRef.UID] == 1 {
				r.born[p.PodRef.UID] = i
			}
		}
	}
	for uid, n := range count {
		r.steady[uid] = n == rounds
	}
	for _, path := range []string{"api-0/pods.json", "api-4/pods.json", "3/pods.json", "api-0/node.json"} {
		b, err := readRecorded(path)
		if err != nil {
			return nil, err
		}
		r.raw[path] = b
	}
	n.uid = "d18dde32-22a2-4a1d-91bc-914ddd9acab6"
	n.cores, n.memory, n.disk = 2, 24684092<<10, 264212084<<10
	return r, nil
}

// eachCounter calls f for every counter of a summary, with the UID of its pod ("" = the node's own).
func eachCounter(s *stats.Summary, f func(key, uid string, t metav1.Time, v *uint64)) {
	one := func(key, uid string, t metav1.Time, v *uint64) {
		if v != nil {
			f(uid+"|"+key, uid, t, v)
		}
	}
	cpuMem := func(key, uid string, cpu *stats.CPUStats, mem *stats.MemoryStats, io *stats.IOStats) {
		psi := func(what string, t metav1.Time, p *stats.PSIStats) {
			if p != nil {
				one(key+"/"+what+"/full", uid, t, &p.Full.Total)
				one(key+"/"+what+"/some", uid, t, &p.Some.Total)
			}
		}
		if cpu != nil {
			one(key+"/cpu", uid, cpu.Time, cpu.UsageCoreNanoSeconds)
			psi("cpu", cpu.Time, cpu.PSI)
		}
		if mem != nil {
			one(key+"/faults", uid, mem.Time, mem.PageFaults)
			one(key+"/majors", uid, mem.Time, mem.MajorPageFaults)
			psi("mem", mem.Time, mem.PSI)
		}
		if io != nil {
			psi("io", io.Time, io.PSI)
		}
	}
	network := func(key, uid string, n *stats.NetworkStats) {
		if n == nil {
			return
		}
		iface := func(key string, i *stats.InterfaceStats) {
			one(key+"/rx", uid, n.Time, i.RxBytes)
			one(key+"/rxe", uid, n.Time, i.RxErrors)
			one(key+"/tx", uid, n.Time, i.TxBytes)
			one(key+"/txe", uid, n.Time, i.TxErrors)
		}
		iface(key+"/net", &n.InterfaceStats)
		for i := range n.Interfaces {
			iface(key+"/net/"+n.Interfaces[i].Name, &n.Interfaces[i])
		}
	}
	cpuMem("node", "", s.Node.CPU, s.Node.Memory, s.Node.IO)
	network("node", "", s.Node.Network)
	for i := range s.Node.SystemContainers {
		c := &s.Node.SystemContainers[i]
		cpuMem("sys/"+c.Name, "", c.CPU, c.Memory, c.IO)
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		cpuMem("pod", p.PodRef.UID, p.CPU, p.Memory, p.IO)
		network("pod", p.PodRef.UID, p.Network)
		for j := range p.Containers {
			c := &p.Containers[j]
			cpuMem("c/"+c.Name, p.PodRef.UID, c.CPU, c.Memory, c.IO)
		}
	}
}

// restart is the first round in which the counter is below the round before, 0 if it never is.
func (s *counterSeries) restart() int {
	for i := 1; i < rounds; i++ {
		if s.seen[i] && s.seen[i-1] && s.v[i] < s.v[i-1] {
			return i
		}
	}
	return 0
}

// over is what the counter grows between two rounds' samples, stretched to the span ns.
func (s *counterSeries) over(a, b int, span int64) uint64 {
	if s.t[b] <= s.t[a] || s.v[b] <= s.v[a] {
		return 0
	}
	return uint64(float64(s.v[b]-s.v[a]) * float64(span) / float64(s.t[b]-s.t[a]))
}

// at is the counter in a round of a loop.
func (s *counterSeries) at(loop int64, round int, steady bool) uint64 {
	v := s.v[round]
	if loop == 0 {
		return v
	}
	if !steady {
		if s.seen[0] {
			return v - min(v, s.v[0]) // began anew with the loop
		}
		return v // began within the loop
	}
	if k := s.restart(); k > 0 {
		if round >= k {
			return v
		}
		// The life that began in round k of the loop before goes on.
		return s.v[rounds-1] + (v - s.v[0]) + s.over(0, k-1, s.t[0]+int64(loopLength)-s.t[rounds-1])
	}
	return v + uint64(loop)*s.over(0, rounds-1, int64(loopLength))
}

// step is the number of rounds gone by since the base.
func (r *recording) step(now time.Time) int64 { return max(int64(now.Sub(r.base)/roundLength), 0) }

func (r *recording) untilNext(now time.Time) time.Duration {
	return max(r.base.Add(time.Duration(r.step(now)+1)*roundLength).Sub(now), time.Millisecond)
}

// shift is what to add to a recorded time in a loop.
func (r *recording) shift(loop int64) time.Duration {
	return r.base.Sub(recordedAt) + time.Duration(loop)*loopLength
}

// nameOf is the name and UID of a pod in a loop.
func (r *recording) nameOf(name, uid string, loop int64) (string, string) {
	if loop == 0 || r.steady[uid] {
		return name, uid
	}
	h := mix(uint64(loop), 90)
	for i := range len(uid) {
		h = mix(h, uint64(uid[i]))
	}
	return name[:strings.LastIndexByte(name, '-')+1] + suffix(h, 5), uidOf(h)
}

// moved is the summary of a round, moved to its loop.
func (r *recording) moved(step int64, short bool) (*stats.Summary, error) {
	loop, round := step/rounds, int(step%rounds)
	from := r.rounds[round]
	if short {
		from = r.short[round]
	}
	// The types have no deep copy; JSON is one.
	b, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	s := &stats.Summary{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, err
	}
	eachCounter(s, func(key, uid string, _ metav1.Time, v *uint64) {
		if c := r.series[key]; c != nil {
			// The short answers were taken a moment apart from the whole ones, so what counts is the difference.
			*v += c.at(loop, round, uid == "" || r.steady[uid]) - c.v[round]
		}
	})
	now, first := r.shift(loop), r.shift(0)
	add := func(t *metav1.Time, d time.Duration) {
		if !t.IsZero() {
			t.Time = t.Add(d)
		}
	}
	s.Node.NodeName = r.node.name
	add(&s.Node.StartTime, first)
	r.times(&s.Node.CPU, &s.Node.Memory, &s.Node.IO, s.Node.Swap, now)
	for i := range s.Node.SystemContainers {
		c := &s.Node.SystemContainers[i]
		add(&c.StartTime, first)
		r.times(&c.CPU, &c.Memory, &c.IO, c.Swap, now)
	}
	fs := func(f *stats.FsStats) {
		if f != nil {
			add(&f.Time, now)
		}
	}
	fs(s.Node.Fs)
	if s.Node.Runtime != nil {
		fs(s.Node.Runtime.ImageFs)
		fs(s.Node.Runtime.ContainerFs)
	}
	if s.Node.Rlimit != nil {
		add(&s.Node.Rlimit.Time, now)
	}
	if s.Node.Network != nil {
		add(&s.Node.Network.Time, now)
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		uid := p.PodRef.UID
		p.PodRef.Name, p.PodRef.UID = r.nameOf(p.PodRef.Name, uid, loop)
		p.StartTime.Time = r.start(uid, "", p.StartTime.Time, loop, round)
		r.times(&p.CPU, &p.Memory, &p.IO, p.Swap, now)
		if p.Network != nil {
			add(&p.Network.Time, now)
		}
		for j := range p.VolumeStats {
			fs(&p.VolumeStats[j].FsStats)
		}
		fs(p.EphemeralStorage)
		for j := range p.Containers {
			c := &p.Containers[j]
			c.StartTime.Time = r.start(uid, c.Name, c.StartTime.Time, loop, round)
			r.times(&c.CPU, &c.Memory, &c.IO, c.Swap, now)
			fs(c.Rootfs)
			fs(c.Logs)
		}
	}
	return s, nil
}

func (r *recording) times(cpu **stats.CPUStats, mem **stats.MemoryStats, io **stats.IOStats, swap *stats.SwapStats, d time.Duration) {
	if *cpu != nil {
		(*cpu).Time.Time = (*cpu).Time.Add(d)
	}
	if *mem != nil {
		(*mem).Time.Time = (*mem).Time.Add(d)
	}
	if *io != nil {
		(*io).Time.Time = (*io).Time.Add(d)
	}
	if swap != nil {
		swap.Time.Time = swap.Time.Add(d)
	}
}

// start moves the start time of a pod (container "") or container.
func (r *recording) start(uid, container string, t time.Time, loop int64, round int) time.Time {
	if loop == 0 {
		return t.Add(r.shift(0))
	}
	if !r.steady[uid] {
		if r.born[uid] == 0 { // new with the loop, just before its first sample
			return r.birth(uid).Add(r.shift(loop))
		}
		return t.Add(r.shift(loop))
	}
	if container != "" {
		if s := r.series[uid+"|c/"+container+"/cpu"]; s != nil {
			if k := s.restart(); k > 0 {
				if round >= k {
					return t.Add(r.shift(loop))
				}
				return r.startOf(uid, container, k).Add(r.shift(loop - 1))
			}
		}
	}
	return t.Add(r.shift(0))
}

// birth is a second before the earliest sample of a pod in round 0.
func (r *recording) birth(uid string) time.Time {
	first := int64(math.MaxInt64)
	for key, s := range r.series {
		if strings.HasPrefix(key, uid+"|") && s.seen[0] {
			first = min(first, s.t[0])
		}
	}
	return time.Unix(0, first).Add(-time.Second).UTC()
}

func (r *recording) startOf(uid, container string, round int) time.Time {
	for _, p := range r.rounds[round].Pods {
		for _, c := range p.Containers {
			if p.PodRef.UID == uid && c.Name == container {
				return c.StartTime.Time
			}
		}
	}
	return recordedAt
}

// appendSummary appends the answer of now, laid out as the kubelet did.
func (r *recording) appendSummary(b []byte, now time.Time, short bool) []byte {
	step := r.step(now)
	i := 0
	if short {
		i = 1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := &r.cached[i]; c.body == nil || c.step != step {
		s, err := r.moved(step, short)
		if err == nil {
			c.body, err = json.MarshalIndent(s, "", " ")
		}
		if err != nil {
			panic(fmt.Sprintf("simcluster: encode recorded summary: %v", err)) // plain data that was decoded before
		}
		c.step = step
	}
	return append(b, r.cached[i].body...)
}

// cgroups for the Prometheus answers.
func (r *recording) cgroups(now time.Time) []cgroup {
	s, err := r.moved(r.step(now), false)
	if err != nil {
		panic(fmt.Sprintf("simcluster: move recorded summary: %v", err)) // as above
	}
	net := func(n *stats.NetworkStats) (out []iface, at int64) {
		if n == nil {
			return nil, 0
		}
		for _, i := range n.Interfaces {
			out = append(out, iface{i.Name, *i.RxBytes, *i.TxBytes, *i.RxErrors, *i.TxErrors})
		}
		return out, n.Time.UnixNano()
	}
	g := cgroup{id: "/", start: s.Node.StartTime.UnixNano(), usage: usageOf(s.Node.CPU, s.Node.Memory)}
	g.net, _ = net(s.Node.Network)
	if f := s.Node.Fs; f != nil {
		g.fs = []fsUse{{at: f.Time.UnixNano(), avail: *f.AvailableBytes, capacity: *f.CapacityBytes, used: *f.UsedBytes, inodes: *f.Inodes, inodesFree: *f.InodesFree, inodeUse: *f.InodesUsed}}
	}
	out := []cgroup{g}
	for _, c := range s.Node.SystemContainers {
		out = append(out, cgroup{id: "/kube" + c.Name, start: c.StartTime.UnixNano(), usage: usageOf(c.CPU, c.Memory)})
	}
	for _, p := range s.Pods {
		g := cgroup{namespace: p.PodRef.Namespace, pod: p.PodRef.Name, uid: p.PodRef.UID, id: "/kubepods/pod" + p.PodRef.UID, start: p.StartTime.UnixNano(), usage: usageOf(p.CPU, p.Memory)}
		out = append(out, g)
		if ifaces, at := net(p.Network); at != 0 {
			out = append(out, sandboxOf(&g, "pause-"+p.PodRef.Name, at, g.start, ifaces))
		}
		for _, c := range p.Containers {
			out = append(out, cgroup{namespace: p.PodRef.Namespace, pod: p.PodRef.Name, uid: p.PodRef.UID, container: c.Name, id: g.id + "/" + c.Name, name: c.Name,
				image: "localhost/burner:1", start: c.StartTime.UnixNano(), usage: usageOf(c.CPU, c.Memory)})
		}
	}
	return out
}

var recordedTime = regexp.MustCompile(`"2026-11-20T[0-9:.]+Z"`)

// decode reads recorded objects with their times shifted and the node's address replaced.
func (r *recording) decode(path string, d time.Duration, into any) error {
	b := recordedTime.ReplaceAllFunc(r.raw[path], func(s []byte) []byte {
		t, err := time.Parse(time.RFC3339, string(s[1:len(s)-1]))
		if err != nil {
			return s
		}
		return []byte(`"` + t.Add(d).Format(time.RFC3339) + `"`)
	})
	b = bytes.ReplaceAll(b, []byte(recordedAddr), []byte(r.node.addr.String()))
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("decode recorded %s: %w", path, err)
	}
	return nil
}

// podAt is a pod's object in a loop; file says of which round. Nil if that file has none of that UID.
func (r *recording) podAt(path, uid string, loop int64) (*corev1.Pod, error) {
	d := r.shift(loop)
	if r.steady[uid] {
		d = r.shift(0)
	}
	var l corev1.PodList
	if err := r.decode(path, d, &l); err != nil {
		return nil, err
	}
	for i := range l.Items {
		p := &l.Items[i]
		if string(p.UID) != uid {
			continue
		}
		p.ManagedFields, p.ResourceVersion, p.Kind, p.APIVersion = nil, "", "", ""
		p.Annotations = nil // the client's last-applied copy
		name, newUID := r.nameOf(p.Name, uid, loop)
		p.Name, p.UID = name, types.UID(newUID)
		if loop > 0 && !r.steady[uid] && r.born[uid] == 0 {
			t := metav1.NewTime(r.birth(uid).Add(d))
			p.CreationTimestamp, p.Status.StartTime = t, &t
			for j := range p.Status.Conditions {
				p.Status.Conditions[j].LastTransitionTime = t
			}
			for j := range p.Status.ContainerStatuses {
				if run := p.Status.ContainerStatuses[j].State.Running; run != nil {
					run.StartedAt = t
				}
			}
		}
		return p, nil
	}
	return nil, nil
}

const (
	uidOOM  = "c8ec1299-8e5c-489c-9958-5ca3d0a058b0" // guaranteed, restarts in round 3
	uidBusy = "ck66b"                                // here until round 3
	uidLate = "nzdvw"                                // here in round 3
)

// uidOfName finds a pod's UID by the end of its recorded name.
func (r *recording) uidOfName(end string) string {
	for _, s := range r.rounds {
		for _, p := range s.Pods {
			if strings.HasSuffix(p.PodRef.Name, end) {
				return p.PodRef.UID
			}
		}
	}
	return ""
}

// current are the pods' objects at a step.
func (r *recording) current(step int64) ([]fixed, error) {
	loop, round := step/rounds, int(step%rounds)
	var out []fixed
	for _, s := range r.rounds[round].Pods {
		uid := s.PodRef.UID
		path := "api-0/pods.json"
		if uid == r.uidOfName(uidLate) {
			path = "3/pods.json"
		}
		restarts := loop
		if uid == uidOOM {
			if round >= 3 {
				restarts++
			}
			if restarts > 0 {
				path = "api-4/pods.json"
			}
		}
		p, err := r.podAt(path, uid, loop)
		if err != nil {
			return nil, err
		}
		if p == nil {
			return nil, fmt.Errorf("recorded pod %s is not in %s", uid, path)
		}
		if uid == uidOOM && restarts > 1 {
			// Each restart happens one loop after the one before.
			later := time.Duration(restarts-1) * loopLength
			move := func(t *metav1.Time, d time.Duration) { t.Time = t.Add(d) }
			for i := range p.Status.Conditions {
				if c := &p.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
					move(&c.LastTransitionTime, later)
				}
			}
			cs := &p.Status.ContainerStatuses[0]
			cs.RestartCount = int32(min(restarts, math.MaxInt32))
			cs.ContainerID = containerID(mix(uint64(restarts), 91))
			dead := cs.LastTerminationState.Terminated
			dead.StartedAt = metav1.NewTime(cs.State.Running.StartedAt.Add(later - loopLength))
			move(&cs.State.Running.StartedAt, later)
			move(&dead.FinishedAt, later)
			dead.ContainerID = containerID(mix(uint64(restarts-1), 91))
		}
		out = append(out, fixed{p})
	}
	return out, nil
}

// load gives the objects of the start to the stores.
func (r *recording) load(load func(plural string, st state)) {
	n, err := r.nodeObject()
	if err == nil {
		r.pods, err = r.current(0)
	}
	if err != nil {
		panic(fmt.Sprintf("simcluster: recorded objects: %v", err)) // embedded, so a test has seen it
	}
	load("nodes", fixed{n})
	for _, p := range r.pods {
		load("pods", p)
	}
	meta := func(ns, name, uid, app string, owners []metav1.OwnerReference) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(uid), CreationTimestamp: n.CreationTimestamp, Labels: map[string]string{"app": app}, OwnerReferences: owners}
	}
	for _, app := range []struct{ name, set, uid string }{
		{"burner", "burner-658cd6b55d", "faff73f3-923d-4814-b07f-e0348422dca6"},
		{"web", "web-745dd74d67", "71da36ac-ec31-471d-874f-eaec02bb06d8"},
	} {
		uid := uidOf(mix(uint64(len(app.name)), 92))
		load("deployments", fixed{&appsv1.Deployment{ObjectMeta: meta("demo", app.name, uid, app.name, nil)}})
		load("replicasets", fixed{&appsv1.ReplicaSet{ObjectMeta: meta("demo", app.set, app.uid, app.name, owner("apps/v1", "Deployment", app.name, uid))}})
	}
	load("daemonsets", fixed{&appsv1.DaemonSet{ObjectMeta: meta("kube-system", "agent", "2df61f23-c747-4adb-bda8-0669b5c013a5", "agent", nil)}})
}

func (r *recording) nodeObject() (*corev1.Node, error) {
	n := &corev1.Node{}
	if err := r.decode("api-0/node.json", r.shift(0), n); err != nil {
		return nil, err
	}
	n.ManagedFields, n.ResourceVersion, n.Kind, n.APIVersion = nil, "", "", ""
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = r.node.port.Load()
	n.Status.NodeInfo.MachineID, n.Status.NodeInfo.SystemUUID, n.Status.NodeInfo.BootID = r.node.machine()
	r.node.created = n.CreationTimestamp.UnixNano()
	return n, nil
}

// publish tells the API again of everything that carries the node's address or port. The caller holds Cluster.mu.
func (r *recording) publish(c *Cluster) {
	n, err := r.nodeObject()
	if err == nil {
		r.pods, err = r.current(r.told)
	}
	if err != nil {
		panic(fmt.Sprintf("simcluster: recorded objects: %v", err)) // as in load
	}
	c.put("nodes", fixed{n})
	for _, p := range r.pods {
		c.put("pods", p)
	}
}

// advance tells the API what changed up to now. The caller holds Cluster.mu.
func (r *recording) advance(c *Cluster, now time.Time) error {
	step := r.step(now)
	if step == r.told {
		return nil
	}
	next, err := r.current(step)
	if err != nil {
		return fmt.Errorf("replay recorded node %q: %w", r.node.name, err)
	}
	have := map[string]*corev1.Pod{}
	for _, p := range r.pods {
		have[string(p.obj.GetUID())] = p.obj.(*corev1.Pod)
	}
	for _, f := range next {
		p := f.obj.(*corev1.Pod)
		ref := involved("v1", "Pod", p.Namespace, p.Name, string(p.UID))
		old := have[string(p.UID)]
		delete(have, string(p.UID))
		if old != nil && restartsOf(old) == restartsOf(p) {
			continue
		}
		c.put("pods", f)
		if old == nil {
			c.event(ref, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", p.Namespace, p.Name, r.node.name), "default-scheduler", "")
		} else {
			c.event(r.node.involved(), corev1.EventTypeWarning, "OOMKilling", "Memory cgroup out of memory: Killed process (burner)", "kernel-monitor", r.node.name)
		}
		c.event(ref, corev1.EventTypeNormal, "Started", "Started container "+p.Spec.Containers[0].Name, "kubelet", r.node.name)
	}
	for _, p := range have {
		c.del("pods", p.Namespace, p.Name)
		c.event(involved("v1", "Pod", p.Namespace, p.Name, string(p.UID)), corev1.EventTypeNormal, "Killing", "Stopping container "+p.Spec.Containers[0].Name, "kubelet", r.node.name)
	}
	r.pods, r.told = next, step
	return nil
}

func restartsOf(p *corev1.Pod) (n int32) {
	for _, cs := range p.Status.ContainerStatuses {
		n += cs.RestartCount
	}
	return n
}
