// Package resourceapi serves the present of the view as the Kubernetes resource metrics API: an aggregated API
// server for group metrics.k8s.io in versions v1 and v1beta1 (both types of k8s.io/metrics, alike but for the
// version; v1 is preferred), asked by kubectl top, the HPA, the VPA and schedulers.
//
// It is a generic API server of k8s.io/apiserver: discovery, OpenAPI, content negotiation, Table, selectors,
// delegated authentication and authorization, limits and deadlines come from there. What comes from here is the
// storage (storage.go) and an encoder of lists (encode.go): the generic way builds, converts and reflects over one
// object per pod, which is most of the cost of a request; ours writes JSON and protobuf from the view's values
// directly, the same bytes (encode_test.go compares), and leaves all other forms to the generic way.
//
// Other clusters than the gateway's own are served below /clusters/<c>/ in front of the same paths, authorised as
// non-resource URLs by the full path (clusters.go).
//
// Watch is an addition nobody else has: resource versions are sequences of ROLLUPS, alike on all gateways (watch.go).
//
// It keeps no state; after a crash it answers 503 until the view can answer again.
//
// Not here: the arithmetic of a pod's usage and what is too stale to be served (view), who may ask (auth), the
// metrics API on port 8082 (modelapi), custom and external metrics (customapi).
package resourceapi
