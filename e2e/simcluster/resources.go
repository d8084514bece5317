package simcluster

import (
	"fmt"
	"io"
	"mime"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// resourceInfo is one resource as discovery names it.
type resourceInfo struct {
	group, version, plural, singular, kind string
	short                                  []string
	namespaced                             bool
	storeOf                                string // the plural whose store it shows, "" = its own
	fields                                 []string
	list                                   func() runtime.Object
	empty                                  func() object // for bookmarks
	view                                   func(object) object
}

var resources = []*resourceInfo{
	{group: "", version: "v1", plural: "nodes", singular: "node", kind: "Node", short: []string{"no"}, fields: []string{"spec.unschedulable"},
		list: func() runtime.Object { return &corev1.NodeList{} }, empty: func() object { return &corev1.Node{} }},
	{group: "", version: "v1", plural: "pods", singular: "pod", kind: "Pod", short: []string{"po"}, namespaced: true,
		fields: []string{"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName"},
		list:   func() runtime.Object { return &corev1.PodList{} }, empty: func() object { return &corev1.Pod{} }},
	{group: "", version: "v1", plural: "namespaces", singular: "namespace", kind: "Namespace", short: []string{"ns"}, fields: []string{"status.phase"},
		list: func() runtime.Object { return &corev1.NamespaceList{} }, empty: func() object { return &corev1.Namespace{} }},
	{group: "", version: "v1", plural: "events", singular: "event", kind: "Event", short: []string{"ev"}, namespaced: true,
		fields: []string{"involvedObject.kind", "involvedObject.name", "involvedObject.namespace", "involvedObject.uid", "involvedObject.fieldPath", "reason", "type", "source", "reportingComponent"},
		list:   func() runtime.Object { return &corev1.EventList{} }, empty: func() object { return &corev1.Event{} }},
	{group: "", version: "v1", plural: "configmaps", singular: "configmap", kind: "ConfigMap", short: []string{"cm"}, namespaced: true,
		list: func() runtime.Object { return &corev1.ConfigMapList{} }, empty: func() object { return &corev1.ConfigMap{} }},
	{group: "apps", version: "v1", plural: "deployments", singular: "deployment", kind: "Deployment", short: []string{"deploy"}, namespaced: true,
		list: func() runtime.Object { return &appsv1.DeploymentList{} }, empty: func() object { return &appsv1.Deployment{} }},
	{group: "apps", version: "v1", plural: "replicasets", singular: "replicaset", kind: "ReplicaSet", short: []string{"rs"}, namespaced: true,
		list: func() runtime.Object { return &appsv1.ReplicaSetList{} }, empty: func() object { return &appsv1.ReplicaSet{} }},
	{group: "apps", version: "v1", plural: "daemonsets", singular: "daemonset", kind: "DaemonSet", short: []string{"ds"}, namespaced: true,
		list: func() runtime.Object { return &appsv1.DaemonSetList{} }, empty: func() object { return &appsv1.DaemonSet{} }},
	{group: "apps", version: "v1", plural: "statefulsets", singular: "statefulset", kind: "StatefulSet", short: []string{"sts"}, namespaced: true,
		list: func() runtime.Object { return &appsv1.StatefulSetList{} }, empty: func() object { return &appsv1.StatefulSet{} }},
	{group: "batch", version: "v1", plural: "jobs", singular: "job", kind: "Job", namespaced: true, fields: []string{"status.successful"},
		list: func() runtime.Object { return &batchv1.JobList{} }, empty: func() object { return &batchv1.Job{} }},
	{group: "batch", version: "v1", plural: "cronjobs", singular: "cronjob", kind: "CronJob", short: []string{"cj"}, namespaced: true,
		list: func() runtime.Object { return &batchv1.CronJobList{} }, empty: func() object { return &batchv1.CronJob{} }},
	{group: "events.k8s.io", version: "v1", plural: "events", singular: "event", kind: "Event", short: []string{"ev"}, namespaced: true, storeOf: "events",
		fields: []string{"regarding.kind", "regarding.name", "regarding.namespace", "regarding.uid", "reason", "type", "reportingController"},
		list:   func() runtime.Object { return &eventsv1.EventList{} }, empty: func() object { return &eventsv1.Event{} }, view: eventView},
}

// groups in the order in which /apis lists them; the reviews have resources that only take POST.
var groups = []string{"apps", "batch", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io"}

var reviews = map[string]map[string]string{
	"authentication.k8s.io": {"tokenreviews": "TokenReview"},
	"authorization.k8s.io":  {"subjectaccessreviews": "SubjectAccessReview", "selfsubjectaccessreviews": "SelfSubjectAccessReview"},
}

func findResource(group, version, plural string) *resourceInfo {
	for _, r := range resources {
		if r.group == group && r.version == version && r.plural == plural {
			return r
		}
	}
	return nil
}

func (r *resourceInfo) gv() schema.GroupVersion {
	return schema.GroupVersion{Group: r.group, Version: r.version}
}
func (r *resourceInfo) store() string {
	if r.storeOf != "" {
		return r.storeOf
	}
	return r.plural
}

var (
	scheme = func() *runtime.Scheme {
		s := runtime.NewScheme()
		for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, eventsv1.AddToScheme,
			authenticationv1.AddToScheme, authorizationv1.AddToScheme, metav1.AddMetaToScheme} {
			utilruntime.Must(add(s))
		}
		metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
		return s
	}()
	codecs = serializer.NewCodecFactory(scheme, serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf())
)

// offer is the form that an answer takes.
type offer struct {
	runtime.SerializerInfo
	metaOnly bool // PartialObjectMetadata instead of the whole object
	table    bool // a Table, for kubectl to print
}

// negotiate picks the first form of an Accept header that there is, in order of preference.
func negotiate(accept string) (offer, bool) {
	if strings.TrimSpace(accept) == "" {
		accept = "*/*"
	}
	type clause struct {
		q     float64
		offer offer
	}
	var ok []clause
	for part := range strings.SplitSeq(accept, ",") {
		name, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		if name == "*/*" || name == "application/*" {
			name = runtime.ContentTypeJSON
		}
		info, found := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), name)
		if !found || info.MediaType != name || info.StreamSerializer == nil && name != runtime.ContentTypeYAML {
			continue
		}
		c := clause{q: 1, offer: offer{SerializerInfo: info}}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil {
			c.q = q
		}
		switch as := params["as"]; {
		case as == "":
		case (as == "PartialObjectMetadata" || as == "PartialObjectMetadataList") && params["g"] == "meta.k8s.io" && params["v"] == "v1":
			c.offer.metaOnly = true
		case as == "Table" && params["g"] == "meta.k8s.io" && params["v"] == "v1" && name == runtime.ContentTypeJSON:
			c.offer.table = true
		default:
			continue // older tables and what may come
		}
		if c.q > 0 {
			ok = append(ok, c)
		}
	}
	if len(ok) == 0 {
		return offer{}, false
	}
	slices.SortStableFunc(ok, func(a, b clause) int {
		switch {
		case a.q > b.q:
			return -1
		case a.q < b.q:
			return 1
		}
		return 0
	})
	return ok[0].offer, true
}

// render builds the object of a record in the form wanted.
func (r *resourceInfo) render(rec *record, o offer) object {
	rv := strconv.FormatUint(rec.rv, 10)
	if o.metaOnly {
		m := &metav1.PartialObjectMetadata{ObjectMeta: rec.st.meta()}
		m.ResourceVersion = rv
		m.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
		return m
	}
	obj := rec.st.build()
	obj.SetResourceVersion(rv)
	if r.view != nil {
		obj = r.view(obj)
	}
	obj.GetObjectKind().SetGroupVersionKind(r.gv().WithKind(r.kind))
	return obj
}

// renderOne is the object of an answer or event: a table has one row.
func (r *resourceInfo) renderOne(rec *record, o offer, now time.Time) (runtime.Object, error) {
	if o.table {
		return r.renderTable([]*record{rec}, metav1.ListMeta{ResourceVersion: strconv.FormatUint(rec.rv, 10)}, now)
	}
	return r.render(rec, o), nil
}

// bookmark is the object of a bookmark event; end marks the end of the initial events.
func (r *resourceInfo) bookmark(rv uint64, o offer, end bool) object {
	var obj object
	if o.metaOnly {
		obj = &metav1.PartialObjectMetadata{}
		obj.GetObjectKind().SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	} else {
		obj = r.empty()
		obj.GetObjectKind().SetGroupVersionKind(r.gv().WithKind(r.kind))
	}
	obj.SetResourceVersion(strconv.FormatUint(rv, 10))
	if end {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return obj
}

// renderList builds the list of records.
func (r *resourceInfo) renderList(recs []*record, rv uint64, cont string, remaining *int64, o offer, now time.Time) (runtime.Object, error) {
	lm := metav1.ListMeta{ResourceVersion: strconv.FormatUint(rv, 10), Continue: cont, RemainingItemCount: remaining}
	if o.table {
		return r.renderTable(recs, lm, now)
	}
	if o.metaOnly {
		l := &metav1.PartialObjectMetadataList{ListMeta: lm, Items: make([]metav1.PartialObjectMetadata, 0, len(recs))}
		l.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadataList"))
		for _, rec := range recs {
			l.Items = append(l.Items, *r.render(rec, o).(*metav1.PartialObjectMetadata))
		}
		return l, nil
	}
	l := r.list()
	items := make([]runtime.Object, 0, len(recs))
	for _, rec := range recs {
		obj := r.render(rec, o)
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{}) // items of a typed list carry no kind
		items = append(items, obj)
	}
	if err := meta.SetList(l, items); err != nil {
		return nil, fmt.Errorf("make list of %s: %w", r.plural, err)
	}
	lmi, err := meta.ListAccessor(l)
	if err != nil {
		return nil, fmt.Errorf("make list of %s: %w", r.plural, err)
	}
	lmi.SetResourceVersion(lm.ResourceVersion)
	lmi.SetContinue(cont)
	lmi.SetRemainingItemCount(remaining)
	l.GetObjectKind().SetGroupVersionKind(r.gv().WithKind(r.kind + "List"))
	return l, nil
}

// encode writes an object whose kind is set.
func encode(w io.Writer, o offer, obj runtime.Object) error {
	return o.Serializer.Encode(obj, w)
}
