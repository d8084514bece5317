package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
)

var update = flag.Bool("update", false, "write anew what is generated")

// The services apart, as docker-compose.yaml has them, from images of this tree: an aggregator that is killed, one that
// is stopped, and a gateway that is killed cost nobody a tick.
func TestComposeGoesOnWhenWhatIsActiveDies(t *testing.T) {
	s := startStack(t)
	const res = 5 * time.Second

	gateways := []string{"apigw-1", "apigw-2"}
	flowing := func() bool {
		for _, g := range gateways {
			if series, err := s.totals(g); err != nil || len(series) < 3 {
				return false
			}
		}
		return true
	}
	eventually(t, 2*time.Minute, flowing, func() string { return "both gateways have three ticks of the totals\n" + s.describe() })
	t.Logf("totals flow %s after compose up", time.Since(s.up).Round(time.Second/10))
	s.checkContainers(8) // of the core profile

	both := []string{"aggregator-1", "aggregator-2"}
	// replaced takes the active aggregator away and checks that the other one closes every tick from there on.
	replaced := func(how string, take func(service string)) (gone string) {
		t.Helper()
		var active string
		eventually(t, patience, func() bool { active = s.owner(both); return active != "" }, func() string {
			return how + ": an aggregator owns the cluster\n" + s.describe()
		})
		standby := both[0]
		if active == standby {
			standby = both[1]
		}
		before := s.newest(gateways[0])
		began := time.Now()
		take(active)
		took := time.Since(began)
		var owns, fresh, pause time.Duration
		last, changed := before, began
		eventually(t, patience, func() bool {
			now := time.Now()
			if owns == 0 && s.owner([]string{standby}) == standby {
				owns = now.Sub(began)
			}
			if tick := s.newest(gateways[0]); tick.After(last) {
				if pause = max(pause, now.Sub(changed)); fresh == 0 && owns != 0 {
					fresh = now.Sub(began)
				}
				last, changed = tick, now
			}
			return owns != 0 && !last.Before(before.Add(5*res)) && !s.newest(gateways[1]).Before(before.Add(5*res))
		}, func() string {
			return fmt.Sprintf("%s: five ticks beyond %s, the newest is %s; %s owns after %s\n%s", how, before, last, standby, owns, s.describe())
		})
		t.Logf("%s %s (took %s): %s owns after %s, its first tick is served after %s, the newest tick stood for at most %s",
			how, active, took.Round(time.Millisecond), standby, owns.Round(time.Millisecond), fresh.Round(time.Millisecond), pause.Round(time.Millisecond))
		for _, g := range gateways {
			series, err := s.totals(g)
			if err != nil {
				t.Fatal(err)
			}
			checkGrid(t, how+", "+g, series, res)
			if i := slices.IndexFunc(series, func(p time.Time) bool { return !p.Before(before) }); i < 1 || len(series)-i < 5 {
				t.Errorf("%s, %s: %d ticks, of which %d from %s on: too few around the moment", how, g, len(series), len(series)-i, before)
			}
		}
		return active
	}

	killed := replaced("killed", func(service string) { s.docker("kill", "--signal=KILL", s.container(service)) })
	s.docker("start", s.container(killed))
	eventually(t, patience, func() bool { return s.readyz(killed) == nil }, func() string {
		return fmt.Sprintf("%s stands by again: %v\n%s", killed, s.readyz(killed), s.describe())
	})
	stopped := replaced("stopped", func(service string) { s.docker("stop", "--time=10", s.container(service)) })
	s.docker("start", s.container(stopped))
	eventually(t, patience, func() bool { return s.readyz(stopped) == nil }, func() string {
		return fmt.Sprintf("%s stands by again: %v\n%s", stopped, s.readyz(stopped), s.describe())
	})

	// Networks that drop what is sent, of which nobody is told.
	var connect func()
	cut := replaced("cut off", func(service string) { connect = s.cutOff(service) })
	connect()
	eventually(t, patience, func() bool { return s.readyz(cut) == nil }, func() string {
		return fmt.Sprintf("%s stands by again: %v\n%s", cut, s.readyz(cut), s.describe())
	})
	s.busCutOff(t, 3, gateways, res)

	s.checkTop()
	s.docker("kill", "--signal=KILL", s.container("apigw-1"))
	before := s.newest("apigw-2")
	eventually(t, patience, func() bool { return s.newest("apigw-2").After(before) }, func() string {
		return "the other gateway serves a new tick\n" + s.describe()
	})
	s.checkTop()
}

// The users of deploy/nats/single.conf may what bus.Permissions says of their roles, and docker-compose.yaml hands each
// service the inbox that goes with it. -update writes the users anew.
func TestBusUsersMayWhatTheirRolesMay(t *testing.T) {
	const cluster, begin, end = "sim", "  users: [\n", "  ]\n"
	file := filepath.Join(root, "deploy", "nats", "single.conf")
	conf, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	compose, err := os.ReadFile(filepath.Join(root, "docker-compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var users strings.Builder
	for _, roles := range [][]bus.Role{{bus.RoleScraper, bus.RoleInventory}, {bus.RoleAggregator}, {bus.RoleGateway}, {bus.RoleSinks}, {bus.RoleAdmin}} {
		name := string(roles[0])
		fmt.Fprintf(&users, "    { user: %s, password: $BUS_PASSWORD_%s, permissions: {\n      publish: [\n", name, strings.ToUpper(name))
		for _, role := range roles {
			publish, _ := bus.Permissions(role, cluster)
			for _, subject := range publish {
				fmt.Fprintf(&users, "        %q\n", subject)
			}
		}
		_, subscribe := bus.Permissions(roles[0], cluster)
		fmt.Fprintf(&users, "      ]\n      subscribe: %q\n    } }\n", subscribe)
		if want := "HEAPSTREAM_BUS_INBOX_PREFIX: " + bus.InboxPrefix(roles[0], cluster) + "\n"; !bytes.Contains(compose, []byte(want)) {
			t.Errorf("docker-compose.yaml has no line %q", want)
		}
	}
	head, rest, ok := strings.Cut(string(conf), begin)
	_, tail, ok2 := strings.Cut(rest, "\n"+end)
	if !ok2 {
		_, tail, ok2 = strings.Cut(rest, end) // no users yet
	}
	if !ok || !ok2 {
		t.Fatalf("%s has no list of users", file)
	}
	want := head + begin + users.String() + end + tail
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(conf) != want {
		t.Errorf("the users of %s are not what the roles need: write them anew with -update; want\n%s", file, users.String())
	}
}

// stack is a compose project of its own, on images and ports of its own.
type stack struct {
	t       *testing.T
	project string
	compose []string
	env     []string
	up      time.Time
	client  *http.Client
}

// startStack builds images of this tree and starts the core profile; it is taken down with the test. Without what that
// takes the test is skipped.
func startStack(t *testing.T) *stack {
	t.Helper()
	s := newStack(t, "heapstream-e2e")
	all := append(slices.Clone(s.compose[1:]), "--profile", "log", "--profile", "influxdb", "--profile", "kafka", "config", "--quiet")
	if out, err := s.try(time.Minute, s.compose[0], all...); err != nil {
		t.Fatalf("compose file with all profiles: %v\n%s", err, out)
	}
	s.start("NODES=3", "PODS=10", "RESOLUTION=5s", "API_PORT=0", "APIGW_1_PORT=0", "APIGW_2_PORT=0", "AGGREGATOR_1_PORT=0", "AGGREGATOR_2_PORT=0", "INFLUXDB_PORT=0")
	return s
}

// newStack is a project on images of this tree, which are removed with the test. Further arguments are compose's. Without what it takes
// the test is skipped.
func newStack(t *testing.T, name string, args ...string) *stack {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIP: -short: images and containers take their time")
	}
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: no Docker engine of this host's own: not Linux")
	}
	s := &stack{t: t, project: fmt.Sprintf("%s-%d", name, os.Getpid()), client: &http.Client{
		Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}}
	if out, err := s.try(20*time.Second, "docker", "info", "--format", "{{.OSType}}"); err != nil || strings.TrimSpace(out) != "linux" {
		t.Skipf("SKIP: no Docker engine for Linux containers: %v", err)
	}
	for _, c := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		if _, err := s.try(20*time.Second, c[0], append(c[1:], "version")...); err == nil {
			s.compose = c
			break
		}
	}
	if s.compose == nil {
		t.Skip("SKIP: no docker compose")
	}
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("SKIP: no make, which builds the images")
	}
	s.compose = append(append(s.compose, "--project-name", s.project), args...)

	const images = "heapstream-e2e"
	tag := fmt.Sprintf("p%d", os.Getpid())
	s.env = append(os.Environ(), "IMAGES="+images, "TAG="+tag)
	built := time.Now()
	output, err := s.try(8*time.Minute, "make", "--no-print-directory", "images", "IMAGES="+images, "TAG="+tag)
	t.Cleanup(func() {
		if list, err := s.try(time.Minute, "docker", "images", "--quiet", "--filter", "reference="+images+"/*:"+tag, "--format", "{{.Repository}}:{{.Tag}}"); err == nil && strings.TrimSpace(list) != "" {
			if out, err := s.try(time.Minute, "docker", append([]string{"rmi"}, strings.Fields(list)...)...); err != nil {
				t.Errorf("remove images: %v\n%s", err, out)
			}
		}
	})
	if err != nil {
		t.Fatalf("make images: %v\n%s", err, output)
	}
	t.Logf("images were made in %s", time.Since(built).Round(time.Second/10))
	return s
}

// start starts the project with this environment, in which a port of 0 is one that the engine chooses; it is taken down with the test.
func (s *stack) start(env ...string) {
	t := s.t
	t.Helper()
	s.env = append(s.env, env...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.describe())
		}
		if out, err := s.run(2*time.Minute, "down", "--volumes", "--remove-orphans", "--timeout=5"); err != nil {
			t.Errorf("compose down: %v\n%s", err, out)
		}
	})
	s.up = time.Now()
	if out, err := s.run(3*time.Minute, "up", "--detach"); err != nil {
		t.Fatalf("compose up: %v\n%s", err, out)
	}
	t.Logf("compose up took %s", time.Since(s.up).Round(time.Second/10))
}

// try runs a program at the root of the repository; it returns what it printed.
func (s *stack) try(within time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within) // also used after the test's own has ended
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = root, s.env, 5*time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), cmp.Or(ctx.Err(), err)
}

// run runs compose on the project.
func (s *stack) run(within time.Duration, args ...string) (string, error) {
	return s.try(within, s.compose[0], append(slices.Clone(s.compose[1:]), args...)...)
}

// docker runs docker, which must succeed, and returns what it printed without the space around it.
func (s *stack) docker(args ...string) string {
	s.t.Helper()
	out, err := s.try(time.Minute, "docker", args...)
	if err != nil {
		s.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// container is the id of a service's container, running or not.
func (s *stack) container(service string) string {
	s.t.Helper()
	id := s.docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.project, "--filter", "label=com.docker.compose.service="+service)
	if id == "" || strings.Contains(id, "\n") {
		s.t.Fatalf("service %s has the containers %q, want one", service, id)
	}
	return id
}

// get asks a service at a port of its own.
func (s *stack) get(service string, port int, path string) ([]byte, error) {
	at, err := s.try(20*time.Second, "docker", "port", s.container(service), fmt.Sprintf("%d/tcp", port))
	if err != nil {
		return nil, fmt.Errorf("port %d of %s: %w", port, service, err)
	}
	at, _, _ = strings.Cut(strings.TrimSpace(at), "\n")
	resp, err := s.client.Get("http://" + at + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s answers %s: %s", service, path, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// totals are the ticks of the cluster's CPU rate as a gateway serves them, in its order.
func (s *stack) totals(gateway string) ([]time.Time, error) { return s.totalsAt(gateway, "") }

// totalsAt are those of a cluster whose paths begin with this.
func (s *stack) totalsAt(gateway, path string) ([]time.Time, error) {
	body, err := s.get(gateway, 8082, path+"/api/v1/model/metrics/cpu/usage_rate")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Metrics []struct{ Timestamp time.Time }
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("decode the series of %s: %w", gateway, err)
	}
	ticks := make([]time.Time, len(answer.Metrics))
	for i, p := range answer.Metrics {
		ticks[i] = p.Timestamp
	}
	return ticks, nil
}

// newest is the newest tick that a gateway serves; the zero time if it does not say.
func (s *stack) newest(gateway string) time.Time {
	ticks, err := s.totals(gateway)
	if err != nil || len(ticks) == 0 {
		return time.Time{}
	}
	return ticks[len(ticks)-1]
}

// checkGrid fails the test where a series does not have every tick of the grid between its ends, once.
func checkGrid(t *testing.T, what string, ticks []time.Time, res time.Duration) {
	t.Helper()
	for i, tick := range ticks {
		if !tick.Equal(tick.Truncate(res)) {
			t.Errorf("%s: tick %s is not on the grid of %s", what, tick, res)
		}
		if i > 0 && tick.Sub(ticks[i-1]) != res {
			t.Errorf("%s: tick %s follows %s: want every tick of %s, once", what, tick, ticks[i-1], res)
		}
	}
}

// owner is the aggregator that says that the cluster is its own; "" if none does.
func (s *stack) owner(of []string) string {
	for _, service := range of {
		body, err := s.get(service, 8080, "/metrics")
		if err == nil && bytes.Contains(body, []byte("\nheapstream_aggregator_clusters_owned{cluster=\"sim\"} 1\n")) {
			return service
		}
	}
	return ""
}

func (s *stack) readyz(service string) error {
	_, err := s.get(service, 8080, "/readyz")
	return err
}

// checkTop asks the API server what kubectl top asks it, and kubectl itself where it is installed.
func (s *stack) checkTop() {
	s.t.Helper()
	type list struct {
		Items []struct {
			Metadata struct{ Name string }
			Usage    map[string]string
		}
	}
	var last error
	eventually(s.t, patience, func() bool {
		body, err := s.get("simcluster", 8001, "/apis/metrics.k8s.io/v1beta1/nodes")
		var l list
		if err == nil {
			err = json.Unmarshal(body, &l)
		}
		if err == nil && (len(l.Items) != 3 || l.Items[0].Usage["cpu"] == "") {
			err = fmt.Errorf("want CPU of three nodes: %s", body)
		}
		last = err
		return err == nil
	}, func() string { return fmt.Sprintf("the API server answers kubectl top: %v\n%s", last, s.describe()) })

	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		s.t.Log("kubectl is not installed: only its request was made")
		return
	}
	at := s.docker("port", s.container("simcluster"), "8001/tcp")
	out, err := s.try(time.Minute, kubectl, "--kubeconfig=/dev/null", "--server=http://"+at, "top", "nodes")
	if err != nil || strings.Count(out, "node-") != 3 {
		s.t.Errorf("kubectl top nodes: %v\n%s", err, out)
	}
}

// checkContainers fails the test unless all containers are what the compose file promises: healthy, not root, on a file
// system that cannot be written, reachable from this host alone.
func (s *stack) checkContainers(want int) {
	s.t.Helper()
	type container struct {
		Name   string
		Config struct{ User string }
		State  struct {
			Status   string
			ExitCode int
			Health   *struct{ Status string }
		}
		HostConfig struct {
			ReadonlyRootfs bool
			CapDrop        []string
			PortBindings   map[string][]struct {
				HostIP string `json:"HostIp"`
			}
		}
	}
	var all []container
	look := func() (sick []string) {
		ids := strings.Fields(s.docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+s.project))
		all = nil
		if err := json.Unmarshal([]byte(s.docker(append([]string{"inspect"}, ids...)...)), &all); err != nil {
			s.t.Fatal(err)
		}
		for _, c := range all {
			switch {
			case strings.Contains(c.Name, "provision"):
				if c.State.Status != "exited" || c.State.ExitCode != 0 {
					sick = append(sick, fmt.Sprintf("%s: %s %d", c.Name, c.State.Status, c.State.ExitCode))
				}
			case c.State.Health == nil:
				sick = append(sick, c.Name+": has no health check")
			case c.State.Health.Status != "healthy":
				sick = append(sick, c.Name+": "+c.State.Health.Status)
			}
		}
		return sick
	}
	var sick []string
	eventually(s.t, patience, func() bool { sick = look(); return len(sick) == 0 }, func() string {
		return fmt.Sprintf("every container is healthy: %s\n%s", sick, s.describe())
	})
	if len(all) != want {
		s.t.Errorf("there are %d containers, want %d", len(all), want)
	}
	for _, c := range all {
		if c.Config.User != "65532:65532" || !c.HostConfig.ReadonlyRootfs || !slices.Contains(c.HostConfig.CapDrop, "ALL") {
			s.t.Errorf("%s: user %q, read-only %t, capabilities dropped %v", c.Name, c.Config.User, c.HostConfig.ReadonlyRootfs, c.HostConfig.CapDrop)
		}
		for port, at := range c.HostConfig.PortBindings {
			for _, b := range at {
				if b.HostIP != "127.0.0.1" {
					s.t.Errorf("%s: port %s is published on %q", c.Name, port, b.HostIP)
				}
			}
		}
	}
}

// describe is the state of the project and the end of its logs, for a test that failed.
func (s *stack) describe() string {
	ps, err := s.run(30*time.Second, "ps", "--all")
	logs, err2 := s.run(30*time.Second, "logs", "--no-color", "--tail=15")
	if err := errors.Join(err, err2); err != nil {
		return fmt.Sprintf("%s%s%v", ps, logs, err)
	}
	return ps + logs
}
