package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/heapstream/heapstream/aggregator/rate"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/inventory"
)

// Of a bus whose servers are all there, connecting takes milliseconds, and asking too.
const connectPatience = 3 * time.Second

// look is one look at a bus.
type look struct {
	*Doctor
	ctx        context.Context
	c          *bus.Conn
	cluster    string
	resolution time.Duration
	now        time.Time // the bus's
	owned      bool      // somebody owns the cluster
	inventory  bool      // somebody publishes its inventory
	missing    map[string]bool
	stale      bool // no batch comes
}

// bus looks at the bus and at what lies on it.
func (d *Doctor) bus(ctx context.Context) {
	if len(d.cfg.Bus.URLs) == 0 {
		d.skip(CheckBus, "", "no --bus-url is given; that of a standalone is within it: start it with --embedded-bus-listen=127.0.0.1:4222 and give --bus-url=nats://127.0.0.1:4222")
		return
	}
	conn, err := bus.Connect(ctx, d.cfg.Bus, slog.New(slog.DiscardHandler)) // what it would log is told here
	if err != nil {
		d.add(Fail, CheckBus, "", "correct the --bus- flags, or mend the files that they name", "%v", err)
		return
	}
	defer conn.Close()
	wait, cancel := context.WithTimeout(ctx, connectPatience)
	err = conn.WaitUp(wait)
	cancel()
	if err != nil {
		if status := conn.Status(); status != nil {
			err = status
		}
		d.add(Fail, CheckBus, "", adviseBus(err), "%s cannot be used: %v", strings.Join(d.cfg.Bus.URLs, ", "), err)
		return
	}
	l := &look{Doctor: d, ctx: ctx, c: conn, cluster: d.cfg.Scraper.Cluster, resolution: d.cfg.Scraper.Resolution, missing: map[string]bool{}}
	if !l.server() || !l.streams() {
		return
	}
	l.register()
	l.leases()
	l.lags()
	l.sinks()
	l.dead()
}

func adviseBus(err error) string {
	said := err.Error()
	switch {
	case strings.Contains(said, "the server refuses"):
		return "give the identity that the server knows: --bus-creds, --bus-nkey, or --bus-user with --bus-password-file"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return adviseDial(err, "a NATS server", "--bus-ca")
	case strings.Contains(said, "ended the TLS handshake"):
		return "give a client certificate of the servers' authority: --bus-cert and --bus-key"
	case strings.Contains(said, "secure connection required"), strings.Contains(said, "first record does not look like a TLS handshake"):
		return "the server and we do not agree on TLS: use tls:// with --bus-ca, or nats://"
	}
	return adviseDial(err, "a NATS server", "--bus-ca")
}

// server looks at the server and our account; false where nothing can be asked of JetStream.
func (l *look) server() bool {
	s, err := l.c.Server()
	if err != nil {
		l.add(Fail, CheckBus, "", "look at the NATS server's log", "%v", err)
		return false
	}
	secured := "without TLS"
	if s.TLS {
		secured = "with TLS"
	}
	l.ok(CheckBus, "", "connected to %s (%s, NATS %s) %s, round trip %s", s.URL, or(s.Name, "unnamed"), s.Version, secured, s.RTT.Round(10*time.Microsecond))
	if s.Certificate != nil {
		l.certificate("bus", s.Certificate, "renew the NATS server's certificate; it reads the files again at SIGHUP")
	}
	if s.MaxPayload < bus.MaxPayload {
		l.add(Fail, CheckBus, "max_payload", fmt.Sprintf("set max_payload: %d in the server's configuration (deploy/nats)", bus.MaxPayload),
			"the server takes messages of %d bytes; batches of large nodes need up to %d", s.MaxPayload, bus.MaxPayload)
	}
	a, err := l.c.Account(l.ctx)
	switch {
	case errors.Is(err, bus.ErrNoJetStream):
		l.add(Fail, CheckBus, "JetStream", "turn it on in the server's configuration (jetstream { store_dir: … }), and for our account; is --bus-domain right?", "%v", err)
		return false
	case errors.Is(err, bus.ErrNotPermitted):
		l.ok(CheckBus, "JetStream", "its limits are not for this user to see ($JS.API.INFO)")
	case err != nil:
		l.add(Fail, CheckBus, "JetStream", "is a leader elected among the servers? look at their logs", "%v", err)
		return false
	default:
		l.limits(a)
	}
	return true
}

// limits judges what the account may still take.
func (l *look) limits(a bus.Account) {
	tight := ""
	for _, x := range []struct {
		what      string
		used, max int64
	}{{"store", a.Store, a.MaxStore}, {"memory", a.Memory, a.MaxMemory}, {"streams", int64(a.Streams), int64(a.MaxStreams)}, {"consumers", int64(a.Consumers), int64(a.MaxConsumers)}} {
		if x.max > 0 && x.used > x.max/10*9 {
			tight += fmt.Sprintf(" %s %d of %d", x.what, x.used, x.max)
		}
	}
	if tight != "" {
		l.add(Warn, CheckBus, "JetStream", "raise the account's limits, or give the streams less (heapstream bus apply)", "nearly all is taken:%s", tight)
		return
	}
	domain := ""
	if a.Domain != "" {
		domain = ", domain " + a.Domain
	}
	l.ok(CheckBus, "JetStream", "on%s: %d MiB stored in %d streams", domain, (a.Store+a.Memory)>>20, a.Streams)
}

// streams compares streams and buckets with what they should be; false where they cannot be seen.
func (l *look) streams() bool {
	top := bus.Topology{Cluster: l.cluster, FromDomain: l.cfg.FromDomain}
	changes, all, err := l.c.Wanted(l.ctx, top)
	if errors.Is(err, bus.ErrNotPermitted) {
		l.skip(CheckStreams, "", "this user may not look at them, which is right for a scraper: come again as the admin of the bus (--bus-user=admin)")
		return false
	}
	if err != nil {
		l.add(Fail, CheckStreams, "", "is a leader elected among the servers? look at their logs", "%v", err)
		return false
	}
	apply := "make it so: heapstream bus apply --cluster=" + l.cluster
	if l.cfg.FromDomain != "" {
		apply += " --from-domain=" + l.cfg.FromDomain
	}
	apply += " (add the sizes and ages you use)"
	for _, c := range changes {
		if c.Created {
			l.missing[c.Stream] = true
			l.add(Fail, CheckStreams, c.Stream, apply, "does not exist")
			continue
		}
		l.add(Fail, CheckStreams, c.Stream, apply, "differs: %s", strings.Join(c.Differs, "; "))
	}
	for _, name := range all {
		if l.missing[name] {
			continue
		}
		f, err := l.c.Examine(l.ctx, name)
		if err != nil {
			l.add(Fail, CheckStreams, name, "is its leader there? look at the servers' logs", "%v", err)
			l.missing[name] = true
			continue
		}
		if l.now.IsZero() && !f.Now.IsZero() {
			l.now = f.Now
			l.clock("bus", f.Now, 0, l.Doctor.now())
		}
		l.stream(name, f, slices.ContainsFunc(changes, func(c bus.Change) bool { return c.Stream == name }))
	}
	return true
}

// stream judges one stream that is there.
func (l *look) stream(name string, f bus.StreamFacts, differs bool) {
	switch {
	case f.Replicas > 1 && f.Leader == "":
		l.add(Fail, CheckStreams, name, "more than half of its servers have to be up: look at them", "no server leads it")
		return
	case len(f.Behind) > 0:
		l.add(Warn, CheckStreams, name, "bring the server back; the loss of another may stop the stream", "%s", strings.Join(f.Behind, ", "))
		return
	case f.Mirrors != "" && f.Silent > time.Minute:
		l.add(Warn, CheckStreams, name, "is the leaf node's link to the edge up? it catches up by itself", "nothing was heard of %s for %s, %d messages behind", f.Mirrors, f.Silent.Round(time.Second), f.Lag)
		return
	}
	// A stream that is full forgets by bytes before it does by age.
	least := time.Duration(0)
	switch name {
	case bus.RollupsStream(l.cluster):
		least = bus.MinRollupsAge
	case bus.SamplesStream(l.cluster):
		least = 2 * rate.Memory(l.resolution)
	}
	if held := f.Last.Sub(f.First); least > 0 && f.MaxBytes > 0 && f.Bytes > uint64(f.MaxBytes)/10*9 && held < least { //nolint:gosec // above 0
		what := "gateways lack the older part of their window, and sinks that pause lose messages"
		if name == bus.SamplesStream(l.cluster) {
			what = "an aggregator that takes over lacks what it has to read again"
		}
		need := "more"
		if held >= time.Second {
			need = fmt.Sprintf("at least %d MiB", int64(float64(f.Bytes)*least.Seconds()/held.Seconds())>>20+1)
		}
		flag := "--rollups-bytes"
		if name == bus.SamplesStream(l.cluster) {
			flag = "--samples-bytes"
		}
		l.add(Fail, CheckStreams, name, fmt.Sprintf("give it %s: heapstream bus apply --cluster=%s %s=…", need, l.cluster, flag),
			"is full at %d MiB and holds %s of the %s it should: %s", f.MaxBytes>>20, held.Round(time.Second), least, what)
		return
	}
	if !differs {
		l.ok(CheckStreams, name, "is as it should be: %d messages, %d KiB, %d of %d copies well", f.Messages, f.Bytes>>10, max(1, f.Replicas)-len(f.Behind), max(1, f.Replicas))
	}
}

// register looks for the cluster among those that the bus knows.
func (l *look) register() {
	if l.missing["KV_"+bus.ClustersBucket] {
		l.skip(CheckLeases, "register", "its bucket is missing")
		return
	}
	all, err := l.c.Clusters(l.ctx)
	if err != nil {
		l.add(Fail, CheckLeases, "register", "look at the bus", "%v", err)
		return
	}
	var names []string
	for _, c := range all {
		if c.Cluster == l.cluster {
			l.resolution = c.Resolution
			l.ok(CheckLeases, "register", "cluster %s is known since %s, resolution %s", l.cluster, c.Created.UTC().Format(time.DateTime), c.Resolution)
			return
		}
		names = append(names, c.Cluster)
	}
	others := "none is"
	if len(names) > 0 {
		others = "known are " + some(names)
	}
	if l.missing[bus.RollupsStream(l.cluster)] {
		l.skip(CheckLeases, "register", "no cluster %q is known either, %s: see streams", l.cluster, others)
		return
	}
	l.add(Fail, CheckLeases, "register", "is --cluster right? A scraper of role inventory (or central) enters it: see that one runs", "no cluster %q is known on this bus; %s", l.cluster, others)
}

// leases looks who does what must be done by one.
func (l *look) leases() {
	if l.missing["KV_"+bus.LeasesBucket] {
		l.skip(CheckLeases, "", "their bucket is missing")
		return
	}
	all, err := l.c.Leases(l.ctx, "")
	if err != nil {
		l.add(Fail, CheckLeases, "", "look at the bus", "%v", err)
		return
	}
	if l.missing[bus.RollupsStream(l.cluster)] || l.missing[bus.SamplesStream(l.cluster)] && l.cfg.FromDomain == "" {
		l.skip(CheckLeases, "", "who should write lacks a stream: see streams")
		return
	}
	owners, members := map[string]string{}, 0
	for _, s := range all {
		if s.Gone {
			continue
		}
		owners[s.Key] = s.Owner
		if strings.HasPrefix(s.Key, bus.MemberLeases) {
			members++
		}
	}
	for _, x := range []struct {
		about, key, without, do string
		level                   Level
		held                    *bool
	}{
		{"aggregator", bus.AggregatorLease(l.cluster), "no tick is closed, and nothing comes to gateways and sinks", "start an aggregator, or look at the log of the one that runs: which cluster does it own?", Fail, &l.owned},
		{"inventory", bus.InventoryLease(l.cluster), "nodes, owners and namespaces stay as last known", "start a scraper of role inventory (or central), or look at its log", Fail, &l.inventory},
		{"events", bus.EventsLease(l.cluster), "no events reach the sinks", "start a scraper of role inventory, central or events; fine with --events=false", Warn, new(bool)},
	} {
		if l.cfg.FromDomain != "" {
			break // at the edge
		}
		owner, held := owners[x.key]
		*x.held = held
		switch {
		case !held:
			if x.about == "events" && (!l.inventory || !l.cfg.Scraper.Events) {
				continue // the same scraper
			}
			l.add(x.level, CheckLeases, x.about, x.do, "nobody holds it: %s", x.without)
		case x.about == "aggregator" && members < 2 && !l.cfg.is(RoleStandalone):
			l.ok(CheckLeases, x.about, "%s owns the cluster; there is no other to take over", owner)
		case x.about == "aggregator":
			l.ok(CheckLeases, x.about, "%s owns the cluster; %d aggregators run", owner, members)
		default:
			l.ok(CheckLeases, x.about, "%s", owner)
		}
	}
}

// lags looks how old the newest of each kind is.
func (l *look) lags() {
	l.samples()
	l.inventories()
	l.totals()
}

// late is when the newest of a tick's messages should be there.
func (l *look) late() time.Duration { return 2*l.resolution + proto.Grace(l.resolution) }

func (l *look) samples() {
	stream := bus.SamplesStream(l.cluster)
	if l.cfg.FromDomain != "" || l.missing[stream] {
		return
	}
	const do = "look at the scrapers' logs and their heapstream_scraper_scrapes_total; may their bus user publish?"
	newest, ok, err := l.c.LastOn(l.ctx, stream, bus.SamplesFilter(l.cluster))
	switch {
	case err != nil:
		l.add(Fail, CheckLags, stream, "look at the bus", "%v", err)
	case !ok:
		l.stale = true
		l.add(Fail, CheckLags, stream, do, "no batch of any node is there")
	case l.now.Sub(newest.Time) > l.late():
		l.stale = true
		l.add(Fail, CheckLags, stream, do, "the newest batch is %s old; at a resolution of %s there should be one each %s", l.now.Sub(newest.Time).Round(time.Second), l.resolution, l.resolution)
	default:
		l.ok(CheckLags, stream, "the newest batch is %s old", max(0, l.now.Sub(newest.Time)).Round(100*time.Millisecond))
	}
}

func (l *look) inventories() {
	stream := bus.SamplesStream(l.cluster)
	if l.cfg.FromDomain != "" || l.missing[stream] {
		return
	}
	const about = "inventory"
	if !l.inventory {
		l.skip(CheckLags, about, "nobody publishes it: see leases")
		return
	}
	m, ok, err := l.c.LastOn(l.ctx, stream, bus.InventorySubject(l.cluster, bus.InventoryNodes))
	switch {
	case err != nil:
		l.add(Fail, CheckLags, about, "look at the bus", "%v", err)
	case !ok:
		l.add(Fail, CheckLags, about, "look at the log of the scraper that holds the lease of the inventory: may it list nodes?", "none is on the bus")
	case l.now.Sub(m.Time) > 2*inventory.Repeat:
		l.add(Fail, CheckLags, about, "look at the log of the scraper that holds the lease of the inventory", "it is %s old; it comes every %s", l.now.Sub(m.Time).Round(time.Second), inventory.Repeat)
	default:
		l.ok(CheckLags, about, "it is %s old", max(0, l.now.Sub(m.Time)).Round(time.Second))
	}
}

func (l *look) totals() {
	stream := bus.RollupsStream(l.cluster)
	if l.missing[stream] {
		return
	}
	if !l.owned && l.cfg.FromDomain == "" {
		l.skip(CheckLags, stream, "nobody writes it: see leases")
		return
	}
	const do = "look at the aggregator's log and its heapstream_aggregator_newest_tick_age_seconds: does it have processor time, is its stream writable?"
	m, ok, err := l.c.LastOn(l.ctx, stream, bus.TotalsSubject(l.cluster))
	if err != nil {
		l.add(Fail, CheckLags, stream, "look at the bus", "%v", err)
		return
	}
	if !ok {
		if !l.inventory || l.stale {
			l.skip(CheckLags, stream, "no tick was closed: see what SAMPLES lacks")
			return
		}
		l.add(Fail, CheckLags, stream, do, "no tick was closed yet; after a start the first one takes a resolution and its grace")
		return
	}
	var r proto.Rollup
	if err := proto.NewDecoder().Rollup(m.Data, &r); err != nil {
		l.add(Fail, CheckLags, stream, "do aggregator and doctor have the same version?", "the newest totals cannot be decoded: %v", err)
		return
	}
	if age := l.now.Sub(r.Tick.Time()); age > l.late()+proto.Grace(l.resolution) {
		l.add(Fail, CheckLags, stream, do, "the newest closed tick is %s old at a resolution of %s", age.Round(time.Second), l.resolution)
		return
	}
	l.ok(CheckLags, stream, "the newest closed tick is %s old: %d of %d nodes", max(0, l.now.Sub(r.Tick.Time())).Round(100*time.Millisecond), r.Totals.Reported, r.Totals.Expected)
	if r.Totals.Gap {
		l.add(Warn, CheckLags, "gap", "give SAMPLES more bytes or age (heapstream bus apply), so that an aggregator that was away finds what it missed", "messages had left SAMPLES before they were read: no rate crosses the gap")
	}
	l.absent(&r)
}

// absent says which nodes the newest tick lacks, but for those whose kubelet was found failing.
func (l *look) absent(r *proto.Rollup) {
	if l.stale || l.seen.noStats {
		return
	}
	var names []string
	explained := 0
	for _, n := range r.Totals.Missing {
		if l.seen.failing[n] {
			explained++
		} else {
			names = append(names, n)
		}
	}
	if explained > 0 {
		l.skip(CheckLags, "nodes", "%d missing at the newest tick: see kubelets", explained)
	}
	if len(names) > 0 {
		l.add(Warn, CheckLags, "nodes", "does a scraper run for each of them, and can it read its kubelet? a node that comes or goes is missing for a tick",
			"%d missing at the newest tick: %s", len(names), some(names))
	}
}

// sinks looks how far each is behind.
func (l *look) sinks() {
	if l.missing["KV_"+bus.LeasesBucket] {
		return
	}
	leases, err := l.c.Leases(l.ctx, bus.SinkLeases)
	if err != nil {
		l.add(Fail, CheckSinks, "", "look at the bus", "%v", err)
		return
	}
	fed := map[string]string{}
	for _, s := range leases {
		if !s.Gone {
			fed[s.Key] = s.Owner
		}
	}
	none := true
	for _, s := range []struct{ what, stream string }{{"rollups", bus.RollupsStream(l.cluster)}, {"events", bus.EventsStream(l.cluster)}} {
		if l.missing[s.stream] {
			continue
		}
		durables, err := l.c.SinkDurables(l.ctx, s.stream)
		if errors.Is(err, bus.ErrNotPermitted) {
			l.skip(CheckSinks, "", "this user may not list consumers: come again as the admin of the bus")
			return
		}
		if err != nil {
			l.add(Fail, CheckSinks, s.what, "look at the bus", "%v", err)
			continue
		}
		for _, x := range durables {
			none = false
			l.sink(x, s.what, fed[bus.SinkLease(x.Sink)])
		}
	}
	if none {
		l.ok(CheckSinks, "", "none has run")
	}
}

func (l *look) sink(x bus.DurableState, what, owner string) {
	about := x.Sink + " (" + what + ")"
	pending := x.Lag.Pending + uint64(max(0, x.Lag.Unacked)) //nolint:gosec // not negative
	lag := fmt.Sprintf("%d messages wait, the oldest for %s", pending, x.Lag.Oldest.Round(time.Second))
	switch {
	case x.Lag.Lost > 0:
		l.add(Fail, CheckSinks, about, "let it catch up; give ROLLUPS more age and bytes (heapstream bus apply) to outlast the next outage of its backend", "%d messages left the stream before they were written; %s", x.Lag.Lost, lag)
	case !x.Lag.Paused.IsZero():
		l.add(Warn, CheckSinks, about, "sinks resume "+x.Sink, "is paused until %s; %s", x.Lag.Paused.UTC().Format(time.DateTime), lag)
	case owner == "":
		l.add(Fail, CheckSinks, about, "start sinks with it, or let its place go: sinks forget "+x.Sink, "nobody feeds it; %s", lag)
	case pending > 0 && x.Lag.Oldest > l.cfg.StalledAfter:
		l.add(Fail, CheckSinks, about, "its backend refuses or is slow: look at the log of "+owner+", and at heapstream_sink_up; it loses nothing as long as the stream holds it", "stalled: %s", lag)
	default:
		l.ok(CheckSinks, about, "%s feeds it; %d messages wait", owner, pending)
	}
}

// dead looks what was given up.
func (l *look) dead() {
	if l.missing[bus.DeadStream] {
		return
	}
	counts, err := l.c.LetterCounts(l.ctx)
	if err != nil {
		l.add(Fail, CheckDead, "", "look at the bus", "%v", err)
		return
	}
	for _, reader := range slices.Sorted(maps.Keys(counts)) {
		reason, when := l.newestLetter(reader)
		do := "look at them with `nats stream view DEAD`: they name stream and sequence; a newer version of the reader may take them"
		if sink, ok := bus.SinkOfLease(reader); ok {
			do = "mend what the backend refuses, then: sinks dead redrive " + sink + "; else they leave DEAD with its age"
		}
		l.add(Warn, CheckDead, reader, do, "%d messages could not be used; the newest %s: %s", counts[reader], when, reason)
	}
	if len(counts) == 0 {
		l.ok(CheckDead, "", "no message was given up")
	}
}

// newestLetter is why, and when, a reader gave up last.
func (l *look) newestLetter(reader string) (reason, when string) {
	letter, at, ok, err := l.c.LastLetter(l.ctx, reader)
	if err != nil || !ok {
		return "reason unknown", "is of an unknown time"
	}
	return fmt.Sprintf("%.300s", or(letter.Reason, "no reason is told")), max(0, l.now.Sub(at)).Round(time.Second).String() + " ago"
}
