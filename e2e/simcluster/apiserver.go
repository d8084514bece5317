package simcluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apimachinery/pkg/watch"
)

// apiServer answers as a Kubernetes API server.
type apiServer struct {
	c     *Cluster
	proxy *http.Transport // to gateways; shows the front-proxy certificate
}

func newAPIServer(c *Cluster) *apiServer {
	t := &tls.Config{Certificates: []tls.Certificate{c.pki.proxyClient}, InsecureSkipVerify: true} // as insecureSkipTLSVerify of an APIService
	if len(c.cfg.GatewayCA) != 0 {
		t.InsecureSkipVerify = false
		t.RootCAs = poolOf(c.cfg.GatewayCA)
	}
	return &apiServer{c: c, proxy: &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}}
}

// serve answers on the listeners (plain, https; either may be nil) until ctx ends.
func (a *apiServer) serve(ctx context.Context, listeners []net.Listener) error {
	var wg sync.WaitGroup
	errs := make([]error, len(listeners))
	for i, l := range listeners {
		if l == nil {
			continue
		}
		secure := i == 1
		srv := &http.Server{Handler: a.handler(secure), ReadHeaderTimeout: 30 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
			ErrorLog: quietLog(a.c.log)}
		if secure {
			cert, err := a.c.pki.apiServer(l.Addr(), a.c.cfg.ServerNames)
			if err != nil {
				l.Close()
				errs[i] = err
				continue
			}
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		}
		l = a.c.front.listener(l)
		wg.Go(func() {
			var err error
			if secure {
				err = srv.ServeTLS(l, "", "")
			} else {
				err = srv.Serve(l)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				errs[i] = fmt.Errorf("serve simulated API on %s: %w", l.Addr(), err)
			}
		})
		stop := context.AfterFunc(ctx, func() { srv.Close() })
		defer stop()
	}
	wg.Wait()
	a.proxy.CloseIdleConnections()
	return errors.Join(errs...)
}

// quietLog takes what net/http says (handshakes that failed, and the like) as debug messages.
func quietLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }

// anonymous is who calls without a token; the plain port calls everybody an administrator.
var (
	anonymous  = &User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}
	insecure   = &User{Name: "system:unsecured", Groups: []string{"system:masters", "system:authenticated"}}
	openToAll  = []string{"/healthz", "/readyz", "/livez", "/version"}
	errNoToken = apierrors.NewUnauthorized("Unauthorized")
)

// userOf is whom a request's bearer token belongs to: anonymous without one, nil if nobody has it.
func (c *Cluster) userOf(r *http.Request) *User {
	h := r.Header.Get("Authorization")
	if h == "" {
		return anonymous
	}
	scheme, token, _ := strings.Cut(h, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return c.userByToken(strings.TrimSpace(token))
}

func (c *Cluster) userByToken(token string) *User {
	for i := range c.users {
		if c.users[i].Token == token {
			return &c.users[i]
		}
	}
	return nil
}

// attributes are what authorization is decided by.
type attributes struct {
	verb, group, resource, subresource, namespace, name string
	path                                                string // instead of a resource
}

// may tells whether a user's groups or rules allow something.
func (u *User) may(a attributes) bool {
	if slices.Contains(u.Groups, "system:masters") {
		return true
	}
	if a.path != "" && a.verb == "get" && slices.Contains(u.Groups, "system:authenticated") {
		for _, open := range []string{"/api", "/apis", "/openapi"} { // system:discovery
			if a.path == open || strings.HasPrefix(a.path, open+"/") {
				return true
			}
		}
	}
	if a.path != "" && slices.Contains(openToAll, a.path) {
		return true
	}
	if a.group == "authorization.k8s.io" && a.resource == "selfsubjectaccessreviews" && slices.Contains(u.Groups, "system:authenticated") {
		return true
	}
	in := func(list []string, v string) bool { return slices.Contains(list, v) || slices.Contains(list, "*") }
	res := a.resource
	if a.subresource != "" {
		res += "/" + a.subresource
	}
	for _, r := range u.Rules {
		if !in(r.Verbs, a.verb) {
			continue
		}
		if a.path != "" {
			for _, p := range r.NonResourceURLs {
				if p == a.path || strings.HasSuffix(p, "*") && strings.HasPrefix(a.path, p[:len(p)-1]) {
					return true
				}
			}
			continue
		}
		if in(r.APIGroups, a.group) && in(r.Resources, res) && (r.Namespace == "" || r.Namespace == a.namespace) {
			return true
		}
	}
	return false
}

// request is a path of the API taken apart.
type request struct {
	attributes
	version string
	rest    string // behind a subresource, for proxies
}

// parsePath takes apart /api/v1/… and /apis/GROUP/VERSION/…; false for anything else.
func parsePath(path string) (request, bool) {
	var q request
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		q.version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		q.group, q.version, parts = parts[1], parts[2], parts[3:]
	default:
		return q, false
	}
	if parts[0] == "watch" && len(parts) > 1 {
		return q, false // the watch/ paths of long ago
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		q.namespace, parts = parts[1], parts[2:]
	}
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	if len(parts) > 2 {
		q.subresource = parts[2]
		q.rest = "/" + strings.Join(parts[3:], "/")
		if strings.HasSuffix(path, "/") && len(parts) > 3 {
			q.rest += "/"
		}
	}
	if q.resource == "namespaces" && q.name != "" {
		q.namespace = q.name
	}
	return q, true
}

func (a *apiServer) handler(secure bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user := insecure
		if secure {
			if user = a.c.userOf(r); user == nil {
				a.fail(w, r, errNoToken)
				return
			}
		}
		q, isResource := parsePath(r.URL.Path)
		q.verb = strings.ToLower(r.Method)
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			q.verb = "get"
			if isResource && q.name == "" {
				q.verb = "list"
				if isTrue(r.URL.Query().Get("watch")) {
					q.verb = "watch"
				}
			}
		case http.MethodPost:
			q.verb = "create"
		case http.MethodPut:
			q.verb = "update"
		}
		if !isResource {
			q.attributes = attributes{verb: strings.ToLower(r.Method), path: r.URL.Path}
			if strings.HasPrefix(q.path, "/apis/metrics.k8s.io/") && q.verb == "head" {
				q.verb = "get"
			}
		}
		if !user.may(q.attributes) {
			if user == anonymous {
				a.fail(w, r, errNoToken)
				return
			}
			a.fail(w, r, forbidden(user, q.attributes))
			return
		}
		if isResource {
			a.resource(w, r, user, q)
			return
		}
		a.other(w, r, user)
	})
}

func isTrue(s string) bool {
	b, err := strconv.ParseBool(s)
	return err == nil && b
}

func forbidden(u *User, a attributes) *apierrors.StatusError {
	if a.path != "" {
		return apierrors.NewForbidden(schema.GroupResource{}, "", fmt.Errorf("User %q cannot %s path %q", u.Name, a.verb, a.path))
	}
	where := " at the cluster scope"
	if a.namespace != "" {
		where = fmt.Sprintf(" in the namespace %q", a.namespace)
	}
	res := a.resource
	if a.subresource != "" {
		res += "/" + a.subresource
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.group, Resource: a.resource}, a.name,
		fmt.Errorf("User %q cannot %s resource %q in API group %q%s", u.Name, a.verb, res, a.group, where))
}

// fail answers with a Status.
func (a *apiServer) fail(w http.ResponseWriter, r *http.Request, err *apierrors.StatusError) {
	st := err.ErrStatus
	a.send(w, r, int(st.Code), &st)
}

// send answers with an object whose kind is set (a Status needs none), in the form that the client accepts, else JSON.
func (a *apiServer) send(w http.ResponseWriter, r *http.Request, code int, obj runtime.Object) {
	o, ok := negotiate(r.Header.Get("Accept"))
	if !ok {
		o, _ = negotiate(runtime.ContentTypeJSON)
	}
	if st, isStatus := obj.(*metav1.Status); isStatus {
		st.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	}
	w.Header().Set("Content-Type", o.MediaType)
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(code)
	if r.Method == http.MethodHead {
		return
	}
	if err := encode(w, o, obj); err != nil {
		a.c.log.Debug("answer was not taken", "path", r.URL.Path, "err", err)
	}
}

// resource answers for a path that names a resource.
func (a *apiServer) resource(w http.ResponseWriter, r *http.Request, user *User, q request) {
	if isAggregated(q.group) {
		a.toGateway(w, r, user)
		return
	}
	if kind, ok := reviews[q.group][q.resource]; ok && q.version == "v1" && q.verb == "create" {
		a.review(w, r, user, kind)
		return
	}
	if q.group == "" && q.version == "v1" && q.subresource == "proxy" {
		switch q.resource {
		case "nodes":
			a.toKubelet(w, r, q)
			return
		case "services":
			a.toService(w, r, q)
			return
		}
	}
	info := findResource(q.group, q.version, q.resource)
	if info == nil || q.subresource != "" || info.namespaced && q.namespace == "" && q.name != "" {
		http.NotFound(w, r)
		return
	}
	gr := schema.GroupResource{Group: q.group, Resource: q.resource}
	if !info.namespaced {
		q.namespace = ""
	}
	o, ok := negotiate(r.Header.Get("Accept"))
	switch {
	case q.verb != "get" && q.verb != "list" && q.verb != "watch":
		a.fail(w, r, apierrors.NewMethodNotSupported(gr, q.verb))
	case !ok:
		a.fail(w, r, &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
			Message: "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"}})
	case q.verb == "get":
		a.c.mu.RLock()
		rec := a.c.stores[info.store()].get(q.namespace, q.name)
		a.c.mu.RUnlock()
		if rec == nil {
			a.fail(w, r, apierrors.NewNotFound(gr, q.name))
			return
		}
		obj, err := info.renderOne(rec, o, a.c.now())
		if err != nil {
			a.fail(w, r, apierrors.NewInternalError(err))
			return
		}
		a.sendAs(w, r, o, obj)
	default:
		sel, err := parseSelection(info, q.namespace, r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		if q.verb == "watch" {
			a.watch(w, r, info, sel, o)
		} else {
			a.list(w, r, info, sel, o)
		}
	}
}

func (a *apiServer) sendAs(w http.ResponseWriter, r *http.Request, o offer, obj runtime.Object) {
	w.Header().Set("Content-Type", o.MediaType)
	w.Header().Set("Cache-Control", "no-cache, private")
	if r.Method == http.MethodHead {
		return
	}
	if err := encode(w, o, obj); err != nil {
		a.c.log.Debug("answer was not taken", "path", r.URL.Path, "err", err)
	}
}

// selection is which objects of a resource are wanted.
type selection struct {
	namespace string
	fields    fields.Requirements
	labels    labels.Selector // nil = all
	node      string          // of spec.nodeName=, "" = any
}

func parseSelection(info *resourceInfo, namespace string, r *http.Request) (*selection, *apierrors.StatusError) {
	query := r.URL.Query()
	s := &selection{namespace: namespace}
	if f := query.Get("fieldSelector"); f != "" {
		sel, err := fields.ParseSelector(f)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("unable to parse field selector: %v", err))
		}
		s.fields = sel.Requirements()
		for _, req := range s.fields {
			if req.Field != "metadata.name" && (req.Field != "metadata.namespace" || !info.namespaced) && !slices.Contains(info.fields, req.Field) {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", req.Field))
			}
		}
		s.node, _ = sel.RequiresExactMatch("spec.nodeName")
	}
	if l := query.Get("labelSelector"); l != "" {
		sel, err := labels.Parse(l)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("unable to parse label selector: %v", err))
		}
		if !sel.Empty() {
			s.labels = sel
		}
	}
	return s, nil
}

func (s *selection) matches(rec *record) bool {
	ns, name := rec.st.key()
	if s.namespace != "" && ns != s.namespace {
		return false
	}
	for _, req := range s.fields {
		var v string
		switch req.Field {
		case "metadata.name":
			v = name
		case "metadata.namespace":
			v = ns
		default:
			v, _ = rec.st.field(req.Field)
		}
		if (v == req.Value) == (req.Operator == "!=") {
			return false
		}
	}
	return s.labels == nil || s.labels.Matches(labels.Set(rec.st.labels()))
}

// pageSnapshot is a list that goes on: what it was when its first page was read.
type pageSnapshot struct {
	plural string
	rv     uint64
	recs   []*record
}

// continueToken is what stands in a continue value; its form is that of a real API server.
type continueToken struct {
	APIVersion string `json:"v"`
	RV         uint64 `json:"rv"`
	Start      string `json:"start"`
}

const pagesKept = 64 // lists that can go on at one time

// candidates are the records that may match, and the resource version they are of.
func (c *Cluster) candidates(info *resourceInfo, s *selection) ([]*record, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.stores[info.store()]
	if info.plural == "pods" && s.node != "" {
		// Node-role scrapers ask for one node's pods, thousands of them: do not look through all.
		n := c.byName[s.node]
		if n == nil {
			return nil, c.rv
		}
		if n.recorded == nil {
			var recs []*record
			for _, p := range n.state.Load().pods {
				if r := st.get(p.w.ns, p.name); r != nil {
					recs = append(recs, r)
				}
			}
			slices.SortFunc(recs, func(x, y *record) int { return comparePods(x.st.(*podState), y.st.(*podState)) })
			return recs, c.rv
		}
	}
	recs := st.snapshot()
	if s.namespace != "" {
		lo, _ := st.find(s.namespace, "")
		hi, _ := st.find(s.namespace+"\x00", "")
		recs = recs[lo:hi]
	}
	return recs, c.rv
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request, info *resourceInfo, s *selection, o offer) {
	query := r.URL.Query()
	limit, _ := strconv.Atoi(query.Get("limit"))
	var recs []*record
	var rv uint64
	if cont := query.Get("continue"); cont != "" {
		b, err := base64.RawURLEncoding.DecodeString(cont)
		var t continueToken
		if err == nil {
			err = json.Unmarshal(b, &t)
		}
		if err != nil {
			a.fail(w, r, apierrors.NewBadRequest("continue key is not valid"))
			return
		}
		rv = t.RV
		a.c.mu.RLock()
		for _, p := range a.c.pages {
			if p.plural == info.store() && p.rv == rv {
				recs = p.recs
			}
		}
		a.c.mu.RUnlock()
		if recs == nil {
			a.fail(w, r, apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result."))
			return
		}
		ns, name, _ := strings.Cut(t.Start, "/")
		i, found := slices.BinarySearchFunc(recs, 0, func(rec *record, _ int) int {
			if rec.before(ns, name) {
				return -1
			}
			if x, y := rec.st.key(); x == ns && y == name {
				return 0
			}
			return 1
		})
		if found {
			i++
		}
		recs = recs[i:]
	} else {
		recs, rv = a.c.candidates(info, s)
		if want := query.Get("resourceVersion"); want != "" && want != "0" {
			v, err := strconv.ParseUint(want, 10, 64)
			switch {
			case err != nil:
				a.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version %q", want)))
				return
			case v > rv:
				a.fail(w, r, tooLarge(v, rv))
				return
			case query.Get("resourceVersionMatch") == string(metav1.ResourceVersionMatchExact) && v != rv:
				a.fail(w, r, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", v, rv)))
				return
			}
		}
	}
	page := make([]*record, 0, min(len(recs), max(limit, 16)))
	cont := ""
	var remaining *int64
	for i, rec := range recs {
		if !s.matches(rec) {
			continue
		}
		page = append(page, rec)
		if limit > 0 && len(page) == limit && i+1 < len(recs) {
			ns, name := rec.st.key()
			b, err := json.Marshal(continueToken{"meta.k8s.io/v1", rv, ns + "/" + name})
			if err != nil {
				panic(err) // three plain fields
			}
			cont = base64.RawURLEncoding.EncodeToString(b)
			if s.labels == nil && len(s.fields) == 0 {
				remaining = ptr(int64(len(recs) - i - 1))
			}
			a.c.keepPage(pageSnapshot{info.store(), rv, recs})
			break
		}
	}
	l, err := info.renderList(page, rv, cont, remaining, o, a.c.now())
	if err != nil {
		a.fail(w, r, apierrors.NewInternalError(err))
		return
	}
	a.sendAs(w, r, o, l)
}

func (c *Cluster) keepPage(p pageSnapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.pages {
		if q.plural == p.plural && q.rv == p.rv && len(q.recs) >= len(p.recs) {
			return
		}
	}
	if len(c.pages) == pagesKept {
		c.pages = slices.Delete(c.pages, 0, 1)
	}
	c.pages = append(c.pages, p)
}

// tooLarge is what a client hears that knows a later version than the server.
func tooLarge(want, have uint64) *apierrors.StatusError {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", want, have), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

func (a *apiServer) watch(w http.ResponseWriter, r *http.Request, info *resourceInfo, s *selection, o offer) {
	query := r.URL.Query()
	if o.StreamSerializer == nil {
		a.fail(w, r, apierrors.NewBadRequest("a watch needs JSON or protobuf"))
		return
	}
	initial := query.Has("sendInitialEvents") && isTrue(query.Get("sendInitialEvents"))
	bookmarks := isTrue(query.Get("allowWatchBookmarks"))
	if query.Has("sendInitialEvents") && query.Get("resourceVersionMatch") != string(metav1.ResourceVersionMatchNotOlderThan) {
		a.fail(w, r, apierrors.NewBadRequest("sendInitialEvents: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
		return
	}
	var from uint64
	if v := query.Get("resourceVersion"); v != "" {
		var err error
		if from, err = strconv.ParseUint(v, 10, 64); err != nil {
			a.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version %q", v)))
			return
		}
	}
	timeout := time.Duration(30+rand.IntN(30)) * time.Minute
	if t, err := strconv.Atoi(query.Get("timeoutSeconds")); err == nil && t > 0 {
		timeout = time.Duration(min(t, 86400)) * time.Second
	}
	var backlog []*record
	if initial || from == 0 && !query.Has("sendInitialEvents") {
		// From the state of now; "0" and "" alike.
		recs, rv := a.c.candidates(info, s)
		if initial && from > rv {
			a.fail(w, r, tooLarge(from, rv))
			return
		}
		backlog, from = recs, rv
	} else if from == 0 {
		a.c.mu.RLock()
		from = a.c.rv
		a.c.mu.RUnlock()
	}

	out := &watchStream{w: w, rc: http.NewResponseController(w), info: info, offer: o, now: a.c.now}
	ct := o.MediaType
	if o.MediaType != runtime.ContentTypeJSON {
		ct += ";stream=watch"
	}
	w.Header().Set("Content-Type", ct)
	w.Header().Set("Cache-Control", "no-cache, private")
	w.WriteHeader(http.StatusOK)
	out.framer = o.StreamSerializer.Framer.NewFrameWriter(w)

	for _, rec := range backlog {
		if s.matches(rec) && out.record(watch.Added, rec) != nil {
			return
		}
	}
	backlog = nil
	if initial && bookmarks && out.send(watch.Bookmark, info.bookmark(from, o, true)) != nil {
		return
	}
	if out.flush() != nil {
		return
	}

	st := a.c.stores[info.store()]
	ticker := time.NewTicker(a.c.cfg.BookmarkEvery)
	defer ticker.Stop()
	end := time.NewTimer(timeout)
	defer end.Stop()
	for {
		a.c.mu.RLock()
		changes, more, ok := st.since(from)
		rv := a.c.rv
		a.c.mu.RUnlock()
		if !ok {
			gone := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", from, st.oldest(a.c)))
			gone.ErrStatus.SetGroupVersionKind(schema.GroupVersionKind{Version: "v1", Kind: "Status"})
			_ = out.send(watch.Error, &gone.ErrStatus)
			_ = out.flush()
			return
		}
		for _, ch := range changes {
			was, is := ch.was != nil && s.matches(ch.was), ch.isIt != nil && s.matches(ch.isIt)
			var err error
			switch {
			case is && was:
				err = out.record(watch.Modified, ch.isIt)
			case is:
				err = out.record(watch.Added, ch.isIt)
			case was:
				err = out.record(watch.Deleted, &record{ch.rv, ch.was.st})
			}
			if err != nil {
				return
			}
		}
		if len(changes) > 0 {
			from = changes[len(changes)-1].rv
			if out.flush() != nil {
				return
			}
		}
		from = max(from, rv) // nothing of this resource lies between
		select {
		case <-more:
		case <-ticker.C:
			if bookmarks && (out.send(watch.Bookmark, info.bookmark(from, o, false)) != nil || out.flush() != nil) {
				return
			}
		case <-end.C:
			if bookmarks && out.send(watch.Bookmark, info.bookmark(from, o, false)) == nil {
				_ = out.flush()
			}
			return
		case <-r.Context().Done():
			return
		}
	}
}

// oldest is the version that a watch may start from at the least.
func (s *store) oldest(c *Cluster) uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return s.base
}

// watchStream writes watch events.
type watchStream struct {
	w      http.ResponseWriter
	rc     *http.ResponseController
	info   *resourceInfo
	offer  offer
	now    func() time.Time
	framer io.Writer
	buf    bytes.Buffer
}

// watchWriteTimeout ends a watch whose client does not read.
const watchWriteTimeout = 30 * time.Second

func (s *watchStream) record(t watch.EventType, rec *record) error {
	obj, err := s.info.renderOne(rec, s.offer, s.now())
	if err != nil {
		return err
	}
	return s.send(t, obj)
}

func (s *watchStream) send(t watch.EventType, obj runtime.Object) error {
	s.buf.Reset()
	if err := s.offer.Serializer.Encode(obj, &s.buf); err != nil {
		return err
	}
	ev := &metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: s.buf.Bytes()}}
	// Not every writer can set deadlines (tests' recorders); those that can, do.
	if err := s.rc.SetWriteDeadline(time.Now().Add(watchWriteTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return s.offer.StreamSerializer.Serializer.Encode(ev, s.framer)
}

// flush writes what was sent, and lets the stream be idle for as long as it likes: over HTTP/2 a deadline that stays set
// ends the stream when it has passed, whether anything is being written or not, and its watcher would list everything again.
func (s *watchStream) flush() error {
	err := s.rc.Flush()
	if clear := s.rc.SetWriteDeadline(time.Time{}); err == nil && !errors.Is(clear, http.ErrNotSupported) {
		err = clear
	}
	return err
}

// other answers for paths that name no resource.
func (a *apiServer) other(w http.ResponseWriter, r *http.Request, user *User) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	if strings.HasPrefix(path, "/sim") && (path == "/sim" || path[4] == '/') {
		a.control(w, r, path[4:])
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		a.fail(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{}, strings.ToLower(r.Method)))
		return
	}
	switch path {
	case "/healthz", "/readyz", "/livez":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, "ok")
	case "/version":
		writeJSON(w, version.Info{Major: "1", Minor: "34", GitVersion: kubeVersion, GitCommit: "simcluster", GitTreeState: "clean", GoVersion: "go1.26", Compiler: "gc", Platform: "linux/amd64"})
	case "/api":
		writeJSON(w, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: r.Host}}})
	case "/apis":
		l := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		for _, g := range groups {
			l.Groups = append(l.Groups, apiGroup(g))
		}
		l.Groups = append(l.Groups, a.gatewayGroups(r.Context(), user)...)
		writeJSON(w, l)
	case "/api/v1":
		writeJSON(w, resourceList("", "v1"))
	case "/openapi/v2":
		writeJSON(w, map[string]any{"swagger": "2.0", "info": map[string]string{"title": "Kubernetes", "version": kubeVersion}, "paths": map[string]any{}, "definitions": map[string]any{}})
	case "/openapi/v3":
		writeJSON(w, map[string]any{"paths": map[string]any{}})
	case "":
		writeJSON(w, metav1.RootPaths{Paths: []string{"/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/sim", "/version"}})
	default:
		parts := strings.Split(path, "/")
		if len(parts) < 3 || parts[1] != "apis" {
			http.NotFound(w, r)
			return
		}
		g := parts[2]
		switch {
		case isAggregated(g):
			a.toGateway(w, r, user)
		case !slices.Contains(groups, g) || len(parts) > 4 || len(parts) == 4 && parts[3] != "v1":
			http.NotFound(w, r)
		case len(parts) == 3:
			gr := apiGroup(g)
			gr.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
			writeJSON(w, gr)
		default:
			writeJSON(w, resourceList(g, "v1"))
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	_ = enc.Encode(v) // the client went away: nothing to tell it
}

func apiGroup(g string) metav1.APIGroup {
	v := metav1.GroupVersionForDiscovery{GroupVersion: g + "/v1", Version: "v1"}
	return metav1.APIGroup{Name: g, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v}
}

func resourceList(group, ver string) metav1.APIResourceList {
	l := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: schema.GroupVersion{Group: group, Version: ver}.String(),
		APIResources: []metav1.APIResource{}}
	for _, r := range resources {
		if r.group == group && r.version == ver {
			l.APIResources = append(l.APIResources, metav1.APIResource{Name: r.plural, SingularName: r.singular, Namespaced: r.namespaced, Kind: r.kind,
				Verbs: metav1.Verbs{"get", "list", "watch"}, ShortNames: r.short})
		}
	}
	for name, kind := range reviews[group] {
		l.APIResources = append(l.APIResources, metav1.APIResource{Name: name, Kind: kind, Verbs: metav1.Verbs{"create"}})
	}
	if group == "" {
		l.APIResources = append(l.APIResources, metav1.APIResource{Name: "nodes/proxy", Kind: "NodeProxyOptions", Verbs: metav1.Verbs{"get"}},
			metav1.APIResource{Name: "services/proxy", Namespaced: true, Kind: "ServiceProxyOptions", Verbs: metav1.Verbs{"get"}})
	}
	return l
}

// review answers TokenReview, SubjectAccessReview and SelfSubjectAccessReview.
func (a *apiServer) review(w http.ResponseWriter, r *http.Request, user *User, kind string) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, 1<<20)); err != nil {
		a.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("read %s: %v", kind, err)))
		return
	}
	obj, _, err := codecs.UniversalDeserializer().Decode(body.Bytes(), nil, nil)
	if err != nil {
		a.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("decode %s: %v", kind, err)))
		return
	}
	gvk := obj.GetObjectKind().GroupVersionKind()
	switch o := obj.(type) {
	case *authenticationv1.TokenReview:
		if u := a.c.userByToken(o.Spec.Token); u != nil {
			o.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}, Audiences: o.Spec.Audiences}
		} else {
			o.Status = authenticationv1.TokenReviewStatus{Error: "invalid bearer token"}
		}
	case *authorizationv1.SubjectAccessReview:
		subject := &User{Name: o.Spec.User, Groups: o.Spec.Groups}
		for i := range a.c.users {
			if a.c.users[i].Name == o.Spec.User {
				subject.Rules = a.c.users[i].Rules
			}
		}
		o.Status = decide(subject, o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	case *authorizationv1.SelfSubjectAccessReview:
		o.Status = decide(user, o.Spec.ResourceAttributes, o.Spec.NonResourceAttributes)
	default:
		a.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("got %s, want %s", gvk, kind)))
		return
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	a.send(w, r, http.StatusCreated, obj)
}

func decide(u *User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	var at attributes
	switch {
	case res != nil:
		at = attributes{verb: res.Verb, group: res.Group, resource: res.Resource, subresource: res.Subresource, namespace: res.Namespace, name: res.Name}
	case non != nil:
		at = attributes{verb: non.Verb, path: non.Path}
	default:
		return authorizationv1.SubjectAccessReviewStatus{Reason: "no attributes to decide on"}
	}
	if u.may(at) {
		return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: fmt.Sprintf("allowed to %q", u.Name)}
	}
	return authorizationv1.SubjectAccessReviewStatus{}
}
