package historyapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Source is a past that can be asked. Its methods block until there is an answer or ctx ends, and may be called at any
// time from any goroutine. Names and labels that it is asked for have been checked by [API].
type Source interface {
	// Points returns the points of a metric of each key, oldest first: [NoResults] if one has none.
	Points(ctx context.Context, ask Ask, keys []Key) ([][]window.Point, error)
	// Buckets returns what the functions make of the points of each key: one bucket where size is 0, else those of
	// the buckets aligned to the epoch that have points, oldest first; [NoResults] if a key has none.
	Buckets(ctx context.Context, ask Ask, keys []Key, functions []Function, size time.Duration) ([][]Bucket, error)
	// Metrics returns the names of the un-labelled metrics of a key, sorted.
	Metrics(ctx context.Context, cluster string, key Key) ([]string, error)
	// Names returns the names of entities of a kind, sorted: nodes, namespaces, the pods of a namespace or the
	// system containers of a node.
	Names(ctx context.Context, cluster string, kind proto.Kind, in window.Entity) ([]string, error)
	// KnowsUIDs reports whether a key may name its pod by UID.
	KnowsUIDs() bool
}

// Key names an entity of a cluster: by its names, or a pod or container by the UID of the pod.
type Key struct {
	Entity window.Entity
	PodUID string
	Since  time.Time // nothing before it is this entity's; the zero time where not known
}

// from is when the past of a key begins, excluded.
func (k *Key) from(ask *Ask) time.Time {
	if k.Since.After(ask.From) {
		return k.Since
	}
	return ask.From
}

// String is Heapster's form of a key, as errors have it.
func (k Key) String() string {
	e, pod := &k.Entity, "ns:"+k.Entity.Namespace+"/pod:"+k.Entity.Pod
	if k.PodUID != "" {
		pod = "poduid:" + k.PodUID
	}
	switch kind := "(" + e.Kind.String() + ")"; e.Kind {
	case proto.KindNode:
		return kind + "node:" + e.Node
	case proto.KindSystemContainer:
		return kind + "node:" + e.Node + "/container:" + e.Name
	case proto.KindNamespace:
		return kind + "ns:" + e.Namespace
	case proto.KindPod:
		return kind + pod
	case proto.KindContainer:
		return kind + pod + "/container:" + e.Name
	default:
		return kind + "[cluster]"
	}
}

// Ask is a question about a metric.
type Ask struct {
	Cluster  string
	Metric   string
	Labels   []proto.Label // of a labelled metric: those of the device
	From, To time.Time     // both excluded
}

// NoResults says that a key has no points of a metric.
type NoResults struct {
	Metric string
	Key    Key
}

// Error is Heapster's text.
func (e *NoResults) Error() string {
	return fmt.Sprintf("No results for metric %q describing %q", e.Metric, e.Key.String())
}

// errTooMany says that an answer would be larger than anybody can want at once.
var errTooMany = errors.New("too many points: ask for a shorter range, or for metrics-aggregated with a bucket")

// maxPoints bounds the points of one answer: nine days of one series at 15 s.
const maxPoints = 52_000

// Function is an aggregation over time.
type Function uint8

// The functions, by the names that paths have for them.
const (
	Average Function = iota
	Max
	Min
	Median
	Count
	Percentile50
	Percentile95
	Percentile99

	functions
)

var functionNames = [functions]string{"average", "max", "min", "median", "count", "50-perc", "95-perc", "99-perc"}

// String returns the name that paths have for the function.
func (f Function) String() string { return functionNames[f] }

// percent is what percentile a function is, 0 for none.
func (f Function) percent() float64 {
	switch f {
	case Percentile50:
		return 50
	case Percentile95:
		return 95
	case Percentile99:
		return 99
	default:
		return 0
	}
}

// Bucket is what functions made of the points of a stretch of time.
type Bucket struct {
	Begin  time.Time
	Values [functions]proto.Value
	Has    [functions]bool
}

func (b *Bucket) set(f Function, v proto.Value) { b.Values[f], b.Has[f] = v, true }
