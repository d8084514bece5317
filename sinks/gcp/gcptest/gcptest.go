// Package gcptest is a strict stand-in for Cloud Monitoring, Cloud Logging and Google's token server, for tests of the
// sinks that write there.
package gcptest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/heapstream/heapstream/sinks/sinktest"
)

// Monitoring is a stand-in for the APIs. Its target is that of the sink of Key.
type Monitoring struct {
	*sinktest.HTTP
	Key         string
	Options     string   // of every target
	Refuses     string   // end of the types of metrics that are refused in the mood HalfRefuses
	Descriptors []string // that were created
	Requests    []int    // how many entries each request to Cloud Logging had

	mute     int // answers that are errors: every other one names a group
	dir, key string
	scope    string // of the newest token
}

// Name makes a sample's name of a series' JSON: all but the value.
func Name(series []byte) string {
	name, _, _ := strings.Cut(string(series), `,"value":`)
	return name
}

// accountKey is a private key of a service account: one for all, since it takes a while to find.
var accountKey = sync.OnceValue(func() string {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // there is no randomness
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}))
})

// Start starts one.
func Start(tb testing.TB, r sinktest.Reach, key, options string) *Monitoring {
	tb.Helper()
	m := &Monitoring{Key: key, Options: options, Refuses: sinktest.Refused, dir: tb.TempDir()}
	m.key = accountKey()
	m.HTTP = sinktest.StartHTTP(tb, r, &sinktest.HTTP{
		LoggedIn: func(r *http.Request) bool {
			return r.URL.Path == "/token/right" || r.Header.Get("Authorization") == "Bearer t0ken"
		},
		Take: func(w http.ResponseWriter, r *http.Request, body []byte, mood sinktest.Mood) {
			m.take(tb, w, r, body, mood)
		},
	})
	return m
}

// Bench measures a sink with the suite's samples; see sinktest.Suite.Bench.
func Bench(b *testing.B, s *sinktest.Suite, key, options string) {
	b.Helper()
	f := sinktest.SwallowHTTP(b, 200, "{}")
	m := Start(b, sinktest.Reach{}, key, options) // for its tokens
	s.Bench(b, strings.Replace(m.Target(sinktest.Reach{}), "endpoint="+m.URL(), "endpoint=http://"+f.Addr, 1), f.Bytes.Load)
}

// Target is a --sink that writes here, with a service account of its own.
func (m *Monitoring) Target(r sinktest.Reach) string {
	token := m.URL() + "/token/right"
	if r.WrongLogin {
		token = m.URL() + "/token/wrong"
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "client_email": "sink@p.iam.gserviceaccount.com", "private_key": m.key, "token_uri": token,
	})
	file := filepath.Join(m.dir, "account.json")
	if err == nil {
		err = os.WriteFile(file, account, 0o600)
	}
	if err != nil {
		panic(err)
	}
	return m.Key + ":?endpoint=" + m.URL() + "&credentials=" + file + "&" + m.Options + "&" + m.HTTP.Options(r)
}

// series is a TimeSeries as the API reads it.
type series struct {
	Metric struct {
		Type   string            `json:"type"`
		Labels map[string]string `json:"labels"`
	} `json:"metric"`
	Resource struct {
		Type   string            `json:"type"`
		Labels map[string]string `json:"labels"`
	} `json:"resource"`
	Kind   string `json:"metricKind"`
	Type   string `json:"valueType"`
	Points []struct {
		Interval struct {
			Start string `json:"startTime"`
			End   string `json:"endTime"`
		} `json:"interval"`
		Value struct {
			Int    *string  `json:"int64Value"`
			Double *float64 `json:"doubleValue"`
		} `json:"value"`
	} `json:"points"`
}

func (m *Monitoring) take(tb testing.TB, w http.ResponseWriter, r *http.Request, body []byte, mood sinktest.Mood) {
	switch r.Method + " " + r.URL.Path {
	case "POST /token/right":
		m.scope = scopeOf(tb, body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"t0ken","token_type":"Bearer","expires_in":3600}`)
	case "POST /v3/projects/p/metricDescriptors":
		m.Descriptors = append(m.Descriptors, string(body))
		_, _ = w.Write(body)
	case "POST /v3/projects/p/timeSeries":
		m.write(tb, w, body, mood)
	case "POST /v2/entries:write":
		m.writeEntries(tb, w, r, body, mood)
	default:
		tb.Errorf("Google does not take %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}

// scopeOf is what a token is asked for.
func scopeOf(tb testing.TB, form []byte) string {
	values, err := url.ParseQuery(string(form))
	if err != nil {
		tb.Error(err)
	}
	var claims struct {
		Scope string `json:"scope"`
	}
	if parts := strings.Split(values.Get("assertion"), "."); len(parts) == 3 {
		raw, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err == nil {
			err = json.Unmarshal(raw, &claims)
		}
		if err != nil {
			tb.Errorf("a token is asked for by %s: %v", form, err)
		}
	}
	return claims.Scope
}

func (m *Monitoring) write(tb testing.TB, w http.ResponseWriter, body []byte, mood sinktest.Mood) {
	var said struct {
		Series []json.RawMessage `json:"timeSeries"`
	}
	if err := json.Unmarshal(body, &said); err != nil || len(said.Series) == 0 || len(said.Series) > 200 {
		tb.Errorf("Cloud Monitoring does not take %d series: %v", len(said.Series), err)
	}
	var refused, inOrder []string
	once := map[string]bool{}
	holds := m.Holds()
	for i, raw := range said.Series {
		var s series
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&s); err != nil || len(s.Points) != 1 {
			tb.Errorf("Cloud Monitoring does not take %s: %v", raw, err)
			continue
		}
		p := &s.Points[0]
		key, err := json.Marshal([]any{s.Metric, s.Resource})
		if err != nil {
			tb.Error(err)
		}
		cumulative := s.Kind == "CUMULATIVE"
		if once[string(key)] || (s.Type == "INT64") != (p.Value.Int != nil) || (s.Type == "DOUBLE") != (p.Value.Double != nil) ||
			cumulative != (p.Interval.Start < p.Interval.End) || s.Metric.Type == "" {
			tb.Errorf("Cloud Monitoring does not take %s (twice in its request: %t)", raw, once[string(key)])
		}
		once[string(key)] = true
		name := Name(raw)
		switch {
		case mood == sinktest.Refusing:
			refused = append(refused, fmt.Sprint(i))
		case mood == sinktest.HalfRefuses && strings.HasSuffix(s.Metric.Type, m.Refuses):
			refused = append(refused, fmt.Sprint(i))
		case holds[name] > 0:
			inOrder = append(inOrder, fmt.Sprint(i))
		default:
			m.Store(true, name)
		}
	}
	if len(inOrder)+len(refused) == 0 {
		fmt.Fprint(w, "{}")
		return
	}
	var reasons []string
	if len(inOrder) > 0 {
		reasons = append(reasons, "Points must be written in order. One or more of the points specified had an older start time than the most recent point.: global{} timeSeries["+strings.Join(inOrder, ",")+"]")
	}
	switch m.mute++; {
	case len(refused) == 0:
	case m.mute%2 == 0: // it names a whole group, of which it refuses some
		reasons = []string{fmt.Sprintf("timeSeries[0,%d] (example metric.type=\"a\", metric.labels={\"b\": \"c\"}): Monarch refused some", len(said.Series)-1)}
	default:
		reasons = append(reasons, "Value type for metric must be DOUBLE, but is INT64.: timeSeries["+strings.Join(refused, ",")+"]")
	}
	bad := len(inOrder) + len(refused)
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, `{"error":{"code":400,"status":"INVALID_ARGUMENT","message":%q,"details":[{"@type":"type.googleapis.com/google.monitoring.v3.CreateTimeSeriesSummary",`+
		`"totalPointCount":%d,"successPointCount":%d,"errors":[{"status":{"code":3},"pointCount":%d}]}]}}`,
		"One or more TimeSeries could not be written: "+strings.Join(reasons, "; "), len(said.Series), len(said.Series)-bad, bad)
}
