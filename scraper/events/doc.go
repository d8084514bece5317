// Package events publishes what happens in a cluster: every Kubernetes event that the API server tells
// of, a message on EVENTS for each of its states. The rule is: every event at least in its newest state,
// and none twice.
//
// Where it stands is known from EVENTS alone. Every message carries the resource version up to which all
// is out (proto.EventPosition); a process that starts, or takes the lease, reads the last message and
// watches from there. Each message is appended behind the last one that its writer knows, one at a time
// (bus.Conn.Append): who was overtaken, because he was frozen or his lease ran out, stores nothing, and
// reads again where things stand. In between, bookmarks of the watch move the position on.
//
// Where the API server no longer has what came after that position (410 Gone: etcd keeps changes for
// five minutes), all events are listed and those of a later version are published. A list comes in the
// order of names, so its messages repeat the position of before and say where they begin; one that was
// interrupted is taken up by reading back what is out since. States that came and went meanwhile are lost
// and counted as skipped: an event tells how often it was seen.
//
// The rules that follow, each a test:
//
//   - At the first start, when EVENTS has never held anything, all events that the API server still has
//     are published (it keeps them for an hour).
//   - Every update of an event, such as the next count of a series, is a message of its own. Deletions
//     are not events.
//   - A storm is published at no more than Config.Rate states a second on average. What waits, waits at
//     the API server: it ends a watch that does not keep up, which is then resumed, and what it has
//     forgotten by then is listed. So a storm costs updates, not events.
//   - An API server that was set back (its etcd was restored from a backup) is found out by its version
//     being lower than the position. Then, as where EVENTS holds nothing legible, events are listed and
//     compared one by one with all that EVENTS holds.
//   - Events larger than proto.MaxEventBytes lose annotations, labels, and the end of their texts.
//   - Managed fields and owners of events are not carried.
//
// Memory: nothing is kept while events are watched; to compare, at most compared states.
//
// After a crash nothing is lost or repeated, since an event is either in EVENTS or not.
//
// Not here: where events go (sinks), the inventory (inventory), reading the API server (kube).
package events
