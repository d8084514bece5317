package events

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// resume reads from EVENTS where things stand.
func (e *Events) resume(ctx context.Context) error {
	stream := bus.EventsStream(e.cfg.Cluster)
	wrong := func(err error) error {
		return writeError{fmt.Errorf("read from stream %q where things stand: %w", stream, err)}
	}
	state, err := e.deps.Bus.StreamState(ctx, stream)
	if err != nil {
		return wrong(err)
	}
	e.last, e.since = state.LastSeq, state.Last
	e.known, e.upto, e.begun = false, 0, 0
	if state.Empty() {
		return nil
	}
	looked := 0
	for seq := state.LastSeq; seq >= state.FirstSeq && looked < tail; seq-- {
		looked++
		d, ok, err := e.deps.Bus.Get(ctx, stream, seq)
		if err != nil {
			return wrong(err)
		}
		var ev proto.Event
		if !ok || again(d) {
			continue
		}
		if _, err := e.dec.EventHeader(d.Data, &ev); err != nil {
			e.deps.Log.Warn("message of EVENTS cannot be read", "seq", seq, "err", err)
			continue
		}
		e.known, e.upto, e.begun, e.since = true, ev.Position.Upto, ev.Position.Begun, d.Time
		if e.begun > 0 && e.upto == 0 {
			e.known = false // of the very first list
		}
		return nil
	}
	return nil // what there is is compared one by one
}

// tail is how many messages are looked at for a position: letters from DEAD that were given again tell none.
const tail = 1000

// again reports whether a message is a letter from DEAD given again, whose position is that of long ago.
func again(d bus.Delivery) bool { return strings.HasPrefix(d.ID(), "redrive/") }

// told is the newest state of an event that is out.
type told struct {
	version uint64
	times   int32
}

// compared bounds how many events are remembered while a list is compared with what is out, 60 MB at
// worst. Where EVENTS holds more, those are remembered that were written last.
const compared = 1 << 19

// outSet is what is out, by UID: two generations, so that the oldest can be forgotten.
type outSet struct {
	young, old map[string]told
	seen       bool
}

func (s *outSet) put(uid string, t told) {
	if len(s.young) >= compared/2 {
		s.old, s.young = s.young, map[string]told{}
	}
	s.young[uid], s.seen = t, true
}

func (s *outSet) get(uid string) (told, bool) {
	t, ok := s.young[uid]
	if !ok {
		t, ok = s.old[uid]
	}
	return t, ok
}

// empty reports whether EVENTS held nothing.
func (s *outSet) empty() bool { return !s.seen }

// memory is for how long an event is there after its last change; the API server's default is an hour.
const memory = 2 * time.Hour

// out reads which events are out. Where the position is known those matter that were written since an
// interrupted list began (they may be beyond the position), and those whose next state may be listed: it
// tells how many were skipped. Else all do.
func (e *Events) out(ctx context.Context) (*outSet, error) {
	set := &outSet{young: map[string]told{}}
	stream := bus.EventsStream(e.cfg.Cluster)
	state, err := e.deps.Bus.StreamState(ctx, stream)
	switch {
	case err != nil:
		return nil, writeError{err}
	case state.LastSeq != e.last:
		return nil, writeError{fmt.Errorf("%w: last message %d, expected %d", bus.ErrOvertaken, state.LastSeq, e.last)}
	case state.Empty():
		return set, nil
	}
	cfg := bus.ReplayConfig{Stream: stream}
	if e.known {
		from := e.since
		if e.begun > 0 {
			first, ok, err := e.deps.Bus.NextOn(ctx, stream, ">", e.begun)
			if err != nil {
				return nil, writeError{err}
			}
			if ok && first.Time.Before(from) {
				from = first.Time
			}
		}
		cfg.FromTime = from.Add(-memory)
	}
	// The last message may have been removed by hand, so the end is where there is nothing more.
	if d, ok, err := e.deps.Bus.LastOn(ctx, stream, ">"); err != nil {
		return nil, writeError{err}
	} else if !ok || d.Time.Before(cfg.FromTime) {
		return set, nil
	}
	var ev proto.Event
	for d, err := range e.deps.Bus.Replay(ctx, cfg) {
		if err != nil {
			return nil, writeError{err}
		}
		if times, err := e.dec.EventHeader(d.Data, &ev); err == nil && !again(d) {
			set.put(ev.UID, told{ev.Version, times})
		}
		if d.Pending == 0 || d.Seq >= e.last {
			return set, nil
		}
	}
	return nil, ctx.Err()
}
