// Package scraper turns what kubelets and the API server say into SAMPLES.
//
// At every tick each node is asked once: at the tick plus a share of the spread that a hash of its
// name gives, with a deadline of its own, so that a kubelet that hangs costs its own node one gap
// and nobody else anything. The answer is decoded into a batch, enriched with what the API server
// says of the node and its pods, encoded, and published: of each node one batch at a time, in the
// order of ticks. While the bus is away batches wait in memory up to a bound, beyond which the
// oldest are dropped and counted.
//
// Four roles of one program. node: the kubelet of one node, for a DaemonSet. inventory: what only
// the whole cluster tells, and its events, for a Deployment of two. central: both, for every node, as
// Heapster did with its --source. events: the events alone, as Heapster's eventer. How a kubelet's port and scheme are chosen stands at [Kubelet].
//
// It keeps nothing that matters: after a crash the next tick is scraped as if nothing had been, and
// a tick scraped twice has the same message id. What waited in memory is lost with the process.
//
// Not here: one kubelet's answer (kubelet), the API server's objects (node, inventory, events, kube), rates
// and sums (aggregator).
package scraper

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/scraper/events"
	"github.com/heapstream/heapstream/scraper/inventory"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kubelet"
	"github.com/heapstream/heapstream/scraper/node"
)

// Deps is what the program hands in.
type Deps struct {
	Bus      *bus.Conn
	Log      *slog.Logger
	Registry prometheus.Registerer
	Health   *daemon.Health   // may be nil
	Now      func() time.Time // time.Now where nil
}

// Scraper is one scraper in one role.
type Scraper struct {
	cfg    Config
	source Source
	log    *slog.Logger
	now    func() time.Time

	publisher *bus.Publisher
	backlog   *backlog
	telemetry *telemetry
	inventory *inventory.Inventory // nil in the roles node and events
	events    *events.Events       // nil in the node role, or where not wanted
	mirrors   *inventory.Mirrors   // role inventory
	all       *node.All            // role central
	own       *node.Own            // role node
	known     node.Known           // all or own
	kubelets  *kubelet.Client      // nil in the inventory role

	nodes   map[string]*target // of the loop in scrape
	scrapes sync.WaitGroup
	workers chan *worker // as many as may decode at once

	bus      *bus.Conn
	failure  atomic.Pointer[kubelet.Error] // of the last scrape that failed, for Ready
	fellBack atomic.Bool                   // some kubelet is read through /metrics/cadvisor
	begun    time.Time                     // when Run began
}

// target is one node that is scraped.
type target struct {
	name   string
	offset time.Duration // of its scrape from the tick
	busy   atomic.Bool   // a scrape is under way

	// Of the scrape under way.
	reason  kubelet.Reason // why the last scrape failed; "" if it did not
	since   time.Time      // of that
	dropped bool           // the last batch had values left out
	memory  kubelet.Memory
}

// worker is what it takes to turn an answer into a message.
type worker struct {
	decoder kubelet.Decoder
	encoder *proto.Encoder
	batch   proto.Batch
}

// New checks cfg and builds a scraper. It reads files that cfg names, but opens no connection.
func New(cfg Config, deps Deps) (*Scraper, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	source, err := ParseSource(cfg.Source)
	if err != nil {
		return nil, err // not reached: Validate has parsed it
	}
	s := &Scraper{cfg: cfg, source: source, log: deps.Log, now: deps.Now, bus: deps.Bus, nodes: map[string]*target{}}
	if s.now == nil {
		s.now = time.Now
	}
	for _, w := range source.Warnings {
		s.log.Warn("--source: " + w)
	}
	s.publisher = deps.Bus.Publisher(bus.PublisherConfig{})
	s.backlog = newBacklog(cfg.BacklogBytes, s.log, s.publish, s.settled)
	if s.telemetry, err = newTelemetry(deps.Registry, s.now, s.backlog.size); err != nil {
		return nil, err
	}
	var client *kube.Client
	var identity *kube.Identity
	api, err := cfg.api(source).Rest()
	switch {
	case err == nil:
		if client, err = kube.NewClient(api); err != nil {
			return nil, err
		}
		identity = kube.IdentityOf(api)
	case cfg.Role == RoleNode && cfg.PodsFrom == PodsFromKubelet:
		s.log.Info("no API server is known: the node's capacity and labels will be missing", "err", err)
	default:
		return nil, err
	}
	if cfg.Role == RoleNode || cfg.Role == RoleCentral {
		kc, err := cfg.kubelets(identity)
		if err != nil {
			return nil, err
		}
		if s.kubelets, err = kubelet.NewClient(kc); err != nil {
			return nil, err
		}
		// More workers than processors would only hold more memory.
		n := runtime.GOMAXPROCS(0)
		if cfg.Role == RoleNode {
			n = 1
		}
		s.workers = make(chan *worker, n)
		for range n {
			s.workers <- &worker{encoder: proto.NewEncoder()}
		}
	}
	var cluster inventory.Cluster
	switch cfg.Role {
	case RoleNode:
		own := node.OwnConfig{Name: cfg.NodeName, HostIDAnnotation: source.HostIDAnnotation, Refresh: cfg.NodeRefresh, PodsEvery: max(cfg.Resolution, 15*time.Second)}
		if cfg.PodsFrom == PodsFromKubelet {
			own.Source = s.podsOfKubelet
		}
		s.own = node.NewOwn(client, s.log, own)
		s.known = s.own
	case RoleInventory:
		s.mirrors = inventory.OwnMirrors(client, s.log)
		cluster = s.mirrors
	case RoleCentral:
		s.all = node.NewAll(client, s.log, source.HostIDAnnotation)
		s.known, cluster = s.all, s.all
	}
	host, _ := os.Hostname() // only a name for people
	owner := cmp.Or(cfg.Identity, host, "scraper")
	if cluster != nil {
		t, err := inventory.NewTelemetry(deps.Registry)
		if err != nil {
			return nil, err
		}
		s.inventory = inventory.New(inventory.Config{Cluster: cfg.Cluster, Owner: owner, Resolution: cfg.Resolution},
			inventory.Deps{Bus: deps.Bus, Publisher: s.publisher, Client: client, Cluster: cluster, Log: s.log, Telemetry: t, Now: s.now})
	}
	if cfg.Role == RoleEvents || cluster != nil && cfg.Events {
		t, err := events.NewTelemetry(deps.Registry)
		if err != nil {
			return nil, err
		}
		d := events.Deps{Bus: deps.Bus, Client: client, Log: s.log, Telemetry: t}
		if s.inventory != nil {
			d.Registered = s.inventory.Registered()
		}
		s.events = events.New(events.Config{Cluster: cfg.Cluster, Owner: owner, Rate: cfg.EventsRate}, d)
	}
	if deps.Health != nil {
		deps.Health.Ready("scraper", s.Ready)
	}
	return s, nil
}

// kubelets is how to speak to kubelets: what is configured, else as to the API server.
func (c *Config) kubelets(api *kube.Identity) (kubelet.Config, error) {
	k := &c.Kubelet
	kc := kubelet.Config{TokenFile: k.TokenFile, CAFile: k.CAFile, PinFile: k.PinFile, Insecure: k.Insecure,
		CertFile: k.CertFile, KeyFile: k.KeyFile, ServerName: k.ServerName, KeepIdle: 2*c.Resolution + 30*time.Second, Near: c.Role == RoleNode}
	if c.Role == RoleNode && k.ServerName == "" && k.Address != "" && isLoopback(k.Address) {
		kc.ServerName = c.NodeName // no certificate names the loopback address
	}
	if api == nil {
		return kc, nil
	}
	if kc.TokenFile == "" && kc.CertFile == "" {
		kc.TokenFile, kc.Token = api.TokenFile, api.Token
		kc.CertFile, kc.KeyFile, kc.CertData, kc.KeyData = api.CertFile, api.KeyFile, api.CertData, api.KeyData
	}
	if kc.CAFile == "" && kc.PinFile == "" && !kc.Insecure {
		kc.CAFile, kc.CAData = api.CAFile, api.CAData
		// As in Heapster: an API server that is not verified leaves kubelets unverified.
		kc.Insecure = api.Insecure
	}
	return kc, nil
}

// Run scrapes and publishes until ctx ends (nil) or something makes going on pointless, such as a
// cluster name that is another cluster's. It returns after everything it started has ended.
func (s *Scraper) Run(ctx context.Context) error {
	s.begun = s.now()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var parts sync.WaitGroup
	part := func(run func(context.Context) error) {
		parts.Go(func() {
			if err := run(ctx); err != nil {
				stop(err)
			}
		})
	}
	if s.inventory != nil {
		part(s.inventory.Run)
	}
	if s.events != nil {
		part(s.events.Run)
	}
	switch s.cfg.Role {
	case RoleInventory:
		part(func(ctx context.Context) error { s.mirrors.Run(ctx); return nil })
	case RoleCentral:
		part(func(ctx context.Context) error { s.all.Run(ctx); return nil })
		part(s.scrape)
	case RoleNode:
		part(func(ctx context.Context) error { s.own.Run(ctx); return nil })
		part(s.scrape)
	}
	<-ctx.Done()
	parts.Wait()
	if s.kubelets != nil {
		s.kubelets.Close()
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Ready is nil when a batch was published within the last two resolutions (role inventory: when the
// inventory is out or another's duty; role events: when events are), else says in words what is in the way.
func (s *Scraper) Ready() error {
	if s.cfg.Role == RoleEvents {
		return errors.Join(s.events.Err(), s.bus.Status())
	}
	if s.cfg.Role == RoleInventory {
		return errors.Join(s.inventory.Ready(), s.bus.Status())
	}
	newest := proto.Tick(s.telemetry.newest.Load())
	if newest != 0 && s.now().Sub(newest.Time()) <= 2*s.cfg.Resolution+proto.Grace(s.cfg.Resolution) {
		return nil
	}
	words := "no batch has been published yet"
	if newest != 0 {
		words = fmt.Sprintf("the newest batch is of %s", newest)
	}
	var api error
	if s.all != nil {
		api = s.all.Err()
	} else if s.own != nil {
		api = s.own.Err()
	}
	var last error
	if f := s.failure.Load(); f != nil {
		last = f
	}
	return errors.Join(errors.New(words), s.bus.Status(), api, last)
}

// lastMoment is how long batches on their way may take after the order to stop.
const lastMoment = 2 * time.Second

// patience is how long the first tick waits for what the API server says.
const patience = 10 * time.Second

// scrape asks every node at every tick until ctx ends.
func (s *Scraper) scrape(ctx context.Context) error {
	// Batches that are on their way when we are told to stop get a moment to arrive.
	sending, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		s.scrapes.Wait()
		if s.bus.Healthy() {
			timer := time.AfterFunc(lastMoment, giveUp)
			defer timer.Stop()
		} else {
			giveUp()
		}
		s.backlog.wait()
		giveUp()
	}()
	if s.all != nil {
		select {
		case <-s.all.NodesSynced():
		case <-ctx.Done():
			return nil
		}
	}
	first, cancel := context.WithTimeout(ctx, patience)
	if s.all != nil {
		_ = s.all.Synced(first) // what is missing is logged where it is read
	} else {
		_ = s.own.Synced(first)
	}
	cancel()

	res := s.cfg.Resolution
	var order []*target
	revision := ^uint64(0)
	last := proto.Tick(0)
	for ctx.Err() == nil {
		now := s.now()
		tick := proto.TickAt(now, res)
		if tick == last || now.Sub(tick.Time()) > proto.Spread(res) {
			tick = tick.Add(1, res) // the present one is done, or too far gone to join
		}
		if err := sleep(ctx, tick.Time().Sub(now)); err != nil {
			return nil
		}
		if last != 0 { // ticks that passed while this process could not run
			s.telemetry.skipped.Add(float64(len(order)) * max(0, tick.Time().Sub(last.Time()).Seconds()/res.Seconds()-1))
		}
		last = tick
		if r := s.nodesRevision(); r != revision {
			revision = r
			order = s.targets()
		}
		s.log.Debug("tick", "tick", tick, "nodes", len(order))
		for _, t := range order {
			if wait := tick.Time().Add(t.offset).Sub(s.now()); wait > 0 && sleep(ctx, wait) != nil {
				return nil
			}
			if !t.busy.CompareAndSwap(false, true) {
				s.telemetry.skipped.Inc()
				continue
			}
			s.scrapes.Go(func() {
				defer t.busy.Store(false)
				s.once(ctx, sending, t, tick)
			})
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Scraper) nodesRevision() uint64 {
	if s.all == nil {
		return 0
	}
	return s.all.NodesRevision()
}

// targets brings the nodes to scrape up to date and returns them by their offsets. Nodes that are
// not ready are among them: their kubelet may well answer.
func (s *Scraper) targets() []*target {
	present := map[string]bool{}
	add := func(name string) {
		present[name] = true
		if s.nodes[name] == nil {
			s.nodes[name] = &target{name: name, offset: Offset(name, s.cfg.Resolution)}
		}
	}
	if s.all != nil {
		s.all.Nodes(func(n *node.Node) { add(n.Name) })
	} else {
		add(s.cfg.NodeName)
	}
	order := make([]*target, 0, len(s.nodes))
	for name, t := range s.nodes {
		if !present[name] {
			if t.reason != "" && !t.busy.Load() {
				s.telemetry.failed.Add(-1)
			}
			delete(s.nodes, name)
			continue
		}
		order = append(order, t)
	}
	slices.SortFunc(order, func(a, b *target) int { return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.name, b.name)) })
	s.telemetry.nodes.Store(int64(len(order)))
	return order
}

// Offset is when after the tick a node is scraped: a hash of its name modulo the spread.
func Offset(node string, resolution time.Duration) time.Duration {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	return time.Duration(h.Sum64() % uint64(proto.Spread(resolution))) //nolint:gosec // positive
}

// once scrapes one node for one tick, and says what is wrong once per change.
// ctx ends the scrape, sending the publishing of its batch.
func (s *Scraper) once(ctx, sending context.Context, t *target, tick proto.Tick) {
	began := time.Now()
	deadline, cancel := context.WithTimeout(ctx, proto.Deadline(s.cfg.Resolution))
	defer cancel()
	err := s.batch(deadline, sending, t, tick)
	took := time.Since(began)
	if err == nil {
		s.telemetry.scrapes.WithLabelValues("ok").Inc()
		s.telemetry.duration.Observe(took.Seconds())
		if t.reason != "" {
			s.log.Info("kubelet can be read again", "node", t.name, "reason", t.reason, "took", s.now().Sub(t.since).Round(time.Second))
			t.reason = ""
			s.telemetry.failed.Add(-1)
		}
		return
	}
	s.telemetry.scrapes.WithLabelValues(string(err.Reason)).Inc()
	if err.Reason == kubelet.Canceled {
		return
	}
	s.failure.Store(err)
	if t.reason == err.Reason {
		return
	}
	if t.reason == "" {
		t.since = s.now()
		s.telemetry.failed.Add(1)
	}
	t.reason = err.Reason
	s.log.Warn("kubelet cannot be read", "node", t.name, "tick", tick, "reason", err.Reason, "took", took.Round(time.Millisecond), "err", err)
}

// batch asks the kubelet and hands what it says to the backlog.
func (s *Scraper) batch(deadline, sending context.Context, t *target, tick proto.Tick) *kubelet.Error {
	n := s.known.Node(t.name)
	before := t.memory.Fallback
	err := s.kubelets.Read(deadline, s.kubelet(t.name, n), s.source.Key, &t.memory, func(form kubelet.Form, answer []byte) error {
		if err := s.convert(sending, t, n, tick, form, answer); err != nil {
			return err
		}
		return nil
	})
	if why := t.memory.Fallback; why != nil && before == nil {
		s.fallback(why)
	}
	var e *kubelet.Error
	if err != nil && !errors.As(err, &e) {
		e = &kubelet.Error{Reason: kubelet.BadAnswer, Node: t.name, What: "read the kubelet", Err: err}
	}
	return e
}

// fallback says that a kubelet is read in another form than Heapster did: loudly for the first one, as
// on clusters of today it is every one.
func (s *Scraper) fallback(why *kubelet.Error) {
	level := slog.LevelDebug
	if s.fellBack.CompareAndSwap(false, true) {
		level = slog.LevelInfo
	}
	s.log.Log(context.Background(), level, "a kubelet without cAdvisor's dump is read through "+kubelet.FormCAdvisor.Path()+"; the next ones are told at level debug", "node", why.Node, "asked", why.What, "status", why.Status)
}

// convert makes a batch of an answer.
func (s *Scraper) convert(sending context.Context, t *target, n *node.Node, tick proto.Tick, form kubelet.Form, answer []byte) *kubelet.Error {
	read := s.now()
	s.telemetry.bytes.WithLabelValues("answers").Add(float64(len(answer)))

	w := <-s.workers
	defer func() { s.workers <- w }()
	b := &w.batch
	b.Reset()
	b.Cluster, b.Node, b.Tick, b.Resolution, b.Source = s.cfg.Cluster, t.name, tick, s.cfg.Resolution, string(s.source.Key)
	var machine kubelet.Machine
	if n != nil {
		machine = kubelet.Machine{ID: n.MachineID, UUID: n.SystemUUID}
	}
	if err := w.decoder.Decode(form, answer, b, machine); err != nil {
		var e *kubelet.Error
		if errors.As(err, &e) {
			return e
		}
		return &kubelet.Error{Reason: kubelet.BadAnswer, Node: t.name, What: "decode the answer", Err: err}
	}
	b.Scraped = read.UnixNano()
	if n != nil && s.source.Key == kubelet.CAdvisorSource { // as in Heapster, no other source tells of it
		b.Entities[0].Flags |= proto.FlagSchedulable
	}
	node.Enrich(b, n, s.known.Pods(t.name))
	data, err := w.encoder.Batch(b)
	if err != nil {
		return &kubelet.Error{Reason: kubelet.BadEncoding, Node: t.name, What: "encode the batch", Err: err}
	}
	if b.Dropped > 0 {
		s.telemetry.leftOut.Add(float64(b.Dropped))
	}
	if left := b.Dropped > 0; left != t.dropped {
		t.dropped = left
		if left {
			s.log.Warn("values are left out of batches", "node", t.name, "tick", tick, "values", b.Dropped)
		} else {
			s.log.Info("batches are whole again", "node", t.name, "tick", tick)
		}
	}
	s.telemetry.bytes.WithLabelValues("batches").Add(float64(len(data)))
	s.backlog.add(sending, &item{node: t.name, tick: tick, data: data})
	return nil
}

// kubelet is where to reach a node's kubelet; n is nil while the API server has not told.
func (s *Scraper) kubelet(name string, n *node.Node) kubelet.Target {
	return s.cfg.target(s.source, name, n)
}

func (c *Config) target(source Source, name string, n *node.Node) kubelet.Target {
	t := kubelet.Target{Node: name}
	told := 0
	if n != nil {
		t.Host, told = n.Address, int(n.Port)
	}
	if c.Role == RoleNode {
		if c.Kubelet.Address != "" {
			t.Host = c.Kubelet.Address
		} else if n == nil {
			t.Host = "127.0.0.1" // the kubelet is on this machine, or the API server will tell where
		}
	}
	t.Port, t.HTTPS = c.port(source, told)
	return t
}

// podsOfKubelet fetches /pods for the node role.
func (s *Scraper) podsOfKubelet(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, proto.Deadline(s.cfg.Resolution))
	defer cancel()
	var list []byte
	err := s.kubelets.Pods(ctx, s.kubelet(s.cfg.NodeName, s.known.Node(s.cfg.NodeName)), func(answer []byte) error {
		list = bytes.Clone(answer)
		return nil
	})
	return list, err
}

func (s *Scraper) publish(ctx context.Context, i *item) error {
	_, err := s.publisher.Publish(ctx, bus.Message{
		Subject: bus.SamplesSubject(s.cfg.Cluster, i.node), Stream: bus.SamplesStream(s.cfg.Cluster), Data: i.data,
		ID: s.cfg.Cluster + "/" + i.node + "/" + strconv.FormatInt(int64(i.tick), 10),
	})
	return err
}

// settled counts what became of a batch.
func (s *Scraper) settled(i *item, err error) {
	switch {
	case err == nil:
		s.telemetry.published.Inc()
		if s.now().Sub(i.tick.Time()) > proto.Grace(s.cfg.Resolution) {
			s.telemetry.late.Inc()
		}
		for {
			newest := s.telemetry.newest.Load()
			if newest >= int64(i.tick) || s.telemetry.newest.CompareAndSwap(newest, int64(i.tick)) {
				return
			}
		}
	case errors.Is(err, errOverflow):
		s.telemetry.dropped.WithLabelValues(dropOverflow).Inc()
	case errors.Is(err, context.Canceled):
		s.telemetry.dropped.WithLabelValues(dropStopped).Inc()
	default:
		s.telemetry.dropped.WithLabelValues(dropRefused).Inc()
	}
}
