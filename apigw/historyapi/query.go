package historyapi

import (
	"errors"
	"fmt"
	"math"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/proto"
)

// Limits of a question beyond those of the model API.
const (
	// MaxKeys is how many pods a list may name: each is a query of its own where a database is asked.
	MaxKeys = 1000
	// MaxBuckets is how many buckets the answer may have at most: of the whole range, for all pods of a list.
	MaxBuckets = 100_000
)

// question is what a request asks beyond its path.
type question struct {
	ask       Ask
	functions []Function    // of an aggregation
	bucket    time.Duration // 0: one bucket
}

// parse reads the parameters of a request for a metric; aggregations is "" where points are asked for. The order of
// the checks is Heapster's, and so are the texts.
func parse(values url.Values, metric, aggregations string, now time.Time) (q question, err error) {
	q.ask.Metric = metric
	if q.ask.From, err = answer.ParseTime(values, "start", time.Time{}); err != nil {
		return q, err
	}
	if q.ask.To, err = answer.ParseTime(values, "end", now.Add(ahead)); err != nil {
		return q, err
	}
	if q.ask.From.Year() <= 1 {
		return q, errors.New("no start time (or a start time of zero) provided")
	}
	if aggregations != "" {
		if raw := values.Get("bucket"); raw != "" {
			if q.bucket, err = parseBucket(raw); err != nil {
				return q, err
			}
		}
		if q.functions, err = parseFunctions(aggregations); err != nil {
			return q, err
		}
	}
	if q.ask.Labels, err = answer.ParseLabels(values); err != nil {
		return q, err
	}
	return q, nil
}

// bound says which question would cost too much.
func (q *question) bound(keys int) error {
	switch {
	case keys > MaxKeys:
		return fmt.Errorf("%d pods: ask for at most %d at a time", keys, MaxKeys)
	case q.bucket > 0 && q.ask.To.Sub(q.ask.From)/q.bucket >= MaxBuckets/time.Duration(keys):
		return fmt.Errorf("more than %d buckets of %s between start and end: ask for larger ones, a shorter range, or fewer pods", MaxBuckets, q.bucket)
	}
	return nil
}

// ahead is how far in the future a range without an end ends: clocks differ.
const ahead = time.Hour

var bucketUnits = []struct {
	suffix string
	unit   time.Duration
}{{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}}

func parseBucket(raw string) (time.Duration, error) {
	shown := strconv.Quote(answer.Clip(raw))
	if len(raw) < 2 {
		return 0, fmt.Errorf("unable to parse bucket size: %s is too short to be a duration", shown)
	}
	for _, u := range bucketUnits {
		digits, ok := strings.CutSuffix(raw, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(answer.Clip(digits), 10, 64)
		switch {
		case err != nil:
			return 0, err
		case n == 0 || n > uint64(math.MaxInt64/u.unit):
			return 0, fmt.Errorf("unable to parse bucket size: %s is no length that a bucket can have", shown)
		}
		return time.Duration(n) * u.unit, nil //nolint:gosec // checked
	}
	return 0, fmt.Errorf("unable to parse bucket size: %s has no known duration suffix", shown)
}

// parseFunctions reads a list of aggregations; one that is named twice counts once.
func parseFunctions(list string) (all []Function, err error) {
	var has [functions]bool
next:
	for name := range strings.SplitSeq(list, ",") {
		for f := range functions {
			if f.String() == name {
				if !has[f] {
					all = append(all, f)
				}
				has[f] = true
				continue next
			}
		}
		//lint:ignore ST1005 the text is Heapster's
		return nil, fmt.Errorf("Unknown aggregation %q", answer.Clip(name))
	}
	return all, nil
}

// What names may consist of, whatever the source.
var (
	goodName   = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)
	goodMetric = regexp.MustCompile(`^[a-zA-Z0-9_./:-]+$`)
)

// check says which name of a question cannot be one.
func (q *question) check(keys []Key) error {
	if !goodMetric.MatchString(q.ask.Metric) {
		return invalid("metric name", q.ask.Metric)
	}
	for _, l := range q.ask.Labels {
		if !goodMetric.MatchString(l.Key) {
			return invalid("label name", l.Key)
		}
		if strings.ContainsFunc(l.Value, func(r rune) bool { return r == '\'' || r == '"' || r == unicode.ReplacementChar || !unicode.IsPrint(r) }) {
			return invalid("label value", l.Value)
		}
	}
	for i := range keys {
		if err := keys[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// check says which name of the key cannot be one.
func (k *Key) check() error {
	e := &k.Entity
	node := e.Kind == proto.KindNode || e.Kind == proto.KindSystemContainer
	pod := e.Kind == proto.KindPod || e.Kind == proto.KindContainer
	container := e.Kind == proto.KindContainer || e.Kind == proto.KindSystemContainer
	for _, n := range []struct {
		needed      bool
		what, value string
	}{
		{node, "node name", e.Node},
		{e.Kind == proto.KindNamespace || pod && k.PodUID == "", "namespace name", e.Namespace},
		{pod && k.PodUID == "", "pod name", e.Pod},
		{pod && k.PodUID != "", "pod id", k.PodUID},
		{container, "container name", e.Name},
	} {
		if n.needed && !goodName.MatchString(n.value) {
			return invalid(n.what, n.value)
		}
	}
	return nil
}

func invalid(what, value string) error {
	//lint:ignore ST1005 the text is Heapster's
	return fmt.Errorf("Invalid %s %q", what, answer.Clip(value))
}
