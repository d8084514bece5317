package rollup

import (
	"slices"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

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
func (m *Maker) enrich(t *proto.Table, at proto.Tick) {
	for i := range t.Entities {
		if e := &t.Entities[i]; e.Kind == proto.KindPod {
			e.Owner = m.workload(e, at)
		}
	}
}

// workload is what a pod belongs to, decided anew at every batch:
//
//   - its controller's controller where the inventory in force knows one: the Deployment of a ReplicaSet, the
//     CronJob of a Job, or whatever else has made these;
//   - where it does not, what the names say that Kubernetes' own controllers give, so that a pod is not
//     its ReplicaSet's while the inventory has not heard of a new one, or has forgotten one whose pods end:
//     a ReplicaSet that is called after the pod's label pod-template-hash belongs to the Deployment before
//     the hash, a Job that is called after a minute of the last year belongs to the CronJob before it;
//   - else its controller: a StatefulSet, DaemonSet, bare ReplicaSet or Job, ReplicationController, or one
//     of another kind. A ReplicaSet or Job of a foreign controller (an Argo Rollout) is its own workload
//     until the inventory names that;
//   - itself where the API server knows it and it has no controller, and where that is its node: a static
//     pod;
//   - none, the zero Owner, where the API server has not told of the pod: it may have a controller. It is
//     in the sums of its namespace, not in those of a workload.
func (m *Maker) workload(pod *proto.Entity, at proto.Tick) proto.Owner {
	switch {
	case pod.Owner.Kind == "Node":
		return proto.Owner{Kind: "Pod", Name: pod.Name}
	case pod.Owner.Kind == "" && (pod.Phase == proto.PhaseUnknown || pod.Flags&proto.FlagNotInAPI != 0):
		return proto.Owner{}
	case pod.Owner.Kind == "":
		return proto.Owner{Kind: "Pod", Name: pod.Name}
	}
	if o, ok := m.owners[ownerKey{pod.Namespace, pod.Owner}]; ok && o.Kind != "" {
		return o
	}
	name, suffix := pod.Owner.Name, ""
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		name, suffix = name[:i], name[i+1:]
	}
	switch {
	case suffix == "":
	case pod.Owner.Kind == "ReplicaSet" && label(pod.Labels, "pod-template-hash") == suffix:
		return proto.Owner{Kind: "Deployment", Name: name}
	case pod.Owner.Kind == "Job" && scheduled(suffix, at):
		return proto.Owner{Kind: "CronJob", Name: name}
	}
	return pod.Owner
}

// scheduled reports whether the end of a Job's name is the minute, since 1970, of a schedule not older than
// a year.
func scheduled(suffix string, at proto.Tick) bool {
	minute, err := strconv.ParseInt(suffix, 10, 64)
	now := int64(at) / 60_000
	return err == nil && minute > now-366*24*60 && minute <= now+1
}

func label(labels []proto.Label, key string) string {
	at, ok := slices.BinarySearchFunc(labels, key, func(l proto.Label, key string) int { return strings.Compare(l.Key, key) })
	if !ok {
		return ""
	}
	return labels[at].Value
}
