package proto

// The wire format, schema 1.
//
//	message  = [schema, type, header, size, body]        msgpack array
//	header   = array by type, readable without decompressing
//	body     = bin: a Snappy block of `size` bytes of msgpack, by type; no body: size 0
//	table    = [scraped, strings, entities, columns, devices, columns, extras]
//	strings  = array of str; index 0 is "" and is not sent
//	entities = [rows, bin…]  one bin an attribute, in the order of entityBins
//	devices  = [rows, bin…]  likewise
//	columns  = [field, bin, field, bin, …]
//	extras   = array of [entity, name, flags, value]
//
// A column's bin is a head byte, then, unless the head says that every row has a value, a bitmap
// of the rows that do, then one zigzag varint a value: the difference to the value before it, in
// the unit that the head names; or only one where the head says that all are alike. Columns are keyed by catalogue field, so absent is not zero.
//
// Evolution: readers accept longer arrays and skip what they do not know (fields, bins, trailing
// elements); new things go at the end; the meaning or unit of an id never changes. A change that
// old readers cannot skip needs a new schema number, and readers go out before writers. Golden
// messages of every released schema stay in testdata.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/vmihailenco/msgpack/v5"
)

// Schema is the version of the wire format this code writes.
const Schema = 1

// Limits on what travels. The encoder keeps to them and the decoder refuses what does not, before
// it allocates.
const (
	MaxMessageBytes = 4 << 20  // an encoded message; the bus takes 8 MiB
	maxBodyBytes    = 48 << 20 // a decompressed body
	maxEntities     = 1 << 15
	maxDevices      = 1 << 17
	maxExtras       = 1 << 17
	maxStrings      = 1 << 18
	maxStringBytes  = 1 << 13
	maxLabels       = 1 << 19 // of all rows of a message together
	maxColumns      = 1 << 12
	maxParts        = 1 << 12
	maxInventory    = 1 << 18 // rows of one inventory part
)

const (
	typeBatch     = 1
	typeRollup    = 2
	typeInventory = 3
	typeClock     = 4
)

// ErrTooLarge says that a message does not fit into MaxMessageBytes even after everything that may
// be left out has been.
var ErrTooLarge = errors.New("message is larger than the cap")

// Encoder writes messages. It reuses its memory from call to call and is not safe for concurrent
// use. The slices it returns are the caller's.
type Encoder struct {
	body    bytes.Buffer
	mp      *msgpack.Encoder
	scratch []byte // bins of rows
	ends    []int  // where each of them ends
	column  []byte
	packed  []byte
	index   map[string]uint32
	strings []string
}

// NewEncoder returns an encoder.
func NewEncoder() *Encoder {
	e := &Encoder{index: make(map[string]uint32)}
	e.mp = msgpack.NewEncoder(&e.body)
	e.mp.UseCompactInts(true)
	return e
}

// Batch encodes b. Where that exceeds MaxMessageBytes it leaves out, in this order and as far as
// needed: volumes, interfaces, labels of pods; b is altered accordingly and b.Dropped counts them.
func (e *Encoder) Batch(b *Batch) ([]byte, error) {
	data, err := e.within(&b.Table, &b.Dropped, typeBatch, func() {
		e.array(6)
		e.str(b.Cluster)
		e.str(b.Node)
		e.int(int64(b.Tick))
		e.int(int64(b.Resolution))
		e.str(b.Source)
		e.uint(uint64(b.Dropped))
	})
	if err != nil {
		return nil, fmt.Errorf("encode batch of node %q, tick %s: %w", b.Node, b.Tick, err)
	}
	return data, nil
}

// Rollup encodes r. Equal rollups give equal bytes. Where that exceeds MaxMessageBytes it leaves out what
// Batch does, and then workloads, which in a node's rollup are only its shares of them; r is altered
// accordingly and r.Dropped counts them.
func (e *Encoder) Rollup(r *Rollup) ([]byte, error) {
	data, err := e.within(&r.Table, &r.Dropped, typeRollup, func() {
		e.array(9)
		e.uint(uint64(r.Scope))
		e.str(r.Cluster)
		e.str(r.Name)
		e.int(int64(r.Tick))
		e.int(int64(r.Resolution))
		e.uint(r.Seq)
		e.str(r.Source)
		e.uint(uint64(r.Dropped))
		if r.Scope != ScopeTotals {
			e.array(0)
			return
		}
		t := &r.Totals
		missing := t.Missing[:min(len(t.Missing), MaxMissing)]
		e.array(13)
		for _, n := range []uint32{t.Expected, t.Reported, t.StandIn, t.StandIns} {
			e.uint(uint64(n))
		}
		e.array(len(missing))
		for _, name := range missing {
			e.str(name)
		}
		_ = e.mp.EncodeBool(t.Gap)
		e.uint(t.ResumeSeq)
		e.uint(t.InventorySeq)
		e.int(t.StreamTime)
		e.int(t.JumpEnd)
		for _, n := range []uint32{t.Contested, t.PodsWithoutRate, t.ContainersWithoutRate} {
			e.uint(uint64(n))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("encode rollup of %q, tick %s: %w", r.Name, r.Tick, err)
	}
	return data, nil
}

// within encodes a table, and less and less of it until it keeps to the limits. dropped counts what was left
// out; the header is written after that.
func (e *Encoder) within(t *Table, dropped *uint32, kind uint64, header func()) ([]byte, error) {
	var why error
	for _, leaveOut := range []func(*Table) int{nil, dropVolumes, dropInterfaces, dropLabels, dropWorkloads} {
		if leaveOut != nil {
			n := leaveOut(t)
			if n == 0 {
				continue
			}
			*dropped += uint32(n) //nolint:gosec // at most maxLabels
		}
		data, err := e.message(kind, header, func() error { return e.table(t) })
		if err == nil && len(data) > MaxMessageBytes {
			err = fmt.Errorf("%d bytes, at most %d: %w", len(data), MaxMessageBytes, ErrTooLarge)
		}
		if !errors.Is(err, ErrTooLarge) {
			return data, err
		}
		why = err
	}
	return nil, why
}

// Inventory encodes one part. The caller splits a whole so that a part has at most MaxPartRows rows.
func (e *Encoder) Inventory(v *Inventory) ([]byte, error) {
	data, err := e.message(typeInventory, func() {
		e.array(7)
		e.str(v.Cluster)
		e.uint(uint64(v.Subject))
		e.uint(v.Revision)
		e.uint(uint64(v.Part))
		e.uint(uint64(v.Parts))
		e.int(int64(v.Resolution))
		e.int(int64(v.Grace))
	}, func() error {
		e.array(3)
		e.array(len(v.Nodes))
		for i := range v.Nodes {
			e.array(2)
			e.str(v.Nodes[i].Name)
			e.str(v.Nodes[i].UID)
		}
		e.array(len(v.Namespaces))
		for i := range v.Namespaces {
			e.array(3)
			e.str(v.Namespaces[i].Name)
			e.str(v.Namespaces[i].UID)
			e.array(2 * len(v.Namespaces[i].Labels))
			for _, l := range v.Namespaces[i].Labels {
				e.str(l.Key)
				e.str(l.Value)
			}
		}
		e.array(len(v.Owners))
		for i := range v.Owners {
			o := &v.Owners[i]
			e.array(5)
			for _, s := range []string{o.Namespace, o.Object.Kind, o.Object.Name, o.Owner.Kind, o.Owner.Name} {
				e.str(s)
			}
		}
		return nil
	})
	if err == nil && len(data) > MaxMessageBytes {
		err = ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("encode inventory %d of cluster %q: %w", v.Subject, v.Cluster, err)
	}
	return data, nil
}

// MaxPartRows is how many rows an inventory part should have at most: about 1 MiB before compression.
const MaxPartRows = 8192

// Clock encodes a clock mark: a message that says nothing but that its append time has come.
func (e *Encoder) Clock(cluster string) ([]byte, error) {
	return e.message(typeClock, func() { e.array(1); e.str(cluster) }, nil)
}

func (e *Encoder) message(kind uint64, header func(), body func() error) ([]byte, error) {
	e.body.Reset()
	if body != nil {
		if err := body(); err != nil {
			return nil, err
		}
	}
	size := e.body.Len()
	e.packed = e.packed[:0]
	if size > 0 {
		if size > maxBodyBytes {
			return nil, ErrTooLarge
		}
		// Columns are packed already and strings repeat as a whole, so what finds repetitions fast is enough:
		// zstd level 1 makes messages 9 % smaller, 2 % without its entropy coding, at four to five times the
		// cost here, and twice to five times at every reader.
		e.packed = slices.Grow(e.packed, s2.MaxEncodedLen(size))
		e.packed = s2.EncodeSnappy(e.packed[:cap(e.packed)], e.body.Bytes())
	}
	e.body.Reset()
	e.array(5)
	e.uint(Schema)
	e.uint(kind)
	header()
	e.uint(uint64(size)) //nolint:gosec // not negative
	e.bin(e.packed)
	return bytes.Clone(e.body.Bytes()), nil
}

// Writing to a bytes.Buffer does not fail, so the encoder's errors are nil by construction.

func (e *Encoder) array(n int)   { _ = e.mp.EncodeArrayLen(n) }
func (e *Encoder) uint(v uint64) { _ = e.mp.EncodeUint(v) }
func (e *Encoder) int(v int64)   { _ = e.mp.EncodeInt(v) }
func (e *Encoder) str(s string)  { _ = e.mp.EncodeString(s[:min(len(s), maxStringBytes)]) }
func (e *Encoder) bin(b []byte) {
	if b == nil {
		b = []byte{} // nil would become msgpack's nil
	}
	_ = e.mp.EncodeBytes(b)
}

// intern returns the index of a string in the message's table.
func (e *Encoder) intern(s string) uint64 {
	if s == "" {
		return 0
	}
	if len(s) > maxStringBytes {
		s = s[:maxStringBytes]
	}
	i, ok := e.index[s]
	if !ok {
		e.strings = append(e.strings, s)
		i = uint32(len(e.strings)) //nolint:gosec // bounded by maxStrings
		e.index[s] = i
	}
	return uint64(i)
}

func (e *Encoder) table(t *Table) error {
	switch {
	case len(t.Entities) > maxEntities:
		return fmt.Errorf("%d entities, at most %d: %w", len(t.Entities), maxEntities, ErrTooLarge)
	case len(t.Devices) > maxDevices:
		return fmt.Errorf("%d devices, at most %d: %w", len(t.Devices), maxDevices, ErrTooLarge)
	case len(t.Extras) > maxExtras:
		return fmt.Errorf("%d extra values, at most %d: %w", len(t.Extras), maxExtras, ErrTooLarge)
	}
	clear(e.index)
	clear(e.strings)
	e.strings = e.strings[:0]
	// The strings come first on the wire and are known last: the bins are made before, in scratch.
	e.scratch, e.ends = e.scratch[:0], e.ends[:0]
	for _, b := range entityBins {
		for row := range t.Entities {
			e.scratch = b.write(e, e.scratch, t, row)
		}
		e.ends = append(e.ends, len(e.scratch))
	}
	for _, b := range deviceBins {
		for row := range t.Devices {
			e.scratch = b.write(e, e.scratch, t, row)
		}
		e.ends = append(e.ends, len(e.scratch))
	}
	for i := range t.Extras {
		e.intern(t.Extras[i].Name)
	}
	if len(e.strings) > maxStrings {
		return fmt.Errorf("%d strings, at most %d: %w", len(e.strings), maxStrings, ErrTooLarge)
	}

	e.array(7)
	e.int(t.Scraped)
	e.array(len(e.strings))
	for _, s := range e.strings {
		e.str(s)
	}
	e.rows(len(t.Entities), e.ends[:len(entityBins)], 0)
	e.columns(&t.Values, len(t.Entities))
	e.rows(len(t.Devices), e.ends[len(entityBins):], e.ends[len(entityBins)-1])
	e.columns(&t.DeviceValues, len(t.Devices))
	e.array(len(t.Extras))
	for i := range t.Extras {
		x := &t.Extras[i]
		flags := uint64(0)
		if x.Counter {
			flags |= extraCounter
		}
		if x.Value.float {
			flags |= extraFloat
		}
		e.array(4)
		e.int(int64(x.Entity))
		e.uint(e.intern(x.Name))
		e.uint(flags)
		e.uint(x.Value.bits)
	}
	return nil
}

// rows writes a block of attributes whose bins lie in scratch one after the other.
func (e *Encoder) rows(n int, ends []int, from int) {
	e.array(1 + len(ends))
	e.uint(uint64(n)) //nolint:gosec // not negative
	for _, end := range ends {
		e.bin(e.scratch[from:end])
		from = end
	}
}

const (
	extraCounter = 1 << 0
	extraFloat   = 1 << 1
)

// attribute is one attribute of all rows, written into and read from a bin of its own.
type attribute struct {
	name   string // for errors
	write  func(e *Encoder, dst []byte, t *Table, row int) []byte
	read   func(r *binReader, t *Table, row int)
	sparse bool // most rows have a single 0, which is what a row has before it is read
}

func text(name string, get func(t *Table, row int) *string) attribute {
	return attribute{
		name,
		func(e *Encoder, dst []byte, t *Table, row int) []byte {
			return binary.AppendUvarint(dst, e.intern(*get(t, row)))
		},
		func(r *binReader, t *Table, row int) { *get(t, row) = r.str() },
		true,
	}
}

// entityBins are the attributes of entities in their order on the wire: append only.
var entityBins = []attribute{
	{
		"kind",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte { return append(dst, byte(t.Entities[row].Kind)) },
		func(r *binReader, t *Table, row int) { t.Entities[row].Kind = Kind(r.byte()) },
		false,
	},
	{
		"phase",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte {
			return append(dst, byte(t.Entities[row].Phase))
		},
		func(r *binReader, t *Table, row int) { t.Entities[row].Phase = Phase(r.byte()) },
		true,
	},
	{
		"flags",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte {
			return binary.AppendUvarint(dst, uint64(t.Entities[row].Flags))
		},
		func(r *binReader, t *Table, row int) { t.Entities[row].Flags = Flags(r.uvarint(1<<32 - 1)) }, //nolint:gosec // capped
		false,
	},
	{ // how many rows up the parent is; 0: none
		"parent",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte {
			up := 0
			if p := int(t.Entities[row].Parent); p >= 0 && p < row {
				up = row - p
			}
			return binary.AppendUvarint(dst, uint64(up)) //nolint:gosec // not negative
		},
		func(r *binReader, t *Table, row int) {
			t.Entities[row].Parent = -1
			if up := r.uvarint(uint64(row)); up > 0 { //nolint:gosec // not negative
				t.Entities[row].Parent = int32(row - int(up)) //nolint:gosec // below maxEntities
			}
		},
		false,
	},
	text("name", func(t *Table, row int) *string { return &t.Entities[row].Name }),
	text("namespace", func(t *Table, row int) *string { return &t.Entities[row].Namespace }),
	text("UID", func(t *Table, row int) *string { return &t.Entities[row].UID }),
	text("image", func(t *Table, row int) *string { return &t.Entities[row].Image }),
	text("hostname", func(t *Table, row int) *string { return &t.Entities[row].Hostname }),
	text("host id", func(t *Table, row int) *string { return &t.Entities[row].HostID }),
	text("owner kind", func(t *Table, row int) *string { return &t.Entities[row].Owner.Kind }),
	text("owner name", func(t *Table, row int) *string { return &t.Entities[row].Owner.Name }),
	{
		"labels",
		func(e *Encoder, dst []byte, t *Table, row int) []byte {
			dst = binary.AppendUvarint(dst, uint64(len(t.Entities[row].Labels)))
			for _, l := range t.Entities[row].Labels {
				dst = binary.AppendUvarint(dst, e.intern(l.Key))
				dst = binary.AppendUvarint(dst, e.intern(l.Value))
			}
			return dst
		},
		func(r *binReader, t *Table, row int) { t.Entities[row].Labels = r.labels() },
		true,
	},
}

// deviceBins are the attributes of devices in their order on the wire: append only.
var deviceBins = []attribute{
	{ // ordered by entity: the difference to the row before
		"entity",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte {
			before := int32(0)
			if row > 0 {
				before = t.Devices[row-1].Entity
			}
			return binary.AppendVarint(dst, int64(t.Devices[row].Entity-before))
		},
		func(r *binReader, t *Table, row int) {
			before := int64(0)
			if row > 0 {
				before = int64(t.Devices[row-1].Entity)
			}
			t.Devices[row].Entity = int32(r.index(before+r.varint(), len(t.Entities))) //nolint:gosec // checked
		},
		false,
	},
	{
		"kind",
		func(_ *Encoder, dst []byte, t *Table, row int) []byte { return append(dst, byte(t.Devices[row].Kind)) },
		func(r *binReader, t *Table, row int) { t.Devices[row].Kind = DeviceKind(r.byte()) },
		false,
	},
	text("name", func(t *Table, row int) *string { return &t.Devices[row].Name }),
	text("claim", func(t *Table, row int) *string { return &t.Devices[row].Claim }),
	text("make", func(t *Table, row int) *string { return &t.Devices[row].Make }),
	text("model", func(t *Table, row int) *string { return &t.Devices[row].Model }),
}

// Head byte of a column: bit 0 says that a bitmap of present rows follows, bits 1-3 name the unit, bit 4
// says that all values are alike and only one is written.
const (
	headBitmap    = 1
	headUnitShift = 1
	headUnitMask  = 7
	headConstant  = 1 << 4
)

// columnUnits are the units a column may be written in: times are often whole seconds and memory
// whole pages, so dividing first halves the bytes. Append only, at most 8.
var columnUnits = [...]int64{1, 1e3, 1e6, 1e9, 4096}

func (e *Encoder) columns(c *Columns, rows int) {
	n := 0
	for i := range c.list {
		if c.list[i].Present.Count() > 0 {
			n++
		}
	}
	e.array(2 * n)
	for i := range c.list {
		col := &c.list[i]
		if present := col.Present.Count(); present > 0 {
			e.uint(uint64(col.Field))
			e.column = appendColumn(e.column[:0], col, rows, present)
			e.bin(e.column)
		}
	}
}

func appendColumn(dst []byte, col *Column, rows, present int) []byte {
	unit, constant := col.shape()
	head := unit << headUnitShift
	if present < rows {
		head |= headBitmap
	}
	if constant {
		head |= headConstant
	}
	dst = append(dst, head)
	if present < rows {
		for b := range (rows + 7) / 8 {
			w := uint64(0)
			if b/8 < len(col.Present) {
				w = col.Present[b/8]
			}
			dst = append(dst, byte(w>>(b%8*8)))
		}
	}
	// Room for the longest, so that a value is put without looking for it.
	dst = slices.Grow(dst, present*binary.MaxVarintLen64)
	at, last := len(dst), int64(0)
	dst = dst[:cap(dst)]
	for i, w := range col.Present {
		for ; w != 0; w &= w - 1 {
			v := col.Values[i<<6+bits.TrailingZeros64(w)]
			switch unit { // division by a constant is several times as fast as by a variable
			case 1:
				v /= 1e3
			case 2:
				v /= 1e6
			case 3:
				v /= 1e9
			case 4:
				v /= 4096
			}
			d := v - last
			last = v
			u := uint64(d<<1) ^ uint64(d>>63) //nolint:gosec // as binary.PutVarint
			for u >= 0x80 {
				dst[at] = byte(u) | 0x80
				u >>= 7
				at++
			}
			dst[at] = byte(u)
			at++
			if constant {
				return dst[:at]
			}
		}
	}
	return dst[:at]
}

// shape finds in one pass the largest unit that divides all values, and whether they are all alike.
func (c *Column) shape() (unit byte, constant bool) {
	constant = true
	decimal, pages := byte(3), true // 1e9 is still possible, and so is 4096
	first, seen := int64(0), false
	for row := range c.rows() {
		v := c.Values[row]
		if !seen {
			first, seen = v, true
		}
		constant = constant && v == first
		pages = pages && v&4095 == 0
		if decimal == 3 && v%1e9 != 0 {
			decimal = 2
		}
		if decimal == 2 && v%1e6 != 0 {
			decimal = 1
		}
		if decimal == 1 && v%1e3 != 0 {
			decimal = 0
		}
		if decimal == 0 && !pages && !constant {
			return 0, false
		}
	}
	switch {
	case constant && first == 0:
		return 0, true
	case decimal == 3 || !pages:
		return decimal, constant
	}
	return 4, constant
}

// rows yields the rows that have a value.
func (c *Column) rows() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range c.Present {
			for ; w != 0; w &= w - 1 {
				if !yield(i<<6 + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

func dropVolumes(t *Table) int {
	return dropDevices(t, func(d *Device) bool {
		return d.Kind == DeviceFilesystem && t.Entities[d.Entity].Kind == KindPod
	})
}

func dropInterfaces(t *Table) int {
	return dropDevices(t, func(d *Device) bool { return d.Kind == DeviceInterface })
}

func dropLabels(t *Table) (n int) {
	for i := range t.Entities {
		if e := &t.Entities[i]; e.Kind == KindPod {
			n += len(e.Labels)
			e.Labels = nil
		}
	}
	return n
}

// dropWorkloads leaves out workloads that no other row refers to.
func dropWorkloads(t *Table) (dropped int) {
	referred := make([]bool, len(t.Entities))
	refer := func(row int32) {
		if row >= 0 {
			referred[row] = true
		}
	}
	for i := range t.Entities {
		refer(t.Entities[i].Parent)
	}
	for i := range t.Devices {
		refer(t.Devices[i].Entity)
	}
	for i := range t.Extras {
		refer(t.Extras[i].Entity)
	}
	var values Columns
	kept, to := t.Entities[:0], make([]int32, len(t.Entities))
	for i := range t.Entities {
		if t.Entities[i].Kind == KindWorkload && !referred[i] {
			dropped++
			continue
		}
		to[i] = int32(len(kept)) //nolint:gosec // fewer than before
		t.Values.move(i, &values, len(kept))
		kept = append(kept, t.Entities[i])
	}
	if dropped == 0 {
		return 0
	}
	t.Entities, t.Values = kept, values
	for i := range t.Entities {
		if p := &t.Entities[i].Parent; *p >= 0 {
			*p = to[*p]
		}
	}
	for i := range t.Devices {
		t.Devices[i].Entity = to[t.Devices[i].Entity]
	}
	for i := range t.Extras {
		t.Extras[i].Entity = to[t.Extras[i].Entity]
	}
	return dropped
}

func dropDevices(t *Table, drop func(*Device) bool) (dropped int) {
	var values Columns
	kept := t.Devices[:0]
	for i := range t.Devices {
		if drop(&t.Devices[i]) {
			dropped++
			continue
		}
		t.DeviceValues.move(i, &values, len(kept))
		kept = append(kept, t.Devices[i])
	}
	t.Devices, t.DeviceValues = kept, values
	return dropped
}

// move copies what a row has to a row of other columns.
func (c *Columns) move(row int, to *Columns, at int) {
	for i := range c.list {
		if col := &c.list[i]; col.Present.Has(row) {
			to.Set(at, col.Field, col.Values[row])
		}
	}
}

// maxResolution bounds durations that travel.
const maxResolution = 24 * time.Hour
