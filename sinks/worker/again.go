package worker

import (
	"context"
	"errors"

	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/sinks/sink"
)

// feedAgain writes the letters that an operator has driven again to this sink, until ctx ends. Each goes alone,
// by a sink of its own beside those that write what is new, so that neither waits for the other; what is refused
// once more is a letter once more.
func (w *Worker) feedAgain(ctx context.Context) error {
	f := w.newFeeder("", bus.DeadStream)
	defer f.close()
	lanes := map[string]*lane{} // by cluster
	err := f.run(ctx, bus.DurableConfig{Subjects: []string{bus.AgainSubject(bus.SinkLease(w.cfg.Name))}}, func(ctx context.Context, batch []bus.Delivery) error {
		for i := range batch {
			m, err := f.decode(0, batch[i].Data)
			if err != nil {
				f.tel.undecodable.Inc()
				if err := f.dead(ctx, batch[i], err.Error(), nil); err != nil {
					return err
				}
				continue
			}
			cluster := clusterOf(&m)
			l := lanes[cluster]
			if l == nil {
				if l, err = f.open(cluster); err != nil {
					return err
				}
				lanes[cluster] = l
			}
			if err := l.write(ctx, batch[i:i+1], []sink.Message{m}); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, bus.ErrNotPermitted) {
		// Streams and users of an older version: what is new is written all the same.
		w.log.Warn("letters cannot be driven again to this sink: its bus user may not read them", "err", err)
		return nil
	}
	return err
}
