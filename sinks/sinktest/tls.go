package sinktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Fault is what is wrong with a destination from its start until it is repaired; see [Repairable].
type Fault int

// The faults.
const (
	Sound          Fault = iota // nothing is
	UnknownCA                   // its certificate is signed by an authority that the sink was not told of
	OtherName                   // its certificate is for another name
	Expired                     // its certificate was valid until an hour ago
	LoginForgotten              // it does not know the sink's login
)

// Repairable is a [Backend] that can have a [Fault]: every one that speaks TLS or wants a login.
type Repairable interface {
	// Repair ends the fault. It returns when that is so.
	Repair()
}

// TLS is the server's side of TLS as a [Reach] wants it.
type TLS struct {
	CAFile string // a PEM file of the authority that the sink is told of

	mu    sync.Mutex
	fault Fault
	certs map[Fault]*tls.Certificate
}

// NewTLS makes an authority, and a certificate for this machine with the fault of the reach.
func NewTLS(tb testing.TB, r Reach) *TLS {
	tb.Helper()
	dir := tb.TempDir()
	s := &TLS{CAFile: filepath.Join(dir, "ca.pem"), fault: r.Fault, certs: map[Fault]*tls.Certificate{}}
	ca, caKey := authority(tb, "the authority that is trusted")
	if err := os.WriteFile(s.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
		tb.Fatal(err)
	}
	valid := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	s.certs[Sound] = issue(tb, valid, ca, caKey)
	switch r.Fault {
	case UnknownCA:
		other, otherKey := authority(tb, "another authority")
		s.certs[UnknownCA] = issue(tb, valid, other, otherKey)
	case OtherName:
		elsewhere := *valid
		elsewhere.IPAddresses, elsewhere.DNSNames = nil, []string{"elsewhere.example.com"}
		s.certs[OtherName] = issue(tb, &elsewhere, ca, caKey)
	case Expired:
		old := *valid
		old.NotAfter = time.Now().Add(-time.Hour)
		s.certs[Expired] = issue(tb, &old, ca, caKey)
	default:
		s.fault = Sound
	}
	return s
}

// Config is for a listener.
func (s *TLS) Config() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*s.certs[Sound]}}
	// An address has no name to choose a certificate by, so the whole configuration is chosen.
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		now := c.Clone()
		now.Certificates = []tls.Certificate{*s.certs[s.fault]}
		return now, nil
	}
	return c
}

// Pool trusts the authority: for another client than the sink.
func (s *TLS) Pool(tb testing.TB) *x509.CertPool {
	tb.Helper()
	pool := x509.NewCertPool()
	text, err := os.ReadFile(s.CAFile)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		tb.Fatal("the authority's own certificate cannot be read", err)
	}
	return pool
}

// Repair shows the right certificate from now on.
func (s *TLS) Repair() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = Sound
}

func authority(tb testing.TB, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-72 * time.Hour), NotAfter: time.Now().Add(72 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return ca, key
}

func issue(tb testing.TB, template, ca *x509.Certificate, caKey *ecdsa.PrivateKey) *tls.Certificate {
	tb.Helper()
	key := newKey(tb)
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}
