package sink

import (
	"fmt"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/daemon"
)

// OptionsHelp explains the options that every sink has, for --help: the one place where they are described.
const OptionsHelp = `Options of every sink, after a "?" and separated by "&", as in influxdb:http://host:8086?db=k8s&timeout=5s:
  filter=DIM:GLOB,…     write only what matches; repeatable: one DIM given several times means any of its globs,
                        several DIMs mean all of them. filter=-DIM:GLOB,… leaves out what matches, whatever else
                        is said. In a GLOB "*" is any text, "?" any one character. DIM is one of
                          metric       name of the metric as Heapster has it: filter=metric:cpu/*,memory/working_set
                          type         cluster, ns, node, pod, pod_container, sys_container, workload
                          namespace    of the namespace, pod, container or workload: filter=-namespace:kube-*
                          label.KEY    a label of the sample (nodename, pod_name, container_name, resource_id, …) or
                                       else a Kubernetes label of the node, pod or namespace: filter=label.app:web
                        What has no namespace or no such label matches the empty glob alone: filter=namespace:prod,
                        with the comma at its end keeps nodes and the cluster too.
  rename=OLD:NEW        write the metric OLD under the name NEW; repeatable, the first that matches counts; one "*"
                        in OLD stands for what "*" in NEW becomes: rename=cpu/*:k8s/cpu/*
  extended=true         beside Heapster's metrics also those it did not have
  cluster_name=NAME     what the sink calls the cluster; its name on the bus where not given
  timeout=DURATION      of one write, instead of --sink-export-data-timeout
  concurrency=N         write N parts of a batch at once, each series always in the same part, so in order; 1
  batchsize=N           most samples in one request, of sinks that send requests
  since=WHEN            where a sink that has not run before begins: now, a duration back (2h), an instant (RFC 3339);
                        else with all there is
  name=NAME             keeps its place under this name; made from the address and what tells targets apart otherwise
  cacert= cert= key=    files (PEM) with the certificate authorities, the client certificate and its key, of sinks
                        that speak TLS; insecuressl=true trusts any certificate
An option that holds a secret (pw, password, token, …) is better read from a file: pw_file=PATH instead of pw=…
$NAME or ${NAME} in the value of --sink is replaced from the environment.`

// filter says which entities, metrics and devices are written. A nil filter is everything. Glob patterns are
// matched once per metric of the catalogue, per entity and per device, never per sample, unless the sample's
// name is outside of the catalogue and was not seen before.
type filter struct {
	metric, kind, namespace rule
	labels                  []labelRule
}

// rule is what is said of one dimension.
type rule struct{ only, not []string }

// labelRule is what is said of the label of one key.
type labelRule struct {
	key string
	rule
}

// passes reports whether a value is to be written; "" stands for there being none.
func (r *rule) passes(value string) bool {
	return (len(r.only) == 0 || matchAny(r.only, value)) && !matchAny(r.not, value)
}

func (r *rule) empty() bool { return len(r.only) == 0 && len(r.not) == 0 }

func matchAny(globs []string, value string) bool {
	for _, g := range globs {
		if match(g, value) {
			return true
		}
	}
	return false
}

// match reports whether a glob matches all of s; "" is matched by "" alone.
func match(glob, s string) bool {
	if s == "" || glob == "" {
		return glob == s
	}
	// On a mismatch the last star takes one character more.
	g, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, from = g, i
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == s[i]):
			g++
			i++
		case star >= 0:
			from++
			g, i = star+1, from
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}

// Bounds of what may be given.
const (
	maxFilters = 256 // globs in all filters of a sink
	maxRenames = 256
)

// filter reads the options `filter`.
func (o *Options) filter() *filter {
	f := &filter{}
	n := 0
	for _, given := range o.All("filter") {
		expr, not := strings.CutPrefix(given, "-")
		dim, globs, ok := strings.Cut(expr, ":")
		if !ok {
			o.Complain("`filter` flag is %q: want DIM:GLOB,… or -DIM:GLOB,… such as metric:cpu/* or -namespace:kube-*", given)
			continue
		}
		r := f.rule(dim)
		if r == nil {
			near := daemon.Nearest(dim, []string{"metric", "type", "namespace", "label."})
			if dim == "level" {
				near = "type"
			}
			if near != "" {
				near = fmt.Sprintf(" (did you mean %q?)", near)
			}
			o.Complain("`filter` flag is %q: there is no %q to filter by: want metric, type, namespace or label.KEY%s", given, dim, near)
			continue
		}
		for glob := range strings.SplitSeq(globs, ",") {
			o.checkGlob(dim, glob)
			if n++; not {
				r.not = append(r.not, glob)
			} else {
				r.only = append(r.only, glob)
			}
		}
	}
	if n > maxFilters {
		o.Complain("`filter` flags have %d globs: at most %d", n, maxFilters)
	}
	if n == 0 {
		return nil
	}
	return f
}

func (f *filter) rule(dim string) *rule {
	switch dim {
	case "metric":
		return &f.metric
	case "type":
		return &f.kind
	case "namespace":
		return &f.namespace
	}
	key, ok := strings.CutPrefix(dim, "label.")
	if !ok || key == "" {
		return nil
	}
	for i := range f.labels {
		if f.labels[i].key == key {
			return &f.labels[i].rule
		}
	}
	f.labels = append(f.labels, labelRule{key: key})
	return &f.labels[len(f.labels)-1].rule
}

// checkGlob complains about a glob that can match nothing, and warns of one that matches nothing known.
func (o *Options) checkGlob(dim, glob string) {
	switch dim {
	case "type":
		var names []string
		for k := proto.KindCluster; int(k) < kinds; k++ {
			if match(glob, k.String()) {
				return
			}
			names = append(names, k.String())
		}
		o.Complain("`filter` flag: there is no type %q%s; known are %s", glob, didYouMean(glob, names), strings.Join(names, ", "))
	case "metric":
		o.checkMetric("filter", glob)
	}
}

// checkMetric warns of a glob that matches no metric of the catalogue; there may be others by that name.
func (o *Options) checkMetric(option, glob string) {
	var names []string
	for _, m := range proto.Metrics() {
		if match(glob, m.Name) {
			return
		}
		names = append(names, m.Name)
	}
	if strings.HasPrefix(glob, "custom/") || strings.HasSuffix(glob, "/request") || strings.HasSuffix(glob, "/limit") {
		return // of applications, of extended resources
	}
	o.Warn("option `%s`: no metric known now is called %q%s", option, glob, didYouMean(glob, names))
}

func didYouMean(given string, names []string) string {
	if near := daemon.Nearest(given, names); near != "" {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

// entity reports whether any sample of an entity with these labels may be written, as far as that does not
// depend on a device.
func (f *filter) entity(r *proto.Rollup, row int, labels []proto.Label) bool {
	if f == nil {
		return true
	}
	if !f.namespace.empty() && !f.namespace.passes(namespaceOf(&r.Table, row)) {
		return false
	}
	for i := range f.labels {
		l := &f.labels[i]
		if deviceLabel(l.key) {
			continue
		}
		if !l.passes(labelOf(&r.Table, row, labels, l.key)) {
			return false
		}
	}
	return true
}

// device reports whether the samples of a device may be written; of samples without one, where d is nil.
func (f *filter) device(d *proto.Device) bool {
	if f == nil {
		return true
	}
	var room [4]proto.Label
	labels := room[:0]
	for i := range f.labels {
		l := &f.labels[i]
		if !deviceLabel(l.key) {
			continue
		}
		if len(labels) == 0 && d != nil {
			labels = d.AppendLabels(labels)
		}
		if !l.passes(valueOf(labels, l.key)) {
			return false
		}
	}
	return true
}

// deviceLabel reports whether a label is one of devices.
func deviceLabel(key string) bool {
	switch key {
	case proto.LabelResourceID, proto.LabelMake, proto.LabelModel, proto.LabelAcceleratorID, proto.LabelInterface, proto.LabelClaim:
		return true
	}
	return false
}

func valueOf(labels []proto.Label, key string) string {
	for i := range labels {
		if labels[i].Key == key {
			return labels[i].Value
		}
	}
	return ""
}

// labelOf is the label of an entity's samples, or else its Kubernetes label; a container has its pod's.
func labelOf(t *proto.Table, row int, labels []proto.Label, key string) string {
	if v := valueOf(labels, key); v != "" {
		return v
	}
	e := &t.Entities[row]
	if e.Kind == proto.KindContainer {
		e = &t.Entities[e.Parent]
	}
	return valueOf(e.Labels, key)
}

func namespaceOf(t *proto.Table, row int) string {
	e := &t.Entities[row]
	switch e.Kind {
	case proto.KindNamespace:
		return e.Name
	case proto.KindPod, proto.KindWorkload:
		return e.Namespace
	case proto.KindContainer:
		return t.Entities[e.Parent].Namespace
	}
	return ""
}

// rename is one option `rename`.
type rename struct{ old, as string }

// renames reads the options `rename`.
func (o *Options) renames() (all []rename) {
	for _, given := range o.All("rename") {
		old, as, ok := strings.Cut(given, ":")
		switch {
		case !ok || old == "" || as == "":
			o.Complain("`rename` flag is %q: want OLD:NEW such as cpu/usage_rate:cpu/millicores or cpu/*:k8s/cpu/*", given)
			continue
		case strings.Count(old, "*") > 1 || strings.Count(as, "*") > strings.Count(old, "*"):
			o.Complain("`rename` flag is %q: want at most one * in the old name, and in the new one only if the old one has it", given)
			continue
		}
		o.checkMetric("rename", old)
		all = append(all, rename{old, as})
	}
	if len(all) > maxRenames {
		o.Complain("`rename` is given %d times: at most %d", len(all), maxRenames)
		return nil
	}
	if len(all) == 0 {
		return nil
	}
	// Two metrics of one entity under one name would be one series with two values.
	names := map[string]*proto.Metric{}
	metrics := proto.Metrics()
	for i := range metrics {
		m := &metrics[i]
		as := renamed(all, m.Name)
		if other := names[as]; other != nil && other.Device == m.Device && other.Levels&m.Levels != 0 {
			o.Complain("`rename` makes %q of both %q and %q", as, other.Name, m.Name)
			return nil
		}
		names[as] = m
	}
	return all
}

// renamed is the name under which a metric is written.
func renamed(all []rename, name string) string {
	for _, r := range all {
		before, after, star := strings.Cut(r.old, "*")
		switch {
		case !star && name == r.old:
			return r.as
		case star && len(name) >= len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after):
			return strings.Replace(r.as, "*", name[len(before):len(name)-len(after)], 1)
		}
	}
	return name
}

// Renamed is the name under which a metric is written.
func (v *View) Renamed(name string) string { return renamed(v.renames, name) }

// extra is how a name outside of the catalogue is written.
type extra struct {
	name string
	skip bool
}

// maxExtraNames bounds what is remembered of names outside of the catalogue: applications choose them.
const maxExtraNames = 4096

// extra decides about a name outside of the catalogue, by memory where it was seen before.
func (v *View) extra(name string) extra {
	if v.filter == nil && v.renames == nil {
		return extra{name: name}
	}
	x, ok := v.extras[name]
	if ok {
		return x
	}
	x = extra{name: renamed(v.renames, name), skip: v.filter != nil && !v.filter.metric.passes(name)}
	if v.extras == nil || len(v.extras) >= maxExtraNames {
		v.extras = map[string]extra{}
	}
	v.extras[strings.Clone(name)] = x
	return x
}

// Filtered reports whether `filter` or `rename` change what is written.
func (c *Common) Filtered() bool { return c.View.filter != nil || c.View.renames != nil }
