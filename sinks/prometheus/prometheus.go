// Package prometheus writes rollups to whatever takes Prometheus remote write: Prometheus itself (started with
// --web.enable-remote-write-receiver), Mimir, Thanos, Cortex, VictoriaMetrics, Grafana Cloud.
//
//	prometheus:http://host:9090[/api/v1/write][?token_file=…&tenant=…]
//
// The path is that of the address, /api/v1/write where it has none (Mimir has /api/v1/push, Thanos /api/v1/receive).
// `user` and `pw` log in, or `token` as a bearer, which is read anew from token_file for every request. `tenant` is
// sent as X-Scope-OrgID, header=NAME:VALUE (repeatable) as any other header. AWS's managed Prometheus wants requests
// signed: put its proxy before it.
//
// Names, units and labels are those of Prometheus (heapstream metrics --world=prometheus): counters as counters,
// seconds, bytes, cores, ratios, and a name for each level, so that adding up one name makes sense. Rates of what
// has a counter, and averages of pressure, only with rates=true. prefix=NAME_ stands in place of kubernetes_. A name
// given by `rename` is used at every level, its characters that Prometheus before 3 refuses replaced by "_"; the
// value stays in the unit that it has here. Labels say which entity it is, and no more: cluster, node, namespace, pod,
// container, workload, workload_kind and those of the device; `--store-label` adds Kubernetes labels, and
// label=KEY:VALUE (repeatable) one to every series. Bytes that are no UTF-8 become U+FFFD.
//
// The time of a sample is when it was measured, not its tick; what the API server says, and sums, have their tick's.
// A limit of zero, which is none, is not written.
//
// No staleness markers are written: who writes them must remember every series, and a worker that was killed would
// not. Prometheus stops showing a series five minutes after its last sample, as it does with all whose samples bear
// times.
//
// Version 2 of the protocol (symbols, start times of counters, metadata with every series) is spoken to whom it
// turns out to speak it, else version 1: an answer that does not bear the headers that version 2 demands makes the same
// request go out as version 1, and version 2 is tried again after an hour. protocol=1 or 2 does not ask.
//
// Guarantee: exactly once, by id: series and time. What comes again is refused as out of order or as a duplicate, or
// silently dropped; all of that is success. A receiver that takes back all of a request for one such sample
// (Prometheus, by version 1) is sent parts of it until those that are new are written; where eight samples spread
// over a part are all had, so is the part. VictoriaMetrics keeps both copies and shows one, with
// -dedup.minScrapeInterval=1ms; without that flag a query over raw samples may see two.
//
// Samples older than what is taken still (Prometheus: an hour behind its newest, unless
// storage.tsdb.out_of_order_time_window says more) are counted as late. So what a long outage held back is best
// written to a receiver with such a window.
//
// Not here: when to try again (worker), which samples there are (sink.View), what they are called (proto).
package prometheus

import (
	"bytes"
	"cmp"
	"context"

	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink prometheus.
var Kind = sink.Kind{Key: "prometheus", Title: "Prometheus Remote Write Sink", Guarantee: sink.OnceByID, Identity: []string{"tenant"}, New: New}

// receiver is one receiver of remote write as seen by the worker of one cluster.
type receiver struct {
	enc      encoder
	client   *post.Client
	address  string
	header   http.Header // of every request, without what depends on the version
	token    func() (string, error)
	batch    int // samples a request
	protocol int // 1 or 2 where that is settled; 0: ask
	log      *slog.Logger
	now      func() time.Time

	progress sink.Progress
	speaks   int       // the version that it was found to speak; 0: not known
	again    time.Time // when version 2 is worth another try
	budget   int       // requests that may still be spent on finding out what of this batch is refused
	body     []byte
	packed   []byte
	set      []int32
}

var (
	labelKey  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	headerKey = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+.^_|~-]+$`)
)

// ours are the labels that say what a series is of.
var ours = []string{
	proto.PrometheusCluster, proto.PrometheusNamespace, proto.PrometheusNode, proto.PrometheusPod, proto.PrometheusContainer, proto.PrometheusWorkload,
	proto.PrometheusWorkloadKind, proto.PrometheusFilesystem, proto.PrometheusVolume, proto.PrometheusClaim, proto.PrometheusInterface, proto.PrometheusDevice,
	proto.PrometheusAccelerator, proto.PrometheusMake, proto.PrometheusModel, proto.PrometheusResource, proto.PrometheusCustom,
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &receiver{batch: o.BatchSize(2000, 100_000), log: d.Log, now: time.Now}
	s.enc = *newEncoder(common.View, valid(common.ClusterName))
	s.enc.rates = o.Bool("rates", false)
	s.enc.store = storeLabels(common.View.Labels.Store)
	s.enc.labels = externalLabels(o)
	if prefix := o.String("prefix", proto.PrometheusPrefix); labelKey.MatchString(prefix) {
		s.enc.prefix = prefix
	} else {
		o.Complain("`prefix` flag is %q: want letters, digits and _, such as k8s_", prefix)
	}
	s.enc.checkNames(o)
	switch o.Choice("protocol", "auto", "1", "2") {
	case "1":
		s.protocol = 1
	case "2":
		s.protocol = 2
	}
	s.header = headers(o, d.Version)
	s.token = o.Fresh("token")
	user, password := o.String("user", ""), o.Secret("pw", "")
	switch {
	case user != "" && (o.Given("token") || o.Given("token_file")):
		o.Complain("`user` and `token` are both given: choose one")
	case user != "":
		s.header.Set("Authorization", post.Basic(user, password))
	}
	u := url.URL{Scheme: "http", Host: t.Host("9090"), Path: t.URL.Path}
	if t.URL.Scheme == "https" {
		u.Scheme = "https"
		if t.URL.Port() == "" {
			u.Host = t.URL.Host
		}
	}
	if u.Host == "" {
		o.Complain("no address: want prometheus:http://host:9090, or with the path of the receiver, such as prometheus:https://mimir/api/v1/push")
	}
	if t.URL.Host == "" { // host:port/path
		_, path, _ := strings.Cut(t.URL.Opaque, "/")
		u.Path = "/" + path
	}
	if strings.Trim(u.Path, "/") == "" {
		u.Path = "/api/v1/write"
	}
	if t.URL.User != nil {
		o.Warn("the user in the address is not used: give `user` and `pw`")
	}
	s.address = u.String()
	s.client = post.New("remote write at "+u.Host, o.HTTP())
	return o.Made(s, d.Log)
}

// storeLabels are the labels under which Kubernetes labels are stored, as Prometheus takes them.
func storeLabels(store map[string]string) map[string]string {
	all := make(map[string]string, len(store))
	for k, as := range store {
		all[k] = proto.PrometheusName(as)
	}
	return all
}

// maxLabels bounds the labels and headers that an operator may add.
const maxLabels = 64

func externalLabels(o *sink.Options) (all []proto.Label) {
	for _, given := range o.All("label") {
		key, value, ok := strings.Cut(given, ":")
		switch {
		case !ok || value == "" || !labelKey.MatchString(key) || strings.HasPrefix(key, "__"):
			o.Complain("`label` flag is %q: want KEY:VALUE such as region:eu-1", given)
		case key == proto.PrometheusCluster:
			o.Complain("`label` flag is %q: the label cluster is set by `cluster_name`", given)
		case slices.Contains(ours, key):
			o.Complain("`label` flag is %q: the label %s says what a sample is of", given, key)
		default:
			all = append(all, proto.Label{Key: key, Value: valid(value)})
		}
	}
	if len(all) > maxLabels {
		o.Complain("`label` is given %d times: at most %d", len(all), maxLabels)
	}
	slices.SortFunc(all, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) })
	for i := 1; i < len(all); i++ {
		if all[i].Key == all[i-1].Key {
			o.Complain("`label` gives %s twice", all[i].Key)
		}
	}
	return all
}

func headers(o *sink.Options, version string) http.Header {
	h := http.Header{"User-Agent": {"heapstream/" + version}, "Content-Encoding": {"snappy"}}
	if tenant := o.String("tenant", ""); tenant != "" {
		h.Set("X-Scope-OrgID", tenant)
	}
	given := o.All("header")
	if len(given) > maxLabels {
		o.Complain("`header` is given %d times: at most %d", len(given), maxLabels)
		return h
	}
	for _, one := range given {
		key, value, ok := strings.Cut(one, ":")
		key = http.CanonicalHeaderKey(key)
		switch {
		case !ok || !headerKey.MatchString(key) || strings.ContainsAny(value, "\r\n\x00"):
			o.Complain("`header` flag: want NAME:VALUE such as X-Scope-OrgID:team-a")
		case key == "Authorization", key == "Proxy-Authorization", key == "Cookie":
			o.Complain("`header` flag: %s would be seen in logs: give `token` or `user` and `pw`", key)
		case h.Get(key) != "", strings.HasPrefix(key, "Content-"), key == "Host", strings.HasPrefix(key, "X-Prometheus-Remote-Write"):
			o.Complain("`header` flag: %s is set by the sink", key)
		default:
			h.Set(key, strings.TrimSpace(value))
		}
	}
	return h
}

// checkNames complains where renames that differ become one name.
func (e *encoder) checkNames(o *sink.Options) {
	type key struct {
		name string
		kind proto.Kind
	}
	seen := map[key]*proto.Naming{}
	for _, n := range proto.Prometheus.Namings() {
		as := e.view.Renamed(n.Metric.Name)
		if as == n.Metric.Name {
			continue
		}
		k := key{proto.PrometheusName(as), n.Kind}
		if other := seen[k]; other != nil && other.Metric != n.Metric && other.Metric.Device == n.Metric.Device {
			o.Complain("`rename` makes %q, in Prometheus' characters, of both %q and %q", k.name, other.Metric.Name, n.Metric.Name)
			return
		}
		seen[k] = n
	}
}

// Close drops idle connections.
func (s *receiver) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *receiver) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup, i)
	}
	n := len(s.enc.all)
	s.progress.Begin(batch, n)
	if n == 0 {
		return nil
	}
	s.budget = search
	return s.progress.End(s.writeAll(ctx, n))
}

// writeAll writes what is not settled, in requests of so many samples.
func (s *receiver) writeAll(ctx context.Context, n int) error {
	s.set = s.set[:0]
	for i := range n {
		if s.progress.Settled(i) {
			continue
		}
		s.set = append(s.set, int32(i)) //nolint:gosec // bounded by the batch
	}
	for chunk := range slices.Chunk(s.set, s.batch) {
		if err := s.writePart(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// search is how many requests of one Write may be spent on finding out which samples are refused for good.
const search = 256

// probes is how many samples of a part say whether the receiver has all of it.
const probes = 8

// writePart writes some samples, and settles what becomes of each.
func (s *receiver) writePart(ctx context.Context, set []int32) error {
	if len(set) == 0 {
		return nil
	}
	a, err := s.send(ctx, set)
	switch {
	case err != nil:
		return err
	case a.verdict == written:
		s.settle(set)
		return nil
	case a.partial && a.lost == 0, a.partial && a.verdict == had:
		s.settle(set)
		return nil
	case a.partial && a.verdict == late:
		s.late(set, min(a.lost, a.old))
		return nil
	case a.partial && a.verdict == refused && a.lost == len(set), len(set) == 1:
		s.end(set, a)
		return nil
	case a.verdict == tooLarge:
		return s.halves(ctx, set)
	case a.verdict == refused:
		return s.search(ctx, set, a)
	}
	// All of it was taken back, for samples that it has or that are too old.
	if len(set) > 2*probes {
		old, n, err := s.probe(ctx, set)
		if err != nil {
			return err
		}
		if n == probes {
			if old == probes {
				s.late(set, len(set))
			} else {
				s.settle(set)
			}
			return nil
		}
	}
	return s.halves(ctx, set)
}

// halves writes both halves of a set: whole messages where there are several, since what becomes of one is mostly the
// same for all of it.
func (s *receiver) halves(ctx context.Context, set []int32) error {
	if len(set) == 1 {
		return s.writePart(ctx, set)
	}
	middle := len(set) / 2
	message := func(i int) int32 { return s.enc.all[set[i]].message }
	for d := range middle {
		if at := middle - d; message(at) != message(at-1) {
			middle = at
			break
		}
		if at := middle + d; at < len(set) && message(at) != message(at-1) {
			middle = at
			break
		}
	}
	if err := s.writePart(ctx, set[:middle]); err != nil {
		return err
	}
	return s.writePart(ctx, set[middle:])
}

// probe sends single samples, spread over the set, and counts those that are had or too old, and the latter.
func (s *receiver) probe(ctx context.Context, set []int32) (old, n int, err error) {
	for p := range probes {
		at := p * (len(set) - 1) / (probes - 1)
		a, err := s.send(ctx, set[at:at+1])
		switch {
		case err != nil:
			return 0, 0, err
		case a.verdict == late:
			old++
			n++
		case a.verdict == had:
			n++
		default:
			return old, n, nil
		}
	}
	return old, n, nil
}

// search finds the samples of a set that are refused for good: by the names that the answer gives, else by halves.
func (s *receiver) search(ctx context.Context, set []int32, a answer) error {
	if s.budget--; s.budget <= 0 {
		a.reason += " (which of the samples was not found out)"
		s.end(set, a)
		return nil
	}
	named := func(i int32) bool { return strings.Contains(a.reason, s.enc.names[s.enc.all[i].name].name) }
	var some, rest []int32
	for _, i := range set {
		if named(i) {
			some = append(some, i)
		} else {
			rest = append(rest, i)
		}
	}
	if len(some) == 0 || len(rest) == 0 {
		return s.halves(ctx, set)
	}
	if err := s.writePart(ctx, some); err != nil {
		return err
	}
	return s.writePart(ctx, rest)
}

func (s *receiver) settle(set []int32) {
	for _, i := range set {
		s.progress.Settle(int(i))
	}
}

// late counts n of a set as too old; the rest of it is written.
func (s *receiver) late(set []int32, n int) {
	s.settle(set)
	s.progress.Late(int(set[0]), n)
}

// end settles a set of which nothing is written, and why.
func (s *receiver) end(set []int32, a answer) {
	switch a.verdict {
	case had:
		s.settle(set)
	case late:
		s.late(set, len(set))
	default:
		for _, i := range set {
			s.progress.Refuse(int(i), sink.Refused{Message: int(s.enc.all[i].message), Samples: 1, Part: s.enc.text(int(i)), Reason: a.reason})
		}
	}
}

// verdict is what an answer means for the samples of its request.
type verdict uint8

const (
	written  verdict = iota
	had              // some were written before: out of order, or duplicates
	late             // some are older than the receiver takes
	refused          // some are refused for good
	tooLarge         // the request is too large
)

type answer struct {
	verdict verdict
	partial bool // the receiver says how many it took, so that the rest is written
	lost    int  // how many it did not take, where it says
	old     int  // of how many it says that they are too old
	reason  string
}

// send sends one request, by the version that the receiver speaks. An error is passing: nothing is known of any
// sample.
func (s *receiver) send(ctx context.Context, set []int32) (answer, error) {
	version := cmp.Or(s.protocol, s.speaks, 2)
	asking := s.protocol == 0
	if asking && s.speaks == 1 && s.now().After(s.again) {
		version = 2
	}
	for {
		resp, err := s.post(ctx, version, set)
		if err != nil {
			return answer{}, err
		}
		if version == 2 && asking {
			switch code := resp.Code; {
			case resp.Header.Get(samplesWritten) != "":
				s.found(2)
			case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusTooManyRequests, code >= 500 && code != http.StatusNotImplemented:
				// says nothing about what it speaks
			default: // it may have read nothing: 415, or a success of one that does not look at what comes
				version = 1
				continue
			}
		}
		a, err := s.understand(resp, len(set))
		if err == nil && version == 1 {
			if a.verdict == written {
				s.enc.tell(set)
			}
			if asking {
				s.found(1)
			}
		}
		return a, err
	}
}

// reask is how long one that speaks version 1 is not asked again whether it speaks version 2.
const reask = time.Hour

func (s *receiver) found(version int) {
	if s.speaks != version {
		s.log.Info("protocol of remote write", "version", version)
		s.speaks, s.again = version, s.now().Add(reask)
	} else if version == 1 && s.now().After(s.again) {
		s.again = s.now().Add(reask)
	}
}

// samplesWritten is what a receiver that speaks version 2 says with every answer.
const samplesWritten = "X-Prometheus-Remote-Write-Samples-Written"

func (s *receiver) post(ctx context.Context, version int, set []int32) (post.Answer, error) {
	header := s.header.Clone()
	if version == 2 {
		s.body = s.enc.second(s.body[:0], set)
		header["Content-Type"] = []string{"application/x-protobuf;proto=io.prometheus.write.v2.Request"}
		header["X-Prometheus-Remote-Write-Version"] = []string{"2.0.0"}
	} else {
		s.body = s.enc.first(s.body[:0], set)
		header["Content-Type"] = []string{"application/x-protobuf"}
		header["X-Prometheus-Remote-Write-Version"] = []string{"0.1.0"}
	}
	token, err := s.token()
	if err != nil {
		return post.Answer{}, fmt.Errorf("write to %s: %w", s.client.Who(), err)
	}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	s.packed = s2.EncodeSnappy(s.packed[:cap(s.packed)], s.body)
	return s.client.Do(ctx, http.MethodPost, s.address, header, s.packed)
}

// The words, in lower case, by which receivers say that a sample was written before, or is too old.
var (
	hadWords  = []string{"out of order", "out-of-order", "duplicate sample", "duplicate-timestamp", "duplicate timestamp", "new-value-for-timestamp", "conflict"}
	lateWords = []string{"out of bounds", "too old", "too-old", "too_old", "too far in the past"}
)

// understand is what an answer means.
func (s *receiver) understand(resp post.Answer, sent int) (answer, error) {
	a := answer{reason: sink.Excerpt(resp.Body)}
	if n, err := strconv.Atoi(resp.Header.Get(samplesWritten)); err == nil {
		a.partial, a.lost = true, max(0, sent-n)
	}
	switch code := resp.Code; {
	case resp.OK():
		if bytes.HasPrefix(bytes.TrimSpace(resp.Body), []byte("<")) {
			return a, s.client.Nonsense("write to", resp)
		}
		return a, nil
	case code == http.StatusRequestEntityTooLarge:
		a.verdict = tooLarge
		if sent == 1 {
			a.verdict = refused
		}
		return a, nil
	case code == http.StatusConflict: // Thanos, which writes the rest
		a.verdict, a.partial, a.lost = had, true, sent
		return a, nil
	case code == http.StatusBadRequest, code == http.StatusUnprocessableEntity:
		a.verdict, a.old = meaning(resp.Body)
		if a.reason == "" {
			a.reason = "status " + resp.Status
		}
		a.reason = "refused by the receiver: " + a.reason
		return a, nil
	}
	return a, s.client.Failure("write to", resp, "", "`user` and `pw`, or `token`")
}

// meaning is what a refusal means, by its words, and of how many samples it says that they are too old. One of several
// lines says something of a sample in each; it is the worst of them.
func meaning(body []byte) (worst verdict, old int) {
	for line := range bytes.SplitSeq(bytes.ToLower(bytes.TrimSpace(body)), []byte("\n")) {
		contains := func(word string) bool { return bytes.Contains(line, []byte(word)) }
		v := refused
		switch {
		case slices.ContainsFunc(lateWords, contains):
			v = late
			old++
		case slices.ContainsFunc(hadWords, contains):
			v = had
		}
		worst = max(worst, v)
	}
	return worst, old
}
