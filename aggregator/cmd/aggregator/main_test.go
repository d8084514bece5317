package main

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/heapstream/heapstream/proto/daemon"
)

var update = flag.Bool("update", false, "renew testdata")

// The help is what operators read: it changes on purpose only.
func TestHelp(t *testing.T) {
	var out, errs bytes.Buffer
	if code := daemon.Execute(t.Context(), command(), []string{"--help"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	const golden = "testdata/help.golden"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, out.Bytes()) {
		t.Errorf("help differs from %s (renew with -update):\n%s", golden, &out)
	}
}

// All complaints come at once, and name the flag.
func TestWrongFlagsAreRefused(t *testing.T) {
	var out, errs bytes.Buffer
	code := daemon.Execute(t.Context(), command(), []string{"--cluster=" + string(bytes.Repeat([]byte("x"), 64)), "--bus-url=http://x"}, &out, &errs)
	if code != 2 || !bytes.Contains(errs.Bytes(), []byte("--cluster")) || !bytes.Contains(errs.Bytes(), []byte("--bus-url")) {
		t.Errorf("exit code %d: %s", code, &errs)
	}
}
