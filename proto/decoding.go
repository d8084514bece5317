package proto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/vmihailenco/msgpack/v5"
)

// ErrSchema says that a message was written by a newer version whose format this one cannot read.
var ErrSchema = errors.New("message has a newer schema; update this service before the ones that write")

// ErrMalformed says that a message is not one of ours, or damaged.
var ErrMalformed = errors.New("message is malformed")

// maxInterned bounds the strings a decoder shares between senders, and maxRemembered those that it knows by
// their place; past it, it starts anew.
const (
	maxInterned   = 1 << 17
	maxRemembered = 1 << 23
)

// Decoder reads messages. It reuses its memory from call to call, shares equal strings between
// messages, and is not safe for concurrent use.
//
// All its errors wrap ErrSchema or ErrMalformed; it never panics, and it allocates in proportion
// to what the message really holds.
type Decoder struct {
	mp       *msgpack.Decoder
	r        bytes.Reader
	data     []byte
	body     []byte
	interned map[string]string
	strings  []string
	labels   []Label

	from       sender // of the message that is being read
	senders    map[sender]*memory
	remembered int      // strings of all senders
	spare      []string // for the next message's

	pendingBins int    // bins of the block that rows has opened
	part        string // of the message that is being read, for errors
	attribute   string // of the rows that are being read; "": none
}

// NewDecoder returns a decoder.
func NewDecoder() *Decoder {
	d := &Decoder{interned: make(map[string]string), senders: make(map[sender]*memory)}
	d.mp = msgpack.NewDecoder(&d.r)
	return d
}

// Batch decodes into b, whose memory is reused. On error b's contents are undefined.
func (d *Decoder) Batch(data []byte, b *Batch) error {
	b.Reset()
	err := d.decode(data, typeBatch, "batch", func(n int) {
		d.atLeast(n, 6)
		b.Cluster, b.Node = d.name(), d.name()
		d.from = sender{b.Cluster, b.Node, ScopeNode}
		b.Tick = Tick(d.int())
		b.Resolution = d.duration()
		b.Source = d.name()
		b.Dropped = uint32(d.uint(1<<32 - 1)) //nolint:gosec // capped
		d.skip(n - 6)
	}, func() { d.table(&b.Table) })
	if err != nil && b.Node != "" {
		err = fmt.Errorf("batch of node %q: %w", b.Node, err)
	}
	return err
}

// Rollup decodes into r, whose memory is reused. On error r's contents are undefined.
func (d *Decoder) Rollup(data []byte, r *Rollup) error {
	r.Reset()
	err := d.decode(data, typeRollup, "rollup", func(n int) { d.rollupHeader(n, r) }, func() { d.table(&r.Table) })
	if err != nil && r.Name != "" {
		err = fmt.Errorf("rollup of %q: %w", r.Name, err)
	}
	return err
}

// RollupHeader decodes all of a rollup but its table, without decompressing it.
func (d *Decoder) RollupHeader(data []byte, r *Rollup) error {
	r.Reset()
	return d.decode(data, typeRollup, "rollup", func(n int) { d.rollupHeader(n, r) }, nil)
}

// Inventory decodes into v.
func (d *Decoder) Inventory(data []byte, v *Inventory) error {
	*v = Inventory{}
	return d.decode(data, typeInventory, "inventory", func(n int) {
		d.atLeast(n, 7)
		v.Cluster = d.name()
		v.Subject = InventorySubject(d.uint(255)) //nolint:gosec // capped
		v.Revision = d.uint(1<<64 - 1)
		v.Part = uint32(d.uint(maxParts))  //nolint:gosec // capped
		v.Parts = uint32(d.uint(maxParts)) //nolint:gosec // capped
		v.Resolution = d.duration()
		v.Grace = d.duration()
		d.skip(n - 7)
		if v.Parts == 0 || v.Part >= v.Parts {
			d.fail("part %d of %d", v.Part, v.Parts)
		}
	}, func() {
		n := d.arrayLen(maxColumns)
		d.atLeast(n, 3)
		for range d.arrayLen(maxInventory) {
			n := d.arrayLen(maxColumns)
			d.atLeast(n, 2)
			v.Nodes = append(v.Nodes, InventoryNode{Name: d.name(), UID: d.name()})
			d.skip(n - 2)
		}
		for range d.arrayLen(maxInventory) {
			n := d.arrayLen(maxColumns)
			d.atLeast(n, 3)
			ns := InventoryNamespace{Name: d.name(), UID: d.name()}
			for range d.arrayLen(maxColumns) / 2 {
				ns.Labels = append(ns.Labels, Label{d.name(), d.name()})
			}
			v.Namespaces = append(v.Namespaces, ns)
			d.skip(n - 3)
		}
		for range d.arrayLen(maxInventory) {
			n := d.arrayLen(maxColumns)
			d.atLeast(n, 5)
			v.Owners = append(v.Owners, InventoryOwner{Namespace: d.name(), Object: Owner{d.name(), d.name()}, Owner: Owner{d.name(), d.name()}})
			d.skip(n - 5)
		}
		d.skip(n - 3)
	})
}

// Clock checks that data is a clock mark and returns its cluster.
func (d *Decoder) Clock(data []byte) (cluster string, err error) {
	err = d.decode(data, typeClock, "clock mark", func(n int) {
		d.atLeast(n, 1)
		cluster = d.name()
		d.skip(n - 1)
	}, nil)
	return cluster, err
}

// malformed carries an error out of the recursive reading; it never leaves the package.
type malformed struct{ err error }

func (d *Decoder) fail(format string, args ...any) {
	part := d.part
	if d.attribute != "" {
		part += ", " + d.attribute
	}
	panic(malformed{fmt.Errorf("%w: %s: "+format, append([]any{ErrMalformed, part}, args...)...)})
}

func (d *Decoder) check(err error) {
	if err != nil {
		d.fail("%v", err)
	}
}

func (d *Decoder) decode(data []byte, kind uint64, what string, header func(n int), body func()) (err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case malformed:
			err = fmt.Errorf("decode %s: %w", what, p.err)
		default:
			panic(p)
		}
	}()
	if len(d.interned) > maxInterned {
		clear(d.interned)
	}
	d.reset(data)
	d.part, d.attribute, d.from = "frame", "", sender{}
	n := d.arrayLen(maxColumns)
	d.atLeast(n, 5)
	if schema := d.uint(1<<64 - 1); schema != Schema {
		if schema == 0 {
			d.fail("schema 0")
		}
		panic(malformed{fmt.Errorf("schema %d: %w", schema, ErrSchema)})
	}
	if k := d.uint(255); k != kind {
		d.fail("type %d where %d was expected", k, kind)
	}
	d.part = "header"
	header(d.arrayLen(maxColumns))
	d.part = "body"
	if body == nil {
		return nil
	}
	size := d.uint(maxBodyBytes)
	packed := d.bin()
	if size > 22*uint64(len(packed)) { // Snappy's copies are of 64 bytes in 3 at most
		d.fail("body of %d bytes packed into %d", size, len(packed))
	}
	n, err = s2.DecodedLen(packed)
	d.check(err)
	if uint64(n) != size { //nolint:gosec // not negative
		d.fail("body of %d bytes where %d were announced", n, size)
	}
	d.body = slices.Grow(d.body[:0], n)
	d.body, err = s2.Decode(d.body[:n], packed)
	d.check(err)
	d.reset(d.body)
	body()
	return nil
}

func (d *Decoder) reset(data []byte) {
	d.data = data
	d.r.Reset(data)
	d.mp.ResetReader(&d.r)
}

func (d *Decoder) rollupHeader(n int, r *Rollup) {
	d.atLeast(n, 9)
	r.Scope = Scope(d.uint(255)) //nolint:gosec // capped
	r.Cluster, r.Name = d.name(), d.name()
	d.from = sender{r.Cluster, r.Name, r.Scope}
	r.Tick = Tick(d.int())
	r.Resolution = d.duration()
	r.Seq = d.uint(1<<64 - 1)
	r.Source = d.name()
	r.Dropped = uint32(d.uint(1<<32 - 1)) //nolint:gosec // capped
	if m := d.arrayLen(maxColumns); m > 0 {
		d.atLeast(m, 10)
		t := &r.Totals
		for _, p := range []*uint32{&t.Expected, &t.Reported, &t.StandIn, &t.StandIns} {
			*p = uint32(d.uint(1<<32 - 1)) //nolint:gosec // capped
		}
		for range d.arrayLen(MaxMissing) {
			t.Missing = append(t.Missing, d.name())
		}
		gap, err := d.mp.DecodeBool()
		d.check(err)
		t.Gap = gap
		t.ResumeSeq = d.uint(1<<64 - 1)
		t.InventorySeq = d.uint(1<<64 - 1)
		t.StreamTime = d.int()
		t.JumpEnd = d.int()
		known := 10
		for _, p := range []*uint32{&t.Contested, &t.PodsWithoutRate, &t.ContainersWithoutRate} {
			if known < m { // not of an older writer
				*p = uint32(d.uint(1<<32 - 1)) //nolint:gosec // capped
				known++
			}
		}
		d.skip(m - known)
	}
	d.skip(n - 9)
}

func (d *Decoder) table(t *Table) {
	n := d.arrayLen(maxColumns)
	d.atLeast(n, 7)
	t.Scraped = d.int()

	d.part = "strings"
	d.texts()

	d.part = "entities"
	rows := d.rows(maxEntities, 1+len(entityBins))
	t.Entities = slices.Grow(t.Entities[:0], rows)[:rows]
	d.labels = nil // handed out: entities keep slices of it
	d.attributes(entityBins, t, rows)
	for i := range t.Entities {
		if e := &t.Entities[i]; e.Kind == KindContainer && (e.Parent < 0 || t.Entities[e.Parent].Kind != KindPod) {
			d.fail("container %q belongs to no pod", e.Name)
		}
	}
	d.columns(&t.Values, rows)

	d.part = "devices"
	rows = d.rows(maxDevices, 1+len(deviceBins))
	t.Devices = slices.Grow(t.Devices[:0], rows)[:rows]
	d.attributes(deviceBins, t, rows)
	d.columns(&t.DeviceValues, rows)
	for i := 1; i < rows; i++ {
		if t.Devices[i].Entity < t.Devices[i-1].Entity {
			d.fail("devices are not ordered by entity")
		}
	}

	d.part = "values outside the catalogue"
	for range d.arrayLen(maxExtras) {
		m := d.arrayLen(maxColumns)
		d.atLeast(m, 4)
		entity := d.int()
		if entity < 0 || entity >= int64(len(t.Entities)) || len(t.Extras) > 0 && int64(t.Extras[len(t.Extras)-1].Entity) > entity {
			d.fail("one of entity %d of %d", entity, len(t.Entities))
		}
		x := Extra{Entity: int32(entity), Name: d.strings[d.uint(uint64(len(d.strings)-1))]} //nolint:gosec // checked
		flags := d.uint(1<<32 - 1)
		x.Counter = flags&extraCounter != 0
		x.Value = Value{bits: d.uint(1<<64 - 1), float: flags&extraFloat != 0}
		d.skip(m - 4)
		t.Extras = append(t.Extras, x)
	}
	d.skip(n - 7)
}

// rows reads the head of a block of attributes: how many rows, and leaves its bins to attributes.
func (d *Decoder) rows(most, elements int) int {
	n := d.arrayLen(maxColumns)
	d.atLeast(n, elements)
	rows := d.uint(uint64(most)) //nolint:gosec // constant
	if rows > uint64(len(d.data)) {
		d.fail("%d rows in %d bytes", rows, len(d.data)) // every row takes a byte at least
	}
	d.pendingBins = n - 1
	return int(rows) //nolint:gosec // capped
}

func (d *Decoder) attributes(list []attribute, t *Table, rows int) {
	for _, a := range list {
		d.attribute = a.name
		r := binReader{d: d, b: d.bin()}
		for row := range rows {
			if a.sparse && len(r.b) > 0 && r.b[0] == 0 {
				r.b = r.b[1:]
				continue
			}
			a.read(&r, t, row)
		}
	}
	d.attribute = ""
	d.skip(d.pendingBins - len(list))
}

func (d *Decoder) columns(c *Columns, rows int) {
	c.Reset()
	for range d.arrayLen(2*maxColumns) / 2 {
		field := d.uint(1<<16 - 1)
		b := d.bin()
		if Field(field) < fieldSlots && field != 0 { //nolint:gosec // capped
			d.column(c.column(Field(field)), b, rows) //nolint:gosec // capped
		}
	}
}

func (d *Decoder) column(col *Column, b []byte, rows int) {
	if len(b) == 0 {
		d.fail("column of %s is empty", col.Field)
	}
	head := b[0]
	b = b[1:]
	u := head >> headUnitShift & headUnitMask
	if int(u) >= len(columnUnits) {
		d.fail("column of %s has unit %d", col.Field, u)
	}
	unit := columnUnits[u]
	words := (rows + 63) / 64
	col.Values = slices.Grow(col.Values[:0], rows)[:rows]
	col.Present = slices.Grow(col.Present[:0], words)[:words]
	clear(col.Present)
	if head&headBitmap == 0 {
		for w := range col.Present {
			col.Present[w] = 1<<64 - 1
		}
		if rest := rows % 64; rest > 0 {
			col.Present[words-1] = 1<<rest - 1
		}
	} else {
		size := (rows + 7) / 8
		if len(b) < size {
			d.fail("column of %s: bitmap of %d bytes for %d rows", col.Field, len(b), rows)
		}
		for i, by := range b[:size] {
			col.Present[i/8] |= uint64(by) << (i % 8 * 8)
		}
		if rest := rows % 64; rest > 0 {
			col.Present[words-1] &= 1<<rest - 1
		}
		b = b[size:]
	}
	if head&headConstant != 0 {
		v, n := binary.Varint(b)
		if n <= 0 {
			d.fail("column of %s has no value", col.Field)
		}
		for row := range col.Values {
			col.Values[row] = v * unit
		}
		return
	}
	values, last, at := col.Values, int64(0), 0
	next := func(row int) {
		delta, n := binary.Varint(b[at:])
		if n <= 0 {
			d.fail("column of %s ends at row %d of %d", col.Field, row, rows)
		}
		at += n
		last += delta
	}
	if head&headBitmap == 0 {
		for row := range values {
			if at < len(b) && b[at] < 0x80 { // most differences take one byte
				last += int64(b[at]>>1) ^ -int64(b[at]&1)
				at++
			} else {
				next(row)
			}
			values[row] = last * unit
		}
		return
	}
	clear(values)
	for row := range col.rows() {
		if at < len(b) && b[at] < 0x80 {
			last += int64(b[at]>>1) ^ -int64(b[at]&1)
			at++
		} else {
			next(row)
		}
		values[row] = last * unit
	}
}

func (d *Decoder) atLeast(n, want int) {
	if n < want {
		d.fail("%d elements where %d are the least", n, want)
	}
}

func (d *Decoder) skip(n int) {
	for range n {
		d.check(d.mp.Skip())
	}
}

func (d *Decoder) arrayLen(most int) int {
	n, err := d.mp.DecodeArrayLen()
	d.check(err)
	if n < 0 || n > most || n > d.r.Len() {
		d.fail("array of %d elements in %d bytes, at most %d", n, d.r.Len(), most)
	}
	return n
}

func (d *Decoder) uint(most uint64) uint64 {
	v, err := d.mp.DecodeUint64()
	d.check(err)
	if v > most {
		d.fail("number %d, at most %d", v, most)
	}
	return v
}

func (d *Decoder) int() int64 {
	v, err := d.mp.DecodeInt64()
	d.check(err)
	return v
}

func (d *Decoder) duration() time.Duration {
	v := d.int()
	if v < 0 || v > int64(maxResolution) {
		d.fail("duration %d ns", v)
	}
	return time.Duration(v)
}

// bin returns a slice of the message itself.
func (d *Decoder) bin() []byte {
	n, err := d.mp.DecodeBytesLen()
	d.check(err)
	if n < 0 || n > d.r.Len() {
		d.fail("%d bytes announced, %d left", n, d.r.Len())
	}
	from := len(d.data) - d.r.Len()
	_, err = d.r.Seek(int64(n), 1)
	d.check(err)
	return d.data[from : from+n]
}

// name reads a short string and returns the one instance of it that this decoder hands out.
func (d *Decoder) name() string { return d.intern(d.short()) }

func (d *Decoder) short() []byte {
	b := d.bin()
	if len(b) > maxStringBytes {
		d.fail("string of %d bytes, at most %d", len(b), maxStringBytes)
	}
	return b
}

func (d *Decoder) intern(b []byte) string {
	s, ok := d.interned[string(b)]
	if !ok {
		s = string(b)
		d.interned[s] = s
	}
	return s
}

// sender is whom a message is about; its next one has nearly the same strings in the same order.
type sender struct {
	cluster, name string
	scope         Scope
}

// memory is the strings of a sender's last message.
type memory struct {
	strings []string
	sent    int // messages since forget was last called
}

// texts reads the strings of a message. Most are where they were in the sender's last one: to compare them
// there costs less than to look each of them up among those of all senders.
func (d *Decoder) texts() {
	if d.remembered > maxRemembered {
		clear(d.senders)
		d.remembered = 0
	}
	m := d.senders[d.from]
	if m == nil {
		m = &memory{}
		d.senders[d.from] = m
	}
	if m.sent++; m.sent > round {
		d.forget()
		m.sent = 1
	}
	n, at := d.arrayLen(maxStrings), 1
	all := append(slices.Grow(d.spare[:0], n+1), "")
	d.spare = nil
	for range n {
		all = append(all, d.like(m.strings, &at))
	}
	d.remembered += len(all) - len(m.strings)
	d.strings, m.strings, d.spare = all, all, m.strings
}

// like reads a string that is expected at that place of those of before, or a little behind.
func (d *Decoder) like(before []string, at *int) string {
	b := d.short()
	for i := *at; i < min(*at+lookAhead, len(before)); i++ {
		if before[i] == string(b) {
			*at = i + 1
			return before[i]
		}
	}
	return d.intern(b)
}

// lookAhead is how many strings may have gone from one place for the rest to be found again.
const lookAhead = 8

// round is after how many messages of one sender the others that sent none are forgotten: it is counted in
// messages of one, as however many senders there are, none of them may be forgotten before its turn comes.
const round = 16

// forget drops the strings of senders that sent nothing since it was last called.
func (d *Decoder) forget() {
	for from, m := range d.senders {
		if m.sent == 0 {
			delete(d.senders, from)
			d.remembered -= len(m.strings)
		}
		m.sent = 0
	}
}

// binReader reads the values of one attribute.
type binReader struct {
	d *Decoder
	b []byte
}

func (r *binReader) byte() byte {
	if len(r.b) == 0 {
		r.d.fail("attribute ends early")
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *binReader) uvarint(most uint64) uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 && uint64(r.b[0]) <= most { // nearly always
		v := uint64(r.b[0])
		r.b = r.b[1:]
		return v
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most {
		r.d.fail("attribute ends early or is above %d", most)
	}
	r.b = r.b[n:]
	return v
}

func (r *binReader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.d.fail("attribute ends early")
	}
	r.b = r.b[n:]
	return v
}

func (r *binReader) index(i int64, below int) int64 {
	if i < 0 || i >= int64(below) {
		r.d.fail("row %d of %d", i, below)
	}
	return i
}

func (r *binReader) str() string { return r.d.strings[r.uvarint(uint64(len(r.d.strings)-1))] }

func (r *binReader) labels() []Label {
	n := int(r.uvarint(maxLabels)) //nolint:gosec // capped
	if n == 0 {
		return nil
	}
	if n > len(r.b)/2 || len(r.d.labels)+n > maxLabels {
		r.d.fail("%d labels in %d bytes", n, len(r.b))
	}
	all := slices.Grow(r.d.labels, n)
	from := len(all)
	for range n {
		all = append(all, Label{r.str(), r.str()})
	}
	r.d.labels = all
	return all[from:len(all):len(all)]
}
