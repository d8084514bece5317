package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// cutOff takes a service's container off its network: nothing that is sent to it arrives, and nobody is told. What it
// returns connects it again under the names it had.
func (s *stack) cutOff(service string, names ...string) (connect func()) {
	s.t.Helper()
	id, network := s.container(service), s.project+"_default"
	s.docker("network", "disconnect", network, id)
	return func() {
		s.t.Helper()
		args := []string{"network", "connect"}
		for _, n := range append(names, service) {
			args = append(args, "--alias", n)
		}
		s.docker(append(args, network, id)...)
	}
}

// scrapes is how many times kubelets have been read, as the simulated cluster counts.
func (s *stack) scrapes() (n uint64) {
	var status struct{ Scrapes uint64 }
	if body, err := s.get("simcluster", 8001, "/sim/status"); err == nil && json.Unmarshal(body, &status) == nil {
		n = status.Scrapes
	}
	return n
}

// busCutOff takes the bus off the network until every kubelet has been read twice, and looks whether a tick is missing
// afterwards.
func (s *stack) busCutOff(t *testing.T, nodes uint64, gateways []string, res time.Duration) {
	t.Helper()
	before, scraped := s.newest(gateways[0]), s.scrapes()
	connect := s.cutOff("nats")
	eventually(t, patience, func() bool { return s.scrapes() >= scraped+2*nodes }, func() string { return "kubelets are not read without the bus\n" + s.describe() })
	connect()
	for _, g := range gateways {
		eventually(t, patience, func() bool { return !s.newest(g).Before(before.Add(5 * res)) }, func() string {
			return fmt.Sprintf("%s has no tick at %s after the bus was cut off, its newest is %s\n%s", g, before.Add(5*res), s.newest(g), s.describe())
		})
		series, err := s.totals(g)
		if err != nil {
			t.Fatal(err)
		}
		checkGrid(t, "bus cut off, "+g, series, res)
	}
	if body, err := s.get("aggregator-1", 8080, "/metrics"); err != nil || !strings.Contains(string(body), "heapstream_") {
		t.Errorf("aggregator-1 after the bus was cut off: %v", err)
	}
}
