package rollup

import "github.com/heapstream/heapstream/proto"

// Totals makes the rollup of the cluster at a tick. The caller sets cluster, tick, resolution, sequence
// and Totals.
func (m *Maker) Totals(t *Tick, r *proto.Rollup) {
	r.Reset()
	r.Scope = proto.ScopeTotals
	t.cluster.set(&r.Table, r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1}))
}
