package gcptest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/sinks/sinktest"
)

// RefusedMessage is the message of events whose entries Cloud Logging refuses in the mood HalfRefuses, and
// ForbiddenMessage that of those for which it says so of the permission.
const RefusedMessage, ForbiddenMessage = sinktest.RefusedMessage, "forbid me"

// logEntry is a LogEntry as the API reads it.
type logEntry struct {
	Log       string    `json:"logName"`
	Timestamp time.Time `json:"timestamp"`
	Severity  string    `json:"severity"`
	Resource  struct {
		Type string `json:"type"`
	} `json:"resource"`
	ID      string            `json:"insertId"`
	Labels  map[string]string `json:"labels"`
	Payload map[string]any    `json:"jsonPayload"`
}

var (
	logName  = regexp.MustCompile(`^projects/p/logs/[A-Za-z0-9_.%-]+$`)
	severity = regexp.MustCompile(`^(DEFAULT|DEBUG|INFO|NOTICE|WARNING|ERROR|CRITICAL|ALERT|EMERGENCY)$`)
)

// writeEntries is entries:write. What it stores it names by log, time and insertId, which tell entries apart.
func (m *Monitoring) writeEntries(tb testing.TB, w http.ResponseWriter, r *http.Request, body []byte, mood sinktest.Mood) {
	if r.Header.Get("Authorization") != "Bearer t0ken" || m.scope != "https://www.googleapis.com/auth/logging.write" || r.Header.Get("Content-Type") != "application/json" {
		tb.Errorf("Cloud Logging does not take headers %v with a token for %q", r.Header, m.scope)
	}
	var said struct {
		Partial bool       `json:"partialSuccess"`
		Entries []logEntry `json:"entries"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&said); err != nil || !said.Partial || len(said.Entries) == 0 || len(body) > 10e6 {
		tb.Errorf("Cloud Logging does not take %d entries in %d bytes: %v", len(said.Entries), len(body), err)
	}
	m.Requests = append(m.Requests, len(said.Entries))
	failed := map[string]any{}
	var written []string
	for i, e := range said.Entries {
		if !logName.MatchString(e.Log) || !severity.MatchString(e.Severity) || e.Resource.Type != "global" || e.ID == "" || e.Payload["metadata"] == nil {
			tb.Errorf("Cloud Logging does not take %+v", e)
		}
		message, _ := e.Payload["message"].(string)
		switch {
		case mood == sinktest.Refusing, mood == sinktest.HalfRefuses && strings.HasPrefix(message, RefusedMessage):
			failed[fmt.Sprint(i)] = map[string]any{"code": 3, "message": "Log entry is refused."}
		case mood == sinktest.HalfRefuses && strings.HasPrefix(message, ForbiddenMessage):
			failed[fmt.Sprint(i)] = map[string]any{"code": 7, "message": "Permission denied."}
		default:
			written = append(written, e.Log+" "+e.Timestamp.Format(time.RFC3339Nano)+" "+e.ID)
		}
	}
	m.Store(true, written...)
	if len(failed) == 0 {
		fmt.Fprint(w, "{}")
		return
	}
	failure := map[string]any{"code": 400, "status": "INVALID_ARGUMENT", "message": "Log entries are refused."}
	if len(written) > 0 { // requests of which nothing is written do not tell their entries apart
		failure["details"] = []any{
			map[string]any{"@type": "type.googleapis.com/google.rpc.DebugInfo", "detail": "x"},
			map[string]any{"@type": "type.googleapis.com/google.logging.v2.WriteLogEntriesPartialErrors", "logEntryErrors": failed},
		}
	}
	w.WriteHeader(http.StatusBadRequest)
	if err := json.NewEncoder(w).Encode(map[string]any{"error": failure}); err != nil {
		tb.Error(err)
	}
}
