package modelapi

import (
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// request is one request on its way to an answer.
type request struct {
	api     *API
	c       *view.Cluster
	w       http.ResponseWriter
	r       *http.Request
	handler string // the name of its handler in telemetry
	status  int
	began   time.Time
}

func (q *request) end() {
	if q.handler == "" {
		q.handler = "none"
	}
	q.api.tele.observe(q.handler, q.status, time.Since(q.began))
}

// answer checks what all routes want of a request and answers it by do.
func (q *request) answer(handler string, do func()) {
	q.handler = handler
	if q.negotiate() {
		do()
	}
}

// negotiate refuses methods and types that no route has.
func (q *request) negotiate() bool {
	if q.r.Method != http.MethodGet {
		q.text(http.StatusMethodNotAllowed, textMethod)
		return false
	}
	for _, accept := range q.r.Header["Accept"] {
		if accept == "" || strings.Contains(accept, "*/*") || strings.Contains(accept, contentJSON) {
			return true
		}
	}
	if len(q.r.Header["Accept"]) == 0 {
		return true
	}
	q.text(http.StatusNotAcceptable, textAccept)
	return false
}

// text answers with plain text.
func (q *request) text(status int, body string) { q.write(status, contentText, []byte(body)) }

// json answers 200 with a body that is JSON already.
func (q *request) json(body []byte) { q.write(http.StatusOK, contentJSON, body) }

func (q *request) write(status int, contentType string, body []byte) {
	q.status = status
	h := q.w.Header()
	h["Content-Type"] = []string{contentType}
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(status)
		return
	}
	if encoding := q.encoding(); encoding != "" && len(body) > 0 {
		h.Set("Content-Encoding", encoding)
		q.w.WriteHeader(status)
		compress(q.w, encoding, body)
		return
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	q.w.WriteHeader(status)
	_, _ = q.w.Write(body) // nobody is left to be told
}

// encoding is the first of gzip and deflate that the client names; weights are not looked at, as ever.
func (q *request) encoding() string {
	for _, accept := range q.r.Header["Accept-Encoding"] {
		g, d := strings.Index(accept, "gzip"), strings.Index(accept, "deflate")
		switch {
		case g >= 0 && (d < 0 || g < d):
			return "gzip"
		case d >= 0:
			return "deflate"
		}
	}
	return ""
}

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is valid
	return w
}}

var zlibs = sync.Pool{New: func() any {
	w, _ := zlib.NewWriterLevel(io.Discard, zlib.BestSpeed) // the level is valid
	return w
}}

func compress(w io.Writer, encoding string, body []byte) {
	z, done := compressor(w, encoding)
	_, _ = z.Write(body) // nobody is left to be told
	done()
}

// compressor returns a writer that compresses into w; done ends it.
func compressor(w io.Writer, encoding string) (z io.Writer, done func()) {
	pool := &gzips
	if encoding == "deflate" {
		pool = &zlibs
	}
	c := pool.Get().(interface { //nolint:errcheck,forcetypeassert // what New made
		io.WriteCloser
		Reset(io.Writer)
	})
	c.Reset(w)
	return c, func() {
		_ = c.Close()
		c.Reset(io.Discard)
		pool.Put(c)
	}
}

// scratch is memory that requests use in turn.
type scratch struct {
	buf    []byte
	points []window.Point
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// maxScratch bounds what a scratch may keep between requests.
const maxScratch = 1 << 20

func (s *scratch) release() {
	if cap(s.buf) <= maxScratch {
		scratches.Put(s)
	}
}

func (q *request) list(names []string) {
	s := scratches.Get().(*scratch) //nolint:errcheck,forcetypeassert // what New made
	defer s.release()
	b := append(s.buf[:0], '[')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n  "...)
		b = appendString(b, name)
	}
	if len(names) > 0 {
		b = append(b, "\n "...)
	}
	s.buf = append(b, ']')
	q.json(s.buf)
}

// appendString appends a JSON string as encoding/json writes it.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(s) // a string can always be written
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// series answers a MetricResult.
func (q *request) series(e window.Entity, metric string) {
	ask, err := parseQuery(q.r.URL)
	if err != nil {
		q.text(http.StatusBadRequest, err.Error())
		return
	}
	s := scratches.Get().(*scratch) //nolint:errcheck,forcetypeassert // what New made
	defer s.release()
	s.points = ask.points(q.c, s.points[:0], e, metric)
	s.buf = appendPretty(s.buf[:0], s.points)
	q.json(s.buf)
}

// podList answers a MetricResultList: a result for each name in the order they were given.
func (q *request) podList(namespace, names, metric string) {
	ask, err := parseQuery(q.r.URL)
	if err == nil && strings.Count(names, ",") >= MaxPods {
		err = fmt.Errorf("%d pods: ask for at most %d at a time", strings.Count(names, ",")+1, MaxPods)
	}
	if err != nil {
		q.text(http.StatusBadRequest, err.Error())
		return
	}
	s := scratches.Get().(*scratch) //nolint:errcheck,forcetypeassert // what New made
	defer s.release()
	b := append(s.buf[:0], `{"items":[`...)
	first := true
	for name := range strings.SplitSeq(names, ",") {
		if !first {
			b = append(b, ',')
		}
		first = false
		s.points = ask.points(q.c, s.points[:0], window.Entity{Kind: proto.KindPod, Namespace: namespace, Pod: name}, metric)
		b = appendCompact(b, s.points)
	}
	s.buf = append(b, "]}\n"...)
	q.json(s.buf)
}

// query is what a request for series asks beyond its path.
type query struct {
	from, to time.Time
	labels   []proto.Label
}

// endOfTime is later than any tick.
var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// parseQuery reads start, end and labels; its errors are Heapster's texts.
func parseQuery(u *url.URL) (query, error) {
	q := query{to: endOfTime}
	if u.RawQuery == "" {
		return q, nil
	}
	values := u.Query()
	for _, p := range []struct {
		name string
		t    *time.Time
	}{{"start", &q.from}, {"end", &q.to}} {
		if raw := values.Get(p.name); raw != "" {
			t, err := time.Parse(time.RFC3339, raw)
			if err != nil {
				return q, fmt.Errorf("timestamp argument cannot be parsed: %w", err)
			}
			*p.t = t
		}
	}
	raw := values.Get("labels")
	if raw == "" {
		return q, nil
	}
	if strings.Count(raw, ",") >= MaxLabels {
		return q, errors.New("too many labels: at most " + strconv.Itoa(MaxLabels))
	}
	for pair := range strings.SplitSeq(raw, ",") {
		key, value, ok := strings.Cut(pair, ":")
		if !ok || key == "" || value == "" {
			return q, fmt.Errorf("invalid label pair %q", pair)
		}
		q.labels = append(q.labels, proto.Label{Key: key, Value: value})
	}
	return q, nil
}

func (q *query) points(c *view.Cluster, dst []window.Point, e window.Entity, metric string) []window.Point {
	if len(q.labels) > 0 {
		return c.LabelledSeries(dst, e, metric, q.labels, q.from, q.to)
	}
	return c.Series(dst, e, metric, q.from, q.to)
}

// appendPretty appends a MetricResult indented as Heapster did: a prefix and an indent of one space.
func appendPretty(b []byte, points []window.Point) []byte {
	b = append(b, "{\n  \"metrics\": ["...)
	day := dayText{}
	for i, p := range points {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n   {\n    \"timestamp\": \""...)
		b = day.append(b, p.Tick)
		b = append(b, "\",\n    \"value\": "...)
		b = strconv.AppendUint(b, uint64(p.Value.Int64()), 10) //nolint:gosec // the bits are meant
		if p.Value.IsFloat() {
			b = append(b, ",\n    \"floatValue\": "...)
			b = appendFloat(b, p.Value.Float64())
		}
		b = append(b, "\n   }"...)
	}
	if len(points) > 0 {
		b = append(b, "\n  "...)
	}
	b = append(b, "],\n  \"latestTimestamp\": \""...)
	b = appendLatest(b, points, &day)
	return append(b, "\"\n }"...)
}

// appendCompact appends a MetricResult on one line.
func appendCompact(b []byte, points []window.Point) []byte {
	b = append(b, `{"metrics":[`...)
	day := dayText{}
	for i, p := range points {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"timestamp":"`...)
		b = day.append(b, p.Tick)
		b = append(b, `","value":`...)
		b = strconv.AppendUint(b, uint64(p.Value.Int64()), 10) //nolint:gosec // the bits are meant
		if p.Value.IsFloat() {
			b = append(b, `,"floatValue":`...)
			b = appendFloat(b, p.Value.Float64())
		}
		b = append(b, '}')
	}
	b = append(b, `],"latestTimestamp":"`...)
	b = appendLatest(b, points, &day)
	return append(b, `"}`...)
}

func appendLatest(b []byte, points []window.Point, day *dayText) []byte {
	if len(points) == 0 {
		return append(b, yearOneText...)
	}
	return day.append(b, points[len(points)-1].Tick)
}

// appendFloat appends a number as encoding/json writes it; what JSON cannot say is 0.
func appendFloat(b []byte, f float64) []byte {
	text, err := json.Marshal(f)
	if err != nil {
		return append(b, '0')
	}
	return append(b, text...)
}

// dayText writes ticks as RFC 3339 in UTC; ticks of one answer are mostly of one day.
type dayText struct {
	day  int64
	text [11]byte // 2006-01-02T
	set  bool
}

func (d *dayText) append(b []byte, t proto.Tick) []byte {
	const dayMS = 86_400_000
	ms := int64(t)
	day := ms / dayMS
	if ms < 0 || ms%1000 != 0 || day > 2_932_896 { // before 1970, between seconds, after 9999: not the daily case
		return t.Time().AppendFormat(b, time.RFC3339Nano)
	}
	if !d.set || day != d.day {
		time.UnixMilli(ms).UTC().AppendFormat(d.text[:0], "2006-01-02T")
		d.day, d.set = day, true
	}
	b = append(b, d.text[:]...)
	s := int(ms % dayMS / 1000)
	two := func(n int, end byte) { b = append(b, byte('0'+n/10), byte('0'+n%10), end) }
	two(s/3600, ':')
	two(s/60%60, ':')
	two(s%60, 'Z')
	return b
}
