package receive

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/storage/remote"

	promsink "github.com/heapstream/heapstream/sinks/prometheus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// startReceiver starts one behind the handler of remote write, which speaks these versions.
func startReceiver(t *testing.T, outOfOrder time.Duration, speaks ...remoteapi.WriteMessageType) *store {
	t.Helper()
	db := openDatabase(t, outOfOrder)
	server := httptest.NewServer(remote.NewWriteHandler(quiet, prometheus.NewRegistry(), db, speaks, false, false, true))
	t.Cleanup(server.Close)
	return &store{t, db, server.URL}
}

// TestPrometheusTakesRemoteWrite: its own handlers of both versions hold every sample once, also where batches come
// again.
func TestPrometheusTakesRemoteWrite(t *testing.T) {
	first, second := remoteapi.WriteV1MessageType, remoteapi.WriteV2MessageType
	for name, speaks := range map[string][]remoteapi.WriteMessageType{"version 1": {first}, "version 2": {second}, "both": {first, second}} {
		for window, outOfOrder := range map[string]time.Duration{"in order alone": 0, "with a window": time.Hour} {
			t.Run(name+", "+window, func(t *testing.T) {
				p := startReceiver(t, outOfOrder, speaks...)
				s := build(t, promsink.Kind, "prometheus:"+p.url+"?batchsize=300")
				write := func(b []sink.Message) {
					t.Helper()
					if err := s.Write(t.Context(), b); err != nil {
						var partial *sink.Partial
						if errors.As(err, &partial) && len(partial.Refused) > 0 {
							t.Fatalf("%v: %+v", err, partial.Refused[0])
						}
						t.Fatal(err)
					}
				}
				for n := range 3 {
					write(batch(n, "a", "b"))
				}
				// After a kill -9 the last ones come again, with one that is new among them.
				write(append(batch(1, "a", "b"), append(batch(2, "a", "b"), batch(3, "b")...)...))
				families := map[string]int{}
				for series, n := range p.samples() {
					want := 3
					if strings.Contains(series, `node="b"`) {
						want = 4
					}
					if n != want {
						t.Fatalf("%d samples, want %d: %s", n, want, series)
					}
					metric, _, _ := strings.Cut(strings.TrimPrefix(series, `{__name__="`), `"`)
					families[metric]++
				}
				for metric, want := range map[string]int{
					"kubernetes_container_cpu_usage_seconds_total": 2 * 8 * 2, "kubernetes_pod_cpu_usage_seconds_total": 2 * 8,
					"kubernetes_node_memory_working_set_bytes": 2, "kubernetes_pod_volume_usage_bytes": 2 * 8 * 2, "kubernetes_pod_network_receive_bytes_total": 2 * 8,
				} {
					if families[metric] != want {
						t.Errorf("%d series of %s, want %d; there are %v", families[metric], metric, want, fmt.Sprint(families))
					}
				}
			})
		}
	}
}
