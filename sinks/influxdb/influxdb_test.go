package influxdb

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		names := encoded(build(tb, "influxdb"), []*proto.Rollup{r})
		for i := range names {
			names[i] = series(names[i])
		}
		return names
	},
}

func TestMain(m *testing.M) { sinktest.Main(m, []*sinktest.Suite{&suite, &eventSuite}) }

func TestContract(t *testing.T) { suite.Run(t) }

// series is a line without its field: what InfluxDB tells points apart by, and the time.
func series(line string) string {
	key, rest, _ := strings.Cut(strings.ReplaceAll(line, `\ `, "\x00"), " ")
	_, at, _ := strings.Cut(rest, " ")
	return key + " " + at
}

// fake answers as InfluxDB 1.x does.
type fake struct {
	t    *testing.T
	r    sinktest.Reach
	tls  *sinktest.TLS
	addr string

	mu      sync.Mutex
	mood    sinktest.Mood
	created bool
	points  map[string]string // series and time: field
	server  *httptest.Server
	net     *sinktest.Listener
	release chan struct{} // closed when the mood changes
}

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{t: t, r: r, points: map[string]string{}, release: make(chan struct{})}
	if r.TLS {
		f.tls = sinktest.NewTLS(t, r)
	}
	f.listen(bustest.FreeAddr(t)) // which it comes back to
	t.Cleanup(func() { f.Behave(sinktest.Down) })
	return f
}

func (f *fake) listen(addr string) {
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.Config.ErrorLog = nil
	_ = s.Listener.Close()
	f.net = sinktest.Wrap(lis)
	s.Listener = f.net
	if f.r.TLS {
		s.TLS = f.tls.Config()
		s.StartTLS()
	} else {
		s.Start()
	}
	f.server, f.addr = s, lis.Addr().String()
}

func (f *fake) Target(r sinktest.Reach) string {
	f.mu.Lock()
	timeout := "10s"
	if f.mood == sinktest.Stalled {
		timeout = "300ms"
	}
	f.mu.Unlock()
	target := "influxdb:http://" + f.addr + "?timeout=" + timeout + "&batchsize=100&concurrency=2"
	if r.TLS {
		target += "&secure=true"
		if !r.Untrusted {
			target += "&cacert=" + f.tls.CAFile
		}
	}
	if r.Login {
		password := "right-password"
		if r.WrongLogin {
			password = "wrong-password"
		}
		target += "&user=heapster&pw=" + password
	}
	return target
}

func (f *fake) Behave(m sinktest.Mood) {
	f.mu.Lock()
	was := f.mood
	f.mood = m
	close(f.release)
	f.release = make(chan struct{})
	if m == sinktest.OK || m == sinktest.CutsOff {
		f.net.Behave(m)
	}
	f.mu.Unlock()
	switch {
	case m == sinktest.Down && was != sinktest.Down:
		f.server.CloseClientConnections()
		f.server.Close()
	case m != sinktest.Down && was == sinktest.Down:
		f.listen(f.addr)
	}
}

// Repair ends the fault of the reach.
func (f *fake) Repair() {
	if f.tls != nil {
		f.tls.Repair()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.r.Fault = sinktest.Sound
}

func (f *fake) Holds() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	holds := make(map[string]int, len(f.points))
	for name := range f.points {
		holds[name] = 1
	}
	return holds
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	mood, release, forgot := f.mood, f.release, f.r.Fault == sinktest.LoginForgotten
	f.mu.Unlock()
	if user, password, _ := r.BasicAuth(); f.r.Login && (forgot || user != "heapster" || password != "right-password") {
		reply(w, http.StatusUnauthorized, "authorization failed")
		return
	}
	switch mood {
	case sinktest.Slow:
		select {
		case <-time.After(5 * time.Millisecond):
		case <-r.Context().Done():
		}
	case sinktest.Stalled:
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return
	case sinktest.Failing:
		w.Header().Set("Retry-After", "0")
		reply(w, http.StatusServiceUnavailable, "timeout")
		return
	case sinktest.HangsUp:
		panic(http.ErrAbortHandler)
	case sinktest.Garbage:
		fmt.Fprint(w, "<html><title>It works!</title></html>")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.URL.Path == "/query" {
		form, err := url.ParseQuery(string(body))
		if err != nil || form.Get("q") != `CREATE DATABASE "k8s" WITH NAME "default"` {
			reply(w, http.StatusBadRequest, "error parsing query: "+form.Get("q"))
			return
		}
		f.created = true
		fmt.Fprint(w, `{"results":[{"statement_id":0}]}`)
		return
	}
	if want := "/write?consistency=&db=k8s&precision=&rp=default"; r.URL.String() != want {
		reply(w, http.StatusNotFound, "asked for "+r.URL.String()+", want "+want)
		return
	}
	if !f.created {
		reply(w, http.StatusNotFound, `database not found: "k8s"`)
		return
	}
	f.write(w, string(body), mood)
}

func (f *fake) write(w http.ResponseWriter, body string, mood sinktest.Mood) {
	dropped := 0
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if mood == sinktest.Refusing || mood == sinktest.HalfRefuses && strings.HasPrefix(line, sinktest.Refused+",") {
			dropped++
			continue
		}
		f.points[series(line)] = line
	}
	if dropped > 0 {
		reply(w, http.StatusBadRequest, fmt.Sprintf(
			`partial write: field type conflict: input field "value" on measurement %q is type integer, already exists as type float dropped=%d`, sinktest.Refused, dropped))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func reply(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"error":%q}`, reason)
}

// scripted answers requests one after the other.
type scripted struct {
	mu      sync.Mutex
	answers []func(w http.ResponseWriter, body string)
	bodies  []string
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, r.URL.Path+" "+string(body))
	if len(s.answers) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	next := s.answers[0]
	s.answers = s.answers[1:]
	next(w, string(body))
}

func script(t *testing.T, options string, answers ...func(http.ResponseWriter, string)) (*influx, *scripted) {
	t.Helper()
	s := &scripted{answers: answers}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	x := build(t, "influxdb:"+server.URL+options)
	t.Cleanup(func() { _ = x.Close() })
	return x, s
}

func says(code int, reason string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) { reply(w, code, reason) }
}

func created(w http.ResponseWriter, _ string) { fmt.Fprint(w, `{"results":[{"statement_id":0}]}`) }

func messages(rollups ...*proto.Rollup) []sink.Message {
	batch := make([]sink.Message, len(rollups))
	for i, r := range rollups {
		batch[i] = sink.Message{Rollup: r, ID: fmt.Sprint(i)}
	}
	return batch
}

func TestLostDatabaseIsCreatedAgain(t *testing.T) {
	x, s := script(t, "", created, says(404, `database not found: \"k8s\"`), created)
	if err := x.Write(t.Context(), messages(sinktest.Node("n", 1, 1, 0))); err != nil {
		t.Fatal(err)
	}
	if len(s.bodies) != 4 || !strings.HasPrefix(s.bodies[2], "/query q=CREATE+DATABASE") {
		t.Fatalf("%d requests, want create, write, create, write", len(s.bodies))
	}
}

func TestUserWithoutAdminWritesAnyway(t *testing.T) {
	x, _ := script(t, "", says(403, "error authorizing query: heapster not authorized to execute statement 'CREATE DATABASE', requires admin privilege"))
	if err := x.Write(t.Context(), messages(sinktest.Node("n", 1, 1, 0))); err != nil {
		t.Fatal(err)
	}
}

func TestAnswersDecideWhatHappensNext(t *testing.T) {
	check := func(answer func(http.ResponseWriter, string), verdict string, want string) {
		t.Helper()
		x, _ := script(t, "", created, answer)
		err := x.Write(t.Context(), messages(sinktest.Node("n", 1, 1, 0)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %q", err, want)
		}
		var p *sink.Partial
		got := "passing"
		if partial(err, &p) {
			got = "partial"
		} else if sink.IsPermanent(err) {
			got = "permanent"
		}
		if got != verdict {
			t.Errorf("%v is %s, want %s", err, got, verdict)
		}
	}
	check(says(500, "timeout"), "passing", "timeout")
	check(says(401, "authorization failed"), "passing", "check `user` and `pw`")
	check(says(403, `\"heapster\" user is not authorized to write to database \"k8s\"`), "passing", "check the privileges")
	check(says(404, "404 page not found"), "passing", "is the address right?")
	check(says(400, "partial write: points beyond retention policy dropped=7"), "partial", "7 samples older")
	check(func(w http.ResponseWriter, _ string) { http.Error(w, "<h1>Bad gateway</h1>", 502) }, "passing", "Bad gateway")
	check(func(w http.ResponseWriter, _ string) { http.Error(w, "no", 400) }, "passing", "no") // no InfluxDB's answer
	check(func(w http.ResponseWriter, _ string) {
		w.Header().Set("Location", "https://other/write?pw=x")
		w.WriteHeader(302)
	}, "passing", `redirects to "https://other/write"`)
}

func partial(err error, p **sink.Partial) bool {
	q, ok := err.(*sink.Partial)
	*p = q
	return ok
}

func TestRetryAfterIsPassedOn(t *testing.T) {
	x, _ := script(t, "", created, func(w http.ResponseWriter, _ string) {
		w.Header().Set("Retry-After", "7")
		reply(w, 429, "slow down")
	})
	if got := sink.RetryAfterOf(x.Write(t.Context(), messages(sinktest.Node("n", 1, 1, 0)))); got != 7*time.Second {
		t.Fatalf("wait %s, want 7s", got)
	}
}

// TestRefusedLinesAreFound lets a strict server refuse one line of many, without saying which.
func TestRefusedLinesAreFound(t *testing.T) {
	stored := map[string]bool{}
	strict := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/query" {
			created(w, "")
			return
		}
		dropped := 0
		for line := range strings.Lines(string(body)) {
			if strings.Contains(line, "container_name=kubelet,") && strings.HasPrefix(line, "memory/rss,") {
				dropped++
				continue
			}
			stored[line] = true
		}
		if dropped > 0 {
			reply(w, 400, fmt.Sprintf("partial write: max-values-per-tag limit exceeded dropped=%d", dropped))
			return
		}
		w.WriteHeader(204)
	}
	server := httptest.NewServer(http.HandlerFunc(strict))
	defer server.Close()
	x := build(t, "influxdb:"+server.URL)
	defer x.Close()
	err := x.Write(t.Context(), messages(sinktest.Node("a", 0, 0, 0), sinktest.Node("b", 3, 2, 0)))
	var p *sink.Partial
	if !partial(err, &p) || p.Err != nil || len(p.Refused) != 2 {
		t.Fatalf("got %v, want two refused lines", err)
	}
	for _, r := range p.Refused {
		if r.Samples != 1 || !strings.HasPrefix(r.Part, "memory/rss,cluster_name=default,container_name=kubelet,nodename=") {
			t.Errorf("refused %+v", r)
		}
		if want := map[int]string{0: "nodename=a,", 1: "nodename=b,"}[r.Message]; !strings.Contains(r.Part, want) {
			t.Errorf("line %q is said to be of message %d", r.Part, r.Message)
		}
	}
	if want := x.lines.len() - 2; len(stored) != want {
		t.Fatalf("%d lines are stored, want %d", len(stored), want)
	}
}

func TestTooLargeRequestsAreSplit(t *testing.T) {
	var most int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case r.URL.Path == "/query":
			created(w, "")
		case len(body) > 2000:
			reply(w, http.StatusRequestEntityTooLarge, "Request Entity Too Large")
		default:
			most += strings.Count(string(body), "\n")
			w.WriteHeader(204)
		}
	}))
	defer server.Close()
	x := build(t, "influxdb:"+server.URL)
	defer x.Close()
	if err := x.Write(t.Context(), messages(sinktest.Node("a", 2, 1, 0))); err != nil {
		t.Fatal(err)
	}
	if most != x.lines.len() {
		t.Fatalf("%d lines are written, want %d", most, x.lines.len())
	}
}

func TestOptions(t *testing.T) {
	check := func(target string, complaints ...string) {
		t.Helper()
		parsed, err := sink.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(parsed, sink.Deps{Labels: proto.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler)})
		for _, want := range complaints {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", target, err, want)
			}
		}
	}
	check("influxdb:http://h?withfields=maybe", "failed to parse `withfields` flag")
	check("influxdb:http://h?concurrency=0", "`concurrency` flag can only be positive")
	check("influxdb:http://h?retention=forever", "`retention` flag")
	check("influxdb:http://h?pasword=x&database=k", "option `database` is unknown", "option `pasword` is unknown")
	check("influxdb:http://h?withfield=true", "did you mean `withfields`?")
	check("influxdb:http://h?cert=x&cacert=/none", "`cert` and `key` belong together", "`cacert`")
	for target, want := range map[string]string{
		"influxdb": "http://localhost:8086", "influxdb:http://h": "http://h:8086", "influxdb:https://h:1": "https://h:1",
		"influxdb:h:9999": "http://h:9999", "influxdb:http://h:1/path?secure=true": "https://h:1",
		`"influxdb:http://quoted:1"`: "http://quoted:1",
	} {
		if got := build(t, target).base.String(); got != want {
			t.Errorf("%s reaches %s, want %s", target, got, want)
		}
	}
}
