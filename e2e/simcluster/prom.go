package simcluster

import (
	"strconv"
	"time"

	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// cgroup is what the Prometheus answers tell of one cgroup.
type cgroup struct {
	namespace, pod, container string // container "" = of the pod, pod "" = of the node
	id, image, name           string
	start                     int64
	usage                     usage
	net                       []iface
	netAt                     int64
}

// cgroups of the node at a time: the node, then the pods, each followed by its containers.
func (n *Node) cgroups(now time.Time) []cgroup {
	if n.recorded != nil {
		return n.recorded.cgroups(now)
	}
	st := n.state.Load()
	ns := now.UnixNano()
	u := n.usage(st, ns)
	host := n.interfaces(u.at)
	out := []cgroup{{id: "/", start: n.created, usage: u, net: host[:], netAt: u.at}}
	for _, p := range st.pods {
		if p.finished != 0 || ns < p.started {
			continue
		}
		path := "/kubepods/pod" + p.uid
		g := cgroup{namespace: p.w.ns, pod: p.name, id: path, start: p.started, usage: p.usage(ns)}
		if !p.w.hostNet {
			s, _ := sampleAt(p.id^0x4e, ns)
			s = max(s, p.started)
			rx, tx := netRate(p.id)
			g.net, g.netAt = []iface{{"eth0", integral(p.id^0x4e, rx, s-p.started), integral(p.id^0x4f, tx, s-p.started), 0, 0}}, s
		}
		out = append(out, g)
		for i := range p.containers {
			c := &p.containers[i]
			u, ok := c.usage(ns)
			if !ok {
				continue
			}
			id := containerID(c.id)[len("containerd://"):]
			out = append(out, cgroup{namespace: p.w.ns, pod: p.name, container: c.t.name, id: path + "/" + id, image: c.t.image, name: id, start: c.start, usage: u})
		}
	}
	return out
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
			case level == "node" && g.pod == "":
				f(g, nil)
			case level == "pod" && g.pod != "" && g.container == "":
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

// appendCadvisorMetrics appends the answer to /metrics/cadvisor: of the families of a real one, those that the summary has
// a counterpart of.
func (n *Node) appendCadvisorMetrics(b []byte, now time.Time) []byte {
	w := &promWriter{b}
	all := n.cgroups(now)
	gauge := func(name, help, kind string, v func(*cgroup) float64) {
		w.family(name, help, kind)
		for i := range all {
			g := &all[i]
			l := []string{"container", g.container, "id", g.id, "image", g.image, "name", g.name, "namespace", g.namespace, "pod", g.pod}
			if name == "container_cpu_usage_seconds_total" {
				l = append([]string{"container", g.container, "cpu", "total"}, l[2:]...)
			}
			w.sample(name, v(g), g.usage.at, l...)
		}
	}
	gauge("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", "counter", func(g *cgroup) float64 { return float64(g.usage.cpu) / 1e9 })
	gauge("container_memory_rss", "Size of RSS in bytes.", "gauge", func(g *cgroup) float64 { return float64(g.usage.rss) })
	gauge("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed", "gauge",
		func(g *cgroup) float64 { return float64(g.usage.usage) })
	gauge("container_memory_working_set_bytes", "Current working set in bytes.", "gauge", func(g *cgroup) float64 { return float64(g.usage.ws) })
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
			for _, in := range all[i].net {
				w.sample(f.name, float64(f.v(in)), all[i].netAt, "container", "", "id", all[i].id, "image", "", "interface", in.name, "name", "", "namespace", all[i].namespace, "pod", all[i].pod)
			}
		}
	}
	w.family("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", "gauge")
	for i := range all {
		g := &all[i]
		w.sample("container_start_time_seconds", float64(g.start/1e9), 0, "container", g.container, "id", g.id, "image", g.image, "name", g.name, "namespace", g.namespace, "pod", g.pod)
	}
	w.family("machine_cpu_cores", "Number of logical CPU cores.", "gauge")
	w.sample("machine_cpu_cores", float64(n.cores), 0, "boot_id", uidOf(mix(n.id, 40)), "machine_id", n.uid, "system_uuid", n.uid)
	w.family("machine_memory_bytes", "Amount of memory installed on the machine.", "gauge")
	w.sample("machine_memory_bytes", float64(n.memory), 0, "boot_id", uidOf(mix(n.id, 40)), "machine_id", n.uid, "system_uuid", n.uid)
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
