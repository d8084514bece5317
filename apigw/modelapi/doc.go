// Package modelapi is the HTTP surface of Heapster on port 8082, byte for byte where clients look: the model API
// (/api/v1/model), the export of the newest values and its schema (/api/v1/metric-export, -schema), the resource metrics
// API as Heapster had it there (/apis/metrics/v1alpha1, /apis/metrics.k8s.io/v1alpha1) and in the versions that followed
// it, health, and /clusters/<c>/ in front of any of them for other clusters than the gateway's own. It routes the
// historical API to historyapi.
//
// What differs from Heapster, on purpose: every metric is there for the whole window, not two of them; lists are
// sorted; a node is found by its name and by its host name; where a metric is a fraction, floatValue stands beside
// the truncated value; a sample that did not advance is no new point. What the Metrics API serves is decided by the view,
// so that it agrees with the aggregated API server; its window is the resolution (Heapster: always a minute), its
// timestamp that of the sample, and a pod that nobody knows is 404 (Heapster: 500). Descriptions in the schema are ours.
//
// Every answer is bounded: what a client can name at once is limited, and errors repeat little of it. Large answers take
// turns (see answer), so that rollups get into the view meanwhile.
//
// It keeps no state.
//
// Not here: how Heapster's HTTP speaks (answer), who may ask (auth, the gateway's root), telemetry and profiles of the
// process (the root), the aggregated API server (resourceapi), what is remembered (view, window).
package modelapi
