package events

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kube/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }

const path = "/api/v1/events"

// rig is an API server, a bus, and what publishes between them, which may be stopped and started.
type rig struct {
	t    *testing.T
	api  *kubetest.Server
	conn *bus.Conn // of the test

	server *bustest.Server
	tel    *Telemetry
	rate   int

	e    *Events
	stop func()
	want map[string]int // version of the newest state of each event, by UID
	seen map[string]int // how often each event has happened
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, api: kubetest.Start(t), server: bustest.Start(t), want: map[string]int{}, seen: map[string]int{}}
	r.conn = r.server.Conn(t)
	bustest.Provision(t, r.conn, "c")
	tel, err := NewTelemetry(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	r.tel = tel
	return r
}

// start runs an Events on a connection of its own, as a process of its own would.
func (r *rig) start() *Events {
	r.t.Helper()
	client, err := kube.NewClient(&rest.Config{Host: r.api.URL})
	if err != nil {
		r.t.Fatal(err)
	}
	e := New(Config{Cluster: "c", Owner: "me", Rate: r.rate}, Deps{Bus: r.server.Conn(r.t), Client: client, Log: bustest.Logger(r.t), Telemetry: r.tel})
	r.e = e
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := e.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	r.stop = func() { cancel(); wg.Wait() }
	r.t.Cleanup(r.stop) // before its connection is closed
	return e
}

// happen creates or updates events: each is in its next state afterwards.
func (r *rig) happen(uids ...string) {
	for _, uid := range uids {
		r.seen[uid]++
		n := r.seen[uid]
		at := metav1.NewTime(time.Date(2026, 11, 21, 12, 0, n%60, 0, time.UTC))
		r.api.Put(path, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "ns-" + uid[len(uid)-1:], UID: types.UID(uid), CreationTimestamp: at},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web"}, Reason: "Killing", Message: fmt.Sprint("state ", n), Type: "Normal",
			FirstTimestamp: at, LastTimestamp: at, Count: int32(n)}) //nolint:gosec // few
		r.want[uid] = r.api.Version()
	}
}

// watched starts, and returns when the position on EVENTS is that of a watch.
func (r *rig) watched() {
	r.t.Helper()
	r.start()
	r.happen("listed-1")
	r.settled()
	r.happen("watched-1") // the list has passed it
	r.settled()
}

func (r *rig) until(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within 2 min: %s", what)
		}
	}
}

// out is everything on EVENTS, in order.
func (r *rig) out() (all []proto.Event) {
	r.t.Helper()
	dec := proto.NewDecoder()
	state, err := r.conn.StreamState(r.t.Context(), bus.EventsStream("c"))
	if err != nil {
		r.t.Fatal(err)
	}
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		d, ok, err := r.conn.Get(r.t.Context(), bus.EventsStream("c"), seq)
		if err != nil {
			r.t.Fatal(err)
		}
		if !ok || again(d) {
			continue
		}
		var ev proto.Event
		if err := dec.Event(d.Data, &ev); err != nil {
			r.t.Fatal(err)
		}
		if d.ID() != ev.ID() || d.Subject != bus.EventsSubject("c", ev.Namespace) {
			r.t.Fatalf("event %s came as %q on %q", ev.ID(), d.ID(), d.Subject)
		}
		all = append(all, ev)
	}
	return all
}

// settled waits until every event is out in its newest state, and sees that none is out twice.
func (r *rig) settled() []proto.Event {
	r.t.Helper()
	var all []proto.Event
	defer func() {
		if r.t.Failed() {
			r.t.Logf("%d messages for %d events: %v", len(all), len(r.want), r.e.Err())
		}
	}()
	r.until("every event is out in its newest state", func() bool {
		state, err := r.conn.StreamState(r.t.Context(), bus.EventsStream("c"))
		if err != nil || int(state.LastSeq) < len(r.want) { //nolint:gosec // few
			return false
		}
		all = r.out()
		newest := map[string]int{}
		for _, ev := range all {
			newest[ev.UID] = int(ev.Version) //nolint:gosec // few
		}
		for uid, version := range r.want {
			if newest[uid] != version {
				return false
			}
		}
		return true
	})
	r.once(all)
	return all
}

func (r *rig) once(all []proto.Event) {
	r.t.Helper()
	seen := map[string]bool{}
	for _, ev := range all {
		if seen[ev.ID()] {
			r.t.Fatalf("event %s is out twice", ev.ID())
		}
		seen[ev.ID()] = true
	}
}

func (r *rig) count(c prometheus.Counter) float64 { return testutil.ToFloat64(c) }

func some(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return all
}

func TestEventsOfBeforeTheFirstStartArePublished(t *testing.T) {
	r := newRig(t)
	r.happen(some("first", 1234)...) // several pages
	e := r.start()
	all := r.settled()
	if len(all) != 1234 || r.count(r.tel.skipped.WithLabelValues(skipSuperseded)) != 0 {
		t.Errorf("%d messages, want 1234", len(all))
	}
	r.until("it is well", func() bool { return e.Err() == nil })
	r.happen("later-1")
	if all := r.settled(); len(all) != 1235 || all[1234].Position != (proto.EventPosition{Upto: all[1234].Version}) {
		t.Errorf("%d messages, the last %+v", len(all), all[len(all)-1].Position)
	}
}

// Each count of a series is a message; that an event is deleted is none.
func TestEveryUpdateIsAMessage(t *testing.T) {
	r := newRig(t)
	r.start()
	r.happen("series-1")
	r.settled()
	for range 20 {
		r.happen("series-1")
	}
	r.happen("other-1")
	r.settled()
	r.api.Delete(path, "ns-1", "other-1")
	r.happen("series-1")
	all := r.settled()
	if len(all) != 23 {
		t.Fatalf("%d messages, want 23", len(all))
	}
	for i, ev := range all[:21] {
		if ev.UID != "series-1" || int(ev.Count) != i+1 || ev.Message != fmt.Sprint("state ", i+1) {
			t.Errorf("message %d is %+v", i, ev)
		}
	}
}

func TestRestartRepeatsNothing(t *testing.T) {
	r := newRig(t)
	r.watched()
	r.happen(some("a", 50)...)
	r.settled()
	for i := range 3 {
		r.stop()
		r.happen(some(fmt.Sprint("down-", i), 10)...)
		r.happen("a-0000")
		r.start()
		r.settled()
	}
	if n := len(r.out()); n != 85 {
		t.Errorf("%d messages, want 85", n)
	}
	if n := testutil.ToFloat64(r.tel.lists.WithLabelValues(listFirst)); n != 1 {
		t.Errorf("%v lists for the first time, want 1", n)
	}
}

// Updates that came while nobody listened, and that the API server no longer has, are counted.
func TestWhatTheAPIServerForgotIsCounted(t *testing.T) {
	r := newRig(t)
	r.watched()
	r.happen("a-1", "b-1", "c-1")
	r.settled()
	r.stop()
	for range 5 {
		r.happen("a-1") // 4 of them are lost
	}
	r.happen("b-1")
	r.happen("d-1", "d-1") // its first state is lost
	r.api.Forget()
	r.start()
	all := r.settled()
	skipped := func() float64 { return r.count(r.tel.skipped.WithLabelValues(skipSuperseded)) }
	r.until("what is lost of the last one is counted, too", func() bool { return skipped() >= 5 })
	if n := skipped(); len(all) != 8 || n != 5 {
		t.Errorf("%d messages and %v skipped, want 8 and 5", len(all), n)
	}
	if n := testutil.ToFloat64(r.tel.lists.WithLabelValues(listExpired)); n != 1 {
		t.Errorf("%v lists because of a version too old, want 1", n)
	}
}

// A list that is cut off anywhere is taken up without repeating what it had published.
func TestInterruptedListIsTakenUp(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprint("known=", known), func(t *testing.T) {
			r := newRig(t)
			if known {
				r.watched()
				r.stop()
			}
			r.happen(some(fmt.Sprint("l-", known), 1700)...)
			r.api.Forget()
			for stopAt := range 3 {
				pages := 0
				var once sync.Once
				stopped := make(chan struct{})
				r.api.OnList(func(string) {
					if pages++; pages == stopAt+3 { // the first asks for the version
						once.Do(func() { close(stopped) })
					}
				})
				r.start()
				select {
				case <-stopped:
				case <-time.After(2 * time.Minute):
					t.Fatal("no such page was asked for")
				}
				r.stop()
				r.api.OnList(nil)
				r.once(r.out())
				r.happen(fmt.Sprint("between-", known, stopAt, "-1"), fmt.Sprint("l-", known, "-0003"))
			}
			r.start()
			r.settled()
			if n := testutil.ToFloat64(r.tel.lists.WithLabelValues(listInterrupted)); known && n == 0 {
				t.Error("no list was taken up")
			}
		})
	}
}

func TestAPIServerThatWasSetBackIsComparedWithAllThatIsOut(t *testing.T) {
	r := newRig(t)
	r.start()
	r.happen(some("kept", 40)...)
	back := r.api.Version()
	r.happen(some("undone", 40)...)
	r.settled()
	r.stop()
	for _, uid := range some("undone", 40) {
		delete(r.want, uid)
	}
	r.api.SetBack(back)
	r.happen("kept-0001", "new-1")
	r.start()
	all := r.settled()
	if len(all) != 82 || all[81].Position.Upto > uint64(r.api.Version()) { //nolint:gosec // not negative
		t.Errorf("%d messages, want 82; the last is at %+v", len(all), all[len(all)-1].Position)
	}
	// and from there on as ever
	r.happen("new-1")
	r.settled()
	r.stop()
	r.happen("new-2")
	r.start()
	if n := len(r.settled()); n != 84 {
		t.Errorf("%d messages, want 84", n)
	}
}

// Who was overtaken stores nothing, and goes on from where things stand: here an operator gave a letter
// from DEAD again, whose position is that of long ago.
func TestLettersGivenAgainChangeNothing(t *testing.T) {
	r := newRig(t)
	r.start()
	r.happen("a-1")
	r.settled()
	d, ok, err := r.conn.Get(t.Context(), bus.EventsStream("c"), 1)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if err := r.conn.Dead(t.Context(), d.Letter("sink.x", "of no use")); err != nil {
		t.Fatal(err)
	}
	r.happen(some("b", 20)...)
	r.settled()
	for l, err := range r.conn.Letters(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.conn.Redrive(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	r.happen("c-1", "b-0003")
	r.settled()
	r.stop()
	r.start()
	r.happen("c-2")
	if n := len(r.settled()); n != 24 {
		t.Errorf("%d messages, want 24", n)
	}
}

// A writer that does not know that it is no longer alone cannot store a thing.
func TestTwoWritersRepeatNothing(t *testing.T) {
	r := newRig(t)
	r.happen(some("a", 300)...)
	client, err := kube.NewClient(&rest.Config{Host: r.api.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		e := New(Config{Cluster: "c"}, Deps{Bus: r.server.Conn(t), Client: client, Log: bustest.Logger(t), Telemetry: r.tel})
		wg.Go(func() { // without a lease, as if each took itself for its holder
			for ctx.Err() == nil {
				if err := e.follow(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrOvertaken) {
					t.Error(err)
				}
			}
		})
	}
	for i := range 100 {
		r.happen(fmt.Sprintf("b-%d", i%7))
	}
	r.settled()
	cancel()
	wg.Wait()
	r.once(r.out())
}

// A storm goes out at the rate that is allowed; what waits loses updates at most.
func TestStormIsBoundedAndLosesNoEvent(t *testing.T) {
	r := newRig(t)
	r.rate = 5 // 50 at once: also a machine that takes a tenth of a second to publish one of 100 has to wait
	r.watched()
	for range 2 {
		r.happen(some("storm", 100)...)
	}
	r.api.Forget()
	r.settled()
	if r.count(r.tel.waiting) == 0 {
		t.Error("nothing waited")
	}
}

// Whatever happens in between, in the end every event is out in its newest state and none twice.
func TestNothingIsLostOrRepeatedWhateverHappens(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // equal runs are wanted
			mine := map[string]int{}
			running := false
			for range 150 {
				switch rnd.IntN(9) {
				case 0:
					if running {
						r.stop()
					} else {
						r.start()
					}
					running = !running
				case 1:
					r.api.Forget()
				case 2:
					r.api.Disconnect()
				case 3:
					r.server.Restart()
				default:
					for range rnd.IntN(40) {
						uid := fmt.Sprintf("chaos-%d-%d", seed, rnd.IntN(200))
						mine[uid]++
						at := metav1.NewTime(time.Unix(int64(1e9+mine[uid]), 0))
						r.api.Put(path, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "ns", UID: types.UID(uid)}, Count: int32(mine[uid]), LastTimestamp: at}) //nolint:gosec // few
						r.want[uid] = r.api.Version()
					}
				}
			}
			if !running {
				r.start()
			}
			all := r.settled()
			last := map[string]uint64{}
			for _, ev := range all {
				if ev.Version <= last[ev.UID] {
					t.Fatalf("state %d of %s comes after %d", ev.Version, ev.UID, last[ev.UID])
				}
				last[ev.UID] = ev.Version
			}
		})
	}
}

// Both shapes of an event are read; what is too large is shortened, what is no event is left out.
func TestOddEvents(t *testing.T) {
	r := newRig(t)
	micro := metav1.NewMicroTime(time.Date(2026, 11, 21, 12, 0, 0, 123456000, time.UTC))
	r.api.Put(path, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "new-style", Namespace: "", UID: "new-style"}, EventTime: micro, Action: "Binding",
		Series: &corev1.EventSeries{Count: 7, LastObservedTime: micro}, Related: &corev1.ObjectReference{Kind: "Node", Name: "n1"}, ReportingController: "scheduler"})
	r.want["new-style"] = r.api.Version()
	r.api.Put(path, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "no-uid", Namespace: "ns"}})
	r.api.Put(path, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "large", Namespace: "ns", UID: "large", Annotations: map[string]string{"a": strings.Repeat("x", 200<<10)}},
		Message: strings.Repeat("y", 300<<10), LastTimestamp: metav1.NewTime(time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))})
	r.want["large"] = r.api.Version()
	r.start()
	all := r.settled()
	r.until("what is no event is met", func() bool { return r.count(r.tel.skipped.WithLabelValues(skipUnreadable)) > 0 })
	if len(all) != 2 || r.count(r.tel.skipped.WithLabelValues(skipUnreadable)) != 1 || r.count(r.tel.cut) != 1 {
		t.Fatalf("%d messages, want 2", len(all))
	}
	byUID := map[string]proto.Event{}
	for _, ev := range all {
		byUID[ev.UID] = ev
	}
	if ev := byUID["new-style"]; !ev.Time().Equal(micro.Time) || ev.Times() != 7 || ev.Related.Name != "n1" || ev.ReportingComponent != "scheduler" || ev.Action != "Binding" {
		t.Errorf("%+v", ev)
	}
	if ev := byUID["large"]; !ev.Shortened || len(ev.Message) != 32<<10 || ev.Annotations != nil || ev.Last != 0 {
		t.Errorf("shortened %t, message of %d bytes, last %d", ev.Shortened, len(ev.Message), ev.Last)
	}
}

// Without the right to read events nothing else is said, once, and all is well when it is granted.
func TestRefusalIsSaidAndWaitedOut(t *testing.T) {
	r := newRig(t)
	r.api.Refuse(path, 403)
	r.happen("a-1")
	e := r.start()
	r.until("it says what to grant", func() bool {
		err := e.Err()
		return err != nil && strings.Contains(err.Error(), "grant our ServiceAccount the verbs list, watch on events")
	})
	r.api.Refuse(path, 0)
	r.settled()
	r.until("all is well", func() bool { return e.Err() == nil })
}

// EVENTS that holds nothing any more has held what happened before its last message.
func TestWhatHasLeftEventsIsNotRepeated(t *testing.T) {
	last := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	ev := func(at time.Time) *corev1.Event {
		return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "x", UID: "x", ResourceVersion: "7"}, LastTimestamp: metav1.NewTime(at)}
	}
	if !passed(ev(last.Add(-time.Second)), last) || passed(ev(last.Add(time.Second)), last) {
		t.Error("before and after are confused")
	}
}

func TestComparedStatesAreBounded(t *testing.T) {
	s := &outSet{young: map[string]told{}}
	for i := range compared + 10 {
		s.put(fmt.Sprint(i), told{version: uint64(i)}) //nolint:gosec // not negative
	}
	n := len(maps.Clone(s.young)) + len(s.old)
	if _, ok := s.get(fmt.Sprint(compared + 9)); !ok || n > compared {
		t.Errorf("%d are remembered, the last among them: %t", n, ok)
	}
	if _, ok := s.get("0"); ok {
		t.Error("the oldest is remembered")
	}
}
