// Package nats republishes rollups, or Kubernetes events, to a subject of another NATS server, or of another account of
// the same.
//
//	nats:nats://host:port[?subject=heapstream.{cluster}.{kind}.{name}]
//
// The scheme is nats, tls, ws or wss, the port 4222 where none is given; `server`, repeatable, names more servers of the
// same cluster. Who we are there is told by `creds` (a file with JWT and seed, as nsc writes it), `nkey` (a file with a
// seed), `user` and `password`, or `token`. cacert, cert, key and insecuressl are as in every sink; without them TLS is
// spoken where the scheme, or the server, wants it. It is a connection of its own: the bus is not asked.
//
// The subject has the tokens {cluster}, {kind} (node, ns, cluster; event), {name} (the node's or the namespace's, that an
// event is in; - where there is none), {node} and {namespace} (each - for the other kinds). Names are encoded as on the
// bus: those with dots, spaces or wildcards are still one token. Subjects of the bus (hs.…) are refused, or what is
// published would come round again.
//
// A rollup is a message:
//
//	{"cluster":"prod","kind":"node","name":"n1","tick":"2026-11-20T20:26:00Z","resolution":15,"part":1,"parts":1,"entities":[
//	 {"labels":{"type":"pod","namespace_name":"shop",…},"metrics":{"cpu/usage":1605000000,…},
//	  "devices":[{"labels":{"resource_id":"/"},"metrics":{"filesystem/usage":4096,…}}]},…]}
//
// with the metrics, labels and units that every sink has (heapstream metrics); a node's rollup has the node, its pods and
// containers. What is larger than the server takes (max_payload) is divided between entities into parts. An event is
// {"cluster":…,"event":…} with core/v1's event. With format=msgpack a message is what travels on the bus, whole, which
// proto.NewDecoder reads.
//
// Guarantee: exactly once, by id: a stream there has to take the subject, and drops an id (the header Nats-Msg-Id: cluster,
// kind, name, tick and part) that it has seen within its duplicate window, 2 minutes where it was not set otherwise; a
// rewind that goes further back doubles. Messages are published one after the other, each after the stream has stored the
// one before. jetstream=false publishes without a stream: at most once, to those who listen at that moment, known to have
// reached the server and no more. What is larger than a part can be, or than the stream takes, is refused for good.
//
// Tested with the server 2.15.
//
// Not here: the client (proto/bus), when to try again (worker), which samples there are (sink.View).
package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink nats.
var Kind = sink.Kind{Key: "nats", Title: "NATS Sink", Guarantee: sink.OnceByID, Identity: []string{"subject"}, New: New, NewEvents: NewEvents}

// subject is one place to publish to as seen by the worker of one cluster.
type subject struct {
	enc      encoder
	encode   func(m *sink.Message, i int)
	out      *bus.Outlet
	who      string
	stream   bool
	progress sink.Progress
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := open(t, o, d)
	s.enc.cluster, s.enc.view = common.ClusterName, common.View
	s.encode = func(m *sink.Message, i int) { s.enc.rollup(m, i) }
	if s.enc.whole && common.Filtered() {
		o.Complain("`filter` and `rename` cannot be had with format=msgpack, which writes rollups whole: give format=json, or filter where they are read")
	}
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s := open(t, o, d)
	s.enc.cluster = common.ClusterName
	s.encode = func(m *sink.Message, i int) {
		if common.Passes(m.Event) {
			s.enc.event(m, i)
		}
	}
	return o.Made(s, d.Log)
}

// open reads what both have. It complains to o.
func open(t sink.Target, o *sink.Options, d sink.Deps) *subject {
	s := &subject{stream: o.Bool("jetstream", true)}
	s.enc.whole = o.Choice("format", "json", "msgpack") == "msgpack"
	var err error
	if s.enc.subject, err = parse(o.String("subject", "heapstream.{cluster}.{kind}.{name}")); err != nil {
		o.Complain("`subject` flag: %w", err)
	}
	cfg := bus.OutletConfig{
		Name: "heapstream sink " + d.Cluster, CredsFile: o.String("creds", ""), NKeyFile: o.String("nkey", ""),
		User: o.String("user", ""), Password: o.Fresh("password"), Token: o.Fresh("token"),
	}
	identities := 0
	for _, given := range []bool{cfg.CredsFile != "", cfg.NKeyFile != "", cfg.User != "", o.Given("token") || o.Given("token_file")} {
		if given {
			identities++
		}
	}
	if identities > 1 {
		o.Complain("choose one of `creds`, `nkey`, `user` and `token`")
	}
	if cfg.User == "" && (o.Given("password") || o.Given("password_file")) {
		o.Complain("`password` is given without `user`")
	}
	if err := cfg.CheckOutletFiles(); err != nil {
		o.Complain("%w", err)
	}
	secure := o.Given("cacert") || o.Given("cert") || o.Given("insecuressl") || o.Given("server_name")
	config := o.TLS()
	config.ServerName = o.String("server_name", "")
	host := t.Host("4222")
	if host == "" {
		o.Complain("its address is missing: want nats:nats://host:4222")
		host = "localhost:4222"
	}
	scheme := "nats"
	if t.URL.Host != "" {
		scheme = t.URL.Scheme
	}
	servers := append([]string{scheme + "://" + host}, o.All("server")...)
	for _, address := range servers {
		u, err := url.Parse(address)
		switch {
		case err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
			o.Complain("an address is no server of NATS: want nats://, tls://, ws:// or wss://host:port")
			continue
		case u.User != nil:
			o.Complain("the address of %s has a login: give `user` and `password`, or `token`", u.Host)
		}
		secure = secure || u.Scheme == "tls" || u.Scheme == "wss"
		cfg.URLs = append(cfg.URLs, address)
	}
	if t.URL.User != nil {
		o.Complain("the address has a login: give `user` and `password`, or `token`")
	}
	cfg.TLS = tlsOf(config, secure)
	s.who = "NATS at " + host
	s.out = bus.NewOutlet(cfg)
	return s
}

func tlsOf(config *tls.Config, secure bool) *tls.Config {
	if secure {
		return config
	}
	return nil
}

// Close ends the connection.
func (s *subject) Close() error {
	s.out.Close()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *subject) Write(ctx context.Context, batch []sink.Message) error {
	most, err := s.out.MaxPayload(ctx)
	if err != nil {
		return s.failed(err)
	}
	s.enc.reset(int(most))
	for i := range batch {
		s.encode(&batch[i], i)
	}
	s.progress.Begin(batch, len(s.enc.parts))
	var unasked []bus.Message
	for i := range s.enc.parts {
		p := &s.enc.parts[i]
		m := bus.Message{Subject: p.subject, ID: p.id, Data: s.enc.body(i, batch)}
		switch {
		case s.progress.Settled(i):
		case len(m.Data)+overhead+len(m.ID) > int(most):
			s.refuse(i, fmt.Sprintf("%d bytes are more than the server takes (max_payload is %d): raise it there%s", len(m.Data), most, s.enc.way()))
		case !s.stream:
			m.Data = slices.Clone(m.Data) // they go out together
			unasked = append(unasked, m)
		default:
			switch _, err := s.out.Publish(ctx, m); {
			case errors.Is(err, bus.ErrTooLarge), errors.Is(err, bus.ErrRefused):
				s.refuse(i, err.Error())
			case err != nil:
				return s.progress.End(s.failed(err))
			default:
				s.progress.Settle(i)
			}
		}
	}
	if len(unasked) > 0 {
		if err := s.out.Send(ctx, unasked); err != nil {
			return s.progress.End(s.failed(err))
		}
	}
	return s.progress.End(nil)
}

func (s *subject) refuse(i int, reason string) {
	p := &s.enc.parts[i]
	s.progress.Refuse(i, sink.Refused{Message: p.message, Samples: p.samples, Part: "message " + p.id, Reason: "refused by " + s.who + ": " + reason})
}

// failed words an error that passes.
func (s *subject) failed(err error) error {
	switch {
	case errors.Is(err, bus.ErrStreamMissing):
		return fmt.Errorf("publish to %s: %w: create one there, or give jetstream=false", s.who, err)
	case errors.Is(err, bus.ErrNotPermitted) && strings.Contains(strings.ToLower(err.Error()), "permissions violation"):
		return fmt.Errorf("publish to %s: allow this user to publish to `subject`, and to subscribe to _INBOX.>: %w", s.who, err)
	case errors.Is(err, bus.ErrNotPermitted):
		return fmt.Errorf("log in to %s: check `user` and `password`, `token`, `creds` or `nkey`: %w", s.who, err)
	}
	return sink.Reach(s.who, err)
}

// proto's names of scopes in subjects and bodies.
var scopes = map[proto.Scope]string{proto.ScopeNode: "node", proto.ScopeNamespace: "ns", proto.ScopeTotals: "cluster"}
