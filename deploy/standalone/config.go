package standalone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/apigw"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/embedded"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/sinks"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Config is what an operator may choose: Heapster's command line, where the data lies, and the name of the
// cluster. Start from DefaultConfig.
type Config struct {
	Cluster string
	// DataDir is where the embedded bus keeps its streams. Empty is StateDir's choice, DataInMemory keeps
	// nothing.
	DataDir string
	// RollupsAge is how long rollups are kept: the longest outage of a sink that loses nothing.
	RollupsAge time.Duration
	MaxProcs   int // worker threads; less than 1: as many as the machine has

	Sources []string // exactly one
	Bus     embedded.Config
	Scraper scraper.Config
	Gateway apigw.Config
	Sinks   sinks.Config

	glog glog
}

// DataInMemory is the value of DataDir that keeps nothing on disk.
const DataInMemory = "memory"

// DefaultConfig is Heapster's: a tick a minute, port 8082, no sinks. The source is still to be chosen.
func DefaultConfig() Config {
	return Config{
		Cluster: "default", RollupsAge: 30 * time.Minute,
		Bus: embedded.DefaultConfig(), Scraper: scraper.DefaultConfig(), Gateway: apigw.DefaultConfig(), Sinks: sinks.DefaultConfig(),
		glog: defaultGlog(),
	}
}

// Flags registers Heapster's flags, and ours beside them.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.Sources, "source", c.Sources, "`URI` of where measurements come from, exactly one: KEY:[scheme://host[:port]][?option=value&…]; "+scraper.SourceHelp)
	fs.DurationVar(&c.Scraper.Resolution, "metric_resolution", c.Scraper.Resolution, "distance between two ticks: whole seconds, 5s or more")
	c.Sinks.SinkFlags(fs)

	c.Gateway.Flags(fs)
	fs.Lookup("cluster").Usage = "`name` of the cluster, on the bus and in the paths of several clusters"
	fs.Lookup("clusters").Hidden = true // there is one

	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`directory` that keeps what the bus holds, so that a restart goes on where it stopped; "+
		"\"memory\" keeps nothing; if empty $STATE_DIRECTORY, else heapstream in the user's cache directory")
	fs.DurationVar(&c.RollupsAge, "rollups-age", c.RollupsAge, "how long rollups are kept: the longest outage of a sink that loses nothing")
	fs.IntVar(&c.MaxProcs, "max_procs", c.MaxProcs, "worker threads; as many as the machine has if less than 1")
	fs.StringVar(&c.Scraper.Kubeconfig, "kubeconfig", c.Scraper.Kubeconfig, "kubeconfig `file` for the API server, instead of what --source says of it")
	fs.StringVar(&c.Scraper.Kubelet.CAFile, "kubelet-ca", c.Scraper.Kubelet.CAFile, "`file` with the authorities of kubelets' certificates (PEM); those of the API server where empty")
	fs.BoolVar(&c.Scraper.Kubelet.Insecure, "kubelet-insecure", c.Scraper.Kubelet.Insecure, "do not verify kubelets' certificates")
	c.Bus.Flags(fs)

	c.glog.flags(fs)
	fs.DurationVar(&c.glog.flush, "log-flush-frequency", c.glog.flush, "accepted and not used: logs are not buffered")
}

// Process is how the process itself behaves by default: what others serve at --telemetry-listen is on Heapster's
// port here.
func (c *Config) Process() *daemon.Config {
	p := daemon.DefaultConfig()
	p.TelemetryListen = ""
	return &p
}

// Validate says all that is wrong with the values, without opening anything but to look. It also spreads what
// several services share.
func (c *Config) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case len(c.Sources) == 0:
		complain("no --source is given: name one, such as --source=kubernetes.summary_api:https://kubernetes.default")
	case len(c.Sources) > 1:
		complain("%d times --source: exactly one can be read", len(c.Sources))
	default:
		c.Scraper.Source = c.Sources[0]
	}
	c.Cluster = c.Gateway.Cluster
	c.Gateway.Clusters = []string{c.Cluster}
	c.Sinks.Clusters = []string{c.Cluster}
	c.Sinks.Labels = c.Gateway.Labels
	c.Scraper.Cluster, c.Scraper.Role = c.Cluster, scraper.RoleCentral

	if len(c.Sources) == 1 {
		errs = append(errs, c.Scraper.Validate())
	}
	c.spreadSinks()
	errs = append(errs, c.Gateway.Validate(), c.Sinks.Validate())
	if dir, err := c.dataDir(); err != nil {
		errs = append(errs, err)
	} else {
		c.Bus.Memory = dir == ""
		c.Bus.StoreDir = dir
		errs = append(errs, c.Bus.Validate(), c.topology().Validate())
	}
	return errors.Join(errs...)
}

// spreadSinks lets the gateway know what it has to of the sinks: --sink=metric is its memory, whatever
// --disable_metric_sink says, and the historical source may be named by the key of a sink.
func (c *Config) spreadSinks() {
	for _, value := range c.Sinks.Sinks {
		t, err := sink.ParseTarget(value)
		switch {
		case err != nil: // the sinks complain
		case t.Key == "metric":
			c.Gateway.NoPast = false
		case t.Key == c.Gateway.History:
			c.Gateway.History = value
		}
	}
}

// dataDir is where the bus keeps its store; "" for memory.
func (c *Config) dataDir() (string, error) {
	if dir, err := saidDir(c.DataDir); dir != "" || err != nil || c.DataDir == DataInMemory {
		return dir, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("--data-dir is not given and there is no directory for it: %w; name one, or --data-dir=memory", err)
	}
	return filepath.Join(cache, "heapstream", c.Gateway.Cluster), nil
}

// saidDir is the directory that --data-dir or, as systemd tells it, $STATE_DIRECTORY names; "" for memory, or where
// none does.
func saidDir(flag string) (string, error) {
	switch flag {
	case DataInMemory:
		return "", nil
	case "":
		dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
		return dir, nil
	}
	return filepath.Abs(flag)
}

// topology are the streams of the one cluster.
func (c *Config) topology() bus.Topology {
	return topology(c.Cluster, c.Bus.Memory, c.RollupsAge)
}

func topology(cluster string, memory bool, rollupsAge time.Duration) bus.Topology {
	t := bus.Topology{Cluster: cluster, Memory: memory, RollupsAge: rollupsAge,
		SamplesBytes: samplesBytes, RollupsBytes: rollupsBytes, EventsBytes: eventsBytes, DeadBytes: deadBytes}
	if t.Memory {
		for _, bytes := range []*int64{&t.SamplesBytes, &t.RollupsBytes, &t.EventsBytes, &t.DeadBytes} {
			*bytes = max(*bytes/memoryShare, 2*bus.MaxPayload)
		}
	}
	return t
}

// What the streams of one cluster may take. A thousand nodes of 30 pods at 15 s fill SAMPLES with about 60 MiB a
// minute and ROLLUPS with 100 MiB; MaxAge ends most of it earlier.
const (
	samplesBytes = 2 << 30
	rollupsBytes = 4 << 30
	eventsBytes  = 256 << 20
	deadBytes    = 64 << 20

	memoryShare = 16 // in memory, everything is that much smaller
)

// procs is --max_procs as a number of threads.
func procs(flag int) int {
	if flag < 1 {
		return runtime.GOMAXPROCS(0)
	}
	return flag
}
