package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/bus/embedded"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
)

// forAFact is how long these tests wait for one.
const forAFact = 2 * time.Minute

// happenings is a simulated cluster in which things happen.
type happenings struct {
	*simcluster.Cluster
	t          *testing.T
	kubeconfig string
	random     *rand.Rand // of the goroutine that lets things happen
	told       []simcluster.Event
}

func startHappenings(t *testing.T) *happenings {
	t.Helper()
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode, cfg.EventsKept = 2, 4, 100_000
	h := &happenings{Cluster: simtest.Start(t, cfg, simcluster.Deps{}), t: t, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	if err := h.WriteKubeconfig(h.kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	t.Logf("seed %d", seed)
	h.random = rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	return h
}

// happen lets n things happen: new ones, and old ones once more.
func (h *happenings) happen(n int) {
	h.t.Helper()
	for range n {
		var e simcluster.Event
		var err error
		if len(h.told) == 0 || h.random.IntN(3) == 0 {
			e, err = h.NewEvent()
			h.told = append(h.told, e)
		} else {
			again := h.told[h.random.IntN(len(h.told))]
			_, err = h.RepeatEvent(again.Namespace, again.Name)
		}
		if err != nil {
			h.t.Error(err)
		}
	}
}

// weather lets things happen until it is told to stop: a few events at a time, now and then a restart of the API
// server, which forgets its changes, or its forgetting alone.
func (h *happenings) weather() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		beat := time.NewTicker(50 * time.Millisecond)
		defer beat.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-beat.C:
			}
			h.happen(h.random.IntN(6))
			switch {
			case n%60 == 0:
				h.RestartAPIServer(time.Duration(h.random.IntN(500)) * time.Millisecond)
			case n%25 == 0:
				h.Forget()
			}
		}
	})
	stop = func() { cancel(); wg.Wait() }
	h.t.Cleanup(stop)
	return stop
}

// onEvents is what EVENTS of cluster "sim" holds, in order.
func onEvents(t *testing.T, conn *bus.Conn) (all []proto.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), forAFact)
	defer cancel()
	state, err := conn.StreamState(ctx, bus.EventsStream("sim"))
	if err != nil {
		t.Fatal(err)
	}
	if state.LastSeq == 0 {
		return nil
	}
	dec := proto.NewDecoder()
	for d, err := range conn.Replay(ctx, bus.ReplayConfig{Stream: bus.EventsStream("sim")}) {
		var e proto.Event
		if err == nil {
			err = dec.Event(d.Data, &e)
		}
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, e); d.Pending == 0 || d.Seq >= state.LastSeq {
			return all
		}
	}
	t.Fatal(ctx.Err())
	return nil
}

// late are the events that are not out in the state they are in now.
func (h *happenings) late(out []proto.Event) (names []string) {
	newest := map[string]uint64{}
	for i := range out {
		newest[out[i].UID] = out[i].Version
	}
	for _, e := range h.Events() {
		if newest[e.UID] != e.ResourceVersion {
			names = append(names, fmt.Sprintf("%s/%s (%d times, version %d, out is %d)", e.Namespace, e.Name, e.Count, e.ResourceVersion, newest[e.UID]))
		}
	}
	return names
}

// allOut waits until every event is out in its newest state.
func (h *happenings) allOut(out func() []proto.Event) {
	h.t.Helper()
	var late []string
	eventually(h.t, forAFact, func() bool { late = h.late(out()); return len(late) == 0 }, func() string {
		return fmt.Sprintf("%d of %d events are not out in their newest state, such as %q", len(late), len(h.Events()), late[:min(3, len(late))])
	})
}

// eachOnce fails the test where a state of an event is out twice, or behind a later one.
func eachOnce(t *testing.T, out []proto.Event) {
	t.Helper()
	newest := map[string]uint64{}
	for i := range out {
		if e := &out[i]; newest[e.UID] >= e.Version {
			t.Errorf("message %d is version %d of event %s, and version %d came before", i+1, e.Version, e.UID, newest[e.UID])
		}
		newest[out[i].UID] = out[i].Version
	}
	t.Logf("%d states of %d events", len(out), len(newest))
}

// eventKey is what InfluxDB can tell apart of events: two states of one at one time are one point, the newer one.
type eventKey struct {
	uid string
	at  int64 // Unix ms
}

// eventsIn are the events that InfluxDB has, by the version of each point.
func eventsIn(t *testing.T, influx *influxd) map[eventKey]uint64 {
	t.Helper()
	resp, err := http.Get(influx.URL + "/query?" + url.Values{"db": {"k8s"}, "epoch": {"ms"}, "q": {`SELECT "uid", "value" FROM "log/events"`}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Results []struct {
			Error  string
			Series []struct{ Values [][3]any }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Results) != 1 {
		t.Fatalf("InfluxDB answers %+v, %v", answer, err)
	}
	all := map[eventKey]uint64{}
	for _, s := range answer.Results[0].Series {
		for _, v := range s.Values {
			at, ok1 := v[0].(float64)
			uid, ok2 := v[1].(string)
			text, ok3 := v[2].(string)
			var e struct {
				Metadata struct {
					UID             string `json:"uid"`
					ResourceVersion string `json:"resourceVersion"`
				} `json:"metadata"`
			}
			if err := json.Unmarshal([]byte(text), &e); err != nil || !ok1 || !ok2 || !ok3 || e.Metadata.UID != uid {
				t.Fatalf("InfluxDB has %v: %v", v, err)
			}
			version, err := strconv.ParseUint(e.Metadata.ResourceVersion, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			key := eventKey{uid, int64(at)}
			if _, twice := all[key]; twice {
				t.Errorf("event %s is twice in InfluxDB at %d", uid, key.at)
			}
			all[key] = version
		}
	}
	return all
}

// pointsOf are the points that InfluxDB should have of these events.
func pointsOf(out []proto.Event) map[eventKey]uint64 {
	all := map[eventKey]uint64{}
	for i := range out {
		all[eventKey{out[i].UID, out[i].Time().UnixMilli()}] = out[i].Version
	}
	return all
}

// sameEvents waits until InfluxDB has the newest state of every event, and fails the test where it does not have just
// what is on EVENTS.
func sameEvents(t *testing.T, influx *influxd, out []proto.Event) {
	t.Helper()
	want := pointsOf(out)
	var got map[eventKey]uint64
	eventually(t, forAFact, func() bool { got = eventsIn(t, influx); return maps.Equal(got, want) }, func() string {
		var differ []string
		for k := range want {
			if got[k] != want[k] {
				differ = append(differ, fmt.Sprintf("%v: version %d, want %d", k, got[k], want[k]))
			}
		}
		for k := range got {
			if _, ok := want[k]; !ok {
				differ = append(differ, fmt.Sprintf("%v: version %d, want none", k, got[k]))
			}
		}
		return fmt.Sprintf("%d of %d events in InfluxDB differ from EVENTS: %q", len(differ), len(want), differ[:min(3, len(differ))])
	})
	t.Logf("%d points compared", len(want))
}

// newChild makes a program ready to be started, which is ended with the test.
func newChild(t *testing.T, program string, args ...string) *child {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), program)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, program: program, args: args, log: log}
	t.Cleanup(c.cleanUp)
	return c
}

// said is how often the program has said something since byte from of its log, and how long the log is.
func (c *child) said(what string, from int) (times, length int) {
	c.t.Helper()
	log, err := os.ReadFile(c.log.Name())
	if err != nil {
		c.t.Fatal(err)
	}
	return bytes.Count(log[from:], []byte(what)), len(log)
}

// says waits until the program says something that it has not said before byte from of its log.
func (c *child) says(what string, from int) {
	c.t.Helper()
	eventually(c.t, forAFact, func() bool { c.alive(); n, _ := c.said(what, from); return n > 0 }, func() string {
		return fmt.Sprintf("%s does not say %q", c.program, what)
	})
}

// TestEventerKilledAtAnyMomentWritesEveryEventOnce kills eventer with SIGKILL again and again, while things happen in a
// cluster whose API server restarts and forgets: in the middle of its start, and when it has written. In the end EVENTS
// has every event at least in its newest state and none twice, and InfluxDB has what EVENTS has.
func TestEventerKilledAtAnyMomentWritesEveryEventOnce(t *testing.T) {
	t.Parallel() // it waits for leases to run out, most of the time
	influx := startInfluxd(t)
	h := startHappenings(t)
	store := filepath.Join(t.TempDir(), "bus")
	eventer := newChild(t, "eventer", "-source=kubernetes:", "-kubeconfig="+h.kubeconfig, "-cluster=sim", "-data-dir="+store,
		"-healthz-ip=127.0.0.1", "-healthz-port=0", "-sink=influxdb:"+influx.URL, "-sink=log", "-frequency=5s")
	random := rand.New(rand.NewPCG(h.random.Uint64(), 1)) //nolint:gosec // no secret
	h.happen(200)                                         // before the first start
	stop := h.weather()
	for life := range 7 {
		_, from := eventer.said("", 0)
		eventer.start()
		if life%2 == 0 {
			eventer.says("EventBatch ", from) // the log sink has written
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		} else {
			time.Sleep(time.Duration(random.IntN(2500)) * time.Millisecond) // the moment to be killed is what is tested
		}
		if err := eventer.end(syscall.SIGKILL); err == nil {
			t.Fatal("eventer ended well though it was killed")
		}
	}
	stop()
	eventer.start()
	newest := func() (all []proto.Event) {
		eventer.alive()
		for k, version := range eventsIn(t, influx) {
			all = append(all, proto.Event{UID: k.uid, Version: version})
		}
		slices.SortFunc(all, func(a, b proto.Event) int { return int(a.Version) - int(b.Version) }) //nolint:gosec // small
		return all
	}
	h.allOut(newest)
	if err := eventer.end(syscall.SIGTERM); err != nil {
		t.Fatalf("eventer ended badly though it was told to: %v", err)
	}

	cfg := embedded.DefaultConfig()
	cfg.StoreDir, cfg.MaxStore = store, 1<<40
	server, err := embedded.New(cfg, bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	connect := bus.DefaultConfig()
	connect.Name = "reader"
	conn, err := bus.ConnectLocal(t.Context(), server, connect, bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	out := onEvents(t, conn)
	if late := h.late(out); len(late) > 0 {
		t.Errorf("%d events are not out in their newest state: %q", len(late), late)
	}
	eachOnce(t, out)
	sameEvents(t, influx, out)
	if dead, err := conn.StreamState(t.Context(), bus.DeadStream); err != nil || dead.LastSeq != 0 {
		t.Errorf("%d messages are in DEAD (%v), want none", dead.LastSeq, err)
	}
}

// TestScrapersOfEventsTakeTurns runs two scrapers of events on one cluster. The one that writes is killed, then
// frozen until the other has taken over, then both are stopped for a while, while things happen and the API server
// restarts and forgets. Nothing is lost, and nothing is out twice.
func TestScrapersOfEventsTakeTurns(t *testing.T) {
	t.Parallel() // it waits for leases to run out, most of the time
	h := startHappenings(t)
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "sim")
	var both [2]*child
	for i := range both {
		both[i] = newChild(t, "scraper", "--role=events", "--cluster=sim", "--source=kubernetes:", "--kubeconfig="+h.kubeconfig, "--bus-url="+server.URL(), "--identity=scraper-"+strconv.Itoa(i))
		both[i].start()
	}
	// leader waits until one of them but that one has the lease; -1 excludes nobody.
	leader := func(but int) (who int) {
		t.Helper()
		eventually(t, forAFact, func() bool {
			leases, err := conn.Leases(t.Context(), "events.")
			if err != nil || len(leases) != 1 {
				return false
			}
			number, ok := strings.CutPrefix(leases[0].Owner, "scraper-")
			who, err = strconv.Atoi(number)
			return ok && err == nil && who != but
		}, func() string { return "nobody has the lease of the events" })
		return who
	}
	// standsBy waits until one that was away knows whose turn it is. It may be its own again.
	standsBy := func(c *child, from int) {
		t.Helper()
		eventually(t, forAFact, func() bool {
			c.alive()
			n, _ := c.said("another publishes events, standing by", from)
			m, _ := c.said(`msg="publishing events"`, from)
			return n+m > 0
		}, func() string { return "who was away does not say whose turn it is" })
	}
	goesOn := func() {
		t.Helper()
		before, err := conn.StreamState(t.Context(), bus.EventsStream("sim"))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, forAFact, func() bool {
			now, err := conn.StreamState(t.Context(), bus.EventsStream("sim"))
			return err == nil && now.LastSeq > before.LastSeq
		}, func() string { return "nothing more comes to EVENTS" })
	}
	stop := h.weather()
	first := leader(-1)
	goesOn()

	_, from := both[first].said("", 0)
	if err := both[first].end(syscall.SIGKILL); err == nil {
		t.Fatal("the scraper ended well though it was killed")
	}
	leader(first)
	goesOn()
	both[first].start()
	standsBy(both[first], from)

	second := leader(-1)
	_, from = both[second].said("", 0)
	if err := both[second].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	leader(second)
	goesOn()
	if err := both[second].cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	standsBy(both[second], from)
	goesOn()

	for _, c := range both {
		if err := c.end(syscall.SIGTERM); err != nil {
			t.Fatalf("the scraper ended badly though it was told to: %v", err)
		}
	}
	h.happen(100)
	h.Forget()
	for _, c := range both {
		c.start()
	}
	stop()
	h.allOut(func() []proto.Event { return onEvents(t, conn) })
	eachOnce(t, onEvents(t, conn))
}

// gate is a way to a database on which one request can be held: before the database has it, or after.
type gate struct {
	*httptest.Server
	mu   sync.Mutex
	mode gateMode
	held chan struct{} // closed when one is
}

type gateMode int

const (
	gateOpen   gateMode = iota
	gateBefore          // the next write is held, and the database never has it
	gateAfter           // the next write is held when the database has it: nobody is told
)

func startGate(t *testing.T, to string) *gate {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		mode := g.mode
		if r.URL.Path != "/write" {
			mode = gateOpen
		}
		held := g.held
		if mode != gateOpen {
			g.mode = gateOpen
		}
		g.mu.Unlock()
		switch mode {
		case gateBefore:
			close(held)
			_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the connection end
			<-r.Context().Done()
		case gateAfter:
			answer := httptest.NewRecorder()
			proxy.ServeHTTP(answer, r)
			if answer.Code/100 != 2 {
				t.Errorf("InfluxDB answers %d %s", answer.Code, answer.Body)
			}
			close(held)
			<-r.Context().Done()
		default:
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

// hold holds the next write; what it returns is closed when one is held.
func (g *gate) hold(mode gateMode) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mode, g.held = mode, make(chan struct{})
	return g.held
}

// TestEventSinkKilledInTheMiddleOfAWrite kills the process of the sinks with SIGKILL while InfluxDB is being written
// to: by turns when the database has not got it yet, and when it has and the process has not heard. Its successor
// writes what was not acknowledged again, and in the end InfluxDB has what EVENTS has, each event once.
func TestEventSinkKilledInTheMiddleOfAWrite(t *testing.T) {
	t.Parallel() // it waits for leases to run out, most of the time
	influx := startInfluxd(t)
	way := startGate(t, influx.URL)
	h := startHappenings(t)
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "sim")
	cfg := scraper.DefaultConfig()
	cfg.Role, cfg.Cluster, cfg.Source, cfg.Kubeconfig = scraper.RoleEvents, "sim", "kubernetes:", h.kubeconfig
	source, err := scraper.New(cfg, scraper.Deps{Bus: conn, Log: bustest.Logger(t), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	sinks := newChild(t, "sinks", "--cluster=sim", "--bus-url="+server.URL(), "--event-sink=influxdb:"+way.URL)
	stop := h.weather()
	for _, mode := range []gateMode{gateAfter, gateBefore, gateAfter} {
		held := way.hold(mode)
		sinks.start()
		select {
		case <-held:
		case <-time.After(forAFact):
			t.Fatal("nothing is written")
		}
		if err := sinks.end(syscall.SIGKILL); err == nil {
			t.Fatal("the sinks ended well though they were killed")
		}
	}
	stop()
	h.allOut(func() []proto.Event { return onEvents(t, conn) })
	sinks.start()
	sameEvents(t, influx, onEvents(t, conn))
	if err := sinks.end(syscall.SIGTERM); err != nil {
		t.Fatalf("the sinks ended badly though they were told to: %v", err)
	}
}

// text is what was written, and may be read meanwhile.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(p)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}

// runEventer runs eventer in this process until stop is called, or the test ends.
func runEventer(t *testing.T, h *happenings, deps standalone.Deps, args ...string) (e *standalone.Eventer, address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deps.Listener, deps.Registry, deps.Health = listener, prometheus.NewRegistry(), daemon.NewHealth()
	if deps.Log == nil {
		deps.Log = bustest.Logger(t)
	}
	cfg := standalone.DefaultEventerConfig()
	fs := pflag.NewFlagSet("eventer", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(append([]string{"--source=kubernetes:", "--kubeconfig=" + h.kubeconfig, "--cluster=sim"}, args...)); err != nil {
		t.Fatal(err)
	}
	if e, err = standalone.NewEventer(cfg, deps); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			t.Errorf("eventer ended: %v", err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return e, "http://" + listener.Addr().String(), stop
}

// ask is the body of an answer with status 200, else "".
func ask(t *testing.T, address string) string {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

var eventLine = regexp.MustCompile(`(?m)^   \S+ \S+ \S+ UTC \(cnt:(\d+)\): (.*)$`)

// counts are the counts of the events that the log sink has written, in order.
func (t *text) counts() (all []string) {
	for _, m := range eventLine.FindAllStringSubmatch(t.String(), -1) {
		all = append(all, m[1])
	}
	return all
}

// TestEventerTellsOfEveryUpdateAndOutlivesAStorm: what was there at the first start is written; every update of a
// series is written, in order; of a storm that is beyond --events-rate, and which the API server forgets, every event
// is written at least in its newest state. Meanwhile eventer's port answers.
func TestEventerTellsOfEveryUpdateAndOutlivesAStorm(t *testing.T) {
	t.Parallel()
	h := startHappenings(t)
	h.happen(30)
	before := h.Events()
	out := &text{}
	e, address, _ := runEventer(t, h, standalone.Deps{Out: out}, "--sink=log", "--data-dir=memory", "--events-rate=5", "--frequency=5s")
	conn, err := e.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	onBus := func() []proto.Event { return onEvents(t, conn) }
	h.allOut(onBus)
	eventually(t, forAFact, func() bool { return len(out.counts()) == len(before) }, func() string {
		return fmt.Sprintf("%d events were there at the start, and the log has\n%s", len(before), out)
	})
	if got := onBus(); len(got) != len(before) {
		t.Errorf("of %d events that were there at the start %d states are out", len(before), len(got))
	}

	// A series. The list is over, and the watch may not be there yet: the first event waits for it.
	ev, err := h.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	h.allOut(onBus)
	for range 9 {
		if _, err := h.RepeatEvent(ev.Namespace, ev.Name); err != nil {
			t.Fatal(err)
		}
	}
	series := func() (all []string) {
		if c := out.counts(); len(c) > len(before) {
			all = c[len(before):]
		}
		return all
	}
	want := strings.Fields("1 2 3 4 5 6 7 8 9 10")
	eventually(t, forAFact, func() bool { return len(series()) >= len(want) }, func() string { return fmt.Sprintf("of the series %q are written", series()) })
	if got := series(); !slices.Equal(got, want) {
		t.Errorf("of the series %q are written, want %q", got, want)
	}

	// A storm: 50 may come at once and 5 a second, and new events are none that may be skipped. A machine that takes an
	// eighth of a second to publish one has to wait all the same.
	for range 150 {
		if _, err := h.NewEvent(); err != nil {
			t.Fatal(err)
		}
	}
	h.happen(60)
	h.Forget()
	h.happen(10)
	h.allOut(onBus)
	eachOnce(t, onBus())
	eventually(t, forAFact, func() bool { return len(out.counts()) == len(onBus()) }, func() string {
		return fmt.Sprintf("%d states are out, and the log has %d", len(onBus()), len(out.counts()))
	})

	if got := ask(t, address+"/healthz"); got != "ok" {
		t.Errorf("/healthz answers %q", got)
	}
	if got := ask(t, address+"/healthz/healthz"); got != "ok" {
		t.Errorf("/healthz/healthz answers %q", got)
	}
	eventually(t, forAFact, func() bool { return strings.HasPrefix(ask(t, address+"/readyz"), "ready") }, func() string { return "eventer is not ready" })
	var metrics string
	counted := regexp.MustCompile(`(?m)^eventer_scraper_events_total_number (\S+)$`)
	eventually(t, forAFact, func() bool {
		metrics = ask(t, address+"/metrics")
		m := counted.FindStringSubmatch(metrics)
		if m == nil {
			return false
		}
		n, err := strconv.ParseFloat(m[1], 64)
		return err == nil && int(n) == len(onBus())
	}, func() string { return fmt.Sprintf("%d states are out; metrics are\n%s", len(onBus()), metrics) })
	for _, name := range []string{"eventer_manager_last_time_seconds ", "eventer_scraper_last_time_seconds ", "eventer_scraper_duration_milliseconds_count ",
		`eventer_exporter_duration_milliseconds_count{exporter="LogSink"} `, "heapstream_scraper_events_published_total "} {
		if !strings.Contains(metrics, "\n"+name) {
			t.Errorf("metrics have no %q", name)
		}
	}
	if strings.Contains(metrics, "\nheapstream_scraper_events_throttled_seconds_total 0\n") {
		t.Error("nothing has waited")
	}
}

// TestEventerWithoutASinkOrAPlaceForData runs all the same: it says what that means, and leaves nothing behind.
func TestEventerWithoutASinkOrAPlaceForData(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("STATE_DIRECTORY", "")
	h := startHappenings(t)
	h.happen(5)
	log := &logbook{}
	e, _, stop := runEventer(t, h, standalone.Deps{Log: log.logger()})
	conn, err := e.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	h.allOut(func() []proto.Event { return onEvents(t, conn) })
	conn.Close()
	if left, err := filepath.Glob(filepath.Join(tmp, "heapstream-eventer-*", "*")); err != nil || len(left) == 0 {
		t.Errorf("nothing is kept in %s: %v", tmp, err)
	}
	stop()
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	warned := map[string]int{}
	for _, l := range log.lines {
		if before, _, ok := strings.Cut(l.Msg, " is given"); ok && l.Level == "WARN" {
			warned[before]++
		}
	}
	if len(warned) != 2 || warned["no --sink"] != 1 || warned["no --data-dir"] != 1 {
		t.Errorf("it warns of %v: %+v", warned, log.lines)
	}
}
