package aggregator

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
)

// Config is what an operator may choose. Nothing in it shapes output.
type Config struct {
	// ID names this process among the aggregators; it must be unique.
	ID string
	// Clusters are the clusters it may own; all registered ones where empty.
	Clusters []string
}

// DefaultConfig may own every cluster, under the host's name and a random suffix.
func DefaultConfig() Config {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "aggregator"
	}
	return Config{ID: host + "-" + strings.ToLower(rand.Text()[:5])}
}

// Flags registers the configuration.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.ID, "member-id", c.ID, "`name` of this process among the aggregators, unique")
	fs.StringSliceVar(&c.Clusters, "cluster", c.Clusters, "`clusters` that it may own, comma separated; all registered ones if empty")
}

// Validate joins all complaints.
func (c *Config) Validate() error {
	var errs []error
	if err := bus.CheckName("member", c.ID); err != nil {
		errs = append(errs, fmt.Errorf("--member-id: %w", err))
	}
	for _, name := range c.Clusters {
		if err := bus.CheckCluster(name); err != nil {
			errs = append(errs, fmt.Errorf("--cluster: %w", err))
		}
	}
	return errors.Join(errs...)
}
