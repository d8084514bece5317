package bus_test

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
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/bus/embedded"
)

// authority signs certificates for tests.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // PEM
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &a.key.PublicKey, a.key)
	must(t, err)
	a.file = a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	file := filepath.Join(a.dir, name)
	must(a.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}

// issue makes a certificate for a server of that DNS name, or for a client.
func (a *authority) issue(name string) (cert, key string) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &k.PublicKey, a.key)
	must(a.t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	must(a.t, err)
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+".key", "PRIVATE KEY", raw)
}

// refused checks that the connection never comes up, that the reason is logged
// once, and that no log or error tells a secret.
func refused(t *testing.T, c *bus.Conn, log *lines, reason string, secrets ...string) {
	t.Helper()
	for until := deadline(t); c.Status() == nil || !strings.Contains(c.Status().Error(), reason) || log.count("") == 0; time.Sleep(time.Millisecond) {
		if until.Err() != nil {
			t.Fatalf("status: %v, want %q; it says\n%s", c.Status(), reason, log)
		}
	}
	// and as long as it takes to be refused several times
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := c.WaitUp(ctx)
	if err == nil || !strings.Contains(err.Error(), reason) {
		t.Fatalf("wait: %v, want %q", err, reason)
	}
	if status := c.Status(); status == nil || !strings.Contains(status.Error(), reason) {
		t.Fatalf("status: %v, want %q", status, reason)
	}
	if n := strings.Count(log.String(), "level=WARN") + strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, log)
	}
	for _, s := range secrets {
		if strings.Contains(log.String()+err.Error(), s) {
			t.Errorf("a secret is told: %v\n%s", err, log)
		}
	}
}

// works checks that a message can be stored.
func works(t *testing.T, c *bus.Conn) {
	t.Helper()
	must(t, c.WaitUp(deadline(t)))
	bustest.Provision(t, c, "prod")
	_, err := c.Publisher(bus.PublisherConfig{}).Publish(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", "n"), ID: t.Name()})
	must(t, err)
}

func TestServerIsVerified(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	cert, key := ours.issue("bus.example")
	s := bustest.Configure(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }", cert, key))
	connect := func(ca, name string) (*bus.Conn, *lines) {
		log := &lines{}
		return s.Conn(t, bus.Config{CAFile: ca, ServerName: name}, log.logger()), log
	}
	c, _ := connect(ours.file, "bus.example")
	works(t, c)
	c, log := connect(other.file, "bus.example")
	refused(t, c, log, "certificate signed by unknown authority")
	c, log = connect(ours.file, "another.example")
	refused(t, c, log, "certificate is valid for bus.example, not another.example")
	c, log = connect(ours.file, "") // the name of the URL
	refused(t, c, log, "127.0.0.1")
	c, log = connect("", "") // the system's roots
	refused(t, c, log, "x509: ")
	must(t, s.Conn(t, bus.Config{InsecureSkipVerify: true}, bustest.Logger(t)).WaitUp(deadline(t)))
}

func TestPlainServerIsRefusedWhereTLSIsAsked(t *testing.T) {
	t.Parallel()
	s, log := bustest.Configure(t, ""), &lines{}
	refused(t, s.Conn(t, bus.Config{CAFile: newAuthority(t, "ours").file}, log.logger()), log, "secure connection not available")
}

func TestClientCertificateIsDemanded(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	cert, key := ours.issue("bus.example")
	cfg := embedded.DefaultConfig()
	cfg.StoreDir, cfg.MaxStore, cfg.Listen = t.TempDir(), 1<<40, "127.0.0.1:0"
	cfg.CertFile, cfg.KeyFile, cfg.CAFile = cert, key, ours.file
	es, err := embedded.New(cfg, bustest.Logger(t))
	must(t, err)
	t.Cleanup(es.Shutdown)
	must(t, es.Start(t.Context()))
	connect := func(a *authority) (*bus.Conn, *lines) {
		cfg, log := bus.DefaultConfig(), &lines{}
		cfg.URLs, cfg.CAFile, cfg.ServerName, cfg.ReconnectWait = []string{es.ClientURL()}, ours.file, "bus.example", 5*time.Millisecond
		if a != nil {
			cfg.CertFile, cfg.KeyFile = a.issue("client")
		}
		c, err := bus.Connect(t.Context(), cfg, log.logger())
		must(t, err)
		t.Cleanup(c.Close)
		return c, log
	}
	c, _ := connect(ours)
	works(t, c)
	c, log := connect(nil)
	refused(t, c, log, "another client certificate than none")
	c, log = connect(other)
	refused(t, c, log, "another client certificate than \"")
	// in this process there is nothing to encrypt
	local, err := bus.ConnectLocal(t.Context(), es, bus.DefaultConfig(), bustest.Logger(t))
	must(t, err)
	t.Cleanup(local.Close)
	works(t, local)
}

// file writes content to a file, in one step as a rotated secret is.
func file(t testing.TB, path, content string) string {
	t.Helper()
	must(t, os.WriteFile(path+".new", []byte(content), 0o600))
	must(t, os.Rename(path+".new", path))
	return path
}

func TestPasswordAndTokenAreReadAnew(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]struct {
		conf string // with %s for the secret
		cfg  func(*bus.Config, string)
		who  string
	}{
		"password": {"authorization { user: scraper, password: %q }", func(c *bus.Config, f string) { c.User, c.PasswordFile = "scraper", f }, `user \"scraper\"`},
		"token":    {"authorization { token: %q }", func(c *bus.Config, f string) { c.TokenFile = f }, "the token of"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "secret")
			file(t, path, "first-secret\n")
			s := bustest.Configure(t, fmt.Sprintf(kind.conf, "first-secret"))
			connect := func() (*bus.Conn, *lines) {
				var cfg bus.Config
				kind.cfg(&cfg, path)
				log := &lines{}
				return s.Conn(t, cfg, log.logger()), log
			}
			c, log := connect()
			works(t, c)
			s.Stop()
			file(t, path, "second-secret\n")
			s.Up(fmt.Sprintf(kind.conf, "second-secret"))
			works(t, c)
			if strings.Contains(log.String(), "-secret") {
				t.Errorf("a secret is told:\n%s", log)
			}

			file(t, path, "wrong-secret\n")
			c, log = connect()
			refused(t, c, log, "Authorization Violation", "wrong-secret", "second-secret")
			if !strings.Contains(log.String(), "the server refuses "+kind.who) {
				t.Errorf("the log does not say whom the server refuses:\n%s", log)
			}
			// the file is there when we begin and gone later
			must(t, os.Remove(path))
			other := &lines{}
			cfg := bus.Config{}
			file(t, path, "wrong-secret")
			kind.cfg(&cfg, path)
			c = s.Conn(t, cfg, other.logger())
			must(t, os.Remove(path))
			for until := deadline(t); !strings.Contains(fmt.Sprint(c.Status()), "no such file"); {
				if until.Err() != nil {
					t.Fatalf("status %v does not say that the file is gone", c.Status())
				}
				time.Sleep(time.Millisecond)
			}
			file(t, path, "second-secret") // and it is mended without a restart
			works(t, c)
		})
	}
}

func TestNKeyIsTaken(t *testing.T) {
	t.Parallel()
	seedFile := func(k nkeys.KeyPair, name string) string {
		seed, err := k.Seed()
		must(t, err)
		return file(t, filepath.Join(t.TempDir(), name), string(seed))
	}
	right, err := nkeys.CreateUser()
	must(t, err)
	wrong, err := nkeys.CreateUser()
	must(t, err)
	public, err := right.PublicKey()
	must(t, err)
	s := bustest.Configure(t, fmt.Sprintf("authorization { users = [ {nkey: %s} ] }", public))
	works(t, s.Conn(t, bus.Config{NKeyFile: seedFile(right, "right")}, bustest.Logger(t)))
	seed, err := wrong.Seed()
	must(t, err)
	log := &lines{}
	refused(t, s.Conn(t, bus.Config{NKeyFile: seedFile(wrong, "wrong")}, log.logger()), log, "Authorization Violation", string(seed))

	// what is no seed is said at once, without showing it
	cfg := bus.Config{URLs: []string{"nats://127.0.0.1:1"}, NKeyFile: file(t, filepath.Join(t.TempDir(), "bad"), "SUNOTASEED-but-secret")}
	if _, err := bus.Connect(t.Context(), cfg, bustest.Logger(t)); err == nil || strings.Contains(err.Error(), "but-secret") {
		t.Fatalf("connect with a seed that is none: %v", err)
	}
}

// operator is an operator with one account, as `nsc` makes them.
type operator struct {
	t                 testing.TB
	operator, account nkeys.KeyPair
	conf              string
}

func newOperator(t testing.TB) *operator {
	t.Helper()
	o := &operator{t: t}
	var err error
	o.operator, err = nkeys.CreateOperator()
	must(t, err)
	o.account, err = nkeys.CreateAccount()
	must(t, err)
	public := func(k nkeys.KeyPair) string {
		p, err := k.PublicKey()
		must(t, err)
		return p
	}
	op := jwt.NewOperatorClaims(public(o.operator))
	opJWT, err := op.Encode(o.operator)
	must(t, err)
	acc := jwt.NewAccountClaims(public(o.account))
	acc.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
	accJWT, err := acc.Encode(o.operator)
	must(t, err)
	system, err := nkeys.CreateAccount()
	must(t, err)
	sys := jwt.NewAccountClaims(public(system))
	sysJWT, err := sys.Encode(o.operator)
	must(t, err)
	o.conf = fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: { %s: %s, %s: %s }\n",
		opJWT, public(system), public(o.account), accJWT, public(system), sysJWT)
	return o
}

// creds are a user's credentials, signed by the account or by somebody else.
func (o *operator) creds(signer nkeys.KeyPair, expires time.Time, publish, subscribe []string) (content, seed string) {
	o.t.Helper()
	user, err := nkeys.CreateUser()
	must(o.t, err)
	p, err := user.PublicKey()
	must(o.t, err)
	claims := jwt.NewUserClaims(p)
	if !expires.IsZero() {
		claims.Expires = expires.Unix()
	}
	claims.Pub.Allow.Add(publish...)
	claims.Sub.Allow.Add(subscribe...)
	token, err := claims.Encode(signer)
	must(o.t, err)
	raw, err := user.Seed()
	must(o.t, err)
	both, err := jwt.FormatUserConfig(token, raw)
	must(o.t, err)
	return string(both), string(raw)
}

func TestCredentialsFileIsTaken(t *testing.T) {
	t.Parallel()
	o := newOperator(t)
	s := bustest.Configure(t, o.conf)
	path := filepath.Join(t.TempDir(), "user.creds")
	content, _ := o.creds(o.account, time.Time{}, nil, nil)
	all := s.Conn(t, bus.Config{CredsFile: file(t, path, content)}, bustest.Logger(t))
	works(t, all)

	// a role's permissions hold in a token as well
	publish, subscribe := bus.Permissions(bus.RoleScraper, "prod")
	content, _ = o.creds(o.account, time.Time{}, publish, subscribe)
	c := s.Conn(t, bus.Config{CredsFile: file(t, filepath.Join(t.TempDir(), "scraper.creds"), content),
		InboxPrefix: bus.InboxPrefix(bus.RoleScraper, "prod")}, bustest.Logger(t))
	must(t, c.WaitUp(deadline(t)))
	p := c.Publisher(bus.PublisherConfig{})
	_, err := p.Publish(deadline(t), bus.Message{Subject: bus.SamplesSubject("prod", "n"), ID: "x"})
	must(t, err)
	if _, err = p.Publish(deadline(t), bus.Message{Subject: bus.ClockSubject("prod"), ID: "x"}); !errors.Is(err, bus.ErrNotPermitted) {
		t.Fatal(err)
	}

	// signed by somebody else; and not valid any more
	stranger, err := nkeys.CreateAccount()
	must(t, err)
	for name, bad := range map[string]struct {
		signer  nkeys.KeyPair
		expires time.Time
	}{"stranger": {stranger, time.Time{}}, "expired": {o.account, time.Now().Add(-time.Hour)}} {
		content, seed := o.creds(bad.signer, bad.expires, nil, nil)
		log := &lines{}
		c := s.Conn(t, bus.Config{CredsFile: file(t, filepath.Join(t.TempDir(), name), content)}, log.logger())
		refused(t, c, log, "the server refuses the credentials of", seed)
	}

	// rotated while we are away
	s.Stop()
	content, _ = o.creds(o.account, time.Time{}, nil, nil)
	file(t, path, content)
	s.Up(o.conf)
	works(t, all)
}
