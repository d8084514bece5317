package soak

import (
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// keep is for how many ticks after its own a tick's book stays open: what is delivered twice comes within them.
const keep = 10

// ledger counts what is on the bus and what is at the backend, by tick. A tick whose book balances is closed after keep
// ticks; one that does not stays open until it does, so memory grows with what is owed and with nothing else.
type ledger struct {
	resolution time.Duration
	nodes      int

	mu      sync.Mutex
	books   map[proto.Tick]*book
	spare   []*book // closed, for their memory
	first   proto.Tick
	whole   proto.Tick            // the first whose totals expect all nodes: before, the inventory was on its way
	newest  proto.Tick            // newest totals
	known   map[string]proto.Tick // nodes, each with the tick of its newest batch
	outages []outage              // of the scraper
	settled map[proto.Tick]bool   // ticks whose books were closed
	sum     Sum
	faults  faults
}

// outage is a time in which no scraper was there: from its kill until the first batch of its next life.
type outage struct{ from, to proto.Tick }

// book is one tick.
type book struct {
	batches, rollups, namespaces map[string]int
	totals                       int
	nodes                        int               // that the totals expect
	points                       map[uint64]uint32 // by identity: hash of the value and the two flags below
	expected, written, matched   int
}

const (
	onBus     = 1
	atBackend = 2
	flags     = onBus | atBackend
)

// Sum is what was counted over all closed books.
type Sum struct {
	Ticks       int // closed, each with one message of totals
	NodeTicks   int // batches on SAMPLES, each with one rollup
	Excused     int // node ticks for which no scraper was there
	Missed      int // node ticks without a batch though a scraper was there
	Late        int // node ticks that came after their tick had closed
	BatchAgain  int // batches stored more than once, with one rollup
	Points      int // on ROLLUPS, each at the backend with its value
	Redelivered int // points written more than once, with the same value
	Open        int // ticks whose books do not balance (yet)
}

// faults are things that must not be: the first of them in words, all of them counted.
type faults struct {
	n     int
	words []string
}

const faultsInWords = 100

func (f *faults) add(format string, args ...any) {
	if f.n++; f.n <= faultsInWords {
		f.words = append(f.words, fmt.Sprintf(format, args...))
	}
}

func newLedger(nodes int, resolution time.Duration) *ledger {
	return &ledger{resolution: resolution, nodes: nodes, books: map[proto.Tick]*book{}, known: map[string]proto.Tick{}, settled: map[proto.Tick]bool{}}
}

// book is that of a tick; nil where it is closed. The caller holds mu.
func (l *ledger) book(tick proto.Tick) *book {
	b := l.books[tick]
	if b == nil {
		if l.first != 0 && tick >= l.first && tick <= l.newest.Add(-keep, l.resolution) {
			return nil
		}
		if n := len(l.spare); n > 0 {
			b, l.spare = l.spare[n-1], l.spare[:n-1]
		} else {
			b = &book{batches: map[string]int{}, rollups: map[string]int{}, namespaces: map[string]int{}, points: map[uint64]uint32{}}
		}
		l.books[tick] = b
	}
	return b
}

// batch notes a message on SAMPLES.
func (l *ledger) batch(node string, tick proto.Tick) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known[node] = max(l.known[node], tick)
	if b := l.book(tick); b == nil {
		l.faults.add("batch of node %s at %s comes when that tick is long over", node, tick)
	} else {
		b.batches[node]++
	}
}

// rollup notes a message on ROLLUPS and what of it should be at the backend.
func (l *ledger) rollup(r *proto.Rollup, points []pair) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.book(r.Tick)
	if b == nil {
		l.faults.add("rollup %q of %s comes when that tick is long over", r.Name, r.Tick)
		return
	}
	switch r.Scope {
	case proto.ScopeNode:
		if b.rollups[r.Name]++; b.totals > 0 && b.rollups[r.Name] == 1 {
			l.sum.Late++
		}
	case proto.ScopeNamespace:
		if b.namespaces[r.Name]++; b.namespaces[r.Name] > 1 {
			l.faults.add("namespace %s has %d rollups at %s", r.Name, b.namespaces[r.Name], r.Tick)
		}
	case proto.ScopeTotals:
		if b.totals++; b.totals > 1 {
			l.faults.add("there are %d totals of %s", b.totals, r.Tick)
		}
		if b.nodes = int(r.Totals.Expected); b.nodes == l.nodes && l.whole == 0 {
			l.whole = r.Tick
		}
		if r.Totals.Gap {
			l.faults.add("the totals of %s say that SAMPLES were lost", r.Tick)
		}
		if l.first == 0 {
			l.first = r.Tick
		}
		l.newest = max(l.newest, r.Tick)
	}
	for _, p := range points {
		v, had := b.points[p.identity]
		switch {
		case had && v&onBus != 0:
			l.faults.add("rollup %q of %s: a point of it is on ROLLUPS already", r.Name, r.Tick)
			continue
		case had && v&^flags != p.value:
			l.faults.add("rollup %q of %s: a point of it is at the backend with another value", r.Name, r.Tick)
		case had:
			b.matched++
		}
		b.expected++
		b.points[p.identity] = p.value | v&flags | onBus
	}
	if r.Scope == proto.ScopeTotals {
		l.close()
	}
}

// write notes points that the backend has taken.
func (l *ledger) write(points []stamped) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var tick proto.Tick
	var b *book
	for i := range points {
		p := &points[i]
		if b == nil || p.tick != tick {
			tick, b = p.tick, l.book(p.tick)
		}
		if b == nil { // closed in balance, so it had all there was
			l.sum.Redelivered++
			continue
		}
		v, had := b.points[p.identity]
		switch {
		case had && v&^flags != p.value:
			l.faults.add("a point of %s is at the backend with another value than before, or than on ROLLUPS", tick)
		case had && v&atBackend != 0:
			l.sum.Redelivered++
			continue
		case had:
			b.matched++
		}
		b.written++
		b.points[p.identity] = p.value | v&flags | atBackend
	}
}

// close closes the books that are old and balance. The caller holds mu.
func (l *ledger) close() {
	for _, tick := range slices.Sorted(maps.Keys(l.books)) {
		if tick > l.newest.Add(-keep, l.resolution) {
			return
		}
		if b := l.books[tick]; l.owes(b) == "" || tick < l.first {
			l.settle(tick, b)
		}
	}
}

// owes says what a tick lacks, "" if nothing.
func (l *ledger) owes(b *book) string {
	switch unrolled := len(b.batches) - len(b.rollups); {
	case b.totals == 0:
		return "no totals"
	case unrolled > 0:
		return fmt.Sprintf("%d of %d batches have no rollup", unrolled, len(b.batches))
	case b.matched < b.expected:
		return fmt.Sprintf("%d of %d points are not at the backend", b.expected-b.matched, b.expected)
	}
	return ""
}

// settle adds a book to the sum, with what is wrong in it. The caller holds mu.
func (l *ledger) settle(tick proto.Tick, b *book) {
	s := &l.sum
	if tick >= l.first {
		s.Ticks++
		l.settled[tick] = true
		excused := l.excused(tick)
		for node := range l.known {
			switch n := b.batches[node]; {
			case n > 1:
				s.BatchAgain++
			case n == 0 && excused:
				s.Excused++
			case n == 0 && tick > l.first:
				s.Missed++
			}
		}
		if b.nodes != l.nodes && (l.whole == 0 || tick > l.whole) {
			l.faults.add("the totals of %s expect %d nodes, want %d", tick, b.nodes, l.nodes)
		}
	}
	for node, n := range b.rollups {
		if n > 1 {
			l.faults.add("node %s has %d rollups at %s", node, n, tick)
		}
		if b.batches[node] == 0 {
			l.faults.add("node %s has a rollup at %s and no batch", node, tick)
		}
	}
	s.NodeTicks += len(b.rollups)
	s.Points += b.matched
	if extra := b.written - b.matched; extra > 0 {
		l.faults.add("%d points of %s are at the backend and not on ROLLUPS", extra, tick)
	}
	clear(b.batches)
	clear(b.rollups)
	clear(b.namespaces)
	clear(b.points)
	delete(l.books, tick)
	*b = book{batches: b.batches, rollups: b.rollups, namespaces: b.namespaces, points: b.points}
	l.spare = append(l.spare, b)
}

// excused tells whether the scraper was away at a tick. The caller holds mu.
func (l *ledger) excused(tick proto.Tick) bool {
	return slices.ContainsFunc(l.outages, func(o outage) bool { return o.from <= tick && (o.to == 0 || tick <= o.to) })
}

// scraperGone notes that the scraper was killed at that time; scraperBack that its next life has stored a batch of
// that tick. Scrapes of the tick of the kill were under way, and those of the first tick back may have begun too late.
func (l *ledger) scraperGone(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outages = append(l.outages, outage{from: proto.TickAt(at.Add(-proto.Deadline(l.resolution)), l.resolution)})
}

func (l *ledger) scraperBack(tick proto.Tick) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.outages {
		if l.outages[i].to == 0 {
			l.outages[i].to = tick
		}
	}
}

// lastTick is the newest tick that has totals.
func (l *ledger) lastTick() proto.Tick {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// progress is the sum so far.
func (l *ledger) progress() (s Sum, faults int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = l.sum
	for tick, b := range l.books {
		if tick <= l.newest && tick >= l.first && l.owes(b) != "" {
			s.Open++
		}
	}
	return s, l.faults.n
}

// tell writes the faults in words from that one on, and returns how many there are now.
func (l *ledger) tell(out io.Writer, from int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, words := range l.faults.words[from:] {
		fmt.Fprintf(out, "wrong: %s\n", words)
	}
	return len(l.faults.words)
}

// balanced tells whether everything up to the tick is where it should be, and nothing more can come of it.
func (l *ledger) balanced(upto proto.Tick) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest < upto {
		return false
	}
	for tick, b := range l.books {
		if tick >= l.first && tick <= upto && l.owes(b) != "" {
			return false
		}
	}
	for _, newest := range l.known { // batches of one node come in their order: none of an earlier tick is on its way
		if newest <= upto {
			return false
		}
	}
	return true
}

// finish closes everything up to the tick, in balance or not, and returns the sum and all faults.
func (l *ledger) finish(upto proto.Tick) (Sum, faults) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for tick := l.first; tick <= upto && l.first != 0; tick = tick.Add(1, l.resolution) {
		b := l.books[tick]
		if b == nil {
			continue // closed, or never begun: counted below
		}
		if owes := l.owes(b); owes != "" {
			l.faults.add("tick %s: %s", tick, owes)
		}
		l.settle(tick, b)
	}
	slept := 0 // ticks at which no scraper was there, and nobody spoke: they may be passed over
	for tick := l.first; tick <= upto && l.first != 0; tick = tick.Add(1, l.resolution) {
		if !l.settled[tick] && l.excused(tick) {
			slept++
		}
	}
	if l.first == 0 {
		l.faults.add("no tick was ever closed")
	} else if want := int(upto.Time().Sub(l.first.Time())/l.resolution) + 1 - slept; l.sum.Ticks != want {
		l.faults.add("%d ticks have totals from %s to %s, want %d", l.sum.Ticks, l.first, upto, want)
	}
	return l.sum, l.faults
}

// pair is a point without its tick: what tells it apart, and its value, whose two low bits are free.
type pair struct {
	identity uint64
	value    uint32
}

type stamped struct {
	pair
	tick proto.Tick
}

// The identity of a point is made of the words that tell entities apart and its metric, the same on both sides.
var (
	seed     = maphash.MakeSeed()
	identity = [...]string{proto.LabelType, proto.LabelNodename, proto.LabelNamespaceName, proto.LabelPodName, proto.LabelContainerName, proto.LabelResourceID}
)

// entityWords are the values of the identity's labels, in its order.
type entityWords [len(identity)]string

func (w *entityWords) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for i := range w {
		_, _ = h.WriteString(w[i])
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

func (w *entityWords) take(key, value string) {
	if i := slices.Index(identity[:], key); i >= 0 {
		w[i] = value
	}
}

// pointOf is the identity of an entity's metric.
func pointOf(entity uint64, metric uint64) uint64 {
	h := (entity ^ metric) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func metricOf(name string) uint64 { return maphash.String(seed, name) }

func valueHash(text []byte) uint32 { return uint32(maphash.Bytes(seed, text)) &^ flags } //nolint:gosec // part of a hash

// reader makes the points of rollups.
type reader struct {
	format  proto.LabelFormat
	labels  []proto.Label
	metrics map[string]uint64
	text    []byte
	points  []pair
}

func newReader() *reader {
	return &reader{format: proto.DefaultLabelFormat(), metrics: map[string]uint64{}}
}

// read returns what a sink with default options is to write of the rollup; valid until the next read. The rule is
// Heapster's in our words: shares of namespaces and workloads in a node's rollup are not written, nor is what Heapster did
// not have, nor a sample that stands in for one that did not advance, except in sums.
func (rd *reader) read(r *proto.Rollup) []pair {
	rd.points = rd.points[:0]
	own := r.Scope == proto.ScopeNode
	for row := range r.Entities {
		kind := r.Entities[row].Kind
		if kind == proto.KindWorkload || own && kind == proto.KindNamespace {
			continue
		}
		var words entityWords
		rd.labels = rd.format.AppendEntityLabels(rd.labels[:0], &r.Table, row)
		for _, l := range rd.labels {
			words.take(l.Key, l.Value)
		}
		entity := words.hash()
		var device *proto.Device
		deviceEntity := entity
		for s := range r.Samples(row) {
			if s.Ours || s.StandsIn && (own || s.Device != nil) {
				continue
			}
			if s.Device != device {
				device, deviceEntity = s.Device, entity
				if device != nil {
					with := words
					rd.labels = device.AppendLabels(rd.labels[:0])
					for _, l := range rd.labels {
						with.take(l.Key, l.Value)
					}
					deviceEntity = with.hash()
				}
			}
			metric, ok := rd.metrics[s.Name]
			if !ok {
				metric = metricOf(s.Name)
				rd.metrics[s.Name] = metric
			}
			rd.text = s.Value.Append(rd.text[:0])
			if !s.Value.IsFloat() {
				rd.text = append(rd.text, 'i')
			}
			rd.points = append(rd.points, pair{pointOf(deviceEntity, metric), valueHash(rd.text)})
		}
	}
	return rd.points
}

// millis reads the nanoseconds at the end of a line as a tick.
func millis(text []byte) (proto.Tick, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	return proto.Tick(n / 1e6), err == nil && n > 0 && n%1e6 == 0
}
