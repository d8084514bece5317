package embedded_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, bustest.LeakOptions()...) }

func server(t *testing.T, change func(*embedded.Config)) *embedded.Server {
	t.Helper()
	cfg := embedded.DefaultConfig()
	change(&cfg)
	s, err := embedded.New(cfg, bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func TestStoreDirectoryHasOneUser(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	onDir := func(c *embedded.Config) { c.StoreDir = dir }
	a, b := server(t, onDir), server(t, onDir)
	if err := a.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Fatalf("second server on one directory: %v", err)
	}
	a.Shutdown()
	a.Shutdown() // twice is fine
	if err := b.Start(t.Context()); err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
}

func TestMemoryServerTakesStreams(t *testing.T) {
	s := server(t, func(c *embedded.Config) { c.Memory, c.MaxMemory = true, 16<<30 })
	ctx, stop := context.WithCancel(t.Context())
	up, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(up) }) }()
	<-up
	c, err := bus.ConnectLocal(t.Context(), s, bus.DefaultConfig(), bustest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}
	bustest.Provision(t, c, "prod", func(t *bus.Topology) { t.Memory = true })
	_, err = c.Publisher(bus.PublisherConfig{}).Publish(ctx, bus.Message{Subject: bus.ClockSubject("prod"), ID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(bustest.Timeout):
		t.Fatal("server did not end")
	}
}

func TestConfigJoinsAllComplaints(t *testing.T) {
	_, err := embedded.New(embedded.Config{Listen: "nowhere", CertFile: "x", CAFile: "y"}, bustest.Logger(t))
	for _, part := range []string{"choose a store directory", "max-store", "sync-interval", "belong together", `"nowhere"`} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v: lacks %q", err, part)
		}
	}
}
