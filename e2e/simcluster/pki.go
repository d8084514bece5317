package simcluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// pki holds the two authorities of the cluster, made anew at each start and kept in memory only.
type pki struct {
	ca, proxyCA       *x509.Certificate
	caKey, proxyKey   *ecdsa.PrivateKey
	caPEM, proxyCAPEM []byte
	proxyClient       tls.Certificate   // the API server's, towards gateways
	kubeletKey        *ecdsa.PrivateKey // one key for all kubelets: 5000 would take their time
	from, until       time.Time
}

func newPKI(now time.Time) (*pki, error) {
	p := &pki{from: now.Add(-24 * time.Hour), until: now.AddDate(10, 0, 0)}
	var err error
	if p.ca, p.caKey, p.caPEM, err = p.authority("simcluster-ca"); err != nil {
		return nil, err
	}
	if p.proxyCA, p.proxyKey, p.proxyCAPEM, err = p.authority("simcluster-front-proxy-ca"); err != nil {
		return nil, err
	}
	if p.kubeletKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := p.template("front-proxy-client")
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	p.proxyClient, err = sign(t, p.proxyCA, p.proxyKey, key)
	return p, err
}

func (p *pki) template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: p.from, NotAfter: p.until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
}

func (p *pki) authority(name string) (*x509.Certificate, *ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	t := p.template(name)
	t.IsCA, t.BasicConstraintsValid, t.ExtKeyUsage = true, true, nil
	t.KeyUsage |= x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func sign(t, parent *x509.Certificate, parentKey, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, parentKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign certificate of %q: %w", t.Subject.CommonName, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// apiServer is the API server's certificate for its addresses and names.
func (p *pki) apiServer(addr net.Addr, names []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := p.template("kube-apiserver")
	t.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "simcluster"}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 96, 0, 1)}
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		names = append([]string{host}, names...)
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	return sign(t, p.ca, p.caKey, key)
}

// nodeCert makes a kubelet's serving certificate when it is first needed.
type nodeCert struct {
	once sync.Once
	cert tls.Certificate
	err  error
}

func (p *pki) kubelet(n *Node) (*tls.Certificate, error) {
	n.cert.once.Do(func() {
		t := p.template("system:node:" + n.name)
		t.Subject.Organization = []string{"system:nodes"}
		t.DNSNames = []string{n.name}
		t.IPAddresses = []net.IP{n.addr.AsSlice()}
		n.cert.cert, n.cert.err = sign(t, p.ca, p.caKey, p.kubeletKey)
	})
	return &n.cert.cert, n.cert.err
}

// configMaps are the two through which a cluster tells whom to trust.
func (p *pki) configMaps(epoch time.Time) []*corev1.ConfigMap {
	names := func(s ...string) string {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err) // strings can always be marshalled
		}
		return string(b)
	}
	meta := func(name string, id uint64) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "kube-system", Name: name, UID: types.UID(uidOf(id)), CreationTimestamp: metav1.NewTime(epoch.Add(-72 * time.Hour))}
	}
	return []*corev1.ConfigMap{
		{ObjectMeta: meta("extension-apiserver-authentication", 60), Data: map[string]string{
			"client-ca-file":                     string(p.caPEM),
			"requestheader-client-ca-file":       string(p.proxyCAPEM),
			"requestheader-allowed-names":        names("front-proxy-client"),
			"requestheader-username-headers":     names("X-Remote-User"),
			"requestheader-uid-headers":          names("X-Remote-Uid"),
			"requestheader-group-headers":        names("X-Remote-Group"),
			"requestheader-extra-headers-prefix": names("X-Remote-Extra-"),
		}},
		{ObjectMeta: meta("kube-root-ca.crt", 61), Data: map[string]string{"ca.crt": string(p.caPEM)}},
	}
}

// WriteKubeconfig writes a kubeconfig for the named user ("" = the first) to path, replacing it at once, readable by its
// owner only. It points at the https API server, or at the plain one if there is no other.
func (c *Cluster) WriteKubeconfig(path, user string) error {
	k, err := c.Kubeconfig(user)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".kubeconfig-")
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // gone already when all went well
	_, err = tmp.Write(k)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// Kubeconfig is the kubeconfig for the named user ("" = the first).
func (c *Cluster) Kubeconfig(user string) ([]byte, error) {
	u := c.users[0]
	if user != "" {
		token := c.TokenOf(user)
		if token == "" {
			return nil, fmt.Errorf("make kubeconfig: no user %q in the simulated cluster", user)
		}
		u.Name, u.Token = user, token
	}
	cluster := &clientcmdapi.Cluster{Server: c.APIServer()}
	if s := c.SecureAPIServer(); s != "" {
		cluster = &clientcmdapi.Cluster{Server: s, CertificateAuthorityData: c.CA()}
	}
	b, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"simcluster": cluster},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{u.Name: {Token: u.Token}},
		Contexts:       map[string]*clientcmdapi.Context{"simcluster": {Cluster: "simcluster", AuthInfo: u.Name}},
		CurrentContext: "simcluster",
	})
	if err != nil {
		return nil, fmt.Errorf("make kubeconfig: %w", err)
	}
	return b, nil
}

// foreign is a certificate of the cluster's authority for somebody else.
func (p *pki) foreign() (*tls.Certificate, error) {
	t := p.template("system:node:elsewhere")
	t.DNSNames, t.IPAddresses = []string{"elsewhere"}, []net.IP{net.IPv4(192, 0, 2, 1)}
	cert, err := sign(t, p.ca, p.caKey, p.kubeletKey)
	return &cert, err
}
