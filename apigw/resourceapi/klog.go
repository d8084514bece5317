package resourceapi

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	"k8s.io/klog/v2"
)

var klogOnce sync.Once

// routeKlog sends klog, by which the Kubernetes libraries speak, to log. klog is one per process and may be set only
// while nobody uses it, so the first call decides, before anything is started.
func routeKlog(log *slog.Logger) {
	klogOnce.Do(func() { klog.SetSlogLogger(slog.New(quieter{log.Handler()})) })
}

// quieter lowers Info to Debug: what the libraries find worth telling (controllers started, certificates loaded) is
// not a change of our state. Warnings and errors pass.
type quieter struct{ next slog.Handler }

func lowered(l slog.Level) slog.Level {
	if l < slog.LevelWarn {
		return l - (slog.LevelInfo - slog.LevelDebug)
	}
	return l
}

func (q quieter) Enabled(ctx context.Context, l slog.Level) bool {
	return q.next.Enabled(ctx, lowered(l))
}

func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lowered(r.Level)
	if r.Level > slog.LevelDebug && clientLeft(r) {
		if r.Level = slog.LevelDebug; !q.next.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return q.next.Handle(ctx, r)
}

// clientLeft reports whether a record is about a client that did not wait for its answer. The API server does so all the
// time: it asks whether we are there five times at once, and hangs up when the first answer comes. The libraries call
// that an error, three times over; their telemetry counts it.
func clientLeft(r slog.Record) (left bool) {
	switch r.Message {
	case "Timeout or abort while handling", "Post-timeout activity":
		return true
	case "Unhandled Error":
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" {
				text := a.Value.String()
				left = strings.Contains(text, "http2: stream closed") || strings.Contains(text, "http: Handler timeout") || strings.Contains(text, "client disconnected")
			}
			return !left
		})
	}
	return left
}

func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.next.WithAttrs(a)} }
func (q quieter) WithGroup(name string) slog.Handler   { return quieter{q.next.WithGroup(name)} }
