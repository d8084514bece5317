package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/daemon"
)

// metricsCommand prints what each metric is called: by Heapster, Prometheus and OpenTelemetry.
func metricsCommand() *daemon.Command {
	output, level, world := "table", "", ""
	return &daemon.Command{
		Name: "metrics", OneShot: true,
		Short: "Lists the metrics there are, with their names, units and labels for Heapster, Prometheus and OpenTelemetry.",
		Long: "A metric has a line for each level that has it. Rates and averages whose level has a counter that says the same\n" +
			"go to Prometheus and OpenTelemetry only if they are asked for (option rates=true of a sink); they are marked so.",
		Flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&output, "output", output, "`form`: table, json or markdown")
			fs.StringVar(&level, "level", level, "only of this `level`: cluster, namespace, node, pod, container, system_container or workload")
			fs.StringVar(&world, "world", world, "only the names of this `world`, with units and labels: heapster, prometheus or otel")
		},
		Validate: func() error {
			for _, check := range []struct {
				flag, value string
				known       []string
			}{{"output", output, []string{"table", "json", "markdown"}}, {"level", level, append(levelWords(), "")}, {"world", world, []string{"heapster", "prometheus", "otel", ""}}} {
				if err := oneOf(check.flag, check.value, check.known); err != nil {
					return err
				}
			}
			return nil
		},
		Run: func(_ context.Context, d daemon.Deps) error { return writeMetrics(d.Stdout, output, level, world) },
	}
}

func oneOf(flag, value string, known []string) error {
	for _, k := range known {
		if k == value {
			return nil
		}
	}
	said := strings.TrimSuffix(strings.Join(known, ", "), ", ")
	if near := daemon.Nearest(value, known); near != "" {
		return fmt.Errorf("--%s is %q: want one of %s (did you mean %q?)", flag, value, said, near)
	}
	return fmt.Errorf("--%s is %q: want one of %s", flag, value, said)
}

func levelWords() (all []string) {
	for k := proto.KindCluster; k <= proto.KindWorkload; k++ {
		all = append(all, k.LevelWord())
	}
	return all
}

// listed is a metric at a level, as it is printed.
type listed struct {
	Metric   string        `json:"metric"` // Heapster's name
	Level    string        `json:"level"`
	Type     string        `json:"type"`
	Unit     string        `json:"unit,omitempty"`
	Extended bool          `json:"extended"` // beyond Heapster
	Device   string        `json:"device,omitempty"`
	Help     string        `json:"help"`
	Worlds   []listedWorld `json:"names"`
	Without  string        `json:"without,omitempty"` // why there is no name in the worlds
}

// listedWorld is what it is in one world.
type listedWorld struct {
	World      string            `json:"world"`
	Name       string            `json:"name"`
	Instrument string            `json:"instrument"`
	Unit       string            `json:"unit,omitempty"`
	Value      string            `json:"value"` // how it is computed from x, Heapster's
	Labels     []string          `json:"labels"`
	Attributes map[string]string `json:"attributes,omitempty"`
	UnlessHas  string            `json:"unlessThereIs,omitempty"` // Heapster's name of the counter that goes out instead
	Help       string            `json:"help"`
}

var deviceWords = map[proto.DeviceKind]string{
	proto.DeviceFilesystem: "filesystem", proto.DeviceInterface: "interface", proto.DeviceDisk: "disk", proto.DeviceAccelerator: "accelerator",
}

// listMetrics are the lines, in the catalogue's order.
func listMetrics(level string) (all []listed) {
	metrics := proto.Metrics()
	for i := range metrics {
		m := &metrics[i]
		for k := proto.KindCluster; k <= proto.KindWorkload; k++ {
			if !m.Levels.Has(k) || level != "" && level != k.LevelWord() {
				continue
			}
			line := listed{
				Metric: m.Name, Level: k.LevelWord(), Type: m.Shape.String(), Unit: string(m.Unit), Extended: m.OursAt(k), Device: deviceWords[m.Device],
				Help: m.Help, Without: proto.Prometheus.Without(m.ID),
			}
			for _, w := range []proto.World{proto.Prometheus, proto.OTel} {
				if n := w.Naming(m.ID, k); n != nil {
					line.Worlds = append(line.Worlds, inWorld(n))
				}
			}
			all = append(all, line)
			volume := proto.Device{Kind: proto.DeviceFilesystem, Name: "Volume:x"}
			if m.Device != proto.DeviceFilesystem || k != proto.KindPod {
				continue
			}
			line.Worlds, line.Device = nil, "volume"
			for _, w := range []proto.World{proto.Prometheus, proto.OTel} {
				line.Worlds = append(line.Worlds, inWorld(w.DeviceNaming(m.ID, k, &volume)))
			}
			all = append(all, line)
		}
	}
	return all
}

func inWorld(n *proto.Naming) listedWorld {
	l := listedWorld{World: n.World.String(), Name: n.Name, Instrument: n.Instrument.String(), Unit: n.Unit, Value: n.Factor(), Help: n.Help}
	cluster := proto.PrometheusCluster
	if n.World == proto.OTel {
		cluster = proto.OTelCluster
	}
	l.Labels = append([]string{cluster}, n.LabelKeys()...)
	for _, a := range n.Attributes {
		if l.Attributes == nil {
			l.Attributes = map[string]string{}
		}
		l.Attributes[a.Key] = a.Value
	}
	if n.Instead != 0 {
		l.UnlessHas = proto.MetricByID(n.Instead).Name
	}
	return l
}

func writeMetrics(out io.Writer, output, level, world string) error {
	all := listMetrics(level)
	if output == "json" {
		if world != "" {
			for i := range all {
				kept := all[i].Worlds[:0]
				for _, w := range all[i].Worlds {
					if w.World == world {
						kept = append(kept, w)
					}
				}
				all[i].Worlds = kept
			}
		}
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(all)
	}
	rows := [][]string{}
	add := func(cells ...string) { rows = append(rows, cells) }
	switch world {
	case "":
		add("METRIC", "LEVEL", "PROMETHEUS", "OPENTELEMETRY")
	case "heapster":
		add("METRIC", "LEVEL", "TYPE", "UNIT", "OF", "BEYOND HEAPSTER", "WHAT")
	default:
		add("NAME", "LEVEL", "INSTRUMENT", "UNIT", "OF METRIC", "VALUE", "LABELS", "WHAT")
	}
	for _, l := range all {
		switch world {
		case "":
			names := []string{"-", "-"}
			for i, w := range l.Worlds {
				if names[i] = w.Name + attributesOf(w); w.UnlessHas != "" {
					names[i] += " (if asked for)"
				}
			}
			if l.Without != "" {
				names[0], names[1] = "- ("+l.Without+")", "-"
			}
			add(l.Metric, l.Level, names[0], names[1])
		case "heapster":
			ours := ""
			if l.Extended {
				ours = "yes"
			}
			if l.Device != "volume" {
				add(l.Metric, l.Level, l.Type, l.Unit, l.Device, ours, l.Help)
			}
		default:
			for _, w := range l.Worlds {
				if w.World != world {
					continue
				}
				of := l.Metric
				if w.UnlessHas != "" {
					of += " (if asked for)"
				}
				add(w.Name+attributesOf(w), l.Level, w.Instrument, w.Unit, of, w.Value, strings.Join(plainLabels(w), ","), w.Help)
			}
		}
	}
	if output == "markdown" {
		return writeMarkdown(out, rows)
	}
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(r, "\t"), "\t "))
	}
	return tw.Flush()
}

// plainLabels are the labels without those whose value is always the same.
func plainLabels(w listedWorld) (keys []string) {
	for _, k := range w.Labels {
		if _, constant := w.Attributes[k]; !constant {
			keys = append(keys, k)
		}
	}
	return keys
}

func attributesOf(w listedWorld) string {
	for k, v := range w.Attributes { // at most one
		return "{" + k + "=" + v + "}"
	}
	return ""
}

func writeMarkdown(out io.Writer, rows [][]string) error {
	for i, r := range rows {
		if _, err := fmt.Fprintf(out, "| %s |\n", strings.Join(r, " | ")); err != nil {
			return err
		}
		if i == 0 {
			if _, err := fmt.Fprintf(out, "|%s\n", strings.Repeat("---|", len(r))); err != nil {
				return err
			}
		}
	}
	return nil
}
