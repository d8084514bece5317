package riemann

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

var suite = sinktest.Suite{
	Kind:  Kind,
	Start: func(t *testing.T, r sinktest.Reach) sinktest.Backend { return newFake(t, r) },
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		s := build(tb, "riemann")
		s.enc.reset()
		s.enc.encode(r, 0)
		names, err := events(s.enc.text)
		if err != nil {
			tb.Fatal(err)
		}
		return names
	},
	Without: map[sinktest.Mood]string{sinktest.HalfRefuses: "Riemann refuses a message or takes it, and does not say which event it is about."},
	NoLogin: "Riemann knows no login: it may ask for a client's certificate (`cert`, `key`).",
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) {
	f := newFake(b, sinktest.Reach{})
	f.blind = true
	suite.Bench(b, "riemann:tcp://"+f.Addr(), f.Bytes)
}

func build(tb testing.TB, target string) *server {
	tb.Helper()
	return sinktest.New[*server](tb, Kind, target)
}

// events names the events of a message: all of their fields, but without the value.
func events(b []byte) (names []string, err error) {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 || field != msgEvents || kind != protowire.BytesType {
			return nil, fmt.Errorf("field %d of kind %d is not an event", field, kind)
		}
		event, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return nil, protowire.ParseError(m)
		}
		name, err := describe(event, false)
		if err != nil {
			return nil, err
		}
		names = append(names, name)
		b = b[n+m:]
	}
	return names, nil
}

// describe reads an event, strictly.
func describe(b []byte, values bool) (string, error) {
	said := map[string]string{}
	var attributes []string
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", protowire.ParseError(n)
		}
		b = b[n:]
		var v any
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(b)
		case protowire.Fixed32Type:
			v, n = protowire.ConsumeFixed32(b)
		case protowire.Fixed64Type:
			v, n = protowire.ConsumeFixed64(b)
		}
		if n < 0 {
			return "", protowire.ParseError(n)
		}
		b = b[n:]
		switch v := v.(type) {
		case uint64:
			switch {
			case field == eventTime && kind == protowire.VarintType:
				said["time"] = fmt.Sprint(v)
			case field == eventInteger && kind == protowire.VarintType:
				said["integer"] = fmt.Sprint(protowire.DecodeZigZag(v))
			case field == eventDouble && kind == protowire.Fixed64Type:
				said["double"] = fmt.Sprint(math.Float64frombits(v))
			default:
				return "", fmt.Errorf("field %d is not of an event", field)
			}
		case uint32:
			if field != eventTTL {
				return "", fmt.Errorf("field %d is not of an event", field)
			}
			said["ttl"] = fmt.Sprint(math.Float32frombits(v))
		case []byte:
			switch field {
			case eventState:
				said["state"] = string(v)
			case eventService:
				said["service"] = string(v)
			case eventText:
				said["description"] = string(v)
			case eventHost:
				said["host"] = string(v)
			case eventTags:
				said["tags"] += string(v) + ";"
			case eventAttributes:
				_, _, n := protowire.ConsumeTag(v)
				key, m := protowire.ConsumeString(v[n:])
				_, _, k := protowire.ConsumeTag(v[n+m:])
				value, l := protowire.ConsumeString(v[n+m+k:])
				if n+m+k+l != len(v) {
					return "", fmt.Errorf("attribute %q is malformed", v)
				}
				attributes = append(attributes, key+"="+value)
			default:
				return "", fmt.Errorf("field %d is not of an event", field)
			}
		}
	}
	if said["time"] == "" || said["service"] == "" || said["host"] == "" || said["ttl"] == "" || (said["integer"] == "") == (said["double"] == "") {
		return "", fmt.Errorf("event lacks something: %v", said)
	}
	if !slices.IsSorted(attributes) {
		return "", fmt.Errorf("attributes %v are not sorted", attributes)
	}
	name := strings.Join([]string{said["host"], said["service"], said["time"], "ttl " + said["ttl"], said["state"], said["tags"], strings.Join(attributes, " ")}, "|")
	if values {
		name += "|" + said["integer"] + "|" + said["double"]
	}
	return name, nil
}

type fake struct {
	*sinktest.Stream
	blind bool // takes everything, and does not look
}

func newFake(tb testing.TB, r sinktest.Reach) *fake {
	f := &fake{}
	f.Stream = sinktest.StartStream(tb, r, &sinktest.Stream{Take: func(c net.Conn) {
		for length := make([]byte, 4); ; {
			if _, err := io.ReadFull(c, length); err != nil {
				return
			}
			msg := make([]byte, binary.BigEndian.Uint32(length))
			if _, err := io.ReadFull(c, msg); err != nil {
				return
			}
			mood := f.Mood()
			var names []string
			if !f.blind {
				var err error
				if names, err = events(msg); err != nil && mood != sinktest.CutsOff {
					tb.Errorf("Riemann does not take the message: %v", err)
				}
			}
			answer := "1001" // ok: true
			switch mood {
			case sinktest.Slow:
				time.Sleep(2 * time.Millisecond)
			case sinktest.Stalled:
				f.Stall()
				return
			case sinktest.HangsUp, sinktest.Down, sinktest.CutsOff, sinktest.Failing:
				return
			case sinktest.Refusing:
				answer = "10001a026e6f" // ok: false, error: "no"
			case sinktest.Garbage:
				_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
				return
			}
			if mood != sinktest.Refusing {
				f.Store(false, names...)
			}
			b, err := hex.DecodeString(answer)
			if err != nil {
				tb.Error(err)
			}
			if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
				return
			}
		}
	}})
	return f
}

func (f *fake) Target(r sinktest.Reach) string {
	scheme := "tcp"
	if r.TLS {
		scheme = "tls"
	}
	return "riemann:" + scheme + "://" + f.Addr() + "?batchsize=50&" + f.Options(r)
}

// web is the specification's example.
func web() *proto.Rollup {
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "c", Name: "n1", Tick: proto.Tick(1514859840000), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n1", Hostname: "n1"})
	r.Values.Set(0, proto.CPUUsage.Field(), 10)
	d := r.AddDevice(proto.Device{Kind: proto.DeviceFilesystem, Name: "/"})
	r.DeviceValues.Set(d, proto.FilesystemUsage.Field(), 4096)
	r.Extras = append(r.Extras, proto.Extra{Name: "custom/q", Value: proto.Float(-2.5)})
	return r
}

func TestEvents(t *testing.T) {
	check := func(target string, want ...string) {
		t.Helper()
		s := build(t, target)
		s.enc.reset()
		s.enc.encode(web(), 0)
		var got []string
		for i := range s.enc.ends {
			b, n := protowire.ConsumeBytes(s.enc.events(i, i+1)[1:])
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			d, err := describe(b, true)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, d)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", target, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	const labels = "host_id= hostname=n1 labels= nodename=n1 "
	check("riemann",
		"n1|cpu/usage|1514859840|ttl 60||heapster;|"+labels+"type=node|10|",
		"n1|filesystem/usage|1514859840|ttl 60||heapster;|"+labels+"resource_id=/ type=node|4096|",
		"n1|custom/q|1514859840|ttl 60||heapster;|"+labels+"type=node||-2.5")
	check("riemann:?ttl=1.5&state=ok&tags=a&tags=b&cluster_name=c1&filter=metric:cpu/*",
		"n1|cpu/usage|1514859840|ttl 1.5|ok|a;b;|cluster_name=c1 "+labels+"type=node|10|")
}

func TestBytes(t *testing.T) {
	s := build(t, "riemann:?filter=metric:cpu/*&filter=-label.nodename:x")
	r := web()
	r.Values.Set(0, proto.CPUUsage.Field(), -1)
	s.enc.reset()
	s.enc.encode(r, 0)
	// events{time 1514859840 service host tags ttl attributes×5 metric_sint64 -1 as zigzag 1}
	const want = "326d" + "08c0daabd205" + "1a096370752f7573616765" + "22026e31" + "3a086865617073746572" + "4500007042" +
		"4a0b0a07686f73745f69641200" + "4a0e0a08686f73746e616d6512026e31" + "4a0a0a066c6162656c731200" +
		"4a0e0a086e6f64656e616d6512026e31" + "4a0c0a04747970651204" + "6e6f6465" + "6801"
	if got := hex.EncodeToString(s.enc.text); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEntitiesWithoutAHostAreOfThisOne(t *testing.T) {
	r := &proto.Rollup{Scope: proto.ScopeTotals, Tick: sinktest.OracleTick, Resolution: time.Second}
	r.AddEntity(proto.Entity{Kind: proto.KindCluster, Parent: -1})
	r.Values.Set(0, proto.MemoryUsage.Field(), 7)
	s := build(t, "riemann")
	s.enc.host = "here"
	s.enc.encode(r, 0)
	names, err := events(s.enc.text)
	if err != nil || len(names) != 1 || !strings.HasPrefix(names[0], "here|memory/usage|") {
		t.Fatalf("%v, %v", names, err)
	}
}

// TestAnsweredMessagesAreNotSentAgain lets the connection break between two messages of a batch.
func TestAnsweredMessagesAreNotSentAgain(t *testing.T) {
	f := newFake(t, sinktest.Reach{})
	s := build(t, "riemann:tcp://"+f.Addr()+"?batchsize=10")
	defer s.Close()
	batch := []sink.Message{{Rollup: sinktest.Node("n", 2, 1, 1), ID: "n"}}
	s.enc.reset()
	s.enc.encode(batch[0].Rollup, 0)
	total := len(s.enc.ends)
	s.progress.Begin(batch, (total+9)/10)
	s.progress.Settle(0)
	s.progress.Settle(1)
	if err := s.progress.End(io.ErrUnexpectedEOF); err == nil {
		t.Fatal("the failure is lost")
	}
	if err := s.Write(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if n := len(f.Holds()); n != total-20 {
		t.Fatalf("%d events are sent again, want %d", n, total-20)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{0x10, 1})
	f.Add([]byte{0x10, 0, 0x1a, 2, 'n', 'o'})
	f.Fuzz(func(t *testing.T, b []byte) {
		if ok, _, err := parse(b); ok && err != nil {
			t.Fatal("ok, and an error")
		}
	})
}

func TestOptions(t *testing.T) {
	for target, want := range map[string]string{"riemann": "riemann-heapster:5555", "riemann:http://h": "h:5555", "riemann:h:1": "h:1"} {
		if s := build(t, target); s.peer.Address != want || s.peer.TLS != nil {
			t.Errorf("%s reaches %s, want %s", target, s.peer.Address, want)
		}
	}
	if s := build(t, "riemann:tls://h:5554"); s.peer.TLS == nil {
		t.Error("tls://h does not speak TLS")
	}
	sinktest.Complains(t, Kind, "riemann:?ttl=soon&tag=x", "`ttl` flag is \"soon\"", "did you mean `tags`?")
}
