package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/proto/bus"
)

// cluster is the name of the cluster on the bus.
const cluster = "bench"

// template is how many nodes --batches are made of.
const template = 100

// start starts everything; stop ends what is no process of its own, and may be called after an error, too.
func (b *bench) start(ctx context.Context) (stop func() error, err error) {
	stop = func() error { return nil }
	ports, err := fleet.FreePorts(10)
	if err != nil {
		return stop, err
	}
	local := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	natsURL, api, kubeconfig := "nats://"+local(0), local(1), filepath.Join(b.dir, "reader.kubeconfig")
	b.token, b.model, b.secure = simcluster.NewToken(), local(3), local(6)
	b.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // our own gateway, on this machine
		ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64,
	}, Timeout: time.Minute}
	run := func(name, program, telemetry string, args ...string) error {
		_, err := b.fleet.Start(name, program, telemetry, args...)
		return err
	}
	simulated := b.nodes
	if b.batches {
		simulated = min(b.nodes, template)
	}
	if err := errors.Join(
		b.startBus("nats", ports[0], ports[7]),
		run("simcluster", "simcluster", "", "--nodes="+strconv.Itoa(simulated), "--pods="+strconv.Itoa(b.pods), "--containers="+strconv.Itoa(b.containers), "--namespaces="+strconv.Itoa(b.namespaces),
			"--recorded=false", "--token="+b.token, "--listen="+api, "--listen-secure=127.0.0.1:0", "--kubelet-port=0", "--kubelet-read-only-port=0", "--reader-kubeconfig-out="+kubeconfig),
	); err != nil {
		return stop, err
	}
	if err := fleet.Until(ctx, "the simulated cluster serves", func() bool {
		_, err := os.Stat(kubeconfig)
		return err == nil && fleet.Get(ctx, "http://"+api+"/readyz", 0) != ""
	}); err != nil {
		return stop, err
	}
	if b.conn, err = b.connect(ctx, natsURL); err != nil {
		return stop, err
	}
	stop = func() error { b.conn.Close(); return nil }
	if _, err := b.conn.Apply(ctx, bus.Topology{Cluster: cluster, Nodes: b.nodes, Resolution: b.resolution, RollupsBytes: rollupsBytes}); err != nil {
		return stop, err
	}
	url, profiling := "--bus-url="+natsURL, "--telemetry-profiling="+strconv.FormatBool(b.profiles != "")
	if !b.scrapeOnly {
		for name, port := range map[string]int{"aggregator": 4, "standby": 8} {
			b.args[name] = []string{url, "--telemetry-listen=" + local(port), profiling, "--member-id=" + name}
		}
		if err := errors.Join(
			run("apigw", "apigw", local(2), url, "--telemetry-listen="+local(2), profiling, "--cluster="+cluster, "--listen_ip=127.0.0.1", "--heapster-port="+strconv.Itoa(ports[3]),
				"--api-server", "--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(ports[6]), "--cert-dir=", "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig),
			run("aggregator", "aggregator", local(4), b.args["aggregator"]...),
		); err != nil {
			return stop, err
		}
	}
	scrape := func(url string) error {
		return run("scraper", "scraper", local(5), url, "--telemetry-listen="+local(5), profiling, "--cluster="+cluster, "--kubeconfig="+kubeconfig, "--metric-resolution="+b.resolution.String())
	}
	if !b.batches {
		return stop, scrape(url)
	}
	// The scraper writes to a bus of its own, from where its batches are taken.
	if err := b.startBus("nats-template", ports[9], 0); err != nil {
		return stop, err
	}
	from := "nats://" + local(9)
	source, err := b.connect(ctx, from)
	if err != nil {
		return stop, err
	}
	if _, err := source.Apply(ctx, bus.Topology{Cluster: cluster, Nodes: simulated, Resolution: b.resolution}); err != nil {
		source.Close()
		return stop, err
	}
	copies := newCopier(b, source, simulated)
	ended := make(chan error, 1)
	go func() { ended <- copies.run(ctx) }()
	stop = func() error {
		err := <-ended // ctx has ended
		source.Close()
		b.conn.Close()
		return err
	}
	return stop, scrape("--bus-url=" + from)
}

// rollupsBytes is room for 10,000 nodes at 15 s, of which the streams keep 20 minutes.
const rollupsBytes = 24 << 30

// startBus starts a NATS server; profiles is 0 or the port of its profiles.
func (b *bench) startBus(name string, port, profiles int) error {
	conf := filepath.Join(b.dir, name+".conf")
	text := fmt.Sprintf("listen: \"127.0.0.1:%d\"\nmax_payload: 8MB\njetstream { store_dir: %q, max_file_store: 64GB, max_memory_store: 64MB }\n", port, filepath.Join(b.dir, name))
	telemetry := ""
	if b.profiles != "" && profiles != 0 {
		telemetry = "127.0.0.1:" + strconv.Itoa(profiles)
		text += fmt.Sprintf("prof_port: %d\n", profiles)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := b.fleet.Start(name, "nats", telemetry, "-c", conf)
	return err
}

func (b *bench) connect(ctx context.Context, url string) (*bus.Conn, error) {
	cfg := bus.DefaultConfig()
	cfg.URLs, cfg.Name = []string{url}, "benchcluster"
	conn, err := bus.Connect(ctx, cfg, b.log)
	if err != nil {
		return nil, err
	}
	if err := conn.WaitUp(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
