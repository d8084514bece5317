package simcluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// goneKept is how long a life that ended is kept apart before it is folded into a plain number: longer than the oldest
// sample that anybody can still be shown.
const goneKept = int64(time.Minute)

// fold moves lives that ended long ago into the sum.
func fold(gone []run, sum uint64, now int64) ([]run, uint64) {
	var keep []run
	for i := range gone {
		if gone[i].end < now-goneKept {
			sum += gone[i].cpu(gone[i].end)
		} else {
			keep = append(keep, gone[i])
		}
	}
	return keep, sum
}

// live makes things happen until ctx ends: churn, and the rounds of the recorded node.
func (c *Cluster) live(ctx context.Context) error {
	churn := time.NewTimer(math.MaxInt64)
	defer churn.Stop()
	arm := func() {
		if c.cfg.Churn > 0 {
			c.mu.Lock()
			d := time.Duration(c.rng.ExpFloat64() * float64(c.cfg.Churn))
			c.mu.Unlock()
			churn.Reset(max(d, time.Millisecond))
		}
	}
	arm()
	rounds := time.NewTimer(math.MaxInt64)
	defer rounds.Stop()
	var rec *recording
	for _, n := range c.Nodes() {
		if n.recorded != nil {
			rec = n.recorded
			rounds.Reset(rec.untilNext(c.now()))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-churn.C:
			if err := c.Churn(1); err != nil {
				return err
			}
			arm()
		case <-rounds.C:
			c.mu.Lock()
			err := rec.advance(c, c.now())
			c.mu.Unlock()
			if err != nil {
				return err
			}
			rounds.Reset(rec.untilNext(c.now()))
		}
	}
}

// Churn makes n random changes, as the seed wants them: a container restarts (every second time for lack of memory), a
// pod is replaced, a Deployment grows or shrinks by one, a CronJob runs.
func (c *Cluster) Churn(n int) error {
	if n < 0 || n > 100000 {
		return fmt.Errorf("make %d random changes: want 0 to 100000", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		if err := c.churnOnce(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) churnOnce() error {
	dice := c.rng.IntN(10)
	if dice >= 8 {
		w := c.randomWorkload(func(w *workload) bool { return dice == 8 && w.kind == deployment || dice == 9 && w.kind == cronJob })
		switch {
		case w == nil:
			return nil
		case w.kind == cronJob:
			return c.runJob(w)
		case w.replicas > 1 && c.rng.IntN(2) == 0:
			return c.scale(w, w.replicas-1)
		}
		return c.scale(w, w.replicas+1)
	}
	p := c.randomPod()
	if p == nil {
		return nil
	}
	if dice < 4 {
		reason := "Error"
		if dice < 2 {
			reason = "OOMKilled"
		}
		return c.restart(p, c.rng.IntN(len(p.containers)), reason)
	}
	return c.replace(p)
}

func (c *Cluster) randomWorkload(want func(*workload) bool) *workload {
	var some []*workload
	for _, w := range c.workloads {
		if want(w) {
			some = append(some, w)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[c.rng.IntN(len(some))]
}

// randomPod is a running pod of the simulated workload, nil if luck or pods are missing.
func (c *Cluster) randomPod() *podState {
	for range 20 {
		if len(c.nodes) == 0 {
			return nil
		}
		pods := c.nodes[c.rng.IntN(len(c.nodes))].state.Load().pods
		if len(pods) == 0 {
			continue
		}
		if p := pods[c.rng.IntN(len(pods))]; p.finished == 0 && p.w.kind != staticPod {
			return p
		}
	}
	return nil
}

// host is a node for a new pod.
func (c *Cluster) host() *Node {
	for range 100 {
		if len(c.nodes) == 0 {
			return nil
		}
		n := c.nodes[c.rng.IntN(len(c.nodes))]
		if n.recorded == nil && n.state.Load().ready {
			return n
		}
	}
	return nil
}

// pod finds a pod of the simulated workload. The caller holds mu.
func (c *Cluster) pod(ns, name string) (*podState, error) {
	rec := c.stores["pods"].get(ns, name)
	if rec == nil {
		return nil, fmt.Errorf("no pod %s/%s in the simulated cluster", ns, name)
	}
	p, ok := rec.st.(*podState)
	if !ok {
		return nil, fmt.Errorf("pod %s/%s is of the recorded node and cannot be changed", ns, name)
	}
	return p, nil
}

// swap puts another state of a pod in the place of old; a nil one removes it, a nil old adds it.
func (c *Cluster) swap(old, p *podState) {
	if old != nil && p == nil || old == nil {
		who := cmpOr(p, old)
		n := who.node
		st := *n.state.Load()
		if p != nil {
			st.pods = append(slices.Clip(st.pods), p)
		} else {
			st.pods = slices.DeleteFunc(slices.Clone(st.pods), func(q *podState) bool { return q == old })
			now := c.now().UnixNano()
			st.gone, st.goneCPU = fold(st.gone, st.goneCPU, now)
			st.goneCPU += old.goneCPU + pauseCPU
			st.gone = append(slices.Clip(st.gone), old.gone...)
			for i := range old.containers {
				r := old.containers[i].run
				if r.end == 0 {
					r.end = max(now, r.start)
				}
				st.gone = append(st.gone, r)
			}
		}
		n.state.Store(&st)
		if p != nil {
			c.put("pods", p)
		} else {
			c.del("pods", old.w.ns, old.name)
		}
		return
	}
	st := *p.node.state.Load()
	st.pods = slices.Clone(st.pods)
	for i, q := range st.pods {
		if q == old {
			st.pods[i] = p
		}
	}
	p.node.state.Store(&st)
	c.put("pods", p)
}

func cmpOr(a, b *podState) *podState {
	if a != nil {
		return a
	}
	return b
}

// RestartContainer ends a container for a reason (as "Error", "Completed", "OOMKilled") and starts it again at once.
// An empty name means the first container.
func (c *Cluster) RestartContainer(namespace, pod, container, reason string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.pod(namespace, pod)
	if err != nil {
		return fmt.Errorf("restart a container: %w", err)
	}
	for i := range p.containers {
		if container == "" || p.containers[i].t.name == container {
			return c.restart(p, i, reason)
		}
	}
	return fmt.Errorf("restart a container: no container %q in pod %s/%s", container, namespace, pod)
}

func (c *Cluster) restart(p *podState, i int, reason string) error {
	if p.finished != 0 {
		return fmt.Errorf("restart a container: pod %s/%s has finished", p.w.ns, p.name)
	}
	now := c.now().UnixNano()
	q := *p
	q.gone, q.goneCPU = fold(p.gone, p.goneCPU, now)
	q.containers = slices.Clone(p.containers)
	ct := &q.containers[i]
	old := ct.run
	old.end = max(now, old.start)
	q.gone = append(q.gone, old)
	ct.restarts++
	ct.lastReason, ct.lastStart, ct.lastEnd, ct.lastCode = reason, old.start, old.end, 1
	switch reason {
	case "OOMKilled":
		ct.lastCode = 137
	case "Completed":
		ct.lastCode = 0
	}
	ct.run = run{id: mix(old.id, 0x2e57a27), t: old.t, start: max(now, old.start+1)}
	c.swap(p, &q)
	if reason == "OOMKilled" {
		c.event(p.node.involved(), corev1.EventTypeWarning, "OOMKilling", fmt.Sprintf("Memory cgroup out of memory: Killed process %d (%s)", 1000+now%30000, ct.t.name), "kernel-monitor", p.node.name)
	} else {
		c.event(p.involved(ct.t.name), corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)", ct.t.name, p.name, p.w.ns, p.uid), "kubelet", p.node.name)
	}
	c.event(p.involved(ct.t.name), corev1.EventTypeNormal, "Started", "Started container "+ct.t.name, "kubelet", p.node.name)
	return nil
}

// ReplacePod deletes a pod and makes another of the same owner, on another node where the owner allows it.
func (c *Cluster) ReplacePod(namespace, pod string) (PodName, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.pod(namespace, pod)
	if err == nil {
		before := c.lives
		if err = c.replace(p); err == nil && c.lives > before {
			st := c.newest
			return PodName{st.w.ns, st.name, st.node.name}, nil
		}
		if err == nil {
			err = errors.New("no node can take it")
		}
	}
	return PodName{}, fmt.Errorf("replace pod %s/%s: %w", namespace, pod, err)
}

func (c *Cluster) replace(p *podState) error {
	n := p.node
	if p.w.kind != daemonSet && p.w.kind != staticPod {
		if n = c.host(); n == nil {
			return nil
		}
	}
	c.remove(p)
	serial := p.w.serial
	switch p.w.kind {
	case statefulSet: // the same name again
		num, err := strconv.ParseUint(p.name[len(p.w.name)+1:], 10, 64)
		if err != nil {
			return fmt.Errorf("pod %q of a stateful set has no number: %w", p.name, err)
		}
		serial = num
	default:
		p.w.serial++
	}
	c.create(p.w, serial, n, p.job)
	return nil
}

// create makes a pod now and tells about it.
func (c *Cluster) create(w *workload, serial uint64, n *Node, job *jobRun) *podState {
	c.lives++
	p := w.pod(serial, c.lives, n, job, c.now().UnixNano())
	c.newest = p
	c.swap(nil, p)
	c.event(p.involved(""), corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s/%s to %s", w.ns, p.name, n.name), "default-scheduler", "")
	for i := range p.containers {
		c.event(p.involved(p.containers[i].t.name), corev1.EventTypeNormal, "Started", "Started container "+p.containers[i].t.name, "kubelet", n.name)
	}
	return p
}

// DeletePod deletes a pod and leaves it at that.
func (c *Cluster) DeletePod(namespace, pod string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.pod(namespace, pod)
	if err != nil {
		return fmt.Errorf("delete a pod: %w", err)
	}
	c.remove(p)
	return nil
}

func (c *Cluster) remove(p *podState) {
	if p.finished == 0 {
		for i := range p.containers {
			c.event(p.involved(p.containers[i].t.name), corev1.EventTypeNormal, "Killing", "Stopping container "+p.containers[i].t.name, "kubelet", p.node.name)
		}
	}
	c.swap(p, nil)
}

// Scale gives a Deployment another number of pods.
func (c *Cluster) Scale(namespace, name string, replicas int) error {
	if replicas < 0 || replicas > 100000 {
		return fmt.Errorf("scale deployment %s/%s: %d replicas, want 0 to 100000", namespace, name, replicas)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.workloads {
		if w.kind == deployment && w.ns == namespace && w.name == name {
			return c.scale(w, replicas)
		}
	}
	return fmt.Errorf("scale deployment %s/%s: there is none", namespace, name)
}

func (c *Cluster) scale(w *workload, replicas int) error {
	for w.replicas < replicas {
		n := c.host()
		if n == nil {
			return fmt.Errorf("scale deployment %s/%s: no node can take a pod", w.ns, w.name)
		}
		w.serial++
		w.replicas++
		c.create(w, w.serial, n, nil)
	}
	if w.replicas > replicas {
		for _, p := range c.podsOf(w) {
			if w.replicas > replicas {
				w.replicas--
				c.remove(p)
			}
		}
	}
	c.put("replicasets", &replicaSetEntry{w, int32(replicas)})
	c.put("deployments", &workloadEntry{w, int32(replicas)})
	return nil
}

func (c *Cluster) podsOf(w *workload) (ps []*podState) {
	s := c.stores["pods"]
	for i, _ := s.find(w.ns, w.name); i < len(s.sorted); i++ {
		p, ok := s.sorted[i].st.(*podState)
		if !ok {
			continue
		}
		if p.w == w {
			ps = append(ps, p)
		}
		if p.w.ns != w.ns || len(p.name) < len(w.name) || p.name[:len(w.name)] != w.name {
			break
		}
	}
	return ps
}

// runJob finishes what a CronJob's last run is at and starts the next; what finished before goes.
func (c *Cluster) runJob(w *workload) error {
	now := c.now().UnixNano()
	for _, p := range c.podsOf(w) {
		if p.finished != 0 {
			c.remove(p)
			c.del("jobs", p.w.ns, p.job.name)
			continue
		}
		q := *p
		q.finished = max(now, q.started+int64(time.Second))
		q.containers = slices.Clone(p.containers)
		for i := range q.containers {
			q.containers[i].end = max(q.finished, q.containers[i].start)
		}
		c.swap(p, &q)
		c.put("jobs", &jobEntry{p.job, q.finished})
		c.event(involved("batch/v1", "Job", w.ns, p.job.name, p.job.uid()), corev1.EventTypeNormal, "Completed", "Job completed", "job-controller", "")
	}
	n := c.host()
	if n == nil {
		return nil
	}
	job := w.newJob(now)
	c.put("jobs", &jobEntry{j: job})
	w.serial++
	c.create(w, w.serial, n, job)
	return nil
}

// AddNode adds a node with as many pods as the others had at the start, and gives its name.
func (c *Cluster) AddNode() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.nodes) >= MaxNodes {
		return "", fmt.Errorf("add a node: there are %d already", len(c.nodes))
	}
	n := c.addNode(c.nextNode)
	n.created = c.now().UnixNano() - int64(time.Minute)
	if c.kubelets != nil {
		if err := c.kubelets.open(n); err != nil {
			c.forgetNode(n)
			return "", fmt.Errorf("add a node: %w", err)
		}
	}
	c.publishNode(n)
	left := c.cfg.PodsPerNode
	for _, w := range c.workloads {
		if w.kind == daemonSet && left > 0 {
			w.serial++
			w.replicas++
			left--
			c.put("daemonsets", &workloadEntry{w, int32(w.replicas)})
			c.create(w, w.serial, n, nil)
		}
	}
	for ; left > 0; left-- {
		w := c.randomWorkload(func(w *workload) bool { return w.kind == deployment })
		if w == nil {
			break
		}
		w.serial++
		w.replicas++
		c.put("replicasets", &replicaSetEntry{w, int32(w.replicas)})
		c.put("deployments", &workloadEntry{w, int32(w.replicas)})
		c.create(w, w.serial, n, nil)
	}
	c.event(n.involved(), corev1.EventTypeNormal, "RegisteredNode", fmt.Sprintf("Node %s event: Registered Node %s in Controller", n.name, n.name), "node-controller", "")
	return n.name, nil
}

// RemoveNode removes a node with its pods; its kubelet stops answering.
func (c *Cluster) RemoveNode(name string) error {
	c.mu.Lock()
	n := c.byName[name]
	if n == nil {
		c.mu.Unlock()
		return fmt.Errorf("remove a node: no node %q in the simulated cluster", name)
	}
	if n.recorded != nil {
		c.mu.Unlock()
		return fmt.Errorf("remove a node: %q is the recorded one and stays", name)
	}
	for _, p := range n.state.Load().pods {
		c.remove(p)
	}
	c.del("nodes", "", name)
	c.event(n.involved(), corev1.EventTypeNormal, "RemovingNode", fmt.Sprintf("Node %s event: Removing Node %s from Controller", name, name), "node-controller", "")
	c.forgetNode(n)
	k := c.kubelets
	c.mu.Unlock()
	if k != nil {
		k.shut(n)
	}
	return nil
}

func (c *Cluster) forgetNode(n *Node) {
	c.nodes = slices.DeleteFunc(slices.Clone(c.nodes), func(m *Node) bool { return m == n })
	delete(c.byName, n.name)
	if c.byAddr[n.addr] == n {
		delete(c.byAddr, n.addr)
	}
}

// SetNodeReady changes a node's condition Ready; its kubelet goes on answering as it did.
func (c *Cluster) SetNodeReady(name string, ready bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.byName[name]
	if n == nil {
		return fmt.Errorf("change node: no node %q in the simulated cluster", name)
	}
	if n.recorded != nil {
		return fmt.Errorf("change node: %q is the recorded one and stays ready", name)
	}
	st := *n.state.Load()
	st.ready = ready
	n.state.Store(&st)
	c.put("nodes", &nodeEntry{n: n, ready: ready, since: c.now().UnixNano(), port: n.port.Load()})
	reason := "NodeReady"
	if !ready {
		reason = "NodeNotReady"
	}
	c.event(n.involved(), corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", name, reason), "node-controller", "")
	return nil
}

// publishNode tells the API of a node whose address or port became known. The caller holds mu.
func (c *Cluster) publishNode(n *Node) {
	if n.recorded != nil {
		n.recorded.publish(c)
		return
	}
	st := n.state.Load()
	c.put("nodes", &nodeEntry{n: n, ready: st.ready, since: n.created, port: n.port.Load()})
}

// involved names an object in an event.
func involved(apiVersion, kind, ns, name, uid string) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: apiVersion, Kind: kind, Namespace: ns, Name: name, UID: types.UID(uid)}
}

func (n *Node) involved() corev1.ObjectReference { return involved("v1", "Node", "", n.name, n.uid) }

func (p *podState) involved(container string) corev1.ObjectReference {
	o := involved("v1", "Pod", p.w.ns, p.name, p.uid)
	if container != "" {
		o.FieldPath = "spec.containers{" + container + "}"
	}
	return o
}

// event records that something happened. The caller holds mu.
func (c *Cluster) event(about corev1.ObjectReference, kind, reason, message, component, host string) Event {
	now := metav1.NewTime(c.now())
	c.eventSeq++
	ns := about.Namespace
	if ns == "" {
		ns = "default"
	}
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s.%016x", about.Name, uint64(now.UnixNano())+c.eventSeq), UID: types.UID(uidOf(mix(c.cfg.Seed, 80, c.eventSeq))), CreationTimestamp: now},
		InvolvedObject: about, Reason: reason, Message: message, Source: corev1.EventSource{Component: component, Host: host},
		FirstTimestamp: now, LastTimestamp: now, Count: 1, Type: kind, ReportingController: component, ReportingInstance: host,
	}
	c.put("events", fixed{e})
	happened := told(e, c.rv)
	c.eventLog = append(c.eventLog, ns+"/"+e.Name)
	for len(c.eventLog) > c.cfg.EventsKept {
		oldest := c.eventLog[0]
		c.eventLog = c.eventLog[1:]
		i := slices.Index([]byte(oldest), '/')
		c.del("events", oldest[:i], oldest[i+1:])
	}
	return happened
}
