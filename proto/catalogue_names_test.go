package proto

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// The list is what went out once: a line may be added, never changed.
func TestNamingsStayAsTheyAre(t *testing.T) {
	for _, w := range []World{Prometheus, OTel} {
		var got strings.Builder
		for _, n := range w.Namings() {
			var attributes strings.Builder
			for _, a := range n.Attributes {
				attributes.WriteString(" " + a.Key + "=" + a.Value)
			}
			said := ""
			if n.Instead != 0 {
				said = " unless " + MetricByID(n.Instead).Name
			}
			if n.NonZero {
				said += " unless 0"
			}
			if n.Float {
				said += " float"
			}
			fmt.Fprintf(&got, "%s %s: %s %s [%s] %s%s%s\n", n.Kind, n.Metric.Name, n.Name, n.Instrument, n.Unit, n.Factor(), said, attributes.String())
		}
		golden(t, "testdata/names-"+w.String()+".golden", []byte(got.String()))
	}
}

func TestEveryMetricHasANameInEveryWorldOrAReason(t *testing.T) {
	for _, w := range []World{Prometheus, OTel} {
		for _, m := range Metrics() {
			for k := KindCluster; k <= KindWorkload; k++ {
				n := w.Naming(m.ID, k)
				switch {
				case !m.Levels.Has(k) && n != nil:
					t.Errorf("%s has no %s, but the %s name %s", k, m.Name, w, n.Name)
				case m.Levels.Has(k) && n == nil && w.Without(m.ID) == "":
					t.Errorf("%s of a %s has no %s name", m.Name, k, w)
				case n != nil && w.Without(m.ID) != "":
					t.Errorf("%s has the %s name %s, and a reason for none", m.Name, w, n.Name)
				case n != nil && (n.Metric != MetricByID(m.ID) || n.Kind != k || w.Namings()[n.Index] != n || n.World != w || n.Help == ""):
					t.Errorf("%s of a %s has the %s naming %+v", m.Name, k, w, n)
				}
			}
		}
		if w.Naming(maxMetricID+1, KindPod) != nil || w.Naming(CPUUsage, KindWorkload+1) != nil {
			t.Error("what is not known has a name")
		}
	}
}

func TestNamesAreUniqueAtEachLevel(t *testing.T) {
	for _, w := range []World{Prometheus, OTel} {
		seen := map[string]string{}
		of := map[string]*Naming{} // first of a name
		for _, n := range w.Namings() {
			key := fmt.Sprint(n.Kind, n.Name, n.Attributes)
			if other, ok := seen[key]; ok {
				t.Errorf("%s %s: %s and %s of a %s are the same", w, n.Name, other, n.Metric.Name, n.Kind)
			}
			seen[key] = n.Metric.Name
			first := of[n.Name]
			if first == nil {
				of[n.Name] = n
				continue
			}
			if first.Instrument != n.Instrument || first.Unit != n.Unit || first.Float != n.Float {
				t.Errorf("%s %s is a %s in %q and a %s in %q", w, n.Name, first.Instrument, first.Unit, n.Instrument, n.Unit)
			}
			if w == Prometheus {
				t.Errorf("%s is the name of %s of a %s, and of %s of a %s", n.Name, first.Metric.Name, first.Kind, n.Metric.Name, n.Kind)
			}
		}
		for _, a := range w.Namings() { // of OTel: a name is not the namespace of another
			for _, b := range w.Namings() {
				if w == OTel && strings.HasPrefix(b.Name, a.Name+".") {
					t.Errorf("%s begins with the whole of %s", b.Name, a.Name)
				}
			}
		}
	}
}

var (
	otelWord = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)
	ucum     = regexp.MustCompile(`^(1|s|By|By/s|\{[a-z]+\}(/s)?)$`)
)

func TestNamesFollowTheirWorldsConventions(t *testing.T) {
	for _, n := range OTel.Namings() {
		if !otelWord.MatchString(n.Name) || len(n.Name) > 255 || strings.HasSuffix(n.Name, "_total") {
			t.Errorf("OTel name %q", n.Name)
		}
		if !ucum.MatchString(n.Unit) {
			t.Errorf("%s has the unit %q", n.Name, n.Unit)
		}
	}
	// Prometheus has a linter of its own; it reads an exposition.
	var text strings.Builder
	for _, n := range Prometheus.Namings() {
		fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n%s", n.Name, n.Help, n.Name, n.Instrument, n.Name)
		for i, k := range n.LabelKeys() {
			text.WriteString(string("{,"[min(i, 1)]) + k + `="x"`)
		}
		if len(n.LabelKeys()) > 0 {
			text.WriteByte('}')
		}
		text.WriteString(" 1\n")
	}
	problems, err := promlint.New(strings.NewReader(text.String())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, n := range Prometheus.Namings() {
		family := strings.TrimSuffix(n.Name, "_total")
		if n.Unit != "" && !strings.HasSuffix(family, "_"+n.Unit) || (n.Instrument == InstrumentCounter) != (family != n.Name) || n.Instrument == InstrumentUpDown {
			t.Errorf("%s is a %s with the unit %q", n.Name, n.Instrument, n.Unit)
		}
	}
}

func TestLabelKeysAreUniqueAndSorted(t *testing.T) {
	prometheusKey := regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	for _, w := range []World{Prometheus, OTel} {
		for _, n := range w.Namings() {
			keys := n.LabelKeys()
			if !slices.IsSorted(keys) || len(slices.Compact(slices.Clone(keys))) != len(keys) || slices.Contains(keys, PrometheusCluster) {
				t.Errorf("%s %s has the labels %q", w, n.Name, keys)
			}
			for _, k := range keys {
				if w == Prometheus && (!prometheusKey.MatchString(k) || strings.HasPrefix(k, "__")) || w == OTel && !otelWord.MatchString(k) {
					t.Errorf("%s %s has the label %q", w, n.Name, k)
				}
			}
		}
	}
}

// table has one entity of each level with CPU and memory, and devices of a pod.
func namedTable() *Table {
	t := &Table{Scraped: 20e9}
	node := t.AddEntity(Entity{Kind: KindNode, Parent: -1, Name: "n1", UID: "nu"})
	t.AddEntity(Entity{Kind: KindSystemContainer, Parent: int32(node), Name: "kubelet"})                                                            //nolint:gosec // few
	pod := t.AddEntity(Entity{Kind: KindPod, Parent: int32(node), Name: "web-1", Namespace: "shop", UID: "pu", Owner: Owner{"StatefulSet", "web"}}) //nolint:gosec // few
	t.AddEntity(Entity{Kind: KindContainer, Parent: int32(pod), Name: "app", Image: "img:1"})                                                       //nolint:gosec // few
	t.AddEntity(Entity{Kind: KindPod, Parent: int32(node), Name: "bare", Namespace: "shop", UID: "bu", Owner: Owner{"Pod", "bare"}})                //nolint:gosec // few
	t.AddEntity(Entity{Kind: KindNamespace, Parent: -1, Name: "shop", UID: "su"})
	t.AddEntity(Entity{Kind: KindWorkload, Parent: -1, Name: "web", Namespace: "shop", Owner: Owner{"Rollout", "web"}})
	t.AddEntity(Entity{Kind: KindCluster, Parent: -1})
	t.AddDevice(Device{Entity: int32(pod), Kind: DeviceFilesystem, Name: "Volume:data", Claim: "data-web-1"})    //nolint:gosec // few
	t.AddDevice(Device{Entity: int32(pod), Kind: DeviceFilesystem, Name: DeviceEphemeral})                       //nolint:gosec // few
	t.AddDevice(Device{Entity: int32(pod), Kind: DeviceInterface, Name: "eth0"})                                 //nolint:gosec // few
	t.AddDevice(Device{Entity: int32(pod), Kind: DeviceDisk, Name: "sda"})                                       //nolint:gosec // few
	t.AddDevice(Device{Entity: int32(pod), Kind: DeviceAccelerator, Name: "gpu-0", Make: "nvidia", Model: "t4"}) //nolint:gosec // few
	return t
}

func said(labels []Label) string {
	var all []string
	for _, l := range labels {
		all = append(all, l.Key+"="+l.Value)
	}
	return strings.Join(all, ",")
}

func TestLabelsOfEachWorld(t *testing.T) {
	table := namedTable()
	for row, want := range [][2]string{
		{"node=n1", "k8s.node.name=n1,k8s.node.uid=nu"},
		{"container=kubelet,node=n1", "k8s.node.name=n1,k8s.node.system_container.name=kubelet,k8s.node.uid=nu"},
		{"namespace=shop,node=n1,pod=web-1,workload=web,workload_kind=StatefulSet", "k8s.namespace.name=shop,k8s.node.name=n1,k8s.node.uid=nu,k8s.pod.name=web-1,k8s.pod.uid=pu,k8s.statefulset.name=web"},
		{"container=app,namespace=shop,node=n1,pod=web-1,workload=web,workload_kind=StatefulSet", "container.image.name=img:1,k8s.container.name=app,k8s.namespace.name=shop,k8s.node.name=n1,k8s.node.uid=nu,k8s.pod.name=web-1,k8s.pod.uid=pu,k8s.statefulset.name=web"},
		{"namespace=shop,node=n1,pod=bare,workload=bare,workload_kind=Pod", "k8s.namespace.name=shop,k8s.node.name=n1,k8s.node.uid=nu,k8s.pod.name=bare,k8s.pod.uid=bu"},
		{"namespace=shop", "k8s.namespace.name=shop"},
		{"namespace=shop,workload=web,workload_kind=Rollout", "heapstream.workload.kind=Rollout,heapstream.workload.name=web,k8s.namespace.name=shop"},
		{"", ""},
	} {
		for w, want := range want {
			if got := said(World(w).AppendEntityLabels(nil, table, row)); got != want { //nolint:gosec // few
				t.Errorf("%s %s has the labels %s, want %s", World(w), table.Entities[row].Kind, got, want) //nolint:gosec // few
			}
		}
	}
	for d, want := range [][2]string{
		{"persistentvolumeclaim=data-web-1,volume=data", "k8s.persistentvolumeclaim.name=data-web-1,k8s.volume.name=data"},
		{"filesystem=ephemeral-storage", "heapstream.filesystem.name=ephemeral-storage"},
		{"interface=eth0", "network.interface.name=eth0"},
		{"device=sda", "system.device=sda"},
		{"accelerator=gpu-0,make=nvidia,model=t4", "hw.id=gpu-0,hw.model=t4,hw.vendor=nvidia"},
	} {
		for w, want := range want {
			if got := said(World(w).AppendDeviceLabels(nil, &table.Devices[d])); got != want { //nolint:gosec // few
				t.Errorf("%s %s has the labels %s, want %s", World(w), table.Devices[d].Name, got, want) //nolint:gosec // few
			}
		}
	}
	if n := Prometheus.DeviceNaming(FilesystemUsage, KindPod, &table.Devices[0]); n.Name != "kubernetes_pod_volume_usage_bytes" {
		t.Errorf("a volume's usage is %s", n.Name)
	}
	if n := OTel.DeviceNaming(FilesystemUsage, KindPod, &table.Devices[1]); n.Name != "k8s.pod.filesystem.usage" {
		t.Errorf("a pod's usage is %s", n.Name)
	}
}

func TestValuesComeInTheUnitsOfTheirWorlds(t *testing.T) {
	table := namedTable()
	const pod, namespace = 2, 5
	set := func(row int, f Field, v int64) { table.Values.Set(row, f, v) }
	set(pod, FieldStart, 12_500_000_000)
	set(pod, CPUUsage.Field(), 1_500_000_001)
	set(pod, CPUUsage.Delta(), 123_456_789)
	set(pod, GroupCPU.Span(), 1e9)
	set(pod, CPULimit.Field(), 0)
	set(pod, CPURequest.Field(), 0)
	set(pod, MemoryLimit.Field(), 4096)
	set(pod, CPUPressure.Field(), 5e8)
	set(pod, (CPUPressure + PressureSomeAvg10).Field(), 1234)
	set(namespace, CPUUsageRate.Field(), 1999)
	check := func(w World, row int, id MetricID, rates bool, want string) {
		t.Helper()
		n := w.Naming(id, table.Entities[row].Kind)
		v, ok := table.Value(row, id)
		if !ok {
			t.Fatalf("no %s", n.Metric.Name)
		}
		got := "none"
		if f, ok := n.Value(table, row, v, rates); ok {
			got = fmt.Sprint(n.Name, " ", f)
		}
		if got != want {
			t.Errorf("%s of a %s is %s, want %s", n.Metric.Name, n.Kind, got, want)
		}
	}
	check(Prometheus, pod, Uptime, false, "kubernetes_pod_start_time_seconds 12.5")
	check(OTel, pod, Uptime, false, "k8s.pod.uptime 7.5")
	check(Prometheus, pod, CPUUsage, false, "kubernetes_pod_cpu_usage_seconds_total 1.500000001")
	check(OTel, pod, CPUUsage, false, "k8s.pod.cpu.time 1.500000001")
	// the rate of a counter that is there goes out when asked for, with all of its digits
	check(Prometheus, pod, CPUUsageRate, false, "none")
	check(Prometheus, pod, CPUUsageRate, true, "kubernetes_pod_cpu_usage_cores 0.123456789")
	// a sum has no counter
	check(Prometheus, namespace, CPUUsageRate, false, "kubernetes_namespace_cpu_usage_cores 1.999")
	set(namespace, CPUUsageNanocores.Field(), 2_000_000_001)
	check(OTel, namespace, CPUUsageRate, false, "k8s.namespace.cpu.usage 2.000000001")
	// no limit is no sample; a request of nothing is one
	check(Prometheus, pod, CPULimit, false, "none")
	check(Prometheus, pod, CPURequest, false, "kubernetes_pod_cpu_request_cores 0")
	check(OTel, pod, MemoryLimit, false, "k8s.pod.memory.limit.current 4096")
	check(Prometheus, pod, CPUPressure, false, "kubernetes_pod_pressure_cpu_waiting_seconds_total 0.5")
	check(Prometheus, pod, CPUPressure+PressureSomeAvg10, false, "none")
	check(Prometheus, pod, CPUPressure+PressureSomeAvg10, true, "kubernetes_pod_pressure_cpu_waiting_avg10_ratio 0.1234")
}

func TestNamesOfWhatIsNotInTheCatalogue(t *testing.T) {
	check := func(name string, counter bool, want ...string) {
		t.Helper()
		for w, want := range want {
			n := World(w).ExtraNaming(name, KindContainer, counter) //nolint:gosec // few
			if got := strings.TrimSpace(n.Name + " " + n.Instrument.String() + " " + said(n.Attributes)); got != want {
				t.Errorf("%s becomes %s, want %s", name, got, want)
			}
		}
	}
	check("custom/queue-length/žlutý", false, "kubernetes_container_custom_queue_length__lut_ gauge custom_metric=queue-length/žlutý", "container.custom.queue-length._lut_ gauge heapstream.custom.name=queue-length/žlutý")
	check("custom/requests", true, "kubernetes_container_custom_requests_total counter custom_metric=requests", "container.custom.requests counter")
	check("custom/requests_total", true, "kubernetes_container_custom_requests_total counter", "container.custom.requests_total counter")
	check("nvidia.com/gpu/request", false, "kubernetes_container_extended_resource_request gauge resource=nvidia.com/gpu",
		"k8s.container.extended_resource.request updowncounter heapstream.resource.name=nvidia.com/gpu")
	check("queue.length/now", false, "queue.length/now gauge", "queue.length/now gauge") // by rename
	for in, want := range map[string]string{"": "_", "9a": "_9a", "a.b/c": "a_b_c", "ok_1": "ok_1"} {
		if got := PrometheusName(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func BenchmarkNaming(b *testing.B) {
	table := namedTable()
	table.Values.Set(2, CPUUsage.Field(), 1e9)
	b.ReportAllocs()
	for b.Loop() {
		n := Prometheus.Naming(CPUUsage, KindPod)
		if v, ok := n.Value(table, 2, Int(1e9), false); !ok || v != 1 {
			b.Fatal(v)
		}
	}
}
