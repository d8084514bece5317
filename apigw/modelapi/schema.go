package modelapi

import (
	"encoding/json"

	"github.com/heapstream/heapstream/proto"
)

const schemaPath = "/api/v1/metric-export-schema"

// schema is the answer to /api/v1/metric-export-schema: what the export has, in Heapster's form and order. The
// descriptions are ours.
var schema = makeSchema()

type labelSchema struct {
	Key         string `json:"key"`
	Description string `json:"description"`
}

type metricSchema struct {
	Name        string        `json:"name"`
	Description string        `json:"description"`
	Labels      []labelSchema `json:"labels,omitempty"`
	Type        string        `json:"type"`
	ValueType   string        `json:"value_type"`
	Units       string        `json:"units,omitempty"`
}

func makeSchema() []byte {
	var s struct {
		Metrics      []metricSchema `json:"metrics"`
		CommonLabels []labelSchema  `json:"common_labels"`
		PodLabels    []labelSchema  `json:"pod_labels"`
	}
	resource := []labelSchema{{proto.LabelResourceID, "Which file system or block device of the entity is meant"}}
	accelerator := []labelSchema{
		{proto.LabelMake, "Maker of the accelerator, such as nvidia"},
		{proto.LabelModel, "Model of the accelerator, such as tesla-p100"},
		{proto.LabelAcceleratorID, "Identifier of the accelerator on its node"},
	}
	for i := range proto.Metrics() {
		m := &proto.Metrics()[i]
		if !exported(m) {
			continue
		}
		d := metricSchema{Name: m.Name, Description: m.Help, Type: m.Shape.String(), ValueType: "int64", Units: string(m.Unit)}
		if m.Float {
			d.ValueType = "double"
		}
		switch m.Device {
		case proto.DeviceAccelerator:
			d.Labels = accelerator
		case proto.DeviceFilesystem, proto.DeviceDisk:
			d.Labels = resource
		}
		s.Metrics = append(s.Metrics, d)
	}
	s.CommonLabels = []labelSchema{
		{proto.LabelNodename, "Name of the node, as the API server has it"},
		{proto.LabelHostname, "Host name of the node"},
		{proto.LabelHostID, "Identifier of the host, as an annotation of the node gives it"},
		{proto.LabelContainerName, "Name of the container; machine for a node and /pod for a pod"},
		{proto.LabelContainerBaseImage, "Image that the container was started from"},
	}
	s.PodLabels = []labelSchema{
		{proto.LabelPodName, "Name of the pod"},
		{proto.LabelPodID, "UID of the pod"},
		{proto.LabelNamespaceID, "UID of the pod's namespace"},
		{proto.LabelLabels, "Labels of the pod, joined into one text"},
	}
	text, err := json.MarshalIndent(&s, " ", " ")
	if err != nil {
		panic("schema of the export: " + err.Error()) // strings can be written
	}
	return text
}
