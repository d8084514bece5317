// Package log writes rollups, or events, as text, for people.
//
//	log
//
// The format is Heapster's, a block for each rollup: its entities, with labels and metrics sorted. It
// goes to the program's standard output, or to its log where it has none. Events are a line each, under a
// line for each batch of them.
//
// Guarantee: at least once. What was written before a crash and not acknowledged is written again. The program's own
// output can fail and be slow, and knows no answers, refusals, certificates or logins.
//
// Not here: the program's own log (log/slog, handed in everywhere).
package log

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink log.
var Kind = sink.Kind{Key: "log", Title: "Log Sink", Guarantee: sink.AtLeastOnce, New: New, NewEvents: NewEvents}

type text struct {
	out     io.Writer // nil: log
	log     *slog.Logger
	view    sink.View
	cluster string // given by an option, "" otherwise: Heapster's sets had no such label
	buf     bytes.Buffer
}

// New reads the options: the common ones alone. An address is ignored.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	if common.Concurrency > 1 {
		o.Complain("`concurrency` flag is %d: a text has one writer", common.Concurrency)
	}
	s := &text{out: d.Out, log: d.Log, view: common.View}
	if common.Named {
		s.cluster = common.ClusterName
	}
	return o.Made(s, d.Log)
}

// Write writes a batch; see sink.Sink.
func (s *text) Write(_ context.Context, batch []sink.Message) error {
	for i := range batch {
		s.buf.Reset()
		s.format(batch[i].Rollup)
		if s.out == nil {
			s.log.Info(s.buf.String())
			continue
		}
		if _, err := s.out.Write(s.buf.Bytes()); err != nil {
			return fmt.Errorf("write rollup %s: %w", batch[i].ID, err)
		}
	}
	return nil
}

// Close does nothing: the writer is the program's.
func (s *text) Close() error { return nil }

// format writes one rollup into the buffer.
func (s *text) format(r *proto.Rollup) {
	fmt.Fprintf(&s.buf, "DataBatch     Timestamp: %s\n\n", r.Tick.Time())
	type block struct{ key, text string }
	var blocks []block
	for e := range s.view.Entities(r) {
		b := block{key: string(proto.AppendKey(nil, &r.Table, e.Row))}
		b.text = s.entity(b.key, e)
		blocks = append(blocks, b)
	}
	slices.SortStableFunc(blocks, func(a, b block) int { return cmp.Compare(a.key, b.key) })
	for _, b := range blocks {
		s.buf.WriteString(b.text)
	}
}

func (s *text) entity(key string, e *sink.Entity) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "MetricSet: %s\n", key)
	for _, t := range []struct {
		name string
		at   time.Time
	}{{"Scrape", sampled(e)}, {"Create", started(e)}} {
		fmt.Fprintf(&b, "   %s time: %s %d\n", t.name, t.at, t.at.UnixNano())
	}
	labels := slices.Clone(e.Labels)
	if s.cluster != "" {
		labels = append(labels, proto.Label{Key: proto.LabelClusterName, Value: s.cluster})
		slices.SortFunc(labels, byKey)
	}
	b.WriteString("   Labels:\n")
	for _, l := range labels {
		fmt.Fprintf(&b, "      %s = %s\n", l.Key, l.Value)
	}
	var metrics []proto.Sample
	var labelled bytes.Buffer
	for sample := range e.Samples {
		if sample.Device == nil {
			metrics = append(metrics, *sample)
			continue
		}
		fmt.Fprintf(&labelled, "      %s = %s\n", sample.Name, value(sample.Value))
		for _, l := range s.view.AppendDeviceLabels(nil, sample.Device) {
			fmt.Fprintf(&labelled, "         %s = %s\n", l.Key, l.Value)
		}
	}
	slices.SortStableFunc(metrics, func(a, b proto.Sample) int { return cmp.Compare(a.Name, b.Name) })
	b.WriteString("   Metrics:\n")
	for i := range metrics {
		fmt.Fprintf(&b, "      %s = %s\n", metrics[i].Name, value(metrics[i].Value))
	}
	b.WriteString("   Labeled Metrics:\n")
	b.Write(labelled.Bytes())
	b.WriteByte('\n')
	return b.String()
}

func byKey(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) }

// value formats a float with six decimals, as Heapster did.
func value(v proto.Value) string {
	if v.IsFloat() {
		return strconv.FormatFloat(v.Float64(), 'f', 6, 64)
	}
	return strconv.FormatInt(v.Int64(), 10)
}

// sampled is when the newest of the entity's samples was taken; the zero time of a sum or a stub.
func sampled(e *sink.Entity) time.Time {
	newest := int64(0)
	for g := proto.GroupCPU; g <= proto.GroupProcess; g++ {
		if at, ok := e.Rollup.Values.Get(e.Row, g.Time()); ok {
			newest = max(newest, at)
		}
	}
	return at(newest)
}

// started is since when the entity's counters count.
func started(e *sink.Entity) time.Time {
	start, _ := e.Rollup.Values.Get(e.Row, proto.FieldStart)
	return at(start)
}

func at(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
