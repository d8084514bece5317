package resourceapi

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// slow is a client that takes as long for a write as its test wants.
type slow struct {
	sink
	asked, took chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	close(s.asked)
	<-s.took
	return s.sink.Write(p)
}

func TestLargeAnswersTakeTurns(t *testing.T) {
	turns := newTurns()
	var working, most atomic.Int32
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			p := &pace{ResponseWriter: &sink{header: http.Header{}}, turns: turns, control: http.NewResponseController(&sink{})}
			ctx := context.WithValue(t.Context(), paceKey{}, p)
			if _, err := turn(ctx); err != nil {
				t.Error(err)
			}
			now := working.Add(1)
			for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
			}
			if _, err := p.Write(make([]byte, 100)); err != nil {
				t.Error(err)
			}
			working.Add(-1)
			p.end()
			p.end()
		})
	}
	all.Wait()
	if int(most.Load()) > cap(turns.free) || len(turns.free) != cap(turns.free) {
		t.Errorf("%d at work at once, %d turns of %d came back", most.Load(), len(turns.free), cap(turns.free))
	}
}

func TestSlowClientGivesItsTurnBack(t *testing.T) {
	for _, watch := range []bool{false, true} {
		turns := &turns{free: make(chan struct{}, 1)}
		turns.give()
		client := &slow{sink: sink{header: http.Header{}}, asked: make(chan struct{}), took: make(chan struct{})}
		p := &pace{ResponseWriter: client, turns: turns, control: http.NewResponseController(client), watch: watch, ctx: t.Context()}
		if !watch {
			if _, err := turn(context.WithValue(t.Context(), paceKey{}, p)); err != nil {
				t.Fatal(err)
			}
		}
		written := make(chan struct{})
		go func() {
			defer close(written)
			if _, err := p.Write([]byte("a")); err != nil {
				t.Error(err)
			}
		}()
		<-client.asked
		// another one gets the turn while the first is being written
		other := &pace{ResponseWriter: &sink{header: http.Header{}}, turns: turns, control: http.NewResponseController(&sink{})}
		if _, err := turn(context.WithValue(t.Context(), paceKey{}, other)); err != nil {
			t.Fatal(err)
		}
		client.took <- struct{}{}
		<-written
		p.end()
		other.end()
		if len(turns.free) != 1 {
			t.Errorf("watch=%t: %d turns came back, want one", watch, len(turns.free))
		}
	}
}

func TestWaitingForATurnEndsWithTheRequest(t *testing.T) {
	p := &pace{turns: &turns{free: make(chan struct{}, 1)}}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), paceKey{}, p))
	cancel()
	if waited, err := turn(ctx); !waited || !apierrors.IsTooManyRequests(err) {
		t.Errorf("waited %t, %v", waited, err)
	}
}

// TestClientsThatDoNotReadHoldNobodyUp has more clients that ask for everything and read nothing than there are turns.
func TestClientsThatDoNotReadHoldNobodyUp(t *testing.T) {
	v := start(t, map[string]Source{"": newFake(10, 30_000)}, nil)
	for range 8 {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := new(net.Dialer).DialContext(ctx, network, address)
				if err == nil {
					err = c.(*net.TCPConn).SetReadBuffer(4096)
				}
				return c, err
			},
		}
		t.Cleanup(transport.CloseIdleConnections)
		resp, err := transport.RoundTrip(v.request("/apis/metrics.k8s.io/v1/pods", "alice"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	if code, body := v.get("/apis/metrics.k8s.io/v1/pods", "alice"); code != http.StatusOK || len(body) < 10<<20 {
		t.Errorf("%d, %d bytes", code, len(body))
	}
	t.Logf("the ninth took %s", time.Since(began))
}
