package graphite

import (
	"bytes"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

const mute = "Carbon never says that it fails or that it refuses a line, so nothing goes to DEAD."

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		names := encoded(build(tb, "graphite:tcp://h?device_paths=true"), r)
		for i := range names {
			names[i] = identity(names[i])
		}
		return names
	},
	Without: map[sinktest.Mood]string{sinktest.Failing: mute, sinktest.Refusing: mute, sinktest.HalfRefuses: mute},
	NoLogin: "Carbon knows no login.",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	s := sinktest.SwallowTCP(b)
	suite.Bench(b, "graphite:tcp://"+s.Addr, s.Bytes.Load)
}

func build(tb testing.TB, target string) *carbon {
	tb.Helper()
	return sinktest.New[*carbon](tb, Kind, target)
}

func encoded(s *carbon, rollups ...*proto.Rollup) []string {
	s.enc.reset()
	for _, r := range rollups {
		s.enc.encode(r)
	}
	if len(s.enc.ends) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(string(s.enc.text), "\n"), "\n")
	slices.Sort(lines)
	return lines
}

// identity is a line without its value: what carbon tells values apart by.
func identity(line string) string {
	f := strings.Fields(line)
	return f[0] + " " + f[2]
}

// plaintext is what carbon takes for a line.
var plaintext = regexp.MustCompile(`^kubernetes(\.[^\s.;/]+)+ -?[0-9]+(\.[0-9]+)? [0-9]{10}$`)

type fake struct{ *sinktest.Stream }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	return &fake{sinktest.StartLines(t, r, plaintext, identity)}
}

func (f *fake) Target(r sinktest.Reach) string {
	scheme := "tcp"
	if r.TLS {
		scheme = "tls"
	}
	return "graphite:" + scheme + "://" + f.Addr() + "?device_paths=true&" + f.Options(r)
}

func TestLinesAreHeapsters(t *testing.T) {
	want := sinktest.Lines(t, "testdata/oracle.txt.gz")
	got := encoded(build(t, "graphite:tcp://h"), sinktest.Oracle(t, "default")...)
	if d := sinktest.Diff(want, got); d != "" {
		t.Fatalf("%d lines, want %d (- oracle, + ours):\n%s", len(got), len(want), d)
	}
}

func TestDevicesMayHavePathsOfTheirOwn(t *testing.T) {
	s := build(t, "graphite:tcp://h?device_paths=1&prefix=a.b")
	all := encoded(s, sinktest.Oracle(t, "default")...)
	for _, want := range []string{
		"a.b.nodes.node-0000.filesystem._.usage ", "a.b.nodes.node-0000.cpu.usage_rate ",
		".containers.c0.filesystem.logs.usage ", ".filesystem.Volume:kube-api-access-",
	} {
		if !slices.ContainsFunc(all, func(l string) bool { return strings.Contains(l, want) }) {
			t.Errorf("no line has %q", want)
		}
	}
	seen := map[string]bool{}
	for _, l := range all {
		if seen[identity(l)] {
			t.Errorf("two values for %q", identity(l))
		}
		seen[identity(l)] = true
	}
}

func TestNamesCannotBreakLines(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n.example.com", Tick: sinktest.OracleTick, Resolution: time.Second}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: r.Name, Hostname: "n.example.com"})
	row := r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "/system.slice/a b;c\n1 2 3"})
	r.Extras = append(r.Extras, proto.Extra{Entity: int32(row), Name: "custom/q x/y;z=1", Value: proto.Float(0.5)})
	want := []string{"kubernetes.nodes.n_example_com.sys-containers._system_slice_a_b_c_1_2_3.custom.q_x.y_z=1 0.500000 1795206365"}
	if d := sinktest.Diff(want, encoded(build(t, "graphite:tcp://h"), r)); d != "" {
		t.Fatal(d)
	}
	all := encoded(build(t, "graphite:tcp://h?extended=true"), sinktest.Oracle(t, "default")...)
	if want := "kubernetes.namespaces.ns-00.workloads.Deployment.web.memory.usage 1 1795206365"; !slices.Contains(all, want) {
		t.Errorf("no line is %q", want)
	}
}

func TestDatagramsHaveALineEach(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := build(t, "graphite:udp://"+c.LocalAddr().String())
	defer s.Close()
	r := &proto.Rollup{Scope: proto.ScopeTotals, Tick: sinktest.OracleTick, Resolution: time.Second}
	r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
	r.Values.Set(0, proto.MemoryUsage.Field(), 7)
	r.Values.Set(0, proto.CPULimit.Field(), 8)
	if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 2 {
		b := make([]byte, 2048)
		n, _, err := c.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(b[:n]))
	}
	slices.Sort(got)
	if d := sinktest.Diff([]string{"kubernetes.cluster.cpu.limit 8 1795206365\n", "kubernetes.cluster.memory.usage 7 1795206365\n"}, got); d != "" {
		t.Fatal(d)
	}
}

func TestNopPrints(t *testing.T) {
	target, err := sink.ParseTarget("graphite:nop:")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s, err := New(target, sink.Deps{Labels: proto.DefaultLabelFormat(), Log: slog.New(slog.DiscardHandler), Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Oracle(t, "default")[0]}}); err != nil {
		t.Fatal(err)
	}
	if line, _, _ := strings.Cut(out.String(), "\n"); line != "Graphite: namespaces.ns-00.memory.usage 2341470208 1795206365" {
		t.Fatalf("printed %q", line)
	}
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{
		"graphite:tcp://h:1": "h:1", "graphite:tcp://h": "h:2003", "graphite:tcp://h:": "h:2003", "graphite:udp://:5": "localhost:5", "graphite:tls://[::1]": "[::1]:2003",
	} {
		if got := build(t, target).peer.Address; got != want {
			t.Errorf("%s reaches %s, want %s", target, got, want)
		}
	}
	sinktest.Complains(t, Kind, "graphite:http://h", `scheme "http": want tcp, tls, udp or nop`)
	sinktest.Complains(t, Kind, "graphite", `scheme "": want tcp`)
	sinktest.Complains(t, Kind, "graphite:tcp://h?prefix=a%20b", "`prefix` flag is \"a b\"")
	sinktest.Complains(t, Kind, "graphite:tcp://h?prefx=a&device_path=maybe", "did you mean `prefix`?", "did you mean `device_paths`?")
}
