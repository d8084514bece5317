package proto

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// testBatch builds the batch of a made-up node: pods x containers with every kind of row, device
// and column that a summary source gives. Equal seeds give equal batches.
func testBatch(seed uint64, pods, containers int) *Batch {
	r := rand.New(rand.NewPCG(seed, 1))
	at := time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)
	b := &Batch{Cluster: "prod", Node: "node-0001.example.com", Tick: TickAt(at, time.Minute), Resolution: time.Minute, Source: "kubernetes.summary_api"}
	b.Scraped = at.Add(1500 * time.Millisecond).UnixNano()
	sample := func(row int, cpu int64, memory int64) {
		v := &b.Values
		when := at.Add(-time.Duration(r.IntN(20)) * time.Second).UnixNano()
		v.Set(row, FieldStart, at.Add(-time.Duration(r.IntN(1e6))*time.Second).UnixNano())
		for _, g := range []Group{GroupCPU, GroupMemory, GroupIO, GroupSwap} {
			v.Set(row, g.Time(), when)
		}
		v.Set(row, CPUUsage.Field(), cpu)
		v.Set(row, MemoryUsage.Field(), memory)
		v.Set(row, MemoryWorkingSet.Field(), memory*8/10)
		v.Set(row, MemoryRSS.Field(), memory*7/10)
		v.Set(row, MemoryPageFaults.Field(), r.Int64N(1e9))
		v.Set(row, MemoryMajorFaults.Field(), r.Int64N(1e4))
		v.Set(row, SwapUsage.Field(), 0)
		for _, p := range []MetricID{CPUPressure, MemoryPressure, IOPressure} {
			for _, o := range []MetricID{PressureSomeTotal, PressureFullTotal} {
				v.Set(row, (p + o).Field(), r.Int64N(1e9))
			}
			for _, o := range []MetricID{PressureSomeAvg10, PressureSomeAvg60, PressureSomeAvg300, PressureFullAvg10, PressureFullAvg60, PressureFullAvg300} {
				v.Set(row, (p + o).Field(), int64(r.IntN(3)))
			}
		}
	}
	network := func(row int) {
		b.Values.Set(row, GroupNetwork.Time(), at.Add(-5*time.Second).UnixNano())
		for i, id := range []MetricID{NetworkRx, NetworkRxErrors, NetworkTx, NetworkTxErrors} {
			v := r.Int64N(1e12) * int64(1-i%2)
			b.Values.Set(row, id.Field(), v)
		}
		d := b.AddDevice(Device{Entity: int32(row), Kind: DeviceInterface, Name: "eth0"})
		b.DeviceValues.Set(d, GroupDevice.Time(), at.Add(-5*time.Second).UnixNano())
		b.DeviceValues.Set(d, InterfaceRx.Field(), r.Int64N(1e12))
		b.DeviceValues.Set(d, InterfaceTx.Field(), r.Int64N(1e12))
	}
	filesystem := func(row int, name, claim string) {
		d := b.AddDevice(Device{Entity: int32(row), Kind: DeviceFilesystem, Name: name, Claim: claim})
		b.DeviceValues.Set(d, GroupDevice.Time(), at.Add(-30*time.Second).UnixNano())
		for _, id := range []MetricID{FilesystemUsage, FilesystemLimit, FilesystemAvailable, FilesystemInodes, FilesystemInodesFree, FilesystemInodesUsed} {
			b.DeviceValues.Set(d, id.Field(), r.Int64N(1<<38)&^4095)
		}
	}
	b.AddEntity(Entity{Kind: KindNode, Parent: -1, Name: b.Node, UID: "c0ffee00-0000-4000-8000-000000000001", Hostname: b.Node,
		Labels: []Label{{"kubernetes.io/hostname", b.Node}, {"topology.kubernetes.io/zone", "r1a"}}})
	sample(0, 5e15, 1<<33)
	network(0)
	filesystem(0, "/", "")
	b.Values.Set(0, CPUNodeCapacity.Field(), 8000)
	for _, name := range []string{"kubelet", "docker-daemon", "pods"} {
		sample(b.AddEntity(Entity{Kind: KindSystemContainer, Name: name}), 1e14, 1<<27)
	}
	for p := range pods {
		ns := fmt.Sprintf("team-%02d", p%7)
		uid := fmt.Sprintf("%08x-%04x-4%03x-8%03x-%012x", r.Uint32(), r.UintN(1<<16), r.UintN(1<<12), r.UintN(1<<12), r.Uint64N(1<<48))
		pod := b.AddEntity(Entity{Kind: KindPod, Name: fmt.Sprintf("web-7d8f9c-%05x", r.UintN(1<<20)), Namespace: ns, UID: uid, Phase: PhaseRunning, Flags: FlagCgroup,
			Owner: Owner{"ReplicaSet", "web-7d8f9c"}, Labels: []Label{{"app", "web"}, {"pod-template-hash", "7d8f9c"}, {"tier", fmt.Sprint("t", p%3)}}})
		sample(pod, r.Int64N(1e15), r.Int64N(1<<30)&^4095)
		network(pod)
		filesystem(pod, "Volume:data", "claim-web")
		filesystem(pod, "Volume:kube-api-access", "")
		for c := range containers {
			row := b.AddEntity(Entity{Kind: KindContainer, Parent: int32(pod), Name: fmt.Sprint("c", c), Image: fmt.Sprintf("registry.example.com/team/c%d:v1.2", c), Flags: FlagRunning})
			sample(row, r.Int64N(1e15), r.Int64N(1<<29)&^4095)
			filesystem(row, "/", "")
			filesystem(row, "logs", "")
			b.Values.Set(row, CPURequest.Field(), 100)
			b.Values.Set(row, MemoryRequest.Field(), 1<<27)
		}
	}
	b.Extras = append(b.Extras, Extra{Entity: int32(len(b.Entities) - 1), Name: "custom/queue_length", Value: Float(1.5)})
	return b
}

// tableDiff compares two tables by what a reader can see of them.
func tableDiff(a, b *Table) string {
	if d := cmp.Diff(a.Entities, b.Entities); d != "" {
		return d
	}
	if d := cmp.Diff(a.Devices, b.Devices); d != "" {
		return d
	}
	if d := cmp.Diff(a.Extras, b.Extras, cmp.AllowUnexported(Value{})); d != "" {
		return d
	}
	dump := func(c *Columns, rows int) map[string]int64 {
		m := map[string]int64{}
		for f := range fieldSlots {
			for row := range rows {
				if v, ok := c.Get(row, f); ok {
					m[fmt.Sprint(row, "/", f)] = v
				}
			}
		}
		return m
	}
	return cmp.Diff(dump(&a.Values, len(a.Entities)), dump(&b.Values, len(b.Entities))) +
		cmp.Diff(dump(&a.DeviceValues, len(a.Devices)), dump(&b.DeviceValues, len(b.Devices)))
}

func TestBatchSurvivesTheWire(t *testing.T) {
	enc, dec := NewEncoder(), NewDecoder()
	var got Batch
	for _, shape := range [][2]int{{0, 0}, {1, 1}, {30, 2}, {110, 2}, {3, 3}} { // got is reused: large, then small
		want := testBatch(7, shape[0], shape[1])
		data, err := enc.Batch(want)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Batch(data, &got); err != nil {
			t.Fatal(err)
		}
		if got.Cluster != want.Cluster || got.Node != want.Node || got.Tick != want.Tick || got.Resolution != want.Resolution || got.Scraped != want.Scraped || got.Source != want.Source {
			t.Fatalf("header: got %+v", got)
		}
		if d := tableDiff(&want.Table, &got.Table); d != "" {
			t.Fatalf("%v: %s", shape, d)
		}
	}
}

// benchBatches are a real kubelet's answer (6 pods, 8 containers; as the scraper decoded it), and nodes
// of 30 and of 110 pods.
func benchBatches(b *testing.B, f func(b *testing.B, batch *Batch)) {
	b.Run("recorded", func(b *testing.B) {
		data, err := os.ReadFile("testdata/recorded-batch.golden")
		if err != nil {
			b.Fatal(err)
		}
		batch := new(Batch)
		if err := NewDecoder().Batch(data, batch); err != nil {
			b.Fatal(err)
		}
		f(b, batch)
	})
	for _, pods := range []int{30, 110} {
		b.Run(fmt.Sprintf("pods=%d/containers=2", pods), func(b *testing.B) { f(b, testBatch(1, pods, 2)) })
	}
}

func BenchmarkEncodeBatch(b *testing.B) {
	benchBatches(b, func(b *testing.B, batch *Batch) {
		enc, size := NewEncoder(), 0
		b.ReportAllocs()
		for b.Loop() {
			data, err := enc.Batch(batch)
			if err != nil {
				b.Fatal(err)
			}
			size = len(data)
		}
		b.ReportMetric(float64(size), "bytes/msg")
	})
}

func BenchmarkDecodeBatch(b *testing.B) {
	benchBatches(b, func(b *testing.B, batch *Batch) {
		data, err := NewEncoder().Batch(batch)
		if err != nil {
			b.Fatal(err)
		}
		dec := NewDecoder()
		var got Batch
		b.ReportAllocs()
		for b.Loop() {
			if err := dec.Batch(data, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// jsonEntity is an entity as a JSON message would have it: what the codec is compared with.
type jsonEntity struct {
	Kind, Name, Namespace, UID, Image string
	Parent                            int32
	Labels                            []Label                     `json:",omitempty"`
	Values                            map[string]int64            `json:",omitempty"`
	Devices                           map[string]map[string]int64 `json:",omitempty"`
}

func jsonEntities(t *Table) (all []jsonEntity) {
	name := func(f Field) string {
		if m := MetricByID(MetricID(f)); m != nil {
			return m.Name
		}
		return fmt.Sprint("field-", f)
	}
	for i := range t.Entities {
		e := &t.Entities[i]
		j := jsonEntity{Kind: e.Kind.String(), Name: e.Name, Namespace: e.Namespace, UID: e.UID, Image: e.Image, Parent: e.Parent, Labels: e.Labels,
			Values: map[string]int64{}, Devices: map[string]map[string]int64{}}
		for _, c := range t.Values.All() {
			if c.Present.Has(i) {
				j.Values[name(c.Field)] = c.Values[i]
			}
		}
		from, to := t.DevicesOf(i)
		for d := from; d < to; d++ {
			values := map[string]int64{}
			for _, c := range t.DeviceValues.All() {
				if c.Present.Has(d) {
					values[name(c.Field)] = c.Values[d]
				}
			}
			j.Devices[t.Devices[d].Name] = values
		}
		all = append(all, j)
	}
	return all
}

// BenchmarkEncodeJSON and BenchmarkDecodeJSON are the same batches through encoding/json, uncompressed.
func BenchmarkEncodeJSON(b *testing.B) {
	benchBatches(b, func(b *testing.B, batch *Batch) {
		entities, size := jsonEntities(&batch.Table), 0
		b.ReportAllocs()
		for b.Loop() {
			data, err := json.Marshal(entities)
			if err != nil {
				b.Fatal(err)
			}
			size = len(data)
		}
		b.ReportMetric(float64(size), "bytes/msg")
	})
}

func BenchmarkDecodeJSON(b *testing.B) {
	benchBatches(b, func(b *testing.B, batch *Batch) {
		data, err := json.Marshal(jsonEntities(&batch.Table))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			var got []jsonEntity
			if err := json.Unmarshal(data, &got); err != nil {
				b.Fatal(err)
			}
		}
	})
}
