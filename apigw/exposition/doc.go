// Package exposition answers /metrics/cluster: what the cluster measures now, for a Prometheus to scrape.
//
// Names, units and labels are those of the sink prometheus (proto's mapping, heapstream metrics --world=prometheus),
// so that who changes from one to the other keeps the queries. It is OpenMetrics 1.0 for those who accept it, else
// Prometheus' text format. Set honor_labels: true and honor_timestamps: true (the default) at the scrape.
//
// Every sample bears the time at which it was measured: a scrape between two ticks brings the same samples again,
// which Prometheus drops. What has not advanced for max(2 x resolution, 45 s) is absent, nodes with all that is on them
// too; file systems and accelerators, which kubelets measure less often, for five minutes. A time has one value: what a
// kubelet changes without a new time is here once its time advances, as in the sink; so is a share of a request, a limit
// or what is allocatable that is edited meanwhile. What has no time of its own, sums above all, has that of the tick.
// Of samples with a time Prometheus notes no end when they are absent: instant queries find them for its lookback delta,
// 5 minutes, unless the scrape has track_timestamps_staleness: true (Prometheus 2.48). Values outside of the catalogue
// (custom metrics, extended resources) are not here, but in the sink.
//
// What is answered may be narrowed by parameters, each repeatable, all of which must fit:
//
//	level=node,pod             cluster, namespace, node, pod, container, system_container, workload
//	metric=cpu/*               globs on Heapster's name or on the whole Prometheus name
//	namespace=shop,team-*      globs on the namespace; what is in none is left out
//	node=n1                    globs on the node; what is on none is left out
//	extended=true              beside Heapster's metrics also those it did not have
//	rates=true                 rates and averages also of what has a counter
//	limit=N                    at most N series
//
// An answer of more than [MaxSeries], or limit, series is refused with 413 before anything is sent, and never cut:
// half of a cluster would look like a whole one. Several scrapes of parts, by node or namespace, are the way out.
// Large answers take turns with those of the other APIs on the port.
//
// Not here: paths of clusters and who may ask (modelapi, auth), what is there (view), numbers about ourselves
// (/metrics).
package exposition
