package otlp

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// Messages are appended from the outside in: open begins one whose length is not known yet, and shut writes it there.
// That moves what is inside where it is longer than 127 bytes, once for each level, and needs neither a tree nor to
// measure everything before: see BenchmarkEncode.

// open begins a message that is a field of another: at is to be given to shut.
func open(b []byte, field protowire.Number) (_ []byte, at int) {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return append(b, 0), len(b) + 1
}

// shut ends a message.
func shut(b []byte, at int) []byte {
	n := len(b) - at
	if n < 1<<7 {
		b[at-1] = byte(n)
		return b
	}
	size := protowire.SizeVarint(uint64(n)) //nolint:gosec // a length
	var more [8]byte
	b = append(b, more[:size-1]...)
	copy(b[at-1+size:], b[at:at+n])
	binary.PutUvarint(b[at-1:at-1+size], uint64(n)) //nolint:gosec // a length
	return b
}

// appendText appends a field that is a text.
func appendText(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// appendNumber appends a field that is a varint.
func appendNumber(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// appendFixed appends a field of eight bytes: a time, a double or an sfixed64.
func appendFixed(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, field, protowire.Fixed64Type), v)
}

// appendAttribute appends a KeyValue whose value is a text as a field of another message.
func appendAttribute(b []byte, field protowire.Number, key, value string) []byte {
	b, kv := open(b, field)
	b = appendText(b, 1, key)
	b, v := open(b, 2)
	b = appendText(b, 1, value)
	return shut(shut(b, v), kv)
}

// appendIntAttribute is the same for an integer.
func appendIntAttribute(b []byte, field protowire.Number, key string, value int64) []byte {
	b, kv := open(b, field)
	b = appendText(b, 1, key)
	b, v := open(b, 2)
	b = appendNumber(b, 3, uint64(value)) //nolint:gosec // two's complement is meant
	return shut(shut(b, v), kv)
}

// appendListAttribute is the same for a list of one text.
func appendListAttribute(b []byte, field protowire.Number, key, value string) []byte {
	b, kv := open(b, field)
	b = appendText(b, 1, key)
	b, v := open(b, 2)
	b, list := open(b, 5)
	b, one := open(b, 1)
	b = appendText(b, 1, value)
	return shut(shut(shut(shut(b, one), list), v), kv)
}
