package influxdb

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/sinks/post"
	"github.com/heapstream/heapstream/sinks/sink"
)

// dbName3 is what InfluxDB 3 takes for the name of a database.
var dbName3 = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_/-]{0,63}$`)

// readVersion reads which InfluxDB it is, and what its write API wants to be told.
func (s *influx) readVersion(o *sink.Options) {
	s.version = o.Choice("version", "1", "2", "3")
	token := o.Fresh("token")
	elsewhere := func(version string, names ...string) {
		for _, name := range names {
			if o.Given(name) && s.version != version {
				o.Complain("`%s` is for InfluxDB %s: say version=%s, or leave it out", name, version, version)
			}
		}
	}
	org, bucket := o.String("org", ""), o.String("bucket", "")
	partial, noSync := o.Bool("accept_partial", true), o.Bool("no_sync", false)
	elsewhere("1", "user", "pw", "pw_file", "retention")
	elsewhere("2", "org", "bucket")
	elsewhere("3", "accept_partial", "no_sync")
	compress := o.Choice("compression", "", "gzip", "none")
	switch s.version {
	case "1":
		if o.Given("token") || o.Given("token_file") {
			o.Complain("`token` is for InfluxDB 2 and 3: say version=2 or version=3, or give `user` and `pw`")
		}
		s.login = func() (string, error) {
			if s.user == "" {
				return "", nil
			}
			return post.Basic(s.user, s.pass), nil
		}
	case "2":
		if o.Given("db") {
			o.Complain("`db` is for InfluxDB 1 and 3: InfluxDB 2 has `bucket` and `org`")
		}
		if org == "" || bucket == "" {
			o.Complain("InfluxDB 2 needs `org` and `bucket`, such as influxdb:https://host:8086?version=2&org=ops&bucket=k8s&token_file=/etc/token")
		}
		s.write = "/api/v2/write?" + url.Values{"org": {org}, "bucket": {bucket}, "precision": {"ns"}}.Encode()
		s.login = bearer("Token ", token)
	case "3":
		if !dbName3.MatchString(s.db) {
			o.Complain("`db` flag is %q: InfluxDB 3 wants letters, digits, _, - and /, at most 64, beginning with a letter or a digit", s.db)
		}
		s.write = "/api/v3/write_lp?" + url.Values{
			"db": {s.db}, "precision": {"nanosecond"}, "accept_partial": {strconv.FormatBool(partial)}, "no_sync": {strconv.FormatBool(noSync)},
		}.Encode()
		s.login = bearer("Bearer ", token)
	}
	if s.version != "1" {
		s.created = true // buckets are the operator's, and InfluxDB 3 makes databases by itself
		s.contentType = "text/plain; charset=utf-8"
	}
	if compress == "gzip" || compress == "" && s.version != "1" {
		s.zip = post.NewGzip()
	}
}

func bearer(scheme string, token func() (string, error)) func() (string, error) {
	return func() (string, error) {
		t, err := token()
		if err != nil || t == "" {
			return "", err
		}
		return scheme + t, nil
	}
}

// packed is a body as it is sent: compressed where that is wished.
func (s *influx) packed(body []byte, header http.Header) ([]byte, error) {
	if s.zip == nil {
		return body, nil
	}
	s.zipped.Reset()
	if err := s.zip.Append(&s.zipped, body); err != nil {
		return nil, err
	}
	header.Set("Content-Encoding", "gzip")
	return s.zipped.Bytes(), nil
}

// badLine is one that InfluxDB 3 names in its answer.
type badLine struct {
	Number int    `json:"line_number"` // from 1
	Reason string `json:"error_message"`
}

// badLines reads which lines InfluxDB 3 refused: data of its answer, a list, or one alone.
func badLines(body []byte) (bad []badLine) {
	var said struct {
		Data json.RawMessage `json:"data"`
	}
	if json.Unmarshal(body, &said) != nil {
		return nil
	}
	data := bytes.TrimSpace(said.Data)
	if bytes.HasPrefix(data, []byte("{")) {
		data = append(append([]byte("["), data...), ']')
	}
	if json.Unmarshal(data, &bad) != nil {
		return nil
	}
	return bad
}

// named settles those lines of a set that an answer names, and returns the others; ok is false where it names none, or
// what cannot be.
func (s *influx) named(set []int, a answer, loss *losses) (rest []int, ok bool) {
	reasons := make(map[int]string, len(a.lines))
	for _, l := range a.lines {
		if l.Number < 1 || l.Number > len(set) {
			return nil, false
		}
		reasons[l.Number-1] = l.Reason
	}
	if len(reasons) == 0 {
		return nil, false
	}
	for n, i := range set {
		reason, bad := reasons[n]
		switch {
		case !bad:
			rest = append(rest, i)
		case strings.Contains(reason, "retention"):
			loss.tooOld(1)
		default:
			loss.refuse(s.lines.from[i], 1, s.lines.line(i), "refused by InfluxDB: "+sink.Excerpt([]byte(reason)))
		}
	}
	return rest, true
}
