package graphite

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

// present is a node's rollup of now: servers refuse what is far from it.
func present() *proto.Rollup {
	r := sinktest.Node("node-1.example.com", 2, 1, 1)
	r.Tick = proto.TickAt(time.Now().Add(-time.Minute), 15*time.Second)
	return r
}

// lines are path and value of what a rollup makes.
func lines(s *carbon, r *proto.Rollup) map[string]float64 {
	all := map[string]float64{}
	for _, l := range encoded(s, r) {
		f := strings.Fields(l)
		all[f[0]], _ = strconv.ParseFloat(f[1], 64) // the test's own line
	}
	return all
}

func TestCarbonHasWhatWasWritten(t *testing.T) {
	program, err := exec.LookPath("carbon-cache")
	if err != nil {
		t.Skip("no carbon-cache on this machine: apt-get install graphite-carbon")
	}
	dir, addr := t.TempDir(), bustest.FreeAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	for name, text := range map[string]string{
		"carbon.conf": fmt.Sprintf(`[cache]
STORAGE_DIR = %[1]s
CONF_DIR = %[1]s
LOG_DIR = %[1]s
PID_DIR = %[1]s
LOCAL_DATA_DIR = %[1]s/whisper
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = %[2]s
PICKLE_RECEIVER_PORT = 0
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = 0
MAX_CACHE_SIZE = inf
MAX_UPDATES_PER_SECOND = inf
MAX_CREATES_PER_MINUTE = inf
ENABLE_TAGS = False
`, dir, port),
		"storage-schemas.conf": "[all]\npattern = .*\nretentions = 1s:1h\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sinktest.Daemon(t, addr, program, "--config="+filepath.Join(dir, "carbon.conf"), "--nodaemon", "--debug", "start")
	s := build(t, "graphite:tcp://"+addr+"?device_paths=true")
	defer s.Close()
	r := present()
	for range 2 { // the second time overwrites
		if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range lines(s, r) {
		file := filepath.Join(dir, "whisper", strings.ReplaceAll(path, ".", "/")+".wsp")
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			got, ok := whisper(file, r.Tick.Time().Unix())
			if ok && math.Abs(got-want) <= 1e-6 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is %g (found: %t), want %g", path, got, ok, want)
			}
		}
	}
}

// whisper reads a value of Graphite's database file: a header of four 32-bit numbers, the last of which says
// how many archives there are, 12 bytes about each, then points of a 32-bit time and a double; big-endian.
func whisper(file string, at int64) (float64, bool) {
	b, err := os.ReadFile(file)
	if err != nil || len(b) < 28 {
		return 0, false
	}
	for p := b[16+12*binary.BigEndian.Uint32(b[12:]):]; len(p) >= 12; p = p[12:] {
		if int64(binary.BigEndian.Uint32(p)) == at {
			return math.Float64frombits(binary.BigEndian.Uint64(p[4:])), true
		}
	}
	return 0, false
}

func TestVictoriaMetricsHasWhatWasWritten(t *testing.T) {
	addr := bustest.FreeAddr(t)
	v := sinktest.StartVictoria(t, addr, "-graphiteListenAddr="+addr)
	s := build(t, "graphite:tcp://"+addr+"?device_paths=true")
	defer s.Close()
	r := present()
	if err := s.Write(t.Context(), []sink.Message{{Rollup: r}}); err != nil {
		t.Fatal(err)
	}
	want := lines(s, r)
	got := v.Series(`{__name__=~"kubernetes.*"}`, len(want))
	for _, series := range got {
		name := series.Labels["__name__"]
		if value, ok := series.Values[int64(r.Tick)]; !ok || math.Abs(value-want[name]) > 1e-6*math.Abs(want[name]) {
			t.Errorf("%s is %v, want %g at %d", name, series.Values, want[name], r.Tick)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d series, want %d", len(got), len(want))
	}
}
