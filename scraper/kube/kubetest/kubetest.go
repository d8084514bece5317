// Package kubetest is a small API server for tests: get, list and watch of whatever objects it is
// given, over plain http and in JSON, as client-go's reflector wants them, with the two field
// selectors that we use, metadata alone where that is asked for, and refusals on demand.
//
// Not here: a whole cluster with kubelets that move (e2e/simcluster).
package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Server is the API server. Its methods are safe for concurrent use.
type Server struct {
	URL string

	http *httptest.Server

	mu      sync.Mutex
	version int
	objects map[string]map[string]runtime.Object // path, key
	log     []event
	wake    chan struct{} // closed and replaced with every change
	denied  map[string]int
	asked   map[string]int
	oldest  int // changes up to this version are forgotten
	onList  func(path string)
}

type event struct {
	version int
	path    string
	kind    string
	object  runtime.Object
}

// Start starts a server that ends with the test.
func Start(t testing.TB) *Server {
	s := &Server{objects: map[string]map[string]runtime.Object{}, wake: make(chan struct{}), denied: map[string]int{}, asked: map[string]int{}, version: 100}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// Put creates or replaces objects under a path such as /api/v1/pods.
func (s *Server) Put(path string, objects ...runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		o = o.DeepCopyObject()
		acc, err := meta.Accessor(o)
		if err != nil {
			panic(err)
		}
		s.version++
		acc.SetResourceVersion(strconv.Itoa(s.version))
		kind := "ADDED"
		if s.objects[path] == nil {
			s.objects[path] = map[string]runtime.Object{}
		}
		key := acc.GetNamespace() + "/" + acc.GetName()
		if s.objects[path][key] != nil {
			kind = "MODIFIED"
		}
		s.objects[path][key] = o
		s.log = append(s.log, event{s.version, path, kind, o})
	}
	close(s.wake)
	s.wake = make(chan struct{})
}

// Delete removes an object.
func (s *Server) Delete(path, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := namespace + "/" + name
	o := s.objects[path][key]
	if o == nil {
		return
	}
	delete(s.objects[path], key)
	s.version++
	o = o.DeepCopyObject()
	acc, _ := meta.Accessor(o)
	acc.SetResourceVersion(strconv.Itoa(s.version))
	s.log = append(s.log, event{s.version, path, "DELETED", o})
	close(s.wake)
	s.wake = make(chan struct{})
}

// Refuse makes requests for a path answer with this status; 0 lets them pass again.
func (s *Server) Refuse(path string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[path] = status
}

// Forget makes the server forget the changes of until now: watches and continued lists that began
// before are answered with 410 Gone. Connections stay.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oldest = s.version
}

// Disconnect ends all connections, as a restart of the server does.
func (s *Server) Disconnect() { s.http.CloseClientConnections() }

// Version is the present resource version.
func (s *Server) Version() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version
}

// SetBack makes the server be as if everything after a version had never been, as one whose store was
// restored from a backup. What was changed since is gone.
func (s *Server) SetBack(version int) {
	s.mu.Lock()
	for path, objects := range s.objects {
		for key, o := range objects {
			if versionOf(o) > version {
				delete(s.objects[path], key)
			}
		}
	}
	s.log = slices.DeleteFunc(s.log, func(e event) bool { return e.version > version })
	s.version = version
	s.mu.Unlock()
	s.Disconnect()
}

// OnList calls f before each list, or page of one, is answered.
func (s *Server) OnList(f func(path string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onList = f
}

func versionOf(o runtime.Object) int {
	acc, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	v, _ := strconv.Atoi(acc.GetResourceVersion()) // as Put wrote it
	return v
}

// Asked is how often a path was asked for.
func (s *Server) Asked(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	path, name := r.URL.Path, ""
	s.mu.Lock()
	if parts := strings.Split(strings.TrimPrefix(path, "/api/v1/"), "/"); strings.HasPrefix(path, "/api/v1/") && len(parts) == 2 {
		path, name = "/api/v1/"+parts[0], parts[1]
	}
	s.asked[path]++
	status := s.denied[path]
	s.mu.Unlock()
	if status != 0 {
		verb := "get" // a real server names it, so that refusals of a list and of a watch differ
		switch q := r.URL.Query(); {
		case q.Get("watch") == "true" || q.Get("watch") == "1":
			verb = "watch"
		case name == "":
			verb = "list"
		}
		refuse(w, status, verb+" "+path)
		return
	}
	partial := strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	q := r.URL.Query()
	switch {
	case name != "":
		s.mu.Lock()
		o := s.objects[path]["/"+name]
		s.mu.Unlock()
		if o == nil {
			refuse(w, http.StatusNotFound, path)
			return
		}
		answer(w, shown(o, partial))
	case q.Get("watch") == "true" || q.Get("watch") == "1":
		s.watch(w, r, path, partial)
	default:
		s.mu.Lock()
		onList := s.onList
		s.mu.Unlock()
		if onList != nil {
			onList(path)
		}
		var items []any
		limit, _ := strconv.Atoi(q.Get("limit"))
		next := ""
		s.mu.Lock()
		version, after := s.version, ""
		if token, key, ok := strings.Cut(q.Get("continue"), " "); ok {
			version, _ = strconv.Atoi(token)
			after = key
		}
		if version < s.oldest {
			s.mu.Unlock()
			refuse(w, http.StatusGone, "a continued list")
			return
		}
		last := ""
		for _, key := range slices.Sorted(maps.Keys(s.objects[path])) {
			o := s.objects[path][key]
			// What has changed since the first page is left to the watch that follows.
			if key <= after || versionOf(o) > version || !selected(o, q.Get("fieldSelector")) {
				continue
			}
			if limit > 0 && len(items) == limit {
				next = strconv.Itoa(version) + " " + last
				break
			}
			items, last = append(items, shown(o, partial)), key
		}
		s.mu.Unlock()
		kind, api := listKind(path), apiVersion(path)
		if partial {
			kind, api = "PartialObjectMetadataList", "meta.k8s.io/v1"
		}
		answer(w, map[string]any{"kind": kind, "apiVersion": api, "metadata": map[string]any{"resourceVersion": strconv.Itoa(version), "continue": next}, "items": items})
	}
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, path string, partial bool) {
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	enc := json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/json")
	send := func(kind string, o any) {
		_ = enc.Encode(map[string]any{"type": kind, "object": o})
	}
	if q.Get("sendInitialEvents") == "true" {
		s.mu.Lock()
		for _, key := range slices.Sorted(maps.Keys(s.objects[path])) {
			if o := s.objects[path][key]; selected(o, q.Get("fieldSelector")) {
				send("ADDED", shown(o, partial))
			}
		}
		from = s.version
		s.mu.Unlock()
		mark := map[string]any{"metadata": map[string]any{"resourceVersion": strconv.Itoa(from), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}}}
		mark["kind"], mark["apiVersion"] = strings.TrimSuffix(listKind(path), "List"), apiVersion(path)
		if partial {
			mark["kind"], mark["apiVersion"] = "PartialObjectMetadata", "meta.k8s.io/v1"
		}
		send("BOOKMARK", mark)
	}
	for {
		s.mu.Lock()
		if from < s.oldest {
			s.mu.Unlock()
			send("ERROR", &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
				Message: fmt.Sprintf("too old resource version: %d", from), Reason: metav1.StatusReasonExpired, Code: http.StatusGone})
			return
		}
		wake := s.wake
		for _, e := range s.log {
			if e.version > from && e.path == path && (selected(e.object, q.Get("fieldSelector")) || e.kind == "DELETED") {
				send(e.kind, shown(e.object, partial))
			}
		}
		from = s.version
		s.mu.Unlock()
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case <-wake:
		case <-r.Context().Done():
			return
		}
	}
}

func listKind(path string) string {
	switch path {
	case "/api/v1/nodes":
		return "NodeList"
	case "/api/v1/pods":
		return "PodList"
	case "/api/v1/namespaces":
		return "NamespaceList"
	case "/api/v1/events":
		return "EventList"
	}
	return "List"
}

func apiVersion(path string) string {
	if rest, ok := strings.CutPrefix(path, "/apis/"); ok {
		parts := strings.Split(rest, "/")
		return parts[0] + "/" + parts[1]
	}
	return "v1"
}

func shown(o runtime.Object, partial bool) any {
	if partial {
		acc, _ := meta.Accessor(o)
		return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"},
			ObjectMeta: metav1.ObjectMeta{Name: acc.GetName(), Namespace: acc.GetNamespace(), UID: acc.GetUID(), Labels: acc.GetLabels(),
				ResourceVersion: acc.GetResourceVersion(), OwnerReferences: acc.GetOwnerReferences()}}
	}
	o = o.DeepCopyObject()
	v := reflect.ValueOf(o).Elem().FieldByName("TypeMeta")
	v.Set(reflect.ValueOf(metav1.TypeMeta{Kind: reflect.TypeOf(o).Elem().Name(), APIVersion: "v1"}))
	return o
}

func selected(o runtime.Object, selector string) bool {
	p, ok := o.(*corev1.Pod)
	if !ok || selector == "" {
		return true
	}
	for term := range strings.SplitSeq(selector, ",") {
		if name, ok := strings.CutPrefix(term, "spec.nodeName="); ok && p.Spec.NodeName != name {
			return false
		}
		if phase, ok := strings.CutPrefix(term, "status.phase!="); ok && string(p.Status.Phase) == phase {
			return false
		}
	}
	return true
}

func answer(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o)
}

func refuse(w http.ResponseWriter, status int, path string) {
	reason := map[int]metav1.StatusReason{410: metav1.StatusReasonExpired, 403: metav1.StatusReasonForbidden, 401: metav1.StatusReasonUnauthorized, 404: metav1.StatusReasonNotFound}[status]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
		Message: fmt.Sprintf("%s is refused", path), Reason: reason, Code: int32(status)}) //nolint:gosec // a status
}
