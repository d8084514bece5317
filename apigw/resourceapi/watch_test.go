package resourceapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	"k8s.io/metrics/pkg/client/clientset/versioned"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// moving is a view that is told what it serves.
type moving struct{ now atomic.Pointer[fake] }

func (m *moving) Seq() uint64                                { return m.now.Load().Seq() }
func (m *moving) Nodes() iter.Seq[*view.NodeMetrics]         { return m.now.Load().Nodes() }
func (m *moving) Node(name string) (*view.NodeMetrics, bool) { return m.now.Load().Node(name) }
func (m *moving) Pods(namespace string) iter.Seq[*view.PodMetrics] {
	return m.now.Load().Pods(namespace)
}
func (m *moving) Pod(ns, name string) (*view.PodMetrics, bool) { return m.now.Load().Pod(ns, name) }

// put makes the next state: the one before with these pods, the others as they are; a pod without containers is gone.
func (m *moving) put(pods ...*view.PodMetrics) {
	before := m.now.Load()
	after := &fake{seq: before.seq + 1, nodes: before.nodes, pods: slices.Clone(before.pods)}
	for _, p := range pods {
		p.Seq = after.seq
		i, ok := slices.BinarySearchFunc(after.pods, p, comparePods)
		if ok {
			after.pods = slices.Delete(after.pods, i, i+1)
		}
		if len(p.Containers) > 0 {
			after.pods = slices.Insert(after.pods, i, p)
		}
	}
	m.now.Store(after)
}

func newMoving(f *fake) *moving {
	m := &moving{}
	m.now.Store(f)
	return m
}

// aPod uses so many nanocores; 0 means that it is gone.
func aPod(namespace, name, app string, cpu int64) *view.PodMetrics {
	p := &view.PodMetrics{
		Namespace: namespace, Name: name, UID: name, Labels: []proto.Label{{Key: "app", Value: app}},
		Time: time.Unix(1_800_000_000+cpu, 0).UTC(), Window: 15 * time.Second,
	}
	if cpu > 0 {
		p.Containers = []view.ContainerMetrics{{Name: "c", Usage: view.Usage{CPU: cpu, Memory: 1}}}
	}
	return p
}

func clientOf(t *testing.T, v *served, contentType string) *versioned.Clientset {
	t.Helper()
	client, err := versioned.NewForConfig(&rest.Config{
		Host: v.url, BearerToken: "alice", TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// next waits for an event and says it in a few words.
func next(t *testing.T, w watch.Interface) string {
	t.Helper()
	select {
	case e, ok := <-w.ResultChan():
		if !ok {
			return "closed"
		}
		return say(e)
	case <-time.After(2 * deadline):
		t.Fatal("no event")
		return ""
	}
}

func say(e watch.Event) string {
	switch o := e.Object.(type) {
	case *metricsv1.PodMetrics:
		s := fmt.Sprintf("%s %s/%s", e.Type, o.Namespace, o.Name)
		for _, c := range o.Containers {
			s += " " + c.Usage.Cpu().String()
		}
		if o.Annotations[metav1.InitialEventsAnnotationKey] == "true" {
			s += " end of initial events"
		}
		return s
	case *metricsv1.NodeMetrics:
		return fmt.Sprintf("%s %s %s", e.Type, o.Name, o.Usage.Cpu())
	case *metav1.Status:
		return fmt.Sprintf("%s %d %s", e.Type, o.Code, o.Reason)
	}
	return fmt.Sprintf("%s %T", e.Type, e.Object)
}

func TestWatchFollowsWhatAListSaw(t *testing.T) {
	source := newMoving(shop())
	v := start(t, map[string]Source{"": source}, nil)
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		source.put(aPod("shop", "cart", "cart", 1), aPod("shop", "new", "new", 0)) // as at the beginning
		pods := clientOf(t, v, contentType).MetricsV1().PodMetricses("shop")
		list, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "app in (cart, new)", Limit: 500})
		if err != nil {
			t.Fatal(err)
		}
		w, err := pods.Watch(t.Context(), metav1.ListOptions{LabelSelector: "app in (cart, new)", ResourceVersion: list.ResourceVersion})
		if err != nil {
			t.Fatal(err)
		}
		check := func(want string) {
			t.Helper()
			got := next(t, w)
			for strings.HasSuffix(got, "shop/cart 1n") && got != want { // what the list saw already may come again
				got = next(t, w)
			}
			if got != want {
				t.Errorf("%s: got %q, want %q", contentType, got, want)
			}
		}
		source.put(aPod("shop", "cart", "cart", 2))
		check("MODIFIED shop/cart 2n")
		source.put(aPod("shop", "cart", "cart", 2)) // the same again: nothing to tell
		source.put(aPod("kube-system", "new", "new", 5))
		source.put(aPod("shop", "till", "till", 5)) // not selected
		source.put(aPod("shop", "new", "new", 7))
		check("ADDED shop/new 7n")
		source.put(aPod("shop", "new", "other", 8)) // selected no longer
		check("DELETED shop/new 7n")
		source.put(aPod("shop", "new", "new", 9))
		check("ADDED shop/new 9n")
		source.put(aPod("shop", "new", "new", 0))
		check("DELETED shop/new 9n")
		w.Stop()
	}
	// nodes, in the older version
	client := clientOf(t, v, "application/json").MetricsV1beta1().NodeMetricses()
	w, err := client.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=n2"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Type != watch.Added {
		t.Errorf("got %v %+v, want what is there first", e.Type, e.Object)
	}
}

func TestWatchListSendsWhatIsThereAndSaysWhereItEnds(t *testing.T) {
	source := newMoving(shop())
	v := start(t, map[string]Source{"": source}, nil)
	yes := true
	w, err := clientOf(t, v, "application/json").MetricsV1().PodMetricses("shop").Watch(t.Context(), metav1.ListOptions{
		SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, want := range []string{"ADDED shop/cart 10000001n 2m", "ADDED shop/till 3", "BOOKMARK / end of initial events"} {
		if got := next(t, w); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	source.put(aPod("shop", "till", "till", 5))
	if got, want := next(t, w), "MODIFIED shop/till 5n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := next(t, w), "BOOKMARK /"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestInformerFollows runs a stock informer against a view that changes all the time.
func TestInformerFollows(t *testing.T) {
	source := newMoving(shop())
	v := start(t, map[string]Source{"": source}, nil)
	client := clientOf(t, v, "application/vnd.kubernetes.protobuf").MetricsV1().PodMetricses("")
	informer := cache.NewSharedInformer(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, o)
		},
	}, &metricsv1.PodMetrics{}, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		source.put(aPod("ns", fmt.Sprint("p", r.IntN(20)), "a", r.Int64N(4)), aPod("ns", fmt.Sprint("p", r.IntN(20)), "a", int64(i)))
	}
	want := map[string]string{}
	for p := range source.Pods("") {
		o := podObject(p, requestTime)
		want[p.Namespace+"/"+p.Name] = o.Containers[0].Usage.Cpu().String()
	}
	got := map[string]string{}
	v.eventually("the informer knows what is served", func() bool {
		clear(got)
		for _, key := range informer.GetStore().ListKeys() {
			if o, ok, _ := informer.GetStore().GetByKey(key); ok {
				got[key] = o.(*metricsv1.PodMetrics).Containers[0].Usage.Cpu().String()
			}
		}
		return maps.Equal(got, want)
	})
}

func TestWatchRefusesVersionsItCannotContinue(t *testing.T) {
	source := newMoving(shop())
	v := start(t, map[string]Source{"": source}, nil)
	pods := clientOf(t, v, "application/json").MetricsV1().PodMetricses("")
	for version, want := range map[string]func(error) bool{
		"41":                   apierrors.IsResourceExpired, // nobody looked then
		"99":                   apierrors.IsResourceExpired, // never was
		"abc":                  apierrors.IsBadRequest,
		"-1":                   apierrors.IsBadRequest,
		"18446744073709551616": apierrors.IsBadRequest,
	} {
		if w, err := pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: version}); !want(err) {
			t.Errorf("from %s: %v", version, err)
			if err == nil {
				w.Stop()
			}
		}
	}
	// a version that another gateway has seen already is waited for
	done := make(chan string, 1)
	go func() {
		w, err := pods.Watch(context.WithoutCancel(t.Context()), metav1.ListOptions{ResourceVersion: "43"})
		if err != nil {
			done <- err.Error()
			return
		}
		defer w.Stop()
		done <- say(<-w.ResultChan())
	}()
	source.put(aPod("shop", "till", "till", 5))
	if got := <-done; got != "MODIFIED shop/till 5n" && !strings.Contains(got, "ahead") {
		t.Errorf("from 43: %s", got)
	}
}

func TestStreamMadeAnewEndsWatches(t *testing.T) {
	var source atomic.Value
	source.Store(newMoving(shop()))
	h := newHubs(func(string) (Source, bool) { return source.Load().(Source), true }, time.Now).of("", kindPod)
	w, err := h.start(t.Context(), "", true)
	if err != nil {
		t.Fatal(err)
	}
	source.Store(newMoving(shop()))
	h.tick()
	if _, _, behind := w.entries(make([]entry, 1)); !behind {
		t.Error("the watch goes on in another stream")
	}
}

func TestWatchEndsAtItsTime(t *testing.T) {
	v := start(t, map[string]Source{"": shop()}, nil)
	code, body := v.get("/apis/metrics.k8s.io/v1/nodes?watch=true&timeoutSeconds=5", "alice")
	if n := strings.Count(body, `"type":"ADDED"`); code != 200 || n != 2 {
		t.Errorf("%d, %d events: %s", code, n, body)
	}
	code, body = v.get("/apis/metrics.k8s.io/v1/nodes?watch=true&timeoutSeconds=5", "alice", "Accept", acceptTable)
	if n := strings.Count(body, `"kind":"Table"`); code != 200 || n != 2 || strings.Count(body, `"columnDefinitions":[{`) != 1 {
		t.Errorf("%d, %d tables, want 2, and headers once: %s", code, n, body)
	}
	code, body = v.get("/clusters/x/apis/metrics.k8s.io/v1/nodes?watch=true&timeoutSeconds=5", "alice")
	if code != 404 {
		t.Errorf("of another cluster: %d %s", code, body)
	}
}

func TestNoMoreWatchesThanAreServed(t *testing.T) {
	h := newHubs(func(string) (Source, bool) { return shop(), true }, time.Now)
	for range maxWatches {
		if err := h.admit(); err != nil {
			t.Fatal(err)
		}
	}
	err := h.admit()
	if seconds, ok := apierrors.SuggestsClientDelay(err); !apierrors.IsTooManyRequests(err) || !ok || seconds < 1 {
		t.Errorf("one too many: %v", err)
	}
	h.leave()
	if err := h.admit(); err != nil {
		t.Errorf("after one left: %v", err)
	}
}

// newWatcher is a watch without a server. It runs until the test ends.
func newWatcher(t *testing.T, h *hubs, options *metainternal.ListOptions) watch.Interface {
	t.Helper()
	s := &store{cluster: func(context.Context) (string, error) { return "", nil }, hubs: h}
	w, err := s.watch(t.Context(), kindPod, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Stop()
		for range w.ResultChan() {
		}
	})
	return w
}

// Who does not read is told so when he reads again, and costs what the log costs.
func TestSlowWatchIsToldToListAgain(t *testing.T) {
	source := newMoving(&fake{seq: 1})
	h := newHubs(func(string) (Source, bool) { return source, true }, time.Now)
	w := newWatcher(t, h, &metainternal.ListOptions{})
	hub := h.of("", kindPod)
	for i := range int64(2*logLeast + 2*eventBuffer) {
		source.put(aPod("ns", "p", "a", i+1))
		hub.tick()
	}
	hub.mu.Lock()
	if len(hub.log) > logLeast {
		t.Errorf("the log holds %d entries, want at most %d", len(hub.log), logLeast)
	}
	hub.mu.Unlock()
	n := 0
	for e := range w.ResultChan() {
		n++
		if e.Type != watch.Error {
			continue
		}
		if status, ok := e.Object.(*metav1.Status); !ok || status.Code != http.StatusGone || status.Reason != metav1.StatusReasonExpired {
			t.Errorf("the last event is %+v", e.Object)
		}
		if n > eventBuffer+2 {
			t.Errorf("%d events before the end, want no more than were waiting", n)
		}
		return
	}
	t.Errorf("%d events and no word of those that are missing", n)
}

func TestEventIsEncodedOnceForAllWhoTakeItInOneForm(t *testing.T) {
	i := &item{pod: aPod("ns", "p", "a", 5), version: 7}
	encoded := 0
	encode := func(o runtime.Object, w io.Writer) error {
		encoded++
		return json.NewEncoder(w).Encode(o)
	}
	var first string
	for range 100 {
		var b bytes.Buffer
		if err := i.CacheEncode("json", encode, &b); err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = b.String()
		}
		if b.String() != first || !strings.Contains(first, `"resourceVersion":"7"`) {
			t.Fatalf("got %s, want %s", b.String(), first)
		}
	}
	if encoded != 1 {
		t.Errorf("encoded %d times", encoded)
	}
	for k := range 2 * maxEncodings {
		if err := i.CacheEncode(runtime.Identifier(fmt.Sprint(k)), encode, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if len(i.encoded) > maxEncodings {
		t.Errorf("keeps %d forms", len(i.encoded))
	}
}

// racing is a view that goes on while it is looked at: every so many rows it serves a newer state.
type racing struct {
	moving
	step func()
}

func (r *racing) Pods(namespace string) iter.Seq[*view.PodMetrics] {
	return func(yield func(*view.PodMetrics) bool) {
		last := &view.PodMetrics{}
		for {
			pods := r.now.Load().pods
			i, ok := slices.BinarySearchFunc(pods, last, comparePods)
			if ok {
				i++
			}
			if i == len(pods) {
				return
			}
			last = pods[i]
			if !yield(last) {
				return
			}
			r.step()
		}
	}
}

// TestNoChangeIsMissed follows a view that changes at any moment, also while it is looked at or listed, by lists and
// watches that break at any moment, and holds what a client makes of it against what is served in the end.
func TestNoChangeIsMissed(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 7))
		source := &racing{}
		source.now.Store(&fake{seq: 10})
		change := func() {
			source.put(aPod("ns", fmt.Sprint("p", r.IntN(8)), fmt.Sprint("a", r.IntN(2)), r.Int64N(3)), aPod("ns", fmt.Sprint("p", r.IntN(8)), "a0", r.Int64N(3)))
		}
		calm, race := func() {}, func() {
			if r.IntN(3) == 0 {
				change()
			}
		}
		source.step = race
		hub := newHubs(func(string) (Source, bool) { return source, true }, time.Now).of("", kindPod)
		selector, err := labels.Parse("app=a0")
		if err != nil {
			t.Fatal(err)
		}
		served := func(into map[string]int64) {
			clear(into)
			for p := range source.Pods("") {
				if selector.Matches(view.Labels(p.Labels)) {
					into[p.Name] = p.Containers[0].CPU
				}
			}
		}
		state, version := map[string]int64{}, ""
		look := func() {
			hub.mu.Lock()
			defer hub.mu.Unlock()
			hub.look(time.Now())
		}
		list := func() {
			rows, position, err := hub.snapshot()
			if err != nil {
				t.Fatal(err)
			}
			version = resourceVersion(position)
			clear(state)
			for _, r := range rows {
				if selector.Matches(view.Labels(r.pod.Labels)) {
					state[r.pod.Name] = r.pod.Containers[0].CPU
				}
			}
		}
		list()
		const rounds = 40
		for round := range int64(rounds) {
			last := round == rounds-1
			for range r.IntN(3) {
				change()
			}
			source.step = race
			look()
			source.step = calm
			source.put(aPod("ns", "z", "a0", round+1)) // the mark: the last to be told of this round
			look()
			place, err := hub.start(t.Context(), version, false)
			if apierrors.IsResourceExpired(err) {
				list()
				continue
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			w := &watcher{place: place, selection: selection{labels: selector}, kind: kindPod, events: make(chan watch.Event), stop: make(chan struct{})}
			done := make(chan struct{})
			go func() { defer close(done); w.run(t.Context()) }()
			shown := uint64(0)
			breaks := r.IntN(12) // after so many events, or at the mark
			for n := 0; last || n < breaks; n++ {
				e := <-w.events
				i, ok := e.Object.(*item)
				if !ok {
					t.Fatalf("seed %d: %+v", seed, e)
				}
				if e.Type == watch.Deleted {
					delete(state, i.pod.Name)
				} else {
					state[i.pod.Name] = i.pod.Containers[0].CPU
				}
				if i.version < shown {
					t.Fatalf("seed %d, round %d: version %d comes after %d", seed, round, i.version, shown)
				}
				shown, version = i.version, resourceVersion(i.version)
				if i.pod.Name == "z" && i.pod.Containers[0].CPU == round+1 {
					want := map[string]int64{}
					if served(want); !maps.Equal(state, want) {
						t.Fatalf("seed %d, round %d: the client has %v, served are %v", seed, round, state, want)
					}
					break
				}
			}
			w.Stop()
			<-done
			place.close()
		}
	}
}

func TestKubectlWatches(t *testing.T) {
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("SKIP: kubectl is not installed")
	}
	source := newMoving(shop())
	v := start(t, map[string]Source{"": source}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*deadline)
	defer cancel()
	home := t.TempDir()
	cmd := exec.CommandContext(ctx, path, "--kubeconfig=/dev/null", "--cache-dir="+home, "--server="+v.url, "--token=alice", "--insecure-skip-tls-verify", //nolint:gosec // found above
		"get", "podmetrics", "-n", "shop", "-w", "-o", "wide")
	cmd.Env = []string{"HOME=" + home}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	for _, want := range []string{"NAME cpu memory Window swap", "cart 12000001n 80Mi 15s 4Ki", "till 3 2Gi 15s"} {
		if !lines.Scan() || !strings.EqualFold(strings.Join(strings.Fields(lines.Text()), " "), want) {
			t.Fatalf("kubectl prints %q, want %q; %s", lines.Text(), want, complaints.String())
		}
	}
	source.put(aPod("shop", "till", "till", 5_000_000))
	for lines.Scan() {
		if strings.Join(strings.Fields(lines.Text()), " ") == "till 5m 1 15s" {
			return
		}
	}
	t.Errorf("kubectl does not print what changed: %s", complaints.String())
}
