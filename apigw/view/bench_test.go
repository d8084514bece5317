package view

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// largeNode is a node of 30 pods x 2 containers with everything that kubelets tell.
func largeNode(name string, tick proto.Tick) *proto.Rollup {
	s := &stage{now: tick.Time()}
	r := s.node(name)
	used(s, r, 0, 3*time.Second, 20e9, 10*time.Second, 1<<30)
	for p := range 30 {
		row := pod(r, fmt.Sprint("ns-", p%5), fmt.Sprint(name, "-pod-", p))
		for c := range 2 {
			used(s, r, container(r, row, fmt.Sprint("c", c), proto.FlagRunning), time.Duration(p%10)*time.Second, int64(1e8*(p+c)), 10*time.Second, int64(p+1)<<20)
		}
	}
	for row := range r.Entities {
		for id := proto.MetricID(5); id < 30; id++ {
			if m := proto.MetricByID(id); m != nil && m.Formula == proto.FormulaNone {
				r.Values.Set(row, id.Field(), (int64(tick)%7919)*int64(row+1)*int64(id))
			}
		}
		for id := proto.CPUPressure; id < proto.CPUPressure+30; id++ {
			if m := proto.MetricByID(id); m != nil && m.Formula == proto.FormulaNone {
				r.Values.Set(row, id.Field(), int64(row%3))
			}
		}
		for d := range 2 {
			i := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: fmt.Sprint("fs", d)})
			for _, id := range []proto.MetricID{proto.FilesystemUsage, proto.FilesystemLimit, proto.FilesystemAvailable, proto.FilesystemInodes, proto.FilesystemInodesFree} {
				r.DeviceValues.Set(i, id.Field(), int64(row)<<20)
			}
		}
	}
	return r
}

// crowd is a view of 1000 nodes of 30 pods.
func crowd(b *testing.B) *Cluster { return arrive(b, crowdOf(1000)) }

// crowdOf are rollups of nodes of 30 pods in 50 namespaces.
func crowdOf(nodes int) []*proto.Rollup {
	all := make([]*proto.Rollup, nodes)
	for n := range all {
		s := &stage{now: begin}
		r := s.node(fmt.Sprintf("node-%04d", n))
		used(s, r, 0, time.Second, 1e9, 10*time.Second, 1<<30)
		for p := range 30 {
			row := pod(r, fmt.Sprintf("ns-%02d", (n*30+p)%50), fmt.Sprintf("pod-%d-%d", n, p))
			for i := range 2 {
				used(s, r, container(r, row, fmt.Sprint("c", i), proto.FlagRunning), time.Second, 1e9, 10*time.Second, 1<<20)
			}
		}
		all[n] = r
	}
	return all
}

// arrive makes a view of rollups.
func arrive(b *testing.B, rollups []*proto.Rollup) *Cluster {
	v, err := New(Config{Window: DefaultWindow}, Deps{Now: func() time.Time { return begin }})
	if err != nil {
		b.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		b.Fatal(err)
	}
	for n, r := range rollups {
		c.Apply(r, Origin{Seq: uint64(n), Time: begin, Live: true})
	}
	return c
}

// BenchmarkArrive is the first rollup of every node of a cluster of 5000, each with pods that nobody knew.
func BenchmarkArrive(b *testing.B) {
	rollups := crowdOf(5000)
	b.ReportAllocs()
	for b.Loop() {
		arrive(b, rollups)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(rollups)), "µs/node")
}

func BenchmarkList(b *testing.B) {
	c := crowd(b)
	b.Run("nodes=1000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for range c.Nodes() {
				n++
			}
			if n != 1000 {
				b.Fatal(n)
			}
		}
	})
	b.Run("pods=600", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for range c.Pods("ns-07") {
				n++
			}
			if n != 600 {
				b.Fatal(n)
			}
		}
	})
}

// BenchmarkIngest decodes and applies the rollup of one node, tick after tick.
func BenchmarkIngest(b *testing.B) {
	v, err := New(Config{Window: DefaultWindow}, Deps{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		b.Fatal(err)
	}
	enc, dec := proto.NewEncoder(), proto.NewDecoder()
	first := proto.TickAt(begin, resolution)
	messages := make([][]byte, 64)
	for i := range messages {
		if messages[i], err = enc.Rollup(largeNode("n1", first.Add(i, resolution))); err != nil {
			b.Fatal(err)
		}
	}
	var r proto.Rollup
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := dec.Rollup(messages[i%len(messages)], &r); err != nil {
			b.Fatal(err)
		}
		r.Tick = first.Add(i, resolution)
		c.Apply(&r, Origin{Seq: uint64(i), Time: r.Tick.Time(), Live: true})
		i++
	}
	b.ReportMetric(float64(len(messages[0])), "B/message")
}

// BenchmarkPresentMemory measures what a view holds beside the past: who there is, with names and labels, what is
// served now, and the newest tick of every metric.
func BenchmarkPresentMemory(b *testing.B) {
	const nodes = 34
	enc := proto.NewEncoder()
	messages := make([][]byte, nodes)
	for n := range messages {
		var err error
		if messages[n], err = enc.Rollup(largeNode(fmt.Sprintf("node-%04d.example.com", n), proto.TickAt(begin, resolution))); err != nil {
			b.Fatal(err)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var mib float64
	for b.Loop() {
		before := heap()
		v, err := New(Config{Window: DefaultWindow}, Deps{})
		if err != nil {
			b.Fatal(err)
		}
		c, err := v.Add("c")
		if err != nil {
			b.Fatal(err)
		}
		dec := proto.NewDecoder()
		var r proto.Rollup
		for n, m := range messages {
			if err := dec.Rollup(m, &r); err != nil {
				b.Fatal(err)
			}
			c.Apply(&r, Origin{Seq: uint64(n), Time: r.Tick.Time(), Live: true})
		}
		r, dec = proto.Rollup{}, nil
		mib = float64(heap()-before) / (1 << 20) / (nodes * 60) * 1000
		runtime.KeepAlive(v)
	}
	b.ReportMetric(mib, "MiB/1000containers")
}

// BenchmarkIngestMany decodes and applies the rollups of many nodes in turn, tick after tick, as a gateway does: what
// one node's rollup needs is not in the processor's caches when its turn comes. Counters grow, gauges walk.
func BenchmarkIngestMany(b *testing.B) {
	const nodes, ticks = 200, 6
	v, err := New(Config{Window: DefaultWindow}, Deps{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := v.Add("c")
	if err != nil {
		b.Fatal(err)
	}
	enc, dec := proto.NewEncoder(), proto.NewDecoder()
	first := proto.TickAt(begin, resolution)
	messages := make([][]byte, 0, nodes*ticks)
	rollups := make([]*proto.Rollup, nodes)
	random := rand.New(rand.NewPCG(1, 2))
	for range ticks {
		for n := range rollups {
			if rollups[n] == nil {
				rollups[n] = largeNode(fmt.Sprintf("node-%04d", n), first)
			}
			r := rollups[n]
			for row := range r.Entities {
				for id := proto.MetricID(2); id < 30; id++ {
					m := proto.MetricByID(id)
					if m == nil || m.Formula != proto.FormulaNone || m.Group == proto.GroupNone {
						continue
					}
					if m.Shape == proto.Counter {
						grown := random.Int64N(1 << 30)
						r.Values.Add(row, id.Field(), grown)
						r.Values.Set(row, id.Delta(), grown)
					} else {
						r.Values.Add(row, id.Field(), (random.Int64N(400)-200)*4096)
					}
				}
			}
			data, err := enc.Rollup(r)
			if err != nil {
				b.Fatal(err)
			}
			messages = append(messages, slices.Clone(data))
		}
	}
	var r proto.Rollup
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		if err := dec.Rollup(messages[i%len(messages)], &r); err != nil {
			b.Fatal(err)
		}
		r.Tick = first.Add(i/nodes, resolution)
		c.Apply(&r, Origin{Seq: uint64(i), Time: r.Tick.Time(), Live: true})
		i++
	}
	b.ReportMetric(float64(len(messages[0])), "B/message")
}
