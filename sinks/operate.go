package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks/worker"
)

// Operator does to sinks what a running system needs done from outside: look, rewind, pause, resume, forget, and
// drive dead letters again. All of it goes by the bus, as bus.RoleAdmin, wherever the workers are and whether or not
// any runs. What would get in a worker's way is done with the sink's lease in hand: the worker stops reading,
// and goes on from the new position when the lease is free again. An operator that dies in between leaves the
// lease to run out, and each position where it was or where it was to be.
type Operator struct {
	Bus      *bus.Conn
	Out      io.Writer // results, as text for people
	JSON     bool      // results as a line of JSON each instead
	Clusters []string  // every registered one where empty
	Owner    string    // of leases, as workers log them
}

// NewOperator is an operator named after this process.
func NewOperator(conn *bus.Conn, out io.Writer) *Operator {
	return &Operator{Bus: conn, Out: out, Owner: "operator " + owner()}
}

// place is where one sink is in one stream.
type place struct {
	bus.DurableState
	cluster, what string // what: rollups or events
}

// places are all sinks' places, by sink, cluster and stream.
func (o *Operator) places(ctx context.Context) ([]place, error) {
	clusters := o.Clusters
	if len(clusters) == 0 {
		infos, err := o.Bus.Clusters(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range infos {
			clusters = append(clusters, c.Cluster)
		}
	}
	var all []place
	for _, c := range clusters {
		for _, s := range []struct{ what, stream string }{{"rollups", bus.RollupsStream(c)}, {"events", bus.EventsStream(c)}} {
			durables, err := o.Bus.SinkDurables(ctx, s.stream)
			if errors.Is(err, bus.ErrStreamMissing) && s.what == "events" {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, d := range durables {
				all = append(all, place{d, c, s.what})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b place) int { return strings.Compare(a.Sink, b.Sink) })
	return all, nil
}

// of are the places of one sink.
func (o *Operator) of(ctx context.Context, name string) ([]place, error) {
	all, err := o.places(ctx)
	if err != nil {
		return nil, err
	}
	var its []place
	names := map[string]bool{}
	for _, p := range all {
		if names[p.Sink] = true; p.Sink == name {
			its = append(its, p)
		}
	}
	if len(its) > 0 {
		return its, nil
	}
	known := slices.Sorted(maps.Keys(names))
	switch near := daemon.Nearest(name, known); {
	case len(known) == 0:
		return nil, fmt.Errorf("there is no sink %q: none has run yet", name)
	case near != "":
		return nil, fmt.Errorf("there is no sink %q: did you mean %q?", name, near)
	}
	return nil, fmt.Errorf("there is no sink %q; there are %s", name, strings.Join(known, ", "))
}

// listed is one line of List.
type listed struct {
	Sink     string     `json:"sink"`
	Cluster  string     `json:"cluster"`
	Stream   string     `json:"stream"`
	Worker   string     `json:"worker,omitempty"` // who feeds it
	Paused   *time.Time `json:"paused_until,omitempty"`
	Pending  uint64     `json:"pending"`        // messages not written
	Oldest   float64    `json:"oldest_seconds"` // age of the oldest of them
	Position uint64     `json:"position"`       // sequence up to which all is written
	Leaving  uint64     `json:"lost"`           // messages that left the stream before they were written, so far
	Dead     uint64     `json:"dead"`           // letters in DEAD, of all clusters
}

// List shows every sink that has run, with how far it is behind.
func (o *Operator) List(ctx context.Context) error {
	all, err := o.places(ctx)
	if err != nil {
		return err
	}
	leases, err := o.Bus.Leases(ctx, bus.SinkLeases)
	if err != nil {
		return err
	}
	letters, err := o.Bus.LetterCounts(ctx)
	if err != nil {
		return err
	}
	workers := map[string]string{}
	for _, l := range leases {
		workers[l.Key] = l.Owner
	}
	lines := make([]listed, len(all))
	for i, p := range all {
		lines[i] = listed{
			Sink: p.Sink, Cluster: p.cluster, Stream: p.what, Worker: workers[bus.SinkLease(p.Sink)], Position: p.Lag.Position,
			Pending: p.Lag.Pending + uint64(max(0, p.Lag.Unacked)), Oldest: p.Lag.Oldest.Seconds(), Leaving: p.Lag.Lost, Dead: letters[bus.SinkLease(p.Sink)], //nolint:gosec // not negative
		}
		if !p.Lag.Paused.IsZero() {
			lines[i].Paused = &p.Lag.Paused
		}
	}
	if o.JSON {
		return printJSON(o.Out, lines)
	}
	w := tabwriter.NewWriter(o.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SINK\tCLUSTER\tSTREAM\tSTATE\tPENDING\tOLDEST\tLOST\tDEAD\tWORKER")
	for i, l := range lines {
		state, oldest, worker := "running", "-", l.Worker
		switch {
		case l.Paused != nil:
			state = "paused"
		case worker == "":
			state = "not fed"
		}
		if worker == "" {
			worker = "-"
		}
		if l.Pending > 0 {
			oldest = all[i].Lag.Oldest.Round(100 * time.Millisecond).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%d\t%s\n", l.Sink, l.Cluster, l.Stream, state, l.Pending, oldest, l.Leaving, l.Dead, worker)
	}
	return w.Flush()
}

func printJSON[T any](out io.Writer, lines []T) error {
	enc := json.NewEncoder(out)
	for i := range lines {
		if err := enc.Encode(lines[i]); err != nil {
			return err
		}
	}
	return nil
}

// alone runs do with the sink's lease in hand: nobody reads for it meanwhile.
func (o *Operator) alone(ctx context.Context, name string, do func(context.Context) error) error {
	lease, err := o.Bus.Seize(ctx, bus.SinkLease(name), o.Owner)
	if err != nil {
		return err
	}
	held, cancel := lease.Context(ctx)
	defer cancel()
	err = do(held)
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancelLast()
	return errors.Join(err, lease.Release(last))
}

// RewindTo says where Rewind goes to: exactly one of its fields is set.
type RewindTo struct {
	Start bool      // the oldest message that the stream still holds
	Seq   uint64    // a sequence of the one stream that is meant
	Time  time.Time // the first message stored at or after it
}

// ParseTo reads the value of --to: start, now, a duration back (2h), an instant (RFC 3339), or a sequence.
func ParseTo(s string, now time.Time) (RewindTo, error) {
	if s == "start" {
		return RewindTo{Start: true}, nil
	}
	if s == "now" {
		return RewindTo{Time: now}, nil
	}
	if n, err := strconv.ParseUint(s, 10, 64); err == nil && n > 0 {
		return RewindTo{Seq: n}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return RewindTo{Time: now.Add(-d)}, nil
	}
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return RewindTo{Time: at}, nil
	}
	return RewindTo{}, fmt.Errorf("--to is %q: want start, now, a duration back such as 2h, an instant such as 2006-01-02T15:04:05Z, or a sequence", s)
}

// Rewind makes a sink go on from elsewhere, in the streams that are asked for: rollups, events or both. Going
// forward leaves out what was not written, and is refused without skip.
func (o *Operator) Rewind(ctx context.Context, name string, to RewindTo, streams []string, skip bool) error {
	pick := func() ([]place, error) {
		its, err := o.of(ctx, name)
		if err != nil {
			return nil, err
		}
		its = slices.DeleteFunc(its, func(p place) bool { return len(streams) > 0 && !slices.Contains(streams, p.what) })
		if len(its) == 0 {
			return nil, fmt.Errorf("sink %q does not read %s", name, strings.Join(streams, " or "))
		}
		if to.Seq > 0 && len(its) > 1 {
			var all []string
			for _, p := range its {
				all = append(all, p.cluster+"/"+p.what)
			}
			return nil, fmt.Errorf("sink %q reads %s, and a sequence means one of them: give --cluster and --stream, or a time", name, strings.Join(all, ", "))
		}
		return its, nil
	}
	if _, err := pick(); err != nil { // before anybody is disturbed
		return err
	}
	return o.alone(ctx, name, func(ctx context.Context) error {
		its, err := pick()
		if err != nil {
			return err
		}
		seqs := make([]uint64, len(its))
		for i, p := range its {
			if seqs[i], err = o.seq(ctx, p, to); err != nil {
				return err
			}
			if next := p.Lag.Position + 1; seqs[i] > next && !skip && p.Lag.Pending > 0 {
				return fmt.Errorf("sink %q is at %d of %s of cluster %q, so that would skip what it has not written up to %d: give --skip if that is meant", name, p.Lag.Position, p.what, p.cluster, seqs[i]-1)
			}
		}
		for i, p := range its {
			if err := o.Bus.RewindDurable(ctx, p.Stream, p.Name, seqs[i]); err != nil {
				return err
			}
			if err := o.say(map[string]any{"sink": name, "cluster": p.cluster, "stream": p.what, "was": p.Lag.Position + 1, "next": seqs[i]},
				"%s: %s of cluster %s go on with message %d, was %d\n", name, p.what, p.cluster, seqs[i], p.Lag.Position+1); err != nil {
				return err
			}
		}
		return nil
	})
}

// seq is the sequence that to means for a place.
func (o *Operator) seq(ctx context.Context, p place, to RewindTo) (uint64, error) {
	if !to.Time.IsZero() {
		return o.Bus.SeqAt(ctx, p.Stream, to.Time)
	}
	state, err := o.Bus.StreamState(ctx, p.Stream)
	if err != nil {
		return 0, err
	}
	if to.Seq > state.LastSeq+1 {
		return 0, fmt.Errorf("message %d of %s of cluster %q is not there yet: the newest is %d", to.Seq, p.what, p.cluster, state.LastSeq)
	}
	return max(to.Seq, state.FirstSeq), nil
}

// say prints one result.
func (o *Operator) say(line map[string]any, format string, args ...any) error {
	if o.JSON {
		return printJSON(o.Out, []map[string]any{line})
	}
	_, err := fmt.Fprintf(o.Out, format, args...)
	return err
}

// forever is the end of a pause without one.
const forever = 100 * 365 * 24 * time.Hour

// Pause stops a sink for that long, or until Resume where it is 0, whichever worker feeds it and however often
// that is restarted. It returns when the present worker has stopped. What leaves the stream meanwhile is lost.
func (o *Operator) Pause(ctx context.Context, name string, how time.Duration) error {
	if how <= 0 {
		how = forever
	}
	until := time.Now().Add(how)
	if _, err := o.of(ctx, name); err != nil {
		return err
	}
	return o.alone(ctx, name, func(ctx context.Context) error { return o.pause(ctx, name, until, "paused") })
}

// Resume ends a pause at once.
func (o *Operator) Resume(ctx context.Context, name string) error {
	if _, err := o.of(ctx, name); err != nil {
		return err
	}
	return o.pause(ctx, name, time.Now(), "resumed")
}

// pause sets the end of the pause of all that a sink reads, letters that are driven again among it.
func (o *Operator) pause(ctx context.Context, name string, until time.Time, done string) error {
	its, err := o.of(ctx, name)
	if err != nil {
		return err
	}
	again, err := o.Bus.SinkDurables(ctx, bus.DeadStream)
	if err != nil {
		return err
	}
	for _, d := range again {
		if d.Sink == name {
			if err := o.Bus.PauseDurable(ctx, d.Stream, d.Name, until); err != nil {
				return err
			}
		}
	}
	for _, p := range its {
		if err := o.Bus.PauseDurable(ctx, p.Stream, p.Name, until); err != nil {
			return err
		}
		if err := o.say(map[string]any{"sink": name, "cluster": p.cluster, "stream": p.what, "state": done}, "%s: %s of cluster %s %s\n", name, p.what, p.cluster, done); err != nil {
			return err
		}
	}
	return nil
}

// Forget removes the places of a sink that is not configured any more, so that it is listed no longer and, should it
// come back, begins like a new one. It refuses while a worker feeds it. Its letters stay.
func (o *Operator) Forget(ctx context.Context, name string) error {
	if _, err := o.of(ctx, name); err != nil {
		return err
	}
	lease, err := o.Bus.TryHold(ctx, bus.SinkLease(name), o.Owner)
	if errors.Is(err, bus.ErrHeld) {
		return fmt.Errorf("sink %q is being fed: take it out of the configuration first: %w", name, err)
	}
	if err != nil {
		return err
	}
	held, cancel := lease.Context(ctx)
	defer cancel()
	err = o.forget(held, name)
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancelLast()
	return errors.Join(err, lease.Release(last))
}

func (o *Operator) forget(ctx context.Context, name string) error {
	its, err := o.of(ctx, name)
	if err != nil {
		return err
	}
	for _, p := range its {
		if err := o.Bus.RemoveDurable(ctx, p.Stream, p.Name); err != nil {
			return err
		}
		if err := o.say(map[string]any{"sink": name, "cluster": p.cluster, "stream": p.what, "state": "forgotten"}, "%s: place in %s of cluster %s forgotten\n", name, p.what, p.cluster); err != nil {
			return err
		}
	}
	if len(o.Clusters) > 0 {
		return nil // it may go on in others
	}
	return o.Bus.RemoveDurable(ctx, bus.DeadStream, bus.SinkDurable(name))
}

// letter is one line of Letters.
type letter struct {
	Letter  uint64    `json:"letter"` // sequence in DEAD
	Sink    string    `json:"sink"`
	Stream  string    `json:"stream"`
	Seq     uint64    `json:"seq"`
	Subject string    `json:"subject"`
	Time    time.Time `json:"time"`
	Reason  string    `json:"reason"`
	Parts   []string  `json:"parts,omitempty"` // quoted
}

// letters yields the letters of one sink, or of all where name is empty.
func (o *Operator) letters(ctx context.Context, name string, each func(letter, bus.DeadLetter) error) error {
	reader := ""
	if name != "" {
		reader = bus.SinkLease(name)
	}
	for l, err := range o.Bus.Letters(ctx, reader) {
		if err != nil {
			return err
		}
		sink, ok := bus.SinkOfLease(l.Reader)
		if !ok {
			continue // an aggregator's, a gateway's
		}
		one := letter{Letter: l.DeadSeq, Sink: sink, Stream: l.Stream, Seq: l.Seq, Subject: l.Subject, Time: l.Time, Reason: l.Reason, Parts: l.Header[worker.RefusedHeader]}
		if err := each(one, l); err != nil {
			return err
		}
	}
	return nil
}

// Letters shows what sinks could not write, oldest first: of one sink, or of all where name is empty.
func (o *Operator) Letters(ctx context.Context, name string) error {
	w := tabwriter.NewWriter(o.Out, 0, 0, 2, ' ', 0)
	if !o.JSON {
		fmt.Fprintln(w, "LETTER\tTIME\tSINK\tSUBJECT\tREASON")
	}
	err := o.letters(ctx, name, func(l letter, _ bus.DeadLetter) error {
		if o.JSON {
			return printJSON(o.Out, []letter{l})
		}
		_, err := fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", l.Letter, l.Time.UTC().Format(time.RFC3339), l.Sink, l.Subject, strings.Join(strings.Fields(l.Reason), " "))
		return err
	})
	if o.JSON {
		return err
	}
	return errors.Join(err, w.Flush())
}

// Redrive gives letters back to the sinks that could not write them: of one sink, or of all where name is empty.
// They are written as soon as a worker runs, whole, beside what is new; what is refused again is a letter again.
// Letters that it did not come to stay where they are, as do those of sinks that there are no more.
func (o *Operator) Redrive(ctx context.Context, name string) error {
	durables, err := o.Bus.SinkDurables(ctx, bus.DeadStream)
	if err != nil {
		return err
	}
	readers, counts, left := map[string]bool{}, map[string]int{}, map[string]int{}
	for _, d := range durables {
		readers[d.Sink] = true
	}
	err = o.letters(ctx, name, func(l letter, from bus.DeadLetter) error {
		if !readers[l.Sink] {
			left[l.Sink]++
			return nil
		}
		if _, err := o.Bus.Redrive(ctx, from); err != nil {
			return err
		}
		counts[l.Sink]++
		return nil
	})
	for _, sink := range slices.Sorted(maps.Keys(counts)) {
		err = errors.Join(err, o.say(map[string]any{"sink": sink, "letters": counts[sink]}, "%s: %d letters are tried again\n", sink, counts[sink]))
	}
	for _, sink := range slices.Sorted(maps.Keys(left)) {
		err = errors.Join(err, fmt.Errorf("%d letters of sink %q stay: it has not run under that name since its letters can be tried again", left[sink], sink))
	}
	if len(counts) == 0 && err == nil {
		return o.say(map[string]any{"letters": 0}, "there is no letter\n")
	}
	return err
}
