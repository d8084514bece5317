package bus

import (
	"fmt"
	"slices"
)

// Role is what a process does on the bus: the least a bus user must be allowed.
type Role string

// The roles.
const (
	// RoleScraper publishes the batches of nodes. With a user per node its one
	// data subject shrinks to SamplesSubject(cluster, node).
	RoleScraper Role = "scraper"
	// RoleInventory publishes a cluster's inventory and events, and registers it.
	RoleInventory Role = "inventory"
	// RoleAggregator owns clusters: reads SAMPLES, writes ROLLUPS.
	RoleAggregator Role = "aggregator"
	// RoleGateway is the API: it reads ROLLUPS and writes nothing but dead letters.
	RoleGateway Role = "apigw"
	// RoleSinks reads ROLLUPS and EVENTS by durables.
	RoleSinks Role = "sinks"
	// RoleAdmin makes, alters and removes streams, and handles dead letters.
	RoleAdmin Role = "admin"
)

// Roles are all roles.
func Roles() []Role {
	return []Role{RoleScraper, RoleInventory, RoleAggregator, RoleGateway, RoleSinks, RoleAdmin}
}

// InboxPrefix is the Config.InboxPrefix that goes with Permissions: replies to
// one role, of one cluster where it is not empty, that nobody else can read.
func InboxPrefix(role Role, cluster string) string {
	p := "_INBOX_" + string(role)
	if cluster != "" {
		p += "." + EncodeToken(cluster)
	}
	return p
}

// Permissions are the subjects that a user of this role must be allowed, and
// none besides: what it publishes, requests and acknowledgements among it, and
// what it subscribes to. An empty cluster means all clusters: the stream in a
// request's subject is then a wildcard, since a wildcard cannot stand for a part
// of a token. The slices are the caller's; nil for a role that does not exist.
//
//	role        publishes                               requests on streams                     leases and clusters
//	scraper     hs.samples.<c>.*                        none                                    none
//	inventory   hs.inventory.<c>.* hs.events.<c>.*      EVENTS KV_hs-leases                     writes inventory.<c>, events.<c>, <c>
//	aggregator  hs.clock.<c> hs.rollups.<c>.> hs.dead   SAMPLES ROLLUPS KV_hs-leases KV_hs-clusters   writes aggregator.<c>, member.*
//	apigw       hs.dead                                 ROLLUPS EVENTS KV_hs-clusters           none written
//	sinks       hs.dead $JS.ACK                         ROLLUPS EVENTS DEAD KV_hs-leases KV_hs-clusters   writes sink.*
//	admin       hs.> (re-drive) $KV.hs-clusters.*       all                                     writes sink.*, topology, <c>
//
// Each subscribes to its own inbox (InboxPrefix) alone. To read a stream is to ask
// for its state, for a message, and to make, ask, pull from and delete a consumer
// of a name that is made up; since names of consumers cannot be told apart by
// wildcards, a gateway could take a sink's durable away, though it cannot write
// what the sink reads. Let gateways and sinks that do not trust each other use
// streams of their own, such as mirrors.
//
// On a JetStream domain (Config.Domain) requests begin with $JS.<domain>.API
// instead of $JS.API, and writes to buckets with that before their $KV.
func Permissions(role Role, cluster string) (publish, subscribe []string) {
	one := func(name string) string { // a token that is a cluster's
		if cluster == "" {
			return "*"
		}
		return name
	}
	c := one(EncodeToken(cluster))
	stream := func(of func(string) string) string { return one(of(cluster)) }
	allow := func(subjects ...string) {
		for _, s := range subjects {
			if !slices.Contains(publish, s) {
				publish = append(publish, s)
			}
		}
	}
	request := func(stream string, verbs ...string) {
		for _, v := range verbs {
			allow(fmt.Sprintf("$JS.API."+v, stream))
		}
	}
	const (
		info     = "STREAM.INFO.%s"
		get      = "STREAM.MSG.GET.%s"
		create   = "CONSUMER.CREATE.%s.*" // without a filter, or several
		filtered = "CONSUMER.CREATE.%s.*.>"
		ask      = "CONSUMER.INFO.%s.*"
		pull     = "CONSUMER.MSG.NEXT.%s.*"
		forget   = "CONSUMER.DELETE.%s.*"
	)
	read := func(stream string) { request(stream, info, get, create, filtered, ask, pull, forget) }
	bucket := func(name string) { request(bucketStream(name), info, get, filtered, ask, pull, forget) } // always filtered
	dead := func(reader string) {
		if cluster == "" {
			reader = "*"
		} else {
			reader = EncodeToken(reader)
		}
		allow("hs.dead." + reader)
	}
	switch role {
	case RoleScraper:
		allow("hs.samples." + c + ".*")
	case RoleInventory:
		allow("hs.inventory."+c+".*", "hs.events."+c+".*")
		allow(bucketSubject(LeasesBucket, "inventory."+c), bucketSubject(LeasesBucket, "events."+c), bucketSubject(ClustersBucket, c))
		request(stream(EventsStream), info, get, create, ask, pull, forget) // how far it was
		bucket(LeasesBucket)
		request(bucketStream(ClustersBucket), get)
	case RoleAggregator:
		allow("hs.clock."+c, "hs.rollups."+c+".>")
		dead("aggregator." + cluster)
		allow(bucketSubject(LeasesBucket, "aggregator."+c), bucketSubject(LeasesBucket, MemberLeases+"*"))
		read(stream(SamplesStream))
		read(stream(RollupsStream))
		bucket(LeasesBucket)
		bucket(ClustersBucket)
	case RoleGateway:
		dead("apigw." + cluster)
		read(stream(RollupsStream))
		read(stream(EventsStream))
		bucket(ClustersBucket)
	case RoleSinks:
		allow("hs.dead.*") // a sink is named by its operator
		allow(bucketSubject(LeasesBucket, "sink.*"))
		for _, s := range []string{stream(RollupsStream), stream(EventsStream)} {
			request(s, info, get, create, filtered, ask, pull, "CONSUMER.RESET.%s.*")
			// The second form carries domain and account before the stream.
			allow("$JS.ACK."+s+".*.>", "$JS.ACK.*.*."+s+".*.>")
		}
		request(DeadStream, info, get, filtered, ask, pull, "CONSUMER.RESET.%s.*") // letters that it is to try again
		allow("$JS.ACK."+DeadStream+".*.>", "$JS.ACK.*.*."+DeadStream+".*.>")
		bucket(LeasesBucket)
		bucket(ClustersBucket)
	case RoleAdmin:
		for _, room := range []string{"samples", "inventory", "events"} {
			allow("hs." + room + "." + c + ".*")
		}
		allow("hs.clock."+c, "hs.rollups."+c+".>", "hs.dead.*", "hs.dead.*"+againSuffix, bucketSubject(ClustersBucket, c), bucketSubject(LeasesBucket, SinkLeases+"*"), bucketSubject(LeasesBucket, TopologyLease))
		request("*", info, get, create, filtered, ask, pull, forget, "CONSUMER.RESET.%s.*", "CONSUMER.PAUSE.%s.*", "CONSUMER.LIST.%s",
			"STREAM.CREATE.%s", "STREAM.UPDATE.%s", "STREAM.DELETE.%s")
		request(DeadStream, "STREAM.MSG.DELETE.%s")
	default:
		return nil, nil
	}
	return publish, []string{InboxPrefix(role, cluster) + ".>"}
}

// LinkPermissions are what a hub must allow the user by which the edge of that
// JetStream domain links to it, and nothing besides: to be asked for its streams
// and to answer, to deliver them on subjects of its own, and to hear how fast. The
// user needs no other way in than a leaf node's.
//
// An edge that is taken over can make its own cluster up and that is all: it
// reaches neither the hub's streams nor another edge's. What the servers answer
// each other on ends in a secret of eight characters ($JSC.R.*), with the domain
// before it where their js_api_reply_format_v2 is on.
func LinkPermissions(domain string) (publish, subscribe []string) {
	return []string{mirrorPrefix(domain) + ".>", "$JSC.R.*", "$JSC.R." + domain + ".>"}, []string{"$JS." + domain + ".API.>", "$JS.FC.>"}
}
