package prometheus

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:      Kind,
	Start:     func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	LoginHint: "check `user` and `pw`",
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		return encoded(build(tb, "prometheus:http://h"), r)
	},
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	for _, version := range []string{"1", "2"} {
		b.Run("version="+version, func(b *testing.B) {
			s := sinktest.SwallowHTTP(b, 204, "")
			suite.Bench(b, "prometheus:http://"+s.Addr+"?protocol="+version, s.Bytes.Load)
		})
	}
}

func build(tb testing.TB, target string) *receiver {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	labels := proto.DefaultLabelFormat()
	labels.Store = map[string]string{"app": "App.name", "team": "node"}
	s, err := New(t, sink.Deps{Cluster: "default", Labels: labels, Log: slog.New(slog.DiscardHandler), Version: "test", Timeout: time.Minute})
	if err != nil {
		tb.Fatal(err)
	}
	r := s.(*receiver)
	if !strings.Contains(target, "stored") {
		r.enc.store = nil
	}
	return r
}

// encoded are the samples of rollups without their values, sorted.
func encoded(s *receiver, rollups ...*proto.Rollup) (all []string) {
	s.enc.reset()
	for i, r := range rollups {
		s.enc.encode(r, i)
	}
	for i := range s.enc.all {
		one := point{name: s.enc.text(i)}
		name, rest, _ := strings.Cut(one.name, "} ")
		all = append(all, name+"} "+rest[strings.LastIndexByte(rest, ' ')+1:])
	}
	slices.Sort(all)
	return all
}

// point is a sample as a receiver reads it.
type point struct {
	name       string // with labels
	value      float64
	at, start  int64
	kind       uint64
	help, unit string
}

func (p *point) identity() string { return fmt.Sprint(p.name, " ", p.at) }

// fields calls f for every field of a message.
func fields(b []byte, f func(num protowire.Number, v uint64, b []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var raw []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			v, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			raw, n = protowire.ConsumeBytes(b)
		default:
			return fmt.Errorf("field %d has the wire type %d", num, typ)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, raw); err != nil {
			return err
		}
	}
	return nil
}

func parseSample(b []byte, p *point) error {
	return fields(b, func(num protowire.Number, v uint64, _ []byte) error {
		switch num {
		case 1:
			p.value = math.Float64frombits(v)
		case 2:
			p.at = int64(v)
		case 3:
			p.start = int64(v)
		}
		return nil
	})
}

// series is labels as text, if they are what the protocol demands: sorted, each once, none empty, with a name.
func series(labels []proto.Label) (string, error) {
	var b strings.Builder
	metric := ""
	for i, l := range labels {
		if i > 0 && labels[i-1].Key >= l.Key || l.Key == "" || l.Value == "" || !labelKey.MatchString(l.Key) {
			return "", fmt.Errorf("labels %q", labels)
		}
		if l.Key == nameLabel {
			metric = l.Value
			continue
		}
		b.WriteString("{,"[min(b.Len(), 1):][:1] + l.Key + "=" + quote(l.Value))
	}
	if !labelKey.MatchString(metric) {
		return "", fmt.Errorf("labels without a name: %q", labels)
	}
	return metric + b.String() + "}", nil
}

// parseSecond reads a message of version 2.
func parseSecond(b []byte) (all []point, err error) {
	var symbols []string
	var each [][]byte
	err = fields(b, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case 4:
			symbols = append(symbols, string(b))
		case 5:
			each = append(each, b)
		default:
			return fmt.Errorf("field %d", num)
		}
		return nil
	})
	if err != nil || len(symbols) == 0 || symbols[0] != "" || len(slices.Compact(slices.Sorted(slices.Values(symbols)))) != len(symbols) {
		return nil, fmt.Errorf("symbols %q: %v", symbols, err)
	}
	symbol := func(i uint64) string {
		if i >= uint64(len(symbols)) {
			err = cmp.Or(err, fmt.Errorf("reference to symbol %d of %d", i, len(symbols)))
			return ""
		}
		return symbols[i]
	}
	for _, b := range each {
		var p point
		var labels []proto.Label
		if e := fields(b, func(num protowire.Number, _ uint64, b []byte) error {
			switch num {
			case 1:
				for len(b) > 0 {
					k, n := protowire.ConsumeVarint(b)
					v, m := protowire.ConsumeVarint(b[max(n, 0):])
					if n < 0 || m < 0 {
						return fmt.Errorf("references end early")
					}
					labels = append(labels, proto.Label{Key: symbol(k), Value: symbol(v)})
					b = b[n+m:]
				}
			case 2:
				return parseSample(b, &p)
			case 5:
				return fields(b, func(num protowire.Number, v uint64, _ []byte) error {
					switch num {
					case 1:
						p.kind = v
					case 3:
						p.help = symbol(v)
					case 4:
						p.unit = symbol(v)
					}
					return nil
				})
			default:
				return fmt.Errorf("series has field %d", num)
			}
			return nil
		}); e != nil {
			return nil, e
		}
		if err != nil {
			return nil, err
		}
		if p.name, err = series(labels); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// parseFirst reads a message of version 1, and the families whose metadata is in it.
func parseFirst(b []byte) (all []point, told []string, err error) {
	err = fields(b, func(num protowire.Number, _ uint64, b []byte) error {
		var p point
		var labels []proto.Label
		switch num {
		case 1:
			err := fields(b, func(num protowire.Number, _ uint64, b []byte) error {
				if num == 2 {
					return parseSample(b, &p)
				}
				var l proto.Label
				labels = append(labels, l)
				return fields(b, func(num protowire.Number, _ uint64, b []byte) error {
					if num == 1 {
						labels[len(labels)-1].Key = string(b)
					} else {
						labels[len(labels)-1].Value = string(b)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
			if p.name, err = series(labels); err != nil {
				return err
			}
			all = append(all, p)
		case 3:
			return fields(b, func(num protowire.Number, v uint64, b []byte) error {
				if num == 2 {
					told = append(told, string(b))
				}
				return nil
			})
		default:
			return fmt.Errorf("field %d", num)
		}
		return nil
	})
	return all, told, err
}

func unpack(r *http.Request, body []byte) (version int, points []point, told []string, err error) {
	b, err := s2.Decode(nil, body)
	if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Encoding") != "snappy" || r.Header.Get("User-Agent") != "heapstream/test" {
		return 0, nil, nil, fmt.Errorf("%s %q: %w", r.Method, r.Header, err)
	}
	switch content, version := r.Header.Get("Content-Type"), r.Header.Get("X-Prometheus-Remote-Write-Version"); {
	case content == "application/x-protobuf;proto=io.prometheus.write.v2.Request" && version == "2.0.0":
		points, err = parseSecond(b)
		return 2, points, nil, err
	case content == "application/x-protobuf" && version == "0.1.0":
		points, told, err = parseFirst(b)
		return 1, points, told, err
	default:
		return 0, nil, nil, fmt.Errorf("%q of version %q", content, version)
	}
}

// fake speaks version 2 as Prometheus 3 does: what is refused is told and the rest is written.
type fake struct{ *sinktest.HTTP }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{}
	newest := map[string]int64{}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "heapster" && password == sinktest.RightPassword
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
			version, points, _, err := unpack(r, body)
			if err != nil || version == 0 || r.URL.Path != "/api/v1/write" || len(points) > 2000 {
				t.Errorf("a receiver does not take %d points of version %d at %s: %v", len(points), version, r.URL, err)
			}
			var complaints []string
			took := 0
			for _, p := range points {
				switch {
				case m == sinktest.Refusing, m == sinktest.HalfRefuses && strings.Contains(p.name, "_memory_usage_bytes"):
					complaints = append(complaints, fmt.Sprintf("series %s is not wanted", p.name))
				case p.at < newest[p.name]:
					complaints = append(complaints, "out of order sample for series "+p.name)
				default:
					newest[p.name] = p.at
					took++
					f.Store(true, p.identity())
				}
			}
			w.Header().Set(samplesWritten, fmt.Sprint(took))
			w.Header().Set("X-Prometheus-Remote-Write-Histograms-Written", "0")
			w.Header().Set("X-Prometheus-Remote-Write-Exemplars-Written", "0")
			if len(complaints) > 0 {
				http.Error(w, strings.Join(complaints, "\n"), http.StatusBadRequest)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		},
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	target := "prometheus:" + f.URL() + "?" + f.Options(r)
	if r.Login {
		target += "&user=heapster&pw=" + r.Password()
	}
	return target
}

// old is a receiver of version 1 as Prometheus 2 is: one sample that is out of order and nothing of its request is
// written.
type old struct {
	tb       testing.TB
	looks    bool // it looks at the type of what comes
	mu       sync.Mutex
	newest   map[string]int64
	values   map[string]float64
	oldest   int64 // what is older is out of bounds
	refuses  string
	requests int
	told     []string
	url      string
}

func startOld(tb testing.TB, o *old) *old {
	o.tb, o.newest, o.values = tb, map[string]int64{}, map[string]float64{}
	server := httptest.NewServer(o)
	tb.Cleanup(server.Close)
	o.url = server.URL
	return o
}

func (o *old) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		o.tb.Error(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests++
	version, points, told, err := unpack(r, body)
	switch {
	case err != nil:
		o.tb.Error(err)
	case version == 2 && o.looks:
		http.Error(w, "io.prometheus.write.v2.Request protobuf message is not accepted by this server", http.StatusUnsupportedMediaType)
		return
	case version == 2:
		w.WriteHeader(http.StatusNoContent) // of which it understood nothing
		return
	}
	for _, p := range points {
		switch {
		case o.refuses != "" && strings.Contains(p.name, o.refuses):
			http.Error(w, "series "+p.name+" is not wanted", http.StatusBadRequest)
			return
		case p.at < o.oldest:
			http.Error(w, "out of bounds", http.StatusBadRequest)
			return
		case p.at < o.newest[p.name]:
			http.Error(w, "out of order sample", http.StatusBadRequest)
			return
		}
	}
	for _, p := range points {
		o.newest[p.name] = p.at
		o.values[p.identity()] = p.value
	}
	o.told = append(o.told, told...)
	w.WriteHeader(http.StatusNoContent)
}

func message(i int, r *proto.Rollup) sink.Message { return sink.Message{Rollup: r, ID: fmt.Sprint(i)} }

func TestReceiversThatSpeakVersion1AreFoundOut(t *testing.T) {
	for _, looks := range []bool{true, false} {
		o := startOld(t, &old{looks: looks})
		s := build(t, "prometheus:"+o.url)
		defer s.Close()
		now := time.Now()
		s.now = func() time.Time { return now }
		r := sinktest.Node("n", 2, 1, 0)
		for range 2 {
			if err := s.Write(t.Context(), []sink.Message{message(0, r)}); err != nil {
				t.Fatal(err)
			}
		}
		want := encoded(build(t, "prometheus:http://h"), r)
		if len(o.values) != len(want) || o.requests != 3 {
			t.Errorf("%d samples in %d requests, want %d in 3", len(o.values), o.requests, len(want))
		}
		// metadata of each family once
		if slices.Sort(o.told); len(slices.Compact(slices.Clone(o.told))) != len(o.told) || !slices.Contains(o.told, "kubernetes_pod_cpu_usage_seconds_total") {
			t.Errorf("told of %q", o.told)
		}
		// after an hour it may have been renewed
		now = now.Add(reask + time.Second)
		for range 2 {
			if err := s.Write(t.Context(), []sink.Message{message(0, r)}); err != nil {
				t.Fatal(err)
			}
		}
		if o.requests != 6 {
			t.Errorf("%d requests, want 6: the first after an hour asks for version 2 again", o.requests)
		}
	}
}

func TestReceiversThatTakeBackARequestGetWhatIsNew(t *testing.T) {
	o := startOld(t, &old{})
	var batch []sink.Message
	for n := range 12 {
		batch = append(batch, message(n, sinktest.Node(fmt.Sprint("n", n%2), 3, 1, n/2)))
	}
	want := 0
	for _, m := range batch {
		want += len(encoded(build(t, "prometheus:http://h"), m.Rollup))
	}
	write := func(batch []sink.Message, options string) error {
		s := build(t, "prometheus:"+o.url+"?protocol=1&batchsize=500"+options)
		defer s.Close()
		return s.Write(t.Context(), batch)
	}
	// some of it was written before the worker was killed: whole messages, and part of one
	if err := write(batch[:7], ""); err != nil {
		t.Fatal(err)
	}
	if err := write(batch[7:8], "&filter=metric:cpu/*,network/*"); err != nil {
		t.Fatal(err)
	}
	o.requests = 0
	if err := write(batch, ""); err != nil {
		t.Fatal(err)
	}
	if len(o.values) != want {
		t.Errorf("%d samples are there, want %d", len(o.values), want)
	}
	t.Logf("%d samples again, in %d requests", want, o.requests)
	// all of it again
	o.requests = 0
	if err := write(batch, ""); err != nil || len(o.values) != want {
		t.Errorf("%v, %d samples", err, len(o.values))
	}
	t.Logf("%d samples that are all there, in %d requests", want, o.requests)
	if o.requests > want/10 {
		t.Errorf("%d requests for %d samples", o.requests, want)
	}
}

func TestWhatIsTooOldIsCounted(t *testing.T) {
	o := startOld(t, &old{})
	batch := []sink.Message{message(0, sinktest.Node("n", 3, 1, 0)), message(1, sinktest.Node("n", 3, 1, 9))}
	o.oldest = batch[1].Tick.Time().UnixMilli()
	s := build(t, "prometheus:"+o.url)
	defer s.Close()
	err := s.Write(t.Context(), batch)
	first, second := encoded(build(t, "prometheus:http://h"), batch[0].Rollup), encoded(build(t, "prometheus:http://h"), batch[1].Rollup)
	loss, ok := err.(*sink.Partial)
	if !ok || loss.Late != len(first) || len(loss.Refused) > 0 || loss.Err != nil || len(o.values) != len(second) {
		t.Errorf("%v, %d samples; want %d late and %d", err, len(o.values), len(first), len(second))
	}
}

func TestSamplesRefusedByVersion1AreNamed(t *testing.T) {
	o := startOld(t, &old{refuses: "kubernetes_pod_memory_rss_bytes"})
	s := build(t, "prometheus:"+o.url)
	defer s.Close()
	r := sinktest.Node("n", 3, 1, 0)
	err := s.Write(t.Context(), []sink.Message{message(0, r)})
	all := encoded(build(t, "prometheus:http://h"), r)
	loss, ok := err.(*sink.Partial)
	if !ok || len(loss.Refused) != 3 || len(o.values) != len(all)-3 || !strings.HasPrefix(loss.Refused[0].Part, `kubernetes_pod_memory_rss_bytes{cluster="default",`) {
		t.Errorf("%v, %d samples of %d", err, len(o.values), len(all))
	}
}

func TestAnswersDecideWhatHappensNext(t *testing.T) {
	check := func(code int, body, options, verdict, want string) {
		t.Helper()
		f := sinktest.SwallowHTTP(t, code, body)
		s := build(t, "prometheus:http://"+f.Addr+"?"+options)
		defer s.Close()
		err := s.Write(t.Context(), []sink.Message{message(0, sinktest.Node("n", 1, 1, 0))})
		got := "passing"
		loss, partial := err.(*sink.Partial)
		switch {
		case err == nil:
			got = "written"
		case partial && loss.Late > 0 && len(loss.Refused) == 0:
			got = "late"
		case partial && loss.Err == nil:
			got = "refused"
		}
		if got != verdict || want != "" && !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%d %s: %v is %s, want %s with %q", code, body, err, got, verdict, want)
		}
	}
	check(204, "", "", "written", "")
	check(200, "", "", "written", "")
	check(200, "<html>", "", "passing", "no answer to that")
	check(400, "out of order sample", "", "written", "")
	check(400, "user=1: the sample has been rejected because another sample with a more recent timestamp has already been ingested and out-of-order samples are not allowed (err-mimir-sample-out-of-order)", "", "written", "")
	check(400, "duplicate sample for timestamp", "protocol=1", "written", "")
	check(409, "store locally for endpoint : conflict", "", "written", "")
	check(400, "too old sample", "", "late", "")
	check(400, "out of bounds", "protocol=1", "late", "")
	check(400, "err-mimir-max-label-names-per-series", "", "refused", "max-label-names")
	check(422, "label value too long", "protocol=1", "refused", "too long")
	check(413, "", "", "refused", "")
	check(404, "page not found", "", "passing", "is the address right?")
	check(401, "no", "", "passing", "check `user` and `pw`, or `token`")
	check(429, "slow down", "", "passing", "slow down")
	check(500, "x", "", "passing", "x")
	check(501, "x", "", "passing", "x")
	check(302, "", "", "passing", "redirects")
}

func TestSamplesAreThoseOfTheMapping(t *testing.T) {
	at := time.Date(2018, 1, 2, 2, 24, 0, 0, time.UTC)
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n1", Tick: proto.TickAt(at, time.Minute), Resolution: time.Minute, Table: proto.Table{Scraped: at.UnixNano()}}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", Labels: []proto.Label{{Key: "app", Value: "x"}, {Key: "team", Value: "y"}}})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web\xff", Namespace: "shop", UID: "u", Owner: proto.Owner{Kind: "Deployment", Name: "web"}, Labels: []proto.Label{{Key: "app", Value: "a\"\\\n"}}})
	r.Values.Set(pod, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(pod, proto.CPUUsage.Delta(), 1e9)
	r.Values.Set(pod, proto.GroupCPU.Span(), 1e9)
	r.Values.Set(pod, proto.GroupCPU.Time(), at.Add(-1500*time.Millisecond).UnixNano())
	r.Values.Set(pod, proto.FieldStart, at.Add(-time.Hour).UnixNano())
	r.Values.Set(pod, proto.CPULimit.Field(), 0)
	r.Values.Set(pod, proto.CPURequest.Field(), 250)
	d := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:a", Claim: "c"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.DeviceValues.Set(d, proto.GroupDevice.Time(), at.Add(-30*time.Second).UnixNano())
	r.Extras = []proto.Extra{
		{Entity: int32(pod), Name: "custom/a.b", Value: proto.Float(0.5)}, {Entity: int32(pod), Name: "custom/a/b", Value: proto.Int(3), Counter: true},
		{Entity: int32(pod), Name: "nvidia.com/gpu/request", Value: proto.Int(2)},
	}
	check := func(options string, want ...string) {
		t.Helper()
		s := build(t, "prometheus:http://h?"+options)
		s.enc.encode(r, 0)
		indices := make([]int32, len(s.enc.all))
		for i := range indices {
			indices[i] = int32(i)
		}
		second, err := parseSecond(s.enc.second(nil, indices))
		if err != nil {
			t.Fatal(err)
		}
		first, told, err := parseFirst(s.enc.first(nil, indices))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, p := range second {
			if p.name != first[i].name || p.at != first[i].at || p.value != first[i].value || !slices.Contains(told, p.name[:strings.IndexByte(p.name, '{')]) {
				t.Errorf("version 2 has %+v, version 1 %+v", p, first[i])
			}
			if want := p.name + " " + proto.Float(p.value).String() + " " + fmt.Sprint(p.at); s.enc.text(i) != want {
				t.Errorf("as text %s, want %s", s.enc.text(i), want)
			}
			got = append(got, fmt.Sprint(p.name, " ", p.value, " ", p.at-at.UnixMilli(), " ", p.start, " ", [...]string{"", "counter", "gauge"}[p.kind], " ", p.unit))
			if p.help == "" {
				t.Errorf("%s has no help", p.name)
			}
		}
		if d := sinktest.Diff(want, got); d != "" {
			t.Errorf("%s:\n%s", options, d)
		}
	}
	const labels = `cluster="default",namespace="shop",node="n1",%spod="web` + "\uFFFD" + `"%s,workload="web",workload_kind="Deployment"}`
	of := func(more string) string { return fmt.Sprintf(labels, "", more) }
	began := at.Add(-time.Hour).UnixMilli()
	check("filter=type:pod",
		`kubernetes_pod_start_time_seconds{`+of("")+fmt.Sprintf(" %v 0 0 gauge seconds", float64(began)/1e3),
		`kubernetes_pod_cpu_usage_seconds_total{`+of("")+fmt.Sprintf(" 1.605 -1500 %d counter seconds", began),
		`kubernetes_pod_cpu_request_cores{`+of("")+" 0.25 0 0 gauge cores",
		`kubernetes_pod_volume_usage_bytes{`+fmt.Sprintf(labels, `persistentvolumeclaim="c",`, `,volume="a"`)+" 4096 -30000 0 gauge bytes",
		`kubernetes_pod_custom_a_b{`+strings.Replace(of(""), `"default",`, `"default",custom_metric="a.b",`, 1)+" 0.5 0 0 gauge ",
		`kubernetes_pod_custom_a_b_total{`+strings.Replace(of(""), `"default",`, `"default",custom_metric="a/b",`, 1)+" 3 0 0 counter ",
		`kubernetes_pod_extended_resource_request{`+fmt.Sprintf(labels, "", `,resource="nvidia.com/gpu"`)+" 2 0 0 gauge ")
	check("filter=type:pod&filter=metric:cpu/usage_rate&rates=true&prefix=k8s_&label=region:eu&cluster_name=c2",
		`k8s_pod_cpu_usage_cores{`+strings.Replace(of(`,region="eu"`), `"default"`, `"c2"`, 1)+" 1 -1500 0 gauge cores")
	check("filter=type:pod&filter=metric:cpu/request&rename=cpu/*:my.cpu/*",
		`my_cpu_request{`+of("")+" 0.25 0 0 gauge ")
	s := build(t, "prometheus:http://h?filter=metric:cpu/request&name=stored")
	s.enc.encode(r, 0)
	if got, want := s.enc.text(0), `kubernetes_pod_cpu_request_cores{App_name="a\"\\\n",`+of("")+` 0.25 `+fmt.Sprint(at.UnixMilli()); got != want {
		t.Errorf("with stored labels %s, want %s", got, want)
	}
}

// TestATimeHasOneValue has samples stand still at every other tick while all values change, also those that only
// divide.
func TestATimeHasOneValue(t *testing.T) {
	const ticks = 20
	s, before, values := build(t, "prometheus:http://h?extended=true&rates=true"), (*proto.Rollup)(nil), map[string]string{}
	for n := range ticks {
		r := sinktest.Node("n1", 3, 2, n)
		for row := range r.Entities {
			for _, m := range []proto.MetricID{proto.CPURequest, proto.CPULimit, proto.MemoryRequest, proto.MemoryLimit, proto.CPUNodeAllocatable} {
				r.Values.Set(row, m.Field(), int64(100+7*n))
			}
			for g := proto.GroupCPU; before != nil && g < proto.GroupDevice; g++ {
				if at, ok := before.Values.Get(row, g.Time()); ok && (n+row+int(g))%2 == 0 {
					r.Values.Set(row, g.Time(), at)
					r.Values.Set(row, g.Stale(), 1)
				}
			}
		}
		for d := range r.Devices {
			r.DeviceValues.Set(d, proto.GroupDevice.Time(), r.Scraped-1e9)
			if before != nil && (n+d)%2 == 0 {
				at, _ := before.DeviceValues.Get(d, proto.GroupDevice.Time())
				r.DeviceValues.Set(d, proto.GroupDevice.Time(), at)
				r.DeviceValues.Set(d, proto.GroupDevice.Stale(), 1)
			}
		}
		s.enc.reset()
		s.enc.encode(r, 0)
		for i := range s.enc.all {
			series, rest, _ := strings.Cut(s.enc.text(i), "} ")
			value, at, _ := strings.Cut(rest, " ")
			if other, ok := values[series+"} "+at]; ok && other != value {
				t.Errorf("%s} is %s and then, at tick %d, %s at %s", series, other, n, value, at)
			}
			values[series+"} "+at] = value
		}
		before = r
	}
	if len(values) < 50*ticks {
		t.Errorf("there are only %d samples", len(values))
	}
}

func TestNamesOfApplicationsAreBounded(t *testing.T) {
	s := build(t, "prometheus:http://h")
	for n := range 3 {
		r := sinktest.Node("n", 1, 1, n)
		for i := range maxExtras/2 + 1 {
			r.Extras = append(r.Extras, proto.Extra{Entity: 4, Name: fmt.Sprintf("custom/m%d_%d", n, i), Value: proto.Int(1)})
		}
		s.enc.reset()
		s.enc.encode(r, 0)
	}
	if len(s.enc.extras) > maxExtras {
		t.Errorf("%d names are remembered", len(s.enc.extras))
	}
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{
		"prometheus:http://h": "http://h:9090/api/v1/write", "prometheus:http://h:1/api/v1/push": "http://h:1/api/v1/push",
		"prometheus:https://h/api/v1/push": "https://h/api/v1/push", "prometheus:h:1": "http://h:1/api/v1/write", "prometheus:h:1/x/y": "http://h:1/x/y",
	} {
		if got := build(t, target).address; got != want {
			t.Errorf("%s writes to %s, want %s", target, got, want)
		}
	}
	h := build(t, "prometheus:http://h?tenant=a&header=X-Team:b").header
	if h.Get("X-Scope-OrgID") != "a" || h.Get("X-Team") != "b" {
		t.Errorf("headers %q", h)
	}
	sinktest.Complains(t, Kind, "prometheus:?prefix=a-b&label=x&label=pod:y&label=cluster:z&label=__a:b&header=Authorization:x&header=Content-Type:y&header=bad%20name:x&tenat=a&user=u&token=t",
		"no address", "`prefix` flag is \"a-b\"", `"x": want KEY:VALUE`, "the label pod says what", "`cluster_name`", `"__a:b": want`, "Authorization would be seen", "Content-Type is set by the sink",
		"want NAME:VALUE", "did you mean `tenant`?", "`user` and `token` are both given")
	sinktest.Complains(t, Kind, "prometheus:http://h?label=a:b&label=a:c&protocol=3&rename=cpu/usage:a.b&rename=cpu/load:a_b", "gives a twice", "want one of auto, 1, 2", `"a_b", in Prometheus' characters`)
}
