package wavefront

import (
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as lines of Wavefront's data format:
//
//	metric value seconds source="host" key="value" …
//
// Memory grows to that of the largest batch and is reused.
type encoder struct {
	view       sink.View
	cluster    string
	prefix     string
	labels     bool // Kubernetes labels become tags label.<key>
	containers bool // pod_container is written

	text   []byte
	lines  int
	tags   []byte // of the present entity, or of its present device
	device []proto.Label
	own    []proto.Label
	merged []proto.Label
}

func (e *encoder) reset() { e.text, e.lines = e.text[:0], 0 }

// encode appends the lines of one rollup.
func (e *encoder) encode(r *proto.Rollup) {
	at := strconv.FormatInt(r.Tick.Time().Unix(), 10)
	for entity := range e.view.Entities(r) {
		container, host, namespace := "", "", ""
		for _, l := range entity.Labels {
			switch l.Key {
			case proto.LabelContainerName:
				container = l.Value
			case proto.LabelHostname:
				host = l.Value
			case proto.LabelNamespaceName:
				namespace = l.Value
			}
		}
		if strings.Contains(container, "system.slice/") || entity.Kind == proto.KindContainer && !e.containers {
			continue
		}
		source := host
		switch entity.Kind {
		case proto.KindCluster:
			source = e.cluster
		case proto.KindNamespace, proto.KindWorkload:
			source = namespace + "-ns"
		}
		e.setTags(entity.Labels, nil)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.setTags(entity.Labels, e.device)
			}
			b := append(e.text, e.prefix...)
			b = append(append(b, entity.Kind.String()...), '.')
			for i := range len(s.Name) {
				c := s.Name[i]
				switch {
				case c == '/':
					c = '.'
				case c <= ' ' || c == '"' || c == 0x7f:
					c = '_'
				}
				b = append(b, c)
			}
			b = append(b, ' ')
			if s.Value.IsFloat() {
				b = strconv.AppendFloat(b, s.Value.Float64(), 'f', 6, 64)
			} else {
				b = strconv.AppendInt(b, s.Value.Int64(), 10)
			}
			b = append(append(append(b, ' '), at...), ` source="`...)
			b = append(appendQuoted(b, source), `" `...)
			e.text = append(append(b, e.tags...), '\n')
			e.lines++
		}
	}
}

// setTags writes all tags, sorted by key, each followed by a space.
func (e *encoder) setTags(labels, device []proto.Label) {
	e.own = append(e.own[:0], proto.Label{Key: "cluster", Value: e.cluster})
	e.merged = sink.MergeLabels(e.merged[:0], e.own, device, labels)
	b := e.tags[:0]
	for _, l := range e.merged {
		switch l.Key {
		case proto.LabelNamespaceID, proto.LabelHostID, proto.LabelPodID, proto.LabelHostname, "":
			continue
		case proto.LabelLabels:
			if !e.labels {
				continue
			}
			for pair := range strings.SplitSeq(l.Value, e.view.Labels.Separator) {
				k, v, _ := strings.Cut(pair, ":")
				if k != "" && v != "" {
					b = appendTag(append(b, "label."...), k, v)
				}
			}
			continue
		}
		if l.Value != "" {
			b = appendTag(b, l.Key, l.Value)
		}
	}
	e.tags = b
}

// appendTag appends `key="value" `. Wavefront takes letters, digits, "-", "_" and "." in keys.
func appendTag(dst []byte, key, value string) []byte {
	for i := range len(key) {
		c := key[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			c = '_'
		}
		dst = append(dst, c)
	}
	return append(appendQuoted(append(dst, `="`...), value), `" `...)
}

// appendQuoted escapes what would end a quoted text.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}
