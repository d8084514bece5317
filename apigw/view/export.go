package view

import (
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Exported is one entity with what it has at the newest tick of its node.
type Exported struct {
	Tick    proto.Tick
	Start   int64 // when its counters began, Unix ns; 0 where nobody tells
	Samples []window.Sample

	Table *proto.Table // entities of the node, without values; must not be altered
	Row   int          // of the entity in it
}

// Export calls do for every node, pod, container and system container that is there now, node by node and
// in the order of their names, with those samples that want accepts. x is valid until do returns; false
// ends it.
func (c *Cluster) Export(want func(*proto.Metric) bool, do func(x *Exported) bool) {
	now := c.clock.nowNano()
	var x Exported
	for _, slot := range *c.nodes.Load() {
		st := slot.present(now)
		if st == nil {
			continue
		}
		x.Table, x.Tick = st.table, st.tick
		for i := range st.table.Entities {
			e := &st.table.Entities[i]
			key := window.Entity{Kind: e.Kind}
			switch e.Kind {
			case proto.KindNode:
				key.Node = e.Name
			case proto.KindSystemContainer:
				key.Node, key.Name = slot.name, e.Name
			case proto.KindPod:
				key.Namespace, key.Pod = e.Namespace, e.Name
			case proto.KindContainer:
				pod := &st.table.Entities[e.Parent]
				key.Namespace, key.Pod, key.Name = pod.Namespace, pod.Name, e.Name
			default:
				continue
			}
			x.Row = i
			x.Samples, x.Start = c.past.Newest(x.Samples[:0], key, st.tick, want)
			if !do(&x) {
				return
			}
		}
	}
}
