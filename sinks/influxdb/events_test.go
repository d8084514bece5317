package influxdb

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestEventsAreEventers: to the byte, but for events of events.k8s.io, which eventer put into year 1.
func TestEventsAreEventers(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		s := sinktest.NewEvents[*influx](t, Kind, target)
		for i, m := range sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent()) {
			s.encode(&s.lines, &m, i)
		}
		var got []string
		for i := range s.lines.len() {
			got = append(got, string(s.lines.line(i)))
		}
		if g, w := strings.Join(got, "\n\n"), strings.Join(want, "\n\n"); g != w {
			t.Errorf("%s: got\n%s\nwant\n%s", target, g, w)
		}
	}
	check("influxdb:?withfields=true",
		`events,cluster_name=c,component=kubelet,hostname=n1,kind=Pod,namespace_name=default,object_name=web-1,pod_id=pod-uid,reason=Killing,type=Normal,uid=ev-uid message="Killing container" 1514859845000000000`,
		`events,cluster_name=c,kind=Node,namespace_name=default,object_name=n1,reason=Rebooted,type=Warning,uid=new-uid message="a \"quoted\" \\ line`+"\n"+`and another" 1514859960123456000`)
	check("influxdb:?cluster_name=default",
		`log/events,cluster_name=default,hostname=n1,pod_id=pod-uid,pod_name=web-1,uid=ev-uid value="{
 \"metadata\": {
  \"name\": \"web-1.150\",
  \"namespace\": \"default\",
  \"uid\": \"ev-uid\",
  \"resourceVersion\": \"124\",
  \"creationTimestamp\": \"2018-01-02T02:24:05Z\"
 },
 \"involvedObject\": {
  \"kind\": \"Pod\",
  \"namespace\": \"default\",
  \"name\": \"web-1\",
  \"uid\": \"pod-uid\",
  \"apiVersion\": \"v1\",
  \"resourceVersion\": \"123\",
  \"fieldPath\": \"spec.containers{web}\"
 },
 \"reason\": \"Killing\",
 \"message\": \"Killing container\",
 \"source\": {
  \"component\": \"kubelet\",
  \"host\": \"n1\"
 },
 \"firstTimestamp\": \"2018-01-02T02:24:05Z\",
 \"lastTimestamp\": \"2018-01-02T02:24:05Z\",
 \"count\": 1,
 \"type\": \"Normal\",
 \"eventTime\": null,
 \"reportingComponent\": \"\",
 \"reportingInstance\": \"\"
}" 1514859845000000000`,
		`log/events,cluster_name=default,uid=new-uid value="{
 \"metadata\": {
  \"name\": \"n1.151\",
  \"namespace\": \"default\",
  \"uid\": \"new-uid\",
  \"resourceVersion\": \"125\",
  \"creationTimestamp\": \"2018-01-02T02:25:00Z\"
 },
 \"involvedObject\": {
  \"kind\": \"Node\",
  \"name\": \"n1\"
 },
 \"reason\": \"Rebooted\",
 \"message\": \"a \\\"quoted\\\" \\\\ line\\nand another\",
 \"source\": {},
 \"firstTimestamp\": null,
 \"lastTimestamp\": null,
 \"type\": \"Warning\",
 \"eventTime\": \"2018-01-02T02:25:00.123456Z\",
 \"series\": {
  \"count\": 3,
  \"lastObservedTime\": \"2018-01-02T02:26:00.123456Z\"
 },
 \"reportingComponent\": \"kubelet\",
 \"reportingInstance\": \"n1\"
}" 1514859960123456000`)
	check("influxdb:?filter=namespace:none")
}

// TestEventsAreWrittenOrRefused: ok, refused and down.
func TestEventsAreWrittenOrRefused(t *testing.T) {
	batch := sinktest.EventMessages(sinktest.Event())
	f := newFake(t, sinktest.Reach{})
	s := sinktest.NewEvents[*influx](t, Kind, "influxdb:http://"+f.addr+"?withfields=true")
	for range 2 { // the second overwrites the first
		if err := s.Write(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.Holds()); n != 1 {
		t.Fatalf("InfluxDB holds %d points, want 1", n)
	}
	f.Behave(sinktest.Down)
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
	refusing := sinktest.SwallowHTTP(t, http.StatusBadRequest, `{"error":"partial write: field type conflict dropped=1"}`)
	s = sinktest.NewEvents[*influx](t, Kind, "influxdb:http://"+refusing.Addr)
	s.created = true
	var p *sink.Partial
	if err := s.Write(t.Context(), batch); !errors.As(err, &p) || len(p.Refused) != 1 || p.Err != nil {
		t.Fatalf("got %v, want the event refused", err)
	}
}

// TestRealInfluxDBKeepsEvents: quotes, backslashes and line breaks included.
func TestRealInfluxDBKeepsEvents(t *testing.T) {
	r := startReal(t, false)
	for _, option := range []string{"withfields=true", "withfields=false"} {
		s := sinktest.NewEvents[*influx](t, Kind, "influxdb:http://"+r.addr+"?"+option)
		for range 2 {
			if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent())); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(query, want string) {
		t.Helper()
		if got := fmt.Sprint(r.query("k8s", query)); got != want {
			t.Errorf("%s gives %q, want %q", query, got, want)
		}
	}
	check(`SELECT message, kind FROM "default".events WHERE uid='new-uid'`, "[[2018-01-02T02:26:00.123456Z a \"quoted\" \\ line\nand another Node]]")
	check(`SELECT count(value) FROM "default"."log/events"`, "[[1970-01-01T00:00:00Z 2]]")
}
