package sinktest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
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

// SwallowTCP reads connections to their end, ends its half then, which is how a sink knows that all was read, and says
// nothing.
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
	open := map[net.Conn]bool{}
	readers.Go(func() {
		for {
			c, err := counted.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			readers.Go(func() {
				_, _ = io.Copy(io.Discard, c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
				_ = c.Close()
			})
		}
	})
	tb.Cleanup(func() {
		_ = lis.Close()
		mu.Lock()
		for c := range open {
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

// benchNode is Node of which the pods are its own: two nodes with a pod of one uid would be series that change hands at
// every tick.
func benchNode(node, n int) *proto.Rollup {
	r := Node(fmt.Sprintf("node-%03d", node), benchPods, benchContainers, n)
	pod := node * benchPods
	for i := range r.Entities {
		if e := &r.Entities[i]; e.Kind == proto.KindPod {
			e.Name, e.UID = fmt.Sprintf("web-7d8f9c-%05d", pod), fmt.Sprintf("c0ffee00-0000-4000-8000-%012d", pod)
			pod++
		}
	}
	return r
}

// Bench measures how fast a sink writes rollups of 8 nodes with 30 pods of 2 containers each: samples/s; wireB/sample, as
// the destination counted them; and B/sample, what is allocated. Samples are those that the sink makes of the rollups.
// The first part, write, is Write alone, of batches that are decoded already; the second, feed, is all that a worker
// does: read from a bus in this process, decode, write, acknowledge. It is left out with -short:
//
//	go test -run xxx -bench BenchmarkWrite -short ./sinks/...
//
// target is a whole value of --sink; bytes is read before and after, and is nil for what is written to Deps.Out.
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
	var out counter
	if bytes == nil {
		bytes = out.n.Load
	}
	one, err := s.Kind.New(t, sink.Deps{
		Cluster: cluster, Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler), Out: &out,
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
			r := benchNode(node, n)
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
		write, done := guarded(b, one)
		defer done()
		write(batches[0]) // connections and buffers are there from now on
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		from, n := bytes(), 0
		for b.Loop() {
			write(batches[n%ticks])
			n++
		}
		runtime.ReadMemStats(&after)
		all := float64(samples) * float64(n)
		b.ReportMetric(all/b.Elapsed().Seconds(), "samples/s")
		b.ReportMetric(float64(bytes()-from)/all, "wireB/sample")
		b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/all, "B/sample")
	})
	if testing.Short() {
		return
	}
	b.Run(fmt.Sprintf("feed/nodes=%d/pods=%d", benchNodes, benchPods), func(b *testing.B) {
		s.feed(b, target, float64(samples)/benchNodes)
	})
}

// benchPatience bounds a wait of a benchmark: go test's own -timeout does not run while benchmarks do.
const benchPatience = 2 * time.Minute

// guarded is Write that fails the benchmark where the destination refuses, or does not answer within benchPatience;
// done ends the guard. A Write costs no allocation more than without it.
func guarded(b *testing.B, one sink.Sink) (write func([]sink.Message), done func()) {
	b.Helper()
	ctx, cancel := context.WithCancelCause(b.Context())
	guard := time.AfterFunc(benchPatience, func() { cancel(fmt.Errorf("not written within %v", benchPatience)) })
	write = func(batch []sink.Message) {
		guard.Reset(benchPatience)
		if err := one.Write(ctx, batch); err != nil {
			b.Fatal(err, context.Cause(ctx))
		}
	}
	return write, func() {
		guard.Stop()
		cancel(nil)
	}
}

// counter counts what is written.
type counter struct{ n atomic.Int64 }

// Write takes all.
func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// feed has a worker write what a stream holds, over and over.
func (s *Suite) feed(b *testing.B, target string, perNode float64) {
	b.Helper()
	conn := bustest.Start(b).Conn(b)
	bustest.Provision(b, conn, cluster)
	enc, pub := proto.NewEncoder(), conn.Publisher(bus.PublisherConfig{})
	for n := range benchTicks {
		for node := range benchNodes {
			r := benchNode(node, n)
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
	n := feed(b, conn, bus.RollupsStream(cluster), benchNodes*benchTicks, worker.Config{Kind: s.Kind, Target: t})
	b.ReportMetric(perNode*benchNodes*benchTicks*float64(n)/b.Elapsed().Seconds(), "samples/s")
}

// feed has a worker write the messages that a stream holds, from the first to the last, n times.
func feed(b *testing.B, conn *bus.Conn, stream string, messages int, cfg worker.Config) (n int) {
	b.Helper()
	cfg.Name, cfg.Clusters, cfg.Owner = "contract", []string{cluster}, "test"
	cfg.SinkDeps = sink.Deps{Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Out: io.Discard}
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := conn.RemoveDurable(b.Context(), stream, bus.SinkDurable(cfg.Name)); err != nil {
			b.Fatal(err)
		}
		registry := prometheus.NewRegistry()
		w, err := worker.New(cfg, worker.Deps{Bus: conn, Log: slog.New(slog.DiscardHandler), Telemetry: worker.NewTelemetry(registry)})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		written := func() float64 { return telemetry(b, registry, "heapstream_sink_messages_written_total") }
		for deadline := time.Now().Add(benchPatience); written() < float64(messages); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Errorf("%v of %d messages written within %v", written(), messages, benchPatience)
				break
			}
		}
		stop()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
		if b.Failed() {
			break
		}
	}
	return n
}
