package daemon

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// envPrefix begins the environment twin of every flag.
const envPrefix = "HEAPSTREAM_"

// invocation is a command together with what it was called with.
type invocation struct {
	cmd    *Command
	path   string // the words that lead to it: "heapstream bus apply"
	config Config

	own     *pflag.FlagSet // the command's own flags
	process *pflag.FlagSet // those that every command has
	all     *pflag.FlagSet
	args    []string

	help, version bool
}

func newInvocation(cmd *Command, path string) *invocation {
	i := &invocation{cmd: cmd, path: path, config: DefaultConfig()}
	if cmd.Process != nil {
		i.config = *cmd.Process
	}
	i.own, i.process, i.all = newFlagSet(path), newFlagSet(path), newFlagSet(path)
	if cmd.Flags != nil {
		cmd.Flags(i.own)
	}
	if cmd.OneShot {
		i.config.logFlags(i.process)
	} else {
		i.config.Flags(i.process)
	}
	i.process.BoolVarP(&i.help, "help", "h", false, "print this text and exit")
	i.process.BoolVar(&i.version, "version", false, "print version and commit and exit")
	i.own.VisitAll(i.all.AddFlag)
	i.process.VisitAll(i.all.AddFlag) // panics if the command took a name that every command has
	return i
}

// newFlagSet returns an empty set that takes '_' for '-' in names.
func newFlagSet(name string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	fs.SortFlags = false // in the order of registration, which is the order of explaining
	fs.Usage = func() {}
	return fs
}

// envName is the environment twin of a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// parse reads the command line and, for flags that are not on it, the environment. known are the twins of
// all flags of the program: a variable that only a sibling command understands is not a mistake, one
// that none understands is.
func (i *invocation) parse(args, environ []string, known []string) error {
	if i.cmd.SingleDash {
		args = i.doubleDashes(args)
	}
	if err := i.all.Parse(args); err != nil {
		return i.explain(err)
	}
	if i.help || i.version {
		return nil
	}
	i.args = i.all.Args()
	var errs []error
	if len(i.args) > 0 && i.cmd.Args == "" {
		errs = append(errs, i.unexpected(i.args[0]))
	}
	return errors.Join(append(errs, i.parseEnviron(environ, known)...)...)
}

// doubleDashes gives every long name the two dashes that pflag wants. Values that begin with a dash stay what they
// are, and so do names of one letter.
func (i *invocation) doubleDashes(args []string) []string {
	out := make([]string, 0, len(args))
	for n := 0; n < len(args); n++ {
		name := strings.TrimPrefix(strings.TrimPrefix(args[n], "-"), "-")
		if name == "" || name == args[n] { // "-", "--", or no flag
			if args[n] == "--" {
				return append(out, args[n:]...)
			}
			out = append(out, args[n])
			continue
		}
		key, _, inOne := strings.Cut(name, "=")
		flag, dashes := i.all.Lookup(key), "--"
		if len(key) == 1 {
			if short := i.all.ShorthandLookup(key); short != nil {
				flag, dashes = short, "-"
			}
		}
		out = append(out, dashes+name)
		if flag != nil && flag.NoOptDefVal == "" && !inOne && n+1 < len(args) {
			n++
			out = append(out, args[n])
		}
	}
	return out
}

// parseEnviron sets every flag that was not given from its twin, if that is set and not empty.
func (i *invocation) parseEnviron(environ, known []string) (errs []error) {
	values := map[string]string{}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, envPrefix) && value != "" && !isServiceLink(name, value) {
			values[name] = value
		}
	}
	i.all.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := values[name]
		if !ok || f.Changed {
			return
		}
		for _, v := range environValues(f, value) {
			if err := i.all.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, cause(err)))
			}
		}
	})
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(known, name) {
			errs = append(errs, fmt.Errorf("unknown environment variable %s%s", name, didYouMean(Nearest(name, known), "")))
		}
	}
	return errs
}

// environValues splits the value of a flag that may be given several times: one value a line. Such a flag's
// value is a pflag.SliceValue.
func environValues(f *pflag.Flag, value string) []string {
	if _, ok := f.Value.(pflag.SliceValue); !ok {
		return []string{value}
	}
	var values []string
	for line := range strings.Lines(value) {
		if line = strings.TrimSpace(line); line != "" {
			values = append(values, line)
		}
	}
	return values
}

// serviceLink matches what Kubernetes puts into the environment of every pod for a Service named
// "heapstream" or "heapstream-…".
var serviceLink = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_[A-Z0-9_]+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$`)

func isServiceLink(name, value string) bool {
	if serviceLink.MatchString(name) {
		return true
	}
	scheme, _, ok := strings.Cut(value, "://")
	return ok && strings.HasSuffix(name, "_PORT") && (scheme == "tcp" || scheme == "udp" || scheme == "sctp")
}

// validate collects the complaints of the process's configuration and of the command.
func (i *invocation) validate() error {
	if i.cmd.Run == nil {
		names := make([]string, len(i.cmd.Commands))
		for n, c := range i.cmd.Commands {
			names[n] = c.Name
		}
		return fmt.Errorf("expects a command: %s", strings.Join(names, ", "))
	}
	errs := []error{i.config.Validate()}
	if i.cmd.Validate != nil {
		errs = append(errs, i.cmd.Validate())
	}
	return errors.Join(errs...)
}

// explain turns an error of pflag into ours: without the value, which may be a secret, and with the name
// that was probably meant.
func (i *invocation) explain(err error) error {
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		given, _, _ := strings.Cut(unknown.GetSpecifiedShortnames(), "=")
		return fmt.Errorf("unknown flag -%s%s", given, didYouMean(Nearest(given, i.flagNames()), "--"))
	case errors.As(err, &unknown):
		given := unknown.GetSpecifiedName()
		return fmt.Errorf("unknown flag --%s%s", given, didYouMean(Nearest(strings.ReplaceAll(given, "_", "-"), i.flagNames()), "--"))
	case errors.As(err, &invalid):
		return fmt.Errorf("flag --%s: %w", invalid.GetFlag().Name, cause(err))
	}
	return err
}

// cause is why a value was refused, without the value.
func cause(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && invalid.Unwrap() != nil {
		return invalid.Unwrap()
	}
	return err
}

func (i *invocation) unexpected(arg string) error {
	var names []string
	for _, c := range i.cmd.Commands {
		names = append(names, c.Name)
	}
	return fmt.Errorf("unexpected argument %q%s", arg, didYouMean(Nearest(arg, names), ""))
}

func (i *invocation) flagNames() (names []string) {
	i.all.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
}

// environment returns the environment twins of all flags of the command and its subcommands.
func (c *Command) environment() []string {
	var names []string
	newInvocation(c, c.Name).all.VisitAll(func(f *pflag.Flag) { names = append(names, envName(f.Name)) })
	for _, s := range c.Commands {
		names = append(names, s.environment()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func didYouMean(name, prefix string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, name)
}

// Nearest returns the name that was probably meant by given: the one that takes the fewest edits, without
// regard to case, or "" if none is near. Names of more than 64 bytes are near nothing.
func Nearest(given string, names []string) string {
	best, least := "", max(2, len(given)/3)+1
	for _, name := range names {
		if d := distance(strings.ToLower(given), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance is the Levenshtein distance of a and b in bytes.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
