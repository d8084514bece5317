package influxdb

import (
	"net/http"
	"testing"

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
