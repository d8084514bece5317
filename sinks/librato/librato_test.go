package librato

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		return encoded(build(tb, "librato:?username=u&token=t"), r)
	},
	Without:   map[sinktest.Mood]string{sinktest.HalfRefuses: "Librato refuses a request or takes it, as a whole."},
	LoginHint: "check `username`",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	f := sinktest.SwallowHTTP(b, 202, "")
	suite.Bench(b, "librato:?username=u&token=t&api=http://"+f.Addr, f.Bytes.Load)
}

func build(tb testing.TB, target string) *api {
	tb.Helper()
	return sinktest.New[*api](tb, Kind, target)
}

func encoded(s *api, r *proto.Rollup) (all []string) {
	s.enc.reset()
	s.enc.encode(r)
	for i := range s.enc.ends {
		all = append(all, string(s.enc.span(i, i+1)))
	}
	return all
}

type fake struct{ *sinktest.HTTP }

func newFake(t *testing.T, r sinktest.Reach) *fake {
	f := &fake{}
	f.HTTP = sinktest.StartHTTP(t, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			user, password, _ := r.BasicAuth()
			return user == "heapster" && password == sinktest.RightPassword
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, m sinktest.Mood) {
			var said struct {
				Measurements []json.RawMessage `json:"measurements"`
			}
			if err := json.Unmarshal(body, &said); err != nil || r.Method+r.URL.Path != "POST/v1/measurements" || len(said.Measurements) == 0 || len(said.Measurements) > 50 {
				t.Errorf("Librato does not take %s %s with %d measurements: %v", r.Method, r.URL, len(said.Measurements), err)
			}
			if m == sinktest.Refusing {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write([]byte(`{"errors":{"params":{"name":["refused"]}}}`))
				return
			}
			for _, raw := range said.Measurements {
				f.Store(false, string(raw))
			}
			w.WriteHeader(http.StatusAccepted)
		},
	})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	return "librato:?batchsize=50&username=heapster&token=" + r.Password() + "&api=" + f.URL() + "&" + f.Options(r)
}

func TestMeasurements(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1", Labels: []proto.Label{{Key: "app", Value: "web"}, {Key: "a/b", Value: "fe"}}})
	r.Values.Set(0, proto.CPUUsage.Field(), 0)
	d := r.AddDevice(proto.Device{Kind: proto.DeviceFilesystem, Name: "/x"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, proto.Extra{Name: "custom/q-é\\", Value: proto.Float(2.5)})
	const tags = `"tags":{"host_id":"","hostname":"n1","labels":"app:web_a_b:fe","nodename":"n1",`
	want := []string{
		`{"name":"p.cpu.usage","value":0,` + tags + `"type":"node"},"time":1514859840}`,
		`{"name":"p.filesystem.usage","value":4096,` + tags + `"resource_id":"_x","type":"node"},"time":1514859840}`,
		`{"name":"p.custom.q___","value":2.5,` + tags + `"type":"node"},"time":1514859840}`,
	}
	s := build(t, "librato:?username=u&token=t&prefix=p&tags=b,a&tag_a=1%2F&tag_b=2")
	if got := strings.Join(encoded(s, r), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if string(s.tags) != `{"a":"1_","b":"2"}` {
		t.Errorf("tags of the request are %s", s.tags)
	}
}

func TestLongNamesAreCut(t *testing.T) {
	if n := len(appendName(nil, "p.", strings.Repeat("é", 1000))); n != 255 {
		t.Errorf("a name has %d bytes", n)
	}
	if n := len(appendTagKey(nil, strings.Repeat("k", 1000))); n != 64 {
		t.Errorf("a tag's name has %d bytes", n)
	}
}

func TestOptions(t *testing.T) {
	sinktest.Complains(t, Kind, "librato:?api=x&tags=a&usrname=y", "no `username` flag specified", "no `token` flag specified", "`api` flag", "`tag_a` is not given", "did you mean `username`?")
}
