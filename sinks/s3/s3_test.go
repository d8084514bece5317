package s3

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/parquet-go/parquet-go"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

const whole = "S3 takes an object or refuses it, as a whole."

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return start[sample](t, r, sample.identity) },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "s3:?bucket=abc")
		s.files.reset()
		if err := s.encode(&sink.Message{Rollup: r}); err != nil {
			tb.Fatal(err)
		}
		for _, f := range s.files.all {
			for _, row := range rows[sample](tb, f) {
				names = append(names, row.identity())
			}
		}
		return names
	},
	IsRefused: func(string) bool { return false },
	Without:   map[sinktest.Mood]string{sinktest.HalfRefuses: whole},
	LoginHint: "check `access_key`",
}

var events = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return start[event](t, r, event.identity) },
	EventNames: func(_ testing.TB, e *proto.Event) []string {
		return []string{event{Cluster: e.Cluster, Namespace: e.Namespace, UID: e.UID, Version: int64(e.Version)}.identity()}
	},
	Without: suite.Without, LoginHint: suite.LoginHint,
}

func TestMain(m *testing.M) { sinktest.Main(m, []*sinktest.Suite{&suite, &events}) }

func TestContract(t *testing.T) { suite.Run(t) }

func TestContractOfEvents(t *testing.T) { events.Run(t) }

// identity is all but the value.
func (s sample) identity() string {
	s.Value, s.ValueInt64 = 0, nil
	return fmt.Sprint(s)
}

func (e event) identity() string { return fmt.Sprint(e.Cluster, e.Namespace, e.UID, e.Version) }

func rows[T any](tb testing.TB, f *file) []T {
	tb.Helper()
	body, err := f.close()
	if err != nil {
		tb.Fatal(err)
	}
	return read[T](tb, body)
}

func read[T any](tb testing.TB, body []byte) []T {
	tb.Helper()
	all, err := parquet.Read[T](bytes.NewReader(body), int64(len(body)))
	if err != nil {
		tb.Fatalf("no Parquet: %v", err)
	}
	return all
}

func build(tb testing.TB, target string) *bucket {
	tb.Helper()
	s := sinktest.New[*bucket](tb, Kind, target)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// store is an S3 that checks signatures, and what is held by its objects.
type store struct {
	*sinktest.HTTP
	tb      testing.TB
	backend gofakes3.Backend
	names   func(body []byte) []string

	mu   sync.Mutex
	puts int
	seen map[string][]string // names within an object, by key and ETag
}

func start[T any](tb testing.TB, r sinktest.Reach, name func(T) string) *store {
	s := &store{tb: tb, backend: s3mem.New(), seen: map[string][]string{}}
	s.names = func(body []byte) (names []string) {
		for _, row := range read[T](tb, body) {
			names = append(names, name(row))
		}
		return names
	}
	if err := s.backend.CreateBucket("metrics"); err != nil {
		tb.Fatal(err)
	}
	server := gofakes3.New(s.backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
	s.HTTP = sinktest.StartHTTP(tb, r, &sinktest.HTTP{
		LoggedIn: signed,
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
			if r.Method != http.MethodPut || !strings.HasPrefix(r.URL.Path, "/metrics/a/b/default/") || r.Header.Get("Content-Type") != "application/vnd.apache.parquet" {
				tb.Errorf("S3 is asked %s %s %v", r.Method, r.URL, r.Header)
			}
			if m == sinktest.Refusing {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>EntityTooLarge</Code><Message>Your proposed upload exceeds the maximum allowed size</Message></Error>`)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			server.ServeHTTP(w, r)
			s.mu.Lock()
			s.puts++
			s.mu.Unlock()
		},
	})
	return s
}

func (s *store) Target(r sinktest.Reach) string {
	return "s3:" + s.URL() + "?bucket=metrics&prefix=a/b&interval=20ms&access_key=AKIA&secret_key=" + r.Password() + "&" + s.Options(r)
}

// list is what there is.
func (s *store) list() []*gofakes3.Content {
	list, err := s.backend.ListBucket("metrics", nil, gofakes3.ListBucketPage{})
	if err != nil {
		s.tb.Fatal(err)
	}
	return list.Contents
}

// object is one.
func (s *store) object(key string) []byte {
	o, err := s.backend.GetObject("metrics", key, nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer o.Contents.Close()
	body, err := io.ReadAll(o.Contents)
	if err != nil {
		s.tb.Fatal(err)
	}
	return body
}

// objects are all, by key.
func (s *store) objects() map[string][]byte {
	all := map[string][]byte{}
	for _, c := range s.list() {
		all[c.Key] = s.object(c.Key)
	}
	return all
}

func (s *store) Holds() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	holds := map[string]int{}
	for _, c := range s.list() {
		id := c.Key + c.ETag
		if _, ok := s.seen[id]; !ok {
			s.seen[id] = s.names(s.object(c.Key))
		}
		for _, name := range s.seen[id] {
			holds[name]++
		}
	}
	return holds
}

// signed checks a signature of version 4 as Amazon's documentation has it, of the secret right-password.
func signed(r *http.Request) bool {
	var scope, names, signature string
	for part := range strings.SplitSeq(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 "), ",") {
		switch k, v, _ := strings.Cut(strings.TrimSpace(part), "="); k {
		case "Credential":
			scope = strings.TrimPrefix(v, "AKIA/")
		case "SignedHeaders":
			names = v
		case "Signature":
			signature = v
		}
	}
	canonical := r.Method + "\n" + r.URL.EscapedPath() + "\n" + r.URL.RawQuery + "\n"
	for name := range strings.SplitSeq(names, ";") {
		v := r.Header.Get(name)
		switch name {
		case "host":
			v = r.Host
		case "content-length":
			v = fmt.Sprint(r.ContentLength)
		}
		canonical += name + ":" + strings.TrimSpace(v) + "\n"
	}
	canonical += "\n" + names + "\n" + r.Header.Get("X-Amz-Content-Sha256")
	sum := sha256.Sum256([]byte(canonical))
	key := []byte("AWS4" + sinktest.RightPassword)
	for part := range strings.SplitSeq(scope, "/") {
		key = mac(key, part)
	}
	return hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+r.Header.Get("X-Amz-Date")+"\n"+scope+"\n"+hex.EncodeToString(sum[:]))) == signature
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func TestRowsAreSamples(t *testing.T) {
	for _, options := range []string{"", "&compression=snappy"} {
		f := start[sample](t, sinktest.Reach{}, sample.identity)
		s := build(t, f.Target(sinktest.Reach{})+options)
		r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "default", Name: "n1.x", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
		r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1.x", Hostname: "n1"})
		r.Values.Set(0, proto.CPUUsage.Field(), 1<<60+1)
		d := r.AddDevice(proto.Device{Entity: 0, Kind: proto.DeviceFilesystem, Name: "/"})
		r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
		r.Extras = append(r.Extras, proto.Extra{Name: "custom/q", Value: proto.Float(2.5)})
		if err := s.Write(t.Context(), []sink.Message{{Rollup: r, ID: "x"}}); err != nil {
			t.Fatal(err)
		}
		all := f.objects()
		const key = "a/b/default/rollups/date=2018-01-02/hour=02/20180102T022400Z-node-n1_x.parquet"
		if len(all) != 1 || all[key] == nil {
			t.Fatalf("objects %v, want %s", slices.Collect(maps.Keys(all)), key)
		}
		big, small := int64(1<<60+1), int64(4096)
		base := sample{Time: 1514859840000, Cluster: "default", Type: "node", Nodename: "n1.x", Hostname: "n1"}
		a, b, c := base, base, base
		a.Metric, a.Value, a.ValueInt64, a.Counter = "cpu/usage", 1<<60, &big, true
		b.Metric, b.Value, b.ValueInt64, b.ResourceID = "filesystem/usage", 4096, &small, "/"
		c.Metric, c.Value = "custom/q", 2.5
		got := read[sample](t, all[key])
		if len(got) != 3 {
			t.Fatalf("%d rows", len(got))
		}
		for i, want := range []sample{a, b, c} {
			g, w := got[i], want
			if (g.ValueInt64 == nil) != (w.ValueInt64 == nil) || g.ValueInt64 != nil && *g.ValueInt64 != *w.ValueInt64 {
				t.Errorf("row %d has the whole number %v", i, g.ValueInt64)
			}
			g.ValueInt64, w.ValueInt64 = nil, nil
			if g != w {
				t.Errorf("row %d is\n%+v, want\n%+v", i, g, w)
			}
		}
	}
}

// TestAnHourIsAnObject: and the same rollups under another parting of the stream write over it.
func TestAnHourIsAnObject(t *testing.T) {
	f := start[sample](t, sinktest.Reach{}, sample.identity)
	s := build(t, f.Target(sinktest.Reach{}))
	var batch []sink.Message
	for n := range 8 {
		r := sinktest.Node(fmt.Sprint("n", n%2), 1, 1, 130+n/2) // the hour turns at 136
		r.Tick += proto.Tick(n/2) * 30000
		batch = append(batch, sink.Message{Rollup: r, ID: fmt.Sprint(n)})
	}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	first := f.Holds()
	if n := len(f.objects()); n != 2 {
		t.Fatalf("%d objects, want 2", n)
	}
	// It was killed before anything was acknowledged, and comes again in other parts.
	for _, part := range [][]sink.Message{batch[:3], batch[3:5], batch[5:]} {
		if err := s.Write(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	if again := f.Holds(); !maps.Equal(first, again) {
		t.Fatalf("%d samples are held, want %d each once", len(again), len(first))
	}
}

func TestEventsAreRows(t *testing.T) {
	f := start[event](t, sinktest.Reach{}, event.identity)
	s := sinktest.NewEvents[*bucket](t, Kind, strings.Replace(f.Target(sinktest.Reach{}), "prefix=a/b", "prefix=a/b&cluster_name=default", 1))
	if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event())); err != nil {
		t.Fatal(err)
	}
	for key, body := range f.objects() {
		all := read[event](t, body)
		if key != "a/b/default/events/date=2018-01-02/hour=02/20180102T022405Z-event-ev-uid-124.parquet" || len(all) != 1 || all[0].Reason != "Killing" || all[0].ObjectName != "web-1" ||
			all[0].Time != 1514859845000 || !strings.HasPrefix(all[0].Event, `{"metadata":{"name":"web-1.150",`) {
			t.Fatalf("%s has %+v", key, all)
		}
	}
}

// TestHeadersOfEncryption: what is asked of S3 goes along.
func TestHeadersOfEncryption(t *testing.T) {
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header.Clone()
		w.Header().Set("ETag", `"x"`)
	}))
	defer server.Close()
	for options, want := range map[string]map[string]string{
		"&sse=AES256": {"X-Amz-Server-Side-Encryption": "AES256"},
		"&sse=aws:kms&sse_key=k&storage_class=STANDARD_IA": {
			"X-Amz-Server-Side-Encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "k", "X-Amz-Storage-Class": "STANDARD_IA",
		},
	} {
		s := build(t, "s3:"+server.URL+"?bucket=abc&access_key=a&secret_key=secret"+options)
		if err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, 0), ID: "n"}}); err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if header.Get(k) != v {
				t.Errorf("%s: header %s is %q, want %q", options, k, header.Get(k), v)
			}
		}
	}
}

func TestAnswersDecideWhatHappensNext(t *testing.T) {
	check := func(code int, answer, want string, permanent bool) {
		t.Helper()
		f := sinktest.SwallowHTTP(t, code, `<Error><Code>`+answer+`</Code><Message>m</Message><Region>eu-west-1</Region></Error>`)
		s := build(t, "s3:http://"+f.Addr+"?bucket=abc&access_key=a&secret_key=secret")
		err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, 0), ID: "n"}})
		if err == nil || sink.IsPermanent(err) != permanent || !strings.Contains(err.Error(), want) {
			t.Errorf("%d %s: got %v, want %q", code, answer, err, want)
		}
	}
	check(404, "NoSuchBucket", "create it, or check `bucket`", false)
	check(403, "AccessDenied", "it needs s3:PutObject for heapstream/default/rollups/*", false)
	check(400, "ExpiredToken", "check `access_key`", false)
	check(400, "AuthorizationHeaderMalformed", `check `+"`region`"+` (the bucket is in "eu-west-1")`, false)
	check(400, "KeyTooLongError", "KeyTooLongError", true)
	check(503, "SlowDown", "status 503", false)
	check(200, "", "without an ETag", false)
}

func TestOptions(t *testing.T) {
	for target, complaints := range map[string][]string{
		"s3":                                                 {"`bucket` flag is \"\""},
		"s3:?bucket=A_B":                                     {"want the name of a bucket"},
		"s3:https://h/bucket?bucket=abc":                     {"give bucket and prefix by"},
		"s3:?bucket=abc&concurrency=2":                       {"takes one writer"},
		"s3:?bucket=abc&interval=1h":                         {"at most 10m0s"},
		"s3:?bucket=abc&prefix=../x":                         {"`prefix` flag"},
		"s3:?bucket=abc&access_key=a":                        {"`access_key` and `secret_key` belong together"},
		"s3:?bucket=abc&sse=x&compression=lz4":               {"want one of", "zstd, snappy"},
		"s3:?bucket=abc&sse_key=x&bucke=y":                   {"`sse_key` is given without", "did you mean `bucket`?"},
		"s3:?bucket=abc&access_key=a&secret_key=b&profile=c": {"choose one"},
	} {
		sinktest.Complains(t, Kind, target, complaints...)
	}
	t.Setenv("AWS_REGION", "eu-central-1")
	if s := build(t, "s3:?bucket=abc"); s.who != `S3 at s3.eu-central-1.amazonaws.com, bucket "abc"` {
		t.Errorf("reaches %s", s.who)
	}
}

func BenchmarkWrite(b *testing.B) {
	var came atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body) // what is cut off shows as an error of the sink
		came.Add(n)
		w.Header().Set("ETag", `"x"`)
	}))
	b.Cleanup(server.Close)
	suite.Bench(b, "s3:"+server.URL+"?bucket=abc&access_key=a&secret_key=secret", came.Load)
}
