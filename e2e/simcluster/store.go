package simcluster

import (
	"sort"

	"k8s.io/apimachinery/pkg/watch"
)

// record is an object at one resource version. Immutable.
type record struct {
	rv uint64
	st state
}

// before tells the order of etcd's keys: by namespace, then name.
func (r *record) before(ns, name string) bool {
	a, b := r.st.key()
	return a < ns || a == ns && b < name
}

// change is one event of a watch: what it was and what it became (nil where there was or is nothing).
type change struct {
	rv        uint64
	kind      watch.EventType
	was, isIt *record
}

// store keeps the objects of one resource, sorted by key, and its newest changes. Guarded by Cluster.mu.
type store struct {
	sorted []*record
	lent   bool // sorted was handed to a reader and must not be changed in place
	hist   []change
	base   uint64 // the newest resource version that hist does not go back beyond
	keep   int
	more   chan struct{} // closed at the next change
}

func newStore(keep int) *store { return &store{keep: keep, more: make(chan struct{})} }

// find gives the place of a key and whether it is there.
func (s *store) find(ns, name string) (int, bool) {
	i := sort.Search(len(s.sorted), func(i int) bool { return !s.sorted[i].before(ns, name) })
	if i < len(s.sorted) {
		a, b := s.sorted[i].st.key()
		return i, a == ns && b == name
	}
	return i, false
}

func (s *store) get(ns, name string) *record {
	if i, ok := s.find(ns, name); ok {
		return s.sorted[i]
	}
	return nil
}

// snapshot lends the sorted records: the reader may keep them, the store will not change them.
func (s *store) snapshot() []*record {
	s.lent = true
	return s.sorted
}

// load adds without history; settle must follow.
func (s *store) load(rv uint64, st state) {
	s.sorted = append(s.sorted, &record{rv, st})
}

// settle sorts what was loaded; changes start after rv.
func (s *store) settle(rv uint64) {
	sort.Slice(s.sorted, func(i, j int) bool {
		ns, name := s.sorted[j].st.key()
		return s.sorted[i].before(ns, name)
	})
	s.base = rv
}

func (s *store) own(extra int) {
	if s.lent {
		s.sorted = append(make([]*record, 0, len(s.sorted)+extra), s.sorted...)
		s.lent = false
	}
}

// put adds or replaces an object.
func (s *store) put(rv uint64, st state) {
	ns, name := st.key()
	r := &record{rv, st}
	i, found := s.find(ns, name)
	s.own(16)
	if found {
		s.note(change{rv, watch.Modified, s.sorted[i], r})
		s.sorted[i] = r
		return
	}
	s.sorted = append(s.sorted, nil)
	copy(s.sorted[i+1:], s.sorted[i:])
	s.sorted[i] = r
	s.note(change{rv, watch.Added, nil, r})
}

// del removes an object; the change carries its last state at the new resource version.
func (s *store) del(rv uint64, ns, name string) {
	i, found := s.find(ns, name)
	if !found {
		return
	}
	s.own(0)
	last := s.sorted[i]
	s.sorted = append(s.sorted[:i], s.sorted[i+1:]...)
	s.note(change{rv, watch.Deleted, &record{rv, last.st}, nil})
}

func (s *store) note(c change) {
	if len(s.hist) >= 2*s.keep {
		// Readers may still hold the old array, so a new one begins.
		cut := len(s.hist) - s.keep
		s.base = s.hist[cut-1].rv
		s.hist = append(make([]change, 0, 2*s.keep), s.hist[cut:]...)
	}
	s.hist = append(s.hist, c)
	close(s.more)
	s.more = make(chan struct{})
}

// since gives the changes after rv, and a channel closed when there are more. False if the store has forgotten.
func (s *store) since(rv uint64) ([]change, <-chan struct{}, bool) {
	if rv < s.base {
		return nil, nil, false
	}
	i := sort.Search(len(s.hist), func(i int) bool { return s.hist[i].rv > rv })
	return s.hist[i:len(s.hist):len(s.hist)], s.more, true
}

// forget drops the history, so that every resource version before now is too old.
func (s *store) forget(rv uint64) {
	s.hist, s.base = nil, rv
	close(s.more)
	s.more = make(chan struct{})
}
