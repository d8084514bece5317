package kube

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceAccountToken is where a pod finds the token of its ServiceAccount.
const ServiceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// Config says which API server to use, and as whom.
type Config struct {
	Server            string // scheme://host[:port]; overrides what the others say
	InCluster         bool   // use the ServiceAccount of this pod
	Kubeconfig        string // file whose current context is used; Server and Insecure then mean nothing
	Insecure          bool   // do not verify the API server's certificate
	UseServiceAccount bool   // use the ServiceAccount's token where it is readable, whatever else is said
}

// Rest makes client-go's configuration. Its errors name what is missing and the way out.
func (c Config) Rest() (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	switch {
	case c.Kubeconfig != "":
		// Not from defaults: no environment, no ~/.kube.
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
			&clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}, &clientcmd.ConfigOverrides{}).ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("read kubeconfig %q: %w", c.Kubeconfig, err)
		}
	case c.InCluster:
		cfg, err = rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("find the API server from inside the cluster: %w; outside of one give --kubeconfig, or a --source with inClusterConfig=false", err)
		}
		if c.Server != "" {
			cfg.Host = c.Server
		}
		if c.Insecure {
			cfg.TLSClientConfig = rest.TLSClientConfig{Insecure: true}
		}
	case c.Server != "":
		cfg = &rest.Config{Host: c.Server, TLSClientConfig: rest.TLSClientConfig{Insecure: c.Insecure}}
	default:
		return nil, errors.New("no API server is known: give its address, --kubeconfig, or inClusterConfig=true inside a cluster")
	}
	if c.UseServiceAccount {
		if token, err := os.ReadFile(ServiceAccountToken); err == nil && len(strings.TrimSpace(string(token))) > 0 {
			cfg.BearerToken, cfg.BearerTokenFile = strings.TrimSpace(string(token)), ServiceAccountToken
		}
	}
	return cfg, nil
}

// scheme knows the types that we read: core/v1, and metadata alone of everything else.
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), metav1.AddMetaToScheme(s)); err != nil {
		return nil, fmt.Errorf("register API types: %w", err)
	}
	return s, nil
}

// NewClient makes a client; it opens no connection.
func NewClient(cfg *rest.Config) (*Client, error) {
	s, err := newScheme()
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(s).WithoutConversion()
	cfg.GroupVersion = &schema.GroupVersion{}
	cfg.APIPath = "/" // never sent: paths are absolute
	cfg.ContentType = runtime.ContentTypeProtobuf
	cfg.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.UserAgent = "heapstream-scraper"
	cfg.QPS = -1 // a few watches; the server has its own priorities
	cfg.WarningHandler = rest.NoWarnings{}
	r, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("set up the connection to API server %q: %w", cfg.Host, err)
	}
	return &Client{rest: r, host: cfg.Host, timeout: 30 * time.Second}, nil
}

// Identity is who we are to the API server, and whom we trust: kubelets mostly take the same.
type Identity struct {
	Token, TokenFile          string
	CertFile, KeyFile, CAFile string
	CertData, KeyData, CAData []byte // PEM
	Insecure                  bool   // its certificate is not verified
}

// IdentityOf is the identity of a client configuration.
func IdentityOf(c *rest.Config) *Identity {
	return &Identity{Token: c.BearerToken, TokenFile: c.BearerTokenFile, CertFile: c.CertFile, KeyFile: c.KeyFile, CAFile: c.CAFile,
		CertData: c.CertData, KeyData: c.KeyData, CAData: c.CAData, Insecure: c.Insecure}
}
