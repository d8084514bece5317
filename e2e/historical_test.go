package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/apigw/historyapi"
	"github.com/heapstream/heapstream/apigw/modelapi"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/influxdb"
	"github.com/heapstream/heapstream/sinks/sink"
)

// historyStep and historyTicks are the past that both historical sources are filled with.
const (
	historyStep  = 15 * time.Second
	historyTicks = 40
)

// historicalRollups makes the rollups of a past that ends at a tick: values go up and down, some are fractions, and
// one pod comes late.
func historicalRollups(last time.Time) (all []*proto.Rollup) {
	r := rand.New(rand.NewPCG(4, 2))
	for tick := range historyTicks {
		at := last.Add(-time.Duration(historyTicks-1-tick) * historyStep)
		add := func(scope proto.Scope, name string) *proto.Rollup {
			u := &proto.Rollup{Scope: scope, Cluster: "prod", Name: name, Tick: proto.Tick(at.UnixMilli()), Resolution: historyStep}
			u.Scraped = at.UnixNano()
			all = append(all, u)
			return u
		}
		measure := func(u *proto.Rollup, row int) {
			u.Values.Set(row, proto.FieldStart, last.Add(-time.Hour).UnixNano())
			u.Values.Set(row, proto.MemoryUsage.Field(), 1<<20+r.Int64N(1<<30))
			u.Values.Set(row, proto.MemoryPageFaults.Delta(), r.Int64N(1e6))
			u.Values.Set(row, proto.GroupMemory.Span(), int64(historyStep))
			u.Values.Set(row, proto.CPUUsage.Delta(), r.Int64N(2e9)*int64(tick%5)) // often 0
			u.Values.Set(row, proto.GroupCPU.Span(), int64(historyStep))
			u.Values.Set(row, proto.GroupCPU.Time(), at.UnixNano())
		}
		node := add(proto.ScopeNode, "node-0")
		measure(node, node.AddEntity(proto.Entity{Kind: proto.KindNode, Name: "node-0", Hostname: "host-0", Parent: -1}))
		node.Values.Set(0, proto.CPUNodeAllocatable.Field(), 3000)
		measure(node, node.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet", Parent: 0}))
		pods := []string{"web-0", "web-1"}
		if tick >= historyTicks/2 {
			pods = append(pods, "late-0")
		}
		for _, name := range pods {
			pod := node.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: "shop", Name: name, UID: "uid-of-" + name, Parent: 0, Phase: proto.PhaseRunning})
			measure(node, pod)
			measure(node, node.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: "app", Parent: int32(pod), Flags: proto.FlagRunning})) //nolint:gosec // a few
			for _, volume := range []string{"Volume:data", "Volume:logs"} {
				d := node.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: volume, Claim: "claim"}) //nolint:gosec // a few
				node.DeviceValues.Set(d, proto.FilesystemUsage.Field(), r.Int64N(1<<40))
			}
		}
		ns := add(proto.ScopeNamespace, "shop")
		ns.AddEntity(proto.Entity{Kind: proto.KindNamespace, Name: "shop", Parent: -1})
		ns.Values.Set(0, proto.MemoryUsage.Field(), r.Int64N(1<<40))
		totals := add(proto.ScopeTotals, "")
		totals.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
		totals.Values.Set(0, proto.MemoryUsage.Field(), r.Int64N(1<<40))
	}
	return all
}

// historical is the Heapster surface over one historical source.
type historical struct {
	t   *testing.T
	api http.Handler
}

func (h historical) get(path string) (status int, body string) {
	h.t.Helper()
	w := httptest.NewRecorder()
	h.api.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/historical"+path, nil))
	data, err := io.ReadAll(w.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return w.Code, string(data)
}

// historicalView is a view of the rollups at the moment after the last.
func historicalView(t *testing.T, rollups []*proto.Rollup, last time.Time) *view.View {
	t.Helper()
	now := last.Add(3 * time.Second)
	v, err := view.New(view.Config{Window: view.DefaultWindow, Own: "prod"}, view.Deps{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := v.Cluster("prod")
	for i, r := range rollups {
		c.Apply(r, view.Origin{Seq: uint64(i + 1), Time: r.Tick.Time().Add(time.Second), Live: true}) //nolint:gosec // a few
	}
	return v
}

func newHistorical(t *testing.T, v *view.View, source historyapi.Source, now time.Time) historical {
	t.Helper()
	api, err := modelapi.New(modelapi.Config{Cluster: "prod"}, modelapi.Deps{
		View: v, History: historyapi.New(source, bustest.Logger(t), func() time.Time { return now }),
	})
	if err != nil {
		t.Fatal(err)
	}
	return historical{t, api}
}

// TestHistoricalSourcesAgree writes a past into a real InfluxDB by our own sink, in both schemas, and into a window, and
// asks both for everything that the historical API has.
func TestHistoricalSourcesAgree(t *testing.T) {
	server := startInfluxd(t)
	last := time.Now().Truncate(time.Minute)
	rollups := historicalRollups(last)
	v := historicalView(t, rollups, last)
	window := newHistorical(t, v, historyapi.NewWindow(v), last)
	for _, options := range []string{"db=plain&extended=true", "db=fields&extended=true&withfields=true", "db=uids&extended=true&pod_id=true"} {
		t.Run(options, func(t *testing.T) {
			uri := "influxdb:" + server.URL + "?" + options
			fillInflux(t, uri, rollups)
			cfg, err := historyapi.ParseInflux(uri, "prod")
			if err != nil {
				t.Fatal(err)
			}
			source := historyapi.NewInflux(cfg)
			t.Cleanup(source.Close)
			compareHistorical(t, window, newHistorical(t, v, source, last), last)
		})
	}
}

func fillInflux(t *testing.T, uri string, rollups []*proto.Rollup) {
	t.Helper()
	target, err := sink.ParseTarget(uri)
	if err != nil {
		t.Fatal(err)
	}
	s, err := influxdb.Kind.New(target, sink.Deps{Cluster: "prod", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: bustest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	batch := make([]sink.Message, len(rollups))
	for i, r := range rollups {
		batch[i] = sink.Message{Rollup: r, ID: fmt.Sprint(i)}
	}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}

// compareHistorical asks both for the same and compares the answers as texts, but for the last digits of fractions.
func compareHistorical(t *testing.T, window, database historical, last time.Time) {
	stamp := func(at time.Time) string { return url.QueryEscape(at.Format(time.RFC3339Nano)) }
	all := "?start=" + stamp(last.Add(-time.Hour))
	middle := "?start=" + stamp(last.Add(-5*time.Minute)) + "&end=" + stamp(last.Add(-time.Minute))
	none := "?start=" + stamp(last.Add(-48*time.Hour)) + "&end=" + stamp(last.Add(-47*time.Hour))
	volume := "&labels=resource_id:Volume:data"
	var paths []string
	for _, entity := range []string{"", "/nodes/node-0", "/nodes/host-0", "/nodes/node-0/freecontainers/kubelet", "/namespaces/shop", "/namespaces/shop/pods/web-0",
		"/namespaces/shop/pods/late-0", "/namespaces/shop/pods/web-1/containers/app"} {
		paths = append(paths, entity+"/metrics", entity+"/metrics/")
		for _, metric := range []string{"memory/usage", "memory-usage", "cpu/usage_rate", "memory/page_faults_rate", "uptime", "cpu/node_utilization", "filesystem/usage", "nope", "a%20b"} {
			for _, span := range []string{all, middle, none, all + volume} {
				paths = append(paths, entity+"/metrics/"+metric+span)
				for _, bucket := range []string{"", "&bucket=60s", "&bucket=450000ms", "&bucket=2h", "&bucket=1d"} {
					for _, functions := range []string{"average", "max,min", "median", "count", "50-perc,95-perc,99-perc", "average,max,min,median,count,50-perc,95-perc,99-perc"} {
						paths = append(paths, entity+"/metrics-aggregated/"+functions+"/"+metric+span+bucket)
					}
				}
			}
		}
	}
	for _, metric := range []string{"memory/usage", "cpu/usage_rate", "nope"} {
		for _, pods := range []string{"/namespaces/shop/pod-list/web-0", "/namespaces/shop/pod-list/web-0,late-0,web-1,web-0", "/namespaces/shop/pod-list/web-0,gone",
			"/namespaces/shop/pod-list/", "/pod-id-list/uid-of-web-0,uid-of-web-1", "/pod-id-list/uid-of-web-0,gone", "/pod-id/uid-of-web-0", "/pod-id/uid-of-web-0/containers/app", "/pod-id/gone"} {
			paths = append(paths, pods+"/metrics/"+metric+all, pods+"/metrics", pods+"/metrics-aggregated/average,count/"+metric+all+"&bucket=1m")
		}
	}
	paths = append(paths, "", "/", "/nodes", "/nodes/", "/namespaces", "/namespaces/shop/pods", "/namespaces/nope/pods", "/nodes/node-0/freecontainers", "/nodes/nope/freecontainers",
		"/namespaces/shop/pods/web-0/containers", "/namespaces/shop/pods/nope/containers", "/nodes/a'b/freecontainers", "/namespaces/x%22y/pods", "/debug/allkeys",
		"/nodes/node-0", "/metrics-aggregated/max", "/metrics-aggregated/max/", "/metrics-aggregated//memory/usage"+all, "/metrics/memory/usage", "/metrics/memory/usage?start=0001-01-01T00:00:00Z",
		"/metrics/memory/usage?start=x", "/metrics/memory/usage"+all+"&labels=x", "/metrics/memory/usage"+all+"&labels=a:it's",
		"/metrics-aggregated/max/memory/usage"+all+"&bucket=5", "/metrics-aggregated/max/memory/usage"+all+"&bucket=5x", "/metrics-aggregated/max/memory/usage"+all+"&bucket=-5s",
		"/metrics-aggregated/max/memory/usage"+all+"&bucket=0s", "/metrics-aggregated/max/memory/usage"+all+"&bucket=1ms", "/metrics-aggregated/max,mode/memory/usage"+all)
	answered, aggregated := 0, 0
	for _, path := range paths {
		wantStatus, want := window.get(path)
		status, body := database.get(path)
		if status != wantStatus || !sameNumbers(body, want) {
			t.Errorf("%s\n database %d %.1500s\n   window %d %.1500s", path, status, body, wantStatus, want)
			if t.Failed() && answered > 5 {
				return
			}
		}
		if status == http.StatusOK {
			answered++
			if strings.Contains(path, "metrics-aggregated") && aggregatedAsReference(t, database, path, body) {
				aggregated++
			}
		}
	}
	t.Logf("%d of %d questions had an answer; %d aggregations compared with the reference", answered, len(paths), aggregated)
	if answered < 500 || aggregated < 400 {
		t.Errorf("only %d answers and %d aggregations were compared", answered, aggregated)
	}
}

// sameNumbers compares texts word for word, and numbers with a fraction to 12 digits: sums of floats depend on the order.
func sameNumbers(a, b string) bool {
	if a == b {
		return true
	}
	x, y := strings.Fields(strings.ReplaceAll(a, ",", " , ")), strings.Fields(strings.ReplaceAll(b, ",", " , "))
	return slices.EqualFunc(x, y, func(x, y string) bool {
		f, errX := strconv.ParseFloat(strings.Trim(x, "{}]"), 64)
		g, errY := strconv.ParseFloat(strings.Trim(y, "{}]"), 64)
		return x == y || errX == nil && errY == nil && near(f, g)
	})
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-12*math.Max(math.Abs(a), math.Abs(b)) }

// aggregation is the answer to metrics-aggregated.
type aggregation struct {
	Buckets []struct {
		Timestamp                         time.Time
		Count                             *int64
		Average, Maximum, Minimum, Median *aggregate
		Percentiles                       map[string]*aggregate
	}
	BucketSize time.Duration
}

type aggregate struct {
	IntValue   *int64
	FloatValue *float64
}

func (a *aggregate) value() float64 {
	if a.IntValue != nil {
		return float64(*a.IntValue)
	}
	return *a.FloatValue
}

// aggregatedAsReference computes an aggregation from the points that the same source answers, in the plainest way.
func aggregatedAsReference(t *testing.T, h historical, path, body string) bool {
	t.Helper()
	var got aggregation
	if json.Unmarshal([]byte(body), &got) != nil || got.Buckets == nil {
		return false // a list
	}
	before, after, _ := strings.Cut(path, "/metrics-aggregated/")
	_, after, _ = strings.Cut(after, "/")
	_, raw := h.get(before + "/metrics/" + after)
	var points struct {
		Metrics []struct {
			Timestamp  time.Time
			Value      int64
			FloatValue *float64
		}
	}
	if err := json.Unmarshal([]byte(raw), &points); err != nil {
		t.Errorf("%s: %v", path, err)
		return false
	}
	buckets := map[int64][]float64{}
	for _, p := range points.Metrics {
		key, v := int64(0), float64(p.Value)
		if got.BucketSize > 0 {
			key = p.Timestamp.UnixNano() / int64(got.BucketSize)
		}
		if p.FloatValue != nil {
			v = *p.FloatValue
		}
		buckets[key] = append(buckets[key], v)
	}
	if len(got.Buckets) != len(buckets) {
		t.Errorf("%s: %d buckets, want %d", path, len(got.Buckets), len(buckets))
		return false
	}
	for _, b := range got.Buckets {
		key := int64(0)
		if got.BucketSize > 0 {
			key = b.Timestamp.UnixNano() / int64(got.BucketSize)
			if b.Timestamp.UnixNano()%int64(got.BucketSize) != 0 {
				t.Errorf("%s: a bucket of %s begins at %s", path, got.BucketSize, b.Timestamp)
			}
		}
		values := slices.Sorted(slices.Values(buckets[key]))
		if len(values) == 0 {
			t.Errorf("%s: a bucket at %s without points", path, b.Timestamp)
			continue
		}
		n, sum := len(values), 0.0
		for _, v := range values {
			sum += v
		}
		check := func(what string, a *aggregate, want float64) {
			if a != nil && !near(a.value(), want) {
				t.Errorf("%s: %s at %s is %v, want %v of %v", path, what, b.Timestamp, a.value(), want, values)
			}
		}
		if b.Count != nil && *b.Count != int64(n) {
			t.Errorf("%s: count at %s is %d, want %d", path, b.Timestamp, *b.Count, n)
		}
		check("average", b.Average, sum/float64(n))
		check("maximum", b.Maximum, values[n-1])
		check("minimum", b.Minimum, values[0])
		check("median", b.Median, (values[(n-1)/2]+values[n/2])/2)
		for p, a := range b.Percentiles {
			percent, _ := strconv.Atoi(p)
			check(p+" percent", a, values[(n*percent+50)/100-1])
		}
	}
	return true
}

// TestHistoricalSourceNeedsToReadOnly asks an InfluxDB that demands passwords, as a user that may do nothing but read.
func TestHistoricalSourceNeedsToReadOnly(t *testing.T) {
	server := startInfluxd(t, "auth-enabled = true")
	admin := func(statement string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/query?"+url.Values{"q": {statement}}.Encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("root", "the root's")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || bytes.Contains(body, []byte("error")) {
			t.Fatalf("%s: %v %s", statement, err, body)
		}
	}
	admin(`CREATE USER root WITH PASSWORD 'the root\'s' WITH ALL PRIVILEGES`)
	last := time.Now().Truncate(time.Minute)
	rollups := historicalRollups(last)
	v := historicalView(t, rollups, last)
	fillInflux(t, "influxdb:"+server.URL+"?user=root&pw=the%20root%27s", rollups)
	admin(`CREATE USER reader WITH PASSWORD 'r'`)
	ask := func(password string) historical {
		cfg, err := historyapi.ParseInflux("influxdb:"+server.URL+"?user=reader&pw="+password, "prod")
		if err != nil {
			t.Fatal(err)
		}
		source := historyapi.NewInflux(cfg)
		t.Cleanup(source.Close)
		return newHistorical(t, v, source, last)
	}
	check := func(h historical, path, want string) {
		t.Helper()
		if status, body := h.get(path); !strings.Contains(fmt.Sprint(status, " ", body), want) {
			t.Errorf("%s: %d %.500s, want %s", path, status, body, want)
		}
	}
	start := "?start=" + last.Add(-time.Hour).UTC().Format(time.RFC3339)
	check(ask("wrong"), "/nodes/node-0/metrics/memory/usage"+start, "500 authorization failed")
	check(ask("r"), "/nodes/node-0/metrics/memory/usage"+start, "500 error authorizing query: reader not authorized to execute statement")
	admin(`GRANT READ ON k8s TO reader`)
	reader := ask("r")
	check(reader, "/nodes/node-0/metrics/memory/usage"+start, `"value": `)
	check(reader, "/nodes/node-0/metrics-aggregated/99-perc/memory/usage"+start, `"99": `)
	check(reader, "/nodes", `"node-0"`)
	check(reader, "/namespaces/shop/pods", `"late-0"`)
	check(reader, "/nodes/node-0/metrics", `"cpu/node_utilization"`)
}

// TestHistoricalSourceIsNamedByTheSink runs the pipeline with an InfluxDB sink that is the historical source, named by
// its key, and asks for the past of a node until it is there.
func TestHistoricalSourceIsNamedByTheSink(t *testing.T) {
	server := startInfluxd(t)
	o := startOracle(t)
	s := startStandalone(t, "--source="+o.source(), "--metric_resolution=5s", "--sink=influxdb:"+server.URL, "--historical_source=influxdb")
	start := url.QueryEscape(time.Now().Add(-time.Hour).Format(time.RFC3339))
	var r modelResult
	path := "/api/v1/historical/nodes/node-0000/metrics/memory/usage?start=" + start
	eventually(t, 2*time.Minute, func() bool { return s.getJSON(t, path, &r) && len(r.Metrics) > 0 }, func() string {
		status, body := s.get(t, path)
		return fmt.Sprint(status, " ", string(bytes.TrimSpace(body)))
	})
	var nodes []string
	eventually(t, 2*time.Minute, func() bool {
		return s.getJSON(t, "/api/v1/historical/nodes", &nodes) && slices.Equal(nodes, []string{"node-0000", "node-0001", "node-0002"})
	}, func() string { return fmt.Sprintf("nodes are %q", nodes) })
}
