package soak

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

const res = 5 * time.Second

// tick n of a test.
func at(n int) proto.Tick { return proto.TickAt(time.Unix(1700000000, 0), res).Add(n, res) }

// points of a node at one tick.
func some(n int) (all []pair) {
	for i := range uint64(n) {
		all = append(all, pair{i * 0x9e3779b97f4a7c15, uint32(i) << 2}) //nolint:gosec // small
	}
	return all
}

func stamp(points []pair, tick proto.Tick) (all []stamped) {
	for _, p := range points {
		all = append(all, stamped{p, tick})
	}
	return all
}

// day is ticks of two nodes as they should be, with what a test does to one of them.
func day(ticks int, change func(l *ledger, tick int, node string) (skip bool)) *ledger {
	l := newLedger(2, res)
	for n := range ticks {
		for i, node := range []string{"a", "b"} {
			if change(l, n, node) {
				continue
			}
			points := some(100)[i*50 : i*50+50]
			l.batch(node, at(n))
			l.rollup(&proto.Rollup{Scope: proto.ScopeNode, Name: node, Tick: at(n)}, points)
			l.write(stamp(points, at(n)))
		}
		l.rollup(&proto.Rollup{Scope: proto.ScopeTotals, Tick: at(n), Totals: proto.Totals{Expected: 2}}, nil)
	}
	return l
}

// Each way to lose or double something is seen, and nothing is seen where there is nothing.
func TestLedgerSeesEveryFault(t *testing.T) {
	const ticks, bad = 30, 12
	none := func(*ledger, int, string) bool { return false }
	once := func(do func(l *ledger)) func(*ledger, int, string) bool {
		return func(l *ledger, tick int, node string) bool {
			if tick == bad && node == "b" {
				do(l)
			}
			return false
		}
	}
	points := some(100)[50:]
	node := func(name string) *proto.Rollup {
		return &proto.Rollup{Scope: proto.ScopeNode, Name: name, Tick: at(bad)}
	}
	totals := &proto.Rollup{Scope: proto.ScopeTotals, Tick: at(bad), Totals: proto.Totals{Expected: 2}}
	tests := []struct {
		name   string
		change func(*ledger, int, string) bool
		want   string // part of a fault; "" for none
	}{
		{"nothing", none, ""},
		{"points written twice", once(func(l *ledger) { l.write(stamp(points, at(bad))) }), ""},
		{"a batch stored twice", once(func(l *ledger) { l.batch("b", at(bad)) }), ""},
		{"a batch without a rollup", func(l *ledger, tick int, node string) bool {
			if tick == bad && node == "b" {
				l.batch("b", at(bad))
				return true
			}
			return false
		}, "have no rollup"},
		{"a rollup twice", once(func(l *ledger) { l.rollup(node("b"), nil) }), "2 rollups"},
		{"points of ROLLUPS twice", once(func(l *ledger) { l.rollup(node("c"), points) }), "on ROLLUPS already"},
		{"a rollup without a batch", once(func(l *ledger) { l.rollup(node("c"), nil) }), "no batch"},
		{"totals twice", once(func(l *ledger) { l.rollup(totals, nil) }), "2 totals"},
		{"totals that say a gap", once(func(l *ledger) {
			l.rollup(&proto.Rollup{Scope: proto.ScopeTotals, Tick: at(bad), Totals: proto.Totals{Expected: 2, Gap: true}}, nil)
		}), "SAMPLES were lost"},
		{"a point that the backend lacks", once(func(l *ledger) {
			l.rollup(&proto.Rollup{Scope: proto.ScopeNamespace, Name: "n", Tick: at(bad)}, []pair{{77, 4}})
		}), "1 of 101 points"},
		{"a point that only the backend has", once(func(l *ledger) { l.write([]stamped{{pair{77, 4}, at(bad)}}) }), "1 points of"},
		{"a point with another value", once(func(l *ledger) { l.write([]stamped{{pair{points[3].identity, 4}, at(bad)}}) }), "another value"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := day(ticks, test.change)
			var said strings.Builder
			if n := l.tell(&said, 0); n != strings.Count(said.String(), "wrong: ") || l.tell(&said, n) != n {
				t.Errorf("%d faults are told as %q", n, said.String())
			}
			sum, f := l.finish(at(ticks - 1))
			all := strings.Join(f.words, "\n")
			if (f.n > 0) != (test.want != "") || !strings.Contains(all, test.want) {
				t.Errorf("%d faults, want %q among them:\n%s", f.n, test.want, all)
			}
			if sum.Ticks != ticks {
				t.Errorf("%d ticks counted, want %d", sum.Ticks, ticks)
			}
			if test.want == "" && (sum.NodeTicks != 2*ticks || sum.Points != 100*ticks) {
				t.Errorf("%d node ticks with %d points counted, want %d with %d", sum.NodeTicks, sum.Points, 2*ticks, 100*ticks)
			}
		})
	}
}

func TestLedgerSeesATickWithoutTotals(t *testing.T) {
	l := newLedger(1, res)
	for n := range 20 {
		if n != 7 {
			l.rollup(&proto.Rollup{Scope: proto.ScopeTotals, Tick: at(n), Totals: proto.Totals{Expected: 1}}, nil)
		}
	}
	if _, f := l.finish(at(19)); f.n == 0 || !strings.Contains(f.words[0], "19 ticks have totals") {
		t.Errorf("a missing tick is told as %q", f.words)
	}
}

func TestLedgerExcusesOnlyWhileNoScraperWasThere(t *testing.T) {
	gone := func(_ *ledger, tick int, _ string) bool { return tick >= 10 && tick < 13 }
	sum, f := day(30, gone).finish(at(29))
	if sum.Missed != 6 || sum.Excused != 0 || f.n != 0 {
		t.Errorf("without an outage %d are missed and %d excused (%q), want 6 and 0", sum.Missed, sum.Excused, f.words)
	}
	l := newLedger(2, res)
	*l = *day(10, func(*ledger, int, string) bool { return false })
	l.scraperGone(at(10).Time().Add(time.Second))
	l.scraperBack(at(12))
	for n := 10; n < 30; n++ {
		for i, node := range []string{"a", "b"} {
			if points := some(100)[i*50 : i*50+50]; n >= 14 {
				l.batch(node, at(n))
				l.rollup(&proto.Rollup{Scope: proto.ScopeNode, Name: node, Tick: at(n)}, points)
				l.write(stamp(points, at(n)))
			}
		}
		l.rollup(&proto.Rollup{Scope: proto.ScopeTotals, Tick: at(n), Totals: proto.Totals{Expected: 2}}, nil)
	}
	if sum, f := l.finish(at(29)); sum.Missed != 2 || sum.Excused != 6 || f.n != 0 {
		t.Errorf("with an outage %d are missed and %d excused (%q), want 2 and 6", sum.Missed, sum.Excused, f.words)
	}
}

// What the bus says and what a line says are the same point.
func TestBackendReadsWhatTheLedgerExpects(t *testing.T) {
	b := &backend{words: map[string]uint64{}}
	words := entityWords{"pod_container", "node,1", "my ns", "p=1", "c", ""}
	want := stamped{pair{pointOf(words.hash(), metricOf("cpu/usage rate")), valueHash([]byte("12i"))}, at(3)}
	line := fmt.Sprintf(`cpu/usage\ rate,cluster_name=x,container_name=c,labels=a:b\,c:d,namespace_name=my\ ns,nodename=node\,1,pod_name=p\=1,type=pod_container value=12i %d`, at(3).Time().UnixNano())
	got, err := b.parse([]byte(line))
	if err != nil || got != want {
		t.Errorf("%s\nis %v (%v), want %v", line, got, err, want)
	}
	for _, bad := range []string{
		"", "cpu", "cpu value=1i 1700000000000000000", "cpu,type=pod", "cpu,type=pod value=1i", "cpu,type=pod value= 1700000000000000000", "cpu,type=pod value=1i 17e8",
		"cpu,type=pod other=1i 1700000000000000000", "cpu,type value=1i 1700000000000000000", "cpu,type= value=1i 1700000000000000000", "cpu,=pod value=1i 1700000000000000000",
		"cpu,type=pod value=1i 1700000000000000001", "cpu,type=pod value=1i 1700000000000000000 x",
	} {
		if p, err := b.parse([]byte(bad)); err == nil {
			t.Errorf("%q is taken as %v", bad, p)
		}
	}
}

// post is what a sink does; 0 is no answer.
func post(t *testing.T, c *http.Client, url, body string) int {
	t.Helper()
	resp, err := c.Post(url, "", strings.NewReader(body))
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestBackendGoesAwayInEveryWay(t *testing.T) {
	l := newLedger(1, res)
	b, err := newBackend(l, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	set := func(m Mode) {
		t.Helper()
		if err := b.set(m); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set(Gone) })
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	base, line := "http://"+b.address, fmt.Sprintf("cpu,type=cluster value=1i %d\n", at(0).Time().UnixNano())
	write := func(want, lines int) {
		t.Helper()
		if got := post(t, client, base+"/write", line); got != want {
			t.Errorf("%s: a write is answered with %d, want %d", b.mode, got, want)
		}
		if got, _, _ := b.taken(); got != lines {
			t.Errorf("%s: %d lines are taken, want %d", b.mode, got, lines)
		}
	}
	write(0, 0)
	set(Up)
	write(http.StatusNotFound, 0) // no database yet
	if got := post(t, client, base+"/query", "q=CREATE+DATABASE+%22k8s%22"); got != http.StatusOK {
		t.Errorf("the database is made with %d", got)
	}
	write(http.StatusNoContent, 1)
	set(Refusing)
	write(http.StatusServiceUnavailable, 1)
	set(Forgetting)
	write(0, 2)
	set(Hanging)
	answered := make(chan int)
	go func() { answered <- post(t, client, base+"/write", line) }()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		if _, requests, _ := b.taken(); requests == 6 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d requests came, want 6", requests)
		}
	}
	select {
	case got := <-answered:
		t.Errorf("a hanging backend answers with %d", got)
	default:
	}
	set(Up)
	if got := <-answered; got != 0 {
		t.Errorf("what hung is answered with %d in the end", got)
	}
	write(http.StatusNoContent, 3)
	set(Gone)
	write(0, 3)
	set(Up)
	write(http.StatusNotFound, 3) // the database went with it
	if got := post(t, client, base+"/query", "q=CREATE+DATABASE+%22k8s%22"); got != http.StatusOK {
		t.Errorf("the database is made with %d", got)
	}
	if got := post(t, client, base+"/write", line+"nonsense\n"); got != http.StatusBadRequest {
		t.Errorf("nonsense is answered with %d", got)
	}
	if sum, _ := l.progress(); sum.Redelivered != 2 {
		t.Errorf("%d points are counted as written again, want 2", sum.Redelivered)
	}
}

func TestColumnSaysWhatGrows(t *testing.T) {
	flat, grows := column{}, column{}
	for i := range 61 {
		d := time.Duration(i) * time.Minute
		flat.values = append(flat.values, value{d, 100 + float64(i%2), i != 7})
		grows.values = append(grows.values, value{d, 100 + float64(i), true})
	}
	if q, ok := flat.quarters(); !ok || q.slope > 1 || q.slope < -1 || q.mean[3] < 100 || q.mean[3] > 101 {
		t.Errorf("a flat column is %+v, %t", q, ok)
	}
	if q, ok := grows.quarters(); !ok || q.slope < 59 || q.slope > 61 || q.max != 160 {
		t.Errorf("a column that grows by 60 an hour is %+v, %t", q, ok)
	}
	if line, lo, hi, ok := grows.graph(); !ok || lo != 100 || hi != 160 || line[0] != ' ' || line[len(line)-1] != '@' {
		t.Errorf("graph %q from %g to %g, %t", line, lo, hi, ok)
	}
}
