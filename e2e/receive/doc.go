// Package receive has tests of sinks against the code by which well-known stores receive, without the stores around it.
//
// Not here: stores as programs of this machine (e2e), receivers of our own making (beside each sink).
package receive
