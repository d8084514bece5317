package scraper

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// canned serves the same answers over TLS for ever, and next to nothing of the benchmark's time and
// allocations is its own.
func canned(b *testing.B, answers map[string][]byte) int32 {
	b.Helper()
	some := httptest.NewTLSServer(http.NotFoundHandler())
	cert := some.TLS.Certificates[0]
	some.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	ready := map[string][]byte{}
	for path, answer := range answers {
		ready["GET "+path] = append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(answer))+"\r\n\r\n"), answer...)
	}
	notFound := []byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for {
					var what []byte
					for first := true; ; first = false {
						line, err := in.ReadSlice('\n')
						if err != nil {
							return
						}
						if first {
							line, _, _ = bytes.Cut(line, []byte(" HTTP"))
							what = append(what, line...)
						} else if len(bytes.TrimSpace(line)) == 0 {
							break
						}
					}
					answer, ok := ready[string(what)]
					if !ok {
						answer = notFound
					}
					if _, err := conn.Write(answer); err != nil || !ok { // a body that may follow is not read
						return
					}
				}
			})
		}
	})
	b.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return int32(l.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
}

// crowd is the recorded kubelet's answers, of a node with so many pods of two containers, and those pods.
func crowd(b *testing.B, pods int) (answers map[string][]byte, objects []*corev1.Pod) {
	b.Helper()
	var summary map[string]any
	var list corev1.PodList
	data, err := os.ReadFile(filepath.Join("node", "testdata", "pods.json"))
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err == nil {
		err = json.Unmarshal(recorded(b, "node-0"), &summary)
	}
	if err != nil {
		b.Fatal(err)
	}
	all := summary["pods"].([]any)
	model, stats := list.Items[0], map[string]any{}
	for i := range list.Items {
		if strings.HasPrefix(list.Items[i].Name, "web-") {
			model = list.Items[i]
		}
	}
	for _, p := range all {
		if strings.HasPrefix(p.(map[string]any)["podRef"].(map[string]any)["name"].(string), "web-") {
			stats = p.(map[string]any)
		}
	}
	made := make([]any, pods)
	for i := range made {
		name, uid := fmt.Sprintf("web-7d8f9c-%05d", i), fmt.Sprintf("7de5af34-e7cd-4d2c-bc00-%012d", i)
		o := model.DeepCopy()
		o.Name, o.UID, o.Spec.NodeName = name, types.UID(uid), "node-0"
		var s, c map[string]any
		copyJSON(b, stats, &s)
		copyJSON(b, s["containers"].([]any)[0], &c)
		s["podRef"] = map[string]any{"name": name, "namespace": o.Namespace, "uid": uid}
		c["name"] = "second"
		s["containers"] = append(s["containers"].([]any), c)
		extra := o.Spec.Containers[0]
		extra.Name = "second"
		o.Spec.Containers = append(o.Spec.Containers, extra)
		made[i], objects = s, append(objects, o)
	}
	summary["pods"] = made
	answer, err := json.MarshalIndent(summary, "", " ")
	if err != nil {
		b.Fatal(err)
	}
	return map[string][]byte{"/stats/summary": answer, "/metrics/cadvisor": recordedMetrics(b, "/metrics/cadvisor"), "/metrics/resource": recordedMetrics(b, "/metrics/resource")}, objects
}

func copyJSON(b *testing.B, from any, to any) {
	data, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkTick is a tick of the node role up to the bus: ask the kubelet over TLS, read, decode, enrich from
// the watched pods, encode, compress. The text sources have the recorded node's six pods.
func BenchmarkTick(b *testing.B) {
	for _, c := range []struct {
		source kubelet.Source
		pods   int
	}{{kubelet.SummarySource, 30}, {kubelet.SummarySource, 110}, {kubelet.CAdvisorSource, 6}, {kubelet.ResourceSource, 6}} {
		b.Run(fmt.Sprintf("source=%s/pods=%d/containers=2", c.source, c.pods), func(b *testing.B) {
			r := newRig(b)
			answers, objects := crowd(b, c.pods)
			r.api.Put("/api/v1/nodes", nodeObject("node-0", canned(b, answers)))
			for _, o := range objects {
				r.api.Put("/api/v1/pods", o)
			}
			r.cfg.Role, r.cfg.NodeName = RoleNode, "node-0"
			r.cfg.Source = strings.Replace(r.cfg.Source, string(kubelet.SummarySource), string(c.source), 1)
			s := r.scraper(b)
			size := 0
			s.backlog = newBacklog(s.cfg.BacklogBytes, s.log, func(_ context.Context, i *item) error { size = len(i.data); return nil }, s.settled)
			ctx, cancel := context.WithCancel(b.Context())
			var running sync.WaitGroup
			running.Go(func() { s.own.Run(ctx) })
			if err := s.own.Synced(ctx); err != nil {
				b.Fatal(err)
			}
			target := s.targets()[0]
			tick := proto.Tick(1e12)
			b.ReportAllocs()
			for b.Loop() {
				s.once(ctx, ctx, target, tick)
				s.backlog.wait()
				tick = tick.Add(1, s.cfg.Resolution)
			}
			b.ReportMetric(float64(size), "B/message")
			if f := s.failure.Load(); f != nil || size == 0 {
				b.Fatalf("%d bytes were made, %v", size, f)
			}
			cancel()
			running.Wait()
			s.kubelets.Close()
		})
	}
}
