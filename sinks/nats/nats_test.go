package nats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
	"github.com/heapstream/heapstream/sinks/worker"
)

const out = "?subject=out.{cluster}.{kind}.{name}"

// suite counts messages: a rollup is stored or refused as a whole.
var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return start(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "nats:nats://h")
		s.enc.reset(bus.MaxPayload)
		s.enc.rollup(&sink.Message{Rollup: r, ID: worker.MessageID(r)}, 0)
		for i := range s.enc.parts {
			names = append(names, s.enc.parts[i].id)
		}
		return names
	},
	IsRefused: func(name string) bool { return strings.Contains(name, "/node/") }, // the larger ones
	LoginHint: "check `user` and `password`",
}

var events = sinktest.Suite{
	Kind: Kind, Start: suite.Start, LoginHint: suite.LoginHint,
	EventNames: func(_ testing.TB, e *proto.Event) []string { return []string{worker.EventMessageID(e)} },
}

func TestMain(m *testing.M) {
	sinktest.Main(m, []*sinktest.Suite{&suite, &events}, bustest.LeakOptions()...)
}

func TestContract(t *testing.T) { suite.Run(t) }

func TestContractOfEvents(t *testing.T) { events.Run(t) }

// server is a real one, behind a network with moods.
type server struct {
	*bustest.Outside
	net *sinktest.Listener
	tls *sinktest.TLS

	mu    sync.Mutex
	mood  sinktest.Mood
	stop  func() // of what answers nonsense
	holds map[string]int
	last  uint64
}

func start(tb testing.TB, r sinktest.Reach) *server {
	s := &server{net: sinktest.Listen(tb), holds: map[string]int{}}
	cfg := bustest.OutsideConfig{}
	if r.TLS {
		s.tls = sinktest.NewTLS(tb, r)
		cfg.TLS = s.tls.Config()
	}
	if r.Login {
		cfg.User, cfg.Pass = "heapster", sinktest.RightPassword
	}
	s.Outside = bustest.StartOutside(tb, cfg)
	s.Know(r.Fault != sinktest.LoginForgotten)
	var copying sync.WaitGroup
	copying.Go(func() {
		for {
			c, err := s.net.Accept()
			if err != nil {
				return
			}
			copying.Go(func() { s.carry(&copying, c) })
		}
	})
	tb.Cleanup(func() {
		_ = s.net.Close()
		s.net.Behave(sinktest.Down)
		copying.Wait()
	})
	return s
}

// carry carries bytes between a client and the server.
func (s *server) carry(copying *sync.WaitGroup, client net.Conn) {
	defer client.Close()
	to, err := net.Dial("tcp", s.Addr())
	if err != nil {
		return
	}
	defer to.Close()
	copying.Go(func() {
		_, _ = io.Copy(client, to)
		_ = client.Close()
	})
	for buf := make([]byte, 64<<10); ; {
		n, err := client.Read(buf)
		if s.is(sinktest.Slow) {
			time.Sleep(time.Millisecond)
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (s *server) is(m sinktest.Mood) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mood == m
}

func (s *server) Repair() {
	if s.tls != nil {
		s.tls.Repair()
	}
	s.Know(true)
}

func (s *server) Behave(m sinktest.Mood) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mood = m
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
	taken, largest := "out.>", int32(-1)
	switch m {
	case sinktest.Failing: // no stream takes it
		taken = "elsewhere.>"
	case sinktest.Refusing:
		largest = 1
	case sinktest.HalfRefuses:
		largest = 1500
	case sinktest.Garbage:
		taken = "elsewhere.>"
		s.stop = s.Answer("out.>", "<html>")
	}
	s.Stream([]string{taken}, largest)
	s.net.Behave(m)
}

func (s *server) Holds() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var more []bus.Message
	for more, s.last = s.Stored(s.last); len(more) > 0; more = more[1:] {
		s.holds[more[0].ID]++
	}
	return maps.Clone(s.holds)
}

func (s *server) Target(r sinktest.Reach) string {
	target := "nats:nats://" + s.net.Addr().String() + out + "&timeout=10s"
	if s.is(sinktest.Stalled) {
		target = strings.Replace(target, "=10s", "=300ms", 1)
	}
	if r.TLS {
		target = strings.Replace(target, "nats://", "tls://", 1)
		if !r.Untrusted {
			target += "&cacert=" + s.tls.CAFile
		}
	}
	if r.Login {
		target += "&user=heapster&password=" + r.Password()
	}
	return target
}

func build(tb testing.TB, target string) *subject {
	tb.Helper()
	s := sinktest.New[*subject](tb, Kind, target)
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

// message is a rollup as the worker hands it over.
func message(tb testing.TB, r *proto.Rollup) sink.Message {
	tb.Helper()
	data, err := proto.NewEncoder().Rollup(r)
	if err != nil {
		tb.Fatal(err)
	}
	return sink.Message{Rollup: r, ID: worker.MessageID(r), Data: slices.Clone(data)}
}

func web() *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1.example.com", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1.example.com", Hostname: "n1"})
	r.Values.Set(0, proto.CPUUsage.Field(), 10)
	for _, name := range []string{"/", "/var"} {
		d := r.AddDevice(proto.Device{Entity: 0, Kind: proto.DeviceFilesystem, Name: name})
		r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
		r.DeviceValues.Set(d, proto.FilesystemLimit.Field(), 8192)
	}
	r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "silent"})
	row := r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet"})
	r.Extras = append(r.Extras, proto.Extra{Entity: int32(row), Name: `custom/"q"`, Value: proto.Float(2.5)})
	return r
}

func TestRollupsAreJSON(t *testing.T) {
	o := bustest.StartOutside(t, bustest.OutsideConfig{})
	s := build(t, "nats:nats://"+o.Addr()+out+"&cluster_name=prod")
	if err := s.Write(t.Context(), []sink.Message{message(t, web())}); err != nil {
		t.Fatal(err)
	}
	all, _ := o.Stored(0)
	const want = `{"cluster":"prod","kind":"node","name":"n1.example.com","tick":"2018-01-02T02:24:00Z","resolution":60,"part":1,"parts":1,"entities":[` +
		`{"labels":{"host_id":"","hostname":"n1","labels":"","nodename":"n1.example.com","type":"node"},"metrics":{"cpu/usage":10},"devices":[` +
		`{"labels":{"resource_id":"/"},"metrics":{"filesystem/usage":4096,"filesystem/limit":8192}},{"labels":{"resource_id":"/var"},"metrics":{"filesystem/usage":4096,"filesystem/limit":8192}}]},` +
		`{"labels":{"container_name":"kubelet","host_id":"","hostname":"n1","nodename":"n1.example.com","type":"sys_container"},"metrics":{"custom/\"q\"":2.5}}]}`
	if len(all) != 1 || string(all[0].Data) != want || all[0].Subject != "out.prod.node.n1_example_com" || all[0].ID != "c/node/n1.example.com/1514859840000" {
		t.Fatalf("%d messages, the first to %s as %s:\n%s\nwant\n%s", len(all), all[0].Subject, all[0].ID, all[0].Data, want)
	}
	var any map[string]any
	if err := json.Unmarshal(all[0].Data, &any); err != nil {
		t.Fatal(err)
	}
}

// TestMessagesFitTheServer: a rollup larger than the server takes comes in parts between entities, the same at every
// attempt; what cannot be divided is refused.
func TestMessagesFitTheServer(t *testing.T) {
	o := bustest.StartOutside(t, bustest.OutsideConfig{MaxPayload: 8 << 10})
	s := build(t, "nats:nats://"+o.Addr()+out)
	r := sinktest.Node("n1", 12, 2, 1)
	want := 0
	for e := range s.enc.view.Entities(r) {
		for range e.Samples {
			want++
		}
	}
	for range 2 { // the second time nothing is stored
		if err := s.Write(t.Context(), []sink.Message{message(t, r)}); err != nil {
			t.Fatal(err)
		}
	}
	all, _ := o.Stored(0)
	got := 0
	for i, m := range all {
		var said struct {
			Part, Parts int
			Entities    []struct {
				Metrics map[string]json.Number
				Devices []struct{ Metrics map[string]json.Number }
			}
		}
		if err := json.Unmarshal(m.Data, &said); err != nil || said.Part != i+1 || said.Parts != len(all) || m.ID != fmt.Sprintf("default/node/n1/%d/%d", int64(r.Tick), i+1) {
			t.Fatalf("part %d of %d has id %q: %v", said.Part, said.Parts, m.ID, err)
		}
		for _, e := range said.Entities {
			got += len(e.Metrics)
			for _, d := range e.Devices {
				got += len(d.Metrics)
			}
		}
	}
	if len(all) < 3 || got != want {
		t.Fatalf("%d messages have %d samples, want %d", len(all), got, want)
	}
	long := web()
	long.Entities[0].Labels = []proto.Label{{Key: "a", Value: strings.Repeat("x", 9<<10)}}
	var p *sink.Partial
	err := s.Write(t.Context(), []sink.Message{message(t, long)})
	if p, _ = err.(*sink.Partial); p == nil || len(p.Refused) != 1 || p.Refused[0].Samples != 5 || !strings.Contains(p.Refused[0].Reason, "max_payload is 8192") {
		t.Fatalf("got %v", err)
	}
}

func TestRollupsMayTravelWhole(t *testing.T) {
	o := bustest.StartOutside(t, bustest.OutsideConfig{})
	s := build(t, "nats:nats://"+o.Addr()+out+"&format=msgpack")
	m := message(t, web())
	if err := s.Write(t.Context(), []sink.Message{m}); err != nil {
		t.Fatal(err)
	}
	all, _ := o.Stored(0)
	var r proto.Rollup
	if err := proto.NewDecoder().Rollup(all[0].Data, &r); err != nil || r.Name != "n1.example.com" || !bytes.Equal(all[0].Data, m.Data) {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestCoreNATSReachesListeners: without a stream, in order, with the id.
func TestCoreNATSReachesListeners(t *testing.T) {
	o := bustest.StartOutside(t, bustest.OutsideConfig{})
	heard := o.Listen("core.>")
	s := build(t, "nats:nats://"+o.Addr()+"?subject=core.{kind}.{node}.{namespace}&jetstream=false")
	var batch []sink.Message
	for n := range 20 {
		r := web()
		r.Tick += proto.Tick(n)
		batch = append(batch, message(t, r))
	}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for n := range 20 {
		select {
		case m := <-heard:
			if m.Subject != "core.node.n1_example_com.-" || m.ID != batch[n].ID {
				t.Fatalf("message %d is %s %s", n, m.Subject, m.ID)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("nothing is heard")
		}
	}
}

func TestEventsAreJSON(t *testing.T) {
	o := bustest.StartOutside(t, bustest.OutsideConfig{})
	s := sinktest.NewEvents[*subject](t, Kind, "nats:nats://"+o.Addr()+out)
	if err := s.Write(t.Context(), sinktest.EventMessages(sinktest.Event())); err != nil {
		t.Fatal(err)
	}
	all, _ := o.Stored(0)
	if len(all) != 1 || all[0].Subject != "out.c.event.default" || all[0].ID != "c/event/ev-uid/124" || !strings.HasPrefix(string(all[0].Data), `{"cluster":"c","event":{"metadata":{"name":"web-1.150",`) || !json.Valid(all[0].Data) {
		t.Fatalf("stored %s %s %s", all[0].Subject, all[0].ID, all[0].Data)
	}
}

func TestOptions(t *testing.T) {
	creds := filepath.Join(t.TempDir(), "x.creds")
	if err := os.WriteFile(creds, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	for target, complaints := range map[string][]string{
		"nats":                                             {"its address is missing"},
		"nats:http://h":                                    {"want nats://, tls://"},
		"nats:nats://u:p@h":                                {"has a login"},
		"nats:nats://h?subject=hs.rollups":                 {"is a subject of the bus"},
		"nats:nats://h?subject=a..b":                       {"has an empty token"},
		"nats:nats://h?subject=a.*":                        {"has a space or a wildcard"},
		"nats:nats://h?subject=a.x{node}":                  {`"x{node}" is none of {cluster}, {kind}`},
		"nats:nats://h?subject=a.{pod}":                    {`"{pod}" is none of`},
		"nats:nats://h?creds=/none":                        {"credentials: open /none"},
		"nats:nats://h?creds=" + creds:                     {"has none of NATS's"},
		"nats:nats://h?nkey=" + creds:                      {"NKey of"},
		"nats:nats://h?user=u&token=t":                     {"choose one of"},
		"nats:nats://h?password=p":                         {"`password` is given without `user`"},
		"nats:nats://h?server=h2&subjct=a":                 {"an address is no server", "did you mean `subject`?"},
		"nats:nats://h?format=msgpack&filter=metric:cpu/*": {"`filter` and `rename` cannot be had"},
	} {
		sinktest.Complains(t, Kind, target, complaints...)
	}
	s := build(t, "nats:h:1?server=tls://h2:2")
	if s.who != "NATS at h:1" {
		t.Errorf("reaches %s", s.who)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, options := range []string{"", "&format=msgpack", "&jetstream=false"} {
		b.Run("options="+strings.TrimPrefix(options, "&"), func(b *testing.B) {
			s := start(b, sinktest.Reach{})
			bySample := suite
			bySample.Names = func(tb testing.TB, r *proto.Rollup) (names []string) {
				for e := range build(tb, "nats:nats://h").enc.view.Entities(r) {
					for range e.Samples {
						names = append(names, "")
					}
				}
				return names
			}
			bySample.Bench(b, s.Target(sinktest.Reach{})+options, s.net.Bytes)
		})
	}
}
