package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/scraper/kube"
)

// Repeat is how often each inventory is published though it has not changed: SAMPLES forgets, a reader that starts anew
// needs one, and where the stream was made anew there is none until then.
const Repeat = time.Minute

// Config is what an operator may choose.
type Config struct {
	Cluster    string
	Owner      string // who we are, as the lease shows it
	Resolution time.Duration
}

// Cluster is what the inventory takes from mirrors that it shares with others, or has to itself: see
// OwnMirrors. The revisions change whenever what the functions yield does.
type Cluster interface {
	Run(ctx context.Context)
	NodesSynced() <-chan struct{}
	NodesRevision() uint64
	EachNode(f func(name, uid string))
	OwnersSynced() <-chan struct{}
	OwnersRevision() uint64
	// Owners yields the immediate controllers of pods that have not ended.
	Owners(f func(namespace string, owner proto.Owner))
}

// Deps is what the program hands in.
type Deps struct {
	Bus       *bus.Conn
	Publisher *bus.Publisher
	Client    *kube.Client
	Cluster   Cluster // its Run is the caller's duty
	Log       *slog.Logger
	Telemetry *Telemetry
	Now       func() time.Time
}

// Inventory publishes; see the package.
type Inventory struct {
	cfg  Config
	deps Deps
	enc  *proto.Encoder

	namespaces  *kube.Mirror[proto.InventoryNamespace]
	replicaSets *kube.Mirror[proto.Owner]
	jobs        *kube.Mirror[proto.Owner]
	nsRevision  atomic.Uint64
	ownRevision atomic.Uint64 // of replicaSets and jobs

	registered chan struct{}

	revision uint64
	sent     [4]struct {
		at       time.Time
		revision uint64 // of the source
		done     bool
	}

	mu    sync.Mutex
	state error // why nothing can be published; nil: published, or another does
}

// New makes an Inventory; it opens nothing.
func New(cfg Config, deps Deps) *Inventory {
	v := &Inventory{cfg: cfg, deps: deps, enc: proto.NewEncoder(), registered: make(chan struct{}), state: errors.New("the inventory has not been published yet")}
	if v.deps.Now == nil {
		v.deps.Now = time.Now
	}
	v.namespaces = kube.NewMirror(deps.Client, kube.Namespaces, deps.Log, func(o runtime.Object) proto.InventoryNamespace {
		return namespaceOf(o.(*metav1.PartialObjectMetadata)) //nolint:forcetypeassert // the mirror checks it
	}, func(_ string, old, now *proto.InventoryNamespace) {
		if old == nil || now == nil || old.UID != now.UID || !slices.Equal(old.Labels, now.Labels) {
			v.nsRevision.Add(1)
		}
	})
	controller := func(o runtime.Object) proto.Owner {
		return Controller(o.(*metav1.PartialObjectMetadata).OwnerReferences) //nolint:forcetypeassert // the mirror checks it
	}
	changed := func(_ string, old, now *proto.Owner) {
		if old == nil || now == nil || *old != *now {
			v.ownRevision.Add(1)
		}
	}
	v.replicaSets = kube.NewMirror(deps.Client, kube.ReplicaSets, deps.Log, controller, changed)
	v.jobs = kube.NewMirror(deps.Client, kube.Jobs, deps.Log, controller, changed)
	return v
}

func namespaceOf(m *metav1.PartialObjectMetadata) proto.InventoryNamespace {
	ns := proto.InventoryNamespace{Name: m.Name, UID: string(m.UID)}
	for k, v := range m.Labels {
		ns.Labels = append(ns.Labels, proto.Label{Key: k, Value: v})
	}
	slices.SortFunc(ns.Labels, func(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) })
	ns.Labels = fitting(ns.Labels)
	return ns
}

// Controller is the owner that controls an object; zero where there is none.
func Controller(refs []metav1.OwnerReference) proto.Owner {
	for i := range refs {
		if refs[i].Controller != nil && *refs[i].Controller {
			return proto.Owner{Kind: refs[i].Kind, Name: refs[i].Name}
		}
	}
	return proto.Owner{}
}

// Registered is closed once the cluster is known to be the one of its name.
func (v *Inventory) Registered() <-chan struct{} { return v.registered }

// Ready says in words why there is no inventory of this cluster; nil when it has been published by
// us, or is another's duty.
func (v *Inventory) Ready() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state
}

func (v *Inventory) is(err error) {
	v.mu.Lock()
	v.state = err
	v.mu.Unlock()
}

// Run registers the cluster and publishes whenever it holds the lease, until ctx ends. It returns
// bus.ErrOtherCluster at once where the name is another cluster's.
func (v *Inventory) Run(ctx context.Context) error {
	var mirrors sync.WaitGroup
	defer mirrors.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mirrors.Go(func() { v.namespaces.Run(ctx) })
	mirrors.Go(func() { v.replicaSets.Run(ctx) })
	mirrors.Go(func() { v.jobs.Run(ctx) })

	for err := v.register(ctx); err != nil; err = v.register(ctx) {
		if !v.unprovisioned(ctx, err) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	close(v.registered)
	for ctx.Err() == nil {
		if err := v.lead(ctx); err != nil && !v.unprovisioned(ctx, err) && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// retryStream is the pause before a stream that is not there is looked for again.
const retryStream = time.Second

// unprovisioned reports, after a pause, that err is of a stream that is still to be made: whoever installs all at once starts us
// before that.
func (v *Inventory) unprovisioned(ctx context.Context, err error) bool {
	if !errors.Is(err, bus.ErrStreamMissing) {
		return false
	}
	v.mu.Lock()
	told := errors.Is(v.state, bus.ErrStreamMissing)
	v.state = err
	v.mu.Unlock()
	if !told {
		v.deps.Log.Warn("the bus has no streams yet, trying again", "cluster", v.cfg.Cluster, "err", err)
	}
	return sleep(ctx, retryStream) == nil
}

// register enters the cluster under its name, with the UID of kube-system.
func (v *Inventory) register(ctx context.Context) error {
	uid := ""
	for attempt, told := 0, ""; uid == ""; attempt++ {
		var ns metav1.PartialObjectMetadata
		err := v.deps.Client.GetMetadata(ctx, "namespaces", "kube-system", &ns)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			uid = string(ns.UID)
			break
		}
		v.is(fmt.Errorf("find the UID of cluster %q: %w", v.cfg.Cluster, err))
		if err.Error() != told {
			told = err.Error()
			v.deps.Log.Warn("UID of the cluster cannot be read, trying again", "cluster", v.cfg.Cluster, "err", err)
		}
		if err := sleep(ctx, min(time.Second<<min(attempt, 5), 30*time.Second)); err != nil {
			return err
		}
	}
	return v.deps.Bus.Register(ctx, v.cfg.Cluster, bus.ClusterInfo{UID: uid, Resolution: v.cfg.Resolution, Created: v.deps.Now().UTC().Truncate(time.Second)})
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lead holds the lease and publishes until it is lost (nil) or ctx ends.
func (v *Inventory) lead(ctx context.Context) error {
	return v.deps.Bus.Lead(ctx, bus.InventoryLease(v.cfg.Cluster), v.cfg.Owner, func(held error) {
		v.is(nil)
		v.deps.Log.Info("another publishes the inventory, standing by", "cluster", v.cfg.Cluster, "err", held)
	}, v.publishWhile)
}

// publishWhile publishes until held, the context of the lease, ends.
func (v *Inventory) publishWhile(held context.Context) error {
	v.deps.Log.Info("publishing the inventory", "cluster", v.cfg.Cluster)
	v.deps.Telemetry.leading(true)
	defer v.deps.Telemetry.leading(false)
	for i := range v.sent {
		v.sent[i].done = false
	}
	const first = 100 * time.Millisecond // until all of it has been out once
	for {
		whole, err := v.publish(held)
		if held.Err() != nil {
			return nil
		}
		v.is(err)
		if err != nil {
			return fmt.Errorf("publish the inventory of cluster %q: %w", v.cfg.Cluster, err)
		}
		wait := first
		if whole {
			now := v.deps.Now()
			wait = proto.TickAt(now, v.cfg.Resolution).Add(1, v.cfg.Resolution).Time().Sub(now)
		} else {
			v.is(v.unread())
		}
		if sleep(held, wait) != nil {
			return nil
		}
	}
}

// unread says what has not been read yet.
func (v *Inventory) unread() error {
	return errors.Join(errors.New("nodes, namespaces and owners have not all been read yet"), v.namespaces.Err(), v.replicaSets.Err(), v.jobs.Err())
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// publish sends what has changed or is due; whole says that each has been out.
func (v *Inventory) publish(ctx context.Context) (whole bool, err error) {
	whole = true
	c := v.deps.Cluster
	for _, s := range []struct {
		subject  proto.InventorySubject
		name     string
		ready    bool
		revision uint64
		parts    func() []proto.Inventory
	}{
		{proto.InventoryNodes, bus.InventoryNodes, closed(c.NodesSynced()), c.NodesRevision(), v.nodes},
		{proto.InventoryNamespaces, bus.InventoryNamespaces, closed(v.namespaces.Synced()), v.nsRevision.Load(), v.spaces},
		// Without the permission for ReplicaSets or Jobs there are no owners of owners: go on without.
		{proto.InventoryOwners, bus.InventoryOwners, closed(c.OwnersSynced()) && (closed(v.replicaSets.Synced()) || v.replicaSets.Err() != nil) &&
			(closed(v.jobs.Synced()) || v.jobs.Err() != nil), c.OwnersRevision() + v.ownRevision.Load(), v.owners},
	} {
		sent := &v.sent[s.subject]
		if !s.ready {
			whole = whole && sent.done
			continue
		}
		now := v.deps.Now()
		if sent.done && sent.revision == s.revision && now.Sub(sent.at) < Repeat {
			continue
		}
		v.revision = max(v.revision+1, uint64(now.UnixNano())) //nolint:gosec // after 1970
		if err := v.send(ctx, s.subject, s.name, s.parts()); err != nil {
			return false, err
		}
		sent.at, sent.revision, sent.done = now, s.revision, true
		v.deps.Telemetry.sent(s.name)
	}
	return whole, nil
}

func (v *Inventory) send(ctx context.Context, subject proto.InventorySubject, name string, parts []proto.Inventory) error {
	for i := range parts {
		p := &parts[i]
		p.Cluster, p.Subject, p.Revision = v.cfg.Cluster, subject, v.revision
		p.Part, p.Parts = uint32(i), uint32(len(parts)) //nolint:gosec // few
		p.Resolution, p.Grace = v.cfg.Resolution, proto.Grace(v.cfg.Resolution)
		data, err := v.enc.Inventory(p)
		if err != nil {
			return err
		}
		_, err = v.deps.Publisher.Publish(ctx, bus.Message{
			Subject: bus.InventorySubject(v.cfg.Cluster, name), Stream: bus.SamplesStream(v.cfg.Cluster), Data: data,
			ID: fmt.Sprintf("%s/inventory/%s/%d/%d", v.cfg.Cluster, name, v.revision, i),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// What one part and the labels of one namespace may take before compression, so that any inventory can
// be encoded and read: real ones have a fraction of it.
const (
	maxPartBytes  = 2 << 20
	maxLabelBytes = 256 << 10
	maxLabels     = 2048
)

// split cuts rows into parts by their number and size; an empty whole is one empty part.
func split[T any](rows []T, size func(*T) int, set func(*proto.Inventory, []T)) []proto.Inventory {
	parts := make([]proto.Inventory, 0, 1+len(rows)/proto.MaxPartRows)
	for {
		n, bytes := 0, 0
		for n < min(len(rows), proto.MaxPartRows) {
			if bytes += size(&rows[n]); n > 0 && bytes > maxPartBytes {
				break
			}
			n++
		}
		var p proto.Inventory
		set(&p, rows[:n])
		parts = append(parts, p)
		if rows = rows[n:]; len(rows) == 0 {
			return parts
		}
	}
}

// fitting is as many of the labels as a namespace may have.
func fitting(labels []proto.Label) []proto.Label {
	labels = labels[:min(len(labels), maxLabels)]
	bytes := 0
	for i := range labels {
		if bytes += len(labels[i].Key) + len(labels[i].Value); bytes > maxLabelBytes {
			return labels[:i]
		}
	}
	return labels
}

func (v *Inventory) nodes() []proto.Inventory {
	var rows []proto.InventoryNode
	v.deps.Cluster.EachNode(func(name, uid string) { rows = append(rows, proto.InventoryNode{Name: name, UID: uid}) })
	slices.SortFunc(rows, func(a, b proto.InventoryNode) int { return cmp.Compare(a.Name, b.Name) })
	return split(rows, func(r *proto.InventoryNode) int { return len(r.Name) + len(r.UID) },
		func(p *proto.Inventory, r []proto.InventoryNode) { p.Nodes = r })
}

func (v *Inventory) spaces() []proto.Inventory {
	var rows []proto.InventoryNamespace
	v.namespaces.Each(func(_ string, ns proto.InventoryNamespace) { rows = append(rows, ns) })
	slices.SortFunc(rows, func(a, b proto.InventoryNamespace) int { return cmp.Compare(a.Name, b.Name) })
	return splitSpaces(rows)
}

func splitSpaces(rows []proto.InventoryNamespace) []proto.Inventory {
	return split(rows, func(r *proto.InventoryNamespace) int {
		bytes := len(r.Name) + len(r.UID)
		for _, l := range r.Labels {
			bytes += len(l.Key) + len(l.Value)
		}
		return bytes
	}, func(p *proto.Inventory, r []proto.InventoryNamespace) { p.Namespaces = r })
}

func (v *Inventory) owners() []proto.Inventory {
	var rows []proto.InventoryOwner
	v.deps.Cluster.Owners(func(namespace string, object proto.Owner) {
		m := v.replicaSets
		switch object.Kind {
		case "ReplicaSet":
		case "Job":
			m = v.jobs
		default:
			return
		}
		if owner, ok := m.Get(namespace + "/" + object.Name); ok && owner.Kind != "" {
			rows = append(rows, proto.InventoryOwner{Namespace: namespace, Object: object, Owner: owner})
		}
	})
	slices.SortFunc(rows, func(a, b proto.InventoryOwner) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Name, b.Object.Name))
	})
	return split(rows, func(r *proto.InventoryOwner) int {
		return len(r.Namespace) + len(r.Object.Kind) + len(r.Object.Name) + len(r.Owner.Kind) + len(r.Owner.Name)
	}, func(p *proto.Inventory, r []proto.InventoryOwner) { p.Owners = r })
}
