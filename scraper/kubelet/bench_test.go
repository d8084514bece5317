package kubelet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/heapstream/heapstream/proto"
)

// answer makes what a kubelet with so many pods sends, as today's write it: indented by one space.
func answer(node string, pods, containers int) []byte {
	var real, out map[string]any
	if err := json.Unmarshal([]byte(`{}`), &out); err != nil {
		panic(err)
	}
	data := mustFixture("summary-0.json")
	if err := json.Unmarshal(data, &real); err != nil {
		panic(err)
	}
	n := real["node"].(map[string]any)
	n["nodeName"] = node
	model := real["pods"].([]any)[1].(map[string]any)
	list := make([]any, pods)
	for i := range list {
		p := clone(model)
		p["podRef"] = map[string]any{"name": fmt.Sprintf("web-7d8f9c-%05d", i), "namespace": fmt.Sprintf("team-%d", i%7), "uid": fmt.Sprintf("7de5af34-e7cd-4d2c-bc00-%012d", i)}
		c := p["containers"].([]any)[0].(map[string]any)
		cs := make([]any, containers)
		for j := range cs {
			cc := clone(c)
			cc["name"] = fmt.Sprint("c", j)
			cc["cpu"].(map[string]any)["usageCoreNanoSeconds"] = 1000000007*i + j
			cs[j] = cc
		}
		p["containers"] = cs
		list[i] = p
	}
	data, err := json.MarshalIndent(map[string]any{"node": n, "pods": list}, "", " ")
	if err != nil {
		panic(err)
	}
	return data
}

func clone(m map[string]any) (c map[string]any) {
	data, err := json.Marshal(m)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		panic(err)
	}
	return c
}

// exposed makes what a kubelet with so many pods exposes, out of what one did: the lines of one pod (its
// cgroup, its sandbox, its container) stand for all.
func exposed(fixture string, pods, containers int) []byte {
	const (
		model = "web-745dd74d67-ck66b"
		uid   = "3746702e-7ca0-4a92-ac95-20557163349b"
		id    = "6e9eac2f2bb6ea2b249c6f205d068ad588af64b32a8a550978bc529c56ab9acf"
		pause = "1fc6d42c74e925bcf22d4c7c3f6e4dfa85be73054d030c62792699c66d7d2042"
	)
	var out bytes.Buffer
	var family []string // the model's lines of the family at hand
	flush := func() {
		for i := range pods {
			pod := strings.NewReplacer(model, fmt.Sprintf("web-7d8f9c-%05d", i), uid, fmt.Sprintf("7de5af34-e7cd-4d2c-bc00-%012d", i), pause, fmt.Sprintf("%064x", i), `namespace="demo"`, fmt.Sprintf(`namespace="team-%d"`, i%7))
			for _, line := range family {
				if !strings.Contains(line, `container="web"`) {
					_, _ = pod.WriteString(&out, line)
					continue
				}
				for j := range containers {
					c := strings.NewReplacer(`container="web"`, fmt.Sprintf(`container="c%d"`, j), id, fmt.Sprintf("%064x", 1<<20+i*containers+j))
					_, _ = pod.WriteString(&out, c.Replace(line))
				}
			}
		}
		family = family[:0]
	}
	for line := range strings.Lines(string(mustFixture(fixture))) {
		switch {
		case strings.HasPrefix(line, "# HELP"):
			flush()
			out.WriteString(line)
		case strings.Contains(line, model):
			family = append(family, line)
		case !strings.Contains(line, `pod="`) || strings.Contains(line, `pod=""`):
			out.WriteString(line)
		}
	}
	flush()
	return out.Bytes()
}

// dumped makes what a kubelet of old with so many pods answers to POST /stats/container/.
func dumped(pods, containers int) []byte {
	cgroup := func(name, labels string, i int, more string) string {
		return fmt.Sprintf(`{"id":"%064x","name":%q,"aliases":["k8s_x_%d"],"namespace":"docker","labels":{},"spec":{"creation_time":"2018-01-02T00:00:00.123456789Z","labels":{%s"annotation.io.kubernetes.container.hash":"5b1f0b2c","maintainer":"somebody"},`+
			`"has_cpu":true,"cpu":{"limit":102,"max_limit":0,"mask":"0-3","period":100000},"has_memory":true,"memory":{"limit":134217728,"swap_limit":18446744073709551615},"has_network":%t,"has_filesystem":false,"has_diskio":true,"has_custom_metrics":false,"image":"app:1"},`+
			`"stats":[{"timestamp":"2018-01-02T02:23:%02d.5Z","cpu":{"usage":{"total":%d,"per_cpu_usage":[1,2,3,4],"user":5,"system":6},"cfs":{"periods":0,"throttled_periods":0,"throttled_time":0},"load_average":0},`+
			`"diskio":{"io_service_bytes":[{"device":"/dev/sda","major":8,"minor":0,"stats":{"Async":0,"Read":4096,"Sync":4096,"Total":4096,"Write":0}}],"io_serviced":[{"device":"/dev/sda","major":8,"minor":0,"stats":{"Async":0,"Read":1,"Sync":1,"Total":1,"Write":0}}]},`+
			`"memory":{"usage":28381184,"max_usage":29216768,"cache":4096,"rss":27000832,"swap":0,"mapped_file":0,"working_set":28372992,"failcnt":0,"container_data":{"pgfault":7806,"pgmajfault":0},"hierarchical_data":{"pgfault":7806,"pgmajfault":0}},`+
			`"network":{"name":"","rx_bytes":0,"rx_packets":0,"rx_errors":0,"rx_dropped":0,"tx_bytes":0,"tx_packets":0,"tx_errors":0,"tx_dropped":0%s,"tcp":{"Established":0},"udp":{"Listen":0}},"task_stats":{"nr_sleeping":0,"nr_running":0,"nr_stopped":0,"nr_uninterruptible":0,"nr_io_wait":0}}]}`,
			i, name, i, labels, more != "", i%60, 1000000007*i, more)
	}
	var out bytes.Buffer
	out.WriteString(`{"/":` + cgroup("/", "", 0, ""))
	for i := range pods {
		uid := fmt.Sprintf("7de5af34-e7cd-4d2c-bc00-%012d", i)
		path := "/kubepods/burstable/pod" + uid
		fmt.Fprintf(&out, `,%q:%s`, path, cgroup(path, "", i+1, ""))
		for j := range containers + 1 {
			name, more := fmt.Sprint("c", j), ""
			if j == containers {
				name, more = "POD", `,"interfaces":[{"name":"eth0","rx_bytes":37707,"rx_packets":1,"rx_errors":0,"rx_dropped":0,"tx_bytes":4,"tx_packets":1,"tx_errors":0,"tx_dropped":0}]`
			}
			labels := fmt.Sprintf(`"io.kubernetes.container.name":%q,"io.kubernetes.pod.name":"web-7d8f9c-%05d","io.kubernetes.pod.namespace":"team-%d","io.kubernetes.pod.uid":%q,`, name, i, i%7, uid)
			sub := fmt.Sprintf("%s/%064x", path, i*100+j)
			fmt.Fprintf(&out, `,%q:%s`, sub, cgroup(sub, labels, i*100+j, more))
		}
	}
	out.WriteString("}")
	return out.Bytes()
}

// made makes an answer of a form.
func made(form Form, pods, containers int) []byte {
	switch form {
	case FormContainerStats:
		return dumped(pods, containers)
	case FormCAdvisor:
		return exposed("cadvisor-0.prom", pods, containers)
	case FormResource:
		return exposed("resource-0.prom", pods, containers)
	}
	return answer("node-0", pods, containers)
}

func shapes(b *testing.B, form Form, f func(b *testing.B, data []byte)) {
	if name := map[Form]string{FormSummary: "summary-0.json", FormCAdvisor: "cadvisor-0.prom", FormResource: "resource-0.prom"}[form]; name != "" {
		b.Run("recorded", func(b *testing.B) { f(b, mustFixture(name)) })
	}
	for _, pods := range []int{30, 110} {
		b.Run(fmt.Sprintf("pods=%d/containers=2", pods), func(b *testing.B) { f(b, made(form, pods, 2)) })
	}
}

func TestMadeAnswersAreWhole(t *testing.T) {
	for form := FormSummary; form <= FormResource; form++ {
		var d Decoder
		b := &proto.Batch{Node: "node-0"}
		if err := d.Decode(form, made(form, 30, 2), b, Machine{}); err != nil || b.Dropped != 0 {
			t.Errorf("%s: %v, dropped %d", form.Path(), err, b.Dropped)
		}
		pods, containers := 0, 0
		for i, e := range b.Entities {
			_, ok := b.Values.Get(i, proto.CPUUsage.Field())
			switch {
			case ok && e.Kind == proto.KindPod:
				pods++
			case ok && e.Kind == proto.KindContainer:
				containers++
			}
		}
		if pods != 30 || containers != 60 {
			t.Errorf("%s: %d pods and %d containers are measured, want 30 and 60", form.Path(), pods, containers)
		}
	}
}

// benchmarkDecode decodes answers of one form again and again, as a scraper does.
func benchmarkDecode(b *testing.B, form Form) {
	shapes(b, form, func(b *testing.B, data []byte) {
		var d Decoder
		batch := &proto.Batch{Node: "node-0"}
		samples := 0
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if err := d.Decode(form, data, batch, Machine{}); err != nil {
				b.Fatal(err)
			}
		}
		for _, c := range batch.Values.All() {
			samples += c.Present.Count()
		}
		for _, c := range batch.DeviceValues.All() {
			samples += c.Present.Count()
		}
		b.ReportMetric(float64(samples)*float64(b.N)/b.Elapsed().Seconds(), "samples/s")
		b.ReportMetric(float64(len(data)), "B/answer")
	})
}

// BenchmarkRead is what is left out of /metrics/cadvisor while it is read, and what stays in memory.
func BenchmarkRead(b *testing.B) {
	shapes(b, FormCAdvisor, func(b *testing.B, data []byte) {
		var buf []byte
		r := bytes.NewReader(nil)
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			r.Reset(data)
			var err error
			if buf, _, err = readAnswer(buf[:0], r, requests[FormCAdvisor].wanted); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(buf)), "B/kept")
	})
}

func BenchmarkSummary(b *testing.B)        { benchmarkDecode(b, FormSummary) }
func BenchmarkCAdvisor(b *testing.B)       { benchmarkDecode(b, FormCAdvisor) }
func BenchmarkResource(b *testing.B)       { benchmarkDecode(b, FormResource) }
func BenchmarkContainerStats(b *testing.B) { benchmarkDecode(b, FormContainerStats) }

// BenchmarkSummaryByStructs is what BenchmarkSummary is compared with: the standard library into
// structs like Kubernetes' own, without filling a batch from them.
func BenchmarkSummaryByStructs(b *testing.B) {
	shapes(b, FormSummary, func(b *testing.B, data []byte) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			var s summaryStructs
			if err := json.NewDecoder(bytes.NewReader(data)).Decode(&s); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkCAdvisorByExpfmt is what BenchmarkCAdvisor is compared with: Prometheus' parser for programs that
// are no Prometheus, into its structs, without filling a batch from them.
func BenchmarkCAdvisorByExpfmt(b *testing.B) {
	shapes(b, FormCAdvisor, func(b *testing.B, data []byte) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			p := expfmt.NewTextParser(model.LegacyValidation)
			if _, err := p.TextToMetricFamilies(bytes.NewReader(data)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkScrape is the processor's part of one scrape: decode, encode, compress.
func BenchmarkScrape(b *testing.B) {
	for source, form := range map[Source]Form{SummarySource: FormSummary, CAdvisorSource: FormCAdvisor, ResourceSource: FormResource} {
		b.Run("source="+string(source), func(b *testing.B) {
			shapes(b, form, func(b *testing.B, data []byte) {
				var d Decoder
				batch := &proto.Batch{Cluster: "c", Node: "node-0"}
				enc := proto.NewEncoder()
				size := 0
				b.ReportAllocs()
				for b.Loop() {
					if err := d.Decode(form, data, batch, Machine{}); err != nil {
						b.Fatal(err)
					}
					msg, err := enc.Batch(batch)
					if err != nil {
						b.Fatal(err)
					}
					size = len(msg)
				}
				b.ReportMetric(float64(size), "B/message")
				b.ReportMetric(float64(len(data)), "B/answer")
			})
		})
	}
}

type (
	summaryStructs struct {
		Node struct {
			NodeName         string
			SystemContainers []containerStructs
			StartTime        time.Time
			usageStructs
			Network *networkStructs
			Fs      *fsStructs
			Runtime *struct{ ImageFs, ContainerFs *fsStructs }
			Rlimit  *struct {
				Time            time.Time
				MaxPID, CurProc *int64
			}
		}
		Pods []struct {
			PodRef     struct{ Name, Namespace, UID string }
			StartTime  time.Time
			Containers []containerStructs
			usageStructs
			Network *networkStructs
			Volume  []struct {
				fsStructs
				Name   string
				PVCRef *struct{ Name, Namespace string }
			}
			EphemeralStorage *fsStructs `json:"ephemeral-storage"`
			ProcessStats     *struct {
				ProcessCount *uint64 `json:"process_count"`
			} `json:"process_stats"`
		}
	}
	usageStructs struct {
		CPU *struct {
			Time                                 time.Time
			UsageNanoCores, UsageCoreNanoSeconds *uint64
			PSI                                  *psiStructs
		}
		Memory *struct {
			Time                                                                               time.Time
			AvailableBytes, UsageBytes, WorkingSetBytes, RSSBytes, PageFaults, MajorPageFaults *uint64
			PSI                                                                                *psiStructs
		}
		IO *struct {
			Time time.Time
			PSI  *psiStructs
		}
		Swap *struct {
			Time                               time.Time
			SwapAvailableBytes, SwapUsageBytes *uint64
		}
	}
	psiStructs struct {
		Full, Some struct {
			Total                uint64
			Avg10, Avg60, Avg300 float64
		}
	}
	containerStructs struct {
		Name      string
		StartTime time.Time
		usageStructs
		Rootfs, Logs *fsStructs
	}
	networkStructs struct {
		Time time.Time
		nicStructs
		Interfaces []nicStructs
	}
	nicStructs struct {
		Name                                 string
		RxBytes, RxErrors, TxBytes, TxErrors *uint64
	}
	fsStructs struct {
		Time                                                                     time.Time
		AvailableBytes, CapacityBytes, UsedBytes, InodesFree, Inodes, InodesUsed *uint64
	}
)
