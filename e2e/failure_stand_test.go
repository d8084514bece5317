//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// programs is a folder with the programs of this tree, and the server's in the version that proto embeds: built once,
// with the build cache of the tests, and removed by TestMain. E2E_PROGRAMS names a folder that has them already.
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("E2E_PROGRAMS"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "heapstream-e2e-")
	if err != nil {
		return "", err
	}
	programsDir = dir
	cmd := exec.Command("go", "build", "-o", dir+"/", "./scraper/cmd/scraper", "./aggregator/cmd/aggregator", "./apigw/cmd/apigw", "./sinks/cmd/sinks",
		"./deploy/standalone/cmd/heapstream", "github.com/nats-io/nats-server/v2") //nolint:gosec // our own
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
})

func init() { cleanUps = append(cleanUps, func() { _ = os.RemoveAll(programsDir) }) }

var programsDir string

// process is one of our programs, run for real. Its lives are the times in which it could work.
type process struct {
	s      *stand
	name   string
	binary string
	args   []string
	log    string // file
	addr   string // of its telemetry; of a server of the bus, of its monitoring
	lives  []life

	cmd  *exec.Cmd
	done chan error
}

// start starts it, for the first time or again.
func (p *process) start() {
	p.s.t.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.s.t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.binary, p.args...) //nolint:gosec // our own
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	from := time.Now()
	if err := p.cmd.Start(); err != nil {
		p.s.t.Fatal(err)
	}
	p.lives = append(p.lives, life{from: from})
	p.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(p.cmd, p.done)
}

func (p *process) signal(s syscall.Signal) {
	p.s.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.s.t.Fatalf("%s to %s: %v", s, p.name, err)
	}
}

func (p *process) pause() { p.lives[len(p.lives)-1].to = time.Now() }

// end sends the signal and waits until the process is gone.
func (p *process) end(s syscall.Signal) error {
	p.s.t.Helper()
	select {
	case err := <-p.done:
		p.cmd = nil
		p.s.t.Fatalf("%s ended by itself: %v\n%s", p.name, err, p.tail(3000))
	default:
	}
	p.signal(s)
	p.pause()
	select {
	case err := <-p.done:
		p.cmd = nil
		return err
	case <-time.After(patience):
		p.s.t.Fatalf("%s does not end after %s\n%s", p.name, s, p.tail(3000))
		return nil
	}
}

// kill ends it without a chance to say goodbye.
func (p *process) kill() { p.s.t.Helper(); _ = p.end(syscall.SIGKILL) }

// stop asks it to end, which it must do in order.
func (p *process) stop() {
	p.s.t.Helper()
	if err := p.end(syscall.SIGTERM); err != nil {
		p.s.t.Errorf("%s ended badly though it was told to: %v\n%s", p.name, err, p.tail(3000))
	}
}

// freeze stops it in the middle of whatever it does, and returns when it stands.
func (p *process) freeze() {
	p.s.t.Helper()
	p.signal(syscall.SIGSTOP)
	p.pause()
	stat := fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)
	eventually(p.s.t, patience, func() bool {
		b, err := os.ReadFile(stat)
		return err == nil && strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " T")
	}, func() string { return p.name + " does not stand still" })
}

// wake lets a frozen one go on as if nothing had been.
func (p *process) wake() {
	p.s.t.Helper()
	p.lives = append(p.lives, life{from: time.Now()})
	p.signal(syscall.SIGCONT)
}

// said reports whether its log has a line with all of these words.
func (p *process) said(words ...string) bool { p.s.t.Helper(); return p.saidSince(0, words...) }

// length is how much it has said so far.
func (p *process) length() int {
	p.s.t.Helper()
	info, err := os.Stat(p.log)
	if err != nil {
		p.s.t.Fatal(err)
	}
	return int(info.Size())
}

// saidSince is said of what came after that length.
func (p *process) saidSince(length int, words ...string) bool {
	p.s.t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.s.t.Fatal(err)
	}
	b = b[min(length, len(b)):]
	for line := range strings.Lines(string(b)) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return true
		}
	}
	return false
}

// complainedOf is child.complainedOf.
func (p *process) complainedOf(node string) bool {
	p.s.t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		p.s.t.Fatal(err)
	}
	return complaint(b, node)
}

// says waits until it has said so.
func (p *process) says(words ...string) {
	p.s.t.Helper()
	eventually(p.s.t, patience, func() bool { return p.said(words...) }, func() string {
		return fmt.Sprintf("%s does not say %q; it said\n%s", p.name, words, p.tail(4000))
	})
}

func (p *process) tail(n int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// asks is the client of everything here: no connection outlives its answer, since servers come and go.
var asks = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

func (p *process) get(path string) (string, error) {
	resp, err := asks.Get("http://" + p.addr + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s answers %s: %.500s", p.name, path, resp.Status, body)
	}
	return string(body), err
}

// metric is the sum of the series of its telemetry that have this name and these words in their labels; false where
// there is none, or no answer.
func (p *process) metric(name string, words ...string) (sum float64, ok bool) {
	body, err := p.get("/metrics")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(body) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest, found := strings.CutPrefix(series, name)
		if !found || rest != "" && rest[0] != '{' || slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(rest, w) }) {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			sum, ok = sum+v, true
		}
	}
	return sum, ok
}

// ready waits until it says that it is.
func (p *process) ready() {
	p.s.t.Helper()
	var err error
	eventually(p.s.t, patience, func() bool { _, err = p.get("/readyz"); return err == nil }, func() string {
		return fmt.Sprintf("%s is not ready: %v\n%s", p.name, err, p.tail(3000))
	})
}

func (p *process) cleanUp() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if p.s.whole.Failed() {
		p.s.whole.Logf("%s said, at the end:\n%s", p.name, p.tail(3000))
	}
}

// layout is what a stand consists of.
type layout struct {
	servers     int  // of the bus; as many replicas of everything
	nodeRole    bool // a scraper for each node and two for the inventory, instead of one for all
	aggregators int
	gateways    int
	sinks       int
	store       func(t *testing.T, server int) string // folder of a server's store; a temporary one where nil
	renewed     bool                                  // streams are deleted: what was on them before cannot be counted
	dark        bool                                  // there is a second sink, whose database is not there yet
}

const (
	standCluster = "stand"
	standRes     = proto.MinResolution
	standNodes   = 3
)

// stand is the pipeline in processes of its own, on a bus of one or three servers and a simulated cluster of three
// nodes, all that a failure can befall. Between a service and what it speaks to there may be a wire, which can be cut.
type stand struct {
	t          *testing.T // the failure that befalls it
	whole      *testing.T // all of them
	shape      layout
	dir, bin   string
	servers    []*process
	urls       []string
	conn       *bus.Conn
	cluster    *simcluster.Cluster
	kubeconfig string
	rollups    *ledger
	db         database
	dbWire     *wire // between the sinks and db
	dark       *darkDatabase

	scrapers, inventories, aggregators, gateways, sinks []*process

	wires  map[*process][]*wire // to the servers of the bus
	behind map[string]bool      // nodes that ticks may miss: something befell their scraper, their kubelet or the bus
	silent map[string]bool      // nodes whose kubelet did not answer: there are no batches of them
}

// newStand starts all of it and returns when a tick was closed that misses nobody.
func newStand(t *testing.T, sh layout, db database) *stand {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{t: t, whole: t, shape: sh, dir: t.TempDir(), bin: bin, db: db, wires: map[*process][]*wire{}, behind: map[string]bool{}, silent: map[string]bool{}}
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = standNodes, 5
	s.cluster = simtest.Start(t, cfg, simcluster.Deps{})
	s.kubeconfig = filepath.Join(s.dir, "kubeconfig")
	if err := s.cluster.WriteKubeconfig(s.kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	s.startBus()
	s.apply()
	s.rollups = follow(t, s.conn, standCluster)

	if sh.nodeRole {
		for i := range 2 {
			s.inventories = append(s.inventories, s.service("scraper", fmt.Sprint("inventory-", i), "--role=inventory", "--identity=inventory-"+strconv.Itoa(i),
				"--cluster="+standCluster, "--kubeconfig="+s.kubeconfig, "--metric-resolution="+standRes.String()))
		}
		for _, n := range s.cluster.Nodes() {
			s.scrapers = append(s.scrapers, s.service("scraper", "scraper-"+n.Name(), "--role=node", "--node-name="+n.Name(),
				"--cluster="+standCluster, "--kubeconfig="+s.kubeconfig, "--metric-resolution="+standRes.String()))
		}
	} else {
		s.scrapers = []*process{s.service("scraper", "scraper", "--cluster="+standCluster, "--kubeconfig="+s.kubeconfig, "--metric-resolution="+standRes.String())}
	}
	for i := range sh.aggregators {
		s.aggregators = append(s.aggregators, s.service("aggregator", fmt.Sprint("aggregator-", i), "--member-id="+fmt.Sprint("aggregator-", i)))
	}
	for i := range sh.gateways {
		_, port, _ := net.SplitHostPort(bustest.FreeAddr(t))
		s.gateways = append(s.gateways, s.service("apigw", fmt.Sprint("apigw-", i), "--cluster="+standCluster, "--listen-ip=127.0.0.1", "--heapster-port=0",
			"--api-server", "--bind-address=127.0.0.1", "--secure-port="+port, "--cert-dir=", "--authentication-kubeconfig="+s.kubeconfig, "--authorization-kubeconfig="+s.kubeconfig))
	}
	if sh.sinks > 0 {
		s.dbWire = newWire(t, strings.TrimPrefix(strings.SplitN(db.sink(), "?", 2)[0], "influxdb:http://"))
		args := []string{"--sink=influxdb:http://" + s.dbWire.addr + "?" + strings.SplitN(db.sink(), "?", 2)[1] + "&name=main&timeout=5s"}
		if sh.dark {
			s.dark = newDarkDatabase(t)
			args = append(args, "--sink="+s.dark.sink()+"&name=dark&timeout=5s")
		}
		for i := range sh.sinks {
			s.sinks = append(s.sinks, s.service("sinks", fmt.Sprint("sinks-", i), args...))
		}
	}
	// One thing after the other, since all of it starts at once.
	s.scraped(1)
	s.closes(0)
	s.complete(0)
	return s
}

// befalls makes t what fails from now on; where something has failed before, it is skipped.
func (s *stand) befalls(t *testing.T) (over func()) {
	if s.whole.Failed() {
		t.Skip("SKIP: what came before has failed")
	}
	before := s.t
	s.t = t
	return func() { s.t = before }
}

// service starts one of ours with a wire of its own to each server of the bus.
func (s *stand) service(program, name string, args ...string) *process {
	s.t.Helper()
	p := &process{s: s, name: name, binary: filepath.Join(s.bin, program), log: filepath.Join(s.dir, name+".log"), addr: bustest.FreeAddr(s.t)}
	var urls []string
	for _, u := range s.urls {
		w := newWire(s.t, strings.TrimPrefix(u, "nats://"))
		s.wires[p] = append(s.wires[p], w)
		urls = append(urls, "nats://"+w.addr)
	}
	p.args = append(args, "--bus-url="+strings.Join(urls, ","), "--bus-name="+name, "--telemetry-listen="+p.addr)
	s.t.Cleanup(p.cleanUp)
	p.start()
	return p
}

// startBus starts the servers of the bus and waits until they make one.
func (s *stand) startBus() {
	s.t.Helper()
	var routes []string
	var clients []string
	for range s.shape.servers {
		clients, routes = append(clients, bustest.FreeAddr(s.t)), append(routes, bustest.FreeAddr(s.t))
	}
	for i := range s.shape.servers {
		p := &process{s: s, name: fmt.Sprint("nats-", i), binary: filepath.Join(s.bin, "nats-server"), log: filepath.Join(s.dir, fmt.Sprint("nats-", i, ".log")), addr: bustest.FreeAddr(s.t)}
		store := filepath.Join(s.dir, p.name)
		if s.shape.store != nil {
			store = s.shape.store(s.t, i)
		}
		conf := fmt.Sprintf("server_name: %q\nlisten: %q\nhttp: %q\nmax_payload: 8MB\njetstream { store_dir: %q, max_file_store: 64GB, max_memory_store: 64MB, sync_interval: 10s }\n",
			p.name, clients[i], p.addr, store)
		if s.shape.servers > 1 {
			// Clients are not told of the other servers, lest they go round the wires.
			conf += fmt.Sprintf("cluster { name: stand, listen: %q, no_advertise: true, routes: [%s] }\n", routes[i], "\"nats://"+strings.Join(routes, "\", \"nats://")+"\"")
		}
		file := filepath.Join(s.dir, p.name+".conf")
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			s.t.Fatal(err)
		}
		p.args = []string{"-c", file}
		s.t.Cleanup(p.cleanUp)
		p.start()
		s.servers, s.urls = append(s.servers, p), append(s.urls, "nats://"+clients[i])
	}
	cfg := bus.DefaultConfig()
	cfg.URLs, cfg.Name = s.urls, "test"
	conn, err := bus.Connect(s.t.Context(), cfg, bustest.Logger(s.t))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(conn.Close)
	s.conn = conn
	if s.shape.servers > 1 {
		s.settled()
	}
}

// settled waits until the running servers have a leader and follow it, for every stream.
func (s *stand) settled() {
	s.t.Helper()
	var last string
	eventually(s.t, patience, func() bool {
		for _, p := range s.servers {
			var err error
			if last, err = p.get("/healthz"); err != nil {
				last = err.Error()
				return false
			}
		}
		if len(s.servers) == 1 {
			return true
		}
		last = "no server leads"
		for _, p := range s.servers {
			var j struct {
				Meta struct {
					Leader   string `json:"leader"`
					Replicas []struct{ Current, Offline bool }
				} `json:"meta_cluster"`
			}
			body, err := p.get("/jsz")
			if err != nil || json.Unmarshal([]byte(body), &j) != nil {
				return false
			}
			if j.Meta.Leader == p.name {
				return len(j.Meta.Replicas) == s.shape.servers-1
			}
		}
		return false
	}, func() string { return "the servers of the bus do not settle: " + last })
}

// apply is `heapstream bus apply`, as an operator runs it.
func (s *stand) apply() {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(s.bin, "heapstream"), "bus", "apply", "--bus-url="+strings.Join(s.urls, ","), "--cluster="+standCluster, "--replicas="+strconv.Itoa(s.shape.servers)) //nolint:gosec // our own
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("heapstream bus apply: %v\n%s", err, out)
	}
}

// leader is the server that leads a stream, of the one server the only one.
func (s *stand) leader(stream string) (leads *process) {
	s.t.Helper()
	if len(s.servers) == 1 {
		return s.servers[0]
	}
	var last string
	eventually(s.t, patience, func() bool {
		for _, p := range s.servers {
			body, err := p.get("/jsz?streams=true&accounts=true")
			if err != nil {
				continue
			}
			var j struct {
				Accounts []struct {
					Streams []struct {
						Name    string
						Cluster struct{ Leader string }
					} `json:"stream_detail"`
				} `json:"account_details"`
			}
			if err := json.Unmarshal([]byte(body), &j); err != nil {
				last = err.Error()
				continue
			}
			for _, a := range j.Accounts {
				for _, st := range a.Streams {
					if st.Name == stream && st.Cluster.Leader == p.name {
						leads = p
						return true
					}
				}
			}
		}
		return false
	}, func() string { return "nobody leads stream " + stream + " " + last })
	return leads
}

// serverOf is the server of the bus that a process is connected to.
func (s *stand) serverOf(p *process) (at *process) {
	s.t.Helper()
	eventually(s.t, patience, func() bool {
		for _, server := range s.servers {
			if body, err := server.get("/connz"); err == nil && strings.Contains(body, `"name": "`+p.name+`"`) {
				at = server
				return true
			}
		}
		return false
	}, func() string { return p.name + " is connected to no server of the bus" })
	return at
}

// ask is a request to the bus's own API that no service of ours makes.
func (s *stand) ask(subject, body string) {
	s.t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.urls[0], "nats://"), patience)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)),
		second(fmt.Fprintf(conn, "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB reply 1\r\nPUB %s reply %d\r\n%s\r\n", subject, len(body), body))); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			s.t.Fatalf("%s: %v", subject, err)
		}
		if strings.HasPrefix(line, "MSG reply ") || strings.HasPrefix(line, "HMSG reply ") {
			answer, err := lines.ReadString('\n')
			if err != nil || !strings.Contains(answer, `"success":true`) {
				s.t.Fatalf("%s: %v %s", subject, err, answer)
			}
			return
		}
	}
}

func second(_ int, err error) error { return err }

// last is the newest closed tick.
func (s *stand) last() proto.Tick { s.t.Helper(); tick, _ := s.rollups.last(s.t); return tick }

// closes waits for any closed tick after this one.
func (s *stand) closes(after proto.Tick) {
	s.t.Helper()
	eventually(s.t, patience, func() bool { return s.last() > after }, func() string { return fmt.Sprintf("no tick is closed after %s", after) })
}

// complete waits for a closed tick after this one that misses nobody, and returns it.
func (s *stand) complete(after proto.Tick) proto.Tick {
	s.t.Helper()
	var tick proto.Tick
	var totals proto.Totals
	eventually(s.t, patience, func() bool {
		tick, totals = s.rollups.last(s.t)
		return tick > after && int(totals.Expected) == standNodes && totals.Reported == totals.Expected
	}, func() string { return fmt.Sprintf("no tick after %s misses nobody: at %s %+v", after, tick, totals) })
	return tick
}

// goesOn waits until two whole ticks have been closed from now on.
func (s *stand) goesOn() { s.t.Helper(); s.complete(s.complete(s.last())) }

// wholeBetween fails the test where a tick after from and up to until misses a node that was measured: what was measured
// while nobody could store it makes whole ticks. Ticks and nodes that were not measured at all are those of a busy machine.
func (s *stand) wholeBetween(from, until proto.Tick) {
	s.t.Helper()
	s.rollups.mu.Lock()
	defer s.rollups.mu.Unlock()
	whole := 0
	for tick := from.Add(1, standRes); tick <= until; tick = tick.Add(1, standRes) {
		measured := slices.DeleteFunc(nodeNames(s.cluster), func(n string) bool { return s.rollups.nodes[nodeTick{n, tick}] == 0 })
		all := s.rollups.totals[tick]
		if len(measured) == 0 && len(all) == 0 {
			s.t.Logf("tick %s, when the bus was away, was slept through", tick)
			continue
		}
		if len(all) != 1 || slices.ContainsFunc(measured, func(n string) bool { return slices.Contains(all[0].Missing, n) }) {
			s.t.Errorf("tick %s, when the bus was away, is %+v: want one, that misses none of %q, which were measured", tick, all, measured)
		} else if len(measured) > 0 {
			whole++
		}
	}
	if whole == 0 {
		s.t.Errorf("nothing was measured between %s and %s, when the bus was away", from, until)
	}
}

// misses waits for a tick after this one that misses exactly this node.
func (s *stand) misses(after proto.Tick, node string) proto.Tick {
	s.t.Helper()
	var tick proto.Tick
	var totals proto.Totals
	eventually(s.t, patience, func() bool {
		tick, totals = s.rollups.last(s.t)
		return tick > after && slices.Equal(totals.Missing, []string{node})
	}, func() string {
		return fmt.Sprintf("no tick after %s misses %s alone: at %s %+v", after, node, tick, totals)
	})
	return tick
}

// scraped waits until each kubelet has been read this often once more.
func (s *stand) scraped(times uint64) {
	s.t.Helper()
	before := map[string]uint64{}
	for _, n := range s.cluster.Nodes() {
		before[n.Name()] = n.Scrapes()
	}
	eventually(s.t, patience, func() bool {
		return !slices.ContainsFunc(s.cluster.Nodes(), func(n *simcluster.Node) bool { return n.Scrapes() < before[n.Name()]+times })
	}, func() string { return "kubelets are not read any more" })
}

// active waits for one of several processes, but for those, that does the work: its telemetry has this series, above 0.
func (s *stand) active(of []*process, but *process, metric string, words ...string) (who *process) {
	s.t.Helper()
	eventually(s.t, patience, func() bool {
		for _, p := range of {
			if p == but || p.cmd == nil {
				continue
			}
			if v, ok := p.metric(metric, words...); ok && v > 0 {
				who = p
				return true
			}
		}
		return false
	}, func() string {
		var b strings.Builder
		for _, p := range of {
			fmt.Fprintf(&b, "%s said\n%s\n", p.name, p.tail(2000))
		}
		return metric + " is nobody's\n" + b.String()
	})
	return who
}

// hole makes everything that the process and the bus send each other stand on its way, as in a network that drops it.
func (s *stand) hole(p *process) {
	for _, w := range s.wires[p] {
		w.hole()
	}
}

// heal lets it arrive again.
func (s *stand) heal(p *process) {
	for _, w := range s.wires[p] {
		w.pass()
	}
}

// model asks a gateway's model API for a series; nothing if there is no answer.
func (s *stand) model(gateway *process, path string) (r modelResult) {
	b, err := os.ReadFile(gateway.log)
	if err != nil {
		return r
	}
	at := servingAt.FindAllSubmatch(b, -1)
	if len(at) == 0 {
		return r
	}
	resp, err := asks.Get("http://" + string(at[len(at)-1][1]) + path)
	if err != nil {
		return r
	}
	defer resp.Body.Close()
	if json.NewDecoder(resp.Body).Decode(&r) != nil {
		return modelResult{}
	}
	return r
}

// counted is the end of a stand: everything is there once. It waits until the databases and the gateways have the newest
// closed tick, and compares them with ROLLUPS, and ROLLUPS with SAMPLES.
func (s *stand) counted(t *testing.T) {
	t.Helper()
	defer s.befalls(t)()
	upto := s.last()
	now := time.Now()
	databases := []database{}
	if s.shape.sinks > 0 {
		databases = append(databases, s.db)
	}
	if s.dark != nil {
		databases = append(databases, s.dark)
	}
	var points []map[point]string
	for _, d := range databases {
		at := proto.Tick(0)
		eventually(t, patience, func() bool { at = newest(t, d); return at >= upto }, func() string {
			return fmt.Sprintf("%s has the cluster at %s, want %s", d.sink(), at, upto)
		})
		points = append(points, pointsIn(t, d))
	}
	var served []modelResult
	for _, g := range s.gateways {
		var r modelResult
		eventually(t, patience, func() bool {
			r = s.model(g, "/api/v1/model/metrics/cpu/request")
			return proto.Tick(r.LatestTimestamp.UnixMilli()) >= upto
		}, func() string { return fmt.Sprintf("%s serves %+v, want it up to %s", g.name, r, upto) })
		served = append(served, r)
	}
	if s.shape.renewed {
		return
	}
	b := readStreams(t, s.conn, standCluster, upto)
	for _, p := range s.scrapers {
		lives := slices.Clone(p.lives)
		if l := &lives[len(lives)-1]; l.to.IsZero() {
			l.to = now
		}
		nodes := slices.DeleteFunc(s.cluster.Nodes(), func(n *simcluster.Node) bool {
			return s.silent[n.Name()] || s.shape.nodeRole && p.name != "scraper-"+n.Name()
		})
		b.checkSamples(t, nodes, lives, standRes, p.complainedOf)
	}
	b.checkRollups(t, s.cluster)
	b.checkEveryTick(t, s.behind)
	for _, r := range served {
		b.checkServed(t, r)
	}
	for i := range databases {
		checkDatabase(t, points[i], b, 300)
	}
	t.Logf("counted %d ticks, %d batches", len(b.totals), len(b.scraped))
}

// checkEveryTick: between the first and the last there is no tick that was not closed. One that misses a node which nothing
// befell is told: its batch is there, as checkSamples has seen, and came too late on a machine that is too busy.
func (b *onBus) checkEveryTick(t *testing.T, behind map[string]bool) {
	t.Helper()
	first := b.upto
	for tick := range b.totals {
		first = min(first, tick)
	}
	for tick := first; tick <= b.upto; tick = tick.Add(1, standRes) {
		totals, ok := b.totals[tick]
		spoke := slices.ContainsFunc(slices.Collect(maps.Keys(b.scraped)), func(k nodeTick) bool { return k.tick == tick })
		switch {
		case !ok && spoke:
			t.Errorf("tick %s was not closed, between %s and %s", tick, first, b.upto)
		case !ok:
			t.Logf("tick %s was slept through by all", tick)
		}
		for _, n := range totals.Missing {
			if !behind[n] && tick > first {
				t.Logf("tick %s misses node %s, whose batch came late", tick, n)
			}
		}
	}
}

// soon is a context for one thing that a test does to the bus.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// trusting is asks for servers whose certificates were made at start.
var trusting = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // made at start, for this test
