package sinktest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// start is the tick of number 0.
var start = time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)

// Node builds the rollup of a made-up node at tick number n of a grid of 15 s, with all that a summary
// source gives of its pods and containers. Equal arguments give equal rollups.
func Node(name string, pods, containers, n int) *proto.Rollup {
	rnd := rand.New(rand.NewPCG(uint64(n), 1)) //nolint:gosec // equal runs are wanted
	const resolution = 15 * time.Second
	r := &proto.Rollup{
		Scope: proto.ScopeNode, Cluster: "default", Name: name, Resolution: resolution, Source: "kubernetes.summary_api",
		Tick: proto.TickAt(start, resolution).Add(n, resolution), Seq: uint64(n), //nolint:gosec // not negative
	}
	at := r.Tick.Time()
	r.Scraped = at.Add(2 * time.Second).UnixNano()
	measure := func(row int, counters ...proto.MetricID) {
		v := &r.Values
		v.Set(row, proto.FieldStart, start.Add(-time.Hour).UnixNano())
		for _, g := range []proto.Group{proto.GroupCPU, proto.GroupMemory, proto.GroupNetwork} {
			v.Set(row, g.Time(), at.UnixNano())
			v.Set(row, g.Span(), int64(resolution)+rnd.Int64N(1e9))
		}
		for _, c := range counters {
			v.Set(row, c.Field(), rnd.Int64N(1e15))
			v.Set(row, c.Delta(), rnd.Int64N(1e10))
		}
		for _, g := range []proto.MetricID{proto.MemoryUsage, proto.MemoryRSS, proto.MemoryWorkingSet} {
			v.Set(row, g.Field(), rnd.Int64N(1<<32)&^4095)
		}
	}
	filesystem := func(row int, names ...string) {
		for _, fs := range names {
			d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: fs}) //nolint:gosec // few rows
			for _, m := range []proto.MetricID{proto.FilesystemUsage, proto.FilesystemLimit, proto.FilesystemAvailable, proto.FilesystemInodes, proto.FilesystemInodesFree} {
				r.DeviceValues.Set(d, m.Field(), rnd.Int64N(1<<38)&^4095)
			}
		}
	}
	asked := func(row int) {
		for _, m := range []proto.MetricID{proto.CPURequest, proto.CPULimit, proto.MemoryRequest, proto.MemoryLimit, proto.RestartCount} {
			r.Values.Set(row, m.Field(), rnd.Int64N(4000))
		}
	}
	work := []proto.MetricID{proto.CPUUsage, proto.MemoryPageFaults, proto.MemoryMajorFaults}
	net := append([]proto.MetricID{proto.NetworkRx, proto.NetworkRxErrors, proto.NetworkTx, proto.NetworkTxErrors}, work...)
	node := r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: name, Hostname: name, Labels: []proto.Label{{Key: "kubernetes.io/hostname", Value: name}}})
	measure(node, net...)
	filesystem(node, "/")
	r.Values.Set(node, proto.CPUNodeCapacity.Field(), 8000)
	r.Values.Set(node, proto.CPUNodeAllocatable.Field(), 7800)
	for _, system := range []string{"kubelet", "runtime", "pods"} {
		measure(r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: system}), work...)
	}
	for p := range pods {
		pod := r.AddEntity(proto.Entity{
			Kind: proto.KindPod, Name: fmt.Sprintf("web-7d8f9c-%05d", p), Namespace: fmt.Sprintf("team-%02d", p%7), Phase: proto.PhaseRunning,
			UID: fmt.Sprintf("c0ffee00-0000-4000-8000-%012d", p), Owner: proto.Owner{Kind: "Deployment", Name: "web"},
			Labels: []proto.Label{{Key: "app", Value: "web"}, {Key: "pod-template-hash", Value: "7d8f9c"}},
		})
		measure(pod, net...)
		asked(pod)
		filesystem(pod, "Volume:data", "Volume:kube-api-access")
		for c := range containers {
			row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: fmt.Sprint("c", c), Image: "registry.example.com/team/web:v1.2"}) //nolint:gosec // few rows
			measure(row, work...)
			asked(row)
			filesystem(row, "/", "logs")
		}
	}
	for ns := range min(pods, 7) {
		r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: fmt.Sprintf("team-%02d", ns), UID: fmt.Sprintf("0ddba11-%d", ns)})
	}
	return r
}
