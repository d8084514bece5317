package sinktest

import (
	"context"
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

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
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

// Shape of what benchmarks write.
const (
	benchNodes, benchPods, benchContainers = 8, 30, 2
	benchTicks                             = 25
)

// Bench measures how fast a sink writes rollups of 8 nodes with 30 pods of 2 containers each: samples/s, and bytes a
// sample as the destination counted them. The first part, write, is Write alone, of batches that are decoded
// already; the second, feed, is all that a worker does: read from a bus in this process, decode, write,
// acknowledge. target is a whole value of --sink; bytes is read before and after, and may be nil.
//
//	func BenchmarkWrite(b *testing.B) {
//		s := sinktest.SwallowHTTP(b, 204, "")
//		suite.Bench(b, "opentsdb:http://"+s.Addr, s.Bytes.Load)
//	}
func (s *Suite) Bench(b *testing.B, target string, bytes func() int64) {
	b.Helper()
	const ticks = 4
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
		for node := range benchNodes {
			r := Node(fmt.Sprintf("node-%03d", node), benchPods, benchContainers, n)
			data, err := enc.Rollup(r)
			if err != nil {
				b.Fatal(err)
			}
			batches[n] = append(batches[n], sink.Message{Rollup: r, ID: worker.MessageID(r), Data: append([]byte(nil), data...)})
			samples += len(s.Names(b, r))
		}
	}
	samples /= ticks
	b.Run(fmt.Sprintf("write/nodes=%d/pods=%d", benchNodes, benchPods), func(b *testing.B) {
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
	b.Run(fmt.Sprintf("feed/nodes=%d/pods=%d", benchNodes, benchPods), func(b *testing.B) {
		s.feed(b, target, float64(samples)/benchNodes)
	})
}

// feed has a worker write what a stream holds, over and over.
func (s *Suite) feed(b *testing.B, target string, perNode float64) {
	b.Helper()
	conn := bustest.Start(b).Conn(b)
	bustest.Provision(b, conn, cluster)
	enc, pub := proto.NewEncoder(), conn.Publisher(bus.PublisherConfig{})
	for n := range benchTicks {
		for node := range benchNodes {
			r := Node(fmt.Sprintf("node-%03d", node), benchPods, benchContainers, n)
			data, err := enc.Rollup(r)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := pub.Publish(b.Context(), bus.Message{Subject: bus.NodeRollupSubject(cluster, r.Name), ID: worker.MessageID(r), Data: data}); err != nil {
				b.Fatal(err)
			}
		}
	}
	t, err := sink.ParseTarget(target)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		if err := conn.RemoveDurable(b.Context(), bus.RollupsStream(cluster), bus.SinkDurable("contract")); err != nil {
			b.Fatal(err)
		}
		registry := prometheus.NewRegistry()
		w, err := worker.New(worker.Config{
			Name: "contract", Kind: s.Kind, Target: t, Clusters: []string{cluster}, Owner: "test",
			SinkDeps: sink.Deps{Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Out: io.Discard},
		}, worker.Deps{Bus: conn, Log: slog.New(slog.DiscardHandler), Telemetry: worker.NewTelemetry(registry)})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		for deadline := time.Now().Add(2 * time.Minute); telemetry(b, registry, "heapstream_sink_rollups_written_total") < benchNodes*benchTicks; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Error("not written within 2 min")
				break
			}
		}
		stop()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(perNode*benchNodes*benchTicks*float64(n)/b.Elapsed().Seconds(), "samples/s")
}
