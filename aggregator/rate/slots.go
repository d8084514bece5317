package rate

// slots hold state by key. The rows of one batch are looked up in the order of the batch before, which
// for sources that sort their answers finds nearly all of them without hashing a key. An index is made where a
// row is not there, for that batch alone: kept, it would be a seventh of what is held.
type slots[K comparable, S any] struct {
	list  []slot[K]
	state []S // of each slot; apart, since the garbage collector need not look through what has no pointers
	free  []int32
	index map[K]int32 // nil until it is needed for the batch at hand
	order []int32     // slots of the batch at hand, in its order
	last  []int32     // of the batch before
	next  int         // where in last the next row is expected
	round uint32      // of the batch at hand
}

type slot[K comparable] struct {
	key   K
	seen  int64  // clock when a batch last had it, ms
	round uint32 // of that batch
	place int32  // in the order of that batch
	used  bool
}

// begin starts a batch of so many rows.
func (s *slots[K, S]) begin(rows int) {
	s.index = nil
	if s.list == nil && rows > 0 { // as large as it is likely to stay
		s.list, s.state = make([]slot[K], 0, rows), make([]S, 0, rows)
		s.order, s.last = make([]int32, 0, rows), make([]int32, 0, rows)
	}
	s.round++
	s.last, s.order = s.order, s.last[:0]
	s.next = 0
}

// find returns the slot of a key, a new one where there is none or it was last seen before the clock stood
// at since; -1 where the batch has had it already.
func (s *slots[K, S]) find(key K, now, since int64) int32 {
	i, ok := int32(-1), false
	if s.next < len(s.last) {
		i = s.last[s.next]
		ok = s.list[i].used && s.list[i].key == key
		s.next++
	}
	if !ok {
		if s.index == nil {
			s.look()
		}
		if i, ok = s.index[key]; !ok {
			i = s.add(key, now)
		} else if at := &s.list[i]; at.round == s.round-1 {
			s.next = int(at.place) + 1 // rows were left out or moved: go on behind this one
		}
	}
	at := &s.list[i]
	if at.round == s.round {
		return -1
	}
	if at.seen < since { // not swept yet, which must not show
		s.state[i] = *new(S)
	}
	at.round, at.place, at.seen = s.round, int32(len(s.order)), now //nolint:gosec // as in add
	s.order = append(s.order, i)
	return i
}

// look makes the index.
func (s *slots[K, S]) look() {
	s.index = make(map[K]int32, cap(s.list))
	for i := range s.list {
		if at := &s.list[i]; at.used {
			s.index[at.key] = int32(i) //nolint:gosec // as in add
		}
	}
}

// add makes a slot of a key that the index does not have.
func (s *slots[K, S]) add(key K, now int64) int32 {
	var i int32
	if n := len(s.free); n > 0 {
		i = s.free[n-1]
		s.free = s.free[:n-1]
	} else {
		s.list, s.state = append(s.list, slot[K]{}), append(s.state, *new(S))
		i = int32(len(s.list) - 1) //nolint:gosec // bounded by the rows of a few messages
	}
	s.list[i] = slot[K]{key: key, used: true, seen: now}
	s.index[key] = i
	return i
}

// sweep frees the slots that were last seen before the clock stood at since. It comes before begin.
func (s *slots[K, S]) sweep(since int64) {
	for i := range s.list {
		if at := &s.list[i]; at.used && at.seen < since {
			*at, s.state[i] = slot[K]{}, *new(S)
			s.free = append(s.free, int32(i)) //nolint:gosec // as in add
		}
	}
}
