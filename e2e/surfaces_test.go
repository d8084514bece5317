package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/heapstream/heapstream/proto"
)

// received is what a destination was given, by tick: each line or message without its time.
type received struct {
	mu     sync.Mutex
	ticks  map[proto.Tick][]string
	cutter func(text string) (at time.Time, rest string, err error)
	err    error
}

func (r *received) take(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, rest, err := r.cutter(text)
	if err != nil {
		r.err = fmt.Errorf("%w in %q", err, text)
		return
	}
	tick := proto.Tick(at.UnixMilli())
	r.ticks[tick] = append(r.ticks[tick], rest)
}

// cutLine splits a line of InfluxDB.
func cutLine(line string) (at time.Time, rest string, err error) {
	i := strings.LastIndexByte(line, ' ')
	var ns int64
	if _, err := fmt.Sscan(line[i+1:], &ns); err != nil {
		return at, "", err
	}
	return time.Unix(0, ns), line[:i], nil
}

var kafkaTime = regexp.MustCompile(`,"MetricsTimestamp":"([^"]*)"`)

// cutMessage splits a Kafka message of Heapster's.
func cutMessage(text string) (at time.Time, rest string, err error) {
	m := kafkaTime.FindStringSubmatch(text)
	if m == nil {
		return at, "", fmt.Errorf("no time")
	}
	at, err = time.Parse(time.RFC3339, m[1])
	return at, strings.Replace(text, m[0], "", 1), err
}

// uptime and the cluster's set are not compared: the one depends on the moment, the other is left out
// of the recording (as is the set of a namespace that has no pod here).
func notCompared(text string) bool {
	return strings.HasPrefix(text, "uptime,") || strings.HasPrefix(text, `{"MetricsName":"uptime"`) ||
		strings.Contains(text, ",type=cluster ") || strings.Contains(text, `"type":"cluster"`)
}

// matches waits until one tick of what was received is what the oracle has, and stays so until the next
// tick is there, too.
func (r *received) matches(t *testing.T, file string) {
	t.Helper()
	var want []string
	lines := bufio.NewScanner(bytes.NewReader(gunzip(t, file)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if _, rest, err := r.cutter(lines.Text()); err != nil {
			t.Fatal(err)
		} else if !notCompared(rest) {
			want = append(want, rest)
		}
	}
	slices.Sort(want)
	if len(want) < 1000 {
		t.Fatalf("the oracle has %d lines in %s", len(want), file)
	}
	least, at := []string{"nothing was received"}, proto.Tick(0)
	look := func() (same bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err != nil {
			t.Fatal(r.err)
		}
		for tick, texts := range r.ticks {
			d := difference(want, slices.Sorted(slices.Values(slices.DeleteFunc(slices.Clone(texts), notCompared))))
			if at == 0 || len(d) < len(least) || tick == at {
				least, at = d, tick
			}
			if len(d) == 0 {
				return true
			}
		}
		return false
	}
	say := func() string {
		return fmt.Sprintf("%d lines differ at %s, the tick that is nearest:\n%s", len(least), at, strings.Join(least[:min(len(least), 40)], "\n"))
	}
	eventually(t, 2*time.Minute, look, say)
	found := at
	eventually(t, 2*time.Minute, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		for tick := range r.ticks {
			if tick > found {
				return true
			}
		}
		return false
	}, func() string { return "no tick follows" })
	if !look() {
		t.Errorf("something was written twice: %s", say())
	}
}

// difference lists what two sorted lists do not share: - only in want, + only in got.
func difference(want, got []string) (d []string) {
	for len(want) > 0 || len(got) > 0 {
		switch {
		case len(got) == 0 || len(want) > 0 && want[0] < got[0]:
			d, want = append(d, "- "+want[0]), want[1:]
		case len(want) == 0 || got[0] < want[0]:
			d, got = append(d, "+ "+got[0]), got[1:]
		default:
			want, got = want[1:], got[1:]
		}
	}
	return d
}

// receiveInflux is an InfluxDB that keeps the lines.
func receiveInflux(t *testing.T) (url string, r *received) {
	r = &received{ticks: map[proto.Tick][]string{}, cutter: cutLine}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		if q.URL.Path == "/query" {
			_, _ = io.WriteString(w, `{"results":[{"statement_id":0}]}`)
			return
		}
		for line := range strings.Lines(string(body)) {
			r.take(strings.TrimSuffix(line, "\n"))
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(s.Close)
	return s.URL, r
}

// receiveKafka is a Kafka cluster, and a reader of the topic.
func receiveKafka(t *testing.T) (broker string, r *received) {
	t.Helper()
	const topic = "heapster-metrics"
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topic))
	if err != nil {
		t.Fatal(err)
	}
	r = &received{ticks: map[proto.Tick][]string{}, cutter: cutMessage}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(rec *kgo.Record) { r.take(string(rec.Value)) })
		}
	}()
	t.Cleanup(func() { cancel(); <-done; client.Close() })
	return cluster.ListenAddrs()[0], r
}

// TestOracleSurfaces replays what three kubelets answered to Heapster and compares what comes out at the
// far ends, InfluxDB, Kafka and the HTTP API, with what Heapster wrote and answered.
func TestOracleSurfaces(t *testing.T) {
	o := startOracle(t)
	url, lines := receiveInflux(t)
	broker, messages := receiveKafka(t)
	s := startStandalone(t, "--source="+o.source(), "--metric_resolution=5s", "--cluster=oracle",
		"--sink=influxdb:"+url+"?cluster_name=default", "--sink=kafka:?brokers="+broker+"&timeseriestopic=heapster-metrics")
	t.Run("HTTP", s.answersAsHeapster) // first: the second input does not advance, and the Metrics API does not serve it for ever
	t.Run("InfluxDB", func(t *testing.T) { lines.matches(t, "oracle/influxdb.lp.gz") })
	t.Run("Kafka", func(t *testing.T) { messages.matches(t, "oracle/kafka.jsonl.gz") })
}

// exchange is a request to Heapster and its answer.
type exchange struct {
	ID             int
	Method, Path   string
	RequestHeaders map[string]string `json:"request_headers"`
	Status         int
	ContentType    string `json:"content_type"`
	Body           string
}

// wanted are differences that are meant, by the recorded request's id. Where only the status may differ it says so.
var wanted = map[int]struct {
	status int // 0: as recorded
	why    string
}{
	4:   {0, "the text format of Prometheus has parameters of today in its content type, and our names in its body"},
	62:  {0, "a fraction is written as floatValue, too: Heapster declared it, and answered with 0 alone"},
	316: {http.StatusNotFound, "a pod that nobody knows is not found (404); Heapster took it for an error of its own (500)"},
}

// recordedAt is the tick of which the recorded values are compared: that of the second input.
const recordedAt = "2026-11-20T20:26:05Z"

// normal makes texts comparable: times, values, and names of items of lists, whose order was random.
var normal = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`("(?:timestamp|latestTimestamp|creationTimestamp)": ?)"2[^"]*"`), `$1"T"`},
	{regexp.MustCompile(`("value": ?)\d+`), "${1}N"},
	{regexp.MustCompile(`("(?:cpu|memory)": )"\d+(?:m|Ki|Mi|Gi)?"`), `$1"Q"`},
	{regexp.MustCompile(`("name": )"web-[-0-9a-f]*"`), `$1"POD"`},
	{regexp.MustCompile(`("namespace": )"ns-\d\d"`), `$1"NS"`},
	{regexp.MustCompile(`("name": )"c\d"`), `$1"CONTAINER"`},
	// Our own words in the schema: what a metric or label is, not what it is called.
	{regexp.MustCompile(`("description": )"[^"]+"`), `$1"D"`},
	// Heapster's window was a minute at any resolution; ours is the resolution, which is a minute by default.
	{regexp.MustCompile(`("window": )"(?:1m0s|5s)"`), `$1"W"`},
}

// repeated is an element of a list before another one like it: such as the points of a series.
var repeated = []string{
	"\n   {\n    \"timestamp\": \"T\",\n    \"value\": N\n   }", `{"timestamp":"T","value":N}`,
	"\n   {\n    \"metadata\": {\n     \"name\": \"POD\",\n     \"namespace\": \"NS\",\n     \"creationTimestamp\": \"T\"\n    },\n    \"timestamp\": \"T\",\n    \"window\": \"W\",\n    \"containers\": [" +
		"\n     {\n      \"name\": \"CONTAINER\",\n      \"usage\": {\n       \"cpu\": \"Q\",\n       \"memory\": \"Q\"\n      }\n     }," +
		"\n     {\n      \"name\": \"CONTAINER\",\n      \"usage\": {\n       \"cpu\": \"Q\",\n       \"memory\": \"Q\"\n      }\n     }\n    ]\n   }",
}

// shape is a result without its times and values, and with one element where there are several.
func shape(body string) string {
	for _, n := range normal {
		body = n.what.ReplaceAllString(body, n.by)
	}
	for _, p := range repeated {
		for strings.Contains(body, p+","+p) {
			body = strings.ReplaceAll(body, p+","+p, p)
		}
	}
	return body
}

// answersAsHeapster asks again what Heapster was asked, once two ticks are there, and compares status,
// content type and text; of values those that are of the second input.
func (p *pipeline) answersAsHeapster(t *testing.T) {
	const node = "/api/v1/model/nodes/node-0000/metrics/cpu/usage_rate"
	var r modelResult
	for _, path := range []string{"/api/v1/model/metrics/cpu/usage_rate", node} { // the cluster's is the last of a tick
		eventually(t, 2*time.Minute, func() bool { return p.getJSON(t, path, &r) && len(r.Metrics) > 0 }, func() string { return "no rate: " + path })
	}
	second := r.Metrics[0].Timestamp // the first with a rate
	// Times in requests: inside of what was recorded becomes inside of what there is.
	times := strings.NewReplacer(
		"2026-11-20T20:28:09Z", second.Add(-time.Second).Format(time.RFC3339),
		"2026-11-20T20:28:49Z", second.Add(time.Second).Format(time.RFC3339),
		"2026-11-20T21:29:09Z", second.Add(time.Hour).Format(time.RFC3339))
	compared, values := 0, 0
	lines := bufio.NewScanner(bytes.NewReader(gunzip(t, "oracle/http.jsonl.gz")))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e exchange
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), e.Method, p.URL+times.Replace(e.Path), nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range e.RequestHeaders {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		compared++
		got := exchange{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), Body: string(data)}
		switch wrong := e.differs(got); {
		case wrong == "":
			if e.valuesDiffer(t, got.Body, second, &values) {
				break
			}
			if why := wanted[e.ID].why; why != "" {
				t.Errorf("%d: no difference any more, which was wanted since %s", e.ID, why)
			}
		case wanted[e.ID].why == "" || resp.StatusCode != cmp.Or(wanted[e.ID].status, e.Status):
			t.Errorf("%d: %s %s: %s\n got %d %q %.600q\nwant %d %q %.600q", e.ID, e.Method, e.Path, wrong, got.Status, got.ContentType, got.Body, e.Status, e.ContentType, e.Body)
		}
	}
	p.usageIsTheModels(t)
	t.Logf("%d answers and %d values compared", compared, values)
	if compared != 102 || values < 8 {
		t.Errorf("only %d answers and %d values were compared", compared, values)
	}
}

// differs says what is not as Heapster answered it, or "".
func (e exchange) differs(got exchange) string {
	if got.Status != e.Status {
		return "status"
	}
	if got.ContentType != e.ContentType {
		return "content type"
	}
	var have, want []string
	if json.Unmarshal([]byte(e.Body), &want) == nil && want != nil {
		if err := json.Unmarshal([]byte(got.Body), &have); err != nil {
			return err.Error()
		}
		return e.listDiffers(have, want, got.Body)
	}
	if d := podsDiffer(got.Body, e.Body); d != "" {
		return d
	}
	if shape(got.Body) != shape(e.Body) {
		return fmt.Sprintf("text: %.600q, want %.600q", shape(got.Body), shape(e.Body))
	}
	return ""
}

// resourceList is a list of the Metrics API.
type resourceList struct {
	Items []struct {
		Metadata   struct{ Namespace, Name string }
		Containers []struct{ Name string }
	}
}

// podsDiffer compares which objects two lists of the Metrics API have, and that ours is sorted.
func podsDiffer(got, want string) string {
	names := func(body string) (names []string) {
		var l resourceList
		if json.Unmarshal([]byte(body), &l) != nil {
			return nil
		}
		for _, i := range l.Items {
			names = append(names, fmt.Sprint(i.Metadata, i.Containers))
		}
		return names
	}
	have, recorded := names(got), names(want)
	if !slices.IsSorted(have) {
		return fmt.Sprintf("not sorted: %q", have)
	}
	return strings.Join(difference(slices.Sorted(slices.Values(recorded)), have), ", ")
}

// usageIsTheModels compares what the Metrics API says with what the model says, whose values are compared with the
// recorded ones. The recorded answers of the Metrics API are of another input.
func (p *pipeline) usageIsTheModels(t *testing.T) {
	var node struct{ Usage struct{ CPU, Memory string } }
	if !p.getJSON(t, "/apis/metrics/v1alpha1/nodes/node-0000", &node) {
		t.Error("the Metrics API does not answer of node-0000")
		return
	}
	for metric, usage := range map[string]string{"cpu/usage_rate": node.Usage.CPU, "memory/working_set": node.Usage.Memory} {
		var r modelResult
		if !p.getJSON(t, "/api/v1/model/nodes/node-0000/metrics/"+metric, &r) || len(r.Metrics) == 0 {
			t.Errorf("no %s of node-0000", metric)
			continue
		}
		want := resource.NewQuantity(int64(r.Metrics[len(r.Metrics)-1].Value), resource.BinarySI)
		if metric == "cpu/usage_rate" {
			want = resource.NewMilliQuantity(int64(r.Metrics[len(r.Metrics)-1].Value), resource.DecimalSI)
		}
		if usage != want.String() {
			t.Errorf("%s of node-0000: the Metrics API says %s, the model %s", metric, usage, want)
		}
	}
}

// listDiffers compares lists as sets, and that they are written as Heapster wrote them. Names of metrics
// may be more: those that Heapster did not have. Nodes may be fewer: those that were not recorded.
func (e exchange) listDiffers(have, want []string, body string) string {
	text := "[]"
	if len(have) > 0 {
		text = "[\n  \"" + strings.Join(have, "\",\n  \"") + "\"\n ]"
	}
	if body != text {
		return fmt.Sprintf("text, want %q", text)
	}
	path := strings.TrimSuffix(e.Path, "/")
	for _, d := range difference(slices.Sorted(slices.Values(want)), slices.Sorted(slices.Values(have))) {
		name := d[2:]
		switch {
		case d[0] == '-' && strings.HasSuffix(path, "/nodes") && strings.HasPrefix(name, "edge-"):
		case d[0] == '+' && strings.HasSuffix(path, "/metrics") && ours(name, path):
		default:
			return d
		}
	}
	return ""
}

// ours says whether the metric is one that Heapster did not have of what the path names.
func ours(name, path string) bool {
	kind := proto.KindCluster
	for _, p := range []struct {
		part string
		kind proto.Kind
	}{{"/freecontainers/", proto.KindSystemContainer}, {"/containers/", proto.KindContainer}, {"/pods/", proto.KindPod}, {"/namespaces/", proto.KindNamespace}, {"/nodes/", proto.KindNode}} {
		if strings.Contains(path, p.part) {
			kind = p.kind
			break
		}
	}
	m := proto.MetricByName(name)
	return m != nil && m.OursAt(kind)
}

// valuesDiffer compares the value of the second input, where the recording has it.
func (e exchange) valuesDiffer(t *testing.T, body string, second time.Time, values *int) (wrong bool) {
	t.Helper()
	if strings.HasPrefix(e.Path, "/api/v1/model/metrics/") {
		return false // the recorded cluster had more nodes
	}
	results := func(body string) []modelResult {
		var one struct {
			modelResult
			Items []modelResult
		}
		if json.Unmarshal([]byte(body), &one) != nil {
			return nil
		}
		return append(one.Items, one.modelResult)
	}
	at := func(r modelResult, when time.Time) (uint64, bool) {
		for _, m := range r.Metrics {
			if m.Timestamp.Equal(when) {
				return m.Value, true
			}
		}
		return 0, false
	}
	then, err := time.Parse(time.RFC3339, recordedAt)
	if err != nil {
		t.Fatal(err)
	}
	have := results(body)
	for i, r := range results(e.Body) {
		want, ok := at(r, then)
		if !ok || i >= len(have) {
			continue
		}
		if got, ok := at(have[i], second); !ok || got != want {
			t.Errorf("%d: GET %s: %d (%t) at %s, want %d", e.ID, e.Path, got, ok, second, want)
			wrong = true
		}
		*values++
	}
	return wrong
}
