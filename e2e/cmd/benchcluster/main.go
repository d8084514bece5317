// Command benchcluster is `make bench-cluster`: a simulated cluster and the pipeline as separate processes, and what
// each of them costs. It prints CPU time per tick, peak memory, both per 1000 containers, and the bytes on the bus.
//
// It measures with the kernel's own accounting of each process, so what else the machine does shows in waiting times
// and not in CPU figures. The simulator's own cost is printed and not counted.
//
// Not here: a verdict; benchmarks of single functions (beside the code).
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

type options struct {
	bin                     string
	nodes, pods, containers int
	resolution              time.Duration
	warmUp, ticks           int
	keep                    bool
	scrapeOnly              bool
	profiles                string
}

func main() {
	o := options{bin: "bin", nodes: 100, pods: 30, containers: 2, resolution: 15 * time.Second, warmUp: 4, ticks: 4}
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
			fs.DurationVar(&o.resolution, "resolution", o.resolution, "distance between two ticks")
			fs.IntVar(&o.warmUp, "warm-up", o.warmUp, "ticks before measuring: connections are made in the first")
			fs.IntVar(&o.ticks, "ticks", o.ticks, "ticks to measure")
			fs.BoolVar(&o.scrapeOnly, "scrape-only", o.scrapeOnly, "leave out aggregator and gateway: how many nodes one scraper can ask")
			fs.StringVar(&o.profiles, "profiles", o.profiles, "`directory` for CPU and heap profiles of our services, taken while measuring; the taking is measured too")
			fs.BoolVar(&o.keep, "keep", o.keep, "keep the folder with data and logs")
		},
		Run: o.run,
	})
}

// stage is one process of the pipeline.
type stage struct {
	name      string
	cmd       *exec.Cmd
	telemetry string // host:port; "" where it has none
	before    usage
}

// usage is what the kernel says of a process so far.
type usage struct {
	cpu            time.Duration
	peak, resident int64 // bytes
	anonymous      int64
}

func (o *options) run(ctx context.Context, d daemon.Deps) (err error) {
	dir, err := os.MkdirTemp("", "heapstream-bench-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if o.keep {
		fmt.Fprintln(d.Stdout, "data and logs lie in", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	ports, err := freePorts(7) // nats, simcluster, apigw (2), aggregator, scraper; the last for profiles of nats
	if err != nil {
		return err
	}
	var stages []*stage
	defer func() {
		for i := len(stages) - 1; i >= 0; i-- {
			stages[i].stop()
		}
	}()
	start := func(name, telemetry string, args ...string) error {
		s, err := o.start(dir, name, telemetry, args...)
		if err == nil {
			stages = append(stages, s)
		}
		return err
	}
	local := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	natsURL, api, kubeconfig := "nats://"+local(0), local(1), filepath.Join(dir, "reader.kubeconfig")

	profNATS, natsTelemetry := "", ""
	if o.profiles != "" {
		natsTelemetry = local(6)
		profNATS = fmt.Sprintf("prof_port: %d\n", ports[6])
	}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "listen: %q\nmax_payload: 8MB\njetstream { store_dir: %q, max_file_store: 32GB, max_memory_store: 64MB }\n%s", local(0), filepath.Join(dir, "nats"), profNATS), 0o600); err != nil {
		return err
	}
	begun := time.Now()
	if err := errors.Join(
		start("nats", natsTelemetry, "-c", conf),
		start("simcluster", "", "--nodes="+strconv.Itoa(o.nodes), "--pods="+strconv.Itoa(o.pods), "--containers="+strconv.Itoa(o.containers), "--recorded=false",
			"--listen="+api, "--listen-secure=127.0.0.1:0", "--kubelet-port=0", "--kubelet-read-only-port=0", "--reader-kubeconfig-out="+kubeconfig),
	); err != nil {
		return err
	}
	if err := until(ctx, "the simulated cluster serves", func() bool {
		_, err := os.Stat(kubeconfig)
		return err == nil && answers(ctx, "http://"+api+"/readyz")
	}); err != nil {
		return err
	}
	cfg := bus.DefaultConfig()
	cfg.URLs, cfg.Name = []string{natsURL}, "benchcluster"
	conn, err := bus.Connect(ctx, cfg, d.Log)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.WaitUp(ctx); err != nil {
		return err
	}
	if _, err := conn.Apply(ctx, bus.Topology{Cluster: "bench", Nodes: o.nodes, Resolution: o.resolution, RollupsBytes: 16 << 30}); err != nil {
		return err
	}
	url := "--bus-url=" + natsURL
	profiling := "--telemetry-profiling=" + strconv.FormatBool(o.profiles != "")
	if !o.scrapeOnly {
		if err := errors.Join(
			start("apigw", local(2), url, "--telemetry-listen="+local(2), profiling, "--cluster=bench", "--listen_ip=127.0.0.1", "--heapster-port="+strconv.Itoa(ports[3])),
			start("aggregator", local(4), url, "--telemetry-listen="+local(4), profiling),
		); err != nil {
			return err
		}
	}
	if err := start("scraper", local(5), url, "--telemetry-listen="+local(5), profiling, "--cluster=bench", "--kubeconfig="+kubeconfig, "--metric-resolution="+o.resolution.String()); err != nil {
		return err
	}
	first := func() bool {
		return contains(ctx, "http://"+local(3)+"/api/v1/model/metrics/cpu/usage_rate", `"value"`)
	}
	if o.scrapeOnly {
		first = func() bool {
			st, err := conn.StreamState(ctx, bus.SamplesStream("bench"))
			return err == nil && !st.Empty()
		}
	}
	if err := until(ctx, "there is data", first); err != nil {
		return err
	}
	fmt.Fprintf(d.Stdout, "first data after %.1f s\n", time.Since(begun).Seconds())
	if err := wait(ctx, time.Duration(o.warmUp)*o.resolution); err != nil {
		return err
	}
	streams := [2]string{bus.SamplesStream("bench"), bus.RollupsStream("bench")}
	var sizes [2]uint64
	var scrapes map[string]float64
	measure := func(first bool) error {
		for _, s := range stages {
			u, err := s.usage()
			if err != nil {
				return err
			}
			if first {
				s.before = u
			} else {
				u.cpu -= s.before.cpu
				s.before = u
			}
		}
		for i, name := range streams {
			st, err := conn.StreamState(ctx, name)
			if err != nil {
				return err
			}
			sizes[i] = st.Bytes - sizes[i]
		}
		now := counters(ctx, "http://"+local(5)+"/metrics", "heapstream_scraper_")
		for k, v := range scrapes {
			now[k] -= v
		}
		scrapes = now
		return nil
	}
	if err := measure(true); err != nil {
		return err
	}
	if err := o.measured(ctx, stages); err != nil {
		return err
	}
	if err := measure(false); err != nil {
		return err
	}
	return o.report(d.Stdout, stages, sizes, scrapes)
}

// measured waits while the figures build up, and takes profiles if asked to.
func (o *options) measured(ctx context.Context, stages []*stage) error {
	span := time.Duration(o.ticks) * o.resolution
	if o.profiles == "" {
		return wait(ctx, span)
	}
	results := make(chan error, len(stages))
	for _, s := range stages {
		go func() {
			if s.telemetry == "" {
				results <- nil
				return
			}
			base, file := "http://"+s.telemetry+"/debug/pprof/", filepath.Join(o.profiles, s.name)
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
	body := get(ctx, url, takes)
	if body == "" {
		return fmt.Errorf("no profile from %s", url)
	}
	return os.WriteFile(file, []byte(body), 0o600)
}

func (o *options) report(out io.Writer, stages []*stage, sizes [2]uint64, scrapes map[string]float64) error {
	thousands := float64(o.nodes*o.pods*o.containers) / 1000
	fmt.Fprintf(out, "%d nodes x %d pods x %d containers, every %s, over %d ticks\n", o.nodes, o.pods, o.containers, o.resolution, o.ticks)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "process\tCPU s/tick\tcores\tCPU ms/1000 containers\tpeak MiB\tresident MiB\tanonymous MiB\t")
	var side time.Duration
	for _, s := range stages {
		per := s.before.cpu.Seconds() / float64(o.ticks)
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.2f\t%.1f\t%.1f\t%.1f\t\n", s.name, per, per/o.resolution.Seconds(), per*1000/thousands, mib(s.before.peak), mib(s.before.resident), mib(s.before.anonymous))
		if s.name == "nats" || s.name == "aggregator" || s.name == "apigw" {
			side += s.before.cpu
		}
	}
	fmt.Fprintf(w, "bus + aggregator + gateway\t%.3f\t\t%.2f\t\t\t\t\n", side.Seconds()/float64(o.ticks), side.Seconds()*1000/float64(o.ticks)/thousands)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "on the bus per tick: samples %.2f MiB, rollups %.2f MiB\n", mib(int64(sizes[0]))/float64(o.ticks), mib(int64(sizes[1]))/float64(o.ticks)) //nolint:gosec // bytes of a stream
	for _, name := range sorted(scrapes) {
		if v := scrapes[name]; v != 0 && !strings.Contains(name, "_bucket") && !strings.Contains(name, "seconds") {
			fmt.Fprintf(out, "  %s %+.0f\n", name, v)
		}
	}
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func (o *options) start(dir, name, telemetry string, args ...string) (*stage, error) {
	log, err := os.Create(filepath.Join(dir, name+".log")) //nolint:gosec // our own folder
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(o.bin, name), args...) //nolint:gosec // our own programs
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w (make build makes it)", name, err)
	}
	return &stage{name: name, cmd: cmd, telemetry: telemetry}, nil
}

func (s *stage) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		slog.Warn("process does not stop and is killed", "process", s.name)
		_ = s.cmd.Process.Kill()
		<-done
	}
}

// clockTick is the unit of CPU time in /proc, 100 a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

func (s *stage) usage() (u usage, err error) {
	proc := fmt.Sprintf("/proc/%d/", s.cmd.Process.Pid)
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return u, fmt.Errorf("%s has ended: %w", s.name, err)
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return u, fmt.Errorf("%sstat has %d fields", proc, len(fields))
	}
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("%sstat: %w", proc, err)
		}
		u.cpu += time.Duration(n) * clockTick
	}
	status, err := os.Open(proc + "status") //nolint:gosec // /proc
	if err != nil {
		return u, err
	}
	defer status.Close()
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "VmHWM":
			u.peak = kib << 10
		case "VmRSS":
			u.resident = kib << 10
		case "RssAnon":
			u.anonymous = kib << 10
		}
	}
	return u, lines.Err()
}

// freePorts finds ports that nobody listens on just now.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port) //nolint:forcetypeassert // it is TCP
	}
	return ports, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func until(ctx context.Context, what string, holds func() bool) error {
	for deadline := time.Now().Add(5 * time.Minute); !holds(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited 5 minutes in vain until %s", what)
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// get returns the body of a good answer, or "". The answer may take 5 s longer than takes.
func get(ctx context.Context, url string, takes time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, takes+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
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

func answers(ctx context.Context, url string) bool { return get(ctx, url, 0) != "" }

func contains(ctx context.Context, url, text string) bool {
	return strings.Contains(get(ctx, url, 0), text)
}

// counters reads the series of a /metrics page whose names have the prefix.
func counters(ctx context.Context, url, prefix string) map[string]float64 {
	all := map[string]float64{}
	for line := range strings.Lines(get(ctx, url, 0)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && strings.HasPrefix(name, prefix) {
			all[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return all
}

func sorted(m map[string]float64) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
