// Package kubelet reads one kubelet: a [Client] fetches its answer, a [Decoder] puts that answer
// into the columns of a batch.
//
// The client speaks https with a bearer token or a client certificate, verifies the kubelet by a
// certificate authority or by its very certificate, and never sends a token over plain http. What
// goes wrong comes back as an [Error] with a [Reason] to count and a sentence that says what to do.
//
// The decoder walks the JSON of /stats/summary once and writes every field into its column; there
// is no struct in between (see BenchmarkSummary for what that saves). A single value that is
// negative, too large or of the wrong type is left out and counted, everything else is kept; JSON
// that breaks off costs the whole answer. usageNanoCores is never read: rates come from counters.
// An entity's group carries its own sample time, since one answer mixes samples up to 20 s apart.
//
// Nothing here is kept from one answer to the next but memory and connections, so there is nothing
// to come back to after a crash.
//
// Not here: which nodes there are and where (node, inventory), what the API server says of a pod
// (node), when to ask and where the batch goes (scraper).
package kubelet
