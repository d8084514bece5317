// Package bustest is a real bus for tests: a JetStream server, or three, up in
// milliseconds and gone with the test.
//
// Stores lie in the test's temporary directory, so Restart keeps what was
// acknowledged, as a restarted process would.
//
// Not here: anything fake.
package bustest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

// Timeout is how long this package waits for a server before the test fails.
const Timeout = 2 * time.Minute

// Server is one server.
type Server struct {
	t     testing.TB
	es    *embedded.Server
	log   *slog.Logger
	conns int
	url   string // fixed after the first start of a server that listens
}

// Option alters the server's configuration before it starts.
type Option func(*embedded.Config)

// Listen makes the server listen on a port of 127.0.0.1 (FreeAddr), for
// connections over TCP: Conn then uses it.
func Listen(c *embedded.Config) { c.Listen = "127.0.0.1:0" }

// Start starts a server that is stopped when the test ends.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	cfg := embedded.DefaultConfig()
	cfg.Name = "bustest"
	cfg.StoreDir = filepath.Join(t.TempDir(), "bus")
	cfg.MaxStore = 1 << 40 // reserved, not used
	for _, o := range opts {
		o(&cfg)
	}
	if cfg.Listen != "" { // a restart must find the same port
		cfg.Listen = FreeAddr(t)
	}
	s := &Server{t: t, log: Logger(t)}
	var err error
	if s.es, err = embedded.New(cfg, s.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.es.Shutdown)
	s.Up()
	s.url = s.es.ClientURL()
	return s
}

// Up starts the server again after Stop.
func (s *Server) Up() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if err := s.es.Start(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// Stop stops the server; its connections wait for Up.
func (s *Server) Stop() { s.es.Shutdown() }

// Restart is Stop and Up: the same store, all connections cut.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Up()
}

// InProcessConn makes Server a bus.Local.
func (s *Server) InProcessConn() (net.Conn, error) { return s.es.InProcessConn() }

// URL is where other processes reach a server with Listen.
func (s *Server) URL() string { return s.url }

// Conn is a connection of its own, closed when the test ends.
func (s *Server) Conn(t testing.TB) *bus.Conn {
	t.Helper()
	cfg := config(&s.conns)
	var c *bus.Conn
	var err error
	if s.url != "" {
		cfg.URLs = []string{s.url}
		c, err = bus.Connect(t.Context(), cfg, Logger(t))
	} else {
		c, err = bus.ConnectLocal(t.Context(), s, cfg, Logger(t))
	}
	return ready(t, c, err)
}

func config(n *int) bus.Config {
	*n++
	cfg := bus.DefaultConfig()
	cfg.Name = fmt.Sprintf("test-%d", *n)
	cfg.ReconnectWait = 5 * time.Millisecond
	return cfg
}

func ready(t testing.TB, c *bus.Conn, err error) *bus.Conn {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if err := c.WaitUp(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// Provision makes the streams of a cluster, with a copy on each server that
// there is.
func Provision(t testing.TB, c *bus.Conn, cluster string, change ...func(*bus.Topology)) {
	t.Helper()
	top := bus.Topology{Cluster: cluster}
	for _, f := range change {
		f(&top)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if _, err := c.Apply(ctx, top); err != nil {
		t.Fatal(err)
	}
}

// Replicas is for Provision.
func Replicas(n int) func(*bus.Topology) { return func(t *bus.Topology) { t.Replicas = n } }

// Servers are several servers that form one cluster.
type Servers struct {
	t     testing.TB
	es    []*embedded.Server
	urls  []string
	conns int

	configs []embedded.Config
}

// Cluster starts n servers that form one JetStream cluster, ready to make
// streams; they are stopped when the test ends.
func Cluster(t testing.TB, n int, opts ...Option) *Servers {
	t.Helper()
	log := Logger(t)
	s := &Servers{t: t}
	var clients, routes []string
	for range n {
		clients, routes = append(clients, FreeAddr(t)), append(routes, FreeAddr(t))
	}
	for i := range n {
		cfg := embedded.DefaultConfig()
		cfg.Name = fmt.Sprintf("bustest-%d", i)
		cfg.StoreDir = filepath.Join(t.TempDir(), cfg.Name)
		cfg.MaxStore = 1 << 40
		cfg.Listen = clients[i]
		cfg.Cluster = &embedded.Cluster{Name: "bustest", Listen: routes[i]}
		for _, r := range routes {
			cfg.Cluster.Routes = append(cfg.Cluster.Routes, "nats://"+r)
		}
		for _, o := range opts {
			o(&cfg)
		}
		es, err := embedded.New(cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(es.Shutdown)
		s.es, s.configs = append(s.es, es), append(s.configs, cfg)
		s.urls = append(s.urls, "nats://"+clients[i])
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { s.start(i) })
	}
	wg.Wait()
	s.Settled()
	return s
}

func (s *Servers) start(i int) {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if err := s.es[i].Start(ctx); err != nil {
		s.t.Error(err)
	}
}

// Settled blocks until one server leads and every running one knows the state.
func (s *Servers) Settled() {
	s.t.Helper()
	until := time.Now().Add(Timeout)
	for {
		leaders, behind := 0, 0
		for _, es := range s.es {
			if es.Leader() {
				leaders++
			}
			if es.ClientURL() != "" && !es.Current() {
				behind++
			}
		}
		if leaders == 1 && behind == 0 {
			return
		}
		if time.Now().After(until) {
			s.t.Fatalf("servers did not settle in %s: %d leaders, %d behind", Timeout, leaders, behind)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Kill stops one server; its clients go to the others.
func (s *Servers) Kill(i int) { s.es[i].Shutdown() }

// Start starts a killed one again, and blocks until it knows the state.
func (s *Servers) Start(i int) {
	s.t.Helper()
	s.start(i)
	s.Settled()
}

// serverEnv tells a test binary to be a server of a cluster: its configuration.
const serverEnv = "HEAPSTREAM_BUSTEST_SERVER"

// Main is the first that TestMain calls where a test uses Servers.Apart: it makes the process that Apart started the server.
// In all others it returns at once.
func Main() {
	conf := os.Getenv(serverEnv)
	if conf == "" {
		return
	}
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var cfg embedded.Config
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		fail(err)
	}
	es, err := embedded.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	if err := es.Start(ctx); err != nil {
		fail(err)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test is gone
	os.Exit(0)
}

// Apart moves a server to a process of its own, and blocks until it is back. kill ends that without a chance to say
// goodbye to anybody, as Kill cannot: a server that shuts down tells the readers of its consumers. The server cannot be
// started again, and is killed when the test ends.
func (s *Servers) Apart(i int) (kill func()) {
	s.t.Helper()
	conf, err := json.Marshal(s.configs[i])
	if err != nil {
		s.t.Fatal(err)
	}
	s.Kill(i)
	cmd := exec.Command(os.Args[0]) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), serverEnv+"="+string(conf))
	cmd.Stderr = os.Stderr
	stdin, inErr := cmd.StdinPipe()
	stdout, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		s.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close()
		_ = cmd.Wait() // says that it was killed
	})
	s.t.Cleanup(kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		s.t.Fatalf("server %d does not start in a process of its own: %q %v", i, line, err)
	}
	s.Settled()
	return kill
}

// Len is the number of servers.
func (s *Servers) Len() int { return len(s.es) }

// URLs are where the servers are.
func (s *Servers) URLs() []string { return s.urls }

// Conn is a connection to any of the servers, closed when the test ends.
func (s *Servers) Conn(t testing.TB) *bus.Conn {
	t.Helper()
	cfg := config(&s.conns)
	cfg.URLs = s.urls
	c, err := bus.Connect(t.Context(), cfg, Logger(t))
	return ready(t, c, err)
}

// ConnTo is a connection to one server alone.
func (s *Servers) ConnTo(t testing.TB, i int) *bus.Conn {
	t.Helper()
	cfg := config(&s.conns)
	cfg.URLs = s.urls[i : i+1]
	c, err := bus.Connect(t.Context(), cfg, Logger(t))
	return ready(t, c, err)
}

// given counts the addresses that FreeAddr returned.
var given atomic.Int64

// FreeAddr is an address of 127.0.0.1 for a server of the test's: nobody listens there now, this process is given it once,
// and its port is below those that systems give to outgoing connections, so that a server that was stopped finds it free
// again. Each process that tests has a block of ports of its own, as far as there are.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const first, blocks, block = 10000, 73, 300
	for range blocks * block {
		n := int(given.Add(1))
		addr := "127.0.0.1:" + strconv.Itoa(first+(os.Getpid()%blocks*block+n)%(blocks*block))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		return addr
	}
	t.Fatalf("no free port between %d and %d", first, first+blocks*block)
	return ""
}

// Logger writes warnings and worse to the test's output, and everything with -v;
// nothing once the test has ended.
func Logger(t testing.TB) *slog.Logger {
	w := &testWriter{w: t.Output()}
	t.Cleanup(w.end)
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

type testWriter struct {
	mu sync.Mutex
	w  io.Writer // nil when the test has ended
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.w == nil {
		return len(b), nil
	}
	return w.w.Write(b)
}

func (w *testWriter) end() {
	w.mu.Lock()
	w.w = nil
	w.mu.Unlock()
}

// LeakOptions are the goroutines that a server in the process leaves behind for
// good, for goleak.VerifyTestMain of packages whose tests start one.
func LeakOptions() []goleak.Option {
	return []goleak.Option{}
}
