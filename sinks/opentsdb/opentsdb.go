// Package opentsdb writes rollups to OpenTSDB 2, or to what takes its HTTP API (VictoriaMetrics).
//
//	opentsdb:http://host:port[?cluster=name]
//
// The address is http or https; without one it is http://127.0.0.1:4242. Requests are POST /api/put with at
// most `batchsize` (1000) points and `maxbytes` (40960) bytes, as Heapster's: a TSD takes more only where
// tsd.http.request.enable_chunked and max_chunk say so. `user` and `pw` log in, where a proxy or an
// authentication plugin wants it.
//
// Names and tags are Heapster's: cpu/usage_rate becomes cpu_usage_rate_gauge, counters end with _cumulative.
// One tag more, `cluster`, is k8s-cluster where neither it nor cluster_name is given. Metrics of devices (file
// systems, accelerators), which Heapster left out, are written with the tag resource_id or its like;
// devices=false leaves them out again. Samples have up to 12 tags: tsd.storage.max_tags, 8 by default, must be
// raised at the TSD.
//
// Guarantee: exactly once, by overwriting: OpenTSDB keeps one value for a series and a time, and the same value
// written again is no conflict. A TSD would answer before its storage has the points, and lose them silently when the
// storage fails; it is asked to wait (`sync`), which Heapster did not, and sync=false is Heapster's way. Points that it
// refuses for good (an unknown metric where it may not create them, too many tags) are told apart by its answer.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package opentsdb

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink opentsdb.
var Kind = sink.Kind{Key: "opentsdb", Title: "OpenTSDB Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"cluster"}, New: New}

// tsd is one OpenTSDB as seen by the worker of one cluster.
type tsd struct {
	enc      encoder
	client   *post.Client
	put      string // address of requests
	header   http.Header
	batch    int // points a request
	maxBytes int // bytes a request
	sync     bool
	body     []byte
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &tsd{batch: o.BatchSize(1000, 1e6), maxBytes: o.Int("maxbytes", 40960, 4096)}
	cluster := "k8s-cluster"
	if common.Named {
		cluster = common.ClusterName
	}
	s.enc = encoder{view: common.View, devices: o.Bool("devices", true), cluster: []proto.Label{{Key: "cluster", Value: o.String("cluster", cluster)}}}
	s.header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"heapstream/" + d.Version}}
	if user, password := o.String("user", ""), o.Secret("pw", ""); user != "" {
		s.header.Set("Authorization", post.Basic(user, password))
	}
	host, scheme := t.Host("4242"), "http"
	if host == "" {
		host = "127.0.0.1:4242"
	}
	if t.URL.Scheme == "https" {
		scheme = "https"
	}
	if strings.Trim(t.URL.Path, "/") != "" {
		o.Warn("the path in the address is not used")
	}
	s.put = scheme + "://" + host + "/api/put?summary&details"
	if s.sync = o.Bool("sync", true); s.sync {
		s.put += "&sync"
	}
	s.client = post.New("OpenTSDB at "+host, o.HTTP())
	return o.Made(s, d.Log)
}

// Close drops idle connections.
func (s *tsd) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *tsd) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup, i)
	}
	var refused []sink.Refused
	var failed error
	for from := 0; from < len(s.enc.points) && failed == nil; {
		to, size := from, 2
		for to < len(s.enc.points) && to-from < s.batch {
			more := len(s.enc.point(to)) + 1
			if to > from && size+more > s.maxBytes {
				break
			}
			size += more
			to++
		}
		var lost []sink.Refused
		lost, failed = s.send(ctx, from, to)
		refused = append(refused, lost...)
		from = to
	}
	if len(refused) > 0 {
		return &sink.Partial{Refused: refused, Err: failed}
	}
	return failed
}

// send writes the points [from, to).
func (s *tsd) send(ctx context.Context, from, to int) ([]sink.Refused, error) {
	s.body = s.body[:0]
	for i := from; i < to; i++ {
		s.body = append(append(s.body, ','), s.enc.point(i)...)
	}
	if to-from > 1 { // a single one goes without brackets, as Heapster's
		s.body[0] = '['
		s.body = append(s.body, ']')
	}
	a, err := s.client.Do(ctx, http.MethodPost, s.put, s.header, bytes.TrimPrefix(s.body, []byte(",")))
	if err != nil {
		return nil, err
	}
	var said answer
	isJSON := json.Unmarshal(a.Body, &said) == nil
	switch {
	case a.OK() && len(bytes.TrimSpace(a.Body)) == 0:
		return nil, nil
	case a.OK() && isJSON && said.Failed == 0:
		return nil, nil
	case a.OK() && !isJSON:
		return nil, s.client.Nonsense("write to", a)
	case (a.Code == http.StatusBadRequest || a.OK()) && (len(said.Errors) > 0 || s.sync && said.Failed > 0):
		return s.refused(said, from, to)
	case a.Code == http.StatusBadRequest && isJSON, a.Code == http.StatusRequestEntityTooLarge:
		return nil, sink.Permanent(s.client.Failure("write to", a, said.Error.Message, ""))
	}
	return nil, s.client.Failure("write to", a, said.Error.Message, "`user` and `pw`")
}

// answer is what OpenTSDB says of a put: counts and refused points, or an error of the whole.
type answer struct {
	Failed int `json:"failed"`
	Errors []struct {
		Point struct {
			Metric    string            `json:"metric"`
			Timestamp int64             `json:"timestamp"`
			Tags      map[string]string `json:"tags"`
		} `json:"datapoint"`
		Error string `json:"error"`
	} `json:"errors"`
	Error struct {
		Message string `json:"message"`
	} `json:"error"`
}

// passing are the beginnings of what OpenTSDB says of a point that it could not store, though there is nothing
// wrong with it.
var passing = []string{"Please throttle", "Timeout exception", "Unexpected exception", "Storage exception", "HBase error", "Write timedout"}

// refused finds the points [from, to) that an answer refuses.
func (s *tsd) refused(said answer, from, to int) ([]sink.Refused, error) {
	reasons := map[string]string{}
	for _, e := range said.Errors {
		for _, p := range passing {
			if strings.HasPrefix(e.Error, p) {
				return nil, fmt.Errorf("write to %s: %s", s.client.Who(), sink.Excerpt([]byte(e.Error)))
			}
		}
		reasons[identity(e.Point.Metric, e.Point.Timestamp, e.Point.Tags)] = e.Error
	}
	var refused []sink.Refused
	for i := from; i < to; i++ {
		var p struct {
			Metric    string            `json:"metric"`
			Timestamp int64             `json:"timestamp"`
			Tags      map[string]string `json:"tags"`
		}
		if err := json.Unmarshal(s.enc.point(i), &p); err != nil {
			return nil, sink.Permanent(fmt.Errorf("write to %s: a point is no JSON: %w", s.client.Who(), err))
		}
		if reason, ok := reasons[identity(p.Metric, p.Timestamp, p.Tags)]; ok {
			refused = append(refused, sink.Refused{
				Message: s.enc.points[i].message, Samples: 1, Part: string(s.enc.point(i)), Reason: "refused by OpenTSDB: " + sink.Excerpt([]byte(reason)),
			})
		}
	}
	if len(said.Errors) < said.Failed && s.sync { // the others are those that its storage did not take
		return refused, fmt.Errorf("write to %s: its storage did not take %d points", s.client.Who(), said.Failed-len(said.Errors))
	}
	if len(refused) < said.Failed { // some it does not name: which messages they are of is found out by halves
		return nil, sink.Permanent(fmt.Errorf("write to %s: %d points refused, of which it names %d: %s",
			s.client.Who(), said.Failed, len(refused), sink.Excerpt([]byte(said.Errors[0].Error))))
	}
	return refused, nil
}

// identity is what OpenTSDB tells values apart by: series and time.
func identity(metric string, at int64, tags map[string]string) string {
	var b strings.Builder
	b.WriteString(metric)
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		b.WriteString(" " + k + "=" + tags[k])
	}
	b.WriteString(" " + strconv.FormatInt(at, 10))
	return b.String()
}
