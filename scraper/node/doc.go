// Package node says what the API server knows of a node and its pods, and writes it into the
// batches of that node: capacity, labels, owners, requests and limits, phases, restarts.
//
// [Node] and [Pod] are the few fields we keep of the API's objects; [Index] holds the pods of each
// node. [Own] keeps them for one node (the node role: the Node by a GET every few minutes, its pods
// by a watch with a field selector or from the kubelet), [All] for a whole cluster (the central
// role: watches). [Enrich] is the same for both.
//
// All of it is a copy of what the API server has and is read anew after a crash; batches that are
// due before it is there go out without it.
//
// Not here: what only the whole cluster can tell (inventory), how the API server is reached (kube),
// what the kubelet measures (kubelet).
package node
