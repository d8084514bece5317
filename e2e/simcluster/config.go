package simcluster

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Config is what the operator of a simulated cluster may choose. DefaultConfig has the defaults.
type Config struct {
	// Seed decides everything that looks random: names, sizes, loads, churn.
	Seed uint64
	// Nodes, PodsPerNode, ContainersPerPod and Namespaces give the size at start. Pods per node include those of the
	// DaemonSets; the recorded node has its own pods instead. ContainersPerPod counts what runs (native sidecars
	// included), not finished init containers. Namespaces counts those of the workload beside the four of Kubernetes.
	Nodes, PodsPerNode, ContainersPerPod, Namespaces int
	// Recorded makes node-0 replay the recorded answers of a real kubelet.
	Recorded bool
	// OldKubelets is how many nodes, counted from the last, have a kubelet of before Kubernetes 1.18, which answers
	// POST /stats/container/ as well.
	OldKubelets int
	// Churn is the mean time between two random changes (a restart, a pod replaced, a scaling, a job run); 0 means none.
	Churn time.Duration
	// Epoch is the moment up to which the cluster was built: everything there at start was created in the two days
	// before it. Zero means the midnight (UTC) that ended the day before yesterday, so that runs of one day agree.
	Epoch time.Time

	// ListenHTTP and ListenHTTPS are the addresses of the API server; port 0 takes a free one, an empty address leaves
	// that listener out.
	ListenHTTP, ListenHTTPS string
	// ServerNames are further DNS names and addresses that the API server's certificate is valid for.
	ServerNames []string

	// KubeletPort (TLS) and KubeletReadOnlyPort (plain) are shared by all nodes with own addresses; 0 takes a free one.
	// With a shared address node i listens on KubeletPort+i, or on a free port when KubeletPort is 0.
	KubeletPort, KubeletReadOnlyPort int
	// FirstAddress is the address of node-0; the others count up from it.
	FirstAddress netip.Addr
	// SharedAddress, if valid, is the one address that all nodes share, each with its own port.
	SharedAddress netip.Addr

	// Users are who may call, by bearer token. Empty means DefaultUsers with tokens made at start.
	Users []User

	// GatewayURL is where the metrics API groups are answered, ModelURL where Heapster's service is; both may be set
	// later. GatewayCA, PEM, verifies the gateway; without it its certificate is not verified.
	GatewayURL, ModelURL string
	GatewayCA            []byte

	// History is how many changes per resource a watch can be resumed over; older ones answer 410 Gone.
	History int
	// BookmarkEvery is how often watches that asked for bookmarks get one.
	BookmarkEvery time.Duration
	// EventsKept is how many events are kept; the oldest go first.
	EventsKept int
}

// DefaultConfig is a cluster of five nodes with ten pods of two containers each on free ports of 127.0.0.1.
func DefaultConfig() Config {
	return Config{
		Seed: 1, Nodes: 5, PodsPerNode: 10, ContainersPerPod: 2, Namespaces: 4,
		ListenHTTP: "127.0.0.1:0", ListenHTTPS: "127.0.0.1:0",
		FirstAddress: netip.AddrFrom4([4]byte{127, 16, 0, 1}),
		History:      10000, BookmarkEvery: time.Minute, EventsKept: 5000,
	}
}

// Deps is what the program hands in. Log may be nil (silence), Now may be nil (the wall clock).
type Deps struct {
	Log *slog.Logger
	Now func() time.Time
}

// Limits of what a Config may ask for. The addresses of 127.16.0.0/12 end at a million nodes; names, ports and memory
// end earlier.
const (
	MaxNodes            = 100000
	MaxPodsPerNode      = 1000
	MaxContainersPerPod = 50
	MaxNamespaces       = 10000
)

// Validate joins all complaints about the configuration.
func (c *Config) Validate() error {
	var errs []error
	between := func(name string, v, lo, hi int) {
		if v < lo || v > hi {
			errs = append(errs, fmt.Errorf("%s is %d, want %d to %d", name, v, lo, hi))
		}
	}
	between("nodes", c.Nodes, 0, MaxNodes)
	between("pods per node", c.PodsPerNode, 0, MaxPodsPerNode)
	between("containers per pod", c.ContainersPerPod, 1, MaxContainersPerPod)
	between("namespaces", c.Namespaces, 1, MaxNamespaces)
	between("old kubelets", c.OldKubelets, 0, c.Nodes)
	between("kubelet port", c.KubeletPort, 0, 65535)
	between("kubelet read-only port", c.KubeletReadOnlyPort, 0, 65535)
	between("history", c.History, 1, 10_000_000)
	between("events kept", c.EventsKept, 1, 1_000_000)
	if c.KubeletPort != 0 && c.KubeletPort == c.KubeletReadOnlyPort {
		errs = append(errs, fmt.Errorf("kubelet port and kubelet read-only port are both %d, want two ports", c.KubeletPort))
	}
	if c.SharedAddress.IsValid() && c.KubeletPort != 0 && c.KubeletPort+c.Nodes > 65536 {
		errs = append(errs, fmt.Errorf("%d nodes on one address from port %d on go beyond port 65535: choose a lower port or 0", c.Nodes, c.KubeletPort))
	}
	if !c.SharedAddress.IsValid() && !c.FirstAddress.Is4() {
		errs = append(errs, fmt.Errorf("first address %q is no IPv4 address", c.FirstAddress))
	}
	if c.Churn < 0 {
		errs = append(errs, fmt.Errorf("churn is %s, want 0 or more", c.Churn))
	}
	if c.BookmarkEvery <= 0 {
		errs = append(errs, fmt.Errorf("time between bookmarks is %s, want more than 0", c.BookmarkEvery))
	}
	if c.ListenHTTP == "" && c.ListenHTTPS == "" {
		errs = append(errs, errors.New("no address for the API server: give one for http or https"))
	}
	seen := map[string]string{}
	for _, u := range c.Users {
		if u.Token == "" || u.Name == "" {
			errs = append(errs, fmt.Errorf("user %q needs a name and a token", u.Name))
		} else if other, ok := seen[u.Token]; ok {
			errs = append(errs, fmt.Errorf("users %q and %q have the same token", other, u.Name))
		}
		seen[u.Token] = u.Name
	}
	return errors.Join(errs...)
}

// User is somebody who may call the API server and the kubelets with a bearer token.
type User struct {
	Token  string
	Name   string // as in system:serviceaccount:NAMESPACE:NAME
	UID    string
	Groups []string
	// Rules say what the user may do; members of the group system:masters may do anything.
	Rules []Rule
}

// Rule allows every combination of its verbs with its resources (as "pods", "nodes/stats", "pods.metrics.k8s.io" names are
// split into APIGroups and Resources) or with its non-resource paths. "*" stands for all; a path may end in "*".
type Rule struct {
	Verbs, APIGroups, Resources, NonResourceURLs []string
	// Namespace limits the rule to one namespace; empty means all.
	Namespace string
}

// The names of the default users.
const (
	AdminName  = "kubernetes-admin"
	ReaderName = "system:serviceaccount:kube-system:heapstream"
	NobodyName = "system:serviceaccount:demo:none"
)

// DefaultUsers are an administrator, heapstream's service account with the rights it needs to read (and as a gateway to ask
// for reviews), and a service account of no rights at all, with these tokens.
func DefaultUsers(admin, reader, none string) []User {
	read := []string{"get", "list", "watch"}
	return []User{
		{Token: admin, Name: AdminName, UID: "00000000-0000-4000-8000-000000000001", Groups: []string{"system:masters", "system:authenticated"}},
		{Token: reader, Name: ReaderName, UID: "00000000-0000-4000-8000-000000000002",
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
			Rules: []Rule{
				{Verbs: read, APIGroups: []string{""}, Resources: []string{"nodes", "pods", "namespaces", "events", "nodes/stats", "nodes/metrics"}},
				{Verbs: []string{"create"}, APIGroups: []string{""}, Resources: []string{"nodes/stats"}},
				{Verbs: read, APIGroups: []string{"events.k8s.io"}, Resources: []string{"events"}},
				{Verbs: read, APIGroups: []string{"apps"}, Resources: []string{"deployments", "replicasets", "daemonsets", "statefulsets"}},
				{Verbs: read, APIGroups: []string{"batch"}, Resources: []string{"jobs", "cronjobs"}},
				{Verbs: read, APIGroups: []string{""}, Resources: []string{"configmaps"}, Namespace: "kube-system"},
				{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}},
				{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}},
			}},
		{Token: none, Name: NobodyName, UID: "00000000-0000-4000-8000-000000000003",
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:demo", "system:authenticated"}},
	}
}
