package soak

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// builtPrograms builds the pipeline's programs with the flags of `go test`, whose build cache has their packages, and
// returns their directory. The Go tool knows what has changed, so that building again costs little.
func builtPrograms(t *testing.T) string {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin", "e2e"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(bin, 0o755); err != nil { //nolint:gosec // programs
		t.Fatal(err)
	}
	build := func(out string, packages ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-ldflags=-s -w", "-o", out}, packages...)...) //nolint:gosec // our own packages
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", packages, err, said)
		}
	}
	const ours = "github.com/heapstream/heapstream/"
	var packages []string
	for _, p := range []string{"scraper", "aggregator", "apigw", "sinks"} {
		packages = append(packages, ours+p+"/cmd/"+p)
	}
	build(bin+string(filepath.Separator), append(packages, ours+"e2e/cmd/simcluster")...)
	build(filepath.Join(bin, "nats"), "github.com/nats-io/nats-server/v2")
	return bin
}

// TestSoakInShort is `make soak-cluster` with little of everything: each process is killed once, and the backend goes away
// in every way that it knows. Nothing is lost and nothing is doubled.
func TestSoakInShort(t *testing.T) {
	t.Parallel() // it waits, most of the time
	cfg := DefaultConfig()
	cfg.Bin, cfg.Dir = builtPrograms(t), t.TempDir()
	cfg.Nodes, cfg.Pods, cfg.Resolution, cfg.Churn = 4, 8, proto.MinResolution, 200*time.Millisecond
	cfg.Duration, cfg.KillEvery, cfg.FlapEvery, cfg.FlapFor, cfg.Sample = 32*time.Second, 6*time.Second, 7*time.Second, 3*time.Second, 2*time.Second
	var said strings.Builder
	res, err := Run(t.Context(), cfg, slog.New(slog.DiscardHandler), &said)
	t.Log(said.String())
	if err != nil {
		t.Fatal(err)
	}
	if res.Wrong > 0 {
		t.Errorf("%d things are wrong: %s", res.Wrong, strings.Join(res.Faults, "\n"))
	}
	if len(res.Kills) != 5 || len(res.Absences) != 4 {
		t.Errorf("killed were %v, and the backend was %v: want five processes and four ways", res.Kills, res.Absences)
	}
	if s := res.Sum; s.Ticks < 6 || s.NodeTicks < 20 || s.Points < 5000 {
		t.Errorf("this has shown nothing: %+v", s)
	}
}
