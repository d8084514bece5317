package kubelet

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certificate makes one for names, signed by itself; expired says that its time is over.
func certificate(t testing.TB, expired bool, names ...string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	if expired {
		c.NotAfter = time.Now().Add(-time.Hour)
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func serve(t testing.TB, cert *tls.Certificate, h http.HandlerFunc) (*httptest.Server, Target) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if cert != nil {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	host, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	n, _ := strconv.Atoi(port)
	return s, Target{Node: "n1", Host: host, Port: n, HTTPS: cert != nil}
}

func client(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func ask(t testing.TB, c *Client, target Target) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var body string
	err := c.Read(ctx, target, SummarySource, &Memory{}, func(_ Form, answer []byte) error { body = string(answer); return nil })
	return body, err
}

func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTokenIsSentOverTLSOnly(t *testing.T) {
	cert, ca := certificate(t, false, "127.0.0.1")
	var seen atomic.Value
	h := func(_ http.ResponseWriter, r *http.Request) { seen.Store(r.Header.Get("Authorization")) }
	token := file(t, "token", []byte("first\n"))
	c := client(t, Config{CAData: ca, TokenFile: token})
	_, secure := serve(t, &cert, h)
	_, plain := serve(t, nil, h)
	if _, err := ask(t, c, secure); err != nil || seen.Load() != "Bearer first" {
		t.Errorf("over https: %v, %v", seen.Load(), err)
	}
	if _, err := ask(t, c, plain); err != nil || seen.Load() != "" {
		t.Errorf("over http: %v, %v", seen.Load(), err)
	}
}

func TestRotatedTokenIsReadAgain(t *testing.T) {
	path := file(t, "token", []byte("first"))
	f := fileToken{path: path}
	now := time.Now()
	read := func(at time.Time) string {
		t.Helper()
		s, err := f.read(at)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := read(now); got != "first" {
		t.Fatal(got)
	}
	if err := errors.Join(os.WriteFile(path, []byte("second\n"), 0o600), os.Chtimes(path, now, now.Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	if got := read(now.Add(time.Second)); got != "first" {
		t.Errorf("looked again after a second: %q", got)
	}
	if got := read(now.Add(11 * time.Second)); got != "second" {
		t.Errorf("after eleven seconds: %q", got)
	}
	// a refusal makes it look at once
	if err := errors.Join(os.WriteFile(path, []byte("third"), 0o600), os.Chtimes(path, now, now.Add(2*time.Hour))); err != nil {
		t.Fatal(err)
	}
	f.forget()
	if got := read(now.Add(12 * time.Second)); got != "third" {
		t.Errorf("after a refusal: %q", got)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, now, now.Add(3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.read(now.Add(time.Hour)); err == nil || strings.Contains(err.Error(), "third") {
		t.Errorf("an empty file: %v", err)
	}
}

func TestTLSFailuresSayWhatToDo(t *testing.T) {
	good, ca := certificate(t, false, "127.0.0.1")
	named, namedCA := certificate(t, false, "node-1.example.com")
	old, oldCA := certificate(t, true, "127.0.0.1")
	ok := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("fine")) }
	_, atGood := serve(t, &good, ok)
	_, atNamed := serve(t, &named, ok)
	_, atOld := serve(t, &old, ok)
	_, atPlain := serve(t, nil, ok)
	tlsToPlain := atPlain
	tlsToPlain.HTTPS = true
	plainToTLS := atGood
	plainToTLS.HTTPS = false
	check := func(what string, cfg Config, at Target, words ...string) {
		t.Helper()
		body, err := ask(t, client(t, cfg), at)
		if len(words) == 0 {
			if err != nil || body != "fine" {
				t.Errorf("%s: %q, %v", what, body, err)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Reason != BadTLS {
			t.Errorf("%s: %v, want reason tls", what, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", what, err, w)
			}
		}
	}
	check("right authority", Config{CAData: ca}, atGood)
	check("authority from a file", Config{CAFile: file(t, "ca", ca)}, atGood)
	check("unknown authority", Config{CAData: namedCA}, atGood, "unknown authority", "--kubelet-ca", "--kubelet-certificate")
	check("system roots", Config{}, atGood, "unknown authority")
	check("not verified", Config{Insecure: true}, atGood)
	check("other name", Config{CAData: namedCA}, atNamed, "another name", "127.0.0.1", "--kubelet-server-name")
	check("name given", Config{CAData: namedCA, ServerName: "node-1.example.com"}, atNamed)
	check("expired", Config{CAData: oldCA}, atOld, "not valid", "expired", "clocks")
	check("pinned", Config{PinFile: file(t, "pin", append(bytes.Clone(ca), namedCA...))}, atNamed)
	check("another pinned", Config{PinFile: file(t, "pin", ca)}, atNamed, "none of those in", "--kubelet-certificate")
	check("https to a plain port", Config{Insecure: true}, tlsToPlain, "does not speak TLS", "10250")
	check("http to a TLS port", Config{}, plainToTLS, "speaks https", "kubeletHttps=true")
}

func TestClientCertificateIsShown(t *testing.T) {
	cert, ca := certificate(t, false, "127.0.0.1")
	mine, minePEM := certificate(t, false, "me")
	der, err := x509.MarshalPKCS8PrivateKey(mine.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	var shown atomic.Int64
	s, at := serve(t, &cert, func(_ http.ResponseWriter, r *http.Request) { shown.Store(int64(len(r.TLS.PeerCertificates))) })
	s.TLS.ClientAuth = tls.RequireAnyClientCert
	if _, err := ask(t, client(t, Config{CAData: ca}), at); err == nil {
		t.Error("no certificate, no error")
	} else if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != BadTLS || !strings.Contains(err.Error(), "--kubelet-client-cert") {
		t.Errorf("no certificate: %v", err)
	}
	for what, cfg := range map[string]Config{
		"files": {CAData: ca, CertFile: file(t, "c", minePEM), KeyFile: file(t, "k", key)},
		"bytes": {CAData: ca, CertData: minePEM, KeyData: key},
	} {
		if _, err := ask(t, client(t, cfg), at); err != nil || shown.Load() != 1 {
			t.Errorf("%s: %d certificates, %v", what, shown.Load(), err)
		}
	}
	if _, err := NewClient(Config{CertFile: "missing", KeyFile: "missing"}); err == nil {
		t.Error("a missing certificate is accepted")
	}
}

func TestConnectionIsUsedAgain(t *testing.T) {
	cert, ca := certificate(t, false, "127.0.0.1")
	var opened atomic.Int64
	mode := atomic.Int64{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if mode.Load() == 1 {
			http.Error(w, strings.Repeat("x", 3000), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100<<10))
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	addr := s.Listener.Addr().(*net.TCPAddr)
	at := Target{Node: "n1", Host: "127.0.0.1", Port: addr.Port, HTTPS: true}
	c := client(t, Config{CAData: ca})
	for i := range 6 {
		mode.Store(int64(i % 2))
		_, err := ask(t, c, at)
		if (err != nil) != (i%2 == 1) {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if opened.Load() != 1 {
		t.Errorf("%d connections for six requests", opened.Load())
	}
}

func TestAnswerIsBounded(t *testing.T) {
	c := client(t, Config{MaxBytes: 1 << 20})
	_, at := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") == "gzip" { // a small answer that is large inside
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 8<<20))
			_ = z.Close()
		}
	})
	_, err := ask(t, c, at)
	if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != TooLarge || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("%v, want reason too_large", err)
	}
}

func TestHungKubeletLeavesNothingBehind(t *testing.T) {
	release := make(chan struct{})
	ended := make(chan struct{})
	_, at := serve(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		defer close(ended)
		select {
		case <-r.Context().Done():
		case <-release:
		}
	})
	defer close(release)
	c := client(t, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	unused := func(Form, []byte) error { return errors.New("there is an answer") }
	err := c.Read(ctx, at, SummarySource, &Memory{}, unused)
	if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != Timeout {
		t.Fatalf("%v, want reason timeout", err)
	}
	<-ended // the connection was given up, and so the kubelet's side ends too
	// stopping is not the kubelet's fault
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if e := (*Error)(nil); !errors.As(c.Read(ctx, at, SummarySource, &Memory{}, unused), &e) || e.Reason != Canceled {
		t.Errorf("%v, want reason canceled", e)
	}
}

func TestSlowAnswerIsTimeout(t *testing.T) {
	_, at := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("{"))
		w.(http.Flusher).Flush() //nolint:forcetypeassert // httptest's
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := client(t, Config{}).Read(ctx, at, SummarySource, &Memory{}, func(Form, []byte) error { return errors.New("there is an answer") })
	if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != Timeout || !strings.Contains(err.Error(), "not complete") {
		t.Errorf("%v", err)
	}
}

func TestSameFailureHasSameText(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := Target{Node: "n1", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	_ = l.Close()
	c := client(t, Config{})
	_, first := ask(t, c, at)
	_, second := ask(t, c, at)
	if first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("%v\n%v", first, second)
	}
}

func TestTargetBracketsIPv6(t *testing.T) {
	for _, c := range []struct {
		t    Target
		want string
	}{
		{Target{Host: "fd00::1", Port: 10250, HTTPS: true}, "https://[fd00::1]:10250"},
		{Target{Host: "10.0.0.1", Port: 10255}, "http://10.0.0.1:10255"},
	} {
		if got := c.t.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	_, err := ask(t, client(t, Config{}), Target{Node: "n1", Port: 10250})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != BadAddress {
		t.Errorf("no host: %v", err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	cert, ca := certificate(t, false, "127.0.0.1")
	var leaked atomic.Bool
	_, elsewhere := serve(t, nil, func(_ http.ResponseWriter, r *http.Request) { leaked.Store(true) })
	_, at := serve(t, &cert, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.String(), http.StatusFound)
	})
	_, err := ask(t, client(t, Config{CAData: ca, Token: "secret"}), at)
	if e := (*Error)(nil); !errors.As(err, &e) || e.Reason != BadStatus || leaked.Load() || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v, followed %t", err, leaked.Load())
	}
}

func TestGateIsNotHeldByWhoHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, time.Second)
		hung, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		next, err := g.enter(t.Context())
		if err != nil || time.Since(began) != time.Second {
			t.Fatalf("entered after %s, %v", time.Since(began), err)
		}
		next.keep()
		hung.leave() // its place is gone: nothing to give back
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := g.enter(ctx); err == nil {
			t.Error("entered though the place is kept")
		}
		next.leave()
		last, err := g.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		last.leave()
	})
}

func TestHungHandshakesDelayNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cert, ca := certificate(t, false, "127.0.0.1")
	_, good := serve(t, &cert, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("fine")) })
	c := client(t, Config{CAData: ca})
	ctx, cancel := context.WithCancel(t.Context())
	var hung sync.WaitGroup
	for range 2 * cap(c.shaking.places) {
		hung.Go(func() {
			_ = c.Read(ctx, Target{Node: "hung", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, HTTPS: true}, SummarySource, &Memory{}, nil)
		})
	}
	body, err := ask(t, c, good)
	if err != nil || body != "fine" {
		t.Errorf("%q, %v", body, err)
	}
	cancel()
	hung.Wait()
}
