package customapi

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/custom-metrics-apiserver/pkg/provider"
	"sigs.k8s.io/yaml"
)

// The HPA objects of deploy/kubernetes/examples must be what they say they are, and ask for what is served.
func TestExamplesAskForWhatIsServed(t *testing.T) {
	files, err := filepath.Glob("../../deploy/kubernetes/examples/hpa-*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d examples, %v", len(files), err)
	}
	source := newShop(t, 20)
	c := &custom{source: func(context.Context) (Source, error) { return source, nil }}
	x := &external{source: c.source}
	selected := func(s *metav1.LabelSelector) labels.Selector {
		if s == nil {
			return labels.Everything()
		}
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Error(err)
		}
		return selector
	}
	seen := map[autoscalingv2.MetricSourceType]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
			var hpa autoscalingv2.HorizontalPodAutoscaler
			if err := yaml.UnmarshalStrict(doc, &hpa); err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if hpa.APIVersion != "autoscaling/v2" || hpa.Kind != "HorizontalPodAutoscaler" || hpa.Name == "" || hpa.Spec.MaxReplicas < 2 || len(hpa.Spec.Metrics) == 0 {
				t.Errorf("%s: %+v", file, hpa)
			}
			for _, m := range hpa.Spec.Metrics {
				seen[m.Type] = true
				var err error
				switch m.Type {
				case autoscalingv2.PodsMetricSourceType:
					info := provider.CustomMetricInfo{GroupResource: schema.GroupResource{Resource: "pods"}, Namespaced: true, Metric: m.Pods.Metric.Name}
					_, err = c.GetMetricBySelector(t.Context(), "shop", labels.Everything(), info, selected(m.Pods.Metric.Selector))
				case autoscalingv2.ObjectMetricSourceType:
					kind := schema.GroupVersion{}
					if kind, err = schema.ParseGroupVersion(m.Object.DescribedObject.APIVersion); err != nil {
						break
					}
					for group, res := range resources {
						if res.kind == m.Object.DescribedObject.Kind && group.Group == kind.Group {
							_, _, err = find(source, provider.CustomMetricInfo{GroupResource: group, Namespaced: res.namespaced, Metric: m.Object.Metric.Name})
						}
					}
				case autoscalingv2.ExternalMetricSourceType:
					_, err = x.GetExternalMetric(t.Context(), "shop", selected(m.External.Metric.Selector), provider.ExternalMetricInfo{Metric: m.External.Metric.Name})
				}
				if err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
		}
	}
	for _, kind := range []autoscalingv2.MetricSourceType{autoscalingv2.PodsMetricSourceType, autoscalingv2.ObjectMetricSourceType, autoscalingv2.ExternalMetricSourceType} {
		if !seen[kind] {
			t.Errorf("no example of %s", kind)
		}
	}
}
