package bus

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// DeadLetter is a message that a reader could not use, with where it came from
// and why.
type DeadLetter struct {
	Reader  string // who could not use it, named like its lease: sink.influx
	Reason  string // in words; cut to 1 KiB
	Stream  string // where it came from
	Subject string
	Seq     uint64
	Time    time.Time // when it was appended there
	Data    []byte
	Header  map[string][]string // the original's, without the bus's own

	DeadSeq uint64 // its sequence in DEAD; set by Letters
}

// Letter is the delivery as a letter to DEAD. One that was re-driven keeps the origin of its letter.
func (d Delivery) Letter(reader, reason string) DeadLetter {
	if d.Stream == DeadStream {
		l := letterOf(d)
		l.Reader, l.Reason = reader, reason
		return l
	}
	return DeadLetter{Reader: reader, Reason: reason, Stream: d.Stream, Subject: d.Subject, Seq: d.Seq, Time: d.Time, Data: d.Data, Header: d.Header}
}

// Headers of a letter.
const (
	deadReason  = "Hs-Dead-Reason"
	deadStream  = "Hs-Dead-Stream"
	deadSubject = "Hs-Dead-Subject"
	deadSeq     = "Hs-Dead-Seq"
	deadTime    = "Hs-Dead-Time"

	maxReason = 1 << 10
	codedText = "=b64 "
)

// Dead stores a letter in DEAD, once per reader, stream and sequence, and once
// more each time that it was re-driven. It blocks until it is stored; its errors
// are Publisher.Publish's.
func (c *Conn) Dead(ctx context.Context, l DeadLetter) error {
	h := make(map[string][]string, len(l.Header)+5)
	for k, v := range l.Header {
		if !strings.HasPrefix(k, "Nats-") {
			h[k] = v
		}
	}
	h[deadReason] = []string{headerText(l.Reason)}
	h[deadStream] = []string{l.Stream}
	h[deadSubject] = []string{l.Subject}
	h[deadSeq] = []string{strconv.FormatUint(l.Seq, 10)}
	h[deadTime] = []string{l.Time.UTC().Format(time.RFC3339Nano)}
	id := l.Reader + "/" + l.Stream + "/" + strconv.FormatUint(l.Seq, 10)
	if l.DeadSeq > 0 {
		id += "/" + strconv.FormatUint(l.DeadSeq, 10)
	}
	_, err := c.Publisher(PublisherConfig{}).Publish(ctx, Message{Subject: DeadSubject(l.Reader), Stream: DeadStream, Data: l.Data, Header: h, ID: id})
	if err != nil {
		return fmt.Errorf("put message %d of stream %q to %s: %w", l.Seq, l.Stream, DeadStream, err)
	}
	return nil
}

// headerText makes any text fit a header line: one line, valid, of bounded
// length. What is not plain ASCII is carried in base64.
func headerText(s string) string {
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	coded := strings.HasPrefix(strings.TrimSpace(s), codedText)
	for i := range len(s) {
		coded = coded || s[i] < ' ' || s[i] > '~'
	}
	if coded {
		return codedText + base64.StdEncoding.EncodeToString([]byte(s))
	}
	return strings.TrimSpace(s)
}

func textOf(header string) string {
	if b64, ok := strings.CutPrefix(header, codedText); ok {
		if b, err := base64.StdEncoding.DecodeString(b64); err == nil {
			return string(b)
		}
	}
	return header
}

// Letters are what DEAD holds now for one reader, or for all where reader is
// empty, oldest first. The iteration ends with the newest at the time of the call,
// or with one error.
func (c *Conn) Letters(ctx context.Context, reader string) iter.Seq2[DeadLetter, error] {
	filter := deadFilter
	if reader != "" {
		filter = DeadSubject(reader)
	}
	return func(yield func(DeadLetter, error) bool) {
		newest, ok, err := c.LastOn(ctx, DeadStream, filter)
		if err != nil {
			yield(DeadLetter{}, err)
			return
		}
		if !ok {
			return
		}
		for d, err := range c.Replay(ctx, ReplayConfig{Stream: DeadStream, Subjects: []string{filter}}) {
			if err != nil {
				yield(DeadLetter{}, err)
				return
			}
			if d.Seq > newest.Seq || !yield(letterOf(d), nil) || d.Seq == newest.Seq {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(DeadLetter{}, err)
		}
	}
}

// letterOf reads a letter back; what is unreadable in its origin stays zero.
func letterOf(d Delivery) DeadLetter {
	l := DeadLetter{Reason: textOf(headerValue(d.Header, deadReason)), Stream: headerValue(d.Header, deadStream),
		Subject: headerValue(d.Header, deadSubject), Data: d.Data, DeadSeq: d.Seq}
	if a, err := ParseSubject(d.Subject); err == nil {
		l.Reader = a.Name
	}
	l.Seq, _ = strconv.ParseUint(headerValue(d.Header, deadSeq), 10, 64)
	l.Time, _ = time.Parse(time.RFC3339Nano, headerValue(d.Header, deadTime))
	for k, v := range d.Header {
		if !strings.HasPrefix(k, "Nats-") && !strings.HasPrefix(k, "Hs-Dead-") {
			if l.Header == nil {
				l.Header = map[string][]string{}
			}
			l.Header[k] = v
		}
	}
	return l
}

// Redrive publishes a letter again, under an id of its own (so twice is stored
// once), and removes it from DEAD. A sink's letter goes to that sink alone, by
// AgainSubject: on ROLLUPS an old message would be written by every sink once
// more, and taken for the newest of its node by an aggregator that takes over.
// Any other goes to the subject it came from, and every reader of that stream sees
// it again.
func (c *Conn) Redrive(ctx context.Context, l DeadLetter) (Ack, error) {
	if l.DeadSeq == 0 || l.Subject == "" {
		return Ack{}, errors.New("re-drive: the letter does not come from DEAD")
	}
	m := Message{Subject: l.Subject, Data: l.Data, Header: l.Header, ID: "redrive/" + strconv.FormatUint(l.DeadSeq, 10)}
	if strings.HasPrefix(l.Reader, SinkLeases) {
		m.Subject, m.Stream = AgainSubject(l.Reader), DeadStream
		m.Header = map[string][]string{
			deadReason: {headerText(l.Reason)}, deadStream: {l.Stream}, deadSubject: {l.Subject},
			deadSeq: {strconv.FormatUint(l.Seq, 10)}, deadTime: {l.Time.UTC().Format(time.RFC3339Nano)},
		}
	}
	ack, err := c.Publisher(PublisherConfig{}).Publish(ctx, m)
	if err != nil {
		return Ack{}, fmt.Errorf("re-drive letter %d: %w", l.DeadSeq, err)
	}
	return ack, c.RemoveLetter(ctx, l)
}

// RemoveLetter removes a letter from DEAD; one that is gone is fine.
func (c *Conn) RemoveLetter(ctx context.Context, l DeadLetter) error {
	var s jetstream.Stream
	err := c.try(ctx, "STREAM.INFO."+DeadStream, func(ctx context.Context) (err error) {
		s, err = c.js.Stream(ctx, DeadStream)
		return err
	})
	if err == nil {
		err = c.try(ctx, "STREAM.MSG.DELETE."+DeadStream, func(ctx context.Context) error { return s.DeleteMsg(ctx, l.DeadSeq) })
	}
	if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) { // says why in words alone
		if _, there, getErr := c.Get(ctx, DeadStream, l.DeadSeq); getErr == nil && !there {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("remove letter %d: %w", l.DeadSeq, err)
	}
	return nil
}
