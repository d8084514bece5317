package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/heapstream/heapstream/proto"
)

// compare looks at a table through its golden file.
func compare(t *testing.T, table *proto.Table, name string) {
	t.Helper()
	golden := filepath.Join("testdata", name+".golden")
	got := dump(table)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from %s; run with -update and look at the difference. Got\n%s", name, golden, got)
	}
}

// ofForm decodes an answer of node "n" on machine m-1.
func ofForm(t *testing.T, form Form, answer string) *proto.Batch {
	t.Helper()
	var d Decoder
	b := &proto.Batch{Cluster: "c", Node: "n"}
	if err := d.Decode(form, []byte(answer), b, Machine{"m-1", "s-1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := proto.NewEncoder().Batch(b); err != nil {
		t.Fatalf("the batch does not encode: %v", err)
	}
	return b
}

func TestTextOfRealKubelet(t *testing.T) {
	var d Decoder
	b := &proto.Batch{}
	for _, c := range []struct {
		form Form
		name string
	}{{FormCAdvisor, "cadvisor-0"}, {FormCAdvisor, "cadvisor-3"}, {FormResource, "resource-0"}, {FormResource, "resource-3"}} {
		b.Node, b.Dropped = "node-0", 0
		data := fixture(t, c.name+".prom")
		const machine = "0123456789abcdef0123456789abcdef"
		if err := d.Decode(c.form, data, b, Machine{machine, machine}); err != nil {
			t.Fatal(err)
		}
		if b.Dropped != 0 {
			t.Errorf("%s: %d values left out of a sound answer", c.name, b.Dropped)
		}
		compare(t, &b.Table, c.name)
	}
}

const (
	podPath = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaaaaaaaa_bbbb_cccc_dddd_eeeeeeeeeeee.slice"
	podOwn  = `id="` + podPath + `",image="",name="",namespace="ns",pod="p"`
	pause   = `id="` + podPath + `/cri-containerd-0.scope",image="pause",name="0",namespace="ns",pod="p"`
	main    = `id="` + podPath + `/cri-containerd-1.scope",image="app:1",name="1",namespace="ns",pod="p"`
)

// every is one line of every family that is read, of systemd's cgroups.
var every = strings.Join([]string{
	`# HELP container_cpu_usage_seconds_total`,
	`container_cpu_usage_seconds_total{container="",cpu="total",id="/",image="",name="",namespace="",pod=""} 12.5 1000000000123`,
	`container_cpu_usage_seconds_total{container="",cpu="cpu00",id="/system.slice/a.b",image="",name="",namespace="",pod=""} 1 1000000000124`,
	`container_cpu_usage_seconds_total{container="",cpu="cpu01",id="/system.slice/a.b",image="",name="",namespace="",pod=""} 2 1000000000124`,
	`container_cpu_usage_seconds_total{container="",cpu="total",` + podOwn + `} 3.000000001 1000000000125`,
	`container_cpu_usage_seconds_total{container="",cpu="total",` + pause + `} 0.5 1000000000126`,
	`container_cpu_usage_seconds_total{container="main",cpu="total",` + main + `} 2.25e+00 1000000000127`,
	`container_cpu_load_average_10s{container="main",` + main + `} 7 1000000000127`,
	`container_memory_usage_bytes{container="main",` + main + `} 1.6e+07 1000000000127`,
	`container_memory_rss{container="main",` + main + `} 1 1000000000127`,
	`container_memory_cache{container="main",` + main + `} 2 1000000000127`,
	`container_memory_working_set_bytes{container="main",` + main + `} 1.5e+07 1000000000127`,
	`container_memory_failures_total{container="main",failure_type="pgfault",` + main + `,scope="container"} 3 1000000000127`,
	`container_memory_failures_total{container="main",failure_type="pgfault",` + main + `,scope="hierarchy"} 99 1000000000127`,
	`container_memory_failures_total{container="main",failure_type="pgmajfault",` + main + `,scope="container"} 4 1000000000127`,
	`container_memory_swap{container="main",` + main + `} 5 1000000000127`,
	`container_spec_memory_limit_bytes{container="main",` + main + `} 2e+07`,
	`container_start_time_seconds{container="main",` + main + `} 9.99999e+08`,
	`container_start_time_seconds{container="",` + pause + `} 9.99998e+08`,
	`container_processes{container="main",` + main + `} 6 1000000000127`,
	`container_processes{container="",` + podOwn + `} 0 1000000000125`,
	`container_pressure_cpu_waiting_seconds_total{container="main",` + main + `} 0.1 1000000000127`,
	`container_pressure_cpu_stalled_seconds_total{container="main",` + main + `} 0.2 1000000000127`,
	`container_pressure_memory_waiting_seconds_total{container="main",` + main + `} 0.3 1000000000127`,
	`container_pressure_memory_stalled_seconds_total{container="main",` + main + `} 0.4 1000000000127`,
	`container_pressure_io_waiting_seconds_total{container="main",` + main + `} 0.5 1000000000127`,
	`container_pressure_io_stalled_seconds_total{container="main",` + main + `} 0.6 1000000000127`,
	`container_network_receive_bytes_total{container="",` + pause + `,interface="eth0"} 10 1000000000126`,
	`container_network_receive_bytes_total{container="",` + pause + `,interface="eth1"} 20 1000000000126`,
	`container_network_receive_errors_total{container="",` + pause + `,interface="eth0"} 1 1000000000126`,
	`container_network_transmit_bytes_total{container="",` + pause + `,interface="eth0"} 30 1000000000126`,
	`container_network_transmit_errors_total{container="",` + pause + `,interface="eth0"} 2 1000000000126`,
	`container_fs_usage_bytes{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 40 1000000000123`,
	`container_fs_limit_bytes{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 50 1000000000123`,
	`container_fs_inodes_total{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 60 1000000000123`,
	`container_fs_inodes_free{container="",device="/dev/vda1",id="/",image="",name="",namespace="",pod=""} 61 1000000000123`,
	`container_blkio_device_usage_total{container="main",device="",` + main + `,major="8",minor="16",operation="Read"} 512 1000000000127`,
	`container_blkio_device_usage_total{container="main",device="",` + main + `,major="8",minor="16",operation="Write"} 1024 1000000000127`,
	`container_blkio_device_usage_total{container="main",device="",` + main + `,major="8",minor="16",operation="Async"} 1 1000000000127`,
	`container_fs_reads_bytes_total{container="main",device="/dev/vda",` + main + `} 4096 1000000000127`,
	`container_fs_writes_bytes_total{container="main",device="/dev/vda",` + main + `} 8192 1000000000127`,
	`container_fs_sector_reads_total{container="main",device="/dev/vda",` + main + `} 3 1000000000127`,
	`container_fs_sector_reads_total{container="",device="/dev/vda",id="/",image="",name="",namespace="",pod=""} 3 1000000000123`,
	`container_fs_sector_writes_total{container="",device="/dev/shm",id="/",image="",name="",namespace="",pod=""} 0 1000000000123`,
	`container_accelerator_memory_total_bytes{acc_id="GPU-1",container="main",` + main + `,make="nvidia",model="a\"1\\0"} 70 1000000000127`,
	`container_accelerator_memory_used_bytes{acc_id="GPU-1",container="main",` + main + `,make="nvidia",model="a\"1\\0"} 71 1000000000127`,
	`container_accelerator_duty_cycle{acc_id="GPU-1",container="main",` + main + `,make="nvidia",model="a\"1\\0"} 72 1000000000127`,
	`machine_memory_bytes{boot_id="b",machine_id="m-1",system_uuid="s-1"} 1`,
	`container_scrape_error 0`,
	``}, "\n")

func TestCAdvisorMapsEveryFamily(t *testing.T) {
	b := ofForm(t, FormCAdvisor, every)
	if b.Dropped != 0 {
		t.Errorf("dropped %d", b.Dropped)
	}
	compare(t, &b.Table, "every-family")
}

// find is the row of an entity; -1: there is none.
func find(b *proto.Batch, kind proto.Kind, name string) int {
	for i := range b.Entities {
		if b.Entities[i].Kind == kind && b.Entities[i].Name == name {
			return i
		}
	}
	return -1
}

func cpu(id, container, namespace, pod, name string, seconds float64, at int64) string {
	return fmt.Sprintf("container_cpu_usage_seconds_total{container=%q,cpu=\"total\",id=%q,image=\"\",name=%q,namespace=%q,pod=%q} %g %d\n", container, id, name, namespace, pod, seconds, at)
}

func started(id, container, namespace, pod, name string, at int64) string {
	return fmt.Sprintf("container_start_time_seconds{container=%q,id=%q,image=\"\",name=%q,namespace=%q,pod=%q} %d\n", container, id, name, namespace, pod, at)
}

// Which cgroup is which pod, of the drivers, runtimes and kubelets there are.
func TestCgroupsArePodsAndContainers(t *testing.T) {
	const uid = "7de5af34-e7cd-4d2c-bc00-57d092201aba"
	const flat = "7de5af34_e7cd_4d2c_bc00_57d092201aba"
	const hash = "0123456789abcdef0123456789abcdef"
	for _, c := range []struct {
		what, pod, sandbox, container string // paths
		sandboxLabel, uid             string
		labelled                      bool // the pod's cgroup has labels
	}{
		{"cgroupfs", "/kubepods/burstable/pod" + uid, "/kubepods/burstable/pod" + uid + "/aa", "/kubepods/burstable/pod" + uid + "/bb", "", uid, true},
		{"cgroupfs, guaranteed", "/kubepods/pod" + uid, "/kubepods/pod" + uid + "/aa", "/kubepods/pod" + uid + "/bb", "", uid, true},
		{"Docker", "/kubepods/besteffort/pod" + uid, "/kubepods/besteffort/pod" + uid + "/aa", "/kubepods/besteffort/pod" + uid + "/bb", "POD", uid, true},
		{"systemd", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + flat + ".slice",
			"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + flat + ".slice/cri-containerd-aa.scope",
			"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + flat + ".slice/cri-containerd-bb.scope", "", uid, true},
		{"systemd, guaranteed, CRI-O", "/kubepods.slice/kubepods-pod" + flat + ".slice", "/kubepods.slice/kubepods-pod" + flat + ".slice/crio-aa.scope",
			"/kubepods.slice/kubepods-pod" + flat + ".slice/crio-bb.scope", "POD", uid, true},
		{"a kubelet in a container", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + flat + ".slice",
			"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + flat + ".slice/cri-containerd-aa.scope",
			"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + flat + ".slice/cri-containerd-bb.scope", "", uid, true},
		{"a kubelet in a pod", "/kubepods/pod11111111-2222-3333-4444-555555555555/cc/kubepods/pod" + uid, "/kubepods/pod11111111-2222-3333-4444-555555555555/cc/kubepods/pod" + uid + "/aa",
			"/kubepods/pod11111111-2222-3333-4444-555555555555/cc/kubepods/pod" + uid + "/bb", "", uid, true},
		{"a static pod", "/kubepods/burstable/pod" + hash, "/kubepods/burstable/pod" + hash + "/aa", "/kubepods/burstable/pod" + hash + "/bb", "", hash, true},
		{"before Kubernetes 1.16, cgroupfs", "/kubepods/burstable/pod" + uid, "/kubepods/burstable/pod" + uid + "/aa", "/kubepods/burstable/pod" + uid + "/bb", "POD", uid, false},
		{"before Kubernetes 1.16, systemd", "/kubepods.slice/kubepods-pod" + flat + ".slice", "/kubepods.slice/kubepods-pod" + flat + ".slice/docker-aa.scope",
			"/kubepods.slice/kubepods-pod" + flat + ".slice/docker-bb.scope", "POD", uid, false},
		{"paths that tell nothing", "", "/x/aa", "/x/bb", "POD", "", true},
	} {
		namespace, name := "ns", "p"
		if !c.labelled {
			namespace, name = "", ""
		}
		answer := cpu("/", "", "", "", "", 9, 1e12) + cpu(c.pod, "", namespace, name, "", 5, 1e12+1) + cpu(c.sandbox, c.sandboxLabel, "ns", "p", "aa", 1, 1e12+2) + cpu(c.container, "app", "ns", "p", "bb", 3, 1e12+3) +
			`container_network_receive_bytes_total{container="` + c.sandboxLabel + `",id="` + c.sandbox + `",image="",interface="eth0",name="aa",namespace="ns",pod="p"} 77 1000000000009` + "\n"
		if !c.labelled { // the labels of then
			answer = strings.NewReplacer(`{container=`, `{container_name=`, `pod=`, `pod_name=`).Replace(answer)
		}
		b := ofForm(t, FormCAdvisor, answer)
		if len(b.Entities) != 3 || b.Dropped != 0 {
			t.Errorf("%s: %d entities, dropped %d:\n%s", c.what, len(b.Entities), b.Dropped, dump(&b.Table))
			continue
		}
		pod := b.Entities[1]
		own, _ := b.Values.Get(1, proto.CPUUsage.Field())
		app, _ := b.Values.Get(2, proto.CPUUsage.Field())
		rx, _ := b.Values.Get(1, proto.NetworkRx.Field())
		at, _ := b.Values.Get(1, proto.GroupNetwork.Time())
		if pod.Kind != proto.KindPod || pod.Namespace != "ns" || pod.Name != "p" || pod.UID != c.uid || pod.Flags&proto.FlagCgroup == 0 {
			t.Errorf("%s: pod %+v", c.what, pod)
		}
		if b.Entities[2].Kind != proto.KindContainer || b.Entities[2].Name != "app" || b.Entities[2].Parent != 1 {
			t.Errorf("%s: container %+v", c.what, b.Entities[2])
		}
		if own != 5e9 || app != 3e9 || rx != 77 || at != 1000000000009e6 {
			t.Errorf("%s: pod %d ns, %d bytes at %d, container %d ns", c.what, own, rx, at, app)
		}
	}
}

// Without a cgroup of its own a pod has no cpu and memory here: they are summed from its containers later,
// and the sandbox's are not among them (quirk Q-16).
func TestPodWithoutCgroupIsLeftToItsContainers(t *testing.T) {
	b := ofForm(t, FormCAdvisor, cpu("/kubepods/x/aa", "POD", "ns", "p", "aa", 1, 1e12)+started("/kubepods/x/aa", "POD", "ns", "p", "aa", 900)+cpu("/kubepods/x/bb", "app", "ns", "p", "bb", 3, 1e12))
	pod := find(b, proto.KindPod, "p")
	if pod < 0 || b.Entities[pod].Flags&proto.FlagCgroup != 0 {
		t.Fatalf("%s", dump(&b.Table))
	}
	if v, ok := b.Values.Get(pod, proto.CPUUsage.Field()); ok {
		t.Errorf("the sandbox's cpu %d is the pod's", v)
	}
	if v, _ := b.Values.Get(pod, proto.FieldStart); v != 900e9 {
		t.Errorf("the pod began at %d, want when its sandbox did", v)
	}
}

// Quirk Q-6: whatever the order, the instance that started last is the container.
func TestNewestOfTwoInstancesCounts(t *testing.T) {
	const base = "/kubepods/pod7de5af34-e7cd-4d2c-bc00-57d092201aba/"
	dead := cpu(base+"aa", "app", "ns", "p", "aa", 900, 1e12) + started(base+"aa", "app", "ns", "p", "aa", 100)
	live := cpu(base+"bb", "app", "ns", "p", "bb", 3, 1e12) + started(base+"bb", "app", "ns", "p", "bb", 200)
	oldSandbox := "container_network_receive_bytes_total{container=\"POD\",id=\"" + base + "cc\",interface=\"eth0\",name=\"cc\",namespace=\"ns\",pod=\"p\"} 70 1000000000009\n" + started(base+"cc", "POD", "ns", "p", "cc", 100)
	newSandbox := "container_network_receive_bytes_total{container=\"POD\",id=\"" + base + "dd\",interface=\"eth0\",name=\"dd\",namespace=\"ns\",pod=\"p\"} 7 1000000000009\n" + started(base+"dd", "POD", "ns", "p", "dd", 200)
	for _, answer := range []string{dead + live + oldSandbox + newSandbox, newSandbox + oldSandbox + live + dead} {
		b := ofForm(t, FormCAdvisor, answer)
		if len(b.Entities) != 3 || b.Dropped != 0 {
			t.Fatalf("dropped %d of\n%s", b.Dropped, dump(&b.Table))
		}
		if v, _ := b.Values.Get(2, proto.CPUUsage.Field()); v != 3e9 {
			t.Errorf("the exited instance won: %d", v)
		}
		if v, _ := b.Values.Get(1, proto.NetworkRx.Field()); v != 7 || len(b.Devices) != 1 {
			t.Errorf("network of the exited sandbox: %d, %d devices", v, len(b.Devices))
		}
	}
}

// A pod that was created anew under its name comes after the one that winds up.
func TestNewestOfTwoPodsOfOneNameCounts(t *testing.T) {
	pod := func(uid string, start int64, seconds float64) string {
		path := "/kubepods/pod" + uid
		return cpu(path, "", "ns", "db-0", "", seconds+1, 1e12) + cpu(path+"/aa", "db", "ns", "db-0", uid, seconds, 1e12) +
			started(path, "", "ns", "db-0", "", start) + started(path+"/aa", "db", "ns", "db-0", uid, start)
	}
	gone, here := pod("aaaaaaaa-e7cd-4d2c-bc00-57d092201aba", 100, 900), pod("bbbbbbbb-e7cd-4d2c-bc00-57d092201aba", 200, 3)
	for _, answer := range []string{gone + here, here + gone} {
		b := ofForm(t, FormCAdvisor, answer)
		if v, _ := b.Values.Get(2, proto.CPUUsage.Field()); len(b.Entities) != 3 || b.Entities[1].UID[:8] != "bbbbbbbb" || v != 3e9 {
			t.Errorf("\n%s", dump(&b.Table))
		}
	}
}

func TestTextLeavesOutSingleValues(t *testing.T) {
	for _, c := range []struct{ value, why string }{
		{"-1", "negative"}, {"9.3e+18", "beyond 2^63-1"}, {"1e400", "beyond everything"}, {"NaN", "no number"}, {"+Inf", "infinite"}, {"12x", "no number"}, {"1e", "no exponent"}, {".", "no digits"},
	} {
		b := ofForm(t, FormCAdvisor, `container_memory_usage_bytes{id="/"} `+c.value+" 1000000000000\n"+`container_memory_rss{id="/"} 7 1000000000000`+"\n")
		if v, ok := b.Values.Get(0, proto.MemoryUsage.Field()); ok {
			t.Errorf("%s (%s): kept as %d", c.value, c.why, v)
		}
		if v, _ := b.Values.Get(0, proto.MemoryRSS.Field()); v != 7 || b.Dropped != 1 {
			t.Errorf("%s: the value beside it is %d, dropped %d", c.value, v, b.Dropped)
		}
	}
	long := strings.Repeat("x", 2000)
	for _, line := range []string{
		`container_memory_usage_bytes{id="/`, `container_memory_usage_bytes{id="/"}`, `container_memory_usage_bytes{id=/} 1`, `container_memory_usage_bytes{id="/"} 1 12:00`,
		`container_memory_usage_bytes{id="/"} 1 99999999999999999999`, `container_memory_usage_bytes{id="/` + long + `"} 1`, `container_memory_usage_bytes{container="c"} 1`,
		`container_memory_usage_bytes{pod="p",namespace="` + long + `"} 1`, `container_memory_usage_bytes{` + strings.Repeat(`a="b",`, maxLabels+1) + `id="/"} 1`,
		`container_memory_usage_bytes{id="/",x="` + strings.Repeat("x", maxLine) + `"} 1`, `container_fs_usage_bytes{id="/"} 1`, `{"node":[garbage`, "\x00\xff",
	} {
		b := ofForm(t, FormCAdvisor, line+"\n"+`container_memory_rss{id="/"} 7`+"\n")
		if v, _ := b.Values.Get(0, proto.MemoryRSS.Field()); v != 7 || b.Dropped != 1 || len(b.Entities) != 1 {
			t.Errorf("%.60q: the value beside it is %d, dropped %d, %d entities", line, v, b.Dropped, len(b.Entities))
		}
	}
}

// What the client leaves out of a text while it reads it is what the decoder would have passed over, whatever
// the pieces in which it comes.
func TestReadingKeepsWhatIsWanted(t *testing.T) {
	whole := fixture(t, "cadvisor-0.prom")
	wanted := requests[FormCAdvisor].wanted
	kept, n, err := readAnswer(nil, bytes.NewReader(whole), wanted)
	if err != nil || n != int64(len(whole)) || len(kept) > len(whole)/2 {
		t.Fatalf("%d of %d bytes read, %d kept, %v", n, len(whole), len(kept), err)
	}
	anywhere := strings.NewReplacer("0123456789abcdef0123456789abcdef", "")
	if got, want := dump(&ofForm(t, FormCAdvisor, anywhere.Replace(string(kept))).Table), dump(&ofForm(t, FormCAdvisor, anywhere.Replace(string(whole))).Table); got != want {
		t.Errorf("after reading\n%s\nwithout\n%s", got, want)
	}
	if bytes.Count(kept, []byte("\n")) != bytes.Count(whole, []byte("\n")) {
		t.Error("lines have other numbers")
	}
	for name, r := range map[string]io.Reader{"a byte at a time": iotest.OneByteReader(bytes.NewReader(whole)), "the last with the end": iotest.DataErrReader(bytes.NewReader(whole))} {
		if again, _, err := readAnswer(make([]byte, 0, 7), r, wanted); err != nil || !bytes.Equal(again, kept) {
			t.Errorf("%s: %d bytes are kept, want %d (%v)", name, len(again), len(kept), err)
		}
	}
	for text, want := range map[string]string{
		"": "", "go_x 1": "go_x 1", "go_x 1\n": "\n", "# HELP\n\n<html>\ngo_x": "\n\n<html>\ngo_x", "container_memory_rss{id=\"/\"} 1\ngo_x{a=\"b\"} 1\ngo_x 2\ncontainer_memory_rss{id=\"/x\"} 1\n": "container_memory_rss{id=\"/\"} 1\n\n\ncontainer_memory_rss{id=\"/x\"} 1\n",
	} {
		if got, _, err := readAnswer(nil, strings.NewReader(text), wanted); err != nil || string(got) != want {
			t.Errorf("%q is kept as %q, want %q (%v)", text, got, want, err)
		}
	}
	if _, _, err := readAnswer(nil, iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("xy"))), wanted); !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
}

func TestDecimalsAreExact(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1e9, "0.5": 5e8, "2360.218621349": 2360218621349, "1.795206604836718e+09": 1795206604836718000, "1e-09": 1, "4e-10": 0, "5e-10": 1,
		"5.886418928999999999999999999": 5886418929, "0.000000000000000000000000001": 0, "9223372036.854775807": 1<<63 - 1, "+1": 1e9, "1e+00": 1e9, "00.10": 1e8, "1e-400": 0, "0e400": 0,
	} {
		if v, ok := decimal([]byte(text), nanoseconds); !ok || v != want {
			t.Errorf("%s: %d %t, want %d", text, v, ok, want)
		}
	}
	for _, text := range []string{"", "+", "-0.1", "1.2.3", "0x10", "9223372036.9", "1e10", "e5", "1 "} {
		if v, ok := decimal([]byte(text), nanoseconds); ok {
			t.Errorf("%q is %d", text, v)
		}
	}
}

func TestTextRefusesWhatIsNoAnswer(t *testing.T) {
	whole := string(fixture(t, "cadvisor-0.prom"))
	check := func(what string, form Form, answer string, reason Reason, words ...string) {
		t.Helper()
		var d Decoder
		err := d.Decode(form, []byte(answer), &proto.Batch{Node: "node-0"}, Machine{"m-1", "s-1"})
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason {
			t.Errorf("%s: %v, want reason %s", what, err, reason)
			return
		}
		for _, w := range append(words, `"node-0"`, "kubernetes") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not name %q", what, err, w)
			}
		}
	}
	for _, form := range []Form{FormCAdvisor, FormResource} {
		check("nothing", form, "", HalfAnswer)
		check("garbage", form, "\x00\xff{\"node\":[garbage\xfe}}]\n", BadAnswer, "line 1")
		check("garbage on one line", form, "\x00\xff{\"node\":[garbage\xfe}}]", BadAnswer, "line 1")
		check("cut in its first line", form, "# HELP container_cpu", HalfAnswer, "line 1")
		check("html", form, "<html>\n<body>\n", BadAnswer, "line 1")
		check("json", form, "{\n}\n", BadAnswer, "line 1")
		check("other metrics", form, "# HELP x y\ngo_goroutines 5\n", BadAnswer, "no cgroup")
	}
	check("another machine", FormCAdvisor, `container_memory_rss{id="/"} 7`+"\n"+`machine_memory_bytes{machine_id="m-2",system_uuid="s-1"} 1`+"\n", OtherNode, "m-2", "m-1")
	check("half", FormCAdvisor, whole[:len(whole)/2], HalfAnswer, "breaks off", "line ")
	check("could not measure", FormResource, "resource_scrape_error 1\n", ServerError, "scrape_error")
}

func TestTextBoundsRows(t *testing.T) {
	var doc strings.Builder
	for i := range maxRows + 10 {
		fmt.Fprintf(&doc, "container_memory_rss{id=\"/x%d\"} 7\n", i)
	}
	b := ofForm(t, FormCAdvisor, doc.String())
	if len(b.Entities) != maxRows || b.Dropped != 11 {
		t.Errorf("%d rows, dropped %d", len(b.Entities), b.Dropped)
	}
	doc.Reset()
	for i := range maxDevices + 10 {
		fmt.Fprintf(&doc, "container_fs_usage_bytes{id=\"/\",device=\"d%d\"} 7\n", i)
	}
	b = ofForm(t, FormCAdvisor, doc.String())
	if len(b.Devices) != maxDevices || b.Dropped != 10 {
		t.Errorf("%d devices, dropped %d", len(b.Devices), b.Dropped)
	}
}

// A pod and its containers are named by labels alone.
func TestResourceOfAnyOrder(t *testing.T) {
	b := ofForm(t, FormResource, `container_cpu_usage_seconds_total{container="a",namespace="ns",pod="p"} 1 1000000000000
pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 3 1000000001000
container_cpu_usage_seconds_total{container="a",namespace="ns",pod="q"} 1 1000000000000
node_cpu_usage_seconds_total 9 1000000002000
container_start_time_seconds{container="b",namespace="ns",pod="p"} 1.0000000005e+09
container_cpu_usage_seconds_total{container="b",namespace="ns",pod="p"} 1 1000000000000
container_swap_limit_bytes{container="b",namespace="ns",pod="p"} 0
`)
	compare(t, &b.Table, "resource-any-order")
}

const containerStats = `{
 "/": {"id":"/","name":"/","spec":{"creation_time":"2018-01-01T00:00:00Z","has_cpu":true,"has_memory":true,"memory":{"limit":1000,"swap_limit":18446744073709551615},"has_network":true,"has_filesystem":true,"has_diskio":true,"has_custom_metrics":false},
  "stats":[{"timestamp":"2018-01-02T02:22:00Z","cpu":{"usage":{"total":1}}},
   {"timestamp":"2018-01-02T02:23:00.5Z","cpu":{"usage":{"total":9000000000,"per_cpu_usage":[4,5]},"load_average":3},
   "memory":{"usage":900,"cache":1,"rss":2,"swap":3,"working_set":800,"failcnt":0,"container_data":{"pgfault":5,"pgmajfault":6},"hierarchical_data":{"pgfault":7}},
   "network":{"name":"","rx_bytes":0,"interfaces":[{"name":"eth0","rx_bytes":10,"rx_errors":1,"tx_bytes":20,"tx_errors":2},{"name":"eth1","rx_bytes":5,"rx_errors":0,"tx_bytes":6,"tx_errors":0}]},
   "filesystem":[{"device":"/dev/sda1","type":"vfs","capacity":100,"usage":40,"available":50,"has_inodes":true,"inodes":11,"inodes_free":12},{"device":"tmpfs","capacity":1,"usage":0,"available":1,"has_inodes":false,"inodes":9}],
   "diskio":{"io_service_bytes":[{"device":"/dev/sda","major":8,"minor":0,"stats":{"Read":100,"Write":200,"Total":300}},{"device":"","major":8,"minor":16,"stats":{"Read":7}}]}}]},
 "/kubepods/burstable/pod7de5af34-e7cd-4d2c-bc00-57d092201aba": {"name":"/kubepods/burstable/pod7de5af34-e7cd-4d2c-bc00-57d092201aba","spec":{"has_cpu":true},"stats":[{"timestamp":"2018-01-02T02:23:01Z","cpu":{"usage":{"total":50}}}]},
 "/docker/1": {"stats":[{"timestamp":"2018-01-02T02:23:02Z","accelerators":[{"make":"nvidia","model":"k80","id":"GPU-1","memory_total":1,"memory_used":2,"duty_cycle":3}],
    "custom_metrics":{"qps":[{"timestamp":"2018-01-02T02:22:00Z","int_value":1},{"timestamp":"2018-01-02T02:23:00Z","int_value":2}],"load":[{"timestamp":"2018-01-02T02:23:00Z","float_value":1.5}],"odd":[{"timestamp":"2018-01-02T02:23:00Z"}]},
    "cpu":{"usage":{"total":40}},"memory":{"usage":4}}],
   "aliases":["k8s_app.1_p_ns","1"],"namespace":"docker","name":"/docker/1",
   "spec":{"creation_time":"2018-01-02T00:00:00Z","has_cpu":true,"has_memory":false,"image":"app:1","has_custom_metrics":true,"custom_metrics":[{"name":"qps","type":"cumulative","format":"int"},{"name":"load","type":"gauge","format":"float"},{"name":"odd","type":"delta","format":"int"}],
    "labels":{"io.kubernetes.container.name":"app","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"ns","io.kubernetes.pod.uid":"7de5af34-e7cd-4d2c-bc00-57d092201aba","other":"x"}}},
 "/docker/2": {"name":"/docker/2","aliases":["k8s_POD.2_p_ns"],"spec":{"has_cpu":true,"has_network":true,"labels":{"io.kubernetes.container.name":"POD","io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"ns","io.kubernetes.pod.uid":"7de5af34-e7cd-4d2c-bc00-57d092201aba"}},
   "stats":[{"timestamp":"2018-01-02T02:23:03Z","cpu":{"usage":{"total":1}},"network":{"interfaces":[{"name":"eth0","rx_bytes":77,"tx_bytes":88}]}}]},
 "/a.b": {"name":"/a.b","spec":{"has_cpu":true},"stats":[{"timestamp":"2018-01-02T02:23:04Z","cpu":{"usage":{"total":5}}}]},
 "/docker/3": {"name":"/docker/3","aliases":["registry"],"spec":{"has_cpu":true},"stats":[{"timestamp":"2018-01-02T02:23:05Z","cpu":{"usage":{"total":6}}}]},
 "/none": {"name":"/none","spec":{"has_cpu":true},"stats":[]}
}`

// Heapster's map of cAdvisor's dump, and what it died of: "/a.b" (issue 1855).
func TestContainerStatsMapsEveryField(t *testing.T) {
	b := ofForm(t, FormContainerStats, containerStats)
	if b.Dropped != 1 { // the custom metric of another type
		t.Errorf("dropped %d, want 1", b.Dropped)
	}
	compare(t, &b.Table, "container-stats")
}

func TestContainerStatsRefusesWhatIsNoAnswer(t *testing.T) {
	check := func(what, answer string, reason Reason, words ...string) {
		t.Helper()
		var d Decoder
		err := d.Decode(FormContainerStats, []byte(answer), &proto.Batch{Node: "node-0"}, Machine{})
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason {
			t.Errorf("%s: %v, want reason %s", what, err, reason)
			return
		}
		for _, w := range append(words, `"node-0"`, "/stats/container/") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not name %q", what, err, w)
			}
		}
	}
	check("nothing", "", HalfAnswer)
	check("half", containerStats[:len(containerStats)/2], HalfAnswer, "/docker/1")
	check("html", "<html>", BadAnswer)
	check("an array", "[]", BadAnswer)
	check("no cgroups", "{}", BadAnswer, "no cgroup")
	check("broken inside", `{"/":{"name":"/","stats":[{"cpu":{"usage":{"total":1x}}}]}}`, BadAnswer, "/")
	check("something behind", `{}{}`, BadAnswer)
	check("too deep", `{"/":`+strings.Repeat("[", 1<<20), BadAnswer)
}

// fuzzForm holds what must be true of any answer: a decoder that has been used before, as all are, says
// the same as a fresh one, and whatever is taken goes through the codec unchanged.
func fuzzForm(f *testing.F, form Form) {
	var d Decoder
	enc, dec := proto.NewEncoder(), proto.NewDecoder()
	f.Fuzz(func(t *testing.T, data []byte) {
		b, again := &proto.Batch{Cluster: "c", Node: "n"}, &proto.Batch{}
		if err := d.Decode(form, data, b, Machine{"m", "s"}); err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Node != "n" || !strings.Contains(e.What, "kubernetes") {
				t.Fatalf("%v does not say of what", err)
			}
			return
		}
		var fresh Decoder
		other := &proto.Batch{Cluster: "c", Node: "n"}
		if err := fresh.Decode(form, data, other, Machine{"m", "s"}); err != nil || dump(&b.Table) != dump(&other.Table) {
			t.Fatalf("a used decoder differs from a fresh one (%v)", err)
		}
		if len(b.Entities) > len(data)+1 || len(b.Devices) > len(data) {
			t.Fatalf("%d bytes became %d entities and %d devices", len(data), len(b.Entities), len(b.Devices))
		}
		msg, err := enc.Batch(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := dec.Batch(msg, again); err != nil {
			t.Fatal(err)
		}
		if got, want := dump(&again.Table), dump(&b.Table); got != want {
			t.Fatalf("after the codec\n%s\nbefore\n%s", got, want)
		}
	})
}

func FuzzCAdvisor(f *testing.F) {
	f.Add([]byte(every))
	f.Add([]byte("container_memory_rss{id=\"/\",x=\"a\\\"\\\\\\n\"} 7e3 1000000000000\n"))
	fuzzForm(f, FormCAdvisor)
}

func FuzzResource(f *testing.F) {
	f.Add(fixture(f, "resource-0.prom"))
	fuzzForm(f, FormResource)
}

func FuzzContainerStats(f *testing.F) {
	f.Add([]byte(containerStats))
	fuzzForm(f, FormContainerStats)
}
