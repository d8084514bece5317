package proto

import "strconv"

// Kind says what an entity is. Values are part of the wire format: never renumber.
type Kind uint8

// The kinds of entities.
const (
	KindCluster         Kind = 1 // the whole cluster: the sum of its pods
	KindNamespace       Kind = 2 // a namespace; in a node's rollup: that node's share of it
	KindNode            Kind = 3
	KindPod             Kind = 4
	KindContainer       Kind = 5 // a container of a pod
	KindSystemContainer Kind = 6 // kubelet, runtime, … or a raw cgroup
	KindWorkload        Kind = 7 // what owns pods: Deployment, StatefulSet, …; in a node's rollup: that node's share
)

// String returns the value of Heapster's `type` label.
func (k Kind) String() string {
	switch k {
	case KindCluster:
		return "cluster"
	case KindNamespace:
		return "ns"
	case KindNode:
		return "node"
	case KindPod:
		return "pod"
	case KindContainer:
		return "pod_container"
	case KindSystemContainer:
		return "sys_container"
	case KindWorkload:
		return "workload"
	}
	return "kind-" + strconv.Itoa(int(k))
}

// Levels is a set of kinds: bit k is set for Kind k.
type Levels uint16

// Has reports whether the set holds k.
func (l Levels) Has(k Kind) bool { return l&(1<<k) != 0 }

func levels(kinds ...Kind) (l Levels) {
	for _, k := range kinds {
		l |= 1 << k
	}
	return l
}

// Label is one key with its value.
type Label struct{ Key, Value string }

// Owner names the controller of a pod. In a Batch it is the pod's immediate controller
// (ReplicaSet, Job, …; the zero Owner for a bare pod). In a Rollup it is the workload after
// resolution (Deployment, CronJob, …): a bare pod is its own workload, and the zero Owner says that
// the API server has not told of the pod yet.
type Owner struct{ Kind, Name string }

// Phase is a pod's phase as the API server gives it.
type Phase uint8

// The pod phases. Values are part of the wire format.
const (
	PhaseUnknown   Phase = 0 // not told, or the API server says Unknown
	PhasePending   Phase = 1
	PhaseRunning   Phase = 2
	PhaseSucceeded Phase = 3
	PhaseFailed    Phase = 4
)

// Flags are facts about one entity. Values are part of the wire format.
type Flags uint32

// The flags of an entity.
const (
	FlagUnschedulable Flags = 1 << 0  // node: spec.unschedulable
	FlagNotReady      Flags = 1 << 1  // node: condition Ready is not True
	FlagHostNetwork   Flags = 1 << 2  // pod: its network counters are the node's
	FlagMirror        Flags = 1 << 3  // pod: a static pod; UID is the API server's, not the kubelet's
	FlagInit          Flags = 1 << 4  // container: an init container that is to finish
	FlagSidecar       Flags = 1 << 5  // container: an init container with restartPolicy Always
	FlagRunning       Flags = 1 << 6  // container: the API server or kubelet says it runs
	FlagTerminated    Flags = 1 << 7  // container: ended and not restarted yet
	FlagStub          Flags = 1 << 8  // the API server knows it, the kubelet's answer had no sample of it
	FlagNotInAPI      Flags = 1 << 9  // the kubelet reported it, the API server's pods do not have it
	FlagCgroup        Flags = 1 << 10 // pod: cpu and memory are those of its own cgroup
	FlagStandingIn    Flags = 1 << 11 // rollup: every group of the entity stands in; see Group
	FlagSchedulable   Flags = 1 << 12 // node: the source tells about schedulability (label `schedulable`)
)

// Entity is one row of a Table: who is measured. The strings are shared with other rows and
// messages; labels must not be altered.
type Entity struct {
	Kind   Kind
	Phase  Phase // of a pod
	Flags  Flags
	Parent int32 // row of the pod for a container, of the node for a pod or system container; -1: none

	Name      string  // of the node, pod, container, namespace, workload; "" for the cluster
	Namespace string  // of a pod or workload; containers have their pod's through Parent
	UID       string  // of a node, pod, namespace
	Image     string  // of a container
	Hostname  string  // of a node: its last address of type Hostname, else its name
	HostID    string  // of a node: spec.externalID or the annotation named by host_id_annotation
	Owner     Owner   // of a pod; of a workload: Kind is its kind (Name repeats Entity.Name)
	Labels    []Label // Kubernetes labels of a node, pod or namespace, sorted by key
}

// DeviceKind says what a Device is. Values are part of the wire format.
type DeviceKind uint8

// The kinds of devices.
const (
	DeviceFilesystem  DeviceKind = 1
	DeviceInterface   DeviceKind = 2 // a network interface
	DeviceDisk        DeviceKind = 3 // a block device
	DeviceAccelerator DeviceKind = 4
)

// Device is a row of the table of labelled values: a part of an entity that is measured on its own.
type Device struct {
	Entity int32 // row of the entity it belongs to
	Kind   DeviceKind
	Name   string // resource_id ("/", "logs", "Volume:data", "imagefs", a disk), interface or accelerator id
	Claim  string // of a volume: the PersistentVolumeClaim behind it; its namespace is the pod's
	Make   string // of an accelerator
	Model  string // of an accelerator
}

// The file systems that Heapster did not know.
const (
	DeviceImageFS     = "imagefs"           // of the node: where images lie
	DeviceContainerFS = "containerfs"       // of the node: where containers write
	DeviceEphemeral   = "ephemeral-storage" // of a pod: all it keeps on the node
)

// Ours reports whether the device is one that Heapster did not measure, as Metric.Ours does for metrics.
func (d *Device) Ours() bool {
	switch d.Kind {
	case DeviceInterface:
		return true
	case DeviceFilesystem:
		return d.Name == DeviceImageFS || d.Name == DeviceContainerFS || d.Name == DeviceEphemeral
	}
	return false
}

// AppendLabels appends the device's own labels to dst, in the order of their keys.
func (d *Device) AppendLabels(dst []Label) []Label {
	switch d.Kind {
	case DeviceInterface:
		return append(dst, Label{LabelInterface, d.Name})
	case DeviceAccelerator:
		return append(dst, Label{LabelAcceleratorID, d.Name}, Label{LabelMake, d.Make}, Label{LabelModel, d.Model})
	}
	if d.Claim != "" {
		dst = append(dst, Label{LabelClaim, d.Claim})
	}
	return append(dst, Label{LabelResourceID, d.Name})
}
