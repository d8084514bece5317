// Package modelapi is the HTTP surface of Heapster on port 8082, byte for byte where clients look: the model API
// (/api/v1/model), the export of the newest values (/api/v1/metric-export), health, and /clusters/<c>/ in front of any of
// them for other clusters than the gateway's own.
//
// What differs from Heapster, on purpose: every metric is there for the whole window, not two of them; lists are
// sorted; a node is found by its name and by its host name; where a metric is a fraction, floatValue stands beside
// the truncated value; a sample that did not advance is no new point.
//
// It keeps no state.
//
// Not here: who may ask (auth, the gateway's root), the resource metrics API for kubectl and the HPA (resourceapi),
// what is remembered (view, window).
package modelapi
