// Package kubelet reads one kubelet: a [Client] fetches an answer, a [Decoder] puts that answer into
// the columns of a batch. What is asked for is a [Source]:
//
//	                               summary_api       kubernetes         resource_api
//	answer                         /stats/summary    see below          /metrics/resource
//	right on the kubelet           get nodes/stats   get nodes/metrics  get nodes/metrics
//	cpu: usage                     N P C S           N P C S            N P C
//	cpu: load                      -                 N P C S            -
//	memory: working set            N P C S           N P C S            N P C
//	memory: usage, rss, faults     N P C S           N P C S            -
//	memory: page cache             -                 N P C S            -
//	swap in use                    N P C S           N P C S            N P C
//	pressure: totals               N P C S           N P C S            -
//	pressure: averages             N P C S           -                  -
//	network: rx, tx                N P               N P S              -
//	  which interfaces             the default one   the sum of all     -
//	network: each interface        N P               N P S              -
//	disk: read, written            -                 N P C S            -
//	file systems                   N, P its volumes, N by device        -
//	                               C rootfs, logs
//	ephemeral storage              N P C             -                  -
//	processes                      N P               P                  -
//	start                          N P C S           N P C S            C
//	custom metrics, accelerators   C S               C S                -
//	label schedulable              -                 N                  -
//	system containers              kubelet, runtime, every cgroup that  none
//	                               pods, misc        is not a pod's
//	sample times                   whole seconds     milliseconds       milliseconds
//	says whose answer it is        by node name      by machine id      no: TLS alone does
//
// N node, P pod, C container, S system container; of a kubelet of today on cgroup v2 with the kernel's
// pressure information, less on others: what is missing is absent, never zero. The names of sources lack
// their prefix "kubernetes." here.
//
// Source `kubernetes` is two answers. POST /stats/container/, which Heapster read, exists before Kubernetes
// 1.18, by a flag before 1.21, and takes the right create on nodes/stats; it alone tells of free space on
// file systems and of custom metrics. Everywhere else it is GET /metrics/cadvisor. [Client.Read] finds out.
//
// The client speaks https with a bearer token or a client certificate, verifies the kubelet by a
// certificate authority or by its very certificate, and never sends a token over plain http. What
// goes wrong comes back as an [Error] with a [Reason] to count and a sentence that says what to do.
//
// The decoder walks an answer once and writes every field into its column; there is no struct and no
// label set in between (BenchmarkSummary and BenchmarkCAdvisor beside what they are compared with say
// what that saves). Of /metrics/cadvisor, which is ten times the summary's size, the client keeps only the
// lines of families that are read. A single value that is negative, too large or of the wrong type is left out and
// counted, everything else is kept, and so is the rest of a text of which a line is malformed; JSON that
// breaks off, and text that does not end with its line, cost the whole answer. usageNanoCores is never
// read: rates come from counters. An entity's group carries its own sample time, since one answer mixes
// samples up to 20 s apart; a line of text without a time has none, as the kubelet's samples are older
// than its answer and nothing says by how much.
//
// An exited container is reported beside the one that took its place, a pod that winds up beside its
// successor of the same name: the one that started last counts. The network of a pod is its sandbox's
// ("pause"), its cpu and memory are its cgroup's where there is one, else what its containers add up to,
// which is not done here. Which cgroup is which pod stands at the type cgroups.
//
// What is kept from one answer to the next is memory, connections, and how a kubelet is to be asked
// ([Memory]), which is found out anew after a crash.
//
// Not here: which nodes there are and where (node, inventory), what the API server says of a pod
// (node), when to ask and where the batch goes (scraper).
package kubelet
