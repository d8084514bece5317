package wavefront

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

const mute = "The proxy never says that it fails or that it refuses a line, so nothing goes to DEAD."

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		names := encoded(build(tb, "wavefront:h:2878"), r)
		for i := range names {
			names[i] = identity(names[i])
		}
		return names
	},
	Without: map[sinktest.Mood]string{sinktest.Failing: mute, sinktest.Refusing: mute, sinktest.HalfRefuses: mute},
	NoLogin: "The proxy knows no login: it has the token.",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	s := sinktest.SwallowTCP(b)
	suite.Bench(b, "wavefront:tcp://"+s.Addr, s.Bytes.Load)
}

func build(tb testing.TB, target string) *proxy {
	tb.Helper()
	return sinktest.New[*proxy](tb, Kind, target)
}

func encoded(s *proxy, rollups ...*proto.Rollup) []string {
	s.enc.reset()
	for _, r := range rollups {
		s.enc.encode(r)
	}
	if s.enc.lines == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(string(s.enc.text), "\n"), "\n")
	slices.Sort(lines)
	return lines
}

// identity is a line without its value.
func identity(line string) string {
	f := strings.SplitN(line, " ", 3)
	return f[0] + " " + f[2]
}

// format is what the proxy takes for a line.
var format = regexp.MustCompile(`^heapster\.[a-z_]+\.[^\s"]+ -?[0-9]+(\.[0-9]+)? [0-9]{10} source="[^"]+"( [A-Za-z0-9._-]+="([^"\\\n]|\\.)+")+ $`)

type fake struct{ *sinktest.Stream }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	return &fake{sinktest.StartLines(t, r, format, identity)}
}

func (f *fake) Target(r sinktest.Reach) string {
	scheme := ""
	if r.TLS {
		scheme = "tls://"
	}
	return "wavefront:" + scheme + f.hostPort(r) + "?" + f.Options(r)
}

// hostPort is the address: an IP cannot be written without a scheme, in Heapster's grammar.
func (f *fake) hostPort(r sinktest.Reach) string {
	if r.TLS {
		return f.Addr()
	}
	return strings.Replace(f.Addr(), "127.0.0.1", "localhost", 1)
}

// sorted is a line with its tags sorted: Heapster wrote them in any order.
func sorted(line string) string {
	head, tags, ok := strings.Cut(line, `" `)
	if !ok {
		return line
	}
	f := strings.Fields(tags)
	slices.Sort(f)
	return head + `" ` + strings.Join(f, " ") + " "
}

func TestLinesAreHeapsters(t *testing.T) {
	want := sinktest.Lines(t, "testdata/oracle.txt.gz")
	for i := range want {
		want[i] = sorted(want[i])
	}
	slices.Sort(want)
	if d := sinktest.Diff(want, encoded(build(t, "wavefront:h:1"), sinktest.Oracle(t, "default")...)); d != "" {
		t.Fatalf("- oracle, + ours:\n%s", d)
	}
}

func TestOptionsShapeLines(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Name: "n1", Tick: sinktest.OracleTick, Resolution: time.Second}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", Labels: []proto.Label{{Key: "a/b", Value: `say "x\"`}, {Key: "c"}}})
	r.Values.Set(0, proto.MemoryUsage.Field(), 7)
	slice := r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "system.slice/cron"})
	r.Values.Set(slice, proto.MemoryUsage.Field(), 7)
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "p", Namespace: "ns"})
	c := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "c"})
	r.Values.Set(c, proto.MemoryUsage.Field(), 8)
	check := func(target string, want ...string) {
		t.Helper()
		if d := sinktest.Diff(want, encoded(build(t, target), r)); d != "" {
			t.Errorf("%s:\n%s", target, d)
		}
	}
	const node = `node.memory.usage 7 1795206365 source="n1" cluster="k8s-cluster" `
	check("wavefront:h:1?includeContainers=false&prefix=p-", `p-`+node+`nodename="n1" type="node" `)
	check("wavefront:h:1?includeLabels=true&clusterName=k", `heapster.node.memory.usage 7 1795206365 source="n1" cluster="k" label.a_b="say \"x\\\"" nodename="n1" type="node" `,
		`heapster.pod_container.memory.usage 8 1795206365 source="n1" cluster="k" container_name="c" namespace_name="ns" nodename="n1" pod_name="p" type="pod_container" `)
	totals := &proto.Rollup{Scope: proto.ScopeTotals, Tick: sinktest.OracleTick, Resolution: time.Second}
	totals.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
	totals.Values.Set(0, proto.CPULimit.Field(), 1)
	r = totals
	check("wavefront:h:1?cluster_name=k", `heapster.cluster.cpu.limit 1 1795206365 source="k" cluster="k" type="cluster" `)
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{"wavefront:h:1": "h:1", "wavefront:http://10.0.0.1:2878": "10.0.0.1:2878", "wavefront:tls://h": "h:2878"} {
		if s := build(t, target); s.peer.Address != want || (s.peer.TLS != nil) != strings.Contains(target, "tls") {
			t.Errorf("%s reaches %s, want %s", target, s.peer.Address, want)
		}
	}
	sinktest.Complains(t, Kind, "wavefront:?includeLabel=1", "its address is missing", "did you mean `includeLabels`?")
	if s := build(t, "wavefront:?testMode=true"); s.Write(t.Context(), []sink.Message{{Rollup: sinktest.Node("n", 0, 0, 0)}}) != nil {
		t.Error("the test mode writes")
	}
}
