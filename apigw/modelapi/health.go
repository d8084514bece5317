package modelapi

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/heapstream/heapstream/apigw/view"
)

// maxSilence is how old the newest tick may be; at long resolutions three of them.
const maxSilence = 3 * time.Minute

// health says why a cluster's data is not current, or nil, in Heapster's words.
func health(c *view.Cluster) error {
	newest := c.Newest()
	if newest == 0 {
		return errors.New("could not get the latest data batch")
	}
	if c.Now().Sub(newest.Time()) > max(maxSilence, 3*c.Resolution()) {
		//lint:ignore ST1005 the text is Heapster's
		return fmt.Errorf("No current data batch available (latest: %s).", newest.Time())
	}
	return nil
}

// healthz answers /healthz: any method, verbose when asked.
func (q *request) healthz() {
	if err := health(q.c); err != nil {
		q.Text(http.StatusInternalServerError, "[-]healthz failed: "+err.Error()+"\nhealthz check failed\n")
		return
	}
	if _, verbose := q.R.URL.Query()["verbose"]; verbose {
		q.Text(http.StatusOK, "[+]healthz ok\nhealthz check passed\n")
		return
	}
	q.Text(http.StatusOK, "ok")
}

// healthzOne answers /healthz/healthz.
func (q *request) healthzOne() {
	if err := health(q.c); err != nil {
		q.Text(http.StatusInternalServerError, "internal server error: "+err.Error()+"\n")
		return
	}
	q.Text(http.StatusOK, "ok")
}
