// Package inventory publishes what only the API server knows of a whole cluster: the nodes that
// should report, the namespaces with UID and labels, and who owns the owners of live pods
// (ReplicaSet -> Deployment, Job -> CronJob).
//
// Each of the three travels whole, in parts, on its own subject: at most once per resolution when
// it has changed, and every five minutes. Nodes that are not ready are expected all the same: their
// kubelet may well answer. Of several processes only the holder of the lease publishes; the others
// keep their mirrors warm. Before it takes the lease a process registers the cluster with the UID of
// its kube-system namespace, and ends if the name belongs to another cluster.
//
// After a crash or a change of holder everything is read anew and published under a higher
// revision: revisions are times.
//
// Not here: events (events), the pods of a node (node), what readers make of an inventory
// (aggregator).
package inventory
