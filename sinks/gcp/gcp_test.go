package gcp

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/sinks/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRefusalsAreRead(t *testing.T) {
	check := func(message, want string) {
		t.Helper()
		reasons, ok := Refusals(message, 10)
		got := "unknown"
		if ok {
			got = fmt.Sprint(reasons)
		}
		if got != want {
			t.Errorf("%s\n is %s, want %s", message, got, want)
		}
	}
	check("One or more TimeSeries could not be written: Points must be written in order.: timeSeries[0-2,9]", "map[0:Points must be written in order. 1:Points must be written in order. 2:Points must be written in order. 9:Points must be written in order.]")
	check("One or more TimeSeries could not be written: in order: timeSeries[1]; Unknown metric: a/b: timeSeries[3]", "map[1:in order 3:Unknown metric: a/b]")
	check("The request is invalid.", "unknown")
	check("x: timeSeries[10]", "unknown")
	check("x: timeSeries[3-1]", "unknown")
	check("x: timeSeries[99999999999999999999]", "unknown")
}

func FuzzRefusals(f *testing.F) {
	f.Add("in order: timeSeries[0-2,9]; x: timeSeries[3]")
	f.Fuzz(func(t *testing.T, s string) {
		reasons, _ := Refusals(s, 200)
		for i := range reasons {
			if i < 0 || i >= 200 {
				t.Fatalf("series %d of 200", i)
			}
		}
	})
}

func TestProjectsAreFound(t *testing.T) {
	dir := t.TempDir()
	account := filepath.Join(dir, "a.json")
	if err := os.WriteFile(account, []byte(`{"type":"authorized_user","project_id":"of-file"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "b.json")
	if err := os.WriteFile(broken, []byte(`nonsense`), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(target string) (*Monitoring, error) {
		p, err := sink.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		o := p.Options()
		m := New(o, "test")
		return m, o.Done()
	}
	check := func(target, want string) {
		t.Helper()
		m, err := open(target)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Project(t.Context()); err != nil || got != want {
			t.Errorf("%s: project %q, %v; want %q", target, got, err, want)
		}
	}
	t.Setenv("GOOGLE_PROJECT_ID", "of-environment")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", account)
	check("gcm", "of-environment")
	check("gcm:?credentials="+account, "of-file")
	t.Setenv("GOOGLE_PROJECT_ID", "")
	check("gcm", "of-file")
	for _, target := range []string{"gcm:?credentials=/none/x.json", "gcm:?credentials=" + broken, "gcm:?endpoint=ftp://x"} {
		if _, err := open(target); err == nil || !strings.Contains(err.Error(), "credentials of Google") && !strings.Contains(err.Error(), "`endpoint`") {
			t.Errorf("%s: got %v", target, err)
		}
	}
}
