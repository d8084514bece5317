package prometheus

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// startPrometheus runs a Prometheus of this machine that takes remote write, until the test ends.
func startPrometheus(t *testing.T) (url string) {
	t.Helper()
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("SKIP: no prometheus on this machine: apt-get install prometheus")
	}
	config := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	addr := bustest.FreeAddr(t)
	sinktest.Daemon(t, addr, binary, "--config.file="+config, "--web.enable-remote-write-receiver", "--web.listen-address="+addr, "--storage.tsdb.path="+t.TempDir(), "--log.level=warn")
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + addr + "/-/ready")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return "http://" + addr
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("prometheus does not become ready: %v", err)
		}
	}
}

// query is what a Prometheus answers to a query.
func query(t *testing.T, server, path string, args url.Values, into any) {
	t.Helper()
	resp, err := http.Get(server + path + "?" + args.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v %s %s", path, err, resp.Status, body)
	}
	answer := struct {
		Data any `json:"data"`
	}{into}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%s: %v: %s", path, err, body)
	}
}

// samplesOf are all samples that a Prometheus has: how many at each time of each series, and the values.
func samplesOf(t *testing.T, server string) (counts map[string]int, values map[string]float64) {
	t.Helper()
	var data struct {
		Result []struct {
			Metric map[string]string `json:"metric"`
			Values [][2]any          `json:"values"`
		} `json:"result"`
	}
	query(t, server, "/api/v1/query", url.Values{"query": {`{cluster="default"}[1d]`}}, &data)
	counts, values = map[string]int{}, map[string]float64{}
	for _, s := range data.Result {
		name := identify(s.Metric)
		for _, v := range s.Values {
			value, err := strconv.ParseFloat(v[1].(string), 64)
			if err != nil {
				t.Fatal(err)
			}
			key := fmt.Sprint(name, " ", int64(math.Round(v[0].(float64)*1000)))
			counts[key]++
			values[key] = value
		}
	}
	return counts, values
}

func identify(labels map[string]string) string {
	var all []proto.Label
	for k, v := range labels {
		all = append(all, proto.Label{Key: k, Value: v})
	}
	slices.SortFunc(all, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) })
	name, err := series(all)
	if err != nil {
		return err.Error()
	}
	return name
}

// recent are rollups of two nodes at so many ticks, the last a moment ago.
func recent(ticks int) (batches [][]sink.Message) {
	const resolution = 15 * time.Second
	now := proto.TickAt(time.Now(), resolution)
	for n := range ticks {
		var batch []sink.Message
		for _, node := range []string{"node-1", "node-2.example.com"} {
			r := sinktest.Node(node, 2, 1, n)
			shift := now.Add(n-ticks, resolution).Time().Sub(r.Tick.Time())
			r.Tick = now.Add(n-ticks, resolution)
			r.Scraped += int64(shift)
			for row := range r.Entities {
				for _, f := range []proto.Field{proto.FieldStart, proto.GroupCPU.Time(), proto.GroupMemory.Time(), proto.GroupNetwork.Time()} {
					if v, ok := r.Values.Get(row, f); ok {
						r.Values.Set(row, f, v+int64(shift))
					}
				}
			}
			batch = append(batch, message(2*n+len(batch), r))
		}
		batches = append(batches, batch)
	}
	return batches
}

// wanted are the samples of batches, with their values.
func wanted(t *testing.T, batches [][]sink.Message) map[string]float64 {
	want := map[string]float64{}
	s := build(t, "prometheus:http://h")
	for _, batch := range batches {
		for _, m := range batch {
			s.enc.reset()
			s.enc.encode(m.Rollup, 0)
			for i := range s.enc.all {
				text := s.enc.text(i)
				key := text[:strings.LastIndex(text, "} ")+2] + fmt.Sprint(s.enc.all[i].at)
				if _, twice := want[key]; twice {
					t.Fatalf("%s is there twice", key)
				}
				want[key] = s.enc.all[i].value
			}
		}
	}
	return want
}

// TestPrometheusHasWhatWasWritten writes to the Prometheus of this machine (Debian's is 2.42, of version 1), once in
// order, then parts of it again in batches of other sizes, as after kill -9 of a worker.
func TestPrometheusHasWhatWasWritten(t *testing.T) {
	server := startPrometheus(t)
	batches := recent(6)
	s := build(t, "prometheus:"+server)
	defer s.Close()
	write := func(batch []sink.Message) {
		t.Helper()
		if err := s.Write(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range batches[:4] {
		write(b)
	}
	write(slices.Concat(batches[2:]...)) // of which the first two were written
	write(slices.Concat(batches...))
	if s.speaks == 0 {
		t.Error("it was not found out what Prometheus speaks")
	}
	want := wanted(t, batches)
	counts, values := samplesOf(t, server)
	for key, value := range want {
		if counts[key] != 1 || values[key] != value {
			t.Errorf("%s is there %d times as %v, want once as %v", key, counts[key], values[key], value)
		}
	}
	if len(counts) != len(want) {
		t.Errorf("%d samples, want %d", len(counts), len(want))
	}
	var metadata map[string][]struct{ Type string }
	query(t, server, "/api/v1/metadata", nil, &metadata) // which it keeps of what it scrapes alone, so far
	t.Logf("version %d, %d samples, %d families with metadata", s.speaks, len(counts), len(metadata))
}

// TestVictoriaMetricsHasWhatWasWritten does the same with the VictoriaMetrics of this machine.
func TestVictoriaMetricsHasWhatWasWritten(t *testing.T) {
	v := sinktest.StartVictoria(t, "", "-dedup.minScrapeInterval=1ms")
	batches := recent(4)
	s := build(t, "prometheus:"+v.URL())
	defer s.Close()
	for _, batch := range append(batches, slices.Concat(batches...)) {
		if err := s.Write(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	want := wanted(t, batches)
	names := map[string]bool{}
	for key := range want {
		names[key[:strings.LastIndexByte(key, ' ')]] = true
	}
	v.Series(`{cluster="default"}`, len(names)) // once they are seen
	counts, values := samplesOf(t, v.URL())
	for key, value := range want {
		// VictoriaMetrics keeps the first 14 digits or so.
		if counts[key] != 1 || math.Abs(values[key]-value) > 1e-12*math.Abs(value) {
			t.Errorf("%s is there %d times as %v, want once as %v", key, counts[key], values[key], value)
		}
	}
	if len(counts) != len(want) {
		t.Errorf("%d samples, want %d", len(counts), len(want))
	}
	t.Logf("version %d, %d samples", s.speaks, len(counts))
}
