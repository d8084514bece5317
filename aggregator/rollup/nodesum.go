package rollup

import "github.com/heapstream/heapstream/proto"

var nodeMetrics = metricsOf(func(m *proto.Metric) bool { return m.Rule == proto.RollNode || m.Rule == proto.RollAll })

// nodeSums gives the node what its pods ask for, and their number. A node without pods is asked for
// nothing, which is known and therefore 0.
func nodeSums(t *proto.Table, counted []int32) {
	if len(t.Entities) == 0 || t.Entities[0].Kind != proto.KindNode {
		return
	}
	for _, m := range nodeMetrics {
		sum := int64(0)
		for _, pod := range counted {
			if v, ok := stored(t, int(pod), m); ok {
				sum = add(sum, v)
			}
		}
		t.Values.Set(0, m.ID.Field(), sum)
	}
	containers := int64(0)
	for _, pod := range counted {
		v, _ := t.Values.Get(int(pod), proto.ContainerCount.Field())
		containers += v
	}
	t.Values.Set(0, proto.PodCount.Field(), int64(len(counted)))
	t.Values.Set(0, proto.ContainerCount.Field(), containers)
}

// countedPods are the rows of the pods that the node's kubelet reported, in their order.
func (m *Maker) countedPods(t *proto.Table) []int32 {
	m.rows = m.rows[:0]
	for row := range t.Entities {
		e := &t.Entities[row]
		if e.Kind != proto.KindPod {
			continue
		}
		reported := e.Flags&proto.FlagStub == 0
		for c := m.family.first[row]; !reported && c != 0; c = m.family.next[c] {
			reported = t.Entities[c].Flags&proto.FlagStub == 0
		}
		if reported {
			m.rows = append(m.rows, int32(row)) //nolint:gosec // bounded by the codec
		}
	}
	return m.rows
}
