package standalone

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
)

var update = flag.Bool("update", false, "renew golden files")

func TestEventersHelpIsDocumented(t *testing.T) {
	const path = "testdata/eventer-help.golden"
	got := daemon.HelpText(EventerCommand())
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

// call reads a command line and says with which code it ends, and what is printed.
func call(c *EventerConfig, args ...string) (code int, said string) {
	cmd := c.command()
	cmd.OneShot, cmd.Run = true, func(context.Context, daemon.Deps) error { return nil }
	var out bytes.Buffer
	code = daemon.Execute(context.Background(), cmd, args, &out, &out)
	return code, out.String()
}

// Every flag of eventer, in both spellings of each, with its default and what it may be.
func TestEventersCommandLineIsTaken(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "")
	check := func(holds func(c EventerConfig) bool, args ...string) {
		t.Helper()
		c := DefaultEventerConfig()
		if code, said := call(&c, append(args, "--data-dir=memory")...); code != 0 || !holds(c) {
			t.Errorf("%q ends with %d: %s%+v", args, code, said, c)
		}
	}
	const source = "--source=kubernetes:"
	check(func(c EventerConfig) bool {
		return c.Frequency == 30*time.Second && c.address() == "0.0.0.0:8084" && c.MaxProcs == 0 && c.Sinks.EventSinks == nil &&
			c.Scraper.Role == scraper.RoleEvents && c.Scraper.Source == "kubernetes:" && len(c.glog.warnings()) == 0 && len(c.warnings()) == 1
	}, source)
	for _, dash := range []string{"-", "--"} {
		check(func(c EventerConfig) bool { return c.Scraper.Source == "kubernetes:https://kubernetes.default" }, dash+"source=kubernetes:https://kubernetes.default")
		check(func(c EventerConfig) bool { return slices.Equal(c.Sinks.EventSinks, []string{"log", "gcl"}) }, source, dash+"sink=log", dash+"sink", "gcl")
		check(func(c EventerConfig) bool { return c.Frequency == 5*time.Second }, source, dash+"frequency=5s")
		check(func(c EventerConfig) bool { return c.Frequency == 3*time.Minute }, source, dash+"frequency", "3m")
		check(func(c EventerConfig) bool { return c.MaxProcs == 2 }, source, dash+"max_procs=2")
		check(func(c EventerConfig) bool { return c.MaxProcs == 2 }, source, dash+"max-procs=2")
		check(func(c EventerConfig) bool { return c.address() == "127.0.0.1:9" }, source, dash+"healthz-ip=127.0.0.1", dash+"healthz_port=9")
		check(func(c EventerConfig) bool { return c.address() == "[::]:8084" }, source, dash+"healthz_ip=::")
		// the logger's, which mean nothing
		check(func(c EventerConfig) bool { return len(c.glog.warnings()) == 6 }, source, dash+"logtostderr=false", dash+"alsologtostderr", dash+"v=4",
			dash+"stderrthreshold=INFO", dash+"vmodule=a=1", dash+"log_backtrace_at=a.go:1", dash+"log_dir=/tmp")
		check(func(c EventerConfig) bool { return len(c.glog.warnings()) == 1 }, source, dash+"v", "4", dash+"logtostderr")
	}
	// as the manifests of old have it
	check(func(c EventerConfig) bool { return c.Scraper.Source == "kubernetes:''" }, "--source=kubernetes:''", "--sink=log")
	check(func(EventerConfig) bool { return true }, source, "-sink=log", "-sink=influxdb:http://monitoring-influxdb:8086", "-sink=elasticsearch:?nodes=http://es:9200&index=x",
		"-sink=kafka:?brokers=k:9092&eventstopic=e", "-sink=riemann:http://r:5555", "-sink=honeycomb:?dataset=d&writekey=k")
	// what an API server's options are taken for, and those of kubelets left alone
	check(func(c EventerConfig) bool { return len(c.warnings()) == 1 }, "-source=kubernetes:http://h:1?inClusterConfig=false&useServiceAccount=false&insecure=true&auth=&apiVersion=v1")
	check(func(c EventerConfig) bool {
		return slices.Equal(c.warnings(), []string{"--source: option kubeletPort means nothing here: events are read from the API server alone",
			"--source: option kubeletHttps means nothing here: events are read from the API server alone"})
	}, "-source=kubernetes:http://h:1?kubeletPort=10250&kubeletHttps=true", "-sink=log")

	c := DefaultEventerConfig()
	for _, arg := range []string{"-version", "--version"} {
		if code, said := call(&c, arg); code != 0 || !strings.HasPrefix(said, "version: ") || !strings.Contains(said, "\ncommit: ") {
			t.Errorf("%s ends with %d: %s", arg, code, said)
		}
	}
}

func TestWrongCommandLinesOfEventerAreRefusedWithTheReason(t *testing.T) {
	check := func(want string, args ...string) {
		t.Helper()
		c := DefaultEventerConfig()
		if code, said := call(&c, append(args, "--data-dir=memory")...); code != 2 || !strings.Contains(said, want) {
			t.Errorf("%q ends with %d and says %q, not %q", args, code, said, want)
		}
	}
	const source = "-source=kubernetes:"
	check("no --source is given", "-sink=log")
	check("2 times --source", source, source)
	check(`source "kubernetes.summary_api" is not one of events: want kubernetes:`, "-source=kubernetes.summary_api:")
	check(`source "foo" is not one of events`, "-source=foo:http://h")
	check("option insecure=\"x\" of kubernetes: want true or false", "-source=kubernetes:?insecure=x")
	check("--frequency is 4.9s; it must be from 5s to 3m0s", source, "-frequency=4900ms")
	check("--frequency is 3m1s", source, "-frequency=3m1s")
	check(`--healthz-ip is "localhost"`, source, "-healthz-ip=localhost")
	check("flag --healthz-port", source, "-healthz-port=-1")
	check("flag --healthz-port", source, "-healthz-port=65536")
	check("unknown flag --frequncy (did you mean --frequency?)", source, "-frequncy=30s")
	check("unknown flag --metric_resolution", source, "--metric_resolution=30s") // heapster's
	check(`unexpected argument "log"`, source, "log")
	check("--events-rate is 0", source, "--events-rate=0")
	// sinks: one that is wrong is enough, and it is called by the flag that was given
	check(`--sink graphite:tcp://h:1: sink "graphite" takes no events: those that do are elasticsearch, gcl`, source, "-sink=log", "-sink=graphite:tcp://h:1")
	check(`--sink lgo: sink not recognized: "lgo" (did you mean "log"?)`, source, "-sink=lgo")
	check("`withfeilds` is unknown: did you mean `withfields`?", source, "-sink=influxdb:http://h:1?withfeilds=true")
	check("there are two sinks of the name", source, "-sink=log", "-sink=log")
	// all complaints at once
	check("--frequency is 1s", "-frequency=1s")
	check("no --source is given", "-frequency=1s")
}

func TestWhereEventerKeepsItsData(t *testing.T) {
	check := func(state, flag, dir string, throwaway bool) {
		t.Helper()
		t.Setenv("STATE_DIRECTORY", state)
		c := DefaultEventerConfig()
		if code, said := call(&c, "-source=kubernetes:", "--data-dir="+flag); code != 0 || c.throwaway != throwaway || c.Bus.Memory != (dir == "") || !strings.HasPrefix(c.Bus.StoreDir, dir) {
			t.Errorf("STATE_DIRECTORY=%q, --data-dir=%q ends with %d: %s%+v", state, flag, code, said, c.Bus)
		}
	}
	check("", "/said", "/said", false)
	check("/var/lib/eventer:/other", "", "/var/lib/eventer", false)
	check("/var/lib/eventer", "/said", "/said", false)
	check("/var/lib/eventer", "memory", "", false)
	check("", "", os.TempDir()+"/heapstream-eventer-", true)
}

func newTestEventer(t *testing.T, args ...string) *Eventer {
	t.Helper()
	c := DefaultEventerConfig()
	if code, said := call(&c, append([]string{"-source=kubernetes:http://127.0.0.1:1?inClusterConfig=false", "--data-dir=memory"}, args...)...); code != 0 {
		t.Fatal(said)
	}
	e, err := NewEventer(c, Deps{Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Health: daemon.NewHealth()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Liveness is that the last look was not long ago, in Heapster's words; rare looks get three of their own time.
func TestEventersHealth(t *testing.T) {
	e := newTestEventer(t)
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		e.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(body)
	}
	check := func(path string, code int, want string) {
		t.Helper()
		if got, body := ask(path); got != code || body != want {
			t.Errorf("%s is answered with %d %q, want %d %q", path, got, body, code, want)
		}
	}
	e.flushed = time.Now()
	check("/healthz", 200, "ok")
	check("/healthz/healthz", 200, "ok")
	check("/healthz?verbose", 200, "[+]healthz ok\nhealthz check passed\n")
	e.flushed = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).AddDate(-1, 0, 0)
	check("/healthz", 500, "[-]healthz failed: the last flush was at 2025-11-21T12:00:00Z\nhealthz check failed\n")
	e.why = errors.New("nobody answers")
	check("/healthz/healthz", 500, "internal server error: the last flush was at 2025-11-21T12:00:00Z: nobody answers\n")
	if code, body := ask("/readyz"); code != 503 || !strings.Contains(body, "starting") {
		t.Errorf("/readyz is answered with %d %q", code, body)
	}

	now := e.flushed.Add(3*time.Minute + time.Second)
	if e.health(now) == nil {
		t.Error("three minutes without a look at one every 30 s are well")
	}
	e.cfg.Frequency = 3 * time.Minute
	if err := e.health(now); err != nil {
		t.Errorf("three minutes without a look at one every three minutes: %v", err)
	}
}

func TestEventersTelemetryHasItsNames(t *testing.T) {
	e := newTestEventer(t)
	e.tel.looked(time.Unix(1500000000, 0), 2*time.Millisecond, 7)
	e.tel.wrote("InfluxDB Sink", 40*time.Millisecond)
	e.tel.wrote("Log Sink", time.Millisecond)
	e.tel.wrote("kafka", time.Millisecond)
	const want = `
# HELP eventer_exporter_duration_milliseconds How long one write to a sink took.
# TYPE eventer_exporter_duration_milliseconds summary
eventer_exporter_duration_milliseconds{exporter="Apache Kafka Sink",quantile="0.5"} 1
eventer_exporter_duration_milliseconds{exporter="Apache Kafka Sink",quantile="0.9"} 1
eventer_exporter_duration_milliseconds{exporter="Apache Kafka Sink",quantile="0.99"} 1
eventer_exporter_duration_milliseconds_sum{exporter="Apache Kafka Sink"} 1
eventer_exporter_duration_milliseconds_count{exporter="Apache Kafka Sink"} 1
eventer_exporter_duration_milliseconds{exporter="InfluxDB Sink",quantile="0.5"} 40
eventer_exporter_duration_milliseconds{exporter="InfluxDB Sink",quantile="0.9"} 40
eventer_exporter_duration_milliseconds{exporter="InfluxDB Sink",quantile="0.99"} 40
eventer_exporter_duration_milliseconds_sum{exporter="InfluxDB Sink"} 40
eventer_exporter_duration_milliseconds_count{exporter="InfluxDB Sink"} 1
eventer_exporter_duration_milliseconds{exporter="LogSink",quantile="0.5"} 1
eventer_exporter_duration_milliseconds{exporter="LogSink",quantile="0.9"} 1
eventer_exporter_duration_milliseconds{exporter="LogSink",quantile="0.99"} 1
eventer_exporter_duration_milliseconds_sum{exporter="LogSink"} 1
eventer_exporter_duration_milliseconds_count{exporter="LogSink"} 1
# HELP eventer_manager_last_time_seconds When eventer looked at itself last, Unix time.
# TYPE eventer_manager_last_time_seconds gauge
eventer_manager_last_time_seconds 1.5e+09
# HELP eventer_scraper_duration_milliseconds How long it took to count events.
# TYPE eventer_scraper_duration_milliseconds summary
eventer_scraper_duration_milliseconds{quantile="0.5"} 2
eventer_scraper_duration_milliseconds{quantile="0.9"} 2
eventer_scraper_duration_milliseconds{quantile="0.99"} 2
eventer_scraper_duration_milliseconds_sum 2
eventer_scraper_duration_milliseconds_count 1
# HELP eventer_scraper_events_total_number States of events taken from the API server.
# TYPE eventer_scraper_events_total_number counter
eventer_scraper_events_total_number 7
# HELP eventer_scraper_last_time_seconds When events were counted last, Unix time.
# TYPE eventer_scraper_last_time_seconds gauge
eventer_scraper_last_time_seconds 1.5e+09
`
	if err := testutil.GatherAndCompare(e.deps.Registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
