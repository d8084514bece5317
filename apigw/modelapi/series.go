package modelapi

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/heapstream/heapstream/apigw/answer"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// request is one request on its way to an answer.
type request struct {
	answer.Request
	api   *API
	c     *view.Cluster
	began time.Time
}

func (q *request) end() {
	if q.Handler == "" {
		q.Handler = "none"
	}
	q.api.tele.observe(q.Handler, q.Status, time.Since(q.began))
}

// series answers a MetricResult.
func (q *request) series(e window.Entity, metric string) {
	ask, err := answer.ParseQuery(q.R.URL)
	if err != nil {
		q.Text(http.StatusBadRequest, err.Error())
		return
	}
	s := answer.Take()
	defer s.Release()
	s.Points = points(q.c, s.Points[:0], e, metric, &ask)
	s.Buf = answer.AppendPretty(s.Buf[:0], s.Points)
	q.JSON(s.Buf)
}

// podList answers a MetricResultList: a result for each name in the order they were given.
func (q *request) podList(namespace, names, metric string) {
	ask, err := answer.ParseQuery(q.R.URL)
	if n := strings.Count(names, ",") + 1; err == nil && n > MaxPods {
		err = fmt.Errorf("%d pods: ask for at most %d at a time", n, MaxPods)
	}
	if err != nil {
		q.Text(http.StatusBadRequest, err.Error())
		return
	}
	memory := answer.Take()
	defer memory.Release()
	q.Stream(func(s *answer.Stream) {
		s.B = append(s.B, `{"items":[`...)
		first := true
		for name := range strings.SplitSeq(names, ",") {
			if !first {
				s.B = append(s.B, ',')
			}
			first = false
			memory.Points = points(q.c, memory.Points[:0], window.Entity{Kind: proto.KindPod, Namespace: namespace, Pod: name}, metric, &ask)
			if s.B = answer.AppendCompact(s.B, memory.Points); !s.Send() {
				return
			}
		}
		s.B = append(s.B, "]}\n"...)
	})
}

func points(c *view.Cluster, dst []window.Point, e window.Entity, metric string, ask *answer.Query) []window.Point {
	if len(ask.Labels) > 0 {
		return c.LabelledSeries(dst, e, metric, ask.Labels, ask.From, ask.To)
	}
	return c.Series(dst, e, metric, ask.From, ask.To)
}
