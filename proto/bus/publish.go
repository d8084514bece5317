package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"
)

// Message is one message to publish.
type Message struct {
	Subject string
	// ID identifies the message within the stream's dedupe window: the same id
	// twice is stored once. It must not be empty where a retry may not double.
	ID string
	// Data is read until the publish has returned, and not kept.
	Data []byte
	// Header is sent along; nil for none. Keys beginning with Nats- are the bus's.
	Header map[string][]string
	// Stream, where set, must be the stream that takes the subject.
	Stream string
}

// Ack says that a stream has stored a message.
type Ack struct {
	Stream    string
	Seq       uint64
	Duplicate bool // an earlier attempt was stored already; Seq is that one's
}

// PublisherConfig bounds a Publisher.
type PublisherConfig struct {
	MaxPending      int   // messages under way at once; MaxPending where 0
	MaxPendingBytes int64 // bytes under way at once; MaxPendingBytes where 0
}

// Publisher publishes with acknowledgement, bounded in messages and bytes. Safe
// for concurrent use. It keeps no order between calls that overlap: one in
// flight per key is the caller's duty (Lanes has it built in).
type Publisher struct {
	c        *Conn
	cfg      PublisherConfig
	slots    *semaphore.Weighted
	bytes    *semaphore.Weighted
	futures  sync.WaitGroup
	stall    stall
	inFlight atomic.Int64
	retries  atomic.Uint64
}

// Publisher makes a publisher on this connection; several may exist.
func (c *Conn) Publisher(cfg PublisherConfig) *Publisher {
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = MaxPending
	}
	if cfg.MaxPendingBytes <= 0 {
		cfg.MaxPendingBytes = MaxPendingBytes
	}
	return &Publisher{c: c, cfg: cfg, stall: stall{log: c.log},
		slots: semaphore.NewWeighted(int64(cfg.MaxPending)), bytes: semaphore.NewWeighted(cfg.MaxPendingBytes)}
}

// Publish returns when a stream has stored m, and retries under the same id for
// as long as that may help: on timeouts, without a stream or a leader, while the
// server is full or the bus is away. It first waits for its share of the bounds.
// Its errors are ErrTooLarge, ErrNotPermitted, ErrRefused, ErrClosed, or that of
// ctx together with the last reason: then the message may or may not be stored.
func (p *Publisher) Publish(ctx context.Context, m Message) (Ack, error) {
	free, err := p.acquire(ctx, m)
	if err != nil {
		return Ack{}, err
	}
	defer free()
	return p.send(ctx, m)
}

// Future is a publish under way.
type Future struct {
	done chan struct{}
	ack  Ack
	err  error
}

// Done is closed when the publish has ended.
func (f *Future) Done() <-chan struct{} { return f.done }

// Wait is the end of the publish, as Publish returns it, or the error of ctx,
// after which Wait may be called again.
func (f *Future) Wait(ctx context.Context) (Ack, error) {
	select {
	case <-f.done:
		return f.ack, f.err
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
}

// Begin starts a publish and returns once it has its share of the bounds; the
// future must be waited for. ctx governs the whole publish. m.Data must stay
// untouched until the future is done. Order between futures is not kept.
func (p *Publisher) Begin(ctx context.Context, m Message) (*Future, error) {
	free, err := p.acquire(ctx, m)
	if err != nil {
		return nil, err
	}
	f := &Future{done: make(chan struct{})}
	p.futures.Go(func() {
		defer close(f.done)
		defer free()
		f.ack, f.err = p.send(ctx, m)
	})
	return f, nil
}

// Wait blocks until every publish begun so far has ended.
func (p *Publisher) Wait() { p.futures.Wait() }

// InFlight is the number of messages under way; Retries counts attempts beyond
// the first of all messages so far.
func (p *Publisher) InFlight() int64 { return p.inFlight.Load() }

// Retries counts attempts beyond the first, of all messages so far.
func (p *Publisher) Retries() uint64 { return p.retries.Load() }

func (p *Publisher) acquire(ctx context.Context, m Message) (free func(), err error) {
	if len(m.Data) > MaxPayload {
		return nil, fmt.Errorf("publish %d bytes to %q: %w (at most %d)", len(m.Data), m.Subject, ErrTooLarge, MaxPayload)
	}
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("publish to %q: wait for %d messages under way: %w", m.Subject, p.cfg.MaxPending, err)
	}
	n := min(int64(len(m.Data)), p.cfg.MaxPendingBytes)
	if err := p.bytes.Acquire(ctx, n); err != nil {
		p.slots.Release(1)
		return nil, fmt.Errorf("publish to %q: wait for bytes under way: %w", m.Subject, err)
	}
	p.inFlight.Add(1)
	return func() {
		p.inFlight.Add(-1)
		p.bytes.Release(n)
		p.slots.Release(1)
	}, nil
}

func (p *Publisher) send(ctx context.Context, m Message) (Ack, error) {
	msg := m.build()
	for n := 0; ; n++ {
		ack, err := p.c.publishOnce(ctx, msg)
		if err == nil {
			p.stall.over()
			return ack, nil
		}
		if ctx.Err() != nil {
			return Ack{}, fmt.Errorf("publish to %q: %w (last: %w)", m.Subject, ctx.Err(), err)
		}
		if !passing(err) {
			return Ack{}, fmt.Errorf("publish to %q: %w", m.Subject, lasting(err))
		}
		p.stall.begun(m.Subject, err)
		p.retries.Add(1)
		if err2 := p.c.pause(ctx, n); err2 != nil {
			return Ack{}, fmt.Errorf("publish to %q: %w (last: %w)", m.Subject, err2, err)
		}
	}
}

// build makes the wire's message of m.
func (m *Message) build() *nats.Msg {
	msg := &nats.Msg{Subject: m.Subject, Data: m.Data}
	if m.ID != "" || m.Stream != "" || len(m.Header) > 0 {
		msg.Header = make(nats.Header, len(m.Header)+2)
		for k, v := range m.Header {
			msg.Header[k] = v
		}
		if m.ID != "" {
			msg.Header[jetstream.MsgIDHeader] = []string{m.ID}
		}
		if m.Stream != "" {
			msg.Header[jetstream.ExpectedStreamHeader] = []string{m.Stream}
		}
	}
	return msg
}

// expect demands that subject's last sequence in the stream be seq.
func expect(msg *nats.Msg, subject string, seq uint64) {
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(seq, 10)}
	if subject != msg.Subject {
		msg.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{subject}
	}
}

// publishOnce is one attempt: it returns what the stream answered within
// timing.publish.
func (c *Conn) publishOnce(ctx context.Context, msg *nats.Msg) (Ack, error) {
	attempt, end := c.denials.attempt(ctx, c.timing.publish, msg.Subject)
	resp, err := c.nc.RequestMsgWithContext(attempt, msg)
	if err = end(err); err != nil {
		c.doubt(ctx, err)
		if errors.Is(err, nats.ErrReconnectBufExceeded) { // the client's words for not keeping what cannot be sent
			err = fmt.Errorf("the bus is away: %w", err)
		}
		return Ack{}, err
	}
	var answer struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(resp.Data, &answer); err != nil || (answer.Error == nil && answer.Stream == "") {
		return Ack{}, fmt.Errorf("%w: answer of %d bytes is not a stream's acknowledgement", ErrRefused, len(resp.Data))
	}
	if answer.Error != nil {
		return Ack{}, answer.Error
	}
	return Ack{Stream: answer.Stream, Seq: answer.Seq, Duplicate: answer.Duplicate}, nil
}

// stall logs that publishing does not get on, and that it does again: once each. That there is no stream is said also
// where something else was said before: it may take an operator.
type stall struct {
	log      *slog.Logger
	since    atomic.Int64 // unix ns; 0 while all is well
	noStream atomic.Bool  // that was said
}

func (s *stall) begun(subject string, err error) {
	first := s.since.CompareAndSwap(0, time.Now().UnixNano())
	if errors.Is(err, nats.ErrNoResponders) {
		first = !s.noStream.Swap(true)
		err = fmt.Errorf("no stream takes this subject at the moment: %w (if that lasts, `heapstream bus apply` makes the stream)", err)
	}
	if first {
		s.log.Warn("publishing is held up, trying again", "subject", subject, "err", err)
	}
}

func (s *stall) over() {
	if since := s.since.Load(); since != 0 && s.since.CompareAndSwap(since, 0) {
		s.noStream.Store(false)
		took := time.Duration(max(0, min(time.Now().UnixNano()-since, math.MaxInt64)))
		s.log.Info("publishing goes on", "took", took.Round(time.Millisecond))
	}
}
