package proto

import (
	"strings"
	"testing"
)

func TestEntityLabelsAreHeapsters(t *testing.T) {
	var tab Table
	node := tab.AddEntity(Entity{Kind: KindNode, Parent: -1, Name: "n1", Hostname: "host1", Labels: []Label{{"zone", "a"}}, Flags: FlagSchedulable})
	pod := tab.AddEntity(Entity{Kind: KindPod, Parent: int32(node), Name: "web-1", Namespace: "default", UID: "pod-uid", Labels: []Label{{"app", "web"}, {"tier", "fe"}}})
	tab.AddEntity(Entity{Kind: KindContainer, Parent: int32(pod), Name: "web", Image: "nginx"})
	tab.AddEntity(Entity{Kind: KindSystemContainer, Parent: int32(node), Name: "kubelet"})
	tab.AddEntity(Entity{Kind: KindPod, Parent: int32(node), Name: "ghost", Namespace: "gone", UID: "u2", Flags: FlagNotInAPI})
	tab.AddEntity(Entity{Kind: KindNamespace, Parent: -1, Name: "default", UID: "ns-uid"})
	tab.AddEntity(Entity{Kind: KindCluster, Parent: -1})
	check := func(f LabelFormat, row int, key, want string) {
		t.Helper()
		var got []string
		for _, l := range f.AppendEntityLabels(nil, &tab, row) {
			got = append(got, l.Key+"="+l.Value)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("row %d\n got %s\nwant %s", row, g, want)
		}
		if k := string(AppendKey(nil, &tab, row)); k != key {
			t.Errorf("row %d has key %s", row, k)
		}
	}
	f := DefaultLabelFormat()
	check(f, 0, "node:n1", "host_id= hostname=host1 labels=zone:a nodename=n1 schedulable=true type=node")
	check(f, 1, "namespace:default/pod:web-1", "host_id= hostname=host1 labels=app:web,tier:fe namespace_id=ns-uid namespace_name=default nodename=n1 pod_id=pod-uid pod_name=web-1 type=pod")
	check(f, 2, "namespace:default/pod:web-1/container:web", "container_base_image=nginx container_name=web host_id= hostname=host1 labels=app:web,tier:fe namespace_id=ns-uid namespace_name=default nodename=n1 pod_id=pod-uid pod_name=web-1 type=pod_container")
	check(f, 3, "node:n1/container:kubelet", "container_name=kubelet host_id= hostname=host1 nodename=n1 type=sys_container")
	check(f, 4, "namespace:gone/pod:ghost", "host_id= hostname=host1 namespace_name=gone nodename=n1 pod_id=u2 pod_name=ghost type=pod") // not in the API: no labels, no namespace_id
	check(f, 5, "namespace:default", "namespace_id=ns-uid namespace_name=default type=ns")
	check(f, 6, "cluster", "type=cluster")
	// a stored label is stored even if ignored, and a clash keeps the built-in one
	check(LabelFormat{Separator: "; ", Ignore: []string{"app"}, Store: map[string]string{"app": "application", "tier": "type"}}, 1, "namespace:default/pod:web-1",
		"application=web host_id= hostname=host1 labels=tier:fe namespace_id=ns-uid namespace_name=default nodename=n1 pod_id=pod-uid pod_name=web-1 type=pod")
}
