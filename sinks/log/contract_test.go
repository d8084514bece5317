package log

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

const own = "The program's own output can fail and be slow, and knows no answers, refusals, certificates or logins."

// The destination of the contract is a file, named in the address, which the sink itself ignores. Its mood
// stands in a file beside it, so that a worker in another process heeds it too.
var suite = sinktest.Suite{
	Kind: Kind,
	Start: func(t *testing.T, _ sinktest.Reach) sinktest.Backend {
		return &file{t: t, path: filepath.Join(t.TempDir(), "out")}
	},
	Names: func(tb testing.TB, r *proto.Rollup) []string {
		var out bytes.Buffer
		s, err := New(sink.Target{Key: "log"}, sink.Deps{Labels: proto.DefaultLabelFormat(), Out: &out})
		if err != nil {
			tb.Fatal(err)
		}
		if err := s.Write(tb.Context(), []sink.Message{{Rollup: r}}); err != nil {
			tb.Fatal(err)
		}
		return names(out.String())
	},
	Without: map[sinktest.Mood]string{
		sinktest.Stalled: own, sinktest.Down: own, sinktest.Refusing: own, sinktest.HalfRefuses: own, sinktest.HangsUp: own, sinktest.Garbage: own,
	},
	NoTLS: own, NoLogin: own,
	Out: func(t sink.Target) (io.WriteCloser, error) {
		f, err := os.OpenFile(t.URL.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		return &moody{f, t.URL.Path}, nil
	},
}

func TestMain(m *testing.M) { suite.Main(m) }

func TestContract(t *testing.T) { suite.Run(t) }

func BenchmarkWrite(b *testing.B) { suite.Bench(b, "log", nil) }

type file struct {
	t    *testing.T
	path string

	mu sync.Mutex
}

func (f *file) Target(sinktest.Reach) string { return "log:" + f.path }

func (f *file) Behave(m sinktest.Mood) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := os.WriteFile(f.path+".mood", []byte(m.String()), 0o600); err != nil {
		f.t.Error(err)
	}
}

func (f *file) Holds() map[string]int {
	b, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Error(err)
	}
	holds := map[string]int{}
	for _, name := range names(string(b)) {
		holds[name]++
	}
	return holds
}

// moody is a file that behaves as its mood says.
type moody struct {
	*os.File
	path string
}

func (m *moody) Write(p []byte) (int, error) {
	mood, err := os.ReadFile(m.path + ".mood")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	switch string(mood) {
	case sinktest.Slow.String():
		time.Sleep(2 * time.Millisecond)
	case sinktest.Failing.String():
		return 0, errors.New("no space left on device")
	case sinktest.CutsOff.String():
		n, err := m.File.Write(p[:len(p)/2])
		return n, errors.Join(err, io.ErrShortWrite)
	}
	return m.File.Write(p)
}

// names are the samples of a text: tick, set, metric and the labels below it. A set that was cut off does not
// count.
func names(text string) (all []string) {
	const begin = "DataBatch     Timestamp: "
	tick, set := "", ""
	var samples []string // of the set, until it is seen to end
	for line := range strings.Lines(text) {
		if i := strings.Index(line, begin); i > 0 {
			line = line[i:] // after a line that was cut off
		}
		switch {
		case !strings.HasSuffix(line, "\n"): // still being written
		case strings.HasPrefix(line, begin):
			tick, set, samples = line[len(begin):], "", nil
		case strings.HasPrefix(line, "MetricSet: "):
			set, samples = line, nil
		case set != "" && strings.HasPrefix(line, "         ") && len(samples) > 0:
			samples[len(samples)-1] += line
		case set != "" && strings.HasPrefix(line, "      "):
			metric, _, _ := strings.Cut(line, " = ")
			samples = append(samples, tick+set+metric)
		case line == "   Metrics:\n":
			samples = nil // those were labels
		case line == "\n" && set != "":
			all = append(all, samples...)
			set, samples = "", nil
		}
	}
	return all
}
