package inventory

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto/bus"
)

// Telemetry is numbers about ourselves. Its nil value records nothing.
type Telemetry struct {
	lead      prometheus.Gauge
	published *prometheus.CounterVec
}

// NewTelemetry registers the numbers; it fails only where something of that name is there already.
func NewTelemetry(r prometheus.Registerer) (*Telemetry, error) {
	t := &Telemetry{
		lead: prometheus.NewGauge(prometheus.GaugeOpts{Name: "heapstream_scraper_inventory_leading", Help: "1 while this process publishes the inventory."}),
		published: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heapstream_scraper_inventory_published_total",
			Help: "Inventories published whole, by subject."}, []string{"subject"}),
	}
	for _, s := range []string{bus.InventoryNodes, bus.InventoryNamespaces, bus.InventoryOwners} {
		t.published.WithLabelValues(s)
	}
	if err := errors.Join(r.Register(t.lead), r.Register(t.published)); err != nil {
		return nil, fmt.Errorf("register telemetry of the inventory: %w", err)
	}
	return t, nil
}

func (t *Telemetry) leading(yes bool) {
	if t == nil {
		return
	}
	if yes {
		t.lead.Set(1)
	} else {
		t.lead.Set(0)
	}
}

func (t *Telemetry) sent(subject string) {
	if t != nil {
		t.published.WithLabelValues(subject).Inc()
	}
}
