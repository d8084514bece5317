package standalone

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
)

// EventerCommand is the program eventer: `heapstream eventer`, or heapstream under the name eventer.
func EventerCommand() *daemon.Command {
	cfg := DefaultEventerConfig()
	return cfg.command()
}

// command reads the command line into c.
func (c *EventerConfig) command() *daemon.Command {
	return &daemon.Command{
		Name:  "eventer",
		Short: "Writes what happens in a Kubernetes cluster to any number of databases and queues.",
		Long: "Takes the command line of Heapster's eventer; one dash or two begin a flag. What differs from it:\n" +
			"  - Events are written as they come; --frequency is how often eventer looks at itself.\n" +
			"  - Every event is written at least in its newest state, and none twice, across restarts of\n" +
			"    eventer, of the API server and of a watch. Updates that the API server no longer had are counted.\n" +
			"  - At the first start the events that the API server still has are written too.\n" +
			"  - A sink that is down gets what it missed, for 24 hours; a sink that is wrongly configured is refused\n" +
			"    at start. Without a --sink events are read and written nowhere, with a warning.\n" +
			"  - All this lies in --data-dir; without one, a restart begins anew.",
		Process:    c.Process(),
		SingleDash: true,
		Flags:      c.Flags,
		Validate:   c.Validate,
		Run: func(ctx context.Context, d daemon.Deps) error {
			e, err := NewEventer(*c, Deps{Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout})
			if err != nil {
				return err
			}
			return e.Run(ctx)
		},
	}
}

// Eventer reads the events of a cluster and writes them to sinks: the scraper's role events and sinks of events on a
// bus of their own, and eventer's HTTP.
type Eventer struct {
	*local
	cfg  EventerConfig
	deps Deps
	tel  *eventerTelemetry

	mu      sync.Mutex
	flushed time.Time // when it was seen last that EVENTS answers; when Run began before
	why     error     // why it did not at the last look; nil if it did

	seen uint64 // sequence of the last message of EVENTS at the last look, of the goroutine that looks
}

// NewEventer checks the configuration; it opens nothing. SecureListener of the deps is not used.
func NewEventer(cfg EventerConfig, deps Deps) (*Eventer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil || deps.Registry == nil || deps.Health == nil {
		return nil, errors.New("eventer: Deps needs Log, Registry and Health")
	}
	tel, err := newEventerTelemetry(deps.Registry)
	if err != nil {
		return nil, err
	}
	for _, w := range cfg.warnings() {
		deps.Log.Warn(w)
	}
	l, err := newLocal(cfg.Bus, cfg.topology(), deps.Log)
	if err != nil {
		return nil, err
	}
	return &Eventer{local: l, cfg: cfg, deps: deps, tel: tel}, nil
}

// throwawayDir is the name of a directory that nobody has.
func throwawayDir() string {
	return filepath.Join(os.TempDir(), "heapstream-eventer-"+rand.Text()[:12])
}

// Run works until ctx ends or a part fails, and returns after everything has ended and the store is closed: nil on a
// wished stop, otherwise the first cause.
func (e *Eventer) Run(ctx context.Context) error {
	runtime.GOMAXPROCS(procs(e.cfg.MaxProcs))
	listener := e.deps.Listener
	if listener == nil {
		var err error
		if listener, err = net.Listen("tcp", e.cfg.address()); err != nil {
			return fmt.Errorf("serve health and metrics (--healthz-ip, --healthz-port): %w", err)
		}
	}
	defer listener.Close() // the server has closed it, unless there was none
	if dir := e.cfg.Bus.StoreDir; e.cfg.throwaway {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make a directory for the time of this process: %w; name one that lasts with --data-dir", err)
		}
		defer func() {
			if err := os.RemoveAll(dir); err != nil {
				e.log.Warn("directory of this process remains", "err", err)
			}
		}()
		e.log.Warn("no --data-dir is given: this process keeps events in a directory that is gone with it, and the next one writes again what "+
			"the API server still has, an hour by default", "store", dir)
	}
	defer e.server.Shutdown()
	if err := e.start(ctx); err != nil {
		return err
	}
	var conns [3]*bus.Conn
	for i, name := range []string{"eventer", "sinks", "scraper"} {
		conn, err := e.connect(ctx, name)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns[i] = conn
	}
	state, err := conns[0].StreamState(ctx, bus.EventsStream(e.cfg.Cluster))
	if err != nil {
		return fmt.Errorf("look at the events of cluster %q: %w", e.cfg.Cluster, err)
	}
	e.flushed, e.seen = time.Now(), state.LastSeq
	d := e.deps
	feeders, err := sinks.New(e.cfg.Sinks, sinks.Deps{Bus: conns[1], Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Out, Wrote: e.tel.wrote})
	if err != nil {
		return err
	}
	source, err := scraper.New(e.cfg.Scraper, scraper.Deps{Bus: conns[2], Log: d.Log, Registry: d.Registry, Health: d.Health})
	if err != nil {
		return err
	}
	parts := daemon.Group{Log: d.Log} // readers before writers; stopped the other way round
	parts.Add("http", func(ctx context.Context) error { return e.serve(ctx, listener) })
	parts.Add("sinks", feeders.Run)
	parts.Add("look", func(ctx context.Context) error { return e.lookNowAndThen(ctx, conns[0]) })
	parts.Add("scraper", source.Run)
	return parts.Run(ctx)
}

// lookNowAndThen looks at once and at every multiple of the frequency until ctx ends.
func (e *Eventer) lookNowAndThen(ctx context.Context, conn *bus.Conn) error {
	for {
		e.look(ctx, conn)
		next := time.Now().Truncate(e.cfg.Frequency).Add(e.cfg.Frequency)
		t := time.NewTimer(time.Until(next))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// look is what eventer's flush was to its health and telemetry: it asks EVENTS what has come since the last time.
func (e *Eventer) look(ctx context.Context, conn *bus.Conn) {
	began := time.Now()
	within, cancel := context.WithTimeout(ctx, e.cfg.Frequency)
	defer cancel()
	state, err := conn.StreamState(within, bus.EventsStream(e.cfg.Cluster))
	if ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	changed := (e.why == nil) != (err == nil)
	e.why = err
	if err == nil {
		e.flushed = began
	}
	e.mu.Unlock()
	switch {
	case err != nil && changed:
		e.log.Warn("events that are out cannot be looked at", "err", err)
	case changed:
		e.log.Info("events that are out can be looked at again")
	}
	if err == nil {
		e.tel.looked(began, time.Since(began), state.LastSeq-min(e.seen, state.LastSeq))
		e.seen = state.LastSeq
	}
}

// maxSilence is how long ago the last look may be; for rare looks three of them, since Heapster's fixed three minutes
// flapped.
const maxSilence = 3 * time.Minute

// health says why eventer is not alive, or nil. What is wrong with the API server or with a sink is none of its
// faults, and no restart would help: /readyz and the metrics tell.
func (e *Eventer) health(now time.Time) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.flushed) <= max(maxSilence, 3*e.cfg.Frequency) {
		return nil
	}
	err := fmt.Errorf("the last flush was at %s", e.flushed.UTC().Format(time.RFC3339))
	if e.why != nil {
		err = fmt.Errorf("%w: %w", err, e.why)
	}
	return err
}

// handler is eventer's HTTP, in the words of its health checks.
func (e *Eventer) handler() http.Handler {
	text := func(w http.ResponseWriter, code int, body string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body)) // a reader that has gone away needs no answer
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		_, verbose := r.URL.Query()["verbose"]
		switch err := e.health(time.Now()); {
		case err != nil:
			text(w, http.StatusInternalServerError, "[-]healthz failed: "+err.Error()+"\nhealthz check failed\n")
		case verbose:
			text(w, http.StatusOK, "[+]healthz ok\nhealthz check passed\n")
		default:
			text(w, http.StatusOK, "ok")
		}
	})
	mux.HandleFunc("/healthz/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := e.health(time.Now()); err != nil {
			text(w, http.StatusInternalServerError, "internal server error: "+err.Error()+"\n")
			return
		}
		text(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", e.deps.Health.ServeReady)
	mux.Handle("/metrics", promhttp.HandlerFor(e.deps.Registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4, DisableCompression: true,
	}))
	return mux
}

// serve answers at lis, which it closes, until ctx ends.
func (e *Eventer) serve(ctx context.Context, lis net.Listener) error {
	server := http.Server{Handler: e.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
	e.log.Info("serving health and metrics", "address", lis.Addr().String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve at %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		_ = server.Close() // small answers, but a reader that is slow; nothing is lost
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve at %s: %w", lis.Addr(), err)
	}
	return nil
}

// eventerTelemetry are eventer's own numbers, under its names. What its flush was is our look, and what its scrape was
// is what EVENTS has since the look before.
type eventerTelemetry struct {
	managed, scraped prometheus.Gauge
	events           prometheus.Counter
	scrape           prometheus.Summary
	export           *prometheus.SummaryVec
}

func newEventerTelemetry(r prometheus.Registerer) (*eventerTelemetry, error) {
	quantiles := func(name, help string) prometheus.SummaryOpts {
		return prometheus.SummaryOpts{Name: name, Help: help, Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01, 0.99: 0.001}}
	}
	t := &eventerTelemetry{
		managed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "eventer_manager_last_time_seconds", Help: "When eventer looked at itself last, Unix time."}),
		scraped: prometheus.NewGauge(prometheus.GaugeOpts{Name: "eventer_scraper_last_time_seconds", Help: "When events were counted last, Unix time."}),
		events:  prometheus.NewCounter(prometheus.CounterOpts{Name: "eventer_scraper_events_total_number", Help: "States of events taken from the API server."}),
		scrape:  prometheus.NewSummary(quantiles("eventer_scraper_duration_milliseconds", "How long it took to count events.")),
		export:  prometheus.NewSummaryVec(quantiles("eventer_exporter_duration_milliseconds", "How long one write to a sink took."), []string{"exporter"}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{t.managed, t.scraped, t.events, t.scrape, t.export} {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register telemetry of eventer: %w", err)
	}
	return t, nil
}

func (t *eventerTelemetry) looked(at time.Time, took time.Duration, events uint64) {
	t.managed.Set(float64(at.UnixMilli()) / 1e3)
	t.scraped.Set(float64(at.UnixMilli()) / 1e3)
	t.events.Add(float64(events))
	t.scrape.Observe(float64(took) / float64(time.Millisecond))
}

// exporters are the titles of sinks for which eventer had other ones than Heapster.
var exporters = map[string]string{"Log Sink": "LogSink", "kafka": "Apache Kafka Sink"}

func (t *eventerTelemetry) wrote(title string, took time.Duration) {
	if own, ok := exporters[title]; ok {
		title = own
	}
	t.export.WithLabelValues(title).Observe(float64(took) / float64(time.Millisecond))
}
