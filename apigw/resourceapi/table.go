package resourceapi

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/metrics/pkg/apis/metrics"
)

// newTable begins a table as kubectl get podmetrics and nodemetrics print it: name, cpu, memory, window, and with
// -o wide what lies in swap. A pod's row is the sum of its containers.
func newTable(options runtime.Object) *metav1.Table {
	t := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); ok && o.NoHeaders {
		return t
	}
	t.ColumnDefinitions = []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the node or pod"},
		{Name: "cpu", Type: "string", Format: "quantity", Description: "CPU used, in cores, averaged over the window"},
		{Name: "memory", Type: "string", Format: "quantity", Description: "Working set in bytes at the end of the window"},
		{Name: "Window", Type: "string", Format: "duration", Description: "Span of time the CPU was averaged over"},
		{Name: "swap", Type: "string", Format: "quantity", Priority: 1, Description: "Bytes in swap; empty where the kubelet does not tell"},
	}
	return t
}

func addNode(t *metav1.Table, o *metrics.NodeMetrics) {
	addRow(t, o, o.Name, o.Usage, o.Window)
}

func addPod(t *metav1.Table, o *metrics.PodMetrics) {
	sum := corev1.ResourceList{}
	for i := range o.Containers {
		for name, q := range o.Containers[i].Usage {
			total := sum[name]
			total.Add(q)
			sum[name] = total
		}
	}
	addRow(t, o, o.Name, sum, o.Window)
}

func addRow(t *metav1.Table, o runtime.Object, name string, usage corev1.ResourceList, window metav1.Duration) {
	text := func(name corev1.ResourceName) string {
		if q, ok := usage[name]; ok {
			return q.String()
		}
		return ""
	}
	t.Rows = append(t.Rows, metav1.TableRow{
		Cells:  []any{name, text(corev1.ResourceCPU), text(corev1.ResourceMemory), window.Duration.String(), text(resourceSwap)},
		Object: runtime.RawExtension{Object: o},
	})
}
