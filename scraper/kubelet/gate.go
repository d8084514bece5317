package kubelet

import (
	"context"
	"sync"
	"time"
)

// gate lets few in at a time, in the order they came, so that thousands of kubelets that are asked
// at once do not make each other late: the processor's time goes to those who can finish. Nobody
// holds a place for long by hanging: after patience it is given to the next.
type gate struct {
	places   chan struct{}
	patience time.Duration
}

func newGate(places int, patience time.Duration) *gate {
	return &gate{places: make(chan struct{}, places), patience: patience}
}

// place is one place of a gate.
type place struct {
	g     *gate
	once  sync.Once
	timer *time.Timer
}

// enter waits for a place, or for ctx to end, which is its error.
func (g *gate) enter(ctx context.Context) (*place, error) {
	select {
	case g.places <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p := &place{g: g}
	p.timer = time.AfterFunc(g.patience, p.free)
	return p, nil
}

// keep makes the place last until leave.
func (p *place) keep() { p.timer.Stop() }

// leave gives the place back; it may be called when it is gone already.
func (p *place) leave() {
	p.timer.Stop()
	p.free()
}

func (p *place) free() { p.once.Do(func() { <-p.g.places }) }
