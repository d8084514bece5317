package resourceapi

import (
	"context"
	"fmt"
	"iter"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// Source is one cluster's present, as *view.Cluster has it. What it returns is immutable and shared; sequences are
// sorted by name, pods by namespace first; "" means all namespaces. It must be safe for use by any number of
// goroutines.
type Source interface {
	Nodes() iter.Seq[*view.NodeMetrics]
	Node(name string) (*view.NodeMetrics, bool)
	Pods(namespace string) iter.Seq[*view.PodMetrics]
	Pod(namespace, name string) (*view.PodMetrics, bool)
	// Seq is the sequence of ROLLUPS up to which the view has read; what the others return is not older.
	Seq() uint64
}

// store is what nodes and pods have in common.
type store struct {
	cluster func(ctx context.Context) (string, error)
	source  func(ctx context.Context) (Source, error)
	hubs    *hubs
	now     func() time.Time
	formats formats
}

// list answers with all of a kind that is selected. A long list waits for its turn, and is filled anew if that took time.
func (s *store) list(ctx context.Context, kind string, options *metainternal.ListOptions) (runtime.Object, error) {
	source, err := s.source(ctx)
	if err != nil {
		return nil, err
	}
	sel := newSelection(ctx, options)
	l := &list{kind: kind}
	if err := s.fill(ctx, l, source, options, &sel); err != nil {
		return nil, err
	}
	if len(l.nodes)+len(l.pods) >= largeList {
		waited, err := turn(ctx)
		if err == nil && waited {
			err = s.fill(ctx, l, source, options, &sel)
		}
		if err != nil {
			return nil, err
		}
	}
	return s.answer(ctx, l), nil
}

// fill puts what is served now into a list; what the list had is forgotten.
func (s *store) fill(ctx context.Context, l *list, source Source, options *metainternal.ListOptions, sel *selection) error {
	l.nodes, l.pods = l.nodes[:0], l.pods[:0]
	add := func(r *row) {
		if !sel.matchRow(r) {
			return
		}
		if r.node != nil {
			l.nodes = append(l.nodes, r.node)
		} else {
			l.pods = append(l.pods, r.pod)
		}
	}
	if mayWatch(options) {
		cluster, err := s.cluster(ctx)
		if err != nil {
			return err
		}
		rows, position, err := s.hubs.of(cluster, l.kind).snapshot()
		if err != nil {
			return err
		}
		l.position = position
		for i := range rows {
			add(&rows[i])
		}
		return nil
	}
	l.position = source.Seq() // before the items: they may be newer, never older
	switch {
	case l.kind == kindNode && sel.name != "":
		if n, ok := source.Node(sel.name); ok {
			add(&row{node: n})
		}
	case l.kind == kindNode:
		for n := range source.Nodes() {
			if sel.match("", n.Name, n.Labels) {
				l.nodes = append(l.nodes, n)
			}
		}
	case sel.name != "" && sel.namespace != "":
		if p, ok := source.Pod(sel.namespace, sel.name); ok {
			add(&row{pod: p})
		}
	default:
		for p := range source.Pods(sel.namespace) {
			if sel.match(p.Namespace, p.Name, p.Labels) {
				l.pods = append(l.pods, p)
			}
		}
	}
	return nil
}

// answer gives a list to whoever can take it: as it is if the request may be answered by our own encoder, else as
// objects, since making a Table or bare metadata of a list needs them.
func (s *store) answer(ctx context.Context, l *list) runtime.Object {
	l.now, l.formats = s.now(), s.formats
	if encodesList(ctx) {
		return l
	}
	return l.GetObject()
}

// selection is what a list request asks for.
type selection struct {
	labels          labels.Selector // nil: all
	fields          fields.Selector // nil: all
	namespace, name string          // exact matches the fields require; "": any

	probe view.Labels // what labels is asked about; here, so that asking allocates nothing
}

func newSelection(ctx context.Context, o *metainternal.ListOptions) selection {
	s := selection{namespace: request.NamespaceValue(ctx)}
	if o == nil {
		return s
	}
	if o.LabelSelector != nil && !o.LabelSelector.Empty() {
		s.labels = o.LabelSelector
	}
	if o.FieldSelector != nil && !o.FieldSelector.Empty() {
		s.fields = o.FieldSelector
		s.name, _ = s.fields.RequiresExactMatch("metadata.name")
		if namespace, ok := s.fields.RequiresExactMatch("metadata.namespace"); ok && s.namespace == "" {
			s.namespace = namespace
		}
	}
	return s
}

func (s *selection) match(namespace, name string, l []proto.Label) bool {
	s.probe = l
	return (s.labels == nil || s.labels.Matches(&s.probe)) &&
		(s.fields == nil || s.fields.Matches(fieldSet{namespace: namespace, name: name}))
}

// matchRow is match, and whether the row is of the namespace asked for.
func (s *selection) matchRow(r *row) bool {
	if r.node != nil {
		return s.match("", r.node.Name, r.node.Labels)
	}
	return (s.namespace == "" || s.namespace == r.pod.Namespace) && s.match(r.pod.Namespace, r.pod.Name, r.pod.Labels)
}

// fieldSet are the two fields that can be selected by.
type fieldSet struct{ namespace, name string }

func (f fieldSet) Has(field string) bool {
	return field == "metadata.name" || field == "metadata.namespace"
}

func (f fieldSet) Get(field string) string {
	switch field {
	case "metadata.name":
		return f.name
	case "metadata.namespace":
		return f.namespace
	}
	return ""
}

// nodeStore serves resource "nodes".
type nodeStore struct{ store }

var (
	_ rest.Storage              = (*nodeStore)(nil)
	_ rest.KindProvider         = (*nodeStore)(nil)
	_ rest.Getter               = (*nodeStore)(nil)
	_ rest.Lister               = (*nodeStore)(nil)
	_ rest.Watcher              = (*nodeStore)(nil)
	_ rest.Scoper               = (*nodeStore)(nil)
	_ rest.SingularNameProvider = (*nodeStore)(nil)
)

func (*nodeStore) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (*nodeStore) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (*nodeStore) Destroy()                {}
func (*nodeStore) Kind() string            { return kindNode }
func (*nodeStore) NamespaceScoped() bool   { return false }

// GetSingularName is empty as in metrics-server: "node" is to mean the core one.
func (*nodeStore) GetSingularName() string { return "" }

func (s *nodeStore) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	source, err := s.source(ctx)
	if err != nil {
		return nil, err
	}
	n, ok := source.Node(name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: metrics.GroupName, Resource: "nodemetrics"}, name)
	}
	o := nodeObject(n, s.now())
	return &o, nil
}

func (s *nodeStore) List(ctx context.Context, options *metainternal.ListOptions) (runtime.Object, error) {
	return s.list(ctx, kindNode, options)
}

func (s *nodeStore) Watch(ctx context.Context, options *metainternal.ListOptions) (watch.Interface, error) {
	return s.watch(ctx, kindNode, options)
}

func (s *nodeStore) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	t := newTable(options)
	switch o := object.(type) {
	case *metrics.NodeMetrics:
		t.ResourceVersion = o.ResourceVersion
		addNode(t, o)
	case *metrics.NodeMetricsList:
		t.ListMeta = o.ListMeta
		for i := range o.Items {
			addNode(t, &o.Items[i])
		}
	default:
		return nil, fmt.Errorf("make a table of nodes: %T is none", object)
	}
	return t, nil
}

// podStore serves resource "pods".
type podStore struct{ store }

var (
	_ rest.Storage              = (*podStore)(nil)
	_ rest.KindProvider         = (*podStore)(nil)
	_ rest.Getter               = (*podStore)(nil)
	_ rest.Lister               = (*podStore)(nil)
	_ rest.Watcher              = (*podStore)(nil)
	_ rest.Scoper               = (*podStore)(nil)
	_ rest.SingularNameProvider = (*podStore)(nil)
)

func (*podStore) New() runtime.Object     { return &metrics.PodMetrics{} }
func (*podStore) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (*podStore) Destroy()                {}
func (*podStore) Kind() string            { return kindPod }
func (*podStore) NamespaceScoped() bool   { return true }

// GetSingularName is empty as in metrics-server: "pod" is to mean the core one.
func (*podStore) GetSingularName() string { return "" }

func (s *podStore) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	source, err := s.source(ctx)
	if err != nil {
		return nil, err
	}
	namespace := request.NamespaceValue(ctx)
	p, ok := source.Pod(namespace, name)
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Group: metrics.GroupName, Resource: "podmetrics"}, namespace+"/"+name)
	}
	o := podObject(p, s.now())
	return &o, nil
}

func (s *podStore) List(ctx context.Context, options *metainternal.ListOptions) (runtime.Object, error) {
	return s.list(ctx, kindPod, options)
}

func (s *podStore) Watch(ctx context.Context, options *metainternal.ListOptions) (watch.Interface, error) {
	return s.watch(ctx, kindPod, options)
}

func (s *podStore) ConvertToTable(_ context.Context, object, options runtime.Object) (*metav1.Table, error) {
	t := newTable(options)
	switch o := object.(type) {
	case *metrics.PodMetrics:
		t.ResourceVersion = o.ResourceVersion
		addPod(t, o)
	case *metrics.PodMetricsList:
		t.ListMeta = o.ListMeta
		for i := range o.Items {
			addPod(t, &o.Items[i])
		}
	default:
		return nil, fmt.Errorf("make a table of pods: %T is none", object)
	}
	return t, nil
}
