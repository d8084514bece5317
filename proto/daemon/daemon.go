// Package daemon is how a process of heapstream behaves: what every program of ours has in common before
// it does anything of its own.
//
// A [Command] has flags, each with an environment twin; it refuses what it does not know and says what
// was probably meant; it logs with slog to standard error, stops on SIGTERM, answers /healthz, /readyz
// and /metrics while it runs, and keeps its heap below the memory limit of its cgroup. A [Group] runs
// several named parts and stops them in the reverse order. Every image is built FROM scratch, so every
// command also has a subcommand "healthcheck", which asks such an address and exits accordingly.
//
// It keeps no state: after a crash there is nothing to come back to.
//
// Not here: samples and everything made of them (proto), the bus (proto/bus), serving what readers ask
// for (apigw), klog and other loggers of libraries (the room that knows the library).
package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

// Exit codes of our programs.
const (
	exitDone   = 0 // did what was asked, or stopped because it was asked to
	exitFailed = 1 // ran and came to an error
	exitUsage  = 2 // was called wrongly and did nothing
)

// Command is a program, or a subcommand of one. Its functions are called by one goroutine, in the order
// of the fields.
type Command struct {
	// Name is the word to type: the binary's name, or the subcommand's.
	Name string
	// Short says in one line what it does; Long, if set, says more. Both are part of the help.
	Short, Long string

	// Args describes positional arguments for the usage line, such as "CLUSTER". If empty, an argument
	// that is not a flag is refused.
	Args string
	// OneShot marks a command that does something and ends: it serves no telemetry, and Run returning nil
	// is success. Otherwise Run is expected to work until its context ends.
	OneShot bool
	// Process is how the process itself behaves by default; nil means [DefaultConfig]. The command line
	// is read into a copy of it.
	Process *Config
	// HeapGrowth is by how many percent of what is in use the heap may grow before it is collected, as
	// runtime/debug.SetGCPercent has it; 0 leaves that to Go, and an operator's GOGC decides anyhow. Small is right for who keeps
	// much and makes little.
	HeapGrowth int

	// SingleDash lets one dash begin a long name too, as Go's own package flag has it: -sink=log is --sink=log.
	SingleDash bool
	// Flags, if set, registers the command's own flags.
	Flags func(fs *pflag.FlagSet)
	// Validate, if set, checks what was given. It returns all it has to complain about joined by
	// [errors.Join]; each is printed on a line of its own. A wrong command line ends with exit code 2.
	Validate func() error
	// Run does the work and returns after everything it started has ended: nil on a wished stop (ctx
	// ended), otherwise the first cause. A command without Run only has subcommands.
	Run func(ctx context.Context, d Deps) error

	// Commands are subcommands, chosen by the first argument. They have flags of their own and none of
	// their parent's.
	Commands []*Command
}

// Deps is what the process hands to the command it runs.
type Deps struct {
	// Log writes to standard error.
	Log *slog.Logger
	// Registry is what /metrics shows. The Go runtime, the process and heapstream_build_info are in it.
	Registry *prometheus.Registry
	// Health is what /healthz and /readyz show.
	Health *Health
	// Telemetry is the address at which both are served ("127.0.0.1:8080"); empty if they are not.
	Telemetry string
	// Args are the positional arguments, if the command takes any.
	Args []string
	// Stdout and Stderr are the process's; results go to Stdout, everything else to Stderr.
	Stdout, Stderr io.Writer
}

// Main runs the command of this process and exits: with 0 when it did what was asked or was asked to
// stop, with 1 after an error, with 2 when it was called wrongly. The first SIGTERM or SIGINT ends the
// context of Run, the second kills the process.
func Main(cmd *Command) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop) // from then on a signal does what it does by default
	os.Exit(cmd.execute(ctx, process{
		args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr, whole: true,
	}))
}

// Execute runs the command with these arguments and nothing else: no signals, no environment, no limits
// of the process, which is what tests of a program want. It blocks until the command has ended and
// returns its exit code.
func Execute(ctx context.Context, cmd *Command, args []string, stdout, stderr io.Writer) int {
	return cmd.execute(ctx, process{args: args, stdout: stdout, stderr: stderr})
}

// process is what a command takes from the process it runs in.
type process struct {
	args, environ  []string
	stdout, stderr io.Writer
	whole          bool // the process is ours: the default logger and the limits of its memory may be set
}

func (c *Command) execute(ctx context.Context, p process) int {
	root := c.withHealthcheck()
	cmd, path, args := root.choose(p.args)
	inv := newInvocation(cmd, path)
	if err := inv.parse(args, p.environ, root.environment()); err != nil {
		return usage(p.stderr, path, err)
	}
	switch {
	case inv.help:
		fmt.Fprint(p.stdout, inv.helpText())
		return exitDone
	case inv.version:
		version, commit := Version()
		fmt.Fprintf(p.stdout, "version: %s\ncommit: %s\n", version, commit)
		return exitDone
	}
	if err := inv.validate(); err != nil {
		return usage(p.stderr, path, err)
	}

	log := inv.config.Logger(p.stderr)
	if p.whole {
		slog.SetDefault(log) // what libraries print through package log comes out in the same form
		limitMemory(log)
		limitGrowth(cmd.HeapGrowth)
	}
	if err := inv.run(ctx, p, log); err != nil {
		log.Error(cmd.Name+" ends", "err", err)
		return exitFailed
	}
	return exitDone
}

// choose follows the leading arguments down to the subcommand they name. It returns that command, the
// words that lead to it, and the arguments left.
func (c *Command) choose(args []string) (cmd *Command, path string, rest []string) {
	path = c.Name
	for len(args) > 0 {
		sub := c.sub(args[0])
		if sub == nil {
			break
		}
		c, path, args = sub, path+" "+sub.Name, args[1:]
	}
	return c, path, args
}

func (c *Command) sub(name string) *Command {
	for _, s := range c.Commands {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (i *invocation) run(ctx context.Context, p process, log *slog.Logger) error {
	d := Deps{
		Log: log, Registry: prometheus.NewRegistry(), Health: NewHealth(), Args: i.args,
		Stdout: p.stdout, Stderr: p.stderr,
	}
	registerProcess(d.Registry)
	if i.cmd.OneShot {
		return i.cmd.Run(ctx, d)
	}

	parts := Group{Log: log}
	if i.config.TelemetryListen != "" {
		lis, err := net.Listen("tcp", i.config.TelemetryListen)
		if err != nil {
			return fmt.Errorf("listen for telemetry (--telemetry-listen): %w", err)
		}
		d.Telemetry = lis.Addr().String()
		s := newTelemetryServer(i.config, d)
		parts.Add("telemetry", func(ctx context.Context) error { return s.serve(ctx, lis) })
	}
	parts.Add(i.cmd.Name, func(ctx context.Context) error { return i.cmd.Run(ctx, d) })
	parts.Add("readiness", func(ctx context.Context) error { // added last, so the first to be stopped
		<-ctx.Done()
		d.Health.stop()
		log.Info(i.path + " stops")
		return nil
	})

	version, commit := Version()
	log.Info(i.path+" starts", "version", version, "commit", commit, "telemetry", d.Telemetry)
	return parts.Run(ctx)
}

// usage prints every complaint on a line of its own and returns the exit code for a wrong command line.
func usage(w io.Writer, path string, err error) int {
	for line := range strings.Lines(err.Error()) { // joined errors stand on a line each
		fmt.Fprintf(w, "%s: %s\n", path, strings.TrimSpace(line))
	}
	fmt.Fprintf(w, "See '%s --help'.\n", path)
	return exitUsage
}
