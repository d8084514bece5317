package apigw

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/heapstream/heapstream/apigw/auth/authtest"
	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
	"github.com/heapstream/heapstream/proto/bus/bustest"
)

// loadEnv makes this binary a crowd of clients, in a process of its own: number, path and Accept-Encoding, separated by
// blanks. It prints a line for each answer until its input ends.
const loadEnv = "HEAPSTREAM_BENCH_LOAD"

func load(what string) int {
	f := strings.Fields(what)
	n, err := strconv.Atoi(f[0])
	if err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	var all sync.WaitGroup
	var mu sync.Mutex
	for range n {
		all.Go(func() {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DisableCompression: true} //nolint:gosec // made at start, for this benchmark
			defer transport.CloseIdleConnections()
			for ctx.Err() == nil {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, f[1], nil)
				if err != nil {
					return
				}
				r.Header.Set("Authorization", "Bearer alice")
				r.Header.Set("Accept-Encoding", f[2])
				resp, err := transport.RoundTrip(r)
				if err != nil {
					continue
				}
				size, _ := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				mu.Lock()
				fmt.Println(resp.StatusCode, size)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return 0
}

// BenchmarkRollupToView measures how long a rollup takes from its publisher to the view, at the pace of 1000 nodes of
// 30 pods of 2 containers at 15 s, while so many clients list all pods of the cluster as fast as they are answered.
// Clients have a process of their own. An operation is one rollup; "p99-ms" is what the speed of the whole is judged by.
func BenchmarkRollupToView(b *testing.B) {
	const nodes, every = 1000, 15 * time.Second / 1000
	for _, bench := range []struct {
		lists    int
		encoding string
	}{{0, ""}, {64, "identity"}, {64, "gzip"}} {
		b.Run(strings.TrimSuffix(fmt.Sprintf("lists=%d/%s", bench.lists, bench.encoding), "/"), func(b *testing.B) {
			server := bustest.Start(b)
			conn := server.Conn(b)
			bustest.Provision(b, conn, "prod")
			publisher := conn.Publisher(bus.PublisherConfig{})
			enc := proto.NewEncoder()
			tick := proto.TickAt(time.Now(), 15*time.Second)
			publish := func(i int) (seq uint64) {
				r := crowded(i%nodes, tick.Add(i/nodes, 15*time.Second))
				data, err := enc.Rollup(r)
				if err != nil {
					b.Fatal(err)
				}
				ack, err := publisher.Publish(b.Context(), bus.Message{Subject: bus.NodeRollupSubject("prod", r.Name), Data: data})
				if err != nil {
					b.Fatal(err)
				}
				return ack.Seq
			}
			var last uint64
			for i := range nodes {
				last = publish(i)
			}
			var watched atomic.Pointer[view.Cluster]
			var mu sync.Mutex
			applied := map[uint64]time.Time{}
			base := startLoaded(b, conn, &watched, func(seq uint64, at time.Time) {
				mu.Lock()
				defer mu.Unlock()
				if _, ok := applied[seq]; !ok {
					applied[seq] = at
				}
			})
			for watched.Load().Seq() < last {
				time.Sleep(time.Millisecond)
			}
			answers := func() int { return 0 }
			if bench.lists > 0 {
				answers = startLoad(b, fmt.Sprintf("%d %s/apis/metrics.k8s.io/v1/pods %s", bench.lists, base, bench.encoding))
				for answers() < bench.lists {
					time.Sleep(10 * time.Millisecond)
				}
			}
			type sent struct {
				seq uint64
				at  time.Time
			}
			var all []sent
			pace := time.NewTicker(every)
			defer pace.Stop()
			first := answers()
			i, began := nodes, time.Now()
			for b.Loop() {
				<-pace.C
				at := time.Now()
				all = append(all, sent{publish(i), at})
				i++
			}
			took := time.Since(began)
			for watched.Load().Seq() < all[len(all)-1].seq {
				time.Sleep(time.Millisecond)
			}
			var delays []time.Duration
			mu.Lock()
			for _, s := range all {
				if at, ok := applied[s.seq]; ok {
					delays = append(delays, at.Sub(s.at))
				}
			}
			mu.Unlock()
			slices.Sort(delays)
			if len(delays) == 0 {
				b.Fatal("nothing arrived")
			}
			at := func(p int) float64 { return float64(delays[len(delays)*p/100]) / 1e6 }
			b.ReportMetric(at(50), "p50-ms")
			b.ReportMetric(at(99), "p99-ms")
			b.ReportMetric(float64(answers()-first)/took.Seconds(), "lists/s")
		})
	}
}

// startLoad starts clients and returns how many answers they got so far.
func startLoad(b *testing.B, what string) (answers func() int) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0]) //nolint:gosec // this binary
	cmd.Env = append(os.Environ(), loadEnv+"="+what)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if bytes.HasPrefix(lines.Bytes(), []byte("200 ")) {
				n.Add(1)
			}
		}
	}()
	b.Cleanup(func() {
		_ = in.Close()
		<-done
		_ = cmd.Wait()
	})
	return func() int { return int(n.Load()) }
}

// startLoaded runs a gateway with an API server that lets alice in, and returns its address. seen is told of every
// sequence once it is in the view.
func startLoaded(b *testing.B, conn *bus.Conn, cluster *atomic.Pointer[view.Cluster], seen func(uint64, time.Time)) string {
	b.Helper()
	api := authtest.Start(b)
	api.Users = map[string]authenticationv1.UserInfo{"alice": {Username: "alice"}}
	api.Allow = func(authorizationv1.SubjectAccessReviewSpec) bool { return true }
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Cluster, cfg.Clusters, cfg.Port, cfg.ListenIP, cfg.APIServer = "prod", []string{"prod"}, 0, "127.0.0.1", true
	cfg.Resource.Auth.AuthenticationKubeconfig, cfg.Resource.Auth.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
	var newest atomic.Uint64
	g, err := New(cfg, Deps{
		Bus: conn, Log: bustest.Logger(b), Registry: prometheus.NewRegistry(), SecureListener: secure,
		Now: func() time.Time { // the view asks for the time right after it has taken something in
			now := time.Now()
			if c := cluster.Load(); c != nil {
				if seq := c.Seq(); newest.Swap(seq) < seq {
					seen(seq, now)
				}
			}
			return now
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	c, ok := g.View().Cluster("prod")
	if !ok {
		b.Fatal("there is no cluster prod")
	}
	cluster.Store(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("run: %v", err)
		}
	})
	if _, err := g.SecureAddr(b.Context()); err != nil {
		b.Fatal(err)
	}
	return "https://" + secure.Addr().String()
}

// crowded is the rollup of a node of 30 pods of 2 containers.
func crowded(n int, tick proto.Tick) *proto.Rollup {
	now := time.Now().UnixNano()
	r := &proto.Rollup{Scope: proto.ScopeNode, Cluster: "prod", Name: fmt.Sprintf("node-%04d", n), Tick: tick, Resolution: 15 * time.Second}
	r.Scraped = now
	uses := func(row int, k int64) {
		r.Values.Set(row, proto.GroupCPU.Time(), now)
		r.Values.Set(row, proto.GroupCPU.Span(), int64(15*time.Second))
		r.Values.Set(row, proto.CPUUsage.Field(), 1e9*k+now%1e9)
		r.Values.Set(row, proto.CPUUsage.Delta(), 1e8*k+now%1e7)
		r.Values.Set(row, proto.MemoryWorkingSet.Field(), 1<<20*k+now%4096)
	}
	uses(r.AddEntity(proto.Entity{Kind: proto.KindNode, Name: r.Name, UID: r.Name, Hostname: r.Name, Parent: -1}), 30)
	for p := range 30 {
		pod := r.AddEntity(proto.Entity{
			Kind: proto.KindPod, Namespace: fmt.Sprintf("team-%02d", p), Name: fmt.Sprintf("app-6d4cf56db6-%04d-%02d", n, p), UID: fmt.Sprint(n, p), Phase: proto.PhaseRunning,
			Labels: []proto.Label{{Key: "app", Value: fmt.Sprint("app-", p%20)}, {Key: "pod-template-hash", Value: "6d4cf56db6"}},
		})
		for c := range 2 {
			uses(r.AddEntity(proto.Entity{Kind: proto.KindContainer, Name: fmt.Sprint("c", c), Parent: int32(pod), Flags: proto.FlagRunning}), int64(p+c+1)) //nolint:gosec // a handful
		}
	}
	return r
}
