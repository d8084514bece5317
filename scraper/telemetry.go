package scraper

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// telemetry is numbers about ourselves, by stage: scrape, then publish. Labels are reasons, never
// nodes.
type telemetry struct {
	scrapes  *prometheus.CounterVec
	duration prometheus.Histogram
	bytes    *prometheus.CounterVec
	leftOut  prometheus.Counter
	skipped  prometheus.Counter

	published prometheus.Counter
	late      prometheus.Counter
	dropped   *prometheus.CounterVec

	newest atomic.Int64 // newest tick that was published, Unix ms
	nodes  atomic.Int64
	failed atomic.Int64 // nodes whose last scrape failed
}

// Why batches were dropped.
const (
	dropOverflow = "backlog_full"
	dropRefused  = "refused"
	dropStopped  = "stopped"
)

func newTelemetry(r prometheus.Registerer, now func() time.Time, backlog func() int64) (*telemetry, error) {
	const prefix = "heapstream_scraper_"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	t := &telemetry{
		scrapes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "scrapes_total", Help: "Scrapes of kubelets, by result: ok, or why not."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + "scrape_duration_seconds", Help: "Time from asking a kubelet to the encoded batch.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}),
		bytes:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "bytes_total", Help: "Bytes of kubelets' answers and of batches made from them."}, []string{"of"}),
		leftOut:   counter("values_left_out_total", "Rows and values left out of batches: wrong in the answer, or beyond the caps."),
		skipped:   counter("scrapes_skipped_total", "Scrapes not begun because that node's last one was still under way, or the process was held up for a whole tick."),
		published: counter("batches_published_total", "Batches that the bus has stored."),
		late:      counter("batches_late_total", "Batches stored later than the grace of their tick."),
		dropped:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "batches_dropped_total", Help: "Batches that never reached the bus, by reason."}, []string{"reason"}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help}, f)
	}
	t.scrapes.WithLabelValues("ok")
	for _, reason := range kubelet.Reasons() {
		t.scrapes.WithLabelValues(string(reason))
	}
	for _, of := range []string{"answers", "batches"} {
		t.bytes.WithLabelValues(of)
	}
	for _, reason := range []string{dropOverflow, dropRefused, dropStopped} {
		t.dropped.WithLabelValues(reason)
	}
	var errs []error
	for _, c := range []prometheus.Collector{t.scrapes, t.duration, t.bytes, t.leftOut, t.skipped, t.published, t.late, t.dropped,
		gauge("newest_tick_age_seconds", "Age of the newest tick of which a batch was stored; 0 before the first.", func() float64 {
			newest := t.newest.Load()
			if newest == 0 {
				return 0
			}
			return now().Sub(proto.Tick(newest).Time()).Seconds()
		}),
		gauge("nodes", "Nodes that are scraped.", func() float64 { return float64(t.nodes.Load()) }),
		gauge("nodes_failing", "Nodes whose last scrape failed.", func() float64 { return float64(t.failed.Load()) }),
		gauge("backlog_bytes", "Bytes of batches that wait for the bus.", func() float64 { return float64(backlog()) }),
	} {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register telemetry of the scraper: %w", err)
	}
	return t, nil
}
