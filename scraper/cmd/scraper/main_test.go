package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestHelpIsGolden(t *testing.T) {
	got := daemon.HelpText(command())
	if *update {
		if err := os.WriteFile("testdata/help.golden", []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/help.golden")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWrongCommandLineIsRefused(t *testing.T) {
	var out, errs bytes.Buffer
	code := daemon.Execute(t.Context(), command(), []string{"--role=node", "--metric_resolution=1s", "--source=kubernetes.resources_api:"}, &out, &errs)
	if code != 2 {
		t.Errorf("exit code %d", code)
	}
	for _, words := range []string{"--node-name", "--metric-resolution is 1s", "want one of"} {
		if !strings.Contains(errs.String(), words) {
			t.Errorf("%q does not say %q", errs.String(), words)
		}
	}
}
