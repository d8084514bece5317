package kube_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
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

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 2 min: %s", what)
		}
	}
}
