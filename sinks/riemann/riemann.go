// Package riemann writes rollups to Riemann, an event for each sample, and Kubernetes events, an event for each state.
//
//	riemann:tcp://host:port[?ttl=60&tags=…]
//
// Without an address it is riemann-heapster:5555. The scheme tls, or tls=true, speaks TLS (Riemann listens for it
// at a port of its own, 5554 as a rule); any other is TCP. Events are Heapster's: service is the metric's name,
// host the node's, attributes are the labels. A message has at most `batchsize` (1000) events and is answered
// before the next is sent, over one connection that is kept.
//
// Of a Kubernetes event the service is <kind>.<reason>, the state ok or warning, the metric its count, and the time
// that of Event.Time.
//
// Messages are encoded by hand from the published riemann.proto: there is no client for Go that is kept up, and it
// is ten fields.
//
// Guarantee: at least once. Riemann's index has one event for a host and a service, so there a repeated one
// overwrites; streams see it twice. Messages that were answered are not sent again while this process lives. One
// that Riemann answers with an error is refused for good, and told apart by rollup: Riemann refuses a message or takes
// it, and does not say which event it is about. Riemann knows no login: it may ask for a client's certificate (`cert`,
// `key`).
//
// Not here: when to try again (worker), which samples there are (sink.View).
package riemann

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/tcp"
)

// Kind is the sink riemann.
var Kind = sink.Kind{Key: "riemann", Title: "Riemann Sink", Guarantee: sink.AtLeastOnce, New: New, NewEvents: NewEvents}

// Bounds of messages: Riemann takes 16 MiB, and answers a few bytes.
const (
	maxMessage = 8 << 20
	maxAnswer  = 64 << 10
)

// server is one Riemann as seen by the worker of one cluster.
type server struct {
	encode   func(m *sink.Message, i int)
	enc      encoder
	peer     tcp.Peer
	conn     net.Conn // nil: to be opened
	batch    int      // events a message
	body     []byte
	progress sink.Progress
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := read(t, o)
	s.enc.view, s.enc.state = common.View, o.String("state", "")
	s.enc.cluster = common.ClusterLabel()
	s.encode = func(m *sink.Message, i int) { s.enc.encode(m.Rollup, i) }
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events: those of New, of which `state` means nothing here.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s := read(t, o)
	s.enc.cluster = common.ClusterLabel()
	s.encode = func(m *sink.Message, i int) {
		if common.Passes(m.Event) {
			s.enc.kubernetesEvent(m.Event, i)
		}
	}
	o.Elsewhere("state") // eventer took it and did nothing
	return o.Made(s, d.Log)
}

// read reads where to write to, and what all events have in common.
func read(t sink.Target, o *sink.Options) *server {
	s := &server{batch: o.BatchSize(1000, 1e5)}
	s.enc = encoder{tags: o.All("tags")}
	if len(s.enc.tags) == 0 {
		s.enc.tags = []string{"heapster"}
	}
	ttl, err := strconv.ParseFloat(o.String("ttl", "60.0"), 32)
	if err != nil || ttl <= 0 || ttl > 1e9 {
		o.Complain("`ttl` flag is %q: want seconds, such as 60.0", o.String("ttl", ""))
	}
	s.enc.ttl = float32(ttl)
	if s.enc.host, err = os.Hostname(); err != nil {
		s.enc.host = "unknown"
	}
	s.peer.Address = t.Host("5555")
	if s.peer.Address == "" {
		s.peer.Address = "riemann-heapster:5555"
	}
	s.peer.Who = "Riemann at " + s.peer.Address
	secure, config := o.Bool("tls", t.URL.Scheme == "tls" && t.URL.Host != "" || o.Given("cacert") || o.Given("cert")), o.TLS()
	if secure {
		s.peer.TLS = config
	} else if o.Given("insecuressl") {
		o.Warn("option `insecuressl` means nothing without TLS: give tls=true")
	}
	return s
}

// Close ends the connection.
func (s *server) Close() error {
	s.hangUp()
	return nil
}

func (s *server) hangUp() {
	if s.conn != nil {
		_ = s.conn.Close() // what was answered is there; the rest is sent again
		s.conn = nil
	}
}

// Write writes a batch; see sink.Sink.
func (s *server) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.encode(&batch[i], i)
	}
	var parts [][2]int
	for from := 0; from < len(s.enc.ends); {
		to := from + 1
		for to < len(s.enc.ends) && to-from < s.batch && len(s.enc.events(from, to+1)) <= maxMessage {
			to++
		}
		parts = append(parts, [2]int{from, to})
		from = to
	}
	s.progress.Begin(batch, len(parts))
	for i, p := range parts {
		if s.progress.Settled(i) {
			continue
		}
		if err := s.send(ctx, s.enc.events(p[0], p[1])); err != nil {
			return s.progress.End(err)
		}
		s.progress.Settle(i)
	}
	return s.progress.End(nil)
}

// send sends one message and waits for its answer. A kept connection that turns out to be closed is opened
// again, once.
func (s *server) send(ctx context.Context, msg []byte) error {
	kept := s.conn != nil
	answer, err := s.ask(ctx, msg)
	if kept && err != nil && ctx.Err() == nil {
		answer, err = s.ask(ctx, msg)
	}
	if err != nil {
		return err
	}
	ok, reason, err := parse(answer)
	switch {
	case err != nil:
		s.hangUp()
		return fmt.Errorf("write to %s: it answered what is no Riemann's answer: %w", s.peer.Who, err)
	case !ok:
		return sink.Permanent(fmt.Errorf("write to %s: refused: %s", s.peer.Who, sink.Excerpt([]byte(reason))))
	}
	return nil
}

// ask sends one message, opening the connection if need be, and reads the answer. Both are preceded by their
// length, 32 bits, big-endian. After an error there is no connection.
func (s *server) ask(ctx context.Context, msg []byte) (answer []byte, err error) {
	if s.conn == nil {
		if s.conn, err = s.peer.Dial(ctx); err != nil {
			s.conn = nil
			return nil, err
		}
	}
	stop := tcp.Guard(ctx, s.conn)
	defer func() {
		stop()
		if err != nil {
			s.hangUp()
		}
	}()
	s.body = binary.BigEndian.AppendUint32(s.body[:0], uint32(len(msg))) //nolint:gosec // bounded by maxMessage, or one event
	s.body = append(s.body, msg...)
	if _, err := s.conn.Write(s.body); err != nil {
		return nil, sink.Reach(s.peer.Who, err)
	}
	var length [4]byte
	if _, err := io.ReadFull(s.conn, length[:]); err != nil {
		return nil, sink.Reach(s.peer.Who, err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxAnswer {
		return nil, fmt.Errorf("write to %s: it answered %q, which is no Riemann's answer", s.peer.Who, length)
	}
	answer = make([]byte, n)
	if _, err := io.ReadFull(s.conn, answer); err != nil {
		return nil, sink.Reach(s.peer.Who, err)
	}
	return answer, nil
}

// parse reads an answer: a Msg with ok, or with ok=false and an error.
func parse(b []byte) (ok bool, reason string, err error) {
	found := false
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false, "", protowire.ParseError(n)
		}
		b = b[n:]
		switch {
		case field == msgOK && kind == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return false, "", protowire.ParseError(n)
			}
			ok, found, b = v != 0, true, b[n:]
		case field == msgError && kind == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return false, "", protowire.ParseError(n)
			}
			reason, found, b = string(v), true, b[n:]
		default:
			if n = protowire.ConsumeFieldValue(field, kind, b); n < 0 {
				return false, "", protowire.ParseError(n)
			}
			b = b[n:]
		}
	}
	if !found {
		return false, "", errors.New("it says neither ok nor an error")
	}
	return ok, reason, nil
}
