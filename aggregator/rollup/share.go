package rollup

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// summed are the metrics of namespaces, workloads and the cluster, in the catalogue's order.
var summed = metricsOf(func(m *proto.Metric) bool { return m.Rule == proto.RollUsage || m.Rule == proto.RollAll })

const maxSummed = 16

// Sum is what the pods of one namespace or workload add up to.
type Sum struct {
	Pods, Containers int64

	has    uint32 // bit i: values[i] is known
	values [maxSummed]int64
}

func (s *Sum) add(o *Sum) {
	s.Pods += o.Pods
	s.Containers += o.Containers
	for i := range summed {
		if o.has&(1<<i) != 0 {
			s.has |= 1 << i
			s.values[i] = add(s.values[i], o.values[i])
		}
	}
}

// set writes the sum into a row.
func (s *Sum) set(t *proto.Table, row int) {
	for i, m := range summed {
		if s.has&(1<<i) != 0 {
			t.Values.Set(row, m.ID.Field(), s.values[i])
		}
	}
	t.Values.Set(row, proto.PodCount.Field(), s.Pods)
	t.Values.Set(row, proto.ContainerCount.Field(), s.Containers)
}

// Share is what one node adds to its cluster at one tick. It is not altered once made.
type Share struct {
	Entities uint32 // rows of the node's rollup that were measured
	Stale    uint32 // those of which a group stands in

	namespaces []namespaceShare // by name
	workloads  []workloadShare  // by namespace, kind and name
}

type namespaceShare struct {
	name, uid string
	sum       Sum
}

type workloadShare struct {
	namespace string
	workload  proto.Owner
	sum       Sum
}

// share sums the counted pods, which it reorders.
func (m *Maker) share(t *proto.Table, counted []int32) *Share {
	slices.SortFunc(counted, func(a, b int32) int {
		x, y := &t.Entities[a], &t.Entities[b]
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Owner.Kind, y.Owner.Kind),
			strings.Compare(x.Owner.Name, y.Owner.Name), cmp.Compare(a, b))
	})
	s := &Share{}
	for i, row := range counted {
		e := &t.Entities[row]
		if i == 0 || e.Namespace != t.Entities[counted[i-1]].Namespace {
			s.namespaces = append(s.namespaces, namespaceShare{name: e.Namespace, uid: m.uid(e.Namespace)})
		}
		if i == 0 || e.Namespace != t.Entities[counted[i-1]].Namespace || e.Owner != t.Entities[counted[i-1]].Owner {
			s.workloads = append(s.workloads, workloadShare{namespace: e.Namespace, workload: e.Owner})
		}
		pod := Sum{Pods: 1}
		pod.Containers, _ = t.Values.Get(int(row), proto.ContainerCount.Field())
		for i, metric := range summed {
			if v, ok := stored(t, int(row), metric); ok {
				pod.has |= 1 << i
				pod.values[i] = v
			}
		}
		s.namespaces[len(s.namespaces)-1].sum.add(&pod)
		s.workloads[len(s.workloads)-1].sum.add(&pod)
	}
	return s
}

func (m *Maker) uid(namespace string) string {
	if n := m.namespaces[namespace]; n != nil {
		return n.UID
	}
	return ""
}

// append writes the share behind the rows of the node's rollup.
func (s *Share) append(t *proto.Table) {
	for i := range s.namespaces {
		n := &s.namespaces[i]
		n.sum.set(t, t.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: n.name, UID: n.uid}))
	}
	for i := range s.workloads {
		w := &s.workloads[i]
		w.sum.set(t, t.AddEntity(w.entity()))
	}
}

func (w *workloadShare) entity() proto.Entity {
	return proto.Entity{Kind: proto.KindWorkload, Parent: -1, Namespace: w.namespace, Name: w.workload.Name, Owner: w.workload}
}
