package otlp

import (
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/heapstream/heapstream/proto"
)

// Fields of Metric that hold data points.
const (
	gauge protowire.Number = 5
	sum   protowire.Number = 7
)

// pointAttributes is the field of a data point for its attributes.
const pointAttributes protowire.Number = 7

// series is a naming of the catalogue's, or one of a value outside of it, with those parts of its messages that are
// always the same. Several of one name, apart by their attributes, have the same order.
type series struct {
	*proto.Naming
	order      int
	shape      protowire.Number // gauge or sum
	attributes []byte           // fields of a data point
	header     []byte           // fields of Metric before its data
	trailer    []byte           // fields of Sum after the data points
}

func newSeries(n *proto.Naming, order int) *series {
	s := &series{Naming: n, order: order, shape: gauge}
	if n.Instrument != proto.InstrumentGauge {
		s.shape = sum
		s.trailer = appendNumber(nil, 2, 2) // cumulative
		if n.Instrument == proto.InstrumentCounter {
			s.trailer = appendNumber(s.trailer, 3, 1) // monotonic
		}
	}
	for _, l := range n.Attributes {
		s.attributes = appendAttribute(s.attributes, pointAttributes, l.Key, l.Value)
	}
	s.header = appendText(appendText(nil, 1, n.Name), 3, n.Unit)
	return s
}

// conventions are the series of all namings, by their Index.
func conventions() []*series {
	all := proto.OTel.Namings()
	plan, orders := make([]*series, len(all)), map[string]int{}
	for _, n := range all {
		if _, ok := orders[n.Name]; !ok {
			orders[n.Name] = len(orders)
		}
		plan[n.Index] = newSeries(n, orders[n.Name])
	}
	return plan
}

// renaming is a series under the name that the operator gave.
type renaming struct {
	of   *series
	name string
}

// extraName is a value outside of the catalogue.
type extraName struct {
	name    string
	kind    proto.Kind
	counter bool
}

// maxNames bounds how many series under other names are remembered: applications make them up.
const maxNames = 10000

// series is what a sample of an entity is called; nil where it does not go out.
func (e *encoder) series(k proto.Kind, s *proto.Sample) *series {
	if s.Metric == nil {
		key := extraName{s.Name, k, s.Counter}
		of, ok := e.extras[key]
		if !ok {
			if len(e.extras) >= maxNames {
				clear(e.extras)
			}
			key.name = strings.Clone(s.Name)
			of = newSeries(proto.OTel.ExtraNaming(key.name, k, s.Counter), len(e.plan))
			e.extras[key] = of
		}
		return of
	}
	n := (*proto.Naming)(nil)
	if s.Device != nil {
		n = proto.OTel.DeviceNaming(s.Metric.ID, k, s.Device)
	} else {
		n = proto.OTel.Naming(s.Metric.ID, k)
	}
	if n == nil {
		return nil
	}
	of := e.plan[n.Index]
	if s.Name == s.Metric.Name {
		return of
	}
	key := renaming{of, s.Name}
	other, ok := e.renamed[key]
	if !ok {
		as := *n
		as.Name = s.Name
		other = newSeries(&as, of.order)
		e.renamed[key] = other // as many as there are namings
	}
	return other
}
