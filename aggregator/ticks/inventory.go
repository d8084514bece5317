package ticks

import (
	"github.com/heapstream/heapstream/proto"
)

// whole is one inventory subject: the revision in force, and the one whose parts are coming in.
type whole struct {
	revision uint64
	from     uint64 // sequence of the first part in force; 0: none is
	at       int64  // append time of the last one, Unix ms
	parts    []*proto.Inventory

	coming     uint64
	comingFrom uint64
	missing    int
	pending    []*proto.Inventory
}

// renewal is how long the revision in force keeps out older ones: twice as long as a writer takes to
// publish it again. Past it whoever wrote it is gone, and its successor may count from lower.
const renewal = 10 * 60 * 1000

// add takes one part and reports whether a revision came into force with it. Revisions older than the
// one in force are passed over while that is renewed; the same one again renews it.
func (w *whole) add(seq uint64, at int64, v *proto.Inventory) bool {
	if w.from != 0 && v.Revision < w.revision && at-w.at <= renewal {
		return false
	}
	if w.comingFrom == 0 || v.Revision > w.coming || v.Revision == w.coming && len(w.pending) != int(v.Parts) {
		w.coming, w.comingFrom = v.Revision, seq
		w.pending, w.missing = make([]*proto.Inventory, v.Parts), int(v.Parts)
	} else if v.Revision < w.coming {
		return false
	}
	if w.pending[v.Part] == nil {
		w.missing--
	}
	w.pending[v.Part] = v
	if w.missing > 0 {
		return false
	}
	w.revision, w.from, w.at, w.parts = w.coming, w.comingFrom, at, w.pending
	w.comingFrom, w.pending = 0, nil
	return true
}

// since is the first sequence that is needed to know this inventory; 0: none.
func (w *whole) since() uint64 {
	if w.from == 0 || w.comingFrom != 0 && w.comingFrom < w.from {
		return w.comingFrom
	}
	return w.from
}

// Inventory is what only the API server knows of the whole cluster, as far as it is in force. The zero
// Inventory knows nothing.
type Inventory struct {
	wholes [4]whole // by proto.InventorySubject
}

// Add takes one part, appended at that time (Unix ms), which it keeps, and reports whether the inventory in force changed with it. A
// subject that this version does not know is passed over.
func (v *Inventory) Add(seq uint64, at int64, part *proto.Inventory) bool {
	if int(part.Subject) >= len(v.wholes) || part.Subject == 0 || part.Parts == 0 || part.Part >= part.Parts {
		return false
	}
	return v.wholes[part.Subject].add(seq, at, part)
}

// Since is the sequence from which the inventory in force, and the one that is coming in, can be read
// again; 0 where there is none.
func (v *Inventory) Since() (seq uint64) {
	for i := range v.wholes {
		if s := v.wholes[i].since(); s != 0 && (seq == 0 || s < seq) {
			seq = s
		}
	}
	return seq
}

// Parts are the parts in force of one subject, in their order; nil where none is in force. They must
// not be altered.
func (v *Inventory) Parts(s proto.InventorySubject) []*proto.Inventory { return v.wholes[s].parts }
