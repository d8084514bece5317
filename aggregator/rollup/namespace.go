package rollup

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// namespace is one namespace of a closed tick while its shares are added up.
type namespace struct {
	namespaceShare
	workloads []workloadShare
	index     map[proto.Owner]int
}

// Tick is what the shares of a closed tick add up to.
type Tick struct {
	namespaces []*namespace // by name
	cluster    Sum
}

// Namespaces is how many namespaces have pods at the tick.
func (t *Tick) Namespaces() int { return len(t.namespaces) }

// Name is the name of the i-th namespace.
func (t *Tick) Name(i int) string { return t.namespaces[i].name }

// Tick adds up the shares of a closed tick: of the nodes that spoke and of those that stand in, in the
// order of the nodes' names.
func (m *Maker) Tick(shares ...[]*Share) *Tick {
	clear(m.merged)
	t := &Tick{}
	for _, list := range shares {
		for _, s := range list {
			for i := range s.namespaces {
				from := &s.namespaces[i]
				n := m.merged[from.name]
				if n == nil {
					n = &namespace{index: map[proto.Owner]int{}}
					n.name, n.uid = from.name, m.uid(from.name)
					m.merged[from.name] = n
					t.namespaces = append(t.namespaces, n)
				}
				if n.uid == "" { // not in the inventory in force: what a node was told with it earlier
					n.uid = from.uid
				}
				n.sum.add(&from.sum)
			}
			for i := range s.workloads {
				from := &s.workloads[i]
				n := m.merged[from.namespace]
				at, ok := n.index[from.workload]
				if !ok {
					at = len(n.workloads)
					n.index[from.workload] = at
					n.workloads = append(n.workloads, workloadShare{namespace: from.namespace, workload: from.workload})
				}
				n.workloads[at].sum.add(&from.sum)
			}
		}
	}
	slices.SortFunc(t.namespaces, func(a, b *namespace) int { return strings.Compare(a.name, b.name) })
	for _, n := range t.namespaces {
		slices.SortFunc(n.workloads, func(a, b workloadShare) int {
			return cmp.Or(strings.Compare(a.workload.Kind, b.workload.Kind), strings.Compare(a.workload.Name, b.workload.Name))
		})
		t.cluster.add(&n.sum)
	}
	return t
}

// Namespace makes the rollup of the tick's i-th namespace. The caller sets cluster, tick, resolution and
// sequence.
func (m *Maker) Namespace(t *Tick, i int, r *proto.Rollup) {
	n := t.namespaces[i]
	r.Reset()
	r.Scope, r.Name = proto.ScopeNamespace, n.name
	e := proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: n.name, UID: n.uid}
	if known := m.namespaces[n.name]; known != nil {
		e.Labels = known.Labels
	}
	n.sum.set(&r.Table, r.AddEntity(e))
	for i := range n.workloads {
		w := &n.workloads[i]
		w.sum.set(&r.Table, r.AddEntity(w.entity()))
	}
}
