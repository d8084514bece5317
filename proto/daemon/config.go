package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Config is what an operator may choose about the process itself.
type Config struct {
	// LogLevel is the least level that is logged: debug, info, warn or error.
	LogLevel string
	// LogFormat is text (key=value) or json, one record a line.
	LogFormat string
	// TelemetryListen is the address ("host:port", ":port") that serves /healthz, /readyz and /metrics;
	// empty serves none of them.
	TelemetryListen string
	// Profiling adds /debug/pprof to that address.
	Profiling bool
}

// DefaultConfig returns what an operator who chooses nothing gets.
func DefaultConfig() Config {
	return Config{LogLevel: "info", LogFormat: "text", TelemetryListen: ":8080"}
}

// Flags registers the flags of the process with their current values as defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.TelemetryListen, "telemetry-listen", c.TelemetryListen,
		"`address` that serves /healthz, /readyz and /metrics; empty for none")
	fs.BoolVar(&c.Profiling, "telemetry-profiling", c.Profiling, "serve /debug/pprof at --telemetry-listen too")
	c.logFlags(fs)
}

func (c *Config) logFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.LogLevel, "log-level", c.LogLevel, "least `level` to log: debug, info, warn, error")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "log `format`: text, json")
}

// Validate returns everything that is wrong with the configuration, joined.
func (c *Config) Validate() error {
	var errs []error
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		errs = append(errs, fmt.Errorf("--log-format is %q; it must be text or json", c.LogFormat))
	}
	if c.TelemetryListen != "" {
		if err := checkListen(c.TelemetryListen); err != nil {
			errs = append(errs, fmt.Errorf("--telemetry-listen is %q; it must be host:port, :port or empty: %w", c.TelemetryListen, err))
		}
	}
	if c.Profiling && c.TelemetryListen == "" {
		errs = append(errs, errors.New("--telemetry-profiling needs --telemetry-listen, which is empty"))
	}
	return errors.Join(errs...)
}

func checkListen(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number up to 65535", port)
	}
	return nil
}

func (c *Config) level() (slog.Level, error) {
	switch strings.ToLower(c.LogLevel) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("--log-level is %q; it must be debug, info, warn or error", c.LogLevel)
}

// Logger returns a logger to w of this level and format. A configuration that is not valid logs text from
// level info on.
func (c *Config) Logger(w io.Writer) *slog.Logger {
	level, _ := c.level()
	options := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
