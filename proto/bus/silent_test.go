package bus_test

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// silence is a way to a server that can fall silent without being cut: as to one that is frozen.
type silence struct {
	lis    net.Listener
	target string
	mute   sync.RWMutex // held for writing while it is silent
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
}

func newSilence(t *testing.T, target string) *silence {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &silence{lis: lis, target: target}
	s.wg.Go(func() {
		for {
			client, err := lis.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			s.mu.Lock()
			s.conns = append(s.conns, client, server)
			s.mu.Unlock()
			for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
				s.wg.Go(func() { _, _ = io.Copy(muted{s, way[0]}, way[1]); way[0].Close() })
			}
		}
	})
	t.Cleanup(func() {
		lis.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

// muted is a connection that nothing is written to while the way is silent.
type muted struct {
	s *silence
	c net.Conn
}

func (m muted) Write(b []byte) (int, error) {
	m.s.mute.RLock()
	defer m.s.mute.RUnlock()
	return m.c.Write(b)
}

// A server that says nothing any more, and whose connections stand, is left for another at the first request that it
// does not answer, and not when the client's pings have given it up, after a minute.
func TestSilentServerIsLeft(t *testing.T) {
	t.Parallel()
	s := bustest.Cluster(t, 3)
	way := newSilence(t, strings.TrimPrefix(s.URLs()[0], "nats://"))
	cfg := bus.DefaultConfig()
	cfg.URLs, cfg.ReconnectWait = []string{"nats://" + way.lis.Addr().String()}, 5*time.Millisecond // the server tells of the others
	c, err := bus.Connect(t.Context(), cfg, bustest.Logger(t))
	must(t, err)
	t.Cleanup(c.Close)
	must(t, c.WaitUp(deadline(t)))
	bus.Quick(c)
	bustest.Provision(t, c, "prod", bustest.Replicas(3))
	first := bus.Raw(c).ConnectedUrl()
	way.mute.Lock()
	defer way.mute.Unlock()
	_, err = c.Publisher(bus.PublisherConfig{}).Publish(deadline(t), bus.Message{Subject: node(1), ID: "1", Data: []byte("x")})
	must(t, err)
	if now := bus.Raw(c).ConnectedUrl(); now == first {
		t.Errorf("the connection is still to %s", now)
	}
}
