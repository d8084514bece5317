package post

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/sinks/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T, h http.HandlerFunc) (*Client, string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	target, err := sink.ParseTarget("test")
	if err != nil {
		t.Fatal(err)
	}
	c := New("Test at x", target.Options().HTTP())
	t.Cleanup(c.Close)
	return c, s.URL
}

func TestFailuresSayWhatToDo(t *testing.T) {
	check := func(answer http.HandlerFunc, wants ...string) error {
		t.Helper()
		c, address := serve(t, answer)
		a, err := c.Do(t.Context(), http.MethodPost, address, nil, []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		err = c.Failure("write to", a, "", "`user` and `pw`")
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		return err
	}
	says := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, code) }
	}
	check(says(500, "out of\nmemory"), "write to Test at x: out of memory (status 500)")
	check(says(401, ""), "status 401 Unauthorized (check `user` and `pw`)")
	check(says(404, "no"), "is the address right?")
	check(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://other/api?token=secret")
		w.WriteHeader(307)
	}, `redirects to "https://other/api"`)
	err := check(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(429)
	})
	if got := sink.RetryAfterOf(err); got != 7*time.Second {
		t.Errorf("wait %s, want 7s", got)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	c, address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		page := make([]byte, 1<<20)
		for {
			if _, err := w.Write(page); err != nil {
				return
			}
		}
	})
	if _, err := c.Do(t.Context(), http.MethodGet, address, nil, nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Fatalf("got %v of an endless answer", err)
	}
}

func TestErrorsDoNotRepeatTheAddress(t *testing.T) {
	c, address := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Do(ctx, http.MethodGet, address+"/?key=hunter2", nil, nil)
	if !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "no answer in time") {
		t.Fatalf("got %v", err)
	}
	if _, err := c.Do(t.Context(), http.MethodGet, "http://h:1 2/?key=hunter2", nil, nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Fatalf("got %v", err)
	}
}

// TestBodiesAreNotReadAfterwards writes over a body as soon as Do has returned, while the server has not read it:
// for the race detector.
func TestBodiesAreNotReadAfterwards(t *testing.T) {
	release := make(chan struct{})
	c, address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Refuse") != "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		<-release
	})
	defer close(release)
	body := make([]byte, 32<<20)
	for i := range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		header := http.Header{}
		if i%2 == 0 {
			header.Set("Refuse", "now")
		}
		if _, err := c.Do(ctx, http.MethodPost, address, header, body); err == nil && i%2 == 1 {
			t.Error("no error of a request that was not answered")
		}
		cancel()
		for j := range body {
			body[j] = byte(i)
		}
	}
}
