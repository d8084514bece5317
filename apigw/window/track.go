package window

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/heapstream/heapstream/proto"
)

// section says which grid of a track a row is in: one per kind of entity and of device.
type section uint8

const (
	secNode section = iota
	secSystem
	secPod
	secContainer
	secNamespace
	secWorkload
	secCluster
	secFilesystem
	secInterface
	secDisk
	secAccelerator
	secExtra

	sections
	secNone section = 255
)

// sectionOf returns where an entity's row is remembered, secNone where it is not.
func sectionOf(scope proto.Scope, k proto.Kind) section {
	switch k {
	case proto.KindNode:
		return secNode
	case proto.KindSystemContainer:
		return secSystem
	case proto.KindPod:
		return secPod
	case proto.KindContainer:
		return secContainer
	case proto.KindCluster:
		return secCluster
	case proto.KindNamespace:
		if scope != proto.ScopeNode {
			return secNamespace
		}
	case proto.KindWorkload:
		if scope != proto.ScopeNode {
			return secWorkload
		}
	}
	return secNone
}

func deviceSection(k proto.DeviceKind) section {
	switch k {
	case proto.DeviceFilesystem:
		return secFilesystem
	case proto.DeviceInterface:
		return secInterface
	case proto.DeviceDisk:
		return secDisk
	case proto.DeviceAccelerator:
		return secAccelerator
	}
	return secNone
}

// ref is a row's place in a track.
type ref struct {
	sec  section
	slot int32
}

// owner packs a ref into what grids keep of the owner of a row.
func (r ref) owner() uint32 { return uint32(r.sec)<<24 | uint32(r.slot) } //nolint:gosec // slots are capped by the codec

const (
	noOwner = ^uint32(0)
	nobody  = noOwner - 1 // has a free slot
)

// record is one remembered tick. Its changes lead back to it from the tick after it; the newest has none.
type record struct {
	tick    proto.Tick
	scraped int64
	changes []byte
}

// track is the past of one stream of rollups.
type track struct {
	scope proto.Scope
	name  string

	provisional bool   // began with its newest tick; the past may follow. Of the one writer, as behind is.
	behind      *track // the past, being read

	mu      sync.RWMutex // guards what follows
	grids   [sections]*grid
	records []record // oldest first
	rows    []ref    // of the newest tick, by row of its table: where to look first
	devices []ref
	extras  []ref
}

// workspace is memory of the one writer, used again at each rollup, and what its last step did to pods.
type workspace struct {
	rowOf   [sections][]int32 // slot -> row of the new table, -1: none
	entered []podChange
	left    []podChange

	rows    []uint64 // of the table that are of the section at hand, a bit each
	diff    []int64
	present []uint64
	dir     []entry
	body    []byte
	out     []byte
	extra   proto.Columns
}

type podChange struct {
	name podName
	slot int
}

func (t *track) newest() proto.Tick {
	if len(t.records) == 0 {
		return -1 << 63
	}
	return t.records[len(t.records)-1].tick
}

func (t *track) eachPod(do func(name podName, slot int)) {
	g := t.grids[secPod]
	if g == nil {
		return
	}
	for slot, name := range g.names {
		if g.owners[slot] != nobody {
			do(podName{g.secondOf(slot), name}, slot)
		}
	}
}

// append makes r the newest tick. The writer may read without the lock; it holds it while it writes.
func (t *track) append(w *workspace, a *arena, r *proto.Rollup) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w.entered, w.left = w.entered[:0], w.left[:0]
	before := t.newest()
	for s, g := range t.grids {
		if g != nil {
			g.begin()
			w.rowOf[s] = fill(w.rowOf[s][:0], len(g.names))
		} else {
			w.rowOf[s] = w.rowOf[s][:0]
		}
	}
	t.place(w, r)

	w.out = append(w.out[:0], 0)
	for s, g := range t.grids {
		if g != nil {
			w.out[0]++
			w.out = append(w.out, byte(s), 0, 0, 0, 0) //nolint:gosec // below sections
		}
	}
	n := 0
	for s, g := range t.grids {
		if g == nil {
			continue
		}
		g.endPlacing(w, section(s), before) //nolint:gosec // below sections
		var values *proto.Columns
		switch section(s) { //nolint:gosec // same
		case secFilesystem, secInterface, secDisk, secAccelerator:
			values = &r.DeviceValues
		case secExtra:
			values = &w.extra
		default:
			values = &r.Values
		}
		w.out = g.step(w, section(s), values, w.out)                                //nolint:gosec // same
		binary.LittleEndian.PutUint32(w.out[2+n*sectionBytes:], uint32(len(w.out))) //nolint:gosec // a message is capped
		n++
	}
	if n := len(t.records); n > 0 {
		t.records[n-1].changes = a.keep(w.out)
	}
	if len(t.records) == cap(t.records) {
		t.records = slices.Grow(t.records, 8)
	}
	t.records = append(t.records, record{tick: r.Tick, scraped: r.Scraped})
	t.stamp(r)
}

// place finds the slots of all rows of r, making those that are missing.
func (t *track) place(w *workspace, r *proto.Rollup) {
	t.rows = slices.Grow(t.rows, len(r.Entities))
	known := len(t.rows)
	t.rows = t.rows[:len(r.Entities)]
	for i := range r.Entities {
		e := &r.Entities[i]
		at := ref{sec: secNone}
		if sec := sectionOf(r.Scope, e.Kind); sec != secNone {
			name, second, owner := e.Name, "", noOwner
			switch e.Kind {
			case proto.KindPod:
				second = e.Namespace
			case proto.KindWorkload:
				second = e.Owner.Kind
			case proto.KindContainer:
				if e.Parent >= 0 && int(e.Parent) < i && t.rows[e.Parent].sec == secPod {
					owner = t.rows[e.Parent].owner()
				} else {
					sec = secNone
				}
			}
			if sec != secNone {
				hint := int32(-1)
				if i < known && t.rows[i].sec == sec {
					hint = t.rows[i].slot
				}
				at = t.put(w, sec, hint, i, name, second, owner)
			}
		}
		t.rows[i] = at
	}

	t.devices = slices.Grow(t.devices, len(r.Devices))
	known = len(t.devices)
	t.devices = t.devices[:len(r.Devices)]
	for i := range r.Devices {
		d := &r.Devices[i]
		at, of := ref{sec: secNone}, t.rows[d.Entity]
		if sec := deviceSection(d.Kind); sec != secNone && of.sec != secNone {
			second := d.Claim
			if d.Kind == proto.DeviceAccelerator {
				second = d.Make + "\x00" + d.Model
			}
			hint := int32(-1)
			if i < known && t.devices[i].sec == sec {
				hint = t.devices[i].slot
			}
			at = t.put(w, sec, hint, i, d.Name, second, of.owner())
		}
		t.devices[i] = at
	}

	w.extra.Reset()
	t.extras = slices.Grow(t.extras, len(r.Extras))
	known = len(t.extras)
	t.extras = t.extras[:len(r.Extras)]
	for i := range r.Extras {
		x := &r.Extras[i]
		at, of := ref{sec: secNone}, t.rows[x.Entity]
		if of.sec != secNone {
			hint := int32(-1)
			if i < known && t.extras[i].sec == secExtra {
				hint = t.extras[i].slot
			}
			at = t.put(w, secExtra, hint, i, x.Name, extraType(x), of.owner())
			w.extra.Set(i, extraField, extraBits(x.Value))
		}
		t.extras[i] = at
	}
}

// put finds or makes the slot of one row. A second row of the same name in one table is left out.
func (t *track) put(w *workspace, sec section, hint int32, row int, name, second string, owner uint32) ref {
	g := t.grids[sec]
	if g == nil {
		g = &grid{}
		t.grids[sec] = g
	}
	slot, fresh := g.slot(hint, name, second, owner)
	for len(w.rowOf[sec]) <= slot {
		w.rowOf[sec] = append(w.rowOf[sec], -1)
	}
	if w.rowOf[sec][slot] >= 0 {
		return ref{sec: secNone}
	}
	w.rowOf[sec][slot] = int32(row) //nolint:gosec // rows are capped by the codec
	if fresh && sec == secPod {
		w.entered = append(w.entered, podChange{podName{second, name}, slot})
	}
	return ref{sec, int32(slot)} //nolint:gosec // same
}

// trim forgets ticks up to and including oldest and frees the slots that only they knew. It reports
// whether anything is left.
func (t *track) trim(w *workspace, oldest proto.Tick) bool {
	w.left = w.left[:0]
	n := 0
	for n < len(t.records) && t.records[n].tick <= oldest {
		n++
	}
	if n == 0 {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = slices.Delete(t.records, 0, n)
	if len(t.records) == 0 {
		return false
	}
	for s, g := range t.grids {
		if g == nil {
			continue
		}
		for slot, last := range g.gone {
			if last < t.records[0].tick {
				if section(s) == secPod { //nolint:gosec // below sections
					w.left = append(w.left, podChange{podName{g.secondOf(slot), g.names[slot]}, slot})
				}
				g.release(slot)
			}
		}
	}
	return true
}

func fill(dst []int32, n int) []int32 {
	for range n {
		dst = append(dst, -1)
	}
	return dst
}
