package modelapi

import (
	"errors"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/labels"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Config is what an operator may choose about the surface.
type Config struct {
	Cluster       string // of the paths without /clusters/<c>
	DisableExport bool   // the export is always empty
	NoPast        bool   // the view remembers the newest values only: there is no model
}

// Deps is what the gateway hands in.
type Deps struct {
	View     *view.View
	Log      *slog.Logger
	Labels   *labels.Cache         // joins labels; nil means as Heapster by default
	Registry prometheus.Registerer // nil: telemetry is kept to itself
	History  History               // nil: there is no historical API
	Cluster  Metrics               // nil: there is no /metrics/cluster
	Now      func() time.Time      // nil means time.Now
}

// History answers what is below /api/v1/historical.
type History interface {
	// Serve answers q, whose path below the root is rest ("" or beginning with a slash), of a cluster. It names
	// the handler in q.
	Serve(q *answer.Request, c *view.Cluster, rest string)
}

// Metrics answers /metrics/cluster.
type Metrics interface {
	// Serve answers q of a cluster. It names the handler in q.
	Serve(q *answer.Request, c *view.Cluster)
}

// API answers the paths of this package.
type API struct {
	cfg  Config
	deps Deps
	tele *telemetry
}

// New checks cfg and returns the API.
func New(cfg Config, deps Deps) (*API, error) {
	if cfg.Cluster == "" {
		return nil, errors.New("model API: the cluster of the bare paths has no name")
	}
	if deps.View == nil {
		return nil, errors.New("model API: Deps needs View")
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Labels == nil {
		deps.Labels = labels.NewCache(proto.DefaultLabelFormat())
	}
	return &API{cfg: cfg, deps: deps, tele: newTelemetry(deps.Registry)}, nil
}

// MaxPods is how many names a pod-list may have: more than an HPA asks for.
const MaxPods = 4096

const (
	modelRoot    = "/api/v1/model"
	historyRoot  = "/api/v1/historical"
	clustersRoot = "/clusters"
	metricsPath  = "/metrics/cluster"

	textNoPast = "404: Page Not Found: this gateway does not remember the recent past, since it was started with --disable_metric_sink"
)

// ServeHTTP answers one request. Paths that are not this package's get 404 in the words of net/http's mux.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	if clean := cleaned(p); clean != p {
		u := *r.URL
		u.Path, u.RawPath = clean, ""
		http.Redirect(w, r, u.String(), http.StatusMovedPermanently)
		return
	}
	q := request{Request: answer.Request{W: w, R: r}, api: a, began: time.Now()}
	defer q.end()
	cluster, rest, ok := a.split(p)
	if !ok {
		q.Text(http.StatusNotFound, answer.TextMuxNotFound)
		return
	}
	if rest == "" { // /clusters, /clusters/
		q.Handler = "clusterList"
		if q.Negotiate() {
			q.List(a.deps.View.Clusters())
		}
		return
	}
	c, ok := a.deps.View.Cluster(cluster)
	if !ok {
		q.Text(http.StatusNotFound, "cluster "+strconv.Quote(answer.Clip(cluster))+" is not in the view")
		return
	}
	q.c = c
	switch {
	case rest == "/healthz":
		q.Handler = "healthz"
		q.healthz()
	case rest == "/healthz/healthz":
		q.Handler = "healthz"
		q.healthzOne()
	case rest == metricsPath && a.deps.Cluster != nil:
		a.deps.Cluster.Serve(&q.Request, c)
	case rest == exportRoot || rest == exportRoot+"/":
		q.Do("metricExport", q.export)
	case rest == schemaPath || rest == schemaPath+"/":
		q.Do("metricExportSchema", func() { q.JSON(schema) })
	case strings.HasPrefix(rest, "/apis/metrics"):
		q.resources(rest)
	case q.api.deps.History != nil && (rest == historyRoot || strings.HasPrefix(rest, historyRoot+"/")):
		q.api.deps.History.Serve(&q.Request, c, rest[len(historyRoot):])
	case q.api.cfg.NoPast && (rest == modelRoot || strings.HasPrefix(rest, modelRoot+"/")):
		q.Text(http.StatusNotFound, textNoPast)
	case rest == modelRoot, strings.HasPrefix(rest, modelRoot+"/"):
		q.model(rest[len(modelRoot):])
	default:
		q.Text(http.StatusNotFound, answer.TextMuxNotFound)
	}
}

// split takes the cluster off a path; rest is "" where the list of clusters is asked for.
func (a *API) split(p string) (cluster, rest string, ok bool) {
	after, prefixed := strings.CutPrefix(p, clustersRoot)
	if !prefixed || after != "" && after[0] != '/' {
		return a.cfg.Cluster, p, true
	}
	if after == "" || after == "/" {
		return "", "", true
	}
	cluster, rest, more := strings.Cut(after[1:], "/")
	return cluster, "/" + rest, more
}

// cleaned is the path as net/http's mux wants it: no empty, . or .. elements, the trailing slash kept.
func cleaned(p string) string {
	if !strings.Contains(p, "//") && !strings.Contains(p, "/.") && strings.HasPrefix(p, "/") {
		return p
	}
	clean := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	}
	return clean
}

// model routes one path below the root of the model API.
func (q *request) model(rest string) {
	rest = strings.TrimSuffix(strings.TrimPrefix(rest, "/"), "/")
	var buf [8]string
	s := buf[:0] // the first elements; the last has the remainder of the path, since names of metrics have slashes
	for rest != "" && len(s) < len(buf) {
		var e string
		if len(s) == len(buf)-1 {
			e, rest = rest, ""
		} else {
			e, rest, _ = strings.Cut(rest, "/")
		}
		s = append(s, e)
	}
	is := func(i int, word string) bool { return i < len(s) && s[i] == word }
	metric := func(i int) string {
		return answer.MetricName(strings.Join(s[i:], "/"))
	}
	// entity answers …/metrics and …/metrics/{m} of one entity, whose path ends before i.
	entity := func(i int, names, values string, e window.Entity) bool {
		if !is(i, "metrics") {
			return false
		}
		if len(s) == i+1 {
			q.Do(names, func() { q.List(q.c.MetricNames(e)) })
		} else {
			m := metric(i + 1)
			q.Do(values, func() { q.series(e, m) })
		}
		return true
	}
	list := func(handler string, names func() []string) {
		q.Do(handler, func() { q.List(names()) })
	}
	ok := false
	switch {
	case is(0, "metrics"):
		ok = entity(0, "availableClusterMetrics", "clusterMetrics", window.Entity{Kind: proto.KindCluster})
	case is(0, "debug") && is(1, "allkeys") && len(s) == 2:
		list("debugAllKeys", func() (keys []string) {
			q.Work(func() { keys = q.c.Keys() })
			return keys
		})
		ok = true
	case is(0, "nodes") && len(s) == 1:
		list("nodeList", q.c.Hostnames)
		ok = true
	case is(0, "nodes") && is(2, "freecontainers"):
		switch {
		case len(s) == 3:
			list("systemContainerList", func() []string { return q.c.SystemContainers(s[1]) })
			ok = true
		case len(s) > 4:
			ok = entity(4, "availableMetrics", "freeContainerMetrics", window.Entity{Kind: proto.KindSystemContainer, Node: s[1], Name: s[3]})
		}
	case is(0, "nodes") && len(s) > 2:
		ok = entity(2, "availableNodeMetrics", "nodeMetrics", window.Entity{Kind: proto.KindNode, Node: s[1]})
	case is(0, "namespaces") && len(s) == 1:
		list("namespaceList", q.c.Namespaces)
		ok = true
	case is(0, "namespaces") && is(2, "pods"):
		ok = q.pods(s, entity, list)
	case is(0, "namespaces") && is(2, "pod-list") && is(4, "metrics") && len(s) > 5:
		m := metric(5)
		q.Do("podListMetric", func() { q.podList(s[1], s[3], m) })
		ok = true
	case is(0, "namespaces") && len(s) > 2:
		ok = entity(2, "availableNamespaceMetrics", "namespaceMetrics", window.Entity{Kind: proto.KindNamespace, Namespace: s[1]})
	}
	if !ok {
		q.Text(http.StatusNotFound, answer.TextNotFound)
	}
}

// pods routes /namespaces/{ns}/pods and what is below it.
func (q *request) pods(s []string, entity func(int, string, string, window.Entity) bool, list func(string, func() []string)) bool {
	switch {
	case len(s) == 3:
		list("namespacePodList", func() []string { return q.c.PodNames(s[1]) })
		return true
	case len(s) < 5:
		return false
	case s[4] == "containers" && len(s) == 5:
		list("podContainerList", func() []string { return q.c.ContainerNames(s[1], s[3]) })
		return true
	case s[4] == "containers" && len(s) > 6:
		return entity(6, "availableContainerMetrics", "podContainerMetrics",
			window.Entity{Kind: proto.KindContainer, Namespace: s[1], Pod: s[3], Name: s[5]})
	}
	return entity(4, "availablePodMetrics", "podMetrics", window.Entity{Kind: proto.KindPod, Namespace: s[1], Pod: s[3]})
}
