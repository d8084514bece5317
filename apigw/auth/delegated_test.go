package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/server"

	"github.com/heapstream/heapstream/apigw/auth/authtest"
)

func TestDelegatedFlagsDefaultAsKubernetesDoes(t *testing.T) {
	d := DefaultDelegated()
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	d.Flags(fs)
	for flag, want := range map[string]string{
		"authentication-kubeconfig":                    "",
		"authentication-token-webhook-cache-ttl":       "10s",
		"authentication-skip-lookup":                   "false",
		"client-ca-file":                               "",
		"requestheader-username-headers":               "[x-remote-user]",
		"requestheader-group-headers":                  "[x-remote-group]",
		"requestheader-extra-headers-prefix":           "[x-remote-extra-]",
		"requestheader-client-ca-file":                 "",
		"requestheader-allowed-names":                  "[]",
		"authorization-kubeconfig":                     "",
		"authorization-webhook-cache-authorized-ttl":   "10s",
		"authorization-webhook-cache-unauthorized-ttl": "10s",
	} {
		if f := fs.Lookup(flag); f == nil || f.DefValue != want {
			t.Errorf("--%s: %+v, want default %q", flag, f, want)
		}
	}
}

func TestDelegatedValidateNamesTheFlag(t *testing.T) {
	d := DefaultDelegated()
	if err := d.Validate(); err != nil {
		t.Fatalf("defaults: %v", err)
	}
	d.TokenTTL, d.DeniedTTL = -1, -1
	d.RequestHeader.CAFile, d.RequestHeader.UsernameHeaders = "ca", nil
	err := d.Validate()
	for _, want := range []string{
		"--authentication-token-webhook-cache-ttl", "--authorization-webhook-cache-unauthorized-ttl", "--requestheader-username-headers",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

// apply builds against api, which may refuse.
func apply(ctx context.Context, api *authtest.APIServer) error {
	d := DefaultDelegated()
	d.AuthenticationKubeconfig, d.AuthorizationKubeconfig = api.Kubeconfig, api.Kubeconfig
	cfg := &server.Config{SecureServing: &server.SecureServingInfo{}}
	_, err := d.Apply(ctx, slog.New(slog.DiscardHandler), cfg)
	return err
}

func TestLookupSaysWhichRightIsMissing(t *testing.T) {
	for code, want := range map[int]string{
		http.StatusForbidden:    "extension-apiserver-authentication-reader",
		http.StatusUnauthorized: "extension-apiserver-authentication-reader",
		http.StatusNotFound:     "--authentication-skip-lookup",
	} {
		api := authtest.Start(t)
		api.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
			reason := map[int]metav1.StatusReason{
				http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusUnauthorized: metav1.StatusReasonUnauthorized,
				http.StatusNotFound: metav1.StatusReasonNotFound,
			}[code]
			authtest.Fail(w, code, reason, "refused")
			return true
		}
		if err := apply(t.Context(), api); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v, want %q", code, err, want)
		}
	}
}

func TestLookupWaitsForAnAPIServerThatIsAway(t *testing.T) {
	api := authtest.Start(t)
	var asked atomic.Int32
	api.Refuse = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == authtest.ConfigMapPath && asked.Add(1) <= 1 {
			panic(http.ErrAbortHandler) // as if it went down while it answered
		}
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := apply(ctx, api); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n < 2 {
		t.Fatalf("asked %d times, want again after the first", n)
	}
}

func TestLookupEndsWithItsContext(t *testing.T) {
	api := authtest.Start(t)
	ctx, cancel := context.WithCancel(t.Context())
	api.Refuse = func(http.ResponseWriter, *http.Request) bool {
		cancel()
		panic(http.ErrAbortHandler)
	}
	if err := apply(ctx, api); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context canceled", err)
	}
}

func TestApplyNamesTheFlagForAKubeconfigThatIsMissing(t *testing.T) {
	d := DefaultDelegated()
	d.AuthenticationKubeconfig = filepath.Join(t.TempDir(), "none")
	_, err := d.Apply(t.Context(), slog.New(slog.DiscardHandler), &server.Config{SecureServing: &server.SecureServingInfo{}})
	if err == nil || !strings.Contains(err.Error(), "--authentication-kubeconfig") {
		t.Fatalf("got %v", err)
	}
}
