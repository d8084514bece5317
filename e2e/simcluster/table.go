package simcluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
)

// columns of the tables that kubectl prints; kinds that are not here have name and age only.
func columns(kind string) []metav1.TableColumnDefinition {
	name := metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name"}
	col := func(n string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: n, Type: "string"}
	}
	wide := func(n string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: n, Type: "string", Priority: 1}
	}
	switch kind {
	case "Node":
		return []metav1.TableColumnDefinition{name, col("Status"), col("Roles"), col("Age"), col("Version"), wide("Internal-IP")}
	case "Pod":
		return []metav1.TableColumnDefinition{name, col("Ready"), col("Status"), col("Restarts"), col("Age"), wide("IP"), wide("Node")}
	case "Event":
		return []metav1.TableColumnDefinition{col("Last Seen"), col("Type"), col("Reason"), col("Object"), col("Message")}
	}
	return []metav1.TableColumnDefinition{name, col("Age")}
}

// cells of an object's row.
func cells(obj object, now time.Time) []any {
	age := duration.HumanDuration(now.Sub(obj.GetCreationTimestamp().Time))
	switch o := obj.(type) {
	case *corev1.Node:
		status, addr := "NotReady", ""
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
		for _, a := range o.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				addr = a.Address
			}
		}
		return []any{o.Name, status, "<none>", age, o.Status.NodeInfo.KubeletVersion, addr}
	case *corev1.Pod:
		ready, all, restarts := 0, len(o.Spec.Containers), 0
		for _, s := range o.Status.ContainerStatuses {
			if s.Ready {
				ready++
			}
			restarts += int(s.RestartCount)
		}
		sidecars := map[string]bool{}
		for _, c := range o.Spec.InitContainers {
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				sidecars[c.Name] = true
				all++
			}
		}
		for _, s := range o.Status.InitContainerStatuses {
			if sidecars[s.Name] {
				if s.Ready {
					ready++
				}
				restarts += int(s.RestartCount)
			}
		}
		status := string(o.Status.Phase)
		if status == string(corev1.PodSucceeded) {
			status = "Completed"
		}
		return []any{o.Name, fmt.Sprintf("%d/%d", ready, all), status, strconv.Itoa(restarts), age, o.Status.PodIP, o.Spec.NodeName}
	case *corev1.Event:
		return []any{age, o.Type, o.Reason, o.InvolvedObject.Kind + "/" + o.InvolvedObject.Name, o.Message}
	}
	return []any{obj.GetName(), age}
}

// renderTable builds the table of records; its rows carry the objects' metadata.
func (r *resourceInfo) renderTable(recs []*record, lm metav1.ListMeta, now time.Time) (*metav1.Table, error) {
	kind := r.kind
	if r.view != nil {
		kind = "" // the view of another kind: name and age
	}
	t := &metav1.Table{ListMeta: lm, ColumnDefinitions: columns(kind), Rows: make([]metav1.TableRow, 0, len(recs))}
	t.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("Table"))
	for _, rec := range recs {
		raw, err := json.Marshal(r.render(rec, offer{metaOnly: true}))
		if err != nil {
			return nil, fmt.Errorf("make table of %s: %w", r.plural, err)
		}
		t.Rows = append(t.Rows, metav1.TableRow{Cells: cells(r.render(rec, offer{}), now), Object: runtime.RawExtension{Raw: raw}})
	}
	return t, nil
}
