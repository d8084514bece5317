package soak

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
)

// Mode is how the backend behaves.
type Mode uint8

// The modes. In all but Up nothing is answered with success.
const (
	Up         Mode = iota
	Gone            // nobody listens; when it is back, its database is gone
	Hanging         // requests are read and never answered
	Refusing        // requests are answered with 503
	Forgetting      // writes are taken, and the connection is cut before the answer: all of it comes again
	modes
)

var modeNames = [...]string{Up: "up", Gone: "gone", Hanging: "hanging", Refusing: "refusing", Forgetting: "forgetting"}

// String names the mode.
func (m Mode) String() string { return modeNames[m] }

// maxBody bounds a write, far above what a sink sends.
const maxBody = 64 << 20

// backend is an InfluxDB as strict as the real one, as far as a sink of rollups sees it: it takes line protocol into one
// database that must be there, tells every point to the ledger, and goes away when told to.
type backend struct {
	address string
	ledger  *ledger
	log     *slog.Logger

	mu      sync.Mutex
	mode    Mode
	created bool
	server  *http.Server
	done    chan struct{}
	release chan struct{} // closed when requests that hang are to end

	lines, requests, malformed int
	words                      map[string]uint64 // of tags as written
}

// newBackend finds an address; it is Gone until set Up.
func newBackend(l *ledger, log *slog.Logger) (*backend, error) {
	ports, err := fleet.FreePorts(1)
	if err != nil {
		return nil, fmt.Errorf("find an address for the backend: %w", err)
	}
	return &backend{address: "127.0.0.1:" + strconv.Itoa(ports[0]), ledger: l, log: log, mode: Gone, words: map[string]uint64{}}, nil
}

// set changes how it behaves from now on. It waits until requests of the former mode are over.
func (b *backend) set(m Mode) error {
	b.mu.Lock()
	before := b.mode
	b.mode = m
	if b.release != nil {
		close(b.release)
		b.release = nil
	}
	if m == Hanging {
		b.release = make(chan struct{})
	}
	server, done := b.server, b.done
	b.mu.Unlock()
	switch {
	case m == Gone && before != Gone:
		err := server.Close()
		<-done
		b.mu.Lock()
		b.created = false
		b.mu.Unlock()
		return err
	case m != Gone && before == Gone:
		listener, err := net.Listen("tcp", b.address)
		if err != nil {
			return fmt.Errorf("bring the backend back: %w", err)
		}
		server, done = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute}, make(chan struct{})
		b.mu.Lock()
		b.server, b.done = server, done
		b.mu.Unlock()
		go func() {
			defer close(done)
			if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				b.log.Error("backend ended", "err", err)
			}
		}()
	}
	return nil
}

func (b *backend) now() (Mode, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	return b.mode, b.release
}

// ServeHTTP is InfluxDB's /query, as far as a sink creates its database, and /write.
func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	mode, release := b.now()
	switch mode {
	case Hanging:
		select {
		case <-release:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case Refusing:
		http.Error(w, `{"error":"service unavailable"}`, http.StatusServiceUnavailable)
		return
	}
	switch r.URL.Path {
	case "/query":
		b.mu.Lock()
		b.created = b.created || bytes.Contains(body, []byte("CREATE+DATABASE"))
		b.mu.Unlock()
		_, _ = io.WriteString(w, `{"results":[{"statement_id":0}]}`)
	case "/write":
		b.write(w, body, mode)
	default:
		http.NotFound(w, r)
	}
}

func (b *backend) write(w http.ResponseWriter, body []byte, mode Mode) {
	b.mu.Lock()
	created := b.created
	b.mu.Unlock()
	if !created {
		http.Error(w, `{"error":"database not found: \"k8s\""}`, http.StatusNotFound)
		return
	}
	points := make([]stamped, 0, len(body)/160)
	b.mu.Lock()
	for len(body) > 0 {
		var line []byte
		line, body, _ = bytes.Cut(body, []byte{'\n'})
		p, err := b.parse(line)
		if err != nil {
			b.malformed++
			b.mu.Unlock()
			b.log.Error("line is refused", "line", string(line), "err", err)
			http.Error(w, fmt.Sprintf(`{"error":"unable to parse %s"}`, strings.ReplaceAll(string(line), `"`, `\"`)), http.StatusBadRequest)
			return
		}
		points = append(points, p)
	}
	b.lines += len(points)
	b.mu.Unlock()
	b.ledger.write(points)
	if mode == Forgetting {
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusNoContent)
}

var (
	errNoTags   = errors.New("no tags")
	errNoFields = errors.New("no field")
	errNoTime   = errors.New("no time in whole milliseconds")
	errTag      = errors.New("a tag without a value")
)

// maxWords bounds the tags that are remembered.
const maxWords = 1 << 19

// parse reads one line: measurement,tag=value,… value=1i 1700000000000000000. The caller holds mu.
func (b *backend) parse(line []byte) (p stamped, err error) {
	comma := end(line, ',', ' ')
	if comma == len(line) || line[comma] != ',' {
		return p, errNoTags
	}
	measurement, rest := line[:comma], line[comma+1:]
	space := end(rest, ' ', ' ')
	if space == len(rest) {
		return p, errNoFields
	}
	tags, rest := rest[:space], rest[space+1:]
	field, at, ok := bytes.Cut(rest, []byte{' '})
	value, isValue := bytes.CutPrefix(field, []byte("value="))
	if !ok || !isValue || len(value) == 0 {
		return p, errNoFields
	}
	if p.tick, ok = millis(at); !ok {
		return p, errNoTime
	}
	entity, known := b.words[string(tags)]
	if !known {
		var words entityWords
		for rest := tags; len(rest) > 0; {
			to := end(rest, ',', ',')
			equals := end(rest[:to], '=', '=')
			if equals == 0 || equals >= to-1 {
				return p, errTag
			}
			words.take(unescaped(rest[:equals]), unescaped(rest[equals+1:to]))
			rest = rest[min(to+1, len(rest)):]
		}
		entity = words.hash()
		if len(b.words) >= maxWords {
			clear(b.words)
		}
		b.words[string(tags)] = entity
	}
	p.identity, p.value = pointOf(entity, metricOf(unescaped(measurement))), valueHash(value)
	return p, nil
}

// end is where the first of two bytes stands that is not escaped, or the end.
func end(s []byte, a, b byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case a, b:
			return i
		}
	}
	return len(s)
}

func unescaped(s []byte) string {
	if bytes.IndexByte(s, '\\') < 0 {
		return string(s)
	}
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) && bytes.IndexByte([]byte(", ="), s[i+1]) >= 0 {
			i++
		}
		out = append(out, s[i])
	}
	return string(out)
}

// taken is how many lines and requests came, and how many lines were refused.
func (b *backend) taken() (lines, requests, malformed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines, b.requests, b.malformed
}
