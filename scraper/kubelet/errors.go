package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// Reason says in one word why a kubelet could not be read: a label of telemetry, so the set is
// small and fixed.
type Reason string

// The reasons.
const (
	Unreachable  Reason = "unreachable"   // refused, no route, unknown name, connection cut before an answer
	Timeout      Reason = "timeout"       // no complete answer within the deadline of the scrape
	Busy         Reason = "busy"          // we had no time for it within the deadline of the scrape
	BadTLS       Reason = "tls"           // certificate or protocol
	Unauthorized Reason = "unauthorized"  // 401
	Forbidden    Reason = "forbidden"     // 403
	NotFound     Reason = "not_found"     // 404
	ServerError  Reason = "server_error"  // 5xx
	BadStatus    Reason = "bad_status"    // any other status than 200
	BadAnswer    Reason = "bad_answer"    // not what it should be
	HalfAnswer   Reason = "half_answer"   // broke off
	TooLarge     Reason = "too_large"     // beyond the bound on one answer
	OtherNode    Reason = "other_node"    // the answer is another node's
	BadAddress   Reason = "bad_address"   // the node has no address to ask
	BadToken     Reason = "bad_token"     // our own credentials cannot be read
	Canceled     Reason = "canceled"      // we are stopping
	BadEncoding  Reason = "cannot_encode" // the batch exceeds what fits into a message
)

// Reasons lists every reason, so that telemetry can show zeros.
func Reasons() []Reason {
	return []Reason{Unreachable, Timeout, Busy, BadTLS, Unauthorized, Forbidden, NotFound, ServerError, BadStatus, BadAnswer,
		HalfAnswer, TooLarge, OtherNode, BadAddress, BadToken, Canceled, BadEncoding}
}

// Error says why one kubelet could not be read at one tick. Its text is stable while the cause is,
// so that a change of text is a change of state.
type Error struct {
	Reason Reason
	Node   string
	What   string // what was being done: "GET https://…/stats/summary", "decode kubernetes.summary_api"
	Detail string // what happened, in words
	Advice string // what to do about it; may be empty
	Err    error  // cause; may be nil
	Status int    // of HTTP, where that is what is wrong; else 0
}

// Error names the node, what was done, what happened and what to do.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s of node %q: ", e.What, e.Node)
	b.WriteString(e.Detail)
	if e.Err != nil {
		if e.Detail != "" {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	if e.Advice != "" {
		b.WriteString("; ")
		b.WriteString(e.Advice)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// failed explains an error of the transport.
func failed(ctx context.Context, err error, t Target, what string, sawAnswer bool) *Error {
	e := &Error{Node: t.Node, What: what}
	var dns *net.DNSError
	var op *net.OpError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var pin *pinError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Reason, e.Detail = Canceled, "scrape was stopped"
	case errors.As(err, &pin):
		e.Reason, e.Detail = BadTLS, pin.Error()
		e.Advice = "give the kubelet's present serving certificate by --kubelet-certificate, or its authority by --kubelet-ca"
	case errors.As(err, &name):
		e.Reason, e.Detail = BadTLS, "its certificate is for another name: "+firstLine(name.Error())
		e.Advice = "set --kubelet-server-name to a name in it, or let the kubelet get a certificate with its address (serverTLSBootstrap)"
	case errors.As(err, &unknown):
		e.Reason, e.Detail = BadTLS, "its certificate is signed by an unknown authority"
		e.Advice = "give the authority by --kubelet-ca or the certificate itself by --kubelet-certificate, or let the kubelet get one signed by the cluster (serverTLSBootstrap)"
	case errors.As(err, &invalid):
		e.Reason, e.Detail = BadTLS, "its certificate is not valid: "+firstLine(invalid.Error())
		e.Advice = "renew the kubelet's serving certificate and compare the clocks"
	case errors.As(err, &verify):
		e.Reason, e.Detail = BadTLS, "its certificate cannot be verified: "+firstLine(verify.Err.Error())
		e.Advice = "give its authority by --kubelet-ca"
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		e.Reason, e.Detail = BadTLS, "it does not speak TLS on this port"
		e.Advice = "10255 is the plain port: use 10250, or leave https off"
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls:"):
		e.Reason, e.Detail = BadTLS, "it ended the TLS handshake: "+lastPart(err)
		e.Advice = "it may want a client certificate: --kubelet-client-cert and --kubelet-client-key"
	case errors.Is(ctx.Err(), context.DeadlineExceeded), isTimeout(err):
		e.Reason = Timeout
		switch {
		case sawAnswer:
			e.Detail = "its answer was not complete when the deadline of the scrape came"
		case errors.As(err, &op) && op.Op == "dial":
			e.Detail = "it did not take the connection before the deadline of the scrape"
			e.Advice = "look for a firewall between here and the node"
		default:
			e.Detail = "it had not answered when the deadline of the scrape came"
			e.Advice = "look at the kubelet's log: its container runtime may hang"
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Reason, e.Detail = Unreachable, "connection refused"
		e.Advice = "is the kubelet running, and is this its port? (10255 is closed on most clusters: use 10250 with https)"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		e.Reason, e.Detail = Unreachable, "no route to the node"
		e.Advice = "is the node up, and is its address reachable from here?"
	case errors.As(err, &dns):
		e.Reason, e.Detail = Unreachable, fmt.Sprintf("name %q is unknown here", dns.Name)
		e.Advice = "use --kubelet-address"
	case sawAnswer && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF)):
		e.Reason, e.Detail = HalfAnswer, "its answer broke off"
		e.Advice = "the kubelet or a proxy in between ended the connection"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		e.Reason, e.Detail = Unreachable, "it ended the connection without an answer"
		e.Advice = "is this the kubelet's port, and does it speak https there?"
	case sawAnswer:
		e.Reason, e.Detail = HalfAnswer, "its answer cannot be read: "+lastPart(err)
	default:
		e.Reason, e.Detail = Unreachable, lastPart(err)
	}
	return e
}

// busy explains that we did not come to it in time.
func busy(ctx context.Context, t Target, what, detail string) *Error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return &Error{Reason: Canceled, Node: t.Node, What: what, Detail: "scrape was stopped"}
	}
	return &Error{Reason: Busy, Node: t.Node, What: what, Detail: detail + " when the deadline of the scrape came",
		Advice: "the scraper lacks processor time: give it more, or a longer --metric-resolution"}
}

// refused explains a status other than 200. body is the beginning of what came with it.
func refused(resp *http.Response, body []byte, t Target, what string, r *request) *Error {
	e := &Error{Node: t.Node, What: what, Status: resp.StatusCode}
	said := firstLine(strings.TrimSpace(strings.ToValidUTF8(string(body), "\uFFFD")))
	with := func(words string) string {
		if said == "" {
			return words
		}
		return fmt.Sprintf("%s (%.300s)", words, said)
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized:
		e.Reason, e.Detail = Unauthorized, with("401: the kubelet does not know who we are")
		switch {
		case !t.HTTPS:
			e.Advice = "over plain http no token is sent: use https"
		default:
			e.Advice = "give a token (--kubelet-token-file) and let the kubelet ask the API server about it (--authentication-token-webhook), or a client certificate of its client CA"
		}
	case code == http.StatusForbidden:
		e.Reason, e.Detail = Forbidden, with("403: we may not "+r.verb()+" "+r.right)
		e.Advice = fmt.Sprintf("grant our ServiceAccount the verb %s on %s (a ClusterRole with apiGroups [\"\"])", r.verb(), r.right)
	case code == http.StatusNotFound:
		e.Reason, e.Detail = NotFound, "404: there is no such path"
		e.Advice = "is this the kubelet's port?"
	case code == http.StatusBadRequest && strings.Contains(said, "HTTP request to an HTTPS server"):
		e.Reason, e.Detail = BadTLS, "it speaks https on this port"
		e.Advice = "set kubeletHttps=true (--kubelet-https)"
	case code >= 500:
		e.Reason, e.Detail = ServerError, with(fmt.Sprintf("%d from the kubelet", code))
		e.Advice = "look at the kubelet's log"
	default:
		e.Reason, e.Detail = BadStatus, with(fmt.Sprintf("status %d", code))
	}
	return e
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// lastPart is the innermost text of an error: the outer ones repeat addresses and ephemeral ports,
// which would make the same failure look new each time.
func lastPart(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return firstLine(err.Error())
		}
		err = next
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
