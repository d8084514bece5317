package rate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// seen is what the model remembers of one group: the package documentation in the plainest words.
type seen struct {
	at, start            int64
	values               map[proto.MetricID]int64
	first, last          int64
	rates                map[proto.MetricID][2]int64 // growth and span of the last valid pair
	startKnown, anything bool
}

// step is the documentation's answer to one sample: growth and span by counter, and what is said of it.
func (s *seen) step(now, at int64, start *int64, values map[proto.MetricID]int64, resolution time.Duration) (rates map[proto.MetricID][2]int64, stale, expired bool) {
	restarted := start != nil && s.startKnown && *start != s.start
	if start != nil {
		s.start, s.startKnown = *start, true
	}
	fresh := restarted || !s.anything || now-s.last > Memory(resolution).Milliseconds() || at < s.at || at-s.at > Memory(resolution).Nanoseconds()
	if !fresh && at == s.at && now-s.first >= proto.StandInFor(resolution).Milliseconds() {
		s.last = now
		return nil, false, true
	}
	for id, v := range values {
		if old, had := s.values[id]; had && !fresh {
			span := at - s.at
			fresh = v < old || span > 0 && float64(v-old)/float64(span) >= mostPerNanosecond+1
		}
	}
	if !fresh && at == s.at {
		s.last = now
		return s.rates, true, false
	}
	rates = map[proto.MetricID][2]int64{}
	if !fresh {
		for id, v := range values {
			if old, had := s.values[id]; had {
				rates[id] = [2]int64{v - old, at - s.at}
			}
		}
	}
	s.at, s.values, s.first, s.last, s.rates, s.anything = at, values, now, now, rates, true
	return rates, false, false
}

// Whatever a source says, in whatever order of times: no growth is negative, no span is zero, no rate is
// beyond what a counter can do, and all are those of the documentation, for entities and devices alike.
func TestRatesOfRandomStreams(t *testing.T) {
	const resolution = 15 * time.Second
	entityIDs := []proto.MetricID{proto.MemoryPageFaults, proto.MemoryMajorFaults}
	deviceIDs := []proto.MetricID{proto.InterfaceRx, proto.InterfaceTx}
	rated, all := 0, 0
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		odd := func(normal int64) int64 {
			switch r.IntN(40) {
			case 0:
				return math.MaxInt64 - r.Int64N(3)
			case 1:
				return math.MinInt64 + r.Int64N(3)
			case 2:
				return -r.Int64N(1e9)
			case 3:
				return r.Int64()
			case 4:
				return 0
			}
			return normal
		}
		s, entity, device := New(), &seen{}, &seen{}
		now, sampled, started, count := int64(0), int64(1e18), int64(1e17), int64(1e9)
		for range 200 {
			later := 1000 * []int64{15, 15, 15, 15, 15, 30, 45, 90, 91, 200}[r.IntN(10)]
			if now += later; later > Memory(resolution).Milliseconds() {
				*entity, *device = seen{}, seen{}
			}
			if r.IntN(3) > 0 {
				sampled = odd(sampled + r.Int64N(20e9) + 1)
				count += r.Int64N(1e9)
			}
			if r.IntN(20) == 0 {
				sampled = 1e18 + now*1e6
			}
			if r.IntN(30) == 0 {
				started, count = started+1, 0
			}
			b := &proto.Batch{Node: "n", Resolution: resolution}
			b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
			d := b.AddDevice(proto.Device{Entity: 0, Kind: proto.DeviceInterface, Name: "eth0"})
			var start *int64
			if r.IntN(8) > 0 {
				start = &started
				b.Values.Set(0, proto.FieldStart, started)
			}
			b.Values.Set(0, proto.GroupMemory.Time(), sampled)
			b.DeviceValues.Set(d, proto.GroupDevice.Time(), sampled)
			values := func(to *proto.Columns, row int, ids []proto.MetricID) map[proto.MetricID]int64 {
				m := map[proto.MetricID]int64{}
				for _, id := range ids {
					if r.IntN(10) == 0 {
						continue
					}
					v := odd(count)
					to.Set(row, id.Field(), v)
					to.Set(row, id.Delta(), -1) // nobody but us says that
					if v >= 0 {
						m[id] = v
					}
				}
				return m
			}
			entityValues, deviceValues := values(&b.Values, 0, entityIDs), values(&b.DeviceValues, d, deviceIDs)
			restarted := start != nil && entity.startKnown && *start != entity.start
			s.Step(b, now)
			if restarted { // devices begin anew with their entity, also in an answer that has none of them
				*device = seen{}
				if sampled < 0 {
					*entity = seen{start: started, startKnown: true}
				}
			} else if start != nil {
				entity.start, entity.startKnown = started, true
			}
			if sampled < 0 {
				continue
			}
			check := func(what string, got *proto.Columns, g proto.Group, ids []proto.MetricID, want map[proto.MetricID][2]int64, stale, expired bool) {
				t.Helper()
				_, isStale := got.Get(0, g.Stale())
				_, there := got.Get(0, g.Time())
				span, _ := got.Get(0, g.Span())
				if isStale != stale || there == expired {
					t.Fatalf("seed %d, %s: stale %v, want %v; there %v, expired %v", seed, what, isStale, stale, there, expired)
				}
				for _, id := range ids {
					all++
					growth, ok := got.Get(0, id.Delta())
					w, wanted := want[id]
					if ok != wanted || ok && (growth != w[0] || span != w[1]) {
						t.Fatalf("seed %d, %s, metric %d: growth %d in %d (%v), want %v (%v)", seed, what, id, growth, span, ok, w, wanted)
					}
					if v, _ := got.Get(0, id.Field()); v < 0 {
						t.Fatalf("seed %d, %s: value %d", seed, what, v)
					}
					if !ok {
						continue
					}
					rated++
					if rate := float64(growth) / float64(span); growth < 0 || span <= 0 || span > int64(Memory(resolution)) || rate > mostPerNanosecond+1 {
						t.Fatalf("seed %d, %s: growth %d in %d ns", seed, what, growth, span)
					}
				}
			}
			want, stale, expired := entity.step(now, sampled, start, entityValues, resolution)
			check("entity", &b.Values, proto.GroupMemory, entityIDs, want, stale, expired)
			want, stale, expired = device.step(now, sampled, nil, deviceValues, resolution)
			check("device", &b.DeviceValues, proto.GroupDevice, deviceIDs, want, stale, expired)
		}
	}
	if rated < all/10 {
		t.Errorf("only %d of %d counters had a rate: the test says little", rated, all)
	}
	t.Log(fmt.Sprint(rated, " rates of ", all))
}
