package receive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/otlp"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var quiet = slog.New(slog.DiscardHandler)

// store is a Prometheus' database behind one of its own handlers.
type store struct {
	t   *testing.T
	db  *tsdb.DB
	url string
}

// openDatabase opens a database that takes samples as old as given out of order.
func openDatabase(t *testing.T, outOfOrder time.Duration) *tsdb.DB {
	t.Helper()
	options := tsdb.DefaultOptions()
	options.OutOfOrderTimeWindow = outOfOrder.Milliseconds()
	db, err := tsdb.Open(t.TempDir(), quiet, prometheus.NewRegistry(), options, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// startStore starts one behind the handler of OTLP, with resource attributes as labels.
func startStore(t *testing.T, outOfOrder time.Duration) *store {
	t.Helper()
	db := openDatabase(t, outOfOrder)
	cfg := config.DefaultConfig
	cfg.OTLPConfig.PromoteAllResourceAttributes = true
	handler := remote.NewOTLPWriteHandler(quiet, prometheus.NewRegistry(), db, func() config.Config { return cfg }, remote.OTLPOptions{LookbackDelta: 5 * time.Minute})
	mux := http.NewServeMux()
	mux.Handle("POST /api/v1/otlp/v1/metrics", handler)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return &store{t, db, server.URL}
}

// samples is what the store holds of each series.
func (s *store) samples() map[string]int {
	s.t.Helper()
	q, err := s.db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		s.t.Fatal(err)
	}
	defer q.Close()
	all := map[string]int{}
	set := q.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
	for set.Next() {
		for it := set.At().Iterator(nil); it.Next() != chunkenc.ValNone; {
			all[set.At().Labels().String()]++
		}
	}
	if err := set.Err(); err != nil {
		s.t.Fatal(err)
	}
	return all
}

// now is the tick of number 0: fresh, since stores take nothing of the future.
var now = time.Now().Truncate(15 * time.Second).Add(-10 * time.Minute)

// batch is what nodes say at tick number n.
func batch(n int, nodes ...string) (all []sink.Message) {
	for _, name := range nodes {
		r := sinktest.Node(name, 8, 2, n)
		by := int64(now.Add(time.Duration(n) * 15 * time.Second).Sub(r.Tick.Time()))
		move := func(c *proto.Columns, rows int) {
			for row := range rows {
				for _, f := range []proto.Field{proto.FieldStart, proto.GroupCPU.Time(), proto.GroupMemory.Time(), proto.GroupNetwork.Time(), proto.GroupDevice.Time()} {
					if at, ok := c.Get(row, f); ok {
						c.Set(row, f, at+by)
					}
				}
			}
		}
		move(&r.Values, len(r.Entities))
		move(&r.DeviceValues, len(r.Devices))
		r.Tick, r.Scraped = r.Tick.Add(int(by/1e6), time.Millisecond), r.Scraped+by
		all = append(all, sink.Message{Rollup: r, ID: fmt.Sprint(name, n)})
	}
	return all
}

// build makes the sink of a target for cluster default, and closes it when the test ends.
func build(t *testing.T, kind sink.Kind, target string) sink.Sink {
	t.Helper()
	parsed, err := sink.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	s, err := kind.New(parsed, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestPrometheusTakesOTLP: its own handler holds every sample once, also where batches come again, under the names that
// its users know.
func TestPrometheusTakesOTLP(t *testing.T) {
	for name, outOfOrder := range map[string]time.Duration{"in order alone": 0, "with a window": time.Hour} {
		t.Run(name, func(t *testing.T) {
			p := startStore(t, outOfOrder)
			s := build(t, otlp.Kind, "otlp:"+p.url+"/api/v1/otlp")
			for n := range 3 {
				if err := s.Write(t.Context(), batch(n, "a", "b")); err != nil {
					t.Fatal(err)
				}
			}
			// After a kill -9 the last ones come again, with one that is new among them.
			again := append(batch(2, "a"), append(batch(3, "b"), batch(1, "a")...)...)
			err := s.Write(t.Context(), again)
			var partial *sink.Partial
			if err != nil && (!errors.As(err, &partial) || partial.Err != nil || len(partial.Refused) > 0) {
				t.Fatalf("got %v, want nothing but samples that are there already", err)
			}
			families := map[string]int{}
			for series, n := range p.samples() {
				want := 3
				if strings.Contains(series, `k8s_node_name="b"`) {
					want = 4
				}
				if strings.Contains(series, `__name__="target_info"`) {
					continue
				}
				if n != want {
					t.Fatalf("%d samples, want %d: %s", n, want, series)
				}
				metric, _, _ := strings.Cut(strings.TrimPrefix(series, `{__name__="`), `"`)
				families[metric]++
			}
			for metric, want := range map[string]int{
				"container_cpu_time_seconds_total": 2 * 8 * 2, "k8s_pod_cpu_time_seconds_total": 2 * 8, "k8s_pod_network_io_bytes_total": 2 * 8 * 2, "k8s_node_memory_working_set_bytes": 2,
				"k8s_pod_volume_usage_bytes": 2 * 8 * 2,
			} {
				if families[metric] != want {
					t.Errorf("%d series of %s, want %d; there are %v", families[metric], metric, want, families)
				}
			}
		})
	}
}
