//go:build linux

package e2e

import (
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// deleted deletes a stream, as somebody might who has the right to, and waits until these words are in that log.
func (s *stand) deleted(stream string, says *process, words ...string) {
	s.t.Helper()
	s.ask("$JS.API.STREAM.DELETE."+stream, "")
	says.says(words...)
}

func eventsDeleted(t *testing.T, s *stand) {
	if _, err := s.cluster.NewEvent(); err != nil {
		t.Fatal(err)
	}
	s.everyEvent(t)
	s.ask("$JS.API.STREAM.DELETE."+bus.EventsStream(standCluster), "")
	if _, err := s.cluster.NewEvent(); err != nil {
		t.Fatal(err)
	}
	s.scrapers[0].says("no stream takes this subject", "hs.events.")
	s.apply()
	s.everyEvent(t)
}

// samplesDeleted looks at totals alone: that nodes are expected again takes until the inventory is repeated.
func samplesDeleted(_ *testing.T, s *stand) {
	s.deleted(bus.SamplesStream(standCluster), s.scrapers[0], "no stream takes this subject", "hs.samples.")
	s.aggregators[0].says("stream does not exist", bus.SamplesStream(standCluster))
	from := s.last()
	s.apply()
	s.closes(from)
}

func rollupsDeleted(t *testing.T, s *stand) {
	stream := bus.RollupsStream(standCluster)
	s.deleted(stream, s.aggregators[0], "no stream takes this subject", "hs.rollups.")
	s.sinks[0].says("stream to read is not there yet", stream)
	s.gateways[0].says("cluster has no stream yet", stream)
	s.apply()
	s.rollups = follow(s.whole, s.conn, standCluster)
	s.complete(0)
	s.goesOn()
	s.arrives(t)
	s.rollups.mu.Lock()
	defer s.rollups.mu.Unlock()
	first, last := proto.Tick(0), proto.Tick(0)
	for tick, all := range s.rollups.totals {
		if len(all) != 1 {
			t.Errorf("there are %d totals of %s", len(all), tick)
		}
		if first == 0 || tick < first {
			first = tick
		}
		last = max(last, tick)
	}
	for tick := first; tick <= last; tick = tick.Add(1, standRes) {
		if len(s.rollups.totals[tick]) == 0 {
			t.Errorf("tick %s was not closed, between %s and %s", tick, first, last)
		}
	}
}
