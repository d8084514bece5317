// Package influxdb writes rollups, and Kubernetes events, to an InfluxDB 1.x, 2 or 3, or to what speaks its line protocol
// (VictoriaMetrics).
//
//	influxdb:[http://]host:port[?user=…&pw=…&db=…]
//	influxdb:https://host:8086?version=2&org=…&bucket=…&token_file=…
//	influxdb:https://host:8181?version=3&db=…&token_file=…
//
// One line a sample, names and tags as Heapster wrote them; batches of `batchsize` lines. The
// database, with a retention policy named "default", is created before the first write and again when
// InfluxDB says that it is gone; a user that may not create it writes anyway.
//
// With `pod_id=true` the UID of pods is a tag, too, so that the historical API can ask by it. It makes series of their
// own of every pod that is made anew under an old name.
//
// Events are a point each: measurement log/events, whose value is the event as JSON, or with `withfields=true`
// events, whose message is a field and what else there is tags. VictoriaMetrics, which keeps numbers alone, is no place for them.
//
// `version` says which write API is spoken: 1 (/write), 2 (/api/v2/write) or 3 (/api/v3/write_lp, with `accept_partial` and
// `no_sync` as its documentation has them; no_sync=true gives the guarantee away when InfluxDB crashes). The token of 2
// and 3 is read anew at each write. A bucket must be there; InfluxDB 3 makes the database by itself. `compression` is
// gzip, or none, which goes without saying for version 1.
//
// `names` says what metrics and tags are called: heapster, or prometheus or otel, as the catalogue has them (proto), a
// measurement for each name with the field value; then counters go out in place of rates that say the same.
//
// Guarantee: exactly once. A line written again overwrites itself, since series and timestamp are the
// same; so every failure is answered by writing all of the batch again.
//
// Lines that InfluxDB refuses for good (another type of the field, a limit on series) are told apart
// from the rest of their request by its answer, or by writing parts of it again, and reported as
// refused; lines older than the retention policy are counted as late.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package influxdb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink influxdb.
var Kind = sink.Kind{Key: "influxdb", Title: "InfluxDB Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"db", "org", "bucket"}, New: New, NewEvents: NewEvents}

// policy is the retention policy that Heapster wrote to and dashboards read.
const policy = "default"

// retentions are the durations that InfluxDB understands.
var retentions = regexp.MustCompile(`^(?i:0|inf|([0-9]{1,9}(ns|us|u|µ|ms|s|m|h|d|w))+)$`)

// influx is one InfluxDB as seen by the worker of one cluster.
type influx struct {
	base       url.URL // scheme and host
	user, pass string
	db         string
	retention  string // as given; "" leaves what is there
	batch      int    // lines a request
	agent      string
	write      string // path and query of a write
	client     *post.Client
	log        *slog.Logger

	version     string                 // 1, 2 or 3
	login       func() (string, error) // value of the header Authorization; "" for none
	contentType string                 // of lines; empty for version 1, as Heapster's
	zip         *post.Gzip             // nil: lines go as they are
	zipped      bytes.Buffer

	encode  func(*lines, *sink.Message, int)
	enc     encoder // of rollups
	lines   lines
	created bool // the database was there when last looked for; of the goroutine that calls Write
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := read(t, o, d)
	s.batch = o.BatchSize(10000, 1e6)
	s.encode = func(l *lines, m *sink.Message, i int) { s.enc.encode(l, m.Rollup, i) }
	s.enc = encoder{cluster: common.ClusterName, withFields: o.Bool("withfields", false), podIDs: o.Bool("pod_id", false)}
	s.enc.view = common.View
	if o.Bool("disable_counter_metrics", false) {
		s.enc.view.Skip = hasRate
	}
	switch names := o.Choice("names", "heapster", "prometheus", "otel"); {
	case names != "heapster" && (s.enc.withFields || s.enc.podIDs || s.enc.view.Skip != nil):
		o.Complain("`withfields`, `pod_id` and `disable_counter_metrics` are for Heapster's names, and `names` is %s", names)
	case names != "heapster":
		world := proto.Prometheus
		if names == "otel" {
			world = proto.OTel
		}
		s.encode = newNamer(world, common).encode
	}
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events; see the package for what they do.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	enc := eventEncoder{common: o.CommonEvents(d), withFields: o.Bool("withfields", false)}
	s := read(t, o, d)
	s.batch = o.BatchSize(1000, 1e5)
	s.encode = func(l *lines, m *sink.Message, i int) { enc.encode(l, m.Event, i) }
	o.Elsewhere("disable_counter_metrics") // eventer took it and did nothing
	return o.Made(s, d.Log)
}

// read reads where to write to, and as whom.
func read(t sink.Target, o *sink.Options, d sink.Deps) *influx {
	s := &influx{
		user: o.String("user", "root"), pass: o.Secret("pw", "root"), db: o.String("db", "k8s"), retention: o.String("retention", "0"),
		agent: "heapstream/" + d.Version, log: d.Log,
	}
	s.base = url.URL{Scheme: "http", Host: t.Host("8086")}
	if s.base.Host == "" {
		s.base.Host = "localhost:8086"
	}
	if o.Bool("secure", t.URL.Scheme == "https") {
		s.base.Scheme = "https"
	}
	if !retentions.MatchString(s.retention) {
		o.Complain("`retention` flag is %q: want a duration such as 30d, 2w3d or 0 for ever", s.retention)
	}
	if s.retention == "0" {
		s.retention = ""
	}
	if t.URL.User != nil {
		o.Warn("the user in the address is not used: give `user` and `pw`")
	}
	s.client = post.New("InfluxDB at "+s.base.Host, o.HTTP())
	s.write = "/write?" + url.Values{"consistency": {""}, "db": {s.db}, "precision": {""}, "rp": {policy}}.Encode()
	s.readVersion(o)
	return s
}

// hasRate reports whether the metric is a counter that another metric is the rate of.
func hasRate(m *proto.Metric) bool {
	if m.Shape != proto.Counter {
		return false
	}
	for _, other := range proto.Metrics() {
		if other.Of == m.ID && (other.Formula == proto.FormulaMilli || other.Formula == proto.FormulaPerSecond) {
			return true
		}
	}
	return false
}

// Close drops idle connections.
func (s *influx) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *influx) Write(ctx context.Context, batch []sink.Message) error {
	s.lines.reset()
	for i := range batch {
		s.encode(&s.lines, &batch[i], i)
	}
	if s.lines.len() == 0 {
		return nil
	}
	for attempt := 0; ; attempt++ {
		if !s.created {
			if err := s.createDatabase(ctx); err != nil {
				return err
			}
			s.created = true
		}
		err := s.writeLines(ctx)
		if !errors.Is(err, errNoDatabase) || attempt > 0 {
			return err
		}
		s.log.Info("database is gone, creating it again", "db", s.db)
		s.created = false
	}
}

// writeLines writes all lines, in chunks.
func (s *influx) writeLines(ctx context.Context) error {
	var loss losses
	var failed error
	for from := 0; from < s.lines.len() && failed == nil; from += s.batch {
		failed = s.writeChunk(ctx, from, min(from+s.batch, s.lines.len()), &loss)
	}
	if errors.Is(failed, errNoDatabase) {
		s.created = false
		return failed
	}
	if len(loss.refused) > 0 || loss.late > 0 {
		return &sink.Partial{Refused: loss.refused, Late: loss.late, Err: failed}
	}
	return failed
}

// losses are the lines of one Write that InfluxDB refused.
type losses struct {
	refused []sink.Refused
	late    int
}

func (l *losses) refuse(message, n int, part []byte, reason string) {
	l.refused = append(l.refused, sink.Refused{Message: message, Samples: n, Part: string(part), Reason: reason})
}

func (l *losses) tooOld(n int) {
	l.late += n
}

// search is how many requests may be spent on finding out which lines of a chunk are refused.
const search = 64

func (s *influx) writeChunk(ctx context.Context, from, to int, loss *losses) error {
	a, err := s.post(ctx, s.lines.span(from, to))
	if err != nil || a.verdict == written {
		return err
	}
	set := make([]int, to-from)
	for i := range set {
		set[i] = from + i
	}
	budget := search
	return s.settle(ctx, set, a, loss, &budget)
}

// rewrite writes some lines again, to find out which of them are refused.
func (s *influx) rewrite(ctx context.Context, set []int, loss *losses, budget *int) error {
	if len(set) == 0 {
		return nil
	}
	*budget--
	var body []byte
	for _, i := range set {
		body = append(body, s.lines.span(i, i+1)...)
	}
	a, err := s.post(ctx, body)
	if err != nil {
		return err
	}
	return s.settle(ctx, set, a, loss, budget)
}

var (
	namedMeasurement = regexp.MustCompile(`on measurement "((?:[^"\\]|\\.)*)"`)
	droppedCount     = regexp.MustCompile(`dropped=(\d+)`)
)

// settle acts on the answer to a request with these lines. Lines of the set that were accepted are
// written; writing them again on the way changes nothing.
func (s *influx) settle(ctx context.Context, set []int, a answer, loss *losses, budget *int) error {
	if *budget > 0 && len(set) > 1 {
		if rest, ok := s.named(set, a, loss); ok {
			return s.rewrite(ctx, rest, loss, budget) // they are there, unless partial writes are not accepted
		}
	}
	switch {
	case a.verdict == written:
		return nil
	case a.verdict == late:
		loss.tooOld(a.dropped)
		return nil
	case len(set) == 1 || a.verdict == refused && a.dropped == len(set):
		for _, i := range set {
			loss.refuse(s.lines.from[i], 1, s.lines.line(i), a.reason)
		}
		return nil
	case *budget <= 0:
		n := a.dropped
		if n == 0 {
			n = len(set)
		}
		loss.refuse(s.lines.from[set[0]], n, nil, a.reason+" (which of the lines was not found out)")
		return nil
	}
	if m := namedMeasurement.FindStringSubmatch(a.reason); m != nil && a.verdict == refused {
		prefix := append(appendMeasurement(nil, m[1]), ',')
		named, rest := s.split(set, func(line []byte) bool { return bytes.HasPrefix(line, prefix) })
		if len(named) > 0 && len(rest) > 0 {
			if len(named) == a.dropped { // all of that measurement, so nothing of the rest
				return s.settle(ctx, named, a, loss, budget)
			}
			if err := s.rewrite(ctx, named, loss, budget); err != nil {
				return err
			}
			return s.rewrite(ctx, rest, loss, budget)
		}
	}
	if strings.Contains(a.reason, "unable to parse") && a.verdict == refused {
		named, rest := s.split(set, func(line []byte) bool { return strings.Contains(a.reason, string(line)) })
		if len(named) > 0 {
			for _, i := range named {
				loss.refuse(s.lines.from[i], 1, s.lines.line(i), a.reason)
			}
			return s.rewrite(ctx, rest, loss, budget)
		}
	}
	half := len(set) / 2
	if err := s.rewrite(ctx, set[:half], loss, budget); err != nil {
		return err
	}
	return s.rewrite(ctx, set[half:], loss, budget)
}

func (s *influx) split(set []int, is func(line []byte) bool) (yes, no []int) {
	for _, i := range set {
		if is(s.lines.line(i)) {
			yes = append(yes, i)
		} else {
			no = append(no, i)
		}
	}
	return yes, no
}

// verdict is what an answer means for the lines of its request.
type verdict uint8

const (
	written  verdict = iota
	late             // some are older than the retention policy keeps; the rest is written
	refused          // some are refused for good; the rest is written, or not, as it may be
	tooLarge         // the request is too large for the server
)

type answer struct {
	verdict verdict
	dropped int // as the server counts; 0 where it does not say
	reason  string
	lines   []badLine // those that are refused, where it says so
}

// errNoDatabase says that the database or its retention policy is not there.
var errNoDatabase = errors.New("database not found")

// post writes a body of lines. An error is passing and means that nothing is known of any line.
func (s *influx) post(ctx context.Context, body []byte) (answer, error) {
	resp, err := s.do(ctx, s.write, body, s.contentType)
	if err != nil {
		return answer{}, err
	}
	reason := errorOf(resp.Body)
	switch code := resp.Code; {
	case code == http.StatusNoContent:
		return answer{}, nil
	case code == http.StatusOK:
		if reason != "" || bytes.HasPrefix(bytes.TrimSpace(resp.Body), []byte("<")) {
			return answer{}, s.client.Nonsense("write to", resp)
		}
		return answer{}, nil
	case s.version == "1" && strings.Contains(reason, "database not found"), s.version == "1" && strings.Contains(reason, "retention policy not found"):
		return answer{}, fmt.Errorf("write to InfluxDB at %s: %w: %s", s.base.Host, errNoDatabase, reason)
	case code == http.StatusRequestEntityTooLarge:
		return answer{verdict: tooLarge, reason: cmp.Or(reason, "status "+resp.Status)}, nil
	case (code == http.StatusBadRequest || code == http.StatusUnprocessableEntity && s.version != "1") && json.Valid(resp.Body):
		a := answer{verdict: refused, reason: reason, lines: badLines(resp.Body)}
		if len(a.lines) > 0 {
			a.reason = sink.Excerpt([]byte(reason + ": " + a.lines[0].Reason))
		}
		if m := droppedCount.FindStringSubmatch(reason); m != nil {
			a.dropped, _ = strconv.Atoi(m[1]) // digits; what does not fit is as good as not told
		}
		if strings.Contains(reason, "beyond retention policy") {
			a.verdict = late
		}
		return a, nil
	}
	return answer{}, s.failure("write to", resp, reason)
}

// failure words an answer that is no success, as a passing error.
func (s *influx) failure(what string, a post.Answer, reason string) error {
	login := fmt.Sprintf("`user` and `pw`: user %q was refused", s.user)
	if s.version != "1" {
		if a.Code == http.StatusNotFound && json.Valid(a.Body) { // of a bucket or an organization
			return fmt.Errorf("%s InfluxDB at %s: %s (status %d): create it, or check `org`, `bucket` and `db`", what, s.base.Host, reason, a.Code)
		}
		login = "`token`, and what it may write to"
	} else if a.Code == http.StatusForbidden {
		login = fmt.Sprintf("the privileges of user %q on database %q", s.user, s.db)
	}
	return s.client.Failure(what, a, reason, login)
}

// do sends one POST.
func (s *influx) do(ctx context.Context, path string, body []byte, contentType string) (post.Answer, error) {
	header := http.Header{"User-Agent": {s.agent}, "Content-Type": {contentType}}
	login, err := s.login()
	if err != nil {
		return post.Answer{}, fmt.Errorf("write to %s: %w", s.client.Who(), err)
	}
	if login != "" {
		header.Set("Authorization", login)
	}
	if path == s.write {
		if body, err = s.packed(body, header); err != nil {
			return post.Answer{}, err
		}
	}
	return s.client.Do(ctx, http.MethodPost, s.base.String()+path, header, body)
}

// errorOf is the error in an answer's body, or the body's beginning where it is no JSON.
func errorOf(said []byte) string {
	if len(bytes.TrimSpace(said)) == 0 {
		return ""
	}
	var body struct {
		Error   string `json:"error"`
		Message string `json:"message"` // version 2
		Results []struct {
			Error string `json:"error"`
		} `json:"results"`
	}
	if err := json.Unmarshal(said, &body); err != nil {
		return sink.Excerpt(said)
	}
	if body.Error != "" || body.Message != "" {
		return cmp.Or(body.Error, body.Message)
	}
	for _, r := range body.Results {
		if r.Error != "" {
			return r.Error
		}
	}
	return ""
}

// createDatabase makes the database and its retention policy be there.
func (s *influx) createDatabase(ctx context.Context) error {
	db, rp := quote(s.db), quote(policy)
	with := ""
	duration := "INF"
	if s.retention != "" {
		duration = strings.ToLower(s.retention)
		with = "DURATION " + duration + " REPLICATION 1 "
	}
	err := s.query(ctx, "CREATE DATABASE "+db+" WITH "+with+"NAME "+rp)
	if err == nil || errors.Is(err, errForbidden) {
		return nil
	}
	if !errors.Is(err, errConflict) {
		return err
	}
	// The database is there with another default policy, or with ours of another duration.
	err = s.query(ctx, "CREATE RETENTION POLICY "+rp+" ON "+db+" DURATION "+duration+" REPLICATION 1")
	if err == nil || errors.Is(err, errForbidden) {
		return nil
	}
	if !errors.Is(err, errConflict) {
		return err
	}
	if s.retention == "" {
		return nil // there, with a duration that was chosen by somebody else
	}
	// The duration of shards follows: InfluxDB refuses one that is longer than the policy's.
	if err := s.query(ctx, "ALTER RETENTION POLICY "+rp+" ON "+db+" DURATION "+duration+" SHARD DURATION 0s"); err != nil && !errors.Is(err, errForbidden) {
		return err
	}
	return nil
}

var (
	errForbidden = errors.New("not allowed")
	errConflict  = errors.New("there already")
)

// query runs one statement.
func (s *influx) query(ctx context.Context, statement string) error {
	resp, err := s.do(ctx, "/query", []byte(url.Values{"q": {statement}}.Encode()), "application/x-www-form-urlencoded")
	if err != nil {
		return err
	}
	reason := errorOf(resp.Body)
	switch {
	case resp.Code == http.StatusUnauthorized:
		return s.failure("create database in", resp, reason)
	case resp.Code == http.StatusForbidden, strings.Contains(reason, "not authorized"), strings.Contains(reason, "requires admin privilege"):
		s.log.Info("database cannot be created by this user, writing to it as it is", "db", s.db, "err", reason)
		return errForbidden
	case strings.Contains(reason, "already exists"), strings.Contains(reason, "conflicts with an existing policy"):
		return errConflict
	case resp.Code != http.StatusOK:
		return s.failure("create database in", resp, reason)
	case !json.Valid(resp.Body):
		return s.client.Nonsense("create database in", resp)
	case reason != "":
		return fmt.Errorf("create database %q in InfluxDB at %s: %s", s.db, s.base.Host, reason)
	}
	return nil
}

// quote makes an identifier of a query.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
