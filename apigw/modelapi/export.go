package modelapi

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

const exportRoot = "/api/v1/metric-export"

// exported says which metrics the export has: Heapster's measured ones, two limits and the labelled ones.
func exported(m *proto.Metric) bool {
	switch {
	case m.Ours:
		return false
	case m.ID == proto.CPULimit || m.ID == proto.MemoryLimit || m.Device != 0:
		return true
	}
	return m.ID <= proto.NetworkTxErrors && m.Formula != proto.FormulaMilli
}

// export answers /api/v1/metric-export: what every entity has at its newest tick, sent as it is written.
func (q *request) export() {
	switch {
	case q.api.cfg.DisableExport:
		q.JSON([]byte("[]\n"))
		return
	case q.c.Newest() == 0:
		q.JSON([]byte("null\n"))
		return
	}
	q.Stream(func(s *answer.Stream) {
		s.B = append(s.B, '[')
		first := true
		q.c.Export(exported, func(x *view.Exported) bool {
			if !first {
				s.B = append(s.B, ',')
			}
			first = false
			s.B = q.appendExported(s.B, x)
			return s.Send()
		})
		s.B = append(s.B, "]\n"...)
	})
}

// appendExported appends one element of the export: metrics by name, then labels, keys sorted.
func (q *request) appendExported(b []byte, x *view.Exported) []byte {
	slices.SortStableFunc(x.Samples, func(a, b window.Sample) int { return cmp.Compare(a.Metric.Name, b.Metric.Name) })
	b = append(b, `{"metrics":{`...)
	day := answer.DayText{}
	for i := range x.Samples {
		p := &x.Samples[i]
		switch {
		case i > 0 && x.Samples[i-1].Metric == p.Metric:
			b = append(b, ',')
		case i > 0:
			b = append(b, `],`...)
			fallthrough
		default:
			b = answer.AppendString(b, p.Metric.Name)
			b = append(b, `:[`...)
		}
		b = append(b, `{"start":"`...)
		switch { // the counters of disks were called gauges
		case p.Metric.Shape != proto.Counter || p.Metric.Device != 0:
			b = day.Append(b, x.Tick)
		case x.Start == 0:
			b = append(b, answer.YearOne...)
		default:
			b = time.Unix(0, x.Start).UTC().AppendFormat(b, time.RFC3339Nano)
		}
		b = append(b, `","end":"`...)
		b = day.Append(b, x.Tick)
		b = append(b, '"')
		if p.Metric.Device != 0 {
			var buf [4]proto.Label
			b = append(b, `,"labels":`...)
			b = appendLabels(b, p.Device.AppendLabels(buf[:0]))
		}
		b = append(b, `,"value":`...)
		if p.Value.IsFloat() {
			b = answer.AppendFloat(b, p.Value.Float64())
		} else {
			b = strconv.AppendInt(b, p.Value.Int64(), 10)
		}
		b = append(b, '}')
	}
	if len(x.Samples) > 0 {
		b = append(b, ']')
	}
	var buf [12]proto.Label
	b = append(b, `},"labels":`...)
	b = appendLabels(b, q.exportLabels(buf[:0], x))
	return append(b, '}')
}

// exportLabels appends the labels that the export has, sorted by key.
func (q *request) exportLabels(dst []proto.Label, x *view.Exported) []proto.Label {
	node, e := &x.Table.Entities[0], &x.Table.Entities[x.Row]
	add := func(key, value string) { dst = append(dst, proto.Label{Key: key, Value: value}) }
	pod := e
	switch e.Kind {
	case proto.KindNode:
		add(proto.LabelContainerName, "machine")
	case proto.KindPod:
		add(proto.LabelContainerName, "/pod")
	case proto.KindContainer:
		pod = &x.Table.Entities[e.Parent]
		add(proto.LabelContainerBaseImage, e.Image)
		add(proto.LabelContainerName, e.Name)
	default:
		add(proto.LabelContainerName, e.Name)
	}
	add(proto.LabelHostID, node.HostID)
	add(proto.LabelHostname, node.Hostname)
	if pod.Kind == proto.KindNode || pod.Kind == proto.KindPod && pod.Flags&proto.FlagNotInAPI == 0 {
		add(proto.LabelLabels, q.api.deps.Labels.Join(pod.Labels))
	}
	if pod.Kind == proto.KindPod {
		for i := len(x.Table.Entities) - 1; i >= 0 && x.Table.Entities[i].Kind == proto.KindNamespace; i-- {
			if n := &x.Table.Entities[i]; n.Name == pod.Namespace && n.UID != "" {
				add(proto.LabelNamespaceID, n.UID)
			}
		}
	}
	add(proto.LabelNodename, node.Name)
	if pod.Kind == proto.KindPod {
		add(proto.LabelPodID, pod.UID)
		add(proto.LabelPodName, pod.Name)
	}
	return dst
}

// appendLabels appends a JSON object of labels that are sorted by key.
func appendLabels(b []byte, labels []proto.Label) []byte {
	b = append(b, '{')
	for i, l := range labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = answer.AppendString(b, l.Key)
		b = append(b, ':')
		b = answer.AppendString(b, l.Value)
	}
	return append(b, '}')
}
