package view

import (
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Visitor is told what there is now.
type Visitor interface {
	window.Visitor
	// Node begins the entities of a node. The rows that it is told of are rows of t, which holds no values and must
	// not be altered. false passes over the node.
	Node(name string, t *proto.Table) bool
	// Sums begins those of a namespace with its workloads, or where namespace is "" of the cluster; rows mean nothing.
	Sums(namespace string) bool
}

// Sweep tells v all that is there now, with what it has at the newest tick: every node with all that is on it in the
// order of their names, then namespaces with their workloads, then the cluster.
func (c *Cluster) Sweep(s *window.Sweep, v Visitor) {
	now := c.clock.nowNano()
	for _, slot := range *c.nodes.Load() {
		st := slot.present(now)
		if st == nil || !v.Node(slot.name, st.table) {
			continue
		}
		if c.past.Sweep(s, proto.ScopeNode, slot.name, st.tick, v) {
			continue
		}
		// A rollup came in between.
		c.mu.Lock()
		if st = slot.present(now); st != nil && v.Node(slot.name, st.table) {
			c.past.Sweep(s, proto.ScopeNode, slot.name, st.tick, v)
		}
		c.mu.Unlock()
	}
	for _, ns := range *c.namespaces.Load() {
		if now <= ns.seen+ns.keep && v.Sums(ns.name) {
			c.past.Sweep(s, proto.ScopeNamespace, ns.name, 0, v)
		}
	}
	if t := c.totals.Load(); t != nil && now <= t.seen+t.keep && v.Sums("") {
		c.past.Sweep(s, proto.ScopeTotals, "", 0, v)
	}
}
