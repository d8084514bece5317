package customapi

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/proto"
)

// function is what is made of the values of a span.
type function uint8

const (
	newest function = iota // the value at the newest tick
	mean
	largest
	smallest
	percentile
)

// query is a metric's name, understood.
type query struct {
	name    string // as it was asked
	metric  *proto.Metric
	do      function
	percent int           // of a percentile
	span    time.Duration // 0 for newest
}

// nameOf returns the name under which a metric of the catalogue is served: what stands between slashes in a path.
func nameOf(m *proto.Metric) string { return strings.ReplaceAll(m.Name, "/", "_") }

// byName are the metrics of the catalogue under their names here. TestNamesAreUnambiguous holds that none is lost.
var byName = func() map[string]*proto.Metric {
	all := make(map[string]*proto.Metric)
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		all[nameOf(m)] = m
	}
	return all
}()

// parse understands a name. The errors say what is wrong with it and are for the client.
func parse(name string) (query, error) {
	q := query{name: name}
	if q.metric = byName[name]; q.metric != nil {
		return q, nil
	}
	base, word, span, ok := cut(name)
	if !ok {
		return q, unknown(name, name)
	}
	if q.metric = byName[base]; q.metric == nil {
		return q, unknown(name, base)
	}
	switch word {
	case "avg":
		q.do = mean
	case "max":
		q.do = largest
	case "min":
		q.do = smallest
	default:
		n, err := strconv.Atoi(strings.TrimPrefix(word, "p"))
		if err != nil || word[0] != 'p' || n < 1 || n > 99 || word[1] == '0' {
			return q, bad(name, "%q is no function: want avg, max, min, or p1 to p99", word)
		}
		q.do, q.percent = percentile, n
	}
	n, err := strconv.ParseInt(span[:len(span)-1], 10, 32)
	if err != nil || n < 1 {
		return q, bad(name, "%q is no span: want a whole number of s, m or h, such as 90s or 5m", span)
	}
	q.span = time.Duration(n) * units[span[len(span)-1]]
	if q.metric.Shape == proto.Counter {
		for i := range proto.Metrics() {
			if m := &proto.Metrics()[i]; m.Of == q.metric.ID && m.Formula != proto.FormulaRatio {
				return q, bad(name, "%s counts up for ever: ask for %s", base, nameOf(m)+strings.TrimPrefix(name, base))
			}
		}
		return q, bad(name, "%s counts up for ever: ask for its present value, %s", base, base)
	}
	return q, nil
}

var units = map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour}

// cut takes the function and the span off a name that ends in what looks like a span.
func cut(name string) (base, word, span string, ok bool) {
	i := strings.LastIndexByte(name, '_')
	if i < 0 {
		return "", "", "", false
	}
	base, span = name[:i], name[i+1:]
	if len(span) < 2 || units[span[len(span)-1]] == 0 || strings.Trim(span[:len(span)-1], "0123456789") != "" {
		return "", "", "", false
	}
	if i = strings.LastIndexByte(base, '_'); i < 0 || i+2 >= len(base) {
		return "", "", "", false
	}
	return base[:i], base[i+1:], span, true
}

// check says whether the span can be answered by who ticks so far apart and remembers so much.
func (q *query) check(resolution, remembered time.Duration) error {
	switch {
	case q.do == newest:
		return nil
	case q.span < resolution:
		return bad(q.name, "a span of %s is shorter than the resolution, %s, and would hold no sample", q.span, resolution)
	case q.span > remembered:
		return bad(q.name, "a span of %s is longer than what is remembered, %s (--window of the gateway)", q.span, remembered)
	}
	return nil
}

// unknown is the answer to a name that nothing is called by.
func unknown(name, base string) error {
	best, least := "", len(base)
	for known := range byName {
		if d := distance(base, known); d < least || d == least && known < best {
			best, least = known, d
		}
	}
	hint := ""
	if least <= max(2, len(base)/4) {
		hint = fmt.Sprintf("; the nearest name is %q", best+strings.TrimPrefix(name, base))
	}
	return notFound("metric %q is not known%s", name, hint)
}

// distance is how many letters have to be put in, taken out or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
