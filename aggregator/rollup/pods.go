package rollup

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

var podMetrics = metricsOf(func(m *proto.Metric) bool { return m.Rule != proto.RollNone && m.Levels.Has(proto.KindPod) })

// finishes reports whether a container is an init container that is to finish: Heapster knew nothing of
// those, and what they ask for is not asked for while the pod runs.
func finishes(e *proto.Entity) bool {
	return e.Flags&proto.FlagInit != 0 && e.Flags&proto.FlagSidecar == 0
}

// family links the rows of containers to those of their pods.
type family struct {
	first []int32 // by row of a pod: its first container; 0: none, as row 0 is never one
	next  []int32 // by row of a container: the next one of its pod; 0: none
}

func (f *family) read(t *proto.Table) {
	f.first = append(f.first[:0], make([]int32, len(t.Entities))...)
	f.next = append(f.next[:0], make([]int32, len(t.Entities))...)
	for row := len(t.Entities) - 1; row > 0; row-- {
		if e := &t.Entities[row]; e.Kind == proto.KindContainer {
			f.next[row] = f.first[e.Parent]
			f.first[e.Parent] = int32(row) //nolint:gosec // bounded by the codec
		}
	}
}

// pods gives every pod the sums of its containers, metric by metric, where it has no value of its own,
// and the number of its containers.
func (m *Maker) pods(t *proto.Table) {
	m.family.read(t)
	for row := range t.Entities {
		if t.Entities[row].Kind != proto.KindPod {
			continue
		}
		containers := int64(0)
		for c := m.family.first[row]; c != 0; c = m.family.next[c] {
			if !finishes(&t.Entities[c]) {
				containers++
			}
		}
		for _, metric := range podMetrics {
			if _, own := stored(t, row, metric); own {
				continue
			}
			sum, some := int64(0), false
			for c := m.family.first[row]; c != 0; c = m.family.next[c] {
				if metric.Group == proto.GroupNone && finishes(&t.Entities[c]) {
					continue
				}
				if v, ok := stored(t, int(c), metric); ok {
					sum, some = add(sum, v), true
				}
			}
			if some {
				t.Values.Set(row, metric.ID.Field(), sum)
			}
		}
		t.Values.Set(row, proto.ContainerCount.Field(), containers)
	}
	if len(t.Extras) > 0 {
		podExtras(t)
	}
}

// podExtras sums the values outside the catalogue from containers to their pod where the pod has none
// of that name: gauges and counters alike, as Heapster did. One that is an integer here and a float
// there has no sum.
func podExtras(t *proto.Table) {
	type key struct {
		pod  int32
		name string
	}
	own := map[key]bool{}
	for _, x := range t.Extras {
		own[key{x.Entity, x.Name}] = true
	}
	at := map[key]int{}
	var sums []proto.Extra
	for _, x := range t.Extras {
		e := &t.Entities[x.Entity]
		k := key{e.Parent, x.Name}
		if e.Kind != proto.KindContainer || finishes(e) || own[k] {
			continue
		}
		i, ok := at[k]
		switch {
		case !ok:
			at[k] = len(sums)
			sums = append(sums, proto.Extra{Entity: e.Parent, Name: x.Name, Counter: x.Counter, Value: x.Value})
		case sums[i].Value.IsFloat() != x.Value.IsFloat():
			sums[i].Name = "" // no sum
		case x.Value.IsFloat():
			sums[i].Value = proto.Float(sums[i].Value.Float64() + x.Value.Float64())
		default:
			sums[i].Value = proto.Int(add(sums[i].Value.Int64(), x.Value.Int64()))
		}
	}
	for _, x := range sums {
		if x.Name != "" {
			t.Extras = append(t.Extras, x)
		}
	}
	slices.SortStableFunc(t.Extras, func(a, b proto.Extra) int {
		return cmp.Or(cmp.Compare(a.Entity, b.Entity), strings.Compare(a.Name, b.Name))
	})
}
