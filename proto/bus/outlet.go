package bus

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// OutletConfig is where another NATS is, or another account of this one, and who we are there.
type OutletConfig struct {
	URLs []string // nats://, tls:// or ws(s)://; any server of its cluster
	Name string   // of this process, as operators see it in the server's list of connections

	CredsFile string                 // NATS credentials (JWT and seed), read at every connect
	NKeyFile  string                 // NKey seed, read at every connect
	User      string                 // with Password
	Password  func() (string, error) // asked at every connect; nil for none
	Token     func() (string, error) // the same
	TLS       *tls.Config            // nil: the system's roots, where the server wants TLS
}

// Outlet publishes to a NATS that is not the bus. Unlike a Conn it connects when something is to be published, again
// after it was disconnected, and tells every failure to who wants to publish. It is for one goroutine.
type Outlet struct {
	cfg OutletConfig
	nc  *nats.Conn

	mu     sync.Mutex
	denied error                   // what the server forbade since the last publish began
	cancel context.CancelCauseFunc // of the publish under way
}

// NewOutlet opens nothing.
func NewOutlet(cfg OutletConfig) *Outlet { return &Outlet{cfg: cfg} }

// Close ends the connection.
func (o *Outlet) Close() {
	if o.nc != nil {
		o.nc.Close()
		o.nc = nil
	}
}

// MaxPayload is how many bytes a message there may have, headers included. It connects where that is to be done, and
// has Publish's errors.
func (o *Outlet) MaxPayload(ctx context.Context) (int64, error) {
	if err := o.connect(ctx); err != nil {
		return 0, err
	}
	return o.nc.MaxPayload(), nil
}

// Publish returns when a stream there has stored m, or says why not after one attempt. ErrTooLarge and ErrRefused are
// for good; ErrNotPermitted (the login, or the subject), ErrStreamMissing (no stream takes the subject) and everything
// else may pass. After an error that passes m may or may not be stored; the same id is stored once within the stream's
// duplicate window.
func (o *Outlet) Publish(ctx context.Context, m Message) (Ack, error) {
	if err := o.connect(ctx); err != nil {
		return Ack{}, err
	}
	attempt, end := o.begin(ctx)
	resp, err := o.nc.RequestMsgWithContext(attempt, m.build())
	if denied := end(); denied != nil {
		return Ack{}, denied
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return Ack{}, fmt.Errorf("%w that takes subject %q", ErrStreamMissing, m.Subject)
	case err != nil:
		return Ack{}, o.failed(err)
	}
	var answer struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(resp.Data, &answer); {
	case err != nil || answer.Error == nil && answer.Stream == "":
		return Ack{}, fmt.Errorf("subject %q is answered, but not by a stream: %.80q", m.Subject, resp.Data)
	case answer.Error != nil && passing(answer.Error):
		return Ack{}, answer.Error
	case answer.Error != nil:
		return Ack{}, lasting(answer.Error)
	}
	return Ack{Stream: answer.Stream, Seq: answer.Seq, Duplicate: answer.Duplicate}, nil
}

// Send publishes without a stream and returns when the server has read all messages; whether anybody listens is not
// known. Its errors are Publish's; after one any number of the messages may have been sent.
func (o *Outlet) Send(ctx context.Context, messages []Message) error {
	if err := o.connect(ctx); err != nil {
		return err
	}
	attempt, end := o.begin(ctx)
	attempt, cancel := context.WithTimeout(attempt, PublishTimeout) // a flush wants a deadline
	defer cancel()
	err := func() error {
		for i := range messages {
			if err := o.nc.PublishMsg(messages[i].build()); err != nil {
				return err
			}
		}
		return o.nc.FlushWithContext(attempt)
	}()
	if denied := end(); denied != nil {
		return denied
	}
	if err != nil {
		return o.failed(err)
	}
	return nil
}

// begin makes the context of one attempt, which ends when the server forbids it. end says whether it did.
func (o *Outlet) begin(ctx context.Context) (attempt context.Context, end func() error) {
	attempt, cancel := context.WithCancelCause(ctx)
	o.mu.Lock()
	o.denied, o.cancel = nil, cancel
	o.mu.Unlock()
	return attempt, func() error {
		defer cancel(nil)
		o.mu.Lock()
		denied := o.denied
		o.cancel = nil
		o.mu.Unlock()
		if err := o.nc.LastError(); denied == nil && errors.Is(err, nats.ErrPermissionViolation) {
			denied = err // its handler has not run yet
		}
		if denied == nil {
			return nil
		}
		o.Close() // the connection remembers its last error for good
		return fmt.Errorf("%w: %w", ErrNotPermitted, denied)
	}
}

// failed words an error of an attempt.
func (o *Outlet) failed(err error) error {
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return err
}

// outletTimeout bounds connecting, beside the context.
const outletTimeout = 10 * time.Second

// connect connects where there is no connection.
func (o *Outlet) connect(ctx context.Context) error {
	if o.nc != nil && !o.nc.IsClosed() {
		return nil
	}
	timeout := outletTimeout
	if at, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(at))
	}
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	dialer := &outletDialer{ctx: ctx}
	opts := []nats.Option{
		nats.Name(o.cfg.Name), nats.NoReconnect(), nats.Timeout(timeout), nats.SetCustomDialer(dialer),
		nats.PingInterval(20 * time.Second), nats.MaxPingsOutstanding(2),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if !errors.Is(err, nats.ErrPermissionViolation) {
				return
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.denied = err; o.cancel != nil {
				o.cancel(err)
			}
		}),
	}
	more, err := o.identity()
	if err != nil {
		return err
	}
	nc, err := nats.Connect(strings.Join(o.cfg.URLs, ","), append(opts, more...)...)
	switch {
	case err == nil:
		o.nc = nc
		return nil
	case errors.Is(err, nats.ErrNoServers) && dialer.err != nil:
		return dialer.err
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}

// identity reads the secrets as they are now.
func (o *Outlet) identity() (opts []nats.Option, err error) {
	if o.cfg.TLS != nil {
		opts = append(opts, nats.Secure(o.cfg.TLS))
	}
	switch {
	case o.cfg.CredsFile != "":
		if _, err := os.ReadFile(o.cfg.CredsFile); err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		opts = append(opts, nats.UserCredentials(o.cfg.CredsFile))
	case o.cfg.NKeyFile != "":
		opt, err := nats.NkeyOptionFromSeed(o.cfg.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read NKey of %q: %w", o.cfg.NKeyFile, err)
		}
		opts = append(opts, opt)
	case o.cfg.User != "":
		password := ""
		if o.cfg.Password != nil {
			if password, err = o.cfg.Password(); err != nil {
				return nil, err
			}
		}
		opts = append(opts, nats.UserInfo(o.cfg.User, password))
	case o.cfg.Token != nil:
		token, err := o.cfg.Token()
		if err != nil {
			return nil, err
		}
		if token != "" {
			opts = append(opts, nats.Token(token))
		}
	}
	return opts, nil
}

// CheckOutletFiles reads the files of credentials that the configuration names, so that a wrong name is told at start.
func (c *OutletConfig) CheckOutletFiles() error {
	if c.CredsFile != "" {
		text, err := os.ReadFile(c.CredsFile)
		if err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
		if _, err := nkeys.ParseDecoratedUserNKey(text); err != nil {
			return fmt.Errorf("credentials: %q has none of NATS's (want JWT and seed, as nsc writes them)", c.CredsFile)
		}
	}
	if c.NKeyFile != "" {
		if _, err := nats.NkeyOptionFromSeed(c.NKeyFile); err != nil {
			return fmt.Errorf("NKey of %q: %w", c.NKeyFile, err)
		}
	}
	return nil
}

// outletDialer remembers why nobody could be reached, which the client does not tell.
type outletDialer struct {
	ctx context.Context
	err error
}

// Dial connects.
func (d *outletDialer) Dial(network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(d.ctx, network, address)
	if err != nil {
		d.err = err
	}
	return conn, err
}
