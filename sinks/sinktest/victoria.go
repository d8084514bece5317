package sinktest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// Daemon runs a server of this machine until the test ends, and waits until it takes connections at addr.
// What it says is logged where the test fails.
func Daemon(tb testing.TB, addr, program string, args ...string) {
	tb.Helper()
	cmd := exec.Command(program, args...) //nolint:gosec // of the test's choosing
	var said recorder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
		if tb.Failed() {
			tb.Logf("%s: %s", program, said.String())
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s does not come up: %v\n%s", program, err, said.String())
		}
	}
}

// Victoria is a VictoriaMetrics of this machine, which speaks the protocols of several destinations.
type Victoria struct {
	tb   testing.TB
	http string
}

// StartVictoria starts one with more flags, which must make it listen at addr; where addr is "" it listens at its URL
// alone. It skips the test where there is none.
func StartVictoria(tb testing.TB, addr string, flags ...string) *Victoria {
	tb.Helper()
	binary, err := exec.LookPath("victoria-metrics")
	if err != nil {
		tb.Skip("no victoria-metrics on this machine: apt-get install victoria-metrics")
	}
	v := &Victoria{tb: tb, http: bustest.FreeAddr(tb)}
	if addr == "" {
		addr = v.http
	}
	flags = append(flags, "-httpListenAddr="+v.http, "-storageDataPath="+tb.TempDir(), "-retentionPeriod=1y", "-loggerLevel=WARN")
	Daemon(tb, addr, binary, flags...)
	tb.Cleanup(http.DefaultClient.CloseIdleConnections)
	return v
}

// URL is where its own HTTP interface is.
func (v *Victoria) URL() string { return "http://" + v.http }

// Series is one that it holds: labels, the name among them as __name__, and the values by Unix milliseconds.
type Series struct {
	Labels map[string]string
	Values map[int64]float64
}

// Series are all that match, once it has at least least of them.
func (v *Victoria) Series(match string, least int) (all []Series) {
	v.tb.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		resp, err := http.Post("http://"+v.http+"/internal/force_flush", "", nil)
		if err != nil {
			v.tb.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp, err = http.Get("http://" + v.http + "/api/v1/export?" + url.Values{"match[]": {match}}.Encode()); err != nil {
			v.tb.Fatal(err)
		}
		all = nil
		sc := bufio.NewScanner(resp.Body)
		for sc.Buffer(nil, 1<<20); sc.Scan(); {
			var line struct {
				Metric     map[string]string `json:"metric"`
				Values     []float64         `json:"values"`
				Timestamps []int64           `json:"timestamps"`
			}
			if err := json.NewDecoder(bytes.NewReader(sc.Bytes())).Decode(&line); err != nil {
				v.tb.Fatalf("export: %v: %s", err, sc.Bytes())
			}
			s := Series{Labels: line.Metric, Values: map[int64]float64{}}
			for i, at := range line.Timestamps {
				s.Values[at] = line.Values[i]
			}
			all = append(all, s)
		}
		_ = resp.Body.Close()
		if len(all) >= least {
			return all
		}
		if time.Now().After(deadline) {
			v.tb.Fatalf("%d series match %s, want %d", len(all), match, least)
		}
	}
}
