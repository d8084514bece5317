package influxdb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// real is an influxd of this machine, started for the test.
type real struct {
	t          *testing.T
	addr       string
	user, pass string
}

func startReal(t *testing.T, auth bool) *real {
	t.Helper()
	binary, err := exec.LookPath("influxd")
	if err != nil {
		t.Skip("no influxd on this machine: apt-get install influxdb (1.x)")
	}
	dir := t.TempDir()
	r := &real{t: t, addr: bustest.FreeAddr(t)}
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
auth-enabled = %t
log-enabled = false
max-body-size = 200000
[retention]
check-interval = "30m"
`, bustest.FreeAddr(t), filepath.Join(dir, "meta"), filepath.Join(dir, "data"), filepath.Join(dir, "wal"), r.addr, auth), 0o600); err != nil {
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
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			t.Logf("influxd: %s", said.String())
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); ; {
		resp, err := http.Get("http://" + r.addr + "/ping")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusNoContent {
				return r
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("influxd does not come up: %v\n%s", err, said.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// query is the rows of one statement.
func (r *real) query(db, q string) (rows [][]any) {
	r.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+r.addr+"/query?"+url.Values{"db": {db}, "q": {q}}.Encode(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.SetBasicAuth(r.user, r.pass)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	var answer struct {
		Error   string
		Results []struct {
			Error  string
			Series []struct{ Values [][]any }
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Error != "" || len(answer.Results) != 1 || answer.Results[0].Error != "" {
		r.t.Fatalf("%s: %v, %s", q, err, body)
	}
	for _, s := range answer.Results[0].Series {
		rows = append(rows, s.Values...)
	}
	return rows
}

// points is how many points the database holds, of every measurement.
func (r *real) points(db string) (n int) {
	r.t.Helper()
	for _, row := range r.query(db, `SELECT count(*) FROM "default"./.*/`) {
		for _, v := range row[1:] {
			if f, ok := v.(float64); ok {
				n += int(f)
			}
		}
	}
	return n
}

func write(t *testing.T, s sink.Sink, rollups ...*proto.Rollup) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return s.Write(ctx, messages(rollups...))
}

func (r *real) sink(options string) *influx {
	x := build(r.t, "influxdb:http://"+r.addr+options)
	r.t.Cleanup(func() { _ = x.Close() })
	return x
}

func TestRealInfluxDB(t *testing.T) {
	r := startReal(t, false)
	oracle := sinktest.Oracle(t, "default")

	t.Run("every line becomes one point, however often it is written", func(t *testing.T) {
		r.t = t
		x := r.sink("?batchsize=300&concurrency=3")
		for range 3 {
			if err := write(t, x, oracle...); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := r.points("k8s"), x.lines.len(); got != want {
			t.Fatalf("%d points, want %d", got, want)
		}
		got := fmt.Sprint(r.query("k8s", `SELECT value, pod_name, labels FROM "default"."memory/usage" WHERE container_name='c0' AND pod_name='web-8a5f9-0001-02'`))
		if !strings.Contains(got, "web-8a5f9-0001-02 app:app-2,pod-template-hash:8a5f9,tier:cache") {
			t.Fatalf("row %s", got)
		}
	})

	t.Run("odd labels come back as they were", func(t *testing.T) {
		r.t = t
		n := sinktest.Node("odd", 1, 1, 0)
		odd := `a\,b=c d\`
		for i := range n.Entities {
			if n.Entities[i].Kind == proto.KindContainer {
				n.Entities[i].Image = odd
			}
		}
		if err := write(t, r.sink("?db=odd&withfields=true"), n); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(r.query("odd", `SELECT usage, container_base_image FROM "default".memory WHERE type='pod_container'`))
		if !strings.Contains(got, `a/,b=c d/`) { // backslashes in such places become slashes, no more is lost
			t.Fatalf("row %s", got)
		}
	})

	t.Run("a field of another type refuses its lines alone", func(t *testing.T) {
		r.t = t
		x := r.sink("?db=typed")
		if err := x.createDatabase(t.Context()); err != nil {
			t.Fatal(err)
		}
		first := fmt.Sprintf("memory/usage,type=x value=1.5 %d000000\nmemory/rss,type=x value=2.5 %d000000\n", oracle[3].Tick, oracle[3].Tick)
		if _, err := x.do(t.Context(), strings.Replace(x.write, "db=k8s", "db=typed", 1), []byte(first), ""); err != nil {
			t.Fatal(err)
		}
		err := write(t, x, oracle...)
		var p *sink.Partial
		if !errors.As(err, &p) || p.Err != nil {
			t.Fatalf("got %v, want a partial write", err)
		}
		refused := 0
		for _, part := range p.Refused {
			if !strings.HasPrefix(part.Part, "memory/usage,") && !strings.HasPrefix(part.Part, "memory/rss,") || !strings.Contains(part.Reason, "field type conflict") {
				t.Fatalf("refused %+v", part)
			}
			refused += part.Samples
		}
		want := 0
		for i := range x.lines.len() {
			if l := string(x.lines.line(i)); strings.HasPrefix(l, "memory/usage,") || strings.HasPrefix(l, "memory/rss,") {
				want++
			}
		}
		if refused != want || r.points("typed") != x.lines.len()-want+2 {
			t.Fatalf("%d lines refused, want %d; %d points", refused, want, r.points("typed"))
		}
	})

	t.Run("a dropped database is created again", func(t *testing.T) {
		r.t = t
		x := r.sink("?db=gone")
		if err := write(t, x, oracle[0]); err != nil {
			t.Fatal(err)
		}
		r.query("", `DROP DATABASE gone`)
		if err := write(t, x, oracle[0]); err != nil {
			t.Fatal(err)
		}
		if got := r.points("gone"); got != x.lines.len() {
			t.Fatalf("%d points, want %d", got, x.lines.len())
		}
	})

	t.Run("retention", func(t *testing.T) {
		r.t = t
		policyOf := func(db string) string {
			for _, row := range r.query("", `SHOW RETENTION POLICIES ON `+db) {
				if row[0] == "default" {
					return fmt.Sprint(row[1])
				}
			}
			return "none"
		}
		now := sinktest.Node("n", 1, 1, 0)
		now.Tick = proto.TickAt(time.Now(), time.Second)
		r.query("", `CREATE DATABASE foreign_one`) // by somebody else, with autogen as its default
		for _, step := range []struct{ db, options, want string }{
			{"kept", "", "0s"},
			{"kept", "&retention=2d", "48h0m0s"},
			{"kept", "", "48h0m0s"}, // not given: as it is
			{"kept", "&retention=1w", "168h0m0s"},
			{"made", "&retention=3h", "3h0m0s"},
			{"foreign_one", "", "0s"},
			{"foreign_one", "&retention=4h", "4h0m0s"},
		} {
			x := r.sink("?db=" + step.db + step.options)
			if err := write(t, x, now); err != nil {
				t.Fatalf("%+v: %v", step, err)
			}
			if got := policyOf(step.db); got != step.want {
				t.Fatalf("%+v: policy lasts %s", step, got)
			}
		}
		old := sinktest.Node("n", 1, 1, 0)
		old.Tick = proto.TickAt(time.Now().Add(-5*time.Hour), time.Second)
		x := r.sink("?db=made&retention=3h")
		err := write(t, x, old)
		var p *sink.Partial
		if !errors.As(err, &p) || p.Late != x.lines.len() || len(p.Refused) > 0 || p.Err != nil {
			t.Fatalf("got %v, want %d late samples", err, x.lines.len())
		}
	})

	t.Run("requests larger than the server takes are split", func(t *testing.T) {
		r.t = t
		x := r.sink("?db=large")
		if err := write(t, x, sinktest.Node("n", 60, 2, 0)); err != nil {
			t.Fatal(err)
		}
		if len(x.lines.text) < 200000 || r.points("large") != x.lines.len() {
			t.Fatalf("%d points of %d bytes, want %d", r.points("large"), len(x.lines.text), x.lines.len())
		}
	})
}

func TestRealInfluxDBWantsALogin(t *testing.T) {
	r := startReal(t, true)
	r.query("", `CREATE USER root WITH PASSWORD 'right' WITH ALL PRIVILEGES`)
	r.user, r.pass = "root", "right"
	if err := write(t, r.sink("?pw=wrong"), sinktest.Node("n", 1, 1, 0)); err == nil || !strings.Contains(err.Error(), "check `user` and `pw`") || strings.Contains(err.Error(), "wrong)") {
		t.Fatalf("got %v", err)
	}
	if err := write(t, r.sink("?pw=right"), sinktest.Node("n", 1, 1, 0)); err != nil {
		t.Fatal(err)
	}
	// A user that may write to the database and nothing else.
	r.query("", `CREATE USER writer WITH PASSWORD 'right'`)
	if err := write(t, r.sink("?user=writer&pw=right"), sinktest.Node("n", 1, 1, 1)); err == nil || !strings.Contains(err.Error(), "check the privileges") {
		t.Fatalf("got %v", err)
	}
	r.query("", `GRANT WRITE ON k8s TO writer`)
	x := r.sink("?user=writer&pw=right")
	if err := write(t, x, sinktest.Node("n", 1, 1, 1)); err != nil {
		t.Fatal(err)
	}
	if got := r.points("k8s"); got != 2*x.lines.len() {
		t.Fatalf("%d points, want %d", got, 2*x.lines.len())
	}
}
