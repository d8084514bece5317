package e2e

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// oracle is the made-up cluster from which Heapster's answers were recorded: an API server and three
// kubelets, each of which answers its first recorded input until every kubelet has been asked once,
// and the second from then on.
type oracle struct {
	API  *httptest.Server
	Port int // of every kubelet, each on an address of its own

	mu     sync.Mutex
	asked  map[string]bool
	second bool
}

// gunzip reads a file of testdata.
func gunzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(path.Join("testdata", name)) //nolint:gosec // a test's own file
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return data
}

// startOracle serves the recorded cluster until the test ends.
func startOracle(t *testing.T) *oracle {
	t.Helper()
	o := &oracle{asked: map[string]bool{}}
	nodes := []string{"node-0000", "node-0001", "node-0002"}
	lists := map[string]json.RawMessage{}
	for _, kind := range []string{"nodes", "pods", "namespaces"} {
		lists[kind] = gunzip(t, "oracle/api-"+kind+".json.gz")
	}
	var listeners []net.Listener
	for i := range nodes {
		address := fmt.Sprintf("127.1.0.%d:%d", i+1, o.Port) // the addresses that the recorded nodes have
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Skipf("SKIP: this machine has no loopback address of its own for every node: %v", err)
		}
		o.Port = l.Addr().(*net.TCPAddr).Port
		listeners = append(listeners, l)
	}
	for i, node := range nodes {
		inputs := [2][]byte{gunzip(t, "oracle/202600-"+node+".summary.json.gz"), gunzip(t, "oracle/202610-"+node+".summary.json.gz")}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.TrimSuffix(r.URL.Path, "/") != "/stats/summary" {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(inputs[o.input(node, len(nodes))])
		}))
		s.Listener.Close()
		s.Listener = listeners[i]
		s.Start()
		t.Cleanup(s.Close)
	}
	done := make(chan struct{})
	o.API = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveLists(w, r, lists, done) }))
	t.Cleanup(o.API.Close)
	t.Cleanup(func() { close(done) }) // runs first: watches end, then the server can
	return o
}

func (o *oracle) input(node string, all int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.second {
		return 1
	}
	o.asked[node] = true
	o.second = len(o.asked) == all
	return 0
}

// serveLists answers as an API server whose objects never change: lists, and watches on which
// nothing happens. What it does not have is an empty list.
func serveLists(w http.ResponseWriter, r *http.Request, lists map[string]json.RawMessage, done <-chan struct{}) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		status := http.StatusUnprocessableEntity // as an API server that cannot stream lists
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","message":"sendInitialEvents is forbidden","code":`+strconv.Itoa(status)+`}`)
		return
	}
	if watch, _ := strconv.ParseBool(r.URL.Query().Get("watch")); watch {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-done:
		}
		return
	}
	kind := path.Base(r.URL.Path)
	if path.Base(path.Dir(r.URL.Path)) == "namespaces" { // one namespace by name
		uid := "11111111-2222-4333-8444-555555555555"
		_, _ = fmt.Fprintf(w, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":%q,"uid":%q}}`, kind, uid)
		return
	}
	if list, ok := lists[kind]; ok && strings.HasPrefix(r.URL.Path, "/api/v1/") {
		_, _ = w.Write(list)
		return
	}
	_, _ = io.WriteString(w, `{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1000"},"items":[]}`)
}

// source is the URI of the recorded cluster as Heapster's --source takes it.
func (o *oracle) source() string {
	return "kubernetes.summary_api:" + o.API.URL + "?inClusterConfig=false&useServiceAccount=false&kubeletPort=" + strconv.Itoa(o.Port)
}
