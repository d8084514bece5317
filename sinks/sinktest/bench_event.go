package sinktest

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/worker"
)

// benchEvent is the n-th event of a cluster of benchNodes nodes and benchPods pods on each, most of which tell of the
// same over and over.
func benchEvent(n int) *proto.Event {
	e := Event()
	pod, node := n%(benchNodes*benchPods), n%benchNodes
	e.Cluster = cluster
	e.UID, e.Version = fmt.Sprintf("8f14e45f-ceea-467f-a8f0-%012x", pod), uint64(1000+n) //nolint:gosec // not negative
	e.Namespace, e.Host = fmt.Sprintf("team-%02d", pod%10), fmt.Sprintf("node-%03d", node)
	e.Name = fmt.Sprintf("cart-7d9c5b6f4-%05d.17a1b2c3d4e5f607", pod)
	e.Involved.Namespace, e.Involved.Name, e.Involved.UID = e.Namespace, e.Name[:20], fmt.Sprintf("0d4e45f1-ceea-467f-a8f0-%012x", pod)
	e.Reason, e.Message, e.Type = "BackOff", "Back-off restarting failed container app in pod "+e.Involved.Name, "Warning"
	e.Last += int64(n) * int64(time.Second)
	e.Count = int32(1 + n/(benchNodes*benchPods)) //nolint:gosec // few
	return e
}

// BenchEvents is Bench for a sink of events: events/s, wireB/event as the destination counted them, and what a batch as
// the worker makes them allocates. bytes is nil for what is written to Deps.Out, or not counted.
func BenchEvents(b *testing.B, k sink.Kind, target string, bytes func() int64) {
	b.Helper()
	const batches = 8
	var out counter
	if bytes == nil {
		bytes = out.n.Load
	}
	t, err := sink.ParseTarget(target)
	if err != nil {
		b.Fatal(err)
	}
	one, err := k.NewEvents(t, sink.Deps{
		Cluster: cluster, Labels: proto.DefaultLabelFormat(), Timeout: time.Minute, Version: "test", Log: slog.New(slog.DiscardHandler), Out: &out,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := one.Close(); err != nil {
			b.Error(err)
		}
	}()
	shape := fmt.Sprintf("nodes=%d/pods=%d", benchNodes, benchPods)
	b.Run("write/"+shape, func(b *testing.B) {
		var all [batches][]sink.Message
		for n := range batches * worker.DefaultBatch {
			e := benchEvent(n)
			all[n%batches] = append(all[n%batches], sink.Message{Event: e, ID: worker.EventMessageID(e)})
		}
		write, done := guarded(b, one)
		defer done()
		write(all[0]) // connections and buffers are there from now on
		b.ReportAllocs()
		from, n := bytes(), 0
		for b.Loop() {
			write(all[n%batches])
			n++
		}
		events := float64(n * worker.DefaultBatch)
		b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
		if wire := bytes() - from; wire > 0 {
			b.ReportMetric(float64(wire)/events, "wireB/event")
		}
	})
	if testing.Short() {
		return
	}
	b.Run("feed/"+shape, func(b *testing.B) {
		const messages = 20 * benchNodes * benchPods
		conn := bustest.Start(b).Conn(b)
		bustest.Provision(b, conn, cluster)
		enc, pub := proto.NewEncoder(), conn.Publisher(bus.PublisherConfig{})
		for n := range messages {
			e := benchEvent(n)
			data, err := enc.Event(e)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := pub.Publish(b.Context(), bus.Message{Subject: bus.EventsSubject(cluster, e.Namespace), ID: e.ID(), Data: data}); err != nil {
				b.Fatal(err)
			}
		}
		n := feed(b, conn, bus.EventsStream(cluster), messages, worker.Config{Kind: k, Target: t, Events: true})
		b.ReportMetric(float64(n*messages)/b.Elapsed().Seconds(), "events/s")
	})
}
