package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// influxd is an InfluxDB 1.x server of this machine, started for a test.
type influxd struct{ URL, db string }

func (i *influxd) sink() string { return "influxdb:" + i.URL + "?db=" + i.db }

func (i *influxd) series(t *testing.T, metric string) []influxSeries {
	t.Helper()
	return i.query(t, `SELECT "value" FROM "`+metric+`" GROUP BY *`)
}

// influxSeries is one series of an answer: its tags and its points.
type influxSeries struct {
	Tags   map[string]string
	Values [][]json.Number // time in Unix ms, value
}

// startInfluxd runs the server until the test ends, with further lines in its section [http]; without one the test is
// skipped.
func startInfluxd(t *testing.T, lines ...string) *influxd {
	t.Helper()
	binary, err := exec.LookPath("influxd")
	if err != nil {
		t.Skip("SKIP: no influxd on this machine: apt-get install influxdb (1.x)")
	}
	return runInfluxd(t, binary, bustest.FreeAddr(t), lines...)
}

// runInfluxd is startInfluxd at an address that the caller knows.
func runInfluxd(t *testing.T, binary, addr string, lines ...string) *influxd {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "influxdb.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
reporting-disabled = true
bind-address = %q
[meta]
dir = %q
[data]
dir = %q
wal-dir = %q
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = %q
log-enabled = false
%s
`, bustest.FreeAddr(t), filepath.Join(dir, "meta"), filepath.Join(dir, "data"), filepath.Join(dir, "wal"), addr, strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-config", config) //nolint:gosec // found above
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		if t.Failed() {
			t.Logf("influxd: %s", said.String())
		}
	})
	i := &influxd{URL: "http://" + addr, db: "k8s"}
	eventually(t, patience, func() bool {
		resp, err := http.Get(i.URL + "/ping")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusNoContent
	}, func() string { return "influxd does not come up" })
	return i
}

// query returns the series of one statement on the database; nil where there is no such database yet.
func (i *influxd) query(t *testing.T, q string) []influxSeries {
	t.Helper()
	resp, err := http.Get(i.URL + "/query?" + url.Values{"db": {i.db}, "epoch": {"ms"}, "q": {q}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Error   string
		Results []struct {
			Error  string
			Series []influxSeries
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Error != "" || len(answer.Results) != 1 {
		t.Fatalf("%s: %v, %s", q, err, body)
	}
	return answer.Results[0].Series
}
