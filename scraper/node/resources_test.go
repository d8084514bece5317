package node

import (
	"fmt"
	"math"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heapstream/heapstream/proto"
)

// asked is what a batch of the pod says: a line for each row that asks, and for each extra.
func asked(t testing.TB, p *corev1.Pod, reported ...string) string {
	t.Helper()
	b := table(string(p.UID), reported...)
	Enrich(b, nil, lookup(map[string]*Pod{"ns/p": FromPod(p)}))
	if b.Dropped != 0 {
		t.Errorf("%d values do not fit", b.Dropped)
	}
	var out []string
	for row := range b.Entities {
		get := func(id proto.MetricID) int64 { v, _ := b.Values.Get(row, id.Field()); return v }
		if _, ok := b.Values.Get(row, proto.CPURequest.Field()); ok {
			out = append(out, fmt.Sprintf("%s cpu %d/%d memory %d/%d ephemeral %d/%d", b.Entities[row].Name, get(proto.CPURequest), get(proto.CPULimit),
				get(proto.MemoryRequest), get(proto.MemoryLimit), get(proto.EphemeralRequest), get(proto.EphemeralLimit)))
		}
	}
	for _, x := range b.Extras {
		out = append(out, fmt.Sprintf("%s %s %s", b.Entities[x.Entity].Name, x.Name, x.Value))
	}
	return strings.Join(out, "\n")
}

func asks(name string, requests, limits corev1.ResourceList) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func podOf(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"}, Spec: corev1.PodSpec{Containers: containers}}
}

// What a pod and its containers ask for, requests before limits.
func TestWhatPodsAskFor(t *testing.T) {
	check := func(what string, p *corev1.Pod, want string, reported ...string) {
		t.Helper()
		if got := asked(t, p, reported...); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
		}
	}
	main := asks("main", quantities("cpu", "200m", "memory", "100", "ephemeral-storage", "7"), quantities("cpu", "1", "ephemeral-storage", "9"))
	idle := asks("idle", nil, nil)

	check("an ordinary pod leaves its sum to the aggregator", podOf(main, idle),
		"main cpu 200/1000 memory 100/0 ephemeral 7/9\nidle cpu 0/0 memory 0/0 ephemeral 0/0", "main", "idle")

	p := podOf(main)
	always := corev1.ContainerRestartPolicyAlways
	sidecar := asks("proxy", quantities("cpu", "50m"), nil)
	sidecar.RestartPolicy = &always
	p.Spec.InitContainers = []corev1.Container{asks("setup", quantities("cpu", "5", "nvidia.com/gpu", "1"), nil), sidecar}
	check("init containers ask for nothing, running or not; sidecars do", p,
		"main cpu 200/1000 memory 100/0 ephemeral 7/9\nproxy cpu 50/0 memory 0/0 ephemeral 0/0", "setup", "main")

	p.Spec.Overhead = quantities("cpu", "250m", "memory", "120", "ephemeral-storage", "1", "hugepages-2Mi", "4")
	check("overhead comes on top of containers and sidecars, and on the limits that there are", p,
		"p cpu 500/1250 memory 220/0 ephemeral 8/10\nmain cpu 200/1000 memory 100/0 ephemeral 7/9\nproxy cpu 50/0 memory 0/0 ephemeral 0/0\np hugepages-2Mi/request 4", "main", "proxy")

	p = podOf(main, asks("two", quantities("memory", "5", "hugepages-2Mi", "2", "example.com/x", "1"), nil))
	p.Spec.Resources = &corev1.ResourceRequirements{Requests: quantities("cpu", "2", "hugepages-2Mi", "6"), Limits: quantities("cpu", "3", "memory", "1000")}
	check("resources of the whole pod stand in place of the sum, each for itself", p,
		"p cpu 2000/3000 memory 105/1000 ephemeral 7/9\nmain cpu 200/1000 memory 100/0 ephemeral 7/9\ntwo cpu 0/0 memory 5/0 ephemeral 0/0\n"+
			"p example.com/x/request 1\np hugepages-2Mi/request 6\ntwo example.com/x/request 1\ntwo hugepages-2Mi/request 2", "main", "two")

	p.Spec.Overhead = quantities("cpu", "100m", "memory", "1")
	p.Status.Resources = &corev1.ResourceRequirements{Limits: quantities("cpu", "2500m")}
	p.Status.AllocatedResources = quantities("cpu", "1500m", "memory", "77777") // the memory is a sum: the spec names none
	check("overhead comes on top of them, too, and a resize counts as far as it is allocated", p,
		"p cpu 1600/2600 memory 106/1001 ephemeral 7/9\nmain cpu 200/1000 memory 100/0 ephemeral 7/9\ntwo cpu 0/0 memory 5/0 ephemeral 0/0\n"+
			"p example.com/x/request 1\np hugepages-2Mi/request 6\ntwo example.com/x/request 1\ntwo hugepages-2Mi/request 2", "main", "two")

	p = podOf(main)
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", AllocatedResources: quantities("cpu", "150m"),
		Resources: &corev1.ResourceRequirements{Requests: quantities("cpu", "120m", "memory", "80"), Limits: quantities("cpu", "800m", "memory", "500")}}}
	check("a resize: requests as allocated, else as applied; limits as applied", p,
		"main cpu 150/800 memory 80/500 ephemeral 7/9", "main")

	p = podOf(asks("main", quantities("nvidia.com/gpu", "2", "hugepages-1Gi", "1500m", "example.com/none", "0"), nil))
	check("extended resources, rounded up", p,
		"main cpu 0/0 memory 0/0 ephemeral 0/0\nmain example.com/none/request 0\nmain hugepages-1Gi/request 2\nmain nvidia.com/gpu/request 2", "main")

	p = podOf(main)
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger", Image: "busybox"}}}
	check("a container for debugging asks for nothing", p, "main cpu 200/1000 memory 100/0 ephemeral 7/9", "main", "debugger")
	check("and is not missed", p, "main cpu 200/1000 memory 100/0 ephemeral 7/9", "main")
}

func TestDebuggingContainersAreKnown(t *testing.T) {
	p := podOf(asks("main", nil, nil))
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debugger", Image: "busybox"}}}
	p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "debugger", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	b := table("u", "main", "debugger")
	Enrich(b, nil, lookup(map[string]*Pod{"ns/p": FromPod(p)}))
	if e := b.Entities[3]; e.Image != "busybox" || e.Flags != proto.FlagRunning {
		t.Errorf("the debugging container is %+v", e)
	}
	b = table("u", "main")
	Enrich(b, nil, lookup(map[string]*Pod{"ns/p": FromPod(p)}))
	if len(b.Entities) != 3 {
		t.Errorf("a debugging container without samples has a row: %+v", b.Entities[3:])
	}
}

// The image is the API server's unless the source has told it.
func TestImageOfTheSourceStays(t *testing.T) {
	p := podOf(corev1.Container{Name: "a", Image: "spec:1"}, corev1.Container{Name: "b", Image: "spec:2"})
	b := table("u", "a", "b")
	b.Entities[2].Image = "told:1"
	Enrich(b, nil, lookup(map[string]*Pod{"ns/p": FromPod(p)}))
	if b.Entities[2].Image != "told:1" || b.Entities[3].Image != "spec:2" {
		t.Errorf("images %q and %q", b.Entities[2].Image, b.Entities[3].Image)
	}
}

// Quantities that no int64 holds are the largest one, not what its arithmetic wraps to.
func TestQuantitiesDoNotWrap(t *testing.T) {
	for _, c := range []struct {
		text         string
		whole, milli int64
	}{
		{"0", 0, 0}, {"-5", 0, 0}, {"-1e400", 0, 0}, {"1n", 1, 1}, {"1500u", 1, 2}, {"1e-400", 1, 1}, {"100500u", 1, 101}, {"1.5Gi", 3 << 29, 3 << 29 * 1000},
		{"8Ei", math.MaxInt64, math.MaxInt64}, {"7Ei", 7 << 60, math.MaxInt64}, {"3Ei", 3 << 60, math.MaxInt64}, {"1e15", 1e15, 1e18}, {"5e15", 5e15, 5e18}, {"1e16", 1e16, math.MaxInt64},
		{"9223372036854775807", math.MaxInt64, math.MaxInt64}, {"9223372036854775807k", math.MaxInt64, math.MaxInt64}, {"9223372036854775808", math.MaxInt64, math.MaxInt64},
		{"99999999999Ei", math.MaxInt64, math.MaxInt64}, {"1e400", math.MaxInt64, math.MaxInt64}, {"1e2000000000", math.MaxInt64, math.MaxInt64},
	} {
		l := quantities("cpu", c.text)
		if w, m := whole(l, "cpu"), milli(l, "cpu"); w != c.whole || m != c.milli {
			t.Errorf("%s: whole %d, milli %d; want %d, %d", c.text, w, m, c.whole, c.milli)
		}
	}
	huge := asks("a", quantities("cpu", "1e400", "memory", "9223372036854775807"), nil)
	p := podOf(huge, huge)
	p.Spec.Containers[1].Name = "b"
	p.Spec.Overhead = quantities("cpu", "1e400")
	if w := FromPod(p).Whole; w.CPURequest != math.MaxInt64 || w.MemoryRequest != math.MaxInt64 {
		t.Errorf("sums wrap: %+v", w)
	}
}
