package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	corev1 "k8s.io/api/core/v1"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/kube"
)

// DefaultRate bounds storms: at 300 bytes a state, EVENTS of 512 MiB then hold half an hour of one, and
// a day of what a cluster of thousands of nodes says otherwise.
const DefaultRate = 1000

// burst is how many seconds of Rate may come at once.
const burst = 10

// Config is what an operator may choose.
type Config struct {
	Cluster string
	Owner   string // who we are, as the lease shows it
	Rate    int    // most states a second, on average; DefaultRate where 0
}

// Deps is what the program hands in.
type Deps struct {
	Bus    *bus.Conn
	Client *kube.Client
	// Registered, where not nil, is closed when the cluster's name is known to be ours: nothing is
	// published before.
	Registered <-chan struct{}
	Log        *slog.Logger
	Telemetry  *Telemetry // nil: none
}

// Events publishes; see the package.
type Events struct {
	cfg   Config
	deps  Deps
	enc   *proto.Encoder
	dec   *proto.Decoder
	limit *rate.Limiter

	// Where things stand, of the goroutine in follow.
	last  uint64    // sequence of the last message of EVENTS
	known bool      // upto is meant
	upto  uint64    // every event is out in its newest state up to this resource version
	begun uint64    // the sequence at which the list under way began to be written; 0: none is
	since time.Time // when the last message of EVENTS was written

	mu    sync.Mutex
	state error // why events are not published; nil: they are, or another does
}

// New makes an Events; it opens nothing.
func New(cfg Config, deps Deps) *Events {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	return &Events{cfg: cfg, deps: deps, enc: proto.NewEncoder(), dec: proto.NewDecoder(),
		limit: rate.NewLimiter(rate.Limit(cfg.Rate), burst*cfg.Rate), state: errors.New("events have not been read yet")}
}

// Err says in words why events are not published at the moment; nil when they are, by us or another.
func (e *Events) Err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// is takes note of the state and reports whether it has changed.
func (e *Events) is(err error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.state
	e.state = err
	return (was == nil) != (err == nil) || err != nil && err.Error() != was.Error()
}

// Run publishes whenever it holds the lease, until ctx ends (nil) or the connection to the bus is closed.
func (e *Events) Run(ctx context.Context) error {
	if e.deps.Registered != nil {
		select {
		case <-e.deps.Registered:
		case <-ctx.Done():
			return nil
		}
	}
	for ctx.Err() == nil {
		switch err := e.lead(ctx); {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, bus.ErrStreamMissing): // whoever installs all at once starts us before it is made
			e.deps.Log.Warn("the bus has no stream of events yet, trying again", "cluster", e.cfg.Cluster, "err", err)
			e.is(err)
			pause := time.NewTimer(retryStream)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
		default:
			return fmt.Errorf("publish events of cluster %q: %w", e.cfg.Cluster, err)
		}
	}
	return nil
}

// retryStream is the pause before a stream that is not there is looked for again.
const retryStream = 5 * time.Second

// lead holds the lease and publishes until it is lost (nil) or ctx ends.
func (e *Events) lead(ctx context.Context) error {
	return e.deps.Bus.Lead(ctx, bus.EventsLease(e.cfg.Cluster), e.cfg.Owner, func(held error) {
		e.is(nil)
		e.deps.Log.Info("another publishes events, standing by", "cluster", e.cfg.Cluster, "err", held)
	}, e.publishWhile)
}

// publishWhile publishes until held, the context of the lease, ends.
func (e *Events) publishWhile(held context.Context) error {
	e.deps.Log.Info("publishing events", "cluster", e.cfg.Cluster)
	e.deps.Telemetry.leading(true)
	defer e.deps.Telemetry.leading(false)
	for n := 0; ; n++ {
		began := time.Now()
		err := e.follow(held)
		switch {
		case held.Err() != nil:
			return nil
		case errors.Is(err, bus.ErrClosed):
			return err
		case errors.Is(err, bus.ErrOvertaken), errors.Is(err, bus.ErrStreamRenewed):
			// Letters from DEAD were given again, or the stream was made anew.
			e.deps.Log.Info("EVENTS is not as it was left, reading where things stand", "cluster", e.cfg.Cluster, "err", err)
		}
		if time.Since(began) > most {
			n = 0
		}
		if sleep(held, min(least<<min(n, 10), most)) != nil {
			return nil
		}
	}
}

// The wait between two attempts grows from least to most.
const (
	least = 50 * time.Millisecond
	most  = 15 * time.Second
)

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// follow finds where things stand, and publishes from there until ctx ends or EVENTS cannot be written.
// What is wrong with the API server is waited out here.
func (e *Events) follow(ctx context.Context) error {
	if err := e.resume(ctx); err != nil {
		e.report(err)
		return err
	}
	for n := 0; ; n++ {
		before := e.upto
		err := e.read(ctx)
		var w writeError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &w):
			e.report(err)
			return err
		case err == nil, errors.Is(err, context.DeadlineExceeded):
			n = -1 // the ordinary end of a watch, or of one that said nothing any more
		case e.upto != before:
			n = 0
		}
		if err != nil && n >= 0 {
			e.report(err)
		}
		if sleep(ctx, min(least<<min(max(n, 0), 10), most)) != nil {
			return ctx.Err()
		}
	}
}

// report logs a change of state.
func (e *Events) report(err error) {
	switch changed := e.is(err); {
	case !changed:
	case err == nil:
		e.deps.Log.Info("events are being published", "cluster", e.cfg.Cluster)
	default:
		e.deps.Log.Warn("events cannot be published at the moment, trying again", "cluster", e.cfg.Cluster, "err", err)
	}
	e.deps.Telemetry.well(err == nil)
}

// read publishes what the API server tells after the position, until it ends the watch.
func (e *Events) read(ctx context.Context) error {
	now, err := e.version(ctx)
	switch {
	case err != nil:
		return err
	case !e.known:
		err = e.list(ctx, listFirst)
	case now < e.upto:
		e.deps.Log.Warn("API server was set back, comparing its events with all that are out", "cluster", e.cfg.Cluster, "was", e.upto, "now", now)
		e.known, e.upto = false, 0
		err = e.list(ctx, listSetBack)
	case e.begun != 0:
		err = e.list(ctx, listInterrupted)
	}
	if err != nil {
		return err
	}
	err = e.deps.Client.Watch(ctx, kube.Events, strconv.FormatUint(e.upto, 10), func() { e.report(nil) }, func(kind watch.EventType, o runtime.Object) error {
		version, err := versionOf(o)
		if err != nil {
			e.skip(skipUnreadable, 1, err)
			return nil
		}
		if version <= e.upto {
			return nil
		}
		if ev, ok := o.(*corev1.Event); ok && (kind == watch.Added || kind == watch.Modified) {
			if err := e.publish(ctx, ev, proto.EventPosition{Upto: version}); err != nil {
				return err
			}
		}
		e.upto = version
		return nil
	})
	if !errors.Is(err, kube.ErrExpired) {
		return err
	}
	e.deps.Log.Info("API server no longer has what came after our position, listing events", "cluster", e.cfg.Cluster, "version", e.upto)
	return e.list(ctx, listExpired)
}

// version is the API server's present resource version.
func (e *Events) version(ctx context.Context) (uint64, error) {
	s, err := e.deps.Client.Version(ctx, kube.Events)
	if err != nil {
		return 0, err
	}
	return parseVersion(s)
}

// parseVersion reads a resource version. That they are numbers that grow is promised by Kubernetes since
// 1.35, and has been so since there was etcd.
func parseVersion(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resource version %.40q is not a number: events of this API server cannot be told apart", s)
	}
	return v, nil
}

func versionOf(o runtime.Object) (uint64, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return 0, fmt.Errorf("object of type %T: %w", o, err)
	}
	return parseVersion(m.GetResourceVersion())
}

// list publishes what is not out of all events, and moves the position on.
func (e *Events) list(ctx context.Context, why string) error {
	out, err := e.out(ctx)
	if err != nil {
		return err
	}
	e.deps.Telemetry.listed(why)
	if e.begun == 0 {
		e.begun = e.last + 1
	}
	left := e.last > 0 && out.empty() && !e.known // EVENTS held something, and holds nothing now
	since, published := e.since, 0
	text, err := e.deps.Client.List(ctx, kube.Events, func(o runtime.Object) error {
		ev, ok := o.(*corev1.Event)
		if !ok {
			e.skip(skipUnreadable, 1, fmt.Errorf("object of type %T among events", o))
			return nil
		}
		version, err := versionOf(o)
		if err != nil {
			e.skip(skipUnreadable, 1, err)
			return nil
		}
		before, isOut := out.get(string(ev.UID))
		if e.known && version <= e.upto || isOut && before.version == version {
			return nil
		}
		if left && passed(ev, since) {
			return nil
		}
		if err := e.publish(ctx, ev, proto.EventPosition{Upto: e.upto, Begun: e.begun}); err != nil {
			return err
		}
		published++
		if times := times(ev); (isOut || e.known) && times > before.times+1 {
			e.skip(skipSuperseded, times-before.times-1, nil)
		}
		return nil
	})
	if err != nil {
		return err
	}
	version, err := parseVersion(text)
	if err != nil {
		return err
	}
	e.deps.Log.Info("events are listed", "cluster", e.cfg.Cluster, "why", why, "published", published, "version", version)
	e.known, e.upto, e.begun = true, version, 0
	return nil
}

// passed reports whether an event happened before EVENTS was last written. Where EVENTS holds nothing
// any more, because that was long ago or somebody emptied it, such an event was out.
func passed(ev *corev1.Event, last time.Time) bool {
	var p proto.Event
	return convert(ev, &p) == nil && !p.Time().After(last)
}

// writeError is an error of EVENTS, not of the API server.
type writeError struct{ err error }

func (w writeError) Error() string { return w.err.Error() }
func (w writeError) Unwrap() error { return w.err }

// publish appends one state of an event to EVENTS.
func (e *Events) publish(ctx context.Context, o *corev1.Event, at proto.EventPosition) error {
	ev := proto.Event{Cluster: e.cfg.Cluster, Position: at}
	if err := convert(o, &ev); err != nil {
		e.skip(skipUnreadable, 1, err)
		return nil
	}
	if ev.Bound(); ev.Shortened {
		e.deps.Telemetry.shortened()
	}
	if err := e.wait(ctx); err != nil {
		return err
	}
	data, err := e.enc.Event(&ev)
	if err != nil {
		e.skip(skipUnreadable, 1, err)
		return nil
	}
	ack, err := e.deps.Bus.Append(ctx, bus.Message{Subject: bus.EventsSubject(e.cfg.Cluster, ev.Namespace), Stream: bus.EventsStream(e.cfg.Cluster),
		ID: ev.ID(), Data: data}, e.last)
	switch {
	case errors.Is(err, bus.ErrTooLarge), errors.Is(err, bus.ErrRefused):
		e.skip(skipRefused, 1, err)
		return nil
	case err != nil:
		return writeError{err}
	case ack.Duplicate: // it is out already
		e.deps.Telemetry.repeated()
		return nil
	}
	e.last, e.since = ack.Seq, time.Now()
	e.deps.Telemetry.published(ev.Time())
	return nil
}

// wait keeps to the rate.
func (e *Events) wait(ctx context.Context) error {
	if e.limit.Allow() {
		return nil
	}
	began := time.Now()
	defer func() { e.deps.Telemetry.throttled(time.Since(began)) }()
	return e.limit.Wait(ctx)
}

// skip counts states that are not published, and says so where it is somebody's fault.
func (e *Events) skip(why string, n int32, err error) {
	e.deps.Telemetry.skip(why, n)
	if err != nil {
		e.deps.Log.Warn("event is left out", "cluster", e.cfg.Cluster, "why", why, "err", err)
	}
}
