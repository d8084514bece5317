//go:build linux

package e2e

import (
	"net"
	"sync"
	"testing"
)

// wire is a TCP connection's way from a client to a server, which can fail: what a network does, and no process.
type wire struct {
	addr   string // where clients dial
	target string

	mu    sync.Mutex
	turn  *sync.Cond // of mu: stop or mode has changed
	there bool       // bytes pass to the server
	back  bool       // bytes pass to the client
	ended bool
	conns map[net.Conn]bool
	held  chan struct{} // has one where an answer is being held back

	lis net.Listener
	wg  sync.WaitGroup
}

// newWire starts a wire to a server, which ends with the test.
func newWire(t *testing.T, target string) *wire {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0") // it listens all the time
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{addr: lis.Addr().String(), target: target, lis: lis, there: true, back: true, conns: map[net.Conn]bool{}, held: make(chan struct{}, 1)}
	w.turn = sync.NewCond(&w.mu)
	w.wg.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

// hole lets nothing through in either direction, and breaks nothing: it arrives when the wire passes again.
func (w *wire) hole() { w.set(false, false) }

// hold lets requests through and holds the answers back.
func (w *wire) hold() {
	select {
	case <-w.held: // of last time
	default:
	}
	w.set(true, false)
}

// pass lets everything through.
func (w *wire) pass() { w.set(true, true) }

func (w *wire) set(there, back bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.there, w.back = there, back
	w.turn.Broadcast()
}

func (w *wire) close() {
	w.mu.Lock()
	w.ended = true
	for c := range w.conns {
		c.Close()
	}
	w.turn.Broadcast()
	w.mu.Unlock()
	w.lis.Close()
	w.wg.Wait()
}

func (w *wire) accept() {
	for {
		client, err := w.lis.Accept()
		if err != nil {
			return
		}
		w.wg.Go(func() { w.serve(client) })
	}
}

// own takes a connection into the account; false where the wire has ended.
func (w *wire) own(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) serve(client net.Conn) {
	if !w.own(client) || !w.await(true) { // through a hole nobody is reached
		return
	}
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		w.drop(client)
		return
	}
	if !w.own(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.copy(server, client, true) })
	both.Go(func() { w.copy(client, server, false) })
	both.Wait()
}

// await blocks until bytes may pass in a direction; false where the wire has ended.
func (w *wire) await(there bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.ended && (there && !w.there || !there && !w.back) {
		if !there && w.there {
			select {
			case w.held <- struct{}{}:
			default:
			}
		}
		w.turn.Wait()
	}
	return !w.ended
}

func (w *wire) copy(to, from net.Conn, there bool) {
	defer w.drop(to)
	defer w.drop(from)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !w.await(there) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			w.await(there) // the end is news as well
			return
		}
	}
}

func (w *wire) drop(c net.Conn) {
	c.Close()
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}
