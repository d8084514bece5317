package kubelet

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

// Source is where samples come from: a key of Heapster's --source, or ours.
type Source string

// The sources. See the package documentation for what each one gives.
const (
	SummarySource  Source = "kubernetes.summary_api"
	CAdvisorSource Source = "kubernetes"
	ResourceSource Source = "kubernetes.resource_api"
)

// Sources lists every source.
func Sources() []Source { return []Source{SummarySource, CAdvisorSource, ResourceSource} }

// Form is one of the answers in which kubelets tell what they have measured.
type Form uint8

// The forms.
const (
	FormSummary        Form = iota // GET /stats/summary, JSON
	FormContainerStats             // POST /stats/container/, JSON; kubelets before 1.18, by a flag before 1.21
	FormCAdvisor                   // GET /metrics/cadvisor, text
	FormResource                   // GET /metrics/resource, text
)

// request is how an answer of a form is asked for, and what right that takes.
type request struct {
	method, path, right, accept, body string
	wanted                            func(family []byte) bool // lines of text that are kept; nil: all
}

const acceptText = "text/plain;version=0.0.4"

var requests = [...]request{
	FormSummary: {http.MethodGet, "/stats/summary", "nodes/stats", "application/json", "", nil},
	// The last sample of every cgroup. Heapster bounded them by the tick, which gives nothing where clocks
	// differ or a cgroup was not measured within it.
	FormContainerStats: {http.MethodPost, "/stats/container/", "nodes/stats", "application/json", `{"containerName":"/","num_stats":1,"subcontainers":true}`, nil},
	FormCAdvisor:       {http.MethodGet, "/metrics/cadvisor", "nodes/metrics", acceptText, "", func(name []byte) bool { return cadvisorFamily(name).of != ofNobody }},
	FormResource:       {http.MethodGet, "/metrics/resource", "nodes/metrics", acceptText, "", nil},
}

var podsRequest = request{http.MethodGet, "/pods", "nodes/proxy", "application/json", "", nil}

// Path is where on a kubelet the answer is found.
func (f Form) Path() string { return requests[f].path }

// decode names the decoding of a form, for errors.
func (f Form) decode() string {
	switch f {
	case FormContainerStats, FormCAdvisor:
		return "decode " + string(CAdvisorSource) + " (" + f.Path() + ")"
	case FormResource:
		return "decode " + string(ResourceSource)
	}
	return "decode " + string(SummarySource)
}

// verb is the right that a method takes: what a kubelet asks the API server about.
func (r *request) verb() string {
	if r.method == http.MethodPost {
		return "create"
	}
	return strings.ToLower(r.method)
}

// Memory is what is known of one kubelet from its earlier answers. The zero Memory is that of one which
// was never asked. It belongs to one scrape at a time.
type Memory struct {
	Fallback *Error // why FormCAdvisor is read although it is not what the source asks for first; nil: it is not

	since   time.Time // of Fallback
	process string    // the kubelet that refused: when its process started, as it says; "" where it does not
}

// retryAfter is how long a kubelet counts as one without /stats/container/ if it does not say by its
// process's start that it is another.
const retryAfter = time.Hour

// Read asks a kubelet for what a source gives and calls use with the whole answer and its form; the
// answer is valid during the call only. ctx has the deadline of the scrape. Errors are *Error, or what
// use returns.
//
// CAdvisorSource asks for /stats/container/ first. Where the kubelet has none (404, 405), or does not let
// us (403: whether it has one cannot be seen, and the right is not worth asking for on kubelets of today),
// it reads /metrics/cadvisor, and does so at once from then on: until that kubelet has started anew, or
// for an hour.
func (c *Client) Read(ctx context.Context, t Target, s Source, m *Memory, use func(f Form, answer []byte) error) error {
	as := func(f Form) error {
		return c.get(ctx, t, &requests[f], func(header http.Header, answer []byte) error {
			m.settle(f, header)
			return use(f, answer)
		})
	}
	switch s {
	case CAdvisorSource:
	case ResourceSource:
		return as(FormResource)
	default:
		return as(FormSummary)
	}
	if m.Fallback == nil || time.Since(m.since) >= retryAfter {
		err := as(FormContainerStats)
		var e *Error
		if !errors.As(err, &e) || e.Status != http.StatusNotFound && e.Status != http.StatusMethodNotAllowed && e.Status != http.StatusForbidden {
			return err
		}
		m.Fallback, m.since, m.process = e, time.Now(), ""
	}
	return as(FormCAdvisor)
}

// settle remembers what an answer says about the kubelet that gave it.
func (m *Memory) settle(f Form, header http.Header) {
	switch process := header.Get("Process-Start-Time-Unix"); {
	case f == FormContainerStats:
		*m = Memory{}
	case f != FormCAdvisor || process == "":
	case m.process == "":
		m.process = process
	case m.process != process: // another kubelet, maybe an older one
		m.since, m.process = time.Time{}, ""
	}
}
