package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// Right is one verb on one resource that a role needs.
type Right struct {
	Verb      string
	Group     string // of the API; empty for the core
	Resource  string // with its subresource: nodes/stats
	Namespace string // empty: everywhere
	Name      string // of the one object that is meant; empty: all
	Why       string // what does not work without
	Optional  bool   // works without, less well
}

// Rights are what a role needs at the API server, as Config.Role names it: the rules of deploy/kubernetes, one by one.
// source is what kubelets are asked for; podsFrom and events are the scraper's options.
func Rights(role string, source kubelet.Source, podsFrom string, events bool) []Right {
	var all []Right
	need := func(why, group, resource string, verbs ...string) {
		for _, v := range verbs {
			all = append(all, Right{Verb: v, Group: group, Resource: resource, Why: why})
		}
	}
	kubelets := func() {
		switch source {
		case kubelet.CAdvisorSource:
			need("kubelets of today (/metrics/cadvisor) cannot be read", "", "nodes/metrics", "get")
			need("kubelets of before Kubernetes 1.21 are read in the newer form", "", "nodes/stats", "create")
			all[len(all)-1].Optional = true
		case kubelet.ResourceSource:
			need("kubelets (/metrics/resource) cannot be read", "", "nodes/metrics", "get")
		default:
			need("kubelets (/stats/summary) cannot be read", "", "nodes/stats", "get")
		}
	}
	inventory := func() {
		need("the cluster cannot be told from others of its name", "", "namespaces", "get")
		all[len(all)-1].Name = "kube-system"
		need("namespaces have no labels and ids", "", "namespaces", "list", "watch")
		need("nobody knows which nodes should report", "", "nodes", "list", "watch")
		need("pods have no labels, owners, requests and limits", "", "pods", "list", "watch")
		need("workloads are called after their ReplicaSet", "apps", "replicasets", "list", "watch")
		need("workloads are called after their Job", "batch", "jobs", "list", "watch")
	}
	happenings := func() {
		if events || role == string(scraper.RoleEvents) {
			need("no events reach the sinks", "", "events", "list", "watch")
		}
	}
	delegated := func(optional bool) {
		from := len(all)
		need("nobody's token is recognized by the metrics API", "authentication.k8s.io", "tokenreviews", "create")
		need("nobody may read the metrics API", "authorization.k8s.io", "subjectaccessreviews", "create")
		need("the API server is not recognized by its certificate", "", "configmaps", "get", "list", "watch")
		for i := range all[from:] {
			r := &all[from+i]
			r.Optional = optional
			if r.Resource == "configmaps" {
				r.Namespace, r.Name = "kube-system", "extension-apiserver-authentication"
			}
		}
	}
	switch role {
	case string(scraper.RoleNode):
		if podsFrom == scraper.PodsFromKubelet {
			need("the kubelet's /pods cannot be read", "", "nodes/pods", "get")
		} else {
			need("pods have no labels, owners, requests and limits", "", "pods", "list", "watch")
		}
		need("the node has no address, capacity and labels", "", "nodes", "get")
		kubelets()
	case string(scraper.RoleInventory):
		inventory()
		happenings()
	case string(scraper.RoleEvents):
		need("the cluster cannot be told from others of its name", "", "namespaces", "get")
		all[len(all)-1].Name = "kube-system"
		happenings()
	case string(scraper.RoleCentral), RoleStandalone:
		kubelets()
		inventory()
		happenings()
		if role == RoleStandalone {
			delegated(true) // of use with --api-server alone
		}
	case RoleGateway:
		delegated(false)
	}
	return all
}

// rights asks the API server about every right.
func (d *Doctor) rights(ctx context.Context, a *api) {
	source, err := d.cfg.Scraper.SourceKey()
	if err != nil {
		return // not reached: validated
	}
	who := or(d.cfg.As, or(a.user, "this identity"))
	wanted := Rights(d.cfg.Role, source, d.cfg.Scraper.PodsFrom, d.cfg.Scraper.Events)
	type group struct {
		first Right
		verbs []string
	}
	var missing []group
	granted := 0
	for _, r := range wanted {
		allowed, err := d.may(ctx, a, r)
		if err == nil && !allowed && r.Resource == "nodes/pods" { // before KubeletFineGrainedAuthz
			coarse := r
			coarse.Resource = "nodes/proxy"
			allowed, err = d.may(ctx, a, coarse)
		}
		if err != nil {
			d.add(Warn, CheckRights, "", "the API server has to answer reviews of access: look at its authorization mode, or ask with another identity", "%v", err)
			return
		}
		if allowed {
			granted++
			continue
		}
		at := slices.IndexFunc(missing, func(g group) bool {
			return g.first.Resource == r.Resource && g.first.Group == r.Group && g.first.Name == r.Name
		})
		if at < 0 {
			missing = append(missing, group{r, []string{r.Verb}})
		} else {
			missing[at].verbs = append(missing[at].verbs, r.Verb)
		}
		switch {
		case r.Resource == "nodes" && (r.Verb == "list" || r.Verb == "get"):
			d.seen.unlisted = d.seen.unlisted || d.cfg.As == ""
		case strings.HasPrefix(r.Resource, "nodes/") && r.Verb == "get":
			d.seen.noStats = d.seen.noStats || d.cfg.As == ""
		}
	}
	for _, g := range missing {
		level := Fail
		if g.first.Optional {
			level = Warn
		}
		kind, role := "ClusterRole", d.cfg.clusterRole()
		names := ""
		if g.first.Name != "" {
			names = ", resourceNames: [" + g.first.Name + "]"
		}
		if g.first.Namespace != "" {
			kind, role = "Role in "+g.first.Namespace, "extension-apiserver-authentication-reader"
		}
		rule := fmt.Sprintf("{apiGroups: [%q], resources: [%s], verbs: [%s]%s}", g.first.Group, g.first.Resource, strings.Join(g.verbs, ", "), names)
		d.add(level, CheckRights, qualified(g.first), fmt.Sprintf("add to the %s %s, and bind it: %s", kind, role, rule),
			"%s may not %s them: %s", who, strings.Join(g.verbs, " and "), g.first.Why)
	}
	if granted > 0 {
		d.ok(CheckRights, "", "%s has %d of the %d rights that the role %s takes", who, granted, len(wanted), d.cfg.Role)
	}
}

func qualified(r Right) string {
	if r.Group == "" {
		return r.Resource
	}
	return r.Resource + "." + r.Group
}

// may asks whether we, or the user asked for, have a right.
func (d *Doctor) may(ctx context.Context, a *api, r Right) (bool, error) {
	resource, sub, _ := strings.Cut(r.Resource, "/")
	spec := map[string]any{"resourceAttributes": map[string]string{"verb": r.Verb, "group": r.Group, "resource": resource, "subresource": sub, "namespace": r.Namespace, "name": r.Name}}
	kind, path := "SelfSubjectAccessReview", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
	if d.cfg.As != "" {
		kind, path = "SubjectAccessReview", "/apis/authorization.k8s.io/v1/subjectaccessreviews"
		spec["user"], spec["groups"] = d.cfg.As, groupsOf(d.cfg.As)
	}
	got, err := a.post(ctx, path, map[string]any{"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec})
	if err != nil {
		return false, fmt.Errorf("ask whether we may %s %s: %w", r.Verb, qualified(r), err)
	}
	var answer struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	if got.status != http.StatusCreated && got.status != http.StatusOK || json.Unmarshal(got.body, &answer) != nil {
		return false, fmt.Errorf("ask whether we may %s %s: status %d: %.200s", r.Verb, qualified(r), got.status, got.body)
	}
	return answer.Status.Allowed, nil
}
