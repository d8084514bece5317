package historyapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heapstream/heapstream/apigw/window"
	"github.com/heapstream/heapstream/proto"
)

// InfluxConfig says where the InfluxDB 1.x is and how the sink that fills it writes.
type InfluxConfig struct {
	Base       url.URL // scheme and host
	User, Pass string
	DB         string
	WithFields bool   // the sink's option: cpu/usage_rate is field usage_rate of measurement cpu
	PodIDs     bool   // the sink's option pod_id: it writes the UID of pods
	Own        string // cluster whose series have ClusterName for a name
	// ClusterName is the tag cluster_name of the cluster Own; of other clusters it is their name.
	ClusterName string
	Timeout     time.Duration // of one request to InfluxDB
	TLS         *tls.Config   // for https; nil: the machine's authorities
}

// policy is the retention policy that the sink, as Heapster, writes to.
const policy = "default"

// ParseInflux reads the value of --historical_source that names an InfluxDB: the same as that of --sink, whose options
// about the server and the schema are read, and the others left alone. own is the cluster of the bare paths. Its
// errors and the configuration's String do not repeat passwords.
func ParseInflux(value, own string) (c InfluxConfig, err error) {
	key, rest, _ := strings.Cut(unquote(value), ":")
	if key != "influxdb" {
		return c, fmt.Errorf("historical source %q: want window, or influxdb:URL as for --sink", key)
	}
	u, err := url.Parse(os.ExpandEnv(unquote(rest)))
	if err != nil {
		var bad *url.Error
		if errors.As(err, &bad) {
			err = bad.Err // without the address, which may hold a password
		}
		return c, fmt.Errorf("historical source %q: its address is not a URL: %w", key, err)
	}
	options, err := url.ParseQuery(strings.ReplaceAll(u.RawQuery, ";", "&"))
	if err != nil {
		return c, fmt.Errorf("historical source %q: an option has a bad percent escape (write %% as %%25)", key)
	}
	r := reader{options, nil}
	c = InfluxConfig{
		Base: url.URL{Scheme: "http", Host: u.Host}, User: r.text("user", "root"), Pass: r.secret("pw", "root"), DB: r.text("db", "k8s"),
		WithFields: r.yes("withfields"), PodIDs: r.yes("pod_id"), Own: own, ClusterName: r.text("cluster_name", own),
		Timeout: r.duration("timeout", 30*time.Second), TLS: r.tls(),
	}
	switch {
	case c.Base.Host == "" && u.Scheme != "" && u.Opaque != "": // host:port without a scheme
		c.Base.Host = u.Scheme + ":" + u.Opaque
		u.Scheme = "http"
	case c.Base.Host == "":
		c.Base.Host = "localhost:8086"
	case u.Port() == "":
		c.Base.Host = strings.TrimSuffix(c.Base.Host, ":") + ":8086"
	}
	if u.Scheme == "https" || r.yes("secure") {
		c.Base.Scheme = "https"
	}
	if u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		r.complain("address has scheme %q: want http or https", u.Scheme)
	}
	if err := errors.Join(r.errs...); err != nil {
		return c, fmt.Errorf("historical source %q: %w", key, err)
	}
	return c, nil
}

func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// reader reads options and collects what is wrong with them.
type reader struct {
	options url.Values
	errs    []error
}

func (r *reader) complain(format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf(format, args...))
}

func (r *reader) text(name, def string) string {
	if v := r.options.Get(name); v != "" {
		return v
	}
	return def
}

func (r *reader) yes(name string) bool {
	v := r.options.Get(name)
	if v == "" {
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		r.complain("`%s` flag is not true or false", name)
	}
	return b
}

func (r *reader) duration(name string, def time.Duration) time.Duration {
	v := r.options.Get(name)
	if v == "" {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		r.complain("`%s` flag is no duration such as 30s", name)
	}
	return d
}

// secret reads an option, or the file that the option of that name with _file names.
func (r *reader) secret(name, def string) string {
	file := r.options.Get(name + "_file")
	if file == "" {
		return r.text(name, def)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		r.complain("`%s_file`: %w", name, err)
	}
	return strings.TrimSpace(string(text))
}

func (r *reader) tls() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: r.yes("insecuressl")} //nolint:gosec // asked for by name
	if file := r.options.Get("cacert"); file != "" {
		pem, err := os.ReadFile(file)
		c.RootCAs = x509.NewCertPool()
		if err != nil {
			r.complain("`cacert`: %w", err)
		} else if !c.RootCAs.AppendCertsFromPEM(pem) {
			r.complain("`cacert`: no certificate in %q (want PEM)", file)
		}
	}
	cert, key := r.options.Get("cert"), r.options.Get("key")
	if cert == "" && key == "" {
		return c
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("`cert` and `key`: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		r.complain("%w", err)
	}
	// Read anew at every connect, so that a rotated certificate is taken up.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return c
}

// Influx answers from an InfluxDB 1.x. It connects when it is first asked.
type Influx struct {
	cfg    InfluxConfig
	client *http.Client
}

// NewInflux returns the source; it opens nothing. Close it to drop idle connections.
func NewInflux(cfg InfluxConfig) *Influx {
	return &Influx{cfg: cfg, client: &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg.TLS,
			MaxConnsPerHost: maxConns, MaxIdleConnsPerHost: maxConns, IdleConnTimeout: 90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Limits of what is asked of a database at once.
const (
	maxConns      = 8        // requests at a time; more wait
	maxStatements = 100      // of a request
	maxAnswer     = 16 << 20 // bytes of an answer
	maxNames      = 100_000  // of a list
)

var _ Source = (*Influx)(nil)

// Close drops idle connections.
func (i *Influx) Close() { i.client.CloseIdleConnections() }

// KnowsUIDs reports whether the sink writes them.
func (i *Influx) KnowsUIDs() bool { return i.cfg.PodIDs }

// Points asks for all keys with one statement each.
func (i *Influx) Points(ctx context.Context, ask Ask, keys []Key) ([][]window.Point, error) {
	statements := make([]string, len(keys))
	for n := range keys {
		measurement, field := i.place(ask.Metric)
		statements[n] = "SELECT " + quoteName(field) + " FROM " + measurement + i.where(&ask, &keys[n]) + " LIMIT " + strconv.Itoa(maxPoints+1)
	}
	float := isFloat(ask.Metric)
	all := make([][]window.Point, 0, len(keys))
	total := 0
	err := i.query(ctx, statements, func(r result) error {
		k := keys[len(all)]
		var points []window.Point
		for _, s := range r.Series {
			for _, row := range s.Values {
				if len(row) != 2 || row[1] == nil {
					continue
				}
				ns, v, err := sample(row[0], row[1], float)
				if err != nil {
					return err
				}
				points = append(points, window.Point{Tick: proto.Tick(ns / 1e6), Value: v})
			}
		}
		if len(points) == 0 {
			return &NoResults{ask.Metric, k}
		}
		if total += len(points); total > maxPoints {
			return errTooMany
		}
		all = append(all, points)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Buckets lets the database compute, with one statement for each key.
func (i *Influx) Buckets(ctx context.Context, ask Ask, keys []Key, functions []Function, size time.Duration) ([][]Bucket, error) {
	measurement, field := i.place(ask.Metric)
	var columns []string
	for _, f := range functions {
		name := quoteName(field)
		switch {
		case f.percent() > 0:
			columns = append(columns, "PERCENTILE("+name+", "+strconv.Itoa(int(f.percent()))+")")
		case f == Average:
			columns = append(columns, "MEAN("+name+")")
		default:
			columns = append(columns, strings.ToUpper(f.String())+"("+name+")")
		}
	}
	statements := make([]string, len(keys))
	for n := range keys {
		statements[n] = "SELECT " + strings.Join(columns, ", ") + " FROM " + measurement + i.where(&ask, &keys[n])
		if size > 0 {
			statements[n] += " GROUP BY time(" + strconv.FormatInt(size.Microseconds(), 10) + "u) fill(none)"
		}
	}
	float := isFloat(ask.Metric)
	all := make([][]Bucket, 0, len(keys))
	err := i.query(ctx, statements, func(r result) error {
		k := keys[len(all)]
		var buckets []Bucket
		for _, s := range r.Series {
			for _, row := range s.Values {
				if len(row) != 1+len(functions) {
					return fmt.Errorf("a row of %d columns where %d were asked for", len(row), 1+len(functions))
				}
				b := Bucket{Begin: ask.From}
				for n, f := range functions {
					if row[1+n] == nil {
						continue
					}
					ns, v, err := sample(row[0], row[1+n], float && f != Count)
					if err != nil {
						return err
					}
					if size > 0 { // else it is the time of the point that was chosen, or the range's
						b.Begin = time.Unix(0, ns).UTC()
					}
					b.set(f, v)
				}
				buckets = append(buckets, b)
			}
		}
		if len(buckets) == 0 {
			return &NoResults{ask.Metric, k}
		}
		all = append(all, buckets)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Metrics asks for the newest value of every field of every measurement, since SHOW MEASUREMENTS does not tell
// which of their fields an entity has.
func (i *Influx) Metrics(ctx context.Context, cluster string, key Key) (names []string, err error) {
	statement := "SELECT LAST(*) FROM " + quoteName(policy) + "./.*/ WHERE " + i.selector(cluster, &key)
	err = i.query(ctx, []string{statement}, func(r result) error {
		for _, s := range r.Series {
			for n, column := range s.Columns {
				field, ok := strings.CutPrefix(column, "last_")
				if !ok || len(s.Values) == 0 || len(s.Values[0]) <= n || s.Values[0][n] == nil {
					continue
				}
				name := s.Name
				if i.cfg.WithFields && field != "value" {
					name += "/" + field
				}
				if m := proto.MetricByName(name); m == nil || m.Device == 0 {
					names = append(names, name)
				}
			}
		}
		return nil
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// Names asks for the values of a tag of uptime, which every entity that runs has.
func (i *Influx) Names(ctx context.Context, cluster string, kind proto.Kind, in window.Entity) (names []string, err error) {
	tag, of := "", "pod"
	condition := ""
	switch kind {
	case proto.KindNode:
		tag, of = "nodename", "node"
	case proto.KindNamespace:
		tag = "namespace_name"
	case proto.KindPod:
		tag, condition = "pod_name", equal("namespace_name", in.Namespace)
	default:
		tag, of, condition = "container_name", "sys_container", equal("nodename", in.Node)
	}
	statement := "SHOW TAG VALUES FROM " + quoteName("uptime") + " WITH KEY = " + quoteName(tag) +
		" WHERE " + strings.TrimPrefix(equal("type", of), " AND ") + equal("cluster_name", i.clusterName(cluster)) + condition +
		" LIMIT " + strconv.Itoa(maxNames)
	err = i.query(ctx, []string{statement}, func(r result) error {
		for _, s := range r.Series {
			for _, row := range s.Values {
				if len(row) == 0 {
					continue
				}
				if name, ok := row[len(row)-1].(string); ok { // the value stands behind the key, and was alone before 0.11
					names = append(names, name)
				}
			}
		}
		return nil
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

// place is where the sink writes a metric: the measurement as a statement has it, and the field.
func (i *Influx) place(metric string) (measurement, field string) {
	field = "value"
	if i.cfg.WithFields {
		if m, f, ok := strings.Cut(metric, "/"); ok {
			metric, field = m, f
		}
	}
	return quoteName(policy) + "." + quoteName(metric), field
}

// where is the condition of a statement about a metric of a key.
func (i *Influx) where(ask *Ask, k *Key) string {
	w := " WHERE " + i.selector(ask.Cluster, k)
	for _, l := range ask.Labels {
		w += equal(l.Key, l.Value)
	}
	// One device, or what is not of a device: several series in one would be no series.
	named := func(key string) bool {
		return slices.ContainsFunc(ask.Labels, func(l proto.Label) bool { return l.Key == key })
	}
	if m := proto.MetricByName(ask.Metric); m != nil {
		for _, key := range deviceLabels(m.Device) {
			if !named(key) {
				w += equal(key, "")
			}
		}
	}
	return w + " AND time > " + nanos(k.from(ask)) + " AND time < " + nanos(ask.To)
}

// deviceLabels are the labels that tell devices of a kind apart.
func deviceLabels(kind proto.DeviceKind) []string {
	switch kind {
	case proto.DeviceFilesystem, proto.DeviceDisk:
		return []string{proto.LabelResourceID}
	case proto.DeviceAccelerator:
		return []string{proto.LabelMake, proto.LabelModel, proto.LabelAcceleratorID}
	case proto.DeviceInterface:
		return []string{proto.LabelInterface}
	}
	return nil
}

// selector is the condition that a series is of a key.
func (i *Influx) selector(cluster string, k *Key) string {
	e := &k.Entity
	w := strings.TrimPrefix(equal("type", e.Kind.String()), " AND ") + equal("cluster_name", i.clusterName(cluster))
	switch e.Kind {
	case proto.KindNode:
		return w + equal("nodename", e.Node)
	case proto.KindSystemContainer:
		return w + equal("container_name", e.Name) + equal("nodename", e.Node)
	case proto.KindNamespace:
		return w + equal("namespace_name", e.Namespace)
	case proto.KindPod, proto.KindContainer:
		if k.PodUID != "" && i.cfg.PodIDs {
			w += equal("pod_id", k.PodUID)
		} else {
			w += equal("namespace_name", e.Namespace) + equal("pod_name", e.Pod)
		}
		if e.Kind == proto.KindContainer {
			w += equal("container_name", e.Name)
		}
	}
	return w
}

func (i *Influx) clusterName(cluster string) string {
	if cluster == i.cfg.Own {
		return i.cfg.ClusterName
	}
	return cluster
}

// equal is a further condition on a tag.
func equal(tag, value string) string { return " AND " + quoteName(tag) + " = " + quoteText(value) }

var (
	nameQuotes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	textQuotes = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`)
)

// quoteName and quoteText write an identifier and a string of InfluxQL, whatever is in them.
func quoteName(s string) string { return `"` + nameQuotes.Replace(s) + `"` }
func quoteText(s string) string { return `'` + textQuotes.Replace(s) + `'` }

// nanos writes a time; what InfluxDB cannot hold is the nearest that it can.
func nanos(t time.Time) string {
	const margin = int64(time.Hour) // the very ends have meanings of their own
	first, last := time.Unix(0, math.MinInt64+margin), time.Unix(0, math.MaxInt64-margin)
	switch {
	case t.Before(first):
		t = first
	case t.After(last):
		t = last
	}
	return strconv.FormatInt(t.UnixNano(), 10)
}

// isFloat reports whether values of a metric are floats though they may be written without a fraction.
func isFloat(metric string) bool {
	m := proto.MetricByName(metric)
	return m != nil && m.Float
}

// sample reads the time and a value of a row.
func sample(at, value any, float bool) (ns int64, v proto.Value, err error) {
	t, ok := at.(json.Number)
	n, ok2 := value.(json.Number)
	if !ok || !ok2 {
		return 0, v, fmt.Errorf("a row with %v at %v: want numbers", value, at)
	}
	if ns, err = t.Int64(); err != nil {
		return 0, v, fmt.Errorf("a row at %q: want nanoseconds", t)
	}
	if !float {
		if i, err := n.Int64(); err == nil {
			return ns, proto.Int(i), nil
		}
	}
	f, err := n.Float64()
	if err != nil {
		return 0, v, fmt.Errorf("a value %q: want a number", n)
	}
	return ns, proto.Float(f), nil
}

// result is what InfluxDB answers to one statement.
type result struct {
	Error  string
	Series []struct {
		Name    string
		Columns []string
		Values  [][]any
	}
}

// Texts of failures, Heapster's.
const (
	textNoConnection = "unable to run query: unable to connect to database"
	textNoAnswer     = "No results returned"
)

// query runs statements, some at a time, and calls each with their results, in order.
func (i *Influx) query(ctx context.Context, statements []string, each func(result) error) error {
	for len(statements) > 0 {
		n := min(len(statements), maxStatements)
		results, err := i.post(ctx, statements[:n])
		if err != nil {
			return err
		}
		for _, r := range results {
			if err := each(r); err != nil {
				return err
			}
		}
		statements = statements[n:]
	}
	return nil
}

func (i *Influx) post(ctx context.Context, statements []string) ([]result, error) {
	ctx, cancel := context.WithTimeout(ctx, i.cfg.Timeout)
	defer cancel()
	u := i.cfg.Base
	u.Path = "/query"
	form := url.Values{"db": {i.cfg.DB}, "epoch": {"ns"}, "q": {strings.Join(statements, "; ")}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, &unreachable{textNoConnection, err}
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(i.cfg.User, i.cfg.Pass)
	resp, err := i.client.Do(req)
	if err != nil {
		return nil, &unreachable{textNoConnection, err}
	}
	defer resp.Body.Close()
	body := &io.LimitedReader{R: resp.Body, N: maxAnswer}
	d := json.NewDecoder(body)
	d.UseNumber()
	var a struct {
		Error   string
		Results []result
	}
	err = d.Decode(&a)
	for _, r := range a.Results {
		if a.Error == "" {
			a.Error = r.Error
		}
	}
	switch {
	case body.N == 0:
		return nil, errTooMany
	case a.Error != "":
		return nil, &unreachable{a.Error, fmt.Errorf("%s (status %d; user %q, database %q)", a.Error, resp.StatusCode, i.cfg.User, i.cfg.DB)}
	case err != nil:
		return nil, &unreachable{textNoConnection, fmt.Errorf("%s answered with status %d and not as an InfluxDB 1.x: %w", i.cfg.Base.Host, resp.StatusCode, err)}
	case len(a.Results) != len(statements):
		return nil, &unreachable{textNoAnswer, fmt.Errorf("%d results to %d statements", len(a.Results), len(statements))}
	}
	return a.Results, nil
}
