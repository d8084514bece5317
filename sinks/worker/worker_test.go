package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a sink that remembers what it was given.
type memory struct {
	mu     sync.Mutex
	writes [][]string // ids, by Write that succeeded
	fail   func(ids []string) error
	closed int
}

func (m *memory) Write(_ context.Context, batch []sink.Message) error {
	var ids []string
	for i := range batch {
		ids = append(ids, batch[i].ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(ids); err != nil {
			return err
		}
	}
	m.writes = append(m.writes, ids)
	return nil
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed++
	return nil
}

func (m *memory) ids() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Concat(m.writes...)
}

func (m *memory) kind() sink.Kind {
	return sink.Kind{Key: "memory", New: func(sink.Target, sink.Deps) (sink.Sink, error) { return m, nil }}
}

type fixture struct {
	t    *testing.T
	conn *bus.Conn
	sink *memory
	tel  *Telemetry

	padding int // bytes that a rollup has beside what it says
	log     recorder
}

// recorder is a log that can be read while it is written.
type recorder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func newFixture(t *testing.T, clusters ...string) *fixture {
	f := &fixture{t: t, conn: bustest.Start(t).Conn(t), sink: &memory{}, tel: NewTelemetry(prometheus.NewRegistry())}
	for _, c := range clusters {
		bustest.Provision(t, f.conn, c)
	}
	return f
}

func (f *fixture) publish(cluster string, from, to int) (ids []string) {
	f.t.Helper()
	pub, enc := f.conn.Publisher(bus.PublisherConfig{}), proto.NewEncoder()
	for n := from; n < to; n++ {
		r := &proto.Rollup{Scope: proto.ScopeTotals, Cluster: cluster, Tick: proto.Tick(n * 1000), Resolution: time.Second}
		r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
		for left := f.padding; left > 0; left -= 4096 {
			b := make([]byte, 4096)
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			r.AddEntity(proto.Entity{Kind: proto.KindWorkload, Parent: -1, Name: string(b)})
		}
		data, err := enc.Rollup(r)
		if err != nil {
			f.t.Fatal(err)
		}
		if _, err := pub.Publish(f.t.Context(), bus.Message{Subject: bus.TotalsSubject(cluster), ID: MessageID(r), Data: data}); err != nil {
			f.t.Fatal(err)
		}
		ids = append(ids, MessageID(r))
	}
	return ids
}

func (f *fixture) run(s *memory, clusters ...string) (stop func()) {
	f.t.Helper()
	return f.runKind(s.kind(), "memory", clusters...)
}

func (f *fixture) runKind(kind sink.Kind, target string, clusters ...string) (stop func()) {
	f.t.Helper()
	return f.runConfig(Config{Kind: kind}, target, clusters...)
}

func (f *fixture) runConfig(cfg Config, target string, clusters ...string) (stop func()) {
	f.t.Helper()
	var err error
	if cfg.Target, err = sink.ParseTarget(target); err != nil {
		f.t.Fatal(err)
	}
	cfg.Name, cfg.Clusters, cfg.Owner = "m.1", clusters, "test"
	cfg.Retry, cfg.Check, cfg.Batch = Retry{First: time.Millisecond, Most: 10 * time.Millisecond}, 10*time.Millisecond, 8
	w, err := New(cfg,
		Deps{Bus: f.conn, Log: slog.New(slog.NewTextHandler(&f.log, nil)), Telemetry: f.tel})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
	f.t.Cleanup(stop)
	return stop
}

func (f *fixture) until(what string, fact func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !fact(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: not within 2 min", what)
		}
	}
}

// lag is how many messages wait, as seen last; -1 where nobody has looked.
func (f *fixture) lag() int {
	ch := make(chan prometheus.Metric, 100)
	f.tel.pending.Collect(ch)
	close(ch)
	lag := -1
	for m := range ch {
		var d dto.Metric
		if m.Write(&d) == nil && d.GetLabel()[0].GetValue() != "" { // of a cluster, not of letters driven again
			lag = max(lag, 0) + int(d.GetGauge().GetValue())
		}
	}
	return lag
}

// count is the sum of a counter over everything it tells apart.
func count(c prometheus.Collector) (sum float64) {
	ch := make(chan prometheus.Metric, 100)
	c.Collect(ch)
	close(ch)
	for m := range ch {
		var d dto.Metric
		if m.Write(&d) == nil {
			sum += d.GetCounter().GetValue()
		}
	}
	return sum
}

func TestPoisonIsFoundAndTheRestIsWritten(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 30)
	poison := []string{want[3], want[17], want[18]}
	f.sink.fail = func(ids []string) error {
		for _, id := range ids {
			if slices.Contains(poison, id) {
				return sink.Permanent(fmt.Errorf("%s is poison", id))
			}
		}
		return nil
	}
	f.run(f.sink, "c")
	good := slices.DeleteFunc(slices.Clone(want), func(id string) bool { return slices.Contains(poison, id) })
	f.until("the good ones are written", func() bool { return len(f.sink.ids()) >= len(good) })
	if got := f.sink.ids(); !slices.Equal(got, good) {
		t.Fatalf("written %v, want %v in this order", got, good)
	}
	f.until("the poison is in DEAD", func() bool { return count(f.tel.dead) == 3 })
}

func TestWhatIsNoRollupGoesToDead(t *testing.T) {
	f := newFixture(t, "c")
	first := f.publish("c", 1, 3)
	if _, err := f.conn.Publisher(bus.PublisherConfig{}).Publish(t.Context(), bus.Message{Subject: bus.NodeRollupSubject("c", "n"), Data: []byte("nonsense")}); err != nil {
		t.Fatal(err)
	}
	want := append(first, f.publish("c", 3, 5)...)
	f.run(f.sink, "c")
	f.until("the others are written", func() bool { return slices.Equal(f.sink.ids(), want) })
	f.until("the message is in DEAD", func() bool { return count(f.tel.undecodable) == 1 && count(f.tel.dead) == 1 })
}

func TestFailuresHoldTheHeadAndKeepTheOrder(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 60)
	n := 0
	f.sink.fail = func([]string) error {
		if n++; n%3 != 0 {
			return sink.RetryAfter(time.Millisecond, errors.New("not now"))
		}
		return nil
	}
	f.run(f.sink, "c")
	f.until("all are written", func() bool { return len(f.sink.ids()) >= len(want) })
	if got := f.sink.ids(); !slices.Equal(got, want) {
		t.Fatalf("written %v, want %v", got, want)
	}
	if got := count(f.tel.retried); got < 10 {
		t.Fatalf("%v writes retried", got)
	}
}

func TestWorkersTakeOverInOrder(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 40)
	stop := f.run(f.sink, "c")
	f.until("the first writes", func() bool { return len(f.sink.ids()) > 0 }) // so it holds the lease
	other := &memory{}
	f.run(other, "c") // stands by
	stop()
	want = append(want, f.publish("c", 40, 60)...)
	f.until("the second goes on", func() bool {
		ids := other.ids()
		return len(ids) > 0 && ids[len(ids)-1] == want[len(want)-1]
	})
	all := append(f.sink.ids(), other.ids()...)
	if !slices.Equal(all, want) { // an orderly stop acknowledges, so nothing comes twice
		t.Fatalf("written %v", all)
	}
}

func TestEveryRegisteredClusterIsFed(t *testing.T) {
	f := newFixture(t, "a", "b")
	register := func(c string) {
		if err := f.conn.Register(t.Context(), c, bus.ClusterInfo{UID: c, Resolution: time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	register("a")
	want := f.publish("a", 1, 5)
	f.run(f.sink)
	f.until("the first cluster is written", func() bool { return len(f.sink.ids()) == len(want) })
	want = append(want, f.publish("b", 1, 5)...)
	register("b")
	f.until("the second cluster is written", func() bool { return slices.Equal(f.sink.ids(), want) })
	if err := f.conn.Unregister(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	f.until("the first cluster's sink is closed", func() bool {
		f.sink.mu.Lock()
		defer f.sink.mu.Unlock()
		return f.sink.closed == 2 // and the one that New tried
	})
}

func TestAClusterWithoutStreamHoldsUpNobody(t *testing.T) {
	f := newFixture(t, "a")
	want := f.publish("a", 1, 5)
	f.run(f.sink, "missing", "a")
	f.until("the other cluster is written", func() bool { return slices.Equal(f.sink.ids(), want) })
	bustest.Provision(t, f.conn, "missing")
	want = append(want, f.publish("missing", 1, 3)...)
	f.until("the cluster is written once it is there", func() bool { return slices.Equal(f.sink.ids(), want) })
}

func TestWhatLeftTheStreamIsCounted(t *testing.T) {
	f := newFixture(t)
	// A stream that holds as little as streams may, so that what nobody read leaves it.
	bustest.Provision(t, f.conn, "c", func(top *bus.Topology) { top.RollupsBytes = 16 << 20 })
	first := f.publish("c", 1, 4)
	stop := f.run(f.sink, "c")
	f.until("the first are written", func() bool { return slices.Equal(f.sink.ids(), first) })
	stop()
	f.padding = 1 << 18
	last := f.publish("c", 4, 104)
	f.run(f.sink, "c")
	f.until("what is left is written", func() bool {
		ids := f.sink.ids()
		return ids[len(ids)-1] == last[len(last)-1]
	})
	f.until("what is lost is counted", func() bool { return int(count(f.tel.lost))+len(f.sink.ids()) >= 103 })
	if lost, written := int(count(f.tel.lost)), len(f.sink.ids()); lost < 20 || lost+written != 103 {
		t.Fatalf("%d lost and %d written, want 103 together", lost, written)
	}
}

func TestRefusedPartsAreNamedInDead(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 2)
	f.sink.fail = func([]string) error {
		return &sink.Partial{Refused: []sink.Refused{{Message: 0, Samples: 2, Part: "line\n1", Reason: "bad"}, {Message: 0, Samples: 1, Part: "line 2", Reason: "worse"}}, Late: 4}
	}
	f.run(f.sink, "c")
	f.until("the letter is there", func() bool { return count(f.tel.dead) == 1 })
	all := []bus.DeadLetter{}
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	if len(all) != 1 || all[0].Reason != "3 samples refused: bad" || !slices.Equal(all[0].Header["Hs-Refused"], []string{`"line\n1"`, `"line 2"`}) {
		t.Fatalf("letters %+v of %v", all, want)
	}
	f.until("refused and late samples are counted", func() bool { return count(f.tel.refusedSamples) == 3 && count(f.tel.late) == 4 })
}

func TestRetryGrowsWithJitter(t *testing.T) {
	r := DefaultRetry()
	for n, most := range []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second} {
		for range 50 {
			if d := r.Delay(n, 0); d < most/2 || d > most {
				t.Fatalf("attempt %d waits %s, want %s to %s", n, d, most/2, most)
			}
		}
	}
	if d := r.Delay(1000, 0); d < 15*time.Second || d > 30*time.Second {
		t.Fatalf("attempt 1000 waits %s", d)
	}
	if d := r.Delay(0, time.Minute); d != time.Minute {
		t.Fatalf("waits %s though asked for a minute", d)
	}
}

// TestConcurrencyKeepsTheOrderOfEverySeries writes 8 nodes by 4 sinks at once, each of which fails now and then.
func TestConcurrencyKeepsTheOrderOfEverySeries(t *testing.T) {
	f := newFixture(t, "c")
	const nodes, ticks = 8, 40
	pub, enc := f.conn.Publisher(bus.PublisherConfig{}), proto.NewEncoder()
	for n := range ticks {
		for node := range nodes {
			r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "node-" + strconv.Itoa(node), Tick: proto.Tick(n+1) * 1000, Resolution: time.Second}
			r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: r.Name})
			data, err := enc.Rollup(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pub.Publish(t.Context(), bus.Message{Subject: bus.NodeRollupSubject("c", r.Name), ID: MessageID(r), Data: data}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var mu sync.Mutex
	var sinks []*memory
	by := map[string]*memory{} // node
	last := map[string]string{}
	written := 0
	kind := sink.Kind{Key: "memory", New: func(sink.Target, sink.Deps) (sink.Sink, error) {
		m := &memory{}
		n := 0
		m.fail = func(ids []string) error {
			if n++; n%3 == 0 {
				return errors.New("not now")
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				parts := strings.Split(id, "/")
				node, tick := parts[2], fmt.Sprintf("%08s", parts[3])
				if by[node] == nil {
					by[node] = m
				}
				if by[node] != m || tick <= last[node] {
					t.Errorf("%s comes after %s, or by another sink", id, last[node])
				}
				last[node] = tick
				written++
			}
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		sinks = append(sinks, m)
		return m, nil
	}}
	stop := f.runKind(kind, "memory:?concurrency=4", "c")
	f.until("all are written", func() bool { mu.Lock(); defer mu.Unlock(); return written == nodes*ticks })
	f.until("all are counted", func() bool { return count(f.tel.written) == nodes*ticks })
	stop()
	used := map[*memory]bool{}
	for _, m := range by {
		used[m] = true
	}
	if len(sinks) != 5 || len(used) < 2 { // and the one that New tried
		t.Fatalf("%d sinks were made and %d wrote, want 5 and several", len(sinks), len(used))
	}
}

// TestRetryAfterIsObeyed: at least that long, whatever the policy says.
func TestRetryAfterIsObeyed(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 2)
	const wait = 300 * time.Millisecond // the policy waits 10 ms at most
	var at []time.Time
	f.sink.fail = func([]string) error {
		if at = append(at, time.Now()); len(at) < 3 {
			return sink.RetryAfter(wait, errors.New("too many requests"))
		}
		return nil
	}
	f.run(f.sink, "c")
	f.until("it is written", func() bool { return slices.Equal(f.sink.ids(), want) })
	for i := 1; i < len(at); i++ {
		if d := at[i].Sub(at[i-1]); d < wait {
			t.Errorf("asked again after %s, want %s at least", d, wait)
		}
	}
}

// TestSecretsAreNotRepeated: a destination that repeats the password puts it neither into the log nor into DEAD.
func TestSecretsAreNotRepeated(t *testing.T) {
	f := newFixture(t, "c")
	f.publish("c", 1, 4)
	n := 0
	f.sink.fail = func([]string) error {
		switch n++; n {
		case 1:
			return errors.New("user root with password hunter2 is unknown")
		case 2:
			return &sink.Partial{Refused: []sink.Refused{{Samples: 1, Reason: "bad line for hunter2"}}}
		}
		return sink.Permanent(errors.New("token sesame%26open and sesame&open are refused"))
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("sesame&open\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.publish("c", 4, 8)
	f.runKind(f.sink.kind(), "memory:?pw=hunter2&token_file="+file, "c")
	f.until("all is in DEAD or written", func() bool { return f.lag() == 0 && count(f.tel.dead) > 0 })
	said := f.log.String()
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil {
			t.Fatal(err)
		}
		said += l.Reason
	}
	if strings.Contains(said, "hunter2") || strings.Contains(said, "sesame") || strings.Count(said, "xxxxx") < 3 {
		t.Fatalf("said\n%s", said)
	}
}

// TestWhatComesWithEveryMessageIsLoggedOnce, though it is counted each time.
// TestGatheredMessagesAreOneWrite: they are waited for, and acknowledged from the end, so that after a crash in between the
// first comes again as the first. The letters tell the order.
func TestGatheredMessagesAreOneWrite(t *testing.T) {
	f := newFixture(t, "c")
	kind := f.sink.kind()
	kind.Gather = func(sink.Target) time.Duration { return 2 * time.Minute }
	var mu sync.Mutex
	var sizes []int
	f.sink.fail = func(ids []string) error {
		mu.Lock()
		defer mu.Unlock()
		sizes = append(sizes, len(ids))
		last := len(ids) - 1
		return &sink.Partial{Refused: []sink.Refused{{Message: 0, Samples: 1, Reason: "first"}, {Message: last, Samples: 1, Reason: "last"}}}
	}
	f.publish("c", 0, 1)
	f.runConfig(Config{Kind: kind}, "memory", "c")
	for n := 1; n < maxGathered; n++ { // one by one, while it gathers
		f.publish("c", n, n+1)
	}
	f.until("all are settled", func() bool { return count(f.tel.dead) == 2 })
	var reasons []string
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil {
			t.Fatal(err)
		}
		reasons = append(reasons, l.Reason)
	}
	if want := []string{"1 samples refused: last", "1 samples refused: first"}; !slices.Equal(reasons, want) {
		t.Errorf("letters are %q, want %q", reasons, want)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(sizes) != 1 || sizes[0] != maxGathered {
		t.Errorf("writes have %v messages, want one with %d", sizes, maxGathered)
	}
}

func TestWhatComesWithEveryMessageIsLoggedOnce(t *testing.T) {
	f := newFixture(t, "c")
	f.publish("c", 1, 50)
	f.sink.fail = func([]string) error { return sink.Permanent(errors.New("never")) }
	f.run(f.sink, "c")
	f.until("all is in DEAD", func() bool { return count(f.tel.dead) == 49 })
	f.until("all is counted", func() bool { return count(f.tel.refusedMessages) == 49 })
	if n := strings.Count(f.log.String(), "rollup is refused for good"); n != 1 {
		t.Fatalf("logged %d times", n)
	}
}

// TestAPanicIsOneMessagesFault: what makes a sink panic is in DEAD, the rest is written by a sink made anew.
func TestAPanicIsOneMessagesFault(t *testing.T) {
	f := newFixture(t, "c")
	want := f.publish("c", 1, 20)
	made := 0
	kind := sink.Kind{Key: "memory", New: func(sink.Target, sink.Deps) (sink.Sink, error) { made++; return f.sink, nil }}
	f.sink.fail = func(ids []string) error {
		if slices.Contains(ids, want[7]) {
			panic("index out of range")
		}
		return nil
	}
	f.runKind(kind, "memory", "c")
	good := slices.Delete(slices.Clone(want), 7, 8)
	f.until("the good ones are written", func() bool { return slices.Equal(f.sink.ids(), good) })
	f.until("the letter is there", func() bool { return count(f.tel.dead) == 1 })
	for l, err := range f.conn.Letters(t.Context(), bus.SinkLease("m.1")) {
		if err != nil || l.Reason != "the sink panicked: index out of range" {
			t.Fatalf("letter %+v, %v", l, err)
		}
	}
	if made < 3 || !strings.Contains(f.log.String(), "sink panicked") {
		t.Fatalf("%d sinks were made, want one more at each panic", made)
	}
}

// TestLagIsToldWhenItChanges: behind, caught up, paused and resumed, each once; lost at once, and from
// then on now and then.
func TestLagIsToldWhenItChanges(t *testing.T) {
	f := newFixture(t)
	w, err := New(Config{Name: "m.1", Kind: f.sink.kind(), Target: sink.Target{Key: "memory"}},
		Deps{Bus: f.conn, Log: slog.New(slog.NewTextHandler(&f.log, nil)), Telemetry: f.tel})
	if err != nil {
		t.Fatal(err)
	}
	feeder := w.newFeeder("c", bus.RollupsStream("c"))
	defer feeder.close()
	check := func(l bus.Lag, want ...string) {
		t.Helper()
		before := len(f.log.String())
		feeder.told(l)
		feeder.told(l) // the same again says nothing
		got := strings.Count(f.log.String()[before:], "\n")
		for _, text := range want {
			if !strings.Contains(f.log.String()[before:], text) {
				t.Errorf("%+v: logged %q, want %q", l, f.log.String()[before:], text)
			}
		}
		if got != len(want) {
			t.Errorf("%+v: logged %q, want %d lines", l, f.log.String()[before:], len(want))
		}
	}
	until := time.Now().Add(time.Hour)
	check(bus.Lag{})
	check(bus.Lag{Pending: 3, Oldest: time.Minute})
	check(bus.Lag{Pending: 9, Unacked: 1, Oldest: 3 * time.Minute}, "sink is behind")
	if f.lag() != 10 {
		t.Errorf("%d pending, want 10", f.lag())
	}
	check(bus.Lag{Pending: 5, Oldest: time.Minute}) // better, and not yet well
	check(bus.Lag{}, "sink has caught up")
	check(bus.Lag{Paused: until, Lost: 4}, "sink is paused", "lost=4")
	check(bus.Lag{Paused: until, Lost: 6}) // counted, and logged some minutes later
	check(bus.Lag{}, "sink is resumed")
	if count(f.tel.lost) != 6 {
		t.Errorf("%v lost, want 6", count(f.tel.lost))
	}
}
