package log

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// TestEventsAreEventers: to the byte, but for events of events.k8s.io, which had neither time nor count.
func TestEventsAreEventers(t *testing.T) {
	check := func(target, want string) {
		t.Helper()
		var out bytes.Buffer
		parsed, err := sink.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewEvents(parsed, sink.Deps{Out: &out, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		system := sinktest.Event()
		system.Namespace, system.Message = "kube-system", "Scheduled"
		if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent(), system)); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got\n%s\nwant\n%s", target, out.String(), want)
		}
	}
	const first = "   2018-01-02 02:24:05 +0000 UTC (cnt:1): Killing container\n   2018-01-02 02:26:00.123456 +0000 UTC (cnt:3): a \"quoted\" \\ line\\nand another\n"
	check("log", "EventBatch     Timestamp: 2018-01-02 02:24:05 +0000 UTC\n"+first+"   2018-01-02 02:24:05 +0000 UTC (cnt:1): Scheduled\n")
	check("log:?filter=-namespace:kube-*", "EventBatch     Timestamp: 2018-01-02 02:26:00.123456 +0000 UTC\n"+first)
	check("log:?filter=namespace:none", "")
}

func TestEventOptions(t *testing.T) {
	events := Kind
	events.New = Kind.NewEvents
	sinktest.Complains(t, events, "log:?filter=metric:cpu/*&rename=a:b&concurrency=2", "events are filtered by namespace alone", "option `rename` is unknown", "a text has one writer")
}
