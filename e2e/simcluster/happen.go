package simcluster

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Event is what tells an event apart, and its newest state.
type Event struct {
	UID             string `json:"uid"`
	Namespace       string `json:"namespace"`
	Name            string `json:"name"`
	Count           int32  `json:"count"`
	ResourceVersion uint64 `json:"resourceVersion"` // of that state
}

// NewEvent records that something happened to a running pod: an event that was seen once.
func (c *Cluster) NewEvent() (Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pods := c.stores["pods"].sorted
	for range len(pods) {
		c.eventSeq++
		r := pods[mix(c.cfg.Seed, 81, c.eventSeq)%uint64(len(pods))]
		p, ok := r.st.(*podState)
		if !ok { // recorded ones have no place of their own
			continue
		}
		ct := p.containers[0].t.name
		return c.event(p.involved(ct), corev1.EventTypeWarning, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "kubelet", p.node.name), nil
	}
	return Event{}, errors.New("no pod of the simulated cluster can have an event")
}

// RepeatEvent records that what an event tells of happened again: its count goes up, and its last time is now.
func (c *Cluster) RepeatEvent(ns, name string) (Event, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.stores["events"].get(ns, name)
	if r == nil {
		return Event{}, fmt.Errorf("no event %s/%s in the simulated cluster: at most %d are kept", ns, name, c.cfg.EventsKept)
	}
	e := r.st.build().(*corev1.Event)
	e.Count++
	e.LastTimestamp = metav1.NewTime(c.now())
	c.put("events", fixed{e})
	return told(e, c.rv), nil
}

// Events are the events that are kept, each in its newest state, in order of namespace and name.
func (c *Cluster) Events() []Event {
	c.mu.Lock()
	kept := c.stores["events"].snapshot()
	c.mu.Unlock()
	out := make([]Event, 0, len(kept))
	for _, r := range kept {
		out = append(out, told(r.st.(fixed).obj.(*corev1.Event), r.rv))
	}
	return out
}

func told(e *corev1.Event, rv uint64) Event {
	return Event{UID: string(e.UID), Namespace: e.Namespace, Name: e.Name, Count: e.Count, ResourceVersion: rv}
}

// happen answers /sim/events: n new ones, or one that happens n times more.
func (c *Cluster) happen(event, count string) ([]Event, error) {
	n := 1
	if count != "" {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 || n > c.cfg.EventsKept {
			return nil, fmt.Errorf("n is %q: want a number from 1 to %d", count, c.cfg.EventsKept)
		}
	}
	ns, name, _ := strings.Cut(event, "/")
	out := make([]Event, 0, n)
	for range n {
		var e Event
		var err error
		if event == "" {
			e, err = c.NewEvent()
		} else {
			e, err = c.RepeatEvent(ns, name)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}
