package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kube"
)

// Known is what is known of one node at the moment.
type Known interface {
	// Node returns the node, or nil while it is not known. It must not be altered.
	Node(name string) *Node
	// Pods returns a lookup among the node's pods, or nil while they are not known. The lookup may
	// be used by one goroutine, at once.
	Pods(name string) Lookup
}

// key is how a pod is named within its node.
type key struct{ namespace, name string }

// All keeps the nodes and pods of a whole cluster.
type All struct {
	nodes *kube.Mirror[*Node]
	pods  *kube.Mirror[*Pod]

	mu     sync.RWMutex
	byNode map[string]map[key]*Pod
	owners map[owned]int // live pods by their controller

	ownersRevision atomic.Uint64 // grows with every change of the keys of owners
	nodesRevision  atomic.Uint64 // grows with every change of a node's name, UID, address, port or readiness
}

type owned struct {
	namespace string
	owner     proto.Owner
}

// NewAll makes an All; Run fills it.
func NewAll(c *kube.Client, log *slog.Logger, hostIDAnnotation string) *All {
	a := &All{byNode: map[string]map[key]*Pod{}, owners: map[owned]int{}}
	a.nodes = kube.NewMirror(c, kube.Nodes, log, func(o runtime.Object) *Node {
		return FromNode(o.(*corev1.Node), hostIDAnnotation) //nolint:forcetypeassert // the mirror checks it
	}, func(_ string, old, now **Node) {
		if old == nil || now == nil || (*old).UID != (*now).UID || (*old).Address != (*now).Address || (*old).Port != (*now).Port || (*old).Flags != (*now).Flags {
			a.nodesRevision.Add(1)
		}
	})
	a.pods = kube.NewMirror(c, kube.Pods, log, func(o runtime.Object) *Pod {
		return FromPod(o.(*corev1.Pod)) //nolint:forcetypeassert // the mirror checks it
	}, a.podChanged)
	return a
}

// Run keeps both up to date until ctx ends.
func (a *All) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { a.nodes.Run(ctx) })
	wg.Go(func() { a.pods.Run(ctx) })
	wg.Wait()
}

// Synced blocks until nodes and pods have been read once, or ctx ends.
func (a *All) Synced(ctx context.Context) error {
	for _, ch := range []<-chan struct{}{a.nodes.Synced(), a.pods.Synced()} {
		select {
		case <-ch:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), a.Err())
		}
	}
	return nil
}

// NodesSynced is closed once the nodes have been read.
func (a *All) NodesSynced() <-chan struct{} { return a.nodes.Synced() }

// Err is why the API server cannot be read at the moment; nil while it can.
func (a *All) Err() error { return errors.Join(a.nodes.Err(), a.pods.Err()) }

func (a *All) podChanged(_ string, old, now **Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var was, is owned
	if old != nil {
		p := *old
		was = ownerOf(p)
		if now == nil || (*now).Node != p.Node {
			pods := a.byNode[p.Node]
			delete(pods, key{p.Namespace, p.Name})
			if len(pods) == 0 {
				delete(a.byNode, p.Node)
			}
		}
	}
	if now != nil {
		p := *now
		is = ownerOf(p)
		pods := a.byNode[p.Node]
		if pods == nil {
			pods = map[key]*Pod{}
			a.byNode[p.Node] = pods
		}
		pods[key{p.Namespace, p.Name}] = p
	}
	if was == is {
		return
	}
	if was != (owned{}) {
		if a.owners[was]--; a.owners[was] <= 0 {
			delete(a.owners, was)
			a.ownersRevision.Add(1)
		}
	}
	if is != (owned{}) {
		if a.owners[is]++; a.owners[is] == 1 {
			a.ownersRevision.Add(1)
		}
	}
}

// ownerOf is the controller of a pod that has not ended; zero where there is none.
func ownerOf(p *Pod) owned {
	if p.Owner.Kind == "" || p.Phase == proto.PhaseSucceeded || p.Phase == proto.PhaseFailed {
		return owned{}
	}
	return owned{p.Namespace, p.Owner}
}

// Node implements Known.
func (a *All) Node(name string) *Node {
	n, _ := a.nodes.Get(name)
	return n
}

// Pods implements Known.
func (a *All) Pods(name string) Lookup {
	if !isClosed(a.pods.Synced()) {
		return nil
	}
	return func(namespace, pod string) *Pod {
		a.mu.RLock()
		defer a.mu.RUnlock()
		return a.byNode[name][key{namespace, pod}]
	}
}

// NodesRevision changes whenever a node comes, goes, or changes in what scraping it needs.
func (a *All) NodesRevision() uint64 { return a.nodesRevision.Load() }

// Nodes calls f for every node, in no order; f must not call a.
func (a *All) Nodes(f func(*Node)) { a.nodes.Each(func(_ string, n *Node) { f(n) }) }

// EachNode calls f with the name and UID of every node, in no order; f must not call a.
func (a *All) EachNode(f func(name, uid string)) {
	a.nodes.Each(func(name string, n *Node) { f(name, n.UID) })
}

// OwnersRevision changes whenever Owners does.
func (a *All) OwnersRevision() uint64 { return a.ownersRevision.Load() }

// OwnersSynced is closed once the pods have been read.
func (a *All) OwnersSynced() <-chan struct{} { return a.pods.Synced() }

// Owners calls f for every controller of live pods, in no order; f must not call a.
func (a *All) Owners(f func(namespace string, owner proto.Owner)) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for o := range a.owners {
		f(o.namespace, o.owner)
	}
}

// PodSource fetches the pods of a node from its kubelet, as JSON of a v1 PodList.
type PodSource func(ctx context.Context) ([]byte, error)

// OwnConfig is for Own.
type OwnConfig struct {
	Name             string
	HostIDAnnotation string
	Refresh          time.Duration // between two looks at the Node
	PodsEvery        time.Duration // between two looks at Source
	Source           PodSource     // instead of a watch at the API server; nil for the watch
}

// Own keeps one node and its pods.
type Own struct {
	cfg    OwnConfig
	client *kube.Client
	log    *slog.Logger

	node   atomic.Pointer[Node]
	mirror *kube.Mirror[*Pod] // nil where pods come from the kubelet
	nodeIn chan struct{}      // closed when the node is known
	podsIn chan struct{}      // closed when the kubelet's pods are known

	mu      sync.RWMutex
	pods    map[key]*Pod
	nodeErr error
	podErr  error
}

// NewOwn makes an Own; Run fills it. Where pods come from the kubelet, c may be nil: then nothing
// is asked of the API server, and the node has no capacity.
func NewOwn(c *kube.Client, log *slog.Logger, cfg OwnConfig) *Own {
	o := &Own{cfg: cfg, client: c, log: log, pods: map[key]*Pod{}, nodeIn: make(chan struct{}), podsIn: make(chan struct{})}
	if cfg.Source == nil {
		res := kube.Pods
		res.Selector = "spec.nodeName=" + cfg.Name
		o.mirror = kube.NewMirror(c, res, log, func(obj runtime.Object) *Pod {
			return FromPod(obj.(*corev1.Pod)) //nolint:forcetypeassert // the mirror checks it
		}, func(_ string, old, now **Pod) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if old != nil {
				delete(o.pods, key{(*old).Namespace, (*old).Name})
			}
			if now != nil {
				o.pods[key{(*now).Namespace, (*now).Name}] = *now
			}
		})
	}
	return o
}

// Run keeps the node and its pods up to date until ctx ends.
func (o *Own) Run(ctx context.Context) {
	var wg sync.WaitGroup
	if o.client != nil {
		wg.Go(func() { o.every(ctx, o.cfg.Refresh, o.readNode) })
	}
	if o.mirror != nil {
		wg.Go(func() { o.mirror.Run(ctx) })
	} else {
		wg.Go(func() { o.every(ctx, o.cfg.PodsEvery, o.readPods) })
	}
	wg.Wait()
}

// every calls read at once and then at intervals, sooner after a failure.
func (o *Own) every(ctx context.Context, interval time.Duration, read func(context.Context) error) {
	const soon = 5 * time.Second
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if read(ctx) != nil {
			t.Reset(min(soon, interval))
		} else {
			t.Reset(interval)
		}
	}
}

func (o *Own) readNode(ctx context.Context) error {
	var n corev1.Node
	err := o.client.Get(ctx, "nodes", o.cfg.Name, &n)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		if o.node.Swap(FromNode(&n, o.cfg.HostIDAnnotation)) == nil {
			close(o.nodeIn)
		}
	}
	o.mu.Lock()
	was := o.nodeErr
	o.nodeErr = err
	o.mu.Unlock()
	o.told(was, err, "own node")
	return err
}

func (o *Own) readPods(ctx context.Context) error {
	data, err := o.cfg.Source(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var pods map[key]*Pod
	if err == nil {
		if pods, err = podsOf(data); err != nil {
			err = fmt.Errorf("decode the kubelet's pods of node %q: %w", o.cfg.Name, err)
		}
	}
	o.mu.Lock()
	was := o.podErr
	o.podErr = err
	if err == nil {
		o.pods = pods
	}
	o.mu.Unlock()
	if err == nil && !isClosed(o.podsIn) {
		close(o.podsIn)
	}
	o.told(was, err, "own pods")
	return err
}

// podsOf decodes a PodList as JSON.
func podsOf(data []byte) (map[key]*Pod, error) {
	if q := endless(data); q != "" {
		return nil, fmt.Errorf("%q is no quantity", q)
	}
	var list corev1.PodList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	pods := make(map[key]*Pod, len(list.Items))
	for i := range list.Items {
		p := FromPod(&list.Items[i])
		pods[key{p.Namespace, p.Name}] = p
	}
	return pods, nil
}

// endless finds a number with more than four digits behind e-, such as 1e-99999999: to decode it as
// a quantity takes seconds, or for ever. (An API server has decoded all of its own already.)
func endless(data []byte) string {
	digit := func(i int) bool { return i >= 0 && i < len(data) && '0' <= data[i] && data[i] <= '9' }
	for at := 0; ; at++ {
		minus := bytes.IndexByte(data[at:], '-')
		if minus < 0 {
			return ""
		}
		at += minus
		if at == 0 || data[at-1]|0x20 != 'e' || !digit(at+1) {
			continue
		}
		from, to := at-1, at+1
		for digit(from-1) || from > 0 && strings.IndexByte("+-.", data[from-1]) >= 0 {
			from--
		}
		for digit(to) {
			to++
		}
		if from < at-1 && to-at > 1+4 && !part(data, from-1) && !part(data, to) {
			return string(data[from:min(to, from+40)])
		}
	}
}

// part reports whether a byte would make the number beside it part of a longer word.
func part(data []byte, i int) bool {
	return i >= 0 && i < len(data) && strings.IndexByte("\": \t\r\n,:[]{}", data[i]) < 0
}

// told logs a change of state.
func (o *Own) told(was, err error, what string) {
	switch {
	case err == nil && was != nil:
		o.log.Info("can be read again", "what", what, "node", o.cfg.Name)
	case err != nil && (was == nil || was.Error() != err.Error()):
		o.log.Warn("cannot be read, what was known is kept", "what", what, "node", o.cfg.Name, "err", err)
	}
}

// Synced blocks until the node and its pods have been read once, or ctx ends.
func (o *Own) Synced(ctx context.Context) error {
	wait := []<-chan struct{}{o.podsKnown()}
	if o.client != nil {
		wait = append(wait, o.nodeIn)
	}
	for _, ch := range wait {
		select {
		case <-ch:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), o.Err())
		}
	}
	return nil
}

func (o *Own) podsKnown() <-chan struct{} {
	if o.mirror != nil {
		return o.mirror.Synced()
	}
	return o.podsIn
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Err is why the API server or the kubelet's pods cannot be read at the moment; nil while they can.
func (o *Own) Err() error {
	o.mu.RLock()
	err := errors.Join(o.nodeErr, o.podErr)
	o.mu.RUnlock()
	if o.mirror != nil {
		err = errors.Join(err, o.mirror.Err())
	}
	return err
}

// Node implements Known.
func (o *Own) Node(name string) *Node {
	if name != o.cfg.Name {
		return nil
	}
	return o.node.Load()
}

// Pods implements Known.
func (o *Own) Pods(name string) Lookup {
	if name != o.cfg.Name || !isClosed(o.podsKnown()) {
		return nil
	}
	return func(namespace, pod string) *Pod {
		o.mu.RLock()
		defer o.mu.RUnlock()
		return o.pods[key{namespace, pod}]
	}
}
