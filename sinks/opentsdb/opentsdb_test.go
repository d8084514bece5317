package opentsdb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		s := build(tb, "opentsdb")
		names := encoded(s, r)
		for i := range names {
			p, err := parse([]byte(names[i]))
			if err != nil {
				tb.Fatal(err)
			}
			names[i] = p.identity()
		}
		return names
	},
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	s := sinktest.SwallowHTTP(b, 204, "")
	suite.Bench(b, "opentsdb:http://"+s.Addr, s.Bytes.Load)
}

func build(tb testing.TB, target string) *tsd {
	tb.Helper()
	return sinktest.New[*tsd](tb, Kind, target)
}

func encoded(s *tsd, rollups ...*proto.Rollup) (points []string) {
	s.enc.reset()
	for i, r := range rollups {
		s.enc.encode(r, i)
	}
	for i := range s.enc.points {
		points = append(points, string(s.enc.point(i)))
	}
	slices.Sort(points)
	return points
}

// datapoint is one as a TSD reads it.
type datapoint struct {
	Metric    string            `json:"metric"`
	Timestamp int64             `json:"timestamp"`
	Value     json.Number       `json:"value"`
	Tags      map[string]string `json:"tags"`
}

func (p *datapoint) identity() string { return identity(p.Metric, p.Timestamp, p.Tags) }

// name is what a TSD takes for a metric, a key or a value of a tag.
var name = regexp.MustCompile(`^[A-Za-z0-9\-_./]+$`)

func parse(b []byte) (p datapoint, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, err
	}
	names := []string{p.Metric}
	for k, v := range p.Tags {
		names = append(names, k, v)
	}
	for _, n := range names {
		if !name.MatchString(n) {
			return p, fmt.Errorf("invalid name %q", n)
		}
	}
	if _, err := p.Value.Float64(); err != nil || p.Timestamp <= 0 || len(p.Tags) == 0 {
		return p, fmt.Errorf("invalid point %+v", p)
	}
	return p, nil
}

type fake struct{ *sinktest.HTTP }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "heapster" && password == sinktest.RightPassword
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
			if r.Method != http.MethodPost || r.URL.Path != "/api/put" || r.Header.Get("Content-Type") != "application/json" || r.URL.RawQuery != "summary&details&sync" || len(body) > 40960 {
				t.Errorf("a TSD does not take %s %s of %d bytes as %q", r.Method, r.URL, len(body), r.Header.Get("Content-Type"))
			}
			points := []json.RawMessage{body}
			if body[0] == '[' {
				if err := json.Unmarshal(body, &points); err != nil || len(points) < 2 {
					t.Errorf("a TSD does not take %s: %v", body, err)
				}
			}
			var errors []string
			for _, raw := range points {
				p, err := parse(raw)
				if err != nil {
					t.Errorf("a TSD does not take %s: %v", raw, err)
				}
				if m == sinktest.Refusing || m == sinktest.HalfRefuses && p.Metric == "memory_usage_gauge" {
					errors = append(errors, fmt.Sprintf(`{"datapoint":%s,"error":"Unknown metric"}`, raw))
					continue
				}
				f.Store(true, p.identity())
			}
			if len(errors) > 0 {
				w.WriteHeader(http.StatusBadRequest)
			}
			fmt.Fprintf(w, `{"success":%d,"failed":%d,"errors":[%s]}`, len(points)-len(errors), len(errors), strings.Join(errors, ","))
		},
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	target := "opentsdb:" + f.URL() + "?" + f.Options(r)
	if r.Login {
		target += "&user=heapster&pw=" + r.Password()
	}
	return target
}

// canonical is a point in one form, however it was spaced.
func canonical(t *testing.T, line string) string {
	p, err := parse([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Value.Float64()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(p.identity(), " ", f, " ", strings.Contains(p.Value.String(), "."))
}

func TestPointsAreHeapsters(t *testing.T) {
	want := sinktest.Lines(t, "testdata/oracle.jsonl.gz")
	got := encoded(build(t, "opentsdb:?devices=false"), sinktest.Oracle(t, "default")...)
	for _, lines := range [][]string{want, got} {
		for i := range lines {
			lines[i] = canonical(t, lines[i])
		}
		slices.Sort(lines)
	}
	if d := sinktest.Diff(want, got); d != "" {
		t.Fatalf("%d points, want %d (- oracle, + ours):\n%s", len(got), len(want), d)
	}
	all := encoded(build(t, "opentsdb"), sinktest.Oracle(t, "default")...)
	more := slices.DeleteFunc(all, func(l string) bool { return !strings.Contains(l, `"resource_id":`) })
	if len(more) != 375 || !strings.HasPrefix(more[0], `{"metric":"filesystem_available_gauge",`) {
		t.Fatalf("%d points of devices, want 375, first %s", len(more), more[0])
	}
}

func TestBytes(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", Labels: []proto.Label{{Key: "beta.kubernetes.io/os", Value: "lïnux \"x\""}}})
	r.Values.Set(0, proto.CPUUsage.Field(), 1605000000)
	d := r.AddDevice(proto.Device{Kind: proto.DeviceFilesystem, Name: "Volume:a"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	want := []string{
		`{"metric":"cpu_usage_cumulative","timestamp":1514859840,"value":1605000000,"tags":{"cluster":"c_1","hostname":"n1","labels":"beta.kubernetes.io/os_l_nux__x_","nodename":"n1","type":"node"}}`,
		`{"metric":"filesystem_usage_gauge","timestamp":1514859840,"value":4096,"tags":{"cluster":"c_1","hostname":"n1","labels":"beta.kubernetes.io/os_l_nux__x_","nodename":"n1","resource_id":"Volume_a","type":"node"}}`,
	}
	if d := sinktest.Diff(want, encoded(build(t, "opentsdb:?cluster=c%201"), r)); d != "" {
		t.Fatal(d)
	}
}

func TestAnswersDecideWhatHappensNext(t *testing.T) {
	check := func(code int, body string, verdict, want string) {
		t.Helper()
		f := sinktest.SwallowHTTP(t, code, body)
		s := build(t, "opentsdb:http://"+f.Addr)
		defer s.Close()
		err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 1, 1, 0)}})
		got := "passing"
		if sink.IsPermanent(err) {
			got = "permanent"
		}
		if err == nil || got != verdict || !strings.Contains(err.Error(), want) {
			t.Errorf("%d %s: %v is %s, want %s with %q", code, body, err, got, verdict, want)
		}
	}
	check(400, `{"failed":1,"errors":[{"datapoint":{"metric":"a"},"error":"Please throttle writes: 10000 RPCs waiting"}]}`, "passing", "throttle")
	check(400, `{"failed":1,"errors":[{"datapoint":{"metric":"a"},"error":"Please throttle"}]}`, "passing", "throttle")
	check(400, `{"failed":1,"errors":[{"datapoint":{"metric":"a"},"error":"Unexpected exception"}]}`, "passing", "Unexpected")
	check(200, `{"success":3,"failed":2,"errors":[]}`, "passing", "2 points")
	check(400, `{"success":3,"failed":2,"errors":[{"datapoint":{"metric":"a"},"error":"Unknown metric"}]}`, "passing", "did not take 1 points")
	check(400, `{"failed":1,"errors":[{"datapoint":{"metric":"a"},"error":"Unknown metric"}]}`, "permanent", "1 points refused, of which it names 0")
	check(400, `{"error":{"code":400,"message":"Unable to parse the given JSON"}}`, "permanent", "Unable to parse")
	check(400, `{"error":{"code":400,"message":"Chunked request not supported."}}`, "permanent", "Chunked")
	check(413, `too large`, "permanent", "too large")
	check(400, `<html>`, "passing", "<html>")
	check(200, `<html>`, "passing", "no answer to that")
	check(503, `{"error":{"code":503,"message":"down"}}`, "passing", "down (status 503)")
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{
		"opentsdb": "http://127.0.0.1:4242/api/put?summary&details&sync", "opentsdb:http://h": "http://h:4242/api/put?summary&details&sync",
		"opentsdb:https://h:1": "https://h:1/api/put?summary&details&sync", "opentsdb:h:1": "http://h:1/api/put?summary&details&sync",
	} {
		if got := build(t, target).put; got != want {
			t.Errorf("%s writes to %s, want %s", target, got, want)
		}
	}
	if got := build(t, "opentsdb:?cluster_name=x").enc.cluster[0].Value; got != "x" {
		t.Errorf("cluster is %q", got)
	}
	sinktest.Complains(t, Kind, "opentsdb:?clustr=x&maxbytes=1", "did you mean `cluster`?", "`maxbytes` flag must be at least 4096")
}

func TestVictoriaMetricsHasWhatWasWritten(t *testing.T) {
	addr := bustest.FreeAddr(t)
	v := sinktest.StartVictoria(t, addr, "-opentsdbHTTPListenAddr="+addr)
	s := build(t, "opentsdb:http://"+addr)
	defer s.Close()
	r := sinktest.Node("node-1.example.com", 2, 1, 1)
	r.Tick = proto.TickAt(time.Now().Add(-time.Minute), 15*time.Second)
	for range 2 { // the second time overwrites
		if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
			t.Fatal(err)
		}
	}
	want := encoded(s, r)
	got := map[string]float64{}
	for _, series := range v.Series(`{cluster="k8s-cluster"}`, len(want)) {
		metric := series.Labels["__name__"]
		delete(series.Labels, "__name__")
		for at, value := range series.Values {
			got[identity(metric, at/1000, series.Labels)] = value
		}
	}
	for _, line := range want {
		p, err := parse([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		// VictoriaMetrics keeps the first 14 digits or so.
		if value, err := p.Value.Float64(); err != nil || math.Abs(got[p.identity()]-value) > 1e-12*math.Abs(value) {
			t.Errorf("%s is %g there", line, got[p.identity()])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d points, want %d", len(got), len(want))
	}
}
