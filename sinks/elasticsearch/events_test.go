package elasticsearch

import (
	"errors"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestEventsAreEventers: field by field, but for ids, and for events of events.k8s.io, which eventer put into year 1.
func TestEventsAreEventers(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		s := sinktest.NewEvents[*elastic](t, Kind, target)
		for i, m := range sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent()) {
			s.encode(&m, i)
		}
		var got []string
		for i := range s.enc.docs.all {
			action, source, _ := strings.Cut(string(s.enc.docs.bytes(i)), "\n")
			got = append(got, action[strings.Index(action, `"_index"`):], strings.TrimSuffix(source, "\n"))
		}
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
			t.Errorf("%s: got\n%s\nwant\n%s", target, g, w)
		}
	}
	const killed = `{"Count":1,"Metadata":{"name":"web-1.150","namespace":"default","uid":"ev-uid","resourceVersion":"124","creationTimestamp":"2018-01-02T02:24:05Z"},` +
		`"InvolvedObject":{"kind":"Pod","namespace":"default","name":"web-1","uid":"pod-uid","apiVersion":"v1","resourceVersion":"123","fieldPath":"spec.containers{web}"},` +
		`"Source":{"component":"kubelet","host":"n1"},"FirstOccurrenceTimestamp":"2018-01-02T02:24:05Z","LastOccurrenceTimestamp":"2018-01-02T02:24:05Z",` +
		`"Message":"Killing container","Reason":"Killing","Type":"Normal","EventTags":{"cluster_name":"default","eventID":"ev-uid","hostname":"n1","pod_id":"pod-uid","pod_name":"web-1"}}`
	const rebooted = `{"Count":3,"Metadata":{"name":"n1.151","namespace":"default","uid":"new-uid","resourceVersion":"125","creationTimestamp":"2018-01-02T02:25:00Z"},` +
		`"InvolvedObject":{"kind":"Node","name":"n1"},"Source":{},"FirstOccurrenceTimestamp":"2018-01-02T02:25:00.123456Z","LastOccurrenceTimestamp":"2018-01-02T02:26:00.123456Z",` +
		`"Message":"a \"quoted\" \\ line\nand another","Reason":"Rebooted","Type":"Warning","EventTags":{"cluster_name":"default","eventID":"new-uid","hostname":""}}`
	const index = `"_index":"heapster-2018.01.02"`
	check("elasticsearch:http://h?ver=5&cluster_name=default", index+`,"_type":"events"}}`, killed, index+`,"_type":"events"}}`, rebooted)
	check("elasticsearch:http://h?ver=6&cluster_name=default", index+`,"_type":"_doc"}}`, killed, index+`,"_type":"_doc"}}`, rebooted)
	check("elasticsearch:http://h?ver=8&cluster_name=default", index+`}}`, killed, index+`}}`, rebooted)
	check("elasticsearch:http://h?ver=8&filter=namespace:none")
}

// TestEveryStateOfAnEventIsKept, once however often it is written; and what it takes to be refused or to wait.
func TestEveryStateOfAnEventIsKept(t *testing.T) {
	f := newFake(t, sinktest.Reach{}, "8.15.0")
	s := sinktest.NewEvents[*elastic](t, Kind, f.Target(sinktest.Reach{}))
	again := sinktest.Event()
	again.Version, again.Count = 200, 2
	batch := sinktest.EventMessages(sinktest.Event(), again)
	for range 2 {
		if err := s.Write(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.Holds()); n != 2 {
		t.Fatalf("Elasticsearch holds %d documents, want 2", n)
	}
	f.Behave(sinktest.Refusing)
	var p *sink.Partial
	if err := s.Write(t.Context(), batch); !errors.As(err, &p) || len(p.Refused) != 2 || p.Err != nil {
		t.Fatalf("got %v, want both events refused", err)
	}
	f.Behave(sinktest.Down)
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
}
