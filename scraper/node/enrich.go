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
// as missing there. Values that do not fit are counted in b.Dropped.
//
// Containers of a pod that the kubelet gave no sample of get a row of their own, flagged as stubs:
// their requests count. Init containers that are to finish get requests neither there nor where
// they have samples, since the scheduler does not add them up.
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

type enricher struct {
	b      *proto.Batch
	extras int // of the kubelet
	seen   []bool
}

// pod enriches the pod of a row and its containers up to end.
func (x *enricher) pod(row, end int, pods Lookup) {
	b := x.b
	e := &b.Entities[row]
	p := pods(e.Namespace, e.Name)
	// A pod of this name with another UID is a successor that the kubelet has not measured yet, or
	// a predecessor that we have not seen go: nothing it says holds for these samples.
	if p == nil || e.UID != "" && p.UID != e.UID && p.KubeletUID != e.UID && (p.Flags&proto.FlagMirror == 0 || p.KubeletUID != "") {
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
	x.seen = append(x.seen[:0], make([]bool, len(p.Containers))...)
	for i := row + 1; i < end; i++ {
		name := b.Entities[i].Name
		for c := range p.Containers {
			if p.Containers[c].Name == name {
				x.seen[c] = true
				x.container(i, &p.Containers[c])
				break
			}
		}
	}
	for c := range p.Containers {
		if x.seen[c] || p.Containers[c].Flags&proto.FlagInit != 0 {
			continue
		}
		stub := b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: p.Containers[c].Name, Flags: proto.FlagStub}) //nolint:gosec // bounded by the decoder
		x.container(stub, &p.Containers[c])
	}
}

func (x *enricher) container(row int, c *Container) {
	b := x.b
	e := &b.Entities[row]
	e.Image = c.Image
	e.Flags |= c.Flags
	v := &b.Values
	if c.Known {
		v.Set(row, proto.RestartCount.Field(), c.Restarts)
	}
	if c.Flags&proto.FlagInit != 0 {
		return
	}
	v.Set(row, proto.CPURequest.Field(), c.CPURequest)
	v.Set(row, proto.CPULimit.Field(), c.CPULimit)
	v.Set(row, proto.MemoryRequest.Field(), c.MemoryRequest)
	v.Set(row, proto.MemoryLimit.Field(), c.MemoryLimit)
	v.Set(row, proto.EphemeralRequest.Field(), c.EphemeralRequest)
	v.Set(row, proto.EphemeralLimit.Field(), c.EphemeralLimit)
	if len(c.Extended) == 0 {
		return
	}
	has := 0
	for i := range x.extras {
		if int(b.Extras[i].Entity) == row {
			has++
		}
	}
	for _, r := range c.Extended {
		if has++; has > proto.MaxExtras {
			b.Dropped++
			continue
		}
		b.Extras = append(b.Extras, proto.Extra{Entity: int32(row), Name: r.Name, Value: proto.Int(r.Value)}) //nolint:gosec // bounded by the decoder
	}
}
