package worker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// feeder feeds the sink from one cluster.
type feeder struct {
	w       *Worker
	cluster string // empty where it reads letters that are to be tried again, of every cluster
	stream  string
	noun    string // what it feeds: rollup or event
	log     *slog.Logger
	tel     *feedTelemetry
	dec     *proto.Decoder
	lanes   []*lane
	timeout time.Duration

	secrets sink.Secrets // of the target, to be kept out of what is told

	durable *bus.Durable
	rollups []*proto.Rollup // reused from batch to batch

	mu      sync.Mutex
	down    int       // lanes that fail; under mu, as are the next two
	failing time.Time // since when any does; zero while none does
	said    time.Time // when that was logged last

	warned map[string]*warning // by text; under mu

	// Of the goroutine that looks at the lag.
	paused   time.Time // until when, as logged last
	behind   bool      // as logged last
	lost     uint64    // not logged yet
	saidLost time.Time
}

// warning is one that may come with every message.
type warning struct {
	said   time.Time
	unsaid int // since then
}

// lane is one of the sinks that a batch is parted among, as many as the option concurrency says. What is of
// one node, of one namespace or of the cluster goes by one lane, so every series stays in order; no lane
// begins the next batch before all have ended this one.
type lane struct {
	*feeder

	sink     sink.Sink
	in       []bus.Delivery // its part of the present batch
	messages []sink.Message
	down     bool // its last Write failed; under the feeder's mu
}

// newFeeder makes a feeder; the caller closes it.
func (w *Worker) newFeeder(cluster, stream string) *feeder {
	return &feeder{
		w: w, cluster: cluster, stream: stream, noun: w.noun(), log: w.sinkDeps(cluster).Log, tel: w.deps.Telemetry.feed(w.cfg.Name, cluster),
		dec: proto.NewDecoder(), secrets: w.cfg.Target.Secrets(), timeout: w.cfg.Target.Timeout(w.sinkDeps(cluster).Timeout),
	}
}

// open builds one more sink, for what is of that cluster.
func (f *feeder) open(cluster string) (*lane, error) {
	deps := f.w.sinkDeps(cluster)
	if len(f.lanes) > 0 || f.cluster == "" {
		deps.Log = slog.New(slog.DiscardHandler) // warnings about options are said once
	}
	s, err := f.w.build(f.w.cfg.Target, deps)
	if err != nil {
		return nil, err // was checked in New: a file has gone meanwhile
	}
	l := &lane{feeder: f, sink: s}
	f.lanes = append(f.lanes, l)
	return l, nil
}

func (f *feeder) close() {
	for _, l := range f.lanes {
		if err := l.sink.Close(); err != nil {
			f.log.Warn("sink did not close in order", "err", f.secrets.Hide(err.Error()))
		}
	}
	f.tel.forget()
}

// feed feeds the sink from one cluster until ctx ends (nil), or until the bus refuses for good.
func (w *Worker) feed(ctx context.Context, cluster string) error {
	stream, subjects := bus.RollupsStream(cluster), bus.RollupFilters(cluster)
	if w.cfg.Events {
		stream, subjects = bus.EventsStream(cluster), []string{bus.EventsFilter(cluster)}
	}
	f := w.newFeeder(cluster, stream)
	defer f.close()
	for range w.cfg.Target.Concurrency() {
		if _, err := f.open(cluster); err != nil {
			return err
		}
	}
	cfg := bus.DurableConfig{Subjects: subjects}
	cfg.New, cfg.FromTime = w.since.From(time.Now())
	return f.run(ctx, cfg, f.handle)
}

// run reads the stream and hands what comes to handle, until ctx ends (nil) or the bus refuses for good.
func (f *feeder) run(ctx context.Context, cfg bus.DurableConfig, handle func(context.Context, []bus.Delivery) error) error {
	cfg.Stream, cfg.Name, cfg.Reader = f.stream, bus.SinkDurable(f.w.cfg.Name), bus.SinkLease(f.w.cfg.Name)
	missing := false
	for n := 0; ; n++ {
		err := f.read(ctx, cfg, &n, handle)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, bus.ErrNotPermitted), errors.Is(err, bus.ErrClosed):
			return err
		case errors.Is(err, bus.ErrStreamMissing):
			if !missing {
				f.log.Warn("stream to read is not there yet, waiting for it", "stream", f.stream)
			}
			missing = true
		default:
			f.log.Warn("reading ends, starting again", "err", err)
			missing = false
		}
		if f.w.cfg.Retry.Wait(ctx, n, 0) != nil {
			return nil
		}
	}
}

// read opens the consumer and writes what it delivers. attempts is set back once something came.
func (f *feeder) read(ctx context.Context, cfg bus.DurableConfig, attempts *int, handle func(context.Context, []bus.Delivery) error) error {
	var err error
	if f.durable, err = f.w.deps.Bus.Durable(ctx, cfg); err != nil {
		return err
	}
	defer f.durable.Close()
	if err := f.look(ctx); err != nil { // before anything is pulled: the position still shows what was lost
		return err
	}
	watched, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { f.watch(watched) })
	defer watch.Wait()
	defer stop()
	lanes := max(1, len(f.lanes))
	most := min(maxBatchBytes*lanes, maxBytesAtOnce)
	for {
		batch, err := f.durable.NextBatch(ctx, f.w.cfg.Batch*lanes)
		if err != nil {
			return err
		}
		*attempts = 0
		if f.w.cfg.Kind.Gather != nil {
			if batch, err = f.gather(ctx, batch, most); err != nil {
				return err
			}
		}
		for len(batch) > 0 {
			n, size := 0, 0
			for n < len(batch) && (n == 0 || size+len(batch[n].Data) <= most) {
				size += len(batch[n].Data)
				n++
			}
			if err := handle(ctx, batch[:n]); err != nil {
				return err
			}
			batch = batch[n:]
		}
	}
}

// maxGathered bounds what is gathered in messages: half of what may be under way, so that the rest travels meanwhile.
const maxGathered = bus.MaxAckPending / 2

// gather adds to a batch what comes within the time that the sink leaves, by the clock and by that of the stream. What
// is gathered is held, and comes again if this ends in between.
func (f *feeder) gather(ctx context.Context, batch []bus.Delivery, most int) ([]bus.Delivery, error) {
	wait := f.w.cfg.Kind.Gather(f.w.cfg.Target)
	soon, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	size := 0
	for _, d := range batch {
		size += len(d.Data)
	}
	for len(batch) < maxGathered && size < most && batch[len(batch)-1].Time.Sub(batch[0].Time) < wait {
		more, err := f.durable.NextBatch(soon, maxGathered-len(batch))
		switch {
		case err != nil && soon.Err() != nil && ctx.Err() == nil:
			return batch, nil
		case err != nil:
			return nil, err
		}
		if more[0].Seq <= batch[len(batch)-1].Seq { // what is held comes again
			batch, size = nil, 0
		}
		for _, d := range more {
			size += len(d.Data)
		}
		batch = append(batch, more...)
	}
	return batch, nil
}

// handle decodes deliveries and sees to it that each is written, or in DEAD. Its error is that of ctx,
// or of the bus: then what is not settled comes again.
func (f *feeder) handle(ctx context.Context, batch []bus.Delivery) error {
	for _, l := range f.lanes {
		clear(l.in)
		clear(l.messages)
		l.in, l.messages = l.in[:0], l.messages[:0]
	}
	for i, d := range batch {
		m, err := f.decode(i, d.Data)
		if err != nil {
			f.tel.undecodable.Inc()
			f.warn(f.noun+" cannot be decoded", "subject", d.Subject, "seq", d.Seq, "err", err)
			if err := f.dead(ctx, d, err.Error(), nil); err != nil {
				return err
			}
			continue
		}
		l := f.lanes[laneOf(d.Subject, len(f.lanes))]
		l.in = append(l.in, d)
		l.messages = append(l.messages, m)
	}
	if len(f.lanes) == 1 {
		return f.lanes[0].write(ctx, f.lanes[0].in, f.lanes[0].messages)
	}
	errs := make([]error, len(f.lanes))
	var writing sync.WaitGroup
	for i, l := range f.lanes {
		if len(l.messages) > 0 {
			writing.Go(func() { errs[i] = l.write(ctx, l.in, l.messages) })
		}
	}
	writing.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// decode makes message i of a batch of what was delivered.
func (f *feeder) decode(i int, data []byte) (sink.Message, error) {
	if f.w.cfg.Events {
		e := new(proto.Event)
		if err := f.dec.Event(data, e); err != nil {
			return sink.Message{}, fmt.Errorf("decode event: %w", err)
		}
		return sink.Message{Event: e, ID: EventMessageID(e), Data: data}, nil
	}
	for len(f.rollups) <= i {
		f.rollups = append(f.rollups, new(proto.Rollup))
	}
	r := f.rollups[i]
	if err := f.dec.Rollup(data, r); err != nil {
		return sink.Message{}, fmt.Errorf("decode rollup: %w", err)
	}
	return sink.Message{Rollup: r, ID: MessageID(r), Data: data}, nil
}

// clusterOf is the cluster that a message is of.
func clusterOf(m *sink.Message) string {
	if m.Event != nil {
		return m.Event.Cluster
	}
	return m.Cluster
}

// laneOf is the lane of a subject: one node's or namespace's rollups, the cluster's totals, or one namespace's
// events.
func laneOf(subject string, lanes int) int {
	if lanes == 1 {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(subject)) // a hash does not fail
	return int(h.Sum32() % uint32(lanes))
}

// MessageID identifies a rollup to a destination: the same for the same rollup, whenever and by whomever
// it is delivered.
func MessageID(r *proto.Rollup) string {
	at := strconv.FormatInt(int64(r.Tick), 10)
	switch r.Scope {
	case proto.ScopeNode:
		return r.Cluster + "/node/" + r.Name + "/" + at
	case proto.ScopeNamespace:
		return r.Cluster + "/ns/" + r.Name + "/" + at
	}
	return r.Cluster + "/totals/" + at
}

// EventMessageID is the same for a state of an event.
func EventMessageID(e *proto.Event) string { return e.Cluster + "/event/" + e.ID() }

// write writes messages until they are written or refused for good, and settles their deliveries.
func (l *lane) write(ctx context.Context, in []bus.Delivery, messages []sink.Message) error {
	if len(messages) == 0 {
		return nil
	}
	for n := 0; ; n++ {
		began := time.Now()
		err := l.attempt(ctx, messages)
		took := time.Since(began)
		l.tel.took.Observe(took.Seconds())
		if l.w.deps.Wrote != nil {
			l.w.deps.Wrote(l.w.cfg.Kind.Title, took)
		}
		var partial *sink.Partial
		errors.As(err, &partial)
		switch {
		case err == nil:
			l.recovered()
			return l.settle(ctx, in, nil)
		case partial != nil && partial.Err == nil:
			l.recovered()
			l.tel.late.Add(float64(partial.Late))
			return l.settle(ctx, in, partial.Refused)
		case sink.IsPermanent(err):
			l.recovered()
			if half := len(messages) / 2; half > 0 {
				if err := l.write(ctx, in[:half], messages[:half]); err != nil {
					return err
				}
				return l.write(ctx, in[half:], messages[half:])
			}
			reason := l.secrets.Hide(err.Error())
			l.warn(l.noun+" is refused for good", "seq", in[0].Seq, "subject", in[0].Subject, "err", reason)
			l.tel.refusedMessages.Inc()
			return l.dead(ctx, in[0], reason, nil)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		l.failed(err, n)
		if err := l.w.cfg.Retry.Wait(ctx, n, sink.RetryAfterOf(err)); err != nil {
			return err
		}
	}
}

// attempt is one Write, with its deadline. After a wished stop it may go on for the grace, so that a
// restart does not leave the destination with something half said; after a lost lease it ends at once.
func (l *lane) attempt(ctx context.Context, messages []sink.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.timeout)
	defer cancel()
	written := make(chan struct{})
	var guard sync.WaitGroup
	defer guard.Wait()
	defer close(written)
	guard.Go(func() {
		select {
		case <-written:
			return
		case <-ctx.Done():
		}
		if errors.Is(context.Cause(ctx), bus.ErrLeaseLost) {
			cancel()
			return
		}
		grace := time.NewTimer(l.w.cfg.Grace)
		defer grace.Stop()
		select {
		case <-written:
		case <-grace.C:
			cancel()
		}
	})
	return l.unhurt(within, messages)
}

// unhurt is Write, of which a panic is a refusal for good: a message that makes a sink panic would otherwise come
// again after every restart, and take all other sinks of the process down with it each time. The sink is made
// anew, since nobody knows what it was in the middle of.
func (l *lane) unhurt(ctx context.Context, messages []sink.Message) (err error) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		err = sink.Permanent(fmt.Errorf("the sink panicked: %v", r))
		l.log.Error("sink panicked: this is a fault of the program, please report it", "err", l.secrets.Hide(fmt.Sprint(r)), "stack", string(debug.Stack()))
		cluster := l.cluster
		if cluster == "" {
			cluster = clusterOf(&messages[0])
		}
		deps := l.w.sinkDeps(cluster)
		deps.Log = slog.New(slog.DiscardHandler) // warnings about options have been said
		if anew, newErr := l.w.build(l.w.cfg.Target, deps); newErr == nil {
			l.sink = anew // the old one is left to the collector: Close of what panicked may do anything
		}
	}()
	return l.sink.Write(ctx, messages)
}

// RefusedHeader carries the parts of a message in DEAD that were refused, quoted, one a value.
const RefusedHeader = "Hs-Refused"

// Bounds of what a letter says about refused parts, which comes on top of the message.
const (
	maxParts     = 100
	maxPartBytes = 1 << 10
)

// settle copies messages with refused parts to DEAD, and acknowledges all.
func (f *feeder) settle(ctx context.Context, in []bus.Delivery, refused []sink.Refused) error {
	for n := range in {
		i := n
		if f.w.cfg.Kind.Gather != nil {
			i = len(in) - 1 - n
		}
		var parts []string
		samples, reason := 0, ""
		for _, r := range refused {
			if r.Message != i {
				continue
			}
			if samples += r.Samples; reason == "" {
				reason = f.secrets.Hide(r.Reason)
			}
			if r.Part != "" && len(parts) < maxParts {
				parts = append(parts, strconv.QuoteToASCII(r.Part[:min(len(r.Part), maxPartBytes)]))
			}
		}
		if samples == 0 {
			f.tel.written.Inc()
			if err := in[i].Ack(); err != nil && !errors.Is(err, bus.ErrNotHeld) {
				return fmt.Errorf("acknowledge message %d: %w", in[i].Seq, err)
			}
			continue
		}
		if f.w.cfg.Events { // an event has no parts: nothing of this message is written
			f.warn(f.noun+" is refused for good", "seq", in[i].Seq, "subject", in[i].Subject, "err", reason)
			f.tel.refusedMessages.Inc()
			if err := f.dead(ctx, in[i], reason, parts); err != nil {
				return err
			}
			continue
		}
		f.tel.refusedSamples.Add(float64(samples))
		f.warn("samples are refused for good, the rest is written", "seq", in[i].Seq, "subject", in[i].Subject, "samples", samples, "err", reason)
		f.tel.written.Inc()
		if err := f.dead(ctx, in[i], fmt.Sprintf("%d samples refused: %s", samples, reason), parts); err != nil {
			return err
		}
	}
	return nil
}

// dead puts a message to DEAD and settles its delivery. It waits for the bus; a letter that DEAD itself
// will never take is logged and counted as lost.
func (f *feeder) dead(ctx context.Context, d bus.Delivery, reason string, parts []string) error {
	letter := d.Letter(bus.SinkLease(f.w.cfg.Name), reason)
	if len(parts) > 0 {
		header := map[string][]string{RefusedHeader: parts}
		for k, v := range letter.Header {
			header[k] = v
		}
		letter.Header = header
	}
	err := f.w.deps.Bus.Dead(ctx, letter)
	switch {
	case err == nil:
		f.tel.dead.Inc()
	case errors.Is(err, bus.ErrTooLarge), errors.Is(err, bus.ErrRefused):
		f.tel.lost.Inc()
		f.log.Error("message is lost: it is refused, and DEAD does not take it", "seq", d.Seq, "subject", d.Subject, "err", err)
	default:
		return err
	}
	if err := d.Ack(); err != nil && !errors.Is(err, bus.ErrNotHeld) {
		return fmt.Errorf("acknowledge message %d: %w", d.Seq, err)
	}
	return nil
}

// repeat is how often a failure that lasts is logged again.
const repeat = 5 * time.Minute

// warn logs what may come with every message: at once, and from then on now and then with how often it came
// meanwhile.
func (f *feeder) warn(text string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.warned[text]
	if w == nil {
		w = &warning{}
		if f.warned == nil {
			f.warned = map[string]*warning{}
		}
		f.warned[text] = w
	}
	now := time.Now()
	if now.Sub(w.said) < repeat {
		w.unsaid++
		return
	}
	if w.unsaid > 0 {
		args = append(args, "more", w.unsaid)
	}
	w.said, w.unsaid = now, 0
	f.log.Warn(text, args...)
}

// failed notes that a Write failed, and says so when it begins and now and then.
func (l *lane) failed(err error, n int) {
	f := l.feeder
	f.tel.retried.Inc()
	f.tel.up.Set(0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !l.down {
		l.down = true
		f.down++
	}
	now := time.Now()
	if f.failing.IsZero() {
		f.failing = now
	}
	if f.said.IsZero() || now.Sub(f.said) >= repeat {
		f.said = now
		f.log.Warn("sink does not take "+f.noun+"s, trying again", "attempt", n+1, "took", now.Sub(f.failing).Round(time.Second), "err", f.secrets.Hide(err.Error()))
	}
}

// recovered notes that the destination answered a Write, and says so where none did before.
func (l *lane) recovered() {
	f := l.feeder
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.down {
		l.down = false
		f.down--
	}
	if f.down > 0 {
		return
	}
	f.tel.up.Set(1)
	if !f.failing.IsZero() {
		f.log.Info("sink takes "+f.noun+"s again", "took", time.Since(f.failing).Round(time.Millisecond))
		f.failing, f.said = time.Time{}, time.Time{}
	}
}

// watch looks at the lag now and then until ctx ends.
func (f *feeder) watch(ctx context.Context) {
	t := time.NewTicker(f.w.cfg.Check)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := f.look(ctx); err != nil && ctx.Err() == nil {
			f.log.Debug("lag is not known", "err", err)
		}
	}
}

// look tells telemetry how far the sink is behind, and says once when something is lost.
func (f *feeder) look(ctx context.Context) error {
	lag, err := f.durable.Lag(ctx)
	if err != nil {
		return err
	}
	f.told(lag)
	return nil
}

// told acts on what the server says of the lag.
func (f *feeder) told(lag bus.Lag) {
	f.tel.lag(lag.Pending+uint64(max(0, lag.Unacked)), lag.Oldest) //nolint:gosec // not negative
	f.lost += f.tel.lose(lag.Lost)
	if now := time.Now(); f.lost > 0 && now.Sub(f.saidLost) >= repeat {
		f.log.Warn("messages left the stream before this sink had them", "lost", f.lost, "stream", f.stream)
		f.lost, f.saidLost = 0, now
	}
	if !lag.Paused.Equal(f.paused) {
		if f.paused = lag.Paused; f.paused.IsZero() {
			f.log.Info("sink is resumed")
		} else {
			f.log.Warn("sink is paused by an operator", "until", f.paused)
		}
	}
	f.tel.pause(!lag.Paused.IsZero())
	switch {
	case !f.behind && lag.Oldest >= farBehind:
		f.behind = true
		f.log.Warn("sink is behind", "oldest", lag.Oldest.Round(time.Second), "pending", lag.Pending, "stream", f.stream)
	case f.behind && lag.Oldest < farBehind/4:
		f.behind = false
		f.log.Info("sink has caught up", "oldest", lag.Oldest.Round(time.Millisecond))
	}
}

// farBehind is how old the oldest message not written is when a sink is said to be behind: a tenth of the least
// that ROLLUPS holds.
const farBehind = bus.MinRollupsAge / 10
