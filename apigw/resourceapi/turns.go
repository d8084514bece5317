package resourceapi

import (
	"context"
	"net/http"
	"runtime"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

// Turns.
//
// A list of everything takes a core for tens of milliseconds, compressed for hundreds. Sixty at once, or a thousand
// watches told of one tick, would have sixty or a thousand goroutines wait for a core, and the one that brings rollups
// into the view behind them. So at most all cores but one are at work on large answers and on events at a time; the rest
// wait their turn, in order. Who waits for a slow client works on nothing and gives the turn back.
const (
	// largeList is how many items make a list large.
	largeList = 1000
	// stalledAfter is how long one write may take before its client counts as slow.
	stalledAfter = 20 * time.Millisecond
	// stalledFor is how long a slow client of a watch may take for one event before it is cut off.
	stalledFor = 30 * time.Second
)

// turns are given to so many at a time.
type turns struct{ free chan struct{} }

func newTurns() *turns {
	t := &turns{free: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))}
	for range cap(t.free) {
		t.free <- struct{}{}
	}
	return t
}

// take waits for a turn. It reports false if ctx ended first.
func (t *turns) take(ctx context.Context) bool {
	select {
	case <-t.free:
		return true
	case <-ctx.Done():
		return false
	}
}

func (t *turns) give() { t.free <- struct{}{} }

type paceKey struct{} // context: the *pace of the request

// pace is the answer to one request. Its methods are for the goroutine that answers.
type pace struct {
	http.ResponseWriter
	ctx     context.Context
	turns   *turns
	control *http.ResponseController
	watch   bool

	mu      sync.Mutex
	has     bool // a turn
	writing bool
	stalled bool
}

var _ responsewriter.UserProvidedDecorator = (*pace)(nil)

// withTurns makes every answer one that can take turns. It stands inside of all that wraps answers otherwise.
func (s *Server) withTurns(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := request.RequestInfoFrom(r.Context())
		if !ok || !info.IsResourceRequest || info.Verb != "list" && info.Verb != "watch" {
			next.ServeHTTP(w, r)
			return
		}
		p := &pace{ResponseWriter: w, turns: s.turns, control: http.NewResponseController(w), watch: info.Verb == "watch"}
		p.ctx = context.WithValue(r.Context(), paceKey{}, p)
		defer p.end() // a watch is answered later, and has no turn between its events
		next.ServeHTTP(responsewriter.WrapForHTTP1Or2(p), r.WithContext(p.ctx))
	})
}

// turn waits for a turn, which lasts until the request has been answered or its client proves slow. waited says that
// the present may have become the past meanwhile.
func turn(ctx context.Context) (waited bool, err error) {
	p, ok := ctx.Value(paceKey{}).(*pace)
	if !ok || p.holds() {
		return false, nil
	}
	select {
	case <-p.turns.free:
	default:
		waited = true
		if !p.turns.take(ctx) {
			return true, apierrors.NewTooManyRequests("others that ask for as much have been before, and time is up", 1)
		}
	}
	p.mu.Lock()
	p.has = true
	p.mu.Unlock()
	return waited, nil
}

func (p *pace) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.has
}

// end gives a turn back.
func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release()
}

// release does. The caller holds mu.
func (p *pace) release() {
	if p.has {
		p.has = false
		p.turns.give()
	}
}

// Unwrap returns what is written to.
func (p *pace) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// Write writes within a turn: that of the request, or where it is a watch one for this write.
func (p *pace) Write(b []byte) (n int, err error) {
	p.during(func() { n, err = p.ResponseWriter.Write(b) })
	return n, err
}

// Flush does.
func (p *pace) Flush() {
	p.during(func() { _ = p.control.Flush() }) // what cannot be flushed cannot be written either, which is told there
}

func (p *pace) during(write func()) {
	if p.watch {
		if !p.turns.take(p.ctx) {
			write() // it will say that the client has gone
			return
		}
		p.mu.Lock()
		p.has = true
		p.mu.Unlock()
		defer p.end()
	} else if !p.holds() {
		write()
		return
	}
	p.mu.Lock()
	p.writing = true
	p.mu.Unlock()
	t := time.AfterFunc(stalledAfter, p.stall)
	write()
	t.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writing = false
	if p.stalled {
		p.stalled = false
		if p.watch {
			_ = p.control.SetWriteDeadline(time.Time{}) // as below
		}
	}
}

// stall is called when a write takes long.
func (p *pace) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.writing {
		return
	}
	p.stalled = true
	p.release()
	if p.watch {
		_ = p.control.SetWriteDeadline(time.Now().Add(stalledFor)) // where there is none, the connection has its own
	}
}
