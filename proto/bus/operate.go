package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What an operator does to the durables of sinks from outside, by RoleAdmin. Whoever
// moves or pauses one holds the sink's lease meanwhile (Seize): a worker that reads
// would acknowledge what comes again as something it has had.

// rewoundMark in a durable's metadata says that it stands at the beginning because
// it was put there, not because it is new.
const rewoundMark = "hs-rewound"

// DurableState is a sink's durable as the server sees it.
type DurableState struct {
	Stream, Name string
	Sink         string
	Lag          Lag
}

// SinkDurables are the durables of sinks on a stream, in the server's order; none where the stream does not
// exist.
func (c *Conn) SinkDurables(ctx context.Context, stream string) ([]DurableState, error) {
	var infos []*jetstream.ConsumerInfo
	err := c.try(ctx, "CONSUMER.LIST."+stream, func(ctx context.Context) error {
		infos = infos[:0]
		s, err := c.js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		list := s.ListConsumers(ctx)
		for info := range list.Info() {
			infos = append(infos, info)
		}
		return list.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list consumers of stream %q: %w", stream, err)
	}
	var all []DurableState
	for _, info := range infos {
		sink, ok := SinkOf(info.Name)
		if !ok {
			continue // of a replay
		}
		lag, err := c.lagOf(ctx, info)
		if err != nil {
			return nil, err
		}
		all = append(all, DurableState{Stream: stream, Name: info.Name, Sink: sink, Lag: lag})
	}
	return all, nil
}

// SeqAt is the first sequence that a stream holds and that was appended at or after t; the one after its last
// where none is.
func (c *Conn) SeqAt(ctx context.Context, stream string, t time.Time) (uint64, error) {
	state, err := c.StreamState(ctx, stream)
	if err != nil {
		return 0, err
	}
	return c.seqAt(ctx, stream, state, t)
}

// RewindDurable moves a durable that nobody reads so that the message of this sequence, or the first after it,
// comes next.
func (c *Conn) RewindDurable(ctx context.Context, stream, name string, seq uint64) error {
	seq = max(seq, 1)
	err := error(nil)
	if seq == 1 {
		err = c.try(ctx, "CONSUMER.CREATE."+stream+"."+name, func(ctx context.Context) error {
			cons, err := c.js.Consumer(ctx, stream, name)
			if err != nil {
				return err
			}
			cfg := cons.CachedInfo().Config
			cfg.Metadata = map[string]string{rewoundMark: "1"}
			_, err = c.js.UpdateConsumer(ctx, stream, cfg)
			return err
		})
	}
	if err == nil {
		err = c.reset(ctx, stream, name, seq)
	}
	if err != nil {
		return fmt.Errorf("rewind consumer %q of stream %q to %d: %w", name, stream, seq, err)
	}
	return nil
}

// PauseDurable stops the deliveries of a durable until that time, across restarts of its reader; a time that
// has passed resumes them. What is under way still comes.
func (c *Conn) PauseDurable(ctx context.Context, stream, name string, until time.Time) error {
	err := c.try(ctx, "CONSUMER.PAUSE."+stream+"."+name, func(ctx context.Context) error {
		_, err := c.js.PauseConsumer(ctx, stream, name, until)
		return err
	})
	if err != nil {
		return fmt.Errorf("pause consumer %q of stream %q: %w", name, stream, err)
	}
	return nil
}

// LetterCounts is how many letters DEAD holds, by reader.
func (c *Conn) LetterCounts(ctx context.Context) (map[string]uint64, error) {
	info, err := c.streamInfo(ctx, DeadStream, deadFilter)
	if err != nil {
		return nil, fmt.Errorf("count letters: %w", err)
	}
	counts := map[string]uint64{}
	for subject, n := range info.State.Subjects {
		if a, err := ParseSubject(subject); err == nil {
			counts[a.Name] = n
		}
	}
	return counts, nil
}
