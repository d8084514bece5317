// Package view is the one read model of one or several clusters, filled from ROLLUPS: what the APIs of
// the gateway answer from.
//
// Of every cluster it holds two things. The present: for every node and pod the resource metrics that
// are served now, computed once when the node's rollup arrives and swapped in as immutable values, so
// that a list costs no more than a walk. And the past: every metric of every entity for the last
// minutes, packed (package window).
//
// It keeps nothing on disk. After a crash, or on any other replica, it comes back from ROLLUPS alone:
// first the last rollup of each node and namespace (then it is ready; an empty cluster is, too), then
// the window from its beginning, behind what is already served, then what comes live. Messages that
// come twice or late change nothing.
//
// Not here: rates and sums (the aggregator made them), how the past is packed (window), the dialects
// in which all this is asked for (modelapi, resourceapi).
package view
