package influxdb

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// modern is an InfluxDB 2 or 3: it takes what its write API takes and answers in its words.
type modern struct {
	*sinktest.HTTP
	t       *testing.T
	version string
	more    string // options
	bad     string // a part of lines that are refused
	most    int    // lines that an answer names; 0: all
}

func newModern(t *testing.T, r sinktest.Reach, version string) *modern {
	f := &modern{t: t, version: version}
	scheme := map[string]string{"2": "Token ", "3": "Bearer "}[version]
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool { return r.Header.Get("Authorization") == scheme+sinktest.RightPassword },
		Take:     f.take,
	})
	return f
}

// base is the target without options of a contract.
func (f *modern) base() string {
	if f.version == "2" {
		return "influxdb:" + f.URL() + "?version=2&org=my%20org&bucket=k8s%2Fautogen"
	}
	return "influxdb:" + f.URL() + "?version=3&db=k8s_1"
}

func (f *modern) Target(r sinktest.Reach) string {
	target := f.base() + f.more + "&batchsize=100&concurrency=2&" + f.Options(r)
	if r.Login {
		target += "&token=" + r.Password()
	}
	return target
}

func (f *modern) take(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
	want := "/api/v2/write?bucket=k8s%2Fautogen&org=my+org&precision=ns"
	if f.version == "3" {
		want = "/api/v3/write_lp?accept_partial=true&db=k8s_1&no_sync=false&precision=nanosecond"
	}
	if r.Method != http.MethodPost || r.URL.String() != want || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" || r.Header.Get("Content-Encoding") != "gzip" {
		f.t.Errorf("InfluxDB %s does not take %s %s of %s, %s", f.version, r.Method, r.URL, r.Header.Get("Content-Type"), r.Header.Get("Content-Encoding"))
		w.WriteHeader(http.StatusNotFound)
		return
	}
	zr, err := gzip.NewReader(bytes.NewReader(body))
	if err == nil {
		body, err = io.ReadAll(zr)
	}
	if err != nil {
		f.t.Errorf("InfluxDB cannot decompress: %v", err)
	}
	type bad struct {
		Line   string `json:"original_line"`
		Number int    `json:"line_number"`
		Reason string `json:"error_message"`
	}
	var refused []bad
	n := 0
	for line := range strings.Lines(string(body)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if m == sinktest.Refusing || m == sinktest.HalfRefuses && (strings.HasPrefix(line, sinktest.Refused+",") || strings.Contains(line, sinktest.RefusedMessage)) || f.bad != "" && strings.Contains(line, f.bad) {
			refused = append(refused, bad{line[:min(len(line), 20)], n, "invalid column type for column 'value', expected iox::column_type::field::float, got iox::column_type::field::integer"})
			continue
		}
		f.Store(true, series(line))
	}
	switch {
	case len(refused) == 0:
		w.WriteHeader(http.StatusNoContent)
	case f.version == "2":
		f.says(w, http.StatusUnprocessableEntity, map[string]any{"code": "unprocessable entity", "message": fmt.Sprintf(
			`failure writing points to database: partial write: field type conflict: input field "value" on measurement %q is type integer, already exists as type float dropped=%d`, sinktest.Refused, len(refused))})
	default:
		if f.most > 0 {
			refused = refused[:min(len(refused), f.most)]
		}
		f.says(w, http.StatusBadRequest, map[string]any{"error": "partial write of line protocol occurred", "data": refused})
	}
}

func (f *modern) says(w http.ResponseWriter, code int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		f.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

func suiteOf(version string) *sinktest.Suite {
	s := suite
	s.Start = func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newModern(t, r, version) }
	s.LoginHint = "check `token`"
	return &s
}

func TestContractOfVersion2(t *testing.T) { suiteOf("2").Run(t) }

func TestContractOfVersion3(t *testing.T) { suiteOf("3").Run(t) }

// eventSuite is the contract of events: names are lines, since a line with fields has no line breaks.
var eventSuite = sinktest.Suite{
	Kind: Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend {
		f := newModern(t, r, "3")
		f.more = "&withfields=true"
		return f
	},
	EventNames: func(tb testing.TB, e *proto.Event) []string {
		s := sinktest.NewEvents[*influx](tb, Kind, "influxdb:?withfields=true&cluster_name=default")
		s.encode(&s.lines, &sink.Message{Event: e}, 0)
		return []string{series(string(s.lines.line(0)))}
	},
	LoginHint: "check `token`",
}

func TestEventContractOfVersion3(t *testing.T) { eventSuite.Run(t) }

// TestLinesThatVersion3NamesAreRefused: and no others, though an answer names a few of them.
func TestLinesThatVersion3NamesAreRefused(t *testing.T) {
	f := newModern(t, sinktest.Reach{}, "3")
	f.bad, f.most = "container_name=kubelet,", 3
	x := build(t, f.base())
	defer x.Close()
	err := x.Write(t.Context(), messages(sinktest.Node("a", 0, 0, 0), sinktest.Node("b", 1, 1, 0)))
	var p *sink.Partial
	if !partial(err, &p) || p.Err != nil {
		t.Fatalf("got %v, want refused lines", err)
	}
	want := 0
	for i := range x.lines.len() {
		if strings.Contains(string(x.lines.line(i)), f.bad) {
			want++
		}
	}
	for _, r := range p.Refused {
		if !strings.Contains(r.Part, f.bad) || !strings.Contains(r.Reason, "refused by InfluxDB: invalid column type") || r.Message > 1 {
			t.Errorf("refused %+v", r)
		}
	}
	if len(p.Refused) != want || len(f.Holds()) != x.lines.len()-want {
		t.Fatalf("%d refused and %d held, want %d and %d", len(p.Refused), len(f.Holds()), want, x.lines.len()-want)
	}
}

// TestAnswersOfVersions2And3 decide what happens next.
func TestAnswersOfVersions2And3(t *testing.T) {
	for _, version := range []string{"2", "3"} {
		check := func(code int, body, verdict, want string, wait time.Duration) {
			t.Helper()
			h := sinktest.StartHTTP(t, sinktest.Reach{}, &sinktest.HTTP{Take: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ sinktest.Mood) {
				if wait > 0 {
					w.Header().Set("Retry-After", fmt.Sprint(int(wait.Seconds())))
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(code)
				fmt.Fprint(w, body)
			}})
			f := &modern{HTTP: h, version: version}
			x := build(t, f.base())
			defer x.Close()
			err := x.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0)))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("version %s, %d %s: got %v, want %q", version, code, body, err, want)
			}
			got := "passing"
			var p *sink.Partial
			if errors.As(err, &p) {
				got = "partial"
			}
			if got != verdict || sink.RetryAfterOf(err) != wait {
				t.Errorf("version %s: %v is %s and waits %s, want %s and %s", version, err, got, sink.RetryAfterOf(err), verdict, wait)
			}
		}
		check(401, `{"code":"unauthorized","message":"unauthorized access"}`, "passing", "check `token`", 0)
		check(403, `{"code":"forbidden","message":"insufficient permissions for write"}`, "passing", "check `token`", 0)
		check(404, `{"code":"not found","message":"bucket \"k8s\" not found"}`, "passing", "create it, or check", 0)
		check(404, `404 page not found`, "passing", "is the address right", 0)
		check(429, `{"code":"too many requests","message":"limit exceeded"}`, "passing", "limit exceeded", 9*time.Second)
		check(503, `{"error":"unavailable"}`, "passing", "unavailable", 9*time.Second)
		check(500, `{"code":"internal error","message":"engine: error"}`, "passing", "engine: error", 0)
		check(422, `{"code":"unprocessable entity","message":"failure writing points to database: partial write: points beyond retention policy dropped=7"}`, "partial", "7 samples older", 0)
		check(400, `{"code":"invalid","message":"unable to parse 'x': missing fields"}`, "partial", "unable to parse", 0)
		check(413, `{"code":"request too large","message":"points batch is too large"}`, "partial", "points batch is too large", 0)
	}
}

func TestTokensAreReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong-password")
	f := newModern(t, sinktest.Reach{Login: true}, "2")
	x := build(t, f.base()+"&token_file="+file)
	defer x.Close()
	if err := x.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err == nil || sink.IsPermanent(err) || strings.Contains(err.Error(), "wrong-password") {
		t.Fatalf("got %v, want a passing error", err)
	}
	write(sinktest.RightPassword)
	if err := x.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err != nil {
		t.Fatal(err)
	}
}

// TestNamesMayBeTheCatalogues: the worlds of Prometheus and OpenTelemetry in line protocol.
func TestNamesMayBeTheCatalogues(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", UID: "nu"})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "shop", UID: "pu", Owner: proto.Owner{Kind: "Deployment", Name: "web"}})
	r.Values.Set(pod, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(pod, proto.CPUUsage.Delta(), 15e9)
	r.Values.Set(pod, proto.GroupCPU.Span(), 60e9)
	r.Values.Set(pod, proto.NetworkRx.Field(), 7)
	d := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:my data"}) //nolint:gosec // 1
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, proto.Extra{Entity: int32(pod), Name: "custom/queue", Value: proto.Float(1.5)}) //nolint:gosec // 1
	check := func(options string, want ...string) {
		t.Helper()
		x := build(t, "influxdb:?filter=type:pod&"+options)
		x.lines.reset()
		x.encode(&x.lines, &sink.Message{Rollup: r}, 0)
		var got []string
		for i := range x.lines.len() {
			got = append(got, string(x.lines.line(i)))
		}
		slices.Sort(got)
		slices.Sort(want)
		if d := sinktest.Diff(want, got); d != "" {
			t.Errorf("%s (- want, + got):\n%s", options, d)
		}
	}
	const prom, at = "cluster=default,namespace=shop,node=n1,pod=web-1,workload=web,workload_kind=Deployment", " 1514859840000000000"
	check("names=prometheus",
		"kubernetes_pod_cpu_usage_seconds_total,"+prom+" value=1.605"+at,
		"kubernetes_pod_network_receive_bytes_total,"+prom+" value=7"+at,
		`kubernetes_pod_volume_usage_bytes,`+prom+`,volume=my\ data value=4096`+at,
		"kubernetes_pod_custom_queue,"+prom+" value=1.5"+at)
	const otel = "k8s.cluster.name=east,k8s.deployment.name=web,k8s.namespace.name=shop,k8s.node.name=n1,k8s.node.uid=nu,k8s.pod.name=web-1,k8s.pod.uid=pu"
	check("names=otel&cluster_name=east&rename=cpu/usage:cores&filter=-metric:custom/*",
		"cores,"+otel+" value=1.605"+at,
		"k8s.pod.network.io,"+otel+",network.io.direction=receive value=7i"+at,
		`k8s.pod.volume.usage,`+otel+`,k8s.volume.name=my\ data value=4096i`+at)
}

func TestOptionsOfVersions(t *testing.T) {
	sinktest.Complains(t, Kind, "influxdb:http://h?version=2", "InfluxDB 2 needs `org` and `bucket`")
	sinktest.Complains(t, Kind, "influxdb:http://h?version=2&org=o&bucket=b&db=x&user=y", "InfluxDB 2 has `bucket` and `org`", "`user` is for InfluxDB 1")
	sinktest.Complains(t, Kind, "influxdb:http://h?token=x&no_sync=true", "`token` is for InfluxDB 2 and 3", "`no_sync` is for InfluxDB 3")
	sinktest.Complains(t, Kind, "influxdb:http://h?version=3&db=a%20b", "InfluxDB 3 wants letters")
	sinktest.Complains(t, Kind, "influxdb:http://h?version=4&names=x&compression=zstd", "`version` flag", "`names` flag", "`compression` flag")
	sinktest.Complains(t, Kind, "influxdb:http://h?names=otel&withfields=true", "are for Heapster's names")
}
