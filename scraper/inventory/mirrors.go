package inventory

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kube"
)

// Mirrors is a Cluster of its own: metadata of nodes and of live pods, nothing else of them.
type Mirrors struct {
	nodes *kube.Mirror[string] // UID
	pods  *kube.Mirror[podOwner]

	nodesRevision, ownersRevision atomic.Uint64

	mu     sync.Mutex
	owners map[podOwner]int
}

type podOwner struct {
	namespace string
	owner     proto.Owner
}

// OwnMirrors makes the mirrors of the inventory role.
func OwnMirrors(c *kube.Client, log *slog.Logger) *Mirrors {
	m := &Mirrors{owners: map[podOwner]int{}}
	nodes := kube.Nodes
	nodes.Object = &metav1.PartialObjectMetadata{}
	m.nodes = kube.NewMirror(c, nodes, log, func(o runtime.Object) string {
		return string(o.(*metav1.PartialObjectMetadata).UID) //nolint:forcetypeassert // the mirror checks it
	}, func(_ string, old, now *string) {
		if old == nil || now == nil || *old != *now {
			m.nodesRevision.Add(1)
		}
	})
	m.pods = kube.NewMirror(c, kube.PodOwners, log, func(o runtime.Object) podOwner {
		p := o.(*metav1.PartialObjectMetadata) //nolint:forcetypeassert // the mirror checks it
		return podOwner{p.Namespace, Controller(p.OwnerReferences)}
	}, func(_ string, old, now *podOwner) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if old != nil && now != nil && *old == *now {
			return
		}
		if old != nil && old.owner.Kind != "" {
			if m.owners[*old]--; m.owners[*old] <= 0 {
				delete(m.owners, *old)
				m.ownersRevision.Add(1)
			}
		}
		if now != nil && now.owner.Kind != "" {
			if m.owners[*now]++; m.owners[*now] == 1 {
				m.ownersRevision.Add(1)
			}
		}
	})
	return m
}

// Run keeps the mirrors up to date until ctx ends.
func (m *Mirrors) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { m.nodes.Run(ctx) })
	wg.Go(func() { m.pods.Run(ctx) })
	wg.Wait()
}

// NodesSynced implements Cluster.
func (m *Mirrors) NodesSynced() <-chan struct{} { return m.nodes.Synced() }

// NodesRevision implements Cluster.
func (m *Mirrors) NodesRevision() uint64 { return m.nodesRevision.Load() }

// EachNode implements Cluster.
func (m *Mirrors) EachNode(f func(name, uid string)) { m.nodes.Each(f) }

// OwnersSynced implements Cluster.
func (m *Mirrors) OwnersSynced() <-chan struct{} { return m.pods.Synced() }

// OwnersRevision implements Cluster.
func (m *Mirrors) OwnersRevision() uint64 { return m.ownersRevision.Load() }

// Owners implements Cluster.
func (m *Mirrors) Owners(f func(namespace string, owner proto.Owner)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for o := range m.owners {
		f(o.namespace, o.owner)
	}
}
