package view

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Origin says where a rollup stood in the stream.
type Origin struct {
	Seq  uint64    // in ROLLUPS
	Time time.Time // when it was appended
	Live bool      // nothing newer waited behind it
}

// Apply takes one rollup into the view; r is the caller's again when it returns. What is not newer than
// what is there changes nothing about the present; whether it still fills the past, the window decides.
func (c *Cluster) Apply(r *proto.Rollup, o Origin) {
	c.clock.observe(o.Time, o.Live)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.seq.Store(max(c.seq.Load(), o.Seq)) }() // at last: who reads it finds at least that much
	if int64(r.Tick) > c.newest.Load() {
		c.newest.Store(int64(r.Tick))
		if r.Resolution > 0 {
			c.resolution.Store(int64(r.Resolution))
		}
	}
	switch r.Scope {
	case proto.ScopeNode:
		c.applyNode(r, o)
	case proto.ScopeNamespace:
		c.applyNamespace(r, o)
	case proto.ScopeTotals:
		if t := c.totals.Load(); t == nil || r.Tick > t.tick {
			t := &totalsState{Totals: r.Totals, tick: r.Tick, seen: o.Time.UnixNano(), keep: keepFor(r.Resolution)}
			t.Missing = slices.Clone(r.Totals.Missing)
			c.totals.Store(t)
		}
	}
	c.past.Append(r)
}

// keepFor is how long what does not advance stays served: the design's max(2 x resolution, 45 s), and
// a breath for the scrape that is on its way at that very moment.
func keepFor(resolution time.Duration) int64 {
	return int64(proto.StandInFor(resolution) + min(resolution/5, time.Second))
}

func (c *Cluster) applyNamespace(r *proto.Rollup, o Origin) {
	all := *c.namespaces.Load()
	i, ok := slices.BinarySearchFunc(all, r.Name, func(n *namespaceState, name string) int { return strings.Compare(n.name, name) })
	if ok && all[i].seen >= o.Time.UnixNano() {
		return
	}
	n := &namespaceState{name: r.Name, seen: o.Time.UnixNano(), keep: keepFor(r.Resolution)}
	all = slices.Clone(all)
	if ok {
		all[i] = n
	} else {
		all = slices.Insert(all, i, n)
	}
	c.namespaces.Store(&all)
}

func (c *Cluster) applyNode(r *proto.Rollup, o Origin) {
	if len(r.Entities) == 0 || r.Entities[0].Kind != proto.KindNode {
		return
	}
	nodes := *c.nodes.Load()
	slot := findNode(nodes, r.Name)
	if slot == nil {
		slot = &nodeSlot{name: strings.Clone(r.Name)}
		i, _ := slices.BinarySearchFunc(nodes, r.Name, compareNode)
		nodes = slices.Insert(slices.Clone(nodes), i, slot)
		c.nodes.Store(&nodes)
	}
	before := slot.state.Load()
	if before != nil && r.Tick <= before.tick {
		return
	}
	now := c.present(r, o, before)
	c.placePods(now)
	slot.state.Store(now)
	if before != nil {
		c.removePods(before)
	}
}

// present computes what the Metrics API serves of one node's rollup.
func (c *Cluster) present(r *proto.Rollup, o Origin, before *nodeState) *nodeState {
	st := &nodeState{seen: o.Time.UnixNano(), tick: r.Tick, keep: keepFor(r.Resolution), table: identities(r, before)}
	e := &st.table.Entities[0]
	if u, sample, span, ok := pair(&r.Table, 0, 0); ok {
		st.metrics = &NodeMetrics{Name: e.Name, UID: e.UID, Labels: e.Labels, Time: time.Unix(0, sample).UTC(), Window: span, Usage: u, Seq: o.Seq}
		st.since = seenAt(r, 0, o)
		if before != nil && before.metrics != nil && before.metrics.Time.UnixNano() == sample {
			st.since = before.since
		}
	}

	pods, containers := 0, 0
	for i := range st.table.Entities {
		switch st.table.Entities[i].Kind {
		case proto.KindPod:
			pods++
		case proto.KindContainer:
			containers++
		}
	}
	st.pods = make([]podState, 0, pods)
	metrics := make([]PodMetrics, 0, pods)
	usages := make([]ContainerMetrics, 0, containers)
	samples := make([]firstSeen, 0, containers)
	members := make([]int32, 0, containers) // rows of containers, those of one pod together
	for i := range st.table.Entities {
		switch st.table.Entities[i].Kind {
		case proto.KindPod:
			birth, _ := r.Values.Get(i, proto.FieldBirth)
			st.pods = append(st.pods, podState{node: st, row: int32(i), birth: birth}) //nolint:gosec // rows are capped by the codec
		case proto.KindContainer:
			members = append(members, int32(i)) //nolint:gosec // same
		}
	}
	ofPod := func(a, b int32) int { return cmp.Compare(st.table.Entities[a].Parent, st.table.Entities[b].Parent) }
	if !slices.IsSortedFunc(members, ofPod) {
		slices.SortStableFunc(members, ofPod)
	}
	for p := range st.pods {
		pod := &st.pods[p]
		e := &st.table.Entities[pod.row]
		for len(members) > 0 && st.table.Entities[members[0]].Parent < pod.row {
			members = members[1:]
		}
		prior := before.pod(p, e)
		if prior != nil {
			pod.slot = prior.slot
		}
		if e.Phase != proto.PhaseRunning {
			continue
		}
		if prior == nil {
			prior = c.held(e, before)
		}
		if prior != nil && (prior.metrics == nil || prior.metrics.UID != e.UID) {
			prior = nil // another pod of that name
		}
		m := PodMetrics{Namespace: e.Namespace, Name: e.Name, UID: e.UID, Node: r.Name, Labels: e.Labels, Seq: o.Seq}
		from, complete, oldest := len(usages), true, int64(0)
		pod.expires = int64(1<<63 - 1)
		for _, row := range members {
			child := &st.table.Entities[row]
			if child.Parent != pod.row {
				break
			}
			if child.Flags&proto.FlagRunning == 0 {
				continue
			}
			i := int(row)
			u, sample, span, ok := pair(&r.Table, i, r.Resolution)
			if !ok {
				complete = false
				break
			}
			if len(usages) == from || sample < oldest {
				oldest, m.Window = sample, span
			}
			at := prior.at(len(usages)-from, child.Name, sample)
			if at == 0 {
				at = seenAt(r, i, o)
			}
			pod.expires = min(pod.expires, at+st.keep)
			usages = append(usages, ContainerMetrics{Name: child.Name, Usage: u})
			samples = append(samples, firstSeen{sample, at})
		}
		if !complete || len(usages) == from {
			usages, samples = usages[:from], samples[:from]
			continue
		}
		m.Time = time.Unix(0, oldest).UTC()
		m.Containers = usages[from:len(usages):len(usages)]
		metrics = append(metrics, m)
		pod.metrics, pod.samples = &metrics[len(metrics)-1], samples[from:len(samples):len(samples)]
	}
	return st
}

// pair returns what one row uses by its last valid pair of samples, the time of the later one and the
// span between them. A container that has no pair yet and is between 10 s and young old is measured
// from its start.
func pair(t *proto.Table, row int, young time.Duration) (u Usage, sample int64, span time.Duration, ok bool) {
	v := &t.Values
	if u.Memory, ok = v.Get(row, proto.MemoryWorkingSet.Field()); !ok {
		return u, 0, 0, false
	}
	if sample, ok = v.Get(row, proto.GroupCPU.Time()); !ok {
		return u, 0, 0, false
	}
	u.Swap, u.HasSwap = v.Get(row, proto.SwapUsage.Field())
	delta, some := v.Get(row, proto.CPUUsage.Delta())
	if ns, has := v.Get(row, proto.GroupCPU.Span()); some && has && ns > 0 && delta >= 0 {
		u.CPU = nanocores.Rate(delta, ns).Int64()
		return u, sample, time.Duration(ns), true
	}
	used, has := v.Get(row, proto.CPUUsage.Field())
	start, told := v.Get(row, proto.FieldStart)
	if age := sample - start; has && told && used >= 0 && age >= int64(minAge) && age <= int64(young) {
		u.CPU = nanocores.Rate(used, age).Int64()
		return u, sample, time.Duration(age), true
	}
	return u, 0, 0, false
}

// minAge is the least age at which a container is measured from its start.
const minAge = 10 * time.Second

var nanocores = proto.MetricByID(proto.CPUUsageNanocores)

// seenAt is when a CPU sample was first seen, for one that was not in the rollup before: now; or, where
// it stands in already, a tick ago at least.
func seenAt(r *proto.Rollup, row int, o Origin) int64 {
	at := o.Time.UnixNano()
	if r.StandsIn(row, proto.GroupCPU) {
		at -= int64(r.Resolution)
	}
	return at
}

// pod returns the state of the p-th pod if that is still the one called as e and in its place, or nil. Pods mostly stand
// where they stood in the rollup before, so that looking there saves searching for them.
func (st *nodeState) pod(p int, e *proto.Entity) *podState {
	if st == nil || p >= len(st.pods) {
		return nil
	}
	before := &st.pods[p]
	was := &st.table.Entities[before.row]
	if was.Name != e.Name || was.Namespace != e.Namespace || before.slot.state.Load() != before {
		return nil
	}
	return before
}

// held returns the state of the pod that is called as e, if it is of the node's state before; or nil.
func (c *Cluster) held(e *proto.Entity, before *nodeState) *podState {
	if before == nil {
		return nil
	}
	slot := findPod(*c.pods.Load(), e.Namespace, e.Name)
	if slot == nil {
		return nil
	}
	if st := slot.state.Load(); st != nil && st.node == before {
		return st
	}
	return nil
}

// at returns when the sample of the container was first seen, 0 where it is new.
func (p *podState) at(i int, container string, sample int64) int64 {
	if p == nil || i >= len(p.samples) || p.metrics.Containers[i].Name != container || p.samples[i].sample != sample {
		return 0
	}
	return p.samples[i].at
}

// identities returns the rows that readers need to know by more than their numbers: all but the shares of
// workloads, in a table without values. What did not change is that of the state before, so that no message is kept
// alive by it: mostly the whole table, else labels.
func identities(r *proto.Rollup, before *nodeState) *proto.Table {
	n := 0
	for i := range r.Entities {
		if r.Entities[i].Kind == proto.KindWorkload {
			break
		}
		n++
	}
	var was []proto.Entity
	if before != nil {
		was = before.table.Entities
	}
	same := 0
	for same < min(n, len(was)) && sameEntity(&r.Entities[same], &was[same]) {
		same++
	}
	if before != nil && same == n && n == len(was) {
		return before.table
	}
	t := &proto.Table{Entities: slices.Clone(r.Entities[:n])}
	copy(t.Entities, was[:same])
	for i := same; i < n; i++ {
		e := &t.Entities[i]
		if len(e.Labels) == 0 {
			continue
		}
		if i < len(was) && slices.Equal(e.Labels, was[i].Labels) {
			e.Labels = was[i].Labels
		} else {
			e.Labels = slices.Clone(e.Labels)
		}
	}
	return t
}

// sameEntity reports whether two entities are equal in everything.
func sameEntity(a, b *proto.Entity) bool {
	return a.Name == b.Name && a.UID == b.UID && a.Namespace == b.Namespace &&
		a.Kind == b.Kind && a.Phase == b.Phase && a.Flags == b.Flags && a.Parent == b.Parent &&
		a.Image == b.Image && a.Hostname == b.Hostname && a.HostID == b.HostID && a.Owner == b.Owner && slices.Equal(a.Labels, b.Labels)
}

// placePods gives each pod of a node's new state its slot, making those that are missing.
func (c *Cluster) placePods(st *nodeState) {
	all := *c.pods.Load()
	var fresh map[string][]*podSlot // by namespace
	for i := range st.pods {
		p := &st.pods[i]
		e := &st.table.Entities[p.row]
		slot := p.slot
		if slot == nil {
			slot = findPod(all, e.Namespace, e.Name)
		}
		if slot == nil {
			slot = &podSlot{name: e.Name}
			if fresh == nil {
				fresh = make(map[string][]*podSlot)
			}
			fresh[e.Namespace] = append(fresh[e.Namespace], slot)
		}
		p.slot = slot
		if other := slot.state.Load(); other != nil && other.node.table.Entities[0].Name != st.table.Entities[0].Name {
			// A pod that two nodes claim: deleted here and made anew there under the same name.
			if st.seen <= other.node.seen+other.node.keep {
				c.tele.claims.Inc()
				if other.birth > p.birth {
					continue
				}
			}
		}
		slot.state.Store(p)
	}
	if fresh == nil {
		return
	}
	all = slices.Clone(all)
	for namespace, slots := range fresh {
		i, ok := findNamespace(all, namespace)
		if !ok {
			all = slices.Insert(all, i, &namespacePods{name: namespace})
		}
		pods := withPods(all[i].pods, slots)
		all[i] = &namespacePods{name: namespace, pods: pods}
	}
	c.pods.Store(&all)
}

// withPods is a copy of a namespace's pods with new ones in their places, which it sorts. Of several of one name the
// first stays.
func withPods(pods, added []*podSlot) []*podSlot {
	byName := func(a, b *podSlot) int { return strings.Compare(a.name, b.name) }
	slices.SortStableFunc(added, byName)
	all := make([]*podSlot, 0, len(pods)+len(added))
	for _, slot := range added {
		i, found := slices.BinarySearchFunc(pods, slot, byName)
		all = append(all, pods[:i]...)
		pods = pods[i:]
		if !found && (len(all) == 0 || all[len(all)-1].name != slot.name) {
			all = append(all, slot)
		}
	}
	return append(all, pods...)
}

// removePods takes those pods of old states out of the lists that nothing newer took the place of.
func (c *Cluster) removePods(old ...*nodeState) {
	var gone map[string]bool // namespaces with slots to remove
	for _, st := range old {
		for i := range st.pods {
			p := &st.pods[i]
			if p.slot != nil && p.slot.state.CompareAndSwap(p, nil) {
				if gone == nil {
					gone = make(map[string]bool)
				}
				gone[st.table.Entities[p.row].Namespace] = true
			}
		}
	}
	if gone == nil {
		return
	}
	all := slices.Clone(*c.pods.Load())
	for namespace := range gone {
		i, ok := findNamespace(all, namespace)
		if !ok {
			continue
		}
		pods := make([]*podSlot, 0, len(all[i].pods))
		for _, slot := range all[i].pods {
			if slot.state.Load() != nil {
				pods = append(pods, slot)
			}
		}
		if len(pods) == 0 {
			all = slices.Delete(all, i, i+1)
		} else {
			all[i] = &namespacePods{name: namespace, pods: pods}
		}
	}
	c.pods.Store(&all)
}

// sweep removes nodes, pods and namespaces that have not been heard of for as long as they are kept,
// and trims the past.
func (c *Cluster) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.nowNano()
	if nodes := *c.nodes.Load(); slices.ContainsFunc(nodes, func(n *nodeSlot) bool { return n.present(now) == nil }) {
		kept := make([]*nodeSlot, 0, len(nodes))
		var silent []*nodeState
		for _, n := range nodes {
			if n.present(now) != nil {
				kept = append(kept, n)
			} else if st := n.state.Swap(nil); st != nil {
				silent = append(silent, st)
			}
		}
		c.removePods(silent...)
		c.nodes.Store(&kept)
	}
	gone := func(n *namespaceState) bool { return now > n.seen+n.keep }
	if all := *c.namespaces.Load(); slices.ContainsFunc(all, gone) {
		all = slices.DeleteFunc(slices.Clone(all), gone)
		c.namespaces.Store(&all)
	}
	if c.noPast { // the newest tick of what is still there
		now -= keepFor(c.Resolution())
	}
	c.past.Trim(time.Unix(0, now))
}
