package simcluster

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// kubeVersion is what the simulated components say they are.
const kubeVersion = "v1.34.4"

// state is what a store keeps of an object: enough to build it whenever somebody asks.
type state interface {
	key() (namespace, name string)
	// meta is the object's metadata without resource version; the maps in it are shared and must not be changed.
	meta() metav1.ObjectMeta
	// build is the whole object, without resource version and kind; sub-objects are shared.
	build() object
	// field is the value of a field selector's path; false if there is no such field.
	field(path string) (string, bool)
	// labels are shared.
	labels() map[string]string
}

// object is what the API serves.
type object interface {
	runtime.Object
	metav1.Object
}

func at(ns int64) metav1.Time { return metav1.Unix(ns/1e9, 0) }

func ptr[T any](v T) *T { return &v }

func quantities(cpu, mem int64) corev1.ResourceList {
	if cpu == 0 && mem == 0 {
		return nil
	}
	l := corev1.ResourceList{}
	if cpu != 0 {
		l[corev1.ResourceCPU] = *resource.NewMilliQuantity(cpu, resource.DecimalSI)
	}
	if mem != 0 {
		l[corev1.ResourceMemory] = *resource.NewQuantity(mem, resource.BinarySI)
	}
	return l
}

// podSpec is the spec that all pods of the workload share.
func (w *workload) podSpec() *corev1.PodSpec {
	always := corev1.ContainerRestartPolicyAlways
	s := &corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
		ServiceAccountName: "default", DeprecatedServiceAccount: "default", HostNetwork: w.hostNet,
		TerminationGracePeriodSeconds: ptr(int64(30)), SecurityContext: &corev1.PodSecurityContext{},
		EnableServiceLinks: ptr(true), Priority: ptr(int32(0)),
		Tolerations: []corev1.Toleration{
			{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr(int64(300))},
			{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr(int64(300))},
		},
	}
	if w.kind == cronJob {
		s.RestartPolicy = corev1.RestartPolicyOnFailure
	}
	var mounts []corev1.VolumeMount
	volume := func(name, path string, src corev1.VolumeSource) {
		s.Volumes = append(s.Volumes, corev1.Volume{Name: name, VolumeSource: src})
		mounts = append(mounts, corev1.VolumeMount{Name: name, MountPath: path})
	}
	if w.claim {
		// The claim is the pod's own; pods put its name in (see podState.build).
		volume("data", "/data", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}})
	}
	if w.scratch {
		volume("scratch", "/scratch", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	}
	if w.kind != staticPod {
		volume(w.token, "/var/run/secrets/kubernetes.io/serviceaccount", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(420)),
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(3607))}}}}})
	}
	container := func(name, image string, res corev1.ResourceRequirements) corev1.Container {
		return corev1.Container{Name: name, Image: image, Resources: res, VolumeMounts: mounts, ImagePullPolicy: corev1.PullIfNotPresent,
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile}
	}
	if w.init {
		s.InitContainers = append(s.InitContainers, container("setup", w.containers[0].image, w.containers[0].resources()))
	}
	for i := range w.containers {
		t := &w.containers[i]
		c := container(t.name, t.image, t.resources())
		if t.sidecar {
			c.RestartPolicy = &always
			s.InitContainers = append(s.InitContainers, c)
		} else {
			s.Containers = append(s.Containers, c)
		}
	}
	return s
}

func (t *containerTemplate) resources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: quantities(t.cpuReq, t.memReq), Limits: quantities(t.cpuLim, t.memLim)}
}

func owner(apiVersion, kind, name string, uid string) []metav1.OwnerReference {
	return []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: name, UID: types.UID(uid), Controller: ptr(true), BlockOwnerDeletion: ptr(true)}}
}

// The identities of a workload's objects.
func (w *workload) uid() string        { return uidOf(mix(w.id, 20)) }
func (w *workload) setUID() string     { return uidOf(mix(w.id, 21)) } // of the ReplicaSet
func (w *workload) setName() string    { return w.name + "-" + w.hash }
func (j *jobRun) uid() string          { return uidOf(j.id) }
func (p *podState) key() (_, _ string) { return p.w.ns, p.name }

func (p *podState) labels() map[string]string {
	var extra []string
	switch p.w.kind {
	case statefulSet:
		extra = []string{"statefulset.kubernetes.io/pod-name", p.name, "apps.kubernetes.io/pod-index", p.name[len(p.w.name)+1:]}
	case cronJob:
		extra = []string{"batch.kubernetes.io/job-name", p.job.name, "job-name", p.job.name, "batch.kubernetes.io/controller-uid", p.job.uid()}
	default:
		return p.w.labels
	}
	l := make(map[string]string, len(p.w.labels)+len(extra)/2)
	for k, v := range p.w.labels {
		l[k] = v
	}
	for i := 0; i < len(extra); i += 2 {
		l[extra[i]] = extra[i+1]
	}
	return l
}

func (p *podState) field(path string) (string, bool) {
	switch path {
	case "spec.nodeName":
		return p.node.name, true
	case "status.phase":
		return string(p.phase()), true
	case "status.podIP":
		return p.ip.String(), true
	case "spec.restartPolicy":
		return string(p.w.spec.RestartPolicy), true
	case "spec.schedulerName":
		return p.w.spec.SchedulerName, true
	case "spec.serviceAccountName":
		return p.w.spec.ServiceAccountName, true
	case "spec.hostNetwork":
		return strconv.FormatBool(p.w.hostNet), true
	case "status.nominatedNodeName":
		return "", true
	}
	return "", false
}

func (p *podState) phase() corev1.PodPhase {
	if p.finished != 0 {
		return corev1.PodSucceeded
	}
	return corev1.PodRunning
}

func (p *podState) meta() metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: p.name, Namespace: p.w.ns, UID: types.UID(p.uid), CreationTimestamp: at(p.created), Labels: p.labels()}
	switch p.w.kind {
	case deployment:
		m.GenerateName = p.w.setName() + "-"
		m.OwnerReferences = owner("apps/v1", "ReplicaSet", p.w.setName(), p.w.setUID())
	case statefulSet:
		m.GenerateName = p.w.name + "-"
		m.OwnerReferences = owner("apps/v1", "StatefulSet", p.w.name, p.w.uid())
	case daemonSet:
		m.GenerateName = p.w.name + "-"
		m.OwnerReferences = owner("apps/v1", "DaemonSet", p.w.name, p.w.uid())
	case cronJob:
		m.GenerateName = p.job.name + "-"
		m.OwnerReferences = owner("batch/v1", "Job", p.job.name, p.job.uid())
	case staticPod:
		m.Annotations = map[string]string{"kubernetes.io/config.mirror": p.w.hash, "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": p.w.hash}
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: p.node.name, UID: types.UID(p.node.uid), Controller: ptr(true)}}
	}
	return m
}

// containerID is what a runtime would call this life of a container.
func containerID(id uint64) string {
	var b [32]byte
	for i := range 4 {
		h := mix(id, uint64(i))
		for j := range 8 {
			b[i*8+j] = byte(h >> (8 * j))
		}
	}
	return "containerd://" + hex.EncodeToString(b[:])
}

func imageID(image string) string {
	h := uint64(len(image))
	for i := range len(image) {
		h = h*1099511628211 ^ uint64(image[i])
	}
	return "sha256:" + containerID(h)[len("containerd://"):]
}

func (p *podState) build() object {
	pod := &corev1.Pod{ObjectMeta: p.meta(), Spec: *p.w.spec}
	pod.Spec.NodeName = p.node.name
	if p.w.claim {
		v := append([]corev1.Volume(nil), pod.Spec.Volumes...)
		v[0].PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-" + p.name}
		pod.Spec.Volumes = v
	}
	st := &pod.Status
	st.Phase, st.QOSClass = p.phase(), p.w.qos
	st.StartTime = ptr(at(p.started))
	st.HostIP, st.HostIPs = p.node.addr.String(), []corev1.HostIP{{IP: p.node.addr.String()}}
	st.PodIP, st.PodIPs = p.ip.String(), []corev1.PodIP{{IP: p.ip.String()}}
	ready, reason := corev1.ConditionTrue, ""
	if p.finished != 0 {
		ready, reason = corev1.ConditionFalse, "PodCompleted"
	}
	since := at(p.started + 2*int64(time.Second))
	st.Conditions = []corev1.PodCondition{
		{Type: corev1.PodReadyToStartContainers, Status: ready, LastTransitionTime: since},
		{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: at(p.started), Reason: reason},
		{Type: corev1.PodReady, Status: ready, LastTransitionTime: since, Reason: reason},
		{Type: corev1.ContainersReady, Status: ready, LastTransitionTime: since, Reason: reason},
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: at(p.created)},
	}
	if p.w.init {
		id := containerID(mix(p.id, 30))
		st.InitContainerStatuses = append(st.InitContainerStatuses, corev1.ContainerStatus{Name: "setup", Ready: true, Started: ptr(false),
			Image: p.w.containers[0].image, ImageID: imageID(p.w.containers[0].image), ContainerID: id,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: at(p.created), FinishedAt: at(p.started), ContainerID: id}}})
	}
	for i := range p.containers {
		c := &p.containers[i]
		cs := corev1.ContainerStatus{Name: c.t.name, Image: c.t.image, ImageID: imageID(c.t.image), ContainerID: containerID(c.id),
			RestartCount: c.restarts, Ready: p.finished == 0, Started: ptr(p.finished == 0)}
		if p.finished != 0 {
			cs.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: at(c.start), FinishedAt: at(p.finished), ContainerID: cs.ContainerID}
		} else {
			cs.State.Running = &corev1.ContainerStateRunning{StartedAt: at(c.start)}
		}
		if c.lastReason != "" {
			cs.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: c.lastReason, ExitCode: c.lastCode,
				StartedAt: at(c.lastStart), FinishedAt: at(c.lastEnd), ContainerID: containerID(mix(c.id, 31))}
		}
		if c.t.sidecar {
			st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
		} else {
			st.ContainerStatuses = append(st.ContainerStatuses, cs)
		}
	}
	return pod
}

// nodeEntry is a node as the API serves it.
type nodeEntry struct {
	n     *Node
	ready bool
	since int64 // when ready last changed
	port  int32 // of the kubelet
}

func (e *nodeEntry) key() (_, _ string) { return "", e.n.name }

func (e *nodeEntry) labels() map[string]string {
	return map[string]string{
		"kubernetes.io/hostname": e.n.name, "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
		"beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
		"topology.kubernetes.io/region": "sim-1", "topology.kubernetes.io/zone": "sim-1" + e.n.zone,
		"node.kubernetes.io/instance-type": "sim." + strconv.Itoa(e.n.cores),
	}
}

func (e *nodeEntry) field(path string) (string, bool) {
	if path == "spec.unschedulable" {
		return "false", true
	}
	return "", false
}

func (e *nodeEntry) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: e.n.name, UID: types.UID(e.n.uid), CreationTimestamp: at(e.n.created), Labels: e.labels(),
		Annotations: map[string]string{"node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true"}}
}

func (e *nodeEntry) build() object {
	capacity := func(memory int64) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewQuantity(int64(e.n.cores), resource.DecimalSI), corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
			corev1.ResourcePods: *resource.NewQuantity(110, resource.DecimalSI), corev1.ResourceEphemeralStorage: *resource.NewQuantity(e.n.disk, resource.BinarySI),
			"hugepages-2Mi": *resource.NewQuantity(0, resource.DecimalSI),
		}
	}
	beat := max(at(e.since).UnixNano(), e.n.created)
	machine, system, boot := e.n.machine()
	cond := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s, Reason: reason, Message: message, LastHeartbeatTime: at(beat), LastTransitionTime: at(e.since)}
	}
	ready := cond(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status")
	if !e.ready {
		ready = cond(corev1.NodeReady, corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status.")
	}
	return &corev1.Node{
		ObjectMeta: e.meta(),
		Spec:       corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.%d.%d.0/24", 128+e.n.index>>8&127, e.n.index&255), ProviderID: "sim://" + e.n.name},
		Status: corev1.NodeStatus{
			Capacity: capacity(e.n.memory), Allocatable: capacity(e.n.memory - 100*mi),
			Conditions: []corev1.NodeCondition{
				cond(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
				cond(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
				cond(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
				ready,
			},
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: e.n.addr.String()}, {Type: corev1.NodeHostName, Address: e.n.name}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: e.port}},
			NodeInfo: corev1.NodeSystemInfo{MachineID: machine, SystemUUID: system, BootID: boot,
				KernelVersion: "6.18.44", OSImage: "Debian GNU/Linux 12 (bookworm)", ContainerRuntimeVersion: "containerd://1.7.24",
				KubeletVersion: kubeVersion, OperatingSystem: "linux", Architecture: "amd64"},
		},
	}
}

// workloadEntry is a Deployment, StatefulSet, DaemonSet or CronJob as the API serves it.
type workloadEntry struct {
	w        *workload
	replicas int32
}

func (e *workloadEntry) key() (_, _ string) { return e.w.ns, e.w.name }
func (e *workloadEntry) labels() map[string]string {
	return map[string]string{"app": e.w.name, "app.kubernetes.io/name": e.w.name}
}
func (e *workloadEntry) field(string) (string, bool) { return "", false }
func (e *workloadEntry) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: e.w.name, Namespace: e.w.ns, UID: types.UID(e.w.uid()), CreationTimestamp: at(e.w.created), Labels: e.labels(), Generation: 1}
}

func (w *workload) template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: w.labels}, Spec: *w.spec}
}

func (w *workload) selector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": w.name}}
}

func (e *workloadEntry) build() object {
	n := e.replicas
	switch e.w.kind {
	case deployment:
		return &appsv1.Deployment{ObjectMeta: e.meta(), Spec: appsv1.DeploymentSpec{Replicas: &n, Selector: e.w.selector(), Template: e.w.template()},
			Status: appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}}
	case statefulSet:
		return &appsv1.StatefulSet{ObjectMeta: e.meta(), Spec: appsv1.StatefulSetSpec{Replicas: &n, Selector: e.w.selector(), Template: e.w.template(), ServiceName: e.w.name},
			Status: appsv1.StatefulSetStatus{ObservedGeneration: 1, Replicas: n, ReadyReplicas: n, AvailableReplicas: n}}
	case daemonSet:
		return &appsv1.DaemonSet{ObjectMeta: e.meta(), Spec: appsv1.DaemonSetSpec{Selector: e.w.selector(), Template: e.w.template()},
			Status: appsv1.DaemonSetStatus{CurrentNumberScheduled: n, DesiredNumberScheduled: n, NumberReady: n, NumberAvailable: n, UpdatedNumberScheduled: n}}
	default:
		return &batchv1.CronJob{ObjectMeta: e.meta(), Spec: batchv1.CronJobSpec{Schedule: "0 * * * *", ConcurrencyPolicy: batchv1.AllowConcurrent,
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: e.w.template()}}}}
	}
}

// replicaSetEntry is the ReplicaSet of a Deployment.
type replicaSetEntry workloadEntry

func (e *replicaSetEntry) key() (_, _ string)          { return e.w.ns, e.w.setName() }
func (e *replicaSetEntry) labels() map[string]string   { return e.w.labels }
func (e *replicaSetEntry) field(string) (string, bool) { return "", false }
func (e *replicaSetEntry) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: e.w.setName(), Namespace: e.w.ns, UID: types.UID(e.w.setUID()), CreationTimestamp: at(e.w.created), Labels: e.w.labels,
		Generation: 1, OwnerReferences: owner("apps/v1", "Deployment", e.w.name, e.w.uid())}
}
func (e *replicaSetEntry) build() object {
	n := e.replicas
	return &appsv1.ReplicaSet{ObjectMeta: e.meta(), Spec: appsv1.ReplicaSetSpec{Replicas: &n, Selector: e.w.selector(), Template: e.w.template()},
		Status: appsv1.ReplicaSetStatus{Replicas: n, ReadyReplicas: n, AvailableReplicas: n, FullyLabeledReplicas: n, ObservedGeneration: 1}}
}

// jobEntry is a Job as the API serves it.
type jobEntry struct {
	j        *jobRun
	finished int64
}

func (e *jobEntry) key() (_, _ string) { return e.j.w.ns, e.j.name }
func (e *jobEntry) labels() map[string]string {
	return map[string]string{"app": e.j.w.name, "batch.kubernetes.io/job-name": e.j.name}
}
func (e *jobEntry) field(path string) (string, bool) {
	if path == "status.successful" {
		return strconv.Itoa(int(e.status().Succeeded)), true
	}
	return "", false
}
func (e *jobEntry) status() batchv1.JobStatus {
	s := batchv1.JobStatus{StartTime: ptr(at(e.j.created)), Active: 1}
	if e.finished != 0 {
		s.Active, s.Succeeded, s.CompletionTime = 0, 1, ptr(at(e.finished))
		s.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue, LastTransitionTime: at(e.finished), LastProbeTime: at(e.finished)}}
	}
	return s
}
func (e *jobEntry) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: e.j.name, Namespace: e.j.w.ns, UID: types.UID(e.j.uid()), CreationTimestamp: at(e.j.created), Labels: e.labels(),
		OwnerReferences: owner("batch/v1", "CronJob", e.j.w.name, e.j.w.uid())}
}
func (e *jobEntry) build() object {
	return &batchv1.Job{ObjectMeta: e.meta(), Spec: batchv1.JobSpec{Template: e.j.w.template(), Completions: ptr(int32(1)), Parallelism: ptr(int32(1))}, Status: e.status()}
}

// fixed is an object kept whole.
type fixed struct{ obj object }

func (f fixed) key() (_, _ string)        { return f.obj.GetNamespace(), f.obj.GetName() }
func (f fixed) labels() map[string]string { return f.obj.GetLabels() }
func (f fixed) build() object             { return f.obj.DeepCopyObject().(object) }
func (f fixed) meta() metav1.ObjectMeta {
	switch o := f.obj.(type) {
	case *corev1.Pod:
		return o.ObjectMeta
	case *corev1.Node:
		return o.ObjectMeta
	case *corev1.Namespace:
		return o.ObjectMeta
	case *corev1.ConfigMap:
		return o.ObjectMeta
	case *corev1.Event:
		return o.ObjectMeta
	case *appsv1.ReplicaSet:
		return o.ObjectMeta
	case *appsv1.Deployment:
		return o.ObjectMeta
	case *appsv1.DaemonSet:
		return o.ObjectMeta
	}
	panic(fmt.Sprintf("simcluster: no metadata of %T", f.obj)) // a kind that this package never keeps
}

func (f fixed) field(path string) (string, bool) {
	switch o := f.obj.(type) {
	case *corev1.Pod:
		switch path {
		case "spec.nodeName":
			return o.Spec.NodeName, true
		case "status.phase":
			return string(o.Status.Phase), true
		case "status.podIP":
			return o.Status.PodIP, true
		case "spec.hostNetwork":
			return strconv.FormatBool(o.Spec.HostNetwork), true
		}
	case *corev1.Node:
		if path == "spec.unschedulable" {
			return strconv.FormatBool(o.Spec.Unschedulable), true
		}
	case *corev1.Namespace:
		if path == "status.phase" {
			return string(o.Status.Phase), true
		}
	case *corev1.Event:
		switch path {
		case "involvedObject.kind", "regarding.kind":
			return o.InvolvedObject.Kind, true
		case "involvedObject.name", "regarding.name":
			return o.InvolvedObject.Name, true
		case "involvedObject.namespace", "regarding.namespace":
			return o.InvolvedObject.Namespace, true
		case "involvedObject.uid", "regarding.uid":
			return string(o.InvolvedObject.UID), true
		case "involvedObject.fieldPath":
			return o.InvolvedObject.FieldPath, true
		case "reason":
			return o.Reason, true
		case "type":
			return o.Type, true
		case "source", "reportingComponent", "reportingController":
			return o.Source.Component, true
		}
	}
	return "", false
}

// eventView is a core/v1 event as events.k8s.io/v1 shows it.
func eventView(o object) object {
	e := o.(*corev1.Event)
	return &eventsv1.Event{ObjectMeta: e.ObjectMeta, EventTime: e.EventTime, ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
		Action: e.Action, Reason: e.Reason, Regarding: e.InvolvedObject, Note: e.Message, Type: e.Type,
		DeprecatedSource: e.Source, DeprecatedFirstTimestamp: e.FirstTimestamp, DeprecatedLastTimestamp: e.LastTimestamp, DeprecatedCount: e.Count}
}
