package simcluster

import (
	"net"
	"sync"
	"time"
)

// front knows the connections of the API server's clients, so that they can be cut.
type front struct {
	mu    sync.Mutex
	conns map[*frontConn]struct{}
	back  time.Time // when connections are taken again
}

// frontConn is a connection of a client.
type frontConn struct {
	net.Conn
	of *front
}

// frontListener hands out the connections that the front lets in.
type frontListener struct {
	net.Listener
	of *front
}

func (f *front) listener(l net.Listener) net.Listener { return frontListener{l, f} }

// Accept closes what comes while the API server is away: the client sees its connection end.
func (l frontListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.of.let(conn); c != nil {
			return c, nil
		}
		conn.Close()
	}
}

// let takes a connection in; nil while the API server is away.
func (f *front) let(conn net.Conn) net.Conn {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Now().Before(f.back) {
		return nil
	}
	if f.conns == nil {
		f.conns = map[*frontConn]struct{}{}
	}
	c := &frontConn{conn, f}
	f.conns[c] = struct{}{}
	return c
}

func (c *frontConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// cut ends all connections, and lets none in for a while.
func (f *front) cut(away time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.back = time.Now().Add(away)
	for c := range f.conns {
		c.Conn.Close() // the server sees it, and closes c
	}
}

// RestartAPIServer does what a restart of the API server and a compaction of etcd do to its clients: all connections
// are cut at once, none is taken for as long as it is away, and the changes of before are forgotten (see Forget). Kubelets
// answer on.
func (c *Cluster) RestartAPIServer(away time.Duration) {
	c.front.cut(away)
	c.Forget()
}
