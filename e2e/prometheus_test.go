package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// timeSeries is a store of this machine that takes Prometheus' remote write and answers its queries.
type timeSeries struct {
	t      *testing.T
	binary string
	args   []string
	end    syscall.Signal // by which it is taken down: one without a log of what it wrote last is told to go
	url    string
	sink   string
	ready  string
	cmd    *exec.Cmd
	said   bytes.Buffer
}

func prometheusServer(t *testing.T) *timeSeries { return prometheusWith(t, "") }

// prometheusWith is one with a configuration.
func prometheusWith(t *testing.T, text string) *timeSeries {
	t.Helper()
	dir, addr := t.TempDir(), bustest.FreeAddr(t)
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return newTimeSeries(t, &timeSeries{
		t: t, binary: "prometheus", end: syscall.SIGKILL, url: "http://" + addr, ready: "/-/ready", sink: "prometheus:http://" + addr,
		args: []string{"--config.file=" + config, "--web.enable-remote-write-receiver", "--web.listen-address=" + addr, "--storage.tsdb.path=" + filepath.Join(dir, "data"), "--log.level=warn"},
	})
}

func victoriaServer(t *testing.T) *timeSeries {
	t.Helper()
	dir, addr := t.TempDir(), bustest.FreeAddr(t)
	return newTimeSeries(t, &timeSeries{
		t: t, binary: "victoria-metrics", end: syscall.SIGTERM, url: "http://" + addr, ready: "/health", sink: "prometheus:http://" + addr,
		args: []string{"-httpListenAddr=" + addr, "-storageDataPath=" + dir, "-retentionPeriod=1y", "-loggerLevel=WARN", "-dedup.minScrapeInterval=1ms", "-search.latencyOffset=0s"},
	})
}

func newTimeSeries(t *testing.T, s *timeSeries) *timeSeries {
	t.Helper()
	if _, err := exec.LookPath(s.binary); err != nil {
		t.Skipf("SKIP: no %s on this machine: apt-get install %s", s.binary, s.binary)
	}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.down()
		}
		if t.Failed() {
			t.Logf("%s: %s", s.binary, s.said.String())
		}
	})
	s.up()
	return s
}

func (s *timeSeries) up() {
	s.t.Helper()
	s.cmd = exec.Command(s.binary, s.args...) //nolint:gosec // of this file
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, 2*time.Minute, func() bool {
		resp, err := http.Get(s.url + s.ready)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, func() string { return s.binary + " does not come up" })
}

func (s *timeSeries) down() {
	_ = s.cmd.Process.Signal(s.end)
	_ = s.cmd.Wait() // says how it ended
	s.cmd = nil
}

// samples are all that match: how many at each time of each series, and the values.
func (s *timeSeries) samples(match string) (counts map[string]int, values map[string]float64) {
	s.t.Helper()
	resp, err := http.Get(s.url + "/api/v1/query?" + url.Values{"query": {match + "[1d]"}}.Encode())
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Values [][2]any          `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err = errors.Join(err, json.Unmarshal(body, &answer)); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("query of %s: %v %s %s", match, err, resp.Status, body)
	}
	counts, values = map[string]int{}, map[string]float64{}
	for _, one := range answer.Data.Result {
		for _, v := range one.Values {
			value, err := strconv.ParseFloat(v[1].(string), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			key := seriesAt(one.Metric, int64(math.Round(v[0].(float64)*1000)))
			counts[key]++
			values[key] = value
		}
	}
	return counts, values
}

// seriesAt names a sample by its labels and its time.
func seriesAt(labels map[string]string, at int64) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		fmt.Fprintf(&b, "%s=%q ", k, labels[k])
	}
	return b.String() + strconv.FormatInt(at, 10)
}

// expected are the samples that Prometheus should have of a rollup, by the catalogue's mapping alone.
func expected(r *proto.Rollup, into map[string]float64) {
	for row := range r.Entities {
		kind := r.Entities[row].Kind
		if r.Scope == proto.ScopeNode && (kind == proto.KindNamespace || kind == proto.KindWorkload) {
			continue
		}
		for s := range r.Samples(row) {
			if s.Ours || s.StandsIn {
				continue
			}
			naming, at := proto.Prometheus.Naming(s.Metric.ID, kind), r.Tick.Time().UnixMilli()
			if s.Device != nil {
				naming = proto.Prometheus.DeviceNaming(s.Metric.ID, kind, s.Device)
				if measured, ok := r.DeviceValues.Get(s.Row, proto.GroupDevice.Time()); ok {
					at = measured / 1e6
				}
			} else if measured, ok := r.Values.Get(row, s.Metric.Group.Time()); ok {
				at = measured / 1e6
			}
			if naming == nil {
				continue
			}
			value, ok := naming.Value(&r.Table, row, s.Value, false)
			if !ok {
				continue
			}
			labels := map[string]string{"__name__": naming.Name, "cluster": r.Cluster}
			for _, l := range proto.Prometheus.AppendEntityLabels(nil, &r.Table, row) {
				labels[l.Key] = l.Value
			}
			if s.Device != nil {
				for _, l := range proto.Prometheus.AppendDeviceLabels(nil, s.Device) {
					labels[l.Key] = l.Value
				}
			}
			into[seriesAt(labels, at)] = value
		}
	}
}

// rollupAt is sinktest's node at tick n of a grid that ends now, having so many ticks.
func rollupAt(node string, n, ticks int, now time.Time) *proto.Rollup {
	r := sinktest.Node(node, 3, 2, n)
	tick := proto.TickAt(now, r.Resolution).Add(n-ticks, r.Resolution)
	shift := int64(tick.Time().Sub(r.Tick.Time()))
	r.Tick = tick
	r.Scraped += shift
	for row := range r.Entities {
		for _, f := range []proto.Field{proto.FieldStart, proto.GroupCPU.Time(), proto.GroupMemory.Time(), proto.GroupNetwork.Time()} {
			if v, ok := r.Values.Get(row, f); ok {
				r.Values.Set(row, f, v+shift)
			}
		}
	}
	return r
}

// Environment of the process that feeds sinks.
const (
	feedBus  = "E2E_FEED_BUS"
	feedSink = "E2E_FEED_SINK"
)

// TestFeedingProcess is no test but the service sinks, as a process of its own that is killed.
func TestFeedingProcess(t *testing.T) {
	if os.Getenv(feedBus) == "" {
		t.Skip("SKIP: this is the process that TestStoresHaveEverySampleOnce kills")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	connect := bus.DefaultConfig()
	connect.URLs = []string{os.Getenv(feedBus)}
	conn, err := bus.Connect(context.Background(), connect, log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := sinks.DefaultConfig()
	cfg.Sinks, cfg.Clusters = []string{os.Getenv(feedSink)}, []string{"default"}
	s, err := sinks.New(cfg, sinks.Deps{Bus: conn, Log: log, Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(s.Run(context.Background()))
}

// TestStoresHaveEverySampleOnce feeds a store by a process that gets SIGKILL in the middle, takes the store down for
// ten minutes of ticks, kills the process that tries meanwhile, too, and then counts by a query: every sample of every
// rollup is there once, with its value.
func TestStoresHaveEverySampleOnce(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *timeSeries{"prometheus": prometheusServer, "victoria-metrics": victoriaServer} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			everySampleOnce(t, start(t))
		})
	}
}

func everySampleOnce(t *testing.T, store *timeSeries) {
	const before, outage = 20, 40 // ticks of 15 s
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "default")
	enc, pub, now := proto.NewEncoder(), conn.Publisher(bus.PublisherConfig{}), time.Now()
	want := map[string]float64{}
	publish := func(from, to int) {
		t.Helper()
		for n := from; n < to; n++ {
			for _, node := range []string{"node-1", "node-2.example.com"} {
				r := rollupAt(node, n, before+outage, now)
				expected(r, want)
				data, err := enc.Rollup(r)
				if err != nil {
					t.Fatal(err)
				}
				m := bus.Message{Subject: bus.NodeRollupSubject(r.Cluster, r.Name), ID: fmt.Sprint(node, "/", n), Data: data}
				if _, err := pub.Publish(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var said *os.File
	feed := func() (kill func()) {
		t.Helper()
		child := exec.Command(os.Args[0], "-test.run=^TestFeedingProcess$", "-test.timeout=10m") //nolint:gosec // this very binary
		child.Env = append(os.Environ(), feedBus+"="+server.URL(), feedSink+"="+store.sink+"?batchsize=100&concurrency=2")
		child.Stderr, child.Stdout = said, said
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		ended := false
		kill = func() {
			if !ended {
				ended = true
				_ = child.Process.Kill()
				_ = child.Wait() // says that it was killed
			}
		}
		t.Cleanup(kill)
		return kill
	}
	path := filepath.Join(t.TempDir(), "log")
	said, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(path); err == nil && t.Failed() {
			t.Logf("the feeding processes said:\n%s", b[max(0, len(b)-4000):])
		}
		_ = said.Close()
	})
	const all = `{cluster="default"}`
	count := func() int { counts, _ := store.samples(all); return len(counts) }

	publish(0, before)
	kill := feed()
	eventually(t, 2*time.Minute, func() bool { return count() > 0 }, func() string { return "nothing is written" })
	kill()
	store.down()
	publish(before, before+outage)
	kill = feed()
	eventually(t, 2*time.Minute, func() bool {
		b, err := os.ReadFile(path)
		return err == nil && bytes.Contains(b, []byte("sink does not take rollups"))
	}, func() string { return "the worker does not meet the outage" })
	kill()
	store.up()
	feed()
	eventually(t, 2*time.Minute, func() bool { return count() >= len(want) }, func() string {
		return fmt.Sprintf("%s has %d samples, want %d", store.binary, count(), len(want))
	})
	counts, values := store.samples(all)
	wrong := 0
	for key, value := range want {
		if counts[key] != 1 || math.Abs(values[key]-value) > 1e-12*math.Abs(value) { // VictoriaMetrics keeps the first 14 digits or so
			if wrong++; wrong < 10 {
				t.Errorf("%s is there %d times as %v, want once as %v", key, counts[key], values[key], value)
			}
		}
	}
	if len(counts) != len(want) || wrong > 0 {
		t.Errorf("%d samples, want %d; %d are wrong", len(counts), len(want), wrong)
	}
	for l, err := range conn.Letters(t.Context(), "") {
		t.Errorf("letter in DEAD: %+v %v", l, err)
	}
}

// TestPrometheusScrapesTheCluster has a Prometheus scrape /metrics/cluster of everything in one process on a made-up
// cluster, by both paths and both formats, until it has some ticks of every node.
func TestPrometheusScrapesTheCluster(t *testing.T) {
	t.Parallel() // it waits for ticks, most of the time
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 3, 4
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	p := startStandalone(t, "--source=kubernetes.summary_api:", "--kubeconfig="+kubeconfig, "--metric_resolution=5s", "--cluster=scraped")
	server := prometheusWith(t, fmt.Sprintf(`
scrape_configs:
- job_name: open
  scrape_interval: 1s
  honor_labels: true
  metrics_path: /metrics/cluster
  params: {extended: ["true"]}
  static_configs: [{targets: [%[1]q]}]
- job_name: text
  scrape_interval: 1s
  honor_labels: true
  metrics_path: /clusters/scraped/metrics/cluster
  params: {level: ["node", "pod"], metric: ["cpu/usage"]}
  static_configs: [{targets: [%[1]q]}]
`, strings.TrimPrefix(p.URL, "http://")))
	nodes := map[string]int{}
	eventually(t, 2*time.Minute, func() bool {
		counts, _ := server.samples(`kubernetes_node_cpu_usage_seconds_total{job="open"}`)
		clear(nodes)
		for key := range counts {
			_, after, _ := strings.Cut(key, `node="`)
			name, _, _ := strings.Cut(after, `"`)
			nodes[name]++
		}
		least := 3
		for _, n := range nodes {
			least = min(least, n)
		}
		return len(nodes) == cfg.Nodes && least >= 3
	}, func() string { return fmt.Sprintf("Prometheus has so many samples of each node: %v", nodes) })
	// No series is there twice.
	_, body := p.get(t, "/metrics/cluster?extended=true&rates=true")
	seen := map[string]string{}
	for line := range strings.Lines(string(body)) {
		series, value, ok := strings.Cut(line, "} ")
		if other, twice := seen[series]; ok && twice {
			t.Errorf("%s is there twice: %s and %s", series, other, value)
		}
		seen[series] = value
	}
	_, up := server.samples("up")
	well := 0
	for _, value := range up {
		well += int(value) // before the gateway is ready it says so, by 503
	}
	if well < 3 {
		t.Errorf("%d scrapes of %d were well", well, len(up))
	}
	// What it has is what the bus says, at the time at which the kubelet measured it. The bus has everything that was
	// scraped, and so is read afterwards.
	scraped := map[string]float64{}
	for _, metric := range []string{"kubernetes_node_memory_working_set_bytes", "kubernetes_pod_memory_working_set_bytes", "kubernetes_container_cpu_usage_seconds_total", "kubernetes_pod_volume_usage_bytes", "kubernetes_cluster_memory_usage_bytes"} {
		for _, job := range []string{"open", "text"} {
			_, values := server.samples(fmt.Sprintf("%s{job=%q}", metric, job))
			maps.Copy(scraped, values)
			if job == "open" && len(values) == 0 {
				t.Errorf("there is no %s", metric)
			}
		}
	}
	want := map[string]float64{}
	conn, dec := p.conn(t), proto.NewDecoder()
	state, err := conn.StreamState(t.Context(), bus.RollupsStream("scraped"))
	if err != nil {
		t.Fatal(err)
	}
	for d, err := range conn.Replay(t.Context(), bus.ReplayConfig{Stream: bus.RollupsStream("scraped"), Subjects: bus.RollupFilters("scraped")}) {
		if err != nil {
			t.Fatal(err)
		}
		var r proto.Rollup
		if err := dec.Rollup(d.Data, &r); err != nil {
			t.Fatal(err)
		}
		expected(&r, want)
		if d.Seq >= state.LastSeq || d.Pending == 0 {
			break
		}
	}
	compared := 0
	for key, value := range scraped {
		compared++
		for _, own := range []string{"instance", "job"} {
			before, after, _ := strings.Cut(key, own+`="`)
			_, after, _ = strings.Cut(after, `" `)
			key = before + after
		}
		if expected, ok := want[key]; !ok || expected != value {
			t.Errorf("%s is %v, on the bus it is %v", key, value, expected)
		}
	}
	t.Logf("%d samples are those of the bus", compared)
	// No sample had another value than an earlier one of its time.
	resp, err := http.Get(server.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	own, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	const twice = "\nprometheus_target_scrapes_sample_duplicate_timestamp_total "
	_, after, found := strings.Cut(string(own), twice)
	number, _, _ := strings.Cut(after, "\n")
	if !found || number != "0" {
		t.Errorf("Prometheus counts %q samples of a time that it had with another value, want 0", number)
	}
}
