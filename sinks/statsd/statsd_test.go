package statsd

import (
	"errors"
	"maps"
	"math"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

const (
	mute  = "A statsd never answers: it can neither be slow nor refuse anything, so nothing goes to DEAD."
	clear = "Datagrams go in the clear, without a login."
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, _ sinktest.Reach) sinktest.Backend { return newFake(t) },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		for _, l := range encoded(build(tb, "statsd"), r) {
			names = append(names, gauge(l))
		}
		return names
	},
	Without: map[sinktest.Mood]string{
		sinktest.Slow: mute, sinktest.Stalled: mute, sinktest.Failing: mute, sinktest.Refusing: mute, sinktest.HalfRefuses: mute,
		sinktest.HangsUp: mute, sinktest.CutsOff: mute, sinktest.Garbage: mute,
	},
	NoTLS: clear, NoLogin: clear,
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	for _, options := range []string{"?maxage=99999h", "?maxage=99999h&protocolType=influxstatsd&numMetricsPerMsg=20"} {
		b.Run(options, func(b *testing.B) {
			s := sinktest.SwallowUDP(b)
			suite.Bench(b, "statsd:udp://"+s.Addr+options, s.Bytes.Load)
		})
	}
}

func build(tb testing.TB, target string) *daemon {
	tb.Helper()
	return sinktest.New[*daemon](tb, Kind, target)
}

func encoded(s *daemon, r *proto.Rollup) []string {
	s.enc.reset()
	s.enc.encode(r, 0)
	if len(s.enc.text) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(s.enc.text), "\n"), "\n")
}

// gauge is the name in a line.
func gauge(line string) string { return line[:strings.LastIndexByte(line, ':')] }

// line is what a statsd takes: one colon, a plain number, a type.
var line = regexp.MustCompile(`^[^:|\s]+:-?[0-9]+(\.[0-9]+)?\|g$`)

// fake is a statsd.
type fake struct {
	t    *testing.T
	addr string

	mu      sync.Mutex
	conn    net.PacketConn // nil while nobody listens
	holds   map[string]int
	reading sync.WaitGroup
}

func newFake(t *testing.T) *fake {
	f := &fake{t: t, holds: map[string]int{}}
	f.listen(bustest.FreeAddr(t)) // which it comes back to
	t.Cleanup(func() { f.Behave(sinktest.Down) })
	return f
}

func (f *fake) listen(addr string) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.(*net.UDPConn).SetReadBuffer(1 << 20); err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.conn, f.addr = c, c.LocalAddr().String()
	f.mu.Unlock()
	f.reading.Go(func() {
		for b := make([]byte, 64<<10); ; {
			n, _, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			f.mu.Lock()
			for l := range strings.Lines(string(b[:n])) {
				l = strings.TrimSuffix(l, "\n")
				if !line.MatchString(l) {
					f.t.Errorf("a statsd does not take %q", l)
				}
				f.holds[gauge(l)]++
			}
			f.mu.Unlock()
		}
	})
}

// Target writes datagrams so large that all of a test's fit into the socket's memory: none is lost.
func (f *fake) Target(sinktest.Reach) string {
	return "statsd:udp://" + f.addr + "?numMetricsPerMsg=20&maxage=99999h"
}

func (f *fake) Behave(m sinktest.Mood) {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	switch {
	case m == sinktest.Down && conn != nil:
		_ = conn.Close()
		f.reading.Wait()
		f.mu.Lock()
		f.conn = nil
		f.mu.Unlock()
	case m != sinktest.Down && conn == nil:
		f.listen(f.addr)
	}
}

func (f *fake) Holds() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.holds)
}

// web is a container with labels, a volume and samples of both types.
func web() *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n1.a", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1.a", Hostname: "n1.a"})
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "default", UID: "pod-uid", Labels: []proto.Label{{Key: "app.kubernetes.io/name", Value: "web"}, {Key: "tier", Value: "fe"}, {Key: "void"}}})
	row := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web", Image: "nginx:1"})
	r.Values.Set(row, proto.MemoryUsage.Field(), 10)
	d := r.AddDevice(proto.Device{Entity: int32(row), Kind: proto.DeviceFilesystem, Name: "Volume:x"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, proto.Extra{Entity: int32(row), Name: "custom/q", Value: proto.Float(1234567.5)}, proto.Extra{Entity: int32(row), Name: "custom/t", Value: proto.Float(-1e-5)})
	r.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "default", UID: "ns-uid"})
	return r
}

func TestLines(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		if d := sinktest.Diff(want, encoded(build(t, target), web())); d != "" {
			t.Errorf("%s:\n%s", target, d)
		}
	}
	const path = "node.n1_a.namespace.default.pod.web-1.container.web.app_kubernetes_io/name.web.tier.fe."
	check("statsd", path+"memory/usage:10|g", path+"filesystem/usage.Volume_x:4096|g",
		path+"custom/q:1234567.5|g", path+"custom/t:0|g", path+"custom/t:-0.00001|g")
	check("statsd:?prefix=a.b&allowedLabels=type&filter=metric:memory/*", "a_b.node.n1_a.namespace.default.pod.web-1.container.web.memory/usage:10|g")
	check("statsd:?renameLabels=tier:the_layer&labelStyle=upperCamelCase&filter=metric:memory/*",
		"node.n1_a.namespace.default.pod.web-1.container.web.App_kubernetes_io/name.web.TheLayer.fe.memory/usage:10|g")
	check("statsd:?protocolType=InfluxStatsd&prefix=p.&filter=metric:memory/*",
		"p.memory/usage,app.kubernetes.io/name=web,container_base_image=nginx_1,container_name=web,hostname=n1.a,namespace_id=ns-uid,namespace_name=default,nodename=n1.a,pod_id=pod-uid,pod_name=web-1,tier=fe,type=pod_container:10|g")
	check("statsd:?protocolType=influxstatsd&allowedLabels=pod_name,container_name&labelStyle=lowerCamelCase&renameLabels=pod_name:pod&filter=metric:filesystem/*",
		"filesystem/usage,containerName=web,pod=web-1,resourceId=Volume_x:4096|g")
}

func TestLinesOfEveryKind(t *testing.T) {
	s := build(t, "statsd:?extended=true")
	got := map[string]bool{}
	for _, r := range sinktest.Oracle(t, "default") {
		for _, l := range encoded(s, r) {
			got[l] = true
			if !line.MatchString(l) {
				t.Fatalf("a statsd does not take %q", l)
			}
		}
	}
	for _, want := range []string{
		"namespace.ns-00.memory/usage:2341470208|g", "namespace.ns-00.workload.Deployment.web.memory/usage:1|g",
		"node.node-0000.sys-container.docker-daemon.cpu/usage:2617304626500000|g",
	} {
		if !got[want] {
			t.Errorf("no line is %q", want)
		}
	}
}

func TestWhatIsOldIsNotTakenForThePresent(t *testing.T) {
	f := newFake(t)
	s := build(t, "statsd:udp://"+f.addr)
	defer s.Close()
	old, young := web(), web()
	s.now = func() time.Time { return old.Tick.Time().Add(6 * time.Minute) }
	young.Tick = old.Tick.Add(5, time.Minute)
	err := s.Write(t.Context(), []sink.Message{{Rollup: old}, {Rollup: young}, {Rollup: old}})
	var p *sink.Partial
	if !errors.As(err, &p) || p.Err != nil || p.Late != 8 || len(p.Refused) != 0 {
		t.Fatalf("got %v, want 8 late samples", err)
	}
	for deadline := time.Now().Add(2 * time.Minute); len(f.Holds()) < 4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("holds %v", f.Holds())
		}
	}
	for name, n := range f.Holds() {
		if n != 1 && !strings.HasSuffix(name, "custom/t") {
			t.Errorf("%s came %d times", name, n)
		}
	}
}

func TestDatagramsAreBounded(t *testing.T) {
	f := newFake(t)
	s := build(t, "statsd:udp://"+f.addr+"?numMetricsPerMsg=100000&maxage=99999h")
	defer s.Close()
	r := web()
	for i := range 40 {
		r.Extras = append(r.Extras, proto.Extra{Entity: 2, Name: "custom/" + strings.Repeat(string(rune('a'+i%26)), 5000+i), Value: proto.Int(math.MaxInt64)})
	}
	r.Extras = append(r.Extras, proto.Extra{Entity: 2, Name: "custom/" + strings.Repeat("x", 70000), Value: proto.Int(1)}, proto.Extra{Entity: 2, Name: "custom/last", Value: proto.Int(1)})
	err := s.Write(t.Context(), []sink.Message{{Rollup: r}})
	var p *sink.Partial
	if !errors.As(err, &p) || p.Err != nil || len(p.Refused) != 1 || p.Refused[0].Samples != 1 {
		t.Fatalf("got %v, want one refused sample", err)
	}
	for deadline := time.Now().Add(2 * time.Minute); len(f.Holds()) < 45; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d gauges are held, want 45", len(f.Holds()))
		}
	}
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{"statsd": "localhost:8125", "statsd:udp://h": "h:8125", "statsd:tcp://h:1": "h:1", "statsd:h:1": "h:1"} {
		if got := build(t, target).addr; got != want {
			t.Errorf("%s reaches %s, want %s", target, got, want)
		}
	}
	sinktest.Complains(t, Kind, "statsd:?protocolType=etsy", "Unknown statd formatter etsy")
	sinktest.Complains(t, Kind, "statsd:?numMetricsPerMsg=0", "`numMetricsPerMsg` flag can only be positive")
	sinktest.Complains(t, Kind, "statsd:?renameLabels=a:b,c&alowedLabels=x", "`renameLabels` flag has \"c\"", "did you mean `allowedLabels`?")
	if said := sinktest.Warns(t, Kind, "statsd:tcp://h?labelStyle=camel"); !strings.Contains(said, "labelStyle") || !strings.Contains(said, "over UDP") {
		t.Errorf("warned of %q", said)
	}
}
