// Command scraper reads kubelets and the API server and writes SAMPLES.
package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
)

func main() { daemon.Main(command()) }

func command() *daemon.Command {
	cfg, where := scraper.DefaultConfig(), bus.DefaultConfig()
	where.Name = "scraper"
	return &daemon.Command{
		Name:  "scraper",
		Short: "reads kubelets and the API server and writes SAMPLES",
		Flags: func(fs *pflag.FlagSet) {
			cfg.Flags(fs)
			where.Flags(fs)
		},
		Validate: func() error { return errors.Join(cfg.Validate(), where.Validate()) },
		Run: func(ctx context.Context, d daemon.Deps) error {
			conn, err := bus.Connect(ctx, where, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			s, err := scraper.New(cfg, scraper.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	}
}
