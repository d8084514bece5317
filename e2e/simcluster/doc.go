// Package simcluster is a made-up Kubernetes cluster of any size, grown from a seed: an API server that client-go and a
// stock kubectl take for a real one, one kubelet per node, and a workload whose statistics move like real ones.
//
// # The API server
//
// Plain http (no questions asked, like the insecure port of old) and https (a CA made at start, bearer tokens). It serves
// nodes, pods, namespaces, events (core/v1 and events.k8s.io/v1), configmaps and the owners of pods (deployments,
// replicasets, daemonsets, statefulsets, jobs, cronjobs) with get, list and watch: resource versions, limit and continue,
// bookmarks, streaming lists (sendInitialEvents), field and label selectors, 410 Gone, JSON and protobuf, whole objects,
// their metadata only, or tables for kubectl. It answers TokenReview, SubjectAccessReview and SelfSubjectAccessReview, hands metrics.k8s.io,
// custom.metrics.k8s.io and external.metrics.k8s.io to a gateway as the aggregation layer does (front-proxy client
// certificate, X-Remote-User and its kin), and proxies kubelets (nodes/NAME/proxy) and Heapster's service.
//
// # The kubelets
//
// Each node has its own loopback address (127.16.0.1 and up) on one pair of ports: TLS with token, and plain without. One
// listener per port serves them all and tells nodes apart by the address that was dialled; where that listener cannot be
// had, each node listens for itself. Where own loopback addresses cannot be had at all, or Config.SharedAddress says so,
// all nodes share one address and each has its own port, published in status.daemonEndpoints; that port speaks TLS (with
// token) and plain http (without) alike.
//
// Paths: /stats/summary (also with a slash behind, also ?only_cpu_and_memory=true), /metrics/resource, /metrics/cadvisor,
// /pods, /healthz; those made old also answer POST /stats/container/, cAdvisor's dump of every cgroup. Whatever way of
// failing is asked for holds for all of them.
//
// # The statistics
//
// Every value is a pure function of seed, entity, its start time and the moment of the sample. Counters never fall while
// their entity lives; a restarted container starts again from zero under a new start time, and its pod's counter goes on.
// Every container, pod and node renews its sample each 10 to 20 s at its own phase, so two scrapes can see the same one.
// With Config.Recorded, node-0 replays a real kubelet's answers (five rounds, 80 s a loop) with their times moved to now.
//
// # Trouble on demand
//
// Methods (Fail, RestartContainer, ReplacePod, AddNode, …) and the same from outside, on the API server's plain port and,
// with the administrator's token, on its https port:
//
//	curl -X POST 'http://ADDR/sim/fail?node=node-3&mode=hang'            modes: see FailureMode; mode=none heals
//	curl -X POST 'http://ADDR/sim/fail?node=node-3&mode=slow&delay=3s'
//	curl -X POST 'http://ADDR/sim/restart?pod=NAMESPACE/NAME&container=C&reason=OOMKilled'
//	curl -X POST 'http://ADDR/sim/replace?pod=NAMESPACE/NAME'            a pod goes, another of its owner comes
//	curl -X POST 'http://ADDR/sim/delete?pod=NAMESPACE/NAME'
//	curl -X POST 'http://ADDR/sim/nodes/add'                             answers with the new node's name
//	curl -X POST 'http://ADDR/sim/nodes/remove?node=node-3'
//	curl -X POST 'http://ADDR/sim/nodes/ready?node=node-3&ready=false'
//	curl -X POST 'http://ADDR/sim/nodes/kubelet?node=node-3&old=true'    one of before Kubernetes 1.18, or back to one of today
//	curl -X POST 'http://ADDR/sim/churn?n=10'                            ten random changes at once
//	curl -X POST 'http://ADDR/sim/events?n=10'                           ten events; with event=NAMESPACE/NAME, that one ten times more
//	curl -X POST 'http://ADDR/sim/forget'                                compaction: watches from before are answered with 410 Gone
//	curl -X POST 'http://ADDR/sim/api/restart?away=3s'                   the API server: connections cut, changes forgotten, no answer for 3 s
//	curl -X POST 'http://ADDR/sim/gateway?url=https://127.0.0.1:6443'    where metrics.k8s.io is answered
//	curl -X POST 'http://ADDR/sim/model?url=http://127.0.0.1:8082'       where Heapster's service is answered
//	curl 'http://ADDR/sim/status'                                        counts, failures, what was scraped
//
// # After a crash
//
// Nothing is kept on disk. The same seed on the same day (see Config.Epoch) grows the same cluster again, with resource
// versions above the old ones as long as it changed less than a thousand times a second; watches from before are answered
// with 410 Gone and relist.
//
// Not here: the pipeline that reads all this (scraper, aggregator), a scheduler or controllers (pods are where the seed put
// them), writing objects through the API.
package simcluster
