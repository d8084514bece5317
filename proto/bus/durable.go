package bus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DurableConfig says what a durable consumer is.
type DurableConfig struct {
	Stream   string
	Name     string   // of the consumer: SinkDurable
	Reader   string   // who reads, as Dead names it; Name where empty
	Subjects []string // filters; everything where empty

	// Where a durable that does not exist yet begins; one that exists goes on
	// where it was. The first that is set counts, else the oldest message.
	FromSeq  uint64
	FromTime time.Time
	New      bool // only what is stored after its creation

	AckWait       time.Duration // AckWait where 0
	MaxAckPending int           // MaxAckPending where 0
}

// Durable delivers a stream's messages in their order to one worker, each until
// it is settled. Whoever opens it must be alone (a lease says so): opening moves
// the consumer back to the first message that was not acknowledged, so that what
// a dead worker left unacknowledged comes first, and nothing comes twice later.
//
// Deliveries that are not settled are held from a ticker, so a worker may take
// as long as it needs for one. There is no nak, which would reorder: who cannot
// write now waits and tries again with the delivery in hand.
//
// Next and NextBatch belong to one goroutine; the rest is safe for concurrent use.
type Durable struct {
	c   *Conn
	cfg DurableConfig

	// Of the goroutine that calls Next.
	created time.Time // the stream that the positions below are of
	renewed <-chan struct{}
	dseq    uint64 // last consumer sequence seen; exact is set where it is known beforehand
	exact   bool

	mu      sync.Mutex
	p       *puller
	acked   uint64  // everything up to this sequence is settled
	known   bool    // acked is meant
	handed  uint64  // last sequence given to the worker
	inHand  []*held // given and not settled, in order, settled ones only behind unsettled ones
	moved   bool    // Rewind moved the consumer: start anew
	closed  bool
	stopped chan struct{} // closed by Close
	keeper  sync.WaitGroup
}

// held is a durable's delivery in the worker's hand.
type held struct {
	d       *Durable
	seq     uint64
	reply   string // under d.mu; a redelivery changes it
	settled bool   // under d.mu
}

// Durable opens a durable consumer, making or altering it as needed, and moves it
// to the first message that was not acknowledged. It waits for the bus until ctx
// ends. The caller closes it.
func (c *Conn) Durable(ctx context.Context, cfg DurableConfig) (*Durable, error) {
	if cfg.AckWait <= 0 {
		cfg.AckWait = AckWait
	}
	if cfg.MaxAckPending <= 0 {
		cfg.MaxAckPending = MaxAckPending
	}
	if cfg.Reader == "" {
		cfg.Reader = cfg.Name
	}
	d := &Durable{c: c, cfg: cfg, stopped: make(chan struct{})}
	if err := d.ensure(ctx); err != nil {
		return nil, fmt.Errorf("open consumer %q of stream %q: %w", cfg.Name, cfg.Stream, err)
	}
	state, err := c.StreamState(ctx, cfg.Stream)
	if err != nil {
		return nil, fmt.Errorf("open consumer %q of stream %q: %w", cfg.Name, cfg.Stream, err)
	}
	d.created = state.Created
	if err := d.start(ctx); err != nil {
		return nil, fmt.Errorf("open consumer %q of stream %q: %w", cfg.Name, cfg.Stream, err)
	}
	d.keeper.Go(d.keep)
	return d, nil
}

// ensure makes the consumer be there as configured, and positions a new one.
func (d *Durable) ensure(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{Durable: d.cfg.Name, AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, // so that Rewind may go anywhere
		AckWait:       d.cfg.AckWait, MaxAckPending: d.cfg.MaxAckPending, MaxDeliver: -1}
	if len(d.cfg.Subjects) == 1 {
		cfg.FilterSubject = d.cfg.Subjects[0]
	} else {
		cfg.FilterSubjects = d.cfg.Subjects
	}
	// What an operator did to it stays: a pause, and a rewind to the very beginning.
	old, err := d.info(ctx)
	switch {
	case err == nil:
		cfg.PauseUntil, cfg.Metadata = old.Config.PauseUntil, old.Config.Metadata
	case apiCode(err) != int(jetstream.JSErrCodeConsumerNotFound):
		return err
	}
	var info *jetstream.ConsumerInfo
	if err := d.c.try(ctx, "CONSUMER.CREATE."+d.cfg.Stream+"."+d.cfg.Name, func(ctx context.Context) error {
		cons, err := d.c.js.CreateOrUpdateConsumer(ctx, d.cfg.Stream, cfg)
		if err == nil {
			info = cons.CachedInfo()
		}
		return err
	}); err != nil {
		return err
	}
	if info.AckFloor.Stream != 0 || info.Delivered.Stream != 0 || info.Config.Metadata[rewoundMark] != "" {
		return nil // it has been somewhere
	}
	state, err := d.c.StreamState(ctx, d.cfg.Stream)
	if err != nil {
		return err
	}
	from := uint64(0)
	switch {
	case d.cfg.FromSeq > 0:
		from = d.cfg.FromSeq
	case !d.cfg.FromTime.IsZero():
		if from, err = d.c.seqAt(ctx, d.cfg.Stream, state, d.cfg.FromTime); err != nil {
			return err
		}
	case d.cfg.New:
		from = state.LastSeq + 1
	}
	if from <= 1 {
		return nil
	}
	return d.c.reset(ctx, d.cfg.Stream, d.cfg.Name, from)
}

// seqAt is the first sequence appended at or after t, LastSeq+1 where none is.
func (c *Conn) seqAt(ctx context.Context, stream string, state State, t time.Time) (uint64, error) {
	lo, hi := state.FirstSeq, state.LastSeq+1
	for lo < hi { // append times do not fall within a stream, but for a clock set back
		mid := lo + (hi-lo)/2
		m, ok, err := c.NextOn(ctx, stream, ">", mid)
		if err != nil {
			return 0, err
		}
		switch {
		case !ok || m.Seq >= hi:
			hi = mid
		case m.Time.Before(t):
			lo = m.Seq + 1
		default:
			hi = mid
		}
	}
	return lo, nil
}

// reset moves a consumer; seq 0 means the first message it has not acknowledged.
func (c *Conn) reset(ctx context.Context, stream, name string, seq uint64) error {
	return c.try(ctx, "CONSUMER.RESET."+stream+"."+name, func(ctx context.Context) error {
		var err error
		if seq == 0 {
			_, err = c.js.ResetConsumer(ctx, stream, name)
		} else {
			_, err = c.js.ResetConsumerToSequence(ctx, stream, name, seq)
		}
		return err
	})
}

// start moves the consumer to the first message that is not settled, and begins
// to pull.
func (d *Durable) start(ctx context.Context) error {
	d.mu.Lock()
	if d.p != nil {
		d.p.close()
		d.p = nil
	}
	to := uint64(0)
	if d.known {
		to = d.acked + 1
	}
	d.moved = false
	d.mu.Unlock()
	d.renewed = d.c.renewal()
	// Asked first, since a server does not answer a reset of what it does not know.
	if _, err := d.info(ctx); err != nil {
		if apiCode(err) == int(jetstream.JSErrCodeConsumerNotFound) {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		return err
	}
	if err := d.c.reset(ctx, d.cfg.Stream, d.cfg.Name, to); err != nil {
		return err
	}
	p, err := d.c.newPuller(d.cfg.Stream, d.cfg.Name, d.cfg.MaxAckPending, PullMaxBytes)
	if err != nil {
		return lasting(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		p.close()
		return ErrClosed
	}
	d.p = p
	d.dseq, d.exact = 0, true // a reset consumer counts from 1 again
	return nil
}

// Next is the next message, which the caller settles by Ack or Dead before or
// after it asks for more. It blocks until there is one. Its errors are that of
// ctx, ErrClosed, ErrStreamMissing, ErrNotPermitted or ErrRefused.
func (d *Durable) Next(ctx context.Context) (Delivery, error) {
	for n := 0; ; {
		d.mu.Lock()
		p, moved, closed := d.p, d.moved, d.closed
		d.mu.Unlock()
		if closed {
			return Delivery{}, ErrClosed
		}
		if p == nil || moved {
			if err := d.restart(ctx, n); err != nil {
				return Delivery{}, fmt.Errorf("read by consumer %q of stream %q: %w", d.cfg.Name, d.cfg.Stream, err)
			}
			n++
			continue
		}
		m, err := p.next(ctx, d.renewed)
		if err == nil {
			got, ok, lost := d.accept(m)
			if ok {
				return got, nil
			}
			if lost == nil {
				continue
			}
			err = lost
		}
		if ctx.Err() != nil {
			return Delivery{}, ctx.Err()
		}
		if errors.Is(err, errIdle) {
			if err = d.missed(ctx, p); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrNotPermitted) {
			return Delivery{}, fmt.Errorf("read by consumer %q of stream %q: %w", d.cfg.Name, d.cfg.Stream, err)
		}
		d.c.log.Debug("consumer starts anew", "stream", d.cfg.Stream, "consumer", d.cfg.Name, "err", err)
		d.mu.Lock()
		d.moved = true
		d.mu.Unlock()
	}
}

// restart starts anew; a consumer that was deleted is made again after what is
// settled here.
func (d *Durable) restart(ctx context.Context, n int) error {
	if n > 0 {
		if err := d.c.pause(ctx, min(n, 4)); err != nil {
			return err
		}
	}
	err := d.start(ctx)
	if errors.Is(err, errGone) {
		d.c.log.Warn("consumer was deleted, making it again", "stream", d.cfg.Stream, "consumer", d.cfg.Name)
		// The server tells readers first, and removes the consumer's folder then. One of the same name that is made
		// in between loses its folder: it works, and nothing of it outlives the server.
		if err := d.c.pause(ctx, math.MaxInt); err != nil {
			return err
		}
		if err := d.ensure(ctx); err != nil {
			return err
		}
		// A stream made anew counts from 1: what was settled says nothing there.
		state, err := d.c.StreamState(ctx, d.cfg.Stream)
		if err != nil {
			return err
		}
		anew := !state.Created.Equal(d.created)
		d.created = state.Created
		d.mu.Lock()
		if anew {
			d.acked, d.handed, d.known, d.inHand = 0, 0, false, nil
		}
		d.mu.Unlock()
		return d.start(ctx)
	}
	return err
}

// accept takes a message in: ok with a delivery for the worker, or neither where
// the worker had it already, or an error where deliveries before it were lost.
func (d *Durable) accept(m *nats.Msg) (got Delivery, ok bool, err error) {
	k, err := parseMark(m.Reply)
	if err != nil {
		return Delivery{}, false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moved {
		return Delivery{}, false, nil
	}
	if d.exact && k.consumerSeq != d.dseq+1 {
		return Delivery{}, false, errSkipped
	}
	d.dseq, d.exact = k.consumerSeq, true
	if k.seq <= d.handed {
		for _, h := range d.inHand {
			if h.seq == k.seq && !h.settled {
				h.reply = m.Reply // still being worked on
				return Delivery{}, false, nil
			}
		}
		d.tell(m.Reply, ackDone) // settled before, and the server did not hear it
		return Delivery{}, false, nil
	}
	h := &held{d: d, seq: k.seq, reply: m.Reply}
	if !d.known {
		d.known, d.acked = true, k.seq-1
	}
	d.handed = k.seq
	d.inHand = append(d.inHand, h)
	got = k.delivery(m)
	got.held = h
	return got, true, nil
}

// missed asks whether the consumer sent what never came, or does not send. It
// asks for a while only, and then listens again: a server with too many requests
// to answer delivers all the same, and one that does neither is silent.
func (d *Durable) missed(ctx context.Context, p *puller) error {
	soon, cancel := context.WithTimeout(ctx, 2*d.c.timing.request)
	defer cancel()
	info, err := d.info(soon)
	switch {
	case err != nil && soon.Err() != nil:
		return nil
	case errors.Is(err, ErrNotPermitted):
		return err
	case err != nil:
		return errGone
	case p.ready():
		return nil
	case info.Delivered.Consumer > d.dseq:
		return errSkipped
	case info.NumPending > 0 && info.NumWaiting > 0 && info.NumAckPending < d.cfg.MaxAckPending && !info.Paused:
		return errSilent
	}
	return nil
}

func (d *Durable) info(ctx context.Context) (info *jetstream.ConsumerInfo, err error) {
	err = d.c.try(ctx, "CONSUMER.INFO."+d.cfg.Stream+"."+d.cfg.Name, func(ctx context.Context) error {
		cons, err := d.c.js.Consumer(ctx, d.cfg.Stream, d.cfg.Name)
		if err == nil {
			info = cons.CachedInfo()
		}
		return err
	})
	return info, err
}

// NextBatch is the next messages in order, at least one and at most limit: it
// blocks for the first and takes of the rest what has come already. limit is cut
// to half of MaxAckPending, so that the next ones travel meanwhile.
func (d *Durable) NextBatch(ctx context.Context, limit int) ([]Delivery, error) {
	limit = max(1, min(limit, d.cfg.MaxAckPending/2))
	first, err := d.Next(ctx)
	if err != nil {
		return nil, err
	}
	batch := append(make([]Delivery, 0, limit), first)
	for len(batch) < limit {
		d.mu.Lock()
		more := d.p != nil && !d.moved && d.p.ready()
		d.mu.Unlock()
		if !more {
			break
		}
		// Something is there; where it is no message but a status, Next must not
		// wait for one.
		soon, cancel := context.WithTimeout(ctx, time.Millisecond)
		next, err := d.Next(soon)
		cancel()
		if err != nil {
			if soon.Err() != nil && ctx.Err() == nil {
				break
			}
			return nil, d.giveBack(batch, err)
		}
		batch = append(batch, next)
	}
	return batch, nil
}

// giveBack makes a batch that could not be completed come again.
func (d *Durable) giveBack(batch []Delivery, err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inHand = d.inHand[:max(0, len(d.inHand)-len(batch))]
	d.handed = batch[0].Seq - 1
	d.moved = true
	return err
}

// The words of the acknowledgement protocol.
var (
	ackDone     = []byte("+ACK")
	ackProgress = []byte("+WPI")
	ackTerm     = []byte("+TERM")
)

// tell sends a word about a delivery; what is lost is made good by redelivery.
func (d *Durable) tell(reply string, word []byte) {
	_ = d.c.nc.Publish(reply, word)
}

// settle says that a delivery needs no more, once.
func (h *held) settle(word []byte) error {
	d := h.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.settled {
		return ErrNotHeld
	}
	h.settled = true
	d.tell(h.reply, word)
	for len(d.inHand) > 0 && d.inHand[0].settled {
		d.acked = max(d.acked, d.inHand[0].seq)
		d.inHand[0] = nil
		d.inHand = d.inHand[1:]
	}
	return nil
}

// Ack says that the message has had its effect and must not come again. It does
// not block: where the word is lost on the way, the message comes again after a
// restart, and is acknowledged then if this Durable still knows it.
func (d Delivery) Ack() error {
	if d.held == nil {
		return ErrNotHeld
	}
	return d.held.settle(ackDone)
}

// Hold says at once that the message is being worked on. A ticker does the same
// for every delivery in hand, so few need it.
func (d Delivery) Hold() error {
	if d.held == nil {
		return ErrNotHeld
	}
	h := d.held
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.settled {
		return ErrNotHeld
	}
	h.d.tell(h.reply, ackProgress)
	return nil
}

// Dead copies the message to DEAD with the reason and settles it: it will not
// come again. It blocks until DEAD has stored it, or ctx ends: then the delivery
// is still in hand.
func (d Delivery) Dead(ctx context.Context, reason string) error {
	if d.held == nil {
		return ErrNotHeld
	}
	dur := d.held.d
	if err := dur.c.Dead(ctx, d.Letter(dur.cfg.Reader, reason)); err != nil {
		return err
	}
	return d.held.settle(ackTerm)
}

// AckAll acknowledges all of a batch, in order.
func AckAll(batch []Delivery) error {
	for _, d := range batch {
		if err := d.Ack(); err != nil {
			return fmt.Errorf("acknowledge message %d of stream %q: %w", d.Seq, d.Stream, err)
		}
	}
	return nil
}

// keep holds what is in hand or on its way to it, until Close.
func (d *Durable) keep() {
	tick := time.NewTicker(d.cfg.AckWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-d.stopped:
			return
		case <-tick.C:
		}
		d.mu.Lock()
		for _, h := range d.inHand {
			if !h.settled {
				d.tell(h.reply, ackProgress)
			}
		}
		if d.p != nil {
			d.p.stash(func(m *nats.Msg) { d.tell(m.Reply, ackProgress) })
		}
		d.mu.Unlock()
	}
}

// Rewind moves the consumer so that the message of this sequence, or the first
// after it, comes next. Deliveries in hand are void: acknowledging them is
// ErrNotHeld or changes nothing. Next must not run at the same time.
func (d *Durable) Rewind(ctx context.Context, seq uint64) error {
	seq = max(seq, 1)
	d.mu.Lock()
	for _, h := range d.inHand {
		h.settled = true
	}
	d.inHand = nil
	d.acked, d.handed, d.known, d.moved = seq-1, seq-1, true, true
	d.mu.Unlock()
	if err := d.start(ctx); err != nil {
		d.mu.Lock()
		d.moved = true
		d.mu.Unlock()
		return fmt.Errorf("rewind consumer %q of stream %q to %d: %w", d.cfg.Name, d.cfg.Stream, seq, err)
	}
	return nil
}

// Lag is how far a durable is behind its stream.
type Lag struct {
	Pending  uint64        // messages not delivered yet
	Unacked  int           // delivered and not acknowledged
	Oldest   time.Duration // age of the oldest message that is not acknowledged, by the server's clock; 0 where there is none
	Lost     uint64        // sequences that left the stream before they were delivered, everybody's where the consumer is filtered
	Position uint64        // everything up to this sequence is acknowledged
	Paused   time.Time     // until when it is paused; zero where it is not
}

// Lag asks the server, at the cost of three requests: for a ticker, not for
// every message.
func (d *Durable) Lag(ctx context.Context) (Lag, error) {
	info, err := d.info(ctx)
	if err != nil {
		return Lag{}, fmt.Errorf("ask consumer %q of stream %q for its lag: %w", d.cfg.Name, d.cfg.Stream, err)
	}
	return d.c.lagOf(ctx, info)
}

func (c *Conn) lagOf(ctx context.Context, info *jetstream.ConsumerInfo) (Lag, error) {
	wrap := func(err error) error {
		return fmt.Errorf("ask consumer %q of stream %q for its lag: %w", info.Name, info.Stream, err)
	}
	state, err := c.StreamState(ctx, info.Stream)
	if err != nil {
		return Lag{}, wrap(err)
	}
	l := Lag{Pending: info.NumPending, Unacked: info.NumAckPending, Position: info.AckFloor.Stream}
	if info.Paused {
		l.Paused = state.Now.Add(info.PauseRemaining)
		if info.Config.PauseUntil != nil {
			l.Paused = *info.Config.PauseUntil
		}
	}
	if next := info.Delivered.Stream + 1; state.FirstSeq > next && state.LastSeq >= next {
		l.Lost = state.FirstSeq - next
	}
	if l.Pending == 0 && l.Unacked == 0 {
		return l, nil
	}
	filters := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		filters = []string{info.Config.FilterSubject}
	}
	if len(filters) == 0 {
		filters = []string{">"}
	}
	var oldest time.Time
	for _, f := range filters {
		m, ok, err := c.NextOn(ctx, info.Stream, f, l.Position+1)
		if err != nil {
			return Lag{}, wrap(err)
		}
		if ok && (oldest.IsZero() || m.Time.Before(oldest)) {
			oldest = m.Time
		}
	}
	if !oldest.IsZero() {
		l.Oldest = max(0, state.Now.Sub(oldest))
	}
	return l, nil
}

// Close ends the reading and sends the acknowledgements that are under way,
// waiting up to 2 s. The consumer stays; deliveries in hand come again to whoever
// opens it next.
func (d *Durable) Close() {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.closed = true
	if d.p != nil {
		d.p.close()
		d.p = nil
	}
	d.mu.Unlock()
	close(d.stopped)
	d.keeper.Wait()
	if d.c.up.Load() {
		_ = d.c.nc.FlushTimeout(2 * time.Second)
	}
}

// RemoveDurable deletes a durable consumer with its position; one that does not
// exist is fine.
func (c *Conn) RemoveDurable(ctx context.Context, stream, name string) error {
	err := c.try(ctx, "CONSUMER.DELETE."+stream+"."+name, func(ctx context.Context) error {
		err := c.js.DeleteConsumer(ctx, stream, name)
		if apiCode(err) == int(jetstream.JSErrCodeConsumerNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove consumer %q of stream %q: %w", name, stream, err)
	}
	return nil
}
