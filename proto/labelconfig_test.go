package proto

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestLabelFlagsAreHeapsters(t *testing.T) {
	check := func(want string, args ...string) {
		t.Helper()
		c := DefaultLabelConfig()
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		c.Flags(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%q", c.Format()); got != want {
			t.Errorf("%q mean %s, want %s", args, got, want)
		}
	}
	check(`{"," [] map[]}`)
	check(`{"; " [] map[]}`, "--label_separator=; ")
	check(`{"|" [] map[]}`, "--label_seperator=|") // as up to 1.4
	check(`{"" [] map[]}`, "--label_separator=")
	check(`{"," ["a" "b" "c"] map[]}`, "--ignore_label=a,b", "--ignore_label", "c")
	check(`{"," [] map["app":"app" "b=c":"a" "k8s.io/x":"x"]}`, "--store_label=app,x=k8s.io/x", "--store_label=a=b=c")
	check(`{"," [] map["app":"two"]}`, "--store_label=one=app", "--store_label=two=app") // the last one holds

	help := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := DefaultLabelConfig()
	c.Flags(help)
	if n := strings.Count(help.FlagUsages(), "--label_sep"); n != 1 {
		t.Errorf("the help lists %d separators:\n%s", n, help.FlagUsages())
	}
}

func TestWrongLabelFlagsAreRefused(t *testing.T) {
	check := func(want string, store ...string) {
		t.Helper()
		c := LabelConfig{Store: store}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", store, err, want)
		}
	}
	check(`--store_label=""`, "")
	check(`--store_label="=key"`, "a", "=key")
	check(`--store_label="name="`, "name=")
	check(`both "a" and "b" are to be stored as "x"`, "x=a", "x=b")
}
