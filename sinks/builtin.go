package sinks

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto/daemon"
	"github.com/heapstream/heapstream/sinks/elasticsearch"
	"github.com/heapstream/heapstream/sinks/gcl"
	"github.com/heapstream/heapstream/sinks/gcm"
	"github.com/heapstream/heapstream/sinks/graphite"
	"github.com/heapstream/heapstream/sinks/hawkular"
	"github.com/heapstream/heapstream/sinks/honeycomb"
	"github.com/heapstream/heapstream/sinks/influxdb"
	"github.com/heapstream/heapstream/sinks/kafka"
	"github.com/heapstream/heapstream/sinks/librato"
	"github.com/heapstream/heapstream/sinks/log"
	"github.com/heapstream/heapstream/sinks/nats"
	"github.com/heapstream/heapstream/sinks/opentsdb"
	"github.com/heapstream/heapstream/sinks/otlp"
	"github.com/heapstream/heapstream/sinks/prometheus"
	"github.com/heapstream/heapstream/sinks/riemann"
	"github.com/heapstream/heapstream/sinks/s3"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/stackdriver"
	"github.com/heapstream/heapstream/sinks/statsd"
	"github.com/heapstream/heapstream/sinks/wavefront"
)

// kinds are the sinks there are, by key.
var kinds = map[string]sink.Kind{
	"elasticsearch": elasticsearch.Kind,
	"gcl":           gcl.Kind,
	"gcm":           gcm.Kind,
	"graphite":      graphite.Kind,
	"hawkular":      hawkular.Kind,
	"honeycomb":     honeycomb.Kind,
	"influxdb":      influxdb.Kind,
	"kafka":         kafka.Kind,
	"librato":       librato.Kind,
	"log":           log.Kind,
	"nats":          nats.Kind,
	"opentsdb":      opentsdb.Kind,
	"prometheus":    prometheus.Kind,
	"otlp":          otlp.Kind,
	"riemann":       riemann.Kind,
	"s3":            s3.Kind,
	"stackdriver":   stackdriver.Kind,
	"statsd":        statsd.Kind,
	"wavefront":     wavefront.Kind,
	// Heapster's name for its own memory: the gateway is always there, and reads by itself.
	"metric": {Key: "metric", Title: "Metric Sink"},
}

// kindOf is the sink of rollups, or of events, of a key, or an error that says which ones there are.
func kindOf(key string, events bool) (sink.Kind, error) {
	known := keys(events)
	switch k, ok := kinds[key]; {
	case slices.Contains(known, key):
		return k, nil
	case ok && events:
		return sink.Kind{}, fmt.Errorf("sink %q takes no events: those that do are %s", key, strings.Join(known, ", "))
	case ok:
		return sink.Kind{}, fmt.Errorf("sink %q takes events only: give it to --event-sink", key)
	}
	if near := daemon.Nearest(key, known); near != "" {
		return sink.Kind{}, fmt.Errorf("sink not recognized: %q (did you mean %q?)", key, near)
	}
	return sink.Kind{}, fmt.Errorf("sink not recognized: %q; known are %s", key, strings.Join(known, ", "))
}

// keys are the sinks that take rollups, or events.
func keys(events bool) (all []string) {
	for _, key := range slices.Sorted(maps.Keys(kinds)) {
		if k := kinds[key]; events && k.NewEvents != nil || !events && (k.New != nil || k.NewEvents == nil) {
			all = append(all, key)
		}
	}
	return all
}
