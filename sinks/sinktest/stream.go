package sinktest

import (
	"bufio"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"regexp"
	"sync"
	"testing"
	"time"
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
	tls  *TLS

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
		s.tls = NewTLS(tb, r)
		lis = tls.NewListener(s.net, s.tls.Config())
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

// Bytes is how many came.
func (s *Stream) Bytes() int64 { return s.net.Bytes() }

// StartLines starts a destination that takes lines and never says a word: those that match format, named by identity,
// of which one that comes again takes the place of the first.
func StartLines(tb testing.TB, r Reach, format *regexp.Regexp, identity func(line string) string) *Stream {
	tb.Helper()
	s := &Stream{}
	s.Take = func(c net.Conn) {
		if s.Mood() == Garbage {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			return
		}
		for sc := bufio.NewScanner(c); sc.Scan(); {
			mood := s.Mood()
			if mood == CutsOff {
				continue // the last one may be half a line
			}
			if !format.MatchString(sc.Text()) {
				tb.Errorf("a line is not taken: %q", sc.Text())
			}
			if mood == Slow && len(s.Holds())%50 == 0 {
				time.Sleep(time.Millisecond)
			}
			s.Store(true, identity(sc.Text()))
		}
	}
	return StartStream(tb, r, s)
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
		options += "&cacert=" + s.tls.CAFile
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

// Repair ends the fault.
func (s *Stream) Repair() {
	if s.tls != nil {
		s.tls.Repair()
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
