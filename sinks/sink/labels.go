package sink

import "github.com/heapstream/heapstream/proto"

// MergeLabels appends the labels of lists to dst, sorted by key. Each list must be sorted by key; where a
// key is in several, the first of them has it.
func MergeLabels(dst []proto.Label, lists ...[]proto.Label) []proto.Label {
	from := len(dst)
	for _, list := range lists {
		at := len(dst)
		for i := len(list) - 1; i >= 0; i-- { // from the end, since what follows is nearer
			l := list[i]
			for at > from && dst[at-1].Key > l.Key {
				at--
			}
			if at > from && dst[at-1].Key == l.Key {
				continue
			}
			dst = append(dst, proto.Label{})
			copy(dst[at+1:], dst[at:])
			dst[at] = l
		}
	}
	return dst
}
