package aggregator

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/heapstream/heapstream/aggregator/rate"
	"github.com/heapstream/heapstream/aggregator/rollup"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// nodeBatches are two successive batches of a node as a summary source gives them, sorted: pods of two
// containers with every group, pressure, interface and two volumes. Equal seeds give equal batches.
func nodeBatches(pods int) (list [2]*proto.Batch) {
	for n := range list {
		r := rand.New(rand.NewPCG(1, 1))
		at := day.Add(time.Duration(n) * 15 * time.Second)
		b := &proto.Batch{Cluster: testCluster, Node: "node-0001.example.com", Tick: proto.TickAt(at, 15*time.Second), Resolution: 15 * time.Second, Source: "kubernetes.summary_api"}
		b.Scraped = at.UnixNano()
		grow := func(most int64) int64 { return r.Int64N(1e15) + int64(n)*r.Int64N(most) }
		sample := func(row int) {
			v := &b.Values
			v.Set(row, proto.FieldStart, day.Add(-time.Duration(row)*time.Hour).UnixNano())
			for _, g := range []proto.Group{proto.GroupCPU, proto.GroupMemory, proto.GroupIO, proto.GroupSwap} {
				v.Set(row, g.Time(), at.Add(-time.Duration(row%20)*time.Second).UnixNano())
			}
			v.Set(row, proto.CPUUsage.Field(), grow(1e10))
			for _, id := range []proto.MetricID{proto.MemoryUsage, proto.MemoryWorkingSet, proto.MemoryRSS} {
				v.Set(row, id.Field(), r.Int64N(1<<30)&^4095)
			}
			v.Set(row, proto.MemoryPageFaults.Field(), grow(1e4))
			v.Set(row, proto.MemoryMajorFaults.Field(), grow(1e2))
			v.Set(row, proto.SwapUsage.Field(), 0)
			for _, p := range []proto.MetricID{proto.CPUPressure, proto.MemoryPressure, proto.IOPressure} {
				for _, o := range []proto.MetricID{proto.PressureSomeTotal, proto.PressureFullTotal} {
					v.Set(row, (p + o).Field(), grow(1e6))
				}
				for _, o := range []proto.MetricID{proto.PressureSomeAvg10, proto.PressureSomeAvg60, proto.PressureSomeAvg300, proto.PressureFullAvg10, proto.PressureFullAvg60, proto.PressureFullAvg300} {
					v.Set(row, (p + o).Field(), r.Int64N(3))
				}
			}
		}
		network := func(row int) {
			v := &b.Values
			v.Set(row, proto.GroupNetwork.Time(), at.Add(-5*time.Second).UnixNano())
			v.Set(row, proto.NetworkRx.Field(), grow(1e7))
			v.Set(row, proto.NetworkTx.Field(), grow(1e7))
			v.Set(row, proto.NetworkRxErrors.Field(), 0)
			v.Set(row, proto.NetworkTxErrors.Field(), 0)
			d := b.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceInterface, Name: "eth0"})
			b.DeviceValues.Set(d, proto.GroupDevice.Time(), at.Add(-5*time.Second).UnixNano())
			b.DeviceValues.Set(d, proto.InterfaceRx.Field(), grow(1e7))
			b.DeviceValues.Set(d, proto.InterfaceTx.Field(), grow(1e7))
		}
		filesystem := func(row int, name string, age time.Duration) {
			d := b.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: name})
			b.DeviceValues.Set(d, proto.GroupDevice.Time(), day.Add(-age).UnixNano())
			for _, id := range []proto.MetricID{proto.FilesystemUsage, proto.FilesystemLimit, proto.FilesystemAvailable, proto.FilesystemInodes, proto.FilesystemInodesFree, proto.FilesystemInodesUsed} {
				b.DeviceValues.Set(d, id.Field(), r.Int64N(1<<38)&^4095)
			}
		}
		sample(b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: b.Node}))
		network(0)
		for p := range pods {
			pod := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: fmt.Sprintf("team-%02d", p%7), Name: fmt.Sprintf("web-7d8f9c-%05x", r.UintN(1<<20)),
				UID: fmt.Sprintf("%08x-0000-4000-8000-%012x", r.Uint32(), p), Phase: proto.PhaseRunning, Flags: proto.FlagCgroup,
				Owner: proto.Owner{Kind: "ReplicaSet", Name: fmt.Sprintf("web-%d", p%10)}, Labels: []proto.Label{{Key: "app", Value: "web"}, {Key: "tier", Value: fmt.Sprint(p % 3)}}})
			sample(pod)
			network(pod)
			filesystem(pod, "Volume:data", time.Minute)
			filesystem(pod, "Volume:kube-api-access", time.Minute)
			for c := range 2 {
				row := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: fmt.Sprint("c", c), Image: "registry.example.com/team/web:v1.2", Flags: proto.FlagRunning})
				sample(row)
				filesystem(row, "/", time.Second)
				filesystem(row, "logs", time.Second)
				b.Values.Set(row, proto.CPURequest.Field(), 100)
				b.Values.Set(row, proto.MemoryRequest.Field(), 1<<27)
			}
		}
		list[n] = b
	}
	return list
}

func encoded(b testing.TB, pods int) (list [2][]byte) {
	b.Helper()
	for i, batch := range nodeBatches(pods) {
		data, err := proto.NewEncoder().Batch(batch)
		if err != nil {
			b.Fatal(err)
		}
		list[i] = data
	}
	return list
}

func values(t *proto.Table) (n int) {
	for _, c := range append(t.Values.All(), t.DeviceValues.All()...) {
		n += c.Present.Count()
	}
	return n
}

// BenchmarkStep is a message of SAMPLES to a message for ROLLUPS, and its parts.
func BenchmarkStep(b *testing.B) {
	for _, pods := range []int{30, 110} {
		msgs := encoded(b, pods)
		dec := proto.NewDecoder()
		report := func(b *testing.B) {
			b.Helper()
			n := values(&nodeBatches(pods)[0].Table)
			perOp := b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(float64(n)/perOp, "samples/s")
			b.ReportMetric(1e6*perOp*1000/float64(2*pods), "µs/1000containers")
		}
		name := fmt.Sprintf("pods=%d", pods)
		b.Run(name+"/whole", func(b *testing.B) {
			m := newMachine(testCluster, testTelemetry(b), slog.New(slog.DiscardHandler))
			batches := nodeBatches(pods)
			enc := proto.NewEncoder()
			seq, size := uint64(0), 0
			subject := bus.SamplesSubject(testCluster, batches[0].Node)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				seq++
				batch := batches[seq%2]
				at := day.Add(time.Duration(seq) * 15 * time.Second)
				batch.Tick = proto.TickAt(at, 15*time.Second)
				shift(batch)
				data, err := enc.Batch(batch)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := m.step(bus.Delivery{Subject: subject, Seq: seq, Time: at.Add(time.Second), Data: data}, func(o output) error { size += len(o.data); return nil }); err != nil {
					b.Fatal(err)
				}
			}
			report(b)
			b.ReportMetric(float64(size)/float64(b.N), "bytes/op")
		})
		b.Run(name+"/decode", func(b *testing.B) {
			var batch proto.Batch
			b.ReportAllocs()
			for b.Loop() {
				if err := dec.Batch(msgs[0], &batch); err != nil {
					b.Fatal(err)
				}
			}
			report(b)
		})
		b.Run(name+"/rate", func(b *testing.B) {
			s := rate.New()
			var batch proto.Batch
			n := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				n++
				if err := dec.Batch(msgs[n%2], &batch); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				s.Step(&batch, n*15000)
			}
			report(b)
		})
		b.Run(name+"/rollup", func(b *testing.B) {
			m, r := rollup.New(), &proto.Rollup{}
			batch := nodeBatches(pods)[0]
			rows := len(batch.Entities)
			b.ReportAllocs()
			for b.Loop() {
				m.Node(batch, 1, r)
				r.Entities = r.Entities[:rows]
				batch.Table, r.Table = r.Table, batch.Table
			}
			report(b)
		})
		b.Run(name+"/encode", func(b *testing.B) {
			m, r, s := rollup.New(), &proto.Rollup{}, rate.New()
			batches := nodeBatches(pods)
			s.Step(batches[0], 0)
			s.Step(batches[1], 15000)
			m.Node(batches[1], 1, r)
			enc := proto.NewEncoder()
			size := 0
			b.ReportAllocs()
			for b.Loop() {
				data, err := enc.Rollup(r)
				if err != nil {
					b.Fatal(err)
				}
				size = len(data)
			}
			report(b)
			b.ReportMetric(float64(size), "bytes/op")
		})
	}
}

// shift lets the samples of a batch advance by two steps, so that two batches can take turns for ever.
func shift(b *proto.Batch) {
	for _, c := range b.Values.All() {
		for g := proto.GroupCPU; g <= proto.GroupProcess; g++ {
			if c.Field == g.Time() {
				for row := range c.Values {
					c.Values[row] += 30e9
				}
			}
		}
		if c.Field == proto.CPUUsage.Field() {
			for row := range c.Values {
				c.Values[row] += 2e9
			}
		}
	}
}

// BenchmarkClose is a tick of many nodes: namespaces, workloads and totals, without encoding.
func BenchmarkClose(b *testing.B) {
	const nodes = 1000
	m, r := rollup.New(), &proto.Rollup{}
	shares := make([]*rollup.Share, nodes)
	for i := range shares {
		batch := nodeBatches(30)[0]
		for row := range batch.Entities { // every node has pods of its own
			if e := &batch.Entities[row]; e.Kind == proto.KindPod {
				e.Name, e.UID = fmt.Sprint(e.Name, "-", i), fmt.Sprint(e.UID, "-", i)
			}
		}
		shares[i] = m.Node(batch, 1, r)
	}
	b.ReportAllocs()
	for b.Loop() {
		t := m.Tick(shares, nil)
		for i := range t.Namespaces() {
			m.Namespace(t, i, r)
		}
		m.Totals(t, r)
	}
	b.ReportMetric(1e6*b.Elapsed().Seconds()/float64(b.N)*1000/(nodes*60), "µs/1000containers")
}

// BenchmarkCluster is one tick of a cluster, all nodes of which are remembered: what a step costs when the
// state of its node is in no cache any more, and what is held.
func BenchmarkCluster(b *testing.B) {
	const nodes, pods, ticks = 300, 30, 6
	var msgs [ticks][nodes]bus.Delivery
	enc := proto.NewEncoder()
	for n := range nodes {
		batches := nodeBatches(pods)
		for k := range ticks {
			batch := batches[k%2]
			batch.Node = fmt.Sprintf("node-%04d.example.com", n)
			batch.Entities[0].Name = batch.Node
			for row := range batch.Entities {
				if e := &batch.Entities[row]; e.Kind == proto.KindPod {
					e.Name = fmt.Sprintf("web-7d8f9c-%03d-%05d", n, row)
					e.UID = fmt.Sprintf("%08x-0000-4000-8000-%012x", n, row)
				}
			}
			at := day.Add(time.Duration(k) * 15 * time.Second)
			batch.Tick = proto.TickAt(at, 15*time.Second)
			data, err := enc.Batch(batch)
			if err != nil {
				b.Fatal(err)
			}
			msgs[k][n] = bus.Delivery{Subject: bus.SamplesSubject(testCluster, batch.Node), Seq: uint64(k*nodes + n + 1), Time: at.Add(time.Second + time.Duration(n)*time.Millisecond), Data: data}
			shift(batch)
		}
	}
	var m *machine
	emit := func(output) error { return nil }
	tick := func(k int) {
		for n := range nodes {
			if err := m.step(msgs[k][n], emit); err != nil {
				b.Fatal(err)
			}
		}
	}
	var before, after runtime.MemStats
	b.ReportAllocs()
	for k := ticks; b.Loop(); k++ {
		if k == ticks {
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&before)
			m = newMachine(testCluster, testTelemetry(b), slog.New(slog.DiscardHandler))
			tick(0)
			tick(1)
			runtime.GC()
			runtime.ReadMemStats(&after)
			k = 2
			b.StartTimer()
		}
		tick(k)
	}
	b.ReportMetric(1e6*b.Elapsed().Seconds()/float64(b.N)*1000/(nodes*2*pods), "µs/1000containers")
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024/nodes, "KiB/node")
}
