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

// placeOf is where a Sum has a summed metric.
func placeOf(id proto.MetricID) int {
	return slices.IndexFunc(summed, func(m *proto.Metric) bool { return m.ID == id })
}

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
	Node     string
	Entities uint32 // rows of the node's rollup that were measured
	Stale    uint32 // those of which a group stands in

	podsWithoutRate       uint32
	containersWithoutRate uint32

	pods       []pod            // that count, by namespace and workload
	namespaces []namespaceShare // by name
	workloads  []workloadShare  // by namespace, kind and name
}

// pod is one pod of a share.
type pod struct {
	namespace, name, uid string
	hash                 [2]uint64   // of the name and the UID
	workload             proto.Owner // none: not known
	start                int64       // Unix ns; 0: not known
	unrated              uint32      // running containers without CPU use
	sum                  Sum
}

type namespaceShare struct {
	name, uid string
	sum       Sum
	pods      []pod // a part of the share's
}

type workloadShare struct {
	namespace string
	workload  proto.Owner
	sum       Sum
	pods      []pod // a part of the share's
}

// share sums the counted pods.
func (m *Maker) share(t *proto.Table, counted []int32) *Share {
	slices.SortFunc(counted, func(a, b int32) int {
		x, y := &t.Entities[a], &t.Entities[b]
		return cmp.Or(strings.Compare(x.Namespace, y.Namespace), strings.Compare(x.Owner.Kind, y.Owner.Kind),
			strings.Compare(x.Owner.Name, y.Owner.Name), cmp.Compare(a, b))
	})
	s := &Share{pods: make([]pod, len(counted))}
	for i, row := range counted {
		m.pod(&s.pods[i], t, int(row))
	}
	s.add(m.uid)
	return s
}

// pod reads a row.
func (m *Maker) pod(p *pod, t *proto.Table, row int) {
	e := &t.Entities[row]
	*p = pod{namespace: e.Namespace, name: e.Name, uid: e.UID, workload: e.Owner, sum: Sum{Pods: 1}}
	if birth, ok := t.Values.Get(row, proto.FieldBirth); ok {
		p.start = birth
	} else {
		p.start, _ = t.Values.Get(row, proto.FieldStart)
	}
	p.hash = p.hashes()
	p.sum.Containers, _ = t.Values.Get(row, proto.ContainerCount.Field())
	for i, metric := range summed {
		if v, ok := stored(t, row, metric); ok {
			p.sum.has |= 1 << i
			p.sum.values[i] = v
		}
	}
	for c := m.family.first[row]; c != 0; c = m.family.next[c] {
		if _, ok := stored(t, int(c), cpuUse); !ok && runs(t, int(c)) {
			p.unrated++
		}
	}
}

// runs reports whether a container is running: as the API server says, or as it was measured where that has
// not told.
func runs(t *proto.Table, row int) bool {
	_, measured := t.Values.Get(row, proto.CPUUsage.Field())
	f := t.Entities[row].Flags
	return f&proto.FlagRunning != 0 || measured && f&proto.FlagTerminated == 0
}

var (
	cpuUse   = proto.MetricByID(proto.CPUUsageRate)
	cpuPlace = placeOf(proto.CPUUsageRate)
)

// add sums the share's pods by namespace and workload. uid tells that of a namespace.
func (s *Share) add(uid func(namespace string) string) {
	namespaces, workloads := 0, 0
	for i := range s.pods {
		p := &s.pods[i]
		other := i == 0 || s.pods[i-1].namespace != p.namespace
		if other {
			namespaces++
		}
		if p.workload.Kind != "" && (other || s.pods[i-1].workload != p.workload) {
			workloads++
		}
	}
	s.namespaces, s.workloads = make([]namespaceShare, 0, namespaces), make([]workloadShare, 0, workloads)
	for from := 0; from < len(s.pods); {
		n := namespaceShare{name: s.pods[from].namespace, uid: uid(s.pods[from].namespace)}
		to := from
		for to < len(s.pods) && s.pods[to].namespace == n.name {
			w := workloadShare{namespace: n.name, workload: s.pods[to].workload}
			first := to
			for ; to < len(s.pods) && s.pods[to].namespace == n.name && s.pods[to].workload == w.workload; to++ {
				p := &s.pods[to]
				w.sum.add(&p.sum)
				s.containersWithoutRate += p.unrated
				if p.sum.has&(1<<cpuPlace) == 0 {
					s.podsWithoutRate++
				}
			}
			w.pods = s.pods[first:to:to]
			n.sum.add(&w.sum)
			if w.workload.Kind != "" {
				s.workloads = append(s.workloads, w)
			}
		}
		n.pods = s.pods[from:to:to]
		s.namespaces = append(s.namespaces, n)
		from = to
	}
}

// without is the share without the pods at these places.
func (s *Share) without(lost map[int32]bool) *Share {
	left := &Share{Node: s.Node, Entities: s.Entities, Stale: s.Stale, pods: make([]pod, 0, len(s.pods))}
	for i := range s.pods {
		if !lost[int32(i)] { //nolint:gosec // as in contest
			left.pods = append(left.pods, s.pods[i])
		}
	}
	left.add(func(namespace string) string {
		at, _ := slices.BinarySearchFunc(s.namespaces, namespace, func(n namespaceShare, name string) int { return strings.Compare(n.name, name) })
		return s.namespaces[at].uid
	})
	return left
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
		w.sum.set(t, t.AddEntity(workloadEntity(w.namespace, w.workload)))
	}
}
