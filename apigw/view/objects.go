package view

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// What follows is asked by the custom and external metrics APIs: what is there now, and what it has.

// Object is something that is there now and that metrics can be asked of.
type Object struct {
	Entity window.Entity
	Labels []proto.Label // of a node or pod, sorted by key; must not be altered
	Node   string        // of a pod or container
	Owner  proto.Owner   // of a pod or container: the workload behind it
}

// Objects yields what there is of a kind, sorted: nodes and the cluster whatever the namespace, the namespace
// itself, and pods, containers and workloads of the namespace ("" for pods and containers of all).
func (c *Cluster) Objects(kind proto.Kind, namespace string) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		now := c.clock.nowNano()
		switch kind {
		case proto.KindCluster:
			if t := c.totals.Load(); t != nil && now <= t.seen+t.keep {
				yield(Object{Entity: window.Entity{Kind: kind}})
			}
		case proto.KindNode:
			for _, slot := range *c.nodes.Load() {
				if st := slot.present(now); st != nil && !yield(nodeObject(slot, st)) {
					return
				}
			}
		case proto.KindNamespace:
			if c.hasNamespace(namespace, now) {
				yield(Object{Entity: window.Entity{Kind: kind, Namespace: namespace}})
			}
		case proto.KindWorkload:
			if !c.hasNamespace(namespace, now) {
				return
			}
			all := c.past.Workloads(namespace)
			slices.SortFunc(all, func(a, b window.Entity) int {
				return cmp.Or(cmp.Compare(a.OwnerKind, b.OwnerKind), cmp.Compare(a.Name, b.Name))
			})
			for _, e := range all {
				if !yield(Object{Entity: e}) {
					return
				}
			}
		case proto.KindPod, proto.KindContainer:
			for _, slot := range c.podSlots(namespace) {
				st := slot.present(now)
				if st == nil {
					continue
				}
				if kind == proto.KindPod {
					if !yield(podObject(st)) {
						return
					}
				} else if !containerObjects(st, yield) {
					return
				}
			}
		}
	}
}

// Object returns a node, pod, namespace, workload or the cluster, if it is there now.
func (c *Cluster) Object(e window.Entity) (Object, bool) {
	now := c.clock.nowNano()
	switch e.Kind {
	case proto.KindNode:
		if slot := findNode(*c.nodes.Load(), e.Node); slot != nil {
			if st := slot.present(now); st != nil {
				return nodeObject(slot, st), true
			}
		}
	case proto.KindPod:
		if slot := findPod(*c.pods.Load(), e.Namespace, e.Pod); slot != nil {
			if st := slot.present(now); st != nil {
				return podObject(st), true
			}
		}
	default:
		for o := range c.Objects(e.Kind, e.Namespace) {
			if o.Entity == e {
				return o, true
			}
		}
	}
	return Object{}, false
}

func (c *Cluster) hasNamespace(name string, now int64) bool {
	all := *c.namespaces.Load()
	i, ok := slices.BinarySearchFunc(all, name, func(n *namespaceState, name string) int { return cmp.Compare(n.name, name) })
	return ok && now <= all[i].seen+all[i].keep
}

// podSlots returns the slots of a namespace, or of all.
func (c *Cluster) podSlots(namespace string) []*podSlot {
	all := *c.pods.Load()
	if namespace != "" {
		i, ok := findNamespace(all, namespace)
		if !ok {
			return nil
		}
		return all[i].pods
	}
	var slots []*podSlot
	for _, ns := range all {
		slots = append(slots, ns.pods...)
	}
	return slots
}

func nodeObject(slot *nodeSlot, st *nodeState) Object {
	return Object{Entity: window.Entity{Kind: proto.KindNode, Node: slot.name}, Labels: st.table.Entities[0].Labels}
}

func podObject(st *podState) Object {
	e := &st.node.table.Entities[st.row]
	return Object{
		Entity: window.Entity{Kind: proto.KindPod, Namespace: e.Namespace, Pod: e.Name},
		Labels: e.Labels, Node: st.node.table.Entities[0].Name, Owner: e.Owner,
	}
}

func containerObjects(st *podState, yield func(Object) bool) bool {
	o := podObject(st)
	o.Entity.Kind, o.Labels = proto.KindContainer, nil
	for i := range st.node.table.Entities {
		if e := &st.node.table.Entities[i]; e.Kind == proto.KindContainer && e.Parent == st.row {
			o.Entity.Name = e.Name
			if !yield(o) {
				return false
			}
		}
	}
	return true
}

// Latest appends what an entity has of a metric at its newest tick, as [window.Window.Latest] does. Whether the
// entity is still there is for [Cluster.Object] to say.
func (c *Cluster) Latest(dst []window.Reading, e window.Entity, m *proto.Metric) []window.Reading {
	return c.past.Latest(dst, e, m)
}

// Recent appends the points of the last ticks of an entity, from its newest tick back to those younger than span,
// oldest first; device is nil but for a labelled metric. Points that stand in for a sample that did not advance are
// left out, unless there is nothing else.
func (c *Cluster) Recent(dst []window.Point, e window.Entity, m *proto.Metric, device *proto.Device, span time.Duration) []window.Point {
	newest, ok := c.past.NewestTick(e)
	if !ok {
		return dst
	}
	n, from := len(dst), max(newest-proto.Tick(span.Milliseconds())+1, c.since())
	if device == nil {
		dst = c.past.Series(dst, e, m.Name, from, newest)
	} else {
		dst = c.past.LabelledSeries(dst, e, m.Name, device.AppendLabels(nil), from, newest)
	}
	if !slices.ContainsFunc(dst[n:], func(p window.Point) bool { return !p.StandsIn }) {
		return slices.Delete(dst, n, max(n, len(dst)-1))
	}
	return fresh(dst, n)
}

// Span returns how much of the past is remembered.
func (c *Cluster) Span() time.Duration { return c.past.Span() }

// Identity is what a pod with a UID is called.
type Identity struct {
	Namespace, Name string
	Born            time.Time // when it was started, the zero time where nobody tells
}

// PodsByUID finds those of the given UIDs that are pods now. It looks at every pod once, however many are asked for.
func (c *Cluster) PodsByUID(uids []string) map[string]Identity {
	wanted := make(map[string]bool, len(uids))
	for _, uid := range uids {
		wanted[uid] = true
	}
	found := make(map[string]Identity, len(wanted))
	now := c.clock.nowNano()
	for _, slot := range *c.nodes.Load() {
		node := slot.present(now)
		if node == nil {
			continue
		}
		for i := range node.pods {
			p := &node.pods[i]
			e := &node.table.Entities[p.row]
			if !wanted[e.UID] || p.slot.state.Load() != p { // or it has the place of a newer one
				continue
			}
			id := Identity{Namespace: e.Namespace, Name: e.Name}
			if p.birth > 0 {
				id.Born = time.Unix(0, p.birth).UTC()
			}
			found[e.UID] = id
		}
	}
	return found
}
