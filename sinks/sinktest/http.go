package sinktest

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// HTTP is a destination that speaks HTTP: the part of a [Backend] that all of them have. Take is what tells
// them apart.
type HTTP struct {
	// Take answers a request as the destination does, in the moods OK, Slow, Refusing and HalfRefuses. It must
	// check all that the destination checks, and name what it stored by Store. It is called by one goroutine at
	// a time.
	Take func(w http.ResponseWriter, r *http.Request, body []byte, m Mood)
	// LoggedIn reports whether a request has the right login; not asked where none is wanted.
	LoggedIn func(r *http.Request) bool
	// HTTP2 says that HTTP/2 is spoken, too: with prior knowledge where there is no TLS, as gRPC has it.
	HTTP2 bool

	tb     testing.TB
	reach  Reach
	net    *Listener
	server *httptest.Server
	tls    *TLS

	mu      sync.Mutex
	mood    Mood
	forgot  bool          // the login
	changed chan struct{} // closed when the mood changes
	holds   map[string]int
	taking  sync.Mutex
}

// StartHTTP starts h on a free port until the test ends.
func StartHTTP(tb testing.TB, r Reach, h *HTTP) *HTTP {
	tb.Helper()
	h.tb, h.reach, h.net, h.holds, h.changed = tb, r, Listen(tb), map[string]int{}, make(chan struct{})
	h.forgot = r.Fault == LoginForgotten
	h.server = httptest.NewUnstartedServer(h)
	h.server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused certificates are wanted
	_ = h.server.Listener.Close()
	h.server.Listener = h.net
	if h.HTTP2 {
		h.server.EnableHTTP2, h.server.Config.Protocols = true, new(http.Protocols)
		h.server.Config.Protocols.SetHTTP1(true)
		h.server.Config.Protocols.SetHTTP2(true)
		h.server.Config.Protocols.SetUnencryptedHTTP2(true)
	}
	if r.TLS {
		h.tls = NewTLS(tb, r)
		h.server.TLS = h.tls.Config()
		if h.HTTP2 {
			h.server.TLS.NextProtos = []string{"h2", "http/1.1"}
		}
		h.server.StartTLS()
	} else {
		h.server.Start()
	}
	tb.Cleanup(func() {
		h.Behave(Down) // lets go of requests that are not to be answered
		h.server.Close()
	})
	return h
}

// URL is where the destination listens: http://host:port, or https.
func (h *HTTP) URL() string { return h.server.URL }

// Options are the options of a target that fit the mood and the reach: timeout, cacert.
func (h *HTTP) Options(r Reach) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	options := "timeout=10s"
	if h.mood == Stalled {
		options = "timeout=300ms"
	}
	if r.TLS && !r.Untrusted {
		options += "&cacert=" + h.tls.CAFile
	}
	return options
}

// Password is the right one, or the wrong one where that is wanted.
func (r Reach) Password() string {
	if r.WrongLogin {
		return "wrong-password"
	}
	return RightPassword
}

// RightPassword is the password that destinations with a login want.
const RightPassword = "right-password"

// Behave changes the mood.
func (h *HTTP) Behave(m Mood) {
	h.mu.Lock()
	h.mood = m
	close(h.changed)
	h.changed = make(chan struct{})
	h.mu.Unlock()
	if m != Stalled && m != HangsUp { // those are known here when the request is complete
		h.net.Behave(m)
	}
}

// Repair ends the fault.
func (h *HTTP) Repair() {
	if h.tls != nil {
		h.tls.Repair()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgot = false
}

// Store notes that samples of these names are written; where once is set, those that are there already stay
// as they are.
func (h *HTTP) Store(once bool, names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		if once {
			h.holds[name] = 1
		} else {
			h.holds[name]++
		}
	}
}

// Holds is what was stored.
func (h *HTTP) Holds() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.holds)
}

// ServeHTTP answers as the mood says.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	h.mu.Lock()
	mood, changed, forgot := h.mood, h.changed, h.forgot
	h.mu.Unlock()
	if h.reach.Login && (forgot || !h.LoggedIn(r)) {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	switch mood {
	case Slow:
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
		}
	case Stalled:
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case Failing:
		w.Header().Set("Retry-After", "0")
		http.Error(w, "overloaded", http.StatusServiceUnavailable)
		return
	case HangsUp, Down, CutsOff:
		panic(http.ErrAbortHandler)
	case Garbage:
		fmt.Fprint(w, "<html><title>It works!</title></html>")
		return
	}
	h.taking.Lock()
	defer h.taking.Unlock()
	h.Take(w, r, body, mood)
}

// New builds a sink of rollups, of cluster default. Who has it write closes it.
func New[S sink.Sink](tb testing.TB, k sink.Kind, target string) S {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := k.New(t, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	return s.(S)
}

// Complains checks that a target is refused with all of the complaints.
func Complains(tb testing.TB, k sink.Kind, target string, complaints ...string) {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = k.New(t, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Log: slog.New(slog.DiscardHandler)})
	for _, want := range complaints {
		if err == nil || !strings.Contains(err.Error(), want) {
			tb.Errorf("%s: got %v, want %q", target, err, want)
		}
	}
}

// Warns returns what a target's sink warns of as it is built.
func Warns(tb testing.TB, k sink.Kind, target string) string {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	var said recorder
	s, err := k.New(t, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Log: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
	return said.String()
}
