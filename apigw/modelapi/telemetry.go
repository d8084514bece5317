package modelapi

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// telemetry counts requests by handler (the names Heapster gave them) and status.
type telemetry struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
}

func newTelemetry(r prometheus.Registerer) *telemetry {
	t := &telemetry{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heapstream_apigw_http_requests_total",
			Help: "Requests answered on the Heapster surface."}, []string{"handler", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "heapstream_apigw_http_request_duration_seconds",
			Help:    "From reading a request to having written its answer.",
			Buckets: []float64{0.00005, 0.0002, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5}}, []string{"handler"}),
	}
	if r != nil {
		r.MustRegister(t.requests, t.took)
	}
	return t
}

func (t *telemetry) observe(handler string, status int, took time.Duration) {
	t.requests.WithLabelValues(handler, strconv.Itoa(status)).Inc()
	t.took.WithLabelValues(handler).Observe(took.Seconds())
}
