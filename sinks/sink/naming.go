package sink

import (
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// Names say what samples are called in one of the catalogue's worlds (proto.World). Not for concurrent use.
type Names struct {
	world  proto.World
	extras map[extraName]*proto.Naming
}

// extraName is all that the naming of a value outside of the catalogue depends on.
type extraName struct {
	name    string
	kind    proto.Kind
	counter bool
}

// maxNamings bounds how many namings of values outside of the catalogue are remembered: applications make their names
// up. Beyond it all are forgotten, and made again as they come.
const maxNamings = 10000

// Named is a sample as a world has it.
type Named struct {
	Naming *proto.Naming // must not be altered
	Name   string        // the naming's, or what the operator renamed the metric to
	Value  float64       // in the naming's unit
}

// NewNames returns the names of a world. A view whose samples are to be named skips what has none there:
//
//	view.Skip = func(m *proto.Metric) bool { return w.Without(m.ID) != "" }
func NewNames(w proto.World) *Names { return &Names{world: w, extras: map[extraName]*proto.Naming{}} }

// Of names a sample of an entity. It is false where the sample does not go out in this world: it has no name there
// for such an entity, or another of the entity's numbers says the same.
func (n *Names) Of(e *Entity, s *proto.Sample) (Named, bool) {
	if s.Metric == nil {
		naming := n.extra(e.Kind, s)
		return Named{naming, naming.Name, s.Value.Float64()}, true
	}
	naming := (*proto.Naming)(nil)
	if s.Device != nil {
		naming = n.world.DeviceNaming(s.Metric.ID, e.Kind, s.Device)
	} else {
		naming = n.world.Naming(s.Metric.ID, e.Kind)
	}
	if naming == nil {
		return Named{}, false
	}
	value, ok := naming.Value(&e.Rollup.Table, e.Row, s.Value, false)
	name := naming.Name
	if s.Name != s.Metric.Name {
		name = s.Name
	}
	return Named{naming, name, value}, ok
}

func (n *Names) extra(k proto.Kind, s *proto.Sample) *proto.Naming {
	key := extraName{s.Name, k, s.Counter}
	naming, ok := n.extras[key]
	if !ok {
		if len(n.extras) >= maxNamings {
			clear(n.extras)
		}
		key.name = strings.Clone(s.Name)
		naming = n.world.ExtraNaming(key.name, k, s.Counter)
		n.extras[key] = naming
	}
	return naming
}
