package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/heapstream/heapstream/proto"
)

// Machine identifies the machine of a node, as its kubelet told the API server (status.nodeInfo).
type Machine struct{ ID, UUID string }

// labelsOf are the labels of a line that we know.
type labelsOf struct {
	id, namespace, pod, container, name, image []byte
	cpu, device, iface, major, minor           []byte
	operation, failure, scope                  []byte
	brand, model, accelerator                  []byte
	machine, system                            []byte
}

func (x *exposition) known() (l labelsOf) {
	for i := range x.labels {
		v := x.labels[i].value
		switch string(x.labels[i].name) {
		case "id":
			l.id = v
		case "namespace":
			l.namespace = v
		case "pod", "pod_name": // the latter before Kubernetes 1.16
			l.pod = v
		case "container", "container_name":
			l.container = v
		case "name":
			l.name = v
		case "image":
			l.image = v
		case "cpu":
			l.cpu = v
		case "device":
			l.device = v
		case "interface":
			l.iface = v
		case "major":
			l.major = v
		case "minor":
			l.minor = v
		case "operation":
			l.operation = v
		case "failure_type":
			l.failure = v
		case "scope":
			l.scope = v
		case "make":
			l.brand = v
		case "model":
			l.model = v
		case "acc_id":
			l.accelerator = v
		case "machine_id":
			l.machine = v
		case "system_uuid":
			l.system = v
		}
	}
	return l
}

// exposition decodes an answer in text: families says what is read of it. Lines that cannot be read are
// left out and counted; where nothing can be read the first of them is the error.
func (d *Decoder) exposition(form Form, data []byte, b *proto.Batch, m Machine, families func(name []byte) family) error {
	d.beginCgroups(b)
	x := &d.lines
	x.reset(data)
	defer x.reset(nil)
	var bad error // the first line that cannot be read
	var name []byte
	var f family
	for {
		more, err := x.next()
		if !more {
			break
		}
		if err == nil {
			if !bytes.Equal(name, x.name) {
				name = x.name
				f = families(name)
			}
			if f.of == ofNobody {
				continue
			}
			if err = x.parse(); err == nil {
				err = d.line(f, m, b.Node, form)
			}
		}
		if err == nil {
			continue
		}
		var e *Error
		if errors.As(err, &e) {
			return e
		}
		d.dropped++
		if bad == nil {
			bad = fmt.Errorf("line %d: %w", x.line, err)
		}
	}
	switch {
	case len(data) == 0:
		return &Error{Reason: HalfAnswer, Node: b.Node, What: form.decode(), Detail: "it is empty"}
	case data[len(data)-1] != '\n' && (bad == nil || len(d.cgroups.list) > 0):
		return &Error{Reason: HalfAnswer, Node: b.Node, What: form.decode(), Detail: fmt.Sprintf("line %d: it breaks off", x.line)}
	case len(d.cgroups.list) == 0 && d.scrapeError:
		return &Error{Reason: ServerError, Node: b.Node, What: form.decode(), Detail: "the kubelet says that it could not measure (scrape_error 1)", Advice: "look at the kubelet's log"}
	}
	if err := d.settle(); err != nil {
		return &Error{Reason: BadAnswer, Node: b.Node, What: form.decode(), Detail: err.Error(), Err: bad, Advice: "is this the kubelet's port?"}
	}
	b.Dropped += d.dropped
	return nil
}

func (d *Decoder) beginCgroups(b *proto.Batch) {
	b.Table.Reset()
	d.begin(&b.Table, b.Node)
	if d.cgroups == nil {
		d.cgroups = &cgroups{}
		d.byName = map[deviceKey]int32{}
	}
	d.cgroups.begin()
	clear(d.byName)
	d.extras = d.extras[:0]
	d.scrapeError = false
	d.t.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: b.Node})
}

// line reads the line at hand.
func (d *Decoder) line(f family, m Machine, node string, form Form) error {
	x := &d.lines
	l := x.known()
	switch f.of {
	case ofMachine:
		return m.check(&l, node, form)
	case ofError:
		d.scrapeError = d.scrapeError || string(x.value) != "0"
		return nil
	}
	v, ok := decimal(x.value, f.scale)
	if !ok {
		return fmt.Errorf("its value %.32q is no number from 0 to 2^63-1", x.value)
	}
	i, err := d.cgroupOf(&l)
	if err != nil {
		return err
	}
	c := d.cgroups
	switch f.of {
	case ofLimit:
		c.limits[i] = v
		return nil
	case ofCPU:
		if len(l.cpu) > 0 && string(l.cpu) != "total" {
			old, _ := c.values.Get(i, f.field)
			v = sum(old, v)
		}
	case ofFailures:
		id := proto.MemoryPageFaults
		switch string(l.failure) {
		case "pgfault":
		case "pgmajfault":
			id = proto.MemoryMajorFaults
		default:
			return nil
		}
		// As Heapster, those of a cgroup's own tasks. Of those below it the kernel tells on cgroup v1, and
		// then a pod, which has no tasks of its own, would have another meaning on v2.
		if string(l.scope) == "hierarchy" {
			return nil
		}
		f.field = id.Field()
	case ofInterface, ofFilesystem, ofDisk, ofDiskKind, ofSectors, ofAccelerator:
		return d.deviceLine(f, &l, i, v)
	}
	c.values.Set(i, f.field, v)
	if x.at != 0 && f.group != proto.GroupNone {
		c.values.Set(i, f.group.Time(), x.at)
	}
	return nil
}

// check finds out whether the answer is another machine's.
func (m Machine) check(l *labelsOf, node string, form Form) error {
	differ := func(said []byte, known string) bool { return len(said) > 0 && known != "" && string(said) != known }
	if !differ(l.machine, m.ID) && !differ(l.system, m.UUID) {
		return nil
	}
	return &Error{Reason: OtherNode, Node: node, What: form.decode(),
		Detail: fmt.Sprintf("the kubelet at this address says it runs on machine %.64q (system %.64q), the API server knows the node as machine %q (system %q)", l.machine, l.system, m.ID, m.UUID)}
}

// deviceLine reads a line about one device of a cgroup.
func (d *Decoder) deviceLine(f family, l *labelsOf, i int, v int64) error {
	kind, name := proto.DeviceDisk, l.device
	field := f.field
	switch f.of {
	case ofInterface:
		kind, name = proto.DeviceInterface, l.iface
	case ofFilesystem:
		kind = proto.DeviceFilesystem
	case ofAccelerator:
		kind, name = proto.DeviceAccelerator, l.accelerator
	case ofDiskKind:
		switch string(l.operation) {
		case "Read":
			field = proto.DiskRead.Field()
		case "Write":
			field = proto.DiskWrite.Field()
		default:
			return nil
		}
	case ofSectors:
		if v == 0 { // file systems in memory have no sectors
			return nil
		}
		if v > math.MaxInt64/sectorBytes {
			return errors.New("its value is beyond what fits")
		}
		v *= sectorBytes
	}
	if kind == proto.DeviceDisk && len(name) == 0 && len(l.major) > 0 {
		d.key = append(append(append(d.key[:0], l.major...), ':'), l.minor...)
		name = d.key
	}
	if len(name) == 0 || len(name) > maxName {
		return errors.New("it names no device")
	}
	dev := d.deviceOf(i, kind, d.intern(name))
	if dev < 0 {
		return fmt.Errorf("more than %d devices", maxDevices)
	}
	if f.of == ofSectors {
		if _, told := d.values.Get(dev, field); told {
			return nil
		}
	}
	if f.of == ofAccelerator {
		d.devices[dev].Make, d.devices[dev].Model = d.name(l.brand), d.name(l.model)
	}
	d.values.Set(dev, field, v)
	if at := d.lines.at; at != 0 {
		d.values.Set(dev, proto.GroupDevice.Time(), at)
	}
	if f.of == ofInterface {
		d.addNetwork(i, proto.MetricID(field), v, d.lines.at)
	}
	return nil
}

// sectorBytes is the kernel's unit of disk counters, whatever the disk's own is.
const sectorBytes = 512

// addNetwork adds one interface's counter to the sum of them all, which is what Heapster's source
// `kubernetes` gave.
func (d *Decoder) addNetwork(i int, of proto.MetricID, v, at int64) {
	var to proto.MetricID
	switch of {
	case proto.InterfaceRx:
		to = proto.NetworkRx
	case proto.InterfaceRxErrors:
		to = proto.NetworkRxErrors
	case proto.InterfaceTx:
		to = proto.NetworkTx
	case proto.InterfaceTxErrors:
		to = proto.NetworkTxErrors
	}
	c := &d.cgroups.values
	old, _ := c.Get(i, to.Field())
	c.Set(i, to.Field(), sum(old, v))
	if at != 0 {
		c.Set(i, proto.GroupNetwork.Time(), at)
	}
}

// sum stays at the largest number instead of wrapping.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

type deviceKey struct {
	cgroup int
	kind   proto.DeviceKind
	name   string
}

// deviceOf returns the device of a cgroup, which it adds; -1 where there are too many.
func (d *Decoder) deviceOf(cgroup int, kind proto.DeviceKind, name string) int {
	key := deviceKey{cgroup, kind, name}
	if dev, ok := d.byName[key]; ok {
		return int(dev)
	}
	dev := d.addDevice(proto.Device{Entity: int32(cgroup), Kind: kind, Name: name}) //nolint:gosec // below maxRows
	if dev >= 0 {
		d.byName[key] = int32(dev) //nolint:gosec // below maxDevices
	}
	return dev
}

// cgroupOf returns the cgroup that a line is of, by its path or, where there is none, by its labels.
func (d *Decoder) cgroupOf(l *labelsOf) (int, error) {
	key := l.id
	if len(key) == 0 {
		key = append(d.key[:0], l.namespace...)
		key = append(append(key, 0), l.pod...)
		key = append(append(key, 0), l.container...)
		d.key = key
	}
	if i, ok := d.cgroups.index[string(key)]; ok {
		return int(i), nil
	}
	for _, v := range [][]byte{l.id, l.namespace, l.pod, l.container, l.name, l.image} {
		if len(v) > maxName {
			return 0, fmt.Errorf("a label of it is longer than %d bytes", maxName)
		}
	}
	if (len(l.namespace) == 0) != (len(l.pod) == 0) || len(l.pod) == 0 && len(l.container) > 0 {
		return 0, errors.New("it names neither pod nor cgroup")
	}
	g := cgroup{path: d.name(l.id), namespace: d.name(l.namespace), pod: d.name(l.pod), container: d.name(l.container), name: d.name(l.name), image: d.name(l.image)}
	if g.path == "" && g.pod == "" { // /metrics/resource names pods and containers; the node is what is left
		g.path = rootPath
	}
	i := d.cgroups.add(g)
	if i < 0 {
		return 0, fmt.Errorf("more than %d cgroups", maxRows)
	}
	d.cgroups.index[d.intern(key)] = int32(i) //nolint:gosec // below maxRows
	return i, nil
}

// name is a label's value as the string that all its lines share.
func (d *Decoder) name(raw []byte) string {
	if len(raw) == 0 || len(raw) > maxName {
		return ""
	}
	return d.intern(raw)
}
