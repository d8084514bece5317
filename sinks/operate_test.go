package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// Environment of a child process, which is a worker or an operator that gets killed.
const (
	childBus    = "HEAPSTREAM_TEST_BUS"
	childSink   = "HEAPSTREAM_TEST_SINK"   // of a worker: the value of --sink
	childRewind = "HEAPSTREAM_TEST_REWIND" // of an operator: the sink to rewind to the start
)

func TestMain(m *testing.M) {
	if os.Getenv(childBus) != "" {
		if err := child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func child() error {
	ctx := context.Background()
	cfg := bus.DefaultConfig()
	cfg.URLs = []string{os.Getenv(childBus)}
	conn, err := bus.Connect(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer conn.Close()
	if name := os.Getenv(childRewind); name != "" {
		return NewOperator(conn, os.Stdout).Rewind(ctx, name, RewindTo{Start: true}, nil, false)
	}
	s, err := New(Config{Sinks: []string{os.Getenv(childSink)}, Timeout: 2 * time.Minute}, Deps{Bus: conn, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// system is a bus, a database, and workers that come and go.
type system struct {
	t      *testing.T
	server *bustest.Server
	conn   *bus.Conn
	op     *Operator
	out    bytes.Buffer // of the operator
	target string

	mu      sync.Mutex
	refuses bool
	slow    time.Duration
	wrote   []int // ticks in the order in which they came
}

func newSystem(t *testing.T) *system {
	server := bustest.Start(t, bustest.Listen)
	s := systemOn(t, server.Conn(t))
	s.server = server
	return s
}

func systemOn(t *testing.T, conn *bus.Conn) *system {
	s := &system{t: t, conn: conn}
	bustest.Provision(t, s.conn, "c")
	if err := s.conn.Register(t.Context(), "c", bus.ClusterInfo{UID: "u", Resolution: time.Second}); err != nil {
		t.Fatal(err)
	}
	db := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(db.Close)
	s.target = "influxdb:" + db.URL + "?name=db"
	s.op = NewOperator(s.conn, &s.out)
	return s
}

// serve is the database.
func (s *system) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if r.URL.Path != "/write" {
		fmt.Fprint(w, `{"results":[{}]}`)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	time.Sleep(s.slow)
	if s.refuses {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, `{"error":"partial write: field type conflict dropped=%d"}`, bytes.Count(body, []byte("\n")))
		return
	}
	for line := range strings.Lines(string(body)) {
		at, err := strconv.ParseInt(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 10, 64)
		if err != nil {
			s.t.Errorf("line %q: %v", line, err)
		}
		s.wrote = append(s.wrote, int(at/1e9))
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *system) behave(refuses bool, slow time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuses, s.slow = refuses, slow
}

func (s *system) written() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.wrote)
}

// publish publishes one sample at each of the ticks [from, to], in seconds.
func (s *system) publish(from, to int) {
	s.t.Helper()
	enc, pub := proto.NewEncoder(), s.conn.Publisher(bus.PublisherConfig{})
	for n := from; n <= to; n++ {
		r := &proto.Rollup{Scope: proto.ScopeTotals, Cluster: "c", Tick: proto.Tick(n * 1000), Resolution: time.Second}
		r.Values.Set(r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1}), proto.MemoryUsage.Field(), 1)
		data, err := enc.Rollup(r)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := pub.Publish(s.t.Context(), bus.Message{Subject: bus.TotalsSubject("c"), ID: "c/" + strconv.Itoa(n), Data: data}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// feed runs a worker in this process.
func (s *system) feed(options string) (stop func()) {
	s.t.Helper()
	w, err := New(Config{Sinks: []string{s.target + options}, Timeout: 2 * time.Minute},
		Deps{Bus: s.conn, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// start runs this test's binary as a child.
func (s *system) start(env ...string) *exec.Cmd {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	c := exec.CommandContext(s.t.Context(), exe)
	c.Env = append(append(os.Environ(), childBus+"="+s.server.URL()), env...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *system) kill(c *exec.Cmd) {
	s.t.Helper()
	if err := c.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		s.t.Fatalf("child was not killed but ended: %v", err)
	}
}

func (s *system) until(what string, fact func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !fact(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within 2 min; written %v; the operator said %s", what, s.written(), s.out.String())
		}
	}
}

// line is the one line of `list`; zero before the sink has run.
func (s *system) line() (l listed) {
	s.t.Helper()
	var out bytes.Buffer
	op := NewOperator(s.conn, &out)
	op.JSON = true
	if err := op.List(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if out.Len() == 0 {
		return l // it has not run yet
	}
	if err := json.Unmarshal(out.Bytes(), &l); err != nil {
		s.t.Fatalf("%v in %s", err, out.String())
	}
	return l
}

func (s *system) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func ticks(from, to int) (all []int) {
	for n := from; n <= to; n++ {
		all = append(all, n)
	}
	return all
}

func (s *system) want(ticks ...[]int) {
	s.t.Helper()
	want := slices.Concat(ticks...)
	s.until(fmt.Sprint("written is ", want), func() bool { return slices.Equal(s.written(), want) })
	s.until("it is acknowledged", func() bool { return s.line().Pending == 0 }) // else it comes again, as it must
}

func TestRewindOfARunningSink(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(1, 20)
	s.feed("")
	s.want(ticks(1, 20))

	check := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	check(s.op.Rewind(t.Context(), "bd", RewindTo{Start: true}, nil, false), `there is no sink "bd": did you mean "db"?`)
	check(s.op.Rewind(t.Context(), "db", RewindTo{Seq: 99}, nil, false), "message 99 of rollups of cluster \"c\" is not there yet")
	check(s.op.Rewind(t.Context(), "db", RewindTo{Seq: 1}, []string{"events"}, false), "does not read events")

	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Seq: 11}, nil, false))
	s.want(ticks(1, 20), ticks(11, 20))
	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Start: true}, nil, false))
	s.want(ticks(1, 20), ticks(11, 20), ticks(1, 20))
	at, ok, err := s.conn.Get(t.Context(), bus.RollupsStream("c"), 18)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Time: at.Time}, nil, false))
	s.publish(21, 22) // which comes last, whenever the worker is back
	s.want(ticks(1, 20), ticks(11, 20), ticks(1, 20), ticks(18, 22))
	if want := "db: rollups of cluster c go on with message 11, was 21\n"; !strings.HasPrefix(s.out.String(), want) {
		t.Errorf("said %q, want %q first", s.out.String(), want)
	}
}

func TestRewindToTheStartThoughItBeganNow(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(1, 5)
	s.feed("&since=now")
	s.until("the sink has its place", func() bool { return s.line().Position == 5 })
	s.publish(6, 8)
	s.want(ticks(6, 8))
	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Start: true}, nil, false))
	s.want(ticks(6, 8), ticks(1, 8))
}

func TestSinceIsForTheFirstStartAlone(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(1, 8)
	at, ok, err := s.conn.Get(t.Context(), bus.RollupsStream("c"), 6)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	stop := s.feed("&since=" + at.Time.Format(time.RFC3339Nano))
	s.want(ticks(6, 8))
	stop()
	stop = s.feed("&since=24h")
	s.publish(9, 10)
	s.want(ticks(6, 10))
	stop()
	s.feed("&since=now")
	s.publish(11, 11)
	s.want(ticks(6, 11))
}

func TestPauseHoldsAcrossWorkers(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(1, 5)
	stop := s.feed("")
	s.want(ticks(1, 5))
	s.ok(s.op.Pause(t.Context(), "db", 0))
	s.publish(6, 10)
	paused := func() bool { l := s.line(); return l.Paused != nil && l.Pending == 5 && l.Worker != "" }
	s.until("the sink is paused, fed and behind", paused)
	stop()
	stop = s.feed("")
	s.until("it still is under the next worker", paused)
	if got := s.written(); !slices.Equal(got, ticks(1, 5)) {
		t.Fatalf("written %v during a pause", got)
	}
	// Forward is what was not written, and wants a word more.
	err := s.op.Rewind(t.Context(), "db", RewindTo{Seq: 9}, nil, false)
	if err == nil || !strings.Contains(err.Error(), "--skip") {
		t.Fatalf("skipped by %v", err)
	}
	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Seq: 9}, nil, true))
	s.ok(s.op.Resume(t.Context(), "db"))
	s.want(ticks(1, 5), ticks(9, 10))
	s.until("nothing is paused", func() bool { l := s.line(); return l.Paused == nil && l.Pending == 0 })
	s.out.Reset()
	s.ok(s.op.List(t.Context()))
	if f := strings.Fields(s.out.String()); !slices.Equal(f[:9], strings.Fields("SINK CLUSTER STREAM STATE PENDING OLDEST LOST DEAD WORKER")) ||
		!slices.Equal(f[9:17], strings.Fields("db c rollups running 0 - 0 0")) {
		t.Errorf("listed\n%s", s.out.String())
	}
	stop()
}

func TestAnOperatorKilledInTheMiddleLeavesTheSinkRunning(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.publish(1, 10)
	s.feed("")
	s.want(ticks(1, 10))
	operator := s.start(childRewind + "=db")
	for l, err := range s.conn.WatchLeases(t.Context(), bus.SinkLeases) { // it is in the middle while it waits for the worker to give up
		s.ok(err)
		if strings.HasPrefix(l.Owner, "operator ") {
			break
		}
	}
	s.kill(operator)
	s.until("the worker has its lease again", func() bool { l := s.line(); return l.Worker != "" && !strings.HasPrefix(l.Worker, "operator ") })
	s.publish(11, 15)
	s.want(ticks(1, 15)) // as if nothing had been asked for
	s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Start: true}, nil, false))
	s.want(ticks(1, 15), ticks(1, 15))
}

func TestLettersAreTriedAgainByTheirSinkAlone(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	s.behave(true, 0)
	s.publish(1, 30)
	stop := s.feed("")
	s.until("all is refused", func() bool { return s.line().Dead == 30 })
	s.ok(s.op.Letters(t.Context(), "db"))
	if got := s.out.String(); strings.Count(got, "\n") != 31 || strings.Count(got, "field type conflict") != 30 || strings.Count(got, " db ") != 30 {
		t.Fatalf("listed\n%s", got)
	}
	s.ok(s.op.Redrive(t.Context(), "db")) // still refused, so letters once more
	s.until("all is refused again", func() bool { return s.line().Dead == 30 })
	s.out.Reset()
	s.ok(s.op.Letters(t.Context(), ""))
	if got := s.out.String(); strings.Count(got, "hs.rollups.c.totals") != 30 {
		t.Fatalf("listed after the second refusal\n%s", got)
	}
	stop()

	// A worker is killed while it writes them.
	s.behave(false, 10*time.Millisecond)
	worker := s.start(childSink + "=" + s.target)
	s.ok(s.op.Redrive(t.Context(), ""))
	s.until("some are written", func() bool { return len(s.written()) > 3 })
	s.kill(worker)
	s.feed("")
	distinct := func() []int {
		all := s.written()
		slices.Sort(all)
		return slices.Compact(all)
	}
	s.until("all are written", func() bool { return slices.Equal(distinct(), ticks(1, 30)) })
	s.until("no letter is left", func() bool { return s.line().Dead == 0 })
	state, err := s.conn.StreamState(t.Context(), bus.RollupsStream("c"))
	if err != nil || state.Messages != 30 {
		t.Fatalf("ROLLUPS hold %d messages (%v), want the 30 of before", state.Messages, err)
	}
	s.out.Reset()
	s.ok(s.op.Redrive(t.Context(), ""))
	if s.out.String() != "there is no letter\n" {
		t.Errorf("said %q", s.out.String())
	}
	// What nobody would read is not given away.
	s.ok(s.conn.Dead(t.Context(), bus.DeadLetter{Reader: bus.SinkLease("gone"), Stream: "S", Subject: "s", Seq: 1}))
	if err := s.op.Redrive(t.Context(), ""); err == nil || !strings.Contains(err.Error(), `1 letters of sink "gone" stay`) {
		t.Errorf("letters of a sink that is gone: %v", err)
	}
	if n, err := s.conn.LetterCounts(t.Context()); err != nil || n[bus.SinkLease("gone")] != 1 {
		t.Errorf("letters %v, %v", n, err)
	}
}

// TestRolesSuffice: workers and operators work with what bus.Permissions says of their roles, and workers may do
// nothing of what operators do.
func TestRolesSuffice(t *testing.T) {
	t.Parallel()
	for _, cluster := range []string{"c", ""} {
		users := "{user: all, password: p}\n"
		for _, role := range []bus.Role{bus.RoleSinks, bus.RoleAdmin} {
			publish, subscribe := bus.Permissions(role, cluster)
			quote := func(all []string) string { return `"` + strings.Join(all, `", "`) + `"` }
			users += fmt.Sprintf("{user: %s, password: p, permissions: {publish: [%s], subscribe: [%s]}}\n", role, quote(publish), quote(subscribe))
		}
		server := bustest.Configure(t, "authorization { users = [\n"+users+"] }\n")
		as := func(role bus.Role) *bus.Conn {
			return server.Conn(t, bus.Config{User: string(role), Password: "p", InboxPrefix: bus.InboxPrefix(role, cluster)}, slog.New(slog.DiscardHandler))
		}
		s := systemOn(t, server.Conn(t, bus.Config{User: "all", Password: "p"}, slog.New(slog.DiscardHandler)))
		worker, admin := as(bus.RoleSinks), as(bus.RoleAdmin)
		s.behave(true, 0)
		s.publish(1, 3)
		s.conn = worker
		stop := s.feed("")
		s.conn, s.op = admin, NewOperator(admin, &s.out)
		s.until("all is refused", func() bool { return s.line().Dead == 3 })
		s.behave(false, 0)
		s.ok(s.op.Letters(t.Context(), ""))
		s.ok(s.op.Redrive(t.Context(), "db"))
		s.want(ticks(1, 3))
		s.ok(s.op.Pause(t.Context(), "db", time.Hour))
		s.ok(s.op.Resume(t.Context(), "db"))
		s.ok(s.op.Rewind(t.Context(), "db", RewindTo{Start: true}, nil, false))
		s.want(ticks(1, 3), ticks(1, 3))
		if err := NewOperator(worker, io.Discard).Pause(t.Context(), "db", time.Hour); !errors.Is(err, bus.ErrNotPermitted) {
			t.Errorf("a worker pauses: %v", err)
		}
		stop()
		s.ok(s.op.Forget(t.Context(), "db"))
	}
}

func TestParseTo(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]RewindTo{
		"start": {Start: true}, "now": {Time: now}, "2h": {Time: now.Add(-2 * time.Hour)}, "77": {Seq: 77},
		"2026-11-21T00:00:00Z": {Time: now.Add(-12 * time.Hour)},
	} {
		if got, err := ParseTo(s, now); err != nil || got != want {
			t.Errorf("%s is %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "yesterday", "-2h", "2026-11-21"} {
		if got, err := ParseTo(s, now); err == nil {
			t.Errorf("%q is %+v", s, got)
		}
	}
}
