package bustest

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/heapstream/heapstream/proto/bus"
)

// Configured is one server with a configuration as operators write it: accounts,
// users, permissions, TLS, leaf nodes.
type Configured struct {
	t    testing.TB
	dir  string // of the store
	addr string
	ns   *server.Server
	log  *slog.Logger
}

// Configure starts a server with this configuration, stopped when the test ends.
// Listening address, store and limits are the test's; where the configuration has
// no jetstream block, JetStream is on.
func Configure(t testing.TB, conf string) *Configured {
	t.Helper()
	s := &Configured{t: t, dir: t.TempDir(), addr: FreeAddr(t), log: Logger(t)}
	t.Cleanup(s.Stop)
	s.Up(conf)
	return s
}

// Up starts the server after Stop, with a configuration that may be another.
func (s *Configured) Up(conf string) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	opts.Host, opts.NoSigs = host, true
	if opts.Port, err = strconv.Atoi(port); err != nil {
		s.t.Fatal(err)
	}
	opts.JetStream, opts.StoreDir = true, filepath.Join(s.dir, "store")
	opts.JetStreamMaxStore, opts.JetStreamMaxMemory = 1<<40, 1<<30
	opts.MaxPayload = bus.MaxPayload
	if s.ns, err = server.NewServer(opts); err != nil {
		s.t.Fatal(err)
	}
	s.ns.SetLoggerV2(quiet{s.log}, false, false, false)
	s.ns.Start()
	if !s.ns.ReadyForConnections(Timeout) {
		s.t.Fatal("server is not ready")
	}
	for until := time.Now().Add(Timeout); !s.ns.JetStreamEnabled(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			s.t.Fatal("JetStream is not ready")
		}
	}
}

// Stop stops the server; its connections wait for Up.
func (s *Configured) Stop() {
	if s.ns != nil {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		s.ns = nil
	}
}

// Addr is host:port of the server.
func (s *Configured) Addr() string { return s.addr }

// Divert has what is published to a subject, or to a pattern of subjects, go to
// another subject from now on, until Stop: a request to where somebody listens and
// says nothing is never answered.
func (s *Configured) Divert(from, to string) {
	s.t.Helper()
	if err := s.ns.GlobalAccount().AddMapping(from, to); err != nil {
		s.t.Fatal(err)
	}
}

// Leafs is the number of leaf node connections of the running server.
func (s *Configured) Leafs() int { return s.ns.NumLeafNodes() }

// Conn is a connection with this configuration, whose URLs are set where they are
// not, closed when the test ends. It does not wait for the server.
func (s *Configured) Conn(t testing.TB, cfg bus.Config, log *slog.Logger) *bus.Conn {
	t.Helper()
	if len(cfg.URLs) == 0 {
		cfg.URLs = []string{"nats://" + s.addr}
	}
	cfg.ReconnectWait = 5 * time.Millisecond
	c, err := bus.Connect(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// quiet is the server's log: refusals are what such tests are about.
type quiet struct{ log *slog.Logger }

func (l quiet) Noticef(format string, v ...any) { l.say(format, v) }
func (l quiet) Warnf(format string, v ...any)   { l.say(format, v) }
func (l quiet) Errorf(format string, v ...any)  { l.say(format, v) }
func (l quiet) Fatalf(format string, v ...any)  { l.say(format, v) }
func (l quiet) Debugf(format string, v ...any)  { l.say(format, v) }
func (l quiet) Tracef(format string, v ...any)  { l.say(format, v) }

func (l quiet) say(format string, v []any) { l.log.Debug("server: " + fmt.Sprintf(format, v...)) }
