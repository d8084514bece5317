package bus_test

import (
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto/bus"
)

func TestMarksAreRead(t *testing.T) {
	want := bus.Mark{Stream: "ROLLUPS_prod", Consumer: "sink-x", Delivered: 2, Seq: 7, ConsumerSeq: 5, At: 1795230000000000000, Pending: 3}
	for _, reply := range []string{
		"$JS.ACK.ROLLUPS_prod.sink-x.2.7.5.1795230000000000000.3",
		"$JS.ACK.c1.ACCOUNT.ROLLUPS_prod.sink-x.2.7.5.1795230000000000000.3",
		"$JS.ACK._.ACCOUNT.ROLLUPS_prod.sink-x.2.7.5.1795230000000000000.3.random",
	} {
		got, err := bus.ParseMark(reply)
		if err != nil || got != want {
			t.Errorf("%q is %+v (%v), want %+v", reply, got, err, want)
		}
	}
	for _, reply := range []string{"", "_INBOX.x", "$JS.ACK.", "$JS.ACK.S.c.1.2.3.4", "$JS.ACK.S.c.1.2.3.4.x", "$JS.ACK.S.c.-1.2.3.4.5",
		"$JS.ACK.S.c.1.2.3.18446744073709551616.5", "$JS.ACK.S.c.1.2.3.9223372036854775808.5"} {
		if got, err := bus.ParseMark(reply); err == nil {
			t.Errorf("%q was read as %+v", reply, got)
		}
	}
}

func FuzzMark(f *testing.F) {
	f.Add("$JS.ACK.ROLLUPS_prod.sink-x.2.7.5.1795230000000000000.3")
	f.Add("$JS.ACK.c1.ACCOUNT.ROLLUPS_prod.sink-x.2.7.5.1795230000000000000.3.random")
	f.Fuzz(func(t *testing.T, reply string) {
		m, err := bus.ParseMark(reply)
		if err != nil {
			return
		}
		if !strings.Contains(reply, "."+m.Stream+"."+m.Consumer+".") || m.At < 0 {
			t.Fatalf("%q was read as %+v", reply, m)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nNats-Msg-Id: prod/n1/7\r\nA: b\r\nA: c\r\n\r\n"))
	f.Add([]byte("NATS/1.0 100 Idle Heartbeat\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := bus.ParseHeader(raw)
		if err != nil {
			return
		}
		size := 0
		for k, values := range h {
			for _, v := range values {
				if size += len(k) + len(v); strings.Contains(k, ":") || strings.TrimSpace(v) != v {
					t.Fatalf("%q was read as %q", raw, h)
				}
			}
		}
		if size > len(raw) {
			t.Fatalf("%d bytes came out of %d", size, len(raw))
		}
	})
}

// A reason survives the header, whatever it is; a letter's header that nobody of
// us wrote is read as it stands.
func FuzzReason(f *testing.F) {
	f.Add("refused: 400 Bad Request")
	f.Add("temp\u00e9rature\nrefused ")
	f.Add("=b64 !")
	f.Fuzz(func(t *testing.T, reason string) {
		header := bus.HeaderText(reason)
		if strings.ContainsAny(header, "\r\n") || len(header) > 4<<10 {
			t.Fatalf("%q does not fit a header: %q", reason, header)
		}
		if got := bus.TextOf(header); len(reason) <= 1<<10 && got != strings.TrimSpace(reason) && got != reason {
			t.Fatalf("%q came back as %q", reason, got)
		}
		_ = bus.TextOf(reason)
	})
}
