package resourceapi

import (
	"context"
	"log/slog"
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
	return q.next.Handle(ctx, r)
}

func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.next.WithAttrs(a)} }
func (q quieter) WithGroup(name string) slog.Handler   { return quieter{q.next.WithGroup(name)} }
