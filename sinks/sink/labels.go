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

// InsertLabel puts a label in its place among labels that are sorted by key, unless there is one of that key, and returns
// them as append does.
func InsertLabel(labels []proto.Label, l proto.Label) []proto.Label {
	i := len(labels)
	for i > 0 && labels[i-1].Key >= l.Key {
		if i--; labels[i].Key == l.Key {
			return labels
		}
	}
	labels = append(labels, l)
	copy(labels[i+1:], labels[i:])
	labels[i] = l
	return labels
}
