package customapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/metrics/pkg/apis/custom_metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
	customstorage "sigs.k8s.io/custom-metrics-apiserver/pkg/registry/custom_metrics"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// described is a kind of Kubernetes object that metrics are served of.
type described struct {
	kind, apiVersion string
	namespaced       bool
	entity           proto.Kind
}

// resources are the kinds by the resource that a path names.
var resources = map[schema.GroupResource]described{
	{Resource: "nodes"}:                       {"Node", "v1", false, proto.KindNode},
	{Resource: "namespaces"}:                  {"Namespace", "v1", false, proto.KindNamespace},
	{Resource: "pods"}:                        {"Pod", "v1", true, proto.KindPod},
	{Resource: "replicationcontrollers"}:      {"ReplicationController", "v1", true, proto.KindWorkload},
	{Group: "apps", Resource: "deployments"}:  {"Deployment", "apps/v1", true, proto.KindWorkload},
	{Group: "apps", Resource: "statefulsets"}: {"StatefulSet", "apps/v1", true, proto.KindWorkload},
	{Group: "apps", Resource: "daemonsets"}:   {"DaemonSet", "apps/v1", true, proto.KindWorkload},
	{Group: "apps", Resource: "replicasets"}:  {"ReplicaSet", "apps/v1", true, proto.KindWorkload},
	{Group: "batch", Resource: "jobs"}:        {"Job", "batch/v1", true, proto.KindWorkload},
	{Group: "batch", Resource: "cronjobs"}:    {"CronJob", "batch/v1", true, proto.KindWorkload},
}

// find returns what a resource is, and the query that a metric's name means for it.
func find(s Source, info provider.CustomMetricInfo) (described, query, error) {
	res, ok := resources[info.GroupResource]
	if !ok {
		return res, query{}, notFound("no metrics are served of %q: want one of %s", info.GroupResource, resourceNames())
	}
	if res.namespaced != info.Namespaced {
		where := "below namespaces/NAMESPACE/"
		if !res.namespaced {
			where = "without a namespace"
		}
		return res, query{}, notFound("metrics of %q are served %s", info.GroupResource, where)
	}
	q, err := parse(info.Metric)
	if err != nil {
		return res, q, err
	}
	if !q.metric.Levels.Has(res.entity) {
		return res, q, notFound("there is no metric %q of %s: it is measured of %s", info.Metric, info.GroupResource, levelsOf(q.metric))
	}
	return res, q, q.check(s.Resolution(), s.Span())
}

func resourceNames() string {
	var names []string
	for r := range resources {
		names = append(names, r.String())
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// custom is the provider of custom metrics.
type custom struct {
	source func(ctx context.Context) (Source, error)
	all    []provider.CustomMetricInfo
}

var _ provider.CustomMetricsProvider = (*custom)(nil)

// ListAllMetrics is what discovery shows: every metric of the catalogue for every resource that has it, and none of
// the names with functions, of which there is no end. It is the same at all times.
func (c *custom) ListAllMetrics() []provider.CustomMetricInfo { return c.all }

func listCustom() (all []provider.CustomMetricInfo) {
	for group, res := range resources {
		for i := range proto.Metrics() {
			if m := &proto.Metrics()[i]; m.Levels.Has(res.entity) {
				all = append(all, provider.CustomMetricInfo{GroupResource: group, Namespaced: res.namespaced, Metric: nameOf(m)})
			}
		}
	}
	slices.SortFunc(all, func(a, b provider.CustomMetricInfo) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// storage is the library's, which answers a selector that cannot be read as a fault of its own.
type storage struct{ *customstorage.REST }

// List checks the selector of metrics; that of objects has been read before.
func (s storage) List(ctx context.Context, options *metainternal.ListOptions, extra runtime.Object) (runtime.Object, error) {
	if o, ok := extra.(*custom_metrics.MetricListOptions); ok {
		if _, err := labels.Parse(o.MetricLabelSelector); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("metricLabelSelector=%s: %v", o.MetricLabelSelector, err))
		}
	}
	return s.REST.List(ctx, options, extra)
}

// GetMetricByName returns a metric of one object.
func (c *custom) GetMetricByName(ctx context.Context, name types.NamespacedName, info provider.CustomMetricInfo, selector labels.Selector) (*custom_metrics.MetricValue, error) {
	source, err := c.source(ctx)
	if err != nil {
		return nil, err
	}
	res, q, err := find(source, info)
	if err != nil {
		return nil, err
	}
	e := window.Entity{Kind: res.entity}
	switch res.entity {
	case proto.KindNode:
		e.Node = name.Name
	case proto.KindNamespace:
		e.Namespace = name.Name
	case proto.KindPod:
		e.Namespace, e.Pod = name.Namespace, name.Name
	case proto.KindWorkload:
		e.Namespace, e.Name, e.OwnerKind = name.Namespace, name.Name, res.kind
	}
	object, ok := source.Object(e)
	if !ok {
		return nil, notFound("%s %q is not measured", info.GroupResource, strings.TrimPrefix(name.String(), "/"))
	}
	value, ok, err := describe(&reader{source: source, q: q}, res, object, selector)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("%s %q has no metric %q", info.GroupResource, strings.TrimPrefix(name.String(), "/"), info.Metric)
	}
	return &value, nil
}

// GetMetricBySelector returns a metric of those objects whose labels are selected and which have it.
func (c *custom) GetMetricBySelector(ctx context.Context, namespace string, objects labels.Selector, info provider.CustomMetricInfo, selector labels.Selector) (*custom_metrics.MetricValueList, error) {
	source, err := c.source(ctx)
	if err != nil {
		return nil, err
	}
	res, q, err := find(source, info)
	if err != nil {
		return nil, err
	}
	if res.entity == proto.KindWorkload && !objects.Empty() {
		return nil, bad(info.Metric, "the labels of %s are not known here: ask for one by its name, or for the pods by their labels", info.GroupResource)
	}
	list := &custom_metrics.MetricValueList{Items: []custom_metrics.MetricValue{}}
	r := reader{source: source, q: q}
	for o := range source.Objects(res.entity, namespace) {
		if res.entity == proto.KindWorkload && o.Entity.OwnerKind != res.kind || !objects.Matches(view.Labels(o.Labels)) {
			continue
		}
		value, ok, err := describe(&r, res, o, selector)
		if err != nil {
			return nil, err
		}
		if ok {
			list.Items = append(list.Items, value)
		}
	}
	return list, nil
}

// describe is the value of one object; false where it has none.
func describe(r *reader, res described, o view.Object, selector labels.Selector) (v custom_metrics.MetricValue, ok bool, err error) {
	if r.q.metric.Device == 0 && !selector.Empty() {
		return v, false, bad(r.q.name, "there is nothing to select by: it has no labels (metricLabelSelector=%s)", selector)
	}
	all := r.of(o.Entity, func(l []proto.Label) bool { return selector.Matches(view.Labels(l)) })
	name := objectName(o.Entity)
	if len(all) == 0 {
		return v, false, nil
	}
	if len(all) > 1 {
		var which []string
		for _, m := range all[:min(len(all), 5)] {
			which = append(which, fmt.Sprint(labelMap(m.labels)))
		}
		return v, false, bad(r.q.name, "%s %q has %d of it: choose one by metricLabelSelector, of %s", res.kind, name, len(all), strings.Join(which, ", "))
	}
	m := all[0]
	v = custom_metrics.MetricValue{
		DescribedObject: custom_metrics.ObjectReference{Kind: res.kind, APIVersion: res.apiVersion, Namespace: o.Entity.Namespace, Name: name},
		Metric:          custom_metrics.MetricIdentifier{Name: r.q.name},
		Timestamp:       metav1.Time{Time: m.at}, WindowSeconds: m.span, Value: m.value,
	}
	if res.entity == proto.KindNamespace {
		v.DescribedObject.Namespace = ""
	}
	if len(m.labels) > 0 {
		v.Metric.Selector = &metav1.LabelSelector{MatchLabels: labelMap(m.labels)}
	}
	return v, true, nil
}

func objectName(e window.Entity) string {
	switch e.Kind {
	case proto.KindNode:
		return e.Node
	case proto.KindNamespace:
		return e.Namespace
	case proto.KindPod:
		return e.Pod
	}
	return e.Name
}

func labelMap(all []proto.Label) map[string]string {
	m := make(map[string]string, len(all))
	for _, l := range all {
		m[l.Key] = l.Value
	}
	return m
}
