package worker

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Telemetry is what workers say about themselves, by sink and cluster. The cluster is empty where letters
// are meant that were driven again.
type Telemetry struct {
	up              *prometheus.GaugeVec
	written         *prometheus.CounterVec
	retried         *prometheus.CounterVec
	refusedMessages *prometheus.CounterVec
	refusedSamples  *prometheus.CounterVec
	late            *prometheus.CounterVec
	undecodable     *prometheus.CounterVec
	dead            *prometheus.CounterVec
	lost            *prometheus.CounterVec
	took            *prometheus.HistogramVec
	pending         *prometheus.GaugeVec
	paused          *prometheus.GaugeVec
	oldest          *prometheus.GaugeVec
}

// NewTelemetry registers the telemetry of all workers of a process. It panics where it was registered
// before, as the registry does.
func NewTelemetry(r prometheus.Registerer) *Telemetry {
	by := []string{"sink", "cluster"}
	counter := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heapstream_sink_" + name, Help: help}, by)
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "heapstream_sink_" + name, Help: help}, by)
		r.MustRegister(g)
		return g
	}
	t := &Telemetry{
		up:              gauge("up", "1 if the last write was accepted, 0 if it was not."),
		written:         counter("messages_written_total", "Messages, each a rollup or an event, written and acknowledged."),
		retried:         counter("writes_retried_total", "Writes that failed and were tried again."),
		refusedMessages: counter("messages_refused_total", "Messages refused for good as a whole."),
		refusedSamples:  counter("samples_refused_total", "Samples refused for good, of rollups written otherwise."),
		late:            counter("samples_late_total", "Samples older than the destination keeps."),
		undecodable:     counter("messages_undecodable_total", "Messages that are neither a rollup nor an event."),
		dead:            counter("dead_total", "Messages put to DEAD."),
		lost:            counter("lost_total", "Messages that left the stream before they were written."),
		pending:         gauge("pending", "Messages not yet written."),
		paused:          gauge("paused", "1 while an operator has paused the sink, else 0."),
		oldest:          gauge("oldest_pending_seconds", "Age of the oldest message not yet written."),
	}
	t.took = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "heapstream_sink_write_seconds", Help: "How long one write took.",
		Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 30},
	}, by)
	r.MustRegister(t.took)
	return t
}

// feedTelemetry is the telemetry of one sink and cluster.
type feedTelemetry struct {
	t                                                                                *Telemetry
	by                                                                               []string
	up, pending, oldest, paused                                                      prometheus.Gauge
	written, retried, refusedMessages, refusedSamples, late, undecodable, dead, lost prometheus.Counter
	took                                                                             prometheus.Observer

	mu   sync.Mutex
	gone uint64 // lost since the last delivery, as counted already
}

func (t *Telemetry) feed(sink, cluster string) *feedTelemetry {
	by := []string{sink, cluster}
	return &feedTelemetry{
		t: t, by: by, up: t.up.WithLabelValues(by...), pending: t.pending.WithLabelValues(by...), oldest: t.oldest.WithLabelValues(by...), paused: t.paused.WithLabelValues(by...),
		written: t.written.WithLabelValues(by...), retried: t.retried.WithLabelValues(by...),
		refusedMessages: t.refusedMessages.WithLabelValues(by...), refusedSamples: t.refusedSamples.WithLabelValues(by...),
		late: t.late.WithLabelValues(by...), undecodable: t.undecodable.WithLabelValues(by...), dead: t.dead.WithLabelValues(by...),
		lost: t.lost.WithLabelValues(by...), took: t.took.WithLabelValues(by...),
	}
}

// forget removes the gauges, which another process tells from now on; counters stay.
func (f *feedTelemetry) forget() {
	f.t.up.DeleteLabelValues(f.by...)
	f.t.pending.DeleteLabelValues(f.by...)
	f.t.oldest.DeleteLabelValues(f.by...)
	f.t.paused.DeleteLabelValues(f.by...)
}

func (f *feedTelemetry) pause(is bool) {
	if is {
		f.paused.Set(1)
	} else {
		f.paused.Set(0)
	}
}

func (f *feedTelemetry) lag(pending uint64, oldest time.Duration) {
	f.pending.Set(float64(pending))
	f.oldest.Set(oldest.Seconds())
}

// lose counts what is lost now and was not counted before; it returns how much that is.
func (f *feedTelemetry) lose(now uint64) (more uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now > f.gone {
		more = now - f.gone
		f.lost.Add(float64(more))
	}
	f.gone = now
	return more
}
