package doctor

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper"
	"github.com/heapstream/heapstream/scraper/kube"
	"github.com/heapstream/heapstream/scraper/kubelet"
	"github.com/heapstream/heapstream/scraper/node"
)

// Samples: kubelets renew them every 10 to 20 s.
const (
	samplesOld    = time.Minute
	samplesBroken = 5 * time.Minute
)

// visit is what was seen of one kubelet.
type visit struct {
	node    string
	err     *kubelet.Error
	took    time.Duration
	newest  time.Time // of its samples
	read    time.Time
	cert    *x509.Certificate
	skipped bool
}

// kubelets asks every kubelet that the role scrapes, as the scraper does; a is nil where there is no API server.
func (d *Doctor) kubelets(ctx context.Context, a *api) {
	nodes, ok := d.nodes(ctx, a)
	if !ok {
		return
	}
	var id *kube.Identity
	if a != nil {
		id = a.id
	}
	cfg, err := d.cfg.Scraper.KubeletClient(id)
	if err != nil {
		d.add(Fail, CheckKubelets, "", "correct the --kubelet- flags", "%v", err)
		return
	}
	client, err := kubelet.NewClient(cfg)
	if err != nil {
		d.add(Fail, CheckKubelets, "", "correct the --kubelet- flags, or mend the files that they name", "%v", err)
		return
	}
	defer client.Close()
	d.judgeKubelets(d.visits(ctx, client, nodes))
}

// nodes are those to visit, sorted by name; false where there are none.
func (d *Doctor) nodes(ctx context.Context, a *api) ([]*node.Node, bool) {
	own := d.cfg.is(string(scraper.RoleNode))
	if a == nil {
		if own {
			return []*node.Node{nil}, true // its address is ours, or given
		}
		d.skip(CheckKubelets, "", "nodes cannot be listed without the API server")
		return nil, false
	}
	var nodes []*node.Node
	var err error
	if own {
		var n corev1.Node
		if err = a.kube.Get(ctx, "nodes", d.cfg.Scraper.NodeName, &n); err == nil {
			nodes = append(nodes, node.FromNode(&n, ""))
		}
	} else {
		_, err = a.kube.List(ctx, kube.Nodes, func(o runtime.Object) error {
			if n, ok := o.(*corev1.Node); ok {
				nodes = append(nodes, node.FromNode(n, ""))
			}
			return nil
		})
	}
	switch {
	case err != nil && d.seen.unlisted:
		d.skip(CheckKubelets, "", "nodes cannot be listed: see rights")
		return nil, false
	case err != nil:
		d.add(Fail, CheckKubelets, "", "the API server has to tell the nodes before they can be asked", "%v", err)
		return nil, false
	case len(nodes) == 0:
		d.add(Warn, CheckKubelets, "", "is this the cluster that is meant?", "the API server tells of no nodes")
		return nil, false
	}
	slices.SortFunc(nodes, func(a, b *node.Node) int { return cmp.Compare(a.Name, b.Name) })
	d.seen.nodes = len(nodes)
	return nodes, true
}

// visits asks them all, a bounded number at once, each with the deadline of a scrape.
func (d *Doctor) visits(ctx context.Context, client *kubelet.Client, nodes []*node.Node) []visit {
	all := make([]visit, len(nodes))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(d.cfg.Concurrency, len(nodes)) {
		wg.Go(func() {
			var decoder kubelet.Decoder
			var batch proto.Batch
			for i := range next {
				all[i] = d.visit(ctx, client, nodes[i], &decoder, &batch)
			}
		})
	}
	for i := range nodes {
		next <- i
	}
	close(next)
	wg.Wait()
	return all
}

func (d *Doctor) visit(ctx context.Context, client *kubelet.Client, n *node.Node, decoder *kubelet.Decoder, batch *proto.Batch) visit {
	v := visit{node: d.cfg.Scraper.NodeName}
	var machine kubelet.Machine
	if n != nil {
		v.node = n.Name
		machine = kubelet.Machine{ID: n.MachineID, UUID: n.SystemUUID}
	}
	if ctx.Err() != nil {
		v.skipped = true
		return v
	}
	target, err := d.cfg.Scraper.KubeletOf(v.node, n)
	if err != nil {
		return v // not reached: validated
	}
	source, _ := d.cfg.Scraper.SourceKey()
	deadline, cancel := context.WithTimeout(ctx, proto.Deadline(d.cfg.Scraper.Resolution))
	defer cancel()
	began := time.Now()
	err = client.Read(deadline, target, source, &kubelet.Memory{}, func(form kubelet.Form, answer []byte) error {
		v.took, v.read = time.Since(began), d.now()
		batch.Reset()
		batch.Node = v.node
		if err := decoder.Decode(form, answer, batch, machine); err != nil {
			return err
		}
		v.newest = newest(batch)
		return nil
	})
	if err != nil && !errors.As(err, &v.err) {
		v.err = &kubelet.Error{Reason: kubelet.BadAnswer, Node: v.node, What: "read the kubelet", Err: err}
	}
	if ctx.Err() != nil {
		return visit{node: v.node, skipped: true}
	}
	if target.HTTPS && (v.err == nil || v.err.Reason == kubelet.BadTLS) {
		look, cancel := context.WithTimeout(ctx, proto.Deadline(d.cfg.Scraper.Resolution))
		defer cancel()
		v.cert, _ = client.Certificate(look, target) // what is wrong with it, the scrape has said
	}
	return v
}

// newest is the newest sample of cpu and memory in an answer.
func newest(b *proto.Batch) time.Time {
	at := int64(0)
	for row := range b.Entities {
		for _, g := range []proto.Group{proto.GroupCPU, proto.GroupMemory} {
			if t, ok := b.Values.Get(row, g.Time()); ok {
				at = max(at, t)
			}
		}
	}
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// some names a few of many.
func some(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// judgeKubelets says what is alike of many nodes in one line.
func (d *Doctor) judgeKubelets(all []visit) {
	d.seen.failing = map[string]bool{}
	byReason := map[string][]*visit{}
	var slow, skipped []string
	var took []time.Duration
	certs := map[Level][]*visit{}
	ahead, behind := map[Level][]*visit{}, map[Level][]*visit{}
	clocks := 0
	deadline := proto.Deadline(d.cfg.Scraper.Resolution)
	for i := range all {
		v := &all[i]
		if v.cert != nil {
			level, _ := judge(v.cert, d.now())
			certs[level] = append(certs[level], v)
		}
		if v.skipped {
			skipped = append(skipped, v.node)
			continue
		}
		if v.err != nil {
			d.seen.failing[v.node] = true
			key := string(v.err.Reason) + v.err.Advice
			byReason[key] = append(byReason[key], v)
			continue
		}
		took = append(took, v.took)
		if v.took > deadline/2 {
			slow = append(slow, v.node)
		}
		if v.newest.IsZero() {
			continue
		}
		clocks++
		switch off := v.newest.Sub(v.read); {
		case off > clockBroken:
			ahead[Fail] = append(ahead[Fail], v)
		case off > clockNoise:
			ahead[Warn] = append(ahead[Warn], v)
		case off < -samplesBroken:
			behind[Fail] = append(behind[Fail], v)
		case off < -samplesOld:
			behind[Warn] = append(behind[Warn], v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(byReason)) {
		which := byReason[key]
		e := which[0].err
		said := e.Detail
		if e.Err != nil {
			said = strings.TrimPrefix(said+": "+e.Err.Error(), ": ")
		}
		if e.Reason == kubelet.Forbidden && d.seen.noStats {
			d.skip(CheckKubelets, string(e.Reason), "%s do not let us read them: see rights", counted(which, len(all)))
			continue
		}
		d.add(Fail, CheckKubelets, string(e.Reason), e.Advice, "%s: %s: %s", counted(which, len(all)), e.What, said)
	}
	if len(took) > 0 {
		slices.Sort(took)
		d.ok(CheckKubelets, "", "%d of %d can be read, half of them within %s, all within %s", len(took), len(all), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
	if len(slow) > 0 {
		d.add(Warn, CheckKubelets, "slow", "look at the kubelets' log and load: their container runtime may hang; a longer --metric-resolution gives them more time",
			"%d of %d take more than half of a scrape's deadline of %s: %s", len(slow), len(all), deadline, some(slow))
	}
	if len(skipped) > 0 {
		d.skip(CheckKubelets, "", "%d of %d were not asked before --timeout: %s", len(skipped), len(all), some(skipped))
	}
	for _, level := range []Level{Fail, Warn} {
		if which := certs[level]; len(which) > 0 {
			_, seen := judge(which[0].cert, d.now())
			d.add(level, CheckCertificates, "kubelets", "renew the kubelets' serving certificates (serverTLSBootstrap, and approve their requests)", "%s: %s", counted(which, len(all)), seen)
		}
	}
	if which := certs[OK]; len(which) > 0 {
		first := slices.MinFunc(which, func(a, b *visit) int { return a.cert.NotAfter.Compare(b.cert.NotAfter) })
		_, seen := judge(first.cert, d.now())
		d.ok(CheckCertificates, "kubelets", "%d of %d: %s or longer", len(which), len(all), seen)
	}
	off := 0
	for _, level := range []Level{Fail, Warn} {
		if which := ahead[level]; len(which) > 0 {
			off += len(which)
			d.add(level, CheckClocks, "kubelets", "let the nodes and this machine take the time from the same servers (NTP): which of them is right does not show from here",
				"%s: samples are of %s ahead of our clock", counted(which, len(all)), which[0].newest.Sub(which[0].read).Round(100*time.Millisecond))
		}
		if which := behind[level]; len(which) > 0 {
			off += len(which)
			d.add(level, CheckClocks, "kubelets", "compare the clocks (NTP); where they agree the kubelet measures nothing new: look at its log",
				"%s: the newest sample is %s old", counted(which, len(all)), which[0].read.Sub(which[0].newest).Round(time.Second))
		}
	}
	if clocks > off {
		d.ok(CheckClocks, "kubelets", "samples of %d of %d nodes are of now", clocks-off, len(all))
	}
}

func counted(which []*visit, of int) string {
	names := make([]string, len(which))
	for i, v := range which {
		names[i] = v.node
	}
	slices.Sort(names)
	return fmt.Sprintf("%d of %d (%s)", len(which), of, some(names))
}
