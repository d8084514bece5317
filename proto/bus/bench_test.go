package bus_test

import (
	"flag"
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// The tests wait for servers and leases more than they compute: several at once.
func TestMain(m *testing.M) {
	bustest.Main()
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("6") // a number it takes
	}
	goleak.VerifyTestMain(m, bustest.LeakOptions()...)
}

const benchBytes = 20 << 10

func BenchmarkPublish(b *testing.B) {
	c := bustest.Start(b).Conn(b)
	bustest.Provision(b, c, "prod")
	p := c.Publisher(bus.PublisherConfig{})
	data := make([]byte, benchBytes)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := p.Publish(b.Context(), bus.Message{Subject: node(i), ID: fmt.Sprint(i), Data: data}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkBegin(b *testing.B) {
	c := bustest.Start(b).Conn(b)
	bustest.Provision(b, c, "prod")
	p := c.Publisher(bus.PublisherConfig{})
	data := make([]byte, benchBytes)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := p.Begin(b.Context(), bus.Message{Subject: node(i), ID: fmt.Sprint(i), Data: data}); err != nil {
			b.Fatal(err)
		}
	}
	p.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkLanes(b *testing.B) {
	c := bustest.Start(b).Conn(b)
	bustest.Provision(b, c, "prod")
	own, err := c.TakeLanes(b.Context(), "prod", "me")
	must(b, err)
	defer own.Close()
	data := make([]byte, benchBytes)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		must(b, own.Publish(b.Context(), i%bus.Lanes, bus.Message{Subject: bus.TotalsSubject("prod"), ID: fmt.Sprint(i), Data: data}))
	}
	must(b, own.Flush(b.Context()))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

func BenchmarkReplay(b *testing.B) {
	c := bustest.Start(b).Conn(b)
	bustest.Provision(b, c, "prod")
	const messages = 5000
	p := c.Publisher(bus.PublisherConfig{})
	for i := range messages {
		_, err := p.Begin(b.Context(), bus.Message{Subject: node(i), ID: fmt.Sprint(i), Data: make([]byte, benchBytes)})
		must(b, err)
	}
	p.Wait()
	b.SetBytes(messages * benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		for d, err := range c.Replay(b.Context(), bus.ReplayConfig{Stream: bus.SamplesStream("prod")}) {
			must(b, err)
			if d.Pending == 0 {
				break
			}
		}
	}
	b.ReportMetric(messages*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
