package customapi

import (
	"context"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// crowd is 1000 nodes of 30 pods of 2 containers, 20 ticks of 15 s; 50 namespaces of 600 pods.
func crowd(b *testing.B) *view.Cluster {
	b.Helper()
	now := begin
	v, err := view.New(view.Config{Window: view.DefaultWindow}, view.Deps{Now: func() time.Time { return now }})
	if err != nil {
		b.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		b.Fatal(err)
	}
	r := &proto.Rollup{}
	for tick := range int64(20) {
		for n := range 1000 {
			r.Reset()
			r.Scope, r.Cluster, r.Name = proto.ScopeNode, "c", fmt.Sprintf("node-%04d", n)
			r.Tick, r.Resolution, r.Scraped = proto.Tick(now.UnixMilli()), resolution, now.UnixNano()
			uses := func(row int, k int64) {
				r.Values.Set(row, proto.GroupCPU.Time(), now.UnixNano())
				r.Values.Set(row, proto.GroupCPU.Span(), int64(15*time.Second))
				r.Values.Set(row, proto.CPUUsage.Field(), 1e9*tick*k)
				r.Values.Set(row, proto.CPUUsage.Delta(), 1e9*k+tick)
				r.Values.Set(row, proto.MemoryWorkingSet.Field(), 1<<20*(k+tick))
			}
			uses(r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: r.Name, Parent: -1}), 7)
			for p := range 30 {
				pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprintf("ns-%02d", p%50+20*(n%2)), Name: fmt.Sprintf("pod-%d-%d", n, p),
					Phase: proto.PhaseRunning, Labels: []proto.Label{{Key: "app", Value: fmt.Sprint("app-", p%20)}}})
				uses(pod, 3)
				for i := range 2 {
					uses(r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", i), Parent: int32(pod), Flags: proto.FlagRunning}), 2)
				}
			}
			c.Apply(r, view.Origin{Seq: uint64(tick*1000) + uint64(n) + 1, Time: now, Live: true})
		}
		now = now.Add(resolution)
	}
	now = now.Add(-resolution)
	return c
}

// BenchmarkCustomMetrics is the provider alone; what the server adds is in package resourceapi.
func BenchmarkCustomMetrics(b *testing.B) {
	source := crowd(b)
	c := &custom{source: func(context.Context) (Source, error) { return source, nil }}
	for _, metric := range []string{"cpu_usage_rate", "cpu_usage_rate_avg_5m", "cpu_usage_rate_p95_5m"} {
		info := provider.CustomMetricInfo{GroupResource: schema.GroupResource{Resource: "pods"}, Namespaced: true, Metric: metric}
		b.Run(metric+"/pods=1", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.GetMetricByName(b.Context(), types.NamespacedName{Namespace: "ns-05", Name: "pod-0-5"}, info, labels.Everything()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(metric+"/pods=500", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				list, err := c.GetMetricBySelector(b.Context(), "ns-05", labels.Everything(), info, labels.Everything())
				if err != nil || len(list.Items) != 500 {
					b.Fatal(len(list.Items), err)
				}
			}
		})
	}
}
