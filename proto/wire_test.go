package proto

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/s2"
)

var update = flag.Bool("update", false, "renew golden files")

func testRollup(scope Scope) *Rollup {
	b := testBatch(5, 2, 2)
	r := &Rollup{Scope: scope, Cluster: b.Cluster, Name: b.Node, Tick: b.Tick, Resolution: b.Resolution, Seq: 4711, Source: b.Source, Table: b.Table}
	if scope == ScopeTotals {
		r.Name = ""
		r.Table = Table{}
		r.AddEntity(Entity{Kind: KindCluster, Parent: -1})
		r.Values.Set(0, CPUUsageRate.Field(), 12345)
		r.Totals = Totals{Expected: 5, Reported: 3, StandIn: 1, StandIns: 7, Missing: []string{"n4", "n5"}, Gap: true, ResumeSeq: 1000, InventorySeq: 900, StreamTime: int64(b.Tick) + 12_000, JumpEnd: 3}
	}
	return r
}

func testInventory() *Inventory {
	return &Inventory{Cluster: "prod", Subject: InventoryOwners, Revision: 1 << 60, Part: 1, Parts: 2, Resolution: 15 * time.Second, Grace: 12 * time.Second,
		Nodes:      []InventoryNode{{"n1", "u1"}, {"n2", ""}},
		Namespaces: []InventoryNamespace{{Name: "default", UID: "u3", Labels: []Label{{"a", "b"}}}},
		Owners:     []InventoryOwner{{Namespace: "default", Object: Owner{"ReplicaSet", "web-1"}, Owner: Owner{"Deployment", "web"}}}}
}

func TestRollupAndInventorySurviveTheWire(t *testing.T) {
	enc, dec := NewEncoder(), NewDecoder()
	for _, scope := range []Scope{ScopeNode, ScopeTotals, ScopeNamespace} {
		want := testRollup(scope)
		if scope == ScopeTotals {
			want.Totals.Contested, want.Totals.PodsWithoutRate, want.Totals.ContainersWithoutRate = 1, 2, 1<<32-1
		}
		data, err := enc.Rollup(want)
		if err != nil {
			t.Fatal(err)
		}
		var got, header Rollup
		if err := dec.Rollup(data, &got); err != nil {
			t.Fatal(err)
		}
		if err := dec.RollupHeader(data, &header); err != nil {
			t.Fatal(err)
		}
		if d := tableDiff(&want.Table, &got.Table); d != "" {
			t.Error(d)
		}
		got.Table, want.Table = Table{}, Table{}
		ignoreTable := cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Table" }, cmp.Ignore())
		if d := cmp.Diff(want, &got, ignoreTable); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(want, &header, ignoreTable); d != "" {
			t.Errorf("header alone: %s", d)
		}
	}
	data, err := enc.Inventory(testInventory())
	if err != nil {
		t.Fatal(err)
	}
	var inv Inventory
	if err := dec.Inventory(data, &inv); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(testInventory(), &inv); d != "" {
		t.Error(d)
	}
	data, err = enc.Clock("prod")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := dec.Clock(data); err != nil || c != "prod" {
		t.Errorf("clock mark: %q, %v", c, err)
	}
}

func TestEqualMessagesHaveEqualBytes(t *testing.T) {
	used := NewEncoder()
	if _, err := used.Batch(testBatch(9, 50, 3)); err != nil {
		t.Fatal(err)
	}
	a, err := used.Batch(testBatch(1, 5, 2))
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewEncoder().Batch(testBatch(1, 5, 2))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("what an encoder wrote before shows in its next message")
	}
}

// What a released version wrote must be readable for ever: these files are never renewed, only
// joined by those of later schemas.
func TestGoldenMessagesOfSchema1Decode(t *testing.T) {
	enc := NewEncoder()
	messages := map[string]func() ([]byte, error){
		"batch":     func() ([]byte, error) { return enc.Batch(testBatch(5, 2, 2)) },
		"node":      func() ([]byte, error) { return enc.Rollup(testRollup(ScopeNode)) },
		"totals":    func() ([]byte, error) { return enc.Rollup(testRollup(ScopeTotals)) },
		"inventory": func() ([]byte, error) { return enc.Inventory(testInventory()) },
		"clock":     func() ([]byte, error) { return enc.Clock("prod") },
	}
	for name, encode := range messages {
		path := filepath.Join("testdata", "schema1-"+name+".golden")
		if *update {
			data, err := encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err == nil {
				t.Logf("%s is released: kept", path)
				continue
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("testdata", "schema1-"+name+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	dec := NewDecoder()
	var b Batch
	if err := dec.Batch(read("batch"), &b); err != nil {
		t.Fatal(err)
	}
	if d := tableDiff(&testBatch(5, 2, 2).Table, &b.Table); d != "" {
		t.Error(d)
	}
	for _, scope := range []Scope{ScopeNode, ScopeTotals} {
		var r Rollup
		if err := dec.Rollup(read(map[Scope]string{ScopeNode: "node", ScopeTotals: "totals"}[scope]), &r); err != nil {
			t.Fatal(err)
		}
		want := testRollup(scope)
		if d := tableDiff(&want.Table, &r.Table) + cmp.Diff(want.Totals, r.Totals); d != "" || r.Seq != want.Seq || r.Tick != want.Tick {
			t.Error(d)
		}
	}
	var inv Inventory
	if err := dec.Inventory(read("inventory"), &inv); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(testInventory(), &inv); d != "" {
		t.Error(d)
	}
	if _, err := dec.Clock(read("clock")); err != nil {
		t.Error(err)
	}
}

func TestReadersSkipWhatNewerWritersAdd(t *testing.T) {
	enc := NewEncoder()
	b := testBatch(2, 1, 1)
	data, err := enc.message(typeBatch, func() {
		e := enc
		e.array(8) // two more than we know
		e.str(b.Cluster)
		e.str(b.Node)
		e.int(int64(b.Tick))
		e.int(int64(b.Resolution))
		e.str(b.Source)
		e.uint(0)
		e.str("from the future")
		e.array(1)
		e.uint(7)
	}, func() error {
		if err := enc.table(&b.Table); err != nil {
			return err
		}
		// one more element in the table, and one more column of an id that nobody knows
		body := enc.body.Bytes()
		body[0]++ // fixarray of 7 becomes 8
		enc.str("new")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got Batch
	if err := NewDecoder().Batch(data, &got); err != nil {
		t.Fatal(err)
	}
	if d := tableDiff(&b.Table, &got.Table); d != "" {
		t.Error(d)
	}
	var c Columns
	c.Set(0, fieldSlots+5, 1) // a field beyond this version's
	if len(c.All()) != 0 {
		t.Error("an unknown field was stored")
	}
}

func TestNewerSchemaIsToldApartFromDamage(t *testing.T) {
	data, err := NewEncoder().Batch(testBatch(2, 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	newer := bytes.Clone(data)
	newer[1] = 2 // [array 5, schema, …
	var b Batch
	if err := NewDecoder().Batch(newer, &b); !errors.Is(err, ErrSchema) {
		t.Errorf("schema 2: %v", err)
	}
	var r Rollup
	if err := NewDecoder().Rollup(data, &r); !errors.Is(err, ErrMalformed) {
		t.Errorf("a batch read as rollup: %v", err)
	}
}

func TestDecoderRefusesDamage(t *testing.T) {
	whole, err := NewEncoder().Batch(testBatch(2, 3, 2))
	if err != nil {
		t.Fatal(err)
	}
	dec := NewDecoder()
	var b Batch
	for n := range whole {
		if err := dec.Batch(whole[:n], &b); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	for _, bad := range [][]byte{
		{0xdd, 0xff, 0xff, 0xff, 0xff, 1},              // an array of 4 G elements
		{0x95, 1, 1, 0xdd, 0x00, 0x10, 0x00, 0x00},     // a header of a million
		[]byte("{\"node\":{}}"), {}, {0xc0}, {0x95, 0}, // JSON, nothing, nil, schema 0
	} {
		if err := dec.Batch(bad, &b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	if err := dec.Batch(whole, &b); err != nil {
		t.Errorf("after all that damage: %v", err)
	}
}

// Errors name the node and what of its message is wrong.
func TestErrorsNameWhatIsWrong(t *testing.T) {
	encode := func(spoil func(b *Batch)) []byte {
		b := testBatch(1, 1, 1)
		spoil(b)
		data, err := NewEncoder().Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	whole := encode(func(*Batch) {})
	last := func(b *Batch) *Entity { return &b.Entities[len(b.Entities)-1] }
	for _, c := range []struct {
		data []byte
		want string
	}{
		{[]byte("garbage"), "decode batch: message is malformed: frame: "},
		{whole[:12], "decode batch: message is malformed: header: "},
		{whole[:len(whole)-1], "message is malformed: body: "},
		{encode(func(b *Batch) { b.Resolution = -1 }), "message is malformed: header: duration -1 ns"},
		{encode(func(b *Batch) { last(b).Parent = -1 }), fmt.Sprintf(" entities: container %q belongs to no pod", last(testBatch(1, 1, 1)).Name)},
		{encode(func(b *Batch) { b.Devices[0].Entity = -1 }), " devices, entity: row -1 of "},
		{encode(func(b *Batch) { b.Extras[0].Entity = 99 }), " values outside the catalogue: one of entity 99 of "},
	} {
		err := NewDecoder().Batch(c.data, new(Batch))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want it to say %q", err, c.want)
		}
		if strings.Contains(c.want, "entit") && !strings.Contains(fmt.Sprint(err), `node "`+testBatch(1, 1, 1).Node+`"`) {
			t.Errorf("%v does not name the node", err)
		}
	}
	for field, want := range map[Field]string{CPUUsage.Field(): "column of cpu/usage ", CPUUsage.Delta(): "column of growth of cpu/usage ",
		GroupMemory.Time(): "column of times of group 2 ", FieldStart: "column of start ", 250: "column of field 250 "} {
		func() {
			defer func() {
				if p, ok := recover().(malformed); !ok || !strings.Contains(p.err.Error(), want+"ends at row 1 of 2") {
					t.Errorf("%v, want it to say %q", p.err, want)
				}
			}()
			NewDecoder().column(&Column{Field: field}, []byte{0, 2}, 2)
		}()
	}
}

func TestBombsAreRefusedBeforeTheyGrow(t *testing.T) {
	enc := NewEncoder()
	const size = 40 << 20
	enc.array(5)
	enc.uint(Schema)
	enc.uint(typeBatch)
	enc.array(6)
	enc.str("c")
	enc.str("n")
	enc.int(0)
	enc.int(0)
	enc.str("")
	enc.uint(0)
	enc.uint(size)
	enc.bin(s2.Encode(nil, make([]byte, size))) // not Snappy, but read by the same library
	bomb := enc.body.Bytes()
	if len(bomb) > 1<<16 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	var before, after runtime.MemStats
	dec := NewDecoder()
	var b Batch
	runtime.ReadMemStats(&before)
	if err := dec.Batch(bomb, &b); !errors.Is(err, ErrMalformed) {
		t.Errorf("bomb: %v", err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("%d bytes were allocated for a message of %d", grown, len(bomb))
	}
}

func TestTooLargeBatchLosesVolumesThenInterfacesThenLabels(t *testing.T) {
	many := func(labels int) *Batch {
		b := testBatch(3, 200, 1)
		pod := 4
		for i := range 60_000 { // incompressible names
			d := b.AddDevice(Device{Entity: int32(len(b.Entities) - 1), Kind: DeviceDisk, Name: "d"})
			b.DeviceValues.Set(d, DiskRead.Field(), int64(i)*7919*104729%(1<<50))
			b.DeviceValues.Set(d, DiskWrite.Field(), int64(i)*104729*15485863%(1<<50))
		}
		for i := range labels {
			b.Entities[pod].Labels = append(b.Entities[pod].Labels, Label{fmt.Sprintf("k%x", uint64(i)*0x9E3779B97F4A7C15), fmt.Sprintf("%x", uint64(i)*0xD1B54A32D192ED03)})
		}
		return b
	}
	small, large := many(0), many(120_000)
	if _, err := NewEncoder().Batch(small); err != nil || small.Dropped != 0 {
		t.Fatalf("the small one: %v, dropped %d", err, small.Dropped)
	}
	data, err := NewEncoder().Batch(large)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > MaxMessageBytes {
		t.Errorf("%d bytes", len(data))
	}
	var got Batch
	if err := NewDecoder().Batch(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Dropped == 0 || got.Dropped != large.Dropped {
		t.Errorf("dropped %d, told %d", large.Dropped, got.Dropped)
	}
	kinds := map[DeviceKind]int{}
	for i := range got.Devices {
		kinds[got.Devices[i].Kind]++
		if d := &got.Devices[i]; strings.HasPrefix(d.Name, "Volume:") {
			t.Fatal("a volume was kept")
		}
	}
	if kinds[DeviceInterface] != 0 || kinds[DeviceFilesystem] == 0 || kinds[DeviceDisk] != 60_000 {
		t.Errorf("kept %v", kinds)
	}
	if len(got.Entities) != len(large.Entities) {
		t.Errorf("%d of %d entities", len(got.Entities), len(large.Entities))
	}
}

// A node's rollup is capped as its batch was, which it can outgrow by what was added to it; a namespace has
// nothing to leave out but its workloads.
func TestTooLargeRollupsLoseLessThanEverything(t *testing.T) {
	node := testRollup(ScopeNode)
	random := rand.New(rand.NewPCG(1, 2)) // does not compress
	for range 80_000 {
		d := node.AddDevice(Device{Entity: int32(len(node.Entities) - 1), Kind: DeviceInterface, Name: fmt.Sprintf("%x", random.Uint64())})
		for f := range Field(8) {
			node.DeviceValues.Set(d, InterfaceRx.Field()+f, random.Int64())
		}
	}
	rows := len(node.Entities)
	data, err := NewEncoder().Rollup(node)
	if err != nil {
		t.Fatal(err)
	}
	var got Rollup
	if err := NewDecoder().Rollup(data, &got); err != nil {
		t.Fatal(err)
	}
	if got.Dropped < 80_000 || got.Dropped != node.Dropped || len(got.Entities) != rows || len(data) > MaxMessageBytes {
		t.Errorf("%d values left out, %d of %d rows are there, %d bytes", got.Dropped, len(got.Entities), rows, len(data))
	}

	ns := &Rollup{Scope: ScopeNamespace, Cluster: "c", Name: "jobs"}
	row := ns.AddEntity(Entity{Kind: KindNamespace, Parent: -1, Name: "jobs"})
	ns.Values.Set(row, PodCount.Field(), maxEntities)
	for i := range maxEntities {
		row := ns.AddEntity(Entity{Kind: KindWorkload, Parent: -1, Namespace: "jobs", Name: fmt.Sprint(i), Owner: Owner{"Pod", fmt.Sprint(i)}})
		ns.Values.Set(row, PodCount.Field(), 1)
	}
	if data, err = NewEncoder().Rollup(ns); err != nil {
		t.Fatal(err)
	}
	if err := NewDecoder().Rollup(data, &got); err != nil {
		t.Fatal(err)
	}
	if pods, _ := got.Value(0, PodCount); got.Dropped != maxEntities || len(got.Entities) != 1 || pods != Int(maxEntities) {
		t.Errorf("%d workloads left out, %d rows are there, %s pods", got.Dropped, len(got.Entities), pods)
	}
}

// Rows that stay keep their values, parents and devices when workloads between them are left out.
func TestRowsAroundWorkloadsStayTogether(t *testing.T) {
	var tab Table
	tab.AddEntity(Entity{Kind: KindNode, Parent: -1, Name: "n"})
	tab.AddEntity(Entity{Kind: KindWorkload, Parent: -1, Name: "w"})
	pod := tab.AddEntity(Entity{Kind: KindPod, Parent: 0, Name: "p"})
	c := tab.AddEntity(Entity{Kind: KindContainer, Parent: int32(pod), Name: "c"})
	d := tab.AddDevice(Device{Entity: int32(c), Kind: DeviceFilesystem, Name: "/"})
	tab.DeviceValues.Set(d, FilesystemUsage.Field(), 7)
	tab.Values.Set(1, PodCount.Field(), 1)
	tab.Values.Set(c, MemoryUsage.Field(), 5)
	tab.Extras = append(tab.Extras, Extra{Entity: int32(c), Name: "custom/x", Value: Int(1)})
	if n := dropWorkloads(&tab); n != 1 {
		t.Fatalf("%d workloads left out", n)
	}
	v, _ := tab.Values.Get(2, MemoryUsage.Field())
	if len(tab.Entities) != 3 || tab.Entities[2].Parent != 1 || v != 5 || tab.Devices[0].Entity != 2 || tab.Extras[0].Entity != 2 {
		t.Errorf("%+v, memory %d, device of row %d, extra of row %d", tab.Entities, v, tab.Devices[0].Entity, tab.Extras[0].Entity)
	}
}

func TestColumnsKeepEveryInteger(t *testing.T) {
	for _, values := range [][]int64{
		{0}, {1, 0, -1}, {math.MaxInt64, math.MinInt64, 0, math.MaxInt64}, {4096, 8192, 0}, {1e9, 2e9, 0, -3e9}, {1e3, 1e6, 1e9}, {-4096, 4097},
	} {
		for _, gaps := range []bool{false, true} {
			var c Columns
			for i, v := range values {
				if !gaps || i%2 == 0 {
					c.Set(i, CPUUsage.Field(), v)
				}
			}
			col := c.Column(CPUUsage.Field())
			bin := appendColumn(nil, col, len(values), col.Present.Count())
			var back Columns
			NewDecoder().column(back.column(CPUUsage.Field()), bin, len(values))
			for i, v := range values {
				got, ok := back.Get(i, CPUUsage.Field())
				if want := !gaps || i%2 == 0; ok != want || ok && got != v {
					t.Errorf("%v gaps=%v: row %d is %d, %v", values, gaps, i, got, ok)
				}
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/schema1-*.golden")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden messages", err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path) //nolint:gosec // a test's own file
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	dec, enc := NewDecoder(), NewEncoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		var b Batch
		var r Rollup
		var v Inventory
		if dec.Batch(data, &b) == nil { // what decodes can be walked, and written again
			walk(&b.Table)
			if _, err := enc.Batch(&b); err != nil {
				t.Fatal(err)
			}
		}
		if dec.Rollup(data, &r) == nil {
			walk(&r.Table)
			if _, err := enc.Rollup(&r); err != nil {
				t.Fatal(err)
			}
		}
		_ = dec.Inventory(data, &v)
		_, _ = dec.Clock(data)
	})
}

// FuzzTable feeds the decoder bodies that are not hidden behind a checksum-like compression.
func FuzzTable(f *testing.F) {
	enc := NewEncoder()
	for _, b := range []*Batch{testBatch(1, 0, 0), testBatch(5, 2, 2)} {
		enc.body.Reset()
		if err := enc.table(&b.Table); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(enc.body.Bytes()))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		data, err := enc.message(typeBatch, func() {
			enc.array(6)
			enc.str("c")
			enc.str("n")
			enc.int(1)
			enc.int(1)
			enc.str("s")
			enc.uint(0)
		}, func() error { enc.body.Write(body); return nil })
		if err != nil {
			return
		}
		var b Batch
		if NewDecoder().Batch(data, &b) == nil {
			walk(&b.Table)
		}
	})
}

func walk(t *Table) {
	f := DefaultLabelFormat()
	for row := range t.Entities {
		_ = f.AppendEntityLabels(nil, t, row)
		_ = AppendKey(nil, t, row)
		for s := range t.Samples(row) {
			_ = s.Value.String()
		}
	}
	for i := range t.Devices {
		_ = t.Devices[i].AppendLabels(nil)
	}
}

// What a decoder knows of a sender's last message must not show in the next one, whatever came and went.
func TestStringsOfTheLastMessageDoNotShow(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	enc, dec := NewEncoder(), NewDecoder()
	nodes := []*Batch{testBatch(1, 30, 1), testBatch(2, 30, 1), testBatch(3, 60, 2)}
	var got Batch
	for round := range 60 {
		n := r.IntN(len(nodes))
		want := nodes[n]
		want.Node = fmt.Sprint("node-", n)
		for range r.IntN(25) { // pods are renamed, lose their labels or get new ones
			e := &want.Entities[1+r.IntN(len(want.Entities)-1)]
			switch r.IntN(4) {
			case 0:
				e.Name = fmt.Sprint("new-", r.IntN(100))
			case 1:
				e.UID = ""
			case 2:
				e.Labels = nil
			case 3:
				e.Labels = []Label{{"app", fmt.Sprint(round)}}
			}
		}
		data, err := enc.Batch(want)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Batch(data, &got); err != nil {
			t.Fatal(err)
		}
		if d := tableDiff(&want.Table, &got.Table); d != "" {
			t.Fatalf("round %d: %s", round, d)
		}
	}
}

// Nodes come and go for ever; what a decoder knows of them does not grow with it.
func TestSilentSendersAreForgotten(t *testing.T) {
	enc, dec := NewEncoder(), NewDecoder()
	b := testBatch(1, 30, 2)
	var got Batch
	send := func(node string) {
		b.Node = node
		data, err := enc.Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Batch(data, &got); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 300 {
		send(fmt.Sprint("passing-", n))
		send("staying")
	}
	if most := 2*round + 1; len(dec.senders) > most {
		t.Errorf("%d senders are remembered, at most %d were expected", len(dec.senders), most)
	}
	sum := 0
	for _, m := range dec.senders {
		sum += len(m.strings)
	}
	if dec.remembered != sum {
		t.Errorf("%d strings are counted, %d remembered", dec.remembered, sum)
	}
	if dec.senders[sender{b.Cluster, "staying", ScopeNode}] == nil {
		t.Error("one that sends is forgotten")
	}
}

// However many send in turn, each one's strings are found where they were: a decoder that forgets by how much it knows
// forgets each sender of a large cluster just before its next message.
func TestSendersThatTakeTurnsAreRemembered(t *testing.T) {
	enc := NewEncoder()
	b := testBatch(1, 30, 2)
	var large [][]byte
	for sum := 0; sum < 3*maxInterned; sum += len(enc.strings) {
		b.Node = fmt.Sprint("node-", len(large))
		data, err := enc.Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		large = append(large, data)
	}
	for _, cluster := range []struct {
		messages [][]byte
		ticks    int
	}{{large, 3}, {large[:10], 3 * round}} {
		dec, got := NewDecoder(), Batch{}
		for tick := range cluster.ticks {
			for _, data := range cluster.messages {
				if err := dec.Batch(data, &got); err != nil {
					t.Fatal(err)
				}
			}
			if len(dec.senders) != len(cluster.messages) {
				t.Fatalf("after tick %d, %d of %d senders are remembered", tick+1, len(dec.senders), len(cluster.messages))
			}
		}
	}
}
