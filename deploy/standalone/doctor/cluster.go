package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/kube"
)

const (
	patience  = 10 * time.Second // for one answer
	maxAnswer = 64 << 20         // bytes of one
)

// api is an API server that has answered.
type api struct {
	http *http.Client
	base *url.URL
	user string // who we are there; empty where it does not tell
	kube *kube.Client
	id   *kube.Identity
}

// answer is what a server said.
type answer struct {
	status int
	body   []byte
	date   time.Time // of its Date header; zero where it has none
	began  time.Time
	took   time.Duration
	tls    *tls.ConnectionState
}

func ask(ctx context.Context, client *http.Client, method, target string, body any) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, send)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "heapstream-doctor")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	a := answer{began: time.Now()}
	resp, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	a.took = time.Since(a.began)
	a.status, a.tls = resp.StatusCode, resp.TLS
	a.date, _ = http.ParseTime(resp.Header.Get("Date"))
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return answer{}, err
	}
	return a, nil
}

func (a *api) get(ctx context.Context, path string) (answer, error) {
	return ask(ctx, a.http, http.MethodGet, a.base.JoinPath(path).String(), nil)
}

func (a *api) post(ctx context.Context, path string, body any) (answer, error) {
	return ask(ctx, a.http, http.MethodPost, a.base.JoinPath(path).String(), body)
}

// cluster looks at what the API server and kubelets are asked for.
func (d *Doctor) cluster(ctx context.Context) {
	a := d.apiServer(ctx)
	needless := d.cfg.is(string(scraper.RoleNode)) && d.cfg.Scraper.PodsFrom == scraper.PodsFromKubelet
	if a != nil {
		defer a.http.CloseIdleConnections()
		d.rights(ctx, a)
	} else if !needless {
		d.skip(CheckRights, "", "the API server cannot be asked")
	}
	if d.cfg.scrapes() {
		d.kubelets(ctx, a)
	}
	if d.cfg.serves() && a != nil {
		d.metricsAPI(ctx, a)
	}
}

// apiServer is nil where it cannot be used; the findings then say why.
func (d *Doctor) apiServer(ctx context.Context) *api {
	fail := func(do, seen string, args ...any) *api {
		d.add(Fail, CheckAPIServer, "", do, seen, args...)
		return nil
	}
	where, err := d.cfg.Scraper.APIServer()
	if err != nil {
		return fail("correct --source", "%v", err)
	}
	rc, err := where.Rest()
	if err != nil {
		return fail("say which API server, and as whom: --kubeconfig=FILE, or run it as a pod with the ServiceAccount of the role", "%v", err)
	}
	a := &api{id: kube.IdentityOf(rc)}
	if a.http, a.base, err = kube.HTTP(rc); err != nil {
		return fail("mend the kubeconfig", "%v", err)
	}
	if a.kube, err = kube.NewClient(rc); err != nil {
		return fail("mend the kubeconfig", "%v", err)
	}
	d.ourCertificate(a.id)
	got, err := a.get(ctx, "/version")
	if err != nil {
		a.http.CloseIdleConnections()
		return fail(adviseDial(err, "the API server", "kubeconfig: certificate-authority"), "%s does not answer: %v", a.base, err)
	}
	switch got.status {
	case http.StatusOK:
	case http.StatusUnauthorized:
		a.http.CloseIdleConnections()
		return fail("look at the token or client certificate: it has expired, or is another cluster's", "%s answers 401: it does not know who we are", a.base)
	case http.StatusForbidden: // hardened; everything else may still work
	default:
		a.http.CloseIdleConnections()
		return fail("is this the address of an API server?", "%s/version answers %d: %.200s", a.base, got.status, got.body)
	}
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := json.Unmarshal(got.body, &version); got.status == http.StatusOK && (err != nil || version.GitVersion == "") {
		a.http.CloseIdleConnections()
		return fail("is this the address of an API server?", "%s/version is no version: %.200s", a.base, got.body)
	}
	a.user = whoAmI(ctx, a)
	as := ""
	if a.user != "" {
		as = ", we are " + a.user
	}
	d.ok(CheckAPIServer, "", "%s answers after %s: Kubernetes %s%s", a.base, got.took.Round(100*time.Microsecond), or(version.GitVersion, "of a version it does not tell"), as)
	if got.tls != nil && len(got.tls.PeerCertificates) > 0 {
		d.certificate("API server", got.tls.PeerCertificates[0], "renew the API server's serving certificate")
	}
	d.clock("API server", got.date, time.Second, got.began.Add(got.took/2))
	return a
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// whoAmI is our name to the API server, which tells it since Kubernetes 1.28; else "".
func whoAmI(ctx context.Context, a *api) string {
	got, err := a.post(ctx, "/apis/authentication.k8s.io/v1/selfsubjectreviews", map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
	var r struct {
		Status struct {
			UserInfo struct {
				Username string `json:"username"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	if err != nil || got.status != http.StatusCreated || json.Unmarshal(got.body, &r) != nil {
		return ""
	}
	return r.Status.UserInfo.Username
}

// adviseDial is what to do about an error of a connection.
func adviseDial(err error, whom, authority string) string {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return "give the authority that signed its certificate (" + authority + ")"
	case errors.As(err, &name):
		return "use a name or address that is in its certificate, or have it signed for this one"
	case errors.As(err, &invalid):
		return "renew its certificate, and compare the clocks"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: is this the address of " + whom + ", and does it run?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "there is no route from here: look at addresses and networks"
	case errors.Is(err, context.DeadlineExceeded):
		return "look for a firewall or NetworkPolicy between here and " + whom
	case strings.Contains(err.Error(), "no such host"):
		return "the name is unknown here: look at DNS, or give an address"
	case strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return "it speaks plain http there: use http://, or its TLS port"
	case strings.Contains(err.Error(), "remote error: tls"):
		return "it ended the TLS handshake: it may want a client certificate"
	}
	return "is this the address of " + whom + ", and does it run?"
}

// Clocks: what is behind or ahead by less is noise; by more, credentials and ticks are refused.
const (
	clockNoise  = 2 * time.Second
	clockBroken = 30 * time.Second
)

// clock compares a clock, told to a precision, with ours at that moment.
func (d *Doctor) clock(whose string, told time.Time, precision time.Duration, ours time.Time) {
	if told.IsZero() {
		d.skip(CheckClocks, whose, "it does not tell the time")
		return
	}
	ahead := told.Sub(ours)
	if ahead > -precision-clockNoise && ahead < clockNoise {
		d.ok(CheckClocks, whose, "agrees with ours")
		return
	}
	level := Warn
	if ahead.Abs() > clockBroken {
		level = Fail
	}
	d.add(level, CheckClocks, whose, "let both machines take the time from the same servers (NTP): which of them is right does not show from here",
		"%s ours", apart(ahead))
}

func apart(ahead time.Duration) string {
	if ahead < 0 {
		return ahead.Abs().Round(100*time.Millisecond).String() + " behind"
	}
	return ahead.Round(100*time.Millisecond).String() + " ahead of"
}

// expiresSoon is when a certificate counts as about to end: a week before, or a tenth of its life if that is less.
func expiresSoon(c *x509.Certificate) time.Duration {
	return min(7*24*time.Hour, c.NotAfter.Sub(c.NotBefore)/10)
}

// judge is how well a certificate is at a moment, in words.
func judge(c *x509.Certificate, now time.Time) (Level, string) {
	left := c.NotAfter.Sub(now)
	until := c.NotAfter.UTC().Format("2006-01-02 15:04 MST")
	switch {
	case now.Before(c.NotBefore):
		return Fail, "not valid before " + c.NotBefore.UTC().Format("2006-01-02 15:04 MST")
	case left <= 0:
		return Fail, "expired at " + until
	case left < expiresSoon(c):
		return Warn, fmt.Sprintf("expires in %s, at %s", left.Round(time.Minute), until)
	}
	return OK, "valid until " + until
}

func (d *Doctor) certificate(whose string, c *x509.Certificate, do string) {
	level, seen := judge(c, d.now())
	if level == OK {
		do = ""
	}
	d.add(level, CheckCertificates, whose, do, "%s", seen)
}

// ourCertificate looks at the client certificate we show the API server, if any.
func (d *Doctor) ourCertificate(id *kube.Identity) {
	data := id.CertData
	if len(data) == 0 && id.CertFile != "" {
		var err error
		if data, err = os.ReadFile(id.CertFile); err != nil {
			d.add(Fail, CheckCertificates, "our own for the API server", "mend the kubeconfig, or the rights on the file", "%v", err)
			return
		}
	}
	if block, _ := pem.Decode(data); block != nil && block.Type == "CERTIFICATE" {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			d.certificate("our own for the API server", c, "renew the client certificate of the kubeconfig")
		}
	}
}
