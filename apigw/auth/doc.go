// Package auth decides who is asking, and whether they may.
//
// Two doors need it. The aggregated API server leaves both questions to the cluster's own API server
// ([Delegated]): tokens by TokenReview, the front proxy by its request headers and certificate, clients by
// certificates of the cluster's CA, permission by SubjectAccessReview. The Heapster surface on port 8082 knows
// client certificates and a list of names ([ClientCerts]) and nothing else, as Heapster did.
//
// It knows client-go, and of k8s.io/apiserver the options that build authenticators and authorizers. Answers of
// the API server are cached in memory for their TTL; after a crash there is nothing to come back to.
//
// Not here: the servers themselves and their own certificates (resourceapi, the gateway's root).
package auth
