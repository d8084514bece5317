package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/heapstream/heapstream/aggregator"
	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/deploy/standalone/doctor"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// finding is what a report is expected to say of something that is not well.
type finding struct {
	level        doctor.Level
	check, about string
	seen, do     string // parts of what it says
}

func (f finding) matches(g doctor.Finding) bool {
	about := f.about == g.About
	if start, any := strings.CutSuffix(f.about, "*"); any {
		about = strings.HasPrefix(g.About, start)
	}
	return about && f.level == g.Level && f.check == g.Check && strings.Contains(g.Seen, f.seen) && strings.Contains(g.Do, f.do)
}

// visitDoctor runs the command and returns its report and exit code.
func visitDoctor(t *testing.T, args ...string) (r doctor.Report, code int) {
	t.Helper()
	var out, said bytes.Buffer
	root := &daemon.Command{Name: "heapstream", Commands: []*daemon.Command{doctor.Command()}}
	code = daemon.Execute(t.Context(), root, append([]string{"doctor", "--output=json"}, args...), &out, &said)
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("doctor %q: exit %d, %v: %s%s", args, code, err, out.String(), said.String())
	}
	return r, code
}

// diagnosed waits until the doctor complains of just these things, and checks its exit code.
func diagnosed(t *testing.T, want []finding, args ...string) doctor.Report {
	t.Helper()
	var r doctor.Report
	var code int
	var differs string
	eventually(t, 2*time.Minute, func() bool {
		r, code = visitDoctor(t, args...)
		differs = ""
		left := slices.Clone(want)
		fails := false
		for _, f := range r.Findings {
			if f.Level == doctor.OK || f.Level == doctor.Skip {
				if f.Do != "" {
					differs += fmt.Sprintf("\nadvice where nothing is to be done: %+v", f)
				}
				continue
			}
			fails = fails || f.Level == doctor.Fail
			if f.Do == "" && f.Check != doctor.CheckKubelets {
				differs += fmt.Sprintf("\nno advice: %+v", f)
			}
			at := slices.IndexFunc(left, func(w finding) bool { return w.matches(f) })
			if at < 0 {
				differs += fmt.Sprintf("\nunexpected: %+v", f)
				continue
			}
			left = slices.Delete(left, at, at+1)
		}
		for _, w := range left {
			differs += fmt.Sprintf("\nmissing: %+v", w)
		}
		if wantCode := map[bool]int{true: 1, false: 0}[fails]; code != wantCode {
			differs += fmt.Sprintf("\nexit code %d, want %d", code, wantCode)
		}
		return differs == ""
	}, func() string {
		var text strings.Builder
		_ = r.Text(&text)
		return fmt.Sprintf("doctor %q:%s\n%s", args, differs, text.String())
	})
	return r
}

// deprived are users who lack one of the rights each.
func deprived(rights []doctor.Right) (users []simcluster.User) {
	for i := range rights {
		u := simcluster.User{Token: fmt.Sprint("deprived-", i), Name: fmt.Sprintf("system:serviceaccount:demo:deprived-%d", i), UID: fmt.Sprint("d", i), Groups: []string{"system:authenticated"}}
		for j, r := range rights {
			if j != i {
				u.Rules = append(u.Rules, simcluster.Rule{Verbs: []string{r.Verb}, APIGroups: []string{r.Group}, Resources: []string{r.Resource}, Namespace: r.Namespace})
			}
		}
		users = append(users, u)
	}
	return users
}

// TestDoctorNamesWhatIsWrongWithTheCluster breaks one thing of a cluster at a time: kubelets, rights, certificates,
// credentials, addresses, clocks.
func TestDoctorNamesWhatIsWrongWithTheCluster(t *testing.T) {
	central := doctor.Rights(string(scraper.RoleCentral), kubelet.SummarySource, scraper.PodsFromAPI, true)
	users := deprived(central)
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 3, 4
	cfg.Users = append(simcluster.DefaultUsers("admin", "reader", "none"), users...)
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	dir := t.TempDir()
	as := func(user string) string {
		path := filepath.Join(dir, strings.ReplaceAll(user, ":", "_"))
		if err := cluster.WriteKubeconfig(path, user); err != nil {
			t.Fatal(err)
		}
		return "--kubeconfig=" + path
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	reader := as(simcluster.ReaderName)
	base := []string{"--role=central", "--metric-resolution=5s"}
	with := func(args ...string) []string { return append(slices.Clone(base), args...) }

	// nothing is wrong
	healthy := diagnosed(t, nil, with(reader)...)
	for _, check := range []string{doctor.CheckAPIServer, doctor.CheckRights, doctor.CheckKubelets, doctor.CheckCertificates, doctor.CheckClocks} {
		if !slices.ContainsFunc(healthy.Findings, func(f doctor.Finding) bool { return f.Check == check && f.Level == doctor.OK }) {
			t.Errorf("%s: nothing is said to be ok: %+v", check, healthy.Findings)
		}
	}
	// a node's own scraper sees its own kubelet
	one := diagnosed(t, nil, "--role=node", "--node-name=node-1", "--metric-resolution=5s", as(simcluster.AdminName))
	if !slices.ContainsFunc(one.Findings, func(f doctor.Finding) bool {
		return f.Check == doctor.CheckKubelets && strings.HasPrefix(f.Seen, "1 of 1 can be read")
	}) {
		t.Errorf("role node: %+v", one.Findings)
	}
	diagnosed(t, nil, "--role=inventory", reader)

	t.Run("kubelets", func(t *testing.T) {
		for _, x := range []struct {
			mode     simcluster.FailureMode
			about    string
			seen, do string
			level    doctor.Level
			delay    time.Duration
		}{
			{mode: simcluster.FailRefuse, about: "unreachable", seen: "ended the connection without an answer", do: "is this the kubelet's port"},
			{mode: simcluster.FailHang, about: "timeout", seen: "had not answered when the deadline", do: "look at the kubelet's log"},
			{mode: simcluster.FailUnauthorized, about: "unauthorized", seen: "does not know who we are", do: "--authentication-token-webhook"},
			{mode: simcluster.FailForbidden, about: "forbidden", seen: "we may not get nodes/stats", do: "grant our ServiceAccount the verb get on nodes/stats"},
			{mode: simcluster.FailNotFound, about: "not_found", seen: "there is no such path", do: "is this the kubelet's port"},
			{mode: simcluster.FailInternal, about: "server_error", seen: "500 from the kubelet", do: "look at the kubelet's log"},
			{mode: simcluster.FailGarbage, about: "bad_answer", seen: "decode kubernetes.summary_api"},
			{mode: simcluster.FailHalf, about: "half_answer", seen: "broke off"},
			{mode: simcluster.FailEmpty, about: "half_answer"},
			{mode: simcluster.FailWrongNode, about: "other_node"},
			{mode: simcluster.FailUnencrypted, about: "tls", seen: "does not speak TLS", do: "10255 is the plain port"},
			{mode: simcluster.FailOtherIdent, about: "tls", seen: "for another name", do: "--kubelet-server-name"},
			{mode: simcluster.FailSlow, delay: 1500 * time.Millisecond, level: doctor.Warn, about: "slow", seen: "1 of 3 take more than half", do: "--metric-resolution"},
		} {
			if err := cluster.FailFor("node-1", x.mode, x.delay); err != nil {
				t.Fatal(err)
			}
			w := finding{level: doctor.Fail, check: doctor.CheckKubelets, about: x.about, seen: x.seen, do: x.do}
			if x.level != "" {
				w.level = x.level
			}
			diagnosed(t, []finding{w}, with(reader)...)
		}
		if err := cluster.Fail("node-1", simcluster.FailNone); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("rights", func(t *testing.T) {
		for i, u := range users {
			r := central[i]
			about := r.Resource
			if r.Group != "" {
				about += "." + r.Group
			}
			w := finding{doctor.Fail, doctor.CheckRights, about, "may not " + r.Verb + " them: " + r.Why, fmt.Sprintf("{apiGroups: [%q], resources: [%s], verbs: [%s]", r.Group, r.Resource, r.Verb)}
			diagnosed(t, []finding{w}, with(as(u.Name))...)
			// and when an administrator asks for somebody else
			if i == 0 {
				diagnosed(t, []finding{w}, with(as(simcluster.AdminName), "--as="+u.Name)...)
			}
		}
	})

	t.Run("credentials", func(t *testing.T) {
		other := simtest.Start(t, simcluster.DefaultConfig(), simcluster.Deps{})
		tls := func(seen, do string) []finding {
			return []finding{{doctor.Fail, doctor.CheckKubelets, "tls", "3 of 3 (node-0, node-1, node-2): GET https://", do}}
		}
		// kubelets
		diagnosed(t, tls("for another name", "--kubelet-server-name"), with(reader, "--kubelet-server-name=kubelet.example")...)
		diagnosed(t, tls("unknown authority", "--kubelet-ca"), with(reader, "--kubelet-ca="+file("other-ca", other.CA()))...)
		diagnosed(t, []finding{{doctor.Fail, doctor.CheckKubelets, "unauthorized", "401", "--kubelet-token-file"}}, with(reader, "--kubelet-token-file="+file("token", []byte("nobody's\n")))...)
		diagnosed(t, []finding{{doctor.Fail, doctor.CheckKubelets, "unreachable", "connection refused", "10255 is closed"}}, with(reader, "--kubelet-port="+unusedPort(t))...)
		diagnosed(t, []finding{{doctor.Fail, doctor.CheckKubelets, "", "no such file", "--kubelet-"}}, with(reader, "--kubelet-ca="+filepath.Join(dir, "none"))...)
		// the API server
		config, err := cluster.Kubeconfig(simcluster.ReaderName)
		if err != nil {
			t.Fatal(err)
		}
		edited := func(name, old, now string) string {
			if !bytes.Contains(config, []byte(old)) {
				t.Fatalf("no %q in the kubeconfig", old)
			}
			return "--kubeconfig=" + file(name, bytes.ReplaceAll(config, []byte(old), []byte(now)))
		}
		api := func(seen, do string) []finding {
			return []finding{{doctor.Fail, doctor.CheckAPIServer, "", seen, do}}
		}
		address := strings.TrimPrefix(cluster.SecureAPIServer(), "https://")
		diagnosed(t, api("401", "token"), with(edited("token-of-nobody", "reader", "nobody"))...)
		diagnosed(t, api("does not answer", "nothing listens there"), with(edited("closed", address, "127.0.0.1:"+unusedPort(t)))...)
		diagnosed(t, api("unknown authority", "certificate-authority"), with(edited("other", address, strings.TrimPrefix(other.SecureAPIServer(), "https://")))...)
		diagnosed(t, api("no such file", "--kubeconfig"), with("--kubeconfig="+filepath.Join(dir, "none"))...)
	})

	t.Run("clocks", func(t *testing.T) {
		ahead := simtest.Start(t, simcluster.DefaultConfig(), simcluster.Deps{Now: func() time.Time { return time.Now().Add(10 * time.Minute) }})
		path := filepath.Join(t.TempDir(), "kubeconfig")
		if err := ahead.WriteKubeconfig(path, simcluster.ReaderName); err != nil {
			t.Fatal(err)
		}
		diagnosed(t, []finding{{doctor.Fail, doctor.CheckClocks, "kubelets", "ahead of our clock", "NTP"}}, with("--kubeconfig="+path)...)
	})
}

// unusedPort is the port of bustest.FreeAddr.
func unusedPort(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(bustest.FreeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// influxLike takes all that InfluxDB would, or nothing.
type influxLike struct {
	*httptest.Server
	down atomic.Bool
}

func newInfluxLike(t *testing.T) *influxLike {
	b := &influxLike{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case b.down.Load():
			http.Error(w, "out of order", http.StatusServiceUnavailable)
		case strings.HasSuffix(r.URL.Path, "/query"):
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"results":[{}]}`))
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(b.Close)
	return b
}

// TestDoctorNamesWhatIsWrongWithTheWholePipeline runs everything in one process and breaks what is behind the bus:
// a kubelet as its readers see it, a backend, a message that nobody can use.
func TestDoctorNamesWhatIsWrongWithTheWholePipeline(t *testing.T) {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 2, 4
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	influx, listen := newInfluxLike(t), bustest.FreeAddr(t)
	p := launch(t, standalone.Deps{SecureListener: secure}, "--source=kubernetes.summary_api:", "--kubeconfig="+kubeconfig, "--metric_resolution=5s", "--cluster=sim",
		"--embedded-bus-listen="+listen, "--sink=influxdb:"+influx.URL, "--api-server", "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	if err := cluster.SetGateway("https://" + secure.Addr().String()); err != nil {
		t.Fatal(err)
	}
	args := []string{"--role=standalone", "--kubeconfig=" + kubeconfig, "--metric-resolution=5s", "--cluster=sim", "--bus-url=nats://" + listen,
		"--gateway=" + p.URL, "--stalled-after=3s"}

	// nothing is wrong, and everything was looked at
	healthy := diagnosed(t, nil, args...)
	for _, check := range doctor.Checks() {
		if !slices.ContainsFunc(healthy.Findings, func(f doctor.Finding) bool { return f.Check == check && f.Level == doctor.OK }) {
			t.Errorf("%s: nothing is said to be ok: %+v", check, healthy.Findings)
		}
	}
	// a kubelet that fails is the kubelet's finding alone, though a node is missing
	if err := cluster.Fail("node-1", simcluster.FailInternal); err != nil {
		t.Fatal(err)
	}
	kubelets := []finding{{doctor.Fail, doctor.CheckKubelets, "server_error", "1 of 2 (node-1)", "look at the kubelet's log"}}
	eventually(t, 2*time.Minute, func() bool {
		r := diagnosed(t, kubelets, args...)
		return slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool {
			return f.Check == doctor.CheckLags && strings.Contains(f.Seen, "see kubelets")
		})
	}, func() string { return "the missing node is not led back to its kubelet" })
	if err := cluster.Fail("node-1", simcluster.FailNone); err != nil {
		t.Fatal(err)
	}
	// a backend that refuses
	influx.down.Store(true)
	diagnosed(t, []finding{{doctor.Fail, doctor.CheckSinks, "influxdb-*", "stalled: ", "its backend refuses or is slow"}}, args...)
	influx.down.Store(false)
	diagnosed(t, nil, args...)
	// the metrics API without a gateway behind it
	if err := cluster.SetGateway(""); err != nil {
		t.Fatal(err)
	}
	var unavailable []finding
	for _, api := range []string{"v1beta1.metrics.k8s.io", "v1.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io", "v1beta1.external.metrics.k8s.io"} {
		unavailable = append(unavailable, finding{doctor.Fail, doctor.CheckMetricsAPI, api, "answers 503", "is a gateway behind the Service ready"})
	}
	diagnosed(t, unavailable, args...)
	if err := cluster.SetGateway("https://" + secure.Addr().String()); err != nil {
		t.Fatal(err)
	}
	// a gateway that is not there
	diagnosed(t, []finding{{doctor.Fail, doctor.CheckGateway, "", "does not answer", "nothing listens there"}}, append(slices.Clone(args), "--gateway=http://127.0.0.1:"+unusedPort(t))...)
	// letters
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := p.conn(t)
	for _, reader := range []string{bus.SinkLease("influxdb"), "aggregator.sim"} {
		if err := conn.Dead(ctx, bus.DeadLetter{Reader: reader, Reason: "field type conflict", Stream: bus.RollupsStream("sim"), Subject: bus.TotalsSubject("sim"), Seq: 1, Time: time.Now(), Data: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	diagnosed(t, []finding{
		{doctor.Warn, doctor.CheckDead, bus.SinkLease("influxdb"), "field type conflict", "sinks dead redrive influxdb"},
		{doctor.Warn, doctor.CheckDead, "aggregator.sim", "1 messages could not be used", "nats stream view DEAD"},
	}, args...)
}

// TestDoctorNamesWhatIsWrongWithTheBus runs the services apart, on streams of their own, and takes one thing away at
// a time.
func TestDoctorNamesWhatIsWrongWithTheBus(t *testing.T) {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode = 2, 4
	cluster := simtest.Start(t, cfg, simcluster.Deps{})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	server := bustest.Start(t, bustest.Listen)
	conn := server.Conn(t)
	bustest.Provision(t, conn, "sim", func(top *bus.Topology) { top.RollupsBytes = 2 * bus.MaxPayload })
	at := func(url string, more ...string) []string {
		return append([]string{"--role=central", "--kubeconfig=" + kubeconfig, "--metric-resolution=5s", "--cluster=sim", "--bus-url=" + url}, more...)
	}
	failed := func(check, about, seen, do string) []finding {
		return []finding{{doctor.Fail, check, about, seen, do}}
	}

	// no bus, no permission to be there, and none to use JetStream
	diagnosed(t, failed(doctor.CheckBus, "", "cannot be used", "nothing listens there"), at("nats://127.0.0.1:"+unusedPort(t))...)
	accounts := bustest.Configure(t, "accounts { apart { users [ { user: guest, password: guest } ] }, heapstream { jetstream: enabled, users [ { user: admin, password: admin } ] } }\n")

	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("guest\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	diagnosed(t, failed(doctor.CheckBus, "", "the server refuses", "--bus-creds"), at("nats://"+accounts.Addr(), "--bus-user=admin", "--bus-password-file="+secret)...)
	diagnosed(t, failed(doctor.CheckBus, "JetStream", "JetStream is not on", "jetstream {"), at("nats://"+accounts.Addr(), "--bus-user=guest", "--bus-password-file="+secret)...)

	// a certificate of an authority that is not known here; and one that ends soon
	certificate, key := soonExpired(t)
	secured := bustest.Configure(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }\n", certificate, key))
	diagnosed(t, failed(doctor.CheckBus, "", "certificate signed by unknown authority", "--bus-ca"), at("tls://"+secured.Addr())...)
	ends := finding{doctor.Warn, doctor.CheckCertificates, "bus", "expires in ", "renew the NATS server's certificate"}
	absent := []finding{ends}
	for _, s := range []string{bus.DeadStream, "KV_" + bus.LeasesBucket, "KV_" + bus.ClustersBucket, bus.SamplesStream("sim"), bus.RollupsStream("sim"), bus.EventsStream("sim")} {
		absent = append(absent, finding{doctor.Fail, doctor.CheckStreams, s, "does not exist", "heapstream bus apply --cluster=sim"})
	}
	diagnosed(t, absent, at("tls://"+secured.Addr(), "--bus-ca="+certificate)...)

	// streams that nobody made
	bare := bustest.Start(t, bustest.Listen)
	bustest.Provision(t, bare.Conn(t), "")
	var missing []finding
	for _, s := range []string{bus.SamplesStream("sim"), bus.RollupsStream("sim"), bus.EventsStream("sim")} {
		missing = append(missing, finding{doctor.Fail, doctor.CheckStreams, s, "does not exist", "heapstream bus apply --cluster=sim"})
	}
	diagnosed(t, missing, at(bare.URL())...)

	// a scraper and no aggregator
	run := func(part interface{ Run(context.Context) error }, err error) (stop func()) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- part.Run(ctx) }()
		stopped := false
		stop = func() {
			if !stopped {
				stopped = true
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		t.Cleanup(stop)
		return stop
	}
	c := scraper.DefaultConfig()
	c.Cluster, c.Resolution, c.Kubeconfig = "sim", 5*time.Second, kubeconfig
	source, err := scraper.New(c, scraper.Deps{Bus: server.Conn(t), Log: bustest.Logger(t), Registry: prometheus.NewRegistry()})
	stopScraper := run(source, err)
	diagnosed(t, failed(doctor.CheckLeases, "aggregator", "no tick is closed", "start an aggregator"), at(server.URL())...)

	// ROLLUPS that hold less than a gateway's window
	junk := conn.Publisher(bus.PublisherConfig{})
	for i := range 16 {
		m := bus.Message{Subject: bus.NamespaceRollupSubject("sim", "other"), Stream: bus.RollupsStream("sim"), Data: bytes.Repeat([]byte{byte(i)}, 1<<20), ID: fmt.Sprint("junk", i)}
		if _, err := junk.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	// whoever takes the cluster over reads the last message of each subject
	last := proto.Rollup{Scope: proto.ScopeNamespace, Cluster: "sim", Name: "other", Tick: proto.TickAt(time.Now().Add(-time.Minute), c.Resolution), Resolution: c.Resolution}
	last.AddEntity(proto.Entity{Kind: proto.KindNamespace, Parent: -1, Name: "other"})
	data, err := proto.NewEncoder().Rollup(&last)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := junk.Publish(t.Context(), bus.Message{Subject: bus.NamespaceRollupSubject("sim", "other"), Stream: bus.RollupsStream("sim"), Data: data, ID: "last"}); err != nil {
		t.Fatal(err)
	}
	sums := aggregator.DefaultConfig()
	sums.Clusters = []string{"sim"}
	owner, err := aggregator.New(sums, aggregator.Deps{Bus: server.Conn(t), Log: bustest.Logger(t), Registry: prometheus.NewRegistry()})
	run(owner, err)
	diagnosed(t, failed(doctor.CheckStreams, bus.RollupsStream("sim"), "is full at 16 MiB", "--rollups-bytes"), at(server.URL())...)

	// nobody scrapes: the leases and what comes say so
	stopScraper()
	diagnosed(t, []finding{
		{doctor.Fail, doctor.CheckStreams, bus.RollupsStream("sim"), "is full at 16 MiB", "--rollups-bytes"},
		{doctor.Fail, doctor.CheckLeases, "inventory", "nodes, owners and namespaces stay as last known", "scraper of role inventory"},
		{doctor.Fail, doctor.CheckLags, bus.SamplesStream("sim"), "the newest batch is", "look at the scrapers' logs"},
	}, at(server.URL())...)
}

// soonExpired are the files of a certificate for 127.0.0.1, its own authority, that is nearly a year old, and its key.
func soonExpired(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bus"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.AddDate(0, 0, -360), NotAfter: now.Add(72 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

// TestDoctorAsksForTheRightsOfTheManifests compares the table of rights with the rules of deploy/kubernetes.
func TestDoctorAsksForTheRightsOfTheManifests(t *testing.T) {
	granted := func(file, name string) (rights []string) {
		data, err := os.ReadFile(filepath.Join(root, "deploy/kubernetes/base", file))
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(data), "\n---\n") {
			var role rbacv1.ClusterRole
			if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
				t.Fatal(err)
			}
			if role.Kind != "ClusterRole" || role.Name != name {
				continue
			}
			for _, r := range role.Rules {
				for _, g := range r.APIGroups {
					for _, res := range r.Resources {
						for _, v := range r.Verbs {
							rights = append(rights, v+" "+g+"/"+res)
						}
					}
				}
			}
		}
		slices.Sort(rights)
		return rights
	}
	asked := func(role string, sources ...kubelet.Source) (rights []string) {
		for _, s := range sources {
			for _, r := range doctor.Rights(role, s, scraper.PodsFromAPI, true) {
				if r.Resource == "tokenreviews" || r.Resource == "subjectaccessreviews" || r.Resource == "configmaps" {
					continue // by a role of Kubernetes' own
				}
				rights = append(rights, r.Verb+" "+r.Group+"/"+r.Resource)
			}
		}
		slices.Sort(rights)
		return slices.Compact(rights)
	}
	for _, x := range []struct {
		role, file, name string
		sources          []kubelet.Source
	}{
		{string(scraper.RoleNode), "scraper/node-rbac.yaml", "heapstream-node", []kubelet.Source{kubelet.SummarySource}},
		{string(scraper.RoleInventory), "scraper/inventory-rbac.yaml", "heapstream-inventory", []kubelet.Source{kubelet.SummarySource}},
		{doctor.RoleStandalone, "standalone/rbac.yaml", "heapstream", kubelet.Sources()},
	} {
		if got, want := asked(x.role, x.sources...), granted(x.file, x.name); !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("role %s asks for\n%q, and %s grants\n%q", x.role, got, x.file, want)
		}
	}
}
