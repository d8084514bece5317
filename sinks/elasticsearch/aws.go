package elasticsearch

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// awsHost is an Elasticsearch or OpenSearch of Amazon; its name has the region.
var awsHost = regexp.MustCompile(`\.([a-z0-9-]+)\.(es|aoss)\.amazonaws\.com`)

// signed makes the client sign its requests for AWS where the environment has keys, as Heapster did.
func signed(client *http.Client, nodes string, getenv func(string) string) error {
	id, secret := cmp.Or(getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_ACCESS_KEY")), cmp.Or(getenv("AWS_SECRET_ACCESS_KEY"), getenv("AWS_SECRET_KEY"))
	if id == "" && secret == "" {
		return nil
	}
	if id == "" || secret == "" {
		return errors.New("the environment has one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: give both to sign requests for AWS, or none")
	}
	region, service := cmp.Or(getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION")), "es"
	if m := awsHost.FindStringSubmatch(nodes); m != nil {
		region, service = cmp.Or(region, m[1]), m[2]
	}
	if region == "" {
		return errors.New("the environment has AWS keys, with which requests are signed, but no AWS_REGION")
	}
	client.Transport = &signer{
		next: client.Transport, region: region, service: service, v4: v4.NewSigner(),
		keys: aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: getenv("AWS_SESSION_TOKEN")},
	}
	return nil
}

// signer signs requests on their way.
type signer struct {
	next            http.RoundTripper
	keys            aws.Credentials
	region, service string
	v4              *v4.Signer
}

// RoundTrip sends a signed copy of the request.
func (s *signer) RoundTrip(r *http.Request) (*http.Response, error) {
	copied := r.Clone(r.Context())
	if err := s.sign(copied); err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // which a RoundTripper owes
		}
		return nil, fmt.Errorf("sign request: %w", err)
	}
	return s.next.RoundTrip(copied)
}

func (s *signer) sign(r *http.Request) error {
	hash := sha256.New()
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return err
		}
		defer body.Close()
		if _, err := io.Copy(hash, body); err != nil {
			return err
		}
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	r.Header.Del("Authorization")
	r.Header.Set("X-Amz-Content-Sha256", sum)
	return s.v4.SignHTTP(r.Context(), s.keys, r, sum, s.service, s.region, time.Now())
}

// CloseIdleConnections closes those of the transport.
func (s *signer) CloseIdleConnections() {
	if c, ok := s.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
