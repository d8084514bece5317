package bus

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The map of the system. <c> is a cluster, <n> a node, <ns> a namespace, each
// encoded to one token by EncodeToken.
//
//	stream        subjects                         one message is                     written by             read by
//	SAMPLES_<c>   hs.samples.<c>.<n>               a batch: one node, one tick        scraper                aggregator
//	              hs.inventory.<c>.<part>          nodes, namespaces or owners        scraper (inventory)    aggregator
//	              hs.clock.<c>                     a clock mark                       aggregator (owner)     aggregator
//	ROLLUPS_<c>   hs.rollups.<c>.node.<n>          a node's rollup of one tick        aggregator (owner)     apigw, sinks
//	              hs.rollups.<c>.ns.<ns>           a namespace's rollup of one tick   aggregator (owner)     apigw, sinks
//	              hs.rollups.<c>.totals            the tick's last message            aggregator (owner)     apigw, sinks
//	              hs.rollups.<c>.epoch.<lane>      who may write                      aggregator (owner)     aggregator
//	EVENTS_<c>    hs.events.<c>.<ns>               one Kubernetes event               scraper (inventory)    sinks, apigw
//	DEAD          hs.dead.<reader>                 what a reader could not use        every reader           operators
//	              hs.dead.<reader>.again           a letter that a sink is to try     operators              that sink
//
//	bucket        keys                                                  one value is
//	hs-leases     aggregator.<c> inventory.<c> events.<c> sink.<name>   who holds it; gone LeaseTTL after the last renewal
//	              member.<id> topology
//	hs-clusters   <c>                                                   ClusterInfo
//
// A hub mirrors ROLLUPS_<c> and EVENTS_<c> of an edge, and its hs-clusters follow
// the key <c> of the edge's. What it reads of the edge of JetStream domain <d> is
// delivered on mirror.<d>.>, which no stream takes.
//
// Durable consumers exist for sinks alone: sink-<name> on ROLLUPS_<c>, EVENTS_<c> and DEAD.
const (
	DeadStream     = "DEAD"
	LeasesBucket   = "hs-leases"
	ClustersBucket = "hs-clusters"

	samplesPrefix = "SAMPLES_"
	rollupsPrefix = "ROLLUPS_"
	eventsPrefix  = "EVENTS_"
)

// Lanes is the number of ordered ways by which the owner of a cluster writes
// ROLLUPS. A replicated stream takes one fenced message in flight per epoch
// subject (more are refused with 10164), so 16 lanes are what hides the round
// trip: 3,200 messages in 0.4 s on three servers. The number is part of what
// owners of different versions must agree on: it never changes.
const Lanes = 16

// Limits, each with its reason. Those an operator may choose are in Topology.
const (
	// MaxPayload is what the server accepts as one message, headers included:
	// room for a batch of MaxBatch, never reached by honest writers.
	MaxPayload = 8 << 20
	// MaxBatch is what a writer may put into one message of SAMPLES or
	// ROLLUPS; beyond it the writer leaves things out by its own rule.
	MaxBatch = 4 << 20

	// PullMaxBytes bounds one pull. Without it the server writes a whole pull
	// of messages towards its 64 MiB max_pending and cuts the connection as a
	// slow consumer (19.5 s and 7 reconnects instead of 1.6 s, measured). It is
	// larger than MaxPayload, since a message larger than the bound is never
	// delivered at all. Two pulls overlap, so 18 MiB can be under way.
	PullMaxBytes = 9 << 20
	// PullMaxMessages bounds one pull in messages, so that small ones do not
	// fill a client's buffer with a million pointers.
	PullMaxMessages = 256
	// LastMaxMessages bounds a pull of last-per-subject reads, which must never
	// carry a byte limit: the message that hits the limit is skipped and lost
	// (47 of 5,000, measured). Few, so that large ones stay below max_pending.
	LastMaxMessages = 64

	// AckWait is how long a durable's delivery may stay unheard of. Deliveries
	// are held from a ticker at a third of it, so it can be short enough for a
	// successor and long enough for a process that is being paged in.
	AckWait = 30 * time.Second
	// MaxAckPending bounds what is delivered to a durable and not acknowledged:
	// the prefetch of one worker, and what is redelivered when it dies.
	MaxAckPending = 256

	// PublishTimeout is how long one attempt waits for the stream's
	// acknowledgement before it is retried under the same id. Losing a leader
	// costs exactly one such timeout.
	PublishTimeout = 2 * time.Second
	// MaxPending and MaxPendingBytes bound what one Publisher has under way.
	// Past 128 MiB the server's queue refuses with 10167; 64 in flight is within
	// a third of the best rate, 1024 lets 16 times the bytes pile up.
	MaxPending      = 128
	MaxPendingBytes = 32 << 20

	// LeaseTTL is how long a lease outlives its last renewal. A killed owner is
	// replaced after it; a stopped one deletes its key.
	LeaseTTL = 5 * time.Second
	// EpochRenewal is how often an owner renews its 16 epoch records, which
	// otherwise would leave ROLLUPS with everything else at its MaxAge.
	EpochRenewal = time.Minute
	// EpochCheck is how long an owner that stores nothing new believes that its
	// epochs are its own. One request in that time per owned cluster.
	EpochCheck = 3 * time.Second

	// SamplesDedupe covers the retries of a scraper; a batch stored twice
	// later than that is dropped by the aggregator as not newer. An id costs
	// 108 B of the server's heap.
	SamplesDedupe = 2 * time.Minute
	// RollupsDedupe covers the retries of a lane; a retry later than half of it
	// reads back what is out first.
	RollupsDedupe = 10 * time.Minute
	// EventsDedupe and DeadDedupe cover a restart of their writers.
	EventsDedupe = 10 * time.Minute
	DeadDedupe   = 10 * time.Minute

	// MinRollupsAge is the least that ROLLUPS must hold: a gateway's window of
	// 15 minutes and some time for a sink to come back.
	MinRollupsAge = 20 * time.Minute

	// DefaultSamplesAge is the longest outage of aggregators that loses nothing.
	DefaultSamplesAge = 20 * time.Minute
	// DefaultRollupsAge is the longest outage of a sink that loses nothing.
	DefaultRollupsAge = time.Hour
	// DefaultEventsAge is the same for events, which are few.
	DefaultEventsAge = 24 * time.Hour
	// DefaultDeadAge leaves an operator a working week and a weekend.
	DefaultDeadAge = 7 * 24 * time.Hour
)

// Settings that hold for every stream: limits retention; discard old, since a
// full stream must cost the past and never the present; file storage; direct
// gets; no compression by the server (messages are compressed already, and S2
// makes recovery eight times as long); no limit per subject (a rate needs the
// message before).

// SamplesStream is the stream of a cluster's batches, inventory and clock marks.
func SamplesStream(cluster string) string { return samplesPrefix + EncodeToken(cluster) }

// RollupsStream is the stream of a cluster's rollups.
func RollupsStream(cluster string) string { return rollupsPrefix + EncodeToken(cluster) }

// EventsStream is the stream of a cluster's Kubernetes events.
func EventsStream(cluster string) string { return eventsPrefix + EncodeToken(cluster) }

// SamplesSubject is where batches of one node are published.
func SamplesSubject(cluster, node string) string {
	return "hs.samples." + EncodeToken(cluster) + "." + EncodeToken(node)
}

// SamplesFilter matches the batches of all nodes of a cluster.
func SamplesFilter(cluster string) string { return "hs.samples." + EncodeToken(cluster) + ".*" }

// The parts of a cluster's inventory.
const (
	InventoryNodes      = "nodes"
	InventoryNamespaces = "namespaces"
	InventoryOwners     = "owners"
)

// InventorySubject is where one part of a cluster's inventory is published.
func InventorySubject(cluster, part string) string {
	return "hs.inventory." + EncodeToken(cluster) + "." + EncodeToken(part)
}

// InventoryFilter matches all parts of a cluster's inventory.
func InventoryFilter(cluster string) string { return "hs.inventory." + EncodeToken(cluster) + ".*" }

// ClockSubject is where clock marks of a cluster are published.
func ClockSubject(cluster string) string { return "hs.clock." + EncodeToken(cluster) }

// NodeRollupSubject is where the rollups of one node are published.
func NodeRollupSubject(cluster, node string) string {
	return "hs.rollups." + EncodeToken(cluster) + ".node." + EncodeToken(node)
}

// NodeRollupFilter matches the rollups of all nodes of a cluster.
func NodeRollupFilter(cluster string) string {
	return "hs.rollups." + EncodeToken(cluster) + ".node.*"
}

// NamespaceRollupSubject is where the rollups of one namespace are published.
func NamespaceRollupSubject(cluster, namespace string) string {
	return "hs.rollups." + EncodeToken(cluster) + ".ns." + EncodeToken(namespace)
}

// NamespaceRollupFilter matches the rollups of all namespaces of a cluster.
func NamespaceRollupFilter(cluster string) string {
	return "hs.rollups." + EncodeToken(cluster) + ".ns.*"
}

// TotalsSubject is where the last message of each tick is published.
func TotalsSubject(cluster string) string { return "hs.rollups." + EncodeToken(cluster) + ".totals" }

// RollupFilters match everything on ROLLUPS but the epochs, which say nothing
// to readers of measurements.
func RollupFilters(cluster string) []string {
	return []string{NodeRollupFilter(cluster), NamespaceRollupFilter(cluster), TotalsSubject(cluster)}
}

// EpochSubject is where the owner of a lane of a cluster writes its name.
func EpochSubject(cluster string, lane int) string {
	return "hs.rollups." + EncodeToken(cluster) + ".epoch." + strconv.Itoa(lane)
}

// EventsSubject is where the events of one namespace are published; events of
// things outside any namespace are published under "".
func EventsSubject(cluster, namespace string) string {
	return "hs.events." + EncodeToken(cluster) + "." + EncodeToken(namespace)
}

// EventsFilter matches all events of a cluster.
func EventsFilter(cluster string) string { return "hs.events." + EncodeToken(cluster) + ".*" }

// DeadSubject is where what a reader could not use is published; a reader is
// named like its lease, sink.influx or aggregator.prod.
func DeadSubject(reader string) string { return "hs.dead." + EncodeToken(reader) }

// AgainSubject is where letters are published that a sink is to try once more: it alone reads them.
func AgainSubject(reader string) string { return DeadSubject(reader) + againSuffix }

// deadFilter matches the letters of all readers, but those that are under way again.
const (
	deadFilter  = "hs.dead.*"
	againSuffix = ".again"
)

// sinkDurables begins the names of the durables of sinks.
const sinkDurables = "sink-"

// SinkDurable is the durable consumer of a sink, the same on ROLLUPS, EVENTS and DEAD.
func SinkDurable(sink string) string { return sinkDurables + EncodeToken(sink) }

// SinkOf is the sink whose durable consumer has that name; false where it is no sink's.
func SinkOf(durable string) (string, bool) {
	token, ok := strings.CutPrefix(durable, sinkDurables)
	if !ok {
		return "", false
	}
	sink, err := DecodeToken(token)
	return sink, err == nil
}

// AggregatorLease is held by the aggregator that owns a cluster.
func AggregatorLease(cluster string) string { return "aggregator." + EncodeToken(cluster) }

// InventoryLease is held by the scraper that publishes a cluster's inventory.
func InventoryLease(cluster string) string { return "inventory." + EncodeToken(cluster) }

// EventsLease is held by the scraper that publishes a cluster's events.
func EventsLease(cluster string) string { return "events." + EncodeToken(cluster) }

// TopologyLease is held by whoever alters what all clusters share at a hub.
const TopologyLease = "topology"

// mirrorPrefix begins the subjects on which the edge of that JetStream domain
// delivers what a hub reads of it: its own, so that a link cannot speak for another.
func mirrorPrefix(domain string) string { return "mirror." + domain }

// SinkLeases is the prefix of the leases of sinks.
const SinkLeases = "sink."

// SinkLease is held by the one worker of a sink.
func SinkLease(sink string) string { return SinkLeases + EncodeToken(sink) }

// SinkOfLease is the sink that a lease, or the reader of a letter, is of; false where it is no sink's.
func SinkOfLease(key string) (string, bool) {
	token, ok := strings.CutPrefix(key, SinkLeases)
	if !ok {
		return "", false
	}
	sink, err := DecodeToken(token)
	return sink, err == nil
}

// MemberLeases is the prefix of the heartbeats of aggregators; MemberLease is
// that of one of them.
const MemberLeases = "member."

// MemberLease is the heartbeat key of the aggregator with this id.
func MemberLease(id string) string { return MemberLeases + EncodeToken(id) }

// LaneOf is the lane of a node: FNV-1a of its name, modulo Lanes.
func LaneOf(node string) int {
	h := uint32(2166136261)
	for i := range len(node) {
		h ^= uint32(node[i])
		h *= 16777619
	}
	return int(h % Lanes)
}

// MaxName is the longest name in bytes that CheckName accepts: Kubernetes'
// limit for names of nodes and namespaces.
const MaxName = 253

// MaxCluster is the longest cluster name in bytes that CheckCluster accepts:
// with every byte escaped the stream's name still fits a file name.
const MaxCluster = 63

// maxToken is what MaxName bytes can encode to.
const maxToken = 3 * MaxName

const hexDigits = "0123456789abcdef"

// plain reports whether b stands for itself in a token.
func plain(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-'
}

// EncodeToken turns any name into one token that is safe in subjects, stream
// names, consumer names and keys, and readable for ordinary names: letters,
// digits and "-" stand for themselves, "." becomes "_", the empty name "=", any
// other byte "=" and two hex digits. It is at most three times as long as the
// name. DecodeToken is its inverse.
func EncodeToken(name string) string {
	if name == "" {
		return "="
	}
	clean := true
	for i := range len(name) {
		if !plain(name[i]) {
			clean = false
			break
		}
	}
	if clean {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 8)
	for i := range len(name) {
		switch c := name[i]; {
		case plain(c):
			b.WriteByte(c)
		case c == '.':
			b.WriteByte('_')
		default:
			b.WriteByte('=')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// DecodeToken is the inverse of EncodeToken. It refuses what EncodeToken cannot
// have made of a name of at most MaxName bytes.
func DecodeToken(token string) (string, error) {
	if token == "=" {
		return "", nil
	}
	if token == "" || len(token) > maxToken {
		return "", fmt.Errorf("token of %d bytes: want 1 to %d", len(token), maxToken)
	}
	if !strings.ContainsAny(token, "_=") {
		for i := range len(token) {
			if !plain(token[i]) {
				return "", fmt.Errorf("token %q: byte %q is not allowed", token, token[i])
			}
		}
		if len(token) > MaxName {
			return "", fmt.Errorf("token of a name of %d bytes: want at most %d", len(token), MaxName)
		}
		return token, nil
	}
	b := make([]byte, 0, len(token))
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case plain(c):
			b = append(b, c)
		case c == '_':
			b = append(b, '.')
		case c == '=':
			if i+2 >= len(token) {
				return "", fmt.Errorf("token %q: escape is cut short", token)
			}
			hi, lo := strings.IndexByte(hexDigits, token[i+1]), strings.IndexByte(hexDigits, token[i+2])
			if hi < 0 || lo < 0 {
				return "", fmt.Errorf("token %q: %q is not an escape", token, token[i:i+3])
			}
			d := byte(hi<<4 | lo)
			if plain(d) || d == '.' {
				return "", fmt.Errorf("token %q: %q needs no escape", token, d)
			}
			b = append(b, d)
			i += 2
		default:
			return "", fmt.Errorf("token %q: byte %q is not allowed", token, c)
		}
	}
	if len(b) > MaxName {
		return "", fmt.Errorf("token of a name of %d bytes: want at most %d", len(b), MaxName)
	}
	return string(b), nil
}

// CheckName says why a name cannot be a token: it is empty or longer than
// MaxName bytes. what names the thing in the error: node, sink.
func CheckName(what, name string) error {
	if name == "" {
		return fmt.Errorf("%s name is empty", what)
	}
	if len(name) > MaxName {
		return fmt.Errorf("%s name %.20q… has %d bytes: want at most %d", what, name, len(name), MaxName)
	}
	return nil
}

// CheckCluster says why a name cannot be a cluster's: it is empty or longer
// than MaxCluster bytes.
func CheckCluster(cluster string) error {
	if cluster == "" {
		return errors.New("cluster name is empty")
	}
	if len(cluster) > MaxCluster {
		return fmt.Errorf("cluster name %.20q… has %d bytes: want at most %d", cluster, len(cluster), MaxCluster)
	}
	return nil
}

// Kind is what a subject is about.
type Kind uint8

// The kinds of subjects.
const (
	Samples Kind = iota + 1
	Inventory
	Clock
	NodeRollup
	NamespaceRollup
	Totals
	Epoch
	Events
	Dead
	Again
)

var kindNames = [...]string{Samples: "samples", Inventory: "inventory", Clock: "clock", NodeRollup: "node rollup",
	NamespaceRollup: "namespace rollup", Totals: "totals", Epoch: "epoch", Events: "events", Dead: "dead", Again: "dead again"}

// String names the kind as topology's comment does.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return "kind " + strconv.Itoa(int(k))
}

// Address is a subject taken apart.
type Address struct {
	Kind    Kind
	Cluster string // empty for Dead and Again
	Name    string // node, namespace, part of the inventory, or reader
	Lane    int    // of an Epoch
}

// ParseSubject takes a subject apart; it is the inverse of the functions above
// and refuses what they cannot have made.
func ParseSubject(subject string) (Address, error) {
	wrong := func() (Address, error) { return Address{}, fmt.Errorf("subject %q is not one of ours", subject) }
	rest, ok := strings.CutPrefix(subject, "hs.")
	if !ok {
		return wrong()
	}
	room, rest, ok := strings.Cut(rest, ".")
	if !ok {
		return wrong()
	}
	if room == "dead" {
		token, again := strings.CutSuffix(rest, againSuffix)
		name, err := DecodeToken(token)
		if err != nil {
			return Address{}, fmt.Errorf("subject %q: %w", subject, err)
		}
		if again {
			return Address{Kind: Again, Name: name}, nil
		}
		return Address{Kind: Dead, Name: name}, nil
	}
	token, rest, more := strings.Cut(rest, ".")
	cluster, err := DecodeToken(token)
	if err != nil {
		return Address{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	a := Address{Cluster: cluster}
	switch room {
	case "clock":
		if more {
			return wrong()
		}
		a.Kind = Clock
		return a, nil
	case "samples":
		a.Kind = Samples
	case "inventory":
		a.Kind = Inventory
	case "events":
		a.Kind = Events
	case "rollups":
		if rest == "totals" {
			a.Kind = Totals
			return a, nil
		}
		var level string
		if level, rest, more = strings.Cut(rest, "."); !more {
			return wrong()
		}
		switch level {
		case "node":
			a.Kind = NodeRollup
		case "ns":
			a.Kind = NamespaceRollup
		case "epoch":
			lane, err := strconv.Atoi(rest)
			if err != nil || lane < 0 || lane >= Lanes || strconv.Itoa(lane) != rest {
				return wrong()
			}
			a.Kind, a.Lane = Epoch, lane
			return a, nil
		default:
			return wrong()
		}
	default:
		return wrong()
	}
	if !more {
		return wrong()
	}
	if a.Name, err = DecodeToken(rest); err != nil {
		return Address{}, fmt.Errorf("subject %q: %w", subject, err)
	}
	return a, nil
}
