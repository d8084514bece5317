// Package librato writes rollups to Librato (SolarWinds AppOptics), as measurements with tags.
//
//	librato:?username=…&token=…[&prefix=…&tags=a,b&tag_a=…&tag_b=…]
//
// Names, tags and their cleaning are Heapster's. A value of zero is written, which Heapster left out. `api` is another
// address. A request has at most `batchsize` (1000) measurements.
//
// Guarantee: at least once: Librato counts a measurement that comes again into a summary of that time. Requests that were
// answered are not sent again while this process lives. Librato refuses a request or takes it, as a whole. What is refused
// for good is told apart by rollup. The service itself has ended: this is for what speaks its API, by `api`.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package librato

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink librato.
var Kind = sink.Kind{Key: "librato", Title: "Librato Sink", Guarantee: sink.AtLeastOnce, Identity: []string{"api", "username", "prefix"}, New: New}

// Librato's bounds, in bytes.
const (
	maxName     = 255
	maxTagKey   = 64
	maxTagValue = 255
)

// api is one account as seen by the worker of one cluster.
type api struct {
	enc      encoder
	client   *post.Client
	address  string
	header   http.Header
	tags     []byte // JSON of the request's tags; nil for none
	batch    int    // measurements a request
	progress sink.Progress
	body     []byte
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &api{batch: o.BatchSize(1000, 1000)}
	s.enc = encoder{view: common.View, prefix: o.String("prefix", "")}
	if s.enc.prefix != "" && !strings.HasSuffix(s.enc.prefix, ".") {
		s.enc.prefix += "."
	}
	s.enc.cluster = common.ClusterLabel()
	user, token := o.String("username", ""), o.Secret("token", "")
	if user == "" {
		o.Complain("no `username` flag specified")
	}
	if token == "" {
		o.Complain("no `token` flag specified")
	}
	var tags []proto.Label
	for name := range strings.SplitSeq(o.String("tags", ""), ",") {
		if name == "" {
			continue
		}
		v := o.String("tag_"+name, "")
		if v == "" {
			o.Complain("`tags` flag names %q, but `tag_%s` is not given", name, name)
		}
		tags = append(tags, proto.Label{Key: string(appendTagKey(nil, name)), Value: string(appendTagValue(nil, v))})
	}
	if len(tags) > 0 {
		slices.SortStableFunc(tags, func(a, b proto.Label) int { return strings.Compare(a.Key, b.Key) })
		s.tags = sink.AppendJSONLabels(nil, tags)
	}
	u, err := url.Parse(o.String("api", "https://metrics-api.librato.com"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		o.Complain("`api` flag is no address such as https://metrics-api.librato.com")
		u = &url.URL{}
	}
	s.address = u.JoinPath("v1", "measurements").String()
	s.header = http.Header{"Content-Type": {"application/json"}, "User-Agent": {"heapstream/" + d.Version}, "Authorization": {post.Basic(user, token)}}
	s.client = post.New("Librato at "+u.Host, o.HTTP())
	return o.Made(s, d.Log)
}

// Close drops idle connections.
func (s *api) Close() error {
	s.client.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *api) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup)
	}
	n := len(s.enc.ends)
	s.progress.Begin(batch, (n+s.batch-1)/s.batch)
	for part, from := 0, 0; from < n; part, from = part+1, from+s.batch {
		if s.progress.Settled(part) {
			continue
		}
		if err := s.send(ctx, from, min(from+s.batch, n)); err != nil {
			return s.progress.End(err)
		}
		s.progress.Settle(part)
	}
	return s.progress.End(nil)
}

// send writes the measurements [from, to).
func (s *api) send(ctx context.Context, from, to int) error {
	s.body = append(s.body[:0], '{')
	if s.tags != nil {
		s.body = append(append(append(s.body, `"tags":`...), s.tags...), ',')
	}
	s.body = append(s.body, `"measurements":[`...)
	s.body = append(append(s.body, s.enc.span(from, to)...), "]}"...)
	a, err := s.client.Do(ctx, http.MethodPost, s.address, s.header, s.body)
	said := bytes.TrimSpace(a.Body)
	switch {
	case err != nil:
		return err
	case a.OK() && (len(said) == 0 || json.Valid(said)):
		return nil
	case a.OK():
		return s.client.Nonsense("write to", a)
	case a.Code == http.StatusBadRequest || a.Code == http.StatusRequestEntityTooLarge || a.Code == http.StatusUnprocessableEntity:
		return sink.Permanent(s.client.Failure("write to", a, "", ""))
	}
	return s.client.Failure("write to", a, "", "`username` and `token`")
}

// encoder writes rollups as measurements. Memory grows to that of the largest batch and is reused.
type encoder struct {
	view    sink.View
	prefix  string
	cluster []proto.Label // tag cluster_name, where the operator gave one: Heapster had none here

	text   []byte // a comma after each measurement
	ends   []int  // of each
	tags   []byte // of the present entity, or of its present device
	device []proto.Label
	merged []proto.Label
}

func (e *encoder) reset() { e.text, e.ends = e.text[:0], e.ends[:0] }

// span is the measurements [from, to) with commas between them.
func (e *encoder) span(from, to int) []byte {
	begin := 0
	if from > 0 {
		begin = e.ends[from-1]
	}
	return e.text[begin : e.ends[to-1]-1]
}

// encode appends the measurements of one rollup.
func (e *encoder) encode(r *proto.Rollup) {
	at := proto.Int(r.Tick.Time().Unix())
	for entity := range e.view.Entities(r) {
		var device *proto.Device
		e.setTags(entity.Labels, nil)
		for s := range entity.Samples {
			if s.Device != device {
				device = s.Device
				e.device = e.view.AppendDeviceLabels(e.device[:0], device)
				e.setTags(entity.Labels, e.device)
			}
			b := append(e.text, `{"name":"`...)
			b = appendName(b, e.prefix, s.Name)
			b = sink.AppendJSONNumber(append(b, `","value":`...), s.Value)
			b = append(append(b, `,"tags":`...), e.tags...)
			b = at.Append(append(b, `,"time":`...))
			e.text = append(b, "},"...)
			e.ends = append(e.ends, len(e.text))
		}
	}
}

func (e *encoder) setTags(labels, device []proto.Label) {
	e.merged = sink.MergeLabels(e.merged[:0], e.cluster, device, labels)
	b := append(e.tags[:0], '{')
	for i, l := range e.merged {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendTagKey(append(b, '"'), l.Key), `":"`...)
		b = append(appendTagValue(b, l.Value), '"')
	}
	e.tags = append(b, '}')
}

func alphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// appendClean appends at most most bytes of s, each character that is not kept as "_". What is left needs no escape in
// JSON.
func appendClean(dst []byte, s string, most int, keep func(rune) bool) []byte {
	n := 0
	for _, c := range s {
		if n++; n > most {
			break
		}
		if c < 0x80 && keep(c) {
			dst = append(dst, byte(c))
		} else {
			dst = append(dst, '_')
		}
	}
	return dst
}

// appendName appends a metric's name behind a prefix: "/" becomes ".". Heapster's range of characters kept more than it
// meant, and "-" not; so it is here, save for a backslash, which is not written as such.
func appendName(dst []byte, prefix, name string) []byte {
	keep := func(c rune) bool { return alphanumeric(c) || c == '.' || c >= ':' && c <= '_' && c != '\\' }
	from := len(dst)
	dst = appendClean(dst, prefix, maxName, func(c rune) bool { return c == '/' || keep(c) })
	dst = appendClean(dst, name, maxName-(len(dst)-from), func(c rune) bool { return c == '/' || keep(c) })
	for i := from; i < len(dst); i++ {
		if dst[i] == '/' {
			dst[i] = '.'
		}
	}
	return dst
}

func appendTagKey(dst []byte, s string) []byte {
	return appendClean(dst, s, maxTagKey, func(c rune) bool { return alphanumeric(c) || strings.ContainsRune("-.:_", c) })
}

func appendTagValue(dst []byte, s string) []byte {
	return appendClean(dst, s, maxTagValue, func(c rune) bool { return alphanumeric(c) || strings.ContainsRune("-.:_ ", c) })
}
