package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// puller asks a pull consumer for messages, one or two requests ahead of its
// reader. It starts no goroutine. What goes wrong ends it: its reader makes a
// new one, on a consumer positioned after the last message read.
type puller struct {
	c        *Conn
	sub      *nats.Subscription
	ch       chan *nats.Msg
	ask      string // subject of pull requests
	batch    int
	maxBytes int

	due   int       // messages the server still owes to our requests
	heard time.Time // last sign of the consumer
	got   time.Time // last message
	timer *time.Timer

	denied  chan error // 1; what the server does not permit of it
	unwatch func()

	mu      sync.Mutex
	queue   []*nats.Msg // taken from ch by stash, before what is in ch
	waiting bool        // next is blocked on ch
}

// Why a puller ended; its reader goes on with a new one.
var (
	errSilent    = errors.New("consumer sent no heartbeat")
	errIdle      = errors.New("nothing came for a while")
	errGone      = errors.New("consumer is gone")
	errReconnect = errors.New("connection was made anew")
	errSkipped   = errors.New("a delivery was lost on the way")
)

// newPuller subscribes; requests go out with next. maxBytes 0 means no limit.
func (c *Conn) newPuller(stream, consumer string, batch, maxBytes int) (*puller, error) {
	p := &puller{c: c, batch: batch, maxBytes: maxBytes,
		// Two requests' messages and the statuses that may come with them.
		ch:  make(chan *nats.Msg, 2*batch+64),
		ask: c.prefix + "CONSUMER.MSG.NEXT." + stream + "." + consumer,
		got: time.Now(), timer: time.NewTimer(time.Hour)}
	p.timer.Stop()
	p.denied = make(chan error, 1)
	p.unwatch = c.denials.watch(&denialWatch{subject: p.ask, acks: "." + stream + "." + consumer + ".", denied: func(err error) {
		select {
		case p.denied <- err:
		default: // one is enough
		}
	}})
	var err error
	if p.sub, err = c.nc.ChanSubscribe(c.nc.NewInbox(), p.ch); err != nil {
		p.timer.Stop()
		p.unwatch()
		return nil, err
	}
	return p, nil
}

func (p *puller) close() {
	p.timer.Stop()
	p.unwatch()
	_ = p.sub.Unsubscribe() // fails only where it is gone already
}

// request asks for another batch once half of the last has come. A request ends soon: until then the server gives
// messages to a worker that is frozen or cut off, before its successor.
func (p *puller) request() error {
	if p.due > p.batch/2 {
		return nil
	}
	req := struct {
		Batch     int           `json:"batch"`
		MaxBytes  int           `json:"max_bytes,omitempty"`
		Expires   time.Duration `json:"expires"`
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}{p.batch, p.maxBytes, 3 * p.c.timing.heartbeat, p.c.timing.heartbeat}
	b, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := p.c.nc.PublishRequest(p.ask, p.sub.Subject, b); err != nil {
		return err
	}
	p.due += p.batch
	return nil
}

// next is the next message. Its errors are those of ctx, or end the puller;
// errIdle does not: it says that nothing came for timing.idle.
func (p *puller) next(ctx context.Context, renewed <-chan struct{}) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, err // though there may be more: who is told to stop does not read a backlog to its end
	}
	p.heard = time.Now()
	armed := false
	for {
		if err := p.request(); err != nil {
			return nil, err
		}
		m, ok := p.poll()
		if !ok {
			if !armed {
				p.timer.Reset(p.c.timing.heartbeat)
				armed = true
			}
			select {
			case m, ok = <-p.ch:
				p.awake()
				if !ok {
					return nil, errGone
				}
			case err := <-p.denied:
				p.awake()
				return nil, lasting(err)
			case <-renewed:
				p.awake()
				return nil, errReconnect
			case <-ctx.Done():
				p.awake()
				return nil, ctx.Err()
			case now := <-p.timer.C:
				p.awake()
				if now.Sub(p.heard) > 2*p.c.timing.heartbeat {
					return nil, errSilent
				}
				p.timer.Reset(p.c.timing.heartbeat)
				if now.Sub(p.got) >= p.c.timing.idle {
					p.got = now
					return nil, errIdle
				}
				continue
			}
		}
		p.heard = time.Now()
		if strings.HasPrefix(m.Reply, "$JS.ACK.") {
			p.due--
			p.got = p.heard
			return m, nil
		}
		if err := p.status(m); err != nil {
			return nil, err
		}
	}
}

// poll is what is there already; where nothing is, it marks the reader as
// waiting, until awake.
func (p *puller) poll() (*nats.Msg, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		m := p.queue[0]
		p.queue[0] = nil
		p.queue = p.queue[1:]
		return m, true
	}
	select {
	case m, ok := <-p.ch:
		if ok {
			return m, true
		}
	default:
	}
	p.waiting = true
	return nil, false
}

func (p *puller) awake() {
	p.mu.Lock()
	p.waiting = false
	p.mu.Unlock()
}

// stash shows what has come and was not read yet to see, without reading it.
func (p *puller) stash(see func(*nats.Msg)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.waiting {
		select {
		case m, ok := <-p.ch:
			if ok {
				p.queue = append(p.queue, m)
				continue
			}
		default:
		}
		break
	}
	for _, m := range p.queue {
		if strings.HasPrefix(m.Reply, "$JS.ACK.") {
			see(m)
		}
	}
}

// ready reports whether next has something to look at without waiting.
func (p *puller) ready() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) > 0 || len(p.ch) > 0
}

// status hears what is not a message: heartbeats, ends of requests, and the end
// of the consumer.
func (p *puller) status(m *nats.Msg) error {
	switch code := m.Header.Get("Status"); code {
	case "100": // heartbeat
		return nil
	case "503":
		return errGone
	case "404", "408", "409":
		text := m.Header.Get("Description")
		left, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
		if err != nil {
			if code == "409" {
				return fmt.Errorf("%w: %s", errGone, text) // deleted, leadership change, server going down
			}
			left = p.batch
		}
		p.due = max(0, p.due-left)
		return nil
	default:
		return fmt.Errorf("%w: status %q %s", errGone, code, m.Header.Get("Description"))
	}
}

// Delivery is one message as a stream delivered it.
type Delivery struct {
	Stream  string
	Subject string
	Seq     uint64    // in the stream
	Time    time.Time // when the stream's leader appended it, UTC
	Pending uint64    // matching messages that followed when it was delivered; 0 means caught up with the server that delivers, which may itself be behind the leader for a moment after it came back
	// Gap is the number of sequences before this one that the reader has not
	// seen and that are no longer in the stream; 0 nearly always. Where the read
	// is filtered it counts everybody's sequences.
	Gap uint64
	// Redelivered: an earlier delivery to this durable was not acknowledged.
	Redelivered bool
	Data        []byte              // the reader's; not touched afterwards
	Header      map[string][]string // nil for none

	held *held // of a durable
}

// ID is the message id it was published with, or "".
func (d Delivery) ID() string { return headerValue(d.Header, jetstream.MsgIDHeader) }

func headerValue(h map[string][]string, key string) string {
	if v := h[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// mark is what a delivery's reply subject says.
type mark struct {
	stream, consumer string
	delivered        uint64 // 1 for the first delivery
	seq              uint64
	consumerSeq      uint64
	at               int64 // unix ns
	pending          uint64
}

// parseMark reads $JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<unix ns>.<pending>,
// or its longer form with domain and account hash after $JS.ACK.
func parseMark(reply string) (mark, error) {
	bad := func() (mark, error) { return mark{}, fmt.Errorf("reply subject %q is not a delivery's", reply) }
	rest, ok := strings.CutPrefix(reply, "$JS.ACK.")
	if !ok {
		return bad()
	}
	if n := strings.Count(rest, "."); n >= 8 {
		for range 2 {
			_, rest, _ = strings.Cut(rest, ".")
		}
	} else if n != 6 {
		return bad()
	}
	var m mark
	m.stream, rest, _ = strings.Cut(rest, ".")
	m.consumer, rest, _ = strings.Cut(rest, ".")
	var at uint64
	for _, to := range []*uint64{&m.delivered, &m.seq, &m.consumerSeq, &at, &m.pending} {
		var token string
		token, rest, _ = strings.Cut(rest, ".")
		v, err := strconv.ParseUint(token, 10, 64)
		if err != nil {
			return bad()
		}
		*to = v
	}
	if at > math.MaxInt64 {
		return bad()
	}
	m.at = int64(at)
	return m, nil
}

func (m mark) delivery(msg *nats.Msg) Delivery {
	return Delivery{Stream: m.stream, Subject: msg.Subject, Seq: m.seq, Time: time.Unix(0, m.at).UTC(), Pending: m.pending,
		Redelivered: m.delivered > 1, Data: msg.Data, Header: msg.Header}
}
