// Package otlp writes rollups as OpenTelemetry metrics, and Kubernetes events as OpenTelemetry logs, to whatever
// receives OTLP: a Collector, Prometheus, VictoriaMetrics, Mimir, a vendor.
//
//	otlp:http://host:4318             OTLP/HTTP in protobuf, to <address>/v1/metrics and <address>/v1/logs
//	otlp:grpc://host:4317             OTLP/gRPC; grpcs://host:4317 with TLS, as is https://
//
// `protocol` says http or grpc where the address does not: port 4317 is gRPC's, everything else is HTTP. `compression`
// is gzip or none. `token` or `token_file` is a bearer token, `headers_file` has a line "Name: value" for each further
// header, and `header` (repeatable) one that is no secret, such as X-Scope-OrgID:team; both files are read anew at
// each write, since tokens rotate. A request has at most `batchsize` (10000) samples and 3 MiB before compression;
// where the receiver takes less, requests become smaller. `labels=true` adds the labels of pods, namespaces and nodes as
// k8s.pod.label.<key> and so on; `rates=true` sends rates where counters say the same, too.
//
// Names, units and instruments are the semantic conventions' as the catalogue has them (proto), and so are attributes:
// what is measured is the resource (k8s.cluster.name, k8s.namespace.name, k8s.pod.uid, …), which part of it (a volume,
// an interface, a direction) is an attribute of the sample. Counters are cumulative sums with the time their entity
// started, everything else is a gauge or a sum that goes up and down. Samples bear the time they were measured at, and sums over
// pods the tick's. A receiver must make resource attributes part of a series' identity: Prometheus does
// with `otlp: promote_all_resource_attributes: true`, and without it pods fall together.
//
// An event is a log record: its message the body, its type the severity, the object it is about and who told of it
// attributes; log.record.uid tells a state that comes twice.
//
// Guarantee: at least once, in order. Receivers that tell samples by series and time hold each once. What a receiver
// rejects in a partial success, and what it refuses by a status that OTLP says is not to be retried, is refused for
// good; the culprits are looked for by halves. Two things are passing though OTLP would give up: statuses that say that
// we are configured wrongly (no such path or service, not logged in, not allowed), and answers
// that are not OTLP's, such as the page of a proxy. What Prometheus and its kin call out of order, too old or a
// duplicate has been written already or cannot be: it is counted as late.
//
// Not here: when to try again (worker), which samples there are (sink.View), what metrics are called (proto).
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink otlp.
var Kind = sink.Kind{Key: "otlp", Title: "OTLP Sink", Guarantee: sink.AtLeastOnce, New: New, NewEvents: NewEvents}

const (
	// maxRequest is how many bytes a request has at most before compression: receivers take 4 MiB over gRPC unless
	// told otherwise. A larger block goes alone.
	maxRequest = 3 << 20
	// leastRequest is what a request is not made smaller than though the receiver says that it is too large.
	leastRequest = 16 << 10
)

// otlp is one receiver as seen by the worker of one cluster.
type otlp struct {
	to       transport
	signal   signal
	batch    int // samples a request
	most     int // bytes a request
	log      *slog.Logger
	headers  *headers
	encode   func(m *sink.Message, i int)
	blocks   blocks
	progress sink.Progress
	warned   string // the last warning in a partial success
}

// transport carries requests. What it is given is the caller's again when it returns. Its error is passing.
type transport interface {
	export(ctx context.Context, s signal, header http.Header, body []byte) (answer, error)
	close() error
}

// loginOptions are what to check where a receiver does not know us.
const loginOptions = "`token` and `headers_file`"

// signal is a sort of OpenTelemetry data.
type signal struct {
	path, method string // of HTTP, of gRPC
	noun         string
}

var (
	metrics = signal{"/v1/metrics", "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", "data points"}
	logs    = signal{"/v1/logs", "/opentelemetry.proto.collector.logs.v1.LogsService/Export", "log records"}
)

// answer is what a receiver says of a request.
type answer struct {
	rejected int    // of a partial success; the rest is taken
	tooLarge bool   // nothing is taken
	refused  bool   // nothing is taken, and never will be
	reason   string // for any of these; alone it is a warning
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s, err := read(t, o, d, metrics)
	if err != nil {
		return nil, err
	}
	enc := newEncoder(common.View, common.ClusterName, d.Version, &s.blocks)
	enc.labels, enc.rates = o.Bool("labels", false), o.Bool("rates", false)
	s.encode = func(m *sink.Message, i int) { enc.encode(m.Rollup, i) }
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events; see the package for what they do.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s, err := read(t, o, d, logs)
	if err != nil {
		return nil, err
	}
	enc := newEventEncoder(common.ClusterName, d.Version, &s.blocks)
	enc.labels = o.Bool("labels", false)
	s.encode = func(m *sink.Message, i int) {
		if common.Passes(m.Event) {
			enc.encode(m.Event, i)
		}
	}
	return o.Made(s, d.Log)
}

// read reads where to write to, and how.
func read(t sink.Target, o *sink.Options, d sink.Deps, what signal) (*otlp, error) {
	s := &otlp{signal: what, batch: o.BatchSize(10000, 1e6), most: maxRequest, log: d.Log, headers: readHeaders(o)}
	protocol := o.Choice("protocol", "auto", "http", "grpc")
	gzip := o.Choice("compression", "gzip", "none") == "gzip"
	scheme, host := t.URL.Scheme, t.Host("")
	if t.URL.Host == "" && host != "" {
		scheme = "" // host:port alone, whose host looks like a scheme
	}
	secure := scheme == "https" || scheme == "grpcs"
	switch {
	case host == "":
		o.Complain("no address: give otlp:http://host:4318, or otlp:grpc://host:4317")
	case scheme != "" && scheme != "http" && scheme != "https" && scheme != "grpc" && scheme != "grpcs":
		o.Complain("address with scheme %q: want http, https, grpc or grpcs", scheme)
	case strings.HasPrefix(scheme, "grpc") && protocol == "http":
		o.Complain("`protocol` flag is http, and the address says %s", scheme)
	}
	if protocol == "auto" {
		protocol = "http"
		if strings.HasPrefix(scheme, "grpc") || strings.HasSuffix(host, ":4317") {
			protocol = "grpc"
		}
	}
	if t.URL.User != nil {
		o.Warn("the user in the address is not used: give `headers_file` with a line \"Authorization: Basic …\"")
	}
	if protocol == "http" {
		s.to = newHTTP(o.HTTP(), secure, t.Host("4318"), t.URL.Path, gzip, d.Version)
		return s, nil
	}
	if strings.Trim(t.URL.Path, "/") != "" {
		o.Complain("address with the path %q: gRPC has none (say protocol=http where HTTP is meant)", t.URL.Path)
	}
	s.to = newGRPC(o.HTTP(), secure, t.Host("4317"), gzip, d.Version)
	return s, nil
}

// Close drops connections.
func (s *otlp) Close() error { return s.to.close() }

// Write writes a batch; see sink.Sink.
func (s *otlp) Write(ctx context.Context, batch []sink.Message) error {
	s.blocks.reset()
	for i := range batch {
		s.encode(&batch[i], i)
	}
	s.progress.Begin(batch, len(s.blocks.all))
	header, err := s.headers.now()
	if err != nil {
		return s.progress.End(err)
	}
	for from := 0; from < len(s.blocks.all); {
		if s.progress.Settled(from) {
			from++
			continue
		}
		to := s.chunk(from)
		budget := search
		if err := s.export(ctx, header, from, to, &budget); err != nil {
			return s.progress.End(s.headers.hide(err))
		}
		from = to
	}
	return s.progress.End(nil)
}

// chunk is where the request ends that begins with a block.
func (s *otlp) chunk(from int) int {
	samples, all := 0, s.blocks.all
	for to := from; to < len(all); to++ {
		if samples += all[to].samples; to > from && (samples > s.batch || all[to].to-all[from].from > s.most) {
			return to
		}
	}
	return len(all)
}

// search is how many requests may be spent on finding out which blocks of one are refused.
const search = 128

// export sends blocks, and settles them: those that are refused are looked for by halves. An error is passing; blocks
// that are settled then are the first ones.
func (s *otlp) export(ctx context.Context, header http.Header, from, to int, budget *int) error {
	a, err := s.to.export(ctx, s.signal, header, s.blocks.text[s.blocks.all[from].from:s.blocks.all[to-1].to])
	if err != nil {
		return err
	}
	a.reason = s.headers.hidden(a.reason)
	if !a.refused && !a.tooLarge {
		s.taken(from, to, a)
		return nil
	}
	if a.tooLarge {
		s.most = max(leastRequest, (s.blocks.all[to-1].to-s.blocks.all[from].from)/2)
	}
	*budget--
	if to-from == 1 || *budget <= 0 {
		s.refuse(from, to, a.reason)
		return nil
	}
	half := s.half(from, to)
	if err := s.export(ctx, header, from, half, budget); err != nil {
		return err
	}
	return s.export(ctx, header, half, to, budget)
}

// half is where blocks are parted to look for culprits: between messages where there are several, since a message that
// came before is refused whole.
func (s *otlp) half(from, to int) int {
	half := (from + to) / 2
	all := s.blocks.all
	for d := 0; d < to-from; d++ {
		if i := half - d; i > from && all[i-1].message != all[i].message {
			return i
		}
		if i := half + d; i < to && all[i-1].message != all[i].message {
			return i
		}
	}
	return half
}

// taken settles blocks of a request that succeeded, if in part.
func (s *otlp) taken(from, to int, a answer) {
	if a.reason != "" && a.rejected == 0 && a.reason != s.warned {
		s.warned = a.reason
		s.log.Warn("receiver takes all and warns", "err", a.reason)
	}
	total := 0
	for _, b := range s.blocks.all[from:to] {
		total += b.samples
	}
	switch {
	case a.rejected >= total:
		s.refuse(from, to, a.reason)
		return
	case a.rejected > 0:
		reason := fmt.Sprintf("rejected by the receiver: %s", a.reason)
		if to-from > 1 {
			reason += fmt.Sprintf(" (%d of %d %s, and which is not told)", a.rejected, total, s.signal.noun)
		}
		s.progress.Refuse(from, sink.Refused{Message: s.blocks.all[from].message, Samples: a.rejected, Reason: reason})
	}
	for i := from; i < to; i++ {
		s.progress.Settle(i)
	}
}

// refuse settles blocks that are refused for good.
func (s *otlp) refuse(from, to int, reason string) {
	late := s.signal == metrics && isLate(reason)
	for i := from; i < to; i++ {
		b := &s.blocks.all[i]
		if late {
			s.progress.Late(i, b.samples)
			continue
		}
		s.progress.Refuse(i, sink.Refused{Message: b.message, Samples: b.samples, Part: s.blocks.key(i), Reason: "refused by the receiver: " + reason})
	}
}

// isLate reports whether a refusal says that samples are there already, or older than what is taken. The words are
// those of Prometheus, Mimir and Cortex.
func isLate(reason string) bool {
	for _, words := range []string{"out of order sample", "too old sample", "duplicate sample for timestamp", "out of bounds",
		"sample-out-of-order", "sample-duplicate-timestamp", "sample-timestamp-too-old"} {
		if strings.Contains(reason, words) {
			return true
		}
	}
	return false
}

// block is what is sent, or refused, as one: the samples of one entity at one tick, or an event.
type block struct {
	from, to int // in the text
	message  int // index in the batch
	samples  int
	rollup   *proto.Rollup // nil for an event
	row      int
}

// blocks are encoded: any run of them is the body of a request.
type blocks struct {
	text []byte
	all  []block
}

func (b *blocks) reset() {
	clear(b.all) // lets go of the rollups
	b.text, b.all = b.text[:0], b.all[:0]
}

// key names a block as Heapster named metric sets.
func (b *blocks) key(i int) string {
	if r := b.all[i].rollup; r != nil {
		return string(proto.AppendKey(nil, &r.Table, b.all[i].row))
	}
	return ""
}
