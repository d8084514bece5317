package simcluster

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// aggregated are the groups that a gateway answers.
var aggregated = []string{"metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"}

func isAggregated(group string) bool {
	for _, g := range aggregated {
		if g == group {
			return true
		}
	}
	return false
}

func poolOf(pem []byte) *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(pem)
	return p
}

// identify puts who is asking into the headers in which the aggregation layer says so, and takes out what the client put there.
func identify(h http.Header, u *User) {
	for name := range h {
		if strings.HasPrefix(name, "X-Remote-") {
			h.Del(name)
		}
	}
	h.Del("Authorization")
	h.Set("X-Remote-User", u.Name)
	if u.UID != "" {
		h.Set("X-Remote-Uid", u.UID)
	}
	for _, g := range u.Groups {
		h.Add("X-Remote-Group", g)
	}
}

// toGateway hands the request to the gateway.
func (a *apiServer) toGateway(w http.ResponseWriter, r *http.Request, user *User) {
	a.c.mu.RLock()
	target := a.c.gateway
	a.c.mu.RUnlock()
	if target == nil {
		a.fail(w, r, apierrors.NewServiceUnavailable("the server is currently unable to handle the request: no gateway is set"))
		return
	}
	a.forward(w, r, target, r.URL.Path, func(h http.Header) { identify(h, user) })
}

// forward proxies a request to path of a server.
func (a *apiServer) forward(w http.ResponseWriter, r *http.Request, target *url.URL, path string, headers func(http.Header)) {
	p := &httputil.ReverseProxy{
		Transport:     a.proxy,
		FlushInterval: -1,
		ErrorLog:      quietLog(a.c.log),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = target.Scheme, target.Host
			pr.Out.URL.Path, pr.Out.URL.RawPath = strings.TrimSuffix(target.Path, "/")+path, ""
			pr.Out.Host = target.Host
			headers(pr.Out.Header)
			pr.SetXForwarded()
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			a.c.log.Debug("server behind the simulated API server is not answering", "url", target.Redacted(), "path", path, "err", err)
			a.fail(w, r, apierrors.NewServiceUnavailable("error trying to reach service: "+err.Error()))
		},
	}
	p.ServeHTTP(w, r)
}

// gatewayGroups asks the gateway which of the groups it answers it has.
func (a *apiServer) gatewayGroups(ctx context.Context, user *User) []metav1.APIGroup {
	a.c.mu.RLock()
	target := a.c.gateway
	a.c.mu.RUnlock()
	if target == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	found := make([]*metav1.APIGroup, len(aggregated))
	var wg sync.WaitGroup
	for i, g := range aggregated {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.JoinPath("apis", g).String(), nil)
			if err != nil {
				return
			}
			identify(req.Header, user)
			req.Header.Set("Accept", "application/json")
			resp, err := a.proxy.RoundTrip(req)
			if err != nil {
				a.c.log.Debug("gateway does not tell its groups", "url", target.Redacted(), "err", err)
				return
			}
			defer resp.Body.Close()
			var group metav1.APIGroup
			if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&group) != nil || group.Name != g {
				return
			}
			group.TypeMeta = metav1.TypeMeta{}
			found[i] = &group
		})
	}
	wg.Wait()
	var out []metav1.APIGroup
	for _, g := range found {
		if g != nil {
			out = append(out, *g)
		}
	}
	return out
}

// toService answers the proxy of Heapster's service, by the names that its clients gave it; there is no other service.
func (a *apiServer) toService(w http.ResponseWriter, r *http.Request, q request) {
	name := strings.TrimPrefix(strings.TrimPrefix(q.name, "http:"), "https:")
	name, _, _ = strings.Cut(name, ":")
	if q.namespace != "kube-system" || name != "heapster" {
		a.fail(w, r, apierrors.NewServiceUnavailable("no endpoints available for service \""+q.name+"\""))
		return
	}
	a.c.mu.RLock()
	target := a.c.model
	a.c.mu.RUnlock()
	if target == nil {
		a.fail(w, r, apierrors.NewServiceUnavailable("no endpoints available for service \""+q.name+"\""))
		return
	}
	a.forward(w, r, target, q.rest, func(h http.Header) { h.Del("Authorization") })
}

// toKubelet answers as the node's kubelet would the API server.
func (a *apiServer) toKubelet(w http.ResponseWriter, r *http.Request, q request) {
	name, _, _ := strings.Cut(q.name, ":")
	n, err := a.c.node(name)
	if err != nil {
		a.fail(w, r, apierrors.NewServiceUnavailable(err.Error()))
		return
	}
	r = r.Clone(r.Context())
	r.URL.Path, r.URL.RawPath = q.rest, ""
	a.c.kubelets.answer(w, r, n, insecure)
}
