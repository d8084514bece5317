package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"time"
)

// Limits on one line of an exposition.
const (
	maxLine   = 64 << 10
	maxLabels = 64
	maxMillis = math.MaxInt64 / int64(time.Millisecond)
)

// exposition walks an answer in the Prometheus text format 0.0.4, one sample at a time. It reads a
// family only when asked to: lines of families that nobody wants cost a search for their end. Nothing is
// copied or kept; see BenchmarkCAdvisorByExpfmt for what that saves.
type exposition struct {
	rest []byte
	line int // number of the line at hand, from 1
	text []byte

	name   []byte // of the family, of the line at hand
	labels []label
	value  []byte // as written
	at     int64  // Unix nanoseconds; 0: the line tells none

	plain []byte // unescaped values
}

// label is one label of a line; both are valid until the next line.
type label struct{ name, value []byte }

func (x *exposition) reset(data []byte) {
	*x = exposition{rest: data, labels: x.labels[:0], plain: x.plain[:0]}
}

// next goes on to the next sample and reads its name; false: there is none. A line that begins no
// sample is an error, and the next call goes on behind it.
func (x *exposition) next() (bool, error) {
	for len(x.rest) > 0 {
		if end := bytes.IndexByte(x.rest, '\n'); end < 0 {
			x.text, x.rest = x.rest, nil
		} else {
			x.text, x.rest = x.rest[:end], x.rest[end+1:]
		}
		x.line++
		line := x.text
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		// Within a family the name is that of the line before.
		if n := len(x.name); n > 0 && len(line) > n && (line[n] == '{' || line[n] == ' ') && bytes.Equal(line[:n], x.name) {
			return true, nil
		}
		if x.name = familyOf(line); x.name == nil {
			return true, errors.New("it is no sample")
		}
		return true, nil
	}
	return false, nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == ':' || '0' <= c && c <= '9'
}

// parse reads labels, value and time of the line at hand.
func (x *exposition) parse() error {
	x.labels, x.plain = x.labels[:0], x.plain[:0]
	if len(x.text) > maxLine {
		return fmt.Errorf("it is longer than %d KiB", maxLine>>10)
	}
	line := x.text[len(x.name):]
	if len(line) > 0 && line[0] == '{' {
		var err error
		if line, err = x.set(line[1:]); err != nil {
			return err
		}
	}
	line = bytes.TrimLeft(line, " \t")
	end := bytes.IndexAny(line, " \t")
	if end < 0 {
		end = len(line)
	}
	x.value, x.at = line[:end], 0
	if end == 0 {
		return errors.New("it has no value")
	}
	stamp := bytes.TrimSpace(line[end:])
	if len(stamp) == 0 {
		return nil
	}
	ms := int64(0)
	for _, c := range stamp {
		if ms = 10*ms + int64(c-'0'); c < '0' || c > '9' || ms > maxMillis {
			return fmt.Errorf("its time %.32q is not in milliseconds since 1970", stamp)
		}
	}
	x.at = ms * int64(time.Millisecond)
	return nil
}

// set reads labels up to the closing brace and returns what follows it.
func (x *exposition) set(line []byte) ([]byte, error) {
	for {
		line = bytes.TrimLeft(line, " ,\t")
		if len(line) > 0 && line[0] == '}' {
			return line[1:], nil
		}
		eq := bytes.IndexByte(line, '=')
		if eq <= 0 || eq+1 >= len(line) || line[eq+1] != '"' {
			return nil, errors.New("its labels break off or are malformed")
		}
		if len(x.labels) == maxLabels {
			return nil, fmt.Errorf("it has more than %d labels", maxLabels)
		}
		name := bytes.TrimRight(line[:eq], " \t")
		line = line[eq+2:]
		end := bytes.IndexByte(line, '"')
		if end < 0 {
			return nil, fmt.Errorf("the value of its label %.64q does not end", name)
		}
		value := line[:end]
		if bytes.IndexByte(value, '\\') >= 0 {
			var ok bool
			if value, end, ok = x.unescape(line); !ok {
				return nil, fmt.Errorf("the value of its label %.64q does not end", name)
			}
		}
		x.labels = append(x.labels, label{name, value})
		line = line[end+1:]
	}
}

// unescape reads a value with backslashes; end is where its closing quote stands.
func (x *exposition) unescape(line []byte) (value []byte, end int, ok bool) {
	from := len(x.plain)
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case '"':
			return x.plain[from:], i, true
		case '\\':
			if i++; i == len(line) {
				return nil, 0, false
			}
			if c = line[i]; c == 'n' {
				c = '\n'
			}
			x.plain = append(x.plain, c)
		default:
			x.plain = append(x.plain, c)
		}
	}
	return nil, 0, false
}

// decimal reads a number as Prometheus writes it (0.5, 12, 1.5e+09) times 10^scale, rounded to the
// nearest integer: seconds become the nanoseconds they were, without a float in between. ok is false
// for what is no number, negative or beyond 2^63-1.
func decimal(text []byte, scale int) (v int64, ok bool) {
	const most = math.MaxInt64
	mantissa, exp, digits, point := int64(0), scale, 0, false
	i := 0
	if len(text) > 0 && text[0] == '+' {
		i++
	}
	for ; i < len(text); i++ {
		c := text[i]
		if c == '.' && !point {
			point = true
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		digits++
		switch digit := int64(c - '0'); {
		case mantissa > (most-digit)/10: // no room: what follows is below what counts, or the number is too large
			if !point {
				exp++
			}
		default:
			mantissa = 10*mantissa + digit
			if point {
				exp--
			}
		}
	}
	if digits == 0 {
		return 0, false
	}
	if i < len(text) {
		if text[i] != 'e' && text[i] != 'E' {
			return 0, false
		}
		e, sign, some := 0, 1, false
		if i++; i < len(text) && (text[i] == '+' || text[i] == '-') {
			if text[i] == '-' {
				sign = -1
			}
			i++
		}
		for ; i < len(text); i++ {
			if text[i] < '0' || text[i] > '9' {
				return 0, false
			}
			e, some = min(10*e+int(text[i]-'0'), 1<<20), true
		}
		if !some {
			return 0, false
		}
		exp += sign * e
	}
	if mantissa == 0 {
		return 0, true
	}
	for ; exp > 0; exp-- {
		if mantissa > most/10 {
			return 0, false
		}
		mantissa *= 10
	}
	if exp < -19 {
		return 0, true
	}
	half := false
	for ; exp < 0; exp++ {
		half = mantissa%10 >= 5
		mantissa /= 10
	}
	if half && mantissa < most {
		mantissa++
	}
	return mantissa, true
}
