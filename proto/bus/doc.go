// Package bus is how messages travel: the one room that knows nats.go.
//
// topology.go is the map of the system: every stream, subject, bucket and
// durable, and every limit with its reason. Around it: Connect; Publisher, which
// has every message acknowledged by its stream or says why not; Replay, which
// reads a stream from a position and goes on live; Durable, which delivers in
// order to one worker at a time and is acknowledged; Hold, a lease; TakeLanes,
// the right to write a cluster's ROLLUPS and the fence around it; Register and
// Clusters, the bucket of known clusters; Dead, the place for what nobody could
// use; Apply and Check, which make the streams and say what differs; Permissions,
// the least that a bus user of each role must be allowed.
//
// State lives on the bus, not here: after a crash a Replay continues from the
// position its caller knows, a Durable from its last acknowledgement, a lease
// comes free after LeaseTTL, and an owner that wakes up late is refused by the
// epochs of its successor.
//
// Payloads are bytes to this package; the names in subjects are plain strings.
// Everything that waits, waits until its context ends; while the bus is away,
// calls wait rather than fail, and the log says so once per reason. What the bus
// user is not permitted fails at once with ErrNotPermitted, and is logged once per
// kind of subject.
//
// Not here: what messages mean (package proto), who owns which cluster
// (aggregator/ownership), when a sink tries again (sinks/worker), a server in
// this process (bus/embedded), servers for tests (bus/bustest).
package bus
