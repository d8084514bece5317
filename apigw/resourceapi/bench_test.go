package resourceapi

import (
	"bytes"
	"context"
	"crypto/tls"
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

	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/heapstream/heapstream/apigw/view"
)

// newHandler is the real handler chain, with everybody let in: 1000 nodes, 30,000 pods of 2 containers.
func newHandler(b *testing.B) http.Handler {
	b.Helper()
	source := newFake(1000, 30_000)
	s, err := New(DefaultConfig(), Deps{
		Log: slog.New(slog.DiscardHandler), Ready: func() error { return nil },
		Cluster: func(string) (Source, bool) { return source, true },
	})
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { listener.Close() })
	cfg, err := s.config(listener)
	if err != nil {
		b.Fatal(err)
	}
	cfg.Authorization.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()
	cfg.Authentication.Authenticator = authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "bench"}}, true, nil
	})
	generic, err := s.install(cfg)
	if err != nil {
		b.Fatal(err)
	}
	generic.PrepareRun()
	return generic.Handler
}

// sink is a response that goes nowhere.
type sink struct {
	header http.Header
	code   int
	bytes  int
}

func (s *sink) Header() http.Header { return s.header }
func (s *sink) WriteHeader(c int)   { s.code = c }
func (s *sink) Write(p []byte) (int, error) {
	s.bytes += len(p)
	return len(p), nil
}

const (
	acceptJSON  = "application/json"
	acceptProto = "application/vnd.kubernetes.protobuf"
	acceptTable = "application/json;as=Table;v=v1;g=meta.k8s.io"
)

func BenchmarkRequest(b *testing.B) {
	handler := newHandler(b)
	const root = "/apis/metrics.k8s.io/v1beta1"
	for _, bench := range []struct{ name, path, accept, encoding string }{
		{"node", root + "/nodes/ip-10-0-0-1.eu-central-1.compute.internal", acceptJSON, ""},
		{"nodes=1000/json", root + "/nodes", acceptJSON, ""},
		{"nodes=1000/json+gzip", root + "/nodes", acceptJSON, "gzip"},
		{"nodes=1000/protobuf", root + "/nodes", acceptProto, ""},
		{"nodes=1000/table", root + "/nodes", acceptTable, ""},
		{"nodes=1000/generic", root + "/nodes", acceptJSON + ",nothing/as-it-is", ""}, // takes the library's way
		{"namespace/pods=600/json", root + "/namespaces/team-007/pods", acceptJSON, ""},
		{"namespace/pods=600/json+gzip", root + "/namespaces/team-007/pods", acceptJSON, "gzip"},
		{"namespace/pods=600/protobuf", root + "/namespaces/team-007/pods", acceptProto, ""},
		{"namespace/pods=600/selected", root + "/namespaces/team-007/pods?labelSelector=app%3Dapp-3", acceptProto, ""},
		{"namespace/pods=600/generic", root + "/namespaces/team-007/pods", acceptJSON + ",nothing/as-it-is", ""},
		{"pods=30000/json", root + "/pods", acceptJSON, ""},
		{"pods=30000/protobuf", root + "/pods", acceptProto, ""},
	} {
		b.Run(bench.name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, bench.path, nil)
			r.Header.Set("Accept", bench.accept)
			r.Header.Set("Accept-Encoding", bench.encoding)
			var s sink
			b.ReportAllocs()
			for b.Loop() {
				s = sink{header: http.Header{}}
				handler.ServeHTTP(&s, r)
				if s.code != http.StatusOK {
					b.Fatalf("status %d", s.code)
				}
			}
			b.ReportMetric(float64(s.bytes), "answer-B")
		})
	}
}

// BenchmarkEncode is the encoder alone.
func BenchmarkEncode(b *testing.B) {
	codecs := newCodecs()
	source := newFake(0, 600)
	l := &list{kind: kindPod, pods: source.pods, now: time.Unix(1_800_000_000, 0), formats: newFormats(codecs, bothVersions...)}
	for id, f := range l.formats {
		if f.gv != bothVersions[0].String() {
			continue
		}
		b.Run(fmt.Sprintf("pods=600/protobuf=%t", f.protobuf), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := l.CacheEncode(id, nil, io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkServed is a client at the other end of TLS, with the answers about it remembered.
func BenchmarkServed(b *testing.B) {
	v := start(b, map[string]Source{"": newFake(1000, 30_000)}, nil)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DisableCompression: true}
	defer transport.CloseIdleConnections()
	for _, bench := range []struct{ name, path string }{
		{"nodes=1000", "/apis/metrics.k8s.io/v1beta1/nodes"},
		{"namespace/pods=600", "/apis/metrics.k8s.io/v1beta1/namespaces/team-007/pods"},
	} {
		for _, encoding := range []string{"identity", "gzip"} {
			b.Run(bench.name+"/"+encoding, func(b *testing.B) {
				b.ReportAllocs()
				var body bytes.Buffer
				for b.Loop() {
					resp, err := transport.RoundTrip(v.request(bench.path, "alice", "Accept-Encoding", encoding))
					if err != nil {
						b.Fatal(err)
					}
					body.Reset()
					if _, err := body.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
						b.Fatalf("status %d: %v", resp.StatusCode, err)
					}
					resp.Body.Close()
				}
			})
		}
	}
}

// BenchmarkWatchFanOut tells so many watches of one namespace, and one of everything, of the rollup of one node of 1000:
// 30 pods of 30,000, all changed. An operation is one look at the view and the events that come of it.
func BenchmarkWatchFanOut(b *testing.B) {
	for _, watches := range []int{0, 100, 1000} {
		b.Run(fmt.Sprintf("nodes=1000/pods=30/watches=%d", watches), func(b *testing.B) {
			source := newMoving(newFake(0, 30_000))
			h := newHubs(func(string) (Source, bool) { return source, true }, time.Now)
			hub := h.of("", kindPod)
			if _, _, err := hub.snapshot(); err != nil {
				b.Fatal(err)
			}
			s := &store{cluster: func(context.Context) (string, error) { return "", nil }, hubs: h}
			var told atomic.Int64
			var reading sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			for i := range watches {
				inNamespace := ctx
				if i > 0 {
					inNamespace = request.WithNamespace(ctx, fmt.Sprintf("team-%03d", i%50))
				}
				w, err := s.watch(inNamespace, kindPod, &metainternal.ListOptions{ResourceVersion: fmt.Sprint(source.Seq())})
				if err != nil {
					b.Fatal(err)
				}
				reading.Go(func() {
					for range w.ResultChan() {
						told.Add(1)
					}
				})
			}
			changed := make([]*view.PodMetrics, 30)
			n := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				n++
				before := source.now.Load()
				for i := range changed {
					p := *before.pods[(int(n)*30+i)%len(before.pods)]
					p.Time = p.Time.Add(time.Second)
					changed[i] = &p
				}
				source.put(changed...)
				hub.mu.Lock()
				hub.look(time.Now())
				hub.mu.Unlock()
			}
			cancel()
			reading.Wait()
			b.ReportMetric(float64(told.Load())/float64(b.N), "events/op")
		})
	}
}
