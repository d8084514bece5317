// Package fleet runs our programs as processes of their own: starts, kills and starts them again, and asks the kernel
// what they cost. CPU time and memory are the kernel's own accounting of each process, so what else the machine does
// shows in waiting times and not in these figures.
//
// Not here: what is measured or proved with them (cmd/benchcluster, soak).
package fleet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Fleet is where programs and what they say are.
type Fleet struct {
	Bin string // directory of the programs
	Dir string // for their logs, one a process: NAME.log

	mu  sync.Mutex
	all []*Process
}

// Process is one program with its arguments, running or not. It may be started again after it was killed; its log goes on.
type Process struct {
	Name      string
	Telemetry string // host:port of /metrics; "" where it has none

	path string
	args []string
	log  string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has been waited for
	starts int
	since  time.Time
}

// Start starts a program under a name of its own.
func (f *Fleet) Start(name, program, telemetry string, args ...string) (*Process, error) {
	p := &Process{Name: name, Telemetry: telemetry, path: filepath.Join(f.Bin, program), args: args, log: filepath.Join(f.Dir, name+".log")}
	if err := p.Start(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, p)
	return p, nil
}

// Processes are those that were started, in that order.
func (f *Fleet) Processes() []*Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Process(nil), f.all...)
}

// Stop ends all processes, the last first: by SIGTERM, and after 15 s by SIGKILL, which is an error.
func (f *Fleet) Stop() error {
	var errs []error
	all := f.Processes()
	for i := len(all) - 1; i >= 0; i-- {
		errs = append(errs, all[i].Stop())
	}
	return errors.Join(errs...)
}

// Start starts the process; it must not be running. It dies with this program.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("start %s: it is running", p.Name)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...) //nolint:gosec // our own programs
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w (make build makes it)", p.Name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended, p.since = cmd, ended, time.Now()
	p.starts++
	go func() {
		_ = cmd.Wait() // how it ended is in its log and in who asks
		close(ended)
	}()
	return nil
}

// Starts is how often it was started, and when last.
func (p *Process) Starts() (n int, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts, p.since
}

// Ended tells whether it has ended without having been killed or stopped by us.
func (p *Process) Ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Kill ends it with SIGKILL and waits for it to be gone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL, 0) }

// Stop ends it with SIGTERM and waits for it to be gone; a process that is not running is stopped.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM, 15*time.Second) }

func (p *Process) end(signal syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(signal) // it may have ended by itself
	var err error
	if patience > 0 {
		select {
		case <-p.ended:
		case <-time.After(patience):
			err = fmt.Errorf("%s does not stop within %s and was killed", p.Name, patience)
			_ = p.cmd.Process.Kill()
		}
	}
	<-p.ended
	p.cmd = nil
	return err
}

// Usage is what the kernel says of a process so far, in bytes and since its start.
type Usage struct {
	CPU                       time.Duration // user and system
	Peak, Resident, Anonymous int64
}

// clockTick is the unit of CPU time in /proc, 100 a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// Usage asks the kernel; an error means that the process has ended.
func (p *Process) Usage() (u Usage, err error) {
	p.mu.Lock()
	cmd := p.cmd
	p.mu.Unlock()
	if cmd == nil {
		return u, fmt.Errorf("%s is not running", p.Name)
	}
	proc := fmt.Sprintf("/proc/%d/", cmd.Process.Pid)
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		return u, fmt.Errorf("%s has ended: %w", p.Name, err)
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return u, fmt.Errorf("%sstat has %d fields", proc, len(fields))
	}
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return u, fmt.Errorf("%sstat: %w", proc, err)
		}
		u.CPU += time.Duration(n) * clockTick
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return u, fmt.Errorf("%s has ended: %w", p.Name, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch key {
		case "VmHWM":
			u.Peak = kib << 10
		case "VmRSS":
			u.Resident = kib << 10
		case "RssAnon":
			u.Anonymous = kib << 10
		}
	}
	return u, lines.Err()
}

// Counters reads the series of the process's /metrics page whose names have the prefix, by name with labels; none
// where there is no answer.
func (p *Process) Counters(ctx context.Context, prefix string) map[string]float64 {
	all := map[string]float64{}
	if p.Telemetry == "" {
		return all
	}
	for line := range strings.Lines(Get(ctx, "http://"+p.Telemetry+"/metrics", 0)) {
		line = strings.TrimSpace(line)
		at := strings.LastIndexByte(line, ' ')
		if at > 0 && strings.HasPrefix(line, prefix) {
			all[line[:at]], _ = strconv.ParseFloat(line[at+1:], 64)
		}
	}
	return all
}

// FreePorts finds ports of 127.0.0.1 that nobody listens on just now, below those that systems give to outgoing
// connections: a process that was killed finds its own free again.
func FreePorts(n int) (ports []int, err error) {
	for range 100 * n {
		port := 10000 + rand.IntN(22000) //nolint:gosec // no secret
		l, busy := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err = busy; busy != nil {
			continue
		}
		defer l.Close()
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("find %d free ports: %w", n, err)
}

// Wait waits, or says why it did not.
func Wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Patience is how long Until waits.
const Patience = 5 * time.Minute

// Until waits until it holds, asking ten times a second; after Patience it gives up and says what did not come.
func Until(ctx context.Context, what string, holds func() bool) error {
	for deadline := time.Now().Add(Patience); !holds(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain until %s", Patience, what)
		}
		if err := Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// maxAnswer bounds what Get reads.
const maxAnswer = 256 << 20

// Get returns the body of a good answer, or "". The answer may take 5 s longer than takes.
func Get(ctx context.Context, url string, takes time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, takes+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}
