package sinks

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Config is what an operator may choose.
type Config struct {
	Sinks      []string      // of rollups: each KEY or KEY:URL, see sink.ParseTarget
	EventSinks []string      // of Kubernetes events, likewise
	Clusters   []string      // whose; every registered cluster where empty
	Timeout    time.Duration // of one write, where a sink's own option does not say

	Labels proto.LabelConfig // how Kubernetes labels are written

	eventFlag string // the flag of EventSinks where it is not --event-sink
}

// DefaultConfig is no sink, every cluster, labels as Heapster wrote them.
func DefaultConfig() Config {
	return Config{Timeout: 20 * time.Second, Labels: proto.DefaultLabelConfig()}
}

// Flags registers the flags with their current values as defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.SinkFlags(fs)
	fs.StringSliceVar(&c.Clusters, "cluster", c.Clusters, "`cluster` to read; repeatable; every registered one if none is given")
	c.Labels.Flags(fs)
}

// SinkFlags registers the flags that no other service has.
func (c *Config) SinkFlags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.Sinks, "sink", c.Sinks, "where to write to: `KEY[:URL[?option=value&…]]`, such as influxdb:http://host:8086; repeatable")
	fs.StringArrayVar(&c.EventSinks, "event-sink", c.EventSinks, "where to write Kubernetes events to, in the same form; repeatable")
	c.timeoutFlag(fs)
}

// EventSinkFlags registers the same for a program that writes events alone, whose sinks have the flag --sink.
func (c *Config) EventSinkFlags(fs *pflag.FlagSet) {
	c.eventFlag = "--sink"
	fs.StringArrayVar(&c.EventSinks, "sink", c.EventSinks, "where to write events to: `KEY[:URL[?option=value&…]]`, such as log or influxdb:http://host:8086; repeatable")
	c.timeoutFlag(fs)
}

func (c *Config) timeoutFlag(fs *pflag.FlagSet) {
	fs.DurationVar(&c.Timeout, "sink_export_data_timeout", c.Timeout, "how long one write to a sink may take before it is tried again")
}

// Validate joins all complaints about the configuration, every option of every sink included. It reads
// the files that options name.
func (c *Config) Validate() error {
	var errs []error
	if _, err := c.parse(); err != nil {
		errs = append(errs, err)
	}
	for _, cluster := range c.Clusters {
		if err := bus.CheckCluster(cluster); err != nil {
			errs = append(errs, fmt.Errorf("--cluster: %w", err))
		}
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("--sink-export-data-timeout is %s; it must be positive", c.Timeout))
	}
	if err := c.Labels.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// configured is one sink of the configuration.
type configured struct {
	kind   sink.Kind
	target sink.Target
	events bool
}

// build is what makes the sink; nil where the gateway is it.
func (c *configured) build() func(sink.Target, sink.Deps) (sink.Sink, error) {
	if c.events {
		return c.kind.NewEvents
	}
	return c.kind.New
}

// name is the name of the sink. One of events to the same place as one of rollups is another: it has a lease, a
// pause and letters of its own.
func (c *configured) name() string {
	name := c.target.Name(c.kind)
	if c.events && !c.target.Named() {
		return "events-" + name
	}
	return name
}

// parse reads the sinks' values. Two with one name would share one place in the stream.
func (c *Config) parse() (all []configured, err error) {
	var errs []error
	named := map[string]bool{}
	read := func(flag, value string, events bool) error {
		t, err := sink.ParseTarget(value)
		if err != nil {
			return fmt.Errorf("%s: %w", flag, err)
		}
		k, err := kindOf(t.Key, events)
		if err != nil {
			return fmt.Errorf("%s %s: %w", flag, t, err)
		}
		one := configured{k, t, events}
		if err := one.try(); err != nil {
			return err
		}
		name := one.name()
		if named[name] && one.build() != nil {
			return fmt.Errorf("%s %s: there are two sinks of the name %q, so both would get half: add the option name=… to one", flag, t, name)
		}
		named[name] = true
		all = append(all, one)
		return nil
	}
	for _, value := range c.Sinks {
		errs = append(errs, read("--sink", value, false))
	}
	for _, value := range c.EventSinks {
		errs = append(errs, read(cmp.Or(c.eventFlag, "--event-sink"), value, true))
	}
	return all, errors.Join(errs...)
}

// try builds a sink to see whether its options are right, and throws it away: building opens nothing.
func (c *configured) try() error {
	if c.build() == nil {
		return c.target.Options().Done()
	}
	s, err := c.build()(c.target, sink.Deps{Cluster: "default", Labels: proto.DefaultLabelFormat(), Timeout: time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, since := c.target.Since()
	return errors.Join(since, bus.CheckName("sink", c.name()), s.Close())
}
