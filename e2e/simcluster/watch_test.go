package simcluster

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// deadlines is a writer that remembers its deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	at time.Time
}

func (d *deadlines) SetWriteDeadline(at time.Time) error { d.at = at; return nil }

// A watch that is told nothing for longer than a write may take goes on: clients that lose it list everything again, which
// costs more than all else that is measured on a large simulated cluster.
func TestIdleWatchHasNoDeadline(t *testing.T) {
	w := &deadlines{ResponseRecorder: httptest.NewRecorder(), at: time.Now().Add(watchWriteTimeout)}
	s := watchStream{w: w, rc: http.NewResponseController(w)}
	if err := s.flush(); err != nil {
		t.Fatal(err)
	}
	if !w.at.IsZero() || !w.Flushed {
		t.Errorf("after a flush (%t) the stream ends at %s, want never", w.Flushed, w.at)
	}
}
