package resourceapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// selfSignedAge is long: a certificate in memory is renewed by nobody, and who trusts it has looked at nothing but
// the certificate itself (insecureSkipTLSVerify of the APIService).
const selfSignedAge = 10 * 365 * 24 * time.Hour

// selfSignedNames are Heapster's service in all the ways to say it, and the machine itself.
var selfSignedNames = []string{"heapster.kube-system", "heapster.kube-system.svc", "heapster", "localhost"}

// serving is how the listener is served: with which certificates.
func (c *Config) serving(listener net.Listener) (*server.SecureServingInfo, error) {
	info := &server.SecureServingInfo{Listener: listener, HTTP2MaxStreamsPerConnection: maxStreams}
	certFile, keyFile := c.CertFile, c.KeyFile
	if certFile == "" && c.CertDir != "" {
		certFile, keyFile = filepath.Join(c.CertDir, "apiserver.crt"), filepath.Join(c.CertDir, "apiserver.key")
		if err := ensureSelfSigned(certFile, keyFile); err != nil {
			return nil, err
		}
	}
	var err error
	if certFile != "" {
		info.Cert, err = dynamiccertificates.NewDynamicServingContentFromFiles("serving-cert", certFile, keyFile)
	} else {
		var cert, key []byte
		if cert, key, err = selfSigned(); err == nil {
			info.Cert, err = dynamiccertificates.NewStaticCertKeyContent("self-signed", cert, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("load the serving certificate: %w", err)
	}
	for _, sni := range c.SNI {
		cert, err := dynamiccertificates.NewDynamicSNIContentFromFiles("sni-serving-cert", sni.CertFile, sni.KeyFile, sni.Names...)
		if err != nil {
			release(info)
			return nil, fmt.Errorf("load the certificate of --tls-sni-cert-key %s: %w", sni.CertFile, err)
		}
		info.SNICerts = append(info.SNICerts, cert)
	}
	return info, nil
}

// release ends what the certificates of a server that will not run have started: each has a queue with goroutines,
// which ends with the loop that reads it.
func release(info *server.SecureServingInfo) {
	ended, end := context.WithCancel(context.Background())
	end()
	run := func(provider any) {
		if r, ok := provider.(dynamiccertificates.ControllerRunner); ok {
			r.Run(ended, 1)
		}
	}
	run(info.Cert)
	run(info.ClientCA)
	for _, sni := range info.SNICerts {
		run(sni)
	}
}

// ensureSelfSigned makes the pair unless both files are there.
func ensureSelfSigned(certFile, keyFile string) error {
	_, certErr := os.Stat(certFile)
	_, keyErr := os.Stat(keyFile)
	switch {
	case certErr == nil && keyErr == nil:
		return nil
	case certErr == nil || keyErr == nil:
		return fmt.Errorf("--cert-dir has only one of %s and %s: remove it or add the other", certFile, keyFile)
	case !errors.Is(certErr, fs.ErrNotExist):
		return fmt.Errorf("look for the serving certificate: %w", certErr)
	}
	cert, key, err := selfSigned()
	if err != nil {
		return err
	}
	write := func() error {
		if err := os.MkdirAll(filepath.Dir(certFile), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(keyFile, key, 0o600); err != nil {
			return err
		}
		return os.WriteFile(certFile, cert, 0o644)
	}
	if err := write(); err != nil {
		return fmt.Errorf("keep the self-signed certificate: %w (without --cert-dir it is kept in memory)", err)
	}
	return nil
}

// selfSigned makes a certificate and its key, PEM both.
func selfSigned() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a serving key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("make a serving certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: selfSignedNames[0]},
		DNSNames:     selfSignedNames,
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:    time.Now().Add(-time.Hour), // clocks differ
		NotAfter:     time.Now().Add(selfSignedAge),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:         true, BasicConstraintsValid: true, // so that it can be trusted as a caBundle
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a serving certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a serving key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
