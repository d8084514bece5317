// Package quantity writes amounts as Kubernetes does (k8s.io/apimachinery/pkg/api/resource), without making a Quantity
// of each: the canonical form, in which no digit is lost and no zeros stand that a larger unit could save.
//
// Not here: reading them, and which amounts there are (view).
package quantity

import "strconv"

// Suffixes of decimal quantities from nano up, and of binary ones.
var (
	decimalSuffixes = [...]string{"n", "u", "m", "", "k", "M", "G", "T", "P", "E"}
	binarySuffixes  = [...]string{"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"}
)

// AppendNano appends billionths, such as nanocores.
func AppendNano(b []byte, nano int64) []byte { return appendDecimal(b, nano, 0) }

// AppendMilli appends thousandths, such as millicores.
func AppendMilli(b []byte, milli int64) []byte { return appendDecimal(b, milli, 2) }

// AppendBytes appends bytes in binary units: the largest that loses nothing. Below 1 Ki quantities count in decimal
// units, so 1000 is 1k.
func AppendBytes(b []byte, v int64) []byte {
	if v > -1024 && v < 1024 {
		return appendDecimal(b, v, 3)
	}
	unit := 0
	for v%1024 == 0 && unit < len(binarySuffixes)-1 {
		v /= 1024
		unit++
	}
	return append(strconv.AppendInt(b, v, 10), binarySuffixes[unit]...)
}

func appendDecimal(b []byte, v int64, unit int) []byte {
	if v == 0 {
		return append(b, '0')
	}
	for v%1000 == 0 && unit < len(decimalSuffixes)-1 {
		v /= 1000
		unit++
	}
	return append(strconv.AppendInt(b, v, 10), decimalSuffixes[unit]...)
}
