// Command healthcheck asks a URL and exits with 0 if the answer is 2xx. It goes into images FROM scratch
// whose program is not a daemon.Command and has no subcommand of that name: the NATS server's.
//
// Not here: how it asks (daemon).
package main

import "github.com/heapstream/heapstream/proto/daemon"

func main() { daemon.Main(daemon.Healthcheck()) }
