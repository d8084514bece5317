package otlp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// contentType is that of protobuf in OTLP/HTTP.
const contentType = "application/x-protobuf"

// httpTransport is OTLP/HTTP.
type httpTransport struct {
	base   string // address without a slash at its end
	agent  string
	client *post.Client
	zip    *post.Gzip // nil: bodies go as they are
	zipped bytes.Buffer
}

func newHTTP(client *http.Client, secure bool, host, path string, compress bool, version string) *httpTransport {
	u := url.URL{Scheme: "http", Host: host, Path: strings.TrimSuffix(path, "/")}
	if secure {
		u.Scheme = "https"
	}
	t := &httpTransport{base: u.String(), agent: "heapstream/" + version, client: post.New("OTLP receiver at "+host, client)}
	if compress {
		t.zip = post.NewGzip()
	}
	return t
}

func (t *httpTransport) close() error {
	t.client.Close()
	return nil
}

// export sends one request.
func (t *httpTransport) export(ctx context.Context, s signal, header http.Header, body []byte) (answer, error) {
	header = header.Clone()
	header.Set("User-Agent", t.agent)
	header.Set("Content-Type", contentType)
	if t.zip != nil {
		t.zipped.Reset()
		if err := t.zip.Append(&t.zipped, body); err != nil {
			return answer{}, err
		}
		header.Set("Content-Encoding", "gzip")
		body = t.zipped.Bytes()
	}
	a, err := t.client.Do(ctx, http.MethodPost, t.base+s.path, header, body)
	if err != nil {
		return answer{}, err
	}
	reason, ours := statusOf(a)
	switch {
	case a.OK():
		rejected, message, ok := partialSuccess(a)
		if !ok {
			return answer{}, t.client.Nonsense("write to", a)
		}
		return answer{rejected: rejected, reason: message}, nil
	case a.Code == http.StatusRequestEntityTooLarge:
		return answer{tooLarge: true, reason: said(a, reason)}, nil
	case a.Code == http.StatusTooManyRequests, a.Code == http.StatusBadGateway, a.Code == http.StatusServiceUnavailable, a.Code == http.StatusGatewayTimeout,
		a.Code == http.StatusUnauthorized, a.Code == http.StatusForbidden, a.Code == http.StatusNotFound, a.Code == http.StatusMethodNotAllowed,
		a.Code < 400:
		return answer{}, t.client.Failure("write to", a, reason, loginOptions)
	case a.Code == http.StatusBadRequest && !isPage(a), ours, isLate(string(a.Body)): // Prometheus calls a sample that is too old its own error
		return answer{refused: true, reason: said(a, reason)}, nil
	}
	return answer{}, t.client.Failure("write to", a, reason, "")
}

// said words a refusal.
func said(a post.Answer, reason string) string {
	if reason == "" {
		reason = sink.Excerpt(a.Body)
	}
	if reason == "" {
		return "status " + a.Status
	}
	return fmt.Sprintf("%s (status %d)", reason, a.Code)
}

// isPage reports whether an answer is one of a web server or a proxy.
func isPage(a post.Answer) bool {
	return strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") || bytes.HasPrefix(bytes.TrimSpace(a.Body), []byte("<"))
}

// isJSON reports whether an answer is in the other of OTLP's encodings.
func isJSON(a post.Answer) bool {
	return strings.HasPrefix(a.Header.Get("Content-Type"), "application/json")
}

// statusOf reads the message of a google.rpc.Status, the body of answers that are no success, and reports whether
// that is what the body is.
func statusOf(a post.Answer) (message string, ours bool) {
	switch {
	case a.OK():
		return "", false
	case isJSON(a):
		var s struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(a.Body, &s) != nil || s.Message == "" {
			return "", false
		}
		return sink.Excerpt([]byte(s.Message)), true
	case !strings.HasPrefix(a.Header.Get("Content-Type"), contentType):
		return "", false
	}
	ok := fields(a.Body, func(n protowire.Number, _ uint64, text []byte) {
		if n == 2 {
			message = sink.Excerpt(text)
		}
	})
	return message, ok
}

// partialSuccess reads the body of a success: an ExportMetricsServiceResponse, or that of logs, which has the same
// shape. ok is false where it is none.
func partialSuccess(a post.Answer) (rejected int, message string, ok bool) {
	if isJSON(a) {
		var s struct {
			PartialSuccess struct {
				Points  json.Number `json:"rejectedDataPoints"`
				Records json.Number `json:"rejectedLogRecords"`
				Message string      `json:"errorMessage"`
			} `json:"partialSuccess"`
		}
		if json.Unmarshal(a.Body, &s) != nil {
			return 0, "", false
		}
		for _, n := range []json.Number{s.PartialSuccess.Points, s.PartialSuccess.Records} {
			if n != "" {
				if rejected, _ = strconv.Atoi(string(n)); rejected < 0 {
					return 0, "", false
				}
			}
		}
		return rejected, sink.Excerpt([]byte(s.PartialSuccess.Message)), true
	}
	if len(a.Body) > 0 && isPage(a) {
		return 0, "", false
	}
	return partial(a.Body)
}

// partial reads an Export…Response in protobuf.
func partial(body []byte) (rejected int, message string, ok bool) {
	ok = fields(body, func(n protowire.Number, _ uint64, part []byte) {
		if n == 1 && !fields(part, func(n protowire.Number, v uint64, text []byte) {
			switch n {
			case 1:
				rejected = int(min(v, 1<<31)) //nolint:gosec // bounded; a negative one says nothing of any use
			case 2:
				message = sink.Excerpt(text)
			}
		}) {
			body = nil
		}
	})
	return rejected, message, ok
}

// fields calls f with each field of a protobuf message that is a number or has a length; false where it is no such
// message.
func fields(b []byte, f func(n protowire.Number, v uint64, text []byte)) bool {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return false
		}
		b = b[size:]
		var v uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			text, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return false
		}
		f(n, v, text)
		b = b[size:]
	}
	return true
}
