package scraper

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/heapstream/heapstream/scraper/kubelet"
)

func TestParseSource(t *testing.T) {
	t.Setenv("API_PORT", "6443")
	summary := func(change func(*Source)) Source {
		s := Source{Key: kubelet.SummarySource, InCluster: true}
		if change != nil {
			change(&s)
		}
		return s
	}
	for _, c := range []struct {
		value string
		want  Source
	}{
		{"kubernetes.summary_api", summary(nil)},
		{"kubernetes.summary_api:", summary(nil)},
		{"kubernetes.summary_api:''", summary(nil)},
		{`"kubernetes.summary_api:''"`, summary(nil)},
		{"kubernetes.summary_api:https://kubernetes.default", summary(func(s *Source) { s.Server = "https://kubernetes.default" })},
		{"kubernetes.summary_api:https://kubernetes.default/ignored/path?x", summary(func(s *Source) {
			s.Server = "https://kubernetes.default"
			s.Warnings = []string{`unknown option "x" means nothing`}
		})},
		{"kubernetes.summary_api:https://[fd00::1]:${API_PORT}", summary(func(s *Source) { s.Server = "https://[fd00::1]:6443" })},
		{"kubernetes.summary_api:?insecure=1;kubeletPort=10250&kubeletHttps=T", summary(func(s *Source) {
			s.Insecure, s.KubeletPort, s.KubeletScheme = true, 10250, "https"
		})},
		{"kubernetes.summary_api:http://127.0.0.1:8001?inClusterConfig=false&useServiceAccount=false&kubeletPort=10255&kubeletHttps=false&auth=/k&host_id_annotation=x/y&apiVersion=v1", Source{
			Key: kubelet.SummarySource, Server: "http://127.0.0.1:8001", KubeletPort: 10255, KubeletScheme: "http", Auth: "/k", HostIDAnnotation: "x/y",
		}},
		{"kubernetes.summary_api:?kubeletport=1", summary(func(s *Source) {
			s.Warnings = []string{`unknown option "kubeletport" means nothing; did you mean kubeletPort?`}
		})},
		{"kubernetes.summary_api:?auth=/k", summary(func(s *Source) {
			s.Auth = "/k"
			s.Warnings = []string{"option auth means nothing without inClusterConfig=false"}
		})},
	} {
		got, err := ParseSource(c.value)
		if err != nil {
			t.Errorf("%s: %v", c.value, err)
			continue
		}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.value, got, c.want)
		}
	}
	for _, key := range kubelet.Sources() {
		if s, err := ParseSource(string(key) + ":''"); err != nil || s.Key != key || len(s.Warnings) > 0 {
			t.Errorf("%s: %+v, %v", key, s, err)
		}
	}
}

func TestParseSourceNamesWhatIsWrong(t *testing.T) {
	for value, words := range map[string]string{
		"":                                                "missing key",
		":http://x":                                       "missing key",
		"prometheus:http://x":                             `source "prometheus" is not known: want one of [kubernetes.summary_api kubernetes kubernetes.resource_api]`,
		"kubernetes.summary_api:ftp://x":                  `scheme "ftp"`,
		"kubernetes.summary_api:host:443":                 "want scheme://host",
		"kubernetes.summary_api:10.0.0.1:443":             "want scheme://host",
		"kubernetes.summary_api:?insecure=maybe":          `option insecure="maybe"`,
		"kubernetes.summary_api:?kubeletPort=0":           "port from 1 to 65535",
		"kubernetes.summary_api:https://me:secret@server": "holds a user",
	} {
		_, err := ParseSource(value)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", value, err, words)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error repeats a secret: %v", value, err)
		}
	}
}

func TestKubeletPort(t *testing.T) {
	for _, c := range []struct {
		options string // of the source
		flags   Kubelet
		told    int // by status.daemonEndpoints
		port    int
		https   bool
	}{
		{"", Kubelet{}, 0, 10250, true},
		{"", Kubelet{}, 20250, 20250, true},
		{"?kubeletPort=10255", Kubelet{}, 10250, 10255, false},
		{"?kubeletPort=10250", Kubelet{}, 20250, 10250, true}, // 10250 never speaks plain http
		{"?kubeletPort=10250&kubeletHttps=true", Kubelet{}, 0, 10250, true},
		{"?kubeletPort=10250&kubeletHttps=false", Kubelet{}, 0, 10250, false},
		{"?kubeletPort=4194", Kubelet{}, 10250, 4194, false}, // as in Heapster
		{"?kubeletHttps=false", Kubelet{}, 10250, 10255, false},
		{"?kubeletHttps=true", Kubelet{}, 10251, 10251, true},
		{"?kubeletPort=10255", Kubelet{Port: 10250}, 0, 10250, true}, // flags win
		{"?kubeletHttps=true", Kubelet{Scheme: "http"}, 0, 10255, false},
		{"", Kubelet{Port: 9000, Scheme: "https"}, 10250, 9000, true},
	} {
		s, err := ParseSource("kubernetes.summary_api:" + c.options)
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{Kubelet: c.flags}
		if port, https := cfg.port(s, c.told); port != c.port || https != c.https {
			t.Errorf("%s, %+v, told %d: %d %t, want %d %t", c.options, c.flags, c.told, port, https, c.port, c.https)
		}
	}
}

func TestValidateComplainsOfEverythingAtOnce(t *testing.T) {
	c := Config{Role: RoleNode, Source: "x:", Resolution: 1500 * time.Millisecond, Kubelet: Kubelet{Port: -1, CertFile: "c", Insecure: true, PinFile: "p"}, PodsFrom: "moon", BacklogBytes: 1}
	err := c.Validate()
	for _, words := range []string{"--node-name", "--cluster", "--source", "--metric-resolution", "--kubelet-port", "--kubelet-client-cert", "--kubelet-certificate", "--pods-from", "--node-refresh", "--backlog-bytes"} {
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%v does not name %s", err, words)
		}
	}
	c = DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
	c.Role = "leader"
	if err := c.Validate(); err == nil {
		t.Error("role leader is taken")
	}
}
