package node

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heapstream/heapstream/proto"
)

// Node is what we keep of a node.
type Node struct {
	Name, UID, Hostname, HostID string
	Labels                      []proto.Label // sorted by key
	Flags                       proto.Flags

	MachineID, SystemUUID string // as its kubelet told them

	Address string // where to reach its kubelet: see addressOf; "" where it has none
	Port    int32  // status.daemonEndpoints.kubeletEndpoint; 0: not told

	// Millicores and bytes.
	CPUCapacity, MemoryCapacity, EphemeralCapacity          int64
	CPUAllocatable, MemoryAllocatable, EphemeralAllocatable int64
	Ephemeral                                               bool // both of its ephemeral values are told
}

// Pod is what we keep of a pod.
type Pod struct {
	Namespace, Name, UID string
	KubeletUID           string // under which its kubelet knows a static pod; else ""
	Node                 string
	Phase                proto.Phase
	Flags                proto.Flags
	Owner                proto.Owner
	Labels               []proto.Label // sorted by key
	Started              int64         // status.startTime, Unix ns; 0: not yet
	Containers           []Container   // init containers first, ephemeral ones last
	Whole                *Resources    // of the pod; nil: the sum of its containers
}

// Container is what we keep of a container.
type Container struct {
	Name, Image string
	Flags       proto.Flags
	Ephemeral   bool // for debugging: it asks for nothing and is never expected
	Known       bool // there is a status of it, so Restarts is told
	Restarts    int64
	Resources
}

// counts reports whether what the container asks for is part of what its pod asks for.
func (c *Container) counts() bool { return c.Flags&proto.FlagInit == 0 && !c.Ephemeral }

// intern makes equal strings share their bytes: labels, images and names repeat across pods.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

func labels(m map[string]string) []proto.Label {
	if len(m) == 0 {
		return nil
	}
	out := make([]proto.Label, 0, len(m))
	for k, v := range m {
		out = append(out, proto.Label{Key: intern(k), Value: intern(v)})
	}
	slices.SortFunc(out, func(a, b proto.Label) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// FromNode keeps what we need of n. HostID is its externalID or, where that is empty, the value of
// the annotation, if one is named.
func FromNode(n *corev1.Node, hostIDAnnotation string) *Node {
	k := &Node{Name: n.Name, UID: string(n.UID), Hostname: n.Name, HostID: n.Spec.DoNotUseExternalID, Labels: labels(n.Labels),
		MachineID: n.Status.NodeInfo.MachineID, SystemUUID: n.Status.NodeInfo.SystemUUID,
		Address: addressOf(n), Port: n.Status.DaemonEndpoints.KubeletEndpoint.Port}
	if k.HostID == "" && hostIDAnnotation != "" {
		k.HostID = n.Annotations[hostIDAnnotation]
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeHostName && a.Address != "" {
			k.Hostname = a.Address
		}
	}
	if n.Spec.Unschedulable {
		k.Flags |= proto.FlagUnschedulable
	}
	if !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}) {
		k.Flags |= proto.FlagNotReady // a node that says nothing has not become ready yet
	}
	capacity, alloc := n.Status.Capacity, n.Status.Allocatable
	k.CPUCapacity, k.CPUAllocatable = milli(capacity, corev1.ResourceCPU), milli(alloc, corev1.ResourceCPU)
	k.MemoryCapacity, k.MemoryAllocatable = whole(capacity, corev1.ResourceMemory), whole(alloc, corev1.ResourceMemory)
	_, inCapacity := capacity[corev1.ResourceEphemeralStorage]
	_, inAlloc := alloc[corev1.ResourceEphemeralStorage]
	if k.Ephemeral = inCapacity && inAlloc; k.Ephemeral {
		k.EphemeralCapacity, k.EphemeralAllocatable = whole(capacity, corev1.ResourceEphemeralStorage), whole(alloc, corev1.ResourceEphemeralStorage)
	}
	return k
}

// addressOf is the last valid InternalIP, else the first valid ExternalIP.
func addressOf(n *corev1.Node) (ip string) {
	external := ""
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		s := strings.Trim(a.Address, "[]")
		if _, err := netip.ParseAddr(s); err != nil || net.ParseIP(s) == nil && !strings.Contains(s, "%") {
			continue
		}
		if a.Type == corev1.NodeInternalIP {
			ip = s
		} else if external == "" {
			external = s
		}
	}
	return cmp.Or(ip, external)
}

// The annotations of static pods.
const (
	annotationMirror = corev1.MirrorPodAnnotationKey
	annotationHash   = "kubernetes.io/config.hash"
	annotationSource = "kubernetes.io/config.source"
)

// FromPod keeps what we need of p, as the API server or the kubelet's /pods gives it.
func FromPod(p *corev1.Pod) *Pod {
	k := &Pod{Namespace: intern(p.Namespace), Name: p.Name, UID: string(p.UID), Node: intern(p.Spec.NodeName), Labels: labels(p.Labels)}
	if _, mirror := p.Annotations[annotationMirror]; mirror {
		k.Flags |= proto.FlagMirror
		k.KubeletUID = cmp.Or(p.Annotations[annotationHash], p.Annotations[annotationMirror])
	} else if source := p.Annotations[annotationSource]; source != "" && source != "api" {
		k.Flags |= proto.FlagMirror // told by the kubelet itself: the API server's UID is not known here
	}
	if p.Spec.HostNetwork {
		k.Flags |= proto.FlagHostNetwork
	}
	switch p.Status.Phase {
	case corev1.PodPending:
		k.Phase = proto.PhasePending
	case corev1.PodRunning:
		k.Phase = proto.PhaseRunning
	case corev1.PodSucceeded:
		k.Phase = proto.PhaseSucceeded
	case corev1.PodFailed:
		k.Phase = proto.PhaseFailed
	}
	k.Owner = Controller(p.OwnerReferences)
	if p.Status.StartTime != nil && !p.Status.StartTime.IsZero() {
		k.Started = p.Status.StartTime.UnixNano()
	}
	k.Containers = make([]Container, 0, len(p.Spec.InitContainers)+len(p.Spec.Containers)+len(p.Spec.EphemeralContainers))
	status := statuses(p.Status.InitContainerStatuses)
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		flag := proto.FlagInit
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			flag = proto.FlagSidecar
		}
		k.Containers = append(k.Containers, container(c, flag, status(c.Name)))
	}
	status = statuses(p.Status.ContainerStatuses)
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		k.Containers = append(k.Containers, container(c, 0, status(c.Name)))
	}
	status = statuses(p.Status.EphemeralContainerStatuses)
	for i := range p.Spec.EphemeralContainers {
		c := corev1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		e := container(&c, 0, status(c.Name))
		e.Ephemeral = true
		k.Containers = append(k.Containers, e)
	}
	k.Whole = wholePod(p, k.Containers)
	return k
}

// few is up to how many names a list is searched rather than indexed.
const few = 16

// statuses finds the status of a container by name; nil: there is none.
func statuses(all []corev1.ContainerStatus) func(name string) *corev1.ContainerStatus {
	if len(all) <= few {
		return func(name string) *corev1.ContainerStatus {
			for i := range all {
				if all[i].Name == name {
					return &all[i]
				}
			}
			return nil
		}
	}
	index := make(map[string]*corev1.ContainerStatus, len(all))
	for i := range all {
		index[all[i].Name] = &all[i]
	}
	return func(name string) *corev1.ContainerStatus { return index[name] }
}

// Controller is the owner that controls an object; zero where there is none.
func Controller(refs []metav1.OwnerReference) proto.Owner {
	for i := range refs {
		if refs[i].Controller != nil && *refs[i].Controller {
			return proto.Owner{Kind: intern(refs[i].Kind), Name: intern(refs[i].Name)}
		}
	}
	return proto.Owner{}
}

// container keeps what we need of a container; s is nil where it has no status.
func container(c *corev1.Container, flags proto.Flags, s *corev1.ContainerStatus) Container {
	k := Container{Name: intern(c.Name), Image: intern(c.Image), Flags: flags}
	if s == nil {
		k.Resources = granted(c.Resources, nil, nil)
		return k
	}
	k.Resources = granted(c.Resources, s.AllocatedResources, s.Resources)
	k.Known, k.Restarts = true, max(int64(s.RestartCount), 0)
	switch {
	case s.State.Running != nil:
		k.Flags |= proto.FlagRunning
	case s.State.Terminated != nil,
		s.State.Waiting != nil && s.LastTerminationState.Terminated != nil: // it is to be restarted
		k.Flags |= proto.FlagTerminated
	}
	return k
}
