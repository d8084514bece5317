package node

import (
	"slices"

	"github.com/heapstream/heapstream/proto"
)

// Lookup finds a pod by namespace and name; nil: the API server has no such pod, or we do not know
// its pods.
type Lookup func(namespace, name string) *Pod

// Enrich writes what the API server says into a batch as a kubelet's decoder left it. n is nil
// while the node is not known; pods is nil while its pods are not known, and then no pod is marked
// as missing there. Values that do not fit are counted in b.Dropped. The package says which pod is
// which, and what is asked for.
func Enrich(b *proto.Batch, n *Node, pods Lookup) {
	if len(b.Entities) == 0 {
		return
	}
	if n != nil {
		enrichNode(b, n)
	}
	if pods == nil {
		return
	}
	e := enricher{b: b, extras: len(b.Extras)}
	rows := len(b.Entities)
	for row := 1; row < rows; {
		if b.Entities[row].Kind != proto.KindPod {
			row++
			continue
		}
		end := row + 1 // a pod's containers follow it
		for end < rows && b.Entities[end].Kind == proto.KindContainer {
			end++
		}
		e.pod(row, end, pods)
		row = end
	}
	if len(b.Extras) != e.extras {
		slices.SortStableFunc(b.Extras, func(x, y proto.Extra) int { return int(x.Entity) - int(y.Entity) })
	}
}

func enrichNode(b *proto.Batch, n *Node) {
	e := &b.Entities[0]
	e.UID, e.Hostname, e.HostID, e.Labels = n.UID, n.Hostname, n.HostID, n.Labels
	e.Flags |= n.Flags
	v := &b.Values
	v.Set(0, proto.CPUNodeCapacity.Field(), n.CPUCapacity)
	v.Set(0, proto.CPUNodeAllocatable.Field(), n.CPUAllocatable)
	v.Set(0, proto.MemoryNodeCapacity.Field(), n.MemoryCapacity)
	v.Set(0, proto.MemoryNodeAlloc.Field(), n.MemoryAllocatable)
	if n.Ephemeral {
		v.Set(0, proto.EphemeralNodeCap.Field(), n.EphemeralCapacity)
		v.Set(0, proto.EphemeralNodeAlloc.Field(), n.EphemeralAllocatable)
	}
}

// What enrichment adds to a batch at most, so that whatever pods the API server tells of the batch can
// be encoded. Real nodes have a hundredth of it.
const (
	maxStubs    = 4 << 10
	maxExtended = 16 << 10
)

type enricher struct {
	b       *proto.Batch
	extras  int // of the kubelet
	stubs   int // added
	seen    []bool
	indexOf map[string]int // containers of the pod at hand, where there are more than few
}

// pod enriches the pod of a row and its containers up to end.
func (x *enricher) pod(row, end int, pods Lookup) {
	b := x.b
	e := &b.Entities[row]
	p := pods(e.Namespace, e.Name)
	if p == nil || !p.is(e.UID) {
		e.Flags |= proto.FlagNotInAPI
		for i := row + 1; i < end; i++ {
			b.Entities[i].Flags |= proto.FlagNotInAPI
			if _, ok := b.Values.Get(i, proto.CPUUsage.Field()); ok {
				b.Entities[i].Flags |= proto.FlagRunning
			}
		}
		return
	}
	e.UID, e.Phase, e.Owner, e.Labels = p.UID, p.Phase, p.Owner, p.Labels
	e.Flags |= p.Flags
	if p.Started != 0 {
		b.Values.Set(row, proto.FieldBirth, p.Started)
	}
	x.index(p)
	for i := row + 1; i < end; i++ {
		if c := x.find(p, b.Entities[i].Name); c >= 0 {
			x.seen[c] = true
			x.container(i, &p.Containers[c])
		}
	}
	for c := range p.Containers {
		if x.seen[c] || !p.Containers[c].counts() {
			continue
		}
		if x.stubs++; x.stubs > maxStubs {
			b.Dropped++
			continue
		}
		stub := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: p.Containers[c].Name, Flags: proto.FlagStub}) //nolint:gosec // bounded by the decoder
		x.container(stub, &p.Containers[c])
	}
	if p.Whole != nil {
		x.resources(row, p.Whole)
	}
}

// is reports whether the pod is the one that a kubelet calls by this UID.
func (p *Pod) is(uid string) bool {
	return uid == "" || uid == p.UID || uid == p.KubeletUID ||
		p.Flags&proto.FlagMirror != 0 && p.KubeletUID == "" // the API server's UID is not known
}

// index prepares find for a pod.
func (x *enricher) index(p *Pod) {
	x.seen = append(x.seen[:0], make([]bool, len(p.Containers))...)
	clear(x.indexOf)
	if len(p.Containers) <= few {
		return
	}
	if x.indexOf == nil {
		x.indexOf = make(map[string]int, len(p.Containers))
	}
	for i := range p.Containers {
		x.indexOf[p.Containers[i].Name] = i
	}
}

// find returns the index of the pod's container of this name, or -1.
func (x *enricher) find(p *Pod, name string) int {
	if len(p.Containers) > few {
		if i, ok := x.indexOf[name]; ok {
			return i
		}
		return -1
	}
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return i
		}
	}
	return -1
}

func (x *enricher) container(row int, c *Container) {
	e := &x.b.Entities[row]
	if e.Image == "" { // else the source has told which it runs
		e.Image = c.Image
	}
	e.Flags |= c.Flags
	if c.Known {
		x.b.Values.Set(row, proto.RestartCount.Field(), c.Restarts)
	}
	if c.counts() {
		x.resources(row, &c.Resources)
	}
}

func (x *enricher) resources(row int, r *Resources) {
	b := x.b
	v := &b.Values
	v.Set(row, proto.CPURequest.Field(), r.CPURequest)
	v.Set(row, proto.CPULimit.Field(), r.CPULimit)
	v.Set(row, proto.MemoryRequest.Field(), r.MemoryRequest)
	v.Set(row, proto.MemoryLimit.Field(), r.MemoryLimit)
	v.Set(row, proto.EphemeralRequest.Field(), r.EphemeralRequest)
	v.Set(row, proto.EphemeralLimit.Field(), r.EphemeralLimit)
	if len(r.Extended) == 0 {
		return
	}
	has := 0
	for i := range x.extras {
		if int(b.Extras[i].Entity) == row {
			has++
		}
	}
	for _, r := range r.Extended {
		if has++; has > proto.MaxExtras || len(b.Extras)-x.extras >= maxExtended {
			b.Dropped++
			continue
		}
		b.Extras = append(b.Extras, proto.Extra{Entity: int32(row), Name: r.Name, Value: proto.Int(r.Value)}) //nolint:gosec // bounded by the decoder
	}
}
