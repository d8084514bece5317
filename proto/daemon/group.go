package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// Group runs named parts of a process together: if one fails, all stop.
//
// Parts start in the order they were added and stop in the reverse order, each one waited for before the
// next is told to stop: what others rely on is added first and outlives them. The zero Group is ready to
// use; it is used once and by one goroutine.
type Group struct {
	// Log, if set, is told about errors that Run does not return: those that come after the first.
	Log *slog.Logger

	parts []*part
}

type part struct {
	name   string
	run    func(context.Context) error
	ready  func(context.Context) error
	mayEnd bool

	stop context.CancelFunc
	done chan struct{} // closed when run has returned
}

// PartOption says something about a part of a Group.
type PartOption func(*part)

// Until holds back the parts added later until ready returns nil. It is called once, when the part has
// started, and blocks until the part can be used or ctx ends, which it does when a part fails or the group
// is to stop. An error fails the group.
func Until(ready func(ctx context.Context) error) PartOption {
	return func(p *part) { p.ready = ready }
}

// MayEnd lets a part return nil before it is told to stop; the others go on.
func MayEnd() PartOption {
	return func(p *part) { p.mayEnd = true }
}

// Add adds a part. Its run works until its context ends and returns after everything it started has
// ended. That context carries the values of the one given to Run.
func (g *Group) Add(name string, run func(ctx context.Context) error, options ...PartOption) {
	p := &part{name: name, run: run}
	for _, o := range options {
		o(p)
	}
	g.parts = append(g.parts, p)
}

// Run starts the parts and blocks until ctx ends or one of them fails, then until all have ended. It
// returns nil if ctx ended first and every part stopped without an error, otherwise the first error,
// with the name of its part. A part that returns nil before it is told to stop has failed, unless MayEnd.
func (g *Group) Run(ctx context.Context) error {
	running, end := context.WithCancel(ctx) // until ctx ends, a part fails or all have ended
	defer end()

	var (
		mu    sync.Mutex
		first error
		alive = len(g.parts)
	)
	keep := func(err error) { // called as it happens, so the first one is the cause
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
		case first == nil:
			first = err
			end()
		case g.Log != nil:
			g.Log.Warn("another part failed while stopping", "err", err)
		}
	}
	ended := func(p *part, err error) {
		keep(p.verdict(err, running.Err() != nil))
		mu.Lock()
		defer mu.Unlock()
		if alive--; alive == 0 {
			end()
		}
	}

	var started []*part
	for _, p := range g.parts {
		if running.Err() != nil {
			break
		}
		started = append(started, p)
		p.start(ctx, ended)
		if p.ready == nil {
			continue
		}
		if err := p.ready(running); err != nil && running.Err() == nil {
			keep(fmt.Errorf("wait until %s is ready: %w", p.name, err))
		}
	}
	if len(started) > 0 {
		<-running.Done()
	}
	for _, p := range slices.Backward(started) {
		p.stop()
		<-p.done
	}
	return first
}

// start runs the part under a context that ends in the part's turn, not with ctx.
func (p *part) start(ctx context.Context, ended func(*part, error)) {
	ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		ended(p, p.run(ctx))
	}()
}

// verdict is what is wrong about a part that has returned err.
func (p *part) verdict(err error, stopping bool) error {
	switch {
	case err == nil && (stopping || p.mayEnd):
		return nil
	case err == nil:
		return fmt.Errorf("%s %w", p.name, errEndedEarly)
	case stopping && errors.Is(err, context.Canceled):
		return nil
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

var errEndedEarly = errors.New("ended although nobody asked it to stop")
