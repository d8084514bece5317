package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	corev1 "k8s.io/api/core/v1"

	"github.com/heapstream/heapstream/deploy/standalone"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// book is what a sink wrote, readable while it writes.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *book) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// unpacked returns the body of a message, nil where there is none: its last element, as bytes in a Snappy
// block; see proto/encoding.go.
func unpacked(message []byte) []byte {
	for at := range message {
		rest := message[at:]
		var packed []byte
		switch {
		case len(rest) > 2 && rest[0] == 0xc4 && int(rest[1]) == len(rest)-2: // msgpack's bin 8
			packed = rest[2:]
		case len(rest) > 3 && rest[0] == 0xc5 && int(binary.BigEndian.Uint16(rest[1:])) == len(rest)-3: // bin 16
			packed = rest[3:]
		default:
			continue
		}
		if body, err := s2.Decode(nil, packed); err == nil {
			return body
		}
	}
	return nil
}

// labels are what the log sink wrote of an entity first, by name.
func (b *book) labels(key string) map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, set, _ := strings.Cut(b.b.String(), "MetricSet: "+key+"\n")
	_, set, _ = strings.Cut(set, "   Labels:\n")
	set, _, whole := strings.Cut(set, "   Metrics:\n")
	if !whole {
		return nil
	}
	labels := map[string]string{}
	for line := range strings.Lines(set) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		labels[name] = value
	}
	return labels
}

// TestLabelsAreFormattedWhereTheyLeave runs with all of the label flags and finds labels as they say in what a sink
// writes and the gateway answers, and raw in the bytes on the bus: another gateway or sink may want them otherwise.
func TestLabelsAreFormattedWhereTheyLeave(t *testing.T) {
	o := startOracle(t)
	written := &book{}
	s := launch(t, standalone.Deps{Out: written}, "--source="+o.source(), "--metric_resolution=5s", "--cluster=oracle", "--sink=log",
		"--label_seperator=<and>", "--ignore_label=pod-template-hash", "--ignore_label=kubernetes.io/hostname", "--store_label=app,layer=tier,hash=pod-template-hash")

	// A pod of the oracle, as its API server has it.
	var pods corev1.PodList
	if err := json.Unmarshal(gunzip(t, "oracle/api-pods.json.gz"), &pods); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Name == "web-8a5f9-0001-02" })
	pod := pods.Items[i]
	if len(pod.Labels) != 3 || pod.Labels["app"] != "app-2" || pod.Labels["tier"] != "cache" || pod.Labels["pod-template-hash"] != "8a5f9" {
		t.Fatalf("the oracle's pod has the labels %v", pod.Labels)
	}
	const joined = "app:app-2<and>tier:cache"

	wrong := func(labels map[string]string) string {
		for name, value := range map[string]string{"labels": joined, "app": "app-2", "layer": "cache", "hash": "8a5f9"} {
			if labels[name] != value {
				return fmt.Sprintf("%s is %q, want %q, in %v", name, labels[name], value, labels)
			}
		}
		return ""
	}
	eventually(t, 2*time.Minute, func() bool { return written.labels("namespace:ns-00/pod:"+pod.Name) != nil }, func() string { return "the sink has not written the pod" })
	if what := wrong(written.labels("namespace:ns-00/pod:" + pod.Name)); what != "" {
		t.Errorf("what the sink wrote: %s", what)
	}

	var exported map[string]string
	eventually(t, 2*time.Minute, func() bool {
		var timeseries []struct{ Labels map[string]string }
		if !s.getJSON(t, "/api/v1/metric-export", &timeseries) {
			return false
		}
		for _, ts := range timeseries {
			if ts.Labels["pod_name"] == pod.Name {
				exported = ts.Labels
				return true
			}
		}
		return false
	}, func() string { return "the gateway does not export the pod" })
	if exported["labels"] != joined { // the only one of them that Heapster exported
		t.Errorf("the gateway joins labels to %q, want %q", exported["labels"], joined)
	}

	// The bus: every rollup and every batch of the node, as bytes and as the codec reads them.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn := s.conn(t)
	want := []proto.Label{{Key: "app", Value: "app-2"}, {Key: "pod-template-hash", Value: "8a5f9"}, {Key: "tier", Value: "cache"}}
	dec := proto.NewDecoder()
	for _, stream := range []bus.ReplayConfig{
		{Stream: bus.RollupsStream("oracle"), Subjects: bus.RollupFilters("oracle")},
		{Stream: bus.SamplesStream("oracle"), Subjects: []string{bus.SamplesFilter("oracle")}},
	} {
		found := false
		for d, err := range conn.Replay(ctx, stream) {
			if err != nil {
				t.Fatal(err)
			}
			var table *proto.Table
			if strings.HasPrefix(d.Subject, "hs.samples.") {
				var b proto.Batch
				err, table = dec.Batch(d.Data, &b), &b.Table
			} else {
				var r proto.Rollup
				err, table = dec.Rollup(d.Data, &r), &r.Table
			}
			if err != nil {
				t.Fatal(err)
			}
			body := unpacked(d.Data)
			if body == nil {
				t.Fatalf("no compressed body in a message on %s", d.Subject)
			}
			for _, text := range []string{"<and>", "app:app-2", "layer"} {
				if bytes.Contains(body, []byte(text)) {
					t.Fatalf("%q is on %s", text, d.Subject)
				}
			}
			for i := range table.Entities {
				e := &table.Entities[i]
				if e.Kind != proto.KindPod || e.Name != pod.Name {
					continue
				}
				found = true
				if !slices.Equal(e.Labels, want) {
					t.Fatalf("labels on %s: %v", d.Subject, e.Labels)
				}
				if !bytes.Contains(body, []byte("pod-template-hash")) {
					t.Fatalf("the bytes on %s do not have the label that is ignored where it leaves", d.Subject)
				}
			}
			if found {
				break
			}
		}
		if !found {
			t.Errorf("pod %s is not on %s", pod.Name, stream.Stream)
		}
	}
}
