package bus

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/textproto"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// State is what a stream holds.
type State struct {
	Stream   string
	Created  time.Time
	Messages uint64
	Bytes    uint64
	FirstSeq uint64 // of the oldest message; LastSeq+1 where it holds none
	LastSeq  uint64 // of the newest message ever stored
	First    time.Time
	Last     time.Time // when LastSeq was appended; zero where nothing ever was
	Now      time.Time // the server's clock when it answered
}

// Empty reports whether the stream holds no message now.
func (s State) Empty() bool { return s.Messages == 0 }

// StreamState asks the stream's leader what it holds. It waits for the bus until
// ctx ends; ErrStreamMissing where there is no such stream.
func (c *Conn) StreamState(ctx context.Context, stream string) (State, error) {
	info, err := c.streamInfo(ctx, stream, "")
	if err != nil {
		return State{}, fmt.Errorf("ask stream %q for its state: %w", stream, err)
	}
	return stateOf(info), nil
}

func stateOf(info *jetstream.StreamInfo) State {
	s := info.State
	return State{Stream: info.Config.Name, Created: info.Created, Messages: s.Msgs, Bytes: s.Bytes,
		FirstSeq: max(s.FirstSeq, 1), LastSeq: s.LastSeq, First: s.FirstTime, Last: s.LastTime, Now: info.TimeStamp}
}

// streamInfo asks for a stream's info, with its subjects that match filter where
// one is given.
func (c *Conn) streamInfo(ctx context.Context, stream, filter string) (info *jetstream.StreamInfo, err error) {
	err = c.try(ctx, "STREAM.INFO."+stream, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		info = s.CachedInfo()
		if filter != "" {
			info, err = s.Info(ctx, jetstream.WithSubjectFilter(filter))
		}
		return err
	})
	return info, err
}

// getMessage reads one message as req asks, again until it is answered; found
// is false where the answer is that there is no such message.
func (c *Conn) getMessage(ctx context.Context, stream string, req any) (d Delivery, found bool, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return Delivery{}, false, err
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  string    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err = c.try(ctx, "STREAM.MSG.GET."+stream, func(ctx context.Context) error {
		// Not a direct get: those may be answered by a follower that is behind.
		resp, err := c.nc.RequestWithContext(ctx, c.prefix+"STREAM.MSG.GET."+stream, body)
		if err != nil {
			return err
		}
		answer.Error = nil
		if err := json.Unmarshal(resp.Data, &answer); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if answer.Error != nil && answer.Error.ErrorCode != codeMessageNotFound {
			return answer.Error
		}
		return nil
	})
	if err != nil || answer.Error != nil {
		return Delivery{}, false, err
	}
	m := answer.Message
	d = Delivery{Stream: stream, Subject: m.Subject, Seq: m.Seq, Time: m.Time, Data: m.Data}
	if m.Header != "" {
		if d.Header, err = parseHeader(m.Header); err != nil {
			return Delivery{}, false, fmt.Errorf("read header of message %d: %w", m.Seq, err)
		}
	}
	return d, true, nil
}

func parseHeader(b64 string) (map[string][]string, error) {
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(raw), "\r\n")
	if !strings.HasPrefix(lines[0], "NATS/1.0") {
		return nil, textproto.ProtocolError("no NATS/1.0 line")
	}
	h := map[string][]string{}
	for _, line := range lines[1:] {
		if k, v, ok := strings.Cut(line, ":"); ok {
			h[k] = append(h[k], strings.TrimSpace(v))
		}
	}
	return h, nil
}

// LastOn is the newest message whose subject matches, as the stream's leader
// has it; false where there is none. The subject may hold wildcards.
func (c *Conn) LastOn(ctx context.Context, stream, subject string) (Delivery, bool, error) {
	d, ok, err := c.getMessage(ctx, stream, map[string]any{"last_by_subj": subject})
	if err != nil {
		return Delivery{}, false, fmt.Errorf("read last message of %q in stream %q: %w", subject, stream, err)
	}
	return d, ok, nil
}

// Get is the message of that sequence; false where it is no longer, or not yet,
// in the stream.
func (c *Conn) Get(ctx context.Context, stream string, seq uint64) (Delivery, bool, error) {
	if seq == 0 {
		return Delivery{}, false, nil // the server would read it as "none given"
	}
	d, ok, err := c.getMessage(ctx, stream, map[string]any{"seq": seq})
	if err != nil {
		return Delivery{}, false, fmt.Errorf("read message %d of stream %q: %w", seq, stream, err)
	}
	return d, ok, nil
}

// NextOn is the first message at or after seq whose subject matches; false
// where there is none.
func (c *Conn) NextOn(ctx context.Context, stream, subject string, seq uint64) (Delivery, bool, error) {
	d, ok, err := c.getMessage(ctx, stream, map[string]any{"seq": max(seq, 1), "next_by_subj": subject})
	if err != nil {
		return Delivery{}, false, fmt.Errorf("read message of %q from %d on in stream %q: %w", subject, seq, stream, err)
	}
	return d, ok, nil
}

// ReplayConfig says what to read and from where.
type ReplayConfig struct {
	Stream   string
	Subjects []string // filters; everything where empty

	// The start: the first of these that is set, else the oldest message.
	FromSeq  uint64    // this sequence or the first after it
	FromTime time.Time // messages appended at or after it
	New      bool      // only messages stored after the replay began
}

// Replay reads a stream in order from a position, then goes on live: no
// difference from there on. It neither loses nor doubles a message, whatever
// happens to the server, the connection or the consumer behind it, and asks the
// stream when nothing came for a while. Messages that left the stream before
// they were read are counted in Delivery.Gap of the next. Delivery.Pending 0
// means caught up; whether there is anything to wait for, StreamState tells.
//
// It ends without error when ctx ends, and otherwise with one error:
// ErrStreamMissing, ErrStreamRenewed, ErrNotPermitted, ErrClosed. Stopping the
// iteration stops the reading. Nothing is acknowledged and nothing stays behind.
func (c *Conn) Replay(ctx context.Context, cfg ReplayConfig) iter.Seq2[Delivery, error] {
	return func(yield func(Delivery, error) bool) {
		r := &replay{c: c, cfg: cfg, id: nuid.Next()}
		defer r.stop()
		for {
			d, err := r.next(ctx)
			if err != nil {
				if ctx.Err() == nil {
					yield(Delivery{}, fmt.Errorf("replay stream %q: %w", cfg.Stream, err))
				}
				return
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// replay is one run of Replay.
type replay struct {
	c       *Conn
	cfg     ReplayConfig
	id      string
	serial  int
	created time.Time // of the stream
	cursor  uint64    // last sequence read, or passed over; valid where placed
	placed  bool
	gap     uint64 // to be told with the next delivery

	name    string // of the present consumer
	p       *puller
	dseq    uint64 // last consumer sequence seen
	renewed <-chan struct{}
}

func (r *replay) next(ctx context.Context) (Delivery, error) {
	for n := 0; ; {
		if r.p == nil {
			if err := r.start(ctx); err != nil {
				return Delivery{}, err
			}
		}
		m, err := r.p.next(ctx, r.renewed)
		if err == nil {
			var k mark
			if k, err = parseMark(m.Reply); err == nil && k.consumer == r.name {
				if k.consumerSeq == r.dseq+1 {
					return r.accept(k, m), nil
				}
				err = errSkipped
			} else if err == nil {
				continue
			}
		}
		if ctx.Err() != nil {
			return Delivery{}, ctx.Err()
		}
		if errors.Is(err, errIdle) {
			if err = r.missed(ctx); err == nil {
				continue
			}
		}
		if errors.Is(err, ErrNotPermitted) {
			return Delivery{}, err
		}
		r.c.log.Debug("reading goes on with a new consumer", "stream", r.cfg.Stream, "seq", r.cursor, "err", err)
		r.stop()
		if errors.Is(err, errReconnect) || errors.Is(err, errSkipped) {
			continue
		}
		if err := r.c.pause(ctx, n); err != nil {
			return Delivery{}, err
		}
		n++
	}
}

func (r *replay) accept(k mark, m *nats.Msg) Delivery {
	d := k.delivery(m)
	if r.placed && len(r.cfg.Subjects) == 0 && k.seq > r.cursor+1 {
		r.gap += k.seq - r.cursor - 1 // they left between the position and now
	}
	d.Redelivered = false
	d.Gap, r.gap = r.gap, 0
	r.cursor, r.placed, r.dseq = k.seq, true, k.consumerSeq
	return d
}

// missed asks the consumer whether it sent what never came (a blip too short for
// anybody to notice drops what is under way), or does not send what it has. It
// asks for a while only: of a consumer whose one copy was on a server that has
// died the others still know, and nobody ever answers for it. A reader comes here
// before it finds that consumer silent where it was busy for timing.heartbeat
// meanwhile, as one that publishes while nobody leads.
func (r *replay) missed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*r.c.timing.request)
	defer cancel()
	var info *jetstream.ConsumerInfo
	err := r.c.try(ctx, "CONSUMER.INFO."+r.cfg.Stream+"."+r.name, func(ctx context.Context) error {
		cons, err := r.c.js.Consumer(ctx, r.cfg.Stream, r.name)
		if err != nil {
			return err
		}
		info = cons.CachedInfo()
		return nil
	})
	switch {
	case err != nil:
		return err // gone, or its server is; whether the stream is, start finds out
	case r.p.ready():
		return nil
	case info.Delivered.Consumer > r.dseq:
		return errSkipped
	case info.NumPending > 0 && info.NumWaiting > 0:
		return errSilent
	}
	return nil
}

// start makes a consumer after the cursor.
func (r *replay) start(ctx context.Context) error {
	for n := 0; ; n++ {
		r.renewed = r.c.renewal()
		err := r.tryStart(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, final := range []error{ErrStreamMissing, ErrStreamRenewed, ErrNotPermitted, ErrClosed, ErrRefused} {
			if errors.Is(err, final) {
				return err
			}
		}
		if err := r.c.pause(ctx, n); err != nil {
			return err
		}
	}
}

func (r *replay) tryStart(ctx context.Context) error {
	info, err := r.c.streamInfo(ctx, r.cfg.Stream, "")
	if err != nil {
		return err
	}
	state := stateOf(info)
	if !r.created.IsZero() && !state.Created.Equal(r.created) {
		return fmt.Errorf("%w: created %s, was %s", ErrStreamRenewed, state.Created, r.created)
	}
	r.created = state.Created
	if !r.placed {
		switch {
		case r.cfg.FromSeq > 0:
			r.cursor, r.placed = r.cfg.FromSeq-1, true
		case !r.cfg.FromTime.IsZero():
		case r.cfg.New:
			r.cursor, r.placed = state.LastSeq, true
		default:
			r.cursor, r.placed = state.FirstSeq-1, true
		}
	}
	if r.placed && r.cursor > state.LastSeq {
		return fmt.Errorf("%w: its last sequence is %d, the position %d", ErrStreamRenewed, state.LastSeq, r.cursor)
	}
	if r.placed && r.cursor+1 < state.FirstSeq {
		r.gap += state.FirstSeq - r.cursor - 1
		r.cursor = state.FirstSeq - 1
	}
	r.serial++
	r.name = fmt.Sprintf("replay-%s-%d", r.id, r.serial)
	cfg := ephemeral(r.name, r.cfg.Subjects)
	if r.placed {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.cursor+1
	} else {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &r.cfg.FromTime
	}
	if _, err := r.c.makeEphemeral(ctx, r.cfg.Stream, cfg); err != nil {
		return err
	}
	r.dseq = 0
	r.p, err = r.c.newPuller(r.cfg.Stream, r.name, PullMaxMessages, PullMaxBytes)
	return err
}

// ephemeral is the consumer of a reader that acknowledges nothing: one copy in
// memory, gone soon after its reader.
func ephemeral(name string, subjects []string) jetstream.ConsumerConfig {
	cfg := jetstream.ConsumerConfig{Name: name, AckPolicy: jetstream.AckNonePolicy, Replicas: 1, MemoryStorage: true,
		InactiveThreshold: 2 * time.Minute, MaxDeliver: 1}
	if len(subjects) == 1 {
		cfg.FilterSubject = subjects[0]
	} else {
		cfg.FilterSubjects = subjects
	}
	return cfg
}

// makeEphemeral makes the consumer, or gives up its name soon: one that the servers have assigned to one of them that has
// died is there for them, and nobody ever answers for it. Its reader tries again under another name.
func (c *Conn) makeEphemeral(ctx context.Context, stream string, cfg jetstream.ConsumerConfig) (info *jetstream.ConsumerInfo, err error) {
	soon, cancel := context.WithTimeout(ctx, 2*c.timing.request)
	defer cancel()
	err = c.try(soon, "CONSUMER.CREATE."+stream+"."+cfg.Name, func(ctx context.Context) error {
		cons, err := c.js.CreateOrUpdateConsumer(ctx, stream, cfg)
		if err == nil {
			info = cons.CachedInfo()
		}
		return err
	})
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		c.forget(stream, cfg.Name)
	}
	return info, err
}

func (r *replay) stop() {
	if r.p == nil {
		return
	}
	r.p.close()
	r.p = nil
	r.c.forget(r.cfg.Stream, r.name)
}

// forget deletes an ephemeral consumer without waiting for the answer; where
// the request is lost the consumer ends by itself.
func (c *Conn) forget(stream, name string) {
	if c.up.Load() {
		_ = c.nc.Publish(c.prefix+"CONSUMER.DELETE."+stream+"."+name, nil)
	}
}

// LastPerSubject reads the newest message of every subject that matches the
// filter, in the order of their sequences. It is complete up to the sequence
// upto, which a Replay continues at FromSeq upto+1; a subject written to
// meanwhile may come twice or from beyond upto, the newest last. The count is
// compared with the subjects the stream knows, and what is missing is read one
// by one. The iteration ends after the last with no error, or with one.
func (c *Conn) LastPerSubject(ctx context.Context, stream, filter string) (upto uint64, last iter.Seq2[Delivery, error], err error) {
	info, err := c.streamInfo(ctx, stream, filter)
	if err != nil {
		return 0, nil, fmt.Errorf("ask stream %q for its subjects: %w", stream, err)
	}
	upto = info.State.LastSeq
	newest, ok, err := c.LastOn(ctx, stream, filter)
	if err != nil {
		return 0, nil, err
	}
	missing := info.State.Subjects
	return upto, func(yield func(Delivery, error) bool) {
		if !ok || len(missing) == 0 {
			return
		}
		l := &lastReader{c: c, stream: stream, filter: filter, until: newest.Seq, missing: missing}
		if err := l.run(ctx, yield); err != nil {
			yield(Delivery{}, fmt.Errorf("read last messages of %q in stream %q: %w", filter, stream, err))
		}
	}, nil
}

// lastReader is one run of LastPerSubject.
type lastReader struct {
	c              *Conn
	stream, filter string
	until          uint64            // sequence of the newest message when it began
	missing        map[string]uint64 // subjects not seen yet
	stopped        bool
}

func (l *lastReader) run(ctx context.Context, yield func(Delivery, error) bool) error {
	show := func(d Delivery) bool {
		delete(l.missing, d.Subject)
		l.stopped = !yield(d, nil)
		return !l.stopped
	}
	var shown uint64
	for n := 0; shown < l.until && !l.stopped; n++ {
		if n > 0 {
			if err := l.c.pause(ctx, n); err != nil {
				return err
			}
		}
		if err := l.read(ctx, &shown, show); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			for _, final := range []error{ErrStreamMissing, ErrNotPermitted, ErrClosed, ErrRefused} {
				if errors.Is(err, final) {
					return err
				}
			}
		}
	}
	// What the consumer did not show: it left the stream meanwhile, or was
	// skipped by the server.
	for subject := range l.missing {
		if l.stopped {
			return nil
		}
		d, ok, err := l.c.LastOn(ctx, l.stream, subject)
		if err != nil {
			return err
		}
		if ok && !show(d) {
			return nil
		}
	}
	return nil
}

// read reads by one consumer, until it has passed l.until or something is wrong;
// a second run skips what was shown.
func (l *lastReader) read(ctx context.Context, shown *uint64, show func(Delivery) bool) error {
	cfg := ephemeral("last-"+nuid.Next(), []string{l.filter})
	cfg.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
	renewed := l.c.renewal()
	info, err := l.c.makeEphemeral(ctx, l.stream, cfg)
	if err != nil {
		return err
	}
	defer l.c.forget(l.stream, cfg.Name)
	if info.NumPending == 0 {
		*shown = l.until // all of it left the stream meanwhile
		return nil
	}
	p, err := l.c.newPuller(l.stream, cfg.Name, LastMaxMessages, 0)
	if err != nil {
		return err
	}
	defer p.close()
	for dseq := uint64(0); *shown < l.until; dseq++ {
		m, err := p.next(ctx, renewed)
		if errors.Is(err, errIdle) {
			*shown = l.until // the newest left the stream meanwhile; what else is missing is read one by one
			return nil
		}
		if err != nil {
			return err
		}
		k, err := parseMark(m.Reply)
		if err != nil {
			return err
		}
		if k.consumerSeq != dseq+1 {
			return errSkipped
		}
		if k.seq <= *shown {
			continue
		}
		*shown = k.seq
		if !show(k.delivery(m)) {
			return nil
		}
	}
	return nil
}
