package rollup

import (
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// distribution is a measure of pods of which a sum says what it is like from pod to pod.
type distribution struct {
	first  proto.MetricID // on the row of the sum
	of, by int            // places in a Sum; by -1: the value itself, else its ratio to that
}

var distributions = [...]distribution{
	{proto.PodCPUUsageRate, placeOf(proto.CPUUsageRate), -1},
	{proto.PodMemoryWorkingSet, placeOf(proto.MemoryWorkingSet), -1},
	{proto.PodCPURequestUtil, placeOf(proto.CPUUsageRate), placeOf(proto.CPURequest)},
	{proto.PodMemoryRequestUtil, placeOf(proto.MemoryWorkingSet), placeOf(proto.MemoryRequest)},
}

// value is the measure of one pod.
func (d *distribution) value(p *pod) (int64, bool) {
	if p.sum.has&(1<<d.of) == 0 {
		return 0, false
	}
	v := p.sum.values[d.of]
	if d.by < 0 {
		return v, true
	}
	by := p.sum.values[d.by]
	if p.sum.has&(1<<d.by) == 0 || by <= 0 {
		return 0, false
	}
	return proto.Float(float64(v) / float64(by) * proto.RatioScale).Int64(), true
}

// spread writes into a row what the pods of its sum are like one by one: of several nodes, each with a part
// of the pods.
func (m *Maker) spread(t *proto.Table, row int, parts [][]pod) {
	for i := range m.values {
		m.values[i] = m.values[i][:0]
	}
	for _, pods := range parts {
		for i := range pods {
			for d := range distributions {
				if v, ok := distributions[d].value(&pods[i]); ok {
					m.values[d] = append(m.values[d], v)
				}
			}
		}
	}
	for i := range distributions {
		list, first := m.values[i], distributions[i].first
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		t.Values.Set(row, (first + proto.PodsMin).Field(), list[0])
		t.Values.Set(row, (first + proto.PodsP50).Field(), percentile(list, 50))
		t.Values.Set(row, (first + proto.PodsP95).Field(), percentile(list, 95))
		t.Values.Set(row, (first + proto.PodsMax).Field(), list[len(list)-1])
	}
}

// percentile is the least of the sorted values that at least p percent of them do not exceed: nearest rank.
func percentile(sorted []int64, p int) int64 {
	return sorted[(len(sorted)*p+99)/100-1]
}
