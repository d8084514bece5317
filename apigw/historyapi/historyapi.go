package historyapi

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// API answers the paths of this package.
type API struct {
	source Source
	log    *slog.Logger
	now    func() time.Time

	failing atomic.Bool // the source did not answer the last time
}

// New returns the API over a source. now may be nil for time.Now, log for none.
func New(source Source, log *slog.Logger, now func() time.Time) *API {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if now == nil {
		now = time.Now
	}
	return &API{source: source, log: log, now: now}
}

// Names of handlers in telemetry.
const (
	handlerList      = "historicalList"
	handlerNames     = "historicalMetricNames"
	handlerMetrics   = "historicalMetrics"
	handlerAggregate = "historicalAggregations"
)

// request is one request on its way to an answer.
type request struct {
	*answer.Request
	api *API
	c   *view.Cluster
}

// target is what a path names.
type target struct {
	keys []Key
	list bool // named as a list: answered as one, however long
}

// Serve answers q, whose path below /api/v1/historical is rest, of a cluster.
func (a *API) Serve(q *answer.Request, c *view.Cluster, rest string) {
	r := request{q, a, c}
	if !r.route(strings.TrimSuffix(strings.TrimPrefix(rest, "/"), "/")) {
		q.Text(http.StatusNotFound, answer.TextNotFound)
	}
}

// route answers a path, or reports that there is none such.
func (q *request) route(path string) bool {
	next := func() (word string) { word, path, _ = strings.Cut(path, "/"); return word }
	var t target
	key := func(e window.Entity, uid string) { t.keys = append(t.keys, Key{Entity: e, PodUID: uid}) }
	word := next()
	switch word {
	case "nodes":
		node := next()
		if node == "" {
			return q.list("Unable to list all nodes", proto.KindNode, window.Entity{})
		}
		if word = next(); word == "freecontainers" {
			name := next()
			if name == "" {
				return q.list("Unable to list system containers on node \""+answer.Clip(node)+"\"", proto.KindSystemContainer, window.Entity{Kind: proto.KindNode, Node: node})
			}
			key(window.Entity{Kind: proto.KindSystemContainer, Node: node, Name: name}, "")
			word = next()
		} else {
			key(window.Entity{Kind: proto.KindNode, Node: node}, "")
		}
	case "namespaces":
		namespace := next()
		if namespace == "" {
			return q.list("Unable to list all namespaces", proto.KindNamespace, window.Entity{})
		}
		switch word = next(); word {
		case "pods":
			pod := next()
			if pod == "" {
				return q.list("Unable to list pods in namespace \""+answer.Clip(namespace)+"\"", proto.KindPod, window.Entity{Kind: proto.KindNamespace, Namespace: namespace})
			}
			if word = next(); word == "containers" {
				name := next()
				if name == "" {
					q.Do(handlerList, func() { q.List(q.c.ContainerNames(namespace, pod)) })
					return true
				}
				key(window.Entity{Kind: proto.KindContainer, Namespace: namespace, Pod: pod, Name: name}, "")
				word = next()
			} else {
				key(window.Entity{Kind: proto.KindPod, Namespace: namespace, Pod: pod}, "")
			}
		case "pod-list":
			t.list = true
			for pod := range strings.SplitSeq(next(), ",") {
				key(window.Entity{Kind: proto.KindPod, Namespace: namespace, Pod: pod}, "")
			}
			word = next()
		default:
			key(window.Entity{Kind: proto.KindNamespace, Namespace: namespace}, "")
		}
	case "pod-id":
		uid := next()
		if word = next(); word == "containers" {
			key(window.Entity{Kind: proto.KindContainer, Name: next()}, uid)
			word = next()
		} else {
			key(window.Entity{Kind: proto.KindPod}, uid)
		}
	case "pod-id-list":
		t.list = true
		for uid := range strings.SplitSeq(next(), ",") {
			key(window.Entity{Kind: proto.KindPod}, uid)
		}
		word = next()
	default:
		key(window.Entity{Kind: proto.KindCluster}, "")
	}
	return q.routeMetric(&t, word, path)
}

// routeMetric answers what comes behind the name of an entity.
func (q *request) routeMetric(t *target, word, path string) bool {
	switch {
	case word == "metrics" && path == "":
		if t.list || t.keys[0].PodUID != "" {
			return false
		}
		q.Do(handlerNames, func() { q.names(t.keys[0]) })
	case word == "metrics":
		q.Do(handlerMetrics, func() { q.points(t, answer.MetricName(path)) })
	case word == "metrics-aggregated":
		aggregations, metric, ok := strings.Cut(path, "/")
		if !ok || aggregations == "" || metric == "" {
			return false
		}
		q.Do(handlerAggregate, func() { q.aggregate(t, aggregations, answer.MetricName(metric)) })
	default:
		return false
	}
	return true
}

// list answers the names of entities of a kind.
func (q *request) list(failed string, kind proto.Kind, in window.Entity) bool {
	q.Do(handlerList, func() {
		k := Key{Entity: in}
		err := k.check()
		var names []string
		if err == nil {
			in.Node = q.c.NodeName(in.Node)
			if names, err = q.api.source.Names(q.R.Context(), q.c.Name(), kind, in); q.settle(err) != nil {
				err = errors.New(failed)
			}
		}
		if err != nil {
			q.Text(http.StatusInternalServerError, err.Error())
			return
		}
		q.List(names)
	})
	return true
}

// names answers which metrics an entity has.
func (q *request) names(k Key) {
	err := k.check()
	var names []string
	if err == nil {
		k.Entity.Node = q.c.NodeName(k.Entity.Node)
		if names, err = q.api.source.Metrics(q.R.Context(), q.c.Name(), k); q.settle(err) != nil {
			//lint:ignore ST1005 the text is Heapster's
			err = errors.New("Unable to list available metrics")
		}
	}
	if err != nil {
		q.Text(http.StatusInternalServerError, err.Error())
		return
	}
	q.List(names)
}

// prepare reads the parameters and finds the pods that are named by their UIDs; where that fails it is answered.
func (q *request) prepare(t *target, metric, aggregations string) (ask question, ok bool) {
	ask, err := parse(q.R.URL.Query(), metric, aggregations, q.api.now())
	if err == nil {
		err = ask.bound(len(t.keys))
	}
	if err != nil {
		q.Text(http.StatusBadRequest, err.Error())
		return ask, false
	}
	ask.ask.Cluster = q.c.Name()
	if err = ask.check(t.keys); err != nil {
		q.fail(err)
		return ask, false
	}
	q.find(t)
	return ask, true
}

// find gives entities the names that sources know them by.
func (q *request) find(t *target) {
	if t.keys[0].PodUID == "" {
		t.keys[0].Entity.Node = q.c.NodeName(t.keys[0].Entity.Node)
		return
	}
	if q.api.source.KnowsUIDs() {
		return
	}
	uids := make([]string, len(t.keys))
	for i := range t.keys {
		uids[i] = t.keys[i].PodUID
	}
	found := q.c.PodsByUID(uids)
	for i := range t.keys {
		k := &t.keys[i]
		pod := found[k.PodUID] // of one that is not there: no name, so no results
		k.Entity.Namespace, k.Entity.Pod = pod.Namespace, pod.Name
		k.Since = pod.Born // not of an older pod of that name
	}
}

// points answers the points of one metric of what a path names.
func (q *request) points(t *target, metric string) {
	ask, ok := q.prepare(t, metric, "")
	if !ok {
		return
	}
	all, err := q.api.source.Points(q.R.Context(), ask.ask, t.keys)
	if q.settle(err) != nil {
		q.fail(err)
		return
	}
	if !t.list {
		s := answer.Take()
		defer s.Release()
		s.Buf = answer.AppendPretty(s.Buf[:0], all[0])
		q.JSON(s.Buf)
		return
	}
	q.Stream(func(s *answer.Stream) {
		s.B = append(s.B, `{"items":[`...)
		for i, points := range all {
			if i > 0 {
				s.B = append(s.B, ',')
			}
			if s.B = answer.AppendCompact(s.B, points); !s.Send() {
				return
			}
		}
		s.B = append(s.B, "]}\n"...)
	})
}

// fail answers that there is no answer.
func (q *request) fail(err error) {
	status := http.StatusInternalServerError // as Heapster, whatever went wrong in its source
	if errors.Is(err, errTooMany) {
		status = http.StatusBadRequest
	}
	q.Text(status, err.Error())
}

// settle takes note of how the source answered, says so once when that changes, and returns err.
func (q *request) settle(err error) error {
	var broken *unreachable
	switch {
	case errors.As(err, &broken):
		if q.R.Context().Err() == nil && q.api.failing.CompareAndSwap(false, true) { // else the client left
			q.api.log.Warn("historical source does not answer", "err", broken.cause)
		}
	case q.api.failing.CompareAndSwap(true, false):
		q.api.log.Info("historical source answers again")
	}
	return err
}

// unreachable is a source that does not answer. Clients are told the text, operators the cause.
type unreachable struct {
	text  string
	cause error
}

func (e *unreachable) Error() string { return e.text }
func (e *unreachable) Unwrap() error { return e.cause }

// The forms of an aggregation's answer.
type (
	valueJSON struct {
		Int   *int64   `json:"intValue,omitempty"`
		Float *float64 `json:"floatValue,omitempty"`
	}
	bucketJSON struct {
		Timestamp   time.Time             `json:"timestamp"`
		Count       *int64                `json:"count,omitempty"`
		Average     *valueJSON            `json:"average,omitempty"`
		Maximum     *valueJSON            `json:"maximum,omitempty"`
		Minimum     *valueJSON            `json:"minimum,omitempty"`
		Median      *valueJSON            `json:"median,omitempty"`
		Percentiles map[string]*valueJSON `json:"percentiles,omitempty"`
	}
	resultJSON struct {
		Buckets    []bucketJSON  `json:"buckets"`
		BucketSize time.Duration `json:"bucketSize"`
	}
)

// aggregate answers aggregations of one metric of what a path names.
func (q *request) aggregate(t *target, aggregations, metric string) {
	ask, ok := q.prepare(t, metric, aggregations)
	if !ok {
		return
	}
	all, err := q.api.source.Buckets(q.R.Context(), ask.ask, t.keys, ask.functions, ask.bucket)
	if q.settle(err) != nil {
		q.fail(err)
		return
	}
	results := make([]resultJSON, len(all))
	for i, buckets := range all {
		results[i] = resultJSON{Buckets: bucketsJSON(buckets, ask.functions), BucketSize: ask.bucket}
	}
	var body []byte
	if t.list {
		body, err = json.Marshal(struct {
			Items []resultJSON `json:"items"`
		}{results})
		body = append(body, '\n')
	} else {
		body, err = json.MarshalIndent(results[0], " ", " ")
	}
	if err != nil {
		q.fail(err)
		return
	}
	q.JSON(body)
}

// bucketsJSON writes buckets as Heapster did: a column is of integers if every value in it is whole.
func bucketsJSON(buckets []Bucket, functions []Function) []bucketJSON {
	out := make([]bucketJSON, len(buckets))
	for i := range buckets {
		out[i].Timestamp = buckets[i].Begin.UTC()
	}
	for _, f := range functions {
		whole := !slices.ContainsFunc(buckets, func(b Bucket) bool { return b.Has[f] && !isWhole(b.Values[f]) })
		for i := range buckets {
			b := &buckets[i]
			if !b.Has[f] {
				continue
			}
			v := &valueJSON{}
			if n, x := b.Values[f].Int64(), b.Values[f].Float64(); whole {
				v.Int = &n
			} else {
				v.Float = &x
			}
			switch o := &out[i]; f {
			case Count:
				o.Count = v.Int
			case Average:
				o.Average = v
			case Max:
				o.Maximum = v
			case Min:
				o.Minimum = v
			case Median:
				o.Median = v
			default:
				if o.Percentiles == nil {
					o.Percentiles = map[string]*valueJSON{}
				}
				o.Percentiles[strings.TrimSuffix(f.String(), "-perc")] = v
			}
		}
	}
	return out
}

// isWhole reports whether a number has no fraction and is an int64.
func isWhole(v proto.Value) bool {
	if !v.IsFloat() {
		return true
	}
	f := v.Float64()
	return f == math.Trunc(f) && math.Abs(f) < 1<<63
}
