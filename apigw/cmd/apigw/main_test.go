package main

import (
	"flag"
	"os"
	"testing"

	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "renew golden files")

func TestHelpIsGolden(t *testing.T) {
	const golden = "testdata/help.golden"
	got := daemon.HelpText(command())
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("--help differs from %s (renew it with -update):\n%s", golden, got)
	}
}
