package elasticsearch

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// family is what Heapster made a document of: metrics of one sort with the same tags.
type family int

const (
	cpu family = iota
	filesystem
	memory
	network
	general // whatever is of no other: a document for each metric
	families
)

// familyNames are types of documents and ends of aliases.
var familyNames = [families]string{"cpu", "filesystem", "memory", "network", "general"}

// timeFields are the names of the time in a document.
var timeFields = [families]string{"CpuMetricsTimestamp", "FilesystemMetricsTimestamp", "MemoryMetricsTimestamp", "NetworkMetricsTimestamp", "GeneralMetricsTimestamp"}

// familyOf is the family of a sample; a renamed metric stays in that of its own name.
func familyOf(s *proto.Sample) family {
	if s.Metric == nil {
		return general
	}
	section, _, _ := strings.Cut(s.Metric.Name, "/")
	if i := slices.Index(familyNames[:general], section); i >= 0 {
		return family(i)
	}
	return general
}

// encoder writes rollups as lines of a bulk request: an action and a document, by turns. Memory grows to that of
// the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster []proto.Label // the tag cluster_name
	index   string        // first part of the indices' names
	types   docType

	docs  docs
	names map[proto.Tick]string // of indices

	at     []byte // JSON of the present rollup's time
	tags   []byte // JSON of the present entity's, or its present device's, tags
	parts  [families][]value
	device []proto.Label
	merged []proto.Label
}

// docType is how an Elasticsearch wants documents typed.
type docType int

const (
	typePerFamily docType = iota // up to 5
	typeDoc                      // 6: the one type _doc
	typeless                     // from 7 on
)

type value struct {
	name  string
	value proto.Value
}

// docs are encoded documents.
type docs struct {
	text []byte
	all  []doc
}

// doc is an action and its document within the text, newlines included.
type doc struct {
	from, to int
	message  int // index in the batch
	samples  int
	index    string
}

func (d *docs) reset() { d.text, d.all = d.text[:0], d.all[:0] }

func (d *docs) bytes(i int) []byte { return d.text[d.all[i].from:d.all[i].to] }

// indexOf is the name of the index for a time: one a day, in UTC.
func (e *encoder) indexOf(at proto.Tick) string {
	const day = 24 * 60 * 60 * 1000
	if name, ok := e.names[at/day]; ok {
		return name
	}
	if e.names == nil || len(e.names) > 100 {
		e.names = map[proto.Tick]string{}
	}
	name := e.index + at.Time().UTC().Format("-2006.01.02")
	e.names[at/day] = name
	return name
}

// encode appends the documents of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	e.at = r.Tick.Time().UTC().AppendFormat(append(e.at[:0], '"'), time.RFC3339Nano)
	e.at = append(e.at, '"')
	for entity := range e.view.Entities(r) {
		var device *proto.Device
		e.setTags(entity.Labels, nil)
		for s := range entity.Samples {
			if s.Device != device {
				e.flush(r, i)
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.setTags(entity.Labels, e.device)
			}
			f := familyOf(s)
			e.parts[f] = append(e.parts[f], value{s.Name, s.Value})
		}
		e.flush(r, i)
	}
}

func (e *encoder) setTags(labels, device []proto.Label) {
	e.merged = sink.MergeLabels(e.merged[:0], e.cluster, device, labels)
	e.tags = sink.AppendJSONLabels(e.tags[:0], e.merged)
}

// flush makes documents of the samples that have the present tags.
func (e *encoder) flush(r *proto.Rollup, message int) {
	for f, values := range e.parts {
		if len(values) == 0 {
			continue
		}
		slices.SortFunc(values, func(a, b value) int { return cmp.Compare(a.name, b.name) })
		if family(f) != general {
			e.document(r, message, family(f), values)
		} else {
			for i := range values {
				e.document(r, message, general, values[i:i+1])
			}
		}
		e.parts[f] = values[:0]
	}
}

// document appends one action and its document, with Heapster's order of fields. The id is made of what the
// document is about, so one that is written again takes the place of the first.
func (e *encoder) document(r *proto.Rollup, message int, f family, values []value) {
	d := doc{from: len(e.docs.text), message: message, samples: len(values), index: e.indexOf(r.Tick)}
	name := ""
	if f == general {
		name = values[0].name
	}
	b := e.appendAction(e.docs.text, e.id(r, f, name), d.index, familyNames[f])
	b = append(b, "{\""...)
	b = append(append(b, timeFields[f]...), `":`...)
	b = append(b, e.at...)
	if f == general {
		b = append(append(b, `,"MetricsTags":`...), e.tags...)
		b = append(b, `,"MetricsName":`...)
		b = sink.AppendJSONString(b, name)
		b = append(b, `,"MetricsValue":{"value":`...)
		b = append(sink.AppendJSONNumber(b, values[0].value), "}}\n"...)
	} else {
		b = append(b, `,"Metrics":{`...)
		for i, v := range values {
			if i > 0 {
				b = append(b, ',')
			}
			b = sink.AppendJSONString(b, v.name)
			b = append(b, `:{"value":`...)
			b = append(sink.AppendJSONNumber(b, v.value), '}')
		}
		b = append(append(b, `},"MetricsTags":`...), e.tags...)
		b = append(b, "}\n"...)
	}
	e.docs.text = b
	d.to = len(b)
	e.docs.all = append(e.docs.all, d)
}

// appendAction appends the line that says where the document of the next line goes.
func (e *encoder) appendAction(b []byte, id [15]byte, index, family string) []byte {
	b = append(b, `{"index":{"_id":"`...)
	b = base64.RawURLEncoding.AppendEncode(b, id[:])
	b = append(b, `","_index":`...)
	b = sink.AppendJSONString(b, index)
	switch e.types {
	case typePerFamily:
		b = append(append(append(b, `,"_type":"`...), family...), '"')
	case typeDoc:
		b = append(b, `,"_type":"_doc"`...)
	}
	return append(b, "}}\n"...)
}

// id stands for cluster, time, family, name and tags.
func (e *encoder) id(r *proto.Rollup, f family, name string) [15]byte {
	key := make([]byte, 0, 1024)
	key = append(append(key, r.Cluster...), 0)
	key = append(strconv.AppendInt(key, int64(r.Tick), 10), 0)
	key = append(append(key, familyNames[f]...), 0)
	key = append(append(key, name...), 0)
	key = append(key, e.tags...)
	sum := sha256.Sum256(key)
	return [15]byte(sum[:])
}
