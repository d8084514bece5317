package ticks

import (
	"fmt"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

func testMemory(resolution time.Duration) time.Duration {
	return max(4*resolution, 90*time.Second)
}

var t0 = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

// Stream time is the running maximum; a small fall does not turn it back, a large one does; an advance
// beyond the grace is a jump; one step counts for two resolutions at most.
func TestStreamTime(t *testing.T) {
	var c Clock
	at := func(d time.Duration) {
		c.advance(1, t0.Add(d).UnixMilli(), 15*time.Second, 12*time.Second, 1000, 0)
	}
	check := func(what string, stream, jumpEnd, counted time.Duration) {
		t.Helper()
		got := fmt.Sprint(time.UnixMilli(c.Stream()).Sub(t0), time.UnixMilli(c.JumpEnd()).Sub(t0), time.Duration(c.Counted())*time.Millisecond)
		if want := fmt.Sprint(stream, jumpEnd, counted); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	at(0)
	check("begins", 0, 0, 0)
	at(10 * time.Second)
	check("advances", 10*time.Second, 0, 10*time.Second)
	at(3 * time.Second)
	check("falls a little", 10*time.Second, 0, 10*time.Second)
	at(23 * time.Second)
	check("jumps", 23*time.Second, 23*time.Second, 23*time.Second)
	at(time.Hour)
	check("jumps far", time.Hour, time.Hour, 53*time.Second)
	at(time.Minute)
	check("restarts", time.Minute, time.Minute, 53*time.Second)
}

// The mark to resume from is a message that set stream time, as far back as asked for, and the marks held
// are few.
func TestMarksAreFewAndFarEnoughBack(t *testing.T) {
	var c Clock
	memory := testMemory(15 * time.Second).Milliseconds()
	times := map[uint64]int64{}
	for seq := uint64(1); seq < 5000; seq++ {
		at := t0.Add(time.Duration(seq) * time.Second)
		if seq%7 == 0 {
			at = at.Add(-3 * time.Second)
		}
		c.advance(seq, at.UnixMilli(), 15*time.Second, 12*time.Second, memory/8, 0)
		times[seq] = c.Counted()
		if seq%15 != 0 {
			continue
		}
		mark := c.resume(2 * memory)
		if mark.Seq%7 == 0 {
			t.Fatalf("mark %d did not set stream time", mark.Seq)
		}
		if back := c.Counted() - times[mark.Seq]; seq > 400 && (back < 2*memory || back > 2*memory+memory/4) {
			t.Fatalf("at %d the mark lies %d ms back, want about %d", seq, back, 2*memory)
		}
		if len(c.marks) > 20 {
			t.Fatalf("%d marks are held", len(c.marks))
		}
	}
}

// An inventory is in force when all its parts are there, whatever their order; older revisions and parts
// of an unfinished one are not.
func TestInventoryIsWholeOrNotInForce(t *testing.T) {
	var v Inventory
	part := func(seq, revision uint64, part, parts uint32, name string) bool {
		return v.Add(seq, int64(seq)*1000, &proto.Inventory{Subject: proto.InventoryNodes, Revision: revision, Part: part, Parts: parts, Nodes: []proto.InventoryNode{{Name: name}}})
	}
	check := func(what string, since uint64, names ...string) {
		t.Helper()
		var got []string
		for _, p := range v.Parts(proto.InventoryNodes) {
			got = append(got, p.Nodes[0].Name)
		}
		if fmt.Sprint(got) != fmt.Sprint(names) || v.Since() != since {
			t.Errorf("%s: %v since %d, want %v since %d", what, got, v.Since(), names, since)
		}
	}
	part(5, 10, 1, 2, "b")
	check("half of it", 5)
	if !part(6, 10, 0, 2, "a") {
		t.Error("whole, and no change")
	}
	check("whole", 5, "a", "b")
	part(7, 9, 0, 1, "old")
	check("an older one", 5, "a", "b")
	part(8, 11, 0, 2, "c")
	check("half of the next", 5, "a", "b")
	part(9, 12, 0, 1, "d")
	check("the one after it", 9, "d")
	part(10, 12, 0, 1, "d")
	check("the same again", 10, "d")
	part(11, 12, 5, 2, "x")
	v.Add(12, 12000, &proto.Inventory{Subject: 99, Parts: 1})
	check("nonsense", 10, "d")
	part(610, 1, 0, 1, "e")
	check("lower, while it may be renewed", 10, "d")
	part(611, 1, 0, 1, "e")
	check("lower, when it was not renewed for ten minutes", 611, "e")
}

// What a batch is judged, by how far from stream time it is and by what the node sent before.
func TestBatchesAreJudged(t *testing.T) {
	ticks := New[int](testMemory)
	const resolution = 15 * time.Second
	ticks.Advance(1, t0.Add(time.Second))
	ticks.AddInventory(1, t0, &proto.Inventory{Subject: proto.InventoryNodes, Parts: 1, Resolution: resolution, Nodes: []proto.InventoryNode{{Name: "n"}}})
	tick := proto.TickAt(t0, resolution)
	check := func(name string, at proto.Tick, want Verdict) {
		t.Helper()
		if got := ticks.Judge(name, at, resolution); got != want {
			t.Errorf("batch of %s at %s is %s, want %s", name, at, got, want)
		}
	}
	check("n", tick, Taken)
	check("n", tick.Add(1, resolution), Taken)
	check("n", tick.Add(2, resolution), Ahead)
	check("n", tick.Add(-239, resolution), Taken)
	check("n", tick.Add(-240, resolution), TooOld)
	check("n", tick+1000, Late) // off the grid
	ticks.Report("n", tick, resolution, 1, false)
	check("n", tick, NotNewer)
	check("n", tick.Add(-1, resolution), NotNewer)
	check("m", tick, Taken)
	ticks.Advance(2, t0.Add(20*time.Second)) // a jump
	ticks.Advance(3, t0.Add(26*time.Second))
	if _, ok := ticks.Close(); ok {
		t.Fatal("closed although the jump gave it time")
	}
	ticks.Advance(4, t0.Add(33*time.Second))
	c, ok := ticks.Close()
	if !ok || c.Tick != tick || len(c.Reported) != 1 {
		t.Fatalf("closing %+v, %v", c, ok)
	}
	check("m", tick, Late)
	check("m", tick.Add(1, resolution), Taken)
}
