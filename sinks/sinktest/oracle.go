package sinktest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

//go:embed testdata/oracle-batch.jsonl.gz
var oracleBatch []byte

// OracleTick is the tick of the oracle's batch.
var OracleTick = proto.TickAt(time.Date(2026, 11, 20, 20, 26, 5, 0, time.UTC), 5*time.Second)

// set is a line of the oracle's batch: one entity as Heapster had it after all processing.
type set struct {
	Key     string                 `json:"key"`
	Labels  map[string]string      `json:"labels"`
	Metrics map[string]json.Number `json:"metrics"`
	Labeled []struct {
		Labels map[string]string `json:"labels"`
		Name   string            `json:"name"`
		Value  json.Number       `json:"value"`
	} `json:"labeled"`
	Scrape string `json:"scrape_time"`
	Create string `json:"create_time"`
}

// Oracle is the oracle's batch as rollups: three of nodes, and those of namespaces. Node rollups carry
// what the aggregator puts there beside: shares of namespaces and workloads, samples of an image file
// system and of an interface, which no sink may write unless asked.
func Oracle(tb testing.TB, cluster string) []*proto.Rollup {
	tb.Helper()
	sets := map[string]set{}
	zr, err := gzip.NewReader(bytes.NewReader(oracleBatch))
	if err != nil {
		tb.Fatal(err)
	}
	for sc := bufio.NewScanner(zr); sc.Scan(); {
		var s set
		if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
			tb.Fatal(err)
		}
		sets[s.Key] = s
	}
	keys := make([]string, 0, len(sets))
	for k := range sets {
		keys = append(keys, k)
	}
	slices.Sort(keys) // parents before children
	var all []*proto.Rollup
	namespaces := map[string]string{}
	for _, k := range keys {
		s := sets[k]
		switch s.Labels["type"] {
		case "ns":
			r := &proto.Rollup{Scope: proto.ScopeNamespace, Cluster: cluster, Name: s.Labels["namespace_name"], Tick: OracleTick, Resolution: 5 * time.Second}
			row := r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: r.Name, UID: s.Labels["namespace_id"]})
			fill(tb, r, row, s)
			work := r.AddEntity(proto.Entity{Kind: proto.KindWorkload, Parent: -1, Name: "web", Namespace: r.Name, Owner: proto.Owner{Kind: "Deployment", Name: "web"}})
			r.Values.Set(work, proto.MemoryUsage.Field(), 1)
			r.Values.Set(row, proto.MemoryWorkingSet.Field(), 1)
			namespaces[r.Name] = s.Labels["namespace_id"]
			all = append(all, r)
		case "pod":
			namespaces[s.Labels["namespace_name"]] = s.Labels["namespace_id"]
		}
	}
	for _, k := range keys {
		if sets[k].Labels["type"] == "node" {
			all = append(all, oracleNode(tb, cluster, sets[k], sets, keys, namespaces))
		}
	}
	return all
}

func oracleNode(tb testing.TB, cluster string, node set, sets map[string]set, keys []string, namespaces map[string]string) *proto.Rollup {
	name := node.Labels["nodename"]
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: cluster, Name: name, Tick: OracleTick, Resolution: 5 * time.Second, Source: "kubernetes.summary_api"}
	r.Scraped = parseTime(tb, node.Scrape).UnixNano()
	row := r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: name, Hostname: node.Labels["hostname"], HostID: node.Labels["host_id"], Labels: split(node.Labels["labels"])})
	fill(tb, r, row, node)
	for _, extra := range []proto.Device{{Kind: proto.DeviceFilesystem, Name: "imagefs"}, {Kind: proto.DeviceInterface, Name: "eth0"}} {
		extra.Entity = int32(row)
		d := r.AddDevice(extra)
		r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 1)
		r.DeviceValues.Set(d, proto.InterfaceRx.Field(), 1)
	}
	pods := map[string]int{}
	for _, kind := range []string{"sys_container", "pod", "pod_container"} {
		for _, k := range keys {
			s := sets[k]
			if s.Labels["type"] != kind || s.Labels["nodename"] != name {
				continue
			}
			e := proto.Entity{Name: s.Labels["container_name"], Image: s.Labels["container_base_image"]}
			switch kind {
			case "sys_container":
				e.Kind = proto.KindSystemContainer
			case "pod":
				e = proto.Entity{Kind: proto.KindPod, Name: s.Labels["pod_name"], Namespace: s.Labels["namespace_name"], UID: s.Labels["pod_id"], Labels: split(s.Labels["labels"])}
			case "pod_container":
				e.Kind = proto.KindContainer
				e.Parent = int32(pods[s.Labels["namespace_name"]+"/"+s.Labels["pod_name"]])
			}
			at := r.AddEntity(e)
			if kind == "pod" {
				pods[e.Namespace+"/"+e.Name] = at
			}
			fill(tb, r, at, s)
		}
	}
	for _, ns := range slices.Sorted(mapKeys(namespaces)) {
		share := r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: ns, UID: namespaces[ns]})
		r.Values.Set(share, proto.MemoryUsage.Field(), 1)
	}
	share := r.AddEntity(proto.Entity{Kind: proto.KindWorkload, Parent: -1, Name: "web", Namespace: "ns-00", Owner: proto.Owner{Kind: "Deployment", Name: "web"}})
	r.Values.Set(share, proto.MemoryUsage.Field(), 1)
	sortDevices(r)
	return r
}

// sortDevices brings devices into the order of their entities, as every table has them.
func sortDevices(r *proto.Rollup) {
	order := make([]int, len(r.Devices))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(r.Devices[a].Entity - r.Devices[b].Entity) })
	var t proto.Table
	for _, from := range order {
		to := t.AddDevice(r.Devices[from])
		for _, c := range r.DeviceValues.All() {
			if v, ok := r.DeviceValues.Get(from, c.Field); ok {
				t.DeviceValues.Set(to, c.Field, v)
			}
		}
	}
	r.Devices, r.DeviceValues = t.Devices, t.DeviceValues
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// fill sets the stored columns of what the oracle says of one entity.
func fill(tb testing.TB, r *proto.Rollup, row int, s set) {
	tb.Helper()
	store := func(m *proto.Metric, v json.Number) int64 {
		if !m.Float {
			n, err := v.Int64()
			if err != nil {
				tb.Fatalf("%s: %v", m.Name, err)
			}
			return n
		}
		f, err := v.Float64()
		if err != nil {
			tb.Fatalf("%s: %v", m.Name, err)
		}
		return int64(math.Round(f * float64(max(m.Scale, 1))))
	}
	for name, v := range s.Metrics {
		m := proto.MetricByName(name)
		if m == nil {
			tb.Fatalf("metric %q is not in the catalogue", name)
		}
		switch m.Formula {
		case proto.FormulaRatio:
		case proto.FormulaUptime:
			r.Values.Set(row, proto.FieldStart, r.Scraped-store(m, v)*1e6)
		default:
			r.Values.Set(row, m.ID.Field(), store(m, v))
		}
	}
	if s.Labels["type"] != "ns" {
		r.Values.Set(row, proto.GroupCPU.Time(), parseTime(tb, s.Scrape).UnixNano())
	}
	device, last := 0, ""
	for _, l := range s.Labeled {
		if id := l.Labels["resource_id"]; id != last {
			device, last = r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: id}), id
			if strings.HasPrefix(id, "Volume:data") {
				r.Devices[device].Claim = "claim"
			}
		}
		m := proto.MetricByName(l.Name)
		r.DeviceValues.Set(device, m.ID.Field(), store(m, l.Value))
	}
}

func parseTime(tb testing.TB, s string) time.Time {
	tb.Helper()
	at, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", s)
	if err != nil {
		tb.Fatal(err)
	}
	return at
}

// split undoes how Heapster joined Kubernetes labels.
func split(joined string) (labels []proto.Label) {
	for pair := range strings.SplitSeq(joined, ",") {
		if k, v, ok := strings.Cut(pair, ":"); ok {
			labels = append(labels, proto.Label{Key: k, Value: v})
		}
	}
	return labels
}

// Lines are the lines of a compressed text, sorted.
func Lines(tb testing.TB, file string) []string {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		tb.Fatal(err)
	}
	text, err := io.ReadAll(zr)
	if err != nil {
		tb.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	slices.Sort(lines)
	return lines
}

// Diff says in which lines two sorted lists differ: the first few of each side; "" where they do not.
func Diff(want, got []string) string {
	var b strings.Builder
	n := 0
	say := func(sign, line string) {
		if n++; n <= 10 {
			fmt.Fprintf(&b, "%s %s\n", sign, line)
		}
	}
	for i, j := 0, 0; i < len(want) || j < len(got); {
		switch {
		case j == len(got) || i < len(want) && want[i] < got[j]:
			say("-", want[i])
			i++
		case i == len(want) || got[j] < want[i]:
			say("+", got[j])
			j++
		default:
			i, j = i+1, j+1
		}
	}
	if n > 10 {
		fmt.Fprintf(&b, "and %d more\n", n-10)
	}
	return b.String()
}
