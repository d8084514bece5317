package gcl

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp/gcptest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return gcptest.Start(t, r, "gcl", "") },
	EventNames: func(_ testing.TB, e *proto.Event) []string {
		return []string{"projects/p/logs/kubernetes.io%2Fevents " + time.Unix(0, e.Last).UTC().Format(time.RFC3339Nano) + " " + e.ID()}
	},
	LoginHint: "check `credentials`",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

// TestEntriesAreEventers: to the byte, but for what the package says.
func TestEntriesAreEventers(t *testing.T) {
	check := func(target string, ev *proto.Event, want string) {
		t.Helper()
		s := sinktest.NewEvents[*cloud](t, Kind, target)
		s.enc.reset("p")
		s.enc.encode(ev, 0)
		if got := string(s.enc.entry(0)); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", target, got, want)
		}
	}
	const killed = `{"logName":"projects/p/logs/kubernetes.io%2Fevents","timestamp":"2018-01-02T02:24:05Z","severity":"NOTICE","resource":{"type":"global"},"insertId":"ev-uid/124",`
	const killedPayload = `"jsonPayload":{"metadata":{"name":"web-1.150","namespace":"default","uid":"ev-uid","resourceVersion":"124","creationTimestamp":"2018-01-02T02:24:05Z"},` +
		`"involvedObject":{"kind":"Pod","namespace":"default","name":"web-1","uid":"pod-uid","apiVersion":"v1","resourceVersion":"123","fieldPath":"spec.containers{web}"},` +
		`"reason":"Killing","message":"Killing container","source":{"component":"kubelet","host":"n1"},"firstTimestamp":"2018-01-02T02:24:05Z","lastTimestamp":"2018-01-02T02:24:05Z",` +
		`"count":1,"type":"Normal","eventTime":null,"reportingComponent":"","reportingInstance":""}}`
	check("gcl", sinktest.Event(), killed+killedPayload)
	check("gcl:?cluster_name=x", sinktest.Event(), killed+`"labels":{"cluster_name":"x"},`+killedPayload)
	check("gcl", sinktest.NewStyleEvent(), `{"logName":"projects/p/logs/kubernetes.io%2Fevents","timestamp":"2018-01-02T02:26:00.123456Z","severity":"WARNING","resource":{"type":"global"},"insertId":"new-uid/125",`+
		`"jsonPayload":{"metadata":{"name":"n1.151","namespace":"default","uid":"new-uid","resourceVersion":"125","creationTimestamp":"2018-01-02T02:25:00Z"},`+
		`"involvedObject":{"kind":"Node","name":"n1"},"reason":"Rebooted","message":"a \"quoted\" \\ line\nand another","source":{},"firstTimestamp":null,"lastTimestamp":null,`+
		`"type":"Warning","eventTime":"2018-01-02T02:25:00.123456Z","series":{"count":3,"lastObservedTime":"2018-01-02T02:26:00.123456Z"},"reportingComponent":"kubelet","reportingInstance":"n1"}}`)
	check("gcl", &proto.Event{UID: "u", Version: 1}, `{"logName":"projects/p/logs/kubernetes.io%2Fevents","severity":"WARNING","resource":{"type":"global"},"insertId":"u/1",`+
		`"jsonPayload":{"metadata":{"uid":"u","resourceVersion":"1","creationTimestamp":null},"involvedObject":{},"source":{},"firstTimestamp":null,"lastTimestamp":null,"eventTime":null,"reportingComponent":"","reportingInstance":""}}`)
}

// numbered is an event of its own, with a message.
func numbered(n int, message string) *proto.Event {
	ev := sinktest.Event()
	ev.UID, ev.Message = fmt.Sprint("uid-", n), message
	return ev
}

func stored(n int) string {
	return fmt.Sprintf("projects/p/logs/kubernetes.io%%2Fevents 2018-01-02T02:24:05Z uid-%d/124", n)
}

func TestEventsAreWrittenOnce(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{Login: true}, "gcl", "filter=-namespace:kube-*")
	s := sinktest.NewEvents[*cloud](t, Kind, f.Target(sinktest.Reach{Login: true}))
	left := numbered(2, "of the system")
	left.Namespace = "kube-system"
	batch := sinktest.EventMessages(numbered(0, "a"), numbered(1, "b"), left)
	for range 2 {
		if err := s.Write(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := f.Holds(), map[string]int{stored(0): 1, stored(1): 1}; !maps.Equal(got, want) {
		t.Fatalf("Cloud Logging holds %v, want %v", got, want)
	}
	if err := s.Write(t.Context(), batch[2:]); err != nil || len(f.Requests) != 2 {
		t.Fatalf("got %v after %d requests, want none for no event", err, len(f.Requests))
	}
}

func TestEventsAreRefusedOneByOne(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{}, "gcl", "")
	s := sinktest.NewEvents[*cloud](t, Kind, f.Target(sinktest.Reach{}))
	f.Behave(sinktest.HalfRefuses)
	batch := sinktest.EventMessages(numbered(0, "a"), numbered(1, gcptest.RefusedMessage), numbered(2, gcptest.ForbiddenMessage), numbered(3, "b"))
	err := s.Write(t.Context(), batch)
	var p *sink.Partial
	if err == nil || errors.As(err, &p) || sink.IsPermanent(err) || !strings.Contains(err.Error(), "Permission denied. (code 7)") {
		t.Fatalf("got %v, want a passing error for the permission", err)
	}
	f.Behave(sinktest.OK) // the permission is granted
	err = s.Write(t.Context(), batch)
	if !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 1 || p.Refused[0].Message != 1 || !strings.Contains(p.Refused[0].Reason, "Log entry is refused.") {
		t.Fatalf("got %v, want event 1 refused", err)
	}
	if got, want := f.Holds(), map[string]int{stored(0): 1, stored(2): 1, stored(3): 1}; !maps.Equal(got, want) {
		t.Fatalf("Cloud Logging holds %v, want %v", got, want)
	}
	if !slices.Equal(f.Requests, []int{4, 1}) {
		t.Fatalf("requests had %v entries, want only the open one sent again", f.Requests)
	}
	f.Behave(sinktest.Refusing)
	if err := s.Write(t.Context(), batch[:1]); !sink.IsPermanent(err) {
		t.Fatalf("got %v, want it refused for good", err)
	}
}

func TestWhatPassesIsNoRefusal(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{}, "gcl", "")
	s := sinktest.NewEvents[*cloud](t, Kind, f.Target(sinktest.Reach{}))
	batch := sinktest.EventMessages(sinktest.Event())
	for _, mood := range []sinktest.Mood{sinktest.Failing, sinktest.Garbage, sinktest.Down, sinktest.HangsUp} {
		f.Behave(mood)
		if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) {
			t.Errorf("%s: got %v, want a passing error", mood, err)
		}
	}
	f.Behave(sinktest.OK)
	if err := s.Write(t.Context(), batch); err != nil || len(f.Holds()) != 1 {
		t.Fatalf("Cloud Logging holds %v, %v", f.Holds(), err)
	}
	r := sinktest.Reach{Login: true, WrongLogin: true}
	f = gcptest.Start(t, r, "gcl", "")
	s = sinktest.NewEvents[*cloud](t, Kind, f.Target(r))
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) || !strings.Contains(err.Error(), "check `credentials`") {
		t.Fatalf("got %v, want a passing error that names the credentials", err)
	}
}

func TestRequestsAreBounded(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{}, "gcl", "")
	s := sinktest.NewEvents[*cloud](t, Kind, f.Target(sinktest.Reach{}))
	check := func(n int, message string, want ...int) {
		t.Helper()
		f.Requests = nil
		var events []*proto.Event
		for i := range n {
			events = append(events, numbered(i, message))
		}
		if err := s.Write(t.Context(), sinktest.EventMessages(events...)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.Requests, want) {
			t.Errorf("requests have %v entries, want %v", f.Requests, want)
		}
	}
	check(2*maxEntries+1, "m", maxEntries, maxEntries, 1)
	check(3, strings.Repeat("m", maxBytes/3), 2, 1)
	check(2, strings.Repeat("m", maxBytes), 1, 1)
}

func TestRefusalsAreRead(t *testing.T) {
	check := func(details, want string) {
		t.Helper()
		all, ok := refusals([]byte(`{"error":{"code":400,"details":[`+details+`]}}`), 3)
		got := "unknown"
		if ok {
			got = fmt.Sprint(all)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", details, got, want)
		}
	}
	const of = `{"@type":"type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors","logEntryErrors":`
	check(of+`{"0":{"code":3,"message":"a"},"2":{"code":7}}}`, "map[0:{3 a} 2:{7 }]")
	for _, unknown := range []string{"", of + "{}}", of + `{"3":{"code":3}}}`, of + `{"-1":{"code":3}}}`, of + `{"x":{"code":3}}}`, `{"@type":"x","logEntryErrors":{"0":{"code":3}}}`, "nonsense"} {
		check(unknown, "unknown")
	}
}

func TestOptions(t *testing.T) {
	open := func(target string) (string, error) {
		p, err := sink.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		_, err = NewEvents(p, sink.Deps{Cluster: "c", Log: slog.New(slog.NewTextHandler(&said, nil))})
		return said.String(), err
	}
	if said, err := open("gcl:https://ignored"); err != nil || !strings.Contains(said, "is not read") {
		t.Errorf("an address: %q, %v", said, err)
	}
	for target, want := range map[string]string{"gcl:?endpoint=ftp://x": "such as https://logging.googleapis.com", "gcl:?credential=x": "did you mean `credentials`?"} {
		if _, err := open(target); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", target, err, want)
		}
	}
}
