package window

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// busyNode is a node of pods x 2 containers with everything that today's kubelets tell: PSI, swap, two
// file systems a container, volumes and interfaces. Two thirds of the containers work, the others idle;
// each is sampled every 10 to 20 s at its own moment.
type busyNode struct {
	rnd  *rand.Rand
	r    proto.Rollup
	rows []busyRow
	now  int64 // Unix s
}

type busyRow struct {
	busy    bool
	sampled int64 // Unix s
	period  int64
}

func newBusyNode(name string, pods int, seed uint64) *busyNode {
	n := &busyNode{rnd: rand.New(rand.NewPCG(seed, 2)), now: 1_795_206_300}
	r := &n.r
	r.Scope, r.Cluster, r.Name = proto.ScopeNode, "c", name
	fs := func(row int, name, claim string) {
		d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: name, Claim: claim})
		for _, id := range []proto.MetricID{proto.FilesystemUsage, proto.FilesystemLimit, proto.FilesystemAvailable} {
			r.DeviceValues.Set(d, id.Field(), n.rnd.Int64N(1<<26)*4096)
		}
		for _, id := range []proto.MetricID{proto.FilesystemInodes, proto.FilesystemInodesFree, proto.FilesystemInodesUsed} {
			r.DeviceValues.Set(d, id.Field(), n.rnd.Int64N(1<<24))
		}
	}
	iface := func(row int) {
		d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceInterface, Name: "eth0"})
		for _, id := range []proto.MetricID{proto.InterfaceRx, proto.InterfaceTx, proto.InterfaceRxErrors, proto.InterfaceTxErrors} {
			r.DeviceValues.Set(d, id.Field(), 0)
		}
	}
	add := func(e proto.Entity) int {
		row := r.AddEntity(e)
		v := &r.Values
		v.Set(row, proto.FieldStart, (n.now-n.rnd.Int64N(1e6))*1e9)
		v.Set(row, proto.CPUUsage.Field(), n.rnd.Int64N(1e14))
		mem := n.rnd.Int64N(1<<18) * 4096
		for _, id := range []proto.MetricID{proto.MemoryUsage, proto.MemoryWorkingSet, proto.MemoryRSS, proto.MemoryAvailable} {
			v.Set(row, id.Field(), mem)
		}
		for _, id := range []proto.MetricID{proto.MemoryPageFaults, proto.MemoryMajorFaults} {
			v.Set(row, id.Field(), n.rnd.Int64N(1e7))
		}
		v.Set(row, proto.SwapUsage.Field(), 0)
		v.Set(row, proto.SwapAvailable.Field(), 1<<26)
		for _, p := range []proto.MetricID{proto.CPUPressure, proto.MemoryPressure, proto.IOPressure} {
			for o := range proto.PressureSomeRate {
				v.Set(row, (p + o).Field(), 0)
			}
		}
		if e.Kind != proto.KindSystemContainer {
			v.Set(row, proto.EphemeralUsage.Field(), n.rnd.Int64N(1<<20)*4096)
			for _, id := range []proto.MetricID{proto.CPURequest, proto.CPULimit, proto.MemoryRequest, proto.MemoryLimit, proto.EphemeralRequest, proto.EphemeralLimit} {
				v.Set(row, id.Field(), n.rnd.Int64N(16)*250)
			}
		}
		if e.Kind == proto.KindPod || e.Kind == proto.KindContainer {
			v.Set(row, proto.RestartCount.Field(), 0)
		}
		if e.Kind == proto.KindPod || e.Kind == proto.KindNode {
			for _, id := range []proto.MetricID{proto.NetworkRx, proto.NetworkRxErrors, proto.NetworkTx, proto.NetworkTxErrors} {
				v.Set(row, id.Field(), 0)
			}
			v.Set(row, proto.ProcessCount.Field(), 1+n.rnd.Int64N(30))
			iface(row)
		}
		n.rows = append(n.rows, busyRow{busy: n.rnd.IntN(3) > 0, sampled: n.now - n.rnd.Int64N(15), period: 10 + n.rnd.Int64N(11)})
		return row
	}
	node := add(proto.Entity{Kind: proto.KindNode, Name: name, UID: "3c7ffb09-7a7d-4a6b-9b6f-2a2e3c7d7f10", Hostname: name, Parent: -1})
	fs(node, "/", "")
	fs(node, "imagefs", "")
	for _, s := range []string{"pods", "kubelet", "runtime"} {
		add(proto.Entity{Kind: proto.KindSystemContainer, Name: s, Parent: 0})
	}
	for p := range pods {
		labels := []proto.Label{{Key: "app", Value: fmt.Sprint("app-", p%7)}, {Key: "pod-template-hash", Value: fmt.Sprint("5d8f9c7b", p)}, {Key: "tier", Value: "web"}}
		pod := add(proto.Entity{Kind: proto.KindPod, Name: fmt.Sprintf("app-%d-5d8f9c7b%d-%s-x", p%7, p, name), Namespace: fmt.Sprint("ns-", p%5),
			UID: fmt.Sprintf("3c7ffb09-7a7d-4a6b-9b6f-%06d%06d", seed, p), Parent: 0, Phase: proto.PhaseRunning, Labels: labels})
		fs(pod, "Volume:data", fmt.Sprint("claim-", p))
		fs(pod, "Volume:kube-api-access-x", "")
		for c := range 2 {
			row := add(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", c), Image: "registry.example.com/team/app:v1", Parent: int32(pod), Flags: proto.FlagRunning})
			fs(row, "/", "")
			fs(row, "logs", "")
		}
	}
	return n
}

// tick moves the node on and returns its rollup, which is valid until the next.
func (n *busyNode) tick(resolution time.Duration) *proto.Rollup {
	r, rnd, v := &n.r, n.rnd, &n.r.Values
	n.now += int64(resolution / time.Second)
	r.Tick, r.Resolution = proto.Tick(n.now*1000), resolution
	r.Scraped = n.now*1e9 + rnd.Int64N(2e9)
	grow := func(row int, id proto.MetricID, d int64) {
		v.Add(row, id.Field(), d)
		v.Set(row, id.Delta(), d)
	}
	groups := []proto.Group{proto.GroupCPU, proto.GroupMemory, proto.GroupIO, proto.GroupSwap, proto.GroupNetwork}
	for row := range n.rows {
		b := &n.rows[row]
		advanced := n.now - (n.now-b.sampled)%b.period
		if advanced == b.sampled {
			for _, g := range groups {
				v.Set(row, g.Stale(), 1)
			}
			continue
		}
		span := advanced - b.sampled
		b.sampled = advanced
		for _, g := range groups {
			v.Clear(row, g.Stale())
			v.Set(row, g.Time(), advanced*1e9)
			v.Set(row, g.Span(), span*1e9)
		}
		if !b.busy {
			grow(row, proto.CPUUsage, rnd.Int64N(2000)*span*100)
			grow(row, proto.MemoryPageFaults, 0)
			grow(row, proto.MemoryMajorFaults, 0)
			continue
		}
		grow(row, proto.CPUUsage, rnd.Int64N(1e8)*span)
		grow(row, proto.MemoryPageFaults, rnd.Int64N(2000))
		grow(row, proto.MemoryMajorFaults, 0)
		for _, id := range []proto.MetricID{proto.MemoryUsage, proto.MemoryWorkingSet, proto.MemoryRSS} {
			v.Add(row, id.Field(), (rnd.Int64N(400)-200)*4096)
		}
		v.Add(row, proto.MemoryAvailable.Field(), (rnd.Int64N(400)-200)*4096)
		for _, p := range []proto.MetricID{proto.CPUPressure, proto.IOPressure} {
			if row%3 == 0 {
				grow(row, p+proto.PressureSomeTotal, rnd.Int64N(1e6)*1000)
				grow(row, p+proto.PressureFullTotal, rnd.Int64N(1e5)*1000)
				v.Set(row, (p + proto.PressureSomeAvg10).Field(), rnd.Int64N(30))
				v.Set(row, (p + proto.PressureSomeAvg60).Field(), rnd.Int64N(10))
				v.Set(row, (p + proto.PressureSomeAvg300).Field(), rnd.Int64N(3))
			}
		}
		if e := &r.Entities[row]; e.Kind == proto.KindPod || e.Kind == proto.KindNode {
			grow(row, proto.NetworkRx, rnd.Int64N(1e6))
			grow(row, proto.NetworkTx, rnd.Int64N(1e6))
		}
	}
	for d := range r.Devices {
		if n.now/60 == (n.now-int64(resolution/time.Second))/60 {
			r.DeviceValues.Set(d, proto.GroupDevice.Stale(), 1)
			continue
		}
		r.DeviceValues.Clear(d, proto.GroupDevice.Stale())
		if r.Devices[d].Kind == proto.DeviceInterface {
			for _, id := range []proto.MetricID{proto.InterfaceRx, proto.InterfaceTx} {
				g := rnd.Int64N(1e6)
				r.DeviceValues.Add(d, id.Field(), g)
				r.DeviceValues.Set(d, id.Delta(), g)
			}
			r.DeviceValues.Set(d, proto.GroupDevice.Span(), 60e9)
			continue
		}
		r.DeviceValues.Add(d, proto.FilesystemAvailable.Field(), (rnd.Int64N(4)-2)*(1<<20)) // all of one disk, at moments of their own
		if n.rows[r.Devices[d].Entity].busy {
			r.DeviceValues.Add(d, proto.FilesystemUsage.Field(), rnd.Int64N(20)*4096)
		}
		r.DeviceValues.Add(d, proto.FilesystemInodesFree.Field(), rnd.Int64N(3)-1)
	}
	return r
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// points counts the values of all series of one rollup.
func points(r *proto.Rollup) (n int) {
	for row := range r.Entities {
		for range r.Samples(row) {
			n++
		}
	}
	return n
}

// BenchmarkWindowMemory fills a window of 15 minutes for 34 nodes of 30 pods x 2 containers and measures
// what it holds.
func BenchmarkWindowMemory(b *testing.B) {
	for _, resolution := range []time.Duration{60 * time.Second, 15 * time.Second} {
		b.Run(fmt.Sprint("resolution=", resolution), func(b *testing.B) {
			const nodes = 34
			var mib, perPoint float64
			for b.Loop() {
				made := make([]*busyNode, nodes)
				for i := range made {
					made[i] = newBusyNode(fmt.Sprint("node-", i), 30, uint64(i))
				}
				for _, n := range made {
					n.tick(resolution)
				}
				before := heapInUse()
				w, ticks, all := New(15*time.Minute), int(15*time.Minute/resolution), 0
				for range ticks + 4 {
					for _, n := range made {
						w.Append(n.tick(resolution))
					}
				}
				after := heapInUse()
				for _, n := range made {
					all += points(&n.r) * ticks
				}
				mib = float64(after-before) / (1 << 20) / (nodes * 60) * 1000
				perPoint = float64(after-before) / float64(all)
				runtime.KeepAlive(w)
				runtime.KeepAlive(made)
			}
			b.ReportMetric(mib, "MiB/1000containers")
			b.ReportMetric(perPoint, "B/point")
		})
	}
}

func BenchmarkWindowAppend(b *testing.B) {
	b.Run("pods=30", func(b *testing.B) {
		n := newBusyNode("node-1", 30, 1)
		w := New(15 * time.Minute)
		var samples int
		for range 61 {
			w.Append(n.tick(testResolution))
		}
		samples = points(&n.r)
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			r := n.tick(testResolution)
			b.StartTimer()
			w.Append(r)
		}
		b.ReportMetric(float64(samples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
	})
}

func BenchmarkWindowSeries(b *testing.B) {
	n := newBusyNode("node-1", 30, 1)
	w := New(15 * time.Minute)
	for range 62 {
		w.Append(n.tick(testResolution))
	}
	pod := n.r.Entities[len(n.r.Entities)-3]
	for _, metric := range []string{"memory/usage", "cpu/usage_rate"} {
		b.Run(metric, func(b *testing.B) {
			e := Entity{Kind: proto.KindContainer, Namespace: pod.Namespace, Pod: pod.Name, Name: "c1"}
			var dst []Point
			b.ReportAllocs()
			for b.Loop() {
				dst = w.Series(dst[:0], e, metric, 0, 1<<62)
			}
			if len(dst) != 60 {
				b.Fatalf("%d points, want 60", len(dst))
			}
			b.ReportMetric(float64(len(dst)), "points")
		})
	}
}
