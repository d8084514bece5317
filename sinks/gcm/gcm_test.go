package gcm

import (
	"encoding/json"
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
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return gcptest.Start(t, r, "gcm", "") },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		for _, s := range encoded(build(tb, "gcm"), r) {
			names = append(names, gcptest.Name([]byte(s)))
		}
		return names
	},
	LoginHint: "check `credentials`",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) { gcptest.Bench(b, &suite, "gcm", "") }

func build(tb testing.TB, target string) *cloud {
	tb.Helper()
	return sinktest.New[*cloud](tb, Kind, target)
}

func encoded(s *cloud, r *proto.Rollup) (all []string) {
	s.enc.series.Reset()
	s.enc.encode(r, 0)
	for i := range s.enc.series.All {
		all = append(all, string(s.enc.series.JSON(i)))
	}
	return all
}

func TestSeries(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", HostID: "i-1"})
	r.Values.Set(0, proto.MemoryNodeCapacity.Field(), 8)
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "default", UID: "u"})
	row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web", Image: "nginx"})
	r.Values.Set(row, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(row, proto.MemoryUsage.Field(), 0)
	d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	const of = `"labels":{"container_base_image":"nginx","container_name":"web","host_id":"i-1","hostname":"n1","namespace_name":"default","pod_name":"web-1",`
	const now = `"points":[{"interval":{"startTime":"2018-01-02T02:24:00Z","endTime":"2018-01-02T02:24:00Z"},"value":`
	capacity := `{"metric":{"type":"custom.googleapis.com/kubernetes.io/memory/node_capacity","labels":{"hostname":"n1","resource_id":"i-1","resource_type":"instance"}},"valueType":"DOUBLE",` + now + `{"doubleValue":8}}]}`
	usage := `{"metric":{"type":"custom.googleapis.com/kubernetes.io/memory/usage",` + of + `"type":"pod_container"}},"valueType":"INT64",` + now + `{"int64Value":"0"}}]}`
	filesystem := `{"metric":{"type":"custom.googleapis.com/kubernetes.io/filesystem/usage",` + of + `"resource_id":"/","type":"pod_container"}},"valueType":"INT64",` + now + `{"int64Value":"4096"}}]}`
	check := func(target string, want ...string) {
		t.Helper()
		got := encoded(build(t, target), r)
		if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
			t.Errorf("%s: got\n%s\nwant\n%s", target, a, b)
		}
	}
	check("gcm", capacity, usage, filesystem) // the counter has no start
	check("gcm:?metrics=autoscaling", capacity)
	r.Values.Set(row, proto.FieldStart, time.Date(2018, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	r.Values.Clear(0, proto.MemoryNodeCapacity.Field())
	cpu := `{"metric":{"type":"custom.googleapis.com/kubernetes.io/cpu/usage",` + of + `"type":"pod_container"}},"metricKind":"CUMULATIVE","valueType":"INT64","points":[{"interval":{"startTime":"2018-01-01T00:00:00Z","endTime":"2018-01-02T02:24:00Z"},"value":{"int64Value":"1605000000"}}]}`
	check("gcm:?filter=metric:cpu/usage", cpu)
	for _, s := range []string{capacity, usage, cpu} {
		if !json.Valid([]byte(s)) {
			t.Errorf("%s is no JSON", s)
		}
	}
}

func TestMetricsAreDeclaredOnce(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{}, "gcm", "metrics=autoscaling")
	s := build(t, f.Target(sinktest.Reach{}))
	defer s.Close()
	for n := range 2 {
		if err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, n)}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.Descriptors) != 12 {
		t.Fatalf("%d metrics are declared, want 12", len(f.Descriptors))
	}
	var d struct {
		Type, MetricKind, ValueType string
		Labels                      []struct{ Key, ValueType string }
	}
	if err := json.Unmarshal([]byte(f.Descriptors[0]), &d); err != nil || d.Type != prefix+"cpu/node_capacity" || d.MetricKind != "GAUGE" || d.ValueType != "DOUBLE" || len(d.Labels) != 3 {
		t.Fatalf("%s: %v", f.Descriptors[0], err)
	}
}

func TestOptions(t *testing.T) {
	sinktest.Complains(t, Kind, "gcm:http://h", "scheme should not be set for GCM sink", "host should not be set for GCM sink")
	sinktest.Complains(t, Kind, "gcm:?metrics=some&metric=x", "invalid metrics parameter: some", "did you mean `metrics`?")
}
