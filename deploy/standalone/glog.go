package standalone

import (
	"fmt"
	"time"

	"github.com/spf13/pflag"
)

// glog are the flags of the logger that Heapster and eventer had. They are taken, so that a command line goes on
// working, and none of them has an effect: each one that asks for something is told so at start.
type glog struct {
	toStderr, alsoToStderr      bool
	verbosity                   int
	threshold, vmodule, dir, at string
	flush                       time.Duration // Heapster's alone
}

func defaultGlog() glog {
	return glog{toStderr: true, threshold: "2", at: ":0", flush: 5 * time.Second}
}

// flags registers what both had.
func (g *glog) flags(fs *pflag.FlagSet) {
	fs.BoolVar(&g.toStderr, "logtostderr", g.toStderr, "accepted: logs go to standard error")
	fs.BoolVar(&g.alsoToStderr, "alsologtostderr", g.alsoToStderr, "accepted: logs go to standard error")
	fs.IntVarP(&g.verbosity, "v", "v", g.verbosity, "accepted and not used: see --log-level")
	fs.StringVar(&g.threshold, "stderrthreshold", g.threshold, "accepted and not used: see --log-level")
	fs.StringVar(&g.vmodule, "vmodule", g.vmodule, "accepted and not used: there is one log level for all")
	fs.StringVar(&g.dir, "log_dir", g.dir, "accepted and not used: logs go to standard error")
	fs.StringVar(&g.at, "log_backtrace_at", g.at, "accepted and not used: there are no stack traces in logs")
}

// warnings say which flags were given that ask for what there is not.
func (g *glog) warnings() (all []string) {
	none := defaultGlog()
	for _, f := range []struct {
		given   bool
		flag    string
		instead string
	}{
		{!g.toStderr, "logtostderr=false", "logs go to standard error"},
		{g.verbosity != none.verbosity, "v", "--log-level says how much is logged"},
		{g.threshold != none.threshold, "stderrthreshold", "--log-level says how much is logged"},
		{g.vmodule != none.vmodule, "vmodule", "there is one --log-level for all"},
		{g.dir != none.dir, "log-dir", "logs go to standard error"},
		{g.at != none.at, "log-backtrace-at", "there are no stack traces in logs"},
		{g.flush != none.flush, "log-flush-frequency", "logs are not buffered"},
	} {
		if f.given {
			all = append(all, fmt.Sprintf("--%s means nothing any more: %s", f.flag, f.instead))
		}
	}
	return all
}
