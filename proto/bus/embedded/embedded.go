// Package embedded is a JetStream server inside this process.
//
// It listens on no port unless told to; clients in the process connect through
// bus.ConnectLocal. With a store directory everything acknowledged is on disk: a
// process that is killed loses nothing of it, a machine that loses power what was
// not synced (SyncInterval). One process uses a store directory at a time; a
// second one is refused by a lock. In memory, everything ends with the server.
//
// At the end clients stop first, the server last: Run of the daemon's other
// parts returns before Shutdown.
//
// Not here: which streams there are (bus.Apply), clusters of servers (bustest,
// or a NATS of its own), a server's accounts and permissions beyond one user.
package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
)

// Config is what an operator may choose about the server.
type Config struct {
	Name      string // of the server; made up where empty
	StoreDir  string // where streams are kept; must be empty exactly with Memory
	Memory    bool   // nothing outlives the server; goes with bus.Topology.Memory
	MaxStore  int64  // bytes the streams may reserve on disk together
	MaxMemory int64  // bytes they may reserve in memory together

	// SyncInterval is how often written messages are synced to disk: what a loss
	// of power may cost. SyncAlways syncs every one before it is acknowledged, at
	// about ten times the wall time on one server.
	SyncInterval time.Duration
	SyncAlways   bool

	Listen            string // host:port for other processes; none where empty
	CertFile, KeyFile string // TLS of Listen, PEM
	CAFile            string // demands client certificates of these authorities
	User, Password    string // demanded of every client, also in this process
	Domain            string // JetStream domain

	Cluster *Cluster // joins other servers; nil for one alone
}

// Cluster makes the server one of several.
type Cluster struct {
	Name   string
	Listen string   // host:port of routes
	Routes []string // nats://host:port of the others
}

// DefaultConfig is a server on disk; StoreDir is still to be chosen.
func DefaultConfig() Config {
	return Config{MaxStore: 16 << 30, MaxMemory: 256 << 20, SyncInterval: 10 * time.Second}
}

// Flags registers the configuration under --embedded-bus-….
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.Int64Var(&c.MaxStore, "embedded-bus-max-store", c.MaxStore, "bytes the streams may take on disk")
	fs.DurationVar(&c.SyncInterval, "embedded-bus-sync-interval", c.SyncInterval, "how often written messages are synced to disk")
	fs.BoolVar(&c.SyncAlways, "embedded-bus-sync-always", c.SyncAlways, "sync every message before it is acknowledged")
	fs.StringVar(&c.Listen, "embedded-bus-listen", c.Listen, "host:port on which other processes may use the embedded bus; none where empty")
	fs.StringVar(&c.CertFile, "embedded-bus-cert", c.CertFile, "file with the certificate for --embedded-bus-listen (PEM)")
	fs.StringVar(&c.KeyFile, "embedded-bus-key", c.KeyFile, "file with the key of --embedded-bus-cert (PEM)")
	fs.StringVar(&c.CAFile, "embedded-bus-client-ca", c.CAFile, "file with the authorities of the client certificates to demand (PEM)")
}

// Validate joins all complaints.
func (c *Config) Validate() error {
	var errs []error
	if (c.StoreDir == "") != c.Memory {
		errs = append(errs, errors.New("embedded bus: choose a store directory, or memory"))
	}
	if !c.Memory && c.MaxStore <= 0 {
		errs = append(errs, errors.New("--embedded-bus-max-store must be above 0"))
	}
	if c.Memory && c.MaxMemory <= 0 {
		errs = append(errs, errors.New("embedded bus: the memory limit must be above 0"))
	}
	if c.SyncInterval <= 0 && !c.SyncAlways {
		errs = append(errs, errors.New("--embedded-bus-sync-interval must be above 0"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("--embedded-bus-cert and --embedded-bus-key belong together"))
	}
	if c.CAFile != "" && c.CertFile == "" {
		errs = append(errs, errors.New("--embedded-bus-client-ca needs --embedded-bus-cert"))
	}
	for _, l := range []string{c.Listen, c.clusterListen()} {
		if l == "" {
			continue
		}
		if _, _, err := hostPort(l); err != nil {
			errs = append(errs, fmt.Errorf("embedded bus listens on %q: %w", l, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Config) clusterListen() string {
	if c.Cluster == nil {
		return ""
	}
	return c.Cluster.Listen
}

func hostPort(s string) (string, int, error) {
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is not a number below 65536", p)
	}
	if port == 0 {
		return host, server.RANDOM_PORT, nil
	}
	return host, int(port), nil
}

// Server is a JetStream server. It can be started again after Shutdown, on the
// same store; clients of InProcessConn reconnect to it.
type Server struct {
	cfg Config
	log *slog.Logger

	mu      sync.Mutex
	ns      *server.Server // nil while it is not running
	lock    *os.File       // on the store directory
	scratch string         // in memory mode: where the server insists to have a directory
}

// New checks the configuration; it opens nothing.
func New(cfg Config, log *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, log: log}, nil
}

// Run starts the server, tells ready (nil for nobody), and shuts it down when ctx
// ends. It returns after that, nil on a wished stop.
func (s *Server) Run(ctx context.Context, ready func()) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	<-ctx.Done()
	s.Shutdown()
	return nil
}

// Start starts the server and returns when it takes clients, having recovered
// its streams, which takes about half a second per GiB. On an error, or when ctx
// ends before, nothing runs.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns != nil {
		return errors.New("embedded bus: already running")
	}
	opts, err := s.options()
	if err != nil {
		return err
	}
	if s.cfg.Memory {
		if s.scratch, err = os.MkdirTemp("", "heapstream-bus-"); err != nil {
			return fmt.Errorf("embedded bus: %w", err)
		}
		opts.StoreDir = s.scratch
	} else {
		if err := os.MkdirAll(s.cfg.StoreDir, 0o750); err != nil {
			return fmt.Errorf("embedded bus: %w", err)
		}
		if s.lock, err = lockDir(filepath.Join(s.cfg.StoreDir, "lock")); err != nil {
			return fmt.Errorf("embedded bus: store directory %q: %w", s.cfg.StoreDir, err)
		}
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		s.unlock()
		return fmt.Errorf("embedded bus: %w", err)
	}
	ns.SetLoggerV2(natsLog{s.log}, false, false, false)
	began := time.Now()
	ns.Start()
	for !ns.ReadyForConnections(50 * time.Millisecond) {
		var why error
		switch {
		case ctx.Err() != nil:
			why = ctx.Err()
		case !ns.Running():
			why = errors.New("the server ended; the log says why")
		default:
			continue
		}
		ns.Shutdown()
		ns.WaitForShutdown()
		s.unlock()
		return fmt.Errorf("embedded bus: start: %w", why)
	}
	if !ns.JetStreamEnabled() {
		ns.Shutdown()
		ns.WaitForShutdown()
		s.unlock()
		return errors.New("embedded bus: JetStream did not start; the log says why")
	}
	s.ns = ns
	s.log.Info("embedded bus is up", "store", s.cfg.StoreDir, "listen", s.cfg.Listen, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

func (s *Server) options() (*server.Options, error) {
	opts := &server.Options{
		ServerName: s.cfg.Name, DontListen: s.cfg.Listen == "", NoSigs: true, NoLog: false,
		JetStream: true, JetStreamDomain: s.cfg.Domain,
		// Said outright: the defaults are three quarters of memory and up to 1 TB of disk.
		JetStreamMaxMemory: s.cfg.MaxMemory, JetStreamMaxStore: s.cfg.MaxStore,
		StoreDir: s.cfg.StoreDir, SyncInterval: s.cfg.SyncInterval, SyncAlways: s.cfg.SyncAlways,
		MaxPayload: bus.MaxPayload, MaxControlLine: 4096, WriteDeadline: 10 * time.Second,
		Username: s.cfg.User, Password: s.cfg.Password,
	}
	if s.cfg.Memory {
		opts.JetStreamMaxStore = 64 << 20 // for a store that is not used
	}
	if s.cfg.Listen != "" {
		var err error
		if opts.Host, opts.Port, err = hostPort(s.cfg.Listen); err != nil {
			return nil, err
		}
	}
	if s.cfg.CertFile != "" {
		tc, err := server.GenTLSConfig(&server.TLSConfigOpts{CertFile: s.cfg.CertFile, KeyFile: s.cfg.KeyFile, CaFile: s.cfg.CAFile, Verify: s.cfg.CAFile != ""})
		if err != nil {
			return nil, fmt.Errorf("embedded bus: %w", err)
		}
		tc.MinVersion = tls.VersionTLS12
		opts.TLSConfig, opts.TLS, opts.TLSTimeout = tc, true, 5
	}
	if c := s.cfg.Cluster; c != nil {
		host, port, err := hostPort(c.Listen)
		if err != nil {
			return nil, err
		}
		opts.Cluster = server.ClusterOpts{Name: c.Name, Host: host, Port: port}
		for _, r := range c.Routes {
			opts.RoutesStr += "," + r
		}
		if opts.RoutesStr != "" {
			opts.RoutesStr = opts.RoutesStr[1:]
			opts.Routes = server.RoutesFromStr(opts.RoutesStr)
		}
	}
	return opts, nil
}

// Shutdown stops the server and returns when everything of it has ended and the
// store is closed. Clients should have stopped before; those that have not wait
// for a next Start.
func (s *Server) Shutdown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return
	}
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
	s.ns = nil
	s.unlock()
	s.log.Info("embedded bus is down")
}

func (s *Server) unlock() {
	if s.lock != nil {
		_ = s.lock.Close() // closing releases it
		s.lock = nil
	}
	if s.scratch != "" {
		_ = os.RemoveAll(s.scratch)
		s.scratch = ""
	}
}

// InProcessConn is a new connection to the running server; it makes Server a
// bus.Local.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	ns := s.ns
	s.mu.Unlock()
	if ns == nil {
		return nil, errors.New("embedded bus is not running")
	}
	return ns.InProcessConn()
}

// ClientURL is where other processes reach the server, "" where it does not
// listen or does not run.
func (s *Server) ClientURL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil || s.cfg.Listen == "" {
		return ""
	}
	return s.ns.ClientURL()
}

// RouteAddr is where other servers reach this one, "" outside a cluster.
func (s *Server) RouteAddr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil || s.ns.ClusterAddr() == nil {
		return ""
	}
	return s.ns.ClusterAddr().String()
}

// Leader reports whether this server leads the cluster's meta group; a server
// alone always does.
func (s *Server) Leader() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ns != nil && (s.cfg.Cluster == nil || s.ns.JetStreamIsLeader())
}

// Current reports whether this server knows the cluster's state.
func (s *Server) Current() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ns != nil && (s.cfg.Cluster == nil || s.ns.JetStreamIsCurrent())
}

// natsLog is the server's log in ours: what it notices at Debug, since it
// notices every start, client and stream.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(format string, v ...any) {
	l.log.Debug("server: " + fmt.Sprintf(format, v...))
}
func (l natsLog) Warnf(format string, v ...any)  { l.log.Warn("server: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Errorf(format string, v ...any) { l.log.Error("server: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Fatalf(format string, v ...any) { l.log.Error("server: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Debugf(format string, v ...any) { l.log.Debug("server: " + fmt.Sprintf(format, v...)) }
func (l natsLog) Tracef(format string, v ...any) { l.log.Debug("server: " + fmt.Sprintf(format, v...)) }
