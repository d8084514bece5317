// Package sinktest is the contract of package sink as a test suite: every sink runs it against a
// destination that can be made to misbehave.
//
// [Suite.Run] publishes rollups to a real bus, feeds the sink with a real worker, and counts what the
// destination holds in the end against what went in: nothing may be missing, and nothing doubled where
// the guarantee that the sink's Kind states says so. [Suite.Main] is for TestMain: it watches for leaked
// goroutines, and is the child process that is killed in the middle of its work. [Suite.Bench] measures
// how fast a sink writes.
//
// A sink's test says what its destination is like: a [Backend], which is a fake of the protocol, strict
// about what it accepts, that behaves as a [Mood] says. [Listen] has those moods that are the network's.
//
// [Oracle] and [Node] make rollups for tests of encoders and benchmarks.
//
// Not here: what each destination is like (a fake, or a real server, beside each sink's tests).
package sinktest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/worker"
)

// Mood is how a destination behaves.
type Mood int

// The moods.
const (
	OK          Mood = iota
	Slow             // takes its time, within the timeout
	Stalled          // takes requests and does not answer
	Down             // nobody answers
	Failing          // says that something is wrong with itself at the moment
	Refusing         // refuses whatever comes, for good
	HalfRefuses      // refuses, for good, the samples of Refused, and takes the rest
	HangsUp          // takes a request, and closes the connection without a word
	CutsOff          // takes the beginning of what is written, and closes the connection
	Garbage          // answers nonsense
)

var moods = [...]string{"ok", "slow", "stalled", "down", "failing", "refusing", "half refusing", "hanging up", "closing mid-write", "garbage"}

// String names the mood for a subtest.
func (m Mood) String() string { return moods[m] }

// Refused is the metric whose samples a destination refuses in the mood HalfRefuses.
const Refused = "memory/usage"

// RefusedMessage is what the messages of those events begin with that a destination refuses in the mood HalfRefuses. They
// are longer than others, for those that refuse by size.
const RefusedMessage = "refuse me"

// Reach is how a sink is told to reach its destination.
type Reach struct {
	TLS        bool  // the destination speaks TLS
	Untrusted  bool  // the sink is not told whose certificates to trust
	Login      bool  // the destination wants a login
	WrongLogin bool  // and the sink has a wrong one
	Fault      Fault // of the destination, until it is repaired
}

// Backend is a destination under control of the test.
type Backend interface {
	// Target is the value of --sink that reaches it, with a timeout below a second where the mood is one
	// without answers.
	Target(Reach) string
	// Behave changes the mood. It returns when the new one is in force.
	Behave(Mood)
	// Holds is what it holds now: how many of each sample, named by anything that tells samples apart.
	// Where the destination overwrites or drops what it has already, so must Holds.
	Holds() map[string]int
}

// Suite is one sink's contract.
type Suite struct {
	Kind sink.Kind
	// Start starts a destination, gone with the test, that speaks TLS or wants a login as asked.
	Start func(t *testing.T, r Reach) Backend
	// Names are the samples of a rollup as a sink without options writes it, named as Holds does.
	Names func(tb testing.TB, r *proto.Rollup) []string
	// EventNames, set instead of Names for a contract of events, are the names of an event, which is one sample here.
	// In the mood HalfRefuses the destination refuses those whose message begins with RefusedMessage.
	EventNames func(tb testing.TB, e *proto.Event) []string
	// IsRefused reports whether a name is one of what the destination refuses in the mood HalfRefuses. If
	// nil, those names are that a rollup lacks without the metric Refused.
	IsRefused func(name string) bool
	// Moods that such a destination cannot have, and why: a sentence of the sink's package comment, which an operator
	// reads.
	Without map[Mood]string
	// NoTLS and NoLogin are set where there is no such thing, and say why in the same way.
	NoTLS, NoLogin string
	// LoginHint is what the log says of a wrong login; "check `user`" if empty.
	LoginHint string
	// Out, if set, opens what the worker hands to the sink as Deps.Out; closed when the worker has ended.
	Out func(sink.Target) (io.WriteCloser, error)
}

// Environment of the child process.
const (
	childBus    = "HEAPSTREAM_SINKTEST_BUS"
	childTarget = "HEAPSTREAM_SINKTEST_TARGET"
	childNoun   = "HEAPSTREAM_SINKTEST_NOUN"
)

// Main runs a package's tests; call it from TestMain.
func (s *Suite) Main(m *testing.M, ignore ...goleak.Option) { Main(m, []*Suite{s}, ignore...) }

// Main runs the tests of a package with several contracts, of which at most one is of events.
func Main(m *testing.M, suites []*Suite, ignore ...goleak.Option) {
	if os.Getenv(childBus) != "" {
		i := slices.IndexFunc(suites, func(s *Suite) bool { return s.noun() == os.Getenv(childNoun) })
		if err := suites[i].child(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, ignore...)
}

// child feeds the sink until it is killed.
func (s *Suite) child() error {
	ctx := context.Background()
	cfg := bus.DefaultConfig()
	cfg.URLs = []string{os.Getenv(childBus)}
	conn, err := bus.Connect(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer conn.Close()
	w, done, err := s.worker(conn, os.Getenv(childTarget), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	defer done()
	return w.Run(ctx)
}

const cluster = "default"

// quick is a retry policy for tests.
var quick = worker.Retry{First: 5 * time.Millisecond, Most: 40 * time.Millisecond}

// worker builds a worker; done is called when it has ended.
func (s *Suite) worker(conn *bus.Conn, target string, log *slog.Logger, registry *prometheus.Registry) (w *worker.Worker, done func(), err error) {
	t, err := sink.ParseTarget(target)
	if err != nil {
		return nil, nil, err
	}
	deps := sink.Deps{Labels: proto.DefaultLabelFormat(), Timeout: 10 * time.Second, Version: "test"}
	done = func() {}
	if s.Out != nil {
		out, err := s.Out(t)
		if err != nil {
			return nil, nil, err
		}
		deps.Out, done = out, func() { _ = out.Close() }
	}
	w, err = worker.New(worker.Config{
		Name: "contract", Kind: s.Kind, Target: t, Clusters: []string{cluster}, Owner: "test", SinkDeps: deps,
		Events: s.EventNames != nil, Retry: quick, Batch: 4, Grace: 100 * time.Millisecond, Check: 10 * time.Millisecond,
	}, worker.Deps{Bus: conn, Log: log, Telemetry: worker.NewTelemetry(registry)})
	return w, done, err
}

// Run runs the contract.
func (s *Suite) Run(t *testing.T) {
	if s.Kind.Guarantee == 0 {
		t.Fatalf("kind %q does not state its guarantee", s.Kind.Key)
	}
	for m := OK; m <= Garbage; m++ {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			s.not(t, s.Without[m])
			s.mood(t, m)
		})
	}
	if s.NoTLS != "" {
		t.Run("certificates", func(t *testing.T) { s.not(t, s.NoTLS) })
	} else {
		t.Run("certificate of an unknown authority", func(t *testing.T) {
			t.Parallel()
			s.wrong(t, Reach{TLS: true, Fault: UnknownCA}, Reach{TLS: true, Untrusted: true}, "give `cacert`")
		})
		t.Run("certificate for another name", func(t *testing.T) {
			t.Parallel()
			s.wrong(t, Reach{TLS: true, Fault: OtherName}, Reach{TLS: true}, "its certificate is for another name")
		})
		t.Run("certificate expired", func(t *testing.T) {
			t.Parallel()
			s.wrong(t, Reach{TLS: true, Fault: Expired}, Reach{TLS: true}, "its certificate has expired")
		})
	}
	if s.NoLogin != "" {
		t.Run("credentials", func(t *testing.T) { s.not(t, s.NoLogin) })
	} else {
		t.Run("credentials wrong", func(t *testing.T) {
			t.Parallel()
			s.wrong(t, Reach{Login: true, Fault: LoginForgotten}, Reach{Login: true, WrongLogin: true}, cmp.Or(s.LoginHint, "check `user`"))
		})
	}
	if _, never := s.Without[Down]; !never {
		t.Run("down for ten minutes", s.outage)
	}
	if s.EventNames == nil {
		t.Run("filtered", s.filtered)
	}
	t.Run("three at once", s.concurrent)
	t.Run("stopped in the middle", s.stopped)
	t.Run("killed in the middle", s.killed)
}

// not skips what such a destination cannot do, if there is a reason. The sink's package comment must say so.
func (s *Suite) not(t *testing.T, reason string) {
	t.Helper()
	if reason == "" {
		return
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.Join(strings.Fields(f.Doc.Text()), " "), reason) {
			t.Skip(reason)
		}
	}
	t.Fatalf("the comment of this package does not say why: %s", reason)
}

// stage is a bus with rollups on it, and a destination.
type stage struct {
	t       *testing.T
	s       *Suite
	conn    *bus.Conn
	server  *bustest.Server
	backend Backend
	in      map[string]int // names of all samples published
	refused map[string]int // those of the metric Refused
	rollups int            // that the sink writes anything of
	enc     *proto.Encoder
	pub     *bus.Publisher
	log     recorder

	registry *prometheus.Registry // of the worker that was started last
}

func (s *Suite) stage(t *testing.T, ticks int, r Reach, opts ...bustest.Option) *stage {
	t.Helper()
	st := &stage{t: t, s: s, server: bustest.Start(t, opts...), in: map[string]int{}, refused: map[string]int{}}
	st.conn = st.server.Conn(t)
	bustest.Provision(t, st.conn, cluster)
	st.enc, st.pub = proto.NewEncoder(), st.conn.Publisher(bus.PublisherConfig{})
	st.ticks(0, ticks)
	st.backend = s.Start(t, r)
	return st
}

// nodes are what reports at every tick.
var nodes = []string{"node-1", "node-2.example.com"}

// ticks publishes all rollups of the ticks [from, to).
func (st *stage) ticks(from, to int) {
	st.t.Helper()
	for n := from; n < to; n++ {
		if st.s.EventNames != nil {
			st.events(n)
			continue
		}
		for _, node := range nodes {
			st.publish(Node(node, 2, 1, n))
		}
		ns := &proto.Rollup{Scope: proto.ScopeNamespace, Cluster: cluster, Name: "team-00", Tick: Node("", 0, 0, n).Tick, Resolution: 15 * time.Second}
		row := ns.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "team-00"})
		ns.Values.Set(row, proto.CPUUsageRate.Field(), int64(n))
		st.publish(ns)
		st.publish(totals(n))
	}
}

// events publishes what happened at a tick: of three namespaces, and of something that has none.
func (st *stage) events(n int) {
	st.t.Helper()
	at := Node("", 0, 0, n).Tick.Time().UnixNano()
	for i, namespace := range []string{"team-00", "team-01", "kube-system", ""} {
		e := &proto.Event{
			Cluster: cluster, UID: fmt.Sprintf("uid-%d-%d", n, i), Version: uint64(100*n + i + 1), Namespace: namespace, Name: fmt.Sprintf("web-1.%d", n), Created: at, //nolint:gosec // few
			Involved: proto.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "web-1", UID: "pod-uid"}, Reason: "Killing", Message: "it is killed", Type: "Normal",
			Component: "kubelet", Host: nodes[0], First: at, Last: at, Count: 1,
		}
		if i == 1 {
			e.Message = RefusedMessage + strings.Repeat(", please", 250)
		}
		data, err := st.enc.Event(e)
		if err != nil {
			st.t.Fatal(err)
		}
		if _, err := st.pub.Publish(st.t.Context(), bus.Message{Subject: bus.EventsSubject(cluster, namespace), ID: e.ID(), Data: data}); err != nil {
			st.t.Fatal(err)
		}
		for _, name := range st.s.EventNames(st.t, e) {
			st.in[name]++
			if strings.HasPrefix(e.Message, RefusedMessage) {
				st.refused[name]++
			}
		}
		st.rollups++
	}
}

func totals(n int) *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeTotals, Cluster: cluster, Tick: Node("", 0, 0, n).Tick, Resolution: 15 * time.Second}
	row := r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
	r.Values.Set(row, proto.MemoryUsage.Field(), int64(n))
	return r
}

func (st *stage) publish(r *proto.Rollup) {
	st.t.Helper()
	data, err := st.enc.Rollup(r)
	if err != nil {
		st.t.Fatal(err)
	}
	subject := bus.TotalsSubject(r.Cluster)
	switch r.Scope {
	case proto.ScopeNode:
		subject = bus.NodeRollupSubject(r.Cluster, r.Name)
	case proto.ScopeNamespace:
		subject = bus.NamespaceRollupSubject(r.Cluster, r.Name)
	}
	if _, err := st.pub.Publish(st.t.Context(), bus.Message{Subject: subject, ID: worker.MessageID(r), Data: data}); err != nil {
		st.t.Fatal(err)
	}
	names := st.s.Names(st.t, r)
	for _, name := range names {
		st.in[name]++
	}
	isRefused := st.s.IsRefused
	if isRefused == nil {
		for row := range r.Entities {
			r.Values.Clear(row, proto.MetricByName(Refused).ID.Field())
		}
		without := st.s.Names(st.t, r)
		isRefused = func(name string) bool { return !slices.Contains(without, name) }
	}
	for _, name := range names {
		if isRefused(name) {
			st.refused[name]++
		}
	}
	if len(names) > 0 {
		st.rollups++
	}
}

// feed runs a worker until stop is called, which returns when it has ended.
func (st *stage) feed(target string) (stop func()) {
	st.t.Helper()
	st.registry = prometheus.NewRegistry()
	w, done, err := st.s.worker(st.conn, target, slog.New(slog.NewTextHandler(&st.log, nil)), st.registry)
	if err != nil {
		st.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		err := <-ended
		done()
		if err != nil {
			st.t.Errorf("worker: %v", err)
		}
	})
	st.t.Cleanup(stop)
	return stop
}

// until waits for a fact.
func (st *stage) until(what string, fact func() bool) {
	st.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !fact() {
		if time.Now().After(deadline) {
			st.t.Fatalf("%s: not within 2 min; log:\n%s", what, st.log.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// complete waits until the destination holds everything of want, and compares. failures says that writes
// may have failed in between, which doubles, or with some guarantees loses.
func (st *stage) complete(want map[string]int, failures bool) {
	st.t.Helper()
	if st.s.Kind.Guarantee != sink.AtMostOnce || !failures {
		st.until("the destination has everything", func() bool {
			holds := st.backend.Holds()
			for name, n := range want {
				if holds[name] < n {
					return false
				}
			}
			return true
		})
	}
	st.until("everything is acknowledged", func() bool { return st.lag() == 0 })
	var wrong []string
	for name, n := range st.backend.Holds() {
		if n > want[name] && (want[name] == 0 || st.s.Kind.Guarantee.Once() || !failures) {
			wrong = append(wrong, fmt.Sprintf("%d, want %d: %s", n, want[name], name))
		}
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		st.t.Fatalf("the destination holds too much of %d samples, first: %s", len(wrong), wrong[0])
	}
}

// lag is how many messages are not acknowledged, as the running worker saw last; -1 where none runs here.
func (st *stage) lag() int { return int(st.metric("heapstream_sink_pending")) }

// metric is a number of the running worker's telemetry; -1 where there is none.
func (st *stage) metric(name string) float64 {
	st.t.Helper()
	if st.registry == nil {
		return -1
	}
	return telemetry(st.t, st.registry, name)
}

// telemetry is a number of the one cluster that a worker feeds; -1 where there is none.
func telemetry(tb testing.TB, registry *prometheus.Registry, name string) float64 {
	tb.Helper()
	families, err := registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				if slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == "cluster" && l.GetValue() == "" }) {
					continue // of letters that are driven again
				}
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

func (st *stage) letters() (letters []bus.DeadLetter) {
	st.t.Helper()
	for l, err := range st.conn.Letters(st.t.Context(), bus.SinkLease("contract")) {
		if err != nil {
			st.t.Fatal(err)
		}
		letters = append(letters, l)
	}
	return letters
}

// failing is what the worker logs when it has to try again.
func (s *Suite) failing() string { return "sink does not take " + s.noun() + "s" }

// noun is what the sink is fed with.
func (s *Suite) noun() string {
	if s.EventNames != nil {
		return "event"
	}
	return "rollup"
}

func (s *Suite) mood(t *testing.T, m Mood) {
	st := s.stage(t, 4, Reach{})
	st.backend.Behave(m)
	st.feed(st.backend.Target(Reach{}))
	switch m {
	case OK, Slow:
		st.complete(st.in, false)
		if n := len(st.letters()); n > 0 {
			t.Fatalf("%d letters in DEAD, want none", n)
		}
	case Refusing:
		st.until("every rollup is in DEAD", func() bool { return len(st.letters()) == st.rollups })
		st.until("everything is acknowledged", func() bool { return st.lag() == 0 })
		if n := len(st.backend.Holds()); n > 0 {
			t.Fatalf("%d samples are held of %d refused", n, len(st.in))
		}
	case HalfRefuses:
		if n := len(st.refused); n == 0 || n == len(st.in) {
			t.Fatalf("%d of %d samples are to be refused: want some of them", n, len(st.in))
		}
		want := maps.Clone(st.in)
		maps.DeleteFunc(want, func(name string, _ int) bool { return st.refused[name] > 0 })
		st.complete(want, true)
		parts := 0
		for _, l := range st.letters() {
			if !strings.Contains(l.Reason, "refused") {
				t.Errorf("letter of message %d has the reason %q", l.Seq, l.Reason)
			}
			if s.EventNames != nil {
				parts++
				continue
			}
			if err := proto.NewDecoder().Rollup(l.Data, new(proto.Rollup)); err != nil {
				t.Errorf("letter of message %d cannot be re-driven: %v", l.Seq, err)
			}
			parts += len(l.Header["Hs-Refused"])
		}
		if parts != len(st.refused) {
			t.Errorf("letters name %d refused samples, want %d", parts, len(st.refused))
		}
	default:
		st.until("the worker meets a failure", func() bool { return strings.Contains(st.log.String(), s.failing()) })
		if st.lag() == 0 {
			t.Fatal("something is acknowledged that cannot have been written")
		}
		st.backend.Behave(OK)
		st.complete(st.in, true)
		if n := len(st.letters()); n > 0 {
			t.Fatalf("%d letters in DEAD, want none", n)
		}
		st.until("the worker says that it goes on", func() bool { return strings.Contains(st.log.String(), "sink takes "+s.noun()+"s again") })
	}
	if strings.Contains(st.log.String(), "right-password") {
		t.Fatal("the log has the password")
	}
}

// wrong: a fault of the sink's settings, or of the destination, is named in the log with the way out, writes nothing
// and gives nothing up. The worker goes on where it is by itself once the destination is repaired.
func (s *Suite) wrong(t *testing.T, at, bad Reach, says string) {
	st := s.stage(t, 2, at)
	repairable, ok := st.backend.(Repairable)
	if !ok {
		t.Fatalf("a %T cannot be repaired: embed *sinktest.HTTP or *sinktest.Stream, or see TLS", st.backend)
	}
	good := Reach{TLS: at.TLS, Login: at.Login}
	met := func() {
		t.Helper()
		said := len(st.log.String())
		stop := st.feed(st.backend.Target(bad))
		st.until("the log names what is wrong: "+says, func() bool { return strings.Contains(st.log.String()[said:], says) })
		stop()
	}
	if bad != good {
		met()
	}
	bad = good
	met()
	said := len(st.log.String())
	st.feed(st.backend.Target(good))
	st.until("it is tried again", func() bool { return st.metric("heapstream_sink_writes_retried_total") >= 2 })
	if st.lag() == 0 || !strings.Contains(st.log.String()[said:], says) {
		t.Fatalf("%d messages are left and the log says:\n%s", st.lag(), st.log.String()[said:])
	}
	if holds, letters := len(st.backend.Holds()), len(st.letters()); holds > 0 || letters > 0 {
		t.Fatalf("%d samples are held and %d letters are in DEAD though nothing can be written", holds, letters)
	}
	repairable.Repair()
	st.complete(st.in, true)
	st.until("the worker says that it goes on", func() bool { return strings.Contains(st.log.String()[said:], "sink takes "+s.noun()+"s again") })
	families, err := st.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"right-password", "wrong-password"} {
		if strings.Contains(st.log.String(), secret) {
			t.Fatalf("the log has the password:\n%s", st.log.String())
		}
		if strings.Contains(fmt.Sprint(families), secret) {
			t.Fatalf("the telemetry has the password: %s", families)
		}
	}
}

// with is a target with more options.
func with(target, options string) string {
	switch {
	case strings.Contains(target, "?"):
		return target + "&" + options
	case strings.Contains(target, ":"):
		return target + "?" + options
	}
	return target + ":?" + options
}

// outage: nobody answers while ten minutes of ticks go by; then everything arrives.
func (s *Suite) outage(t *testing.T) {
	t.Parallel()
	st := s.stage(t, 1, Reach{})
	st.feed(st.backend.Target(Reach{}))
	st.complete(st.in, false)
	st.backend.Behave(Down)
	st.ticks(1, 2)
	st.until("the worker meets a failure", func() bool { return strings.Contains(st.log.String(), s.failing()) })
	st.ticks(2, 1+int(10*time.Minute/(15*time.Second)))
	if n := strings.Count(st.log.String(), s.failing()); n > 1 {
		t.Fatalf("the log says %d times that the destination is down, want once", n)
	}
	st.backend.Behave(OK)
	st.until("everything is acknowledged", func() bool { return st.metric("heapstream_sink_messages_written_total") >= float64(st.rollups) })
	st.complete(st.in, true)
	if n := len(st.letters()); n > 0 {
		t.Fatalf("%d letters in DEAD, want none", n)
	}
}

// filtered: the options that every sink has are heeded.
func (s *Suite) filtered(t *testing.T) {
	t.Parallel()
	st := s.stage(t, 2, Reach{})
	want := map[string]int{}
	for n := range 2 {
		for _, r := range []*proto.Rollup{Node(nodes[0], 0, 0, n), Node(nodes[1], 0, 0, n), totals(n)} {
			for _, name := range s.Names(t, r) {
				want[name]++
			}
		}
	}
	st.feed(with(st.backend.Target(Reach{}), "filter=-namespace:*"))
	st.complete(want, false)
}

// several is a target of three sinks at once, where such a sink can be had several times.
func (s *Suite) several(target string) (three string, can bool) {
	three = with(target, "concurrency=3")
	parsed, err := sink.ParseTarget(three)
	if err != nil {
		return target, false
	}
	build := s.Kind.New
	if s.EventNames != nil {
		build = s.Kind.NewEvents
	}
	one, err := build(parsed, sink.Deps{Cluster: cluster, Labels: proto.DefaultLabelFormat(), Timeout: time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return target, false
	}
	return three, one.Close() == nil
}

// concurrent: a sink that can be had several times at once writes the same.
func (s *Suite) concurrent(t *testing.T) {
	t.Parallel()
	st := s.stage(t, 8, Reach{})
	target, can := s.several(st.backend.Target(Reach{}))
	if !can {
		t.Skip("such a sink cannot be had several times at once")
	}
	st.feed(target)
	st.complete(st.in, false)
}

// stopped: workers come and go while rollups are written.
func (s *Suite) stopped(t *testing.T) {
	t.Parallel()
	st := s.stage(t, 30, Reach{})
	st.backend.Behave(Slow)
	for range 4 {
		held := len(st.backend.Holds())
		stop := st.feed(st.backend.Target(Reach{}))
		st.until("something is written", func() bool { return len(st.backend.Holds()) > held || st.lag() == 0 })
		stop()
	}
	st.backend.Behave(OK)
	st.feed(st.backend.Target(Reach{}))
	st.complete(st.in, true)
}

// killed: a process that feeds the sink, by several at once where it can, gets SIGKILL in the middle.
func (s *Suite) killed(t *testing.T) {
	t.Parallel()
	st := s.stage(t, 30, Reach{}, bustest.Listen)
	st.backend.Behave(Slow)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	target, _ := s.several(st.backend.Target(Reach{}))
	child := exec.CommandContext(t.Context(), exe)
	child.Env = append(os.Environ(), childBus+"="+st.server.URL(), childTarget+"="+target, childNoun+"="+s.noun())
	var said bytes.Buffer
	child.Stderr = &said
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	st.until("the child writes", func() bool { return len(st.backend.Holds()) > 0 })
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := child.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("child was not killed but ended: %v\n%s", err, said.String())
	}
	st.ticks(30, 34) // so there is something left however far it came
	st.backend.Behave(OK)
	st.feed(st.backend.Target(Reach{})) // once the dead one's lease has run out
	st.complete(st.in, true)
}

// recorder is a log that can be read while it is written.
type recorder struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

// String is what was logged so far.
func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}
