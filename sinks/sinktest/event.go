package sinktest

import (
	"log/slog"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Event is the event that goldens of sinks of events are made of: a container of pod default/web-1 was killed.
func Event() *proto.Event {
	at := time.Date(2018, 1, 2, 2, 24, 5, 0, time.UTC).UnixNano()
	return &proto.Event{
		Cluster: "c", UID: "ev-uid", Version: 124, Namespace: "default", Name: "web-1.150", Created: at,
		Involved: proto.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web-1", UID: "pod-uid", APIVersion: "v1", ResourceVersion: "123", FieldPath: "spec.containers{web}"},
		Reason:   "Killing", Message: "Killing container", Type: "Normal", Component: "kubelet", Host: "n1", First: at, Last: at, Count: 1,
	}
}

// NewStyleEvent is one of events.k8s.io of a node, which has neither lastTimestamp nor count nor source.
func NewStyleEvent() *proto.Event {
	at := time.Date(2018, 1, 2, 2, 25, 0, 123456000, time.UTC).UnixNano()
	return &proto.Event{
		Cluster: "c", UID: "new-uid", Version: 125, Namespace: "default", Name: "n1.151", Created: at,
		Involved: proto.ObjectReference{Kind: "Node", Name: "n1"}, Reason: "Rebooted", Message: "a \"quoted\" \\ line\nand another", Type: "Warning",
		EventTime: at, ReportingComponent: "kubelet", ReportingInstance: "n1",
		Series: proto.EventSeries{Count: 3, LastObserved: at + int64(time.Minute)},
	}
}

// EventMessages are events as the worker hands them to a sink.
func EventMessages(events ...*proto.Event) (batch []sink.Message) {
	for _, e := range events {
		batch = append(batch, sink.Message{Event: e, ID: e.Cluster + "/event/" + e.ID()})
	}
	return batch
}

// NewEvents builds a sink of events, of cluster c.
func NewEvents[S sink.Sink](tb testing.TB, k sink.Kind, target string) S {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := k.NewEvents(t, sink.Deps{Cluster: "c", Labels: proto.DefaultLabelFormat(), Timeout: 2 * time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s.(S)
}
