package aggregator

import (
	"context"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// marker publishes clock marks where a tick waits for silent nodes and nothing else moves stream time.
// It is the only thing here that looks at a wall clock, and changes no output: marks are messages of
// SAMPLES like others.
//
// While a tick waits, a mark follows on half the grace without a message: more would be a jump of
// stream time, which gives the tick more time. The last one comes when the tick is to close.
type marker struct {
	cluster string
	pub     *bus.Publisher
	tel     *telemetry
	epoch   string // of our ids
	due     chan time.Duration
}

func newMarker(c *cluster) *marker {
	return &marker{cluster: c.name, pub: c.bus.Publisher(bus.PublisherConfig{}), tel: c.tel,
		epoch: strconv.FormatInt(c.now().UnixNano(), 36), due: make(chan time.Duration, 1)}
}

// expect is called after every message that left nothing more to read: it says when the next mark is
// due if no message comes before.
func (k *marker) expect(m *machine) {
	next := int64(m.ticks.Next())
	if next == 0 {
		return
	}
	stream, grace := m.ticks.Clock.Stream(), m.ticks.Grace().Milliseconds()
	target := next + grace/4 // the first sign of the tick
	if stream >= next {
		target = min(m.ticks.Deadline(), stream+grace/2)
	}
	wait := time.Duration(max(target-stream, 1)) * time.Millisecond
	select { // the newest counts
	case <-k.due:
	default:
	}
	k.due <- wait
}

// run publishes marks until ctx ends.
func (k *marker) run(ctx context.Context) {
	data, err := proto.NewEncoder().Clock(k.cluster)
	if err != nil { // a name and nothing else: cannot be
		return
	}
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case wait := <-k.due:
			timer.Reset(wait)
		case <-timer.C:
			n++
			if _, err := k.pub.Publish(ctx, bus.Message{Subject: bus.ClockSubject(k.cluster), ID: "clock/" + k.epoch + "/" + strconv.Itoa(n), Data: data}); err == nil {
				k.tel.marks.WithLabelValues(k.cluster).Inc()
			}
		}
	}
}
