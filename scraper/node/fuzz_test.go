package node

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/scraper/kube"
)

// body answers every request with the same bytes.
type body struct {
	data  []byte
	media string
}

func (b *body) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Request: r, Header: http.Header{"Content-Type": {b.media}}, Body: io.NopCloser(bytes.NewReader(b.data))}, nil
}

// clientOf is a client whose API server answers with b.
func clientOf(t testing.TB, b *body) *kube.Client {
	t.Helper()
	c, err := kube.NewClient(&rest.Config{Host: "http://api.example.com", Transport: b})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// odd are pods and nodes that no healthy cluster has.
func odd(t testing.TB) []runtimeObject {
	t.Helper()
	large := podOf()
	large.Labels = map[string]string{strings.Repeat("k", 20_000): strings.Repeat("ü", 20_000), "": ""}
	for i := range 2000 {
		large.Spec.Containers = append(large.Spec.Containers, asks(strings.Repeat("c", i%300), quantities("cpu", "1e400", "memory", "-1", "x", "9e18"), nil))
		large.Status.ContainerStatuses = append(large.Status.ContainerStatuses, corev1.ContainerStatus{Name: "c", RestartCount: -5})
	}
	large.Status.StartTime = &metav1.Time{Time: time.Unix(1<<40, 0)}
	n := &corev1.Node{}
	n.Status.Capacity = quantities("cpu", "-1", "memory", "1e400")
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "%"}, {Type: corev1.NodeInternalIP, Address: "[::1%lo]"}}
	return []runtimeObject{large, n, &corev1.Pod{}}
}

type runtimeObject interface{ Marshal() ([]byte, error) }

// sound fails unless what is kept of pods and a node goes into a batch, through the codec and back.
func sound(t testing.TB, n *Node, pods []*Pod) {
	t.Helper()
	b := &proto.Batch{Cluster: "c", Node: "n", Tick: 1}
	b.AddEntity(proto.Entity{Kind: proto.KindNode, Parent: -1, Name: "n"})
	index := map[key]*Pod{}
	for i, p := range pods {
		index[key{p.Namespace, p.Name}] = p
		row := b.AddEntity(proto.Entity{Kind: proto.KindPod, Namespace: p.Namespace, Name: p.Name, UID: p.UID})
		if i%2 == 0 && len(p.Containers) > 0 {
			b.AddEntity(proto.Entity{Kind: proto.KindContainer, Parent: int32(row), Name: p.Containers[0].Name})
		}
		if !slices.IsSortedFunc(p.Labels, func(x, y proto.Label) int { return cmp.Compare(x.Key, y.Key) }) {
			t.Fatalf("labels are not sorted: %v", p.Labels)
		}
	}
	Enrich(b, n, func(namespace, name string) *Pod { return index[key{namespace, name}] })
	for _, id := range told {
		for row := range b.Entities {
			if v, ok := b.Values.Get(row, id.Field()); ok && v < 0 {
				t.Fatalf("row %d has %s %d", row, proto.MetricByID(id).Name, v)
			}
		}
	}
	rows, extras := len(b.Entities), len(b.Extras)
	data, err := proto.NewEncoder().Batch(b)
	if err != nil {
		t.Fatal(err)
	}
	var back proto.Batch
	if err := proto.NewDecoder().Batch(data, &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Entities) != rows || len(back.Extras) != extras {
		t.Fatalf("%d rows and %d extras came back of %d and %d", len(back.Entities), len(back.Extras), rows, extras)
	}
}

// FuzzObjects gives the client an API server that answers anything, as JSON and as protobuf.
func FuzzObjects(f *testing.F) {
	for _, name := range []string{"pods.json", "node.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
	}
	for _, o := range odd(f) {
		text, err := json.Marshal(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, false)
		bin, err := o.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bin, true)
	}
	f.Add([]byte(`{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a"},"spec":{"containers":[{"resources":{"requests":{"cpu":"1e400","memory":-7}}}]}}]}`), false)
	f.Fuzz(func(t *testing.T, data []byte, binary bool) {
		if endless(data) != "" {
			return // an API server would not have got that far
		}
		b := &body{data, "application/json"}
		if binary {
			b.media = "application/vnd.kubernetes.protobuf"
		}
		c := clientOf(t, b)
		var n corev1.Node
		var p corev1.Pod
		var list corev1.PodList
		node := &Node{}
		if c.Get(t.Context(), "nodes", "n", &n) == nil {
			node = FromNode(&n, "a")
		}
		var pods []*Pod
		if c.Get(t.Context(), "pods", "p", &p) == nil {
			pods = append(pods, FromPod(&p))
		}
		if c.Get(t.Context(), "pods", "", &list) == nil {
			for i := range list.Items[:min(len(list.Items), 1000)] {
				pods = append(pods, FromPod(&list.Items[i]))
			}
		}
		sound(t, node, pods)
	})
}

// FuzzKubeletPods gives the node role a kubelet that answers anything.
func FuzzKubeletPods(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "pods.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"items":[{"spec":{"containers":[{"resources":{"requests":{"cpu":"1e-9999","memory":1e-3}}}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		index, err := podsOf(data)
		if err != nil {
			return
		}
		var pods []*Pod
		for _, p := range index {
			pods = append(pods, p)
		}
		sound(t, nil, pods[:min(len(pods), 1000)])
	})
}

func TestOddObjectsAreSound(t *testing.T) {
	var pods []*Pod
	var n *Node
	for _, o := range odd(t) {
		switch o := o.(type) {
		case *corev1.Pod:
			pods = append(pods, FromPod(o))
		case *corev1.Node:
			n = FromNode(o, "")
		}
	}
	sound(t, n, pods)
	if n.Address != "" && n.Address != "::1%lo" {
		t.Errorf("address %q", n.Address)
	}
}

// A quantity that would take for ever to decode is refused by its name; what only looks like one is not.
func TestEndlessQuantityIsRefused(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{"cpu":"1e-99999999"}`, "1e-99999999"}, {`{"cpu": 12.5E-2000000000 }`, "12.5E-2000000000"}, {`["-.5e-100000"]`, "-.5e-100000"},
		{`{"cpu":"1e-3"}`, ""}, {`{"cpu":1e-9999}`, ""}, {`{"uid":"1e-99999-77"}`, ""}, {`{"uid":"a71e-1234567"}`, ""}, {`{"s":"e-1234567"}`, ""}, {`1e-`, ""}, {"e-1", ""}, {"", ""},
	} {
		if got := endless([]byte(c.in)); got != c.want {
			t.Errorf("%s: found %q, want %q", c.in, got, c.want)
		}
	}
	if _, err := podsOf([]byte(`{"items":[{"spec":{"overhead":{"cpu":"1e-2000000000"}}}]}`)); err == nil || !strings.Contains(err.Error(), `"1e-2000000000" is no quantity`) {
		t.Errorf("%v", err)
	}
}
