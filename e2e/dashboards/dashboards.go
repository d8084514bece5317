// Package dashboards is where the Grafana dashboards of deploy/observability are made: each panel is told once, as
// what it shows, and written for every data source that has it.
//
// The files are renewed by this package's test with -update; e2e/telemetry_test.go asks every query of a real
// database fed by the pipeline.
//
// Not here: the names of metrics (proto says them for Prometheus), what the numbers mean (deploy/observability).
package dashboards

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// The data sources, as provisioning names them.
const (
	InfluxDB   = "influxdb"
	Prometheus = "prometheus"
)

// Dashboard is one dashboard for one data source.
type Dashboard struct {
	File      string // in deploy/observability/grafana/dashboards
	Title     string
	Source    string // InfluxDB or Prometheus
	Variables []Variable
	Panels    []Panel
}

// Variable is something to choose from.
type Variable struct{ Name, Query string }

// Panel is one graph or number.
type Panel struct {
	Title, Unit, About string
	Stat               bool // one number instead of a graph
	Targets            []Target
}

// Target is one query of a panel, with what its series are called.
type Target struct{ Query, Legend string }

// All are the dashboards, in the order of their files' names.
func All() []Dashboard {
	all := []Dashboard{pipeline()}
	for _, l := range levels {
		all = append(all, l.influx(), l.prometheus())
	}
	slices.SortFunc(all, func(a, b Dashboard) int { return strings.Compare(a.File, b.File) })
	return all
}

// pipeline is heapstream's own health.
func pipeline() Dashboard {
	one := func(title, unit, about, query, legend string) Panel {
		return Panel{Title: title, Unit: unit, About: about, Targets: []Target{{query, legend}}}
	}
	stat := func(title, unit, about, query string) Panel {
		return Panel{Title: title, Unit: unit, About: about, Stat: true, Targets: []Target{{query, ""}}}
	}
	of := `{cluster=~"$cluster"}`
	return Dashboard{File: "pipeline.json", Title: "heapstream: pipeline", Source: Prometheus,
		Variables: []Variable{{"cluster", "label_values(heapstream_apigw_nodes, cluster)"}},
		Panels: []Panel{
			stat("Nodes scraped", "short", "Of all scrapers.", "sum(heapstream_scraper_nodes)"),
			stat("Kubelets failing", "short", "Nodes whose last scrape failed.", "sum(heapstream_scraper_nodes_failing)"),
			stat("Nodes missing", "short", "At the newest closed tick.", "max(heapstream_aggregator_nodes_missing"+of+")"),
			stat("Newest closed tick", "s", "Its age.", "min(heapstream_aggregator_newest_tick_age_seconds"+of+")"),
			stat("Owned clusters", "short", "One aggregator each.", "sum(heapstream_aggregator_clusters_owned"+of+")"),
			stat("Sinks up", "short", "Whose last write was accepted.", "sum(heapstream_sink_up)"),
			one("Scrapes by result", "ops", "", "sum by (result) (rate(heapstream_scraper_scrapes_total[$__rate_interval])) > 0", "{{result}}"),
			one("Scrape duration", "s", "95th percentile and median.", "histogram_quantile(0.95, sum by (le) (rate(heapstream_scraper_scrape_duration_seconds_bucket[$__rate_interval])))", "95 %"),
			one("Batches published", "ops", "", "sum(rate(heapstream_scraper_batches_published_total[$__rate_interval]))", "published"),
			one("Backlog", "bytes", "Batches that wait for the bus.", "sum by (instance) (heapstream_scraper_backlog_bytes)", "{{instance}}"),
			one("Batches by verdict", "ops", "", "sum by (cluster, verdict) (rate(heapstream_aggregator_batches_total"+of+"[$__rate_interval]))", "{{cluster}} {{verdict}}"),
			one("Age of the newest closed tick", "s", "", "min by (cluster) (heapstream_aggregator_newest_tick_age_seconds"+of+")", "{{cluster}}"),
			one("Missing, standing in, without rate", "short", "At the newest closed tick.", "max by (cluster) (heapstream_aggregator_stand_ins"+of+")", "{{cluster}} stand-ins"),
			one("Publishing rollups", "s", "95th percentile, by scope.", "histogram_quantile(0.95, sum by (scope, le) (rate(heapstream_aggregator_publish_seconds_bucket[$__rate_interval])))", "{{scope}}"),
			one("Kubelet to gateway", "s", "99th percentile of our own delay.", "histogram_quantile(0.99, sum by (cluster, le) (rate(heapstream_apigw_delay_seconds_bucket"+of+"[$__rate_interval])))", "{{cluster}}"),
			one("Nodes in gateways", "short", "", "heapstream_apigw_nodes"+of, "{{instance}} {{cluster}}"),
			one("Rollups into gateways", "ops", "", "sum by (scope) (rate(heapstream_apigw_rollups_total"+of+"[$__rate_interval])) > 0", "{{scope}}"),
			one("Requests of the Heapster surface", "reqps", "", "sum by (handler, code) (rate(heapstream_apigw_http_requests_total[$__rate_interval]))", "{{handler}} {{code}}"),
			one("Written by sinks", "ops", "Messages.", "sum by (sink, cluster) (rate(heapstream_sink_messages_written_total[$__rate_interval]))", "{{sink}} {{cluster}}"),
			one("Behind", "s", "Age of the oldest message not yet written.", "max by (sink, cluster) (heapstream_sink_oldest_pending_seconds)", "{{sink}} {{cluster}}"),
			one("Write duration", "s", "95th percentile.", "histogram_quantile(0.95, sum by (sink, le) (rate(heapstream_sink_write_seconds_bucket[$__rate_interval])))", "{{sink}}"),
			one("Refused and lost", "ops", "Messages and samples, for good.", "sum by (sink) (rate(heapstream_sink_messages_refused_total[$__rate_interval]) + rate(heapstream_sink_samples_refused_total[$__rate_interval]) + rate(heapstream_sink_lost_total[$__rate_interval]))", "{{sink}}"),
			one("Processor time", "short", "Cores, of every process.", "rate(process_cpu_seconds_total{job=~\"heapstream.*\"}[$__rate_interval])", "{{instance}}"),
			one("Resident memory", "bytes", "Of every process.", "process_resident_memory_bytes{job=~\"heapstream.*\"}", "{{instance}}"),
		}}
}

// level is a dashboard about one entity, with what it consists of.
type level struct {
	name    string
	choices []choice // what has to be chosen
	panels  []measure
}

// choice is a label by which one is chosen, in both worlds. Its values are asked of entities of that kind.
type choice struct {
	name, influx, prometheus string
	kind                     proto.Kind
}

// measure is one thing to see.
type measure struct {
	title, unit string
	of          proto.Kind // whose; each of them is a series
	shows       []proto.MetricID
}

var (
	node      = choice{"node", proto.LabelNodename, proto.PrometheusNode, proto.KindNode}
	namespace = choice{"namespace", proto.LabelNamespaceName, proto.PrometheusNamespace, proto.KindNamespace}
	workload  = choice{"workload", proto.LabelWorkloadName, proto.PrometheusWorkload, proto.KindWorkload}
	pod       = choice{"pod", proto.LabelPodName, proto.PrometheusPod, proto.KindPod}
	container = choice{"container", proto.LabelContainerName, proto.PrometheusContainer, proto.KindContainer}
)

// identity is what tells entities of a kind apart within a cluster.
var identity = map[proto.Kind][]choice{
	proto.KindCluster: nil, proto.KindNode: {node}, proto.KindNamespace: {namespace}, proto.KindWorkload: {namespace, workload},
	proto.KindPod: {namespace, pod}, proto.KindContainer: {namespace, pod, container},
}

const (
	cores   = "short"
	inBytes = "bytes"
	perSec  = "Bps"
	ratio   = "percentunit"
	numbers = "short"
)

var levels = []level{
	{"cluster", nil, []measure{
		{"CPU: used, requested, limited (cores)", cores, proto.KindCluster, []proto.MetricID{proto.CPUUsageRate, proto.CPURequest, proto.CPULimit}},
		{"Memory: working set, requested, limited", inBytes, proto.KindCluster, []proto.MetricID{proto.MemoryWorkingSet, proto.MemoryRequest, proto.MemoryLimit}},
		{"CPU of nodes (cores)", cores, proto.KindNode, []proto.MetricID{proto.CPUUsageRate}},
		{"CPU of nodes, of what is allocatable", ratio, proto.KindNode, []proto.MetricID{proto.CPUNodeUtilization}},
		{"Memory of nodes", inBytes, proto.KindNode, []proto.MetricID{proto.MemoryWorkingSet}},
		{"Memory of nodes, of what is allocatable", ratio, proto.KindNode, []proto.MetricID{proto.MemoryNodeUtil}},
		{"CPU of namespaces (cores)", cores, proto.KindNamespace, []proto.MetricID{proto.CPUUsageRate}},
		{"Memory of namespaces", inBytes, proto.KindNamespace, []proto.MetricID{proto.MemoryWorkingSet}},
		{"Network of nodes: received", perSec, proto.KindNode, []proto.MetricID{proto.NetworkRxRate}},
		{"Network of nodes: sent", perSec, proto.KindNode, []proto.MetricID{proto.NetworkTxRate}},
	}},
	{"namespace", []choice{namespace}, []measure{
		{"CPU: used, requested, limited (cores)", cores, proto.KindNamespace, []proto.MetricID{proto.CPUUsageRate, proto.CPURequest, proto.CPULimit}},
		{"Memory: working set, requested, limited", inBytes, proto.KindNamespace, []proto.MetricID{proto.MemoryWorkingSet, proto.MemoryRequest, proto.MemoryLimit}},
		{"CPU of workloads (cores)", cores, proto.KindWorkload, []proto.MetricID{proto.CPUUsageRate}},
		{"Memory of workloads", inBytes, proto.KindWorkload, []proto.MetricID{proto.MemoryWorkingSet}},
		{"CPU of pods (cores)", cores, proto.KindPod, []proto.MetricID{proto.CPUUsageRate}},
		{"Memory of pods", inBytes, proto.KindPod, []proto.MetricID{proto.MemoryWorkingSet}},
	}},
	{"workload", []choice{namespace, workload}, []measure{
		{"CPU: used, requested, limited (cores)", cores, proto.KindWorkload, []proto.MetricID{proto.CPUUsageRate, proto.CPURequest, proto.CPULimit}},
		{"Memory: working set, requested, limited", inBytes, proto.KindWorkload, []proto.MetricID{proto.MemoryWorkingSet, proto.MemoryRequest, proto.MemoryLimit}},
		{"Memory: usage", inBytes, proto.KindWorkload, []proto.MetricID{proto.MemoryUsage}},
		{"Pods and containers", numbers, proto.KindWorkload, []proto.MetricID{proto.PodCount, proto.ContainerCount}},
		{"CPU of the requested", ratio, proto.KindWorkload, []proto.MetricID{proto.CPURequestUtil}},
		{"Memory of the requested", ratio, proto.KindWorkload, []proto.MetricID{proto.MemoryRequestUtil}},
	}},
	{"pod", []choice{namespace, pod}, []measure{
		{"CPU: used, requested, limited (cores)", cores, proto.KindPod, []proto.MetricID{proto.CPUUsageRate, proto.CPURequest, proto.CPULimit}},
		{"Memory: working set, requested, limited", inBytes, proto.KindPod, []proto.MetricID{proto.MemoryWorkingSet, proto.MemoryRequest, proto.MemoryLimit}},
		{"CPU of containers (cores)", cores, proto.KindContainer, []proto.MetricID{proto.CPUUsageRate}},
		{"Memory of containers", inBytes, proto.KindContainer, []proto.MetricID{proto.MemoryWorkingSet}},
		{"Network: received and sent", perSec, proto.KindPod, []proto.MetricID{proto.NetworkRxRate, proto.NetworkTxRate}},
		{"Ephemeral storage of containers", inBytes, proto.KindContainer, []proto.MetricID{proto.EphemeralUsage}},
		{"Restarts of containers", numbers, proto.KindContainer, []proto.MetricID{proto.RestartCount}},
		{"Page faults of containers a second", numbers, proto.KindContainer, []proto.MetricID{proto.MemoryPageFaultsRate}},
	}},
}

// extended reports whether a measure takes a sink's extended=true with InfluxDB.
func (l *level) extended() bool {
	return slices.ContainsFunc(l.panels, func(m measure) bool {
		return slices.ContainsFunc(m.shows, func(id proto.MetricID) bool { return proto.MetricByID(id).OursAt(m.of) })
	})
}

// influx is the dashboard on what the sink influxdb writes: Heapster's names, InfluxQL.
func (l *level) influx() Dashboard {
	d := Dashboard{File: l.name + "-influxdb.json", Title: "heapstream: " + l.name + " (InfluxDB)", Source: InfluxDB}
	var where []string
	for _, c := range l.choices {
		q := fmt.Sprintf(`SHOW TAG VALUES FROM "memory/working_set" WITH KEY = %q WHERE "type" = '%s'`, c.influx, c.kind)
		for _, w := range where {
			q += " AND " + w
		}
		d.Variables = append(d.Variables, Variable{c.name, q})
		where = append(where, fmt.Sprintf(`%q =~ /^$%s$/`, c.influx, c.name))
	}
	for _, m := range l.panels {
		p := Panel{Title: m.title, Unit: m.unit}
		for _, id := range m.shows {
			metric := proto.MetricByID(id)
			value := `mean("value")`
			if n := proto.Prometheus.Naming(id, m.of); n != nil && n.Div > 1 {
				value += fmt.Sprintf(" / %.0f", n.Div) // millicores to cores
			}
			q := fmt.Sprintf(`SELECT %s FROM %q WHERE "type" = '%s'`, value, metric.Name, m.of)
			for _, w := range where {
				q += " AND " + w
			}
			q += " AND $timeFilter GROUP BY time($__interval)"
			legend := metric.Name
			for _, c := range identity[m.of] {
				if !l.chosen(c) {
					q += fmt.Sprintf(", %q", c.influx)
					legend += " $tag_" + c.influx
				}
			}
			p.Targets = append(p.Targets, Target{q + " fill(null)", legend})
		}
		d.Panels = append(d.Panels, p)
	}
	if l.extended() {
		d.Title += ", sink with extended=true"
	}
	return d
}

func (l *level) chosen(c choice) bool { return slices.Contains(l.choices, c) }

// prometheus is the dashboard on what the gateway's /metrics/cluster shows and the sink prometheus writes.
func (l *level) prometheus() Dashboard {
	d := Dashboard{File: l.name + "-prometheus.json", Title: "heapstream: " + l.name + " (Prometheus)", Source: Prometheus}
	present := proto.Prometheus.Naming(proto.MemoryWorkingSet, proto.KindCluster).Name
	d.Variables = append(d.Variables, Variable{"cluster", fmt.Sprintf("label_values(%s, %s)", present, proto.PrometheusCluster)})
	selector := proto.PrometheusCluster + `=~"$cluster"`
	for _, c := range l.choices {
		name := proto.Prometheus.Naming(proto.MemoryWorkingSet, c.kind).Name
		d.Variables = append(d.Variables, Variable{c.name, fmt.Sprintf("label_values(%s{%s}, %s)", name, selector, c.prometheus)})
		selector += fmt.Sprintf(`, %s=~"$%s"`, c.prometheus, c.name)
	}
	for _, m := range l.panels {
		p := Panel{Title: m.title, Unit: m.unit}
		for _, id := range m.shows {
			n := proto.Prometheus.Naming(id, m.of)
			if n == nil {
				panic(fmt.Sprintf("%s has no name at level %s: %s", proto.MetricByID(id).Name, m.of, proto.Prometheus.Without(id)))
			}
			if n.Instead != 0 { // the counter goes out instead of this rate
				n = proto.Prometheus.Naming(n.Instead, m.of)
			}
			q := fmt.Sprintf("%s{%s}", n.Name, selector)
			if n.Instrument == proto.InstrumentCounter && id != proto.RestartCount {
				q = fmt.Sprintf("rate(%s[$__rate_interval])", q)
			}
			legend := proto.MetricByID(id).Name
			for _, c := range identity[m.of] {
				if !l.chosen(c) {
					legend += " {{" + c.prometheus + "}}"
				}
			}
			p.Targets = append(p.Targets, Target{q, legend})
		}
		d.Panels = append(d.Panels, p)
	}
	return d
}

// What Grafana reads; every field that we write, and no other.
type (
	// File is a dashboard as Grafana reads it.
	File struct {
		UID           string      `json:"uid"`
		Title         string      `json:"title"`
		Description   string      `json:"description"`
		Tags          []string    `json:"tags"`
		Timezone      string      `json:"timezone"`
		SchemaVersion int         `json:"schemaVersion"`
		Version       int         `json:"version"`
		Refresh       string      `json:"refresh"`
		Time          TimeRange   `json:"time"`
		Editable      bool        `json:"editable"`
		Templating    Templating  `json:"templating"`
		Panels        []FilePanel `json:"panels"`
	}
	// TimeRange is what is shown at first.
	TimeRange struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	// Templating holds the variables.
	Templating struct {
		List []FileVariable `json:"list"`
	}
	// FileVariable is a variable.
	FileVariable struct {
		Name       string     `json:"name"`
		Label      string     `json:"label"`
		Type       string     `json:"type"`
		Datasource DataSource `json:"datasource"`
		Query      any        `json:"query"` // text, or of Prometheus an object
		Definition string     `json:"definition"`
		Refresh    int        `json:"refresh"`
		Sort       int        `json:"sort"`
		Multi      bool       `json:"multi"`
		IncludeAll bool       `json:"includeAll"`
	}
	// DataSource names one that provisioning makes.
	DataSource struct {
		Type string `json:"type"`
		UID  string `json:"uid"`
	}
	// FilePanel is a panel.
	FilePanel struct {
		ID          int          `json:"id"`
		Title       string       `json:"title"`
		Description string       `json:"description,omitempty"`
		Type        string       `json:"type"`
		Datasource  DataSource   `json:"datasource"`
		GridPos     GridPos      `json:"gridPos"`
		FieldConfig FieldConfig  `json:"fieldConfig"`
		Targets     []FileTarget `json:"targets"`
	}
	// GridPos is where a panel is, of 24 columns.
	GridPos struct {
		H int `json:"h"`
		W int `json:"w"`
		X int `json:"x"`
		Y int `json:"y"`
	}
	// FieldConfig says the unit.
	FieldConfig struct {
		Defaults struct {
			Unit string `json:"unit"`
			Min  int    `json:"min"`
		} `json:"defaults"`
		Overrides []struct{} `json:"overrides"`
	}
	// FileTarget is a query: InfluxQL, or PromQL.
	FileTarget struct {
		RefID        string     `json:"refId"`
		Datasource   DataSource `json:"datasource"`
		Expr         string     `json:"expr,omitempty"`
		LegendFormat string     `json:"legendFormat,omitempty"`
		Query        string     `json:"query,omitempty"`
		RawQuery     bool       `json:"rawQuery,omitempty"`
		Alias        string     `json:"alias,omitempty"`
		ResultFormat string     `json:"resultFormat,omitempty"`
	}
)

// JSON is the dashboard as a file.
func (d *Dashboard) JSON() ([]byte, error) {
	source := DataSource{Type: d.Source, UID: "heapstream-" + d.Source}
	f := File{UID: "heapstream-" + strings.TrimSuffix(d.File, ".json"), Title: d.Title, Tags: []string{"heapstream"}, Timezone: "browser", SchemaVersion: 39, Version: 1,
		Description: "Made by e2e/dashboards of heapstream; what the numbers mean is in deploy/observability/README.md.",
		Refresh:     "30s", Time: TimeRange{"now-1h", "now"}, Editable: true}
	f.Templating.List = []FileVariable{}
	for _, v := range d.Variables {
		x := FileVariable{Name: v.Name, Label: v.Name, Type: "query", Datasource: source, Query: v.Query, Definition: v.Query, Refresh: 2, Sort: 1}
		if d.Source == Prometheus {
			x.Query = map[string]string{"query": v.Query, "refId": "variable"}
		}
		f.Templating.List = append(f.Templating.List, x)
	}
	x, y, below := 0, 0, 0
	for i, p := range d.Panels {
		w, h, kind := 12, 8, "timeseries"
		if p.Stat {
			w, h, kind = 4, 4, "stat"
		}
		if x+w > 24 || below != 0 && h != below {
			x, y = 0, y+below
		}
		below = h
		panel := FilePanel{ID: i + 1, Title: p.Title, Description: p.About, Type: kind, Datasource: source, GridPos: GridPos{H: h, W: w, X: x, Y: y}}
		panel.FieldConfig.Defaults.Unit = p.Unit
		panel.FieldConfig.Overrides = []struct{}{}
		x += w
		for j, t := range p.Targets {
			target := FileTarget{RefID: string(rune('A' + j)), Datasource: source}
			if d.Source == InfluxDB {
				target.Query, target.RawQuery, target.Alias, target.ResultFormat = t.Query, true, t.Legend, "time_series"
			} else {
				target.Expr, target.LegendFormat = t.Query, t.Legend
			}
			panel.Targets = append(panel.Targets, target)
		}
		f.Panels = append(f.Panels, panel)
	}
	data, err := json.MarshalIndent(f, "", " ")
	return append(data, '\n'), err
}
