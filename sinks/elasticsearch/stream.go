package elasticsearch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// streamEncoder writes rollups, and events, as documents of a data stream, flat, under the names of OpenTelemetry.
// Samples of an entity that have the same attributes are one document; a value that an application made up is one by
// itself, so that one whose name does not fit takes no other with it.
type streamEncoder struct {
	view    sink.View
	names   *sink.Names
	stream  string
	cluster []byte // the field k8s.cluster.name
	docs    *docs

	at      []byte // the field @timestamp
	entity  []byte // fields of the present entity
	device  []byte // fields of its present device
	merged  []proto.Label
	points  []streamPoint
	devices []byte // fields of all of the entity's devices
	key     []byte
}

// streamPoint is a sample on its way.
type streamPoint struct {
	sink.Named     // without a Naming: went out with an earlier one
	from, to   int // of its device's fields in devices
}

func newStreamEncoder(view sink.View, stream, cluster string, docs *docs) *streamEncoder {
	e := &streamEncoder{view: view, names: sink.NewNames(proto.OTel), stream: stream, docs: docs}
	e.cluster = appendField(nil, proto.OTelCluster, cluster)
	e.view.Skip = func(m *proto.Metric) bool { return proto.OTel.Without(m.ID) != "" }
	return e
}

// appendField appends ,"key":"value".
func appendField(b []byte, key, value string) []byte {
	b = append(sink.AppendJSONString(append(b, ','), key), ':')
	return sink.AppendJSONString(b, value)
}

func appendFields(b []byte, labels []proto.Label) []byte {
	for _, l := range labels {
		b = appendField(b, l.Key, l.Value)
	}
	return b
}

// encode appends the documents of one rollup, which is message i of its batch.
func (e *streamEncoder) encode(r *proto.Rollup, i int) {
	e.at = append(e.at[:0], `{"@timestamp":"`...)
	e.at = append(r.Tick.Time().UTC().AppendFormat(e.at, time.RFC3339Nano), '"')
	for entity := range e.view.Entities(r) {
		e.merged = proto.OTel.AppendEntityLabels(e.merged[:0], &r.Table, entity.Row)
		e.entity = appendFields(append(e.entity[:0], e.cluster...), e.merged)
		e.entity = e.appendStored(e.entity, r, entity.Row)
		e.points, e.devices = e.points[:0], e.devices[:0]
		var device *proto.Device
		from := 0
		for s := range entity.Samples {
			if s.Device != device {
				device, from = s.Device, len(e.devices)
				if device != nil {
					e.merged = proto.OTel.AppendDeviceLabels(e.merged[:0], device)
					e.devices = appendFields(e.devices, e.merged)
				}
			}
			named, ok := e.names.Of(entity, s)
			if !ok {
				continue
			}
			p := streamPoint{Named: named}
			if device != nil {
				p.from, p.to = from, len(e.devices)
			}
			e.points = append(e.points, p)
		}
		e.flush(r, i)
	}
}

// appendStored appends the Kubernetes labels that are stored under names of their own.
func (e *streamEncoder) appendStored(b []byte, r *proto.Rollup, row int) []byte {
	if len(e.view.Labels.Store) == 0 {
		return b
	}
	ent := &r.Entities[row]
	if ent.Kind == proto.KindContainer {
		ent = &r.Entities[ent.Parent]
	}
	for _, l := range ent.Labels {
		if name, ok := e.view.Labels.Store[l.Key]; ok {
			b = appendField(b, name, l.Value)
		}
	}
	return b
}

// flush makes documents of the present points: those of a device and with the same attributes are one.
func (e *streamEncoder) flush(r *proto.Rollup, message int) {
	together := func(a, b *streamPoint) bool {
		return a.from == b.from && a.to == b.to && a.Naming.Metric != nil && b.Naming.Metric != nil && slices.Equal(a.Naming.Attributes, b.Naming.Attributes)
	}
	for i := 0; i < len(e.points); i++ {
		first := &e.points[i]
		if first.Naming == nil {
			continue
		}
		e.device = appendFields(append(e.device[:0], e.devices[first.from:first.to]...), first.Naming.Attributes)
		one := ""
		if first.Naming.Metric == nil {
			one = first.Name
		}
		d := e.begin(e.id(r.Cluster, int64(r.Tick), one), message)
		b := append(append(e.docs.text, e.at...), e.entity...)
		b = append(b, e.device...)
		for j := i; j < len(e.points); j++ {
			p := &e.points[j]
			if p.Naming == nil || j > i && !together(first, p) {
				continue
			}
			b = append(sink.AppendJSONString(append(b, ','), p.Name), ':')
			if p.Naming.Float {
				b = sink.AppendJSONNumber(b, proto.Float(p.Value))
			} else {
				b = sink.AppendJSONNumber(b, proto.Int(int64(p.Value)))
			}
			d.samples++
			if j > i {
				p.Naming = nil
			}
		}
		e.docs.text = append(b, "}\n"...)
		e.end(d)
	}
}

// id stands for cluster, time, the entity, its device with attributes, and a name.
func (e *streamEncoder) id(cluster string, at int64, name string) [15]byte {
	e.key = append(append(e.key[:0], cluster...), 0)
	e.key = append(strconv.AppendInt(e.key, at, 10), 0)
	e.key = append(append(e.key, e.entity...), 0)
	e.key = append(append(e.key, e.device...), 0)
	e.key = append(e.key, name...)
	sum := sha256.Sum256(e.key)
	return [15]byte(sum[:])
}

// begin appends the action before a document: create, which is all that a data stream takes.
func (e *streamEncoder) begin(id [15]byte, message int) doc {
	d := doc{from: len(e.docs.text), message: message, index: e.stream}
	b := append(e.docs.text, `{"create":{"_id":"`...)
	b = base64.RawURLEncoding.AppendEncode(b, id[:])
	b = append(b, `","_index":`...)
	e.docs.text = append(sink.AppendJSONString(b, e.stream), "}}\n"...)
	return d
}

func (e *streamEncoder) end(d doc) {
	d.to = len(e.docs.text)
	e.docs.all = append(e.docs.all, d)
}

// event appends the document of one event, which is message i of its batch. Fields are named as in OpenTelemetry logs of
// Kubernetes events.
func (e *streamEncoder) event(ev *proto.Event, i int) {
	key := append(append(e.key[:0], ev.Cluster...), 0)
	key = append(append(append(key, eventsName...), 0), ev.UID...)
	e.key = strconv.AppendUint(append(key, 0), ev.Version, 10)
	sum := sha256.Sum256(e.key)
	d := e.begin([15]byte(sum[:]), i)
	d.samples = 1
	at := ev.Time()
	if at.IsZero() {
		at = time.Unix(0, 0).UTC() // a data stream wants a time
	}
	b := append(e.docs.text, `{"@timestamp":"`...)
	b = append(at.AppendFormat(b, time.RFC3339Nano), '"')
	b = append(b, e.cluster...)
	add := func(key, value string) {
		if value != "" {
			b = appendField(b, key, value)
		}
	}
	o := &ev.Involved
	node := ev.Host
	if o.Kind == "Node" {
		node = o.Name
	}
	add(proto.OTelNode, node)
	add(proto.OTelNamespace, ev.Namespace)
	if o.Kind == "Pod" {
		add(proto.OTelPod, o.Name)
		add(proto.OTelPodUID, o.UID)
	}
	add("k8s.object.kind", o.Kind)
	add("k8s.object.name", o.Name)
	add("k8s.object.uid", o.UID)
	add("k8s.object.fieldpath", o.FieldPath)
	add("k8s.object.api_version", o.APIVersion)
	add("k8s.object.resource_version", o.ResourceVersion)
	add("k8s.event.reason", ev.Reason)
	add("k8s.event.action", ev.Action)
	add("k8s.event.name", ev.Name)
	add("k8s.event.uid", ev.UID)
	add("k8s.event.source", ev.Component)
	add("k8s.event.reporting_controller", ev.ReportingComponent)
	add("k8s.event.reporting_instance", ev.ReportingInstance)
	if first := ev.FirstTime(); !first.IsZero() {
		add("k8s.event.start_time", first.Format(time.RFC3339Nano))
	}
	b = strconv.AppendInt(append(b, `,"k8s.event.count":`...), int64(ev.Times()), 10)
	add("severity_text", ev.Type)
	b = appendField(b, "message", ev.Message)
	e.docs.text = append(b, "}\n"...)
	e.end(d)
}

// ensureStream makes the data stream be there, with a template of ours where it has none. It asks once; a user that may
// not is told of in the log, and the stream is left to a template that somebody else made.
func (s *elastic) ensureStream(ctx context.Context, stream string) error {
	if s.ensured[stream] {
		return nil
	}
	err := s.createStream(ctx, stream)
	if f, ok := err.(*forbidden); ok {
		s.log.Info("data stream or its template cannot be created by this user, writing to it as it is", "index", stream, "err", f.error)
		err = nil
	}
	if err == nil {
		s.ensured[stream] = true
	}
	return err
}

func (s *elastic) createStream(ctx context.Context, stream string) error {
	path := "/_data_stream/" + url.PathEscape(stream)
	found, err := s.there(ctx, path, "data stream "+stream)
	if err != nil || found {
		return err
	}
	template := "/_index_template/" + url.PathEscape(stream)
	found, err = s.there(ctx, template, "index template "+stream)
	if err != nil {
		return err
	}
	if !found {
		body, err := json.Marshal(streamTemplate(stream))
		if err != nil {
			return fmt.Errorf("make template of data stream %q: %w", stream, err)
		}
		if err := s.put(ctx, template, body, "index template "+stream); err != nil {
			return err
		}
	}
	return s.put(ctx, path, nil, "data stream "+stream)
}

// there reports whether something is there.
func (s *elastic) there(ctx context.Context, path, what string) (bool, error) {
	a, err := s.do(ctx, http.MethodGet, path, nil)
	switch {
	case err != nil:
		return false, err
	case a.OK() && !json.Valid(a.Body):
		return false, s.client.Nonsense("look for "+what+" in", a)
	case a.OK():
		return true, nil
	case a.Code == http.StatusNotFound && json.Valid(bytes.TrimSpace(a.Body)):
		return false, nil
	case a.Code == http.StatusForbidden:
		return false, &forbidden{s.failure("look for "+what+" in", a)}
	}
	return false, s.failure("look for "+what+" in", a)
}

// put makes something; that another was faster is as good.
func (s *elastic) put(ctx context.Context, path string, body []byte, what string) error {
	a, err := s.do(ctx, http.MethodPut, path, body)
	switch {
	case err != nil:
		return err
	case a.OK() && acknowledged(a.Body), strings.Contains(errorOf(a.Body), "already_exists"):
		return nil
	case a.OK():
		return s.client.Nonsense("create "+what+" in", a)
	case a.Code == http.StatusForbidden:
		return &forbidden{s.failure("create "+what+" in", a)}
	}
	return s.failure("create "+what+" in", a)
}

// streamTemplate is the body of a template's creation. It says nothing of shards, copies and how long is kept: that is the
// operator's, and a serverless Elasticsearch refuses it. Metrics have their types from the first document on, since
// one that comes without a fraction first would make the field one of integers.
func streamTemplate(stream string) object {
	properties := object{
		"@timestamp": object{"type": "date"}, "message": object{"type": "text"}, "k8s.event.start_time": object{"type": "date"}, "k8s.event.count": object{"type": "long"},
	}
	for _, n := range proto.OTel.Namings() {
		kind := "long"
		if n.Float {
			kind = "double"
		}
		properties[n.Name] = object{"type": kind}
	}
	return object{
		"index_patterns": []string{stream}, "data_stream": object{}, "priority": 500,
		"_meta": object{"description": "Kubernetes metrics and events written by heapstream", "managed_by": "heapstream"},
		"template": object{"mappings": object{
			"properties": properties,
			"dynamic_templates": []object{
				{"texts": object{"match_mapping_type": "string", "mapping": object{"type": "keyword", "ignore_above": 1024}}},
				{"numbers": object{"match_mapping_type": "long", "mapping": object{"type": "double"}}},
			},
			"date_detection": false,
		}},
	}
}
