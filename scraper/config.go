package scraper

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/events"
	"github.com/heapstream/heapstream/scraper/kube"
)

// Role is what a scraper does.
type Role string

// The roles.
const (
	RoleNode      Role = "node"      // scrapes the kubelet of its own node
	RoleInventory Role = "inventory" // publishes what only the whole cluster tells, and its events
	RoleCentral   Role = "central"   // scrapes every node, and publishes inventory and events
	RoleEvents    Role = "events"    // publishes events alone
)

// Where the node role takes its pods from.
const (
	PodsFromAPI     = "api"     // a watch at the API server
	PodsFromKubelet = "kubelet" // the kubelet's own list
)

// DefaultResolution is Heapster's.
const DefaultResolution = 60 * time.Second

// DefaultBacklogBytes is what may wait in memory while the bus is away: 15 minutes of a hundred
// nodes, or hours of one.
const DefaultBacklogBytes = 64 << 20

// The ports of kubelets.
const (
	securePort = 10250
	plainPort  = 10255
)

// Config is what an operator may choose.
type Config struct {
	Role       Role
	Cluster    string
	NodeName   string // node role: whose kubelet is scraped
	Source     string // Heapster's --source value: KEY[:URL[?options]]
	Kubeconfig string
	Resolution time.Duration

	Kubelet Kubelet

	PodsFrom     string        // node role: PodsFromAPI or PodsFromKubelet
	NodeRefresh  time.Duration // node role: between two looks at the own Node
	BacklogBytes int64         // batches kept while the bus is away, in bytes
	Identity     string        // how leases show us; the host name where empty

	Events     bool // roles inventory and central: publish events as well
	EventsRate int  // most states of events a second, on average
}

// Kubelet is how to reach kubelets. Port and Scheme win over the source's options.
//
// Which port and scheme: what is given wins. kubeletPort alone means plain http, as in Heapster,
// save for 10250, which never speaks it. kubeletHttps=false alone means plain http on 10255. With
// neither, the port is that of the node's status.daemonEndpoints (10250 where it tells none), over
// https. A token is never sent over plain http.
type Kubelet struct {
	Port       int
	Scheme     string // "http", "https"; "" to decide by the rules above
	Address    string // instead of the node's own; node role
	ServerName string
	CAFile     string
	PinFile    string
	Insecure   bool
	CertFile   string
	KeyFile    string
	TokenFile  string
}

// DefaultConfig is a central scraper inside of a cluster.
func DefaultConfig() Config {
	return Config{Role: RoleCentral, Cluster: "default", Source: "kubernetes.summary_api:", Resolution: DefaultResolution,
		PodsFrom: PodsFromAPI, NodeRefresh: 5 * time.Minute, BacklogBytes: DefaultBacklogBytes,
		Events: true, EventsRate: events.DefaultRate}
}

// Flags registers the configuration.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar((*string)(&c.Role), "role", string(c.Role), "node: scrape the kubelet of --node-name; inventory: publish what only the whole cluster tells, and its events; central: both, for every node; events: publish events alone")
	fs.StringVar(&c.Cluster, "cluster", c.Cluster, "`name` of the cluster on the bus")
	fs.StringVar(&c.NodeName, "node-name", c.NodeName, "`node` whose kubelet is scraped (role node)")
	fs.StringVar(&c.Source, "source", c.Source, "where measurements come from, as Heapster's --source: KEY:[scheme://host[:port]][?option=value&…]; "+SourceHelp)
	fs.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "kubeconfig `file` for the API server, instead of what --source says of it")
	fs.DurationVar(&c.Resolution, "metric-resolution", c.Resolution, "distance between two ticks: whole seconds, 5s or more")
	k := &c.Kubelet
	fs.IntVar(&k.Port, "kubelet-port", k.Port, "`port` of kubelets; 0: kubeletPort of --source, else the one in the node's status.daemonEndpoints")
	fs.BoolFunc("kubelet-https", "speak https with kubelets (=false: plain http, without token); "+
		"if not given: kubeletHttps of --source, else plain http only where kubeletPort is given and not 10250", func(s string) error {
		yes, err := strconv.ParseBool(s)
		if err != nil {
			return err
		}
		k.Scheme = scheme(yes)
		return nil
	})
	fs.StringVar(&k.Address, "kubelet-address", k.Address, "`address` of the kubelet instead of the node's own (role node)")
	fs.StringVar(&k.ServerName, "kubelet-server-name", k.ServerName, "`name` expected in kubelets' certificates instead of their address")
	fs.StringVar(&k.CAFile, "kubelet-ca", k.CAFile, "`file` with the authorities of kubelets' certificates (PEM); those of the API server where empty")
	fs.StringVar(&k.PinFile, "kubelet-certificate", k.PinFile, "`file` with the very certificates of kubelets (PEM), compared instead of verified")
	fs.BoolVar(&k.Insecure, "kubelet-insecure", k.Insecure, "do not verify kubelets' certificates")
	fs.StringVar(&k.CertFile, "kubelet-client-cert", k.CertFile, "`file` with our client certificate for kubelets (PEM)")
	fs.StringVar(&k.KeyFile, "kubelet-client-key", k.KeyFile, "`file` with its key (PEM)")
	fs.StringVar(&k.TokenFile, "kubelet-token-file", k.TokenFile, "`file` with the bearer token for kubelets, read again when it changes; the API server's where empty")
	fs.StringVar(&c.PodsFrom, "pods-from", c.PodsFrom, "where the node role learns of its pods: api (list and watch) or kubelet (its /pods)")
	fs.DurationVar(&c.NodeRefresh, "node-refresh", c.NodeRefresh, "how often the node role reads its own Node")
	fs.Int64Var(&c.BacklogBytes, "backlog-bytes", c.BacklogBytes, "`bytes` of batches kept in memory while the bus is away; the oldest are dropped beyond")
	fs.StringVar(&c.Identity, "identity", c.Identity, "`name` under which leases are held; the host's where empty")
	fs.BoolVar(&c.Events, "events", c.Events, "publish the cluster's events (roles inventory and central)")
	fs.IntVar(&c.EventsRate, "events-rate", c.EventsRate, "most `states` of events published a second, on average; what exceeds it waits at the API server, and updates may be skipped there")
}

func scheme(https bool) string {
	if https {
		return "https"
	}
	return "http"
}

// Validate joins all complaints.
func (c *Config) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Role {
	case RoleNode:
		if c.NodeName == "" {
			complain("--role=node needs --node-name (in a DaemonSet: from spec.nodeName)")
		} else if err := bus.CheckName("node", c.NodeName); err != nil {
			complain("--node-name: %w", err)
		}
		if c.PodsFrom != PodsFromAPI && c.PodsFrom != PodsFromKubelet {
			complain("--pods-from is %q; it must be api or kubelet", c.PodsFrom)
		}
		if c.NodeRefresh < time.Second {
			complain("--node-refresh is %s; it must be at least 1s", c.NodeRefresh)
		}
	case RoleInventory, RoleCentral, RoleEvents:
		if c.Kubelet.Address != "" {
			complain("--kubelet-address is for --role=node")
		}
		if c.NodeName != "" {
			complain("--node-name is for --role=node, not %s", c.Role)
		}
	default:
		complain("--role is %q; it must be node, inventory, central or events", c.Role)
	}
	if err := bus.CheckCluster(c.Cluster); err != nil {
		complain("--cluster: %w", err)
	}
	if _, err := ParseSource(c.Source); err != nil {
		complain("--source: %w", err)
	}
	if c.Resolution < proto.MinResolution || c.Resolution%time.Second != 0 || c.Resolution > time.Hour {
		complain("--metric-resolution is %s; it must be whole seconds from %s to 1h", c.Resolution, proto.MinResolution)
	}
	k := &c.Kubelet
	if k.Port < 0 || k.Port > 65535 {
		complain("--kubelet-port is %d; it must be 1 to 65535, or 0", k.Port)
	}
	if k.Scheme != "" && k.Scheme != "http" && k.Scheme != "https" {
		complain("kubelet scheme is %q; it must be http or https", k.Scheme)
	}
	if (k.CertFile == "") != (k.KeyFile == "") {
		complain("--kubelet-client-cert and --kubelet-client-key belong together")
	}
	if k.PinFile != "" && (k.Insecure || k.CAFile != "") {
		complain("choose one of --kubelet-certificate, --kubelet-ca and --kubelet-insecure")
	}
	if k.Insecure && k.CAFile != "" {
		complain("--kubelet-insecure makes --kubelet-ca mean nothing: choose one")
	}
	if c.EventsRate < 1 || c.EventsRate > 100_000 {
		complain("--events-rate is %d; it must be 1 to 100000", c.EventsRate)
	}
	if c.BacklogBytes < 1<<20 {
		complain("--backlog-bytes is %d; it must be at least 1 MiB", c.BacklogBytes)
	}
	return errors.Join(errs...)
}

// api is how to reach the API server.
func (c *Config) api(s Source) kube.Config {
	if c.Kubeconfig != "" {
		return kube.Config{Kubeconfig: c.Kubeconfig, UseServiceAccount: s.UseServiceAccount}
	}
	k := kube.Config{Server: s.Server, InCluster: s.InCluster, Insecure: s.Insecure, UseServiceAccount: s.UseServiceAccount}
	if !s.InCluster {
		k.Kubeconfig = s.Auth
	}
	return k
}

// port is the port and scheme to reach a kubelet by; told is that of status.daemonEndpoints, or 0.
func (c *Config) port(s Source, told int) (port int, https bool) {
	scheme, given := c.Kubelet.Scheme, c.Kubelet.Port
	if given == 0 {
		given = s.KubeletPort
	}
	if scheme == "" {
		scheme = s.KubeletScheme
	}
	switch {
	case scheme == "" && given == 0, scheme == "" && given == securePort:
		scheme = "https"
	case scheme == "":
		scheme = "http"
	}
	https = scheme == "https"
	switch {
	case given != 0:
		return given, https
	case !https:
		return plainPort, false
	case told > 0 && told <= 65535:
		return told, true
	}
	return securePort, true
}
