// Package ownership says which clusters this process writes for, and lets it.
//
// Every aggregator beats as a member in hs-leases and says there which clusters it may take. Of the live
// members that may, rendezvous hashing names one per cluster: its share. A member contends for the
// lease of its share at once, and for that of another's only where it has been free for OrphanAfter. On
// taking the lease it takes the lanes of the cluster's ROLLUPS, which fences whoever had them, and only
// then does the work start. A cluster is handed over, in order, when its share moves to another live
// member; one taken as an orphan stays until the members change.
//
// All state is on the bus: a killed owner's lease and heartbeat run out together after bus.LeaseTTL, and
// the next in the order contends at once. A frozen owner that wakes up is refused by the lanes.
//
// Not here: what an owner does (the root), how lanes and leases work (proto/bus).
package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/heapstream/heapstream/proto/bus"
)

// OrphanAfter is how long a cluster's lease must have been free before a member takes it whose share it
// is not.
const OrphanAfter = 2 * bus.LeaseTTL

// retryAfter is the pause before a cluster is contended for again after its work ended with an error.
const retryAfter = time.Second

// Config says who we are.
type Config struct {
	ID       string   // of this process among the members, unique
	Clusters []string // that it may own; all registered ones where empty
}

// Work is what an owner does for one cluster until ctx ends: ctx ends with the lease, with the lanes and
// when the cluster is handed over. It returns after all it started has ended.
type Work func(ctx context.Context, cluster string, lanes *bus.Ownership) error

// Ownership contends for clusters. Run may be called once.
type Ownership struct {
	bus  *bus.Conn
	cfg  Config
	log  *slog.Logger
	work Work

	mu       sync.Mutex
	changed  chan struct{}        // closed and replaced at every change of the below
	settled  [3]bool              // what there was of members, clusters and leases has been read
	members  map[string]member    // by id
	clusters map[string]bool      // registered, or asked for
	free     map[string]time.Time // since when a cluster's lease has been free; absent: held
	holder   map[string]string    // of a cluster's lease, as far as it was seen
	state    map[string]State
	runs     map[string]context.CancelFunc
	wg       sync.WaitGroup
	missing  sync.Once // that there are no buckets is told once
}

// member is what a heartbeat says.
type member struct {
	ID       string   `json:"id"`
	Clusters []string `json:"clusters,omitempty"`
}

func (m member) may(cluster string) bool {
	return len(m.Clusters) == 0 || slices.Contains(m.Clusters, cluster)
}

// State is how this process stands to a cluster.
type State uint8

// The states.
const (
	StandsBy State = iota // another owns it, or is to
	Contends              // it is our share, and nobody's yet
	Owns
)

// New returns an Ownership; it opens nothing.
func New(conn *bus.Conn, cfg Config, log *slog.Logger, work Work) (*Ownership, error) {
	if err := bus.CheckName("member", cfg.ID); err != nil {
		return nil, err
	}
	for _, c := range cfg.Clusters {
		if err := bus.CheckCluster(c); err != nil {
			return nil, err
		}
	}
	return &Ownership{bus: conn, cfg: cfg, log: log, work: work, changed: make(chan struct{}),
		members: map[string]member{}, clusters: map[string]bool{}, free: map[string]time.Time{},
		holder: map[string]string{}, state: map[string]State{}, runs: map[string]context.CancelFunc{}}, nil
}

// States says how this process stands to every cluster it knows; false until what is on the bus has been
// read. Where another holds the lease of what is our share, such as of an orphan that it took while we were
// not there yet, we stand by: it may keep it for as long as the members stay. It does not block.
func (o *Ownership) States() (map[string]State, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make(map[string]State, len(o.state))
	for c, s := range o.state {
		if holder := o.holder[c]; s == Contends && holder != "" && holder != o.cfg.ID {
			s = StandsBy
		}
		out[c] = s
	}
	return out, o.settled == [3]bool{true, true, true}
}

// Run contends for clusters and works for those it owns until ctx ends, then hands them over and returns
// nil. It fails only where the bus refuses for good.
func (o *Ownership) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat, err := json.Marshal(member{o.cfg.ID, o.cfg.Clusters})
	if err != nil {
		return err
	}
	// The heartbeat outlives the work, so that nobody contends before the leases are released.
	beating, quiet := context.WithCancel(context.WithoutCancel(ctx))
	var beats sync.WaitGroup
	beats.Go(func() {
		for {
			err := o.bus.Heartbeat(beating, bus.MemberLease(o.cfg.ID), string(beat))
			if !o.unprovisioned(beating, err) {
				cancel(err) // it beats no more: without an error Run is at its end already
				return
			}
		}
	})
	defer func() { quiet(); beats.Wait() }()

	var watches sync.WaitGroup
	for _, watch := range []func(context.Context) error{o.watchMembers, o.watchClusters, o.watchLeases} {
		watches.Go(func() {
			for ctx.Err() == nil {
				err := watch(ctx)
				if !errors.Is(err, bus.ErrStreamRenewed) && !o.unprovisioned(ctx, err) { // made anew, or late: read it again
					cancel(err)
				}
			}
		})
	}
	<-ctx.Done()
	watches.Wait()
	o.wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// unprovisioned reports, after a pause, that err is of a bucket that is still to be made: whoever installs all at once starts us
// before that.
func (o *Ownership) unprovisioned(ctx context.Context, err error) bool {
	if !errors.Is(err, bus.ErrStreamMissing) {
		return false
	}
	o.missing.Do(func() { o.log.Warn("the bus has no buckets yet, trying again", "err", err) })
	wait(ctx, retryAfter, nil)
	return ctx.Err() == nil
}

// update alters the state under its lock and wakes those who wait for a change of it.
func (o *Ownership) update(alter func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	alter()
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *Ownership) watchMembers(ctx context.Context) error {
	seen := map[string]string{}
	for s, err := range o.bus.WatchLeases(ctx, bus.MemberLeases) {
		if err != nil {
			return err
		}
		switch {
		case s.Key == "":
			o.update(func() { o.settled[0] = true })
		case s.Gone:
			delete(seen, s.Key)
			o.update(func() { delete(o.members, s.Key) })
		case seen[s.Key] != s.Owner: // not every renewal
			seen[s.Key] = s.Owner
			var m member
			if json.Unmarshal([]byte(s.Owner), &m) != nil || m.ID == "" {
				continue // a member of another kind
			}
			o.update(func() { o.members[s.Key] = m })
		}
	}
	return nil
}

func (o *Ownership) watchClusters(ctx context.Context) error {
	for _, c := range o.cfg.Clusters {
		o.begin(ctx, c)
	}
	for s, err := range o.bus.WatchClusters(ctx) {
		if err != nil {
			return err
		}
		switch {
		case s.Cluster == "":
			o.update(func() { o.settled[1] = true })
		case s.Gone && len(o.cfg.Clusters) == 0:
			o.end(s.Cluster)
		case !s.Gone && (len(o.cfg.Clusters) == 0 || slices.Contains(o.cfg.Clusters, s.Cluster)):
			o.begin(ctx, s.Cluster)
		}
	}
	return nil
}

const leasePrefix = "aggregator."

func (o *Ownership) watchLeases(ctx context.Context) error {
	for s, err := range o.bus.WatchLeases(ctx, leasePrefix) {
		if err != nil {
			return err
		}
		if s.Key == "" {
			o.update(func() { o.settled[2] = true })
			continue
		}
		cluster, err := bus.DecodeToken(s.Key[len(leasePrefix):])
		if err != nil {
			continue
		}
		o.mu.Lock()
		_, free := o.free[cluster]
		same := free == s.Gone && o.holder[cluster] == s.Owner
		o.mu.Unlock()
		if same {
			continue // a renewal
		}
		o.update(func() {
			o.holder[cluster] = s.Owner // nobody where gone
			if s.Gone {
				o.free[cluster] = time.Now()
			} else {
				delete(o.free, cluster)
			}
		})
	}
	return nil
}

// begin starts to contend for a cluster; once.
func (o *Ownership) begin(ctx context.Context, cluster string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.clusters[cluster] {
		return
	}
	o.clusters[cluster] = true
	if _, held := o.free[cluster]; !held {
		o.free[cluster] = time.Now() // until a lease is seen
	}
	ctx, cancel := context.WithCancel(ctx)
	o.runs[cluster] = cancel
	o.state[cluster] = StandsBy
	o.wg.Go(func() {
		o.contend(ctx, cluster)
		o.update(func() { delete(o.state, cluster) })
	})
}

// end stops contending for a cluster that was removed.
func (o *Ownership) end(cluster string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if cancel := o.runs[cluster]; cancel != nil {
		cancel()
	}
	delete(o.runs, cluster)
	delete(o.clusters, cluster)
}

// role is why we should own a cluster now.
type role uint8

const (
	none   role = iota
	share       // the rendezvous names us
	orphan      // whoever it names does not take it
)

// role says why we should own a cluster, when to ask again where only time can change that, and what
// closes when anything else does.
func (o *Ownership) role(cluster string) (role, time.Duration, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.settled != [3]bool{true, true, true} {
		return none, 0, o.changed
	}
	if named := o.named(cluster); named == o.cfg.ID || named == "" {
		return share, 0, o.changed
	}
	since, free := o.free[cluster]
	if !free {
		return none, 0, o.changed
	}
	if left := OrphanAfter - time.Since(since); left > 0 {
		return none, left, o.changed
	}
	return orphan, 0, o.changed
}

// named is the live member that the rendezvous names for a cluster; "" where no member may take it, or
// our own heartbeat is not there yet and nobody else's.
func (o *Ownership) named(cluster string) (id string) {
	best := uint64(0)
	for _, m := range o.members {
		if !m.may(cluster) {
			continue
		}
		h := fnv.New64a()
		h.Write([]byte(m.ID + "\x00" + cluster))
		w := mix(h.Sum64())
		if id == "" || w > best || w == best && m.ID < id {
			id, best = m.ID, w
		}
	}
	return id
}

// mix spreads the bits of an FNV hash, whose high bits hardly depend on the last bytes.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func (o *Ownership) set(cluster string, s State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.clusters[cluster] {
		o.state[cluster] = s
	}
}

// contend owns the cluster whenever it should, until ctx ends.
func (o *Ownership) contend(ctx context.Context, cluster string) {
	log := o.log.With("cluster", cluster)
	for ctx.Err() == nil {
		why, left, changed := o.role(cluster)
		if why == none {
			o.set(cluster, StandsBy)
			wait(ctx, left, changed)
			continue
		}
		o.set(cluster, Contends)
		err := o.own(ctx, cluster, why, log)
		switch {
		case ctx.Err() != nil:
		case err == nil:
		case errors.Is(err, bus.ErrFenced), errors.Is(err, bus.ErrLeaseLost):
			log.Info("cluster is another's now", "err", err)
			wait(ctx, retryAfter, nil)
		default:
			log.Error("work for cluster ended, trying again", "err", err)
			wait(ctx, retryAfter, nil)
		}
	}
}

// wait returns after d (0: never), when changed closes, or when ctx ends.
func wait(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	var after <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ctx.Done():
	case <-changed:
	case <-after:
	}
}

// while returns a context that ends when the cluster should not be ours any more, and says then that it
// was handed over. An orphan is kept as long as the members are who they were.
func (o *Ownership) while(ctx context.Context, cluster string, why role) (_ context.Context, stop func(), handed func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	o.mu.Lock()
	named := o.named(cluster)
	o.mu.Unlock()
	var over bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			o.mu.Lock()
			now, changed := o.named(cluster), o.changed
			o.mu.Unlock()
			if now != o.cfg.ID && now != "" && (why != orphan || now != named) {
				over = true
				cancel()
				return
			}
			wait(ctx, 0, changed)
		}
	}()
	return ctx, func() { cancel(); <-done }, func() bool { <-done; return over }
}

// own takes the lease and the lanes, and works until they or the reason to end.
func (o *Ownership) own(ctx context.Context, cluster string, why role, log *slog.Logger) error {
	ours, stop, handed := o.while(ctx, cluster, why)
	defer stop()
	var lease *bus.Lease
	var err error
	if why == orphan {
		if lease, err = o.bus.TryHold(ours, bus.AggregatorLease(cluster), o.cfg.ID); errors.Is(err, bus.ErrHeld) {
			o.update(func() { delete(o.free, cluster) })
			return nil
		}
	} else {
		lease, err = o.bus.Hold(ours, bus.AggregatorLease(cluster), o.cfg.ID)
	}
	if err != nil {
		if ours.Err() != nil {
			return nil
		}
		return err
	}
	defer func() {
		releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), bus.LeaseTTL)
		defer cancel()
		if err := lease.Release(releasing); err != nil {
			log.Warn("lease is left to run out", "err", err)
		}
	}()
	leased, cancel := lease.Context(ours)
	defer cancel()
	lanes, err := o.bus.TakeLanes(leased, cluster, o.cfg.ID)
	if err != nil {
		return o.why(leased, ours, err)
	}
	defer lanes.Close()
	fenced, unfence := context.WithCancelCause(leased)
	defer unfence(nil)
	var guard sync.WaitGroup
	guard.Go(func() {
		select {
		case <-lanes.Done():
			unfence(lanes.Err())
		case <-fenced.Done():
		}
	})
	defer guard.Wait()
	defer unfence(nil)

	o.set(cluster, Owns)
	defer o.set(cluster, Contends)
	log.Info("owns cluster")
	err = o.work(fenced, cluster, lanes)
	if lanesErr := lanes.Err(); lanesErr != nil {
		return lanesErr
	}
	if fenced.Err() == nil && err == nil {
		return errors.New("work ended although nobody asked it to")
	}
	if ours.Err() != nil {
		if ctx.Err() == nil && handed() {
			log.Info("hands cluster over")
		}
		return nil
	}
	return o.why(fenced, ours, err)
}

// why is the reason that a context ended, or err.
func (o *Ownership) why(ctx, ours context.Context, err error) error {
	if ours.Err() != nil {
		return nil
	}
	if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
		return cause
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("own cluster: %w", err)
}
