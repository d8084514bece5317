// Command sinks feeds databases and queues with the rollups and the Kubernetes events of one or many clusters.
package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks"
	"github.com/heapstream/heapstream/sinks/sink"
)

func main() { daemon.Main(command()) }

func command() *daemon.Command {
	cfg, busCfg := sinks.DefaultConfig(), bus.DefaultConfig()
	busCfg.Name = "sinks"
	return &daemon.Command{
		Name:  "sinks",
		Short: "Feed databases and queues with rollups and Kubernetes events.",
		Long: "Reads the rollups that the aggregator publishes and writes them to every --sink; the events\n" +
			"that the scraper of role events publishes go to every --event-sink. Several processes may be\n" +
			"started alike: each sink is fed by one of them, and another takes over where that one ends. A destination\n" +
			"that is down is tried again for as long as it takes, and gets what it missed.\n\n" +
			"The subcommands but kinds work on a running system, by the bus, wherever the sinks run; they need its role\n" +
			"admin.\n\n" +
			sink.OptionsHelp,
		Flags:    func(fs *pflag.FlagSet) { cfg.Flags(fs); busCfg.Flags(fs) },
		Validate: func() error { return errors.Join(cfg.Validate(), busCfg.Validate(), some(cfg)) },
		Run: func(ctx context.Context, d daemon.Deps) error {
			conn, err := bus.Connect(ctx, busCfg, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			s, err := sinks.New(cfg, sinks.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
		Commands: operations(),
	}
}

// some refuses a process that would have nothing to do.
func some(cfg sinks.Config) error {
	if len(cfg.Sinks)+len(cfg.EventSinks) == 0 {
		return errors.New("no --sink is given: name at least one, such as --sink=influxdb:http://host:8086, or an --event-sink")
	}
	return nil
}
