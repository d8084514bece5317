package kube

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	corev1 "k8s.io/api/core/v1"
)

// Client reads one API server. Safe for concurrent use.
type Client struct {
	rest    rest.Interface
	host    string
	timeout time.Duration
}

// Host is the API server's address, for logs.
func (c *Client) Host() string { return c.host }

// Get reads one object of core/v1 without a namespace, such as nodes/n1, into obj. It blocks until
// the answer is there, 30 s have passed or ctx ends. Errors say what to do.
func (c *Client) Get(ctx context.Context, resource, name string, obj runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := c.rest.Get().AbsPath("/api/v1", resource, name).Do(ctx).Into(obj); err != nil {
		return fmt.Errorf("get %s %q from %s: %w", resource, name, c.host, explain(err, "get", resource))
	}
	return nil
}

// GetMetadata is Get of an object's metadata alone.
func (c *Client) GetMetadata(ctx context.Context, resource, name string, obj *metav1.PartialObjectMetadata) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	as := ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	err := c.rest.Get().AbsPath("/api/v1", resource, name).
		SetHeader("Accept", runtime.ContentTypeProtobuf+as+","+runtime.ContentTypeJSON+as).Do(ctx).Into(obj)
	if err != nil {
		return fmt.Errorf("get %s %q from %s: %w", resource, name, c.host, explain(err, "get", resource))
	}
	return nil
}

// Resource is what to mirror.
type Resource struct {
	Path     string         // "/api/v1/pods", "/apis/apps/v1/replicasets"
	Name     string         // "pods", as RBAC calls it
	Object   runtime.Object // one of core/v1, or *metav1.PartialObjectMetadata for metadata alone
	Selector string         // field selector; "" for all
}

// The resources that we read.
var (
	Nodes       = Resource{Path: "/api/v1/nodes", Name: "nodes", Object: &corev1.Node{}}
	Pods        = Resource{Path: "/api/v1/pods", Name: "pods", Object: &corev1.Pod{}}
	Namespaces  = Resource{Path: "/api/v1/namespaces", Name: "namespaces", Object: &metav1.PartialObjectMetadata{}}
	PodOwners   = Resource{Path: "/api/v1/pods", Name: "pods", Object: &metav1.PartialObjectMetadata{}, Selector: "status.phase!=Succeeded,status.phase!=Failed"}
	ReplicaSets = Resource{Path: "/apis/apps/v1/replicasets", Name: "replicasets.apps", Object: &metav1.PartialObjectMetadata{}}
	Jobs        = Resource{Path: "/apis/batch/v1/jobs", Name: "jobs.batch", Object: &metav1.PartialObjectMetadata{}}
)

func (r *Resource) request(c *Client, watching bool) *rest.Request {
	req := c.rest.Get().AbsPath(r.Path)
	if _, partial := r.Object.(*metav1.PartialObjectMetadata); partial {
		as := ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
		if watching {
			as = ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
		}
		req.SetHeader("Accept", runtime.ContentTypeProtobuf+as+","+runtime.ContentTypeJSON+as)
	}
	return req
}

// Mirror keeps one value for each object of a resource, made by convert, which gets objects of the
// type of Resource.Object and must keep nothing of them but strings. Methods are safe for concurrent use; Run must be called once.
type Mirror[T any] struct {
	client  *Client
	res     Resource
	log     *slog.Logger
	convert func(runtime.Object) T

	changed func(key string, old, now *T) // under mu

	mu     sync.RWMutex
	items  map[string]T // by namespace/name, or name
	synced chan struct{}
	once   sync.Once
	last   error // of the last list or watch; nil while all is well
}

// NewMirror makes a mirror of res. changed, where not nil, is told of every value that comes (old
// is nil), changes or goes (now is nil), one at a time; it must not call the mirror.
func NewMirror[T any](c *Client, res Resource, log *slog.Logger, convert func(runtime.Object) T, changed func(key string, old, now *T)) *Mirror[T] {
	return &Mirror[T]{client: c, res: res, log: log, convert: convert, changed: changed,
		items: map[string]T{}, synced: make(chan struct{})}
}

// Synced is closed once the mirror has been whole.
func (m *Mirror[T]) Synced() <-chan struct{} { return m.synced }

// Err is why the resource cannot be read at the moment; nil while it can.
func (m *Mirror[T]) Err() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.last
}

// Get returns the value of one object.
func (m *Mirror[T]) Get(key string) (T, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok := m.items[key]
	return v, ok
}

// Len is the number of objects.
func (m *Mirror[T]) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.items)
}

// Each calls f for every value, in no order; f must not call the mirror.
func (m *Mirror[T]) Each(f func(key string, v T)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for k, v := range m.items {
		f(k, v)
	}
}

// Run lists and watches until ctx ends, reconnecting for ever with back-off. What is wrong is logged
// once per change, and what had been read stays as it was.
func (m *Mirror[T]) Run(ctx context.Context) {
	quiet := logr.Discard() // failures are told by report
	ctx = klog.NewContext(ctx, quiet)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			if opts.ResourceVersion == "0" && opts.Limit > 0 {
				opts.ResourceVersion = "" // from "0" the server answers all at once, whatever the limit
			}
			opts.FieldSelector = m.res.Selector
			list, err := m.res.request(m.client, false).VersionedParams(&opts, metav1.ParameterCodec).Do(ctx).Get()
			if err == nil {
				err = m.inspect(list)
			}
			if err != nil {
				m.report(ctx, err)
			} // all is well when the watch that follows is there
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.Watch = true
			opts.FieldSelector = m.res.Selector
			w, err := m.res.request(m.client, true).VersionedParams(&opts, metav1.ParameterCodec).Watch(ctx)
			if opts.SendInitialEvents != nil && (apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsForbidden(err)) {
				return w, err // an older server, or no right to watch: the reflector lists next, and that is reported
			}
			m.report(ctx, err)
			return w, err
		},
	}
	r := cache.NewReflectorWithOptions(lw, m.res.Object, (*store[T])(m), cache.ReflectorOptions{Name: m.res.Name, Logger: &quiet})
	r.RunWithContext(ctx)
}

// inspect refuses a list of something else, and drops what is large and never read from the objects of
// a page, since all pages are held together until the last has come.
func (m *Mirror[T]) inspect(list runtime.Object) error {
	err := meta.EachListItem(list, func(o runtime.Object) error {
		trim(o)
		_, err := m.fit(o)
		return err
	})
	if err != nil {
		return fmt.Errorf("the answer is a %T: %w; is this an API server?", list, err)
	}
	return nil
}

// fit returns the object as the type that was asked for. A server that cannot cut out metadata lists
// whole objects.
func (m *Mirror[T]) fit(o any) (runtime.Object, error) {
	if obj, ok := o.(runtime.Object); ok && reflect.TypeOf(o) == reflect.TypeOf(m.res.Object) {
		return obj, nil
	}
	if _, partial := m.res.Object.(*metav1.PartialObjectMetadata); partial {
		if acc, err := meta.Accessor(o); err == nil {
			return meta.AsPartialObjectMetadata(acc), nil
		}
	}
	return nil, fmt.Errorf("%s were asked for as %T and a %T has come", m.res.Name, m.res.Object, o)
}

func trim(o runtime.Object) {
	if acc, err := meta.Accessor(o); err == nil {
		acc.SetManagedFields(nil)
	}
	if p, ok := o.(*corev1.Pod); ok {
		p.Spec.Volumes, p.Spec.Tolerations, p.Spec.Affinity = nil, nil, nil
		for _, cs := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range cs {
				c := &cs[i]
				*c = corev1.Container{Name: c.Name, Image: c.Image, Resources: c.Resources, RestartPolicy: c.RestartPolicy}
			}
		}
		for i := range p.Spec.EphemeralContainers {
			c := &p.Spec.EphemeralContainers[i].EphemeralContainerCommon
			*c = corev1.EphemeralContainerCommon{Name: c.Name, Image: c.Image}
		}
		p.Status.Conditions = nil
	}
	if n, ok := o.(*corev1.Node); ok {
		n.Status.Images, n.Status.VolumesInUse, n.Status.VolumesAttached = nil, nil, nil
	}
}

// report logs a change of state.
func (m *Mirror[T]) report(ctx context.Context, err error) {
	if err != nil {
		if ctx.Err() != nil || apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return // stopping, or the daily end of an old watch
		}
		err = fmt.Errorf("list and watch %s from %s: %w", m.res.Name, m.client.host, explain(err, "list, watch", m.res.Name))
	}
	m.mu.Lock()
	was := m.last
	m.last = err
	m.mu.Unlock()
	switch {
	case err == nil && was != nil:
		m.log.Info("API server can be read again", "resource", m.res.Name)
	case err != nil && (was == nil || was.Error() != err.Error()):
		m.log.Warn("API server cannot be read, what was known is kept", "resource", m.res.Name, "err", err)
	}
}

// store is a Mirror as the reflector sees it.
type store[T any] Mirror[T]

func (s *store[T]) Add(o any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(o)
}

func (s *store[T]) Update(o any) error { return s.Add(o) }

// entry is a converted object on its way through the reflector.
type entry[T any] struct {
	key string
	v   T
}

func (s *store[T]) entry(o any) (entry[T], error) {
	if e, ok := o.(entry[T]); ok {
		return e, nil
	}
	obj, err := (*Mirror[T])(s).fit(o)
	if err != nil {
		return entry[T]{}, err
	}
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return entry[T]{}, fmt.Errorf("name of an object: %w", err)
	}
	return entry[T]{key, s.convert(obj)}, nil
}

func (s *store[T]) put(o any) error {
	e, err := s.entry(o)
	if err != nil || e.key == "" { // who has no name cannot be asked for, nor be in nobody's way
		return err
	}
	old, was := s.items[e.key]
	s.items[e.key] = e.v
	if s.changed != nil {
		if was {
			s.changed(e.key, &old, &e.v)
		} else {
			s.changed(e.key, nil, &e.v)
		}
	}
	return nil
}

func (s *store[T]) Delete(o any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err != nil {
		return fmt.Errorf("name of a deleted object: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
	return nil
}

func (s *store[T]) remove(key string) {
	if old, ok := s.items[key]; ok {
		delete(s.items, key)
		if s.changed != nil {
			s.changed(key, &old, nil)
		}
	}
}

func (s *store[T]) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	present := make(map[string]struct{}, len(list))
	for i, o := range list {
		e, err := s.entry(o)
		if err != nil {
			return err
		}
		list[i] = nil
		present[e.key] = struct{}{}
		if err := s.put(e); err != nil {
			return err
		}
	}
	for key := range s.items {
		if _, ok := present[key]; !ok {
			s.remove(key)
		}
	}
	s.once.Do(func() { close(s.synced) })
	return nil
}

func (s *store[T]) Resync() error { return nil }

// Transformer converts objects as they stream in, so that the initial state is never held whole.
func (s *store[T]) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return s.entry(o) }
}

// explain puts into words what a client can do about an error of the API server.
func explain(err error, verbs, resource string) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	advice := ""
	switch {
	case apierrors.IsForbidden(err):
		advice = fmt.Sprintf("grant our ServiceAccount the verbs %s on %s", verbs, resource)
	case apierrors.IsUnauthorized(err):
		advice = "the API server does not know who we are: look at the token or the client certificate"
	case errors.As(err, &unknown):
		advice = "give the authority of the API server (kubeconfig: certificate-authority)"
	case errors.As(err, &name):
		advice = "use a name that is in the API server's certificate"
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "is this its address?"
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the address is told already, and a watch's differs each time
	}
	err = errors.New(stable(err.Error()))
	if advice == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, advice)
}

// stable drops what differs from attempt to attempt: our own port in a TCP error.
func stable(s string) string {
	if i := strings.Index(s, "->"); i >= 0 {
		if j := strings.LastIndexByte(s[:i], ' '); j >= 0 {
			return s[:j+1] + s[i+2:]
		}
	}
	return s
}
