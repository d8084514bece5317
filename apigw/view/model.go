package view

import (
	"slices"
	"strings"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// What follows is asked by the Heapster model API: lists of entities that are there now, and series.
// A list holds what a rollup younger than max(2 x resolution, 45 s) names, whether it has usage or not.

// Hostnames returns the host names of the nodes, sorted; equal ones once.
func (c *Cluster) Hostnames() []string {
	var names []string
	now := c.clock.nowNano()
	for _, slot := range *c.nodes.Load() {
		if st := slot.present(now); st != nil {
			e := &st.table.Entities[0]
			if e.Hostname != "" {
				names = append(names, e.Hostname)
			} else {
				names = append(names, e.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// NodeName returns the name of a node that is called by its name or its host name; what is not known is
// returned as it is.
func (c *Cluster) NodeName(name string) string {
	if name == "" {
		return "" // of what is found by other names
	}
	nodes := *c.nodes.Load()
	if findNode(nodes, name) != nil {
		return name
	}
	for _, slot := range nodes {
		if st := slot.state.Load(); st != nil && st.table.Entities[0].Hostname == name {
			return slot.name
		}
	}
	return name
}

// SystemContainers returns the names of a node's system containers, sorted. The node is found by name or
// host name.
func (c *Cluster) SystemContainers(node string) []string {
	slot := findNode(*c.nodes.Load(), c.NodeName(node))
	if slot == nil {
		return nil
	}
	st := slot.present(c.clock.nowNano())
	if st == nil {
		return nil
	}
	var names []string
	for i := range st.table.Entities {
		if e := &st.table.Entities[i]; e.Kind == proto.KindSystemContainer {
			names = append(names, e.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Namespaces returns the names of the namespaces that had pods at the last ticks, sorted.
func (c *Cluster) Namespaces() []string {
	now := c.clock.nowNano()
	all := *c.namespaces.Load()
	names := make([]string, 0, len(all))
	for _, n := range all {
		if now <= n.seen+n.keep {
			names = append(names, n.name)
		}
	}
	return names
}

// PodNames returns the names of the pods of a namespace, sorted.
func (c *Cluster) PodNames(namespace string) []string {
	all := *c.pods.Load()
	i, ok := findNamespace(all, namespace)
	if !ok {
		return nil
	}
	now := c.clock.nowNano()
	names := make([]string, 0, len(all[i].pods))
	for _, slot := range all[i].pods {
		if slot.present(now) != nil {
			names = append(names, slot.name)
		}
	}
	return names
}

// ContainerNames returns the names of the containers of a pod, sorted.
func (c *Cluster) ContainerNames(namespace, pod string) []string {
	slot := findPod(*c.pods.Load(), namespace, pod)
	if slot == nil {
		return nil
	}
	st := slot.present(c.clock.nowNano())
	if st == nil {
		return nil
	}
	var names []string
	for i := range st.node.table.Entities {
		if e := &st.node.table.Entities[i]; e.Kind == proto.KindContainer && e.Parent == st.row {
			names = append(names, e.Name)
		}
	}
	slices.Sort(names)
	return names
}

// present returns the state of a pod whose node has been heard of lately, or nil.
func (s *podSlot) present(now int64) *podState {
	st := s.state.Load()
	if st == nil || now > st.node.seen+st.node.keep {
		return nil
	}
	return st
}

// Keys returns Heapster's keys of everything that is there now, sorted.
func (c *Cluster) Keys() []string {
	now := c.clock.nowNano()
	var (
		text []byte // all keys, one behind the other
		ends []int
	)
	end := func() { ends = append(ends, len(text)) }
	if t := c.totals.Load(); t != nil {
		text = append(text, "cluster"...)
		end()
	}
	for _, n := range c.Namespaces() {
		text = append(append(text, "namespace:"...), n...)
		end()
	}
	for _, slot := range *c.nodes.Load() {
		st := slot.present(now)
		if st == nil {
			continue
		}
		for i := range st.table.Entities {
			if st.table.Entities[i].Kind != proto.KindNamespace {
				text = proto.AppendKey(text, st.table, i)
				end()
			}
		}
	}
	all, keys, from := string(text), make([]string, len(ends)), 0
	for i, to := range ends {
		keys[i], from = all[from:to], to
	}
	slices.SortFunc(keys, strings.Compare)
	return slices.Compact(keys)
}

// since returns the oldest tick that is remembered now.
func (c *Cluster) since() proto.Tick {
	return proto.Tick(time.Unix(0, c.clock.nowNano()).Add(-c.past.Span()).UnixMilli()) + 1
}

// MetricNames returns the names of the un-labelled metrics that an entity has had within the window,
// sorted; none for an unknown one.
func (c *Cluster) MetricNames(e window.Entity) []string {
	e.Node = c.NodeName(e.Node)
	return c.past.Names(e, c.since())
}

// Series appends the points of one un-labelled metric of an entity between two times, both included, to
// dst, oldest first. Points that stand in for a sample that did not advance are left out.
func (c *Cluster) Series(dst []window.Point, e window.Entity, metric string, from, to time.Time) []window.Point {
	e.Node = c.NodeName(e.Node)
	start, end := c.between(from, to)
	n := len(dst)
	return fresh(c.past.Series(dst, e, metric, start, end), n)
}

// LabelledSeries is Series for a metric of devices: of those whose labels are exactly the given ones.
func (c *Cluster) LabelledSeries(dst []window.Point, e window.Entity, metric string, labels []proto.Label, from, to time.Time) []window.Point {
	e.Node = c.NodeName(e.Node)
	start, end := c.between(from, to)
	n := len(dst)
	return fresh(c.past.LabelledSeries(dst, e, metric, labels, start, end), n)
}

// between returns the ticks between two times that are remembered; the first may be after the last.
func (c *Cluster) between(from, to time.Time) (start, end proto.Tick) {
	ms := func(t time.Time) int64 { // times beyond what a tick can be are as good as the ends of it
		return min(max(t.Unix(), -1<<50), 1<<50)*1000 + int64(t.Nanosecond())/1e6
	}
	start, end = proto.Tick(ms(from)), proto.Tick(ms(to))
	if from.Nanosecond()%1e6 > 0 {
		start++
	}
	return max(start, c.since()), end
}

// fresh leaves out points that stand in.
func fresh(points []window.Point, from int) []window.Point {
	kept := points[:from]
	for _, p := range points[from:] {
		if !p.StandsIn {
			kept = append(kept, p)
		}
	}
	return kept
}
