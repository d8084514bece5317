package labels

import (
	"testing"

	"github.com/heapstream/heapstream/proto"
)

func TestCacheJoinsAsTheFormatDoes(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Separator, cfg.Ignore, cfg.Store = ";", []string{"hash"}, []string{"team", "area=zone"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	c := NewCache(cfg.Format())
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
	if f := c.Format(); f.Store["zone"] != "area" || f.Store["team"] != "team" {
		t.Errorf("stored under %v", f.Store)
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

func TestWrongStoreLabelIsRefused(t *testing.T) {
	for _, s := range []string{"", "=key", "name="} {
		cfg := DefaultConfig()
		cfg.Store = []string{s}
		if cfg.Validate() == nil {
			t.Errorf("--store_label=%q is accepted", s)
		}
	}
}
