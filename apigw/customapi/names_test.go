package customapi

import (
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// No two metrics may have one name, and none may be taken for a function of another.
func TestNamesAreUnambiguous(t *testing.T) {
	if len(byName) != len(proto.Metrics()) {
		t.Errorf("%d names for %d metrics", len(byName), len(proto.Metrics()))
	}
	path := regexp.MustCompile(`^[a-z0-9_]+$`)
	for name, m := range byName {
		if !path.MatchString(name) {
			t.Errorf("%q may not stand in a path", name)
		}
		if base, word, span, ok := cut(name); ok && byName[base] != nil {
			t.Errorf("%s is %s of the last %s of %s, too", name, word, span, base)
		}
		if m.Shape == proto.Counter {
			continue
		}
		for word, want := range map[string]query{"avg": {do: mean}, "max": {do: largest}, "min": {do: smallest}, "p1": {do: percentile, percent: 1}, "p99": {do: percentile, percent: 99}} {
			for span, d := range map[string]time.Duration{"90s": 90 * time.Second, "5m": 5 * time.Minute, "1h": time.Hour} {
				full := name + "_" + word + "_" + span
				q, err := parse(full)
				if want.name, want.metric, want.span = full, m, d; err != nil || q != want {
					t.Errorf("%s: %+v %v, want %+v", full, q, err, want)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"cpu_usage_rate_p95_5m", "cpu_usage_rate_p05_5m", "_5m", "__5m", "cpu_usage_rate_p_5m", "cpu_usage_rate_avg_0s", "cpu_usage_rate_avg_9223372036854775807h"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		q, err := parse(name)
		if err != nil {
			return
		}
		word := map[function]string{mean: "_avg", largest: "_max", smallest: "_min", percentile: fmt.Sprint("_p", q.percent)}[q.do]
		if q.metric == nil || !strings.HasPrefix(name, nameOf(q.metric)+word) || (q.do == newest) != (q.span == 0) || q.span < 0 {
			t.Errorf("%q is understood as %+v", name, q)
		}
	})
}

func TestDeviceLabelsCanBeSelectedBy(t *testing.T) {
	for name, want := range map[string]string{
		"/": "root", "logs": "logs", "Volume:data": "Volume-data", "/dev/sda1": "dev-sda1", "8:0": "8-0", "": "", "::": "", "é": "",
		strings.Repeat("a", 62) + ":b": strings.Repeat("a", 62),
	} {
		got := selectable(name)
		if problems := validation.IsValidLabelValue(got); got != want || len(problems) > 0 {
			t.Errorf("%q is called %q, want %q; %v", name, got, want, problems)
		}
	}
}

// points are values one after the other.
func points(values ...proto.Value) (all []window.Point) {
	for i, v := range values {
		all = append(all, window.Point{Tick: proto.Tick(i), Value: v})
	}
	return all
}

func TestReduceIsExact(t *testing.T) {
	const giant = math.MaxInt64
	for _, tt := range []struct {
		name    string
		do      function
		percent int
		values  []proto.Value
		want    string // "": none
	}{
		{"the last", newest, 0, []proto.Value{proto.Int(1), proto.Int(5)}, "5"},
		{"an integer of any size", newest, 0, []proto.Value{proto.Int(giant)}, "9223372036854775807"},
		{"a fraction", newest, 0, []proto.Value{proto.Float(1.0 / 3)}, "333m"},
		{"halves go away from zero", newest, 0, []proto.Value{proto.Float(0.0625)}, "63m"},
		{"below zero, too", newest, 0, []proto.Value{proto.Float(-0.0625)}, "-63m"},
		{"too large for thousandths", newest, 0, []proto.Value{proto.Float(1e17)}, "100P"},
		{"too large at all", newest, 0, []proto.Value{proto.Float(1e300)}, ""},
		{"no number", newest, 0, []proto.Value{proto.Float(math.NaN())}, ""},
		{"infinite", mean, 0, []proto.Value{proto.Float(1), proto.Float(math.Inf(1))}, ""},
		{"mean to a thousandth", mean, 0, []proto.Value{proto.Int(1), proto.Int(1), proto.Int(0)}, "667m"},
		{"mean of what does not fit in one number", mean, 0, []proto.Value{proto.Int(giant), proto.Int(giant), proto.Int(giant - 3)}, "9223372036854775806"},
		{"largest of integers that floats cannot tell apart", largest, 0, []proto.Value{proto.Int(giant - 1), proto.Int(giant), proto.Int(giant - 2)}, "9223372036854775807"},
		{"smallest", smallest, 0, []proto.Value{proto.Float(2), proto.Float(-3), proto.Float(1)}, "-3"},
		{"percentile of one", percentile, 1, []proto.Value{proto.Int(4)}, "4"},
		{"median of an even number is one of them", percentile, 50, []proto.Value{proto.Int(40), proto.Int(10), proto.Int(30), proto.Int(20)}, "20"},
		{"nothing", mean, 0, nil, ""},
	} {
		q, ok := reduce(points(tt.values...), tt.do, tt.percent)
		if got := q.String(); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: %s (%t), want %q", tt.name, got, ok, tt.want)
		}
	}
}

// The rank is that of InfluxDB: floor(n*p/100 + 0.5), counted from one.
func TestPercentileIsTheNearestRank(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := 1; n < 200; n++ {
		for p := 1; p < 100; p++ {
			want := min(max(int(math.Floor(float64(n*p)/100+0.5))-1, 0), n-1)
			if got := rank(n, p); got != want {
				t.Fatalf("rank of p%d among %d: %d, want %d", p, n, got, want)
			}
		}
		values := r.Perm(n)
		var all []proto.Value
		for _, v := range values {
			all = append(all, proto.Int(int64(v)))
		}
		slices.Sort(values)
		if q, ok := reduce(points(all...), percentile, 95); !ok || q.Value() != int64(values[rank(n, 95)]) {
			t.Errorf("p95 of %d: %v", n, q)
		}
	}
}
