package honeycomb

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	// A name is an event.
	Names:     func(tb testing.TB, r *proto.Rollup) []string { return encoded(build(tb, "honeycomb:?writekey=k"), r) },
	IsRefused: isRefused,
	LoginHint: "check `writekey`",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func isRefused(name string) bool { return strings.Contains(name, `"memory/usage":`) }

func build(tb testing.TB, target string) *api {
	tb.Helper()
	return sinktest.New[*api](tb, Kind, target)
}

func encoded(s *api, r *proto.Rollup) (events []string) {
	s.enc.reset()
	s.enc.encode(r, 0)
	for i := range s.enc.events {
		events = append(events, string(s.enc.event(i)))
	}
	return events
}

type fake struct{ *sinktest.HTTP }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool { return r.Header.Get("X-Honeycomb-Team") == sinktest.RightPassword },
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
			var events []json.RawMessage
			if err := json.Unmarshal(body, &events); err != nil || r.Method+r.URL.Path != "POST/1/batch/heapster" || len(events) == 0 || len(events) > 100 {
				t.Errorf("Honeycomb does not take %s %s with %d events: %v", r.Method, r.URL, len(events), err)
			}
			answers := make([]string, len(events))
			for i, e := range events {
				if m == sinktest.Refusing || m == sinktest.HalfRefuses && isRefused(string(e)) {
					answers[i] = `{"status":400,"error":"event refused"}`
					continue
				}
				answers[i] = `{"status":202}`
				f.Store(false, string(e))
			}
			fmt.Fprintf(w, "[%s]", strings.Join(answers, ","))
		},
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	return "honeycomb:?apihost=" + f.URL() + "/&writekey=" + r.Password() + "&" + f.Options(r)
}

func TestEvents(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1"})
	r.Values.Set(0, proto.CPUUsage.Field(), 5)
	r.Values.Set(0, proto.MemoryUsage.Field(), 0)
	r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "silent"})
	d := r.AddDevice(proto.Device{Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, proto.Extra{Name: "custom/q", Value: proto.Float(2.5)})
	want := `{"Data":{"custom/q":2.5,"host_id":"","hostname":"n1","labels":"","memory/usage":0,"nodename":"n1","type":"node"},"Timestamp":"2018-01-02T02:24:00Z"}`
	if got := strings.Join(encoded(build(t, "honeycomb:?writekey=k"), r), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOnlyWhatFailedIsSentAgain(t *testing.T) {
	f := sinktest.SwallowHTTP(t, 200, `[{"status":202},{"status":429,"error":"rate limited"}]`)
	s := build(t, "honeycomb:?writekey=k&batchsize=2&apihost=http://"+f.Addr)
	defer s.Close()
	batch := []sink.Message{{Rollup: sinktest.Node("n", 0, 0, 0), ID: "n"}} // a node and three containers
	if err := s.Write(t.Context(), batch); err == nil || !strings.Contains(err.Error(), "rate limited") {
		t.Fatalf("got %v", err)
	}
	if !s.progress.Settled(0) || s.progress.Settled(1) || s.progress.Settled(2) {
		t.Fatal("not the first event alone is settled")
	}
}

func TestOptions(t *testing.T) {
	t.Setenv("HONEYCOMB_WRITEKEY", "")
	sinktest.Complains(t, Kind, "honeycomb:?apihost=x&datset=y", "Failed to find honeycomb API write key", "`apihost` flag", "did you mean `dataset`?")
	t.Setenv("HONEYCOMB_WRITEKEY", "k")
	if s := build(t, "honeycomb:?dataset=a%2Fb"); s.header.Get("X-Honeycomb-Team") != "k" || s.address != "https://api.honeycomb.io/1/batch/a%2Fb" {
		t.Errorf("writes to %s", s.address)
	}
	f := sinktest.SwallowHTTP(t, 400, `{"error":"unknown dataset"}`)
	s := build(t, "honeycomb:?apihost=http://"+f.Addr)
	defer s.Close()
	if err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, 0)}}); !sink.IsPermanent(err) {
		t.Errorf("got %v, want a permanent error", err)
	}
}

func BenchmarkWrite(b *testing.B) {
	f := sinktest.SwallowHTTP(b, 200, "["+strings.TrimSuffix(strings.Repeat(`{"status":202},`, 94), ",")+"]")
	bySample := suite
	bySample.Names = func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "honeycomb:?writekey=k")
		encoded(s, r)
		for _, e := range s.enc.events {
			names = append(names, make([]string, e.samples)...)
		}
		return names
	}
	bySample.Bench(b, "honeycomb:?writekey=k&batchsize=94&apihost=http://"+f.Addr, f.Bytes.Load)
}
