package sinks

import (
	"bytes"
	"strings"
	"testing"
)

func TestEveryKindStatesItsGuarantee(t *testing.T) {
	for key, k := range kinds {
		if k.Key != key || k.Title == "" || (k.New != nil || k.NewEvents != nil) && k.Guarantee == 0 {
			t.Errorf("kind %q: %+v lacks its key, title or guarantee", key, k)
		}
	}
	var out bytes.Buffer
	if err := WriteKinds(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "log            rollups, events  at least once                 address\n") {
		t.Errorf("table:\n%s", out.String())
	}
}
