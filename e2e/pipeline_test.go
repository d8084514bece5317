package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

// logbook keeps what was logged.
type logbook struct {
	mu    sync.Mutex
	lines []logLine
}

// logLine is what tests ask of a line.
type logLine struct{ Level, Msg, Node, Reason, Err string }

func (b *logbook) Write(p []byte) (int, error) {
	var l logLine
	if err := json.Unmarshal(p, &l); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, l)
	return len(p), nil
}

func (b *logbook) logger() *slog.Logger { return slog.New(slog.NewJSONHandler(b, nil)) }

// of returns the lines of a node's kubelet, in order.
func (b *logbook) of(node string) (lines []logLine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lines {
		if l.Node == node && (l.Msg == "kubelet cannot be read" || l.Msg == "kubelet can be read again") {
			lines = append(lines, l)
		}
	}
	return lines
}

// readAgain stands among the reasons for which a kubelet cannot be read for that it can.
const readAgain = "read again"

// told is how often a reason was told: as a warning, of those without the node's name, and of those right behind the same.
type told struct{ warnings, unnamed, again int }

// story is what was said of a node's kubelet, by reason.
func (b *logbook) story(node string) map[string]told {
	all, before := map[string]told{}, ""
	for _, l := range b.of(node) {
		reason := l.Reason
		if l.Msg == "kubelet can be read again" {
			reason = readAgain
		}
		n := all[reason]
		n.warnings++
		if reason != readAgain && (l.Level != "WARN" || !strings.Contains(l.Err, node)) {
			n.unnamed++
		}
		if reason == before {
			n.again++
		}
		all[reason], before = n, reason
	}
	return all
}

// ledger is what came out on ROLLUPS.
type ledger struct {
	mu     sync.Mutex
	nodes  map[nodeTick]int
	totals map[proto.Tick][]proto.Totals
	err    error
}

// follow reads ROLLUPS until the test ends.
func (p *pipeline) follow(t *testing.T, cluster string) *ledger {
	return follow(t, p.conn(t), cluster)
}

// follow reads ROLLUPS until the test ends.
func follow(t *testing.T, conn *bus.Conn, cluster string) *ledger {
	l := &ledger{nodes: map[nodeTick]int{}, totals: map[proto.Tick][]proto.Totals{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		dec := proto.NewDecoder()
		for d, err := range conn.Replay(ctx, bus.ReplayConfig{Stream: bus.RollupsStream(cluster), Subjects: bus.RollupFilters(cluster)}) {
			var r proto.Rollup
			if err == nil {
				err = dec.Rollup(d.Data, &r)
			}
			l.take(&r, err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l
}

func (l *ledger) take(r *proto.Rollup, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		l.err = err
	case r.Scope == proto.ScopeNode:
		l.nodes[nodeTick{r.Name, r.Tick}]++
	case r.Scope == proto.ScopeTotals:
		l.totals[r.Tick] = append(l.totals[r.Tick], r.Totals)
	}
}

// last is the newest closed tick, 0 if there is none.
func (l *ledger) last(t *testing.T) (tick proto.Tick, totals proto.Totals) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		t.Fatal(l.err)
	}
	for at, all := range l.totals {
		if at > tick {
			tick, totals = at, all[len(all)-1]
		}
	}
	return tick, totals
}

// whole waits for a tick after this one that misses nobody.
func (l *ledger) whole(t *testing.T, after proto.Tick, nodes int) proto.Tick {
	t.Helper()
	var tick proto.Tick
	var totals proto.Totals
	eventually(t, patience, func() bool {
		tick, totals = l.last(t)
		return tick > after && int(totals.Expected) == nodes && totals.Reported == totals.Expected
	}, func() string { return fmt.Sprintf("no whole tick after %s: at %s %+v", after, tick, totals) })
	return tick
}

// counted sums the values of a counter whose label is not (or is) the value.
func counted(t *testing.T, reg *prometheus.Registry, name, label, not string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() != not {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// plumbing is a simulated cluster and heapstream on it, shared by the tests of TestPipeline.
type plumbing struct {
	*pipeline
	cluster  *simcluster.Cluster
	secure   string // the resource metrics API, asked directly
	registry *prometheus.Registry
	log      *logbook
	rollups  *ledger
}

func startPlumbing(t *testing.T, nodes int, source kubelet.Source, change func(*simcluster.Config)) *plumbing {
	t.Helper()
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode, cfg.Recorded = nodes, 3, true
	if change != nil {
		change(&cfg)
	}
	p := &plumbing{cluster: simtest.Start(t, cfg, simcluster.Deps{}), registry: prometheus.NewRegistry(), log: &logbook{}}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := p.cluster.WriteKubeconfig(kubeconfig, simcluster.ReaderName); err != nil {
		t.Fatal(err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.secure = "https://" + secure.Addr().String()
	p.pipeline = launch(t, standalone.Deps{Log: p.log.logger(), Registry: p.registry, SecureListener: secure},
		"--source="+string(source)+":", "--kubeconfig="+kubeconfig, "--metric_resolution=5s", "--cluster=sim",
		"--api-server", "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig)
	if err := p.cluster.SetGateway(p.secure); err != nil {
		t.Fatal(err)
	}
	if err := p.cluster.SetModel(p.URL); err != nil {
		t.Fatal(err)
	}
	p.rollups = p.follow(t, "sim")
	return p
}

// reasons are how the scraper calls each way of a kubelet to fail.
var reasons = map[simcluster.FailureMode]string{
	simcluster.FailRefuse: "unreachable", simcluster.FailHang: "timeout", simcluster.FailUnauthorized: "unauthorized",
	simcluster.FailForbidden: "forbidden", simcluster.FailNotFound: "not_found", simcluster.FailInternal: "server_error",
	simcluster.FailGarbage: "bad_answer", simcluster.FailHalf: "half_answer", simcluster.FailWrongNode: "other_node",
	simcluster.FailSlow: "timeout", simcluster.FailEmpty: "half_answer", simcluster.FailUnencrypted: "tls", simcluster.FailOtherIdent: "tls",
}

// TestPipeline runs everything but sinks in this process on a simulated cluster: one node replays a
// real kubelet's answers, two are well, and there is one for every way in which a kubelet can fail.
func TestPipeline(t *testing.T) {
	modes := slices.DeleteFunc(slices.Clone(simcluster.FailureModes), func(m simcluster.FailureMode) bool { return m == simcluster.FailNone })
	p := startPlumbing(t, len(modes)+3, kubelet.SummarySource, nil)
	t.Run("FailingKubeletCostsItsOwnNode", func(t *testing.T) { p.failures(t, modes) })
	t.Run("ModelSeriesMove", p.modelSeriesMove)
	t.Run("ModelStatuses", p.modelStatuses)
	t.Run("ResourceAPIAsksWhoAsks", p.resourceAPIAsksWhoAsks)
	t.Run("KubectlTopListsEverything", p.kubectlTop)
}

// failures lets one node fail in every way at once, for two ticks, and heals them.
func (p *plumbing) failures(t *testing.T, modes []simcluster.FailureMode) {
	nodes := p.cluster.Nodes() // the first is the recorded one, the last answers late but in time
	modeOf := map[string]simcluster.FailureMode{}
	for i, m := range modes {
		modeOf[nodes[1+i].Name()] = m
		if reasons[m] == "" {
			t.Fatalf("no reason is known for mode %q", m)
		}
	}
	failing := slices.Sorted(maps.Keys(modeOf))
	first := p.rollups.whole(t, 0, len(nodes))
	before := counted(t, p.registry, "heapstream_scraper_scrapes_total", "result", "ok")
	for node, m := range modeOf {
		if err := p.cluster.FailFor(node, m, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.cluster.FailFor(nodes[len(nodes)-1].Name(), simcluster.FailSlow, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	failures := func() float64 {
		return counted(t, p.registry, "heapstream_scraper_scrapes_total", "result", "ok") - before
	}
	eventually(t, patience, func() bool { return failures() >= float64(2*len(modes)) }, func() string {
		return fmt.Sprintf("%v scrapes have failed, want %d", failures(), 2*len(modes))
	})
	sick, _ := p.rollups.last(t)
	for node := range modeOf {
		if err := p.cluster.Fail(node, simcluster.FailNone); err != nil {
			t.Fatal(err)
		}
	}
	last := p.rollups.whole(t, sick.Add(1, proto.MinResolution), len(nodes))

	for node, m := range modeOf {
		told := p.log.story(node)
		if n := told[reasons[m]]; n.warnings == 0 || n.unnamed > 0 {
			t.Errorf("mode %s is told as %+v, want a warning with reason %q that names node %q", m, told, reasons[m], node)
		}
		if told[readAgain].warnings == 0 {
			t.Errorf("mode %s: nothing says that it is over: %+v", m, told)
		}
		for reason := range told {
			// A scrape that is under way while the mode changes fails as it likes, and so does one on a machine that is
			// busy: by its deadline. What is told is told once: the next line says something else.
			if told[reason].again > 0 {
				t.Errorf("mode %s is told %d times over: %+v", m, told[reason].again, told)
			}
		}
	}
	late := func(node string) bool { return p.log.story(node)["timeout"].warnings > 0 }
	for _, n := range nodes {
		for reason := range p.log.story(n.Name()) {
			if modeOf[n.Name()] == "" && reason != "timeout" && reason != readAgain {
				t.Errorf("a node that is well has failed: %+v", p.log.of(n.Name()))
			}
		}
	}
	l := p.rollups
	l.mu.Lock()
	defer l.mu.Unlock()
	ticksSilent := 0 // at which no failing node spoke
	for tick := first; tick <= last; tick = tick.Add(1, proto.MinResolution) {
		all := l.totals[tick]
		spoke := slices.ContainsFunc(nodes, func(n *simcluster.Node) bool { return l.nodes[nodeTick{n.Name(), tick}] > 0 })
		if len(all) == 0 && !spoke {
			t.Logf("slept through %s", tick) // as all of this process
			continue
		}
		if len(all) != 1 {
			t.Errorf("there are %d totals of %s, want 1", len(all), tick)
			continue
		}
		totals := all[0]
		var silent []string
		for _, n := range nodes {
			switch got := l.nodes[nodeTick{n.Name(), tick}]; got {
			case 0:
				silent = append(silent, n.Name())
			case 1:
			default:
				t.Errorf("node %s has %d rollups at %s, want 1", n.Name(), got, tick)
			}
		}
		slices.Sort(silent)
		if slices.Equal(silent, failing) && slices.Equal(totals.Missing, failing) {
			ticksSilent++
		}
		// At the first and the last of these ticks some had been read before the change. A tick does not wait for who
		// was silent at the one before: they may be back, but too late for it.
		for _, n := range silent {
			if !slices.Contains(totals.Missing, n) {
				t.Errorf("at %s node %s is silent (mode %q), and %q are missing", tick, n, modeOf[n], totals.Missing)
			}
		}
		for _, n := range totals.Missing {
			switch {
			case modeOf[n] != "":
			case !slices.Contains(silent, n), late(n):
				t.Logf("at %s node %s, which is well, was too late: a busy machine", tick, n)
			default:
				t.Errorf("at %s node %s is missing, which is well", tick, n)
			}
		}
		standIn := int(totals.StandIn) == len(totals.Missing)
		if int(totals.StandIn) < len(totals.Missing) && tick.Time().Sub(first.Time()) > proto.StandInFor(proto.MinResolution)/2 {
			standIn = true // this went on for so long that they are too old
		}
		if int(totals.Expected) != len(nodes) || int(totals.Reported) != len(nodes)-len(totals.Missing) || !standIn {
			t.Errorf("totals of %s: %+v, want %d nodes, the missing ones standing in", tick, totals, len(nodes))
		}
	}
	if ticksSilent == 0 {
		t.Error("at no tick were all failing nodes silent")
	}
}

// modelResult is what the model API answers for one series.
type modelResult struct {
	Metrics []struct {
		Timestamp time.Time
		Value     uint64
	}
	LatestTimestamp time.Time
}

// values are the different values of the result.
func (r modelResult) values() map[uint64]bool {
	all := map[uint64]bool{}
	for _, m := range r.Metrics {
		all[m.Value] = true
	}
	return all
}

func (p *plumbing) modelSeriesMove(t *testing.T) {
	nodes := p.cluster.Nodes()
	pod := p.cluster.Pods(nodes[len(nodes)-1].Name())[0]
	recorded := p.cluster.Pods(nodes[0].Name())[0]
	inPod := func(p simcluster.PodName) string {
		return "/api/v1/model/namespaces/" + p.Namespace + "/pods/" + p.Name
	}
	var containers []string
	if !p.getJSON(t, inPod(pod)+"/containers", &containers) || len(containers) == 0 {
		t.Fatalf("pod %s has containers %q", pod, containers)
	}
	entities := []string{
		"/api/v1/model", "/api/v1/model/namespaces/" + pod.Namespace, "/api/v1/model/nodes/" + nodes[0].Name(), "/api/v1/model/nodes/" + nodes[1].Name(),
		inPod(pod), inPod(pod) + "/containers/" + containers[0], inPod(recorded),
	}
	closed, _ := p.rollups.last(t)
	for _, e := range entities {
		var r modelResult
		moves := e + "/metrics/memory/usage"
		eventually(t, patience, func() bool { return p.getJSON(t, moves, &r) && len(r.values()) >= 2 },
			func() string { return fmt.Sprintf("GET %s does not move: %+v", moves, r) })
		eventually(t, patience, func() bool { return p.getJSON(t, moves, &r) && proto.Tick(r.LatestTimestamp.UnixMilli()) >= closed },
			func() string {
				return fmt.Sprintf("GET %s: the latest point is of %s, and %s was closed", moves, r.LatestTimestamp, closed)
			})
		rate := e + "/metrics/cpu/usage_rate"
		eventually(t, patience, func() bool { return p.getJSON(t, rate, &r) && len(r.Metrics) > 0 },
			func() string { return fmt.Sprintf("GET %s has nothing: %+v", rate, r) })
		for _, m := range r.Metrics {
			if m.Value > 1e6 {
				t.Errorf("GET %s: %d millicores at %s", rate, m.Value, m.Timestamp)
			}
		}
	}
}

func (p *plumbing) modelStatuses(t *testing.T) {
	node := p.cluster.Nodes()[0].Name()
	check := func(path string, want int, text string) {
		t.Helper()
		if status, body := p.get(t, path); status != want || !strings.Contains(string(body), text) {
			t.Errorf("GET %s is answered %d %.300q, want %d with %q", path, status, body, want, text)
		}
	}
	check("/healthz", http.StatusOK, "ok")
	check("/metrics", http.StatusOK, "heapstream_scraper_nodes ")
	check("/api/v1/model/nodes/", http.StatusOK, `"`+node+`"`)
	check("/api/v1/model/nodes/"+node, http.StatusNotFound, "404: Page Not Found")
	check("/api/v1/model/nodes/nope/metrics", http.StatusOK, "[]")
	check("/api/v1/model/nodes/"+node+"/metrics/memory/usage?start=never", http.StatusBadRequest, "timestamp argument cannot be parsed")
	check("/clusters/sim/api/v1/model/nodes/", http.StatusOK, `"`+node+`"`)
	check("/clusters/nope/api/v1/model/nodes/", http.StatusNotFound, "")
	check("/nope", http.StatusNotFound, "")

	// Heapster's service, through the API server's proxy, as old dashboards ask it.
	resp, err := http.Get(p.cluster.APIServer() + "/api/v1/namespaces/kube-system/services/http:heapster:/proxy/api/v1/model/nodes/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), node) {
		t.Errorf("through the API server: %d %v %.300q", resp.StatusCode, err, body)
	}
}

func (p *plumbing) resourceAPIAsksWhoAsks(t *testing.T) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a certificate made at start, for this test
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	ask := func(base, path, token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	const group = "/apis/metrics.k8s.io"
	node := p.cluster.Nodes()[0].Name()
	admin, nobody := p.cluster.Token(), p.cluster.TokenOf(simcluster.NobodyName)
	for _, version := range []string{"/v1", "/v1beta1"} {
		check := func(path, token string, want int, text string) {
			t.Helper()
			for _, base := range []string{p.secure, p.cluster.SecureAPIServer()} {
				if status, body := ask(base, group+version+path, token); status != want || !strings.Contains(body, text) {
					t.Errorf("GET %s%s%s: %d %.300q, want %d with %q", base, group, version+path, status, body, want, text)
				}
			}
		}
		check("/nodes", admin, http.StatusOK, node)
		check("/nodes/"+node, admin, http.StatusOK, node)
		check("/nodes/nope", admin, http.StatusNotFound, `"reason":"NotFound"`)
		check("/namespaces/nope/pods", admin, http.StatusOK, `"items":[]`)
		check("/namespaces/nope/pods/nope", admin, http.StatusNotFound, `"reason":"NotFound"`)
		check("/nodes", nobody, http.StatusForbidden, `"reason":"Forbidden"`)
		check("/nodes", "no such token", http.StatusUnauthorized, "Unauthorized")
	}
	if status, body := ask(p.secure, group+"/v1/nodes", ""); status != http.StatusForbidden || !strings.Contains(body, "system:anonymous") {
		t.Errorf("without a token: %d %s", status, body)
	}
	status, body := ask(p.cluster.APIServer(), group, "")
	var list struct {
		Versions         []struct{ Version string }
		PreferredVersion struct{ Version string }
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != http.StatusOK || len(list.Versions) != 2 || list.Versions[0].Version != "v1" || list.PreferredVersion.Version != "v1" {
		t.Errorf("GET %s: %d %v %s, want v1 first, then v1beta1", group, status, err, body)
	}
}

// runningContainers are all containers that the API server calls running, of pods it calls so, as
// "namespace pod container".
func (p *plumbing) runningContainers(t *testing.T) (all []string) {
	t.Helper()
	resp, err := http.Get(p.cluster.APIServer() + "/api/v1/pods")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct {
		Items []struct {
			Metadata struct{ Name, Namespace string }
			Status   struct {
				Phase                                    string
				ContainerStatuses, InitContainerStatuses []struct {
					Name  string
					State struct{ Running *struct{} }
				}
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		for _, c := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses) {
			if p.Status.Phase == "Running" && c.State.Running != nil {
				all = append(all, p.Metadata.Namespace+" "+p.Metadata.Name+" "+c.Name)
			}
		}
	}
	slices.Sort(all)
	return all
}

// kubectlTop asks by a stock kubectl, through the cluster's API server.
func (p *plumbing) kubectlTop(t *testing.T) {
	binary, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("SKIP: no kubectl on this machine: apt-get install kubernetes-client, or kubectl")
	}
	dir := t.TempDir()
	top := func(args ...string) (rows []string, ok bool) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"--server=" + p.cluster.APIServer(), "--cache-dir=" + dir, "top"}, args...)...) //nolint:gosec // found above
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(dir, "none"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			rows = []string{fmt.Sprintf("kubectl %q: %v: %s", args, err, stderr.String())}
			return rows, false
		}
		for line := range strings.Lines(string(out)) {
			rows = append(rows, strings.TrimSpace(line))
		}
		return rows[1:], true // below the names of the columns
	}
	usage := regexp.MustCompile(`^\d+m\s+(\d+%\s+)?\d+Mi(\s+\d+%)?$`)
	// listed splits rows into names and usage, which must look like some.
	listed := func(rows []string, names int) (all []string) {
		t.Helper()
		for _, row := range rows {
			f := strings.Fields(row)
			if len(f) < names+2 || !usage.MatchString(strings.Join(f[names:], " ")) {
				t.Errorf("kubectl prints %q", row)
				continue
			}
			all = append(all, strings.Join(f[:names], " "))
		}
		slices.Sort(all)
		return all
	}
	check := func(names int, want func() []string, args ...string) {
		t.Helper()
		var rows []string
		eventually(t, patience, func() bool {
			var ok bool
			rows, ok = top(args...)
			return ok && len(rows) >= len(want())
		}, func() string {
			return fmt.Sprintf("kubectl top %q has %d rows, want %d: %q", args, len(rows), len(want()), rows)
		})
		if got, want := listed(rows, names), want(); !slices.Equal(got, want) {
			t.Errorf("kubectl top %q lists\n%q\nwant\n%q", args, got, want)
		}
	}
	check(1, func() (all []string) {
		for _, n := range p.cluster.Nodes() {
			all = append(all, n.Name())
		}
		slices.Sort(all)
		return all
	}, "nodes")
	check(3, func() []string { return p.runningContainers(t) }, "pods", "-A", "--containers")
	check(2, func() (all []string) {
		for _, c := range p.runningContainers(t) {
			f := strings.Fields(c)
			all = append(all, f[0]+" "+f[1])
		}
		return slices.Compact(all)
	}, "pods", "-A")
}
