package hawkular

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// oneNode writes one node alone: the contract's nodes have pods of the same UID, which no cluster has.
const oneNode = "filter=label.nodename:node-1"

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) (names []string) {
		s := build(tb, "hawkular:http://h?"+oneNode)
		s.enc.encode(r)
		for _, p := range s.enc.points {
			names = append(names, fmt.Sprint(sortOf(p.counter), " ", p.id, " ", int64(r.Tick)))
		}
		return names
	},
	Without: map[sinktest.Mood]string{sinktest.HalfRefuses: "Hawkular-Metrics refuses a request or takes it, as a whole."},
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	f := sinktest.SwallowHTTP(b, 200, "")
	all := suite
	all.Names = func(tb testing.TB, r *proto.Rollup) []string {
		s := build(tb, "hawkular:http://h")
		s.enc.encode(r)
		return make([]string, len(s.enc.points))
	}
	all.Bench(b, "hawkular:http://"+f.Addr, f.Bytes.Load)
}

func build(tb testing.TB, target string) *metrics {
	tb.Helper()
	return sinktest.New[*metrics](tb, Kind, target)
}

type fake struct {
	*sinktest.HTTP

	mu   sync.Mutex
	tags map[string]string // definition: tags
	puts int
}

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{tags: map[string]string{}}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "heapster" && password == sinktest.RightPassword
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) { f.take(t, w, r, body, m) },
	})
	return f
}

func (f *fake) take(t *testing.T, w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/hawkular/metrics/")
	parts := strings.Split(path, "/")
	if !ok || r.Header.Get("Hawkular-Tenant") == "" || len(parts) < 2 || parts[0] != "gauges" && parts[0] != "counters" {
		t.Errorf("Hawkular does not take %s %s", r.Method, r.URL)
		return
	}
	if r.Method == http.MethodPut {
		id, err := url.PathUnescape(parts[1])
		var tags map[string]string
		if err != nil || len(parts) != 3 || parts[2] != "tags" || json.Unmarshal(body, &tags) != nil {
			t.Errorf("Hawkular does not take %s %s: %s", r.Method, r.URL, body)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.tags[parts[0]+" "+id] = string(body)
		f.puts++
		return
	}
	var said []struct {
		ID   string `json:"id"`
		Data []struct {
			Timestamp int64   `json:"timestamp"`
			Value     float64 `json:"value"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &said); err != nil || r.Method+path != "POST"+parts[0]+"/raw" || len(said) == 0 || len(said) > 50 {
		t.Errorf("Hawkular does not take %s %s with %d points: %v", r.Method, r.URL, len(said), err)
	}
	if m == sinktest.Refusing {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"errorMsg":"refused"}`))
		return
	}
	for _, p := range said {
		for _, d := range p.Data {
			f.Store(true, fmt.Sprint(parts[0], " ", p.ID, " ", d.Timestamp))
		}
	}
}

func (f *fake) Target(r sinktest.Reach) string {
	target := "hawkular:" + f.URL() + "?batchSize=50&" + oneNode + "&" + f.Options(r)
	if r.Login {
		target += "&user=heapster&pass=" + r.Password()
	}
	return target
}

// rollup is a node with a pod and its container.
func rollup(image string) *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "h1"})
	r.Values.Set(0, proto.MemoryUsage.Field(), 3)
	daemon := r.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet"})
	r.Values.Set(daemon, proto.MemoryUsage.Field(), 2)
	pod := r.AddEntity(proto.Entity{Kind: proto.KindPod, Name: "web-1", Namespace: "default", UID: "pod-uid", Labels: []proto.Label{{Key: "app", Value: "web"}}})
	web := r.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(pod), Name: "web", Image: image})
	r.Values.Set(web, proto.CPUUsage.Field(), 10)
	r.Values.Set(web, proto.RestartCount.Field(), 1)
	volume := r.AddDevice(proto.Device{Entity: int32(pod), Kind: proto.DeviceFilesystem, Name: "Volume:a"})
	r.DeviceValues.Set(volume, proto.FilesystemUsage.Field(), 4096)
	return r
}

func TestPoints(t *testing.T) {
	check := func(options string, want ...string) {
		t.Helper()
		s := build(t, "hawkular:http://h?"+options)
		s.enc.encode(rollup("nginx"))
		var got []string
		for _, p := range s.enc.points {
			got = append(got, p.tenant+" "+sortOf(p.counter)+" "+string(p.json))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", options, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	point := func(tenant, sort, id, value string) string {
		return tenant + " " + sort + ` {"id":"` + id + `","data":[{"timestamp":1514859840000,"value":` + value + `}]}`
	}
	check("",
		point("heapster", "gauges", "machine/n1/memory/usage", "3"), point("heapster", "gauges", "sys_container/kubelet//memory/usage", "2"),
		point("heapster", "gauges", "pod/pod-uid/filesystem/usage/Volume:a", "4096"),
		point("heapster", "counters", "web/pod-uid/cpu/usage", "10"), point("heapster", "gauges", "web/pod-uid/restart_count", "1"))
	check("tenant=t&labelToTenant=namespace_name&labelNodeId=hostname&filter=name(^cpu/)&filter=label(resource_id:.*)&filter=label(container_name:kube.*)&filter=-metric:restart_count",
		point("t", "gauges", "machine/h1/memory/usage", "3"))
}

func TestDefinitionsAreTaggedWhenTheirTagsChange(t *testing.T) {
	f := newFake(t, sinktest.Reach{})
	s := build(t, "hawkular:"+f.URL())
	defer s.Close()
	write := func(r *proto.Rollup, puts int) {
		t.Helper()
		if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
			t.Fatal(err)
		}
		if f.puts != puts {
			t.Fatalf("%d definitions were tagged in all, want %d", f.puts, puts)
		}
	}
	write(rollup("nginx:1"), 4) // all but restart_count
	write(rollup("nginx:1"), 4)
	write(rollup("nginx:2"), 5) // the container's image is a tag
	other := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n2", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	other.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n2", Hostname: "h2"})
	other.Values.Set(0, proto.MemoryUsage.Field(), 3)
	other.Values.Set(other.AddEntity(proto.Entity{Kind: proto.KindSystemContainer, Name: "kubelet"}), proto.MemoryUsage.Field(), 2)
	write(other, 6) // its own: the series of the kubelets is one
	write(rollup("nginx:2"), 6)
	want := `{"container_base_image":"nginx:2","container_name":"web","descriptor_name":"cpu/usage","group_id":"web/cpu/usage","host_id":"","hostname":"h1","labels":"app:web","namespace_name":"default","nodename":"n1","pod_id":"pod-uid","pod_name":"web-1","type":"pod_container","units":"ns","labels.app":"web"}`
	if got := f.tags["counters web/pod-uid/cpu/usage"]; got != want {
		t.Errorf("tagged\n%s\nwant\n%s", got, want)
	}
}

func TestTokenOfThePodIsReadAnew(t *testing.T) {
	var got string
	server := sinktest.StartHTTP(t, sinktest.Reach{}, &sinktest.HTTP{Take: func(_ http.ResponseWriter, r *http.Request, _ []byte, _ sinktest.Mood) {
		got = r.Header.Get("Authorization")
	}})
	s := build(t, "hawkular:"+server.URL()+"?useServiceAccount=true")
	defer s.Close()
	s.tokenFile = filepath.Join(t.TempDir(), "token")
	for _, token := range []string{"first", "second"} {
		if err := os.WriteFile(s.tokenFile, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), []sink.Message{{Rollup: rollup("nginx")}}); err != nil {
			t.Fatal(err)
		}
		if got != "Bearer "+token {
			t.Errorf("Authorization %q, want the token %q", got, token)
		}
	}
}

func TestOptions(t *testing.T) {
	if got := build(t, "hawkular:https://h:1/base/").base; got != "https://h:1/base" {
		t.Errorf("base %s", got)
	}
	sinktest.Complains(t, Kind, "hawkular", "its address is missing")
	sinktest.Complains(t, Kind, "hawkular:http://h?auth=/kube&caCert=/none&insecure=true&useServiceAccount=true&user=u",
		"Both auth and caCert files provided", "If user and password are used, serviceAccount cannot be used", "Insecure can't be defined with auth or caCert", "`caCert`", "give cacert, cert and key")
	sinktest.Complains(t, Kind, "hawkular:http://h?filter=name(x&filter=label(x)&filter=name([)&batchSize=-1&tenent=x",
		"missing )", "missing : want label", "error parsing regexp", "`batchSize` flag must be at least 0", "did you mean `tenant`?")
	said := sinktest.Warns(t, Kind, "hawkular:http://h?disablePreCache=true&concurrencyLimit=5&insecure=true")
	if !strings.Contains(said, "disablePreCache") || !strings.Contains(said, "concurrencyLimit") {
		t.Errorf("warned of %s", said)
	}
}
