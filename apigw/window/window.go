// Package window is the memory under the view: every metric of every entity of one cluster for the last
// ticks, packed.
//
// What one stream of rollups says (a node, a namespace, the cluster) is a track. A track holds its newest
// tick as dense columns, a grid per kind of row, and of every older tick only how to get back to it from
// the tick after it: per column that changed, which rows did and by how much, in as few bytes as the
// largest change needs. So a constant costs nothing, a sample that did not advance costs nothing, a point
// in time is dropped by forgetting one slice, and any cell of any tick is found without decoding its
// neighbours. A row keeps its slot in the grid as long as any remembered tick knows it; then the slot is
// free for another. Changes live in chunks shared by all tracks: few objects for the garbage collector.
//
// Nothing survives a crash; the view fills a new window from ROLLUPS. While it does, the newest tick of
// each track is there already and the past is built behind it, see Seed.
//
// Shares that a node's rollup holds of namespaces and workloads are not remembered: their sums are.
//
// Not here: what is served now by the Metrics API, and who may be asked for (view); names and labels as
// readers spell them (modelapi, labels).
package window

import (
	"slices"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Window remembers one cluster. Append, Seed, Settle and Trim are for one writer at a time; everything
// else may be called at any time from any goroutine.
type Window struct {
	span  time.Duration
	arena arena
	seed  bool // tracks that begin now begin with their newest tick; guarded by the one writer

	work workspace // of the one writer

	mu     sync.RWMutex // guards the maps
	tracks map[trackName]*track
	pods   map[podName][]place // where pods of that name are or were; the newest last. Places are added, never altered: readers keep what they found
}

type trackName struct {
	scope proto.Scope
	name  string
}

type podName struct{ namespace, name string }

// place is a row of a track.
type place struct {
	track *track
	slot  int
}

// New returns an empty window that remembers ticks younger than span.
func New(span time.Duration) *Window {
	return &Window{span: span, tracks: map[trackName]*track{}, pods: map[podName][]place{}}
}

// Span returns how much of the past the window remembers.
func (w *Window) Span() time.Duration { return w.span }

// Seed says that what is appended from now on is the newest tick of its track and that the past will
// follow. Until Settle, older ticks of such a track are collected beside it, oldest first, and take its
// place when they have reached its tick.
func (w *Window) Seed() { w.seed = true }

// Settle says that the past has been read: nothing older will be taken in from now on.
func (w *Window) Settle() {
	w.seed = false
	for _, t := range w.all() {
		t.provisional, t.behind = false, nil
	}
}

// Append takes in one rollup and reports whether it was new; r is the caller's again when it returns. A
// tick that is not newer than its track's newest is left out, unless it fills the past (see Seed).
func (w *Window) Append(r *proto.Rollup) bool {
	if len(r.Entities) == 0 {
		return false
	}
	key := trackName{r.Scope, r.Name}
	w.mu.RLock()
	t := w.tracks[key]
	w.mu.RUnlock()
	if t == nil {
		t = &track{scope: r.Scope, name: r.Name, provisional: w.seed}
		t.append(&w.work, &w.arena, r)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.tracks[key] = t
		w.enter(t)
		return true
	}
	if t.provisional && r.Tick <= t.newest() {
		if t.behind == nil {
			t.behind = &track{scope: r.Scope, name: r.Name}
		}
		if r.Tick <= t.behind.newest() {
			return false
		}
		t.behind.append(&w.work, &w.arena, r)
		w.work.entered, w.work.left = w.work.entered[:0], w.work.left[:0]
		if r.Tick == t.newest() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.leave(t)
			w.tracks[key] = t.behind
			w.enter(t.behind)
		}
		return true
	}
	t.provisional, t.behind = false, nil
	if r.Tick <= t.newest() {
		return false
	}
	t.append(&w.work, &w.arena, r)
	t.trim(&w.work, t.newest()-proto.Tick(w.span.Milliseconds()))
	w.index(t)
	return true
}

// Trim forgets what is older than the window at that time, and tracks of which nothing is left.
func (w *Window) Trim(now time.Time) {
	oldest := proto.Tick(now.Add(-w.span).UnixMilli())
	for key, t := range w.all() {
		if t.trim(&w.work, oldest) {
			w.index(t)
			continue
		}
		w.mu.Lock()
		w.leave(t)
		delete(w.tracks, key)
		w.mu.Unlock()
	}
}

// all returns the tracks of now.
func (w *Window) all() map[trackName]*track {
	w.mu.RLock()
	defer w.mu.RUnlock()
	all := make(map[trackName]*track, len(w.tracks))
	for k, t := range w.tracks {
		all[k] = t
	}
	return all
}

// index takes the pods that came and went at the last append or trim into the map of pods.
func (w *Window) index(t *track) {
	if len(w.work.entered) == 0 && len(w.work.left) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.work.left {
		w.removePod(p.name, t, p.slot)
	}
	for _, p := range w.work.entered {
		w.pods[p.name] = append(w.pods[p.name], place{t, p.slot})
	}
	w.work.entered, w.work.left = w.work.entered[:0], w.work.left[:0]
}

func (w *Window) removePod(name podName, t *track, slot int) {
	places := slices.DeleteFunc(slices.Clone(w.pods[name]), func(p place) bool { return p.track == t && p.slot == slot })
	if len(places) == 0 {
		delete(w.pods, name)
	} else {
		w.pods[name] = places
	}
}

// enter puts all pods of a track into the map; leave takes them out.
func (w *Window) enter(t *track) {
	w.work.entered, w.work.left = w.work.entered[:0], w.work.left[:0]
	t.eachPod(func(name podName, slot int) { w.pods[name] = append(w.pods[name], place{t, slot}) })
}

func (w *Window) leave(t *track) {
	t.eachPod(func(name podName, slot int) { w.removePod(name, t, slot) })
}

// arena hands out memory for changes from chunks. A chunk is freed when no tick refers to it any more;
// what is made together is forgotten together, give or take a tick.
type arena struct{ chunk []byte }

// chunkBytes is the size of a chunk: large enough to be few, small enough not to matter to one node.
const chunkBytes = 64 << 10

func (a *arena) keep(b []byte) []byte {
	if len(b) > chunkBytes/4 {
		return slices.Clone(b)
	}
	if cap(a.chunk)-len(a.chunk) < len(b) {
		a.chunk = make([]byte, 0, chunkBytes)
	}
	from := len(a.chunk)
	a.chunk = append(a.chunk, b...)
	return a.chunk[from:len(a.chunk):len(a.chunk)]
}
