package modelapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/quantity"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// The resource metrics API as Heapster had it on its own port: for `kubectl top` up to 1.10 and the HPA of that time,
// which ask for v1alpha1 of either group. It has millicores and no kind or apiVersion, and its window is the distance
// between ticks. The later versions, which Heapster did not have, say what the aggregated API server says:
// nanocores, and the span that was measured.

// dialect is one version of the API.
type dialect struct {
	apiVersion string // "" for Heapster's
}

var dialects = map[string]dialect{
	"/apis/metrics/v1alpha1":        {},
	"/apis/metrics.k8s.io/v1alpha1": {},
	"/apis/metrics.k8s.io/v1beta1":  {"metrics.k8s.io/v1beta1"},
	"/apis/metrics.k8s.io/v1":       {"metrics.k8s.io/v1"},
}

// Bounds of a selector: matching costs each of its requirements for every pod.
const (
	maxSelector     = 64 << 10 // bytes
	maxRequirements = 64
)

// resources routes one path below /apis/metrics….
func (q *request) resources(rest string) {
	rest = strings.TrimSuffix(rest, "/")
	slash := strings.IndexByte(rest[len("/apis/"):], '/')
	if slash < 0 {
		q.Text(http.StatusNotFound, answer.TextMuxNotFound)
		return
	}
	root, below := rest, ""
	if i := strings.IndexByte(rest[len("/apis/")+slash+1:], '/'); i >= 0 {
		i += len("/apis/") + slash + 1
		root, below = rest[:i], rest[i+1:]
	}
	d, ok := dialects[root]
	if !ok {
		q.Text(http.StatusNotFound, answer.TextMuxNotFound)
		return
	}
	kind, below, _ := strings.Cut(below, "/")
	s := strings.Split(below, "/")
	switch {
	case kind == "nodes" && below == "":
		q.Do("nodeMetricsList", func() { q.nodeMetricsList(d) })
	case kind == "nodes" && len(s) == 1:
		q.Do("nodeMetrics", func() { q.nodeMetrics(d, s[0]) })
	case kind == "pods" && below == "":
		q.Do("allPodMetricsList", func() { q.podMetricsList(d, "") })
	case kind == "namespaces" && len(s) == 2 && s[0] != "" && s[1] == "pods":
		q.Do("podMetricsList", func() { q.podMetricsList(d, s[0]) })
	case kind == "namespaces" && len(s) == 3 && s[0] != "" && s[1] == "pods":
		q.Do("podMetrics", func() { q.podMetrics(d, s[0], s[2]) })
	default:
		q.Text(http.StatusNotFound, answer.TextNotFound)
	}
}

func (q *request) nodeMetrics(d dialect, name string) {
	n, ok := q.c.Node(q.c.NodeName(name))
	if !ok {
		q.Text(http.StatusNotFound, "No metrics for node "+answer.Clip(name))
		return
	}
	s := answer.Take()
	defer s.Release()
	e := q.objects(s.Buf[:0], d)
	e.node(n, 0)
	s.Buf = e.b
	q.JSON(s.Buf)
}

func (q *request) podMetrics(d dialect, namespace, name string) {
	p, ok := q.c.Pod(namespace, name)
	if !ok {
		if _, there := q.c.Object(window.Entity{Kind: proto.KindPod, Namespace: namespace, Pod: name}); there {
			q.Text(http.StatusNotFound, "No metrics availalble for pod "+namespace+"/"+name) // as Heapster spelled it
		} else {
			name = answer.Clip(name)
			q.Text(http.StatusNotFound, "Error while getting pod "+name+": pod "+strconv.Quote(name)+" not found")
		}
		return
	}
	s := answer.Take()
	defer s.Release()
	e := q.objects(s.Buf[:0], d)
	e.pod(p, 0)
	s.Buf = e.b
	q.JSON(s.Buf)
}

func (q *request) nodeMetricsList(d dialect) {
	selector, ok := q.selector()
	if !ok {
		return
	}
	q.Stream(func(s *answer.Stream) {
		e := q.objects(s.B, d)
		e.beginList("NodeMetricsList")
		var probe view.Labels
		for n := range q.c.Nodes() {
			if probe = n.Labels; selector != nil && !selector.Matches(&probe) {
				continue
			}
			e.node(n, 2)
			s.B = e.b
			if !s.Send() {
				return
			}
			e.b = s.B
		}
		e.endList()
		s.B = e.b
	})
}

func (q *request) podMetricsList(d dialect, namespace string) {
	selector, ok := q.selector()
	if !ok {
		return
	}
	q.Stream(func(s *answer.Stream) {
		e := q.objects(s.B, d)
		e.beginList("PodMetricsList")
		var probe view.Labels
		for p := range q.c.Pods(namespace) {
			if probe = p.Labels; selector != nil && !selector.Matches(&probe) {
				continue
			}
			e.pod(p, 2)
			s.B = e.b
			if !s.Send() {
				return
			}
			e.b = s.B
		}
		e.endList()
		s.B = e.b
	})
}

// selector reads labelSelector, nil for all; where it is bad it is answered.
func (q *request) selector() (labels.Selector, bool) {
	if q.R.URL.RawQuery == "" {
		return nil, true
	}
	raw := q.R.URL.Query().Get("labelSelector")
	if len(raw) > maxSelector {
		q.Text(http.StatusBadRequest, "Error while parsing selector "+answer.Clip(raw)+": longer than "+strconv.Itoa(maxSelector)+" bytes")
		return nil, false
	}
	selector, err := labels.Parse(raw)
	if err != nil {
		q.Text(http.StatusBadRequest, "Error while parsing selector "+answer.Clip(raw)+": "+answer.Clip(err.Error()))
		return nil, false
	}
	if all, _ := selector.Requirements(); len(all) > maxRequirements {
		q.Text(http.StatusBadRequest, "Error while parsing selector "+answer.Clip(raw)+": more than "+strconv.Itoa(maxRequirements)+" requirements")
		return nil, false
	}
	if selector.Empty() {
		return nil, true
	}
	return selector, true
}

// objects appends nodes and pods as indented JSON, in Heapster's way of indenting.
type objects struct {
	b       []byte
	d       dialect
	now     [len(time.RFC3339)]byte // creationTimestamp of all
	created []byte
	window  string // of Heapster's dialect
	items   int
}

func (q *request) objects(b []byte, d dialect) *objects {
	e := &objects{b: b, d: d, window: q.c.Resolution().String()}
	e.created = q.api.deps.Now().UTC().AppendFormat(e.now[:0], time.RFC3339)
	return e
}

// spaces are what lines begin with.
const spaces = "\n                "

// line begins a line at a depth; the outermost is not indented where it is all of the answer.
func (e *objects) line(depth int, text string) {
	e.b = append(e.b, spaces[:depth+2]...)
	e.b = append(e.b, text...)
}

func (e *objects) beginList(kind string) {
	e.b = append(e.b, '{')
	e.kind(kind)
	e.line(1, `"metadata": {},`)
	e.line(1, `"items": `)
}

func (e *objects) endList() {
	switch {
	case e.items > 0:
		e.line(1, "]")
	case e.d.apiVersion == "":
		e.b = append(e.b, "null"...)
	default:
		e.b = append(e.b, "[]"...)
	}
	e.line(0, "}")
}

func (e *objects) kind(kind string) {
	if e.d.apiVersion == "" {
		return
	}
	e.line(1, `"kind": "`)
	e.b = append(e.b, kind...)
	e.b = append(e.b, `",`...)
	e.line(1, `"apiVersion": "`)
	e.b = append(e.b, e.d.apiVersion...)
	e.b = append(e.b, `",`...)
}

// begin begins an object: alone at depth 0, of a list at 2. In a list the kind goes without saying.
func (e *objects) begin(depth int, kind string) {
	switch {
	case depth == 0:
		e.b = append(e.b, '{')
		e.kind(kind)
		return
	case e.items == 0:
		e.b = append(e.b, '[')
	default:
		e.b = append(e.b, ',')
	}
	e.items++
	e.line(depth, "{")
}

func (e *objects) metadata(depth int, namespace, name string, at time.Time, span time.Duration) {
	e.line(depth+1, `"metadata": {`)
	e.line(depth+2, `"name": `)
	e.b = append(answer.AppendString(e.b, name), ',')
	if namespace != "" {
		e.line(depth+2, `"namespace": `)
		e.b = append(answer.AppendString(e.b, namespace), ',')
	}
	e.line(depth+2, `"creationTimestamp": "`)
	e.b = append(append(e.b, e.created...), '"')
	e.line(depth+1, `},`)
	e.line(depth+1, `"timestamp": "`)
	e.b = at.UTC().AppendFormat(e.b, time.RFC3339)
	e.b = append(e.b, `",`...)
	e.line(depth+1, `"window": "`)
	if e.d.apiVersion == "" {
		e.b = append(e.b, e.window...)
	} else {
		e.b = append(e.b, span.String()...)
	}
	e.b = append(e.b, `",`...)
}

func (e *objects) usage(depth int, u *view.Usage) {
	e.line(depth+1, `"usage": {`)
	e.line(depth+2, `"cpu": "`)
	if e.d.apiVersion == "" {
		e.b = quantity.AppendMilli(e.b, u.CPU/1e6)
	} else {
		e.b = quantity.AppendNano(e.b, u.CPU)
	}
	e.b = append(e.b, `",`...)
	e.line(depth+2, `"memory": "`)
	e.b = quantity.AppendBytes(e.b, u.Memory)
	e.b = append(e.b, '"')
	e.line(depth+1, "}")
}

func (e *objects) node(n *view.NodeMetrics, depth int) {
	e.begin(depth, "NodeMetrics")
	e.metadata(depth, "", n.Name, n.Time, n.Window)
	e.usage(depth, &n.Usage)
	e.line(depth, "}")
}

func (e *objects) pod(p *view.PodMetrics, depth int) {
	e.begin(depth, "PodMetrics")
	e.metadata(depth, p.Namespace, p.Name, p.Time, p.Window)
	e.line(depth+1, `"containers": [`)
	for i := range p.Containers {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.line(depth+2, "{")
		e.line(depth+3, `"name": `)
		e.b = append(answer.AppendString(e.b, p.Containers[i].Name), ',')
		e.usage(depth+2, &p.Containers[i].Usage)
		e.line(depth+2, "}")
	}
	e.line(depth+1, "]")
	e.line(depth, "}")
}
