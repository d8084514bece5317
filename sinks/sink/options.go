package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/daemon"
)

// Options reads the options of a target. Every reading names an option that the sink knows; [Options.Made]
// then returns all complaints at once, those about unknown options included. An option with an empty
// value counts as not given.
type Options struct {
	t        Target
	known    []string
	errs     []error
	warnings []string
}

// Options begins to read the target's options.
func (t Target) Options() *Options {
	return &Options{t: t, known: []string{"name", "since"}}
}

func (o *Options) get(name string) (string, bool) {
	o.known = append(o.known, name)
	v := o.t.first(name)
	return v, v != ""
}

// Complain adds a complaint of the sink's own.
func (o *Options) Complain(format string, args ...any) {
	o.errs = append(o.errs, fmt.Errorf(format, args...))
}

// Given reports whether the option has a value.
func (o *Options) Given(name string) bool {
	_, ok := o.get(name)
	return ok
}

// String is the option's value, or def.
func (o *Options) String(name, def string) string {
	if v, ok := o.get(name); ok {
		return v
	}
	return def
}

// All are the values of a repeatable option, in order; nil where none is given.
func (o *Options) All(name string) (values []string) {
	o.known = append(o.known, name)
	for _, v := range o.t.all(name) {
		if v != "" {
			values = append(values, v)
		}
	}
	return values
}

// Bool is a switch: 1, t, true, 0, f, false and their upper-case forms.
func (o *Options) Bool(name string, def bool) bool {
	v, ok := o.get(name)
	if !ok {
		return def
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		o.Complain("failed to parse `%s` flag - %q is neither true nor false", name, v)
		return def
	}
	return b
}

// Int is a whole number of at least least.
func (o *Options) Int(name string, def, least int) int {
	v, ok := o.get(name)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	switch {
	case err != nil:
		o.Complain("failed to parse `%s` flag - %q is not a whole number", name, v)
	case n < least && least == 1:
		o.Complain("`%s` flag can only be positive, not %d", name, n)
	case n < least:
		o.Complain("`%s` flag must be at least %d, not %d", name, least, n)
	default:
		return n
	}
	return def
}

// Duration is a positive duration (30s, 5m); a bare number is seconds.
func (o *Options) Duration(name string, def time.Duration) time.Duration {
	v, ok := o.get(name)
	if !ok {
		return def
	}
	d, err := time.ParseDuration(v)
	if n, e := strconv.ParseUint(v, 10, 31); e == nil {
		d, err = time.Duration(n)*time.Second, nil //nolint:gosec // 31 bits
	}
	if err != nil || d <= 0 {
		o.Complain("failed to parse `%s` flag - %q is not a duration such as 30s", name, v)
		return def
	}
	return d
}

// Choice is one of several words; the first is the default.
func (o *Options) Choice(name string, choices ...string) string {
	v, ok := o.get(name)
	if !ok {
		return choices[0]
	}
	if !slices.Contains(choices, v) {
		o.Complain("`%s` flag is %q: want one of %s", name, v, strings.Join(choices, ", "))
		return choices[0]
	}
	return v
}

// Secret is an option that may also be given as a file that holds it, by the option's name with _file
// at its end; a newline at the end of the file is dropped. Its errors do not contain the secret.
func (o *Options) Secret(name, def string) string {
	v, given := o.get(name)
	file, inFile := o.get(name + "_file")
	switch {
	case given && inFile:
		o.Complain("`%s` and `%s_file` are both given: choose one", name, name)
	case inFile:
		s, err := readSecret(file)
		if err != nil {
			o.Complain("`%s_file`: %w", name, err)
			return def
		}
		return s
	case given:
		return v
	}
	return def
}

// Fresh is Secret for one that is rotated, such as a token: what it returns is the secret, read anew from its file at
// each call, or "" where none is given. A file that cannot be read now is a complaint, later an error.
func (o *Options) Fresh(name string) func() (string, error) {
	secret := o.Secret(name, "")
	file, inFile := o.get(name + "_file")
	if !inFile {
		return func() (string, error) { return secret, nil }
	}
	return fresh(name+"_file", file)
}

// FreshFile is the same for an option that is the name of a file and has no other form.
func (o *Options) FreshFile(name string) func() (string, error) {
	file, given := o.get(name)
	if !given {
		return func() (string, error) { return "", nil }
	}
	read := fresh(name, file)
	if _, err := read(); err != nil {
		o.Complain("%w", err)
	}
	return read
}

func fresh(name, file string) func() (string, error) {
	return func() (string, error) {
		s, err := readSecret(file)
		if err != nil {
			return "", fmt.Errorf("`%s`: %w", name, err)
		}
		return s, nil
	}
}

// Meaningless accepts an option that Heapster had and that has no meaning any more, with a warning that
// says why.
func (o *Options) Meaningless(name, why string) {
	if _, ok := o.get(name); ok {
		o.warnings = append(o.warnings, fmt.Sprintf("option `%s` means nothing any more: %s", name, why))
	}
}

// Elsewhere accepts an option that another part of the program reads.
func (o *Options) Elsewhere(name string) { o.known = append(o.known, name) }

// Warn adds to what an operator should hear about options that are accepted.
func (o *Options) Warn(format string, args ...any) {
	o.warnings = append(o.warnings, fmt.Sprintf(format, args...))
}

// Made ends the making of a sink: it returns s and tells the log of warnings about its options, or returns what is wrong
// with them, as Done does.
func (o *Options) Made(s Sink, log *slog.Logger) (Sink, error) {
	if err := o.Done(); err != nil {
		return nil, err
	}
	for _, w := range o.warnings {
		log.Warn(w)
	}
	return s, nil
}

// Done returns everything that is wrong with the options, joined: each with the sink's key, the option
// and what would be right.
func (o *Options) Done() error {
	seen := map[string]bool{}
	for _, given := range o.t.query {
		if seen[given.name] || slices.Contains(o.known, given.name) {
			continue
		}
		seen[given.name] = true
		if near := daemon.Nearest(given.name, o.known); near != "" {
			o.Complain("option `%s` is unknown: did you mean `%s`?", given.name, near)
		} else {
			known := slices.Clone(o.known)
			slices.Sort(known)
			o.Complain("option `%s` is unknown; known are %s", given.name, strings.Join(slices.Compact(known), ", "))
		}
	}
	for i, err := range o.errs {
		o.errs[i] = fmt.Errorf("sink %q: %w", o.t.Key, err)
	}
	return errors.Join(o.errs...)
}

// Common are the options that every sink has; see OptionsHelp. None of them has a name that an option of
// Heapster's had with another meaning: gcm's `metrics=all` are all that Heapster had, which is why what goes
// beyond is `extended`.
type Common struct {
	Basics

	// View is what is to be written, with `filter`, `rename` and `extended` applied: an encoder begins
	// with a copy of it. It must not be used by two goroutines at once.
	View View
}

// Basics are the options that sinks of rollups and of events have alike.
type Basics struct {
	ClusterName string        // `cluster_name`: what the sink calls the cluster; its name on the bus where not given
	Named       bool          // `cluster_name` was given
	Timeout     time.Duration // `timeout` of one Write
	Concurrency int           // `concurrency`: how many of this sink the worker builds and writes to at once
}

func (o *Options) basics(d Deps) Basics {
	return Basics{
		ClusterName: o.String("cluster_name", d.Cluster), Named: o.Given("cluster_name"),
		Timeout: o.Duration("timeout", d.Timeout), Concurrency: o.concurrency(),
	}
}

// ClusterLabel is `cluster_name` as a label, where it was given; else nothing.
func (b *Basics) ClusterLabel() []proto.Label {
	if !b.Named {
		return nil
	}
	return []proto.Label{{Key: proto.LabelClusterName, Value: b.ClusterName}}
}

// MaxConcurrency bounds `concurrency`.
const MaxConcurrency = 64

// Common reads the options that every sink has.
func (o *Options) Common(d Deps) Common {
	return Common{
		Basics: o.basics(d),
		View:   View{Labels: d.Labels, All: o.Bool("extended", false), filter: o.filter(), renames: o.renames()},
	}
}

func (o *Options) concurrency() int {
	n := o.Int("concurrency", 1, 1)
	if n > MaxConcurrency {
		o.Complain("`concurrency` flag is %d: at most %d", n, MaxConcurrency)
		return 1
	}
	return n
}

// BatchSize reads `batchsize`, the most samples in one request: def where it is not given, at most most.
func (o *Options) BatchSize(def, most int) int {
	n := o.Int("batchsize", def, 1)
	if n > most {
		o.Complain("`batchsize` flag is %d: at most %d", n, most)
		return def
	}
	return n
}

// HTTP is a client for a sink that speaks HTTP, with the TLS of the options. It follows no redirect: a
// redirected POST would come out as a GET that succeeds and writes nothing. One connection is enough, since a
// sink writes one request at a time.
func (o *Options) HTTP() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: o.TLS(), ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// TLS reads `cacert`, `cert`, `key` and `insecuressl`, the options of every sink that can speak TLS, and
// reads the files they name. The configuration is never nil.
func (o *Options) TLS() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.Bool("insecuressl", false)} //nolint:gosec // asked for by name
	if file := o.String("cacert", ""); file != "" {
		pem, err := os.ReadFile(file)
		c.RootCAs = x509.NewCertPool()
		if err != nil {
			o.Complain("`cacert`: %w", err)
		} else if !c.RootCAs.AppendCertsFromPEM(pem) {
			o.Complain("`cacert`: no certificate in %q (want PEM)", file)
		}
	}
	cert, key := o.String("cert", ""), o.String("key", "")
	switch {
	case (cert == "") != (key == ""):
		o.Complain("`cert` and `key` belong together")
	case cert != "":
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			o.Complain("`cert` and `key`: %w", err)
		}
		// Read anew at every connect, so that a rotated certificate is taken up.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("read client certificate: %w", err)
			}
			return &pair, nil
		}
	}
	return c
}

// Since is where a sink that has not run before begins.
type Since struct {
	now  bool
	back time.Duration
	at   time.Time
}

// Since reads the option `since`: "" for everything the stream holds, now, a duration back from the
// first start (2h), or an instant (RFC 3339). A sink that has run before goes on where it was.
func (t Target) Since() (Since, error) {
	switch v := t.first("since"); v {
	case "":
		return Since{}, nil
	case "now":
		return Since{now: true}, nil
	default:
		if d, err := time.ParseDuration(v); err == nil && d > 0 {
			return Since{back: d}, nil
		}
		at, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return Since{}, fmt.Errorf("sink %q: `since` flag is %q: want now, a duration such as 2h, or an instant such as 2006-01-02T15:04:05Z", t.Key, v)
		}
		return Since{at: at}, nil
	}
}

// From is the same as an instant, or whether only what is new is meant.
func (s Since) From(now time.Time) (isNew bool, from time.Time) {
	if s.back > 0 {
		return false, now.Add(-s.back)
	}
	return s.now, s.at
}

// Concurrency is the option `concurrency` of a target that was checked before.
func (t Target) Concurrency() int { return t.Options().concurrency() }

// Timeout is the option `timeout` of a target that was checked before, or def.
func (t Target) Timeout(def time.Duration) time.Duration {
	return t.Options().Duration("timeout", def)
}
