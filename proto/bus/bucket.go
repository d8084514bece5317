package bus

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A bucket is a stream that keeps the newest message of each key; `nats kv`
// reads ours. Writing goes through publishOnce with an expected sequence, reading
// through the stream's leader, watching through LastPerSubject and Replay.

func bucketStream(bucket string) string       { return "KV_" + bucket }
func bucketSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// record is one key of a bucket.
type record struct {
	key   string
	value []byte
	seq   uint64 // of the record, or of the marker that says it is gone; 0 where there never was one
	at    time.Time
	gone  bool // deleted, or its time ran out
}

func recordOf(bucket string, d Delivery) record {
	return record{key: strings.TrimPrefix(d.Subject, bucketSubject(bucket, "")), value: d.Data, seq: d.Seq, at: d.Time,
		gone: headerValue(d.Header, "KV-Operation") != "" || headerValue(d.Header, jetstream.MarkerReasonHeader) != ""}
}

// read is the present record of a key.
func (c *Conn) read(ctx context.Context, bucket, key string) (record, error) {
	d, ok, err := c.LastOn(ctx, bucketStream(bucket), bucketSubject(bucket, key))
	if err != nil {
		return record{}, fmt.Errorf("read key %q of bucket %q: %w", key, bucket, err)
	}
	if !ok {
		return record{key: key, gone: true}, nil
	}
	return recordOf(bucket, d), nil
}

// write is one attempt to write a key whose record has that sequence; any
// sequence where seq is anySeq.
func (c *Conn) write(ctx context.Context, bucket, key string, value []byte, seq uint64) (uint64, error) {
	m := &nats.Msg{Subject: c.bucketPut(bucket, key), Data: value}
	return c.writeMsg(ctx, m, seq)
}

// erase is one attempt to delete a key whose record has that sequence.
func (c *Conn) erase(ctx context.Context, bucket, key string, seq uint64) error {
	m := &nats.Msg{Subject: c.bucketPut(bucket, key), Header: nats.Header{"KV-Operation": {"DEL"}}}
	_, err := c.writeMsg(ctx, m, seq)
	return err
}

const anySeq = ^uint64(0)

func (c *Conn) writeMsg(ctx context.Context, m *nats.Msg, seq uint64) (uint64, error) {
	if seq != anySeq {
		expect(m, m.Subject, seq)
	}
	ack, err := c.publishOnce(ctx, m)
	return ack.Seq, err
}

// bucketPut is the subject to publish on: with a domain the server maps it.
func (c *Conn) bucketPut(bucket, key string) string {
	if c.prefix == "$JS.API." {
		return bucketSubject(bucket, key)
	}
	return c.prefix + bucketSubject(bucket, key)
}

// outdated reports that somebody else wrote the key in between.
func outdated(err error) bool {
	code := apiCode(err)
	return code == codeWrongLastSeq || code == codeWrongLastSeqR3
}

// list is what a bucket holds under a prefix of its keys ("" for all; else with
// its dot), sorted by key.
func (c *Conn) list(ctx context.Context, bucket, prefix string) ([]record, error) {
	now := map[string]record{}
	_, err := c.collect(ctx, bucket, prefix, now)
	if err != nil {
		return nil, err
	}
	out := make([]record, 0, len(now))
	for _, r := range now {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b record) int { return strings.Compare(a.key, b.key) })
	return out, nil
}

// collect reads into now what is there, and returns the sequence to go on from.
func (c *Conn) collect(ctx context.Context, bucket, prefix string, now map[string]record) (upto uint64, err error) {
	upto, last, err := c.LastPerSubject(ctx, bucketStream(bucket), bucketSubject(bucket, prefix+">"))
	if err != nil {
		return 0, err
	}
	for d, err := range last {
		if err != nil {
			return 0, err
		}
		r := recordOf(bucket, d)
		if r.gone {
			delete(now, r.key)
		} else {
			now[r.key] = r
		}
	}
	return upto, nil
}

// watch is what a bucket holds under a prefix, in order of keys, then a record
// without a key, then every change, until ctx ends.
func (c *Conn) watch(ctx context.Context, bucket, prefix string) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		now := map[string]record{}
		upto, err := c.collect(ctx, bucket, prefix, now)
		if err != nil {
			if ctx.Err() == nil {
				yield(record{}, err)
			}
			return
		}
		keys := make([]string, 0, len(now))
		for k := range now {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(now[k], nil) {
				return
			}
		}
		if !yield(record{}, nil) {
			return
		}
		for d, err := range c.Replay(ctx, ReplayConfig{Stream: bucketStream(bucket), Subjects: []string{bucketSubject(bucket, prefix+">")}, FromSeq: upto + 1}) {
			if err != nil {
				yield(record{}, err)
				return
			}
			if r := recordOf(bucket, d); r.seq > now[r.key].seq && !yield(r, nil) {
				return
			}
		}
	}
}
