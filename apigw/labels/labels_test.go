package labels

import (
	"testing"

	"github.com/heapstream/heapstream/proto"
)

func TestCacheJoinsAsTheFormatDoes(t *testing.T) {
	c := NewCache(proto.LabelFormat{Separator: ";", Ignore: []string{"hash"}})
	set := []proto.Label{{Key: "app", Value: "web"}, {Key: "hash", Value: "1"}, {Key: "team", Value: "x"}}
	for range 2 {
		if got, want := c.Join(set), "app:web;team:x"; got != want {
			t.Errorf("joined %q, want %q", got, want)
		}
	}
	if got := c.Join(set[:1]); got != "app:web" {
		t.Errorf("a shorter set from the same place joined %q", got)
	}
	if got := c.Join(nil); got != "" {
		t.Errorf("no labels joined %q", got)
	}
}

func TestCacheForgetsWhatIsNotAskedFor(t *testing.T) {
	c := NewCache(proto.DefaultLabelFormat())
	for range 3 * generation {
		c.Join([]proto.Label{{Key: "a", Value: "b"}})
	}
	if n := len(c.now) + len(c.old); n > 2*generation {
		t.Errorf("%d sets are remembered, want at most %d", n, 2*generation)
	}
}
