package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Health is what a process says about itself: alive as long as it answers, ready when every check passes.
// It is safe for use by several goroutines.
type Health struct {
	mu       sync.Mutex
	checks   []check // sorted by name
	stopping bool
}

type check struct {
	name string
	ask  func() error
}

// NewHealth returns a Health without checks, which is not ready.
func NewHealth() *Health { return &Health{} }

// Ready adds a check, replacing the one of that name. It returns nil when this part of the process can
// do its work, otherwise an error that says what is missing. It is called for every question, by several
// goroutines at once, and must return at once. The process is not ready before it has a check.
//
// Register checks in New, before anything is waited for: the process is ready as soon as all checks that
// exist pass.
func (h *Health) Ready(name string, ask func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, found := slices.BinarySearchFunc(h.checks, name, func(c check, name string) int {
		return strings.Compare(c.name, name)
	})
	if found {
		h.checks[i].ask = ask
		return
	}
	h.checks = slices.Insert(h.checks, i, check{name, ask})
}

// Check returns nil if the process is ready, otherwise what is missing, one error a line, joined.
func (h *Health) Check() error {
	_, err := h.report()
	return err
}

func (h *Health) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = true
}

// report asks every check and returns a line about each.
func (h *Health) report() (lines []string, err error) {
	h.mu.Lock()
	checks, stopping := slices.Clone(h.checks), h.stopping
	h.mu.Unlock()

	var missing []error
	miss := func(name string, err error) {
		lines = append(lines, fmt.Sprintf("[-] %s: %v", name, err))
		missing = append(missing, fmt.Errorf("%s: %w", name, err))
	}
	if stopping {
		miss("process", errStopping)
	}
	if len(checks) == 0 {
		miss("process", errStarting)
	}
	for _, c := range checks { // without the lock: a check may take locks of its own
		if err := c.ask(); err != nil {
			miss(c.name, err)
			continue
		}
		lines = append(lines, "[+] "+c.name)
	}
	return lines, errors.Join(missing...)
}

var (
	errStarting = errors.New("starting")
	errStopping = errors.New("stopping")
)

// ServeLive answers 200 "ok": the process is able to answer.
func (h *Health) ServeLive(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, "ok\n")
}

// ServeReady answers 200 if the process is ready and 503 if not, with a line about each check: which one
// is not ready, and why.
func (h *Health) ServeReady(w http.ResponseWriter, _ *http.Request) {
	lines, err := h.report()
	code, head := http.StatusOK, "ready"
	if err != nil {
		code, head = http.StatusServiceUnavailable, "not ready"
	}
	answer(w, code, strings.Join(append([]string{head}, lines...), "\n")+"\n")
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	fmt.Fprint(w, text) // a reader that has gone away needs no answer
}
