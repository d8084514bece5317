package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// metricSet is one line of the oracle's batch: an entity after all of Heapster's processors.
type metricSet struct {
	Key     string
	Labels  map[string]string
	Metrics map[string]float64
	Labeled []struct {
		Name   string
		Labels map[string]string
		Value  float64
	}
	ScrapeTime string `json:"scrape_time"`
	CreateTime string `json:"create_time"`
}

// number says whether a value is the one that Heapster printed with six decimals.
func number(got proto.Value, want float64) bool {
	return math.Abs(got.Float64()-want) <= 5e-7+1e-12*math.Abs(want)
}

// TestOracleBatchIsMatched replays what three kubelets answered to Heapster and finds every value and
// every label that it made of it on ROLLUPS.
//
// Wanted differences, all of them: `uptime` depends on the moment; what Heapster did not have
// (Sample.Ours) is not compared.
func TestOracleBatchIsMatched(t *testing.T) {
	o := startOracle(t)
	s := startStandalone(t, "--source="+o.source(), "--metric_resolution=5s", "--cluster=oracle")

	want := map[string]metricSet{}
	lines := bufio.NewScanner(bytes.NewReader(gunzip(t, "oracle/batch.jsonl.gz")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var set metricSet
		if err := json.Unmarshal(lines.Bytes(), &set); err != nil {
			t.Fatal(err)
		}
		want[set.Key] = set
	}
	if len(want) != 51 {
		t.Fatalf("the oracle has %d metric sets", len(want))
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dec := proto.NewDecoder()
	least := map[string]string{} // what was wrong with an entity when least was
	for d, err := range s.conn(t).Replay(ctx, bus.ReplayConfig{Stream: bus.RollupsStream("oracle")}) {
		if err != nil {
			t.Fatalf("read rollups: %v; still wrong: %v", err, values(least))
		}
		var r proto.Rollup
		if strings.Contains(d.Subject, ".epoch.") {
			continue
		}
		if err := dec.Rollup(d.Data, &r); err != nil {
			t.Fatal(err)
		}
		for row := range r.Entities {
			if r.Scope == proto.ScopeNode && (r.Entities[row].Kind == proto.KindNamespace || r.Entities[row].Kind == proto.KindWorkload) {
				continue // a node's share
			}
			key := string(proto.AppendKey(nil, &r.Table, row))
			set, ok := want[key]
			if !ok {
				continue
			}
			if wrong := compare(&r, row, set); wrong != "" {
				if best, seen := least[key]; !seen || len(wrong) < len(best) {
					least[key] = wrong
				}
				continue
			}
			delete(want, key)
			delete(least, key)
		}
		if len(want) == 0 {
			return
		}
	}
	t.Errorf("%d entities were never as Heapster had them:\n%s", len(want), strings.Join(values(least), "\n"))
}

func values(m map[string]string) (all []string) {
	for k, v := range m {
		all = append(all, k+": "+v)
	}
	sort.Strings(all)
	return all
}

// compare says what of an entity is not as Heapster had it, or "".
func compare(r *proto.Rollup, row int, want metricSet) string {
	var wrong []string
	labels := proto.DefaultLabelFormat()
	got := map[string]string{}
	for _, l := range labels.AppendEntityLabels(nil, &r.Table, row) {
		got[l.Key] = l.Value
	}
	for k, v := range want.Labels {
		if g, ok := got[k]; !ok || g != v {
			wrong = append(wrong, fmt.Sprintf("label %s is %q, want %q", k, g, v))
		}
	}
	for k := range got {
		if _, ok := want.Labels[k]; !ok {
			wrong = append(wrong, "label "+k+" is too much")
		}
	}
	plain, labelled := map[string]proto.Value{}, map[string]proto.Value{}
	for s := range r.Samples(row) {
		switch {
		case s.Ours || s.Name == "uptime":
		case s.Device == nil:
			plain[s.Name] = s.Value
		default:
			labelled[s.Name+" "+s.Device.Name] = s.Value
		}
	}
	check := func(name string, got map[string]proto.Value, want float64) {
		if v, ok := got[name]; !ok {
			wrong = append(wrong, name+" is missing")
		} else if !number(v, want) {
			wrong = append(wrong, fmt.Sprintf("%s is %s, want %v", name, v, want))
		}
		delete(got, name)
	}
	for name, v := range want.Metrics {
		if name != "uptime" {
			check(name, plain, v)
		}
	}
	for _, l := range want.Labeled {
		check(l.Name+" "+l.Labels["resource_id"], labelled, l.Value)
	}
	for name := range plain {
		wrong = append(wrong, name+" is too much")
	}
	for name := range labelled {
		wrong = append(wrong, name+" is too much")
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "; ")
}
