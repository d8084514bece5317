package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DefaultMaxBytes bounds one answer after decompression: a kubelet with 500 pods sends 3 MiB.
const DefaultMaxBytes = 64 << 20

// Config is how to speak to kubelets. Files are read again when they change, so they may be
// rotated; authorities are read once.
type Config struct {
	TokenFile string // bearer token; sent over https only
	Token     string // used where TokenFile is empty

	CAFile   string // authorities of serving certificates, PEM; the system's roots where empty
	CAData   []byte // the same, as bytes; both may be given
	PinFile  string // PEM with the kubelet's very certificates: one of them must come, its name does not matter
	Insecure bool   // do not verify the kubelet: for trials only

	CertFile, KeyFile string // client certificate, PEM
	CertData, KeyData []byte // the same, as bytes

	ServerName string        // expected in the certificate instead of the address
	MaxBytes   int64         // of one answer; DefaultMaxBytes where 0
	Near       bool          // kubelets are on this machine: they need not compress their answers, nor we unpack them
	KeepIdle   time.Duration // how long an unused connection is kept; 3 minutes where 0
}

// Target is one kubelet.
type Target struct {
	Node  string
	Host  string // IP or name
	Port  int
	HTTPS bool
}

// String is the base URL; IPv6 addresses are bracketed.
func (t Target) String() string {
	scheme := "http://"
	if t.HTTPS {
		scheme = "https://"
	}
	return scheme + net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
}

// How many kubelets have the processor's attention at once, and how long one may have it by hanging.
const (
	askers          = 128 // requests that have just been sent: paces thousands of kubelets
	askerPatience   = 100 * time.Millisecond
	readers         = 32 // answers being read or used: bounds the memory for them
	readerPatience  = time.Second
	shakersPerCPU   = 4 // TLS handshakes
	shakerPatience  = 250 * time.Millisecond
	connectTimeout  = 10 * time.Second // where the scrape's deadline does not come before
	keptBufferBytes = 4 << 20          // the buffer of one huge node must not stay
)

// Client fetches answers of kubelets. It keeps at most one idle connection a kubelet and honours
// HTTPS_PROXY and NO_PROXY. Safe for concurrent use.
type Client struct {
	cfg   Config
	http  *http.Client
	tr    *http.Transport
	tls   *tls.Config
	token fileToken

	dialer  net.Dialer
	asking  *gate
	reading *gate
	shaking *gate
	buffers sync.Pool // *[]byte
}

// NewClient checks cfg and reads the authorities; it opens no connection.
func NewClient(cfg Config) (*Client, error) {
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.KeepIdle <= 0 {
		cfg.KeepIdle = 3 * time.Minute
	}
	c := &Client{cfg: cfg, token: fileToken{path: cfg.TokenFile}, dialer: net.Dialer{Timeout: connectTimeout, KeepAlive: 30 * time.Second},
		asking: newGate(askers, askerPatience), reading: newGate(readers, readerPatience), shaking: newGate(shakersPerCPU*runtime.GOMAXPROCS(0), shakerPatience)}
	c.buffers.New = func() any { return new([]byte) }
	var err error
	if c.tls, err = c.tlsConfig(); err != nil {
		return nil, fmt.Errorf("set up TLS to kubelets: %w", err)
	}
	c.tr = &http.Transport{
		Proxy:           http.ProxyFromEnvironment,
		DialContext:     c.dialer.DialContext,
		DialTLSContext:  c.dialTLS,
		TLSClientConfig: c.tls, // behind a proxy
		// One request at a time goes to a kubelet: HTTP/2 would cost memory and win nothing, and
		// giving up on a hung request would leave its connection in use.
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost: 1,
		DisableCompression:  cfg.Near,
		IdleConnTimeout:     cfg.KeepIdle,
	}
	c.http = &http.Client{Transport: c.tr, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token must not follow elsewhere
	}}
	return c, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.tr.CloseIdleConnections() }

// dialTLS connects and shakes hands, few at a time.
func (c *Client) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := c.dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conn, err := c.shakeHands(ctx, raw, addr)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

func (c *Client) shakeHands(ctx context.Context, raw net.Conn, addr string) (net.Conn, error) {
	cfg := c.tls
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		cfg = cfg.Clone()
		cfg.ServerName = host
	}
	p, err := c.shaking.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer p.leave()
	conn := tls.Client(raw, cfg)
	return conn, conn.HandshakeContext(ctx)
}

func (c *Client) tlsConfig() (*tls.Config, error) {
	cfg := c.cfg
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName}
	if cfg.CAFile != "" || len(cfg.CAData) > 0 {
		t.RootCAs = x509.NewCertPool()
		if cfg.CAFile != "" {
			data, err := os.ReadFile(cfg.CAFile)
			if err != nil {
				return nil, fmt.Errorf("read authorities: %w", err)
			}
			if !t.RootCAs.AppendCertsFromPEM(data) {
				return nil, fmt.Errorf("read authorities: %q holds no PEM certificate", cfg.CAFile)
			}
		}
		if len(cfg.CAData) > 0 && !t.RootCAs.AppendCertsFromPEM(cfg.CAData) {
			return nil, errors.New("read authorities: the data given holds no PEM certificate")
		}
	}
	switch {
	case cfg.PinFile != "":
		if _, err := readPins(cfg.PinFile); err != nil {
			return nil, err
		}
		t.InsecureSkipVerify = true // the certificate itself is compared instead
		t.VerifyConnection = func(s tls.ConnectionState) error {
			pins, err := readPins(cfg.PinFile)
			if err != nil {
				return &pinError{err.Error()}
			}
			for _, pin := range pins {
				if len(s.PeerCertificates) > 0 && bytes.Equal(s.PeerCertificates[0].Raw, pin) {
					return nil
				}
			}
			return &pinError{"its certificate is none of those in " + cfg.PinFile}
		}
	case cfg.Insecure:
		t.InsecureSkipVerify = true
	}
	if cfg.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read client certificate: %w", err)
			}
			return &cert, nil
		}
	} else if len(cfg.CertData) > 0 {
		cert, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

type pinError struct{ text string }

func (e *pinError) Error() string { return e.text }

func readPins(path string) (pins [][]byte, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read pinned certificate: %w", err)
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			pins = append(pins, block.Bytes)
		}
	}
	if len(pins) == 0 {
		return nil, fmt.Errorf("read pinned certificate: %q holds no PEM certificate", path)
	}
	return pins, nil
}

// Pods fetches the kubelet's own list of its pods, JSON of a v1 PodList, as Read does samples.
func (c *Client) Pods(ctx context.Context, t Target, use func(answer []byte) error) error {
	return c.get(ctx, t, &podsRequest, func(_ http.Header, answer []byte) error { return use(answer) })
}

func (c *Client) get(ctx context.Context, t Target, r *request, use func(header http.Header, answer []byte) error) error {
	what := r.method + " " + t.String() + r.path
	if t.Host == "" || t.Port <= 0 || t.Port > 65535 {
		return &Error{Reason: BadAddress, Node: t.Node, What: r.method + " " + r.path, Detail: fmt.Sprintf("no usable address (host %q, port %d)", t.Host, t.Port)}
	}
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, t.String()+r.path, body)
	if err != nil {
		return &Error{Reason: BadAddress, Node: t.Node, What: r.method + " " + r.path, Detail: fmt.Sprintf("host %q is no address", t.Host)}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", r.accept)
	req.Header.Set("User-Agent", "heapstream-scraper")
	if t.HTTPS {
		token, err := c.bearer()
		if err != nil {
			return &Error{Reason: BadToken, Node: t.Node, What: what, Detail: "read the token", Err: err}
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
	}
	asking, err := c.asking.enter(ctx)
	if err != nil {
		return busy(ctx, t, what, "we had not come to ask it")
	}
	resp, err := c.http.Do(req)
	asking.leave()
	if err != nil {
		return failed(ctx, err, t, what, false)
	}
	defer func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
		_ = resp.Body.Close()
	}()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if resp.StatusCode == http.StatusUnauthorized {
			c.token.forget()
		}
		return refused(resp, body, t, what, r)
	}
	p, err := c.reading.enter(ctx)
	if err != nil {
		return busy(ctx, t, what, "we had not come to read its answer")
	}
	defer p.leave()
	buf, _ := c.buffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= keptBufferBytes {
			c.buffers.Put(buf)
		}
	}()
	*buf = (*buf)[:0]
	if n := resp.ContentLength; r.wanted == nil && n > 0 && n <= c.cfg.MaxBytes {
		*buf = slices.Grow(*buf, int(n)+bytes.MinRead)
	}
	var n int64
	*buf, n, err = readAnswer(*buf, io.LimitReader(resp.Body, c.cfg.MaxBytes+1), r.wanted)
	if err != nil {
		return failed(ctx, err, t, what, true)
	}
	if n > c.cfg.MaxBytes {
		return &Error{Reason: TooLarge, Node: t.Node, What: what, Detail: fmt.Sprintf("its answer is larger than %d MiB", c.cfg.MaxBytes>>20),
			Advice: "is this a kubelet?"}
	}
	p.keep()
	return use(resp.Header, *buf)
}

// readAnswer appends to an empty dst what r gives and returns it with the number of bytes read. Where wanted
// is given they are lines of text, of which those of other families leave nothing but their line's end: two
// thirds of what a kubelet exposes take no memory, and lines keep their numbers. What follows the last line's
// end stays as it is.
func readAnswer(dst []byte, r io.Reader, wanted func(family []byte) bool) ([]byte, int64, error) {
	const least = 32 << 10
	total, done := int64(0), 0 // bytes read; bytes of dst that are settled
	var name []byte            // of the last family, and whether it is wanted
	keep := true
	for {
		dst = slices.Grow(dst, max(bytes.MinRead, min(least, cap(dst)/2)))
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		total += int64(n)
		if wanted != nil {
			from := done
			for {
				end := bytes.IndexByte(dst[from:], '\n')
				if end < 0 {
					break
				}
				line := dst[from : from+end+1]
				from += end + 1
				if line[0] == '#' {
					line = line[end:]
				} else if of := familyOf(line); of != nil {
					if !bytes.Equal(of, name) {
						name = append(name[:0], of...)
						keep = wanted(name)
					}
					if !keep {
						line = line[end:]
					}
				}
				done += copy(dst[done:], line)
			}
			dst = dst[:done+copy(dst[done:], dst[from:])]
		}
		if errors.Is(err, io.EOF) {
			return dst, total, nil
		}
		if err != nil {
			return dst, total, err
		}
	}
}

// familyOf is the name that a line of text begins with; nil where it begins no sample.
func familyOf(line []byte) []byte {
	n := 0
	for n < len(line) && nameByte(line[n]) {
		n++
	}
	if n == 0 || n == len(line) || line[n] != '{' && line[n] != ' ' {
		return nil
	}
	return line[:n]
}

func (c *Client) bearer() (string, error) {
	if c.cfg.TokenFile == "" {
		return c.cfg.Token, nil
	}
	return c.token.read(time.Now())
}

// fileToken reads a token anew when its file has changed, looking at most every ten seconds.
type fileToken struct {
	path string

	mu      sync.Mutex // guards what follows
	token   string
	looked  time.Time
	changed time.Time
}

func (f *fileToken) read(now time.Time) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token != "" && now.Sub(f.looked) < 10*time.Second {
		return f.token, nil
	}
	info, err := os.Stat(f.path)
	if err == nil && (f.token == "" || !info.ModTime().Equal(f.changed)) {
		var data []byte
		if data, err = os.ReadFile(f.path); err == nil {
			token := strings.TrimSpace(string(data))
			if token == "" || strings.ContainsAny(token, "\r\n") {
				err = fmt.Errorf("%q holds no token", f.path)
			} else {
				f.token, f.changed = token, info.ModTime()
			}
		}
	}
	if err != nil {
		return "", err
	}
	f.looked = now
	return f.token, nil
}

// forget makes the next read look at the file: the kubelet has just refused what we have.
func (f *fileToken) forget() {
	f.mu.Lock()
	f.looked = time.Time{}
	f.mu.Unlock()
}
