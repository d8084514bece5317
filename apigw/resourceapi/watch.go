package resourceapi

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/heapstream/heapstream/apigw/view"
)

// Watching.
//
// While somebody watches a resource of a cluster, its hub compares every lookEvery what the view serves with what it
// served before, and appends the differences to a log that all watches read. The view does no more for a thousand
// watches than for none. A watch is a place in the log: who reads too slowly to keep it there is told 410 and starts
// anew, and so nobody's slowness costs memory. An event is encoded once for all who take it in the same form.
//
// Versions are sequences of ROLLUPS, alike on all gateways. A difference that is found between the sequences A (read
// before looking) and B (read after it) is of what was applied up to B, and all that was applied up to A is in it. So
// its entry stands for the sequence of the rollup that made it (B for what vanished, which nobody says), and shows at
// most A, so that versions never fall. Who comes back with a version gets the log from the first entry on that stands
// for it or for a later one: perhaps an entry twice, never one too few, and of each object the last one last. Lists that
// a watch may follow are of a look, too: see mayWatch.
const (
	lookEvery = 100 * time.Millisecond
	// expireEvery: what vanishes because nothing is heard of it vanishes without a message.
	expireEvery = time.Second
	// warmEvery and warmFor: a list may be followed by a watch from its version, so the log goes on for a while.
	warmEvery = 10 * time.Second
	warmFor   = 5 * time.Minute
	// bookmarkEvery is less than the log goes back.
	bookmarkEvery = 10 * time.Second
	// maxWatches is for all clusters and resources: each has a stream and two goroutines.
	maxWatches = 1000
	// logRounds is how many changes of everything the log remembers; logLeast is for small clusters.
	logRounds, logLeast = 2, 4096
	// aheadWait is how long a version that another gateway has seen is waited for.
	aheadWait = 2 * time.Second
)

// item is one state of a pod or node as an event shows it. It is immutable but for what has been encoded.
type item struct {
	pod     *view.PodMetrics // one of both
	node    *view.NodeMetrics
	version uint64
	created time.Time

	mu      sync.Mutex
	encoded []encoding
}

type encoding struct {
	id    runtime.Identifier
	bytes []byte
}

var _ runtime.CacheableObject = (*item)(nil)

func (i *item) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (i *item) DeepCopyObject() runtime.Object { return i.GetObject() }

// GetObject makes the object.
func (i *item) GetObject() runtime.Object {
	if i.node != nil {
		o := nodeObject(i.node, i.created)
		o.ResourceVersion = resourceVersion(i.version)
		return &o
	}
	o := podObject(i.pod, i.created)
	o.ResourceVersion = resourceVersion(i.version)
	return &o
}

// maxEncodings of an item: JSON and protobuf of two versions, each as an event of two types.
const maxEncodings = 8

// CacheEncode writes the event, which it encodes once for each form. Tables are not kept: the first of a watch has
// headers, and the library forgets that it has written them if it is not asked to encode.
func (i *item) CacheEncode(id runtime.Identifier, encode func(runtime.Object, io.Writer) error, w io.Writer) error {
	if strings.Contains(string(id), "watch-embedded") {
		return encode(i.GetObject(), w)
	}
	b, err := i.bytes(id, encode)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func (i *item) bytes(id runtime.Identifier, encode func(runtime.Object, io.Writer) error) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range i.encoded {
		if e.id == id {
			return e.bytes, nil
		}
	}
	var b bytes.Buffer
	if err := encode(i.GetObject(), &b); err != nil {
		return nil, err
	}
	if len(i.encoded) < maxEncodings {
		i.encoded = append(i.encoded, encoding{id, bytes.Clone(b.Bytes())})
	}
	return b.Bytes(), nil
}

// row is what a hub knows of one pod or node. Where a sample did not advance, what is served now has other bytes in
// memory than what the item shows, and the same content.
type row struct {
	pod  *view.PodMetrics
	node *view.NodeMetrics
	item *item
}

func (r *row) namespace() string {
	if r.node != nil {
		return ""
	}
	return r.pod.Namespace
}

func (r *row) name() string {
	if r.node != nil {
		return r.node.Name
	}
	return r.pod.Name
}

func (r *row) seq() uint64 {
	if r.node != nil {
		return r.node.Seq
	}
	return r.pod.Seq
}

func (r *row) compare(o *row) int {
	if c := strings.Compare(r.namespace(), o.namespace()); c != 0 {
		return c
	}
	return strings.Compare(r.name(), o.name())
}

// same reports whether a client could not tell both states apart.
func (r *row) same(o *row) bool {
	if r.node != nil {
		a, b := r.node, o.node
		return a.Time.Equal(b.Time) && a.Window == b.Window && a.Usage == b.Usage && a.UID == b.UID && slices.Equal(a.Labels, b.Labels)
	}
	a, b := r.pod, o.pod
	return a.Time.Equal(b.Time) && a.Window == b.Window && a.UID == b.UID &&
		slices.Equal(a.Containers, b.Containers) && slices.Equal(a.Labels, b.Labels)
}

// rows yields what a source serves of a kind, sorted.
func rows(source Source, kind string) iter.Seq[row] {
	return func(yield func(row) bool) {
		if kind == kindNode {
			for n := range source.Nodes() {
				if !yield(row{node: n}) {
					return
				}
			}
			return
		}
		for p := range source.Pods("") {
			if !yield(row{pod: p}) {
				return
			}
		}
	}
}

// entry is one difference.
type entry struct {
	before, after *item  // nil before: new; nil after: gone
	shown         *item  // what a watch that had it and has it no longer is shown; made where it is needed
	seq           uint64 // what it stands for
}

// hub is one resource of one cluster.
type hub struct {
	kind   string
	source func() (Source, bool)
	now    func() time.Time // of creationTimestamp

	mu       sync.Mutex
	of       Source // that rows are of; nil while cold
	rows     []row  // as last looked at; not altered once it is here
	position uint64 // A of the last look
	log      []entry
	first    int64         // number of log[0]; entries are numbered from 0 in each life of a source
	lost     int64         // the largest sequence that an entry not in the log stood for, or that nobody looked for
	looked   time.Time     // last look
	wanted   time.Time     // last list or watch
	watches  int           // that run
	changed  chan struct{} // closed when the log grows or its life ends
	life     int           // counts sources; a watch of another life is over
}

// tick looks if it is time to.
func (h *hub) tick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.of == nil:
	case h.watches > 0:
		h.wanted = now
		h.look(now)
	case now.Sub(h.wanted) > warmFor:
		h.end()
	case now.Sub(h.looked) > warmEvery:
		h.look(now)
	}
}

// snapshot returns what is served now, as the log goes on from it, and its version. The rows must not be altered.
func (h *hub) snapshot() ([]row, uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = time.Now()
	h.look(h.wanted)
	if h.of == nil {
		return nil, 0, apierrors.NewServiceUnavailable("the cluster is not in the view")
	}
	return h.rows, h.position, nil
}

// end forgets everything and tells the watches. The caller holds mu.
func (h *hub) end() {
	h.of, h.rows, h.log, h.position, h.first, h.lost = nil, nil, nil, 0, 0, 0
	h.life++
	h.wake()
}

func (h *hub) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// look compares what is served now with what was before. The caller holds mu.
func (h *hub) look(now time.Time) {
	source, ok := h.source()
	if !ok || h.of != nil && source != h.of {
		h.end() // the cluster is gone, or its stream was made anew and counts from one again
		if !ok {
			return
		}
	}
	begins, from := h.of == nil, source.Seq()
	if !begins && from == h.position && now.Sub(h.looked) < expireEvery {
		return
	}
	h.of, h.looked = source, now
	created := h.now()
	before, after := h.rows, make([]row, 0, len(h.rows)+len(h.rows)/16+16)
	var found []entry
	gone := func(r *row) { found = append(found, entry{before: r.item}) }
	i := 0
	for r := range rows(source, h.kind) {
		for i < len(before) && before[i].compare(&r) < 0 {
			gone(&before[i])
			i++
		}
		var old *row
		if i < len(before) && before[i].compare(&r) == 0 {
			old = &before[i]
			i++
		}
		if old != nil && (old.pod == r.pod && old.node == r.node || old.same(&r)) {
			r.item = old.item
		} else {
			r.item = &item{pod: r.pod, node: r.node, version: min(r.seq(), from), created: created}
			e := entry{after: r.item, seq: r.seq()}
			if old != nil {
				e.before = old.item
			}
			if !begins {
				found = append(found, e)
			}
		}
		after = append(after, r)
	}
	for ; i < len(before); i++ {
		gone(&before[i])
	}
	until := source.Seq()
	h.rows, h.position = after, from
	if begins {
		h.lost = int64(min(until, 1<<62)) - 1 //nolint:gosec // bounded
		return
	}
	for i := range found {
		e := &found[i]
		if e.after == nil {
			e.seq = until
		}
		if e.before != nil {
			e.shown = &item{pod: e.before.pod, node: e.before.node, version: min(e.seq, from), created: e.before.created}
		}
	}
	slices.SortStableFunc(found, func(a, b entry) int { return cmp.Compare(a.seq, b.seq) })
	if len(found) == 0 {
		return
	}
	h.log = append(h.log, found...)
	if over := len(h.log) - max(logRounds*len(after), logLeast, len(found)); over > 0 {
		for _, e := range h.log[:over] {
			h.lost = max(h.lost, int64(min(e.seq, 1<<62))) //nolint:gosec // bounded
		}
		clear(h.log[:over])
		h.log = h.log[over:]
		h.first += int64(over)
	}
	h.wake()
}

// expired is the answer to a version from which nothing can be continued.
func expired(version string) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("resource version %s is no longer remembered: list again", version))
}

// start registers a watch from a version on; initial says that what is there now is wanted first.
func (h *hub) start(ctx context.Context, version string, initial bool) (w *hubWatch, err error) {
	from, err := parseVersion(version)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(aheadWait); ; {
		if w, err = h.tryStart(from, version, initial); w != nil || err != nil || time.Now().After(end) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, apierrors.NewTimeoutError("the watch ended before its resource version was there", 1)
		case <-time.After(lookEvery / 5):
		}
	}
	if w == nil && err == nil {
		err = expired(version + ", which is ahead of everything here,")
	}
	return w, err
}

// tryStart returns neither a watch nor an error while the version is ahead.
func (h *hub) tryStart(from uint64, version string, initial bool) (*hubWatch, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = time.Now()
	h.look(h.wanted)
	switch {
	case h.of == nil:
		return nil, apierrors.NewServiceUnavailable("the cluster is not in the view")
	case from > max(h.position, h.of.Seq()):
		return nil, nil
	}
	w := &hubWatch{hub: h, life: h.life, next: h.first + int64(len(h.log))}
	switch {
	case initial:
		w.initial, w.position = h.rows, h.position
	case from > 0:
		if int64(from) <= h.lost { //nolint:gosec // 63 bits: see parseVersion
			return nil, expired(version)
		}
		w.position = from
		if i := slices.IndexFunc(h.log, func(e entry) bool { return e.seq >= from }); i >= 0 {
			w.next = h.first + int64(i)
		}
	default:
		w.position = h.position
	}
	h.watches++
	return w, nil
}

func parseVersion(version string) (uint64, error) {
	if version == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(version, 10, 63)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion=%q is none: want what a list or an event gave", version))
	}
	return v, nil
}

// hubWatch is a place in the log.
type hubWatch struct {
	hub      *hub
	life     int
	initial  []row  // to be shown first
	next     int64  // entry to be read next
	position uint64 // all of which has been read
}

// entries returns what has been logged since the last call, at most as many as fit in dst, and otherwise what to wait
// for. behind says that the log has moved on, or its life is over.
func (w *hubWatch) entries(dst []entry) (n int, wait <-chan struct{}, behind bool) {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life != w.life || w.next < h.first {
		return 0, nil, true
	}
	n = copy(dst, h.log[w.next-h.first:])
	w.next += int64(n)
	if w.next == h.first+int64(len(h.log)) {
		w.position = max(w.position, h.position)
	}
	return n, h.changed, false
}

// behind reports whether the log has moved on.
func (w *hubWatch) behind() (bool, <-chan struct{}) {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.life != w.life || w.next < h.first, h.changed
}

func (w *hubWatch) close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.watches--
}

// watcher is one client's watch.
type watcher struct {
	place     *hubWatch
	selection selection
	bookmarks bool
	ended     bool // whether the initial events are to end with a bookmark that says so
	kind      string

	events chan watch.Event
	stop   chan struct{}
	once   sync.Once
}

var _ watch.Interface = (*watcher)(nil)

// ResultChan is closed when the watch is over.
func (w *watcher) ResultChan() <-chan watch.Event { return w.events }

// Stop ends the watch.
func (w *watcher) Stop() { w.once.Do(func() { close(w.stop) }) }

// eventBuffer is how many events wait for the client before they wait in the log: those are written without flushing
// in between.
const eventBuffer = 100

// run sends events until the watch is stopped, over or behind.
func (w *watcher) run(ctx context.Context) {
	defer close(w.events)
	initial := w.place.initial
	w.place.initial = nil
	for i := range initial {
		r := &initial[i]
		if w.matches(r.item) && !w.send(ctx, watch.Event{Type: watch.Added, Object: r.item}) {
			return
		}
	}
	if w.ended && !w.send(ctx, w.bookmark(true)) {
		return
	}
	initial = nil
	var batch [64]entry
	bookmark := time.NewTicker(bookmarkEvery)
	defer bookmark.Stop()
	for {
		n, wait, behind := w.place.entries(batch[:])
		if behind {
			w.expire(ctx)
			return
		}
		for i := range batch[:n] {
			event, ok := w.event(&batch[i])
			if ok && !w.send(ctx, event) {
				return
			}
		}
		clear(batch[:n])
		if n > 0 {
			continue
		}
		select {
		case <-wait:
		case <-bookmark.C:
			if w.bookmarks && !w.send(ctx, w.bookmark(false)) {
				return
			}
		case <-w.stop:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (w *watcher) matches(i *item) bool {
	return i != nil && w.selection.matchRow(&row{pod: i.pod, node: i.node})
}

// event is what an entry means to who selects.
func (w *watcher) event(e *entry) (watch.Event, bool) {
	switch had, has := w.matches(e.before), w.matches(e.after); {
	case had && has:
		return watch.Event{Type: watch.Modified, Object: e.after}, true
	case has:
		return watch.Event{Type: watch.Added, Object: e.after}, true
	case had:
		return watch.Event{Type: watch.Deleted, Object: e.shown}, true
	}
	return watch.Event{}, false
}

// send waits for the client as long as the watch keeps its place. It reports whether there is more to send.
func (w *watcher) send(ctx context.Context, event watch.Event) bool {
	for {
		select {
		case w.events <- event:
			return true
		default:
		}
		behind, wait := w.place.behind()
		if behind {
			w.expire(ctx)
			return false
		}
		select {
		case w.events <- event:
			return true
		case <-wait:
		case <-w.stop:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// expire tells the client to list again.
func (w *watcher) expire(ctx context.Context) {
	status := apierrors.NewResourceExpired("the watch is too far behind what happens: list again").Status()
	select {
	case w.events <- watch.Event{Type: watch.Error, Object: &status}:
	case <-w.stop:
	case <-ctx.Done():
	}
}

func (w *watcher) bookmark(initial bool) watch.Event {
	meta := metav1.ObjectMeta{ResourceVersion: resourceVersion(w.place.position)}
	if initial {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	if w.kind == kindNode {
		return watch.Event{Type: watch.Bookmark, Object: &metrics.NodeMetrics{ObjectMeta: meta}}
	}
	return watch.Event{Type: watch.Bookmark, Object: &metrics.PodMetrics{ObjectMeta: meta}}
}

// hubs are all hubs of a server.
type hubs struct {
	source func(cluster string) (Source, bool)
	now    func() time.Time

	mu      sync.Mutex
	all     map[hubName]*hub
	watches int
	over    bool
	running sync.WaitGroup
}

type hubName struct{ cluster, kind string }

func newHubs(source func(string) (Source, bool), now func() time.Time) *hubs {
	return &hubs{source: source, now: now, all: map[hubName]*hub{}}
}

// of returns the hub of a resource of a cluster that is in the view.
func (h *hubs) of(cluster, kind string) *hub {
	h.mu.Lock()
	defer h.mu.Unlock()
	name := hubName{cluster, kind}
	one := h.all[name]
	if one == nil {
		one = &hub{kind: kind, source: func() (Source, bool) { return h.source(cluster) }, now: h.now, changed: make(chan struct{})}
		h.all[name] = one
	}
	return one
}

// run looks until ctx ends, and then ends all watches and waits for them.
func (h *hubs) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			for _, one := range h.list() {
				one.tick()
			}
		}
	}
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	for _, one := range h.list() {
		one.mu.Lock()
		one.end()
		one.mu.Unlock()
	}
	h.running.Wait()
}

func (h *hubs) list() []*hub {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*hub, 0, len(h.all))
	for _, one := range h.all {
		all = append(all, one)
	}
	return all
}

// admit takes a place among the watches; leave gives it back.
func (h *hubs) admit() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.over:
		return apierrors.NewServiceUnavailable("the server is stopping")
	case h.watches >= maxWatches:
		return apierrors.NewTooManyRequests(fmt.Sprintf("there are %d watches, and no more are served here at a time", maxWatches), 5)
	}
	h.watches++
	h.running.Add(1)
	return nil
}

func (h *hubs) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches--
	h.running.Done()
}

// watch begins a watch. It ends with ctx at the latest.
func (s *store) watch(ctx context.Context, kind string, options *metainternal.ListOptions) (watch.Interface, error) {
	cluster, err := s.cluster(ctx)
	if err != nil {
		return nil, err
	}
	if options == nil {
		options = &metainternal.ListOptions{}
	}
	initial := options.ResourceVersion == "" || options.ResourceVersion == "0"
	if options.SendInitialEvents != nil {
		initial = *options.SendInitialEvents
	}
	if err := s.hubs.admit(); err != nil {
		return nil, err
	}
	place, err := s.hubs.of(cluster, kind).start(ctx, options.ResourceVersion, initial)
	if err != nil {
		s.hubs.leave()
		return nil, err
	}
	w := &watcher{
		place: place, selection: newSelection(ctx, options), kind: kind, bookmarks: options.AllowWatchBookmarks,
		ended:  initial && options.SendInitialEvents != nil && options.AllowWatchBookmarks,
		events: make(chan watch.Event, eventBuffer), stop: make(chan struct{}),
	}
	go func() {
		defer s.hubs.leave()
		defer place.close()
		w.run(ctx)
	}()
	return w, nil
}

// mayWatch reports whether a list is of a client that may go on to watch from its version: one that asks for pages or for
// a version. Such a list is of the last look, since what came and went between two looks is in no event: who had seen it
// would keep it for ever.
func mayWatch(options *metainternal.ListOptions) bool {
	return options != nil && (options.Limit > 0 || options.ResourceVersion != "")
}
