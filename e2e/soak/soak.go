// Package soak runs the whole pipeline as separate processes on a simulated cluster for a long time, with pods that come
// and go, processes that are killed one after the other, and a backend that goes away and comes back; and counts.
//
// Nothing may be lost and nothing doubled: each tick has one message of totals, each batch one rollup, and each point of
// ROLLUPS is at the backend with its value. What a dead scraper did not measure is the one thing that may be missing,
// and only while it was dead. Every 15 s it asks the kernel and the processes how they are, so that what grows shows.
//
// Not here: what a tick costs (cmd/benchcluster); each way to fail by itself, provoked and counted (the tests of e2e).
package soak

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// Config is what to run and for how long.
type Config struct {
	Bin string // directory of the programs
	Dir string // for logs, the bus's data, samples.csv and summary.txt; must exist

	Nodes, Pods, Containers int
	Resolution              time.Duration
	Churn                   time.Duration // mean time between two changes of the workload; 0: none

	Duration   time.Duration // from the first numbers at the backend on; what was to happen within it happens, if later
	KillEvery  time.Duration // 0: nobody is killed
	FlapEvery  time.Duration // from one absence of the backend to the next; 0: none
	FlapFor    time.Duration // how long it is away
	Sample     time.Duration
	RollupsAge time.Duration // how long ROLLUPS are kept; at least bus.MinRollupsAge
}

// DefaultConfig is an hour at 1000 nodes.
func DefaultConfig() Config {
	return Config{Bin: "bin", Nodes: 1000, Pods: 30, Containers: 2, Resolution: 15 * time.Second, Churn: time.Second,
		Duration: time.Hour, KillEvery: 150 * time.Second, FlapEvery: 7 * time.Minute, FlapFor: 75 * time.Second, Sample: 15 * time.Second, RollupsAge: bus.MinRollupsAge}
}

// Validate joins all complaints.
func (c *Config) Validate() error {
	var errs []error
	positive := func(name string, d time.Duration) {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("--%s is %s: want more than 0", name, d))
		}
	}
	positive("duration", c.Duration)
	positive("sample", c.Sample)
	if c.Nodes < 1 || c.Pods < 1 || c.Containers < 1 {
		errs = append(errs, fmt.Errorf("%d nodes with %d pods of %d containers: want at least one of each", c.Nodes, c.Pods, c.Containers))
	}
	if c.Resolution < proto.MinResolution {
		errs = append(errs, fmt.Errorf("--resolution is %s: want %s or more", c.Resolution, proto.MinResolution))
	}
	if c.FlapEvery > 0 && (c.FlapFor <= 0 || c.FlapFor >= c.FlapEvery) {
		errs = append(errs, fmt.Errorf("--flap-for is %s: want more than 0 and less than --flap-every, %s", c.FlapFor, c.FlapEvery))
	}
	if c.RollupsAge < bus.MinRollupsAge {
		errs = append(errs, fmt.Errorf("--rollups-age is %s: want %s or more", c.RollupsAge, bus.MinRollupsAge))
	}
	return errors.Join(errs...)
}

// cluster is the name of the cluster on the bus.
const cluster = "soak"

// Result is what came of it.
type Result struct {
	Sum      Sum
	Kills    map[string]int // by process
	Absences map[Mode]int   // of the backend
	Failed   int            // scrapes that the scraper says have failed or not begun
	Faults   []string       // the first of them
	Wrong    int            // all of them
}

// run is one run.
type run struct {
	cfg     Config
	log     *slog.Logger
	fleet   *fleet.Fleet
	ledger  *ledger
	backend *backend
	conn    *bus.Conn
	watch   *watch

	scraper *fleet.Process
	backAt  struct {
		mu    sync.Mutex
		after time.Time // first batch scraped after it says that the scraper is back; zero: nobody waits for it
		seen  chan proto.Tick
	}
	model        [2]string  // of the gateways: host:port of the Heapster API
	natsProfiles string     // host:port
	failures     chan error // of what reads the bus

}

// Run runs it all until it is over, and tells out how it goes. An error means that it could not be run to its end; what
// was found wrong is in the result.
func Run(ctx context.Context, cfg Config, log *slog.Logger, out io.Writer) (res Result, err error) {
	if err := cfg.Validate(); err != nil {
		return res, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &run{cfg: cfg, log: log, fleet: &fleet.Fleet{Bin: cfg.Bin, Dir: cfg.Dir}, ledger: newLedger(cfg.Nodes, cfg.Resolution), failures: make(chan error, 4)}
	r.backAt.seen = make(chan proto.Tick, 1)
	var readers sync.WaitGroup
	defer func() {
		cancel()
		readers.Wait()
		if r.conn != nil {
			r.conn.Close()
		}
		err = errors.Join(err, r.fleet.Stop(), r.backend.set(Gone))
	}()
	if r.backend, err = newBackend(r.ledger, log); err != nil {
		return res, err
	}
	if err := r.start(ctx); err != nil {
		return res, err
	}
	if r.watch, err = newWatch(r); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, r.watch.close()) }()
	for _, read := range []func(context.Context) error{r.readSamples, r.readRollups} {
		readers.Go(func() {
			if err := read(ctx); err != nil && ctx.Err() == nil {
				r.failures <- err
			}
		})
	}
	if err := r.until(ctx, "the first numbers are at the backend", func() bool { lines, _, _ := r.backend.taken(); return lines > 0 && r.ledger.lastTick() != 0 }); err != nil {
		return res, err
	}
	began := time.Now()
	fmt.Fprintf(out, "%s: first numbers at the backend; %d nodes x %d pods x %d containers every %s, for %s\n", began.UTC().Format(time.RFC3339), cfg.Nodes, cfg.Pods, cfg.Containers, cfg.Resolution, cfg.Duration)
	res = Result{Kills: map[string]int{}, Absences: map[Mode]int{}}
	if err := r.endure(ctx, began, &res, out); err != nil {
		return res, err
	}
	if err := r.backend.set(Up); err != nil {
		return res, err
	}
	last := r.ledger.lastTick().Add(2, cfg.Resolution)
	fmt.Fprintf(out, "%s: over; waiting for what is owed up to %s\n", time.Now().UTC().Format(time.RFC3339), last)
	settled := r.until(ctx, "everything up to "+last.String()+" is where it should be", func() bool { return r.ledger.balanced(last) })
	if ctx.Err() != nil {
		return res, ctx.Err()
	}
	r.watch.sample(ctx)
	r.finish(ctx, last, settled, &res)
	return res, r.watch.summary(out, &res)
}

// start starts everything and waits for none of it to be ready but the cluster and the bus.
func (r *run) start(ctx context.Context) error {
	cfg := &r.cfg
	ports, err := fleet.FreePorts(12)
	if err != nil {
		return err
	}
	local := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	natsURL, kubeconfig := "nats://"+local(0), filepath.Join(cfg.Dir, "reader.kubeconfig")
	conf := filepath.Join(cfg.Dir, "nats.conf")
	text := fmt.Sprintf("listen: %q\nmax_payload: 8MB\njetstream { store_dir: %q, max_file_store: 64GB, max_memory_store: 64MB }\nprof_port: %d\n", local(0), filepath.Join(cfg.Dir, "nats"), ports[1])
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	start := func(name, program, telemetry string, args ...string) error {
		_, err := r.fleet.Start(name, program, telemetry, args...)
		return err
	}
	if err := errors.Join(
		start("nats", "nats", "", "-c", conf),
		start("simcluster", "simcluster", "", "--nodes="+strconv.Itoa(cfg.Nodes), "--pods="+strconv.Itoa(cfg.Pods), "--containers="+strconv.Itoa(cfg.Containers), "--recorded=false",
			"--churn="+cfg.Churn.String(), "--listen="+local(2), "--listen-secure=127.0.0.1:0", "--kubelet-port=0", "--kubelet-read-only-port=0", "--reader-kubeconfig-out="+kubeconfig),
	); err != nil {
		return err
	}
	if err := r.until(ctx, "the simulated cluster serves", func() bool {
		_, err := os.Stat(kubeconfig)
		return err == nil && fleet.Get(ctx, "http://"+local(2)+"/readyz", 0) != ""
	}); err != nil {
		return err
	}
	connect := bus.DefaultConfig()
	connect.URLs, connect.Name = []string{natsURL}, "soak"
	if r.conn, err = bus.Connect(ctx, connect, r.log); err != nil {
		return err
	}
	if err := r.conn.WaitUp(ctx); err != nil {
		return err
	}
	if _, err := r.conn.Apply(ctx, bus.Topology{Cluster: cluster, Nodes: cfg.Nodes, Resolution: cfg.Resolution, RollupsAge: cfg.RollupsAge, RollupsBytes: 24 << 30}); err != nil {
		return err
	}
	if err := r.backend.set(Up); err != nil {
		return err
	}
	url := "--bus-url=" + natsURL
	telemetry := func(i int) string { return "--telemetry-listen=" + local(i) }
	gateway := func(name string, at, serves int) error {
		return start(name, "apigw", local(at), url, telemetry(at), "--cluster="+cluster, "--listen_ip=127.0.0.1", "--heapster-port="+strconv.Itoa(ports[serves]))
	}
	if err := errors.Join(
		gateway("apigw-1", 3, 4),
		gateway("apigw-2", 5, 6),
		start("aggregator-1", "aggregator", local(7), url, telemetry(7), "--member-id=aggregator-1"),
		start("aggregator-2", "aggregator", local(8), url, telemetry(8), "--member-id=aggregator-2"),
		start("sinks", "sinks", local(9), url, telemetry(9), "--sink=influxdb:http://"+r.backend.address+"?name=backend"),
	); err != nil {
		return err
	}
	r.scraper, err = r.fleet.Start("scraper", "scraper", local(10), url, telemetry(10), "--cluster="+cluster, "--kubeconfig="+kubeconfig, "--metric-resolution="+cfg.Resolution.String())
	r.model = [2]string{local(4), local(6)}
	r.natsProfiles = local(1)
	return err
}

// process finds one by its name.
func (r *run) process(name string) *fleet.Process {
	all := r.fleet.Processes()
	return all[slices.IndexFunc(all, func(p *fleet.Process) bool { return p.Name == name })]
}

// until is fleet.Until, which ends also when something that must live has ended.
func (r *run) until(ctx context.Context, what string, holds func() bool) error {
	var failed error
	err := fleet.Until(ctx, what, func() bool {
		failed = r.alive()
		return failed != nil || holds()
	})
	return cmp.Or(failed, err)
}

// alive is an error if a process has ended by itself or the bus cannot be read any more.
func (r *run) alive() error {
	for _, p := range r.fleet.Processes() {
		if p.Ended() {
			return fmt.Errorf("%s has ended by itself: see %s", p.Name, filepath.Join(r.cfg.Dir, p.Name+".log"))
		}
	}
	select {
	case err := <-r.failures:
		return err
	default:
		return nil
	}
}

// victims are killed in this order. One gateway lives through it all, so that what grows in it has an hour to show.
var victims = []string{"aggregator", "sinks", "apigw-2", "scraper", "nats"}

// endure lets time pass, kills, flaps and samples.
func (r *run) endure(ctx context.Context, began time.Time, res *Result, out io.Writer) error {
	cfg := &r.cfg
	over := began.Add(cfg.Duration)
	never := over.Add(time.Hour)
	next := func(every time.Duration) time.Time {
		if every <= 0 {
			return never
		}
		return began.Add(every)
	}
	kill, flap, back, sample := next(cfg.KillEvery), next(cfg.FlapEvery), never, began
	mode, told := Up, 0
	for n := 0; ; {
		if err := r.alive(); err != nil {
			return err
		}
		now := time.Now()
		// What was to happen before the end happens, however long the machine takes for it.
		owed := kill.Before(over) || flap.Before(over) || back != never
		switch {
		case !now.Before(over) && !owed:
			return nil
		case !now.Before(sample):
			r.watch.sample(ctx)
			told = r.ledger.tell(out, told)
			sample = sample.Add(cfg.Sample * (1 + now.Sub(sample)/cfg.Sample))
		case !now.Before(kill) && kill.Before(over):
			name, err := r.kill(ctx, victims[n%len(victims)], out)
			if err != nil {
				return err
			}
			res.Kills[name]++
			n++
			kill = kill.Add(cfg.KillEvery)
		case !now.Before(flap) && flap.Before(over) && back == never:
			mode = mode%(modes-1) + 1
			res.Absences[mode]++
			fmt.Fprintf(out, "%s: backend is %s\n", now.UTC().Format(time.RFC3339), mode)
			if err := r.backend.set(mode); err != nil {
				return err
			}
			back, flap = now.Add(cfg.FlapFor), flap.Add(cfg.FlapEvery)
		case !now.Before(back):
			fmt.Fprintf(out, "%s: backend is up\n", now.UTC().Format(time.RFC3339))
			if err := r.backend.set(Up); err != nil {
				return err
			}
			back = never
		default:
			soonest := slices.MinFunc([]time.Time{sample, back}, time.Time.Compare)
			for _, at := range []time.Time{over, kill, flap} {
				if at.After(now) && at.Before(soonest) {
					soonest = at
				}
			}
			if err := fleet.Wait(ctx, min(time.Until(soonest), time.Second)); err != nil {
				return err
			}
		}
	}
}

// kill kills a process and starts it again; of the aggregators the one that owns the cluster.
func (r *run) kill(ctx context.Context, name string, out io.Writer) (string, error) {
	if name == "aggregator" {
		if err := r.until(ctx, "somebody owns the cluster", func() bool {
			leases, err := r.conn.Leases(ctx, "aggregator.")
			if err != nil || len(leases) != 1 || leases[0].Owner == "" {
				return false
			}
			name = leases[0].Owner
			return true
		}); err != nil {
			return "", err
		}
	}
	p := r.process(name)
	if p == r.scraper {
		r.watch.ofScraper(ctx) // what it has counted goes with it
	}
	began := time.Now()
	if err := p.Kill(); err != nil {
		return name, err
	}
	if p == r.scraper {
		r.ledger.scraperGone(began)
	}
	before := r.ledger.lastTick()
	if err := p.Start(); err != nil {
		return name, err
	}
	what, back := "totals of another tick", func() bool { return r.ledger.lastTick() > before }
	switch name {
	case "scraper":
		_, since := p.Starts()
		r.awaitBatch(since)
		what, back = "a batch", func() bool {
			select {
			case tick := <-r.backAt.seen:
				r.ledger.scraperBack(tick)
				return true
			default:
				return false
			}
		}
	case "apigw-2":
		what, back = "the whole cluster served", func() bool { return r.serves(ctx, 1, before) }
	case "sinks":
		_, requests, _ := r.backend.taken()
		mode, _ := r.backend.now()
		what, back = "a request", func() bool { _, n, _ := r.backend.taken(); return n > requests+1 || mode != Up }
	}
	err := r.until(ctx, name+" is back: "+what, back)
	fmt.Fprintf(out, "%s: %s was killed; %s after %.1f s\n", began.UTC().Format(time.RFC3339), name, what, time.Since(began).Seconds())
	return name, err
}

// awaitBatch asks readSamples to tell of the first batch that was scraped after that time.
func (r *run) awaitBatch(after time.Time) {
	r.backAt.mu.Lock()
	defer r.backAt.mu.Unlock()
	r.backAt.after = after
}

func (r *run) scraped(at time.Time, tick proto.Tick) {
	r.backAt.mu.Lock()
	defer r.backAt.mu.Unlock()
	if !r.backAt.after.IsZero() && at.After(r.backAt.after) {
		r.backAt.after = time.Time{}
		r.backAt.seen <- tick
	}
}

// readSamples follows SAMPLES.
func (r *run) readSamples(ctx context.Context) error {
	dec := proto.NewDecoder()
	var b proto.Batch
	for d, err := range r.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream(cluster), Subjects: []string{bus.SamplesFilter(cluster)}}) {
		if err == nil {
			err = dec.Batch(d.Data, &b)
		}
		if err != nil {
			return err
		}
		r.ledger.batch(strings.Clone(b.Node), b.Tick)
		r.scraped(time.Unix(0, b.Scraped), b.Tick)
	}
	return ctx.Err()
}

// readRollups follows ROLLUPS.
func (r *run) readRollups(ctx context.Context) error {
	dec, points := proto.NewDecoder(), newReader()
	var rollup proto.Rollup
	for d, err := range r.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.RollupsStream(cluster), Subjects: bus.RollupFilters(cluster)}) {
		if err == nil {
			err = dec.Rollup(d.Data, &rollup)
		}
		if err != nil {
			return err
		}
		r.ledger.rollup(&rollup, points.read(&rollup))
	}
	return ctx.Err()
}

// serves tells whether a gateway serves the cluster at a tick.
func (r *run) serves(ctx context.Context, gateway int, tick proto.Tick) bool {
	at, ok := r.newestServed(ctx, gateway)
	return ok && at >= tick
}

// finish closes the books.
func (r *run) finish(ctx context.Context, last proto.Tick, settled error, res *Result) {
	var f faults
	res.Sum, f = r.ledger.finish(last)
	if settled != nil {
		f.add("%v", settled)
	}
	if _, _, malformed := r.backend.taken(); malformed > 0 {
		f.add("%d requests held a line that is no line protocol", malformed)
	}
	if dead, err := r.conn.StreamState(ctx, bus.DeadStream); err != nil || dead.LastSeq != 0 {
		f.add("%d messages went to DEAD (%v)", dead.LastSeq, err)
	}
	if res.Failed = r.watch.failedScrapes(); res.Sum.Missed > res.Failed {
		f.add("%d node ticks are missing, and the scraper says that %d scrapes failed", res.Sum.Missed, res.Failed)
	}
	res.Faults, res.Wrong = f.words, f.n
}
