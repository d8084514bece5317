package simcluster

import (
	"strconv"
	"strings"
	"sync"
	"time"
)

var bufs = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}

func getBuf() *[]byte {
	b := bufs.Get().(*[]byte)
	*b = (*b)[:0]
	return b
}

// putBuf keeps a buffer for the next answer; those that grew out of measure are left to the collector.
func putBuf(b *[]byte) {
	if cap(*b) <= 4<<20 {
		bufs.Put(b)
	}
}

// The blocks of a summary, as the kubelet lays them out: "§" stands for a value. Each is compiled once per depth.
const (
	psiText = `"psi": {
 "full": {
  "total": §,
  "avg10": §,
  "avg60": §,
  "avg300": §
 },
 "some": {
  "total": §,
  "avg10": §,
  "avg60": §,
  "avg300": §
 }
}
}`
	cpuText = `,
"cpu": {
 "time": "§",
 "usageNanoCores": §,
 "usageCoreNanoSeconds": §,
 `
	memText = `,
"memory": {
 "time": "§",
 "availableBytes": §,
 "usageBytes": §,
 "workingSetBytes": §,
 "rssBytes": §,
 "pageFaults": §,
 "majorPageFaults": §,
 `
	ioText = `,
"io": {
 "time": "§",
 `
	fsText = `{
 "time": "§",
 "availableBytes": §,
 "capacityBytes": §,
 "usedBytes": §,
 "inodesFree": §,
 "inodes": §,
 "inodesUsed": §
}`
	swapText = `,
"swap": {
 "time": "§",
 "swapAvailableBytes": §,
 "swapUsageBytes": §
}`
	netText = `,
"network": {
 "time": "§",
 "name": "§",
 "rxBytes": §,
 "rxErrors": §,
 "txBytes": §,
 "txErrors": §,
 "interfaces": [`
	ifaceText = `
  {
   "name": "§",
   "rxBytes": §,
   "rxErrors": §,
   "txBytes": §,
   "txErrors": §
  }`
)

// blocks are the compiled texts of one depth.
type blocks struct {
	cpu, mem, memFree, io, fs, psi, swap, swapFree, net, iface []string
	psiZero                                                    string
	rootfs, logs, fsKey, imageFs, containerFs, ephemeral       string
	nl                                                         string
}

func compile(text string, depth int) []string {
	return strings.Split(strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", depth)), "§")
}

func without(text, field string) string {
	i := strings.Index(text, ` "`+field+`"`)
	j := i + strings.IndexByte(text[i:], '\n') + 1
	return text[:i] + text[j:]
}

var layout = func() (l [7]blocks) {
	for d := range l {
		// psi closes its parent, one level up.
		psi := strings.ReplaceAll(psiText, "\n", "\n ")
		psi = psi[:len(psi)-2] + "}"
		one := func(text string) string { return compile(text, d)[0] }
		l[d] = blocks{
			cpu: compile(cpuText, d), mem: compile(memText, d), memFree: compile(without(memText, "availableBytes"), d), io: compile(ioText, d),
			fs: compile(fsText, d), swap: compile(swapText, d), swapFree: compile(without(swapText, "swapAvailableBytes"), d), net: compile(netText, d), iface: compile(ifaceText, d),
			psi: compile(psi, d), rootfs: one(",\n\"rootfs\": "), logs: one(",\n\"logs\": "), fsKey: one(",\n\"fs\": "),
			imageFs: one("\n\"imageFs\": "), containerFs: one(",\n\"containerFs\": "), ephemeral: one(",\n\"ephemeral-storage\": "),
			nl: one("\n"),
		}
		l[d].psiZero = strings.Join(l[d].psi, "0")
	}
	return l
}()

// rendering is one answer being written.
type rendering struct {
	b    []byte
	now  int64
	days [8]struct { // some days, as 2006-01-02T
		day  int64
		text [11]byte
	}
	disk [7]diskText // by depth
}

func (r *rendering) str(s string)  { r.b = append(r.b, s...) }
func (r *rendering) uint(v uint64) { r.b = strconv.AppendUint(r.b, v, 10) }

// time writes whole seconds as RFC 3339, as metav1.Time does.
func (r *rendering) time(ns int64) {
	sec := ns / 1e9
	day := sec / 86400
	d := &r.days[day&7]
	if d.day != day || d.text[0] == 0 {
		d.day = day
		time.Unix(sec, 0).UTC().AppendFormat(d.text[:0], "2006-01-02T")
	}
	s := int(sec - day*86400)
	h, m := s/3600, s/60%60
	s %= 60
	r.b = append(r.b, d.text[:]...)
	r.b = append(r.b, byte('0'+h/10), byte('0'+h%10), ':', byte('0'+m/10), byte('0'+m%10), ':', byte('0'+s/10), byte('0'+s%10), 'Z')
}

// hundredths writes v/100 as encoding/json writes a float64.
func (r *rendering) hundredths(v uint64) {
	r.uint(v / 100)
	switch f := v % 100; {
	case f == 0:
	case f%10 == 0:
		r.b = append(r.b, '.', byte('0'+f/10))
	default:
		r.b = append(r.b, '.', byte('0'+f/10), byte('0'+f%10))
	}
}

// nums writes parts[1:] with numbers between; parts[0] must be out.
func (r *rendering) nums(parts []string, vals ...uint64) {
	for i, v := range vals {
		r.uint(v)
		r.str(parts[i+1])
	}
}

// timed writes the first two parts of a block around its time.
func (r *rendering) timed(parts []string, ns int64) {
	r.str(parts[0])
	r.time(ns)
	r.str(parts[1])
}

// psi writes the pressure of a cgroup. Most have none, as on a real node that is not overloaded.
func (r *rendering) psi(l *blocks, id uint64, t, age int64) {
	h := splitmix(id ^ 0x951)
	if h%10 < 7 || age <= 0 {
		r.str(l.psiZero)
		return
	}
	share := 0.0005 + 0.03*unit(splitmix(h))*unit(splitmix(h+1)) // of the time that something waits
	p := l.psi
	r.str(p[0])
	w := wander(h, t)
	for i, part := range [2]float64{0.4 * share, share} {
		r.uint(integral(h, part*1e9, age))
		r.str(p[4*i+1])
		for j, k := range [3]float64{0.6, 0.3, 0.1} {
			r.hundredths(uint64(max(part*100*(1+k*w), 0) * 100))
			r.str(p[4*i+j+2])
		}
	}
}

// usage is a cgroup's values at one moment.
type usage struct {
	at             int64
	cpu, rate      uint64 // ns; nanocores
	ws, rss, usage uint64 // bytes
	faults, majors uint64
	limit          uint64 // bytes, 0 = none
	id             uint64
	age            int64
}

// cpuMem writes cpu and memory.
func (r *rendering) cpuMem(l *blocks, u *usage) {
	r.timed(l.cpu, u.at)
	r.uint(u.rate)
	r.str(l.cpu[2])
	r.uint(u.cpu)
	r.str(l.cpu[3])
	r.psi(l, u.id, u.at, u.age)
	if u.limit != 0 {
		r.timed(l.mem, u.at)
		r.nums(l.mem[1:], u.limit-min(u.limit, u.ws), u.usage, u.ws, u.rss, u.faults, u.majors)
	} else {
		r.timed(l.memFree, u.at)
		r.nums(l.memFree[1:], u.usage, u.ws, u.rss, u.faults, u.majors)
	}
	r.psi(l, u.id+1, u.at, u.age)
}

func (r *rendering) io(l *blocks, u *usage) {
	r.timed(l.io, u.at)
	r.psi(l, u.id+2, u.at, u.age)
}

func (r *rendering) swap(l *blocks, at int64, limit uint64) {
	if limit != 0 {
		r.timed(l.swap, at)
		r.nums(l.swap[1:], limit, 0)
	} else {
		r.timed(l.swapFree, at)
		r.nums(l.swapFree[1:], 0)
	}
}

// fsUse is how full a file system is.
type fsUse struct {
	at                           int64
	avail, capacity, used        uint64
	inodesFree, inodes, inodeUse uint64
}

func (r *rendering) fs(l *blocks, f fsUse) {
	r.timed(l.fs, f.at)
	r.nums(l.fs[1:], f.avail, f.capacity, f.used, f.inodesFree, f.inodes, f.inodeUse)
}

// diskText is the part of a file system's block that is the same for all that lies on the node's disk.
type diskText struct{ toUsed, toInodes []byte }

// onDisk writes the block of something on the node's disk.
func (r *rendering) onDisk(depth int, disk *fsUse, at int64, used, inodes uint64) {
	l, t := &layout[depth], &r.disk[depth]
	if t.toUsed == nil {
		t.toUsed = append(strconv.AppendUint([]byte(l.fs[1]), disk.avail, 10), l.fs[2]...)
		t.toUsed = append(strconv.AppendUint(t.toUsed, disk.capacity, 10), l.fs[3]...)
		t.toInodes = append(strconv.AppendUint([]byte(l.fs[4]), disk.inodesFree, 10), l.fs[5]...)
		t.toInodes = append(strconv.AppendUint(t.toInodes, disk.inodes, 10), l.fs[6]...)
	}
	r.str(l.fs[0])
	r.time(at)
	r.b = append(r.b, t.toUsed...)
	r.uint(used)
	r.b = append(r.b, t.toInodes...)
	r.uint(inodes)
	r.str(l.fs[7])
}

// iface is one network interface; its counters go on from start.
type iface struct {
	name           string
	rx, tx, rxe, e uint64
}

func (r *rendering) network(l *blocks, at int64, def iface, all []iface) {
	r.timed(l.net, at)
	r.str(def.name)
	r.str(l.net[2])
	r.nums(l.net[2:], def.rx, def.rxe, def.tx, def.e)
	for i, f := range all {
		if i > 0 {
			r.b = append(r.b, ',')
		}
		r.str(l.iface[0])
		r.str(f.name)
		r.str(l.iface[1])
		r.nums(l.iface[1:], f.rx, f.rxe, f.tx, f.e)
	}
	r.str(l.nl)
	r.str(" ]")
	r.str(l.nl)
	r.b = append(r.b, '}')
}

// memory of one life of a container at a moment: working set, rss, usage; all whole pages.
func (r *run) memory(at int64) (ws, rss, use uint64) {
	age := at - r.start
	if age <= 0 || r.end != 0 && at >= r.end {
		return 0, 0, 0
	}
	sec := float64(age) / 1e9
	v := r.t.mem * (0.6 + 0.4*sec/(sec+30)) * (1 + 0.2*wander(r.id, at))
	if r.t.memLim != 0 {
		v = min(v, 0.97*float64(r.t.memLim))
	}
	ws = page(v)
	return ws, page(v * 0.92), ws + page(float64(r.id>>20%256)*4096*sec/(sec+120))
}

// pauseCPU and pauseMemory are what the infrastructure container of a pod takes.
const (
	pauseCPU    = 20_000_000
	pauseMemory = 57 * 4096
)

// sum adds up a pod at a moment, the pause container included.
func (p *podState) sum(at int64) (cpu, ws, rss, use uint64) {
	if at < p.started {
		return 0, 0, 0, 0
	}
	cpu, ws, rss, use = p.goneCPU+pauseCPU, pauseMemory, pauseMemory/4&^4095, pauseMemory
	for i := range p.gone {
		cpu += p.gone[i].cpu(at)
	}
	for i := range p.containers {
		c := &p.containers[i]
		cpu += c.cpu(at)
		a, b, d := c.memory(at)
		ws, rss, use = ws+a, rss+b, use+d
	}
	return cpu, ws, rss, use
}

func (p *podState) cpu(at int64) uint64 {
	if at < p.started {
		return 0
	}
	cpu := p.goneCPU + pauseCPU
	for i := range p.gone {
		cpu += p.gone[i].cpu(at)
	}
	for i := range p.containers {
		cpu += p.containers[i].cpu(at)
	}
	return cpu
}

// sum adds up the pods of a node at a moment.
func (s *nodeState) sum(at int64) (cpu, ws, rss, use uint64) {
	cpu = s.goneCPU
	for i := range s.gone {
		cpu += s.gone[i].cpu(at)
	}
	for _, p := range s.pods {
		a, b, c, d := p.sum(at)
		cpu, ws, rss, use = cpu+a, ws+b, rss+c, use+d
	}
	return cpu, ws, rss, use
}

func (s *nodeState) cpu(at int64) uint64 {
	cpu := s.goneCPU
	for i := range s.gone {
		cpu += s.gone[i].cpu(at)
	}
	for _, p := range s.pods {
		cpu += p.cpu(at)
	}
	return cpu
}

func perSecond(a, b uint64, span int64) uint64 {
	if span <= 0 || b <= a {
		return 0
	}
	return uint64(float64(b-a) * 1e9 / float64(span))
}

// usage is the newest sample of a container; false if it has none yet.
func (c *containerState) usage(now int64) (u usage, ok bool) {
	s, before := sampleAt(c.id, now)
	if s < c.start {
		// A new container is measured soon after its start, then in its turn.
		if s = c.start + int64(500*time.Millisecond); s > now {
			return u, false
		}
	}
	before = max(before, c.start)
	u = usage{at: s, cpu: c.cpu(s), id: c.id, age: s - c.start, limit: uint64(c.t.memLim)}
	u.rate = perSecond(c.cpu(before), u.cpu, s-before)
	u.ws, u.rss, u.usage = c.memory(s)
	u.faults = 500 + integral(c.id^0xfa, 3, u.age)
	u.majors = integral(c.id^0xfb, 0.001, u.age)
	return u, true
}

// usage is the newest sample of a pod's own cgroup, which is taken at another moment than its containers'. A pod that
// has just started has one of zeros.
func (p *podState) usage(now int64) usage {
	s, before := sampleAt(p.id, now)
	u := usage{at: max(s, p.started), id: p.id, age: max(s-p.started, 0)}
	for i := range p.w.containers {
		if p.w.containers[i].memLim == 0 {
			u.limit = 0
			break
		}
		u.limit += uint64(p.w.containers[i].memLim)
	}
	if s < p.started {
		return u
	}
	u.cpu, u.ws, u.rss, u.usage = p.sum(s)
	u.rate = perSecond(p.cpu(before), u.cpu, s-max(before, p.started))
	return u
}

// netRate is the bytes per second of a pod's interface.
func netRate(id uint64) (rx, tx float64) {
	h := splitmix(id ^ 0x4e7)
	return 200 + 20000*unit(splitmix(h))*unit(splitmix(h+1)), 100 + 15000*unit(splitmix(h+2))*unit(splitmix(h+3))
}

// interfaces of the host.
func (n *Node) interfaces(at int64) [2]iface {
	age := at - n.created
	return [2]iface{
		{"eth0", integral(n.id^1, 900e3, age), integral(n.id^2, 350e3, age), integral(n.id^3, 0.0001, age), 0},
		{"cni0", integral(n.id^4, 300e3, age), integral(n.id^5, 320e3, age), 0, 0},
	}
}

// systemUsage of the cgroups beside the pods.
func (n *Node) systemUsage(i int, now int64) usage {
	id := mix(n.id, 70, uint64(i))
	s, before := sampleAt(id, now)
	start := n.created + 30*int64(time.Second)
	base := []float64{45e6, 30e6}[i]
	mem := []float64{110 * mi, 150 * mi}[i]
	u := usage{at: s, id: id, age: s - start, cpu: integral(id, base, s-start)}
	u.rate = perSecond(integral(id, base, before-start), u.cpu, s-before)
	u.ws = page(mem * (1 + 0.1*wander(id, s)))
	u.rss, u.usage = page(float64(u.ws)*0.8), u.ws+20*mi
	u.faults = integral(id^0xfa, 10, u.age)
	return u
}

// podsUsage is the cgroup of all pods.
func (n *Node) podsUsage(st *nodeState, now int64) usage {
	id := mix(n.id, 71)
	s, before := sampleAt(id, now)
	u := usage{at: s, id: id, age: s - n.created, limit: uint64(n.memory)}
	u.cpu, u.ws, u.rss, u.usage = st.sum(s)
	u.rate = perSecond(st.cpu(before), u.cpu, s-before)
	return u
}

// usage of the whole node.
func (n *Node) usage(st *nodeState, now int64) usage {
	s, before := sampleAt(n.id, now)
	u := usage{at: s, id: n.id, age: s - n.created, limit: uint64(n.memory)}
	own := func(t int64) uint64 { // all that is not pods: kubelet, runtime, the system itself
		sum := integral(n.id^0x59, 60e6, t-n.created)
		for i, base := range []float64{45e6, 30e6} {
			sum += integral(mix(n.id, 70, uint64(i)), base, t-n.created-30*int64(time.Second))
		}
		return sum
	}
	u.cpu, u.ws, u.rss, u.usage = st.sum(s)
	u.cpu += own(s)
	u.rate = perSecond(st.cpu(before)+own(before), u.cpu, s-before)
	system := page(700 * mi * (1 + 0.1*wander(n.id, s)))
	u.ws, u.rss, u.usage = u.ws+system, u.rss+system/2&^4095, u.usage+system+300*mi
	u.faults = integral(n.id^0xfa, 200, u.age)
	u.majors = integral(n.id^0xfb, 0.05, u.age)
	return u
}

// disk of the node at the newest of its samples, which come every 10 s.
func (n *Node) diskUse(now int64) fsUse {
	step := 10 * int64(time.Second)
	t := now - (now-int64(n.id%uint64(step)))%step
	used := page(float64(n.disk) * (0.2 + 0.3*unit(splitmix(n.id^0xd15c))) * (1 + 0.03*wander(n.id^0xd1, t)))
	return fsUse{at: t, avail: uint64(n.disk) - used, capacity: uint64(n.disk), used: used, inodes: 16777216, inodesFree: 16777216 - used/40000, inodeUse: used / 40000}
}

func (f fsUse) part(at int64, used, inodes uint64) fsUse {
	f.at, f.used, f.inodeUse = at, used, inodes
	return f
}

// appendSummary appends the answer to /stats/summary at a time.
func (n *Node) appendSummary(b []byte, now time.Time, cpuMemOnly bool) []byte {
	if n.recorded != nil {
		return n.recorded.appendSummary(b, now, cpuMemOnly)
	}
	st := n.state.Load()
	r := &rendering{b: b, now: now.UnixNano()}
	full := !cpuMemOnly
	disk := n.diskUse(r.now)
	u := n.usage(st, r.now)

	r.str("{\n \"node\": {\n  \"nodeName\": \"")
	r.str(n.name)
	r.str("\",\n  \"systemContainers\": [")
	l := &layout[4]
	for i, name := range [3]string{"kubelet", "runtime", "pods"} {
		var su usage
		if i == 2 {
			su = n.podsUsage(st, r.now)
		} else {
			su = n.systemUsage(i, r.now)
		}
		r.str("\n   {\n    \"name\": \"")
		r.str(name)
		r.str("\",\n    \"startTime\": \"")
		r.time(n.created + 30*int64(time.Second))
		r.b = append(r.b, '"')
		r.cpuMem(l, &su)
		if full {
			r.io(l, &su)
		}
		r.swap(l, su.at, 0)
		r.str("\n   }")
		if i < 2 {
			r.b = append(r.b, ',')
		}
	}
	r.str("\n  ],\n  \"startTime\": \"")
	r.time(n.created)
	r.b = append(r.b, '"')
	l = &layout[2]
	r.cpuMem(l, &u)
	if full {
		r.io(l, &u)
		host := n.interfaces(u.at)
		r.network(l, u.at, host[0], host[:])
		r.str(l.fsKey)
		r.fs(l, disk)
		r.str(",\n  \"runtime\": {")
		l3 := &layout[3]
		image := disk.part(disk.at, page(float64(disk.used)*0.4), disk.inodeUse/3)
		r.str(l3.imageFs)
		r.fs(l3, image)
		r.str(l3.containerFs)
		r.fs(l3, image)
		r.str("\n  },\n  \"rlimit\": {\n   \"time\": \"")
		r.time(r.now)
		r.str("\",\n   \"maxpid\": 32768,\n   \"curproc\": ")
		r.uint(uint64(150 + 4*len(st.pods) + int(20*(1+wander(n.id^0x91d, r.now)))))
		r.str("\n  }")
	}
	r.timed(l.swap, u.at)
	r.nums(l.swap[1:], 0, 0)
	r.str("\n },\n \"pods\": [")
	first := true
	for i := range st.pods {
		p := st.pods[r.turned(i, len(st.pods), n.id)]
		if p.finished != 0 || r.now < p.started {
			continue
		}
		if !first {
			r.b = append(r.b, ',')
		}
		first = false
		r.pod(n, p, &disk, full)
	}
	if first {
		r.str("]\n}")
	} else {
		r.str("\n ]\n}")
	}
	return r.b
}

// turned is the place in a list of n that is told as number i: kubelets walk Go maps, and begin somewhere else at each answer.
func (r *rendering) turned(i, n int, id uint64) int {
	return (i + int(splitmix(id^uint64(r.now))%uint64(n))) % n //nolint:gosec // below n
}

func (r *rendering) pod(n *Node, p *podState, disk *fsUse, full bool) {
	r.str("\n  {\n   \"podRef\": {\n    \"name\": \"")
	r.str(p.name)
	r.str("\",\n    \"namespace\": \"")
	r.str(p.w.ns)
	r.str("\",\n    \"uid\": \"")
	r.str(p.uid)
	r.str("\"\n   },\n   \"startTime\": \"")
	r.time(p.started)
	r.str("\",\n   \"containers\": [")
	l := &layout[5]
	first := true
	stored, inodes := uint64(0), uint64(0)
	processes := uint64(0)
	for i := range p.containers {
		c := &p.containers[r.turned(i, len(p.containers), p.id)]
		u, ok := c.usage(r.now)
		if !ok {
			continue
		}
		if !first {
			r.b = append(r.b, ',')
		}
		first = false
		r.str("\n    {\n     \"name\": \"")
		r.str(c.t.name)
		r.str("\",\n     \"startTime\": \"")
		r.time(c.start)
		r.b = append(r.b, '"')
		r.cpuMem(l, &u)
		if full {
			r.io(l, &u)
			root := (10 + c.id>>8%200) * 4096
			logs := integral(c.id^0x106, float64(c.id>>16%90), r.now-c.start) &^ 4095
			stored, inodes, processes = stored+root+logs, inodes+14, processes+1+c.id>>24%3
			r.str(l.rootfs)
			r.onDisk(5, disk, disk.at, root, 13)
			r.str(l.logs)
			r.onDisk(5, disk, r.now, logs, 1)
		}
		r.swap(l, u.at, u.limit)
		r.str("\n    }")
	}
	if first {
		r.b = append(r.b, ']')
	} else {
		r.str("\n   ]")
	}
	l = &layout[3]
	u := p.usage(r.now)
	r.cpuMem(l, &u)
	if full {
		r.io(l, &u)
		s, _ := sampleAt(p.id^0x4e, r.now)
		s = max(s, p.started)
		if p.w.hostNet {
			host := n.interfaces(s)
			r.network(l, s, host[0], host[:])
		} else {
			rx, tx := netRate(p.id)
			eth := iface{"eth0", integral(p.id^0x4e, rx, s-p.started), integral(p.id^0x4f, tx, s-p.started), 0, 0}
			r.network(l, s, eth, []iface{eth})
		}
		r.volumes(p, disk)
		r.str(l.ephemeral)
		r.onDisk(3, disk, r.now, stored+4096, inodes+1)
		r.str(",\n   \"process_stats\": {\n    \"process_count\": ")
		r.uint(processes + 1)
		r.str("\n   }")
	}
	r.swap(l, u.at, 0)
	r.str("\n  }")
}

func (r *rendering) volumes(p *podState, disk *fsUse) {
	l := &layout[4]
	minute := int64(time.Minute)
	t := max(r.now-(r.now-int64(p.id%uint64(minute)))%minute, p.started)
	first := true
	volume := func(name string, f fsUse, claim string) {
		if first {
			r.str(",\n   \"volume\": [\n    ")
		} else {
			r.str(",\n    ")
		}
		first = false
		r.fs(l, f)
		r.b = r.b[:len(r.b)-6] // "\n    }" of the block: more follows
		r.str(",\n     \"name\": \"")
		r.str(name)
		r.b = append(r.b, '"')
		if claim != "" {
			r.str(",\n     \"pvcRef\": {\n      \"name\": \"")
			r.str(claim)
			r.str(p.name)
			r.str("\",\n      \"namespace\": \"")
			r.str(p.w.ns)
			r.str("\"\n     }")
		}
		r.str("\n    }")
	}
	if p.w.claim {
		size := uint64(10*gi) << (p.id >> 12 % 4)
		used := min(page(float64(size)*0.1)+integral(p.id^0xda7a, 2000, r.now-p.started)&^4095, size)
		volume("data", fsUse{at: t, avail: size - used, capacity: size, used: used, inodes: size / 16384, inodesFree: size/16384 - 200, inodeUse: 200}, "data-")
	}
	if p.w.scratch {
		volume("scratch", disk.part(t, page(float64(p.id>>8%64)*mi*(1+0.5*wander(p.id^0x5c, t))), 2+p.id%20), "")
	}
	if p.w.kind != staticPod {
		size := uint64(p.node.memory)
		for i := range p.w.containers {
			if lim := uint64(p.w.containers[i].memLim); lim != 0 {
				size = min(size, lim)
			}
		}
		volume(p.w.token, fsUse{at: t, avail: size - 12288, capacity: size, used: 12288, inodes: 3085511, inodesFree: 3085502, inodeUse: 9}, "")
	}
	if !first {
		r.str("\n   ]")
	}
}
