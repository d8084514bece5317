package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestHelp(t *testing.T) {
	var out, errs bytes.Buffer
	if code := daemon.Execute(t.Context(), command(), []string{"--help"}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	const golden = "testdata/help.golden"
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
		t.Fatalf("help differs from %s (-update writes it):\n%s", golden, out.String())
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
	check("not built yet", "--sink=graphite:tcp://h:1")
	check("sink-export-data-timeout", "--sink=log", "--sink_export_data_timeout=-1s")
	check("did you mean", "--sinks=log")
	check("option `databse` is unknown", "--sink=influxdb:http://h:1?databse=x")
}
