// Package labels says how labels look where they leave through the gateway: how Kubernetes labels are joined into
// one metric label, which are ignored, and which are stored under names of their own.
//
// Joining happens once per change of an object's labels and not per request: a Cache keeps what was made, for as
// long as the objects are asked for. It holds nothing that a crash could lose.
//
// Not here: which labels an entity has (proto), and who asks (modelapi).
package labels

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/spf13/pflag"

	"github.com/heapstream/heapstream/proto"
)

// Config is Heapster's three flags about labels.
type Config struct {
	Separator string   // joins key:value pairs
	Ignore    []string // keys left out of the joined label
	Store     []string // `key`, or `newName=key`: labels that are metric labels, too
}

// DefaultConfig is Heapster's: joined by comma, nothing ignored, nothing stored.
func DefaultConfig() Config { return Config{Separator: proto.DefaultLabelFormat().Separator} }

// Flags registers the flags with their present values as defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Separator, "label_separator", c.Separator, "joins the key:value pairs of an object's labels")
	fs.StringSliceVar(&c.Ignore, "ignore_label", c.Ignore, "`keys` of labels left out of the joined ones; comma separated or repeated")
	fs.StringSliceVar(&c.Store, "store_label", c.Store, "`labels` stored as metric labels of their own, as key or newName=key; comma separated or repeated")
}

// Validate says all that is wrong with the values.
func (c *Config) Validate() error {
	var errs []error
	for _, s := range c.Store {
		if _, _, err := proto.ParseStoreLabel(s); err != nil {
			errs = append(errs, fmt.Errorf("--%w", err))
		}
	}
	return errors.Join(errs...)
}

// Format returns what the configuration means. It must be valid.
func (c *Config) Format() proto.LabelFormat {
	f := proto.LabelFormat{Separator: c.Separator, Ignore: slices.Clone(c.Ignore)}
	for _, s := range c.Store {
		if key, name, err := proto.ParseStoreLabel(s); err == nil {
			if f.Store == nil {
				f.Store = make(map[string]string)
			}
			f.Store[key] = name
		}
	}
	return f
}

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
