package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/daemon"
)

func runMetrics(t *testing.T, args ...string) string {
	t.Helper()
	var out, stderr bytes.Buffer
	if code := daemon.Execute(context.Background(), command(), append([]string{"metrics"}, args...), &out, &stderr); code != 0 {
		t.Fatalf("metrics %q ends with %d: %s", args, code, stderr.String())
	}
	return out.String()
}

func TestMetricsAreListed(t *testing.T) {
	for path, args := range map[string][]string{
		"testdata/metrics.golden":              nil,
		"testdata/metrics-heapster-pod.golden": {"--world=heapster", "--level=pod"},
		"testdata/metrics-otel-node.golden":    {"--world=otel", "--level=node"},
		"testdata/metrics-prometheus.md":       {"--world=prometheus", "--output=markdown"},
	} {
		got := runMetrics(t, args...)
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
			t.Errorf("metrics %q is not %s (renew with -update)", args, path)
		}
	}
}

func TestMetricsAsJSONHaveAllOfTheCatalogue(t *testing.T) {
	var all []listed
	if err := json.Unmarshal([]byte(runMetrics(t, "--output=json")), &all); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, l := range all {
		seen[l.Metric+l.Level] = true
		if len(l.Worlds) != 2 && l.Without == "" {
			t.Errorf("%s of a %s has %d names", l.Metric, l.Level, len(l.Worlds))
		}
	}
	for _, m := range proto.Metrics() {
		for k := proto.KindCluster; k <= proto.KindWorkload; k++ {
			if seen[m.Name+k.LevelWord()] != m.Levels.Has(k) {
				t.Errorf("%s of a %s is listed: %v", m.Name, k, seen[m.Name+k.LevelWord()])
			}
		}
	}
}

func TestWrongFlagsOfMetricsAreRefused(t *testing.T) {
	for arg, want := range map[string]string{
		"--level=pods": `did you mean "pod"?`, "--world=open": "want one of heapster, prometheus, otel", "--output=yaml": "want one of table, json, markdown",
	} {
		var stderr bytes.Buffer
		if code := daemon.Execute(context.Background(), command(), []string{"metrics", arg}, &stderr, &stderr); code != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("metrics %s ends with %d: %s", arg, code, stderr.String())
		}
	}
}
