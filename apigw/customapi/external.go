package customapi

import (
	"context"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/metrics/pkg/apis/external_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// maxSeries bounds an answer of external metrics: an HPA adds them up, and means a handful.
const maxSeries = 1000

// Labels of external series.
const (
	labelType         = "type"
	labelNamespace    = "namespace"
	labelWorkload     = "workload"
	labelWorkloadKind = "workload_kind"
	labelNode         = "node"
	labelPod          = "pod"
	labelContainer    = "container"
)

// level is what external series are of.
type level struct {
	name   string
	kind   proto.Kind
	labels []string // that its series have besides "type"
}

// levels, from the coarsest to the finest. That a label of a finer level is named decides for that level: see levelOf.
var levels = []level{
	{"cluster", proto.KindCluster, nil},
	{"namespace", proto.KindNamespace, []string{labelNamespace}},
	{"workload", proto.KindWorkload, []string{labelNamespace, labelWorkload, labelWorkloadKind}},
	{"node", proto.KindNode, []string{labelNode}},
	{"pod", proto.KindPod, []string{labelNamespace, labelWorkload, labelWorkloadKind, labelNode, labelPod}},
	{"container", proto.KindContainer, []string{labelNamespace, labelWorkload, labelWorkloadKind, labelNode, labelPod, labelContainer}},
}

// levelsOf names the levels that have a metric.
func levelsOf(m *proto.Metric) string {
	var names []string
	for _, l := range levels {
		if m.Levels.Has(l.kind) {
			names = append(names, l.name)
		}
	}
	return strings.Join(names, ", ")
}

// levelOf returns what a selector selects from: what "type" must be, or else the first level that has all the labels
// of ours that it names, namespace being the first. device says that the series have labels besides.
func levelOf(q *query, selector labels.Selector) (level, error) {
	requirements, selectable := selector.Requirements()
	if !selectable {
		return level{}, nil
	}
	var keys []string
	for _, r := range requirements {
		switch key := r.Key(); {
		case key == labelType:
		case slices.Contains(levels[len(levels)-1].labels, key):
			keys = append(keys, key)
		case q.metric.Device == 0:
			return level{}, bad(q.name, "no series has a label %q: there are type, %s", key, strings.Join(levels[len(levels)-1].labels, ", "))
		}
	}
	if name, ok := selector.RequiresExactMatch(labelType); ok {
		for _, l := range levels {
			if l.name == name {
				return l, nil
			}
		}
		return level{}, bad(q.name, "no series has type=%s: want cluster, namespace, workload, node, pod or container", name)
	}
next:
	for _, l := range levels[1:] {
		for _, key := range keys {
			if !slices.Contains(l.labels, key) {
				continue next
			}
		}
		return l, nil
	}
	return levels[1], nil
}

// external is the provider of external metrics.
type external struct {
	source func(ctx context.Context) (Source, error)
	all    []provider.ExternalMetricInfo
}

var _ provider.ExternalMetricsProvider = (*external)(nil)

// ListAllExternalMetrics is what discovery shows: every metric of the catalogue.
func (x *external) ListAllExternalMetrics() []provider.ExternalMetricInfo { return x.all }

func listExternal() (all []provider.ExternalMetricInfo) {
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		if levelsOf(m) != "" {
			all = append(all, provider.ExternalMetricInfo{Metric: nameOf(m)})
		}
	}
	return all
}

// GetExternalMetric returns the series that are selected, one for each thing, sorted.
func (x *external) GetExternalMetric(ctx context.Context, namespace string, selector labels.Selector, info provider.ExternalMetricInfo) (*external_metrics.ExternalMetricValueList, error) {
	source, err := x.source(ctx)
	if err != nil {
		return nil, err
	}
	if namespace == "" || namespace == "*" {
		return nil, apierrors.NewBadRequest("external metrics are asked for in a namespace")
	}
	q, err := parse(info.Metric)
	if err != nil {
		return nil, err
	}
	l, err := levelOf(&q, selector)
	if err != nil {
		return nil, err
	}
	if l.name != "" && !q.metric.Levels.Has(l.kind) {
		return nil, notFound("there is no metric %q of a %s: it is measured of %s", q.name, l.name, levelsOf(q.metric))
	}
	if err := q.check(source.Resolution(), source.Span()); err != nil {
		return nil, err
	}
	list := &external_metrics.ExternalMetricValueList{Items: []external_metrics.ExternalMetricValue{}}
	if l.name == "" { // a selector that selects nothing
		return list, nil
	}
	r := reader{source: source, q: q}
	for o := range source.Objects(l.kind, namespace) {
		own := seriesLabels(l, &o)
		for _, m := range r.of(o.Entity, func(device []proto.Label) bool { return selector.Matches(view.Labels(merged(own, device))) }) {
			if len(list.Items) == maxSeries {
				return nil, bad(q.name, "more than %d series are selected: narrow the selector, or ask for a coarser type", maxSeries)
			}
			list.Items = append(list.Items, external_metrics.ExternalMetricValue{
				MetricName: q.name, MetricLabels: labelMap(merged(own, m.labels)),
				Timestamp: metav1.Time{Time: m.at}, WindowSeconds: m.span, Value: m.value,
			})
		}
	}
	return list, nil
}

// seriesLabels are the labels of an object's series.
func seriesLabels(l level, o *view.Object) []proto.Label {
	all := []proto.Label{{Key: labelType, Value: l.name}}
	for _, key := range l.labels {
		value := ""
		switch key {
		case labelNamespace:
			value = o.Entity.Namespace
		case labelWorkload:
			value = o.Owner.Name
			if l.kind == proto.KindWorkload {
				value = o.Entity.Name
			}
		case labelWorkloadKind:
			value = o.Owner.Kind
			if l.kind == proto.KindWorkload {
				value = o.Entity.OwnerKind
			}
		case labelNode:
			value = o.Node
			if l.kind == proto.KindNode {
				value = o.Entity.Node
			}
		case labelPod:
			value = o.Entity.Pod
		case labelContainer:
			value = o.Entity.Name
		}
		all = append(all, proto.Label{Key: key, Value: value})
	}
	return all
}

// merged is both, sorted by key.
func merged(a, b []proto.Label) []proto.Label {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) })
	return all
}
