package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of the telemetry server. Whoever asks is a probe or a Prometheus nearby: small questions, and
// never many at once.
const (
	readTimeout     = 5 * time.Second
	writeTimeout    = 30 * time.Second
	profileTimeout  = 2 * time.Minute // of everything, with --telemetry-profiling: a profile takes 30 s by default
	idleTimeout     = 2 * time.Minute // longer than the usual interval of a scrape, so its connection stays
	maxHeaderBytes  = 16 << 10
	maxScrapes      = 4
	shutdownTimeout = 5 * time.Second
)

type telemetryServer struct {
	http http.Server
}

func newTelemetryServer(cfg Config, d Deps) *telemetryServer {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", d.Health.ServeLive)
	mux.HandleFunc("GET /readyz", d.Health.ServeReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(d.Registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(d.Log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: maxScrapes,
		DisableCompression:  true, // a few kilobytes; the compressor's buffers would stay in memory
	}))
	timeout := writeTimeout
	if cfg.Profiling {
		timeout = profileTimeout
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return &telemetryServer{http: http.Server{
		Handler:           mux,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      timeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug),
	}}
}

// serve answers at lis, which it closes, until ctx ends; requests under way are given shutdownTimeout.
func (s *telemetryServer) serve(ctx context.Context, lis net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(lis) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve at %s: %w", lis.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) { // a profile under way is not worth waiting for
		err = s.http.Close()
	}
	if e := <-served; err == nil && !errors.Is(e, http.ErrServerClosed) {
		err = e
	}
	return err
}

// registerProcess registers what every process of ours shows.
func registerProcess(r prometheus.Registerer) {
	version, commit := Version()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "heapstream_build_info",
		Help:        "Always 1; the labels say what this program was built from.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "goversion": runtime.Version()},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
