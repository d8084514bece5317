package proto

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// LabelConfig is what an operator may choose about labels: Heapster's three flags, for every program
// in which labels leave the system. Start from DefaultLabelConfig.
type LabelConfig struct {
	Separator string   // joins the key:value pairs in the label `labels`
	Ignore    []string // keys left out of it
	Store     []string // `key`, or `newName=key`: labels that are metric labels of their own, too
}

// DefaultLabelConfig is Heapster's: joined by comma, nothing ignored, nothing stored.
func DefaultLabelConfig() LabelConfig { return LabelConfig{Separator: DefaultLabelFormat().Separator} }

// Flags registers the flags with their present values as defaults, and label_seperator, as Heapster
// spelled it up to 1.4.
func (c *LabelConfig) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Separator, "label_separator", c.Separator, "`text` that joins the key:value pairs of an object's labels in the label \"labels\"; --label-seperator is the same")
	fs.StringVar(&c.Separator, "label_seperator", c.Separator, "the same as --label-separator")
	fs.Lookup("label_seperator").Hidden = true
	fs.StringSliceVar(&c.Ignore, "ignore_label", c.Ignore, "`keys` of labels left out of \"labels\"; comma separated or repeated")
	fs.StringSliceVar(&c.Store, "store_label", c.Store, "`labels` stored as metric labels of their own, ignored or not, as key or newName=key; comma separated or repeated")
}

// Validate says all that is wrong with the values.
func (c *LabelConfig) Validate() error {
	var errs []error
	from := map[string]string{}
	for _, s := range c.Store {
		key, name, err := parseStoreLabel(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if other, ok := from[name]; ok && other != key {
			errs = append(errs, fmt.Errorf("--store_label: both %q and %q are to be stored as %q: give one of them a name of its own, as newName=label", other, key, name))
		}
		from[name] = key
	}
	return errors.Join(errs...)
}

// Format is what the configuration means. It must be valid.
func (c *LabelConfig) Format() LabelFormat {
	f := LabelFormat{Separator: c.Separator, Ignore: slices.Clone(c.Ignore)}
	for _, s := range c.Store {
		if key, name, err := parseStoreLabel(s); err == nil {
			if f.Store == nil {
				f.Store = make(map[string]string)
			}
			f.Store[key] = name
		}
	}
	return f
}

// parseStoreLabel reads one value of --store_label: `key`, or `newName=key`.
func parseStoreLabel(s string) (key, name string, err error) {
	name, key, renamed := strings.Cut(s, "=")
	if !renamed {
		key = name
	}
	if key == "" || name == "" {
		return "", "", fmt.Errorf("--store_label=%q: want label, or newName=label", s)
	}
	return key, name, nil
}
