package view

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// telemetry is what a view says about itself. Nothing is labelled by more than the cluster and the scope.
type telemetry struct {
	rollups     *prometheus.CounterVec   // cluster, scope
	bytes       *prometheus.CounterVec   // cluster
	undecodable *prometheus.CounterVec   // cluster
	lost        *prometheus.CounterVec   // cluster
	claims      *prometheus.CounterVec   // cluster
	delay       *prometheus.HistogramVec // cluster

	mu    sync.Mutex
	views []*View
}

var (
	descAge    = prometheus.NewDesc("heapstream_apigw_newest_tick_age_seconds", "Stream time since the newest tick in the view.", []string{"cluster"}, nil)
	descNodes  = prometheus.NewDesc("heapstream_apigw_nodes", "Nodes in the view.", []string{"cluster"}, nil)
	descFilled = prometheus.NewDesc("heapstream_apigw_window_filled", "1 when the window holds what the stream holds of it.", []string{"cluster"}, nil)
)

func newTelemetry(r prometheus.Registerer) *telemetry {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heapstream_apigw_" + name, Help: help}, labels)
	}
	t := &telemetry{
		rollups:     counter("rollups_total", "Rollups taken into the view.", "cluster", "scope"),
		bytes:       counter("rollup_bytes_total", "Bytes of the rollups read, as they travel.", "cluster"),
		undecodable: counter("undecodable_total", "Messages that could not be decoded and went to DEAD.", "cluster"),
		lost:        counter("lost_messages_total", "Messages that left the stream before they were read.", "cluster"),
		claims:      counter("pods_claimed_twice_total", "Rollups of pods that another node claims at the same time.", "cluster"),
		delay: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "heapstream_apigw_delay_seconds",
			Help:    "From reading the kubelet's answer to having it in the view, of what came live.",
			Buckets: []float64{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}}, []string{"cluster"}),
	}
	if r != nil {
		r.MustRegister(t.rollups, t.bytes, t.undecodable, t.lost, t.claims, t.delay, t)
	}
	return t
}

// Describe implements prometheus.Collector.
func (t *telemetry) Describe(ch chan<- *prometheus.Desc) {
	ch <- descAge
	ch <- descNodes
	ch <- descFilled
}

// Collect implements prometheus.Collector: what is asked of the view when somebody looks.
func (t *telemetry) Collect(ch chan<- prometheus.Metric) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range t.views {
		for _, name := range v.Clusters() {
			c, ok := v.Cluster(name)
			if !ok {
				continue
			}
			filled := 0.0
			if c.Filled() {
				filled = 1
			}
			ch <- prometheus.MustNewConstMetric(descFilled, prometheus.GaugeValue, filled, name)
			ch <- prometheus.MustNewConstMetric(descNodes, prometheus.GaugeValue, float64(len(*c.nodes.Load())), name)
			if t := c.Newest(); t != 0 {
				ch <- prometheus.MustNewConstMetric(descAge, prometheus.GaugeValue, c.Now().Sub(t.Time()).Seconds(), name)
			}
		}
	}
}

// clusterTelemetry is the telemetry of one cluster.
type clusterTelemetry struct {
	scopes                           [4]prometheus.Counter // by scope
	bytes, undecodable, lost, claims prometheus.Counter
	delay                            prometheus.Observer
}

func (t *telemetry) of(cluster string) *clusterTelemetry {
	return &clusterTelemetry{
		scopes: [4]prometheus.Counter{t.rollups.WithLabelValues(cluster, "unknown"), t.rollups.WithLabelValues(cluster, "node"),
			t.rollups.WithLabelValues(cluster, "namespace"), t.rollups.WithLabelValues(cluster, "totals")},
		bytes: t.bytes.WithLabelValues(cluster), undecodable: t.undecodable.WithLabelValues(cluster),
		lost: t.lost.WithLabelValues(cluster), claims: t.claims.WithLabelValues(cluster), delay: t.delay.WithLabelValues(cluster),
	}
}
