// Package kafka writes rollups, or Kubernetes events, to a topic of Kafka.
//
//	kafka:?brokers=host:port[&brokers=…][&timeseriestopic=…]
//
// With format=json, the default, a record is one sample, in the bytes that Heapster wrote. With
// format=msgpack it is a whole rollup as it travels on ROLLUPS: a msgpack array
// [schema, type, header, size, body] whose body is a Snappy block (its layout stands in proto/encoding.go; in Go,
// proto.NewDecoder().Rollup reads it).
//
// The key is cluster/node, or cluster/namespace, hashed to a partition as Java's clients do (murmur2),
// so one entity's samples are in one partition and in order. Every record has a header `id`, the same
// whenever it is sent again: <cluster>/node/<node>/<tick>/<number>, likewise ns and totals (tick in
// Unix milliseconds; no number with format=msgpack).
//
// Events go to the topic `eventstopic`, a record each in the bytes that eventer wrote: the value is JSON with the
// event as JSON in a string, or with format=msgpack the event as it travels on EVENTS (proto.NewDecoder().Event
// reads it). The key is cluster/namespace, and the header `id` <cluster>/event/<uid>/<version>.
//
// Guarantee: at least once, acknowledged by all in-sync replicas. Kafka-go's producer is not
// idempotent: where the answer to a request is lost, its records are sent again and may be there twice;
// readers that mind drop an id they have seen. Records that were acknowledged are not sent again while
// this process lives, even if others of their batch failed.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink kafka.
var Kind = sink.Kind{Key: "kafka", Title: "kafka", Guarantee: sink.AtLeastOnce, Identity: []string{"brokers", "timeseriestopic", "eventstopic"}, New: New, NewEvents: NewEvents}

// clientID is a fixed name that brokers see, as Heapster's was.
const clientID = "kafka-sink"

type topic struct {
	name        string
	brokers     net.Addr
	brokerNames string
	client      *kafkago.Client
	transport   *kafkago.Transport
	compression kafkago.Compression
	batch       int // most records of a request
	maxBytes    int // most bytes of a request, before compression
	create      bool
	secured     bool // SASL
	log         *slog.Logger

	enc      encoder
	balancer kafkago.Murmur2Balancer
	rest     *rest // of a Write that failed
}

// rest is what a Write could not get through, to go on with.
type rest struct {
	first, last string // ids of the batch's ends
	n           int
	todo        map[int][]int // by partition: records in order
	refused     []sink.Refused
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	enc := encoder{view: common.View}
	if common.Named {
		enc.cluster = common.ClusterName
	}
	s := read(o, enc, o.String("timeseriestopic", "heapster-metrics"), d)
	if s.enc.whole && common.Filtered() {
		o.Complain("`filter` and `rename` cannot be had with format=msgpack, which writes rollups whole: give format=json, or filter where they are read")
	}
	if s.enc.whole && o.Given("extended") {
		o.Warn("option `extended` means nothing with format=msgpack: a rollup is written whole")
	}
	o.Elsewhere("eventstopic")
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events; see the package for what they do.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	enc := encoder{events: &common}
	if common.Named {
		enc.cluster = common.ClusterName
	}
	s := read(o, enc, o.String("eventstopic", "heapster-events"), d)
	o.Elsewhere("timeseriestopic")
	return o.Made(s, d.Log)
}

// read reads where to write to, and as whom.
func read(o *sink.Options, enc encoder, name string, d sink.Deps) *topic {
	s := &topic{
		name:     name,
		batch:    o.BatchSize(10000, 1e6),
		maxBytes: o.Int("maxbytes", 900<<10, 1024),
		create:   o.Bool("autocreate", false),
		log:      d.Log,
		enc:      enc,
	}
	s.enc.whole = o.Choice("format", "json", "msgpack") == "msgpack"
	brokers := o.All("brokers")
	for i, b := range brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			if strings.ContainsAny(b, "/,@ ") || strings.Count(b, ":") == 1 {
				o.Complain("`brokers` flag is %q: want host:port (repeat the option for several)", b)
			}
			brokers[i] = net.JoinHostPort(strings.Trim(b, "[]"), "9092")
		}
	}
	if len(brokers) == 0 {
		o.Complain("There is no broker assigned for connecting kafka: give brokers=host:port")
	}
	switch o.Choice("compression", "none", "gzip", "snappy", "lz4", "zstd") {
	case "gzip":
		s.compression = kafkago.Gzip
	case "snappy":
		s.compression = kafkago.Snappy
	case "lz4":
		s.compression = kafkago.Lz4
	case "zstd":
		s.compression = kafkago.Zstd
	}

	secure := o.Bool("tls", o.Given("cacert") || o.Given("cert") && o.Given("key"))
	if o.Given("insecuressl") && !secure {
		o.Warn("option `insecuressl` means nothing without TLS: give `cacert`, `cert` and `key`, or tls=true")
	}
	config := o.TLS()
	mechanism, err := login(o)
	if err != nil {
		o.Complain("%w", err)
	}
	s.secured = mechanism != nil
	if s.secured && !secure && o.String("mechanism", "plain") == "plain" {
		o.Warn("the password is sent in the clear: give tls=true")
	}
	s.brokers, s.brokerNames = kafkago.TCP(brokers...), strings.Join(brokers, ",")
	s.transport = &kafkago.Transport{
		ClientID: clientID, SASL: mechanism, MetadataTopics: []string{s.name},
		DialTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, MetadataTTL: 5 * time.Second,
	}
	if secure {
		s.transport.TLS = config
	}
	s.client = &kafkago.Client{Addr: s.brokers, Transport: s.transport}
	return s
}

// login reads how to authenticate; nil where not at all.
func login(o *sink.Options) (sasl.Mechanism, error) {
	user, password := o.String("user", ""), o.Secret("password", "")
	mechanism := o.Choice("mechanism", "plain", "scram-sha-256", "scram-sha-512")
	switch {
	case user == "" && password == "":
		return nil, nil
	case user == "" || password == "":
		return nil, errors.New("`user` and `password` belong together")
	}
	switch mechanism {
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, user, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, user, password)
	}
	return plain.Mechanism{Username: user, Password: password}, nil
}

// Close ends the connections.
func (s *topic) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *topic) Write(ctx context.Context, batch []sink.Message) error {
	if len(batch) == 0 {
		return nil
	}
	s.enc.reset()
	for i := range batch {
		s.enc.encode(&batch[i], i)
	}
	r, err := s.plan(ctx, batch)
	if err != nil {
		return err
	}
	err = s.send(ctx, r)
	switch {
	case err != nil:
		// A request that was given up may still be on its way out of the transport, which reads from this
		// memory: the next Write must not write over it.
		s.enc.text, s.enc.records = nil, nil
		s.rest = r
		return err
	case len(r.refused) > 0:
		s.rest = nil
		return &sink.Partial{Refused: r.refused}
	}
	s.rest = nil
	return nil
}

// plan says which records go to which partition: all of the batch, or what is left of it where it is
// the one that failed last. Equal batches give equal records, so numbers of records stay valid.
func (s *topic) plan(ctx context.Context, batch []sink.Message) (*rest, error) {
	r := &rest{first: batch[0].ID, last: batch[len(batch)-1].ID, n: len(batch)}
	if old := s.rest; old != nil && old.first == r.first && old.last == r.last && old.n == r.n {
		return old, nil
	}
	s.rest = nil
	partitions, err := s.partitions(ctx)
	if err != nil {
		return nil, err
	}
	r.todo = make(map[int][]int, len(partitions))
	for i := range s.enc.records {
		p := s.balancer.Balance(kafkago.Message{Key: s.enc.bytes(s.enc.records[i].key)}, partitions...)
		r.todo[p] = append(r.todo[p], i)
	}
	return r, nil
}

// partitions are the topic's. The transport answers from memory and renews it every few seconds.
func (s *topic) partitions(ctx context.Context) ([]int, error) {
	meta, err := s.client.Metadata(ctx, &kafkago.MetadataRequest{Topics: []string{s.name}})
	if err != nil {
		return nil, s.unreachable(err)
	}
	for _, t := range meta.Topics {
		if t.Name != s.name {
			continue
		}
		if t.Error != nil {
			return nil, s.passing(ctx, t.Error)
		}
		ids := make([]int, len(t.Partitions))
		for i, p := range t.Partitions {
			ids[i] = p.ID
		}
		slices.Sort(ids)
		if len(ids) > 0 {
			return ids, nil
		}
	}
	return nil, s.passing(ctx, kafkago.UnknownTopicOrPartition)
}

// send sends what is left, partitions side by side, each in order. What was acknowledged or refused is
// taken out of r.
func (s *topic) send(ctx context.Context, r *rest) error {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed error
	)
	for p, todo := range maps.Clone(r.todo) { // what is through is taken out of r.todo meanwhile
		wg.Go(func() {
			left, refused, err := s.sendTo(ctx, p, todo)
			mu.Lock()
			defer mu.Unlock()
			r.refused = append(r.refused, refused...)
			if len(left) == 0 {
				delete(r.todo, p)
			} else {
				r.todo[p] = left
			}
			if failed == nil && err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return failed
}

// sendTo sends records to one partition, request after request; after a failure nothing later goes out,
// which would overtake.
func (s *topic) sendTo(ctx context.Context, partition int, todo []int) (left []int, refused []sink.Refused, err error) {
	limit := s.batch
	for len(todo) > 0 {
		n, size := 0, 0
		for n < len(todo) && n < limit {
			rec := &s.enc.records[todo[n]]
			if size += rec.value.to - rec.value.from + 128; n > 0 && size > s.maxBytes {
				break
			}
			n++
		}
		resp, err := s.client.Produce(ctx, &kafkago.ProduceRequest{
			Topic: s.name, Partition: partition, RequiredAcks: kafkago.RequireAll, Compression: s.compression, Records: s.reader(todo[:n]),
		})
		if err != nil {
			return todo, refused, s.unreachable(err)
		}
		switch {
		case resp.Error == nil:
			todo, limit = todo[n:], min(2*limit, s.batch)
		case !s.refusal(resp.Error):
			return todo, refused, s.passing(ctx, resp.Error)
		case n > 1 && len(resp.RecordErrors) > 0 && len(resp.RecordErrors) < n:
			// Nothing of the request was written: the others go again without those.
			kept := make([]int, 0, len(todo))
			for i, rec := range todo[:n] {
				if because, bad := resp.RecordErrors[i]; bad {
					refused = append(refused, s.refuse(rec, because.Error()))
				} else {
					kept = append(kept, rec)
				}
			}
			todo = append(kept, todo[n:]...)
		case n > 1:
			limit = n / 2
		default:
			refused = append(refused, s.refuse(todo[0], resp.Error.Error()))
			todo = todo[1:] // with the limit as small as it is: bad records come together
		}
	}
	return nil, refused, nil
}

// refusal reports whether an error is about the records and for good.
func (s *topic) refusal(err error) bool {
	for _, code := range []kafkago.Error{
		kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge, kafkago.InvalidMessage, kafkago.InvalidMessageSize,
		kafkago.InvalidTimestamp, kafkago.InvalidRecord,
	} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

func (s *topic) refuse(i int, reason string) sink.Refused {
	rec := &s.enc.records[i]
	part := "record " + s.id(rec)
	if !s.enc.whole {
		part = string(s.enc.bytes(rec.value))
	}
	return sink.Refused{Message: rec.message, Samples: 1, Part: part, Reason: fmt.Sprintf("topic %q: %s", s.name, reason)}
}

// id is the header by which readers know a record again.
func (s *topic) id(rec *record) string {
	if rec.number < 0 {
		return rec.id
	}
	return rec.id + "/" + strconv.Itoa(rec.number)
}

// reader makes a request's records.
func (s *topic) reader(todo []int) kafkago.RecordReader {
	records := make([]kafkago.Record, len(todo))
	headers := make([]protocol.Header, len(todo))
	for i, at := range todo {
		rec := &s.enc.records[at]
		headers[i] = protocol.Header{Key: "id", Value: []byte(s.id(rec))}
		records[i] = kafkago.Record{
			Key: kafkago.NewBytes(s.enc.bytes(rec.key)), Value: kafkago.NewBytes(s.enc.bytes(rec.value)), Headers: headers[i : i+1 : i+1],
		}
	}
	return kafkago.NewRecordReader(records...)
}

// passing words what a broker answered.
func (s *topic) passing(ctx context.Context, err error) error {
	hint := ""
	switch {
	case errors.Is(err, kafkago.UnknownTopicOrPartition):
		hint = "it does not exist: create it, or give autocreate=true"
		if s.create {
			hint = "it does not exist yet, and was asked for"
			_, reqErr := s.transport.RoundTrip(ctx, s.brokers, &metadata.Request{TopicNames: []string{s.name}, AllowAutoTopicCreation: true})
			if reqErr != nil {
				hint = "it does not exist, and asking for it fails: " + reqErr.Error()
			}
		}
	case errors.Is(err, kafkago.TopicAuthorizationFailed), errors.Is(err, kafkago.ClusterAuthorizationFailed):
		hint = "this user may not write to it"
	case errors.Is(err, kafkago.SASLAuthenticationFailed):
		return s.unreachable(err)
	case errors.Is(err, kafkago.UnsupportedCompressionType):
		hint = "the brokers do not know this `compression`"
	case errors.Is(err, kafkago.InvalidTopic):
		hint = "the name is not allowed"
	}
	if hint != "" {
		hint += ": "
	}
	return fmt.Errorf("write to topic %q of Kafka at %s: %s%w", s.name, s.brokerNames, hint, err)
}

// unreachable words a failed connection or request.
func (s *topic) unreachable(err error) error {
	who := "Kafka at " + s.brokerNames
	switch {
	case errors.Is(err, kafkago.UnknownTopicOrPartition):
		return fmt.Errorf("write to topic %q of %s: it does not exist: create it, or give autocreate=true: %w", s.name, who, err)
	case errors.Is(err, kafkago.SASLAuthenticationFailed), errors.Is(err, kafkago.UnsupportedSASLMechanism):
		return fmt.Errorf("log in to %s: check `user`, `password` and `mechanism`: %w", who, err)
	case s.secured && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
		// Brokers close the connection where they do not like a password.
		return fmt.Errorf("log in to %s: it closed the connection: check `user`, `password` and `mechanism`: %w", who, err)
	}
	return sink.Reach(who, err)
}
