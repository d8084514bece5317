package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

// life is one run of the program, from its start until it was killed or stopped.
type life struct{ from, to time.Time }

// child is a program as a process of its own.
type child struct {
	t       *testing.T
	program string // of disguises; heapstream where empty
	args    []string
	log     *os.File
	cmd     *exec.Cmd
	done    chan error
}

func (c *child) start() {
	c.t.Helper()
	c.cmd = exec.Command(os.Args[0], c.args...) //nolint:gosec // this very binary
	c.cmd.Env = append(os.Environ(), asProgram+"="+cmp.Or(c.program, "heapstream"))
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(c.cmd, c.done)
}

// alive fails the test if the process has ended by itself.
func (c *child) alive() {
	c.t.Helper()
	select {
	case err := <-c.done:
		c.cmd = nil
		c.t.Fatalf("heapstream ended by itself: %v", err)
	default:
	}
}

// end sends the signal and waits for the process to be gone.
func (c *child) end(signal syscall.Signal) error {
	c.t.Helper()
	c.alive()
	if err := c.cmd.Process.Signal(signal); err != nil {
		c.t.Fatal(err)
	}
	select {
	case err := <-c.done:
		c.cmd = nil
		return err
	case <-time.After(patience):
		c.t.Fatalf("heapstream does not end after %s", signal)
		return nil
	}
}

var servingAt = regexp.MustCompile(`msg="serving the Heapster API" address=(\S+)`)

// model asks the model API of the newest process, which says in its log where it is; nothing if there
// is no answer.
func (c *child) model(path string) (r modelResult) {
	c.t.Helper()
	said, err := os.ReadFile(c.log.Name())
	if err != nil {
		c.t.Fatal(err)
	}
	at := servingAt.FindAllSubmatch(said, -1)
	if len(at) == 0 {
		return r
	}
	resp, err := http.Get("http://" + string(at[len(at)-1][1]) + path)
	if err != nil {
		return r
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		return modelResult{}
	}
	return r
}

// complainedOf says whether the program has said that a node's kubelet could not be read, as it cannot in time on a
// machine that is too busy.
func (c *child) complainedOf(node string) bool {
	c.t.Helper()
	said, err := os.ReadFile(c.log.Name())
	if err != nil {
		c.t.Fatal(err)
	}
	return complaint(said, node)
}

func complaint(log []byte, node string) bool {
	for line := range bytes.Lines(log) {
		if bytes.Contains(line, []byte(`msg="kubelet cannot be read"`)) && bytes.Contains(line, []byte(" node="+node+" ")) {
			return true
		}
	}
	return false
}

func (c *child) cleanUp() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		<-c.done
	}
	if c.t.Failed() {
		if said, err := os.ReadFile(c.log.Name()); err == nil {
			c.t.Logf("heapstream said, at the end:\n%s", said[max(0, len(said)-8000):])
		}
	}
	c.log.Close()
}

// TestKilledAtAnyMomentLosesNothing kills heapstream with SIGKILL six times, each in another part of the
// time between two ticks, and starts it again at once on the same --data-dir. Then it counts:
// in SAMPLES there is every answer of every kubelet but what was under way when its reader was killed; on
// ROLLUPS there is one message of each of them, and one of every namespace and the cluster at each
// tick; in InfluxDB there is exactly what ROLLUPS says, each point once and in one series per entity;
// the gateway of the last life serves the ticks of all of them; and nothing is in DEAD.
func TestKilledAtAnyMomentLosesNothing(t *testing.T) {
	t.Parallel() // it waits for ticks, most of the time
	const kills, res = 6, proto.MinResolution
	influx := startInfluxd(t)
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 3, 5
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(dir, "bus")
	program := &child{t: t, log: log, args: []string{
		"--source=kubernetes.summary_api:", "--kubeconfig=" + kubeconfig, "--metric_resolution=" + res.String(), "--cluster=killed",
		"--data-dir=" + store, "--listen_ip=127.0.0.1", "--heapster-port=0", "--sink=influxdb:" + influx.URL,
	}}
	t.Cleanup(program.cleanUp)

	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any will do
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	var lives []life
	for i := range kills {
		lives = append(lives, life{from: time.Now()})
		program.start()
		// The first one comes to numbers, the others ask every kubelet twice and live on for up to one and a half ticks. Kill
		// i falls into the i-th part of the time between two ticks.
		least := time.Duration(float64(res) * 1.5 * random.Float64())
		if i == 0 {
			eventually(t, patience, func() bool { program.alive(); return newest(t, influx) != 0 }, func() string { return "nothing arrives in InfluxDB" })
			least = 0
		}
		eventually(t, patience, func() bool {
			program.alive()
			return !slices.ContainsFunc(cluster.Nodes(), func(n *simcluster.Node) bool { return len(during(n.Asked(), lives[i].from, time.Now())) < 2 })
		}, func() string { return "kubelets are not read" })
		phase := time.Duration((float64(i) + random.Float64()) / kills * float64(res))
		at := proto.TickAt(time.Now().Add(least), res).Time().Add(phase)
		if time.Until(at) < least {
			at = at.Add(res)
		}
		time.Sleep(time.Until(at)) // the moment to be killed is what is tested, not waited for
		if err := program.end(syscall.SIGKILL); err == nil {
			t.Fatal("heapstream ended well though it was killed")
		}
		lives[i].to = time.Now()
	}
	lives = append(lives, life{from: time.Now()})
	program.start()
	until := proto.TickAt(time.Now(), res).Add(3, res)
	eventually(t, patience, func() bool { program.alive(); return newest(t, influx) >= until }, func() string {
		return fmt.Sprintf("InfluxDB has the cluster at %s, want %s", newest(t, influx), until)
	})
	var served modelResult // by a gateway that was not there when most of it was measured
	eventually(t, patience, func() bool {
		served = program.model("/api/v1/model/metrics/cpu/request")
		return proto.Tick(served.LatestTimestamp.UnixMilli()) >= until
	}, func() string { return fmt.Sprintf("the gateway serves %+v, want it up to %s", served, until) })
	lives[kills].to = time.Now()
	if err := program.end(syscall.SIGTERM); err != nil {
		t.Fatalf("heapstream ended badly though it was told to: %v", err)
	}

	// What the bus has now, and what the last tick of it was that InfluxDB was waited for.
	b := readBus(t, store, "killed", until)
	if due := b.checkSamples(t, cluster.Nodes(), lives, res, program.complainedOf); due < len(cluster.Nodes())*len(lives) {
		t.Errorf("only %d answers had to be there, want %d or more: this test has shown nothing", due, len(cluster.Nodes())*len(lives))
	}
	b.checkRollups(t, cluster)
	b.checkServed(t, served)
	checkDatabase(t, pointsIn(t, influx), b, 1000)
}

// nodeNames are the names of a cluster's nodes.
func nodeNames(cluster *simcluster.Cluster) (names []string) {
	for _, n := range cluster.Nodes() {
		names = append(names, n.Name())
	}
	return names
}

// newest is the last tick of which a database has the cluster, 0 if there is none.
func newest(t *testing.T, d database) (tick proto.Tick) {
	t.Helper()
	for _, s := range d.series(t, "cpu/request") {
		if s.Tags["type"] != "cluster" {
			continue
		}
		for _, v := range s.Values {
			tick = max(tick, proto.Tick(whole(t, v[0])))
		}
	}
	return tick
}

func whole(t *testing.T, n json.Number) int64 {
	t.Helper()
	v, err := n.Int64()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// nodeTick names a batch.
type nodeTick struct {
	node string
	tick proto.Tick
}

// point names a value in a database: an entity by what tells it apart, a metric, and a tick.
type point struct {
	entity, metric string
	tick           proto.Tick
}

// onBus is what the streams hold up to a tick.
type onBus struct {
	upto       proto.Tick
	scraped    map[nodeTick]stored   // each batch
	twice      []string              // batches and rollups of which there is more than one
	rollups    map[nodeTick]int      // entities in it
	pods       map[nodeTick][]string // namespace/name
	namespaces map[proto.Tick][]string
	totals     map[proto.Tick]proto.Totals
	closing    map[proto.Tick]uint64 // sequence on SAMPLES of the message at which the tick closed
	values     map[point]string      // as a database should have them
}

// stored is when a kubelet was read for a batch, and the batch's sequence on SAMPLES.
type stored struct {
	at  time.Time
	seq uint64
}

// watched are the metrics that are compared: sums and gauges of every level, a counter and its rate.
var watched = []string{"cpu/request", "cpu/usage", "cpu/usage_rate", "memory/usage", "memory/working_set", "network/rx_rate", "restart_count"}

// readBus opens the store that the program has left.
func readBus(t *testing.T, store, cluster string, upto proto.Tick) *onBus {
	t.Helper()
	cfg := embedded.DefaultConfig()
	cfg.StoreDir, cfg.MaxStore = store, 1<<40
	server, err := embedded.New(cfg, bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	connect := bus.DefaultConfig()
	connect.Name = "reader"
	conn, err := bus.ConnectLocal(ctx, server, connect, bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return readStreams(t, conn, cluster, upto)
}

// readStreams reads what the streams of a cluster hold now. Nothing may have left them yet, nor be in DEAD.
func readStreams(t *testing.T, conn *bus.Conn, cluster string, upto proto.Tick) *onBus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if dead, err := conn.StreamState(ctx, bus.DeadStream); err != nil || dead.LastSeq != 0 {
		t.Errorf("%d messages are in DEAD (%v), want none", dead.LastSeq, err)
	}
	b := &onBus{upto: upto, scraped: map[nodeTick]stored{}, rollups: map[nodeTick]int{}, pods: map[nodeTick][]string{},
		namespaces: map[proto.Tick][]string{}, totals: map[proto.Tick]proto.Totals{}, closing: map[proto.Tick]uint64{}, values: map[point]string{}}
	dec := proto.NewDecoder()
	read := func(stream string, take func(d bus.Delivery) error, subjects ...string) {
		state, err := conn.StreamState(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		if state.FirstSeq != 1 {
			t.Fatalf("stream %s begins with message %d: what this test counts has left it", stream, state.FirstSeq)
		}
		for d, err := range conn.Replay(ctx, bus.ReplayConfig{Stream: stream, Subjects: subjects}) {
			if err == nil {
				err = take(d)
			}
			if err != nil {
				t.Fatalf("read %s: %v", stream, err)
			}
			if d.Pending == 0 {
				return
			}
		}
		t.Fatalf("read %s: %v", stream, ctx.Err())
	}
	read(bus.SamplesStream(cluster), func(d bus.Delivery) error {
		var batch proto.Batch
		if err := dec.Batch(d.Data, &batch); err != nil {
			return err
		}
		key := nodeTick{batch.Node, batch.Tick}
		if _, ok := b.scraped[key]; ok {
			b.twice = append(b.twice, fmt.Sprintf("batch of node %s at %s", batch.Node, batch.Tick))
		}
		b.scraped[key] = stored{time.Unix(0, batch.Scraped), d.Seq}
		return nil
	}, bus.SamplesFilter(cluster))
	read(bus.RollupsStream(cluster), func(d bus.Delivery) error {
		var r proto.Rollup
		if err := dec.Rollup(d.Data, &r); err != nil {
			return err
		}
		b.take(&r)
		return nil
	}, bus.RollupFilters(cluster)...)
	return b
}

// take counts a rollup and keeps its values.
func (b *onBus) take(r *proto.Rollup) {
	key := nodeTick{r.Name, r.Tick}
	switch r.Scope {
	case proto.ScopeNode:
		if _, ok := b.rollups[key]; ok {
			b.twice = append(b.twice, fmt.Sprintf("rollup of node %s at %s", r.Name, r.Tick))
		}
		b.rollups[key] = len(r.Entities)
	case proto.ScopeNamespace:
		if slices.Contains(b.namespaces[r.Tick], r.Name) {
			b.twice = append(b.twice, fmt.Sprintf("rollup of namespace %s at %s", r.Name, r.Tick))
		}
		b.namespaces[r.Tick] = append(b.namespaces[r.Tick], r.Name)
	case proto.ScopeTotals:
		if _, ok := b.totals[r.Tick]; ok {
			b.twice = append(b.twice, fmt.Sprintf("totals of %s", r.Tick))
		}
		b.totals[r.Tick], b.closing[r.Tick] = r.Totals, r.Seq
	}
	format := proto.DefaultLabelFormat()
	for row := range r.Entities {
		kind := r.Entities[row].Kind
		own := r.Scope == proto.ScopeNode
		if kind == proto.KindWorkload || own && kind == proto.KindNamespace {
			continue // not written: Heapster had no workloads, and a node's share is no namespace
		}
		if kind == proto.KindPod {
			b.pods[key] = append(b.pods[key], r.Entities[row].Namespace+"/"+r.Entities[row].Name)
		}
		tags := map[string]string{}
		for _, l := range format.AppendEntityLabels(nil, &r.Table, row) {
			tags[l.Key] = l.Value
		}
		for s := range r.Samples(row) {
			if slices.Contains(watched, s.Name) && s.Device == nil && !s.Ours && (!own || !s.StandsIn) {
				b.values[point{entityOf(tags), s.Name, r.Tick}] = s.Value.String()
			}
		}
	}
}

// entityOf tells an entity apart from all others, by labels or tags.
func entityOf(tags map[string]string) string {
	var parts []string
	for _, k := range []string{"type", "nodename", "namespace_name", "pod_name", "container_name"} {
		parts = append(parts, tags[k])
	}
	return strings.Join(parts, "|")
}

// during are those of the times that lie in a life.
func during(times []time.Time, from, to time.Time) (some []time.Time) {
	for _, at := range times {
		if at.After(from) && !at.After(to) {
			some = append(some, at)
		}
	}
	return some
}

// checkSamples: whatever these kubelets answered while their scraper lived is there, but for one answer of each at the end
// of a life, which was under way. Which kubelets it could not read in time the scraper has said. It returns how many
// batches had to be there.
func (b *onBus) checkSamples(t *testing.T, nodes []*simcluster.Node, lives []life, res time.Duration, complained func(node string) bool) (due int) {
	t.Helper()
	until := lives[len(lives)-1].to
	for _, n := range nodes {
		answers, stored := 0, 0
		for i, l := range lives {
			asked := during(n.Asked(), l.from, l.to)
			if i < len(lives)-1 {
				answers += max(0, len(asked)-1)
			} else {
				answers += len(asked)
			}
			if len(asked) == 0 {
				t.Logf("life %d of the scraper of node %s: it lasted %s, and asked for nothing", i, n.Name(), l.to.Sub(l.from).Round(time.Millisecond))
				continue
			}
			t.Logf("life %d of the scraper of node %s: %s, asked %d times, first after %s, ended %s after a tick", i, n.Name(), l.to.Sub(l.from).Round(time.Millisecond),
				len(asked), asked[0].Sub(l.from).Round(time.Millisecond), l.to.Sub(proto.TickAt(l.to, res).Time()).Round(time.Millisecond))
			// It leaves out no tick at which it had time for the others.
			for k := range asked[1:] {
				from, to := asked[k], asked[k+1]
				if to.Sub(from) < 2*res-proto.Spread(res) {
					continue
				}
				for _, o := range nodes {
					if others := during(o.Asked(), from, to); len(others) > 2 && !complained(n.Name()) {
						t.Errorf("node %s was not asked between %s and %s, when node %s was at %s", n.Name(), from, to, o.Name(), others)
					}
				}
			}
		}
		for k, s := range b.scraped {
			if k.node == n.Name() && !s.at.After(until) {
				stored++
			}
		}
		due += answers
		if stored < answers && !complained(n.Name()) {
			t.Errorf("node %s has %d batches, and %d of its kubelet's answers had to be there", n.Name(), stored, answers)
		}
	}
	return due
}

// checkRollups: one message of each batch and each closed tick, with everything in it.
func (b *onBus) checkRollups(t *testing.T, cluster *simcluster.Cluster) {
	t.Helper()
	for _, s := range b.twice {
		t.Errorf("twice on the bus: %s", s)
	}
	for key := range b.scraped {
		if key.tick > b.upto {
			continue
		}
		if b.rollups[key] == 0 {
			t.Errorf("node %s was scraped at %s and has no rollup there", key.node, key.tick)
		}
		if _, ok := b.totals[key.tick]; !ok {
			t.Errorf("there are no totals of %s, when node %s was scraped", key.tick, key.node)
		}
	}
	for key := range b.rollups {
		if _, ok := b.scraped[key]; !ok {
			t.Errorf("node %s has a rollup at %s and was not scraped", key.node, key.tick)
		}
		for _, p := range cluster.Pods(key.node) {
			if name := p.Namespace + "/" + p.Name; !slices.Contains(b.pods[key], name) {
				t.Errorf("pod %s is not in the rollup of node %s at %s", name, key.node, key.tick)
			}
		}
	}
	var rated, all, expected bool
	for i, tick := range slices.Sorted(maps.Keys(b.totals)) {
		totals := b.totals[tick]
		if totals.Gap {
			t.Errorf("the totals of %s say that SAMPLES were lost", tick)
		}
		if int(totals.Expected) != len(cluster.Nodes()) {
			if expected || totals.Expected != 0 {
				t.Errorf("%d nodes were expected at %s, want %d", totals.Expected, tick, len(cluster.Nodes()))
			}
			continue // the inventory came later
		}
		expected = true
		// Missing is who had not spoken by the message that closed the tick, and nobody else.
		for _, n := range cluster.Nodes() {
			batch := b.scraped[nodeTick{n.Name(), tick}]
			spoke := batch.seq != 0 && batch.seq <= b.closing[tick]
			if missing := slices.Contains(totals.Missing, n.Name()); missing == spoke {
				t.Errorf("totals of %s miss %q; they were closed by message %d, the batch of node %s is message %d", tick, totals.Missing, b.closing[tick], n.Name(), batch.seq)
			}
		}
		all = all || len(totals.Missing) == 0 // before, not every scraper had begun
		if i > 0 && all && len(b.namespaces[tick]) != len(b.namespaces[b.upto]) {
			t.Errorf("%d namespaces at %s, %d at the end", len(b.namespaces[tick]), tick, len(b.namespaces[b.upto]))
		}
		_, ok := b.values[point{"cluster||||", "cpu/usage_rate", tick}]
		if rated && !ok {
			t.Errorf("the cluster has no cpu/usage_rate at %s, and had one before", tick)
		}
		rated = rated || ok
	}
	if !rated || !expected {
		t.Errorf("the cluster never had a cpu/usage_rate, or nodes that should report: %t, %t", rated, expected)
	}
}

// checkServed: the gateway has the cluster at every tick that was closed, in their order.
func (b *onBus) checkServed(t *testing.T, served modelResult) {
	t.Helper()
	var got, want []proto.Tick
	for _, m := range served.Metrics {
		if tick := proto.Tick(m.Timestamp.UnixMilli()); tick <= b.upto {
			got = append(got, tick)
		}
	}
	for _, tick := range slices.Sorted(maps.Keys(b.totals)) {
		if tick <= b.upto {
			want = append(want, tick)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the gateway has the cluster at %s, want %s", got, want)
	}
}

// database is where a sink writes to, as a test reads it.
type database interface {
	// sink is the target that writes to it, without options.
	sink() string
	// series are all series of a measurement, each with its points in the order of time.
	series(t *testing.T, metric string) []influxSeries
}

// pointsIn is what a database has of the metrics watched. It fails the test where a point is there twice, an entity has
// two series, or a value cannot be.
func pointsIn(t *testing.T, d database) map[point]string {
	t.Helper()
	got := map[point]string{}
	tagsOf := map[string]string{} // of the one series that an entity may have
	capacity := 0.0
	for _, s := range d.series(t, "cpu/node_capacity") {
		most := 0.0
		for _, v := range s.Values {
			most = max(most, parse(t, v[1]))
		}
		capacity += most
	}
	for _, metric := range watched {
		for _, s := range d.series(t, metric) {
			maps.DeleteFunc(s.Tags, func(_, v string) bool { return v == "" }) // of other series of the measurement
			entity := entityOf(s.Tags)
			tags := fmt.Sprint(s.Tags) // sorted by key
			if before, ok := tagsOf[entity]; ok && before != tags {
				t.Errorf("%s has two series: %s and %s", entity, before, tags)
			}
			tagsOf[entity] = tags
			last := 0.0
			for _, v := range s.Values {
				p := point{entity, metric, proto.Tick(whole(t, v[0]))}
				if _, ok := got[p]; ok {
					t.Errorf("twice in the database: %s of %s at %s", p.metric, p.entity, p.tick)
				}
				got[p] = v[1].String()
				value := parse(t, v[1])
				switch {
				case value < 0:
					t.Errorf("%s of %s is %s at %s", p.metric, p.entity, v[1], p.tick)
				case metric == "cpu/usage" && value < last:
					t.Errorf("counter %s of %s falls from %v to %s at %s", p.metric, p.entity, last, v[1], p.tick)
				case metric == "cpu/usage_rate" && value > capacity:
					t.Errorf("%s of %s is %s at %s, and the cluster has %v", p.metric, p.entity, v[1], p.tick, capacity)
				}
				last = value
			}
		}
	}
	return got
}

// checkDatabase: what the database had, before the bus was read, is what ROLLUPS says, each point once, and no fewer
// than least.
func checkDatabase(t *testing.T, got map[point]string, b *onBus, least int) {
	t.Helper()
	compared := 0
	var missing []string
	for p, want := range b.values {
		switch have, ok := got[p]; {
		case p.tick > b.upto:
		case !ok:
			missing = append(missing, fmt.Sprintf("%s of %s at %s", p.metric, p.entity, p.tick))
		case !sameNumber(have, want):
			t.Errorf("%s of %s at %s is %s in the database and %s on ROLLUPS", p.metric, p.entity, p.tick, have, want)
		default:
			compared++
		}
	}
	for p := range got {
		if _, ok := b.values[p]; !ok {
			t.Errorf("%s of %s at %s is in the database and not on ROLLUPS", p.metric, p.entity, p.tick)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		t.Errorf("%d points are on ROLLUPS and not in the database, such as %q", len(missing), missing[:min(len(missing), 5)])
	}
	t.Logf("%d points compared", compared)
	if compared < least {
		t.Errorf("only %d points were compared", compared)
	}
}

func parse(t *testing.T, n json.Number) float64 {
	t.Helper()
	v, err := n.Float64()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sameNumber compares two texts of numbers, which need not be written alike.
func sameNumber(a, b string) bool {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return errX == nil && errY == nil && cmp.Compare(x, y) == 0
}
