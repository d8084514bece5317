package influxdb

import (
	"net/http"
	"testing"

	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/sinks/sink"
	"github.com/heapstream/heapstream/sinks/sinktest"
)

func BenchmarkWrite(b *testing.B) {
	s := sinktest.SwallowHTTP(b, http.StatusOK, `{"results":[]}`)
	suite.Bench(b, "influxdb:http://"+s.Addr, s.Bytes.Load)
}

func BenchmarkWriteVersion2(b *testing.B) {
	s := sinktest.SwallowHTTP(b, http.StatusNoContent, "")
	suite.Bench(b, "influxdb:http://"+s.Addr+"?version=2&org=o&bucket=b", s.Bytes.Load)
}

func BenchmarkWriteNames(b *testing.B) {
	s := sinktest.SwallowHTTP(b, http.StatusOK, `{"results":[]}`)
	bySample := suite
	bySample.Names = func(tb testing.TB, r *proto.Rollup) []string {
		x := build(tb, "influxdb:?names=otel")
		x.encode(&x.lines, &sink.Message{Rollup: r}, 0)
		return make([]string, x.lines.len())
	}
	bySample.Bench(b, "influxdb:http://"+s.Addr+"?names=otel", s.Bytes.Load)
}
