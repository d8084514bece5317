package historyapi

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Window answers from what the gateway remembers itself.
type Window struct{ view *view.View }

// NewWindow returns the source over a view.
func NewWindow(v *view.View) *Window { return &Window{v} }

var _ Source = (*Window)(nil)

// KnowsUIDs is false: the window knows names.
func (*Window) KnowsUIDs() bool { return false }

// Points never blocks.
func (w *Window) Points(_ context.Context, ask Ask, keys []Key) ([][]window.Point, error) {
	all := make([][]window.Point, len(keys))
	total := 0
	for i, k := range keys {
		points := w.points(nil, &ask, k)
		if len(points) == 0 {
			return nil, &NoResults{ask.Metric, k}
		}
		if total += len(points); total > maxPoints {
			return nil, errTooMany
		}
		all[i] = points
	}
	return all, nil
}

func (w *Window) points(dst []window.Point, ask *Ask, k Key) []window.Point {
	c, ok := w.view.Cluster(ask.Cluster)
	if !ok {
		return dst
	}
	from, to := k.from(ask).Add(1), ask.To.Add(-1)
	if len(ask.Labels) > 0 {
		return c.LabelledSeries(dst, k.Entity, ask.Metric, ask.Labels, from, to)
	}
	return c.Series(dst, k.Entity, ask.Metric, from, to)
}

// Buckets never blocks.
func (w *Window) Buckets(_ context.Context, ask Ask, keys []Key, functions []Function, size time.Duration) ([][]Bucket, error) {
	all := make([][]Bucket, len(keys))
	var points []window.Point
	for i, k := range keys {
		points = w.points(points[:0], &ask, k)
		if len(points) == 0 {
			return nil, &NoResults{ask.Metric, k}
		}
		all[i] = aggregate(points, functions, ask.From, size)
	}
	return all, nil
}

// Metrics never blocks.
func (w *Window) Metrics(_ context.Context, cluster string, key Key) ([]string, error) {
	if c, ok := w.view.Cluster(cluster); ok {
		return c.MetricNames(key.Entity), nil
	}
	return nil, nil
}

// Names lists what is there now. It never blocks.
func (w *Window) Names(_ context.Context, cluster string, kind proto.Kind, in window.Entity) (names []string, _ error) {
	c, ok := w.view.Cluster(cluster)
	if !ok {
		return nil, nil
	}
	switch kind {
	case proto.KindNode:
		for o := range c.Objects(kind, "") {
			names = append(names, o.Entity.Node)
		}
		return names, nil
	case proto.KindNamespace:
		return c.Namespaces(), nil
	case proto.KindPod:
		return c.PodNames(in.Namespace), nil
	default:
		return c.SystemContainers(in.Node), nil
	}
}

// aggregate makes buckets of points that are sorted by time. Functions are what InfluxDB's of that name are: the median
// of an even number is the middle of the two in the middle, a percentile is the point of nearest rank (p percent of n,
// rounded half up).
func aggregate(points []window.Point, functions []Function, from time.Time, size time.Duration) (buckets []Bucket) {
	points = slices.DeleteFunc(points, func(p window.Point) bool { return math.IsNaN(p.Value.Float64()) })
	for len(points) > 0 {
		b, n := Bucket{Begin: from}, len(points)
		if size > 0 {
			at := floor(points[0].Tick, size)
			b.Begin = at.Time()
			n = 1
			for n < len(points) && floor(points[n].Tick, size) == at {
				n++
			}
		}
		b.fill(points[:n], functions)
		buckets, points = append(buckets, b), points[n:]
	}
	return buckets
}

// floor is the beginning of a tick's bucket.
func floor(t proto.Tick, size time.Duration) proto.Tick {
	ms := proto.Tick(size.Milliseconds())
	at := t - t%ms
	if at > t { // before the epoch
		at -= ms
	}
	return at
}

// fill computes the functions of points, whose order it changes.
func (b *Bucket) fill(points []window.Point, functions []Function) {
	n, sum := len(points), 0.0
	for _, p := range points {
		sum += p.Value.Float64()
	}
	slices.SortFunc(points, func(x, y window.Point) int {
		if x.Value.IsFloat() || y.Value.IsFloat() {
			return cmp.Compare(x.Value.Float64(), y.Value.Float64())
		}
		return cmp.Compare(x.Value.Int64(), y.Value.Int64())
	})
	for _, f := range functions {
		switch f {
		case Average:
			b.set(f, proto.Float(sum/float64(n)))
		case Max:
			b.set(f, points[n-1].Value)
		case Min:
			b.set(f, points[0].Value)
		case Count:
			b.set(f, proto.Int(int64(n)))
		case Median:
			middle := points[n/2].Value.Float64()
			if n%2 == 0 {
				low := points[n/2-1].Value.Float64()
				middle = low + (middle-low)/2
			}
			b.set(f, proto.Float(middle))
		default:
			rank := int(math.Floor(float64(n)*f.percent()/100+0.5)) - 1
			b.set(f, points[rank].Value)
		}
	}
}
