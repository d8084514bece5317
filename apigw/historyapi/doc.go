// Package historyapi is Heapster's historical API (/api/v1/historical on port 8082): the model API over a past that may
// be longer than the gateway's, with pods by UID, and with aggregations over time.
//
// It asks a [Source]: the gateway's own window, or the InfluxDB 1.x that a sink fills. The answers are the same where
// both have the points; what a source is not asked is decided here: parameters, names, how numbers are written.
//
// As in Heapster, start is mandatory, start and end are excluded (the model API includes them), and containers of a pod
// are listed from what is there now. Where the source does not know UIDs, a pod is found by what the cluster has now,
// from its start on. Every value that has a fraction stands beside its truncated one, as in the model API.
//
// InfluxDB is asked as a user who may do nothing but read, for the tags and fields that the sink writes unless told
// otherwise: what the sink filters out or renames is not found. pod_id is among them where the sink's option says so.
//
// It keeps no state but idle connections to InfluxDB.
//
// Not here: the transport (answer), what the window remembers (view, window), what is written to InfluxDB (the sink).
package historyapi
