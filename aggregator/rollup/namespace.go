package rollup

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// namespace is one namespace of a closed tick while its shares are added up.
type namespace struct {
	name, uid string
	sum       Sum
	pods      [][]pod // by node
	workloads []workload
	index     map[proto.Owner]int
}

// workload is one workload of a namespace, of all nodes.
type workload struct {
	of   proto.Owner
	sum  Sum
	pods [][]pod // by node
}

// Tick is what the shares of a closed tick add up to.
type Tick struct {
	Contested             []Contested // pods left out
	PodsWithoutRate       uint32      // in the sums and without CPU use
	ContainersWithoutRate uint32      // those of pods in the sums

	namespaces []*namespace // by name
	cluster    Sum
}

// Namespaces is how many namespaces have pods at the tick.
func (t *Tick) Namespaces() int { return len(t.namespaces) }

// Name is the name of the i-th namespace.
func (t *Tick) Name(i int) string { return t.namespaces[i].name }

// Tick adds up the shares of a closed tick: of the nodes that spoke and of those that stand in, each in the
// order of the nodes' names.
func (m *Maker) Tick(reported, standIn []*Share) *Tick {
	clear(m.merged)
	m.shares = append(append(m.shares[:0], reported...), standIn...)
	t := &Tick{Contested: m.contest(m.shares)}
	for _, s := range m.shares {
		for i := range s.namespaces {
			from := &s.namespaces[i]
			n := m.merged[from.name]
			if n == nil {
				n = &namespace{name: from.name, uid: m.uid(from.name), index: map[proto.Owner]int{}}
				m.merged[from.name] = n
				t.namespaces = append(t.namespaces, n)
			}
			if n.uid == "" { // not in the inventory in force: what a node was told with it earlier
				n.uid = from.uid
			}
			n.sum.add(&from.sum)
			n.pods = append(n.pods, from.pods)
		}
		for i := range s.workloads {
			from := &s.workloads[i]
			n := m.merged[from.namespace]
			at, ok := n.index[from.workload]
			if !ok {
				at = len(n.workloads)
				n.index[from.workload] = at
				n.workloads = append(n.workloads, workload{of: from.workload})
			}
			w := &n.workloads[at]
			w.sum.add(&from.sum)
			w.pods = append(w.pods, from.pods)
		}
		t.PodsWithoutRate += s.podsWithoutRate
		t.ContainersWithoutRate += s.containersWithoutRate
	}
	clear(m.shares)
	slices.SortFunc(t.namespaces, func(a, b *namespace) int { return strings.Compare(a.name, b.name) })
	for _, n := range t.namespaces {
		slices.SortFunc(n.workloads, func(a, b workload) int {
			return cmp.Or(strings.Compare(a.of.Kind, b.of.Kind), strings.Compare(a.of.Name, b.of.Name))
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
	row := r.AddEntity(e)
	n.sum.set(&r.Table, row)
	m.spread(&r.Table, row, n.pods)
	for i := range n.workloads {
		w := &n.workloads[i]
		row := r.AddEntity(workloadEntity(n.name, w.of))
		w.sum.set(&r.Table, row)
		m.spread(&r.Table, row, w.pods)
	}
}

func workloadEntity(namespace string, of proto.Owner) proto.Entity {
	return proto.Entity{Kind: proto.KindWorkload, Parent: -1, Namespace: namespace, Name: of.Name, Owner: of}
}
