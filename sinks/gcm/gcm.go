// Package gcm writes rollups to Google Cloud Monitoring, as custom metrics custom.googleapis.com/kubernetes.io/<name>.
//
//	gcm[:?metrics=all|autoscaling]
//
// Project and credentials are found as package gcp says; `credentials` and `endpoint` choose others. metrics=autoscaling
// writes Heapster's node metrics of capacity, allocatable, utilization and reservation alone, by the labels hostname,
// resource_id and resource_type; all other metrics have Heapster's labels for this sink, and those of their device.
//
// Metrics are declared before the first write. Other than Heapster, which deleted them first and with them what was
// stored, they are only created: the API leaves those alone that are there. Counters without a start of their own are
// left out: a cumulative point needs one.
//
// Guarantee: exactly once, by id: the API drops a point of a series and time it has already. Points that it refuses for
// good are told apart by its answer.
//
// Not here: authentication and the API (gcp), when to try again (worker), which samples there are (sink.View).
package gcm

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink gcm.
var Kind = sink.Kind{Key: "gcm", Title: "GCM Sink", Guarantee: sink.OnceByID, Identity: []string{"metrics", "credentials"}, New: New}

// prefix is the beginning of every type of metric.
const prefix = "custom.googleapis.com/kubernetes.io/"

// labelKeys are the labels of metrics: each entity writes those of them that it has.
var labelKeys = []string{
	proto.LabelType, proto.LabelPodName, proto.LabelNamespaceName, proto.LabelHostname, proto.LabelHostID,
	proto.LabelContainerName, proto.LabelContainerBaseImage, proto.LabelResourceID,
}

// cloud is Cloud Monitoring as seen by the worker of one cluster.
type cloud struct {
	enc       encoder
	api       *gcp.Monitoring
	log       *slog.Logger
	toDeclare []*proto.Metric
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &cloud{log: d.Log}
	if t.URL.Scheme != "" {
		o.Complain("scheme should not be set for GCM sink: its address is `endpoint`")
	}
	if t.URL.Host != "" {
		o.Complain("host should not be set for GCM sink: its address is `endpoint`")
	}
	which := o.String("metrics", "all")
	if which != "all" && which != "autoscaling" {
		o.Complain("invalid metrics parameter: %s: want all or autoscaling", which)
	}
	s.enc.view = common.View
	s.enc.cluster = common.ClusterLabel()
	if which == "autoscaling" {
		s.enc.view.Skip = func(m *proto.Metric) bool { return !autoscaling(m.Name) }
	}
	s.api = gcp.New(o, d.Version)
	all := proto.Metrics()
	for i := range all {
		m := &all[i]
		if m.Ours && !s.enc.view.All || m.ID == proto.RestartCount || s.enc.view.Skip != nil && s.enc.view.Skip(m) {
			continue
		}
		s.toDeclare = append(s.toDeclare, m)
	}
	return o.Made(s, d.Log)
}

// autoscaling reports whether a metric is one of those that tell what room a node has.
func autoscaling(name string) bool {
	_, rest, _ := strings.Cut(name, "/")
	switch rest {
	case "node_capacity", "node_allocatable", "node_utilization", "node_reservation":
		return true
	}
	return false
}

// Close drops idle connections.
func (s *cloud) Close() error {
	s.api.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *cloud) Write(ctx context.Context, batch []sink.Message) error {
	for len(s.toDeclare) > 0 {
		m := s.toDeclare[0]
		err := s.api.CreateDescriptor(ctx, s.enc.descriptor(m))
		if err != nil && !sink.IsPermanent(err) {
			return err
		}
		if err != nil {
			s.log.Warn("metric is declared otherwise already, and stays so", "series", prefix+m.Name, "err", err)
		}
		s.toDeclare = s.toDeclare[1:]
	}
	s.enc.series.Reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup, i)
	}
	return s.api.Write(ctx, &s.enc.series)
}

// encoder writes rollups as time series. Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	cluster []proto.Label // label cluster_name, where the operator gave one

	series gcp.Series
	labels []proto.Label
	device []proto.Label
	merged []proto.Label
	json   []byte // labels of the present entity, or of its present device
}

// descriptor is the JSON of a MetricDescriptor.
func (e *encoder) descriptor(m *proto.Metric) []byte {
	type label struct {
		Key  string `json:"key"`
		Type string `json:"valueType"`
	}
	var labels []label
	keys := labelKeys
	if autoscaling(m.Name) {
		keys = []string{proto.LabelResourceID, "resource_type", proto.LabelHostname}
	} else if m.Device == proto.DeviceAccelerator {
		keys = append(append([]string(nil), keys...), proto.LabelMake, proto.LabelModel, proto.LabelAcceleratorID)
	}
	for _, k := range keys {
		labels = append(labels, label{k, "STRING"})
	}
	kind, value := "GAUGE", "INT64"
	if m.Shape == proto.Counter {
		kind = "CUMULATIVE"
	}
	if m.Float {
		value = "DOUBLE"
	}
	b, err := json.Marshal(map[string]any{
		"type": prefix + m.Name, "description": m.Help, "displayName": m.Name, "labels": labels, "metricKind": kind, "valueType": value,
	})
	if err != nil {
		panic(fmt.Sprintf("texts cannot be written as JSON: %v", err)) // they always can
	}
	return b
}

// encode appends the series of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	at := r.Tick.Time().UTC()
	end := at.Format(time.RFC3339Nano)
	for entity := range e.view.Entities(r) {
		start := ""
		if ns, ok := r.Values.Get(entity.Row, proto.FieldStart); ok && ns < at.UnixNano() {
			start = time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
		}
		var device *proto.Device
		auto, known := false, false // what e.json is made for
		for s := range entity.Samples {
			if s.Counter && start == "" {
				continue
			}
			if is := s.Metric != nil && autoscaling(s.Metric.Name); !known || s.Device != device || is != auto {
				device, auto, known = s.Device, is, true
				e.json = sink.AppendJSONLabels(e.json[:0], e.labelsOf(entity, s))
			}
			from := len(e.series.Text)
			b := append(e.series.Text, `{"metric":{"type":`...)
			b = sink.AppendJSONString(b, prefix+s.Name)
			b = append(append(append(b, `,"labels":`...), e.json...), `},`...)
			begin := end
			if s.Counter {
				begin = start
				b = append(b, `"metricKind":"CUMULATIVE",`...)
			}
			kind, field := "INT64", "int64Value"
			if s.Value.IsFloat() {
				kind, field = "DOUBLE", "doubleValue"
			}
			b = append(append(append(b, `"valueType":"`...), kind...), `","points":[{"interval":{"startTime":"`...)
			b = append(append(append(b, begin...), `","endTime":"`...), end...)
			b = append(append(append(b, `"},"value":{"`...), field...), `":`...)
			if s.Value.IsFloat() {
				b = sink.AppendJSONNumber(b, s.Value)
			} else {
				b = append(s.Value.Append(append(b, '"')), '"')
			}
			b = append(b, `}}]}`...)
			e.series.Text = b
			e.series.All = append(e.series.All, gcp.One{From: from, To: len(b), Message: i, Time: int64(r.Tick)})
		}
	}
}

// labelsOf are the labels of a sample, sorted by key.
func (e *encoder) labelsOf(entity *sink.Entity, s *proto.Sample) []proto.Label {
	e.labels = e.labels[:0]
	if s.Metric != nil && autoscaling(s.Metric.Name) {
		host, id := "", ""
		for _, l := range entity.Labels {
			switch l.Key {
			case proto.LabelHostname:
				host = l.Value
			case proto.LabelHostID:
				id = l.Value
			}
		}
		e.labels = append(e.labels, proto.Label{Key: proto.LabelHostname, Value: host}, proto.Label{Key: proto.LabelResourceID, Value: id}, proto.Label{Key: "resource_type", Value: "instance"})
	} else {
		for _, l := range entity.Labels {
			if slices.Contains(labelKeys, l.Key) || entity.Kind == proto.KindWorkload && (l.Key == proto.LabelWorkloadKind || l.Key == proto.LabelWorkloadName) {
				e.labels = append(e.labels, l)
			}
		}
	}
	e.device = e.view.AppendDeviceLabels(e.device[:0], s.Device)
	e.merged = sink.MergeLabels(e.merged[:0], e.cluster, e.device, e.labels)
	return e.merged
}
