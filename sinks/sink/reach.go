package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// Reach words the error of a connection attempt or a request, so that it says what to do about it: a
// certificate that is not trusted, nobody listening, a name that does not resolve, no answer in time.
// All of them are passing.
func Reach(who string, err error) error {
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		timeout   net.Error
	)
	hint := ""
	switch {
	case errors.As(err, &authority):
		hint = "its certificate is signed by nobody we trust: give `cacert`, or insecuressl=true"
	case errors.As(err, &name):
		hint = "its certificate is for another name: give the address by a name that it is for, or have one issued for this name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		hint = "its certificate has expired, or is not valid yet: have it renewed, or set the clock of this machine"
	case errors.As(err, &invalid), errors.As(err, &verify):
		hint = "its certificate is not valid"
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "it does not speak TLS"
	case strings.Contains(err.Error(), "remote error: tls:"):
		hint = "it refuses our certificate or TLS settings: check `cert` and `key`"
	case errors.As(err, &dns):
		hint = "its name does not resolve"
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nobody listens there"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		hint = "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		hint = "it closed the connection"
	default:
		return fmt.Errorf("reach %s: %w", who, err)
	}
	return fmt.Errorf("reach %s: %s: %w", who, hint, err)
}

// RetryAfterHeader is what the header Retry-After asks for, as seconds or as a date; 0 for none, at most
// an hour.
func RetryAfterHeader(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		d = time.Duration(n) * time.Second //nolint:gosec // 31 bits
	} else if at, err := http.ParseTime(v); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, time.Hour))
}

// Excerpt makes a destination's answer fit one line of a log: its first bytes, without control
// characters.
func Excerpt(answer []byte) string {
	const most = 300
	s := strings.ToValidUTF8(string(answer[:min(len(answer), most)]), "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(answer) > most {
		s += " …"
	}
	return s
}
