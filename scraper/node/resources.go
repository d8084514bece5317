package node

import (
	"cmp"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Resources is what a container or a pod asks for and may use: millicores and bytes, rounded up; zero
// where not given. What is negative is zero, and what no int64 holds is the largest one.
type Resources struct {
	CPURequest, CPULimit, MemoryRequest, MemoryLimit, EphemeralRequest, EphemeralLimit int64
	Extended                                                                           []Extended // sorted by name
}

// Extended is a request of a resource that has no metric of its own.
type Extended struct {
	Name  string // "nvidia.com/gpu/request"
	Value int64
}

// The resources that have metrics of their own.
const (
	cpu       = corev1.ResourceCPU
	memory    = corev1.ResourceMemory
	ephemeral = corev1.ResourceEphemeralStorage
)

// milli is a resource in thousandths, rounded up.
func milli(l corev1.ResourceList, name corev1.ResourceName) int64 {
	q, ok := l[name]
	if !ok {
		return 0
	}
	return integer(&q, 1000, q.MilliValue)
}

// whole is a resource in its own unit, rounded up.
func whole(l corev1.ResourceList, name corev1.ResourceName) int64 {
	q, ok := l[name]
	if !ok {
		return 0
	}
	return integer(&q, 1, q.Value)
}

// integer is exact, a quantity as an int64, where it fits: Quantity itself wraps silently.
func integer(q *resource.Quantity, unit float64, exact func() int64) int64 {
	const most = 9.2e18 // below the largest int64 by more than the approximation is wrong
	switch f := q.AsApproximateFloat64() * unit; {
	case f >= most:
		return math.MaxInt64
	case f > 0:
		return exact()
	}
	return 0
}

// plus is a sum that stays at the largest number instead of wrapping; a and b are not negative.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// granted is what of a container's or a pod's resources is in force: what its status says of cpu and
// memory, since only those can be resized while it runs, and what the spec says of everything else.
// A resize that its kubelet defers or refuses is in the spec all the while.
func granted(spec corev1.ResourceRequirements, allocated corev1.ResourceList, actual *corev1.ResourceRequirements) Resources {
	if actual == nil {
		actual = &corev1.ResourceRequirements{}
	}
	requests := func(name corev1.ResourceName) corev1.ResourceList {
		return having(name, allocated, actual.Requests, spec.Requests)
	}
	limits := func(name corev1.ResourceName) corev1.ResourceList { return having(name, actual.Limits, spec.Limits) }
	r := Resources{
		CPURequest: milli(requests(cpu), cpu), CPULimit: milli(limits(cpu), cpu),
		MemoryRequest: whole(requests(memory), memory), MemoryLimit: whole(limits(memory), memory),
		EphemeralRequest: whole(spec.Requests, ephemeral), EphemeralLimit: whole(spec.Limits, ephemeral),
	}
	r.extend(spec.Requests)
	return r
}

// having is the first list that names a resource.
func having(name corev1.ResourceName, lists ...corev1.ResourceList) corev1.ResourceList {
	for _, l := range lists {
		if _, ok := l[name]; ok {
			return l
		}
	}
	return nil
}

// extend takes up the requests that have no metric of their own.
func (r *Resources) extend(requests corev1.ResourceList) {
	for name := range requests {
		switch name {
		case cpu, memory, ephemeral:
		default:
			r.Extended = append(r.Extended, Extended{Name: intern(string(name) + "/request"), Value: whole(requests, name)})
		}
	}
	slices.SortFunc(r.Extended, func(a, b Extended) int { return cmp.Compare(a.Name, b.Name) })
}

// wholePod is what a pod asks for where that is not the sum of its containers, else nil; see the package.
func wholePod(p *corev1.Pod, containers []Container) *Resources {
	level, overhead := p.Spec.Resources, p.Spec.Overhead
	if level == nil && len(overhead) == 0 {
		return nil
	}
	r := &Resources{}
	extended := map[string]int64{}
	for i := range containers {
		c := &containers[i]
		if !c.counts() {
			continue
		}
		r.CPURequest, r.CPULimit = plus(r.CPURequest, c.CPURequest), plus(r.CPULimit, c.CPULimit)
		r.MemoryRequest, r.MemoryLimit = plus(r.MemoryRequest, c.MemoryRequest), plus(r.MemoryLimit, c.MemoryLimit)
		r.EphemeralRequest, r.EphemeralLimit = plus(r.EphemeralRequest, c.EphemeralRequest), plus(r.EphemeralLimit, c.EphemeralLimit)
		for _, x := range c.Extended {
			extended[x.Name] = plus(extended[x.Name], x.Value)
		}
	}
	if level != nil {
		g := granted(*level, p.Status.AllocatedResources, p.Status.Resources)
		override := func(to *int64, from int64, said corev1.ResourceList, name corev1.ResourceName) {
			if _, ok := said[name]; ok {
				*to = from
			}
		}
		override(&r.CPURequest, g.CPURequest, level.Requests, cpu)
		override(&r.CPULimit, g.CPULimit, level.Limits, cpu)
		override(&r.MemoryRequest, g.MemoryRequest, level.Requests, memory)
		override(&r.MemoryLimit, g.MemoryLimit, level.Limits, memory)
		override(&r.EphemeralRequest, g.EphemeralRequest, level.Requests, ephemeral)
		override(&r.EphemeralLimit, g.EphemeralLimit, level.Limits, ephemeral)
		for _, x := range g.Extended {
			extended[x.Name] = x.Value
		}
	}
	add := func(request, limit *int64, more int64) {
		*request = plus(*request, more)
		if *limit > 0 { // no limit stays none
			*limit = plus(*limit, more)
		}
	}
	add(&r.CPURequest, &r.CPULimit, milli(overhead, cpu))
	add(&r.MemoryRequest, &r.MemoryLimit, whole(overhead, memory))
	add(&r.EphemeralRequest, &r.EphemeralLimit, whole(overhead, ephemeral))
	var more Resources
	more.extend(overhead)
	for _, x := range more.Extended {
		extended[x.Name] = plus(extended[x.Name], x.Value)
	}
	for name, v := range extended {
		r.Extended = append(r.Extended, Extended{name, v})
	}
	slices.SortFunc(r.Extended, func(a, b Extended) int { return cmp.Compare(a.Name, b.Name) })
	return r
}
