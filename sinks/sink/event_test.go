package sink

import (
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

func TestEventsLookAsInKubernetes(t *testing.T) {
	at := time.Date(2018, 1, 2, 2, 24, 5, 123456789, time.UTC).UnixNano()
	check := func(e proto.Event, want string) {
		t.Helper()
		if got := string(NewEventJSON(&e).Indented()); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	check(proto.Event{}, `{
 "metadata": {
  "creationTimestamp": null
 },
 "involvedObject": {},
 "source": {},
 "firstTimestamp": null,
 "lastTimestamp": null,
 "eventTime": null,
 "reportingComponent": "",
 "reportingInstance": ""
}`)
	check(proto.Event{
		Cluster: "c", UID: "u", Version: 7, Namespace: "ns", Name: "n", Created: at,
		Labels: []proto.Label{{Key: "b", Value: "2"}, {Key: "a", Value: "<1>"}}, Annotations: []proto.Label{{Key: "k", Value: "v"}},
		Involved: proto.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "web", UID: "p", APIVersion: "v1", ResourceVersion: "6", FieldPath: "f"},
		Related:  proto.ObjectReference{Kind: "Node", Name: "n1"},
		Reason:   "R", Message: "M", Type: "Normal", Action: "A", Component: "kubelet", Host: "n1", First: at, Last: at, Count: 2, EventTime: at,
		Series: proto.EventSeries{Count: 3, LastObserved: at}, ReportingComponent: "rc", ReportingInstance: "ri",
	}, `{
 "metadata": {
  "name": "n",
  "namespace": "ns",
  "uid": "u",
  "resourceVersion": "7",
  "creationTimestamp": "2018-01-02T02:24:05Z",
  "labels": {
   "a": "\u003c1\u003e",
   "b": "2"
  },
  "annotations": {
   "k": "v"
  }
 },
 "involvedObject": {
  "kind": "Pod",
  "namespace": "ns",
  "name": "web",
  "uid": "p",
  "apiVersion": "v1",
  "resourceVersion": "6",
  "fieldPath": "f"
 },
 "reason": "R",
 "message": "M",
 "source": {
  "component": "kubelet",
  "host": "n1"
 },
 "firstTimestamp": "2018-01-02T02:24:05Z",
 "lastTimestamp": "2018-01-02T02:24:05Z",
 "count": 2,
 "type": "Normal",
 "eventTime": "2018-01-02T02:24:05.123456Z",
 "series": {
  "count": 3,
  "lastObservedTime": "2018-01-02T02:24:05.123456Z"
 },
 "action": "A",
 "related": {
  "kind": "Node",
  "name": "n1"
 },
 "reportingComponent": "rc",
 "reportingInstance": "ri"
}`)
}
