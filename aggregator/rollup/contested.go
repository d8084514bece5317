package rollup

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// Contested is a pod that is in no sum of a tick, because another one of its name or UID is.
type Contested struct {
	Namespace, Pod, UID string
	Node                string // that has it
	Counted             string // the node whose pod counts
}

// claim is a pod among those of all shares of a tick.
type claim struct {
	share int32
	place int32 // among the share's pods
}

// claimKey is what only one pod of a cluster can have at a time: a name in a namespace, or, without a
// namespace, a UID.
type claimKey struct{ namespace, name string }

func (p *pod) keys() [2]claimKey {
	return [2]claimKey{{p.namespace, p.name}, {"", p.uid}}
}

var seed = maphash.MakeSeed()

// hashes are what contest looks for equal keys by; 0: no key. They differ from process to process, which
// shows nowhere: pods whose hashes are alike by chance are compared and both kept.
func (p *pod) hashes() (h [2]uint64) {
	for i, k := range p.keys() {
		if k.name != "" {
			h[i] = max(maphash.String(seed, k.namespace)*31+maphash.String(seed, k.name), 1)
		}
	}
	return h
}

// contest leaves out of the shares the pods to whose name or UID another pod of the tick has the better
// claim. That happens where a pod was made anew on another node while its old one is silent, so that its
// last share stands in, or is slow to end it, and where two kubelets answer for one node. The pod that
// started later has the better claim, of two that started together the one of the greater UID. Where these
// are alike too, a pod that was reported comes before one that stands in, then the node whose name comes
// first: the order of shares.
func (m *Maker) contest(shares []*Share) []Contested {
	clear(m.claims)
	var rivals []claim // of every key that is claimed twice; some twice
	for i, s := range shares {
		for place := range s.pods {
			c := claim{int32(i), int32(place)} //nolint:gosec // bounded by what is in memory
			for _, hash := range s.pods[place].hash {
				if hash == 0 {
					continue
				}
				if first, taken := m.claims[hash]; taken {
					rivals = append(rivals, first, c)
				} else {
					m.claims[hash] = c
				}
			}
		}
	}
	if len(rivals) == 0 {
		return nil
	}
	at := func(c claim) *pod { return &shares[c.share].pods[c.place] }
	slices.SortFunc(rivals, func(a, b claim) int {
		x, y := at(a), at(b)
		return cmp.Or(cmp.Compare(y.start, x.start), strings.Compare(y.uid, x.uid), cmp.Compare(a.share, b.share), cmp.Compare(a.place, b.place))
	})
	var contested []Contested
	held := map[claimKey]claim{}
	lost := map[int32]map[int32]bool{} // by share and place
	for _, c := range slices.Compact(rivals) {
		p := at(c)
		keys := p.keys()
		winner, taken := held[keys[0]]
		if !taken && p.uid != "" {
			winner, taken = held[keys[1]]
		}
		if !taken {
			held[keys[0]], held[keys[1]] = c, c
			continue
		}
		contested = append(contested, Contested{p.namespace, p.name, p.uid, shares[c.share].Node, shares[winner.share].Node})
		if lost[c.share] == nil {
			lost[c.share] = map[int32]bool{}
		}
		lost[c.share][c.place] = true
	}
	for i, places := range lost {
		shares[i] = shares[i].without(places)
	}
	return contested
}
