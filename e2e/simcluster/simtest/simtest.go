// Package simtest starts simulated clusters for tests.
//
// Not here: the cluster (simcluster).
package simtest

import (
	"context"
	"testing"
	"time"

	"github.com/heapstream/heapstream/e2e/simcluster"
)

// patience is how long a cluster may take to start, and to stop.
const patience = 2 * time.Minute

// Start runs a cluster on free ports until the test ends, and returns when it serves. A failure ends the test.
func Start(t testing.TB, cfg simcluster.Config, deps simcluster.Deps) *simcluster.Cluster {
	t.Helper()
	c, err := simcluster.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("simulated cluster: %v", err)
			}
		case <-time.After(patience):
			t.Error("simulated cluster does not stop")
		}
	})
	select {
	case <-c.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("simulated cluster does not start: %v", err)
	case <-time.After(patience):
		t.Fatalf("simulated cluster is not ready after %s", patience)
	}
	return c
}
