package sinks

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

func TestConfigurationIsCheckedWhole(t *testing.T) {
	check := func(change func(*Config), complaints ...string) {
		t.Helper()
		cfg := DefaultConfig()
		change(&cfg)
		err := cfg.Validate()
		if err == nil {
			_, err = New(cfg, Deps{Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
		}
		if len(complaints) == 0 && err != nil {
			t.Errorf("%v is refused: %v", cfg.Sinks, err)
		}
		for _, want := range complaints {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: got %v, want %q", cfg.Sinks, err, want)
			}
		}
	}
	sinks := func(values ...string) func(*Config) { return func(c *Config) { c.Sinks = values } }
	check(sinks())
	check(sinks("log", "metric", "influxdb:http://h:1", "influxdb:http://g:1", "kafka:?brokers=h:1"))
	check(sinks("influxdb:http://h:1?db=a", "influxdb:http://h:1?db=b"))
	check(sinks("influxdb:http://h:1", "influxdb:http://h:1?name=second"))
	check(sinks("influxdb:http://h:1", "influxdb:https://h:1?user=other"), "two sinks of the name", "add the option name=")
	check(sinks("graphte:tcp://h:1"), `did you mean "graphite"?`)
	check(sinks("gcl"), "takes events only")
	both := func(values ...string) func(*Config) {
		return func(c *Config) { c.Sinks, c.EventSinks = values, values }
	}
	check(both("log"))
	check(both("log", "influxdb:http://h:1", "kafka:?brokers=h:1", "elasticsearch:http://h:1", "riemann", "honeycomb:?writekey=k",
		"nats:nats://h", "otlp:http://h", "s3:http://h?bucket=heapstream&access_key=a&secret_key=s"))
	check(func(c *Config) { c.EventSinks = []string{"gcl"} })
	check(func(c *Config) { c.EventSinks = []string{"gcm"} }, "those that do are elasticsearch, gcl, honeycomb, influxdb, kafka, log, nats, otlp, riemann, s3")
	check(both("log:?name=x"), "two sinks of the name \"x\"")
	check(func(c *Config) { c.EventSinks = []string{"log", "log"} }, "two sinks of the name \"events-log\"")
	check(func(c *Config) { c.EventSinks = []string{"graphite", "log:?rename=a:b", "lgo"} },
		"--event-sink graphite: sink \"graphite\" takes no events", "option `rename` is unknown", "did you mean \"log\"?")
	// All that is wrong is said at once: of every sink the option, and what would be right.
	check(sinks("influxdb:http://h:1?filter=level:pod&rename=cpu/usage&timeot=5s", "log:?concurrency=2", "kafka:?brokers=h:1&format=msgpack&filter=type:pod&cacert=/none"),
		`sink "influxdb": `+"`filter` flag is \"level:pod\"", `did you mean "type"?`, "`rename` flag is \"cpu/usage\": want OLD:NEW", "did you mean `timeout`?",
		`sink "log": `+"`concurrency` flag is 2: a text has one writer", `sink "kafka": `+"`filter` and `rename` cannot be had with format=msgpack", "`cacert`: open /none")
	check(sinks("influx:http://h:1"), `did you mean "influxdb"?`)
	check(sinks("qqqqqqqqqq"), "sink not recognized", "known are ")
	check(sinks("kafka", "influxdb:?conurrency=1&pw=hunter2"), "There is no broker", "did you mean `concurrency`?")
	check(func(c *Config) { c.Timeout, c.Clusters, c.Labels.Store = 0, []string{""}, []string{"="} },
		"--sink-export-data-timeout is 0s", "--cluster: cluster name is empty", "--store_label")
}

func TestNoSecretIsRepeated(t *testing.T) {
	for _, value := range []string{"influxdb:?pw=hunter2&concurrency=0", "influx:?pw=hunter2", "influxdb:10.0.0.1:1?pw=hunter2", ":?pw=hunter2", "kafka:?password=hunter2&user=u"} {
		cfg := DefaultConfig()
		cfg.Sinks = []string{value}
		_, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestFlagsAreHeapsters(t *testing.T) {
	cfg := DefaultConfig()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	cfg.Flags(fs)
	err := fs.Parse([]string{"--sink=kafka:?brokers=a:1,b:2", "--sink", "log", "--sink_export_data_timeout=3s", "--label_separator=;", "--ignore_label=a,b", "--store_label=x=y", "--cluster=c"})
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Sinks) != 2 || cfg.Sinks[0] != "kafka:?brokers=a:1,b:2" || cfg.Timeout != 3*time.Second || len(cfg.Labels.Ignore) != 2 {
		t.Fatalf("%+v", cfg)
	}
	if f := cfg.Labels.Format(); f.Separator != ";" || f.Store["y"] != "x" {
		t.Fatalf("%+v", f)
	}
}

// TestOneSinkDownDelaysNoOther runs a sink that works beside some that are down from the start, each in its way.
func TestOneSinkDownDelaysNoOther(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "default")
	if err := conn.Register(t.Context(), "default", bus.ClusterInfo{UID: "u", Resolution: 15 * time.Second}); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	cfg := DefaultConfig()
	stalled, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	cfg.Sinks = []string{
		"influxdb:http://127.0.0.1:1?timeout=1s", "influxdb:http://nobody.invalid:1?timeout=1s", "kafka:?brokers=127.0.0.1:1",
		"influxdb:http://" + stalled.Addr().String(), "kafka:?brokers=" + stalled.Addr().String(), "log",
	}
	health := daemon.NewHealth()
	s, err := New(cfg, Deps{Bus: conn, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Health: health, Out: pw})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	defer pr.Close()
	for n := range 3 {
		r := sinktest.Node("node-1", 1, 1, n)
		data, err := proto.NewEncoder().Rollup(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Publisher(bus.PublisherConfig{}).Publish(ctx, bus.Message{Subject: bus.NodeRollupSubject("default", "node-1"), Data: data}); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for buf := make([]byte, 64<<10); !strings.Contains(text.String(), "MetricSet: node:node-1/container:runtime"); {
			n, err := pr.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(buf[:n])
		}
		if want := "DataBatch     Timestamp: " + r.Tick.Time().String(); !strings.Contains(text.String(), want) {
			t.Fatalf("log sink wrote %.200s, want %q", text.String(), want)
		}
	}
	if err := health.Check(); err != nil {
		t.Fatalf("not ready: %v", err)
	}
}
