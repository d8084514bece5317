package answer

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// MaxLabels is how many pairs the labels parameter may have: more than any series has.
const MaxLabels = 64

// EndOfTime is later than any tick: the end where none is given.
var EndOfTime = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Query is what a request for series asks beyond its path.
type Query struct {
	From, To time.Time // both included; the zero time and EndOfTime where not given
	Labels   []proto.Label
}

// ParseQuery reads start, end and labels, in this order; its errors are Heapster's texts.
func ParseQuery(u *url.URL) (q Query, err error) {
	q.To = EndOfTime
	if u.RawQuery == "" {
		return q, nil
	}
	values := u.Query()
	if q.From, err = ParseTime(values, "start", q.From); err != nil {
		return q, err
	}
	if q.To, err = ParseTime(values, "end", q.To); err != nil {
		return q, err
	}
	q.Labels, err = ParseLabels(values)
	return q, err
}

// ParseTime reads one parameter that is a time, RFC 3339; def is for one that is not there or empty.
func ParseTime(values url.Values, name string, def time.Time) (time.Time, error) {
	raw := values.Get(name)
	if raw == "" {
		return def, nil
	}
	t, err := time.Parse(time.RFC3339, Clip(raw))
	if err != nil {
		return def, fmt.Errorf("timestamp argument cannot be parsed: %w", err)
	}
	return t, nil
}

// ParseLabels reads the parameter labels: pairs key:value separated by commas, of which the first colon separates.
func ParseLabels(values url.Values) (labels []proto.Label, err error) {
	raw := values.Get("labels")
	if raw == "" {
		return nil, nil
	}
	if strings.Count(raw, ",") >= MaxLabels {
		return nil, fmt.Errorf("too many labels: at most %d", MaxLabels)
	}
	for pair := range strings.SplitSeq(raw, ",") {
		key, value, ok := strings.Cut(pair, ":")
		if !ok || key == "" || value == "" {
			return nil, fmt.Errorf("invalid label pair %q", Clip(pair))
		}
		labels = append(labels, proto.Label{Key: key, Value: value})
	}
	return labels, nil
}

// Clip cuts what a client sent to what an error may repeat of it.
func Clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// aliases are the names that metrics had before.
var aliases = map[string]string{
	"cpu-usage":      "cpu/usage_rate",
	"cpu-limit":      "cpu/limit",
	"memory-limit":   "memory/limit",
	"memory-usage":   "memory/usage",
	"memory-working": "memory/working_set",
}

// MetricName returns the present name of a metric that may be called by its old one.
func MetricName(name string) string {
	if real, ok := aliases[name]; ok {
		return real
	}
	return name
}
