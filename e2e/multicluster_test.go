package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// multicluster is the folder of deploy/multicluster.
const multicluster = root + "/deploy/multicluster"

var edges = []string{"edge-1", "edge-2"}

// multiclusterSecrets are those of deploy/multicluster/credentials, in a folder of this test.
func multiclusterSecrets(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("SKIP: no openssl, which makes certificates")
	}
	dir, err := filepath.Abs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	secrets := filepath.Join(dir, "secrets")
	cmd := exec.CommandContext(t.Context(), multicluster+"/credentials")
	cmd.Env = append(os.Environ(), "SECRETS="+secrets, "NAMES=127.0.0.1") // where the servers of a test without containers are
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("credentials: %v\n%s", err, out)
	}
	return secrets
}

// Two clusters work on while the hub is cut off from them, and the hub then serves every tick of both that it has missed; it knows them by
// the register alone. One of the hub's three servers may be killed meanwhile.
func TestMulticlusterWorksOnWithoutItsHub(t *testing.T) {
	s := newStack(t, "heapstream-multicluster", "--file", "deploy/multicluster/compose.yaml") // from the root, where compose runs
	s.start("SECRETS="+multiclusterSecrets(t), "PODS=10", "RESOLUTION=5s", "HUB_1_PORT=0", "HUB_2_PORT=0", "EDGE_1_PORT=0", "EDGE_2_PORT=0")
	const res = 5 * time.Second

	at := map[string]string{"apigw-1": "/clusters/", "apigw-2": "/clusters/", "edge-1-apigw": "", "edge-2-apigw": ""}
	series := func(gateway, edge string) []time.Time {
		path := at[gateway]
		if path != "" {
			path += edge
		}
		ticks, err := s.totalsAt(gateway, path)
		if err != nil {
			return nil
		}
		return ticks
	}
	newest := func(gateway, edge string) (last time.Time) {
		if ticks := series(gateway, edge); len(ticks) > 0 {
			last = ticks[len(ticks)-1]
		}
		return last
	}
	say := func(what string) func() string {
		return func() string {
			var b strings.Builder
			for _, edge := range edges {
				fmt.Fprintf(&b, "%s: at the hub up to %s and %s, at the edge up to %s\n", edge, newest("apigw-1", edge), newest("apigw-2", edge), newest(edge+"-apigw", edge))
			}
			return what + "\n" + b.String() + s.describe()
		}
	}
	each := func(holds func(edge string) bool) func() bool {
		return func() bool { return !slices.ContainsFunc(edges, func(edge string) bool { return !holds(edge) }) }
	}
	eventually(t, 2*time.Minute, each(func(edge string) bool {
		return len(series("apigw-1", edge)) >= 3 && len(series("apigw-2", edge)) >= 3
	}), say("both gateways of the hub have three ticks of both clusters"))
	t.Logf("both clusters are served at the hub %s after compose up", time.Since(s.up).Round(time.Second/10))
	s.checkContainers(24)

	hub := []string{"hub-1", "hub-2", "hub-3"}
	network := s.project + "_between"
	before := map[string]time.Time{}
	for _, server := range hub {
		s.docker("network", "disconnect", network, s.container(server))
	}
	for _, edge := range edges {
		before[edge] = newest("apigw-1", edge)
	}
	eventually(t, 2*time.Minute, each(func(edge string) bool { return !newest(edge+"-apigw", edge).Before(before[edge].Add(5 * res)) }),
		say("both clusters have five more ticks without their hub"))
	for _, edge := range edges {
		if late := newest("apigw-2", edge); late.After(before[edge].Add(res)) { // one was on its way
			t.Errorf("the hub, cut off at %s, serves %s of %s: it is not cut off", before[edge], late, edge)
		}
	}
	s.docker("kill", "--signal=KILL", s.container(hub[0]))
	for _, server := range hub[1:] {
		s.docker("network", "connect", "--alias", server, network, s.container(server))
	}
	back := time.Now()
	eventually(t, 6*time.Minute, each(func(edge string) bool {
		return newest("apigw-1", edge).After(back) && newest("apigw-2", edge).After(back)
	}), say("the hub has caught up with what is now"))
	t.Logf("the hub serves new ticks of both %s after the link is back", time.Since(back).Round(time.Second/10))
	for _, edge := range edges {
		for _, gateway := range []string{"apigw-1", "apigw-2"} {
			ticks := series(gateway, edge)
			checkGrid(t, gateway+" of "+edge, ticks, res)
			if len(ticks) == 0 || !ticks[0].Before(before[edge]) {
				t.Errorf("%s: the series of %s begins at %v, after the hub was cut off", gateway, edge, ticks)
			}
		}
	}
	ticks := len(series("apigw-1", edges[0])) + len(series("apigw-1", edges[1]))
	eventually(t, patience, func() bool {
		sunk, err := s.run(time.Minute, "logs", "--no-color", "sinks")
		return err == nil && strings.Count(sunk, "MetricSet: cluster") >= ticks
	}, say(fmt.Sprintf("the sink at the hub has written all %d ticks of both clusters", ticks)))
}

// multiclusterBus is the hub and edge-1 of deploy/nats with their secrets, one server each, the hub stopped first.
func multiclusterBus(t *testing.T) (as func(place string, role bus.Role) *bus.Conn) {
	t.Helper()
	secrets := multiclusterSecrets(t)
	link := bustest.FreeAddr(t)
	include := regexp.MustCompile(`include "\./secrets/([a-z.]+)"`)
	config := func(kind, place string) string {
		t.Helper()
		read := func(path string) string {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		mounted := filepath.Join(secrets, place, "nats")
		conf := include.ReplaceAllStringFunc(read(filepath.Join(root, "deploy", "nats", kind+".conf")), func(line string) string {
			return read(filepath.Join(mounted, include.FindStringSubmatch(line)[1]))
		})
		if before, rest, ok := strings.Cut(conf, "\ncluster {"); ok { // one server has no peers
			_, after, _ := strings.Cut(rest, "\n}\n")
			conf = before + "\n" + after
		}
		conf = regexp.MustCompile(`hub-[123]:7422`).ReplaceAllString(conf, link)
		return strings.NewReplacer("$SERVER_NAME", place, "$JETSTREAM_DOMAIN", place, "/etc/nats/secrets", mounted, `http: "127.0.0.1:8222"`, "", "0.0.0.0:7422", link).Replace(conf)
	}
	servers := map[string]*bustest.Configured{"edge-1": nil, "hub": bustest.Configure(t, config("hub", "hub"))}
	servers["edge-1"] = bustest.Configure(t, config("edge", "edge-1"))
	t.Cleanup(servers["hub"].Stop) // a mirror that looks for its edge would outlive the server, as one does that is made before the link is
	for until := deadlineOf(t); servers["hub"].Leafs() == 0; time.Sleep(10 * time.Millisecond) {
		if until.Err() != nil {
			t.Fatal("the edge does not connect to the hub")
		}
	}
	return func(place string, role bus.Role) *bus.Conn {
		t.Helper()
		mounted := filepath.Join(secrets, place, string(role))
		c := bus.DefaultConfig()
		c.URLs = nil // the server's
		c.User, c.PasswordFile, c.CAFile = string(role), filepath.Join(mounted, "password"), filepath.Join(mounted, "ca.crt")
		c.InboxPrefix, c.ServerName = bus.InboxPrefix(role, place), map[string]string{"hub": "hub-1", "edge-1": "edge-1-nats"}[place]
		conn := servers[place].Conn(t, c, bustest.Logger(t))
		if err := conn.WaitUp(deadlineOf(t)); err != nil {
			t.Fatalf("%s of %s: %v", role, place, err)
		}
		return conn
	}
}

// Whatever a role of an edge or of the hub has no business with is refused, subject by subject; what it must be able to publish is not.
func TestMulticlusterRolesMayNoMore(t *testing.T) {
	t.Parallel()
	as := multiclusterBus(t)
	if _, err := as("edge-1", bus.RoleAdmin).Apply(deadlineOf(t), bus.Topology{Cluster: "edge-1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := as("hub", bus.RoleAdmin).Apply(deadlineOf(t), bus.Topology{Cluster: "edge-1", FromDomain: "edge-1"}); err != nil {
		t.Fatal(err)
	}
	const c = "edge-1"
	subjects := []string{
		bus.SamplesSubject(c, "n"), bus.InventorySubject(c, bus.InventoryNodes), bus.ClockSubject(c), bus.EventsSubject(c, "ns"),
		bus.NodeRollupSubject(c, "n"), bus.NamespaceRollupSubject(c, "ns"), bus.TotalsSubject(c), bus.EpochSubject(c, 0),
		bus.DeadSubject("aggregator." + c), bus.DeadSubject("apigw." + c), bus.DeadSubject("sink.x"), bus.AgainSubject("sink.x"),
		"$KV.hs-clusters." + c, "$KV.hs-leases.inventory." + c, "$KV.hs-leases.events." + c, "$KV.hs-leases.aggregator." + c, "$KV.hs-leases.member.x",
		"$KV.hs-leases.sink.x", "$KV.hs-leases.topology",
		// of another cluster, which is at the same hub
		bus.SamplesSubject("edge-2", "n"), bus.InventorySubject("edge-2", bus.InventoryNodes), bus.ClockSubject("edge-2"), bus.EventsSubject("edge-2", "ns"),
		bus.NodeRollupSubject("edge-2", "n"), bus.TotalsSubject("edge-2"), "$KV.hs-clusters.edge-2", "$KV.hs-leases.aggregator.edge-2",
		// of streams and their readers
		"$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.PURGE.ROLLUPS_edge-1", "$JS.API.STREAM.SNAPSHOT.ROLLUPS_edge-1", "$JS.API.STREAM.RESTORE.X",
		"$JS.API.STREAM.MSG.DELETE.ROLLUPS_edge-1", "$JS.API.STREAM.LEADER.STEPDOWN.ROLLUPS_edge-1", "$JS.API.STREAM.PEER.REMOVE.ROLLUPS_edge-1",
		"$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE", "$JS.API.ACCOUNT.PURGE.$G",
		"$JS.API.CONSUMER.DURABLE.CREATE.ROLLUPS_edge-1.x", "$JS.API.CONSUMER.DELETE.SAMPLES_edge-1.x", "$JS.API.STREAM.MSG.GET.SAMPLES_edge-1", "$JS.API.STREAM.MSG.GET.ROLLUPS_edge-1",
		"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.X", "$JS.API.STREAM.DELETE.X", "$JS.API.CONSUMER.PAUSE.ROLLUPS_edge-1.x", "$JS.API.CONSUMER.RESET.ROLLUPS_edge-1.x", "$JS.ACK.ROLLUPS_edge-1.x.1.1.1.1.0",
		// of others
		"$JS.edge-1.API.STREAM.DELETE.ROLLUPS_edge-1", "$JS.edge-2.API.STREAM.DELETE.ROLLUPS_edge-2", "$JS.hub.API.STREAM.DELETE.ROLLUPS_edge-1",
		"mirror.edge-1.M.x", "mirror.edge-2.M.x", "$SYS.REQ.SERVER.PING", "_INBOX_admin.edge-1.x", "_INBOX_apigw.x", "other",
	}
	// What a role has to do with, of the above: patterns of a subject's beginning.
	leases, letters := "$KV.hs-leases.", "hs.dead."
	reads := []string{"$JS.API.STREAM.MSG.GET.ROLLUPS_edge-1"}
	admin := []string{"hs.samples.edge-1.", "hs.inventory.edge-1.", "hs.clock.edge-1", "hs.events.edge-1.", "hs.rollups.edge-1.", letters, "$KV.hs-clusters.edge-1", leases + "sink.", leases + "topology",
		"$JS.API.CONSUMER.DELETE.", "$JS.API.STREAM.MSG.GET.", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.X", "$JS.API.STREAM.DELETE.X", "$JS.API.CONSUMER.PAUSE.", "$JS.API.CONSUMER.RESET."}
	sinks := slices.Concat(reads, []string{"hs.dead.aggregator", "hs.dead.apigw", "hs.dead.sink=2ex", "hs.dead.sink_x", leases + "sink.", "$JS.API.CONSUMER.RESET.", "$JS.ACK."})
	may := map[string]map[bus.Role][]string{
		"edge-1": {
			bus.RoleScraper:   {"hs.samples.edge-1."},
			bus.RoleInventory: {"hs.inventory.edge-1.", "hs.events.edge-1.", "$KV.hs-clusters.edge-1", leases + "inventory.edge-1", leases + "events.edge-1"},
			bus.RoleAggregator: slices.Concat(reads, []string{"hs.clock.edge-1", "hs.rollups.edge-1.", "hs.dead.aggregator", leases + "aggregator.edge-1", leases + "member.",
				"$JS.API.CONSUMER.DELETE.SAMPLES", "$JS.API.STREAM.MSG.GET.SAMPLES"}),
			bus.RoleGateway: slices.Concat(reads, []string{"hs.dead.apigw"}),
			bus.RoleSinks:   sinks,
			bus.RoleAdmin:   admin,
		},
		"hub": { // of every cluster that it mirrors
			bus.RoleGateway: slices.Concat(reads, []string{"hs.dead.apigw", "hs.dead.aggregator", "hs.dead.sink_x", "$JS.API.STREAM.MSG.GET.SAMPLES", "$JS.API.CONSUMER.DELETE."}),
			bus.RoleSinks:   slices.Concat(sinks, []string{"$JS.API.STREAM.MSG.GET.SAMPLES"}),
			bus.RoleAdmin:   slices.Concat(admin, []string{"hs.samples.edge-2.", "hs.inventory.edge-2.", "hs.clock.edge-2", "hs.events.edge-2.", "hs.rollups.edge-2.", "$KV.hs-clusters.edge-2"}),
		},
	}
	for place, roles := range may {
		for role, begins := range roles {
			t.Run(place+"/"+string(role), func(t *testing.T) {
				t.Parallel()
				conn := as(place, role)
				refused := 0
				for _, subject := range subjects {
					mayIt := slices.ContainsFunc(begins, func(p string) bool { return strings.HasPrefix(subject, p) })
					if mayIt && strings.HasSuffix(subject, ".again") && role != bus.RoleAdmin {
						mayIt = false
					}
					if mayIt || strings.HasPrefix(subject, "$JS."+place+".API.") {
						continue // it would do something, which other tests see; the second is $JS.API to the server, which is above
					}
					refused++
					_, err := conn.Publisher(bus.PublisherConfig{}).Publish(deadlineOf(t), bus.Message{Subject: subject, ID: subject, Data: []byte("{}")})
					if !errors.Is(err, bus.ErrNotPermitted) {
						t.Errorf("%s: %v, want %v", subject, err, bus.ErrNotPermitted)
					}
				}
				t.Logf("%d of %d subjects are refused", refused, len(subjects))
			})
		}
	}
	// The one thing that the humblest may: it arrives.
	scraper := as("edge-1", bus.RoleScraper)
	if _, err := scraper.Publisher(bus.PublisherConfig{}).Publish(deadlineOf(t), bus.Message{Subject: bus.SamplesSubject(c, "n"), ID: "1", Data: []byte("x")}); err != nil {
		t.Error(err)
	}
}
