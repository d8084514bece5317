package view

import (
	"sync"
	"time"
)

// clock tells the time of the stream: the append times of its newest messages, going on by the local
// clock between and after them. So an age is right whatever the local clock says, and goes on growing
// while the bus is away.
type clock struct {
	now func() time.Time

	mu     sync.RWMutex
	offset int64 // stream time minus local time, ns: the largest of the present and the last period
	before int64 // of the last period
	turn   int64 // local time at which the present period ends, ns
	set    bool
}

// clockPeriod is how long a larger offset is believed after the stream's clock stepped back.
const clockPeriod = int64(time.Minute)

// nowNano returns the stream time, Unix nanoseconds.
func (c *clock) nowNano() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.now().UnixNano() + max(c.offset, c.before)
}

// observe takes note that the stream's clock has reached t. live says that it was read just now, so
// that it may also tell that the stream's clock stepped back.
func (c *clock) observe(t time.Time, live bool) {
	local := c.now().UnixNano()
	offset := t.UnixNano() - local
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.set:
		c.offset, c.before, c.turn, c.set = offset, offset, local+clockPeriod, true
	case live && local >= c.turn:
		c.offset, c.before, c.turn = offset, c.offset, local+clockPeriod
	default:
		c.offset = max(c.offset, offset)
	}
}
