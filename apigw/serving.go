package apigw

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/auth"
)

// Limits of the Heapster surface. Every answer is made from memory, so what takes long is a client that is slow.
const (
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = 2 * time.Minute // a CPU profile takes 30 s by default; everything else far less
	idleTimeout       = 2 * time.Minute
	shutdownTimeout   = 10 * time.Second
	maxHeaderBytes    = 512 << 10 // a pod-list of modelapi.MaxPods names is in the request line
	maxConnections    = 4096
)

// routes puts the parts of the Heapster surface together: everything but health needs a client that guard lets in.
func routes(model http.Handler, registry *prometheus.Registry, guard *auth.Guard) http.Handler {
	protected := guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch name, profile := strings.CutPrefix(r.URL.Path, "/debug/pprof/"); {
		case r.URL.Path == "/metrics":
			metrics(registry).ServeHTTP(w, r)
		case profile && name != "":
			servePprof(w, r, strings.TrimSuffix(name, "/"))
		default:
			model.ServeHTTP(w, r)
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz", "/healthz/healthz":
			model.ServeHTTP(w, r)
		default:
			protected.ServeHTTP(w, r)
		}
	})
}

func metrics(registry *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 8})
}

// servePprof serves one profile as Heapster did; trace is none of them.
func servePprof(w http.ResponseWriter, r *http.Request, name string) {
	if r.Method != http.MethodGet {
		(&answer.Request{W: w, R: r}).Text(http.StatusMethodNotAllowed, answer.TextMethod)
		return
	}
	switch name {
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "cmdline":
		pprof.Cmdline(w, r)
	default:
		pprof.Handler(name).ServeHTTP(w, r)
	}
}

// surface is the server of the Heapster surface.
type surface struct {
	http     *http.Server
	listener net.Listener
	log      *slog.Logger
	tls      bool
}

func (g *Gateway) server(listener net.Listener) (*surface, error) {
	s := &surface{listener: &limited{Listener: listener, slots: make(chan struct{}, maxConnections)}, log: g.deps.Log}
	s.http = &http.Server{
		Handler: g.handler, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(g.deps.Log.Handler(), slog.LevelDebug),
	}
	if g.cfg.TLSCert == "" {
		return s, nil
	}
	cert := &certificate{cert: g.cfg.TLSCert, key: g.cfg.TLSKey, now: g.deps.Now, log: g.deps.Log}
	if err := cert.load(); err != nil {
		return nil, err
	}
	s.tls = true
	s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get}
	g.guard.TLS(s.http.TLSConfig)
	return s, nil
}

// serve serves until ctx ends, then gives the requests in flight some time.
func (s *surface) serve(ctx context.Context) error {
	s.log.Info("serving the Heapster API", "address", s.listener.Addr().String(), "tls", s.tls)
	done := make(chan error, 1)
	go func() {
		if s.tls {
			done <- s.http.ServeTLS(s.listener, "", "")
		} else {
			done <- s.http.Serve(s.listener)
		}
	}()
	select {
	case err := <-done:
		return fmt.Errorf("serve the Heapster API: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.http.Shutdown(stop); err != nil {
		_ = s.http.Close() // the slow ones are cut off
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the Heapster API: %w", err)
	}
	return nil
}

// limited is a listener that accepts only so many connections at a time; more wait in the kernel.
type limited struct {
	net.Listener
	slots chan struct{}
	once  sync.Once
	ended chan struct{}
	mu    sync.Mutex
}

func (l *limited) end() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended == nil {
		l.ended = make(chan struct{})
	}
	return l.ended
}

// Accept waits for a connection, and before that for one to end where too many are open.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.end():
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends Accept.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.end()) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// certificate is a pair of files that is read again when one of them changes.
type certificate struct {
	cert, key string
	now       func() time.Time
	log       *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	changed [2]time.Time // modification times of what pair was read from
	looked  time.Time
}

// lookAgain is how long a certificate is used without asking whether its files changed.
const lookAgain = 10 * time.Second

func (c *certificate) load() error {
	changed, err := c.times()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("read --tls_cert and --tls_key: %w", err)
	}
	c.pair, c.changed = &pair, changed
	return nil
}

func (c *certificate) times() (t [2]time.Time, err error) {
	for i, file := range []string{c.cert, c.key} {
		info, err := os.Stat(file)
		if err != nil {
			return t, fmt.Errorf("read --tls_cert and --tls_key: %w", err)
		}
		t[i] = info.ModTime()
	}
	return t, nil
}

// get returns the pair; one that cannot be read leaves the one before in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= lookAgain {
		c.looked = now
		if changed, err := c.times(); err != nil {
			c.log.Warn("certificate cannot be read again: the one before stays in use", "err", err)
		} else if changed != c.changed {
			if err := c.load(); err != nil {
				c.log.Warn("certificate cannot be read again: the one before stays in use", "err", err)
			} else {
				c.log.Info("certificate was read again", "file", c.cert)
			}
		}
	}
	return c.pair, nil
}
