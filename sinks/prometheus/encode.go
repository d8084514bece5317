package prometheus

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder makes samples of rollups, and messages of samples. Memory grows to that of the largest batch and is
// reused.
type encoder struct {
	view    sink.View
	cluster string
	labels  []proto.Label     // of every series, beside the cluster
	store   map[string]string // Kubernetes label -> label of series
	rates   bool
	prefix  string // instead of proto.PrometheusPrefix

	names  []name
	byID   []int32                  // index in names by Naming.Index; -1: not made yet
	extras map[extraKey]int32       // index in names
	merged []proto.Label            // of the present entity
	device []proto.Label            // of the present device
	pairs  []proto.Label            // of all sets
	sets   []set                    //
	all    []sample                 //
	refs   map[string]uint32        // of the present request's symbols
	syms   []string                 // likewise
	round  uint32                   // counts requests
	arena  []byte                   // encoded labels of sets
	nested []byte                   // a message within one
	told   map[int32]bool           // families whose metadata went out, in version 1
	times  [proto.GroupDevice]int64 // of the present entity, in ms
}

// name is a metric's name and what is said of it.
type name struct {
	name, help, unit      string
	counter               bool
	attributes            []proto.Label
	naming                *proto.Naming
	ref, helpRef, unitRef uint32 // in the request of this round
	round                 uint32
	v1                    []byte // the label __name__, encoded
}

type extraKey struct {
	name    string
	kind    proto.Kind
	counter bool
}

// set is the labels of some samples, without their names.
type set struct {
	from, to int32 // in pairs, sorted by key
	before   int32 // so many pairs sort before __name__
	round    uint32
	cut, end int32 // in arena from: what stands before __name__ is [at, cut), what follows [cut, end)
	at       int32
}

// sample is one to be written.
type sample struct {
	value     float64
	at, start int64 // ms; start 0: not known
	name, set int32
	message   int32 // index in the batch
}

// maxExtras bounds what is remembered of names that applications chose.
const maxExtras = 8192

func newEncoder(view sink.View, cluster string) *encoder {
	e := &encoder{view: view, cluster: cluster, prefix: proto.PrometheusPrefix, byID: make([]int32, len(proto.Prometheus.Namings())), refs: map[string]uint32{}, told: map[int32]bool{}}
	for i := range e.byID {
		e.byID[i] = -1
	}
	return e
}

func (e *encoder) reset() {
	e.all, e.sets, e.pairs, e.arena = e.all[:0], e.sets[:0], e.pairs[:0], e.arena[:0]
	if len(e.extras) > maxExtras {
		e.forget()
	}
}

// forget drops all names outside of the catalogue.
func (e *encoder) forget() {
	e.names, e.extras = e.names[:0], nil
	clear(e.told)
	for i := range e.byID {
		e.byID[i] = -1
	}
}

// encode appends the samples of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	tick := r.Tick.Time().UnixMilli()
	for entity := range e.view.Entities(r) {
		row := entity.Row
		e.merged = e.entityLabels(e.merged[:0], &r.Table, row)
		start, _ := r.Values.Get(row, proto.FieldStart)
		start /= 1e6
		sum := entity.Kind == proto.KindCluster || entity.Kind == proto.KindNamespace || entity.Kind == proto.KindWorkload
		for g := range e.times {
			e.times[g] = tick
			if at, ok := r.Values.Get(row, proto.Group(g).Time()); ok && !sum && g > 0 { //nolint:gosec // few groups
				e.times[g] = at / 1e6
			}
		}
		present, attributes := int32(-1), []proto.Label(nil) // the set that fits, and what of it is the name's own
		device := (*proto.Device)(nil)
		for s := range entity.Samples {
			n, naming := e.name(s, entity.Kind)
			if n < 0 {
				continue
			}
			value := s.Value.Float64()
			if naming.Metric != nil {
				ok := false
				if value, ok = naming.Value(&r.Table, row, s.Value, e.rates); !ok {
					continue
				}
			}
			at := tick
			switch {
			case s.Device != nil:
				if t, ok := r.DeviceValues.Get(s.Row, proto.GroupDevice.Time()); ok {
					at = t / 1e6
				}
			case s.Metric != nil:
				at = e.times[s.Metric.Group]
			}
			more := e.names[n].attributes
			if present < 0 || s.Device != device || !slices.Equal(more, attributes) {
				device, attributes = s.Device, more
				present = e.addSet(device, attributes)
			}
			one := sample{value: value, at: at, name: n, set: present, message: int32(i)} //nolint:gosec // a batch is small
			if naming.Started && start > 0 && start < at {
				one.start = start
			}
			e.all = append(e.all, one)
		}
	}
}

// entityLabels appends the labels of an entity's series, sorted by key: those that say which it is, over those of the
// operator's choice, over stored Kubernetes labels.
func (e *encoder) entityLabels(dst []proto.Label, t *proto.Table, row int) []proto.Label {
	dst = proto.Prometheus.AppendEntityLabels(dst, t, row)
	for i := range dst {
		dst[i].Value = valid(dst[i].Value)
	}
	dst = insert(dst, proto.Label{Key: proto.PrometheusCluster, Value: e.cluster})
	for _, l := range e.labels {
		dst = insert(dst, l)
	}
	if len(e.store) == 0 {
		return dst
	}
	entity := &t.Entities[row]
	if entity.Kind == proto.KindContainer {
		entity = &t.Entities[entity.Parent]
	}
	if entity.Kind == proto.KindNamespace {
		return dst // as the other sinks
	}
	for _, l := range entity.Labels {
		if as, ok := e.store[l.Key]; ok && l.Value != "" {
			dst = insert(dst, proto.Label{Key: as, Value: valid(l.Value)})
		}
	}
	return dst
}

// valid is a label's value as Prometheus takes it: any text in UTF-8.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// insert puts a label in its place, unless there is one of that key.
func insert(labels []proto.Label, l proto.Label) []proto.Label {
	i, found := slices.BinarySearchFunc(labels, l.Key, func(a proto.Label, key string) int { return strings.Compare(a.Key, key) })
	if found {
		return labels
	}
	return slices.Insert(labels, i, l)
}

// addSet makes a set of the present entity's labels and more.
func (e *encoder) addSet(device *proto.Device, attributes []proto.Label) int32 {
	from := len(e.pairs)
	e.device = append(e.device[:0], e.merged...)
	if device != nil {
		first := len(e.device)
		e.device = proto.Prometheus.AppendDeviceLabels(e.device, device)
		own := e.device[first:]
		e.device = e.device[:first]
		for _, l := range own[:len(own):len(own)] {
			l.Value = valid(l.Value)
			e.device = place(e.device, l)
		}
	}
	for _, l := range attributes {
		e.device = place(e.device, l)
	}
	e.pairs = append(e.pairs, e.device...)
	s := set{from: int32(from), to: int32(len(e.pairs))} //nolint:gosec // bounded by the batch
	for int(s.before) < len(e.device) && e.device[s.before].Key < nameLabel {
		s.before++
	}
	e.sets = append(e.sets, s)
	return int32(len(e.sets) - 1) //nolint:gosec // bounded by the batch
}

// place puts a label in its place, instead of one of that key.
func place(labels []proto.Label, l proto.Label) []proto.Label {
	i, found := slices.BinarySearchFunc(labels, l.Key, func(a proto.Label, key string) int { return strings.Compare(a.Key, key) })
	if found {
		labels[i] = l
		return labels
	}
	return slices.Insert(labels, i, l)
}

const nameLabel = "__name__"

// name is the index of a sample's name, and its naming; -1 where it does not go out.
func (e *encoder) name(s *proto.Sample, k proto.Kind) (int32, *proto.Naming) {
	var naming *proto.Naming
	switch {
	case s.Metric == nil:
		return e.extra(s, k)
	case s.Device != nil:
		naming = proto.Prometheus.DeviceNaming(s.Metric.ID, k, s.Device)
	default:
		naming = proto.Prometheus.Naming(s.Metric.ID, k)
	}
	if naming == nil {
		return -1, nil
	}
	n := e.byID[naming.Index]
	if n < 0 {
		as := ""
		if s.Name != s.Metric.Name {
			as = s.Name
		}
		n = e.addName(naming, as)
		e.byID[naming.Index] = n
	}
	return n, naming
}

func (e *encoder) extra(s *proto.Sample, k proto.Kind) (int32, *proto.Naming) {
	key := extraKey{s.Name, k, s.Counter}
	if n, ok := e.extras[key]; ok {
		return n, e.names[n].naming
	}
	if e.extras == nil {
		e.extras = map[extraKey]int32{}
	}
	key.name = strings.Clone(key.name)
	as := ""
	if !proto.IsExtra(s.Name) {
		as = key.name // by `rename`
	}
	n := e.addName(proto.Prometheus.ExtraNaming(key.name, k, s.Counter), as)
	e.extras[key] = n
	return n, e.names[n].naming
}

// addName makes a name of a naming, or of what an operator wants it to be called.
func (e *encoder) addName(naming *proto.Naming, as string) int32 {
	n := name{naming: naming, name: e.prefix + strings.TrimPrefix(naming.Name, proto.PrometheusPrefix), help: naming.Help, unit: naming.Unit, counter: naming.Instrument == proto.InstrumentCounter}
	for _, l := range naming.Attributes {
		n.attributes = append(n.attributes, proto.Label{Key: l.Key, Value: valid(l.Value)})
	}
	if as != "" {
		n.name, n.unit, n.attributes = proto.PrometheusName(as), "", nil
	}
	n.v1 = appendPair(nil, nameLabel, n.name)
	e.names = append(e.names, n)
	return int32(len(e.names) - 1) //nolint:gosec // bounded
}

// text is a sample as an operator reads it.
func (e *encoder) text(i int) string {
	s := &e.all[i]
	var b strings.Builder
	b.WriteString(e.names[s.name].name)
	sep := byte('{')
	for _, l := range e.pairs[e.sets[s.set].from:e.sets[s.set].to] {
		b.WriteByte(sep)
		b.WriteString(l.Key)
		b.WriteByte('=')
		b.WriteString(quote(l.Value))
		sep = ','
	}
	if sep == ',' {
		b.WriteByte('}')
	}
	b.WriteByte(' ')
	b.WriteString(proto.Float(s.value).String())
	b.WriteByte(' ')
	b.WriteString(proto.Int(s.at).String())
	return b.String()
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// The wire types of protobuf that are needed: a varint, eight bytes, bytes with their length before them.
const (
	varint = 0
	eight  = 1
	bytesT = 2
)

func appendTag(dst []byte, field, wire int) []byte { return append(dst, byte(field<<3|wire)) } // fields below 16

func appendBytes(dst []byte, field int, b []byte) []byte {
	dst = binary.AppendUvarint(appendTag(dst, field, bytesT), uint64(len(b)))
	return append(dst, b...)
}

func appendString(dst []byte, field int, s string) []byte {
	dst = binary.AppendUvarint(appendTag(dst, field, bytesT), uint64(len(s)))
	return append(dst, s...)
}

func appendUint(dst []byte, field int, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return binary.AppendUvarint(appendTag(dst, field, varint), v)
}

func appendDouble(dst []byte, field int, v float64) []byte {
	return binary.LittleEndian.AppendUint64(appendTag(dst, field, eight), math.Float64bits(v))
}

// appendSample appends what is in a Sample, which is alike in both versions but for the start.
func appendSample(dst []byte, s *sample, start bool) []byte {
	dst = appendDouble(dst, 1, s.value)
	dst = appendUint(dst, 2, uint64(s.at)) //nolint:gosec // two's complement is meant
	if start {
		dst = appendUint(dst, 3, uint64(s.start)) //nolint:gosec // not negative
	}
	return dst
}

// The types of metrics, the same numbers in both versions.
const (
	typeCounter = 1
	typeGauge   = 2
)

func (n *name) kind() uint64 {
	if n.counter {
		return typeCounter
	}
	return typeGauge
}

// begin starts a request: nothing is known of its symbols.
func (e *encoder) begin() {
	clear(e.refs)
	e.syms = append(e.syms[:0], "")
	e.refs[""] = 0
	e.round++
	e.arena = e.arena[:0]
}

func (e *encoder) symbol(s string) uint32 {
	ref, ok := e.refs[s]
	if !ok {
		ref = uint32(len(e.syms)) //nolint:gosec // bounded by the batch
		e.refs[s] = ref
		e.syms = append(e.syms, s)
	}
	return ref
}

// second appends an io.prometheus.write.v2.Request with the samples of these indices:
//
//	Request    { symbols = 4 string…, timeseries = 5 … }
//	TimeSeries { labels_refs = 1 uint32… packed, samples = 2 …, metadata = 5 { type = 1, help_ref = 3, unit_ref = 4 } }
//	Sample     { value = 1 double, timestamp = 2 ms, start_timestamp = 3 ms }
//
// Symbols follow the series that use them: protobuf lets fields come in any order.
func (e *encoder) second(dst []byte, indices []int32) []byte {
	e.begin()
	key := e.symbol(nameLabel)
	var room [64]byte
	for _, i := range indices {
		s := &e.all[i]
		n, st := &e.names[s.name], &e.sets[s.set]
		if n.round != e.round {
			n.ref, n.helpRef, n.unitRef, n.round = e.symbol(n.name), e.symbol(n.help), e.symbol(n.unit), e.round
		}
		if st.round != e.round {
			e.encodeSet(st, true)
		}
		own := binary.AppendUvarint(binary.AppendUvarint(room[:0], uint64(key)), uint64(n.ref))
		b := binary.AppendUvarint(appendTag(e.nested[:0], 1, bytesT), uint64(len(own))+uint64(st.end-st.at)) //nolint:gosec // not negative
		b = append(b, e.arena[st.at:st.cut]...)
		b = append(b, own...)
		b = append(b, e.arena[st.cut:st.end]...)
		b = appendBytes(b, 2, appendSample(room[:0], s, true))
		said := appendUint(room[:0], 1, n.kind())
		said = appendUint(said, 3, uint64(n.helpRef))
		said = appendUint(said, 4, uint64(n.unitRef))
		e.nested = appendBytes(b, 5, said)
		dst = appendBytes(dst, 5, e.nested)
	}
	for _, s := range e.syms {
		dst = appendString(dst, 4, s)
	}
	return dst
}

// first appends a prometheus.WriteRequest, of version 1, with the samples of these indices:
//
//	WriteRequest   { timeseries = 1 …, metadata = 3 … }
//	TimeSeries     { labels = 1 { name = 1, value = 2 }…, samples = 2 { value = 1 double, timestamp = 2 ms } }
//	MetricMetadata { type = 1, metric_family_name = 2, help = 4, unit = 5 }
//
// Metadata is that of names of which none went out before, as told says.
func (e *encoder) first(dst []byte, indices []int32) []byte {
	e.begin()
	var room [64]byte
	for _, i := range indices {
		s := &e.all[i]
		n, st := &e.names[s.name], &e.sets[s.set]
		if st.round != e.round {
			e.encodeSet(st, false)
		}
		b := append(e.nested[:0], e.arena[st.at:st.cut]...)
		b = append(b, n.v1...)
		b = append(b, e.arena[st.cut:st.end]...)
		e.nested = appendBytes(b, 2, appendSample(room[:0], s, false))
		dst = appendBytes(dst, 1, e.nested)
	}
	for _, i := range indices {
		at := e.all[i].name
		n := &e.names[at]
		if n.round == e.round || e.told[at] {
			continue
		}
		n.round = e.round
		b := appendUint(e.nested[:0], 1, n.kind())
		b = appendString(b, 2, n.name)
		b = appendString(b, 4, n.help)
		if n.unit != "" {
			b = appendString(b, 5, n.unit)
		}
		e.nested = b
		dst = appendBytes(dst, 3, b)
	}
	return dst
}

// tell notes that the metadata of these samples went out in version 1.
func (e *encoder) tell(indices []int32) {
	for _, i := range indices {
		if at := e.all[i].name; !e.told[at] {
			e.told[at] = true
		}
	}
}

// encodeSet encodes the labels of a set into the arena: as references to symbols, or as they are.
func (e *encoder) encodeSet(st *set, refs bool) {
	st.round, st.at = e.round, int32(len(e.arena)) //nolint:gosec // bounded by the batch
	st.cut = st.at
	for i, l := range e.pairs[st.from:st.to] {
		if int32(i) == st.before { //nolint:gosec // few
			st.cut = int32(len(e.arena)) //nolint:gosec // bounded by the batch
		}
		if refs {
			e.arena = binary.AppendUvarint(e.arena, uint64(e.symbol(l.Key)))
			e.arena = binary.AppendUvarint(e.arena, uint64(e.symbol(l.Value)))
		} else {
			e.arena = appendPair(e.arena, l.Key, l.Value)
		}
	}
	st.end = int32(len(e.arena)) //nolint:gosec // bounded by the batch
	if st.before == st.to-st.from {
		st.cut = st.end
	}
}

// appendPair appends a Label of version 1 as a field of its series.
func appendPair(dst []byte, key, value string) []byte {
	size := 2 + uvarintLen(len(key)) + len(key) + uvarintLen(len(value)) + len(value)
	dst = binary.AppendUvarint(appendTag(dst, 1, bytesT), uint64(size)) //nolint:gosec // not negative
	return appendString(appendString(dst, 1, key), 2, value)
}

func uvarintLen(n int) (size int) {
	for size = 1; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}
