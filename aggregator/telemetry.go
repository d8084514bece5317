package aggregator

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/aggregator/ticks"
	"github.com/heapstream/heapstream/proto"
)

// telemetry is numbers about ourselves, by stage.
type telemetry struct {
	// reading
	batches *prometheus.CounterVec // cluster, verdict
	dead    *prometheus.CounterVec // cluster
	unsaved prometheus.Counter
	gaps    *prometheus.CounterVec // cluster
	// ticks
	ticks    *prometheus.CounterVec // cluster
	missing  *prometheus.GaugeVec   // cluster
	standIns *prometheus.GaugeVec   // cluster
	rivals   *prometheus.GaugeVec   // cluster
	unrated  *prometheus.GaugeVec   // cluster, of
	// writing
	publish *prometheus.HistogramVec // scope
	skipped *prometheus.CounterVec   // cluster
	leftOut *prometheus.CounterVec   // cluster
	marks   *prometheus.CounterVec   // cluster
	// owning
	replay *prometheus.HistogramVec // cluster
	fenced *prometheus.CounterVec   // cluster
	owned  *prometheus.GaugeVec     // cluster

	now    func() time.Time
	mu     sync.Mutex
	closed map[string]proto.Tick // newest closed tick of every cluster owned
}

func newTelemetry(reg prometheus.Registerer, now func() time.Time) (*telemetry, error) {
	const ns = "heapstream_aggregator_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: ns + name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: ns + name, Help: help, Buckets: buckets}, labels)
	}
	t := &telemetry{
		batches:  counter("batches_total", "Batches read, by what became of them: taken, late, or refused as ahead, too-old, not-newer.", "cluster", "verdict"),
		dead:     counter("dead_total", "Messages of SAMPLES, and last ones of ROLLUPS, that could not be used and went to DEAD.", "cluster"),
		unsaved:  prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "dead_unsaved_total", Help: "Of those, the ones that could not be stored in DEAD."}),
		gaps:     counter("gaps_total", "Times that messages had left SAMPLES before they were read.", "cluster"),
		ticks:    counter("ticks_closed_total", "Ticks closed.", "cluster"),
		missing:  gauge("nodes_missing", "Nodes expected and silent at the newest closed tick.", "cluster"),
		standIns: gauge("stand_ins", "Entities at the newest closed tick of which older samples stand in.", "cluster"),
		rivals:   gauge("pods_contested", "Pods at the newest closed tick that are in no sum, as a newer one of the same name or UID is.", "cluster"),
		unrated:  gauge("without_rate", "Pods and running containers in the sums of the newest closed tick without CPU use.", "cluster", "of"),
		publish: histogram("publish_seconds", "Time until a rollup was in its lane, for totals until all before were acknowledged, by scope.",
			[]float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5}, "scope"),
		skipped: counter("already_out_total", "Rollups not published because an earlier owner had.", "cluster"),
		leftOut: counter("left_out_total", "Values left out of rollups that would have been too large.", "cluster"),
		marks:   counter("clock_marks_total", "Clock marks published because a tick waited for silent nodes.", "cluster"),
		replay:  histogram("replay_seconds", "Time from taking a cluster to having caught up with its SAMPLES.", []float64{.01, .05, .1, .5, 1, 2, 5, 10, 30, 60}, "cluster"),
		fenced:  counter("fenced_total", "Times that another owner had taken the cluster while we wrote.", "cluster"),
		owned:   gauge("clusters_owned", "1 while the cluster is ours.", "cluster"),
		now:     now, closed: map[string]proto.Tick{},
	}
	for _, c := range []prometheus.Collector{t.batches, t.dead, t.unsaved, t.gaps, t.ticks, t.missing, t.standIns, t.rivals, t.unrated, t.publish, t.skipped, t.leftOut, t.marks, t.replay, t.fenced, t.owned, newest{t}} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register telemetry: %w", err)
		}
	}
	return t, nil
}

// newest shows the age of the newest closed tick when asked.
type newest struct{ t *telemetry }

var newestDesc = prometheus.NewDesc("heapstream_aggregator_newest_tick_age_seconds", "Age of the newest closed tick of a cluster that is ours.", []string{"cluster"}, nil)

func (n newest) Describe(ch chan<- *prometheus.Desc) { ch <- newestDesc }

func (n newest) Collect(ch chan<- prometheus.Metric) {
	n.t.mu.Lock()
	defer n.t.mu.Unlock()
	for cluster, tick := range n.t.closed {
		ch <- prometheus.MustNewConstMetric(newestDesc, prometheus.GaugeValue, n.t.now().Sub(tick.Time()).Seconds(), cluster)
	}
}

// took notes a closed tick.
func (t *telemetry) took(cluster string, tick proto.Tick, totals *proto.Totals) {
	t.mu.Lock()
	t.closed[cluster] = tick
	t.mu.Unlock()
	t.ticks.WithLabelValues(cluster).Inc()
	t.missing.WithLabelValues(cluster).Set(float64(totals.Expected) - float64(min(totals.Expected, totals.Reported)))
	t.standIns.WithLabelValues(cluster).Set(float64(totals.StandIns))
	t.rivals.WithLabelValues(cluster).Set(float64(totals.Contested))
	t.unrated.WithLabelValues(cluster, "pods").Set(float64(totals.PodsWithoutRate))
	t.unrated.WithLabelValues(cluster, "containers").Set(float64(totals.ContainersWithoutRate))
}

// owns notes that a cluster became ours, and returns what notes that it is not any more.
func (t *telemetry) owns(cluster string) (done func()) {
	t.owned.WithLabelValues(cluster).Set(1)
	return func() {
		t.mu.Lock()
		delete(t.closed, cluster)
		t.mu.Unlock()
		t.owned.WithLabelValues(cluster).Set(0)
		t.missing.DeleteLabelValues(cluster)
		t.standIns.DeleteLabelValues(cluster)
		t.rivals.DeleteLabelValues(cluster)
		t.unrated.DeletePartialMatch(prometheus.Labels{"cluster": cluster})
	}
}

// hasClosed reports whether a tick of a cluster was closed since it became ours.
func (t *telemetry) hasClosed(cluster string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed[cluster] != 0
}

func (t *telemetry) batch(cluster string, v ticks.Verdict) {
	t.batches.WithLabelValues(cluster, v.String()).Inc()
}
