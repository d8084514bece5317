package simcluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// FailureMode is a way in which a node's kubelet can fail.
type FailureMode string

const (
	FailNone         FailureMode = "none"         // it works again
	FailRefuse       FailureMode = "refuse"       // connections are reset at once, open ones too (as if nobody listened: the listener is shared, so the address cannot refuse)
	FailHang         FailureMode = "hang"         // the request is read and never answered
	FailUnauthorized FailureMode = "401"          // 401, body Unauthorized
	FailForbidden    FailureMode = "403"          // 403, body Forbidden (user=…)
	FailNotFound     FailureMode = "404"          // 404 page not found
	FailInternal     FailureMode = "500"          // 500
	FailGarbage      FailureMode = "garbage"      // 200, and bytes that mean nothing
	FailHalf         FailureMode = "half"         // 200, half of the answer, end of connection
	FailWrongNode    FailureMode = "wrongnode"    // the answer of the next node (its own under a wrong name if it is alone)
	FailSlow         FailureMode = "slow"         // right, but late by the delay
	FailEmpty        FailureMode = "empty"        // 200, and nothing
	FailUnencrypted  FailureMode = "not-tls"      // plain bytes where TLS is expected
	FailOtherIdent   FailureMode = "foreign-cert" // a certificate for another name and address
)

// FailureModes are all of them.
var FailureModes = []FailureMode{FailNone, FailRefuse, FailHang, FailUnauthorized, FailForbidden, FailNotFound, FailInternal, FailGarbage,
	FailHalf, FailWrongNode, FailSlow, FailEmpty, FailUnencrypted, FailOtherIdent}

type fault struct {
	mode  FailureMode
	delay time.Duration
	over  chan struct{} // closed when another fault takes its place
}

// Fail makes a node's kubelet fail from now on, or heals it (FailNone). Requests that hang end when the mode changes.
func (c *Cluster) Fail(node string, mode FailureMode) error { return c.FailFor(node, mode, 0) }

// FailFor is Fail with the delay that FailSlow needs.
func (c *Cluster) FailFor(node string, mode FailureMode, delay time.Duration) error {
	n, err := c.node(node)
	if err != nil {
		return fmt.Errorf("make a kubelet fail: %w", err)
	}
	known := false
	for _, m := range FailureModes {
		known = known || m == mode
	}
	if !known {
		return fmt.Errorf("make kubelet of node %q fail: no mode %q, there are %v", node, mode, FailureModes)
	}
	if mode == FailSlow && delay <= 0 {
		return fmt.Errorf("make kubelet of node %q slow: delay is %s, want more than 0", node, delay)
	}
	var f *fault
	if mode != FailNone {
		f = &fault{mode: mode, delay: delay, over: make(chan struct{})}
	}
	if old := n.fault.Swap(f); old != nil {
		close(old.over)
	}
	switch mode {
	case FailRefuse, FailUnencrypted, FailOtherIdent:
		n.conns.reset() // these show when a connection begins
	case FailNone:
		n.restart(c.now()) // that is how it was healed
	}
	c.log.Info("kubelet changes", "node", node, "mode", string(mode))
	return nil
}

// SetOldKubelet gives a node a kubelet of before Kubernetes 1.18, which answers POST /stats/container/ as well, or one
// of today, which does not. Either way it has just started.
func (c *Cluster) SetOldKubelet(node string, old bool) error {
	n, err := c.node(node)
	if err != nil {
		return fmt.Errorf("exchange a kubelet: %w", err)
	}
	n.old.Store(old)
	n.restart(c.now())
	c.log.Info("kubelet is exchanged", "node", node, "old", old)
	return nil
}

// restart ends the connections of a kubelet and makes it one that began just now.
func (n *Node) restart(now time.Time) {
	n.began.Store(max(now.UnixNano(), n.began.Load()+int64(time.Second))) // told in seconds
	n.conns.reset()
}

// Failure is the way in which a node fails now; FailNone if it works.
func (n *Node) Failure() FailureMode {
	if f := n.fault.Load(); f != nil {
		return f.mode
	}
	return FailNone
}

// connSet are the open connections of one node.
type connSet struct {
	mu    sync.Mutex
	conns map[*nodeConn]struct{} // nil until the first
}

func (s *connSet) add(c *nodeConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[*nodeConn]struct{}{}
	}
	s.conns[c] = struct{}{}
}

// reset ends all connections so that the other side sees a reset.
func (s *connSet) reset() {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for c := range conns {
		c.abort()
	}
}

// nodeConn is a connection of which the node is known.
type nodeConn struct {
	net.Conn
	node *Node
	head []byte // read already
}

func (c *nodeConn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *nodeConn) Close() error {
	c.node.conns.mu.Lock()
	delete(c.node.conns.conns, c)
	c.node.conns.mu.Unlock()
	return c.Conn.Close()
}

// abort closes with a reset instead of an orderly end.
func (c *nodeConn) abort() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // closing still works without
	}
	_ = c.Close() // it is going away either way
}

// kubelets serves all nodes.
type kubelets struct {
	c      *Cluster
	secure *connQueue // connections that speak TLS
	plain  *connQueue

	mu        sync.Mutex
	listeners map[net.Listener]*Node // the node is nil for one that serves all addresses
	own       map[*Node][]net.Listener
	wg        sync.WaitGroup
	closed    bool
}

// connQueue is a net.Listener whose connections come from several.
type connQueue struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newConnQueue() *connQueue {
	return &connQueue{ch: make(chan net.Conn, 64), done: make(chan struct{})}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.ch:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}
func (q *connQueue) Close() error   { q.once.Do(func() { close(q.done) }); return nil }
func (q *connQueue) Addr() net.Addr { return &net.TCPAddr{} }
func (q *connQueue) put(c net.Conn) {
	select {
	case q.ch <- c:
	case <-q.done:
		c.Close()
	}
}

// newKubelets opens the listeners.
func newKubelets(c *Cluster) (*kubelets, error) {
	k := &kubelets{c: c, secure: newConnQueue(), plain: newConnQueue(), listeners: map[net.Listener]*Node{}, own: map[*Node][]net.Listener{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kubelets = k
	shared := c.cfg.SharedAddress
	if !shared.IsValid() && !canBind(c.cfg.FirstAddress) {
		shared = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		c.log.Info("own loopback addresses cannot be had, so all nodes share one", "addr", shared.String(), "tried", c.cfg.FirstAddress.String())
	}
	var err error
	if shared.IsValid() {
		c.shared = shared
		for _, n := range c.nodes {
			n.addr = shared
			if err = k.listenShared(n); err != nil {
				break
			}
		}
	} else {
		err = k.listenOwn()
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("listen for simulated kubelets: %w", err)
	}
	// Ports and perhaps addresses are known only now.
	for _, n := range c.nodes {
		c.publishNode(n)
	}
	return k, nil
}

func canBind(a netip.Addr) bool {
	l, err := net.Listen("tcp4", netip.AddrPortFrom(a, 0).String())
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// listenOwn opens one pair of listeners for all addresses, or a pair per node where somebody has the port already.
func (k *kubelets) listenOwn() error {
	ports := [2]int{k.c.cfg.KubeletPort, k.c.cfg.KubeletReadOnlyPort}
	var all [2]net.Listener
	for i, port := range ports {
		l, err := net.Listen("tcp4", ":"+strconv.Itoa(port))
		if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		if err == nil {
			all[i] = l
			ports[i] = l.Addr().(*net.TCPAddr).Port
			k.listeners[l] = nil
		}
	}
	k.c.kubeletPort, k.c.readOnlyPort = ports[0], ports[1]
	for _, n := range k.c.nodes {
		n.port.Store(int32(ports[0]))
		if err := k.listenNode(n, all[0] == nil, all[1] == nil); err != nil {
			return err
		}
	}
	k.start(all[0], nil, k.secure)
	k.start(all[1], nil, k.plain)
	return nil
}

// listenNode opens a node's own listeners where there is none for all.
func (k *kubelets) listenNode(n *Node, secure, plain bool) error {
	for i, want := range []bool{secure, plain} {
		if !want {
			continue
		}
		port, q := k.c.kubeletPort, k.secure
		if i == 1 {
			port, q = k.c.readOnlyPort, k.plain
		}
		l, err := net.Listen("tcp4", netip.AddrPortFrom(n.addr, uint16(port)).String())
		if err != nil {
			return fmt.Errorf("node %q: %w", n.name, err)
		}
		k.listeners[l] = n
		k.own[n] = append(k.own[n], l)
		k.start(l, n, q)
	}
	return nil
}

// listenShared opens the one port of a node, for TLS and plain alike.
func (k *kubelets) listenShared(n *Node) error {
	port := 0
	if k.c.cfg.KubeletPort != 0 {
		port = k.c.cfg.KubeletPort + n.index
	}
	host := netip.AddrPortFrom(n.addr, uint16(port)).String()
	if !n.addr.IsLoopback() {
		host = ":" + strconv.Itoa(port) // the address may be a name of this machine on another network
	}
	l, err := net.Listen("tcp", host)
	if err != nil {
		return fmt.Errorf("node %q: %w", n.name, err)
	}
	n.port.Store(int32(l.Addr().(*net.TCPAddr).Port))
	k.listeners[l] = n
	k.own[n] = append(k.own[n], l)
	k.start(l, n, nil)
	return nil
}

// start accepts on a listener; node nil means that the address dialled tells; queue nil means that the first byte does.
func (k *kubelets) start(l net.Listener, node *Node, queue *connQueue) {
	if l == nil {
		return
	}
	k.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				k.c.log.Warn("connection to simulated kubelet is lost", "err", err)
				select { // out of descriptors, most likely: let some close
				case <-time.After(50 * time.Millisecond):
				case <-k.secure.done:
					return
				}
				continue
			}
			n := node
			if n == nil {
				n = k.nodeAt(conn.LocalAddr())
			}
			if n == nil {
				conn.Close()
				continue
			}
			nc := &nodeConn{Conn: conn, node: n}
			n.conns.add(nc)
			switch n.Failure() {
			case FailRefuse:
				nc.abort()
				continue
			case FailUnencrypted:
				if queue != k.plain {
					k.wg.Go(func() {
						_ = conn.SetDeadline(time.Now().Add(time.Second)) // best effort, as the next line is
						_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2p1\r\n")
						_ = nc.Close()
					})
					continue
				}
			}
			if queue != nil {
				queue.put(nc)
				continue
			}
			k.wg.Go(func() { // do not let a silent client hold up the next
				var b [1]byte
				_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second)) // a failure shows in the read
				if _, err := io.ReadFull(conn, b[:]); err != nil {
					_ = nc.Close()
					return
				}
				_ = conn.SetReadDeadline(time.Time{}) // as above
				nc.head = b[:]
				if b[0] == 0x16 { // a TLS handshake record
					k.secure.put(nc)
				} else {
					k.plain.put(nc)
				}
			})
		}
	})
}

func (k *kubelets) nodeAt(a net.Addr) *Node {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return nil
	}
	ip := tcp.AddrPort().Addr().Unmap()
	k.c.mu.RLock()
	defer k.c.mu.RUnlock()
	return k.c.byAddr[ip]
}

// open makes the kubelet of a node that came later reachable. The caller holds Cluster.mu.
func (k *kubelets) open(n *Node) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errors.New("the simulated cluster is stopping")
	}
	if k.c.shared.IsValid() {
		return k.listenShared(n)
	}
	n.port.Store(int32(k.c.kubeletPort))
	secure, plain := true, true
	for l, node := range k.listeners {
		if node == nil {
			port := l.Addr().(*net.TCPAddr).Port
			secure, plain = secure && port != k.c.kubeletPort, plain && port != k.c.readOnlyPort
		}
	}
	return k.listenNode(n, secure, plain)
}

// shut ends the kubelet of a node that left.
func (k *kubelets) shut(n *Node) {
	k.mu.Lock()
	ls := k.own[n]
	delete(k.own, n)
	for _, l := range ls {
		delete(k.listeners, l)
	}
	k.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	if f := n.fault.Swap(nil); f != nil {
		close(f.over)
	}
	n.conns.reset()
}

func (k *kubelets) close() {
	k.mu.Lock()
	k.closed = true
	for l := range k.listeners {
		l.Close()
	}
	k.mu.Unlock()
	_ = k.secure.Close()
	_ = k.plain.Close()
	k.wg.Wait()
}

type connKey struct{}

// serve answers until ctx ends.
func (k *kubelets) serve(ctx context.Context) error {
	connContext := func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			c = t.NetConn()
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	server := func(secure bool) *http.Server {
		return &http.Server{ConnContext: connContext, ReadHeaderTimeout: 30 * time.Second, ErrorLog: quietLog(k.c.log),
			BaseContext: func(net.Listener) context.Context { return ctx },
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				nc, ok := r.Context().Value(connKey{}).(*nodeConn)
				if !ok {
					http.Error(w, "no node", http.StatusInternalServerError)
					return
				}
				user := insecure
				if secure {
					user = k.c.userOf(r)
				}
				k.answer(w, r, nc.node, user)
			})}
	}
	plain, secure := server(false), server(true)
	secure.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		nc, ok := h.Conn.(*nodeConn)
		if !ok {
			return nil, errors.New("no node")
		}
		if nc.node.Failure() == FailOtherIdent {
			return k.c.pki.foreign()
		}
		return k.c.pki.kubelet(nc.node)
	}}
	stop := context.AfterFunc(ctx, func() {
		k.close()
		plain.Close()
		secure.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	var errPlain, errSecure error
	wg.Go(func() { errPlain = plain.Serve(k.plain) })
	wg.Go(func() { errSecure = secure.ServeTLS(k.secure, "", "") })
	wg.Wait()
	<-ctx.Done() // one of them closed because of it, or fails below
	k.close()
	for _, err := range []error{errPlain, errSecure} {
		if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve simulated kubelets: %w", err)
		}
	}
	return nil
}

// kubeletRights is which subresources of nodes a path needs, any of them.
func kubeletRights(path string) []string {
	switch {
	case strings.HasPrefix(path, "/stats/"), path == "/stats":
		return []string{"stats"}
	case strings.HasPrefix(path, "/metrics/"), path == "/metrics":
		return []string{"metrics"}
	case path == "/pods" || path == "/pods/" || path == "/runningpods/":
		return []string{"pods", "proxy"}
	case path == "/healthz":
		return []string{"healthz", "proxy"}
	}
	return []string{"proxy"}
}

// kubeletVerb is what a method is called where a kubelet asks for rights.
func kubeletVerb(method string) string {
	if method == http.MethodPost {
		return "create"
	}
	return strings.ToLower(method)
}

// answer is the kubelet of node n. The user is nil if the token is nobody's.
func (k *kubelets) answer(w http.ResponseWriter, r *http.Request, n *Node, user *User) {
	path := r.URL.Path
	switch strings.TrimSuffix(path, "/") {
	case "/stats/summary", "/metrics/resource", "/metrics/cadvisor":
		n.scraped(k.c.now())
	case "/stats/container":
		if n.old.Load() { // others are asked for another answer in its place
			n.scraped(k.c.now())
		}
	}
	f := n.fault.Load()
	mode := FailNone
	if f != nil {
		mode = f.mode
	}
	wait := func(d <-chan time.Time) bool { // false: do not go on
		select {
		case <-d:
			return true
		case <-f.over:
			return mode == FailSlow
		case <-r.Context().Done():
			return false
		}
	}
	switch mode {
	case FailHang:
		wait(nil)
		panic(http.ErrAbortHandler)
	case FailSlow:
		t := time.NewTimer(f.delay)
		defer t.Stop()
		if !wait(t.C) {
			panic(http.ErrAbortHandler)
		}
	case FailRefuse:
		panic(http.ErrAbortHandler) // it came in just before
	case FailUnauthorized:
		user = nil
	case FailForbidden:
		user = &User{Name: "system:serviceaccount:demo:none"}
	case FailNotFound:
		http.NotFound(w, r)
		return
	case FailInternal:
		http.Error(w, "Internal Error: failed to get node info: node \""+n.name+"\" not found", http.StatusInternalServerError)
		return
	case FailEmpty:
		w.WriteHeader(http.StatusOK)
		return
	case FailGarbage:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "\x00\xff{\"node\":[garbage\xfe}}]") // the client is meant to be unhappy
		return
	case FailWrongNode:
		if other := k.c.nodeAfter(n); other != n {
			n = other
		} else {
			impostor := &Node{index: n.index, name: n.name + "-impostor", id: n.id, uid: uidOf(mix(n.id, 41)), addr: n.addr, cores: n.cores, memory: n.memory, disk: n.disk, created: n.created}
			impostor.state.Store(n.state.Load())
			n = impostor
		}
	}
	if user == nil || user == anonymous {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "Unauthorized") // without a newline, as the real one
		return
	}
	rights := kubeletRights(path)
	allowed := false
	for _, sub := range rights {
		allowed = allowed || user.may(attributes{verb: kubeletVerb(r.Method), resource: "nodes", subresource: sub, name: n.name})
	}
	if !allowed {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=[%s])", user.Name, kubeletVerb(r.Method), strings.Join(rights, " "))
		return
	}
	containers := strings.TrimSuffix(path, "/") == "/stats/container"
	switch {
	case containers && !n.old.Load():
		http.NotFound(w, r)
		return
	case containers && r.Method != http.MethodPost, !containers && r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "405: Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	buf := getBuf()
	defer putBuf(buf)
	now := k.c.now()
	ct := "application/json"
	const promText = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
	if strings.HasPrefix(path, "/metrics/") { // as every handler of metrics there says
		w.Header().Set("Process-Start-Time-Unix", strconv.FormatInt(n.began.Load()/1e9, 10))
	}
	switch path {
	case "/stats/container", "/stats/container/":
		var err error
		if *buf, err = n.appendContainerStats(*buf, r.Body, now); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	case "/stats/summary", "/stats/summary/":
		*buf = n.appendSummary(*buf, now, isTrue(r.URL.Query().Get("only_cpu_and_memory")))
	case "/metrics/resource", "/metrics/resource/":
		ct, *buf = promText, n.appendResourceMetrics(*buf, now)
	case "/metrics/cadvisor", "/metrics/cadvisor/":
		ct, *buf = promText, n.appendCadvisorMetrics(*buf, now)
	case "/pods", "/pods/":
		b, err := k.c.kubeletPods(n)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		*buf = append(*buf, b...)
	case "/healthz":
		ct, *buf = "text/plain; charset=utf-8", append(*buf, "ok"...)
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", ct)
	w.Header().Set("Content-Length", strconv.Itoa(len(*buf)))
	if mode == FailHalf {
		_, _ = w.Write((*buf)[:len(*buf)/2]) // cut off either way
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(*buf) // a client that went away needs no answer
}

// nodeAfter is the next node, the first after the last.
func (c *Cluster) nodeAfter(n *Node) *Node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for i, o := range c.nodes {
		if o == n {
			return c.nodes[(i+1)%len(c.nodes)]
		}
	}
	return n
}

// scraped notes a request for a summary.
func (n *Node) scraped(now time.Time) {
	n.scrapes.Add(1)
	n.asked.add(now.UnixNano())
	last := n.lastSeen.Swap(now.UnixNano())
	if gap := now.UnixNano() - last; last != 0 && gap > n.late.Load() {
		n.late.Store(gap)
	}
}

// kubeletPods is the JSON of the pods that a kubelet runs.
func (c *Cluster) kubeletPods(n *Node) ([]byte, error) {
	info := findResource("", "v1", "pods")
	recs, _ := c.candidates(info, &selection{node: n.name})
	var mine []*record
	for _, r := range recs {
		if host, _ := r.st.field("spec.nodeName"); host != n.name {
			continue
		}
		if phase, _ := r.st.field("status.phase"); phase == string(corev1.PodRunning) {
			mine = append(mine, r)
		}
	}
	o, _ := negotiate("application/json")
	l, err := info.renderList(mine, 0, "", nil, o, c.now())
	if err != nil {
		return nil, err
	}
	l.(*corev1.PodList).ResourceVersion = ""
	var b strings.Builder
	if err := encode(&b, o, l); err != nil {
		return nil, fmt.Errorf("encode pods of node %q: %w", n.name, err)
	}
	return []byte(b.String()), nil
}
