package simcluster_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/heapstream/heapstream/e2e/simcluster"
	"github.com/heapstream/heapstream/e2e/simcluster/simtest"
)

func small() simcluster.Config {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.PodsPerNode, cfg.Recorded = 4, 8, true
	return cfg
}

func restConfig(c *simcluster.Cluster, contentType string) *rest.Config {
	return &rest.Config{Host: c.SecureAPIServer(), BearerToken: c.Token(), TLSClientConfig: rest.TLSClientConfig{CAData: c.CA()},
		ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType}, QPS: 1000, Burst: 1000}
}

func clientset(t testing.TB, c *simcluster.Cluster, contentType string) *kubernetes.Clientset {
	t.Helper()
	cs, err := kubernetes.NewForConfig(restConfig(c, contentType))
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for !fact() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 2 min: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

var contentTypes = []string{"application/json", "application/vnd.kubernetes.protobuf"}

func TestInformerFollowsPodsOfOneNode(t *testing.T) {
	for _, ct := range contentTypes {
		for _, streaming := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/streaming=%t", filepath.Base(ct), streaming), func(t *testing.T) {
				c := simtest.Start(t, small(), simcluster.Deps{})
				cs := clientset(t, c, ct)
				lw := cache.NewListWatchFromClient(cs.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", "node-2"))
				var source cache.ListerWatcher = lw
				if !streaming {
					source = plainListWatch{lw}
				}
				store, informer := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: source, ObjectType: &corev1.Pod{}, Handler: cache.ResourceEventHandlerFuncs{}})
				ctx, cancel := context.WithCancel(context.Background())
				var wg sync.WaitGroup
				wg.Go(func() { informer.RunWithContext(ctx) })
				defer wg.Wait()
				defer cancel()
				names := func() (out []string) {
					for _, o := range store.List() {
						out = append(out, o.(*corev1.Pod).Namespace+"/"+o.(*corev1.Pod).Name)
					}
					slices.Sort(out)
					return out
				}
				want := func() (out []string) {
					for _, p := range c.Pods("node-2") {
						out = append(out, p.Namespace+"/"+p.Name)
					}
					slices.Sort(out)
					return out
				}
				eventually(t, "informer has the pods of node-2", func() bool { return len(names()) == 8 && slices.Equal(names(), want()) })

				p := c.Pods("node-2")[0]
				if _, err := c.ReplacePod(p.Namespace, p.Name); err != nil {
					t.Fatal(err)
				}
				eventually(t, "informer sees a pod replaced", func() bool { return slices.Equal(names(), want()) })
				p = c.Pods("node-2")[0]
				if err := c.RestartContainer(p.Namespace, p.Name, "", "OOMKilled"); err != nil {
					t.Fatal(err)
				}
				eventually(t, "informer sees the restart", func() bool {
					o, ok, err := store.GetByKey(p.Namespace + "/" + p.Name)
					if err != nil || !ok {
						return false
					}
					for _, s := range append(o.(*corev1.Pod).Status.ContainerStatuses, o.(*corev1.Pod).Status.InitContainerStatuses...) {
						if s.RestartCount == 1 && s.LastTerminationState.Terminated.ExitCode == 137 {
							return true
						}
					}
					return false
				})
				c.Forget() // the watch ends with 410, the informer lists again
				p = c.Pods("node-2")[1]
				if err := c.DeletePod(p.Namespace, p.Name); err != nil {
					t.Fatal(err)
				}
				eventually(t, "informer is right after 410 Gone", func() bool { return slices.Equal(names(), want()) })
			})
		}
	}
}

// plainListWatch hides that the source can stream lists.
type plainListWatch struct{ *cache.ListWatch }

func (plainListWatch) IsWatchListSemanticsUnSupported() bool { return true }

func TestWatchResumesBookmarksAndExpires(t *testing.T) {
	cfg := small()
	cfg.BookmarkEvery = 20 * time.Millisecond
	cfg.History = 50
	c := simtest.Start(t, cfg, simcluster.Deps{})
	cs := clientset(t, c, contentTypes[1])
	ctx := t.Context()
	l, err := cs.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := c.Pods("node-1")[0]
	if err := c.DeletePod(p.Namespace, p.Name); err != nil { // before the watch begins
		t.Fatal(err)
	}
	w, err := cs.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{ResourceVersion: l.ResourceVersion, AllowWatchBookmarks: true})
	if err != nil {
		t.Fatal(err)
	}
	ev := <-w.ResultChan()
	if pod, ok := ev.Object.(*corev1.Pod); ev.Type != watch.Deleted || !ok || pod.Name != p.Name || pod.ResourceVersion <= l.ResourceVersion {
		t.Fatalf("first event is %s %+v, want DELETED of %v after %s", ev.Type, ev.Object, p, l.ResourceVersion)
	}
	mark := ""
	for ev := range w.ResultChan() {
		if ev.Type == watch.Bookmark {
			mark = ev.Object.(*corev1.Pod).ResourceVersion
			if mark == c.ResourceVersion() {
				break
			}
		}
	}
	w.Stop()
	if mark == "" {
		t.Fatal("no bookmark came")
	}
	// More changes than are remembered: the old version is gone.
	if err := c.Churn(400); err != nil {
		t.Fatal(err)
	}
	w, err = cs.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{ResourceVersion: l.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	ev = <-w.ResultChan()
	if st, ok := ev.Object.(*metav1.Status); ev.Type != watch.Error || !ok || !apierrors.IsResourceExpired(apierrors.FromObject(st)) || st.Code != 410 {
		t.Fatalf("watch from an old version gives %s %+v, want ERROR with 410 Expired", ev.Type, ev.Object)
	}
}

func TestStreamedListEndsWithItsBookmark(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	yes := true
	for _, ct := range contentTypes {
		cs := clientset(t, c, ct)
		w, err := cs.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
		if err != nil {
			t.Fatal(err)
		}
		added := 0
		for ev := range w.ResultChan() {
			if ev.Type == watch.Added {
				added++
				continue
			}
			if ev.Type != watch.Bookmark || ev.Object.(*corev1.Node).Annotations[metav1.InitialEventsAnnotationKey] != "true" || added != 4 {
				t.Fatalf("%s: after %d nodes came %s %+v, want the bookmark after 4", ct, added, ev.Type, ev.Object)
			}
			break
		}
		w.Stop()
		if _, err := cs.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true}); !apierrors.IsBadRequest(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: sendInitialEvents without resourceVersionMatch gives %v, want a refusal", ct, err)
		}
	}
}

func TestPagesAreOneSnapshot(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	cs := clientset(t, c, contentTypes[0])
	all, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	opts := metav1.ListOptions{Limit: 7}
	for {
		l, err := cs.CoreV1().Pods("").List(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		if l.ResourceVersion != all.ResourceVersion {
			t.Fatalf("page of version %s, want %s", l.ResourceVersion, all.ResourceVersion)
		}
		for _, p := range l.Items {
			got = append(got, p.Namespace+"/"+p.Name)
		}
		if l.Continue == "" {
			break
		}
		if len(got) == 7 { // what happens between pages is not in them
			if err := c.Churn(30); err != nil {
				t.Fatal(err)
			}
		}
		opts.Continue = l.Continue
	}
	var want []string
	for _, p := range all.Items {
		want = append(want, p.Namespace+"/"+p.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("pages hold %d pods, want the %d of the list at once", len(got), len(want))
	}
	first, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	c.Forget()
	if _, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{Limit: 3, Continue: first.Continue}); !apierrors.IsResourceExpired(err) {
		t.Errorf("continue of a forgotten list gives %v, want 410 Expired", err)
	}
}

func TestSelectors(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	cs := clientset(t, c, contentTypes[1])
	check := func(field, label string, want func(*corev1.Pod) bool) {
		t.Helper()
		all, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: field, LabelSelector: label})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for i := range all.Items {
			if want(&all.Items[i]) {
				n++
			}
		}
		if n == 0 || n == len(all.Items) || n != len(got.Items) {
			t.Errorf("fields %q labels %q: %d pods, want %d of %d", field, label, len(got.Items), n, len(all.Items))
		}
	}
	check("spec.nodeName=node-0", "", func(p *corev1.Pod) bool { return p.Spec.NodeName == "node-0" })
	check("spec.nodeName!=node-0", "", func(p *corev1.Pod) bool { return p.Spec.NodeName != "node-0" })
	check("metadata.namespace=kube-system", "", func(p *corev1.Pod) bool { return p.Namespace == "kube-system" })
	check("metadata.name=guaranteed", "", func(p *corev1.Pod) bool { return p.Name == "guaranteed" })
	check("spec.nodeName=node-1", "app=kube-proxy", func(p *corev1.Pod) bool { return p.Spec.NodeName == "node-1" && p.Labels["app"] == "kube-proxy" })
	check("", "app in (web,burner)", func(p *corev1.Pod) bool { return p.Labels["app"] == "web" || p.Labels["app"] == "burner" })
	if _, err := cs.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.colour=red"}); !apierrors.IsBadRequest(err) {
		t.Errorf("unknown field gives %v, want 400", err)
	}
}

func TestOwnersAreFoundByMetadataAlone(t *testing.T) {
	cfg := small()
	cfg.Nodes = 8
	c := simtest.Start(t, cfg, simcluster.Deps{})
	for _, ct := range contentTypes {
		mc, err := metadata.NewForConfig(restConfig(c, ct))
		if err != nil {
			t.Fatal(err)
		}
		f := metadatainformer.NewSharedInformerFactory(mc, 0)
		sets := f.ForResource(schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"})
		jobs := f.ForResource(schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"})
		sets.Informer()
		jobs.Informer()
		stop := make(chan struct{})
		f.Start(stop)
		f.WaitForCacheSync(stop)
		pods, err := clientset(t, c, ct).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]int{}
		for _, p := range pods.Items {
			for _, o := range p.OwnerReferences {
				lister, want := sets, "Deployment"
				switch o.Kind {
				case "Job":
					lister, want = jobs, "CronJob"
				case "ReplicaSet":
				default:
					continue
				}
				obj, err := lister.Lister().ByNamespace(p.Namespace).Get(o.Name)
				if err != nil {
					t.Errorf("owner of %s: %v", p.Name, err)
					continue
				}
				m := obj.(*metav1.PartialObjectMetadata)
				if m.UID != o.UID || len(m.OwnerReferences) != 1 || m.OwnerReferences[0].Kind != want {
					t.Errorf("%s %s has UID %s and owners %v, want %s and a %s", o.Kind, o.Name, m.UID, m.OwnerReferences, o.UID, want)
				}
				found[o.Kind]++
			}
		}
		if found["ReplicaSet"] == 0 || found["Job"] == 0 {
			t.Errorf("%s: owners found %v, want ReplicaSets and Jobs", ct, found)
		}
		close(stop)
		f.Shutdown()
	}
}

func TestRightsAreAskedForAndKept(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	admin := clientset(t, c, contentTypes[1])
	review := func(token string) authenticationv1.TokenReviewStatus {
		r, err := admin.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if s := review(c.TokenOf(simcluster.ReaderName)); !s.Authenticated || s.User.Username != simcluster.ReaderName {
		t.Errorf("review of the reader's token: %+v", s)
	}
	if s := review("nonsense"); s.Authenticated {
		t.Errorf("review of a wrong token: %+v", s)
	}
	may := func(user, resource, sub string) bool {
		r, err := admin.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: resource, Subresource: sub}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Allowed
	}
	if !may(simcluster.ReaderName, "nodes", "stats") || may(simcluster.ReaderName, "secrets", "") || may(simcluster.NobodyName, "nodes", "stats") {
		t.Error("subject access reviews do not follow the rules")
	}
	cfg := restConfig(c, contentTypes[0])
	cfg.BearerToken = c.TokenOf(simcluster.NobodyName)
	nobody, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without rights gets %v, want 403", err)
	}
	cfg.BearerToken = "nonsense"
	if nobody, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a wrong token gets %v, want 401", err)
	}
}

// kubeletGet asks a node's kubelet over TLS, on a connection of its own.
func kubeletGet(t testing.TB, c *simcluster.Cluster, node, path, token string, timeout time.Duration) (int, string, error) {
	t.Helper()
	u, err := c.NodeURL(node, true)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func nodeNameIn(body string) string {
	var s struct {
		Node struct {
			NodeName string `json:"nodeName"`
		} `json:"node"`
	}
	if json.Unmarshal([]byte(body), &s) != nil {
		return ""
	}
	return s.Node.NodeName
}

func TestKubeletsFailInEachWay(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%t", shared), func(t *testing.T) {
			cfg := small()
			if shared {
				cfg.SharedAddress = simcluster.DefaultConfig().FirstAddress
			}
			c := simtest.Start(t, cfg, simcluster.Deps{})
			if c.Shared() != shared {
				t.Skipf("own loopback addresses cannot be had here")
			}
			reader := c.TokenOf(simcluster.ReaderName)
			const node = "node-2"
			get := func() (int, string, error) {
				return kubeletGet(t, c, node, "/stats/summary", reader, 2*time.Minute)
			}
			fail := func(m simcluster.FailureMode) {
				t.Helper()
				if err := c.Fail(node, m); err != nil {
					t.Fatal(err)
				}
			}
			fine := func() {
				t.Helper()
				if code, body, err := get(); err != nil || code != 200 || nodeNameIn(body) != node {
					t.Fatalf("healthy kubelet: %d %.100q %v", code, body, err)
				}
			}
			fine()
			fail(simcluster.FailRefuse)
			if _, _, err := get(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
				t.Errorf("refuse: %v, want a reset", err)
			}
			fail(simcluster.FailHang)
			if _, _, err := kubeletGet(t, c, node, "/stats/summary", reader, 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hang: %v, want a timeout", err)
			}
			for mode, want := range map[simcluster.FailureMode]struct {
				code int
				body string
			}{
				simcluster.FailUnauthorized: {401, "Unauthorized"},
				simcluster.FailForbidden:    {403, "Forbidden (user=system:serviceaccount:demo:none, verb=get, resource=nodes, subresource(s)=[stats])"},
				simcluster.FailNotFound:     {404, "404 page not found\n"},
				simcluster.FailEmpty:        {200, ""},
			} {
				fail(mode)
				if code, body, err := get(); err != nil || code != want.code || body != want.body {
					t.Errorf("%s: %d %q %v, want %d %q", mode, code, body, err, want.code, want.body)
				}
			}
			fail(simcluster.FailInternal)
			if code, _, err := get(); err != nil || code != 500 {
				t.Errorf("500: %d %v", code, err)
			}
			fail(simcluster.FailGarbage)
			if code, body, err := get(); err != nil || code != 200 || json.Valid([]byte(body)) {
				t.Errorf("garbage: %d %q %v", code, body, err)
			}
			fail(simcluster.FailHalf)
			if code, body, err := get(); err == nil || code != 200 || len(body) == 0 {
				t.Errorf("half: %d, %d bytes, %v: want 200, some bytes and an error", code, len(body), err)
			}
			fail(simcluster.FailWrongNode)
			if code, body, err := get(); err != nil || code != 200 || nodeNameIn(body) == node || nodeNameIn(body) == "" {
				t.Errorf("wrongnode: %d of %q %v", code, nodeNameIn(body), err)
			}
			fail(simcluster.FailOtherIdent)
			if _, _, err := get(); err == nil || !strings.Contains(err.Error(), "certificate is valid for") {
				t.Errorf("foreign-cert: %v", err)
			}
			fail(simcluster.FailUnencrypted)
			if _, _, err := get(); err == nil {
				t.Error("not-tls: no error")
			}
			if err := c.FailFor(node, simcluster.FailSlow, 300*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if fine(); time.Since(start) < 300*time.Millisecond {
				t.Errorf("slow by 300 ms answered after %s", time.Since(start))
			}
			fail(simcluster.FailNone)
			fine()
			if err := c.Fail(node, "tired"); err == nil {
				t.Error("an unknown mode was accepted")
			}
			// Without rights, without token, and what needs neither.
			if code, body, err := kubeletGet(t, c, node, "/stats/summary", c.TokenOf(simcluster.NobodyName), 2*time.Minute); err != nil || code != 403 || !strings.HasPrefix(body, "Forbidden (user=system:serviceaccount:demo:none, verb=get") {
				t.Errorf("no rights: %d %q %v", code, body, err)
			}
			if code, body, err := kubeletGet(t, c, node, "/stats/summary/", "", 2*time.Minute); err != nil || code != 401 || body != "Unauthorized" {
				t.Errorf("no token: %d %q %v", code, body, err)
			}
			u, err := c.NodeURL(node, false)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.Get(u + "/stats/summary/?only_cpu_and_memory=true")
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || nodeNameIn(string(b)) != node || bytes.Contains(b, []byte("rootfs")) {
				t.Errorf("plain, short: %d %.100q %v", resp.StatusCode, b, err)
			}
			http.DefaultClient.CloseIdleConnections()
			// /pods lists the node's pods.
			code, body, err := kubeletGet(t, c, "node-0", "/pods", c.Token(), 2*time.Minute)
			var l corev1.PodList
			if err != nil || code != 200 || json.Unmarshal([]byte(body), &l) != nil || len(l.Items) != 6 || l.Items[0].Spec.NodeName != "node-0" {
				t.Errorf("/pods: %d, %d pods, %v", code, len(l.Items), err)
			}
		})
	}
}

func TestNodesComeAndGo(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	cs := clientset(t, c, contentTypes[1])
	w, err := cs.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{ResourceVersion: c.ResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	name, err := c.AddNode()
	if err != nil {
		t.Fatal(err)
	}
	ev := <-w.ResultChan()
	n, ok := ev.Object.(*corev1.Node)
	if !ok || ev.Type != watch.Added || n.Name != name || int(n.Status.DaemonEndpoints.KubeletEndpoint.Port) != c.KubeletPort() {
		t.Fatalf("after AddNode came %s %+v", ev.Type, ev.Object)
	}
	if code, body, err := kubeletGet(t, c, name, "/stats/summary", c.Token(), 2*time.Minute); err != nil || code != 200 || nodeNameIn(body) != name {
		t.Errorf("kubelet of the new node: %d %v", code, err)
	}
	if got := len(c.Pods(name)); got != 8 {
		t.Errorf("%d pods on the new node, want 8", got)
	}
	if err := c.SetNodeReady(name, false); err != nil {
		t.Fatal(err)
	}
	ev = <-w.ResultChan()
	n, ok = ev.Object.(*corev1.Node)
	if !ok || ev.Type != watch.Modified || n.Status.Conditions[3].Status != corev1.ConditionUnknown {
		t.Fatalf("after SetNodeReady came %s %+v", ev.Type, ev.Object)
	}
	u, err := c.NodeURL(name, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveNode(name); err != nil {
		t.Fatal(err)
	}
	if ev = <-w.ResultChan(); ev.Type != watch.Deleted {
		t.Fatalf("after RemoveNode came %s", ev.Type)
	}
	if resp, err := http.Get(u + "/healthz"); err == nil {
		resp.Body.Close()
		t.Error("the kubelet of a removed node answers")
	}
	if got := len(c.Pods(name)); got != 0 {
		t.Errorf("%d pods on the removed node", got)
	}
	evs, err := cs.EventsV1().Events("").List(t.Context(), metav1.ListOptions{FieldSelector: "regarding.name=" + name})
	if err != nil || len(evs.Items) < 3 {
		t.Errorf("%d events of the node through events.k8s.io (%v), want at least 3", len(evs.Items), err)
	}
}

// TestGatewayIsAskedAsTheAggregationLayerDoes stands in for a gateway and looks at what it is shown.
func TestGatewayIsAskedAsTheAggregationLayerDoes(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	pool := x509.NewCertPool()
	cm, err := clientset(t, c, contentTypes[1]).CoreV1().ConfigMaps("kube-system").Get(t.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM([]byte(cm.Data["requestheader-client-ca-file"]))
	var mu sync.Mutex
	var seen *http.Request
	gw := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = r
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/apis/metrics.k8s.io":
			io.WriteString(w, `{"kind":"APIGroup","apiVersion":"v1","name":"metrics.k8s.io","versions":[{"groupVersion":"metrics.k8s.io/v1beta1","version":"v1beta1"}],"preferredVersion":{"groupVersion":"metrics.k8s.io/v1beta1","version":"v1beta1"}}`)
		case "/apis/metrics.k8s.io/v1beta1":
			io.WriteString(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"metrics.k8s.io/v1beta1","resources":[{"name":"nodes","singularName":"","namespaced":false,"kind":"NodeMetrics","verbs":["get","list"]}]}`)
		case "/apis/metrics.k8s.io/v1beta1/nodes":
			io.WriteString(w, `{"kind":"NodeMetricsList","apiVersion":"metrics.k8s.io/v1beta1","metadata":{},"items":[{"metadata":{"name":"node-1"},"timestamp":"2026-11-20T20:30:03Z","window":"15s","usage":{"cpu":"250m","memory":"1024Mi"}}]}`)
		case "/api/v1/model/metrics/":
			io.WriteString(w, `["cpu/usage_rate"]`)
		default:
			http.NotFound(w, r)
		}
	}))
	gw.TLS = &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	gw.StartTLS()
	defer gw.Close()
	cs := clientset(t, c, contentTypes[0])
	raw := func(path string) ([]byte, error) { return cs.RESTClient().Get().AbsPath(path).DoRaw(t.Context()) }
	if _, err := raw("/apis/metrics.k8s.io/v1beta1/nodes"); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without a gateway: %v, want 503", err)
	}
	if err := c.SetGateway(gw.URL); err != nil {
		t.Fatal(err)
	}
	if err := c.SetModel(gw.URL); err != nil {
		t.Fatal(err)
	}
	b, err := raw("/apis/metrics.k8s.io/v1beta1/nodes")
	if err != nil || !bytes.Contains(b, []byte("node-1")) {
		t.Fatalf("through the gateway: %q %v", b, err)
	}
	mu.Lock()
	h, subject := seen.Header, seen.TLS.PeerCertificates[0].Subject.CommonName
	mu.Unlock()
	if subject != "front-proxy-client" || h.Get("X-Remote-User") != simcluster.AdminName || !slices.Contains(h.Values("X-Remote-Group"), "system:masters") || h.Get("Authorization") != "" {
		t.Errorf("the gateway saw certificate %q and headers %v", subject, h)
	}
	if b, err := raw("/api/v1/namespaces/kube-system/services/http:heapster:/proxy/api/v1/model/metrics/"); err != nil || string(b) != `["cpu/usage_rate"]` {
		t.Errorf("Heapster's service: %q %v", b, err)
	}
	gs, err := cs.Discovery().ServerGroups()
	if err != nil || !slices.ContainsFunc(gs.Groups, func(g metav1.APIGroup) bool { return g.Name == "metrics.k8s.io" }) {
		t.Errorf("discovery lacks metrics.k8s.io: %v", err)
	}
	if out := kubectl(t, c, "top", "nodes"); !strings.Contains(out, "node-1") || !strings.Contains(out, "250m") {
		t.Errorf("kubectl top nodes says\n%s", out)
	}
}

// kubectl runs the stock client of this machine; it skips what follows where there is none.
func kubectl(t *testing.T, c *simcluster.Cluster, args ...string) string {
	t.Helper()
	bin, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("no kubectl is installed")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "kubeconfig")
	if err := c.WriteKubeconfig(conf, ""); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"--kubeconfig", conf, "--cache-dir", dir}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestStockKubectlWorks(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	check := func(want []string, args ...string) {
		t.Helper()
		out := kubectl(t, c, args...)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("kubectl %s lacks %q:\n%s", strings.Join(args, " "), w, out)
			}
		}
	}
	p := c.Pods("node-1")[0]
	check([]string{"node-0", "node-3", "Ready", "v1.34.4"}, "get", "nodes")
	check([]string{"guaranteed", "Running", p.Name}, "get", "pods", "-A")
	check([]string{p.Name, "nodeName: node-1"}, "get", "pod", "-n", p.Namespace, p.Name, "-o", "yaml")
	check([]string{`"kind":"NodeList"`}, "get", "--raw", "/api/v1/nodes")
	check([]string{`"nodeName": "node-2"`}, "get", "--raw", "/api/v1/nodes/node-2/proxy/stats/summary")
	check([]string{"yes"}, "auth", "can-i", "list", "pods")
	if err := c.Churn(5); err != nil {
		t.Fatal(err)
	}
	check([]string{"Started"}, "get", "events", "-A", "-o", "custom-columns=REASON:.reason")
}

func TestControlEndpoint(t *testing.T) {
	c := simtest.Start(t, small(), simcluster.Deps{})
	post := func(path string) int {
		resp, err := http.Post(c.APIServer()+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := post("/sim/fail?node=node-1&mode=hang"); code != 200 || c.Nodes()[1].Failure() != simcluster.FailHang {
		t.Errorf("fail: %d, node is %s", code, c.Nodes()[1].Failure())
	}
	if code := post("/sim/fail?node=node-77&mode=hang"); code != 400 {
		t.Errorf("fail of a node that is not there: %d, want 400", code)
	}
	if code := post("/sim/nodes/add"); code != 200 || len(c.Nodes()) != 5 {
		t.Errorf("add: %d, %d nodes", code, len(c.Nodes()))
	}
	if code := post("/sim/nodes/remove?node=node-4"); code != 200 || len(c.Nodes()) != 4 {
		t.Errorf("remove: %d, %d nodes", code, len(c.Nodes()))
	}
	if s := c.Status(); s.Failing["node-1"] != "hang" || s.Nodes != 4 {
		t.Errorf("status %+v", s)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestConfigIsRefusedWithAllReasons(t *testing.T) {
	cfg := simcluster.DefaultConfig()
	cfg.Nodes, cfg.ContainersPerPod, cfg.ListenHTTP, cfg.ListenHTTPS = -1, 0, "", ""
	_, err := simcluster.New(cfg, simcluster.Deps{})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"nodes is -1", "containers per pod is 0", "no address for the API server"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}

func TestPortTakenIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := small()
	cfg.ListenHTTP = l.Addr().String()
	c, err := simcluster.New(cfg, simcluster.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Run gives %v, want address in use", err)
	}
}
