package stackdriver

import (
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp/gcptest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// options write one node alone: the contract's nodes have pods of the same names, which no cluster has.
const options = "use_new_resources=true&zone=z&cluster_name=c1&filter=label.nodename:node-1"

// refused is the end of the types of metrics that are refused in the mood HalfRefuses.
const refused = "cpu/usage_time"

var suite = sinktest.Suite{
	Kind: Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend {
		m := gcptest.Start(t, r, "stackdriver", options)
		m.Refuses = refused
		return m
	},
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "stackdriver:?"+options)
		s.enc.project = "p"
		for _, one := range encoded(s, r) {
			names = append(names, gcptest.Name([]byte(one)))
		}
		return names
	},
	IsRefused: func(name string) bool { return strings.Contains(name, refused+`"`) },
	LoginHint: "check `credentials`",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	all := suite
	all.Names = func(tb testing.TB, r *proto.Rollup) []string {
		return encoded(build(tb, "stackdriver:?use_new_resources=true&zone=z"), r)
	}
	gcptest.Bench(b, &all, "stackdriver", "use_new_resources=true&zone=z&cluster_name=c")
}

func build(tb testing.TB, target string) *cloud {
	tb.Helper()
	c := sinktest.New[*cloud](tb, Kind, target)
	c.enc.location = c.enc.zone
	return c
}

func encoded(s *cloud, r *proto.Rollup) (all []string) {
	s.enc.series.Reset()
	s.enc.encode(r, 0)
	for i := range s.enc.series.All {
		all = append(all, string(s.enc.series.JSON(i)))
	}
	return all
}

// rollup is a node with a system container, a pod and its container.
func rollup() *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	start := time.Date(2018, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", HostID: "i-1"})
	r.Values.Set(0, proto.FieldStart, start)
	r.Values.Set(0, proto.MemoryNodeAlloc.Field(), 1<<30)
	r.Values.Set(0, proto.MemoryLimit.Field(), 5)
	daemon := r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet"})
	r.Values.Set(daemon, proto.FieldStart, start)
	r.Values.Set(daemon, proto.MemoryWorkingSet.Field(), 60)
	r.Values.Set(daemon, proto.MemoryUsage.Field(), 100)
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "default", UID: "pod-uid"})
	r.Values.Set(pod, proto.FieldStart, start)
	r.Values.Set(pod, proto.FieldBirth, start+1e9)
	web := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web"})
	r.Values.Set(web, proto.FieldStart, start)
	r.Values.Set(web, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(web, proto.RestartCount.Field(), 3)
	r.Values.Set(web, proto.MemoryPageFaults.Field(), 10)
	r.Values.Set(web, proto.MemoryMajorFaults.Field(), 4)
	stub := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "stub"}) // no start
	r.Values.Set(stub, proto.CPULimit.Field(), 1)
	r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "default", UID: "ns-uid"})
	volume := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:data"})
	r.DeviceValues.Set(volume, proto.FilesystemUsage.Field(), 4096)
	return r
}

func TestSeries(t *testing.T) {
	check := func(options string, want ...string) {
		t.Helper()
		s := build(t, "stackdriver:?zone=z&cluster_name=c1&"+options)
		s.enc.project = "p"
		if a, b := strings.Join(encoded(s, rollup()), "\n"), strings.Join(want, "\n"); a != b {
			t.Errorf("%s: got\n%s\nwant\n%s", options, a, b)
		}
	}
	series := func(kind, labels, resource, of, metricKind, valueType, start, value string) string {
		return `{"metric":{"type":"` + kind + `","labels":{` + labels + `}},"resource":{"type":"` + resource + `","labels":{` + of + `}},"metricKind":"` + metricKind +
			`","valueType":"` + valueType + `","points":[{"interval":{"startTime":"` + start + `","endTime":"2018-01-02T02:24:00Z"},"value":{` + value + `}}]}`
	}
	const now, start, birth = "2018-01-02T02:24:00Z", "2018-01-01T00:00:00Z", "2018-01-01T00:00:01Z"
	const k, c = "kubernetes.io/", "container.googleapis.com/container/"
	node := `"cluster_name":"c1","location":"z","project_id":"p","node_name":"n1"`
	pod := `"namespace_name":"default","pod_name":"web-1"`
	place := `"cluster_name":"c1","location":"z","project_id":"p",`
	check("use_new_resources=true&use_old_resources=false",
		series(k+"node/memory/allocatable_bytes", "", "k8s_node", node, "GAUGE", "INT64", now, `"int64Value":"1073741824"`),
		series(k+"node_daemon/memory/used_bytes", `"component":"kubelet","memory_type":"non-evictable"`, "k8s_node", node, "GAUGE", "INT64", now, `"int64Value":"60"`),
		series(k+"node_daemon/memory/used_bytes", `"component":"kubelet","memory_type":"evictable"`, "k8s_node", node, "GAUGE", "INT64", now, `"int64Value":"40"`),
		series(k+"pod/volume/used_bytes", `"volume_name":"data"`, "k8s_pod", place+pod, "GAUGE", "INT64", now, `"int64Value":"4096"`),
		series(k+"container/cpu/core_usage_time", "", "k8s_container", place+`"container_name":"web",`+pod, "CUMULATIVE", "DOUBLE", start, `"doubleValue":1.605`),
		series(k+"container/restart_count", "", "k8s_container", place+`"container_name":"web",`+pod, "CUMULATIVE", "INT64", birth, `"int64Value":"3"`),
	)
	old := func(container, namespace, pod string) string {
		return `"cluster_name":"c1","container_name":"` + container + `","instance_id":"i-1","namespace_id":"` + namespace + `","pod_id":"` + pod + `","project_id":"p","zone":"z"`
	}
	check("",
		series(c+"memory/bytes_total", "", "gke_container", old("machine", "", ""), "GAUGE", "INT64", now, `"int64Value":"1073741824"`),
		series(c+"memory/bytes_used", `"memory_type":"non-evictable"`, "gke_container", old("kubelet", "", ""), "GAUGE", "INT64", now, `"int64Value":"60"`),
		series(c+"memory/bytes_used", `"memory_type":"evictable"`, "gke_container", old("kubelet", "", ""), "GAUGE", "INT64", now, `"int64Value":"40"`),
		series(c+"disk/bytes_used", `"device_name":"Volume:data"`, "gke_container", old("", "ns-uid", "pod-uid"), "GAUGE", "INT64", now, `"int64Value":"4096"`),
		series(c+"cpu/usage_time", "", "gke_container", old("web", "ns-uid", "pod-uid"), "CUMULATIVE", "DOUBLE", start, `"doubleValue":1.605`),
		series(c+"memory/page_fault_count", `"fault_type":"major"`, "gke_container", old("web", "ns-uid", "pod-uid"), "CUMULATIVE", "INT64", start, `"int64Value":"4"`),
		series(c+"memory/page_fault_count", `"fault_type":"minor"`, "gke_container", old("web", "ns-uid", "pod-uid"), "CUMULATIVE", "INT64", start, `"int64Value":"6"`),
	)
}

func TestRollupsMayBeLeftOutByInterval(t *testing.T) {
	f := gcptest.Start(t, sinktest.Reach{}, "stackdriver", "zone=z&cluster_name=c1&min_interval_sec=60")
	s := build(t, f.Target(sinktest.Reach{}))
	defer s.Close()
	for n := range 9 { // 15 s apart
		if err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, n)}}); err != nil {
			t.Fatal(err)
		}
	}
	ticks := map[string]bool{}
	for name := range f.Holds() {
		_, at, _ := strings.Cut(name, `"endTime":"`)
		ticks[at] = true
	}
	if len(ticks) != 3 {
		t.Fatalf("ticks %v are written, want 3", ticks)
	}
}

func TestOptions(t *testing.T) {
	sinktest.Complains(t, Kind, "stackdriver:http://h", "Scheme should not be set for Stackdriver sink", "Host should not be set")
	sinktest.Complains(t, Kind, "stackdriver:?use_old_resources=false&batch_export_timeout_sec=2&zon=x", "nothing would be written", "must be at least 3", "did you mean `zone`?")
	said := sinktest.Warns(t, Kind, "stackdriver:?workers=3&initial_delay_sec=0&batch_export_timeout_sec=60")
	for _, want := range []string{"workers", "initial_delay_sec", "batch_export_timeout_sec"} {
		if !strings.Contains(said, "option `"+want+"` means nothing any more") {
			t.Errorf("no warning of %s in %s", want, said)
		}
	}
}
