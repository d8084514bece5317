package proto

import "math/bits"

// Table is what a Batch and a Rollup carry: entities, their devices, and integer columns over both.
//
// Rows keep their order: parents come before children; devices and extras are ordered by the row
// of their entity. A Table is plain data; it is owned by
// whoever holds it and is not safe for concurrent writing.
type Table struct {
	Entities []Entity
	Values   Columns // one row an entity

	Devices      []Device
	DeviceValues Columns // one row a device

	Extras []Extra // values whose names are not in the catalogue

	Scraped int64 // when the kubelet's answer was read, Unix nanoseconds; `uptime` counts to here
}

// MaxExtras is how many values outside the catalogue one entity may have; more are left out by
// the scraper and counted.
const MaxExtras = 256

// Extra is a value whose name is not in the catalogue: `custom/<name>` as applications report it
// through the kubelet, or `<resource>/request` of an extended resource.
type Extra struct {
	Entity  int32
	Name    string // full metric name
	Counter bool   // cumulative
	Value   Value
}

// AddEntity appends a row and returns its index.
func (t *Table) AddEntity(e Entity) int {
	t.Entities = append(t.Entities, e)
	return len(t.Entities) - 1
}

// AddDevice appends a device row and returns its index.
func (t *Table) AddDevice(d Device) int {
	t.Devices = append(t.Devices, d)
	return len(t.Devices) - 1
}

// Reset empties the table and keeps its memory.
func (t *Table) Reset() {
	clear(t.Entities)
	clear(t.Devices)
	clear(t.Extras)
	t.Entities, t.Devices, t.Extras = t.Entities[:0], t.Devices[:0], t.Extras[:0]
	t.Scraped = 0
	t.Values.Reset()
	t.DeviceValues.Reset()
}

// nodeOf returns the node row above a row, or nil (cluster, namespace, workload, or no node).
func (t *Table) nodeOf(row int) *Entity {
	for range 4 { // container, pod, node: no deeper chain is valid
		e := &t.Entities[row]
		if e.Kind == KindNode {
			return e
		}
		if e.Parent < 0 {
			return nil
		}
		row = int(e.Parent)
	}
	return nil
}

// namespaceUID looks from the end, where a rollup has its few namespaces.
func (t *Table) namespaceUID(name string) (string, bool) {
	for i := len(t.Entities) - 1; i >= 0; i-- {
		if e := &t.Entities[i]; e.Kind == KindNamespace && e.Name == name {
			return e.UID, e.UID != ""
		} else if e.Kind == KindContainer {
			break
		}
	}
	return "", false
}

// Columns are sparse columns of int64 over the rows of one table. A value that was never set is
// absent, which is not zero. The zero Columns is empty and ready to use.
type Columns struct {
	at     [fieldSlots]uint16 // 1 + index in list; 0: no such column
	list   []Column
	unused []Column // columns of an earlier use, to take memory from
}

// Column is one field of all rows.
type Column struct {
	Field   Field
	Values  []int64 // by row, meaningful where Present; may be shorter than the table: missing rows are absent
	Present Bitmap  // which rows have a value
}

// Bitmap has bit r of word r/64 set for row r.
type Bitmap []uint64

// Has reports whether bit i is set; bits beyond the end are not.
func (b Bitmap) Has(i int) bool {
	w := i >> 6
	return w < len(b) && b[w]&(1<<(i&63)) != 0
}

// Count returns how many bits are set.
func (b Bitmap) Count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// Set gives row a value for the field, growing the column as needed.
// Fields that the catalogue does not know are dropped silently: see Field.
func (c *Columns) Set(row int, f Field, v int64) {
	if f >= fieldSlots {
		return
	}
	col := c.column(f)
	for len(col.Values) <= row {
		col.Values = append(col.Values, 0)
	}
	for len(col.Present) <= row>>6 {
		col.Present = append(col.Present, 0)
	}
	col.Values[row] = v
	col.Present[row>>6] |= 1 << (row & 63)
}

// Add adds v to the row's value of the field; an absent one counts as zero.
func (c *Columns) Add(row int, f Field, v int64) {
	old, _ := c.Get(row, f)
	c.Set(row, f, old+v)
}

// Clear makes the row's value of the field absent.
func (c *Columns) Clear(row int, f Field) {
	if col := c.Column(f); col != nil && row>>6 < len(col.Present) {
		col.Present[row>>6] &^= 1 << (row & 63)
	}
}

// Get returns the row's value of the field, and whether there is one.
func (c *Columns) Get(row int, f Field) (int64, bool) {
	if f >= fieldSlots {
		return 0, false
	}
	i := c.at[f]
	if i == 0 {
		return 0, false
	}
	col := &c.list[i-1]
	if !col.Present.Has(row) {
		return 0, false
	}
	return col.Values[row], true
}

// Column returns one column for loops over all rows; nil when no row has the field. It stays valid
// until the next Set of a new field or Reset.
func (c *Columns) Column(f Field) *Column {
	if f >= fieldSlots || c.at[f] == 0 {
		return nil
	}
	return &c.list[c.at[f]-1]
}

// All returns the columns in the order of their first Set. The slice belongs to c.
func (c *Columns) All() []Column { return c.list }

// Reset makes every value absent and keeps the memory.
func (c *Columns) Reset() {
	for i := range c.list {
		col := &c.list[i]
		c.at[col.Field] = 0
		clear(col.Present)
		c.unused = append(c.unused, Column{Values: col.Values[:0], Present: col.Present[:0]})
	}
	c.list = c.list[:0]
}

func (c *Columns) column(f Field) *Column {
	if i := c.at[f]; i != 0 {
		return &c.list[i-1]
	}
	col := Column{}
	if n := len(c.unused); n > 0 {
		col = c.unused[n-1]
		c.unused = c.unused[:n-1]
	}
	col.Field = f
	c.list = append(c.list, col)
	c.at[f] = uint16(len(c.list)) //nolint:gosec // at most fieldSlots columns
	return &c.list[len(c.list)-1]
}
