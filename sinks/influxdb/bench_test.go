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
