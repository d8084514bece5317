package soak

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// watch looks at everything from time to time and keeps what it saw: as a line of samples.csv at once, and for the
// summary.
type watch struct {
	run   *run
	began time.Time
	file  *os.File
	csv   *csv.Writer

	columns []column
	index   map[string]int
	cpu     map[string]life    // of each process when last looked at
	counted map[string]float64 // the scraper's counters when last looked at
	starts  int                // of the scraper then
	failed  float64
}

// column is one number over time; NaN is "".
type column struct {
	name   string
	values []value
}

type value struct {
	at time.Duration // since the beginning
	is float64
	ok bool
}

// life is CPU time in one life of a process.
type life struct {
	starts int
	cpu    time.Duration
	at     time.Time
}

// The measures of a process.
const (
	cores      = "cores"
	resident   = "resident_mib"
	anonymous  = "anonymous_mib"
	heap       = "heap_mib"
	goroutines = "goroutines"
)

var measures = []string{cores, resident, anonymous, heap, goroutines}

func newWatch(r *run) (*watch, error) {
	w := &watch{run: r, began: time.Now(), index: map[string]int{}, cpu: map[string]life{}}
	file, err := os.Create(filepath.Join(r.cfg.Dir, "samples.csv"))
	if err != nil {
		return nil, err
	}
	w.file, w.csv = file, csv.NewWriter(file)
	for _, p := range r.fleet.Processes() {
		for _, m := range measures {
			w.column(p.Name + "." + m)
		}
	}
	for _, name := range []string{"samples.mib", "samples.messages", "rollups.mib", "rollups.messages", "sink.pending", "sink.unacked", "sink.oldest_s",
		"totals.age_s", "served.age_s", "backend.mode", "backend.lines", "ticks", "node_ticks", "excused", "missed", "points", "redelivered", "open", "faults"} {
		w.column(name)
	}
	head := []string{"seconds"}
	for i := range w.columns {
		head = append(head, w.columns[i].name)
	}
	return w, w.csv.Write(head)
}

func (w *watch) column(name string) {
	w.index[name] = len(w.columns)
	w.columns = append(w.columns, column{name: name})
}

func (w *watch) close() error {
	w.csv.Flush()
	return errors.Join(w.csv.Error(), w.file.Close())
}

// sample looks at everything once. What does not answer just now leaves its field empty.
func (w *watch) sample(ctx context.Context) {
	at := time.Since(w.began)
	seen := map[string]float64{}
	for _, p := range w.run.fleet.Processes() {
		u, err := p.Usage()
		if err != nil {
			continue
		}
		now, starts := time.Now(), 0
		starts, _ = p.Starts()
		if before, ok := w.cpu[p.Name]; ok && before.starts == starts {
			seen[p.Name+"."+cores] = (u.CPU - before.cpu).Seconds() / now.Sub(before.at).Seconds()
		}
		w.cpu[p.Name] = life{starts, u.CPU, now}
		seen[p.Name+"."+resident], seen[p.Name+"."+anonymous] = mib(u.Resident), mib(u.Anonymous)
		if p.Name == "nats" {
			w.ofServer(ctx, seen)
		}
		for name, is := range p.Counters(ctx, "go_") {
			switch name {
			case "go_memstats_heap_inuse_bytes":
				seen[p.Name+"."+heap] = is / (1 << 20)
			case "go_goroutines":
				seen[p.Name+"."+goroutines] = is
			}
		}
	}
	w.ofScraper(ctx)
	w.ofBus(ctx, seen)
	if tick, ok := w.run.newestServed(ctx, 0); ok {
		seen["served.age_s"] = time.Since(tick.Time()).Seconds()
	}
	if last := w.run.ledger.lastTick(); last != 0 {
		seen["totals.age_s"] = time.Since(last.Time()).Seconds()
	}
	lines, _, _ := w.run.backend.taken()
	w.run.backend.mu.Lock()
	seen["backend.mode"] = float64(w.run.backend.mode)
	w.run.backend.mu.Unlock()
	sum, faults := w.run.ledger.progress()
	for name, n := range map[string]int{"backend.lines": lines, "ticks": sum.Ticks, "node_ticks": sum.NodeTicks, "excused": sum.Excused, "missed": sum.Missed,
		"points": sum.Points, "redelivered": sum.Redelivered, "open": sum.Open, "faults": faults} {
		seen[name] = float64(n)
	}
	line := []string{strconv.FormatFloat(at.Seconds(), 'f', 1, 64)}
	for i := range w.columns {
		is, ok := seen[w.columns[i].name]
		w.columns[i].values = append(w.columns[i].values, value{at, is, ok})
		text := ""
		if ok {
			text = strconv.FormatFloat(is, 'f', -1, 64)
			if dot := strings.IndexByte(text, '.'); dot >= 0 && len(text) > dot+4 {
				text = text[:dot+4]
			}
		}
		line = append(line, text)
	}
	_ = w.csv.Write(line) // told by close
	w.csv.Flush()
}

// ofServer asks the server's profiles for its heap and its goroutines.
func (w *watch) ofServer(ctx context.Context, seen map[string]float64) {
	base := "http://" + w.run.natsProfiles + "/debug/pprof/"
	if _, n, ok := strings.Cut(firstLine(fleet.Get(ctx, base+"goroutine?debug=1", 0)), "total "); ok {
		seen["nats."+goroutines], _ = strconv.ParseFloat(n, 64)
	}
	for line := range strings.Lines(fleet.Get(ctx, base+"heap?debug=1", 0)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "# HeapInuse = "); ok {
			is, _ := strconv.ParseFloat(n, 64)
			seen["nats."+heap] = is / (1 << 20)
		}
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// ofScraper adds what its counters say of scrapes that came to nothing. Counters of a life that was killed count up to
// when they were last looked at.
func (w *watch) ofScraper(ctx context.Context) {
	p := w.run.scraper
	starts, _ := p.Starts()
	now := p.Counters(ctx, "heapstream_scraper_")
	if len(now) == 0 {
		return
	}
	if starts != w.starts {
		w.counted, w.starts = nil, starts
	}
	for name, is := range now {
		if strings.HasPrefix(name, "heapstream_scraper_scrapes_total") && !strings.Contains(name, `"ok"`) ||
			strings.HasPrefix(name, "heapstream_scraper_scrapes_skipped_total") || strings.HasPrefix(name, "heapstream_scraper_batches_dropped_total") {
			w.failed += is - w.counted[name]
		}
	}
	w.counted = now
}

func (w *watch) failedScrapes() int { return int(w.failed) }

// ofBus asks for streams and the sink's place. While the server is away there is no answer, and none is waited for.
func (w *watch) ofBus(ctx context.Context, seen map[string]float64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for name, stream := range map[string]string{"samples": bus.SamplesStream(cluster), "rollups": bus.RollupsStream(cluster)} {
		if st, err := w.run.conn.StreamState(ctx, stream); err == nil {
			seen[name+".mib"], seen[name+".messages"] = mib(int64(st.Bytes)), float64(st.Messages) //nolint:gosec // bytes of a stream
		}
	}
	if durables, err := w.run.conn.SinkDurables(ctx, bus.RollupsStream(cluster)); err == nil && len(durables) == 1 {
		lag := durables[0].Lag
		seen["sink.pending"], seen["sink.unacked"], seen["sink.oldest_s"] = float64(lag.Pending), float64(lag.Unacked), lag.Oldest.Seconds()
	}
}

// newestServed is the newest tick of the cluster that a gateway serves.
func (r *run) newestServed(ctx context.Context, gateway int) (proto.Tick, bool) {
	var answer struct {
		LatestTimestamp time.Time `json:"latestTimestamp"`
	}
	body := fleet.Get(ctx, "http://"+r.model[gateway]+"/api/v1/model/metrics/cpu/usage_rate", 0)
	if json.Unmarshal([]byte(body), &answer) != nil || answer.LatestTimestamp.IsZero() {
		return 0, false
	}
	return proto.Tick(answer.LatestTimestamp.UnixMilli()), true
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// summary writes summary.txt, and the same to out.
func (w *watch) summary(out io.Writer, res *Result) error {
	file, err := os.Create(filepath.Join(w.run.cfg.Dir, "summary.txt"))
	if err != nil {
		return err
	}
	text := bufio.NewWriter(io.MultiWriter(out, file))
	w.write(text, res)
	return errors.Join(text.Flush(), file.Close())
}

func (w *watch) write(out io.Writer, res *Result) {
	cfg, s := &w.run.cfg, res.Sum
	fmt.Fprintf(out, "\n%d nodes x %d pods x %d containers every %s, %s; a change of the workload every %s\n", cfg.Nodes, cfg.Pods, cfg.Containers, cfg.Resolution, cfg.Duration, cfg.Churn)
	fmt.Fprintf(out, "killed: %v; backend away: %v\n", res.Kills, res.Absences)
	fmt.Fprintf(out, "ticks with totals, each once         %d\n", s.Ticks)
	fmt.Fprintf(out, "batches with a rollup, each once     %d (%d stored again, %d after their tick had closed)\n", s.NodeTicks, s.BatchAgain, s.Late)
	fmt.Fprintf(out, "node ticks without a scraper alive   %d\n", s.Excused)
	fmt.Fprintf(out, "node ticks of failed scrapes         %d (the scraper says %d)\n", s.Missed, res.Failed)
	fmt.Fprintf(out, "points at the backend, each once     %d (%d written again, alike)\n", s.Points, s.Redelivered)
	fmt.Fprintf(out, "wrong                                %d\n", res.Wrong)
	for _, f := range res.Faults {
		fmt.Fprintf(out, "  %s\n", f)
	}
	fmt.Fprintf(out, "\nmean over each quarter of the time, and slope over the second half (lives shorter than two samples left out)\n")
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "what\tQ1\tQ2\tQ3\tQ4\tQ4/Q2\tslope/h\tmax\t")
	for _, c := range w.columns {
		if q, ok := c.quarters(); ok {
			ratio := ""
			if q.mean[1] != 0 {
				ratio = fmt.Sprintf("%.2f", q.mean[3]/q.mean[1])
			}
			fmt.Fprintf(table, "%s\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t%+.2f\t%.2f\t\n", c.name, q.mean[0], q.mean[1], q.mean[2], q.mean[3], ratio, q.slope, q.max)
		}
	}
	_ = table.Flush() // to a buffer
	fmt.Fprintf(out, "\nover time, from the least to the most of each row\n")
	for _, c := range w.columns {
		if strings.HasSuffix(c.name, resident) || strings.HasSuffix(c.name, heap) || !strings.Contains(c.name, "-") && strings.Contains("sink.pending totals.age_s served.age_s rollups.mib", c.name) {
			if graph, lo, hi, ok := c.graph(); ok {
				fmt.Fprintf(out, "%26s |%s| %.0f to %.0f\n", c.name, graph, lo, hi)
			}
		}
	}
}

// quarters are means of a column over the quarters of its time.
type quarters struct {
	mean  [4]float64
	slope float64 // an hour
	max   float64
}

func (c *column) quarters() (q quarters, ok bool) {
	if len(c.values) < 8 {
		return q, false
	}
	whole := c.values[len(c.values)-1].at
	var n [4]int
	var count, sx, sy, sxx, sxy float64
	for _, v := range c.values {
		if !v.ok {
			continue
		}
		i := min(int(4*v.at/max(whole, 1)), 3)
		q.mean[i] += v.is
		n[i]++
		q.max = max(q.max, v.is)
		if i >= 2 {
			x := v.at.Hours()
			count, sx, sy, sxx, sxy = count+1, sx+x, sy+v.is, sxx+x*x, sxy+x*v.is
		}
	}
	for i := range n {
		if n[i] == 0 {
			return q, false
		}
		q.mean[i] /= float64(n[i])
	}
	if d := count*sxx - sx*sx; d > 0 {
		q.slope = (count*sxy - sx*sy) / d
	}
	return q, true
}

// graph draws a column as one line of characters, the darker the more.
func (c *column) graph() (line string, lo, hi float64, ok bool) {
	const width, shades = 72, " .:-=+*#%@"
	sums, n := [width]float64{}, [width]int{}
	if len(c.values) == 0 {
		return "", 0, 0, false
	}
	whole := max(c.values[len(c.values)-1].at, 1)
	for _, v := range c.values {
		if v.ok {
			if !ok || v.is < lo {
				lo = v.is
			}
			if !ok || v.is > hi {
				hi = v.is
			}
			ok = true
			i := min(int(width*v.at/whole), width-1)
			sums[i] += v.is
			n[i]++
		}
	}
	var b strings.Builder
	last := byte('?') // nothing was seen
	for i := range sums {
		switch {
		case n[i] == 0: // as before
		case hi > lo:
			last = shades[min(int((sums[i]/float64(n[i])-lo)/(hi-lo)*float64(len(shades))), len(shades)-1)]
		default:
			last = shades[len(shades)/2]
		}
		b.WriteByte(last)
	}
	return b.String(), lo, hi, ok
}
