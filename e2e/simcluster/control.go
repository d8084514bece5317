package simcluster

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Status is what /sim/status answers.
type Status struct {
	Nodes           int                `json:"nodes"`
	Pods            int                `json:"pods"`
	ResourceVersion string             `json:"resourceVersion"`
	Failing         map[string]string  `json:"failing"`           // mode by node
	Scrapes         uint64             `json:"scrapes"`           // requests for measurements, of all nodes
	NeverScraped    int                `json:"neverScraped"`      // nodes
	LongestGap      float64            `json:"longestGapSeconds"` // between two scrapes of one node
	GapOver         map[string]float64 `json:"slowest,omitempty"` // the nodes with the longest gaps, up to 10
	Gateway         string             `json:"gateway,omitempty"`
	Model           string             `json:"model,omitempty"`
}

// Status counts what there is and how it was scraped.
func (c *Cluster) Status() Status {
	c.mu.RLock()
	s := Status{Nodes: len(c.nodes), Pods: len(c.stores["pods"].sorted), ResourceVersion: strconv.FormatUint(c.rv, 10), Failing: map[string]string{}}
	nodes := c.nodes
	if c.gateway != nil {
		s.Gateway = c.gateway.Redacted()
	}
	if c.model != nil {
		s.Model = c.model.Redacted()
	}
	c.mu.RUnlock()
	for _, n := range nodes {
		if m := n.Failure(); m != FailNone {
			s.Failing[n.name] = string(m)
		}
		if n.Scrapes() == 0 {
			s.NeverScraped++
		}
		s.Scrapes += n.Scrapes()
		s.LongestGap = max(s.LongestGap, time.Duration(n.late.Load()).Seconds())
	}
	for _, n := range nodes {
		if gap := time.Duration(n.late.Load()).Seconds(); gap > 0 && gap >= 0.95*s.LongestGap && len(s.GapOver) < 10 {
			if s.GapOver == nil {
				s.GapOver = map[string]float64{}
			}
			s.GapOver[n.name] = gap
		}
	}
	return s
}

// ResetGaps forgets the gaps between scrapes seen so far.
func (c *Cluster) ResetGaps() {
	for _, n := range c.Nodes() {
		n.late.Store(0)
	}
}

// control answers /sim/….
func (a *apiServer) control(w http.ResponseWriter, r *http.Request, path string) {
	q := r.URL.Query()
	if path == "/status" || path == "" {
		writeJSON(w, a.c.Status())
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "POST wanted; see the documentation of package simcluster", http.StatusMethodNotAllowed)
		return
	}
	ns, pod, _ := strings.Cut(q.Get("pod"), "/")
	var err error
	var result any
	switch path {
	case "/fail":
		var delay time.Duration
		if d := q.Get("delay"); d != "" {
			delay, err = time.ParseDuration(d)
		}
		if err == nil {
			err = a.c.FailFor(q.Get("node"), FailureMode(q.Get("mode")), delay)
		}
	case "/restart":
		reason := q.Get("reason")
		if reason == "" {
			reason = "Error"
		}
		err = a.c.RestartContainer(ns, pod, q.Get("container"), reason)
	case "/replace":
		result, err = a.c.ReplacePod(ns, pod)
	case "/delete":
		err = a.c.DeletePod(ns, pod)
	case "/scale":
		var n int
		ns, name, _ := strings.Cut(q.Get("deployment"), "/")
		if n, err = strconv.Atoi(q.Get("replicas")); err == nil {
			err = a.c.Scale(ns, name, n)
		}
	case "/nodes/add":
		result, err = a.c.AddNode()
	case "/nodes/remove":
		err = a.c.RemoveNode(q.Get("node"))
	case "/nodes/ready":
		var ready bool
		if ready, err = strconv.ParseBool(q.Get("ready")); err == nil {
			err = a.c.SetNodeReady(q.Get("node"), ready)
		}
	case "/nodes/kubelet":
		var old bool
		if old, err = strconv.ParseBool(q.Get("old")); err == nil {
			err = a.c.SetOldKubelet(q.Get("node"), old)
		}
	case "/churn":
		n := 1
		if v := q.Get("n"); v != "" {
			n, err = strconv.Atoi(v)
		}
		if err == nil {
			err = a.c.Churn(n)
		}
	case "/forget":
		a.c.Forget()
	case "/events":
		result, err = a.c.happen(q.Get("event"), q.Get("n"))
	case "/api/restart":
		var away time.Duration
		if d := q.Get("away"); d != "" {
			away, err = time.ParseDuration(d)
		}
		if err == nil {
			a.c.RestartAPIServer(away) // the one who asked is cut off as well
		}
	case "/gaps/reset":
		a.c.ResetGaps()
	case "/gateway":
		err = a.c.SetGateway(q.Get("url"))
	case "/model":
		err = a.c.SetModel(q.Get("url"))
	default:
		http.Error(w, fmt.Sprintf("no %q here; see the documentation of package simcluster", "/sim"+path), http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if result == nil {
		result = map[string]string{"status": "ok"}
	}
	writeJSON(w, result)
}
