// Package stackdriver writes rollups to Google Cloud Monitoring as the metrics of GKE.
//
//	stackdriver[:?use_new_resources=true&cluster_name=…&zone=…]
//
// use_old_resources (true) writes the model gke_container, use_new_resources (false) that of k8s_container, k8s_pod and
// k8s_node. On a machine of Google's `zone`, `cluster_location` (its location in the new model; the zone where there is
// none) and `cluster_name` are asked of the metadata server where they are not given; elsewhere give `zone`, or
// `cluster_location` for the new model alone. Project and credentials are found as package gcp says; `credentials`
// and `endpoint` choose others. min_interval_sec leaves out rollups that follow one of the same node sooner.
//
// Written are nodes, pods and containers whose counters have a start. Other than Heapster, allocatable memory and the
// capacity of ephemeral storage are not written as zero, and instance_id is the node's name where there is no host_id:
// else all nodes would be one.
//
// Guarantee: exactly once, by id: the API drops a point of a series and time it has already. Points that it refuses for
// good are told apart by its answer.
//
// Not here: authentication and the API (gcp), when to try again (worker), which samples there are (sink.View).
package stackdriver

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/gcp"
	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink stackdriver.
var Kind = sink.Kind{
	Key: "stackdriver", Title: "Stackdriver Sink", Guarantee: sink.OnceByID,
	Identity: []string{"credentials", "use_old_resources", "use_new_resources"}, New: New,
}

// cloud is Cloud Monitoring as seen by the worker of one cluster.
type cloud struct {
	enc      encoder
	api      *gcp.Monitoring
	log      *slog.Logger
	fallback string // name of the cluster where nobody tells another
	located  bool   // enc knows project, cluster and place
	interval time.Duration
	last     map[string]proto.Tick // of what was written, by node
}

// maxNodes bounds what is remembered for min_interval_sec.
const maxNodes = 1 << 16

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := &cloud{log: d.Log, fallback: d.Cluster, last: map[string]proto.Tick{}}
	if t.URL.Scheme != "" {
		o.Complain("Scheme should not be set for Stackdriver sink: its address is `endpoint`")
	}
	if t.URL.Host != "" {
		o.Complain("Host should not be set for Stackdriver sink: its address is `endpoint`")
	}
	s.enc = encoder{
		view: common.View, old: o.Bool("use_old_resources", true), new: o.Bool("use_new_resources", false),
		zone: o.String("zone", ""), location: o.String("cluster_location", ""),
	}
	if common.Named {
		s.enc.cluster = common.ClusterName
	}
	if !s.enc.old && !s.enc.new {
		o.Complain("use_old_resources and use_new_resources are both false: nothing would be written")
	}
	s.interval = time.Duration(o.Int("min_interval_sec", 0, 0)) * time.Second
	if o.Given("batch_export_timeout_sec") {
		o.Int("batch_export_timeout_sec", 60, 3)
		o.Warn("option `batch_export_timeout_sec` means nothing any more: a write is bounded by `timeout` and tried again for as long as it takes")
	}
	o.Meaningless("initial_delay_sec", "there is one writer, which waits for nobody")
	o.Meaningless("workers", "say concurrency=N to write N requests at once")
	s.api = gcp.New(o, d.Version)
	return o.Made(s, d.Log)
}

// Close drops idle connections.
func (s *cloud) Close() error {
	s.api.Close()
	return nil
}

// locate finds out what the options do not say. Its error is passing.
func (s *cloud) locate(ctx context.Context) (err error) {
	e := &s.enc
	if e.project, err = s.api.Project(ctx); err != nil {
		return err
	}
	if e.zone == "" && (e.old || e.location == "") {
		if e.new && e.location == "" {
			if e.location, err = gcp.Attribute(ctx, "cluster-location"); err != nil {
				return fmt.Errorf("find the cluster's location: give `cluster_location`, or `zone`: %w", err)
			}
		}
		if e.old || e.location == "" {
			if e.zone, err = gcp.Zone(ctx); err != nil {
				return fmt.Errorf("find the zone: give `zone`: %w", err)
			}
		}
	}
	e.location = cmp.Or(e.location, e.zone)
	if e.cluster == "" {
		if name, err := gcp.Attribute(ctx, "cluster-name"); err == nil {
			e.cluster = name
		} else {
			s.log.Info("name of the cluster is that on the bus", "cluster", s.fallback, "err", err)
		}
		e.cluster = cmp.Or(e.cluster, s.fallback)
	}
	s.located = true
	return nil
}

// Write writes a batch; see sink.Sink.
func (s *cloud) Write(ctx context.Context, batch []sink.Message) error {
	if !s.located {
		if err := s.locate(ctx); err != nil {
			return err
		}
	}
	s.enc.series.Reset()
	written := map[string]proto.Tick{}
	for i := range batch {
		r := batch[i].Rollup
		if s.interval > 0 {
			last, ok := written[r.Name]
			if !ok {
				last, ok = s.last[r.Name]
			}
			if since := r.Tick.Time().Sub(last.Time()); ok && since > 0 && since < s.interval {
				continue
			}
			written[r.Name] = r.Tick
		}
		s.enc.encode(r, i)
	}
	err := s.api.Write(ctx, &s.enc.series)
	if err == nil {
		if len(s.last) > maxNodes {
			clear(s.last)
		}
		for name, at := range written {
			s.last[name] = at
		}
	}
	return err
}
