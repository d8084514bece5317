package simcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// containerInfo is what cAdvisor told of one cgroup before Kubernetes 1.18, in the parts that anybody read (cAdvisor's
// API v1).
type containerInfo struct {
	Name    string            `json:"name"`
	Aliases []string          `json:"aliases,omitempty"`
	Spec    containerSpec     `json:"spec"`
	Stats   []containerSample `json:"stats,omitempty"`
}

type containerSpec struct {
	Created       time.Time         `json:"creation_time"`
	Labels        map[string]string `json:"labels,omitempty"`
	HasCPU        bool              `json:"has_cpu"`
	HasMemory     bool              `json:"has_memory"`
	Memory        memorySpec        `json:"memory"`
	HasNetwork    bool              `json:"has_network"`
	HasFilesystem bool              `json:"has_filesystem"`
	HasDisk       bool              `json:"has_diskio"`
	HasCustom     bool              `json:"has_custom_metrics"`
	Image         string            `json:"image,omitempty"`
}

type memorySpec struct {
	Limit uint64 `json:"limit"`
}

type containerSample struct {
	Time time.Time `json:"timestamp"`
	CPU  struct {
		Usage struct {
			Total uint64 `json:"total"`
		} `json:"usage"`
		Load uint64 `json:"load_average"`
	} `json:"cpu"`
	Memory struct {
		Usage  uint64     `json:"usage"`
		Cache  uint64     `json:"cache"`
		RSS    uint64     `json:"rss"`
		Swap   uint64     `json:"swap"`
		WS     uint64     `json:"working_set"`
		Own    pageFaults `json:"container_data"`
		Within pageFaults `json:"hierarchical_data"`
	} `json:"memory"`
	Network struct {
		Interfaces []dumpedInterface `json:"interfaces,omitempty"`
	} `json:"network"`
	Filesystems []dumpedFilesystem `json:"filesystem,omitempty"`
	Disk        struct {
		Bytes []dumpedDisk `json:"io_service_bytes,omitempty"`
	} `json:"diskio"`
}

type pageFaults struct {
	All   uint64 `json:"pgfault"`
	Major uint64 `json:"pgmajfault"`
}

type dumpedInterface struct {
	Name     string `json:"name"`
	Rx       uint64 `json:"rx_bytes"`
	RxErrors uint64 `json:"rx_errors"`
	Tx       uint64 `json:"tx_bytes"`
	TxErrors uint64 `json:"tx_errors"`
}

type dumpedFilesystem struct {
	Device     string `json:"device"`
	Capacity   uint64 `json:"capacity"`
	Usage      uint64 `json:"usage"`
	Available  uint64 `json:"available"`
	HasInodes  bool   `json:"has_inodes"`
	Inodes     uint64 `json:"inodes"`
	InodesFree uint64 `json:"inodes_free"`
}

type dumpedDisk struct {
	Device string            `json:"device"`
	Major  uint64            `json:"major"`
	Minor  uint64            `json:"minor"`
	Stats  map[string]uint64 `json:"stats"`
}

// appendContainerStats appends the answer to POST /stats/container/ for the whole node; asked for less, or for a past, it
// refuses, as nothing here asks for that.
func (n *Node) appendContainerStats(b []byte, body io.Reader, now time.Time) ([]byte, error) {
	var ask struct {
		Container     string `json:"containerName"`
		Samples       int    `json:"num_stats"`
		Subcontainers bool   `json:"subcontainers"`
	}
	if err := json.NewDecoder(io.LimitReader(body, 1<<20)).Decode(&ask); err != nil {
		return b, fmt.Errorf("decode request for container stats: %w", err)
	}
	if ask.Container != "/" || ask.Samples != 1 || !ask.Subcontainers {
		return b, errors.New("only the last sample of / with its subcontainers is simulated")
	}
	out := map[string]containerInfo{}
	for _, g := range n.cgroups(now) {
		out[g.id] = g.info()
	}
	answer, err := json.Marshal(out)
	return append(b, answer...), err
}

func (g *cgroup) info() containerInfo {
	at := func(ns int64) time.Time { return time.Unix(0, ns).UTC() }
	c := containerInfo{Name: g.id, Spec: containerSpec{Created: at(g.start), HasCPU: true, HasMemory: true, Memory: memorySpec{g.usage.limit},
		HasNetwork: len(g.net) > 0, HasFilesystem: len(g.fs) > 0, HasDisk: g.disk, Image: g.image}}
	if g.usage.limit == 0 {
		c.Spec.Memory.Limit = 1<<64 - 1
	}
	if g.name != "" { // those of the runtime have labels, a pod's cgroup has none
		name := g.container
		if g.sandbox {
			name = "POD"
		}
		c.Aliases = []string{"k8s_" + name + "_" + g.pod + "_" + g.namespace + "_" + g.uid + "_0", g.name}
		c.Spec.Labels = map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.name": g.pod, "io.kubernetes.pod.namespace": g.namespace, "io.kubernetes.pod.uid": g.uid}
	}
	s := containerSample{Time: at(g.usage.at)}
	s.CPU.Usage.Total, s.CPU.Load = g.usage.cpu, g.usage.rate/1e6
	s.Memory.Usage, s.Memory.Cache, s.Memory.RSS, s.Memory.WS = g.usage.usage, g.cache(), g.usage.rss, g.usage.ws
	s.Memory.Own = pageFaults{g.usage.faults, g.usage.majors}
	s.Memory.Within = s.Memory.Own
	for _, i := range g.net {
		s.Network.Interfaces = append(s.Network.Interfaces, dumpedInterface{i.name, i.rx, i.rxe, i.tx, i.e})
	}
	for _, f := range g.fs {
		s.Filesystems = append(s.Filesystems, dumpedFilesystem{"/dev/vda", f.capacity, f.used, f.avail, true, f.inodes, f.inodesFree})
	}
	if g.disk {
		read, written := g.io()
		s.Disk.Bytes = []dumpedDisk{{"/dev/vda", 254, 0, map[string]uint64{"Read": read, "Write": written, "Total": read + written}}}
	}
	c.Stats = []containerSample{s}
	return c
}
