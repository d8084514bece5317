package resourceapi

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
)

type (
	clusterKey struct{} // context: name of the cluster asked for; absent: the gateway's own
	encodesKey struct{} // context: the answer may be a *list
)

// clusterPrefix stands before the paths of a cluster.
const clusterPrefix = "/clusters/"

// withCluster serves /clusters/<c>/… from the same handlers as the bare path. It stands behind authorization, which
// has seen the whole path as a non-resource URL; so only paths may follow that show nothing but the cluster's
// metrics and what describes them, and never the server's own (/metrics, /debug, health).
func (s *Server) withCluster(next http.Handler, resolver request.RequestInfoResolver) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, ok := strings.CutPrefix(r.URL.Path, clusterPrefix)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		name, path, _ := strings.Cut(rest, "/")
		path = "/" + path
		if _, ok := s.deps.Cluster(name); !ok || name == "" {
			s.refuse(w, r, apierrors.NewNotFound(schema.GroupResource{Resource: "clusters"}, name))
			return
		}
		if !belowCluster(path) {
			s.refuse(w, r, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{}, "", "", 0, true))
			return
		}
		inner := r.Clone(context.WithValue(r.Context(), clusterKey{}, name))
		inner.URL = &url.URL{Path: path, RawQuery: r.URL.RawQuery}
		info, err := resolver.NewRequestInfo(inner)
		if err != nil {
			s.refuse(w, r, apierrors.NewBadRequest(err.Error()))
			return
		}
		next.ServeHTTP(w, inner.WithContext(request.WithRequestInfo(inner.Context(), info)))
	})
}

func belowCluster(path string) bool {
	for _, root := range []string{"/apis", "/openapi", "/version"} {
		if path == root || strings.HasPrefix(path, root+"/") {
			return true
		}
	}
	return false
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	responsewriters.ErrorNegotiated(err, s.codecs, schema.GroupVersion{Version: "v1"}, w, r)
}

// withEncoding marks requests that want our objects as they are: lists may then be written by our own encoder.
func withEncoding(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, accept := range r.Header.Values("Accept") {
			if strings.Contains(accept, "as") { // ";as=Table" or as bare metadata; a false alarm only costs time
				next.ServeHTTP(w, r)
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), encodesKey{}, true)))
	})
}

func encodesList(ctx context.Context) bool {
	ok, _ := ctx.Value(encodesKey{}).(bool)
	return ok
}
