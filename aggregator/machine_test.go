package aggregator

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heapstream/heapstream/proto"
)

// A batch that just fits becomes a rollup that does not, as growth is added to its counters: interfaces are
// left out of it, counted and logged once, and it goes out; nothing is unusable.
func TestTooLargeNodeRollupGoesOutWithLess(t *testing.T) {
	const interfaces = 80_000
	random := rand.New(rand.NewPCG(1, 2)) // does not compress
	values, names := make([]int64, 4*interfaces), make([]string, interfaces)
	for i := range names {
		names[i] = fmt.Sprintf("%x", random.Uint64())
	}
	s := newSamples()
	for n := range 4 {
		at := day.Add(10*time.Hour + time.Duration(n)*15*time.Second)
		b := &proto.Batch{Cluster: testCluster, Node: "n1", Tick: proto.Tick(at.UnixMilli()), Resolution: 15 * time.Second}
		b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1"})
		b.Values.Set(0, proto.GroupCPU.Time(), at.UnixNano())
		b.Values.Set(0, proto.CPUUsage.Field(), int64(n)*3e9)
		for i := range interfaces {
			if n == 3 && i > 0 {
				break
			}
			d := b.AddDevice(proto.Device{Kind: proto.DeviceInterface, Name: names[i]})
			b.DeviceValues.Set(d, proto.GroupDevice.Time(), at.UnixNano())
			for c, id := range []proto.MetricID{proto.InterfaceRx, proto.InterfaceTx, proto.InterfaceRxErrors, proto.InterfaceTxErrors} {
				v := &values[4*i+c]
				*v += random.Int64N(1e15)
				b.DeviceValues.Set(d, id.Field(), *v)
			}
		}
		s.batch(t, at.Add(time.Second), b)
		if b.Dropped > 0 {
			t.Fatalf("batch %d does not fit by itself", n)
		}
	}
	var log bytes.Buffer
	tel := testTelemetry(t)
	m := newMachine(testCluster, tel, slog.New(slog.NewTextHandler(&log, nil)))
	var rolls []*proto.Rollup
	for _, d := range s.list {
		if err := m.step(d, func(o output) error {
			if o.scope == proto.ScopeNode {
				r := &proto.Rollup{}
				if err := proto.NewDecoder().Rollup(o.data, r); err != nil {
					t.Fatal(err)
				}
				rolls = append(rolls, r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for n, want := range []struct {
		devices int
		dropped uint32
	}{{interfaces, 0}, {0, interfaces}, {0, interfaces}, {1, 0}} {
		r := rolls[n]
		if v, ok := r.Value(0, proto.CPUUsageRate); len(r.Devices) != want.devices || r.Dropped != want.dropped || n > 0 && (!ok || v != proto.Int(200)) {
			t.Errorf("rollup %d: %d devices, %d left out, node uses %s (%v)", n, len(r.Devices), r.Dropped, v, ok)
		}
	}
	if got := testutil.ToFloat64(tel.leftOut.WithLabelValues(testCluster)); got != 2*interfaces {
		t.Errorf("%v values counted as left out", got)
	}
	if begun, ended := strings.Count(log.String(), "values are left out"), strings.Count(log.String(), "whole again"); begun != 1 || ended != 1 || !strings.Contains(log.String(), `of="node n1"`) {
		t.Errorf("log:\n%s", log.String())
	}
}

// What totals say of contested pods and missing rates is in the telemetry and, when it begins and ends, in
// the log.
func TestContestedPodsAreTold(t *testing.T) {
	s := readScenario(t, "testdata/contested-pod.scenario")
	var log bytes.Buffer
	tel := testTelemetry(t)
	m := newMachine(testCluster, tel, slog.New(slog.NewTextHandler(&log, nil)))
	for _, d := range s.samples.list {
		if err := m.step(d, func(output) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if got := testutil.ToFloat64(tel.rivals.WithLabelValues(testCluster)); got != 2 {
		t.Errorf("%v pods contested", got)
	}
	if got := testutil.ToFloat64(tel.unrated.WithLabelValues(testCluster, "pods")); got != 0 {
		t.Errorf("%v pods without a rate", got)
	}
	if n := strings.Count(log.String(), "two nodes have one pod"); n != 1 || !strings.Contains(log.String(), "namespace=shop pod=db-0 uid=u1 node=n1 counted=n2") {
		t.Errorf("log:\n%s", log.String())
	}
}
