package sink

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Any error of Write that is none of these is passing: the worker tries the same batch again, after a
// delay that grows, for as long as it takes.

type permanent struct{ err error }

func (e permanent) Error() string { return e.err.Error() }
func (e permanent) Unwrap() error { return e.err }

// Permanent marks an error that trying again cannot help: the destination refuses this batch for good.
// The worker finds out by halves which of its messages are meant, puts those to DEAD with the reason,
// and writes the rest. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// IsPermanent reports whether err says that trying again cannot help.
func IsPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p)
}

type retryAfter struct {
	err  error
	wait time.Duration
}

func (e retryAfter) Error() string { return e.err.Error() }
func (e retryAfter) Unwrap() error { return e.err }

// RetryAfter marks a passing error with how long the destination asked to be left alone.
func RetryAfter(wait time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return retryAfter{err, wait}
}

// RetryAfterOf returns how long the destination asked to be left alone; 0 where it did not.
func RetryAfterOf(err error) time.Duration {
	var r retryAfter
	if errors.As(err, &r) {
		return max(0, r.wait)
	}
	return 0
}

// Refused is a part of a batch that the destination refused for good.
type Refused struct {
	Message int    // index in the batch
	Samples int    // how many
	Part    string // the part as it was sent (a line, a record), where it is known; bounded by the worker
	Reason  string // in the destination's words
}

// Partial is the error of a Write some of whose samples were refused for good. Everything else was
// written, unless Err is set: then the worker tries the whole batch again and reports what is refused
// at the end.
type Partial struct {
	Refused []Refused
	Late    int   // samples older than the destination keeps: counted, and otherwise as if written
	Err     error // passing or permanent; nil if the rest is written
}

// Error names the first reason and how much was refused.
func (p *Partial) Error() string {
	var b strings.Builder
	n := 0
	for _, r := range p.Refused {
		n += r.Samples
	}
	if n > 0 {
		fmt.Fprintf(&b, "%d samples refused: %s", n, p.Refused[0].Reason)
	}
	if p.Late > 0 {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%d samples older than the destination keeps", p.Late)
	}
	if p.Err != nil {
		if b.Len() > 0 {
			b.WriteString("; ")
		}
		b.WriteString(p.Err.Error())
	}
	return b.String()
}

// Unwrap returns Err.
func (p *Partial) Unwrap() error { return p.Err }
