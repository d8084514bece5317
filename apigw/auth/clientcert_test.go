package auth

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heapstream/heapstream/apigw/auth/authtest"
)

func TestClientCertsRefuseCombinationsThatWouldNotGuard(t *testing.T) {
	for name, tt := range map[string]struct {
		certs   ClientCerts
		serving bool
		want    string // part of the complaint; "": none
	}{
		"nothing":                  {},
		"TLS alone":                {serving: true},
		"CA":                       {certs: ClientCerts{CAFile: "ca"}, serving: true},
		"CA and users":             {certs: ClientCerts{CAFile: "ca", AllowedUsers: "a"}, serving: true},
		"CA over plain HTTP":       {certs: ClientCerts{CAFile: "ca"}, want: "--tls_client_ca needs --tls_cert"},
		"users without CA":         {certs: ClientCerts{AllowedUsers: "a"}, serving: true, want: "--allowed_users needs --tls_client_ca"},
		"users that name nobody":   {certs: ClientCerts{CAFile: "ca", AllowedUsers: " , "}, serving: true, want: "names nobody"},
		"users of blanks, no CA":   {certs: ClientCerts{AllowedUsers: "  "}, serving: true},
		"users without CA, no TLS": {certs: ClientCerts{AllowedUsers: "a"}, want: "--allowed_users needs --tls_client_ca"},
	} {
		err := tt.certs.Validate(tt.serving)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestClientCertsSayWhatIsWrongWithTheCA(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{empty: "no PEM certificate", empty + ".missing": "no such file"} {
		if _, err := (&ClientCerts{CAFile: file}).Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("load %s: %v, want %q", file, err, want)
		}
	}
}

func TestGuardAnswersAsHeapsterDid(t *testing.T) {
	ca, other, serving := authtest.NewCA(t, "ca"), authtest.NewCA(t, "other"), authtest.NewCA(t, "serving")
	alice, mallory, stranger := ca.Client(t, "alice"), ca.Client(t, "mallory"), other.Client(t, "alice")
	server := ca.Server(t, "alice") // of the CA, but not for clients

	serve := func(certs ClientCerts) string {
		t.Helper()
		guard, err := certs.Load()
		if err != nil {
			t.Fatal(err)
		}
		ts := httptest.NewUnstartedServer(guard.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "metrics")
		})))
		ts.Config.ErrorLog = log.New(io.Discard, "", 0)
		ts.TLS = &tls.Config{Certificates: []tls.Certificate{serving.Server(t, "gateway")}}
		guard.TLS(ts.TLS)
		ts.StartTLS()
		t.Cleanup(ts.Close)
		return ts.URL
	}
	get := func(url string, cert *tls.Certificate) (int, string) {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(serving.PEM())
		cfg := &tls.Config{RootCAs: roots}
		if cert != nil {
			// shown even if the server asks for other issuers
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		transport := &http.Transport{TLSClientConfig: cfg}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}

	listed := serve(ClientCerts{CAFile: ca.File(t), AllowedUsers: "bob, alice ,"})
	anyone := serve(ClientCerts{CAFile: ca.File(t)})
	open := serve(ClientCerts{})
	for name, tt := range map[string]struct {
		url  string
		cert *tls.Certificate
		code int
		body string // how it begins
	}{
		"listed":                         {listed, &alice, 200, "metrics"},
		"not listed":                     {listed, &mallory, 403, "Forbidden\n"},
		"no certificate":                 {listed, nil, 401, "Unauthorized\n"},
		"another CA":                     {listed, &stranger, 500, "x509: certificate signed by unknown authority"},
		"a serving certificate":          {listed, &server, 500, "x509: certificate specifies an incompatible key usage"},
		"no list: any of the CA":         {anyone, &mallory, 200, "metrics"},
		"no list: still a certificate":   {anyone, nil, 401, "Unauthorized\n"},
		"no list: still of the CA":       {anyone, &stranger, 500, "x509: certificate signed by unknown authority"},
		"no CA: everybody":               {open, nil, 200, "metrics"},
		"no CA: certificates are naught": {open, &stranger, 200, "metrics"},
	} {
		if code, body := get(tt.url, tt.cert); code != tt.code || !strings.HasPrefix(body, tt.body) {
			t.Errorf("%s: %d %q, want %d %q", name, code, body, tt.code, tt.body)
		}
	}
}
