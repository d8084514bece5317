//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// failure is a line of the table "what if it dies here": what befalls what, and what must hold then. That nobody loses
// anything, and nothing is there twice, is counted when all failures of a stand are over (stand.counted).
type failure struct {
	name string
	do   func(t *testing.T, s *stand)
	on   int // servers of the bus that it needs; any number where 0
}

// failures are the table, by the stand that they befall. A stand's failures follow each other on one running system.
var failures = []struct {
	name  string
	shape layout
	list  []failure
}{
	{"measuring", layout{nodeRole: true, aggregators: 1, sinks: 1}, []failure{
		{name: "the scraper of a node is killed: its ticks are gaps of that node", do: scraperKilled},
		{name: "the scraper of a node freezes: the same", do: scraperFrozen},
		{name: "the scraper of a node is cut off from the bus: what it measured meanwhile arrives", do: scraperCutOff},
		{name: "the inventory's scraper is killed: the other publishes, and every event is there in its newest state", do: inventoryKilled},
	}},
	{"summing", layout{aggregators: 2, sinks: 1}, []failure{
		{name: "the aggregator is stopped: the standby goes on", do: aggregatorStopped},
		{name: "the aggregator is killed: the standby goes on", do: aggregatorKilled},
		{name: "the aggregator freezes: the standby goes on, and who wakes up is refused", do: aggregatorFrozen},
		{name: "the aggregator is cut off from the bus: the same", do: aggregatorCutOff},
	}},
	{"serving", layout{aggregators: 1, gateways: 2}, []failure{
		{name: "a kubelet hangs: its node is missing, and served until its samples are too old", do: kubeletHangs},
		{name: "a gateway is killed under load: the other answers everything, and a new one is ready", do: gatewayKilled},
		{name: "a gateway is cut off from the bus: it serves what it has, until that is too old", do: gatewayCutOff},
	}},
	{"writing", layout{aggregators: 1, sinks: 2, dark: true}, []failure{
		{name: "a sink's worker is killed in mid-write: its successor goes on", do: workerKilled},
		{name: "a sink's worker freezes: the same, and who wakes up does no harm", do: workerFrozen},
		{name: "a sink's worker is cut off from the bus: the same", do: workerCutOff},
		{name: "a sink's consumer is deleted: it is made again where it was", do: consumerDeleted},
		{name: "a sink's consumer stalls: only it waits, and gets what it missed", do: consumerStalled},
		{name: "a database is away for long: only its consumer waits, and gets what it missed", do: databaseAway},
	}},
	{"streams", layout{aggregators: 1, gateways: 1, sinks: 1, renewed: true}, []failure{
		{name: "EVENTS is deleted: after `heapstream bus apply` every event is there in its newest state", do: eventsDeleted},
		{name: "SAMPLES is deleted: ticks go on after `heapstream bus apply`, and the inventory follows", do: samplesDeleted},
		{name: "ROLLUPS is deleted: what SAMPLES still holds is made again after `heapstream bus apply`", do: rollupsDeleted},
	}},
	{"disk", layout{aggregators: 1, sinks: 1, store: smallDisk}, []failure{
		{name: "the disk of one server of three is full: the others go on, and it comes back", do: oneDiskFull, on: 3},
		{name: "the disk of the bus is full: nothing acknowledged is lost, and all goes on when there is space", do: disksFull},
	}},
	{"bus", layout{aggregators: 2, gateways: 1, sinks: 1}, []failure{
		{name: "one server of three is killed: nothing acknowledged is lost", do: serverKilled, on: 3},
		{name: "one server of three freezes: clients go to the others", do: serverFrozen, on: 3},
		{name: "the bus is killed: what is measured meanwhile makes whole ticks afterwards", do: busKilled},
		{name: "the bus freezes: the same", do: busFrozen},
	}},
}

// TestFailures is the table "what if it dies here" with processes that die, freeze, and are cut off, on one server of the
// bus and on three.
func TestFailures(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIP: -short: a failure takes some ticks to be over")
	}
	db := databasesFor(t)
	atOnce := make(chan struct{}, 3*runtime.GOMAXPROCS(0)) // a stand is up to 17 processes, and most of the time they wait
	t.Run("on", func(t *testing.T) {                       // the database outlives the stands
		for _, servers := range []int{1, 3} {
			for _, f := range failures {
				name := fmt.Sprintf("%d/%s", servers, f.name)
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					atOnce <- struct{}{}
					t.Cleanup(func() { <-atOnce }) // when its processes have ended
					sh := f.shape
					sh.servers = servers
					s := newStand(t, sh, db(t, strings.ReplaceAll(name, "/", "-")))
					for _, l := range f.list {
						if l.on == 0 || l.on == servers {
							s.run(t, l)
						}
					}
					t.Run("counted", s.counted)
				})
			}
		}
	})
}

// run lets a failure befall the stand.
func (s *stand) run(t *testing.T, f failure) {
	t.Helper()
	t.Run(f.name, func(t *testing.T) {
		defer s.befalls(t)()
		began, from := time.Now(), s.last()
		f.do(t, s)
		t.Logf("over after %s and %d ticks", time.Since(began).Round(time.Millisecond), (s.last()-from)/proto.Tick(standRes.Milliseconds()))
	})
}

// of is a node's scraper.
func (s *stand) of(i int) (p *process, node string) {
	p, node = s.scrapers[i], s.cluster.Nodes()[i].Name()
	s.behind[node] = true
	return p, node
}

func scraperKilled(t *testing.T, s *stand) {
	p, node := s.of(1)
	from := s.last()
	p.kill()
	s.misses(from, node)
	p.start()
	s.complete(s.last())
}

func scraperFrozen(t *testing.T, s *stand) {
	p, node := s.of(1)
	from := s.last()
	p.freeze()
	s.misses(from, node)
	p.wake()
	s.complete(s.last())
}

func scraperCutOff(t *testing.T, s *stand) {
	p, node := s.of(2)
	from := s.last()
	s.hole(p)
	s.misses(from, node)
	s.heal(p)
	s.complete(s.last())
}

// inventoryKilled kills who publishes inventory and events, lets events happen and repeat while nobody does, and counts
// them.
func inventoryKilled(t *testing.T, s *stand) {
	first, err := s.cluster.NewEvent()
	if err != nil {
		t.Fatal(err)
	}
	leads := s.active(s.inventories, nil, "heapstream_scraper_inventory_leading")
	leads.kill()
	for range 3 {
		if _, err := s.cluster.NewEvent(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.cluster.RepeatEvent(first.Namespace, first.Name); err != nil {
			t.Fatal(err)
		}
	}
	s.active(s.inventories, leads, "heapstream_scraper_inventory_leading")
	s.everyEvent(t)
	leads.start()
	leads.says("another publishes the inventory")
	s.goesOn()
}

// everyEvent waits until EVENTS holds every event of the cluster in its newest state, and no state twice.
func (s *stand) everyEvent(t *testing.T) {
	t.Helper()
	var missing []string
	eventually(t, patience, func() bool {
		states := map[string]int{}
		newest := map[string]uint64{}
		ctx := soon(t)
		state, err := s.conn.StreamState(ctx, bus.EventsStream(standCluster))
		if err != nil || state.Empty() {
			missing = []string{fmt.Sprint("EVENTS is empty ", err)}
			return false
		}
		dec := proto.NewDecoder()
		for d, err := range s.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.EventsStream(standCluster)}) {
			var e proto.Event
			if err == nil {
				err = dec.Event(d.Data, &e)
			}
			if err != nil {
				t.Fatal(err)
			}
			if states[e.ID()]++; states[e.ID()] > 1 {
				t.Fatalf("event %s is on EVENTS %d times", e.ID(), states[e.ID()])
			}
			newest[e.UID] = max(newest[e.UID], e.Version)
			if d.Pending == 0 {
				break
			}
		}
		missing = nil
		for _, e := range s.cluster.Events() {
			if newest[e.UID] < e.ResourceVersion {
				missing = append(missing, fmt.Sprintf("%s/%s: version %d, want %d", e.Namespace, e.Name, newest[e.UID], e.ResourceVersion))
			}
		}
		return len(missing) == 0
	}, func() string { return fmt.Sprintf("events are not on EVENTS in their newest state: %q", missing) })
}

const ownsMetric = "heapstream_aggregator_clusters_owned"

// owner is the aggregator that owns the cluster, and how much it had said when it did so still.
func (s *stand) owner() (p *process, said int) {
	s.t.Helper()
	lengths := map[*process]int{}
	for _, a := range s.aggregators {
		lengths[a] = a.length()
	}
	p = s.active(s.aggregators, nil, ownsMetric)
	return p, lengths[p]
}

// takenOver waits until the standby owns the cluster and two ticks are whole, and says how long ticks stood still.
func (s *stand) takenOver(t *testing.T, from *process) {
	t.Helper()
	began, tick := time.Now(), s.last()
	standby := s.active(s.aggregators, from, ownsMetric)
	owns := time.Since(began)
	next := s.complete(tick)
	t.Logf("%s owns the cluster after %s, and closes its first tick after %s, the %d. after the last one", standby.name, owns.Round(time.Millisecond),
		time.Since(began).Round(time.Millisecond), (next-tick)/proto.Tick(standRes.Milliseconds()))
	s.complete(next)
}

func aggregatorStopped(t *testing.T, s *stand) {
	p := s.active(s.aggregators, nil, ownsMetric)
	p.stop()
	s.takenOver(t, p)
	p.start()
	p.ready()
}

func aggregatorKilled(t *testing.T, s *stand) {
	p := s.active(s.aggregators, nil, ownsMetric)
	p.kill()
	s.takenOver(t, p)
	p.start()
	p.ready()
}

func aggregatorFrozen(t *testing.T, s *stand) {
	p, before := s.owner()
	p.freeze()
	s.takenOver(t, p)
	p.wake()
	s.gaveUp(t, p, before)
	s.goesOn()
}

func aggregatorCutOff(t *testing.T, s *stand) {
	p, before := s.owner()
	s.hole(p)
	s.takenOver(t, p)
	s.heal(p)
	s.gaveUp(t, p, before)
	s.goesOn()
}

// gaveUp waits until an owner that was away, when it had said so much, has given up the cluster, which was another's
// meanwhile: since its lease has run out, since its messages are refused, or since the other is who should have it, whatever
// it sees first. It may be its own again.
func (s *stand) gaveUp(t *testing.T, p *process, since int) {
	t.Helper()
	eventually(t, patience, func() bool {
		return p.saidSince(since, "cluster is another's now") || p.saidSince(since, "hands cluster over")
	}, func() string { return p.name + " does not notice that it lost the cluster; it said\n" + p.tail(3000) })
	p.ready()
}

// hpa asks a gateway itself what autoscalers ask through the API server, and returns what is wrong with an answer.
func (s *stand) hpa(g *process) error {
	pods := s.cluster.Pods(s.cluster.Nodes()[0].Name())
	if len(pods) == 0 {
		return fmt.Errorf("the simulated cluster has no pods")
	}
	for _, path := range []string{
		"/apis/metrics.k8s.io/v1beta1/nodes", "/apis/metrics.k8s.io/v1/pods",
		"/apis/custom.metrics.k8s.io/v1beta2/namespaces/" + pods[0].Namespace + "/pods/" + pods[0].Name + "/memory_working_set",
	} {
		var list struct{ Items []json.RawMessage }
		if err := s.secure(g, path, &list); err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("%s of %s lists nothing", path, g.name)
		}
	}
	return nil
}

// secure asks a gateway's aggregated API server.
func (s *stand) secure(g *process, path string, into any) error {
	port := ""
	for _, a := range g.args {
		if p, ok := strings.CutPrefix(a, "--secure-port="); ok {
			port = p
		}
	}
	req, err := http.NewRequest(http.MethodGet, "https://127.0.0.1:"+port+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+s.cluster.Token())
	resp, err := trusting.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s of %s answers %s", path, g.name, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// load asks a gateway as fast as it answers, on several connections, until it is told to stop.
type load struct {
	stop    atomic.Bool
	clients sync.WaitGroup
	answers atomic.Int64
	mu      sync.Mutex
	failed  []string
}

func (s *stand) load(g *process) *load {
	l := &load{}
	for range 4 {
		l.clients.Go(func() {
			for !l.stop.Load() {
				err := s.hpa(g)
				if err == nil && s.model(g, "/api/v1/model/metrics/cpu/request").LatestTimestamp.IsZero() {
					err = fmt.Errorf("the model API of %s has no answer", g.name)
				}
				l.answers.Add(1)
				if err != nil {
					l.mu.Lock()
					l.failed = append(l.failed, err.Error())
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func (l *load) end() (answers int64, failed []string) {
	l.stop.Store(true)
	l.clients.Wait()
	return l.answers.Load(), l.failed
}

// gatewayKilled kills a gateway that answers clients as fast as it can, while others ask its twin.
func gatewayKilled(t *testing.T, s *stand) {
	for _, g := range s.gateways {
		s.serves(t, g)
	}
	killed, twin := s.gateways[0], s.gateways[1]
	onKilled, onTwin := s.load(killed), s.load(twin)
	eventually(t, patience, func() bool { return onKilled.answers.Load() > 50 && onTwin.answers.Load() > 50 }, func() string { return "gateways do not answer" })
	killed.kill()
	from, before := s.last(), onTwin.answers.Load()
	began := time.Now()
	killed.start()
	killed.ready()
	ready := time.Since(began)
	s.serves(t, killed)
	t.Logf("the new gateway is ready after %s and serves autoscalers after %s", ready.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	s.closes(from)
	if _, failed := onKilled.end(); len(failed) == 0 {
		t.Error("no client noticed that its gateway was killed: this has shown nothing")
	}
	answers, failed := onTwin.end()
	if len(failed) > 0 || answers <= before {
		t.Errorf("of %d answers of the other gateway %d are wrong, such as %q", answers, len(failed), failed[:min(len(failed), 3)])
	}
}

// serves waits until a gateway has an answer to everything that autoscalers ask.
func (s *stand) serves(t *testing.T, g *process) {
	t.Helper()
	var err error
	eventually(t, patience, func() bool { err = s.hpa(g); return err == nil }, func() string {
		return fmt.Sprintf("%v; it said\n%s", err, g.tail(3000))
	})
}

// nodesOf are the nodes that a gateway's metrics API lists, but for that one, and the time of the oldest sample among theirs.
func (s *stand) nodesOf(g *process, but string) (names []string, oldest time.Time, err error) {
	var list struct {
		Items []struct {
			Metadata  struct{ Name string }
			Timestamp time.Time
		}
	}
	err = s.secure(g, "/apis/metrics.k8s.io/v1beta1/nodes", &list)
	for _, i := range list.Items {
		if i.Metadata.Name == but {
			continue
		}
		if names = append(names, i.Metadata.Name); oldest.IsZero() || i.Timestamp.Before(oldest) {
			oldest = i.Timestamp
		}
	}
	slices.Sort(names)
	return names, oldest, err
}

// lists waits until a gateway lists these nodes, and returns the time of the oldest sample.
func (s *stand) lists(t *testing.T, g *process, want ...string) (oldest time.Time) {
	t.Helper()
	var got []string
	var err error
	eventually(t, patience, func() bool {
		got, oldest, err = s.nodesOf(g, "")
		return err == nil && slices.Equal(got, want)
	}, func() string {
		return fmt.Sprintf("%s lists the nodes %q %v, want %q", g.name, got, err, want)
	})
	return oldest
}

// young says whether samples of that time must have been served until now. On a machine that is so busy that they need not,
// nothing was seen.
func young(sample time.Time) bool { return time.Since(sample) < proto.StandInFor(standRes) }

// kubeletHangs begins what gatewayCutOff ends, since being too old takes 45 s.
func kubeletHangs(t *testing.T, s *stand) {
	all := nodeNames(s.cluster)
	oldest := map[int]time.Time{}
	for i, g := range s.gateways {
		s.serves(t, g)
		oldest[i] = s.lists(t, g, all...)
	}
	node := all[2]
	s.behind[node], s.silent[node] = true, true
	from := s.last()
	if err := s.cluster.Fail(node, simcluster.FailHang); err != nil {
		t.Fatal(err)
	}
	tick := s.misses(from, node)
	for i, g := range s.gateways { // what it said last stands in
		eventually(t, patience, func() bool {
			return proto.Tick(s.model(g, "/api/v1/model/metrics/cpu/request").LatestTimestamp.UnixMilli()) >= tick
		}, func() string { return g.name + " does not serve the tick without it" })
		if got, _, err := s.nodesOf(g, ""); err != nil || !slices.Equal(got, all) && young(oldest[i]) {
			t.Errorf("%s lists the nodes %q %v at the first tick without %s, want all", g.name, got, err, node)
		}
	}
}

func gatewayCutOff(t *testing.T, s *stand) {
	all := nodeNames(s.cluster)
	cut, twin := s.gateways[0], s.gateways[1]
	var had []string
	var oldest time.Time
	eventually(t, patience, func() bool {
		var err error
		had, oldest, err = s.nodesOf(cut, all[2])
		return err == nil && len(had) == 2
	}, func() string { return fmt.Sprintf("%s lists of the others the nodes %q", cut.name, had) })
	s.hole(cut)
	tick := s.last()
	s.misses(tick, all[2])
	if got, _, err := s.nodesOf(cut, all[2]); err != nil || len(got) < 2 && young(oldest) {
		t.Errorf("%s lists the nodes %q %v a tick after it was cut off, want what it had", cut.name, got, err)
	}
	s.lists(t, cut) // nothing, in the end
	s.lists(t, twin, all[:2]...)
	if served := s.model(cut, "/api/v1/model/metrics/cpu/request"); proto.Tick(served.LatestTimestamp.UnixMilli()) > s.last() {
		t.Errorf("%s serves ticks of the future: %+v", cut.name, served)
	}
	if err := s.cluster.Fail(all[2], simcluster.FailNone); err != nil {
		t.Fatal(err)
	}
	s.heal(cut)
	s.complete(s.last())
	for _, g := range s.gateways {
		s.lists(t, g, all...)
		s.serves(t, g)
	}
}

const writtenMetric = "heapstream_sink_messages_written_total"

// feeds waits for who feeds a sink, but for that one.
func (s *stand) feeds(but *process, sink string) *process {
	s.t.Helper()
	return s.active(s.sinks, but, "heapstream_sink_up", `sink="`+sink+`"`)
}

// arrives waits until the main database has everything that is closed now.
func (s *stand) arrives(t *testing.T) {
	t.Helper()
	upto, at := s.last(), proto.Tick(0)
	eventually(t, patience, func() bool { at = newest(t, s.db); return at >= upto }, func() string {
		return fmt.Sprintf("the database has the cluster at %s, want %s", at, upto)
	})
}

// workerKilled kills the worker when the database has written and it has not heard of it.
func workerKilled(t *testing.T, s *stand) {
	p := s.feeds(nil, "main")
	s.dbWire.hold()
	select {
	case <-s.dbWire.held:
	case <-time.After(patience):
		t.Fatal("nothing is written to the database")
	}
	p.kill()
	s.dbWire.pass()
	s.feeds(p, "main")
	s.arrives(t)
	p.start()
	p.ready()
}

func workerFrozen(t *testing.T, s *stand) {
	p := s.feeds(nil, "main")
	s.dbWire.hold()
	select {
	case <-s.dbWire.held:
	case <-time.After(patience):
		t.Fatal("nothing is written to the database")
	}
	p.freeze()
	s.dbWire.pass()
	s.feeds(p, "main")
	s.arrives(t)
	p.wake()
	p.says("lease of sink is lost")
	s.complete(s.last())
	s.arrives(t)
}

func workerCutOff(t *testing.T, s *stand) {
	p := s.feeds(nil, "main")
	s.hole(p)
	s.feeds(p, "main")
	s.arrives(t)
	s.heal(p)
	p.ready()
	s.complete(s.last())
	s.arrives(t)
}

func consumerDeleted(t *testing.T, s *stand) {
	p := s.feeds(nil, "main")
	s.ask("$JS.API.CONSUMER.DELETE."+bus.RollupsStream(standCluster)+"."+bus.SinkDurable("main"), "")
	p.says("consumer was deleted, making it again", bus.SinkDurable("main"))
	s.complete(s.last())
	s.arrives(t)
}

// consumerStalled makes the server deliver nothing by the sink's consumer, without a word to whoever reads by it.
func consumerStalled(t *testing.T, s *stand) {
	p := s.feeds(nil, "main")
	pause := func(until time.Time) {
		t.Helper()
		if err := s.conn.PauseDurable(soon(t), bus.RollupsStream(standCluster), bus.SinkDurable("main"), until); err != nil {
			t.Fatal(err)
		}
	}
	pause(time.Now().Add(time.Hour))
	tick := s.complete(s.last())
	if at := newest(t, s.db); at > tick {
		t.Errorf("the database has the cluster at %s though its consumer stalls since %s", at, tick)
	}
	pause(time.Now())
	s.arrives(t)
	if p.cmd == nil {
		t.Error("the worker ended")
	}
}

// databaseAway lights the database that nobody could write to since the stand began: for longer than a minute. Whether
// everything arrives is counted at the end.
func databaseAway(t *testing.T, s *stand) {
	s.feeds(nil, "main") // which did not wait for it
	for _, w := range s.sinks {
		if v, _ := w.metric(writtenMetric, `sink="dark"`); v > 0 {
			t.Errorf("%s has written %v messages to a database that is not there", w.name, v)
		}
	}
	s.dark.light(s.whole)
	s.arrives(t)
}

// serverKilled kills the server that leads what is written, and starts it again.
//
// Until the others have a new leader, nobody can store anything: for longer than a tick of 5 s waits for silent nodes.
// What is measured meanwhile arrives, and may be too late for its tick.
func serverKilled(_ *testing.T, s *stand) {
	s.allBehind()
	for _, stream := range []string{bus.SamplesStream(standCluster), bus.RollupsStream(standCluster)} {
		p := s.leader(stream)
		p.kill()
		s.goesOn()
		p.start()
		s.settled()
	}
	s.goesOn()
}

// serverFrozen freezes the server that a scraper is connected to, and then the one that leads what is written. Nothing
// tells their clients but silence.
func serverFrozen(_ *testing.T, s *stand) {
	s.allBehind()
	for _, of := range []func() *process{func() *process { return s.serverOf(s.scrapers[0]) }, func() *process { return s.leader(bus.RollupsStream(standCluster)) }} {
		p := of()
		p.freeze()
		s.goesOn()
		p.wake()
		s.settled()
	}
	s.goesOn()
}

// allBehind says that batches of every node may be late.
func (s *stand) allBehind() {
	for _, n := range nodeNames(s.cluster) {
		s.behind[n] = true
	}
}

// busKilled kills every server, and starts them when every kubelet was read three times: once at the tick of
// the kill, it may be, and then at one that nobody could store.
func busKilled(t *testing.T, s *stand) {
	from := proto.TickAt(time.Now(), standRes)
	for _, p := range s.servers {
		p.kill()
	}
	s.scraped(3)
	until := proto.TickAt(time.Now(), standRes).Add(-1, standRes)
	for _, p := range s.servers {
		p.start()
	}
	s.settled()
	s.goesOn()
	s.wholeBetween(from, until)
}

func busFrozen(t *testing.T, s *stand) {
	from := proto.TickAt(time.Now(), standRes)
	for _, p := range s.servers {
		p.freeze()
	}
	s.scraped(3)
	until := proto.TickAt(time.Now(), standRes).Add(-1, standRes)
	for _, p := range s.servers {
		p.wake()
	}
	s.goesOn()
	s.wholeBetween(from, until)
}
