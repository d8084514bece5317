package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrOvertaken says that the stream holds a message that this writer has not seen.
var ErrOvertaken = errors.New("another has written to the stream meanwhile")

// Append stores m, which must have an ID and a Stream, as the message that follows sequence after: for
// a stream of one writer, who knows its last sequence. Nothing is stored where anybody else has written
// since: then the error wraps ErrOvertaken, and a writer whose turn is over learns it before it does
// harm. It retries for as long as that may help, and finds out itself whether an attempt whose
// acknowledgement was lost has been stored. A message whose ID the stream remembers is not stored again:
// the Ack is a Duplicate, and the last sequence is what it was.
//
// Other errors are Publisher.Publish's, and ErrStreamRenewed where the stream is younger than after. One
// call at a time.
func (c *Conn) Append(ctx context.Context, m Message, after uint64) (Ack, error) {
	wrong := func(err error) (Ack, error) {
		return Ack{}, fmt.Errorf("append to stream %q after message %d: %w", m.Stream, after, err)
	}
	if m.ID == "" || m.Stream == "" {
		return wrong(errors.New("the message lacks its id or its stream"))
	}
	if len(m.Data) > MaxPayload {
		return wrong(fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(m.Data), MaxPayload))
	}
	msg := m.build()
	msg.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(after, 10)}
	s := stall{log: c.log}
	for n := 0; ; n++ {
		ack, err := c.publishOnce(ctx, msg)
		if err == nil {
			s.over()
			if n > 0 && ack.Seq == after+1 {
				ack.Duplicate = false // of our own attempt before, whose acknowledgement was lost
			}
			return ack, nil
		}
		switch {
		case ctx.Err() != nil:
			return wrong(ended(ctx, nil, err))
		case outdated(err): // checked before the id is, so it may be our own message that is there
			there, lookErr := c.appended(ctx, m, after)
			if lookErr != nil {
				return wrong(lookErr)
			}
			if there {
				s.over()
				return Ack{Stream: m.Stream, Seq: after + 1}, nil
			}
		case !passing(err):
			return wrong(lasting(err))
		}
		s.begun(m.Subject, err)
		if pauseErr := c.pause(ctx, n); pauseErr != nil {
			return wrong(ended(ctx, nil, err))
		}
	}
}

// appended reports whether the message that follows after is m; false where none does. Its error says
// that another one does, or that none can.
func (c *Conn) appended(ctx context.Context, m Message, after uint64) (bool, error) {
	d, ok, err := c.Get(ctx, m.Stream, after+1)
	if err != nil {
		return false, err
	}
	if ok {
		if d.ID() == m.ID {
			return true, nil
		}
		return false, fmt.Errorf("%w: message %d is %q", ErrOvertaken, d.Seq, d.ID())
	}
	state, err := c.StreamState(ctx, m.Stream)
	switch {
	case err != nil:
		return false, err
	case state.LastSeq > after:
		return false, fmt.Errorf("%w: its last message is %d", ErrOvertaken, state.LastSeq)
	case state.LastSeq < after:
		return false, fmt.Errorf("%w: its last message is %d", ErrStreamRenewed, state.LastSeq)
	}
	return false, nil // the refused one is still on its way through the servers
}
