package proto

import (
	"iter"
	"math"
	"math/bits"
	"sort"
	"strconv"
)

// Value is the number of one sample: an integer or a float, as the metric's type says.
type Value struct {
	bits  uint64
	float bool
}

// Int returns an integer value.
func Int(v int64) Value { return Value{bits: uint64(v)} } //nolint:gosec // two's complement is meant

// Float returns a float value.
func Float(v float64) Value { return Value{bits: math.Float64bits(v), float: true} }

// IsFloat reports whether the value is a float.
func (v Value) IsFloat() bool { return v.float }

// Int64 returns the value as an integer; a float is truncated toward zero, NaN is 0, and what does
// not fit is clamped.
func (v Value) Int64() int64 {
	if !v.float {
		return int64(v.bits) //nolint:gosec // two's complement is meant
	}
	switch f := math.Float64frombits(v.bits); {
	case f != f:
		return 0
	case f >= math.MaxInt64:
		return math.MaxInt64
	case f <= math.MinInt64:
		return math.MinInt64
	default:
		return int64(f)
	}
}

// Float64 returns the value as a float.
func (v Value) Float64() float64 {
	if v.float {
		return math.Float64frombits(v.bits)
	}
	return float64(int64(v.bits)) //nolint:gosec // two's complement is meant
}

// String formats an integer plainly and a float in its shortest decimal form without exponent.
func (v Value) String() string { return string(v.Append(nil)) }

// Append appends what String returns.
func (v Value) Append(dst []byte) []byte {
	if v.float {
		return strconv.AppendFloat(dst, v.Float64(), 'f', -1, 64)
	}
	return strconv.AppendInt(dst, v.Int64(), 10)
}

// Value returns the value of a metric for one entity: the stored one if there is one, else what
// the metric's formula makes of stored ones. A value that stands in for a new sample is returned
// too: see StandsIn.
func (t *Table) Value(row int, id MetricID) (Value, bool) {
	m := MetricByID(id)
	if m == nil || m.Device != 0 {
		return Value{}, false
	}
	if m.Formula == FormulaUptime {
		start, ok := t.Values.Get(row, FieldStart)
		if !ok || t.Scraped < start {
			return Value{}, false
		}
		return Int((t.Scraped - start) / 1e6), true
	}
	if m.Formula == FormulaRatio {
		return t.ratio(row, m)
	}
	return t.Values.value(row, m)
}

// DeviceValue is Value for a row of Devices.
func (t *Table) DeviceValue(device int, id MetricID) (Value, bool) {
	m := MetricByID(id)
	if m == nil || m.Device != t.Devices[device].Kind {
		return Value{}, false
	}
	return t.DeviceValues.value(device, m)
}

// StandsIn reports whether the row's values of a group are older ones that stand in for a sample
// that did not advance: they count in sums and for the Metrics API, and are no new point in the
// series of the entity itself.
func (t *Table) StandsIn(row int, g Group) bool {
	_, stale := t.Values.Get(row, g.Stale())
	return stale
}

// DeviceStandsIn is StandsIn for a row of Devices.
func (t *Table) DeviceStandsIn(device int) bool {
	_, stale := t.DeviceValues.Get(device, GroupDevice.Stale())
	return stale
}

func (t *Table) ratio(row int, m *Metric) (Value, bool) {
	by, ok := t.Values.Get(row, m.By.Field())
	if !ok || by <= 0 {
		return Value{}, false
	}
	of, ok := t.Value(row, m.Of)
	if !ok {
		return Value{}, false
	}
	return Float(of.Float64() / float64(by)), true
}

func (c *Columns) value(row int, m *Metric) (Value, bool) {
	if v, ok := c.Get(row, m.ID.Field()); ok {
		return m.Unscale(v), true
	}
	if m.Formula == FormulaNone {
		return Value{}, false
	}
	delta, ok := c.Get(row, m.Of.Delta())
	if !ok {
		return Value{}, false
	}
	span, ok := c.Get(row, m.Group.Span())
	if !ok || span <= 0 || delta < 0 {
		return Value{}, false
	}
	return m.Rate(delta, span), true
}

// Unscale returns the value that a stored integer of this metric stands for.
func (m *Metric) Unscale(stored int64) Value {
	if !m.Float {
		return Int(stored)
	}
	if m.Scale > 1 {
		return Float(float64(stored) / float64(m.Scale))
	}
	return Float(float64(stored))
}

// Rate applies the metric's formula to the growth of a counter over a span in nanoseconds, which
// must be positive (spec: processors §3; integer arithmetic truncates toward zero, as there).
func (m *Metric) Rate(delta, span int64) Value {
	switch m.Formula {
	case FormulaMilli:
		return Int(mulDiv(1000, delta, span))
	case FormulaNano:
		return Int(mulDiv(1e9, delta, span))
	case FormulaStalled:
		return Float(float64(delta) / float64(span))
	}
	return Float(1e9 * float64(delta) / float64(span))
}

// StoredRate is Rate as the integer in which sums of the metric are carried.
func (m *Metric) StoredRate(delta, span int64) int64 {
	v := m.Rate(delta, span)
	if !v.IsFloat() {
		return v.Int64()
	}
	return Float(math.Round(v.Float64() * float64(max(m.Scale, 1)))).Int64()
}

// mulDiv returns a*b/c exactly, clamped to int64; a, b >= 0, c > 0.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b)) //nolint:gosec // not negative
	if hi >= uint64(c) {                       //nolint:gosec // positive
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, uint64(c)) //nolint:gosec // positive
	return int64(min(q, math.MaxInt64))   //nolint:gosec // clamped
}

// Sample is one value of a row as a reader meets it.
type Sample struct {
	Metric   *Metric // nil for a value outside the catalogue
	Name     string  // of the metric
	Value    Value
	Counter  bool    // the value is cumulative
	Device   *Device // nil for an un-labelled metric
	Row      int     // of Devices, where Device is not nil
	StandsIn bool    // see Table.StandsIn
	Ours     bool    // Heapster had no such value: neither metric nor device is Heapster's
}

// Samples yields every value of one entity: the catalogue's metrics in its order, then those of its
// devices, then the extras.
func (t *Table) Samples(row int) iter.Seq[Sample] {
	return func(yield func(Sample) bool) {
		kind := t.Entities[row].Kind
		for i := range catalogue {
			m := &catalogue[i]
			if m.Device != 0 || !m.Levels.Has(kind) {
				continue
			}
			if v, ok := t.Value(row, m.ID); ok {
				s := Sample{Metric: m, Name: m.Name, Value: v, Counter: m.Shape == Counter, StandsIn: m.Group != GroupNone && t.StandsIn(row, m.Group), Ours: m.OursAt(kind)}
				if !yield(s) {
					return
				}
			}
		}
		from, to := t.DevicesOf(row)
		for d := from; d < to; d++ {
			stale := t.DeviceStandsIn(d)
			for i := range catalogue {
				m := &catalogue[i]
				if m.Device == 0 || m.Device != t.Devices[d].Kind {
					continue
				}
				if v, ok := t.DeviceValues.value(d, m); ok {
					s := Sample{Metric: m, Name: m.Name, Value: v, Counter: m.Shape == Counter, Device: &t.Devices[d], Row: d, StandsIn: stale, Ours: m.OursAt(kind) || t.Devices[d].Ours()}
					if !yield(s) {
						return
					}
				}
			}
		}
		for i := sort.Search(len(t.Extras), func(i int) bool { return int(t.Extras[i].Entity) >= row }); i < len(t.Extras) && int(t.Extras[i].Entity) == row; i++ {
			x := &t.Extras[i]
			if !yield(Sample{Name: x.Name, Value: x.Value, Counter: x.Counter}) {
				return
			}
		}
	}
}

// DevicesOf returns the range [from, to) of the device rows of one entity.
func (t *Table) DevicesOf(row int) (from, to int) {
	from = sort.Search(len(t.Devices), func(i int) bool { return int(t.Devices[i].Entity) >= row })
	to = from
	for to < len(t.Devices) && int(t.Devices[to].Entity) == row {
		to++
	}
	return from, to
}
