package otlp

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	pb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	hs "github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// suiteOf is the contract over one of the two protocols. A name is a block: an entity at a tick.
func suiteOf(protocol string) *sinktest.Suite {
	return &sinktest.Suite{
		Kind:      Kind,
		Start:     func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r, protocol) },
		Names:     names,
		IsRefused: func(name string) bool { return strings.HasSuffix(name, hasRefused) },
		LoginHint: "check `token`",
	}
}

var suite = suiteOf("http")

// eventsOf is the contract of events.
func eventsOf(protocol string) *sinktest.Suite {
	return &sinktest.Suite{
		Kind:       Kind,
		Start:      func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r, protocol) },
		EventNames: func(_ testing.TB, e *hs.Event) []string { return []string{e.ID()} },
		LoginHint:  "check `token`",
	}
}

func TestMain(m *testing.M) { sinktest.Main(m, []*sinktest.Suite{suite, eventsOf("http")}) }

func TestEventContractOverHTTP(t *testing.T) { eventsOf("http").Run(t) }

func TestEventContractOverGRPC(t *testing.T) { eventsOf("grpc").Run(t) }

func TestContractOverHTTP(t *testing.T) { suite.Run(t) }

func TestContractOverGRPC(t *testing.T) { suiteOf("grpc").Run(t) }

// hasRefused ends the names of blocks with a sample of sinktest.Refused.
const hasRefused = " memory/usage"

// names are the blocks of a rollup.
func names(tb testing.TB, r *hs.Rollup) (all []string) {
	s := build(tb, "otlp:http://h")
	return namesOf(tb, encoded(s, r))
}

func namesOf(tb testing.TB, body []byte) (all []string) {
	tb.Helper()
	var request collector.ExportMetricsServiceRequest
	if err := (proto.UnmarshalOptions{DiscardUnknown: false}).Unmarshal(body, &request); err != nil {
		tb.Fatal(err)
	}
	for _, rm := range request.ResourceMetrics {
		all = append(all, nameOf(rm))
	}
	return all
}

// nameOf is the name of a block: its attributes, and the times of its samples.
func nameOf(rm *pb.ResourceMetrics) string {
	var b strings.Builder
	for _, kv := range rm.Resource.Attributes {
		fmt.Fprintf(&b, "%s=%s ", kv.Key, text(kv.Value))
	}
	refused, n := "", 0
	times := map[uint64]bool{}
	for _, sm := range rm.ScopeMetrics {
		for _, m := range sm.Metrics {
			if strings.HasSuffix(m.Name, "memory.usage") {
				refused = hasRefused
			}
			for _, p := range points1(m) {
				times[p.TimeUnixNano] = true
				n++
			}
		}
	}
	var all []uint64
	for at := range times {
		all = append(all, at)
	}
	slices.Sort(all)
	return fmt.Sprintf("%s%d %v%s", b.String(), n, all, refused)
}

func text(v *commonpb.AnyValue) string {
	if list := v.GetArrayValue(); list != nil {
		return fmt.Sprint(list.Values)
	}
	return v.GetStringValue()
}

func points1(m *pb.Metric) []*pb.NumberDataPoint {
	if g := m.GetGauge(); g != nil {
		return g.DataPoints
	}
	return m.GetSum().GetDataPoints()
}

func build(tb testing.TB, target string) *otlp {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(t, sink.Deps{Cluster: "default", Labels: hs.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s.(*otlp)
}

func encoded(s *otlp, rollups ...*hs.Rollup) []byte {
	s.blocks.reset()
	for i := range rollups {
		s.encode(&sink.Message{Rollup: rollups[i]}, i)
	}
	return s.blocks.text
}

// fake is a receiver of metrics and logs, over HTTP or gRPC.
type fake struct {
	*sinktest.HTTP
	t        *testing.T
	protocol string
	answer   func(w reply, n int, m sinktest.Mood) bool // instead of the usual answer, where it says so
	records  []*collectorlogs.ExportLogsServiceRequest
	requests int
	most     int               // bytes of a body that are taken; 0: any
	known    map[string]bool   // blocks that are there already, which Prometheus refuses
	see      func(http.Header) // each request's
}

// reply answers a request in the words of its protocol.
type reply interface {
	ok(response proto.Message)
	fail(httpCode int, s *status.Status)
}

func newFake(t *testing.T, r sinktest.Reach, protocol string) *fake {
	f := &fake{t: t, protocol: protocol}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		HTTP2:    protocol == "grpc",
		LoggedIn: func(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer "+sinktest.RightPassword },
		Take:     f.take,
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	target := "otlp:" + f.URL() + "?protocol=" + f.protocol + "&compression=gzip&batchsize=100&" + f.Options(r)
	if r.Login {
		target += "&token=" + r.Password()
	}
	return target
}

func (f *fake) take(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
	var to reply
	if f.protocol == "grpc" {
		to, body = f.grpc(w, r, body)
	} else {
		to, body = f.http(w, r, body)
	}
	if to == nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if f.see != nil {
		f.see(r.Header)
	}
	f.requests++
	if f.answer != nil && f.answer(to, f.requests, m) {
		return
	}
	if f.most > 0 && len(body) > f.most {
		to.fail(http.StatusRequestEntityTooLarge, status.Newf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", len(body), f.most))
		return
	}
	if r.URL.Path == metrics.path || r.URL.Path == metrics.method {
		f.metrics(to, body, m)
		return
	}
	var request collectorlogs.ExportLogsServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		f.t.Errorf("the receiver does not take these logs: %v", err)
	}
	var taken []string
	for _, rl := range request.ResourceLogs {
		r := rl.ScopeLogs[0].LogRecords[0]
		if m == sinktest.Refusing || m == sinktest.HalfRefuses && strings.HasPrefix(r.Body.GetStringValue(), sinktest.RefusedMessage) {
			to.fail(http.StatusBadRequest, status.New(codes.InvalidArgument, "no such logs here"))
			return
		}
		for _, kv := range r.Attributes {
			if kv.Key == "log.record.uid" {
				taken = append(taken, kv.Value.GetStringValue())
			}
		}
	}
	if len(taken) != len(request.ResourceLogs) {
		f.t.Errorf("not every record has an id: %v", &request)
	}
	f.Store(false, taken...)
	f.records = append(f.records, &request)
	to.ok(&collectorlogs.ExportLogsServiceResponse{})
}

func (f *fake) metrics(to reply, body []byte, m sinktest.Mood) {
	var request collector.ExportMetricsServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		f.t.Errorf("the receiver does not take these metrics: %v", err)
	}
	if len(request.ProtoReflect().GetUnknown()) > 0 || len(request.ResourceMetrics) == 0 {
		f.t.Errorf("the receiver does not know all of %v", &request)
	}
	var taken []string
	for _, rm := range request.ResourceMetrics {
		check(f.t, rm)
		name := nameOf(rm)
		if m == sinktest.Refusing || m == sinktest.HalfRefuses && strings.HasSuffix(name, hasRefused) {
			to.fail(http.StatusBadRequest, status.New(codes.InvalidArgument, "no such metrics here"))
			return
		}
		if f.known[name] {
			to.fail(http.StatusBadRequest, status.New(codes.InvalidArgument, "out of order sample"))
			return
		}
		taken = append(taken, name)
	}
	f.Store(false, taken...)
	to.ok(&collector.ExportMetricsServiceResponse{})
}

// check says what is wrong with a block by the data model of OpenTelemetry.
func check(t testing.TB, rm *pb.ResourceMetrics) {
	t.Helper()
	keys := map[string]bool{}
	unique := func(where string, attributes []*commonpb.KeyValue) {
		clear(keys)
		for _, kv := range attributes {
			if kv.Key == "" || keys[kv.Key] || kv.Value == nil {
				t.Errorf("%s has a bad or a second attribute %q", where, kv.Key)
			}
			keys[kv.Key] = true
		}
	}
	unique("resource", rm.GetResource().GetAttributes())
	if len(rm.ScopeMetrics) != 1 || rm.ScopeMetrics[0].GetScope().GetName() != scope || rm.ScopeMetrics[0].GetScope().GetVersion() == "" {
		t.Errorf("scopes are %v", rm.ScopeMetrics)
		return
	}
	seen := map[string]bool{}
	for _, m := range rm.ScopeMetrics[0].Metrics {
		if m.Name == "" || seen[m.Name] {
			t.Errorf("metric %q is there twice, or has no name", m.Name)
		}
		seen[m.Name] = true
		if s := m.GetSum(); s != nil && s.AggregationTemporality != pb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
			t.Errorf("sum %q is not cumulative", m.Name)
		}
		told := map[string]bool{}
		if len(points1(m)) == 0 {
			t.Errorf("metric %q has no points", m.Name)
		}
		for _, p := range points1(m) {
			unique(m.Name, p.Attributes)
			var key strings.Builder
			for _, kv := range p.Attributes {
				fmt.Fprint(&key, kv.Key, "=", text(kv.Value), ",")
			}
			switch {
			case p.TimeUnixNano == 0, p.StartTimeUnixNano > p.TimeUnixNano:
				t.Errorf("point of %q from %d to %d", m.Name, p.StartTimeUnixNano, p.TimeUnixNano)
			case m.GetSum().GetIsMonotonic() && p.StartTimeUnixNano == 0:
				t.Errorf("counter %q has no start", m.Name)
			case p.Value == nil:
				t.Errorf("point of %q without a value", m.Name)
			case told[key.String()]:
				t.Errorf("two points of %q with the attributes %s", m.Name, key.String())
			}
			told[key.String()] = true
		}
	}
}

// overHTTP answers as OTLP/HTTP has it.
type overHTTP struct{ w http.ResponseWriter }

func (o overHTTP) ok(response proto.Message) { o.send(http.StatusOK, response) }

func (o overHTTP) fail(code int, s *status.Status) { o.send(code, s.Proto()) }

func (o overHTTP) send(code int, m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	o.w.Header().Set("Content-Type", contentType)
	o.w.WriteHeader(code)
	_, _ = o.w.Write(b)
}

func (f *fake) http(w http.ResponseWriter, r *http.Request, body []byte) (reply, []byte) {
	if r.Method != http.MethodPost || r.URL.Path != metrics.path && r.URL.Path != logs.path || r.Header.Get("Content-Type") != contentType {
		f.t.Errorf("the receiver does not take %s %s of %s", r.Method, r.URL, r.Header.Get("Content-Type"))
		return nil, nil
	}
	switch r.Header.Get("Content-Encoding") {
	case "gzip":
		body = f.unzip(body)
	case "":
	default:
		f.t.Errorf("the receiver does not know the encoding %q", r.Header.Get("Content-Encoding"))
	}
	return overHTTP{w}, body
}

func (f *fake) unzip(body []byte) []byte {
	zr, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		f.t.Errorf("the receiver cannot decompress: %v", err)
		return nil
	}
	plain, err := io.ReadAll(zr)
	if err != nil {
		f.t.Errorf("the receiver cannot decompress: %v", err)
	}
	return plain
}

// overGRPC answers as gRPC over HTTP/2 has it.
type overGRPC struct {
	w   http.ResponseWriter
	zip bool
}

func (o overGRPC) ok(response proto.Message) {
	b, err := proto.Marshal(response)
	if err != nil {
		panic(err)
	}
	o.w.Header().Set("Content-Type", "application/grpc")
	packed := byte(0)
	if o.zip { // as gRPC's own servers answer what was compressed
		var zipped bytes.Buffer
		zw := gzip.NewWriter(&zipped)
		_, _ = zw.Write(b)
		_ = zw.Close() // memory takes all
		packed, b = 1, zipped.Bytes()
		o.w.Header().Set("Grpc-Encoding", "gzip")
	}
	_, _ = o.w.Write(append(binary.BigEndian.AppendUint32([]byte{packed}, uint32(len(b))), b...)) //nolint:gosec // short
	o.w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
}

func (o overGRPC) fail(_ int, s *status.Status) {
	details, err := proto.Marshal(s.Proto())
	if err != nil {
		panic(err)
	}
	o.w.Header().Set("Content-Type", "application/grpc")
	o.w.WriteHeader(http.StatusOK)
	o.w.Header().Set(http.TrailerPrefix+"Grpc-Status", fmt.Sprint(int(s.Code())))
	o.w.Header().Set(http.TrailerPrefix+"Grpc-Message", s.Message())
	o.w.Header().Set(http.TrailerPrefix+"Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(details))
}

func (f *fake) grpc(w http.ResponseWriter, r *http.Request, body []byte) (reply, []byte) {
	if r.ProtoMajor != 2 || r.Method != http.MethodPost || r.URL.Path != metrics.method && r.URL.Path != logs.method ||
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") || r.Header.Get("Te") != "trailers" {
		f.t.Errorf("the receiver does not take %s %s %s of %s", r.Proto, r.Method, r.URL, r.Header.Get("Content-Type"))
		return nil, nil
	}
	if len(body) < 5 || int(binary.BigEndian.Uint32(body[1:5])) != len(body)-5 {
		f.t.Errorf("the receiver does not take a body of %d bytes", len(body))
		return nil, nil
	}
	packed := body[0] == 1
	if packed != (r.Header.Get("Grpc-Encoding") == "gzip") {
		f.t.Errorf("compressed is %v and Grpc-Encoding %q", packed, r.Header.Get("Grpc-Encoding"))
	}
	if body = body[5:]; packed {
		body = f.unzip(body)
	}
	return overGRPC{w, packed}, body
}

func messages(rollups ...*hs.Rollup) (batch []sink.Message) {
	for i, r := range rollups {
		batch = append(batch, sink.Message{Rollup: r, ID: fmt.Sprint(i)})
	}
	return batch
}

// both runs a test over both protocols.
func both(t *testing.T, test func(t *testing.T, f *fake, s *otlp)) {
	t.Helper()
	for _, protocol := range []string{"http", "grpc"} {
		t.Run(protocol, func(t *testing.T) {
			f := newFake(t, sinktest.Reach{}, protocol)
			test(t, f, build(t, strings.Replace(f.Target(sinktest.Reach{}), "batchsize=100&", "", 1)))
		})
	}
}

// TestAnswersDecideWhatHappensNext: over both protocols, by the table of OTLP.
func TestAnswersDecideWhatHappensNext(t *testing.T) {
	retry := func(s *status.Status, after time.Duration) *status.Status {
		with, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
		if err != nil {
			t.Fatal(err)
		}
		return with
	}
	for _, c := range []struct {
		http    int // 0: gRPC alone
		grpc    *status.Status
		verdict string
		want    string
		wait    time.Duration
	}{
		{503, retry(status.New(codes.Unavailable, "busy"), 7*time.Second), "passing", "busy", 7 * time.Second},
		{429, retry(status.New(codes.ResourceExhausted, "busy"), 7*time.Second), "passing", "busy", 7 * time.Second},
		{0, status.New(codes.ResourceExhausted, "quota"), "partial", "quota", 0},
		{502, status.New(codes.Aborted, "restarting"), "passing", "restarting", 0},
		{504, status.New(codes.DataLoss, "lost"), "passing", "lost", 0},
		{401, status.New(codes.Unauthenticated, "who?"), "passing", "check `token` and `headers_file`", 0},
		{403, status.New(codes.PermissionDenied, "no"), "passing", "check `token` and `headers_file`", 0},
		{404, status.New(codes.Unimplemented, "unknown service"), "passing", "is the address right", 0},
		{400, status.New(codes.InvalidArgument, "bad"), "partial", "refused by the receiver: bad", 0},
		{500, status.New(codes.Internal, "broken for good"), "partial", "refused by the receiver: broken for good", 0},
		{400, status.New(codes.InvalidArgument, "out of order sample"), "late", "samples older than the destination keeps", 0},
	} {
		both(t, func(t *testing.T, f *fake, s *otlp) {
			if f.protocol == "http" && c.http == 0 {
				t.Skip("gRPC alone")
			}
			f.answer = func(to reply, _ int, _ sinktest.Mood) bool {
				if h, ok := to.(overHTTP); ok && c.wait > 0 {
					h.w.Header().Set("Retry-After", fmt.Sprint(int(c.wait.Seconds())))
				}
				to.fail(c.http, c.grpc)
				return true
			}
			err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%s: got %v, want %q", c.grpc, err, c.want)
			}
			verdict := "passing"
			var p *sink.Partial
			if errors.As(err, &p) {
				verdict = "partial"
				if len(p.Refused) == 0 {
					verdict = "late"
				}
			}
			if verdict != c.verdict || sink.RetryAfterOf(err) != c.wait {
				t.Errorf("%v is %s and waits %s, want %s and %s", err, verdict, sink.RetryAfterOf(err), c.verdict, c.wait)
			}
		})
	}
}

// TestWhatIsNotOTLPIsNoRefusal: pages of proxies and web servers cost nothing.
func TestWhatIsNotOTLPIsNoRefusal(t *testing.T) {
	for _, protocol := range []string{"http", "grpc"} {
		for _, code := range []int{200, 302, 400, 404, 500, 502} {
			h := sinktest.StartHTTP(t, sinktest.Reach{}, &sinktest.HTTP{HTTP2: true, Take: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ sinktest.Mood) {
				w.Header().Set("Content-Type", "text/html")
				w.WriteHeader(code)
				fmt.Fprint(w, "<html>The plain HTTP request was sent to HTTPS port</html>")
			}})
			s := build(t, "otlp:"+h.URL()+"?protocol="+protocol)
			err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0)))
			var p *sink.Partial
			if err == nil || errors.As(err, &p) || sink.IsPermanent(err) {
				t.Errorf("%s, status %d: got %v, want a passing error", protocol, code, err)
			}
		}
	}
}

// TestSamplesThatAreTooOldHoldNothingUp: Prometheus answers 500 in plain text.
func TestSamplesThatAreTooOldHoldNothingUp(t *testing.T) {
	h := sinktest.StartHTTP(t, sinktest.Reach{}, &sinktest.HTTP{Take: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ sinktest.Mood) {
		http.Error(w, "too old sample", http.StatusInternalServerError)
	}})
	s := build(t, "otlp:"+h.URL())
	err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0)))
	var p *sink.Partial
	if !errors.As(err, &p) || p.Err != nil || p.Late == 0 || len(p.Refused) > 0 {
		t.Fatalf("got %v, want late samples", err)
	}
}

// TestRejectedSamplesAreCountedAndNotSentAgain: a partial success is one.
func TestRejectedSamplesAreCountedAndNotSentAgain(t *testing.T) {
	both(t, func(t *testing.T, f *fake, s *otlp) {
		f.answer = func(to reply, n int, _ sinktest.Mood) bool {
			p := &collector.ExportMetricsPartialSuccess{RejectedDataPoints: 3, ErrorMessage: "three are bad"}
			if n > 1 {
				p = &collector.ExportMetricsPartialSuccess{ErrorMessage: "only a warning"}
			}
			to.ok(&collector.ExportMetricsServiceResponse{PartialSuccess: p})
			return true
		}
		err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0)))
		var p *sink.Partial
		if !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 1 || p.Refused[0].Samples != 3 || !strings.Contains(p.Refused[0].Reason, "three are bad") {
			t.Fatalf("got %v, want three refused samples", err)
		}
		if f.requests != 1 {
			t.Fatalf("%d requests, want 1", f.requests)
		}
		if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 1))); err != nil || s.warned != "only a warning" {
			t.Fatalf("got %v and the warning %q", err, s.warned)
		}
	})
}

func TestTooLargeRequestsAreSplit(t *testing.T) {
	both(t, func(t *testing.T, f *fake, s *otlp) {
		f.most = 30000
		var want []string
		var batch []*hs.Rollup
		for n := range 4 {
			r := sinktest.Node(fmt.Sprint("n", n), 20, 2, 0)
			batch, want = append(batch, r), append(want, names(t, r)...)
		}
		if err := s.Write(t.Context(), messages(batch...)); err != nil {
			t.Fatal(err)
		}
		if d := difference(f.Holds(), want); d != "" {
			t.Fatal(d)
		}
		before := f.requests
		if err := s.Write(t.Context(), messages(sinktest.Node("m", 0, 0, 0))); err != nil || f.requests != before+1 {
			t.Fatalf("%v, %d requests", err, f.requests-before)
		}
		if s.most > 30000 {
			t.Errorf("requests are of up to %d bytes still", s.most)
		}
	})
}

func difference(holds map[string]int, want []string) string {
	var got []string
	for name, n := range holds {
		for range n {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	return sinktest.Diff(want, got)
}

// TestWhatCameBeforeIsLate: a receiver that refuses a whole request for one message that it has already, as Prometheus
// does, gets the others.
func TestWhatCameBeforeIsLate(t *testing.T) {
	both(t, func(t *testing.T, f *fake, s *otlp) {
		old := names(t, sinktest.Node("old", 5, 2, 0))
		fresh := append(names(t, sinktest.Node("a", 5, 2, 0)), names(t, sinktest.Node("b", 5, 2, 0))...)
		f.known = map[string]bool{}
		for _, name := range old {
			f.known[name] = true
		}
		err := s.Write(t.Context(), messages(sinktest.Node("a", 5, 2, 0), sinktest.Node("old", 5, 2, 0), sinktest.Node("b", 5, 2, 0)))
		var p *sink.Partial
		if !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 0 || p.Late == 0 {
			t.Fatalf("got %v, want late samples alone", err)
		}
		if d := difference(f.Holds(), fresh); d != "" {
			t.Fatal(d)
		}
	})
}

// TestNamesAreTheConventions: what a container becomes, in full.
func TestNamesAreTheConventions(t *testing.T) {
	tick := time.Date(2026, 11, 20, 20, 26, 0, 0, time.UTC)
	r := &hs.Rollup{Scope: hs.ScopeNode, Cluster: "c", Name: "n1", Tick: hs.Tick(tick.UnixMilli()), Resolution: time.Minute}
	r.Scraped = tick.Add(3 * time.Second).UnixNano()
	r.AddEntity(hs.Entity{Kind: hs.KindNode, Parent: -1, Name: "n1", UID: "node-uid"})
	pod := r.AddEntity(hs.Entity{Kind: hs.KindPod, Name: "web-1", Namespace: "shop", UID: "pod-uid", Owner: hs.Owner{Kind: "Deployment", Name: "web"}, Labels: []hs.Label{{Key: "app", Value: "web"}}})
	row := r.AddEntity(hs.Entity{Kind: hs.KindContainer, Parent: int32(pod), Name: "app", Image: "example.com:5000/web:v1@sha256:00"}) //nolint:gosec // 1
	started, sampled := tick.Add(-time.Hour), tick.Add(-7*time.Second)
	r.Values.Set(row, hs.FieldStart, started.UnixNano())
	r.Values.Set(row, hs.GroupCPU.Time(), sampled.UnixNano())
	r.Values.Set(row, hs.CPUUsage.Field(), 1_605_000_000)
	r.Values.Set(row, hs.CPUUsage.Delta(), 15_000_000_000)
	r.Values.Set(row, hs.GroupCPU.Span(), 60_000_000_000)
	r.Values.Set(row, hs.CPURequest.Field(), 250)
	r.Values.Set(row, hs.CPULimit.Field(), 0)
	r.Values.Set(row, hs.RestartCount.Field(), 2)
	r.Values.Set(pod, hs.GroupNetwork.Time(), sampled.UnixNano())
	r.Values.Set(pod, hs.FieldStart, started.UnixNano())
	r.Values.Set(pod, hs.NetworkRx.Field(), 1<<40+1)
	r.Values.Set(pod, hs.NetworkTx.Field(), 5)
	d := r.AddDevice(hs.Device{Entity: int32(pod), Kind: hs.DeviceFilesystem, Name: "Volume:data", Claim: "data-web"}) //nolint:gosec // 1
	r.DeviceValues.Set(d, hs.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, hs.Extra{Entity: int32(row), Name: "custom/queue/Length", Value: hs.Float(1.5)}) //nolint:gosec // 2
	check := func(options, want string) {
		t.Helper()
		got := "\n" + told(t, encoded(build(t, "otlp:http://h?"+options), r))
		if d := sinktest.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); d != "" {
			t.Errorf("%s (- want, + got):\n%s", options, d)
		}
	}
	check("filter=type:pod,pod_container", `
k8s.cluster.name=default k8s.deployment.name=web k8s.namespace.name=shop k8s.node.name=n1 k8s.node.uid=node-uid k8s.pod.name=web-1 k8s.pod.uid=pod-uid
  k8s.pod.uptime [s] gauge
    20:26:03 3603
  k8s.pod.network.io [By] counter
    19:26:00 20:25:53 1099511627777i network.io.direction=receive
    19:26:00 20:25:53 5i network.io.direction=transmit
  k8s.pod.volume.usage [By] updowncounter
    20:26:00 4096i k8s.persistentvolumeclaim.name=data-web k8s.volume.name=data
k8s.cluster.name=default container.image.name=example.com:5000/web container.image.tags=[v1] k8s.container.name=app k8s.deployment.name=web k8s.namespace.name=shop k8s.node.name=n1 k8s.node.uid=node-uid k8s.pod.name=web-1 k8s.pod.uid=pod-uid
  container.uptime [s] gauge
    20:26:03 3603
  container.cpu.time [s] counter
    19:26:00 20:25:53 1.605
  k8s.container.cpu.request.current [{cpu}] updowncounter
    20:26:00 0.25
  k8s.container.restart.count [{restart}] updowncounter
    20:26:00 2i
  container.custom.queue.length [1] gauge
    20:26:00 1.5 heapstream.custom.name=queue/Length`)
	check("filter=type:pod_container&filter=metric:cpu/usage*&rates=true&labels=true&rename=cpu/usage:cores&cluster_name=east", `
k8s.cluster.name=east container.image.name=example.com:5000/web container.image.tags=[v1] k8s.container.name=app k8s.deployment.name=web k8s.namespace.name=shop k8s.node.name=n1 k8s.node.uid=node-uid k8s.pod.name=web-1 k8s.pod.uid=pod-uid k8s.pod.label.app=web
  cores [s] counter
    19:26:00 20:25:53 1.605
  container.cpu.usage [{cpu}] gauge
    20:25:53 0.25`)
	check("filter=type:pod_container&filter=metric:custom/*&rename=custom/*:my.*", `
k8s.cluster.name=default container.image.name=example.com:5000/web container.image.tags=[v1] k8s.container.name=app k8s.deployment.name=web k8s.namespace.name=shop k8s.node.name=n1 k8s.node.uid=node-uid k8s.pod.name=web-1 k8s.pod.uid=pod-uid
  my.queue/Length [1] gauge
    20:26:00 1.5`)
}

// told is a request for people.
func told(tb testing.TB, body []byte) string {
	tb.Helper()
	var request collector.ExportMetricsServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		tb.Fatal(err)
	}
	var lines []string
	for _, rm := range request.ResourceMetrics {
		check(tb, rm)
		lines = append(lines, attributes(rm.Resource.Attributes))
		for _, m := range rm.ScopeMetrics[0].Metrics {
			shape := "gauge"
			if s := m.GetSum(); s.GetIsMonotonic() {
				shape = "counter"
			} else if s != nil {
				shape = "updowncounter"
			}
			lines = append(lines, fmt.Sprintf("  %s [%s] %s", m.Name, m.Unit, shape))
			for _, p := range points1(m) {
				line := "    "
				for _, at := range []uint64{p.StartTimeUnixNano, p.TimeUnixNano} {
					if at > 0 {
						line += time.Unix(0, int64(at)).UTC().Format(time.TimeOnly) + " " //nolint:gosec // a time
					}
				}
				if i, ok := p.Value.(*pb.NumberDataPoint_AsInt); ok {
					line += fmt.Sprintf("%di", i.AsInt)
				} else {
					line += fmt.Sprint(p.GetAsDouble())
				}
				lines = append(lines, strings.TrimRight(line+" "+attributes(p.Attributes), " "))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func attributes(all []*commonpb.KeyValue) string {
	var said []string
	for _, kv := range all {
		if list := kv.Value.GetArrayValue(); list != nil {
			said = append(said, fmt.Sprintf("%s=[%s]", kv.Key, list.Values[0].GetStringValue()))
		} else if n, ok := kv.Value.Value.(*commonpb.AnyValue_IntValue); ok {
			said = append(said, fmt.Sprintf("%s=%d", kv.Key, n.IntValue))
		} else {
			said = append(said, kv.Key+"="+kv.Value.GetStringValue())
		}
	}
	return strings.Join(said, " ")
}

// TestBytesAreNoMoreThanTheLibrarys: the generated code, which orders fields in its own way, makes as many of the same
// messages.
func TestBytesAreNoMoreThanTheLibrarys(t *testing.T) {
	s := build(t, "otlp:http://h?extended=true&rates=true&labels=true")
	for _, r := range append(sinktest.Oracle(t, "default"), sinktest.Node("n", 30, 2, 3)) {
		ours := encoded(s, r)
		var request collector.ExportMetricsServiceRequest
		if err := proto.Unmarshal(ours, &request); err != nil {
			t.Fatal(err)
		}
		theirs := proto.Size(&request)
		for _, rm := range request.ResourceMetrics {
			check(t, rm)
		}
		if len(ours) != theirs {
			t.Fatalf("%v %s: %d bytes, the library makes %d", r.Scope, r.Name, len(ours), theirs)
		}
	}
}

func TestEventsAreLogs(t *testing.T) {
	both(t, func(t *testing.T, f *fake, _ *otlp) {
		s := sinktest.NewEvents[*otlp](t, Kind, f.Target(sinktest.Reach{}))
		if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent())); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, request := range f.records {
			for _, rl := range request.ResourceLogs {
				r := rl.ScopeLogs[0].LogRecords[0]
				got = append(got, attributes(rl.Resource.Attributes), fmt.Sprintf("%d %s %q %s %d %s", r.TimeUnixNano, r.EventName, r.Body.GetStringValue(), r.SeverityText, r.SeverityNumber, attributes(r.Attributes)))
			}
		}
		want := []string{
			"k8s.cluster.name=c k8s.node.name=n1 k8s.namespace.name=default k8s.object.kind=Pod k8s.object.name=web-1 k8s.object.uid=pod-uid k8s.object.fieldpath=spec.containers{web} k8s.object.api_version=v1 k8s.object.resource_version=123 k8s.pod.name=web-1 k8s.pod.uid=pod-uid",
			`1514859845000000000 k8s.event "Killing container" Normal 9 log.record.uid=ev-uid/124 k8s.event.reason=Killing k8s.event.name=web-1.150 k8s.event.uid=ev-uid k8s.event.source=kubelet k8s.event.start_time=2018-01-02T02:24:05Z k8s.event.count=1`,
			"k8s.cluster.name=c k8s.node.name=n1 k8s.namespace.name=default k8s.object.kind=Node k8s.object.name=n1",
			`1514859960123456000 k8s.event "a \"quoted\" \\ line\nand another" Warning 13 log.record.uid=new-uid/125 k8s.event.reason=Rebooted k8s.event.name=n1.151 k8s.event.uid=new-uid k8s.event.reporting_controller=kubelet k8s.event.reporting_instance=n1 k8s.event.start_time=2018-01-02T02:25:00.123456Z k8s.event.count=3`,
		}
		if d := sinktest.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

func TestHeadersAreReadAnew(t *testing.T) {
	both(t, func(t *testing.T, f *fake, _ *otlp) {
		dir := t.TempDir()
		write := func(name, text string) string {
			t.Helper()
			name = filepath.Join(dir, name)
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			return name
		}
		token, file := write("token", "first-token\n"), write("headers", "# keys\nApi-Key: first-key\n")
		s := build(t, f.Target(sinktest.Reach{})+"&header=X-Scope-OrgID:team&token_file="+token+"&headers_file="+file)
		f.see = func(h http.Header) {
			want := "first"
			if f.requests > 0 {
				want = "second"
			}
			if h.Get("Authorization") != "Bearer "+want+"-token" || h.Get("Api-Key") != want+"-key" || h.Get("X-Scope-OrgID") != "team" {
				t.Errorf("headers %v, want those of %s", h, want)
			}
		}
		if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err != nil {
			t.Fatal(err)
		}
		write("token", "second-token")
		write("headers", "Api-Key: second-key")
		if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 1))); err != nil {
			t.Fatal(err)
		}
		f.answer = func(to reply, _ int, _ sinktest.Mood) bool {
			to.fail(http.StatusUnauthorized, status.New(codes.Unauthenticated, "who is second-token with second-key?"))
			return true
		}
		f.see = nil
		if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 1))); err == nil || strings.Contains(err.Error(), "second") {
			t.Fatalf("got %v, want an error without secrets", err)
		}
		if err := os.Remove(token); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 1))); err == nil || !strings.Contains(err.Error(), "`token_file`") {
			t.Fatalf("got %v, want what is wrong with the file", err)
		}
	})
}

func TestOptions(t *testing.T) {
	sinktest.Complains(t, Kind, "otlp", "no address: give otlp:http://host:4318")
	sinktest.Complains(t, Kind, "otlp:ftp://h", "address with scheme \"ftp\"")
	sinktest.Complains(t, Kind, "otlp:grpc://h?protocol=http", "`protocol` flag is http, and the address says grpc")
	sinktest.Complains(t, Kind, "otlp:http://h:4317/path", "gRPC has none")
	sinktest.Complains(t, Kind, "otlp:http://h?protocol=udp&compression=zstd&tokens=x", "`protocol` flag is \"udp\"", "`compression` flag is \"zstd\"", "did you mean `token`?")
	sinktest.Complains(t, Kind, "otlp:http://h?header=Authorization:x", "looks like a secret")
	sinktest.Complains(t, Kind, "otlp:http://h?header=nonsense", "want Name:value")
	sinktest.Complains(t, Kind, "otlp:http://h?header=Content-Type:x", "is set by this sink")
	sinktest.Complains(t, Kind, "otlp:http://h?token_file=/none&headers_file=/none", "`token_file`", "`headers_file`")
	check := func(target, want string) {
		t.Helper()
		got := ""
		switch to := build(t, target).to.(type) {
		case *httpTransport:
			got = to.base
		case *grpcTransport:
			got = "grpc " + to.host
		}
		if got != want {
			t.Errorf("%s reaches %s, want %s", target, got, want)
		}
	}
	check("otlp:http://h", "http://h:4318")
	check("otlp:https://h/api/v1/otlp/", "https://h:4318/api/v1/otlp")
	check("otlp:http://h:4317", "grpc h:4317")
	check("otlp:grpcs://h", "grpc h:4317")
	check("otlp:https://h?protocol=grpc", "grpc h:4317")
	check("otlp:h:4317", "grpc h:4317")
	check("otlp:h:4318", "http://h:4318")
}
