package view

import (
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Usage is what a node or container uses, as the Metrics API serves it.
type Usage struct {
	CPU     int64 // nanocores: the counter's growth over the span between its last two samples
	Memory  int64 // working set in bytes, of the last sample
	Swap    int64 // bytes; meaningful where HasSwap
	HasSwap bool  // the kubelet tells about swap
}

// ContainerMetrics is one running container.
type ContainerMetrics struct {
	Name string
	Usage
}

// PodMetrics is one running pod, complete by the rules of the Metrics API: every running container has
// a valid pair of samples (or is young enough to be measured from its start). It is immutable and
// shared by all readers.
type PodMetrics struct {
	Namespace, Name, UID string
	Node                 string
	Labels               []proto.Label      // sorted by key; must not be altered
	Time                 time.Time          // sample time of the container whose sample is the oldest
	Window               time.Duration      // span of that container's pair of samples
	Containers           []ContainerMetrics // in the order of the pod's containers; must not be altered
	Seq                  uint64             // sequence of the rollup in ROLLUPS it was made from
}

// NodeMetrics is one node with a valid pair of samples. It is immutable and shared by all readers.
type NodeMetrics struct {
	Name, UID string
	Labels    []proto.Label // sorted by key; must not be altered
	Time      time.Time     // of the last CPU sample
	Window    time.Duration // between the last two CPU samples
	Usage
	Seq uint64 // sequence of the rollup in ROLLUPS it was made from
}
