package events

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heapstream/heapstream/proto"
)

// maxUID bounds what identifies an event; the API server's have 36 bytes.
const maxUID = 253

// convert fills ev with an event as the API server told it; Cluster and Position stay.
func convert(o *corev1.Event, ev *proto.Event) error {
	version, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return err
	}
	if o.UID == "" || len(o.UID) > maxUID {
		return fmt.Errorf("event %.100q of namespace %.100q has a UID of %d bytes", o.Name, o.Namespace, len(o.UID))
	}
	*ev = proto.Event{
		Cluster: ev.Cluster, Position: ev.Position, UID: string(o.UID), Version: version,
		Namespace: o.Namespace, Name: o.Name, Created: nanos(o.CreationTimestamp.Time),
		Labels: labels(o.Labels), Annotations: labels(o.Annotations),
		Involved: reference(&o.InvolvedObject), Reason: o.Reason, Message: o.Message, Type: o.Type, Action: o.Action,
		Component: o.Source.Component, Host: o.Source.Host,
		First: nanos(o.FirstTimestamp.Time), Last: nanos(o.LastTimestamp.Time), Count: max(0, o.Count), EventTime: nanos(o.EventTime.Time),
		ReportingComponent: o.ReportingController, ReportingInstance: o.ReportingInstance,
	}
	if o.Related != nil {
		ev.Related = reference(o.Related)
	}
	if s := o.Series; s != nil {
		ev.Series = proto.EventSeries{Count: max(0, s.Count), LastObserved: nanos(s.LastObservedTime.Time)}
	}
	return nil
}

// times is how often an event was seen.
func times(o *corev1.Event) int32 {
	n := max(o.Count, 1)
	if o.Series != nil {
		n = max(n, o.Series.Count)
	}
	return n
}

func reference(o *corev1.ObjectReference) proto.ObjectReference {
	return proto.ObjectReference{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, UID: string(o.UID), APIVersion: o.APIVersion,
		ResourceVersion: o.ResourceVersion, FieldPath: o.FieldPath}
}

func labels(m map[string]string) []proto.Label {
	if len(m) == 0 {
		return nil
	}
	all := make([]proto.Label, 0, len(m))
	for k, v := range m {
		all = append(all, proto.Label{Key: k, Value: v})
	}
	slices.SortFunc(all, func(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

// The range of Unix nanoseconds.
var (
	earliest = time.Unix(0, math.MinInt64)
	latest   = time.Unix(0, math.MaxInt64)
)

// nanos is 0 for a time that is none, or beyond what can be told.
func nanos(t time.Time) int64 {
	if t.IsZero() || t.Before(earliest) || t.After(latest) {
		return 0
	}
	return t.UnixNano()
}
