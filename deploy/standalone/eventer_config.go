package standalone

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/embedded"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
)

// EventerConfig is what an operator of an eventer may choose: eventer's command line, where the data lies, and the
// name of the cluster. Start from DefaultEventerConfig.
type EventerConfig struct {
	Sources []string // exactly one, of the key kubernetes
	// Frequency is how often eventer looks at itself: its own telemetry and /healthz are renewed then. Events
	// do not wait for it.
	Frequency time.Duration
	MaxProcs  int    // worker threads; less than 1: as many as the machine has
	IP        string // where /healthz, /readyz and /metrics are served; empty: everywhere
	Port      uint16 // likewise; 0: one that the system chooses, the log says which

	Cluster string // on the bus, and what sinks call the cluster
	// DataDir is where the embedded bus keeps EVENTS. Empty is $STATE_DIRECTORY, else a directory that is gone with
	// the process; DataInMemory keeps nothing on disk.
	DataDir string

	Bus     embedded.Config
	Scraper scraper.Config
	Sinks   sinks.Config // of events alone

	glog      glog
	throwaway bool // the data is gone with the process, and nobody has asked for that
}

// What eventer allowed --frequency to be.
const (
	minFrequency = 5 * time.Second
	maxFrequency = 3 * time.Minute
)

// DefaultEventerConfig is eventer's: a look every 30 s, port 8084 everywhere, no sinks. The source is still to be
// chosen.
func DefaultEventerConfig() EventerConfig {
	return EventerConfig{
		Frequency: 30 * time.Second, IP: "0.0.0.0", Port: 8084, Cluster: "default",
		Bus: embedded.DefaultConfig(), Scraper: scraper.DefaultConfig(), Sinks: sinks.DefaultConfig(), glog: defaultGlog(),
	}
}

// Flags registers eventer's flags, and ours beside them.
func (c *EventerConfig) Flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.Sources, "source", c.Sources, "`URI` of the API server whose events are read, exactly one: kubernetes:[scheme://host[:port]][?option=value&…]; "+
		"options: inClusterConfig, insecure, auth, useServiceAccount, apiVersion; those for kubelets are accepted and mean nothing")
	c.Sinks.EventSinkFlags(fs)
	fs.DurationVar(&c.Frequency, "frequency", c.Frequency, "how often /healthz and eventer's own metrics are renewed, from 5s to 3m; events are written as they come")
	fs.IntVar(&c.MaxProcs, "max_procs", c.MaxProcs, "worker threads; as many as the machine has if less than 1")
	fs.StringVar(&c.IP, "healthz-ip", c.IP, "`address` that serves /healthz, /readyz and /metrics; all of them if empty")
	fs.Uint16Var(&c.Port, "healthz-port", c.Port, "`port` of the same; one that the system chooses if 0")

	fs.StringVar(&c.Cluster, "cluster", c.Cluster, "`name` of the cluster, on the bus and for sinks that have no cluster_name of their own")
	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`directory` that keeps events for 24 hours, so that a restart goes on where it stopped; if empty $STATE_DIRECTORY, "+
		"else one that is gone with the process, so that a restart writes again what the API server still has; \"memory\" keeps nothing on disk")
	fs.StringVar(&c.Scraper.Kubeconfig, "kubeconfig", c.Scraper.Kubeconfig, "kubeconfig `file` for the API server, instead of what --source says of it")
	fs.IntVar(&c.Scraper.EventsRate, "events-rate", c.Scraper.EventsRate, "most `states` of events taken a second, on average; what exceeds it waits at the API server, and updates may be skipped there")
	c.Bus.Flags(fs)
	c.glog.flags(fs)
}

// Process is how the process itself behaves by default: what others serve at --telemetry-listen is on eventer's
// port here.
func (c *EventerConfig) Process() *daemon.Config {
	p := daemon.DefaultConfig()
	p.TelemetryListen = ""
	return &p
}

// Validate says all that is wrong with the values, without opening anything but to look. It also spreads what the
// services share.
func (c *EventerConfig) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.Scraper.Cluster, c.Scraper.Role = c.Cluster, scraper.RoleEvents
	c.Sinks.Clusters = []string{c.Cluster}
	switch {
	case len(c.Sources) == 0:
		complain("no --source is given: name one, such as --source=kubernetes:https://kubernetes.default")
	case len(c.Sources) > 1:
		complain("%d times --source: exactly one can be read", len(c.Sources))
	default:
		c.Scraper.Source = c.Sources[0]
		if key, _, _ := strings.Cut(strings.TrimLeft(c.Sources[0], ` "'`), ":"); strings.TrimRight(key, ` "'`) != "kubernetes" {
			complain("--source: source %.40q is not one of events: want kubernetes:[scheme://host[:port]][?options]", key)
		} else {
			errs = append(errs, c.Scraper.Validate())
		}
	}
	if c.Frequency < minFrequency || c.Frequency > maxFrequency {
		complain("--frequency is %s; it must be from %s to %s", c.Frequency, minFrequency, maxFrequency)
	}
	if c.IP != "" && net.ParseIP(c.IP) == nil {
		complain("--healthz-ip is %q; it must be an address, such as 127.0.0.1", c.IP)
	}
	errs = append(errs, c.Sinks.Validate())

	dir, err := saidDir(c.DataDir)
	if err != nil {
		errs = append(errs, err)
	}
	if c.throwaway = dir == "" && c.DataDir != DataInMemory; c.throwaway {
		dir = throwawayDir()
	}
	c.Bus.StoreDir, c.Bus.Memory = dir, dir == ""
	if topology := c.topology(); len(c.Sources) == 1 { // else the name of the cluster has been complained about, or not been looked at
		errs = append(errs, topology.Validate())
	}
	return errors.Join(append(errs, c.Bus.Validate())...)
}

// topology are the streams of the one cluster; only EVENTS and DEAD ever hold anything.
func (c *EventerConfig) topology() bus.Topology {
	return topology(c.Cluster, c.Bus.Memory, 0)
}

// address is where HTTP is served.
func (c *EventerConfig) address() string {
	return net.JoinHostPort(c.IP, strconv.Itoa(int(c.Port)))
}

// warnings say what was given and means nothing.
func (c *EventerConfig) warnings() []string {
	all := slices.Clone(c.glog.warnings())
	source, err := scraper.ParseSource(c.Scraper.Source)
	if err != nil {
		return all // not reached: Validate has parsed it
	}
	for _, o := range []struct {
		given bool
		name  string
	}{{source.KubeletPort != 0, "kubeletPort"}, {source.KubeletScheme != "", "kubeletHttps"}, {source.HostIDAnnotation != "", "host_id_annotation"}} {
		if o.given {
			all = append(all, "--source: option "+o.name+" means nothing here: events are read from the API server alone")
		}
	}
	if len(c.Sinks.EventSinks) == 0 {
		all = append(all, "no --sink is given: events are read, kept for a day and written nowhere")
	}
	return all
}
