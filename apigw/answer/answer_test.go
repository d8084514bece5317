package answer

import (
	"encoding/json"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

func FuzzNumbersAndStringsAreThoseOfTheLibrary(f *testing.F) {
	for _, x := range []float64{0, 1, -1, 0.5, 1e20, 1e21, 1e-6, 9.9e-7, 1e-9, 1e-10, 1e300, math.MaxFloat64, math.SmallestNonzeroFloat64, math.NaN(), math.Inf(-1), math.Copysign(0, -1)} {
		f.Add(x, "a<b>&\"\\\x00\u2028\xff")
	}
	f.Fuzz(func(t *testing.T, x float64, s string) {
		want, err := json.Marshal(x)
		if err != nil {
			want = []byte("0")
		}
		if got := AppendFloat(nil, x); string(got) != string(want) {
			t.Errorf("%v is written %s, want %s", x, got, want)
		}
		if want, _ := json.Marshal(s); string(AppendString(nil, s)) != string(want) {
			t.Errorf("%q is written %s, want %s", s, AppendString(nil, s), want)
		}
	})
}

func FuzzTicksAreThoseOfTheLibrary(f *testing.F) {
	for _, ms := range []int64{0, 1, -1, 1_795_206_365_000, 1_795_206_365_001, 253_402_300_799_000, 253_402_300_800_000} {
		f.Add(ms, ms+86_400_000)
	}
	f.Fuzz(func(t *testing.T, a, b int64) {
		var day DayText
		for _, ms := range []int64{a, b, a} {
			if got, want := string(day.Append(nil, proto.Tick(ms))), time.UnixMilli(ms).UTC().Format(time.RFC3339Nano); got != want {
				t.Errorf("%d is written %s, want %s", ms, got, want)
			}
		}
	})
}

// FuzzQuery reads anything; what it accepts is bounded, and what it refuses is not repeated at length.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{"", "start=2026-11-20T20:26:05Z&end=2026-11-20T20:26:05.5%2B01:00&labels=a:b,c:d:e", "start=x", "labels=a", "labels=" + strings.Repeat("a:b,", 100), "start=" + strings.Repeat("9", 10_000), "%zz;&="} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := ParseQuery(&url.URL{RawQuery: raw})
		if err != nil && len(err.Error()) > 4000 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
		if len(q.Labels) > MaxLabels {
			t.Errorf("%d labels", len(q.Labels))
		}
		for _, l := range q.Labels {
			if l.Key == "" || l.Value == "" || strings.Contains(l.Key, ":") {
				t.Errorf("label %q", l)
			}
		}
	})
}
