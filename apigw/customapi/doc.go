// Package customapi serves the view as the custom and external metrics APIs of Kubernetes, so that an HPA can scale on
// every metric of the catalogue and on its recent past: groups custom.metrics.k8s.io (v1beta2, v1beta1) and
// external.metrics.k8s.io (v1beta1), on sigs.k8s.io/custom-metrics-apiserver, in the server of package resourceapi.
//
// # Names
//
// A metric is called as in the catalogue, with _ in place of /: cpu_usage_rate is cpu/usage_rate. Its number is the
// catalogue's: millicores, bytes, shares of 1, per second. Integers are exact, fractions to a thousandth. Alone, the
// name means the value at the newest tick. With a function and a span behind it, it means the last values:
//
//	cpu_usage_rate            now
//	cpu_usage_rate_avg_5m     the mean over the last 5 minutes
//	cpu_usage_rate_max_90s    the largest; min is the smallest
//	cpu_usage_rate_p95_15m    the 95th percentile; p1 to p99
//
// A span is a whole number of s, m or h, at least one resolution and at most what the gateway remembers (--window).
// It ends at the newest tick of the object. A sample that did not advance counts once, as in the model API. A
// percentile is a value that occurred (nearest rank, as InfluxDB's PERCENTILE). Cumulative counters have no functions:
// ask for their rate.
//
// # Custom metrics
//
// Of pods and nodes, by name or by the labels of the object; of a namespace; and of deployments.apps,
// statefulsets.apps, daemonsets.apps, replicasets.apps, replicationcontrollers, jobs.batch and cronjobs.batch, by name:
// these sum up their pods. A ReplicaSet or Job that belongs to a Deployment or CronJob is not there, its owner is.
// What is measured once for each file system, interface, disk or accelerator needs a metricLabelSelector that leaves
// one: resource_id=Volume-data. Labels of Kubernetes take letters, digits, dashes, dots and underscores; everything else
// in a device's name is a dash here, and the file system / is called root.
//
// # External metrics
//
// A series for each thing, which an HPA adds up. The label selector chooses; "type" says of what: cluster, namespace
// (the one of the path), workload, node, pod, container. Without it, the finest of the labels that are named decides:
// workload, node, pod, container; and if none is, the namespace. Workloads, pods and containers are those of the
// path's namespace: who may read external metrics in a namespace reads of it, and of nodes and the cluster.
//
// # Errors
//
// 404 with the nearest name for a metric that is not known, and where the object does not have it; 400 for a span out
// of bounds, a selector that selects by what is not there or leaves several devices, and for more than [maxSeries]
// external series; otherwise what the server says (401, 403, 429, 503 until the view can answer). Nothing selected is
// an empty list.
//
// It keeps no state. Not here: the server, who may ask (resourceapi, auth), what is remembered (window, view). Examples
// of HPA objects are in deploy/kubernetes/examples.
package customapi
