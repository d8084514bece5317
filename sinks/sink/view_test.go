package sink_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// messages is a log that keeps what was said.
type messages struct {
	slog.Handler
	all []string
}

func (m *messages) Enabled(context.Context, slog.Level) bool { return true }

func (m *messages) Handle(_ context.Context, r slog.Record) error {
	m.all = append(m.all, r.Message)
	return nil
}

// view is the view of a sink with these options, and the warnings about them.
func view(tb testing.TB, options string) (*sink.View, []string, error) {
	tb.Helper()
	t, err := sink.ParseTarget("log:?" + options)
	if err != nil {
		tb.Fatal(err)
	}
	o := t.Options()
	c := o.Common(sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat()})
	var warnings messages
	_, err = o.Made(nil, slog.New(&warnings))
	return &c.View, warnings.all, err
}

// rollup is a small node: itself, the system containers and one pod of one container in each of two
// namespaces, with a metric of an application.
func rollup() *proto.Rollup {
	r := sinktest.Node("node-1", 2, 1, 0)
	pods := 0
	for row := range r.Entities {
		if r.Entities[row].Kind == proto.KindPod {
			pods++
			if pods == 2 {
				r.Entities[row].Labels = []proto.Label{{Key: "app", Value: "db"}}
			}
		}
		if r.Entities[row].Kind == proto.KindContainer {
			r.Extras = append(r.Extras, proto.Extra{Entity: int32(row), Name: "custom/queue_length", Value: proto.Float(1)})
		}
	}
	return r
}

// written is what a view lets out, as type/namespace/name metric device.
func written(v *sink.View, r *proto.Rollup) (all []string) {
	for e := range v.Entities(r) {
		said := map[string]string{}
		for _, l := range e.Labels {
			said[l.Key] = l.Value
		}
		for s := range e.Samples {
			line := fmt.Sprintf("%s %s %s %s", said["type"], said["namespace_name"], said["container_name"], s.Name)
			if s.Device != nil {
				line += " " + s.Device.Name
			}
			all = append(all, line)
		}
	}
	return all
}

func TestFilters(t *testing.T) {
	all, _, err := view(t, "")
	if err != nil {
		t.Fatal(err)
	}
	everything := written(all, rollup())
	// what is a plain statement about a line that written makes.
	check := func(options string, keeps func(f []string) bool) {
		t.Helper()
		v, warnings, err := view(t, options)
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", options, err, warnings)
			return
		}
		var want []string
		for _, line := range everything {
			f := append(strings.Split(line, " "), "") // a fifth where there is no device
			if keeps(f) {
				want = append(want, line)
			}
		}
		got := written(v, rollup())
		if len(want) == 0 || len(want) == len(everything) {
			t.Errorf("%s keeps %d of %d: the test says nothing", options, len(want), len(everything))
		}
		slices.Sort(want)
		slices.Sort(got)
		if d := sinktest.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", options, d)
		}
	}
	check("filter=metric:cpu/*", func(f []string) bool { return strings.HasPrefix(f[3], "cpu/") })
	check("filter=metric:cpu/*,memory/rss", func(f []string) bool { return strings.HasPrefix(f[3], "cpu/") || f[3] == "memory/rss" })
	check("filter=metric:cpu/*&filter=metric:memory/rss", func(f []string) bool { return strings.HasPrefix(f[3], "cpu/") || f[3] == "memory/rss" })
	check("filter=-metric:*_rate", func(f []string) bool { return !strings.HasSuffix(f[3], "_rate") })
	check("filter=metric:memory/*&filter=-metric:memory/r?s", func(f []string) bool { return strings.HasPrefix(f[3], "memory/") && f[3] != "memory/rss" })
	check("filter=metric:custom/*", func(f []string) bool { return strings.HasPrefix(f[3], "custom/") })
	check("filter=-metric:custom/queue_*", func(f []string) bool { return f[3] != "custom/queue_length" })
	check("filter=type:pod,node", func(f []string) bool { return f[0] == "pod" || f[0] == "node" })
	check("filter=-type:*container", func(f []string) bool { return f[0] == "pod" || f[0] == "node" })
	check("filter=namespace:team-00", func(f []string) bool { return f[1] == "team-00" })
	check("filter=namespace:team-00,", func(f []string) bool { return f[1] == "team-00" || f[1] == "" })
	check("filter=-namespace:*", func(f []string) bool { return f[1] == "" })
	check("filter=-namespace:*-01&filter=type:pod_container", func(f []string) bool { return f[1] == "team-00" && f[0] == "pod_container" })
	check("filter=label.app:db", func(f []string) bool { return f[1] == "team-01" }) // a container has its pod's
	check("filter=-label.app:d*", func(f []string) bool { return f[1] != "team-01" })
	check("filter=label.container_name:kubelet", func(f []string) bool { return f[2] == "kubelet" })
	check("filter=label.nodename:node-*&filter=-label.pod_name:*", func(f []string) bool { return f[1] == "" })
	check("filter=-label.resource_id:Volume:*", func(f []string) bool { return !strings.HasPrefix(f[4], "Volume:") })
	check("filter=label.resource_id:/", func(f []string) bool { return f[4] == "/" })
}

func TestFiltersAndRenamesThatAreWrong(t *testing.T) {
	check := func(options, want string) {
		t.Helper()
		_, warnings, err := view(t, options)
		if err == nil {
			err = fmt.Errorf("%v", warnings)
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", options, err, want)
		}
	}
	check("filter=cpu", "want DIM:GLOB,… or -DIM:GLOB,…")
	check("filter=level:pod", `did you mean "type"?`)
	check("filter=namespce:pod", `did you mean "namespace"?`)
	check("filter=label.:x", "want metric, type, namespace or label.KEY")
	check("filter=type:container", `there is no type "container"`)
	check("filter=type:nodes", `did you mean "node"?`)
	check("filter=metric:cpu/usage_rates", `no metric known now is called "cpu/usage_rates" (did you mean "cpu/usage_rate"?)`)
	check("filter=metric:"+strings.Repeat("a,", 300), "at most 256")
	check("rename=x", "want OLD:NEW")
	check("rename=a*b*:c", "at most one *")
	check("rename=cpu/usage:x*", "in the new one only if the old one has it")
	check("rename=cpu/usage:cpu/load", `makes "cpu/load" of both`)
	check("rename=memory/*:memory", "of both")
	check("concurrency=65", "at most 64")
	check("filters=x", "did you mean `filter`?")
}

func TestRename(t *testing.T) {
	v, warnings, err := view(t, "rename=cpu/usage_rate:cpu/millicores&rename=cpu/*:k8s.*&rename=filesystem/*:fs/*&rename=custom/queue_length:app/queue")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	plain, _, _ := view(t, "")
	before, after := written(plain, rollup()), written(v, rollup())
	if len(before) != len(after) {
		t.Fatalf("%d samples became %d", len(before), len(after))
	}
	for i, line := range before {
		f := strings.Split(line, " ")
		switch name := f[3]; {
		case name == "cpu/usage_rate":
			f[3] = "cpu/millicores"
		case strings.HasPrefix(name, "cpu/"):
			f[3] = "k8s." + strings.TrimPrefix(name, "cpu/")
		case strings.HasPrefix(name, "filesystem/"):
			f[3] = "fs/" + strings.TrimPrefix(name, "filesystem/")
		case name == "custom/queue_length":
			f[3] = "app/queue"
		}
		if want := strings.Join(f, " "); after[i] != want {
			t.Errorf("%s becomes %s, want %s", line, after[i], want)
		}
	}
}

// BenchmarkView compares what filters cost and save, against everything: nodes with 30 pods of 2 containers.
func BenchmarkView(b *testing.B) {
	for _, options := range []string{
		"", "filter=metric:*", "filter=metric:cpu/*", "filter=-namespace:kube-*", "filter=label.app:web", "filter=-label.resource_id:Volume:*", "rename=*:k8s/*",
	} {
		b.Run("options="+options, func(b *testing.B) {
			v, _, err := view(b, options)
			if err != nil {
				b.Fatal(err)
			}
			r := sinktest.Node("node-1", 30, 2, 1)
			samples, rounds := 0, 0
			b.ReportAllocs()
			for b.Loop() {
				rounds++
				for e := range v.Entities(r) {
					for range e.Samples {
						samples++
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
			b.ReportMetric(float64(samples)/float64(rounds), "samples/rollup")
		})
	}
}
