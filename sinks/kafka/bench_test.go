package kafka

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// BenchmarkWrite writes to brokers that acknowledge and keep nothing.
func BenchmarkWrite(b *testing.B) {
	for _, format := range []string{"json", "msgpack"} {
		b.Run("format="+format, func(b *testing.B) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(4, "heapster-metrics"))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(cluster.Close)
			var bytes atomic.Int64
			cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:staticcheck // kfake's signature
				cluster.KeepControl()
				p := req.(*kmsg.ProduceRequest)
				for _, rt := range p.Topics {
					for _, rp := range rt.Partitions {
						bytes.Add(int64(len(rp.Records)))
					}
				}
				return answer(p, 0), nil, true
			})
			suite.Bench(b, "kafka:?format="+format+"&brokers="+strings.Join(cluster.ListenAddrs(), "&brokers="), bytes.Load)
		})
	}
}
