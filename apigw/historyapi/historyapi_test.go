package historyapi

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var begin = time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)

// remembered is a view of a pod that has 10, 20, 30 bytes at the minutes 0, 1, 2 and was born in between.
func remembered(t testing.TB) *view.View {
	t.Helper()
	v, err := view.New(view.Config{Window: view.DefaultWindow, Own: "prod"}, view.Deps{Now: func() time.Time { return begin.Add(2*time.Minute + time.Second) }})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := v.Cluster("prod")
	for i := range 3 {
		r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "prod", Name: "n1", Tick: proto.Tick(begin.Add(time.Duration(i) * time.Minute).UnixMilli()), Resolution: time.Minute}
		r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: "n1", Parent: -1})
		pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "shop", Name: "web", UID: "u-1", Parent: 0, Phase: proto.PhaseRunning})
		r.Values.Set(pod, proto.MemoryUsage.Field(), int64(10*(i+1)))
		r.Values.Set(pod, proto.FieldBirth, begin.Add(30*time.Second).UnixNano())
		c.Apply(r, view.Origin{Seq: uint64(i + 1), Time: r.Tick.Time().Add(time.Second), Live: true})
	}
	return v
}

// asked answers a request below the root.
func asked(t testing.TB, source Source, path string) (int, string) {
	t.Helper()
	v := remembered(t)
	if source == nil {
		source = NewWindow(v)
	}
	c, _ := v.Cluster("prod")
	w := httptest.NewRecorder()
	q := answer.Request{W: w, R: httptest.NewRequest(http.MethodGet, "/x"+path, nil)}
	New(source, nil, func() time.Time { return begin.Add(3 * time.Minute) }).Serve(&q, c, q.R.URL.Path[2:])
	return w.Code, w.Body.String()
}

func TestBoundsAreExcluded(t *testing.T) {
	for span, want := range map[string]string{
		"start=2026-11-20T20:25:00Z":                            "10 20 30",
		"start=2026-11-20T20:26:00Z":                            "20 30",
		"start=2026-11-20T20:25:59.999999999Z":                  "10 20 30",
		"start=2026-11-20T20:26:00Z&end=2026-11-20T20:28:00Z":   "20",
		"start=2026-11-20T20:26:00Z&end=2026-11-20T20:28:00.1Z": "20 30",
	} {
		_, body := asked(t, nil, "/namespaces/shop/pods/web/metrics/memory/usage?"+span)
		var got []string
		for _, part := range strings.Split(body, `"value": `)[1:] {
			got = append(got, strings.Fields(part)[0])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", span, got, want)
		}
	}
}

func TestPodByUIDBeginsWithItsBirth(t *testing.T) {
	status, body := asked(t, nil, "/pod-id/u-1/metrics-aggregated/count,min/memory/usage?start=2026-11-20T20:00:00Z")
	const want = "{\n  \"buckets\": [\n   {\n    \"timestamp\": \"2026-11-20T20:00:00Z\",\n    \"count\": 2,\n    \"minimum\": {\n     \"intValue\": 20\n    }\n   }\n  ],\n  \"bucketSize\": 0\n }"
	if status != http.StatusOK || body != want {
		t.Errorf("%d %s, want %s", status, body, want)
	}
}

func TestBadQuestionsHaveTheirStatusAndText(t *testing.T) {
	const pod, start = "/namespaces/shop/pods/web", "?start=2026-11-20T20:00:00Z"
	long := strings.Repeat("x", 10_000)
	for path, want := range map[string]string{
		pod + "/metrics/memory/usage":                                                                                                         "400 no start time (or a start time of zero) provided",
		pod + "/metrics/memory/usage?start=0001-01-01T00:00:00Z":                                                                              "400 no start time (or a start time of zero) provided",
		pod + "/metrics/memory/usage?start=x":                                                                                                 `400 timestamp argument cannot be parsed: parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006"`,
		pod + "/metrics/memory/usage" + start + "&labels=x":                                                                                   `400 invalid label pair "x"`,
		pod + "/metrics/memory/usage" + start + "&labels=a:it's":                                                                              `500 Invalid label value "it's"`,
		pod + "/metrics/memory/usage" + start + "&labels=a%20b:c":                                                                             `500 Invalid label name "a b"`,
		pod + "/metrics-aggregated/max/memory/usage" + start + "&bucket=5":                                                                    `400 unable to parse bucket size: "5" is too short to be a duration`,
		pod + "/metrics-aggregated/max/memory/usage" + start + "&bucket=55":                                                                   `400 unable to parse bucket size: "55" has no known duration suffix`,
		pod + "/metrics-aggregated/max/memory/usage" + start + "&bucket=-5s":                                                                  `400 strconv.ParseUint: parsing "-5": invalid syntax`,
		pod + "/metrics-aggregated/max/memory/usage" + start + "&bucket=0s":                                                                   `400 unable to parse bucket size: "0s" is no length that a bucket can have`,
		pod + "/metrics-aggregated/max/memory/usage" + start + "&bucket=999999999d":                                                           `400 unable to parse bucket size: "999999999d" is no length that a bucket can have`,
		pod + "/metrics-aggregated/max/memory/usage?start=1970-01-01T00:00:00Z&bucket=1ms":                                                    "400 more than 100000 buckets of 1ms between start and end: ask for larger ones, a shorter range, or fewer pods",
		"/namespaces/shop/pod-list/" + strings.Repeat("p,", 10) + "/metrics-aggregated/max/memory/usage?start=2026-11-20T00:00:00Z&bucket=1s": "400 more than 100000 buckets of 1s between start and end: ask for larger ones, a shorter range, or fewer pods",
		pod + "/metrics-aggregated/max,mode/memory/usage" + start:                                                                             `400 Unknown aggregation "mode"`,
		pod + "/metrics-aggregated/max/memory/usage":                                                                                          "400 no start time (or a start time of zero) provided",
		pod + "/metrics/nope" + start:                                                                                                         `500 No results for metric "nope" describing "(pod)ns:shop/pod:web"`,
		pod + "/metrics/a%22b" + start:                                                                                                        `500 Invalid metric name "a\"b"`,
		"/nodes/" + long + "'/metrics/cpu/usage" + start:                                                                                      `500 Invalid node name "` + long[:256] + `…"`,
		"/nodes/a'b/freecontainers":                                                                                                           `500 Invalid node name "a'b"`,
		"/namespaces/a%20b/pods":                                                                                                              `500 Invalid namespace name "a b"`,
		"/namespaces/shop/pods/a'/metrics":                                                                                                    `500 Invalid pod name "a'"`,
		"/namespaces/shop/pods/web/containers/a'/metrics":                                                                                     `500 Invalid container name "a'"`,
		"/pod-id/a'/metrics/memory/usage" + start:                                                                                             `500 Invalid pod id "a'"`,
		"/pod-id/gone/metrics/memory/usage" + start:                                                                                           `500 No results for metric "memory/usage" describing "(pod)poduid:gone"`,
		"/pod-id/u-1/containers/app/metrics/memory/usage" + start:                                                                             `500 No results for metric "memory/usage" describing "(pod_container)poduid:u-1/container:app"`,
		"/nodes/n1/freecontainers/x/metrics/memory/usage" + start:                                                                             `500 No results for metric "memory/usage" describing "(sys_container)node:n1/container:x"`,
		"/namespaces/shop/metrics/memory/usage" + start:                                                                                       `500 No results for metric "memory/usage" describing "(ns)ns:shop"`,
		"/metrics/memory/usage" + start:                                                                                                       `500 No results for metric "memory/usage" describing "(cluster)[cluster]"`,
		"/pod-id/u-1/metrics":                                                                                                                 "404 404: Page Not Found",
		"/pod-id-list/u-1/metrics":                                                                                                            "404 404: Page Not Found",
		"/debug/allkeys":                                                                                                                      "404 404: Page Not Found",
		"":                                                                                                                                    "404 404: Page Not Found",
		"/namespaces/shop/pod-list/" + strings.Repeat("p,", MaxKeys) + "/metrics/memory/usage" + start:                                        "400 1001 pods: ask for at most 1000 at a time",
	} {
		if status, body := asked(t, nil, path); fmt.Sprint(status, " ", body) != want {
			t.Errorf("%.200s\n got %d %s\nwant %s", path, status, body, want)
		}
	}
}

// broken is what asks an InfluxDB that answers by handle.
func broken(t *testing.T, timeout string, handle http.HandlerFunc) *Influx {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	cfg, err := ParseInflux("influxdb:"+s.URL+"?timeout="+timeout, "prod")
	if err != nil {
		t.Fatal(err)
	}
	i := NewInflux(cfg)
	t.Cleanup(i.Close)
	return i
}

func TestDatabaseThatFailsIsTold(t *testing.T) {
	const path, list = "/nodes/n1/metrics/memory/usage?start=2026-11-20T20:00:00Z", "/nodes"
	timeout := "2m"
	check := func(what string, handle http.HandlerFunc, want string) {
		t.Helper()
		i := broken(t, timeout, handle)
		if status, body := asked(t, i, path); fmt.Sprint(status, " ", body) != want {
			t.Errorf("%s: %d %s, want %s", what, status, body, want)
		}
		if status, body := asked(t, i, list); status != 500 || body != "Unable to list all nodes" {
			t.Errorf("%s: a list is answered %d %s", what, status, body)
		}
	}
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); _, _ = io.WriteString(w, body) }
	}
	check("an error", say(401, `{"error":"authorization failed"}`), "500 authorization failed")
	check("an error of the statement", say(200, `{"results":[{"statement_id":0,"error":"database not found: k8s"}]}`), "500 database not found: k8s")
	check("another server", say(200, `<html>`), "500 "+textNoConnection)
	check("an answer cut short", say(200, `{"results":[{"ser`), "500 "+textNoConnection)
	check("no results", say(200, `{"results":[]}`), "500 "+textNoAnswer)
	check("a redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
	}, "500 "+textNoConnection)
	check("an answer without end", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"results":[{"series":[{"values":[`)
		for row := []byte(strings.Repeat(`[1,2],`, 10_000)); ; {
			if _, err := w.Write(row); err != nil {
				return
			}
		}
	}, "400 "+errTooMany.Error())
	end := make(chan struct{})
	timeout = "200ms"
	check("no answer", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
		select {
		case <-r.Context().Done():
		case <-end:
		}
	}, "500 "+textNoConnection)
	close(end)
}

func TestSourceThatFailsIsLoggedOnce(t *testing.T) {
	var failing atomic.Bool
	failing.Store(true)
	i := broken(t, "2m", func(w http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":"engine is closed"}`)
			return
		}
		_, _ = io.WriteString(w, `{"results":[{}]}`)
	})
	var log bytes.Buffer
	c, _ := remembered(t).Cluster("prod")
	api := New(i, slog.New(slog.NewTextHandler(&log, nil)), nil)
	ask := func() {
		q := answer.Request{W: httptest.NewRecorder(), R: httptest.NewRequest(http.MethodGet, "/nodes", nil)}
		api.Serve(&q, c, "/nodes")
	}
	for _, fails := range []bool{true, true, false, false, true} {
		failing.Store(fails)
		ask()
	}
	if bad, good := strings.Count(log.String(), "does not answer"), strings.Count(log.String(), "answers again"); bad != 2 || good != 1 || !strings.Contains(log.String(), "engine is closed") {
		t.Errorf("logged:\n%s", &log)
	}
}

func TestDatabaseIsAskedWithCredentialsOverTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		if user != "reader" || pass != "s3cret" || r.Method != http.MethodPost || r.URL.Path != "/query" || r.URL.RawQuery != "" || r.FormValue("db") != "metrics" || r.FormValue("epoch") != "ns" {
			t.Errorf("asked %s %s by %q", r.Method, r.URL, user)
		}
		const want = `SELECT "usage" FROM "default"."memory" WHERE "type" = 'node' AND "cluster_name" = 'it\'s' AND "nodename" = 'n1' AND time > 1795204800000000000 AND time < `
		if q := r.FormValue("q"); !strings.HasPrefix(q, want) {
			t.Errorf("asked %s, want %s", q, want)
		}
		_, _ = io.WriteString(w, `{"results":[{"series":[{"name":"memory","columns":["time","usage"],"values":[[1795206360000000000,7]]}]}]}`)
	}))
	defer s.Close()
	dir := t.TempDir()
	ca, password := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseInflux("influxdb:"+s.URL+"?"+url.Values{"user": {"reader"}, "pw_file": {password}, "db": {"metrics"}, "withfields": {"true"}, "cacert": {ca}, "cluster_name": {"it's"}}.Encode(), "prod")
	if err != nil {
		t.Fatal(err)
	}
	i := NewInflux(cfg)
	defer i.Close()
	status, body := asked(t, i, "/nodes/n1/metrics/memory/usage?start=2026-11-20T20:00:00Z")
	if status != 200 || !strings.Contains(body, `"value": 7`) {
		t.Errorf("%d %s", status, body)
	}
}

func TestAddressesAreReadAsTheSinkReadsThem(t *testing.T) {
	t.Setenv("INFLUX_HOST", "db")
	for value, want := range map[string]string{
		"influxdb":                              "http://localhost:8086",
		"influxdb:":                             "http://localhost:8086",
		"influxdb:http://h:1":                   "http://h:1",
		`"influxdb:https://h:1?user=a"`:         "https://h:1",
		"influxdb:http://h:1?secure=true&db=x":  "https://h:1",
		"influxdb:h:1":                          "http://h:1",
		"influxdb:http://h":                     "http://h:8086",
		"influxdb:http://$INFLUX_HOST:1?db=a;b": "http://db:1",
	} {
		c, err := ParseInflux(value, "prod")
		if err != nil || c.Base.String() != want || c.ClusterName != "prod" {
			t.Errorf("%s: %s %v, want %s", value, &c.Base, err, want)
		}
	}
	for value, want := range map[string]string{
		"kafka:?brokers=h:1":                           `historical source "kafka": want window, or influxdb:URL as for --sink`,
		"influxdb:ftp://h":                             `want http or https`,
		"influxdb:http://h?withfields=perhaps":         "`withfields` flag is not true or false",
		"influxdb:http://h?timeout=-1s":                "`timeout` flag is no duration such as 30s",
		"influxdb:http://h?cacert=/nowhere/ca.pem":     "`cacert`: open /nowhere/ca.pem",
		"influxdb:http://h?pw=s3cret&user=%zz":         "an option has a bad percent escape",
		"influxdb:http://root:s3cret@h:x":              "its address is not a URL",
		"influxdb:http://h?cert=/nowhere/c&pw=s3cret":  "`cert` and `key`",
		"influxdb:http://h?pw_file=/nowhere/pw&pw=abc": "`pw_file`: open /nowhere/pw",
	} {
		if _, err := ParseInflux(value, "prod"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", value, err, want)
		}
	}
}

// FuzzQuotes checks that no name ends its own quotes: what is between them reads back as the name.
func FuzzQuotes(f *testing.F) {
	for _, s := range []string{"", "a", `a"b`, `a'b`, `a\`, `\"`, "a\nb", `'; DROP DATABASE k8s; --`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for quoted, quote := range map[string]byte{quoteName(s): '"', quoteText(s): '\''} {
			var back []byte
			inside := quoted[1 : len(quoted)-1]
			for i := 0; i < len(inside); i++ {
				switch c := inside[i]; {
				case c == quote || c == '\n':
					t.Fatalf("%q ends at %d", quoted, i)
				case c == '\\':
					if i++; i == len(inside) {
						t.Fatalf("%q escapes its quote", quoted)
					}
					if inside[i] == 'n' {
						back = append(back, '\n')
						continue
					}
					fallthrough
				default:
					back = append(back, inside[i])
				}
			}
			if string(back) != s || quoted[0] != quote || quoted[len(quoted)-1] != quote {
				t.Fatalf("%q is %s, which reads %q", s, quoted, back)
			}
		}
	})
}

// FuzzQuestions asks the window anything: it answers something, in bounded time.
func FuzzQuestions(f *testing.F) {
	f.Add("/namespaces/shop/pods/web/metrics-aggregated/max,99-perc/memory/usage", "start=2026-11-20T20:00:00Z&bucket=1m")
	f.Add("/pod-id-list/u-1,u-1/metrics/memory/usage", "start=2026-11-20T20:00:00Z&labels=a:b")
	f.Add("/nodes", "start=1969-01-01T00:00:00Z&end=9999-12-31T23:59:59Z&bucket=1d")
	source := NewWindow(remembered(f))
	c, _ := source.view.Cluster("prod")
	api := New(source, nil, func() time.Time { return begin.Add(3 * time.Minute) })
	f.Fuzz(func(t *testing.T, path, query string) {
		w := httptest.NewRecorder()
		q := answer.Request{W: w, R: &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path, RawQuery: query}}}
		api.Serve(&q, c, path)
		if q.Status == 0 || w.Code != q.Status {
			t.Fatalf("status %d, answered %d", q.Status, w.Code)
		}
	})
}

func TestBucketsAreAlignedToTheEpoch(t *testing.T) {
	for tick, want := range map[proto.Tick]proto.Tick{0: 0, 1: 0, 59_999: 0, 60_000: 60_000, -1: -60_000, -60_000: -60_000} {
		if got := floor(tick, time.Minute); got != want {
			t.Errorf("%d: %d, want %d", tick, got, want)
		}
	}
}
