package elasticsearch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// streamName is the data stream of tests.
const streamName = "metrics-kubernetes.heapstream-default"

// streams is an Elasticsearch 9, or an OpenSearch, with data streams: it takes create alone, with an id and a time, and a
// document once.
type streams struct {
	*sinktest.HTTP
	t        *testing.T
	version  string
	template map[string]any
	made     bool // the stream
	mayNot   bool // the user, to make streams
	ids      map[string]bool
	seen     []string
}

func newStreams(t *testing.T, r sinktest.Reach, version string) *streams {
	f := &streams{t: t, version: version, ids: map[string]bool{}}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool { return r.Header.Get("Authorization") == "ApiKey "+sinktest.RightPassword },
		Take:     f.take,
	})
	return f
}

func (f *streams) Target(r sinktest.Reach) string {
	target := "elasticsearch:" + f.URL() + "?data_stream=" + streamName + "&batchsize=20&" + f.Options(r)
	if r.Login {
		target += "&api_key=" + r.Password()
	}
	return target
}

func (f *streams) take(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
	f.seen = append(f.seen, r.Method+" "+r.URL.String())
	says := func(code int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Elastic-Product", "Elasticsearch")
		w.WriteHeader(code)
		fmt.Fprint(w, text)
	}
	templatePath, streamPath := "/_index_template/"+streamName, "/_data_stream/"+streamName
	switch asked := r.Method + " " + r.URL.Path; {
	case asked == "GET /":
		says(200, f.version)
	case f.mayNot && r.URL.Path != "/_bulk":
		says(403, `{"error":{"type":"security_exception","reason":"action is unauthorized"},"status":403}`)
	case asked == "GET "+streamPath && f.made, asked == "GET "+templatePath && f.template != nil:
		says(200, `{}`)
	case asked == "GET "+streamPath:
		says(404, `{"error":{"type":"index_not_found_exception","reason":"no such index"},"status":404}`)
	case asked == "GET "+templatePath:
		says(404, `{"error":{"type":"resource_not_found_exception","reason":"index template matching not found"},"status":404}`)
	case asked == "PUT "+templatePath:
		if err := json.Unmarshal(body, &f.template); err != nil || f.template["data_stream"] == nil || f.template["index_patterns"] == nil || strings.Contains(string(body), "number_of_") {
			f.t.Errorf("Elasticsearch does not take the template %s: %v", body, err)
		}
		says(200, `{"acknowledged":true}`)
	case asked == "PUT "+streamPath && f.template == nil:
		says(400, `{"error":{"type":"illegal_argument_exception","reason":"no matching index template found for data stream"},"status":400}`)
	case asked == "PUT "+streamPath && len(body) == 0:
		f.made = true
		says(200, `{"acknowledged":true}`)
	case asked == "POST /_bulk" && r.Header.Get("Content-Type") == "application/x-ndjson":
		says(200, f.bulk(string(body), m))
	default:
		f.t.Errorf("Elasticsearch does not take %s of %s", asked, r.Header.Get("Content-Type"))
		says(405, `{"error":"no"}`)
	}
}

func (f *streams) bulk(body string, m sinktest.Mood) string {
	lines := strings.Split(strings.TrimSuffix(body, "\n"), "\n")
	var items []string
	for i := 0; i+1 < len(lines); i += 2 {
		var action map[string]struct {
			ID    string `json:"_id"`
			Index string `json:"_index"`
		}
		var document map[string]any
		if err := json.Unmarshal([]byte(lines[i]), &action); err != nil || len(action) != 1 || action["create"].ID == "" || action["create"].Index != streamName {
			f.t.Errorf("a data stream takes no %s: %v", lines[i], err)
		}
		if err := json.Unmarshal([]byte(lines[i+1]), &document); err != nil {
			f.t.Errorf("no document: %s: %v", lines[i+1], err)
		}
		if at, _ := document["@timestamp"].(string); !strings.HasSuffix(at, "Z") {
			f.t.Errorf("a data stream wants a time: %s", lines[i+1])
		}
		item := func(status int, kind string) {
			said := fmt.Sprintf(`{"create":{"_index":".ds-%s-000001","status":%d`, streamName, status)
			if kind != "" {
				said += fmt.Sprintf(`,"error":{"type":%q,"reason":"because"}`, kind)
			}
			items = append(items, said+"}}")
		}
		id := action["create"].ID
		switch {
		case !f.made && !f.mayNot:
			item(404, "index_not_found_exception")
		case m == sinktest.Refusing, m == sinktest.HalfRefuses && (strings.Contains(lines[i+1], `.memory.usage":`) || strings.Contains(lines[i+1], sinktest.RefusedMessage)):
			item(400, "document_parsing_exception")
		case f.ids[id]:
			item(409, "version_conflict_engine_exception")
		default:
			f.ids[id] = true
			f.Store(false, documentName(lines[i+1]))
			item(201, "")
		}
	}
	return fmt.Sprintf(`{"took":1,"errors":true,"items":[%s]}`, strings.Join(items, ","))
}

// documentName is the document itself, since no two are alike.
func documentName(source string) string { return strings.TrimSpace(source) }

func sources(s *elastic, m ...sink.Message) (all []string) {
	s.enc.docs.reset()
	for i := range m {
		s.encode(&m[i], i)
	}
	for i := range s.enc.docs.all {
		_, source, _ := strings.Cut(string(s.enc.docs.bytes(i)), "\n")
		all = append(all, documentName(source))
	}
	return all
}

const elastic9 = `{"name":"instance-0000000000","cluster_name":"c","version":{"number":"9.1.3","build_flavor":"default"},"tagline":"You Know, for Search"}`

var streamSuite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newStreams(t, r, elastic9) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		return sources(build(tb, "elasticsearch:http://h?ver=9&data_stream="+streamName), sink.Message{Rollup: r})
	},
	IsRefused: func(name string) bool { return strings.Contains(name, `.memory.usage":`) },
	LoginHint: "or `api_key`",
}

func TestContractOfDataStreams(t *testing.T) { streamSuite.Run(t) }

var eventSuite = sinktest.Suite{Kind: Kind, Start: streamSuite.Start, EventNames: eventNames, LoginHint: streamSuite.LoginHint}

func TestEventContractOfDataStreams(t *testing.T) { eventSuite.Run(t) }

func eventNames(tb testing.TB, e *proto.Event) []string {
	s := sinktest.NewEvents[*elastic](tb, Kind, "elasticsearch:http://h?ver=9&cluster_name=default&data_stream="+streamName)
	return sources(s, sink.Message{Event: e})
}

// TestDocumentsAreOpenTelemetrys: one for the samples of an entity or a device that have the same attributes.
func TestDocumentsAreOpenTelemetrys(t *testing.T) {
	r := web()
	r.Values.Set(1, proto.NetworkRx.Field(), 7)
	r.Values.Set(1, proto.NetworkTx.Field(), 8)
	r.Values.Set(1, proto.NetworkTxErrors.Field(), 0)
	r.Extras = append(r.Extras, proto.Extra{Entity: 2, Name: "custom/queue", Value: proto.Float(1.5)})
	const at, pod = `{"@timestamp":"2018-01-02T02:24:00Z","k8s.cluster.name":"default",`, `"k8s.namespace.name":"default","k8s.node.name":"n1","k8s.pod.name":"web-1","k8s.pod.uid":"pod-uid"`
	const container = `"container.image.name":"nginx","k8s.container.name":"web",` + pod
	want := []string{
		at + pod + `,"network.io.direction":"receive","k8s.pod.network.io":7}`,
		at + pod + `,"network.io.direction":"transmit","k8s.pod.network.io":8,"k8s.pod.network.errors":0}`,
		at + container + `,"container.cpu.time":1.605,"k8s.container.cpu.request.current":0.01,"k8s.container.restart.count":2}`,
		at + container + `,"heapstream.filesystem.name":"/","container.filesystem.usage":4096,"container.filesystem.capacity":8192}`,
		at + container + `,"container.custom.queue":1.5}`,
	}
	got := sources(build(t, "elasticsearch:http://h?ver=9&data_stream=x"), sink.Message{Rollup: r})
	if d := sinktest.Diff(want, got); d != "" {
		t.Errorf("(- want, + got):\n%s", d)
	}
	got = sources(sinktest.NewEvents[*elastic](t, Kind, "elasticsearch:http://h?ver=9&data_stream=x"), sinktest.EventMessages(sinktest.Event())...)
	want = []string{`{"@timestamp":"2018-01-02T02:24:05Z","k8s.cluster.name":"c","k8s.node.name":"n1","k8s.namespace.name":"default","k8s.pod.name":"web-1","k8s.pod.uid":"pod-uid","k8s.object.kind":"Pod","k8s.object.name":"web-1","k8s.object.uid":"pod-uid","k8s.object.fieldpath":"spec.containers{web}","k8s.object.api_version":"v1","k8s.object.resource_version":"123","k8s.event.reason":"Killing","k8s.event.name":"web-1.150","k8s.event.uid":"ev-uid","k8s.event.source":"kubelet","k8s.event.start_time":"2018-01-02T02:24:05Z","k8s.event.count":1,"severity_text":"Normal","message":"Killing container"}`}
	if d := sinktest.Diff(want, got); d != "" {
		t.Errorf("(- want, + got):\n%s", d)
	}
}

// TestFieldsOfDataStreamsFitTogether: none is a field and an object at once, none comes twice in a document, and each
// metric has its type in the template.
func TestFieldsOfDataStreamsFitTogether(t *testing.T) {
	template := streamTemplate("x")["template"].(object)["mappings"].(object)["properties"].(object)
	seen := map[string]bool{}
	s := build(t, "elasticsearch:http://h?ver=9&extended=true&data_stream=x")
	for _, r := range append(sinktest.Oracle(t, "default"), sinktest.Node("n", 3, 2, 0)) {
		for _, source := range sources(s, sink.Message{Rollup: r}) {
			var document map[string]any
			if err := json.Unmarshal([]byte(source), &document); err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(source, `":`); n != len(document) {
				t.Errorf("a field comes twice, or a value has one: %s", source)
			}
			for name, value := range document {
				seen[name] = true
				if _, number := value.(float64); number && template[name] == nil && !strings.Contains(name, ".custom.") && !strings.Contains(name, "extended_resource") {
					t.Errorf("%s has no type", name)
				}
			}
		}
	}
	for name := range template {
		seen[name] = true
	}
	for name := range seen {
		for part := range strings.SplitSeq(name, ".") {
			if before, _, ok := strings.Cut(name, "."+part); ok && seen[before] {
				t.Errorf("%s and %s cannot both be", before, name)
			}
		}
	}
	if len(seen) < 200 {
		t.Fatalf("only %d fields", len(seen))
	}
}

// TestDataStreamsAreMadeOnce: by an Elasticsearch of the operator's, a serverless one and an OpenSearch.
func TestDataStreamsAreMadeOnce(t *testing.T) {
	const stream, template = "/_data_stream/" + streamName, "/_index_template/" + streamName
	for name, c := range map[string]struct {
		version string
		setup   func(*streams)
		asked   string
	}{
		"elasticsearch": {elastic9, func(*streams) {}, "GET /, GET " + stream + ", GET " + template + ", PUT " + template + ", PUT " + stream},
		"serverless": {`{"version":{"number":"8.11.0","build_flavor":"serverless"}}`, func(*streams) {},
			"GET /, GET " + stream + ", GET " + template + ", PUT " + template + ", PUT " + stream},
		"opensearch, template of the operator": {`{"version":{"distribution":"opensearch","number":"3.1.0"}}`, func(f *streams) { f.template = map[string]any{} },
			"GET /, GET " + stream + ", GET " + template + ", PUT " + stream},
		"there already":   {elastic9, func(f *streams) { f.made = true }, "GET /, GET " + stream},
		"may not make it": {elastic9, func(f *streams) { f.mayNot = true }, "GET /, GET " + stream},
	} {
		t.Run(name, func(t *testing.T) {
			f := newStreams(t, sinktest.Reach{}, c.version)
			c.setup(f)
			s := build(t, f.Target(sinktest.Reach{}))
			defer s.Close()
			for n := range 2 {
				if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, n))); err != nil {
					t.Fatal(err)
				}
			}
			asked := slices.DeleteFunc(f.seen, func(a string) bool { return a == "POST /_bulk" })
			if got := strings.Join(asked, ", "); got != c.asked {
				t.Errorf("asked %s, want %s", got, c.asked)
			}
		})
	}
	f := newStreams(t, sinktest.Reach{}, `{"version":{"number":"6.8.0"}}`)
	s := build(t, f.Target(sinktest.Reach{}))
	defer s.Close()
	if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err == nil || sink.IsPermanent(err) || !strings.Contains(err.Error(), "`data_stream` needs 7.9") {
		t.Fatalf("got %v", err)
	}
}

// TestDataStreamsTakeWhatIsLeft: of a bulk of which one is there, one cannot be taken now and one never, the second alone
// is sent again; and a cluster that is overloaded as a whole says for how long.
func TestDataStreamsTakeWhatIsLeft(t *testing.T) {
	bulks := 0
	h := sinktest.StartHTTP(t, sinktest.Reach{}, &sinktest.HTTP{Take: func(w http.ResponseWriter, r *http.Request, body []byte, _ sinktest.Mood) {
		if r.URL.Path != "/_bulk" {
			fmt.Fprint(w, `{"acknowledged":true}`)
			return
		}
		switch bulks++; bulks {
		case 1:
			fmt.Fprint(w, `{"errors":true,"items":[{"create":{"status":409,"error":{"type":"version_conflict_engine_exception","reason":"document already exists"}}},{"create":{"status":429,"error":{"type":"es_rejected_execution_exception","reason":"queue full"}}}]}`)
		case 2:
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"error":{"type":"circuit_breaking_exception","reason":"too much"},"status":429}`)
		default:
			if n := strings.Count(string(body), "\n") / 2; n != 1 {
				t.Errorf("%d documents are sent again, want 1", n)
			}
			fmt.Fprint(w, `{"errors":true,"items":[{"create":{"status":400,"error":{"type":"document_parsing_exception","reason":"bad"}}}]}`)
		}
	}})
	s := build(t, "elasticsearch:"+h.URL()+"?ver=8&data_stream=x")
	defer s.Close()
	batch := messages(web())
	if err := s.Write(t.Context(), batch); err == nil || sink.IsPermanent(err) || !strings.Contains(err.Error(), "queue full") {
		t.Fatalf("got %v, want a passing failure", err)
	}
	if err := s.Write(t.Context(), batch); sink.RetryAfterOf(err) != 5*time.Second {
		t.Fatalf("got %v, want to wait 5 s", err)
	}
	var p *sink.Partial
	if err := s.Write(t.Context(), batch); !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 1 {
		t.Fatalf("got %v, want one refused document", err)
	}
}

func TestAPIKeysAreReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong-password")
	f := newStreams(t, sinktest.Reach{Login: true}, elastic9)
	s := build(t, f.Target(sinktest.Reach{})+"&api_key_file="+file)
	defer s.Close()
	if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err == nil || sink.IsPermanent(err) {
		t.Fatalf("got %v, want a passing error", err)
	}
	write(sinktest.RightPassword)
	if err := s.Write(t.Context(), messages(sinktest.Node("n", 0, 0, 0))); err != nil {
		t.Fatal(err)
	}
}

func TestOptionsOfDataStreams(t *testing.T) {
	sinktest.Complains(t, Kind, "elasticsearch:http://h?data_stream=Metrics&index=x", "`data_stream` flag is \"Metrics\"", "choose one")
	sinktest.Complains(t, Kind, "elasticsearch:http://h?data_stream=x&ver=6", "`data_stream` needs Elasticsearch 7.9")
	sinktest.Complains(t, Kind, "elasticsearch:http://h?esUserName=a&esUserSecret=b&api_key=c", "`esUserName` and `api_key` are both given")
}

func BenchmarkWriteDataStream(b *testing.B) {
	taken := 0
	server := sinktest.StartHTTP(b, sinktest.Reach{}, &sinktest.HTTP{Take: func(w http.ResponseWriter, r *http.Request, body []byte, _ sinktest.Mood) {
		taken += len(body)
		if r.URL.Path == "/_bulk" {
			items := strings.Repeat(`{"create":{"status":201}},`, strings.Count(string(body), "\n")/2)
			fmt.Fprintf(w, `{"errors":false,"items":[%s]}`, strings.TrimSuffix(items, ","))
			return
		}
		fmt.Fprint(w, `{"acknowledged":true}`)
	}})
	bySample := streamSuite
	bySample.Names = func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "elasticsearch:http://h?ver=8&data_stream=x")
		sources(s, sink.Message{Rollup: r})
		for _, d := range s.enc.docs.all {
			names = append(names, make([]string, d.samples)...)
		}
		return names
	}
	bySample.Bench(b, "elasticsearch:"+server.URL()+"?ver=8&data_stream=x", func() int64 { return int64(taken) })
}
