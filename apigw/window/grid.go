package window

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// grid is the newest tick of all rows of one kind: columns over slots. A cell keeps its value while it is
// absent, since older ticks are counted from it.
type grid struct {
	names  []string // by slot
	second []string // namespaces of pods, claims of volumes and the like; nil as long as all are ""
	owners []uint32 // ref.owner of the row they belong to, noOwner, or nobody for a free slot
	free   []int
	gone   map[int]proto.Tick // slots not in the newest tick, and the last tick that knew them

	fields  []proto.Field // of the columns
	stride  int           // slots there is room for
	values  []int64       // column x stride + slot
	present []uint64      // column x words + slot/64

	stamps []int32            // of the newest tick of a node: see stamp
	held   map[heldCell]int64 // of the newest tick of a node: see hold

	fresh []bool         // slots made at this tick: nothing older refers to their cells
	index map[rowKey]int // made when a row is not where it was, dropped after
}

type rowKey struct {
	name, second string
	owner        uint32
}

func (g *grid) words() int { return (g.stride + 63) / 64 }

func (g *grid) secondOf(slot int) string {
	if g.second == nil {
		return ""
	}
	return g.second[slot]
}

// begin prepares for the rows of a new tick.
func (g *grid) begin() {
	g.index = nil
	g.fresh = g.fresh[:0]
}

// slot returns the slot of a row; fresh says that it was made for it.
func (g *grid) slot(hint int32, name, second string, owner uint32) (slot int, fresh bool) {
	if i := int(hint); hint >= 0 && i < len(g.names) && g.names[i] == name && g.owners[i] == owner && g.secondOf(i) == second {
		return i, false
	}
	if g.index == nil {
		g.index = make(map[rowKey]int, len(g.names))
		for i, n := range g.names {
			if g.owners[i] != nobody {
				g.index[rowKey{n, g.secondOf(i), g.owners[i]}] = i
			}
		}
	}
	k := rowKey{name, second, owner}
	if i, ok := g.index[k]; ok {
		return i, false
	}
	if n := len(g.free); n > 0 {
		slot = g.free[n-1]
		g.free = g.free[:n-1]
	} else {
		slot = len(g.names)
		g.names = append(g.names, "")
		g.owners = append(g.owners, 0)
		if g.second != nil {
			g.second = append(g.second, "")
		}
		g.grow(len(g.names), len(g.fields))
	}
	if second != "" && g.second == nil {
		g.second = make([]string, len(g.names), cap(g.names))
	}
	g.names[slot], g.owners[slot] = name, owner
	if g.second != nil {
		g.second[slot] = second
	}
	for len(g.fresh) < len(g.names) {
		g.fresh = append(g.fresh, false)
	}
	g.fresh[slot] = true
	g.index[k] = slot
	return slot, true
}

// endPlacing notes which slots the new tick does not have; before is the tick that did.
func (g *grid) endPlacing(w *workspace, sec section, before proto.Tick) {
	g.index = nil
	rowOf := w.rowOf[sec]
	for len(rowOf) < len(g.names) {
		rowOf = append(rowOf, -1)
	}
	w.rowOf[sec] = rowOf
	for slot := range g.names {
		if rowOf[slot] >= 0 {
			if g.gone != nil {
				delete(g.gone, slot)
			}
			continue
		}
		if _, ok := g.gone[slot]; !ok && g.owners[slot] != nobody {
			if g.gone == nil {
				g.gone = make(map[int]proto.Tick)
			}
			g.gone[slot] = before
		}
	}
}

// release makes a slot free that no remembered tick knows.
func (g *grid) release(slot int) {
	delete(g.gone, slot)
	g.names[slot], g.owners[slot] = "", nobody
	if g.second != nil {
		g.second[slot] = ""
	}
	g.free = append(g.free, slot)
}

// grow makes room for slots and columns.
func (g *grid) grow(slots, columns int) {
	stride := g.stride
	if slots > stride {
		stride = slots
		if len(g.fields) > 0 {
			stride += max(slots/8, 2) // a row more at a time is the rule after the first tick
		}
	}
	if stride != g.stride {
		values := make([]int64, columns*stride)
		words := (stride + 63) / 64
		present := make([]uint64, columns*words)
		for c := range g.fields {
			copy(values[c*stride:], g.values[c*g.stride:(c+1)*g.stride])
			copy(present[c*words:], g.present[c*g.words():(c+1)*g.words()])
		}
		g.values, g.present, g.stride = values, present, stride
		return
	}
	if need := columns * g.stride; need > len(g.values) {
		g.values = append(g.values, make([]int64, need-len(g.values))...)
		g.present = append(g.present, make([]uint64, columns*g.words()-len(g.present))...)
	}
}

func (g *grid) column(f proto.Field) int { return slices.Index(g.fields, f) }

func (g *grid) has(col, slot int) bool {
	return g.present[col*g.words()+slot>>6]&(1<<(slot&63)) != 0
}

// known reports whether a column is one that a metric can be computed from. It bounds the columns of a
// grid, whatever a message holds.
func known(f proto.Field) bool { return knownFields[f] }

var knownFields = func() (k [1 << 16]bool) {
	k[proto.FieldStart] = true
	groups := map[proto.Group]bool{}
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		k[m.ID.Field()] = true
		if m.Shape == proto.Counter {
			k[m.ID.Delta()] = true
		}
		if m.Group != proto.GroupNone {
			groups[m.Group] = true
		}
	}
	for g := range groups {
		k[g.Span()], k[g.Stale()] = true, true
	}
	return k
}()

// step makes the new tick's values the grid's, and appends to out how to get back from them.
//
//	changes  = sections:1 (section:1 end:4)... body...   a body a section, empty where nothing changed
//	body     = slots:4 columns:1 wide:1 bitmap entry... values
//	entry    = code:1 offset:2                           offset into values; 4 bytes where wide is 1
//	in values = [present before] [rows that changed] change...
//
// The bitmap of a body has a bit for each of so many columns, set for those that changed; the others have
// a bit a slot. A change is the older value minus the newer one in the unit that the code names, zigzag,
// in as many bytes as the code says.
func (g *grid) step(w *workspace, sec section, values *proto.Columns, out []byte) []byte {
	rowOf := w.rowOf[sec]
	slots, size := len(g.names), (len(g.names)+7)/8
	w.dir, w.body = w.dir[:0], w.body[:0]
	w.rows = w.rows[:0]
	for _, row := range rowOf {
		if row >= 0 {
			for len(w.rows) <= int(row)>>6 {
				w.rows = append(w.rows, 0)
			}
			w.rows[row>>6] |= 1 << (row & 63)
		}
	}
	g.prune(rowOf, values)
	touched := [4]uint64{}
	next := 0 // tables have their columns in one order: here is where the next one is likely to be
	for i := range values.All() {
		col := &values.All()[i]
		if !known(col.Field) {
			continue
		}
		c := next
		if c >= len(g.fields) || g.fields[c] != col.Field {
			c = g.columnFor(col, w.rows)
		}
		if c < 0 {
			continue
		}
		next = c + 1
		touched[c>>6] |= 1 << (c & 63)
		g.stepColumn(w, c, col, standing(values, col.Field), rowOf, size)
	}
	for c := range g.fields {
		if touched[c>>6]&(1<<(c&63)) == 0 {
			g.stepColumn(w, c, nil, nil, rowOf, size)
		}
	}
	if len(w.dir) == 0 {
		return out
	}
	slices.SortFunc(w.dir, func(a, b entry) int { return int(a.column) - int(b.column) })
	wide := byte(0)
	if len(w.body) > 1<<16-1 {
		wide = 1
	}
	out = binary.LittleEndian.AppendUint32(out, uint32(slots)) //nolint:gosec // rows are capped by the codec
	out = append(out, byte(len(g.fields)), wide)               //nolint:gosec // see TestColumnsFitAByte
	var bitmap [32]byte
	for _, e := range w.dir {
		bitmap[e.column>>3] |= 1 << (e.column & 7)
	}
	out = append(out, bitmap[:(len(g.fields)+7)/8]...)
	for _, e := range w.dir {
		out = append(out, e.code)
		if wide == 1 {
			out = binary.LittleEndian.AppendUint32(out, e.offset)
		} else {
			out = binary.LittleEndian.AppendUint16(out, uint16(e.offset)) //nolint:gosec // checked
		}
	}
	return append(out, w.body...)
}

type entry struct {
	column, code byte
	offset       uint32
}

// Codes of an entry.
const (
	codeWidth   = 0x0f // bytes of a change; 0: no value changed
	codeUnit    = 0x70 // >> 4: index into units
	codePresent = 0x80 // other rows were present before
)

var units = [...]int64{1, 1e9, 1e6, 1e3, 4096}

// columnFor returns the grid's column of a table's column, making one where one of these rows of the table,
// a bit each, has a value; -1 where none has.
func (g *grid) columnFor(col *proto.Column, rows []uint64) int {
	if c := g.column(col.Field); c >= 0 {
		return c
	}
	for i, word := range rows[:min(len(rows), len(col.Present))] {
		if word&col.Present[i] != 0 {
			g.grow(len(g.names), len(g.fields)+1)
			g.fields = append(g.fields, col.Field)
			return len(g.fields) - 1
		}
	}
	return -1
}

func (g *grid) stepColumn(w *workspace, c int, col, stale *proto.Column, rowOf []int32, size int) {
	words := g.words()
	values := g.values[c*g.stride : c*g.stride+len(g.names)]
	present := g.present[c*words : (c+1)*words]
	w.present = append(w.present[:0], present...)
	w.diff = slices.Grow(w.diff[:0], len(values))[:len(values)]
	newColumn := true
	for _, p := range present {
		newColumn = newColumn && p == 0
	}
	if col == nil && newColumn {
		return
	}
	clear(present)
	var all uint64
	for slot, row := range rowOf {
		w.diff[slot] = 0
		if col == nil || row < 0 || !col.Present.Has(int(row)) {
			continue
		}
		present[slot>>6] |= 1 << (slot & 63)
		v := col.Values[row]
		old := values[slot]
		values[slot] = v
		if slot < len(g.fresh) && g.fresh[slot] {
			continue
		}
		d := old - v
		if d != 0 && stale != nil && stale.Present.Has(int(row)) && w.present[slot>>6]&(1<<(slot&63)) != 0 {
			g.hold(c, slot, old)
		}
		w.diff[slot] = d
		all |= zigzag(d)
	}
	samePresence := slices.Equal(present, w.present)
	if all == 0 && samePresence {
		return
	}
	e := entry{column: byte(c), offset: uint32(len(w.body))} //nolint:gosec // see TestColumnsFitAByte; a message is capped
	if !samePresence {
		e.code |= codePresent
		w.body = appendBitmap(w.body, w.present, size)
	}
	if all != 0 {
		unit := commonUnit(w.diff)
		div := units[unit]
		if div > 1 {
			all = 0
			for i, d := range w.diff {
				if d != 0 {
					w.diff[i] = d / div
					all |= zigzag(d / div)
				}
			}
		}
		width := (bits.Len64(all) + 7) / 8
		e.code |= byte(unit<<4) | byte(width) //nolint:gosec // at most 0x7f
		at := len(w.body)
		for range size {
			w.body = append(w.body, 0)
		}
		var eight [8]byte
		for slot, d := range w.diff {
			if d != 0 {
				w.body[at+slot>>3] |= 1 << (slot & 7)
				binary.LittleEndian.PutUint64(eight[:], zigzag(d))
				w.body = append(w.body, eight[:width]...)
			}
		}
	}
	w.dir = append(w.dir, e)
}

// commonUnit returns the index of the first unit that divides all changes, 0 where none does. Division by a
// constant is several times as fast as by a variable.
func commonUnit(diff []int64) int {
	decimal, pages := 3, true // 1e9 is still possible, and so is 4096
	for _, d := range diff {
		if d == 0 {
			continue
		}
		if decimal == 3 && d%1e9 != 0 {
			decimal = 2
		}
		if decimal == 2 && d%1e6 != 0 {
			decimal = 1
		}
		if decimal == 1 && d%1e3 != 0 {
			decimal = 0
		}
		pages = pages && d&4095 == 0
		if decimal == 0 && !pages {
			return 0
		}
	}
	return 4 - decimal // where that is 0, pages are left
}

func appendBitmap(dst []byte, words []uint64, size int) []byte {
	for b := range size {
		dst = append(dst, byte(words[b>>3]>>(b&7*8)))
	}
	return dst
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) } //nolint:gosec // two's complement is meant
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }    //nolint:gosec // same
