package tcp

import (
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a destination that serve is run for, once for each connection.
func peer(t *testing.T, serve func(*net.TCPConn)) *Peer {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serve(conn.(*net.TCPConn))
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = lis.Close(); <-done })
	return &Peer{Who: "Test", Address: lis.Addr().String(), Confirm: true}
}

func TestDeliveredMeansRead(t *testing.T) {
	var got atomic.Int64
	data := make([]byte, 4<<20)
	p := peer(t, func(c *net.TCPConn) { b, _ := io.ReadAll(c); got.Add(int64(len(b))) })
	if err := p.Deliver(t.Context(), data); err != nil || got.Load() != int64(len(data)) {
		t.Fatalf("%d bytes of %d read, %v", got.Load(), len(data), err)
	}
	// One that closes before it has read everything did not take it.
	p = peer(t, func(c *net.TCPConn) { _, _ = io.ReadFull(c, make([]byte, 100)) })
	if err := p.Deliver(t.Context(), data[:10000]); err == nil {
		t.Fatal("delivered, though 100 bytes of 10000 were read")
	}
	p = peer(t, func(c *net.TCPConn) { _, _ = io.ReadAll(c); _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n")) })
	if err := p.Deliver(t.Context(), data[:10]); err == nil || !strings.Contains(err.Error(), "HTTP/1.1 400") {
		t.Fatalf("an answer is taken for an orderly end: %v", err)
	}
}

// TestDeathBetweenTwoReadsIsNoEnd: the destination ends its half with nothing unread, before the rest has
// come.
func TestDeathBetweenTwoReadsIsNoEnd(t *testing.T) {
	p := peer(t, func(c *net.TCPConn) { _, _ = io.ReadFull(c, make([]byte, 1<<20)) })
	for range 20 {
		if err := p.Deliver(t.Context(), make([]byte, 2<<20)); err == nil {
			t.Fatal("delivered, though half was read")
		}
	}
}

func TestDeadlineEndsWaiting(t *testing.T) {
	release := make(chan struct{})
	p := peer(t, func(c *net.TCPConn) { _, _ = io.ReadAll(c); <-release })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // enough to connect
	defer cancel()
	if err := p.Deliver(ctx, []byte("x\n")); err == nil || !strings.Contains(err.Error(), "no answer in time") || !strings.Contains(err.Error(), "confirm=false") {
		t.Fatalf("got %v", err)
	}
	p.Confirm = false
	if err := p.Deliver(t.Context(), []byte("x\n")); err != nil {
		t.Fatal(err)
	}
	close(release)
}

func TestCancelledContextEndsWaiting(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := peer(t, func(c *net.TCPConn) {
		_, _ = io.ReadAll(c)
		cancel()
		_, _ = c.Read(make([]byte, 1))
		<-t.Context().Done()
	})
	done := make(chan error, 1)
	go func() { done <- p.Deliver(ctx, []byte("x\n")) }()
	if err := <-done; err == nil {
		t.Fatal("delivered after its context ended")
	}
}
