package resourceapi

import (
	"errors"
	"fmt"
	"net"

	"github.com/spf13/pflag"
	"k8s.io/apiserver/pkg/server/options"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/heapstream/heapstream/apigw/auth"
)

// Config is what an operator may choose about the aggregated API server. Start from [DefaultConfig].
type Config struct {
	// BindAddress and Port are where HTTPS is served. Port 0 means not at all.
	BindAddress net.IP
	Port        int
	// CertFile and KeyFile are the serving certificate, read again when they change. Without them one is made
	// and signed by itself: kept in CertDir as apiserver.crt and apiserver.key, or in memory if that is empty.
	CertFile, KeyFile, CertDir string
	// CAFile is accepted from Heapster's command line and not used: intermediates belong behind the certificate
	// in CertFile.
	CAFile string
	// SNI are further certificates for other names.
	SNI []cliflag.NamedCertKey
	// Auth is who may ask.
	Auth auth.Delegated
	// Audit is what is written down of who asked for what: nothing without a policy. Nil is nothing, too.
	Audit *options.AuditOptions

	ignored ignored
}

// ignored are flags that Heapster parsed and never applied. So do we.
type ignored struct{ profiling, contentionProfiling, swaggerUI bool }

// DefaultConfig serves on port 6443 of all addresses with a certificate in memory: Heapster 1.5's port, and no
// directory, since our images have none that can be written.
func DefaultConfig() Config {
	return Config{
		BindAddress: net.IPv4zero,
		Port:        6443,
		Auth:        auth.DefaultDelegated(),
		Audit:       options.NewAuditOptions(),
		ignored:     ignored{profiling: true},
	}
}

// Flags registers Heapster's flags of the aggregated API server, and those of Kubernetes for auditing, with the present
// values as defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.IPVar(&c.BindAddress, "bind-address", c.BindAddress, "address on which the resource metrics API is served")
	fs.IntVar(&c.Port, "secure-port", c.Port, "port on which the resource metrics API is served over HTTPS; 0 turns it off")
	fs.StringVar(&c.CertDir, "cert-dir", c.CertDir,
		"directory that keeps the self-signed certificate if --tls-cert-file is not given; empty keeps it in memory")
	fs.StringVar(&c.CertFile, "tls-cert-file", c.CertFile, "serving certificate (PEM, intermediates behind it); read again when it changes")
	fs.StringVar(&c.KeyFile, "tls-private-key-file", c.KeyFile, "private key of --tls-cert-file")
	fs.StringVar(&c.CAFile, "tls-ca-file", c.CAFile, "accepted and not used: put intermediates into --tls-cert-file")
	fs.Var(cliflag.NewNamedCertKeyArray(&c.SNI), "tls-sni-cert-key",
		"certificate and key for other names, as `cert,key[:pattern,...]`; repeatable")
	c.Auth.Flags(fs)
	c.Audit.AddFlags(fs)
	fs.BoolVar(&c.ignored.profiling, "profiling", c.ignored.profiling, "accepted and not used: /debug/pprof/ is served to who may read it")
	fs.BoolVar(&c.ignored.contentionProfiling, "contention-profiling", c.ignored.contentionProfiling, "accepted and not used")
	fs.BoolVar(&c.ignored.swaggerUI, "enable-swagger-ui", c.ignored.swaggerUI, "accepted and not used")
}

// Validate says all that is wrong with the values, without opening a file.
func (c *Config) Validate() error {
	var errs []error
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("--secure-port=%d: want 0 to 65535", c.Port))
	}
	if c.BindAddress == nil {
		errs = append(errs, errors.New("--bind-address is empty: want an IP address such as 0.0.0.0"))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-private-key-file need each other"))
	}
	if c.Audit != nil {
		errs = append(errs, c.Audit.Validate()...)
		if c.Audit.PolicyFile == "" && (c.Audit.LogOptions.Path != "" || c.Audit.WebhookOptions.ConfigFile != "") {
			errs = append(errs, errors.New("--audit-log-path and --audit-webhook-config-file need --audit-policy-file: without a policy nothing is recorded"))
		}
	}
	return errors.Join(append(errs, c.Auth.Validate())...)
}
