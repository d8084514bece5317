// Package statsd writes rollups to a statsd over UDP, as gauges.
//
//	statsd:udp://host:port[?protocolType=etsystatsd&prefix=…]
//
// Without an address it is localhost:8125. protocolType=etsystatsd, the default, makes a path of what is
// measured (node.<host>.namespace.<namespace>.pod.<pod>.container.<container>.<labels>.<metric>);
// influxstatsd writes labels as tags behind the metric's name, which Telegraf reads. numMetricsPerMsg (5)
// samples go into a datagram. renameLabels=old:new,… and labelStyle=lowerCamelCase or upperCamelCase, in this
// order, make the keys of labels; allowedLabels=a,b leaves out all other labels, except those a path is made of.
//
// Other than Heapster: floats have no exponent, which some statsd refuse; a colon within a path, which begins
// the value, becomes "_"; and a negative value, which statsd takes for a change by that much, is preceded by
// a zero.
//
// Statsd takes every value as of now. So samples older than `maxage` (5m) are not sent but counted as late: what
// piled up while this sink could not write would be taken for the present.
//
// Guarantee: at most once. Nobody says whether a datagram arrived; where the kernel says that it did not, since
// nobody listens, it is sent again. A statsd never answers: it can neither be slow nor refuse anything, so nothing goes
// to DEAD. Datagrams go in the clear, without a login.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package statsd

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/tcp"
)

// Kind is the sink statsd.
var Kind = sink.Kind{Key: "statsd", Title: "StatsD Sink", Guarantee: sink.AtMostOnce, Identity: []string{"prefix", "protocolType"}, New: New}

// maxDatagram is what UDP over IPv4 carries at most.
const maxDatagram = 65507

// daemon is one statsd as seen by the worker of one cluster.
type daemon struct {
	enc    encoder
	addr   string
	batch  int // samples in a datagram
	maxAge time.Duration
	now    func() time.Time
	conn   net.Conn
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &daemon{batch: o.Int("numMetricsPerMsg", 5, 1), maxAge: o.Duration("maxage", 5*time.Minute), now: time.Now}
	s.enc = encoder{view: common.View, prefix: o.String("prefix", ""), rename: map[string]string{}, separator: d.Labels.Separator}
	switch kind := o.String("protocolType", "etsystatsd"); strings.ToLower(kind) {
	case "etsystatsd":
	case "influxstatsd":
		s.enc.tagged = true
	default:
		o.Complain("Unknown statd formatter %s: `protocolType` is etsystatsd or influxstatsd", kind)
	}
	for pair := range strings.SplitSeq(o.String("renameLabels", ""), ",") {
		from, to, ok := strings.Cut(pair, ":")
		switch {
		case pair == "":
		case !ok || from == "" || to == "":
			o.Complain("`renameLabels` flag has %q: want old:new", pair)
		default:
			s.enc.rename[from] = to
		}
	}
	if allowed := o.String("allowedLabels", ""); allowed != "" {
		s.enc.allowed = strings.Split(allowed, ",")
	}
	switch style := o.String("labelStyle", ""); style {
	case "":
	case "lowerCamelCase":
		s.enc.style = func(k string) string { return camel(k, false) }
	case "upperCamelCase":
		s.enc.style = func(k string) string { return camel(k, true) }
	default:
		o.Warn("option `labelStyle` is %q and ignored: want lowerCamelCase or upperCamelCase", style)
	}
	if s.enc.separator == "" {
		s.enc.separator = proto.DefaultLabelFormat().Separator
	}
	if s.addr = t.Host("8125"); s.addr == "" {
		s.addr = "localhost:8125"
	}
	if scheme := t.URL.Scheme; t.URL.Host != "" && scheme != "udp" && scheme != "" {
		o.Warn("the scheme %q of the address is ignored: statsd is reached over UDP", scheme)
	}
	return o.Made(s, d.Log)
}

// Close closes the socket.
func (s *daemon) Close() error {
	if s.conn != nil {
		return s.conn.Close()
	}
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *daemon) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	var loss sink.Partial
	oldest := s.now().Add(-s.maxAge)
	for i := range batch {
		from := len(s.enc.ends)
		s.enc.encode(batch[i].Rollup, i)
		if batch[i].Tick.Time().Before(oldest) {
			loss.Late += len(s.enc.ends) - from
			s.drop(from)
		}
	}
	if len(s.enc.ends) > 0 {
		loss.Err = s.send(ctx, &loss)
	}
	if len(loss.Refused) > 0 || loss.Late > 0 {
		return &loss
	}
	return loss.Err
}

// drop takes back the samples from number from on.
func (s *daemon) drop(from int) {
	e := &s.enc
	text := 0
	if from > 0 {
		text = e.ends[from-1]
	}
	e.text, e.ends, e.messages = e.text[:text], e.ends[:from], e.messages[:from]
}

func (s *daemon) send(ctx context.Context, loss *sink.Partial) error {
	who := "statsd at " + s.addr
	if s.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", s.addr)
		if err != nil {
			return sink.Reach(who, err)
		}
		s.conn = conn
	}
	defer tcp.Guard(ctx, s.conn)()
	e := &s.enc
	begin, n := 0, 0 // of the datagram
	flush := func(end int) error {
		if begin == end {
			return nil
		}
		if _, err := s.conn.Write(e.text[begin:end]); err != nil {
			return sink.Reach(who, err)
		}
		begin, n = end, 0
		return nil
	}
	from := 0
	for i, to := range e.ends {
		if n == s.batch || to-begin > maxDatagram {
			if err := flush(from); err != nil {
				return err
			}
		}
		if to-from > maxDatagram {
			loss.Refused = append(loss.Refused, sink.Refused{
				Message: e.messages[i], Samples: 1, Part: string(e.sample(i)),
				Reason: fmt.Sprintf("its name has %d bytes, more than a datagram takes: refused", to-from),
			})
			begin = to
		} else {
			n++
		}
		from = to
	}
	return flush(from)
}
