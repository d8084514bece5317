// Package wavefront writes rollups to a Wavefront proxy, in Wavefront's data format over TCP.
//
//	wavefront:host:port[?clusterName=…&prefix=heapster.]
//
// The address may have a scheme in front, as Heapster's could not: http:// or tcp:// for TCP, tls:// or https:// for
// TLS. includeLabels=true writes Kubernetes labels as tags label.<key>; includeContainers=false leaves containers
// out; testMode=true writes nothing. Containers whose name has "system.slice/" in it are left out, as in
// Heapster. Tags are sorted, quotes within values are escaped, and what Wavefront does not take in a key becomes "_".
//
// Guarantee: exactly once, by overwriting: a series has one value at one time. The proxy never answers, so a batch
// goes over a connection of its own and counts as written when the proxy has read it to the end (package tcp);
// confirm=false for something that does not end connections. The proxy never says that it fails or that it
// refuses a line, so nothing goes to DEAD. The proxy knows no login: it has the token.
//
// Not here: when to try again (worker), which samples there are (sink.View).
package wavefront

import (
	"context"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/tcp"
)

// Kind is the sink wavefront.
var Kind = sink.Kind{Key: "wavefront", Title: "Wavefront Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"clusterName", "prefix"}, New: New}

// proxy is one Wavefront proxy as seen by the worker of one cluster.
type proxy struct {
	enc  encoder
	peer tcp.Peer
	test bool
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	cluster := "k8s-cluster"
	if common.Named {
		cluster = common.ClusterName
	}
	s := &proxy{test: o.Bool("testMode", false)}
	s.enc = encoder{
		view: common.View, cluster: o.String("clusterName", cluster), prefix: o.String("prefix", "heapster."),
		labels: o.Bool("includeLabels", false), containers: o.Bool("includeContainers", true),
	}
	if s.enc.view.Labels.Separator == "" {
		s.enc.view.Labels.Separator = proto.DefaultLabelFormat().Separator
	}
	s.peer = tcp.Peer{Address: t.Host("2878"), Confirm: o.Bool("confirm", true)}
	s.peer.Who = "the Wavefront proxy at " + s.peer.Address
	if s.peer.Address == "" && !s.test {
		o.Complain("its address is missing: want wavefront:host:port")
	}
	config := o.TLS()
	if scheme := t.URL.Scheme; t.URL.Host != "" && (scheme == "tls" || scheme == "https") {
		s.peer.TLS = config
	}
	if s.test {
		o.Warn("testMode is given: nothing is written")
	}
	return o.Made(s, d.Log)
}

// Close does nothing: no connection outlives a Write.
func (s *proxy) Close() error { return nil }

// Write writes a batch; see sink.Sink.
func (s *proxy) Write(ctx context.Context, batch []sink.Message) error {
	s.enc.reset()
	for i := range batch {
		s.enc.encode(batch[i].Rollup)
	}
	if s.enc.lines == 0 || s.test {
		return nil
	}
	return s.peer.Deliver(ctx, s.enc.text)
}
