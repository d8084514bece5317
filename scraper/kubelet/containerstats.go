package kubelet

import (
	"errors"
	"io"

	"github.com/go-faster/jx"

	"github.com/heapstream/heapstream/proto"
)

// The labels by which Docker's containers say whose they are.
const (
	labelContainer = "io.kubernetes.container.name"
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
)

// containerSpec is what a cgroup has, and what it is given.
type containerSpec struct {
	cpu, memory, network, filesystem, disk, processes bool

	started int64
	limit   int64 // of memory; 0: none
	custom  map[string]customKind
}

type customKind struct{ counter, float bool }

// ContainerStats is Decode for FormContainerStats: cAdvisor's v1 ContainerInfo of every cgroup.
func (d *Decoder) ContainerStats(data []byte, b *proto.Batch) error {
	d.beginCgroups(b)
	d.json.ResetBytes(data)
	err := d.containerInfos()
	d.json.ResetBytes(nil)
	if err == nil {
		d.section = ""
		err = d.settle()
	}
	if err != nil {
		reason := BadAnswer
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			reason = HalfAnswer
		}
		return &Error{Reason: reason, Node: b.Node, What: FormContainerStats.decode(), Detail: d.section, Err: err}
	}
	b.Dropped += d.dropped
	return nil
}

func (d *Decoder) containerInfos() error {
	return d.answer(func(key []byte) error {
		if len(key) > maxName {
			d.dropped++
			return d.json.Skip()
		}
		d.section = d.intern(key)
		return d.containerInfo(d.section)
	})
}

// containerInfo reads one cgroup. Its path is its name, or the key where that is missing. What it is
// comes before its values, whatever the order of the JSON; of its samples the last one counts.
func (d *Decoder) containerInfo(path string) error {
	g := cgroup{path: path}
	var spec, sample jx.Raw
	err := d.object(func(key []byte) (err error) {
		switch string(key) {
		case "name":
			name, err := d.string()
			if name != "" {
				g.path = name
			}
			return err
		case "aliases":
			first := true
			return d.array(func() error {
				name, err := d.string()
				if first {
					g.name, first = name, false
				}
				return err
			})
		case "spec":
			spec, err = d.json.Raw()
		case "stats":
			err = d.array(func() (err error) {
				sample, err = d.json.Raw()
				return err
			})
		default:
			err = d.json.Skip()
		}
		return err
	})
	if err != nil || sample == nil { // nothing was measured, so there is nothing to tell
		return err
	}
	outer := d.json
	defer func() { d.json = outer }()
	s := containerSpec{}
	if spec != nil {
		d.json = *jx.DecodeBytes(spec)
		if err := d.containerSpec(&g, &s); err != nil {
			return err
		}
	}
	i := d.cgroups.add(g)
	if i < 0 {
		d.dropped++
		return nil
	}
	if s.started != 0 {
		d.cgroups.values.Set(i, proto.FieldStart, s.started)
	}
	d.cgroups.limits[i] = s.limit
	d.json = *jx.DecodeBytes(sample)
	return d.containerSample(i, &s)
}

func (d *Decoder) containerSpec(g *cgroup, s *containerSpec) error {
	return d.object(func(key []byte) (err error) {
		switch string(key) {
		case "creation_time":
			s.started, _, err = d.instant()
		case "labels":
			err = d.object(func(key []byte) (err error) {
				switch string(key) {
				case labelContainer:
					g.container, err = d.string()
				case labelPod:
					g.pod, err = d.string()
				case labelNamespace:
					g.namespace, err = d.string()
				case labelUID:
					g.uid, err = d.string()
				default:
					err = d.json.Skip()
				}
				return err
			})
		case "has_cpu":
			s.cpu, err = d.boolean()
		case "has_memory":
			s.memory, err = d.boolean()
		case "has_network":
			s.network, err = d.boolean()
		case "has_filesystem":
			s.filesystem, err = d.boolean()
		case "has_diskio":
			s.disk, err = d.boolean()
		case "has_processes":
			s.processes, err = d.boolean()
		case "memory":
			err = d.object(func(key []byte) error {
				if string(key) != "limit" {
					return d.json.Skip()
				}
				n, ok, err := d.number()
				if ok {
					s.limit, _ = decimal(n, 0) // none is written as the largest number there is
				}
				return err
			})
		case "image":
			g.image, err = d.string()
		case "custom_metrics":
			err = d.array(func() error { return d.customSpec(s) })
		default:
			err = d.json.Skip()
		}
		return err
	})
}

// customSpec reads of what kind a custom metric is; of any other kind than these it is left out.
func (d *Decoder) customSpec(s *containerSpec) error {
	var name, kind, format string
	err := d.object(func(key []byte) (err error) {
		switch string(key) {
		case "name":
			name, err = d.string()
		case "type":
			kind, err = d.string()
		case "format":
			format, err = d.string()
		default:
			err = d.json.Skip()
		}
		return err
	})
	if err != nil {
		return err
	}
	if name == "" || kind != "gauge" && kind != "cumulative" || format != "int" && format != "float" || len(s.custom) >= proto.MaxExtras {
		d.dropped++
		return nil
	}
	if s.custom == nil {
		s.custom = map[string]customKind{}
	}
	s.custom[name] = customKind{counter: kind == "cumulative", float: format == "float"}
	return nil
}

// containerSample reads the values that the spec says a cgroup has.
func (d *Decoder) containerSample(i int, s *containerSpec) error {
	v := &d.cgroups.values
	devices := len(d.devices)
	at := int64(0)
	err := d.object(func(key []byte) (err error) {
		switch section := string(key); {
		case section == "timestamp":
			at, _, err = d.instant()
		case section == "cpu" && s.cpu:
			err = d.object(func(key []byte) error {
				switch string(key) {
				case "usage":
					return d.object(func(key []byte) error {
						if string(key) == "total" {
							return d.integer(v, i, proto.CPUUsage.Field())
						}
						return d.json.Skip()
					})
				case "load_average":
					return d.integer(v, i, proto.CPULoad.Field())
				}
				return d.json.Skip()
			})
		case section == "memory" && s.memory:
			err = d.object(func(key []byte) error {
				switch string(key) {
				case "usage":
					return d.integer(v, i, proto.MemoryUsage.Field())
				case "cache":
					return d.integer(v, i, proto.MemoryCache.Field())
				case "rss":
					return d.integer(v, i, proto.MemoryRSS.Field())
				case "working_set":
					return d.integer(v, i, proto.MemoryWorkingSet.Field())
				case "swap":
					return d.integer(v, i, proto.SwapUsage.Field())
				case "container_data":
					return d.object(func(key []byte) error {
						switch string(key) {
						case "pgfault":
							return d.integer(v, i, proto.MemoryPageFaults.Field())
						case "pgmajfault":
							return d.integer(v, i, proto.MemoryMajorFaults.Field())
						}
						return d.json.Skip()
					})
				}
				return d.json.Skip()
			})
		case section == "network" && s.network:
			err = d.object(func(key []byte) error {
				if string(key) == "interfaces" {
					return d.array(func() error { return d.containerNIC(i) })
				}
				return d.json.Skip()
			})
		case section == "filesystem" && s.filesystem:
			err = d.array(func() error { return d.containerFS(i) })
		case section == "diskio" && s.disk:
			err = d.object(func(key []byte) error {
				if string(key) == "io_service_bytes" {
					return d.array(func() error { return d.containerDisk(i) })
				}
				return d.json.Skip()
			})
		case section == "accelerators":
			err = d.array(func() error { return d.containerAccelerator(i) })
		case section == "processes" && s.processes:
			err = d.object(func(key []byte) error {
				if string(key) == "process_count" {
					return d.integer(v, i, proto.ProcessCount.Field())
				}
				return d.json.Skip()
			})
		case section == "custom_metrics":
			err = d.object(func(key []byte) error {
				kind, known := s.custom[string(key)]
				if !known {
					return d.json.Skip()
				}
				return d.customSample(i, d.intern(key), kind)
			})
		default:
			err = d.json.Skip()
		}
		return err
	})
	if err != nil || at == 0 {
		return err
	}
	for _, c := range v.All() {
		if c.Present.Has(i) {
			if g := groupOf(c.Field); g != proto.GroupNone {
				v.Set(i, g.Time(), at)
			}
		}
	}
	for dev := devices; dev < len(d.devices); dev++ {
		d.values.Set(dev, proto.GroupDevice.Time(), at)
	}
	return nil
}

// device reads a device of a cgroup: its names by name, the rest by field. Values are first put aside,
// as the name may come last.
func (d *Decoder) device(i int, kind proto.DeviceKind, field func(key []byte, to *proto.Columns, dev int) (string, error)) (int, error) {
	dev := d.addDevice(proto.Device{Entity: int32(i), Kind: kind}) //nolint:gosec // below maxRows
	if dev < 0 {
		d.dropped++
		return -1, d.json.Skip()
	}
	err := d.object(func(key []byte) error {
		name, err := field(key, &d.values, dev)
		if name != "" {
			d.devices[dev].Name = name
		}
		return err
	})
	return dev, err
}

func (d *Decoder) containerNIC(i int) error {
	dev, err := d.device(i, proto.DeviceInterface, func(key []byte, to *proto.Columns, dev int) (string, error) {
		switch string(key) {
		case "name":
			return d.string()
		case "rx_bytes":
			return "", d.integer(to, dev, proto.InterfaceRx.Field())
		case "rx_errors":
			return "", d.integer(to, dev, proto.InterfaceRxErrors.Field())
		case "tx_bytes":
			return "", d.integer(to, dev, proto.InterfaceTx.Field())
		case "tx_errors":
			return "", d.integer(to, dev, proto.InterfaceTxErrors.Field())
		}
		return "", d.json.Skip()
	})
	if err != nil || dev < 0 {
		return err
	}
	for _, id := range []proto.MetricID{proto.InterfaceRx, proto.InterfaceRxErrors, proto.InterfaceTx, proto.InterfaceTxErrors} {
		if v, ok := d.values.Get(dev, id.Field()); ok {
			d.addNetwork(i, id, v, 0)
		}
	}
	return nil
}

func (d *Decoder) containerFS(i int) error {
	hasInodes := false
	dev, err := d.device(i, proto.DeviceFilesystem, func(key []byte, to *proto.Columns, dev int) (name string, err error) {
		switch string(key) {
		case "device":
			return d.string()
		case "usage":
			err = d.integer(to, dev, proto.FilesystemUsage.Field())
		case "capacity":
			err = d.integer(to, dev, proto.FilesystemLimit.Field())
		case "available":
			err = d.integer(to, dev, proto.FilesystemAvailable.Field())
		case "has_inodes":
			hasInodes, err = d.boolean()
		case "inodes":
			err = d.integer(to, dev, proto.FilesystemInodes.Field())
		case "inodes_free":
			err = d.integer(to, dev, proto.FilesystemInodesFree.Field())
		default:
			err = d.json.Skip()
		}
		return "", err
	})
	if dev >= 0 && !hasInodes {
		d.values.Clear(dev, proto.FilesystemInodes.Field())
		d.values.Clear(dev, proto.FilesystemInodesFree.Field())
	}
	return err
}

func (d *Decoder) containerDisk(i int) error {
	var major, minor string
	dev, err := d.device(i, proto.DeviceDisk, func(key []byte, to *proto.Columns, dev int) (string, error) {
		switch string(key) {
		case "device":
			return d.string()
		case "major", "minor":
			n, ok, err := d.number()
			if ok && len(n) < 16 {
				if string(key) == "major" {
					major = n.String()
				} else {
					minor = n.String()
				}
			}
			return "", err
		case "stats":
			// What is not there was not read or written.
			to.Set(dev, proto.DiskRead.Field(), 0)
			to.Set(dev, proto.DiskWrite.Field(), 0)
			return "", d.object(func(key []byte) error {
				switch string(key) {
				case "Read":
					return d.integer(to, dev, proto.DiskRead.Field())
				case "Write":
					return d.integer(to, dev, proto.DiskWrite.Field())
				}
				return d.json.Skip()
			})
		}
		return "", d.json.Skip()
	})
	if dev >= 0 && d.devices[dev].Name == "" && major != "" {
		d.devices[dev].Name = major + ":" + minor
	}
	return err
}

func (d *Decoder) containerAccelerator(i int) error {
	_, err := d.device(i, proto.DeviceAccelerator, func(key []byte, to *proto.Columns, dev int) (name string, err error) {
		switch string(key) {
		case "id":
			return d.string()
		case "make":
			d.devices[dev].Make, err = d.string()
		case "model":
			d.devices[dev].Model, err = d.string()
		case "memory_total":
			err = d.integer(to, dev, proto.AcceleratorTotal.Field())
		case "memory_used":
			err = d.integer(to, dev, proto.AcceleratorUsed.Field())
		case "duty_cycle":
			err = d.integer(to, dev, proto.AcceleratorDuty.Field())
		default:
			err = d.json.Skip()
		}
		return "", err
	})
	return err
}

// customSample keeps the newest sample of a custom metric.
func (d *Decoder) customSample(i int, name string, kind customKind) error {
	x := proto.Extra{Entity: int32(i), Name: customPrefix + name, Counter: kind.counter} //nolint:gosec // below maxRows
	newest, some := int64(-1), false
	err := d.array(func() error {
		at, whole, part := int64(0), int64(0), float64(0)
		err := d.object(func(key []byte) (err error) {
			switch string(key) {
			case "timestamp":
				at, _, err = d.instant()
			case "int_value":
				n, ok, err := d.number()
				if ok {
					if whole, err = n.Int64(); err != nil {
						d.dropped++
					}
				}
				return err
			case "float_value":
				part, _, err = d.float()
			default:
				err = d.json.Skip()
			}
			return err
		})
		if err != nil || at <= newest {
			return err
		}
		newest, some = at, true
		if x.Value = proto.Int(whole); kind.float {
			x.Value = proto.Float(part)
		}
		return nil
	})
	if some {
		d.extras = append(d.extras, x)
	}
	return err
}

func (d *Decoder) boolean() (bool, error) {
	switch d.json.Next() {
	case jx.Bool:
		return d.json.Bool()
	case jx.Null:
		return false, d.json.Null()
	}
	d.dropped++
	return false, d.json.Skip()
}
