// Package node says what the API server knows of a node and its pods, and writes it into the
// batches of that node: capacity, labels, owners, requests and limits, phases, restarts.
//
// [Node] and [Pod] are the few fields we keep of the API's objects. [Own] keeps them for one node (the node role: the Node by a GET every few minutes, its pods
// by a watch with a field selector or from the kubelet), [All] for a whole cluster (the central
// role: watches). [Enrich] is the same for both.
//
// # Which pod is which
//
// A pod of a batch is the API server's pod of that namespace and name if its UID is. The kubelet has
// a static pod under the hash of its manifest, which the API server's copy of it (the mirror pod)
// carries as an annotation; the batch gets the API server's UID. A pod with any other UID is a
// successor that the kubelet has not measured yet, or a predecessor that we have not seen go: nothing
// that is said of it holds for the samples at hand, which are flagged FlagNotInAPI and kept as they
// are (Heapster gave them their successor's UID and requests). A pod that the kubelet does not report
// has no row. A container of a reported pod that it does not report has one, flagged as a stub: what
// it asks for counts. Phases are told and not judged: a pod that has ended and is still reported keeps
// its requests, as it did in Heapster.
//
// # What is asked for
//
// A container's requests and limits are those in force: where a resize is under way, deferred or
// refused, what its kubelet has allocated and applied (status.containerStatuses) and not what the spec
// wishes. What is not given is 0. Native sidecars ask like containers. Init containers that are to
// finish ask for nothing, neither as stubs nor with samples: as Heapster and the HPA do we count what
// a pod asks for while it runs. Kubernetes' scheduler reserves the larger of both for good; where an init
// container asks for more than all that follow together, its sum is higher than ours. Ephemeral
// containers cannot ask and are never expected.
//
// A pod asks for the sum of its containers, which is the aggregator's to make, and Heapster's number.
// Two things that Heapster did not know make it another, and then the pod's own row says it: resources of
// the pod as a whole (spec.resources) stand in place of the sum, resource by resource, and the
// overhead of its runtime class (spec.overhead) comes on top, on limits only where there is one. That
// is how the scheduler and the pod's cgroup count both.
//
// All of it is a copy of what the API server has and is read anew after a crash; batches that are
// due before it is there go out without it.
//
// Not here: what only the whole cluster can tell (inventory), how the API server is reached (kube),
// what the kubelet measures (kubelet), sums (aggregator/rollup).
package node
