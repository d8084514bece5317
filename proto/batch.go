package proto

import "time"

// Batch is all samples of one node for one tick, as the kubelet gave them, with what the API
// server says of the node and its pods: one message on SAMPLES. Row 0 is the node.
type Batch struct {
	Cluster    string
	Node       string
	Tick       Tick
	Resolution time.Duration
	Source     string // key of the source: kubernetes.summary_api, …
	Dropped    uint32 // rows and values left out to keep within the caps

	Table
}

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() {
	t := b.Table
	t.Reset()
	*b = Batch{Table: t}
}

// Scope says what a Rollup is about. Values are part of the wire format.
type Scope uint8

// The scopes of a rollup.
const (
	ScopeNode      Scope = 1 // one batch after rates, enrichment and sums
	ScopeNamespace Scope = 2 // one namespace of a closed tick, with its workloads
	ScopeTotals    Scope = 3 // the cluster at a closed tick: the tick's last message
)

// Rollup is what the aggregator makes of a batch, or of a closed tick: one message on ROLLUPS.
//
// Its rows, by scope:
//   - node: row 0 the node; then system containers, pods and containers; then this node's shares
//     of namespaces (KindNamespace, UID filled) and workloads (KindWorkload);
//   - namespace: row 0 the namespace, then its workloads; all with distributions over their pods;
//   - totals: row 0 the cluster.
//
// A counter's row holds the counter, and where a rate is known its growth (Field Delta) and the
// span of its group (Field Span). Sums hold rates as values of the derived metric itself, in the
// unit that its Metric.Scale states.
type Rollup struct {
	Scope      Scope
	Cluster    string
	Name       string // node or namespace; "" for totals
	Tick       Tick
	Resolution time.Duration
	Seq        uint64 // node: SAMPLES sequence of the batch; namespace, totals: of the closing message
	Source     string // node: as in the batch
	Dropped    uint32 // rows and values left out: of the batch, and to keep within the cap

	Table

	Totals Totals // scope totals only
}

// Totals says how complete a closed tick is, and where the aggregator would resume after it.
type Totals struct {
	Expected uint32 // nodes that should have reported
	Reported uint32
	StandIn  uint32   // nodes silent at this tick whose last samples stand in
	StandIns uint32   // entities with a group that did not advance, nodes standing in included
	Missing  []string // nodes expected and silent, sorted; at most MaxMissing
	Gap      bool     // SAMPLES between the last totals and this tick were lost: no rate crosses

	// What the sums of the tick lack of the pods that were reported or stand in. 0 also where an older
	// aggregator did not count them.
	Contested             uint32 // pods in no sum, as a newer pod of the same name or UID is
	PodsWithoutRate       uint32 // pods in the sums without CPU use: new, restarted, or not measured
	ContainersWithoutRate uint32 // running containers of pods in the sums without CPU use

	ResumeSeq    uint64 // SAMPLES sequence to replay from
	InventorySeq uint64 // SAMPLES sequence of the first message of the inventory in force; 0: none
	StreamTime   int64  // stream time at the closing message, Unix ms
	JumpEnd      int64  // end of the last jump of stream time, Unix ms; 0: none
}

// MaxMissing bounds the names listed in Totals.Missing; the counts are exact beyond it.
const MaxMissing = 1024

// Reset empties the rollup and keeps its memory.
func (r *Rollup) Reset() {
	t, missing := r.Table, r.Totals.Missing[:0]
	t.Reset()
	*r = Rollup{Table: t}
	r.Totals.Missing = missing
}

// Inventory is one part of what only the API server knows of the whole cluster: one message on an
// inventory subject. The parts of one Subject with one Revision are in force when all are there.
type Inventory struct {
	Cluster    string
	Subject    InventorySubject
	Revision   uint64 // of the whole; higher is newer
	Part       uint32 // 0-based
	Parts      uint32
	Resolution time.Duration // of the cluster
	Grace      time.Duration // how long a tick waits for silent nodes

	Nodes      []InventoryNode
	Namespaces []InventoryNamespace
	Owners     []InventoryOwner
}

// InventorySubject says which whole an Inventory is a part of. Values are part of the wire format.
type InventorySubject uint8

// The inventories.
const (
	InventoryNodes      InventorySubject = 1
	InventoryNamespaces InventorySubject = 2
	InventoryOwners     InventorySubject = 3
)

// InventoryNode is a node that should report.
type InventoryNode struct{ Name, UID string }

// InventoryNamespace is a namespace of the cluster.
type InventoryNamespace struct {
	Name, UID string
	Labels    []Label // sorted by key
}

// InventoryOwner says who owns an owner of pods: ReplicaSet -> Deployment, Job -> CronJob.
type InventoryOwner struct {
	Namespace string
	Object    Owner // as pods name it
	Owner     Owner // its own controller
}
