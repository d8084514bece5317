package kubelet

import (
	"cmp"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// finish leaves rows and devices in an order that is the same at every tick. Kubelets walk Go maps and tell their pods,
// containers and volumes in another order each time; who reads the batches finds what it knows where it was.
func (d *Decoder) finish() {
	d.arrange()
	t := d.t
	extras := t.Extras[:0]
	for _, x := range t.Extras {
		if x.Entity = d.moved[x.Entity]; x.Entity >= 0 {
			extras = append(extras, x)
		}
	}
	t.Extras = extras
	slices.SortStableFunc(t.Extras, func(a, b proto.Extra) int {
		return cmp.Or(cmp.Compare(a.Entity, b.Entity), strings.Compare(a.Name, b.Name))
	})
	d.order = d.order[:0]
	for i := range d.devices {
		dev := &d.devices[i]
		if dev.Entity >= 0 {
			dev.Entity = d.moved[dev.Entity]
		}
		if dev.Entity < 0 {
			continue
		}
		if dev.Name == "" { // a volume or interface that nobody could refer to
			d.dropped++
			continue
		}
		d.order = append(d.order, int32(i)) //nolint:gosec // below maxDevices
	}
	slices.SortStableFunc(d.order, func(i, j int32) int {
		a, b := &d.devices[i], &d.devices[j]
		return cmp.Or(cmp.Compare(a.Entity, b.Entity), cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
	for _, i := range d.order {
		t.Devices = append(t.Devices, d.devices[i])
	}
	for _, c := range d.values.All() {
		for to, from := range d.order {
			if c.Present.Has(int(from)) {
				t.DeviceValues.Set(to, c.Field, c.Values[from])
			}
		}
	}
}

// arrange orders the rows: the node, its system containers by name, then the pods by namespace, name and UID, each
// followed by its containers by name. What was killed is left out, with its containers. d.moved says where each row
// went; -1: nowhere.
func (d *Decoder) arrange() {
	t := d.t
	was := append(d.was[:0], t.Entities...)
	alive := func(row int) bool { return row >= len(d.dead) || !d.dead[row] }
	byName := func(i, j int32) int { return strings.Compare(was[i].Name, was[j].Name) }

	order, pods := append(d.order[:0], 0), d.podRows[:0]
	for row := 1; row < len(was); row++ {
		switch {
		case !alive(row):
		case was[row].Kind == proto.KindSystemContainer:
			order = append(order, int32(row)) //nolint:gosec // below maxRows
		case was[row].Kind == proto.KindPod:
			pods = append(pods, int32(row)) //nolint:gosec // below maxRows
		}
	}
	slices.SortStableFunc(order[1:], byName)
	slices.SortStableFunc(pods, func(i, j int32) int {
		a, b := &was[i], &was[j]
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.UID, b.UID))
	})
	for _, pod := range pods {
		order = append(order, pod)
		containers := len(order)
		for row := int(pod) + 1; row < len(was) && was[row].Kind == proto.KindContainer; row++ {
			if alive(row) {
				order = append(order, int32(row)) //nolint:gosec // below maxRows
			}
		}
		slices.SortStableFunc(order[containers:], byName)
	}

	d.moved = slices.Grow(d.moved[:0], len(was))[:len(was)]
	for i := range d.moved {
		d.moved[i] = -1
	}
	for to, from := range order {
		d.moved[from] = int32(to) //nolint:gosec // below maxRows
	}
	for to, from := range order {
		e := was[from]
		if e.Parent >= 0 {
			e.Parent = d.moved[e.Parent]
		}
		t.Entities[to] = e
	}
	clear(t.Entities[len(order):])
	t.Entities = t.Entities[:len(order)]
	for _, c := range t.Values.All() {
		d.column = append(d.column[:0], c.Values...)
		d.present = append(d.present[:0], c.Present...)
		clear(c.Present)
		for to, from := range order {
			if d.present.Has(int(from)) {
				t.Values.Set(to, c.Field, d.column[from])
			}
		}
	}
	clear(was)
	d.was, d.order, d.podRows = was, order, pods
}
