package otlp

import (
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// appendResource appends the attributes of a row as fields of a Resource, the cluster's left out.
func (e *encoder) appendResource(b []byte, r *proto.Rollup, row int) []byte {
	e.merged = proto.OTel.AppendEntityLabels(e.merged[:0], &r.Table, row)
	for _, l := range e.merged {
		if l.Key == proto.OTelImage {
			b = appendImage(b, l.Value)
			continue
		}
		b = appendAttribute(b, 1, l.Key, l.Value)
	}
	switch ent := &r.Entities[row]; ent.Kind {
	case proto.KindNamespace:
		b = e.appendLabels(b, "k8s.namespace.label.", ent.Labels)
	case proto.KindNode:
		b = e.appendLabels(b, "k8s.node.label.", ent.Labels)
	case proto.KindPod:
		b = e.appendLabels(b, "k8s.pod.label.", ent.Labels)
	case proto.KindContainer:
		b = e.appendLabels(b, "k8s.pod.label.", r.Entities[ent.Parent].Labels)
	}
	return b
}

// appendImage takes an image apart: container.image.name, and container.image.tags where it has one.
func appendImage(b []byte, image string) []byte {
	name, _, _ := strings.Cut(image, "@") // a digest
	tag := ""
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	b = appendAttribute(b, 1, proto.OTelImage, name)
	if tag != "" {
		b = appendListAttribute(b, 1, "container.image.tags", tag)
	}
	return b
}

// appendLabels appends Kubernetes labels: those that are stored under a name of their own, and where it is asked for
// all that are not ignored.
func (e *encoder) appendLabels(b []byte, prefix string, labels []proto.Label) []byte {
	for _, l := range labels {
		if name, ok := e.view.Labels.Store[l.Key]; ok && !slices.ContainsFunc(e.merged, func(m proto.Label) bool { return m.Key == name }) {
			b = appendAttribute(b, 1, name, l.Value)
		}
		if e.labels && !slices.Contains(e.view.Labels.Ignore, l.Key) {
			b = appendAttribute(b, 1, prefix+l.Key, l.Value)
		}
	}
	return b
}
