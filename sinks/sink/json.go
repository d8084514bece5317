package sink

import (
	"encoding/json"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/heapstream/heapstream/proto"
)

// AppendJSONString appends a JSON string as encoding/json writes it, HTML characters escaped.
func AppendJSONString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			b, err := json.Marshal(s)
			if err != nil {
				return append(dst, `""`...) // a string can always be written
			}
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// AppendJSONNumber appends a JSON number as encoding/json writes it. A float must be finite, as those of
// a [View] are.
func AppendJSONNumber(dst []byte, v proto.Value) []byte {
	if !v.IsFloat() {
		return strconv.AppendInt(dst, v.Int64(), 10)
	}
	f := v.Float64()
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		if b, err := json.Marshal(f); err == nil {
			return append(dst, b...)
		}
	}
	return strconv.AppendFloat(dst, f, 'f', -1, 64)
}

// AppendJSONLabels appends labels as a JSON object, in their order.
func AppendJSONLabels(dst []byte, labels []proto.Label) []byte {
	dst = append(dst, '{')
	for i, l := range labels {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendJSONString(dst, l.Key)
		dst = append(dst, ':')
		dst = AppendJSONString(dst, l.Value)
	}
	return append(dst, '}')
}
