package events

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
)

// ofCluster are events as a cluster tells of its pods: a series of failing probes, image pulls and starts, spread over
// its nodes and namespaces, each with what a kubelet says of it. None is out yet.
func ofCluster(nodes, pods int) []*corev1.Event {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	says := []struct{ reason, message, kind string }{
		{"Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "Warning"},
		{"Pulled", "Successfully pulled image \"registry.example.com/shop/cart:v1.27.3\" in 1.204s (1.204s including waiting). Image size: 48210233 bytes.", "Normal"},
		{"Started", "Started container app", "Normal"},
		{"BackOff", "Back-off restarting failed container app in pod cart-7d9c5b6f4-x2x9z_shop(8f14e45f-ceea-467f-a8f0-1c2b3d4e5f60)", "Warning"},
	}
	var all []*corev1.Event
	for n := range nodes {
		host := fmt.Sprintf("node-%04d.eu-central-1.compute.internal", n)
		for p := range pods {
			say, pod, ns := says[(n+p)%len(says)], fmt.Sprintf("cart-%d-7d9c5b6f4-%05d", p, n), fmt.Sprintf("team-%02d", (n*7+p)%50)
			last := metav1.NewTime(at.Add(time.Duration(len(all)) * time.Millisecond))
			all = append(all, &corev1.Event{
				ObjectMeta: metav1.ObjectMeta{Name: pod + ".17a1b2c3d4e5f607", Namespace: ns, UID: types.UID(fmt.Sprintf("8f14e45f-ceea-467f-%04x-%012x", n, p)), CreationTimestamp: last},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod, UID: types.UID(fmt.Sprintf("0d4e45f1-ceea-467f-%04x-%012x", n, p)),
					APIVersion: "v1", ResourceVersion: "481516", FieldPath: "spec.containers{app}"},
				Reason: say.reason, Message: say.message, Type: say.kind, Source: corev1.EventSource{Component: "kubelet", Host: host},
				FirstTimestamp: last, LastTimestamp: last, Count: 1, ReportingController: "kubelet", ReportingInstance: host,
			})
		}
	}
	return all
}

// BenchmarkEncode is what one state of an event costs until it can be sent.
func BenchmarkEncode(b *testing.B) {
	const nodes, pods = 100, 30
	b.Run(fmt.Sprintf("nodes=%d/pods=%d", nodes, pods), func(b *testing.B) {
		all, enc := ofCluster(nodes, pods), proto.NewEncoder()
		b.ReportAllocs()
		n, bytes := 0, 0
		for b.Loop() {
			o := all[n%len(all)]
			n++
			o.ResourceVersion = "481516"
			ev := proto.Event{Cluster: "c", Position: proto.EventPosition{Upto: 481516}}
			if err := convert(o, &ev); err != nil {
				b.Fatal(err)
			}
			ev.Bound()
			data, err := enc.Event(&ev)
			if err != nil {
				b.Fatal(err)
			}
			bytes += len(data)
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		b.ReportMetric(float64(bytes)/float64(n), "B/event")
	})
}

// BenchmarkPublish is the same with the message appended to EVENTS of a bus in this process: one at a time, since each
// names the one before.
func BenchmarkPublish(b *testing.B) {
	const nodes, pods = 100, 30
	b.Run(fmt.Sprintf("nodes=%d/pods=%d", nodes, pods), func(b *testing.B) {
		conn := bustest.Start(b).Conn(b)
		bustest.Provision(b, conn, "c")
		client, err := kube.NewClient(&rest.Config{Host: "http://127.0.0.1:1"}) // not asked
		if err != nil {
			b.Fatal(err)
		}
		e := New(Config{Cluster: "c", Owner: "me", Rate: 1 << 30}, Deps{Bus: conn, Client: client, Log: slog.New(slog.DiscardHandler)})
		all := ofCluster(nodes, pods)
		b.ReportAllocs()
		n := uint64(0)
		for b.Loop() {
			o := all[n%uint64(len(all))]
			n++
			o.ResourceVersion = fmt.Sprint(n)
			if err := e.publish(b.Context(), o, proto.EventPosition{Upto: n}); err != nil {
				b.Fatal(err)
			}
		}
		if e.last != n {
			b.Fatalf("%d are out, want %d", e.last, n)
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkCatchUp is the way from an API server that has forgotten what came after the position: all events are listed,
// compared with what is out, and those that are not are published. The API server is that of tests, in this process.
func BenchmarkCatchUp(b *testing.B) {
	const nodes, pods = 100, 30
	for _, isOut := range []bool{false, true} {
		b.Run(fmt.Sprintf("nodes=%d/pods=%d/out=%t", nodes, pods, isOut), func(b *testing.B) {
			api, conn := kubetest.Start(b), bustest.Start(b).Conn(b)
			for _, o := range ofCluster(nodes, pods) {
				api.Put(path, o)
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				b.StopTimer()
				n++
				cluster := fmt.Sprint("c", n)
				bustest.Provision(b, conn, cluster)
				client, err := kube.NewClient(&rest.Config{Host: api.URL})
				if err != nil {
					b.Fatal(err)
				}
				e := New(Config{Cluster: cluster, Owner: "me", Rate: 1 << 30}, Deps{Bus: conn, Client: client, Log: slog.New(slog.DiscardHandler)})
				if isOut {
					if err := e.list(b.Context(), listFirst); err != nil {
						b.Fatal(err)
					}
					e.known = false // compare one by one
				}
				b.StartTimer()
				if err := e.list(b.Context(), listExpired); err != nil {
					b.Fatal(err)
				}
				if e.last != nodes*pods {
					b.Fatalf("%d are out, want %d", e.last, nodes*pods)
				}
			}
			b.ReportMetric(float64(n*nodes*pods)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
