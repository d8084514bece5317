package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What every Kubernetes API server publishes for the servers behind it: whose client certificates it trusts, and by
// which certificate, names and headers it introduces the users it forwards.
const (
	lookupNamespace = "kube-system"
	lookupConfigMap = "extension-apiserver-authentication"
)

// How long one look-up of the authentication ConfigMap may take, and the pauses between two of them.
const (
	lookupTimeout  = 10 * time.Second
	lookupPause    = 500 * time.Millisecond
	lookupPauseMax = 15 * time.Second
)

// Delegated is authentication and authorization by the cluster's own API server, in the flags of every aggregated
// API server. Start from [DefaultDelegated].
type Delegated struct {
	// AuthenticationKubeconfig is the kubeconfig for TokenReview and for looking up the authentication
	// ConfigMap; empty means the in-cluster service account.
	AuthenticationKubeconfig string
	// TokenTTL is how long the answer about a token is remembered.
	TokenTTL time.Duration
	// ClientCAFile is the bundle that signs clients known by the CN and O of their certificate. Empty means
	// the cluster's, looked up. The file is read again when it changes.
	ClientCAFile string
	// RequestHeader says whom to believe about the users they forward.
	RequestHeader RequestHeader
	// SkipLookup keeps from asking the cluster for what the CA flags leave out.
	SkipLookup bool

	// AuthorizationKubeconfig is the kubeconfig for SubjectAccessReview; empty means the in-cluster service
	// account.
	AuthorizationKubeconfig string
	// AllowedTTL and DeniedTTL are how long the two answers are remembered.
	AllowedTTL, DeniedTTL time.Duration
}

// RequestHeader says which front proxy may introduce users, and how. Without CAFile all of it is looked up in the
// cluster unless look-up is skipped.
type RequestHeader struct {
	CAFile              string   // who signs the proxy's client certificate; read again when it changes
	AllowedNames        []string // CNs of such certificates; empty means any
	UsernameHeaders     []string // the first that is set counts
	GroupHeaders        []string
	ExtraHeaderPrefixes []string
}

// DefaultDelegated is what Kubernetes defaults to.
func DefaultDelegated() Delegated {
	return Delegated{
		TokenTTL: 10 * time.Second,
		RequestHeader: RequestHeader{
			UsernameHeaders:     []string{"x-remote-user"},
			GroupHeaders:        []string{"x-remote-group"},
			ExtraHeaderPrefixes: []string{"x-remote-extra-"},
		},
		AllowedTTL: 10 * time.Second,
		DeniedTTL:  10 * time.Second,
	}
}

// Flags registers the flags under their Kubernetes names, with the present values as defaults.
func (d *Delegated) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&d.AuthenticationKubeconfig, "authentication-kubeconfig", d.AuthenticationKubeconfig,
		"kubeconfig with which tokens are reviewed and the authentication ConfigMap is read; empty means in-cluster")
	fs.DurationVar(&d.TokenTTL, "authentication-token-webhook-cache-ttl", d.TokenTTL,
		"how long the answer about a token is remembered")
	fs.StringVar(&d.ClientCAFile, "client-ca-file", d.ClientCAFile,
		"CA bundle of clients known by their certificate; empty means the cluster's, looked up")
	fs.StringVar(&d.RequestHeader.CAFile, "requestheader-client-ca-file", d.RequestHeader.CAFile,
		"CA bundle of the front proxy that may introduce users by headers; empty means the cluster's, looked up")
	fs.StringSliceVar(&d.RequestHeader.AllowedNames, "requestheader-allowed-names", d.RequestHeader.AllowedNames,
		"common names the front proxy's certificate may have; empty means any")
	fs.StringSliceVar(&d.RequestHeader.UsernameHeaders, "requestheader-username-headers", d.RequestHeader.UsernameHeaders,
		"headers that carry the user's name")
	fs.StringSliceVar(&d.RequestHeader.GroupHeaders, "requestheader-group-headers", d.RequestHeader.GroupHeaders,
		"headers that carry the user's groups")
	fs.StringSliceVar(&d.RequestHeader.ExtraHeaderPrefixes, "requestheader-extra-headers-prefix", d.RequestHeader.ExtraHeaderPrefixes,
		"prefixes of headers that carry more about the user")
	fs.BoolVar(&d.SkipLookup, "authentication-skip-lookup", d.SkipLookup,
		"do not read "+lookupNamespace+"/"+lookupConfigMap+" for CAs that no flag names")
	fs.StringVar(&d.AuthorizationKubeconfig, "authorization-kubeconfig", d.AuthorizationKubeconfig,
		"kubeconfig with which access is reviewed; empty means in-cluster")
	fs.DurationVar(&d.AllowedTTL, "authorization-webhook-cache-authorized-ttl", d.AllowedTTL,
		"how long a permission is remembered")
	fs.DurationVar(&d.DeniedTTL, "authorization-webhook-cache-unauthorized-ttl", d.DeniedTTL,
		"how long a refusal is remembered")
}

// Validate says all that is wrong with the values, without opening a file.
func (d *Delegated) Validate() error {
	var errs []error
	for _, ttl := range []struct {
		flag  string
		value time.Duration
	}{
		{"authentication-token-webhook-cache-ttl", d.TokenTTL},
		{"authorization-webhook-cache-authorized-ttl", d.AllowedTTL},
		{"authorization-webhook-cache-unauthorized-ttl", d.DeniedTTL},
	} {
		if ttl.value < 0 {
			errs = append(errs, fmt.Errorf("--%s=%s: want a duration of 0 or more", ttl.flag, ttl.value))
		}
	}
	if d.RequestHeader.CAFile != "" && len(d.RequestHeader.UsernameHeaders) == 0 {
		errs = append(errs, errors.New("--requestheader-client-ca-file needs a header in --requestheader-username-headers"))
	}
	o := d.authentication()
	return errors.Join(append(errs, o.Validate()...)...)
}

// Apply builds both parts into cfg, whose SecureServing must be set before: the client CAs become part of it. It
// first reads the authentication ConfigMap if that is needed, and blocks until the API server answers or ctx ends:
// an API server that is away costs waiting, one that refuses costs an error which names the missing right. The
// returned check fails while the front proxy's CA is not known yet.
func (d *Delegated) Apply(ctx context.Context, log *slog.Logger, cfg *server.Config) (healthz.HealthChecker, error) {
	client, err := newClient(d.AuthenticationKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reach the API server that reviews tokens: %w (outside a cluster, --authentication-kubeconfig names it)", err)
	}
	if _, err := newClient(d.AuthorizationKubeconfig); err != nil {
		return nil, fmt.Errorf("reach the API server that reviews access: %w (outside a cluster, --authorization-kubeconfig names it)", err)
	}
	if !d.SkipLookup && (d.ClientCAFile == "" || d.RequestHeader.CAFile == "") {
		if err := lookup(ctx, log, client); err != nil {
			return nil, err
		}
	}
	authentication, authorization := d.authentication(), d.authorization()
	if err := authentication.ApplyTo(&cfg.Authentication, cfg.SecureServing, cfg.OpenAPIConfig); err != nil {
		return nil, fmt.Errorf("delegate authentication: %w", err)
	}
	if err := authorization.ApplyTo(&cfg.Authorization); err != nil {
		return nil, fmt.Errorf("delegate authorization: %w", err)
	}
	front := cfg.Authentication.RequestHeaderConfig
	return healthz.NamedCheck("front-proxy-ca", func(*http.Request) error {
		if front == nil {
			return nil // nobody may introduce users
		}
		if _, ok := front.CAContentProvider.VerifyOptions(); !ok {
			return fmt.Errorf("the front proxy's CA is not in ConfigMap %s/%s yet", lookupNamespace, lookupConfigMap)
		}
		return nil
	}), nil
}

func (d *Delegated) authentication() *options.DelegatingAuthenticationOptions {
	o := options.NewDelegatingAuthenticationOptions()
	o.RemoteKubeConfigFile = d.AuthenticationKubeconfig
	o.CacheTTL = d.TokenTTL
	o.ClientCert.ClientCA = d.ClientCAFile
	o.RequestHeader = options.RequestHeaderAuthenticationOptions{
		ClientCAFile:        d.RequestHeader.CAFile,
		UsernameHeaders:     slices.Clone(d.RequestHeader.UsernameHeaders),
		GroupHeaders:        slices.Clone(d.RequestHeader.GroupHeaders),
		ExtraHeaderPrefixes: slices.Clone(d.RequestHeader.ExtraHeaderPrefixes),
		AllowedNames:        slices.Clone(d.RequestHeader.AllowedNames),
	}
	o.SkipInClusterLookup = d.SkipLookup
	return o
}

// authorization keeps two shortcuts of Kubernetes that Heapster did not have: kubelets probe health without a
// right of their own, and system:masters is not asked about, since its answer is always yes.
func (d *Delegated) authorization() *options.DelegatingAuthorizationOptions {
	o := options.NewDelegatingAuthorizationOptions()
	o.RemoteKubeConfigFile = d.AuthorizationKubeconfig
	o.AllowCacheTTL, o.DenyCacheTTL = d.AllowedTTL, d.DeniedTTL
	return o
}

func newClient(kubeconfig string) (kubernetes.Interface, error) {
	var (
		cfg *rest.Config
		err error
	)
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

// lookup returns when the authentication ConfigMap can be read. The builder in k8s.io/apiserver reads it too, but
// without a deadline and without telling an API server that is away from one that refuses.
func lookup(ctx context.Context, log *slog.Logger, client kubernetes.Interface) error {
	pause, waiting := lookupPause, false
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			_, err := client.CoreV1().ConfigMaps(lookupNamespace).Get(ctx, lookupConfigMap, metav1.GetOptions{})
			return err
		}()
		switch {
		case err == nil:
			if waiting {
				log.Info("API server answers: read whom it trusts", "configmap", lookupNamespace+"/"+lookupConfigMap)
			}
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return fmt.Errorf("read ConfigMap %s/%s: %w (bind the Role extension-apiserver-authentication-reader in %s to this account, or give --authentication-skip-lookup with the CA flags)",
				lookupNamespace, lookupConfigMap, err, lookupNamespace)
		case apierrors.IsNotFound(err):
			return fmt.Errorf("read ConfigMap %s/%s: %w (give --authentication-skip-lookup with --client-ca-file and --requestheader-client-ca-file)",
				lookupNamespace, lookupConfigMap, err)
		}
		if !waiting {
			waiting = true
			log.Warn("API server does not say whom it trusts, asking again", "configmap", lookupNamespace+"/"+lookupConfigMap, "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause = min(2*pause, lookupPauseMax)
		}
	}
}
