// Package gcp speaks to Google's APIs for the sinks that write there: who we are, which project is meant, what the
// metadata server of a machine of Google's says, and the writing of time series to Cloud Monitoring (version 3).
//
// It uses the REST API with golang.org/x/oauth2 for tokens: Google's own client would make the sinks program 13 MB
// larger, for three requests.
//
// A project is found as Heapster found it: GOOGLE_PROJECT_ID, project_id in the credentials' file, the metadata
// server. Credentials are the application's default ones, or those of the option `credentials`. Nothing is asked
// before the first write, so a metadata server that does not answer delays nothing else.
//
// Not here: what the time series are (gcm, stackdriver), and the requests of Cloud Logging (gcl).
package gcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// MaxSeries is how many time series one request may have.
const MaxSeries = 200

// API is one of Google's APIs.
type API struct {
	Name  string // in errors: "Cloud Monitoring"
	Host  string // where the option `endpoint` names no other address: "monitoring.googleapis.com"
	Scope string // what a token is for
	Role  string // what an operator must grant: "roles/monitoring.metricWriter"
}

var monitoring = API{
	Name: "Cloud Monitoring", Host: "monitoring.googleapis.com", Scope: "https://www.googleapis.com/auth/monitoring", Role: "roles/monitoring.metricWriter",
}

// Client sends requests to an API with a token. It is for one goroutine.
type Client struct {
	api         API
	client      *post.Client
	http        *http.Client // for tokens
	endpoint    string
	agent       string
	credentials []byte // of a file; nil: the application's default ones
	project     string
	tokens      oauth2.TokenSource
	way         *way // of tokens
}

// way remembers why a request for a token did not come through, which oauth2 tells as mere text. It is for one
// goroutine, as the client is.
type way struct {
	http.RoundTripper
	err error
}

// RoundTrip sends a request.
func (w *way) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.RoundTripper.RoundTrip(r)
	w.err = err
	return resp, err
}

// NewClient reads the options `credentials` (a file) and `endpoint` beside those of HTTP, and the file that the
// environment names. It complains to o.
func NewClient(o *sink.Options, version string, api API) *Client {
	c := &Client{
		api: api, endpoint: strings.TrimSuffix(o.String("endpoint", "https://"+api.Host), "/"),
		agent: "heapstream/" + version, project: os.Getenv("GOOGLE_PROJECT_ID"),
	}
	u, err := url.Parse(c.endpoint)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		o.Complain("`endpoint` flag is no address such as https://%s", api.Host)
		u = &url.URL{}
	}
	given := o.String("credentials", "")
	file := given
	if file == "" {
		file = os.Getenv("GOOGLE_APPLICATION_CREDENTIALS")
	}
	if file != "" {
		var said struct {
			Project string `json:"project_id"`
		}
		c.credentials, err = os.ReadFile(file)
		switch {
		case err != nil:
			o.Complain("credentials of Google: %w", err)
		case json.Unmarshal(c.credentials, &said) != nil:
			o.Complain("credentials of Google: %q is no JSON", file)
		case given != "" && said.Project != "" || c.project == "":
			c.project = said.Project
		}
	}
	c.http = o.HTTP()
	c.client = post.New(api.Name+" at "+u.Host, c.http)
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.client.Close() }

// Project is the project's id. Its error is passing.
func (c *Client) Project(ctx context.Context) (string, error) {
	if c.project != "" {
		return c.project, nil
	}
	id, err := ask(ctx, "project/project-id")
	if err != nil {
		return "", fmt.Errorf("find the project of Google: set GOOGLE_PROJECT_ID, or give credentials of a file with project_id: %w", err)
	}
	c.project = id
	return id, nil
}

// Attribute is an attribute of this machine of Google's, such as cluster-name; "" where it has none, or is no
// machine of Google's. Its error is passing.
func Attribute(ctx context.Context, name string) (string, error) {
	v, err := ask(ctx, "instance/attributes/"+name)
	var no metadata.NotDefinedError
	if errors.As(err, &no) {
		return "", nil
	}
	return v, err
}

// Zone is the zone of this machine of Google's. Its error is passing.
func Zone(ctx context.Context) (string, error) {
	v, err := ask(ctx, "instance/zone")
	return v[strings.LastIndexByte(v, '/')+1:], err
}

// ask asks the metadata server.
func ask(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := metadata.GetWithContext(ctx, path)
	if err != nil {
		return "", fmt.Errorf("ask the metadata server of Google for %s (this machine may be none of Google's): %w", path, err)
	}
	return strings.TrimSpace(v), nil
}

// Do asks the API with a token; path begins with a slash and the version. An error is passing; see post.Client.Do.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) (post.Answer, error) {
	if c.tokens == nil {
		// The source outlives this request, and has its own deadlines.
		c.way = &way{RoundTripper: c.http.Transport}
		own := context.WithValue(context.Background(), oauth2.HTTPClient, &http.Client{Transport: c.way, Timeout: 10 * time.Second})
		var found *google.Credentials
		var err error
		if c.credentials != nil {
			//lint:ignore SA1019 the file is of the operator's choosing, not of a stranger's
			found, err = google.CredentialsFromJSON(own, c.credentials, c.api.Scope)
		} else {
			found, err = google.FindDefaultCredentials(own, c.api.Scope)
		}
		if err != nil {
			return post.Answer{}, fmt.Errorf("find credentials of Google: %w", err)
		}
		c.tokens = found.TokenSource
	}
	c.way.err = nil
	token, err := c.tokens.Token()
	if err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) {
			return post.Answer{}, fmt.Errorf("get a token from Google: status %s (check `credentials`): %s", refused.Response.Status, sink.Excerpt(refused.Body))
		}
		if c.way.err != nil {
			err = c.way.err
		}
		return post.Answer{}, sink.Reach("Google for a token", err)
	}
	header := http.Header{"Authorization": {token.Type() + " " + token.AccessToken}, "User-Agent": {c.agent}, "Content-Type": {"application/json"}}
	return c.client.Do(ctx, method, c.endpoint+path, header, body)
}

// Failure words an answer that is no success; see post.Client.Failure.
func (c *Client) Failure(what string, a post.Answer) error {
	return c.client.Failure(what, a, ErrorOf(a.Body), "`credentials`: they need the role "+c.api.Role)
}

// Nonsense words an answer that the API does not give; see post.Client.Nonsense.
func (c *Client) Nonsense(what string, a post.Answer) error { return c.client.Nonsense(what, a) }

// ErrorOf is the message of an answer that is an error of an API; "" where it is none.
func ErrorOf(body []byte) string {
	var said struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &said) // what is no JSON has no message
	return said.Error.Message
}

// Monitoring is Cloud Monitoring as one sink sees it. It is for one goroutine.
type Monitoring struct {
	*Client
	body []byte
}

// New reads the options of NewClient.
func New(o *sink.Options, version string) *Monitoring {
	return &Monitoring{Client: NewClient(o, version, monitoring)}
}

// do asks the API about the project.
func (m *Monitoring) do(ctx context.Context, method, path string, body []byte) (post.Answer, error) {
	project, err := m.Project(ctx)
	if err != nil {
		return post.Answer{}, err
	}
	return m.Do(ctx, method, "/v3/projects/"+url.PathEscape(project)+path, body)
}

// CreateDescriptor declares a metric, from the JSON of a MetricDescriptor. Creating it again changes nothing. A
// permanent error is that the API refuses it.
func (m *Monitoring) CreateDescriptor(ctx context.Context, descriptor []byte) error {
	a, err := m.do(ctx, http.MethodPost, "/metricDescriptors", descriptor)
	switch {
	case err != nil:
		return err
	case a.OK() && json.Valid(a.Body):
		return nil
	case a.OK():
		return m.Nonsense("declare a metric to", a)
	case a.Code == http.StatusBadRequest || a.Code == http.StatusConflict:
		return sink.Permanent(m.Failure("declare a metric to", a))
	}
	return m.Failure("declare a metric to", a)
}

// Series are encoded time series, each the JSON of a TimeSeries with one point.
type Series struct {
	Text []byte
	All  []One
}

// One is a time series within the text.
type One struct {
	From, To int
	Message  int   // index in the batch
	Time     int64 // of its point: no two of one request may be of the same series
}

// Reset empties s and keeps its memory.
func (s *Series) Reset() { s.Text, s.All = s.Text[:0], s.All[:0] }

// JSON is series i.
func (s *Series) JSON(i int) []byte { return s.Text[s.All[i].From:s.All[i].To] }

// Write writes all series, at most MaxSeries in a request. Points that are there already, or that the API had a
// newer one of, count as written; those too old, or too soon after another, as late; others that it refuses are
// told apart by its answer.
func (m *Monitoring) Write(ctx context.Context, s *Series) error {
	var loss sink.Partial
	for from := 0; from < len(s.All) && loss.Err == nil; {
		to := from + 1
		for to < len(s.All) && to-from < MaxSeries && s.All[to].Time == s.All[from].Time {
			to++
		}
		loss.Err = m.send(ctx, s, from, to, &loss)
		from = to
	}
	if len(loss.Refused) > 0 || loss.Late > 0 {
		return &loss
	}
	return loss.Err
}

func (m *Monitoring) send(ctx context.Context, s *Series, from, to int, loss *sink.Partial) error {
	body := append(m.body[:0], `{"timeSeries":[`...)
	for i := from; i < to; i++ {
		if i > from {
			body = append(body, ',')
		}
		body = append(body, s.JSON(i)...)
	}
	m.body = append(body, "]}"...)
	a, err := m.do(ctx, http.MethodPost, "/timeSeries", m.body)
	switch {
	case err != nil:
		return err
	case a.OK() && json.Valid(bytes.TrimSpace(a.Body)):
		return nil
	case a.OK():
		return m.Nonsense("write to", a)
	}
	message, summary := ErrorOf(a.Body), summaryOf(a.Body)
	refused, ok := Refusals(message, to-from)
	told := ok && (summary.Total == 0 || summary.Total-summary.Written == len(refused))
	some := ok || summary.Total > 0 || strings.Contains(message, notWritten)
	switch {
	case summary.passing():
		return m.Failure("write to", a)
	case !told && some && to-from > 1:
		// It names other series than it refused: all of a group of which one is bad, or the first ones alone. Which
		// they are is found out by halves; a point that comes again is known.
		half := from + (to-from)/2
		if err := m.send(ctx, s, from, half, loss); err != nil {
			return err
		}
		return m.send(ctx, s, half, to, loss)
	case !told && some:
		refused = map[int]string{0: message}
	case !told && a.Code == http.StatusBadRequest && message != "":
		return sink.Permanent(m.Failure("write to", a))
	case !told:
		return m.Failure("write to", a)
	}
	for _, i := range slices.Sorted(maps.Keys(refused)) {
		reason := refused[i]
		switch {
		case strings.Contains(reason, "must be written in order"): // this point is there, or a newer one
		case strings.Contains(reason, "more frequently than"), strings.Contains(reason, "older than"), strings.Contains(reason, "too old"), strings.Contains(reason, "in the past"):
			loss.Late++
		case strings.HasPrefix(reason, "Internal error"), strings.Contains(reason, "Please retry after"):
			return m.Failure("write to", a)
		default:
			loss.Refused = append(loss.Refused, sink.Refused{
				Message: s.All[from+i].Message, Samples: 1, Part: string(s.JSON(from + i)), Reason: "refused by Cloud Monitoring: " + sink.Excerpt([]byte(reason)),
			})
		}
	}
	return nil
}

// summary is the detail CreateTimeSeriesSummary of an error: how many points were written all the same.
type summary struct {
	Total   int `json:"totalPointCount"`
	Written int `json:"successPointCount"`
	Errors  []struct {
		Status struct {
			Code int `json:"code"`
		} `json:"status"`
	} `json:"errors"`
}

// summaryOf is the summary of an answer that is an error; zero where it has none.
func summaryOf(body []byte) (s summary) {
	var said struct {
		Error struct {
			Details []json.RawMessage `json:"details"`
		} `json:"error"`
	}
	_ = json.Unmarshal(body, &said) // what is no JSON has no summary
	for _, d := range said.Error.Details {
		var kind struct {
			Type string `json:"@type"`
		}
		if json.Unmarshal(d, &kind) == nil && strings.HasSuffix(kind.Type, "CreateTimeSeriesSummary") && json.Unmarshal(d, &s) == nil {
			return s
		}
	}
	return summary{}
}

// passing reports whether some points were not written though nothing is wrong with them: DEADLINE_EXCEEDED,
// RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE.
func (s *summary) passing() bool {
	for _, e := range s.Errors {
		switch e.Status.Code {
		case 4, 8, 10, 13, 14:
			return true
		}
	}
	return false
}

// which names series of a request. The reason stands before it (Points must be written in order. …: global{}
// timeSeries[0-5,7]: custom.googleapis.com/x{…}), around it (Field timeSeries[9].points[0]… had an invalid value …), or
// behind it (timeSeries[1,3] (example metric.type="…"): …). Between two of them is "; ".
var (
	which    = regexp.MustCompile(`timeSeries\[([0-9][0-9,\- ]*)\]`)
	resource = regexp.MustCompile(`[.:]* *[a-z0-9_]*\{[^}]*\} *$`) // before a name
	example  = regexp.MustCompile(`^ *\(example .*?\}?\): *`)      // behind one
)

// notWritten is in every message about single series.
const notWritten = "could not be written"

// Refusals reads which of the n series of a request an error's message refuses, and why; ok is false where it does
// not say, or where it names several as a group, of which the reason may be that of one.
func Refusals(message string, n int) (reasons map[int]string, ok bool) {
	reasons = map[int]string{}
	_, message, found := strings.Cut(message, notWritten+": ")
	if !found {
		return nil, false
	}
	clauses, before := []string{}, ""
	for c := range strings.SplitSeq(message, "; ") {
		if !which.MatchString(c) { // a part of a reason that has a semicolon
			before += c + "; "
			continue
		}
		clauses, before = append(clauses, before+c), ""
	}
	if last := len(clauses) - 1; last >= 0 && before != "" {
		clauses[last] += "; " + strings.TrimSuffix(before, "; ")
	}
	for _, c := range clauses {
		at := which.FindStringSubmatchIndex(c)
		reason := strings.TrimRight(resource.ReplaceAllString(c[:at[0]], ""), ": ")
		switch reason {
		case "Field":
			reason = c
		case "":
			if strings.ContainsAny(c[at[2]:at[3]], ",-") {
				return nil, false
			}
			reason = example.ReplaceAllString(c[at[1]:], "")
		}
		for part := range strings.SplitSeq(strings.ReplaceAll(c[at[2]:at[3]], " ", ""), ",") {
			first, last, isRange := strings.Cut(part, "-")
			if !isRange {
				last = first
			}
			a, errA := strconv.Atoi(first)
			b, errB := strconv.Atoi(last)
			if errA != nil || errB != nil || a > b || b >= n {
				return nil, false
			}
			for i := a; i <= b; i++ {
				reasons[i] = strings.TrimSpace(reason)
			}
		}
	}
	return reasons, len(reasons) > 0
}
