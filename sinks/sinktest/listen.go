package sinktest

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Listener is a listener whose connections have those moods that are the
// network's: Down, Stalled, HangsUp, CutsOff. In every other mood it is an ordinary one.
type Listener struct {
	net.Listener

	bytes atomic.Int64

	mu      sync.Mutex
	mood    Mood
	changed chan struct{} // closed when the mood changes
	conns   map[*conn]bool
}

// Listen listens on a free port of this machine until the test ends.
func Listen(tb testing.TB) *Listener {
	tb.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	l := Wrap(lis)
	tb.Cleanup(func() {
		_ = l.Close()
		l.Behave(Down)
	})
	return l
}

// Wrap gives a listener moods.
func Wrap(lis net.Listener) *Listener {
	return &Listener{Listener: lis, changed: make(chan struct{}), conns: map[*conn]bool{}}
}

// Behave changes the mood, of connections that are open too.
func (l *Listener) Behave(m Mood) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mood = m
	close(l.changed)
	l.changed = make(chan struct{})
	for c := range l.conns {
		c.left = cut
		if m == Down {
			_ = c.Conn.Close()
			delete(l.conns, c)
		}
	}
}

// Accept waits for a connection; while the mood is Down each is closed at once.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		if l.mood == Down {
			_ = c.Close()
			l.mu.Unlock()
			continue
		}
		one := &conn{Conn: c, l: l, left: cut}
		l.conns[one] = true
		l.mu.Unlock()
		return one, nil
	}
}

// cut is how much of what is written comes through in the mood CutsOff: more than the head of a request, less
// than what a rollup makes.
const cut = 700

type conn struct {
	net.Conn
	l    *Listener
	left int // of cut; under l.mu
}

var errCut = errors.New("the test closes the connection")

// Read reads as the mood allows.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.bytes.Add(int64(n))
	c.l.mu.Lock()
	mood, changed := c.l.mood, c.l.changed
	if mood == CutsOff {
		n = min(n, c.left)
		c.left -= n
	}
	ends := mood == CutsOff && c.left == 0 || mood == HangsUp && n > 0
	c.l.mu.Unlock()
	switch {
	case mood == Stalled && n > 0:
		<-changed // what was asked before is not answered
		ends, n = true, 0
	case mood == HangsUp:
		n = 0
	}
	if ends {
		_ = c.Close()
		return n, errCut
	}
	return n, err
}

// Close closes the connection.
func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	cutting := c.l.mood == CutsOff
	c.l.mu.Unlock()
	if tcp, ok := c.Conn.(*net.TCPConn); ok && cutting {
		_ = tcp.SetLinger(0) // what was not read is refused, and the writer hears of it
	}
	return c.Conn.Close()
}

// Bytes is how many were read of all connections.
func (l *Listener) Bytes() int64 { return l.bytes.Load() }
