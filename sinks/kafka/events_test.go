package kafka

import (
	"errors"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestEventsAreEventers: to the byte, but for events of events.k8s.io, which eventer put into year 1.
func TestEventsAreEventers(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		s := sinktest.NewEvents[*topic](t, Kind, target)
		for i, m := range sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent()) {
			s.enc.encode(&m, i)
		}
		var got []string
		for i := range s.enc.records {
			r := &s.enc.records[i]
			if key := string(s.enc.bytes(r.key)); key != "c/default" {
				t.Errorf("%s: record %d has key %q", target, i, key)
			}
			got = append(got, s.id(r)+" "+string(s.enc.bytes(r.value)))
		}
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
			t.Errorf("%s: got\n%s\nwant\n%s", target, g, w)
		}
	}
	const killed = `c/event/ev-uid/124 {"EventValue":"{\n \"metadata\": {\n  \"name\": \"web-1.150\",\n  \"namespace\": \"default\",\n  \"uid\": \"ev-uid\",\n  \"resourceVersion\": \"124\",\n  \"creationTimestamp\": \"2018-01-02T02:24:05Z\"\n },\n \"involvedObject\": {\n  \"kind\": \"Pod\",\n  \"namespace\": \"default\",\n  \"name\": \"web-1\",\n  \"uid\": \"pod-uid\",\n  \"apiVersion\": \"v1\",\n  \"resourceVersion\": \"123\",\n  \"fieldPath\": \"spec.containers{web}\"\n },\n \"reason\": \"Killing\",\n \"message\": \"Killing container\",\n \"source\": {\n  \"component\": \"kubelet\",\n  \"host\": \"n1\"\n },\n \"firstTimestamp\": \"2018-01-02T02:24:05Z\",\n \"lastTimestamp\": \"2018-01-02T02:24:05Z\",\n \"count\": 1,\n \"type\": \"Normal\",\n \"eventTime\": null,\n \"reportingComponent\": \"\",\n \"reportingInstance\": \"\"\n}","EventTimestamp":"2018-01-02T02:24:05Z","EventTags":{"eventID":"ev-uid","hostname":"n1","pod_id":"pod-uid","pod_name":"web-1"}}`
	const rebooted = `c/event/new-uid/125 {"EventValue":"{\n \"metadata\": {\n  \"name\": \"n1.151\",\n  \"namespace\": \"default\",\n  \"uid\": \"new-uid\",\n  \"resourceVersion\": \"125\",\n  \"creationTimestamp\": \"2018-01-02T02:25:00Z\"\n },\n \"involvedObject\": {\n  \"kind\": \"Node\",\n  \"name\": \"n1\"\n },\n \"reason\": \"Rebooted\",\n \"message\": \"a \\\"quoted\\\" \\\\ line\\nand another\",\n \"source\": {},\n \"firstTimestamp\": null,\n \"lastTimestamp\": null,\n \"type\": \"Warning\",\n \"eventTime\": \"2018-01-02T02:25:00.123456Z\",\n \"series\": {\n  \"count\": 3,\n  \"lastObservedTime\": \"2018-01-02T02:26:00.123456Z\"\n },\n \"reportingComponent\": \"kubelet\",\n \"reportingInstance\": \"n1\"\n}","EventTimestamp":"2018-01-02T02:26:00.123456Z","EventTags":{"eventID":"new-uid","hostname":""}}`
	check("kafka:?brokers=h:1", killed, rebooted)
	check("kafka:?brokers=h:1&cluster_name=x", strings.Replace(killed, `"EventTags":{`, `"EventTags":{"cluster_name":"x",`, 1), strings.Replace(rebooted, `"EventTags":{`, `"EventTags":{"cluster_name":"x",`, 1))
	check("kafka:?brokers=h:1&filter=-namespace:default")
	if s := sinktest.NewEvents[*topic](t, Kind, "kafka:?brokers=h:1&eventstopic=e&timeseriestopic=t"); s.name != "e" {
		t.Errorf("writes to %q", s.name)
	}
}

// TestEventsAreWrittenOrRefused: ok, refused and down, on a broker.
func TestEventsAreWrittenOrRefused(t *testing.T) {
	b := start(t, sinktest.Reach{})
	target := b.Target(sinktest.Reach{}) + "&eventstopic=heapster-metrics" // the topic that the broker's reader follows
	batch := sinktest.EventMessages(sinktest.Event())
	s := sinktest.NewEvents[*topic](t, Kind, target+"&format=msgpack")
	var err error
	if batch[0].Data, err = proto.NewEncoder().Event(batch[0].Event); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	var e proto.Event
	r := b.await(1)[0]
	if err := proto.NewDecoder().Event(r.Value, &e); err != nil || e.UID != "ev-uid" || string(r.Headers[0].Value) != "c/event/ev-uid/124" {
		t.Fatalf("record %v holds %+v, %v", r.Headers, e, err)
	}
	b.Behave(sinktest.Refusing)
	var p *sink.Partial
	if err := s.Write(t.Context(), batch); !errors.As(err, &p) || len(p.Refused) != 1 || p.Err != nil {
		t.Fatalf("got %v, want the event refused", err)
	}
	b.Behave(sinktest.Down)
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
}
