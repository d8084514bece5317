package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Topology is what an operator may choose about the streams. The zero value of a
// field means its default to Apply and "whatever it is" to Check.
type Topology struct {
	Cluster  string // whose SAMPLES, ROLLUPS and EVENTS; only what all clusters share where empty
	Replicas int    // copies of every stream and bucket, 1 to 5; default 1
	Memory   bool   // keep everything in the servers' memory: gone when they stop

	SamplesAge, RollupsAge, EventsAge, DeadAge         time.Duration // how long messages are kept
	SamplesBytes, RollupsBytes, EventsBytes, DeadBytes int64         // and how many bytes at most

	// What the size of ROLLUPS is estimated from; no estimate while Nodes is 0.
	Nodes      int
	Resolution time.Duration
	NodeBytes  int64 // of one node's rollup, compressed; default DefaultNodeBytes

	// FromDomain, where set, makes ROLLUPS and EVENTS mirrors of the streams of
	// that JetStream domain, with the same sequences, and hs-clusters follow what
	// is registered there of this cluster: a hub's view of an edge. SAMPLES stay
	// at the edge.
	FromDomain string
}

// Defaults of Topology. The server reserves MaxBytes of every stream against its
// store limit, so they add up: Reserved.
const (
	DefaultReplicas     = 1
	DefaultSamplesBytes = 4 << 30 // 5,000 nodes at 15 s for 8 min; a small cluster never fills it
	DefaultRollupsBytes = 8 << 30
	DefaultEventsBytes  = 512 << 20
	DefaultDeadBytes    = 256 << 20

	// DefaultNodeBytes is a rollup of 30 pods of two containers, compressed, with
	// its share of namespaces and totals.
	DefaultNodeBytes = 24 << 10

	leasesBytes   = 16 << 20
	clustersBytes = 4 << 20
)

// WithDefaults fills what is zero.
func (t Topology) WithDefaults() Topology {
	t.Replicas = cmp.Or(t.Replicas, DefaultReplicas)
	t.SamplesAge = cmp.Or(t.SamplesAge, DefaultSamplesAge)
	t.RollupsAge = cmp.Or(t.RollupsAge, DefaultRollupsAge)
	t.EventsAge = cmp.Or(t.EventsAge, DefaultEventsAge)
	t.DeadAge = cmp.Or(t.DeadAge, DefaultDeadAge)
	t.SamplesBytes = cmp.Or(t.SamplesBytes, DefaultSamplesBytes)
	t.RollupsBytes = cmp.Or(t.RollupsBytes, DefaultRollupsBytes)
	t.EventsBytes = cmp.Or(t.EventsBytes, DefaultEventsBytes)
	t.DeadBytes = cmp.Or(t.DeadBytes, DefaultDeadBytes)
	t.NodeBytes = cmp.Or(t.NodeBytes, DefaultNodeBytes)
	return t
}

// Reserved is what the server sets aside for these streams and buckets, in
// bytes: its store limit must be at least the sum over the clusters.
func (t Topology) Reserved() int64 {
	t = t.WithDefaults()
	n := t.DeadBytes + leasesBytes + clustersBytes
	if t.Cluster != "" {
		n += t.RollupsBytes + t.EventsBytes
		if t.FromDomain == "" {
			n += t.SamplesBytes
		}
	}
	return n
}

// Estimate is what ROLLUPS is expected to take, and for how long it will hold.
type Estimate struct {
	PerHour int64         // bytes
	Bytes   int64         // for RollupsAge, if there is room
	Holds   time.Duration // RollupsAge, or less where RollupsBytes is the limit
}

// Estimate is zero where Nodes or Resolution is.
func (t Topology) Estimate() Estimate {
	t = t.WithDefaults()
	if t.Nodes <= 0 || t.Resolution <= 0 {
		return Estimate{}
	}
	perSecond := float64(t.Nodes) * float64(t.NodeBytes) / t.Resolution.Seconds()
	e := Estimate{PerHour: int64(perSecond * 3600), Bytes: int64(perSecond * t.RollupsAge.Seconds()), Holds: t.RollupsAge}
	if full := time.Duration(float64(t.RollupsBytes) / perSecond * float64(time.Second)); full < e.Holds {
		e.Holds = full.Round(time.Second)
	}
	return e
}

// String says it for the log of a start-up.
func (e Estimate) String() string {
	if e == (Estimate{}) {
		return "unknown"
	}
	return fmt.Sprintf("%s for %s (%s an hour)", bytesText(e.Bytes), e.Holds, bytesText(e.PerHour))
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	default:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
}

// Validate joins all complaints; among them a ROLLUPS that would hold less than
// MinRollupsAge.
func (t Topology) Validate() error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if t.Cluster != "" {
		if err := CheckCluster(t.Cluster); err != nil {
			errs = append(errs, err)
		}
	}
	if t.FromDomain != "" && !plainToken(t.FromDomain) {
		complain("domain %q: letters, digits, - and _ only", t.FromDomain)
	}
	if t.Replicas < 0 || t.Replicas > 5 {
		complain("%d replicas: want 1 to 5", t.Replicas)
	}
	if t.Nodes < 0 || t.Resolution < 0 || t.NodeBytes < 0 {
		complain("nodes, resolution and bytes per node cannot be negative")
	}
	for _, a := range []struct {
		what  string
		age   time.Duration
		least time.Duration
	}{{"SAMPLES", t.SamplesAge, SamplesDedupe}, {"ROLLUPS", t.RollupsAge, MinRollupsAge}, {"EVENTS", t.EventsAge, EventsDedupe}, {"DEAD", t.DeadAge, DeadDedupe}} {
		if a.age != 0 && a.age < a.least {
			complain("%s kept for %s: want at least %s", a.what, a.age, a.least)
		}
	}
	for _, b := range []struct {
		what  string
		bytes int64
	}{{"SAMPLES", t.SamplesBytes}, {"ROLLUPS", t.RollupsBytes}, {"EVENTS", t.EventsBytes}, {"DEAD", t.DeadBytes}} {
		if b.bytes != 0 && b.bytes < 2*MaxPayload {
			complain("%s of %d bytes: want at least %d, two of the largest messages", b.what, b.bytes, 2*MaxPayload)
		}
	}
	if e := t.Estimate(); len(errs) == 0 && e.Holds > 0 && e.Holds < MinRollupsAge {
		complain("ROLLUPS of cluster %q would hold %s at %s an hour (%d nodes, resolution %s): give it at least %s for %s, or a longer resolution",
			t.Cluster, e.Holds, bytesText(e.PerHour), t.Nodes, t.Resolution, bytesText(e.PerHour/3), MinRollupsAge)
	}
	return errors.Join(errs...)
}

// streams are the streams and buckets of a topology that has its defaults.
func (t Topology) streams() []jetstream.StreamConfig {
	make1 := func(name, about string, age time.Duration, size int64, dedupe time.Duration, subjects ...string) jetstream.StreamConfig {
		storage := jetstream.FileStorage
		if t.Memory {
			storage = jetstream.MemoryStorage
		}
		return jetstream.StreamConfig{Name: name, Description: about, Subjects: subjects, MaxAge: age, MaxBytes: size, Duplicates: dedupe,
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: storage, Compression: jetstream.NoCompression,
			MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxConsumers: -1, MaxMsgSize: MaxPayload, Replicas: t.Replicas, AllowDirect: true}
	}
	bucket := func(name, about string, ttl time.Duration, size int64) jetstream.StreamConfig {
		s := make1(bucketStream(name), about, ttl, size, 2*time.Minute, bucketSubject(name, ">"))
		s.MaxMsgsPerSubject, s.MaxMsgSize = 1, 64<<10
		s.Discard, s.AllowRollup, s.DenyDelete = jetstream.DiscardNew, true, true // as `nats kv` expects of a bucket
		if ttl > 0 {
			s.Duplicates = min(s.Duplicates, ttl)
			s.AllowMsgTTL, s.SubjectDeleteMarkerTTL = true, time.Minute // watchers are told of an end; the least the server takes is 1 s
		}
		return s
	}
	all := []jetstream.StreamConfig{
		make1(DeadStream, "what readers could not use", t.DeadAge, t.DeadBytes, DeadDedupe, "hs.dead.>"),
		bucket(LeasesBucket, "who does what; gone when not renewed", LeaseTTL, leasesBytes),
		bucket(ClustersBucket, "known clusters", 0, clustersBytes),
	}
	if t.Cluster == "" {
		return all
	}
	c := EncodeToken(t.Cluster)
	rollups := make1(RollupsStream(t.Cluster), "rollups of cluster "+t.Cluster, t.RollupsAge, t.RollupsBytes, RollupsDedupe, "hs.rollups."+c+".>")
	events := make1(EventsStream(t.Cluster), "events of cluster "+t.Cluster, t.EventsAge, t.EventsBytes, EventsDedupe, "hs.events."+c+".>")
	if t.FromDomain != "" {
		from := &jetstream.ExternalStream{APIPrefix: "$JS." + t.FromDomain + ".API", DeliverPrefix: mirrorPrefix(t.FromDomain)}
		for _, s := range []*jetstream.StreamConfig{&rollups, &events} {
			s.Subjects, s.Duplicates, s.MirrorDirect = nil, 0, true
			s.Mirror = &jetstream.StreamSource{Name: s.Name, External: from}
		}
		clusters := &all[2]
		clusters.Sources = []*jetstream.StreamSource{{Name: clusters.Name, FilterSubject: bucketSubject(ClustersBucket, c), External: from}}
		return append(all, rollups, events)
	}
	return append(all,
		make1(SamplesStream(t.Cluster), "batches, inventory and clock of cluster "+t.Cluster, t.SamplesAge, t.SamplesBytes, SamplesDedupe,
			"hs.samples."+c+".*", "hs.inventory."+c+".*", "hs.clock."+c),
		rollups, events)
}

// Change is one thing Apply did, or Check would want done.
type Change struct {
	Stream  string
	Created bool     // it was not there
	Differs []string // what was altered: "max_age: 1h0m0s, want 2h0m0s"
}

// String is the change in words.
func (c Change) String() string {
	if c.Created {
		return c.Stream + ": created"
	}
	return c.Stream + ": " + strings.Join(c.Differs, "; ")
}

// Apply creates what is missing of a topology and alters what differs, and says
// what it did. Messages stay, but for those beyond a smaller limit. It waits for
// the bus until ctx ends; a bus that cannot set aside the streams' bytes is ErrRefused.
func (c *Conn) Apply(ctx context.Context, t Topology) ([]Change, error) {
	if err := t.Validate(); err != nil {
		return nil, fmt.Errorf("apply topology: %w", err)
	}
	var done []Change
	for _, want := range t.WithDefaults().streams() {
		if len(want.Sources) > 0 { // what it follows is altered by reading and writing it: one at a time, over all clusters
			lease, err := c.Hold(ctx, TopologyLease, "apply "+t.Cluster)
			if err != nil {
				return done, fmt.Errorf("apply topology: %w", err)
			}
			defer release(ctx, lease)
		}
		have, err := c.config(ctx, want.Name)
		if err != nil {
			return done, fmt.Errorf("apply topology: %w", err)
		}
		if have == nil {
			if err := c.try(ctx, "STREAM.CREATE."+want.Name, func(ctx context.Context) error {
				_, err := c.js.CreateStream(ctx, want)
				return c.waits(want.Name, noRoom(err, t))
			}); err != nil {
				return done, fmt.Errorf("create stream %q (%s): %w", want.Name, bytesText(want.MaxBytes), err)
			}
			done = append(done, Change{Stream: want.Name, Created: true})
			continue
		}
		diff := differs(*have, want, Topology{}, true)
		if len(diff) == 0 {
			continue
		}
		if err := c.try(ctx, "STREAM.UPDATE."+want.Name, func(ctx context.Context) error {
			_, err := c.js.UpdateStream(ctx, merge(*have, want))
			return c.waits(want.Name, noRoom(err, t))
		}); err != nil {
			return done, fmt.Errorf("alter stream %q (%s): %w", want.Name, strings.Join(diff, "; "), err)
		}
		done = append(done, Change{Stream: want.Name, Differs: diff})
	}
	return done, nil
}

// waits tells for what Apply waits; a server that is starting up may take a while.
func (c *Conn) waits(stream string, err error) error {
	if err != nil && passing(err) {
		c.log.Warn("bus does not take a stream yet, trying again", "stream", stream, "err", err)
	}
	return err
}

// release gives a lease back also when ctx has ended; one that cannot be given back runs out.
func release(ctx context.Context, l *Lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), PublishTimeout)
	defer cancel()
	_ = l.Release(ctx)
}

// noRoom turns the refusal of a server that cannot set aside what a stream may take into a lasting error: unlike
// a publish that meets a full store, it does not pass by waiting.
func noRoom(err error, t Topology) error {
	if apiCode(err) != codeStorageExceeded && !peersLackRoom(err) {
		return err
	}
	return fmt.Errorf("%w: %v: the server sets aside what streams may take, %s for these; raise its store limit (max_file_store) to the sum over all clusters, or give the streams less",
		ErrRefused, err, bytesText(t.Reserved()))
}

// peersLackRoom: servers of a cluster say with one code that some are away, which passes, and that none has room.
func peersLackRoom(err error) bool {
	var e *jetstream.APIError
	return errors.As(err, &e) && int(e.ErrorCode) == codeNoPeers &&
		strings.Contains(e.Description, "insufficient storage") && !strings.Contains(e.Description, "peer offline")
}

// ErrTopology says that the streams are not as the topology wants them.
var ErrTopology = errors.New("streams differ; run `heapstream bus apply`")

// Check says exactly what is missing or differs, as one error that wraps
// ErrTopology. Ages, bytes and replicas are compared only where t sets them,
// since an operator may have chosen others; never less than MinRollupsAge.
func (c *Conn) Check(ctx context.Context, t Topology) error {
	if err := t.Validate(); err != nil {
		return fmt.Errorf("check topology: %w", err)
	}
	changes, _, err := c.Wanted(ctx, t)
	if err != nil {
		return fmt.Errorf("check topology: %w", err)
	}
	var found []string
	for _, change := range changes {
		if change.Created {
			found = append(found, change.Stream+" does not exist")
		}
		for _, d := range change.Differs {
			found = append(found, change.Stream+" "+d)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: %s", ErrTopology, strings.Join(found, "; "))
	}
	return nil
}

// config is a stream's configuration, nil where there is none.
func (c *Conn) config(ctx context.Context, name string) (*jetstream.StreamConfig, error) {
	var have *jetstream.StreamConfig
	err := c.try(ctx, "STREAM.INFO."+name, func(ctx context.Context) error {
		s, err := c.js.Stream(ctx, name)
		if apiCode(err) == codeStreamNotFound {
			have = nil
			return nil
		}
		if err == nil {
			cfg := s.CachedInfo().Config
			have = &cfg
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read stream %q: %w", name, err)
	}
	return have, nil
}

// differs is what is not as wanted. Unless all is set, what t leaves open is.
func differs(have, want jetstream.StreamConfig, t Topology, all bool) []string {
	var out []string
	diff := func(what string, have, want any) {
		out = append(out, fmt.Sprintf("%s: %v, want %v", what, have, want))
	}
	slices.Sort(have.Subjects)
	slices.Sort(want.Subjects)
	if !slices.Equal(have.Subjects, want.Subjects) {
		diff("subjects", have.Subjects, want.Subjects)
	}
	if mirrorOf(have) != mirrorOf(want) {
		diff("mirror", mirrorOf(have), mirrorOf(want))
	}
	for _, s := range want.Sources {
		if i := slices.IndexFunc(have.Sources, func(h *jetstream.StreamSource) bool { return h.FilterSubject == s.FilterSubject }); i < 0 {
			diff("source of "+s.FilterSubject, "none", sourceOf(s))
		} else if sourceOf(have.Sources[i]) != sourceOf(s) {
			diff("source of "+s.FilterSubject, sourceOf(have.Sources[i]), sourceOf(s))
		}
	}
	if have.Retention != want.Retention {
		diff("retention", have.Retention, want.Retention)
	}
	if have.Storage != want.Storage {
		diff("storage", have.Storage, want.Storage)
	}
	if have.Discard != want.Discard {
		diff("discard", have.Discard, want.Discard)
	}
	if have.Compression != want.Compression {
		diff("compression", have.Compression, want.Compression)
	}
	if have.AllowDirect != want.AllowDirect {
		diff("allow_direct", have.AllowDirect, want.AllowDirect)
	}
	if have.MaxMsgsPerSubject != want.MaxMsgsPerSubject {
		diff("max_msgs_per_subject", have.MaxMsgsPerSubject, want.MaxMsgsPerSubject)
	}
	if have.MaxMsgSize != want.MaxMsgSize {
		diff("max_msg_size", have.MaxMsgSize, want.MaxMsgSize)
	}
	if have.Mirror == nil && have.Duplicates != want.Duplicates {
		diff("duplicate_window", have.Duplicates, want.Duplicates)
	}
	if have.AllowMsgTTL != want.AllowMsgTTL || have.SubjectDeleteMarkerTTL != want.SubjectDeleteMarkerTTL {
		diff("subject_delete_marker_ttl", have.SubjectDeleteMarkerTTL, want.SubjectDeleteMarkerTTL)
	}
	age, size := true, true // is it open what they are?
	switch {
	case strings.HasPrefix(want.Name, samplesPrefix):
		age, size = t.SamplesAge == 0, t.SamplesBytes == 0
	case strings.HasPrefix(want.Name, rollupsPrefix):
		age, size = t.RollupsAge == 0, t.RollupsBytes == 0
		if !all && age && have.MaxAge != 0 && have.MaxAge < MinRollupsAge {
			diff("max_age", have.MaxAge, "at least "+MinRollupsAge.String())
		}
	case strings.HasPrefix(want.Name, eventsPrefix):
		age, size = t.EventsAge == 0, t.EventsBytes == 0
	case want.Name == DeadStream:
		age, size = t.DeadAge == 0, t.DeadBytes == 0
	default:
		age = false // the TTL of a bucket is ours to choose
	}
	if (all || !age) && have.MaxAge != want.MaxAge {
		diff("max_age", have.MaxAge, want.MaxAge)
	}
	if (all || !size) && have.MaxBytes != want.MaxBytes {
		diff("max_bytes", have.MaxBytes, want.MaxBytes)
	}
	if (all || t.Replicas != 0) && have.Replicas != want.Replicas {
		diff("num_replicas", have.Replicas, want.Replicas)
	}
	return out
}

func mirrorOf(s jetstream.StreamConfig) string {
	if s.Mirror == nil {
		return "none"
	}
	return sourceOf(s.Mirror)
}

func sourceOf(s *jetstream.StreamSource) string {
	if s.External != nil {
		return s.External.APIPrefix + " " + s.Name + " by " + s.External.DeliverPrefix
	}
	return s.Name
}

// following is have with every cluster's source replaced or added that want has; those of other clusters stay.
func following(have, want []*jetstream.StreamSource) []*jetstream.StreamSource {
	all := slices.DeleteFunc(slices.Clone(have), func(h *jetstream.StreamSource) bool {
		return slices.ContainsFunc(want, func(w *jetstream.StreamSource) bool { return w.FilterSubject == h.FilterSubject })
	})
	return append(all, want...)
}

// merge is have with what we decide from want: placement, metadata and the like
// are the operator's.
func merge(have, want jetstream.StreamConfig) jetstream.StreamConfig {
	m := have
	m.Description, m.Subjects, m.Mirror, m.MirrorDirect = want.Description, want.Subjects, want.Mirror, want.MirrorDirect
	m.Sources = following(have.Sources, want.Sources)
	m.Retention, m.Storage, m.Discard, m.Compression = want.Retention, want.Storage, want.Discard, want.Compression
	m.AllowDirect, m.MaxMsgsPerSubject, m.MaxMsgSize = want.AllowDirect, want.MaxMsgsPerSubject, want.MaxMsgSize
	m.Duplicates, m.MaxAge, m.MaxBytes, m.Replicas = want.Duplicates, want.MaxAge, want.MaxBytes, want.Replicas
	m.AllowMsgTTL, m.SubjectDeleteMarkerTTL = want.AllowMsgTTL, want.SubjectDeleteMarkerTTL
	return m
}

// RemoveCluster deletes a cluster's streams, with all that is in them, and then
// its record, which at a hub no longer follows the edge's. What is not there is
// fine.
func (c *Conn) RemoveCluster(ctx context.Context, cluster string) error {
	if err := CheckCluster(cluster); err != nil {
		return err
	}
	for _, name := range []string{SamplesStream(cluster), RollupsStream(cluster), EventsStream(cluster)} {
		err := c.try(ctx, "STREAM.DELETE."+name, func(ctx context.Context) error {
			err := c.js.DeleteStream(ctx, name)
			if apiCode(err) == codeStreamNotFound {
				return nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("remove stream %q: %w", name, err)
		}
	}
	if err := c.unfollow(ctx, cluster); err != nil {
		return fmt.Errorf("remove cluster %q: %w", cluster, err)
	}
	return c.Unregister(ctx, cluster)
}

// unfollow takes a cluster's source off hs-clusters, where it has one.
func (c *Conn) unfollow(ctx context.Context, cluster string) error {
	name, subject := bucketStream(ClustersBucket), bucketSubject(ClustersBucket, EncodeToken(cluster))
	ours := func(s *jetstream.StreamSource) bool { return s.FilterSubject == subject }
	have, err := c.config(ctx, name)
	if err != nil || have == nil || !slices.ContainsFunc(have.Sources, ours) {
		return err
	}
	lease, err := c.Hold(ctx, TopologyLease, "remove "+cluster)
	if err != nil {
		return err
	}
	defer release(ctx, lease)
	if have, err = c.config(ctx, name); err != nil || have == nil {
		return err
	}
	have.Sources = slices.DeleteFunc(have.Sources, ours)
	return c.try(ctx, "STREAM.UPDATE."+name, func(ctx context.Context) error {
		_, err := c.js.UpdateStream(ctx, *have)
		return err
	})
}
