// Command demo is `make run`: a simulated cluster and heapstream on it in one process, with what to try printed as
// soon as the first numbers are served. It keeps its data in a folder that is removed at the end.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/proto/daemon"
)

// options are the demo's own.
type options struct {
	nodes, pods int
	resolution  time.Duration
	churn       time.Duration
	dataDir     string
	listen      string
	modelPort   int
	securePort  int
	sinks       []string
}

func main() { daemon.Main(command()) }

func command() *daemon.Command {
	o := options{nodes: 5, pods: 12, resolution: 5 * time.Second, churn: 30 * time.Second, listen: "127.0.0.1:8001", modelPort: 8082, securePort: 6443}
	process := daemon.DefaultConfig()
	process.TelemetryListen, process.LogLevel = "", "warn"
	return &daemon.Command{
		Name:    "demo",
		Short:   "A simulated cluster and heapstream on it, ready to be asked.",
		Process: &process,
		Flags: func(fs *pflag.FlagSet) {
			fs.IntVar(&o.nodes, "nodes", o.nodes, "nodes of the cluster")
			fs.IntVar(&o.pods, "pods", o.pods, "pods a node")
			fs.DurationVar(&o.resolution, "resolution", o.resolution, "distance between two ticks")
			fs.DurationVar(&o.churn, "churn", o.churn, "mean time between two changes of the workload; 0: none")
			fs.StringVar(&o.listen, "listen", o.listen, "`address` of the simulated API server")
			fs.IntVar(&o.modelPort, "heapster-port", o.modelPort, "port of the Heapster API; a free one if it is taken")
			fs.IntVar(&o.securePort, "secure-port", o.securePort, "port of the resource metrics API; a free one if it is taken")
			fs.StringVar(&o.dataDir, "data-dir", o.dataDir, "`directory` for the data; one that is removed at the end if empty")
			fs.StringArrayVar(&o.sinks, "sink", nil, "where to write to as well, such as log:, as heapstream takes it; repeatable")
		},
		Run: o.run,
	}
}

func (o *options) run(ctx context.Context, d daemon.Deps) (err error) {
	dir := o.dataDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "heapstream-demo-"); err != nil {
			return fmt.Errorf("make a folder for the data: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make --data-dir: %w", err)
	}
	cluster, err := simcluster.New(o.cluster(), simcluster.Deps{Log: d.Log})
	if err != nil {
		return err
	}
	model, err := listen(ctx, o.modelPort)
	if err != nil {
		return err
	}
	secure, err := listen(ctx, o.securePort)
	if err != nil {
		return errors.Join(err, model.Close())
	}

	parts := daemon.Group{Log: d.Log}
	parts.Add("simulated cluster", cluster.Run, daemon.Until(func(ctx context.Context) error {
		select {
		case <-cluster.Ready():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}))
	parts.Add("heapstream", func(ctx context.Context) error { return o.heapstream(ctx, d, cluster, dir, model, secure) })
	parts.Add("guide", func(ctx context.Context) error {
		return guide(ctx, d, cluster, dir, "http://"+model.Addr().String())
	}, daemon.MayEnd())
	return parts.Run(ctx)
}

func (o *options) cluster() simcluster.Config {
	c := simcluster.DefaultConfig()
	c.Nodes, c.PodsPerNode, c.Churn, c.Recorded = o.nodes, o.pods, o.churn, true
	c.ListenHTTP = o.listen
	if l, err := net.Listen("tcp", o.listen); err != nil { // taken: any other will do
		c.ListenHTTP = "127.0.0.1:0"
	} else {
		_ = l.Close()
	}
	return c
}

// listen takes the port of 127.0.0.1, or a free one where it is taken.
func listen(ctx context.Context, port int) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		l, err = lc.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	return l, err
}

// heapstream runs the pipeline as its own program would with these flags.
func (o *options) heapstream(ctx context.Context, d daemon.Deps, cluster *simcluster.Cluster, dir string, model, secure net.Listener) error {
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		return err
	}
	cfg := standalone.DefaultConfig()
	fs := pflag.NewFlagSet("heapstream", pflag.ContinueOnError)
	cfg.Flags(fs)
	args := []string{
		"--source=kubernetes.summary_api:", "--kubeconfig=" + kubeconfig, "--metric_resolution=" + o.resolution.String(), "--cluster=demo",
		"--data-dir=" + filepath.Join(dir, "bus"), "--api-server", "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
	}
	for _, s := range o.sinks {
		args = append(args, "--sink="+s)
	}
	if err := fs.Parse(args); err != nil {
		return err
	}
	s, err := standalone.New(cfg, standalone.Deps{Log: d.Log, Registry: d.Registry, Health: d.Health, Out: d.Stdout, Listener: model, SecureListener: secure})
	if err != nil {
		return err
	}
	if err := errors.Join(cluster.SetGateway("https://"+secure.Addr().String()), cluster.SetModel("http://"+model.Addr().String())); err != nil {
		return err
	}
	return s.Run(ctx)
}

// guide prints what to try once there are numbers to see, and a line when there are rates: a kubelet renews its
// samples every 10 to 20 s, and a rate needs two.
func guide(ctx context.Context, d daemon.Deps, cluster *simcluster.Cluster, dir, model string) error {
	started := time.Now()
	nodes := cluster.Nodes()
	fmt.Fprintf(d.Stdout, "A cluster of %d nodes is up; waiting for its first numbers …\n", len(nodes))
	pods := cluster.Pods(nodes[len(nodes)-1].Name())
	pod := pods[len(pods)-1]
	metrics := model + "/api/v1/model/namespaces/" + pod.Namespace + "/pods/" + pod.Name + "/metrics/"
	if !eventually(ctx, metrics+"memory/working_set", `"value"`) {
		return nil
	}
	api := cluster.APIServer()
	fmt.Fprint(d.Stdout, strings.NewReplacer("{model}", model, "{pod}", pod.Name, "{ns}", pod.Namespace, "{node}", nodes[0].Name(), "{api}", api, "{dir}", dir).Replace(`
It works. In another terminal:

  the Heapster model API
    curl {model}/api/v1/model/nodes/
    curl {model}/api/v1/model/nodes/{node}/metrics/cpu/usage_rate
    curl {model}/api/v1/model/namespaces/{ns}/pods/{pod}/metrics/memory/working_set
    curl {model}/api/v1/model/metrics/cpu/usage_rate
    curl {model}/metrics

  the resource metrics API, through the cluster's API server
    kubectl --server={api} top nodes
    kubectl --server={api} top pods -A --containers
    curl {api}/apis/metrics.k8s.io/v1beta1/namespaces/{ns}/pods

  make trouble and watch
    curl -X POST '{api}/sim/fail?node={node}&mode=hang'        (mode=none heals)
    curl -X POST '{api}/sim/restart?pod={ns}/{pod}&reason=OOMKilled'
    curl {api}/sim/status

The data lies in {dir}. Ctrl-C ends it.

`))
	if eventually(ctx, api+"/apis/metrics.k8s.io/v1beta1/pods", `"cpu"`) {
		fmt.Fprintf(d.Stdout, "kubectl top has its first rows, %.0f s after the start.\n", time.Since(started).Seconds())
	}
	return nil
}

// eventually asks until an answer holds the text; it returns false when ctx ends before.
func eventually(ctx context.Context, url, text string) bool {
	for !served(ctx, url, text) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
	return true
}

// served reports whether the answer is good and holds the text.
func served(ctx context.Context, url, text string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return err == nil && resp.StatusCode == http.StatusOK && strings.Contains(string(body), text)
}
