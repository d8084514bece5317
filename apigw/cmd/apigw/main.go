// Command apigw serves the rollups of one or many clusters: the Heapster API, and the resource metrics API of
// Kubernetes.
package main

import (
	"context"
	"errors"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/apigw"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

func main() { daemon.Main(command()) }

// heapGrowth: nearly all of the heap is the window, of which a tick renews a hundredth: at 20 % it is collected every other
// tick, where Go's 100 % takes twice the memory for a collection in two minutes.
const heapGrowth = 20

func command() *daemon.Command {
	cfg, busCfg := apigw.DefaultConfig(), bus.DefaultConfig()
	busCfg.Name = "apigw"
	return &daemon.Command{
		Name:  "apigw",
		Short: "Serve rollups: the Heapster API, kubectl top and the HPA.",
		Long: "Reads the rollups that the aggregator publishes, remembers every metric of the last minutes, and serves it:\n" +
			"the Heapster API over HTTP, and with --api-server the resource metrics API of Kubernetes over HTTPS. Any number\n" +
			"of gateways may run side by side. Other clusters than --cluster are served below /clusters/<name>/.",
		HeapGrowth: heapGrowth,
		Flags:      func(fs *pflag.FlagSet) { cfg.Flags(fs); busCfg.Flags(fs) },
		Validate:   func() error { return errors.Join(cfg.Validate(), busCfg.Validate()) },
		Run: func(ctx context.Context, d daemon.Deps) error {
			conn, err := bus.Connect(ctx, busCfg, d.Log)
			if err != nil {
				return err
			}
			defer conn.Close()
			g, err := apigw.New(cfg, apigw.Deps{Bus: conn, Log: d.Log, Registry: d.Registry, Health: d.Health})
			if err != nil {
				return err
			}
			return g.Run(ctx)
		},
	}
}
