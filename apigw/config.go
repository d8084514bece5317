package apigw

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/apigw/auth"
	"github.com/heapstream/heapstream/apigw/historyapi"
	"github.com/heapstream/heapstream/apigw/resourceapi"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// Config is what an operator may choose about a gateway. Start from DefaultConfig.
type Config struct {
	Cluster  string        // of the paths without /clusters/<c>
	Clusters []string      // the others that are served; none means every one the bus knows of
	Window   time.Duration // how much of the past is remembered

	// The Heapster surface.
	ListenIP   string // all addresses where empty
	Port       int    // 0: one that the system chooses
	TLSCert    string // both: HTTPS
	TLSKey     string
	ClientCert auth.ClientCerts
	Labels     proto.LabelConfig
	NoExport   bool // /api/v1/metric-export is always empty
	NoPast     bool // nothing is remembered but the newest values: the model API is not served
	// History is what answers the historical API: HistoryWindow, or the InfluxDB that a sink fills, as
	// influxdb:URL. Empty: it is not served. It may hold a password: never log it.
	History string

	// The aggregated API server.
	APIServer bool
	Resource  resourceapi.Config
}

// HistoryWindow is the value of History that is the gateway's own window.
const HistoryWindow = "window"

// DefaultConfig serves the Heapster surface over plain HTTP on port 8082 of all addresses, as Heapster did.
func DefaultConfig() Config {
	return Config{
		Cluster: "default", Window: view.DefaultWindow, Port: 8082,
		Labels: proto.DefaultLabelConfig(), Resource: resourceapi.DefaultConfig(),
	}
}

// maxWindow bounds what is remembered: the stream holds an hour by default, and memory grows with it.
const maxWindow = 24 * time.Hour

// Flags registers the flags with their present values as defaults. Names are Heapster's where it had them.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Cluster, "cluster", c.Cluster, "`name` of the cluster whose paths need no /clusters/<name> in front")
	fs.StringSliceVar(&c.Clusters, "clusters", c.Clusters, "`names` of the other clusters to serve, comma separated; all registered ones if empty")
	fs.DurationVar(&c.Window, "window", c.Window, "how much of the past is remembered and served")
	fs.StringVar(&c.ListenIP, "listen_ip", c.ListenIP, "`address` on which the Heapster API is served; all if empty")
	fs.IntVar(&c.Port, "heapster-port", c.Port, "port on which the Heapster API is served")
	fs.StringVar(&c.TLSCert, "tls_cert", c.TLSCert, "`file` with the certificate of the Heapster API (PEM); read again when it changes")
	fs.StringVar(&c.TLSKey, "tls_key", c.TLSKey, "`file` with the key of --tls_cert (PEM)")
	fs.StringVar(&c.ClientCert.CAFile, "tls_client_ca", c.ClientCert.CAFile, "`file` with the authorities that sign clients of the Heapster API (PEM)")
	fs.StringVar(&c.ClientCert.AllowedUsers, "allowed_users", c.ClientCert.AllowedUsers, "common `names` of clients that are let in, comma separated; all if empty")
	c.Labels.Flags(fs)
	fs.BoolVar(&c.NoExport, "disable_export", c.NoExport, "answer /api/v1/metric-export with an empty list")
	fs.BoolVar(&c.NoPast, "disable_metric_sink", c.NoPast, "remember nothing but the newest values: the model API and custom metrics over time are not served")
	fs.StringVar(&c.History, "historical_source", c.History, "serve the historical API from this `source`: window, or influxdb:URL with the options of the sink that fills it")
	fs.BoolVar(&c.APIServer, "api-server", c.APIServer, "serve the resource metrics API as an aggregated API server, too")
	c.Resource.Flags(fs)
}

// Validate says all that is wrong with the values, without opening anything but to look.
func (c *Config) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range append(slices.Clone(c.Clusters), c.Cluster) {
		if err := bus.CheckCluster(name); err != nil {
			errs = append(errs, fmt.Errorf("--cluster, --clusters: %w", err))
		}
	}
	if c.Window < view.MinWindow || c.Window > maxWindow {
		complain("--window=%s: want %s to %s", c.Window, view.MinWindow, maxWindow)
	}
	if c.ListenIP != "" && net.ParseIP(c.ListenIP) == nil {
		complain("--listen_ip=%q is not an IP address", c.ListenIP)
	}
	if c.Port < 0 || c.Port > 65535 {
		complain("--heapster-port=%d: want 0 to 65535", c.Port)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		complain("--tls_cert and --tls_key need each other")
	}
	if c.NoPast && c.History == HistoryWindow {
		complain("--historical_source=window needs the window, which --disable_metric_sink leaves out: leave out one of them")
	}
	if c.History != "" && c.History != HistoryWindow {
		if _, err := historyapi.ParseInflux(c.History, c.Cluster); err != nil {
			complain("--historical_source: %w", err)
		}
	}
	errs = append(errs, c.ClientCert.Validate(c.TLSCert != ""), c.Labels.Validate())
	if c.APIServer {
		errs = append(errs, c.Resource.Validate())
	}
	return errors.Join(errs...)
}

func (c *Config) address() string { return net.JoinHostPort(c.ListenIP, strconv.Itoa(c.Port)) }
