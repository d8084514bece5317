package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const healthcheckName = "healthcheck"

// maxHealthAnswer is how much of an answer is printed.
const maxHealthAnswer = 4 << 10

// withHealthcheck returns the program with the subcommand "healthcheck" added.
func (c *Command) withHealthcheck() *Command {
	if c.Name == healthcheckName {
		return c
	}
	root := *c
	root.Commands = append(root.Commands[:len(root.Commands):len(root.Commands)], healthcheck(c))
	return &root
}

// Healthcheck returns the subcommand "healthcheck" as a program of its own, for images whose program has no
// such subcommand.
func Healthcheck() *Command { return healthcheck(new(Command)) }

// healthcheck asks an address of a process, by default the /readyz of a process of the same program that
// runs with the same environment. An image built FROM scratch has nothing else to ask with.
func healthcheck(of *Command) *Command {
	cfg := DefaultConfig()
	if of.Process != nil {
		cfg = *of.Process
	}
	timeout := 3 * time.Second
	return &Command{
		Name:    healthcheckName,
		Short:   "ask a running process whether it is ready; exit with 0 if it is",
		Long:    "URL is by default /readyz at the port of --telemetry-listen on this host.",
		Args:    "[URL]",
		OneShot: true,
		Flags: func(fs *pflag.FlagSet) {
			fs.DurationVar(&timeout, "timeout", timeout, "how long to wait for the answer")
			fs.StringVar(&cfg.TelemetryListen, "telemetry-listen", cfg.TelemetryListen, "`address` given to the process that is asked")
		},
		Validate: func() error {
			if timeout <= 0 {
				return fmt.Errorf("--timeout is %s; it must be more than 0", timeout)
			}
			return nil
		},
		Run: func(ctx context.Context, d Deps) error {
			ask, err := healthURL(d.Args, cfg.TelemetryListen)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return askHealth(ctx, ask, d.Stdout)
		},
	}
}

func healthURL(args []string, listen string) (string, error) {
	switch {
	case len(args) > 1:
		return "", fmt.Errorf("one URL expected, %d given", len(args))
	case len(args) == 1:
		u, err := url.Parse(args[0])
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return "", fmt.Errorf("%q is no URL like http://127.0.0.1:8080/readyz", args[0])
		}
		return args[0], nil
	case listen == "":
		return "", errors.New("--telemetry-listen is empty: give the URL to ask")
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--telemetry-listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/readyz", nil
}

func askHealth(ctx context.Context, ask string, stdout io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it is this host that is asked
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealthAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", ask, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s answers %s: %s", ask, resp.Status, strings.TrimSpace(string(body)))
	}
	_, err = stdout.Write(body)
	return err
}
