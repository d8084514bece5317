// Command benchcluster is `make bench-cluster`: a simulated cluster and the pipeline as separate processes, and what
// each of them costs and how soon it answers. It prints CPU time per tick, memory, both per 1000 containers, the bytes on
// the bus, the time from a kubelet's answer to its being served, the latencies of the APIs, and what a killed gateway
// and a killed aggregator cost.
//
// It measures with the kernel's own accounting of each process, so what else the machine does shows in waiting times
// and not in CPU figures. The simulator's own cost is printed and not counted, nor is that of this program.
//
// Not here: a verdict; benchmarks of single functions (beside the code); whether anything is lost (soak).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

// What can be measured, in this order.
const (
	costs     = "costs"
	delay     = "delay"
	apis      = "apis"
	coldStart = "cold-start"
	failOver  = "fail-over"
)

var everything = []string{costs, delay, apis, coldStart, failOver}

type options struct {
	bin                     string
	nodes, pods, containers int
	namespaces              int
	resolution              time.Duration
	warmUp, ticks           int
	measure                 []string
	keep                    bool
	scrapeOnly              bool
	batches                 bool
	profiles                string
}

func main() {
	o := options{bin: "bin", nodes: 100, pods: 30, containers: 2, resolution: 15 * time.Second, warmUp: 4, ticks: 4, measure: everything}
	process := daemon.DefaultConfig()
	process.TelemetryListen = ""
	daemon.Main(&daemon.Command{
		Name:    "benchcluster",
		Short:   "Measures what each stage of the pipeline costs on a simulated cluster.",
		Process: &process,
		OneShot: true,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&o.bin, "bin", o.bin, "`directory` of the programs")
			fs.IntVar(&o.nodes, "nodes", o.nodes, "nodes of the cluster")
			fs.IntVar(&o.pods, "pods", o.pods, "pods a node")
			fs.IntVar(&o.containers, "containers", o.containers, "containers a pod")
			fs.IntVar(&o.namespaces, "namespaces", o.namespaces, "namespaces of the workload; 0: one for 600 pods, and 4 at least")
			fs.DurationVar(&o.resolution, "resolution", o.resolution, "distance between two ticks")
			fs.IntVar(&o.warmUp, "warm-up", o.warmUp, "ticks before measuring: connections are made in the first; 15 minutes of them fill the window")
			fs.IntVar(&o.ticks, "ticks", o.ticks, "ticks to measure")
			fs.StringSliceVar(&o.measure, "measure", o.measure, "what to measure")
			fs.BoolVar(&o.scrapeOnly, "scrape-only", o.scrapeOnly, "leave out aggregator and gateway: how many nodes one scraper can ask")
			fs.BoolVar(&o.batches, "batches", o.batches, "write batches straight to the bus: those of a small simulated cluster, many times over under other names")
			fs.StringVar(&o.profiles, "profiles", o.profiles, "`directory` for CPU and heap profiles of our services, taken while measuring; the taking is measured too")
			fs.BoolVar(&o.keep, "keep", o.keep, "keep the folder with data and logs")
		},
		Validate: o.validate,
		Run:      o.run,
	})
}

func (o *options) validate() error {
	var errs []error
	for _, m := range o.measure {
		if !slices.Contains(everything, m) {
			errs = append(errs, fmt.Errorf("--measure: %q is unknown: want some of %s", m, strings.Join(everything, ", ")))
		}
	}
	if o.nodes < 1 || o.pods < 1 || o.containers < 1 || o.ticks < 1 || o.warmUp < 0 {
		errs = append(errs, fmt.Errorf("%d nodes with %d pods of %d containers over %d ticks after %d: want at least one of each", o.nodes, o.pods, o.containers, o.ticks, o.warmUp))
	}
	if o.batches && o.scrapeOnly {
		errs = append(errs, errors.New("--batches and --scrape-only: there is nothing to measure without scraper, aggregator and gateway"))
	}
	return errors.Join(errs...)
}

// bench is one run.
type bench struct {
	*options
	log   *slog.Logger
	out   io.Writer
	dir   string
	fleet *fleet.Fleet
	conn  *bus.Conn

	token         string // of the administrator of the simulated cluster
	model, secure string // host:port of the gateway's APIs
	client        *http.Client
	args          map[string][]string // of aggregators, for a second one
	lines         []line              // of the table
}

// line is one of the table at the end.
type line struct{ what, is string }

func (b *bench) say(what, format string, args ...any) {
	b.lines = append(b.lines, line{what, fmt.Sprintf(format, args...)})
}

func (o *options) run(ctx context.Context, d daemon.Deps) (err error) {
	dir, err := os.MkdirTemp("", "heapstream-bench-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o700); err != nil {
			return fmt.Errorf("make a folder for profiles: %w", err)
		}
	}
	if o.keep {
		fmt.Fprintln(d.Stdout, "data and logs lie in", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if o.namespaces == 0 {
		o.namespaces = max(4, o.nodes*o.pods/600)
	}
	if o.scrapeOnly {
		o.measure = []string{costs}
	}
	b := &bench{options: o, log: d.Log, out: d.Stdout, dir: dir, fleet: &fleet.Fleet{Bin: o.bin, Dir: dir}, args: map[string][]string{}}
	defer func() { err = errors.Join(err, b.fleet.Stop()) }()
	ctx, cancel := context.WithCancel(ctx)
	begun := time.Now()
	stop, err := b.start(ctx)
	defer func() { cancel(); err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	first := func() bool {
		return strings.Contains(fleet.Get(ctx, "http://"+b.model+"/api/v1/model/metrics/cpu/usage_rate", 0), `"value"`)
	}
	if o.scrapeOnly {
		first = func() bool {
			st, err := b.conn.StreamState(ctx, bus.SamplesStream(cluster))
			return err == nil && !st.Empty()
		}
	}
	if err := fleet.Until(ctx, "there is data", first); err != nil {
		return err
	}
	fmt.Fprintf(d.Stdout, "first data after %.1f s\n", time.Since(begun).Seconds())
	if err := fleet.Wait(ctx, time.Duration(o.warmUp)*o.resolution); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.table()) }() // of what was measured before an error, too
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{{costs, b.costs}, {delay, b.delay}, {apis, b.apis}, {coldStart, b.coldStart}, {failOver, b.failOver}} {
		if slices.Contains(o.measure, step.name) {
			if err := step.do(ctx); err != nil {
				return fmt.Errorf("measure %s: %w", step.name, err)
			}
		}
	}
	return nil
}

// table prints the lines that there are.
func (b *bench) table() error {
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	for _, l := range b.lines {
		fmt.Fprintf(w, "%s\t%s\n", l.what, l.is)
	}
	return w.Flush()
}

// cost is what a process has cost so far, or between two looks.
type cost struct {
	name string
	fleet.Usage
}

// look is everything that is measured over ticks, at one moment.
type look struct {
	costs   []cost
	streams [2]bus.State
	scrapes map[string]float64
	load    string
}

func (b *bench) look(ctx context.Context) (l look, err error) {
	for _, p := range b.fleet.Processes() {
		u, err := p.Usage()
		if err != nil {
			return l, err
		}
		l.costs = append(l.costs, cost{p.Name, u})
		if p.Name == "scraper" {
			l.scrapes = p.Counters(ctx, "heapstream_scraper_")
		}
	}
	for i, name := range []string{bus.SamplesStream(cluster), bus.RollupsStream(cluster)} {
		if l.streams[i], err = b.conn.StreamState(ctx, name); err != nil {
			return l, err
		}
	}
	load, _ := os.ReadFile("/proc/loadavg") // for the reader; none elsewhere
	l.load, _, _ = strings.Cut(string(load), " ")
	return l, nil
}

// costs measures over some ticks, and takes profiles if asked to.
func (b *bench) costs(ctx context.Context) error {
	before, err := b.look(ctx)
	if err != nil {
		return err
	}
	if err := b.measured(ctx); err != nil {
		return err
	}
	after, err := b.look(ctx)
	if err != nil {
		return err
	}
	return b.report(before, after)
}

// measured waits while the figures build up, and takes profiles if asked to.
func (b *bench) measured(ctx context.Context) error {
	span := time.Duration(b.ticks) * b.resolution
	if b.profiles == "" {
		return fleet.Wait(ctx, span)
	}
	stages := b.fleet.Processes()
	results := make(chan error, len(stages))
	for _, s := range stages {
		go func() {
			if s.Telemetry == "" {
				results <- nil
				return
			}
			base, file := "http://"+s.Telemetry+"/debug/pprof/", filepath.Join(b.profiles, s.Name)
			results <- errors.Join(
				save(ctx, fmt.Sprintf("%sprofile?seconds=%d", base, int(span.Seconds())), file+".cpu.pprof", span),
				save(ctx, base+"allocs", file+".allocs.pprof", 0),
				save(ctx, base+"heap", file+".heap.pprof", 0))
		}()
	}
	var errs []error
	for range stages {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

func save(ctx context.Context, url, file string, takes time.Duration) error {
	body := fleet.Get(ctx, url, takes)
	if body == "" {
		return fmt.Errorf("no profile from %s", url)
	}
	return os.WriteFile(file, []byte(body), 0o600)
}

// counted are the processes that serve a cluster from the bus on.
var counted = []string{"nats", "aggregator", "apigw"}

func (b *bench) report(before, after look) error {
	thousands, ticks := float64(b.nodes*b.pods*b.containers)/1000, float64(b.ticks)
	fmt.Fprintf(b.out, "%d nodes x %d pods x %d containers in %d namespaces, every %s, over %d ticks; load of the machine %s and %s\n",
		b.nodes, b.pods, b.containers, b.namespaces, b.resolution, b.ticks, before.load, after.load)
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "process\tCPU s/tick\tcores\tCPU ms/1000 containers\tpeak MiB\tresident MiB\tanonymous MiB\tMiB/1000 containers\t")
	var side time.Duration
	var resident int64
	row := func(name string, cpu time.Duration, rest string) {
		per := cpu.Seconds() / ticks
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.2f\t%s", name, per, per/b.resolution.Seconds(), per*1000/thousands, rest)
	}
	for i, c := range after.costs {
		cpu := c.CPU - before.costs[i].CPU
		row(c.name, cpu, fmt.Sprintf("%.1f\t%.1f\t%.1f\t%.2f\t\n", mib(c.Peak), mib(c.Resident), mib(c.Anonymous), mib(c.Resident)/thousands))
		if slices.Contains(counted, c.name) {
			side += cpu
			resident += c.Resident
		}
	}
	row("bus + aggregator + gateway", side, fmt.Sprintf("\t%.1f\t\t%.2f\t\n", mib(resident), mib(resident)/thousands))
	if err := w.Flush(); err != nil {
		return err
	}
	var bytes, messages [2]float64
	for i := range bytes {
		messages[i] = float64(after.streams[i].LastSeq-before.streams[i].LastSeq) / ticks
		if n := after.streams[i].Messages; n > 0 {
			bytes[i] = messages[i] * mib(int64(after.streams[i].Bytes)) / float64(n) //nolint:gosec // bytes of a stream
		}
	}
	b.say("on the bus, a tick", "SAMPLES %.2f MiB in %.0f messages, ROLLUPS %.2f MiB in %.0f", bytes[0], messages[0], bytes[1], messages[1])
	for _, name := range sorted(after.scrapes) {
		if v := after.scrapes[name] - before.scrapes[name]; v != 0 && !strings.Contains(name, "_bucket") && !strings.Contains(name, "seconds") {
			fmt.Fprintf(b.out, "  %s %+.0f\n", name, v)
		}
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func sorted(m map[string]float64) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// millis is a duration for the table.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64) + " ms"
}

// quantiles of durations, which it sorts.
func quantiles(all []time.Duration) (p50, p99, most time.Duration) {
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[min(len(all)*99/100, len(all)-1)], all[len(all)-1]
}
