package kubelet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

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

func shapes(b *testing.B, f func(b *testing.B, data []byte)) {
	b.Run("recorded", func(b *testing.B) { f(b, mustFixture("summary-0.json")) })
	for _, pods := range []int{30, 110} {
		b.Run(fmt.Sprintf("pods=%d/containers=2", pods), func(b *testing.B) { f(b, answer("node-0", pods, 2)) })
	}
}

func BenchmarkSummary(b *testing.B) {
	shapes(b, func(b *testing.B, data []byte) {
		var d Decoder
		batch := &proto.Batch{Node: "node-0"}
		samples := 0
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		for b.Loop() {
			if err := d.Summary(data, batch); err != nil {
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
	})
}

// BenchmarkSummaryByStructs is what BenchmarkSummary is compared with: the standard library into
// structs like Kubernetes' own, without filling a batch from them.
func BenchmarkSummaryByStructs(b *testing.B) {
	shapes(b, func(b *testing.B, data []byte) {
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

// BenchmarkScrape is the processor's part of one scrape: decode, encode, compress.
func BenchmarkScrape(b *testing.B) {
	shapes(b, func(b *testing.B, data []byte) {
		var d Decoder
		batch := &proto.Batch{Cluster: "c", Node: "node-0"}
		enc := proto.NewEncoder()
		size := 0
		b.ReportAllocs()
		for b.Loop() {
			if err := d.Summary(data, batch); err != nil {
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
