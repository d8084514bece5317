package log

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/heapstream/heapstream/sinks/sink"
)

// oneLine keeps a message on its line: a line break would look like another event.
var oneLine = strings.NewReplacer("\n", `\n`, "\r", `\r`)

// events writes Kubernetes events.
type events struct {
	out    io.Writer // nil: log
	log    *slog.Logger
	common sink.CommonEvents
	buf    bytes.Buffer
}

// NewEvents reads the options of a sink of events: the common ones alone. An address is ignored.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	s := &events{out: d.Out, log: d.Log, common: o.CommonEvents(d)}
	if s.common.Concurrency > 1 {
		o.Complain("`concurrency` flag is %d: a text has one writer", s.common.Concurrency)
	}
	return o.Made(s, d.Log)
}

// Write writes a batch as one block; see sink.Sink.
func (s *events) Write(_ context.Context, batch []sink.Message) error {
	s.buf.Reset()
	for i := len(batch) - 1; i >= 0 && s.buf.Len() == 0; i-- { // the batch is as old as the last of its events
		if e := batch[i].Event; s.common.Passes(e) {
			fmt.Fprintf(&s.buf, "EventBatch     Timestamp: %s\n", e.Time())
		}
	}
	for i := range batch {
		if e := batch[i].Event; s.common.Passes(e) {
			fmt.Fprintf(&s.buf, "   %s (cnt:%d): %s\n", e.Time(), e.Times(), oneLine.Replace(e.Message))
		}
	}
	switch {
	case s.buf.Len() == 0:
	case s.out == nil:
		s.log.Info(s.buf.String())
	default:
		if _, err := s.out.Write(s.buf.Bytes()); err != nil {
			return fmt.Errorf("write events from %s: %w", batch[0].ID, err)
		}
	}
	return nil
}

// Close does nothing: the writer is the program's.
func (s *events) Close() error { return nil }
