package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestHelpIsGolden(t *testing.T) {
	check := func(golden, text string) {
		t.Helper()
		path := filepath.Join("testdata", golden)
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text != string(want) {
			t.Errorf("help is\n%s\nwant %s:\n%s", text, path, want)
		}
	}
	service := program(new(settings), nil)
	service.OneShot, service.Run = false, func(context.Context, Deps) error { return nil }
	check("help.golden", HelpText(service))

	var stdout, stderr bytes.Buffer
	if code := Execute(t.Context(), service, []string{"bus", "apply", "--help"}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
		t.Errorf("--help exits with %d and prints %q to stderr", code, stderr.String())
	}
	check("help-bus-apply.golden", stdout.String())
}

func TestVersionGoesToStdout(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := Execute(t.Context(), program(new(settings), nil), []string{"--version"}, &stdout, &stderr)
	lines := strings.Split(stdout.String(), "\n")
	if code != 0 || stderr.Len() > 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], "version: ") || !strings.HasPrefix(lines[1], "commit: ") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout.String(), stderr.String())
	}
}

func TestFlagsAndEnvironment(t *testing.T) {
	check := func(what string, args, environ []string, want settings) {
		t.Helper()
		var got settings
		var stderr bytes.Buffer
		cmd := program(&got, func(context.Context, Deps) error { return nil })
		if code := cmd.execute(t.Context(), process{args: args, environ: environ, stdout: io.Discard, stderr: &stderr}); code != 0 {
			t.Errorf("%s: exit code %d: %s", what, code, stderr.String())
		}
		if got.BusURL != want.BusURL || got.Resolution != want.Resolution || !slices.Equal(got.Sinks, want.Sinks) {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	const bus = "nats://127.0.0.1:4222"
	check("defaults", nil, nil, settings{bus, time.Minute, nil})
	check("'_' for '-'", []string{"--metric_resolution=5s"}, nil, settings{bus, 5 * time.Second, nil})
	check("environment", nil, []string{"HEAPSTREAM_METRIC_RESOLUTION=15s", "HOME=/"}, settings{bus, 15 * time.Second, nil})
	check("a flag wins", []string{"--bus-url", "nats://flag"}, []string{"HEAPSTREAM_BUS_URL=nats://env"},
		settings{"nats://flag", time.Minute, nil})
	check("an empty variable is none", nil, []string{"HEAPSTREAM_BUS_URL="}, settings{bus, time.Minute, nil})
	check("one value a line", nil, []string{"HEAPSTREAM_SINK=log\n\n influxdb:http://db?a=b,c\n"},
		settings{bus, time.Minute, []string{"log", "influxdb:http://db?a=b,c"}})
	check("variables of a subcommand", nil, []string{"HEAPSTREAM_REPLICAS=3"}, settings{bus, time.Minute, nil})
	check("variables that Kubernetes sets for a Service", nil, []string{
		"HEAPSTREAM_SERVICE_HOST=10.0.0.1", "HEAPSTREAM_SERVICE_PORT=80", "HEAPSTREAM_SERVICE_PORT_HTTP=80", "HEAPSTREAM_PORT=tcp://10.0.0.1:80",
		"HEAPSTREAM_PORT_80_TCP=tcp://10.0.0.1:80", "HEAPSTREAM_PORT_80_TCP_PROTO=tcp", "HEAPSTREAM_PORT_80_TCP_ADDR=10.0.0.1",
	}, settings{bus, time.Minute, nil})
}

// As Go's own package flag takes them: one dash or two, a value behind it or in it.
func TestOneDashBeginsALongNameWhereWished(t *testing.T) {
	check := func(code int, said string, want settings, args ...string) {
		t.Helper()
		var got settings
		var stdout, stderr bytes.Buffer
		cmd := program(&got, func(context.Context, Deps) error { return nil })
		cmd.SingleDash = true
		if c := cmd.execute(t.Context(), process{args: args, stdout: &stdout, stderr: &stderr}); c != code || !strings.Contains(stdout.String()+stderr.String(), said) {
			t.Errorf("%q: exit code %d, want %d with %q: %s", args, c, code, said, stderr.String())
		}
		if code == 0 && said == "" && (got.BusURL != want.BusURL || got.Resolution != want.Resolution || !slices.Equal(got.Sinks, want.Sinks)) {
			t.Errorf("%q: got %+v, want %+v", args, got, want)
		}
	}
	const bus = "nats://127.0.0.1:4222"
	check(0, "", settings{bus, 5 * time.Second, []string{"log", "gcl"}}, "-sink=log", "--sink", "gcl", "-metric_resolution", "5s")
	check(0, "", settings{"-x", time.Minute, []string{"--log-level=loud"}}, "-sink", "--log-level=loud", "-bus-url=-x", "-log-level=debug")
	check(0, "Usage:", settings{}, "-h")
	check(0, "Usage:", settings{}, "-help")
	check(0, "version: ", settings{}, "-version")
	check(0, "version: ", settings{}, "-version=true")
	check(2, "unknown flag --snik (did you mean --sink?)", settings{}, "-snik=log")
	check(2, "flag --metric-resolution: ", settings{}, "-metric-resolution", "-5")
	check(2, "flag needs an argument: --sink", settings{}, "-sink")
	check(2, `unexpected argument "-sink=log"`, settings{}, "-bus-url=x", "--", "-sink=log")
	check(2, `unexpected argument "-"`, settings{}, "-")
}

func TestWrongCommandLineIsRefused(t *testing.T) {
	check := func(args, environ []string, complaints ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		ran := false
		cmd := program(new(settings), func(context.Context, Deps) error { ran = true; return nil })
		cmd.Validate = func() error {
			if slices.Contains(args, "--bus-url=bad") {
				return errors.Join(errors.New("--bus-url is bad"), errors.New("--sink is missing"))
			}
			return nil
		}
		code := cmd.execute(t.Context(), process{args: args, environ: environ, stdout: &stdout, stderr: &stderr})
		if code != 2 || ran || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d, ran %t, stdout %q", args, code, ran, stdout.String())
		}
		got := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		if got = got[:len(got)-1]; !slices.Equal(got, complaints) { // the last one points to --help
			t.Errorf("%q %q complains\n%s\nwant\n%s", args, environ, strings.Join(got, "\n"), strings.Join(complaints, "\n"))
		}
	}
	check([]string{"--bus-rul=x"}, nil, "sinks: unknown flag --bus-rul (did you mean --bus-url?)")
	check([]string{"--metric_resolutoin=x"}, nil, "sinks: unknown flag --metric_resolutoin (did you mean --metric-resolution?)")
	check([]string{"--quite-something-else"}, nil, "sinks: unknown flag --quite-something-else")
	check([]string{"-sink=log"}, nil, "sinks: unknown flag -sink (did you mean --sink?)")
	check([]string{"--metric-resolution=often"}, nil, `sinks: flag --metric-resolution: time: invalid duration "often"`)
	check([]string{"--bus-url"}, nil, "sinks: flag needs an argument: --bus-url")
	check([]string{"bsu"}, nil, `sinks: unexpected argument "bsu" (did you mean bus?)`)
	check([]string{"bus", "aply"}, nil, `sinks bus: unexpected argument "aply" (did you mean apply?)`)
	check([]string{"bus"}, nil, "sinks bus: expects a command: apply")
	// all complaints at once
	check([]string{"--bus-url=bad", "--log-level=loud", "--log-format=xml"}, nil,
		`sinks: --log-level is "loud"; it must be debug, info, warn or error`,
		`sinks: --log-format is "xml"; it must be text or json`,
		"sinks: --bus-url is bad", "sinks: --sink is missing")
	check([]string{"x"}, []string{"HEAPSTREAM_BUS_ULR=x", "HEAPSTREAM_METRIC_RESOLUTION=1"},
		`sinks: unexpected argument "x"`,
		`sinks: environment variable HEAPSTREAM_METRIC_RESOLUTION: time: missing unit in duration "1"`,
		"sinks: unknown environment variable HEAPSTREAM_BUS_ULR (did you mean HEAPSTREAM_BUS_URL?)")
}

func TestServiceValidatesTelemetryAddress(t *testing.T) {
	for address, valid := range map[string]bool{"": true, ":8080": true, "[::1]:0": true, "8080": false, "host": false, ":http": false, ":65536": false} {
		cfg := DefaultConfig()
		cfg.TelemetryListen = address
		if err := cfg.Validate(); (err == nil) != valid {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

// service runs a command and gives its telemetry to fn; the command ends when fn has returned.
func service(t *testing.T, args []string, prepare func(Deps), fn func(address string)) (code int, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan string, 1)
	cmd := &Command{Name: "svc", Short: "a service", Run: func(ctx context.Context, d Deps) error {
		if prepare != nil {
			prepare(d)
		}
		up <- d.Telemetry
		<-ctx.Done()
		return nil
	}}
	var log bytes.Buffer
	done := make(chan int)
	go func() {
		done <- Execute(ctx, cmd, append([]string{"--telemetry-listen=127.0.0.1:0"}, args...), io.Discard, &log)
	}()
	select {
	case address := <-up:
		fn(address)
	case code := <-done:
		t.Fatalf("svc ended at once with %d: %s", code, log.String())
	}
	cancel()
	http.DefaultClient.CloseIdleConnections()
	return <-done, log.String()
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServiceAnswersProbesAndMetrics(t *testing.T) {
	var health *Health
	code, log := service(t, nil, func(d Deps) { health = d.Health }, func(address string) {
		check := func(path string, code int, want string) {
			t.Helper()
			if got, body := get(t, "http://"+address+path); got != code || body != want {
				t.Errorf("%s answers %d %q, want %d %q", path, got, body, code, want)
			}
		}
		check("/healthz", 200, "ok\n")
		check("/readyz", 503, "not ready\n[-] process: starting\n")
		health.Ready("view", func() error { return errors.New("no rollup yet of cluster \"prod\"") })
		health.Ready("bus", func() error { return nil })
		check("/readyz", 503, "not ready\n[+] bus\n[-] view: no rollup yet of cluster \"prod\"\n")
		health.Ready("view", func() error { return nil })
		check("/readyz", 200, "ready\n[+] bus\n[+] view\n")
		if err := health.Check(); err != nil {
			t.Errorf("ready, but Check says %v", err)
		}
		_, metrics := get(t, "http://"+address+"/metrics")
		for _, want := range []string{"heapstream_build_info{", "go_goroutines ", "process_start_time_seconds "} {
			if !strings.Contains(metrics, want) {
				t.Errorf("/metrics has no %s", want)
			}
		}
		if code, _ := get(t, "http://"+address+"/debug/pprof/"); code != 404 {
			t.Errorf("pprof answers %d without --telemetry-profiling", code)
		}
	})
	if code != 0 || !strings.Contains(log, "svc starts") || !strings.Contains(log, "svc stops") {
		t.Errorf("exit code %d, log:\n%s", code, log)
	}
	if _, err := health.report(); err == nil || !strings.Contains(err.Error(), "process: stopping") {
		t.Errorf("a process that stops says it is ready: %v", err)
	}
}

func TestProfilingServesPprof(t *testing.T) {
	service(t, []string{"--telemetry-profiling"}, nil, func(address string) {
		if code, body := get(t, "http://"+address+"/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
			t.Errorf("pprof answers %d %q", code, body)
		}
	})
}

func TestHealthcheckAsksTheProcess(t *testing.T) {
	var health *Health
	service(t, nil, func(d Deps) { health = d.Health }, func(address string) {
		ask := func(environ []string, args ...string) (int, string) {
			var out bytes.Buffer
			cmd := &Command{Name: "svc", Run: func(context.Context, Deps) error { return nil }}
			code := cmd.execute(t.Context(), process{args: append([]string{"healthcheck"}, args...), environ: environ, stdout: &out, stderr: &out})
			return code, out.String()
		}
		if code, out := ask(nil, "http://"+address+"/readyz"); code != 1 || !strings.Contains(out, "[-] process: starting") {
			t.Errorf("not ready: exit code %d, %s", code, out)
		}
		health.Ready("bus", func() error { return nil })
		if code, out := ask(nil, "http://"+address+"/readyz"); code != 0 || out != "ready\n[+] bus\n" {
			t.Errorf("ready: exit code %d, %s", code, out)
		}
		if code, out := ask([]string{"HEAPSTREAM_TELEMETRY_LISTEN=" + address}); code != 0 {
			t.Errorf("address from the environment: exit code %d, %s", code, out)
		}
		if code, out := ask(nil, "localhost"); code != 1 || !strings.Contains(out, "no URL") {
			t.Errorf("no URL: exit code %d, %s", code, out)
		}
	})
}

func TestFailureAndEarlyEndExitWith1(t *testing.T) {
	for want, result := range map[string]error{"the bus is away": errors.New("the bus is away"), "ended although nobody asked": nil} {
		var stderr bytes.Buffer
		cmd := &Command{Name: "svc", Run: func(context.Context, Deps) error { return result }}
		if code := Execute(t.Context(), cmd, []string{"--telemetry-listen=", "--log-format=json"}, io.Discard, &stderr); code != 1 {
			t.Errorf("exit code %d", code)
		}
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		var last map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
			t.Fatal(err)
		}
		if cause, _ := last["err"].(string); last["level"] != "ERROR" || !strings.Contains(cause, want) {
			t.Errorf("logged %v, want %q", last, want)
		}
	}
}

// TestSignals runs this test binary as a program of its own.
func TestSignals(t *testing.T) {
	run := func(kind string) (*exec.Cmd, *bufio.Reader) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asProgram+"="+kind)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, bufio.NewReader(out)
	}
	expect := func(r *bufio.Reader, want string) {
		t.Helper()
		if line, err := r.ReadString('\n'); line != want+"\n" {
			t.Fatalf("program says %q (%v), want %q", line, err, want)
		}
	}

	cmd, out := run("polite")
	expect(out, "working")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expect(out, "told to stop")
	if err := cmd.Wait(); err != nil {
		t.Errorf("stopped by one signal: %v", err)
	}

	cmd, out = run("deaf")
	expect(out, "working")
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	expect(out, "told to stop")
	// The default is restored just after the context has ended; until it is, a signal is swallowed.
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
				_ = cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	_, _ = io.Copy(io.Discard, out)
	err := cmd.Wait()
	close(ended)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("a second signal does not kill: %v", err)
	}
}
