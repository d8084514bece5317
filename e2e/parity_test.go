package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
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
	Metrics map[string]json.Number
	Labeled []struct {
		Name   string
		Labels map[string]string
		Value  json.Number
	}
	ScrapeTime string `json:"scrape_time"`
	CreateTime string `json:"create_time"`
}

// The wanted differences from Heapster, all of them, by the number of the recommendation that we follow (B: a
// quirk of the wire, Q: a known bug) or the reason why there is none. Everything else is compared. Each one
// must be met: a difference that is gone must go from here.
const (
	differUptime   = "uptime (B-22): Heapster reckons it at the moment of decoding and not at the batch's time; so do we, at another moment. That it is there is compared"
	differOurs     = "metrics beyond Heapster's (no number): they have names of their own, and sinks leave them out unless asked"
	differClaim    = "the claim behind a volume (no number): a label beside Heapster's resource_id, which sinks leave out unless asked"
	differWorkload = "workloads (no number): a level that Heapster did not have"
	differCluster  = "the cluster (Q-18): a sum of pods here as there; the recording leaves it out, since it also counted pods that are not in these inputs"
)

var wantedDifferences = []string{differUptime, differOurs, differClaim, differWorkload, differCluster}

// parity compares rollups with the oracle.
type parity struct {
	want  map[string]metricSet
	least map[string]string   // what was wrong with an entity when least was
	extra map[string]struct{} // entities that nobody wants
	met   map[string]bool     // wanted differences that occurred
}

// TestOracleBatchIsMatched replays what three kubelets answered to Heapster and finds on ROLLUPS every
// entity that it made of it, with every value, every label and every time, and nothing else.
func TestOracleBatchIsMatched(t *testing.T) {
	o := startOracle(t)
	s := startStandalone(t, "--source="+o.source(), "--metric_resolution=5s", "--cluster=oracle")

	p := &parity{want: map[string]metricSet{}, least: map[string]string{}, extra: map[string]struct{}{}, met: map[string]bool{}}
	kinds := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(gunzip(t, "oracle/batch.jsonl.gz")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var set metricSet
		if err := json.Unmarshal(lines.Bytes(), &set); err != nil {
			t.Fatal(err)
		}
		p.want[set.Key] = set
		kinds[set.Labels[proto.LabelType]]++
	}
	if got := fmt.Sprint(kinds); lines.Err() != nil || got != "map[node:3 ns:3 pod:12 pod_container:24 sys_container:9]" {
		t.Fatalf("the oracle has %s (%v)", got, lines.Err())
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	dec := proto.NewDecoder()
	for d, err := range s.conn(t).Replay(ctx, bus.ReplayConfig{Stream: bus.RollupsStream("oracle"), Subjects: bus.RollupFilters("oracle")}) {
		if err != nil {
			t.Fatalf("read rollups: %v", err)
		}
		var r proto.Rollup
		if err := dec.Rollup(d.Data, &r); err != nil {
			t.Fatal(err)
		}
		p.take(&r)
		if len(p.want) == 0 && r.Scope == proto.ScopeTotals { // of everything once, the cluster included
			break
		}
	}
	for _, what := range p.wrong() {
		t.Errorf("never as Heapster had it: %s", what)
	}
	for key := range p.extra {
		t.Errorf("%s is too much", key)
	}
	for _, d := range wantedDifferences {
		if !p.met[d] {
			t.Errorf("a wanted difference does not occur any more: %s", d)
		}
	}
}

// wrong says what is missing or differs.
func (p *parity) wrong() (all []string) {
	for _, key := range slices.Sorted(maps.Keys(p.want)) {
		what, seen := p.least[key]
		if !seen {
			what = "is not there at all"
		}
		all = append(all, key+": "+what)
	}
	return all
}

// take ticks off what a rollup has as Heapster had it.
func (p *parity) take(r *proto.Rollup) {
	for row := range r.Entities {
		kind := r.Entities[row].Kind
		if r.Scope == proto.ScopeNode && kind == proto.KindNamespace {
			continue // a node's share; the whole comes in a rollup of its own
		}
		key := string(proto.AppendKey(nil, &r.Table, row))
		set, ok := p.want[key]
		if !ok {
			switch _, done := p.least[key]; {
			case done:
			case kind == proto.KindWorkload:
				p.met[differWorkload] = true
			case kind == proto.KindCluster:
				p.met[differCluster] = true
			default:
				p.extra[key] = struct{}{}
			}
			continue
		}
		wrong := p.compare(r, row, set)
		if wrong == "" {
			delete(p.want, key)
			p.least[key] = ""
		} else if best, seen := p.least[key]; !seen || len(wrong) < len(best) {
			p.least[key] = wrong
		}
	}
}

// compare says what of an entity is not as Heapster had it, or "".
func (p *parity) compare(r *proto.Rollup, row int, want metricSet) string {
	e := &r.Entities[row]
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	labels := proto.DefaultLabelFormat()
	got := map[string]string{}
	for _, l := range labels.AppendEntityLabels(nil, &r.Table, row) {
		got[l.Key] = l.Value
	}
	for k, v := range want.Labels {
		if g, ok := got[k]; !ok || g != v {
			complain("label %s is %q, want %q", k, g, v)
		}
		delete(got, k)
	}
	for k := range got {
		complain("label %s is too much", k)
	}

	type value struct {
		text string
		many bool // the oracle has it twice
	}
	recorded := map[string]value{}
	put := func(name string, v json.Number) {
		_, many := recorded[name]
		recorded[name] = value{v.String(), many}
	}
	for name, v := range want.Metrics {
		put(name, v)
	}
	for _, l := range want.Labeled {
		put(l.Name+" "+fmt.Sprint(l.Labels), l.Value)
	}
	for s := range r.Samples(row) {
		name := s.Name
		if s.Device != nil {
			own := map[string]string{}
			for _, l := range s.Device.AppendLabels(nil) {
				if l.Key == proto.LabelClaim {
					p.met[differClaim] = true
					continue
				}
				own[l.Key] = l.Value
			}
			name += " " + fmt.Sprint(own)
		}
		v, ok := recorded[name]
		delete(recorded, name)
		switch {
		case ok && s.Name == "uptime":
			p.met[differUptime] = true
		case !ok && s.Ours:
			p.met[differOurs] = true
		case !ok:
			complain("%s is too much", name)
		case v.many:
			complain("%s is recorded twice", name)
		case !equal(s.Value, v.text):
			complain("%s is %s, want %s", name, s.Value, v.text)
		}
	}
	for name := range recorded {
		complain("%s is missing", name)
	}

	if e.Kind != proto.KindNamespace { // sums have no times
		scraped, ok := r.Values.Get(row, proto.GroupCPU.Time())
		sameTime(complain, "sample time", scraped, ok, want.ScrapeTime)
		created, ok := r.Values.Get(row, proto.FieldBirth) // a pod's, by the API server
		if !ok {
			created, ok = r.Values.Get(row, proto.FieldStart)
		}
		sameTime(complain, "creation time", created, ok, want.CreateTime)
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "; ")
}

// equal says whether a value is the one that Heapster printed: an integer plainly, a float with up to six
// decimals.
func equal(got proto.Value, want string) bool {
	if !strings.Contains(want, ".") {
		return !got.IsFloat() && got.String() == want
	}
	f, err := strconv.ParseFloat(want, 64)
	return err == nil && got.IsFloat() && math.Abs(got.Float64()-f) <= 5e-7+1e-12*math.Abs(f)
}

func sameTime(complain func(string, ...any), what string, got int64, ok bool, want string) {
	at, err := time.Parse("2006-01-02 15:04:05 -0700 MST", want)
	switch {
	case err != nil:
		complain("%s: %v", what, err)
	case !ok || got != at.UnixNano():
		complain("%s is %s (%t), want %s", what, time.Unix(0, got).UTC(), ok, want)
	}
}
