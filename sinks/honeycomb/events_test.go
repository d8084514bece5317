package honeycomb

import (
	"errors"
	"testing"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestKubernetesEventsAreEventers: to the byte, but for events of events.k8s.io, which had neither time nor count.
func TestKubernetesEventsAreEventers(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		s := sinktest.NewEvents[*api](t, Kind, target)
		for i, m := range sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent()) {
			s.encode(&m, i)
		}
		if len(s.enc.events) != len(want) {
			t.Fatalf("%s: %d events, want %d", target, len(s.enc.events), len(want))
		}
		for i := range want {
			if got := string(s.enc.event(i)); got != want[i] {
				t.Errorf("%s: got\n%s\nwant\n%s", target, got, want[i])
			}
		}
	}
	const killed = `"namespace":"default","kind":"Pod","name":"web-1","subobject":"spec.containers{web}","source.component":"kubelet","source.host":"n1","count":1,"type":"Normal","reason":"Killing","message":"Killing container"},"Timestamp":"2018-01-02T02:24:05Z"}`
	const rebooted = `"namespace":"","kind":"Node","name":"n1","subobject":"","source.component":"","source.host":"","count":3,"type":"Warning","reason":"Rebooted","message":"a \"quoted\" \\ line\nand another"},"Timestamp":"2018-01-02T02:26:00.123456Z"}`
	check("honeycomb:?writekey=k", `{"Data":{`+killed, `{"Data":{`+rebooted)
	check("honeycomb:?writekey=k&cluster_name=x", `{"Data":{"cluster_name":"x",`+killed, `{"Data":{"cluster_name":"x",`+rebooted)
	check("honeycomb:?writekey=k&filter=-namespace:default")
}

// TestKubernetesEventsAreWrittenOrRefused: ok, refused and down.
func TestKubernetesEventsAreWrittenOrRefused(t *testing.T) {
	f := newFake(t, sinktest.Reach{})
	s := sinktest.NewEvents[*api](t, Kind, f.Target(sinktest.Reach{}))
	batch := sinktest.EventMessages(sinktest.Event())
	if err := s.Write(t.Context(), batch); err != nil || len(f.Holds()) != 1 {
		t.Fatalf("Honeycomb holds %v, %v", f.Holds(), err)
	}
	f.Behave(sinktest.Refusing)
	var p *sink.Partial
	if err := s.Write(t.Context(), batch); !errors.As(err, &p) || len(p.Refused) != 1 || p.Err != nil {
		t.Fatalf("got %v, want the event refused", err)
	}
	f.Behave(sinktest.Down)
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
}
