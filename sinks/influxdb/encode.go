package influxdb

import (
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as InfluxDB line protocol. Every line is
//
//	measurement,tag=value,… field=value timestamp
//
// with tags sorted by key, as Heapster wrote it. Memory grows to that of the largest batch and is
// reused.
type encoder struct {
	view       sink.View
	cluster    string // value of the tag cluster_name
	withFields bool   // cpu/usage_rate becomes field usage_rate of measurement cpu
	podIDs     bool   // the UID of pods is a tag, too

	tags      []byte // of the present entity, or of its present device
	deviceTag []proto.Label
	merged    []proto.Label
}

// lines is encoded text and where each line in it begins.
type lines struct {
	text  []byte
	start []int // of each line; the end of the last is len(text)
	from  []int // index in the batch of the message each line was made of
}

func (l *lines) reset() { l.text, l.start, l.from = l.text[:0], l.start[:0], l.from[:0] }

func (l *lines) len() int { return len(l.start) }

// line is line i without its newline.
func (l *lines) line(i int) []byte { return l.span(i, i+1)[:len(l.span(i, i+1))-1] }

// span is the text of lines [from, to).
func (l *lines) span(from, to int) []byte {
	end := len(l.text)
	if to < len(l.start) {
		end = l.start[to]
	}
	return l.text[l.start[from]:end]
}

// encode appends the lines of one rollup, which is message i of its batch.
func (e *encoder) encode(l *lines, r *proto.Rollup, i int) {
	for entity := range e.view.Entities(r) {
		e.tags = e.appendTags(e.tags[:0], entity.Labels, nil)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.deviceTag = e.view.AppendDeviceLabels(e.deviceTag[:0], device)
				e.tags = e.appendTags(e.tags[:0], entity.Labels, e.deviceTag)
			}
			l.start = append(l.start, len(l.text))
			l.from = append(l.from, i)
			l.text = e.appendLine(l.text, s, r.Tick)
		}
	}
}

func (e *encoder) appendLine(dst []byte, s *proto.Sample, at proto.Tick) []byte {
	measurement, field := s.Name, "value"
	if e.withFields {
		if m, f, ok := strings.Cut(s.Name, "/"); ok {
			measurement, field = m, f
		}
	}
	dst = appendMeasurement(dst, measurement)
	dst = append(dst, e.tags...)
	dst = append(dst, ' ')
	dst = appendKey(dst, field)
	dst = append(dst, '=')
	dst = s.Value.Append(dst)
	if !s.Value.IsFloat() {
		dst = append(dst, 'i')
	}
	dst = append(dst, ' ')
	dst = proto.Int(int64(at)).Append(dst)
	return append(dst, "000000\n"...) // milliseconds to nanoseconds
}

// appendTags appends ",key=value" for every label that becomes a tag, sorted by key: the entity's, the
// device's over them, and cluster_name over all. Empty values have no place in line protocol.
func (e *encoder) appendTags(dst []byte, labels, device []proto.Label) []byte {
	e.merged = append(e.merged[:0], proto.Label{Key: proto.LabelClusterName, Value: e.cluster})
	for _, l := range device {
		e.merged = sink.InsertLabel(e.merged, l)
	}
	for _, l := range labels {
		switch l.Key {
		case proto.LabelPodID:
			if !e.podIDs {
				continue // as Heapster: every pod of a name would be series of its own
			}
		case proto.LabelNamespaceID, proto.LabelHostname, proto.LabelHostID:
			continue // as Heapster: they would repeat another tag
		}
		e.merged = sink.InsertLabel(e.merged, l)
	}
	for _, l := range e.merged {
		if l.Value == "" || l.Key == "" {
			continue
		}
		dst = append(dst, ',')
		dst = appendKey(dst, l.Key)
		dst = append(dst, '=')
		dst = appendKey(dst, l.Value)
	}
	return dst
}

// appendMeasurement escapes a measurement: comma and space.
func appendMeasurement(dst []byte, s string) []byte { return appendEscaped(dst, s, false) }

// appendKey escapes a tag key, tag value or field key: comma, space and equals sign.
func appendKey(dst []byte, s string) []byte { return appendEscaped(dst, s, true) }

// appendEscaped escapes what ends a word of line protocol. A newline cannot be escaped and becomes the
// two characters \n. Nor can a backslash: InfluxDB takes every one before a delimiter for the
// delimiter's, VictoriaMetrics every second. So one that would stand before what is escaped, or at the
// end, becomes a slash; any other stands for itself.
func appendEscaped(dst []byte, s string, equals bool) []byte {
	from := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == ',' || c == ' ' || c == '=' && equals:
			dst = append(append(dst, s[from:i]...), '\\')
			from = i
		case c == '\n':
			dst = append(append(dst, s[from:i]...), `\n`...)
			from = i + 1
		case c == '\\':
			end := i + 1
			for end < len(s) && s[end] == '\\' {
				end++
			}
			if end == len(s) || strings.IndexByte(", =\n", s[end]) >= 0 {
				dst = append(dst, s[from:i]...)
				for ; i < end; i++ {
					dst = append(dst, '/')
				}
				from = end
			}
			i = end - 1
		}
	}
	return append(dst, s[from:]...)
}
