package sink

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Target is the value of one --sink, taken apart by Heapster's grammar:
//
//	VALUE = KEY [ ":" REST ]
//
// KEY is the text before the first colon. In REST, $NAME and ${NAME} are replaced from the environment
// (a lone $ is therefore lost, as it was in Heapster), then it is parsed as a URL reference; in its
// query ";" separates as "&" does. Quotes around VALUE or REST, as YAML lists leave them, are dropped.
type Target struct {
	Key   string
	URL   url.URL
	query []option
}

type option struct{ name, value string }

// maxTarget bounds the value of a --sink, and what it expands to.
const maxTarget = 64 << 10

// ParseTarget takes the value of a --sink apart, with variables from this process's environment. Its
// errors name the sink without repeating what may be a secret.
func ParseTarget(value string) (Target, error) { return parseTarget(value, os.Getenv) }

func parseTarget(value string, getenv func(string) string) (Target, error) {
	if len(value) > maxTarget {
		return Target{}, fmt.Errorf("sink of %d bytes: at most %d", len(value), maxTarget)
	}
	key, rest, _ := strings.Cut(unquote(value), ":")
	if key = strings.TrimSpace(key); key == "" {
		return Target{}, fmt.Errorf("missing uri key in '%s': want KEY or KEY:URL, such as influxdb:http://host:8086", clip(value))
	}
	rest = os.Expand(unquote(rest), getenv)
	if len(rest) > maxTarget {
		return Target{}, fmt.Errorf("sink %q is %d bytes long with its variables: at most %d", key, len(rest), maxTarget)
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Target{}, fmt.Errorf("sink %q: its address is not a URL: %w (an address such as 10.0.0.1:8086 needs a scheme: http://10.0.0.1:8086)", key, reasonOf(err))
	}
	t := Target{Key: key, URL: *u}
	for pair := range strings.FieldsFuncSeq(u.RawQuery, func(r rune) bool { return r == '&' || r == ';' }) {
		name, v, _ := strings.Cut(pair, "=")
		n, err := url.QueryUnescape(name)
		if err != nil {
			return Target{}, fmt.Errorf("sink %q: the name of option %q: %w", key, name, err)
		}
		if v, err = url.QueryUnescape(v); err != nil {
			return Target{}, fmt.Errorf("sink %q: option %q has a bad percent escape (write %% as %%25)", key, n)
		}
		t.query = append(t.query, option{n, v})
	}
	return t, nil
}

// unquote drops one pair of quotes around s.
func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// clip keeps what comes before anything that may be a secret.
func clip(s string) string {
	if i := strings.IndexAny(s, "?@"); i >= 0 {
		s = s[:i] + "…"
	}
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return s
}

// reasonOf drops what url.Error repeats of its input.
func reasonOf(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// Canonical is the target as Heapster printed and compared it (--historical_source): with its secrets.
// Never log it.
func (t Target) Canonical() string {
	if s := t.URL.String(); s != "" {
		return t.Key + ":" + s
	}
	return t.Key
}

// redacted stands for what must not be seen.
const redacted = "xxxxx"

// String is the canonical form without secrets: values of options that hold one, and the password of a
// user in the address, are replaced.
func (t Target) String() string {
	u := t.URL
	pairs := make([]string, 0, len(t.query))
	for _, o := range t.query {
		v := url.QueryEscape(o.value)
		if secret(o.name) && v != "" {
			v = redacted
		}
		pairs = append(pairs, url.QueryEscape(o.name)+"="+v)
	}
	u.RawQuery = strings.Join(pairs, "&")
	s := u.Redacted()
	if u.Opaque != "" { // user:password@host without // is not seen as one by net/url
		if i := strings.LastIndexByte(u.Opaque, '@'); i >= 0 {
			u.Opaque = redacted + u.Opaque[i:]
			s = u.String()
		}
	}
	if s == "" {
		return t.Key
	}
	return t.Key + ":" + s
}

// secret reports whether an option holds one, by its name: pw, password, token, writekey,
// esUserSecret and their like, but not files that hold them.
func secret(name string) bool {
	n := strings.ToLower(name)
	if strings.HasSuffix(n, "_file") {
		return false
	}
	if n == "auth" {
		return true
	}
	for _, part := range []string{"pw", "pass", "secret", "token", "writekey", "apikey", "api_key"} {
		if strings.Contains(n, part) {
			return true
		}
	}
	return false
}

// Secrets are what must not be told of a target.
type Secrets []string

// Secrets reads the target's secrets: values of options that hold one, the contents of files that do (one
// that cannot be read has been complained about), and a password in the address.
func (t Target) Secrets() (all Secrets) {
	add := func(s string) {
		if len(s) < 4 {
			return // would be found in every other word, and is no secret
		}
		for _, form := range []string{s, url.QueryEscape(s)} {
			if !slices.Contains(all, form) {
				all = append(all, form)
			}
		}
	}
	for _, o := range t.query {
		name, inFile := strings.CutSuffix(o.name, "_file")
		switch {
		case !secret(name):
		case !inFile:
			add(o.value)
		default:
			if b, err := readSecret(o.value); err == nil {
				add(b)
			}
		}
	}
	password, _ := t.URL.User.Password()
	add(password)
	if i := strings.LastIndexByte(t.URL.Opaque, '@'); i >= 0 { // user:password@host, whose user looks like a scheme
		add(t.URL.Opaque[:i])
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) }) // the longest first
	return all
}

// Hide replaces secrets in a text, such as the answer of a destination that repeats them.
func (s Secrets) Hide(text string) string {
	for _, one := range s {
		text = strings.ReplaceAll(text, one, redacted)
	}
	return text
}

// maxSecret bounds a file that holds a secret.
const maxSecret = 64 << 10

// readSecret reads a file that holds a secret; newlines at its end are dropped.
func readSecret(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxSecret:
		return "", fmt.Errorf("%q is larger than %d bytes", file, maxSecret)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" {
		return "", fmt.Errorf("%q is empty", file)
	}
	return s, nil
}

// Host is host:port of the address, whether it was written with a scheme (http://host:port) or without
// (host:port, which a URL parser takes for a scheme and a path); "" where there is none. A missing port
// becomes defaultPort, where one is given.
func (t Target) Host(defaultPort string) string {
	host := t.URL.Host
	if host == "" && t.URL.Scheme != "" && t.URL.Opaque != "" {
		if port, _, _ := strings.Cut(t.URL.Opaque, "/"); isPort(port) {
			return t.URL.Scheme + ":" + port
		}
	}
	if host != "" && t.URL.Port() == "" && defaultPort != "" {
		return strings.TrimSuffix(host, ":") + ":" + defaultPort
	}
	return host
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// Name is the name under which a sink keeps its place: the option `name` where it is given, else the
// key, with a hash of the address and of the options that identify the destination, where there are
// any. It contains no secret, nor a hash of one.
func (t Target) Name(k Kind) string {
	if name := t.first("name"); name != "" {
		return name
	}
	var said []string
	if t.URL.Scheme != "" && t.URL.Host == "" && t.URL.Opaque != "" {
		said = append(said, "host="+t.Host(""))
	} else if t.URL.Host != "" {
		said = append(said, "host="+t.URL.Host)
	}
	for _, name := range k.Identity {
		values := t.all(name)
		slices.Sort(values) // the order of brokers says nothing
		for _, v := range values {
			if !secret(name) {
				said = append(said, name+"="+v)
			}
		}
	}
	if len(said) == 0 {
		return t.Key
	}
	h := fnv.New32a()
	for _, s := range said {
		_, _ = h.Write([]byte(s)) // a hash does not fail
		_, _ = h.Write([]byte{0})
	}
	return fmt.Sprintf("%s-%08x", t.Key, h.Sum32())
}

// Named reports whether the option `name` is given.
func (t Target) Named() bool { return t.first("name") != "" }

func (t Target) first(name string) string {
	for _, o := range t.query {
		if o.name == name {
			return o.value
		}
	}
	return ""
}

func (t Target) all(name string) (values []string) {
	for _, o := range t.query {
		if o.name == name {
			values = append(values, o.value)
		}
	}
	return values
}

// Without is the target without those values of an option that is tells, and those values: for an option that means
// one thing to every sink and another to this one.
func (t Target) Without(name string, is func(value string) bool) (rest Target, taken []string) {
	rest = t
	rest.query = nil
	for _, o := range t.query {
		if o.name == name && is(o.value) {
			taken = append(taken, o.value)
			continue
		}
		rest.query = append(rest.query, o)
	}
	return rest, taken
}
