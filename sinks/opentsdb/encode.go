package opentsdb

import (
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as the data points of OpenTSDB's /api/put, in Heapster's order of fields:
//
//	{"metric":"cpu_usage_rate_gauge","timestamp":1514859840,"value":10,"tags":{…}}
//
// Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster []proto.Label // the tag cluster
	devices bool          // samples of devices are written

	text   []byte
	points []point
	tags   []byte // of the present entity, or of its present device
	device []proto.Label
	merged []proto.Label
}

// point is a data point within the text.
type point struct {
	from, to int
	message  int // index in the batch
}

func (e *encoder) reset() { e.text, e.points = e.text[:0], e.points[:0] }

func (e *encoder) point(i int) []byte { return e.text[e.points[i].from:e.points[i].to] }

// encode appends the points of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	at := proto.Int(r.Tick.Time().Unix())
	for entity := range e.view.Entities(r) {
		e.tags = e.appendTags(e.tags[:0], entity.Labels, nil)
		var device *proto.Device
		for s := range entity.Samples {
			if s.Device != nil && !e.devices {
				continue
			}
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.tags = e.appendTags(e.tags[:0], entity.Labels, e.device)
			}
			from := len(e.text)
			e.text = append(e.text, `{"metric":"`...)
			e.text = appendMetric(e.text, s)
			e.text = append(e.text, `","timestamp":`...)
			e.text = at.Append(e.text)
			e.text = append(e.text, `,"value":`...)
			e.text = sink.AppendJSONNumber(e.text, s.Value)
			e.text = append(e.text, `,"tags":`...)
			e.text = append(append(e.text, e.tags...), '}')
			e.points = append(e.points, point{from, len(e.text), i})
		}
	}
}

// appendMetric appends the name of a metric with the suffix that says what it is.
func appendMetric(dst []byte, s *proto.Sample) []byte {
	from := len(dst)
	dst = appendClean(dst, s.Name)
	for i := from; i < len(dst); i++ {
		if dst[i] == '/' {
			dst[i] = '_'
		}
	}
	if s.Counter {
		return append(dst, "_cumulative"...)
	}
	return append(dst, "_gauge"...)
}

// appendTags appends the JSON of all tags, sorted by key: the device's, the entity's, and cluster over all.
// OpenTSDB takes no empty ones.
func (e *encoder) appendTags(dst []byte, labels, device []proto.Label) []byte {
	e.merged = sink.MergeLabels(e.merged[:0], e.cluster, device, labels)
	dst = append(dst, '{')
	for _, l := range e.merged {
		if l.Key == "" || l.Value == "" {
			continue
		}
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = appendClean(dst, l.Key)
		dst = append(dst, `":"`...)
		dst = append(appendClean(dst, l.Value), '"')
	}
	return append(dst, '}')
}

// appendClean appends s with each character that OpenTSDB does not take replaced by "_". What is left needs no
// escape in JSON.
func appendClean(dst []byte, s string) []byte {
	for _, c := range s {
		if c < 0x80 && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./", c)) {
			dst = append(dst, byte(c))
		} else {
			dst = append(dst, '_')
		}
	}
	return dst
}
