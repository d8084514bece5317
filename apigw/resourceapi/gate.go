package resourceapi

import (
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/server/healthz"
)

// trustWait bounds how long nobody is let in for want of the front proxy's CA: without one, tokens and client
// certificates are still good.
const trustWait = 5 * time.Second

// gate is a listener that accepts nobody until the front proxy's CA is known. The library learns it only after it has
// begun to serve, and would meanwhile take the API server, and so whoever asks through it, for nobody.
type gate struct {
	net.Listener
	known healthz.HealthChecker

	once   sync.Once // the first Accept waits
	closed chan struct{}
	close  sync.Once
}

func newGate(l net.Listener, known healthz.HealthChecker) *gate {
	return &gate{Listener: l, known: known, closed: make(chan struct{})}
}

// Accept blocks until somebody connects, and the first time also until the CA is known, trustWait has passed or the
// listener is closed.
func (g *gate) Accept() (net.Conn, error) {
	g.once.Do(g.wait)
	return g.Listener.Accept()
}

func (g *gate) wait() {
	end := time.NewTimer(trustWait)
	defer end.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for g.known.Check(&http.Request{}) != nil {
		select {
		case <-look.C:
		case <-end.C:
			return
		case <-g.closed:
			return
		}
	}
}

// Close closes the listener and ends the wait.
func (g *gate) Close() error {
	g.close.Do(func() { close(g.closed) })
	return g.Listener.Close()
}
