// Package rollup makes rollups: a node's batch, after rates, becomes the node's rollup; the shares of
// all nodes at a closed tick become one rollup a namespace and the totals.
//
//	enrich.go        namespace UIDs and workloads from the inventory
//	pods.go          containers -> pod
//	nodesum.go       pods -> node: what they ask for
//	share.go         pods -> this node's share of namespaces and workloads
//	contested.go     pods that are in two shares count once
//	namespace.go     shares -> namespaces with their workloads
//	distribution.go  what the pods of a namespace or workload are like one by one
//	totals.go        namespaces -> cluster
//
// What is summed is the catalogue's word (proto.Rule). Values that stand in count; values that are
// absent do not, and a sum of nothing is absent, not zero. A pod has its cgroup's value where the source
// gives one, else the sum of its containers; rates are summed as the integers of Metric.StoredRate, so
// that sums of millicores are what Heapster's were and nanocores are exact.
//
// Every pod that the node's kubelet reported is counted, whatever its phase, as Heapster did: one that
// has ended and is still reported keeps its requests. A pod of which only the API server knows
// (FlagStub, on itself and all its containers) is not, nor are the requests and restarts of init
// containers that are to finish. Namespaces, workloads and the cluster are sums of pods alone. A pod that
// two nodes have is counted once in them (see contest); each node's own rollup shows what its kubelet said,
// so that the shares in it may add up to more. The totals say how many pods were left out so, and how many
// pods and running containers in the sums have no CPU use: a sum is of the others then.
//
// Nothing is remembered but the inventory that SetInventory was given; after a crash it is read again.
//
// Not here: rates (rate), which nodes are in a tick (ticks), formulas and bytes (proto).
package rollup

import (
	"github.com/heapstream/heapstream/proto"
)

// Maker makes rollups of one cluster. It reuses its memory from call to call and is not safe for
// concurrent use.
type Maker struct {
	namespaces map[string]*proto.InventoryNamespace
	owners     map[ownerKey]proto.Owner

	family family  // of the batch at hand
	rows   []int32 // its pods that count
	merged map[string]*namespace
	shares []*Share                    // of the tick at hand
	claims map[uint64]claim            // of their pods
	values [len(distributions)][]int64 // of the pods at hand
}

// New returns a Maker without an inventory.
func New() *Maker { return &Maker{merged: map[string]*namespace{}, claims: map[uint64]claim{}} }

// Node turns a batch, after rates, into its node's rollup and the node's share. It takes the batch's
// table and leaves it r's old one. seq is the batch's sequence in SAMPLES.
func (m *Maker) Node(b *proto.Batch, seq uint64, r *proto.Rollup) *Share {
	r.Reset()
	r.Table, b.Table = b.Table, r.Table
	r.Scope, r.Cluster, r.Name, r.Tick, r.Resolution = proto.ScopeNode, b.Cluster, b.Node, b.Tick, b.Resolution
	r.Seq, r.Source, r.Dropped = seq, b.Source, b.Dropped
	t := &r.Table
	m.enrich(t, b.Tick)
	m.pods(t)
	counted := m.countedPods(t)
	nodeSums(t, counted)
	s := m.share(t, counted)
	s.Node = b.Node
	s.Entities, s.Stale = markStale(t)
	s.append(t)
	return s
}

// markStale flags the entities of which every group stands in, and counts those of which one does.
func markStale(t *proto.Table) (entities, stale uint32) {
	for row := range t.Entities {
		groups, old := 0, 0
		for g := proto.GroupCPU; g <= proto.GroupProcess; g++ {
			if _, ok := t.Values.Get(row, g.Time()); ok {
				groups++
				if t.StandsIn(row, g) {
					old++
				}
			}
		}
		if old > 0 {
			stale++
			if old == groups {
				t.Entities[row].Flags |= proto.FlagStandingIn
			}
		}
	}
	return uint32(len(t.Entities)), stale //nolint:gosec // bounded by the codec
}

// stored is a metric of a row as the integer in which sums carry it.
func stored(t *proto.Table, row int, m *proto.Metric) (int64, bool) {
	if v, ok := t.Values.Get(row, m.ID.Field()); ok {
		return v, true
	}
	if m.Of == 0 || m.By != 0 {
		return 0, false
	}
	delta, ok := t.Values.Get(row, m.Of.Delta())
	if !ok {
		return 0, false
	}
	span, ok := t.Values.Get(row, m.Group.Span())
	if !ok || span <= 0 || delta < 0 {
		return 0, false
	}
	return m.StoredRate(delta, span), true
}

// metricsOf lists the metrics that are rolled up at least so far, in the catalogue's order.
func metricsOf(is func(*proto.Metric) bool) (list []*proto.Metric) {
	all := proto.Metrics()
	for i := range all {
		if m := &all[i]; m.Device == 0 && is(m) {
			list = append(list, m)
		}
	}
	return list
}

// add is a sum that stays at the largest number instead of wrapping.
func add(a, b int64) int64 {
	if s := a + b; a < 0 || b < 0 || s >= 0 {
		return s
	}
	return 1<<63 - 1
}
