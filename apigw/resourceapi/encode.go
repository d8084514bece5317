package resourceapi

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/heapstream/heapstream/apigw/quantity"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// list is an answer that has not been made into objects yet. As a [runtime.CacheableObject] it is asked for its
// bytes by the codec that was negotiated: if that is plain JSON or protobuf of one of our versions it writes them
// itself, in any other form (YAML, indented JSON) it becomes objects and takes the generic way.
type list struct {
	kind     string
	pods     []*view.PodMetrics
	nodes    []*view.NodeMetrics
	position uint64    // resourceVersion of the list: sequence in ROLLUPS
	now      time.Time // creationTimestamp of the items, as in metrics-server
	formats  formats
}

var _ runtime.CacheableObject = (*list)(nil)

// formats tells the encoders we can stand in for, by their identifiers.
type formats map[runtime.Identifier]format

type format struct {
	gv       string // apiVersion of the answer
	protobuf bool
}

// newFormats asks the codecs of our versions for their identifiers.
func newFormats(codecs runtime.NegotiatedSerializer, versions ...schema.GroupVersion) formats {
	f := formats{}
	for _, info := range codecs.SupportedMediaTypes() {
		protobuf := info.MediaType == runtime.ContentTypeProtobuf
		if !protobuf && info.MediaType != runtime.ContentTypeJSON {
			continue
		}
		for _, gv := range versions {
			f[codecs.EncoderForVersion(info.Serializer, gv).Identifier()] = format{gv: gv.String(), protobuf: protobuf}
		}
	}
	return f
}

func (l *list) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

func (l *list) DeepCopyObject() runtime.Object {
	c := *l
	return &c // the items are immutable
}

// GetObject makes the objects.
func (l *list) GetObject() runtime.Object {
	if l.kind == kindNode {
		o := &metrics.NodeMetricsList{Items: make([]metrics.NodeMetrics, len(l.nodes))}
		o.ResourceVersion = resourceVersion(l.position)
		for i, n := range l.nodes {
			o.Items[i] = nodeObject(n, l.now)
		}
		return o
	}
	o := &metrics.PodMetricsList{Items: make([]metrics.PodMetrics, len(l.pods))}
	o.ResourceVersion = resourceVersion(l.position)
	for i, p := range l.pods {
		o.Items[i] = podObject(p, l.now)
	}
	return o
}

// JSON answers are written in pieces of chunk bytes. More than 128 KiB in the first piece makes the response writer
// compress for clients that ask for it, so a chunk must be more than that.
const chunk = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, chunk+chunk/4); return &b }}

// CacheEncode writes the list to w in the form of the encoder with this id. Nothing is cached: writing takes less
// than looking up would.
func (l *list) CacheEncode(id runtime.Identifier, encode func(runtime.Object, io.Writer) error, w io.Writer) error {
	f, ok := l.formats[id]
	if !ok {
		return encode(l.GetObject(), w)
	}
	buf := buffers.Get().(*[]byte)
	e := encoder{b: (*buf)[:0], created: l.now.UTC().AppendFormat(nil, time.RFC3339), createdUnix: l.now.Unix()}
	var err error
	if f.protobuf {
		err = e.protobufList(l, f.gv, w)
	} else {
		err = e.jsonList(l, f.gv, w)
	}
	if cap(e.b) <= 4*chunk { // a giant must not stay for ever
		*buf = e.b[:0]
		buffers.Put(buf)
	}
	return err
}

// encoder appends to b.
type encoder struct {
	b           []byte
	created     []byte // creationTimestamp of all items, RFC 3339
	createdUnix int64
}

func (e *encoder) jsonList(l *list, gv string, w io.Writer) error {
	e.b = append(e.b, `{"kind":"`...)
	e.b = append(e.b, l.kind...)
	e.b = append(e.b, `List","apiVersion":"`...)
	e.b = append(e.b, gv...)
	e.b = append(e.b, `","metadata":{`...)
	if l.position > 0 {
		e.b = append(e.b, `"resourceVersion":"`...)
		e.b = append(appendVersion(e.b, l.position), '"')
	}
	e.b = append(e.b, `},"items":[`...)
	flush := func() error {
		if len(e.b) < chunk {
			return nil
		}
		_, err := w.Write(e.b)
		e.b = e.b[:0]
		return err
	}
	for i, n := range l.nodes {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.jsonHead("", n.Name, n.Labels, n.Seq, n.Time, n.Window)
		e.b = append(e.b, `,"usage":`...)
		e.jsonUsage(&n.Usage)
		e.b = append(e.b, '}')
		if err := flush(); err != nil {
			return err
		}
	}
	for i, p := range l.pods {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.jsonHead(p.Namespace, p.Name, p.Labels, p.Seq, p.Time, p.Window)
		e.b = append(e.b, `,"containers":[`...)
		for j := range p.Containers {
			c := &p.Containers[j]
			if j > 0 {
				e.b = append(e.b, ',')
			}
			e.b = append(e.b, `{"name":`...)
			e.b = appendString(e.b, c.Name)
			e.b = append(e.b, `,"usage":`...)
			e.jsonUsage(&c.Usage)
			e.b = append(e.b, '}')
		}
		e.b = append(e.b, `]}`...)
		if err := flush(); err != nil {
			return err
		}
	}
	e.b = append(e.b, "]}\n"...)
	_, err := w.Write(e.b)
	return err
}

// jsonHead opens an item and writes what nodes and pods have in common.
func (e *encoder) jsonHead(namespace, name string, labels []proto.Label, seq uint64, at time.Time, window time.Duration) {
	e.b = append(e.b, `{"metadata":{`...)
	if name != "" {
		e.b = append(e.b, `"name":`...)
		e.b = append(appendString(e.b, name), ',')
	}
	if namespace != "" {
		e.b = append(e.b, `"namespace":`...)
		e.b = append(appendString(e.b, namespace), ',')
	}
	if seq > 0 {
		e.b = append(e.b, `"resourceVersion":"`...)
		e.b = append(appendVersion(e.b, seq), `",`...)
	}
	e.b = append(e.b, `"creationTimestamp":"`...)
	e.b = append(e.b, e.created...)
	e.b = append(e.b, '"')
	if len(labels) > 0 {
		e.b = append(e.b, `,"labels":{`...)
		for i, l := range labels {
			if i > 0 {
				e.b = append(e.b, ',')
			}
			e.b = appendString(e.b, l.Key)
			e.b = append(e.b, ':')
			e.b = appendString(e.b, l.Value)
		}
		e.b = append(e.b, '}')
	}
	e.b = append(e.b, `},"timestamp":`...)
	if at.IsZero() {
		e.b = append(e.b, "null"...)
	} else {
		e.b = append(e.b, '"')
		e.b = at.UTC().AppendFormat(e.b, time.RFC3339)
		e.b = append(e.b, '"')
	}
	e.b = append(e.b, `,"window":"`...)
	e.b = append(e.b, window.String()...)
	e.b = append(e.b, '"')
}

func (e *encoder) jsonUsage(u *view.Usage) {
	e.b = append(e.b, `{"cpu":"`...)
	e.b = quantity.AppendNano(e.b, u.CPU)
	e.b = append(e.b, `","memory":"`...)
	e.b = quantity.AppendBytes(e.b, u.Memory)
	if u.HasSwap {
		e.b = append(e.b, `","swap":"`...)
		e.b = quantity.AppendBytes(e.b, u.Swap)
	}
	e.b = append(e.b, `"}`...)
}

// plain tells the bytes that stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := byte(' '); c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

// appendString appends s as encoding/json would. Names and labels of Kubernetes never need escaping, but they
// come from outside.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if !plain[s[i]] {
			quoted, err := json.Marshal(s)
			if err != nil { // a string always marshals
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// Protobuf: field numbers of the messages are those of k8s.io/metrics and metav1; every field that is not a
// pointer, a slice or a map is written even when empty, as the generated code does.

// headRoom is more than the envelope before the list takes: magic, kind, apiVersion, lengths.
const headRoom = 128

// protobufList writes the list in one piece, since the envelope before it says its length.
func (e *encoder) protobufList(l *list, gv string, w io.Writer) error {
	e.b = slices.Grow(e.b, headRoom+512*(len(l.nodes)+len(l.pods)))[:headRoom]
	at := e.open(1) // metadata
	e.str(1, "")    // selfLink
	e.pbVersion(2, l.position)
	e.str(3, "") // continue
	e.close(at)
	for _, n := range l.nodes {
		at = e.open(2)
		e.pbHead("", n.Name, n.Labels, n.Seq, n.Time, n.Window)
		e.pbUsage(4, &n.Usage)
		e.close(at)
	}
	for _, p := range l.pods {
		at = e.open(2)
		e.pbHead(p.Namespace, p.Name, p.Labels, p.Seq, p.Time, p.Window)
		for j := range p.Containers {
			container := e.open(4)
			e.str(1, p.Containers[j].Name)
			e.pbUsage(2, &p.Containers[j].Usage)
			e.close(container)
		}
		e.close(at)
	}
	var room [headRoom]byte
	head := encoder{b: append(room[:0], "k8s\x00"...)}
	at = head.open(1) // typeMeta
	head.str(1, gv)
	head.str(2, l.kind+"List")
	head.close(at)
	head.b = binary.AppendUvarint(append(head.b, 2<<3|2), uint64(len(e.b)-headRoom)) // raw
	from := headRoom - len(head.b)
	copy(e.b[from:], head.b)
	e.str(3, "") // contentEncoding
	e.str(4, "") // contentType
	_, err := w.Write(e.b[from:])
	return err
}

// open begins a message in a field and returns where it begins; close ends it.
func (e *encoder) open(field byte) int {
	e.b = append(e.b, field<<3|2, 0)
	return len(e.b)
}

// close writes the length of the message that began at from. One byte is reserved for it; longer messages move.
func (e *encoder) close(from int) {
	n := len(e.b) - from
	if n < 0x80 {
		e.b[from-1] = byte(n)
		return
	}
	var length [binary.MaxVarintLen64]byte
	k := binary.PutUvarint(length[:], uint64(n))
	e.b = append(e.b, length[:k-1]...)
	copy(e.b[from+k-1:], e.b[from:from+n])
	copy(e.b[from-1:], length[:k])
}

func (e *encoder) str(field byte, s string) {
	e.b = binary.AppendUvarint(append(e.b, field<<3|2), uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) varint(field byte, v int64) {
	e.b = binary.AppendUvarint(append(e.b, field<<3), uint64(v))
}

func (e *encoder) pbVersion(field byte, seq uint64) {
	at := e.open(field)
	if seq > 0 {
		e.b = appendVersion(e.b, seq)
	}
	e.close(at)
}

func (e *encoder) pbTime(field byte, unix int64, zero bool) {
	at := e.open(field)
	if !zero {
		e.varint(1, unix)
		e.varint(2, 0) // Kubernetes keeps whole seconds
	}
	e.close(at)
}

func (e *encoder) pbHead(namespace, name string, labels []proto.Label, seq uint64, at time.Time, window time.Duration) {
	meta := e.open(1)
	e.str(1, name)
	e.str(2, "") // generateName
	e.str(3, namespace)
	e.str(4, "") // selfLink
	e.str(5, "") // uid
	e.pbVersion(6, seq)
	e.varint(7, 0) // generation
	e.pbTime(8, e.createdUnix, false)
	for _, l := range labels {
		entry := e.open(11)
		e.str(1, l.Key)
		e.str(2, l.Value)
		e.close(entry)
	}
	e.close(meta)
	e.pbTime(2, at.Unix(), at.IsZero())
	span := e.open(3)
	e.varint(1, int64(window))
	e.close(span)
}

func (e *encoder) pbUsage(field byte, u *view.Usage) {
	amount := func(key string, appendTo func([]byte, int64) []byte, v int64) {
		entry := e.open(field)
		e.str(1, key)
		q := e.open(2)
		text := e.open(1)
		e.b = appendTo(e.b, v)
		e.close(text)
		e.close(q)
		e.close(entry)
	}
	amount("cpu", quantity.AppendNano, u.CPU)
	amount("memory", quantity.AppendBytes, u.Memory)
	if u.HasSwap {
		amount("swap", quantity.AppendBytes, u.Swap)
	}
}

// appendVersion appends a position in ROLLUPS as Kubernetes writes it: clients read it as a signed number.
func appendVersion(b []byte, seq uint64) []byte {
	return strconv.AppendUint(b, min(seq, math.MaxInt64), 10)
}

// resourceVersion is a position in ROLLUPS as Kubernetes writes it; none for the beginning.
func resourceVersion(seq uint64) string {
	if seq == 0 {
		return ""
	}
	return string(appendVersion(nil, seq))
}
