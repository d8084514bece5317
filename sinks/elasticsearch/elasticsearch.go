// Package elasticsearch writes rollups, and Kubernetes events, to Elasticsearch 2 and later, and to OpenSearch.
//
//	elasticsearch:http://host:9200[?index=heapster]
//
// Documents are Heapster's: all metrics of a family (cpu, filesystem, memory, network) with equal tags are one,
// any other metric is one by itself. They go to an index for each day, <index>-YYYY.MM.DD, and are found by the
// aliases <index>-cpu and so on. Up to version 5 each family is a type, as Heapster had it; from 6 on, which
// knows no such types, all are in one mapping and the aliases filter by the name of the time's field.
//
// Events are a document each, as eventer wrote them, in the index of the day on which they were seen last; up to
// version 5 of the type events, and found by the alias <index>-events.
//
// With `data_stream=NAME` documents go to a data stream instead (Elasticsearch 7.9 and later, serverless too, and
// OpenSearch): flat, with @timestamp and OpenTelemetry's names from the catalogue (proto), one for all samples of an entity,
// or of a device, that have the same attributes. Metrics and events want streams of their own, such as
// data_stream=metrics-kubernetes.heapstream-default and logs-kubernetes.events-default. The stream and an index
// template of its name are made where they are not there; how long is kept, shards and copies are left to the operator, who
// may make the template before. It is no time series data stream (TSDS): those take nothing that is older than two hours,
// and OpenSearch has none. A document that is there already answers 409, which is success.
//
// The version is asked for unless `ver` tells it. `nodes` (repeatable) names several addresses: where one does
// not answer, the next is taken. esUserName and esUserSecret log in, or `api_key` or `api_key_file` (the encoded form; the file is read anew at each write); requests are signed for AWS where
// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_ACCESS_KEY, AWS_SECRET_KEY) are in the environment, with
// the region from AWS_REGION, AWS_DEFAULT_REGION or the host's name. `pipeline` names an ingest pipeline. A
// request has at most `batchsize` (1000) documents and 2 MiB.
//
// An index is looked for once; what Heapster asked before every document is asked once a day.
//
// Guarantee: exactly once, by overwriting: a document's id is made of cluster, time, metric and tags, or of
// cluster, UID and version of an event: each of its states is kept. In a data stream the first of an id stays; ids are
// those of one backing index, so what is in doubt while the stream rolls over may come twice. Documents that Elasticsearch refuses for good are told apart by its answer; those it could not take at the moment are
// sent again without the others.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package elasticsearch

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink elasticsearch.
var Kind = sink.Kind{Key: "elasticsearch", Title: "ElasticSearch Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"nodes", "index", "data_stream"}, New: New, NewEvents: NewEvents}

// maxBulk is how many bytes a request has at most, as Heapster's; a larger document goes alone.
const maxBulk = 2 << 20

// elastic is one Elasticsearch as seen by the worker of one cluster.
type elastic struct {
	nodes  []string // base addresses
	node   int      // the one in use
	header http.Header
	client *post.Client
	batch  int    // documents a request
	bulk   string // path and query
	log    *slog.Logger

	encode   func(m *sink.Message, i int)
	enc      encoder
	stream   string                 // a data stream, which takes the place of indices
	apiKey   func() (string, error) // "" for none
	known    bool                   // the version
	old      bool                   // before 5: no pipelines
	pipeline string
	ensured  map[string]bool // indices that are there
	progress sink.Progress
	body     []byte
}

// indexName is what Elasticsearch takes for a part of an index' name.
var indexName = regexp.MustCompile(`^[^A-Z\\/*?"<>| ,#:_+.-][^A-Z\\/*?"<>| ,#:]*$`)

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := read(t, o, d, common.ClusterName)
	s.enc.view = common.View
	s.encode = func(m *sink.Message, i int) { s.enc.encode(m.Rollup, i) }
	if s.stream != "" {
		flat := newStreamEncoder(common.View, s.stream, common.ClusterName, &s.enc.docs)
		s.encode = func(m *sink.Message, i int) { flat.encode(m.Rollup, i) }
	}
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events, which are those of New.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s := read(t, o, d, common.ClusterName)
	event := s.enc.event
	if s.stream != "" {
		event = newStreamEncoder(sink.View{}, s.stream, common.ClusterName, &s.enc.docs).event
	}
	s.encode = func(m *sink.Message, i int) {
		if common.Passes(m.Event) {
			event(m.Event, i)
		}
	}
	return o.Made(s, d.Log)
}

// read reads where to write to, and as whom.
func read(t sink.Target, o *sink.Options, d sink.Deps, cluster string) *elastic {
	s := &elastic{
		batch: o.BatchSize(1000, 1e5), log: d.Log, ensured: map[string]bool{}, pipeline: o.String("pipeline", ""),
		header: http.Header{"User-Agent": {"heapstream/" + d.Version}},
	}
	s.enc = encoder{index: o.String("index", "heapster"), cluster: []proto.Label{{Key: proto.LabelClusterName, Value: cluster}}}
	if !indexName.MatchString(s.enc.index) || len(s.enc.index) > 200 {
		o.Complain("`index` flag is %q: want lower case, and none of \\ / * ? \" < > | space , # :", s.enc.index)
	}
	if s.stream = o.String("data_stream", ""); s.stream != "" {
		if !indexName.MatchString(s.stream) || len(s.stream) > 200 {
			o.Complain("`data_stream` flag is %q: want lower case, and none of \\ / * ? \" < > | space , # :", s.stream)
		}
		if o.Given("index") {
			o.Complain("`index` and `data_stream` are both given: choose one")
		}
	}
	nodes := o.All("nodes")
	if len(nodes) == 0 && t.URL.Scheme != "" && t.URL.Host != "" {
		nodes = []string{(&url.URL{Scheme: t.URL.Scheme, Host: t.URL.Host, Path: t.URL.Path}).String()}
	}
	if len(nodes) == 0 {
		o.Complain("There is no node assigned for connecting ES cluster: give elasticsearch:http://host:9200, or nodes=http://host:9200")
	}
	for _, n := range nodes {
		u, err := url.Parse(n)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			o.Complain("`nodes` has an address that is no http://host:port or https://host:port")
			continue
		}
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		s.nodes = append(s.nodes, strings.TrimSuffix(u.String(), "/"))
	}
	user, secret := o.String("esUserName", ""), o.Secret("esUserSecret", "")
	switch {
	case (user == "") != (secret == ""):
		o.Complain("`esUserName` and `esUserSecret` belong together")
	case user != "":
		s.header.Set("Authorization", post.Basic(user, secret))
	}
	if s.apiKey = o.Fresh("api_key"); user != "" && (o.Given("api_key") || o.Given("api_key_file")) {
		o.Complain("`esUserName` and `api_key` are both given: choose one")
	}
	if ver := o.Choice("ver", "auto", "2", "5", "6", "7", "8", "9"); ver != "auto" {
		major, err := strconv.Atoi(ver)
		if err != nil {
			o.Complain("Unsupported ElasticSearch Client Version %s", ver)
		}
		s.setVersion(major)
		if major < 7 && s.stream != "" {
			o.Complain("`data_stream` needs Elasticsearch 7.9 or later, and `ver` is %s", ver)
		}
		if s.old && s.pipeline != "" {
			o.Complain("`pipeline` needs Elasticsearch 5 or later, and `ver` is %s", ver)
		}
	}
	o.Meaningless("maxRetries", "a write is tried again for as long as it takes")
	o.Meaningless("healthCheck", "a node that does not answer is found out by writing to it")
	o.Meaningless("startupHealthcheckTimeout", "nothing waits for Elasticsearch at start")
	o.Meaningless("sniff", "name the nodes by `nodes`")
	o.Meaningless("bulkWorkers", "say concurrency=N to write N requests at once")
	client := o.HTTP()
	if err := signed(client, strings.Join(s.nodes, " "), os.Getenv); err != nil {
		o.Complain("%w", err)
	}
	s.client = post.New("Elasticsearch at "+hosts(s.nodes), client)
	s.bulk = "/_bulk"
	if s.pipeline != "" {
		s.bulk += "?" + url.Values{"pipeline": {s.pipeline}}.Encode()
	}
	return s
}

// hosts are addresses without what goes without saying.
func hosts(nodes []string) string {
	var all []string
	for _, n := range nodes {
		if _, host, ok := strings.Cut(n, "://"); ok {
			all = append(all, host)
		}
	}
	return strings.Join(all, ", ")
}

// Close drops idle connections.
func (s *elastic) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *elastic) Write(ctx context.Context, batch []sink.Message) error {
	if !s.known {
		if err := s.detect(ctx); err != nil {
			return err
		}
	}
	s.enc.docs.reset()
	for i := range batch {
		s.encode(&batch[i], i)
	}
	all := s.enc.docs.all
	s.progress.Begin(batch, len(all))
	for i := range all {
		if i > 0 && all[i].index == all[i-1].index {
			continue
		}
		if err := s.ensure(ctx, all[i].index); err != nil {
			return s.progress.End(err)
		}
	}
	var open []int
	size := 0
	for i := range all {
		if s.progress.Settled(i) {
			continue
		}
		more := len(s.enc.docs.bytes(i))
		if len(open) == s.batch || len(open) > 0 && size+more > maxBulk {
			if err := s.send(ctx, open); err != nil {
				return s.progress.End(err)
			}
			open, size = open[:0], 0
		}
		open, size = append(open, i), size+more
	}
	if len(open) > 0 {
		return s.progress.End(s.send(ctx, open))
	}
	return s.progress.End(nil)
}

// result is what Elasticsearch says of one document, under the name of its action.
type result struct {
	Index  outcome `json:"index"`
	Create outcome `json:"create"`
}

type outcome struct {
	Status int `json:"status"`
	Error  any `json:"error"` // an object; a text before 2.0
}

// send writes some documents and settles those that Elasticsearch wrote or refused. Its error is the first
// reason why others are not.
func (s *elastic) send(ctx context.Context, open []int) error {
	s.body = s.body[:0]
	for _, i := range open {
		s.body = append(s.body, s.enc.docs.bytes(i)...)
	}
	a, err := s.do(ctx, http.MethodPost, s.bulk, s.body)
	if err != nil {
		return err
	}
	switch {
	case a.Code == http.StatusBadRequest && errorOf(a.Body) != "", a.Code == http.StatusRequestEntityTooLarge:
		return sink.Permanent(s.failure("write to", a))
	case !a.OK():
		return s.failure("write to", a)
	}
	var said struct {
		Errors bool     `json:"errors"`
		Items  []result `json:"items"`
	}
	if err := json.Unmarshal(a.Body, &said); err != nil || len(said.Items) != len(open) {
		return s.client.Nonsense("write to", a)
	}
	var failed error
	for n, i := range open {
		item := &said.Items[n].Index
		if s.stream != "" {
			item = &said.Items[n].Create
		}
		reason := ""
		if item.Status < 200 || item.Status > 299 {
			reason = reasonOf(item.Error)
		}
		switch {
		case reason == "" && item.Status >= 200 && item.Status <= 299:
			s.progress.Settle(i)
		case item.Status == http.StatusConflict && s.stream != "":
			s.progress.Settle(i) // it is there
		case item.Status == http.StatusBadRequest || item.Status == http.StatusRequestEntityTooLarge:
			d := &s.enc.docs.all[i]
			s.progress.Refuse(i, sink.Refused{Message: d.message, Samples: d.samples, Part: string(s.enc.docs.bytes(i)), Reason: "refused by Elasticsearch: " + reason})
		default:
			if item.Status == http.StatusNotFound { // the index is gone, and may not be made by writing to it
				delete(s.ensured, s.enc.docs.all[i].index)
			}
			if failed == nil {
				failed = fmt.Errorf("write to %s: it does not take all documents: %s (status %d)", s.client.Who(), cmp.Or(reason, "no reason"), item.Status)
			}
		}
	}
	return failed
}

// do asks the node in use; where it does not answer, the next request goes to the next.
func (s *elastic) do(ctx context.Context, method, path string, body []byte) (post.Answer, error) {
	header := s.header
	key, err := s.apiKey()
	if err != nil {
		return post.Answer{}, fmt.Errorf("write to %s: %w", s.client.Who(), err)
	}
	if body != nil || key != "" {
		header = s.header.Clone()
	}
	if key != "" {
		header.Set("Authorization", "ApiKey "+key)
	}
	if body != nil {
		header.Set("Content-Type", "application/json")
		if strings.HasPrefix(path, "/_bulk") && !s.old {
			header.Set("Content-Type", "application/x-ndjson")
		}
	}
	a, err := s.client.Do(ctx, method, s.nodes[s.node]+path, header, body)
	if err != nil || a.Code == http.StatusBadGateway || a.Code == http.StatusServiceUnavailable {
		s.node = (s.node + 1) % len(s.nodes)
	}
	return a, err
}

func (s *elastic) failure(what string, a post.Answer) error {
	return s.client.Failure(what, a, errorOf(a.Body), "`esUserName` and `esUserSecret`, or `api_key`")
}

// errorOf is the error in an answer's body; "" where there is none.
func errorOf(body []byte) string {
	var said struct {
		Error any `json:"error"`
	}
	if json.Unmarshal(bytes.TrimSpace(body), &said) != nil {
		return ""
	}
	return reasonOf(said.Error)
}

// reasonOf words an error: {"type":…,"reason":…,"caused_by":…}, or a text.
func reasonOf(e any) string {
	switch e := e.(type) {
	case string:
		return sink.Excerpt([]byte(e))
	case map[string]any:
		kind, _ := e["type"].(string)
		reason, _ := e["reason"].(string)
		if cause, ok := e["caused_by"].(map[string]any); ok {
			if why, ok := cause["reason"].(string); ok {
				reason += ": " + why
			}
		}
		return sink.Excerpt([]byte(strings.TrimPrefix(kind+": "+reason, ": ")))
	}
	return ""
}
