// Command aggregator turns the batches of a cluster's nodes into rollups: SAMPLES to ROLLUPS. Any number
// of them may run; each cluster is owned by one at a time.
package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/aggregator"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

func main() { daemon.Main(command()) }

func command() *daemon.Command {
	cfg, connect := aggregator.DefaultConfig(), bus.DefaultConfig()
	id := cfg.ID
	cfg.ID = "" // the help does not depend on the host
	return &daemon.Command{
		Name:  "aggregator",
		Short: "turns the batches of nodes into rollups, one owner a cluster",
		Flags: func(fs *pflag.FlagSet) {
			cfg.Flags(fs)
			fs.Lookup("member-id").Usage += "; the host's name and a random suffix if empty"
			connect.Flags(fs)
		},
		Validate: func() error {
			if cfg.ID == "" {
				cfg.ID = id
			}
			return errors.Join(cfg.Validate(), connect.Validate())
		},
		Run: func(ctx context.Context, d daemon.Deps) error {
			if connect.Name == "" {
				connect.Name = "aggregator " + cfg.ID
			}
			conn, err := bus.Connect(ctx, connect, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			a, err := aggregator.New(cfg, aggregator.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health})
			if err != nil {
				return err
			}
			return a.Run(ctx)
		},
	}
}
