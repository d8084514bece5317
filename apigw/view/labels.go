package view

import (
	"slices"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// Labels are labels sorted by key as selectors of Kubernetes ask for them (k8s.io/apimachinery/pkg/labels.Labels).
type Labels []proto.Label

// Lookup returns the value of a label, and whether it is there.
func (l Labels) Lookup(key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(l, key, func(l proto.Label, key string) int { return strings.Compare(l.Key, key) })
	if !ok {
		return "", false
	}
	return l[i].Value, true
}

// Has reports whether a label is there.
func (l Labels) Has(key string) bool { _, ok := l.Lookup(key); return ok }

// Get returns the value of a label, "" where it is not there.
func (l Labels) Get(key string) string { v, _ := l.Lookup(key); return v }
