package rollup

import "github.com/heapstream/heapstream/proto"

type ownerKey struct {
	namespace string
	object    proto.Owner
}

// SetInventory replaces what is known of one subject by the parts in force, which it keeps.
func (m *Maker) SetInventory(subject proto.InventorySubject, parts []*proto.Inventory) {
	switch subject {
	case proto.InventoryNamespaces:
		m.namespaces = map[string]*proto.InventoryNamespace{}
		for _, p := range parts {
			for i := range p.Namespaces {
				m.namespaces[p.Namespaces[i].Name] = &p.Namespaces[i]
			}
		}
	case proto.InventoryOwners:
		m.owners = map[ownerKey]proto.Owner{}
		for _, p := range parts {
			for i := range p.Owners {
				o := &p.Owners[i]
				m.owners[ownerKey{o.Namespace, o.Object}] = o.Owner
			}
		}
	}
}

// enrich replaces the controllers of pods by their workloads.
func (m *Maker) enrich(t *proto.Table) {
	for i := range t.Entities {
		if e := &t.Entities[i]; e.Kind == proto.KindPod {
			e.Owner = m.workload(e)
		}
	}
}

// workload is what a pod belongs to: its controller's controller where that has one, its controller
// otherwise. A bare pod is its own workload, and so is a static pod, whose controller is its node.
func (m *Maker) workload(pod *proto.Entity) proto.Owner {
	if pod.Owner.Kind == "" || pod.Owner.Kind == "Node" {
		return proto.Owner{Kind: "Pod", Name: pod.Name}
	}
	if o, ok := m.owners[ownerKey{pod.Namespace, pod.Owner}]; ok && o.Kind != "" {
		return o
	}
	return pod.Owner
}
