// Package sink is the contract between the worker that reads ROLLUPS, or EVENTS, and the destinations that
// rollups and events are written to.
//
// A [Kind] makes a [Sink] from a [Target], the parsed value of one --sink. The worker hands it the
// rollups of one cluster in stream order and acts on what Write returns: nothing (written), an error
// (try the same again later), [RetryAfter] (not before), [Permanent] (never), or a [Partial] (some of
// it never). [Options] reads a target's options, so that every sink says the same things about a wrong
// one; [View] turns rollups into labelled samples, so that an encoder only formats; [Names] are those of
// Prometheus or OpenTelemetry instead of Heapster's. A sink of events is handed events in the same way,
// and [EventJSON] is what they look like in Kubernetes.
//
// Nothing here keeps state.
//
// Not here: reading, retrying and giving up (worker), what each destination wants to hear (a package
// each), the contract as tests (sinktest).
package sink

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// Sink is a destination of rollups, or of events. Its methods are called by one goroutine.
type Sink interface {
	// Write writes a batch and returns nil once the destination has it: an answer was read that says so.
	//
	// What it may assume: the messages are of one cluster and in stream order, so each series comes in
	// the order of time; ctx has a deadline, the sink's timeout; the batch with everything in it is the
	// worker's, holds still until Write returns, and must be neither altered nor kept.
	//
	// What it must expect: any message may come again, the same bytes under the same ID, after an error,
	// after this process was killed between the effect and the acknowledgement, or when an operator
	// rewinds. After an error that is passing, the next Write begins with the same messages in the same
	// order, so a sink may go on where it stopped, and must not write anything later before.
	//
	// A sink does not wait between attempts by itself: it returns the error and is called again.
	Write(ctx context.Context, batch []Message) error

	// Close lets go of connections. It may interrupt nothing, since no Write is under way.
	Close() error
}

// Message is one rollup, or one event, as it came. A sink that [Kind.New] made is given rollups alone, and
// one of [Kind.NewEvents] events alone.
type Message struct {
	*proto.Rollup
	Event *proto.Event

	ID   string // the same at every delivery: <cluster>/<scope>[/<name>]/<tick>, or <cluster>/event/<uid>/<version>
	Data []byte // encoded, which proto.Decoder reads
}

// Guarantee is what a destination holds of a sample that was given to Write, once or several times. The
// contract's suite (sinktest) proves what a Kind states.
type Guarantee uint8

// The guarantees.
const (
	// AtMostOnce: it may be missing, since the destination never says what it got.
	AtMostOnce Guarantee = iota + 1
	// AtLeastOnce: it is there, and may be there twice after a failure or a restart.
	AtLeastOnce
	// OnceByID: it is there once, since the destination drops what comes under an id that it has.
	OnceByID
	// OnceByOverwrite: it is there once, since one that comes again takes the place of the first.
	OnceByOverwrite
)

// Once reports whether nothing is doubled, whatever happens.
func (g Guarantee) Once() bool { return g == OnceByID || g == OnceByOverwrite }

// String is the guarantee in words, as documents and `sinks list` have it.
func (g Guarantee) String() string {
	switch g {
	case AtMostOnce:
		return "at most once"
	case AtLeastOnce:
		return "at least once"
	case OnceByID:
		return "exactly once, by id"
	case OnceByOverwrite:
		return "exactly once, by overwriting"
	}
	return "not stated"
}

// Kind is a sort of destination.
type Kind struct {
	Key       string    // in --sink, before the first colon
	Title     string    // as Heapster named it in its logs and telemetry
	Guarantee Guarantee // what delivery means here

	// Identity names the options that, beside the address, say which destination is meant. They make the
	// name of the sink, by which its position is kept; all other options may change without losing it.
	Identity []string

	// Gather is set where a Write becomes one thing at the destination, such as a file, that is named by its first
	// message: how long the worker may wait for more messages before it writes. It then acknowledges a batch from its
	// end, so that after a crash in between the same message is the first again, and the same name is written over.
	// Nil where nothing is to be waited for.
	Gather func(Target) time.Duration

	// New checks the target's options and builds the sink. It opens nothing, starts nothing and does not
	// block: a destination that is down at start is found out by the first Write. It is called once for
	// each unit of `concurrency`; sinks of one target share nothing. Nil where it takes no rollups.
	New func(Target, Deps) (Sink, error)

	// NewEvents is the same for a sink of events; nil where it takes none. Its guarantee is for the newest
	// state of each event.
	NewEvents func(Target, Deps) (Sink, error)
}

// Deps is what a sink gets from the program.
type Deps struct {
	Cluster string            // whose rollups it will be given
	Labels  proto.LabelFormat // how Kubernetes labels become metric labels
	Timeout time.Duration     // how long one Write may take, where the target's options do not say
	Version string            // of heapstream, for user agents
	Log     *slog.Logger      // knows which sink it is; for changes of state, never per sample
	Out     io.Writer         // where the log sink writes
}
