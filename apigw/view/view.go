package view

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heapstream/heapstream/proto/bus"
)

// View holds the clusters this gateway serves.
type View struct {
	cfg  Config
	deps Deps
	tele *telemetry

	mu       sync.RWMutex
	clusters map[string]*Cluster
}

// Config says what a view holds.
type Config struct {
	Window   time.Duration // how much of the past; at least MinWindow, or 0 for the present only
	Clusters []string      // these; none means every cluster the bus knows of
	Own      string        // the cluster of the bare paths: it is there from the start, whether the bus knows it or not
}

// MinWindow is the shortest past a view can remember.
const MinWindow = time.Minute

// DefaultWindow is Heapster's 15 minutes.
const DefaultWindow = 15 * time.Minute

// Deps is what the program hands in.
type Deps struct {
	Bus      *bus.Conn // nil where Run is not called
	Log      *slog.Logger
	Registry prometheus.Registerer // nil: telemetry is kept to itself
	Now      func() time.Time      // nil means time.Now
}

// New returns a view that knows the clusters of cfg and nothing of what they measure yet.
func New(cfg Config, deps Deps) (*View, error) {
	if cfg.Window < MinWindow && cfg.Window != 0 {
		return nil, fmt.Errorf("window of %s: want at least %s, or none", cfg.Window, MinWindow)
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	v := &View{cfg: cfg, deps: deps, tele: newTelemetry(deps.Registry), clusters: map[string]*Cluster{}}
	v.tele.views = []*View{v}
	names := slices.Clone(cfg.Clusters)
	if cfg.Own != "" {
		names = append(names, cfg.Own)
	}
	for _, name := range names {
		if _, err := v.Add(name); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// Add returns the cluster of that name, making an empty one where there is none. It is what Run does for
// every cluster, and what a test does to fill one by Apply.
func (v *View) Add(name string) (*Cluster, error) {
	if name == "" {
		return nil, errors.New("cluster name is empty")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.clusters[name]
	if c == nil {
		c = newCluster(name, v.cfg.Window, v.deps.Now, v.tele.of(name))
		v.clusters[name] = c
	}
	return c, nil
}

// Cluster returns the view of one cluster.
func (v *View) Cluster(name string) (*Cluster, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c, ok := v.clusters[name]
	return c, ok
}

// Clusters returns the names of all clusters, sorted.
func (v *View) Clusters() []string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	names := make([]string, 0, len(v.clusters))
	for name := range v.clusters {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Ready says why the view cannot answer yet, or nil: every cluster it was told to hold has been read.
func (v *View) Ready() error {
	var missing []string
	for _, name := range append(slices.Clone(v.cfg.Clusters), v.cfg.Own) {
		if c, ok := v.Cluster(name); ok && !c.Ready() && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the last rollups of cluster %q have not been read yet", missing)
	}
	return nil
}

// remove forgets a cluster, or what is known of it so that it can be read anew.
func (v *View) remove(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.clusters, name)
}
