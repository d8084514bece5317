package doctor

import (
	"context"

	"github.com/heapstream/heapstream/proto/daemon"
)

// Command is `heapstream doctor`. It exits with 0 where nothing fails (warnings are no failures), with 1 where
// something does, and with 2 where it was called wrongly.
func Command() *daemon.Command {
	cfg := DefaultConfig()
	return &daemon.Command{
		Name:  "doctor",
		Short: "Looks at what heapstream stands on and says what is wrong and what to do.",
		Long: "Run it where the service runs (as its pod, with its flags) or with --kubeconfig and --bus-url from elsewhere. It\n" +
			"changes nothing. A line says ok, warn, fail or skip (not looked at, and why), what was seen, and what to do.\n" +
			"The exit code is 0 if nothing fails, 1 if something does, 2 if the command line is wrong.",
		OneShot: true, Flags: cfg.Flags, Validate: cfg.Validate,
		Run: func(ctx context.Context, d daemon.Deps) error {
			doctor, err := New(cfg, Deps{Log: d.Log})
			if err != nil {
				return err
			}
			r := doctor.Examine(ctx)
			write := r.Text
			if cfg.Output == OutputJSON {
				write = r.JSON
			}
			if err := write(d.Stdout); err != nil {
				return err
			}
			return r.Err()
		},
	}
}
