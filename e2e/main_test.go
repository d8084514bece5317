package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"testing"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
)

// asProgram, set in the environment, makes this test binary one of the programs: a process of its own that can be
// killed. It does not begin with HEAPSTREAM_, which the programs read as their flags.
const asProgram = "E2E_RUN_AS_HEAPSTREAM"

func TestMain(m *testing.M) {
	if program := disguises[os.Getenv(asProgram)]; program != nil {
		daemon.Main(program())
	}
	os.Exit(testMain(m))
}

// atOnce is how many parallel tests run at once where -parallel does not say: they wait for ticks most of the time.
const atOnce = "32"

// cleanUps end what tests share.
var cleanUps []func()

func testMain(m *testing.M) int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
	}
	code := m.Run()
	for _, end := range cleanUps {
		end()
	}
	if code != 0 {
		return code
	}
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"), // started by importing it
	); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// disguises are the programs that this binary can be.
var disguises = map[string]func() *daemon.Command{
	"heapstream": heapstreamCommand, "eventer": standalone.EventerCommand, "scraper": scraperCommand, "sinks": sinksCommand,
}

// scraperCommand is the program scraper.
func scraperCommand() *daemon.Command {
	cfg := scraper.DefaultConfig()
	return oneService("scraper", cfg.Flags, cfg.Validate, func(conn *bus.Conn, d daemon.Deps) (part, error) {
		return scraper.New(cfg, scraper.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health})
	})
}

// sinksCommand is the program sinks without its tools.
func sinksCommand() *daemon.Command {
	cfg := sinks.DefaultConfig()
	return oneService("sinks", cfg.Flags, cfg.Validate, func(conn *bus.Conn, d daemon.Deps) (part, error) {
		return sinks.New(cfg, sinks.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout})
	})
}

// part is what every service is.
type part interface{ Run(context.Context) error }

// oneService is a program of one service.
func oneService(name string, flags func(*pflag.FlagSet), validate func() error, open func(*bus.Conn, daemon.Deps) (part, error)) *daemon.Command {
	where, process := bus.DefaultConfig(), daemon.DefaultConfig()
	where.Name, process.TelemetryListen = name, ""
	return &daemon.Command{
		Name: name, Short: "one service", Process: &process,
		Flags:    func(fs *pflag.FlagSet) { flags(fs); where.Flags(fs) },
		Validate: func() error { return errors.Join(validate(), where.Validate()) },
		Run: func(ctx context.Context, d daemon.Deps) error {
			conn, err := bus.Connect(ctx, where, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			p, err := open(conn, d)
			if err != nil {
				return err
			}
			return p.Run(ctx)
		},
	}
}

// heapstreamCommand is the program heapstream without its tools for the bus.
func heapstreamCommand() *daemon.Command {
	cfg := standalone.DefaultConfig()
	return &daemon.Command{
		Name: "heapstream", Short: "everything in one process", Process: cfg.Process(), Flags: cfg.Flags, Validate: cfg.Validate,
		Run: func(ctx context.Context, d daemon.Deps) error {
			s, err := standalone.New(cfg, standalone.Deps{Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}
}
