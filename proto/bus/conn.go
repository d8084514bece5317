package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/pflag"
)

// Config is where the bus is and who we are on it.
type Config struct {
	URLs []string // nats://, tls:// or ws(s)://; any server of the cluster

	Name string // of this process, as operators see it in the server's list of connections

	CredsFile    string // NATS credentials (JWT and seed); excludes the other identities
	NKeyFile     string // NKey seed
	User         string
	Password     string // from the environment; prefer PasswordFile
	PasswordFile string // read anew at every connect, so it may be rotated
	Token        string // from the environment; prefer TokenFile
	TokenFile    string // read anew at every connect

	CAFile             string // PEM; the system's roots where empty
	CertFile           string // client certificate, PEM
	KeyFile            string // its key, PEM
	ServerName         string // expected in the server's certificate, where it differs from the URL
	InsecureSkipVerify bool   // do not verify the server's certificate: for trials only

	Domain      string // JetStream domain to speak to; that of the connected server where empty
	InboxPrefix string // prefix of reply subjects, one per role, so that permissions can tell roles apart

	// ReconnectWait is the least time between two rounds of connection attempts;
	// jitter of as much again is added.
	ReconnectWait time.Duration
}

// DefaultConfig is a bus on this machine, without identity.
func DefaultConfig() Config {
	return Config{URLs: []string{nats.DefaultURL}, InboxPrefix: nats.InboxPrefix[:len(nats.InboxPrefix)-1], ReconnectWait: 500 * time.Millisecond}
}

// Flags registers the configuration under --bus-….
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&c.URLs, "bus-url", c.URLs, "addresses of the NATS servers, comma separated")
	fs.StringVar(&c.Name, "bus-name", c.Name, "name of this connection, as the servers list it")
	fs.StringVar(&c.CredsFile, "bus-creds", c.CredsFile, "file with NATS credentials (JWT and seed)")
	fs.StringVar(&c.NKeyFile, "bus-nkey", c.NKeyFile, "file with an NKey seed")
	fs.StringVar(&c.User, "bus-user", c.User, "user name on the bus")
	// Secrets by themselves come from the environment, HEAPSTREAM_BUS_PASSWORD and HEAPSTREAM_BUS_TOKEN. That
	// there are flags behind these is not told: everybody on the host can read a command line.
	fs.StringVar(&c.Password, "bus-password", c.Password, "password of --bus-user; from the environment only")
	fs.StringVar(&c.Token, "bus-token", c.Token, "token instead of a user; from the environment only")
	for _, secret := range []string{"bus-password", "bus-token"} {
		fs.Lookup(secret).Hidden = true
	}
	fs.StringVar(&c.PasswordFile, "bus-password-file", c.PasswordFile, "file with the password of --bus-user")
	fs.StringVar(&c.TokenFile, "bus-token-file", c.TokenFile, "file with a token instead of a user")
	fs.StringVar(&c.CAFile, "bus-ca", c.CAFile, "file with the certificate authorities of the servers (PEM)")
	fs.StringVar(&c.CertFile, "bus-cert", c.CertFile, "file with the client certificate (PEM)")
	fs.StringVar(&c.KeyFile, "bus-key", c.KeyFile, "file with the key of --bus-cert (PEM)")
	fs.StringVar(&c.ServerName, "bus-server-name", c.ServerName, "name expected in the servers' certificate")
	fs.BoolVar(&c.InsecureSkipVerify, "bus-insecure-skip-verify", c.InsecureSkipVerify, "do not verify the servers' certificate")
	fs.StringVar(&c.Domain, "bus-domain", c.Domain, "JetStream domain to speak to")
	fs.StringVar(&c.InboxPrefix, "bus-inbox-prefix", c.InboxPrefix, "prefix of reply subjects; one per role allows least privilege")
	fs.DurationVar(&c.ReconnectWait, "bus-reconnect-wait", c.ReconnectWait, "least time between two rounds of connection attempts")
}

var inboxPrefix = regexp.MustCompile(`^[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*$`)

// Validate joins all complaints.
func (c *Config) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.URLs) == 0 {
		complain("--bus-url is empty: name at least one NATS server")
	}
	for _, s := range c.URLs {
		u, err := url.Parse(s)
		switch {
		case err != nil:
			complain("--bus-url is not an address: %w", redact(err))
		case u.Scheme != "" && u.Host != "":
			switch u.Scheme {
			case "nats", "tls", "ws", "wss":
			default:
				complain("--bus-url %q: scheme %q is not nats, tls, ws or wss", u.Redacted(), u.Scheme)
			}
			if u.User != nil {
				complain("--bus-url %q carries a password: use --bus-user with --bus-password-file, or --bus-creds", u.Redacted())
			}
		default:
			complain("--bus-url %q: want nats://host:port", s)
		}
	}
	identities := 0
	for _, set := range []bool{c.CredsFile != "", c.NKeyFile != "", c.User != "", c.Token != "" || c.TokenFile != ""} {
		if set {
			identities++
		}
	}
	if identities > 1 {
		complain("choose one of --bus-creds, --bus-nkey, --bus-user and a token")
	}
	if c.User == "" && (c.Password != "" || c.PasswordFile != "") {
		complain("a bus password is given without --bus-user")
	}
	if c.Password != "" && c.PasswordFile != "" {
		complain("the bus password is given twice, directly and by --bus-password-file")
	}
	if c.Token != "" && c.TokenFile != "" {
		complain("the bus token is given twice, directly and by --bus-token-file")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		complain("--bus-cert and --bus-key belong together")
	}
	for _, f := range []struct{ flag, path string }{
		{"bus-creds", c.CredsFile}, {"bus-nkey", c.NKeyFile}, {"bus-password-file", c.PasswordFile}, {"bus-token-file", c.TokenFile},
		{"bus-ca", c.CAFile}, {"bus-cert", c.CertFile}, {"bus-key", c.KeyFile},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			complain("--%s: %w", f.flag, err)
		}
	}
	if c.Domain != "" && !plainToken(c.Domain) {
		complain("--bus-domain %q: letters, digits, - and _ only", c.Domain)
	}
	if c.InboxPrefix != "" && !inboxPrefix.MatchString(c.InboxPrefix) {
		complain("--bus-inbox-prefix %q: want tokens of letters, digits, -, _ and =, joined by dots", c.InboxPrefix)
	}
	if c.ReconnectWait < 0 {
		complain("--bus-reconnect-wait %s is negative", c.ReconnectWait)
	}
	return errors.Join(errs...)
}

// redact drops what url.Error repeats of its input, which may hold a password.
func redact(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func plainToken(s string) bool {
	for i := range len(s) {
		if !plain(s[i]) && s[i] != '_' {
			return false
		}
	}
	return s != ""
}

// Local is a server in this process; embedded.Server is one.
type Local interface {
	// InProcessConn is one end of a new connection to the server.
	InProcessConn() (net.Conn, error)
}

// Conn is a connection to the bus. It survives the bus: it reconnects for ever,
// and what uses it waits meanwhile. Safe for concurrent use.
type Conn struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	log    *slog.Logger
	prefix string // of API subjects: "$JS.API." or "$JS.<domain>.API."
	timing timing

	mu       sync.Mutex
	renewed  chan struct{}   // closed and replaced at every (re)connect
	since    time.Time       // of the present state
	lastErr  error           // why it is away
	said     map[string]bool // reasons logged since it went away
	slowSubs map[*nats.Subscription]bool
	noSecret error // the file of our password or token was not readable when we last connected

	denials denials
	who     string // the identity we connect with, without its secret
	cert    string // the client certificate we show, in words
	inbox   string // prefix of our reply subjects, with its dot

	up     atomic.Bool
	closed atomic.Bool

	doubting sync.Mutex // held by who asks whether the server is there
}

// timing is what tests shorten.
type timing struct {
	publish   time.Duration // one publish attempt
	request   time.Duration // one API request
	doubt     time.Duration // one answer to the question whether the server is there
	heartbeat time.Duration // of pulls
	idle      time.Duration // without a message before a reader asks what it may have missed
	backoff   time.Duration // first wait between attempts
	maxWait   time.Duration // longest wait between attempts
}

func defaultTiming() timing {
	return timing{publish: PublishTimeout, request: 3 * time.Second, doubt: 2 * time.Second, heartbeat: 5 * time.Second,
		idle: 10 * time.Second, backoff: 50 * time.Millisecond, maxWait: 2 * time.Second}
}

// Connect begins to connect to the bus and returns at once; errors are those of
// the configuration. A bus that is not there yet is waited for by whatever uses
// the Conn; WaitUp waits for it alone. The caller closes the Conn.
func Connect(ctx context.Context, cfg Config, log *slog.Logger) (*Conn, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("connect to bus: %w", err)
	}
	return connect(ctx, cfg, nil, log)
}

// ConnectLocal connects to a server in this process, without a port. Of cfg
// only the name, identity, domain and inbox prefix are used.
func ConnectLocal(ctx context.Context, local Local, cfg Config, log *slog.Logger) (*Conn, error) {
	return connect(ctx, cfg, local, log)
}

func connect(ctx context.Context, cfg Config, local Local, log *slog.Logger) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &Conn{log: log, timing: defaultTiming(), renewed: make(chan struct{}), since: time.Now(),
		said: map[string]bool{}, slowSubs: map[*nats.Subscription]bool{}, prefix: "$JS.API.", who: cfg.who(), cert: "none", inbox: nats.InboxPrefix}
	if cfg.CertFile != "" {
		c.cert = fmt.Sprintf("%q", cfg.CertFile)
	}
	if cfg.Domain != "" {
		c.prefix = "$JS." + cfg.Domain + ".API."
	}
	var trying atomic.Pointer[nats.Conn] // set once it exists
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(), // a credential may be on its way; the log says what is wrong
		nats.ReconnectBufSize(-1),   // nothing is buffered blindly: publishers keep and retry what is not acknowledged
		nats.CustomReconnectDelay(func(int) time.Duration {
			// Of what goes wrong after the dial it tells nobody but those who ask.
			if nc := trying.Load(); nc != nil && nc.LastError() != nil {
				c.setDown(nc.LastError())
			}
			return cfg.ReconnectWait + rand.N(cfg.ReconnectWait+time.Millisecond)
		}),
		nats.Timeout(5 * time.Second),
		nats.PingInterval(20 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(5 * time.Second),
		nats.ConnectHandler(func(nc *nats.Conn) { c.setUp(nc) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { c.setUp(nc) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.setDown(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.setDown(err) }),
		nats.ErrorHandler(c.asyncError),
	}
	if cfg.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(cfg.InboxPrefix))
		c.inbox = cfg.InboxPrefix + "."
	}
	if local != nil {
		opts = append(opts, nats.InProcessServer(local))
	}
	id, err := c.identity(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to bus: %w", err)
	}
	opts = append(opts, id...)
	c.nc, err = nats.Connect(strings.Join(cfg.URLs, ","), opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to bus: %w", err)
	}
	if cfg.Domain != "" {
		c.js, err = jetstream.NewWithDomain(c.nc, cfg.Domain, jetstream.WithDefaultTimeout(c.timing.request))
	} else {
		c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(c.timing.request))
	}
	if err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connect to bus: %w", err)
	}
	trying.Store(c.nc)
	if c.nc.IsConnected() {
		c.setUp(c.nc)
	} else {
		c.mu.Lock()
		if c.lastErr == nil {
			c.lastErr = errors.New("not connected yet") // the reason is on its way
		}
		c.mu.Unlock()
		if c.nc.IsConnected() { // came up between the question and the answer
			c.setUp(c.nc)
		}
	}
	return c, nil
}

// who names the identity, as a log may.
func (c *Config) who() string {
	switch {
	case c.CredsFile != "":
		return fmt.Sprintf("the credentials of %q", c.CredsFile)
	case c.NKeyFile != "":
		return fmt.Sprintf("the NKey of %q", c.NKeyFile)
	case c.User != "":
		return fmt.Sprintf("user %q", c.User)
	case c.TokenFile != "":
		return fmt.Sprintf("the token of %q", c.TokenFile)
	case c.Token != "":
		return "our token"
	case c.CertFile != "":
		return fmt.Sprintf("a client with certificate %q", c.CertFile)
	}
	return "a client without credentials"
}

// identity is who we are, and how we know the server. All files are read anew
// at every connect, but for the public half of an NKey, which is its name.
func (c *Conn) identity(cfg Config) ([]nats.Option, error) {
	var opts []nats.Option
	switch {
	case cfg.CredsFile != "":
		opts = append(opts, nats.UserCredentials(cfg.CredsFile))
	case cfg.NKeyFile != "":
		o, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read NKey %q: %w", cfg.NKeyFile, err)
		}
		opts = append(opts, o)
	case cfg.User != "":
		opts = append(opts, nats.UserInfoHandler(func() (string, string) {
			return cfg.User, c.secret(cfg.PasswordFile, cfg.Password)
		}))
	case cfg.Token != "" || cfg.TokenFile != "":
		opts = append(opts, nats.TokenHandler(func() string { return c.secret(cfg.TokenFile, cfg.Token) }))
	}
	if cfg.CAFile != "" {
		opts = append(opts, nats.RootCAs(cfg.CAFile))
	}
	if cfg.CertFile != "" {
		opts = append(opts, nats.ClientCert(cfg.CertFile, cfg.KeyFile))
	}
	if cfg.ServerName != "" || cfg.InsecureSkipVerify {
		// Applied on top of what RootCAs and ClientCert set.
		opts = append(opts, func(o *nats.Options) error {
			if o.TLSConfig == nil {
				o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			o.TLSConfig.ServerName = cfg.ServerName
			o.TLSConfig.InsecureSkipVerify = cfg.InsecureSkipVerify
			o.Secure = true
			return nil
		})
	}
	return opts, nil
}

// secret is the content of a file without its last newline, or given. Without
// the file there is none: the server refuses us, and the log says why.
func (c *Conn) secret(file, given string) string {
	if file == "" {
		return given
	}
	b, err := os.ReadFile(file)
	c.mu.Lock()
	c.noSecret = err
	c.mu.Unlock()
	return strings.TrimRight(string(b), "\r\n")
}

func (c *Conn) setUp(nc *nats.Conn) {
	c.mu.Lock()
	was := c.up.Swap(true)
	since := c.since
	c.since, c.lastErr = time.Now(), nil
	clear(c.said)
	close(c.renewed)
	c.renewed = make(chan struct{})
	c.mu.Unlock()
	c.denials.forgive()
	if !was {
		c.log.Info("connected to bus", "server", nc.ConnectedServerName(), "took", time.Since(since).Round(time.Millisecond))
	}
}

// setDown logs every reason for being away once per outage.
func (c *Conn) setDown(err error) {
	if err == nil {
		err = errors.New("connection ended")
	}
	c.mu.Lock()
	reason := reasonOf(err)
	switch {
	case refusesUs(err):
		reason = "identity"
		if c.noSecret != nil {
			err = fmt.Errorf("%w (%w)", err, c.noSecret)
		}
		err = fmt.Errorf("the server refuses %s: %w", c.who, err)
	case errors.As(err, new(*tls.CertificateVerificationError)):
		reason = "server certificate"
		err = fmt.Errorf("we do not believe the server's certificate (--bus-ca, --bus-server-name): %w", err)
	case refusesCertificate(err):
		reason = "certificate"
		err = fmt.Errorf("the server ended the TLS handshake: it may demand another client certificate than %s (--bus-cert): %w", c.cert, err)
	}
	if c.up.Swap(false) {
		c.since = time.Now()
	}
	c.lastErr = err
	known := c.said[reason]
	if len(c.said) > 64 {
		clear(c.said)
	}
	c.said[reason] = true
	c.mu.Unlock()
	if c.closed.Load() || known {
		return
	}
	c.log.Warn("bus is away, reconnecting", "err", err)
}

// refusesUs reports whether the server did not take our identity.
func refusesUs(err error) bool {
	for _, target := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked,
		nats.ErrAccountAuthExpired} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// refusesCertificate reports whether the server ended the handshake after it saw,
// or did not see, our certificate. Which of these we learn is a matter of time.
func refusesCertificate(err error) bool {
	var op *net.OpError
	return errors.Is(err, nats.ErrTLS) || errors.As(err, &op) && op.Op == "remote error"
}

// reasonOf is what tells one reason from another: not the port of our end.
func reasonOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		return op.Op + " " + op.Addr.String() + ": " + op.Err.Error()
	}
	return err.Error()
}

// asyncError hears what the server says outside of answers.
func (c *Conn) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	switch {
	case errors.Is(err, nats.ErrSlowConsumer):
		c.mu.Lock()
		known := c.slowSubs[sub]
		if len(c.slowSubs) > 64 {
			clear(c.slowSubs)
		}
		c.slowSubs[sub] = true
		c.mu.Unlock()
		if !known {
			c.log.Warn("reader is too slow, messages are asked for again", "err", err)
		}
	case errors.Is(err, nats.ErrPermissionViolation):
		if subject, first := c.denials.heard(err, c.inbox); first {
			c.log.Error("bus user lacks a permission", "subject", subject, "err", err)
		}
	case refusesUs(err):
		c.setDown(err)
	default:
		c.log.Warn("bus reports", "err", err)
	}
}

// renewal is closed at the next (re)connect.
func (c *Conn) renewal() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewed
}

// WaitUp blocks until the bus is connected; its error is that of ctx with the
// reason, or ErrClosed.
func (c *Conn) WaitUp(ctx context.Context) error {
	for {
		ch := c.renewal()
		if c.up.Load() {
			return nil
		}
		if c.closed.Load() {
			return ErrClosed
		}
		select {
		case <-ch:
		case <-ctx.Done():
			c.mu.Lock()
			err := c.lastErr
			c.mu.Unlock()
			return fmt.Errorf("wait for bus: %w (%w)", ctx.Err(), err)
		}
	}
}

// Status is nil while the bus is connected, else says since when and why not.
// It does not block.
func (c *Conn) Status() error {
	if c.closed.Load() {
		return ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.up.Load() {
		return nil
	}
	return fmt.Errorf("bus is away for %s: %w", time.Since(c.since).Round(time.Second), c.lastErr)
}

// Healthy reports whether the bus is connected. It does not block.
func (c *Conn) Healthy() bool { return c.Status() == nil }

// RTT is one round trip to the server.
func (c *Conn) RTT() (time.Duration, error) { return c.nc.RTT() }

// Close sends what is buffered, waiting up to 2 s where the bus is there, and
// ends the connection. It may be called twice.
func (c *Conn) Close() {
	if c.closed.Swap(true) {
		return
	}
	if c.nc.IsConnected() {
		_ = c.nc.FlushTimeout(2 * time.Second)
	}
	c.nc.Close()
	c.up.Store(false)
	c.mu.Lock()
	close(c.renewed)
	c.renewed = make(chan struct{})
	c.mu.Unlock()
}

// pause waits before attempt n+1: doubled from timing.backoff to timing.maxWait,
// with jitter, but not longer than it takes to be reconnected.
func (c *Conn) pause(ctx context.Context, n int) error {
	d := c.timing.maxWait
	if n < 16 {
		d = min(d, c.timing.backoff<<n)
	}
	d = d/2 + rand.N(d/2+1)
	ch := c.renewal()
	if c.closed.Load() {
		return ErrClosed
	}
	if !c.up.Load() {
		d = c.timing.maxWait
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ch:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// try runs one request again and again until it succeeds, fails for good or ctx
// ends. Each attempt has timing.request. A stream that is not found must be so
// for missingAfter attempts in a row: a server that is starting up may not know
// its streams yet. api is the request's subject after the prefix, or the
// beginning of it up to a dot: a refusal of it ends the attempt at once.
func (c *Conn) try(ctx context.Context, api string, do func(context.Context) error) error {
	const missingAfter = 3
	var last error
	missing := 0
	for n := 0; ; n++ {
		attempt, end := c.denials.attempt(ctx, c.timing.request, c.prefix+api)
		err := end(do(attempt))
		if err == nil {
			return nil
		}
		c.doubt(ctx, err)
		if ctx.Err() != nil {
			return ended(ctx, last, err)
		}
		last = err
		if apiCode(err) == codeStreamNotFound {
			if missing++; missing >= missingAfter {
				return lasting(err)
			}
		} else if !passing(err) {
			return lasting(err)
		}
		if err := c.pause(ctx, n); err != nil {
			return ended(ctx, last, err)
		}
	}
}

// doubt asks the server whether it is there at all, after an attempt that it did not answer in time, and leaves it for
// another where it is not: a server that is frozen, or behind a network that drops what is sent, says nothing, and
// the client's own pings would take a minute to tell. It blocks for timing.doubt at most; of several callers one asks.
func (c *Conn) doubt(ctx context.Context, err error) {
	if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrTimeout) || !c.doubting.TryLock() {
		return
	}
	defer c.doubting.Unlock()
	before := c.nc.Stats().Reconnects
	if !errors.Is(c.nc.FlushTimeout(c.timing.doubt), nats.ErrTimeout) || !c.nc.IsConnected() || c.nc.Stats().Reconnects != before {
		return
	}
	c.log.Warn("server of the bus does not answer, going to another", "server", c.nc.ConnectedServerName())
	_ = c.nc.ForceReconnect() // fails only where the connection was closed
}

// ended is the error of a context that ended while something else was wrong.
func ended(ctx context.Context, last, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if last != nil {
		return fmt.Errorf("%w (last: %w)", ctx.Err(), last)
	}
	return ctx.Err()
}
