package view

import (
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Cluster is the view of one cluster. All its methods may be called at any time from any goroutine;
// reading never waits for what comes in, but for the window of the one node asked for.
type Cluster struct {
	name string
	past *window.Window
	// noPast says that past remembers the newest tick only.
	noPast bool
	clock  clock
	tele   *clusterTelemetry

	mu         sync.Mutex // held by Apply and sweep: one writer at a time
	nodes      atomic.Pointer[[]*nodeSlot]
	pods       atomic.Pointer[[]*namespacePods]
	namespaces atomic.Pointer[[]*namespaceState]
	totals     atomic.Pointer[totalsState]

	ready      atomic.Bool
	filled     atomic.Bool
	resolution atomic.Int64
	newest     atomic.Int64 // newest tick seen, Unix ms
	seq        atomic.Uint64
}

// newCluster returns an empty view that remembers span of the past, or where that is 0 the newest tick.
func newCluster(name string, span time.Duration, now func() time.Time, tele *clusterTelemetry) *Cluster {
	c := &Cluster{name: name, past: window.New(max(span, time.Millisecond)), noPast: span == 0, tele: tele}
	c.clock.now = now
	c.nodes.Store(&[]*nodeSlot{})
	c.pods.Store(&[]*namespacePods{})
	c.namespaces.Store(&[]*namespaceState{})
	return c
}

// nodeSlot is the place of a node; the slot stays while its states come and go.
type nodeSlot struct {
	name  string
	state atomic.Pointer[nodeState]
}

// nodeState is what the newest rollup of a node says. It is immutable but for the places of its pods.
type nodeState struct {
	metrics *NodeMetrics // nil: no valid pair of samples
	since   int64        // when the CPU sample was first seen, stream time
	seen    int64        // when the rollup was appended, stream time
	tick    proto.Tick
	keep    int64 // how long what does not advance is served, ns
	table   *proto.Table
	pods    []podState
}

// podSlot is the place of a pod in the sorted list of its namespace.
type podSlot struct {
	name  string
	state atomic.Pointer[podState]
}

// podState is what the newest rollup of its node says about a pod.
type podState struct {
	slot    *podSlot
	node    *nodeState
	row     int32
	birth   int64
	metrics *PodMetrics // nil: not complete
	samples []firstSeen // of metrics.Containers, by index
	expires int64       // stream time after which metrics are not served
}

// firstSeen says when a container's CPU sample was first seen.
type firstSeen struct{ sample, at int64 }

type namespacePods struct {
	name string
	pods []*podSlot // sorted by name
}

type namespaceState struct {
	name string
	seen int64
	keep int64
}

type totalsState struct {
	proto.Totals
	tick proto.Tick
	seen int64
	keep int64
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.name }

// Ready reports whether the present is complete: the last rollup of each node has been read. An empty
// cluster is ready, too.
func (c *Cluster) Ready() bool { return c.ready.Load() }

// Filled reports whether the window has been filled as far as the stream goes.
func (c *Cluster) Filled() bool { return c.filled.Load() }

// Resolution returns the distance between ticks as the newest rollup states it; 0 before the first.
func (c *Cluster) Resolution() time.Duration { return time.Duration(c.resolution.Load()) }

// Newest returns the newest tick seen, 0 before the first.
func (c *Cluster) Newest() proto.Tick { return proto.Tick(c.newest.Load()) }

// Seq returns the sequence of the newest message that was applied; what is read after it is not older.
func (c *Cluster) Seq() uint64 { return c.seq.Load() }

// Now returns the stream time: what ages are measured by.
func (c *Cluster) Now() time.Time { return time.Unix(0, c.clock.nowNano()).UTC() }

// Pods yields the pods of a namespace ("" for all) that the Metrics API serves now, sorted by namespace
// and name. It walks what is there and computes nothing.
func (c *Cluster) Pods(namespace string) iter.Seq[*PodMetrics] {
	return func(yield func(*PodMetrics) bool) {
		now := c.clock.nowNano()
		all := *c.pods.Load()
		if namespace != "" {
			i, ok := findNamespace(all, namespace)
			if !ok {
				return
			}
			all = all[i : i+1]
		}
		for _, ns := range all {
			for _, slot := range ns.pods {
				if m := slot.served(now); m != nil && !yield(m) {
					return
				}
			}
		}
	}
}

// Pod returns one pod as Pods would.
func (c *Cluster) Pod(namespace, name string) (*PodMetrics, bool) {
	slot := findPod(*c.pods.Load(), namespace, name)
	if slot == nil {
		return nil, false
	}
	m := slot.served(c.clock.nowNano())
	return m, m != nil
}

// Nodes yields the nodes that the Metrics API serves now, sorted by name.
func (c *Cluster) Nodes() iter.Seq[*NodeMetrics] {
	return func(yield func(*NodeMetrics) bool) {
		now := c.clock.nowNano()
		for _, slot := range *c.nodes.Load() {
			if m := slot.served(now); m != nil && !yield(m) {
				return
			}
		}
	}
}

// Node returns one node as Nodes would.
func (c *Cluster) Node(name string) (*NodeMetrics, bool) {
	slot := findNode(*c.nodes.Load(), name)
	if slot == nil {
		return nil, false
	}
	m := slot.served(c.clock.nowNano())
	return m, m != nil
}

func (s *podSlot) served(now int64) *PodMetrics {
	st := s.state.Load()
	if st == nil || st.metrics == nil || now > st.expires {
		return nil
	}
	return st.metrics
}

func (s *nodeSlot) served(now int64) *NodeMetrics {
	st := s.state.Load()
	if st == nil || st.metrics == nil || now > st.since+st.keep {
		return nil
	}
	return st.metrics
}

// present returns the state of a node that has been heard of lately, or nil.
func (s *nodeSlot) present(now int64) *nodeState {
	st := s.state.Load()
	if st == nil || now > st.seen+st.keep {
		return nil
	}
	return st
}

func findNamespace(all []*namespacePods, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(n *namespacePods, name string) int { return strings.Compare(n.name, name) })
}

func findPod(all []*namespacePods, namespace, name string) *podSlot {
	i, ok := findNamespace(all, namespace)
	if !ok {
		return nil
	}
	pods := all[i].pods
	if i, ok = slices.BinarySearchFunc(pods, name, comparePod); !ok {
		return nil
	}
	return pods[i]
}

func comparePod(p *podSlot, name string) int   { return strings.Compare(p.name, name) }
func compareNode(n *nodeSlot, name string) int { return strings.Compare(n.name, name) }

func findNode(all []*nodeSlot, name string) *nodeSlot {
	if i, ok := slices.BinarySearchFunc(all, name, compareNode); ok {
		return all[i]
	}
	return nil
}
