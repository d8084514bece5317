package resourceapi

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/metrics/pkg/apis/metrics/install"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

var bothVersions = []schema.GroupVersion{metricsv1.SchemeGroupVersion, metricsv1beta1.SchemeGroupVersion}

func newCodecs() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	return serializer.NewCodecFactory(scheme)
}

// checkSameBytes encodes l in every form we know and compares with what the library makes of its objects.
func checkSameBytes(t *testing.T, codecs serializer.CodecFactory, l *list) {
	t.Helper()
	l.formats = newFormats(codecs, bothVersions...)
	if len(l.formats) != 4 {
		t.Fatalf("%d formats, want JSON and protobuf of two versions", len(l.formats))
	}
	for _, info := range codecs.SupportedMediaTypes() {
		if info.MediaType == runtime.ContentTypeYAML {
			continue // made of objects
		}
		for _, gv := range bothVersions {
			encoder := codecs.EncoderForVersion(info.Serializer, gv)
			var ours, theirs bytes.Buffer
			if err := encoder.Encode(l, &ours); err != nil {
				t.Fatal(err)
			}
			if err := encoder.Encode(l.GetObject(), &theirs); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(ours.Bytes(), theirs.Bytes()) {
				a, b := ours.Bytes(), theirs.Bytes()
				at := 0
				for at < min(len(a), len(b)) && a[at] == b[at] {
					at++
				}
				from := max(0, at-60)
				t.Fatalf("%s of %s %s differs at byte %d:\nours   %q\ntheirs %q", info.MediaType, gv, l.kind, at,
					a[from:min(len(a), at+60)], b[from:min(len(b), at+60)])
			}
		}
	}
}

func TestListsAreTheBytesOfTheGenericEncoder(t *testing.T) {
	codecs := newCodecs()
	at := time.Date(2026, 2, 3, 4, 5, 6, 789, time.FixedZone("", 3600))
	now := at.Add(3 * time.Second)
	check := func(l list) {
		t.Helper()
		l.now = now
		checkSameBytes(t, codecs, &l)
	}
	// nothing
	check(list{kind: kindNode})
	check(list{kind: kindPod, position: 7})
	// everything empty
	check(list{kind: kindNode, nodes: []*view.NodeMetrics{{}}})
	check(list{kind: kindPod, pods: []*view.PodMetrics{{}, {Containers: []view.ContainerMetrics{{}}}}})
	// what comes from outside and needs escaping
	nasty := "a\"b\\c<d>&\u2028\x00\x7f\xffé"
	check(list{kind: kindPod, pods: []*view.PodMetrics{{
		Namespace: nasty, Name: nasty, Labels: []proto.Label{{Key: nasty, Value: nasty}},
		Containers: []view.ContainerMetrics{{Name: nasty}},
	}}})
	// the usual, with messages longer than one length byte can say
	check(list{kind: kindNode, position: math.MaxUint64, nodes: []*view.NodeMetrics{{
		Name: "n1", Labels: []proto.Label{{Key: "a", Value: strings.Repeat("x", 200)}, {Key: "b"}},
		Time: at, Window: 15*time.Second + 3*time.Millisecond, Seq: 12,
		Usage: view.Usage{CPU: 1234567890, Memory: 5 << 30, Swap: 1000, HasSwap: true},
	}}})
	check(list{kind: kindPod, position: 12, pods: []*view.PodMetrics{{
		Namespace: "shop", Name: "cart", Time: at, Window: time.Minute, Seq: 1 << 40,
		Containers: []view.ContainerMetrics{
			{Name: "app", Usage: view.Usage{CPU: 1, Memory: 1}},
			{Name: strings.Repeat("long", 5000), Usage: view.Usage{HasSwap: true}},
		},
	}}})
}

func TestLongListsAreTheBytesOfTheGenericEncoder(t *testing.T) {
	l := &list{kind: kindPod, position: 5, now: time.Unix(1_800_000_000, 0), pods: slices.Collect(newFake(7, 3000).Pods(""))}
	checkSameBytes(t, newCodecs(), l)
}

// A Table, YAML and indented JSON need objects; the codec must get them.
func TestListBecomesObjectsForOtherForms(t *testing.T) {
	codecs := newCodecs()
	l := &list{kind: kindNode, now: time.Unix(0, 0), nodes: []*view.NodeMetrics{{Name: "n1"}}, formats: newFormats(codecs, bothVersions...)}
	for _, info := range codecs.SupportedMediaTypes() {
		if info.MediaType != runtime.ContentTypeYAML {
			continue
		}
		var b bytes.Buffer
		if err := codecs.EncoderForVersion(info.Serializer, metricsv1.SchemeGroupVersion).Encode(l, &b); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), "kind: NodeMetricsList\n") {
			t.Fatalf("YAML:\n%s", b.String())
		}
	}
}

type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, fmt.Errorf("gone")
	}
	return len(p), nil
}

func TestEncodersStopWhenTheClientIsGone(t *testing.T) {
	codecs := newCodecs()
	l := &list{kind: kindPod, now: time.Unix(0, 0), pods: slices.Collect(newFake(7, 3000).Pods("")), formats: newFormats(codecs, bothVersions...)}
	for id, f := range l.formats {
		for pieces := range 2 {
			if f.protobuf && pieces > 0 {
				continue // comes in one
			}
			err := l.CacheEncode(id, func(runtime.Object, io.Writer) error { return nil }, &failing{left: pieces})
			if err == nil || err.Error() != "gone" {
				t.Errorf("%+v, %d pieces taken: %v, want the writer's error", f, pieces, err)
			}
		}
	}
}

func FuzzPodIsTheBytesOfTheGenericEncoder(f *testing.F) {
	codecs := newCodecs()
	f.Add("shop", "cart", "app", "cart", "proxy", int64(1_234_567), int64(1<<30), int64(1_800_000_000), int64(15*time.Second), uint64(7), true)
	f.Add("", "", "", "", "", int64(0), int64(0), int64(0), int64(0), uint64(0), false)
	f.Fuzz(func(t *testing.T, namespace, name, key, value, container string, cpu, memory, at, window int64, seq uint64, swap bool) {
		u := view.Usage{CPU: cpu & math.MaxInt64, Memory: memory & math.MaxInt64, Swap: cpu & math.MaxInt64, HasSwap: swap}
		p := &view.PodMetrics{
			Namespace: namespace, Name: name, Labels: []proto.Label{{Key: key, Value: value}},
			Time: time.Unix(at%1e11, 0), Window: time.Duration(window), Seq: seq,
			Containers: []view.ContainerMetrics{{Name: container, Usage: u}, {Name: name, Usage: u}},
		}
		n := &view.NodeMetrics{Name: name, Time: p.Time, Window: p.Window, Seq: seq, Usage: u}
		now := time.Unix(at%1e10, 0)
		checkSameBytes(t, codecs, &list{kind: kindPod, pods: []*view.PodMetrics{p, p}, position: seq, now: now})
		checkSameBytes(t, codecs, &list{kind: kindNode, nodes: []*view.NodeMetrics{n}, position: seq, now: now})
	})
}
