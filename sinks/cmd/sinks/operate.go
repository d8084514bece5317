package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks"
)

// operations are what an operator does to sinks that run somewhere, and what there is to know of sinks.
func operations() []*daemon.Command {
	return []*daemon.Command{
		{
			Name: "kinds", Short: "list the sinks there are, and what delivery means with each", OneShot: true,
			Run: func(_ context.Context, d daemon.Deps) error { return sinks.WriteKinds(d.Stdout) },
		},
		operation("list", "", "list the sinks and how far each is behind",
			"One line for each sink, cluster and stream. LOST are messages that left the stream before they were written,\n"+
				"since the sink wrote last; DEAD are letters: what the sink refused for good.",
			nil, func(ctx context.Context, op *sinks.Operator, _ string) error { return op.List(ctx) }),
		rewind(), pause(),
		operation("resume", "SINK", "let a paused sink go on", "", nil,
			func(ctx context.Context, op *sinks.Operator, name string) error { return op.Resume(ctx, name) }),
		operation("forget", "SINK", "remove what is kept of a sink that is not configured any more",
			"Should it come back under that name, it begins like a new one. Refused while a worker feeds it.", nil,
			func(ctx context.Context, op *sinks.Operator, name string) error { return op.Forget(ctx, name) }),
		{
			Name: "dead", Short: "see what sinks refused for good, and try it again",
			Commands: []*daemon.Command{
				operation("list", "[SINK]", "list letters: what sinks refused for good, and why", "", nil,
					func(ctx context.Context, op *sinks.Operator, name string) error { return op.Letters(ctx, name) }),
				operation("redrive", "[SINK]", "let sinks try letters again",
					"Each letter goes to the sink that refused it, and to no other. It is written whole, beside what is new: where\n"+
						"only parts were refused, the rest of it comes twice to a destination that cannot tell.", nil,
					func(ctx context.Context, op *sinks.Operator, name string) error { return op.Redrive(ctx, name) }),
			},
		},
	}
}

func rewind() *daemon.Command {
	var to, stream string
	var skip bool
	flags := func(fs *pflag.FlagSet) {
		fs.StringVar(&to, "to", "", "`where` to go on: start, now, a duration back (2h), an instant (RFC 3339) or a sequence")
		fs.StringVar(&stream, "stream", "", "`stream` that is meant: rollups or events; both if not given")
		fs.BoolVar(&skip, "skip", false, "go forward, too, and leave out what was not written")
	}
	c := operation("rewind", "SINK", "make a sink go on from an earlier or later place",
		"What is written already is written again: harmless where the destination knows a sample again, else doubled.\n"+
			"The worker of the sink is stopped for a few seconds and goes on by itself.", flags,
		func(ctx context.Context, op *sinks.Operator, name string) error {
			at, err := sinks.ParseTo(to, time.Now())
			if err != nil {
				return err
			}
			var streams []string
			if stream != "" {
				streams = []string{stream}
			}
			return op.Rewind(ctx, name, at, streams, skip)
		})
	validate := c.Validate
	c.Validate = func() error {
		_, err := sinks.ParseTo(to, time.Now())
		if stream != "" && !slices.Contains([]string{"rollups", "events"}, stream) {
			err = errors.Join(err, fmt.Errorf("--stream is %q: want rollups or events", stream))
		}
		return errors.Join(validate(), err)
	}
	return c
}

func pause() *daemon.Command {
	var how time.Duration
	flags := func(fs *pflag.FlagSet) {
		fs.DurationVar(&how, "for", 0, "for how long; until it is resumed if not given")
	}
	return operation("pause", "SINK", "stop writing to a sink, whichever process feeds it and however often that is restarted",
		"Returns when nothing is being written any more. What leaves the stream during a pause is lost to the sink.", flags,
		func(ctx context.Context, op *sinks.Operator, name string) error { return op.Pause(ctx, name, how) })
}

// operation is a command that connects to the bus, does one thing and ends. args is what it takes: nothing, SINK
// or [SINK].
func operation(name, args, short, long string, flags func(*pflag.FlagSet), do func(context.Context, *sinks.Operator, string) error) *daemon.Command {
	busCfg := bus.DefaultConfig()
	busCfg.Name = "sinks-" + name
	var clusters []string
	output, patience := "text", 30*time.Second
	return &daemon.Command{
		Name: name, Args: args, Short: short, Long: long, OneShot: true,
		Flags: func(fs *pflag.FlagSet) {
			if flags != nil {
				flags(fs)
			}
			fs.StringSliceVar(&clusters, "cluster", nil, "`cluster` that is meant; repeatable; every registered one if none is given")
			fs.StringVarP(&output, "output", "o", output, "text, or json for a line of JSON each")
			fs.DurationVar(&patience, "patience", patience, "how long to wait for the bus")
			busCfg.Flags(fs)
		},
		Validate: func() error {
			var err error
			if output != "text" && output != "json" {
				err = fmt.Errorf("--output is %q: want text or json", output)
			}
			if patience <= 0 {
				err = errors.Join(err, fmt.Errorf("--patience is %s; it must be positive", patience))
			}
			return errors.Join(busCfg.Validate(), err)
		},
		Run: func(ctx context.Context, d daemon.Deps) error {
			which := ""
			switch {
			case len(d.Args) > 1:
				return fmt.Errorf("%d names are given: want one sink", len(d.Args))
			case len(d.Args) == 1:
				which = d.Args[0]
			case args == "SINK":
				return errors.New("which sink? `sinks list` shows their names")
			}
			ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not done within %s (--patience)", patience))
			defer cancel()
			conn, err := bus.Connect(ctx, busCfg, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			op := sinks.NewOperator(conn, d.Stdout)
			op.Clusters, op.JSON = clusters, output == "json"
			if err := do(ctx, op, which); err != nil {
				if errors.Is(err, context.DeadlineExceeded) {
					return fmt.Errorf("%w: %w", context.Cause(ctx), err)
				}
				return err
			}
			return nil
		},
	}
}
