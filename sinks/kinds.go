package sinks

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteKinds writes a table of the sinks there are: the key in --sink and --event-sink, what they take, what delivery
// means there, and which
// options, beside the address, tell one destination from another and so make the name of a sink.
func WriteKinds(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SINK\tTAKES\tGUARANTEE\tNAMED BY")
	for _, key := range slices.Sorted(maps.Keys(kinds)) {
		k := kinds[key]
		guarantee, by := k.Guarantee.String(), strings.Join(append([]string{"address"}, k.Identity...), ", ")
		takes := "rollups"
		switch {
		case k.New == nil && k.NewEvents == nil:
			guarantee, by = "the gateway reads by itself", "-"
		case k.New == nil:
			takes = "events"
		case k.NewEvents != nil:
			takes = "rollups, events"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", key, takes, guarantee, by)
	}
	return w.Flush()
}
