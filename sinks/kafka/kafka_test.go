package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return start(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "kafka:?brokers=h:1")
		s.enc.encode(&sink.Message{Rollup: r}, 0)
		for i := range s.enc.records {
			names = append(names, name(s.enc.bytes(s.enc.records[i].value)))
		}
		return names
	},
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

// name is what tells samples apart: all but the value.
func name(value []byte) string {
	before, after, _ := strings.Cut(string(value), `,"MetricsValue":`)
	_, after, _ = strings.Cut(after, "}")
	return before + after
}

func build(tb testing.TB, target string) *topic {
	tb.Helper()
	return sinktest.New[*topic](tb, Kind, target)
}

func TestRecordsAreHeapsters(t *testing.T) {
	want := sinktest.Lines(t, "testdata/oracle.jsonl.gz")
	s := build(t, "kafka:?brokers=h:1")
	for i, r := range sinktest.Oracle(t, "default") {
		s.enc.encode(&sink.Message{Rollup: r}, i)
	}
	var got []string
	for i := range s.enc.records {
		got = append(got, string(s.enc.bytes(s.enc.records[i].value)))
	}
	slices.Sort(got)
	// The oracle leaves the cluster's set and one namespace out.
	want = slices.DeleteFunc(want, func(l string) bool {
		return strings.Contains(l, `"type":"cluster"`) || strings.Contains(l, `"type":"ns"`) && !slices.Contains(got, l)
	})
	if d := sinktest.Diff(want, got); d != "" {
		t.Fatalf("%d records, want %d (- oracle, + ours):\n%s", len(got), len(want), d)
	}
}

// broker is a fake cluster whose connections can be cut.
type broker struct {
	t       *testing.T
	r       sinktest.Reach
	cluster *kfake.Cluster
	tls     *sinktest.TLS
	follow  func() // reads what is written, once the brokers can be read

	mu       sync.Mutex
	mood     sinktest.Mood
	repaired bool
	nets     []*sinktest.Listener
	seen     []*kgo.Record
}

func start(t *testing.T, r sinktest.Reach, opts ...kfake.Opt) *broker {
	t.Helper()
	b := &broker{t: t, r: r}
	opts = append(opts, kfake.NumBrokers(3), kfake.SeedTopics(4, "heapster-metrics"), kfake.ListenFn(b.listen))
	if r.TLS {
		b.tls = sinktest.NewTLS(t, r)
		// The listener speaks TLS itself, so that cutting it is one thing for both.
	}
	if r.Login {
		opts = append(opts, kfake.EnableSASL(), kfake.Superuser("PLAIN", "heapster", "right-password"), kfake.Superuser("SCRAM-SHA-512", "heapster", "right-password"))
	}
	var err error
	if b.cluster, err = kfake.NewCluster(opts...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cluster.Close)
	b.cluster.ControlKey(int16(kmsg.Produce), b.produce)
	b.follow = sync.OnceFunc(b.read)
	if r.Fault == sinktest.Sound {
		b.follow()
	} else if r.Login {
		b.cluster.ControlKey(int16(kmsg.SASLAuthenticate), b.forgot)
	}
	return b
}

// forgot says of every login that it is wrong, as long as the brokers do not know the sink's.
func (b *broker) forgot(kmsg.Request) (kmsg.Response, error, bool) { //nolint:staticcheck // kfake's signature
	b.cluster.KeepControl()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.repaired {
		return nil, nil, false
	}
	resp := kmsg.NewSASLAuthenticateResponse()
	resp.ErrorCode = int16(kafkago.SASLAuthenticationFailed)
	return &resp, nil, true
}

// Repair ends the fault of the reach.
func (b *broker) Repair() {
	if b.tls != nil {
		b.tls.Repair()
	}
	b.mu.Lock()
	b.repaired = true
	b.mu.Unlock()
	b.follow()
}

func (b *broker) listen(network, address string) (net.Listener, error) {
	lis, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	l := sinktest.Wrap(lis)
	b.nets = append(b.nets, l)
	lis = l
	if b.tls != nil {
		lis = tls.NewListener(lis, b.tls.Config())
	}
	return lis, nil
}

// answer says the same of every partition of a request.
func answer(p *kmsg.ProduceRequest, code int16) *kmsg.ProduceResponse {
	resp := p.ResponseKind().(*kmsg.ProduceResponse)
	for _, rt := range p.Topics {
		st := kmsg.NewProduceResponseTopic()
		st.Topic = rt.Topic
		for _, rp := range rt.Partitions {
			sp := kmsg.NewProduceResponseTopicPartition()
			sp.Partition, sp.ErrorCode = rp.Partition, code
			st.Partitions = append(st.Partitions, sp)
		}
		resp.Topics = append(resp.Topics, st)
	}
	return resp
}

// produce is what happens to a produce request in every mood.
func (b *broker) produce(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:staticcheck // kfake's signature
	b.cluster.KeepControl()
	b.mu.Lock()
	mood := b.mood
	b.mu.Unlock()
	p := req.(*kmsg.ProduceRequest)
	respond := func(code int16) (kmsg.Response, error, bool) { //nolint:staticcheck // as above
		return answer(p, code), nil, true
	}
	switch mood {
	case sinktest.Slow:
		b.cluster.SleepControl(func() { time.Sleep(2 * time.Millisecond) })
	case sinktest.Stalled:
		return nil, nil, true // no answer at all
	case sinktest.Failing:
		return respond(int16(kafkago.NotEnoughReplicas))
	case sinktest.Refusing:
		return respond(int16(kafkago.InvalidRecord))
	case sinktest.HalfRefuses:
		for _, rt := range p.Topics {
			for _, rp := range rt.Partitions {
				if strings.Contains(string(rp.Records), sinktest.Refused) {
					return respond(int16(kafkago.MessageSizeTooLarge))
				}
			}
		}
	case sinktest.HangsUp, sinktest.Garbage:
		return nil, errors.New("hang up"), true
	}
	return nil, nil, false
}

func (b *broker) Behave(m sinktest.Mood) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mood = m
	for _, l := range b.nets {
		if m == sinktest.OK || m == sinktest.Down || m == sinktest.CutsOff {
			l.Behave(m)
		}
	}
}

func (b *broker) addrs() []string { return b.cluster.ListenAddrs() }

func (b *broker) Target(r sinktest.Reach) string {
	b.mu.Lock()
	timeout := "20s" // a timeout may double, so only those moods have a short one that need it
	if b.mood == sinktest.Stalled || b.mood == sinktest.Down {
		timeout = "1s"
	}
	b.mu.Unlock()
	target := "kafka:?timeout=" + timeout + "&brokers=" + strings.Join(b.addrs(), "&brokers=")
	if r.TLS {
		target += "&tls=true"
		if !r.Untrusted {
			target += "&cacert=" + b.tls.CAFile
		}
	}
	if r.Login {
		password := "right-password"
		if r.WrongLogin {
			password = "wrong-password"
		}
		target += "&user=heapster&password=" + password
	}
	return target
}

// read follows the topic with a consumer of another library.
func (b *broker) read() {
	opts := []kgo.Opt{kgo.SeedBrokers(b.addrs()...), kgo.ConsumeTopics("heapster-metrics"), kgo.FetchMaxWait(50 * time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 5 * time.Millisecond })}
	if b.r.TLS {
		opts = append(opts, kgo.DialTLSConfig(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: b.tls.Pool(b.t)}))
	}
	if b.r.Login {
		opts = append(opts, kgo.SASL(plain.Auth{User: "heapster", Pass: "right-password"}.AsMechanism()))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			b.mu.Lock()
			fetches.EachRecord(func(r *kgo.Record) { b.seen = append(b.seen, r) })
			b.mu.Unlock()
		}
	})
	b.t.Cleanup(func() { cancel(); wg.Wait(); client.Close() })
}

func (b *broker) records() []*kgo.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.seen)
}

func (b *broker) Holds() map[string]int {
	holds := map[string]int{}
	for _, r := range b.records() {
		holds[name(r.Value)]++
	}
	return holds
}

func (b *broker) await(n int) []*kgo.Record {
	b.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if seen := b.records(); len(seen) >= n {
			return seen
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%d records after 2 min, want %d", len(b.records()), n)
		}
	}
}

func (b *broker) sink(options string) *topic {
	s := build(b.t, b.Target(sinktest.Reach{})+options)
	b.t.Cleanup(func() { _ = s.Close() })
	return s
}

func batch(rollups ...*proto.Rollup) []sink.Message {
	all := make([]sink.Message, len(rollups))
	for i, r := range rollups {
		data, err := proto.NewEncoder().Rollup(r)
		if err != nil {
			panic(err)
		}
		all[i] = sink.Message{Rollup: r, ID: fmt.Sprintf("default/node/%s/%d", r.Name, r.Tick), Data: data}
	}
	return all
}

func TestKeysHeadersAndOrder(t *testing.T) {
	b := start(t, sinktest.Reach{})
	s := b.sink("&compression=zstd&batchsize=7")
	for n := range 3 {
		if err := s.Write(t.Context(), batch(sinktest.Node("node-1", 1, 1, n), sinktest.Node("node-2", 1, 1, n))); err != nil {
			t.Fatal(err)
		}
	}
	perNode := len(s.enc.records) / 2
	seen := b.await(6 * perNode)
	partitions, last := map[string]int32{}, map[string]string{}
	for _, r := range seen {
		if len(r.Headers) != 1 || r.Headers[0].Key != "id" {
			t.Fatalf("headers %v, want id", r.Headers)
		}
		key := string(r.Key)
		if p, ok := partitions[key]; ok && p != r.Partition {
			t.Fatalf("key %s is in partitions %d and %d", key, p, r.Partition)
		}
		partitions[key] = r.Partition
		id := string(r.Headers[0].Value)
		if !strings.HasPrefix(id, "default/node/"+strings.TrimPrefix(key, "default/")+"/") {
			t.Fatalf("key %s has id %s", key, id)
		}
		parts := strings.Split(id, "/")
		order := fmt.Sprintf("%s/%06s", parts[3], parts[4])
		if order <= last[key] {
			t.Fatalf("%s comes after %s", order, last[key])
		}
		last[key] = order
	}
	if len(partitions) != 2 {
		t.Fatalf("keys %v, want default/node-1 and default/node-2", partitions)
	}
}

func TestCompressions(t *testing.T) {
	b := start(t, sinktest.Reach{})
	want := 0
	for n, c := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		s := b.sink("&compression=" + c)
		if err := s.Write(t.Context(), batch(sinktest.Node("node-1", 1, 1, n))); err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		want += len(s.enc.records)
	}
	b.await(want)
}

func TestWholeRollups(t *testing.T) {
	b := start(t, sinktest.Reach{})
	in := sinktest.Node("node-1", 3, 2, 5)
	if err := b.sink("&format=msgpack").Write(t.Context(), batch(in)); err != nil {
		t.Fatal(err)
	}
	r := b.await(1)[0]
	var out proto.Rollup
	if err := proto.NewDecoder().Rollup(r.Value, &out); err != nil {
		t.Fatal(err)
	}
	if out.Name != in.Name || out.Tick != in.Tick || len(out.Entities) != len(in.Entities) {
		t.Fatalf("rollup of %q at %s with %d rows", out.Name, out.Tick, len(out.Entities))
	}
	if id := string(r.Headers[0].Value); id != fmt.Sprintf("default/node/node-1/%d", in.Tick) {
		t.Fatalf("id %s", id)
	}
}

// TestOnlyWhatFailedIsSentAgain fails one partition: the others' records must not come twice.
func TestOnlyWhatFailedIsSentAgain(t *testing.T) {
	b := start(t, sinktest.Reach{})
	s := b.sink("&batchsize=5")
	var mu sync.Mutex
	failures := 3
	b.cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		b.cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		p := req.(*kmsg.ProduceRequest)
		if failures == 0 || !strings.Contains(string(p.Topics[0].Partitions[0].Records), "default/node-2") {
			return nil, nil, false
		}
		failures--
		return nil, errors.New("hang up"), true
	})
	in := batch(sinktest.Node("node-1", 1, 1, 0), sinktest.Node("node-2", 1, 1, 0), sinktest.Node("node-3", 1, 1, 0))
	attempts := 1
	for ; s.Write(t.Context(), in) != nil; attempts++ {
		if attempts > 20 {
			t.Fatal("does not come to an end")
		}
	}
	if attempts == 1 {
		t.Fatal("no attempt failed")
	}
	seen := b.await(len(s.enc.records))
	count := map[string]int{}
	for _, r := range seen {
		count[string(r.Headers[0].Value)]++
	}
	for id, n := range count {
		if n != 1 {
			t.Fatalf("record %s came %d times", id, n)
		}
	}
}

func TestTopicThatIsNotThere(t *testing.T) {
	b := start(t, sinktest.Reach{}, kfake.AllowAutoTopicCreation())
	err := b.sink("&timeseriestopic=none").Write(t.Context(), batch(sinktest.Node("n", 1, 1, 0)))
	if err == nil || !strings.Contains(err.Error(), `topic "none"`) || !strings.Contains(err.Error(), "create it") {
		t.Fatalf("got %v", err)
	}
	s := b.sink("&timeseriestopic=made&autocreate=true")
	for n := 0; ; n++ {
		if err = s.Write(t.Context(), batch(sinktest.Node("n", 1, 1, 0))); err == nil {
			break
		}
		if n > 1000 {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // the transport renews what it knows every few seconds
	}
}

func TestScram(t *testing.T) {
	b := start(t, sinktest.Reach{Login: true})
	s := build(t, b.Target(sinktest.Reach{Login: true})+"&mechanism=scram-sha-512")
	defer s.Close()
	if err := s.Write(t.Context(), batch(sinktest.Node("n", 1, 1, 0))); err != nil {
		t.Fatal(err)
	}
	b.await(len(s.enc.records))
}

// TestKcatReadsIt reads with librdkafka, which shares no code with what wrote.
func TestKcatReadsIt(t *testing.T) {
	kcat, err := exec.LookPath("kcat")
	if err != nil {
		t.Skip("no kcat on this machine: apt-get install kcat")
	}
	b := start(t, sinktest.Reach{})
	s := b.sink("&compression=gzip")
	if err := s.Write(t.Context(), batch(sinktest.Node("node-1", 1, 1, 0))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, kcat, "-b", b.addrs()[0], "-C", "-t", "heapster-metrics", "-e", "-q", "-f", "%k %h %s\n").Output() //nolint:gosec // found above
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(s.enc.records) {
		t.Fatalf("kcat read %d records, want %d", len(lines), len(s.enc.records))
	}
	for i, l := range lines {
		want := fmt.Sprintf("default/node-1 id=default/node/node-1/%d/%d %s", sinktest.Node("n", 0, 0, 0).Tick, i, s.enc.bytes(s.enc.records[i].value))
		if l != want {
			t.Fatalf("kcat read\n%s\nwant\n%s", l, want)
		}
	}
}

func TestOptions(t *testing.T) {
	check := func(target string, complaints ...string) {
		t.Helper()
		parsed, err := sink.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		_, err = New(parsed, sink.Deps{Labels: proto.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler)})
		if len(complaints) == 0 && err != nil {
			t.Errorf("%s: %v", target, err)
		}
		for _, want := range complaints {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", target, err, want)
			}
		}
	}
	check("kafka:", "There is no broker assigned for connecting kafka")
	check("kafka:?brokers=h:1&compression=brotli", "want one of none, gzip, snappy, lz4, zstd")
	check("kafka:?brokers=http://h:1", "`brokers` flag")
	check("kafka:?brokers=h:1&user=x", "`user` and `password` belong together")
	check("kafka:?brokers=h:1&mechanism=kerberos", "`mechanism` flag")
	check("kafka:?brokers=h:1&format=avro", "`format` flag")
	check("kafka:?brokers=h:1&topic=x", "option `topic` is unknown")
	check("kafka:http://anything?brokers=h&brokers=g:2&eventstopic=e&insecuressl=true")
	if got := build(t, "kafka:?brokers=h&brokers=g:2").brokerNames; got != "h:9092,g:2" {
		t.Errorf("brokers %s", got)
	}
}

func BenchmarkEncode(b *testing.B) {
	m := batch(sinktest.Node("node-0001", 30, 2, 1))
	b.Run("pods=30/containers=2", func(b *testing.B) {
		s := build(b, "kafka:?brokers=h:1")
		b.ReportAllocs()
		samples := 0
		for b.Loop() {
			s.enc.reset()
			s.enc.encode(&m[0], 0)
			samples += len(s.enc.records)
		}
		b.ReportMetric(float64(samples)/b.Elapsed().Seconds(), "samples/s")
	})
}
