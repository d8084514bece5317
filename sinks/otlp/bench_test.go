package otlp

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	hs "github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// BenchmarkEncode compares the encoder with the generated code, which is given the messages ready made: building them
// is not measured.
func BenchmarkEncode(b *testing.B) {
	r := sinktest.Node("node-1", 30, 2, 1)
	s := build(b, "otlp:http://h")
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		samples := 0
		for b.Loop() {
			encoded(s, r)
			for i := range s.blocks.all {
				samples += s.blocks.all[i].samples
			}
		}
		b.ReportMetric(float64(samples)/b.Elapsed().Seconds(), "samples/s")
	})
	var request collector.ExportMetricsServiceRequest
	if err := proto.Unmarshal(encoded(s, r), &request); err != nil {
		b.Fatal(err)
	}
	samples := countOf(b, r)
	b.Run("library, marshal alone", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		n := 0
		for b.Loop() {
			out, err := proto.MarshalOptions{}.MarshalAppend(buf[:0], &request)
			if err != nil {
				b.Fatal(err)
			}
			buf = out
			n++
		}
		b.ReportMetric(float64(samples)*float64(n)/b.Elapsed().Seconds(), "samples/s")
	})
}

func countOf(tb testing.TB, r *hs.Rollup) (n int) {
	s := build(tb, "otlp:http://h")
	encoded(s, r)
	for i := range s.blocks.all {
		n += s.blocks.all[i].samples
	}
	return n
}

func BenchmarkWrite(b *testing.B) {
	bySample := *suite
	bySample.Names = func(tb testing.TB, r *hs.Rollup) []string { return make([]string, countOf(tb, r)) }
	for _, protocol := range []string{"http", "grpc"} {
		for _, compression := range []string{"none", "gzip"} {
			b.Run(protocol+"/"+compression, func(b *testing.B) {
				var n atomic.Int64
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body) // what is cut off shows as an error of the sink
					if protocol == "grpc" {
						overGRPC{w: w}.ok(&collector.ExportMetricsServiceResponse{})
					}
				}))
				server.Config.Protocols = new(http.Protocols)
				server.Config.Protocols.SetHTTP1(true)
				server.Config.Protocols.SetUnencryptedHTTP2(true)
				server.Listener = &counted{server.Listener, &n}
				server.Start()
				b.Cleanup(server.Close)
				bySample.Bench(b, "otlp:"+server.URL+"?protocol="+protocol+"&compression="+compression, n.Load)
			})
		}
	}
}

// counted counts what comes.
type counted struct {
	net.Listener
	n *atomic.Int64
}

func (c *counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{conn, c.n}, nil
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}
