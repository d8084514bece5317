// Command heapstream is everything in one process, on Heapster's command line. It also administers the bus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/deploy/standalone/doctor"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
)

func main() { daemon.Main(called(os.Args[0])) }

// called is the program that a name means: eventer is one of its own, any other is heapstream.
func called(name string) *daemon.Command {
	if eventer := standalone.EventerCommand(); filepath.Base(name) == eventer.Name {
		return eventer
	}
	return command()
}

func command() *daemon.Command {
	cfg := standalone.DefaultConfig()
	return &daemon.Command{
		Name:  "heapstream",
		Short: "Measures a Kubernetes cluster and serves kubectl top, the HPA, Heapster's API and any number of databases.",
		Long: "Takes Heapster's command line; '-' and '_' are alike in flag names. The four services run in this process\n" +
			"on a bus of its own, which lies in --data-dir.",
		Process:  cfg.Process(),
		Flags:    cfg.Flags,
		Validate: cfg.Validate,
		Run: func(ctx context.Context, d daemon.Deps) error {
			s, err := standalone.New(cfg, standalone.Deps{Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout})
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
		Commands: []*daemon.Command{standalone.EventerCommand(), busCommand(), clustersCommand(), metricsCommand(), doctor.Command()},
	}
}

// busCommand administers the streams of a bus that the services share.
func busCommand() *daemon.Command {
	connect, topology := bus.DefaultConfig(), bus.Topology{}.WithDefaults()
	connect.Name = "heapstream bus"
	flags := func(fs *pflag.FlagSet) {
		connect.Flags(fs)
		fs.StringVar(&topology.Cluster, "cluster", "", "`name` of the cluster whose streams are meant; only what all clusters share if empty")
		fs.IntVar(&topology.Replicas, "replicas", topology.Replicas, "copies of every stream and bucket")
		fs.DurationVar(&topology.SamplesAge, "samples-age", topology.SamplesAge, "how long samples are kept")
		fs.DurationVar(&topology.RollupsAge, "rollups-age", topology.RollupsAge, "how long rollups are kept: the gateways' window and the longest outage of a sink that loses nothing")
		fs.DurationVar(&topology.EventsAge, "events-age", topology.EventsAge, "how long events are kept")
		fs.DurationVar(&topology.DeadAge, "dead-age", topology.DeadAge, "how long refused messages are kept")
		fs.Int64Var(&topology.SamplesBytes, "samples-bytes", topology.SamplesBytes, "most `bytes` of samples")
		fs.Int64Var(&topology.RollupsBytes, "rollups-bytes", topology.RollupsBytes, "most `bytes` of rollups")
		fs.Int64Var(&topology.EventsBytes, "events-bytes", topology.EventsBytes, "most `bytes` of events")
		fs.Int64Var(&topology.DeadBytes, "dead-bytes", topology.DeadBytes, "most `bytes` of refused messages")
		fs.IntVar(&topology.Nodes, "nodes", 0, "`nodes` of the cluster, to say what its rollups will take")
		fs.DurationVar(&topology.Resolution, "metric_resolution", time.Minute, "distance between two ticks, for the same purpose")
		fs.StringVar(&topology.FromDomain, "from-domain", "", "mirror rollups and events of the cluster from this JetStream `domain`")
	}
	validate := func() error { return errors.Join(connect.Validate(), topology.Validate()) }
	return &daemon.Command{
		Name:  "bus",
		Short: "Administers the streams and buckets of a bus.",
		Commands: []*daemon.Command{
			{
				Name: "apply", Short: "Makes the streams and buckets, or alters them to what is asked for.", OneShot: true,
				Flags: flags, Validate: validate,
				Run: func(ctx context.Context, d daemon.Deps) error {
					return connected(ctx, connect, d, func(c *bus.Conn) error {
						changes, err := c.Apply(ctx, topology)
						for _, change := range changes {
							fmt.Fprintln(d.Stdout, change)
						}
						if err == nil && topology.Nodes > 0 {
							fmt.Fprintln(d.Stdout, "rollups take", topology.Estimate())
						}
						return err
					})
				},
			},
			{
				Name: "check", Short: "Says what differs from what is asked for, and exits with 1 if anything does.", OneShot: true,
				Flags: flags, Validate: validate,
				Run: func(ctx context.Context, d daemon.Deps) error {
					return connected(ctx, connect, d, func(c *bus.Conn) error { return c.Check(ctx, topology) })
				},
			},
		},
	}
}

// clustersCommand shows and removes the clusters that the bus knows of.
func clustersCommand() *daemon.Command {
	connect := bus.DefaultConfig()
	connect.Name = "heapstream clusters"
	return &daemon.Command{
		Name:  "clusters",
		Short: "Shows the clusters that a bus knows of, or removes one.",
		Commands: []*daemon.Command{
			{
				Name: "list", Short: "Lists the registered clusters.", OneShot: true, Flags: connect.Flags, Validate: connect.Validate,
				Run: func(ctx context.Context, d daemon.Deps) error {
					return connected(ctx, connect, d, func(c *bus.Conn) error { return list(ctx, c, d.Stdout) })
				},
			},
			{
				Name: "rm", Args: "CLUSTER", Short: "Removes a cluster from the register and deletes its streams.", OneShot: true,
				Flags: connect.Flags, Validate: connect.Validate,
				Run: func(ctx context.Context, d daemon.Deps) error {
					if len(d.Args) != 1 {
						return fmt.Errorf("clusters rm takes one cluster, not %d", len(d.Args))
					}
					return connected(ctx, connect, d, func(c *bus.Conn) error { return c.RemoveCluster(ctx, d.Args[0]) })
				},
			},
		},
	}
}

func list(ctx context.Context, c *bus.Conn, out io.Writer) error {
	all, err := c.Clusters(ctx)
	for _, info := range all {
		fmt.Fprintf(out, "%s\tuid %s\tresolution %s\tsince %s\n", info.Cluster, info.UID, info.Resolution, info.Created.UTC().Format(time.RFC3339))
	}
	return err
}

// connected does something on the bus and gives up after a while if there is none.
func connected(ctx context.Context, cfg bus.Config, d daemon.Deps, do func(*bus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := bus.Connect(ctx, cfg, d.Log)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.WaitUp(ctx); err != nil {
		return err
	}
	return do(conn)
}
