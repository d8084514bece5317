package kubelet

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// manyFaced is a kubelet whose answers are set between two requests.
type manyFaced struct {
	mu      sync.Mutex     // held by whoever uses what follows
	status  map[string]int // by path; 0: 200
	process string
	asked   []string
	bodies  []string
}

func (k *manyFaced) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, r.Method+" "+r.URL.Path)
	body, _ := io.ReadAll(r.Body)
	k.bodies = append(k.bodies, string(body))
	if k.process != "" && strings.HasPrefix(r.URL.Path, "/metrics/") {
		w.Header().Set("Process-Start-Time-Unix", k.process)
	}
	if status := k.status[r.URL.Path]; status != 0 {
		w.WriteHeader(status)
		return
	}
	_, _ = io.WriteString(w, r.Header.Get("Accept"))
}

func TestSourceIsReadAsTheKubeletHasIt(t *testing.T) {
	k := &manyFaced{status: map[string]int{}}
	server := httptest.NewServer(k)
	defer server.Close()
	u, _ := url.Parse(server.URL)
	port, _ := strconv.Atoi(u.Port())
	c := client(t, Config{})
	k.mu.Lock() // but while it is asked
	defer k.mu.Unlock()
	read := func(s Source, m *Memory) (form Form, asked []string, err error) {
		t.Helper()
		k.asked, k.bodies = nil, nil
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		k.mu.Unlock()
		err = c.Read(ctx, Target{Node: "n", Host: "127.0.0.1", Port: port}, s, m, func(f Form, _ []byte) error { form = f; return nil })
		k.mu.Lock()
		return form, k.asked, err
	}
	want := func(m *Memory, form Form, asked ...string) {
		t.Helper()
		got, list, err := read(CAdvisorSource, m)
		if err != nil || got != form || !slices.Equal(list, asked) {
			t.Errorf("form %d after %q (%v), want %d after %q", got, list, err, form, asked)
		}
	}
	const post, get = "POST /stats/container/", "GET /metrics/cadvisor"

	for source, path := range map[Source]string{SummarySource: "GET /stats/summary", ResourceSource: "GET /metrics/resource"} {
		if _, asked, err := read(source, &Memory{}); err != nil || !slices.Equal(asked, []string{path}) {
			t.Errorf("%s: %q, %v", source, asked, err)
		}
	}
	var m Memory
	want(&m, FormContainerStats, post) // a kubelet of old
	if k.bodies[0] != requests[FormContainerStats].body || m.Fallback != nil {
		t.Errorf("asked with %q, %+v", k.bodies, m)
	}
	for _, status := range []int{http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusForbidden} {
		k.status["/stats/container/"] = status
		m = Memory{}
		want(&m, FormCAdvisor, post, get)
		want(&m, FormCAdvisor, get) // remembered
		if m.Fallback == nil || m.Fallback.Status != status || m.Fallback.Node != "n" {
			t.Errorf("fell back because of %+v", m.Fallback)
		}
	}
	// What says nothing about whether it has it is an error, and the next scrape asks the same again.
	for _, status := range []int{http.StatusUnauthorized, http.StatusInternalServerError} {
		k.status["/stats/container/"] = status
		m = Memory{}
		for range 2 {
			if _, asked, err := read(CAdvisorSource, &m); err == nil || !slices.Equal(asked, []string{post}) || m.Fallback != nil {
				t.Errorf("status %d: %q, %v, %+v", status, asked, err, m)
			}
		}
	}
	// It starts anew: at the next scrape it is seen to be another, at the one after it is asked.
	k.status["/stats/container/"], k.process, m = http.StatusNotFound, "100", Memory{}
	want(&m, FormCAdvisor, post, get)
	want(&m, FormCAdvisor, get)
	k.process = "200"
	want(&m, FormCAdvisor, get)
	want(&m, FormCAdvisor, post, get)
	want(&m, FormCAdvisor, get)
	k.process = "300"
	delete(k.status, "/stats/container/")
	want(&m, FormCAdvisor, get)
	want(&m, FormContainerStats, post)
	// After an hour it is asked without that.
	k.status["/stats/container/"], k.process, m = http.StatusNotFound, "", Memory{}
	want(&m, FormCAdvisor, post, get)
	m.since = m.since.Add(-retryAfter)
	want(&m, FormCAdvisor, post, get)
	want(&m, FormCAdvisor, get)

	// What is missing is named as it would be for the summary.
	for status, words := range map[int]string{http.StatusForbidden: "grant our ServiceAccount the verb get on nodes/metrics", http.StatusNotFound: "/metrics/cadvisor"} {
		k.status["/metrics/cadvisor"] = status
		_, _, err := read(CAdvisorSource, &Memory{})
		var e *Error
		if !errors.As(err, &e) || e.Status != status || !strings.Contains(e.Error(), words) {
			t.Errorf("status %d: %v", status, err)
		}
	}
	k.status["/metrics/resource"] = http.StatusForbidden
	if _, _, err := read(ResourceSource, &Memory{}); err == nil || !strings.Contains(err.Error(), "nodes/metrics") {
		t.Error(err)
	}
}
