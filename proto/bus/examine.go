package bus

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// What somebody asks who looks for what is wrong with a bus: one attempt each, answered or refused at once, where
// services wait and try again.

// ErrNoJetStream says that the server, or our account on it, has no JetStream.
var ErrNoJetStream = errors.New("JetStream is not on")

// Server is the server that a Conn is connected to.
type Server struct {
	Name, Version, Cluster, URL string // the URL without a password
	TLS                         bool
	Certificate                 *x509.Certificate // its own; nil without TLS
	MaxPayload                  int64             // bytes
	RTT                         time.Duration
}

// Server describes the server; it takes one round trip. ErrClosed, or Status, where there is none.
func (c *Conn) Server() (Server, error) {
	if err := c.Status(); err != nil {
		return Server{}, err
	}
	rtt, err := c.nc.RTT()
	if err != nil {
		return Server{}, fmt.Errorf("ask the bus for a round trip: %w", err)
	}
	s := Server{Name: c.nc.ConnectedServerName(), Version: c.nc.ConnectedServerVersion(), Cluster: c.nc.ConnectedClusterName(),
		URL: c.nc.ConnectedUrlRedacted(), MaxPayload: c.nc.MaxPayload(), RTT: rtt}
	if state, err := c.nc.TLSConnectionState(); err == nil {
		s.TLS = true
		if len(state.PeerCertificates) > 0 {
			s.Certificate = state.PeerCertificates[0]
		}
	}
	return s, nil
}

// Account is what our account may take of JetStream, and takes; bytes. Limits are -1 where there is none.
type Account struct {
	Domain                               string
	Store, ReservedStore, MaxStore       int64
	Memory, ReservedMemory, MaxMemory    int64
	Streams, MaxStreams                  int
	Consumers, MaxConsumers, FailedCalls int
}

// Account asks the server once. ErrNoJetStream, ErrNotPermitted where this user may not ask (RoleAdmin of
// Permissions may not either: it is nothing that services need).
func (c *Conn) Account(ctx context.Context) (Account, error) {
	attempt, end := c.denials.attempt(ctx, c.timing.request, c.prefix+"INFO")
	info, err := c.js.AccountInfo(attempt)
	if err = end(err); err != nil {
		switch {
		case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
			err = fmt.Errorf("%w: %w", ErrNoJetStream, err)
		default:
			err = lasting(err)
		}
		return Account{}, fmt.Errorf("ask for the account's limits: %w", err)
	}
	return Account{Domain: info.Domain,
		Store: int64(info.Store), ReservedStore: int64(info.ReservedStore), MaxStore: info.Limits.MaxStore, //nolint:gosec // bytes of a disk
		Memory: int64(info.Memory), ReservedMemory: int64(info.ReservedMemory), MaxMemory: info.Limits.MaxMemory, //nolint:gosec // likewise
		Streams: info.Streams, MaxStreams: info.Limits.MaxStreams, Consumers: info.Consumers, MaxConsumers: info.Limits.MaxConsumers,
		FailedCalls: int(info.API.Errors)}, nil //nolint:gosec // a count
}

// StreamFacts is a stream's state, what bounds it, and how its copies are.
type StreamFacts struct {
	State
	MaxBytes int64 // -1: no bound
	MaxAge   time.Duration
	Replicas int
	Leader   string   // of the copies; empty on a single server, or while there is none
	Behind   []string // copies that are away or have not caught up, in words
	Mirrors  string   // the stream whose copy this is; empty where it is none
	Lag      uint64   // messages that the mirror lacks
	Silent   time.Duration
}

// Examine asks for the facts of one stream; errors as StreamState.
func (c *Conn) Examine(ctx context.Context, stream string) (StreamFacts, error) {
	info, err := c.streamInfo(ctx, stream, "")
	if err != nil {
		return StreamFacts{}, fmt.Errorf("examine stream %q: %w", stream, err)
	}
	f := StreamFacts{State: stateOf(info), MaxBytes: info.Config.MaxBytes, MaxAge: info.Config.MaxAge, Replicas: info.Config.Replicas}
	if info.Cluster != nil {
		f.Leader = info.Cluster.Leader
		for _, p := range info.Cluster.Replicas {
			switch {
			case p.Offline:
				f.Behind = append(f.Behind, p.Name+" is away")
			case !p.Current:
				f.Behind = append(f.Behind, fmt.Sprintf("%s is %d operations behind", p.Name, p.Lag))
			}
		}
	}
	if m := info.Mirror; m != nil {
		f.Mirrors, f.Lag, f.Silent = m.Name, m.Lag, m.Active
	}
	return f, nil
}

// Wanted is what Apply would do, save for what t leaves open: what Check complains of, stream by stream. It also
// returns the names of all streams and buckets that were looked at.
func (c *Conn) Wanted(ctx context.Context, t Topology) (changes []Change, all []string, err error) {
	for _, want := range t.WithDefaults().streams() {
		all = append(all, want.Name)
		have, err := c.config(ctx, want.Name)
		switch {
		case err != nil:
			return nil, nil, err
		case have == nil:
			changes = append(changes, Change{Stream: want.Name, Created: true})
		default:
			if d := differs(*have, want, t, false); len(d) > 0 {
				changes = append(changes, Change{Stream: want.Name, Differs: d})
			}
		}
	}
	return changes, all, nil
}

// LastLetter is the newest letter of a reader that DEAD holds, and when it was put there; false where there is none.
func (c *Conn) LastLetter(ctx context.Context, reader string) (l DeadLetter, at time.Time, found bool, err error) {
	d, found, err := c.LastOn(ctx, DeadStream, DeadSubject(reader))
	if err != nil || !found {
		return DeadLetter{}, time.Time{}, false, err
	}
	return letterOf(d), d.Time, true, nil
}
