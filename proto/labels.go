package proto

import (
	"slices"
	"strings"
)

// Label keys as Heapster spells them (spec: metrics §9), and ours.
const (
	LabelType               = "type"
	LabelNodename           = "nodename"
	LabelHostname           = "hostname"
	LabelHostID             = "host_id"
	LabelPodID              = "pod_id"
	LabelPodName            = "pod_name"
	LabelNamespaceName      = "namespace_name"
	LabelNamespaceID        = "namespace_id"
	LabelContainerName      = "container_name"
	LabelContainerBaseImage = "container_base_image"
	LabelLabels             = "labels"
	LabelSchedulable        = "schedulable"
	LabelResourceID         = "resource_id"
	LabelMake               = "make"
	LabelModel              = "model"
	LabelAcceleratorID      = "accelerator_id"
	LabelClusterName        = "cluster_name"

	LabelInterface    = "interface"             // ours: name of a network interface
	LabelClaim        = "persistentvolumeclaim" // ours: claim behind a volume
	LabelWorkloadKind = "workload_kind"         // ours
	LabelWorkloadName = "workload_name"         // ours
)

// LabelFormat says how Kubernetes labels become metric labels where they leave the system. It is
// applied by the gateway and the sinks; messages carry labels raw. The zero LabelFormat joins with
// "" and is rarely meant: start from DefaultLabelFormat.
type LabelFormat struct {
	Separator string            // joins key:value pairs in the label `labels`
	Ignore    []string          // keys left out of `labels`
	Store     map[string]string // Kubernetes label key -> metric label it is also stored under
}

// DefaultLabelFormat is Heapster's: joined by comma, nothing ignored, nothing stored.
func DefaultLabelFormat() LabelFormat { return LabelFormat{Separator: ","} }

// Join makes the value of the label `labels`: sorted key:value pairs joined by the separator.
func (f *LabelFormat) Join(labels []Label) string {
	if len(labels) == 0 {
		return ""
	}
	var b strings.Builder
	for _, l := range labels {
		if slices.Contains(f.Ignore, l.Key) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(f.Separator)
		}
		b.WriteString(l.Key)
		b.WriteByte(':')
		b.WriteString(l.Value)
	}
	return b.String()
}

// AppendEntityLabels appends Heapster's label set of one row to dst, sorted by key: what its
// metric sets carried after all processors (spec: metrics §9). Values may be empty where Heapster
// wrote empty ones (host_id, labels). The device labels of labelled series are not included.
func (f *LabelFormat) AppendEntityLabels(dst []Label, t *Table, row int) []Label {
	from := len(dst)
	e := &t.Entities[row]
	add := func(key, value string) { dst = append(dst, Label{key, value}) }
	store := func(labels []Label) {
		for _, l := range labels {
			if name, ok := f.Store[l.Key]; ok {
				add(name, l.Value)
			}
		}
	}
	node := t.nodeOf(row)
	add(LabelType, e.Kind.String())
	switch e.Kind {
	case KindNamespace:
		add(LabelNamespaceName, e.Name)
		add(LabelNamespaceID, e.UID)
	case KindWorkload:
		add(LabelNamespaceName, e.Namespace)
		add(LabelWorkloadKind, e.Owner.Kind)
		add(LabelWorkloadName, e.Name)
	case KindNode:
		add(LabelLabels, f.Join(e.Labels))
		store(e.Labels)
		if e.Flags&FlagSchedulable != 0 {
			if e.Flags&FlagUnschedulable != 0 {
				add(LabelSchedulable, "false")
			} else {
				add(LabelSchedulable, "true")
			}
		}
	case KindSystemContainer:
		add(LabelContainerName, e.Name)
	case KindPod, KindContainer:
		pod := e
		if e.Kind == KindContainer {
			add(LabelContainerName, e.Name)
			add(LabelContainerBaseImage, e.Image)
			pod = &t.Entities[e.Parent]
		}
		add(LabelPodName, pod.Name)
		add(LabelPodID, pod.UID)
		add(LabelNamespaceName, pod.Namespace)
		if uid, ok := t.namespaceUID(pod.Namespace); ok {
			add(LabelNamespaceID, uid)
		}
		if pod.Flags&FlagNotInAPI == 0 {
			add(LabelLabels, f.Join(pod.Labels))
			store(pod.Labels)
		}
	}
	if node != nil {
		add(LabelNodename, node.Name)
		add(LabelHostname, node.Hostname)
		add(LabelHostID, node.HostID)
	}
	slices.SortStableFunc(dst[from:], func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	set := slices.CompactFunc(dst[from:], func(a, b Label) bool { return a.Key == b.Key })
	return dst[:from+len(set)]
}

// AppendKey appends Heapster's key of a row: `namespace:<ns>/pod:<pod>/container:<c>` and so on.
func AppendKey(dst []byte, t *Table, row int) []byte {
	e := &t.Entities[row]
	switch e.Kind {
	case KindCluster:
		return append(dst, "cluster"...)
	case KindNamespace:
		return append(append(dst, "namespace:"...), e.Name...)
	case KindNode:
		return append(append(dst, "node:"...), e.Name...)
	case KindWorkload:
		dst = append(append(dst, "namespace:"...), e.Namespace...)
		dst = append(append(dst, "/workload:"...), e.Owner.Kind...)
		return append(append(dst, '/'), e.Name...)
	case KindPod:
		dst = append(append(dst, "namespace:"...), e.Namespace...)
		return append(append(dst, "/pod:"...), e.Name...)
	}
	if e.Parent >= 0 {
		dst = AppendKey(dst, t, int(e.Parent))
	}
	return append(append(dst, "/container:"...), e.Name...)
}
