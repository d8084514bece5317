package kafka

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/heapstream/heapstream/sinks/sinktest"
)

// BenchmarkWriteEvents writes to a broker that keeps all of it, in this process.
func BenchmarkWriteEvents(b *testing.B) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "heapster-events"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cluster.Close)
	sinktest.BenchEvents(b, Kind, "kafka:?brokers="+strings.Join(cluster.ListenAddrs(), "&brokers="), nil)
}
