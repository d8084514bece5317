package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "renew golden files")

func TestHelpIsDocumented(t *testing.T) {
	const path = "testdata/help.golden"
	got := daemon.HelpText(command())
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("--help is not %s (renew with -update):\n%s", path, got)
	}
}

func TestWrongCommandLinesAreRefusedWithTheReason(t *testing.T) {
	check := func(want string, args ...string) {
		t.Helper()
		var stderr bytes.Buffer
		if code := daemon.Execute(context.Background(), command(), args, &stderr, &stderr); code != 2 {
			t.Errorf("%q ends with %d", args, code)
		}
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("%q says %q, not %q", args, stderr.String(), want)
		}
	}
	// Heapster takes exactly one source
	check("no --source is given")
	check("2 times --source", "--source=kubernetes:", "--source=kubernetes:")
	// the historical source is the window, an InfluxDB, or the sink that is called by its key
	check(`historical source "kafka": want window, or influxdb:URL`, "--source=kubernetes:", "--historical_source=kafka", "--sink=kafka:?brokers=h:1")
	check("--historical_source=window needs the window", "--source=kubernetes:", "--historical_source=window", "--disable-metric-sink")
	check("`withfields` flag is not true or false", "--source=kubernetes:", "--historical_source=influxdb", "--sink=influxdb:http://h:1?withfields=x")
	// '-' and '_' are alike, and what is unknown is named with what was probably meant
	check("metric-resolution is 1s", "--source=kubernetes:", "--metric-resolution=1s")
	check("metric-resolution is 1s", "--source=kubernetes:", "--metric_resolution=1s")
	check("metric-resolution", "--source=kubernetes:", "--metric-resolutoin=15s")
	// all complaints at once
	check("no --source is given", "--heapster-port=-1")
	check("--heapster-port=-1", "--heapster-port=-1")
	// sinks: wrong ones are refused at start, with the nearest name
	check("influxdb", "--source=kubernetes:", "--sink=influxd:http://localhost:8086")
}

func TestHeapstersCommandLineIsTaken(t *testing.T) {
	cmd := command()
	cmd.Run = func(context.Context, daemon.Deps) error { return nil }
	cmd.OneShot = true
	var stderr bytes.Buffer
	args := []string{
		"--source=kubernetes.summary_api:https://kubernetes.default?inClusterConfig=false&kubeletPort=10250&kubeletHttps=true", "--sink=influxdb:http://monitoring-influxdb:8086",
		"--sink=log", "--metric_resolution=30s", "--sink_export_data_timeout=10s", "--heapster-port=8082", "--listen_ip=127.0.0.1", "--max_procs=2",
		"--api-server", "--secure-port=6443", "--label_separator=;", "--ignore_label=a,b", "--store_label=team=owner", "--logtostderr=true", "--v=4", "-v=4", "--stderrthreshold=2",
		"--vmodule=a=1", "--log_dir=/var/log", "--log_backtrace_at=a.go:1", "--log-flush-frequency=1s",
		"--tls-cert-file=x", "--tls-private-key-file=y", "--authentication-skip-lookup", "--profiling=false", "--data-dir=memory",
	}
	if code := daemon.Execute(context.Background(), cmd, args, &stderr, &stderr); code != 0 {
		t.Errorf("it ends with %d: %s", code, stderr.String())
	}
}

func TestEventerIsAProgramOfItsOwnName(t *testing.T) {
	for name, want := range map[string]string{"/eventer": "eventer", "eventer": "eventer", "/heapster": "heapstream", "/app": "heapstream", "": "heapstream"} {
		if got := called(name).Name; got != want {
			t.Errorf("called %q it is %s, want %s", name, got, want)
		}
	}
	var out bytes.Buffer
	if code := daemon.Execute(context.Background(), command(), []string{"eventer", "-source=kubernetes:", "-sink=lgo"}, &out, &out); code != 2 || !strings.Contains(out.String(), `did you mean "log"?`) {
		t.Errorf("heapstream eventer ends with %d: %s", code, out.String())
	}
}
