package modelapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/apigw/historyapi"
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

// Shape of the cluster that is asked: pods are of 50 namespaces in turn, and the first node has a full window at 15 s.
const (
	benchNodes = 1000
	benchPods  = 30
	benchTicks = 60
)

// crowd is the surface over that cluster; it is made once, since it takes a while.
var crowd = sync.OnceValues(func() (*API, error) {
	now := begin.Add(15 * time.Minute)
	v, err := view.New(view.Config{Window: view.DefaultWindow, Own: "prod"}, view.Deps{Now: func() time.Time { return now }})
	if err != nil {
		return nil, err
	}
	c, _ := v.Cluster("prod")
	seq := uint64(0)
	apply := func(r *proto.Rollup, i int) {
		seq++
		r.Cluster, r.Resolution = "prod", 15*time.Second
		r.Tick = proto.Tick(begin.Add(time.Duration(i+1) * 15 * time.Second).UnixMilli())
		c.Apply(r, view.Origin{Seq: seq, Time: r.Tick.Time().Add(time.Second), Live: true})
	}
	measure := func(r *proto.Rollup, row, i int) {
		at := begin.Add(time.Duration(i+1) * 15 * time.Second).UnixNano()
		for id := proto.MetricID(5); id < 41; id++ {
			if m := proto.MetricByID(id); m.Formula == proto.FormulaNone && m.Levels.Has(r.Entities[row].Kind) {
				r.Values.Set(row, id.Field(), int64(1e9)+int64(i*row)*4096*int64(id))
			}
		}
		r.Values.Set(row, proto.FieldStart, at-1e15)
		r.Values.Set(row, proto.CPUUsage.Field(), int64(i+1)*1e9)
		r.Values.Set(row, proto.CPUUsage.Delta(), int64(3e9+i*row))
		for _, g := range []proto.Group{proto.GroupCPU, proto.GroupMemory, proto.GroupNetwork} {
			r.Values.Set(row, g.Span(), 15e9)
			r.Values.Set(row, g.Time(), at)
		}
	}
	for n := range benchNodes {
		first := benchTicks - 1
		if n == 0 {
			first = 0
		}
		for i := first; i < benchTicks; i++ {
			r := &proto.Rollup{Scope: proto.ScopeNode, Name: fmt.Sprintf("node-%04d", n)}
			measure(r, r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: r.Name, Hostname: r.Name, Parent: -1, Labels: []proto.Label{{Key: "zone", Value: fmt.Sprint(n % 3)}}}), i)
			measure(r, r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet", Parent: 0}), i)
			for p := range benchPods {
				pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprintf("ns-%02d", (n*benchPods+p)%50), Name: fmt.Sprintf("web-%04d-%02d", n, p), Parent: 0, Phase: proto.PhaseRunning,
					UID: fmt.Sprintf("3c7ffb09-7a7d-4a6b-%04d-%012d", n, p), Labels: []proto.Label{{Key: "app", Value: fmt.Sprint("app-", p%7)}, {Key: "tier", Value: "web"}}})
				measure(r, pod, i)
				for k := range 2 {
					row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", k), Image: "nginx", Parent: int32(pod), Flags: proto.FlagRunning})
					measure(r, row, i)
					d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: "/"})
					r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), int64(4096*i*row))
				}
			}
			apply(r, i)
		}
	}
	for ns := range 50 {
		for i := range benchTicks {
			r := &proto.Rollup{Scope: proto.ScopeNamespace, Name: fmt.Sprintf("ns-%02d", ns)}
			r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Name: r.Name, Parent: -1})
			r.Values.Set(0, proto.MemoryUsage.Field(), int64(i)*4096)
			apply(r, i)
		}
	}
	for i := range benchTicks {
		r := &proto.Rollup{Scope: proto.ScopeTotals}
		r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
		r.Values.Set(0, proto.MemoryUsage.Field(), int64(i)*4096)
		apply(r, i)
	}
	return New(Config{Cluster: "prod"}, Deps{View: v, History: historyapi.New(historyapi.NewWindow(v), nil, func() time.Time { return now })})
})

// BenchmarkEndpoints answers every path of the surface, without the network: the CPU and memory of one request.
func BenchmarkEndpoints(b *testing.B) {
	a, err := crowd()
	if err != nil {
		b.Fatal(err)
	}
	c, _ := a.deps.View.Cluster("prod")
	list := strings.Join(c.PodNames("ns-07"), ",")
	since := "?start=" + begin.Format(time.RFC3339)
	for _, e := range []struct{ name, path string }{
		{"health", "/healthz"}, {"clusters", "/clusters/"},
		{"nodes", "/api/v1/model/nodes/"}, {"namespaces", "/api/v1/model/namespaces/"}, {"pods=600", "/api/v1/model/namespaces/ns-07/pods/"},
		{"containers", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/containers/"}, {"freecontainers", "/api/v1/model/nodes/node-0000/freecontainers/"},
		{"allkeys", "/api/v1/model/debug/allkeys"}, {"metric-names", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/metrics/"},
		{"series=cluster", "/api/v1/model/metrics/memory/usage"}, {"series=node", "/api/v1/model/nodes/node-0000/metrics/memory/usage"},
		{"series=pod", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/metrics/memory/usage"}, {"series=rate", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/metrics/cpu/usage_rate"},
		{"series=float", "/api/v1/model/nodes/node-0000/metrics/cpu/node_utilization"},
		{"series=container", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/containers/c1/metrics/memory/usage"},
		{"series=labelled", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/containers/c1/metrics/filesystem/usage?labels=resource_id:/"},
		{"series=two-minutes", "/api/v1/model/namespaces/ns-07/pods/web-0000-07/metrics/memory/usage?start=" + begin.Add(13*time.Minute).Format(time.RFC3339)},
		{"pod-list=600", "/api/v1/model/namespaces/ns-07/pod-list/" + list + "/metrics/cpu/usage_rate"},
		{"export", "/api/v1/metric-export"}, {"schema", "/api/v1/metric-export-schema"},
		{"usage=nodes", "/apis/metrics/v1alpha1/nodes"}, {"usage=node", "/apis/metrics/v1alpha1/nodes/node-0500"}, {"usage=pods", "/apis/metrics/v1alpha1/pods"},
		{"usage=selected-pods", "/apis/metrics/v1alpha1/pods?labelSelector=app%3Dapp-3"}, {"usage=pods-600", "/apis/metrics/v1alpha1/namespaces/ns-07/pods"},
		{"usage=pods-600-v1", "/apis/metrics.k8s.io/v1/namespaces/ns-07/pods"}, {"usage=pod", "/apis/metrics/v1alpha1/namespaces/ns-07/pods/web-0000-07"},
		{"historical=series", "/api/v1/historical/namespaces/ns-07/pods/web-0000-07/metrics/memory/usage" + since},
		{"historical=uid", "/api/v1/historical/pod-id/3c7ffb09-7a7d-4a6b-0000-000000000007/metrics/memory/usage" + since},
		{"historical=aggregated", "/api/v1/historical/namespaces/ns-07/pods/web-0000-07/metrics-aggregated/average,max,99-perc/memory/usage" + since + "&bucket=1m"},
	} {
		b.Run(e.name, func(b *testing.B) {
			r, err := http.NewRequest(http.MethodGet, "http://x"+e.path, nil)
			if err != nil {
				b.Fatal(err)
			}
			w := &nowhere{h: http.Header{}}
			a.ServeHTTP(w, r)
			if w.status != http.StatusOK || w.n == 0 {
				b.Fatalf("%s: status %d, %d bytes", e.path, w.status, w.n)
			}
			size := w.n
			b.ReportAllocs()
			for b.Loop() {
				clear(w.h)
				a.ServeHTTP(w, r)
			}
			b.ReportMetric(float64(size), "B/answer")
		})
	}
}

// nowhere counts what is written.
type nowhere struct {
	h      http.Header
	status int
	n      int
}

func (n *nowhere) Header() http.Header { return n.h }
func (n *nowhere) Write(b []byte) (int, error) {
	n.n += len(b)
	return len(b), nil
}
func (n *nowhere) WriteHeader(status int) { n.status = status }

// BenchmarkOnePodsSeries asks for the 60 points of one pod over one connection, one request after the other, as a
// dashboard does. The client is as cheap as one can be, since it shares the machine: it sends the same bytes again and
// reads as many as the first answer had.
func BenchmarkOnePodsSeries(b *testing.B) {
	a, err := crowd()
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

	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	request := []byte("GET /api/v1/model/namespaces/ns-07/pods/web-0000-07/metrics/memory/usage HTTP/1.1\r\nHost: x\r\n\r\n")
	read := bufio.NewReaderSize(conn, 64<<10)
	ask := func() (size int) { // parses the answer
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		head, err := read.Peek(512)
		if err != nil {
			b.Fatal(err)
		}
		end := bytes.Index(head, []byte("\r\n\r\n")) + 4
		_, length, ok := bytes.Cut(head[:end], []byte("Content-Length: "))
		if !ok || !bytes.HasPrefix(head, []byte("HTTP/1.1 200")) {
			b.Fatalf("%s", head)
		}
		length, _, _ = bytes.Cut(length, []byte("\r\n"))
		n, err := strconv.Atoi(string(length))
		if err != nil || n < 60*60 {
			b.Fatalf("%s", head)
		}
		if _, err := read.Discard(end + n); err != nil {
			b.Fatal(err)
		}
		return end + n
	}
	size := ask()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, read, int64(size)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "series/s")
	if ask() != size { // every answer was of that size, or this would read into the middle of one
		b.Fatal("answers were not alike")
	}
}

// BenchmarkRollupToView applies rollups at a steady pace and measures how long each takes, with nobody asking and with
// so many clients that ask for everything again and again, compressed and not. What they take turns for is this.
func BenchmarkRollupToView(b *testing.B) {
	a, err := crowd()
	if err != nil {
		b.Fatal(err)
	}
	c, _ := a.deps.View.Cluster("prod")
	for _, clients := range []int{0, 64} {
		b.Run(fmt.Sprintf("lists=%d", clients), func(b *testing.B) {
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(context.Background())
			for i := range clients {
				path := []string{"/api/v1/metric-export", "/apis/metrics/v1alpha1/pods", "/api/v1/model/debug/allkeys"}[i%3]
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://x"+path, nil)
				if err != nil {
					b.Fatal(err)
				}
				if i%2 == 0 {
					r.Header.Set("Accept-Encoding", "gzip")
				}
				wg.Go(func() {
					for ctx.Err() == nil {
						a.ServeHTTP(&nowhere{h: http.Header{}}, r)
					}
				})
			}
			pace := time.NewTicker(2 * time.Millisecond)
			defer pace.Stop()
			var took []time.Duration
			for b.Loop() {
				due := <-pace.C
				r := &proto.Rollup{Scope: proto.ScopeNamespace, Cluster: "prod", Name: "ns-00", Resolution: 15 * time.Second}
				r.Tick = c.Newest() // nothing new: the work is the same, and the next run finds the same cluster
				r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Name: "ns-00", Parent: -1})
				c.Apply(r, view.Origin{Seq: c.Seq() + 1, Time: c.Now()})
				took = append(took, time.Since(due))
			}
			cancel()
			wg.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
		})
	}
}
