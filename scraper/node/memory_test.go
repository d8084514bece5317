package node

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heapstream/heapstream/proto"
)

// wire are n pods of two containers as the API server sends them, a replica set of ten after the other: with the
// environment, volumes, conditions and managed fields that pods have, of which none is kept.
func wire(t testing.TB, n int) [][]byte {
	t.Helper()
	template := load[corev1.PodList](t, "pods.json").Items[0]
	all := make([][]byte, n)
	for i := range all {
		p := template.DeepCopy()
		p.Name, p.UID = fmt.Sprintf("web-%d-5d8f9c-%05d", i/10, i), ""
		p.Labels = map[string]string{"app": fmt.Sprintf("web-%d", i/10), "pod-template-hash": fmt.Sprintf("5d8f9c%d", i/10), "team": fmt.Sprint(i % 7), "tier": "frontend"}
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: fmt.Sprintf("web-%d-5d8f9c", i/10), Controller: &yes}}
		p.Annotations = map[string]string{"example.com/configuration": strings.Repeat(fmt.Sprint(i), 16<<10)}
		c := p.Spec.Containers[0]
		for j := range 100 {
			c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", j), Value: strings.Repeat("x", 50)})
		}
		p.Spec.Containers = []corev1.Container{c, c}
		p.Spec.Containers[1].Name = "second"
		data, err := p.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		all[i] = data
	}
	return all
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // interned strings that nobody has any more go with the second
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// kept decodes pods, keeps what we keep of them, and returns that and the bytes that each takes.
func kept(t testing.TB, pods [][]byte) ([]*Pod, float64) {
	t.Helper()
	all := make([]*Pod, len(pods))
	before := heap()
	for i, data := range pods {
		var p corev1.Pod
		if err := p.Unmarshal(data); err != nil {
			t.Fatal(err)
		}
		all[i] = FromPod(&p)
	}
	return all, float64(int64(heap()-before)) / float64(len(pods)) //nolint:gosec // a difference
}

// Of a pod of many kB on the wire hardly one is kept.
func TestLittleIsKeptOfAPod(t *testing.T) {
	pods := wire(t, 500)
	all, each := kept(t, pods)
	if len(pods[0]) < 16<<10 || each > 2048 {
		t.Errorf("%.0f bytes are kept of a pod of %d", each, len(pods[0]))
	}
	runtime.KeepAlive(all)
	runtime.KeepAlive(pods)
}

// Pods of one cluster as they come from the API server; bytes/pod is what stays of each.
func BenchmarkFromPod(b *testing.B) {
	for _, n := range []int{30, 3000} {
		b.Run(fmt.Sprintf("pods=%d/containers=2", n), func(b *testing.B) {
			pods := wire(b, n)
			all, each := kept(b, pods)
			objects := make([]corev1.Pod, n)
			for i := range objects {
				if err := objects[i].Unmarshal(pods[i]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				FromPod(&objects[i%n])
				i++
			}
			b.ReportMetric(each, "bytes/pod")
			runtime.KeepAlive(all)
		})
	}
}

// What the API server says written into a node's batch: on the path of every sample.
func BenchmarkEnrich(b *testing.B) {
	for _, n := range []int{30, 110} {
		b.Run(fmt.Sprintf("pods=%d/containers=2", n), func(b *testing.B) {
			pods, _ := kept(b, wire(b, n))
			batch := &proto.Batch{Cluster: "c", Node: "n"}
			batch.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
			index := map[key]*Pod{}
			for _, p := range pods {
				index[key{p.Namespace, p.Name}] = p
				row := batch.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: p.Namespace, Name: p.Name})
				for i := range p.Containers {
					batch.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: p.Containers[i].Name})
				}
			}
			known := FromNode(load[corev1.Node](b, "node.json"), "")
			b.ReportAllocs()
			for b.Loop() { // again and again the same: nothing is added
				Enrich(batch, known, func(namespace, name string) *Pod { return index[key{namespace, name}] })
			}
			b.ReportMetric(float64(len(batch.Entities)*b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
