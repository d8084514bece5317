package riemann

import (
	"encoding/hex"
	"testing"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestKubernetesEventsAreEventers: by field, and one to the byte.
func TestKubernetesEventsAreEventers(t *testing.T) {
	s := sinktest.NewEvents[*server](t, Kind, "riemann:?filter=-namespace:kube-*&state=x")
	s.enc.host = "here"
	small := sinktest.NewStyleEvent()
	small.Message, small.Involved.Name = "m", ""
	system := sinktest.Event()
	system.Namespace = "kube-system"
	for i, m := range sinktest.EventMessages(small, system, sinktest.Event()) {
		s.encode(&m, i)
	}
	if len(s.enc.ends) != 2 {
		t.Fatalf("%d events, want 2", len(s.enc.ends))
	}
	attribute := func(key, value string) string { // tag, length, and both as fields
		return hex.EncodeToString([]byte{0x4a, byte(4 + len(key) + len(value)), 0x0a, byte(len(key))}) + hex.EncodeToString([]byte(key)) +
			hex.EncodeToString([]byte{0x12, byte(len(value))}) + hex.EncodeToString([]byte(value))
	}
	// event{time 1514859960 state service host description tags ttl attributes×9 metric_sint64 3 as zigzag 6}
	want := "08b8dbabd205" + "12077761726e696e67" + "1a0d" + hex.EncodeToString([]byte("Node.Rebooted")) + "220468657265" + "2a016d" +
		"3a086865617073746572" + "4500007042" + attribute("api-version", "") + attribute("component", "") + attribute("field-path", "") +
		attribute("first-timestamp", "1514859900") + attribute("last-timestamp", "1514859960") + attribute("name", "") + attribute("namespace", "") +
		attribute("resource-version", "") + attribute("uid", "") + "6806"
	first := s.enc.events(0, 1)
	if got := hex.EncodeToString(first[3:]); got != want { // behind tag and length
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestKubernetesEventsAreWrittenOrRefused: ok, refused and down.
func TestKubernetesEventsAreWrittenOrRefused(t *testing.T) {
	f := newFake(t, sinktest.Reach{})
	s := sinktest.NewEvents[*server](t, Kind, f.Target(sinktest.Reach{}))
	batch := sinktest.EventMessages(sinktest.Event())
	if err := s.Write(t.Context(), batch); err != nil || len(f.Holds()) != 1 {
		t.Fatalf("Riemann holds %v, %v", f.Holds(), err)
	}
	f.Behave(sinktest.Refusing)
	if err := s.Write(t.Context(), batch); !sink.IsPermanent(err) {
		t.Fatalf("got %v, want a permanent error", err)
	}
	f.Behave(sinktest.Down)
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
}
