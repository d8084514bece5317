package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/proto/daemon"
)

// asProgram, set in the environment, makes this test binary the program heapstream: a process of its
// own that can be killed. It does not begin with HEAPSTREAM_, which the program reads as its flags.
const asProgram = "E2E_RUN_AS_HEAPSTREAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		daemon.Main(heapstreamCommand())
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	code := m.Run()
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
