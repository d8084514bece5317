package statsd

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as gauges of statsd, `name:value|g`, in one of two dialects of names. Memory grows to
// that of the largest batch and is reused.
type encoder struct {
	view      sink.View
	prefix    string
	tagged    bool     // influxstatsd: labels as tags; else a path
	allowed   []string // label keys; nil: all
	rename    map[string]string
	style     func(string) string // of label keys; nil: as they are
	separator string              // between Kubernetes labels in the label `labels`

	text     []byte
	ends     []int // of each sample
	messages []int // index in the batch, of each sample
	name     []byte
	user     []proto.Label // Kubernetes labels of the present entity, with their final keys
	device   []proto.Label
	merged   []proto.Label
}

func (e *encoder) reset() {
	e.text, e.ends, e.messages = e.text[:0], e.ends[:0], e.messages[:0]
}

// sample is the text of sample i: one line, or two where the value is negative.
func (e *encoder) sample(i int) []byte {
	from := 0
	if i > 0 {
		from = e.ends[i-1]
	}
	return e.text[from:e.ends[i]]
}

// encode appends the samples of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	var path []byte // before the metric's name, or tags behind it
	for entity := range e.view.Entities(r) {
		e.userLabels(entity.Labels)
		path = e.appendEntity(path[:0], entity, nil)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				path = e.appendEntity(path[:0], entity, e.device)
			}
			e.name = e.name[:0]
			if e.tagged {
				e.name = appendClean(e.name, e.prefix, inTag)
				e.name = appendClean(e.name, s.Name, inTag)
				e.name = append(e.name, path...)
			} else {
				e.name = append(e.name, path...)
				e.name = appendClean(e.name, s.Name, inPath)
				if device != nil {
					e.name = appendClean(append(e.name, '.'), device.Name, inPath)
				}
			}
			if s.Value.Float64() < 0 { // a sign means a change by that much: from zero, then
				e.text = append(append(e.text, e.name...), ":0|g\n"...)
			}
			e.text = append(append(e.text, e.name...), ':')
			e.text = s.Value.Append(e.text)
			e.text = append(e.text, "|g\n"...)
			e.ends = append(e.ends, len(e.text))
			e.messages = append(e.messages, i)
		}
	}
}

// key is what a label's key becomes.
func (e *encoder) key(k string) string {
	if to, ok := e.rename[k]; ok {
		k = to
	}
	if e.style != nil {
		k = e.style(k)
	}
	return k
}

func (e *encoder) allows(key string) bool { return e.allowed == nil || slices.Contains(e.allowed, key) }

// userLabels takes the label `labels` apart again.
func (e *encoder) userLabels(labels []proto.Label) {
	e.user = e.user[:0]
	joined := label(labels, proto.LabelLabels)
	if joined == "" || !e.allows(proto.LabelLabels) {
		return
	}
	for pair := range strings.SplitSeq(joined, e.separator) {
		k, v, _ := strings.Cut(pair, ":")
		v, _, _ = strings.Cut(v, ":")
		if k != "" && v != "" {
			e.user = append(e.user, proto.Label{Key: e.key(k), Value: v})
		}
	}
	slices.SortStableFunc(e.user, func(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) })
}

func label(labels []proto.Label, key string) string {
	for _, l := range labels {
		if l.Key == key {
			return l.Value
		}
	}
	return ""
}

// appendEntity appends what stands before the metric's name in a path, or behind it as tags.
func (e *encoder) appendEntity(dst []byte, entity *sink.Entity, device []proto.Label) []byte {
	if e.tagged {
		return e.appendTags(dst, entity.Labels, device)
	}
	piece := func(s string) { dst = append(appendClean(dst, s, inPath), '.') }
	of := func(what, key string) {
		dst = append(append(dst, what...), '.')
		piece(label(entity.Labels, key))
	}
	if e.prefix != "" {
		piece(e.prefix)
	}
	switch entity.Kind {
	case proto.KindContainer, proto.KindPod, proto.KindSystemContainer, proto.KindNode:
		of("node", proto.LabelHostname)
	}
	switch entity.Kind {
	case proto.KindContainer, proto.KindPod:
		of("namespace", proto.LabelNamespaceName)
		of("pod", proto.LabelPodName)
		if entity.Kind == proto.KindContainer {
			of("container", proto.LabelContainerName)
		}
	case proto.KindSystemContainer:
		of("sys-container", proto.LabelContainerName)
	case proto.KindNamespace:
		of("namespace", proto.LabelNamespaceName)
	case proto.KindWorkload: // not Heapster's
		of("namespace", proto.LabelNamespaceName)
		of("workload", proto.LabelWorkloadKind)
		piece(label(entity.Labels, proto.LabelWorkloadName))
	case proto.KindCluster:
		dst = append(dst, "cluster."...)
	}
	for _, l := range e.user {
		piece(l.Key)
		piece(l.Value)
	}
	return dst
}

// appendTags appends ",key=value" for every label, sorted by key: the device's, the Kubernetes labels, the
// entity's. Empty values are left out.
func (e *encoder) appendTags(dst []byte, labels, device []proto.Label) []byte {
	e.merged = e.merged[:0]
	for _, l := range device {
		e.merged = append(e.merged, proto.Label{Key: e.key(l.Key), Value: l.Value})
	}
	for _, l := range labels {
		if l.Key != proto.LabelLabels && e.allows(l.Key) {
			e.merged = append(e.merged, proto.Label{Key: e.key(l.Key), Value: l.Value})
		}
	}
	e.merged = append(e.merged, e.user...)
	slices.SortStableFunc(e.merged, func(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) })
	last := ""
	for _, l := range e.merged {
		if l.Value == "" || l.Key == "" || l.Key == last {
			continue
		}
		last = l.Key
		dst = appendClean(append(dst, ','), l.Key, inTag)
		dst = appendClean(append(dst, '='), l.Value, inTag)
	}
	return dst
}

// What ends a piece of a name, in a path and among tags. Heapster let the colon stand in paths, where it begins
// the value: volumes came out as garbage.
const (
	inPath = ".=|:"
	inTag  = ",:=|"
)

// appendClean appends s with each of the ends, and each control character, replaced by "_".
func appendClean(dst []byte, s, ends string) []byte {
	for i := range len(s) {
		c := s[i]
		if c < ' ' || c == 0x7f || strings.IndexByte(ends, c) >= 0 {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// camel makes snake_case lowerCamelCase or, with up, UpperCamelCase.
func camel(s string, up bool) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '_':
			up = true
			continue
		case up && c >= 'a' && c <= 'z':
			c -= 'a' - 'A'
		}
		up = false
		b.WriteByte(c)
	}
	return b.String()
}
