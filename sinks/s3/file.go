package s3

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// maxRows bounds a group of rows, which is what a file holds in memory while it is made.
const maxRows = 64 << 10

// compression reads the option.
func compression(o *sink.Options) compress.Codec {
	if o.Choice("compression", "zstd", "snappy") == "snappy" {
		return &parquet.Snappy
	}
	return &parquet.Zstd
}

// files are the Parquet files that a batch makes, one for each hour, in the order of their first messages.
type files struct {
	compression compress.Codec
	all         []*file
}

// file is one that is being made.
type file struct {
	hour   time.Time
	key    string // below the sink's prefix
	body   *bytes.Buffer
	writer interface{ Close() error }
	done   bool
}

func (s *files) reset() { s.all = s.all[:0] }

// close is the file's bytes.
func (f *file) close() ([]byte, error) {
	if !f.done {
		if err := f.writer.Close(); err != nil {
			return nil, err
		}
		f.done = true
	}
	return f.body.Bytes(), nil
}

// fileOf is the file of an hour, named by what comes first.
func fileOf[T any](s *files, at time.Time, name string) *parquet.GenericWriter[T] {
	at = at.UTC()
	hour := at.Truncate(time.Hour)
	for _, f := range s.all {
		if f.hour.Equal(hour) {
			return f.writer.(*parquet.GenericWriter[T])
		}
	}
	body := new(bytes.Buffer)
	w := parquet.NewGenericWriter[T](body, parquet.Compression(s.compression), parquet.MaxRowsPerRowGroup(maxRows), parquet.CreatedBy("heapstream", "", ""))
	key := fmt.Sprintf("date=%s/hour=%02d/%s-%s.parquet", hour.Format(time.DateOnly), hour.Hour(), at.Format("20060102T150405Z"), name)
	s.all = append(s.all, &file{hour: hour, key: key, body: body, writer: w})
	return w
}

// token makes a name fit a key.
func token(name string) string { return bus.EncodeToken(name) }

// sample is a row of rollups.
type sample struct {
	Time       int64   `parquet:"time,timestamp(millisecond),delta"`
	Cluster    string  `parquet:"cluster,dict"`
	Metric     string  `parquet:"metric,dict"`
	Value      float64 `parquet:"value"`
	ValueInt64 *int64  `parquet:"value_int64,optional"`
	Counter    bool    `parquet:"counter"`

	Type               string `parquet:"type,optional,dict"`
	Nodename           string `parquet:"nodename,optional,dict"`
	Hostname           string `parquet:"hostname,optional,dict"`
	HostID             string `parquet:"host_id,optional,dict"`
	NamespaceName      string `parquet:"namespace_name,optional,dict"`
	NamespaceID        string `parquet:"namespace_id,optional,dict"`
	PodName            string `parquet:"pod_name,optional,dict"`
	PodID              string `parquet:"pod_id,optional,dict"`
	ContainerName      string `parquet:"container_name,optional,dict"`
	ContainerBaseImage string `parquet:"container_base_image,optional,dict"`
	WorkloadKind       string `parquet:"workload_kind,optional,dict"`
	WorkloadName       string `parquet:"workload_name,optional,dict"`
	Labels             string `parquet:"labels,optional,dict"`
	ResourceID         string `parquet:"resource_id,optional,dict"`
	Interface          string `parquet:"interface,optional,dict"`
	Claim              string `parquet:"persistentvolumeclaim,optional,dict"`
	Make               string `parquet:"make,optional,dict"`
	Model              string `parquet:"model,optional,dict"`
	AcceleratorID      string `parquet:"accelerator_id,optional,dict"`
	Other              string `parquet:"other,optional,dict"` // labels without a column, as JSON
}

// set fills the column of a label; false where there is none.
func (s *sample) set(l proto.Label) bool {
	switch l.Key {
	case proto.LabelType:
		s.Type = l.Value
	case proto.LabelNodename:
		s.Nodename = l.Value
	case proto.LabelHostname:
		s.Hostname = l.Value
	case proto.LabelHostID:
		s.HostID = l.Value
	case proto.LabelNamespaceName:
		s.NamespaceName = l.Value
	case proto.LabelNamespaceID:
		s.NamespaceID = l.Value
	case proto.LabelPodName:
		s.PodName = l.Value
	case proto.LabelPodID:
		s.PodID = l.Value
	case proto.LabelContainerName:
		s.ContainerName = l.Value
	case proto.LabelContainerBaseImage:
		s.ContainerBaseImage = l.Value
	case proto.LabelWorkloadKind:
		s.WorkloadKind = l.Value
	case proto.LabelWorkloadName:
		s.WorkloadName = l.Value
	case proto.LabelLabels:
		s.Labels = l.Value
	case proto.LabelResourceID:
		s.ResourceID = l.Value
	case proto.LabelInterface:
		s.Interface = l.Value
	case proto.LabelClaim:
		s.Claim = l.Value
	case proto.LabelMake:
		s.Make = l.Value
	case proto.LabelModel:
		s.Model = l.Value
	case proto.LabelAcceleratorID:
		s.AcceleratorID = l.Value
	default:
		return false
	}
	return true
}

// setAll fills the columns of labels.
func (s *sample) setAll(labels []proto.Label) {
	var other []proto.Label
	for _, l := range labels {
		if !s.set(l) {
			other = append(other, l)
		}
	}
	if len(other) > 0 {
		s.Other = string(sink.AppendJSONLabels(nil, other))
	}
}

// samples makes rows of rollups.
type samples struct {
	view    sink.View
	cluster string
	rows    []sample
	ints    []int64 // that rows point to
	labels  []proto.Label
}

// atOnce is how many rows are handed over together.
const atOnce = 1024

func newSamples(view sink.View, cluster string) *samples {
	return &samples{view: view, cluster: cluster, rows: make([]sample, 0, atOnce), ints: make([]int64, atOnce)}
}

// append adds a rollup's rows.
func (s *samples) append(to *files, m *sink.Message) (err error) {
	r := m.Rollup
	var w *parquet.GenericWriter[sample]
	flush := func() {
		if w == nil { // the first rows name the file, and a rollup without rows makes none
			name := "cluster"
			switch r.Scope {
			case proto.ScopeNode:
				name = "node-" + token(r.Name)
			case proto.ScopeNamespace:
				name = "ns-" + token(r.Name)
			}
			w = fileOf[sample](to, r.Tick.Time(), name)
		}
		if _, werr := w.Write(s.rows); err == nil {
			err = werr
		}
		s.rows = s.rows[:0]
	}
	at := r.Tick.Time().UnixMilli()
	for entity := range s.view.Entities(r) {
		base := sample{Time: at, Cluster: s.cluster}
		base.setAll(entity.Labels)
		row, device := base, (*proto.Device)(nil)
		for v := range entity.Samples {
			if v.Device != device {
				if row, device = base, v.Device; device != nil {
					s.labels = s.view.AppendDeviceLabels(s.labels[:0], device)
					row.setAll(s.labels)
				}
			}
			row.Metric, row.Value, row.Counter, row.ValueInt64 = v.Name, v.Value.Float64(), v.Counter, nil
			if !v.Value.IsFloat() {
				n := &s.ints[len(s.rows)]
				*n, row.ValueInt64 = v.Value.Int64(), n
			}
			if s.rows = append(s.rows, row); len(s.rows) == atOnce {
				flush()
			}
		}
	}
	if len(s.rows) > 0 {
		flush()
	}
	return err
}

// event is a row of events.
type event struct {
	Time            int64  `parquet:"time,timestamp(millisecond),delta"`
	Cluster         string `parquet:"cluster,dict"`
	Namespace       string `parquet:"namespace,dict"`
	Name            string `parquet:"name"`
	UID             string `parquet:"uid"`
	Version         int64  `parquet:"version"`
	Kind            string `parquet:"object_kind,dict"`
	ObjectNamespace string `parquet:"object_namespace,dict"`
	ObjectName      string `parquet:"object_name,dict"`
	ObjectUID       string `parquet:"object_uid,dict"`
	Reason          string `parquet:"reason,dict"`
	Message         string `parquet:"message"`
	Type            string `parquet:"type,dict"`
	Count           int64  `parquet:"count"`
	Component       string `parquet:"component,dict"`
	Host            string `parquet:"host,dict"`
	Event           string `parquet:"event,json"`
}

// appendEvent adds an event's row.
func appendEvent(to *files, cluster string, e *proto.Event) error {
	whole, err := json.Marshal(sink.NewEventJSON(e))
	if err != nil {
		return err
	}
	at := e.Time()
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	component, host := e.Component, e.Host
	if component == "" {
		component, host = e.ReportingComponent, e.ReportingInstance
	}
	w := fileOf[event](to, at, fmt.Sprintf("event-%s-%d", token(e.UID), e.Version))
	_, err = w.Write([]event{{
		Time: at.UnixMilli(), Cluster: cluster, Namespace: e.Namespace, Name: e.Name, UID: e.UID, Version: int64(e.Version), //nolint:gosec // versions are positive and far below
		Kind: e.Involved.Kind, ObjectNamespace: e.Involved.Namespace, ObjectName: e.Involved.Name, ObjectUID: e.Involved.UID,
		Reason: e.Reason, Message: e.Message, Type: e.Type, Count: int64(e.Times()), Component: component, Host: host, Event: string(whole),
	}})
	return err
}
