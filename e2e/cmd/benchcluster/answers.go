package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/heapstream/heapstream/e2e/fleet"
	"github.com/heapstream/heapstream/proto"
	"github.com/heapstream/heapstream/proto/bus"
)

// asked is how many nodes a tick delay asks for: enough for a quantile, and few enough not to be the load.
const asked = 200

// delay measures the time from the moment that the scraper had read a kubelet's answer until the gateway serves it. It
// hears of each batch from the bus and asks the gateway for that node from then on.
func (b *bench) delay(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(b.ticks, 2))*b.resolution)
	defer cancel()
	every := max(b.nodes/asked, 1)
	var mu sync.Mutex
	var stored, served []time.Duration
	var unserved int
	var asking sync.WaitGroup
	dec := proto.NewDecoder()
	for d, err := range b.conn.Replay(ctx, bus.ReplayConfig{Stream: bus.SamplesStream(cluster), Subjects: []string{bus.SamplesFilter(cluster)}, New: true}) {
		if err != nil {
			return err
		}
		var batch proto.Batch
		if err := dec.Batch(d.Data, &batch); err != nil {
			return err
		}
		read, node, tick := time.Unix(0, batch.Scraped), strings.Clone(batch.Node), batch.Tick
		stored = append(stored, d.Time.Sub(read))
		if len(stored)%every != 0 {
			continue
		}
		asking.Go(func() {
			ok := b.awaitNode(ctx, node, tick)
			took := time.Since(read)
			mu.Lock()
			defer mu.Unlock()
			if ok {
				served = append(served, took)
			} else if ctx.Err() == nil {
				unserved++
			}
		})
	}
	asking.Wait()
	if len(served) == 0 {
		return errors.New("nothing was served")
	}
	p50, p99, most := quantiles(stored)
	b.say("kubelet's answer to stored in SAMPLES", "p50 %s, p99 %s, most %s (%d batches)", millis(p50), millis(p99), millis(most), len(stored))
	p50, p99, most = quantiles(served)
	b.say("kubelet's answer to served by the API", "p50 %s, p99 %s, most %s (%d nodes asked for)", millis(p50), millis(p99), millis(most), len(served))
	if unserved > 0 {
		b.say("never served", "%d", unserved)
	}
	return nil
}

// awaitNode asks for a node until it is served at that tick.
func (b *bench) awaitNode(ctx context.Context, node string, tick proto.Tick) bool {
	url := "http://" + b.model + "/api/v1/model/nodes/" + node + "/metrics/memory/node_capacity" // has a point at every tick
	for ctx.Err() == nil {
		var answer struct {
			LatestTimestamp time.Time `json:"latestTimestamp"`
		}
		if body, err := b.get(ctx, url); err == nil && json.Unmarshal(body, &answer) == nil && proto.Tick(answer.LatestTimestamp.UnixMilli()) >= tick {
			return true
		}
		if fleet.Wait(ctx, 2*time.Millisecond) != nil {
			break
		}
	}
	return false
}

// get reads an answer as the administrator.
func (b *bench) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+b.token)
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, resp.Status)
	}
	return body, err
}

// list is an answer of the resource metrics API.
type list struct {
	Items []struct {
		Metadata struct{ Name, Namespace string }
	}
}

func (b *bench) list(ctx context.Context, path string) (l list, bytes int, err error) {
	body, err := b.get(ctx, "https://"+b.secure+"/apis/metrics.k8s.io/v1beta1/"+path)
	if err != nil {
		return l, 0, err
	}
	return l, len(body), json.Unmarshal(body, &l)
}

// namespace is the one that has closest to 600 pods, and one of them.
func (b *bench) namespace(ctx context.Context) (ns, pod string, err error) {
	all, _, err := b.list(ctx, "pods")
	if err != nil {
		return "", "", err
	}
	count, one := map[string]int{}, map[string]string{}
	for _, p := range all.Items {
		count[p.Metadata.Namespace]++
		one[p.Metadata.Namespace] = p.Metadata.Name
	}
	away := func(n int) int { return max(n-600, 600-n) }
	for name, n := range count {
		if ns == "" || away(n) < away(count[ns]) || away(n) == away(count[ns]) && name < ns {
			ns = name
		}
	}
	if ns == "" {
		return "", "", errors.New("no pods are served")
	}
	return ns, one[ns], nil
}

// requests is how often an answer is asked for.
const requests = 100

// apis measures how long answers take, one after the other over one connection.
func (b *bench) apis(ctx context.Context) error {
	ns, pod, err := b.namespace(ctx)
	if err != nil {
		return err
	}
	for _, path := range []string{"namespaces/" + ns + "/pods", "nodes"} {
		l, bytes, err := b.list(ctx, path)
		if err != nil {
			return err
		}
		var took []time.Duration
		for range requests {
			began := time.Now()
			if _, err := b.get(ctx, "https://"+b.secure+"/apis/metrics.k8s.io/v1beta1/"+path); err != nil {
				return err
			}
			took = append(took, time.Since(began))
		}
		p50, p99, _ := quantiles(took)
		b.say(fmt.Sprintf("Metrics API, %d %s", len(l.Items), path[strings.LastIndexByte(path, '/')+1:]), "p50 %s, p99 %s (%d KiB)", millis(p50), millis(p99), bytes/1024)
	}
	rate, err := b.series(ctx, "/api/v1/model/namespaces/"+ns+"/pods/"+pod+"/metrics/memory/usage", 3*time.Second)
	if err != nil {
		return err
	}
	b.say("one pod's series over HTTP, one connection", "%.1f k/s", rate/1000)
	return nil
}

// series asks for one path over and over on one connection, and returns the answers a second. It speaks just enough
// HTTP, so that the asking costs little of what is measured on a small machine.
func (b *bench) series(ctx context.Context, path string, span time.Duration) (float64, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", b.model)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: bench\r\n\r\n")
	in := bufio.NewReaderSize(conn, 64<<10)
	began := time.Now()
	n := 0
	for ; time.Since(began) < span; n++ {
		if _, err := conn.Write(request); err != nil {
			return 0, err
		}
		if err := skipAnswer(in); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// skipAnswer reads a good answer of known length.
func skipAnswer(in *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		text := strings.TrimSpace(string(line))
		if first && !strings.HasPrefix(text, "HTTP/1.1 200") {
			return fmt.Errorf("answered with %q", text)
		}
		if text == "" {
			break
		}
		if n, ok := strings.CutPrefix(strings.ToLower(text), "content-length:"); ok {
			if length, err = strconv.Atoi(strings.TrimSpace(n)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without a length")
	}
	_, err := in.Discard(length)
	return err
}
