package bustest

import (
	"context"
	"crypto/tls"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/heapstream/heapstream/proto/bus"
)

// Outside is a NATS that is not the bus: one server with a stream OUT, that takes the subjects out.>, and a reader of
// both. It is stopped when the test ends.
type Outside struct {
	t    testing.TB
	ns   *server.Server
	nc   *nats.Conn
	js   jetstream.JetStream
	open atomic.Bool // everybody may log in
}

// OutsideConfig is how it is reached.
type OutsideConfig struct {
	TLS        *tls.Config // nil: in the clear
	User, Pass string      // "": nobody is asked
	MaxPayload int32       // 0: that of the bus
}

// outsideReader is who this test is to the server.
const outsideReader = "reader-of-the-test"

// StartOutside starts one.
func StartOutside(t testing.TB, c OutsideConfig) *Outside {
	t.Helper()
	o := &Outside{t: t}
	opts := &server.Options{
		Host: "127.0.0.1", Port: -1, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 30, JetStreamMaxMemory: 1 << 28,
		MaxPayload: bus.MaxPayload, TLSConfig: c.TLS, TLSTimeout: 10, AuthTimeout: 10,
	}
	if c.MaxPayload > 0 {
		opts.MaxPayload = c.MaxPayload
	}
	if c.User != "" {
		opts.CustomClientAuthentication = outsideLogin{o, c}
	}
	var err error
	if o.ns, err = server.NewServer(opts); err != nil {
		t.Fatal(err)
	}
	o.ns.SetLoggerV2(quiet{slog.New(slog.DiscardHandler)}, false, false, false)
	o.ns.Start()
	t.Cleanup(func() {
		if o.nc != nil {
			o.nc.Close()
		}
		o.ns.Shutdown()
		o.ns.WaitForShutdown()
	})
	if !o.ns.ReadyForConnections(Timeout) {
		t.Fatal("server is not ready")
	}
	if o.nc, err = nats.Connect("", nats.InProcessServer(o.ns), nats.UserInfo(outsideReader, "")); err == nil {
		o.js, err = jetstream.New(o.nc)
	}
	if err != nil {
		t.Fatal(err)
	}
	o.Stream([]string{"out.>"}, -1)
	return o
}

// outsideLogin asks for the user and the password.
type outsideLogin struct {
	o *Outside
	c OutsideConfig
}

// Check reports whether a client may come in. One without TLS is this test.
func (l outsideLogin) Check(c server.ClientAuthentication) bool {
	said := c.GetOpts()
	if said.Username == outsideReader {
		return true
	}
	return l.o.open.Load() && said.Username == l.c.User && said.Password == l.c.Pass
}

// Know says whether the user is known: not before the first call.
func (o *Outside) Know(user bool) { o.open.Store(user) }

// Addr is host:port.
func (o *Outside) Addr() string { return strings.TrimPrefix(o.ns.Addr().String(), "tcp://") }

// Stream changes what the stream takes, and how large a message may be; -1 for any.
func (o *Outside) Stream(subjects []string, largest int32) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	_, err := o.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: "OUT", Subjects: subjects, MaxMsgSize: largest, Duplicates: 2 * time.Minute, Storage: jetstream.MemoryStorage,
	})
	if err != nil {
		o.t.Fatal(err)
	}
}

// Answer answers requests to a subject with a text, until stop is called.
func (o *Outside) Answer(subject, text string) (stop func()) {
	o.t.Helper()
	sub, err := o.nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond([]byte(text)) })
	if err == nil {
		err = o.nc.Flush()
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return func() { _ = sub.Unsubscribe() }
}

// Listen collects what is published to a subject, stream or not.
func (o *Outside) Listen(subject string) <-chan bus.Message {
	o.t.Helper()
	all := make(chan bus.Message, 1<<16)
	_, err := o.nc.Subscribe(subject, func(m *nats.Msg) {
		all <- bus.Message{Subject: m.Subject, ID: m.Header.Get(jetstream.MsgIDHeader), Data: m.Data, Header: m.Header}
	})
	if err == nil {
		err = o.nc.Flush()
	}
	if err != nil {
		o.t.Fatal(err)
	}
	return all
}

// Stored is what the stream holds beyond a sequence.
func (o *Outside) Stored(beyond uint64) (all []bus.Message, last uint64) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	s, err := o.js.Stream(ctx, "OUT")
	if err != nil {
		o.t.Fatal(err)
	}
	last = s.CachedInfo().State.LastSeq
	for seq := beyond + 1; seq <= last; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			o.t.Fatal(err)
		}
		all = append(all, bus.Message{Subject: m.Subject, ID: m.Header.Get(jetstream.MsgIDHeader), Data: m.Data, Header: m.Header})
	}
	return all, last
}
