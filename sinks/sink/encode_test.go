package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/heapstream/heapstream/proto"
)

func TestLabelsMergeSortedAndTheFirstWins(t *testing.T) {
	list := func(keys, from string) (l []proto.Label) {
		for _, k := range keys {
			l = append(l, proto.Label{Key: string(k), Value: from})
		}
		return l
	}
	check := func(want string, lists ...[]proto.Label) {
		t.Helper()
		got := ""
		for _, l := range MergeLabels([]proto.Label{{Key: "z", Value: "kept"}}, lists...)[1:] {
			got += l.Key + l.Value + " "
		}
		if got != want {
			t.Errorf("merged %q, want %q", got, want)
		}
	}
	check("")
	check("a1 c1 ", list("ac", "1"))
	check("a2 b1 c2 d3 ", list("b", "1"), list("abc", "2"), list("acd", "3"))
	check("a1 b2 c1 d2 e1 ", list("ace", "1"), list("abcd", "2"))
	check("m1 n2 ", list("m", "1"), nil, list("n", "2"))
}

func TestJSONIsThatOfTheStandardLibrary(t *testing.T) {
	for _, s := range []string{"", "plain", `"\`, "a<b>&c", "tab\tline\n", "žlutý", "\x7f\xff", "\u2028"} {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := AppendJSONString(nil, s); string(got) != string(want) {
			t.Errorf("%q becomes %s, want %s", s, got, want)
		}
	}
	for _, f := range []float64{0, 1, -2.5, 1e20, 1e21, 1e-6, 1e-7, math.MaxFloat64, 0.1} {
		want, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := AppendJSONNumber(nil, proto.Float(f)); string(got) != string(want) {
			t.Errorf("%g becomes %s, want %s", f, got, want)
		}
	}
	if got := AppendJSONNumber(nil, proto.Int(math.MinInt64)); string(got) != fmt.Sprint(math.MinInt64) {
		t.Errorf("integer becomes %s", got)
	}
	if got := AppendJSONLabels(nil, []proto.Label{{Key: "a", Value: "1"}, {Key: "b"}}); string(got) != `{"a":"1","b":""}` {
		t.Errorf("labels become %s", got)
	}
}

func TestProgressGoesOnWhereItStopped(t *testing.T) {
	var p Progress
	batch := []Message{{ID: "a"}, {ID: "b"}}
	p.Begin(batch, 3)
	p.Settle(0)
	p.Refuse(1, Refused{Message: 1, Samples: 2, Reason: "no"})
	if err := p.End(errors.New("passing")); err == nil || err.Error() != "passing" {
		t.Fatalf("got %v", err)
	}
	p.Begin(batch, 3)
	if !p.Settled(0) || !p.Settled(1) || p.Settled(2) {
		t.Fatal("the same batch does not go on")
	}
	p.Late(2, 5)
	var loss *Partial
	if err := p.End(nil); !errors.As(err, &loss) || len(loss.Refused) != 1 || loss.Late != 5 || loss.Err != nil {
		t.Fatalf("got %v, want what was lost in both writes", err)
	}
	p.Begin(batch, 3)
	if p.Settled(0) {
		t.Fatal("a batch that was written whole is not written again")
	}
	p.Settle(0)
	if err := p.End(Permanent(errors.New("never"))); !IsPermanent(err) {
		t.Fatalf("got %v", err)
	}
	p.Begin(batch[:1], 3) // the worker looks for the culprit by halves
	if p.Settled(0) {
		t.Fatal("another batch goes on where the first stopped")
	}
}
