package proto

import (
	"slices"
	"strconv"
	"strings"
)

// World is a naming convention, beside Heapster's, under which metrics leave: names, units, labels and kinds of
// instruments. What each metric is in each world is written down once, in catalogue_worlds.go.
type World uint8

// The worlds.
const (
	// Prometheus names follow its conventions: base units (seconds, bytes, ratio, and cores), _total for counters, a
	// prefix that says where a metric comes from and at which level. Adding up one name over all of its series
	// makes sense: each level has names of its own. The prefix is one that neither kubelets, cAdvisor,
	// kube-state-metrics nor node_exporter use, so that nothing counts twice where those are scraped, too.
	Prometheus World = 0
	// OTel names follow the semantic conventions of OpenTelemetry for Kubernetes, containers and hardware, as of
	// August 2026, wherever those have one; where not, they are formed alike.
	OTel World = 1

	worlds = 2
)

// String is the world as operators write it.
func (w World) String() string {
	if w == OTel {
		return "otel"
	}
	return "prometheus"
}

// PrometheusPrefix begins every Prometheus name; the level follows.
const PrometheusPrefix = "kubernetes_"

// Instrument says what may be done with a metric's values.
type Instrument uint8

// The instruments.
const (
	InstrumentGauge   Instrument = iota // what is true of a moment
	InstrumentCounter                   // only grows, until it starts anew
	InstrumentUpDown                    // OTel alone: amounts that add up, such as bytes in use
)

// String is the instrument in OpenTelemetry's word.
func (i Instrument) String() string {
	return [...]string{"gauge", "counter", "updowncounter"}[i]
}

// Naming is what one metric at one level is in one world. It is shared and must not be altered.
type Naming struct {
	World  World
	Index  int // among all namings of its world, from 0, without gaps: for tables of an encoder's own
	Metric *Metric
	Kind   Kind
	Volume bool // for file systems of pods that are volumes, which have names of their own

	Name       string
	Unit       string     // Prometheus: the unit within the name, or ""; OTel: UCUM
	Instrument Instrument //
	Float      bool       // OTel: values are doubles; all of Prometheus' are
	Attributes []Label    // that every sample has beside those of its entity and device, sorted by key
	Help       string     // a sentence

	// Div is what a value in Heapster's unit is divided by, a power of ten.
	Div float64
	// Instead is a counter that says the same as this rate, or as this average: where the entity has the counter,
	// this goes out only if it is asked for. 0: there is none.
	Instead MetricID
	// Exact is a metric that says the same with more digits, and ExactDiv its Div. Its value goes out where there is one.
	Exact    MetricID
	ExactDiv float64
	// Start says that the time goes out at which the entity started, instead of how long ago that was.
	Start bool
	// NonZero says that 0 stands for there being none, and does not go out.
	NonZero bool
	// Started says that the counter began with its entity (FieldStart).
	Started bool
}

// Value is the number that goes out for a sample of one row of t, in the naming's unit; false where none does. v is
// the sample's value as [Table.Value] and [Table.DeviceValue] have it. rates asks for rates and averages even
// where a counter says the same.
func (n *Naming) Value(t *Table, row int, v Value, rates bool) (float64, bool) {
	return NumberOf(n, tableRow{t, row}, v, rates)
}

// Row is a row of values that are kept in another way than in a Table.
type Row interface {
	Get(f Field) (int64, bool)
	Value(id MetricID) (Value, bool) // as Table.Value
}

type tableRow struct {
	t   *Table
	row int
}

func (r tableRow) Get(f Field) (int64, bool)       { return r.t.Values.Get(r.row, f) }
func (r tableRow) Value(id MetricID) (Value, bool) { return r.t.Value(r.row, id) }

// NumberOf is [Naming.Value] for any row.
func NumberOf[R Row](n *Naming, r R, v Value, rates bool) (float64, bool) {
	switch {
	case n.Instead != 0 && !rates:
		if n.Metric.Device != 0 {
			return 0, false // those of devices are never sums, so there is a counter
		}
		if _, ok := r.Get(n.Instead.Field()); ok {
			return 0, false
		}
	case n.Start:
		start, ok := r.Get(FieldStart)
		return float64(start) / 1e9, ok
	case n.NonZero && v.Float64() == 0:
		return 0, false
	}
	if n.Exact != 0 {
		if exact, ok := r.Value(n.Exact); ok {
			return exact.Float64() / n.ExactDiv, true
		}
	}
	return v.Float64() / n.Div, true
}

// Naming is what a metric of the catalogue is for entities of a kind; nil where it does not go out, for which
// [World.Without] has the reason.
func (w World) Naming(id MetricID, k Kind) *Naming {
	if id > maxMetricID || int(k) >= len(named[w].plain[id]) {
		return nil
	}
	return named[w].plain[id][k]
}

// DeviceNaming is the same for a metric of a device.
func (w World) DeviceNaming(id MetricID, k Kind, d *Device) *Naming {
	if k == KindPod && d.IsVolume() && id <= maxMetricID {
		return named[w].volume[id]
	}
	return w.Naming(id, k)
}

// Namings are all of a world, in the catalogue's order; Index is the place of each. The slice must not be altered.
func (w World) Namings() []*Naming { return named[w].all }

// Without is why a metric of the catalogue does not go out under a name of its own; "" where it does.
func (w World) Without(id MetricID) string { return without[id] }

// volumePrefix begins the names of devices that are volumes of a pod.
const volumePrefix = "Volume:"

// IsVolume reports whether the device is a volume of a pod.
func (d *Device) IsVolume() bool {
	return d.Kind == DeviceFilesystem && strings.HasPrefix(d.Name, volumePrefix)
}

// Label keys of Prometheus series.
const (
	PrometheusCluster      = "cluster"
	PrometheusNamespace    = "namespace"
	PrometheusNode         = "node"
	PrometheusPod          = "pod"
	PrometheusContainer    = "container"
	PrometheusWorkload     = "workload"
	PrometheusWorkloadKind = "workload_kind"

	PrometheusFilesystem  = "filesystem"
	PrometheusVolume      = "volume"
	PrometheusClaim       = "persistentvolumeclaim"
	PrometheusInterface   = "interface"
	PrometheusDevice      = "device"
	PrometheusAccelerator = "accelerator"
	PrometheusMake        = "make"
	PrometheusModel       = "model"
	PrometheusResource    = "resource"      // of what an extended resource's request is
	PrometheusCustom      = "custom_metric" // the application's own name, where ours differs
)

// Attribute keys of OpenTelemetry. Those that begin with heapstream are for what the conventions have no word for.
const (
	OTelCluster         = "k8s.cluster.name"
	OTelNamespace       = "k8s.namespace.name"
	OTelNode            = "k8s.node.name"
	OTelNodeUID         = "k8s.node.uid"
	OTelPod             = "k8s.pod.name"
	OTelPodUID          = "k8s.pod.uid"
	OTelContainer       = "k8s.container.name"
	OTelImage           = "container.image.name"
	OTelSystemContainer = "k8s.node.system_container.name"
	OTelWorkload        = "heapstream.workload.name"
	OTelWorkloadKind    = "heapstream.workload.kind"

	OTelFilesystem = "heapstream.filesystem.name"
	OTelVolume     = "k8s.volume.name"
	OTelClaim      = "k8s.persistentvolumeclaim.name"
	OTelInterface  = "network.interface.name"
	OTelDevice     = "system.device"
	OTelHardware   = "hw.id"
	OTelVendor     = "hw.vendor"
	OTelModel      = "hw.model"
	OTelResource   = "heapstream.resource.name"
	OTelCustom     = "heapstream.custom.name" // the application's own name, where ours differs
)

// otelWorkloads are the attributes of the workloads that the conventions know, by their kind.
var otelWorkloads = map[string]string{
	"Deployment": "k8s.deployment.name", "StatefulSet": "k8s.statefulset.name", "DaemonSet": "k8s.daemonset.name", "ReplicaSet": "k8s.replicaset.name",
	"Job": "k8s.job.name", "CronJob": "k8s.cronjob.name", "ReplicationController": "k8s.replicationcontroller.name",
}

// AppendEntityLabels appends to dst, sorted by key, the labels that tell one row of a rollup's table from others
// and say where it belongs, without that of the cluster and without empty ones. Of Prometheus these make the
// series, and are no more than needed: no UIDs, no images. Of OTel they are the resource.
func (w World) AppendEntityLabels(dst []Label, t *Table, row int) []Label {
	e := &t.Entities[row]
	from := len(dst)
	add := func(key, value string) {
		if value != "" {
			dst = append(dst, Label{key, value})
		}
	}
	pod, container, system, namespace := (*Entity)(nil), "", "", ""
	owner := Owner{}
	switch e.Kind {
	case KindNamespace:
		namespace = e.Name
	case KindWorkload:
		namespace, owner = e.Namespace, Owner{e.Owner.Kind, e.Name}
	case KindPod:
		pod = e
	case KindContainer:
		pod, container = &t.Entities[e.Parent], e.Name
	case KindSystemContainer:
		system = e.Name
	}
	if pod != nil {
		namespace, owner = pod.Namespace, pod.Owner
	}
	node := t.nodeOf(row)
	if w == Prometheus {
		add(PrometheusContainer, container+system) // never both
		add(PrometheusNamespace, namespace)
		if node != nil {
			add(PrometheusNode, node.Name)
		}
		if pod != nil {
			add(PrometheusPod, pod.Name)
		}
		add(PrometheusWorkload, owner.Name)
		add(PrometheusWorkloadKind, owner.Kind)
		return dst
	}
	if container != "" {
		add(OTelImage, e.Image)
	}
	add(OTelContainer, container)
	add(OTelNamespace, namespace)
	add(OTelSystemContainer, system)
	if node != nil {
		add(OTelNode, node.Name)
		add(OTelNodeUID, node.UID)
	}
	if pod != nil {
		add(OTelPod, pod.Name)
		add(OTelPodUID, pod.UID)
	}
	if key, ok := otelWorkloads[owner.Kind]; ok {
		add(key, owner.Name)
	} else if owner.Kind != "Pod" || pod == nil { // a bare pod is its own workload, and named already
		add(OTelWorkloadKind, owner.Kind)
		add(OTelWorkload, owner.Name)
	}
	slices.SortFunc(dst[from:], func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
	return dst
}

// AppendDeviceLabels appends to dst, sorted by key, what tells a device from others of its entity, without empty
// labels.
func (w World) AppendDeviceLabels(dst []Label, d *Device) []Label {
	add := func(prometheus, otel, value string) {
		key := prometheus
		if w == OTel {
			key = otel
		}
		if value != "" {
			dst = append(dst, Label{key, value})
		}
	}
	switch {
	case d.Kind == DeviceInterface:
		add(PrometheusInterface, OTelInterface, d.Name)
	case d.Kind == DeviceDisk:
		add(PrometheusDevice, OTelDevice, d.Name)
	case d.Kind == DeviceAccelerator && w == OTel:
		add("", OTelHardware, d.Name)
		add("", OTelModel, d.Model)
		add("", OTelVendor, d.Make)
	case d.Kind == DeviceAccelerator:
		add(PrometheusAccelerator, "", d.Name)
		add(PrometheusMake, "", d.Make)
		add(PrometheusModel, "", d.Model)
	case d.IsVolume():
		add(PrometheusClaim, OTelClaim, d.Claim)
		add(PrometheusVolume, OTelVolume, d.Name[len(volumePrefix):])
	default:
		add(PrometheusFilesystem, OTelFilesystem, d.Name)
	}
	return dst
}

// ExtraNaming makes the naming of a value outside of the catalogue (see [IsExtra]) for entities of a kind. Any other name
// is one that an operator gave such a value, and stays as it is. It is not fast: an encoder keeps what it was given,
// within bounds of its own. Its Metric is nil and its Index -1.
func (w World) ExtraNaming(name string, k Kind, counter bool) *Naming {
	n := &Naming{World: w, Index: -1, Kind: k, Div: 1, Float: true, Help: "As " + name + " of the application or the kubelet."}
	if counter {
		n.Instrument = InstrumentCounter
	}
	custom, isCustom := strings.CutPrefix(name, "custom/")
	resource := strings.TrimSuffix(name, "/request")
	switch {
	case !IsExtra(name):
		n.Name = name
		if w == OTel {
			n.Unit = "1"
		}
	case w == Prometheus && isCustom:
		n.Name = PrometheusPrefix + levelWords[k] + "_custom_" + PrometheusName(custom)
		if counter && !strings.HasSuffix(n.Name, "_total") {
			n.Name += "_total"
		}
		if !strings.HasSuffix(n.Name, "_custom_"+custom) { // another may have become the same
			n.Attributes = []Label{{PrometheusCustom, custom}}
		}
	case w == Prometheus:
		n.Name = PrometheusPrefix + levelWords[k] + "_extended_resource_request"
		n.Attributes = []Label{{PrometheusResource, resource}}
		n.Help = "Amount of an extended resource requested."
	case isCustom:
		n.Name, n.Unit = otelPrefix(k, "")+"custom."+otelName(custom), "1"
		if !strings.HasSuffix(n.Name, "custom."+custom) {
			n.Attributes = []Label{{OTelCustom, custom}}
		}
	default:
		n.Name, n.Unit = otelPrefix(k, "spec")+"extended_resource.request", "1"
		n.Instrument = InstrumentUpDown
		n.Attributes = []Label{{OTelResource, resource}}
		n.Help = "Amount of an extended resource requested."
	}
	return n
}

// PrometheusName makes a metric's or a label's name of any text: each character that is none of a-z, A-Z, 0-9 and
// _ becomes _, and a digit at the beginning gets one before it. Different texts may become one name.
func PrometheusName(s string) string {
	var b strings.Builder
	for i, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '_':
			b.WriteRune(r)
		case r >= '0' && r <= '9':
			if i == 0 {
				b.WriteByte('_')
			}
			b.WriteRune(r)
		default:
			b.WriteByte('_')
		}
	}
	if b.Len() == 0 {
		return "_"
	}
	return b.String()
}

// otelName makes a part of an OpenTelemetry name of any text: lower-case letters, digits, "_", "-" and "." for "/".
func otelName(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r == '/':
			return '.'
		}
		return '_'
	}, s)
}

// LabelKeys are the keys that samples of the naming have beside that of the cluster, sorted: constant ones, those
// of the entity, those of the device. Which of them a sample has depends on what is known of its entity.
func (n *Naming) LabelKeys() (keys []string) {
	t := &Table{}
	node := int32(t.AddEntity(Entity{Kind: KindNode, Parent: -1, Name: "x", UID: "x"}))                                                     //nolint:gosec // 0
	pod := int32(t.AddEntity(Entity{Kind: KindPod, Parent: node, Name: "x", Namespace: "x", UID: "x", Owner: Owner{Kind: "x", Name: "x"}})) //nolint:gosec // 1
	row := t.AddEntity(Entity{Kind: n.Kind, Parent: map[Kind]int32{KindContainer: pod, KindPod: node, KindSystemContainer: node}[n.Kind], Name: "x", Namespace: "x", UID: "x", Image: "x", Owner: Owner{Kind: "x", Name: "x"}})
	switch n.Kind {
	case KindCluster, KindNamespace, KindNode, KindWorkload:
		t.Entities[row].Parent = -1
	}
	labels := n.World.AppendEntityLabels(slices.Clone(n.Attributes), t, row)
	if n.Metric != nil && n.Metric.Device != 0 {
		d := Device{Kind: n.Metric.Device, Name: "x", Claim: "x", Make: "x", Model: "x"}
		if n.Volume {
			d.Name = volumePrefix + "x"
		}
		labels = n.World.AppendDeviceLabels(labels, &d)
	}
	for _, l := range labels {
		keys = append(keys, l.Key)
	}
	slices.Sort(keys)
	return keys
}

// namings is one world, indexed.
type namings struct {
	plain  [maxMetricID + 1][KindWorkload + 1]*Naming
	volume [maxMetricID + 1]*Naming // of pods
	all    []*Naming
}

var named = [worlds]*namings{nameAll(Prometheus), nameAll(OTel)}

// levelWords are the levels as they stand in Prometheus names.
var levelWords = [...]string{
	KindCluster: "cluster", KindNamespace: "namespace", KindNode: "node", KindPod: "pod", KindContainer: "container",
	KindSystemContainer: "system_container", KindWorkload: "workload",
}

// LevelWord is the level as it stands in the names of both worlds.
func (k Kind) LevelWord() string {
	if k < KindCluster || int(k) >= len(levelWords) {
		return k.String()
	}
	return levelWords[k]
}

// otelPrefix begins OTel names. What a container uses is container.*, what its specification says k8s.container.*;
// hw.* has no level.
func otelPrefix(k Kind, of string) string {
	switch {
	case of == "hw":
		return ""
	case k == KindContainer && of == "":
		return "container."
	case k == KindSystemContainer:
		return "k8s.node.system_container."
	}
	return "k8s." + levelWords[k] + "."
}

func nameAll(w World) *namings {
	all := &namings{}
	for i := range catalogue {
		m := &catalogue[i]
		spell := spellings[m.ID]
		if spell == nil || without[m.ID] != "" {
			continue
		}
		for k := KindCluster; k <= KindWorkload; k++ {
			if !m.Levels.Has(k) {
				continue
			}
			n := spell.naming(w, m, k, false)
			n.Index = len(all.all)
			all.all = append(all.all, n)
			all.plain[m.ID][k] = n
			if m.Device == DeviceFilesystem && k == KindPod {
				n := spell.naming(w, m, k, true)
				n.Index = len(all.all)
				all.all = append(all.all, n)
				all.volume[m.ID] = n
			}
		}
	}
	return all
}

// spelling is a line of the mapping: both worlds' names without prefix and level.
type spelling struct {
	prom    string // its unit is what stands before _total, or at the end
	otel    string
	unit    string // UCUM
	as      Instrument
	div     float64 // 1 where 0
	of      string  // for OTel: "spec" is told of the entity, "hw" is of hardware
	attrs   []Label // OTel
	instead MetricID
	exact   MetricID
	start   bool // Prometheus
	nonZero bool
	help    string // where the catalogue's speaks of Heapster's unit
}

func (s *spelling) naming(w World, m *Metric, k Kind, volume bool) *Naming {
	n := &Naming{
		World: w, Metric: m, Kind: k, Volume: volume, Instrument: s.as, Div: max(s.div, 1), Instead: s.instead, Exact: s.exact, NonZero: s.nonZero,
		Started: s.as == InstrumentCounter, Help: s.help,
	}
	if n.Help == "" || s.start && w == OTel {
		n.Help = m.Help
	}
	if n.Exact != 0 {
		n.ExactDiv = spellings[s.exact].div
	}
	if s.instead != 0 && !MetricByID(s.instead).Levels.Has(k) {
		n.Instead = 0 // sums have no counter
	}
	if w == OTel {
		name := s.otel
		if volume {
			name = "volume" + strings.TrimPrefix(name, "filesystem")
		}
		n.Name, n.Unit, n.Attributes = otelPrefix(k, s.of)+name, s.unit, s.attrs
		n.Float = m.Float && !strings.HasPrefix(s.unit, "By") || n.Div != 1 || s.unit == "s" || strings.HasSuffix(s.unit, "/s") || s.unit == "1"
		return n
	}
	name := s.prom
	if volume {
		name = "volume" + strings.TrimPrefix(name, "filesystem")
	}
	n.Name, n.Float, n.Start = PrometheusPrefix+levelWords[k]+"_"+name, true, s.start
	if n.Instrument == InstrumentUpDown {
		n.Instrument = InstrumentGauge
	}
	if strings.HasSuffix(name, "_total") {
		n.Instrument = InstrumentCounter
	}
	word := strings.TrimSuffix(name, "_total")
	if word = word[strings.LastIndexByte(word, '_')+1:]; slices.Contains([]string{"seconds", "bytes", "ratio", "cores"}, word) {
		n.Unit = word
	}
	return n
}

// Factor is how a value in Heapster's unit becomes one of the naming, for people: "1", "/ 1e9".
func (n *Naming) Factor() string {
	switch {
	case n.Start:
		return "now - x / 1e3"
	case n.Div == 1:
		return "x"
	}
	return "x / " + strconv.FormatFloat(n.Div, 'g', -1, 64)
}
