// Package proto is the agreement between the services: the nouns they exchange, the catalogue of
// metrics they speak, and the bytes that travel.
//
// A [Batch] is all that one kubelet said at one tick; the aggregator turns batches into [Rollup]s.
// Both hold a [Table]: rows for entities (node, pods, containers, …), rows for their devices
// (file systems, interfaces, …), and integer columns keyed by a [Field] of the catalogue. Columns
// stay columns from the kubelet decoder to the gateway's window, so that no stage builds a map per
// entity. Everything is an integer; [Table.Value] turns stored numbers into what Heapster's users
// see: rates, ratios and scaled values are computed there and nowhere else, so that the gateway
// and every sink agree to the last digit.
//
// [Encoder] and [Decoder] are the only place that knows the wire format (see encoding.go for its
// layout and evolution rule).
//
// Not here: how messages travel (proto/bus), when a tick is complete (aggregator/ticks), what a
// restarted counter means (aggregator/rate), and any text format (apigw, sinks).
package proto
