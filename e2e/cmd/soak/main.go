// Command soak is `make soak`: the pipeline as separate processes for an hour, with churn, kills and a backend that
// comes and goes. It ends with 1 if anything was lost, doubled or wrong.
//
// Not here: what it does (package soak).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/e2e/soak"
	"github.com/heapstream/heapstream/proto/daemon"
)

func main() {
	cfg := soak.DefaultConfig()
	var keep bool
	process := daemon.DefaultConfig()
	process.TelemetryListen = ""
	daemon.Main(&daemon.Command{
		Name:    "soak",
		Short:   "Runs the pipeline for a long time, breaks it now and then, and counts.",
		Process: &process,
		OneShot: true,
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&cfg.Bin, "bin", cfg.Bin, "`directory` of the programs")
			fs.StringVar(&cfg.Dir, "out", "", "`directory` for samples.csv, summary.txt and logs; a new one if empty")
			fs.BoolVar(&keep, "keep", false, "keep the data of the bus, too")
			fs.IntVar(&cfg.Nodes, "nodes", cfg.Nodes, "nodes of the cluster")
			fs.IntVar(&cfg.Pods, "pods", cfg.Pods, "pods a node")
			fs.IntVar(&cfg.Containers, "containers", cfg.Containers, "containers a pod")
			fs.DurationVar(&cfg.Resolution, "resolution", cfg.Resolution, "distance between two ticks")
			fs.DurationVar(&cfg.Churn, "churn", cfg.Churn, "mean time between two changes of the workload; 0: none")
			fs.DurationVar(&cfg.Duration, "duration", cfg.Duration, "for how long")
			fs.DurationVar(&cfg.KillEvery, "kill-every", cfg.KillEvery, "time from one kill to the next; 0: none")
			fs.DurationVar(&cfg.FlapEvery, "flap-every", cfg.FlapEvery, "time from one absence of the backend to the next; 0: none")
			fs.DurationVar(&cfg.FlapFor, "flap-for", cfg.FlapFor, "how long the backend is away")
			fs.DurationVar(&cfg.Sample, "sample", cfg.Sample, "time between two looks at everything")
			fs.DurationVar(&cfg.RollupsAge, "rollups-age", cfg.RollupsAge, "how long ROLLUPS are kept")
		},
		Validate: func() error { return cfg.Validate() },
		Run: func(ctx context.Context, d daemon.Deps) (err error) {
			if cfg.Dir == "" {
				cfg.Dir = filepath.Join(os.TempDir(), "heapstream-soak-"+time.Now().UTC().Format("20060102-150405"))
			}
			if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
				return fmt.Errorf("make a folder: %w", err)
			}
			fmt.Fprintln(d.Stdout, "results lie in", cfg.Dir)
			if !keep {
				defer func() { err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.Dir, "nats"))) }()
			}
			res, err := soak.Run(ctx, cfg, d.Log, d.Stdout)
			if err == nil && res.Wrong > 0 {
				err = fmt.Errorf("%d things are wrong, see %s", res.Wrong, filepath.Join(cfg.Dir, "summary.txt"))
			}
			return err
		},
	})
}
