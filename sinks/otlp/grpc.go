package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// grpcTransport is OTLP/gRPC: unary calls, which are requests of HTTP/2 with a frame of five bytes before the message and
// the status in the trailer. It does without gRPC's own library, which would make the binary 13 MB larger, and says of a
// failed connection no more than words.
type grpcTransport struct {
	base   string
	host   string
	agent  string
	client *post.Client
	zip    *post.Gzip // nil: messages go as they are
	frame  bytes.Buffer
}

func newGRPC(client *http.Client, secure bool, host string, compress bool, version string) *grpcTransport {
	only := new(http.Protocols)
	only.SetHTTP2(secure)
	only.SetUnencryptedHTTP2(!secure) // with prior knowledge, as gRPC has it
	if t, ok := client.Transport.(*http.Transport); ok {
		t.Protocols = only
	}
	u := url.URL{Scheme: "http", Host: host}
	if secure {
		u.Scheme = "https"
	}
	t := &grpcTransport{base: u.String(), host: host, agent: "heapstream/" + version, client: post.New("OTLP receiver at "+host, client)}
	if compress {
		t.zip = post.NewGzip()
	}
	return t
}

func (t *grpcTransport) close() error {
	t.client.Close()
	return nil
}

// prefix is the length of what stands before a message: whether it is compressed, and its length.
const prefix = 5

// framed is a message as it is sent.
func (t *grpcTransport) framed(body []byte) ([]byte, error) {
	t.frame.Reset()
	t.frame.Write(make([]byte, prefix))
	if t.zip == nil {
		t.frame.Write(body)
	} else if err := t.zip.Append(&t.frame, body); err != nil {
		return nil, err
	}
	b := t.frame.Bytes()
	if t.zip != nil {
		b[0] = 1
	}
	binary.BigEndian.PutUint32(b[1:prefix], uint32(len(b)-prefix)) //nolint:gosec // requests are bounded
	return b, nil
}

// export sends one request.
func (t *grpcTransport) export(ctx context.Context, s signal, header http.Header, body []byte) (answer, error) {
	header = header.Clone()
	header.Set("User-Agent", t.agent)
	header.Set("Content-Type", "application/grpc+proto")
	header.Set("Te", "trailers")
	if t.zip != nil {
		header.Set("Grpc-Encoding", "gzip")
		header.Set("Grpc-Accept-Encoding", "gzip")
	}
	if deadline, ok := ctx.Deadline(); ok {
		if left := time.Until(deadline).Milliseconds(); left > 0 {
			header.Set("Grpc-Timeout", strconv.FormatInt(min(left, 99999999), 10)+"m")
		}
	}
	framed, err := t.framed(body)
	if err != nil {
		return answer{}, err
	}
	a, err := t.client.Do(ctx, http.MethodPost, t.base+s.method, header, framed)
	switch {
	case err != nil:
		return answer{}, err
	case !a.OK(): // a proxy's word, or a web server's
		return answer{}, t.client.Failure("write to", a, "", loginOptions)
	case !strings.HasPrefix(a.Header.Get("Content-Type"), "application/grpc"):
		return answer{}, t.client.Nonsense("write to", a)
	}
	trailer := a.Trailer
	if a.Header.Get("Grpc-Status") != "" {
		trailer = a.Header // an answer without a message has no other headers
	}
	code, err := strconv.Atoi(trailer.Get("Grpc-Status"))
	if err != nil || code < 0 {
		return answer{}, fmt.Errorf("write to %s: it broke off before it said how it went", t.client.Who())
	}
	if code != codeOK {
		return t.answered(code, trailer, s)
	}
	said, ok := unframed(a)
	if !ok {
		return answer{}, t.client.Nonsense("write to", a)
	}
	rejected, message, ok := partial(said)
	if !ok {
		return answer{}, t.client.Nonsense("write to", a)
	}
	return answer{rejected: rejected, reason: message}, nil
}

// maxMessage bounds an answer's message after decompression.
const maxMessage = 8 << 20

// unframed is the message of an answer, which may be compressed as the request was.
func unframed(a post.Answer) ([]byte, bool) {
	if len(a.Body) < prefix || int(binary.BigEndian.Uint32(a.Body[1:prefix])) != len(a.Body)-prefix {
		return nil, false
	}
	message := a.Body[prefix:]
	if a.Body[0] == 0 {
		return message, true
	}
	if a.Header.Get("Grpc-Encoding") != "gzip" {
		return nil, false
	}
	zr, err := gzip.NewReader(bytes.NewReader(message))
	if err != nil {
		return nil, false
	}
	plain, err := io.ReadAll(io.LimitReader(zr, maxMessage+1))
	return plain, err == nil && len(plain) <= maxMessage
}

// Codes of gRPC's statuses.
const (
	codeOK                 = 0
	codeUnknown            = 2
	codeInvalidArgument    = 3
	codeNotFound           = 5
	codeAlreadyExists      = 6
	codePermissionDenied   = 7
	codeResourceExhausted  = 8
	codeFailedPrecondition = 9
	codeUnimplemented      = 12
	codeInternal           = 13
	codeUnauthenticated    = 16
)

// answered is what a status that is no success means, by the table of OTLP.
func (t *grpcTransport) answered(code int, trailer http.Header, s signal) (answer, error) {
	message := trailer.Get("Grpc-Message")
	if plain, err := url.PathUnescape(message); err == nil {
		message = plain
	}
	reason := fmt.Sprintf("%s (gRPC status %d)", sink.Excerpt([]byte(message)), code)
	passing := fmt.Errorf("write to %s: %s", t.client.Who(), reason)
	wait, mayRetry := retryInfo(trailer.Get("Grpc-Status-Details-Bin"))
	switch code {
	case codeUnauthenticated, codePermissionDenied:
		return answer{}, fmt.Errorf("%w (check %s)", passing, loginOptions)
	case codeUnimplemented, codeNotFound:
		return answer{}, fmt.Errorf("%w (is the address right, and does it receive %s?)", passing, s.noun)
	case codeResourceExhausted:
		if !mayRetry {
			return answer{tooLarge: isSize(message), refused: true, reason: reason}, nil
		}
	case codeInvalidArgument, codeInternal, codeUnknown, codeAlreadyExists, codeFailedPrecondition:
		return answer{refused: true, reason: reason}, nil
	}
	return answer{}, sink.RetryAfter(wait, passing)
}

// isSize reports whether resources are exhausted by the size of the message.
func isSize(reason string) bool {
	return strings.Contains(reason, "larger than max") || strings.Contains(reason, "too large") || strings.Contains(reason, "message size")
}

// retryInfo is how long the receiver wants to be left alone, and whether it says that trying again may help: the
// RetryInfo in a google.rpc.Status.
func retryInfo(details string) (wait time.Duration, ok bool) {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(details, "="))
	if err != nil || len(b) == 0 {
		return 0, false
	}
	fields(b, func(n protowire.Number, _ uint64, detail []byte) {
		if n != 3 {
			return
		}
		isRetry, info := false, []byte(nil)
		fields(detail, func(n protowire.Number, _ uint64, part []byte) {
			switch n {
			case 1:
				isRetry = string(part) == "type.googleapis.com/google.rpc.RetryInfo"
			case 2:
				info = part
			}
		})
		if !isRetry {
			return
		}
		ok = true
		fields(info, func(_ protowire.Number, _ uint64, delay []byte) {
			fields(delay, func(n protowire.Number, v uint64, _ []byte) {
				switch n {
				case 1:
					wait += time.Duration(min(v, 3600)) * time.Second //nolint:gosec // bounded
				case 2:
					wait += time.Duration(min(v, 1e9)) //nolint:gosec // bounded
				}
			})
		})
	})
	return min(wait, time.Hour), ok
}
