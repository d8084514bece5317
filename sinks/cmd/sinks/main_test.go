package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestHelp(t *testing.T) {
	for _, words := range []string{"", "kinds", "list", "rewind", "pause", "resume", "forget", "dead", "dead list", "dead redrive"} {
		var out, errs bytes.Buffer
		if code := daemon.Execute(t.Context(), command(), append(strings.Fields(words), "--help"), &out, &errs); code != 0 {
			t.Fatalf("%s: exit %d: %s", words, code, errs.String())
		}
		golden := "testdata/help.golden"
		if words != "" {
			golden = "testdata/help-" + strings.ReplaceAll(words, " ", "-") + ".golden"
		}
		if *update {
			if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil { //nolint:gosec // a test's data
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if out.String() != string(want) {
			t.Errorf("help differs from %s (-update writes it):\n%s", golden, out.String())
		}
	}
}

func TestWrongCommandLinesAreRefused(t *testing.T) {
	check := func(want string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := daemon.Execute(t.Context(), command(), args, &out, &errs); code != 2 || !strings.Contains(errs.String(), want) {
			t.Errorf("%v: exit %d, %s", args, code, errs.String())
		}
	}
	check("no --sink is given")
	check("takes events only", "--sink=gcl")
	check(`--to is "yesterday"`, "rewind", "db", "--to=yesterday")
	check(`--stream is "rollup"`, "rewind", "db", "--to=1h", "--stream=rollup")
	check(`--output is "xml"`, "list", "--output=xml")
	check("--patience is 0s", "dead", "list", "--patience=0s")
	check("did you mean", "rewnd", "db")
	check("sink-export-data-timeout", "--sink=log", "--sink_export_data_timeout=-1s")
	check("did you mean", "--sinks=log")
	check("option `databse` is unknown", "--sink=influxdb:http://h:1?databse=x")
}

// TestOperations runs the commands as an operator types them.
func TestOperations(t *testing.T) {
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "c")
	if err := conn.Register(t.Context(), "c", bus.ClusterInfo{UID: "u", Resolution: time.Second}); err != nil {
		t.Fatal(err)
	}
	d, err := conn.Durable(t.Context(), bus.DurableConfig{Stream: bus.RollupsStream("c"), Name: bus.SinkDurable("db"), Subjects: bus.RollupFilters("c")})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	check := func(code int, want string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		if got := daemon.Execute(t.Context(), command(), append(args, "--bus-url="+server.URL(), "--patience=2m"), &out, &errs); got != code || !strings.Contains(out.String()+errs.String(), want) {
			t.Errorf("%v: exit %d, want %d with %q; got\n%s%s", args, got, code, want, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := daemon.Execute(t.Context(), command(), []string{"kinds"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "log ") {
		t.Errorf("kinds: exit %d\n%s%s", code, out.String(), errs.String())
	}
	check(0, "db    c        rollups  not fed", "list")
	check(0, `{"sink":"db","cluster":"c","stream":"rollups","pending":0`, "list", "-o", "json")
	check(0, "db: rollups of cluster c paused", "pause", "db", "--for=1h")
	check(0, "paused", "list")
	check(0, "db: rollups of cluster c resumed", "resume", "db")
	check(0, "go on with message 1, was 1", "rewind", "db", "--to=start")
	check(1, "is not there yet", "rewind", "db", "--to=5")
	check(1, "does not read events", "rewind", "db", "--to=2h", "--stream=events")
	check(1, "which sink?", "pause")
	check(1, "there is no sink", "resume", "x")
	check(0, "LETTER", "dead", "list")
	check(0, "there is no letter", "dead", "redrive", "db")
	lease, err := conn.Hold(t.Context(), bus.SinkLease("db"), "worker-1")
	if err != nil {
		t.Fatal(err)
	}
	check(1, "is being fed: take it out of the configuration first", "forget", "db")
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(0, "db: place in rollups of cluster c forgotten", "forget", "db")
	check(1, "there is no sink", "forget", "db")
}
