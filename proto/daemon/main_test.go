package daemon

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "write the golden files anew")

// asProgram makes the test binary run a program of the tests through Main.
const asProgram = "DAEMON_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if kind := os.Getenv(asProgram); kind != "" {
		Main(stubborn(kind))
	}
	goleak.VerifyTestMain(m)
}

// stubborn is a program that stops when asked to, or, if it is deaf, only when killed.
func stubborn(kind string) *Command {
	return &Command{
		Name:    "stubborn",
		Short:   "says when it works and when it is told to stop",
		Process: &Config{LogLevel: "info", LogFormat: "json"},
		Run: func(ctx context.Context, d Deps) error {
			fmt.Fprintln(d.Stdout, "working")
			<-ctx.Done()
			fmt.Fprintln(d.Stdout, "told to stop")
			if kind == "deaf" {
				time.Sleep(time.Minute)
			}
			return nil
		},
	}
}

// settings is a command line as a service has one.
type settings struct {
	BusURL     string
	Resolution time.Duration
	Sinks      []string
}

func (s *settings) flags(fs *pflag.FlagSet) {
	fs.StringVar(&s.BusURL, "bus-url", "nats://127.0.0.1:4222", "`URL` of the bus")
	fs.DurationVar(&s.Resolution, "metric-resolution", time.Minute, "length of a tick")
	fs.StringArrayVar(&s.Sinks, "sink", nil, "`URI` of a database; may be given several times")
}

// program is a command that takes settings and tells what it got by calling run.
func program(s *settings, run func(ctx context.Context, d Deps) error) *Command {
	return &Command{
		Name:    "sinks",
		Short:   "write rollups to databases",
		Long:    "Every sink is fed by a worker of its own; a slow one delays only itself.",
		OneShot: true,
		Flags:   s.flags,
		Run:     run,
		Commands: []*Command{{
			Name: "bus", Short: "look after the bus",
			Commands: []*Command{{
				Name: "apply", Short: "create the streams", OneShot: true,
				Flags: func(fs *pflag.FlagSet) { fs.Int("replicas", 1, "servers that keep a stream") },
				Run:   func(context.Context, Deps) error { return nil },
			}},
		}},
	}
}
