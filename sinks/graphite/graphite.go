// Package graphite writes rollups to Graphite's carbon, or to what takes its plaintext (carbon relays,
// VictoriaMetrics).
//
//	graphite:tcp://host:port[?prefix=kubernetes]
//
// The scheme is tcp, tls (tcp with TLS, as relays and proxies speak it), udp, or nop, which writes the lines
// to the program's output. A missing port is 2003. Paths are Heapster's:
//
//	<prefix>.nodes.<host>.pods.<namespace>.<pod>.containers.<container>.<metric>
//
// without pods or containers for what has none, sys-containers.<name> for those of the system,
// namespaces.<namespace> and cluster for sums.
//
// Heapster wrote the metrics of all devices of an entity (file systems, accelerators) to one path, where the
// last one stays. device_paths=true gives each its own: filesystem.<device>.usage.
//
// Guarantee: exactly once, by overwriting: a path has one value at one time. Carbon never answers, so over
// TCP a batch goes over a connection of its own and counts as written when carbon has read it to the end
// (package tcp); confirm=false for a receiver that does not end connections, which may then lose what is
// under way when it dies. Over UDP a sample is sent once, and may get lost: at most once.
// Carbon never says that it fails or that it refuses a line, so nothing goes to DEAD. Carbon knows no login.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package graphite

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/tcp"
)

// Kind is the sink graphite.
var Kind = sink.Kind{Key: "graphite", Title: "Graphite Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"prefix"}, New: New}

// carbon is one Graphite as seen by the worker of one cluster.
type carbon struct {
	enc  encoder
	send func(ctx context.Context) error // what the encoder holds
	out  io.Writer                       // of nop; nil: log
	log  *slog.Logger

	peer tcp.Peer
	conn net.Conn // of UDP
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &carbon{out: d.Out, log: d.Log}
	s.enc = encoder{view: common.View, prefix: strings.Trim(o.String("prefix", "kubernetes"), "."), devices: o.Bool("device_paths", false)}
	if s.enc.prefix == "" || string(appendClean(nil, s.enc.prefix)) != s.enc.prefix {
		o.Complain("`prefix` flag is %q: want a path such as kubernetes.prod", o.String("prefix", ""))
	}
	s.peer = tcp.Peer{Address: address(t), Confirm: o.Bool("confirm", true)}
	s.peer.Who = "Graphite at " + s.peer.Address
	config := o.TLS()
	switch scheme := t.URL.Scheme; scheme {
	case "tcp":
		s.send = s.stream
	case "tls":
		s.send, s.peer.TLS = s.stream, config
	case "udp":
		s.send = s.datagrams
	case "nop":
		s.send = s.print
	default:
		o.Complain("its address has the scheme %q: want tcp, tls, udp or nop, as in graphite:tcp://host:2003", scheme)
	}
	return o.Made(s, d.Log)
}

// address is host:port: localhost where there is no host, 2003 where there is no port.
func address(t sink.Target) string {
	host, port := t.URL.Hostname(), t.URL.Port()
	if host == "" {
		host = "localhost"
	}
	if port == "" {
		port = "2003"
	}
	return net.JoinHostPort(host, port)
}

// Close closes the socket of UDP.
func (s *carbon) Close() error {
	if s.conn != nil {
		return s.conn.Close()
	}
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *carbon) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup)
	}
	if len(s.enc.text) == 0 {
		return nil
	}
	return s.send(ctx)
}

func (s *carbon) stream(ctx context.Context) error { return s.peer.Deliver(ctx, s.enc.text) }

// datagrams sends each line in one, as Heapster did. A line that the kernel does not take is lost like one
// that the network does not take: nobody listening is an error only here, and only sometimes.
func (s *carbon) datagrams(ctx context.Context) error {
	if s.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", s.peer.Address)
		if err != nil {
			return sink.Reach(s.peer.Who, err)
		}
		s.conn = conn
	}
	defer tcp.Guard(ctx, s.conn)()
	from := 0
	for _, to := range s.enc.ends {
		_, _ = s.conn.Write(s.enc.text[from:to])
		from = to
	}
	return ctx.Err()
}

// print writes the lines as Heapster's nop client did, which left the prefix out.
func (s *carbon) print(context.Context) error {
	var b bytes.Buffer
	for line := range bytes.Lines(s.enc.text) {
		fmt.Fprintf(&b, "Graphite: %s", bytes.TrimPrefix(line, []byte(s.enc.prefix+".")))
	}
	if s.out == nil {
		s.log.Info(b.String())
		return nil
	}
	if _, err := s.out.Write(b.Bytes()); err != nil {
		return fmt.Errorf("print lines: %w", err)
	}
	return nil
}
