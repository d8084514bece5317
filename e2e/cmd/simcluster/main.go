// Command simcluster runs a made-up Kubernetes cluster until it is told to stop: an API server and a kubelet per node.
// What it serves, and what can be done to it from outside, is described in package simcluster.
//
// Not here: the cluster itself (simcluster).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/e2e/simcluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "simcluster:", err)
		os.Exit(1)
	}
}

// options are the flags beside those of simcluster.Config.
type options struct {
	cfg                simcluster.Config
	shared, first      string
	token, readerToken string
	gatewayCA, epoch   string
	kubeconfigOut      string
	readerKubeconfig   string
	serviceAccountOut  string
	debug              bool
}

func (o *options) flags() *pflag.FlagSet {
	o.cfg = simcluster.DefaultConfig()
	o.cfg.Nodes, o.cfg.PodsPerNode, o.cfg.Recorded = 10, 30, true
	o.cfg.ListenHTTP, o.cfg.ListenHTTPS = "127.0.0.1:8001", "127.0.0.1:6444"
	o.cfg.KubeletPort, o.cfg.KubeletReadOnlyPort = 10250, 10255
	c := &o.cfg
	fs := pflag.NewFlagSet("simcluster", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Uint64Var(&c.Seed, "seed", c.Seed, "what everything is grown from; the same seed gives the same cluster")
	fs.IntVar(&c.Nodes, "nodes", c.Nodes, "nodes at start")
	fs.IntVar(&c.PodsPerNode, "pods", c.PodsPerNode, "pods per node, those of DaemonSets included")
	fs.IntVar(&c.ContainersPerPod, "containers", c.ContainersPerPod, "containers per pod")
	fs.IntVar(&c.Namespaces, "namespaces", c.Namespaces, "namespaces of the workload")
	fs.BoolVar(&c.Recorded, "recorded", c.Recorded, "node-0 replays the recorded answers of a real kubelet")
	fs.IntVar(&c.OldKubelets, "old-kubelets", c.OldKubelets, "how many nodes, counted from the last, have a kubelet of before Kubernetes 1.18, which answers POST /stats/container/ too")
	fs.DurationVar(&c.Churn, "churn", c.Churn, "mean time between two random changes of the workload; 0 = none")
	fs.StringVar(&o.epoch, "epoch", "", "RFC 3339 time up to which the cluster was built (default: yesterday, 00:00 UTC)")
	fs.StringVar(&c.ListenHTTP, "listen", c.ListenHTTP, "address of the API server over plain http; port 0 = a free one, empty = none")
	fs.StringVar(&c.ListenHTTPS, "listen-secure", c.ListenHTTPS, "address of the API server over https; port 0 = a free one, empty = none")
	fs.StringSliceVar(&c.ServerNames, "server-name", nil, "further names and addresses in the API server's certificate")
	fs.IntVar(&c.KubeletPort, "kubelet-port", c.KubeletPort, "TLS port of the kubelets; 0 = a free one. With --shared-address, node i has this port + i")
	fs.IntVar(&c.KubeletReadOnlyPort, "kubelet-read-only-port", c.KubeletReadOnlyPort, "plain port of the kubelets; 0 = a free one. Unused with --shared-address")
	fs.StringVar(&o.first, "first-address", c.FirstAddress.String(), "address of node-0; the other nodes count up from it")
	fs.StringVar(&o.shared, "shared-address", "", "one address for all nodes, or a name of it, as a container's own; each node has its own port (containers, macOS)")
	fs.StringVar(&o.token, "token", "", "the administrator's bearer token (default: a random one)")
	fs.StringVar(&o.readerToken, "reader-token", "", "bearer token of heapstream's service account (default: a random one)")
	fs.StringVar(&o.kubeconfigOut, "kubeconfig-out", "", "write the administrator's kubeconfig to this file")
	fs.StringVar(&o.readerKubeconfig, "reader-kubeconfig-out", "", "write the kubeconfig of heapstream's service account to this file")
	fs.StringVar(&o.serviceAccountOut, "serviceaccount-out", "", "write token, ca.crt and namespace, as a pod's service account has them, into this directory")
	fs.StringVar(&c.GatewayURL, "gateway-url", "", "where metrics.k8s.io and its kin are answered")
	fs.StringVar(&o.gatewayCA, "gateway-ca", "", "PEM file that verifies the gateway (default: it is not verified)")
	fs.StringVar(&c.ModelURL, "model-url", "", "where Heapster's service is answered")
	fs.IntVar(&c.History, "history", c.History, "changes per resource that a watch can be resumed over")
	fs.BoolVar(&o.debug, "debug", false, "log debug messages too")
	return fs
}

// parse reads the flags. Each flag has an environment twin: SIMCLUSTER_ and its name in capitals with underscores.
func (o *options) parse(args []string, getenv func(string) string, out io.Writer) error {
	fs := o.flags()
	fs.SetOutput(out)
	var errs []error
	fs.VisitAll(func(f *pflag.Flag) {
		name := "SIMCLUSTER_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := getenv(name); v != "" {
			if err := fs.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unknown argument %q", fs.Arg(0)))
	}
	var err error
	if o.cfg.FirstAddress, err = netip.ParseAddr(o.first); err != nil {
		errs = append(errs, fmt.Errorf("--first-address: %w", err))
	}
	if o.shared != "" {
		if o.cfg.SharedAddress, err = address(o.shared); err != nil {
			errs = append(errs, fmt.Errorf("--shared-address: %w", err))
		}
		if !fs.Changed("kubelet-port") {
			o.cfg.KubeletPort = 0
		}
	}
	if o.epoch != "" {
		if o.cfg.Epoch, err = time.Parse(time.RFC3339, o.epoch); err != nil {
			errs = append(errs, fmt.Errorf("--epoch: %w", err))
		}
	}
	if o.gatewayCA != "" {
		if o.cfg.GatewayCA, err = os.ReadFile(o.gatewayCA); err != nil {
			errs = append(errs, fmt.Errorf("--gateway-ca: %w", err))
		}
	}
	if o.token != "" || o.readerToken != "" {
		o.cfg.Users = simcluster.DefaultUsers(orRandom(o.token), orRandom(o.readerToken), simcluster.NewToken())
	}
	return errors.Join(errs...)
}

// address is an IP address, or the first one that a name has, IPv4 before IPv6.
func address(s string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, network := range []string{"ip4", "ip"} {
		if all, err := net.DefaultResolver.LookupNetIP(ctx, network, s); err == nil && len(all) > 0 {
			return all[0].Unmap(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor a name that has one", s)
}

func orRandom(token string) string {
	if token == "" {
		return simcluster.NewToken()
	}
	return token
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	var o options
	if err := o.parse(args, getenv, stderr); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	c, err := simcluster.New(o.cfg, simcluster.Deps{Log: log})
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // growing the cluster takes more than keeping it
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case <-c.Ready():
	case err := <-done:
		return err
	}
	if err := o.tell(c, stdout); err != nil {
		cancel()
		return errors.Join(err, <-done)
	}
	return <-done
}

// tell writes the files asked for and prints where everything is.
func (o *options) tell(c *simcluster.Cluster, out io.Writer) error {
	for _, k := range []struct{ path, user string }{{o.kubeconfigOut, ""}, {o.readerKubeconfig, simcluster.ReaderName}} {
		if k.path == "" {
			continue
		}
		if err := c.WriteKubeconfig(k.path, k.user); err != nil {
			return err
		}
	}
	if o.serviceAccountOut != "" {
		if err := os.MkdirAll(o.serviceAccountOut, 0o755); err != nil {
			return fmt.Errorf("write service account: %w", err)
		}
		for name, data := range map[string][]byte{"token": []byte(c.TokenOf(simcluster.ReaderName)), "ca.crt": c.CA(), "namespace": []byte("kube-system")} {
			if err := os.WriteFile(filepath.Join(o.serviceAccountOut, name), data, 0o600); err != nil {
				return fmt.Errorf("write service account: %w", err)
			}
		}
	}
	fmt.Fprintf(out, "API server    %s\n", c.APIServer())
	if s := c.SecureAPIServer(); s != "" {
		fmt.Fprintf(out, "API server    %s  (own CA, bearer token)\n", s)
	}
	if o.kubeconfigOut != "" {
		fmt.Fprintf(out, "kubeconfig    %s\n", o.kubeconfigOut)
	}
	nodes := c.Nodes()
	if len(nodes) > 0 {
		for _, tls := range []bool{true, false} {
			u, err := c.NodeURL(nodes[0].Name(), tls)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "kubelet       %s/stats/summary  (%s)\n", u, nodes[0].Name())
		}
	}
	fmt.Fprintf(out, "control       %s/sim/status\n", c.APIServer())
	return nil
}
