package otlp

import (
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/proto"
)

// Severity numbers of a log record.
const (
	severityInfo = 9
	severityWarn = 13
)

// recordAttributes is the field of a LogRecord for its attributes.
const recordAttributes protowire.Number = 6

// eventEncoder writes events as blocks of an ExportLogsServiceRequest: a ResourceLogs for each, since it is about an object
// of its own.
type eventEncoder struct {
	labels  bool // labels and annotations of the event are attributes, too
	out     *blocks
	cluster []byte
	scope   []byte
}

func newEventEncoder(cluster, version string, out *blocks) *eventEncoder {
	b, at := open(nil, 1)
	return &eventEncoder{out: out, cluster: appendAttribute(nil, 1, proto.OTelCluster, cluster), scope: shut(appendText(appendText(b, 1, scope), 2, version), at)}
}

// encode appends the block of one event, which is message i of its batch. Attributes are named as the Collector's
// receiver of Kubernetes events names them.
func (e *eventEncoder) encode(ev *proto.Event, i int) {
	one := block{from: len(e.out.text), message: i, samples: 1}
	b, whole := open(e.out.text, 1)
	b, resource := open(b, 1)
	b = append(b, e.cluster...)
	text := func(field protowire.Number, key, value string) {
		if value != "" {
			b = appendAttribute(b, field, key, value)
		}
	}
	node := ev.Host
	if ev.Involved.Kind == "Node" {
		node = ev.Involved.Name
	}
	text(1, proto.OTelNode, node)
	text(1, proto.OTelNamespace, ev.Namespace)
	o := &ev.Involved
	text(1, "k8s.object.kind", o.Kind)
	text(1, "k8s.object.name", o.Name)
	text(1, "k8s.object.uid", o.UID)
	text(1, "k8s.object.fieldpath", o.FieldPath)
	text(1, "k8s.object.api_version", o.APIVersion)
	text(1, "k8s.object.resource_version", o.ResourceVersion)
	if kind := strings.ToLower(o.Kind); kind != "" && kind != "node" && kind != "namespace" {
		text(1, "k8s."+kind+".name", o.Name)
		text(1, "k8s."+kind+".uid", o.UID)
	}
	b = shut(b, resource)
	b, scoped := open(b, 2)
	b = append(b, e.scope...)
	b, record := open(b, 2)
	at := uint64(max(0, ev.Time().UnixNano())) //nolint:gosec // not negative
	b = appendFixed(b, 1, at)
	b = appendFixed(b, 11, at) // our own time would differ at each delivery
	switch ev.Type {
	case "Warning":
		b = appendNumber(b, 2, severityWarn)
	case "Normal":
		b = appendNumber(b, 2, severityInfo)
	}
	b = appendText(b, 3, ev.Type)
	b, body := open(b, 5)
	b = shut(appendText(b, 1, ev.Message), body)
	text(recordAttributes, "log.record.uid", ev.ID())
	text(recordAttributes, "k8s.event.reason", ev.Reason)
	text(recordAttributes, "k8s.event.action", ev.Action)
	text(recordAttributes, "k8s.event.name", ev.Name)
	text(recordAttributes, "k8s.event.uid", ev.UID)
	text(recordAttributes, "k8s.event.source", ev.Component)
	text(recordAttributes, "k8s.event.reporting_controller", ev.ReportingComponent)
	text(recordAttributes, "k8s.event.reporting_instance", ev.ReportingInstance)
	if first := ev.FirstTime(); !first.IsZero() {
		text(recordAttributes, "k8s.event.start_time", first.Format(time.RFC3339Nano))
	}
	b = appendIntAttribute(b, recordAttributes, "k8s.event.count", int64(ev.Times()))
	if e.labels {
		for _, l := range ev.Labels {
			text(recordAttributes, "k8s.event.label."+l.Key, l.Value)
		}
		for _, l := range ev.Annotations {
			text(recordAttributes, "k8s.event.annotation."+l.Key, l.Value)
		}
	}
	b = appendText(b, 12, "k8s.event")
	e.out.text = shut(shut(shut(b, record), scoped), whole)
	one.to = len(e.out.text)
	e.out.all = append(e.out.all, one)
}
