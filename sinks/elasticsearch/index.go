package elasticsearch

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/heapstream/heapstream/proto"
)

// ensure makes an index be there, with the mapping of metrics and events and the aliases of their families. It asks once;
// a user that may not is told of in the log, and the index is left to Elasticsearch.
func (s *elastic) ensure(ctx context.Context, index string) error {
	if s.stream != "" {
		return s.ensureStream(ctx, index)
	}
	if s.ensured[index] {
		return nil
	}
	err := s.createIndex(ctx, index)
	if err == nil {
		err = s.createAliases(ctx, index)
	}
	if f, ok := err.(*forbidden); ok {
		s.log.Info("index or its aliases cannot be created by this user, writing to it as it is", "index", index, "err", f.error)
		err = nil
	}
	if err != nil {
		return err
	}
	if len(s.ensured) > 100 {
		clear(s.ensured)
	}
	s.ensured[index] = true
	return nil
}

// forbidden says that this user may not do what was asked.
type forbidden struct{ error }

func (f *forbidden) Unwrap() error { return f.error }

func (s *elastic) createIndex(ctx context.Context, index string) error {
	a, err := s.do(ctx, http.MethodHead, "/"+url.PathEscape(index), nil)
	switch {
	case err != nil:
		return err
	case a.Code == http.StatusOK:
		return nil
	case a.Code == http.StatusForbidden:
		return &forbidden{s.failure("look for index "+index+" in", a)}
	case a.Code != http.StatusNotFound:
		return s.failure("look for index "+index+" in", a)
	}
	body, err := json.Marshal(mapping(s.enc.types))
	if err != nil {
		return fmt.Errorf("make mapping of index %q: %w", index, err)
	}
	if a, err = s.do(ctx, http.MethodPut, "/"+url.PathEscape(index), body); err != nil {
		return err
	}
	switch {
	case a.OK() && acknowledged(a.Body):
		return nil
	case a.OK():
		return s.client.Nonsense("create index "+index+" in", a)
	case a.Code == http.StatusForbidden:
		return &forbidden{s.failure("create index "+index+" in", a)}
	case strings.Contains(errorOf(a.Body), "already"): // another was faster: [resource|index]_already_exists
		return nil
	}
	return s.failure("create index "+index+" in", a)
}

func acknowledged(body []byte) bool {
	var said struct {
		Acknowledged bool `json:"acknowledged"`
	}
	return json.Unmarshal(body, &said) == nil && said.Acknowledged
}

// createAliases gives events, and each family of metrics, their alias: <index>-cpu and so on. Without types it shows those
// documents that have the family's time.
func (s *elastic) createAliases(ctx context.Context, index string) error {
	type add struct {
		Index  string         `json:"index"`
		Alias  string         `json:"alias"`
		Filter map[string]any `json:"filter,omitempty"`
	}
	shown := map[string]string{eventsName: eventsTime} // what is found by an alias, by the name of its time
	for f := range families {
		shown[familyNames[f]] = timeFields[f]
	}
	var actions []map[string]add
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		a := add{Index: index, Alias: s.enc.index + "-" + name}
		if s.enc.types != typePerFamily {
			a.Filter = map[string]any{"exists": map[string]string{"field": shown[name]}}
		}
		actions = append(actions, map[string]add{"add": a})
	}
	body, err := json.Marshal(map[string]any{"actions": actions})
	if err != nil {
		return fmt.Errorf("make aliases of index %q: %w", index, err)
	}
	a, err := s.do(ctx, http.MethodPost, "/_aliases", body)
	switch {
	case err != nil:
		return err
	case a.OK() && acknowledged(a.Body):
		return nil
	case a.OK():
		return s.client.Nonsense("create aliases in", a)
	case a.Code == http.StatusForbidden:
		return &forbidden{s.failure("create aliases of index "+index+" in", a)}
	}
	return s.failure("create aliases of index "+index+" in", a)
}

// detect asks which Elasticsearch it is. OpenSearch 1 and later is one without types.
func (s *elastic) detect(ctx context.Context) error {
	a, err := s.do(ctx, http.MethodGet, "/", nil)
	if err != nil {
		return err
	}
	if !a.OK() {
		return fmt.Errorf("%w (or tell its version by `ver`)", s.failure("ask for the version of", a))
	}
	var said struct {
		Version struct {
			Number       string `json:"number"`
			Distribution string `json:"distribution"`
		} `json:"version"`
	}
	major := 0
	if json.Unmarshal(a.Body, &said) == nil {
		first, _, _ := strings.Cut(said.Version.Number, ".")
		major, _ = strconv.Atoi(first) // 0: no version
	}
	if major == 0 {
		return s.client.Nonsense("ask for the version of", a)
	}
	if said.Version.Distribution == "opensearch" {
		major = max(major, 7)
	}
	if s.stream != "" && major < 7 {
		return fmt.Errorf("%s is version %s: `data_stream` needs 7.9 or later", s.client.Who(), said.Version.Number)
	}
	s.log.Info("found Elasticsearch", "version", said.Version.Number, "distribution", said.Version.Distribution)
	s.setVersion(major)
	return nil
}

func (s *elastic) setVersion(major int) {
	s.known = true
	switch {
	case major < 6:
		s.enc.types = typePerFamily
	case major == 6:
		s.enc.types = typeDoc
	default:
		s.enc.types = typeless
	}
	s.old = major < 5
}

// object is a piece of a mapping.
type object = map[string]any

// mapping is the body of an index' creation. Up to version 5 it is Heapster's: a type for each family, strings
// that are analysed with a raw twin, or not analysed. From 6 on one type holds all of it.
func mapping(types docType) object {
	whole, analysed := object{"type": "keyword"}, object{"type": "text", "fields": object{"raw": object{"type": "keyword"}}}
	if types == typePerFamily {
		whole = object{"type": "string", "index": "not_analyzed"}
		analysed = object{"type": "string", "fields": object{"raw": object{"type": "string", "index": "not_analyzed"}}}
	}
	double := object{"properties": object{"value": object{"type": "double"}}}
	tags := object{}
	for _, key := range []string{
		proto.LabelContainerBaseImage, proto.LabelContainerName, proto.LabelHostname, proto.LabelLabels, proto.LabelNamespaceName, proto.LabelNodename, proto.LabelPodName,
	} {
		tags[key] = analysed
	}
	for _, key := range []string{
		proto.LabelHostID, proto.LabelNamespaceID, proto.LabelClusterName, proto.LabelPodID, proto.LabelResourceID, proto.LabelType,
	} {
		tags[key] = whole
	}
	time := object{"type": "date", "format": "strict_date_optional_time||epoch_millis"}
	byFamily := [families]object{}
	for f := range families {
		byFamily[f] = object{"MetricsTags": object{"properties": tags}, timeFields[f]: time}
		if f == general {
			byFamily[f]["MetricsName"], byFamily[f]["MetricsValue"] = analysed, double
			continue
		}
		metrics := object{}
		for _, m := range proto.Metrics() {
			if strings.HasPrefix(m.Name, familyNames[f]+"/") && !m.Ours {
				metrics[m.Name] = double
			}
		}
		byFamily[f]["Metrics"] = object{"properties": metrics}
	}
	if types == typePerFamily {
		mappings := object{"_default_": object{"_all": object{"enabled": false}}}
		for f := range families {
			mappings[familyNames[f]] = object{"properties": byFamily[f]}
		}
		mappings[eventsName] = object{"properties": eventProperties(whole, analysed, time)}
		return object{"mappings": mappings}
	}
	properties, metrics := eventProperties(whole, analysed, time), object{}
	for _, one := range byFamily {
		for k, v := range one {
			properties[k] = v
		}
		if m, ok := one["Metrics"].(object); ok {
			for k, v := range m["properties"].(object) {
				metrics[k] = v
			}
		}
	}
	properties["Metrics"] = object{"properties": metrics}
	all := object{
		"properties": properties,
		// A value that happens to come first without a fraction must not make the field one of integers.
		"dynamic_templates": []object{{"values": object{"path_match": "Metrics.*.value", "mapping": object{"type": "double"}}}},
	}
	if types == typeDoc {
		return object{"mappings": object{"_doc": all}}
	}
	return object{"mappings": all}
}
