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
	const head = "One or more TimeSeries could not be written: "
	const order = "Points must be written in order. One or more of the points specified had an older start time than the most recent point."
	// The forms that the API's answers had over the years.
	check(head+order+": timeSeries[0-1,9]", "map[0:"+order+" 1:"+order+" 9:"+order+"]")
	check(head+order+": timeSeries[1]; Unknown metric: a/b: timeSeries[3]", "map[1:"+order+" 3:Unknown metric: a/b]")
	check(head+order+": k8s_container{cluster_name:retry,location:x} timeSeries[1]: custom.googleapis.com/x{a:b}; Unknown; yes: global{} timeSeries[3]: custom.googleapis.com/y",
		"map[1:"+strings.TrimSuffix(order, ".")+" 3:Unknown; yes]")
	const field = `Field timeSeries[6].points[0].interval.end_time had an invalid value of "2018": Data points cannot be written more than 25h0s in the past.`
	check(head+field+"; Field timeSeries[7] had an invalid value: Duplicate TimeSeries encountered.: timeSeries[7]", "map[6:"+field+" 7:Field timeSeries[7] had an invalid value: Duplicate TimeSeries encountered.: timeSeries[7]]")
	check(head+`timeSeries[2] (example metric.type="a", metric.labels={"b": "c"}): Monarch only accepted 1 of 2 points; so it is`, "map[2:Monarch only accepted 1 of 2 points; so it is]")
	check(head+`timeSeries[2-3] (example metric.type="a", metric.labels={"b": "c"}): Monarch only accepted 1 of 2 points`, "unknown")
	check("The request is invalid.", "unknown")
	check(head+"x: timeSeries[10]", "unknown")
	check(head+"x: timeSeries[3-1]", "unknown")
	check(head+"x: timeSeries[99999999999999999999]", "unknown")
}

func FuzzRefusals(f *testing.F) {
	f.Add("could not be written: in order: timeSeries[0-2,9]; x: timeSeries[3]")
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
