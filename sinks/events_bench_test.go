package sinks

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/heapstream/heapstream/sinks/sinktest"
)

// BenchmarkEvents is how fast the sinks of events that are in use write them, to destinations that take everything.
func BenchmarkEvents(b *testing.B) {
	bench := func(key, target string, bytes func() int64) {
		b.Run(key, func(b *testing.B) { sinktest.BenchEvents(b, kinds[strings.SplitN(target, ":", 2)[0]], target, bytes) })
	}
	bench("log", "log", nil)
	influx := sinktest.SwallowHTTP(b, http.StatusOK, `{"results":[]}`)
	bench("influxdb", "influxdb:http://"+influx.Addr, influx.Bytes.Load)
	bench("influxdb-withfields", "influxdb:http://"+influx.Addr+"?withfields=true", influx.Bytes.Load)

	var taken atomic.Int64
	elastic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body) // what is cut off shows as an error of the sink
		taken.Add(int64(body.Len()))
		if r.URL.Path == "/_bulk" {
			items := strings.Repeat(`{"index":{"status":201}},`, bytes.Count(body.Bytes(), []byte("\n"))/2)
			fmt.Fprintf(w, `{"errors":false,"items":[%s]}`, strings.TrimSuffix(items, ","))
			return
		}
		fmt.Fprint(w, `{"acknowledged":true}`)
	}))
	b.Cleanup(elastic.Close)
	bench("elasticsearch", "elasticsearch:"+elastic.URL+"?ver=8", taken.Load)
}
