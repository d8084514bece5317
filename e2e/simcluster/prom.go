package simcluster

import (
	"encoding/hex"
	"strconv"
	"time"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// cgroup is what the Prometheus answers and cAdvisor's dump tell of one cgroup.
type cgroup struct {
	namespace, pod, container string // container "" = of the pod or its sandbox, pod "" = of no pod
	uid                       string // of the pod
	id, image, name           string
	sandbox                   bool // the pod's, which has its network
	start                     int64
	usage                     usage
	net                       []iface
	disk                      bool // it tells of reads and writes
	fs                        []fsUse
}

// sandboxOf is the cgroup of a pod's pause container: a few kilobytes that do nothing.
func sandboxOf(pod *cgroup, name string, at, start int64, net []iface) cgroup {
	id := splitmix(uint64(start) ^ 0x9a05e)
	u := usage{at: at, id: id, age: at - start, cpu: 24_000_000, ws: 232 << 10, rss: 40 << 10, usage: 480 << 10, faults: 1092}
	return cgroup{namespace: pod.namespace, pod: pod.pod, uid: pod.uid, id: pod.id + "/" + name, image: "registry.k8s.io/pause:3.10", name: name, sandbox: true, start: start, usage: u, net: net}
}

// cgroups of the node at a time: the node, the cgroups of no pod, then the pods, each followed by its sandbox and its
// containers.
func (n *Node) cgroups(now time.Time) []cgroup {
	if n.recorded != nil {
		return n.recorded.cgroups(now)
	}
	st := n.state.Load()
	ns := now.UnixNano()
	u := n.usage(st, ns)
	host := n.interfaces(u.at)
	boot := n.created + 30*int64(time.Second)
	out := []cgroup{{id: "/", start: n.created, usage: u, net: host[:], disk: true, fs: []fsUse{n.diskUse(ns)}}}
	for i, path := range []string{"/system.slice/kubelet.service", "/system.slice/containerd.service"} {
		out = append(out, cgroup{id: path, start: boot, usage: n.systemUsage(i, ns), disk: true})
	}
	out = append(out, cgroup{id: "/kubepods", start: boot, usage: n.podsUsage(st, ns)})
	for _, p := range st.pods {
		if p.finished != 0 || ns < p.started {
			continue
		}
		g := cgroup{namespace: p.w.ns, pod: p.name, uid: p.uid, id: "/kubepods/pod" + p.uid, start: p.started, usage: p.usage(ns)}
		s, _ := sampleAt(p.id^0x4e, ns)
		s = max(s, p.started)
		net := []iface(nil)
		if !p.w.hostNet {
			rx, tx := netRate(p.id)
			net = []iface{{"eth0", integral(p.id^0x4e, rx, s-p.started), integral(p.id^0x4f, tx, s-p.started), 0, 0}}
		} else { // the host's, as its kubelet tells
			i := n.interfaces(s)
			net = i[:]
		}
		out = append(out, g, sandboxOf(&g, containerID(p.id ^ 0x9a05e)[len("containerd://"):], s, p.started, net))
		for i := range p.containers {
			c := &p.containers[i]
			u, ok := c.usage(ns)
			if !ok {
				continue
			}
			id := containerID(c.id)[len("containerd://"):]
			out = append(out, cgroup{namespace: p.w.ns, pod: p.name, uid: p.uid, container: c.t.name, id: g.id + "/" + id, image: c.t.image, name: id, start: c.start, usage: u, disk: true})
		}
	}
	return out
}

// io is what a cgroup has read from and written to the disk.
func (g *cgroup) io() (read, written uint64) {
	return integral(g.usage.id^0xd15, 40e3, g.usage.age) &^ 4095, integral(g.usage.id^0xd16, 120e3, g.usage.age) &^ 4095
}

// cache is the page cache of a cgroup.
func (g *cgroup) cache() uint64 { return g.usage.usage - min(g.usage.usage, g.usage.rss) }

// machine is how a node's machine is identified, by its kubelet in the API and in its answers.
func (n *Node) machine() (id, system, boot string) {
	return hex.EncodeToString([]byte(n.uid[:16])), n.uid, uidOf(mix(n.id, 40))
}

// promWriter appends the Prometheus text format.
type promWriter struct{ b []byte }

func (w *promWriter) family(name, help, kind string) {
	w.b = append(w.b, "# HELP "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = append(w.b, help...)
	w.b = append(w.b, "\n# TYPE "...)
	w.b = append(w.b, name...)
	w.b = append(w.b, ' ')
	w.b = append(w.b, kind...)
	w.b = append(w.b, '\n')
}

// sample writes one line; labels come as name, value, …; at 0 means no timestamp.
func (w *promWriter) sample(name string, v float64, at int64, labels ...string) {
	w.b = append(w.b, name...)
	for i := 0; i+1 < len(labels); i += 2 {
		if i == 0 {
			w.b = append(w.b, '{')
		} else {
			w.b = append(w.b, ',')
		}
		w.b = append(w.b, labels[i]...)
		w.b = append(w.b, '=')
		w.b = strconv.AppendQuote(w.b, labels[i+1])
	}
	if len(labels) > 0 {
		w.b = append(w.b, '}')
	}
	w.b = append(w.b, ' ')
	w.b = strconv.AppendFloat(w.b, v, 'g', -1, 64)
	if at != 0 {
		w.b = append(w.b, ' ')
		w.b = strconv.AppendInt(w.b, at/1e6, 10)
	}
	w.b = append(w.b, '\n')
}

// appendResourceMetrics appends the answer to /metrics/resource.
func (n *Node) appendResourceMetrics(b []byte, now time.Time) []byte {
	w := &promWriter{b}
	all := n.cgroups(now)
	each := func(level string, f func(g *cgroup, labels []string)) {
		for i := range all {
			g := &all[i]
			switch {
			case level == "container" && g.container != "":
				f(g, []string{"container", g.container, "namespace", g.namespace, "pod", g.pod})
			case level == "node" && g.id == "/":
				f(g, nil)
			case level == "pod" && g.pod != "" && g.container == "" && !g.sandbox:
				f(g, []string{"namespace", g.namespace, "pod", g.pod})
			}
		}
	}
	cpu := func(level string) {
		name := level + "_cpu_usage_seconds_total"
		w.family(name, "[STABLE] Cumulative cpu time consumed by the "+level+" in core-seconds", "counter")
		each(level, func(g *cgroup, l []string) { w.sample(name, float64(g.usage.cpu)/1e9, g.usage.at, l...) })
	}
	gauge := func(name, help, level string, v func(*cgroup) float64, stamped bool) {
		w.family(name, help, "gauge")
		each(level, func(g *cgroup, l []string) {
			at := g.usage.at
			if !stamped {
				at = 0
			}
			w.sample(name, v(g), at, l...)
		})
	}
	ws := func(g *cgroup) float64 { return float64(g.usage.ws) }
	none := func(*cgroup) float64 { return 0 }
	cpu("container")
	gauge("container_memory_working_set_bytes", "[STABLE] Current working set of the container in bytes", "container", ws, true)
	gauge("container_start_time_seconds", "[STABLE] Start time of the container since unix epoch in seconds", "container",
		func(g *cgroup) float64 { return float64(g.start) / 1e9 }, false)
	gauge("container_swap_limit_bytes", "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems", "container",
		func(g *cgroup) float64 { return float64(g.usage.limit) }, true)
	gauge("container_swap_usage_bytes", "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems", "container", none, true)
	for _, level := range []string{"node", "pod"} {
		cpu(level)
		gauge(level+"_memory_working_set_bytes", "[STABLE] Current working set of the "+level+" in bytes", level, ws, true)
		gauge(level+"_swap_usage_bytes", "[ALPHA] Current amount of the "+level+" swap usage in bytes. Reported only on non-windows systems", level, none, true)
	}
	w.family("resource_scrape_error", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise", "gauge")
	w.sample("resource_scrape_error", 0, 0)
	return w.b
}

// appendCadvisorMetrics appends the answer to /metrics/cadvisor: of the families of a real one, those that tell what
// somebody reads, and one that nobody does.
func (n *Node) appendCadvisorMetrics(b []byte, now time.Time) []byte {
	w := &promWriter{b}
	all := n.cgroups(now)
	labels := func(g *cgroup, more ...string) []string {
		l := append([]string{"container", g.container}, more...)
		return append(l, "id", g.id, "image", g.image, "name", g.name, "namespace", g.namespace, "pod", g.pod)
	}
	each := func(name, help, kind string, v func(*cgroup) float64, more ...string) {
		w.family(name, help, kind)
		for i := range all {
			w.sample(name, v(&all[i]), all[i].usage.at, labels(&all[i], more...)...)
		}
	}
	each("container_cpu_load_average_10s", "Value of container cpu load average over the last 10 seconds.", "gauge", func(g *cgroup) float64 { return float64(g.usage.rate / 1e6) })
	each("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter", func(g *cgroup) float64 { return float64(g.usage.cpu) / 1e9 }, "cpu", "total")
	each("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", "counter", func(g *cgroup) float64 { return float64(g.usage.cpu/10e6*7) / 100 })
	disks := func(name, help string, v func(*cgroup) uint64) {
		w.family(name, help, "counter")
		for i := range all {
			if g := &all[i]; g.disk {
				w.sample(name, float64(v(g)), g.usage.at, labels(g, "device", "/dev/vda")...)
			}
		}
	}
	filesystems := func(name, help string, v func(fsUse) uint64) {
		w.family(name, help, "gauge")
		for i := range all {
			for _, f := range all[i].fs {
				w.sample(name, float64(v(f)), f.at, labels(&all[i], "device", "/dev/vda")...)
			}
		}
	}
	filesystems("container_fs_inodes_free", "Number of available Inodes", func(f fsUse) uint64 { return f.inodesFree })
	filesystems("container_fs_inodes_total", "Number of Inodes", func(f fsUse) uint64 { return f.inodes })
	filesystems("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", func(f fsUse) uint64 { return f.capacity })
	disks("container_fs_reads_bytes_total", "Cumulative count of bytes read", func(g *cgroup) uint64 { r, _ := g.io(); return r })
	filesystems("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", func(f fsUse) uint64 { return f.used })
	disks("container_fs_writes_bytes_total", "Cumulative count of bytes written", func(g *cgroup) uint64 { _, w := g.io(); return w })
	each("container_memory_cache", "Number of bytes of page cache memory.", "gauge", func(g *cgroup) float64 { return float64(g.cache()) })
	w.family("container_memory_failures_total", "Cumulative count of memory allocation failures.", "counter")
	for _, kind := range []string{"pgfault", "pgmajfault"} {
		for i := range all {
			v := all[i].usage.faults
			if kind == "pgmajfault" {
				v = all[i].usage.majors
			}
			for _, scope := range []string{"container", "hierarchy"} {
				w.sample("container_memory_failures_total", float64(v), all[i].usage.at, append(labels(&all[i], "failure_type", kind), "scope", scope)...)
			}
		}
	}
	each("container_memory_rss", "Size of RSS in bytes.", "gauge", func(g *cgroup) float64 { return float64(g.usage.rss) })
	each("container_memory_swap", "Container swap usage in bytes.", "gauge", func(*cgroup) float64 { return 0 })
	each("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", "gauge",
		func(g *cgroup) float64 { return float64(g.usage.usage) })
	each("container_memory_working_set_bytes", "Current working set in bytes.", "gauge", func(g *cgroup) float64 { return float64(g.usage.ws) })
	for _, f := range []struct {
		name, help string
		v          func(iface) uint64
	}{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", func(i iface) uint64 { return i.rx }},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", func(i iface) uint64 { return i.rxe }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", func(i iface) uint64 { return i.tx }},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", func(i iface) uint64 { return i.e }},
	} {
		w.family(f.name, f.help, "counter")
		for i := range all {
			g := &all[i]
			for _, in := range g.net {
				w.sample(f.name, float64(f.v(in)), g.usage.at, "container", g.container, "id", g.id, "image", g.image, "interface", in.name, "name", g.name, "namespace", g.namespace, "pod", g.pod)
			}
		}
	}
	each("container_processes", "Number of processes running inside the container.", "gauge", func(g *cgroup) float64 {
		if g.name == "" {
			return 0
		}
		return 1
	})
	unstamped := func(name, help string, v func(*cgroup) float64) {
		w.family(name, help, "gauge")
		for i := range all {
			w.sample(name, v(&all[i]), 0, labels(&all[i])...)
		}
	}
	unstamped("container_spec_memory_limit_bytes", "Memory limit for the container.", func(g *cgroup) float64 { return float64(g.usage.limit) })
	unstamped("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", func(g *cgroup) float64 { return float64(g.start / 1e9) })
	id, system, boot := n.machine()
	w.family("machine_cpu_cores", "Number of logical CPU cores.", "gauge")
	w.sample("machine_cpu_cores", float64(n.cores), 0, "boot_id", boot, "machine_id", id, "system_uuid", system)
	w.family("machine_memory_bytes", "Amount of memory installed on the machine.", "gauge")
	w.sample("machine_memory_bytes", float64(n.memory), 0, "boot_id", boot, "machine_id", id, "system_uuid", system)
	return w.b
}

// usageOf reads a usage from a summary.
func usageOf(cpu *stats.CPUStats, mem *stats.MemoryStats) (u usage) {
	get := func(p *uint64) uint64 {
		if p == nil {
			return 0
		}
		return *p
	}
	if cpu != nil {
		u.at, u.cpu, u.rate = cpu.Time.UnixNano(), get(cpu.UsageCoreNanoSeconds), get(cpu.UsageNanoCores)
	}
	if mem != nil {
		u.ws, u.rss, u.usage, u.faults, u.majors = get(mem.WorkingSetBytes), get(mem.RSSBytes), get(mem.UsageBytes), get(mem.PageFaults), get(mem.MajorPageFaults)
		if mem.AvailableBytes != nil {
			u.limit = u.ws + *mem.AvailableBytes
		}
	}
	return u
}
