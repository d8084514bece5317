// Package authtest is the little of a Kubernetes API server that delegated authentication and authorization ask,
// for tests: TokenReview, SubjectAccessReview and the ConfigMap that says whom to trust, over real HTTPS, with
// authorities that issue real certificates.
//
// Not here: nodes, pods and everything else of a cluster (e2e/simcluster).
package authtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ConfigMapPath is where the API server says whom it trusts.
const ConfigMapPath = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"

// APIServer answers reviews. Its fields are set before it is asked the first time.
type APIServer struct {
	// Users are the tokens it knows.
	Users map[string]authenticationv1.UserInfo
	// Allow decides about access; nil denies everything.
	Allow func(authorizationv1.SubjectAccessReviewSpec) bool
	// Refuse, if not nil, may answer a request in its place and then returns true.
	Refuse func(w http.ResponseWriter, r *http.Request) bool

	// Clients signs client certificates, FrontProxy the one of the API server as a proxy ("front-proxy-client").
	Clients, FrontProxy *CA
	// Kubeconfig is a file that leads here.
	Kubeconfig string

	mu      sync.Mutex
	reviews []authorizationv1.SubjectAccessReviewSpec
	tokens  int
}

// Reviews returns the access reviews asked for so far, oldest first.
func (a *APIServer) Reviews() []authorizationv1.SubjectAccessReviewSpec {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]authorizationv1.SubjectAccessReviewSpec(nil), a.reviews...)
}

// TokenReviews returns how many tokens were reviewed so far.
func (a *APIServer) TokenReviews() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tokens
}

// Start serves until the test ends.
func Start(t testing.TB) *APIServer {
	t.Helper()
	a := &APIServer{Clients: NewCA(t, "cluster-ca"), FrontProxy: NewCA(t, "front-proxy-ca")}
	server := httptest.NewTLSServer(a)
	t.Cleanup(func() {
		server.CloseClientConnections() // watches
		server.Close()
	})
	a.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{
		Server:                   server.URL,
		CertificateAuthorityData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	config.CurrentContext = "c"
	if err := clientcmd.WriteToFile(*config, a.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	return a
}

// ServeHTTP is the API server.
func (a *APIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.Refuse != nil && a.Refuse(w, r) {
		return
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Path == ConfigMapPath:
		write(w, a.configMap())
	case r.Method == http.MethodGet && r.URL.Path == "/api/v1/namespaces/kube-system/configmaps":
		a.configMaps(w, r)
	case r.Method == http.MethodPost && r.URL.Path == "/apis/authentication.k8s.io/v1/tokenreviews":
		var review authenticationv1.TokenReview
		if !read(w, r, &review) {
			return
		}
		a.mu.Lock()
		a.tokens++
		a.mu.Unlock()
		review.Status.User, review.Status.Authenticated = a.Users[review.Spec.Token]
		write(w, &review)
	case r.Method == http.MethodPost && r.URL.Path == "/apis/authorization.k8s.io/v1/subjectaccessreviews":
		var review authorizationv1.SubjectAccessReview
		if !read(w, r, &review) {
			return
		}
		a.mu.Lock()
		a.reviews = append(a.reviews, review.Spec)
		a.mu.Unlock()
		review.Status.Allowed = a.Allow != nil && a.Allow(review.Spec)
		write(w, &review)
	default:
		Fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, r.Method+" "+r.URL.Path+" is not served here")
	}
}

func (a *APIServer) configMap() *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "extension-apiserver-authentication", UID: "1", ResourceVersion: "1"},
		Data: map[string]string{
			"client-ca-file":                     string(a.Clients.PEM()),
			"requestheader-client-ca-file":       string(a.FrontProxy.PEM()),
			"requestheader-allowed-names":        `["front-proxy-client"]`,
			"requestheader-username-headers":     `["X-Remote-User"]`,
			"requestheader-group-headers":        `["X-Remote-Group"]`,
			"requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
		},
	}
}

// configMaps lists, or watches what never changes, as a reflector asks for it.
func (a *APIServer) configMaps(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") == "" {
		write(w, &corev1.ConfigMapList{
			TypeMeta: metav1.TypeMeta{Kind: "ConfigMapList", APIVersion: "v1"},
			ListMeta: metav1.ListMeta{ResourceVersion: "1"},
			Items:    []corev1.ConfigMap{*a.configMap()},
		})
		return
	}
	w.Header().Set("Content-Type", "application/json")
	event := func(kind string, object any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object}) // a client that left is not our concern
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		event("ADDED", a.configMap())
		end := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}}
		end.ResourceVersion = "1"
		end.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		event("BOOKMARK", end)
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(into); err != nil {
		Fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return false
	}
	return true
}

func write(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object) // a client that left is not our concern
}

// Fail answers with a Status.
func Fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{ // a client that left is not our concern
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}

// CA is a certificate authority.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority that is valid for an hour.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	template := template(t, pkix.Name{CommonName: name})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	key := newKey(t)
	return &CA{cert: sign(t, template, template, key, key), key: key}
}

// PEM is the authority's certificate.
func (c *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
}

// File writes PEM into a file.
func (c *CA) File(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(path, c.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Client issues a client certificate for a user of these groups.
func (c *CA) Client(t testing.TB, name string, groups ...string) tls.Certificate {
	t.Helper()
	template := template(t, pkix.Name{CommonName: name, Organization: groups})
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return c.issue(t, template)
}

// Server issues a serving certificate for this machine and the name.
func (c *CA) Server(t testing.TB, name string) tls.Certificate {
	t.Helper()
	template := template(t, pkix.Name{CommonName: name})
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	template.DNSNames = []string{name, "localhost"}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	return c.issue(t, template)
}

func (c *CA) issue(t testing.TB, template *x509.Certificate) tls.Certificate {
	key := newKey(t)
	leaf := sign(t, template, c.cert, key, c.key)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// Files writes certificate and key, PEM both, into files of dir with this base name.
func Files(t testing.TB, dir, name string, cert tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func template(t testing.TB, subject pkix.Name) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func sign(t testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
