package simcluster_test

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
)

func TestEventsHappenAndAreRepeated(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	cs := clientset(t, c, "application/vnd.kubernetes.protobuf")
	w, err := cs.CoreV1().Events("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: c.ResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	happened, err := c.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.RepeatEvent(happened.Namespace, happened.Name)
	if err != nil {
		t.Fatal(err)
	}
	if happened.Count != 1 || again.Count != 2 || again.UID != happened.UID || again.ResourceVersion <= happened.ResourceVersion {
		t.Errorf("%+v, and then %+v", happened, again)
	}
	for i, want := range []simcluster.Event{happened, again} {
		ev, ok := <-w.ResultChan()
		e, isEvent := ev.Object.(*corev1.Event)
		if !ok || !isEvent || ev.Type != []watch.EventType{watch.Added, watch.Modified}[i] || string(e.UID) != want.UID || e.Count != want.Count ||
			e.ResourceVersion != strconv.FormatUint(want.ResourceVersion, 10) {
			t.Errorf("told of %+v, want %+v", ev, want)
		}
	}
	if kept := c.Events(); len(kept) == 0 || kept[len(kept)-1].UID == "" {
		t.Errorf("%d events are kept", len(kept))
	}
	if _, err := c.RepeatEvent("nowhere", "never"); err == nil {
		t.Error("an event that never happened was repeated")
	}
}

// A watch is cut, nobody is let in while the server is away, and who comes back with the version of before hears 410.
func TestAPIServerRestarts(t *testing.T) {
	for _, contentType := range contentTypes {
		t.Run(contentType, func(t *testing.T) {
			c := simtest.Start(t, small(), simcluster.Deps{})
			cs := clientset(t, c, contentType)
			before := c.ResourceVersion()
			w, err := cs.CoreV1().Events("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: before})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			c.RestartAPIServer(time.Hour)
			for ev := range w.ResultChan() { // until it ends
				t.Errorf("the watch told of %v though it was cut", ev.Type)
			}
			if resp, err := http.Get(c.APIServer() + "/healthz"); err == nil {
				resp.Body.Close()
				t.Error("the API server answers though it is away")
			}
			c.RestartAPIServer(0)
			eventually(t, "a watch from before is answered with 410 Gone", func() bool {
				again, err := cs.CoreV1().Events("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: before})
				if err != nil {
					return false
				}
				defer again.Stop()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				select {
				case ev := <-again.ResultChan():
					return ev.Type == watch.Error && apierrors.IsResourceExpired(apierrors.FromObject(ev.Object))
				case <-ctx.Done():
					return false
				}
			})
			if l, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); err != nil || len(l.Items) == 0 {
				t.Errorf("a list after the restart has %d pods: %v", len(l.Items), err)
			}
			http.DefaultClient.CloseIdleConnections()
		})
	}
}
