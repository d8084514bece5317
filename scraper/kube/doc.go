// Package kube reads the Kubernetes API server: where it is and who we are there ([Config]), single
// objects ([Client.Get]), and whole resources kept up to date by list and watch ([Client.Mirror]).
//
// It links client-go's REST client, reflector and kubeconfig loader with the core/v1 types and
// nothing else: the node role runs on every node of a cluster, so what is linked here is paid for
// there (the typed clientset alone costs 11 MB a node). A mirror keeps what its caller makes of each
// object, never the object, and asks for the initial state as a stream where the server can.
//
// What it holds is a copy of the API server's; after a crash it is read anew.
//
// Not here: what nodes, pods and owners mean to us (node, inventory), kubelets (kubelet).
package kube
