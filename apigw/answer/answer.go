// Package answer is how Heapster's HTTP server speaks: which types and encodings it negotiates, the words of its refusals,
// its two ways of writing JSON, and the parameters start, end and labels. The dialects on port 8082 share it.
//
// JSON is appended by hand: every body is written once, into memory that requests use in turn.
//
// Not here: paths, and what is answered (modelapi, historyapi).
package answer

import (
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// Texts of refusals: those of the router Heapster used, and of net/http's mux.
const (
	TextNotFound    = "404: Page Not Found"
	TextMethod      = "405: Method Not Allowed"
	TextAccept      = "406: Not Acceptable"
	TextMuxNotFound = "404 page not found\n"
)

// YearOne is the time of what has none.
const YearOne = "0001-01-01T00:00:00Z"

const typeJSON = "application/json"

// Values of headers, shared by all answers: nobody alters them.
var (
	headerJSON    = []string{typeJSON}
	headerText    = []string{"text/plain; charset=utf-8"}
	headerGzip    = []string{"gzip"}
	headerDeflate = []string{"deflate"}
)

// Request is one request on its way to an answer.
type Request struct {
	W       http.ResponseWriter
	R       *http.Request
	Handler string // the name of its handler in telemetry
	Status  int    // that was answered; 0 before
}

// Do checks what all routes want of a request, that it is a GET that takes JSON, and answers it by do.
func (q *Request) Do(handler string, do func()) {
	q.Handler = handler
	if q.Negotiate() {
		do()
	}
}

// Negotiate answers methods and types that no route has, and reports whether there is still something to answer.
func (q *Request) Negotiate() bool {
	if q.R.Method != http.MethodGet {
		q.Text(http.StatusMethodNotAllowed, TextMethod)
		return false
	}
	accepts := q.R.Header["Accept"]
	for _, accept := range accepts {
		if accept == "" || strings.Contains(accept, "*/*") || strings.Contains(accept, typeJSON) {
			return true
		}
	}
	if len(accepts) == 0 {
		return true
	}
	q.Text(http.StatusNotAcceptable, TextAccept)
	return false
}

// Text answers with plain text.
func (q *Request) Text(status int, body string) { q.write(status, headerText, []byte(body)) }

// JSON answers 200 with a body that is JSON already.
func (q *Request) JSON(body []byte) { q.write(http.StatusOK, headerJSON, body) }

func (q *Request) write(status int, contentType []string, body []byte) {
	q.Status = status
	h := q.W.Header()
	h["Content-Type"] = contentType
	if q.R.Method == http.MethodHead {
		q.W.WriteHeader(status)
		return
	}
	if encoding := q.encoding(); encoding != nil && len(body) > 0 {
		h["Content-Encoding"] = encoding
		q.W.WriteHeader(status)
		z, done := compressor(q.W, encoding)
		_, _ = z.Write(body) // nobody is left to be told
		done()
		return
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	q.W.WriteHeader(status)
	_, _ = q.W.Write(body) // nobody is left to be told
}

// flushBytes is how much of a long answer is collected before it is sent.
const flushBytes = 64 << 10

// Stream is a long answer that is sent while it is written. The writer appends to B and calls Send now and then.
type Stream struct {
	B   []byte
	w   io.Writer
	err error
}

// Send sends what is in B if it is enough for a piece, and reports whether the client is still there.
func (s *Stream) Send() bool {
	if len(s.B) >= flushBytes {
		s.flush()
	}
	return s.err == nil
}

func (s *Stream) flush() {
	if s.err == nil {
		_, s.err = s.w.Write(s.B)
	}
	s.B = s.B[:0]
}

// turns are taken by whoever works on a large answer, so that all of them together leave a core for what brings rollups
// into the view. Nobody holds one while it waits for its client.
var turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))

// turn waits for one. It reports false if the client left before.
func (q *Request) turn() bool {
	select {
	case turns <- struct{}{}:
		return true
	case <-q.R.Context().Done():
		q.Status = statusLeft
		return false
	}
}

// statusLeft is what telemetry has of clients that left before their turn, by the number that nginx gave it.
const statusLeft = 499

// Work does what takes a core for long, in turn with others that do; nothing if the client left before.
func (q *Request) Work(do func()) {
	if q.turn() {
		defer func() { <-turns }()
		do()
	}
}

// outside is a client that is written to by one who holds a turn, and gives it away meanwhile.
type outside struct{ io.Writer }

func (o outside) Write(b []byte) (int, error) {
	<-turns
	defer func() { turns <- struct{}{} }()
	return o.Writer.Write(b)
}

// Stream answers 200 with the JSON that write appends to the stream it is given. Streams take turns.
func (q *Request) Stream(write func(s *Stream)) { q.Work(func() { q.stream(headerJSON, write) }) }

// StreamAs is Stream for another type, and for what must be known before it can be said that there is an answer:
// prepare is called within the turn, and answers by itself where it returns false.
func (q *Request) StreamAs(contentType string, prepare func() bool, write func(s *Stream)) {
	q.Work(func() {
		if prepare() {
			q.stream([]string{contentType}, write)
		}
	})
}

func (q *Request) stream(contentType []string, write func(s *Stream)) {
	q.Status = http.StatusOK
	h := q.W.Header()
	h["Content-Type"] = contentType
	s := Stream{w: outside{q.W}}
	if encoding := q.encoding(); encoding != nil {
		h["Content-Encoding"] = encoding
		z, done := compressor(s.w, encoding)
		defer done()
		s.w = z
	}
	memory := Take()
	defer memory.Release()
	s.B = memory.Buf[:0]
	q.W.WriteHeader(http.StatusOK)
	write(&s)
	s.flush() // nobody is left to be told if it fails
	memory.Buf = s.B
}

// encoding is the first of gzip and deflate that the client names, as a header; weights are not looked at, as ever.
func (q *Request) encoding() []string {
	for _, accept := range q.R.Header["Accept-Encoding"] {
		g, d := strings.Index(accept, "gzip"), strings.Index(accept, "deflate")
		switch {
		case g >= 0 && (d < 0 || g < d):
			return headerGzip
		case d >= 0:
			return headerDeflate
		}
	}
	return nil
}

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is valid
	return w
}}

var zlibs = sync.Pool{New: func() any {
	w, _ := zlib.NewWriterLevel(io.Discard, zlib.BestSpeed) // the level is valid
	return w
}}

// compressor returns a writer that compresses into w; done ends it.
func compressor(w io.Writer, encoding []string) (z io.Writer, done func()) {
	pool := &gzips
	if encoding[0] == "deflate" {
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

// Scratch is memory that requests use in turn.
type Scratch struct {
	Buf    []byte
	Points []window.Point
}

var scratches = sync.Pool{New: func() any { return new(Scratch) }}

// Bounds of what a scratch may keep between requests.
const (
	maxScratchBytes  = 1 << 20
	maxScratchPoints = 64 << 10
)

// Take returns a scratch; what is in it means nothing.
func Take() *Scratch { return scratches.Get().(*Scratch) } //nolint:errcheck,forcetypeassert // what New made

// Release hands the scratch to whoever comes next.
func (s *Scratch) Release() {
	if cap(s.Buf) <= maxScratchBytes && cap(s.Points) <= maxScratchPoints {
		scratches.Put(s)
	}
}

// List answers a list of names.
func (q *Request) List(names []string) {
	s := Take()
	defer s.Release()
	b := append(s.Buf[:0], '[')
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n  "...)
		b = AppendString(b, name)
	}
	if len(names) > 0 {
		b = append(b, "\n "...)
	}
	s.Buf = append(b, ']')
	q.JSON(s.Buf)
}

// AppendString appends a JSON string as encoding/json writes it.
func AppendString(b []byte, s string) []byte {
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

// AppendPretty appends a MetricResult indented as Heapster did: a prefix and an indent of one space.
func AppendPretty(b []byte, points []window.Point) []byte {
	b = append(b, "{\n  \"metrics\": ["...)
	day := DayText{}
	for i, p := range points {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, "\n   {\n    \"timestamp\": \""...)
		b = day.Append(b, p.Tick)
		b = append(b, "\",\n    \"value\": "...)
		b = strconv.AppendUint(b, uint64(p.Value.Int64()), 10) //nolint:gosec // the bits are meant
		if p.Value.IsFloat() {
			b = append(b, ",\n    \"floatValue\": "...)
			b = AppendFloat(b, p.Value.Float64())
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

// AppendCompact appends a MetricResult on one line.
func AppendCompact(b []byte, points []window.Point) []byte {
	b = append(b, `{"metrics":[`...)
	day := DayText{}
	for i, p := range points {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"timestamp":"`...)
		b = day.Append(b, p.Tick)
		b = append(b, `","value":`...)
		b = strconv.AppendUint(b, uint64(p.Value.Int64()), 10) //nolint:gosec // the bits are meant
		if p.Value.IsFloat() {
			b = append(b, `,"floatValue":`...)
			b = AppendFloat(b, p.Value.Float64())
		}
		b = append(b, '}')
	}
	b = append(b, `],"latestTimestamp":"`...)
	b = appendLatest(b, points, &day)
	return append(b, `"}`...)
}

func appendLatest(b []byte, points []window.Point, day *DayText) []byte {
	if len(points) == 0 {
		return append(b, YearOne...)
	}
	return day.Append(b, points[len(points)-1].Tick)
}

// AppendFloat appends a number as encoding/json writes it; what JSON cannot say is 0.
func AppendFloat(b []byte, f float64) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, '0')
	}
	if abs := math.Abs(f); abs == 0 || 1e-6 <= abs && abs < 1e21 {
		return strconv.AppendFloat(b, f, 'f', -1, 64)
	}
	b = strconv.AppendFloat(b, f, 'e', -1, 64)
	if n := len(b); n >= 4 && b[n-4] == 'e' && b[n-3] == '-' && b[n-2] == '0' { // e-09 is e-9
		b[n-2] = b[n-1]
		b = b[:n-1]
	}
	return b
}

// DayText writes ticks as RFC 3339 in UTC. It remembers the day, since ticks of one answer are mostly of one; the zero
// value is ready.
type DayText struct {
	day  int64
	text [11]byte // 2006-01-02T
	set  bool
}

// Append appends a tick.
func (d *DayText) Append(b []byte, t proto.Tick) []byte {
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
