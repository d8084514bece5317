package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
)

// pipeline is a running standalone.
type pipeline struct {
	*standalone.Standalone
	URL  string // of the Heapster surface
	stop func()
}

// startStandalone runs the whole pipeline in this process, on ports that the system chooses and with
// a store of its own, until the test ends.
func startStandalone(t *testing.T, args ...string) *pipeline {
	t.Helper()
	return launch(t, standalone.Deps{}, args...)
}

// launch is startStandalone with what deps has: a log, a registry, listeners.
func launch(t *testing.T, deps standalone.Deps, args ...string) *pipeline {
	t.Helper()
	cfg := standalone.DefaultConfig()
	fs := pflag.NewFlagSet("heapstream", pflag.ContinueOnError)
	cfg.Flags(fs)
	if err := fs.Parse(append([]string{"--data-dir=" + t.TempDir()}, args...)); err != nil {
		t.Fatal(err)
	}
	if deps.Log == nil {
		deps.Log = bustest.Logger(t)
	}
	if deps.Registry == nil {
		deps.Registry = prometheus.NewRegistry()
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	deps.Listener, deps.Health = listener, daemon.NewHealth()
	s, err := standalone.New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	p := &pipeline{Standalone: s, URL: "http://" + listener.Addr().String()}
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("standalone ended: %v", err)
		}
	}
	t.Cleanup(p.stop)
	return p
}

// conn is a connection to the pipeline's bus, closed when the test ends.
func (p *pipeline) conn(t *testing.T) *bus.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := p.Connect(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// get returns the body of an answer, whatever its status.
func (p *pipeline) get(t *testing.T, path string) (status int, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, body
}

// getJSON decodes an answer and reports whether it was one.
func (p *pipeline) getJSON(t *testing.T, path string, v any) bool {
	t.Helper()
	status, body := p.get(t, path)
	return status == http.StatusOK && json.Unmarshal(body, v) == nil
}

// eventually asks until the fact holds; it fails the test with what last says where it does not
// within the time.
func eventually(t *testing.T, within time.Duration, holds func() bool, last func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatal(fmt.Sprintf("not within %s: ", within) + last())
		}
		time.Sleep(50 * time.Millisecond) // between two questions, not in place of an answer
	}
}
