// Package s3 writes rollups, or Kubernetes events, to S3 or what speaks its protocol, as Parquet files.
//
//	s3:[https://endpoint]?bucket=…[&prefix=heapstream&region=…]
//
// Without an address it is Amazon's of the region (`region`, AWS_REGION, us-east-1). Buckets are named in the path where the
// address is not Amazon's, or with pathstyle=true. `access_key` and `secret_key` (and `session_token`) log in; where they
// are not given it is AWS_ACCESS_KEY_ID and its like, the file of AWS_SHARED_CREDENTIALS_FILE (`profile`), or the role of
// the pod or machine (IRSA, EKS pod identity, ECS, EC2). The role needs s3:PutObject and no more. sse=AES256 or
// sse=aws:kms (`sse_key`) encrypts; `storage_class` is S3's. compression is zstd or snappy.
//
// An object holds the samples of up to 128 rollups, or of 1 MB of them as they travel: what came within `interval` (1m, at
// most 10m), by the clock and by that of the stream. A tick that is late by it is a tick that is not yet in the bucket, so
// `pending` in the telemetry is never 0 for long. Its key is made of the first rollup in it:
//
//	<prefix>/<cluster>/rollups/date=2026-11-20/hour=20/20261120T202600Z-node-<name>.parquet
//	<prefix>/<cluster>/events/date=2026-11-20/hour=20/20261120T202631Z-event-<uid>-<version>.parquet
//
// A row is a sample: time (the tick, UTC), cluster, metric and value; value_int64 where it is a whole number, exactly;
// counter; and a column for each of the labels that every sink has (type, nodename, namespace_name, pod_name,
// container_name, resource_id, …), null where there is none. A row of events has time, cluster, namespace, name, uid,
// version, kind and name of the object, reason, message, type, count, component, host, and core/v1's event as JSON.
// DuckDB reads both as they are:
//
//	SELECT time, pod_name, value FROM read_parquet('s3://bucket/heapstream/prod/rollups/*/*/*.parquet', hive_partitioning = true)
//	WHERE date = '2026-11-20' AND metric = 'cpu/usage_rate' AND type = 'pod_container';
//
// Guarantee: exactly once, by overwriting: an object is acknowledged as a whole, from its end, so that after a crash what
// comes again begins with the same rollup and is written under the same key. That takes one writer, so `concurrency` is 1.
// A rewind begins elsewhere, and doubles what it writes again: remove those hours first. S3 takes an object or refuses it,
// as a whole. What is refused for good is told apart by rollup.
//
// Tested against gofakes3 1.2, and the files by parquet-go.
//
// Not here: when to try again and what to wait for (worker), which samples there are (sink.View).
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/heapstream/heapstream/sinks/sink"
)

// Kind is the sink s3.
var Kind = sink.Kind{Key: "s3", Title: "S3 Sink", Guarantee: sink.OnceByOverwrite, Identity: []string{"bucket", "prefix"}, Gather: gather, New: New, NewEvents: NewEvents}

// Bounds of `interval`.
const (
	defaultInterval = time.Minute
	maxInterval     = 10 * time.Minute
)

// gather is how long an object is waited for.
func gather(t sink.Target) time.Duration { return t.Options().Duration("interval", defaultInterval) }

// bucket is one as seen by the worker of one cluster.
type bucket struct {
	files  files
	encode func(m *sink.Message) error

	client   *minio.Client
	http     *http.Client
	who      string
	name     string
	prefix   string
	put      minio.PutObjectOptions
	progress sink.Progress
}

// New reads the options; see the package for what they do.
func New(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.Common(d)
	s := open(t, o, d, common.ClusterName, "rollups", common.Concurrency)
	rows := newSamples(common.View, common.ClusterName)
	s.files.compression = compression(o)
	s.encode = func(m *sink.Message) error { return rows.append(&s.files, m) }
	return o.Made(s, d.Log)
}

// NewEvents reads the options of a sink of events.
func NewEvents(t sink.Target, d sink.Deps) (sink.Sink, error) {
	o := t.Options()
	common := o.CommonEvents(d)
	s := open(t, o, d, common.ClusterName, "events", common.Concurrency)
	s.files.compression = compression(o)
	s.encode = func(m *sink.Message) error {
		if !common.Passes(m.Event) {
			return nil
		}
		return appendEvent(&s.files, common.ClusterName, m.Event)
	}
	return o.Made(s, d.Log)
}

// bucketName is what S3 takes for one.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// open reads what both have. It complains to o.
func open(t sink.Target, o *sink.Options, d sink.Deps, cluster, what string, concurrency int) *bucket {
	s := &bucket{name: o.String("bucket", "")}
	if !bucketName.MatchString(s.name) {
		o.Complain("`bucket` flag is %q: want the name of a bucket, of 3 to 63 small letters, digits, - and .", s.name)
	}
	if concurrency > 1 {
		o.Complain("`concurrency` flag is %d: an object is named by its first rollup, which takes one writer", concurrency)
	}
	if every := o.Duration("interval", defaultInterval); every > maxInterval {
		o.Complain("`interval` flag is %s: at most %s, since what is waited for is held", every, maxInterval)
	}
	prefix := o.String("prefix", "heapstream")
	if path.Clean("/"+prefix) != "/"+prefix || strings.ContainsFunc(prefix, func(r rune) bool { return r < ' ' }) || len(prefix) > 256 {
		o.Complain("`prefix` flag is %q: want a path such as metrics/heapstream, of at most 256 bytes", prefix)
	}
	s.prefix = path.Join(prefix, token(cluster), what)

	region := o.String("region", first(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), "us-east-1"))
	address := url.URL{Scheme: "https", Host: "s3." + region + ".amazonaws.com"}
	if given := t.URL; given.Scheme != "" || given.Host != "" {
		address = url.URL{Scheme: given.Scheme, Host: given.Host}
		if given.Scheme != "http" && given.Scheme != "https" || given.Host == "" || given.User != nil || strings.Trim(given.Path, "/") != "" {
			o.Complain("its address is none such as https://minio:9000: give bucket and prefix by `bucket` and `prefix`")
			address = url.URL{Scheme: "https", Host: "localhost"}
		}
	}
	s.who = fmt.Sprintf("S3 at %s, bucket %q", address.Host, s.name)
	s.http = o.HTTP()
	lookup := minio.BucketLookupAuto
	if o.Bool("pathstyle", false) {
		lookup = minio.BucketLookupPath
	}
	var err error
	s.client, err = minio.New(address.Host, &minio.Options{
		Creds: login(o, region), Secure: address.Scheme == "https", Transport: s.http.Transport, Region: region, BucketLookup: lookup,
		MaxRetries: 1, // the worker tries again
	})
	if err != nil {
		o.Complain("its address: %w", err)
	} else {
		s.client.SetAppInfo("heapstream", d.Version)
	}
	s.put = minio.PutObjectOptions{ContentType: "application/vnd.apache.parquet", DisableMultipart: true, StorageClass: o.String("storage_class", "")}
	key := o.String("sse_key", "")
	switch sse := o.Choice("sse", "", "AES256", "aws:kms"); {
	case key != "" && sse != "aws:kms":
		o.Complain("`sse_key` is given without sse=aws:kms")
	case sse == "AES256":
		s.put.ServerSideEncryption = encrypt.NewSSE()
	case sse == "aws:kms":
		if s.put.ServerSideEncryption, err = encrypt.NewSSEKMS(key, nil); err != nil {
			o.Complain("`sse_key`: %w", err)
		}
	}
	return s
}

func first(all ...string) string {
	return all[slices.IndexFunc(all, func(s string) bool { return s != "" })]
}

// login is who we are: as given, or as the environment says, asked when it is needed and again before it runs out.
func login(o *sink.Options, region string) *credentials.Credentials {
	access, secret, session := o.String("access_key", ""), o.Secret("secret_key", ""), o.Secret("session_token", "")
	profile := o.String("profile", "")
	switch {
	case (access == "") != (secret == ""):
		o.Complain("`access_key` and `secret_key` belong together")
	case access == "" && session != "":
		o.Complain("`session_token` is given without `access_key`")
	case access != "" && profile != "":
		o.Complain("`access_key` and `profile` are both given: choose one")
	case access != "":
		return credentials.NewStaticV4(access, secret, session)
	case profile != "":
		return credentials.NewFileAWSCredentials("", profile)
	}
	return credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Region: region}})
}

// Close drops idle connections.
func (s *bucket) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

// Write writes a batch as an object for each hour that it touches; see sink.Sink.
func (s *bucket) Write(ctx context.Context, batch []sink.Message) error {
	s.files.reset()
	for i := range batch {
		if err := s.encode(&batch[i]); err != nil {
			return sink.Permanent(fmt.Errorf("make a Parquet file: %w", err))
		}
	}
	s.progress.Begin(batch, len(s.files.all))
	for i, f := range s.files.all {
		if s.progress.Settled(i) {
			continue
		}
		body, err := f.close()
		if err != nil {
			return s.progress.End(sink.Permanent(fmt.Errorf("make a Parquet file: %w", err)))
		}
		if err := s.send(ctx, path.Join(s.prefix, f.key), body); err != nil {
			return s.progress.End(err)
		}
		s.progress.Settle(i)
	}
	return s.progress.End(nil)
}

// send writes one object.
func (s *bucket) send(ctx context.Context, key string, body []byte) error {
	info, err := s.client.PutObject(ctx, s.name, key, bytes.NewReader(body), int64(len(body)), s.put)
	switch {
	case err != nil:
		return s.failed(err)
	case info.ETag == "":
		return fmt.Errorf("write to %s: it answered without an ETag, which is no answer of S3's", s.who)
	}
	return nil
}

// failed words an error.
func (s *bucket) failed(err error) error {
	var said minio.ErrorResponse
	if !errors.As(err, &said) {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // its address repeats what is known
		}
		return sink.Reach(s.who, err)
	}
	what := fmt.Errorf("write to %s: %s (%s, status %d)", s.who, sink.Excerpt([]byte(said.Message)), said.Code, said.StatusCode)
	switch said.Code {
	case "EntityTooLarge", "KeyTooLongError":
		return sink.Permanent(what)
	case "NoSuchBucket":
		return fmt.Errorf("%w: create it, or check `bucket`", what)
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return fmt.Errorf("%w: check `region` (the bucket is in %q)", what, said.Region)
	case "RequestTimeTooSkewed":
		return fmt.Errorf("%w: set the clock of this machine", what)
	}
	if said.StatusCode == http.StatusForbidden || said.StatusCode == http.StatusUnauthorized || slices.Contains([]string{"ExpiredToken", "InvalidToken", "InvalidAccessKeyId"}, said.Code) {
		return fmt.Errorf("%w: check `access_key` and `secret_key`, or the role: it needs s3:PutObject for %s/*", what, s.prefix)
	}
	return what
}
