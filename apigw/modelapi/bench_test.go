package modelapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// pointsOf makes points of what was recorded.
func pointsOf(in []struct {
	Timestamp time.Time
	Value     uint64
}) (out []window.Point) {
	for _, p := range in {
		out = append(out, window.Point{Tick: proto.Tick(p.Timestamp.UnixMilli()), Value: proto.Int(int64(p.Value))})
	}
	return out
}

// BenchmarkOnePodsSeries asks for the 60 points of one pod over one connection, as a dashboard does.
func BenchmarkOnePodsSeries(b *testing.B) {
	now := begin.Add(15 * time.Minute)
	v, err := view.New(view.Config{Window: view.DefaultWindow, Own: "prod"}, view.Deps{Now: func() time.Time { return now }})
	if err != nil {
		b.Fatal(err)
	}
	c, _ := v.Cluster("prod")
	for i := range 60 {
		r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "prod", Name: "node-0", Resolution: 15 * time.Second,
			Tick: proto.Tick(begin.Add(time.Duration(i+1) * 15 * time.Second).UnixMilli())}
		r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: "node-0", Parent: -1})
		for p := range 30 {
			pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "shop", Name: fmt.Sprint("web-", p), Parent: 0, Phase: proto.PhaseRunning})
			for n := range 2 {
				r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", n), Parent: int32(pod), Flags: proto.FlagRunning})
			}
		}
		for row := range r.Entities {
			for f := range 40 {
				r.Values.Set(row, proto.Field(5+f%10), int64(1e9+i*row*f*4096))
			}
			r.Values.Set(row, proto.MemoryUsage.Field(), int64(1e9+i*row*4096))
		}
		c.Apply(r, view.Origin{Seq: uint64(i), Time: r.Tick.Time(), Live: true})
	}
	a, err := New(Config{Cluster: "prod"}, Deps{View: v})
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() { _ = server.Shutdown(context.Background()); <-done }()

	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	url := "http://" + listener.Addr().String() + "/api/v1/model/namespaces/shop/pods/web-7/metrics/memory/usage"
	buf := make([]byte, 64<<10)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for {
			m, err := resp.Body.Read(buf)
			n += m
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		resp.Body.Close()
		if n < 60*60 {
			b.Fatalf("%d bytes", n)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "series/s")
}

// BenchmarkServeSeries is the same without the network and its client.
func BenchmarkServeSeries(b *testing.B) {
	a := filled(b)
	r, err := http.NewRequest(http.MethodGet, "http://x/api/v1/model/namespaces/shop/pods/web-0/metrics/memory/usage", nil)
	if err != nil {
		b.Fatal(err)
	}
	w := nowhere{http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.h)
		a.ServeHTTP(w, r)
	}
}

type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}
