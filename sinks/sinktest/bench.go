package sinktest

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/worker"
)

// Swallow is a destination that takes everything, keeps nothing and counts bytes: what a benchmark writes to.
type Swallow struct {
	Addr  string       // host:port
	Bytes atomic.Int64 // that came, headers of requests included
}

// SwallowHTTP answers every request with the same, after it has read all of it.
func SwallowHTTP(tb testing.TB, code int, answer string) *Swallow {
	tb.Helper()
	s := &Swallow{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // what is cut off shows as an error of the sink
		w.WriteHeader(code)
		_, _ = io.WriteString(w, answer)
	}))
	server.Listener = &counting{server.Listener, s}
	server.Start()
	tb.Cleanup(server.Close)
	s.Addr = server.Listener.Addr().String()
	return s
}

// SwallowTCP reads connections and says nothing.
func SwallowTCP(tb testing.TB) *Swallow {
	tb.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Swallow{Addr: lis.Addr().String()}
	counted := &counting{lis, s}
	var readers sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	readers.Go(func() {
		for {
			c, err := counted.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			readers.Go(func() { _, _ = io.Copy(io.Discard, c) })
		}
	})
	tb.Cleanup(func() {
		_ = lis.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		readers.Wait()
	})
	return s
}

// SwallowUDP reads datagrams.
func SwallowUDP(tb testing.TB) *Swallow {
	tb.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Swallow{Addr: c.LocalAddr().String()}
	var reader sync.WaitGroup
	reader.Go(func() {
		for buf := make([]byte, 64<<10); ; {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			s.Bytes.Add(int64(n))
		}
	})
	tb.Cleanup(func() {
		_ = c.Close()
		reader.Wait()
	})
	return s
}

// counting counts what connections read.
type counting struct {
	net.Listener
	s *Swallow
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c, l.s}, nil
}

type countingConn struct {
	net.Conn
	s *Swallow
}

func (c *countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.s.Bytes.Add(int64(n))
	return n, err
}

// Bench measures Write of batches of 8 nodes with 30 pods of 2 containers each, decoded already: samples/s, and
// bytes a sample as the destination counted them. Options go behind target, a whole value of --sink; bytes is
// read before and after, and may be nil.
//
//	func BenchmarkWrite(b *testing.B) {
//		s := sinktest.SwallowHTTP(b, 204, "")
//		suite.Bench(b, "opentsdb:http://"+s.Addr, s.Bytes.Load)
//	}
func (s *Suite) Bench(b *testing.B, target string, bytes func() int64) {
	b.Helper()
	const nodes, pods, containers, ticks = 8, 30, 2, 4
	t, err := sink.ParseTarget(target)
	if err != nil {
		b.Fatal(err)
	}
	one, err := s.Kind.New(t, sink.Deps{
		Cluster: cluster, Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler), Out: io.Discard,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := one.Close(); err != nil {
			b.Error(err)
		}
	}()
	enc := proto.NewEncoder()
	samples := 0
	var batches [ticks][]sink.Message
	for n := range batches {
		for node := range nodes {
			r := Node(fmt.Sprintf("node-%03d", node), pods, containers, n)
			data, err := enc.Rollup(r)
			if err != nil {
				b.Fatal(err)
			}
			batches[n] = append(batches[n], sink.Message{Rollup: r, ID: worker.MessageID(r), Data: append([]byte(nil), data...)})
			samples += len(s.Names(b, r))
		}
	}
	samples /= ticks
	b.Run(fmt.Sprintf("nodes=%d/pods=%d", nodes, pods), func(b *testing.B) {
		b.ReportAllocs()
		from := int64(0)
		if bytes != nil {
			from = bytes()
		}
		n := 0
		for b.Loop() {
			if err := one.Write(b.Context(), batches[n%ticks]); err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(float64(samples)*float64(n)/b.Elapsed().Seconds(), "samples/s")
		if bytes != nil {
			b.ReportMetric(float64(bytes()-from)/float64(samples)/float64(n), "B/sample")
		}
	})
}
