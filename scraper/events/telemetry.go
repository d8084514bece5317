package events

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Why states of events were not published.
const (
	skipSuperseded = "superseded" // the API server had a newer one when it was asked
	skipUnreadable = "unreadable" // no event, or without identity
	skipRefused    = "refused"    // by the bus, for good
)

// Why events were listed.
const (
	listFirst       = "first"       // EVENTS holds nothing legible
	listExpired     = "expired"     // the API server no longer has what came after the position
	listInterrupted = "interrupted" // the list before did not come to its end
	listSetBack     = "set_back"    // the API server's versions are lower than the position
)

// Telemetry is numbers about ourselves. Its nil value records nothing.
type Telemetry struct {
	lead, up, newest         prometheus.Gauge
	out, again, cut, waiting prometheus.Counter
	skipped, lists           *prometheus.CounterVec
}

// NewTelemetry registers the numbers; it fails only where something of that name is there already.
func NewTelemetry(r prometheus.Registerer) (*Telemetry, error) {
	var errs []error
	register := func(c prometheus.Collector) { errs = append(errs, r.Register(c)) }
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "heapstream_scraper_events_" + name, Help: help})
		register(g)
		return g
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "heapstream_scraper_events_" + name, Help: help})
		register(c)
		return c
	}
	vec := func(name, help string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heapstream_scraper_events_" + name, Help: help}, []string{"reason"})
		register(v)
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	t := &Telemetry{
		lead:    gauge("leading", "1 while this process publishes events."),
		up:      gauge("up", "1 while events can be read and published."),
		newest:  gauge("newest_timestamp_seconds", "When the newest event that was published happened, Unix time."),
		out:     counter("published_total", "States of events published."),
		again:   counter("repeated_total", "States of events that were out already when they were published."),
		cut:     counter("shortened_total", "States of events that were too large to be published whole."),
		waiting: counter("throttled_seconds_total", "How long events waited because of the bound on their rate."),
		skipped: vec("skipped_total", "States of events that were not published.", skipSuperseded, skipUnreadable, skipRefused),
		lists:   vec("lists_total", "How often all events were listed.", listFirst, listExpired, listInterrupted, listSetBack),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register telemetry of events: %w", err)
	}
	return t, nil
}

func set(g prometheus.Gauge, yes bool) {
	if yes {
		g.Set(1)
	} else {
		g.Set(0)
	}
}

func (t *Telemetry) leading(yes bool) {
	if t != nil {
		set(t.lead, yes)
	}
}

func (t *Telemetry) well(yes bool) {
	if t != nil {
		set(t.up, yes)
	}
}

func (t *Telemetry) published(at time.Time) {
	if t != nil {
		t.out.Inc()
		if !at.IsZero() {
			t.newest.Set(float64(at.UnixMilli()) / 1e3)
		}
	}
}

func (t *Telemetry) repeated() {
	if t != nil {
		t.again.Inc()
	}
}

func (t *Telemetry) shortened() {
	if t != nil {
		t.cut.Inc()
	}
}

func (t *Telemetry) throttled(d time.Duration) {
	if t != nil {
		t.waiting.Add(d.Seconds())
	}
}

func (t *Telemetry) skip(why string, n int32) {
	if t != nil {
		t.skipped.WithLabelValues(why).Add(float64(n))
	}
}

func (t *Telemetry) listed(why string) {
	if t != nil {
		t.lists.WithLabelValues(why).Inc()
	}
}
