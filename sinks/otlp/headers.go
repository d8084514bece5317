package otlp

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/heapstream/heapstream/sinks/sink"
)

// headers are what requests say of us beside their bodies.
type headers struct {
	fixed   http.Header
	token   func() (string, error)
	file    func() (string, error)
	secrets sink.Secrets // of the last call of now
}

// mine are headers that the transports set.
var mine = []string{"Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection", "Host", "Te", "Trailer", "Upgrade"}

// readHeaders reads the options about headers.
func readHeaders(o *sink.Options) *headers {
	h := &headers{fixed: http.Header{}, token: o.Fresh("token"), file: o.FreshFile("headers_file")}
	for _, one := range o.All("header") {
		name, value, err := parseHeader(one)
		switch n := strings.ToLower(name); {
		case err != nil:
			o.Complain("`header`: %w", err)
		case strings.Contains(n, "auth"), strings.Contains(n, "token"), strings.Contains(n, "key"), strings.Contains(n, "secret"), strings.Contains(n, "password"):
			o.Complain("`header` %s looks like a secret, and options are shown: give `token_file` or `headers_file`", name)
		default:
			h.fixed.Add(name, value)
		}
	}
	if _, err := h.now(); err != nil {
		o.Complain("%w", err)
	}
	return h
}

// parseHeader takes "Name: value" apart.
func parseHeader(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	name, value = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)), strings.TrimSpace(value)
	switch {
	case !ok || !httpguts.ValidHeaderFieldName(name):
		return "", "", errors.New("want Name:value, such as X-Scope-OrgID:team") // the line may be a secret
	case !httpguts.ValidHeaderFieldValue(value):
		return "", "", fmt.Errorf("value of %s has characters that no header can have", name)
	}
	for _, m := range mine {
		if name == m {
			return "", "", fmt.Errorf("%s is set by this sink", name)
		}
	}
	return name, value, nil
}

// now are the headers of a request, with secrets as their files have them at the moment.
func (h *headers) now() (http.Header, error) {
	all := h.fixed.Clone()
	h.secrets = h.secrets[:0]
	lines, err := h.file()
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, err := parseHeader(line)
		if err != nil {
			return nil, fmt.Errorf("`headers_file`: %w", err)
		}
		all.Add(name, value)
		if len(value) >= 4 {
			h.secrets = append(h.secrets, value)
		}
	}
	token, err := h.token()
	if err != nil {
		return nil, err
	}
	if token != "" {
		if !httpguts.ValidHeaderFieldValue(token) {
			return nil, errors.New("`token` has characters that no header can have")
		}
		all.Set("Authorization", "Bearer "+token)
		h.secrets = append(h.secrets, token)
	}
	return all, nil
}

// hidden is a text without our secrets, which a receiver may have repeated.
func (h *headers) hidden(text string) string { return h.secrets.Hide(text) }

// hide is an error without our secrets.
func (h *headers) hide(err error) error {
	if hidden := h.hidden(err.Error()); hidden != err.Error() {
		return sink.RetryAfter(sink.RetryAfterOf(err), errors.New(hidden))
	}
	return err
}
