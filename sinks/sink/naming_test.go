package sink

import (
	"fmt"
	"reflect"
	"testing"
	"unsafe"

	"github.com/heapstream/heapstream/proto"
)

// pod is an entity that uses cpu, has a volume, and bears what else is asked of it.
func pod(extras ...proto.Extra) *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1"}
	r.AddEntity(proto.Entity{Kind: proto.KindPod, Parent: -1, Name: "web-1", Namespace: "shop", UID: "pu"})
	r.Values.Set(0, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(0, proto.CPUUsage.Delta(), 15e9)
	r.Values.Set(0, proto.GroupCPU.Span(), 60e9)
	r.Values.Set(0, proto.NetworkRx.Field(), 7)
	d := r.AddDevice(proto.Device{Kind: proto.DeviceFilesystem, Name: "Volume:data"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = extras
	return r
}

func TestNamesOfAWorld(t *testing.T) {
	check := func(w proto.World, want ...string) {
		t.Helper()
		names, v := NewNames(w), &View{All: true, renames: []rename{{old: "network/rx", as: "in"}, {old: "custom/depth", as: "depth"}}}
		v.Skip = func(m *proto.Metric) bool { return w.Without(m.ID) != "" }
		var got []string
		for e := range v.Entities(pod(proto.Extra{Name: "custom/queue", Value: proto.Float(1.5)}, proto.Extra{Name: "custom/depth", Value: proto.Int(3)})) {
			for s := range e.Samples {
				named, ok := names.Of(e, s)
				if !ok {
					continue
				}
				if named.Naming == nil || named.Naming.World != w {
					t.Errorf("%s has the naming %+v", s.Name, named.Naming)
				}
				got = append(got, fmt.Sprint(named.Name, named.Naming.Attributes, " ", named.Value))
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %q\nwant %q", got, want)
		}
	}
	// The rate of cpu does not go out, since the counter does.
	check(proto.Prometheus, "kubernetes_pod_cpu_usage_seconds_total[] 1.605", "in[] 7", "kubernetes_pod_volume_usage_bytes[] 4096", "kubernetes_pod_custom_queue[] 1.5", "depth[] 3")
	check(proto.OTel, "k8s.pod.cpu.time[] 1.605", "in[{network.io.direction receive}] 7", "k8s.pod.volume.usage[] 4096", "k8s.pod.custom.queue[] 1.5", "depth[] 3")
}

// TestNamingsAreRememberedWithinABound: an application that makes up names without end costs no memory without end.
func TestNamingsAreRememberedWithinABound(t *testing.T) {
	names, e := NewNames(proto.OTel), &Entity{Rollup: pod(), Kind: proto.KindPod}
	naming := func(s proto.Sample) *proto.Naming {
		t.Helper()
		named, ok := names.Of(e, &s)
		if !ok || named.Name != named.Naming.Name {
			t.Fatalf("%s is %+v, %v", s.Name, named, ok)
		}
		return named.Naming
	}
	text := []byte("custom/queue")
	first := naming(proto.Sample{Name: unsafe.String(&text[0], len(text))})
	copy(text, "CUSTOM/QUEUE") // what a decoder does with the bytes of a rollup that is done with
	if again := naming(proto.Sample{Name: "custom/queue"}); again != first || first.Name != "k8s.pod.custom.queue" {
		t.Errorf("the same name again is %p %s, first it was %p", again, again.Name, first)
	}
	if counter := naming(proto.Sample{Name: "custom/queue", Counter: true}); counter.Instrument != proto.InstrumentCounter {
		t.Errorf("a counter of a name that a gauge had is a %v", counter.Instrument)
	}
	for i := range 3 * maxNamings {
		if naming(proto.Sample{Name: fmt.Sprint("custom/", i)}); len(names.extras) > maxNamings {
			t.Fatalf("%d names remembered after %d", len(names.extras), i+1)
		}
	}
	if again := naming(proto.Sample{Name: "custom/queue"}); !reflect.DeepEqual(again, first) {
		t.Errorf("forgotten and made again it is %+v, first it was %+v", again, first)
	}
}
