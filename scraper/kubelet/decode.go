package kubelet

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-faster/jx"

	"github.com/heapstream/heapstream/proto"
)

// Limits on one answer; what is beyond is left out and counted. They keep a batch within what
// proto encodes, with room for the rows that enrichment adds.
const (
	maxRows    = 24 << 10
	maxDevices = 96 << 10
	maxName    = 1 << 10 // bytes of any name
	maxInterns = 1 << 13
)

// The names of devices that Heapster or we give to file systems.
const (
	rootDevice   = "/"
	logsDevice   = "logs"
	volumePrefix = "Volume:"
	customPrefix = "custom/"
)

// Decoder puts answers into batches. It keeps its memory from call to call and is not safe for
// concurrent use. The zero Decoder is ready to use.
type Decoder struct {
	json jx.Decoder
	t    *proto.Table
	node string // that the batch is of; "" accepts any
	said string // by the kubelet

	dropped  uint32
	dead     []bool
	pods     map[podKey]int
	children map[childKey]int

	devices []proto.Device // in the order of the JSON
	values  proto.Columns

	// Of finish.
	was     []proto.Entity
	order   []int32
	podRows []int32
	moved   []int32
	column  []int64
	present proto.Bitmap

	interned map[string]string

	// Of answers that tell cgroups.
	lines       exposition
	cgroups     *cgroups
	extras      []proto.Extra // of cgroups
	byName      map[deviceKey]int32
	key         []byte
	scrapeError bool

	// Where we are, for errors.
	section        string
	pod, container int
}

type podKey struct{ namespace, name string }

type childKey struct {
	parent int
	name   string
}

// Decode decodes an answer of that form into b, which it resets but for what precedes its table; b.Node
// is the node that was asked. data is not kept. Left-out values are added to b.Dropped. Errors are *Error
// with the reason BadAnswer, HalfAnswer, OtherNode or ServerError; b is then of no use.
//
// Whose answer it is, is told by the summary (its node's name) and by /metrics/cadvisor (m, where both
// sides tell it); the other two forms name nobody, so that there TLS alone tells nodes apart.
func (d *Decoder) Decode(form Form, data []byte, b *proto.Batch, m Machine) error {
	switch form {
	case FormContainerStats:
		return d.ContainerStats(data, b)
	case FormCAdvisor:
		return d.exposition(form, data, b, m, cadvisorFamily)
	case FormResource:
		return d.exposition(form, data, b, m, resourceFamily)
	}
	return d.Summary(data, b)
}

// Summary is Decode for FormSummary; where b.Node is empty the kubelet's word is taken.
func (d *Decoder) Summary(data []byte, b *proto.Batch) error {
	b.Table.Reset()
	d.begin(&b.Table, b.Node)
	d.json.ResetBytes(data)
	d.t.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: b.Node})
	err := d.summary()
	d.json.ResetBytes(nil)
	if err == nil && d.said == "" {
		err = errors.New("node.nodeName is missing")
	}
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return e
		}
		reason := BadAnswer
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			reason = HalfAnswer
		}
		return &Error{Reason: reason, Node: b.Node, What: FormSummary.decode(), Detail: d.where(), Err: err}
	}
	d.t.Entities[0].Name = d.said
	b.Node = d.said
	d.finish()
	b.Dropped += d.dropped
	return nil
}

func (d *Decoder) begin(t *proto.Table, node string) {
	d.t, d.node, d.said = t, node, ""
	d.dropped = 0
	d.devices = d.devices[:0]
	d.values.Reset()
	d.dead = d.dead[:0]
	d.section, d.pod, d.container = "", -1, -1
	if d.pods == nil {
		d.pods, d.children, d.interned = map[podKey]int{}, map[childKey]int{}, map[string]string{}
	}
	clear(d.pods)
	clear(d.children)
	if len(d.interned) > maxInterns {
		clear(d.interned)
	}
}

// where names the place in the answer that was being read.
func (d *Decoder) where() string {
	var b strings.Builder
	if d.pod >= 0 {
		fmt.Fprintf(&b, "pods[%d]", d.pod)
	} else {
		b.WriteString("node")
	}
	if d.container >= 0 {
		if d.pod >= 0 {
			fmt.Fprintf(&b, ".containers[%d]", d.container)
		} else {
			fmt.Fprintf(&b, ".systemContainers[%d]", d.container)
		}
	}
	if d.section != "" {
		b.WriteByte('.')
		b.WriteString(d.section)
	}
	return b.String()
}

// object calls f for every key of the object that comes next; null is an empty object, anything
// else is left out and counted.
func (d *Decoder) object(f func(key []byte) error) error {
	switch d.json.Next() {
	case jx.Object:
		return d.json.ObjBytes(func(_ *jx.Decoder, key []byte) error { return f(key) })
	case jx.Null:
		return d.json.Null()
	}
	d.dropped++
	return d.json.Skip()
}

// array calls f for every element of the array that comes next, as object does for keys.
func (d *Decoder) array(f func() error) error {
	switch d.json.Next() {
	case jx.Array:
		return d.json.Arr(func(*jx.Decoder) error { return f() })
	case jx.Null:
		return d.json.Null()
	}
	d.dropped++
	return d.json.Skip()
}

// string reads a string; what is none, or is too long, is counted and "".
func (d *Decoder) string() (string, error) {
	switch d.json.Next() {
	case jx.String:
		raw, err := d.json.StrBytes()
		if err != nil {
			return "", err
		}
		if len(raw) > maxName {
			d.dropped++
			return "", nil
		}
		return d.intern(raw), nil
	case jx.Null:
		return "", d.json.Null()
	}
	d.dropped++
	return "", d.json.Skip()
}

// intern returns raw as a string of valid UTF-8; equal ones share their bytes, from answer to answer.
func (d *Decoder) intern(raw []byte) string {
	if s, ok := d.interned[string(raw)]; ok {
		return s
	}
	s := strings.ToValidUTF8(string(raw), "\uFFFD")
	d.interned[s] = s
	return s
}

// number reads the bytes of a number; ok is false for null and, counted, for anything else.
func (d *Decoder) number() (n jx.Num, ok bool, err error) {
	switch d.json.Next() {
	case jx.Number:
		n, err = d.json.Num()
		return n, err == nil, err
	case jx.Null:
		return nil, false, d.json.Null()
	}
	d.dropped++
	return nil, false, d.json.Skip()
}

// integer sets a column to a number that must be an integer from 0 to 2^63-1.
func (d *Decoder) integer(c *proto.Columns, row int, f proto.Field) error {
	n, ok, err := d.number()
	if !ok {
		return err
	}
	v := int64(0)
	for _, b := range n {
		digit := int64(b) - '0'
		if digit < 0 || digit > 9 || v > (math.MaxInt64-digit)/10 {
			d.dropped++
			return nil
		}
		v = 10*v + digit
	}
	c.Set(row, f, v)
	return nil
}

// float reads a number; ok is false where there is none.
func (d *Decoder) float() (v float64, ok bool, err error) {
	n, ok, err := d.number()
	if !ok {
		return 0, false, err
	}
	v, err = strconv.ParseFloat(string(n), 64)
	if err != nil {
		d.dropped++
		return 0, false, nil //nolint:nilerr // out of range costs this value alone
	}
	return v, true, nil
}

// instant reads a time in Unix nanoseconds; ok is false for what is none, and for the zero time and the beginning of
// 1970, by which kubelets say that they have not measured yet: a starting container's file system has that.
func (d *Decoder) instant() (ns int64, ok bool, err error) {
	switch d.json.Next() {
	case jx.String:
	case jx.Null:
		return 0, false, d.json.Null()
	default:
		d.dropped++
		return 0, false, d.json.Skip()
	}
	raw, err := d.json.StrBytes()
	if err != nil {
		return 0, false, err
	}
	var t time.Time
	if err := t.UnmarshalText(raw); err != nil {
		d.dropped++
		return 0, false, nil //nolint:nilerr // costs this time alone
	}
	switch s := t.Unix(); {
	case t.IsZero(), s == 0 && t.Nanosecond() == 0:
		return 0, false, nil
	case s <= 0 || s > math.MaxInt64/int64(time.Second)-1:
		d.dropped++
		return 0, false, nil
	}
	return t.UnixNano(), true, nil
}

func (d *Decoder) time(c *proto.Columns, row int, f proto.Field) error {
	ns, ok, err := d.instant()
	if ok {
		c.Set(row, f, ns)
	}
	return err
}

// answer reads the object that a whole answer is, and nothing may follow it.
func (d *Decoder) answer(field func(key []byte) error) error {
	if d.json.Next() != jx.Object {
		if err := d.json.Skip(); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		return errors.New("not a JSON object")
	}
	err := d.json.ObjBytes(func(_ *jx.Decoder, key []byte) error { return field(key) })
	if err == nil && d.json.Next() != jx.Invalid {
		err = errors.New("something follows the answer")
	}
	return err
}

func (d *Decoder) summary() error {
	return d.answer(func(key []byte) error {
		switch string(key) {
		case "node":
			d.pod, d.container = -1, -1
			return d.nodeStats()
		case "pods":
			d.pod, d.container = -1, -1
			return d.array(d.podStats)
		}
		return d.json.Skip()
	})
}

func (d *Decoder) nodeStats() error {
	return d.object(func(key []byte) error {
		d.section = "" // so that an error names the key itself
		switch string(key) {
		case "nodeName":
			d.section = "nodeName"
			name, err := d.string()
			if err != nil {
				return err
			}
			if d.node != "" && name != d.node {
				return &Error{Reason: OtherNode, Node: d.node, What: FormSummary.decode(),
					Detail: fmt.Sprintf("the kubelet at this address says it is node %q", name)}
			}
			d.said = name
			return nil
		case "systemContainers":
			i := 0
			err := d.array(func() error {
				d.container = i
				i++
				return d.containerStats(0, proto.KindSystemContainer)
			})
			if err == nil {
				d.container = -1
			}
			return err
		case "network":
			return d.network(0)
		case "fs":
			d.section = "fs"
			dev, err := d.filesystem(0, rootDevice)
			if err == nil {
				d.copyUsage(0, dev)
			}
			return err
		case "runtime":
			return d.object(func(key []byte) (err error) {
				switch string(key) {
				case "imageFs":
					d.section = "runtime.imageFs"
					_, err = d.filesystem(0, proto.DeviceImageFS)
				case "containerFs":
					d.section = "runtime.containerFs"
					_, err = d.filesystem(0, proto.DeviceContainerFS)
				default:
					err = d.json.Skip()
				}
				return err
			})
		case "rlimit":
			d.section = "rlimit"
			return d.object(func(key []byte) error {
				switch string(key) {
				case "time":
					return d.time(&d.t.Values, 0, proto.GroupProcess.Time())
				case "maxpid":
					return d.integer(&d.t.Values, 0, proto.ProcessMax.Field())
				case "curproc":
					return d.integer(&d.t.Values, 0, proto.ProcessCount.Field())
				}
				return d.json.Skip()
			})
		}
		return d.common(0, key)
	})
}

func (d *Decoder) podStats() error {
	d.pod++
	d.container, d.section = -1, ""
	if len(d.t.Entities) >= maxRows {
		d.dropped++
		return d.json.Skip()
	}
	row := d.t.AddEntity(proto.Entity{Kind: proto.KindPod})
	i := 0
	err := d.object(func(key []byte) error {
		d.section = ""
		switch string(key) {
		case "podRef":
			d.section = "podRef"
			return d.object(func(key []byte) (err error) {
				e := &d.t.Entities[row]
				switch string(key) {
				case "name":
					e.Name, err = d.string()
				case "namespace":
					e.Namespace, err = d.string()
				case "uid":
					e.UID, err = d.string()
				default:
					err = d.json.Skip()
				}
				return err
			})
		case "containers":
			err := d.array(func() error {
				d.container = i
				i++
				return d.containerStats(row, proto.KindContainer)
			})
			if err == nil {
				d.container = -1
			}
			return err
		case "network":
			return d.network(row)
		case "volume":
			d.section = "volume"
			return d.array(func() error { return d.volume(row) })
		case "ephemeral-storage":
			d.section = proto.DeviceEphemeral
			dev, err := d.filesystem(row, proto.DeviceEphemeral)
			if err == nil {
				d.copyUsage(row, dev)
			}
			return err
		case "process_stats":
			d.section = "process_stats"
			return d.object(func(key []byte) error {
				if string(key) == "process_count" {
					return d.integer(&d.t.Values, row, proto.ProcessCount.Field())
				}
				return d.json.Skip()
			})
		}
		return d.common(row, key)
	})
	if err != nil {
		return err
	}
	d.section = ""
	d.endPod(row)
	d.nameless(row)
	return nil
}

// endPod settles what is known only when all of the pod has been read.
func (d *Decoder) endPod(row int) {
	v := &d.t.Values
	// process_stats has no time of its own: it is read with the pod's cgroup.
	if at, ok := v.Get(row, proto.GroupCPU.Time()); ok {
		if _, has := v.Get(row, proto.ProcessCount.Field()); has {
			v.Set(row, proto.GroupProcess.Time(), at)
		}
	}
	d.trustCgroup(row)
	e := &d.t.Entities[row]
	if e.Name == "" || e.Namespace == "" {
		return
	}
	key := podKey{e.Namespace, e.Name}
	other, twice := d.pods[key]
	if !twice {
		d.pods[key] = row
		return
	}
	d.pods[key] = d.older(other, row)
}

// trustCgroup flags a pod whose own cpu is told, unless nothing of its cgroup is to be trusted yet: a pod
// that has just started is reported with all zeros, or without cpu, until its cgroup has been sampled for
// the first time, while its containers have values already. Those zeros were not measured.
func (d *Decoder) trustCgroup(row int) {
	cpu, ok := d.t.Values.Get(row, proto.CPUUsage.Field())
	switch {
	case cpu > 0 || !d.anyChild(row, proto.CPUUsage):
		if ok {
			d.t.Entities[row].Flags |= proto.FlagCgroup
		}
	default:
		d.clearGroup(row, proto.GroupCPU)
		d.clearGroup(row, proto.GroupMemory)
		d.clearGroup(row, proto.GroupIO)
		d.clearGroup(row, proto.GroupSwap)
	}
}

// older kills the row that started earlier, or the first of two that started together, and
// returns the other.
func (d *Decoder) older(first, second int) (kept int) {
	a, _ := d.t.Values.Get(first, proto.FieldStart)
	b, _ := d.t.Values.Get(second, proto.FieldStart)
	d.dropped++
	if b < a {
		d.kill(second)
		return first
	}
	d.kill(first)
	return second
}

func (d *Decoder) kill(row int) {
	for len(d.dead) <= row {
		d.dead = append(d.dead, false)
	}
	d.dead[row] = true
}

// nameless kills a row that nobody could refer to.
func (d *Decoder) nameless(row int) {
	e := &d.t.Entities[row]
	if e.Name == "" || (e.Kind == proto.KindPod && e.Namespace == "") {
		d.dropped++
		d.kill(row)
	}
}

func (d *Decoder) anyChild(row int, id proto.MetricID) bool {
	for i := row + 1; i < len(d.t.Entities) && d.t.Entities[i].Kind == proto.KindContainer; i++ {
		if v, _ := d.t.Values.Get(i, id.Field()); v > 0 {
			return true
		}
	}
	return false
}

func (d *Decoder) clearGroup(row int, g proto.Group) {
	for _, c := range d.t.Values.All() {
		if c.Field == g.Time() {
			d.t.Values.Clear(row, c.Field)
			continue
		}
		if m := proto.MetricByID(proto.MetricID(c.Field)); m != nil && m.ID.Field() == c.Field && m.Group == g {
			d.t.Values.Clear(row, c.Field)
		}
	}
}

// systemNames are Heapster's names for the kubelet's.
func systemName(s string) string {
	switch s {
	case "runtime":
		return "docker-daemon"
	case "misc":
		return "system"
	}
	return s
}

func (d *Decoder) containerStats(parent int, kind proto.Kind) error {
	d.section = ""
	if len(d.t.Entities) >= maxRows {
		d.dropped++
		return d.json.Skip()
	}
	row := d.t.AddEntity(proto.Entity{Kind: kind, Parent: int32(parent)}) //nolint:gosec // below maxRows
	devices, extras := len(d.devices), len(d.t.Extras)
	rootfs, logs := -1, -1
	err := d.object(func(key []byte) (err error) {
		d.section = ""
		switch string(key) {
		case "name":
			d.section = "name"
			name, err := d.string()
			if kind == proto.KindSystemContainer {
				name = systemName(name)
			}
			d.t.Entities[row].Name = name
			return err
		case "rootfs":
			d.section = "rootfs"
			rootfs, err = d.filesystem(row, rootDevice)
			return err
		case "logs":
			d.section = "logs"
			logs, err = d.filesystem(row, logsDevice)
			return err
		case "accelerators":
			d.section = "accelerators"
			return d.array(func() error { return d.accelerator(row) })
		case "userDefinedMetrics":
			d.section = "userDefinedMetrics"
			return d.array(func() error { return d.custom(row, extras) })
		}
		return d.common(row, key)
	})
	if err != nil {
		return err
	}
	d.section = ""
	d.sumUsage(row, rootfs, logs)
	if at, ok := d.t.Values.Get(row, proto.GroupCPU.Time()); ok { // accelerators have no time of their own
		for i := devices; i < len(d.devices); i++ {
			if d.devices[i].Kind == proto.DeviceAccelerator {
				d.values.Set(i, proto.GroupDevice.Time(), at)
			}
		}
	}
	d.nameless(row)
	if name := d.t.Entities[row].Name; name != "" {
		key := childKey{parent, name}
		if other, twice := d.children[key]; twice {
			d.children[key] = d.older(other, row)
		} else {
			d.children[key] = row
		}
	}
	return nil
}

// common reads what nodes, pods and containers have alike; other keys are skipped.
func (d *Decoder) common(row int, key []byte) error {
	v := &d.t.Values
	switch string(key) {
	case "startTime":
		d.section = "startTime"
		return d.time(v, row, proto.FieldStart)
	case "cpu":
		d.section = "cpu"
		return d.object(func(key []byte) error {
			switch string(key) {
			case "time":
				return d.time(v, row, proto.GroupCPU.Time())
			case "usageCoreNanoSeconds":
				return d.integer(v, row, proto.CPUUsage.Field())
			case "psi":
				return d.pressure(row, proto.CPUPressure)
			}
			return d.json.Skip()
		})
	case "memory":
		d.section = "memory"
		return d.object(func(key []byte) error {
			switch string(key) {
			case "time":
				return d.time(v, row, proto.GroupMemory.Time())
			case "availableBytes":
				return d.integer(v, row, proto.MemoryAvailable.Field())
			case "usageBytes":
				return d.integer(v, row, proto.MemoryUsage.Field())
			case "workingSetBytes":
				return d.integer(v, row, proto.MemoryWorkingSet.Field())
			case "rssBytes":
				return d.integer(v, row, proto.MemoryRSS.Field())
			case "pageFaults":
				return d.integer(v, row, proto.MemoryPageFaults.Field())
			case "majorPageFaults":
				return d.integer(v, row, proto.MemoryMajorFaults.Field())
			case "psi":
				return d.pressure(row, proto.MemoryPressure)
			}
			return d.json.Skip()
		})
	case "io":
		d.section = "io"
		return d.object(func(key []byte) error {
			switch string(key) {
			case "time":
				return d.time(v, row, proto.GroupIO.Time())
			case "psi":
				return d.pressure(row, proto.IOPressure)
			}
			return d.json.Skip()
		})
	case "swap":
		d.section = "swap"
		return d.object(func(key []byte) error {
			switch string(key) {
			case "time":
				return d.time(v, row, proto.GroupSwap.Time())
			case "swapUsageBytes":
				return d.integer(v, row, proto.SwapUsage.Field())
			case "swapAvailableBytes":
				return d.integer(v, row, proto.SwapAvailable.Field())
			}
			return d.json.Skip()
		})
	}
	return d.json.Skip()
}

// pressure reads PSI: totals in nanoseconds, averages in percent, kept as hundredths.
func (d *Decoder) pressure(row int, first proto.MetricID) error {
	data := func(total proto.MetricID) error {
		return d.object(func(key []byte) error {
			avg := proto.MetricID(0)
			switch string(key) {
			case "total":
				return d.integer(&d.t.Values, row, (first + total).Field())
			case "avg10":
				avg = total + 1
			case "avg60":
				avg = total + 2
			case "avg300":
				avg = total + 3
			default:
				return d.json.Skip()
			}
			n, ok, err := d.number()
			if !ok {
				return err
			}
			v, ok := decimal(n, 2)
			if !ok || v > 1e8 {
				d.dropped++
				return nil
			}
			d.t.Values.Set(row, (first + avg).Field(), v)
			return nil
		})
	}
	return d.object(func(key []byte) error {
		switch string(key) {
		case "some":
			return data(proto.PressureSomeTotal)
		case "full":
			return data(proto.PressureFullTotal)
		}
		return d.json.Skip()
	})
}

// addDevice returns the index of a new device, or -1 where there are too many.
func (d *Decoder) addDevice(dev proto.Device) int {
	if len(d.devices) >= maxDevices {
		return -1
	}
	d.devices = append(d.devices, dev)
	return len(d.devices) - 1
}

// network reads the default interface into the entity's own columns, and every interface into a
// device.
func (d *Decoder) network(row int) error {
	d.section = "network"
	v := &d.t.Values
	from := len(d.devices)
	err := d.object(func(key []byte) error {
		switch string(key) {
		case "time":
			return d.time(v, row, proto.GroupNetwork.Time())
		case "rxBytes":
			return d.integer(v, row, proto.NetworkRx.Field())
		case "rxErrors":
			return d.integer(v, row, proto.NetworkRxErrors.Field())
		case "txBytes":
			return d.integer(v, row, proto.NetworkTx.Field())
		case "txErrors":
			return d.integer(v, row, proto.NetworkTxErrors.Field())
		case "interfaces":
			return d.array(func() error { return d.nic(row) })
		}
		return d.json.Skip()
	})
	if at, ok := v.Get(row, proto.GroupNetwork.Time()); ok && err == nil {
		for i := from; i < len(d.devices); i++ {
			d.values.Set(i, proto.GroupDevice.Time(), at)
		}
	}
	return err
}

func (d *Decoder) nic(row int) error {
	dev := d.addDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceInterface}) //nolint:gosec // below maxRows
	if dev < 0 {
		d.dropped++
		return d.json.Skip()
	}
	return d.object(func(key []byte) (err error) {
		switch string(key) {
		case "name":
			d.devices[dev].Name, err = d.string()
		case "rxBytes":
			err = d.integer(&d.values, dev, proto.InterfaceRx.Field())
		case "rxErrors":
			err = d.integer(&d.values, dev, proto.InterfaceRxErrors.Field())
		case "txBytes":
			err = d.integer(&d.values, dev, proto.InterfaceTx.Field())
		case "txErrors":
			err = d.integer(&d.values, dev, proto.InterfaceTxErrors.Field())
		default:
			err = d.json.Skip()
		}
		return err
	})
}

// filesystem reads an FsStats into a device of the row and returns it; -1: there was none.
func (d *Decoder) filesystem(row int, name string) (dev int, err error) {
	if d.json.Next() == jx.Null {
		return -1, d.json.Null()
	}
	dev = d.addDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: name}) //nolint:gosec // below maxRows
	if dev < 0 {
		d.dropped++
		return -1, d.json.Skip()
	}
	return dev, d.object(func(key []byte) error { return d.fsField(dev, key) })
}

func (d *Decoder) fsField(dev int, key []byte) error {
	switch string(key) {
	case "time":
		return d.time(&d.values, dev, proto.GroupDevice.Time())
	case "usedBytes":
		return d.integer(&d.values, dev, proto.FilesystemUsage.Field())
	case "capacityBytes":
		return d.integer(&d.values, dev, proto.FilesystemLimit.Field())
	case "availableBytes":
		return d.integer(&d.values, dev, proto.FilesystemAvailable.Field())
	case "inodes":
		return d.integer(&d.values, dev, proto.FilesystemInodes.Field())
	case "inodesFree":
		return d.integer(&d.values, dev, proto.FilesystemInodesFree.Field())
	case "inodesUsed":
		return d.integer(&d.values, dev, proto.FilesystemInodesUsed.Field())
	}
	return d.json.Skip()
}

func (d *Decoder) volume(row int) error {
	dev := d.addDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem}) //nolint:gosec // below maxRows
	if dev < 0 {
		d.dropped++
		return d.json.Skip()
	}
	return d.object(func(key []byte) error {
		switch string(key) {
		case "name":
			name, err := d.string()
			if err != nil || name == "" {
				return err
			}
			full, ok := d.interned[volumePrefix+name]
			if !ok {
				full = volumePrefix + name
				d.interned[full] = full
			}
			d.devices[dev].Name = full
			return nil
		case "pvcRef":
			return d.object(func(key []byte) (err error) {
				if string(key) != "name" {
					return d.json.Skip()
				}
				d.devices[dev].Claim, err = d.string()
				return err
			})
		}
		return d.fsField(dev, key)
	})
}

// copyUsage makes a file system's use the entity's ephemeral storage.
func (d *Decoder) copyUsage(row, dev int) {
	if dev < 0 {
		return
	}
	used, ok := d.values.Get(dev, proto.FilesystemUsage.Field())
	if !ok {
		return
	}
	d.t.Values.Set(row, proto.EphemeralUsage.Field(), used)
	if at, ok := d.values.Get(dev, proto.GroupDevice.Time()); ok {
		d.t.Values.Set(row, proto.GroupEphemeral.Time(), at)
	}
}

// sumUsage makes rootfs and logs a container's ephemeral storage, where both say what is used.
// Its time is the later of the two: the sum is new when either is.
func (d *Decoder) sumUsage(row, rootfs, logs int) {
	if rootfs < 0 || logs < 0 {
		return
	}
	a, ok1 := d.values.Get(rootfs, proto.FilesystemUsage.Field())
	b, ok2 := d.values.Get(logs, proto.FilesystemUsage.Field())
	if !ok1 || !ok2 {
		return
	}
	if a > math.MaxInt64-b {
		d.dropped++
		return
	}
	d.t.Values.Set(row, proto.EphemeralUsage.Field(), a+b)
	at, ok1 := d.values.Get(rootfs, proto.GroupDevice.Time())
	bt, ok2 := d.values.Get(logs, proto.GroupDevice.Time())
	if ok1 || ok2 {
		d.t.Values.Set(row, proto.GroupEphemeral.Time(), max(at, bt))
	}
}

func (d *Decoder) accelerator(row int) error {
	dev := d.addDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceAccelerator}) //nolint:gosec // below maxRows
	if dev < 0 {
		d.dropped++
		return d.json.Skip()
	}
	return d.object(func(key []byte) (err error) {
		switch string(key) {
		case "id":
			d.devices[dev].Name, err = d.string()
		case "make":
			d.devices[dev].Make, err = d.string()
		case "model":
			d.devices[dev].Model, err = d.string()
		case "memoryTotal":
			err = d.integer(&d.values, dev, proto.AcceleratorTotal.Field())
		case "memoryUsed":
			err = d.integer(&d.values, dev, proto.AcceleratorUsed.Field())
		case "dutyCycle":
			err = d.integer(&d.values, dev, proto.AcceleratorDuty.Field())
		default:
			err = d.json.Skip()
		}
		return err
	})
}

// custom reads one user-defined metric; the container's extras begin at first, and the last of
// those with one name wins.
func (d *Decoder) custom(row, first int) error {
	var name, kind string
	var value float64
	var has bool
	err := d.object(func(key []byte) (err error) {
		switch string(key) {
		case "name":
			name, err = d.string()
		case "type":
			kind, err = d.string()
		case "value":
			value, has, err = d.float()
		default:
			err = d.json.Skip()
		}
		return err
	})
	if err != nil {
		return err
	}
	switch kind {
	case "gauge", "cumulative", "delta":
	default:
		has = false
	}
	if !has || name == "" {
		d.dropped++
		return nil
	}
	x := proto.Extra{Entity: int32(row), Name: customPrefix + name, Counter: kind == "cumulative", Value: proto.Float(value)} //nolint:gosec // below maxRows
	for i := first; i < len(d.t.Extras); i++ {
		if d.t.Extras[i].Name == x.Name {
			d.t.Extras[i] = x
			return nil
		}
	}
	if len(d.t.Extras)-first >= proto.MaxExtras {
		d.dropped++
		return nil
	}
	d.t.Extras = append(d.t.Extras, x)
	return nil
}
