package doctor

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// metricsAPI looks at the metrics APIs as their users do: through the API server.
func (d *Doctor) metricsAPI(ctx context.Context, a *api) {
	for _, s := range []struct {
		name, path, missing string
		optional            bool
	}{
		{"v1beta1.metrics.k8s.io", "/apis/metrics.k8s.io/v1beta1", "kubectl top and the HPA get nothing", false},
		{"v1.metrics.k8s.io", "/apis/metrics.k8s.io/v1", "newer clients have to do with v1beta1", true},
		{"v1beta2.custom.metrics.k8s.io", "/apis/custom.metrics.k8s.io/v1beta2", "the HPA has no custom metrics", true},
		{"v1beta1.external.metrics.k8s.io", "/apis/external.metrics.k8s.io/v1beta1", "the HPA has no external metrics", true},
	} {
		got, err := a.get(ctx, s.path)
		const register = "register it: kubectl apply -k of deploy/kubernetes/base/registration (outside of the cluster: deploy/kubernetes/outside), and start with --api-server"
		switch {
		case err != nil:
			d.add(Fail, CheckMetricsAPI, s.name, adviseDial(err, "the API server", "kubeconfig: certificate-authority"), "%v", err)
		case got.status == http.StatusOK:
			d.ok(CheckMetricsAPI, s.name, "is served")
			if s.path == "/apis/metrics.k8s.io/v1beta1" {
				d.servedNodes(ctx, a)
			}
		case got.status == http.StatusNotFound && s.optional:
			d.ok(CheckMetricsAPI, s.name, "is not registered: %s", s.missing)
		case got.status == http.StatusNotFound:
			d.add(Warn, CheckMetricsAPI, s.name, register, "is not registered: %s", s.missing)
		case got.status == http.StatusForbidden:
			d.skip(CheckMetricsAPI, s.name, "this identity may not see what is served (system:discovery)")
		default:
			d.add(Fail, CheckMetricsAPI, s.name, d.adviseAPIService(ctx, a, s.name), "answers %d: %s", got.status, status(got.body))
		}
	}
}

// status is the message of a Status, or the beginning of what is none.
func status(body []byte) string {
	var s struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &s) == nil && s.Message != "" {
		return s.Message
	}
	return string(body[:min(len(body), 200)])
}

// adviseAPIService says what the API server says of an APIService that is registered and does not answer.
func (d *Doctor) adviseAPIService(ctx context.Context, a *api, name string) string {
	const do = "is a gateway behind the Service ready (its /readyz), does its certificate fit the caBundle, and may the API server reach it (NetworkPolicy)?"
	got, err := a.get(ctx, "/apis/apiregistration.k8s.io/v1/apiservices/"+name)
	var s struct {
		Spec struct {
			Service struct {
				Name, Namespace string
			} `json:"service"`
		} `json:"spec"`
		Status struct {
			Conditions []struct {
				Type, Status, Reason, Message string
			} `json:"conditions"`
		} `json:"status"`
	}
	if err != nil || got.status != http.StatusOK || json.Unmarshal(got.body, &s) != nil {
		return do
	}
	for _, c := range s.Status.Conditions {
		if c.Type == "Available" && c.Status != "True" {
			return "Service " + s.Spec.Service.Namespace + "/" + s.Spec.Service.Name + " is behind it, and the API server says " + c.Reason + ": " + c.Message + "; " + do
		}
	}
	return do
}

// servedNodes compares what is served with the nodes there are.
func (d *Doctor) servedNodes(ctx context.Context, a *api) {
	const about = "nodes"
	got, err := a.get(ctx, "/apis/metrics.k8s.io/v1beta1/nodes")
	if err != nil {
		d.add(Fail, CheckMetricsAPI, about, adviseDial(err, "the API server", "kubeconfig: certificate-authority"), "%v", err)
		return
	}
	if got.status == http.StatusForbidden {
		d.skip(CheckMetricsAPI, about, "this identity may not list nodes.metrics.k8s.io")
		return
	}
	var list struct {
		Items []struct {
			Timestamp time.Time `json:"timestamp"`
		} `json:"items"`
	}
	if got.status != http.StatusOK || json.Unmarshal(got.body, &list) != nil {
		d.add(Fail, CheckMetricsAPI, about, "look at the gateway's log; right after its start wait until it is ready", "answers %d: %s", got.status, status(got.body))
		return
	}
	if missing := d.seen.nodes - len(list.Items); missing > len(d.seen.failing) && !d.seen.noStats {
		d.add(Warn, CheckMetricsAPI, about, "a new node is served after two scrapes; look at lags below", "%d of %d are served", len(list.Items), d.seen.nodes)
		return
	}
	d.ok(CheckMetricsAPI, about, "%d are served", len(list.Items))
}

// gateway looks at a gateway's Heapster surface.
func (d *Doctor) gateway(ctx context.Context) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}}
	got, err := ask(ctx, client, http.MethodGet, strings.TrimSuffix(d.cfg.Gateway, "/")+"/healthz", nil)
	if err != nil {
		d.add(Fail, CheckGateway, "", adviseDial(err, "the gateway", "the system's roots"), "%s does not answer: %v", d.cfg.Gateway, err)
		return
	}
	if got.tls != nil && len(got.tls.PeerCertificates) > 0 {
		d.certificate("gateway", got.tls.PeerCertificates[0], "renew the gateway's certificate (--tls-cert-file)")
	}
	if got.status != http.StatusOK {
		d.add(Fail, CheckGateway, "", "what it lacks is told below, under leases and lags; right after its start wait until the first ticks are in", "%s is not healthy: %d: %s", d.cfg.Gateway, got.status, status(got.body))
		return
	}
	d.ok(CheckGateway, "", "%s is healthy, answers after %s", d.cfg.Gateway, got.took.Round(time.Millisecond))
}
