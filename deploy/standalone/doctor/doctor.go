// Package doctor looks at everything that heapstream stands on, from where it is started, and says of each thing what
// was seen and, where it is not well, what to do: the API server and the rights we have there, kubelets, certificates,
// clocks, the metrics API as the cluster sees it, the bus and its streams, who owns what, and how far everything is
// behind.
//
// It looks with the very code that the services use (scraper/kubelet, proto/bus), changes nothing, and asks at most what
// one tick of a scraper does. A finding that only follows from another that fails is skipped and says so, so that what
// fails is what is to be mended. Everything has a deadline: a thing that hangs costs its own finding.
//
// Not here: mending (heapstream bus apply, sinks), the numbers of a running process (its /metrics), waiting for
// something to become well (readiness).
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// Level is how well a thing is.
type Level string

// The levels. Fail alone makes a report fail.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works, and somebody should look
	Fail Level = "fail" // something does not work because of it
	Skip Level = "skip" // was not looked at, and why
)

// Finding is what was seen of one thing.
type Finding struct {
	Check string `json:"check"` // what kind of thing, one of Checks
	About string `json:"about"` // which one; empty where there is only one
	Level Level  `json:"level"`
	Seen  string `json:"seen"`
	Do    string `json:"do,omitempty"` // nothing where it is ok
}

// The kinds of things, in the order of a report.
const (
	CheckAPIServer    = "api-server"
	CheckRights       = "rights"
	CheckKubelets     = "kubelets"
	CheckCertificates = "certificates"
	CheckClocks       = "clocks"
	CheckMetricsAPI   = "metrics-api"
	CheckGateway      = "gateway"
	CheckBus          = "bus"
	CheckStreams      = "streams"
	CheckLeases       = "leases"
	CheckLags         = "lags"
	CheckSinks        = "sinks"
	CheckDead         = "dead"
)

// Checks are the kinds in the order of a report.
func Checks() []string {
	return []string{CheckAPIServer, CheckRights, CheckKubelets, CheckCertificates, CheckClocks, CheckMetricsAPI, CheckGateway, CheckBus,
		CheckStreams, CheckLeases, CheckLags, CheckSinks, CheckDead}
}

// Deps is what the program hands in.
type Deps struct {
	Log *slog.Logger     // told what is being done, at level debug
	Now func() time.Time // our clock; time.Now where nil
}

// Doctor looks once; see the package.
type Doctor struct {
	cfg  Config
	log  *slog.Logger
	now  func() time.Time
	all  map[string][]Finding // by check
	seen known
}

// known is what one look leaves for the next ones, so that what follows from a failure is not told as another.
type known struct {
	unlisted bool            // nodes cannot be listed for want of a right
	noStats  bool            // kubelets cannot be read for want of a right
	failing  map[string]bool // nodes whose kubelet cannot be read
	nodes    int             // as listed; 0: not known
}

// New checks the configuration; it opens nothing.
func New(cfg Config, deps Deps) (*Doctor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Doctor{cfg: cfg, log: deps.Log, now: deps.Now, all: map[string][]Finding{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.now == nil {
		d.now = time.Now
	}
	return d, nil
}

// Examine looks at everything the role stands on. It blocks until all is seen or Config.Timeout has passed; what was
// not seen by then is skipped. A Doctor examines once.
func (d *Doctor) Examine(ctx context.Context) Report {
	began := d.now()
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	d.log.Debug("looking at the cluster", "role", d.cfg.role())
	d.cluster(ctx)
	if d.cfg.Gateway != "" {
		d.gateway(ctx)
	}
	d.log.Debug("looking at the bus", "role", d.cfg.role())
	d.bus(ctx)
	r := Report{Role: d.cfg.role(), Cluster: d.cfg.Scraper.Cluster, At: began.UTC(), Took: d.now().Sub(began).Round(time.Millisecond).String()}
	for _, c := range Checks() {
		r.Findings = append(r.Findings, d.all[c]...)
	}
	return r
}

func (d *Doctor) add(level Level, check, about, do, seen string, args ...any) {
	if len(args) > 0 {
		seen = fmt.Sprintf(seen, args...)
	}
	d.all[check] = append(d.all[check], Finding{Check: check, About: about, Level: level, Seen: oneLine(seen), Do: oneLine(do)})
}

func (d *Doctor) ok(check, about, seen string, args ...any) {
	d.add(OK, check, about, "", seen, args...)
}

func (d *Doctor) skip(check, about, seen string, args ...any) {
	d.add(Skip, check, about, "", seen, args...)
}

// maxText bounds what one line says: servers may answer at any length.
const maxText = 600

func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + " …"
	}
	return s
}

// Report is all findings, in the order of Checks.
type Report struct {
	Role     string    `json:"role"`
	Cluster  string    `json:"cluster"`
	At       time.Time `json:"at"`
	Took     string    `json:"took"`
	Findings []Finding `json:"findings"`
}

// Count is how many findings have a level.
func (r *Report) Count(l Level) (n int) {
	for i := range r.Findings {
		if r.Findings[i].Level == l {
			n++
		}
	}
	return n
}

// Err is nil where nothing fails, else says how much does: what the exit code is made of.
func (r *Report) Err() error {
	if n := r.Count(Fail); n > 0 {
		return fmt.Errorf("%d of %d findings fail", n, len(r.Findings))
	}
	return nil
}

// Text writes the report for people: a line a finding, and below it what to do.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	for i := range r.Findings {
		f := &r.Findings[i]
		about := f.Seen
		if f.About != "" {
			about = f.About + ": " + f.Seen
		}
		fmt.Fprintf(&b, "%-4s  %-12s  %s\n", f.Level, f.Check, about)
		if f.Do != "" {
			fmt.Fprintf(&b, "%-4s  %-12s  -> %s\n", "", "", f.Do)
		}
	}
	fmt.Fprintf(&b, "%d ok, %d warn, %d fail, %d skipped; role %s, cluster %s, took %s\n", r.Count(OK), r.Count(Warn), r.Count(Fail), r.Count(Skip), r.Role, r.Cluster, r.Took)
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON writes the report as one indented object.
func (r *Report) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}
