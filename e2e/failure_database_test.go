//go:build linux

package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// databasesFor returns what makes a database for each stand: of one real InfluxDB where that is installed, else of a
// server of ours for each.
func databasesFor(t *testing.T) func(t *testing.T, name string) database {
	t.Helper()
	binary, err := exec.LookPath("influxd")
	if err != nil {
		t.Log("no influxd on this machine (apt-get install influxdb): a strict server of ours stands in")
		return func(t *testing.T, name string) database {
			s := &strictInflux{}
			s.start(t, bustest.FreeAddr(t))
			return s
		}
	}
	one := runInfluxd(t, binary, bustest.FreeAddr(t))
	return func(_ *testing.T, name string) database { return &influxd{URL: one.URL, db: name} }
}

// darkDatabase is one that is not there yet, at an address that sinks know already.
type darkDatabase struct {
	addr string
	database
}

func newDarkDatabase(t *testing.T) *darkDatabase { return &darkDatabase{addr: bustest.FreeAddr(t)} }

func (d *darkDatabase) sink() string { return "influxdb:http://" + d.addr + "?db=dark" }

// light starts it, until the test ends.
func (d *darkDatabase) light(t *testing.T) {
	t.Helper()
	if binary, err := exec.LookPath("influxd"); err == nil {
		i := runInfluxd(t, binary, d.addr)
		i.db = "dark"
		d.database = i
		return
	}
	s := &strictInflux{}
	s.start(t, d.addr)
	d.database = s
}

// strictInflux is as much of an InfluxDB 1.x as a test needs: it takes lines with one field named value, refuses
// everything that is not written as the line protocol has it, and remembers where a point was written over by another
// value, which no sink of ours may do.
type strictInflux struct {
	addr string

	mu      sync.Mutex
	created map[string]bool
	points  map[string]map[string]map[int64]string // by measurement, tags as written, and ms
	wrong   []string
}

func (s *strictInflux) start(t *testing.T, addr string) {
	t.Helper()
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.addr, s.created, s.points = addr, map[string]bool{}, map[string]map[string]map[int64]string{}
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Close()
		<-done
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, w := range s.wrong {
			t.Error(w)
		}
	})
}

func (s *strictInflux) sink() string { return "influxdb:http://" + s.addr + "?db=strict" }

var createDatabase = regexp.MustCompile(`^CREATE DATABASE "([^"]+)"`)

func (s *strictInflux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(status int, format string, args ...any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": fmt.Sprintf(format, args...)})
	}
	switch r.URL.Path {
	case "/ping":
		w.WriteHeader(http.StatusNoContent)
	case "/query":
		m := createDatabase.FindStringSubmatch(r.FormValue("q"))
		if m == nil {
			refuse(http.StatusBadRequest, "error parsing query: %q", r.FormValue("q"))
			return
		}
		s.created[m[1]] = true
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"results":[{"statement_id":0}]}`)
	case "/write":
		if db := r.URL.Query().Get("db"); !s.created[db] {
			refuse(http.StatusNotFound, "database not found: %q", db)
			return
		}
		lines := bufio.NewScanner(r.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if err := s.take(lines.Text()); err != nil {
				s.wrong = append(s.wrong, err.Error())
				refuse(http.StatusBadRequest, "%v", err)
				return
			}
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

// influxLine is a measurement with tags, a field named value, and a time in ns.
var influxLine = regexp.MustCompile(`^((?:[^\\, ]|\\.)+)((?:,(?:[^\\,= ]|\\.)+=(?:[^\\,= ]|\\.)+)*) value=(-?[0-9.]+(?:e[+-]?[0-9]+)?)i? ([0-9]+)$`)

func (s *strictInflux) take(line string) error {
	m := influxLine.FindStringSubmatch(line)
	if m == nil {
		return fmt.Errorf("unable to parse %q: not a line with one field named value", line)
	}
	ns, err := strconv.ParseInt(m[4], 10, 64)
	if err != nil || ns%int64(time.Millisecond) != 0 {
		return fmt.Errorf("unable to parse %q: its time is no tick", line)
	}
	measurement := unescape(m[1])
	if s.points[measurement] == nil {
		s.points[measurement] = map[string]map[int64]string{}
	}
	if s.points[measurement][m[2]] == nil {
		s.points[measurement][m[2]] = map[int64]string{}
	}
	series, at := s.points[measurement][m[2]], ns/int64(time.Millisecond)
	if before, ok := series[at]; ok && before != m[3] {
		s.wrong = append(s.wrong, fmt.Sprintf("%q was written before as %s", line, before))
	}
	series[at] = m[3]
	return nil
}

var escaped = regexp.MustCompile(`\\([, =\\])`)

func unescape(s string) string { return escaped.ReplaceAllString(s, "$1") }

var influxTag = regexp.MustCompile(`,((?:[^\\,= ]|\\.)+)=((?:[^\\,= ]|\\.)+)`)

func (s *strictInflux) series(_ *testing.T, metric string) (all []influxSeries) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for tags, points := range s.points[metric] {
		one := influxSeries{Tags: map[string]string{}}
		for _, m := range influxTag.FindAllStringSubmatch(tags, -1) {
			one.Tags[unescape(m[1])] = unescape(m[2])
		}
		for _, at := range slices.Sorted(maps.Keys(points)) {
			one.Values = append(one.Values, []json.Number{json.Number(strconv.FormatInt(at, 10)), json.Number(points[at])})
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b influxSeries) int {
		return cmp.Compare(strings.Join(slices.Sorted(maps.Values(a.Tags)), ","), strings.Join(slices.Sorted(maps.Values(b.Tags)), ","))
	})
	return all
}
