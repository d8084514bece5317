package resourceapi

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/metrics/pkg/apis/metrics"

	"github.com/heapstream/heapstream/apigw/view"
	"github.com/heapstream/heapstream/proto"
)

// Kinds of our objects; a list's is the same with "List" behind.
const (
	kindNode = "NodeMetrics"
	kindPod  = "PodMetrics"
)

// resourceSwap is the usage key of swapped bytes: an addition that clients which do not know it skip.
const resourceSwap = "swap"

func nodeObject(n *view.NodeMetrics, now time.Time) metrics.NodeMetrics {
	return metrics.NodeMetrics{
		ObjectMeta: objectMeta("", n.Name, n.Labels, n.Seq, now),
		Timestamp:  metav1.Time{Time: n.Time},
		Window:     metav1.Duration{Duration: n.Window},
		Usage:      usage(&n.Usage),
	}
}

func podObject(p *view.PodMetrics, now time.Time) metrics.PodMetrics {
	o := metrics.PodMetrics{
		ObjectMeta: objectMeta(p.Namespace, p.Name, p.Labels, p.Seq, now),
		Timestamp:  metav1.Time{Time: p.Time},
		Window:     metav1.Duration{Duration: p.Window},
		Containers: make([]metrics.ContainerMetrics, len(p.Containers)),
	}
	for i := range p.Containers {
		o.Containers[i] = metrics.ContainerMetrics{Name: p.Containers[i].Name, Usage: usage(&p.Containers[i].Usage)}
	}
	return o
}

func objectMeta(namespace, name string, labels []proto.Label, seq uint64, now time.Time) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Namespace: namespace, Name: name,
		ResourceVersion:   resourceVersion(seq),
		CreationTimestamp: metav1.Time{Time: now},
	}
	if len(labels) > 0 {
		m.Labels = make(map[string]string, len(labels))
		for _, l := range labels {
			m.Labels[l.Key] = l.Value
		}
	}
	return m
}

func usage(u *view.Usage) corev1.ResourceList {
	r := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(u.CPU, resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(u.Memory, resource.BinarySI),
	}
	if u.HasSwap {
		r[resourceSwap] = *resource.NewQuantity(u.Swap, resource.BinarySI)
	}
	return r
}
