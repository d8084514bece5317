package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/consumer/consumererror"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/otlp"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// collector is an OpenTelemetry Collector's receiver of OTLP with a pipeline that ends in memory.
type collector struct {
	grpc, http string // values of --sink
	metrics    *consumertest.MetricsSink
	logs       *consumertest.LogsSink
	fails      atomic.Pointer[error] // what the pipeline answers instead
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{metrics: new(consumertest.MetricsSink), logs: new(consumertest.LogsSink)}
	factory := otlpreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig().(*otlpreceiver.Config)
	grpcAddr, httpAddr := bustest.FreeAddr(t), bustest.FreeAddr(t)
	cfg.GRPC.GetOrInsertDefault().NetAddr.Endpoint = grpcAddr
	cfg.HTTP.GetOrInsertDefault().ServerConfig.NetAddr.Endpoint = httpAddr
	pipeline, err := consumer.NewMetrics(func(ctx context.Context, md pmetric.Metrics) error {
		if err := c.fails.Load(); err != nil {
			return *err
		}
		return c.metrics.ConsumeMetrics(ctx, md)
	})
	if err != nil {
		t.Fatal(err)
	}
	settings := receivertest.NewNopSettings(factory.Type())
	metrics, err := factory.CreateMetrics(t.Context(), settings, cfg, pipeline)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := factory.CreateLogs(t.Context(), settings, cfg, c.logs)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []component.Component{metrics, logs} { // one server, which both share
		if err := r.Start(t.Context(), componenttest.NewNopHost()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := r.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	c.grpc, c.http = "otlp:grpc://"+grpcAddr, "otlp:http://"+httpAddr
	return c
}

// otlpSink builds a sink of rollups or events.
func otlpSink(t *testing.T, target string, events bool) sink.Sink {
	t.Helper()
	parsed, err := sink.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	build := otlp.Kind.New
	if events {
		build = otlp.Kind.NewEvents
	}
	s, err := build(parsed, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

func rollupBatch(nodes, pods int) (batch []sink.Message) {
	for n := range nodes {
		r := sinktest.Node(fmt.Sprintf("node-%d", n), pods, 2, 1)
		batch = append(batch, sink.Message{Rollup: r, ID: r.Name})
	}
	return batch
}

// TestCollectorTakesOTLP: a Collector's receiver has every sample once, over both protocols and all compressions, and
// what its pipeline refuses for good or for now is told apart.
func TestCollectorTakesOTLP(t *testing.T) {
	c := startCollector(t)
	for name, target := range map[string]string{
		"grpc": c.grpc, "grpc plain": c.grpc + "?compression=none", "http": c.http, "http plain": c.http + "?compression=none&extended=true&labels=true&rates=true",
	} {
		t.Run(name, func(t *testing.T) {
			c.metrics.Reset()
			s := otlpSink(t, target, false)
			batch := rollupBatch(3, 60)
			if err := s.Write(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			seen, counters := map[string]int{}, 0
			for _, md := range c.metrics.AllMetrics() {
				for _, rm := range md.ResourceMetrics().All() {
					resource := identity(rm.Resource().Attributes())
					for _, m := range rm.ScopeMetrics().At(0).Metrics().All() {
						points := m.Gauge().DataPoints
						if m.Type() == pmetric.MetricTypeSum {
							points = m.Sum().DataPoints
						}
						for _, p := range points().All() {
							seen[resource+m.Name()+identity(p.Attributes())+p.Timestamp().String()]++
							if m.Type() == pmetric.MetricTypeSum && m.Sum().IsMonotonic() && p.StartTimestamp() > 0 {
								counters++
							}
						}
					}
				}
			}
			for name, n := range seen {
				if n != 1 {
					t.Fatalf("%d times: %s", n, name)
				}
			}
			// A pod has two volumes and four network counters beside what its containers have.
			if pods := 3 * 60; len(seen) < pods*(2*10+15) || counters < pods*(2*3+7) {
				t.Fatalf("%d samples, %d of counters, are too few for %d pods of 2 containers", len(seen), counters, pods)
			}
		})
	}
	for name, target := range map[string]string{"grpc": c.grpc, "http": c.http} {
		t.Run(name+", refused", func(t *testing.T) {
			s := otlpSink(t, target, false)
			passing := errors.New("queue is full")
			c.fails.Store(&passing)
			defer c.fails.Store(nil)
			err := s.Write(t.Context(), rollupBatch(2, 1))
			var partial *sink.Partial
			if err == nil || errors.As(err, &partial) || sink.IsPermanent(err) {
				t.Errorf("a full queue: got %v, want a passing error", err)
			}
			lasting := consumererror.NewPermanent(errors.New("no such tenant"))
			c.fails.Store(&lasting)
			if err := s.Write(t.Context(), rollupBatch(2, 1)); !errors.As(err, &partial) || len(partial.Refused) == 0 || partial.Err != nil {
				t.Errorf("a lasting refusal: got %v, want refused samples", err)
			}
			c.fails.Store(nil)
			if err := s.Write(t.Context(), rollupBatch(2, 1)); err != nil {
				t.Error(err)
			}
		})
		t.Run(name+", events", func(t *testing.T) {
			c.logs.Reset()
			s := otlpSink(t, target, true)
			if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event(), sinktest.NewStyleEvent())); err != nil {
				t.Fatal(err)
			}
			if n := c.logs.LogRecordCount(); n != 2 {
				t.Fatalf("%d log records, want 2", n)
			}
			record := c.logs.AllLogs()[0].ResourceLogs().At(0).ScopeLogs().At(0).LogRecords().At(0)
			if uid, _ := record.Attributes().Get("log.record.uid"); record.EventName() != "k8s.event" || uid.Str() != "ev-uid/124" || record.Body().Str() != "Killing container" {
				t.Errorf("got %s %s %s", record.EventName(), uid.Str(), record.Body().Str())
			}
		})
	}
}

// identity is a set of attributes as a text.
func identity(m pcommon.Map) string { return fmt.Sprint(m.AsRaw()) + " " }
