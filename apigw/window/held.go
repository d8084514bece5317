package window

import "github.com/heapstream/heapstream/proto"

// A sample that did not advance may have changed all the same: with containerd a kubelet says of a container's file
// system when the runtime measured what is used, and beside it what was free a moment ago; a pod's sum goes on
// while the pod's own sample stands still; and what is requested or allowed changes whenever somebody edits it. Two
// values at one time are one too many for who stores samples by their time, so of a row that stands in the values that
// it had when its sample was new are held, for [Sweep].

// heldCell is a cell of a grid.
type heldCell struct{ col, slot int32 }

// groupOf says with which group's sample time a column goes out: that of its metric, for what only divides ratios
// that of the ratio. GroupNone: with that of none.
var groupOf = func() (of [1 << 16]proto.Group) {
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		if m.Group == proto.GroupNone {
			continue
		}
		of[m.ID.Field()] = m.Group
		of[m.Group.Span()] = m.Group
		if m.Shape == proto.Counter {
			of[m.ID.Delta()] = m.Group
		}
		if m.Formula == proto.FormulaRatio && proto.MetricByID(m.By).Group == proto.GroupNone {
			of[m.By.Field()] = m.Group
		}
	}
	return of
}()

// standing returns the column that marks the rows in which a field stands in; nil: there is none.
func standing(values *proto.Columns, f proto.Field) *proto.Column {
	if group := groupOf[f]; group != proto.GroupNone {
		return values.Column(group.Stale())
	}
	return nil
}

// hold remembers what a cell held before it changed under a sample that stands still: the first such value.
func (g *grid) hold(col, slot int, value int64) {
	at := heldCell{int32(col), int32(slot)} //nolint:gosec // rows are capped by the codec
	if _, ok := g.held[at]; ok {
		return
	}
	if g.held == nil {
		g.held = map[heldCell]int64{}
	}
	g.held[at] = value
}

// prune forgets what is held of rows that stand in no more at a new tick.
func (g *grid) prune(rowOf []int32, values *proto.Columns) {
	for at := range g.held {
		row, stale := rowOf[at.slot], standing(values, g.fields[at.col])
		if row < 0 || stale == nil || !stale.Present.Has(int(row)) {
			delete(g.held, at)
		}
	}
}

// atSample replaces what changed under the sample of m that a row has by what was measured.
func (g *grid) atSample(m *proto.Metric, slot int, cells []cell) {
	if len(g.held) == 0 || m == nil || m.Group == proto.GroupNone {
		return
	}
	for i := range cells {
		if c := &cells[i]; c.ok {
			if v, ok := g.held[heldCell{int32(c.col), int32(slot)}]; ok { //nolint:gosec // as in hold
				c.v = v
			}
		}
	}
}
