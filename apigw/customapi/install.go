package customapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/kube-openapi/pkg/common"
	custominstall "k8s.io/metrics/pkg/apis/custom_metrics/install"
	customv1beta1 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta1"
	customv1beta2 "k8s.io/metrics/pkg/apis/custom_metrics/v1beta2"
	externalinstall "k8s.io/metrics/pkg/apis/external_metrics/install"
	externalv1beta1 "k8s.io/metrics/pkg/apis/external_metrics/v1beta1"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver/installer"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/apiserver/metrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/core"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/custommetrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/generated/openapi/externalmetrics"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
	customstorage "sigs.k8s.io/custom-metrics-apiserver/pkg/registry/custom_metrics"
	externalstorage "sigs.k8s.io/custom-metrics-apiserver/pkg/registry/external_metrics"
)

// Groups are both API groups, to be served by the server of package resourceapi (its Deps.Groups).
type Groups struct {
	cluster func(name string) (Source, bool)
}

// New returns the groups. cluster returns the view of a cluster, "" being the gateway's own; it is called for every
// request.
func New(cluster func(name string) (Source, bool)) (*Groups, error) {
	if cluster == nil {
		return nil, errors.New("custom metrics API: there is no view")
	}
	return &Groups{cluster: cluster}, nil
}

// AddToScheme adds the types of both groups.
func (g *Groups) AddToScheme(scheme *runtime.Scheme) error {
	custominstall.Install(scheme)
	externalinstall.Install(scheme)
	if err := scheme.SetVersionPriority(customv1beta2.SchemeGroupVersion, customv1beta1.SchemeGroupVersion); err != nil {
		return err
	}
	return installer.RegisterConversions(scheme)
}

// Definitions describes the types for OpenAPI.
func (g *Groups) Definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := core.GetOpenAPIDefinitions(ref) // what custom metrics describe: ObjectReference
	maps.Copy(all, custommetrics.GetOpenAPIDefinitions(ref))
	maps.Copy(all, externalmetrics.GetOpenAPIDefinitions(ref))
	return all
}

var freshness sync.Once // the library's telemetry is one per process, too

// Install adds both groups to a server. cluster says of which cluster a request asks, or why none can be answered.
func (g *Groups) Install(s *server.GenericAPIServer, scheme *runtime.Scheme, codecs runtime.NegotiatedSerializer, cluster func(context.Context) (string, error)) error {
	var err error
	freshness.Do(func() { err = metrics.RegisterMetrics(legacyregistry.Register) })
	if err != nil {
		return fmt.Errorf("register the telemetry of custom metrics: %w", err)
	}
	source := func(ctx context.Context) (Source, error) {
		name, err := cluster(ctx)
		if err != nil {
			return nil, err
		}
		c, ok := g.cluster(name)
		if !ok {
			return nil, notFound("cluster %q is not in the view", name)
		}
		return c, nil
	}
	c := &custom{source: source, all: listCustom()}
	x := &external{source: source, all: listExternal()}
	i := install{server: s, scheme: scheme, codecs: codecs}
	for _, gv := range []schema.GroupVersion{customv1beta2.SchemeGroupVersion, customv1beta1.SchemeGroupVersion} {
		i.version(gv, &installer.MetricsAPIGroupVersion{
			DynamicStorage: storage{customstorage.NewREST(c)}, Handlers: &installer.CMHandlers{}, ResourceLister: shown(provider.NewCustomMetricResourceLister(c)),
		})
	}
	i.version(externalv1beta1.SchemeGroupVersion, &installer.MetricsAPIGroupVersion{
		DynamicStorage: externalstorage.NewREST(x), Handlers: &installer.EMHandlers{}, ResourceLister: shown(provider.NewExternalMetricResourceLister(x)),
	})
	i.group(customv1beta2.SchemeGroupVersion, customv1beta1.SchemeGroupVersion)
	i.group(externalv1beta1.SchemeGroupVersion)
	return i.err
}

// resourceList is a list that does not change.
type resourceList []metav1.APIResource

// shown keeps what a lister says: the catalogue is the same at all times, and discovery is asked often.
func shown(l discovery.APIResourceLister) resourceList { return l.ListAPIResources() }

// ListAPIResources returns the list.
func (l resourceList) ListAPIResources() []metav1.APIResource { return l }

// install adds groups to a server, and keeps the first error. It is what server.InstallAPIGroup does, which cannot
// install resources whose names are not known one by one, and more than the library's own apiserver package does, which
// leaves out the second version and aggregated discovery.
type install struct {
	server *server.GenericAPIServer
	scheme *runtime.Scheme
	codecs runtime.NegotiatedSerializer
	err    error
}

// version adds the paths of one version.
func (i *install) version(gv schema.GroupVersion, v *installer.MetricsAPIGroupVersion) {
	if i.err != nil {
		return
	}
	v.APIGroupVersion = &endpoints.APIGroupVersion{
		Root: server.APIGroupPrefix, GroupVersion: gv,
		ParameterCodec: runtime.NewParameterCodec(i.scheme), Serializer: i.codecs,
		Creater: i.scheme, Convertor: i.scheme, UnsafeConvertor: runtime.UnsafeObjectConvertor(i.scheme), Typer: i.scheme,
		Namer: runtime.Namer(meta.NewAccessor()),
	}
	if err := v.InstallREST(i.server.Handler.GoRestfulContainer); err != nil {
		i.err = fmt.Errorf("install %s: %w", gv, err)
		return
	}
	resources, err := endpoints.ConvertGroupVersionIntoToDiscovery(v.ResourceLister.ListAPIResources())
	if err != nil {
		i.err = fmt.Errorf("describe %s for discovery: %w", gv, err)
		return
	}
	i.server.AggregatedDiscoveryGroupManager.AddGroupVersion(gv.Group, apidiscovery.APIVersionDiscovery{
		Freshness: apidiscovery.DiscoveryFreshnessCurrent, Version: gv.Version, Resources: resources,
	})
}

// group tells discovery of a group, its preferred version first.
func (i *install) group(versions ...schema.GroupVersion) {
	group := metav1.APIGroup{Name: versions[0].Group}
	for _, gv := range versions {
		group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version})
	}
	group.PreferredVersion = group.Versions[0]
	i.server.DiscoveryGroupManager.AddGroup(group)
	i.server.Handler.GoRestfulContainer.Add(discovery.NewAPIGroupHandler(i.codecs, group).WebService())
}
