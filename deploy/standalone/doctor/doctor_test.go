package doctor

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/kubelet"
)

var update = flag.Bool("update", false, "renew golden files")

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("this is not %s (renew with -update):\n%s", path, got)
	}
}

func TestHelpIsDocumented(t *testing.T) {
	golden(t, "testdata/help.golden", daemon.HelpText(Command()))
}

func TestReportIsALineAFinding(t *testing.T) {
	r := Report{Role: "node", Cluster: "prod", Took: "12ms", Findings: []Finding{
		{Check: CheckAPIServer, Level: OK, Seen: "answers"},
		{Check: CheckRights, About: "nodes/stats", Level: Fail, Seen: "we may not get them", Do: "add a rule"},
		{Check: CheckClocks, About: "bus", Level: Warn, Seen: "3s behind ours", Do: "NTP"},
		{Check: CheckBus, Level: Skip, Seen: "no --bus-url is given"},
	}}
	var text, js bytes.Buffer
	if err := errors.Join(r.Text(&text), r.JSON(&js)); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.golden", text.String())
	var back Report
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Findings) != len(r.Findings) || back.Findings[1] != r.Findings[1] {
		t.Errorf("as JSON it is %s (%v)", js.String(), err)
	}
	if err := r.Err(); err == nil || err.Error() != "1 of 4 findings fail" {
		t.Errorf("its error is %v", err)
	}
	r.Findings = r.Findings[2:]
	if err := r.Err(); err != nil {
		t.Errorf("warnings alone are %v", err)
	}
}

func TestSeenIsOneBoundedLine(t *testing.T) {
	var d Doctor
	d.all = map[string][]Finding{}
	d.ok(CheckBus, "", "%s", "a\nb\x00\xff"+strings.Repeat("x", 5000))
	got := d.all[CheckBus][0].Seen
	if strings.ContainsAny(got, "\n") || len(got) > maxText+8 || !strings.HasPrefix(got, "a b") {
		t.Errorf("%d bytes: %.40q", len(got), got)
	}
}

func TestCertificatesAreJudgedByTheTimeThatIsLeft(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	check := func(from, until time.Duration, want Level, says string) {
		t.Helper()
		level, seen := judge(&x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(until)}, now)
		if level != want || !strings.Contains(seen, says) {
			t.Errorf("valid from %s until %s: %s, %q; want %s, %q", from, until, level, seen, want, says)
		}
	}
	const day = 24 * time.Hour
	check(-100*day, 265*day, OK, "valid until 2027-08-13 12:00 UTC")
	check(-360*day, 5*day, Warn, "expires in 120h0m0s")
	check(-365*day, -time.Minute, Fail, "expired at 2026-11-21 11:59 UTC")
	check(time.Hour, day, Fail, "not valid before")
	// certificates of a day are renewed within it: they count by their life
	check(-20*time.Hour, 4*time.Hour, OK, "valid until")
	check(-23*time.Hour, time.Hour, Warn, "expires in 1h0m0s")
}

func TestWrongCommandLinesAreRefusedWithTheReason(t *testing.T) {
	check := func(want string, args ...string) {
		t.Helper()
		var said bytes.Buffer
		if code := daemon.Execute(t.Context(), Command(), args, io.Discard, &said); code != 2 || !strings.Contains(said.String(), want) {
			t.Errorf("%q ends with %d and says %q, not %q", args, code, said.String(), want)
		}
	}
	check(`--role is "nodes"`, "--role=nodes")
	check("--role=node needs --node-name", "--role=node")
	check("--output is", "--output=yaml")
	check("--gateway is no address", "--gateway=gateway:8082")
	check("--gateway is no address", "--gateway=http://user:secret@gateway:8082")
	check("--timeout", "--timeout=0s")
	check("--concurrency is 0", "--concurrency=0")
	check("scheme", "--bus-url=http://h:1")
	check("--source", "--source=prometheus:")
	check("kubelet-ca", "--kubelet-caa=x")
}

func TestEveryRoleAndSourceAsksForRights(t *testing.T) {
	for _, role := range []string{RoleStandalone, RoleGateway, string(scraper.RoleNode), string(scraper.RoleInventory), string(scraper.RoleCentral), string(scraper.RoleEvents)} {
		for _, source := range kubelet.Sources() {
			for _, from := range []string{scraper.PodsFromAPI, scraper.PodsFromKubelet} {
				all := Rights(role, source, from, true)
				seen := map[string]bool{}
				for _, r := range all {
					key := fmt.Sprint(r.Verb, r.Group, r.Resource, r.Name)
					if r.Verb == "" || r.Resource == "" || r.Why == "" || seen[key] {
						t.Errorf("role %s, source %s: %+v is incomplete or there twice", role, source, r)
					}
					seen[key] = true
				}
				if len(all) == 0 {
					t.Errorf("role %s, source %s asks for nothing", role, source)
				}
			}
		}
	}
}

func TestEveryCheckIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../observability/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range Checks() {
		if !strings.Contains(string(page), "\n| `"+c+"` | ") {
			t.Errorf("check %s is not on the page", c)
		}
	}
}
