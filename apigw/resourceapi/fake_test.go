package resourceapi

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// fake is a view that stands still.
type fake struct {
	nodes []*view.NodeMetrics // sorted
	pods  []*view.PodMetrics  // sorted
	seq   uint64
}

var (
	_ Source = (*fake)(nil)
	_ Source = (*view.Cluster)(nil)
)

func comparePods(a, b *view.PodMetrics) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

func (f *fake) Seq() uint64                        { return f.seq }
func (f *fake) Nodes() iter.Seq[*view.NodeMetrics] { return slices.Values(f.nodes) }

func (f *fake) Node(name string) (*view.NodeMetrics, bool) {
	i, ok := slices.BinarySearchFunc(f.nodes, name, func(n *view.NodeMetrics, name string) int { return strings.Compare(n.Name, name) })
	if !ok {
		return nil, false
	}
	return f.nodes[i], true
}

func (f *fake) Pods(namespace string) iter.Seq[*view.PodMetrics] {
	if namespace == "" {
		return slices.Values(f.pods)
	}
	from, _ := slices.BinarySearchFunc(f.pods, &view.PodMetrics{Namespace: namespace}, comparePods)
	to := from
	for to < len(f.pods) && f.pods[to].Namespace == namespace {
		to++
	}
	return slices.Values(f.pods[from:to])
}

func (f *fake) Pod(namespace, name string) (*view.PodMetrics, bool) {
	i, ok := slices.BinarySearchFunc(f.pods, &view.PodMetrics{Namespace: namespace, Name: name}, comparePods)
	if !ok {
		return nil, false
	}
	return f.pods[i], true
}

// newFake makes a cluster of 600 pods of 2 containers a namespace, labelled as nodes and pods are.
func newFake(nodes, pods int) *fake {
	r := rand.New(rand.NewPCG(1, 2))
	at := time.Unix(1_800_000_000, 0)
	usage := func() view.Usage {
		return view.Usage{CPU: r.Int64N(2e9), Memory: r.Int64N(1<<20) << 12, HasSwap: true}
	}
	f := &fake{seq: 1_000_000}
	for i := range nodes {
		name := fmt.Sprintf("ip-10-0-%d-%d.eu-central-1.compute.internal", i/256, i%256)
		f.nodes = append(f.nodes, &view.NodeMetrics{
			Name: name, UID: fmt.Sprintf("node-%d", i), Seq: uint64(i + 1),
			Labels: []proto.Label{
				{Key: "beta.kubernetes.io/arch", Value: "amd64"},
				{Key: "kubernetes.io/arch", Value: "amd64"},
				{Key: "kubernetes.io/hostname", Value: name},
				{Key: "kubernetes.io/os", Value: "linux"},
				{Key: "node.kubernetes.io/instance-type", Value: "m7i.4xlarge"},
				{Key: "topology.kubernetes.io/region", Value: "eu-central-1"},
				{Key: "topology.kubernetes.io/zone", Value: "eu-central-1" + string(rune('a'+i%3))},
			},
			Time: at.Add(time.Duration(r.IntN(15)) * time.Second), Window: 15*time.Second + time.Duration(r.IntN(1e9)), Usage: usage(),
		})
	}
	for i := range pods {
		app := fmt.Sprintf("app-%d", i%20)
		f.pods = append(f.pods, &view.PodMetrics{
			Namespace: fmt.Sprintf("team-%03d", i/600), Name: fmt.Sprintf("%s-6d4cf56db6-%05d", app, i), UID: fmt.Sprintf("pod-%d", i),
			Labels: []proto.Label{{Key: "app", Value: app}, {Key: "pod-template-hash", Value: "6d4cf56db6"}, {Key: "tier", Value: "web"}},
			Time:   at.Add(time.Duration(r.IntN(15)) * time.Second), Window: 15*time.Second + time.Duration(r.IntN(1e9)), Seq: uint64(i + 1),
			Containers: []view.ContainerMetrics{{Name: "app", Usage: usage()}, {Name: "proxy", Usage: usage()}},
		})
	}
	slices.SortFunc(f.nodes, func(a, b *view.NodeMetrics) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(f.pods, comparePods)
	return f
}
