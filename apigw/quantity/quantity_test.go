package quantity

import (
	"math"
	"math/rand/v2"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
)

func TestQuantitiesAreCanonical(t *testing.T) {
	check := func(v int64) {
		t.Helper()
		if got, want := string(AppendNano(nil, v)), resource.NewScaledQuantity(v, resource.Nano).String(); got != want {
			t.Errorf("cpu of %d nanocores: %s, want %s", v, got, want)
		}
		if got, want := string(AppendMilli(nil, v)), resource.NewMilliQuantity(v, resource.DecimalSI).String(); got != want {
			t.Errorf("%d thousandths: %s, want %s", v, got, want)
		}
		if got, want := string(AppendBytes(nil, v)), resource.NewQuantity(v, resource.BinarySI).String(); got != want {
			t.Errorf("%d bytes: %s, want %s", v, got, want)
		}
	}
	for _, v := range []int64{0, 1, 999, 1000, 1023, 1024, 1025, 1e6, 1e9, 1500e6, 2e12, 1 << 20, 5 << 30, 1 << 60, 1e18, math.MaxInt64, math.MinInt64 + 1} {
		check(v)
		check(-v)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		v := r.Int64() >> r.IntN(63)
		for range r.IntN(4) { // many zeros at the end
			v -= v % 1000
		}
		check(v)
		check(v &^ (1<<r.IntN(40) - 1))
	}
}
