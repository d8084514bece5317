// Package labels joins the Kubernetes labels that leave through the gateway.
//
// That happens once per change of an object's labels and not per request: a Cache keeps what was made, for as
// long as the objects are asked for. It holds nothing that a crash could lose.
//
// Not here: what the operator chooses about labels and which ones an entity has (proto), and who asks (modelapi).
package labels

import (
	"sync"

	"github.com/heapstream/heapstream/proto"
)

// Cache remembers joined labels by the slice they were made from: the view keeps a slice as long as its object
// does not change. It may be used from any goroutine.
type Cache struct {
	format proto.LabelFormat

	mu       sync.Mutex
	now, old map[*proto.Label]joined // two generations: what was not asked for during one is forgotten
}

type joined struct {
	n    int
	text string
}

// generation is how many entries the younger generation holds before it becomes the old one.
const generation = 1 << 16

// NewCache returns an empty cache for a format.
func NewCache(format proto.LabelFormat) *Cache {
	return &Cache{format: format, now: map[*proto.Label]joined{}}
}

// Format returns the format of the cache.
func (c *Cache) Format() *proto.LabelFormat { return &c.format }

// Join returns what Format().Join would. The labels must not be altered as long as the cache lives.
func (c *Cache) Join(labels []proto.Label) string {
	if len(labels) == 0 {
		return ""
	}
	key := &labels[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	if j, ok := c.now[key]; ok && j.n == len(labels) {
		return j.text
	}
	j, ok := c.old[key]
	if !ok || j.n != len(labels) {
		j = joined{len(labels), c.format.Join(labels)}
	}
	if len(c.now) >= generation {
		c.now, c.old = make(map[*proto.Label]joined), c.now
	}
	c.now[key] = j
	return j.text
}
