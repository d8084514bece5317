package graphite

import (
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as Graphite's plaintext: `path value seconds`, a line each. Memory grows to that
// of the largest batch and is reused.
type encoder struct {
	view    sink.View
	prefix  string
	devices bool // devices have paths of their own

	entity []byte // path of the present entity, its dot included
	text   []byte
	ends   []int // of each line
}

func (e *encoder) reset() { e.text, e.ends = e.text[:0], e.ends[:0] }

// encode appends the lines of one rollup.
func (e *encoder) encode(r *proto.Rollup) {
	at := strconv.FormatInt(r.Tick.Time().Unix(), 10)
	for entity := range e.view.Entities(r) {
		e.entity = e.appendEntity(e.entity[:0], entity)
		for s := range entity.Samples {
			e.text = append(e.text, e.entity...)
			e.text = e.appendMetric(e.text, s)
			e.text = append(e.text, ' ')
			if s.Value.IsFloat() {
				e.text = strconv.AppendFloat(e.text, s.Value.Float64(), 'f', 6, 64)
			} else {
				e.text = strconv.AppendInt(e.text, s.Value.Int64(), 10)
			}
			e.text = append(e.text, ' ')
			e.text = append(append(e.text, at...), '\n')
			e.ends = append(e.ends, len(e.text))
		}
	}
}

// appendEntity appends the path of an entity, with prefix and a dot at its end.
func (e *encoder) appendEntity(dst []byte, entity *sink.Entity) []byte {
	dst = append(append(dst, e.prefix...), '.')
	label := func(key string) string {
		for _, l := range entity.Labels {
			if l.Key == key {
				return l.Value
			}
		}
		return ""
	}
	host := func(dst []byte) []byte {
		return append(appendNode(append(dst, "nodes."...), label(proto.LabelHostname)), '.')
	}
	pod := func(dst []byte) []byte {
		dst = append(host(dst), "pods."...)
		dst = append(appendClean(dst, label(proto.LabelNamespaceName)), '.')
		return append(appendNode(dst, label(proto.LabelPodName)), '.')
	}
	switch entity.Kind {
	case proto.KindContainer:
		dst = append(pod(dst), "containers."...)
		return append(appendNode(dst, label(proto.LabelContainerName)), '.')
	case proto.KindPod:
		return pod(dst)
	case proto.KindSystemContainer:
		dst = append(host(dst), "sys-containers."...)
		return append(appendNode(dst, label(proto.LabelContainerName)), '.')
	case proto.KindNode:
		return host(dst)
	case proto.KindNamespace:
		return append(appendClean(append(dst, "namespaces."...), label(proto.LabelNamespaceName)), '.')
	case proto.KindWorkload: // not Heapster's
		dst = append(appendClean(append(dst, "namespaces."...), label(proto.LabelNamespaceName)), ".workloads."...)
		dst = append(appendNode(dst, label(proto.LabelWorkloadKind)), '.')
		return append(appendNode(dst, label(proto.LabelWorkloadName)), '.')
	}
	return append(dst, "cluster."...)
}

// appendMetric appends the metric's path below its entity: `cpu.usage_rate`; with a path for devices
// `filesystem.<device>.usage`.
func (e *encoder) appendMetric(dst []byte, s *proto.Sample) []byte {
	name := s.Name
	if s.Device != nil && e.devices {
		section, rest, ok := strings.Cut(name, "/")
		dst = append(appendClean(dst, section), '.')
		dst = appendNode(dst, s.Device.Name)
		if !ok {
			return dst
		}
		dst, name = append(dst, '.'), rest
	}
	from := len(dst)
	dst = appendClean(dst, name)
	for i := from; i < len(dst); i++ {
		if dst[i] == '/' {
			dst[i] = '.'
		}
	}
	return dst
}

// appendNode appends one node of a path: "." and "/" would part it, and become "_".
func appendNode(dst []byte, s string) []byte {
	from := len(dst)
	dst = appendClean(dst, s)
	for i := from; i < len(dst); i++ {
		if dst[i] == '.' || dst[i] == '/' {
			dst[i] = '_'
		}
	}
	return dst
}

// appendClean appends s with what would end a path replaced by "_": space, control characters, and the ";"
// that begins tags. Kubernetes names have none of them.
func appendClean(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c == 0x7f || c == ';' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}
