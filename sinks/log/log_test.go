package log

import (
	"bytes"
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var update = flag.Bool("update", false, "write testdata anew")

func write(t *testing.T, target string, r *proto.Rollup) string {
	t.Helper()
	parsed, err := sink.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s, err := New(parsed, sink.Deps{Labels: proto.DefaultLabelFormat(), Out: &out, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestTextIsHeapsters is the running example of Heapster's format, to the byte.
func TestTextIsHeapsters(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n1", Tick: proto.TickAt(time.Date(2018, 1, 2, 2, 24, 0, 0, time.UTC), time.Minute)}
	node := r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1"})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Parent: int32(node), Name: "web-1", Namespace: "default", UID: "pod-uid",
		Labels: []proto.Label{{Key: "app", Value: "web"}, {Key: "tier", Value: "fe"}}})
	c := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web", Image: "nginx"})
	r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "default", UID: "ns-uid"})
	r.Values.Set(c, proto.GroupCPU.Time(), time.Date(2018, 1, 2, 2, 24, 6, 5e8, time.UTC).UnixNano())
	r.Values.Set(c, proto.FieldStart, time.Date(2018, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	r.Values.Set(c, proto.CPUUsageRate.Field(), 10)
	r.Values.Set(c, proto.MemoryPageFaultsRate.Field(), 2500)
	d := r.AddDevice(proto.Device{Entity: int32(c), Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)

	want := `MetricSet: namespace:default/pod:web-1/container:web
   Scrape time: 2018-01-02 02:24:06.5 +0000 UTC 1514859846500000000
   Create time: 2018-01-01 00:00:00 +0000 UTC 1514764800000000000
   Labels:
      container_base_image = nginx
      container_name = web
      host_id = 
      hostname = n1
      labels = app:web,tier:fe
      namespace_id = ns-uid
      namespace_name = default
      nodename = n1
      pod_id = pod-uid
      pod_name = web-1
      type = pod_container
   Metrics:
      cpu/usage_rate = 10
      memory/page_faults_rate = 2.500000
   Labeled Metrics:
      filesystem/usage = 4096
         resource_id = /

`
	got := write(t, "log", r)
	if !strings.HasPrefix(got, "DataBatch     Timestamp: 2018-01-02 02:24:00 +0000 UTC\n\nMetricSet: namespace:default/pod:web-1\n") {
		t.Errorf("begins with %.120q", got)
	}
	if !strings.Contains(got, want) {
		t.Errorf("got\n%s\nwant in it\n%s", got, want)
	}
	if zero := "   Scrape time: 0001-01-01 00:00:00 +0000 UTC -6795364578871345152\n"; strings.Count(got, zero) != 2 {
		t.Errorf("the zero time is not %q in the sets of pod and node", zero)
	}
}

func TestOracle(t *testing.T) {
	got := write(t, "log:anything?cluster_name=c1", sinktest.Oracle(t, "default")[3])
	const golden = "testdata/node.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil { //nolint:gosec // a test's data
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := sinktest.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); got != string(want) {
		t.Fatalf("differs from %s (-update writes it):\n%s", golden, d)
	}
}
