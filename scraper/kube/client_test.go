package kube_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A client without the right is refused twice at every attempt, first the watch and then the list, in
// different words: that is one state, said once, and once more when it ends.
func TestMirrorTellsOnceThatItMayNotRead(t *testing.T) {
	api := kubetest.Start(t)
	api.Put("/api/v1/nodes", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	api.Refuse("/api/v1/nodes", http.StatusForbidden)
	c, err := kube.NewClient(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	said := &lines{}
	m := kube.NewMirror(c, kube.Nodes, slog.New(slog.NewTextHandler(said, nil)), func(runtime.Object) bool { return true }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	defer wg.Wait()
	defer cancel()

	until(t, "two attempts", func() bool { return api.Asked("/api/v1/nodes") >= 4 })
	api.Refuse("/api/v1/nodes", 0)
	until(t, "the mirror is whole", func() bool { return m.Len() == 1 && m.Err() == nil })
	until(t, "it says so", func() bool { return strings.Contains(said.String(), "can be read again") })
	if n := strings.Count(said.String(), "cannot be read"); n != 1 || !strings.Contains(said.String(), "grant our ServiceAccount the verbs list, watch on nodes") {
		t.Errorf("said %d times that nodes cannot be read, want once with what to grant:\n%s", n, said)
	}
}

// What is no list of what was asked for is told, and harms nobody.
func TestMirrorRefusesOtherObjects(t *testing.T) {
	for _, c := range []struct {
		answer, want string
		resource     kube.Resource
	}{
		{`{"kind":"ConfigMapList","apiVersion":"v1","items":[{"metadata":{"name":"a"}}]}`, "pods were asked for as *v1.Pod and a *v1.ConfigMap has come", kube.Pods},
		{`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}`, "is this an API server?", kube.Pods},
		{`{"kind":"Surprise","apiVersion":"v1"}`, `no kind "Surprise" is registered`, kube.Pods},
		{`{"kind":"PodList","apiVersion":"v1","items":[{"metadata":7}]}`, "cannot unmarshal number", kube.Pods},
		{`<html>`, "", kube.Pods},
	} {
		t.Run(c.answer, func(t *testing.T) {
			t.Parallel() // each waits for the second attempt
			answers := 0
			var mu sync.Mutex
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get("watch") != "" {
					http.Error(w, "no", http.StatusUnprocessableEntity)
					return
				}
				mu.Lock()
				answers++
				mu.Unlock()
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(c.answer))
			}))
			client, err := kube.NewClient(&rest.Config{Host: api.URL})
			if err != nil {
				t.Fatal(err)
			}
			m := kube.NewMirror(client, c.resource, slog.New(slog.DiscardHandler), func(runtime.Object) bool { return true }, nil)
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() { m.Run(ctx) })
			until(t, "it asks again after "+c.answer, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return answers >= 2
			})
			if err := m.Err(); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.resource.Name) || m.Len() != 0 {
				t.Errorf("%s gives %d objects and %v, want %q", c.answer, m.Len(), err, c.want)
			}
			cancel()
			wg.Wait()
			api.Close()
		})
	}
}

// A server that cannot cut out metadata lists whole objects.
func TestMirrorTakesMetadataOfWholeObjects(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			http.Error(w, "no", http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"NamespaceList","apiVersion":"v1","items":[{"metadata":{"name":"a","uid":"u"}}]}`))
	}))
	defer api.Close()
	c, err := kube.NewClient(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	m := kube.NewMirror(c, kube.Namespaces, slog.New(slog.DiscardHandler), func(o runtime.Object) string { return string(o.(*metav1.PartialObjectMetadata).UID) }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	until(t, "the namespace is there", func() bool { uid, ok := m.Get("a"); return ok && uid == "u" })
}

// An object without a name does not stand in the way of the others.
func TestMirrorLeavesOutWhatHasNoName(t *testing.T) {
	api := kubetest.Start(t)
	api.Put("/api/v1/nodes", &corev1.Node{}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	c, err := kube.NewClient(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	m := kube.NewMirror(c, kube.Nodes, slog.New(slog.DiscardHandler), func(runtime.Object) bool { return true }, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	until(t, "the mirror is whole", func() bool {
		select {
		case <-m.Synced():
			return true
		default:
			return false
		}
	})
	if _, ok := m.Get("n1"); !ok || m.Len() != 1 {
		t.Errorf("%d objects, n1 among them: %t", m.Len(), ok)
	}
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 2 min: %s", what)
		}
	}
}
