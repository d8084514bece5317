package apigw

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/heapstream/heapstream/apigw/modelapi"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(loadEnv); what != "" {
		os.Exit(load(what))
	}
	goleak.VerifyTestMain(m, bustest.LeakOptions()...)
}

// serving starts a gateway on a port of the system's choice and returns its base address; it ends with the test.
func serving(t *testing.T, conn *bus.Conn, change func(*Config)) (address string, health *daemon.Health) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Cluster, cfg.Port, cfg.ListenIP = "prod", 0, "127.0.0.1"
	if change != nil {
		change(&cfg)
	}
	health = daemon.NewHealth()
	g, err := New(cfg, Deps{Bus: conn, Log: bustest.Logger(t), Registry: prometheus.NewRegistry(), Health: health})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	wait, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	addr, err := g.Addr(wait)
	if err != nil {
		t.Fatal(err)
	}
	return addr.String(), health
}

func eventually(t *testing.T, what string, fact func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !fact(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func newClient(t *testing.T, cfg *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: cfg}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestGatewayServesWhatComesOverTheBus(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "prod")
	address, health := serving(t, conn, func(c *Config) { c.History = HistoryWindow })
	client := newClient(t, nil)
	eventually(t, "the gateway is ready", func() bool { return health.Check() == nil })
	if status, body := get(t, client, "http://"+address+"/healthz"); status != 500 || !strings.Contains(body, "could not get the latest data batch") {
		t.Errorf("health before the first rollup: %d %q", status, body)
	}
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "prod", Name: "n1", Tick: proto.TickAt(time.Now(), time.Minute), Resolution: time.Minute}
	r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: "n1", Parent: -1})
	r.Values.Set(0, proto.MemoryUsage.Field(), 4242)
	data, err := proto.NewEncoder().Rollup(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Publisher(bus.PublisherConfig{}).Publish(t.Context(), bus.Message{Subject: bus.NodeRollupSubject("prod", "n1"), Data: data}); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "/clusters/prod"} {
		eventually(t, "the value is served", func() bool {
			_, body := get(t, client, "http://"+address+prefix+"/api/v1/model/nodes/n1/metrics/memory/usage")
			return strings.Contains(body, `"value": 4242`)
		})
		past := prefix + "/api/v1/historical/nodes/n1/metrics-aggregated/max/memory/usage?start=2020-01-01T00:00:00Z"
		if status, body := get(t, client, "http://"+address+past); status != http.StatusOK || !strings.Contains(body, `"intValue": 4242`) {
			t.Errorf("%s: %d %s", past, status, body)
		}
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/metrics": "heapstream_apigw_rollups_total", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/debug/pprof/cmdline/": os.Args[0],
		"/debug/pprof/": "404 page not found", "/debug/pprof/trace": "Unknown profile",
	} {
		if _, body := get(t, client, "http://"+address+path); !strings.Contains(body, want) {
			t.Errorf("%s: %.200q lacks %q", path, body, want)
		}
	}
}

func TestGatewayWithoutAPastServesThePresent(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "prod")
	address, _ := serving(t, conn, func(c *Config) { c.NoPast = true })
	client := newClient(t, nil)
	last := time.Now().Truncate(time.Minute)
	for i := range 3 {
		at := last.Add(time.Duration(i-2) * time.Minute)
		r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "prod", Name: "n1", Tick: proto.Tick(at.UnixMilli()), Resolution: time.Minute}
		r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: "n1", Parent: -1})
		r.Values.Set(0, proto.MemoryUsage.Field(), int64(1000+i))
		r.Values.Set(0, proto.MemoryWorkingSet.Field(), 1<<20)
		r.Values.Set(0, proto.CPUUsage.Delta(), 1e9)
		r.Values.Set(0, proto.GroupCPU.Span(), 10e9)
		r.Values.Set(0, proto.GroupCPU.Time(), at.UnixNano())
		data, err := proto.NewEncoder().Rollup(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Publisher(bus.PublisherConfig{}).Publish(t.Context(), bus.Message{Subject: bus.NodeRollupSubject("prod", "n1"), Data: data, ID: at.String()}); err != nil {
			t.Fatal(err)
		}
	}
	base := "http://" + address
	eventually(t, "the newest value is exported", func() bool {
		_, body := get(t, client, base+"/api/v1/metric-export")
		return strings.Contains(body, `"value":1002`)
	})
	for path, want := range map[string]string{
		"/healthz": "200 ok", "/apis/metrics/v1alpha1/nodes/n1": `"cpu": "100m"`, "/apis/metrics.k8s.io/v1beta1/nodes": `"memory": "1Mi"`,
		"/api/v1/model/nodes": "404 404: Page Not Found: this gateway does not remember", "/api/v1/model/nodes/n1/metrics/memory/usage": "started with --disable_metric_sink",
		"/api/v1/historical/nodes": "404 404 page not found",
	} {
		if status, body := get(t, client, base+path); !strings.Contains(strconv.Itoa(status)+" "+body, want) {
			t.Errorf("%s: %d %q lacks %q", path, status, body, want)
		}
	}
}

func TestHistoricalSourceIsCheckedAtStart(t *testing.T) {
	for source, want := range map[string]string{
		"": "", "window": "", "influxdb": "", "influxdb:http://h:8086?user=a&pw=b": "", "window:": "want window, or influxdb:URL", "opentsdb:http://h": "want window, or influxdb:URL",
	} {
		cfg := DefaultConfig()
		cfg.History = source
		if err := cfg.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", source, err, want)
		}
	}
}

func TestProfilesAreReadOnly(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "prod")
	address, _ := serving(t, conn, nil)
	resp, err := newClient(t, nil).Post("http://"+address+"/debug/pprof/heap", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered %d", resp.StatusCode)
	}
}

func TestRequestsThatAreTooLargeOrNeverEndAreRefused(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "prod")
	address, _ := serving(t, conn, nil)
	client := newClient(t, nil)
	req, err := http.NewRequest(http.MethodGet, "http://"+address+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Large", strings.Repeat("x", 2*maxHeaderBytes))
	if resp, err := client.Do(req); err == nil { // or the connection was closed while the header was still being sent
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of %d bytes is answered %d", 2*maxHeaderBytes, resp.StatusCode)
		}
	}
	// The longest list of pods that is allowed still fits.
	list := strings.Repeat(strings.Repeat("p", 100)+",", modelapi.MaxPods-1) + "p"
	if status, body := get(t, client, "http://"+address+"/api/v1/model/namespaces/shop/pod-list/"+list+"/metrics/cpu/usage_rate"); status != http.StatusOK {
		t.Errorf("a list of %d bytes is answered %d %.200s", len(list), status, body)
	}
	// A request that never ends is cut off; meanwhile others are answered.
	slow, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /healthz HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	if status, _ := get(t, client, "http://"+address+"/metrics"); status != http.StatusOK {
		t.Errorf("beside a slow client: %d", status)
	}
	if err := slow.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(slow); err != nil {
		t.Errorf("a request that never ends keeps its connection: %v", err)
	}
}

// pki is a CA and what it signed.
type pki struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newPKI(t *testing.T) *pki {
	p := &pki{t: t, dir: t.TempDir()}
	p.cert, p.key = p.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return p
}

func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// sign makes name.crt and name.key.
func (p *pki) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	p.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := p.cert, p.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		p.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		p.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".crt": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "EC PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(p.path(file), pem.EncodeToMemory(block), 0o600); err != nil {
			p.t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return made, key
}

func (p *pki) client(t *testing.T, name string) *http.Client {
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(p.cert)
	if name != "" {
		pair, err := tls.LoadX509KeyPair(p.path(name+".crt"), p.path(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return newClient(t, cfg)
}

func TestClientsNeedACertificateOfTheCAAndHealthNone(t *testing.T) {
	conn := bustest.Start(t).Conn(t)
	bustest.Provision(t, conn, "prod")
	p := newPKI(t)
	p.sign("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	for _, name := range []string{"alice", "mallory"} {
		p.sign(name, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	}
	address, _ := serving(t, conn, func(c *Config) {
		c.TLSCert, c.TLSKey = p.path("server.crt"), p.path("server.key")
		c.ClientCert.CAFile, c.ClientCert.AllowedUsers = p.path("ca.crt"), "alice, bob"
	})
	for _, tt := range []struct {
		client, path string
		want         int
	}{
		{"", "/api/v1/model/nodes", 401}, {"mallory", "/api/v1/model/nodes", 403}, {"alice", "/api/v1/model/nodes", 200},
		{"", "/metrics", 401}, {"", "/debug/pprof/heap", 401}, {"", "/clusters", 401}, {"", "/healthz", 500}, {"", "/healthz/healthz", 500},
	} {
		if got, body := get(t, p.client(t, tt.client), "https://"+address+tt.path); got != tt.want {
			t.Errorf("%s as %q: %d %q, want %d", tt.path, tt.client, got, body, tt.want)
		}
	}
}

func TestCertificateIsReadAgainWhenItChanges(t *testing.T) {
	p := newPKI(t)
	p.sign("one", &x509.Certificate{})
	now := time.Now()
	c := &certificate{cert: p.path("one.crt"), key: p.path("one.key"), now: func() time.Time { return now }, log: bustest.Logger(t)}
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	first, err := c.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.path("one.crt"), []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if pair, err := c.get(nil); err != nil || pair != first {
		t.Errorf("a broken file took the good certificate away: %v", err)
	}
	p.sign("one", &x509.Certificate{})
	later := time.Now().Add(time.Hour) // file systems may count in seconds
	if err := os.Chtimes(p.path("one.crt"), later, later); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if pair, err := c.get(nil); err != nil || pair == first {
		t.Errorf("the new certificate is not used: %v", err)
	}
}

func TestWrongConfigurationIsRefusedWithAllComplaints(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Window, cfg.ListenIP, cfg.Port, cfg.TLSCert = time.Second, "nowhere", 70000, "x"
	cfg.ClientCert.AllowedUsers, cfg.Labels.Store, cfg.Cluster = "a", []string{"=x"}, ""
	err := cfg.Validate()
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, word := range []string{"--window", "--listen_ip", "--heapster-port", "--tls_key", "--allowed_users", "--store_label", "--cluster"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("nothing is said of %s:\n%v", word, err)
		}
	}
	if err := func() error { c := DefaultConfig(); return c.Validate() }(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
}
