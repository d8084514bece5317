package proto

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestRatesFollowHeapstersFormulas(t *testing.T) {
	var tab Table
	row := tab.AddEntity(Entity{Kind: KindContainer, Parent: -1})
	v := &tab.Values
	// the worked example of the specification: processors §13
	v.Set(row, CPUUsage.Field(), 1_605_000_000)
	v.Set(row, CPUUsage.Delta(), 605_000_000)
	v.Set(row, GroupCPU.Span(), 60_500_000_000)
	v.Set(row, MemoryPageFaults.Delta(), 121)
	v.Set(row, GroupMemory.Span(), 60_500_000_000)
	check := func(id MetricID, want Value, there bool) {
		t.Helper()
		if got, ok := tab.Value(row, id); ok != there || got != want {
			t.Errorf("%s is %v (%v), want %v (%v)", MetricByID(id).Name, got, ok, want, there)
		}
	}
	check(CPUUsage, Int(1_605_000_000), true)
	check(CPUUsageRate, Int(10), true)
	check(CPUUsageNanocores, Int(10_000_000), true)
	check(MemoryPageFaultsRate, Float(2), true)
	// missing is missing: never zero
	check(MemoryMajorRate, Value{}, false)
	check(CPUNodeUtilization, Value{}, false)
	check(Uptime, Value{}, false)
	// a stored value wins over the formula: sums have no delta of their own
	v.Set(row, CPUUsageRate.Field(), 42)
	check(CPUUsageRate, Int(42), true)
	v.Set(row, MemoryPageFaultsRate.Field(), 1500)
	check(MemoryPageFaultsRate, Float(1.5), true)
	// no span, no growth, no rate
	v.Set(row, MemoryMajorFaults.Delta(), -1)
	check(MemoryMajorRate, Value{}, false)
	v.Set(row, GroupMemory.Span(), 0)
	v.Clear(row, MemoryPageFaultsRate.Field())
	check(MemoryPageFaultsRate, Value{}, false)
}

func TestRatiosNeedBothOperands(t *testing.T) {
	var tab Table
	row := tab.AddEntity(Entity{Kind: KindNode, Parent: -1})
	tab.Values.Set(row, CPURequest.Field(), 500)
	if _, ok := tab.Value(row, CPUNodeReservation); ok {
		t.Error("a reservation without allocatable")
	}
	tab.Values.Set(row, CPUNodeAllocatable.Field(), 0)
	if _, ok := tab.Value(row, CPUNodeReservation); ok {
		t.Error("a reservation of nothing")
	}
	tab.Values.Set(row, CPUNodeAllocatable.Field(), 4000)
	if v, ok := tab.Value(row, CPUNodeReservation); !ok || v != Float(0.125) {
		t.Errorf("reservation is %v, %v", v, ok)
	}
}

func TestMulDivIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		a, b, c := int64(1000), r.Int64()>>r.IntN(63), r.Int64()>>r.IntN(62)+1
		if r.IntN(2) == 0 {
			a = 1e9
		}
		want := new(big.Int).Mul(big.NewInt(a), big.NewInt(b))
		want.Quo(want, big.NewInt(c))
		if !want.IsInt64() {
			want.SetInt64(math.MaxInt64)
		}
		if got := mulDiv(a, b, c); got != want.Int64() {
			t.Fatalf("%d x %d / %d = %d, want %s", a, b, c, got, want)
		}
	}
}

func TestValuesConvertWithoutSurprise(t *testing.T) {
	for _, c := range []struct {
		v    Value
		i    int64
		f    float64
		text string
	}{
		{Int(-5), -5, -5, "-5"},
		{Int(math.MaxInt64), math.MaxInt64, math.MaxInt64, "9223372036854775807"},
		{Float(2.5), 2, 2.5, "2.5"},
		{Float(1e21), math.MaxInt64, 1e21, "1000000000000000000000"},
		{Float(math.NaN()), 0, math.NaN(), "NaN"},
		{Float(math.Inf(-1)), math.MinInt64, math.Inf(-1), "-Inf"},
		{Float(1e-7), 0, 1e-7, "0.0000001"},
	} {
		if c.v.Int64() != c.i || c.v.String() != c.text || (c.v.Float64() != c.f && c.f == c.f) {
			t.Errorf("%v: %d, %v, %s", c, c.v.Int64(), c.v.Float64(), c.v)
		}
	}
}

func TestSamplesComeInCatalogueOrderWithDevicesAndExtras(t *testing.T) {
	b := testBatch(1, 1, 1)
	row := len(b.Entities) - 1 // the container
	b.Values.Set(row, GroupMemory.Stale(), 1)
	var names []string
	for s := range b.Samples(row) {
		name := s.Name
		if s.Device != nil {
			name += "{" + s.Device.Name + "}"
		}
		if s.StandsIn {
			name += " stands in"
		}
		names = append(names, name)
	}
	want := []string{"uptime", "cpu/usage", "memory/usage stands in", "memory/rss stands in", "memory/working_set stands in", "memory/page_faults stands in", "memory/major_page_faults stands in", "cpu/request", "memory/request"}
	if got := names[:len(want)]; !slices.Equal(got, want) {
		t.Errorf("un-labelled samples: %q", got)
	}
	for _, name := range []string{"filesystem/usage{/}", "filesystem/inodes_used{logs}", "custom/queue_length"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is missing in %q", name, names)
		}
	}
	if names[len(names)-1] != "custom/queue_length" {
		t.Errorf("the last is %q", names[len(names)-1])
	}
}
