package bus

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
)

// Quick shortens the waits of a connection, for tests.
func Quick(c *Conn) *Conn {
	c.timing = timing{publish: 500 * time.Millisecond, request: time.Second, doubt: 500 * time.Millisecond, heartbeat: 200 * time.Millisecond,
		idle: 300 * time.Millisecond, backoff: 5 * time.Millisecond, maxWait: 100 * time.Millisecond}
	return c
}

// Asking makes a quick connection's readers ask what they may have missed before they can find their consumer silent.
func Asking(c *Conn) *Conn {
	Quick(c).timing.idle = c.timing.heartbeat / 2
	return c
}

// Curious makes a connection's readers ask what they may have missed whenever they have waited for a heartbeat's time,
// and be in no hurry to find their consumer or the server silent.
func Curious(c *Conn) *Conn {
	c.timing = defaultTiming()
	c.timing.idle, c.timing.request, c.timing.doubt = 0, time.Second, time.Minute
	return c
}

// Raw is the connection behind c.
func Raw(c *Conn) *nats.Conn { return c.nc }

// Freeze ends the renewing of a lease without a word, as a killed process does.
func (l *Lease) Freeze() { l.stop(); <-l.done }

// RenewEpoch renews the epoch of one lane that is idle.
func (o *Ownership) RenewEpoch(n int) error { return o.renew(&o.lanes[n]) }

// Kill ends a durable without a word to the server, as a killed process does.
func (d *Durable) Kill() {
	d.mu.Lock()
	d.closed = true
	p := d.p
	d.p = nil
	d.mu.Unlock()
	p.close()
	close(d.stopped)
	d.keeper.Wait()
}

// Write writes a bucket's key.
func (c *Conn) Write(ctx context.Context, bucket, key string, value []byte) error {
	_, err := c.write(ctx, bucket, key, value, anySeq)
	return err
}

// DropConsumers deletes all consumers of a stream.
func (c *Conn) DropConsumers(ctx context.Context, stream string) error {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	l := s.ConsumerNames(ctx)
	for name := range l.Name() {
		if err := s.DeleteConsumer(ctx, name); err != nil {
			return err
		}
	}
	return l.Err()
}

// LeadersOfConsumers names the server of each consumer of a stream.
func (c *Conn) LeadersOfConsumers(ctx context.Context, stream string) (names []string, err error) {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	l := s.ListConsumers(ctx)
	for info := range l.Info() {
		if info.Cluster != nil {
			names = append(names, info.Cluster.Leader)
		}
	}
	return names, l.Err()
}

// CountConsumers is the number of consumers of a stream.
func (c *Conn) CountConsumers(ctx context.Context, stream string) (int, error) {
	info, err := c.streamInfo(ctx, stream, "")
	if err != nil {
		return 0, err
	}
	return info.State.Consumers, nil
}

// LeaderOf names the server that leads a stream.
func (c *Conn) LeaderOf(ctx context.Context, stream string) (string, error) {
	info, err := c.streamInfo(ctx, stream, "")
	if err != nil {
		return "", err
	}
	return info.Cluster.Leader, nil
}

// Denied are the kinds of subjects the server refused on this connection.
func (c *Conn) Denied() []string {
	c.denials.mu.Lock()
	defer c.denials.mu.Unlock()
	return slices.Sorted(maps.Keys(c.denials.told))
}

// Mark is mark.
type Mark struct {
	Stream, Consumer            string
	Delivered, Seq, ConsumerSeq uint64
	At                          int64
	Pending                     uint64
}

// ParseMark is parseMark.
func ParseMark(reply string) (Mark, error) {
	m, err := parseMark(reply)
	return Mark{m.stream, m.consumer, m.delivered, m.seq, m.consumerSeq, m.at, m.pending}, err
}

// ParseHeader is parseHeader of what is not encoded yet.
func ParseHeader(raw []byte) (map[string][]string, error) {
	return parseHeader(base64.StdEncoding.EncodeToString(raw))
}

// HeaderText and TextOf are headerText and textOf.
var (
	HeaderText = headerText
	TextOf     = textOf
)

// Passing is passing.
var Passing = passing

// Purge removes every message of a stream.
func Purge(ctx context.Context, c *Conn, stream string) error {
	s, err := c.js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	return s.Purge(ctx)
}
