// Package hawkular writes rollups to Hawkular-Metrics.
//
//	hawkular:https://host[:port][/path][?tenant=heapster]
//
// The path is /hawkular/metrics where none is given. Ids, tenants and tags are Heapster's: counters and gauges apart, one
// definition for each series, tagged when it is first seen and whenever its tags have changed. Tags lack Heapster's
// descriptions of labels. Its ids of system containers do not say which node they are on: all nodes write to one series
// in turn, which is tagged when it is first seen. Leave them out by filter=-type:sys_container.
//
// `user` and `pass` log in, or useServiceAccount=true the token of the pod; `caCert` and `insecure` are other names for
// cacert and insecuressl. filter=label(<key>:<regexp>) and filter=name(<regexp>) leave out what matches, beside the
// filters that every sink has. A kubeconfig (`auth`) is not read: give cacert, cert and key.
//
// Guarantee: exactly once, by overwriting: a series has one value at one time. Hawkular-Metrics
// refuses a request or takes it, as a whole. What is refused for good is told apart by rollup.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package hawkular

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink hawkular.
var Kind = sink.Kind{Key: "hawkular", Title: "Hawkular-Metrics Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"tenant"}, New: New}

// tokenFile is where a pod finds its token.
const tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// maxTagged bounds how many definitions are remembered; beyond it they are tagged anew.
const maxTagged = 1 << 20

// metrics is one Hawkular as seen by the worker of one cluster.
type metrics struct {
	enc       encoder
	client    *post.Client
	base      string
	header    http.Header
	token     bool // of the pod
	batch     int  // points a request; 0: all
	log       *slog.Logger
	tagged    map[uint64]uint64 // definition: its tags, as hashes
	progress  sink.Progress
	body      []byte
	tokenFile string
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	t, filters := t.Without("filter", func(v string) bool { return strings.HasPrefix(v, "label(") || strings.HasPrefix(v, "name(") })
	o := t.Options()
	common := o.Common(d)
	s := &metrics{batch: o.Int("batchSize", o.BatchSize(1000, 1e6), 0), log: d.Log, tagged: map[uint64]uint64{}, tokenFile: tokenFile}
	s.enc = encoder{
		view: common.View, tenant: o.String("tenant", "heapster"), labelToTenant: o.String("labelToTenant", ""),
		labelNodeID: o.String("labelNodeId", ""), tagPrefix: o.String("labelTagPrefix", "labels."),
	}
	if s.enc.view.Labels.Separator == "" {
		s.enc.view.Labels.Separator = proto.DefaultLabelFormat().Separator
	}
	for _, f := range filters {
		one, err := parseFilter(f)
		if err != nil {
			o.Complain("%w", err)
			continue
		}
		s.enc.drop = append(s.enc.drop, one)
	}
	u := url.URL{Scheme: t.URL.Scheme, Host: t.URL.Host, Path: t.URL.Path}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		o.Complain("its address is missing: want hawkular:https://host")
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/hawkular/metrics"
	}
	s.base = strings.TrimSuffix(u.String(), "/")
	user, pass := o.String("user", ""), o.Secret("pass", "")
	s.token = o.Bool("useServiceAccount", false)
	caCert, insecure := o.String("caCert", ""), o.Bool("insecure", false)
	if o.Given("auth") {
		if caCert != "" {
			o.Complain("Both auth and caCert files provided, combination is not supported")
		}
		o.Complain("`auth` is a kubeconfig, which is not read here: give cacert, cert and key")
	}
	if user != "" && s.token {
		o.Complain("If user and password are used, serviceAccount cannot be used")
	}
	if insecure && (caCert != "" || o.Given("auth")) {
		o.Complain("Insecure can't be defined with auth or caCert")
	}
	o.Meaningless("disablePreCache", "definitions are tagged when they are first written, without asking")
	o.Meaningless("concurrencyLimit", "say concurrency=N to write N requests at once")
	client := o.HTTP()
	if transport, ok := client.Transport.(*http.Transport); ok {
		if insecure {
			transport.TLSClientConfig.InsecureSkipVerify = true //nolint:gosec // asked for by name
		}
		if caCert != "" {
			pem, err := os.ReadFile(caCert)
			transport.TLSClientConfig.RootCAs = x509.NewCertPool()
			if err != nil {
				o.Complain("`caCert`: %w", err)
			} else if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				o.Complain("`caCert`: no certificate in %q (want PEM)", caCert)
			}
		}
	}
	s.header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"heapstream/" + d.Version}}
	if user != "" {
		s.header.Set("Authorization", post.Basic(user, pass))
	}
	s.client = post.New("Hawkular at "+u.Host, client)
	return o.Made(s, d.Log)
}

// parseFilter reads label(<key>:<regexp>) or name(<regexp>).
func parseFilter(s string) (f filter, err error) {
	what, rest, _ := strings.Cut(s, "(")
	expr, ok := strings.CutSuffix(rest, ")")
	if !ok {
		return f, fmt.Errorf("`filter` flag is %q: missing ): want label(<key>:<regexp>) or name(<regexp>)", s)
	}
	if what == "label" {
		if f.label, expr, ok = strings.Cut(expr, ":"); !ok || f.label == "" {
			return f, fmt.Errorf("`filter` flag is %q: missing : want label(<key>:<regexp>)", s)
		}
	}
	if f.value, err = regexp.Compile(expr); err != nil {
		return f, fmt.Errorf("`filter` flag is %q: %w", s, err)
	}
	return f, nil
}

// Close drops idle connections.
func (s *metrics) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *metrics) Write(ctx context.Context, batch []sink.Message) error {
	if s.token {
		token, err := os.ReadFile(s.tokenFile) // it is renewed now and then
		if err != nil {
			return fmt.Errorf("read token of the service account: %w", err)
		}
		s.header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	s.enc.points = s.enc.points[:0]
	for i := range batch {
		s.enc.encode(batch[i].Rollup)
	}
	parts := s.parts()
	s.progress.Begin(batch, len(parts))
	for i, part := range parts {
		if s.progress.Settled(i) {
			continue
		}
		if err := s.send(ctx, part); err != nil {
			return s.progress.End(err)
		}
		s.progress.Settle(i)
	}
	for i := range s.enc.points {
		if err := s.tag(ctx, &s.enc.points[i]); err != nil {
			return s.progress.End(err)
		}
	}
	return s.progress.End(nil)
}

// parts are the requests: points of one tenant and sort, in order, at most batch in each.
func (s *metrics) parts() (parts [][]*point) {
	type of struct {
		tenant  string
		counter bool
	}
	open := map[of]int{} // number in parts
	for i := range s.enc.points {
		p := &s.enc.points[i]
		k := of{p.tenant, p.counter}
		at, ok := open[k]
		if !ok || s.batch > 0 && len(parts[at]) == s.batch {
			at = len(parts)
			open[k] = at
			parts = append(parts, nil)
		}
		parts[at] = append(parts[at], p)
	}
	return parts
}

func sortOf(counter bool) string {
	if counter {
		return "counters"
	}
	return "gauges"
}

// send writes one part.
func (s *metrics) send(ctx context.Context, part []*point) error {
	s.body = append(s.body[:0], '[')
	for i, p := range part {
		if i > 0 {
			s.body = append(s.body, ',')
		}
		s.body = append(s.body, p.json...)
	}
	s.body = append(s.body, ']')
	return s.ask(ctx, http.MethodPost, "/"+sortOf(part[0].counter)+"/raw", part[0].tenant, s.body)
}

func (s *metrics) ask(ctx context.Context, method, path, tenant string, body []byte) error {
	header := s.header.Clone()
	header.Set("Hawkular-Tenant", tenant)
	a, err := s.client.Do(ctx, method, s.base+path, header, body)
	switch {
	case err != nil:
		return err
	case a.OK() && bytes.HasPrefix(bytes.TrimSpace(a.Body), []byte("<")):
		return s.client.Nonsense("write to", a)
	case a.OK():
		return nil
	case a.Code == http.StatusBadRequest || a.Code == http.StatusRequestEntityTooLarge:
		return sink.Permanent(s.client.Failure("write to", a, "", ""))
	}
	return s.client.Failure("write to", a, "", "`user` and `pass`, or useServiceAccount=true")
}

// tag tags a point's definition where its tags are not known to be there.
func (s *metrics) tag(ctx context.Context, p *point) error {
	if p.tags == nil {
		return nil
	}
	definition, tags := hash(p.tenant, sortOf(p.counter), p.id), hash(string(p.tags))
	if last, ok := s.tagged[definition]; ok && (last == tags || p.shared) { // or each node would tag it at every tick
		return nil
	}
	err := s.ask(ctx, http.MethodPut, "/"+sortOf(p.counter)+"/"+url.PathEscape(p.id)+"/tags", p.tenant, p.tags)
	if err != nil && !sink.IsPermanent(err) {
		return err
	}
	if err != nil {
		s.log.Warn("tags of a definition are refused, its values are written", "series", p.id, "err", err)
	}
	if len(s.tagged) >= maxTagged {
		clear(s.tagged)
	}
	s.tagged[definition] = tags
	return nil
}

func hash(texts ...string) uint64 {
	h := fnv.New64a()
	for _, t := range texts {
		_, _ = h.Write([]byte(t)) // a hash does not fail
		_, _ = h.Write([]byte{0})
	}
	return h.Sum64()
}
