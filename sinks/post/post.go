// Package post sends the requests of sinks that speak HTTP.
//
// A [Client] gives every request the deadline of its context and reads a bounded part of the answer.
// [Client.Failure] words an answer that is no
// success, with what an operator can do about it; which answers mean a refusal for good is the room's to
// say.
//
// A [Gzip] compresses what is sent.
//
// Not here: what is sent (a package for each destination), when to try again (worker).
package post

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/sinks/sink"
)

// maxAnswer is how much of an answer is read. One that says something of each of a thousand samples has
// some hundred kilobytes.
const maxAnswer = 8 << 20

// Client sends requests to one destination. It is safe for concurrent use.
type Client struct {
	who  string
	http *http.Client
}

// New makes a client of the HTTP client that [sink.Options.HTTP] gives. who names the destination in
// errors ("OpenTSDB at tsdb:4242").
func New(who string, client *http.Client) *Client { return &Client{who: who, http: client} }

// Who is the destination as errors name it.
func (c *Client) Who() string { return c.who }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Answer is what a destination answered.
type Answer struct {
	Code   int
	Status string
	Header http.Header
	Body   []byte

	Trailer http.Header // what came after the body
}

// OK reports whether the answer is one of success.
func (a *Answer) OK() bool { return a.Code >= 200 && a.Code < 300 }

// Do sends a request and reads the answer, whatever its status. An error is passing: nothing is known of
// what the destination made of the request. body is the caller's again when Do returns.
func (c *Client) Do(ctx context.Context, method, address string, header http.Header, body []byte) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return Answer{}, fmt.Errorf("ask %s: %w", c.who, bare(err))
	}
	if body != nil {
		var l lent
		defer l.back()
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return &content{of: &l, r: bytes.NewReader(body)}, nil }
		req.Body = &content{of: &l, r: bytes.NewReader(body)}
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return Answer{}, sink.Reach(c.who, bare(err))
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return Answer{}, sink.Reach(c.who, fmt.Errorf("read its answer: %w", err))
	}
	if len(said) > maxAnswer {
		return Answer{}, fmt.Errorf("ask %s: its answer is longer than %d bytes", c.who, maxAnswer)
	}
	return Answer{Code: resp.StatusCode, Status: resp.Status, Header: resp.Header, Body: said, Trailer: resp.Trailer}, nil
}

// lent is a request's memory, which the transport may still read after its answer or its error is known.
type lent struct {
	mu   sync.Mutex
	over bool
}

// back waits for a read that is under way, and allows no other.
func (l *lent) back() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// content is a reader of a request's memory.
type content struct {
	of *lent
	r  *bytes.Reader
}

// Read reads while the memory is lent.
func (c *content) Read(p []byte) (int, error) {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	if c.of.over {
		return 0, io.ErrClosedPipe
	}
	return c.r.Read(p)
}

// Close does nothing.
func (c *content) Close() error { return nil }

// bare drops method and address from an error of net/http: the address may hold a secret.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Failure words an answer that is no success as a passing error, with what the destination asks to wait.
// reason is what it said, by the room's reading of the body; "" takes the body's beginning. login says
// which options to check where it refuses who we are.
func (c *Client) Failure(what string, a Answer, reason, login string) error {
	if reason == "" {
		reason = sink.Excerpt(a.Body)
	}
	said := "status " + a.Status
	if reason != "" {
		said = fmt.Sprintf("%s (status %d)", reason, a.Code)
	}
	err := fmt.Errorf("%s %s: %s", what, c.who, said)
	switch {
	case (a.Code == http.StatusUnauthorized || a.Code == http.StatusForbidden) && login != "":
		return fmt.Errorf("%w (check %s)", err, login)
	case a.Code == http.StatusNotFound:
		return fmt.Errorf("%w (is the address right?)", err)
	case a.Code >= 300 && a.Code < 400:
		to, _, _ := strings.Cut(a.Header.Get("Location"), "?") // its query may repeat secrets
		return fmt.Errorf("%w (it redirects to %q: give that address)", err, sink.Excerpt([]byte(to)))
	}
	if wait := sink.RetryAfterHeader(a.Header, time.Now()); wait > 0 {
		return sink.RetryAfter(wait, err)
	}
	return err
}

// Nonsense words an answer that a destination of this sort does not give, such as the page of a proxy: a
// passing error.
func (c *Client) Nonsense(what string, a Answer) error {
	return fmt.Errorf("%s %s: it answered %d with %q, which is no answer to that", what, c.who, a.Code, sink.Excerpt(a.Body))
}

// Basic is the value of an Authorization header for a user and a password.
func Basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// Gzip compresses bodies of requests at the level that costs least. It is for one goroutine; its memory serves one body
// after the other.
type Gzip struct{ w *gzip.Writer }

// NewGzip makes one.
func NewGzip() *Gzip {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is one there is
	return &Gzip{w}
}

// Append appends the compressed body to dst.
func (z *Gzip) Append(dst *bytes.Buffer, body []byte) error {
	z.w.Reset(dst)
	if _, err := z.w.Write(body); err != nil {
		return fmt.Errorf("compress request: %w", err)
	}
	if err := z.w.Close(); err != nil {
		return fmt.Errorf("compress request: %w", err)
	}
	return nil
}
