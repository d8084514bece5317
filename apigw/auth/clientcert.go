package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
)

// ClientCerts is who may use the Heapster surface: clients whose certificate a CA signed and, if names are given,
// whose common name is one of them. Groups are not looked at. The zero value lets everybody in.
type ClientCerts struct {
	// CAFile is a PEM bundle (--tls_client_ca). It is read once, by [ClientCerts.Load].
	CAFile string
	// AllowedUsers are common names separated by commas (--allowed_users); blanks around them do not count.
	// Empty means every certificate of the CA.
	AllowedUsers string
}

// Validate says what is wrong with the combination; serving tells whether the surface has a certificate of its own
// and therefore speaks TLS.
func (c *ClientCerts) Validate(serving bool) error {
	var errs []error
	if c.CAFile != "" && !serving {
		errs = append(errs, errors.New("--tls_client_ca needs --tls_cert and --tls_key: over plain HTTP nobody can show a certificate"))
	}
	if c.CAFile == "" && strings.TrimSpace(c.AllowedUsers) != "" {
		errs = append(errs, errors.New("--allowed_users needs --tls_client_ca: without a CA no user can be told from another, and everybody would be let in"))
	}
	if c.CAFile != "" && c.AllowedUsers != "" && len(c.users()) == 0 {
		errs = append(errs, fmt.Errorf("--allowed_users=%q names nobody", c.AllowedUsers))
	}
	return errors.Join(errs...)
}

func (c *ClientCerts) users() []string {
	var users []string
	for user := range strings.SplitSeq(c.AllowedUsers, ",") {
		if user = strings.TrimSpace(user); user != "" {
			users = append(users, user)
		}
	}
	return users
}

// Load reads the CA and returns the guard that enforces c. Without a CA the guard lets everybody in.
func (c *ClientCerts) Load() (*Guard, error) {
	if c.CAFile == "" {
		return &Guard{}, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read --tls_client_ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read --tls_client_ca: %s has no PEM certificate", c.CAFile)
	}
	return &Guard{roots: roots, users: c.users()}, nil
}

// Guard lets the clients of a [ClientCerts] in. The zero Guard lets everybody in.
type Guard struct {
	roots *x509.CertPool // nil: everybody
	users []string       // empty: every certificate of roots
}

// TLS makes cfg ask clients for a certificate if one is needed. It does not require one in the handshake, so that
// health checks need none and refusals have a status.
func (g *Guard) TLS(cfg *tls.Config) {
	if g.roots != nil {
		cfg.ClientAuth = tls.RequestClientCert
	}
}

// Protect refuses what g does not let in, in Heapster's words: 401 without a certificate, 500 with the reason if
// it does not verify, 403 if its name is not listed. Health checks are to be served outside of it.
func (g *Guard) Protect(next http.Handler) http.Handler {
	if g.roots == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		cert := r.TLS.PeerCertificates[0]
		intermediates := x509.NewCertPool()
		for _, c := range r.TLS.PeerCertificates[1:] {
			intermediates.AddCert(c)
		}
		if _, err := cert.Verify(x509.VerifyOptions{
			Roots: g.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if len(g.users) > 0 && !slices.Contains(g.users, cert.Subject.CommonName) {
			http.Error(w, "Forbidden", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
