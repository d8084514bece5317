package sinks

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteKinds writes a table of the sinks there are: the key in --sink, what delivery means there, and which
// options, beside the address, tell one destination from another and so make the name of a sink.
func WriteKinds(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SINK\tGUARANTEE\tNAMED BY")
	for _, key := range slices.Sorted(maps.Keys(kinds)) {
		k := kinds[key]
		guarantee, by := k.Guarantee.String(), strings.Join(append([]string{"address"}, k.Identity...), ", ")
		if k.New == nil {
			guarantee, by = "the gateway reads by itself", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", key, guarantee, by)
	}
	return w.Flush()
}
