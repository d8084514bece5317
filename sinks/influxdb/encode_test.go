package influxdb

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

func build(tb testing.TB, target string) *influx {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(t, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		tb.Fatal(err)
	}
	return s.(*influx)
}

func encoded(s *influx, rollups []*proto.Rollup) []string {
	s.lines.reset()
	for i, r := range rollups {
		s.enc.encode(&s.lines, r, i)
	}
	all := make([]string, s.lines.len())
	for i := range all {
		all[i] = string(s.lines.line(i))
	}
	slices.Sort(all)
	return all
}

func TestLinesAreHeapsters(t *testing.T) {
	want := sinktest.Lines(t, "testdata/oracle.lp.gz")
	got := encoded(build(t, "influxdb"), sinktest.Oracle(t, "default"))
	// The oracle leaves the cluster's set and one namespace out.
	want = slices.DeleteFunc(want, func(l string) bool {
		return strings.Contains(l, "type=cluster ") || strings.Contains(l, "type=ns ") && !slices.Contains(got, l)
	})
	if d := sinktest.Diff(want, got); d != "" {
		t.Fatalf("%d lines, want %d (- oracle, + ours):\n%s", len(got), len(want), d)
	}
}

func TestFieldsMayBeNamedAfterMetrics(t *testing.T) {
	got := encoded(build(t, "influxdb:?withfields=true&cluster_name=a%20b&disable_counter_metrics=1"), sinktest.Oracle(t, "default")[:1])
	want := []string{`cpu,cluster_name=a\ b,namespace_name=ns-00,type=ns limit=6000i 1795206365000000000`}
	if d := sinktest.Diff(want, got[:1]); d != "" {
		t.Fatal(d)
	}
	for _, l := range encoded(build(t, "influxdb:?disable_counter_metrics=1"), sinktest.Oracle(t, "default")) {
		for _, counter := range []string{"cpu/usage,", "memory/page_faults,", "memory/major_page_faults,", "network/rx,", "network/tx_errors,", "disk/io_read_bytes,"} {
			if strings.HasPrefix(l, counter) {
				t.Fatalf("counter is written: %s", l)
			}
		}
	}
}

func TestStandInsAreNoNewPoints(t *testing.T) {
	r := sinktest.Oracle(t, "default")[3] // a node
	s := build(t, "influxdb")
	before := encoded(s, []*proto.Rollup{r})
	r.Values.Set(0, proto.GroupCPU.Stale(), 1)
	gone := len(before) - len(encoded(s, []*proto.Rollup{r}))
	if gone != 3 { // cpu/usage, cpu/usage_rate, cpu/node_utilization
		t.Fatalf("%d lines less with a CPU sample that did not advance, want 3", gone)
	}
	ns := sinktest.Oracle(t, "default")[0]
	before = encoded(s, []*proto.Rollup{ns})
	ns.Values.Set(0, proto.GroupCPU.Stale(), 1)
	if after := encoded(s, []*proto.Rollup{ns}); len(after) != len(before) {
		t.Fatalf("a sum has %d lines with stand-ins in it, want %d", len(after), len(before))
	}
}

func TestAllMetricsWhenAsked(t *testing.T) {
	got := strings.Join(encoded(build(t, "influxdb:?extended=true"), sinktest.Oracle(t, "default")), "\n")
	for _, want := range []string{"resource_id=imagefs,", "network/interface_rx,", "type=workload,workload_kind=Deployment,workload_name=web ", "persistentvolumeclaim=claim,"} {
		if !strings.Contains(got, want) {
			t.Errorf("no line has %q", want)
		}
	}
}

func TestEscaping(t *testing.T) {
	check := func(in, want string) {
		t.Helper()
		if got := string(appendKey(nil, in)); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	check("app:web,tier:fe", `app:web\,tier:fe`)
	check("a b=c", `a\ b\=c`)
	check(`C:\dir`, `C:\dir`)
	check("two\nlines", `two\nlines`)
	// A backslash would take the delimiter behind it along.
	check(`end\`, `end/`)
	check(`end\\`, `end//`)
	check(`a\,b`, `a/\,b`)
	check(`a\b\\c`, `a\b\\c`)
	if got := string(appendMeasurement(nil, "custom/a=b c,d")); got != `custom/a=b\ c\,d` {
		t.Errorf("measurement %q", got)
	}
}

// FuzzTagValueHasNoLooseEnds looks at what servers would make of any tag value: one value again, whether
// they take every backslash before a delimiter for an escape (InfluxDB) or count them (VictoriaMetrics).
func FuzzTagValueHasNoLooseEnds(f *testing.F) {
	f.Add("a,b c=d\\")
	f.Add("\\\\\n")
	f.Fuzz(func(t *testing.T, s string) {
		line := append(appendKey(nil, s), ',')
		slashes := 0
		for i, c := range line {
			if c == ',' || c == ' ' || c == '=' || c == '\n' {
				escaped := slashes > 0
				if escaped != (slashes%2 == 1) {
					t.Fatalf("%q: servers disagree about byte %d", line, i)
				}
				if last := i == len(line)-1; escaped == last || c == '\n' {
					t.Fatalf("%q: the value ends at byte %d", line, i)
				}
			}
			if slashes++; c != '\\' {
				slashes = 0
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	r := sinktest.Node("node-0001", 30, 2, 1)
	for _, target := range []string{"influxdb", "influxdb:?withfields=true"} {
		b.Run(fmt.Sprintf("pods=30/containers=2/%s", target), func(b *testing.B) {
			s := build(b, target)
			b.ReportAllocs()
			samples, size := 0, 0
			for b.Loop() {
				s.lines.reset()
				s.enc.encode(&s.lines, r, 0)
				samples += s.lines.len()
				size = len(s.lines.text)
			}
			b.ReportMetric(float64(samples)/b.Elapsed().Seconds(), "samples/s")
			b.ReportMetric(float64(size)/float64(s.lines.len()), "bytes/sample")
		})
	}
}
