// Package openapi describes the objects of the resource metrics API, and all they are made of, for /openapi/v2 and
// /openapi/v3. It is generated from the types of k8s.io/metrics; go generate renews it.
//
// Not here: the paths and verbs, which the generic API server finds out by itself.
package openapi

//go:generate go run k8s.io/kube-openapi/cmd/openapi-gen@v0.0.0-20260721132016-d427ff9ee9ad --output-dir . --output-pkg github.com/heapstream/heapstream/apigw/resourceapi/internal/openapi --output-file zz_generated.openapi.go --go-header-file openapi_header.txt --report-filename /dev/null k8s.io/metrics/pkg/apis/metrics/v1 k8s.io/metrics/pkg/apis/metrics/v1beta1 k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/runtime k8s.io/apimachinery/pkg/version
