package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/heapstream/heapstream/aggregator"
	"github.com/heapstream/heapstream/apigw"
	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/e2e/dashboards"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
)

const observability = "deploy/observability"

// explained is one row of the page.
type explained struct{ kind, unit, says, bad string }

// page is deploy/observability/README.md: metrics by section, and the alerts that have a section.
func page(t *testing.T) (metrics map[string]map[string]explained, alerts map[string]string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, observability, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	metrics, alerts = map[string]map[string]explained{}, map[string]string{}
	section, alert := "", ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "## "); ok {
			section, alert = s, ""
			continue
		}
		if s, ok := strings.CutPrefix(line, "### "); ok {
			alert = s
			alerts[alert] = ""
			continue
		}
		if alert != "" {
			alerts[alert] += line
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) != 7 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if metrics[section] == nil {
			metrics[section] = map[string]explained{}
		}
		name := strings.Trim(cells[1], "`")
		if _, twice := metrics[section][name]; twice {
			t.Errorf("%s is explained twice", name)
		}
		metrics[section][name] = explained{cells[2], cells[3], cells[4], cells[5]}
	}
	return metrics, alerts
}

var ourMetric = regexp.MustCompile(`\b(heapstream|heapster|eventer)_[a-z0-9_]+`)

// described are our metrics in a registry, whether or not they have a value yet.
func described(r *prometheus.Registry) map[string]bool {
	ch := make(chan *prometheus.Desc)
	go func() {
		r.Describe(ch)
		close(ch)
	}()
	names := map[string]bool{}
	for d := range ch {
		if m := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String()); m != nil && ourMetric.MatchString(m[1]) {
			names[m[1]] = true
		}
	}
	return names
}

// TestEveryNumberIsExplained makes each service with a registry of its own and compares what it would show with its
// section of the page, both ways.
func TestEveryNumberIsExplained(t *testing.T) {
	cluster := simtest.Start(t, func() simcluster.Config { c := simcluster.DefaultConfig(); c.Nodes = 1; return c }(), simcluster.Deps{})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	conn, log := bustest.Start(t).Conn(t), bustest.Logger(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	shown := map[string]map[string]bool{}
	registry := func(section string) *prometheus.Registry {
		r := prometheus.NewRegistry()
		shown[section] = nil
		return r
	}

	r := registry("scraper")
	sc := scraper.DefaultConfig()
	sc.Kubeconfig = kubeconfig
	_, err := scraper.New(sc, scraper.Deps{Bus: conn, Log: log, Registry: r})
	must(err)
	shown["scraper"] = described(r)

	r = registry("aggregator")
	_, err = aggregator.New(aggregator.DefaultConfig(), aggregator.Deps{Bus: conn, Log: log, Registry: r, Health: daemon.NewHealth()})
	must(err)
	shown["aggregator"] = described(r)

	r = registry("apigw")
	_, err = apigw.New(apigw.DefaultConfig(), apigw.Deps{Bus: conn, Log: log, Registry: r, Health: daemon.NewHealth()})
	must(err)
	shown["apigw"] = described(r)

	r = registry("sinks")
	si := sinks.DefaultConfig()
	si.Sinks = []string{"log"}
	_, err = sinks.New(si, sinks.Deps{Bus: conn, Log: log, Registry: r, Health: daemon.NewHealth()})
	must(err)
	shown["sinks"] = described(r)

	r = registry("eventer")
	ev := standalone.DefaultEventerConfig()
	flags := pflag.NewFlagSet("eventer", pflag.ContinueOnError)
	ev.Flags(flags)
	must(flags.Parse([]string{"--source=kubernetes:https://127.0.0.1:1?inClusterConfig=false", "--sink=log"}))
	must(ev.Validate())
	_, err = standalone.NewEventer(ev, standalone.Deps{Log: log, Registry: r, Health: daemon.NewHealth()})
	must(err)
	shown["eventer"] = described(r)

	var process *prometheus.Registry
	probe := &daemon.Command{Name: "probe", OneShot: true, Run: func(_ context.Context, d daemon.Deps) error { process = d.Registry; return nil }}
	if code := daemon.Execute(t.Context(), probe, nil, io.Discard, io.Discard); code != 0 {
		t.Fatal(code)
	}
	shown["Every process"] = described(process)

	told, alerts := page(t)
	for section, names := range shown {
		for name := range names {
			if _, ok := told[section][name]; !ok {
				t.Errorf("%s shows %s, which is not in its section of the page", section, name)
			}
		}
		for name, e := range told[section] {
			if !names[name] {
				t.Errorf("the page says that %s shows %s, which it does not", section, name)
			}
			if e.kind == "" || e.unit == "" || e.says == "" || e.bad == "" {
				t.Errorf("%s: type %q, unit %q, meaning %q, advice %q: all are needed", name, e.kind, e.unit, e.says, e.bad)
			}
			for _, m := range regexp.MustCompile(`\]\(#([a-z]+)\)`).FindAllStringSubmatch(e.bad, -1) {
				if !slices.ContainsFunc(slices.Collect(maps.Keys(alerts)), func(a string) bool { return strings.ToLower(a) == m[1] }) {
					t.Errorf("%s leads to #%s, which is no section", name, m[1])
				}
			}
		}
	}
	for section := range told {
		if shown[section] == nil {
			t.Errorf("the page has a section %q of numbers that nobody was asked for", section)
		}
	}
}

// ruleFile is what a rule file holds, and nothing else: it is read strictly.
type ruleFile struct {
	Groups []struct {
		Name     string `json:"name"`
		Interval string `json:"interval,omitempty"`
		Rules    []struct {
			Record      string            `json:"record,omitempty"`
			Alert       string            `json:"alert,omitempty"`
			Expr        string            `json:"expr"`
			For         string            `json:"for,omitempty"`
			Labels      map[string]string `json:"labels,omitempty"`
			Annotations map[string]string `json:"annotations,omitempty"`
		} `json:"rules"`
	} `json:"groups"`
}

// TestRulesAreSound reads the rules strictly, compares them with the page, and lets promtool check and test them where
// it is.
func TestRulesAreSound(t *testing.T) {
	folder := filepath.Join(root, observability, "prometheus")
	data, err := os.ReadFile(filepath.Join(folder, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rules ruleFile
	if err := yaml.UnmarshalStrict(data, &rules); err != nil {
		t.Fatal(err)
	}
	told, alerts := page(t)
	known := map[string]bool{}
	for _, section := range told {
		for name, e := range section {
			known[name] = true
			if e.kind == "histogram" || e.kind == "summary" {
				known[name+"_sum"], known[name+"_count"] = true, true
			}
			if e.kind == "histogram" {
				known[name+"_bucket"] = true
			}
		}
	}
	recorded := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			recorded[r.Record] = r.Record != ""
		}
	}
	name := regexp.MustCompile(`[a-z]*:?heapstream[_:][a-z0-9_]+(:[a-z0-9_]+)?`)
	found := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, m := range name.FindAllString(r.Expr, -1) {
				if !known[m] && !recorded[m] {
					t.Errorf("%s%s asks for %s, which nobody shows or records", r.Alert, r.Record, m)
				}
			}
			if r.Alert == "" {
				continue
			}
			found[r.Alert] = true
			if alerts[r.Alert] == "" {
				t.Errorf("alert %s has no words on the page", r.Alert)
			}
			if want := observability + "/README.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want || r.Annotations["summary"] == "" {
				t.Errorf("alert %s: annotations %v, want a summary and runbook_url %s", r.Alert, r.Annotations, want)
			}
			if s := r.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("alert %s: severity %q", r.Alert, s)
			}
		}
	}
	for a := range alerts {
		if !found[a] {
			t.Errorf("the page tells of alert %s, which there is not", a)
		}
	}
	tested, err := os.ReadFile(filepath.Join(folder, "rules.test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for a := range found {
		if n := strings.Count(string(tested), "alertname: "+a+"\n"); n < 2 {
			t.Errorf("alert %s is tested %d times: once that it comes and once that it does not is the least", a, n)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIP: no promtool on this machine, so the rules are only read: apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, {"test", "rules", "rules.test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...) //nolint:gosec // found above
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestProvisioningNamesWhatThereIs reads the files for Grafana and Prometheus that belong to the dashboards and rules.
func TestProvisioningNamesWhatThereIs(t *testing.T) {
	read := func(name string, into any) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(root, observability, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(data, into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var sources struct {
		APIVersion  int `json:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL, User string
			JSONData, SecureJSONData           map[string]string
		}
	}
	read("grafana/provisioning/datasources/heapstream.yaml", &sources)
	have := map[string]string{}
	for _, s := range sources.Datasources {
		have[s.UID] = s.Type
	}
	for _, d := range dashboards.All() {
		if have["heapstream-"+d.Source] != d.Source {
			t.Errorf("%s expects the data source heapstream-%s, which is not provisioned: %v", d.File, d.Source, have)
		}
	}
	var providers struct {
		APIVersion int `json:"apiVersion"`
		Providers  []struct {
			Name, Folder, Type    string
			UpdateIntervalSeconds int
			AllowUIUpdates        bool
			Options               struct{ Path string }
		}
	}
	read("grafana/provisioning/dashboards/heapstream.yaml", &providers)
	if len(providers.Providers) != 1 || providers.Providers[0].Options.Path == "" {
		t.Errorf("providers are %+v", providers)
	}
	var scrape struct {
		Global        map[string]string `json:"global"`
		RuleFiles     []string          `json:"rule_files"`
		ScrapeConfigs []struct {
			JobName      string `json:"job_name"`
			KubernetesSD []struct {
				Role       string
				Namespaces struct{ Names []string }
				Selectors  []struct{ Role, Label string }
			} `json:"kubernetes_sd_configs"`
			Relabel []struct {
				SourceLabels []string `json:"source_labels"`
				TargetLabel  string   `json:"target_label"`
				Action       string   `json:"action"`
				Regex        string   `json:"regex"`
			} `json:"relabel_configs"`
		} `json:"scrape_configs"`
	}
	read("prometheus/scrape.yaml", &scrape)
	if len(scrape.ScrapeConfigs) != 1 || !strings.HasPrefix(scrape.ScrapeConfigs[0].JobName, "heapstream") { // as the dashboards select
		t.Errorf("scrape configurations are %+v", scrape.ScrapeConfigs)
	}
	for _, f := range scrape.RuleFiles {
		if _, err := os.Stat(filepath.Join(root, observability, "prometheus", f)); err != nil {
			t.Error(err)
		}
	}
}

// scraping is a Prometheus that scrapes target as job heapstream, and has the rules.
func scraping(t *testing.T, target string) *timeSeries {
	t.Helper()
	rules, err := filepath.Abs(filepath.Join(root, observability, "prometheus/rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return prometheusWith(t, fmt.Sprintf(`
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
- job_name: heapstream
  static_configs: [{targets: [%q]}]
`, rules, target))
}

// query returns how many series a query has now that are numbers.
func (s *timeSeries) query(t *testing.T, q string) (series int, err error) {
	t.Helper()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := getInto(t, s.url+"/api/v1/query?"+url.Values{"query": {q}}.Encode(), &answer); err != nil {
		return 0, err
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("%s", answer.Error)
	}
	for _, r := range answer.Data.Result {
		if v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64); err == nil && v == v {
			series++
		}
	}
	return series, nil
}

func getInto(t *testing.T, address string, into any) error {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// TestDashboardsShowData runs the pipeline on a simulated cluster into a real InfluxDB and a real Prometheus, which
// scrapes it as well, and asks every query of every dashboard: as Grafana does, with its variables filled in from their own
// queries.
func TestDashboardsShowData(t *testing.T) {
	for _, needed := range []string{"influxd", "prometheus"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("SKIP: no %s on this machine: apt-get install influxdb prometheus", needed)
		}
	}
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 2, 8
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	influx := startInfluxd(t)
	model, err := net.Listen("tcp", "127.0.0.1:0") // only to know an address that Prometheus may be told before the pipeline is up
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{ReadHeaderTimeout: time.Minute}
	prom := scraping(t, model.Addr().String())
	p := launch(t, standalone.Deps{Registry: registry}, "--source=kubernetes.summary_api:", "--kubeconfig="+kubeconfig, "--metric_resolution=5s", "--cluster=sim",
		"--sink=influxdb:"+influx.URL+"?extended=true", "--sink="+prom.sink+"?extended=true")
	proxy.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := http.Get(p.URL + r.URL.Path)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
	served := make(chan struct{})
	go func() { defer close(served); _ = proxy.Serve(model) }()
	t.Cleanup(func() { _ = proxy.Close(); <-served })
	eventually(t, 2*time.Minute, func() bool { status, _ := p.get(t, "/api/v1/model/nodes/"); return status == http.StatusOK }, func() string { return "the model API does not answer" })

	// What each query still lacks.
	missing := map[string]string{}
	all := dashboards.All()
	eventually(t, 3*time.Minute, func() bool {
		clear(missing)
		for _, d := range all {
			showsData(t, &d, influx, prom, missing)
		}
		return len(missing) == 0
	}, func() string {
		var b strings.Builder
		fmt.Fprintf(&b, "%d queries of dashboards show nothing:\n", len(missing))
		for _, q := range slices.Sorted(maps.Keys(missing)) {
			fmt.Fprintf(&b, "%s: %s\n", q, missing[q])
		}
		return b.String()
	})

	// By the way: the page says of what type each number is.
	told, _ := page(t)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, f := range families {
		for _, section := range told {
			if e, ok := section[f.GetName()]; ok {
				checked++
				if kind := strings.ToLower(f.GetType().String()); kind != e.kind {
					t.Errorf("%s is a %s, and the page says %s", f.GetName(), kind, e.kind)
				}
			}
		}
	}
	if checked < 40 {
		t.Errorf("only %d numbers of the page were there", checked)
	}
}

// showsData asks every query of a dashboard and notes those without data. The variables take the first combination of
// values for which every query of that level has some, since not every pod has a limit.
func showsData(t *testing.T, d *dashboards.Dashboard, influx *influxd, prom *timeSeries, missing map[string]string) {
	t.Helper()
	values := map[string]string{}
	fill := func(q string) string {
		for _, name := range slices.SortedFunc(maps.Keys(values), func(a, b string) int { return len(b) - len(a) }) {
			q = strings.ReplaceAll(q, "$"+name, values[name])
		}
		return strings.NewReplacer("$timeFilter", "time > now() - 1h", "$__interval", "10s", "$__rate_interval", "2m").Replace(q)
	}
	for _, v := range d.Variables {
		q := fill(v.Query)
		var options []string
		if d.Source == dashboards.InfluxDB {
			for _, s := range influx.tagValues(t, q) {
				options = append(options, regexp.QuoteMeta(s))
			}
		} else {
			options = prom.labelValues(t, q)
		}
		if len(options) == 0 {
			missing[d.File+" $"+v.Name] = q
			return
		}
		values[v.Name] = "(" + strings.Join(options, "|") + ")" // "All": some pod has a limit, though not each
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			q := fill(target.Query)
			if d.Source == dashboards.InfluxDB {
				if len(influx.query(t, q)) == 0 {
					missing[d.File+" "+p.Title] = q
				}
				continue
			}
			if n, err := prom.query(t, q); err != nil || n == 0 {
				missing[d.File+" "+p.Title] = fmt.Sprintf("%s (%v)", q, err)
			}
		}
	}
}

// tagValues are the answer to SHOW TAG VALUES; none where there is no such database yet.
func (i *influxd) tagValues(t *testing.T, q string) (values []string) {
	t.Helper()
	var answer struct {
		Results []struct {
			Error  string
			Series []struct{ Values [][2]string }
		}
	}
	if err := getInto(t, i.URL+"/query?"+url.Values{"db": {"k8s"}, "q": {q}}.Encode(), &answer); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	for _, r := range answer.Results {
		if r.Error != "" && !strings.Contains(r.Error, "database not found") {
			t.Fatalf("%s: %s", q, r.Error)
		}
		for _, s := range r.Series {
			for _, v := range s.Values {
				values = append(values, v[1])
			}
		}
	}
	return values
}

var labelValuesOf = regexp.MustCompile(`^label_values\((.+), ([a-z_]+)\)$`)

// labelValues are what Grafana's label_values gives.
func (s *timeSeries) labelValues(t *testing.T, q string) []string {
	t.Helper()
	m := labelValuesOf.FindStringSubmatch(q)
	if m == nil {
		t.Fatalf("%s is no label_values(metric, label)", q)
	}
	var answer struct{ Data []string }
	if err := getInto(t, s.url+"/api/v1/label/"+m[2]+"/values?"+url.Values{"match[]": {m[1]}}.Encode(), &answer); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return answer.Data
}
