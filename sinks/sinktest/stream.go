package sinktest

import (
	"crypto/tls"
	"encoding/pem"
	"maps"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Stream is a destination that takes a stream of bytes over TCP: the part of a [Backend] that all of them
// have. Take is what tells them apart.
type Stream struct {
	// Take serves one connection until it ends. It must check all that the destination checks, and name what it
	// stored by Store. Mood says how it is to behave at the moment; a connection that begins in the moods
	// Stalled and HangsUp does not come here. Several connections are served at once.
	Take func(c net.Conn)

	addr string
	net  *Listener
	ca   string

	mu      sync.Mutex
	mood    Mood
	changed chan struct{} // closed when the mood changes
	holds   map[string]int
}

// StartStream starts s on a free port until the test ends.
func StartStream(tb testing.TB, r Reach, s *Stream) *Stream {
	tb.Helper()
	s.net, s.holds, s.changed = Listen(tb), map[string]int{}, make(chan struct{})
	s.addr = s.net.Addr().String()
	var lis net.Listener = s.net
	if r.TLS {
		pair := httptest.NewUnstartedServer(nil) // for its certificate
		pair.StartTLS()
		config := pair.TLS.Clone()
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate().Raw})
		pair.Close()
		s.ca = filepath.Join(tb.TempDir(), "ca.pem")
		if err := os.WriteFile(s.ca, cert, 0o600); err != nil {
			tb.Fatal(err)
		}
		config.NextProtos = nil
		lis = tls.NewListener(s.net, config)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				switch s.Mood() {
				case Stalled:
					s.Stall()
				case HangsUp:
				default:
					s.Take(c)
				}
			})
		}
	})
	tb.Cleanup(func() {
		_ = s.net.Close()
		s.Behave(Down)
		serving.Wait()
	})
	return s
}

// Addr is where the destination listens: host:port.
func (s *Stream) Addr() string { return s.addr }

// Options are the options of a target that fit the mood and the reach: timeout, cacert.
func (s *Stream) Options(r Reach) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	options := "timeout=10s"
	if s.mood == Stalled {
		options = "timeout=300ms"
	}
	if r.TLS && !r.Untrusted {
		options += "&cacert=" + s.ca
	}
	return options
}

// Mood is the present mood.
func (s *Stream) Mood() Mood {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mood
}

// Behave changes the mood.
func (s *Stream) Behave(m Mood) {
	s.mu.Lock()
	s.mood = m
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if m != Stalled && m != HangsUp { // what is closed with bytes unread is reset, so that the sink hears of it
		s.net.Behave(m)
	}
}

// Stall waits until the mood changes from Stalled.
func (s *Stream) Stall() {
	s.mu.Lock()
	mood, changed := s.mood, s.changed
	s.mu.Unlock()
	if mood == Stalled {
		<-changed
	}
}

// Store notes that samples of these names are written; where once is set, those that are there already stay
// as they are.
func (s *Stream) Store(once bool, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if once {
			s.holds[name] = 1
		} else {
			s.holds[name]++
		}
	}
}

// Holds is what was stored.
func (s *Stream) Holds() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.holds)
}
