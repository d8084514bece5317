package stackdriver

import (
	"cmp"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp"
	"github.com/heapstream/heapstream/sinks/sink"
)

// encoder writes rollups as time series of Google's own metrics, in one or two models. Memory grows to that of the
// largest batch and is reused.
type encoder struct {
	view                  sink.View
	old, new              bool // the models
	project               string
	cluster, location     string
	zone                  string
	series                gcp.Series
	labels                []proto.Label // of the present entity
	end                   time.Time     // of points
	start, birth          string        // RFC 3339; "" where there is none
	ends                  string
	kind                  proto.Kind
	resourceOld, resource []byte // JSON of the present entity's monitored resources
	daemon                string // of a system container: its name, a label of metrics
	message               int
	tick                  int64
}

// target is what a metric of ours becomes.
type target struct {
	suffix string
	kind   valueKind
	label  proto.Label // one of its own; "" for none
	by     float64     // value / by, where the value becomes a float; 0: as it is
}

// valueKind says what a point is.
type valueKind int

const (
	gaugeInt valueKind = iota
	gaugeDouble
	totalInt    // cumulative
	totalDouble // cumulative
	restarts    // cumulative since the pod was created
)

var (
	nonEvictable = proto.Label{Key: "memory_type", Value: "non-evictable"}
	evictable    = proto.Label{Key: "memory_type", Value: "evictable"}
)

// bytesUsed and minorFaults are names of what is derived here from two metrics.
const (
	bytesUsed   = "memory/bytes_used"
	minorFaults = "memory/minor_page_faults"
)

// oldTargets are the metrics of gke_container, below container.googleapis.com/container/.
var oldTargets = map[string]target{
	"uptime":                   {suffix: "uptime", kind: totalDouble, by: 1e3},
	"cpu/limit":                {suffix: "cpu/reserved_cores", kind: gaugeDouble, by: 1e3},
	"cpu/usage":                {suffix: "cpu/usage_time", kind: totalDouble, by: 1e9},
	"network/rx":               {suffix: "network/received_bytes_count", kind: totalInt},
	"network/tx":               {suffix: "network/sent_bytes_count", kind: totalInt},
	"memory/limit":             {suffix: "memory/bytes_total"},
	"memory/node_allocatable":  {suffix: "memory/bytes_total"},
	"memory/working_set":       {suffix: "memory/bytes_used", label: nonEvictable},
	bytesUsed:                  {suffix: "memory/bytes_used", label: evictable},
	"memory/major_page_faults": {suffix: "memory/page_fault_count", kind: totalInt, label: proto.Label{Key: "fault_type", Value: "major"}},
	minorFaults:                {suffix: "memory/page_fault_count", kind: totalInt, label: proto.Label{Key: "fault_type", Value: "minor"}},
	"filesystem/usage":         {suffix: "disk/bytes_used"},
	"filesystem/limit":         {suffix: "disk/bytes_total"},
	"accelerator/memory_total": {suffix: "accelerator/memory_total"},
	"accelerator/memory_used":  {suffix: "accelerator/memory_used"},
	"accelerator/duty_cycle":   {suffix: "accelerator/duty_cycle"},
	"nvidia.com/gpu/request":   {suffix: "accelerator/request", label: proto.Label{Key: "resource_name", Value: "nvidia.com/gpu"}},
}

// newTargets are the metrics of the k8s_ resources, below kubernetes.io/, by the kind of entity.
var newTargets = map[proto.Kind]map[string]target{
	proto.KindContainer: {
		"uptime":                    {suffix: "container/uptime", kind: gaugeDouble, by: 1e3},
		"cpu/limit":                 {suffix: "container/cpu/limit_cores", kind: gaugeDouble, by: 1e3},
		"cpu/request":               {suffix: "container/cpu/request_cores", kind: gaugeDouble, by: 1e3},
		"cpu/usage":                 {suffix: "container/cpu/core_usage_time", kind: totalDouble, by: 1e9},
		"memory/limit":              {suffix: "container/memory/limit_bytes"},
		"memory/request":            {suffix: "container/memory/request_bytes"},
		"memory/working_set":        {suffix: "container/memory/used_bytes", label: nonEvictable},
		bytesUsed:                   {suffix: "container/memory/used_bytes", label: evictable},
		"restart_count":             {suffix: "container/restart_count", kind: restarts},
		"ephemeral_storage/limit":   {suffix: "container/ephemeral_storage/limit_bytes"},
		"ephemeral_storage/request": {suffix: "container/ephemeral_storage/request_bytes"},
		"ephemeral_storage/usage":   {suffix: "container/ephemeral_storage/used_bytes"},
		"nvidia.com/gpu/request":    {suffix: "container/accelerator/request", label: proto.Label{Key: "resource_name", Value: "nvidia.com/gpu"}},
		"accelerator/memory_total":  {suffix: "container/accelerator/memory_total"},
		"accelerator/memory_used":   {suffix: "container/accelerator/memory_used"},
		"accelerator/duty_cycle":    {suffix: "container/accelerator/duty_cycle"},
	},
	proto.KindPod: {
		"network/rx":       {suffix: "pod/network/received_bytes_count", kind: totalInt},
		"network/tx":       {suffix: "pod/network/sent_bytes_count", kind: totalInt},
		"filesystem/usage": {suffix: "pod/volume/used_bytes"},
		"filesystem/limit": {suffix: "pod/volume/total_bytes"},
	},
	proto.KindNode: {
		"cpu/node_capacity":               {suffix: "node/cpu/total_cores", kind: gaugeDouble, by: 1e3},
		"cpu/node_allocatable":            {suffix: "node/cpu/allocatable_cores", kind: gaugeDouble, by: 1e3},
		"cpu/usage":                       {suffix: "node/cpu/core_usage_time", kind: totalDouble, by: 1e9},
		"memory/node_capacity":            {suffix: "node/memory/total_bytes"},
		"memory/node_allocatable":         {suffix: "node/memory/allocatable_bytes"},
		"memory/working_set":              {suffix: "node/memory/used_bytes", label: nonEvictable},
		bytesUsed:                         {suffix: "node/memory/used_bytes", label: evictable},
		"network/rx":                      {suffix: "node/network/received_bytes_count", kind: totalInt},
		"network/tx":                      {suffix: "node/network/sent_bytes_count", kind: totalInt},
		"ephemeral_storage/node_capacity": {suffix: "node/ephemeral_storage/total_bytes"},
	},
	proto.KindSystemContainer: {
		"memory/working_set": {suffix: "node_daemon/memory/used_bytes", label: nonEvictable},
		bytesUsed:            {suffix: "node_daemon/memory/used_bytes", label: evictable},
		"cpu/usage":          {suffix: "node_daemon/cpu/core_usage_time", kind: totalDouble, by: 1e9},
	},
}

// encode appends the series of one rollup, which is message i of its batch.
func (e *encoder) encode(r *proto.Rollup, i int) {
	e.end, e.message, e.tick = r.Tick.Time().UTC(), i, int64(r.Tick)
	e.ends = e.end.Format(time.RFC3339Nano)
	for entity := range e.view.Entities(r) {
		if _, ok := newTargets[entity.Kind]; !ok || !e.begin(r, entity) {
			continue
		}
		var usage, workingSet, faults, majorFaults proto.Value
		var has [4]bool
		for s := range entity.Samples {
			name := s.Name
			if s.Metric != nil {
				name = s.Metric.Name // what Google calls it does not depend on renaming
				switch s.Metric.ID {
				case proto.MemoryUsage:
					usage, has[0] = s.Value, true
				case proto.MemoryWorkingSet:
					workingSet, has[1] = s.Value, true
				case proto.MemoryPageFaults:
					faults, has[2] = s.Value, true
				case proto.MemoryMajorFaults:
					majorFaults, has[3] = s.Value, true
				}
			}
			e.sample(name, s.Value, s.Device)
		}
		if has[0] && has[1] {
			e.sample(bytesUsed, proto.Int(usage.Int64()-workingSet.Int64()), nil)
		}
		if has[2] && has[3] {
			e.sample(minorFaults, proto.Int(faults.Int64()-majorFaults.Int64()), nil)
		}
	}
}

// begin prepares for an entity; false for one whose counters have no start before now, which Heapster left out.
func (e *encoder) begin(r *proto.Rollup, entity *sink.Entity) bool {
	ns, ok := r.Values.Get(entity.Row, proto.FieldStart)
	if !ok || ns == 0 || ns >= e.end.UnixNano() {
		return false
	}
	e.start, e.birth = time.Unix(0, ns).UTC().Format(time.RFC3339Nano), ""
	row := entity.Row
	if entity.Kind == proto.KindContainer {
		row = int(r.Entities[row].Parent)
	}
	if ns, ok := r.Values.Get(row, proto.FieldBirth); ok && ns > 0 && ns < e.end.UnixNano() {
		e.birth = time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
	}
	e.kind = entity.Kind
	label := func(key string) string {
		for _, l := range entity.Labels {
			if l.Key == key {
				return l.Value
			}
		}
		return ""
	}
	e.daemon = ""
	if e.kind == proto.KindSystemContainer {
		e.daemon = label(proto.LabelContainerName)
	}
	container := label(proto.LabelContainerName)
	if e.kind == proto.KindNode {
		container = "machine"
	}
	e.resourceOld = sink.AppendJSONLabels(append(e.resourceOld[:0], `{"type":"gke_container","labels":`...), []proto.Label{
		{Key: "cluster_name", Value: e.cluster}, {Key: "container_name", Value: container}, {Key: "instance_id", Value: cmp.Or(label(proto.LabelHostID), label(proto.LabelNodename))},
		{Key: "namespace_id", Value: label(proto.LabelNamespaceID)}, {Key: "pod_id", Value: label(proto.LabelPodID)},
		{Key: "project_id", Value: e.project}, {Key: "zone", Value: e.zone},
	})
	e.resourceOld = append(e.resourceOld, '}')
	e.labels = append(e.labels[:0], proto.Label{Key: "cluster_name", Value: e.cluster}, proto.Label{Key: "location", Value: e.location}, proto.Label{Key: "project_id", Value: e.project})
	kind := "k8s_node"
	switch e.kind {
	case proto.KindContainer:
		kind = "k8s_container"
		e.labels = append(e.labels, proto.Label{Key: "container_name", Value: container})
		fallthrough
	case proto.KindPod:
		if e.kind == proto.KindPod {
			kind = "k8s_pod"
		}
		e.labels = append(e.labels, proto.Label{Key: "namespace_name", Value: label(proto.LabelNamespaceName)}, proto.Label{Key: "pod_name", Value: label(proto.LabelPodName)})
	default:
		e.labels = append(e.labels, proto.Label{Key: "node_name", Value: label(proto.LabelNodename)})
	}
	e.resource = append(append(append(e.resource[:0], `{"type":"`...), kind...), `","labels":`...)
	e.resource = append(sink.AppendJSONLabels(e.resource, e.labels), '}')
	return true
}

// sample appends what a sample becomes in each model.
func (e *encoder) sample(name string, v proto.Value, device *proto.Device) {
	if e.old && !(name == "memory/limit" && e.kind == proto.KindNode) {
		if t, ok := oldTargets[name]; ok {
			e.point("container.googleapis.com/container/", t, e.resourceOld, e.metricLabels(t, device, false), v)
		}
	}
	if e.new {
		if t, ok := newTargets[e.kind][name]; ok {
			e.point("kubernetes.io/", t, e.resource, e.metricLabels(t, device, true), v)
		}
	}
}

// metricLabels are the labels of a metric, beside those of its resource.
func (e *encoder) metricLabels(t target, device *proto.Device, isNew bool) []proto.Label {
	e.labels = e.labels[:0]
	if isNew && e.daemon != "" {
		e.labels = append(e.labels, proto.Label{Key: "component", Value: e.daemon})
	}
	if t.label.Key != "" {
		e.labels = append(e.labels, t.label)
	}
	switch {
	case device == nil:
	case device.Kind == proto.DeviceAccelerator:
		e.labels = append(e.labels, proto.Label{Key: proto.LabelAcceleratorID, Value: device.Name}, proto.Label{Key: proto.LabelMake, Value: device.Make}, proto.Label{Key: proto.LabelModel, Value: device.Model})
	case isNew:
		e.labels = append(e.labels, proto.Label{Key: "volume_name", Value: strings.TrimPrefix(device.Name, "Volume:")})
	default:
		e.labels = append(e.labels, proto.Label{Key: "device_name", Value: device.Name})
	}
	return e.labels
}

// point appends one series with its point.
func (e *encoder) point(prefix string, t target, resource []byte, labels []proto.Label, v proto.Value) {
	start, kind, value := e.ends, "GAUGE", "INT64"
	switch t.kind {
	case totalInt, totalDouble:
		start, kind = e.start, "CUMULATIVE"
	case restarts:
		if start, kind = e.birth, "CUMULATIVE"; start == "" {
			return
		}
	}
	if t.kind == gaugeDouble || t.kind == totalDouble {
		value = "DOUBLE"
	}
	from := len(e.series.Text)
	b := append(e.series.Text, `{"metric":{"type":`...)
	b = sink.AppendJSONString(b, prefix+t.suffix)
	b = sink.AppendJSONLabels(append(b, `,"labels":`...), labels)
	b = append(append(b, `},"resource":`...), resource...)
	b = append(append(append(b, `,"metricKind":"`...), kind...), `","valueType":"`...)
	b = append(append(b, value...), `","points":[{"interval":{"startTime":"`...)
	b = append(append(append(b, start...), `","endTime":"`...), e.ends...)
	if value == "DOUBLE" {
		f := v.Float64()
		if t.by != 0 {
			f /= t.by
		}
		b = sink.AppendJSONNumber(append(b, `"},"value":{"doubleValue":`...), proto.Float(f))
	} else {
		b = append(proto.Int(v.Int64()).Append(append(b, `"},"value":{"int64Value":"`...)), '"')
	}
	b = append(b, `}}]}`...)
	e.series.Text = b
	e.series.All = append(e.series.All, gcp.One{From: from, To: len(b), Message: e.message, Time: e.tick})
}
