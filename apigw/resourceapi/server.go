package resourceapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/informers"
	restclient "k8s.io/client-go/rest"
	"k8s.io/component-base/compatibility"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/metrics/pkg/apis/metrics"
	"k8s.io/metrics/pkg/apis/metrics/install"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	definitions "github.com/heapstream/heapstream/apigw/resourceapi/internal/openapi"
)

// Limits of the server. Every answer is made from memory, so a request that takes long is a client that reads
// slowly.
const (
	requestTimeout = 30 * time.Second
	maxInFlight    = 200 // beyond it 429 with Retry-After; one list of 30,000 pods takes 15 MB while it is written
	// maxStreams is per HTTP/2 connection: the API server in front sends everybody's requests and watches over one.
	maxStreams = 2 * maxWatches
)

// apiVersion is the Kubernetes version whose generic API server this is; feature gates follow it.
const apiVersion = "1.37"

// Deps is what the gateway hands in.
type Deps struct {
	// Log takes what the server says, and what the libraries below it say through klog. klog is one per
	// process: the first server's Log gets it.
	Log *slog.Logger
	// Cluster returns the view of a cluster, "" being the gateway's own. It is called for every request.
	Cluster func(name string) (Source, bool)
	// Groups are further API groups of the same server.
	Groups []Group
	// Ready says why the view cannot answer yet, or nil. Until it has once said nil, requests for metrics get
	// 503; /readyz always shows what it says now.
	Ready func() error
	// Listener, if not nil, is served instead of the configured address. Run closes it.
	Listener net.Listener
	// Now is the clock of creationTimestamp; nil means time.Now.
	Now func() time.Time
}

// Group is another API group, or several, behind the same authentication, authorization, limits and readiness, and
// below /clusters/<c>/, too.
type Group interface {
	// AddToScheme adds the types.
	AddToScheme(scheme *runtime.Scheme) error
	// Definitions describes them, and what they are made of, for OpenAPI.
	Definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition
	// Install adds the paths and tells discovery of them. cluster is to be asked by every request: it returns the
	// name of the cluster asked for, "" being the gateway's own, or an error for the client.
	Install(s *server.GenericAPIServer, scheme *runtime.Scheme, codecs runtime.NegotiatedSerializer, cluster func(context.Context) (string, error)) error
}

// Server is the aggregated API server.
type Server struct {
	cfg    Config
	deps   Deps
	scheme *runtime.Scheme
	codecs serializer.CodecFactory
	hubs   *hubs
	turns  *turns
	ready  atomic.Bool // the view has been ready once

	listening chan struct{} // closed when addr is set
	addr      net.Addr
}

// New checks cfg and returns a server that does nothing yet.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil || deps.Cluster == nil || deps.Ready == nil {
		return nil, errors.New("resource metrics API: Deps needs Log, Cluster and Ready")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	routeKlog(deps.Log)
	scheme := runtime.NewScheme()
	install.Install(scheme)
	for _, g := range deps.Groups {
		if err := g.AddToScheme(scheme); err != nil {
			return nil, fmt.Errorf("resource metrics API: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return &Server{
		cfg: cfg, deps: deps, scheme: scheme,
		codecs:    serializer.NewCodecFactory(scheme, serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf()),
		hubs:      newHubs(deps.Cluster, deps.Now),
		turns:     newTurns(),
		listening: make(chan struct{}),
	}, nil
}

// Addr returns the address served. It blocks until Run listens or ctx ends.
func (s *Server) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case <-s.listening:
		return s.addr, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Run serves until ctx ends, and then lets the requests in flight finish. It first waits for the cluster's API
// server to say whom to trust. It may be called once. With port 0 and no listener it only waits for ctx.
func (s *Server) Run(ctx context.Context) error {
	listener := s.deps.Listener
	if listener == nil {
		if s.cfg.Port == 0 {
			<-ctx.Done()
			return nil
		}
		var err error
		address := net.JoinHostPort(s.cfg.BindAddress.String(), strconv.Itoa(s.cfg.Port))
		if listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address); err != nil {
			return fmt.Errorf("serve the resource metrics API: %w (--secure-port chooses another port, 0 turns it off)", err)
		}
	}
	defer listener.Close()
	cfg, err := s.config(listener)
	if err != nil {
		return err
	}
	check, err := s.cfg.Auth.Apply(ctx, s.deps.Log, &cfg.Config)
	if err != nil {
		release(cfg.SecureServing)
		if ctx.Err() != nil {
			return nil // asked to stop while waiting
		}
		return fmt.Errorf("serve the resource metrics API: %w", err)
	}
	if err := s.cfg.Audit.ApplyTo(&cfg.Config); err != nil {
		release(cfg.SecureServing)
		return fmt.Errorf("audit the resource metrics API: %w (--audit-policy-file, --audit-log-path)", err)
	}
	cfg.ReadyzChecks = append(cfg.ReadyzChecks, check)
	cfg.SecureServing.Listener = newGate(listener, check)
	generic, err := s.install(cfg)
	if err != nil {
		release(cfg.SecureServing)
		return err
	}
	prepared := generic.PrepareRun()
	s.addr = listener.Addr()
	close(s.listening)
	s.deps.Log.Info("serving the resource metrics API", "address", s.addr.String())
	watched, unwatch := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { s.hubs.run(watched) })
	err = prepared.RunWithContext(ctx)
	unwatch()
	watching.Wait()
	if err != nil {
		return fmt.Errorf("serve the resource metrics API: %w", err)
	}
	return nil
}

// config is all but who may ask.
func (s *Server) config(listener net.Listener) (*server.RecommendedConfig, error) {
	if s.cfg.CAFile != "" {
		s.deps.Log.Warn("--tls-ca-file is not used: put intermediates behind the certificate in --tls-cert-file")
	}
	serving, err := s.cfg.serving(listener)
	if err != nil {
		return nil, err
	}
	cfg := server.NewRecommendedConfig(s.codecs)
	cfg.SecureServing = serving
	cfg.ExternalAddress = listener.Addr().String()
	cfg.LoopbackClientConfig = &restclient.Config{} // demanded, and used by nothing here
	cfg.EffectiveVersion = compatibility.NewEffectiveVersionFromString(apiVersion, "", "")
	cfg.RequestTimeout = requestTimeout
	cfg.MaxRequestsInFlight = maxInFlight
	cfg.StorageObjectCountTracker = nil // nothing is stored
	namer := openapi.NewDefinitionNamer(s.scheme)
	cfg.OpenAPIConfig = server.DefaultOpenAPIConfig(s.definitions, namer)
	cfg.OpenAPIConfig.Info.Title = "heapstream"
	cfg.OpenAPIV3Config = server.DefaultOpenAPIV3Config(s.definitions, namer)
	cfg.OpenAPIV3Config.Info.Title = "heapstream"
	cfg.HealthzChecks = []healthz.HealthChecker{healthz.PingHealthz}
	cfg.LivezChecks = []healthz.HealthChecker{healthz.PingHealthz}
	cfg.ReadyzChecks = []healthz.HealthChecker{healthz.PingHealthz, healthz.NamedCheck("view", s.checkView)}
	cfg.BuildHandlerChainFunc = func(api http.Handler, c *server.Config) http.Handler {
		return server.DefaultBuildHandlerChain(withEncoding(s.withCluster(s.withTurns(api), c.RequestInfoResolver)), c)
	}
	return cfg, nil
}

// definitions describes the types of all groups.
func (s *Server) definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := map[string]common.OpenAPIDefinition{}
	for _, g := range s.deps.Groups {
		maps.Copy(all, g.Definitions(ref))
	}
	maps.Copy(all, definitions.GetOpenAPIDefinitions(ref))
	return all
}

// checkView is /readyz's: can the view answer?
func (s *Server) checkView(*http.Request) error { return s.deps.Ready() }

// install makes the server of cfg and gives it the group.
func (s *Server) install(cfg *server.RecommendedConfig) (*server.GenericAPIServer, error) {
	generic, err := cfg.Config.Complete(informers.SharedInformerFactory(nil)).New("heapstream", server.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("build the resource metrics API: %w", err)
	}
	common := store{
		cluster: s.cluster, source: s.source, hubs: s.hubs, now: s.deps.Now,
		formats: newFormats(s.codecs, metricsv1.SchemeGroupVersion, metricsv1beta1.SchemeGroupVersion),
	}
	group := server.NewDefaultAPIGroupInfo(metrics.GroupName, s.scheme, metav1.ParameterCodec, s.codecs)
	resources := map[string]rest.Storage{"nodes": &nodeStore{common}, "pods": &podStore{common}}
	for _, version := range []schema.GroupVersion{metricsv1.SchemeGroupVersion, metricsv1beta1.SchemeGroupVersion} {
		group.VersionedResourcesStorageMap[version.Version] = resources
	}
	if err := generic.InstallAPIGroup(&group); err != nil {
		return nil, fmt.Errorf("build the resource metrics API: %w", err)
	}
	for _, g := range s.deps.Groups {
		if err := g.Install(generic, s.scheme, s.codecs, s.cluster); err != nil {
			return nil, fmt.Errorf("build the resource metrics API: %w", err)
		}
	}
	return generic, nil
}

// cluster is the name of the cluster that the request asks for, once it can be answered.
func (s *Server) cluster(ctx context.Context) (string, error) {
	if !s.ready.Load() {
		if err := s.deps.Ready(); err != nil {
			return "", apierrors.NewServiceUnavailable("the metrics cannot be served yet: " + err.Error())
		}
		s.ready.Store(true)
	}
	name, _ := ctx.Value(clusterKey{}).(string)
	return name, nil
}

// source is the view of that cluster.
func (s *Server) source(ctx context.Context) (Source, error) {
	name, err := s.cluster(ctx)
	if err != nil {
		return nil, err
	}
	source, ok := s.deps.Cluster(name)
	if !ok {
		return nil, apierrors.NewServiceUnavailable("the cluster is not in the view")
	}
	return source, nil
}
