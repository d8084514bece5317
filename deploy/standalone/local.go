package standalone

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

// local is the bus inside this process, with the streams of one cluster.
type local struct {
	topology bus.Topology
	server   *embedded.Server
	log      *slog.Logger
	up       chan struct{} // closed when the streams are there
}

// newLocal opens nothing. The server may hold what the topology reserves, or more where cfg says so.
func newLocal(cfg embedded.Config, topology bus.Topology, log *slog.Logger) (*local, error) {
	reserved := topology.Reserved()
	cfg.MaxStore, cfg.MaxMemory = max(cfg.MaxStore, reserved), max(cfg.MaxMemory, reserved)
	server, err := embedded.New(cfg, log)
	if err != nil {
		return nil, err
	}
	return &local{topology: topology, server: server, log: log, up: make(chan struct{})}, nil
}

// Connect returns a connection to the bus inside, for tools and tests; the caller closes it before Run ends. It
// blocks until the bus has its streams or ctx ends.
func (l *local) Connect(ctx context.Context, name string) (*bus.Conn, error) {
	select {
	case <-l.up:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return l.connect(ctx, name)
}

func (l *local) connect(ctx context.Context, name string) (*bus.Conn, error) {
	cfg := bus.DefaultConfig()
	cfg.Name = name
	return bus.ConnectLocal(ctx, l.server, cfg, l.log)
}

// start starts the server and makes the streams; the caller shuts the server down, also after an error.
func (l *local) start(ctx context.Context) error {
	if err := l.server.Start(ctx); err != nil {
		return err
	}
	conn, err := l.connect(ctx, "heapstream")
	if err != nil {
		return err
	}
	defer conn.Close()
	changes, err := conn.Apply(ctx, l.topology)
	if err != nil {
		return fmt.Errorf("make the streams of cluster %q: %w", l.topology.Cluster, err)
	}
	for _, c := range changes {
		l.log.Info("bus provisioned", "change", c.String())
	}
	close(l.up)
	return nil
}
