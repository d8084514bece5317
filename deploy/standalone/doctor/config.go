package doctor

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper"
)

// The roles beside the scraper's: standalone is everything in one process, apigw a gateway alone.
const (
	RoleStandalone = "standalone"
	RoleGateway    = "apigw"
)

// Forms of a report.
const (
	OutputText = "text"
	OutputJSON = "json"
)

// Config is what an operator may choose: how the services reach what they stand on, in the services' own flags.
type Config struct {
	Role    string         // node, inventory, central, events, apigw or standalone
	Scraper scraper.Config // its Role follows from ours
	Bus     bus.Config     // no URLs: the bus is not looked at

	FromDomain string // of bus.Topology: this bus is a hub's
	As         string // whose rights are asked about; ours where empty
	Gateway    string // http(s)://host:port of the Heapster surface; not looked at where empty

	StalledAfter time.Duration // age of a sink's oldest message from which it counts as stalled
	Timeout      time.Duration // of everything
	Concurrency  int           // kubelets asked at once
	Output       string
}

// DefaultConfig is that of a standalone in a cluster, whose bus is within it.
func DefaultConfig() Config {
	c := Config{Role: RoleStandalone, Scraper: scraper.DefaultConfig(), Bus: bus.DefaultConfig(),
		StalledAfter: 2 * time.Minute, Timeout: 2 * time.Minute, Concurrency: 32, Output: OutputText}
	c.Bus.Name = "heapstream doctor"
	c.Bus.URLs = nil
	return c
}

// Flags registers the configuration: the scraper's flags and the bus's under their own names.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Role, "role", c.Role, "whose footing is looked at: standalone (everything in one process), node, inventory, central or events (a scraper), apigw (a gateway)")
	fs.StringVar(&c.Output, "output", c.Output, "`form` of the report: text or json")
	fs.StringVar(&c.As, "as", c.As, "`user` whose rights are asked about instead of our own, such as system:serviceaccount:kube-system:heapstream-node")
	fs.StringVar(&c.Gateway, "gateway", c.Gateway, "`URL` of a gateway's Heapster surface, such as http://127.0.0.1:8082; not looked at if empty")
	of := pflag.NewFlagSet("", pflag.ContinueOnError)
	of.SetNormalizeFunc(fs.GetNormalizeFunc())
	c.Scraper.Flags(of)
	for _, name := range []string{"cluster", "node-name", "source", "kubeconfig", "metric-resolution", "kubelet-port", "kubelet-https", "kubelet-address",
		"kubelet-server-name", "kubelet-ca", "kubelet-certificate", "kubelet-insecure", "kubelet-client-cert", "kubelet-client-key", "kubelet-token-file", "pods-from", "events"} {
		fs.AddFlag(of.Lookup(name))
	}
	c.Bus.Flags(fs)
	fs.Lookup("bus-url").Usage = "addresses of the NATS servers, comma separated; the bus is not looked at if empty"
	fs.StringVar(&c.FromDomain, "from-domain", c.FromDomain, "the bus is a hub's, which mirrors the cluster from this JetStream `domain`")
	fs.DurationVar(&c.StalledAfter, "stalled-after", c.StalledAfter, "age of a sink's oldest unwritten message from which it counts as stalled")
	fs.DurationVar(&c.Timeout, "timeout", c.Timeout, "how long all of it may take; what was not seen by then is skipped")
	fs.IntVar(&c.Concurrency, "concurrency", c.Concurrency, "kubelets asked at once")
}

// Validate joins all complaints. It also gives the scraper its role.
func (c *Config) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Role {
	case RoleStandalone, RoleGateway:
		c.Scraper.Role = scraper.RoleCentral
	case string(scraper.RoleNode), string(scraper.RoleInventory), string(scraper.RoleCentral), string(scraper.RoleEvents):
		c.Scraper.Role = scraper.Role(c.Role)
	default:
		complain("--role is %q; it must be standalone, node, inventory, central, events or apigw", c.Role)
		c.Scraper.Role = scraper.RoleCentral
	}
	errs = append(errs, c.Scraper.Validate())
	if len(c.Bus.URLs) > 0 {
		errs = append(errs, c.Bus.Validate())
	}
	if c.Gateway != "" {
		if u, err := url.Parse(c.Gateway); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
			complain("--gateway is no address: want http://host:port or https://host:port")
		}
	}
	if c.Output != OutputText && c.Output != OutputJSON {
		complain("--output is %q; it must be text or json", c.Output)
	}
	if c.Timeout <= 0 || c.StalledAfter <= 0 {
		complain("--timeout and --stalled-after must be above 0")
	}
	if c.Concurrency < 1 || c.Concurrency > 1024 {
		complain("--concurrency is %d; it must be 1 to 1024", c.Concurrency)
	}
	return errors.Join(errs...)
}

func (c *Config) role() string { return c.Role }

// reads reports whether the role is one of these.
func (c *Config) is(roles ...string) bool { return slices.Contains(roles, c.Role) }

// scrapes reports whether the role asks kubelets.
func (c *Config) scrapes() bool {
	return c.is(RoleStandalone, string(scraper.RoleCentral), string(scraper.RoleNode))
}

// serves reports whether the role answers for metrics.k8s.io.
func (c *Config) serves() bool { return c.is(RoleStandalone, RoleGateway) }

// clusterRole is the ClusterRole of deploy/kubernetes that the role's ServiceAccount has.
func (c *Config) clusterRole() string {
	switch c.Role {
	case string(scraper.RoleNode), string(scraper.RoleInventory):
		return "heapstream-" + c.Role
	case string(scraper.RoleEvents):
		return "heapstream-inventory"
	}
	return "heapstream"
}

// groupsOf are the groups that a ServiceAccount of this name is in.
func groupsOf(user string) []string {
	groups := []string{"system:authenticated"}
	if rest, ok := strings.CutPrefix(user, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		groups = append(groups, "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	}
	return groups
}
