package kubelet

import (
	"errors"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// cgroups collects what an answer says of cgroups, in whatever order it comes, and settles at the
// end which of them is the node, a pod, its sandbox, a container, or none of these.
//
//	/                               the node
//	labels name pod and container   a container; the newest of those with one name
//	container POD, or a container   the pod's sandbox ("pause"): the pod's network, and nothing else of it
//	  of the runtime without name
//	labels name the pod alone, or   the pod: its cpu and memory, pause included
//	  its path ends in a pod's UID
//	anything else                   a system container, under its path without the first slash
//
// Labels come first; where kubelets before 1.16 give none for a pod's cgroup, its UID in the path
// (kubepods/burstable/pod<uid>, or kubepods-burstable-pod<uid>.slice with "_" for "-") must be that of
// a pod that a container's labels name.
type cgroups struct {
	list   []cgroup
	values proto.Columns // one row a cgroup
	limits []int64       // of memory, by cgroup; 0: none or not told
	index  map[string]int32

	pods   []podOf
	byPod  map[podKey]int32   // the pod of this name that stays
	byUID  map[string]int32   // pods
	byName map[childKey]int32 // containers that stay, by pod and name; system containers under pod -1
	place  []int32            // row of the cgroup itself, by cgroup; -1: none
}

// cgroup is one cgroup, or one container of an answer that does not tell its cgroup.
type cgroup struct {
	path                      string
	namespace, pod, container string // from labels; container: of a system container, what it is called
	uid                       string // of the pod
	name                      string // the runtime's, of a container
	image                     string
	role                      role
	at                        int32 // in pods; -1: of none
	next                      int32 // container of its pod; -1: none
	first                     bool  // no other cgroup of its name is newer
}

type role uint8

const (
	roleSystem role = iota
	roleNode
	rolePod
	roleSandbox
	roleContainer
)

// podOf is a pod that cgroups speak of.
type podOf struct {
	podKey
	uid          string
	own, sandbox int32 // cgroups; -1: none
	containers   int32 // the first of them; -1: none
	last         int32 // of them
	start        int64 // the newest of its cgroups
	gone         bool  // another pod of this name is newer
	row          int32
}

const (
	rootPath     = "/"
	sandboxLabel = "POD" // the container name that Docker and CRI-O give it
)

func (c *cgroups) begin() {
	c.list, c.limits, c.pods = c.list[:0], c.limits[:0], c.pods[:0]
	c.values.Reset()
	if c.index == nil {
		c.index, c.byPod, c.byUID, c.byName = map[string]int32{}, map[podKey]int32{}, map[string]int32{}, map[childKey]int32{}
	}
	clear(c.index)
	clear(c.byPod)
	clear(c.byUID)
	clear(c.byName)
}

// add appends a cgroup and returns its row; -1 where there are too many.
func (c *cgroups) add(g cgroup) int {
	if len(c.list) >= maxRows {
		return -1
	}
	c.list = append(c.list, g)
	c.limits = append(c.limits, 0)
	return len(c.list) - 1
}

// podUID is the UID of the pod to which a cgroup's path belongs, and whether the path is the pod's
// own; "" where it belongs to none. The last one counts: a kubelet may itself run in a pod.
func podUID(path string) (uid string, own bool) {
	for end := len(path); end > 0; {
		from := strings.LastIndexByte(path[:end], '/') + 1
		name := path[from:end]
		if slice, ok := strings.CutSuffix(name, ".slice"); ok { // kubepods-burstable-pod<uid>.slice
			name = slice[strings.LastIndexByte(slice, '-')+1:]
		}
		if u, ok := strings.CutPrefix(name, "pod"); ok && isUID(u) {
			return strings.ReplaceAll(u, "_", "-"), end == len(path)
		}
		end = from - 1
	}
	return "", false
}

// isUID reports whether s looks like the UID of a pod: of the API server, or the hash of a static one.
func isUID(s string) bool {
	if len(s) < 16 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f', 'A' <= c && c <= 'F', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// settle writes what was collected into the table of the batch, whose row 0 is the node.
func (d *Decoder) settle() error {
	c := d.cgroups
	if len(c.list) == 0 {
		return errors.New("it tells of no cgroup, pod or container")
	}
	c.classify()
	d.rows()
	d.fill()
	d.finish()
	return nil
}

// classify says what each cgroup is, and which pods there are.
func (c *cgroups) classify() {
	for i := range c.list {
		g := &c.list[i]
		g.at = -1
		uid, own := podUID(g.path)
		if g.uid == "" {
			g.uid = uid
		}
		switch {
		case g.path == rootPath:
			g.role = roleNode
			continue
		case g.namespace == "" || g.pod == "":
			g.role = roleSystem
			continue
		case g.container == sandboxLabel:
			g.role = roleSandbox
		case g.container != "":
			g.role = roleContainer
		case own || g.name == "":
			g.role = rolePod
		default:
			g.role = roleSandbox
		}
		if g.uid != "" {
			g.at = c.podOf(g, int32(i)) //nolint:gosec // below maxRows
		}
	}
	for i := range c.list {
		g := &c.list[i]
		switch {
		case g.role == roleSystem: // a pod's cgroup may be known by its path alone
			if uid, own := podUID(g.path); own {
				if at, ok := c.byUID[uid]; ok {
					g.role, g.at = rolePod, at
				}
			}
		case g.role != roleNode && g.at < 0: // no path tells which of the pods of this name it is
			if at, ok := c.byPod[podKey{g.namespace, g.pod}]; ok {
				g.at = at
			} else {
				g.at = c.podOf(g, int32(i)) //nolint:gosec // below maxRows
			}
		}
		switch g.role {
		case rolePod:
			p := &c.pods[g.at]
			p.own = c.newer(p.own, int32(i)) //nolint:gosec // below maxRows
		case roleSandbox:
			p := &c.pods[g.at]
			p.sandbox = c.newer(p.sandbox, int32(i)) //nolint:gosec // below maxRows
		case roleSystem:
			if g.container = g.name; g.container == "" {
				g.container = strings.TrimPrefix(g.path, "/")
			}
			c.first(childKey{-1, g.container}, int32(i)) //nolint:gosec // below maxRows
		case roleContainer:
			c.first(childKey{int(g.at), g.container}, int32(i)) //nolint:gosec // below maxRows
		}
	}
	for i := range c.list {
		g := &c.list[i]
		if g.next = -1; g.role != roleContainer || !g.first {
			continue
		}
		if p := &c.pods[g.at]; p.containers < 0 {
			p.containers, p.last = int32(i), int32(i) //nolint:gosec // below maxRows
		} else {
			c.list[p.last].next, p.last = int32(i), int32(i) //nolint:gosec // below maxRows
		}
	}
}

// first makes a cgroup the one of its name, unless there is a newer one.
func (c *cgroups) first(key childKey, i int32) {
	other, twice := c.byName[key]
	if twice {
		if c.newer(other, i) == other {
			return
		}
		c.list[other].first = false
	}
	c.list[i].first = true
	c.byName[key] = i
}

// podOf returns the pod of a cgroup, which it adds. Of two pods of one name the one with the newest
// cgroup stays: the other has been replaced, and is still winding up.
func (c *cgroups) podOf(g *cgroup, i int32) int32 {
	key := podKey{g.namespace, g.pod}
	start, _ := c.values.Get(int(i), proto.FieldStart)
	at, ok := int32(0), false
	if g.uid != "" {
		at, ok = c.byUID[g.uid]
		ok = ok && c.pods[at].podKey == key
	}
	if !ok {
		at = int32(len(c.pods)) //nolint:gosec // below maxRows
		c.pods = append(c.pods, podOf{podKey: key, uid: g.uid, own: -1, sandbox: -1, containers: -1})
		if g.uid != "" {
			c.byUID[g.uid] = at
		}
	}
	p := &c.pods[at]
	p.start = max(p.start, start)
	other, twice := c.byPod[key]
	switch {
	case !twice:
		c.byPod[key] = at
	case other != at:
		if q := &c.pods[other]; q.start > p.start {
			p.gone, q.gone = true, false
		} else {
			p.gone, q.gone = false, true
			c.byPod[key] = at
		}
	}
	return at
}

// newer is the later of two instances of one thing; an exited one is reported for a while beside that
// which has taken its place. Of two that began together it is the one measured later.
func (c *cgroups) newer(a, b int32) int32 {
	if a < 0 {
		return b
	}
	for _, f := range []proto.Field{proto.FieldStart, proto.GroupCPU.Time()} {
		x, _ := c.values.Get(int(a), f)
		y, _ := c.values.Get(int(b), f)
		if x != y {
			if x > y {
				return a
			}
			return b
		}
	}
	return b
}

// rows makes the entities of the table: the node's system containers, then each pod followed by its
// containers.
func (d *Decoder) rows() {
	c := d.cgroups
	c.place = c.place[:0]
	for i := range c.list {
		g := &c.list[i]
		c.place = append(c.place, -1)
		switch {
		case g.role == roleNode:
			c.place[i] = 0
		case g.role == roleSystem && g.first:
			c.place[i] = d.row(proto.Entity{Kind: proto.KindSystemContainer, Name: g.container})
		}
	}
	for i := range c.pods {
		p := &c.pods[i]
		if p.row = -1; p.gone {
			continue
		}
		if p.row = d.row(proto.Entity{Kind: proto.KindPod, Namespace: p.namespace, Name: p.name, UID: p.uid}); p.row < 0 {
			continue
		}
		if p.own >= 0 {
			c.place[p.own] = p.row
		}
		for k := p.containers; k >= 0; k = c.list[k].next {
			g := &c.list[k]
			c.place[k] = d.row(proto.Entity{Kind: proto.KindContainer, Parent: p.row, Name: g.container, Image: g.image})
		}
	}
}

// row adds an entity; -1 where there are too many.
func (d *Decoder) row(e proto.Entity) int32 {
	if len(d.t.Entities) >= maxRows {
		d.dropped++
		return -1
	}
	return int32(d.t.AddEntity(e)) //nolint:gosec // below maxRows
}

// fill copies the values of cgroups and their devices to the rows they belong to.
func (d *Decoder) fill() {
	c, t := d.cgroups, d.t
	for _, col := range c.values.All() {
		group := groupOf(col.Field)
		for i := range c.list {
			if !col.Present.Has(i) {
				continue
			}
			row, v := c.rowOf(i, group), col.Values[i]
			switch {
			case row < 0:
			case group != proto.GroupProcess:
				t.Values.Set(int(row), col.Field, v)
			case col.Field == proto.GroupProcess.Time():
				at, _ := t.Values.Get(int(row), col.Field)
				t.Values.Set(int(row), col.Field, max(at, v))
			case v < 1<<32:
				t.Values.Add(int(row), col.Field, v)
			}
		}
	}
	for i, limit := range c.limits {
		if row := c.place[i]; row >= 0 && limit > 0 && limit < unlimited {
			if used, ok := t.Values.Get(int(row), proto.MemoryWorkingSet.Field()); ok {
				t.Values.Set(int(row), proto.MemoryAvailable.Field(), max(limit-used, 0))
			}
		}
	}
	for i := range c.pods {
		p := &c.pods[i]
		if p.row < 0 {
			continue
		}
		if _, ok := t.Values.Get(int(p.row), proto.FieldStart); !ok && p.sandbox >= 0 {
			if start, ok := c.values.Get(int(p.sandbox), proto.FieldStart); ok {
				t.Values.Set(int(p.row), proto.FieldStart, start)
			}
		}
		d.trustCgroup(int(p.row))
	}
	for _, x := range d.extras {
		if x.Entity = c.rowOf(int(x.Entity), proto.GroupNone); x.Entity >= 0 {
			t.Extras = append(t.Extras, x)
		}
	}
	for i := range d.devices {
		dev := &d.devices[i]
		group := proto.GroupDevice
		if dev.Kind == proto.DeviceInterface {
			group = proto.GroupNetwork
		}
		dev.Entity = c.rowOf(int(dev.Entity), group)
	}
}

// unlimited is the limit from which on kubelets take a cgroup for one without.
const unlimited = 1 << 62

// rowOf is the row to which values of one group of a cgroup belong; -1: none.
func (c *cgroups) rowOf(i int, group proto.Group) int32 {
	g := &c.list[i]
	switch g.role {
	case roleSandbox:
		p := &c.pods[g.at]
		if group == proto.GroupNetwork && p.sandbox == int32(i) { //nolint:gosec // below maxRows
			return p.row
		}
		return -1
	case rolePod:
		if group == proto.GroupProcess || group == proto.GroupNetwork && c.pods[g.at].sandbox >= 0 {
			return -1
		}
	case roleContainer:
		if c.place[i] < 0 || group == proto.GroupNetwork {
			return -1
		}
		if group == proto.GroupProcess { // a pod's cgroup does not count those of its containers
			return c.pods[g.at].row
		}
	default:
		if group == proto.GroupProcess { // of the cgroup alone, so of the node they would be far too few
			return -1
		}
	}
	return c.place[i]
}

// groupOf is the group of a column that is a metric's or a time's.
func groupOf(f proto.Field) proto.Group {
	if m := proto.MetricByID(proto.MetricID(f)); m != nil {
		return m.Group
	}
	for g := proto.GroupCPU; g <= proto.GroupDevice; g++ {
		if f == g.Time() {
			return g
		}
	}
	return proto.GroupNone
}
