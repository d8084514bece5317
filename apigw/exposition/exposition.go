package exposition

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/daemon"
)

// MaxSeries is how many series one answer may have at most: some 200 bytes each, and 100 bytes of memory while it is
// made.
const MaxSeries = 1_000_000

// maxParameters bounds the values of all parameters.
const maxParameters = 256

// The types that are spoken.
const (
	typeText        = "text/plain; version=0.0.4; charset=utf-8"
	typeOpenMetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8"
)

// API answers /metrics/cluster.
type API struct {
	max   int
	store map[string]string // Kubernetes label -> label of series
	ready func(*view.Cluster) bool
}

// New returns the API. labels says under which names Kubernetes labels are stored.
func New(labels proto.LabelFormat) *API {
	a := &API{max: MaxSeries, ready: (*view.Cluster).Ready, store: make(map[string]string, len(labels.Store))}
	for k, as := range labels.Store {
		a.store[k] = proto.PrometheusName(as)
	}
	return a
}

// Serve answers q for one cluster.
func (a *API) Serve(q *answer.Request, c *view.Cluster) {
	q.Handler = "clusterMetrics"
	if q.R.Method != http.MethodGet {
		q.Text(http.StatusMethodNotAllowed, answer.TextMethod)
		return
	}
	ask, err := parse(q.R.URL.Query(), a.max)
	if err != nil {
		q.Text(http.StatusBadRequest, "400: "+err.Error()+"\n")
		return
	}
	if !a.ready(c) {
		q.Text(http.StatusServiceUnavailable, "503: the last rollups of cluster "+strconv.Quote(c.Name())+" have not been read yet\n")
		return
	}
	open := acceptsOpenMetrics(q.R.Header["Accept"])
	contentType := typeText
	if open {
		contentType = typeOpenMetrics
	}
	g := gathers.Get().(*gather) //nolint:errcheck,forcetypeassert // what New made
	defer g.release()
	q.StreamAs(contentType, func() bool {
		g.store = a.store
		g.gather(c, ask)
		if len(g.samples) <= ask.limit {
			return true
		}
		q.Text(http.StatusRequestEntityTooLarge, fmt.Sprintf("413: the answer would have %d or more series, at most %d are given: ask for less "+
			"by the parameters level, metric, namespace or node, such as ?level=pod&namespace=team-*\n", len(g.samples), ask.limit))
		return false
	}, func(s *answer.Stream) { g.write(s, open) })
}

// acceptsOpenMetrics reports whether a client takes OpenMetrics. Those who name it prefer it, unless its weight is 0.
func acceptsOpenMetrics(accepts []string) bool {
	for _, accept := range accepts {
		for one := range strings.SplitSeq(accept, ",") {
			kind, parameters, _ := strings.Cut(one, ";")
			if strings.TrimSpace(kind) != "application/openmetrics-text" {
				continue
			}
			refused := false
			for p := range strings.SplitSeq(parameters, ";") {
				weight, is := strings.CutPrefix(strings.TrimSpace(p), "q=")
				f, err := strconv.ParseFloat(weight, 64)
				refused = refused || is && err == nil && f == 0
			}
			if !refused {
				return true
			}
		}
	}
	return false
}

// question is what a request asks for.
type question struct {
	levels            proto.Levels
	metrics           []string // globs; nil for all
	namespaces, nodes []string // likewise
	extended, rates   bool
	limit             int
}

var parameters = []string{"level", "metric", "namespace", "node", "extended", "rates", "limit"}

// parse reads the parameters.
func parse(values url.Values, most int) (*question, error) {
	q := &question{limit: most}
	n := 0
	for name, given := range values {
		if !slices.Contains(parameters, name) {
			if near := daemon.Nearest(name, parameters); near != "" {
				return nil, fmt.Errorf("there is no parameter %q (did you mean %q?)", answer.Clip(name), near)
			}
			return nil, fmt.Errorf("there is no parameter %q; known are %s", answer.Clip(name), strings.Join(parameters, ", "))
		}
		for _, value := range given {
			for one := range strings.SplitSeq(value, ",") {
				if n++; n > maxParameters {
					return nil, fmt.Errorf("more than %d values are given", maxParameters)
				}
				if err := q.take(name, one); err != nil {
					return nil, err
				}
			}
		}
	}
	if q.levels == 0 {
		q.levels = ^proto.Levels(0)
	}
	return q, nil
}

func (q *question) take(name, value string) (err error) {
	switch name {
	case "level":
		k, err := levelOf(value)
		if err != nil {
			return err
		}
		q.levels |= 1 << k
	case "metric":
		if !anyMetric(value) {
			return fmt.Errorf("no metric is called %q: see heapstream metrics --world=prometheus", answer.Clip(value))
		}
		q.metrics = append(q.metrics, value)
	case "namespace":
		q.namespaces = append(q.namespaces, value)
	case "node":
		q.nodes = append(q.nodes, value)
	case "extended":
		q.extended, err = strconv.ParseBool(value)
	case "rates":
		q.rates, err = strconv.ParseBool(value)
	case "limit":
		n, e := strconv.Atoi(value)
		if e != nil || n < 1 {
			return fmt.Errorf("limit is %q: want a positive number", answer.Clip(value))
		}
		q.limit = min(q.limit, n)
	}
	if err != nil {
		return fmt.Errorf("%s is %q: want true or false", name, answer.Clip(value))
	}
	return nil
}

func levelOf(word string) (proto.Kind, error) {
	var words []string
	for k := proto.KindCluster; k <= proto.KindWorkload; k++ {
		if k.LevelWord() == word {
			return k, nil
		}
		words = append(words, k.LevelWord())
	}
	if near := daemon.Nearest(word, words); near != "" {
		return 0, fmt.Errorf("there is no level %q (did you mean %q?)", answer.Clip(word), near)
	}
	return 0, fmt.Errorf("there is no level %q; known are %s", answer.Clip(word), strings.Join(words, ", "))
}

func anyMetric(glob string) bool {
	for _, n := range proto.Prometheus.Namings() {
		if match(glob, n.Metric.Name) || match(glob, n.Name) {
			return true
		}
	}
	return false
}

func (q *question) wants(n *proto.Naming) bool {
	if !q.levels.Has(n.Kind) || !q.extended && n.Metric.OursAt(n.Kind) {
		return false
	}
	if !q.rates && n.Instead != 0 && n.Metric.Device != 0 {
		return false
	}
	return len(q.metrics) == 0 || slices.ContainsFunc(q.metrics, func(glob string) bool { return match(glob, n.Metric.Name) || match(glob, n.Name) })
}

func matchAny(globs []string, s string) bool {
	return len(globs) == 0 || slices.ContainsFunc(globs, func(glob string) bool { return match(glob, s) })
}

// match reports whether a glob, in which "*" is any text and "?" any one byte, matches all of s.
func match(glob, s string) bool {
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
	return strings.Trim(glob[g:], "*") == ""
}

// gather is the samples of one answer. Its memory serves one request after the other.
type gather struct {
	ask   *question
	plain []bool // wanted, by Naming.Index

	cluster string
	store   map[string]string
	table   *proto.Table // of the node at hand; nil for sums
	sums    proto.Table  // of one row, for labels of sums
	kind    proto.Kind
	row     int
	entity  []proto.Label
	device  proto.Device
	set     text // of the entity
	dset    text // of its device; from 0 to 0: not made yet

	text    []byte // labels, without braces
	samples []sample
	counts  []int32
	order   []int32
}

type text struct{ from, to int32 }

type sample struct {
	value  float64
	at     int64
	naming int32
	labels text
}

var gathers = sync.Pool{New: func() any { return new(gather) }}

// maxKept bounds what a gather keeps between requests.
const maxKept = 100_000

func (g *gather) release() {
	g.ask, g.table = nil, nil
	if cap(g.samples) > maxKept {
		*g = gather{}
	}
	gathers.Put(g)
}

// deviceKeep is how long samples of devices are shown, ms: they are never taken from a rollup.
const deviceKeep = 5 * 60 * 1000

// gather reads all that is asked for.
func (g *gather) gather(c *view.Cluster, ask *question) {
	g.ask, g.cluster = ask, c.Name()
	g.text, g.samples = g.text[:0], g.samples[:0]
	all := proto.Prometheus.Namings()
	g.plain = slices.Grow(g.plain[:0], len(all))[:len(all)]
	wanted := [proto.KindWorkload + 1][]window.Wanted{}
	for i, n := range all {
		g.plain[i] = ask.wants(n)
		if !g.plain[i] {
			continue
		}
		one := window.Wanted{Metric: n.Metric}
		if n.Instead != 0 && !ask.rates {
			one.Unless = n.Instead.Field()
		}
		if !slices.ContainsFunc(wanted[n.Kind], func(w window.Wanted) bool { return w.Metric == n.Metric }) {
			wanted[n.Kind] = append(wanted[n.Kind], one)
		}
	}
	c.Sweep(window.NewSweep(func(k proto.Kind) []window.Wanted { return wanted[k] }), g)
}

// full reports whether it is clear that there is too much.
func (g *gather) full() bool { return len(g.samples) > g.ask.limit }

// Node begins a node.
func (g *gather) Node(name string, t *proto.Table) bool {
	g.table = t
	return !g.full() && matchAny(g.ask.nodes, name) && g.ask.levels&onNodes != 0
}

const (
	onNodes = proto.Levels(1<<proto.KindNode | 1<<proto.KindPod | 1<<proto.KindContainer | 1<<proto.KindSystemContainer)
	sums    = proto.Levels(1<<proto.KindNamespace | 1<<proto.KindWorkload | 1<<proto.KindCluster)
)

// Sums begins a namespace or the cluster.
func (g *gather) Sums(string) bool {
	g.table = nil
	return !g.full() && len(g.ask.nodes) == 0 && g.ask.levels&sums != 0
}

// Entity begins an entity.
func (g *gather) Entity(row int, e window.Entity) bool {
	g.kind, g.row = e.Kind, row
	if !g.ask.levels.Has(e.Kind) || g.full() || len(g.ask.namespaces) > 0 && (e.Namespace == "" || !matchAny(g.ask.namespaces, e.Namespace)) {
		return false
	}
	t := g.table
	if t == nil {
		t, row = &g.sums, 0
		of := proto.Entity{Kind: e.Kind, Parent: -1, Name: e.Namespace}
		if e.Kind == proto.KindWorkload {
			of.Name, of.Namespace, of.Owner = e.Name, e.Namespace, proto.Owner{Kind: e.OwnerKind}
		}
		t.Entities = append(t.Entities[:0], of)
	}
	g.entity = append(g.entity[:0], proto.Label{Key: proto.PrometheusCluster, Value: g.cluster})
	g.entity = proto.Prometheus.AppendEntityLabels(g.entity, t, row)
	g.storeLabels(t, row)
	g.set, g.dset, g.device = g.appendLabels(g.entity), text{}, proto.Device{}
	return true
}

// storeLabels adds the Kubernetes labels that are wanted, under keys that are not taken.
func (g *gather) storeLabels(t *proto.Table, row int) {
	if len(g.store) == 0 {
		return
	}
	e := &t.Entities[row]
	if e.Kind == proto.KindContainer {
		e = &t.Entities[e.Parent]
	}
	for _, l := range e.Labels {
		as, ok := g.store[l.Key]
		if ok && l.Value != "" && !slices.ContainsFunc(g.entity, func(l proto.Label) bool { return l.Key == as }) {
			g.entity = append(g.entity, proto.Label{Key: as, Value: l.Value})
		}
	}
}

// Sample is one of the entity.
func (g *gather) Sample(m *proto.Metric, d *proto.Device, v proto.Value, at int64, r window.Row) {
	n, labels := (*proto.Naming)(nil), g.set
	switch {
	case d == nil:
		n = proto.Prometheus.Naming(m.ID, g.kind)
	case !g.ask.extended && d.Ours(), at < r.Newest()-deviceKeep:
		return
	default:
		n = proto.Prometheus.DeviceNaming(m.ID, g.kind, d)
	}
	if n == nil || !g.plain[n.Index] {
		return
	}
	value, ok := proto.NumberOf(n, r, v, true) // rates that are not asked for are not read
	if !ok {
		return
	}
	if d != nil {
		if *d != g.device || g.dset.to == 0 {
			g.device = *d
			own := *d
			if !g.ask.extended {
				own.Claim = "" // as sinks
			}
			g.dset = g.appendLabels(proto.Prometheus.AppendDeviceLabels(g.entity, &own))
		}
		labels = g.dset
	}
	g.samples = append(g.samples, sample{value: value, at: at, naming: int32(n.Index), labels: labels}) //nolint:gosec // some hundred
}

// appendLabels appends labels as both formats have them.
func (g *gather) appendLabels(labels []proto.Label) text {
	from := len(g.text)
	for i, l := range labels {
		if i > 0 {
			g.text = append(g.text, ',')
		}
		g.text = append(append(g.text, l.Key...), '=', '"')
		g.text = appendEscaped(g.text, l.Value)
		g.text = append(g.text, '"')
	}
	return text{int32(from), int32(len(g.text))} //nolint:gosec // MaxSeries bounds it
}

// appendEscaped escapes a label's value: backslash, quote and newline. Bytes that are no UTF-8 become U+FFFD.
func appendEscaped(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c == '\\' || c == '"' || c == '\n' || c >= 0x80 {
			s = strings.ToValidUTF8(s, "\uFFFD")
			for j := range len(s) {
				switch c := s[j]; c {
				case '\\', '"':
					dst = append(dst, '\\', c)
				case '\n':
					dst = append(dst, '\\', 'n')
				default:
					dst = append(dst, c)
				}
			}
			return dst
		}
	}
	return append(dst, s...)
}

// write writes all samples, family by family.
func (g *gather) write(s *answer.Stream, open bool) {
	all := proto.Prometheus.Namings()
	g.counts = slices.Grow(g.counts[:0], len(all)+1)[:len(all)+1]
	clear(g.counts)
	for i := range g.samples {
		g.counts[g.samples[i].naming+1]++
	}
	for i := 1; i < len(g.counts); i++ {
		g.counts[i] += g.counts[i-1]
	}
	g.order = slices.Grow(g.order[:0], len(g.samples))[:len(g.samples)]
	place := slices.Clone(g.counts)
	for i := range g.samples {
		n := g.samples[i].naming
		g.order[place[n]] = int32(i) //nolint:gosec // MaxSeries bounds it
		place[n]++
	}
	for i, n := range all {
		from, to := g.counts[i], g.counts[i+1]
		if from == to {
			continue
		}
		s.B = appendHead(s.B, n, open)
		for _, at := range g.order[from:to] {
			one := &g.samples[at]
			s.B = append(append(s.B, n.Name...), '{')
			s.B = append(append(s.B, g.text[one.labels.from:one.labels.to]...), '}', ' ')
			s.B = strconv.AppendFloat(s.B, one.value, 'g', -1, 64)
			s.B = append(s.B, ' ')
			s.B = appendTime(s.B, one.at, open)
			s.B = append(s.B, '\n')
			if !s.Send() {
				return
			}
		}
	}
	if open {
		s.B = append(s.B, "# EOF\n"...)
	}
}

// appendHead appends what is said of a family. In OpenMetrics a counter's family lacks _total.
func appendHead(b []byte, n *proto.Naming, open bool) []byte {
	family := n.Name
	if open {
		family = strings.TrimSuffix(family, "_total")
	}
	b = fmt.Appendf(b, "# HELP %s %s\n# TYPE %s %s\n", family, n.Help, family, n.Instrument)
	if open && n.Unit != "" {
		b = fmt.Appendf(b, "# UNIT %s %s\n", family, n.Unit)
	}
	return b
}

// appendTime appends a time: milliseconds, or in OpenMetrics seconds.
func appendTime(b []byte, ms int64, open bool) []byte {
	if !open {
		return strconv.AppendInt(b, ms, 10)
	}
	if ms < 0 {
		return strconv.AppendFloat(b, float64(ms)/1e3, 'f', 3, 64)
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	frac := ms % 1000
	return append(b, '.', byte('0'+frac/100), byte('0'+frac/10%10), byte('0'+frac%10))
}
