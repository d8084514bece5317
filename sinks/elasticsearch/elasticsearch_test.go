package elasticsearch

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var update = flag.Bool("update", false, "renew golden files")

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r, "8.15.0") },
	// A name is a document.
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "elasticsearch:http://h?ver=8")
		for _, d := range encoded(s, r) {
			action, source, _ := strings.Cut(d, "\n")
			names = append(names, action+familyIn(source))
		}
		return names
	},
	IsRefused: func(name string) bool { return strings.HasSuffix(name, "Memory") },
	LoginHint: "check `esUserName`",
}

func TestMain(m *testing.M) { sinktest.Main(m, []*sinktest.Suite{&suite, &eventSuite}) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	taken := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body) // what is cut off shows as an error of the sink
		if r.URL.Path == "/_bulk" {
			items := strings.Repeat(`{"index":{"status":201}},`, bytes.Count(body.Bytes(), []byte("\n"))/2)
			fmt.Fprintf(w, `{"errors":false,"items":[%s]}`, strings.TrimSuffix(items, ","))
			return
		}
		fmt.Fprint(w, `{"acknowledged":true}`)
	})
	server := httptest.NewServer(taken)
	b.Cleanup(server.Close)
	bySample := suite
	bySample.Names = func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "elasticsearch:http://h?ver=8")
		encoded(s, r)
		for _, d := range s.enc.docs.all {
			names = append(names, make([]string, d.samples)...)
		}
		return names
	}
	bySample.Bench(b, "elasticsearch:"+server.URL+"?ver=8", nil)
}

func build(tb testing.TB, target string) *elastic {
	tb.Helper()
	t, err := sink.ParseTarget(target)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := New(t, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		tb.Fatal(err)
	}
	return s.(*elastic)
}

func encoded(s *elastic, rollups ...*proto.Rollup) (docs []string) {
	s.enc.docs.reset()
	for i, r := range rollups {
		s.enc.encode(r, i)
	}
	for i := range s.enc.docs.all {
		docs = append(docs, string(s.enc.docs.bytes(i)))
	}
	return docs
}

// familyIn is the family of a document by its time.
func familyIn(source string) string {
	name, _, _ := strings.Cut(source, `MetricsTimestamp"`)
	return strings.TrimPrefix(name, `{"`)
}

// fake is an Elasticsearch of a version. It takes actions on indices that were created, with ids, and types where
// its version has them.
type fake struct {
	*sinktest.HTTP

	version string
	mu      sync.Mutex
	indices map[string]bool
	seen    []string // requests
}

func newFake(t *testing.T, r sinktest.Reach, version string) *fake {
	f := &fake{version: version, indices: map[string]bool{}}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "heapster" && password == sinktest.RightPassword
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) { f.take(t, w, r, body, m) },
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	target := "elasticsearch:" + f.URL() + "?batchsize=20&" + f.Options(r)
	if r.Login {
		target += "&esUserName=heapster&esUserSecret=" + r.Password()
	}
	return target
}

func (f *fake) take(t *testing.T, w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, r.Method+" "+r.URL.String())
	index := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case r.Method == http.MethodGet && index == "":
		fmt.Fprintf(w, `{"name":"es","version":{"number":%q,"lucene_version":"9"},"tagline":"You Know, for Search"}`, f.version)
	case r.Method == http.MethodHead && !f.indices[index]:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodHead:
	case r.Method == http.MethodPut && !strings.HasPrefix(index, "_"):
		var created struct {
			Mappings map[string]json.RawMessage `json:"mappings"`
		}
		if err := json.Unmarshal(body, &created); err != nil || len(created.Mappings) == 0 {
			t.Errorf("Elasticsearch does not take the mapping %s: %v", body, err)
		}
		_, isTypeless := created.Mappings["properties"]
		if isTypeless != (f.version >= "7") {
			t.Errorf("Elasticsearch %s does not take the mapping %s", f.version, body)
		}
		f.indices[index] = true
		fmt.Fprintf(w, `{"acknowledged":true,"index":%q}`, index)
	case r.Method == http.MethodPost && index == "_aliases":
		if n := bytes.Count(body, []byte(`,"alias":"heapster-`)); n != 6 {
			t.Errorf("%d aliases in %s, want 6", n, body)
		}
		fmt.Fprint(w, `{"acknowledged":true}`)
	case r.Method == http.MethodPost && index == "_bulk" && r.Header.Get("Content-Type") == "application/x-ndjson":
		f.bulk(t, w, string(body), m)
	default:
		t.Errorf("Elasticsearch does not take %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (f *fake) bulk(t *testing.T, w http.ResponseWriter, body string, m sinktest.Mood) {
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	var items []string
	for i := 0; i+1 < len(lines); i += 2 {
		var action struct {
			Index struct {
				ID    string `json:"_id"`
				Index string `json:"_index"`
				Type  string `json:"_type"`
			} `json:"index"`
		}
		if err := json.Unmarshal([]byte(lines[i]), &action); err != nil || action.Index.ID == "" || !json.Valid([]byte(lines[i+1])) {
			t.Errorf("Elasticsearch does not take %s %s: %v", lines[i], lines[i+1], err)
		}
		switch {
		case !f.indices[action.Index.Index]:
			items = append(items, `{"index":{"status":404,"error":{"type":"index_not_found_exception","reason":"no such index"}}}`)
		case (action.Index.Type != "") != (f.version < "7"):
			t.Errorf("Elasticsearch %s does not take the type %q", f.version, action.Index.Type)
		case m == sinktest.Refusing, m == sinktest.HalfRefuses && strings.Contains(lines[i+1], sinktest.Refused+`":`):
			items = append(items, `{"index":{"status":400,"error":{"type":"mapper_parsing_exception","reason":"failed to parse","caused_by":{"reason":"not a double"}}}}`)
		default:
			f.Store(true, lines[i]+familyIn(lines[i+1]))
			items = append(items, `{"index":{"status":201}}`)
		}
	}
	fmt.Fprintf(w, `{"took":1,"errors":true,"items":[%s]}`, strings.Join(items, ","))
}

// web is the specification's example.
func web() *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1"})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "default", UID: "pod-uid", Labels: []proto.Label{{Key: "app", Value: "web"}, {Key: "tier", Value: "fe"}}})
	row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web", Image: "nginx"})
	r.Values.Set(row, proto.CPUUsage.Field(), 1605000000)
	r.Values.Set(row, proto.CPURequest.Field(), 10)
	r.Values.Set(row, proto.RestartCount.Field(), 2)
	d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.DeviceValues.Set(d, proto.FilesystemLimit.Field(), 8192)
	r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "default", UID: "ns-uid"})
	return r
}

func TestDocumentsAreHeapsters(t *testing.T) {
	const tags = `"MetricsTags":{"cluster_name":"default","container_base_image":"nginx","container_name":"web","host_id":"","hostname":"n1","labels":"app:web,tier:fe","namespace_id":"ns-uid","namespace_name":"default","nodename":"n1","pod_id":"pod-uid","pod_name":"web-1",`
	want := []string{
		`{"CpuMetricsTimestamp":"2018-01-02T02:24:00Z","Metrics":{"cpu/request":{"value":10},"cpu/usage":{"value":1605000000}},` + tags + `"type":"pod_container"}}`,
		`{"GeneralMetricsTimestamp":"2018-01-02T02:24:00Z",` + tags + `"type":"pod_container"},"MetricsName":"restart_count","MetricsValue":{"value":2}}`,
		`{"FilesystemMetricsTimestamp":"2018-01-02T02:24:00Z","Metrics":{"filesystem/limit":{"value":8192},"filesystem/usage":{"value":4096}},` + tags + `"resource_id":"/","type":"pod_container"}}`,
	}
	types := []string{"cpu", "general", "filesystem"}
	for ver, kind := range map[string]string{"2": "%s", "5": "%s", "6": "_doc", "7": "", "8": ""} {
		got := encoded(build(t, "elasticsearch:http://h?ver="+ver), web())
		if len(got) != len(want) {
			t.Fatalf("%d documents, want %d", len(got), len(want))
		}
		for i, d := range got {
			action, source, _ := strings.Cut(d, "\n")
			if source != want[i]+"\n" {
				t.Errorf("version %s: got\n%swant\n%s", ver, source, want[i])
			}
			typed := kind
			if strings.Contains(kind, "%") {
				typed = types[i]
			}
			if typed != "" {
				typed = `,"_type":"` + typed + `"`
			}
			if !strings.HasPrefix(action, `{"index":{"_id":"`) || action[37:] != `","_index":"heapster-2018.01.02"`+typed+"}}" {
				t.Errorf("version %s: action %s", ver, action)
			}
		}
	}
}

func TestIdsTellApartWhatIsNotTheSame(t *testing.T) {
	seen := map[string]string{}
	note := func(s *elastic, r *proto.Rollup) (fresh int) {
		for _, d := range encoded(s, r) {
			id := d[:37]
			if old, ok := seen[id]; ok && old != d {
				t.Fatalf("one id for\n%sand\n%s", old, d)
			} else if !ok {
				fresh++
			}
			seen[id] = d
		}
		return fresh
	}
	s := build(t, "elasticsearch:http://h?ver=8")
	if n := note(s, web()); n != 3 {
		t.Fatalf("%d new ids, want 3", n)
	}
	if n := note(build(t, "elasticsearch:http://h?ver=8&timeout=3s"), web()); n != 0 {
		t.Fatalf("%d new ids of the same rollup, want none", n)
	}
	other := web()
	other.Tick++
	if n := note(s, other); n != 3 {
		t.Fatalf("%d new ids at another time, want 3", n)
	}
	other = web()
	other.Cluster = "d"
	if n := note(s, other); n != 3 {
		t.Fatalf("%d new ids of another cluster, want 3", n)
	}
	for _, r := range sinktest.Oracle(t, "default") {
		note(s, r)
	}
}

func TestMappings(t *testing.T) {
	for types, file := range map[docType]string{typePerFamily: "mapping-5.golden", typeDoc: "mapping-6.golden", typeless: "mapping-7.golden"} {
		got, err := json.MarshalIndent(mapping(types), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		file = "testdata/" + file
		if *update {
			if err := os.WriteFile(file, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs; renew it with -update and look at the difference", file)
		}
	}
}

func messages(rollups ...*proto.Rollup) (batch []sink.Message) {
	for i, r := range rollups {
		batch = append(batch, sink.Message{Rollup: r, ID: fmt.Sprint(i)})
	}
	return batch
}

func TestEveryVersionIsSpokenTo(t *testing.T) {
	for _, version := range []string{"5.6.16", "6.8.0", "7.17.0", "8.15.0"} {
		f := newFake(t, sinktest.Reach{}, version)
		s := build(t, f.Target(sinktest.Reach{}))
		for tick := range 2 { // the second asks for nothing but the bulk
			if err := s.Write(t.Context(), messages(sinktest.Node("n", 1, 1, tick))); err != nil {
				t.Fatalf("version %s: %v", version, err)
			}
		}
		asked := strings.Join(f.seen, ", ")
		asked = asked[:strings.Index(asked, "POST /_bulk")] + strings.ReplaceAll(asked[strings.Index(asked, "POST /_bulk"):], "POST /_bulk", "")
		if want := "GET /, HEAD /heapster-2026.11.20, PUT /heapster-2026.11.20, POST /_aliases, "; strings.TrimRight(asked, ", ") != strings.TrimRight(want, ", ") {
			t.Errorf("version %s was asked %q, want %q and bulks alone", version, asked, want)
		}
		_ = s.Close()
	}
}

// TestOnlyWhatFailedIsSentAgain lets a bulk succeed in parts: one document cannot be taken now, one never.
func TestOnlyWhatFailedIsSentAgain(t *testing.T) {
	var bulks []string
	answers := []string{
		`{"errors":true,"items":[{"index":{"status":201}},{"index":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue full"}}},{"index":{"status":400,"error":{"type":"mapper_parsing_exception","reason":"bad"}}}]}`,
		`{"errors":false,"items":[{"index":{"status":200}}]}`,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_bulk" {
			fmt.Fprint(w, `{"acknowledged":true}`)
			return
		}
		var body bytes.Buffer
		if _, err := body.ReadFrom(r.Body); err != nil {
			t.Error(err)
		}
		bulks = append(bulks, body.String())
		fmt.Fprint(w, answers[len(bulks)-1])
	}))
	defer server.Close()
	s := build(t, "elasticsearch:"+server.URL+"?ver=8")
	defer s.Close()
	batch := messages(web())
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) || !strings.Contains(err.Error(), "queue full") {
		t.Fatalf("got %v, want a passing failure", err)
	}
	err := s.Write(t.Context(), batch)
	var p *sink.Partial
	if !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 1 || p.Refused[0].Samples != 2 || !strings.Contains(p.Refused[0].Reason, "refused by Elasticsearch: mapper_parsing_exception: bad") {
		t.Fatalf("got %v, want one refused document", err)
	}
	if n := strings.Count(bulks[1], "\n") / 2; n != 1 || !strings.Contains(bulks[1], "restart_count") {
		t.Fatalf("%d documents are sent again, want the one that failed: %s", n, bulks[1])
	}
}

func TestUserThatMayNotCreateWritesAnyway(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		if r.URL.Path != "/_bulk" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"error":{"type":"security_exception","reason":"action is unauthorized"}}`)
			return
		}
		fmt.Fprint(w, `{"items":[{"index":{"status":201}},{"index":{"status":201}},{"index":{"status":201}}]}`)
	}))
	defer server.Close()
	s := build(t, "elasticsearch:"+server.URL+"?ver=8")
	defer s.Close()
	for range 2 {
		if err := s.Write(t.Context(), messages(web())); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(asked, ", "); got != "HEAD /heapster-2018.01.02, POST /_bulk, POST /_bulk" {
		t.Fatalf("asked %s", got)
	}
}

func TestTheNextNodeIsTaken(t *testing.T) {
	f := newFake(t, sinktest.Reach{}, "8.0.0")
	s := build(t, "elasticsearch:?nodes=http://"+bustest.FreeAddr(t)+"&nodes="+f.URL())
	defer s.Close()
	if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err == nil {
		t.Fatal("nobody listens at the first node")
	}
	if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsAreSignedForAWS(t *testing.T) {
	var got http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		fmt.Fprint(w, `{"version":{"number":"7.10.2"}}`)
	}))
	defer server.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_KEY", "secret")
	sinktest.Complains(t, Kind, "elasticsearch:http://h", "no AWS_REGION")
	t.Setenv("AWS_REGION", "eu-west-1")
	s := build(t, "elasticsearch:"+server.URL)
	defer s.Close()
	if err := s.detect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if auth := got.Get("Authorization"); !strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/") || !strings.Contains(auth, "/eu-west-1/es/aws4_request") {
		t.Errorf("Authorization %q", auth)
	}
	t.Setenv("AWS_SECRET_KEY", "")
	sinktest.Complains(t, Kind, "elasticsearch:http://h", "one of AWS_ACCESS_KEY_ID")
}

func TestOptions(t *testing.T) {
	sinktest.Complains(t, Kind, "elasticsearch", "There is no node assigned for connecting ES cluster")
	sinktest.Complains(t, Kind, "elasticsearch:h:9200", "There is no node assigned")
	sinktest.Complains(t, Kind, "elasticsearch:?nodes=h:1&index=Heap%20ster", "no http://host:port", "`index` flag")
	sinktest.Complains(t, Kind, "elasticsearch:http://h?ver=4&esUserName=x", "`ver` flag is \"4\"", "belong together")
	sinktest.Complains(t, Kind, "elasticsearch:http://h?ver=2&pipeline=x&idx=y", "`pipeline` needs Elasticsearch 5", "option `idx` is unknown: did you mean `index`?")
	said := sinktest.Warns(t, Kind, "elasticsearch:http://h?sniff=false&maxRetries=3&healthCheck=true&startupHealthcheckTimeout=5&bulkWorkers=2")
	for _, want := range []string{"sniff", "maxRetries", "healthCheck", "startupHealthcheckTimeout", "bulkWorkers"} {
		if !strings.Contains(said, "option `"+want+"` means nothing any more") {
			t.Errorf("no warning of %s", want)
		}
	}
}
