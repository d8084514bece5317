package ticks

import "time"

// Clock is the time of one cluster's SAMPLES: a function of the messages' append times in their order.
//
// Stream time is their running maximum; a fall of more than one resolution restarts it there. An
// advance by more than the grace is a jump: the bus, or everybody, was away. Counted time is stream
// time in which one step counts for two resolutions at most, so that an outage of the bus does not
// age what was known before it: the backlog that follows pairs with the samples from before.
//
// All times are Unix milliseconds but Counted, whose zero is where the clock began.
type Clock struct {
	stream  int64
	jumpEnd int64
	counted int64
	begun   bool

	marks []Mark // oldest first
}

// Mark is a message from which a reader may start to rebuild what is known later: it set stream time.
type Mark struct {
	Seq       uint64 // of the message
	Counted   int64
	Inventory uint64 // sequence from which to read the inventory in force at the message; 0: none
}

// Stream is the stream time.
func (c *Clock) Stream() int64 { return c.stream }

// JumpEnd is where the last jump ended, or the clock began; 0 before.
func (c *Clock) JumpEnd() int64 { return c.jumpEnd }

// Counted is the counted time, ms.
func (c *Clock) Counted() int64 { return c.counted }

// advance takes the append time of the next message. spacing is the least counted time between two
// marks, ms; inventory is what a mark at this message would say.
func (c *Clock) advance(seq uint64, at int64, resolution, grace time.Duration, spacing int64, inventory uint64) {
	set := true // does this message set stream time?
	switch step := at - c.stream; {
	case !c.begun:
		c.begun, c.stream, c.jumpEnd = true, at, at
	case step < -resolution.Milliseconds():
		c.stream, c.jumpEnd = at, at
	case step < 0:
		set = false
	default:
		c.stream = at
		if step > grace.Milliseconds() {
			c.jumpEnd = at
		}
		c.counted += min(step, 2*resolution.Milliseconds())
	}
	if n := len(c.marks); set && (n == 0 || c.counted >= c.marks[n-1].Counted+spacing) {
		c.marks = append(c.marks, Mark{seq, c.counted, inventory})
	}
}

// restore sets what a resumed clock cannot know: where the last jump before its first message ended.
// It counts what was lost as one step where the clock has not reached stream.
func (c *Clock) restore(stream, jumpEnd int64, resolution time.Duration) {
	if step := stream - c.stream; !c.begun {
		c.begun, c.stream = true, stream
	} else if step > 0 {
		c.stream = stream
		c.counted += min(step, 2*resolution.Milliseconds())
	}
	c.jumpEnd = jumpEnd
}

// resume is the newest mark that lies back or more before the counted time, else the oldest one. Older
// ones are dropped.
func (c *Clock) resume(back int64) Mark {
	if len(c.marks) == 0 {
		return Mark{}
	}
	from := 0
	for i, m := range c.marks {
		if m.Counted <= c.counted-back {
			from = i
		}
	}
	c.marks = append(c.marks[:0], c.marks[from:]...)
	return c.marks[0]
}
